#include "core/reader.h"

#include <cstring>

namespace loom {

size_t value_size(Value value) {
    switch (value) {
    case Value::i8: return 1;
    case Value::f16: return 2;
    case Value::i64: return 8;
    default: return 4;
    }
}

bool readable(ggml_type type, Value * value) {
    switch (type) {
    case GGML_TYPE_I8:
    case GGML_TYPE_I16:
    case GGML_TYPE_I32: *value = Value::i32; return true;
    case GGML_TYPE_I64: *value = Value::i64; return true;
    case GGML_TYPE_F32:
    case GGML_TYPE_F64: *value = Value::f32; return true;
    default: break;
    }
    *value = Value::f32;
    const ggml_type_traits * traits = ggml_get_type_traits(type);
    return traits != nullptr && traits->to_float != nullptr;
}

int64_t row_elements(const ggml_tensor * t, int axis) {
    int64_t n = 1;
    for (int d = 0; d < GGML_MAX_DIMS; d++)
        if (d != axis) n *= t->ne[d];
    return n;
}

bool dense_float_rows(const ggml_tensor * t, int axis) {
    if (t->type != GGML_TYPE_F32 || axis < 1) return false;
    size_t stride = sizeof(float);
    for (int d = 0; d < axis; d++) {
        if (t->ne[d] != 1 && t->nb[d] != stride) return false;
        stride *= static_cast<size_t>(t->ne[d]);
    }
    for (int d = axis + 1; d < GGML_MAX_DIMS; d++)
        if (t->ne[d] != 1) return false;
    return true;
}

// One run of n values whose elements are `stride` bytes apart.
static void read_run(ggml_type type, const char * from, int64_t n, size_t stride, Value value, void * out) {
    const bool dense = stride == ggml_type_size(type);
    const auto each = [&](auto example, auto * to) {
        for (int64_t i = 0; i < n; i++) {
            decltype(example) x;
            std::memcpy(&x, from + static_cast<size_t>(i) * stride, sizeof(x));
            to[i] = static_cast<std::remove_pointer_t<decltype(to)>>(x);
        }
    };
    if (value == Value::i64) return each(int64_t{}, static_cast<int64_t *>(out));
    if (value == Value::i32) {
        auto * to = static_cast<int32_t *>(out);
        if (type == GGML_TYPE_I8) return each(int8_t{}, to);
        if (type == GGML_TYPE_I16) return each(int16_t{}, to);
        return each(int32_t{}, to);
    }
    auto * to = static_cast<float *>(out);
    if (type == GGML_TYPE_F32) {
        if (dense) {
            std::memcpy(to, from, static_cast<size_t>(n) * sizeof(float));
            return;
        }
        return each(float{}, to);
    }
    if (type == GGML_TYPE_F64) return each(double{}, to);
    // F16, BF16 and quantized types. Quantized ones are dense along dimension 0 by their nature.
    const ggml_to_float_t to_float = ggml_get_type_traits(type)->to_float;
    if (dense) return to_float(from, to, n);
    for (int64_t i = 0; i < n; i++) to_float(from + static_cast<size_t>(i) * stride, to + i, 1);
}

void read_rows(const ggml_tensor * t, const void * data, int axis, const std::vector<int32_t> & rows, Value value,
               void * out) {
    const char * base = static_cast<const char *>(data);
    char * to = static_cast<char *>(out);
    // Dimension 0 is read in runs unless it is the token axis itself; then each row takes one element of it.
    const int64_t n0 = axis == 0 ? 1 : t->ne[0];
    const size_t n_rows = axis < 0 ? 1 : rows.size();
    for (size_t j = 0; j < n_rows; j++) {
        const size_t row_offset = axis < 0 ? 0 : static_cast<size_t>(rows[j]) * t->nb[axis];
        for (int64_t i3 = 0; i3 < (axis == 3 ? 1 : t->ne[3]); i3++) {
            for (int64_t i2 = 0; i2 < (axis == 2 ? 1 : t->ne[2]); i2++) {
                for (int64_t i1 = 0; i1 < (axis == 1 ? 1 : t->ne[1]); i1++) {
                    const size_t offset = row_offset + static_cast<size_t>(i3) * t->nb[3] +
                                          static_cast<size_t>(i2) * t->nb[2] + static_cast<size_t>(i1) * t->nb[1];
                    read_run(t->type, base + offset, n0, t->nb[0], value, to);
                    to += static_cast<size_t>(n0) * value_size(value);
                }
            }
        }
    }
}

ggml_type type_named(const std::string & name) {
    for (int type = 0; type < GGML_TYPE_COUNT; type++) {
        const char * known = ggml_type_name(static_cast<ggml_type>(type));
        if (known != nullptr && name == known) return static_cast<ggml_type>(type);
    }
    return GGML_TYPE_COUNT;
}

void read_weights(ggml_type type, const void * data, int64_t n_rows, int64_t n, float * out) {
    const size_t row_size = ggml_row_size(type, n);
    for (int64_t row = 0; row < n_rows; row++)
        read_run(type, static_cast<const char *>(data) + static_cast<size_t>(row) * row_size, n, ggml_type_size(type),
                 Value::f32, out + row * n);
}

} // namespace loom
