#include "core/tapper.h"

#include <algorithm>
#include <cstring>
#include <new>
#include <stdexcept>
#include <utility>

#include "ggml-backend.h"

namespace loom {

// Nodes that cannot be left in place until the decode is over.
// - A later node writes into their memory: what they computed is gone by then.
// - They have views, and the graph runs on more than the host: a view may be an input of a later split, which the
//   scheduler copies before it asks about the view, when that still has the old address.
static std::vector<bool> not_to_be_left(const Graph & graph) {
    std::vector<bool> result(graph.nodes.size(), false);
    const bool all_host =
        std::all_of(graph.nodes.begin(), graph.nodes.end(), [](const Node & node) { return node.host; });
    for (const Node & node : graph.nodes) {
        if (!node.view || node.root < 0) continue;
        const bool looks_only = node.op == GGML_OP_VIEW || node.op == GGML_OP_RESHAPE || node.op == GGML_OP_PERMUTE ||
                                node.op == GGML_OP_TRANSPOSE;
        if (!looks_only || !all_host) result[static_cast<size_t>(node.root)] = true;
    }
    return result;
}

Plan::Plan(const Graph & graph, std::vector<Tap> taps) : roots_(graph.nodes.size(), false) {
    ops_.reserve(graph.nodes.size());
    for (const Node & node : graph.nodes) ops_.push_back(node.op);
    const std::vector<bool> lost = not_to_be_left(graph);

    for (const Tap & tap : taps) {
        if (tap.ordinal < 0 || static_cast<size_t>(tap.ordinal) >= graph.nodes.size())
            throw std::invalid_argument("the graph has no node number " + std::to_string(tap.ordinal));
        if (!taps_.empty() && tap.ordinal <= taps_.back().tap.ordinal)
            throw std::invalid_argument("taps must stand in graph order, each once");
        const Node & node = graph.nodes[static_cast<size_t>(tap.ordinal)];
        const bool whole = tap.kind == RowKind::whole;
        if (whole != (tap.axis < 0) || tap.axis >= GGML_MAX_DIMS || tap.n_dims < 1 || tap.n_dims > GGML_MAX_DIMS)
            throw std::invalid_argument("node " + node.key.name + ": impossible axes");
        if (!node.computed)
            throw std::invalid_argument("node " + node.key.name +
                                        " is in the graph, but not computed: another branch was taken");
        Value value;
        if (!readable(node.type, &value) || (tap.axis == 0 && ggml_blck_size(node.type) != 1))
            throw std::invalid_argument("node " + node.key.name + " has type " + ggml_type_name(node.type) +
                                        ", which cannot be read" + (whole ? "" : " as rows"));
        const int root = node.root >= 0 && !lost[static_cast<size_t>(node.root)] ? node.root : -1;
        taps_.push_back({tap, node.key.name, node.key.occurrence, root});
        if (root < 0 || roots_[static_cast<size_t>(root)]) continue;
        roots_[static_cast<size_t>(root)] = true;
        size_t bytes = ggml_row_size(node.type, node.ne[0]);
        for (size_t d = 1; d < GGML_MAX_DIMS; d++) bytes *= static_cast<size_t>(node.ne[d]);
        if (whole)
            fixed_bytes_ += bytes;
        else
            (tap.kind == RowKind::token ? token_bytes_ : output_bytes_) +=
                bytes / static_cast<size_t>(std::max<int64_t>(node.ne[static_cast<size_t>(tap.axis)], 1));
    }
}

void Tapper::off() {
    mode_ = Mode::off;
    plan_.reset();
    cursor_ = 0;
    outcome_ = Outcome{};
    recorder_.finish();
}

void Tapper::list() {
    off();
    mode_ = Mode::list;
}

void Tapper::skip() {
    off();
    mode_ = Mode::skip;
}

void Tapper::tap(std::shared_ptr<const Plan> plan, Pass pass) {
    off();
    plan_ = std::move(plan);
    pass_ = std::move(pass);
    cursor_ = 0;
    next_tap_ = 0;
    stopped_ = false;
    outcome_.arrays.resize(plan_->taps_.size());
    left_.assign(plan_->taps_.size(), nullptr);
    // Memory in place is for all rows of the batch. Where only few are wanted it would be mostly wasted, and such
    // batches are long enough for a cut in the graph not to matter.
    leave_ = in_place_ != InPlace::never && 2 * static_cast<int64_t>(pass_.token_rows.size()) >= pass_.n_tokens;
    const size_t alignment_waste = 256 * plan_->taps_.size();
    redirects_.begin(alignment_waste + plan_->fixed_bytes_ + plan_->token_bytes_ * static_cast<size_t>(pass_.n_tokens) +
                     plan_->output_bytes_ * static_cast<size_t>(pass_.n_outputs));
    mode_ = Mode::tap;
}

Graph Tapper::listed() {
    if (outcome_.status != Status::ok) {
        off();
        throw std::bad_alloc(); // nothing else fails while recording
    }
    Graph graph = recorder_.finish();
    off();
    return graph;
}

Outcome Tapper::finish() {
    if (mode_ != Mode::tap) throw std::logic_error("finish() without tap()");
    if (outcome_.status == Status::ok && !stopped_ && cursor_ != plan_->ops_.size())
        fail(Status::graph_changed,
             "the graph has " + std::to_string(cursor_) + " nodes, not " + std::to_string(plan_->ops_.size()));
    if (outcome_.status == Status::ok) {
        try {
            const std::vector<const void *> addresses = download_.fetch(left_);
            for (size_t i = 0; i < left_.size() && outcome_.status == Status::ok; i++)
                if (left_[i] != nullptr) read(left_[i], addresses[i], i);
        } catch (const std::bad_alloc &) {
            fail(Status::out_of_memory, "");
        }
    }
    Outcome outcome = std::exchange(outcome_, Outcome{});
    if (outcome.status == Status::out_of_memory)
        outcome.detail =
            std::to_string(plan_->taps_.size()) + " nodes of a batch of " + std::to_string(pass_.n_tokens) + " tokens";
    if (outcome.status != Status::ok) outcome.arrays.clear();
    off();
    return outcome;
}

void Tapper::fail(Status status, std::string detail) {
    if (outcome_.status != Status::ok) return; // the first failure is the cause
    outcome_.status = status;
    outcome_.detail = std::move(detail);
    outcome_.arrays.clear();
}

bool Tapper::on_eval(ggml_tensor * t, bool ask, void * user_data) {
    Tapper & self = *static_cast<Tapper *>(user_data);
    try {
        if (ask) {
            // Whatever this decode is for, nodes of a cached graph that are no longer wanted get their memory back.
            if (self.mode_ == Mode::tap) return self.ask_tap(t);
            const size_t ordinal = self.cursor_++;
            // (Not when skipping: then only the first node of each split is seen, and nothing is computed anyway.)
            if (self.mode_ != Mode::skip && self.redirects_.in_use()) self.redirects_.visit(ordinal, t, false);
            if (self.mode_ == Mode::list) self.recorder_.add(t);
            // The scheduler asks anew for every split: skipping is yes to its first node, then no to going on.
            return self.mode_ == Mode::skip;
        }
        if (self.mode_ == Mode::skip) return false;
        if (self.mode_ == Mode::tap) return self.read_tap(t);
    } catch (...) {
        // Allocation is all that can fail here. No text is made of it now: that would allocate again.
        self.outcome_.status = Status::out_of_memory;
        self.outcome_.arrays.clear();
    }
    return !ask;
}

bool Tapper::redirect(size_t ordinal, ggml_tensor * t) {
    if (!leave_ && !redirects_.in_use()) return false;
    bool wanted = leave_ && plan_->roots_[ordinal] && t->view_src == nullptr && t->buffer != nullptr;
    // Buffers whose tensors carry more than an address (a matrix split over several GPUs) are left alone.
    wanted = wanted && t->extra == nullptr && ggml_nelements(t) > 0 &&
             ggml_backend_buffer_get_usage(t->buffer) == GGML_BACKEND_BUFFER_USAGE_COMPUTE &&
             (in_place_ == InPlace::always || ggml_backend_buffer_is_host(t->buffer));
    return redirects_.visit(ordinal, t, wanted);
}

bool Tapper::ask_tap(ggml_tensor * t) {
    if (stopped_) return true; // a later split: as in skip
    const size_t ordinal = cursor_++;
    if (ordinal >= plan_->ops_.size()) {
        fail(Status::several_passes, "the batch was computed in more than one graph");
        return false;
    }
    redirect(ordinal, t);
    if (outcome_.status != Status::ok) return false;
    if (t->op != plan_->ops_[ordinal]) {
        fail(Status::graph_changed, std::string("node ") + t->name + " stands in an unexpected place");
        return false;
    }
    if (next_tap_ == plan_->taps_.size()) return false;
    const Plan::Wanted & wanted = plan_->taps_[next_tap_];
    if (static_cast<size_t>(wanted.tap.ordinal) != ordinal) return false;
    if (wanted.name != t->name) {
        fail(Status::graph_changed, "node " + wanted.name + " is now called " + t->name);
        return false;
    }
    const bool stop_here = pass_.stop_early && next_tap_ + 1 == plan_->taps_.size();
    if (stop_here || !leave_ || wanted.root < 0 || !redirects_.active(static_cast<size_t>(wanted.root))) return true;
    left_[next_tap_++] = t;
    return false;
}

bool Tapper::read_tap(const ggml_tensor * t) {
    if (stopped_) return false;
    const std::vector<const void *> address = download_.fetch({t});
    read(t, address[0], next_tap_++);
    // A failed pass runs on to its end: the model's own state (its cache) must stay whole.
    if (pass_.stop_early && next_tap_ == plan_->taps_.size() && outcome_.status == Status::ok) {
        stopped_ = true;
        return false;
    }
    return true;
}

// Checks that `t` is what the plan expects, and gives the array its shape. False: it failed.
bool Tapper::prepare(const ggml_tensor * t, const Plan::Wanted & wanted, Array * array) {
    const Tap & tap = wanted.tap;
    const auto refuse = [&](Status status, const std::string & detail) {
        fail(status, "node " + wanted.name + detail);
        return false;
    };
    // Checked when the plan was made, but it is this tensor that is read now. Blocks of a quantized type are dense.
    const bool blocks = ggml_blck_size(t->type) != 1;
    if (!readable(t->type, &array->value) || (blocks && (tap.axis == 0 || t->nb[0] != ggml_type_size(t->type))) ||
        (t->flags & GGML_TENSOR_FLAG_COMPUTE) == 0)
        return refuse(Status::graph_changed, " cannot be read in this batch");

    if (tap.kind != RowKind::whole) {
        const int64_t expected = tap.kind == RowKind::token ? pass_.n_tokens : pass_.n_outputs;
        if (t->ne[tap.axis] != expected)
            return refuse(Status::wrong_rows, " has " + std::to_string(t->ne[tap.axis]) + " rows where the batch has " +
                                                  std::to_string(expected));
        const std::vector<int32_t> & rows = rows_of(tap);
        if (rows.size() != pass_.token_rows.size())
            return refuse(Status::wrong_rows, " has rows only for outputs, and a wanted token is not one");
        for (const int32_t row : rows)
            if (row < 0 || row >= expected)
                return refuse(Status::wrong_rows,
                              " has no row " + std::to_string(row) + " in a batch of " + std::to_string(expected));
        array->shape.push_back(static_cast<int64_t>(rows.size()));
    }
    for (int d = GGML_MAX_DIMS - 1; d >= 0; d--) {
        if (d == tap.axis) continue;
        if (d < tap.n_dims)
            array->shape.push_back(t->ne[d]);
        else if (t->ne[d] != 1)
            return refuse(Status::wrong_rows, " has more dimensions than it was listed with");
    }
    return true;
}

const std::vector<int32_t> & Tapper::rows_of(const Tap & tap) const {
    static const std::vector<int32_t> none;
    if (tap.kind == RowKind::whole) return none;
    return tap.kind == RowKind::token ? pass_.token_rows : pass_.output_rows;
}

void Tapper::read(const ggml_tensor * t, const void * data, size_t index) {
    const Plan::Wanted & wanted = plan_->taps_[index];
    Array array;
    if (!prepare(t, wanted, &array)) return;
    const bool compressed =
        pass_.compression != Compression::none && wanted.tap.kind != RowKind::whole && array.value == Value::f32;
    if (compressed) array.value = pass_.compression == Compression::int8 ? Value::i8 : Value::f16;
    size_t bytes = value_size(array.value);
    for (const int64_t n : array.shape) bytes *= static_cast<size_t>(n);
    array.data.reset(new char[bytes]);
    if (compressed)
        compress(t, data, wanted.tap, &array);
    else if (bytes > 0)
        read_rows(t, data, wanted.tap.axis, rows_of(wanted.tap), array.value, array.data.get());
    outcome_.arrays[index] = std::move(array);
}

void Tapper::compress(const ggml_tensor * t, const void * data, const Tap & tap, Array * array) {
    const std::vector<int32_t> & rows = rows_of(tap);
    const auto n = static_cast<size_t>(row_elements(t, tap.axis));
    const size_t blocks = n_blocks(n, pass_.scale_block);
    const bool dense = dense_float_rows(t, tap.axis);
    if (!dense) row_.resize(n);
    if (array->value == Value::i8) array->scales.resize(rows.size() * blocks);
    for (size_t j = 0; j < rows.size(); j++) {
        const float * from = row_.data();
        if (dense)
            from = reinterpret_cast<const float *>(static_cast<const char *>(data) +
                                                   static_cast<size_t>(rows[j]) * t->nb[tap.axis]);
        else
            read_rows(t, data, tap.axis, {rows[j]}, Value::f32, row_.data());
        if (array->value == Value::i8)
            to_int8(from, n, pass_.scale_block, reinterpret_cast<int8_t *>(array->data.get()) + j * n,
                    array->scales.data() + j * blocks);
        else
            array->saturated += to_float16(from, n, reinterpret_cast<uint16_t *>(array->data.get()) + j * n);
    }
}

} // namespace loom
