#include "bindings/bindings.h"

#include <pybind11/native_enum.h>
#include <pybind11/stl.h>

#include "core/axes.h"
#include "core/graph.h"
#include "core/structure.h"

namespace py = pybind11;

namespace loom::bindings {

// [(graph, n_tokens, n_outputs, fill)] as the core wants it.
using PyListing = std::tuple<const Graph *, int64_t, int64_t, int>;

static std::vector<Axes> axes_of(const std::vector<PyListing> & listings) {
    if (listings.empty()) throw py::value_error("find_axes needs at least one listing");
    std::vector<Listing> plain;
    for (const auto & [graph, n_tokens, n_outputs, fill] : listings)
        plain.push_back({graph, n_tokens, n_outputs, fill});
    return find_axes(plain);
}

void register_graph(py::module_ & m) {
    py::class_<Node>(m, "Node", "One node of a compute graph.")
        .def_property_readonly("name", [](const Node & n) { return n.key.name; })
        .def_property_readonly(
            "occurrence", [](const Node & n) { return n.key.occurrence; },
            "Which of the nodes of this name, counted from 0 in graph order.")
        .def_readonly("last", &Node::last, "Whether this is the last occurrence of its name.")
        .def_property_readonly("op", [](const Node & n) { return std::string(ggml_op_name(n.op)); })
        .def_property_readonly("type", [](const Node & n) { return std::string(ggml_type_name(n.type)); })
        .def_readonly("ne", &Node::ne, "Elements per dimension in ggml's order, innermost first.")
        .def_readonly("computed", &Node::computed,
                      "False: part of a branch that was not taken; its memory holds nothing.")
        .def_readonly("view", &Node::view, "Whether it shares the memory of another tensor.")
        .def_readonly("memory", &Node::memory, "Whether it views memory that outlives the graph (the KV cache).")
        .def_readonly("sources", &Node::sources, "Ordinals of its operands; -1 where one is a weight or an input.")
        .def_readonly("leaf_names", &Node::leaf_names,
                      "Beside `sources`: the name of the weight or input, empty where the operand is a node.")
        .def_property_readonly(
            "params",
            [](const Node & n) { return py::bytes(reinterpret_cast<const char *>(n.params.data()), sizeof(n.params)); },
            "ggml's parameters of the operation, as they lie in memory.")
        .def_property_readonly(
            "function",
            [](const Node & n) {
                return n.op == GGML_OP_UNARY ? ggml_unary_op_name(static_cast<ggml_unary_op>(n.params[0])) : "";
            },
            "Which function of one variable a UNARY node computes (\"TANH\", ...); empty for other nodes.");

    py::class_<Graph>(m, "Graph", "The nodes of one compute graph, in the order of their evaluation.")
        .def_readonly("nodes", &Graph::nodes)
        .def("signature", &Graph::signature,
             "64-bit hash of the operations and names: equal for graphs that differ in sizes only.");

    py::native_enum<Axis>(m, "Axis", "enum.Enum", "What a dimension of a node counts.")
        .value("FIXED", Axis::fixed)
        .value("TOKEN", Axis::token)
        .value("OUTPUT", Axis::output)
        .value("KV", Axis::kv)
        .value("OTHER", Axis::other)
        .finalize();

    m.def("find_axes", &axes_of, py::arg("listings"),
          "The axes of each node of the first listing, in ggml's order. Listings are (graph, n_tokens, n_outputs, "
          "fill); equal fill means the same number of cache cells in use.");
    m.def("row_axis", &row_axis, py::arg("axes"),
          "The dimension (ggml's order) that has one entry per token or per output; -1 where there is no such one.");

    py::class_<HiddenStates>(m, "HiddenStates", "Ordinals of the nodes that hold the hidden states; -1: not found.")
        .def_readonly("embedding", &HiddenStates::embedding)
        .def_readonly("layers", &HiddenStates::layers)
        .def_readonly("final", &HiddenStates::final);
    m.def("find_hidden_states", &find_hidden_states, py::arg("graph"), py::arg("n_layer"));
}

} // namespace loom::bindings
