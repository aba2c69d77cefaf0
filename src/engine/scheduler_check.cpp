// Scheduler::check_integrity: what must hold between any two calls.
#include <algorithm>

#include "base/error.h"
#include "engine/scheduler.h"

namespace lorry {

void Scheduler::check_integrity() const {
  check_queues();
  pool().check_integrity();
  std::vector<int32_t> references(static_cast<size_t>(pool().n_total()), 0);
  for (const Sequence* seq : running_) {
    const bool planned = in_step_ && seq->chunk >= 0;
    if (planned) {
      LORRY_CHECK(plan_.chunks[static_cast<size_t>(seq->chunk)].seq == seq,
                  "sequence {} has not chunk {}", seq->id, seq->chunk);
    }
    tables_.check(*seq, planned ? plan_.chunks[static_cast<size_t>(seq->chunk)].n : 0);
    for (const int32_t block : seq->blocks) {
      if (block >= 0) ++references[static_cast<size_t>(block)];
    }
  }
  for (int32_t b = 0; b < pool().n_total(); ++b) {
    LORRY_CHECK(references[static_cast<size_t>(b)] == pool().references(b),
                "block {} is in {} tables and has {} references", b,
                references[static_cast<size_t>(b)], pool().references(b));
  }
}

void Scheduler::check_queues() const {
  LORRY_CHECK(n_running() <= limits_.max_sequences, "{} sequences run", n_running());
  uint64_t senior = 0;
  const auto check_seniority = [&](const Sequence* seq, SequenceState state) {
    LORRY_CHECK(seq->state == state && seq->admitted > senior, "sequence {} is out of order",
                seq->id);
    senior = seq->admitted;
  };
  for (const Sequence* seq : running_) check_seniority(seq, SequenceState::running);
  for (const Sequence* seq : preempted_) check_seniority(seq, SequenceState::preempted);

  int32_t n_waiting = 0, n_preempted = 0, n_sequences = 0;
  LORRY_CHECK(line_.size() == tenants_.size(), "{} tenants in line, {} known", line_.size(),
              tenants_.size());
  for (const Tenant& tenant : line_) {
    LORRY_CHECK(&*tenants_.at(tenant.id) == &tenant && tenant.n_sequences > 0 &&
                    tenant.deficit > 0 && tenant.deficit <= limits_.tenant_quantum,
                "tenant {}: {} sequences, {} tokens left", tenant.id, tenant.n_sequences,
                tenant.deficit);
    n_sequences += tenant.n_sequences;
    n_waiting += static_cast<int32_t>(tenant.waiting.size());
    for (size_t i = 0; i < tenant.waiting.size(); ++i) {
      const Sequence& seq = *tenant.waiting[i];
      if (seq.state == SequenceState::preempted) ++n_preempted;
      LORRY_CHECK(seq.tenant == tenant.id && seq.blocks.empty() && seq.n_computed == 0 &&
                      seq.chunk < 0 && (seq.state == SequenceState::preempted || seq.admitted == 0),
                  "sequence {} waits and has {} blocks", seq.id, seq.blocks.size());
      LORRY_CHECK(i == 0 || seq.arrival > tenant.waiting[i - 1]->arrival,
                  "sequence {} waits out of order", seq.id);
    }
  }
  LORRY_CHECK(n_waiting == n_waiting_ && n_preempted == static_cast<int32_t>(preempted_.size()) &&
                  n_sequences == n_waiting + n_running(),
              "{} sequences, {} running, {} waiting ({} counted), {} preempted ({} counted)",
              n_sequences, n_running(), n_waiting_, n_waiting, preempted_.size(), n_preempted);
}

}  // namespace lorry
