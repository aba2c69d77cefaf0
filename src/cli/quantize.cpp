// `lorry quantize`: a model folder that holds its weights as the kernels read them.
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <string>

#include <CLI/CLI.hpp>
#include <fmt/format.h>
#include <unistd.h>

#include "base/error.h"
#include "base/files.h"
#include "base/system.h"
#include "cli/commands.h"
#include "cli/model_flags.h"
#include "cli/progress_line.h"
#include "cli/signals.h"
#include "cli/talk.h"
#include "cli/values.h"
#include "engine/loaded_model.h"
#include "models/packed_model.h"

namespace lorry {

namespace {

namespace fs = std::filesystem;

constexpr uintmax_t kMaxCopied = uintmax_t{256} << 20;  // bytes of one file beside the weights

struct Flags {
  std::string model, to, out;
  int32_t group = 0, threads = 0;
  bool head = false, force = false, no_progress = false;
};

WeightFormats formats_of(const Flags& f) {
  std::string format = f.to;
  if (f.group != 0 && f.to != "int4") {
    fail(Code::invalid_argument, "--group is of int4: int8 and fp8 have one scale for each output");
  }
  if (f.group == 32) format += "-32";
  std::string note;
  return parse_quantize({format, f.head}, note);
}

// A new folder beside `out`, which takes its place in commit(); removed when that does not come.
class NewFolder {
 public:
  NewFolder(const std::string& out, bool force) : out_(fs::absolute(out).lexically_normal()) {
    if (!out_.has_filename()) out_ = out_.parent_path();
    std::error_code error;
    const auto found = fs::symlink_status(out_, error);
    if (fs::exists(found)) check_replaced(fs::is_directory(found), force);
    path_ = out_;
    path_ += fmt::format(".{}.tmp", getpid());
    fs::remove_all(path_, error);  // of a process that had the same number and was killed
    if (!fs::create_directory(path_, error)) {
      fail(Code::invalid_argument, "--out {}: cannot make a folder there: {}", quote(out),
           error ? error.message() : "it exists");
    }
  }
  ~NewFolder() { remove(); }
  NewFolder(const NewFolder&) = delete;
  NewFolder& operator=(const NewFolder&) = delete;

  std::string path(std::string_view name) const { return path_ / name; }

  void commit() {
    fs::path old = out_;
    old += fmt::format(".{}.old", getpid());
    std::error_code error;
    const bool replaces = fs::exists(out_);
    if (replaces) fs::rename(out_, old, error);
    if (!error) fs::rename(path_, out_, error);
    if (error) {
      std::error_code ignored;
      if (replaces && !fs::exists(out_)) fs::rename(old, out_, ignored);
      fail(Code::invalid_argument, "--out {}: cannot put the new folder there: {}",
           quote(out_.string()), error.message());
    }
    if (replaces) fs::remove_all(old, error);
  }

  void remove() const {
    std::error_code ignored;
    fs::remove_all(path_, ignored);
  }

 private:
  // Only what this command made is ever replaced.
  void check_replaced(bool folder, bool force) const {
    const bool packed = folder && PackedFile::in_folder(out_);
    if (packed && force) return;
    fail(Code::invalid_argument, "--out {} exists{}", quote(out_.string()),
         packed  ? ": add --force to replace it"
         : force ? " and is no packed model: --force replaces nothing else; name a new folder"
                 : ": name a new folder");
  }

