// Nodes left in memory of ours until the decode is over: the same values as by copying, no cut in the graph, and a
// graph that is used again afterwards computes what it always computed.
#include <doctest/doctest.h>

#include <algorithm>
#include <cstring>
#include <memory>

#include "capture.h"

using namespace loom;
using namespace loom::test;

namespace {

// Tells how often the graph was cut.
struct Counted {
    Tapper tapper;
    int n_cuts = 0;

    static bool on_eval(ggml_tensor * t, bool ask, void * user_data) {
        Counted & self = *static_cast<Counted *>(user_data);
        if (!ask) self.n_cuts++;
        return Tapper::on_eval(t, ask, &self.tapper);
    }
};

struct Setup {
    TinyModel model;
    Batch batch{4, 4, 16};
    Graph listed = list(model, batch);
    std::vector<Tap> all = taps_of_everything(model, listed);

    std::shared_ptr<const Plan> plan(std::vector<Tap> taps) const {
        return std::make_shared<Plan>(listed, std::move(taps));
    }
};

} // namespace

TEST_CASE("layers are read without a cut, in each of many decodes over one graph") {
    Setup s;
    const std::vector<Tap> taps{{s.listed.find("embd", -1), RowKind::token, 1, 2},
                                {s.listed.find("l_out-0", -1), RowKind::token, 1, 2},
                                {s.listed.find("l_out-1", -1), RowKind::output, 1, 2}};
    Counted counted;
    Engine engine(Counted::on_eval, &counted);
    const TinyGraph graph = s.model.build(s.batch);
    engine.prepare(graph.gf);
    for (int round = 0; round < 5; round++) {
        s.model.clear_cache();
        counted.tapper.tap(s.plan(taps), all_outputs(s.batch));
        engine.compute(graph, round);
        check_outcome(counted.tapper.finish(), Reference(s.model, s.batch, round), taps, all_outputs(s.batch));
        CHECK(counted.n_cuts == 0);
    }
    CHECK(counted.tapper.arena_size() > 0);
}

TEST_CASE("nothing writes into our memory once a node is no longer wanted") {
    Setup s;
    Tapper tapper;
    Engine engine(&tapper);
    const TinyGraph graph = s.model.build(s.batch);
    engine.prepare(graph.gf);
    std::vector<const void *> own;
    for (int i = 0; i < ggml_graph_n_nodes(graph.gf); i++) own.push_back(ggml_graph_node(graph.gf, i)->data);
    s.model.clear_cache();
    tapper.tap(s.plan(s.all), all_outputs(s.batch));
    engine.compute(graph, 1);
    REQUIRE(tapper.finish().status == Status::ok);

    struct Slot {
        int ordinal;
        char * data;
        size_t size;
        bool poisoned() const {
            return std::all_of(data, data + size, [](char byte) { return byte == '\xab'; });
        }
    };
    std::vector<Slot> slots;
    for (int i = 0; i < ggml_graph_n_nodes(graph.gf); i++) {
        const ggml_tensor * t = ggml_graph_node(graph.gf, i);
        if (t->view_src == nullptr && t->data != own[static_cast<size_t>(i)])
            slots.push_back({i, static_cast<char *>(t->data), ggml_nbytes(t)});
    }
    REQUIRE(slots.size() > 20);
    const auto poison = [&] {
        for (const Slot & slot : slots) std::memset(slot.data, '\xab', slot.size);
    };

    poison();
    s.model.clear_cache();
    tapper.off();
    engine.compute(graph, 2);
    for (const Slot & slot : slots) {
        CHECK(slot.poisoned());
        CHECK(ggml_graph_node(graph.gf, slot.ordinal)->data == own[static_cast<size_t>(slot.ordinal)]);
    }
    CHECK(last_node_bytes(graph) == Reference(s.model, s.batch, 2).logits());

    // One wanted again: it alone is written.
    const int layer = s.listed.find("l_out-0", -1);
    poison();
    s.model.clear_cache();
    tapper.tap(s.plan({{layer, RowKind::token, 1, 2}}), all_outputs(s.batch));
    engine.compute(graph, 3);
    REQUIRE(tapper.finish().status == Status::ok);
    for (const Slot & slot : slots) CHECK(slot.poisoned() == (slot.ordinal != layer));
}

