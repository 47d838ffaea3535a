#include "core/compress.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "ggml.h"

namespace loom {

static constexpr float max_float16 = 65504.0f;

size_t to_float16(const float * from, size_t n, uint16_t * to) {
    // In pieces that stay in the nearest cache, so that the values are read from memory once.
    constexpr size_t piece = 256;
    float clamped[piece];
    size_t saturated = 0;
    for (size_t start = 0; start < n; start += piece) {
        const size_t m = std::min(piece, n - start);
        for (size_t i = 0; i < m; i++) {
            const float x = from[start + i];
            const bool beyond = std::fabs(x) > max_float16 && std::fabs(x) <= std::numeric_limits<float>::max();
            saturated += beyond ? 1 : 0;
            clamped[i] = beyond ? std::copysign(max_float16, x) : x;
        }
        ggml_fp32_to_fp16_row(clamped, to + start, static_cast<int64_t>(m));
    }
    return saturated;
}

void from_float16(const uint16_t * from, size_t n, float * to) {
    ggml_fp16_to_fp32_row(from, to, static_cast<int64_t>(n));
}

size_t n_blocks(size_t n, size_t block) {
    return block == 0 ? 1 : (n + block - 1) / block;
}

// |x| <= 127.5: adding and taking away 1.5 * 2^23 leaves the nearest integer, ties to even, in plain arithmetic that
// compilers turn into vector code (std::nearbyint they call one by one).
static float round_half_even(float x) {
    constexpr float magic = 12582912.0f;
    return (x + magic) - magic;
}

static void block_to_int8(const float * from, size_t n, int8_t * to, float * scale) {
    float largest = 0.0f;
    bool finite = true;
    for (size_t i = 0; i < n; i++) {
        const float x = std::fabs(from[i]);
        finite = finite && x <= std::numeric_limits<float>::max(); // false for NaN as well
        largest = x > largest ? x : largest;
    }
    if (!finite || largest == 0.0f) {
        *scale = finite ? 0.0f : std::numeric_limits<float>::quiet_NaN();
        std::fill(to, to + n, static_cast<int8_t>(0));
        return;
    }
    // In double: the smallest floats divided by 127 would vanish, and x * (1 / scale) overflow.
    const double exact = static_cast<double>(largest) / 127.0;
    *scale = std::max(static_cast<float>(exact), std::numeric_limits<float>::denorm_min());
    // Rounded up, the scale of the very largest floats would bring 127 back as infinity.
    if (!std::isfinite(*scale * 127.0f)) *scale = std::nextafter(*scale, 0.0f);
    const double inverse = 1.0 / static_cast<double>(*scale);
    for (size_t i = 0; i < n; i++) {
        const float q = round_half_even(static_cast<float>(static_cast<double>(from[i]) * inverse));
        to[i] = static_cast<int8_t>(std::clamp(q, -127.0f, 127.0f));
    }
}

void to_int8(const float * from, size_t n, size_t block, int8_t * to, float * scales) {
    const size_t step = block == 0 ? n : block;
    for (size_t start = 0, b = 0; b < n_blocks(n, block); start += step, b++)
        block_to_int8(from + start, std::min(step, n - start), to + start, scales + b);
}

void from_int8(const int8_t * from, const float * scales, size_t n, size_t block, float * to) {
    for (size_t i = 0; i < n; i++) to[i] = static_cast<float>(from[i]) * scales[block == 0 ? 0 : i / block];
}

} // namespace loom
