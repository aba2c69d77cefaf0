// The engine as its users see it: admission, stops, cancellation, failures, statistics.
#include <thread>

#include <gtest/gtest.h>

#include "engine/harness.h"

namespace lorry::test {
namespace {

EngineOptions options() {
  EngineOptions o = golden_options("mixtral-base", {"attn-r8"});
  o.adapters.emplace_back("of-another-model", golden("dbrx-base/adapters/attn-r8"));
  o.dtype = Dtype::bf16;
  return o;
}

const Prompt kPrompt{{1, 5, 9, 12, 33, 7}, ""};

Code submit_code(TestEngine& engine, Request request) {
  request.sink = std::make_shared<Collector>(1);
  try {
    engine->submit(std::move(request));
  } catch (const Error& e) {
    return e.code();
  }
  ADD_FAILURE() << "was taken";
  return Code::internal;
}

TEST(Engine, generates_the_asked_number_of_tokens) {
  TestEngine engine(options());
  const auto got = engine.run({greedy_request(kPrompt, 9)})[0];
  EXPECT_EQ(got->tokens.size(), 9U);
  EXPECT_EQ(got->finish->reason, FinishReason::length);
  EXPECT_EQ(got->finish->prompt_tokens, 6);
  EXPECT_EQ(got->finish->generated_tokens, 9);
}

// Of heads of 16: 16 whole numbers and a scale in place of 16 bf16.
TEST(Engine, memory_holds_more_tokens_in_int8) {
  EngineOptions o = options();
  o.kv_tokens = 4096;
  const TestEngine plain(o);
  o.kv_format = KvFormat::int8;
  const TestEngine int8(o);
  EXPECT_EQ(plain->memory().kv_tokens, 4096);
  EXPECT_EQ(int8->memory().kv_tokens, 4096);
  const auto d = static_cast<size_t>(plain->info().spec.attention.head_dim);
  EXPECT_EQ(int8->memory().kv_cache * 2 * d, plain->memory().kv_cache * (d + 4));
  EXPECT_NE(int8->memory().to_text().find("(4096 tokens in int8)"), std::string::npos);
}

TEST(Engine, refuses_what_can_never_run) {
  TestEngine engine(options());
  EXPECT_EQ(submit_code(engine, greedy_request({{}, ""}, 4)), Code::invalid_argument);
  EXPECT_EQ(submit_code(engine, greedy_request({{-1}, ""}, 4)), Code::invalid_argument);
  EXPECT_EQ(submit_code(engine, greedy_request({{1 << 20}, ""}, 4)), Code::invalid_argument);
  EXPECT_EQ(submit_code(engine, greedy_request(kPrompt, 1 << 30)), Code::too_long);
}

TEST(Engine, an_adapter_that_fails_fails_its_request_alone) {
  TestEngine engine(options());
  const auto got =
      engine.run({greedy_request({kPrompt.tokens, "of-another-model"}, 4),
                  greedy_request({kPrompt.tokens, "no-such-adapter"}, 4),
                  greedy_request({kPrompt.tokens, "attn-r8"}, 4), greedy_request(kPrompt, 4)});
  EXPECT_EQ(got[0]->finish->reason, FinishReason::failed);
  EXPECT_EQ(got[0]->finish->error->code(), Code::bad_file);
  EXPECT_EQ(got[1]->finish->reason, FinishReason::failed);
  EXPECT_EQ(got[1]->finish->error->code(), Code::not_found);
  EXPECT_EQ(got[2]->tokens.size(), 4U);
  EXPECT_EQ(got[3]->tokens.size(), 4U);
  EXPECT_EQ(engine->stats().failed, 2);
}

TEST(Engine, stops_at_a_token_and_at_a_text) {
  TestEngine engine(options());
  const auto plain = engine.run({greedy_request(kPrompt, 12)})[0];
  Request by_id = greedy_request(kPrompt, 12);
  by_id.stop_token_ids = {plain->ids()[3]};
  const auto stopped = engine.run({by_id})[0];
  EXPECT_EQ(stopped->finish->reason, FinishReason::eos_token);
  EXPECT_LE(stopped->tokens.size(), 4U);

  const auto ids = plain->ids();
  const std::string text = engine->tokenizer()->decode(ids);
  ASSERT_GE(text.size(), 4U);
  Request by_text = greedy_request(kPrompt, 12);
  by_text.stop = {"never in this text at all", text.substr(text.size() / 2, 2)};
  const auto cut = engine.run({by_text})[0];
  EXPECT_EQ(cut->finish->reason, FinishReason::stop_sequence);
  EXPECT_EQ(cut->finish->stop_sequence, by_text.stop[1]);
  EXPECT_LT(cut->tokens.size(), plain->tokens.size());
}

// A tokenizer with byte fallback spells a line feed <0x0A>, and such runs decode when they end.
TEST(Engine, stops_at_a_text_within_a_run_of_byte_tokens) {
  TestEngine engine(golden_options("mixtral-sliding", {}));
  const auto line_feed = engine->tokenizer()->id_of("<0x0A>");
  ASSERT_TRUE(line_feed && engine->tokenizer()->is_byte_run(*line_feed));
  Request r = greedy_request(kPrompt, 8);
  r.sampling.logit_bias = {{*line_feed, 1e4F}};
  for (const std::string stop : {"\n", "\n\n\n"}) {
    r.stop = {"x", stop};
    const auto got = engine.run({r})[0];
    EXPECT_EQ(got->finish->reason, FinishReason::stop_sequence);
    EXPECT_EQ(got->finish->stop_sequence, stop);
    EXPECT_EQ(got->tokens.size(), stop.size());
  }
  // Bytes that are no text contain no stop text, whatever follows them in their run.
  const auto invalid = engine->tokenizer()->id_of("<0xFF>");
  ASSERT_TRUE(invalid);
  r.sampling.logit_bias = {{*line_feed, 1e4F}, {*invalid, 2e4F}};
  r.sampling.presence_penalty = 2e4F;
  r.max_new_tokens = 2;
  r.stop = {"\n"};
  const auto got = engine.run({r})[0];
  EXPECT_EQ(got->ids(), (std::vector<int32_t>{*invalid, *line_feed}));
  EXPECT_EQ(got->finish->reason, FinishReason::length);
}

// What a preempted sequence finds in the cache when it comes back is its own work.
TEST(Engine, cached_tokens_are_of_the_prompt_and_of_others) {
  EngineOptions o = options();
  o.kv_tokens = 96;
  TestEngine engine(o);
  std::vector<Request> requests;
  for (int32_t i = 0; i < 3; ++i) {
    Request r = greedy_request({{}, ""}, 60);
    for (int32_t j = 0; j < 17; ++j) r.prompt.push_back(3 + 20 * i + j);
    requests.push_back(r);
  }
  for (const auto& got : engine.run(requests)) {
    EXPECT_EQ(got->tokens.size(), 60U);
    EXPECT_EQ(got->finish->cached_tokens, 0);
    EXPECT_EQ(got->n_starts, 1);
  }
  EXPECT_GT(engine->stats().preemptions, 0);
  const auto again = engine.run({requests[0]})[0];
  EXPECT_LE(again->finish->cached_tokens, 16);
}

TEST(Engine, prompt_logprobs_agree_with_the_logits) {
  TestEngine engine(options());
  Request r = greedy_request(kPrompt, 1);
  r.prompt_logprobs = true;
  const auto got = engine.run({r})[0];
  ASSERT_EQ(got->prompt.size(), kPrompt.tokens.size() - 1);
  for (size_t i = 0; i < got->prompt.size(); ++i) {
    EXPECT_EQ(got->prompt[i].id, kPrompt.tokens[i + 1]);
    EXPECT_LT(got->prompt[i].logprob, 0);
  }
}

TEST(Engine, cancel_frees_everything) {
  TestEngine engine(options());
  std::vector<std::shared_ptr<Collector>> sinks;
  std::vector<RequestId> ids;
  for (int i = 0; i < 20; ++i) {
    Request r = greedy_request({{1, 2, 3, 4 + i}, i % 2 == 0 ? "attn-r8" : ""}, 250);
    auto sink = std::make_shared<Collector>(engine->info().spec.vocab);
    r.sink = sink;
    sinks.push_back(sink);
    ids.push_back(engine->submit(std::move(r)));
  }
  for (const RequestId id : ids) engine->cancel(id);
  for (auto& s : sinks) s->wait();
  EXPECT_TRUE(engine->drain(10));
  engine->adapters();  // the step in which the last one ended is over
  const EngineStats stats = engine->stats();
  EXPECT_EQ(stats.kv_blocks_free, stats.kv_blocks);
  EXPECT_EQ(stats.running + stats.waiting, 0);
  for (const auto& e : engine->adapters().entries) EXPECT_EQ(e.claims, 0) << e.name;
}

TEST(Engine, what_ends_in_the_queue_never_started) {
  EngineOptions o = options();
  o.max_sequences = 1;
  TestEngine engine(o);
  const auto running = engine.start(greedy_request(kPrompt, 250));
  const auto waiting = std::make_shared<Collector>(engine->info().spec.vocab);
  Request r = greedy_request(kPrompt, 5);
  r.sink = waiting;
  engine->cancel(engine->submit(std::move(r)));
  waiting->wait();
  EXPECT_EQ(waiting->n_starts, 0);
  EXPECT_EQ(waiting->finish->reason, FinishReason::cancelled);
  running->wait();
  EXPECT_EQ(running->n_starts, 1);
  EXPECT_EQ(running->tokens.size(), 250U);
}

TEST(Engine, I1_more_requests_than_allowed_are_refused_and_others_unharmed) {
  EngineOptions o = options();
  o.max_requests = 4;
  TestEngine engine(o);
  std::vector<std::shared_ptr<Collector>> taken;
  int refused = 0;
  for (int i = 0; i < 40; ++i) {
    try {
      taken.push_back(engine.start(greedy_request(kPrompt, 200)));
    } catch (const Error& e) {
      EXPECT_EQ(e.code(), Code::over_capacity);
      ++refused;
    }
  }
  EXPECT_GT(refused, 0);
  for (auto& t : taken) {
    t->wait();
    EXPECT_EQ(t->tokens.size(), 200U);
  }
}

// A client that asks again as soon as it has its answer finds the place that it had.
TEST(Engine, I1_who_hears_of_an_end_may_take_the_place_that_is_free) {
  class Again final : public RequestSink {
   public:
    explicit Again(TestEngine& engine) : engine_(engine) {}
    void on_token(const TokenEvent&) override {}
    void on_finish(const FinishEvent&) override {
      Request next = greedy_request(kPrompt, 1);
      next.sink = last;
      try {
        engine_->submit(std::move(next));
      } catch (const Error& e) {
        FinishEvent refused;
        refused.reason = FinishReason::failed;
        last->on_finish(refused);
        ADD_FAILURE() << e.what();
      }
    }
    std::shared_ptr<Collector> last = std::make_shared<Collector>(1);

   private:
    TestEngine& engine_;
  };
  EngineOptions o = options();
  o.max_requests = 1;
  TestEngine engine(o);
  const auto again = std::make_shared<Again>(engine);
  Request first = greedy_request(kPrompt, 1);
  first.sink = again;
  engine->submit(std::move(first));
  again->last->wait();
  EXPECT_EQ(again->last->finish->reason, FinishReason::length);
}

TEST(Engine, drain_refuses_new_requests_and_finishes_the_running) {
  TestEngine engine(options());
  const auto running = engine.start(greedy_request(kPrompt, 50));
  EXPECT_TRUE(engine->drain(30));
  running->wait();
  EXPECT_EQ(running->tokens.size(), 50U);
  EXPECT_EQ(submit_code(engine, greedy_request(kPrompt, 1)), Code::unavailable);
}

TEST(Engine, destruction_cancels_what_is_left) {
  std::shared_ptr<Collector> sink;
  {
    TestEngine engine(options());
    sink = engine.start(greedy_request(kPrompt, 250));
  }
  ASSERT_TRUE(sink->finish.has_value());
}

TEST(Engine, many_threads_submit_and_cancel) {
  TestEngine engine(options());
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&engine, t] {
      for (int i = 0; i < 20; ++i) {
        Request r = greedy_request({{1, t, i}, i % 3 == 0 ? "attn-r8" : ""}, 5 + i % 7);
        auto sink = std::make_shared<Collector>(engine->info().spec.vocab);
        r.sink = sink;
        const RequestId id = engine->submit(std::move(r));
        if (i % 4 == 0) engine->cancel(id);
        sink->wait();
        if (i % 4 != 0) {
          EXPECT_EQ(sink->tokens.size(), static_cast<size_t>(5 + i % 7));
        }
      }
    });
  }
  for (std::thread& t : threads) t.join();
  EXPECT_EQ(engine->stats().finished, 80);
}

TEST(Engine, a_request_longer_than_the_cache_is_refused_at_submit) {
  EngineOptions o = options();
  o.kv_tokens = 64;
  TestEngine engine(o);
  EXPECT_EQ(engine->info().max_total_tokens, 64);
  EXPECT_EQ(submit_code(engine, greedy_request(kPrompt, 100)), Code::too_long);
  EXPECT_EQ(engine.run({greedy_request(kPrompt, 50)})[0]->tokens.size(), 50U);
}

TEST(Engine, a_sliding_window_admits_sequences_longer_than_the_cache) {
  EngineOptions o = golden_options("mixtral-sliding", {});
  o.kv_tokens = 96;
  o.prefill_chunk = 16;
  TestEngine small(o);
  o.kv_tokens = 8192;
  TestEngine large(o);
  const auto a = small.run({greedy_request(kPrompt, 200)})[0];
  EXPECT_EQ(a->tokens.size(), 200U);
  EXPECT_EQ(a->ids(), large.run({greedy_request(kPrompt, 200)})[0]->ids());
}

}  // namespace
}  // namespace lorry::test
