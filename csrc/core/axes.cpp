#include "core/axes.h"

#include <algorithm>

namespace loom {

static Axis classify(const std::vector<int64_t> & sizes, const std::vector<Listing> & listings) {
    bool fixed = true, token = true, output = true, kv = true;
    for (size_t i = 0; i < sizes.size(); i++) {
        fixed = fixed && sizes[i] == sizes[0];
        token = token && sizes[i] == listings[i].n_tokens;
        output = output && sizes[i] == listings[i].n_outputs;
        for (size_t j = 0; j < i; j++) kv = kv && (listings[i].fill != listings[j].fill || sizes[i] == sizes[j]);
    }
    if (fixed) return Axis::fixed;
    if (token) return Axis::token;
    if (output) return Axis::output;
    return kv ? Axis::kv : Axis::other;
}

std::vector<Axes> find_axes(const std::vector<Listing> & listings) {
    const Graph & first = *listings[0].graph;

    // Matched by key; nearly always the graphs are the same and the ordinal is too, which makes this linear.
    const auto match = [&](const Graph & graph, size_t ordinal) {
        const NodeKey & key = first.nodes[ordinal].key;
        if (ordinal < graph.nodes.size()) {
            const NodeKey & there = graph.nodes[ordinal].key;
            if (there.name == key.name && there.occurrence == key.occurrence) return static_cast<int>(ordinal);
        }
        return graph.find(key.name, key.occurrence);
    };

    std::vector<Axes> result(first.nodes.size());
    for (size_t i = 0; i < first.nodes.size(); i++) {
        std::vector<const Node *> same;
        for (const Listing & listing : listings) {
            const int ordinal = match(*listing.graph, i);
            if (ordinal >= 0) same.push_back(&listing.graph->nodes[static_cast<size_t>(ordinal)]);
        }
        for (size_t d = 0; d < GGML_MAX_DIMS; d++) {
            if (same.size() != listings.size()) {
                result[i][d] = first.nodes[i].ne[d] == 1 ? Axis::fixed : Axis::other;
                continue;
            }
            std::vector<int64_t> sizes;
            for (const Node * node : same) sizes.push_back(node->ne[d]);
            result[i][d] = classify(sizes, listings);
        }
        // Attention without a cache has as many cells as tokens. A softmax runs over dimension 0: those are the cells.
        Axes & axes = result[i];
        if (first.nodes[i].op == GGML_OP_SOFT_MAX && axes[0] == Axis::token && axes[1] == Axis::token)
            axes[0] = Axis::kv;
    }
    return result;
}

int row_axis(const Axes & axes) {
    const auto count = [&](Axis kind) { return std::count(axes.begin(), axes.end(), kind); };
    const auto index = [&](Axis kind) {
        return static_cast<int>(std::find(axes.begin(), axes.end(), kind) - axes.begin());
    };
    if (count(Axis::other) > 0) return -1;
    if (count(Axis::token) == 1 && count(Axis::output) == 0) return index(Axis::token);
    if (count(Axis::output) == 1 && count(Axis::token) == 0) return index(Axis::output);
    return -1;
}

} // namespace loom
