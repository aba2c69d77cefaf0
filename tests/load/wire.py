"""HTTP as a load makes it: many connections on one thread, and clients that break it off."""

import asyncio
import contextlib
import json
import pathlib
import resource
import socket
import struct
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "clients"))
from lorry_server import Server  # noqa: E402
from prompts import as_turn, story  # noqa: E402

__all__ = ["Server", "as_turn", "story"]

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent


def raise_file_limit():
    """Thousands of connections: as many descriptors as the system lets this process have."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    return most


def message(method, path, body=None, *fields):
    payload = b"" if body is None else json.dumps(body).encode()
    head = [f"{method} {path} HTTP/1.1", "Host: localhost", *fields]
    if body is not None:
        head += ["Content-Type: application/json", f"Content-Length: {len(payload)}"]
    return "\r\n".join([*head, "", ""]).encode() + payload


class Reply:
    def __init__(self, status, headers, body):
        self.status, self.headers, self.body = status, headers, body

    def json(self):
        return json.loads(self.body)

    def events(self):
        return [line[6:] for line in self.body.decode().split("\n\n") if line.startswith("data: ")]


class Connection:
    """A keep-alive connection. A broken one raises OSError or EOFError (asyncio's IncompleteReadError)."""

    def __init__(self, reader, writer):
        self.reader, self.writer = reader, writer

    @classmethod
    async def open(cls, port):
        return cls(*await asyncio.open_connection("127.0.0.1", port, limit=1 << 20))

    async def send(self, data):
        self.writer.write(data)
        await self.writer.drain()

    async def head(self):
        lines = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines[1:] if line)
        return int(lines[0].split()[1]), headers

    async def chunk(self):
        """One chunk of a stream; empty: its end."""
        size = int(await self.reader.readuntil(b"\r\n"), 16)
        return (await self.reader.readexactly(size + 2))[:-2]

    async def reply(self):
        status, headers = await self.head()
        body = b""
        if "content-length" in headers:
            body = await self.reader.readexactly(int(headers["content-length"]))
        elif "chunked" in headers.get("transfer-encoding", ""):
            while part := await self.chunk():
                body += part
        return Reply(status, headers, body)

    async def ask(self, method, path, body=None, *fields):
        await self.send(message(method, path, body, *fields))
        return await self.reply()

    def reset(self):
        """Leaves with RST: what a client that was killed, or a dropped line, does."""
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    def close(self):
        """Leaves with FIN."""
        self.writer.close()


@contextlib.asynccontextmanager
async def connected(port):
    connection = await Connection.open(port)
    try:
        yield connection
    finally:
        connection.close()


async def ask(port, method, path, body=None, *fields):
    async with connected(port) as connection:
        return await connection.ask(method, path, body, *fields)


def port_of(server):
    return int(server.url.rsplit(":", 1)[1])


def resident(server):
    """Bytes of memory in use that are the server's own: pages of files come and go as the system likes."""
    resident, shared = map(int, pathlib.Path(f"/proc/{server.pid}/statm").read_text().split()[1:3])
    return (resident - shared) * resource.getpagesize()


def descriptors(server):
    return len(list(pathlib.Path(f"/proc/{server.pid}/fd").iterdir()))


def percentile(values, p):
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * p / 100))]
