// Weights on several NUMA nodes: where their pages come from, and that results do not depend on it.
#include <array>
#include <cstdint>
#include <cstring>

#include <gtest/gtest.h>

#include "base/page_policy.h"
#include "ops/quant_support.h"

namespace lorry::test {
namespace {

constexpr int64_t kPanelOutputs = 64;
constexpr size_t kPage = 4096;
constexpr int kAbsent = 200;  // a node that no system here has

// Two nodes; of the second only CPUs are there, so that the system refuses to place its pages.
Topology half_there() {
  Topology nodes = fake_nodes(2);
  nodes[1].id = kAbsent;
  return nodes;
}

TEST(NumaWeights, TheRunOfEachNodeIsBoundToIt) {
  if (!refusal().empty()) GTEST_SKIP() << refusal();
  const Topology nodes = half_there();
  ASSERT_NE(placement_refusal(nodes), "");
  ThreadPool pool(4, nodes);
  const auto ops = checked_ops(Dtype::bf16, pool);
  struct Case {
    int64_t groups, out, in;
    size_t granule;
  };
  // Panels of 2 KiB, of 32 KiB, and of 4 MiB, which are on huge pages.
  for (const Case& c : {Case{3, 64 * 16, 16, kPage}, Case{3, 64 * 7, 256, kPage},
                        Case{2, 64 * 4, 32768, size_t{2} << 20}}) {
    SCOPED_TRACE(testing::Message() << c.groups << " x [" << c.out << ", " << c.in << "]");
    Weight w = ops->weight_layout(c.groups, c.out, c.in);
    const Buffer buffer(static_cast<size_t>(w.groups * w.group_bytes));
    w.data = buffer.data();
    ops->place(w);
    const int64_t panels = c.out / kPanelOutputs;
    const int64_t panel = w.group_bytes / panels;
    for (int64_t g = 0; g < c.groups; ++g) {
      const std::byte* group = w.data + g * w.group_bytes;
      const std::byte* border = group + pool.first_of(1, panels) * panel;
      const std::byte* end = group + w.group_bytes;
      // A page at a border may be of either side.
      for (const std::byte* at = group + c.granule / 2; at + c.granule / 2 < border; at += kPage) {
        ASSERT_EQ(policy_of(at), MPOL_PREFERRED) << "group " << g << ", byte " << at - group;
      }
      for (const std::byte* at = border + c.granule / 2; at + c.granule / 2 < end; at += kPage) {
        ASSERT_EQ(policy_of(at), MPOL_DEFAULT) << "group " << g << ", byte " << at - group;
      }
    }
  }
}

TEST(NumaWeights, PagesAreOnTheNodeTheyWerePlacedOn) {
  if (!refusal().empty()) GTEST_SKIP() << refusal();
  const Topology nodes = fake_nodes(2);
  ThreadPool pool(2, nodes);
  const auto ops = checked_ops(Dtype::f32, pool);
  Weight w = ops->weight_layout(2, 200, 1000);
  const Buffer buffer(static_cast<size_t>(w.groups * w.group_bytes));
  w.data = buffer.data();
  ops->place(w);
  std::memset(buffer.data(), 1, buffer.size());
  for (size_t i = 0; i < buffer.size(); i += kPage) {
    ASSERT_EQ(node_of(buffer.data() + i), nodes[0].id) << "byte " << i;
  }
}

TEST(NumaMemory, ThatIsSpreadComesFromAllNodesInTurn) {
  if (!refusal().empty()) GTEST_SKIP() << refusal();
  ThreadPool pool(2, fake_nodes(2));
  const Buffer buffer(100'000);
  checked_ops(Dtype::bf16, pool)->spread(buffer.data(), buffer.size());
  for (size_t i = 0; i < buffer.size(); i += kPage) {
    ASSERT_EQ(policy_of(buffer.data() + i), MPOL_INTERLEAVE) << "byte " << i;
  }
}

TEST(NumaMemory, OfOneNodeIsLeftToTheSystem) {
  if (!refusal().empty()) GTEST_SKIP() << refusal();
  ThreadPool pool(2, fake_nodes(1));
  const auto ops = checked_ops(Dtype::bf16, pool);
  Weight w = ops->weight_layout(1, 640, 640);
  const Buffer weight(static_cast<size_t>(w.group_bytes)), other(kPage);
  w.data = weight.data();
  ops->place(w);
  ops->spread(other.data(), other.size());
  EXPECT_EQ(policy_of(weight.data()), MPOL_DEFAULT);
  EXPECT_EQ(policy_of(other.data()), MPOL_DEFAULT);
}

// A node that cannot be used costs an answer of the system, and nothing else.
TEST(NumaMemory, ThatCannotBePlacedIsUsedAsItIs) {
  Topology nodes = fake_nodes(2);
  for (NumaNode& node : nodes) node.id = kAbsent;
  ThreadPool pool(2, nodes);
  const auto ops = checked_ops(Dtype::f32, pool);
  Weight w = ops->weight_layout(1, 130, 64);
  const Buffer buffer(static_cast<size_t>(w.group_bytes));
  w.data = buffer.data();
  ops->place(w);
  ops->spread(buffer.data(), buffer.size());
  const Matrix m = random_matrix(Dtype::f32, 130, 64, 1);
  ops->pack(w, 0, 0, m());
  const Matrix back(Dtype::f32, 130, 64);
  ops->unpack(back(), w, 0, 0);
  EXPECT_TRUE(bytes_of(back()) == bytes_of(m()));
}

struct Numa {
  int threads, nodes;
};

// linear, and gate and up of experts, on weights that are placed; more nodes than panels too.
Bytes results(const Numa& n, Dtype act, const WeightFormat& format, int64_t out, int64_t in) {
  ThreadPool pool(n.threads, fake_nodes(n.nodes));
  const ThreadBinding bound = pool.bind_caller();
  const auto ops = checked_ops(act, pool);
  const std::vector<int32_t> begin{0, 3, 3, 29};
  const int64_t both = (out + 63) / 64 * 128;
  const Matrix x = random_matrix(act, 29, in, 3);
  Bytes all;
  const auto weight = [&](int64_t outputs, Buffer& memory) {
    Weight w = ops->weight_layout(3, outputs, in, format);
    memory = Buffer(static_cast<size_t>(3 * w.group_bytes));
    w.data = memory.data();
    ops->place(w);
    for (int64_t g = 0; g < 3; ++g) {
      ops->pack(w, g, 0, random_matrix(Dtype::f32, outputs, in, static_cast<unsigned>(g) + 10)());
    }
    return w;
  };
  Buffer memory;
  const Weight w = weight(out, memory);
  const Matrix y(Dtype::f32, 29, out);
  run_linear(*ops, y(), x(), w, begin);
  append(all, bytes_of(y()));
  const Weight gates = weight(both, memory);
  const Matrix whole(Dtype::f32, 29, both), z(act, 29, out);
  Bytes scratch(ops->linear_scratch_bytes(29, in));
  const LoraPlan plan{{}, {}, {}};
  ops->apply_glu(z(), whole(), x(),
                 {gates,
                  {begin},
                  {},
                  {},
                  plan,
                  view(scratch.data(), Dtype::u8, {static_cast<int64_t>(scratch.size())}),
                  {}},
                 Activation::silu);
  append(all, bytes_of(z()));
  return all;
}

TEST(NumaWeights, ResultsAreThoseOfOneNodeInEveryFormat) {
  const std::array all{WeightFormat{}, WeightFormat{Kind::int8, 0, false},
                       WeightFormat{Kind::int4, 32, true}, WeightFormat{Kind::fp8, 0, false}};
  for (const Dtype act : kActs) {
    for (const WeightFormat& format : all) {
      for (const int64_t out : {1, 130, 500}) {
        const Bytes of_one = results({2, 1}, act, format, out, 70);
        for (const Numa& n : {Numa{2, 2}, Numa{3, 2}, Numa{5, 4}}) {
          EXPECT_TRUE(results(n, act, format, out, 70) == of_one)
              << n.threads << " threads on " << n.nodes << " nodes, " << to_string(act) << ", "
              << (format.plain() ? "plain" : name_of(format)) << ", " << out << " outputs";
        }
      }
    }
  }
}

}  // namespace
}  // namespace lorry::test
