// Every way for a decode not to be the one that was planned: no array is returned, the status says which way,
// and the model's own computation goes on as if nobody had looked.
#include <doctest/doctest.h>

#include <memory>
#include <new>
#include <stdexcept>

#include "capture.h"

using namespace loom;
using namespace loom::test;

// AddressSanitizer ends the process over an allocation of impossible size; here it is to throw, as it does elsewhere.
void * operator new[](size_t n) {
    if (n > size_t{1} << 40) throw std::bad_alloc();
    return ::operator new(n);
}
void operator delete[](void * p) noexcept {
    ::operator delete(p);
}
void operator delete[](void * p, size_t) noexcept {
    ::operator delete(p);
}

namespace {

struct Failing {
    TinyModel model;
    Graph listed = list(model, {});
    std::vector<Tap> taps = taps_of_everything(model, listed);
    std::shared_ptr<const Plan> plan = std::make_shared<Plan>(listed, taps);
    Tapper tapper;

    // Computes `graph` with the plan armed, checks that all of it was computed as without a tapper.
    Outcome run(const TinyGraph & graph, const Pass & pass) {
        Engine plain(nullptr);
        const TinyGraph twin = model.build(graph.batch, true, twist);
        plain.run(model, twin, 5);

        Engine engine(&tapper);
        engine.prepare(graph.gf);
        mark_untouched(graph);
        model.clear_cache();
        tapper.tap(plan, pass);
        engine.compute(graph, 5);
        CHECK(untouched(graph) == 0);
        CHECK(last_node_bytes(graph) == last_node_bytes(twin));
        return tapper.finish();
    }
    Outcome run(const Pass & pass) { return run(model.build({}, true, twist), pass); }

    Twist twist = Twist::none;
};

void check_failed(const Outcome & outcome, Status status, const std::string & detail) {
    CHECK(outcome.status == status);
    CHECK(outcome.detail == detail);
    CHECK(outcome.arrays.empty());
}

// On the host, and too small for anything.
ggml_backend_buffer_t some_buffer() {
    alignas(64) static char memory[64];
    static const ggml_backend_buffer_ptr buffer(ggml_backend_cpu_buffer_from_ptr(memory, sizeof(memory)));
    return buffer.get();
}

// A tensor that no scheduler has seen, for what real graphs of a test's size cannot show.
ggml_tensor fake(const Graph & graph, size_t ordinal) {
    ggml_tensor t{};
    const Node & node = graph.nodes[ordinal];
    t.op = node.op;
    t.type = node.type;
    t.flags = GGML_TENSOR_FLAG_COMPUTE;
    t.buffer = some_buffer();
    for (size_t d = 0; d < GGML_MAX_DIMS; d++) t.ne[d] = node.ne[d];
    ggml_set_name(&t, node.key.name.c_str());
    return t;
}

Graph one_node(ggml_type type, std::array<int64_t, GGML_MAX_DIMS> ne) {
    Graph graph;
    Node node;
    node.key.name = "only";
    node.op = GGML_OP_ADD;
    node.type = type;
    node.ne = ne;
    graph.nodes.push_back(node);
    return graph;
}

} // namespace

TEST_CASE("another operation") {
    for (const bool stop_early : {false, true}) {
        Failing f;
        f.twist = Twist::other_op;
        Pass pass = all_outputs({});
        pass.stop_early = stop_early;
        check_failed(f.run(pass), Status::graph_changed, "node ffn_act-0 stands in an unexpected place");
    }
}

TEST_CASE("another name") {
    Failing f;
    f.twist = Twist::other_name;
    check_failed(f.run(all_outputs({})), Status::graph_changed, "node l_out-0 is now called layer_out-0");
}

TEST_CASE("fewer nodes") {
    Failing f;
    f.twist = Twist::fewer_nodes;
    const std::string n = std::to_string(f.listed.nodes.size()), n_found = std::to_string(f.listed.nodes.size() - 1);
    check_failed(f.run(all_outputs({})), Status::graph_changed, "the graph has " + n_found + " nodes, not " + n);
}

TEST_CASE("more nodes") {
    Failing f;
    f.twist = Twist::more_nodes;
    check_failed(f.run(all_outputs({})), Status::several_passes, "the batch was computed in more than one graph");
}

TEST_CASE("a batch computed in two graphs") {
    Failing f;
    Engine engine(&f.tapper);
    const TinyGraph graph = f.model.build({});
    engine.prepare(graph.gf);
    f.tapper.tap(f.plan, all_outputs({}));
    engine.compute(graph, 0);
    engine.compute(graph, 0);
    check_failed(f.tapper.finish(), Status::several_passes, "the batch was computed in more than one graph");
}

TEST_CASE("nothing computed at all") {
    Failing f;
    f.tapper.tap(f.plan, all_outputs({}));
    check_failed(f.tapper.finish(), Status::graph_changed,
                 "the graph has 0 nodes, not " + std::to_string(f.listed.nodes.size()));
}

TEST_CASE("another number of tokens than the batch has") {
    Failing f;
    Pass pass = all_outputs({});
    pass.n_tokens = 4;
    check_failed(f.run(pass), Status::wrong_rows, "node embd has 5 rows where the batch has 4");
}

TEST_CASE("another number of outputs than the batch has") {
    Failing f;
    Pass pass = all_outputs({});
    pass.n_outputs = 3;
    const Outcome outcome = f.run(pass);
    CHECK(outcome.status == Status::wrong_rows);
    CHECK(outcome.arrays.empty());
}

TEST_CASE("a wanted token that is no output") {
    Failing f;
    f.taps = {{f.listed.find("l_out-1", -1), RowKind::output, 1, 2}};
    f.plan = std::make_shared<Plan>(f.listed, f.taps);
    check_failed(f.run({5, 2, {0, 1}, {}, false}), Status::wrong_rows,
                 "node l_out-1 has rows only for outputs, and a wanted token is not one");
}

