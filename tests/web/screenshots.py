"""The pictures of the documentation: tests/web/run.sh --screenshots docs/images"""

import pathlib

import pytest
from playwright.sync_api import expect

PROMPT = "What is the weather in Oslo? Monday: snowy, 5 degrees."


@pytest.fixture
def folder(request):
    folder = pathlib.Path(request.config.getoption("--screenshots"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def shoot(page, path):
    page.screenshot(path=path)
    assert path.stat().st_size < 200_000


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_chat(new_page, gate, folder, scheme):
    page = new_page(gate.url, color_scheme=scheme, viewport={"width": 1000, "height": 620})
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("Temperature").fill("0")
    page.get_by_label("Token probabilities").select_option("tint")
    page.locator(".column > select").select_option("pirate")
    page.get_by_label("Prompt", exact=True).fill("Zorro wants 12 purple cars on Easter.")
    page.keyboard.press("Enter")
    expect(page.locator(".facts")).to_have_count(1)
    doubts = page.locator(".token").evaluate_all(
        "spans => spans.map(span => Number(span.style.getPropertyValue('--doubt')))")
    page.locator(".token").nth(doubts.index(max(doubts))).hover()
    shoot(page, folder / f"web-chat-{scheme}.png")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_compare(new_page, gate, folder, scheme):
    page = new_page(gate.url, color_scheme=scheme, viewport={"width": 1000, "height": 620})
    page.get_by_role("button", name="Compare the base model with").click()
    page.locator(".column:nth-child(2) > select").select_option("json")
    for n, prompt in enumerate(["Mia wants 3 green hats on Friday.", PROMPT], 1):
        page.get_by_label("Prompt", exact=True).fill(prompt)
        page.keyboard.press("Enter")
        expect(page.locator(".facts")).to_have_count(2 * n)
    shoot(page, folder / f"web-compare-{scheme}.png")
