#include <doctest/doctest.h>

#include "core/structure.h"
#include "tiny_model.h"

using namespace loom;
using namespace loom::test;

// Beginnings of graphs, as the builders of the various architectures make them.
class Sketch {
public:
    Sketch() : ctx_(ggml_init({64 * ggml_tensor_overhead() + ggml_graph_overhead(), nullptr, true})) {
        gf_ = ggml_new_graph(ctx_.get());
    }
    ggml_context * ctx() const { return ctx_.get(); }
    ggml_tensor * leaf(const char * name, int64_t ne0, int64_t ne1 = 1) const {
        return ggml_set_name(ggml_new_tensor_2d(ctx(), GGML_TYPE_F32, ne0, ne1), name);
    }
    ggml_tensor * tokens() const { return ggml_set_name(ggml_new_tensor_1d(ctx(), GGML_TYPE_I32, 3), "inp_tokens"); }
    ggml_tensor * embedding(const char * name) const {
        return ggml_set_name(ggml_get_rows(ctx(), leaf("token_embd.weight", 8, 16), tokens()), name);
    }
    ggml_tensor * project(ggml_tensor * x, const char * weight = "blk.0.attn_q.weight") const {
        return ggml_mul_mat(ctx(), leaf(weight, 8, 8), x);
    }
    ggml_tensor * scale(ggml_tensor * x, const char * weight = "blk.0.attn_norm.weight") const {
        return ggml_mul(ctx(), x, leaf(weight, 8));
    }
    std::string embedding_of(ggml_tensor * end) const {
        ggml_build_forward_expand(gf_, end);
        const Graph graph = record(gf_);
        const int ordinal = find_hidden_states(graph, 1).embedding;
        return ordinal < 0 ? "" : graph.nodes[static_cast<size_t>(ordinal)].key.name;
    }

private:
    ggml_context_ptr ctx_;
    ggml_cgraph * gf_;
};

TEST_CASE("hidden states of a whole model") {
    const TinyModel model;
    const Graph graph = record(model.build({}).gf);
    const HiddenStates found = find_hidden_states(graph, n_layer);
    CHECK(found.embedding == graph.find("embd", -1));
    CHECK(found.layers == std::vector<int>{graph.find("l_out-0", -1), graph.find("l_out-1", -1)});
    CHECK(found.final == graph.find("result_norm", -1));
}

TEST_CASE("layers and final that the graph does not name are absent") {
    const TinyModel model;
    const Graph renamed = record(model.build({}, false, Twist::other_name).gf);
    const HiddenStates found = find_hidden_states(renamed, n_layer + 1);
    CHECK(found.layers == std::vector<int>{-1, renamed.find("l_out-1", -1), -1});

    const HiddenStates none = find_hidden_states(Graph{}, 2);
    CHECK(none.embedding == -1);
    CHECK(none.layers == std::vector<int>{-1, -1});
    CHECK(none.final == -1);
    CHECK(find_hidden_states(Graph{}, 0).layers.empty());
}

TEST_CASE("pre-norm: the embedding is what the first norm reads") {
    const Sketch s;
    CHECK(s.embedding_of(s.project(s.scale(ggml_rms_norm(s.ctx(), s.embedding("embd"), 1e-5f)))) == "embd");
    const Sketch layer_norm;
    CHECK(layer_norm.embedding_of(layer_norm.scale(ggml_norm(layer_norm.ctx(), layer_norm.embedding("inpL"), 1e-5f))) ==
          "inpL");
}

TEST_CASE("post-norm: the embedding is what the first projection reads") {
    const Sketch s;
    CHECK(s.embedding_of(s.project(s.embedding("embd"))) == "embd");
}

TEST_CASE("norm without weights: the embedding is what it reads") {
    const Sketch s;
    CHECK(s.embedding_of(s.project(ggml_norm(s.ctx(), s.embedding("embd"), 1e-5f))) == "embd");
}

TEST_CASE("a scaled embedding is the one that the model goes on with") {
    const Sketch s;
    ggml_tensor * scaled = ggml_set_name(ggml_scale(s.ctx(), s.embedding("embd"), 3.0f), "inp_scaled");
    CHECK(s.embedding_of(s.scale(ggml_rms_norm(s.ctx(), scaled, 1e-5f))) == "inp_scaled");
}

TEST_CASE("position embeddings added before block 0 belong to the embedding") {
    const Sketch s;
    ggml_tensor * sum = ggml_set_name(ggml_add(s.ctx(), s.embedding("tok"), s.embedding("pos")), "inpL");
    CHECK(s.embedding_of(s.scale(ggml_norm(s.ctx(), sum, 1e-5f))) == "inpL");
}

TEST_CASE("a norm of the embedding that is not block 0's belongs to the embedding") {
    const Sketch s;
    ggml_tensor * normed = s.scale(ggml_norm(s.ctx(), s.embedding("tok"), 1e-5f), "token_embd_norm.weight");
    CHECK(s.embedding_of(s.project(ggml_set_name(normed, "inp_norm"))) == "inp_norm");
}

TEST_CASE("reshaping in between hides nothing") {
    const Sketch s;
    ggml_tensor * shaped = ggml_reshape_3d(s.ctx(), s.embedding("embd"), 8, 1, 3);
    ggml_tensor * normed = ggml_rms_norm(s.ctx(), ggml_cont(s.ctx(), shaped), 1e-5f);
    CHECK(s.embedding_of(s.scale(ggml_reshape_2d(s.ctx(), normed, 8, 3))) == "embd");
}

TEST_CASE("no embedding where the graph is not understood") {
    const Sketch other_block;
    CHECK(other_block.embedding_of(other_block.project(other_block.embedding("embd"), "blk.1.attn_q.weight")).empty());
    const Sketch no_block;
    CHECK(no_block.embedding_of(no_block.embedding("embd")).empty());
    // Block 0 reads an input of the batch, not a node.
    const Sketch from_leaf;
    CHECK(from_leaf.embedding_of(from_leaf.project(from_leaf.leaf("inp_embd", 8, 3))).empty());
    const Sketch view_of_leaf;
    CHECK(view_of_leaf
              .embedding_of(
                  view_of_leaf.project(ggml_reshape_2d(view_of_leaf.ctx(), view_of_leaf.leaf("inp_embd", 24), 8, 3)))
              .empty());
    // Of ten blocks, blk.0 must not be taken for blk.01 or blk.10.
    const Sketch tenth;
    CHECK(tenth.embedding_of(tenth.project(tenth.embedding("embd"), "blk.10.attn_q.weight")).empty());
}
