// FakeHub: a FakeServer that speaks the hub's protocol for one repository, with a hook to spoil its
// answers. Its fields are changed under lock() once it runs.
#pragma once
#include <functional>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "fetch/fake_server.h"

namespace lorry {

class FakeHub {
 public:
  struct File {
    std::string content;
    bool is_lfs = false;
    int64_t size = -1;  // announced; -1: the content's
  };
  using Files = std::map<std::string, File>;

  // A repository org/name whose revision main is an adapter of two files and a README.md.
  FakeHub();

  void start() {
    server.start([this](const ServerRequest& r) { return handle(r); });
  }
  std::unique_lock<std::mutex> lock() { return std::unique_lock(mutex_); }
  void change(const std::function<void()>& change_fields) {
    const auto guard = lock();
    change_fields();
  }

  std::string repo = "org/name";
  std::map<std::string, std::string> revisions;  // name -> commit; commits name themselves
  std::map<std::string, Files> commits;
  bool is_private = false;
  bool is_gated = false;
  bool says_access = true;               // "private" and "gated" are in the answer
  bool says_sizes = true;                // sizes are in the listing
  std::set<std::string> tokens;          // which may read a private or gated repository
  std::vector<std::string> also_listed;  // names without a file
  // Where LFS files are: "" for here, else the origin of a server that has them at /lfs/SHA256.
  std::string store;
  // Changes what is about to be answered.
  std::function<void(const ServerRequest&, ServerReply&)> fault;

 private:
  ServerReply handle(const ServerRequest& request);
  ServerReply about(const std::string& revision) const;
  ServerReply file(const ServerRequest& request, const std::string& rest) const;
  bool may_read(const ServerRequest& request) const;
  std::string commit_of(const std::string& revision) const;

  std::mutex mutex_;

 public:
  FakeServer server;  // last: its threads end before the rest goes
};

// Adds the part of `content` that a Range header asks for to the reply.
void send_content(const ServerRequest& request, const std::string& content, ServerReply& reply);

}  // namespace lorry
