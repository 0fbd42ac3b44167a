"""A loopback server that answers as the Hugging Face Hub does."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REFUSALS: dict[str, tuple[int, dict[str, str]]] = {
    "org/gone": (404, {"X-Error-Code": "RepoNotFound"}),
    "org/gated": (403, {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access to model org/gated is restricted"}),
    "org/token": (401, {"X-Error-Message": "Invalid credentials in Authorization header"}),
    "org/down": (503, {}),
}


class Hub(BaseHTTPRequestHandler):
    """Serves the folders in `models`, refuses the rest."""

    models: dict[str, Path]
    requests: list[str]

    def do_GET(self) -> None:
        self.requests.append(f"{self.command} {self.path}")
        path, _, _ = self.path.partition("?")
        parts = path.strip("/").split("/")
        api = parts[:2] == ["api", "models"]
        name, rest = ("/".join(parts[2:4]), parts[4:]) if api else ("/".join(parts[:2]), parts[2:])
        if name in REFUSALS:
            status, headers = REFUSALS[name]
            return self._answer(status, b"{}", headers)
        if rest[:1] == ["revision"] and rest[1] not in ("main", COMMIT):
            return self._answer(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        folder = self.models.get(name)
        if folder is None:  # the client asks for more than models
            return self._answer(404, b"{}")
        if api:
            return self._answer(200, json.dumps(self._listing(name, folder, rest)).encode())
        file = folder.joinpath(*rest[2:])
        return self._answer(200, file.read_bytes(), {"ETag": f'"{_oid(file)}"', "X-Repo-Commit": COMMIT})

    do_HEAD = do_GET

    def _listing(self, name: str, folder: Path, rest: list[str]) -> Any:
        files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        if rest[:1] == ["tree"]:
            return [_entry(folder, path) for path in files]
        siblings = [{"rfilename": path.relative_to(folder).as_posix()} for path in files]
        return {"id": name, "modelId": name, "sha": COMMIT, "siblings": siblings, "private": False}

    def _answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


def _oid(path: Path) -> str:
    """The name of a file's content: SHA-256 for large files, Git's SHA-1 for others."""
    content = path.read_bytes()
    if path.suffix == ".safetensors":
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _entry(folder: Path, path: Path) -> dict[str, Any]:
    entry = {
        "type": "file",
        "path": path.relative_to(folder).as_posix(),
        "size": path.stat().st_size,
        "oid": _oid(path),
    }
    if path.suffix == ".safetensors":
        entry["lfs"] = {"oid": _oid(path), "size": path.stat().st_size, "pointerSize": 130}
    return entry


@contextmanager
def serving(models: dict[str, Path]) -> Iterator[tuple[type[Hub], str]]:
    """Serves model names as folders while the block runs; yields the handler's class and the address."""
    handler = type("Handler", (Hub,), {"models": models, "requests": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield handler, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def point_to(endpoint: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Points the Hub's client to an address and a cache of its own, and segdream to a cache beside that."""
    monkeypatch.setenv("SEGDREAM_CACHE", str(cache.with_name("cache")))
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}")
