"""Answers of a given form, and tools, through openai and lorax-client. Rows of the list of bad
inputs, section D, are named."""

import enum
import json
import re
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Literal

import openai
import pydantic
import pytest
import requests
from lorax.errors import ValidationError

from prompts import chat, story

MESSAGES = chat(story(1))


class Colour(str, enum.Enum):
    red = "red"
    green = "green"


class Order(pydantic.BaseModel):
    customer: Annotated[str, pydantic.StringConstraints(max_length=12)]
    colour: Colour
    count: Annotated[int, pydantic.Field(ge=0, le=99)]
    days: Annotated[list[Literal["Monday", "Friday"]], pydantic.Field(max_length=2)]


class Weather(pydantic.BaseModel):
    """The weather of a city."""
    city: Literal["Oslo", "Rome"]
    days: Annotated[int, pydantic.Field(ge=1, le=9)]


SCHEMA = Order.model_json_schema()
TOOLS = [openai.pydantic_function_tool(Weather),
         {"type": "function", "function": {"name": "now", "parameters": {
             "type": "object", "properties": {}, "additionalProperties": False}}}]


def test_parse_gives_a_model(openai_client, base, adapters):
    for name in [base, *adapters]:
        answer = openai_client.chat.completions.parse(
            model=name, messages=MESSAGES, response_format=Order, max_tokens=200, temperature=0)
        [choice] = answer.choices
        assert choice.finish_reason == "stop", choice
        assert isinstance(choice.message.parsed, Order)


def test_streams_and_samples_match_too(openai_client, base):
    form = {"type": "json_schema", "json_schema": {"name": "order", "schema": SCHEMA}}
    ask = {"model": base, "messages": MESSAGES, "response_format": form, "max_tokens": 300}
    answer = openai_client.chat.completions.create(
        **ask, n=4, seed=1, temperature=1.5, presence_penalty=0.5, logit_bias={"20": 5})
    texts = [choice.message.content for choice in answer.choices]
    assert len(set(texts)) > 1
    for text in texts:
        Order.model_validate_json(text)
    chunks = openai_client.chat.completions.create(**ask, stream=True, seed=1, temperature=1.5)
    Order.model_validate_json("".join(chunk.choices[0].delta.content or "" for chunk in chunks))


def test_logprobs_are_of_what_is_allowed(openai_client, base):
    answer = openai_client.chat.completions.create(
        model=base, messages=MESSAGES, temperature=0, logprobs=True, top_logprobs=5,
        extra_body={"guided_choice": ["yes", "no"]})
    [choice] = answer.choices
    assert choice.message.content in ("yes", "no") and choice.finish_reason == "stop"
    for token in choice.logprobs.content:
        assert token.logprob == token.top_logprobs[0].logprob <= 0


def test_json_object_and_completions(openai_client, base):
    answer = openai_client.completions.create(
        model=base, prompt=story(2), max_tokens=40, temperature=0,
        extra_body={"response_format": {"type": "json_object"}})
    assert answer.choices[0].text.startswith("{")
    answer = openai_client.completions.create(
        model=base, prompt=story(2), max_tokens=40, seed=3,
        extra_body={"guided_regex": "[A-Z][a-z]{1,8}, [0-9]{2}\\."})
    assert re.fullmatch("[A-Z][a-z]{1,8}, [0-9]{2}\\.", answer.choices[0].text)


def test_lorax_response_format(lorax_client, adapters):
    form = {"type": "json_object", "schema": SCHEMA}
    for name in [None, *adapters]:
        answer = lorax_client.generate(story(1), adapter_id=name, max_new_tokens=200,
                                       response_format=form)
        Order.model_validate_json(answer.generated_text)
        assert answer.details.finish_reason == "eos_token"
    *_, last = lorax_client.generate_stream(story(1), max_new_tokens=200, response_format=form)
    Order.model_validate_json(last.generated_text)


def generate(server, form, **parameters):
    return requests.post(server.url + "/generate", timeout=120, json={
        "inputs": story(1), "parameters": {"response_format": form, **parameters}})


