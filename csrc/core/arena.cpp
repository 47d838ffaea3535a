#include "core/arena.h"

#include <algorithm>

namespace loom {

// Small wishes share a block.
static constexpr size_t min_block = 256 * 1024;

static size_t align_up(size_t n, size_t alignment) {
    return (n + alignment - 1) / alignment * alignment;
}

Slot Arena::allocate(ggml_backend_buffer_type_t type, const ggml_tensor * t, size_t expect) {
    const size_t alignment = ggml_backend_buft_get_alignment(type);
    // The buffer type knows best: some want padding behind a tensor.
    const size_t wanted = align_up(ggml_backend_buft_get_alloc_size(type, t), alignment);
    const auto fits = [&](const Block & block) {
        return ggml_backend_buffer_get_type(block.buffer.get()) == type &&
               block.used + wanted <= ggml_backend_buffer_get_size(block.buffer.get());
    };
    auto block = std::find_if(blocks_.begin(), blocks_.end(), fits);
    if (block == blocks_.end()) {
        const size_t size = std::max({wanted, expect, min_block});
        ggml_backend_buffer_t buffer = ggml_backend_buft_alloc_buffer(type, size);
        if (buffer == nullptr) return {};
        blocks_.emplace_back();
        block = blocks_.end() - 1;
        block->buffer.reset(buffer);
        ggml_backend_buffer_set_usage(buffer, GGML_BACKEND_BUFFER_USAGE_COMPUTE); // what it is used for
    }
    Slot slot;
    slot.buffer = block->buffer.get();
    slot.data = static_cast<char *>(ggml_backend_buffer_get_base(slot.buffer)) + block->used;
    block->used += wanted;
    return slot;
}

void Arena::recycle() {
    // Several blocks of one type come from graphs that grew; the next one gets a single block of its size. And a
    // short batch after a long one must not hold the long one's memory for ever.
    std::vector<Block> kept;
    for (Block & block : blocks_) {
        const size_t size = ggml_backend_buffer_get_size(block.buffer.get());
        const bool first_of_type = std::none_of(kept.begin(), kept.end(), [&](const Block & other) {
            return ggml_backend_buffer_get_type(other.buffer.get()) == ggml_backend_buffer_get_type(block.buffer.get());
        });
        if (first_of_type && (size <= min_block || block.used >= size / 4)) kept.push_back(std::move(block));
    }
    blocks_ = std::move(kept);
    for (Block & block : blocks_) block.used = 0;
}

size_t Arena::size() const {
    size_t n = 0;
    for (const Block & block : blocks_) n += ggml_backend_buffer_get_size(block.buffer.get());
    return n;
}

} // namespace loom
