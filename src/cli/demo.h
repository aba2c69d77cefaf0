// DemoFiles: the demo models that are compiled into the binary, as files on disk. They are unpacked
// once into a cache folder of the user, named after their content, and compared byte by byte with
// the binary on every later start. Where that folder cannot be used, a private one is made and
// removed again.
#pragma once
#include <string>
#include <vector>

namespace lorry {

class DemoFiles {
 public:
  // `cache` holds folders across runs (empty: none), `temporary` those of one run.
  // Throws Error(unavailable) when neither can be written.
  DemoFiles(const std::string& cache, const std::string& temporary);
  ~DemoFiles();
  DemoFiles(const DemoFiles&) = delete;
  DemoFiles& operator=(const DemoFiles&) = delete;

  const std::string& folder() const { return folder_; }
  // Removes the private folder, if there is one: for ends without destructors.
  void remove();

 private:
  std::string folder_;
  bool is_private_ = false;
};

}  // namespace lorry
