#include "fetch/fake_hub.h"

#include "fetch/support.h"

namespace lorry {

namespace {

std::string decode(const std::string& text) {
  std::string out;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '%' && i + 2 < text.size()) {
      out += static_cast<char>(std::stoi(text.substr(i + 1, 2), nullptr, 16));
      i += 2;
    } else {
      out += text[i];
    }
  }
  return out;
}

ServerReply error_reply(int status) {
  return {.status = status, .body = R"({"error":"an error of the hub"})"};
}

}  // namespace

void send_content(const ServerRequest& request, const std::string& content, ServerReply& reply) {
  const std::string range = request.header("range");
  reply.body = content;
  if (range.empty()) return;
  const size_t first = std::stoul(range.substr(std::string("bytes=").size()));
  if (first >= content.size()) {
    reply.status = 416;
    reply.body.clear();
    return;
  }
  reply.status = 206;
  reply.headers["Content-Range"] =
      fmt::format("bytes {}-{}/{}", first, content.size() - 1, content.size());
  reply.body = content.substr(first);
}

FakeHub::FakeHub() {
  const std::string commit(40, 'a');
  revisions = {{"main", commit}};
  commits[commit] = {{"adapter_config.json", {.content = R"({"peft_type": "LORA"})"}},
                     {"adapter_model.safetensors", {.content = noise(200'000), .is_lfs = true}},
                     {"README.md", {.content = "words"}}};
}

std::string FakeHub::commit_of(const std::string& revision) const {
  if (commits.count(revision) > 0) return revision;
  const auto found = revisions.find(revision);
  return found == revisions.end() ? "" : found->second;
}

bool FakeHub::may_read(const ServerRequest& request) const {
  const std::string value = request.header("authorization");
  return value.starts_with("Bearer ") && tokens.count(value.substr(7)) > 0;
}

ServerReply FakeHub::handle(const ServerRequest& request) {
  const auto guard = lock();
  const std::string api = "/api/models/" + repo + "/revision/";
  const std::string resolve = "/" + repo + "/resolve/";
  ServerReply reply = error_reply(404);
  if (request.path.starts_with(api)) {
    reply = is_private && !may_read(request) ? error_reply(401)
                                             : about(decode(request.path.substr(api.size())));
  } else if (request.path.starts_with(resolve)) {
    reply = (is_private || is_gated) && !may_read(request)
                ? error_reply(is_gated ? 403 : 401)
                : file(request, decode(request.path.substr(resolve.size())));
  }
  if (fault) fault(request, reply);
  return reply;
}

ServerReply FakeHub::about(const std::string& revision) const {
  const std::string commit = commit_of(revision);
  if (commit.empty()) return error_reply(404);
  std::string siblings;
  const auto add = [&siblings](const std::string& entry) {
    siblings += (siblings.empty() ? "{" : ",{") + entry + "}";
  };
  for (const auto& [name, f] : commits.at(commit)) {
    const int64_t size = f.size >= 0 ? f.size : static_cast<int64_t>(f.content.size());
    add(fmt::format(R"("rfilename":"{}")", name) +
        (says_sizes ? fmt::format(R"(,"size":{})", size) : ""));
  }
  for (const std::string& name : also_listed) add(fmt::format(R"("rfilename":"{}")", name));
  std::string access;
  if (says_access) {
    access =
        fmt::format(R"("private":{},"gated":{},)", is_private, is_gated ? R"("auto")" : "false");
  }
  return {.headers = {{"Content-Type", "application/json"}},
          .body = fmt::format(R"({{"id":"{}",{}"sha":"{}","siblings":[{}]}})", repo, access, commit,
                              siblings)};
}

ServerReply FakeHub::file(const ServerRequest& request, const std::string& rest) const {
  const size_t slash = rest.find('/');
  const std::string commit = commit_of(rest.substr(0, slash));
  if (commit.empty()) return error_reply(404);
  const auto found = commits.at(commit).find(rest.substr(slash + 1));
  if (found == commits.at(commit).end()) return error_reply(404);
  const File& f = found->second;
  ServerReply reply;
  reply.headers["X-Repo-Commit"] = commit;
  if (!f.is_lfs) {
    reply.headers["ETag"] = '"' + git_sha1_of(f.content) + '"';
    send_content(request, f.content, reply);
    if (f.size >= 0) reply.declared = f.size;
    return reply;
  }
  reply.headers["X-Linked-Etag"] = '"' + sha256_of(f.content) + '"';
  reply.headers["X-Linked-Size"] =
      std::to_string(f.size >= 0 ? f.size : static_cast<int64_t>(f.content.size()));
  if (store.empty()) {
    reply.headers["ETag"] = R"("of-the-store")";
    send_content(request, f.content, reply);
    return reply;
  }
  reply.status = 302;
  reply.headers["Location"] =
      store + "/lfs/" + sha256_of(f.content) + "?Signature=secret-signature";
  return reply;
}

}  // namespace lorry
