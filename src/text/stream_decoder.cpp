#include "text/stream_decoder.h"

namespace lorry {

bool StreamDecoder::ends_character(int32_t id) {
  if (tokenizer_->is_byte_run(id)) return false;
  for (char c : tokenizer_->bytes(id)) {
    const auto byte = static_cast<uint8_t>(c);
    if (expected_ > 0 && byte >= lowest_ && byte <= highest_) {
      --expected_;
      lowest_ = 0x80;
      highest_ = 0xBF;
      continue;
    }
    // A first byte; or an invalid one, which ends what was incomplete and is looked at afresh.
    // The ranges are those of the Unicode standard, table 3-7.
    lowest_ = byte == 0xE0 ? 0xA0 : byte == 0xF0 ? 0x90 : 0x80;
    highest_ = byte == 0xED ? 0x9F : byte == 0xF4 ? 0x8F : 0xBF;
    expected_ = byte >= 0xC2 && byte <= 0xDF   ? 1
                : byte >= 0xE0 && byte <= 0xEF ? 2
                : byte >= 0xF0 && byte <= 0xF4 ? 3
                                               : 0;
  }
  return expected_ == 0;
}

std::string StreamDecoder::push(int32_t id) {
  // Left out before decoding: a character may go on across it.
  if (!tokenizer_->contains(id) || (skip_special_ && tokenizer_->is_special(id))) return {};
  pending_.push_back(id);
  return ends_character(id) ? take_pending() : std::string();
}

std::string StreamDecoder::finish() {
  std::string text = pending_.empty() ? std::string() : take_pending();
  context_.clear();
  expected_ = 0;
  return text;
}

std::string StreamDecoder::rest() const {
  if (pending_.empty()) return {};
  std::vector<int32_t> all = context_;
  all.insert(all.end(), pending_.begin(), pending_.end());
  return fresh_text(all);
}

std::string StreamDecoder::fresh_text(const std::vector<int32_t>& all) const {
  // Decoders treat the first token of a text differently (its leading space is dropped), so the
  // pending tokens are decoded behind the last ones that gave text.
  const size_t known = tokenizer_->decode(context_, skip_special_).size();
  std::string text = tokenizer_->decode(all, skip_special_);
  return text.size() > known ? text.substr(known) : std::string();
}

std::string StreamDecoder::take_pending() {
  std::vector<int32_t> all = context_;
  all.insert(all.end(), pending_.begin(), pending_.end());
  std::string fresh = fresh_text(all);
  context_ = fresh.empty() ? std::move(all) : std::move(pending_);
  pending_.clear();
  return fresh;
}

}  // namespace lorry
