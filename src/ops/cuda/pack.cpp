// Layouts, and packing at load time on the processor.
#include "base/float16.h"
#include "base/float8.h"
#include "ops/cuda/backend.h"
#include "ops/cuda/pack_rows.h"

namespace lorry::cuda {

WeightPlan plan_of(const WeightFormat& format, Dtype act, int64_t in) {
  using Kind = WeightFormat::Kind;
  WeightPlan p;
  p.in = static_cast<int32_t>(in);
  p.values = format.kind == Kind::int8   ? Values::s8
             : format.kind == Kind::int4 ? Values::s4
             : format.kind == Kind::fp8  ? Values::fp8
             : act == Dtype::bf16        ? Values::bf16
             : act == Dtype::f16         ? Values::f16
                                         : Values::f32;
  if (format.plain()) return p;
  p.half = format.group != 0;
  p.zeros = format.zeros;
  p.scales = static_cast<int32_t>(format.scales(in));
  // One scale: all chunks are its own.
  p.group = static_cast<int32_t>(format.group != 0 ? format.group : div_up(in, kChunk) * kChunk);
  return p;
}

void CudaOps::put(std::byte* dst, const std::byte* from, size_t bytes) const {
  if (memory_.contains(dst)) {
    memory_.write(dst, from, bytes);
  } else {
    std::memcpy(dst, from, bytes);
  }
}

void CudaOps::get(std::byte* to, const std::byte* src, size_t bytes) const {
  if (memory_.contains(src)) {
    memory_.read(to, src, bytes);
  } else {
    std::memcpy(to, src, bytes);
  }
}

Weight CudaOps::weight_layout(int64_t groups, int64_t out, int64_t in, WeightFormat format) const {
  Weight w;
  w.dtype = act_;
  w.format = format;
  w.groups = groups;
  w.out = out;
  w.in = in;
  const WeightPlan plan = plan_of(w);
  // Sums of int8, and of int4 times 16, are exact up to here.
  const int64_t most = plan.values == Values::s8 ? 65536 : 131072;
  LORRY_CHECK((plan.values != Values::s8 && plan.values != Values::s4) ||
                  std::min<int64_t>(plan.group, in) <= most,
              "{} inputs of a scale", std::min<int64_t>(plan.group, in));
  w.group_bytes = div_up(out, kRowBlock) * plan.block_bytes();
  return w;
}

namespace {

// Rows that go to neighbouring row blocks.
struct Run {
  int64_t row, n;  // of the source
  int64_t first;   // of the linear
};

// 64 of every 128 rows where `interleaved`; at most kRunBlocks row blocks in a run.
std::vector<Run> runs_of(int64_t first, int64_t n, bool interleaved) {
  constexpr int64_t kRunBlocks = 32;
  const int64_t step = interleaved ? kPanel : kRunBlocks * kRowBlock;
  std::vector<Run> runs;
  for (int64_t row = 0; row < n;) {
    const int64_t to = interleaved ? first + row / kPanel * 2 * kPanel : first + row;
    const int64_t count = std::min(n - row, interleaved ? step : step - to % kRowBlock);
    runs.push_back({row, count, to});
    row += count;
  }
  return runs;
}

}  // namespace

// f(row block, its source rows from `row` on, their first row in it, how many).
template <class F>
void CudaOps::pack_rows(const Weight& w, int64_t group, int64_t first, int64_t n, bool interleaved,
                        F&& f) const {
  const WeightPlan plan = plan_of(w);
  const int64_t block_bytes = plan.block_bytes();
  std::vector<std::byte> memory;
  for (const Run& run : runs_of(first, n, interleaved)) {
    const int64_t from = run.first / kRowBlock;
    const int64_t to = div_up(run.first + run.n, kRowBlock);
    std::byte* at = w.data + group * w.group_bytes + from * block_bytes;
    memory.resize(static_cast<size_t>((to - from) * block_bytes));
    // What others packed into the first and the last row block stays.
    const auto edge = [&](int64_t b) {
      std::byte* block = memory.data() + (b - from) * block_bytes;
      get(block, at + (b - from) * block_bytes, static_cast<size_t>(block_bytes));
    };
    if (run.first % kRowBlock != 0) edge(from);
    const int64_t end = run.first + run.n;
    if (end % kRowBlock != 0 && end != w.out && (from + 1 < to || run.first % kRowBlock == 0)) {
      edge(to - 1);
    }
    pool_.for_each(to - from, [&](int64_t i) {
      const int64_t block_first = (from + i) * kRowBlock;
      const int64_t begin = std::max(run.first, block_first);
      const int64_t stop = std::min(end, block_first + kRowBlock);
      std::byte* block = memory.data() + i * block_bytes;
      // Of a linear's last row block: what is behind its last output.
      if (begin == block_first && (stop == block_first + kRowBlock || stop == w.out)) {
        std::memset(block, 0, static_cast<size_t>(block_bytes));
      } else if (stop == w.out) {
        clear_rows(plan, block, static_cast<int>(stop - block_first));
      }
      f(plan, block, run.row + begin - run.first, static_cast<int>(begin - block_first),
        static_cast<int>(stop - begin));
    });
    put(at, memory.data(), memory.size());
  }
}

void CudaOps::pack(Weight& w, int64_t group, int64_t first, Tensor src, bool interleaved) {
  LORRY_CHECK(src.cols() == w.in && first >= 0 && first + src.rows() <= w.out && group < w.groups,
              "rows {} + {} of {} by {}", first, src.rows(), w.out, src.cols());
  std::vector<int32_t> order(w.order == nullptr ? 0 : static_cast<size_t>(w.in));
  if (w.order != nullptr) {
    get(reinterpret_cast<std::byte*>(order.data()),
        reinterpret_cast<const std::byte*>(w.order + group * w.in), order.size() * 4);
  }
  pack_rows(w, group, first, src.rows(), interleaved,
            [&](const WeightPlan& plan, std::byte* block, int64_t row, int at, int n) {
              std::vector<float> values(static_cast<size_t>(w.in));
              for (int i = 0; i < n; ++i) {
                read_row(values, src, row + i, order);
                put_row(plan, block, at + i, values);
              }
            });
}

void CudaOps::pack(Weight& w, int64_t group, int64_t first, const QuantRows& src,
                   bool interleaved) {
  LORRY_CHECK(first >= 0 && first + src.q.rows() <= w.out && group < w.groups, "rows {} + {} of {}",
              first, src.q.rows(), w.out);
  pack_rows(w, group, first, src.q.rows(), interleaved,
            [&](const WeightPlan& plan, std::byte* block, int64_t row, int at, int n) {
              for (int i = 0; i < n; ++i) {
                put_quantised(
                    plan, block, at + i,
                    {src.q.row<const uint8_t>(row + i), src.scale.row<const float>(row + i),
                     plan.zeros ? src.zero.row<const uint8_t>(row + i) : nullptr});
              }
            });
}

void CudaOps::pack(Weight& w, int64_t group, int64_t first, const PackedRows& src,
                   bool interleaved) {
  const WeightPlan whole = plan_of(src.from);
  const std::byte* blocks = src.from.data + src.group * src.from.group_bytes;
  pack_rows(w, group, first, src.n, interleaved,
            [&](const WeightPlan& plan, std::byte* block, int64_t row, int at, int n) {
              std::vector<std::byte> from(static_cast<size_t>(whole.block_bytes()));
              int64_t have = -1;
              for (int i = 0; i < n; ++i) {
                const int64_t column = src.column_of(src.first + row + i);
                if (column / kRowBlock != have) {
                  have = column / kRowBlock;
                  get(from.data(), blocks + have * whole.block_bytes(), from.size());
                }
                take_quantised(plan, block, at + i, whole, from.data(),
                               static_cast<int>(column % kRowBlock),
                               static_cast<int32_t>(src.input));
              }
            });
}

void CudaOps::pack_matrix(std::byte* dst, Tensor src, WeightFormat format) const {
  Weight w = weight_layout(1, src.rows(), src.cols(), format);
  const WeightPlan plan = plan_of(w);
  std::vector<std::byte> memory(static_cast<size_t>(w.group_bytes));
  std::vector<float> values(static_cast<size_t>(w.in));
  for (int64_t r = 0; r < src.rows(); ++r) {
    read_row(values, src, r, {});
    put_row(plan, memory.data() + r / kRowBlock * plan.block_bytes(),
            static_cast<int>(r % kRowBlock), values);
  }
  put(dst, memory.data(), memory.size());
}

bool CudaOps::randomise(Weight& w, uint64_t seed) {
  RandomArgs a{};
  a.plan = plan_of(w);
  if (!memory_.contains(w.data) || a.plan.zeros) return false;
  a.w = reinterpret_cast<unsigned char*>(w.data);
  a.blocks = w.groups * div_up(w.out, kRowBlock);
  a.seed = seed;
  cuda::randomise(memory_.stream(), a);
  return true;
}

void CudaOps::unpack(Tensor y, const Weight& w, int64_t group, int64_t first) const {
  const WeightPlan plan = plan_of(w);
  std::vector<int32_t> order(w.order == nullptr ? 0 : static_cast<size_t>(w.in));
  if (w.order != nullptr) {
    get(reinterpret_cast<std::byte*>(order.data()),
        reinterpret_cast<const std::byte*>(w.order + group * w.in), order.size() * 4);
  }
  const int64_t from = first / kRowBlock;
  const int64_t to = div_up(first + y.rows(), kRowBlock);
  std::vector<std::byte> memory(static_cast<size_t>((to - from) * plan.block_bytes()));
  get(memory.data(), w.data + group * w.group_bytes + from * plan.block_bytes(), memory.size());
  for (int64_t r = 0; r < y.rows(); ++r) {
    const int64_t row = first + r;
    const std::byte* block = memory.data() + (row / kRowBlock - from) * plan.block_bytes();
    for (int32_t k = 0; k < plan.in; ++k) {
      const float value = stored_value(plan, block, static_cast<int>(row % kRowBlock), k);
      y.row<float>(r)[order.empty() ? k : order[static_cast<size_t>(k)]] = value;
    }
  }
}

size_t CudaOps::lora_a_bytes(int64_t rank, int64_t in) const {
  return static_cast<size_t>(div_up(rank, kRankBlock) * kRankBlock * div_up(in, kChunk) * kChunk *
                             size_of(act_));
}

size_t CudaOps::lora_b_bytes(int64_t out, int64_t rank) const {
  return static_cast<size_t>(div_up(out, kPanelB) * kPanelB * rank * size_of(act_));
}

void CudaOps::pack_lora_a(std::byte* dst, Tensor a) const {
  std::vector<std::byte> memory(lora_a_bytes(a.rows(), a.cols()));
  std::vector<float> values(static_cast<size_t>(a.cols()));
  const int64_t chunks = div_up(a.cols(), kChunk);
  for (int64_t r = 0; r < a.rows(); ++r) {
    read_row(values, a, r, {});
    for (int64_t k = 0; k < a.cols(); ++k) {
      const int64_t chunk = (r / kRankBlock * chunks + k / kChunk) * kRankBlock * kChunk;
      store(memory.data(), act_,
            chunk + place_in_a(static_cast<int>(r % kRankBlock), static_cast<int>(k % kChunk)),
            values[static_cast<size_t>(k)]);
    }
  }
  put(dst, memory.data(), memory.size());
}

void CudaOps::pack_lora_b(std::byte* dst, Tensor b) const {
  const int64_t rank = b.cols();
  std::vector<std::byte> memory(lora_b_bytes(b.rows(), rank));
  std::vector<float> values(static_cast<size_t>(rank));
  for (int64_t o = 0; o < b.rows(); ++o) {
    read_row(values, b, o, {});
    for (int64_t r = 0; r < rank; ++r) {
      store(memory.data(), act_, o / kPanelB * kPanelB * rank + r * kPanelB + o % kPanelB,
            values[static_cast<size_t>(r)]);
    }
  }
  put(dst, memory.data(), memory.size());
}

}  // namespace lorry::cuda
