// From a tensor's bytes to rows: by type and by strides, never by assuming a contiguous matrix of floats.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "ggml.h"

namespace loom {

// What a node's values become outside: every floating and quantized type is widened to float32, integers to int32
// (int64 stays).
enum class Value : uint8_t { f32, i32, i64, f16, i8 }; // the last two by compression only

size_t value_size(Value value); // in bytes

// False where this build cannot read the type; `value` is what it reads to otherwise.
bool readable(ggml_type type, Value * value);

// Number of elements of one row: all dimensions but `axis` (-1: all dimensions).
int64_t row_elements(const ggml_tensor * t, int axis);

// Whether the values of each row along `axis` lie one behind the other as floats, so that they need not be copied.
bool dense_float_rows(const ggml_tensor * t, int axis);

// Copies rows out of `t`. `data` is the memory of t (t->data, or a host copy of the ggml_nbytes(t) bytes there).
// With axis >= 0, row j of the result is entry rows[j] along that dimension; the other dimensions follow in numpy's
// order, outermost first. With axis -1 the whole tensor is one row and `rows` is not looked at.
// `out` has room for rows.size() (or 1) rows of row_elements() values.
void read_rows(const ggml_tensor * t, const void * data, int axis, const std::vector<int32_t> & rows, Value value,
               void * out);

// The type that ggml calls so ("f32", "q4_0", ...); GGML_TYPE_COUNT where there is none.
ggml_type type_named(const std::string & name);

// Widens n_rows rows of a weight, each of ggml_row_size(type, n) bytes and one behind the other, to floats.
// The type must be `readable` as f32, and n a multiple of its block size. `out` has room for n_rows * n values.
void read_weights(ggml_type type, const void * data, int64_t n_rows, int64_t n, float * out);

} // namespace loom
