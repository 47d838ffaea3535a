#include <doctest/doctest.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <random>
#include <string>

#include "core/reader.h"
#include "ggml-cpp.h"
#include "oracle.h"

using namespace loom;
using namespace loom::test;

static ggml_context_ptr new_context() {
    return ggml_context_ptr(ggml_init({1 << 20, nullptr, false}));
}

static bool quantized(ggml_type type) {
    return ggml_blck_size(type) != 1;
}

// Fills a contiguous tensor with numbers of its type.
static void fill(ggml_tensor * t, std::mt19937 & random) {
    std::uniform_real_distribution<float> real(-100.0f, 100.0f);
    const auto each = [&](auto make) {
        using T = decltype(make());
        auto * to = static_cast<T *>(t->data);
        for (int64_t i = 0; i < ggml_nelements(t); i++) to[i] = make();
    };
    switch (t->type) {
    case GGML_TYPE_F32: return each([&] { return real(random); });
    case GGML_TYPE_F64: return each([&] { return static_cast<double>(real(random)) / 3; });
    case GGML_TYPE_F16: return each([&] { return ggml_fp32_to_fp16(real(random)); });
    case GGML_TYPE_BF16: return each([&] { return ggml_fp32_to_bf16(real(random)); });
    case GGML_TYPE_I8: return each([&] { return static_cast<int8_t>(random()); });
    case GGML_TYPE_I16: return each([&] { return static_cast<int16_t>(random()); });
    case GGML_TYPE_I32: return each([&] { return static_cast<int32_t>(random()); });
    case GGML_TYPE_I64:
        return each([&] { return static_cast<int64_t>(random()) << 31 ^ static_cast<int64_t>(random()); });
    default: break;
    }
    std::vector<float> values(static_cast<size_t>(ggml_nelements(t)));
    for (float & x : values) x = real(random);
    ggml_quantize_chunk(t->type, values.data(), t->data, 0, ggml_nrows(t), t->ne[0], nullptr);
}

// Reads with the reader and with the oracle, through allocations of the exact size, so that one byte too many
// of input or output is an error of the sanitizer.
static void check(const ggml_tensor * t, int axis, const std::vector<int32_t> & rows) {
    const auto type_name = std::string(ggml_type_name(t->type));
    INFO("type " << type_name << ", axis " << axis << ", " << rows.size() << " rows, ne " << t->ne[0] << " " << t->ne[1]
                 << " " << t->ne[2] << " " << t->ne[3] << ", nb " << t->nb[0] << " " << t->nb[1] << " " << t->nb[2]
                 << " " << t->nb[3]);
    Value value;
    REQUIRE(readable(t->type, &value));
    const std::vector<char> expected = expected_rows(t, t->data, axis, rows, value);
    const size_t n_rows = axis < 0 ? 1 : rows.size();
    REQUIRE(expected.size() == n_rows * static_cast<size_t>(row_elements(t, axis)) * value_size(value));

    const std::unique_ptr<char[]> copy(new char[ggml_nbytes(t)]);
    std::memcpy(copy.get(), t->data, ggml_nbytes(t));
    for (const void * data : {static_cast<const void *>(t->data), static_cast<const void *>(copy.get())}) {
        const std::unique_ptr<char[]> out(new char[expected.size()]);
        read_rows(t, data, axis, rows, value, out.get());
        CHECK(std::equal(expected.begin(), expected.end(), out.get()));
    }
}

// Along every axis: all rows, some rows in another order with repeats, one, none.
static void check_all(const ggml_tensor * t, std::mt19937 & random) {
    check(t, -1, {});
    check(t, -1, {5, 6}); // not looked at
    for (int axis = quantized(t->type) ? 1 : 0; axis < GGML_MAX_DIMS; axis++) {
        const auto n = static_cast<int32_t>(t->ne[axis]);
        std::vector<int32_t> all, some;
        for (int32_t i = 0; i < n; i++) all.push_back(i);
        for (int32_t i = 0; i < n; i++) some.push_back(static_cast<int32_t>(random() % static_cast<uint32_t>(n)));
        check(t, axis, all);
        check(t, axis, some);
        check(t, axis, {n - 1});
        check(t, axis, {});
    }
}

