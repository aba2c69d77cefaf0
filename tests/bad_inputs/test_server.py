"""Sections D, H and I: what many requests, other tenants and too little room do."""

import concurrent.futures
import socket
import subprocess

import pytest
import requests

from conftest import PROMPT, ROOT, Target
from lorry_server import wait_until


def generate(url, **more):
    return requests.post(url + "/generate", timeout=120, json={"inputs": PROMPT, "parameters": {
        "max_new_tokens": 60, "ignore_eos_token": True}}, **more)


def test_D3_distinct_schemas_are_kept_within_a_bound(start):
    server = start("demo", "--kv-tokens", "16384", "--disable-log-requests")
    target = Target(server)

    def ask(i):
        schema = {"type": "object", "properties": {f"name_{i}": {"type": "string", "maxLength": 50 + i % 50}}}
        return target.generate(max_new_tokens=1, response_format={"type": "json_object", "schema": schema}).status_code
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        assert set(pool.map(ask, range(200))) == {200}
        before = target.resident()
        assert set(pool.map(ask, range(200, 2000))) == {200}
    assert target.resident() - before < 110e6  # the cache is 64 MiB
    target.check_unharmed()
    server.stop()


@pytest.fixture(scope="module")
def guarded(start, tmp_path_factory):
    keys = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_text("alice:key-of-alice\nbob:key-of-bob\nroot:key-of-root:admin\n")
    server = start("demo", "--kv-tokens", "65536", "--api-key-file", str(keys), "--max-requests-per-key", "4")
    yield server
    server.stop()


def key(name):
    return {"Authorization": f"Bearer key-of-{name}"}


@pytest.mark.parametrize("method, path", [
    ("POST", "/"), ("POST", "/invocations"), ("POST", "/generate"), ("POST", "/generate_stream"), ("POST", "/v1/completions"),
    ("POST", "/v1/chat/completions"), ("POST", "/v1/responses"), ("POST", "/tokenize"), ("POST", "/detokenize"), ("POST", "/v1/load_lora_adapter"),
    ("POST", "/v1/unload_lora_adapter"), ("GET", "/v1/models"), ("GET", "/v1/adapters"), ("GET", "/info"), ("GET", "/metrics"),
    ("GET", "/docs"), ("GET", "/nothing")])
def test_H1_H3_without_a_key_nothing_but_health_is_told(guarded, method, path):
    for headers in ({}, {"X-Api-Key": "KEY-OF-ALICE"}, {"Authorization": "Bearer key-of-mallory"}, {"Authorization": "Basic x"}):
        answer = requests.request(method, guarded.url + path, json={"inputs": "x"}, headers=headers, timeout=30)
        assert answer.status_code == 401
    assert requests.get(guarded.url + "/health", timeout=30).status_code == 200
    for headers in ({"Authorization": "bearer key-of-alice"}, {"X-Api-Key": "key-of-alice"}):
        assert requests.get(guarded.url + "/info", headers=headers, timeout=30).status_code == 200


def test_H6_one_tenant_that_floods_gets_429_and_others_are_served(guarded):
    with concurrent.futures.ThreadPoolExecutor(64) as pool:
        flood = [pool.submit(generate, guarded.url, headers=key("alice")) for _ in range(64)]
        for _ in range(5):
            assert generate(guarded.url, headers=key("bob")).status_code == 200
        answers = [one.result() for one in flood]
    assert {a.status_code for a in answers} <= {200, 429} and any(a.status_code == 429 for a in answers)
    assert all("retry-after" in a.headers for a in answers if a.status_code == 429)


def test_H9_names_of_clients_are_few_in_the_metrics(start):
    server = start("demo", "--kv-tokens", "16384", "--disable-log-requests")
    size = len(requests.get(server.url + "/metrics", timeout=30).text)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: requests.post(server.url + "/generate", timeout=60, json={
            "inputs": "x", "parameters": {"adapter_id": f"nobody/knows-{i}"}}), range(1000)))
    assert len(requests.get(server.url + "/metrics", timeout=30).text) < size + 8192
    server.stop()


