// The parts of the extension, one file each.
#pragma once

#include <pybind11/pybind11.h>

namespace loom::bindings {

void register_graph(pybind11::module_ & m);    // what a graph consists of: nodes, axes, hidden states
void register_tapper(pybind11::module_ & m);   // reading nodes during a decode
void register_compress(pybind11::module_ & m); // rows in fewer bytes
void register_gguf(pybind11::module_ & m);     // a GGUF file's header

} // namespace loom::bindings
