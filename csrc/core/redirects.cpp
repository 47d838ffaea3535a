#include "core/redirects.h"

#include <atomic>
#include <cstring>

namespace loom {

// A rebuilt graph's tensors may lie at the very addresses of the old ones, so an address does not tell whether a graph
// is the cached one. ggml zeroes a tensor's padding when it makes it and never looks at it again: a number put there
// does tell.
static_assert(sizeof(ggml_tensor::padding) == sizeof(uint64_t), "the stamp fills the padding");

static uint64_t stamp_of(const ggml_tensor * t) {
    uint64_t id;
    std::memcpy(&id, t->padding, sizeof(id));
    return id;
}

static uint64_t next_graph_id() {
    static std::atomic<uint64_t> last{0}; // contexts of several threads share it
    return ++last;
}

void Redirects::begin(size_t expect) {
    expect_ = expect;
}

void Redirects::enter(ggml_tensor * first) {
    if (graph_id_ != 0 && stamp_of(first) == graph_id_) return; // the cached graph again
    by_ordinal_.clear();
    arena_.recycle(); // the graph that held addresses in it is gone
    graph_id_ = next_graph_id();
    std::memcpy(first->padding, &graph_id_, sizeof(graph_id_));
}

bool Redirects::visit(size_t ordinal, ggml_tensor * t, bool wanted) {
    if (ordinal == 0) enter(t);
    if (t->view_src != nullptr) {
        // ggml's own rule for the address of a view; it changed if its root did.
        void * data = static_cast<char *>(t->view_src->data) + t->view_offs;
        if (t->data != data) {
            t->data = data;
            t->buffer = t->view_src->buffer;
        }
        return false;
    }
    if (active(ordinal)) {
        if (by_ordinal_[ordinal].tensor != t) return false; // not the graph that was listed
        if (wanted) return true;
        put_back(by_ordinal_[ordinal], t);
        return false;
    }
    return wanted && activate(ordinal, t);
}

bool Redirects::activate(size_t ordinal, ggml_tensor * t) {
    if (by_ordinal_.size() <= ordinal) by_ordinal_.resize(ordinal + 1);
    Redirect & redirect = by_ordinal_[ordinal];
    // A node that was wanted before, then not, finds its slot again: switching to and fro takes no new memory.
    if (redirect.slot.buffer == nullptr) {
        redirect.slot = arena_.allocate(ggml_backend_buffer_get_type(t->buffer), t, expect_);
        if (redirect.slot.buffer == nullptr) return false;
    }
    redirect.tensor = t;
    redirect.data = t->data;
    redirect.buffer = t->buffer;
    redirect.flags = t->flags;
    redirect.active = true;
    t->data = redirect.slot.data;
    t->buffer = redirect.slot.buffer;
    t->flags |= GGML_TENSOR_FLAG_OUTPUT; // no backend fuses an output away
    return true;
}

void Redirects::put_back(Redirect & redirect, ggml_tensor * t) {
    t->data = redirect.data;
    t->buffer = redirect.buffer;
    t->flags = redirect.flags;
    redirect.active = false;
}

} // namespace loom
