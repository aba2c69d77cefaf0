// The server's life: information routes, disconnects, load, shutdown.
#include <future>

#include "serve/json_writer.h"
#include "serve/server_test_base.h"

namespace lorry {
namespace {

using testing::AllOf;
using testing::HasSubstr;

using ServerLife = ServerTest;

constexpr const char* kLong = R"({"inputs":"hi","parameters":{"max_new_tokens":200}})";

TEST_F(ServerLife, information_routes) {
  EXPECT_EQ(get("/health").body, "");
  EXPECT_EQ(get("/ping").status, 200);
  EXPECT_THAT(get("/").body, HasSubstr("tiny"));
  EXPECT_THAT(get("/version").body, HasSubstr("version"));
  const json::object info = get("/info").json().as_object();
  for (const char* key :
       {"model_id", "model_sha", "model_dtype", "model_device_type", "model_pipeline_tag",
        "max_concurrent_requests", "max_best_of", "max_stop_sequences", "max_input_length",
        "max_total_tokens", "waiting_served_ratio", "max_batch_total_tokens", "max_waiting_tokens",
        "validation_workers", "eager_prefill", "version", "sha", "docker_label",
        "request_logger_url"}) {
    EXPECT_TRUE(info.contains(key)) << key;
  }
  EXPECT_EQ(info.at("max_total_tokens").as_int64(), 256);
  EXPECT_EQ(info.at("max_batch_total_tokens").as_int64(), 160);
}

TEST_F(ServerLife, tokenize_gives_ids_texts_and_places) {
  const std::string text = "Hi wörld </s>";
  const Reply reply = post("/tokenize", "{\"inputs\":\"" + text + "\"}");
  EXPECT_EQ(reply.status, 200);
  std::vector<int32_t> ids;
  const json::value tokens = reply.json();
  for (const json::value& token : tokens.as_array()) {
    ids.push_back(token.as_object().at("id").to_number<int32_t>());
    EXPECT_LE(token.as_object().at("start").as_int64(), token.as_object().at("stop").as_int64());
  }
  EXPECT_EQ(ids, backend.tokenizer().encode(text));
  EXPECT_EQ(tokens.as_array().back().as_object().at("text").as_string(), "</s>");
  EXPECT_EQ(post("/tokenize", "{}").status, 422);
  const std::string long_text(300'000, 'a');
  EXPECT_EQ(post("/tokenize", "{\"inputs\":\"" + long_text + "\"}").status, 422);
  EXPECT_EQ(post("/tokenize", R"({"inputs":"a","add_special_tokens":1})").status, 422);
}

TEST_F(ServerLife, metrics_count_requests) {
  post("/generate", R"({"inputs":"hi","parameters":{"max_new_tokens":2}})");
  post("/generate", R"({"inputs":""})");
  const std::string metrics = get("/metrics").body;
  for (const char* line :
       {"lorax_request_count 2",
        "lorax_request_success 1",
        R"(lorax_request_failure{err="validation"} 1)",
        "lorax_request_generated_tokens_sum 2",
        R"(vllm:request_success_total{finished_reason="length",model_name="tiny"} 1)",
        R"(vllm:time_to_first_token_seconds_count{model_name="tiny"} 1)",
        R"(vllm:inter_token_latency_seconds_count{model_name="tiny"} 1)",
        R"(vllm:kv_cache_usage_perc{model_name="tiny"} 0.5)",
        "vllm:num_requests_running",
        R"(vllm:cache_config_info{block_size="16",num_gpu_blocks="10"} 1)",
        "vllm:lora_requests_info",
        R"(lorry_adapter_memory_bytes{tier="device"} 1000)",
        R"(lorry_adapter_memory_used_bytes{tier="device"} 600)",
        R"(lorry_adapter_loads_total{tier="host"} 3)",
        R"(lorry_adapter_evictions_total{tier="device"} 5)",
        "lorry_adapter_load_failures_total 2",
        "lorry_requests_parked_total 7",
        "lorax_batch_current_max_tokens 0",
        R"(lorax_batch_inference_count{method="step"} 3)",
        R"(lorax_batch_inference_success{method="step"} 3)",
        R"(lorax_batch_inference_duration_bucket{method="step",le="0.004"} 2)",
        R"(lorax_batch_inference_duration_bucket{method="step",le="+Inf"} 3)",
        "lorax_batch_next_size_sum 6",
        R"(vllm:iteration_tokens_total_bucket{model_name="tiny",le="16"} 3)",
        R"(vllm:iteration_tokens_total_sum{model_name="tiny"} 24)"}) {
    EXPECT_THAT(metrics, HasSubstr(line));
  }
}

TEST_F(ServerLife, metrics_name_the_adapters_in_use) {
  run_for_ever();
  Client client(port());
  client.send_post("/generate", R"({"inputs":"hi","parameters":{"adapter_id":"pirate"}})");
  EXPECT_TRUE(eventually([&] {
    return get("/metrics")
               .body.find(R"(running_lora_adapters="pirate",waiting_lora_adapters="")") !=
           std::string::npos;
  }));
  client.close();
  EXPECT_TRUE(eventually([&] {
    return get("/metrics").body.find(R"(running_lora_adapters="")") != std::string::npos;
  }));
}

TEST_F(ServerLife, I3_a_client_that_leaves_is_cancelled) {
  run_for_ever();
  for (const char* path : {"/generate", "/generate_stream"}) {
    const size_t before = backend.cancelled();
    Client client(port());
    client.send_post(path, kLong);
    EXPECT_TRUE(eventually([&] { return backend.running() == 1; }));
    client.close();
    EXPECT_TRUE(eventually([&] { return backend.running() == 0; })) << path;
    EXPECT_EQ(backend.cancelled(), before + 1);
  }
  EXPECT_EQ(get("/health").status, 200);
}

TEST_F(ServerLife, I2_many_clients_that_vanish_leave_nothing) {
  run_for_ever();
  std::vector<std::unique_ptr<Client>> clients;
  for (int i = 0; i < 100; ++i) {
    clients.push_back(std::make_unique<Client>(port()));
    clients.back()->send_post(i % 2 == 0 ? "/generate" : "/generate_stream", kLong);
  }
  EXPECT_TRUE(eventually([&] { return backend.running() == 100; }));
  clients.clear();
  EXPECT_TRUE(eventually([&] { return backend.running() == 0; }));
}

TEST_F(ServerLife, two_hundred_streams_at_once) {
  std::vector<std::unique_ptr<Client>> clients;
  for (int i = 0; i < 200; ++i) {
    clients.push_back(std::make_unique<Client>(port()));
    clients.back()->send_post("/generate_stream", R"({"inputs":"a"})");
  }
  for (const auto& client : clients) {
    const auto events = events_of(client->read_reply().body);
    ASSERT_FALSE(events.empty());
    EXPECT_THAT(events.back(), HasSubstr(R"("generated_text":"Hello wörld 🙂")"));
  }
  EXPECT_TRUE(eventually([&] { return backend.running() == 0; }));
}

TEST_F(ServerLife, more_requests_than_allowed_are_429) {
  options.max_concurrent_requests = 3;
  run_for_ever();
  std::vector<std::unique_ptr<Client>> clients;
  for (int i = 0; i < 3; ++i) {
    clients.push_back(std::make_unique<Client>(port()));
    clients.back()->send_post("/generate", kLong);
    EXPECT_TRUE(eventually([&] { return backend.running() == clients.size(); }));
  }
  EXPECT_EQ(post("/generate", kLong).status, 429);
  EXPECT_EQ(get("/health").status, 200);
}

TEST_F(ServerLife, more_answers_than_can_ever_run_are_400_and_not_to_be_tried_again) {
  options.max_concurrent_requests = 3;
  const Reply reply = post("/v1/completions", R"({"prompt":"a","n":4})");
  EXPECT_EQ(reply.status, 400);
  EXPECT_THAT(reply.body, HasSubstr("3 answers"));
}

// An engine whose steps are taken by others.
Script waits(const Request&) {
  Script script;
  script.never_starts = true;
  return script;
}

TEST_F(ServerLife, I10_what_waits_too_long_is_504_and_cancelled) {
  options.max_queue_seconds = 0.05;
  backend.set_plan(waits);
  for (const char* path : {"/generate", "/generate_stream"}) {
    const Reply reply = post(path, kLong);
    EXPECT_EQ(reply.status, 504) << path;
    EXPECT_EQ(reply.json().at("error_type").as_string(), "timeout");
    EXPECT_THAT(std::string(reply.json().at("error").as_string()), HasSubstr("within 0.05 s"));
    EXPECT_EQ(reply.headers.count("retry-after"), 1U);
  }
  for (const char* more : {"", R"(,"stream":true)", R"(,"n":2)"}) {
    const Reply reply = post("/v1/completions", std::string(R"({"prompt":"a")") + more + "}");
    EXPECT_EQ(reply.status, 504) << more;
    EXPECT_EQ(reply.json().at("error").at("code").as_string(), "timeout");
  }
  EXPECT_TRUE(eventually([&] { return backend.running() == 0; }));
  EXPECT_EQ(backend.cancelled(), 6U);
  EXPECT_THAT(get("/metrics").body, HasSubstr(R"(lorax_request_failure{err="timeout"} 5)"));
}

TEST_F(ServerLife, I10_a_stream_that_was_pinged_ends_with_the_error) {
  options.max_queue_seconds = 0.5;
  options.http.ping_seconds = 0.1;
  backend.set_plan(waits);
  const auto lorax = stream("/generate_stream", kLong);
  ASSERT_EQ(lorax.size(), 1U);
  EXPECT_THAT(lorax[0], HasSubstr(R"("error_type":"timeout")"));
  const auto openai = stream("/v1/completions", R"({"prompt":"a","stream":true})");
  ASSERT_EQ(openai.size(), 2U);
  EXPECT_THAT(openai[0], HasSubstr(R"("code":"timeout")"));
  EXPECT_EQ(openai[1], "[DONE]");
  EXPECT_TRUE(eventually([&] { return backend.running() == 0; }));
}

// However long it takes, and though another answer of the same request has still to begin.
TEST_F(ServerLife, I10_what_has_begun_is_not_late) {
  options.max_queue_seconds = 0.05;
  backend.set_round(std::chrono::milliseconds(40));
  std::atomic<int> asked = 0;
  backend.set_plan([&](const Request& request) {
    return asked++ == 0 ? backend.say("a b c", request) : waits(request);
  });
  EXPECT_EQ(post("/generate", kLong).status, 200);
  asked = 0;
  Client client(port());
  client.send_post("/v1/completions", R"({"prompt":"a","n":2,"stream":true})");
  EXPECT_EQ(client.read_head().status, 200);
  EXPECT_THAT(client.read_chunk(), HasSubstr("choices"));
  EXPECT_TRUE(eventually([&] { return backend.running() == 1; }));
  std::this_thread::sleep_for(std::chrono::milliseconds(100));
  EXPECT_EQ(backend.running(), 1U);
}

TEST_F(ServerLife, a_silent_stream_is_pinged) {
  options.http.ping_seconds = 0.1;
  backend.set_plan([](const Request&) {
    Script script;
    script.never_ends = true;  // and says nothing
    return script;
  });
  Client client(port());
  client.send_post("/v1/completions", R"({"prompt":"a","stream":true})");
  EXPECT_EQ(client.read_head().status, 200);
  EXPECT_EQ(client.read_chunk(), ":\n\n");
  EXPECT_EQ(client.read_chunk(), ":\n\n");
}

TEST_F(ServerLife, I6_an_engine_that_is_stuck_is_unhealthy) {
  backend.set_stuck(1000);
  const Reply reply = get("/health");
  EXPECT_EQ(reply.status, 503);
  EXPECT_EQ(reply.body, R"({"error":"unhealthy","error_type":"healthcheck"})");
}

TEST_F(ServerLife, I14_until_the_model_is_there_everything_says_so) {
  Server loading(options, log);
  loading.start();
  for (const char* path : {"/health", "/ping", "/startup"}) {
    const Reply reply = Client(loading.port()).get(path);
    EXPECT_EQ(reply.status, 503) << path;
    EXPECT_EQ(reply.body, R"({"error":"the model is being loaded","error_type":"healthcheck"})");
  }
  Reply reply = Client(loading.port()).post("/v1/completions", R"({"prompt":"a"})");
  EXPECT_EQ(reply.status, 503);
  EXPECT_EQ(reply.headers.count("retry-after"), 1U);
  EXPECT_EQ(Client(loading.port()).get("/metrics").status, 503);
  loading.serve(backend);
  EXPECT_EQ(Client(loading.port()).get("/health").status, 200);
  EXPECT_EQ(Client(loading.port()).get("/startup").status, 200);
  EXPECT_EQ(Client(loading.port()).post("/v1/completions", R"({"prompt":"a"})").status, 200);
}

TEST_F(ServerLife, I14_startup_is_200_once_a_token_came) {
  backend.set_plan([](const Request&) { return ScriptedBackend::failing(Code::internal, "no"); });
  EXPECT_EQ(get("/startup").status, 503);
  backend.set_plan([this](const Request& request) { return backend.say("a", request); });
  const size_t before = backend.submitted().size();
  EXPECT_EQ(get("/startup").status, 200);
  EXPECT_EQ(get("/startup").status, 200);
  EXPECT_EQ(backend.submitted().size(), before + 1);
  EXPECT_EQ(backend.last().max_new_tokens, 1);
}

TEST_F(ServerLife, detokenize_gives_the_text_back) {
  const std::string text = "Hi wörld </s>";
  JsonWriter json;
  json.begin_object().key("tokens").begin_array();
  EncodeOptions plain;
  plain.add_special = false;
  for (const int32_t id : backend.tokenizer().encode(text, plain)) json.value(id);
  const Reply reply = post("/detokenize", json.end_array().end_object().take());
  EXPECT_EQ(reply.status, 200);
  EXPECT_EQ(reply.json().at("prompt").as_string(), text);
  for (const char* wrong : {"{}", R"({"tokens":"a"})", R"({"tokens":[-1]})", R"({"tokens":[1.5]})",
                            R"({"tokens":[100000000]})", R"({"tokens":["a"]})"}) {
    EXPECT_EQ(post("/detokenize", wrong).status, 422) << wrong;
  }
}

TEST_F(ServerLife, what_a_causal_model_has_not_says_so) {
  for (const char* path : {"/embed", "/classify", "/classify_batch"}) {
    const Reply reply = post(path, R"({"inputs":"a"})");
    EXPECT_EQ(reply.status, 424) << path;
    EXPECT_THAT(reply.body, HasSubstr("causal language model"));
  }
  EXPECT_EQ(post("/v1/embeddings", R"({"input":"a"})").status, 400);
}

TEST_F(ServerLife, H9_adapters_named_by_clients_are_few_in_the_metrics) {
  run_for_ever();
  std::vector<std::unique_ptr<Client>> clients;
  for (int i = 0; i < 80; ++i) {
    clients.push_back(std::make_unique<Client>(port()));
    clients.back()->send_post("/generate", R"({"inputs":"hi","parameters":{"adapter_id":"name-)" +
                                               std::to_string(i) + "\"}}");
  }
  EXPECT_TRUE(eventually([&] { return backend.running() == 80; }));
  EXPECT_TRUE(eventually([&] {
    const std::string metrics = get("/metrics").body;
    const size_t at = metrics.find("running_lora_adapters=");
    const std::string line = metrics.substr(at, metrics.find('\n', at) - at);
    return std::count(line.begin(), line.end(), ',') == 65 &&
           line.find(",other\"") != std::string::npos;
  }));
}

TEST_F(ServerLife, I7_shutdown_lets_requests_finish_and_refuses_new_ones) {
  backend.set_round(std::chrono::milliseconds(40));
  Client running(port());
  running.send_post("/generate_stream", R"({"inputs":"a"})");
  EXPECT_TRUE(eventually([&] { return backend.running() == 1; }));
  Client idle(port());
  EXPECT_EQ(idle.get("/health").status, 200);
  auto stopping = std::async(std::launch::async, [&] { server().shutdown(30); });
  EXPECT_TRUE(eventually([&] { return get("/health").status == 503; }));
  const Reply refused = idle.post("/generate", kLong);
  EXPECT_EQ(refused.status, 503);
  EXPECT_EQ(refused.headers.count("retry-after"), 1U);
  EXPECT_EQ(refused.headers.at("connection"), "close");
  const auto events = events_of(running.read_reply().body);
  EXPECT_THAT(events.back(), HasSubstr("eos_token"));
  stopping.get();
  EXPECT_EQ(get("/health").status, 0);
}

TEST_F(ServerLife, I7_shutdown_aborts_what_is_left) {
  run_for_ever();
  Client lorax(port());
  lorax.send_post("/generate", kLong);
  Client openai(port());
  openai.send_post("/v1/completions", R"({"prompt":"a","max_tokens":200,"stream":true})");
  EXPECT_TRUE(eventually([&] { return backend.running() == 2; }));
  server().shutdown(0.1);
  EXPECT_EQ(lorax.read_reply().status, 503);
  EXPECT_THAT(openai.read_reply().body,
              AllOf(HasSubstr(R"("finish_reason":"abort")"), HasSubstr("[DONE]")));
  EXPECT_EQ(backend.running(), 0U);
}

TEST_F(ServerLife, I7_a_second_shutdown_shortens_the_first) {
  run_for_ever();
  Client client(port());
  client.send_post("/generate", kLong);
  EXPECT_TRUE(eventually([&] { return backend.running() == 1; }));
  auto first = std::async(std::launch::async, [&] { server().shutdown(1000); });
  EXPECT_TRUE(eventually([&] { return get("/health").status == 503; }));
  server().shutdown(0);
  first.get();
  EXPECT_EQ(backend.running(), 0U);
}

TEST_F(ServerLife, a_server_that_is_destroyed_cancels_its_requests) {
  run_for_ever();
  Client client(port());
  client.send_post("/generate_stream", kLong);
  EXPECT_TRUE(eventually([&] { return backend.running() == 1; }));
  stop_server();
  EXPECT_TRUE(eventually([&] { return backend.running() == 0; }));
}

}  // namespace
}  // namespace lorry
