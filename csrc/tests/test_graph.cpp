#include <doctest/doctest.h>

#include <cstring>

#include "tiny_model.h"

using namespace loom;
using namespace loom::test;

TEST_CASE("names that repeat are told apart by occurrence, and the last one has the bare name") {
    const TinyModel model;
    const Graph graph = record(model.build({}).gf);
    const int first = graph.find("Qcur-0", 0), second = graph.find("Qcur-0", 1);
    REQUIRE(first >= 0);
    REQUIRE(second > first);
    CHECK(graph.find("Qcur-0", -1) == second);
    CHECK(graph.find("Qcur-0", 2) == -1);
    CHECK(graph.find("Qcur-7", -1) == -1);

    const Node & a = graph.nodes[static_cast<size_t>(first)];
    const Node & b = graph.nodes[static_cast<size_t>(second)];
    CHECK(a.key.occurrence == 0);
    CHECK_FALSE(a.last);
    CHECK(b.key.occurrence == 1);
    CHECK(b.last);
    CHECK(a.op == GGML_OP_MUL_MAT);
    CHECK(b.op == GGML_OP_RESHAPE);
    CHECK(b.ne == std::array<int64_t, 4>{n_embd / n_head, n_head, 5, 1});
    CHECK_FALSE(a.view);
    CHECK(b.view);
}

TEST_CASE("every occurrence but one of a name is not the last") {
    const TinyModel model;
    const Graph graph = record(model.build({}).gf);
    for (const Node & node : graph.nodes) {
        const int last = graph.find(node.key.name, -1);
        CHECK(node.last == (graph.nodes[static_cast<size_t>(last)].key.occurrence == node.key.occurrence));
    }
}

TEST_CASE("operands are nodes by ordinal, or leaves by name") {
    const TinyModel model;
    const Graph graph = record(model.build({}).gf);
    const Node & q = graph.nodes[static_cast<size_t>(graph.find("Qcur-0", 0))];
    REQUIRE(q.sources.size() == 2);
    CHECK(q.sources[0] == -1);
    CHECK(q.leaf_names[0] == "blk.0.attn_q.weight");
    CHECK(q.sources[1] == graph.find("attn_norm-0", -1));
    CHECK(q.leaf_names[1].empty());

    const Node & embd = graph.nodes[static_cast<size_t>(graph.find("embd", -1))];
    CHECK(embd.sources == std::vector<int>{-1, -1});
    CHECK(embd.leaf_names == std::vector<std::string>{"token_embd.weight", "inp_tokens"});
}

TEST_CASE("parameters of an operation are kept as ggml has them") {
    const ggml_context_ptr ctx(ggml_init({16 * ggml_tensor_overhead() + ggml_graph_overhead(), nullptr, true}));
    ggml_tensor * a = ggml_new_tensor_1d(ctx.get(), GGML_TYPE_F32, 4);
    ggml_cgraph * gf = ggml_new_graph(ctx.get());
    ggml_build_forward_expand(gf,
                              ggml_tanh(ctx.get(), ggml_scale(ctx.get(), ggml_rms_norm(ctx.get(), a, 1e-5f), 3.0f)));
    const Graph graph = record(gf);
    REQUIRE(graph.nodes.size() == 3);
    const auto number = [&graph](size_t node) {
        float x;
        std::memcpy(&x, graph.nodes[node].params.data(), sizeof(x));
        return x;
    };
    CHECK(number(0) == 1e-5f);
    CHECK(number(1) == 3.0f);
    CHECK(graph.nodes[2].params[0] == GGML_UNARY_OP_TANH);
}

TEST_CASE("a node that names itself as operand has no leaf of its own name") {
    // ggml_cast does that: src[1] is the result.
    const ggml_context_ptr ctx(ggml_init({16 * ggml_tensor_overhead() + ggml_graph_overhead(), nullptr, true}));
    ggml_tensor * a = ggml_new_tensor_1d(ctx.get(), GGML_TYPE_F32, 4);
    ggml_tensor * cast = ggml_set_name(ggml_cast(ctx.get(), a, GGML_TYPE_F16), "blk.0.cast");
    REQUIRE(cast->src[1] == cast);
    ggml_cgraph * gf = ggml_new_graph(ctx.get());
    ggml_build_forward_expand(gf, cast);
    const Graph graph = record(gf);
    for (const std::string & leaf : graph.nodes.back().leaf_names) CHECK(leaf != "blk.0.cast");
}

