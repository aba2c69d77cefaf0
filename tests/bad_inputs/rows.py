"""Requests that must be refused, by their row in the list of bad inputs: what is sent, and what must
come back. tests/load/soak.py sends them too."""

import json
from typing import NamedTuple

MESSAGES = [{"role": "user", "content": "Hi"}]
CHAT, COMPLETIONS, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"


class Json(NamedTuple):
    """A body on a route, and the statuses it may be answered with. `says`: part of the answer."""
    row: str
    path: str
    body: bytes
    statuses: tuple
    says: str = ""


class Raw(NamedTuple):
    """Bytes on a connection; the answer's status, and then the connection is closed."""
    row: str
    data: bytes
    status: int


def _body(body):
    return body if isinstance(body, bytes) else json.dumps(body, ensure_ascii=False).encode()


def _lorax(row, parameters, says="", status=422, inputs="Hi"):
    return Json(row, "/generate", _body({"inputs": inputs, "parameters": parameters}), (status,), says)


def _chat(row, more, says="", status=400, messages=MESSAGES):
    return Json(row, CHAT, _body({"messages": messages, **more}), (status,), says)


def _completion(row, more, says="", status=400):
    return Json(row, COMPLETIONS, _body({"prompt": "Hi", **more}), (status,), says)


def _response(row, more, says="", status=400):
    return Json(row, RESPONSES, _body({"input": "Hi", **more}), (status,), says)


def _malformed():
    bodies = {"B1": [b"", b"[]", b'"x"', b"null", b'{"inputs": "x"', b'{"inputs": "x"} x', b"{]", b"\x00"],
              "B2": [b'{"inputs": "\xff\xfe"}', b'{"inputs": "\\ud800"}', b'{"inputs": "\xed\xa0\x80"}'],
              "B3": [b'{"inputs": ' + b"[" * 65 + b"]" * 65 + b"}", b"[" * 100_000,
                     b'{"a":' * 50_000 + b"1" + b"}" * 50_000]}
    for row, of_row in bodies.items():
        for body in of_row:
            yield Json(row, "/generate", body, (400, 422))
            for path in (CHAT, COMPLETIONS, RESPONSES):
                yield Json(row, path, body, (400,))


def _numbers():
    for field in ("temperature", "top_p", "max_new_tokens", "top_k", "seed"):
        yield _lorax("B4", {field: "5"}, field)
        yield _lorax("B4", {field: True}, field)
        yield _lorax("B4", {field: [1]}, field)
    yield Json("B4", "/generate", b'{"inputs":"x","parameters":{"temperature":1e999}}', (400, 422))
    yield Json("B4", COMPLETIONS, b'{"prompt":"x","temperature":1e999}', (400,))
    yield _lorax("B4", {"max_new_tokens": 1.5}, "max_new_tokens")
    yield _lorax("B4", {"max_new_tokens": 2**63}, "max_new_tokens")
    yield _completion("B4", {"max_tokens": 1.5}, "max_tokens")
    yield _completion("B4", {"max_tokens": 2**64}, "max_tokens")
    for field in ("max_new_tokens", "top_k", "truncate", "seed", "return_k_alternatives", "best_of"):
        yield _lorax("B5", {field: -1}, field)
    for field in ("max_tokens", "n", "top_k", "seed", "best_of"):
        yield _completion("B5", {field: -1}, field)


def _sampling():
    yield _lorax("B6", {"best_of": 1000, "do_sample": True}, "`best_of` must be > 0 and <= 2. Given: 1000")
    yield _completion("B6", {"n": 1000}, "`n`")
    for field, value in [("temperature", -1), ("top_p", 0), ("top_p", 1.1), ("typical_p", 0), ("typical_p", 1),
                         ("top_k", 0), ("repetition_penalty", 0), ("frequency_penalty", 3), ("presence_penalty", -3)]:
        yield _lorax("B12", {field: value}, f"`{field}` must be")
    yield _lorax("B12", {"watermark": "yes"}, "`watermark` must be true or false")
    for field, value in [("temperature", -1), ("top_p", 1.1), ("frequency_penalty", 3), ("min_p", 2)]:
        yield _chat("B12", {field: value}, field)
    yield _chat("B13", {"logprobs": True, "top_logprobs": 21}, "top_logprobs")
    yield _chat("B13", {"top_logprobs": 2}, "logprobs")
    yield Json("B14", "/generate_stream", _body({"inputs": "x", "parameters": {"decoder_input_details": True}}), (422,),
               "`decoder_input_details` == true is not supported when streaming tokens")
    yield Json("B14", "/generate_stream", _body({"inputs": "x", "parameters": {"best_of": 2, "do_sample": True}}), (422,),
               "`best_of` != 1 is not supported when streaming tokens")
    yield _lorax("B14", {"best_of": 2}, "you must use sampling when `best_of` is > 1")
    yield _lorax("B14", {"best_of": 2, "do_sample": True, "seed": 1}, "`seed` must not be set when `best_of` > 1")


