#include "core/structure.h"

#include <algorithm>
#include <string>

namespace loom {

static bool is_norm(ggml_op op) {
    return op == GGML_OP_RMS_NORM || op == GGML_OP_NORM || op == GGML_OP_L2_NORM;
}

static bool starts_with(const std::string & text, const char * head) {
    return text.rfind(head, 0) == 0;
}

// Through operations that only look at the same numbers in another shape.
static int behind_views(const Graph & graph, int ordinal) {
    while (ordinal >= 0) {
        const Node & node = graph.nodes[static_cast<size_t>(ordinal)];
        const bool reshaped = node.op == GGML_OP_RESHAPE || node.op == GGML_OP_VIEW || node.op == GGML_OP_CONT;
        if (!reshaped) break;
        ordinal = node.sources[0];
    }
    return ordinal;
}

// The embedding's name varies (`embd`, `inp_scaled`, `inpL`, ...), but what block 0 does with it does not: the first
// node that uses a weight of block 0 is either the scale of its first norm (pre-norm), whose norm reads the
// embedding, or a projection (post-norm, or a norm without weights), which reads the embedding or that norm.
static int find_embedding(const Graph & graph) {
    for (const Node & node : graph.nodes) {
        int operand = -1;
        bool block_0 = false;
        for (size_t i = 0; i < node.sources.size(); i++) {
            if (node.sources[i] < 0)
                block_0 = block_0 || starts_with(node.leaf_names[i], "blk.0.");
            else if (operand < 0)
                operand = node.sources[i];
        }
        if (!block_0 || operand < 0) continue;
        operand = behind_views(graph, operand);
        if (operand < 0) return -1;
        const Node & read = graph.nodes[static_cast<size_t>(operand)];
        return is_norm(read.op) ? behind_views(graph, read.sources[0]) : operand;
    }
    return -1;
}

// Where `node` is a norm's scale (then perhaps its shift) by weights whose names begin with `weights`: what the norm
// reads. Else the node itself.
static int before_norm(const Graph & graph, int ordinal, const std::string & weights) {
    int at = ordinal;
    while (at >= 0) {
        const Node & node = graph.nodes[static_cast<size_t>(at)];
        if (is_norm(node.op)) return at == ordinal ? ordinal : behind_views(graph, node.sources[0]);
        if ((node.op != GGML_OP_MUL && node.op != GGML_OP_ADD) || node.sources.size() != 2) return ordinal;
        const size_t leaf = node.sources[0] < 0 ? 0 : 1;
        if (node.sources[leaf] >= 0 || !starts_with(node.leaf_names[leaf], weights.c_str())) return ordinal;
        at = node.sources[1 - leaf];
    }
    return ordinal;
}

// Whether a residual connection adds this node. In the last block it adds only the rows that are wanted.
static bool added_somewhere(const Graph & graph, int ordinal) {
    for (const Node & node : graph.nodes) {
        if (node.op != GGML_OP_ADD) continue;
        for (const int source : node.sources) {
            int added = behind_views(graph, source);
            if (added >= 0 && graph.nodes[static_cast<size_t>(added)].op == GGML_OP_GET_ROWS)
                added = behind_views(graph, graph.nodes[static_cast<size_t>(added)].sources[0]);
            if (added == ordinal) return true;
        }
    }
    return false;
}

// The inputs of the blocks of a model that does not name its layers (the BERT family): what the projection to queries
// reads, or in pre-norm models what the norm before it reads. The residual connection must add the same node, or it is
// not believed.
static std::vector<int> find_block_inputs(const Graph & graph, int n_layer) {
    std::vector<int> inputs(static_cast<size_t>(n_layer), -1);
    for (const Node & node : graph.nodes) {
        if (node.op != GGML_OP_MUL_MAT || node.sources.size() != 2 || node.sources[0] >= 0 || node.sources[1] < 0)
            continue;
        for (int il = 0; il < n_layer; il++) {
            const std::string block = "blk." + std::to_string(il) + ".";
            const std::string & weight = node.leaf_names[0];
            if (weight != block + "attn_q.weight" && weight != block + "attn_qkv.weight") continue;
            const int read = behind_views(graph, node.sources[1]);
            const int input = before_norm(graph, read, block + "attn_norm.");
            if (added_somewhere(graph, input)) inputs[static_cast<size_t>(il)] = input;
        }
    }
    return inputs;
}

HiddenStates find_hidden_states(const Graph & graph, int n_layer) {
    HiddenStates found;
    found.embedding = find_embedding(graph);
    found.final = graph.find("result_norm", -1);
    bool named = false;
    for (int il = 0; il < n_layer; il++) {
        found.layers.push_back(graph.find("l_out-" + std::to_string(il), -1));
        named = named || found.layers.back() >= 0;
    }
    if (named || graph.nodes.empty()) return found;

    const std::vector<int> inputs = find_block_inputs(graph, n_layer);
    if (std::find(inputs.begin(), inputs.end(), -1) != inputs.end()) return found;
    // The last node of an embedding model is its embedding: the last block's output, behind a final norm if it has one.
    if (found.final < 0) found.final = static_cast<int>(graph.nodes.size()) - 1;
    for (size_t il = 0; il + 1 < inputs.size(); il++) found.layers[il] = inputs[il + 1];
    found.layers.back() = before_norm(graph, found.final, "output_norm.");
    return found;
}

} // namespace loom
