"""What the server tells about requests: a line in the log, a span to a collector."""

import http.server
import json
import threading

import pytest
import requests

from lorry_server import wait_until
from prompts import as_turn, story

PROMPT = as_turn(story(0))
PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


class Collector(http.server.ThreadingHTTPServer):
    """Keeps what is posted to it."""

    def __init__(self):
        self.bodies = []
        collector = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                collector.bodies.append((self.path, self.headers["Content-Type"], json.loads(body)))
                self.send_response(200)
                self.end_headers()
                self.wfile.write(b"{}")

            def log_message(self, *_):
                pass

        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()


def ask(server, **headers):
    answer = requests.post(server.url + "/generate", timeout=60, headers=headers, json={
        "inputs": PROMPT, "parameters": {"max_new_tokens": 5, "ignore_eos_token": True}})
    assert answer.status_code == 200
    return answer


def test_a_span_per_request_goes_to_the_collector(start, model_arguments):
    collector = Collector()
    server = start(*model_arguments, "--otlp-endpoint", f"http://127.0.0.1:{collector.server_port}")
    ask(server, traceparent=PARENT, **{"x-request-id": "mine-9"})
    wait_until(lambda: collector.bodies, "a span")
    path, kind, body = collector.bodies[0]
    assert (path, kind) == ("/v1/traces", "application/json")
    [span] = body["resourceSpans"][0]["scopeSpans"][0]["spans"]
    assert span["traceId"] == PARENT.split("-")[1] and span["parentSpanId"] == PARENT.split("-")[2]
    assert span["name"] == "/generate"
    assert 0 < int(span["endTimeUnixNano"]) - int(span["startTimeUnixNano"]) < 60e9
    values = {a["key"]: next(iter(a["value"].values())) for a in span["attributes"]}
    assert values["gen_ai.usage.output_tokens"] == "5" and values["gen_ai.request.id"] == "mine-9"
    assert story(0)[:20] not in json.dumps(body)
    wait_until(lambda: server.metric("lorry_spans_sent_total") == 1, "the count")
    server.stop()
    collector.shutdown()
    collector.server_close()


def test_a_collector_that_is_away_costs_spans_only(start, model_arguments):
    server = start(*model_arguments, "--otlp-endpoint", "http://127.0.0.1:9")
    for _ in range(3):
        ask(server)
    wait_until(lambda: server.metric("lorry_spans_dropped_total") == 3, "the count")
    server.stop()


@pytest.mark.parametrize("quiet", [False, True])
def test_a_line_per_request_has_its_figures(start, model_arguments, quiet):
    server = start(*model_arguments, "--json-output", *(["--disable-log-requests"] * quiet))
    ask(server, **{"x-request-id": "mine-10"})
    if quiet:
        assert "mine-10" not in server.log()
    else:
        wait_until(lambda: "mine-10" in server.log(), "the line")
        [line] = [x for x in server.log().splitlines() if "mine-10" in x]
        record = json.loads(line)
        assert record["message"] == "request" and record["route"] == "/generate"
        assert record["outcome"] == "ok" and record["generated_tokens"] == 5
        assert 0 < record["first_token_s"] <= record["total_s"] < 60
    server.stop()


def test_an_endpoint_that_is_none_ends_with_one_line(start, model_arguments):
    with pytest.raises(AssertionError, match="no http or https URL"):
        start(*model_arguments, "--otlp-endpoint", "collector:4318")
