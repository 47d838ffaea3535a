#include "bindings/bindings.h"

#include <pybind11/native_enum.h>
#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include "core/tapper.h"

namespace py = pybind11;

namespace loom::bindings {

static py::dtype dtype_of(Value value) {
    switch (value) {
    case Value::i32: return py::dtype::of<int32_t>();
    case Value::i64: return py::dtype::of<int64_t>();
    case Value::i8: return py::dtype::of<int8_t>();
    case Value::f16: return py::dtype("float16");
    case Value::f32: break;
    }
    return py::dtype::of<float>();
}

// The numpy array takes the memory over; nothing is copied.
static py::array to_numpy(Array && array) {
    char * data = array.data.release();
    const py::capsule owner(data, [](void * p) { delete[] static_cast<char *>(p); });
    return py::array(dtype_of(array.value), array.shape, data, owner);
}

// (array, scales or None, saturated)
static py::tuple to_python(Array && array) {
    py::object scales = py::none();
    if (array.value == Value::i8) {
        const auto n_rows = static_cast<py::ssize_t>(array.shape.empty() ? 1 : array.shape[0]);
        const auto n = static_cast<py::ssize_t>(array.scales.size());
        scales = py::array_t<float>(std::vector<py::ssize_t>{n_rows, n_rows > 0 ? n / n_rows : 0}, array.scales.data());
    }
    const size_t saturated = array.saturated;
    return py::make_tuple(to_numpy(std::move(array)), scales, saturated);
}

static std::tuple<Status, std::string, py::list> finish(Tapper & tapper) {
    Outcome outcome;
    {
        const py::gil_scoped_release release;
        outcome = tapper.finish();
    }
    py::list arrays;
    for (Array & array : outcome.arrays) arrays.append(to_python(std::move(array)));
    return {outcome.status, outcome.detail, std::move(arrays)};
}

void register_tapper(py::module_ & m) {
    py::native_enum<RowKind>(m, "RowKind", "enum.Enum", "Along which rows of the batch a node is cut.")
        .value("TOKEN", RowKind::token)
        .value("OUTPUT", RowKind::output)
        .value("WHOLE", RowKind::whole)
        .finalize();

    py::native_enum<Status>(m, "Status", "enum.Enum", "How the reading of a decode's nodes ended.")
        .value("OK", Status::ok)
        .value("GRAPH_CHANGED", Status::graph_changed)
        .value("WRONG_ROWS", Status::wrong_rows)
        .value("SEVERAL_PASSES", Status::several_passes)
        .value("OUT_OF_MEMORY", Status::out_of_memory)
        .finalize();

    py::class_<Tap>(m, "Tap", "One wanted node of a graph.")
        .def(py::init([](int ordinal, RowKind kind, int axis, int n_dims) { return Tap{ordinal, kind, axis, n_dims}; }),
             py::arg("ordinal"), py::arg("kind"), py::arg("axis"), py::arg("n_dims"));

    py::class_<Plan, std::shared_ptr<Plan>>(m, "Plan", "What to read from graphs of one shape.")
        .def(py::init<const Graph &, std::vector<Tap>>(), py::arg("graph"), py::arg("taps"));

    py::native_enum<InPlace>(m, "InPlace", "enum.Enum", "Where wanted nodes may be left until the decode is over.")
        .value("NEVER", InPlace::never)
        .value("HOST", InPlace::host)
        .value("ALWAYS", InPlace::always)
        .finalize();

    py::class_<Tapper>(m, "Tapper", "Reads nodes of one llama_context; must outlive it. Not thread-safe.")
        .def(py::init<InPlace>(), py::arg("in_place"))
        .def_property_readonly("arena_size", &Tapper::arena_size, "Memory behind the nodes left in place, in bytes.")
        .def_property_readonly(
            "user_data", [](Tapper & self) { return reinterpret_cast<uintptr_t>(&self); },
            "Address for llama_context_params.cb_eval_user_data.")
        .def("list", &Tapper::list, "Record the graph of the next decode.")
        .def("skip", &Tapper::skip, "Let the next decode compute next to nothing: it only takes its cells.")
        .def("off", &Tapper::off, "Want nothing from the next decodes.")
        .def(
            "tap",
            [](Tapper & self, std::shared_ptr<Plan> plan, int64_t n_tokens, int64_t n_outputs,
               std::vector<int32_t> token_rows, std::vector<int32_t> output_rows, bool stop_early,
               Compression compression, size_t scale_block) {
                self.tap(std::move(plan), {n_tokens, n_outputs, std::move(token_rows), std::move(output_rows),
                                           stop_early, compression, scale_block});
            },
            py::arg("plan"), py::arg("n_tokens"), py::arg("n_outputs"), py::arg("token_rows"), py::arg("output_rows"),
            py::arg("stop_early"), py::arg("compression"), py::arg("scale_block"),
            "Read the plan's nodes in the next decode: the rows named as indices into the batch, and the same rows "
            "as indices among its outputs (empty where some is no output).")
        .def("listed", &Tapper::listed, "The graph recorded since list().")
        .def("finish", &finish,
             "After tap() and the decode: status, what went wrong, and per tap (array, scales or None, saturated). The "
             "array is float32 (int32, int64 for integer nodes; float16, int8 by compression), rows first, then the "
             "node's other dimensions, outermost first.");

    m.def(
        "eval_callback", [] { return reinterpret_cast<uintptr_t>(&Tapper::on_eval); },
        "Address for llama_context_params.cb_eval.");
}

} // namespace loom::bindings
