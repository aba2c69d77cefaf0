#include "adapters/loader.h"

#include <cstring>
#include <utility>

#include "adapters/merge.h"
#include "adapters/names.h"
#include "base/error.h"

namespace lorry {

namespace {

constexpr size_t kMaxLoads = 16;
constexpr size_t kMaxCopies = 4;

// What people call it.
std::string name_of(const LoadJob& job) {
  if (job.kind == LoadJob::Kind::fetch) return job.part.name;
  std::string names;
  for (const AdapterFiles::Part& p : job.files.parts) names += (names.empty() ? "" : ", ") + p.name;
  return names;
}

}  // namespace

void copy_to_device(DeviceMemory* device, std::byte* to, const std::byte* from, size_t bytes) {
  if (device != nullptr) {
    device->write(to, from, bytes);
  } else {
    std::memcpy(to, from, bytes);
  }
}

AdapterLoader::AdapterLoader(Options options, AdapterTarget target)
    : options_(std::move(options)),
      target_(std::move(target)),
      cancelled_(static_cast<size_t>(options_.fetch_threads)),
      fetches_(static_cast<size_t>(options_.fetch_threads)),
      loads_(kMaxLoads),
      copies_(kMaxCopies),
      results_(fetches_.capacity + kMaxLoads + kMaxCopies) {
  LORRY_CHECK(options_.loader_threads >= 1 && options_.fetch_threads >= 1,
              "{} loader threads, {} fetch threads", options_.loader_threads,
              options_.fetch_threads);
  start(loads_, options_.loader_threads);
  start(copies_, 1);
  if (options_.fetch) start(fetches_, options_.fetch_threads);
}

AdapterLoader::~AdapterLoader() {
  for (std::atomic<bool>& c : cancelled_) c = true;
  for (Pool* pool : {&fetches_, &loads_, &copies_}) {
    while (pool->jobs.try_pop()) {
    }
    pool->jobs.close();
    for (std::thread& t : pool->threads) t.join();
  }
}

AdapterLoader::Pool& AdapterLoader::pool_of(LoadJob::Kind kind) {
  return const_cast<Pool&>(std::as_const(*this).pool_of(kind));
}

const AdapterLoader::Pool& AdapterLoader::pool_of(LoadJob::Kind kind) const {
  if (kind == LoadJob::Kind::fetch) return fetches_;
  return kind == LoadJob::Kind::copy ? copies_ : loads_;
}

void AdapterLoader::start(Pool& pool, int n_threads) {
  for (int i = 0; i < n_threads; ++i) {
    pool.threads.emplace_back([this, &pool] { work_forever(pool); });
  }
}

bool AdapterLoader::has_room(LoadJob::Kind kind) const {
  return pool_of(kind).in_flight < pool_of(kind).capacity;
}

void AdapterLoader::send(LoadJob job) {
  Pool& pool = pool_of(job.kind);
  if (job.kind == LoadJob::Kind::fetch) cancelled_[static_cast<size_t>(job.id)] = false;
  ++pool.in_flight;
  LORRY_CHECK(pool.jobs.try_push(std::move(job)), "{} jobs are in flight", pool.in_flight);
}

void AdapterLoader::cancel_fetch(int32_t id) { cancelled_[static_cast<size_t>(id)] = true; }

std::optional<LoadResult> AdapterLoader::take() {
  std::optional<LoadResult> result = results_.try_pop();
  if (result) --pool_of(result->kind).in_flight;
  return result;
}

// ---- the threads ----

void AdapterLoader::work_forever(Pool& pool) {
  while (std::optional<LoadJob> job = pool.jobs.pop()) {
    LoadResult result = work(*std::move(job));
    LORRY_CHECK(results_.try_push(std::move(result)), "send() bounds the jobs in flight");
    if (options_.wake) options_.wake();
  }
}

LoadResult AdapterLoader::work(LoadJob job) {
  LoadResult result;
  result.kind = job.kind;
  result.id = job.id;
  try {
    switch (job.kind) {
      case LoadJob::Kind::fetch:
        result.fetched = options_.fetch(job.part, cancelled_[static_cast<size_t>(job.id)]);
        break;
      case LoadJob::Kind::open:
        result.folder = open(job.files);
        break;
      case LoadJob::Kind::read: {
        const bool first = job.folder != nullptr;
        if (!first) job.folder = open(job.files);
        if (job.folder->packed_bytes() > job.bytes) {
          fail(Code::bad_file, "adapter '{}' changed while it was in use", name_of(job));
        }
        result.adapter =
            job.on_device ? job.folder->read_to_device(job.to) : job.folder->read(job.to);
        if (first && options_.loaded) options_.loaded(name_of(job), *result.adapter);
        break;
      }
      case LoadJob::Kind::copy:
        copy_to_device(target_.ops->memory(), job.to, job.from, job.bytes);
        break;
    }
  } catch (const Error& e) {
    result.error = e;
  } catch (const std::exception& e) {
    result.error = Error(Code::internal, fmt::format("adapter '{}': {}", name_of(job), e.what()));
  }
  return result;
}

std::unique_ptr<AdapterFolder> AdapterLoader::open(const AdapterFiles& files) const {
  std::vector<MergePart> parts;
  for (const AdapterFiles::Part& p : files.parts) {
    parts.push_back(
        {p.path.empty() ? local_adapter_folder(options_.root, p.name) : p.path, p.weight, p.name});
  }
  if (files.is_merge) {
    return AdapterFolder::open_merged(parts, files.merge, target_, options_.limits);
  }
  return AdapterFolder::open(parts.front().folder, target_, options_.limits);
}

}  // namespace lorry