  fs::path out_, path_;
};

// config.json, tokenizer and templates: all small text files but what describes the weight files.
bool is_copied(const fs::directory_entry& entry) {
  const std::string name = entry.path().filename().string();
  if (name.ends_with(".index.json") || !entry.is_regular_file()) return false;
  for (const char* ending : {".json", ".jinja", ".model", ".txt", ".tiktoken"}) {
    if (name.ends_with(ending)) return entry.file_size() <= kMaxCopied;
  }
  return false;
}

void copy_files(const std::string& from, const NewFolder& to) {
  for (const auto& entry : fs::directory_iterator(from)) {
    if (!is_copied(entry)) continue;
    std::error_code error;
    fs::copy_file(entry.path(), to.path(entry.path().filename().string()), error);
    if (error) {
      fail(Code::invalid_argument, "{}: cannot copy it to {}: {}", entry.path().string(),
           to.path(""), error.message());
    }
  }
}

// Not a folder of safetensors with weights that are floats.
void check_source(const std::string& model, const ModelFiles& files) {
  if (files.config_sha256.empty()) {
    fail(Code::invalid_argument, "{} is no folder: it has no files to pack", quote(model));
  }
  const PackedFile* packed = files.source->packed();
  const std::string method = packed != nullptr ? "lorry quantize" : files.source->scheme().method;
  if (method.empty()) return;
  fail(Code::invalid_argument, "{}: this model is quantised already ({}): pack the original", model,
       method);
}

int run(const Flags& flags) {
  const WeightFormats formats = formats_of(flags);
  ModelDownload download;
  download.no_progress = flags.no_progress;
  const ModelPlace place = find_model(flags.model, download);
  const ModelFiles files = open_model(place.folder);
  check_source(flags.model, files);
  const Architecture& architecture = architecture_of(files.config.text("model_type"));
  Spec spec = architecture.spec(files.config);
  spec.formats = formats;

  NewFolder out(flags.out, flags.force);
  ProgressLine line(progress_place(!flags.no_progress));
  const Signals signals([&] {
    line.end();
    out.remove();
    std::_Exit(kInterrupted);
  });
  const auto start = std::chrono::steady_clock::now();
  ThreadPool pool(flags.threads > 0 ? flags.threads : physical_cores());
  const auto ops = make_cpu_ops(Dtype::bf16, pool);
  copy_files(place.folder, out);
  const int64_t bytes =
      write_packed(out.path(kPackedName), architecture, spec, files, *ops, line.sink());
  line.end();
  out.commit();
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  fmt::print("{}: {} as {}, {} in {:.1f} s\n", flags.out, flags.model, to_string(formats.linears),
             format_bytes(static_cast<size_t>(bytes)), seconds.count());
  return 0;
}

}  // namespace

Command add_quantize(CLI::App& lorry) {
  const auto flags = std::make_shared<Flags>();
  CLI::App& app = *lorry.add_subcommand(
      "quantize", "Write a model with quantised weights, in a form that starts in seconds");
  const char* group = "Model";
  app.add_option("model", flags->model,
                 "Folder of the model, OWNER/NAME on the hub, 'demo' or 'demo:dbrx'")
      ->required()
      ->group(group)
      ->type_name(kModel);
  app.add_option("--to", flags->to, "What attention and experts are stored as")
      ->check(CLI::IsMember({"int8", "int4", "fp8"}).description(""))
      ->required()
      ->group(group)
      ->type_name("int8|int4|fp8");
  app.add_option("--group", flags->group,
                 "int4: inputs that share a scale; 32 is larger and more exact (default: 128)")
      ->check(CLI::IsMember({128, 32}).description(""))
      ->group(group)
      ->type_name("128|32");
  app.add_flag("--quantize-head", flags->head, "Store the output matrix so as well")->group(group);
  app.add_option("--out", flags->out, "The folder to write")
      ->required()
      ->group(group)
      ->type_name(kFolder);
  app.add_flag("--force", flags->force, "Replace a packed model that is there")->group(group);
  accept_units(
      app.add_option("--threads", flags->threads, "Compute threads (default: physical cores)")
          ->group("Machine"),
      0, 4096);
  add_progress_flag(app, flags->no_progress, "Logging");
  app.footer(
      "Example\n"
      "  lorry quantize /models/mixtral --to int8 --out /models/mixtral-int8\n"
      "  lorry serve /models/mixtral-int8\n"
      "The new folder is a model like any other, for every command; its answers are those of\n"
      "--quantize with the original, bit by bit. It holds all that is needed: the weights, the\n"
      "tokenizer and config.json. Adapters are used as they are.");
  return {&app, [flags] { return run(*flags); }};
}

}  // namespace lorry
