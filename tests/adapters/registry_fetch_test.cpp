// The registry with adapters that are fetched: whose token opens what, and who waits for whom.
#include <condition_variable>
#include <map>
#include <mutex>
#include <set>

#include "adapters/merge.h"
#include "adapters/registry_test_base.h"

namespace lorry {
namespace {

using namespace std::chrono_literals;
using test::kOne;

// A hub whose repositories are folders; answers wait while it is shut.
class Hub {
 public:
  std::string fetch(const AdapterPart& part, const std::atomic<bool>& cancelled) {
    std::unique_lock lock(mutex_);
    ++asked[part.name];
    while (slow.contains(part.name) && !cancelled) changed_.wait_for(lock, 1ms);
    if (cancelled) {
      ++n_cancelled;
      fail(Code::unavailable, "cancelled");
    }
    if (unreachable) fail(Code::unavailable, "the hub cannot be reached");
    const auto repo = repos.find(part.name);
    if (repo == repos.end()) fail(Code::not_found, "no repository {}", part.name);
    if (!repo->second.token.empty() && repo->second.token != part.api_token) {
      fail(Code::not_found, "no repository {} for this token", part.name);
    }
    return repo->second.folder;
  }
  template <class F>
  void change(F&& f) {
    std::lock_guard lock(mutex_);
    f(*this);
    changed_.notify_all();
  }
  int64_t n_asked(const std::string& name) {
    std::lock_guard lock(mutex_);
    return asked[name];
  }

  struct Repo {
    std::string folder, token;
  };
  std::map<std::string, Repo> repos;
  std::set<std::string> slow;
  bool unreachable = false;
  std::map<std::string, int64_t> asked;
  int64_t n_cancelled = 0;

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
};

class FetchingRegistry : public test::RegistryTest {
 protected:
  FetchingRegistry() {
    options_.fetch_threads = 2;
    options_.fetch = [this](const AdapterPart& part, const std::atomic<bool>& cancelled) {
      return hub_.fetch(part, cancelled);
    };
  }
  ~FetchingRegistry() override { registry_.reset(); }  // before the hub

  static AdapterRef from_hub(const std::string& name, const std::string& token = "") {
    AdapterRef ref(name);
    ref.parts[0].source = AdapterSource::hub;
    ref.parts[0].api_token = token;
    return ref;
  }
  // A repository with content of its own.
  void publish(const std::string& name, float seed, const std::string& token = "") {
    const std::string folder = write(fmt::format("snapshot-{}-{}", name, seed), seed);
    hub_.change([&](Hub& h) { h.repos[name] = {folder, token}; });
  }

