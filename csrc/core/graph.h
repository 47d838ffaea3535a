// What one compute graph consists of: a record of every node, in the order in which the scheduler asks about them.
//
// A Graph is plain data. It holds no pointer into llama.cpp, so it stays valid when the graph it was read from is
// rebuilt or freed.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <unordered_map>
#include <vector>

#include "ggml.h"

namespace loom {

// Names repeat within one graph (`Qcur-0` five times in a Llama), so a node's key is (name, occurrence), the
// occurrence counted from 0 in graph order.
struct NodeKey {
    std::string name;
    int occurrence = 0;
};

struct Node {
    NodeKey key;
    bool last = true; // the last occurrence of its name: the one that the bare name means
    ggml_op op = GGML_OP_NONE;
    ggml_type type = GGML_TYPE_F32;
    std::array<int64_t, GGML_MAX_DIMS> ne{}; // elements per dimension, ggml's order: ne[0] is the innermost
    bool computed = true;                    // false: a branch of the graph that was not taken, its memory is garbage
    bool host = true;                        // its memory is the host's
    bool view = false;                       // shares the memory of another tensor
    int root = -1;       // ordinal of the node whose memory it uses: itself, or the root of the view; -1: no node's
    bool memory = false; // a view of memory that outlives the graph (the KV cache, a recurrent state, a weight)
    // Operands: the ordinal of the node, or -1 where the operand is a leaf (a weight or an input), whose name then
    // stands in leaf_names at the same place.
    std::vector<int> sources;
    std::vector<std::string> leaf_names;
    // ggml's own parameters of the operation (an epsilon, a factor, ...), as they lie in the tensor.
    std::array<int32_t, GGML_MAX_OP_PARAMS / sizeof(int32_t)> params{};
};

struct Graph {
    std::vector<Node> nodes;

    // Ordinal of (name, occurrence); occurrence -1 means the last one. -1 where the graph has no such node.
    int find(const std::string & name, int occurrence) const;

    // Equal for graphs of the same operations under the same names: sizes do not count.
    uint64_t signature() const;
};

// Builds a Graph while the scheduler asks about one node after the other.
class GraphRecorder {
public:
    void add(const ggml_tensor * t);
    Graph finish(); // leaves the recorder empty

private:
    Graph graph_;
    std::unordered_map<const ggml_tensor *, int> ordinals_;     // of this pass only: tensors die with their graph
    std::unordered_map<std::string, std::vector<int>> by_name_; // ordinals of each name, in order
};

} // namespace loom