TEST_CASE("rows outside of the batch") {
    for (const int32_t row : {-1, 5, 1 << 30}) {
        Failing f;
        f.taps = {{f.listed.find("l_out-0", -1), RowKind::token, 1, 2}};
        f.plan = std::make_shared<Plan>(f.listed, f.taps);
        const Outcome outcome = f.run({5, 2, {0, row}, {0, 1}, false});
        CHECK(outcome.status == Status::wrong_rows);
        CHECK(outcome.arrays.empty());
    }
}

TEST_CASE("more dimensions than the node was listed with") {
    Failing f;
    f.taps = {{f.listed.find("kq_soft_max-0", -1), RowKind::token, 1, 2}};
    f.plan = std::make_shared<Plan>(f.listed, f.taps);
    check_failed(f.run(all_outputs({})), Status::wrong_rows,
                 "node kq_soft_max-0 has more dimensions than it was listed with");
}

TEST_CASE("after a failure the tapper works again") {
    Failing f;
    Pass wrong = all_outputs({});
    wrong.n_tokens = 1;
    CHECK(f.run(wrong).status == Status::wrong_rows);
    Engine engine(&f.tapper);
    f.tapper.tap(f.plan, all_outputs({}));
    const TinyGraph graph = f.model.build({});
    engine.run(f.model, graph, 6);
    check_outcome(f.tapper.finish(), Reference(f.model, {}, 6), f.taps, all_outputs({}));
}

TEST_CASE("no memory for the rows") {
    // 2^60 elements of 8 bytes: more than an array may have.
    const Graph graph = one_node(GGML_TYPE_I64, {1 << 30, 1 << 30, 1, 1});
    Tapper tapper;
    tapper.tap(std::make_shared<Plan>(graph, std::vector<Tap>{{0, RowKind::whole, -1, 2}}), {1, 1, {0}, {0}, false});
    ggml_tensor t = fake(graph, 0);
    CHECK(Tapper::on_eval(&t, true, &tapper));
    CHECK(Tapper::on_eval(&t, false, &tapper)); // the decode goes on
    const Outcome outcome = tapper.finish();
    CHECK(outcome.status == Status::out_of_memory);
    CHECK(outcome.arrays.empty());
}

TEST_CASE("a type that became unreadable") {
    const Graph graph = one_node(GGML_TYPE_F32, {32, 2, 1, 1});
    Tapper tapper;
    tapper.tap(std::make_shared<Plan>(graph, std::vector<Tap>{{0, RowKind::token, 1, 2}}), {2, 2, {0}, {0}, false});
    ggml_tensor t = fake(graph, 0);
    t.type = GGML_TYPE_Q8_1;
    CHECK(Tapper::on_eval(&t, true, &tapper));
    CHECK(Tapper::on_eval(&t, false, &tapper));
    const Outcome outcome = tapper.finish();
    CHECK(outcome.status == Status::graph_changed);
    CHECK(outcome.arrays.empty());
}

TEST_CASE("a quantized tensor whose blocks do not lie along dimension 0") {
    const ggml_context_ptr ctx(ggml_init({1 << 16, nullptr, false}));
    ggml_tensor * source = ggml_new_tensor_2d(ctx.get(), GGML_TYPE_Q8_0, 64, 32);
    source->buffer = some_buffer();
    ggml_tensor * t = ggml_transpose(ctx.get(), source);
    ggml_set_name(t, "turned");
    t->flags |= GGML_TENSOR_FLAG_COMPUTE;
    GraphRecorder recorder;
    recorder.add(t);
    Tapper tapper;
    tapper.tap(std::make_shared<Plan>(recorder.finish(), std::vector<Tap>{{0, RowKind::whole, -1, 2}}),
               {1, 1, {0}, {0}, false});
    CHECK(Tapper::on_eval(t, true, &tapper));
    CHECK(Tapper::on_eval(t, false, &tapper));
    const Outcome outcome = tapper.finish();
    CHECK(outcome.status == Status::graph_changed);
    CHECK(outcome.arrays.empty());
}

TEST_CASE("a node that stands in the graph, but is not computed") {
    // ggml_build_forward_select keeps the branches that were not selected as nodes.
    const ggml_context_ptr ctx(ggml_init({16 * ggml_tensor_overhead() + ggml_graph_overhead(), nullptr, true}));
    ggml_tensor * a = ggml_new_tensor_2d(ctx.get(), GGML_TYPE_F32, 4, 2);
    ggml_set_input(a);
    ggml_tensor * branches[] = {ggml_set_name(ggml_sqr(ctx.get(), a), "selected"),
                                ggml_set_name(ggml_neg(ctx.get(), a), "other")};
    ggml_cgraph * gf = ggml_new_graph(ctx.get());
    ggml_build_forward_select(gf, branches, 2, 0);
    const Graph graph = record(gf);
    const std::vector<Tap> taps{{1, RowKind::whole, -1, 2}};
    CHECK(graph.nodes[0].computed);
    CHECK_FALSE(graph.nodes[1].computed);
    CHECK_THROWS_AS(Plan(graph, taps), std::invalid_argument);

    // Listed while the branch was taken, decoded while it is not.
    Graph other = graph;
    other.nodes[1].computed = true;
    Tapper tapper;
    tapper.tap(std::make_shared<Plan>(other, taps), {2, 2, {0}, {0}, false});
    Engine engine(&tapper);
    engine.prepare(gf);
    engine.compute(gf);
    const Outcome outcome = tapper.finish();
    CHECK(outcome.status == Status::graph_changed);
    CHECK(outcome.arrays.empty());
}
