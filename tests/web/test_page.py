"""What the page does, in a browser."""

import json
import math

import pytest
import requests
from playwright.sync_api import expect

from gate import Gate
from lorry_server import wait_until

ORDER = "Mia wants 3 green hats on Friday."
PLAIN = "Thank you, Mia. Your three green hats will be ready on Friday. The price is 6 coins."
PIRATE = "Arr! Ahoy, Mia! Yer three green hats be ready on Friday, matey. That be 6 coins!"
HOSTILE = "<img src=x onerror=\"document.title='taken'\"><script>document.title='taken'</script>"


def greedy(page):
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("Temperature").fill("0")
    page.get_by_role("button", name="Close the settings").click()


def send(page, text=ORDER):
    page.get_by_label("Prompt", exact=True).fill(text)
    page.keyboard.press("Enter")


def answers(page):
    return page.locator(".answer .text")


def finished(page, n):
    expect(page.locator(".facts")).to_have_count(n)


def pick(page, adapter, column=1):
    page.locator(f".column:nth-child({column}) > select").select_option(adapter)


def test_two_seconds_to_chat(page, gate):
    """The prompt has the focus; an example is one click."""
    expect(page.get_by_label("Prompt", exact=True)).to_be_focused()
    page.get_by_role("button", name=ORDER).click()
    expect(answers(page)).to_have_text(PLAIN)
    expect(page.get_by_label("Prompt", exact=True)).to_be_focused()
    expect(page.locator("#welcome")).to_be_hidden()
    expect(page.locator(".facts")).to_contain_text("22 tokens")


def test_chat_streams(page, gate):
    gate.hold(6)
    greedy(page)
    send(page)
    expect(answers(page)).to_have_text("Thank you, Mia.")
    expect(page.get_by_role("button", name="Stop")).to_be_visible()
    expect(page.get_by_role("button", name="Send")).to_be_hidden()
    gate.release()
    expect(answers(page)).to_have_text(PLAIN)
    expect(page.get_by_role("button", name="Send")).to_be_visible()


def test_stop_ends_the_work_and_keeps_the_text(page, gate, server):
    gate.hold(6)
    send(page)
    expect(answers(page)).to_contain_text("Thank you")
    page.get_by_role("button", name="Stop").click()
    expect(page.locator(".facts")).to_contain_text("stopped")
    wait_until(lambda: gate.left == 1, "the browser leaves")
    wait_until(lambda: server.metric("vllm:num_requests_running") == 0, "nothing runs")
    expect(answers(page)).to_contain_text("Thank you")
    gate.release()
    send(page, "Who are you?")
    finished(page, 2)
    assert len(gate.chats()[-1]["messages"]) == 3  # what came before the stop is part of the history


def test_turns_go_with_the_next_and_regenerate_replaces_the_last(page, gate):
    greedy(page)
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("System prompt").fill("You are friendly.")
    page.get_by_label("Max tokens").fill("40")
    page.get_by_label("Seed").fill("7")
    page.get_by_label("Top p").fill("0.9")
    send(page)
    finished(page, 1)
    first = answers(page).text_content()
    send(page, "What is the capital of Japan?")
    finished(page, 2)
    asked = gate.chats()[-1]
    assert [(message["role"], message["content"]) for message in asked["messages"]] == [
        ("system", "You are friendly."), ("user", ORDER), ("assistant", first),
        ("user", "What is the capital of Japan?")]
    sampling = {name: asked[name] for name in ("temperature", "max_tokens", "seed", "top_p")}
    assert sampling == {"temperature": 0, "max_tokens": 40, "seed": 7, "top_p": 0.9}
    expect(page.get_by_role("button", name="Regenerate")).to_have_count(1)
    gate.say("Something else.")
    page.get_by_role("button", name="Regenerate").click()
    expect(answers(page).last).to_have_text("Something else.")
    assert gate.chats()[-1] == asked
    expect(answers(page)).to_have_count(2)
    page.get_by_role("button", name="New chat").click()
    expect(answers(page)).to_have_count(0)
    expect(page.locator("#welcome")).to_be_visible()


def test_the_adapter_changes_the_answer(page, gate):
    greedy(page)
    names = [model["id"] for model in requests.get(gate.url + "/v1/models", timeout=20).json()["data"]]
    expect(page.locator(".column > select option")).to_have_count(len(names) + 1)
    pick(page, "pirate")
    send(page)
    expect(answers(page)).to_have_text(PIRATE)
    pick(page, "json")
    send(page)
    expect(answers(page).last).to_contain_text('"customer": "Mia"')
    page.locator(".column > select").select_option(label="another adapter…")
    page.get_by_label("Name of the adapter").fill("french")
    send(page)
    expect(page.locator(".answer h3").last).to_have_text("french")
    finished(page, 3)
    assert gate.chats()[-1]["model"] == "french"