def _texts():
    yield _lorax("B7", {}, "`inputs` cannot be empty", inputs="")
    yield _completion("B7", {"prompt": ""}, "prompt")
    yield _completion("B7", {"prompt": []}, "prompt")
    yield _lorax("B8", {}, "`inputs` must have less than", inputs="word " * 20_000)
    yield _lorax("B8", {"max_new_tokens": 10**6}, "`inputs` tokens + `max_new_tokens` must be <=")
    yield _completion("B8", {"max_tokens": 10**6}, "context_length_exceeded")
    yield _chat("B8", {}, "context_length_exceeded", messages=[{"role": "user", "content": "word " * 20_000}])
    yield _response("B7", {"input": []}, "input")
    yield _response("B8", {"input": "word " * 20_000}, "context_length_exceeded")
    yield _response("B8", {"max_output_tokens": 10**6}, "context_length_exceeded")
    yield _completion("B9", {"prompt": [10**6]}, "out of vocabulary")
    yield _completion("B9", {"prompt": [-1]}, "out of vocabulary")
    yield _completion("B10", {"logit_bias": {"a": 1}}, "logit_bias")
    yield _completion("B10", {"logit_bias": {"1000000": 1}}, "logit_bias")
    yield _completion("B10", {"logit_bias": {str(i): 1 for i in range(100_000)}}, "logit_bias")
    yield _completion("B10", {"stop_token_ids": [10**6]}, "stop_token_ids")
    yield _lorax("B11", {"stop": ["a"] * 5}, "`stop` supports up to 4 stop sequences. Given: 5")
    yield _lorax("B11", {"stop": [""]}, "stop")
    yield _lorax("B11", {"stop": ["x" * 1_000_000]}, "stop")
    yield _completion("B11", {"stop": "x" * 1_000_000}, "stop")


