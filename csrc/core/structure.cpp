#include "core/structure.h"

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

HiddenStates find_hidden_states(const Graph & graph, int n_layer) {
    HiddenStates found;
    found.embedding = find_embedding(graph);
    for (int il = 0; il < n_layer; il++) found.layers.push_back(graph.find("l_out-" + std::to_string(il), -1));
    found.final = graph.find("result_norm", -1);
    return found;
}

} // namespace loom
