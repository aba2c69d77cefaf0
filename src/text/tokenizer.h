// The tokenizer of a model folder: text to token ids and back, exactly as HF tokenizers does it.
// Const and safe to use from many threads at once. Holds a handle of ffi/; move-only.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

struct LorryTokenizer;

namespace lorry {

struct EncodeOptions {
  bool add_special = true;    // let the tokenizer add what it adds to a prompt (BOS)
  bool allow_special = true;  // false: "<|im_end|>" in the text is ordinary text
  // Ascending byte offsets p of the text: no special token may start at p or span it.
  std::span<const size_t> breaks = {};
};

struct TokenSpan {
  int32_t id = 0;
  int32_t start = 0;  // in characters (code points) of the text
  int32_t stop = 0;
};

// Names of tokens that a chat template may print; empty where the model has none.
struct SpecialNames {
  std::string bos, eos, unk, pad;
};

class Tokenizer {
 public:
  // Reads tokenizer.json and, where present, tokenizer_config.json, special_tokens_map.json,
  // chat_template.jinja, generation_config.json and config.json of a folder. Encodes a probe text
  // and compares the added BOS with what the files declare.
  // Throws Error(not_found | bad_file).
  static Tokenizer load(const std::string& folder);
  Tokenizer(Tokenizer&&) noexcept;
  ~Tokenizer();

  // Throw Error(invalid_argument) when the text is not UTF-8.
  std::vector<int32_t> encode(std::string_view text, const EncodeOptions& options = {}) const;
  std::vector<TokenSpan> encode_spans(std::string_view text,
                                      const EncodeOptions& options = {}) const;
  // Ids outside of the vocabulary are skipped. Bytes that are no UTF-8 become U+FFFD.
  std::string decode(std::span<const int32_t> ids, bool skip_special = true) const;

  // One more than the largest id. Smaller than the model's when its embedding is padded.
  int32_t vocab_size() const;
  bool contains(int32_t id) const;
  bool is_special(int32_t id) const;
  // A token <0xXX> that decodes only together with its neighbours of the same kind.
  bool is_byte_run(int32_t id) const;
  // As in the vocabulary: "▁the", "Ġthe". Empty for an unknown id. Valid as long as the tokenizer.
  std::string_view piece(int32_t id) const;
  // What it stands for: " the". Perhaps a part of a character.
  std::string_view bytes(int32_t id) const;
  std::optional<int32_t> id_of(std::string_view piece) const;

  std::optional<int32_t> bos_id() const { return bos_id_; }
  // Ids that end a generation: of generation_config.json, else config.json, else the EOS token's.
  const std::vector<int32_t>& eos_ids() const { return eos_ids_; }
  const SpecialNames& names() const { return names_; }
  // No text of n tokens is longer than n times this.
  size_t longest_token_bytes() const { return longest_token_bytes_; }
  // Source of the model's chat template; empty if it has none.
  const std::string& chat_template() const { return chat_template_; }

  LorryTokenizer* handle() const { return handle_.get(); }

 private:
  struct Deleter {
    void operator()(LorryTokenizer* tokenizer) const;
  };

  Tokenizer() = default;
  void read_config(const std::string& folder);
  void read_eos(const std::string& folder);
  void check_bos(const std::string& folder, bool declared) const;

  std::unique_ptr<LorryTokenizer, Deleter> handle_;
  SpecialNames names_;
  std::optional<int32_t> bos_id_;
  std::vector<int32_t> eos_ids_;
  std::string chat_template_;
  size_t longest_token_bytes_ = 0;
};

}  // namespace lorry
