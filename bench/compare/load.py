"""N requests at once against one server: what came back when."""

from __future__ import annotations

import dataclasses
import http.client
import json
import random
import statistics
import threading
import time

from dialects import Ask, Stream, body_of, path_of
from servers import Server

FIRST_WORD = 259  # below: the special tokens and bytes of a SentencePiece vocabulary


@dataclasses.dataclass(frozen=True)
class Work:
    """What one measurement asks for."""

    concurrency: int
    prompt_tokens: int
    new_tokens: int
    vocab: int
    adapters: str  # none, same or distinct
    n_adapters: int  # that `distinct` deals to the requests in turn

    @property
    def label(self) -> str:
        adapters = f"{min(self.n_adapters, self.concurrency)} distinct" if self.adapters == "distinct" else self.adapters
        return f"N={self.concurrency} {self.prompt_tokens}+{self.new_tokens} adapters: {adapters}"


@dataclasses.dataclass
class Answer:
    sent: float = 0.0
    first: float = 0.0
    last: float = 0.0
    n_tokens: int = 0
    error: str = ""


def prompts(work: Work, seed: str) -> list[list[int]]:
    """Random ids, other ones in each request. Equal tokens would choose equal experts."""
    source = random.Random(f"{seed}/{work.label}")
    low = FIRST_WORD if work.vocab > 2 * FIRST_WORD else 0
    return [[source.randrange(low, work.vocab) for _ in range(work.prompt_tokens)] for _ in range(work.concurrency)]


def asks(work: Work, seed: str, templates: tuple[str, str]) -> list[Ask]:
    """`templates`: JSON of the fields with an adapter {i}, and without one."""
    result = []
    for number, prompt in enumerate(prompts(work, seed)):
        adapter = {"none": -1, "same": 0, "distinct": number % work.n_adapters}[work.adapters]
        text = templates[1] if adapter < 0 else templates[0].replace("{i}", str(adapter))
        result.append(Ask(prompt, work.new_tokens, json.loads(text)))
    return result


def run_one(server: Server, ask: Ask, answer: Answer, start: threading.Barrier, timeout_s: float) -> None:
    connection = http.client.HTTPConnection(server.host, server.port, timeout=timeout_s)
    body = json.dumps(body_of(server.kind, ask))
    stream = Stream(server.kind)
    try:
        start.wait()
        answer.sent = time.perf_counter()
        connection.request("POST", path_of(server.kind), body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        if response.status != 200:
            answer.error = f"status {response.status}: {response.read(500).decode(errors='replace')}"
            return
        for line in response:
            if stream.feed(line):
                answer.last = time.perf_counter()
                answer.first = answer.first or answer.last
        answer.n_tokens = stream.n_events if stream.n_tokens is None else stream.n_tokens
        answer.error = stream.error
        if not answer.error and answer.n_tokens != ask.n_tokens:
            answer.error = f"{answer.n_tokens} tokens instead of {ask.n_tokens}"
    except (OSError, http.client.HTTPException, threading.BrokenBarrierError) as error:
        answer.error = f"{type(error).__name__}: {error}"
    finally:
        connection.close()


def percentile(values: list[float], share: float) -> float:
    """The smallest value that `share` of all values do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, -(-int(share * 100) * len(ordered) // 100) - 1)]


def figures(work: Work, answers: list[Answer]) -> dict[str, float]:
    """Of one round; a token is a generated one, a prompt's time counts."""
    begin, end = min(a.sent for a in answers), max(a.last for a in answers)
    ttft = [a.first - a.sent for a in answers]
    result = {
        "generated tok/s": sum(a.n_tokens for a in answers) / (end - begin),
        "TTFT p50 s": statistics.median(ttft),
        "TTFT p99 s": percentile(ttft, 0.99),
    }
    if work.concurrency == 1:
        result["prefill tok/s"] = work.prompt_tokens / ttft[0]
    if work.new_tokens > 1:
        after = [(a.n_tokens - 1) / (a.last - a.first) for a in answers if a.last > a.first]
        result["decode tok/s per request"] = statistics.median(after)
    return result


def measure(server: Server, work: Work, all_asks: list[Ask], timeout_s: float) -> dict[str, float]:
    """One round. Ends the program when a request fails: a comparison of unequal work means nothing."""
    answers = [Answer() for _ in all_asks]
    start = threading.Barrier(len(all_asks))
    threads = [threading.Thread(target=run_one, args=(server, ask, answer, start, timeout_s), daemon=True)
               for ask, answer in zip(all_asks, answers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    failed = [answer.error for answer in answers if answer.error]
    if failed:
        raise SystemExit(f"{server.name}, {work.label}: {len(failed)} of {len(answers)} requests failed: {failed[0]}")
    return figures(work, answers)
