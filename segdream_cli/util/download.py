"""Downloads of single files over HTTP: resumed after an interruption, verified before they get their name."""

import hashlib
import http.client
import json
import os
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from segdream_cli import __version__
from segdream_cli.errors import SegdreamError, WeightsUnavailable
from segdream_cli.util.files import cache_write, existing_folder, parse_json, relocation, synced_folder
from segdream_cli.util.home import expand, user_cache
from segdream_cli.util.text import format_size

Progress = Callable[[int, int], None]
"""Receives the bytes done and the bytes in total."""

TIMEOUT_S = 30.0
"""Timeout in seconds: for the server's first answer, and between two chunks of the file."""
DELAYS_S = (0.5, 2.0, 8.0)
"""Pauses in seconds before further attempts. An attempt that receives a chunk resets the count."""
CHUNK = 2**20

_RETRY_STATUS = (408, 416, 425, 429, 500, 502, 503, 504)


@dataclass(frozen=True, slots=True, kw_only=True)
class _RemoteFile:
    """The complete content that a partial file belongs to."""

    url: str
    etag: str | None
    size: int


class _Interrupted(Exception):
    """The transfer stopped before its end; the partial file stays."""


def cache_folder() -> Path:
    """The cache: $SEGDREAM_CACHE, else `segdream` in $XDG_CACHE_HOME, else in ~/.cache."""
    if own := os.environ.get("SEGDREAM_CACHE"):
        return expand(own).absolute()
    return user_cache() / "segdream"


def format_time(seconds: float) -> str:
    """A duration in seconds or minutes."""
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def describe_download(size: int) -> str:
    """Size and approximate time of a download."""
    return f"{format_size(size)} ({max(1, round(size / 12.5e6))} s at 100 Mbit/s)"


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextmanager
def cache_write_errors(folder: Path) -> Iterator[None]:
    """Turns an operating-system error in the block, which writes the cache `folder`, into `WeightsUnavailable`."""
    try:
        yield
    except WeightsUnavailable:
        raise
    except (OSError, SegdreamError) as problem:
        cause = problem if isinstance(problem, OSError) else problem.__cause__
        if not isinstance(cause, OSError):
            raise
        raise WeightsUnavailable(
            f"{folder} can't be written: {cause.strerror or cause}", hint=relocation("SEGDREAM_CACHE", folder, cause)
        ) from problem


def check_space(folder: Path, size: int, *, variable: str = "SEGDREAM_CACHE") -> None:
    """Refuses a download that is larger than the free space on its disk.

    Args:
        folder: folder to download to; it need not exist yet.
        size: bytes of the download.
        variable: environment variable that selects another folder.

    Raises:
        WeightsUnavailable: fewer than `size` bytes are free.
    """
    existing = existing_folder(folder)
    free = shutil.disk_usage(existing).free
    if free < size:
        raise WeightsUnavailable(
            f"{folder} has {format_size(free)} free, and {format_size(size)} are needed",
            hint=relocation(variable, folder, size=size),
        )


def download(
    url: str,
    target: Path,
    *,
    hint: str,
    size: int | None = None,
    sha256: str | None = None,
    progress: Progress | None = None,
) -> str:
    """Downloads `url` to `target`, which appears only when it is complete and verified.

    An interrupted download leaves `NAME.part` beside the target, and `NAME.part.json`, which describes its content. The
    next call resumes it if the server still has the same content (strong ETag and length). Two processes must not
    download to the same target at once.

    Args:
        url: an http or https address.
        target: file to write; its folder is created.
        hint: hint of the errors.
        size: expected length in bytes, if known.
        sha256: expected hash in hexadecimal, if known.
        progress: receives the bytes done, with those of an earlier call, and the bytes in total.

    Returns:
        SHA-256 of the content, in hexadecimal.

    Raises:
        WeightsUnavailable: the server can't be reached, refuses, or stops too often; length or hash differ from the
            expected ones; the disk is full or can't be written.
    """
    if not url.startswith(("https://", "http://")):
        raise WeightsUnavailable(f"{url!r} is not an http address", hint=hint)
    part = _PartialFile(target, url)
    with cache_write_errors(target.parent):
        target.parent.mkdir(parents=True, exist_ok=True)
        resumed = part.size() > 0
        found = _complete(part, size, hint, progress)
        if sha256 is not None and found != sha256 and resumed:
            part.discard()  # the file may mix two contents
            found = _complete(part, size, hint, progress)
        if sha256 is not None and found != sha256:
            part.discard()
            raise WeightsUnavailable(f"{url} has SHA-256 {found} instead of the expected {sha256}", hint=hint)
        part.finish()
    return found


class _PartialFile:
    """The partial file of a target, and the record of the content that it belongs to."""

    def __init__(self, target: Path, url: str) -> None:
        self.target, self.url = target, url
        self.path = target.with_name(f"{target.name}.part")
        self.record = target.with_name(f"{target.name}.part.json")

    def remote(self) -> _RemoteFile | None:
        """The content that the partial file belongs to; None if it can't be resumed."""
        try:
            remote = _RemoteFile(**parse_json(self.record.read_text(encoding="utf-8")))
            fits = remote.url == self.url and remote.etag is not None and self.path.stat().st_size <= remote.size
        except (OSError, ValueError, TypeError):
            return None
        return remote if fits else None

    def size(self) -> int:
        """Bytes that need not be downloaded again."""
        return self.path.stat().st_size if self.remote() else 0

    def start(self, remote: _RemoteFile) -> None:
        """Removes the partial file and records the content that it will hold."""
        self.discard()
        fields = {"url": remote.url, "etag": remote.etag, "size": remote.size}
        with cache_write(self.record) as temporary:
            temporary.write_text(json.dumps(fields), encoding="utf-8")

    def discard(self) -> None:
        """Removes the partial file and its record."""
        for path in (self.path, self.record):
            path.unlink(missing_ok=True)

    def finish(self) -> None:
        """Renames the complete file to the target."""
        with self.path.open("rb") as stream:
            os.fsync(stream.fileno())
        with synced_folder(self.target.parent):
            self.path.replace(self.target)
        self.record.unlink(missing_ok=True)


