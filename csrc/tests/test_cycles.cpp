// Thousands of decodes in random order of modes, plans, batches and rows over graphs kept and rebuilt:
// whatever was armed before leaves no trace in what comes after.
#include <doctest/doctest.h>

#include <memory>
#include <random>

#include "capture.h"

using namespace loom;
using namespace loom::test;

TEST_CASE("thousands of cycles") {
    const TinyModel model;
    const Graph listed = list(model, {});
    const std::vector<Tap> all = taps_of_everything(model, listed);
    const std::vector<Batch> batches{{1, 1, 8}, {2, 1, 8}, {5, 4, 16}, {9, 9, 16}};

    // One reused graph for each tapper, as a llama_context keeps its last one.
    struct Place {
        Batch batch;
        std::unique_ptr<Tapper> tapper;
        std::unique_ptr<Engine> engine;
        TinyGraph graph;
        std::vector<Reference> references; // by seed
    };
    constexpr int n_seeds = 3;
    std::vector<Place> places;
    struct Kind {
        InPlace in_place;
        int n_backends;
    };
    for (const Kind kind : {Kind{InPlace::host, 1}, Kind{InPlace::host, 2}, Kind{InPlace::never, 2}}) {
        for (const Batch batch : batches) {
            Place place;
            place.batch = batch;
            place.tapper = std::make_unique<Tapper>(kind.in_place);
            place.engine = std::make_unique<Engine>(place.tapper.get(), kind.n_backends);
            for (int seed = 0; seed < n_seeds; seed++) place.references.emplace_back(model, batch, seed);
            places.push_back(std::move(place));
        }
    }

    std::mt19937 random(7);
    const auto below = [&random](size_t n) { return static_cast<size_t>(random() % n); };
    int n_read = 0;
    for (int cycle = 0; cycle < 4000; cycle++) {
        Place & place = places[below(places.size())];
        const Batch batch = place.batch;
        Tapper & tapper = *place.tapper;
        if (!place.graph.ctx || below(20) == 0) {
            place.graph = model.build(batch);
            place.engine->prepare(place.graph.gf);
        }
        const int seed = static_cast<int>(below(n_seeds));
        const Reference & reference = place.references[static_cast<size_t>(seed)];
        model.clear_cache();
        switch (below(8)) {
        case 0:
            tapper.list();
            place.engine->compute(place.graph, seed);
            CHECK(tapper.listed().signature() == listed.signature());
            break;
        case 1:
            tapper.skip();
            place.engine->compute(place.graph, seed);
            break;
        case 2:
            tapper.off();
            place.engine->compute(place.graph, seed);
            CHECK(last_node_bytes(place.graph) == reference.logits());
            break;
        case 3: { // armed, failed, and never asked how it went
            Pass pass = all_outputs(batch);
            pass.n_tokens++;
            tapper.tap(std::make_shared<Plan>(listed, all), pass);
            place.engine->compute(place.graph, seed);
            CHECK(last_node_bytes(place.graph) == reference.logits());
            break;
        }
        default: {
            const size_t density = 1 + below(12);
            std::vector<Tap> taps;
            for (const Tap & tap : all)
                if (below(density) == 0) taps.push_back(tap);
            Pass pass{batch.n_tokens, batch.n_outputs, {}, {}, below(2) == 0};
            const int first_output = batch.n_tokens - batch.n_outputs;
            for (int row = first_output; row < batch.n_tokens; row++) {
                if (below(2) == 0) continue;
                pass.token_rows.push_back(row);
                pass.output_rows.push_back(row - first_output);
            }
            tapper.tap(std::make_shared<Plan>(listed, taps), pass);
            place.engine->compute(place.graph, seed);
            if (!pass.stop_early) CHECK(last_node_bytes(place.graph) == reference.logits());
            check_outcome(tapper.finish(), reference, taps, pass);
            n_read += static_cast<int>(taps.size());
        }
        }
    }
    CHECK(n_read > 10000);
}
