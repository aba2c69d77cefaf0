"""openai, unmodified: OpenAI and AsyncOpenAI on /v1."""

import asyncio
import time

import openai
import pytest

from prompts import chat, story

MESSAGES = chat(story(1))
LENGTH = 24
GREEDY = {"max_tokens": LENGTH, "temperature": 0, "extra_body": {"ignore_eos": True}}


def ask(client, model, **more):
    return client.chat.completions.create(model=model, messages=MESSAGES, **GREEDY, **more)


def text_of(chunks):
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


def check_usage(usage, like=None):
    assert usage.prompt_tokens > 10 and usage.completion_tokens == LENGTH
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert like is None or usage.prompt_tokens == like.prompt_tokens


def test_models_are_listed_and_found(openai_client, base, adapters):
    for name in [base, *adapters]:
        model = openai_client.models.retrieve(name)
        assert (model.id, model.object) == (name, "model")
        assert model.parent == (None if name == base else base)
    with pytest.raises(openai.NotFoundError):
        openai_client.models.retrieve("no-such")


def test_chat_with_each_adapter(openai_client, base, adapters):
    texts = {}
    for name in [base, *adapters]:
        answer = ask(openai_client, name)
        assert answer.object == "chat.completion" and answer.id.startswith("chatcmpl-")
        assert answer.model == name and abs(answer.created - time.time()) < 60
        [choice] = answer.choices
        assert choice.message.role == "assistant" and choice.finish_reason == "length"
        check_usage(answer.usage)
        texts[name] = choice.message.content
    assert len(set(texts.values())) == len(texts), texts


def test_no_model_name_is_the_base_model(openai_client, base):
    assert ask(openai_client, "").choices == ask(openai_client, base).choices


def test_chat_stream_is_the_answer_in_pieces(openai_client, base, adapters):
    for name in [base, *adapters]:
        *chunks, last = ask(openai_client, name, stream=True,
                            stream_options={"include_usage": True})
        whole = ask(openai_client, name)
        assert text_of(chunks) == whole.choices[0].message.content
        assert chunks[0].choices[0].delta.role == "assistant"
        assert all(chunk.usage is None and chunk.object == "chat.completion.chunk"
                   and chunk.model == name and chunk.id == last.id for chunk in chunks)
        reasons = [chunk.choices[0].finish_reason for chunk in chunks]
        assert reasons == [None] * (len(chunks) - 1) + ["length"]
        assert last.choices == []
        check_usage(last.usage, whole.usage)


def test_stream_without_usage_has_none(openai_client, base):
    assert all(chunk.usage is None for chunk in ask(openai_client, base, stream=True))


def test_async_chat_with_all_adapters_at_once(async_openai, openai_client, base, adapters):
    names = [base, *adapters]

    async def streamed(client, name):
        return text_of([chunk async for chunk in await ask(client, name, stream=True)])

    async def all_at_once():
        async with async_openai() as client:
            whole = asyncio.gather(*(ask(client, name) for name in names))
            pieces = asyncio.gather(*(streamed(client, name) for name in names))
            return await whole, await pieces

    whole, pieces = asyncio.run(all_at_once())
    for name, answer, text in zip(names, whole, pieces, strict=True):
        expected = ask(openai_client, name).choices
        assert answer.choices == expected, name
        assert text == expected[0].message.content, name


def test_completions_with_each_adapter(openai_client, base, adapters):
    for name in [base, *adapters]:
        answer = openai_client.completions.create(model=name, prompt=story(2), **GREEDY)
        assert answer.object == "text_completion" and answer.id.startswith("cmpl-")
        assert answer.model == name and answer.choices[0].finish_reason == "length"
        check_usage(answer.usage)
        *chunks, last = openai_client.completions.create(
            model=name, prompt=story(2), stream=True, stream_options={"include_usage": True},
            **GREEDY)
        assert "".join(chunk.choices[0].text for chunk in chunks) == answer.choices[0].text
        check_usage(last.usage, answer.usage)


def test_async_completions(async_openai, openai_client, adapters):
    async def all_at_once():
        async with async_openai() as client:
            return await asyncio.gather(*(
                client.completions.create(model=name, prompt=story(2), **GREEDY)
                for name in adapters))

    for name, answer in zip(adapters, asyncio.run(all_at_once()), strict=True):
        expected = openai_client.completions.create(model=name, prompt=story(2), **GREEDY)
        assert answer.choices == expected.choices, name


