#include "bindings/bindings.h"

#include "ggml.h"

PYBIND11_MODULE(_core, m) {
    m.doc() = "Reads nodes of llama.cpp's compute graphs while they are evaluated. Internal: use loom_gguf.Model.";

    m.attr("LLAMA_CPP_PYTHON_VERSION") = LOOM_LLAMA_CPP_PYTHON_VERSION;
    m.attr("GGML_VERSION_BUILT_WITH") = LOOM_GGML_VERSION;
    m.def("ggml_version", &ggml_version, "Version of the ggml library that is loaded.");

    loom::bindings::register_graph(m);
    loom::bindings::register_compress(m);
    loom::bindings::register_tapper(m);
    loom::bindings::register_gguf(m);
}
