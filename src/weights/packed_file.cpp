#include "weights/packed_file.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <limits>
#include <utility>

#include <boost/json/serialize.hpp>
#include <fcntl.h>
#include <unistd.h>

#include "base/checked.h"
#include "base/error.h"
#include "base/files.h"
#include "weights/config.h"

namespace lorry {

namespace {

using Kind = QuantScheme::Kind;

constexpr std::string_view kMagic = "LORRYPCK";
constexpr int64_t kMaxHeader = int64_t{64} << 20;
constexpr int64_t kMaxBytes = std::numeric_limits<int64_t>::max() / 2;

// What stands before the JSON.
struct Start {
  std::array<char, 8> magic;
  uint32_t version;
  uint32_t zero;
  uint64_t json_bytes;
  Digest sha256;
};
static_assert(sizeof(Start) == 56);

constexpr std::array<std::pair<Kind, std::string_view>, 4> kKinds{
    {{Kind::none, "plain"}, {Kind::int8, "int8"}, {Kind::int4, "int4"}, {Kind::fp8, "fp8"}}};
constexpr std::array kDtypes{Dtype::f32, Dtype::f16, Dtype::bf16};

std::string_view name_of(Kind kind) {
  return std::find_if(kKinds.begin(), kKinds.end(), [&](const auto& k) { return k.first == kind; })
      ->second;
}

int64_t pages(int64_t bytes) { return (bytes + kPackedPage - 1) / kPackedPage * kPackedPage; }

Digest sha256(std::span<const std::byte> bytes) {
  Sha256 sha;
  sha.update(bytes);
  return sha.finish();
}

// ---- the header as JSON ----

json::object format_json(const PackedFormat& f) {
  return {{"kind", name_of(f.kind)}, {"group", f.group}};
}

json::object piece_json(const PackedPiece& p) {
  json::object o = format_json(p.format);
  if (p.format.kind == Kind::none) o["dtype"] = to_string(p.dtype);
  json::array shape;
  for (int i = 0; i < p.shape.rank; ++i) shape.emplace_back(p.shape[i]);
  o["shape"] = std::move(shape);
  o["offset"] = p.offset;
  o["bytes"] = p.bytes;
  o["sha256"] = p.sha256;
  return o;
}

std::string header_text(const PackedInfo& info) {
  json::object pieces;
  for (const PackedPiece& p : info.pieces) pieces[p.name] = piece_json(p);
  return json::serialize(json::object{
      {"source",
       json::object{{"digest", info.source_digest}, {"config_sha256", info.config_sha256}}},
      {"linears", format_json(info.linears)},
      {"head", format_json(info.head)},
      {"pieces", std::move(pieces)}});
}

PackedFormat read_format(const Config& c) {
  const std::string name = c.text("kind", {"plain", "int8", "int4", "fp8"});
  const auto* kind =
      std::find_if(kKinds.begin(), kKinds.end(), [&](const auto& k) { return k.second == name; });
  const int64_t group = c.integer("group", {0, 1 << 20});
  const bool grouped = kind->first == Kind::int8 || kind->first == Kind::int4;
  if (group % 32 != 0 || (group != 0 && !grouped)) {
    c.refuse("group",
             fmt::format("is {}: expected 0{}", group, grouped ? " or a multiple of 32" : ""));
  }
  return {kind->first, static_cast<int32_t>(group)};
}

std::string read_hex(const Config& c, std::string_view key) {
  std::string text = c.text(key);
  if (text.size() != 64 || text.find_first_not_of("0123456789abcdef") != std::string::npos) {
    c.refuse(key, "must be a SHA-256 of 64 hexadecimal digits");
  }
  return text;
}

PackedPiece read_piece(const std::string& name, const Config& c) {
  PackedPiece p;
  p.name = name;
  p.format = read_format(c);
  const std::vector<int64_t> dims = c.integers("shape", {1, int64_t{1} << 40});
  const bool plain = p.format.kind == Kind::none;
  if (plain ? dims.empty() || dims.size() > 2 : dims.size() != 3) {
    c.refuse("shape", plain ? "must have one or two dimensions" : "must be [groups, out, in]");
  }
  std::optional<int64_t> bytes = 1;
  for (const int64_t n : dims) {
    p.shape.dim[static_cast<size_t>(p.shape.rank++)] = n;
    bytes = bytes ? checked_mul(*bytes, n) : bytes;
  }
  p.bytes = c.integer("bytes", {1, kMaxBytes});
  p.offset = c.integer("offset", {1, kMaxBytes});
  p.sha256 = read_hex(c, "sha256");
  if (!plain) return p;
  const std::string dtype = c.text("dtype", {"F32", "F16", "BF16"});
  p.dtype =
      *std::find_if(kDtypes.begin(), kDtypes.end(), [&](Dtype t) { return dtype == to_string(t); });
  bytes = bytes ? checked_mul(*bytes, size_of(p.dtype)) : bytes;
  if (bytes != p.bytes) c.refuse("bytes", fmt::format("is {}: not what the shape takes", p.bytes));
  return p;
}

PackedInfo read_info(std::string_view text, const std::string& file) {
  const Config c = Config::parse(text, file);
  PackedInfo info;
  info.source_digest = read_hex(c.child("source"), "digest");
  info.config_sha256 = read_hex(c.child("source"), "config_sha256");
  info.linears = read_format(c.child("linears"));
  info.head = read_format(c.child("head"));
  for (const auto& [name, piece] : c.children("pieces")) {
    info.pieces.push_back(read_piece(name, piece));
  }
  return info;
}

// Each piece begins at the first page behind the one before it, and the file ends with the last.
void check_places(const PackedInfo& info, int64_t begin, int64_t file_bytes,
                  const std::string& path) {
  int64_t end = begin;
  for (const PackedPiece& p : info.pieces) {
    if (p.offset != pages(end)) {
      fail(Code::bad_file, "{}: piece {} is at {}, expected {}, behind the one before it", path,
           quote(p.name), p.offset, pages(end));
    }
    end = p.offset + p.bytes;
    if (end > file_bytes) {
      fail(Code::bad_file,
           "{}: piece {} ends at {}, but the file has {} bytes: it was cut off; copy it again",
           path, quote(p.name), end, file_bytes);
    }
  }
  if (end != file_bytes) {
    fail(Code::bad_file, "{}: {} bytes, expected {}, where the last piece ends", path, file_bytes,
         end);
  }
}

}  // namespace

bool PackedFile::in_folder(const std::string& folder) {
  return file_exists(join_path(folder, std::string(kPackedName)));
}

PackedFile PackedFile::open(const std::string& path) {
  PackedFile file;
  file.path_ = path;
  file.mapping_ = Mapping::open(path);
  const std::span<const std::byte> all(file.mapping_.data(), file.mapping_.size());
  Start start{};
  if (all.size() < sizeof start) {
    fail(Code::bad_file, "{}: {} bytes are too few for a packed model", path, all.size());
  }
  std::memcpy(&start, all.data(), sizeof start);
  if (std::string_view(start.magic.data(), start.magic.size()) != kMagic) {
    fail(Code::bad_file, "{}: no packed model: it does not begin with {}", path, kMagic);
  }
  if (start.version != kPackedVersion || start.zero != 0) {
    fail(Code::unsupported,
         "{}: format version {}, this Lorry reads {}: pack the model again with lorry quantize",
         path, start.version, kPackedVersion);
  }
  if (start.json_bytes > kMaxHeader || start.json_bytes > all.size() - sizeof start) {
    fail(Code::bad_file, "{}: header of {} bytes in a file of {}", path, start.json_bytes,
         all.size());
  }
  const auto text = all.subspan(sizeof start, start.json_bytes);
  if (sha256(text) != start.sha256) {
    fail(Code::bad_file, "{}: the header is damaged: its checksum is wrong; copy it again", path);
  }
  file.info_ = read_info({reinterpret_cast<const char*>(text.data()), text.size()}, path);
  check_places(file.info_, static_cast<int64_t>(sizeof start + text.size()), file.file_bytes(),
               path);
  return file;
}

const PackedPiece* PackedFile::find(std::string_view name) const {
  const auto at = std::find_if(info_.pieces.begin(), info_.pieces.end(),
                               [&](const PackedPiece& p) { return p.name == name; });
  return at == info_.pieces.end() ? nullptr : &*at;
}

void PackedFile::read(const PackedPiece& piece, std::byte* to, ThreadPool& pool) const {
  constexpr int64_t kPart = 4 << 20;
  const int fd = ::open(path_.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) fail(Code::bad_file, "{}: {}", path_, std::strerror(errno));
  // The checksum of the header is that of all checksums.
  Start start{};
  const bool same = pread(fd, &start, sizeof start, 0) == static_cast<ssize_t>(sizeof start) &&
                    std::memcmp(&start, mapping_.data(), sizeof start) == 0;
  std::atomic<int> error{same ? 0 : ESTALE};  // another file has taken its place
  pool.for_each((piece.bytes + kPart - 1) / kPart, [&](int64_t part) {
    int64_t at = part * kPart;
    const int64_t end = std::min(piece.bytes, at + kPart);
    while (at < end && error == 0) {
      const ssize_t n = pread(fd, to + at, static_cast<size_t>(end - at), piece.offset + at);
      if (n > 0) at += n;
      if (n < 0 && errno != EINTR) error = errno;
      if (n == 0) error = EIO;  // it became shorter
    }
  });
  close(fd);
  if (error != 0) {
    fail(Code::bad_file, "{}: piece {}: {}", path_, quote(piece.name), std::strerror(error));
  }
}

void PackedFile::check_content() const {
  for (const PackedPiece& p : info_.pieces) {
    const std::span<const std::byte> bytes(data(p), static_cast<size_t>(p.bytes));
    Mapping::will_need(bytes.data(), bytes.size());
    if (to_hex(sha256(bytes)) != p.sha256) {
      fail(Code::bad_file, "{}: piece {} is damaged: its checksum is wrong; copy the file again",
           path_, quote(p.name));
    }
    Mapping::release(bytes.data(), bytes.size());
  }
}

// ---- writing ----

PackedWriter::PackedWriter(std::string path, PackedInfo info)
    : path_(std::move(path)), info_(std::move(info)) {
  // The header's size depends on the digits of the offsets: they are written with as many as they
  // will have, in as many rounds as it takes for nothing to change.
  for (PackedPiece& p : info_.pieces) p.sha256.assign(64, '0');
  for (int64_t before = -1; before != end_;) {
    before = end_;
    end_ = static_cast<int64_t>(sizeof(Start) + header_text(info_).size());
    for (PackedPiece& p : info_.pieces) {
      p.offset = pages(end_);
      end_ = p.offset + p.bytes;
    }
  }
  fd_ = open(path_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
  if (fd_ < 0) fail(Code::invalid_argument, "{}: cannot write: {}", path_, std::strerror(errno));
  // A file system that cannot set room aside says so when it is full.
  if (fallocate(fd_, 0, 0, end_) != 0 && errno != EOPNOTSUPP && errno != ENOSYS) {
    const int reason = errno;
    close(fd_);
    fail(Code::invalid_argument, "{}: cannot write {} bytes: {}", path_, end_,
         std::strerror(reason));
  }
}

PackedWriter::~PackedWriter() {
  if (fd_ >= 0) close(fd_);
}

void PackedWriter::put(std::span<const std::byte> bytes, int64_t offset) {
  while (!bytes.empty()) {
    const ssize_t n = pwrite(fd_, bytes.data(), bytes.size(), offset);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) fail(Code::invalid_argument, "{}: cannot write: {}", path_, std::strerror(errno));
    bytes = bytes.subspan(static_cast<size_t>(n));
    offset += n;
  }
}

void PackedWriter::write(std::string_view name, std::span<const std::byte> bytes) {
  LORRY_CHECK(next_ < info_.pieces.size() && info_.pieces[next_].name == name, "piece {}", name);
  PackedPiece& p = info_.pieces[next_++];
  LORRY_CHECK(static_cast<int64_t>(bytes.size()) == p.bytes, "piece {}: {} bytes of {}", name,
              bytes.size(), p.bytes);
  put(bytes, p.offset);
  p.sha256 = to_hex(sha256(bytes));
}

void PackedWriter::finish() {
  LORRY_CHECK(next_ == info_.pieces.size(), "{} pieces of {}", next_, info_.pieces.size());
  const std::string text = header_text(info_);
  Start start{{}, kPackedVersion, 0, text.size(), sha256(std::as_bytes(std::span(text)))};
  std::copy(kMagic.begin(), kMagic.end(), start.magic.begin());
  put(std::as_bytes(std::span(text)), sizeof start);
  put(std::as_bytes(std::span(&start, 1)), 0);
  const int fd = std::exchange(fd_, -1);
  const bool synced = fsync(fd) == 0;
  const int reason = errno;
  if (close(fd) != 0 || !synced) {
    fail(Code::invalid_argument, "{}: cannot write: {}", path_, std::strerror(reason));
  }
}

}  // namespace lorry
