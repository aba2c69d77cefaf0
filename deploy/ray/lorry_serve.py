"""A Ray Serve application whose replicas are `lorry serve` processes.

Requests of one adapter go to one replica while that has room, so its weights and its prefix cache are
there; requests of the base model go to all. README.md says how to run it.
"""

import asyncio
import ctypes
import http.client
import json
import logging
import os
import shlex
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import uuid

import aiohttp
import pydantic
import yarl
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.config import RequestRouterConfig
from ray.serve.experimental.consistent_hash_router import ConsistentHashRouter
from starlette.responses import JSONResponse, Response, StreamingResponse

log = logging.getLogger("ray.serve")

# Of one connection, not of the answer behind it.
HOP_BY_HOP = {"connection", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade", "host",
              "proxy-authenticate", "proxy-authorization"}
# Replicas come and go: what one was told by name the others would not know.
OF_ONE_REPLICA = {"/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/v1/adapters", "/metrics"}
TRIES = 3


class Settings(pydantic.BaseModel):
    """The arguments of the application."""
    model: str = "demo"
    served_model_name: str = ""  # default: the model
    lorry: str = "lorry"  # the binary
    flags: str = ""  # more of `lorry serve --help`, as in a shell
    cpus_per_replica: float = 1
    min_replicas: int = 1
    max_replicas: int = 1
    target_requests: float = 16  # of a replica, in work or waiting: what the number of replicas follows
    max_requests: int = 64  # of a replica; its adapters' requests go elsewhere then
    start_seconds: float = 600  # until a replica answers /health
    drain_seconds: float = 30  # for what runs when a replica goes


class AdapterRouter(ConsistentHashRouter):
    """The replicas in the order of the request's adapter; those that just failed it come last."""

    async def choose_replicas(self, candidate_replicas, pending_request=None):
        ranks = await super().choose_replicas(candidate_replicas, pending_request)
        avoid = pending_request.kwargs.get("avoid", ()) if pending_request else ()
        return sorted(ranks, key=lambda rank: any(r.replica_id.unique_id in avoid for r in rank))


def die_with_parent():
    """In the child: SIGTERM when the replica's process is killed."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)


def is_healthy(path):
    """GET /health on the Unix socket."""
    connection = http.client.HTTPConnection("lorry", timeout=10)
    connection.sock = socket.socket(socket.AF_UNIX)
    try:
        connection.sock.settimeout(10)
        connection.sock.connect(path)
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


@serve.deployment
class Replica:
    """Owns one `lorry serve` on a Unix socket."""

    def __init__(self, command, start_seconds, drain_seconds):
        self._drain_seconds = drain_seconds
        self._id = serve.get_replica_context().replica_id.unique_id
        self._folder = tempfile.mkdtemp(prefix="lorry-")
        self._socket = os.path.join(self._folder, "socket")
        self._session = None
        self._process = subprocess.Popen([*command, "--uds", self._socket],
                                         stdin=subprocess.DEVNULL, preexec_fn=die_with_parent)
        end = time.monotonic() + start_seconds
        while not is_healthy(self._socket):
            if self._process.poll() is not None:
                raise RuntimeError(f"lorry serve ended with {self._process.returncode}")
            if time.monotonic() > end:
                raise RuntimeError(f"lorry serve was not ready after {start_seconds} s")
            time.sleep(0.05)

    async def check_health(self):
        if self._process.poll() is not None:
            raise RuntimeError(f"lorry serve ended with {self._process.returncode}")
        if not await asyncio.to_thread(is_healthy, self._socket):
            raise RuntimeError("lorry serve is not healthy")

    async def forward(self, method, target, headers, body, avoid=()):
        """Yields the head of the answer, then pieces of its body. The head's status is None where this
        replica cannot answer and another may. `avoid` is for the router."""
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.UnixConnector(self._socket, limit=0), auto_decompress=False,
                timeout=aiohttp.ClientTimeout(total=None))
        url = yarl.URL("http://lorry" + target, encoded=True)
        try:
            answer = await self._session.request(method, url, headers=headers, data=body,
                                                 allow_redirects=False)
        except aiohttp.ClientError as error:
            log.warning("lorry serve (%s) does not answer: %s", self._process.pid, error)
            yield {"status": None, "replica": self._id}
            return
        async with answer:
            if answer.status == 503:
                yield {"status": None, "replica": self._id}
                return
            yield {"status": answer.status, "replica": self._id, "pid": self._process.pid,
                   "headers": [(name, value) for name, value in answer.headers.items()
                               if name.lower() not in HOP_BY_HOP]}
            async for piece in answer.content.iter_any():
                yield piece

    def __del__(self):
        """Ray has let the requests end that it had sent here."""
        process = getattr(self, "_process", None)
        if process and process.poll() is None:
            process.terminate()
            try:
                process.wait(self._drain_seconds + 10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        shutil.rmtree(getattr(self, "_folder", ""), ignore_errors=True)


def adapter_of(path, body, base):
    """What the request is to be kept together by: the name of its adapter or its merge; None for the
    base model and for what is no generation."""
    try:
        fields = json.loads(body) if body else {}
        if not path.startswith("/v1/"):
            fields = fields.get("parameters") or {}
        name = fields.get("model" if path.startswith("/v1/") else "adapter_id")
        merge = fields.get("merged_adapters") or fields.get("adapter_parameters") or fields.get("adapters")
    except (ValueError, AttributeError):
        return None  # the replica says what is wrong
    if merge:
        return json.dumps(merge, sort_keys=True)
    return name if isinstance(name, str) and name not in ("", base, "__base_model__") else None


def error(path, status, message):
    """In the words of the route's dialect."""
    if path.startswith("/v1/"):
        kind = "invalid_request_error" if status < 500 else "service_unavailable"
        content = {"error": {"message": message, "type": kind, "param": None, "code": None}}
    else:
        content = {"error": message, "error_type": "validation" if status < 500 else "unavailable"}
    return JSONResponse(content, status, {"retry-after": "5"} if status == 503 else None)


