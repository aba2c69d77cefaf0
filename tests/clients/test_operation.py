"""The server as a process: start, rest, numbers, clients that leave, and the end."""

import time

import lorax
import requests

from lorry_server import wait_until
from prompts import as_turn, story

PROMPT = as_turn(story(0))


def test_start_rest_and_end(start, model_arguments, measured):
    server = start(*model_arguments)
    measured(f"start to /health: {server.startup_seconds:.2f} s")
    time.sleep(0.5)
    before = server.cpu_seconds()
    time.sleep(5)
    idle = server.cpu_seconds() - before
    measured(f"CPU time of 5 idle seconds: {idle:.2f} s")
    assert idle < 0.5  # nothing spins
    server.stop()


def test_metrics_follow_the_requests(server, lorax_client):
    names = {sample.name for sample in server.samples()}
    for name in ["vllm:num_requests_running", "vllm:num_requests_waiting",
                 "vllm:kv_cache_usage_perc", "vllm:generation_tokens_total",
                 "vllm:time_to_first_token_seconds_bucket", "vllm:lora_requests_info",
                 "lorax_queue_length", "lorax_batch_current_size", "lorax_request_duration_count"]:
        assert name in names, name
    tokens = server.metric("vllm:generation_tokens_total")
    answers = server.metric("lorax_request_duration_count")
    finished = server.metric("vllm:request_success_total", finished_reason="length")
    lorax_client.generate(PROMPT, max_new_tokens=7, ignore_eos_token=True)
    assert server.metric("vllm:generation_tokens_total") == tokens + 7
    assert server.metric("lorax_request_duration_count") == answers + 1
    assert server.metric("vllm:request_success_total", finished_reason="length") == finished + 1


def test_the_adapters_of_running_requests_are_told(server, lorax_client, adapters):
    def running():
        [info] = [s for s in server.samples() if s.name == "vllm:lora_requests_info"]
        return info.labels["running_lora_adapters"].split(",")

    stream = lorax_client.generate_stream(PROMPT, adapter_id=adapters[1], ignore_eos_token=True)
    next(stream)
    assert adapters[1] in running()
    stream.close()
    wait_until(lambda: adapters[1] not in running(), "the adapter is at rest")


def room_after(server, prompt):
    """max_new_tokens that just fits."""
    tokens = requests.post(server.url + "/tokenize", json={"inputs": prompt}, timeout=30).json()
    return requests.get(server.url + "/info", timeout=30).json()["max_total_tokens"] - len(tokens)


def test_clients_that_leave_free_their_places(server, openai_client, adapters):
    room = room_after(server, PROMPT)
    left = server.metric("lorax_request_failure_total", err="client_closed")
    tokens = server.metric("vllm:generation_tokens_total")
    streams = [openai_client.completions.create(
        model=name, prompt=PROMPT, n=32, max_tokens=room, stream=True,
        extra_body={"ignore_eos": True}) for name in adapters[:3]]
    for stream in streams:
        next(stream)
    assert server.metric("vllm:num_requests_running") > 0
    for stream in streams:
        stream.close()
    wait_until(lambda: server.metric("vllm:num_requests_running") == 0, "nothing is running")
    assert server.metric("vllm:num_requests_waiting") == 0
    assert server.metric("lorax_request_failure_total", err="client_closed") > left
    assert server.metric("vllm:generation_tokens_total") - tokens < room * 32 * len(streams)


def test_sigterm_lets_running_requests_end(start, model_arguments):
    server = start(*model_arguments)
    n = min(200, room_after(server, PROMPT))
    stream = lorax.Client(server.url).generate_stream(PROMPT, max_new_tokens=n,
                                                      ignore_eos_token=True)
    next(stream)
    server.terminate()
    *_, last = stream
    assert last.details.generated_tokens == n
    assert server.wait() == 0


def test_sigterm_ends_requests_that_take_too_long(start, model_arguments):
    server = start(*model_arguments, "--shutdown-timeout", "0")
    answers = [requests.post(server.url + "/generate_stream", stream=True, timeout=30, json={
        "inputs": PROMPT, "parameters": {"ignore_eos_token": True}}) for _ in range(16)]
    for answer in answers:
        assert next(answer.iter_lines()).startswith(b"data:")
    server.terminate()
    assert server.wait(20) == 0
    # Each stream comes to an orderly end: what is left of it is events.
    for answer in answers:
        for line in answer.iter_lines():
            assert not line or line.startswith(b"data:"), line
