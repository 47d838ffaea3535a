#include "capture.h"

#include <doctest/doctest.h>

#include <algorithm>

#include "oracle.h"

namespace loom::test {

static std::vector<char> bytes_of(const ggml_tensor * t) {
    std::vector<char> bytes(ggml_nbytes(t));
    if (!bytes.empty()) ggml_backend_tensor_get(t, bytes.data(), 0, bytes.size());
    return bytes;
}

Reference::Reference(const TinyModel & model, Batch batch, int seed) {
    Engine engine(nullptr);
    const TinyGraph graph = model.build(batch, true);
    engine.run(model, graph, seed);
    for (int i = 0; i < ggml_graph_n_nodes(graph.gf); i++) {
        const ggml_tensor * t = ggml_graph_node(graph.gf, i);
        nodes_.push_back({*t, bytes_of(t)});
    }
}

static const std::vector<int32_t> & rows_of(const Tap & tap, const Pass & pass) {
    return tap.kind == RowKind::output ? pass.output_rows : pass.token_rows;
}

std::vector<char> Reference::rows(const Tap & tap, const Pass & pass) const {
    const Held & held = nodes_[static_cast<size_t>(tap.ordinal)];
    return expected_rows(&held.t, held.bytes.data(), tap.axis, rows_of(tap, pass), Value::f32);
}

std::vector<int64_t> Reference::shape(const Tap & tap, const Pass & pass) const {
    std::vector<int64_t> shape;
    if (tap.axis >= 0) shape.push_back(static_cast<int64_t>(rows_of(tap, pass).size()));
    for (int d = tap.n_dims - 1; d >= 0; d--)
        if (d != tap.axis) shape.push_back(nodes_[static_cast<size_t>(tap.ordinal)].t.ne[d]);
    return shape;
}

std::vector<char> Reference::logits() const {
    return nodes_.back().bytes;
}

Pass all_outputs(Batch batch) {
    Pass pass{batch.n_tokens, batch.n_outputs, {}, {}, false};
    for (int i = 0; i < batch.n_outputs; i++) {
        pass.token_rows.push_back(batch.n_tokens - batch.n_outputs + i);
        pass.output_rows.push_back(i);
    }
    return pass;
}

void check_outcome(const Outcome & outcome, const Reference & reference, const std::vector<Tap> & taps,
                   const Pass & pass) {
    INFO(outcome.detail);
    REQUIRE(outcome.status == Status::ok);
    CHECK(outcome.detail.empty());
    REQUIRE(outcome.arrays.size() == taps.size());
    for (size_t i = 0; i < taps.size(); i++) {
        INFO("node " << taps[i].ordinal << ", axis " << taps[i].axis);
        const Array & array = outcome.arrays[i];
        const std::vector<char> expected = reference.rows(taps[i], pass);
        CHECK(array.value == Value::f32);
        REQUIRE(array.shape == reference.shape(taps[i], pass));
        // The array has no size of its own: one byte short is the sanitizer's to find.
        CHECK(std::equal(expected.begin(), expected.end(), array.data.get()));
    }
}

std::vector<char> last_node_bytes(const TinyGraph & graph) {
    return bytes_of(ggml_graph_node(graph.gf, -1));
}

std::vector<char> logits(const TinyModel & model, Batch batch, int seed, Tapper * tapper) {
    Engine engine(tapper);
    const TinyGraph graph = model.build(batch);
    engine.run(model, graph, seed);
    return last_node_bytes(graph);
}

// No float computed here has these bits.
static const uint8_t mark = 0xa5;

void mark_untouched(const TinyGraph & graph) {
    for (int i = 0; i < ggml_graph_n_nodes(graph.gf); i++) {
        ggml_tensor * t = ggml_graph_node(graph.gf, i);
        if (t->view_src == nullptr) ggml_backend_tensor_memset(t, mark, 0, ggml_nbytes(t));
    }
}

static int count(const TinyGraph & graph, int from_ordinal, bool wanted) {
    int n = 0;
    for (int i = from_ordinal; i < ggml_graph_n_nodes(graph.gf); i++) {
        const ggml_tensor * t = ggml_graph_node(graph.gf, i);
        if (t->view_src != nullptr) continue;
        const std::vector<char> bytes = bytes_of(t);
        const bool marked =
            std::all_of(bytes.begin(), bytes.end(), [](char byte) { return static_cast<uint8_t>(byte) == mark; });
        n += marked != wanted ? 1 : 0;
    }
    return n;
}

int untouched(const TinyGraph & graph) {
    return count(graph, 0, false);
}

int touched(const TinyGraph & graph, int from_ordinal) {
    return count(graph, from_ordinal, true);
}

} // namespace loom::test
