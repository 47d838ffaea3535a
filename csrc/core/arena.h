// Memory of our own that nodes of a graph are computed into.
//
// Blocks are ggml buffers of the same type as the memory that the node had, so every backend can compute into them.
// A cached graph may hold addresses in here for as long as its context lives: blocks are never moved, and freed only
// by recycle() (when the caller knows that no graph holds them any more) or with the arena.
#pragma once

#include <cstddef>
#include <memory>
#include <vector>

#include "ggml-backend.h"

namespace loom {

struct Slot {
    ggml_backend_buffer_t buffer = nullptr; // null: no memory could be had
    char * data = nullptr;
};

class Arena {
public:
    // Memory for `t` in a buffer of this type. `expect`: bytes that are likely to be asked for in all; a new block is
    // made so large.
    Slot allocate(ggml_backend_buffer_type_t type, const ggml_tensor * t, size_t expect);

    // Everything is free again. Memory far beyond what was in use is given back.
    void recycle();

    size_t size() const; // of all blocks, in bytes

private:
    struct FreeBuffer {
        void operator()(ggml_backend_buffer * buffer) const { ggml_backend_buffer_free(buffer); }
    };
    struct Block {
        std::unique_ptr<ggml_backend_buffer, FreeBuffer> buffer;
        size_t used = 0; // in bytes
    };
    std::vector<Block> blocks_;
};

} // namespace loom
