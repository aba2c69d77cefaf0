// Runs the real binary, as a shell would.
#pragma once
#include <filesystem>
#include <map>
#include <string>
#include <vector>

namespace lorry {

struct ProcessResult {
  int status = -1;  // exit status; -signal when a signal ended it
  std::string out;
  std::string err;
};

struct ProcessInput {
  std::string in = {};                          // standard input, all of it
  std::map<std::string, std::string> env = {};  // beside PATH and HOME, which is an empty folder
};

// Waits for the end. The program is the `lorry` of this build.
ProcessResult run_lorry(const std::vector<std::string>& arguments, const ProcessInput& input = {});

// The same with standard error on a terminal of 100 columns; `err` is what it was sent, with its
// line ends as they were written.
ProcessResult run_lorry_on_terminal(const std::vector<std::string>& arguments,
                                    const ProcessInput& input = {});

// One that goes on: `lorry serve`. Killed by the destructor when it still runs.
class LorryProcess {
 public:
  LorryProcess(const std::vector<std::string>& arguments, const ProcessInput& input = {});
  ~LorryProcess();
  LorryProcess(const LorryProcess&) = delete;
  LorryProcess& operator=(const LorryProcess&) = delete;

  // Waits until standard error holds `text`; false when the program ends without it.
  bool wait_for(const std::string& text);
  void signal(int number) const;
  int pid() const { return pid_; }
  ProcessResult wait();
  const std::string& err() const { return err_; }

 private:
  int pid_ = -1;
  int out_ = -1;
  int err_fd_ = -1;
  std::string err_;
};

// A folder that goes with its object.
class TestFolder {
 public:
  TestFolder();
  ~TestFolder() { std::filesystem::remove_all(path_); }
  TestFolder(const TestFolder&) = delete;
  TestFolder& operator=(const TestFolder&) = delete;
  std::string path(const std::string& name) const { return (path_ / name).string(); }
  std::string write(const std::string& name, const std::string& content) const;

 private:
  std::filesystem::path path_;
};

// A path of the repository's golden cases.
std::string golden(const std::string& name);

}  // namespace lorry