def test_I4_requests_take_turns_where_keys_and_values_do_not_fit(start):
    server = start("demo", "--kv-tokens", "512", "--prefix-caching", "false")
    alone = generate(server.url).json()
    with concurrent.futures.ThreadPoolExecutor(24) as pool:
        answers = list(pool.map(lambda _: generate(server.url), range(24)))
    assert [a.status_code for a in answers] == [200] * 24
    assert all(a.json() == alone for a in answers)
    never = requests.post(server.url + "/generate", timeout=30, json={"inputs": PROMPT, "parameters": {"max_new_tokens": 600}})
    assert never.status_code == 422 and "must be <= 512" in never.text
    wait_until(lambda: server.metric("vllm:kv_cache_usage_perc") == 0, "all blocks are free")
    server.stop()


def test_I5_too_little_memory_at_the_start_ends_with_the_flag_to_change(request, tmp_path):
    ended = subprocess.run([request.config.getoption("--lorry"), "serve", "demo", "--port", "0", "--kv-tokens", "100G"],
                           capture_output=True, text=True, timeout=60, env={"HOME": str(tmp_path), "TMPDIR": str(tmp_path)})
    assert ended.returncode == 1
    assert "--kv-tokens" in ended.stderr.strip().splitlines()[-1]


@pytest.fixture
def silent_hub():
    """Takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def test_I10_what_waits_too_long_in_the_queue_is_504_and_not_run(start, silent_hub):
    server = start("demo", "--kv-tokens", "16384", "--max-num-seqs", "1", "--max-queue-seconds", "0.5",
                   settings={"HF_ENDPOINT": silent_hub})
    target = Target(server)
    # One request of twelve parts, the first of which begins in time: the others take the only place of a step for
    # seconds.
    long = {"prompt": [PROMPT] * 12, "max_tokens": 900, "ignore_eos": True, "temperature": 0}
    completion = {"prompt": PROMPT, "max_tokens": 5}
    asked = [("/generate", {"inputs": PROMPT}), ("/generate_stream", {"inputs": PROMPT}),
             ("/v1/completions", completion), ("/v1/completions", {**completion, "stream": True}),
             # Nothing runs for this one: its adapter does not come.
             ("/generate", {"inputs": PROMPT, "parameters": {"adapter_id": "org/none", "adapter_source": "hub"}})]
    with concurrent.futures.ThreadPoolExecutor(len(asked) + 1) as pool:
        before = pool.submit(requests.post, target.url + "/v1/completions", json=long, timeout=120)
        wait_until(lambda: server.metric("vllm:num_requests_waiting") == 11, "the long one has begun")
        answers = list(pool.map(lambda a: requests.post(target.url + a[0], json=a[1], timeout=60), asked))
        assert not before.done()
        assert before.result().json()["usage"]["completion_tokens"] == 12 * 900  # nobody else noticed
    assert [a.status_code for a in answers] == [504] * len(asked)
    for answer in answers:
        error = answer.json()["error"]
        assert "0.5 s" in (error if isinstance(error, str) else error["message"]) and answer.headers["retry-after"]
    assert server.metric("lorax_request_failure_total", err="timeout") == len(asked)
    assert target.generate().json() == target.answer
    answer = requests.post(target.url + asked[-1][0], json=asked[-1][1], timeout=60)  # with the engine asleep
    assert answer.status_code == 504
    wait_until(lambda: server.metric("vllm:num_requests_waiting") == 0, "the queue is empty")
    server.stop()


def test_I12_only_a_steady_clock_measures():
    """The wall clock is read for what is told, never for how long something took."""
    source = ROOT / "src"
    users = {str(f.relative_to(source)) for f in source.rglob("*.[ch]*")
             if "system_clock" in f.read_text() and f.parts[-2] in ("serve", "engine", "adapters")}
    assert users <= {"serve/metrics.cpp", "serve/service_tell.cpp"}, users
