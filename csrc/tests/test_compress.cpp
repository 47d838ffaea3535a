#include <doctest/doctest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <random>

#include "capture.h"
#include "core/compress.h"
#include "ggml.h"

using namespace loom;
using namespace loom::test;

static const float inf = std::numeric_limits<float>::infinity();
static const float nan_ = std::numeric_limits<float>::quiet_NaN();

// Through allocations of the exact size, for the sanitizer's sake.
static std::vector<float> through_float16(const std::vector<float> & from, size_t saturated) {
    const std::unique_ptr<uint16_t[]> to(new uint16_t[from.size()]);
    CHECK(to_float16(from.data(), from.size(), to.get()) == saturated);
    std::vector<float> back(from.size());
    from_float16(to.get(), from.size(), back.data());
    return back;
}

struct Int8 {
    std::vector<int8_t> q;
    std::vector<float> scales, back;
};

static Int8 through_int8(const std::vector<float> & from, size_t block) {
    const size_t n = from.size(), n_scales = n_blocks(n, block);
    const std::unique_ptr<int8_t[]> q(new int8_t[n]);
    const std::unique_ptr<float[]> scales(new float[n_scales]);
    to_int8(from.data(), n, block, q.get(), scales.get());
    Int8 result{{q.get(), q.get() + n}, {scales.get(), scales.get() + n_scales}, std::vector<float>(n)};
    from_int8(result.q.data(), result.scales.data(), n, block, result.back.data());
    return result;
}

TEST_CASE("float16: what it can say exactly comes back, halves round to even") {
    const std::vector<float> exact{0, -0.0f, 1, -2.5f, 1024, 65504, -65504, 6.103515625e-5f, inf, -inf};
    const std::vector<float> back = through_float16(exact, 0);
    CHECK(std::memcmp(back.data(), exact.data(), exact.size() * sizeof(float)) == 0);
    CHECK(through_float16({2049, 2051}, 0) == std::vector<float>{2048, 2052});
    CHECK(std::isnan(through_float16({nan_}, 0)[0]));
    CHECK(through_float16({}, 0).empty());
}

TEST_CASE("float16: what is finite stays finite, and what was cut is counted") {
    CHECK(through_float16({65505, -1e30f, 3.4e38f, 1}, 3) == std::vector<float>{65504, -65504, 65504, 1});
}

TEST_CASE("float16: lengths around the pieces it works in") {
    std::mt19937 random(8);
    std::normal_distribution<float> normal;
    for (const size_t n : {1, 31, 255, 256, 257, 511, 512, 1000}) {
        std::vector<float> from(n), expected(n);
        for (size_t i = 0; i < n; i++) {
            from[i] = normal(random);
            expected[i] = ggml_fp16_to_fp32(ggml_fp32_to_fp16(from[i]));
        }
        CHECK(through_float16(from, 0) == expected);
    }
}

TEST_CASE("int8: number of blocks") {
    CHECK(n_blocks(64, 0) == 1);
    CHECK(n_blocks(64, 32) == 2);
    CHECK(n_blocks(65, 32) == 3);
    CHECK(n_blocks(1, 32) == 1);
}

TEST_CASE("int8: the largest is 127, halves round to even") {
    const Int8 x = through_int8({127, -127, 0.5f, 1.5f, -2.5f, 0}, 0);
    CHECK(x.scales == std::vector<float>{1});
    CHECK(x.q == std::vector<int8_t>{127, -127, 0, 2, -2, 0});
    CHECK(x.back == std::vector<float>{127, -127, 0, 2, -2, 0});
}

