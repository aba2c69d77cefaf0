"""The HTTP contract, row by row, where no other test has the row."""

import asyncio
import json
import re

import openai
import pytest
import requests
from openai.types.chat.completion_create_params import CompletionCreateParamsBase as ChatParams
from openai.types.completion_create_params import CompletionCreateParamsBase as TextParams

from prompts import as_turn, chat, story

PROMPT = as_turn(story(0))
CHAT = {"messages": chat(story(0)), "max_tokens": 2}
TEXT = {"prompt": PROMPT, "max_tokens": 2}
NONSENSE = [{"no": "such value"}]


@pytest.mark.parametrize(("path", "body", "names"), [
    ("/v1/chat/completions", CHAT, ChatParams.__annotations__),
    ("/v1/completions", TEXT, TextParams.__annotations__)])
def test_every_field_of_openai_is_known_by_name(server, path, body, names):
    """Read or refused, but none is ignored: nonsense in each is a 400 that names it."""
    assert len(names) > 10
    for name in [*names, "stream"]:
        answer = requests.post(server.url + path, json={**body, name: NONSENSE}, timeout=60)
        assert answer.status_code == 400, (name, answer.text)
        error = answer.json()["error"]
        assert name in error["message"] and error["param"].split("[")[0].split(".")[0] == name, error


def test_unknown_fields_are_ignored_counted_and_logged_once(server):
    before = server.metric("lorry_unknown_fields_total")
    for _ in range(3):
        assert requests.post(server.url + "/v1/completions", timeout=60,
                             json={**TEXT, "field_of_tomorrow": 1}).ok
        assert requests.post(server.url + "/generate", timeout=60, json={
            "inputs": PROMPT, "parameters": {"max_new_tokens": 1, "field_of_tomorrow": 1}}).ok
    assert server.metric("lorry_unknown_fields_total") == before + 6
    assert server.log().count("field_of_tomorrow") == 1


INFO = ["model_id", "model_sha", "model_dtype", "model_device_type", "model_pipeline_tag",
        "max_concurrent_requests", "max_best_of", "max_stop_sequences", "max_input_length",
        "max_total_tokens", "waiting_served_ratio", "max_batch_total_tokens", "max_waiting_tokens",
        "validation_workers", "eager_prefill", "version", "sha", "docker_label", "request_logger_url"]


def test_info_has_the_fields_of_lorax(server):
    assert set(requests.get(server.url + "/info", timeout=30).json()) >= set(INFO)


COUNTERS = ["lorax_request_count", "lorax_request_success", "lorax_batch_inference_count",
            "lorax_batch_inference_success"]
GAUGES = ["lorax_queue_length", "lorax_batch_current_size", "lorax_batch_current_max_tokens",
          "vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc",
          "vllm:cache_config_info", "vllm:lora_requests_info"]
TOTALS = ["vllm:num_preemptions_total", "vllm:prompt_tokens_total", "vllm:generation_tokens_total",
          "vllm:request_success_total", "vllm:prefix_cache_queries_total",
          "vllm:prefix_cache_hits_total"]
HISTOGRAMS = ["lorax_batch_inference_duration", "lorax_batch_next_size", "lorax_request_duration",
              "lorax_request_queue_duration", "lorax_request_validation_duration",
              "lorax_request_inference_duration", "lorax_request_mean_time_per_token_duration",
              "lorax_request_generated_tokens", "lorax_request_input_length",
              "lorax_request_max_new_tokens", "lorax_request_skipped_tokens",
              "vllm:time_to_first_token_seconds", "vllm:inter_token_latency_seconds",
              "vllm:e2e_request_latency_seconds", "vllm:request_queue_time_seconds",
              "vllm:request_prefill_time_seconds", "vllm:request_decode_time_seconds",
              "vllm:request_inference_time_seconds", "vllm:request_prompt_tokens",
              "vllm:request_generation_tokens", "vllm:iteration_tokens_total"]
LABELS = {"lorax_batch_inference_count": {"method"}, "lorax_batch_inference_success": {"method"},
          "lorax_batch_inference_duration": {"method"}, "lorax_request_failure": {"err"},
          "vllm:request_success_total": {"finished_reason"},
          "vllm:cache_config_info": {"block_size", "num_gpu_blocks"},
          "vllm:lora_requests_info": {"max_lora", "running_lora_adapters", "waiting_lora_adapters"}}


