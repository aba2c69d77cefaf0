"""openai, unmodified: responses, whole, streamed, parsed, with calls of functions."""

import asyncio
import json
from typing import Literal

import openai
import pydantic
import pytest

from prompts import story

INPUT = story(1)
GREEDY = {"max_output_tokens": 24, "temperature": 0, "extra_body": {"ignore_eos": True}}


class Weather(pydantic.BaseModel):
    """The weather of a city."""
    city: Literal["Oslo", "Rome"]


TOOL = {"type": "function", "name": "Weather", "strict": True, "parameters": {
    **Weather.model_json_schema(), "additionalProperties": False}}


def ask(client, model, **more):
    return client.responses.create(model=model, input=INPUT, **GREEDY, **more)


def chat(client, model):
    answer = client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": INPUT}], max_tokens=24, temperature=0,
        extra_body={"ignore_eos": True})
    return answer.choices[0].message.content


def test_each_adapter_says_what_it_says_in_a_chat(openai_client, base, adapters):
    for name in [base, *adapters]:
        response = ask(openai_client, name)
        assert response.object == "response" and response.id.startswith("resp_")
        assert response.model == name and response.status == "incomplete"
        assert response.incomplete_details.reason == "max_output_tokens"
        assert response.output_text == chat(openai_client, name)
        assert response.usage.output_tokens == 24 and response.usage.input_tokens > 10


def test_events_are_typed_and_end_with_the_response(openai_client, base):
    events = list(ask(openai_client, base, stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert isinstance(events[0], openai.types.responses.ResponseCreatedEvent)
    assert isinstance(events[-1], openai.types.responses.ResponseIncompleteEvent)
    deltas = "".join(e.delta for e in events if e.type == "response.output_text.delta")
    whole = ask(openai_client, base)
    assert deltas == events[-1].response.output_text == whole.output_text
    assert events[-1].response.usage == whole.usage


def test_the_clients_own_reading_of_a_stream(openai_client, base):
    with openai_client.responses.stream(model=base, input=INPUT, temperature=0) as stream:
        for event in stream:
            assert event.type != "error", event
        final = stream.get_final_response()
    assert final.status == "completed"
    assert final.output_text == openai_client.responses.create(
        model=base, input=INPUT, temperature=0).output_text


def test_async(async_openai, openai_client, base, adapters):
    async def all_at_once():
        async with async_openai() as client:
            return await asyncio.gather(*(ask(client, name) for name in [base, *adapters]))

    for name, response in zip([base, *adapters], asyncio.run(all_at_once()), strict=True):
        assert response.output_text == chat(openai_client, name)


def test_parse_gives_a_model(openai_client, base):
    response = openai_client.responses.parse(model=base, input=INPUT, text_format=Weather,
                                             temperature=0, max_output_tokens=60)
    assert isinstance(response.output_parsed, Weather)


def test_a_call_its_result_and_an_answer(openai_client, base):
    first = openai_client.responses.create(model=base, input=INPUT, tools=[TOOL], temperature=0,
                                           tool_choice={"type": "function", "name": "Weather"})
    [call] = first.output
    assert call.type == "function_call" and call.name == "Weather" and call.call_id
    Weather.model_validate(json.loads(call.arguments))
    events = list(openai_client.responses.create(
        model=base, input=INPUT, tools=[TOOL], temperature=0, stream=True,
        tool_choice={"type": "function", "name": "Weather"}))
    [done] = [e for e in events if e.type == "response.function_call_arguments.done"]
    assert done.arguments == call.arguments
    history = [{"role": "user", "content": INPUT}, *first.output,
               {"type": "function_call_output", "call_id": call.call_id, "output": "cold"}]
    second = openai_client.responses.create(model=base, input=history, tools=[TOOL], temperature=0,
                                            max_output_tokens=16, tool_choice="none")
    assert second.output_text
    assert second.usage.input_tokens > ask(openai_client, base).usage.input_tokens  # the history


def test_instructions_and_log_probabilities(openai_client, base):
    response = openai_client.responses.create(
        model=base, input=INPUT, instructions="Be brief.", temperature=0, top_logprobs=2,
        include=["message.output_text.logprobs"], max_output_tokens=8)
    assert response.instructions == "Be brief."
    logprobs = response.output[0].content[0].logprobs
    assert len(logprobs) == 8
    assert all(token.logprob == token.top_logprobs[0].logprob <= 0 for token in logprobs)


def test_what_would_have_to_be_kept_is_refused(openai_client, base):
    with pytest.raises(openai.BadRequestError, match="previous_response_id"):
        ask(openai_client, base, previous_response_id="resp_1")
    with pytest.raises(openai.BadRequestError, match="store"):
        ask(openai_client, base, store=True)
    with pytest.raises(openai.NotFoundError, match="nothing is kept"):
        openai_client.responses.retrieve("resp_1")
    with pytest.raises(openai.NotFoundError):
        ask(openai_client, "no-such-model")
    with pytest.raises(openai.BadRequestError, match="modality"):
        openai_client.responses.create(model=base, input=[{"role": "user", "content": [
            {"type": "input_image", "image_url": "data:,", "detail": "auto"}]}])
