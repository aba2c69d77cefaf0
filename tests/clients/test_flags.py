"""Every flag of LoRAX, and vLLM's spellings: on the command line, as an environment variable, as a key
of --config. Each goes where it says (/info), or the log says that it has no effect."""

import pytest
import requests
import yaml

# Values that are not the defaults, and what /info says then.
EFFECTS = {
    "max-concurrent-requests": ("1k", "max_concurrent_requests", 1000),
    "max-best-of": ("3", "max_best_of", 3),
    "max-stop-sequences": ("5", "max_stop_sequences", 5),
    "max-input-length": ("400", "max_input_length", 400),
    "max-total-tokens": ("500", "max_total_tokens", 500),
    "max-batch-total-tokens": ("4k", "max_batch_total_tokens", 4000),
    "validation-workers": ("3", "validation_workers", 3),
    "dtype": ("float32", "model_dtype", "F32"),
}
TAKEN = {"revision": "main", "max-batch-prefill-tokens": "300", "prefix-caching": "true", "max-active-adapters": "8",
         "adapter-cycle-time-s": "2", "adapter-memory-fraction": "0.1", "num-shard": "1",
         "default-adapter-source": "local", "preloaded-adapter-ids": "french", "adapter-id": "pirate",
         "speculative-tokens": "2", "json-output": "true", "hostname": "127.0.0.1",
         "cors-allow-origin": "https://a.example", "max-lora-rank": "64", "max-num-seqs": "32",
         "served-model-name": "base", "watermark-gamma": "0.25", "watermark-delta": "4", "shutdown-timeout": "5", "disable-log-requests": "true"}
# The log says so.
NO_EFFECT = {"source": "hub", "sharded": "false", "waiting-served-ratio": "1.2",
             "max-waiting-tokens": "20", "eager-prefill": "false", "chunked-prefill": "true",
             "weights-cache-override": "/data", "cuda-memory-fraction": "0.9", "compile": "true",
             "eager": "true", "backend": "fa2", "enable-lora": "true"}
SWITCHES = {"json-output", "disable-log-requests", "compile", "eager", "enable-lora"}
VALUES = {**{name: value for name, (value, *_) in EFFECTS.items()}, **TAKEN, **NO_EFFECT}
VLLM = {"host": "127.0.0.1", "max-model-len": "500", "max-num-batched-tokens": "300", "max-loras": "8",
        "tensor-parallel-size": "1"}


def command_line(values):
    return [word for name, value in values.items()
            for word in ([f"--{name}"] if name in SWITCHES else [f"--{name}", value])]


@pytest.mark.parametrize("way", ["line", "environment", "file"])
def test_every_flag_of_lorax_is_taken(start, tmp_path, way):
    if way == "line":
        server = start("--model-id", "demo", *command_line(VALUES))
    elif way == "environment":
        names = {name.replace("-", "_").upper(): value for name, value in VALUES.items()}
        server = start(settings={**names, "MODEL_ID": "demo"})
    else:
        (tmp_path / "config.yaml").write_text(yaml.safe_dump({**VALUES, "model-id": "demo"}))
        server = start("--config", str(tmp_path / "config.yaml"))
    info = requests.get(server.url + "/info", timeout=30).json()
    assert {key: info[key] for _, key, _ in EFFECTS.values()} == {
        key: value for _, key, value in EFFECTS.values()}
    for name in NO_EFFECT:
        assert f"--{name} has no effect" in server.log(), name
    answer = requests.post(server.url + "/generate", timeout=60, json={
        "inputs": "Hello", "parameters": {"max_new_tokens": 1}})
    assert answer.ok and answer.headers["x-adapter-id"] == "pirate"
    server.stop()


def test_the_spellings_of_vllm_are_taken(start):
    server = start("demo", *command_line(VLLM))
    assert requests.get(server.url + "/v1/models", timeout=30).json()["data"][0]["max_model_len"] == 500
    server.stop()


def test_the_line_counts_before_the_environment_and_that_before_the_file(start, tmp_path):
    (tmp_path / "config.yaml").write_text("max-best-of: 3\nmax-stop-sequences: 5\nvalidation-workers: 3\n")
    server = start("--config", str(tmp_path / "config.yaml"), "--validation-workers", "5",
                   settings={"MAX_STOP_SEQUENCES": "6", "VALIDATION_WORKERS": "4", "HOSTNAME": "pod-7"})
    info = requests.get(server.url + "/info", timeout=30).json()
    assert (info["max_best_of"], info["max_stop_sequences"], info["validation_workers"]) == (3, 6, 5)
    server.stop()


@pytest.mark.parametrize(("flags", "message"), [
    (["--sharded", "true"], "--num-shard"), (["--download-only"], "lorry pull"),
    (["--tokenizer-config-path", "x.json"], "model's folder"), (["--no-such-flag"], "no-such-flag")])
def test_what_would_change_the_answer_is_refused(start, flags, message):
    with pytest.raises(AssertionError, match=message):
        start("demo", *flags)
