"""lorax-client 0.6.3, unmodified: Client and AsyncClient."""

import asyncio

import lorax
import pytest
from lorax.errors import GenerationError, ValidationError

from prompts import as_turn, story

PROMPT = as_turn(story(0))
LENGTH = 24


def text_of(tokens):
    return "".join(token.text for token in tokens if not token.special)


def greedy(client, adapter=None, n=LENGTH, **more):
    return client.generate(PROMPT, adapter_id=adapter, max_new_tokens=n, ignore_eos_token=True, **more)


def test_generate_tells_details(lorax_client):
    response = greedy(lorax_client)
    details = response.details
    assert details.finish_reason == "length"
    assert details.generated_tokens == len(details.tokens) == LENGTH
    assert details.prompt_tokens > 10
    assert details.seed is None and details.prefill == []
    assert response.generated_text == text_of(details.tokens)
    assert all(token.logprob <= 0 for token in details.tokens)


def test_without_details_there_is_the_text_alone(lorax_client):
    assert lorax_client.generate(PROMPT, max_new_tokens=4, details=False).details is None


def test_each_adapter_has_its_own_answer(lorax_client, adapters):
    texts = {name: greedy(lorax_client, name).generated_text for name in [None, *adapters]}
    assert len(set(texts.values())) == len(texts), texts


def test_stream_is_generate_in_pieces(lorax_client, adapters):
    for name in [None, *adapters]:
        *first, last = lorax_client.generate_stream(PROMPT, adapter_id=name, max_new_tokens=LENGTH,
                                                    ignore_eos_token=True)
        whole = greedy(lorax_client, name)
        assert all(part.generated_text is None and part.details is None for part in first)
        assert [part.token for part in [*first, last]] == whole.details.tokens
        assert last.generated_text == whole.generated_text
        assert last.details.finish_reason == "length"
        assert last.details.generated_tokens == LENGTH
        assert last.details.prompt_tokens == whole.details.prompt_tokens


def test_async_generate_and_stream_with_all_adapters_at_once(server, lorax_client, adapters):
    client = lorax.AsyncClient(server.url)

    async def stream(name):
        return [part.token async for part in client.generate_stream(
            PROMPT, adapter_id=name, max_new_tokens=LENGTH, ignore_eos_token=True)]

    async def all_at_once():
        whole = asyncio.gather(*(client.generate(PROMPT, adapter_id=name, max_new_tokens=LENGTH,
                                                 ignore_eos_token=True) for name in adapters))
        pieces = asyncio.gather(*(stream(name) for name in adapters))
        return await whole, await pieces

    whole, pieces = asyncio.run(all_at_once())
    for name, response, tokens in zip(adapters, whole, pieces, strict=True):
        expected = greedy(lorax_client, name)
        assert response == expected, name
        assert tokens == expected.details.tokens, name


def test_decoder_input_details_tell_the_prompt(lorax_client):
    response = greedy(lorax_client, decoder_input_details=True)
    first, *others = response.details.prefill
    assert len(others) + 1 == response.details.prompt_tokens
    assert first.logprob is None
    assert all(token.logprob <= 0 for token in others)
    assert story(0) in "".join(token.text for token in others)


def test_alternatives_are_the_most_likely(lorax_client):
    for token in greedy(lorax_client, return_k_alternatives=3).details.tokens:
        logprobs = [other.logprob for other in token.alternative_tokens]
        assert len(logprobs) == 3 and logprobs == sorted(logprobs, reverse=True)
        best = token.alternative_tokens[0]
        assert (best.id, best.logprob) == (token.id, token.logprob)


def test_the_seed_that_is_told_repeats_the_answer(lorax_client, adapters):
    def sampled(seed=None):
        return greedy(lorax_client, adapters[0], do_sample=True, temperature=5.0, seed=seed)

    first = sampled()
    assert first.details.seed is not None
    assert sampled(first.details.seed) == first
    assert sampled(1) == sampled(1)
    assert len({sampled(seed).generated_text for seed in range(4)}) > 1


def test_a_stop_sequence_ends_the_answer(lorax_client):
    whole = greedy(lorax_client).generated_text
    stop = whole[8:11]
    end = whole.index(stop) + len(stop)
    response = greedy(lorax_client, stop_sequences=["no such text", stop])
    assert response.details.finish_reason == "stop_sequence"
    assert response.details.generated_tokens < LENGTH
    assert response.generated_text.startswith(whole[:end])
    assert whole.startswith(response.generated_text)


