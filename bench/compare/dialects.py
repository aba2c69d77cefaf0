"""How each kind of server is asked for one answer, and how its stream is read."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

KINDS = ("lorry", "openai", "llama.cpp")

# Fields that name adapter {i}, and those that name none. llama.cpp applies all adapters at once to a request that names
# none of them, so that `none` has to be said.
WITH_ADAPTER = {
    "lorry": '{"model": "adapter-{i}"}',
    "openai": '{"model": "adapter-{i}"}',
    "llama.cpp": '{"lora": [{"id": {i}, "scale": 1.0}]}',
}
WITHOUT_ADAPTER = {"lorry": "{}", "openai": "{}", "llama.cpp": '{"lora": [{"id": 0, "scale": 0.0}]}'}


@dataclasses.dataclass(frozen=True)
class Ask:
    """One request: token ids in, `n_tokens` greedy tokens out, the end-of-text token ignored."""

    prompt: list[int]
    n_tokens: int
    fields: dict[str, Any]  # what names the adapter


def path_of(kind: str) -> str:
    return "/completion" if kind == "llama.cpp" else "/v1/completions"


def body_of(kind: str, ask: Ask) -> dict[str, Any]:
    common: dict[str, Any] = {"prompt": ask.prompt, "temperature": 0, "ignore_eos": True, "stream": True}
    if kind == "llama.cpp":
        own: dict[str, Any] = {"n_predict": ask.n_tokens, "top_k": 1, "cache_prompt": False}
    else:
        own = {"max_tokens": ask.n_tokens, "stream_options": {"include_usage": True}}
    return {**common, **own, **ask.fields}


@dataclasses.dataclass
class Stream:
    """What was read so far of one answer."""

    kind: str
    began: bool = False  # its first token has come
    n_tokens: int | None = None  # as the server counts
    n_events: int = 0  # with a token
    error: str = ""

    def feed(self, line: bytes) -> bool:
        """A line of the response's body; true when it carries a token."""
        if not line.startswith(b"data:"):
            if line.startswith((b"error:", b"{")):
                self.error = line.decode(errors="replace").strip()
            return False
        text = line[5:].strip()
        if text == b"[DONE]":
            return False
        event = json.loads(text)
        if "error" in event:
            self.error = json.dumps(event["error"])
            return False
        token = self.read_llama(event) if self.kind == "llama.cpp" else self.read_openai(event)
        self.began = self.began or token
        self.n_events += token
        return token

    def read_llama(self, event: dict[str, Any]) -> bool:
        self.n_tokens = event.get("tokens_predicted", self.n_tokens)
        return not event.get("stop", False)

    def read_openai(self, event: dict[str, Any]) -> bool:
        if event.get("usage"):
            self.n_tokens = event["usage"]["completion_tokens"]
        choices = event.get("choices") or []
        return bool(choices) and choices[0].get("finish_reason") is None
