#include "core/download.h"

#include <algorithm>

namespace loom {

static ggml_backend_buffer_t buffer_of(const ggml_tensor * t) {
    return t->view_src != nullptr ? t->view_src->buffer : t->buffer;
}

namespace {

// Tensors of one buffer, in one stretch of it.
struct Stretch {
    ggml_backend_buffer_t buffer;
    char * begin;
    char * end;
    size_t wanted; // bytes of the stretch that are wanted
    std::vector<size_t> members;
    size_t offset = 0; // on the host
};

} // namespace

// What lies between the wanted bytes is transferred along, as long as it is no more than they are.
static void merge(std::vector<Stretch> & stretches, size_t member, const ggml_tensor * t) {
    char * const begin = static_cast<char *>(t->data);
    const size_t size = ggml_nbytes(t);
    for (Stretch & stretch : stretches) {
        if (stretch.buffer != buffer_of(t)) continue;
        char * const low = std::min(stretch.begin, begin);
        char * const high = std::max(stretch.end, begin + size);
        if (static_cast<size_t>(high - low) > 2 * (stretch.wanted + size)) continue;
        stretch.begin = low;
        stretch.end = high;
        stretch.wanted += size;
        stretch.members.push_back(member);
        return;
    }
    stretches.push_back({buffer_of(t), begin, begin + size, size, {member}});
}

char * Download::reserve(ggml_backend_buffer_type_t device, size_t size) {
    if (pinned_ && ggml_backend_buffer_get_size(pinned_.get()) >= size)
        return static_cast<char *>(ggml_backend_buffer_get_base(pinned_.get()));
    if (pageable_.size() >= size) return pageable_.data();
    ggml_backend_dev_t dev = ggml_backend_buft_get_device(device);
    ggml_backend_buffer_type_t host = dev != nullptr ? ggml_backend_dev_host_buffer_type(dev) : nullptr;
    if (host != nullptr) {
        pinned_.reset(); // before the new one: both at once might not fit
        pinned_.reset(ggml_backend_buft_alloc_buffer(host, size + size / 4));
        if (pinned_) return static_cast<char *>(ggml_backend_buffer_get_base(pinned_.get()));
    }
    pageable_.resize(size);
    return pageable_.data();
}

std::vector<const void *> Download::fetch(const std::vector<const ggml_tensor *> & tensors) {
    std::vector<const void *> addresses(tensors.size(), nullptr);
    std::vector<Stretch> stretches;
    for (size_t i = 0; i < tensors.size(); i++) {
        const ggml_tensor * t = tensors[i];
        if (t == nullptr || ggml_nelements(t) == 0) continue;
        if (ggml_backend_buffer_is_host(buffer_of(t)))
            addresses[i] = t->data;
        else
            merge(stretches, i, t);
    }
    if (stretches.empty()) return addresses;

    size_t total = 0;
    for (Stretch & stretch : stretches) {
        stretch.offset = total;
        total += static_cast<size_t>(stretch.end - stretch.begin);
    }
    char * const host = reserve(ggml_backend_buffer_get_type(stretches.front().buffer), total);
    for (const Stretch & stretch : stretches) {
        // ggml transfers tensors, not addresses: a row of bytes stands for the stretch.
        ggml_tensor bytes{};
        bytes.type = GGML_TYPE_I8;
        bytes.buffer = stretch.buffer;
        bytes.data = stretch.begin;
        bytes.ne[0] = stretch.end - stretch.begin;
        bytes.ne[1] = bytes.ne[2] = bytes.ne[3] = 1;
        bytes.nb[0] = 1;
        bytes.nb[1] = bytes.nb[2] = bytes.nb[3] = static_cast<size_t>(bytes.ne[0]);
        ggml_backend_tensor_get(&bytes, host + stretch.offset, 0, static_cast<size_t>(bytes.ne[0]));
        for (const size_t member : stretch.members)
            addresses[member] = host + stretch.offset + (static_cast<char *>(tensors[member]->data) - stretch.begin);
    }
    return addresses;
}

} // namespace loom