  Hub hub_;
};

TEST_F(FetchingRegistry, fetches_then_loads) {
  publish("sql", 1);
  hub_.change([](Hub& h) { h.slow = {"sql"}; });
  const AdapterHandle h = registry().acquire(from_hub("sql"));
  idle();
  EXPECT_EQ(state(h), AdapterState::downloading);
  hub_.change([](Hub& hub) { hub.slow.clear(); });
  settle(h);
  EXPECT_EQ(state(h), AdapterState::device);
  EXPECT_EQ(entry("sql").source, AdapterSource::hub);
  end(h);
  end(run(from_hub("sql")));
  EXPECT_EQ(hub_.n_asked("sql"), 1);
  EXPECT_EQ(registry().snapshot().fetches_started, 1);
}

TEST_F(FetchingRegistry, without_a_source_it_says_so) {
  options_.fetch = {};
  expect_failed(from_hub("sql"), Code::unsupported, "takes no adapters from hub");
}

TEST_F(FetchingRegistry, lorax_fault_6_source_revision_and_token_tell_adapters_apart) {
  write("x", 1);
  publish("x", 2);
  publish("x@v2", 3);
  const AdapterHandle local = run("x");
  const AdapterHandle hub = run(from_hub("x"));
  const AdapterHandle revision = run(from_hub("x@v2"));
  EXPECT_NE(digest(local), digest(hub));
  EXPECT_NE(digest(hub), digest(revision));
  publish("private", 4, "secret");
  end(run(from_hub("private", "secret")));
  expect_failed(from_hub("private"), Code::not_found, "for this token");
  EXPECT_EQ(entry("private").state, AdapterState::device) << "and it stays what it was";
}

TEST_F(FetchingRegistry, F13_each_caller_is_asked_for_with_his_own_token) {
  publish("private", 1, "a");
  const AdapterHandle a = run(from_hub("private", "a"));
  expect_failed(from_hub("private", "b"), Code::not_found, "for this token");
  EXPECT_EQ(hub_.n_asked("private"), 2);
  hub_.change([](Hub& h) { h.repos["private"].token = "b"; });
  now_ += 30s;
  const AdapterHandle b = run(from_hub("private", "b"));
  EXPECT_EQ(registry().content(a), registry().content(b)) << "the content is shared";
  EXPECT_EQ(loads(), 1) << "a folder that never changes is read once";
  EXPECT_EQ(used(), kOne);
  end(a);
  end(b);
  for (const auto& e : registry().snapshot().entries) EXPECT_EQ(e.name, "private");
  EXPECT_EQ(registry().snapshot().entries.size(), 1U) << "one line, and no token in it";
  EXPECT_EQ(entry("private").hits, 2);
}

TEST_F(FetchingRegistry, F13_what_was_fetched_is_asked_for_again_after_a_while) {
  publish("private", 1, "a");
  const AdapterHandle old = run(from_hub("private", "a"));
  const Digest before = digest(old);
  now_ += 10min;
  end(run(from_hub("private", "a")));
  EXPECT_EQ(hub_.n_asked("private"), 2);
  EXPECT_EQ(loads(), 1) << "it is the same folder";
  publish("private", 2, "a");  // the revision has moved: F12
  now_ += 10min;
  const AdapterHandle moved = run(from_hub("private", "a"));
  EXPECT_NE(digest(moved), before);
  EXPECT_EQ(digest(old), before) << "the running request finishes with what it began with";
  hub_.change([](Hub& h) { h.unreachable = true; });
  now_ += 10min;
  const AdapterHandle still = run(from_hub("private", "a"));
  EXPECT_EQ(digest(still), digest(moved)) << "the earlier answer holds";
  hub_.change([](Hub& h) { h.unreachable = false, h.repos["private"].token = "b"; });
  now_ += 10min;
  expect_failed(from_hub("private", "a"), Code::not_found, "for this token");
  for (const AdapterHandle h : {old, moved, still}) end(h);
  registry().check_integrity();
}

TEST_F(FetchingRegistry, F9_a_thousand_claims_share_one_download) {
  publish("cold", 1);
  hub_.change([](Hub& h) { h.slow = {"cold"}; });
  std::vector<AdapterHandle> claims;
  for (int i = 0; i < 1000; ++i) claims.push_back(registry().acquire(from_hub("cold")));
  idle();
  for (size_t i = 0; i < 500; ++i) registry().release(claims[i]);
  hub_.change([](Hub& h) { h.slow.clear(); });
  for (size_t i = 500; i < 1000; ++i) settle(claims[i]);
  for (size_t i = 500; i < 1000; ++i) end(claims[i]);
  EXPECT_EQ(hub_.n_asked("cold"), 1);
  EXPECT_EQ(loads(), 1);
}

TEST_F(FetchingRegistry, lorax_fault_7_slow_downloads_delay_only_their_own_requests) {
  write_many(3);
  publish("fast", 9);
  std::vector<AdapterHandle> stuck;
  for (int i = 0; i < 5; ++i) {  // more than there are threads
    const std::string name = fmt::format("slow{}", i);
    publish(name, static_cast<float>(10 + i));
    hub_.change([&](Hub& h) { h.slow.insert(name); });
    stuck.push_back(registry().acquire(from_hub(name)));
  }
  for (const char* name : {"a0", "a1", "a2"}) end(run(name));
  for (const AdapterHandle h : stuck) EXPECT_EQ(state(h), AdapterState::downloading);
  // One slow download ends and makes place for the next in line.
  const AdapterHandle fast = registry().acquire(from_hub("fast"));
  for (int i = 0; i < 5; ++i) {
    hub_.change([&](Hub& h) { h.slow.erase(fmt::format("slow{}", i)); });
    settle(stuck[static_cast<size_t>(i)]);
    end(stuck[static_cast<size_t>(i)]);
  }
  settle(fast);
  EXPECT_EQ(state(fast), AdapterState::device);
}

TEST_F(FetchingRegistry, a_download_that_nobody_waits_for_is_cancelled) {
  publish("big", 1);
  hub_.change([](Hub& h) { h.slow = {"big"}; });
  const AdapterHandle a = registry().acquire(from_hub("big"));
  const AdapterHandle b = registry().acquire(from_hub("big"));
  until([&] { return hub_.n_asked("big") == 1; });
  registry().release(a);
  idle();
  EXPECT_EQ(entry("big").state, AdapterState::downloading);
  registry().release(b);
  EXPECT_EQ(entry("big").name, "");
  until([&] {
    int64_t n = 0;
    hub_.change([&](Hub& h) { n = h.n_cancelled; });
    return n == 1;
  });
  hub_.change([](Hub& h) { h.slow.clear(); });
  end(run(from_hub("big")));
  EXPECT_EQ(hub_.n_asked("big"), 2);
}

TEST_F(FetchingRegistry, keys_of_one_content_are_bounded) {
  options_.max_keys = 8;
  publish("open", 1);
  for (int i = 0; i < 50; ++i) end(run(from_hub("open", fmt::format("token{}", i))));
  EXPECT_EQ(loads(), 1);
  EXPECT_LE(entry("open").hits, 8) << "the others are forgotten";
}

AdapterRef merge_of(std::vector<AdapterPart> parts) {
  AdapterRef ref;
  ref.is_merge = true;
  ref.merge.strategy = MergeSpec::Strategy::linear;
  ref.parts = std::move(parts);
  return ref;
}

AdapterPart local(const std::string& name) { return {name, AdapterSource::local, "", 1}; }

TEST_F(FetchingRegistry, merges_are_made_of_local_and_fetched_adapters) {
  write("a", 1);
  publish("b", 2, "secret");
  const AdapterRef ref =
      merge_of({{"a", AdapterSource::local, "", 0.75F}, {"b", AdapterSource::hub, "secret", 0.5F}});
  const AdapterHandle merged = run(ref);
  const std::vector<MergePart> parts = {{temp_.path() + "/a", 0.75F, "a"},
                                        {temp_.path() + "/snapshot-b-2", 0.5F, "b"}};
  const AdapterTarget target{&table_, &ops_};
  EXPECT_EQ(digest(merged),
            AdapterFolder::open_merged(parts, ref.merge, target, {})->read()->digest());
  EXPECT_EQ(adapter(run(ref)), adapter(merged)) << "made once";
  EXPECT_EQ(loads(), 1);
  AdapterRef other = ref;
  other.parts[1].weight = 0.25F;
  EXPECT_NE(adapter(run(other)), adapter(merged));
  EXPECT_EQ(entry("linear(a*0.75,b*0.5)").state, AdapterState::device);
  EXPECT_EQ(hub_.n_asked("b"), 1 + 1);
}

TEST_F(FetchingRegistry, F12_a_part_that_is_reloaded_makes_a_new_merge) {
  write("a", 1);
  write("b", 2);
  const AdapterRef ref = merge_of({local("a"), local("b")});
  const AdapterHandle old = run(ref);
  const Digest before = digest(old);
  write("b", 3);
  registry().reload("b");
  const AdapterHandle fresh = run(ref);
  EXPECT_NE(digest(fresh), before);
  EXPECT_EQ(digest(old), before);
  registry().register_name("a", write("elsewhere", 4));
  const AdapterHandle third = run(ref);
  EXPECT_NE(digest(third), digest(fresh));
  for (const AdapterHandle h : {old, fresh, third}) end(h);
}

TEST_F(FetchingRegistry, F14_a_merge_that_makes_no_sense_is_refused) {
  write("a", 1);
  AdapterRef ref = merge_of({local("a")});
  ref.parts[0].weight = std::numeric_limits<float>::quiet_NaN();
  expect_failed(ref, Code::invalid_argument, "adapter weights must be finite");
  ref = merge_of(std::vector<AdapterPart>(kMaxMerged + 1, local("a")));
  expect_failed(ref, Code::invalid_argument, "at most 16 adapters can be merged");
  EXPECT_EQ(loads(), 0);
}

TEST_F(FetchingRegistry, a_merge_whose_parts_cannot_be_fetched_fails_with_their_sentence) {
  write("a", 1);
  AdapterRef merge("a");
  merge.is_merge = true;
  merge.parts.push_back({"none", AdapterSource::hub, "", 0.5F});
  expect_failed(merge, Code::not_found, "no repository none");
  merge.parts.push_back(merge.parts[1]);
  expect_failed(merge, Code::not_found, "no repository none");
  merge.parts[2].name = "other";
  expect_failed(merge, Code::not_found, "no repository");
}

TEST_F(FetchingRegistry, destruction_during_downloads) {
  hub_.change([](Hub& h) { h.slow = {"x0", "x1", "x2", "x3"}; });
  for (int i = 0; i < 4; ++i) registry().acquire(from_hub(fmt::format("x{}", i)));
  idle();
  registry_.reset();
}

}  // namespace
}  // namespace lorry
