// Where a model's hidden states are in its graph, told by structure where names vary.
#pragma once

#include <vector>

#include "core/graph.h"

namespace loom {

// Ordinals of the nodes that hold the hidden states; -1 where the graph has none that is understood.
struct HiddenStates {
    int embedding = -1;      // the input of block 0 (Hugging Face's hidden_states[0])
    std::vector<int> layers; // the output of block i, before any final norm: n_layer entries
    int final = -1;          // the last block's output after the final norm (Hugging Face's hidden_states[-1])
};

HiddenStates find_hidden_states(const Graph & graph, int n_layer);

} // namespace loom
