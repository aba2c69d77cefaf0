"""What lorax-client's own tests say of its types and errors, asked of the server: values that its types
take are answered, those that they refuse are refused by the server too (sent past the types, and read
with the client's own parse_error), and every error that its errors.py tells apart arrives as that one.
IncompleteGenerationError needs a fault inside the server: tests/serve has it."""

import asyncio

import lorax
import pytest
import requests
from lorax import errors
from lorax.types import BestOfSequence, MergedAdapters, Response

from lorry_server import wait_until
from prompts import as_turn, story

PROMPT = as_turn(story(0))
BEST = {"do_sample": True, "best_of": 2}


def merge(**more):
    return {"ids": ["french", "pirate"], "weights": [0.5, 0.5], "density": 0.5, **more}


TAKEN = [{}, {"best_of": 1}, BEST, {"repetition_penalty": 1}, {"seed": 1}, {"temperature": 1},
         {"temperature": 0}, {"top_k": 1}, {"top_p": 0.5}, {"truncate": 1}, {"typical_p": 0.5},
         {"return_k_alternatives": 1}, {"adapter_id": "french"}, {"adapter_source": "local"},
         {"merged_adapters": MergedAdapters(**merge())}]

REFUSED = [{"best_of": 0}, {"best_of": -1}, {"best_of": 2}, {**BEST, "seed": 1},
           {"repetition_penalty": 0}, {"repetition_penalty": -1}, {"seed": -1}, {"temperature": -1},
           {"top_k": 0}, {"top_k": -1}, {"top_p": 0}, {"top_p": -1}, {"top_p": 1.01}, {"truncate": 0},
           {"truncate": -1}, {"typical_p": 0}, {"typical_p": -1}, {"typical_p": 1},
           {"return_k_alternatives": 0}, {"adapter_source": "elsewhere"},
           {"adapter_id": "french", "merged_adapters": merge()},
           {"merged_adapters": merge(ids=[])},
           {"merged_adapters": merge(weights=[1.0])}, {"merged_adapters": merge(merge_strategy="sum")},
           {"merged_adapters": merge(density=-0.1, merge_strategy="ties")},
           {"merged_adapters": merge(density=1.1, merge_strategy="ties")},
           {"merged_adapters": merge(majority_sign_method="most")}]


@pytest.mark.parametrize("parameters", TAKEN, ids=str)
def test_what_the_types_take_is_answered(lorax_client, parameters):
    answer = lorax_client.generate(PROMPT, max_new_tokens=2, **parameters)
    assert answer.details.generated_tokens == 2
    if parameters is BEST:
        [other] = answer.details.best_of_sequences
        assert isinstance(other, BestOfSequence) and None not in (other.seed, answer.details.seed)


@pytest.mark.parametrize("parameters", REFUSED, ids=str)
def test_what_the_types_refuse_the_server_refuses(server, parameters):
    answer = requests.post(server.url, timeout=60, json={
        "inputs": PROMPT, "parameters": {"max_new_tokens": 2, **parameters}})
    assert answer.status_code == 422, answer.text
    error = errors.parse_error(answer.status_code, answer.json())
    assert isinstance(error, errors.ValidationError)
    assert str(error).startswith("Input validation error: ")


@pytest.mark.parametrize("body", [{"inputs": ""}, {"inputs": "test", "stream": True, "parameters": BEST}])
def test_requests_that_the_types_refuse_the_server_refuses(server, body):
    answer = requests.post(server.url, timeout=60, json=body)
    assert answer.status_code == 422
    assert isinstance(errors.parse_error(422, answer.json()), errors.ValidationError)


def every_way(url, **parameters):
    """The four calls of the client."""
    client, other = lorax.Client(url), lorax.AsyncClient(url)

    async def stream():
        return [part async for part in other.generate_stream(PROMPT, **parameters)]

    return [lambda: client.generate(PROMPT, **parameters),
            lambda: list(client.generate_stream(PROMPT, **parameters)),
            lambda: asyncio.run(other.generate(PROMPT, **parameters)),
            lambda: asyncio.run(stream())]


@pytest.mark.parametrize("way", range(4))
def test_errors_arrive_as_themselves(server, way):
    with pytest.raises(errors.NotFoundError):
        every_way(server.url + "/no-such-place")[way]()
    with pytest.raises(errors.ValidationError):
        every_way(server.url, max_new_tokens=10_000)[way]()
    with pytest.raises(errors.GenerationError):
        every_way(server.url, max_new_tokens=2, adapter_id="no-such")[way]()
    with pytest.raises(errors.GenerationError):
        every_way(server.url, max_new_tokens=2, adapter_id="no-such/one", adapter_source="local")[way]()


def test_what_a_causal_model_has_not_is_a_generation_error(lorax_client):
    for call in (lorax_client.embed, lorax_client.classify):
        with pytest.raises(errors.GenerationError, match="causal language model"):
            call("test")
    with pytest.raises(errors.GenerationError):
        lorax_client.classify_batch(["test"])


def test_full_and_draining_servers_are_told_apart(start, model_arguments):
    server = start(*model_arguments, "--max-concurrent-requests", "1", "--shutdown-timeout", "60")
    running = lorax.Client(server.url).generate_stream(PROMPT, max_new_tokens=500, ignore_eos_token=True)
    next(running)
    for way in range(4):
        with pytest.raises(errors.OverloadedError, match="Model is overloaded"):
            every_way(server.url, max_new_tokens=2)[way]()
    server.terminate()
    wait_until(lambda: requests.get(server.url + "/health", timeout=30).status_code == 503, "draining")
    for way in range(4):
        with pytest.raises(errors.UnknownError, match="Error status 503: .*shutting down"):
            every_way(server.url, max_new_tokens=2)[way]()
    assert sum(1 for _ in running) == 499
    assert server.wait() == 0


def test_a_server_with_keys_is_an_unknown_error_401(start, model_arguments):
    server = start(*model_arguments, "--api-key", "secret-of-the-test")
    for way in range(4):
        with pytest.raises(errors.UnknownError, match="Error status 401"):
            every_way(server.url, max_new_tokens=2)[way]()
    answer = lorax.Client(server.url, headers={"Authorization": "Bearer secret-of-the-test"}).generate(
        PROMPT, max_new_tokens=2)
    assert isinstance(answer, Response)
    server.stop()
