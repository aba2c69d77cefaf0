// Packed files as they are written, and every way in which one can be damaged.
#include "weights/packed_file.h"

#include <cstring>
#include <functional>

#include <boost/json/serialize.hpp>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/json.h"
#include "weights/files.h"

namespace lorry {
namespace {

using testing::HasSubstr;
using Kind = QuantScheme::Kind;

constexpr size_t kStart = 56;

std::string content(size_t bytes, char first) {
  std::string text(bytes, '\0');
  for (size_t i = 0; i < bytes; ++i) text[i] = static_cast<char>(first + static_cast<char>(i % 50));
  return text;
}

const std::string kEmbed = content(6 * 4 * 2, 'A');
const std::string kQkv = content(5000, 'B');
const std::string kNorm = content(4 * 4, 'C');

// Three pieces: a matrix, a packed linear longer than a page, a vector.
std::string write_packed_file(const std::string& path) {
  PackedInfo info;
  info.source_digest = std::string(64, 'a');
  info.config_sha256 = std::string(64, 'b');
  info.linears = {Kind::int8, 0};
  info.pieces = {{"embed", {}, Dtype::bf16, {6, 4}, 48, 0, {}},
                 {"layers.0.qkv", {Kind::int8, 0}, Dtype::bf16, {1, 64, 76}, 5000, 0, {}},
                 {"final_norm", {}, Dtype::f32, {4}, 16, 0, {}}};
  PackedWriter writer(path, info);
  writer.write("embed", std::as_bytes(std::span(kEmbed)));
  writer.write("layers.0.qkv", std::as_bytes(std::span(kQkv)));
  writer.write("final_norm", std::as_bytes(std::span(kNorm)));
  writer.finish();
  return read_file(path);
}

std::string_view bytes_of(const PackedFile& file, const PackedPiece& p) {
  return {reinterpret_cast<const char*>(file.data(p)), static_cast<size_t>(p.bytes)};
}

TEST(PackedFile, gives_back_what_was_written_on_pages_of_its_own) {
  const test::Folder folder;
  const std::string written = write_packed_file(folder / "m");
  const PackedFile file = PackedFile::open(folder / "m");
  EXPECT_EQ(file.file_bytes(), static_cast<int64_t>(written.size()));
  EXPECT_EQ(file.info().source_digest, std::string(64, 'a'));
  EXPECT_EQ(file.info().linears, (PackedFormat{Kind::int8, 0}));
  EXPECT_EQ(file.info().head, PackedFormat{});
  ASSERT_EQ(file.info().pieces.size(), 3U);
  for (const PackedPiece& p : file.info().pieces) {
    EXPECT_EQ(p.offset % kPackedPage, 0);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(file.data(p)) % kPackedPage, 0U);
  }
  EXPECT_EQ(bytes_of(file, *file.find("embed")), kEmbed);
  EXPECT_EQ(bytes_of(file, *file.find("layers.0.qkv")), kQkv);
  EXPECT_EQ(bytes_of(file, *file.find("final_norm")), kNorm);
  EXPECT_EQ(file.find("embed")->shape, (Shape{6, 4}));
  EXPECT_EQ(file.find("final_norm")->dtype, Dtype::f32);
  EXPECT_EQ(file.find("lm_head"), nullptr);
  file.check_content();
}

TEST(PackedFile, is_not_written_over_another_file) {
  const test::Folder folder;
  write_packed_file(folder / "m");
  EXPECT_THAT(test::message_of([&] { write_packed_file(folder / "m"); }), HasSubstr("exists"));
}

TEST(PackedFile, that_was_not_finished_is_none) {
  const test::Folder folder;
  {
    const PackedWriter writer(folder / "m", {{}, {}, {}, {}, {}});
  }
  EXPECT_THAT(test::message_of([&] { PackedFile::open(folder / "m"); }), HasSubstr("no packed"));
}

class Damaged : public testing::Test {
 protected:
  Damaged() : bytes_(write_packed_file(folder_ / "m")) {}

  std::string refusal() {
    write_file(folder_ / "m", bytes_);
    return test::message_of([&] { PackedFile::open(folder_ / "m"); });
  }
  template <class T>
  void set(size_t at, T value) {
    std::memcpy(bytes_.data() + at, &value, sizeof value);
  }
  // The refusal of a file with another header, its checksum right.
  std::string with_header(const std::function<void(json::object&)>& change) {
    uint64_t n = 0;
    std::memcpy(&n, bytes_.data() + 16, sizeof n);
    json::object header = parse_json(bytes_.substr(kStart, n), "header").as_object();
    change(header);
    std::string text = json::serialize(header);
    // At least the room it had: pieces begin on the next page.
    text.resize(std::max<size_t>(text.size(), n), ' ');
    std::string all = bytes_.substr(0, kStart) + text;
    all.resize(kPackedPage);
    all += bytes_.substr(kPackedPage);
    Sha256 sha;
    sha.update(text);
    const Digest digest = sha.finish();
    const uint64_t length = text.size();
    std::memcpy(all.data() + 16, &length, sizeof length);
    std::memcpy(all.data() + 24, digest.data(), digest.size());
    write_file(folder_ / "m", all);
    return test::message_of([&] { PackedFile::open(folder_ / "m"); });
  }
  std::string with_piece(const char* name, const char* key, const json::value& value) {
    return with_header(
        [&](json::object& h) { h["pieces"].as_object()[name].as_object()[key] = value; });
  }

