#include "core/graph.h"

#include <algorithm>
#include <iterator>
#include <utility>

#include "ggml-backend.h"

namespace loom {

int Graph::find(const std::string & name, int occurrence) const {
    int found = -1;
    for (size_t i = 0; i < nodes.size(); i++) {
        const NodeKey & key = nodes[i].key;
        if (key.name != name) continue;
        if (key.occurrence == occurrence) return static_cast<int>(i);
        if (occurrence < 0) found = static_cast<int>(i);
    }
    return found;
}

uint64_t Graph::signature() const {
    // FNV-1a, 64 bits.
    uint64_t hash = 14695981039346656037ull;
    const auto mix = [&hash](unsigned char byte) {
        hash ^= byte;
        hash *= 1099511628211ull;
    };
    for (const Node & node : nodes) {
        mix(static_cast<unsigned char>(node.op));
        for (const char c : node.key.name) mix(static_cast<unsigned char>(c));
        mix(0);
    }
    return hash;
}

void GraphRecorder::add(const ggml_tensor * t) {
    const int ordinal = static_cast<int>(graph_.nodes.size());
    Node node;
    node.key.name = t->name;
    node.op = t->op;
    node.type = t->type;
    for (int d = 0; d < GGML_MAX_DIMS; d++) node.ne[static_cast<size_t>(d)] = t->ne[d];
    std::copy(std::begin(t->op_params), std::end(t->op_params), node.params.begin());
    node.computed = (t->flags & GGML_TENSOR_FLAG_COMPUTE) != 0;
    node.view = t->view_src != nullptr;
    const ggml_backend_buffer_t buffer = node.view ? t->view_src->buffer : t->buffer;
    node.host = buffer == nullptr || ggml_backend_buffer_is_host(buffer);
    node.root = ordinal;
    if (node.view) {
        // ggml keeps view chains flat, but does not promise it: walk to the tensor that owns the memory. One that
        // no node computes and nobody feeds per decode is memory of the model or of its cache.
        const ggml_tensor * root = t->view_src;
        while (root->view_src != nullptr) root = root->view_src;
        const auto known = ordinals_.find(root);
        node.root = known == ordinals_.end() ? -1 : known->second;
        node.memory = root->op == GGML_OP_NONE && (root->flags & GGML_TENSOR_FLAG_INPUT) == 0;
    }
    for (const ggml_tensor * source : t->src) {
        if (source == nullptr || source == t) continue; // a cast names itself as its second operand
        const auto known = ordinals_.find(source);
        node.sources.push_back(known == ordinals_.end() ? -1 : known->second);
        node.leaf_names.push_back(known == ordinals_.end() ? source->name : "");
    }
    std::vector<int> & same_name = by_name_[node.key.name];
    node.key.occurrence = static_cast<int>(same_name.size());
    if (!same_name.empty()) graph_.nodes[static_cast<size_t>(same_name.back())].last = false;
    same_name.push_back(ordinal);
    ordinals_[t] = ordinal;
    graph_.nodes.push_back(std::move(node));
}

Graph GraphRecorder::finish() {
    ordinals_.clear();
    by_name_.clear();
    return std::exchange(graph_, Graph{});
}

} // namespace loom
