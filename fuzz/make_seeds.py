#!/usr/bin/env python3
"""Writes first inputs for the fuzzers, from the golden models and by hand, into FOLDER/NAME/*.

They are many and alike: `fuzz/run.py --keep` makes the kept corpus (fuzz/corpus) of them.
Usage: fuzz/make_seeds.py FOLDER
"""

import json
import pathlib
import struct
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
GOLDEN = ROOT / "tests" / "golden"
LARGEST = 12_000  # bytes of a seed


def join(*parts):
    """An input of several texts."""
    return b"\n---\n".join(p if isinstance(p, bytes) else p.encode() for p in parts)


def http():
    def get(path, *fields):
        return "\r\n".join([f"GET {path} HTTP/1.1", "Host: a", *fields, "", ""])

    def post(path, body, *fields):
        return "\r\n".join([f"POST {path} HTTP/1.1", "Host: a", f"Content-Length: {len(body)}", *fields, "", body])

    chunked = "POST /stream HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    texts = [
        get("/"), get("/stream"), get("/later") + get("/later"), get("/close"), get("/", "Connection: close"),
        get("/").replace("1.1", "1.0"), get("/").replace("GET", "HEAD"), get("/%2e%2e/etc", "X: y"),
        post("/", "hello"), post("/stream", "hello") + get("/"), post("/", "hello", "Expect: 100-continue"),
        post("/", "hello", "Content-Length: 6"), post("/", "x", "Transfer-Encoding: chunked"),
        post("/", "x", "Content-Encoding: gzip"), get("/", "A: b", " folded"), get("/", "A : b"), "GET / HTTP/1.1\n\n",
        chunked + "5\r\nhello\r\n0\r\n\r\n", chunked + "5;a=b\r\nhello\r\n0\r\nTrailer: x\r\n\r\n" + get("/"),
        chunked + "FFFFFFFFFFFFFFFF\r\n", chunked + "1\r\na\r\n" * 50, "\r\n\r\n" + get("/"), get("/" + "a" * 9000),
        get("/", *[f"H{i}: x" for i in range(101)]), "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5000\r\n\r\n" + "a" * 5000,
    ]
    for text in texts:
        yield b"\0" + text.encode()
        yield b"\7" + text.encode()


