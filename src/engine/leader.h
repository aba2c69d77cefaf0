// Leader: how rank 0 makes the other ranks of its model (follower.h) do what it does: they make the
// same forward passes, and read and move the same adapters. Alone it does nothing but the pass.
// Engine thread only.
#pragma once
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "adapters/mirror.h"
#include "engine/loaded_model.h"
#include "engine/orders.h"

namespace lorry {

class Leader final : public AdapterMirror {
 public:
  // Requires: `model` outlives this.
  explicit Leader(LoadedModel& model) : model_(model) {}

  bool is_alone() const { return model_.comm->size() == 1; }
  // Orders that have not been sent, or reads that are not everywhere done.
  bool is_waiting() const { return !orders_.empty() || !reads_.empty(); }

  // One pass on all ranks; views know their content (AdapterView::content). Aborts where the ranks
  // chose different experts: then something is broken.
  ForwardOutput forward(const ForwardInput& input, std::span<const AdapterView> views);
  // A round without a pass.
  void listen();
  // The last round: the others end.
  void stop();

  void read(int32_t content, const AdapterFiles& files, int64_t to, int64_t bytes) override;
  void move(int32_t content, int64_t from, int64_t to, int64_t bytes) override;
  bool has_read(int32_t content, const std::string& digest, std::optional<Error>& error) override;

 private:
  // A read on the other ranks.
  struct Read {
    int left = 0;
    std::optional<Error> error;
    std::vector<std::string> digests;
  };

  WireWriter begin(RoundKind kind);
  void hear(uint64_t routes);

  LoadedModel& model_;
  std::vector<AdapterOrder> orders_;
  std::unordered_map<int32_t, Read> reads_;  // by content
};

}  // namespace lorry
