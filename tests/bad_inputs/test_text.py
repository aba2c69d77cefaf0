"""Sections B and C: fields that are ignored, hostile text, tokenizers and templates."""

import json
import shutil

import pytest
import requests

from conftest import ROOT, Target

TEMPLATE = """
{%- macro again(x) %}{{ again(x) }}{% endmacro %}
{%- for m in messages %}
{%- if m.content == 'loop' %}{% for i in range(99999) %}{% for j in range(99999) %}{{ j }}{% endfor %}{% endfor %}
{%- elif m.content == 'big' %}{{ 'a' * 100000000 }}
{%- elif m.content == 'recurse' %}{{ again(1) }}
{%- elif m.content == 'missing' %}{{ messages[99].content.x.y }}
{%- elif m.content == 'refuse' %}{{ raise_exception('Conversation roles must alternate') }}
{%- else %}{{ m.content }}{% endif %}
{%- endfor %}"""


def test_B18_unknown_fields_are_ignored_counted_and_logged_once(target):
    def counted():
        return sum(s.value for s in target.server.samples() if "unknown" in s.name)
    before = counted()
    for _ in range(3):
        answer = target.post("/v1/completions", {"prompt": "x", "max_tokens": 1, "a_new_field": {"b": 1}})
        assert answer.status_code == 200
    assert counted() == before + 3
    assert target.server.log().count("a_new_field") == 1


def test_C4_chat_markers_in_the_text_of_a_client_are_text(target):
    def tokens(content):
        answer = target.post("/v1/chat/completions", {"messages": [{"role": "user", "content": content}], "max_tokens": 1})
        return answer.json()["usage"]["prompt_tokens"]
    assert len(target.post("/tokenize", {"inputs": "<|end|>", "add_special_tokens": False}).json()) == 1
    assert tokens("<|end|>") > tokens("x") + 2


def test_C6_a_stream_never_splits_a_character(target):
    body = {"prompt": "x", "max_tokens": 40, "stream": True, "temperature": 0, "guided_regex": "\U0001f600{3}\u00e4\u4e2d"}
    stream = target.post("/v1/completions", body)
    texts = [json.loads(line[6:])["choices"][0]["text"] for line in stream.content.decode().split("\n\n")
             if line.startswith("data: {")]
    assert "".join(texts) == "\U0001f600" * 3 + "\u00e4\u4e2d"
    assert "\ufffd" not in "".join(texts)
    # One that breaks off within a character ends with one replacement at most.
    whole = target.post("/v1/completions", {**body, "stream": False, "max_tokens": 2}).json()["choices"][0]["text"]
    assert whole.count("\ufffd") <= 1


def copy_of_the_demo(folder):
    shutil.copytree(ROOT / "demo/mixtral", folder, ignore=shutil.ignore_patterns("adapters"))
    return folder


@pytest.fixture(scope="module")
def hostile(start, tmp_path_factory):
    model = copy_of_the_demo(tmp_path_factory.mktemp("model") / "hostile")
    (model / "chat_template.jinja").write_text(TEMPLATE)
    server = start(str(model), "--kv-tokens", "16384")
    target = Target(server)
    before = target.resident()
    yield target
    target.check_unharmed()
    grown = target.resident() - before
    server.stop()
    assert grown < 64e6, f"memory grew by {grown / 1e6:.1f} MB"


@pytest.mark.parametrize("content, says", [("loop", ""), ("big", ""), ("recurse", ""), ("missing", ""),
                                           ("refuse", "Conversation roles must alternate")])
def test_C5_C7_a_hostile_template_is_refused(hostile, beside_hostile, content, says):
    answer = hostile.post("/v1/chat/completions", {"messages": [{"role": "user", "content": content}]})
    assert answer.status_code == 400 and says in answer.text, answer.text[:300]
    answer = hostile.post("/generate", {"inputs": content, "parameters": {"apply_chat_template": True}})
    assert answer.status_code == 422 and answer.json()["error_type"] == "template_error", answer.text[:300]


@pytest.fixture
def beside_hostile(hostile):
    yield
    hostile.check_unharmed()


def test_C3_a_tokenizer_with_an_exponential_expression_is_bounded(request, start, tmp_path):
    model = copy_of_the_demo(tmp_path / "model")
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    tokenizer["pre_tokenizer"] = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}
    (model / "tokenizer.json").write_text(json.dumps(tokenizer))
    try:
        server = start(str(model), "--kv-tokens", "16384")
    except AssertionError as refused:
        assert "lorry ended with 1" in str(refused)
        return
    # It loaded: then a text that makes it go back and forth ends in time, one way or the other.
    answer = requests.post(server.url + "/tokenize", json={"inputs": "a" * 60 + "b"}, timeout=30)
    assert answer.status_code in (200, 400, 422)
    server.stop()