def request():
    def say(line, body):
        return f"{line}\n{body if isinstance(body, str) else json.dumps(body)}"

    chat = [{"role": "user", "content": "Hi"}]
    tool = {"type": "function", "function": {"name": "f", "parameters": {
        "type": "object", "properties": {"a": {"type": "integer"}}}}}
    parameters = [
        {"max_new_tokens": 5, "details": True, "decoder_input_details": True, "return_full_text": True},
        {"do_sample": True, "temperature": 0.5, "top_k": 5, "top_p": 0.5, "typical_p": 0.5, "seed": 1, "best_of": 2},
        {"stop": ["a", "b"], "repetition_penalty": 1.1, "frequency_penalty": 0.1, "truncate": 3, "watermark": True},
        {"adapter_id": "a/b@c", "adapter_source": "hub", "api_token": "t", "return_k_alternatives": 2, "details": True},
        {"merged_adapters": {"ids": ["a", "b"], "weights": [0.5, 0.5], "merge_strategy": "ties", "density": 0.5}},
        {"adapters": [{"id": "a", "weight": 1}]}, {"response_format": {"type": "json_object", "schema": {}}},
        {"response_format": {"type": "regex", "schema": "[a-c]+"}}, {"apply_chat_template": True, "unknown": 1},
    ]
    for p in parameters:
        yield say("POST /generate", {"inputs": "Hello there", "parameters": p})
        yield say("POST /generate_stream", {"inputs": "Hello there", "parameters": p})
        yield say("POST /", {"inputs": "Hello", "parameters": p, "stream": True})
    for more in [
        {}, {"stream": True, "stream_options": {"include_usage": True}}, {"logprobs": True, "top_logprobs": 2},
        {"tools": [tool]}, {"tools": [tool], "tool_choice": "required"}, {"tools": [tool], "stream": True},
        {"tools": [tool], "tool_choice": {"type": "function", "function": {"name": "f"}}, "parallel_tool_calls": False},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}}},
        {"n": 2, "stop": "x", "max_completion_tokens": 3, "logit_bias": {"5": 1}, "user": "u", "seed": 3},
        {"guided_choice": ["a", "b"], "min_p": 0.1, "chat_template_kwargs": {"a": 1}}, {"model": "x", "cache_salt": "s"},
    ]:
        yield say("POST /v1/chat/completions", {"messages": chat, **more})
    for call in ['[TOOL_CALLS][{"name": "f", "arguments": {"a": 1}}]', '{"name": "f", "parameters": {"a": "}"}} x']:
        yield say("POST /v1/chat/completions", {"messages": [{"role": "user", "content": call}], "tools": [tool], "stream": True})
    history = [{"role": "system", "content": "s"}, {"role": "user", "content": [{"type": "text", "text": "t"}]},
               {"role": "assistant", "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]},
               {"role": "tool", "tool_call_id": "1", "content": "9"}, {"role": "user", "content": "\U0001f600"}]
    yield say("POST /v1/chat/completions", {"messages": history, "tools": [tool]})
    for more in [
        {"prompt": "Hi"}, {"prompt": ["Hi", "Ho"], "n": 2, "stream": True}, {"prompt": [1, 2, 3], "echo": True, "logprobs": 1},
        {"prompt": [[1, 2], [3]], "max_tokens": 1, "logprobs": 2, "temperature": 0}, {"prompt": "x", "suffix": "y"},
        {"prompt": "x", "best_of": 2, "n": 1}, {"prompt": "x", "stop": ["a"], "stop_token_ids": [5]},
    ]:
        yield say("POST /v1/completions", more)
    yield say("POST /tokenize", {"inputs": "Hello \u00e4\U0001f600", "add_special_tokens": False})
    yield say("POST /detokenize", {"tokens": [1, 2, 300, 77]})
    yield say("POST /v1/load_lora_adapter", {"lora_name": "x", "lora_path": "fixer", "load_inplace": True})
    yield say("POST /v1/unload_lora_adapter", {"lora_name": "x"})
    for path in ["/", "/health", "/info", "/metrics", "/v1/models", "/v1/models/echo", "/v1/adapters", "/docs", "/version",
                 "/api-doc/openapi.json", "/nothing"]:
        yield say("GET " + path, "")
    for path in ["/embed", "/classify", "/invocations", "/v1/embeddings"]:
        yield say("POST " + path, "{}")
    flat = {"type": "function", "name": "f", "strict": True, "parameters": {"type": "object"}}
    history = [{"role": "user", "content": [{"type": "input_text", "text": "t"}]}, {"type": "reasoning", "summary": []},
               {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "o"}, {"type": "refusal", "refusal": "r"}]},
               {"type": "function_call", "call_id": "1", "name": "f", "arguments": "{}"},
               {"type": "function_call_output", "call_id": "1", "output": [{"type": "input_text", "text": "9"}]}]
    for more in [
        {}, {"stream": True}, {"instructions": "i", "max_output_tokens": 2, "stop": "x"}, {"tools": [flat], "stream": True},
        {"include": ["message.output_text.logprobs", "reasoning.encrypted_content"], "top_logprobs": 2, "stream": True},
        {"text": {"format": {"type": "json_schema", "name": "x", "schema": {"type": "object"}}, "verbosity": None}},
        {"tools": [flat], "tool_choice": {"type": "function", "name": "f"}, "parallel_tool_calls": False},
        {"previous_response_id": "x"}, {"store": False, "background": False, "truncation": "disabled", "metadata": {}},
    ]:
        yield say("POST /v1/responses", {"input": "Hi", **more})
    yield say("POST /v1/responses", {"input": history, "tools": [flat]})
    yield say("POST /v1/responses", {"input": history[:1] + history[2:], "tools": [flat]})
    for call in ['[{"name": "f", "arguments": {"a": 1}}, {"name": "f", "arguments": {}}]', 'x [TOOL_CALLS][{"name": "f"']:
        yield say("POST /v1/responses", {"input": call, "tools": [flat], "stream": True})
    yield say("GET /v1/responses/resp_1", "")


def header(tensors, data=b"", **metadata):
    text = json.dumps({**({"__metadata__": metadata} if metadata else {}), **tensors}).encode()
    return struct.pack("<Q", len(text)) + text + data


def safetensors():
    def one(dtype, shape, size):
        return header({"a": {"dtype": dtype, "shape": shape, "data_offsets": [0, size]}}, b"\0" * size)

    yield one("F32", [2, 2], 16)
    yield one("BF16", [], 2)
    yield one("F16", [0, 7], 0)
    yield one("I64", [1, 1, 1, 1, 2], 16)
    yield one("F8_E4M3", [3], 3)
    yield one("F4", [3], 2)
    yield header({}, format="pt")
    yield b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"
    yield from small_files("adapter_model.safetensors")
    yield from small_files("medusa_lm_head.safetensors")


def small_files(name):
    for path in sorted([*GOLDEN.rglob(name), *(ROOT / "demo").rglob(name)]):
        if path.stat().st_size <= LARGEST:
            yield path.read_bytes()


def adapter():
    folders = [p.parent for p in sorted(GOLDEN.rglob("adapter_config.json"))]
    for folder in folders:
        weights = folder / "adapter_model.safetensors"
        if weights.exists() and weights.stat().st_size <= LARGEST:
            yield join((folder / "adapter_config.json").read_bytes(), weights.read_bytes())


