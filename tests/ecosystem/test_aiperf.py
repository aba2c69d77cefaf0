"""AIPerf keeps the server busy for a while: nothing fails, and its report says what the server says."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from harness import MODEL, ROOT

SECONDS = os.environ.get("LORRY_LOAD_SECONDS", "8")
TOKENS = 32


def profile(url, name, folder, *more):
    """The report of a run against the model `name`."""
    environment = {"PATH": os.environ["PATH"], "HOME": str(folder), "NO_PROXY": "127.0.0.1"}
    run = subprocess.run(
        [str(pathlib.Path(sys.executable).parent / "aiperf"), "profile", "-m", name, "-u", url,
         "--tokenizer", str(ROOT / MODEL), "--synthetic-input-tokens-mean", "64",
         "--output-tokens-mean", str(TOKENS), "--extra-inputs", "ignore_eos:true", "--random-seed", "1",
         "--artifact-dir", str(folder / "out"), "--ui", "none", *more],
        env=environment, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True,
        timeout=120 + float(SECONDS))
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-4000:]
    assert "LLM Metrics" in run.stdout  # the report
    return json.loads((folder / "out/profile_export_aiperf.json").read_text())


# A stream of chats for a while, and a number of whole completions of an adapter.
@pytest.mark.parametrize(("name", "how"), [
    ("demo", ["--endpoint-type", "chat", "--streaming", "--concurrency", "8",
              "--benchmark-duration", SECONDS]),
    ("pirate", ["--endpoint-type", "completions", "--concurrency", "4", "--request-count", "64"])])
def test_a_run_has_no_errors_and_counts_as_the_server_does(server, tmp_path, name, how):
    def counted(metric):
        return server.metric(metric)

    before = counted("lorax_request_success_total"), counted("vllm:generation_tokens_total")
    report = profile(server.url, name, tmp_path, *how)
    requests = report["request_count"]["avg"]
    assert requests >= 50
    assert not report.get("error_request_count") and not report["error_summary"]
    assert report["was_cancelled"] is False
    if "--request-count" in how:
        # What a run of some time began last is cut off by its end, and is in no report.
        assert requests == 64
        assert counted("lorax_request_success_total") - before[0] >= requests
    assert counted("vllm:generation_tokens_total") - before[1] >= requests * TOKENS
    assert server.metric("lorax_request_failure_total") == 0
