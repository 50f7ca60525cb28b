"""An object store on this machine: gcp-storage-emulator, and what it lacks.

A real HTTP server of the storage's API, as gcsfs and TensorStore ask it. Added are
the generation of what is read, conditions on the generation of what is written or
removed, and faults that a test orders. Another process uses it by its `environment`.
"""

import collections
import contextlib
import http.server
import io
import logging
import os
import random
import re
import socket
import struct
import sys
import threading
import time
import types
from collections.abc import Iterator
from http import HTTPStatus
from urllib.parse import parse_qs, unquote, urlparse

from gcp_storage_emulator import server as emulator
from gcp_storage_emulator.handlers import buckets, objects
from gcp_storage_emulator.storage import Storage

for _name in ("gcp_storage_emulator", "api.object", "api.bucket"):
    logging.getLogger(_name).setLevel(logging.CRITICAL)  # "not found" is no error
BUCKET = "store"
FAULTS = ("429", "503", "reset", "lost", "slow")
SLOW = 0.3  # seconds that a slow answer takes


class Store:
    """A running server.

    Attributes:
      faults: {method of a request: faults to come, in their order}: a status such as
        "503", "reset" (of the connection), "lost" (only the answer), "slow", "" (none).
      chance: that any request meets one of `FAULTS`.
      met: how many did, of each.
      asked: (method, path) of all requests.
      environment: variables for a process that is to use it.
    """

    def __init__(self) -> None:
        self.storage = Storage(use_memory_fs=True)
        self.faults: dict[str, collections.deque] = collections.defaultdict(
            collections.deque
        )
        self.asked: list[tuple[str, str]] = []
        self.chance, self.random = 0.0, random.Random(0)
        self.met: collections.Counter[str] = collections.Counter()
        self.lock = threading.RLock()
        with contextlib.suppress(Exception):
            buckets.create_bucket(BUCKET, self.storage)
        store = self

        class Handler(_Handler):
            pass

        Handler.store = store
        self._server = _Server(("127.0.0.1", 0), Handler)
        port = self._server.server_address[1]
        url = f"http://127.0.0.1:{port}"
        self.environment = {
            "STORAGE_EMULATOR_HOST": url,
            "TENSORSTORE_GCS_HTTP_URL": url,
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
            "EPATH_USE_TF": "false",
        }
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def names(self, prefix: str = "") -> list[str]:
        """Return the objects of the bucket."""
        with self.lock:
            files, _ = self.storage.get_file_list(BUCKET, prefix, None)
        return sorted(file["name"] for file in files)

    def generation(self, name: str) -> str:
        """Return what changes when an object is written."""
        with self.lock:
            return self.storage.get_file_obj(BUCKET, name)["generation"]


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request, client_address) -> None:
        # Clients hang up as they like; anything else is a test's concern.
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class _Handler(emulator.RequestHandler):
    store: Store

    def __init__(self, *args, **kwargs):
        super().__init__(self.store.storage, *args, **kwargs)

    def _handle(self, method: str) -> None:
        store = self.store
        store.asked.append((method, self.path))
        waiting = store.faults[method]
        fault = waiting.popleft() if waiting else ""
        if not fault and store.random.random() < store.chance:
            fault = store.random.choice(FAULTS)
        store.met[fault] += bool(fault)
        if fault == "reset":
            return self._hang_up()
        if fault == "slow":
            time.sleep(SLOW)
        elif fault.isdigit():
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.send_response(int(fault))
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        answer = self.wfile
        if fault == "lost":
            self.wfile = io.BytesIO()
        with store.lock:
            if not self._refused():
                emulator.Router(self).handle(method)
        if fault == "lost":
            self.wfile = answer
            self._hang_up()

    def _hang_up(self) -> None:
        linger = struct.pack("ii", 1, 0)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.connection.close()

    def _refused(self) -> bool:
        """Answer a request whose condition on a generation does not hold."""
        url = urlparse(self.path)
        query = parse_qs(url.query)
        wanted = query.get("ifGenerationMatch")
        if not wanted:
            return False
        if "/o/" in url.path:
            name = url.path.split("/o/", 1)[1]
        elif "name" in query:
            (name,) = query["name"]
        else:  # it is in the body
            body = self.rfile.read(int(self.headers["Content-Length"]))
            self.rfile = io.BytesIO(body)
            name = re.search(rb'"name": *"([^"]*)"', body)[1].decode()
        try:
            there = self.store.storage.get_file_obj(BUCKET, unquote(name))["generation"]
        except Exception:
            there = "0"
        if there == wanted[0]:
            return False
        if not isinstance(self.rfile, io.BytesIO):
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.send_response(HTTPStatus.PRECONDITION_FAILED)
        self.send_header("Content-Length", "0")
        self.end_headers()
        return True

    def do_GET(self) -> None:
        self._handle("GET")

    def do_POST(self) -> None:
        self._handle("POST")

    def do_PUT(self) -> None:
        self._handle("PUT")

    def do_DELETE(self) -> None:
        self._handle("DELETE")


_download = objects.download


def _with_generation(request, response, storage, *args, **kwargs) -> None:
    _download(request, response, storage, *args, **kwargs)
    with contextlib.suppress(Exception):
        name, bucket = request.params["object_id"], request.params["bucket_name"]
        found = storage.get_file_obj(bucket, name)
        response["X-Goog-Generation"] = found["generation"]


objects.download = _with_generation


@contextlib.contextmanager
def running() -> Iterator[Store]:
    """Give a server that this process's clients use, which wait for no second try."""
    store = Store()
    before = {name: os.environ.get(name) for name in store.environment}
    os.environ.update(store.environment)
    from gcsfs import retry

    waits, retry.random = retry.random, types.SimpleNamespace(random=lambda: -100)
    try:
        yield store
    finally:
        retry.random = waits
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        store.close()


if __name__ == "__main__":
    # For commands by hand: eval what it prints, and stop it with Ctrl-C.
    for _name, _value in Store().environment.items():
        print(f"export {_name}={_value}", flush=True)
    threading.Event().wait()
