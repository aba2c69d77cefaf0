"""A hub on this machine: repositories in Hugging Face's protocol, some of them private."""

import hashlib
import http.server
import json
import pathlib
import threading
import urllib.parse


class FakeHub:
    """repositories: {"org/name": folder}; private: {"org/name": token}."""

    def __init__(self, repositories, private):
        self.repositories = {name: pathlib.Path(folder) for name, folder in repositories.items()}
        self.private = private
        self.requests = []  # (path, token)
        hub = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                hub.answer(self, body=True)

            def do_HEAD(self):
                hub.answer(self, body=False)

            def log_message(self, *_):
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self):
        self._server.shutdown()
        self._server.server_close()

    @staticmethod
    def commit_of(name):
        return hashlib.sha1(name.encode()).hexdigest()

    def answer(self, request, body):
        path = urllib.parse.unquote(urllib.parse.urlsplit(request.path).path)
        token = request.headers.get("Authorization", "").removeprefix("Bearer ")
        self.requests.append((path, token))
        status, headers, content = self.find(path, token)
        request.send_response(status)
        for key, value in headers.items():
            request.send_header(key, value)
        request.send_header("Content-Length", str(len(content)))
        request.end_headers()
        if body:
            request.wfile.write(content)

    def find(self, path, token):
        for name, folder in self.repositories.items():
            commit = self.commit_of(name)
            if path == f"/api/models/{name}/revision/main":
                if self.refused(name, token):
                    return 401, {}, b""
                return 200, {}, json.dumps({
                    "sha": commit, "private": name in self.private, "gated": False,
                    "siblings": [{"rfilename": f.name, "size": f.stat().st_size}
                                 for f in sorted(folder.iterdir())]}).encode()
            prefix = f"/{name}/resolve/{commit}/"
            if path.startswith(prefix):
                if self.refused(name, token):
                    return 401, {}, b""
                content = (folder / path.removeprefix(prefix)).read_bytes()
                blob = hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()
                return 200, {"ETag": f'"{blob}"', "X-Repo-Commit": commit}, content
        return 404, {}, b""

    def refused(self, name, token):
        return name in self.private and self.private[name] != token
