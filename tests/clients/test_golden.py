"""What transformers and PEFT computed, asked for over HTTP: all adapters in one mixed batch."""

import asyncio
import json
import pathlib

import openai
import pytest

GOLDEN = pathlib.Path("tests/golden")
DEMO_GOLDEN = pathlib.Path("demo/golden.json")
DEMO_LENGTH = 110  # of demo/golden.py


async def logprobs_of(client, run, case):
    """Of the greedy answer."""
    answer = await client.completions.create(
        model=run["adapter"] or "golden", prompt=case["prompts"][run["prompt"]],
        max_tokens=case["new_tokens"], temperature=0, logprobs=1, extra_body={"ignore_eos": True})
    return answer.choices[0].logprobs.token_logprobs


@pytest.mark.parametrize("name", ["mixtral-base", "mixtral-sliding", "dbrx-base"])
def test_logprobs_are_those_of_transformers(start, measured, name):
    case = json.loads((GOLDEN / name / "golden.json").read_text())
    runs = case["runs"]
    server = start(str(GOLDEN / name / "model"), "--dtype", "float32", "--served-model-name",
                   "golden", "--adapter-root", str(GOLDEN / name / "adapters"))

    async def all_at_once():
        async with openai.AsyncOpenAI(base_url=server.url + "/v1", api_key="none",
                                      max_retries=0) as client:
            return await asyncio.gather(*(logprobs_of(client, run, case) for run in runs))

    answers = asyncio.run(all_at_once())
    server.stop()
    worst = 0.0
    for run, answer in zip(runs, answers, strict=True):
        expected = run["generated"]["logprobs"]
        differences = [abs(a - b) for a, b in zip(answer, expected, strict=True)]
        assert max(differences) <= 4e-4, (run["key"], run["prompt"], differences)
        worst = max(worst, *differences)
    measured(f"{name}: {len(runs)} runs in one batch, largest logprob difference "
             f"{worst:.1e}")


@pytest.mark.parametrize(("model", "kind"), [("demo", "mixtral"), ("demo:dbrx", "dbrx")])
def test_demo_texts_are_those_of_transformers(start, measured, model, kind):
    # Where two tokens or two experts are as good as equal, rounding decides: such runs tell nothing.
    runs = [run for run in json.loads(DEMO_GOLDEN.read_text())[kind]
            if min(run["margins"]) > 1e-3 and min(run["router_gaps"]) > 1e-4]
    assert len(runs) > 10
    server = start(model, "--dtype", "float32", "--served-model-name", "base")

    async def all_at_once():
        async with openai.AsyncOpenAI(base_url=server.url + "/v1", api_key="none",
                                      max_retries=0) as client:
            return await asyncio.gather(*(client.chat.completions.create(
                model=run["adapter"] or "base", messages=run["messages"], temperature=0,
                max_tokens=DEMO_LENGTH) for run in runs))

    answers = asyncio.run(all_at_once())
    server.stop()
    for run, answer in zip(runs, answers, strict=True):
        [choice] = answer.choices
        assert choice.message.content == run["text"], (run["adapter"], run["messages"])
        assert answer.usage.prompt_tokens == len(run["prompt"])
        assert answer.usage.completion_tokens == len(run["tokens"])
    measured(f"{model}: {len(runs)} chats with {len({run['adapter'] for run in runs}) - 1} adapters "
             "in one batch, every text as transformers and PEFT write it")