def test_comparing_is_side_by_side_and_at_once(page, gate):
    greedy(page)
    page.get_by_role("button", name="Compare the base model with").click()
    pick(page, "pirate", column=2)
    gate.hold(6)
    send(page)
    expect(answers(page)).to_have_text(["Thank you, Mia.", "Arr! Ahoy, Mia"])  # neither has ended
    left, right = (answers(page).nth(i).bounding_box() for i in range(2))
    assert left["y"] == right["y"] and left["x"] + left["width"] < right["x"]
    gate.release()
    expect(answers(page)).to_have_text([PLAIN, PIRATE])
    send(page, "Who are you?")
    finished(page, 4)
    said = {chat["model"]: chat["messages"][1]["content"] for chat in gate.chats()[-2:]}
    assert said == {"demo": PLAIN, "pirate": PIRATE}  # each goes on from its own
    page.get_by_role("button", name="Remove column 1").click()
    expect(answers(page)).to_have_count(2)
    expect(page.get_by_role("button", name="Remove column")).to_have_count(0)


def test_a_new_column_can_answer_the_last_prompt(page, gate):
    greedy(page)
    send(page)
    finished(page, 1)
    page.get_by_role("button", name="Compare", exact=True).click()
    pick(page, "pirate", column=2)
    page.get_by_role("button", name="Answer this here too").click()
    expect(answers(page)).to_have_text([PLAIN, PIRATE])


def test_a_token_shows_its_probability_and_its_rivals(page, gate):
    greedy(page)
    send(page, "Zorro wants 12 purple cars on Easter.")
    finished(page, 1)
    chat = {"model": "", "temperature": 0, "logprobs": True, "top_logprobs": 5,
            "messages": [{"role": "user", "content": "Zorro wants 12 purple cars on Easter."}]}
    [choice] = requests.post(gate.url + "/v1/chat/completions", json=chat, timeout=20).json()["choices"]
    tokens = choice["logprobs"]["content"]
    # One that is far from sure.
    at = min(range(len(tokens)), key=lambda i: tokens[i]["logprob"])
    spans = page.locator(".token")
    assert "".join(spans.all_text_contents()) == choice["message"]["content"]
    spans.nth(at).hover()
    tip = page.get_by_role("tooltip")
    expect(tip).to_be_visible()
    rows = tip.locator(".row")
    expect(rows).to_have_count(5)
    expect(tip.locator(".chosen .percent")).to_have_text(f"{100 * math.exp(tokens[at]['logprob']):.1f} %")
    for i, rival in enumerate(tokens[at]["top_logprobs"]):
        expect(rows.nth(i).locator("code")).to_have_text(rival["token"].replace(" ", "·"))
    page.get_by_role("button", name="New chat").hover()
    expect(tip).to_be_hidden()


def colour(locator):
    return locator.evaluate("element => getComputedStyle(element).backgroundColor")


def test_doubtful_tokens_can_be_tinted_and_probabilities_left_out(page, gate):
    greedy(page)
    page.get_by_role("button", name="Settings").click()
    gate.say("sure unsure", [{"token": "sure", "logprob": 0.0}, {"token": " unsure", "logprob": -3.0}])
    send(page)
    sure, unsure = page.locator(".token").nth(0), page.locator(".token").nth(1)
    expect(unsure).to_have_text(" unsure")
    assert colour(sure) == colour(unsure)
    page.get_by_label("Token probabilities").select_option("tint")
    assert colour(sure) != colour(unsure)
    page.get_by_label("Token probabilities").select_option("off")
    gate.replies.clear()
    send(page)
    expect(answers(page).last).to_have_text(PLAIN)
    assert "logprobs" not in gate.chats()[-1]
    page.locator(".token").last.hover()
    expect(page.get_by_role("tooltip")).to_be_hidden()


def test_light_and_dark(new_page, gate):
    backgrounds = {}
    for scheme in ("light", "dark"):
        page = new_page(gate.url, color_scheme=scheme)
        backgrounds[scheme] = colour(page.locator("body"))
        page.get_by_role("button", name="Switch between light and dark").click()
        backgrounds[scheme + " switched"] = colour(page.locator("body"))
        page.reload()
        assert colour(page.locator("body")) == backgrounds[scheme + " switched"]
    assert backgrounds["light"] == backgrounds["dark switched"] == "rgb(252, 251, 248)"
    assert backgrounds["dark"] == backgrounds["light switched"] == "rgb(23, 24, 22)"