TEST_CASE("never in place means never") {
    Setup s;
    Tapper tapper(InPlace::never);
    Engine engine(&tapper);
    tapper.tap(s.plan(s.all), all_outputs(s.batch));
    const TinyGraph graph = s.model.build(s.batch);
    engine.run(s.model, graph, 0);
    check_outcome(tapper.finish(), Reference(s.model, s.batch, 0), s.all, all_outputs(s.batch));
    CHECK(tapper.arena_size() == 0);
}

// Every node in turn is wanted in one decode and in the next, over the same graph, not.
static void check_way_back(int n_backends, bool stop_early, void (*between)(Setup &, Tapper &, Engine &, TinyGraph &)) {
    Setup s;
    const Reference first(s.model, s.batch, 1), second(s.model, s.batch, 2);
    for (const Tap & tap : s.all) {
        INFO("node " << tap.ordinal << " " << s.listed.nodes[static_cast<size_t>(tap.ordinal)].key.name);
        Tapper tapper;
        Engine engine(&tapper, n_backends);
        TinyGraph graph = s.model.build(s.batch);
        engine.prepare(graph.gf);
        Pass pass = all_outputs(s.batch);
        pass.stop_early = stop_early;
        s.model.clear_cache();
        tapper.tap(s.plan({tap}), pass);
        engine.compute(graph, 1);
        check_outcome(tapper.finish(), first, {tap}, pass);
        if (between != nullptr) between(s, tapper, engine, graph);
        for (int round = 0; round < 2; round++) {
            s.model.clear_cache();
            engine.compute(graph, 2);
            CHECK(last_node_bytes(graph) == second.logits());
        }
        s.model.clear_cache();
        tapper.tap(s.plan(s.all), all_outputs(s.batch));
        engine.compute(graph, 2);
        check_outcome(tapper.finish(), second, s.all, all_outputs(s.batch));
    }
}

TEST_CASE("wanted, then off") {
    for (const int n_backends : {1, 2}) check_way_back(n_backends, false, nullptr);
}

TEST_CASE("wanted and stopped there, then off") {
    for (const int n_backends : {1, 2}) check_way_back(n_backends, true, nullptr);
}

TEST_CASE("wanted, then skipped, then off") {
    for (const int n_backends : {1, 2})
        check_way_back(n_backends, false, [](Setup &, Tapper & tapper, Engine & engine, TinyGraph & graph) {
            tapper.skip();
            engine.compute(graph, 3);
            tapper.off();
        });
}

TEST_CASE("wanted, then listed, then off") {
    for (const int n_backends : {1, 2})
        check_way_back(n_backends, false, [](Setup & s, Tapper & tapper, Engine & engine, TinyGraph & graph) {
            tapper.list();
            engine.compute(graph, 3);
            CHECK(tapper.listed().signature() == s.listed.signature());
        });
}

TEST_CASE("wanted for all tokens, then for few, which copies") {
    for (const int n_backends : {1, 2})
        check_way_back(n_backends, false, [](Setup & s, Tapper & tapper, Engine & engine, TinyGraph & graph) {
            s.model.clear_cache();
            const std::vector<Tap> taps{{s.listed.find("l_out-0", -1), RowKind::token, 1, 2}};
            const Pass one_row{4, 4, {3}, {3}, false};
            tapper.tap(s.plan(taps), one_row);
            engine.compute(graph, 3);
            check_outcome(tapper.finish(), Reference(s.model, s.batch, 3), taps, one_row);
        });
}

TEST_CASE("wanted, then another stopped before it, then off") {
    for (const int n_backends : {1, 2})
        check_way_back(n_backends, false, [](Setup & s, Tapper & tapper, Engine & engine, TinyGraph & graph) {
            s.model.clear_cache();
            const std::vector<Tap> taps{{s.listed.find("Qcur-0", 0), RowKind::token, 1, 2}};
            Pass pass = all_outputs(s.batch);
            pass.stop_early = true;
            tapper.tap(s.plan(taps), pass);
            engine.compute(graph, 3);
            check_outcome(tapper.finish(), Reference(s.model, s.batch, 3), taps, pass);
        });
}

