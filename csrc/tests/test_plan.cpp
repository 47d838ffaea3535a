#include <doctest/doctest.h>

#include <stdexcept>

#include "core/tapper.h"

using namespace loom;

// Node 0 is [n_embd, token] in F32, node 1 quantized, node 2 of a type that nobody can read.
static Graph small_graph() {
    Graph graph;
    const ggml_type types[] = {GGML_TYPE_F32, GGML_TYPE_Q8_0, GGML_TYPE_Q8_1};
    for (const ggml_type type : types) {
        Node node;
        node.key.name = std::string("node_") + ggml_type_name(type);
        node.op = GGML_OP_ADD;
        node.type = type;
        node.ne = {32, 5, 1, 1};
        graph.nodes.push_back(node);
    }
    return graph;
}

static void make(std::vector<Tap> taps) {
    const Plan plan(small_graph(), std::move(taps));
}

static std::string complaint(std::vector<Tap> taps) {
    try {
        make(std::move(taps));
    } catch (const std::invalid_argument & error) {
        return error.what();
    }
    return "";
}

TEST_CASE("plans that fit") {
    CHECK_NOTHROW(make({}));
    CHECK_NOTHROW(make({{0, RowKind::token, 1, 2}}));
    CHECK_NOTHROW(make({{0, RowKind::output, 0, 2}}));
    CHECK_NOTHROW(make({{0, RowKind::whole, -1, 1}, {1, RowKind::whole, -1, 4}}));
    CHECK_NOTHROW(make({{1, RowKind::token, 1, 2}}));
}

TEST_CASE("no such node") {
    CHECK(complaint({{-1, RowKind::whole, -1, 2}}) == "the graph has no node number -1");
    CHECK(complaint({{3, RowKind::whole, -1, 2}}) == "the graph has no node number 3");
    CHECK_THROWS_AS(Plan(Graph{}, {{0, RowKind::whole, -1, 2}}), std::invalid_argument);
}

TEST_CASE("taps out of order, or twice") {
    const std::string wanted = "taps must stand in graph order, each once";
    CHECK(complaint({{1, RowKind::whole, -1, 2}, {0, RowKind::whole, -1, 2}}) == wanted);
    CHECK(complaint({{0, RowKind::whole, -1, 2}, {0, RowKind::token, 1, 2}}) == wanted);
}

TEST_CASE("impossible axes") {
    const std::string wanted = "node node_f32: impossible axes";
    CHECK(complaint({{0, RowKind::whole, 1, 2}}) == wanted);  // whole, but with rows
    CHECK(complaint({{0, RowKind::token, -1, 2}}) == wanted); // rows, but along nothing
    CHECK(complaint({{0, RowKind::output, -1, 2}}) == wanted);
    CHECK(complaint({{0, RowKind::token, GGML_MAX_DIMS, 4}}) == wanted);
    CHECK(complaint({{0, RowKind::token, 1, 0}}) == wanted);
    CHECK(complaint({{0, RowKind::token, 1, GGML_MAX_DIMS + 1}}) == wanted);
}

TEST_CASE("types that cannot be read") {
    CHECK(complaint({{2, RowKind::whole, -1, 2}}) == "node node_q8_1 has type q8_1, which cannot be read");
    CHECK(complaint({{2, RowKind::token, 1, 2}}) == "node node_q8_1 has type q8_1, which cannot be read as rows");
    // A block holds 32 entries of dimension 0: it cannot be cut there.
    CHECK(complaint({{1, RowKind::token, 0, 2}}) == "node node_q8_0 has type q8_0, which cannot be read as rows");
}

TEST_CASE("nodes that are not computed") {
    Graph graph = small_graph();
    graph.nodes[0].computed = false;
    CHECK_THROWS_WITH_AS(Plan(graph, {{0, RowKind::whole, -1, 2}}),
                         "node node_f32 is in the graph, but not computed: another branch was taken",
                         std::invalid_argument);
}
