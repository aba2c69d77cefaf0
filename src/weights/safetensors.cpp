#include "weights/safetensors.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <span>
#include <utility>

#include <boost/json/serialize.hpp>
#include <boost/json/string.hpp>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/error.h"
#include "base/files.h"

namespace lorry {

namespace {

// The limit of the format's reference implementation.
constexpr uint64_t kMaxHeaderBytes = 100'000'000;
constexpr size_t kLine = 64;
constexpr std::array<std::string_view, 5> kPickleEndings{".bin", ".pt", ".pth", ".ckpt", ".pkl"};

class Descriptor {
 public:
  explicit Descriptor(const std::string& path)
      // O_NONBLOCK: opening a named pipe must not wait for its writer.
      : fd_(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)) {
    if (fd_ < 0) fail(Code::not_found, "{}: {}", path, std::strerror(errno));
  }
  ~Descriptor() { close(fd_); }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  operator int() const { return fd_; }

 private:
  int fd_;
};

int64_t regular_file_size(int fd, const std::string& path) {
  struct stat s{};
  if (fstat(fd, &s) != 0) fail(Code::bad_file, "{}: {}", path, std::strerror(errno));
  if (!S_ISREG(s.st_mode)) fail(Code::bad_file, "{}: not a regular file", path);
  return s.st_size;
}

void read_at(int fd, std::span<std::byte> into, int64_t offset, const std::string& path) {
  while (!into.empty()) {
    const ssize_t n = pread(fd, into.data(), into.size(), offset);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) fail(Code::bad_file, "{}: {}", path, std::strerror(errno));
    if (n == 0) fail(Code::bad_file, "{}: became shorter while it was read", path);
    into = into.subspan(static_cast<size_t>(n));
    offset += n;
  }
}

void refuse_other_formats(std::string_view start, const std::string& path) {
  if (start.starts_with("version https://git-lfs")) {
    fail(Code::bad_file,
         "{}: this is a Git LFS pointer, not the weights: run `git lfs install && git lfs pull` "
         "in its repository",
         path);
  }
  if (path.ends_with(".gguf") || start.starts_with("GGUF")) {
    fail(Code::unsupported,
         "{}: GGUF is not read, only safetensors: use the original checkpoint, or convert with "
         "transformers: AutoModelForCausalLM.from_pretrained(DIR, gguf_file=FILE)"
         ".save_pretrained(OUT)",
         path);
  }
  // A safetensors header can begin with the bytes of a pickle, but then '{' follows its length.
  const bool pickle_content = !(start.size() > 8 && start[8] == '{') &&
                              (start.starts_with("PK\x03\x04") || start.starts_with("\x80\x02"));
  if (pickle_content || std::any_of(kPickleEndings.begin(), kPickleEndings.end(),
                                    [&](std::string_view e) { return path.ends_with(e); })) {
    fail(Code::unsupported,
         "{}: pickle files can run code and are refused; convert it where you trust it: python -c "
         "\"import torch, safetensors.torch as s; s.save_file(torch.load('FILE', "
         "weights_only=True), 'model.safetensors')\"",
         path);
  }
}

// Bytes of the header, after checking that the file can hold them.
size_t header_length(std::string_view start, int64_t file_bytes, const std::string& path) {
  if (start.size() < 8) {
    fail(Code::bad_file, "{}: header too small: the file has {} bytes", path, file_bytes);
  }
  uint64_t n = 0;
  std::memcpy(&n, start.data(), sizeof n);
  if (n > kMaxHeaderBytes) {
    fail(Code::bad_file, "{}: header too large: {} bytes, at most {} are allowed", path, n,
         kMaxHeaderBytes);
  }
  if (n > static_cast<uint64_t>(file_bytes) - 8) {
    fail(Code::bad_file, "{}: invalid header length: {} bytes in a file of {}", path, n,
         file_bytes);
  }
  return n;
}

}  // namespace

