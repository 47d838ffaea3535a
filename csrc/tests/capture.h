// Comparing what the tapper read with what the tensors hold.
#pragma once

#include <vector>

#include "core/tapper.h"
#include "tiny_model.h"

namespace loom::test {

// A batch whose nodes all kept their memory, computed without any callback: what every tap should read.
class Reference {
public:
    Reference(const TinyModel & model, Batch batch, int seed);
    std::vector<char> rows(const Tap & tap, const Pass & pass) const;
    std::vector<int64_t> shape(const Tap & tap, const Pass & pass) const;
    std::vector<char> logits() const;

private:
    struct Held {
        ggml_tensor t;           // shape, type and strides; its own pointers are dead
        std::vector<char> bytes; // as they were right after the node was computed
    };
    std::vector<Held> nodes_;
};

Pass all_outputs(Batch batch); // every output's row, to the end of the graph

// Status ok, and for each tap the reference's bytes and shape.
void check_outcome(const Outcome & outcome, const Reference & reference, const std::vector<Tap> & taps,
                   const Pass & pass);

// The last node of a run on an engine of its own.
std::vector<char> logits(const TinyModel & model, Batch batch, int seed, Tapper * tapper);
std::vector<char> last_node_bytes(const TinyGraph & graph);

// Which nodes get computed: fill the memory of all that own some, compute, count. For graphs built with
// `keep`.
void mark_untouched(const TinyGraph & graph);
int untouched(const TinyGraph & graph);
int touched(const TinyGraph & graph, int from_ordinal = 0);

} // namespace loom::test
