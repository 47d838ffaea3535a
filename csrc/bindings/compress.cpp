#include "bindings/bindings.h"

#include <pybind11/native_enum.h>
#include <pybind11/numpy.h>

#include "core/compress.h"

namespace py = pybind11;

namespace loom::bindings {

using Floats = py::array_t<float, py::array::c_style | py::array::forcecast>;

// Rows of any shape behind the first dimension are one row of n values each.
static size_t row_size(const py::array & rows) {
    if (rows.ndim() < 1) throw py::value_error("rows have at least one dimension");
    size_t n = 1;
    for (py::ssize_t d = 1; d < rows.ndim(); d++) n *= static_cast<size_t>(rows.shape(d));
    return n;
}

static std::vector<py::ssize_t> shape_of(const py::array & array) {
    return {array.shape(), array.shape() + array.ndim()};
}

static py::tuple compress_float16(const Floats & rows) {
    py::array halves(py::dtype("float16"), shape_of(rows));
    const float * from = rows.data();
    auto * to = static_cast<uint16_t *>(halves.mutable_data());
    const auto n = static_cast<size_t>(rows.size());
    size_t saturated;
    {
        const py::gil_scoped_release release;
        saturated = to_float16(from, n, to);
    }
    return py::make_tuple(halves, saturated);
}

static py::tuple compress_int8(const Floats & rows, size_t block) {
    const size_t n = row_size(rows), n_rows = static_cast<size_t>(rows.shape(0)), blocks = n_blocks(n, block);
    py::array_t<int8_t> numbers(shape_of(rows));
    py::array_t<float> scales({n_rows, blocks});
    const float * from = rows.data();
    int8_t * to = numbers.mutable_data();
    float * scale = scales.mutable_data();
    {
        const py::gil_scoped_release release;
        for (size_t r = 0; r < n_rows; r++) to_int8(from + r * n, n, block, to + r * n, scale + r * blocks);
    }
    return py::make_tuple(numbers, scales);
}

static py::array_t<float> decompress_int8(const py::array_t<int8_t, py::array::c_style> & numbers,
                                          const Floats & scales, size_t block) {
    const size_t n = row_size(numbers), n_rows = static_cast<size_t>(numbers.shape(0)), blocks = n_blocks(n, block);
    if (static_cast<size_t>(scales.size()) != n_rows * blocks)
        throw py::value_error("the number of scales does not fit the rows");
    py::array_t<float> rows(shape_of(numbers));
    const int8_t * from = numbers.data();
    const float * scale = scales.data();
    float * to = rows.mutable_data();
    {
        const py::gil_scoped_release release;
        for (size_t r = 0; r < n_rows; r++) from_int8(from + r * n, scale + r * blocks, n, block, to + r * n);
    }
    return rows;
}

void register_compress(py::module_ & m) {
    py::native_enum<Compression>(m, "Compression", "enum.Enum", "How rows are stored.")
        .value("NONE", Compression::none)
        .value("FLOAT16", Compression::float16)
        .value("INT8", Compression::int8)
        .finalize();
    m.def("compress_float16", &compress_float16, py::arg("rows"),
          "(float16 rows, number of values beyond +-65504 that became +-65504).");
    m.def("compress_int8", &compress_int8, py::arg("rows"), py::arg("block") = 0,
          "(int8 rows, float32 scales (n_rows, n_blocks)): one scale per `block` values of a row, 0 for whole rows.");
    m.def("decompress_int8", &decompress_int8, py::arg("numbers"), py::arg("scales"), py::arg("block") = 0,
          "float32 rows: value = number * scale.");
}

} // namespace loom::bindings
