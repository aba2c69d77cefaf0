#include "engine/leader.h"

#include <algorithm>
#include <utility>

#include "base/error.h"

namespace lorry {

WireWriter Leader::begin(RoundKind kind) {
  WireWriter w;
  w.number(static_cast<int64_t>(kind));
  w.number(static_cast<int64_t>(orders_.size()));
  for (const AdapterOrder& o : orders_) write(w, o);
  orders_.clear();
  return w;
}

// The answers of a round.
void Leader::hear(uint64_t routes) {
  const std::vector<Bytes> answers = model_.comm->collect({});
  for (size_t rank = 1; rank < answers.size(); ++rank) {
    WireReader r(answers[rank]);
    const auto theirs = static_cast<uint64_t>(r.number());
    LORRY_CHECK(theirs == routes, "rank {} chose other experts than rank 0", rank);
    while (!r.at_end()) {
      AdapterReport report;
      lorry::read(r, report);
      Read& read = reads_.at(report.content);
      --read.left;
      if (!report.digest.empty()) {
        read.digests.push_back(std::move(report.digest));
      } else if (!read.error) {
        read.error = Error(report.code, fmt::format("rank {}: {}", rank, report.message));
      }
    }
  }
}

ForwardOutput Leader::forward(const ForwardInput& input, std::span<const AdapterView> views) {
  if (is_alone()) return model_.lm->forward(input, model_.layers, views);
  std::vector<int32_t> contents;
  for (const AdapterView& v : views) contents.push_back(v.content);
  WireWriter w = begin(RoundKind::step);
  write(w, input, contents);
  Bytes message = w.take();
  model_.comm->broadcast(message);
  const ForwardOutput out = model_.lm->forward(input, model_.layers, views);
  hear(model_.lm->routes());
  return out;
}

void Leader::listen() {
  Bytes message = begin(RoundKind::listen).take();
  model_.comm->broadcast(message);
  hear(0);
}

void Leader::stop() {
  if (is_alone()) return;
  Bytes message = begin(RoundKind::stop).take();
  model_.comm->broadcast(message);
}

void Leader::read(int32_t content, const AdapterFiles& files, int64_t to, int64_t bytes) {
  orders_.push_back({true, content, files, 0, to, bytes});
  const bool is_new = reads_.try_emplace(content, Read{model_.comm->size() - 1, {}, {}}).second;
  LORRY_CHECK(is_new, "content {} is being read", content);
}

void Leader::move(int32_t content, int64_t from, int64_t to, int64_t bytes) {
  orders_.push_back({false, content, {}, from, to, bytes});
}

bool Leader::has_read(int32_t content, const std::string& digest, std::optional<Error>& error) {
  const auto at = reads_.find(content);
  LORRY_CHECK(at != reads_.end(), "content {} is not being read", content);
  Read& read = at->second;
  if (read.left > 0) return false;
  error = std::move(read.error);
  const bool same =
      std::all_of(read.digests.begin(), read.digests.end(),
                  [&](const std::string& d) { return digest.empty() || d == digest; });
  if (!error && !same) {
    error = Error(Code::bad_file,
                  "the adapter's files are not the same on all hosts: ranks read other contents");
  }
  reads_.erase(at);
  return true;
}

}  // namespace lorry
