// `lorry pull`.
#include <memory>
#include <string>

#include <CLI/CLI.hpp>
#include <fmt/format.h>

#include "base/error.h"
#include "base/system.h"
#include "cli/commands.h"
#include "cli/progress_line.h"
#include "cli/pull.h"
#include "cli/values.h"

namespace lorry {

namespace {

struct Flags {
  RemoteName what;
  std::string to;
  bool quiet = false, no_progress = false;
};

// How the folder is used.
std::string next_step(const Fetched& fetched, const std::string& folder) {
  if (fetched.kind == RemoteKind::model) return fmt::format("lorry serve {}", folder);
  return fmt::format("lorry serve MODEL --lora-modules NAME={}", folder);
}

int run(const Flags& f) {
  if (!is_remote_name(f.what.name)) {
    fail(Code::invalid_argument,
         "{}: expected what the hub calls it, OWNER/NAME or OWNER/NAME@REVISION, or "
         "s3://BUCKET/PREFIX",
         quote(f.what.name));
  }
  const PullTalk talk = f.quiet         ? PullTalk::silent
                        : f.no_progress ? PullTalk::lines_only
                                        : PullTalk::all;
  const Fetched fetched = pull(f.what, RemoteKind::any, talk);
  if (!f.to.empty()) place_files(fetched.folder, f.to);
  const std::string& folder = f.to.empty() ? fetched.folder : f.to;
  if (!f.quiet) {
    const auto bytes = static_cast<size_t>(fetched.downloaded_bytes);
    const std::string how =
        bytes == 0 ? "all of it was here" : format_bytes(bytes) + " downloaded and verified";
    std::fputs(fmt::format("{}: {}; revision {}\nUse it: {}\n", f.what.name, how, fetched.revision,
                           next_step(fetched, folder))
                   .c_str(),
               stderr);
  }
  fmt::print("{}\n", folder);
  return 0;
}

}  // namespace

Command add_pull(CLI::App& lorry) {
  const auto flags = std::make_shared<Flags>();
  CLI::App& app =
      *lorry.add_subcommand("pull", "Download a model or an adapter, and print its folder");
  const char* group = "Download";
  app.add_option("id", flags->what.name,
                 "OWNER/NAME or OWNER/NAME@REVISION of a Hugging Face hub, or s3://BUCKET/PREFIX")
      ->required()
      ->group(group)
      ->option_text("ID");
  app.add_option("--revision", flags->what.revision, "Branch, tag or commit (default: main)")
      ->group(group)
      ->type_name("NAME");
  app.add_option("--cache", flags->what.cache,
                 "Folder that keeps downloads (default: HF_HUB_CACHE, or huggingface_hub's; of S3 "
                 "lorry/s3 in the user's cache)")
      ->group(group)
      ->type_name(kFolder);
  app.add_option("--to", flags->to,
                 "Folder to have the files in as well: as links where the disk is the same, else "
                 "as copies (default: none)")
      ->group(group)
      ->type_name(kFolder);
  const char* logging = "Logging";
  add_progress_flag(app, flags->no_progress, logging);
  app.add_flag("-q,--quiet", flags->quiet, "Print the folder, and nothing else but errors")
      ->group(logging);
  app.footer(
      "Examples\n"
      "  lorry pull mistralai/Mixtral-8x7B-Instruct-v0.1\n"
      "  lorry serve MODEL --lora-modules sql=$(lorry pull -q org/sql-adapter --revision v2)\n"
      "  lorry pull s3://bucket/adapters/sql --to /adapters/sql\n"
      "Only *.safetensors, *.json and *.jinja are downloaded. What is there in part is gone on "
      "with, and\n"
      "every file of a hub is compared with its hash. HF_TOKEN, HF_ENDPOINT, HF_HUB_CACHE and\n"
      "HF_HUB_OFFLINE mean what they mean to huggingface_hub; AWS_* what they mean to the AWS "
      "tools.");
  return {&app, [flags] { return run(*flags); }};
}

}  // namespace lorry
