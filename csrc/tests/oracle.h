// What a tensor's elements are, one at a time, from ggml's definition of its types and strides. Slow and
// plain on purpose: the reader is compared with it, so nothing here is shared with the reader.
#pragma once

#include <cstdint>
#include <vector>

#include "core/reader.h"

namespace loom::test {

// One element, in the form that suits its type.
struct Number {
    float f = 0;
    int64_t i = 0;
};

// Element [i3][i2][i1][i0] of t, whose memory starts at `data`.
Number element(const ggml_tensor * t, const void * data, const int64_t (&index)[GGML_MAX_DIMS]);

// What read_rows() should give, as bytes of the output type.
std::vector<char> expected_rows(const ggml_tensor * t, const void * data, int axis, const std::vector<int32_t> & rows,
                                Value value);

} // namespace loom::test
