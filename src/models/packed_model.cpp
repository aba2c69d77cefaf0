#include "models/packed_model.h"

#include "base/error.h"

namespace lorry {

namespace {

// What the file will hold.
class PieceList final : public PieceSink {
 public:
  void plain(const std::string& name, const Tensor& t) override {
    pieces.push_back({name, {}, t.dtype, t.shape, t.shape.size() * size_of(t.dtype), 0, {}});
  }
  void packed(const std::string& name, const Weight& w) override {
    pieces.push_back({name,
                      packed_format(w.format),
                      w.dtype,
                      {w.groups, w.out, w.in},
                      w.groups * w.group_bytes,
                      0,
                      {}});
  }
  std::vector<PackedPiece> pieces;
};

class PieceWriter final : public PieceSink {
 public:
  explicit PieceWriter(PackedWriter& writer) : writer_(writer) {}
  void plain(const std::string& name, const Tensor& t) override {
    LORRY_CHECK(t.pitch == t.cols(), "{}: pitch {}", name, t.pitch);
    writer_.write(name, {t.data, static_cast<size_t>(t.shape.size() * size_of(t.dtype))});
  }
  void packed(const std::string& name, const Weight& w) override {
    writer_.write(name, {w.data, static_cast<size_t>(w.groups * w.group_bytes)});
  }

 private:
  PackedWriter& writer_;
};

}  // namespace

int64_t write_packed(const std::string& path, const Architecture& architecture, const Spec& spec,
                     const ModelFiles& files, Ops& ops, const ProgressSink& progress) {
  PieceList list;
  each_piece(architecture, spec, *files.source, ops, list, false);
  PackedWriter writer(path, {files.digest, files.config_sha256, packed_format(spec.formats.linears),
                             packed_format(spec.formats.head), std::move(list.pieces)});
  PieceWriter pieces(writer);
  each_piece(architecture, spec, *files.source, ops, pieces, true, progress);
  check_unused(*files.source, architecture, spec, files.config.file());
  writer.finish();
  return writer.file_bytes();
}

}  // namespace lorry
