"""The description of the API: valid, and kept by the server."""

import os
import pathlib
import re
import subprocess
import sys

import pytest
import requests
from openapi_spec_validator import validate

ROOT = pathlib.Path(__file__).resolve().parents[2]
LORRY = os.environ.get("LORRY", str(ROOT / "build/release/lorry"))


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lorry")
    environment = {"PATH": os.environ["PATH"], "HOME": str(folder), "TMPDIR": str(folder)}
    with open(folder / "log", "wb") as log:
        # Answers are short: what is tested are the requests.
        process = subprocess.Popen([LORRY, "serve", "--port", "0", "--adapter-root", str(folder),
                                    "--max-total-tokens", "160", "--disable-log-requests"],
                                   stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment)
    try:
        while True:
            assert process.poll() is None, (folder / "log").read_text()
            found = re.search(r" on (http://127\.0\.0\.1:[0-9]+)", (folder / "log").read_text())
            if found:
                break
        yield found.group(1)
        assert process.poll() is None, "the server ended"
        process.terminate()
        assert process.wait(60) == 0
    finally:
        process.kill()


def test_the_description_is_valid(url):
    document = requests.get(url + "/api-doc/openapi.json", timeout=30).json()
    validate(document)
    assert len(document["paths"]) >= 20


def test_schemathesis_finds_nothing(url, tmp_path):
    checks = ["not_a_server_error", "status_code_conformance", "content_type_conformance",
              "response_schema_conformance", "unsupported_method", "allow_header_conformance"]
    run = subprocess.run(
        [str(pathlib.Path(sys.executable).parent / "schemathesis"), "run",
         url + "/api-doc/openapi.json", "--checks", ",".join(checks), "--phases",
         "coverage,fuzzing", "--max-examples", "10", "--max-time", "30", "--seed", "1",
         "--request-timeout", "20", "--suppress-health-check", "all", "--warnings", "off",
         "--generation-database", "none", "--no-color"],
        cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]
    assert "generated" in run.stdout, run.stdout
