#include <doctest/doctest.h>

#include <memory>
#include <stdexcept>

#include "capture.h"

using namespace loom;
using namespace loom::test;

TEST_CASE("every node of every batch has the values of the tensor itself") {
    const TinyModel model;
    const Graph graph = list(model, {});
    const auto plan = std::make_shared<Plan>(graph, taps_of_everything(model, graph));
    Tapper tapper;
    Engine engine(&tapper);
    for (const Batch batch : {Batch{5, 2, 16}, Batch{1, 1, 8}, Batch{12, 12, 16}, Batch{3, 1, 32}}) {
        const Reference reference(model, batch, 3);
        const TinyGraph built = model.build(batch);
        tapper.tap(plan, all_outputs(batch));
        engine.run(model, built, 3);
        check_outcome(tapper.finish(), reference, taps_of_everything(model, graph), all_outputs(batch));
    }
}

TEST_CASE("rows are those asked for, in the order asked for") {
    const TinyModel model;
    const Graph graph = list(model, {});
    const std::vector<Tap> taps = taps_of_everything(model, graph);
    const auto plan = std::make_shared<Plan>(graph, taps);
    const Batch batch{6, 6, 16};
    const Reference reference(model, batch, 1);
    Tapper tapper;
    Engine engine(&tapper);
    for (const std::vector<int32_t> & rows :
         {std::vector<int32_t>{}, {5}, {0, 2, 4}, {4, 1, 0}, {3, 3, 3, 3, 3, 3, 3}}) {
        const Pass pass{6, 6, rows, rows, false};
        tapper.tap(plan, pass);
        const TinyGraph built = model.build(batch);
        engine.run(model, built, 1);
        check_outcome(tapper.finish(), reference, taps, pass);
    }
}

TEST_CASE("a batch without outputs gives empty rows of the right shape") {
    const TinyModel model;
    const Graph graph = list(model, {});
    const int l_out = graph.find("l_out-1", -1);
    const auto plan = std::make_shared<Plan>(graph, std::vector<Tap>{{l_out, RowKind::output, 1, 2}});
    Tapper tapper;
    Engine engine(&tapper);
    const Batch batch{4, 0, 16};
    tapper.tap(plan, {4, 0, {}, {}, false});
    const TinyGraph built = model.build(batch);
    engine.run(model, built, 1);
    const Outcome outcome = tapper.finish();
    CHECK(outcome.status == Status::ok);
    REQUIRE(outcome.arrays.size() == 1);
    CHECK(outcome.arrays[0].shape == std::vector<int64_t>{0, n_embd});
}

TEST_CASE("capturing every node, or listing, changes no bit of the outputs") {
    const TinyModel model;
    const Graph graph = list(model, {});
    const auto plan = std::make_shared<Plan>(graph, taps_of_everything(model, graph));
    const Batch batch{5, 2, 16};
    const std::vector<char> plain = logits(model, batch, 9, nullptr);
    Tapper tapper;
    CHECK(logits(model, batch, 9, &tapper) == plain); // off
    tapper.list();
    CHECK(logits(model, batch, 9, &tapper) == plain);
    tapper.tap(plan, all_outputs(batch));
    CHECK(logits(model, batch, 9, &tapper) == plain);
    CHECK(tapper.finish().status == Status::ok);
    CHECK(logits(model, batch, 9, &tapper) == plain); // off again
}

TEST_CASE("listing gives the graph in its order, sizes and all") {
    const TinyModel model;
    const Batch batch{7, 3, 24};
    const Graph listed = list(model, batch), recorded = record(model.build(batch).gf);
    REQUIRE(listed.nodes.size() == recorded.nodes.size());
    CHECK(listed.signature() == recorded.signature());
    for (size_t i = 0; i < listed.nodes.size(); i++) {
        CHECK(listed.nodes[i].key.name == recorded.nodes[i].key.name);
        CHECK(listed.nodes[i].key.occurrence == recorded.nodes[i].key.occurrence);
        CHECK(listed.nodes[i].ne == recorded.nodes[i].ne);
        CHECK(listed.nodes[i].memory == recorded.nodes[i].memory);
    }
    Tapper tapper;
    CHECK(tapper.listed().nodes.empty()); // never armed
    tapper.list();
    tapper.off();
    CHECK(tapper.listed().nodes.empty());
}

