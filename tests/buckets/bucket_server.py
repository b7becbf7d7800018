"""A bucket on this machine: the emulator of Cloud Storage behind a small proxy, which adds what the
emulator lacks (conditions, generations of contents, tokens) and makes requests fail as a network
does.

``with BucketServer() as server`` starts both; ``server.environment`` is for processes that use it.
``python bucket_server.py`` runs one until it is killed, and prints its address.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import logging
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple
from urllib.parse import parse_qs, quote, unquote, urlsplit

import pytest

_EXTRA = "needs the extra [emulator]: pip install -e '.[emulator]'"
# Skips the tests that import this module.
pytest.importorskip("gcsfs", reason=_EXTRA)
create_server = pytest.importorskip("gcp_storage_emulator.server", reason=_EXTRA).create_server

BUCKET = "test-bucket"
_UPLOADS = ("/upload/storage/v1/b/", "/resumable/upload/storage/v1/b/")
# https://cloud.google.com/storage/docs/request-preconditions
_SAME = "ifGenerationMatch"
_CHANGED = "ifGenerationNotMatch"


class Request(NamedTuple):
    """A request of a client, as faults see it.

    Attributes:
        method: of HTTP.
        path: with the query, percent signs decoded.
        nbytes: length of the body.
        name: of the object, where the request names one.
    """

    method: str
    path: str
    nbytes: int
    name: str = ""

    @property
    def uploads(self) -> bool:
        return self.method in ("POST", "PUT") and self.path.startswith(_UPLOADS)

    @property
    def downloads(self) -> bool:
        return self.method == "GET" and ("alt=media" in self.path or "/download/" in self.path)


class Fault(NamedTuple):
    """What goes wrong with the next requests of a kind.

    Attributes:
        applies: to a request.
        status: answered in place of the emulator's answer; 0 passes on the emulator's.
        done: the emulator does what was asked for, although ``status`` says something else.
        cut: the connection ends after this share of the answer's body.
        delay: seconds before the answer.
    """

    applies: Callable[[Request], bool]
    status: int = 0
    done: bool = False
    cut: float = 1.0
    delay: float = 0.0


Answer = tuple[int, list[tuple[str, str]], bytes]
"""Status, headers and body."""


class BucketServer:
    """The emulator and its proxy.

    Attributes:
        address: of the proxy.
        requests: all requests so far.
        lifetime: seconds that a token of the metadata server is taken; 0 asks for no token.
        issued: number of tokens that were issued.
    """

    def __init__(self) -> None:
        logging.getLogger("api").setLevel(logging.CRITICAL)
        logging.getLogger("gcp_storage_emulator").setLevel(logging.CRITICAL)
        self._port = _free_port()
        self._emulator = create_server("127.0.0.1", self._port, in_memory=True)
        self._proxy = _Proxy(self)
        self.address = f"http://127.0.0.1:{self._proxy.server_address[1]}"
        self.requests: list[Request] = []
        self.lifetime = 0.0
        self.issued = 0
        self._expiry: dict[str, float] = {}
        self._faults: list[tuple[Fault, list[int]]] = []
        self._finished: dict[str, Answer] = {}
        # The emulator answers one request at a time, and a condition holds until the write.
        self.turn = threading.RLock()

    def __enter__(self) -> BucketServer:
        self._emulator.start()
        threading.Thread(target=self._proxy.serve_forever, daemon=True).start()
        status, _, _ = self.ask("POST", "/storage/v1/b?project=p", json.dumps({"name": BUCKET}))
        assert status == 200
        return self

    def __exit__(self, *_: object) -> None:
        self._proxy.shutdown()
        self._proxy.server_close()
        self._emulator.stop()

    @property
    def environment(self) -> dict[str, str]:
        """The variables that lead the libraries of buckets to this server."""
        return {
            "STORAGE_EMULATOR_HOST": self.address,
            "TENSORSTORE_GCS_HTTP_URL": self.address,
            "CLOUD_STORAGE_EMULATOR_ENDPOINT": self.address,
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
            "NO_GCE_CHECK": "true",
        }

    @property
    def machine(self) -> dict[str, str]:
        """``environment`` of a machine with a service account, whose tokens this server gives."""
        host = self.address.removeprefix("http://")
        account = {"GCE_METADATA_HOST": host, "GCE_METADATA_IP": host, "GCE_METADATA_ROOT": host}
        return {**self.environment, **account, "NO_GCE_CHECK": "false"}

    def ask(self, method: str, path: str, body: str | bytes = b"", headers: Any = ()) -> Answer:
        """The emulator's own answer."""
        data = body.encode() if isinstance(body, str) else body
        kind = "application/json" if isinstance(body, str) else "application/octet-stream"
        sent = {"Content-Type": kind, **dict(headers), "Content-Length": len(data)}
        with self.turn:
            connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
            try:
                connection.request(method, path, data, {k: str(v) for k, v in sent.items()})
                answer = connection.getresponse()
                return answer.status, answer.getheaders(), answer.read()
            finally:
                connection.close()

    def names(self, prefix: str = "") -> list[str]:
        """The names of all objects."""
        _, _, body = self.ask("GET", f"/storage/v1/b/{BUCKET}/o?prefix={prefix}")
        return sorted(item["name"] for item in json.loads(body).get("items", []))

    def content(self, name: str) -> bytes:
        """The content of an object."""
        quoted = name.replace("/", "%2F")
        status, _, body = self.ask("GET", f"/storage/v1/b/{BUCKET}/o/{quoted}?alt=media")
        assert status == 200, (name, status)
        return body

    @contextmanager
    def failing(self, fault: Fault, times: int = 1 << 30) -> Iterator[list[int]]:
        """The next ``times`` requests of a kind fail; the list counts them."""
        counted = [0, times]
        entry = (fault, counted)
        self._faults.append(entry)
        try:
            yield counted
        finally:
            self._faults.remove(entry)

    def fault_of(self, request: Request) -> Fault | None:
        with self.turn:
            for fault, counted in self._faults:
                if counted[0] < counted[1] and fault.applies(request):
                    counted[0] += 1
                    return fault
        return None

    def token(self) -> dict[str, Any]:
        """A new token, as a metadata server gives it."""
        with self.turn:
            self.issued += 1
            token = f"token-{self.issued}"
            self._expiry[token] = time.monotonic() + self.lifetime
        return {"access_token": token, "token_type": "Bearer", "expires_in": int(self.lifetime)}

    def revoke_tokens(self) -> None:
        """Clients hold tokens that are not taken any more."""
        with self.turn:
            self._expiry.clear()

    def accepts(self, authorization: str) -> bool:
        """Whether a request has a token that is not over."""
        if not self.lifetime:
            return True
        token = authorization.removeprefix("Bearer ")
        return self._expiry.get(token, 0.0) > time.monotonic()

    def answer(self, request: Request, path: str, body: bytes, headers: dict[str, str]) -> Answer:
        """What Cloud Storage answers.

        The emulator's answer, on the conditions of the request, with the headers of an object's
        content that name its generation, and the same again for an upload that is finished.
        """
        session = parse_qs(urlsplit(request.path).query).get("upload_id", [""])[0]
        with self.turn:
            if session in self._finished:
                return self._finished[session]
            metadata = self._metadata(request)
            unmet = _unmet(request, metadata.get("generation", "0"))
            if unmet:
                return unmet, [], b""
            status, said, content = self.ask(request.method, path, body, headers)
            if status in (200, 206) and request.downloads:
                said += [(f"x-goog-{n}", metadata[n]) for n in ("generation", "metageneration")]
            if status == 200 and session:
                self._finished[session] = (status, said, content)
            return status, said, content

    def _metadata(self, request: Request) -> dict[str, Any]:
        """What the bucket says of the object that a request is about; empty where none is there."""
        conditional = _SAME in request.path or _CHANGED in request.path
        if not (request.downloads or conditional):
            return {}
        bucket = urlsplit(request.path).path.split("/b/")[1].split("/")[0]
        quoted = quote(request.name, safe="")
        status, _, found = self.ask("GET", f"/storage/v1/b/{bucket}/o/{quoted}")
        return json.loads(found) if status == 200 else {}


