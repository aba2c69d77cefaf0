// A chat template of a model folder, with messages and variables of a client.
// Input: the template, the messages and the variables, separated by lines "---".
#include "fuzz.h"
#include "text/chat_template.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace lorry;  // NOLINT
  static const Tokenizer tokenizer = Tokenizer::load(LORRY_SOURCE_DIR "/demo/mixtral");
  const auto parts = fuzz::split(fuzz::text_of(data, size), 3);
  fuzz::may_refuse([&] {
    const ChatTemplate chat(tokenizer, parts[0]);
    ChatOptions options;
    options.max_bytes = 1 << 16;
    if (!parts[2].empty()) options.variables = parts[2];
    const RenderedChat rendered = chat.render(parts[1], options);
    LORRY_CHECK(rendered.text.size() <= options.max_bytes, "more text than is allowed");
    for (const int32_t id : rendered.ids) LORRY_CHECK(tokenizer.contains(id), "token {}", id);
  });
  return 0;
}
