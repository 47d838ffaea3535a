// A GGUF file's header through ggml's own parser, the one that loads the model later: what it refuses, llama.cpp
// refuses. Weights are never read.
#include "bindings/bindings.h"

#include <memory>

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include "core/reader.h"
#include "ggml.h"
#include "gguf.h"

namespace py = pybind11;

namespace loom::bindings {

struct FreeGguf {
    void operator()(gguf_context * ctx) const { gguf_free(ctx); }
};
using GgufPtr = std::unique_ptr<gguf_context, FreeGguf>;

template <typename T>
static py::object numbers(const gguf_context * ctx, int64_t id) {
    const auto n = static_cast<py::ssize_t>(gguf_get_arr_n(ctx, id));
    return py::array_t<T>(n, static_cast<const T *>(gguf_get_arr_data(ctx, id)));
}

// Metadata strings are UTF-8 by the format's rule, but files break it. Bad bytes become surrogates, so that strings
// that differ stay different.
static py::str text(const char * bytes) {
    PyObject * decoded = PyUnicode_DecodeUTF8(bytes, static_cast<py::ssize_t>(std::strlen(bytes)), "surrogateescape");
    if (decoded == nullptr) throw py::error_already_set();
    return py::reinterpret_steal<py::str>(decoded);
}

static py::object array(const gguf_context * ctx, int64_t id) {
    switch (gguf_get_arr_type(ctx, id)) {
    case GGUF_TYPE_UINT8: return numbers<uint8_t>(ctx, id);
    case GGUF_TYPE_INT8: return numbers<int8_t>(ctx, id);
    case GGUF_TYPE_UINT16: return numbers<uint16_t>(ctx, id);
    case GGUF_TYPE_INT16: return numbers<int16_t>(ctx, id);
    case GGUF_TYPE_UINT32: return numbers<uint32_t>(ctx, id);
    case GGUF_TYPE_INT32: return numbers<int32_t>(ctx, id);
    case GGUF_TYPE_FLOAT32: return numbers<float>(ctx, id);
    case GGUF_TYPE_BOOL: return numbers<bool>(ctx, id);
    case GGUF_TYPE_UINT64: return numbers<uint64_t>(ctx, id);
    case GGUF_TYPE_INT64: return numbers<int64_t>(ctx, id);
    case GGUF_TYPE_FLOAT64: return numbers<double>(ctx, id);
    case GGUF_TYPE_STRING: {
        py::list strings;
        for (size_t i = 0; i < gguf_get_arr_n(ctx, id); i++) strings.append(text(gguf_get_arr_str(ctx, id, i)));
        return strings;
    }
    default: return py::none(); // arrays of arrays: ggml's parser refuses them before we get here
    }
}

static py::object value(const gguf_context * ctx, int64_t id) {
    switch (gguf_get_kv_type(ctx, id)) {
    case GGUF_TYPE_UINT8: return py::int_(gguf_get_val_u8(ctx, id));
    case GGUF_TYPE_INT8: return py::int_(gguf_get_val_i8(ctx, id));
    case GGUF_TYPE_UINT16: return py::int_(gguf_get_val_u16(ctx, id));
    case GGUF_TYPE_INT16: return py::int_(gguf_get_val_i16(ctx, id));
    case GGUF_TYPE_UINT32: return py::int_(gguf_get_val_u32(ctx, id));
    case GGUF_TYPE_INT32: return py::int_(gguf_get_val_i32(ctx, id));
    case GGUF_TYPE_FLOAT32: return py::float_(gguf_get_val_f32(ctx, id));
    case GGUF_TYPE_BOOL: return py::bool_(gguf_get_val_bool(ctx, id));
    case GGUF_TYPE_STRING: return text(gguf_get_val_str(ctx, id));
    case GGUF_TYPE_UINT64: return py::int_(gguf_get_val_u64(ctx, id));
    case GGUF_TYPE_INT64: return py::int_(gguf_get_val_i64(ctx, id));
    case GGUF_TYPE_FLOAT64: return py::float_(gguf_get_val_f64(ctx, id));
    case GGUF_TYPE_ARRAY: return array(ctx, id);
    default: return py::none();
    }
}

static py::tuple read(const std::string & path) {
    GgufPtr ctx;
    {
        const py::gil_scoped_release release;
        ctx.reset(gguf_init_from_file(path.c_str(), {/*no_alloc*/ true, /*ctx*/ nullptr}));
    }
    if (!ctx) throw py::value_error("not a GGUF file that ggml can read: " + path);
    py::dict metadata;
    for (int64_t id = 0; id < gguf_get_n_kv(ctx.get()); id++)
        metadata[text(gguf_get_key(ctx.get(), id))] = value(ctx.get(), id);
    py::list tensors;
    for (int64_t id = 0; id < gguf_get_n_tensors(ctx.get()); id++) {
        const int64_t * ne = gguf_get_tensor_ne(ctx.get(), id);
        tensors.append(py::make_tuple(text(gguf_get_tensor_name(ctx.get(), id)),
                                      std::vector<int64_t>(ne, ne + GGML_MAX_DIMS),
                                      ggml_type_name(gguf_get_tensor_type(ctx.get(), id)),
                                      gguf_get_data_offset(ctx.get()) + gguf_get_tensor_offset(ctx.get(), id),
                                      gguf_get_tensor_size(ctx.get(), id)));
    }
    return py::make_tuple(gguf_get_version(ctx.get()), metadata, tensors);
}

// (n_rows, n) float32 of the rows whose bytes are data[n_rows, row_size].
static py::array_t<float> weights(const std::string & type_name, const py::array_t<uint8_t, py::array::c_style> & data,
                                  py::ssize_t n) {
    const ggml_type type = type_named(type_name);
    Value value = Value::f32;
    if (type == GGML_TYPE_COUNT || !readable(type, &value) || value != Value::f32)
        throw py::value_error("weights of the type " + type_name + " cannot be read as numbers");
    if (data.ndim() != 2 || n < 1 || n % ggml_blck_size(type) != 0 ||
        static_cast<size_t>(data.shape(1)) != ggml_row_size(type, n))
        throw py::value_error("the bytes are not rows of " + std::to_string(n) + " weights of the type " + type_name);
    py::array_t<float> out({data.shape(0), n});
    float * to = out.mutable_data();
    const uint8_t * from = data.data();
    const int64_t n_rows = data.shape(0);
    {
        const py::gil_scoped_release release;
        read_weights(type, from, n_rows, n, to);
    }
    return out;
}

void register_gguf(py::module_ & m) {
    m.def("read_gguf", &read, py::arg("path"),
          "(version, metadata, tensors) of a GGUF file, without its weights. Tensors are (name, ne, type, offset in "
          "the file, size), both in bytes. Raises ValueError where ggml's parser refuses the file.");
    m.def("read_weights", &weights, py::arg("type"), py::arg("data"), py::arg("n"),
          "float32 (n_rows, n) of a weight's bytes, uint8 (n_rows, row size). Raises ValueError where the type cannot "
          "be widened or the sizes do not fit.");
}

} // namespace loom::bindings
