// Nodes of the cached graph that compute into memory of ours, and the way back.
//
// While the scheduler asks about a node, nothing behind it was computed yet: its address may still be changed. Each
// node gets a slot of its own (two nodes in one slot would overwrite each other), and views follow their root.
// llama.cpp reuses a graph for decodes of the same shape. Such a graph comes with our addresses still in it, so what a
// node had before is kept, and put back when the node is no longer wanted.
#pragma once

#include <cstdint>
#include <vector>

#include "core/arena.h"

namespace loom {

class Redirects {
public:
    // Before a decode. `expect`: bytes that its redirects will probably need.
    void begin(size_t expect);

    // For every node asked about, in order. Returns whether the node now computes into our memory; it does not where
    // that memory cannot be had.
    bool visit(size_t ordinal, ggml_tensor * t, bool wanted);

    // Whether this node of the cached graph computes into our memory.
    bool active(size_t ordinal) const { return ordinal < by_ordinal_.size() && by_ordinal_[ordinal].active; }

    // Whether visit() must be called for every node although nothing is wanted: some node of the cached graph, or a
    // view of it, may still have our address.
    bool in_use() const { return !by_ordinal_.empty(); }

    // The memory behind all redirects, in bytes.
    size_t size() const { return arena_.size(); }

private:
    struct Redirect {
        const ggml_tensor * tensor = nullptr;
        Slot slot;
        void * data = nullptr; // what the node had
        ggml_backend_buffer_t buffer = nullptr;
        int32_t flags = 0;
        bool active = false;
    };

    void enter(ggml_tensor * first);
    bool activate(size_t ordinal, ggml_tensor * t);
    void put_back(Redirect & redirect, ggml_tensor * t);

    Arena arena_;
    std::vector<Redirect> by_ordinal_; // of the cached graph
    uint64_t graph_id_ = 0;            // stamped on the cached graph's first node
    size_t expect_ = 0;
};

} // namespace loom
