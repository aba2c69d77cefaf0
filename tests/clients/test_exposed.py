"""A server that others can reach: keys, TLS, sockets, and what its log tells. The names are rows of
the list of bad inputs."""

import contextlib
import http.client
import json
import os
import resource
import signal
import socket
import ssl
import stat
import subprocess
import time
import warnings

import lorax
import openai
import pytest
import requests

from lorry_server import wait_until
from prompts import as_turn, story

PROMPT = as_turn(story(0))
KEYS = "# of the tests\nalice:key-of-alice-1\nroot:key-of-root-2:admin\n"


def generate(url, parameters=None, **more):
    return requests.post(url + "/generate", timeout=60, json={
        "inputs": PROMPT, "parameters": {"max_new_tokens": 4, **(parameters or {})}}, **more)


@pytest.fixture(scope="module")
def guarded(start, model_arguments, tmp_path_factory):
    file = tmp_path_factory.mktemp("keys") / "keys"
    file.write_text(KEYS)
    server = start(*model_arguments, "--api-key-file", str(file), "--json-output", "--log-level",
                   "debug")
    yield server
    server.stop()


def test_H1_the_clients_bring_their_key(guarded):
    client = openai.OpenAI(base_url=guarded.url + "/v1", api_key="key-of-alice-1", max_retries=0)
    answer = client.completions.create(model="", prompt=PROMPT, max_tokens=4)
    assert answer.usage.completion_tokens == 4
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=guarded.url + "/v1", api_key="key-of-mallory",
                      max_retries=0).models.list()
    headers = {"Authorization": "Bearer key-of-alice-1"}
    assert lorax.Client(guarded.url, headers=headers).generate(PROMPT, max_new_tokens=4)
    assert generate(guarded.url).status_code == 401
    assert generate(guarded.url, headers={"X-Api-Key": "key-of-alice-1"}).status_code == 200


def test_H5_what_one_key_has_cached_no_other_finds(guarded):
    def hits(key):
        metrics = requests.get(guarded.url + "/metrics", timeout=30,
                               headers={"X-Api-Key": "key-of-root-2"}).text
        [line] = [x for x in metrics.splitlines() if x.startswith("vllm:prefix_cache_hits_total{")]
        before = float(line.split()[-1])
        assert generate(guarded.url, headers={"X-Api-Key": key}, parameters={
            "max_new_tokens": 1, "truncate": 200}).status_code == 200
        metrics = requests.get(guarded.url + "/metrics", timeout=30,
                               headers={"X-Api-Key": "key-of-root-2"}).text
        [line] = [x for x in metrics.splitlines() if x.startswith("vllm:prefix_cache_hits_total{")]
        return float(line.split()[-1]) - before

    hits("key-of-alice-1")
    assert hits("key-of-alice-1") > 0  # its own prefix
    assert hits("key-of-root-2") == 0  # the same prompt, of another


def test_H8_the_log_holds_no_key_prompt_answer_or_token(guarded):
    headers = {"X-Api-Key": "key-of-alice-1", "Authorization": "Bearer hf_secret_1"}
    answer = generate(guarded.url, {"api_token": "hf_secret_2", "max_new_tokens": 12},
                      headers=headers).json()["generated_text"]
    generate(guarded.url, {"adapter_id": "a/b", "adapter_source": "hub",
                           "api_token": "hf_secret_3", "unheard_of": PROMPT}, headers=headers)
    requests.post(guarded.url + "/generate", data="{" + PROMPT, timeout=30,
                  headers={**headers, "content-type": "application/json"})
    requests.get(guarded.url + "/secret-path?key=hf_secret_4", headers=headers, timeout=30)
    wait_until(lambda: "unheard_of" in guarded.log(), "the log")
    # But for the line that says what to type, with a prompt of the program's own.
    log = "\n".join(x for x in guarded.log().splitlines() if not x.startswith("Try: "))
    words = {word for word in (PROMPT + " " + answer).split() if len(word) > 5}
    for secret in ["key-of-alice-1", "key-of-root-2", "hf_secret", *words]:
        assert secret not in log, secret
    for line in log.splitlines():  # each is one JSON value
        assert {"timestamp", "level", "message"} <= json.loads(line).keys(), line


def test_H4_an_address_for_everyone_without_a_key_is_warned_about(start, model_arguments, tmp_path):
    server = start(*model_arguments, "--host", "0.0.0.0")
    assert "WARNING" in server.log() and "no key" in server.log()
    server.stop()
    server = start(*model_arguments, "--host", "0.0.0.0", "--api-key", "k1", settings={})
    assert "WARNING" not in server.log()
    assert "k1" not in server.log()
    server.stop()


def test_H10_adapters_are_managed_with_an_admin_key(guarded):
    body = {"lora_name": "x", "lora_path": "/x"}
    for path in ["/v1/load_lora_adapter", "/v1/unload_lora_adapter"]:
        def ask(key, url=guarded.url + path):
            return requests.post(url, json=body, timeout=30, headers={"X-Api-Key": key}).status_code
        assert ask("key-of-alice-1") == 403
        assert ask("key-of-root-2") in (400, 404)  # allowed in: no such adapter


