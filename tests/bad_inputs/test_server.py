"""Sections D, H and I: what many requests, other tenants and too little room do."""

import concurrent.futures
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
    ("POST", "/v1/chat/completions"), ("POST", "/tokenize"), ("POST", "/detokenize"), ("POST", "/v1/load_lora_adapter"),
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


def test_I12_only_a_steady_clock_measures():
    """The wall clock is read for what is told, never for how long something took."""
    source = ROOT / "src"
    users = {str(f.relative_to(source)) for f in source.rglob("*.[ch]*")
             if "system_clock" in f.read_text() and f.parts[-2] in ("serve", "engine", "adapters")}
    assert users <= {"serve/metrics.cpp", "serve/service_tell.cpp"}, users
