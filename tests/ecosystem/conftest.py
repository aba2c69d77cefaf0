import pathlib

import pytest

from lorry_server import Server

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """The demo model in fp32, as transformers ran it for golden.json."""
    running = Server(str(ROOT / "build/release/lorry"), ["demo", "--dtype", "float32"],
                     tmp_path_factory.mktemp("lorry"))
    yield running
    running.stop()