def config():
    for path in sorted([*GOLDEN.rglob("config.json"), *(ROOT / "demo").rglob("config.json")]):
        yield path.read_bytes()
    base = json.loads((GOLDEN / "mixtral-base/model/config.json").read_text())
    for rope in [{"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
                 {"rope_type": "llama3", "factor": 8, "low_freq_factor": 1, "high_freq_factor": 4,
                  "original_max_position_embeddings": 32}, {"type": "linear", "factor": 2}, {"type": "dynamic", "factor": 2},
                 {"type": "longrope", "short_factor": [1] * 8, "long_factor": [2] * 8, "original_max_position_embeddings": 8}]:
        yield json.dumps({**base, "rope_scaling": rope})
    for quant in [{"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": True, "sym": False},
                  {"quant_method": "awq", "bits": 4, "group_size": 64, "version": "gemm", "zero_point": True},
                  {"quant_method": "fp8", "weight_block_size": [128, 128]},
                  {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": {"group_0": {
                      "targets": ["Linear"], "weights": {"num_bits": 4, "type": "int", "symmetric": True,
                                                         "strategy": "group", "group_size": 128}}}}]:
        yield json.dumps({**base, "quantization_config": quant})


def template():
    messages = json.dumps([{"role": "user", "content": "Hi <|im_end|>"}, {"role": "assistant", "content": "Ho"}])
    for path in sorted((ROOT / "demo").glob("*/chat_template.jinja")):
        yield join(path.read_bytes(), messages, "{}")
    for source in [
        "{% for m in messages %}{{ m.role }}{{ m['content'] | trim }}{% endfor %}{{ bos_token }}",
        "{% for i in range(100000) %}{% for j in range(100000) %}x{% endfor %}{% endfor %}",
        "{{ 'a' * 100000000 }}", "{{ raise_exception('no') }}", "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}",
        "{% set ns = namespace(a=1) %}{% set ns.a = ns.a + 1 %}{{ ns.a }}{{ messages[9].content }}",
        "{{ messages | tojson(indent=2) }}{{ strftime_now('%Y') }}{{ tools | length }}{{ '%s' | format(1) }}",
        "{% generation %}{{ messages[-1]['content'].split('e')[0].strip() }}{% endgeneration %}",
        "{{ messages | map(attribute='role') | list | join(',') }}{{ {'a': 1}.items() | list }}{{ 'x'.startswith('x') }}",
    ]:
        yield join(source, messages, '{"tools": [{"a": 1}], "x": "y"}')


def grammar():
    for schema in [
        {"type": "object", "properties": {"a": {"type": "integer", "minimum": 3}}, "required": ["a"]}, True, False,
        {"type": "array", "items": {"$ref": "#/$defs/x"}, "$defs": {"x": {"type": "array", "items": {"$ref": "#/$defs/x"}}}},
        {"anyOf": [{"type": "string", "pattern": "a+", "maxLength": 5}, {"enum": [1, "x", None]}, {"const": 2.5}]},
        {"type": "string", "format": "date-time"}, {"type": "number", "multipleOf": 0.1}, {"allOf": [{"type": "object"}]},
        {"type": "object", "additionalProperties": {"type": "boolean"}, "x-guidance": {"whitespace_flexible": False}},
    ]:
        yield join("json_schema\n" + json.dumps(schema), '{"a": 5}')
    for regex in ["[a-z]+", "(a|b){3,7}c?", "(a+)+", "\\d{1,1000}", "(?i)hello", "[^\\n]*", "\\p{L}+", "a{1,1000000}"]:
        yield join("regex\n" + regex, "abc")
    for lark in ['start: "a" b+\nb: /[0-9]+/ | "x"', "start: start start | \"a\"", 'start: %json {"type": "object"}',
                 'start: a[max_tokens=3] "x"\na: /.*/', 'start: "[" (INT ("," INT)*)? "]"\nINT: /-?[0-9]+/\n%ignore " "']:
        yield join("lark\n" + lark, "a11x")


def names():
    yield from ["a", "org/name", "org/name@main", "../../etc", "/etc/passwd", "out", "out/..", "~", "a//b", "a/./b", "%2e%2e",
                "s3://bucket/prefix/x", "bucket/prefix", "x" * 300, "a\0b", "a\r\nb", "http://user:pw@host:80/p?q#f",
                "https://[::1]:443/", "//other.example/x", "http://example.org", "?q=1", "HTTPS://EXAMPLE.org", "127.0.0.1:80",
                "localhost.", "[::1]", "adapter_config.json\nadapter_model.safetensors\nsub/x.safetensors",
                "adapter_config.json\na.safetensors\n../b.safetensors", "adapter_config.json\nadapter_model.bin",
                "config.json\nmedusa_lm_head.safetensors"]
    page = ('<?xml version="1.0"?><ListBucketResult><IsTruncated>true</IsTruncated><Contents><Key>p/a&amp;b</Key>'
            '<ETag>&quot;0a&quot;</ETag><Size>3</Size></Contents><NextContinuationToken>t</NextContinuationToken></ListBucketResult>')
    yield from [page, "<Error><Code>NoSuchBucket</Code></Error>", "<a><![CDATA[x]]><!-- c --></a>", page.replace("3", "-1")]


def main():
    folder = pathlib.Path(sys.argv[1])
    for make in [http, request, safetensors, adapter, config, template, grammar, names]:
        into = folder / make.__name__
        into.mkdir(parents=True, exist_ok=True)
        for number, seed in enumerate(make()):
            (into / f"seed-{number:03}").write_bytes(seed if isinstance(seed, bytes) else seed.encode())


if __name__ == "__main__":
    main()