def test_a_phone_has_no_sideways_scrolling(new_page, gate):
    page = new_page(gate.url, viewport={"width": 360, "height": 700}, is_mobile=True, has_touch=True)
    page.get_by_role("button", name="Compare the base model with").tap()
    page.get_by_role("button", name=ORDER).tap()
    finished(page, 2)
    first, second = (answers(page).nth(i).bounding_box() for i in range(2))
    assert first["y"] + first["height"] < second["y"]  # one below the other
    page.locator(".token").nth(2).tap()
    expect(page.get_by_role("tooltip")).to_be_visible()
    page.get_by_role("button", name="Settings").tap()
    expect(page.get_by_label("API key")).to_be_in_viewport()
    assert page.locator("html").evaluate("element => element.scrollWidth") <= 360


def focus_is_visible(page):
    return page.locator(":focus").evaluate("element => getComputedStyle(element).outlineStyle") != "none"


def test_all_of_it_by_keyboard(page, gate):
    expect(page.get_by_role("button", name=ORDER)).to_be_visible()
    page.keyboard.type("Who are you?")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("x")
    expect(page.get_by_label("Prompt", exact=True)).to_have_value("Who are you?\nx")
    page.keyboard.press("Control+a")
    page.keyboard.type(ORDER)
    # Backwards through the page, which is in the order that it is read in.
    order = []
    for _ in range(10):
        page.keyboard.press("Shift+Tab")
        assert focus_is_visible(page)
        order.append(page.locator(":focus").evaluate("element => element.getAttribute('aria-label') || element.textContent"))
    assert order[4:] == [ORDER, "Adapter", "Switch between light and dark", "Settings", "Compare", "New chat"]
    for _ in range(4):
        page.keyboard.press("Tab")
    page.keyboard.type("pir")  # in the list of adapters
    page.keyboard.press("Tab")
    page.get_by_label("Prompt", exact=True).focus()
    gate.hold(5)
    page.keyboard.press("Enter")
    expect(answers(page)).to_contain_text("Arr!")
    page.keyboard.press("Escape")
    expect(page.locator(".facts")).to_contain_text("stopped")
    expect(page.get_by_role("status")).to_contain_text("pirate: Arr!")  # what a screen reader says
    gate.release()
    answers(page).focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    expect(page.get_by_role("tooltip")).to_be_visible()
    expect(page.get_by_role("status")).to_contain_text("%")
    page.keyboard.press("Escape")
    expect(page.get_by_role("tooltip")).to_be_hidden()


@pytest.mark.parametrize("where", ["output", "tokens", "adapter", "example", "error"])
def test_hostile_text_is_text(new_page, gate, where):
    models = requests.get(gate.url + "/v1/models", timeout=20).json()
    info = requests.get(gate.url + "/info", timeout=20).json()
    as_json = {"content-type": "application/json"}
    if where == "adapter":
        models["data"].append({**models["data"][1], "id": HOSTILE})
        gate.replies["/v1/models"] = (200, as_json, json.dumps(models))
    if where == "example":
        info["example_prompts"] = [HOSTILE]
        gate.replies["/info"] = (200, as_json, json.dumps(info))
    page = new_page(gate.url, expect=["400"])
    expect(page.locator(".example").first).to_be_visible()
    if where == "adapter":
        pick(page, HOSTILE)
    if where == "error":
        gate.replies["/v1/chat/completions"] = (400, as_json, json.dumps({"error": {"message": HOSTILE}}))
    elif where == "tokens":
        token = {"token": HOSTILE, "logprob": -1.0, "top_logprobs": [{"token": HOSTILE + "2", "logprob": -1.5}]}
        gate.say(HOSTILE, [token])
    else:
        gate.say(HOSTILE)
    if where == "example":
        page.locator(".example").first.click()
    else:
        send(page)
    finished(page, 1)
    expect(page.locator("#turns")).to_contain_text(HOSTILE)
    if where == "tokens":
        page.locator(".token").hover()
        expect(page.get_by_role("tooltip").locator(".chosen")).to_contain_text("<img")
    expect(page.locator("img, main script, #tip script")).to_have_count(0)
    assert page.title() == "Lorry"


def test_the_policy_stops_what_would_get_in(new_page, gate):
    """Were there a hole, scripts in the page still could not run, nor reach another place."""
    page = new_page(gate.url, expect=["Content Security Policy", "Trusted", "violates"])
    page.locator("#about").evaluate("""async element => {
      const script = document.createElement("script");
      try { script.text = "document.title = 'taken'"; element.append(script); } catch {}
      try { element.innerHTML = "<img src=x onerror=\\"document.title = 'taken'\\">"; } catch {}
      try { await fetch("http://127.0.0.1:9/"); } catch {}
    }""")
    assert page.title() == "Lorry"
    expect(page.locator("#about img")).to_have_count(0)
    page.urls = [url for url in page.urls if not url.startswith("http://127.0.0.1:9/")]
    assert any("connect-src" in text for text in page.messages)


