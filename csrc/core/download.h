// From a device's memory to the host's, in as few transfers as there are devices.
#pragma once

#include <memory>
#include <vector>

#include "ggml-backend.h"

namespace loom {

class Download {
public:
    // Host addresses of these tensors' bytes, valid until the next call: the tensor's own memory where the host can
    // read it. Tensors that lie close together in one buffer come in one transfer. Null entries are passed over.
    std::vector<const void *> fetch(const std::vector<const ggml_tensor *> & tensors);

private:
    struct FreeBuffer {
        void operator()(ggml_backend_buffer * buffer) const { ggml_backend_buffer_free(buffer); }
    };
    char * reserve(ggml_backend_buffer_type_t device, size_t size);

    // Page-locked where the device offers that: such memory is what a GPU copies to at full speed.
    std::unique_ptr<ggml_backend_buffer, FreeBuffer> pinned_;
    std::vector<char> pageable_;
};

} // namespace loom