def _messages():
    for bad in (None, "text", [], [123], [{}], [{"role": 123, "content": "x"}], [{"role": "user", "content": 123}],
                [{"role": "user"}], [{"role": "user", "content": [{"type": "text"}]}]):
        yield _chat("B15", {"messages": bad}, "messages")
    yield _chat("B16", {"response_format": {"type": "sound"}}, "response_format")
    yield _chat("B16", {"response_format": {"type": "json_schema", "json_schema": 123}}, "response_format")
    yield _chat("B16", {"response_format": {"type": "json_schema", "json_schema": {
        "name": "x", "schema": {"type": "hiccup"}}}}, "response_format")
    for bad in (None, 7, [123], [{}], [{"role": "tool", "content": "x"}], [{"role": "user", "content": [{"type": "input_text"}]}],
                [{"type": "item_reference", "id": "x"}], [{"type": "function_call", "call_id": "1", "name": "f"}]):
        yield _response("B15", {"input": bad}, "input")
    yield _response("B16", {"text": {"format": {"type": "sound"}}}, "text")
    yield _response("B16", {"text": {"format": {"type": "json_schema", "name": "x", "schema": {"type": "hiccup"}}}}, "text")
    yield _response("B16", {"tools": [{"type": "function"}]}, "tools[0]")
    for field, value in [("previous_response_id", "x"), ("background", True), ("store", True), ("truncation", "auto")]:
        yield _response("B19", {field: value}, field)
    yield _response("B20", {"model": "no-such-model"}, "model_not_found", status=404)
    yield _response("B21", {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "file:///etc/passwd"}]}]},
                    "modality")
    yield _completion("B17", {"prompt": ["x"] * 100_000}, "prompts")
    for field, value in [("audio", {"voice": "x"}), ("modalities", ["audio"]), ("functions", [{}]),
                         ("web_search_options", {"a": 1}), ("store", True)]:
        yield _chat("B19", {field: value}, field)
    yield _completion("B19", {"suffix": "x"}, "suffix")
    yield _chat("B20", {"model": "no-such-model"}, "model_not_found", status=404)
    yield _completion("B20", {"model": "no-such-model"}, "model_not_found", status=404)
    for part in ({"type": "image_url", "image_url": {"url": "file:///etc/passwd"}},
                 {"type": "image_url", "image_url": {"url": "http://127.0.0.1:9/x.png"}},
                 {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}):
        yield _chat("B21", {}, "messages", messages=[{"role": "user", "content": [part]}])
    yield _completion("B22", {"prompt_embeds": "gASVAAAA"}, "prompt_embeds")
    yield _chat("B23", {"chat_template": "{{ 1 }}"}, "chat_template")
    yield _chat("B23", {"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs")


def _tokens_and_forms():
    for letter in ("a", "_", "^", " ", "\u00e4"):
        yield _lorax("C1", {}, "`inputs` must have less than", inputs=letter * (1_000_000 // len(letter.encode())))
    yield _lorax("C2", {}, "`inputs` must have less than", inputs="^" * 1_000_000)
    yield _lorax("D1", {"response_format": {"type": "regex", "schema": "("}}, "response_format")
    yield _lorax("D1", {"response_format": {"type": "grammar", "schema": "start: ~"}}, "response_format")
    yield _lorax("D1", {"response_format": {"type": "json_schema", "schema": {"$ref": "#/x"}}}, "response_format")
    for form in ({"type": "regex", "schema": "(a?){1,1000000}"}, {"type": "json_schema", "schema": {
            "$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}}):
        body = {"inputs": "Hi", "parameters": {"response_format": form, "max_new_tokens": 20}}
        yield Json("D2", "/generate", _body(body), (200, 422, 424))  # bounded, if it is not refused


JSON = [*_malformed(), *_numbers(), *_sampling(), *_texts(), *_messages(), *_tokens_and_forms()]


def _request(*fields, line="POST /generate HTTP/1.1", body=b""):
    return "\r\n".join([line, *fields, "", ""]).encode("latin-1") + body


_POST = ("Host: localhost", "Content-Type: application/json")
_CHUNKED = _request(*_POST, "Transfer-Encoding: chunked")

RAW = [
    Raw("A1", _request("Host: localhost", "X: " + "a" * 17_000, line="GET / HTTP/1.1"), 431),
    Raw("A1", _request("Host: localhost", *(f"X{i}: y" for i in range(101)), line="GET / HTTP/1.1"), 431),
    Raw("A1", _request("Host: localhost", line=f"GET /{'a' * 8200} HTTP/1.1"), 414),
    Raw("A1", b"GET /" + b"a" * 9000, 414),
    Raw("A2", _request(*_POST, "Content-Length: 2000001"), 413),
    Raw("A2", _request(*_POST, "Content-Length: 99999999999"), 413),
    Raw("A2", _CHUNKED + b"1E8481\r\n" + b" " * 2_000_001, 413),
    Raw("A3", _request(*_POST, "Content-Encoding: gzip", "Content-Length: 2", body=b"{}"), 415),
    Raw("A3", _request(*_POST, "Content-Encoding: identity", "Content-Length: 2", body=b"{}"), 415),
    Raw("A4", _CHUNKED + b"FFFFFFFFFFFFFFFF\r\n", 413),
    Raw("A4", _CHUNKED + b"FFFFFFFFFFFFFFFFF\r\n", 400),
    Raw("A4", _CHUNKED + b"-1\r\n", 400),
    Raw("A4", _CHUNKED + b"1;" + b"a" * 20_000, 413),
    Raw("A9", _request(*_POST, "Content-Length: 2", "Transfer-Encoding: chunked", body=b"{}"), 400),
    Raw("A9", _request(*_POST, "Content-Length: 2", "Content-Length: 3", body=b"{}"), 400),
    Raw("A9", _request(*_POST, "Content-Length: 2", "Content-Length: 2", body=b"{}"), 400),
    Raw("A9", _request(*_POST, "Content-Length: 2, 2", body=b"{}"), 400),
    Raw("A9", _request(*_POST, "Content-Length: +2", body=b"{}"), 400),
    Raw("A9", _request(*_POST, "Transfer-Encoding: gzip, chunked"), 400),
    Raw("A9", _request("Host: localhost", "X: y", " folded", line="GET / HTTP/1.1"), 400),
    Raw("A9", b"GET / HTTP/1.1\nHost: localhost\n\n", 400),
    Raw("A9", _request("Host : localhost", line="GET / HTTP/1.1"), 400),
    Raw("A9", _request("Host: localhost", "Host: other", line="GET / HTTP/1.1"), 400),
    Raw("A9", _request(line="GET / HTTP/1.1"), 400),
    Raw("A9", b"nonsense\r\n\r\n", 400),
    Raw("A9", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
    Raw("A10", _request("Host: localhost", "X-Request-Id: a\x00b", line="GET / HTTP/1.1"), 400),
    Raw("A10", _request("Host: localhost", "X-Request-Id: a\x1bb", line="GET / HTTP/1.1"), 400),
    Raw("A10", _request("Host: localhost", "X-Request-Id: a\rb", line="GET / HTTP/1.1"), 400),
    Raw("A12", _request("Host: localhost", line="GET /\x00 HTTP/1.1"), 400),
]

# The connection stays: what is refused is the request.
PATHS = [
    ("A11", "GET", "/nothing", 404), ("A11", "DELETE", "/generate", 405), ("A11", "GET", "/generate", 405),
    ("A11", "POST", "/health", 405), ("A12", "GET", "/../../etc/passwd", 404), ("A12", "GET", "/%2e%2e/%2e%2e/etc/passwd", 404),
    ("A12", "GET", "/..\\..\\etc\\passwd", 404), ("A12", "GET", "/%00", 404), ("A12", "GET", "//etc/passwd", 404),
    ("A12", "GET", "/docs/../../etc/passwd", 404), ("A12", "GET", "/v1/models/..%2f..%2fetc", 404),
]
