// A two-block transformer of a few hundred weights whose graph has what makes real graphs hard: names that
// repeat, a cache written and viewed, permuted heads, attention along cache cells, and a last block that
// keeps output rows only.
#pragma once

#include <cstdint>
#include <vector>

#include "core/graph.h"
#include "core/tapper.h"
#include "ggml-cpp.h"

namespace loom::test {

// ne in ggml's order throughout: layers are [n_embd, token], attention weights [kv, token, head].
constexpr int n_embd = 8;
constexpr int n_head = 2;
constexpr int n_layer = 2;
constexpr int n_vocab = 24;
constexpr int n_cells = 32;

struct Batch {
    int n_tokens = 5;
    int n_outputs = 2; // the last ones of the batch
    int n_kv = 16;     // cells of the cache that attention looks at
};

// Ways for a graph to be not quite the one that was listed.
enum class Twist { none, other_op, other_name, fewer_nodes, more_nodes };

struct TinyGraph {
    ggml_context_ptr ctx;
    ggml_cgraph * gf = nullptr;
    Batch batch;
    ggml_tensor * tokens = nullptr;
    ggml_tensor * cells = nullptr;
    ggml_tensor * out_ids = nullptr;

    ggml_tensor * node(const char * name) const { return ggml_graph_get_tensor(gf, name); }
};

// Weights and cache, the same in every instance.
class TinyModel {
public:
    TinyModel();

    // With `keep` every node keeps its memory to the end of the graph, so that it can be read there.
    TinyGraph build(Batch batch, bool keep = false, Twist twist = Twist::none) const;

    void clear_cache() const; // so that equal batches give equal numbers

private:
    struct Block {
        ggml_tensor *attn_norm, *wq, *wk, *wo, *ffn_norm, *up, *down, *cache_k;
    };
    ggml_context_ptr ctx_;
    ggml_backend_buffer_ptr buffer_;
    ggml_tensor *token_embd_, *output_norm_, *output_;
    Block blocks_[n_layer];
};

// A scheduler over CPU backends; with two of them the graph is cut in two splits.
class Engine {
public:
    // One backend or two. Without a tapper nobody is called back.
    explicit Engine(Tapper * tapper, int n_backends = 1);
    Engine(ggml_backend_sched_eval_callback callback, void * user_data, int n_backends = 1);

    void compute(const TinyGraph & graph, int seed); // tokens follow from the seed; may be repeated
    void run(const TinyModel & model, const TinyGraph & graph, int seed); // all of it, from an empty cache
    void prepare(ggml_cgraph * gf);                                       // any graph
    void compute(ggml_cgraph * gf);                                       // inputs as they are
    int n_splits() const { return ggml_backend_sched_get_n_splits(sched_.get()); }

private:
    std::vector<ggml_backend_ptr> backends_; // outlive the scheduler
    ggml_backend_sched_ptr sched_;
};

// What GraphRecorder makes of a graph, without computing it.
Graph record(const ggml_cgraph * gf);

// The graph of a batch as the tapper lists it during a decode.
Graph list(const TinyModel & model, Batch batch);

// A tap for every node, along the rows that comparing listings of several batches finds.
std::vector<Tap> taps_of_everything(const TinyModel & model, const Graph & graph);

} // namespace loom::test
