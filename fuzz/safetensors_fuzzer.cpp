// A file of weights: opened as an adapter's is, and every tensor's bytes are read.
#include "base/sha256.h"
#include "fuzz.h"
#include "weights/safetensors.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace lorry;  // NOLINT
  static const fuzz::TemporaryFolder folder;
  const std::string path = folder.write("model.safetensors", fuzz::text_of(data, size));
  for (const Access access : {Access::read, Access::mapped}) {
    fuzz::may_refuse([&] {
      const SafetensorsFile file = SafetensorsFile::open(path, access, 1 << 20);
      int64_t bytes = 0;
      for (const TensorInfo& info : file.tensors()) {
        LORRY_CHECK(file.find(info.name) != nullptr, "a tensor is not found by its name");
        bytes += info.end - info.begin;
        fuzz::may_refuse([&] {
          const Tensor tensor = file.tensor(info);
          Sha256 every_byte;
          every_byte.update({tensor.data, static_cast<size_t>(info.end - info.begin)});
          every_byte.finish();
        });
      }
      LORRY_CHECK(bytes < file.file_bytes(), "tensors are larger than their file");
      file.content_digest();
    });
  }
  return 0;
}