def test_many_prompts_and_many_answers(openai_client, base):
    prompts = [story(3), story(4)]
    answer = openai_client.completions.create(model=base, prompt=prompts, n=2, seed=1,
                                              max_tokens=LENGTH, temperature=5,
                                              extra_body={"ignore_eos": True})
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert len({choice.text for choice in answer.choices}) == 4
    greedy = openai_client.completions.create(model=base, prompt=prompts, **GREEDY)
    for prompt, choice in zip(prompts, greedy.choices, strict=True):
        alone = openai_client.completions.create(model=base, prompt=prompt, **GREEDY)
        assert choice.text == alone.choices[0].text


def test_prompts_as_token_ids_and_their_logprobs(openai_client, base, server):
    ids = [token["id"] for token in
           openai_client.post("/../tokenize", body={"inputs": story(5)}, cast_to=object)]
    answer = openai_client.completions.create(model=base, prompt=ids, max_tokens=1, temperature=0,
                                              logprobs=1, echo=True)
    [choice] = answer.choices
    assert answer.usage.prompt_tokens == len(ids)
    assert story(5) in choice.text
    logprobs = choice.logprobs
    assert len(logprobs.tokens) == len(logprobs.token_logprobs) == len(ids) + 1
    assert logprobs.token_logprobs[0] is None and logprobs.top_logprobs[0] is None
    assert logprobs.token_logprobs[-1] == max(logprobs.top_logprobs[-1].values())
    assert all(value <= 0 for value in logprobs.token_logprobs[1:])


def test_chat_logprobs(openai_client, base):
    [choice] = ask(openai_client, base, logprobs=True, top_logprobs=3).choices
    assert len(choice.logprobs.content) == LENGTH
    for token in choice.logprobs.content:
        assert len(token.top_logprobs) == 3
        assert token.top_logprobs[0].logprob == token.logprob


def test_a_stop_sequence_is_cut_off(openai_client, base):
    whole = ask(openai_client, base).choices[0].message.content
    stop = whole[8:11]
    [choice] = ask(openai_client, base, stop=stop).choices
    assert choice.finish_reason == "stop"
    assert choice.message.content == whole[:whole.index(stop)]
    chunks = list(ask(openai_client, base, stop=[stop], stream=True))
    assert text_of(chunks) == choice.message.content
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_a_seed_repeats_the_answer(openai_client, adapters):
    def sampled(seed):
        return openai_client.chat.completions.create(
            model=adapters[0], messages=MESSAGES, max_completion_tokens=LENGTH, temperature=5,
            seed=seed).choices[0].message.content

    assert sampled(1) == sampled(1)
    assert len({sampled(seed) for seed in range(4)}) > 1


def test_content_can_be_in_parts(openai_client, base):
    parts = [{"role": "user", "content": [{"type": "text", "text": story(1)}]}]
    answer = openai_client.chat.completions.create(model=base, messages=parts, **GREEDY)
    assert answer.choices == ask(openai_client, base).choices


def test_an_unknown_model_is_not_found(openai_client, async_openai):
    for create in (lambda: ask(openai_client, "no-such"),
                   lambda: ask(openai_client, "no-such", stream=True),
                   lambda: openai_client.completions.create(model="no-such", prompt="Hi")):
        with pytest.raises(openai.NotFoundError) as error:
            create()
        assert error.value.code == "model_not_found" and "no-such" in str(error.value)

    async def unknown():
        async with async_openai() as client:
            await ask(client, "no-such")

    with pytest.raises(openai.NotFoundError):
        asyncio.run(unknown())


REFUSED = [
    ({"messages": []}, "messages", None),
    ({"messages": [{"role": "nobody", "content": "Hi"}]}, "messages[0].role", None),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
     "messages[0].content", None),
    ({"temperature": -1}, "temperature", None),
    ({"top_p": 2}, "top_p", None),
    ({"max_tokens": 0}, "max_tokens", None),
    ({"presence_penalty": 3}, "presence_penalty", None),
    ({"logit_bias": {"10000000": 1}}, "logit_bias", None),
    ({"max_tokens": 10**6}, None, "context_length_exceeded"),
]


@pytest.mark.parametrize(("parameters", "param", "code"), REFUSED)
def test_bad_values_are_bad_requests(openai_client, base, parameters, param, code):
    with pytest.raises(openai.BadRequestError) as error:
        openai_client.chat.completions.create(**{"model": base, "messages": MESSAGES, **parameters})
    assert error.value.type == "invalid_request_error"
    assert (error.value.param, error.value.code) == (param, code)


def test_the_request_id_is_told(openai_client, base):
    answer = openai_client.with_options(
        default_headers={"x-request-id": "mine-1"}).chat.completions.create(
            model=base, messages=MESSAGES, max_tokens=1)
    assert answer._request_id == "mine-1"
    assert ask(openai_client, base)._request_id
