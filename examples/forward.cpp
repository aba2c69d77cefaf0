// The forward pass without the server: two sequences in one batch, each with its own adapter (or
// none), a prefill and then greedy decoding.
//
//   forward MODEL [ADAPTER]
#include <algorithm>
#include <cstdio>
#include <vector>

#include "lorry/model.h"

namespace {

constexpr int32_t kBlock = 16;  // tokens of a KV block
constexpr int32_t kBlocksPerSequence = 4;

// What this program keeps of a sequence: it owns the cache blocks from first_block on.
struct Sequence {
  std::vector<int32_t> tokens;
  int32_t computed = 0;
  int32_t adapter = -1;
  int32_t first_block = 0;
};

struct Batch {
  std::vector<int32_t> ids, positions, rope_lens, cu_seqlens{0}, kv_lens, tables, slots, adapters,
      logit_rows;

  void add(const Sequence& s) {
    for (auto p = s.computed; p < static_cast<int32_t>(s.tokens.size()); ++p) {
      ids.push_back(s.tokens[static_cast<size_t>(p)]);
      positions.push_back(p);
      rope_lens.push_back(p + 1);
      slots.push_back((s.first_block + p / kBlock) * kBlock + p % kBlock);
    }
    cu_seqlens.push_back(static_cast<int32_t>(ids.size()));
    kv_lens.push_back(static_cast<int32_t>(s.tokens.size()));
    for (int32_t b = 0; b < kBlocksPerSequence; ++b) tables.push_back(s.first_block + b);
    adapters.push_back(s.adapter);
    logit_rows.push_back(cu_seqlens.back() - 1);
  }

  lorry::ForwardInput input() const {
    lorry::ForwardInput in;
    in.input_ids = ids;
    in.position_ids = positions;
    in.rope_lens = rope_lens;
    in.cu_seqlens = cu_seqlens;
    in.kv_lens = kv_lens;
    in.block_tables = tables;
    in.max_blocks = kBlocksPerSequence;
    in.slots = slots;
    in.adapters = adapters;
    in.logit_rows = logit_rows;
    return in;
  }
};

int run(int argc, char** argv) {
  lorry::Model model(argv[1]);
  std::vector<Sequence> sequences(2);
  for (size_t i = 0; i < sequences.size(); ++i) {
    sequences[i].tokens = {1, 5, 9, 12};
    sequences[i].first_block = static_cast<int32_t>(i) * kBlocksPerSequence;
  }
  if (argc > 2) sequences[1].adapter = model.load_adapter(argv[2]);

  for (int step = 0; step < 16; ++step) {
    Batch batch;
    for (const Sequence& s : sequences) batch.add(s);
    const lorry::ForwardOutput out = model.forward(batch.input());
    for (size_t i = 0; i < sequences.size(); ++i) {
      const float* logits = out.logits.row<const float>(static_cast<int64_t>(i));
      sequences[i].computed = static_cast<int32_t>(sequences[i].tokens.size());
      const auto best = std::max_element(logits, logits + model.vocab()) - logits;
      sequences[i].tokens.push_back(static_cast<int32_t>(best));
    }
  }
  for (const Sequence& s : sequences) {
    std::printf("adapter %2d:", s.adapter);
    for (const int32_t t : s.tokens) std::printf(" %d", t);
    std::printf("\n");
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2) {
    std::fprintf(stderr, "usage: forward MODEL_FOLDER [ADAPTER_FOLDER]\n");
    return 2;
  }
  try {
    return run(argc, argv);
  } catch (const lorry::Error& e) {
    std::fprintf(stderr, "error: %s\n", e.what());
    return 1;
  }
}
