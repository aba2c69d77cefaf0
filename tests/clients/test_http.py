"""The routes that neither client uses, as HTTP."""

import json

import requests

from prompts import as_turn, story

PROMPT = as_turn(story(0))


def post(server, path, body, **more):
    return requests.post(server.url + path, json=body, timeout=60, **more)


def test_generate_and_its_headers(server, lorax_client, adapters):
    parameters = {"max_new_tokens": 8, "adapter_id": adapters[0], "details": True}
    answer = post(server, "/generate", {"inputs": PROMPT, "parameters": parameters},
                  headers={"x-request-id": "mine-2"})
    assert answer.status_code == 200
    whole = lorax_client.generate(PROMPT, adapter_id=adapters[0], max_new_tokens=8)
    assert answer.json()["generated_text"] == whole.generated_text
    assert answer.headers["x-request-id"] == "mine-2"
    assert answer.headers["x-adapter-id"] == adapters[0]
    details = answer.json()["details"]
    assert int(answer.headers["x-prompt-tokens"]) == details["prompt_tokens"]
    assert int(answer.headers["x-generated-tokens"]) == details["generated_tokens"]
    for name in ["x-total-time", "x-validation-time", "x-queue-time", "x-inference-time",
                 "x-time-per-token", "x-time-to-first-token", "x-total-tokens"]:
        assert int(answer.headers[name]) >= 0, name


def test_generate_stream_is_events(server):
    answer = post(server, "/generate_stream", {"inputs": PROMPT,
                                               "parameters": {"max_new_tokens": 5}}, stream=True)
    assert answer.headers["content-type"] == "text/event-stream"
    events = answer.content.decode().split("\n\n")
    assert events.pop() == ""
    *first, last = [json.loads(event.removeprefix("data:")) for event in events]
    assert all(event["generated_text"] is None and event["details"] is None for event in first)
    assert last["details"]["generated_tokens"] == len(events)


def test_a_chat_template_makes_a_turn(server):
    def text(inputs, apply):
        body = {"inputs": inputs, "parameters": {"max_new_tokens": 16, "details": True,
                                                 "apply_chat_template": apply}}
        return post(server, "/generate", body).json()["details"]["prompt_tokens"]

    assert text(story(0), True) > text(story(0), False)


def test_tokenize_tells_where_tokens_are(server):
    text = "Café 🙂 " + story(0)
    tokens = post(server, "/tokenize", {"inputs": text, "add_special_tokens": False}).json()
    assert tokens[0]["start"] == 0 and tokens[-1]["stop"] == len(text)
    for token in tokens:
        assert 0 <= token["start"] < token["stop"] <= len(text)


def test_info_and_health(server):
    info = requests.get(server.url + "/info", timeout=30).json()
    assert info["max_input_length"] < info["max_total_tokens"]
    assert info["model_id"] and info["version"]
    health = requests.get(server.url + "/health", timeout=30)
    assert (health.status_code, health.content) == (200, b"")


def test_what_is_not_there_says_so(server):
    assert requests.get(server.url + "/no/such", timeout=30).status_code == 404
    wrong = requests.get(server.url + "/generate", timeout=30)
    assert (wrong.status_code, wrong.headers["allow"]) == (405, "POST")
    assert requests.post(server.url + "/generate", data="x", timeout=30).status_code == 415
    bad = requests.post(server.url + "/generate", data="{", timeout=30,
                        headers={"content-type": "application/json"})
    assert (bad.status_code, bad.json()["error_type"]) == (400, "validation")
