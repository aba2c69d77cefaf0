#include "text/chat_template.h"

#include <cctype>

#include <boost/json/serialize.hpp>

#include "base/json.h"
#include "text/ffi_call.h"

namespace lorry {

namespace {

// What transformers passes to a template besides the messages.
std::string server_variables(const SpecialNames& names, bool add_generation_prompt) {
  json::object variables;
  variables["add_generation_prompt"] = add_generation_prompt;
  auto add = [&](std::string_view key, const std::string& name) {
    if (!name.empty()) variables[key] = name;
  };
  add("bos_token", names.bos);
  add("eos_token", names.eos);
  add("unk_token", names.unk);
  add("pad_token", names.pad);
  return json::serialize(variables);
}

bool is_name(char c) { return std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '_'; }

// Whether `word` stands in the text as a name of its own.
bool has_name(std::string_view text, std::string_view word) {
  for (size_t at = text.find(word); at != text.npos; at = text.find(word, at + 1)) {
    const size_t end = at + word.size();
    const bool begins = at == 0 || !(is_name(text[at - 1]) || text[at - 1] == '.');
    if (begins && (end == text.size() || !is_name(text[end]))) return true;
  }
  return false;
}

}  // namespace

void ChatTemplate::Deleter::operator()(LorryTemplate* chat_template) const {
  lorry_template_free(chat_template);
}

ChatTemplate::ChatTemplate(const Tokenizer& tokenizer, std::string_view source)
    : tokenizer_(&tokenizer), takes_tools_(has_name(source, "tools")) {
  LorryTemplate* handle = nullptr;
  char* error = nullptr;
  int32_t status = lorry_template_compile(ffi::bytes(source), source.size(), &handle, &error);
  ffi::check(status, error, Code::bad_file, "the chat template does not compile");
  handle_.reset(handle);
}

RenderedChat ChatTemplate::render(std::string_view messages, const ChatOptions& options) const {
  std::string server = server_variables(tokenizer_->names(), options.add_generation_prompt);
  LorryRenderInput input{};
  input.messages = ffi::bytes(messages);
  input.messages_len = messages.size();
  input.client = ffi::bytes(options.variables);
  input.client_len = options.variables.size();
  input.server = ffi::bytes(server);
  input.server_len = server.size();
  input.max_output = options.max_bytes;
  LorryRendered out{};
  char* error = nullptr;
  int32_t status = lorry_template_render(handle_.get(), tokenizer_->handle(), &input, &out, &error);
  ffi::check(status, error, Code::invalid_argument, "chat template");
  ffi::Array<char> text(out.text);
  ffi::Array<size_t> breaks(out.breaks);

  RenderedChat chat;
  chat.text.assign(text.get(), out.text_len);
  EncodeOptions encode;
  encode.add_special = false;
  encode.breaks = {breaks.get(), out.n_breaks};
  chat.ids = tokenizer_->encode(chat.text, encode);
  return chat;
}

}  // namespace lorry