# ---- TLS

def make_certificate(folder, *more):
    cert, key = str(folder / "cert.pem"), str(folder / "key.pem")
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt",
                    "ec_paramgen_curve:prime256v1", "-keyout", key, "-out", cert, "-days", "2",
                    "-subj", "/CN=localhost", "-addext",
                    "subjectAltName=DNS:localhost,IP:127.0.0.1", *(more or ["-nodes"])],
                   check=True, capture_output=True)
    return cert, key


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    return make_certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def secure(start, model_arguments, certificate):
    cert, key = certificate
    server = start(*model_arguments, "--ssl-certfile", cert, "--ssl-keyfile", key, verify=cert)
    assert server.url.startswith("https://")
    yield server
    server.stop()


def handshake(server, context):
    host, port = server.url.removeprefix("https://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as plain:
        with context.wrap_socket(plain, server_hostname="localhost") as tls:
            return tls.version()


def test_TLS_answers_streams_and_keeps_connections(secure, certificate):
    with requests.Session() as session:
        session.trust_env, session.verify = False, certificate[0]
        for _ in range(3):
            assert session.get(secure.url + "/health", timeout=30).status_code == 200
            answer = session.post(secure.url + "/generate_stream", timeout=30, json={
                "inputs": PROMPT, "parameters": {"max_new_tokens": 5}})
            events = [x for x in answer.text.split("\n\n") if x]
            assert json.loads(events[-1].removeprefix("data:"))["generated_text"]
        # Bodies of many records.
        big = session.post(secure.url + "/generate", timeout=60, json={"inputs": "a" * 1_900_000})
        assert big.status_code == 422
        big = session.post(secure.url + "/generate", timeout=60, json={"inputs": "a" * 2_100_000})
        assert big.status_code == 413


def test_TLS_is_1_2_or_later_and_nothing_in_the_clear(secure, certificate):
    context = ssl.create_default_context(cafile=certificate[0])
    assert handshake(secure, context) == "TLSv1.3"
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    assert handshake(secure, context) == "TLSv1.2"
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
    old.set_ciphers("ALL:@SECLEVEL=0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises((ssl.SSLError, ConnectionError)):
        handshake(secure, old)
    with pytest.raises(requests.exceptions.ConnectionError):
        requests.get(secure.url.replace("https", "http") + "/health", timeout=10)
    assert requests.get(secure.url + "/health", timeout=30, verify=certificate[0]).ok


def test_TLS_a_client_that_leaves_is_noticed(secure, certificate):
    def running():
        text = requests.get(secure.url + "/metrics", timeout=30, verify=certificate[0]).text
        [line] = [x for x in text.splitlines() if x.startswith("vllm:num_requests_running{")]
        return float(line.split()[-1])

    answers = [requests.post(secure.url + "/generate_stream", stream=True, timeout=30,
                             verify=certificate[0], json={
                                 "inputs": PROMPT, "parameters": {"ignore_eos_token": True}})
               for _ in range(8)]
    for answer in answers:
        next(answer.iter_lines())
    for answer in answers:
        answer.raw._fp.close()
        answer.close()
    wait_until(lambda: running() == 0, "nothing is running", seconds=5)


@pytest.mark.parametrize("what", ["no file", "no certificate", "another key", "a password",
                                  "one without the other"])
def test_TLS_files_that_cannot_be_used_end_with_one_line(request, certificate, tmp_path, what):
    cert, key = certificate
    if what == "no file":
        key = str(tmp_path / "absent.pem")
    elif what == "no certificate":
        cert = key
    elif what == "another key":
        key = make_certificate(tmp_path)[1]
    elif what == "a password":
        cert, key = make_certificate(tmp_path, "-passout", "pass:secret")
    arguments = ["--ssl-certfile", cert, *([] if "other" in what else ["--ssl-keyfile", key])]
    ended = subprocess.run([request.config.getoption("--lorry"), "serve", "--port", "0", *arguments],
                           stdin=subprocess.DEVNULL, capture_output=True, timeout=60, text=True)
    assert ended.returncode == 1, ended.stderr
    assert ended.stderr.count("\n") == 1 and "--ssl-" in ended.stderr, ended.stderr


# ---- a Unix socket

class UnixConnection(http.client.HTTPConnection):
    def __init__(self, path):
        super().__init__("localhost", timeout=30)
        self._path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(30)
        try:
            self.sock.connect(self._path)
        except OSError:
            self.sock.close()
            raise


def ask_unix(path, method="GET", target="/health", body=None):
    with contextlib.closing(UnixConnection(path)) as connection:
        connection.request(method, target, body and json.dumps(body),
                           {"Content-Type": "application/json", "Host": "behind.a.proxy"})
        answer = connection.getresponse()
        return answer.status, answer.read()


def test_I8_a_unix_socket_is_served_and_outlives_a_kill(start, model_arguments, tmp_path):
    path = str(tmp_path / "lorry.sock")
    server = start(*model_arguments, "--uds", path)
    assert ask_unix(path) == (200, b"")
    status, answer = ask_unix(path, "POST", "/generate",
                              {"inputs": PROMPT, "parameters": {"max_new_tokens": 3}})
    assert status == 200 and b"generated_text" in answer
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o660
    # A second server does not take it away.
    with pytest.raises(AssertionError, match="another server does"):
        start(*model_arguments, "--uds", path)
    assert ask_unix(path) == (200, b"")
    server.kill()
    assert os.path.exists(path)
    again = start(*model_arguments, "--uds", path)
    assert ask_unix(path) == (200, b"")
    again.stop()
    assert not os.path.exists(path)


def test_a_file_is_not_replaced_by_a_socket(start, model_arguments, tmp_path):
    file = tmp_path / "precious"
    file.write_text("text")
    with pytest.raises(AssertionError, match="no socket"):
        start(*model_arguments, "--uds", str(file))
    assert file.read_text() == "text"


# ---- the machine

def test_A15_without_file_descriptors_streams_go_on_and_nothing_spins(start, model_arguments):
    server = start(*model_arguments)
    stream = requests.post(server.url + "/generate_stream", stream=True, timeout=60, json={
        "inputs": PROMPT, "parameters": {"max_new_tokens": 400, "ignore_eos_token": True}})
    lines = stream.iter_lines()
    next(lines)
    used = len(os.listdir(f"/proc/{server.pid}/fd"))
    limits = resource.prlimit(server.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (used + 2, limits[1]))
    port = int(server.url.rsplit(":", 1)[1])
    crowd = [socket.create_connection(("127.0.0.1", port)) for _ in range(20)]
    wait_until(lambda: "cannot accept" in server.log(), "the log")
    assert sum(1 for line in lines if line.startswith(b"data:")) > 10  # to its end
    before = server.cpu_seconds()
    time.sleep(2)
    assert server.cpu_seconds() - before < 0.5
    assert server.log().count("cannot accept") == 1
    for one in crowd:
        one.close()
    resource.prlimit(server.pid, resource.RLIMIT_NOFILE, limits)
    wait_until(lambda: requests.get(server.url + "/health", timeout=30).ok, "/health")
    server.stop()


def test_A10_what_clients_send_forges_no_line_of_the_log(start, model_arguments):
    server = start(*model_arguments)
    forged = "x\r\n2026-01-01 00:00:00.000 error forged\x1b[31m\x00"
    assert generate(server.url, {forged: 1}).status_code == 200
    wait_until(lambda: "forged" in server.log(), "the log")
    assert "\r" not in server.log() and "\x1b" not in server.log() and "\x00" not in server.log()
    assert not any("forged" in line and line.startswith("2026-01-01")
                   for line in server.log().splitlines())
    server.stop()


def run_with_stderr(request, stderr, tmp_path):
    process = subprocess.Popen(
        [request.config.getoption("--lorry"), "serve", "--uds", str(tmp_path / "s")],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=stderr,
        env={"PATH": os.environ["PATH"], "HOME": str(tmp_path), "TMPDIR": str(tmp_path)})
    try:
        def healthy():
            try:
                return ask_unix(str(tmp_path / "s"))[0] == 200
            except OSError:
                return False
        wait_until(healthy, "/health")
        yield process
        body = {"inputs": PROMPT, "parameters": {"max_new_tokens": 3, "some_field": 1}}
        for _ in range(3):
            assert ask_unix(str(tmp_path / "s"), "POST", "/generate", body)[0] == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    finally:
        process.kill()


def test_I11_the_server_lives_when_nobody_can_be_told(request, tmp_path):
    with open("/dev/full", "wb") as full:  # a disk without room
        for _ in run_with_stderr(request, full, tmp_path):
            pass
    read, write = os.pipe()
    with os.fdopen(write, "wb") as pipe:  # a reader that left
        for _ in run_with_stderr(request, pipe, tmp_path):
            os.close(read)


def test_I7_a_second_sigterm_is_now(start, model_arguments):
    server = start(*model_arguments, "--shutdown-timeout", "600")
    stream = requests.post(server.url + "/generate_stream", stream=True, timeout=60, json={
        "inputs": PROMPT, "parameters": {"ignore_eos_token": True}})
    next(stream.iter_lines())
    server.terminate()
    wait_until(lambda: "shutting down" in server.log(), "the log")
    server.terminate()
    assert server.wait(10) == 0


def test_I6_a_step_that_hangs_ends_the_process(start, model_arguments):
    # Every step takes longer than this.
    server = start(*model_arguments, "--watchdog-timeout", "0.0001")
    try:
        for _ in range(50):
            requests.post(server.url + "/generate", timeout=60, json={
                "inputs": PROMPT, "parameters": {"ignore_eos_token": True}})
    except requests.exceptions.ConnectionError:
        pass
    assert server.wait(10) == 3
    assert "--watchdog-timeout" in server.log()


def test_I14_startup_computes_a_token(server):
    answer = requests.get(server.url + "/startup", timeout=30)
    assert (answer.status_code, answer.content) == (200, b"")
