"""A browser, and Lorry behind a gate (gate.py) that it talks to."""

import os
import pathlib

import pytest
from playwright.sync_api import sync_playwright

from gate import Gate
from lorry_server import Server

ROOT = pathlib.Path(__file__).resolve().parents[2]
LORRY = os.environ.get("LORRY", str(ROOT / "build/release/lorry"))


def pytest_addoption(parser):
    parser.addoption("--screenshots", metavar="DIR", help="where screenshots.py puts its pictures")


@pytest.fixture(scope="session")
def start(tmp_path_factory):
    """start(*arguments): a server, stopped at the end."""
    servers = []

    def run(*arguments):
        servers.append(Server(LORRY, arguments, tmp_path_factory.mktemp("lorry")))
        return servers[-1]

    yield run
    for server in servers:
        server.stop()


@pytest.fixture(scope="session")
def server(start):
    return start()


@pytest.fixture
def gate(server):
    gate = Gate(server.url)
    yield gate
    gate.close()


@pytest.fixture(scope="session")
def browser():
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium-headless-shell")
        yield browser
        browser.close()


@pytest.fixture
def new_page(browser):
    """new_page(url, **context): a tab of its own. In the end: no error on the console that the test
    did not `expect`, and no request to another place."""
    opened = []

    def run(url, expect=(), **context):
        context.setdefault("viewport", {"width": 1200, "height": 760})
        page = browser.new_context(**context).new_page()
        page.set_default_timeout(20_000)
        page.messages, page.urls = [], []
        page.on("console", lambda message: page.messages.append(message.text))
        page.on("pageerror", lambda error: page.messages.append(str(error)))
        page.context.on("request", lambda request: page.urls.append(request.url))
        page.goto(url)
        opened.append((page, url, expect))
        return page

    yield run
    for page, url, expect in opened:
        unexpected = [text for text in page.messages if not any(word in text for word in expect)]
        elsewhere = [asked for asked in page.urls if not asked.startswith(url + "/")]
        page.context.close()
        assert unexpected == []
        assert elsewhere == []


@pytest.fixture
def page(new_page, gate):
    return new_page(gate.url)
