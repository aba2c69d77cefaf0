#include "models/medusa.h"

#include <array>

#include "base/error.h"
#include "ops/medusa.h"

namespace lorry {

namespace {

// Rows first, first + step, ... of t, n of them.
Tensor every(Tensor t, int64_t first, int64_t step, int64_t n) {
  t.data += first * t.pitch * size_of(t.dtype);
  t.pitch *= step;
  t.shape = {n, t.cols()};
  return t;
}

void linear(Step& step, Tensor y, Tensor x, const Weight& w) {
  const std::array<int32_t, 2> all{0, static_cast<int32_t>(x.rows())};
  step.ops.linear(y, x, w, {all}, step.buf.linear);
}

const MedusaView& medusa_of(const Step& step, const LoraSegment& segment) {
  return step.lora.adapters[static_cast<size_t>(segment.adapter)].medusa;
}

}  // namespace

MedusaRunner::MedusaRunner(const MedusaBuffers& buffers, const ForwardLimits& limits)
    : buffers_(buffers), max_heads_(limits.max_medusa_heads) {
  shared_.reserve(static_cast<size_t>(limits.max_logit_rows));
}

Tensor MedusaRunner::run(Step& step, Tensor h, std::span<const LoraSegment> segments,
                         const Linear& head) {
  heads_ = 0;
  for (const LoraSegment& s : segments) {
    heads_ = std::max(heads_, medusa_of(step, s).shape.heads);
  }
  if (heads_ == 0) return {};
  LORRY_CHECK(heads_ <= max_heads_, "{} Medusa heads, at most {}", heads_, max_heads_);
  shared_.clear();
  int64_t done = 0;  // rows of logits that are written, or will be
  for (const LoraSegment& s : segments) {
    const MedusaView& medusa = medusa_of(step, s);
    if (medusa.shape.heads == 0) continue;
    clear(step.ops, rows(buffers_.logits, done, s.begin * heads_ - done));
    done = int64_t{s.end} * heads_;
    run_blocks(step, h, s, medusa);
    if (medusa.shape.own_output) {
      run_outputs(step, s, medusa);
    } else {
      shared_.push_back({s.begin * heads_, s.end * heads_, s.adapter, 0});
    }
  }
  clear(step.ops, rows(buffers_.logits, done, h.rows() * heads_ - done));
  run_model_output(step, head);
  Tensor logits = buffers_.logits;
  logits.shape = {h.rows(), heads_, logits.cols()};
  return logits;
}

void MedusaRunner::run_blocks(Step& step, Tensor h, const LoraSegment& s,
                              const MedusaView& medusa) {
  const MedusaLayout layout(step.ops, medusa.shape);
  const int64_t n = s.end - s.begin;
  const int64_t dim = medusa.shape.dim;
  const Tensor y = rows(buffers_.y, 0, n);
  for (int32_t i = 0; i < heads_; ++i) {
    const Tensor x = every(buffers_.x, s.begin * heads_ + i, heads_, n);
    if (i >= medusa.shape.heads) {
      clear(step.ops, x);  // whose logits are 0
      continue;
    }
    Tensor in = rows(h, s.begin, n);
    for (int32_t j = 0; j < medusa.shape.blocks; ++j) {
      const auto* bias = reinterpret_cast<const float*>(medusa.data + layout.bias(i, j));
      linear(step, y, in, layout.matrix_of(medusa.data, i, j));
      step.ops.add_silu(x, in, y, view(const_cast<float*>(bias), Dtype::f32, {dim}));
      in = x;
    }
  }
}

void MedusaRunner::run_outputs(Step& step, const LoraSegment& s, const MedusaView& medusa) {
  const MedusaLayout layout(step.ops, medusa.shape);
  const int64_t n = s.end - s.begin;
  for (int32_t i = 0; i < heads_; ++i) {
    const Tensor logits = every(buffers_.logits, s.begin * heads_ + i, heads_, n);
    if (i >= medusa.shape.heads) {
      clear(step.ops, logits);
    } else {
      linear(step, logits, every(buffers_.x, s.begin * heads_ + i, heads_, n),
             layout.output_of(medusa.data, i));
    }
  }
}

void MedusaRunner::run_model_output(Step& step, const Linear& head) {
  for (size_t i = 0; i < shared_.size();) {
    const int32_t begin = shared_[i].begin;
    int32_t end = begin;
    const size_t first = i;
    for (; i < shared_.size() && (i == first || shared_[i].begin == end); ++i) {
      end = shared_[i].end;
      shared_[i].begin -= begin;
      shared_[i].end -= begin;
    }
    const std::array<int32_t, 2> all{0, end - begin};
    apply(step, rows(buffers_.logits, begin, end - begin), rows(buffers_.x, begin, end - begin),
          head, {{all}, std::span(shared_).subspan(first, i - first)});
  }
}

}  // namespace lorry
