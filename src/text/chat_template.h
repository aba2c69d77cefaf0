// A model's chat template: messages to prompt tokens. The template's own special tokens become
// tokens; text of the client that looks like one ("<|im_end|>") is encoded as ordinary text.
// Const and safe to use from many threads at once; the tokenizer must outlive it.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "text/tokenizer.h"

struct LorryTemplate;

namespace lorry {

struct ChatOptions {
  bool add_generation_prompt = true;
  // JSON object with the client's other variables: tools, documents, chat_template_kwargs.
  std::string_view variables = "{}";
  size_t max_bytes = size_t{16} << 20;  // of the rendered text
};

struct RenderedChat {
  std::string text;
  std::vector<int32_t> ids;  // of `text`; nothing is added to it
};

class ChatTemplate {
 public:
  // Throws Error(bad_file) when the template does not compile.
  ChatTemplate(const Tokenizer& tokenizer, std::string_view source);

  // `messages` is a JSON array. Throws Error(invalid_argument): no JSON, the template refused it
  // (its own words are in the message), does too much work, or prints more than max_bytes.
  RenderedChat render(std::string_view messages, const ChatOptions& options = {}) const;
  // It reads the variable `tools`.
  bool takes_tools() const { return takes_tools_; }

 private:
  struct Deleter {
    void operator()(LorryTemplate* chat_template) const;
  };
  const Tokenizer* tokenizer_;
  std::unique_ptr<LorryTemplate, Deleter> handle_;
  bool takes_tools_ = false;
};

}  // namespace lorry
