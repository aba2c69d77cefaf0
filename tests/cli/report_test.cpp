// What fits: the figures of `lorry serve --report` and of its log, against what adapters take.
#include "cli/report.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/thread_pool.h"
#include "cli/preview.h"
#include "cli/process.h"

namespace lorry {
namespace {

using testing::HasSubstr;
using testing::Not;

const std::string kModel = "mixtral-base/model";

TEST(Report, CountsTheBytesThatAnAdapterTakes) {
  EngineOptions options;
  options.model = golden(kModel);
  const Preview p = preview_model(options);
  const auto attention = preview_adapter(p, golden("mixtral-base/adapters/attn-r8"), 64);
  EXPECT_EQ(lora_bytes(p.sites, *p.parts.ops, 8, false), static_cast<int64_t>(attention->bytes()));
  EXPECT_GT(lora_bytes(p.sites, *p.parts.ops, 8, true),
            lora_bytes(p.sites, *p.parts.ops, 8, false));
}

TEST(Report, IsPrintedAsTextAndJsonWithoutServing) {
  const std::vector<std::string> flags = {
      "serve",           golden(kModel), "--kv-tokens",    "1024", "--adapter-memory", "1M",
      "--max-lora-rank", "16",           "--max-num-seqs", "8",    "--report"};
  const auto report = [&](const std::string& form) {
    std::vector<std::string> all = flags;
    all.push_back(form);
    const ProcessResult r = run_lorry(all);
    EXPECT_EQ(r.status, 0) << r.err;
    return r.out;
  };
  const json::object o = parse_json(report("json"), "report").as_object();
  EXPECT_EQ(o.at("memory").at("kv_tokens").to_number<int64_t>(), 1024);
  EXPECT_EQ(o.at("longest_request").to_number<int64_t>(), 256);
  EXPECT_EQ(o.at("longest_requests_at_once").to_number<int64_t>(), 4);
  EXPECT_EQ(o.at("requests_in_step").to_number<int64_t>(), 8);
  const json::array& adapters = o.at("adapters").as_array();
  ASSERT_EQ(adapters.size(), 4U);  // ranks 8 and 16, two kinds
  for (const json::value& a : adapters) {
    const auto bytes = a.at("bytes").to_number<int64_t>();
    const auto fit = a.at("fit").to_number<int64_t>();
    EXPECT_LE(fit * bytes, 1'000'000);
    EXPECT_GT((fit + 1) * (bytes + 4096), 1'000'000);
  }
  const std::string text = report("text");
  for (const char* part :
       {"1024 tokens (--kv-tokens", "4 requests of the longest, 256 tokens (--max-total-tokens)",
        "8 in one step (--max-num-seqs)", "of rank 16 on attention"}) {
    EXPECT_THAT(text, HasSubstr(part));
  }
}

TEST(Report, NamesTheNumaNodesWhereThereAreSeveral) {
  EngineOptions options;
  options.model = golden(kModel);
  const Preview p = preview_model(options);
  const auto fits = [&] { return fit_report(options, p.spec, p.sites, *p.parts.ops, *p.memory); };
  EXPECT_THAT(fits().to_text(), Not(HasSubstr("NUMA")));
  EXPECT_EQ(fits().to_json().at("numa_nodes").to_number<int>(), 1);
  options.topology = {{0, {0, 1}}, {1, {2, 3}}};
  EXPECT_THAT(fits().to_text(), HasSubstr("2 nodes: 0 (CPUs 0-1), 1 (CPUs 2-3) (--numa)"));
  EXPECT_EQ(fits().to_json().at("numa_nodes").to_number<int>(), 2);
}

TEST(Report, OfWhatDoesNotFitIsTheError) {
  const ProcessResult r =
      run_lorry({"serve", golden(kModel), "--kv-tokens", "1T", "--report", "json"});
  EXPECT_EQ(r.status, 1);
  EXPECT_EQ(r.out, "");
  EXPECT_THAT(r.err, HasSubstr("lower --kv-tokens"));
  EXPECT_EQ(run_lorry({"serve", golden(kModel), "--report", "xml"}).status, 2);
}

}  // namespace
}  // namespace lorry
