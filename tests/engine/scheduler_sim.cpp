#include "engine/scheduler_sim.h"

#include <set>

#include <gtest/gtest.h>

namespace lorry {

namespace {

uint64_t mix(uint64_t hash, uint64_t value) {
  hash = (hash ^ value) * 0x9e3779b97f4a7c15U;
  hash = (hash ^ (hash >> 29)) * 0xbf58476d1ce4e5b9U;
  return hash ^ (hash >> 32);
}

}  // namespace

Sim::Sim(const SimConfig& config, uint32_t seed)
    : config_(config),
      random_(seed),
      scheduler_(config.limits, config.n_blocks),
      slots_(static_cast<size_t>(config.n_blocks * kBlockTokens), 0) {
  for (int i = 0; i < 4; ++i) {
    std::vector<int32_t> tokens(static_cast<size_t>(config.max_tokens));
    for (int32_t& token : tokens) token = below(1000);
    beginnings_.push_back(tokens);
  }
}

void Sim::run(int64_t steps) {
  for (int64_t i = 0; i < steps && !testing::Test::HasFailure(); ++i) {
    if (chance(config_.arrivals) && live_.size() < static_cast<size_t>(config_.max_live)) arrive();
    if (chance(config_.cancels)) cancel();
    if (chance(config_.parks)) park();
    if (chance(config_.parks) && !parked_.empty()) {
      bring_back(static_cast<size_t>(below(static_cast<int32_t>(parked_.size()))));
    }
    step();
  }
  while (!parked_.empty()) bring_back(0);
  // At least one row of the oldest sequence in each of these.
  const int64_t turns = turns_of_oldest();
  const int64_t bound = config_.max_live * int64_t{config_.max_tokens} * turns;
  for (int64_t i = 0; !live_.empty() && !testing::Test::HasFailure(); ++i) {
    ASSERT_LT(i, bound) << live_.size() << " sequences never end";
    step();
  }
  EXPECT_EQ(scheduler_.pool().n_free(), config_.n_blocks);
  EXPECT_EQ(scheduler_.n_waiting() + scheduler_.n_running(), 0);
}

// N K Q of scheduler.h: prompt rows until the oldest sequence has its turn.
int64_t Sim::turns_of_oldest() const {
  const int64_t Q = config_.limits.tenant_quantum, q = config_.limits.adapter_quantum;
  const int64_t N = ((config_.n_adapters - 1) * q + Q - 1) / Q + 1;
  return N * config_.n_tenants * Q;
}

void Sim::arrive() {
  auto live = std::make_unique<Live>();
  Sequence& seq = live->seq;
  seq.id = ++n_ids_;
  // The first tenant sends half of all requests.
  seq.tenant = static_cast<uint64_t>(chance(50) ? 0 : below(config_.n_tenants));
  seq.adapter = static_cast<uint64_t>(below(config_.n_adapters));
  seq.cache_salt[0] = static_cast<uint8_t>(below(2));
  seq.n_prompt = 1 + below(chance(50) ? config_.max_tokens / 4 : config_.max_tokens - 1);
  const auto& beginning = beginnings_[static_cast<size_t>(below(4))];
  const int32_t n_shared = chance(config_.shared) ? below(seq.n_prompt + 1) : 0;
  for (int32_t i = 0; i < seq.n_prompt; ++i) {
    seq.tokens.push_back(i < n_shared ? beginning[static_cast<size_t>(i)] : below(1000));
  }
  seq.max_tokens = seq.n_prompt + 1 + below(config_.max_tokens - seq.n_prompt);
  live->n_end = seq.n_prompt + 1 + below(seq.max_tokens - seq.n_prompt);
  // Some have no adapter, some one from the start, some an activated one.
  seq.adapter_salt[0] = static_cast<uint8_t>(seq.adapter);
  if (seq.adapter > 0) seq.adapter_from = chance(50) ? 0 : below(seq.n_prompt);
  seq.wants_prompt_logits = chance(config_.prompt_logits);
  seq.use_prefix_cache = !chance(5);
  scheduler_.add(seq);
  live_.push_back(std::move(live));
}

void Sim::cancel() {
  if (live_.empty()) return;
  const auto it = live_.begin() + below(static_cast<int32_t>(live_.size()));
  scheduler_.remove((*it)->seq);
  live_.erase(it);
  ++counts_.cancelled;
}

// The prefix of a parked sequence stays in the cache: it is brought back with hits, or others take
// its blocks first.
void Sim::park() {
  if (live_.empty() || parked_.size() >= 4) return;
  const auto it = live_.begin() + below(static_cast<int32_t>(live_.size()));
  Live& live = **it;
  Sequence& seq = live.seq;
  if (seq.state == SequenceState::waiting) ++counts_.parked_waiting;
  if (seq.state == SequenceState::running) ++counts_.parked_running;
  if (seq.state == SequenceState::preempted) ++counts_.parked_preempted;
  const std::vector<int32_t> certain(seq.tokens.begin(), seq.tokens.begin() + seq.n_certain());
  scheduler_.park(seq);
  EXPECT_EQ(seq.state, SequenceState::parked);
  EXPECT_EQ(seq.tokens, certain);
  EXPECT_TRUE(seq.blocks.empty());
  scheduler_.check_integrity();
  live.content.resize(std::min(live.content.size(), certain.size()));
  live.n_drafted = 0;
  parked_.push_back(std::move(*it));
  live_.erase(it);
}

void Sim::bring_back(size_t index) {
  const auto it = parked_.begin() + static_cast<std::ptrdiff_t>(index);
  scheduler_.add((*it)->seq);
  scheduler_.check_integrity();
  live_.push_back(std::move(*it));
  parked_.erase(it);
}

void Sim::draft() {
  if (config_.max_drafts == 0) return;
  for (auto& live : live_) {
    Sequence& seq = live->seq;
    if (seq.state != SequenceState::running || seq.n_draft > 0 || seq.n_computed < seq.n_prompt ||
        seq.n_certain() - seq.n_computed != 1) {
      continue;
    }
    seq.n_draft = below(config_.max_drafts + 1);
    for (int32_t i = 0; i < seq.n_draft; ++i) seq.tokens.push_back(below(1000));
    live->n_drafted = seq.n_draft;
  }
}

void Sim::step() {
  draft();
  const StepPlan& plan = scheduler_.plan();
  scheduler_.check_integrity();
  check_plan(plan);
  // As a layer does: all rows of the batch are stored, then all are read.
  for (const Chunk& chunk : plan.chunks) write(chunk);
  for (const Chunk& chunk : plan.chunks) read(chunk);
  scheduler_.commit(plan);
  scheduler_.check_integrity();
  for (const Chunk& chunk : plan.chunks) sample(chunk);
  scheduler_.check_integrity();
  std::erase_if(live_, [](const auto& l) { return l->seq.state == SequenceState::finished; });
  ++counts_.steps;
}

void Sim::check_plan(const StepPlan& plan) {
  const SchedulerLimits& limits = config_.limits;
  EXPECT_EQ(plan.chunks.empty(), live_.empty()) << "work, and nothing planned";
  int32_t rows = 0, logits = 0;
  std::set<const Sequence*> planned;
  for (const Chunk& chunk : plan.chunks) {
    EXPECT_TRUE(planned.insert(chunk.seq).second) << "two chunks for a sequence";
    check_chunk(chunk);
    rows += chunk.n;
    logits += chunk.n_logits;
  }
  check_oldest(plan);
  EXPECT_LE(rows, limits.max_batch_tokens);
  EXPECT_LE(logits, limits.max_logit_rows);
  EXPECT_LE(planned.size(), static_cast<size_t>(limits.max_sequences));
  counts_.rows += rows;
  counts_.preempted += static_cast<int64_t>(plan.preempted.size());
  for (const Sequence* seq : plan.preempted) EXPECT_FALSE(planned.contains(seq));
  for (const auto& live : live_) {
    const Sequence& seq = live->seq;
    counts_.drafts_dropped += live->n_drafted - seq.n_draft;
    live->n_drafted = 0;
    // A decode is left out only when it needs a block and there is none.
    if (seq.state == SequenceState::running && seq.n_computed >= seq.n_prompt &&
        seq.n_certain() - seq.n_computed == 1 && !planned.contains(&seq)) {
      EXPECT_EQ(seq.n_computed % kBlockTokens, 0) << "a decode without a row";
    }
  }
}

// It has a row in each step that has rows left, and at its turn.
void Sim::check_oldest(const StepPlan& plan) {
  const Live* oldest = nullptr;
  for (const auto& live : live_) {
    if (live->seq.admitted == 0) continue;
    if (oldest == nullptr || live->seq.admitted < oldest->seq.admitted) oldest = live.get();
  }
  if (oldest == nullptr) return;
  int32_t n_prompt_rows = 0, n_rows = 0;
  bool has_row = false;
  for (const Chunk& chunk : plan.chunks) {
    const Sequence& seq = *chunk.seq;
    n_rows += chunk.n;
    if (chunk.first < seq.n_prompt || seq.n_certain() - chunk.first > 1) n_prompt_rows += chunk.n;
    if (chunk.seq == &oldest->seq) has_row = true;
  }
  EXPECT_TRUE(has_row || n_rows == config_.limits.max_batch_tokens) << "the oldest has no row";
  if (oldest->seq.id != oldest_ || has_row) oldest_waits_ = 0;
  oldest_ = oldest->seq.id;
  if (!has_row) oldest_waits_ += n_prompt_rows;
  EXPECT_LT(oldest_waits_, turns_of_oldest());
}

void Sim::check_chunk(const Chunk& chunk) {
  const Sequence& seq = *chunk.seq;
  const Live& live = live_of(seq);
  EXPECT_EQ(seq.state, SequenceState::running);
  EXPECT_EQ(chunk.first, seq.n_computed);
  EXPECT_GE(chunk.n, 1);
  EXPECT_LE(chunk.end(), static_cast<int32_t>(seq.tokens.size()));
  if (config_.limits.prefill_chunk > 0 && seq.n_certain() - chunk.first > 1) {
    EXPECT_LE(chunk.n, config_.limits.prefill_chunk);
  }
  if (seq.wants_prompt_logits || !seq.use_prefix_cache || !config_.limits.prefix_cache) {
    EXPECT_EQ(seq.n_hit, 0);
  }
  // Drafts run with the last certain row or not at all, and nothing is left of them.
  if (chunk.end() >= seq.n_certain()) {
    EXPECT_EQ(chunk.end(), static_cast<int32_t>(seq.tokens.size()));
    EXPECT_GE(chunk.n_logits, 1 + seq.n_draft);
  }
  if (seq.wants_prompt_logits) {  // every position's logits come, in order, none twice
    EXPECT_EQ(chunk.n_logits, std::max(0, chunk.end() - std::max(chunk.first, live.n_scored)));
    EXPECT_LE(chunk.end() - chunk.n_logits, std::max(live.n_scored, chunk.end()));
  } else {
    EXPECT_EQ(chunk.n_logits, chunk.end() >= seq.n_certain() ? 1 + seq.n_draft : 0);
  }
}

int64_t Sim::slot(const Sequence& seq, int32_t position) const {
  const int32_t block = seq.blocks[static_cast<size_t>(position / kBlockTokens)];
  EXPECT_GE(block, 0) << "position " << position << " has no block";
  return std::max(block, 0) * kBlockTokens + position % kBlockTokens;
}

void Sim::remember_content(Live& live) {
  const Sequence& seq = live.seq;
  for (size_t i = live.content.size(); i < seq.tokens.size(); ++i) {
    const uint64_t before = i == 0 ? mix(1, seq.cache_salt[0]) : live.content[i - 1];
    const bool adapted = i >= static_cast<size_t>(seq.adapter_from);
    live.content.push_back(mix(mix(before, i), static_cast<uint64_t>(seq.tokens[i])) +
                           (adapted ? seq.adapter : 0));
  }
}

void Sim::write(const Chunk& chunk) {
  Live& live = live_of(*chunk.seq);
  remember_content(live);
  for (int32_t p = chunk.first; p < chunk.end(); ++p) {
    const int64_t s = slot(live.seq, p);
    const auto block = static_cast<int32_t>(s / kBlockTokens);
    EXPECT_EQ(scheduler_.pool().references(block), 1) << "a shared block is written";
    EXPECT_FALSE(scheduler_.pool().is_cached(block)) << "a registered block is written";
    slots_[static_cast<size_t>(s)] = live.content[static_cast<size_t>(p)];
  }
}

void Sim::read(const Chunk& chunk) {
  const Live& live = live_of(*chunk.seq);
  const int32_t window = config_.limits.window;
  const int32_t begin = window > 0 ? std::max(0, chunk.first - window + 1) : 0;
  int64_t n_wrong = 0;
  for (int32_t p = begin; p < chunk.end(); ++p) {
    const auto s = static_cast<size_t>(slot(live.seq, p));
    if (slots_[s] != live.content[static_cast<size_t>(p)]) ++n_wrong;
  }
  EXPECT_EQ(n_wrong, 0) << "sequence " << live.seq.id << " reads the KV of another prefix";
}

void Sim::sample(const Chunk& chunk) {
  Sequence& seq = *chunk.seq;
  Live& live = live_of(seq);
  if (chunk.n_logits > 0) live.n_scored = chunk.end();
  counts_.slid += std::count(seq.blocks.begin(), seq.blocks.end(), -1);
  if (chunk.first == seq.n_hit) counts_.hit_tokens += seq.n_hit;  // its first chunk
  if (chunk.end() < static_cast<int32_t>(seq.tokens.size())) return;
  const int32_t n_accepted = below(seq.n_draft + 1);
  counts_.drafts_run += seq.n_draft;
  counts_.drafts_rejected += seq.n_draft - n_accepted;
  const int32_t n_kept = std::min(seq.n_certain() + n_accepted, seq.max_tokens);
  scheduler_.truncate(seq, n_kept);
  live.content.resize(static_cast<size_t>(n_kept));
  live.n_scored = std::min(live.n_scored, n_kept);
  if (n_kept + 1 >= live.n_end) {
    EXPECT_TRUE(!seq.wants_prompt_logits || live.n_scored == n_kept) << live.n_scored;
    scheduler_.remove(seq);
    ++counts_.finished;
    return;
  }
  // Half of the time the answer goes on like a prompt, so that answers are shared too.
  seq.tokens.push_back(chance(50) ? beginnings_[0][static_cast<size_t>(n_kept)] : below(1000));
}

Sim::Live& Sim::live_of(const Sequence& seq) {
  const auto it =
      std::find_if(live_.begin(), live_.end(), [&](const auto& l) { return &l->seq == &seq; });
  EXPECT_TRUE(it != live_.end());
  return **it;
}

}  // namespace lorry