SafetensorsFile SafetensorsFile::open(const std::string& path, Access access, int64_t max_bytes) {
  const Descriptor fd(path);
  SafetensorsFile file;
  file.path_ = path;
  file.file_bytes_ = regular_file_size(fd, path);
  if (file.file_bytes_ > max_bytes) {
    fail(Code::bad_file, "{}: {} bytes, at most {} are allowed", path, file.file_bytes_, max_bytes);
  }
  std::string start(static_cast<size_t>(std::min<int64_t>(file.file_bytes_, 32)), '\0');
  read_at(fd, std::as_writable_bytes(std::span(start)), 0, path);
  refuse_other_formats(start, path);

  std::string header(header_length(start, file.file_bytes_, path), '\0');
  read_at(fd, std::as_writable_bytes(std::span(header)), 8, path);
  const int64_t data_start = 8 + static_cast<int64_t>(header.size());
  file.header_ = parse_safetensors_header(header, file.file_bytes_ - data_start, path);
  Sha256 sha;
  sha.update(header);
  file.header_digest_ = sha.finish();
  file.index_names();
  file.read_data(fd, access, data_start);
  return file;
}

void SafetensorsFile::index_names() {
  const auto& tensors = header_.tensors;
  by_name_.resize(tensors.size());
  for (uint32_t i = 0; i < by_name_.size(); ++i) by_name_[i] = i;
  std::sort(by_name_.begin(), by_name_.end(),
            [&](uint32_t a, uint32_t b) { return tensors[a].name < tensors[b].name; });
  const auto same = std::adjacent_find(
      by_name_.begin(), by_name_.end(),
      [&](uint32_t a, uint32_t b) { return tensors[a].name == tensors[b].name; });
  if (same != by_name_.end()) {
    fail(Code::bad_file, "{}: tensor {} occurs twice", path_, quote(tensors[*same].name));
  }
}

// Bytes that are read, not mapped, start on a cache line each. A mapped tensor that the file's
// writer did not align to its element size is read too.
void SafetensorsFile::read_data(int fd, Access access, int64_t data_start) {
  const auto& tensors = header_.tensors;
  const auto is_read = [&](const TensorInfo& t) {
    return access == Access::read || (t.dtype && (data_start + t.begin) % size_of(*t.dtype) != 0);
  };
  size_t own_bytes = 0;
  for (const TensorInfo& t : tensors) {
    if (is_read(t)) own_bytes += (static_cast<size_t>(t.end - t.begin) + kLine - 1) / kLine * kLine;
  }
  own_ = Buffer(own_bytes + kLine);  // never empty: an empty tensor has an address too
  if (access == Access::mapped) mapping_ = Mapping(fd, static_cast<size_t>(file_bytes_), path_);

  std::byte* next = own_.data();
  data_.reserve(tensors.size());
  for (const TensorInfo& t : tensors) {
    if (!is_read(t)) {
      data_.push_back(mapping_.data() + data_start + t.begin);
      continue;
    }
    const auto bytes = static_cast<size_t>(t.end - t.begin);
    read_at(fd, {next, bytes}, data_start + t.begin, path_);
    data_.push_back(next);
    next += (bytes + kLine - 1) / kLine * kLine;
  }
}

const TensorInfo* SafetensorsFile::find(std::string_view name) const {
  const auto at = std::lower_bound(
      by_name_.begin(), by_name_.end(), name,
      [&](uint32_t i, std::string_view wanted) { return header_.tensors[i].name < wanted; });
  if (at == by_name_.end() || header_.tensors[*at].name != name) return nullptr;
  return &header_.tensors[*at];
}

size_t SafetensorsFile::index_of(const TensorInfo& info) const {
  const auto index = static_cast<size_t>(&info - header_.tensors.data());
  LORRY_CHECK(index < header_.tensors.size(), "{}", info.name);
  return index;
}