def test_d1_invalid_forms_are_refused_and_others_go_on(server, lorax_client, openai_client, base):
    for form in ({"type": "regex", "schema": "secretword("}, {"type": "sound"},
                 {"type": "grammar", "schema": "start: secretword ~"},
                 {"type": "json_schema", "schema": {"type": "hiccup"}},
                 {"type": "json_schema", "schema": {"$ref": "#/$defs/none"}}):
        answer = generate(server, form)
        assert answer.status_code == 422 and answer.json()["error_type"] == "validation"
        assert "`response_format`" in answer.text and "secretword" not in answer.text
    with pytest.raises(ValidationError):
        lorax_client.generate("Hi", response_format={"type": "json_object",
                                                     "schema": {"type": "hiccup"}})
    with pytest.raises(openai.BadRequestError) as error:
        openai_client.chat.completions.create(
            model=base, messages=MESSAGES, response_format={
                "type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "hiccup"}}})
    assert error.value.param == "response_format"
    assert generate(server, {"type": "text"}, max_new_tokens=2).ok


@pytest.mark.parametrize("form", [
    {"type": "regex", "schema": "(a?){1,1000000}"},
    {"type": "regex", "schema": "x(a|b|c|d|e)*[ab](.|\n){18}y"},
    {"type": "json_schema", "schema": {"type": "string", "maxLength": 1000000}},
    {"type": "json_schema", "schema": {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}},
    {"type": "json_schema", "schema": {"type": "object", "properties": {
        f"p{i}": {"type": "object", "properties": {"x": {"type": "string"}}}
        for i in range(2000)}}},
])
def test_d2_hostile_forms_are_refused_or_bounded(server, form):
    answer = generate(server, form, max_new_tokens=40, do_sample=True, seed=1)
    assert answer.status_code in (200, 422, 424), answer.text
    assert generate(server, {"type": "text"}, max_new_tokens=2).ok


def test_d4_each_sample_has_its_own_matcher(openai_client, base):
    answer = openai_client.chat.completions.create(
        model=base, messages=MESSAGES, n=8, seed=1, temperature=3, max_tokens=100,
        extra_body={"guided_regex": "([a-z]{2} ){4}end"})
    texts = [choice.message.content for choice in answer.choices]
    assert all(re.fullmatch("([a-z]{2} ){4}end", text) for text in texts), texts
    assert len(set(texts)) > 4


def test_d6_truncated_is_length(openai_client, base):
    answer = openai_client.chat.completions.create(
        model=base, messages=MESSAGES, max_tokens=3, temperature=0,
        response_format={"type": "json_object"})
    assert answer.choices[0].finish_reason == "length"
    assert answer.choices[0].message.content.startswith("{")


def test_mates_of_constrained_requests_keep_their_text(openai_client, base, adapters):
    def ask(job):
        name, form = job
        more = {"extra_body": {"guided_json": SCHEMA}} if form else {}
        return openai_client.chat.completions.create(
            model=name, messages=MESSAGES, seed=5, temperature=0.8, max_tokens=60, logprobs=True,
            **more).choices

    jobs = [(name, form) for name in [base, *adapters] for form in (False, True)]
    alone = [ask(job) for job in jobs]
    with ThreadPoolExecutor(len(jobs)) as pool:
        assert list(pool.map(ask, jobs)) == alone


# ---- tools


def check_call(call):
    assert call.type == "function" and re.fullmatch("[0-9A-Za-z]{9}", call.id)
    arguments = json.loads(call.function.arguments)
    if call.function.name == "Weather":
        Weather.model_validate(arguments)
    else:
        assert call.function.name == "now" and arguments == {}


@pytest.mark.parametrize("choice", ["required", "Weather",
                                    {"type": "function", "function": {"name": "Weather"}}])
def test_calls_whole_and_streamed(openai_client, base, choice):
    ask = {"model": base, "messages": MESSAGES, "tools": TOOLS, "tool_choice": choice,
           "parallel_tool_calls": False, "max_tokens": 200, "seed": 2, "temperature": 1}
    answer = openai_client.chat.completions.create(**ask)
    [whole] = answer.choices
    assert whole.finish_reason == "tool_calls" and whole.message.content is None
    [call] = whole.message.tool_calls
    check_call(call)

    name = arguments = ""
    reasons = []
    for chunk in openai_client.chat.completions.create(**ask, stream=True):
        [part] = chunk.choices
        reasons.append(part.finish_reason)
        assert not part.delta.content
        for piece in part.delta.tool_calls or []:
            assert piece.index == 0 and (piece.id is None) == (piece.function.name is None)
            name += piece.function.name or ""
            arguments += piece.function.arguments or ""
    assert (name, arguments) == (call.function.name, call.function.arguments)
    assert reasons[-1] == "tool_calls" and set(reasons[:-1]) == {None}


def test_the_streaming_helper_of_openai_gives_parsed_calls(openai_client, base):
    with openai_client.chat.completions.stream(
            model=base, messages=MESSAGES, tools=TOOLS[:1], tool_choice="required",
            parallel_tool_calls=False, max_tokens=200, temperature=0) as stream:
        final = stream.get_final_completion()
    [call] = final.choices[0].message.tool_calls
    assert isinstance(call.function.parsed_arguments, Weather)


def test_strict_tools_and_a_history_of_calls(openai_client, base):
    first = openai_client.chat.completions.parse(
        model=base, messages=MESSAGES, tools=TOOLS[:1], tool_choice="required",
        parallel_tool_calls=False, max_tokens=200, temperature=0)
    message = first.choices[0].message
    assert isinstance(message.tool_calls[0].function.parsed_arguments, Weather)
    history = [*MESSAGES, message.model_dump(exclude={"parsed"}, exclude_none=True),
               {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "cold"}]
    answer = openai_client.chat.completions.create(
        model=base, messages=history, tools=TOOLS, max_tokens=30, temperature=0)
    assert answer.choices[0].finish_reason in ("stop", "length", "tool_calls")
    plain = openai_client.chat.completions.create(model=base, messages=MESSAGES, max_tokens=1)
    assert answer.usage.prompt_tokens > first.usage.prompt_tokens > plain.usage.prompt_tokens


def test_none_is_an_ordinary_answer(openai_client, base):
    plain = {"model": base, "messages": MESSAGES, "max_tokens": 20, "temperature": 0}
    expected = openai_client.chat.completions.create(**plain)
    answer = openai_client.chat.completions.create(**plain, tools=TOOLS, tool_choice="none")
    assert answer.choices == expected.choices


def test_best_of_gives_the_most_probable(openai_client, base):
    ask = {"model": base, "prompt": story(3), "max_tokens": 8, "temperature": 2, "seed": 4}
    every = openai_client.completions.create(**ask, n=4, logprobs=0).choices
    every.sort(key=lambda c: -sum(c.logprobs.token_logprobs) / len(c.logprobs.token_logprobs))
    best = openai_client.completions.create(**ask, n=2, best_of=4).choices
    assert [choice.text for choice in best] == [choice.text for choice in every[:2]]
    assert best[0].logprobs is None