def _complete(part: _PartialFile, size: int | None, hint: str, progress: Progress | None) -> str:
    """Downloads until the partial file is complete, with a few further attempts, and returns its SHA-256."""
    failures = 0
    while True:
        before = part.size()
        try:
            _attempt(part, size, hint, progress)
            return file_sha256(part.path)
        except _Interrupted as problem:
            failures = 0 if part.size() >= before + CHUNK else failures + 1
            if failures > len(DELAYS_S):
                raise WeightsUnavailable(f"{part.url} can't be downloaded: {problem}", hint=hint) from problem
            time.sleep(DELAYS_S[max(0, failures - 1)])


def _attempt(part: _PartialFile, size: int | None, hint: str, progress: Progress | None) -> None:
    """Makes one request, for the rest of the file or for all of it."""
    known = part.remote()
    done = part.size()
    if known is not None and done == known.size:
        return
    headers = {"User-Agent": f"segdream/{__version__}"}
    if known is not None and done and known.etag:
        headers |= {"Range": f"bytes={done}-", "If-Range": known.etag}
    with _open(part, headers, hint) as response:
        if response.status == 206:
            if _content_range(response) != (done, known.size if known else None) or _strong_etag(response) != (
                known and known.etag
            ):
                part.discard()
                raise _Interrupted("the server sent another part of the file than the requested one")
            total = known.size if known else 0
        else:
            done, total = 0, _content_length(response, part.url, size, hint)
            part.start(_RemoteFile(url=part.url, etag=_strong_etag(response), size=total))
        check_space(part.path.parent, total - done)
        with part.path.open("ab") as stream:
            _receive(response, stream, done, total, progress)


@contextmanager
def _open(part: _PartialFile, headers: dict[str, str], hint: str) -> Iterator[http.client.HTTPResponse]:
    """Opens the server's answer, of status 200 or 206."""
    try:
        request = urllib.request.Request(part.url, headers=headers)
        response = urllib.request.urlopen(request, timeout=TIMEOUT_S)
    except (ValueError, http.client.InvalidURL) as problem:
        raise WeightsUnavailable(f"{part.url!r} is not an http address: {problem}", hint=hint) from problem
    except urllib.error.HTTPError as problem:
        problem.close()
        if problem.code == 416:  # the file is shorter than the partial one
            part.discard()
        if problem.code in _RETRY_STATUS:
            raise _Interrupted(f"the server answered {problem.code} {problem.reason}") from problem
        raise WeightsUnavailable(f"{part.url} answered {problem.code} {problem.reason}", hint=hint) from problem
    except (OSError, http.client.HTTPException) as problem:
        cause = problem.reason if isinstance(problem, urllib.error.URLError) else problem
        if isinstance(cause, (TimeoutError, ConnectionResetError, http.client.HTTPException)) or part.size():
            raise _Interrupted(_reason(cause)) from problem
        raise WeightsUnavailable(f"{part.url} can't be reached: {_reason(cause)}", hint=hint) from problem
    with response:
        if response.status not in (200, 206):
            raise WeightsUnavailable(f"{part.url} answered {response.status} {response.reason}", hint=hint)
        yield response


def _receive(
    response: http.client.HTTPResponse, stream: BinaryIO, done: int, total: int, progress: Progress | None
) -> None:
    """Appends the body of an answer to the partial file."""
    if progress:
        progress(done, total)
    while done < total:
        try:
            chunk = response.read(min(CHUNK, total - done))
        except (OSError, http.client.HTTPException) as problem:
            raise _Interrupted(f"the connection broke after {done:,} of {total:,} bytes") from problem
        if not chunk:
            raise _Interrupted(f"the connection ended after {done:,} of {total:,} bytes")
        stream.write(chunk)
        done += len(chunk)
        if progress:
            progress(done, total)


def _content_length(response: http.client.HTTPResponse, url: str, size: int | None, hint: str) -> int:
    """The length of the complete file. It must match `size`, and the answer must state it if `size` is None."""
    kind = response.headers.get_content_type()
    if kind == "text/html":
        raise WeightsUnavailable(f"{url} answered with a web page instead of the file", hint=hint)
    stated = response.headers.get("Content-Length")
    length = int(stated) if stated and stated.isdigit() else size
    if length is None:
        raise WeightsUnavailable(f"{url} does not state the length of the file", hint=hint)
    if size is not None and length != size:
        raise WeightsUnavailable(f"{url} has {length:,} bytes instead of the expected {size:,}", hint=hint)
    return length


def _content_range(response: http.client.HTTPResponse) -> tuple[int, int] | None:
    """The first byte and the total length in an answer's Content-Range."""
    unit, _, rest = response.headers.get("Content-Range", "").partition(" ")
    span, _, total = rest.partition("/")
    first = span.partition("-")[0]
    return (int(first), int(total)) if unit == "bytes" and first.isdigit() and total.isdigit() else None


def _strong_etag(response: http.client.HTTPResponse) -> str | None:
    """The strong ETag of an answer; a weak one does not guarantee the same bytes."""
    etag: str | None = response.headers.get("ETag")
    return etag if etag and etag.startswith('"') else None


def _reason(problem: Any) -> str:
    """The message of a network error, without its number."""
    return getattr(problem, "strerror", None) or str(problem) or type(problem).__name__