def test_full_text_begins_with_the_prompt(lorax_client):
    response = greedy(lorax_client, return_full_text=True)
    assert response.generated_text == PROMPT + greedy(lorax_client).generated_text


def test_truncate_keeps_the_end_of_the_prompt(lorax_client):
    response = greedy(lorax_client, truncate=5, decoder_input_details=True)
    assert response.details.prompt_tokens == 5
    whole = greedy(lorax_client, decoder_input_details=True).details.prefill
    assert [t.id for t in response.details.prefill] == [t.id for t in whole[-5:]]


def test_best_of_gives_the_others_too(lorax_client):
    response = greedy(lorax_client, best_of=2, do_sample=True, temperature=5.0)
    [other] = response.details.best_of_sequences
    assert other.generated_tokens == LENGTH

    def mean_logprob(answer):
        return sum(token.logprob for token in answer.tokens) / len(answer.tokens)

    assert mean_logprob(response.details) >= mean_logprob(other)


def test_penalties_and_cut_offs_are_taken(lorax_client):
    narrow = greedy(lorax_client, top_k=1)
    assert narrow.details.seed is not None  # top_k alone turns sampling on
    assert narrow.generated_text == greedy(lorax_client).generated_text
    punished = greedy(lorax_client, repetition_penalty=5.0)
    assert punished.generated_text != greedy(lorax_client).generated_text
    for more in ({"top_p": 0.5}, {"typical_p": 0.5}, {"temperature": 0.5}):
        response = greedy(lorax_client, do_sample=True, **more)
        assert response.details.generated_tokens == LENGTH


def test_a_watermark_changes_the_scores_and_nothing_else(lorax_client):
    def ask(**more):
        details = greedy(lorax_client, temperature=5.0, seed=7, **more).details
        assert details.generated_tokens == LENGTH and details.seed == 7
        return details.tokens

    marked = ask(watermark=True)
    assert marked != ask() and ask(watermark=False) == ask()
    assert marked == ask(watermark=True)
    *parts, last = lorax_client.generate_stream(PROMPT, max_new_tokens=LENGTH, ignore_eos_token=True, temperature=5.0,
                                                seed=7, watermark=True)
    assert [part.token for part in [*parts, last]] == marked


REFUSED = [
    ({"max_new_tokens": 0}, "`max_new_tokens` must be strictly positive"),
    ({"max_new_tokens": 10**6}, "`inputs` tokens + `max_new_tokens` must be <= "),
    ({"best_of": 3, "do_sample": True}, "`best_of` must be > 0 and <= 2. Given: 3"),
    ({"stop_sequences": ["a", "b", "c", "d", "e"]},
     "`stop` supports up to 4 stop sequences. Given: 5"),
]


@pytest.mark.parametrize(("parameters", "message"), REFUSED)
def test_bad_values_are_validation_errors(server, lorax_client, parameters, message):
    with pytest.raises(ValidationError) as error:
        lorax_client.generate(PROMPT, **parameters)
    assert f"Input validation error: {message}" in str(error.value)

    with pytest.raises(ValidationError) as error:
        asyncio.run(lorax.AsyncClient(server.url).generate(PROMPT, **parameters))
    assert message in str(error.value)


def test_what_the_client_itself_refuses_never_arrives(server, lorax_client):
    before = server.metric("lorax_request_count_total")
    with pytest.raises(ValidationError, match="you must use sampling when `best_of` is > 1"):
        lorax_client.generate(PROMPT, best_of=2)
    with pytest.raises(ValidationError, match="`temperature` must be non-negative"):
        lorax_client.generate(PROMPT, temperature=-1)
    after = server.metric("lorax_request_count_total")
    assert after == before


def test_an_unknown_adapter_is_a_generation_error(server, lorax_client):
    with pytest.raises(GenerationError, match="Request failed during generation: .*no-such"):
        lorax_client.generate(PROMPT, adapter_id="no-such", max_new_tokens=4)
    with pytest.raises(GenerationError, match="no-such"):
        list(lorax_client.generate_stream(PROMPT, adapter_id="no-such", max_new_tokens=4))

    async def stream():
        return [part async for part in lorax.AsyncClient(server.url).generate_stream(
            PROMPT, adapter_id="no-such", max_new_tokens=4)]

    with pytest.raises(GenerationError, match="no-such"):
        asyncio.run(stream())