TEST_CASE("views of memory that outlives the graph are told from views of nodes and inputs") {
    const TinyModel model;
    const Graph graph = record(model.build({}).gf);
    const auto node = [&](const char * name) { return graph.nodes[static_cast<size_t>(graph.find(name, -1))]; };
    CHECK(node("k_store-0").op == GGML_OP_SET_ROWS);
    for (const char * name : {"k_store-0", "k-0", "v-0", "k-1", "v-1"}) {
        INFO(name);
        CHECK(node(name).view);
        CHECK(node(name).memory);
    }
    CHECK(node("q-0").view);
    CHECK_FALSE(node("q-0").memory);
    CHECK_FALSE(node("v_cont-0").view);
    CHECK_FALSE(node("v_cont-0").memory);

    const ggml_context_ptr ctx(ggml_init({16 * ggml_tensor_overhead() + ggml_graph_overhead(), nullptr, true}));
    ggml_tensor * cache = ggml_new_tensor_2d(ctx.get(), GGML_TYPE_F32, 4, 8);
    ggml_tensor * input = ggml_new_tensor_2d(ctx.get(), GGML_TYPE_F32, 4, 8);
    ggml_set_input(input);
    ggml_cgraph * gf = ggml_new_graph(ctx.get());
    ggml_build_forward_expand(gf, ggml_set_name(ggml_cpy(ctx.get(), input, cache), "store"));
    ggml_build_forward_expand(gf, ggml_set_name(ggml_view_1d(ctx.get(), input, 4, 0), "of_input"));
    const Graph small = record(gf);
    CHECK(small.nodes[static_cast<size_t>(small.find("store", -1))].memory);
    CHECK(small.nodes[static_cast<size_t>(small.find("of_input", -1))].view);
    CHECK_FALSE(small.nodes[static_cast<size_t>(small.find("of_input", -1))].memory);
}

TEST_CASE("a recorder that finished is empty and can be used again") {
    const TinyModel model;
    const TinyGraph built = model.build({});
    GraphRecorder recorder;
    for (int round = 0; round < 2; round++) {
        for (int i = 0; i < ggml_graph_n_nodes(built.gf); i++) recorder.add(ggml_graph_node(built.gf, i));
        const Graph graph = recorder.finish();
        CHECK(graph.nodes.size() == static_cast<size_t>(ggml_graph_n_nodes(built.gf)));
        CHECK(graph.find("Qcur-0", -1) == graph.find("Qcur-0", 1));
        CHECK(graph.nodes[0].key.occurrence == 0);
    }
    CHECK(recorder.finish().nodes.empty());
}

TEST_CASE("a graph stays valid when the one it was read from is freed") {
    Graph graph;
    {
        const TinyModel model;
        graph = record(model.build({}).gf);
    }
    CHECK(graph.nodes[static_cast<size_t>(graph.find("l_out-1", -1))].key.name == "l_out-1");
}

TEST_CASE("signature: sizes do not count, operations, names and their number do") {
    const TinyModel model;
    const uint64_t signature = record(model.build({}).gf).signature();
    CHECK(record(model.build({9, 1, 24}).gf).signature() == signature);
    CHECK(record(TinyModel().build({}).gf).signature() == signature);
    for (const Twist twist : {Twist::other_op, Twist::other_name, Twist::fewer_nodes, Twist::more_nodes})
        CHECK(record(model.build({}, false, twist).gf).signature() != signature);
    CHECK(Graph{}.signature() != signature);
}

TEST_CASE("signature: a name's end counts") {
    const auto graph = [](std::vector<std::string> names) {
        Graph g;
        for (const std::string & name : names) {
            Node node;
            node.key.name = name;
            g.nodes.push_back(node);
        }
        return g;
    };
    CHECK(graph({"ab", "c"}).signature() != graph({"a", "bc"}).signature());
    CHECK(graph({"a", "b"}).signature() != graph({"b", "a"}).signature());
    CHECK(graph({"a"}).signature() != graph({"a", "a"}).signature());
}