def test_every_metric_is_there_under_its_name_type_and_labels(server, lorax_client):
    lorax_client.generate(PROMPT, max_new_tokens=2)
    requests.post(server.url + "/generate", json={"inputs": ""}, timeout=30)  # a failure
    text = requests.get(server.url + "/metrics", timeout=30).text
    types = dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE))
    for kind, names in [("counter", [*COUNTERS, *TOTALS, "lorax_request_failure"]), ("gauge", GAUGES),
                        ("histogram", HISTOGRAMS)]:
        assert {name: types.get(name) for name in names} == dict.fromkeys(names, kind)
    for name, labels in LABELS.items():
        part = "_count" if name in HISTOGRAMS else ""
        [sample, *_] = re.findall(rf"^{name}{part}\{{(.*)\}} ", text, re.MULTILINE)
        assert labels <= set(re.findall(r'(\w+)="', sample)), (name, sample)


HEADERS = ["x-compute-type", "x-compute-time", "x-compute-characters", "x-total-time",
           "x-prompt-tokens", "x-generated-tokens", "x-skipped-tokens", "x-total-tokens",
           "x-validation-time", "x-queue-time", "x-inference-time", "x-time-per-token",
           "x-time-to-first-token", "x-time-per-output-token", "x-model-id", "x-adapter-id",
           "x-adapter-source", "x-request-id"]


def test_headers_of_answers_and_streams(server):
    body = {"inputs": PROMPT, "parameters": {"adapter_id": "french", "max_new_tokens": 2}}
    answer = requests.post(server.url + "/generate", json=body, timeout=60)
    assert [name for name in HEADERS if name not in answer.headers] == []
    stream = requests.post(server.url + "/generate_stream", json=body, timeout=60)
    known_before = ["x-compute-type", "x-compute-characters", "x-prompt-tokens", "x-validation-time",
                    "x-model-id", "x-adapter-id", "x-adapter-source", "x-request-id"]
    assert [name for name in known_before if name not in stream.headers] == []
    assert stream.headers["x-accel-buffering"] == "no"
    chunks = requests.post(server.url + "/v1/completions", json={**TEXT, "stream": True}, timeout=60)
    assert chunks.headers["x-accel-buffering"] == "no"


@pytest.mark.parametrize("path", ["/", "/invocations"])
def test_the_two_compatible_routes_answer_alike(server, path):
    body = {"inputs": PROMPT, "parameters": {"max_new_tokens": 3}}
    [answer] = requests.post(server.url + path, json=body, timeout=60).json()
    assert answer == requests.post(server.url + "/generate", json=body, timeout=60).json()
    stream = requests.post(server.url + path, json={**body, "stream": True}, timeout=60)
    events = stream.text.split("\n\n")
    assert events.pop() == "" and "[DONE]" not in stream.text
    assert json.loads(events[-1].removeprefix("data:"))["generated_text"] == answer["generated_text"]


def test_what_openai_has_and_lorry_has_not_is_refused(openai_client):
    with pytest.raises(openai.BadRequestError, match="causal language model"):
        openai_client.embeddings.create(model="", input="test")
    for call in (lambda: openai_client.moderations.create(input="test"),
                 lambda: openai_client.images.generate(prompt="test"),
                 lambda: openai_client.files.list(), lambda: openai_client.batches.list()):
        with pytest.raises(openai.NotFoundError):
            call()


def test_async_parse_and_tools(async_openai, base):
    tool = {"type": "function", "function": {"name": "now", "parameters": {
        "type": "object", "properties": {}, "additionalProperties": False}}}

    async def run():
        async with async_openai() as client:
            call = {"model": base, "messages": CHAT["messages"], "tools": [tool],
                    "tool_choice": "required", "max_tokens": 60, "temperature": 0}
            whole = await client.chat.completions.create(**call, parallel_tool_calls=False)
            names = [piece.function.name async for chunk in await client.chat.completions.create(
                **call, parallel_tool_calls=False, stream=True) if chunk.choices
                for piece in chunk.choices[0].delta.tool_calls or [] if piece.function.name]
            return whole.choices[0].message.tool_calls, names

    [call], names = asyncio.run(run())
    assert (call.function.name, call.function.arguments, names) == ("now", "{}", ["now"])
