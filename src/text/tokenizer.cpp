#include "text/tokenizer.h"

#include <algorithm>

#include "base/files.h"
#include "base/json.h"
#include "text/ffi_call.h"

namespace lorry {

namespace {

// The largest known tokenizer.json has 35 MB.
constexpr size_t kMaxTokenizerBytes = size_t{256} << 20;
constexpr int kProbes = 8;

json::object read_object(const std::string& folder, const std::string& name) {
  std::string path = join_path(folder, name);
  if (!file_exists(path)) return {};
  json::value value = parse_json_file(path);
  if (!value.is_object()) fail(Code::bad_file, "{}: expected a JSON object", path);
  return std::move(value.get_object());
}

// A token's name is a string, or an object whose "content" is it.
std::string token_name(const json::object& config, std::string_view key) {
  const json::value* value = config.if_contains(key);
  if (value != nullptr && value->is_object()) value = value->get_object().if_contains("content");
  if (value == nullptr || !value->is_string()) return {};
  return std::string(value->get_string());
}

// A string, or a list of {name, template} of which "default" is the one for chats.
std::string template_source(const json::object& config) {
  const json::value* value = config.if_contains("chat_template");
  if (value == nullptr) return {};
  if (value->is_string()) return std::string(value->get_string());
  if (!value->is_array()) return {};
  for (const json::value& entry : value->get_array()) {
    if (entry.is_object() && token_name(entry.get_object(), "name") == "default") {
      return token_name(entry.get_object(), "template");
    }
  }
  return {};
}

std::vector<int32_t> id_list(const json::object& config, std::string_view key,
                             const std::string& path) {
  const json::value* value = config.if_contains(key);
  if (value == nullptr || value->is_null()) return {};
  json::array list = value->is_array() ? value->get_array() : json::array{*value};
  std::vector<int32_t> ids;
  for (const json::value& entry : list) {
    if (!entry.is_int64() || entry.get_int64() < 0 || entry.get_int64() > INT32_MAX) {
      fail(Code::bad_file, "{}: {} holds something that is no token id", path, key);
    }
    ids.push_back(static_cast<int32_t>(entry.get_int64()));
  }
  return ids;
}

struct Encoding {
  ffi::Array<uint32_t> ids;      // [n]
  ffi::Array<uint32_t> offsets;  // [n][2], or null
  size_t n = 0;
};

Encoding encode_raw(const LorryTokenizer* handle, std::string_view text,
                    const EncodeOptions& options, uint8_t offsets) {
  LorryEncodeInput input{};
  input.text = ffi::bytes(text);
  input.text_len = text.size();
  input.breaks = options.breaks.data();
  input.n_breaks = options.breaks.size();
  input.add_special = options.add_special ? 1 : 0;
  input.allow_special = options.allow_special ? 1 : 0;
  input.offsets = offsets;
  LorryEncoding out{};
  char* error = nullptr;
  int32_t status = lorry_tokenizer_encode(handle, &input, &out, &error);
  ffi::check(status, error, Code::invalid_argument, "the text cannot be encoded");
  return {ffi::Array<uint32_t>(out.ids), ffi::Array<uint32_t>(out.offsets), out.n};
}

LorryToken token(const LorryTokenizer* handle, int32_t id) {
  LorryToken out{};
  lorry_tokenizer_token(handle, static_cast<uint32_t>(id), &out);
  return out;
}

}  // namespace

void Tokenizer::Deleter::operator()(LorryTokenizer* tokenizer) const {
  lorry_tokenizer_free(tokenizer);
}

Tokenizer::Tokenizer(Tokenizer&&) noexcept = default;
Tokenizer::~Tokenizer() = default;

Tokenizer Tokenizer::load(const std::string& folder) {
  std::string path = join_path(folder, "tokenizer.json");
  if (!file_exists(path)) {
    fail(Code::not_found, "{}: not found. Lorry reads the tokenizer from tokenizer.json only",
         path);
  }
  std::string content = read_file(path, kMaxTokenizerBytes);
  Tokenizer tokenizer;
  LorryTokenizer* handle = nullptr;
  char* error = nullptr;
  int32_t status = lorry_tokenizer_load(ffi::bytes(content), content.size(), &handle, &error);
  ffi::check(status, error, Code::bad_file, path);
  tokenizer.handle_.reset(handle);
  for (int32_t id = 0; id < tokenizer.vocab_size(); ++id) {
    tokenizer.longest_token_bytes_ =
        std::max(tokenizer.longest_token_bytes_, tokenizer.bytes(id).size());
  }
  tokenizer.read_config(folder);
  tokenizer.read_eos(folder);
  return tokenizer;
}

void Tokenizer::read_config(const std::string& folder) {
  json::object config = read_object(folder, "tokenizer_config.json");
  json::object map = read_object(folder, "special_tokens_map.json");
  auto name = [&](std::string_view key) {
    std::string found = token_name(config, key);
    return found.empty() ? token_name(map, key) : found;
  };
  names_ = {name("bos_token"), name("eos_token"), name("unk_token"), name("pad_token")};
  if (!names_.bos.empty()) {
    bos_id_ = id_of(names_.bos);
    if (!bos_id_) {
      fail(Code::bad_file, "{}: its bos_token \"{}\" is no token of tokenizer.json", folder,
           names_.bos);
    }
  }
  std::string path = join_path(folder, "chat_template.jinja");
  chat_template_ = file_exists(path) ? read_file(path, size_t{1} << 20) : template_source(config);
  const json::value* add_bos = config.if_contains("add_bos_token");
  check_bos(folder, add_bos != nullptr && add_bos->is_bool() && add_bos->get_bool());
}

void Tokenizer::check_bos(const std::string& folder, bool declared) const {
  if (!declared) return;  // ffi/ has compared what tokenizer.json itself declares
  for (int probe = 0; probe < kProbes; ++probe) {
    std::vector<int32_t> ids = encode("probe");
    if (bos_id_ && !ids.empty() && ids.front() == *bos_id_) continue;
    fail(Code::bad_file,
         "{}: tokenizer_config.json has add_bos_token, but the post-processor of tokenizer.json "
         "does not add a BOS. Save the folder again with a current transformers release, or "
         "remove add_bos_token",
         folder);
  }
}

void Tokenizer::read_eos(const std::string& folder) {
  for (const char* name : {"generation_config.json", "config.json"}) {
    eos_ids_ = id_list(read_object(folder, name), "eos_token_id", join_path(folder, name));
    if (!eos_ids_.empty()) break;
  }
  if (eos_ids_.empty() && !names_.eos.empty()) {
    if (std::optional<int32_t> id = id_of(names_.eos)) eos_ids_.push_back(*id);
  }
  for (int32_t id : eos_ids_) {
    if (!contains(id)) {
      fail(Code::bad_file, "{}: eos_token_id {} is no token of tokenizer.json", folder, id);
    }
  }
}

std::vector<int32_t> Tokenizer::encode(std::string_view text, const EncodeOptions& options) const {
  Encoding encoding = encode_raw(handle(), text, options, LORRY_OFFSETS_NONE);
  std::span<const uint32_t> ids(encoding.ids.get(), encoding.n);
  return {ids.begin(), ids.end()};
}

std::vector<TokenSpan> Tokenizer::encode_spans(std::string_view text,
                                               const EncodeOptions& options) const {
  Encoding encoding = encode_raw(handle(), text, options, LORRY_OFFSETS_CHARS);
  std::vector<TokenSpan> spans(encoding.n);
  for (size_t i = 0; i < encoding.n; ++i) {
    spans[i] = {static_cast<int32_t>(encoding.ids[i]),
                static_cast<int32_t>(encoding.offsets[2 * i]),
                static_cast<int32_t>(encoding.offsets[2 * i + 1])};
  }
  return spans;
}

std::string Tokenizer::decode(std::span<const int32_t> ids, bool skip_special) const {
  char* text = nullptr;
  size_t length = 0;
  char* error = nullptr;
  int32_t status = lorry_tokenizer_decode(handle(), ffi::ids(ids), ids.size(), skip_special ? 1 : 0,
                                          &text, &length, &error);
  ffi::check(status, error, Code::internal, "the tokens cannot be decoded");
  ffi::Array<char> owner(text);
  return std::string(text, length);
}

int32_t Tokenizer::vocab_size() const {
  return static_cast<int32_t>(lorry_tokenizer_vocab_size(handle()));
}

bool Tokenizer::contains(int32_t id) const {
  return (token(handle(), id).flags & LORRY_TOKEN_KNOWN) != 0;
}

bool Tokenizer::is_special(int32_t id) const {
  return (token(handle(), id).flags & LORRY_TOKEN_SPECIAL) != 0;
}

bool Tokenizer::is_byte_run(int32_t id) const {
  return (token(handle(), id).flags & LORRY_TOKEN_BYTE_RUN) != 0;
}

std::string_view Tokenizer::piece(int32_t id) const {
  LorryToken found = token(handle(), id);
  return {found.piece, found.piece_len};
}

std::string_view Tokenizer::bytes(int32_t id) const {
  LorryToken found = token(handle(), id);
  return {reinterpret_cast<const char*>(found.bytes), found.bytes_len};
}

std::optional<int32_t> Tokenizer::id_of(std::string_view piece) const {
  uint32_t id = 0;
  if (lorry_tokenizer_token_id(handle(), ffi::bytes(piece), piece.size(), &id) == 0) return {};
  return static_cast<int32_t>(id);
}

}  // namespace lorry
