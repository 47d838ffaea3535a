#include "tiny_model.h"

#include <new>
#include <random>
#include <stdexcept>
#include <string>

#include "core/axes.h"
#include "ggml-cpu.h"

namespace loom::test {

static ggml_context_ptr new_context() {
    // no_alloc: memory comes from a backend, as in llama.cpp.
    return ggml_context_ptr(ggml_init({256 * ggml_tensor_overhead() + ggml_graph_overhead(), nullptr, true}));
}

TinyModel::TinyModel() : ctx_(new_context()) {
    ggml_context * ctx = ctx_.get();
    const auto weight = [ctx](const std::string & name, int64_t ne0, int64_t ne1) {
        ggml_tensor * t = ggml_new_tensor_2d(ctx, GGML_TYPE_F32, ne0, ne1);
        return ggml_set_name(t, name.c_str());
    };
    token_embd_ = weight("token_embd.weight", n_embd, n_vocab);
    for (int il = 0; il < n_layer; il++) {
        const std::string blk = "blk." + std::to_string(il) + ".";
        Block & b = blocks_[il];
        b.attn_norm = weight(blk + "attn_norm.weight", n_embd, 1);
        b.wq = weight(blk + "attn_q.weight", n_embd, n_embd);
        b.wk = weight(blk + "attn_k.weight", n_embd, n_embd);
        b.wo = weight(blk + "attn_output.weight", n_embd, n_embd);
        b.ffn_norm = weight(blk + "ffn_norm.weight", n_embd, 1);
        b.up = weight(blk + "ffn_up.weight", n_embd, 2 * n_embd);
        b.down = weight(blk + "ffn_down.weight", 2 * n_embd, n_embd);
        b.cache_k = weight("cache_k_l" + std::to_string(il), n_embd, n_cells);
    }
    output_norm_ = weight("output_norm.weight", n_embd, 1);
    output_ = weight("output.weight", n_embd, n_vocab);

    const ggml_backend_ptr cpu(ggml_backend_cpu_init());
    buffer_.reset(ggml_backend_alloc_ctx_tensors(ctx, cpu.get()));
    ggml_backend_buffer_set_usage(buffer_.get(), GGML_BACKEND_BUFFER_USAGE_WEIGHTS);
    std::mt19937 random(1);
    std::uniform_real_distribution<float> uniform(-0.5f, 0.5f);
    for (ggml_tensor * t = ggml_get_first_tensor(ctx); t != nullptr; t = ggml_get_next_tensor(ctx, t)) {
        std::vector<float> values(static_cast<size_t>(ggml_nelements(t)));
        for (float & x : values) x = uniform(random);
        ggml_backend_tensor_set(t, values.data(), 0, ggml_nbytes(t));
    }
}

void TinyModel::clear_cache() const {
    for (const Block & b : blocks_) ggml_backend_tensor_memset(b.cache_k, 0, 0, ggml_nbytes(b.cache_k));
}

TinyGraph TinyModel::build(Batch batch, bool keep, Twist twist) const {
    TinyGraph graph;
    graph.ctx = new_context();
    graph.batch = batch;
    ggml_context * ctx = graph.ctx.get();
    graph.gf = ggml_new_graph(ctx);

    const auto input = [&](ggml_type type, int64_t n, const char * name) {
        ggml_tensor * t = ggml_new_tensor_1d(ctx, type, n);
        ggml_set_input(t);
        return ggml_set_name(t, name);
    };
    graph.tokens = input(GGML_TYPE_I32, batch.n_tokens, "inp_tokens");
    graph.cells = input(GGML_TYPE_I64, batch.n_tokens, "cells");
    graph.out_ids = input(GGML_TYPE_I32, batch.n_outputs, "inp_out_ids");

    const auto named = [](ggml_tensor * t, const char * name, int il) {
        return il < 0 ? ggml_set_name(t, name) : ggml_format_name(t, "%s-%d", name, il);
    };
    constexpr int d_head = n_embd / n_head;
    constexpr size_t nb_head = d_head * sizeof(float), nb_cell = n_embd * sizeof(float);

    ggml_tensor * inpL = named(ggml_get_rows(ctx, token_embd_, graph.tokens), "embd", -1); // [n_embd, token]
    for (int il = 0; il < n_layer; il++) {
        const Block & b = blocks_[il];
        ggml_tensor * cur = named(ggml_rms_norm(ctx, inpL, 1e-5f), "norm", il);
        cur = named(ggml_mul(ctx, cur, b.attn_norm), "attn_norm", il);

        ggml_tensor * q = named(ggml_mul_mat(ctx, b.wq, cur), "Qcur", il); // [n_embd, token]
        q = named(ggml_reshape_3d(ctx, q, d_head, n_head, batch.n_tokens), "Qcur", il);
        q = named(ggml_permute(ctx, q, 0, 2, 1, 3), "q", il); // [d_head, token, head]
        ggml_tensor * k = named(ggml_mul_mat(ctx, b.wk, cur), "Kcur", il);
        ggml_build_forward_expand(graph.gf, named(ggml_set_rows(ctx, b.cache_k, k, graph.cells), "k_store", il));

        // The same cells serve as keys and as values: one cache is enough for a test.
        k = ggml_view_3d(ctx, b.cache_k, d_head, batch.n_kv, n_head, nb_cell, nb_head, 0);
        k = named(k, "k", il);                                       // [d_head, kv, head]
        ggml_tensor * v = named(ggml_transpose(ctx, k), "v", il);    // [kv, d_head, head]
        ggml_tensor * kq = named(ggml_mul_mat(ctx, k, q), "kq", il); // [kv, token, head]
        kq = named(ggml_soft_max(ctx, kq), "kq_soft_max", il);
        cur = ggml_mul_mat(ctx, named(ggml_cont(ctx, v), "v_cont", il), kq); // [d_head, token, head]
        cur = ggml_permute(ctx, named(cur, "kqv", il), 0, 2, 1, 3);
        cur = named(ggml_cont_2d(ctx, cur, n_embd, batch.n_tokens), "kqv_out", il);
        cur = named(ggml_mul_mat(ctx, b.wo, cur), "attn_out", il);
        if (il == n_layer - 1) {
            cur = ggml_get_rows(ctx, cur, graph.out_ids);
            inpL = ggml_get_rows(ctx, inpL, graph.out_ids);
        }
        ggml_tensor * ffn_inp = named(ggml_add(ctx, cur, inpL), "ffn_inp", il);

        cur = named(ggml_rms_norm(ctx, ffn_inp, 1e-5f), "norm", il);
        cur = named(ggml_mul(ctx, cur, b.ffn_norm), "ffn_norm", il);
        cur = named(ggml_mul_mat(ctx, b.up, cur), "ffn_up", il);
        const bool other_op = twist == Twist::other_op && il == 0;
        cur = named(other_op ? ggml_sqr(ctx, cur) : ggml_silu(ctx, cur), "ffn_act", il);
        cur = named(ggml_mul_mat(ctx, b.down, cur), "ffn_down", il);
        const bool other_name = twist == Twist::other_name && il == 0;
        inpL = named(ggml_add(ctx, cur, ffn_inp), other_name ? "layer_out" : "l_out", il);
    }
    ggml_tensor * cur = named(ggml_rms_norm(ctx, inpL, 1e-5f), "norm", -1);
    cur = named(ggml_mul(ctx, cur, output_norm_), "result_norm", -1);
    if (twist != Twist::fewer_nodes) cur = named(ggml_mul_mat(ctx, output_, cur), "result_output", -1);
    if (twist == Twist::more_nodes) cur = named(ggml_scale(ctx, cur, 0.5f), "scaled_output", -1);
    ggml_set_output(cur);
    ggml_build_forward_expand(graph.gf, cur);

    if (keep) {
        for (int i = 0; i < ggml_graph_n_nodes(graph.gf); i++) ggml_set_output(ggml_graph_node(graph.gf, i));
        // Inputs too, or nodes would be given their memory once they are used up.
        for (ggml_tensor * t : {graph.tokens, graph.cells, graph.out_ids}) ggml_set_output(t);
    }
    return graph;
}

Engine::Engine(Tapper * tapper, int n_backends)
    : Engine(tapper != nullptr ? Tapper::on_eval : nullptr, tapper, n_backends) {}

Engine::Engine(ggml_backend_sched_eval_callback callback, void * user_data, int n_backends) {
    // Two backends whose buffers are of one type would be taken for one: the second gets the type of mapped memory,
    // which is the CPU's too.
    alignas(64) static char somewhere[64];
    const ggml_backend_buffer_ptr mapped(ggml_backend_cpu_buffer_from_ptr(somewhere, sizeof(somewhere)));
    ggml_backend_buffer_type_t bufts[] = {ggml_backend_cpu_buffer_type(), ggml_backend_buffer_get_type(mapped.get())};
    std::vector<ggml_backend_t> raw;
    for (int i = 0; i < n_backends; i++) {
        backends_.emplace_back(ggml_backend_cpu_init());
        ggml_backend_cpu_set_n_threads(backends_.back().get(), 1);
        raw.push_back(backends_.back().get());
    }
    sched_.reset(ggml_backend_sched_new(raw.data(), bufts, n_backends, 256, false, false));
    if (callback != nullptr) ggml_backend_sched_set_eval_callback(sched_.get(), callback, user_data);
}

void Engine::compute(const TinyGraph & graph, int seed) {
    std::vector<int32_t> tokens, out_ids;
    std::vector<int64_t> cells;
    for (int i = 0; i < graph.batch.n_tokens; i++) {
        tokens.push_back((seed + 7 * i) % n_vocab);
        cells.push_back(i);
    }
    for (int i = 0; i < graph.batch.n_outputs; i++) out_ids.push_back(graph.batch.n_tokens - graph.batch.n_outputs + i);
    ggml_backend_tensor_set(graph.tokens, tokens.data(), 0, ggml_nbytes(graph.tokens));
    ggml_backend_tensor_set(graph.cells, cells.data(), 0, ggml_nbytes(graph.cells));
    if (!out_ids.empty()) ggml_backend_tensor_set(graph.out_ids, out_ids.data(), 0, ggml_nbytes(graph.out_ids));
    compute(graph.gf);
}

void Engine::compute(ggml_cgraph * gf) {
    if (ggml_backend_sched_graph_compute(sched_.get(), gf) != GGML_STATUS_SUCCESS)
        throw std::runtime_error("ggml could not compute the graph");
}

void Engine::prepare(ggml_cgraph * gf) {
    ggml_backend_sched_reset(sched_.get());
    // Half of the nodes to each backend, as layers are when a model is spread over devices.
    const int n_nodes = ggml_graph_n_nodes(gf);
    for (int i = 0; backends_.size() > 1 && i < n_nodes; i++)
        ggml_backend_sched_set_tensor_backend(sched_.get(), ggml_graph_node(gf, i),
                                              backends_[i < n_nodes / 2 ? 0 : 1].get());
    if (!ggml_backend_sched_alloc_graph(sched_.get(), gf)) throw std::bad_alloc();
}

void Engine::run(const TinyModel & model, const TinyGraph & graph, int seed) {
    model.clear_cache();
    prepare(graph.gf);
    compute(graph, seed);
}

Graph record(const ggml_cgraph * gf) {
    GraphRecorder recorder;
    auto * nodes = const_cast<ggml_cgraph *>(gf); // ggml's accessors are not const
    for (int i = 0; i < ggml_graph_n_nodes(nodes); i++) recorder.add(ggml_graph_node(nodes, i));
    return recorder.finish();
}

Graph list(const TinyModel & model, Batch batch) {
    Tapper tapper;
    Engine engine(&tapper);
    tapper.list();
    engine.run(model, model.build(batch), 0);
    return tapper.listed();
}

std::vector<Tap> taps_of_everything(const TinyModel & model, const Graph & graph) {
    // The sizes share no multiples with each other or with the model's own.
    const Graph a = list(model, {11, 3, 16}), b = list(model, {13, 5, 16}), c = list(model, {11, 3, 24});
    const std::vector<Axes> axes = find_axes({{&a, 11, 3, 0}, {&b, 13, 5, 0}, {&c, 11, 3, 1}});
    std::vector<Tap> taps;
    for (size_t i = 0; i < graph.nodes.size(); i++) {
        Tap tap;
        tap.ordinal = static_cast<int>(i);
        tap.axis = row_axis(axes[i]);
        if (tap.axis >= 0)
            tap.kind = axes[i][static_cast<size_t>(tap.axis)] == Axis::token ? RowKind::token : RowKind::output;
        for (size_t d = 0; d < GGML_MAX_DIMS; d++)
            if (a.nodes[i].ne[d] > 1) tap.n_dims = static_cast<int>(d) + 1;
        taps.push_back(tap);
    }
    return taps;
}

} // namespace loom::test