TEST_CASE("finish without tap is a mistake of the caller") {
    Tapper tapper;
    CHECK_THROWS_AS(tapper.finish(), std::logic_error);
    tapper.list();
    CHECK_THROWS_AS(tapper.finish(), std::logic_error);
    tapper.skip();
    CHECK_THROWS_AS(tapper.finish(), std::logic_error);
}

TEST_CASE("skip computes one node of each split and nothing more") {
    const TinyModel model;
    for (const int n_backends : {1, 2}) {
        Tapper tapper;
        Engine engine(&tapper, n_backends);
        const TinyGraph graph = model.build({}, true);
        engine.prepare(graph.gf);
        REQUIRE(engine.n_splits() == n_backends);
        mark_untouched(graph);
        model.clear_cache();
        tapper.skip();
        engine.compute(graph, 0);
        CHECK(touched(graph) == n_backends);
    }
}

TEST_CASE("stop_early computes nothing after the last tap, but the first node of later splits") {
    const TinyModel model;
    const Graph listed = list(model, {});
    const int last = listed.find("Kcur-0", -1);
    const std::vector<Tap> taps{{listed.find("embd", -1), RowKind::token, 1, 2}, {last, RowKind::token, 1, 2}};
    const auto plan = std::make_shared<Plan>(listed, taps);
    const Reference reference(model, {}, 4);
    for (const int n_backends : {1, 2}) {
        Tapper tapper;
        Engine engine(&tapper, n_backends);
        const TinyGraph graph = model.build({}, true);
        engine.prepare(graph.gf);
        REQUIRE(last < ggml_graph_n_nodes(graph.gf) / 2);
        mark_untouched(graph);
        model.clear_cache();
        Pass pass = all_outputs({});
        pass.stop_early = true;
        tapper.tap(plan, pass);
        engine.compute(graph, 4);
        check_outcome(tapper.finish(), reference, taps, pass);
        CHECK(touched(graph, last + 1) == n_backends - 1);

        // The very same graph, this time to its end.
        model.clear_cache();
        tapper.tap(plan, all_outputs({}));
        engine.compute(graph, 4);
        check_outcome(tapper.finish(), reference, taps, all_outputs({}));
        CHECK(untouched(graph) == 0);
    }
}

TEST_CASE("taps in several splits") {
    const TinyModel model;
    const Graph listed = list(model, {});
    const std::vector<Tap> taps = taps_of_everything(model, listed);
    const auto plan = std::make_shared<Plan>(listed, taps);
    Tapper tapper;
    Engine engine(&tapper, 2);
    tapper.tap(plan, all_outputs({}));
    const TinyGraph graph = model.build({});
    engine.run(model, graph, 2);
    REQUIRE(engine.n_splits() == 2);
    check_outcome(tapper.finish(), Reference(model, {}, 2), taps, all_outputs({}));
}

TEST_CASE("a plan switched between decodes of one reused graph") {
    const TinyModel model;
    const Graph listed = list(model, {});
    const std::vector<Tap> all = taps_of_everything(model, listed);
    Tapper tapper;
    Engine engine(&tapper);
    const TinyGraph graph = model.build({});
    engine.prepare(graph.gf);
    for (int round = 0; round < 40; round++) {
        std::vector<Tap> taps; // every third node, another third each time
        for (size_t i = static_cast<size_t>(round % 3); i < all.size(); i += 3) taps.push_back(all[i]);
        tapper.tap(std::make_shared<Plan>(listed, taps), all_outputs({}));
        model.clear_cache();
        engine.compute(graph, round);
        check_outcome(tapper.finish(), Reference(model, {}, round), taps, all_outputs({}));
    }
}

TEST_CASE("a plan without taps reads nothing and computes everything") {
    const TinyModel model;
    const Graph listed = list(model, {});
    Tapper tapper;
    Engine engine(&tapper);
    const TinyGraph graph = model.build({}, true);
    engine.prepare(graph.gf);
    mark_untouched(graph);
    model.clear_cache();
    Pass pass = all_outputs({});
    pass.stop_early = true; // nothing to stop after
    tapper.tap(std::make_shared<Plan>(listed, std::vector<Tap>{}), pass);
    engine.compute(graph, 0);
    const Outcome outcome = tapper.finish();
    CHECK(outcome.status == Status::ok);
    CHECK(outcome.arrays.empty());
    CHECK(untouched(graph) == 0);
}