TEST_CASE("int8: no value is further off than half a step") {
    std::mt19937 random(9);
    for (const float size : {1e-44f, 1e-38f, 1e-3f, 1.0f, 1e30f, 3e38f}) {
        std::uniform_real_distribution<float> uniform(-1, 1);
        for (const size_t n : {1, 7, 32, 100}) {
            for (const size_t block : {0, 1, 32, 64, 200}) {
                std::vector<float> from(n);
                for (float & value : from) value = uniform(random) * size;
                const Int8 x = through_int8(from, block);
                REQUIRE(x.scales.size() == n_blocks(n, block));
                for (size_t i = 0; i < n; i++) {
                    const double scale = x.scales[block == 0 ? 0 : i / block];
                    const double error = std::fabs(static_cast<double>(from[i]) - scale * x.q[i]);
                    INFO("size " << size << ", n " << n << ", block " << block << ", value " << from[i]);
                    // Near the smallest float the scale itself has few bits.
                    CHECK(error <= 0.5 * scale * (1 + 1e-5) + 127.5 * std::numeric_limits<float>::denorm_min());
                    CHECK(std::isfinite(x.back[i]));
                }
            }
        }
    }
}

TEST_CASE("int8: a block that has NaN or an infinity is NaN, the others are not touched by it") {
    for (const float bad : {nan_, inf, -inf}) {
        const Int8 x = through_int8({1, 2, bad, 4, 5}, 2);
        CHECK(x.back[0] == doctest::Approx(1).epsilon(0.01));
        CHECK(x.back[1] == 2);
        CHECK(std::isnan(x.back[2]));
        CHECK(std::isnan(x.back[3]));
        CHECK(x.back[4] == 5);
    }
    const Int8 zeros = through_int8({0, -0.0f, 0}, 0);
    CHECK(zeros.scales == std::vector<float>{0});
    CHECK(zeros.back == std::vector<float>{0, 0, 0});
}

TEST_CASE("the tapper compresses rows, and nothing but rows") {
    const TinyModel model;
    const Batch batch{4, 4, 16};
    const Graph listed = list(model, batch);
    const std::vector<Tap> taps = taps_of_everything(model, listed);
    const auto plan = std::make_shared<Plan>(listed, taps);
    const Reference reference(model, batch, 2);
    for (const InPlace in_place : {InPlace::never, InPlace::host}) {
        for (const Compression compression : {Compression::float16, Compression::int8}) {
            Tapper tapper(in_place);
            Engine engine(&tapper);
            Pass pass = all_outputs(batch);
            pass.compression = compression;
            pass.scale_block = 3;
            const TinyGraph graph = model.build(batch);
            tapper.tap(plan, pass);
            engine.run(model, graph, 2);
            const Outcome outcome = tapper.finish();
            REQUIRE(outcome.status == Status::ok);
            for (size_t i = 0; i < taps.size(); i++) {
                INFO("node " << listed.nodes[i].key.name);
                const Array & array = outcome.arrays[i];
                CHECK(array.shape == reference.shape(taps[i], pass));
                const std::vector<char> bytes = reference.rows(taps[i], pass);
                std::vector<float> rows(bytes.size() / sizeof(float));
                std::memcpy(rows.data(), bytes.data(), bytes.size());
                if (taps[i].kind == RowKind::whole) {
                    CHECK(array.value == Value::f32);
                    CHECK(std::memcmp(array.data.get(), bytes.data(), bytes.size()) == 0);
                } else if (compression == Compression::float16) {
                    REQUIRE(array.value == Value::f16);
                    std::vector<uint16_t> expected(rows.size());
                    to_float16(rows.data(), rows.size(), expected.data());
                    CHECK(std::memcmp(array.data.get(), expected.data(), 2 * expected.size()) == 0);
                } else {
                    REQUIRE(array.value == Value::i8);
                    const size_t n = rows.size() / pass.token_rows.size();
                    std::vector<int8_t> expected(rows.size());
                    std::vector<float> scales(pass.token_rows.size() * n_blocks(n, 3));
                    for (size_t j = 0; j < pass.token_rows.size(); j++)
                        to_int8(rows.data() + j * n, n, 3, expected.data() + j * n, scales.data() + j * n_blocks(n, 3));
                    CHECK(std::memcmp(array.data.get(), expected.data(), expected.size()) == 0);
                    CHECK(array.scales == scales);
                }
            }
        }
    }
}
