"""A proxy between the browser and Lorry, with which a test holds streams and puts words in."""

import contextlib
import http.client
import http.server
import json
import select
import socket
import threading


class Gate:
    """Passes everything on to `url`, with two exceptions:
    `replies[path] = (status, headers, body)` are answered by the gate itself;
    with hold(n) a chat's stream stops after n events until release(), or until the browser leaves."""

    def __init__(self, url):
        self.upstream = url.removeprefix("http://")
        self.replies = {}
        self.requests = []  # (method, path, headers, body)
        self.left = 0       # streams that the browser left
        self._after = None
        self._open = threading.Event()
        gate = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                gate.pass_on(self)

            do_POST = do_HEAD = do_GET

            def log_message(self, *_):
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def close(self):
        self.release()
        self._server.shutdown()
        self._server.server_close()

    def hold(self, events):
        self._after = events
        self._open.clear()

    def release(self):
        self._after = None
        self._open.set()

    def chats(self):
        """The chats that were asked for, as JSON."""
        return [json.loads(body) for _, path, _, body in self.requests if path == "/v1/chat/completions"]

    def say(self, text, tokens=None):
        """The next chats get an answer of these words, which no model gave."""
        chunk = {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": "stop",
                              "logprobs": tokens and {"content": tokens}}]}
        self.replies["/v1/chat/completions"] = (
            200, {"content-type": "text/event-stream"}, f"data: {json.dumps(chunk)}\n\ndata: [DONE]\n\n")

    def pass_on(self, handler):
        body = handler.rfile.read(int(handler.headers.get("content-length", 0)))
        self.requests.append((handler.command, handler.path, dict(handler.headers), body))
        handler.close_connection = True
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            if handler.path in self.replies:
                self._answer(handler, *self.replies[handler.path])
            else:
                self._forward(handler, body)

    @staticmethod
    def _answer(handler, status, headers, text):
        data = text.encode()
        handler.send_response(status)
        for name, value in {"content-length": len(data), "connection": "close", **headers}.items():
            handler.send_header(name, str(value))
        handler.end_headers()
        handler.wfile.write(data)

    def _forward(self, handler, body):
        connection = http.client.HTTPConnection(self.upstream, timeout=60)
        with contextlib.closing(connection):
            headers = {name: value for name, value in handler.headers.items()
                       if name.lower() not in ("connection", "host")}
            connection.request(handler.command, handler.path, body or None, headers)
            response = connection.getresponse()
            handler.send_response(response.status)
            for name, value in response.getheaders():
                if name not in ("transfer-encoding", "connection", "server", "date"):
                    handler.send_header(name, value)
            handler.send_header("connection", "close")
            handler.end_headers()
            if "event-stream" in (response.getheader("content-type") or ""):
                self._stream(handler, response)
            elif handler.command != "HEAD":
                handler.wfile.write(response.read())

    def _stream(self, handler, response):
        events = 0
        for line in response:
            handler.wfile.write(line)
            handler.wfile.flush()
            events += line == b"\n"
            if self._after is not None and events >= self._after and not self._wait(handler.connection):
                self.left += 1
                return

    def _wait(self, connection):
        """False: the browser has left."""
        while not self._open.wait(0.02):
            readable, _, _ = select.select([connection], [], [], 0)
            if readable and connection.recv(1, socket.MSG_PEEK) == b"":
                return False
        return True