@serve.deployment
class Ingress:
    """Reads whose request it is, and passes it and its answer on."""

    def __init__(self, replicas, base):
        self._replicas = replicas
        self._base = base

    async def __call__(self, request):
        path = request.url.path
        if path in OF_ONE_REPLICA:
            return error(path, 400, f"{path} belongs to one server and this is a fleet: put adapters below "
                         "--adapter-root or into a hub, and ask for them by name")
        body = await request.body()
        headers = [(name, value) for name, value in request.headers.items()
                   if name not in HOP_BY_HOP and name != "content-length"]
        target = request.scope["raw_path"].decode() if request.scope.get("raw_path") else path
        if request.url.query and "?" not in target:
            target += "?" + request.url.query
        # Any other name spreads what has no adapter.
        session = adapter_of(path, body, self._base) or uuid.uuid4().hex
        avoid = []
        for _ in range(TRIES):
            answer = self._replicas.options(stream=True, session_id=session).forward.remote(
                request.method, target, headers, body, avoid=tuple(avoid))
            try:
                head = await anext(answer)
            except RayActorError:
                continue  # Ray's router has forgotten it
            if head["status"] is not None:
                return self._response(request.method, head, answer)
            avoid.append(head["replica"])
        return error(path, 503, "no replica can answer now")

    @staticmethod
    def _response(method, head, answer):
        async def pieces():
            try:
                async for piece in answer:
                    yield piece
            finally:
                answer.cancel()  # nothing, unless the client has left

        response = Response(status_code=head["status"]) if method == "HEAD" else StreamingResponse(
            pieces(), head["status"])
        response.raw_headers = [(name.lower().encode("latin-1"), value.encode("latin-1"))
                                for name, value in [*head["headers"], ("x-lorry-replica", head["replica"])]
                                if name.lower() != "x-request-id"]  # Ray sends it
        return response


def build(settings: Settings):
    base = settings.served_model_name or settings.model
    command = [settings.lorry, "serve", settings.model, "--served-model-name", base, "--shutdown-timeout",
               str(settings.drain_seconds), *shlex.split(settings.flags)]
    replicas = Replica.options(
        ray_actor_options={"num_cpus": settings.cpus_per_replica},
        max_ongoing_requests=settings.max_requests,
        autoscaling_config={"min_replicas": settings.min_replicas, "max_replicas": settings.max_replicas,
                            "target_ongoing_requests": settings.target_requests},
        health_check_period_s=2, health_check_timeout_s=15,
        graceful_shutdown_timeout_s=settings.drain_seconds + 20, graceful_shutdown_wait_loop_s=1,
        request_router_config=RequestRouterConfig(request_router_class=AdapterRouter),
    ).bind(command, settings.start_seconds, settings.drain_seconds)
    return Ingress.options(ray_actor_options={"num_cpus": 0}, max_ongoing_requests=10000).bind(replicas, base)
