"""An object store in memory at gs://: no rename, no append, no folders, and an object exists only once it is complete.

The same dictionary is reached in two ways: by `epath`, as a file system of fsspec, and by TensorStore, which Orbax
writes arrays with, over as much of the JSON interface of Google Cloud Storage as it needs.
"""

import io
import json
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import parse_qs, unquote, urlsplit

import fsspec
from etils.epath import backend
from fsspec.registry import _registry


class ObjectStore:
    """Names and contents; every attempt to rename or to append is refused, and remembered."""

    def __init__(self):
        self.objects: dict[str, bytes] = {}
        self.generations: dict[str, int] = {}
        self.refused: list[str] = []
        self.puts: list[str] = []
        self.changing = threading.RLock()

    def put(self, name: str, content: bytes) -> None:
        """Make an object, or replace it."""
        with self.changing:
            self.objects[name] = bytes(content)
            self.generations[name] = len(self.puts) + 1
            self.puts.append(name)

    def remove(self, name: str) -> None:
        """Delete an object."""
        with self.changing:
            del self.objects[name], self.generations[name]

    def names(self, prefix: str = "") -> list[str]:
        """Objects whose names begin so."""
        with self.changing:
            return sorted(name for name in self.objects if name.startswith(prefix))

    def refuse(self, what: str, *names: str) -> None:
        """What no object store can do."""
        self.refused.append(f"{what} {' '.join(map(str, names))}")
        raise AssertionError(f"an object store cannot {what}: {names}")


class FileSystem(fsspec.AbstractFileSystem):
    """The store as fsspec sees it, and so epath."""

    protocol = ("gs", "gcs")
    cachable = False
    store: ObjectStore

    def _open(self, path, mode="rb", **_options):
        if mode == "rb":
            return io.BytesIO(self.cat_file(path))
        if mode != "wb":
            self.store.refuse(f"open with mode {mode}", path)
        return _Upload(self.store, self._strip_protocol(path))

    def cat_file(self, path, start=None, end=None, **_options):
        name = self._strip_protocol(path)
        if name not in self.store.objects:
            raise FileNotFoundError(name)
        return self.store.objects[name][start:end]

    def info(self, path, **_options):
        name = self._strip_protocol(path)
        content = self.store.objects.get(name)
        if content is not None:
            return {"name": name, "type": "file", "size": len(content)}
        if self.store.names(f"{name}/"):
            return {"name": name, "type": "directory", "size": 0}
        raise FileNotFoundError(name)

    def ls(self, path, detail=True, **_options):
        name = self._strip_protocol(path)
        below = {f"{name}/{key[len(name) + 1 :].partition('/')[0]}" for key in self.store.names(f"{name}/")}
        found = [self.info(child) for child in sorted(below)] or [self.info(name)]
        return found if detail else [item["name"] for item in found]

    def rm_file(self, path):
        name = self._strip_protocol(path)
        if name not in self.store.objects:
            raise FileNotFoundError(name)
        self.store.remove(name)

    def rm(self, path, recursive=False, maxdepth=None):
        if not recursive:
            return self.rm_file(path)
        name = self._strip_protocol(path)
        keys = [key for key in self.store.names(name) if key == name or key.startswith(f"{name}/")]
        if not keys:
            raise FileNotFoundError(name)
        for key in keys:
            self.store.remove(key)

    def mkdir(self, path, create_parents=True, **_options):
        """There are no folders."""

    def makedirs(self, path, exist_ok=False):
        """There are no folders."""

    def rmdir(self, path):
        """There are no folders."""

    def mv(self, path1, path2, **_options):
        self.store.refuse("rename", path1, path2)

    rename = move = mv_file = cp_file = copy = cp = mv


class _Upload(io.BytesIO):
    """Becomes an object when it is closed."""

    def __init__(self, store: ObjectStore, name: str):
        super().__init__()
        self._store, self._name = store, name

    def close(self):
        if not self.closed:
            self._store.put(self._name, self.getvalue())
        super().close()


