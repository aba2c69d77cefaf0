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
  for (const Sequence* seq : preempted_) {
    check_seniority(seq, SequenceState::preempted);
    LORRY_CHECK(seq->blocks.empty() && seq->n_computed == 0 && seq->chunk < 0,
                "sequence {} was preempted and has {} blocks", seq->id, seq->blocks.size());
  }

  int32_t n_waiting = n_preempted(), n_sequences = 0;
  size_t n_refused_queues = 0;
  LORRY_CHECK(line_.size() == tenants_.size(), "{} tenants in line, {} known", line_.size(),
              tenants_.size());
  for (const Tenant& tenant : line_) {
    LORRY_CHECK(&*tenants_.at(tenant.id) == &tenant && !tenant.queues.empty() &&
                    tenant.queues.size() == tenant.by_adapter.size() && tenant.deficit > 0 &&
                    tenant.deficit <= limits_.tenant_quantum,
                "tenant {}: {} queues, {} known, {} tokens left", tenant.id, tenant.queues.size(),
                tenant.by_adapter.size(), tenant.deficit);
    for (const Queue& queue : tenant.queues) {
      check_queue(tenant, queue);
      if (queue.refused) ++n_refused_queues;
      n_sequences += queue.n_sequences;
      n_waiting += static_cast<int32_t>(queue.waiting.size());
    }
  }
  LORRY_CHECK(n_waiting == n_waiting_ && n_sequences == n_waiting + n_running(),
              "{} sequences, {} running, {} waiting ({} counted)", n_sequences, n_running(),
              n_waiting_, n_waiting);
  size_t n_refused = 0;
  for (const Tenant* tenant : refused_) {
    LORRY_CHECK(&*tenants_.at(tenant->id) == tenant && !tenant->refused.empty(),
                "tenant {} is in line for room and has nobody waiting for it", tenant->id);
    n_refused += tenant->refused.size();
    for (const Queue* queue : tenant->refused) {
      LORRY_CHECK(&*tenant->by_adapter.at(queue->adapter) == queue && queue->refused,
                  "tenant {}, adapter {} is in line for room by mistake", tenant->id,
                  queue->adapter);
    }
  }
  LORRY_CHECK(n_refused == n_refused_queues, "{} queues in line for room, {} were refused",
              n_refused, n_refused_queues);
}

void Scheduler::check_queue(const Tenant& tenant, const Queue& queue) const {
  LORRY_CHECK(&*tenant.by_adapter.at(queue.adapter) == &queue && queue.n_sequences > 0 &&
                  queue.prompts.empty() && !(queue.refused && queue.waiting.empty()) &&
                  queue.deficit > 0 && queue.deficit <= limits_.adapter_quantum,
              "tenant {}, adapter {}: {} sequences, {} tokens left", tenant.id, queue.adapter,
              queue.n_sequences, queue.deficit);
  uint64_t last = 0;
  for (const Sequence* seq : queue.waiting) {
    LORRY_CHECK(seq->tenant == tenant.id && seq->adapter == queue.adapter &&
                    seq->state == SequenceState::waiting && seq->admitted == 0,
                "sequence {} waits in another's queue", seq->id);
    LORRY_CHECK(seq->blocks.empty() && seq->n_computed == 0 && seq->chunk < 0,
                "sequence {} waits and has {} blocks", seq->id, seq->blocks.size());
    LORRY_CHECK(seq->arrival > last, "sequence {} waits out of order", seq->id);
    last = seq->arrival;
  }
}

}  // namespace lorry
