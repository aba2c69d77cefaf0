#include "fetch/download.h"

#include <algorithm>
#include <charconv>

#include "base/error.h"
#include "fetch/cache_files.h"

namespace lorry {

namespace {

// "bytes 5-9/10": the first of the range; -1 where it is something else.
int64_t range_start(const std::string& content_range) {
  constexpr std::string_view kUnit = "bytes ";
  int64_t first = -1;
  if (!content_range.starts_with(kUnit)) return -1;
  std::from_chars(content_range.data() + kUnit.size(), content_range.data() + content_range.size(),
                  first);
  return first;
}

class Download {
 public:
  Download(HttpClient& http, const RemoteFile& file, const FetchControl& control)
      : http_(http), file_(file), control_(control), partial_(file.partial) {
    if (file_.size >= 0 && partial_.size() > file_.size) partial_.clear();
  }

  // Until the file has its size.
  void transfer() {
    Backoff backoff(http_.options(), http_.deadline(), http_.options().attempts);
    int64_t furthest = partial_.size();
    while (!complete()) {
      const FetchResponse response = http_.send(next_request());
      const bool accepted = response.status == 200 || response.status == 206;
      if (response.failure.empty() && accepted) {
        whole_ = file_.size < 0;  // its end is where the answer ended
        if (complete()) return;
      } else if (response.status == 416 && partial_.size() > 0) {
        partial_.clear();  // what was left is no beginning of this file
      } else if (!response.retryable) {
        file_.refuse(response);
        fail(Code::unavailable, "{}: {}", file_.label, response.describe());
      }
      if (partial_.size() > furthest) {
        furthest = partial_.size();
        backoff.reset();
      }
      if (!backoff.wait(response)) give_up(response);
    }
  }

  // True where the content is what was promised, now in its place.
  bool commit(std::string& found) {
    found = file_.hash ? file_.hash->of_file(file_.partial, http_.deadline()) : std::string();
    if (file_.hash && found != file_.hash->hex()) return false;
    partial_.commit(file_.path);
    return true;
  }

  void start_again() {
    partial_.clear();
    whole_ = false;
  }
  void remove() { partial_.remove(); }
  int64_t received() const { return received_; }

 private:
  bool complete() const { return whole_ || (file_.size >= 0 && partial_.size() == file_.size); }

  FetchRequest next_request() {
    FetchRequest request = file_.request();
    if (partial_.size() > 0) {
      request.headers.emplace_back("Range", fmt::format("bytes={}-", partial_.size()));
    }
    request.on_head = [this](const FetchResponse& head) { start(head); };
    request.on_body = [this](std::span<const std::byte> bytes) { take(bytes); };
    return request;
  }

  void start(const FetchResponse& head) {
    if (head.status == 200) {
      partial_.clear();  // the server does not do ranges
    } else if (range_start(head.header("content-range")) != partial_.size()) {
      partial_.clear();
      fail(Code::bad_file, "{}: {} with the wrong range of bytes", file_.label, head.describe());
    }
    const int64_t length = head.content_length();
    if (length >= 0) check_size(partial_.size() + length, head);
  }

  void take(std::span<const std::byte> bytes) {
    // A body without a length: it is measured as it comes.
    const int64_t limit = file_.size >= 0 ? file_.size : file_.max_bytes;
    if (partial_.size() + static_cast<int64_t>(bytes.size()) > limit) {
      partial_.remove();
      fail(Code::bad_file, "{}: more than the {} bytes that {}", file_.label, limit,
           file_.size >= 0 ? "were announced" : "are fetched at most");
    }
    partial_.write(bytes);
    received_ += static_cast<int64_t>(bytes.size());
    if (control_.progress) control_.progress({file_.name, partial_.size(), file_.size});
  }

  void check_size(int64_t total, const FetchResponse& head) {
    if (total > file_.max_bytes) {
      partial_.remove();
      fail(Code::bad_file, "{}: has {} bytes; at most {} are fetched", file_.label, total,
           file_.max_bytes);
    }
    if (file_.size >= 0 && total != file_.size) {
      partial_.remove();
      fail(Code::bad_file, "{}: expected {} bytes, {} with {}", file_.label, file_.size,
           head.describe(), total);
    }
  }

  [[noreturn]] void give_up(const FetchResponse& last) {
    const std::string why = last.failure.empty() && (last.status == 200 || last.status == 206)
                                ? last.url.shown() + ": the answer ended early"
                                : last.describe();
    fail(Code::unavailable, "{}: {} (after {} tries, {} bytes are here); try again later",
         file_.label, why, http_.options().attempts, partial_.size());
  }

  HttpClient& http_;
  const RemoteFile& file_;
  const FetchControl& control_;
  PartialFile partial_;
  bool whole_ = false;
  int64_t received_ = 0;
};

}  // namespace

int64_t download(HttpClient& http, const RemoteFile& file, const FetchControl& control) {
  Download download(http, file, control);
  std::string found;
  for (int i = 0; i < 2; ++i) {
    download.transfer();
    if (download.commit(found)) return download.received();
    download.start_again();
  }
  download.remove();
  fail(Code::bad_file,
       "{}: expected the {} {}, found {}, twice: the file was changed on its way; it was removed",
       file.label, file.hash->name(), file.hash->hex(), found);
}

}  // namespace lorry