Tensor SafetensorsFile::tensor(std::string_view name) const {
  const TensorInfo* info = find(name);
  if (info == nullptr) fail(Code::bad_file, "{}: tensor {} is missing", path_, quote(name));
  return tensor(*info);
}

Tensor SafetensorsFile::tensor(const TensorInfo& info) const {
  if (!info.dtype) {
    fail(Code::unsupported, "{}: tensor {} has dtype {}, which Lorry does not compute with", path_,
         quote(info.name), info.dtype_name);
  }
  if (info.rank > 4) {
    fail(Code::unsupported, "{}: tensor {} has {} dimensions, at most 4 are supported", path_,
         quote(info.name), info.rank);
  }
  return view(data_[index_of(info)], *info.dtype, info.shape);
}

bool SafetensorsFile::mapped(const std::byte* data) const {
  return mapping_.data() != nullptr && data >= mapping_.data() &&
         data < mapping_.data() + mapping_.size();
}

void SafetensorsFile::will_need(const TensorInfo& info, int64_t first, int64_t n) const {
  const std::byte* data = data_[index_of(info)];
  if (!mapped(data) || !info.dtype || info.rank == 0 || info.shape.size() == 0) return;
  const int64_t row = info.shape[-1] * size_of(*info.dtype);
  const int64_t all = (info.end - info.begin) / row;
  if (first < 0 || n < 0 || first > all || n > all - first) return;
  Mapping::will_need(data + first * row, static_cast<size_t>(n * row));
}

void SafetensorsFile::release(const TensorInfo& info) const {
  const std::byte* data = data_[index_of(info)];
  if (mapped(data)) Mapping::release(data, static_cast<size_t>(info.end - info.begin));
}

Digest SafetensorsFile::content_digest() const {
  Sha256 sha;
  sha.update(std::as_bytes(std::span(header_digest_)));
  for (const TensorInfo& t : header_.tensors) {
    sha.update({data_[index_of(t)], static_cast<size_t>(t.end - t.begin)});
  }
  return sha.finish();
}

void write_safetensors(const std::string& path, const std::map<std::string, Tensor>& tensors,
                       const std::map<std::string, std::string>& metadata) {
  // Larger elements first: every tensor is then aligned to its element size.
  std::vector<std::pair<std::string_view, Tensor>> ordered(tensors.begin(), tensors.end());
  std::stable_sort(ordered.begin(), ordered.end(), [](const auto& a, const auto& b) {
    return size_of(a.second.dtype) > size_of(b.second.dtype);
  });
  const auto text = [](std::string_view s) {
    return boost::json::serialize(boost::json::string_view(s.data(), s.size()));
  };
  std::string header = "{\"__metadata__\":{";
  for (const auto& [key, value] : metadata) {
    header += fmt::format("{}{}:{}", header.back() == '{' ? "" : ",", text(key), text(value));
  }
  header += "}";
  int64_t at = 0;
  for (const auto& [name, t] : ordered) {
    const int64_t end = at + t.shape.size() * size_of(t.dtype);
    header += fmt::format(",{}:{{\"dtype\":\"{}\",\"shape\":{},\"data_offsets\":[{},{}]}}",
                          text(name), to_string(t.dtype), to_string(t.shape), at, end);
    at = end;
  }
  header += "}";
  header.resize((header.size() + 7) / 8 * 8, ' ');

  AtomicFile file(path);
  const uint64_t n = header.size();
  file.write(std::as_bytes(std::span(&n, 1)));
  file.write(header);
  for (const auto& [name, t] : ordered) {
    const auto row_bytes = static_cast<size_t>(t.cols() * size_of(t.dtype));
    for (int64_t r = 0; r < t.rows(); ++r) {
      file.write(std::span<const std::byte>(t.data + r * t.pitch * size_of(t.dtype), row_bytes));
    }
  }
  file.commit();
}

}  // namespace lorry
