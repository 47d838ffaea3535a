#include "oracle.h"

#include <cstring>
#include <stdexcept>

namespace loom::test {

template <typename T>
static T load(const char * from) {
    T x;
    std::memcpy(&x, from, sizeof(x));
    return x;
}

static float half(const char * from) {
    return ggml_fp16_to_fp32(load<ggml_fp16_t>(from));
}

// Quantized types count bytes in blocks of 32 elements along dimension 0; both start with an f16 scale.
static float q8_0(const char * row, int64_t i) {
    const char * block = row + i / 32 * 34;
    return half(block) * static_cast<float>(load<int8_t>(block + 2 + i % 32));
}

static float q4_0(const char * row, int64_t i) {
    const char * block = row + i / 32 * 18;
    const auto pair = load<uint8_t>(block + 2 + i % 16);
    // The first half of a block lies in the low nibbles, the second half in the high ones.
    const int nibble = i % 32 < 16 ? pair & 15 : pair >> 4;
    return half(block) * static_cast<float>(nibble - 8);
}

Number element(const ggml_tensor * t, const void * data, const int64_t (&index)[GGML_MAX_DIMS]) {
    const char * row = static_cast<const char *>(data);
    for (int d = 1; d < GGML_MAX_DIMS; d++) row += static_cast<size_t>(index[d]) * t->nb[d];
    if (t->type == GGML_TYPE_Q8_0) return {q8_0(row, index[0]), 0};
    if (t->type == GGML_TYPE_Q4_0) return {q4_0(row, index[0]), 0};

    const char * at = row + static_cast<size_t>(index[0]) * t->nb[0];
    switch (t->type) {
    case GGML_TYPE_F32: return {load<float>(at), 0};
    case GGML_TYPE_F64: return {static_cast<float>(load<double>(at)), 0};
    case GGML_TYPE_F16: return {half(at), 0};
    case GGML_TYPE_BF16: return {ggml_bf16_to_fp32(load<ggml_bf16_t>(at)), 0};
    case GGML_TYPE_I8: return {0, load<int8_t>(at)};
    case GGML_TYPE_I16: return {0, load<int16_t>(at)};
    case GGML_TYPE_I32: return {0, load<int32_t>(at)};
    case GGML_TYPE_I64: return {0, load<int64_t>(at)};
    default: throw std::logic_error("the oracle does not know this type");
    }
}

template <typename T>
static void append(std::vector<char> & bytes, T x) {
    const char * from = reinterpret_cast<const char *>(&x);
    bytes.insert(bytes.end(), from, from + sizeof(x));
}

std::vector<char> expected_rows(const ggml_tensor * t, const void * data, int axis, const std::vector<int32_t> & rows,
                                Value value) {
    int64_t n[GGML_MAX_DIMS];
    for (int d = 0; d < GGML_MAX_DIMS; d++) n[d] = d == axis ? 1 : t->ne[d];
    std::vector<char> bytes;
    for (size_t j = 0; j < (axis < 0 ? 1 : rows.size()); j++) {
        for (int64_t i3 = 0; i3 < n[3]; i3++) {
            for (int64_t i2 = 0; i2 < n[2]; i2++) {
                for (int64_t i1 = 0; i1 < n[1]; i1++) {
                    for (int64_t i0 = 0; i0 < n[0]; i0++) {
                        int64_t index[GGML_MAX_DIMS] = {i0, i1, i2, i3};
                        if (axis >= 0) index[axis] = rows[j];
                        const Number x = element(t, data, index);
                        switch (value) {
                        case Value::f32: append(bytes, x.f); break;
                        case Value::i32: append(bytes, static_cast<int32_t>(x.i)); break;
                        case Value::i64: append(bytes, x.i); break;
                        default: throw std::logic_error("not a type that is read to");
                        }
                    }
                }
            }
        }
    }
    return bytes;
}

} // namespace loom::test
