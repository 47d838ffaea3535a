// The tapper sits in ggml's graph-evaluation callback and reads the wanted nodes of one decode.
//
// Life of a decode: list(), skip() or tap() arms it, llama_decode runs, finish() tells what came. Unarmed it answers
// "not wanted" to everything. One tapper serves one llama_context and must outlive it; it is not thread-safe, the
// owner of the context serialises its calls.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "core/compress.h"
#include "core/download.h"
#include "core/graph.h"
#include "core/reader.h"
#include "core/redirects.h"

namespace loom {

// Along which rows of the batch a node is cut.
enum class RowKind : uint8_t {
    token,  // one row per token of the batch
    output, // one row per token whose logits were asked for
    whole,  // no rows: the tensor as it is
};

struct Tap {
    int ordinal = 0; // in the graph of the plan
    RowKind kind = RowKind::whole;
    int axis = -1;  // the dimension that has the rows, in ggml's order; -1 for whole
    int n_dims = 1; // dimensions of the node in any batch (a batch of one token hides some)
};

// What to read from graphs of one shape. The operations of all nodes stand beside the taps, so that following the
// graph costs one integer comparison a node; names are compared for tapped nodes only.
class Plan {
public:
    // Throws std::invalid_argument where a tap does not fit the graph or its type cannot be read.
    Plan(const Graph & graph, std::vector<Tap> taps);

private:
    friend class Tapper;
    struct Wanted {
        Tap tap;
        std::string name;
        int occurrence;
        int root; // the node in whose memory it can be left until the decode is over; -1: it must be copied at once
    };
    std::vector<ggml_op> ops_;
    std::vector<bool> roots_;  // by ordinal: some tap has this root
    std::vector<Wanted> taps_; // by ordinal
    // Memory of the roots: bytes that do not depend on the batch, bytes per token and bytes per output.
    size_t fixed_bytes_ = 0, token_bytes_ = 0, output_bytes_ = 0;
};

// Where wanted nodes may be left in place, to be read after the decode. Elsewhere the graph is cut behind them.
enum class InPlace : uint8_t {
    never,
    host,   // nodes in the host's own memory
    always, // nodes in any memory
};

// One batch, as far as the tapper must know it.
struct Pass {
    int64_t n_tokens = 0;
    int64_t n_outputs = 0;
    std::vector<int32_t> token_rows;  // wanted rows, as indices into the batch
    std::vector<int32_t> output_rows; // the same rows as indices among the outputs; empty where some is no output
    // Compute nothing after the last tap: the decode's logits are then garbage, and a second graph of the same batch
    // goes unnoticed.
    bool stop_early = false;
    // How rows of floats are delivered; integers and nodes without rows come as they are.
    Compression compression = Compression::none;
    size_t scale_block = 0; // int8: values per scale, 0 for a row each
};

// Numbers read from one node: rows first, then the node's other dimensions, outermost first.
struct Array {
    std::vector<int64_t> shape;
    Value value = Value::f32;
    std::unique_ptr<char[]> data;
    std::vector<float> scales; // int8: by row, then by block
    size_t saturated = 0;      // float16: values that were beyond its range
};

enum class Status : uint8_t {
    ok,
    graph_changed,  // the graph is not the plan's: list it, plan again, decode again
    wrong_rows,     // a node does not have the rows that the batch gives it
    several_passes, // llama.cpp cut the batch into several graphs
    out_of_memory,
};

struct Outcome {
    Status status = Status::ok;
    std::string detail;        // for people: which node, what was found
    std::vector<Array> arrays; // one per tap, in the plan's order; empty unless ok
};

class Tapper {
public:
    explicit Tapper(InPlace in_place = InPlace::host) : in_place_(in_place) {}

    void list();                                           // record the next decode's graph
    void skip();                                           // let the next decode compute next to nothing
    void tap(std::shared_ptr<const Plan> plan, Pass pass); // read these nodes in the next decode
    Outcome finish();                                      // after tap() and the decode, before the next: disarms
    Graph listed();                                        // after list(): disarms
    void off();

    size_t arena_size() const { return redirects_.size(); } // memory behind the nodes left in place, in bytes

    // For llama_context_params.cb_eval, with the tapper as user data. Called on the thread in llama_decode, without
    // Python's lock: touches no Python object, throws nothing.
    static bool on_eval(ggml_tensor * t, bool ask, void * user_data);

private:
    enum class Mode : uint8_t { off, list, skip, tap };

    bool ask_tap(ggml_tensor * t);
    bool read_tap(const ggml_tensor * t);
    bool redirect(size_t ordinal, ggml_tensor * t);
    bool prepare(const ggml_tensor * t, const Plan::Wanted & wanted, Array * array);
    const std::vector<int32_t> & rows_of(const Tap & tap) const;
    void read(const ggml_tensor * t, const void * data, size_t index);
    void compress(const ggml_tensor * t, const void * data, const Tap & tap, Array * array);
    void fail(Status status, std::string detail);

    const InPlace in_place_;
    Mode mode_ = Mode::off;
    GraphRecorder recorder_;
    std::shared_ptr<const Plan> plan_;
    Pass pass_;
    size_t cursor_ = 0;   // nodes asked about in this decode
    size_t next_tap_ = 0; // taps met in this decode
    bool leave_ = false;  // leave nodes in place in this decode
    bool stopped_ = false;
    Outcome outcome_;
    std::vector<const ggml_tensor *> left_; // by tap: the node left in place, or null
    Redirects redirects_;
    Download download_;
    std::vector<float> row_; // one row on its way to its compressed form
};

} // namespace loom
