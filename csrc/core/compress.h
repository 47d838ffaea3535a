// Rows in fewer bytes.
//
// float16 rounds to nearest even; finite values beyond +-65504 become +-65504 and are counted; infinities and NaN stay.
// int8 has one scale per block of a row: scale = max|x| / 127, q = x / scale rounded half to even, x ~ q * scale.
// A block of zeros has scale 0. A block with NaN or an infinity cannot be said in int8: its scale is NaN and its
// numbers are 0, so that it comes back as NaN throughout, never as plausible numbers.
#pragma once

#include <cstddef>
#include <cstdint>

namespace loom {

enum class Compression : uint8_t { none, float16, int8 };

// n values; returns how many were saturated.
size_t to_float16(const float * from, size_t n, uint16_t * to);
void from_float16(const uint16_t * from, size_t n, float * to);

// Blocks of one row of n values: the last one may be shorter. block 0 means the whole row.
size_t n_blocks(size_t n, size_t block);

// One row of n values, with n_blocks(n, block) scales.
void to_int8(const float * from, size_t n, size_t block, int8_t * to, float * scales);
void from_int8(const int8_t * from, const float * scales, size_t n, size_t block, float * to);

} // namespace loom