class Handler(BaseHTTPRequestHandler):
    """The store as TensorStore sees it."""

    protocol_version = "HTTP/1.1"
    store: ObjectStore

    def do_GET(self):
        bucket, name, query = self._request()
        if not name:
            return self._list(bucket, query)
        with self.store.changing:
            content, generation = self.store.objects.get(f"{bucket}/{name}"), self._generation(f"{bucket}/{name}")
        if content is None:
            return self._answer(404)
        if query.get("ifGenerationNotMatch") == str(generation):
            return self._answer(304)
        if query.get("alt") != "media":
            return self._answer(200, _described(name, content, generation))
        headers, status = {"x-goog-generation": generation}, 200
        if span := self.headers.get("Range"):
            first, last = _span(span, len(content))
            headers["Content-Range"], status = f"bytes {first}-{last}/{len(content)}", 206
            content = content[first : last + 1]
        self._answer(status, content, headers)

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        bucket, name, query = self._request()
        if name or "name" not in query:
            self._answer(400)
            self.store.refuse("rename or copy", self.path)
        key = f"{bucket}/{query['name']}"
        with self.store.changing:
            if "ifGenerationMatch" in query and query["ifGenerationMatch"] != str(self._generation(key)):
                return self._answer(412)
            self.store.put(key, body)
            self._answer(200, _described(query["name"], body, self._generation(key)))

    def do_DELETE(self):
        bucket, name, query = self._request()
        with self.store.changing:
            if f"{bucket}/{name}" not in self.store.objects:
                return self._answer(404)
            if query.get("ifGenerationMatch") not in (None, str(self._generation(f"{bucket}/{name}"))):
                return self._answer(412)
            self.store.remove(f"{bucket}/{name}")
        self._answer(204)

    def log_message(self, *_arguments):
        """Say nothing."""

    def _request(self):
        """Bucket, object and parameters: /storage/v1/b/<bucket>/o/<object>, or /upload/storage/... to write one."""
        address = urlsplit(self.path)
        bucket, _, name = address.path.partition("/b/")[2].partition("/o")
        query = {key: values[0] for key, values in parse_qs(address.query).items()}
        return bucket, unquote(name.removeprefix("/")), query

    def _list(self, bucket, query):
        with self.store.changing:
            names = [name.removeprefix(f"{bucket}/") for name in self.store.names(f"{bucket}/")]
            start, end = query.get("startOffset", ""), query.get("endOffset")
            names = [name for name in names if name >= start and (not end or name < end)]
            names = [name for name in names if name.startswith(query.get("prefix", ""))]
            items = [
                _described(name, self.store.objects[f"{bucket}/{name}"], self._generation(f"{bucket}/{name}"))
                for name in names
            ]
        self._answer(200, {"kind": "storage#objects", "items": items})

    def _generation(self, key):
        return self.store.generations.get(key, 0)

    def _answer(self, status, content=b"", headers=()):
        if isinstance(content, dict):
            content, headers = json.dumps(content).encode(), {"Content-Type": "application/json"}
        self.send_response(status)
        for name, value in dict(headers).items():
            self.send_header(name, str(value))
        if status not in (204, 304):
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if status not in (204, 304):
            self.wfile.write(content)


def _span(header: str, size: int) -> tuple[int, int]:
    """First and last byte that a header `Range` asks for."""
    first, _, last = header.removeprefix("bytes=").partition("-")
    if not first:
        return max(size - int(last), 0), size - 1
    return int(first), min(int(last or size), size - 1)


def _described(name, content, generation):
    """What the JSON interface says of an object."""
    return {"kind": "storage#object", "name": name, "size": str(len(content)), "generation": str(generation)}


@contextmanager
def stored_at_gs(monkeypatch):
    """Everything at gs:// is in a new store; an attempt to rename or to append fails here even if it was caught."""
    store = ObjectStore()
    before = {name: _registry.get(name) for name in FileSystem.protocol}
    system = type("FileSystem", (FileSystem,), {"store": store})
    for name in before:
        fsspec.register_implementation(name, system, clobber=True)
    backend.fsspec_backend._get_filesystem.cache_clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Handler,), {"store": store}))
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    monkeypatch.setenv("TENSORSTORE_GCS_HTTP_URL", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("GOOGLE_AUTH_TOKEN_FOR_TESTING", "none")
    # Orbax asks Google's own client, which we do without, whether the bucket has real folders.
    bucket = SimpleNamespace(hierarchical_namespace_enabled=False)
    client = SimpleNamespace(Client=lambda: SimpleNamespace(get_bucket=lambda _name: bucket))
    monkeypatch.setitem(sys.modules, "google.cloud.storage", client)
    try:
        yield store
    finally:
        server.shutdown()
        server.server_close()
        for name, implementation in before.items():
            _registry.pop(name)
            if implementation is not None:
                fsspec.register_implementation(name, implementation)
        backend.fsspec_backend._get_filesystem.cache_clear()
    assert not store.refused, f"refused: {store.refused}"
    assert not Path("gs:").exists(), "an address was taken for a folder"
