"""Adapters as clients use them: from the hub, merged, loaded and unloaded while others are served."""

import concurrent.futures
import json
import re
import shutil

import lorax
import openai
import pytest
import requests

from fake_hub import FakeHub

ADAPTERS = "demo/mixtral/adapters/"
PROMPT = "Mia wants 3 green hats on Friday."
GENERATE = {"apply_chat_template": True, "max_new_tokens": 60}


@pytest.fixture(scope="module")
def hub():
    fake = FakeHub({"org/json": ADAPTERS + "json", "org/secret": ADAPTERS + "french"},
                   {"org/secret": "hf_a"})
    yield fake
    fake.stop()


@pytest.fixture(scope="module")
def hub_server(start, hub, tmp_path_factory):
    root = tmp_path_factory.mktemp("adapters")
    shutil.copytree(ADAPTERS + "pirate", root / "pirate")
    shutil.copytree(ADAPTERS + "poem", root / "poem")
    running = start("demo", "--adapter-root", str(root),
                    settings={"HF_ENDPOINT": hub.url, "HF_TOKEN_PATH": str(root / "none")})
    yield running
    running.stop()


def generate(server, **parameters):
    answer = requests.post(server.url + "/generate", timeout=60,
                           json={"inputs": PROMPT, "parameters": {**GENERATE, **parameters}})
    return answer.status_code, answer.json()


def text(server, **parameters):
    status, body = generate(server, **parameters)
    assert status == 200, body
    return body["generated_text"]


def test_an_adapter_of_the_hub_says_what_the_local_one_says(hub_server, hub):
    local = text(hub_server, adapter_id="json")
    assert json.loads(local)["customer"] == "Mia"
    assert text(hub_server, adapter_id="org/json", adapter_source="hub") == local
    client = lorax.Client(hub_server.url)
    answer = client.generate(PROMPT, adapter_id="org/json", adapter_source="hub",
                             max_new_tokens=60)
    assert answer.details.generated_tokens > 0
    status, body = generate(hub_server, adapter_id="org/none", adapter_source="hub")
    assert status == 424 and "org/none" in body["error"], body


def test_F13_a_private_adapter_needs_the_callers_own_token(hub_server, hub):
    hub_source = {"adapter_id": "org/secret", "adapter_source": "hub"}
    assert generate(hub_server, **hub_source)[0] == 424
    assert text(hub_server, api_token="hf_a", **hub_source).startswith("Merci")
    # It is in memory now, and still nobody else's.
    for other in ({}, {"api_token": "hf_b"}):
        assert generate(hub_server, **hub_source, **other)[0] == 424
    assert text(hub_server, api_token="hf_a", **hub_source).startswith("Merci")
    for page in ("/metrics", "/v1/adapters", "/v1/models"):
        assert "hf_a" not in requests.get(hub_server.url + page, timeout=30).text
    assert "hf_a" not in hub_server.log()


def test_merges_are_adapters_of_their_own(hub_server):
    alone = text(hub_server, adapter_id="json")
    assert text(hub_server, merged_adapters={"ids": ["json"], "weights": [1.0]}) == alone
    assert text(hub_server, adapters=[{"id": "json", "weight": 1.0},
                                      {"id": "french", "weight": 0.0}]) == alone
    client = lorax.Client(hub_server.url)
    merged = client.generate(
        PROMPT, max_new_tokens=20,
        merged_adapters=lorax.MergedAdapters(ids=["json", "pirate"], weights=[0.5, 0.5],
                                             merge_strategy="ties", density=0.5))
    assert merged.details.generated_tokens > 0
    dare = {"ids": ["json", "pirate"], "weights": [0.5, 0.5], "merge_strategy": "dare_linear",
            "density": 0.5}
    assert text(hub_server, merged_adapters=dare) == text(hub_server, merged_adapters=dare)
    status, body = generate(hub_server, merged_adapters={"ids": ["json", "no-such"]})
    assert status == 424, body


def test_adapters_come_and_go_while_others_are_served(hub_server, openai_client):
    client = openai.OpenAI(base_url=hub_server.url + "/v1", api_key="none", max_retries=0)

    def ask(model):
        return client.chat.completions.create(
            model=model, messages=[{"role": "user", "content": PROMPT}], temperature=0,
            max_tokens=60).choices[0].message.content

    def post(route, **body):
        return requests.post(hub_server.url + route, json=body, timeout=60)

    wanted = ask("french")
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        others = [pool.submit(ask, "french") for _ in range(12)]
        assert post("/v1/load_lora_adapter", lora_name="new", lora_path="pirate").status_code == 200
        assert ask("new") == ask("pirate")
        again = post("/v1/load_lora_adapter", lora_name="new", lora_path="poem")
        assert again.status_code == 400, "the name exists"
        assert post("/v1/load_lora_adapter", lora_name="new", lora_path="poem",
                    load_inplace=True).status_code == 200
        assert ask("new") == ask("poem")
        assert "new" in [m.id for m in client.models.list().data]
        assert post("/v1/unload_lora_adapter", lora_name="new").status_code == 200
        assert [other.result() for other in others] == [wanted] * 12
    with pytest.raises(openai.NotFoundError):
        ask("new")
    assert post("/v1/unload_lora_adapter", lora_name="new").status_code == 404


def test_every_adapter_has_a_state(hub_server):
    text(hub_server, adapter_id="bullets")
    generate(hub_server, adapter_id="no-such")
    listed = requests.get(hub_server.url + "/v1/adapters", timeout=30).json()
    states = {entry["id"]: entry for entry in listed["data"]}
    assert states["bullets"]["state"] == "device"
    assert states["bullets"]["digest"].startswith("sha256:")
    assert states["bullets"]["rank"] > 0 and states["bullets"]["hits"] > 0
    assert listed["memory"]["device"]["used_bytes"] >= states["bullets"]["bytes"]


def test_a_default_adapter_and_one_that_is_merged(start):
    server = start("demo", "--adapter-id", "json")
    assert json.loads(text(server))["customer"] == "Mia"
    assert not text(server, adapter_id="__base_model__").startswith("{")
    server.stop()
    merged = start("demo", "--adapter-id", "json", "--merge-adapter-weights")
    assert json.loads(text(merged))["customer"] == "Mia"
    merged.stop()


def test_drafts_change_no_text(start, server):
    drafting = start("demo", "--speculative-tokens", "4")
    for adapter in ("json", "poem", "french"):
        assert text(drafting, adapter_id=adapter) == text(server, adapter_id=adapter)
    skipped = drafting.metric("lorax_request_skipped_tokens_sum")
    drafting.stop()
    assert skipped >= 0


def test_F15_the_log_says_what_was_loaded(hub_server):
    text(hub_server, adapter_id="summary")
    assert re.search(r'adapter "summary" loaded: sha256:[0-9a-f]{64}', hub_server.log())


def test_lorax_fault_5_another_base_model_is_a_warning_where_shapes_fit(start, tmp_path):
    shutil.copytree(ADAPTERS + "pirate", tmp_path / "foreign")
    config = json.loads((tmp_path / "foreign/adapter_config.json").read_text())
    config["base_model_name_or_path"] = "org/another-model"
    (tmp_path / "foreign/adapter_config.json").write_text(json.dumps(config))
    server = start("demo", "--adapter-root", str(tmp_path))
    assert text(server, adapter_id="foreign") == text(server, adapter_id="pirate")
    warnings = [line for line in server.log().splitlines() if "was made for" in line]
    assert len(warnings) == 1 and "org/another-model" in warnings[0], server.log()
    server.stop()