class _Proxy(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, bucket: BucketServer) -> None:
        self.bucket = bucket
        super().__init__(("127.0.0.1", 0), _Handler)

    def handle_error(self, *_: object) -> None:
        """Clients that went away are no news."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Else the body of an answer waits until the client has acknowledged the headers, for 40 ms.
    disable_nagle_algorithm = True
    server: _Proxy

    def do_GET(self) -> None:
        body = self._body()
        server = self.server.bucket
        request = Request(self.command, unquote(self.path), len(body), _name(self.path, body))
        if self.path.startswith("/computeMetadata/") or self.path == "/":
            self._metadata()
            return
        server.requests.append(request)
        fault = server.fault_of(request)
        if fault is not None and fault.delay:
            time.sleep(fault.delay)
        if fault is not None and fault.status and not fault.done:
            self._refuse(fault.status)
            return
        # google-cloud-storage sends no token where it is told of an emulator.
        authorization = self.headers.get("Authorization", "")
        if authorization and not server.accepts(authorization):
            self._refuse(401)
            return
        status, headers, answer = server.answer(request, self.path, body, self._headers())
        if fault is not None and fault.status:
            self._refuse(fault.status)
        elif status == 412:
            self._refuse(status)
        else:
            self._answer(status, headers, answer, fault.cut if fault else 1.0)

    do_POST = do_PUT = do_DELETE = do_PATCH = do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        """Nothing."""

    def _headers(self) -> dict[str, str]:
        dropped = ("content-length", "transfer-encoding", "connection", "expect")
        return {k: v for k, v in self.headers.items() if k.lower() not in dropped}

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            parts = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _refuse(self, status: int) -> None:
        said = {401: "Invalid Credentials", 403: "no access", 412: "conditionNotMet"}
        error = {"code": status, "message": said.get(status, "try again")}
        self._answer(status, [("Content-Type", "application/json")], json.dumps({"error": error}))

    def _metadata(self) -> None:
        server = self.server.bucket
        answer: Any = ""
        if server.lifetime and "token" in self.path:
            answer = json.dumps(server.token())
        elif server.lifetime and "recursive" in self.path:
            answer = json.dumps({"email": "a@b.c", "aliases": ["default"], "scopes": ["x"]})
        elif self.path != "/" and not server.lifetime:
            self._answer(404, [], "")
            return
        kind = "application/json" if answer else "text/plain"
        self._answer(200, [("Metadata-Flavor", "Google"), ("Content-Type", kind)], answer)

    def _answer(
        self, status: int, headers: list[tuple[str, str]], body: bytes | str, cut: float = 1.0
    ) -> None:
        data = body.encode() if isinstance(body, str) else body
        self.send_response(status)
        for name, value in headers:
            if name.lower() not in ("content-length", "connection", "server", "date"):
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if cut < 1.0:
            self.wfile.write(data[: int(len(data) * cut)])
            self.wfile.flush()
            self.close_connection = True
            with contextlib.suppress(OSError):
                self.connection.shutdown(socket.SHUT_RDWR)
            return
        self.wfile.write(data)


def _unmet(request: Request, generation: str) -> int:
    """The status where a condition does not hold for the object's generation; 0 where all do.

    Args:
        request: with its conditions.
        generation: "0" where there is no such object.
    """
    query = parse_qs(urlsplit(request.path).query)
    if "upload_id" in query or (generation == "0" and not request.uploads):
        return 0
    if query.get(_SAME, [generation]) != [generation]:
        return 412
    return 304 if query.get(_CHANGED) == [generation] else 0


def _name(address: str, body: bytes) -> str:
    """The object that a request names in its path, in its query, or in the JSON part of an upload
    in several parts; empty where it names none.
    """
    parts = urlsplit(address)
    query = parse_qs(parts.query)
    if "name" in query:
        return query["name"][0]
    if "multipart" in query.get("uploadType", ()):
        start = body.index(b"{")
        return json.JSONDecoder().raw_decode(body[start:].decode(errors="replace"))[0]["name"]
    return unquote(parts.path.partition("/o/")[2])


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


if __name__ == "__main__":
    with BucketServer() as running:
        print(json.dumps(running.environment), flush=True)
        sys.stdin.read()
