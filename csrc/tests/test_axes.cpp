#include <doctest/doctest.h>

#include "core/axes.h"
#include "tiny_model.h"

using namespace loom;
using namespace loom::test;

// A graph of one node per entry: name and ne.
static Graph sizes(const std::vector<std::pair<std::string, std::array<int64_t, 4>>> & nodes) {
    Graph graph;
    for (const auto & [name, ne] : nodes) {
        Node node;
        node.key.name = name;
        node.key.occurrence = graph.find(name, -1) + 1 > 0 ? 1 : 0; // two of a name are enough here
        node.ne = ne;
        graph.nodes.push_back(node);
    }
    return graph;
}

static const Axis F = Axis::fixed, T = Axis::token, O = Axis::output, K = Axis::kv, X = Axis::other;

TEST_CASE("axes of a real graph") {
    const TinyModel model;
    const Graph a = list(model, {6, 3, 16}), b = list(model, {8, 2, 16}), c = list(model, {6, 3, 24});
    const std::vector<Axes> axes = find_axes({{&a, 6, 3, 0}, {&b, 8, 2, 0}, {&c, 6, 3, 1}});
    REQUIRE(axes.size() == a.nodes.size());
    const auto of = [&](const char * name, int occurrence = -1) {
        return axes[static_cast<size_t>(a.find(name, occurrence))];
    };
    CHECK(of("embd") == Axes{F, T, F, F});
    CHECK(of("l_out-0") == Axes{F, T, F, F});
    CHECK(of("Qcur-0", 0) == Axes{F, T, F, F});
    CHECK(of("Qcur-0", 1) == Axes{F, F, T, F});
    CHECK(of("q-0") == Axes{F, T, F, F});
    CHECK(of("k-0") == Axes{F, K, F, F});
    CHECK(of("v-0") == Axes{K, F, F, F});
    CHECK(of("k_store-0") == Axes{F, F, F, F});
    CHECK(of("kq_soft_max-0") == Axes{K, T, F, F});
    CHECK(of("kqv_out-1") == Axes{F, T, F, F});
    CHECK(of("ffn_inp-1") == Axes{F, O, F, F});
    CHECK(of("l_out-1") == Axes{F, O, F, F});
    CHECK(of("result_norm") == Axes{F, O, F, F});

    CHECK(row_axis(of("l_out-0")) == 1);
    CHECK(row_axis(of("Qcur-0", 1)) == 2);
    CHECK(row_axis(of("kq_soft_max-0")) == 1);
    CHECK(row_axis(of("l_out-1")) == 1);
    CHECK(row_axis(of("k-0")) == -1);
    CHECK(row_axis(of("k_store-0")) == -1);
}

TEST_CASE("multiples of the number of tokens are not tokens") {
    const Graph a = sizes({{"twice", {8, 10, 1, 1}}, {"padded", {64, 5, 1, 1}}, {"plus_one", {6, 5, 1, 1}}});
    const Graph b = sizes({{"twice", {8, 14, 1, 1}}, {"padded", {64, 7, 1, 1}}, {"plus_one", {8, 7, 1, 1}}});
    const std::vector<Axes> axes = find_axes({{&a, 5, 1, 0}, {&b, 7, 2, 0}});
    CHECK(axes[0] == Axes{F, X, F, F});
    CHECK(axes[1] == Axes{F, T, F, F});
    CHECK(axes[2] == Axes{X, T, F, F});
    CHECK(row_axis(axes[0]) == -1);
    CHECK(row_axis(axes[2]) == -1);
}

TEST_CASE("sizes that are equal by accident in one listing do not mislead") {
    // n_embd = n_head = n_tokens = n_outputs = n_kv = 4 in the first listing.
    const Graph a = sizes({{"layer", {4, 4, 1, 1}}, {"kq", {4, 4, 4, 1}}, {"last", {4, 4, 1, 1}}});
    const Graph b = sizes({{"layer", {4, 6, 1, 1}}, {"kq", {4, 6, 4, 1}}, {"last", {4, 2, 1, 1}}});
    const Graph c = sizes({{"layer", {4, 4, 1, 1}}, {"kq", {8, 4, 4, 1}}, {"last", {4, 4, 1, 1}}});
    const std::vector<Axes> axes = find_axes({{&a, 4, 4, 0}, {&b, 6, 2, 0}, {&c, 4, 4, 1}});
    CHECK(axes[0] == Axes{F, T, F, F});
    CHECK(axes[1] == Axes{K, T, F, F});
    CHECK(axes[2] == Axes{F, O, F, F});
}

TEST_CASE("sizes that vary among listings of equal fill are not cache cells") {
    const Graph a = sizes({{"n", {16, 1, 1, 1}}}), b = sizes({{"n", {20, 1, 1, 1}}}), c = sizes({{"n", {24, 1, 1, 1}}});
    CHECK(find_axes({{&a, 5, 1, 0}, {&b, 7, 2, 0}, {&c, 5, 1, 1}})[0][0] == X);
    CHECK(find_axes({{&a, 5, 1, 0}, {&a, 7, 2, 0}, {&c, 5, 1, 1}})[0][0] == K);
}

TEST_CASE("a node that one listing lacks has no rows") {
    const Graph a = sizes({{"both", {8, 5, 1, 1}}, {"only_first", {8, 5, 1, 1}}, {"scalar", {1, 1, 1, 1}}});
    const Graph b = sizes({{"both", {8, 7, 1, 1}}});
    const std::vector<Axes> axes = find_axes({{&a, 5, 1, 0}, {&b, 7, 2, 0}});
    CHECK(axes[0] == Axes{F, T, F, F});
    CHECK(axes[1] == Axes{X, X, F, F});
    CHECK(axes[2] == Axes{F, F, F, F});
    CHECK(row_axis(axes[1]) == -1);
    CHECK(row_axis(axes[2]) == -1);
}

TEST_CASE("nodes are matched by name and occurrence where the order differs") {
    const Graph a = sizes({{"x", {8, 5, 1, 1}}, {"y", {3, 8, 5, 1}}, {"x", {2, 8, 5, 1}}});
    const Graph b = sizes({{"new", {9, 9, 9, 1}}, {"y", {3, 8, 7, 1}}, {"x", {8, 7, 1, 1}}, {"x", {2, 8, 7, 1}}});
    const std::vector<Axes> axes = find_axes({{&a, 5, 1, 0}, {&b, 7, 2, 0}});
    CHECK(axes[0] == Axes{F, T, F, F});
    CHECK(axes[1] == Axes{F, F, T, F});
    CHECK(axes[2] == Axes{F, F, T, F});
}

TEST_CASE("one listing alone tells nothing: all is fixed") {
    const Graph a = sizes({{"x", {8, 5, 1, 1}}});
    CHECK(find_axes({{&a, 5, 1, 0}})[0] == Axes{F, F, F, F});
}

TEST_CASE("row_axis wants one token axis, or one output axis, and nothing unknown") {
    CHECK(row_axis({T, F, F, F}) == 0);
    CHECK(row_axis({K, T, F, F}) == 1);
    CHECK(row_axis({F, F, O, F}) == 2);
    CHECK(row_axis({F, F, F, T}) == 3);
    CHECK(row_axis({F, F, F, F}) == -1);
    CHECK(row_axis({T, T, F, F}) == -1);
    CHECK(row_axis({O, O, F, F}) == -1);
    CHECK(row_axis({T, O, F, F}) == -1);
    CHECK(row_axis({F, T, X, F}) == -1);
    CHECK(row_axis({K, K, F, F}) == -1);
}
