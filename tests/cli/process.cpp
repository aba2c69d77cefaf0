#include "cli/process.h"

#include <array>
#include <fstream>
#include <iterator>
#include <utility>

#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <pty.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

namespace lorry {

namespace {

struct Pipe {
  Pipe() {
    std::array<int, 2> ends{};
    EXPECT_EQ(pipe2(ends.data(), O_CLOEXEC), 0);
    read = ends[0];
    write = ends[1];
  }
  int read = -1;
  int write = -1;
};

std::string whole_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

// What a program is started with, as execve takes it.
class Words {
 public:
  explicit Words(std::vector<std::string> words) : words_(std::move(words)) {
    for (std::string& word : words_) pointers_.push_back(word.data());
    pointers_.push_back(nullptr);
  }
  Words(const Words&) = delete;
  Words& operator=(const Words&) = delete;
  char* const* get() const { return pointers_.data(); }

 private:
  std::vector<std::string> words_;
  std::vector<char*> pointers_;
};

std::vector<std::string> variables(const ProcessInput& input, const std::string& home) {
  const char* path = getenv("PATH");
  std::vector<std::string> all = {"HOME=" + home, std::string("PATH=") + (path ? path : "")};
  for (const auto& [name, value] : input.env) all.push_back(name + "=" + value);
  return all;
}

// Its standard input, output and error are `descriptors`. Nothing is allocated in the child: a
// thread of the test may hold the allocator's lock at the fork, and nobody there would release it.
int start(const std::vector<std::string>& arguments, const ProcessInput& input,
          const std::string& home, std::array<int, 3> descriptors) {
  std::vector<std::string> all = {LORRY_BINARY};
  all.insert(all.end(), arguments.begin(), arguments.end());
  const Words words(std::move(all));
  const Words environment(variables(input, home));
  const int pid = fork();
  if (pid == 0) {
    for (int i = 0; i < 3; ++i) dup2(descriptors[static_cast<size_t>(i)], i);
    execve(LORRY_BINARY, words.get(), environment.get());
    _exit(127);
  }
  EXPECT_GE(pid, 0);
  return pid;
}

int status_of(int pid) {
  int status = 0;
  while (waitpid(pid, &status, 0) < 0) {
  }
  return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

std::string read_all(int fd) {
  std::string text;
  std::array<char, 4096> buffer{};
  for (ssize_t n; (n = read(fd, buffer.data(), buffer.size())) > 0;) {
    text.append(buffer.data(), static_cast<size_t>(n));
  }
  close(fd);
  return text;
}

// One home for all runs of a test binary, so that the demo is unpacked once.
const std::string& shared_home() {
  static const TestFolder folder;
  static const std::string home = folder.path("home");
  std::filesystem::create_directories(home);
  return home;
}

}  // namespace

ProcessResult run_lorry(const std::vector<std::string>& arguments, const ProcessInput& input) {
  const TestFolder folder;
  const std::string in = folder.write("in", input.in);
  const int in_fd = open(in.c_str(), O_RDONLY | O_CLOEXEC);
  const auto create = [&](const char* name) {
    return open(folder.path(name).c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
  };
  const int out_fd = create("out");
  const int err_fd = create("err");
  const int pid = start(arguments, input, shared_home(), {in_fd, out_fd, err_fd});
  ProcessResult result;
  result.status = status_of(pid);
  for (const int fd : {in_fd, out_fd, err_fd}) close(fd);
  result.out = whole_file(folder.path("out"));
  result.err = whole_file(folder.path("err"));
  return result;
}

ProcessResult run_lorry_on_terminal(const std::vector<std::string>& arguments,
                                    const ProcessInput& input) {
  termios raw{};
  cfmakeraw(&raw);
  winsize size{};
  size.ws_row = 25;
  size.ws_col = 100;
  int master = -1, terminal = -1;
  EXPECT_EQ(openpty(&master, &terminal, nullptr, &raw, &size), 0);
  fcntl(master, F_SETFD, FD_CLOEXEC);
  const Pipe out;
  const int in = open("/dev/null", O_RDONLY | O_CLOEXEC);
  const int pid = start(arguments, input, shared_home(), {in, out.write, terminal});
  for (const int fd : {in, out.write, terminal}) close(fd);
  ProcessResult result;
  result.err = read_all(master);  // ends with an error when the last of its users has gone
  result.out = read_all(out.read);
  result.status = status_of(pid);
  return result;
}

LorryProcess::LorryProcess(const std::vector<std::string>& arguments, const ProcessInput& input) {
  const Pipe out;
  const Pipe err;
  const int in = open("/dev/null", O_RDONLY | O_CLOEXEC);
  pid_ = start(arguments, input, shared_home(), {in, out.write, err.write});
  for (const int fd : {in, out.write, err.write}) close(fd);
  out_ = out.read;
  err_fd_ = err.read;
}

LorryProcess::~LorryProcess() {
  if (pid_ < 0) return;
  kill(pid_, SIGKILL);
  wait();
}

bool LorryProcess::wait_for(const std::string& text) {
  std::array<char, 4096> buffer{};
  while (err_.find(text) == std::string::npos) {
    const ssize_t n = read(err_fd_, buffer.data(), buffer.size());
    if (n <= 0) return false;
    err_.append(buffer.data(), static_cast<size_t>(n));
  }
  return true;
}

void LorryProcess::signal(int number) const { kill(pid_, number); }

ProcessResult LorryProcess::wait() {
  ProcessResult result;
  result.out = read_all(out_);
  result.err = err_ + read_all(err_fd_);
  result.status = status_of(pid_);
  pid_ = -1;
  return result;
}

TestFolder::TestFolder() {
  std::string pattern = (std::filesystem::temp_directory_path() / "lorry-cli-XXXXXX").string();
  EXPECT_NE(mkdtemp(pattern.data()), nullptr);
  path_ = pattern;
}

std::string TestFolder::write(const std::string& name, const std::string& content) const {
  std::filesystem::create_directories(std::filesystem::path(path(name)).parent_path());
  std::ofstream(path(name), std::ios::binary) << content;
  return path(name);
}

std::string golden(const std::string& name) {
  return std::string(LORRY_SOURCE_DIR) + "/tests/golden/" + name;
}

}  // namespace lorry
