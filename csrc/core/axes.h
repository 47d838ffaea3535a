// Which dimension of a node counts tokens, outputs or cache cells.
//
// It differs from node to node: layers are [n_embd, token], Q after its reshape [d, head, token], attention weights
// [kv, token, head]. Names cannot tell, sizes of one graph cannot either (n_head may equal n_tokens). So the same
// graph is listed for batches of different sizes: a dimension that always has the number of tokens is the token axis.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "core/graph.h"

namespace loom {

enum class Axis : uint8_t {
    fixed,  // the same in every graph
    token,  // one entry per token of the batch
    output, // one entry per token whose logits are wanted
    kv,     // varies with the cells of the cache in use, and with nothing else; without a cache, attention's keys
    other,  // varies, but is none of the above
};

// A graph with the batch that it was built for.
struct Listing {
    const Graph * graph = nullptr;
    int64_t n_tokens = 0;
    int64_t n_outputs = 0;
    int fill = 0; // listings made with the same amount of cache in use have the same number here
};

using Axes = std::array<Axis, GGML_MAX_DIMS>;

// The axes of every node of listings[0], in its order. The listings must differ in n_tokens, in n_outputs and, where
// the cache can have more than one size, in that. Nodes that some listing lacks get `other` wherever their size is
// not 1.
std::vector<Axes> find_axes(const std::vector<Listing> & listings);

// The one dimension along which a node has rows: its token axis, or else its output axis; -1 where it has neither,
// or more than one dimension of that kind, or a further one that varies without being kv.
int row_axis(const Axes & axes);

} // namespace loom
