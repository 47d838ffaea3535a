#include "core/tapper.h"

#include <algorithm>
#include <cstring>
#include <new>
#include <stdexcept>
#include <utility>

#include "ggml-backend.h"

namespace loom {

Plan::Plan(const Graph & graph, std::vector<Tap> taps) {
    ops_.reserve(graph.nodes.size());
    for (const Node & node : graph.nodes) ops_.push_back(node.op);

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
        taps_.push_back({tap, node.key.name, node.key.occurrence});
    }
}

void Tapper::off() {
    mode_ = Mode::off;
    plan_.reset();
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
    outcome_.arrays.reserve(plan_->taps_.size());
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
        fail(Status::graph_changed, "the graph has " + std::to_string(cursor_) + " nodes, not " +
                                        std::to_string(plan_->ops_.size()));
    Outcome outcome = std::exchange(outcome_, Outcome{});
    if (outcome.status == Status::out_of_memory)
        outcome.detail = "node number " + std::to_string(failed_at_) + " of the graph";
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
        switch (self.mode_) {
        case Mode::off: return !ask;
        case Mode::list:
            if (ask) self.recorder_.add(t);
            return !ask;
        // The scheduler asks anew for every split: yes to its first node, then no to going on.
        case Mode::skip: return ask;
        case Mode::tap: return ask ? self.ask_tap(t) : self.read_tap(t);
        }
    } catch (...) {
        // Allocation is all that can fail here. No text is made of it now: that would allocate again.
        self.outcome_.status = Status::out_of_memory;
        self.outcome_.arrays.clear();
        self.failed_at_ = self.cursor_;
    }
    return !ask;
}

bool Tapper::ask_tap(const ggml_tensor * t) {
    if (stopped_) return true; // a later split: as in skip
    if (outcome_.status != Status::ok) return false;
    const size_t ordinal = cursor_++;
    if (ordinal >= plan_->ops_.size()) {
        fail(Status::several_passes, "the batch was computed in more than one graph");
        return false;
    }
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
    return true;
}

bool Tapper::read_tap(const ggml_tensor * t) {
    if (stopped_) return false;
    read(t, plan_->taps_[next_tap_++]);
    // A failed pass runs on to its end: the model's own state (its cache) must stay whole.
    if (pass_.stop_early && next_tap_ == plan_->taps_.size() && outcome_.status == Status::ok) {
        stopped_ = true;
        return false;
    }
    return true;
}

void Tapper::read(const ggml_tensor * t, const Plan::Wanted & wanted) {
    const Tap & tap = wanted.tap;
    Array array;
    // Checked when the plan was made, but it is this tensor that is read now. Blocks of a quantized type are dense.
    const bool blocks = ggml_blck_size(t->type) != 1;
    if (!readable(t->type, &array.value) || (blocks && (tap.axis == 0 || t->nb[0] != ggml_type_size(t->type))) ||
        (t->flags & GGML_TENSOR_FLAG_COMPUTE) == 0)
        return fail(Status::graph_changed, "node " + wanted.name + " cannot be read in this batch");

    static const std::vector<int32_t> no_rows;
    const std::vector<int32_t> * rows = &no_rows;
    if (tap.kind != RowKind::whole) {
        const bool per_token = tap.kind == RowKind::token;
        const int64_t expected = per_token ? pass_.n_tokens : pass_.n_outputs;
        if (t->ne[tap.axis] != expected)
            return fail(Status::wrong_rows, "node " + wanted.name + " has " + std::to_string(t->ne[tap.axis]) +
                                                " rows where the batch has " + std::to_string(expected));
        rows = per_token ? &pass_.token_rows : &pass_.output_rows;
        if (rows->size() != pass_.token_rows.size())
            return fail(Status::wrong_rows,
                        "node " + wanted.name + " has rows only for outputs, and a wanted token is not one");
        for (const int32_t row : *rows)
            if (row < 0 || row >= expected)
                return fail(Status::wrong_rows, "there is no row " + std::to_string(row) + " in a batch of " +
                                                    std::to_string(expected));
        array.shape.push_back(static_cast<int64_t>(rows->size()));
    }
    for (int d = GGML_MAX_DIMS - 1; d >= 0; d--) {
        if (d == tap.axis) continue;
        if (d < tap.n_dims)
            array.shape.push_back(t->ne[d]);
        else if (t->ne[d] != 1)
            return fail(Status::wrong_rows, "node " + wanted.name + " has more dimensions than it was listed with");
    }
    size_t bytes = value_size(array.value);
    for (const int64_t n : array.shape) bytes *= static_cast<size_t>(n);
    array.data.reset(new char[bytes]);
    if (bytes > 0) {
        const void * data = t->data;
        ggml_backend_buffer_t buffer = t->view_src != nullptr ? t->view_src->buffer : t->buffer;
        if (!ggml_backend_buffer_is_host(buffer)) {
            staging_.resize(ggml_nbytes(t));
            ggml_backend_tensor_get(t, staging_.data(), 0, staging_.size());
            data = staging_.data();
        }
        read_rows(t, data, tap.axis, *rows, array.value, array.data.get());
    }
    outcome_.arrays.push_back(std::move(array));
}

} // namespace loom