static const ggml_type plain_types[] = {GGML_TYPE_F32, GGML_TYPE_F16, GGML_TYPE_BF16, GGML_TYPE_F64,
                                        GGML_TYPE_I8,  GGML_TYPE_I16, GGML_TYPE_I32,  GGML_TYPE_I64};
static const ggml_type block_types[] = {GGML_TYPE_Q8_0, GGML_TYPE_Q4_0};

TEST_CASE("what each type is read to") {
    const auto value_of = [](ggml_type type) {
        Value value;
        REQUIRE(readable(type, &value));
        return value;
    };
    for (const ggml_type type :
         {GGML_TYPE_F32, GGML_TYPE_F64, GGML_TYPE_F16, GGML_TYPE_BF16, GGML_TYPE_Q8_0, GGML_TYPE_Q4_K})
        CHECK(value_of(type) == Value::f32);
    for (const ggml_type type : {GGML_TYPE_I8, GGML_TYPE_I16, GGML_TYPE_I32}) CHECK(value_of(type) == Value::i32);
    CHECK(value_of(GGML_TYPE_I64) == Value::i64);
    CHECK(value_size(Value::f32) == 4);
    CHECK(value_size(Value::i32) == 4);
    CHECK(value_size(Value::i64) == 8);
    Value value;
    CHECK_FALSE(readable(GGML_TYPE_Q8_1, &value)); // ggml itself cannot turn it to floats
}

TEST_CASE("elements of a row") {
    const ggml_context_ptr ctx = new_context();
    const ggml_tensor * t = ggml_new_tensor_4d(ctx.get(), GGML_TYPE_F32, 2, 3, 5, 7);
    CHECK(row_elements(t, -1) == 210);
    CHECK(row_elements(t, 0) == 105);
    CHECK(row_elements(t, 1) == 70);
    CHECK(row_elements(t, 2) == 42);
    CHECK(row_elements(t, 3) == 30);
}

TEST_CASE("rows stand in numpy's order, outermost dimension first") {
    const ggml_context_ptr ctx = new_context();
    ggml_tensor * t = ggml_new_tensor_3d(ctx.get(), GGML_TYPE_F32, 2, 3, 2);
    for (int i = 0; i < 12; i++) static_cast<float *>(t->data)[i] = static_cast<float>(i);
    const auto read = [t](int axis, const std::vector<int32_t> & rows) {
        std::vector<float> out((axis < 0 ? 1 : rows.size()) * static_cast<size_t>(row_elements(t, axis)));
        read_rows(t, t->data, axis, rows, Value::f32, out.data());
        return out;
    };
    CHECK(read(-1, {}) == std::vector<float>{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11});
    CHECK(read(1, {2, 0}) == std::vector<float>{4, 5, 10, 11, 0, 1, 6, 7});
    CHECK(read(0, {1}) == std::vector<float>{1, 3, 5, 7, 9, 11});
    CHECK(read(2, {1}) == std::vector<float>{6, 7, 8, 9, 10, 11});
}

TEST_CASE("contiguous tensors of every type and number of dimensions") {
    std::mt19937 random(2);
    for (const ggml_type type : plain_types) {
        for (int n_dims = 1; n_dims <= GGML_MAX_DIMS; n_dims++) {
            const ggml_context_ptr ctx = new_context();
            const int64_t ne[] = {5, 3, 4, 2};
            ggml_tensor * t = ggml_new_tensor(ctx.get(), type, n_dims, ne);
            fill(t, random);
            check_all(t, random);
        }
    }
    for (const ggml_type type : block_types) {
        for (int n_dims = 1; n_dims <= GGML_MAX_DIMS; n_dims++) {
            const ggml_context_ptr ctx = new_context();
            const int64_t ne[] = {64, 3, 4, 2};
            ggml_tensor * t = ggml_new_tensor(ctx.get(), type, n_dims, ne);
            fill(t, random);
            check_all(t, random);
        }
    }
}