  test::Folder folder_;
  std::string bytes_;
};

TEST_F(Damaged, the_unchanged_header_is_read) {
  EXPECT_EQ(with_header([](json::object&) {}), "no error");
}

TEST_F(Damaged, shorter_than_its_start) {
  for (const size_t n : {0, 7, 55}) {
    bytes_.resize(n);
    EXPECT_THAT(refusal(), HasSubstr("too few for a packed model"));
    bytes_.resize(kStart);
  }
}

TEST_F(Damaged, another_magic) {
  bytes_[0] = 'X';
  EXPECT_THAT(refusal(), HasSubstr("it does not begin with LORRYPCK"));
}

TEST_F(Damaged, another_version) {
  set<uint32_t>(8, kPackedVersion + 1);
  EXPECT_THAT(refusal(), HasSubstr("format version 2, this Lorry reads 1: pack the model again"));
}

TEST_F(Damaged, a_header_longer_than_the_file) {
  for (const uint64_t n : {uint64_t{1} << 20, ~uint64_t{0}, uint64_t{1} << 40}) {
    set<uint64_t>(16, n);
    EXPECT_THAT(refusal(), HasSubstr("header of"));
  }
}

TEST_F(Damaged, a_bit_of_the_header) {
  bytes_[kStart + 30] = static_cast<char>(bytes_[kStart + 30] ^ 1);
  EXPECT_THAT(refusal(), HasSubstr("the header is damaged"));
}

TEST_F(Damaged, cut_off) {
  bytes_.resize(bytes_.size() - 1);
  EXPECT_THAT(refusal(), HasSubstr("it was cut off"));
  bytes_.resize(static_cast<size_t>(kPackedPage) + 10);
  EXPECT_THAT(refusal(), HasSubstr("it was cut off"));
}

TEST_F(Damaged, longer_than_its_pieces) {
  bytes_ += "more";
  EXPECT_THAT(refusal(), HasSubstr("where the last piece ends"));
}

TEST_F(Damaged, pieces_that_overlap_or_lie_apart) {
  EXPECT_THAT(with_piece("layers.0.qkv", "offset", kPackedPage), HasSubstr("expected 8192"));
  EXPECT_THAT(with_piece("layers.0.qkv", "offset", 3 * kPackedPage), HasSubstr("expected 8192"));
  EXPECT_THAT(with_piece("embed", "offset", 56), HasSubstr("expected 4096"));
  EXPECT_THAT(with_piece("final_norm", "offset", -1), HasSubstr("final_norm.offset"));
}

TEST_F(Damaged, a_piece_beyond_the_file) {
  EXPECT_THAT(with_piece("layers.0.qkv", "bytes", int64_t{1} << 50), HasSubstr("cut off"));
  EXPECT_THAT(with_piece("layers.0.qkv", "bytes", ~uint64_t{0}), HasSubstr("layers.0.qkv.bytes"));
}

TEST_F(Damaged, shapes) {
  EXPECT_THAT(with_piece("embed", "shape", json::array{6, 5}), HasSubstr("not what the shape"));
  const json::array huge{int64_t{1} << 40, int64_t{1} << 40};
  EXPECT_THAT(with_piece("embed", "shape", huge), HasSubstr("not what the shape"));
  EXPECT_THAT(with_piece("embed", "shape", json::array{0, 4}), HasSubstr("embed.shape"));
  EXPECT_THAT(with_piece("embed", "shape", json::array{1, 6, 4}), HasSubstr("one or two"));
  EXPECT_THAT(with_piece("layers.0.qkv", "shape", json::array{64, 76}), HasSubstr("[groups"));
}

TEST_F(Damaged, formats) {
  EXPECT_THAT(with_piece("layers.0.qkv", "kind", "int3"), HasSubstr("layers.0.qkv.kind"));
  EXPECT_THAT(with_piece("layers.0.qkv", "group", 48), HasSubstr("multiple of 32"));
  EXPECT_THAT(with_piece("embed", "group", 32), HasSubstr("embed.group"));
  EXPECT_THAT(with_piece("embed", "dtype", "I8"), HasSubstr("embed.dtype"));
  EXPECT_THAT(with_piece("embed", "sha256", "12"), HasSubstr("64 hexadecimal digits"));
}

TEST_F(Damaged, parts_of_the_header_that_are_missing) {
  for (const char* key : {"source", "linears", "head", "pieces"}) {
    EXPECT_NE(with_header([&](json::object& h) { h.erase(key); }), "no error") << key;
  }
  EXPECT_THAT(with_header([](json::object& h) { h["pieces"] = json::array(); }),
              HasSubstr("pieces"));
}

TEST_F(Damaged, values_are_found_by_their_checksum) {
  bytes_[2 * static_cast<size_t>(kPackedPage) + 4500] ^= 1;
  EXPECT_EQ(refusal(), "no error");
  EXPECT_THAT(test::message_of([&] { PackedFile::open(folder_ / "m").check_content(); }),
              HasSubstr("piece \"layers.0.qkv\" is damaged"));
}

}  // namespace
}  // namespace lorry
