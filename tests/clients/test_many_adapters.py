"""64 requests at once, over all adapters, answer as one at a time, and share the engine's steps."""

import asyncio

import lorax

from prompts import as_turn, chat, story

COUNT = 64
LENGTH = 40


def jobs(adapters):
    """(number, adapter or None, seed or None): adapters in turn, half of the requests sampled."""
    names = [*adapters, None]
    return [(i, names[i % len(names)], i if i % 2 else None) for i in range(COUNT)]


def steps(server):
    return server.metric("lorax_batch_inference_count_total")


def test_lorax_client_64_at_once(server, lorax_client, adapters):
    def parameters(job):
        i, adapter, seed = job
        sampling = {} if seed is None else {"do_sample": True, "seed": seed, "temperature": 2.5}
        return {"prompt": as_turn(story(i)), "adapter_id": adapter, "max_new_tokens": LENGTH,
                "ignore_eos_token": True, **sampling}

    async def together():
        client = lorax.AsyncClient(server.url)
        return await asyncio.gather(*(client.generate(**parameters(job))
                                      for job in jobs(adapters)))

    begin = steps(server)
    at_once = asyncio.run(together())
    between = steps(server)
    one_by_one = [lorax_client.generate(**parameters(job)) for job in jobs(adapters)]
    end = steps(server)

    for job, response, expected in zip(jobs(adapters), at_once, one_by_one, strict=True):
        # Not the text alone: ids and logprobs, to the last digit.
        assert response == expected, job
    assert len({response.generated_text for response in at_once}) > COUNT / 2
    assert end - between > COUNT * (LENGTH - 1)  # the count may be told one step late
    assert between - begin < (end - between) / 4


def test_openai_64_at_once(server, async_openai, openai_client, base, adapters):
    def parameters(job):
        i, adapter, seed = job
        sampling = {"temperature": 0} if seed is None else {"temperature": 2.5, "seed": seed}
        return {"model": adapter or base, "messages": chat(story(100 + i)), "max_tokens": LENGTH,
                "extra_body": {"ignore_eos": True}, **sampling}

    async def answer(client, job):
        if job[0] % 4 < 2:
            whole = await client.chat.completions.create(**parameters(job))
            return whole.choices[0].message.content
        stream = await client.chat.completions.create(**parameters(job), stream=True)
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    async def together():
        async with async_openai() as client:
            return await asyncio.gather(*(answer(client, job) for job in jobs(adapters)))

    begin = steps(server)
    at_once = asyncio.run(together())
    between = steps(server)
    for job, text in zip(jobs(adapters), at_once, strict=True):
        alone = openai_client.chat.completions.create(**parameters(job))
        assert text == alone.choices[0].message.content, job
    assert between - begin < (steps(server) - between) / 4


def test_both_clients_at_once(server, lorax_client, async_openai, openai_client, base, adapters):
    """The dialects share batches too."""
    names = [*adapters, None]

    async def together():
        lorax_async = lorax.AsyncClient(server.url)
        async with async_openai() as client:
            texts = asyncio.gather(*(
                lorax_async.generate(as_turn(story(i)), adapter_id=name, max_new_tokens=LENGTH)
                for i, name in enumerate(names)))
            chats = asyncio.gather(*(
                client.chat.completions.create(model=name or base, messages=chat(story(i)),
                                               max_tokens=LENGTH, temperature=0)
                for i, name in enumerate(names)))
            return await texts, await chats

    texts, chats = asyncio.run(together())
    for i, name in enumerate(names):
        alone = lorax_client.generate(as_turn(story(i)), adapter_id=name, max_new_tokens=LENGTH)
        assert texts[i] == alone, name
        alone = openai_client.chat.completions.create(
            model=name or base, messages=chat(story(i)), max_tokens=LENGTH, temperature=0)
        assert chats[i].choices == alone.choices, name