TEST_CASE("infinities and quiet NaNs come through with their bits") {
    const ggml_context_ptr ctx = new_context();
    std::mt19937 random(3);
    for (const ggml_type type : {GGML_TYPE_F32, GGML_TYPE_F16, GGML_TYPE_BF16}) {
        ggml_tensor * t = ggml_new_tensor_2d(ctx.get(), type, 4, 3);
        const float special[] = {INFINITY, -INFINITY, NAN, -0.0f};
        for (int i = 0; i < 12; i++) {
            if (type == GGML_TYPE_F32) static_cast<float *>(t->data)[i] = special[i % 4];
            if (type == GGML_TYPE_F16) static_cast<ggml_fp16_t *>(t->data)[i] = ggml_fp32_to_fp16(special[i % 4]);
            if (type == GGML_TYPE_BF16) static_cast<ggml_bf16_t *>(t->data)[i] = ggml_fp32_to_bf16(special[i % 4]);
        }
        check_all(t, random);
        check_all(ggml_transpose(ctx.get(), t), random);
    }
}

TEST_CASE("views: strided, permuted, transposed, at odd offsets, in any combination") {
    std::mt19937 random(4);
    const auto below = [&random](int64_t n) { return static_cast<int64_t>(random() % static_cast<uint64_t>(n)); };
    for (int round = 0; round < 400; round++) {
        const ggml_context_ptr ctx = new_context();
        const ggml_type type = plain_types[below(std::size(plain_types))];
        ggml_tensor * base =
            ggml_new_tensor_4d(ctx.get(), type, 1 + below(6), 1 + below(5), 1 + below(4), 1 + below(3));
        fill(base, random);
        // A box within the base...
        int64_t ne[4];
        size_t offset = 0;
        for (int d = 0; d < 4; d++) {
            const int64_t start = below(base->ne[d]);
            ne[d] = 1 + below(base->ne[d] - start);
            offset += static_cast<size_t>(start) * base->nb[d];
        }
        ggml_tensor * t =
            ggml_view_4d(ctx.get(), base, ne[0], ne[1], ne[2], ne[3], base->nb[1], base->nb[2], base->nb[3], offset);
        // ... with its dimensions in any order.
        int order[] = {0, 1, 2, 3};
        std::shuffle(std::begin(order), std::end(order), random);
        t = ggml_permute(ctx.get(), t, order[0], order[1], order[2], order[3]);
        check_all(t, random);
    }
}

TEST_CASE("views of quantized tensors keep dimension 0") {
    std::mt19937 random(5);
    for (const ggml_type type : block_types) {
        const ggml_context_ptr ctx = new_context();
        ggml_tensor * base = ggml_new_tensor_4d(ctx.get(), type, 96, 5, 4, 3);
        fill(base, random);
        check_all(ggml_permute(ctx.get(), base, 0, 2, 1, 3), random);
        check_all(ggml_permute(ctx.get(), base, 0, 3, 1, 2), random);
        // 64 of 96 columns, 3 of 5 rows, from the second row on.
        check_all(ggml_view_3d(ctx.get(), base, 64, 3, 4, base->nb[1], base->nb[2], base->nb[1]), random);
    }
}

TEST_CASE("rows of weights are those of a tensor of that type") {
    std::mt19937 random(6);
    std::vector<ggml_type> types(std::begin(block_types), std::end(block_types));
    types.insert(types.end(), {GGML_TYPE_F32, GGML_TYPE_F16, GGML_TYPE_BF16});
    for (const ggml_type type : types) {
        const ggml_context_ptr ctx = new_context();
        ggml_tensor * t = ggml_new_tensor_2d(ctx.get(), type, 256, 5);
        fill(t, random);
        const std::vector<char> expected = expected_rows(t, t->data, 1, {1, 2, 3}, Value::f32);
        std::vector<float> values(3 * 256);
        REQUIRE(expected.size() == values.size() * sizeof(float));
        read_weights(type, static_cast<const char *>(t->data) + t->nb[1], 3, 256, values.data());
        CHECK(std::memcmp(values.data(), expected.data(), expected.size()) == 0);
        CHECK(type_named(ggml_type_name(type)) == type);
    }
    CHECK(type_named("no such type") == GGML_TYPE_COUNT);
}