@pytest.mark.parametrize("status, headers, body, words", [
    (429, {"retry-after": "2"}, {"error": {"message": "Model is overloaded"}},
     "Model is overloaded. (429) Try again in 2 s."),
    (400, {}, {"error": {"message": "`top_p` must be > 0.0 and < 1.0"}}, "`top_p` must be > 0.0 and < 1.0. (400)"),
    (502, {}, None, "Bad Gateway. (502)"),
])
def test_refusals_are_shown_in_the_servers_words(new_page, gate, status, headers, body, words):
    page = new_page(gate.url, expect=[str(status)])
    greedy(page)
    gate.replies["/v1/chat/completions"] = (status, headers, json.dumps(body) if body else "<html>")
    send(page)
    expect(page.get_by_role("alert")).to_have_text(words)
    gate.replies.clear()
    page.get_by_role("button", name="Try again").click()
    expect(answers(page)).to_have_text(PLAIN)
    expect(page.get_by_role("alert")).to_have_count(0)


def test_real_refusals_are_shown_too(new_page, gate):
    page = new_page(gate.url, expect=["404", "400"])
    page.locator(".column > select").select_option(label="another adapter…")
    send(page)
    expect(page.get_by_role("alert")).to_have_text("Name the adapter first.")
    page.get_by_label("Name of the adapter").fill("no-such-adapter")
    send(page)
    expect(page.get_by_role("alert").last).to_contain_text("'no-such-adapter' not found. (404)")
    pick(page, "demo")
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("Max tokens").fill("100000")
    send(page)
    expect(page.get_by_role("alert").last).to_contain_text("(400)")
    page.get_by_label("Max tokens").fill("-1")  # the page knows that itself
    send(page, "again")
    expect(page.get_by_label("Max tokens")).to_be_focused()
    expect(page.get_by_label("Prompt", exact=True)).to_have_value("again")
    assert [chat["messages"][0]["content"] for chat in gate.chats()] == [ORDER] * 2


def test_a_stream_that_breaks_off_says_so(page, gate):
    cut = 'data: {"choices":[{"delta":{"content":"Half"}}]}\n\n'
    head = {"content-type": "text/event-stream"}
    gate.replies["/v1/chat/completions"] = (200, head, cut)
    send(page)
    expect(page.get_by_role("alert")).to_have_text("The connection ended before the answer did.")
    expect(answers(page)).to_have_text("Half")
    gate.replies["/v1/chat/completions"] = (200, head, cut + 'data: {"error":{"message":"it failed"}}\n\n')
    page.get_by_role("button", name="Try again").click()
    expect(page.get_by_role("alert")).to_contain_text("It failed.")


def test_a_server_that_is_not_ready_is_waited_for(new_page, gate):
    body = json.dumps({"error": {"message": "the model is being loaded"}})
    gate.replies["/v1/models"] = (503, {"content-type": "application/json"}, body)
    page = new_page(gate.url, expect=["503"])
    expect(page.locator("#welcome")).to_contain_text("The model is being loaded.")
    gate.replies.clear()
    expect(page.get_by_role("button", name=ORDER)).to_be_visible()


def test_a_key_is_asked_for_and_kept_by_the_tab_alone(new_page, start):
    gate = Gate(start("--api-key", "alice:key-of-alice").url)
    page = new_page(gate.url, expect=["401"])
    expect(page.locator("#welcome")).to_contain_text("This server asks for an API key.")
    page.get_by_role("button", name="Enter an API key").click()
    expect(page.get_by_label("API key")).to_be_focused()
    page.get_by_label("API key").fill("wrong")
    page.keyboard.press("Enter")
    expect(page.locator("#welcome")).to_contain_text("A valid API key is needed")
    page.get_by_label("API key").fill("key-of-alice")
    page.keyboard.press("Enter")
    page.get_by_role("button", name=ORDER).click()
    expect(answers(page)).to_have_text(PLAIN)
    stored = page.locator("html").evaluate("() => [JSON.stringify(localStorage), JSON.stringify(sessionStorage)]")
    assert "key-of-alice" not in stored[0] and "key-of-alice" in stored[1]
    assert not any("key-of-alice" in url for url in page.urls)
    page.reload()
    expect(page.get_by_role("button", name=ORDER)).to_be_visible()
    other = new_page(gate.url, expect=["401"])
    expect(other.locator("#welcome")).to_contain_text("This server asks for an API key.")
    gate.close()
