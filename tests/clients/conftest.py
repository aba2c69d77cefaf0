"""The server under test and its clients. Without options: the embedded demo model."""

import lorax
import openai
import pytest

from lorry_server import Server

MEASURED = pytest.StashKey[list]()


def pytest_addoption(parser):
    parser.addoption("--lorry", default="build/release/lorry", help="the binary")
    parser.addoption("--model", default="demo", help="the model that is served")
    parser.addoption("--adapter", action="append", default=[], metavar="NAME=FOLDER",
                     help="an adapter of it; the demo model has its own")


def pytest_configure(config):
    config.stash[MEASURED] = []


def pytest_terminal_summary(terminalreporter, config):
    for line in config.stash[MEASURED]:
        terminalreporter.write_line(f"measured: {line}")


@pytest.fixture(scope="session")
def measured(request):
    """Takes a line for the end of the run."""
    return request.config.stash[MEASURED].append


@pytest.fixture(scope="session")
def start(request, tmp_path_factory):
    """start(*arguments): a new server, which the caller stops (else it is killed in the end)."""
    servers = []

    def run(*arguments, settings=None, verify=None):
        servers.append(Server(request.config.getoption("--lorry"), arguments,
                              tmp_path_factory.mktemp("lorry"), settings, verify))
        return servers[-1]

    yield run
    for server in servers:
        server.kill()


@pytest.fixture(scope="session")
def model_arguments(request):
    adapters = request.config.getoption("--adapter")
    return [request.config.getoption("--model"), *(["--lora-modules", *adapters] if adapters else [])]


@pytest.fixture(scope="session")
def server(start, model_arguments):
    running = start(*model_arguments)
    yield running
    running.stop()


@pytest.fixture(scope="session")
def lorax_client(server):
    return lorax.Client(server.url)


@pytest.fixture(scope="session")
def openai_client(server):
    # Without retries: an error that goes away is an error.
    return openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0)


@pytest.fixture
def async_openai(server):
    """Makes a client: one belongs to one event loop."""
    return lambda: openai.AsyncOpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0)


@pytest.fixture(scope="session")
def models(openai_client):
    return openai_client.models.list().data


@pytest.fixture(scope="session")
def base(models):
    """The name of the base model."""
    [name] = [model.id for model in models if model.parent is None]
    return name


@pytest.fixture(scope="session")
def adapters(models):
    """The names of the adapters."""
    names = [model.id for model in models if model.parent is not None]
    assert len(names) >= 5
    return names