TEST_CASE("wanted, then failed and never asked how it went, then off") {
    for (const int n_backends : {1, 2})
        check_way_back(n_backends, false, [](Setup & s, Tapper & tapper, Engine & engine, TinyGraph & graph) {
            s.model.clear_cache();
            Pass pass = all_outputs(s.batch);
            pass.n_tokens++;
            tapper.tap(s.plan(s.all), pass);
            engine.compute(graph, 3);
            CHECK(last_node_bytes(graph) == Reference(s.model, s.batch, 3).logits());
            tapper.off();
        });
}

TEST_CASE("a graph built anew at the addresses of the old one") {
    Setup s;
    Tapper tapper;
    Engine engine(&tapper);
    for (int round = 0; round < 20; round++) {
        TinyGraph graph = s.model.build(s.batch);
        engine.prepare(graph.gf);
        for (int decode = 0; decode < 3; decode++) {
            s.model.clear_cache();
            const bool wanted = (round + decode) % 3 != 0;
            if (wanted) tapper.tap(s.plan(s.all), all_outputs(s.batch));
            engine.compute(graph, round);
            const Reference reference(s.model, s.batch, round);
            CHECK(last_node_bytes(graph) == reference.logits());
            if (wanted) check_outcome(tapper.finish(), reference, s.all, all_outputs(s.batch));
            tapper.off();
        }
    }
}

TEST_CASE("memory does not grow with the number of decodes, and goes back after a long batch") {
    Setup s;
    Tapper tapper;
    Engine engine(&tapper);
    const auto decode = [&](Batch batch) {
        Pass pass = all_outputs(batch);
        tapper.tap(s.plan(s.all), pass);
        const TinyGraph graph = s.model.build(batch);
        engine.run(s.model, graph, 0);
        CHECK(tapper.finish().status == Status::ok);
        return tapper.arena_size();
    };
    const size_t size = decode(s.batch);
    for (int round = 0; round < 50; round++) CHECK(decode(s.batch) == size);
}

TEST_CASE("what a later node overwrites is read before it does") {
    const ggml_context_ptr ctx(ggml_init({32 * ggml_tensor_overhead() + ggml_graph_overhead(), nullptr, true}));
    ggml_tensor * input = ggml_new_tensor_1d(ctx.get(), GGML_TYPE_F32, 4);
    ggml_set_input(input);
    ggml_tensor * one = ggml_set_name(ggml_sqr(ctx.get(), input), "one");
    ggml_tensor * half = ggml_view_1d(ctx.get(), one, 2, 0); // seen through a view, too
    ggml_set_name(half, "half");
    ggml_tensor * sum = ggml_set_name(ggml_sum(ctx.get(), half), "sum");
    ggml_tensor * two = ggml_set_name(ggml_scale_inplace(ctx.get(), one, 2.0f), "two");
    ggml_tensor * out = ggml_set_name(ggml_add(ctx.get(), two, sum), "out");
    ggml_set_output(out);
    ggml_cgraph * gf = ggml_new_graph(ctx.get());
    ggml_build_forward_expand(gf, sum);
    ggml_build_forward_expand(gf, out);

    const Graph graph = record(gf);
    std::vector<Tap> taps;
    for (size_t i = 0; i < graph.nodes.size(); i++) taps.push_back({static_cast<int>(i), RowKind::whole, -1, 1});
    Tapper tapper;
    Engine engine(&tapper);
    engine.prepare(gf);
    const float values[] = {1, 2, 3, 4};
    for (int round = 0; round < 3; round++) {
        ggml_backend_tensor_set(input, values, 0, sizeof(values));
        tapper.tap(std::make_shared<Plan>(graph, taps), {1, 1, {0}, {0}, false});
        engine.compute(gf);
        const Outcome outcome = tapper.finish();
        REQUIRE(outcome.status == Status::ok);
        const auto floats = [&](const char * name, size_t n) {
            const auto * from =
                reinterpret_cast<const float *>(outcome.arrays[static_cast<size_t>(graph.find(name, -1))].data.get());
            return std::vector<float>(from, from + n);
        };
        CHECK(floats("one", 4) == std::vector<float>{1, 4, 9, 16});
        CHECK(floats("half", 2) == std::vector<float>{1, 4});
        CHECK(floats("two", 4) == std::vector<float>{2, 8, 18, 32});
        CHECK(floats("out", 4) == std::vector<float>{7, 13, 23, 37});
    }
}
