#include "cli/pull.h"

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <filesystem>

#include <fmt/format.h>

#include "base/error.h"
#include "base/system.h"
#include "cli/progress_line.h"
#include "cli/signals.h"
#include "cli/talk.h"
#include "fetch/cache_files.h"

namespace lorry {

namespace {

namespace fs = std::filesystem;

// Not fmt::print, which throws where standard error is closed.
void say(const std::string& text) { std::fputs((text + "\n").c_str(), stderr); }

std::string size(int64_t bytes) {
  return bytes < 0 ? "an unknown size" : format_bytes(static_cast<size_t>(bytes));
}

void tell(const RemoteName& what, const FetchPlan& plan) {
  const char* kind = plan.kind == RemoteKind::model ? "model" : "adapter";
  const bool some_here = plan.total_bytes > plan.missing_bytes;
  say(fmt::format("{}: {} of {} files, {}{}", what.name, kind, plan.files, size(plan.total_bytes),
                  some_here ? fmt::format(" ({} still to come)", size(plan.missing_bytes)) : ""));
}

}  // namespace

Fetched pull(const RemoteName& what, RemoteKind wanted, PullTalk talk) {
  std::atomic<bool> cancelled{false};
  ProgressLine line(progress_place(talk == PullTalk::all));
  const Signals signals([&] {
    if (!cancelled.exchange(true)) return;
    line.end();
    std::_Exit(kInterrupted);
  });
  FetchControl control{.cancelled = &cancelled};
  control.progress = line.sink();
  if (talk != PullTalk::silent) control.plan = [&](const FetchPlan& plan) { tell(what, plan); };
  try {
    Fetched fetched = fetch_remote(what, wanted, control);
    line.end();
    return fetched;
  } catch (const Error&) {
    line.end();
    if (!cancelled) throw;
  }
  if (talk != PullTalk::silent) {
    say("lorry: interrupted; what is here is kept, the same command goes on with it");
  }
  std::_Exit(kInterrupted);
}

void place_files(const std::string& folder, const std::string& to) {
  make_folders(to);
  for (const auto& entry : fs::directory_iterator(folder)) {
    const fs::path from = fs::canonical(entry.path());
    const fs::path target = fs::path(to) / entry.path().filename();
    std::error_code error;
    if (fs::exists(fs::symlink_status(target, error))) {
      if (fs::equivalent(from, target, error)) continue;
      fail(Code::invalid_argument, "--to {}: {} is there already; name a new folder", quote(to),
           quote(target.filename().string()));
    }
    fs::create_hard_link(from, target, error);
    if (!error) continue;
    require_free_space(to, static_cast<int64_t>(fs::file_size(from)), 0);
    fs::copy_file(from, target, error);
    if (error) {
      fs::remove(target);
      fail(Code::invalid_argument, "--to {}: cannot write {}: {}", quote(to),
           quote(target.filename().string()), error.message());
    }
  }
}

}  // namespace lorry
