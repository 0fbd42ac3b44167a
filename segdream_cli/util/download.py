"""One file over HTTP: resumed where it stopped, verified before it appears under its name."""

import hashlib
import http.client
import json
import os
import shlex
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
from segdream_cli.util.files import replacing

Progress = Callable[[int, int], None]
"""Receives the bytes done and the bytes in all."""

TIMEOUT_S = 30.0
"""Longest silence of a server: to the first answer, and between two pieces of the file."""
DELAYS_S = (0.5, 2.0, 8.0)
"""Pauses before another attempt. A new piece of the file starts the count anew."""
PIECE = 2**20

_AGAIN = (408, 416, 425, 429, 500, 502, 503, 504)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Remote:
    """Which content of which address a partial file belongs to."""

    url: str
    etag: str | None
    size: int


class _Interrupted(Exception):
    """The transfer stopped before its end; what has come may be kept."""


def cache_folder() -> Path:
    """Where downloads are kept: $SEGDREAM_CACHE, or segdream in $XDG_CACHE_HOME, or in ~/.cache."""
    if own := os.environ.get("SEGDREAM_CACHE"):
        return Path(own).expanduser().absolute()
    platform = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    return (platform if platform.is_absolute() else Path("~/.cache").expanduser()) / "segdream"


def size_in_words(size: int) -> str:
    """A number of bytes as a person reads it."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def download_in_words(size: int) -> str:
    """A download's size and time."""
    return f"{size_in_words(size)} ({max(1, round(size / 12.5e6))} s at 100 Mbit/s)"


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextmanager
def cache_write_errors(folder: Path) -> Iterator[None]:
    """Turns an operating-system failure while the cache `folder` is written into `WeightsUnavailable`."""
    try:
        yield
    except WeightsUnavailable:
        raise
    except (OSError, SegdreamError) as problem:
        cause = problem if isinstance(problem, OSError) else problem.__cause__
        if not isinstance(cause, OSError):
            raise
        raise WeightsUnavailable(
            f"{folder} can't be written: {cause.strerror or cause}", hint="SEGDREAM_CACHE=/a/larger/disk segdream ..."
        ) from problem


def check_space(folder: Path, size: int, *, variable: str = "SEGDREAM_CACHE") -> None:
    """Refuses a download that the disk of `folder`, which need not exist yet, has no room for.

    Args:
        folder: where it is to go.
        size: bytes.
        variable: environment variable that chooses another folder.

    Raises:
        WeightsUnavailable: fewer than `size` bytes are free.
    """
    there = next(path for path in (folder, *folder.absolute().parents) if path.is_dir())
    free = shutil.disk_usage(there).free
    if free < size:
        raise WeightsUnavailable(
            f"{folder} has {size_in_words(free)} free, and {size_in_words(size)} are needed",
            hint=f"df -h {shlex.quote(str(there))}, or {variable}=/a/larger/disk segdream ...",
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
    """Downloads `url` to `target`, which appears only when whole and verified.

    What has come stays in `NAME.part` beside the target, with the content it belongs to in `NAME.part.json`. The next
    call goes on from there if the server still has that content (its strong ETag and its length). Two processes must
    not download to the same target at once.

    Args:
        url: an http or https address.
        target: file to write; its folder is made.
        hint: what to type if the file can't be had.
        size: length in bytes, where it is known beforehand.
        sha256: hash in hexadecimal, where it is known beforehand.
        progress: receives the bytes done, those of an earlier call included, and the bytes in all.

    Returns:
        SHA-256 of the content, in hexadecimal.

    Raises:
        WeightsUnavailable: the address is out of reach, answers with something else, or stops too often; the length or
            the hash is another; the disk is full or can't be written.
    """
    if not url.startswith(("https://", "http://")):
        raise WeightsUnavailable(f"{url!r} is not an http address", hint=hint)
    part = _Part(target, url)
    with cache_write_errors(target.parent):
        target.parent.mkdir(parents=True, exist_ok=True)
        resumed = part.done() > 0
        found = _whole(part, size, hint, progress)
        if sha256 is not None and found != sha256 and resumed:
            part.discard()  # it may be two contents in one
            found = _whole(part, size, hint, progress)
        if sha256 is not None and found != sha256:
            part.discard()
            raise WeightsUnavailable(f"{url} has SHA-256 {found}, and not the expected {sha256}", hint=hint)
        part.finish()
    return found


class _Part:
    """The partial file of a target, and what it is a part of."""

    def __init__(self, target: Path, url: str) -> None:
        self.target, self.url = target, url
        self.path = target.with_name(f"{target.name}.part")
        self.record = target.with_name(f"{target.name}.part.json")

    def remote(self) -> _Remote | None:
        """What the partial file is a part of, if it can be gone on with."""
        try:
            remote = _Remote(**json.loads(self.record.read_text(encoding="utf-8")))
            fits = remote.url == self.url and remote.etag is not None and self.path.stat().st_size <= remote.size
        except (OSError, ValueError, TypeError):
            return None
        return remote if fits else None

    def done(self) -> int:
        """Bytes that need not be fetched again."""
        return self.path.stat().st_size if self.remote() else 0

    def start(self, remote: _Remote) -> None:
        """Empties the partial file and notes what it will hold."""
        self.discard()
        fields = {"url": remote.url, "etag": remote.etag, "size": remote.size}
        with replacing(self.record) as temporary:
            temporary.write_text(json.dumps(fields), encoding="utf-8")

    def discard(self) -> None:
        """Removes what has come."""
        for path in (self.path, self.record):
            path.unlink(missing_ok=True)

    def finish(self) -> None:
        """Gives the whole file its name."""
        with self.path.open("rb") as stream:
            os.fsync(stream.fileno())
        self.path.replace(self.target)
        self.record.unlink(missing_ok=True)


def _whole(part: _Part, size: int | None, hint: str, progress: Progress | None) -> str:
    """Fetches until the partial file is whole, with a few further attempts, and returns its SHA-256."""
    failures = 0
    while True:
        before = part.done()
        try:
            _attempt(part, size, hint, progress)
            return file_sha256(part.path)
        except _Interrupted as problem:
            failures = 0 if part.done() >= before + PIECE else failures + 1
            if failures > len(DELAYS_S):
                raise WeightsUnavailable(f"{part.url} can't be downloaded: {problem}", hint=hint) from problem
            time.sleep(DELAYS_S[max(0, failures - 1)])


def _attempt(part: _Part, size: int | None, hint: str, progress: Progress | None) -> None:
    """One request: what is missing of the file, or all of it."""
    known = part.remote()
    done = part.done()
    if known is not None and done == known.size:
        return
    headers = {"User-Agent": f"segdream/{__version__}"}
    if known is not None and done and known.etag:
        headers |= {"Range": f"bytes={done}-", "If-Range": known.etag}
    with _answer(part, headers, hint) as response:
        if response.status == 206:
            if _range(response) != (done, known.size if known else None) or _etag(response) != (known and known.etag):
                part.discard()
                raise _Interrupted("the server sent another part of the file than it was asked for")
            total = known.size if known else 0
        else:
            done, total = 0, _length(response, part.url, size, hint)
            part.start(_Remote(url=part.url, etag=_etag(response), size=total))
        check_space(part.path.parent, total - done)
        with part.path.open("ab") as stream:
            _receive(response, stream, done, total, progress)


@contextmanager
def _answer(part: _Part, headers: dict[str, str], hint: str) -> Iterator[http.client.HTTPResponse]:
    """The server's answer with status 200 or 206."""
    try:
        request = urllib.request.Request(part.url, headers=headers)
        response = urllib.request.urlopen(request, timeout=TIMEOUT_S)
    except (ValueError, http.client.InvalidURL) as problem:
        raise WeightsUnavailable(f"{part.url!r} is not an http address: {problem}", hint=hint) from problem
    except urllib.error.HTTPError as problem:
        problem.close()
        if problem.code == 416:  # the file is shorter than the part
            part.discard()
        if problem.code in _AGAIN:
            raise _Interrupted(f"the server answered {problem.code} {problem.reason}") from problem
        raise WeightsUnavailable(f"{part.url} answered {problem.code} {problem.reason}", hint=hint) from problem
    except (OSError, http.client.HTTPException) as problem:
        reason = problem.reason if isinstance(problem, urllib.error.URLError) else problem
        if isinstance(reason, (TimeoutError, ConnectionResetError, http.client.HTTPException)) or part.done():
            raise _Interrupted(_said(reason)) from problem
        raise WeightsUnavailable(f"{part.url} is out of reach: {_said(reason)}", hint=hint) from problem
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
            piece = response.read(min(PIECE, total - done))
        except (OSError, http.client.HTTPException) as problem:
            raise _Interrupted(f"the connection broke after {done:,} of {total:,} bytes") from problem
        if not piece:
            raise _Interrupted(f"the connection ended after {done:,} of {total:,} bytes")
        stream.write(piece)
        done += len(piece)
        if progress:
            progress(done, total)


def _length(response: http.client.HTTPResponse, url: str, size: int | None, hint: str) -> int:
    """The length of the whole file, which the answer must state and which must be the expected one."""
    kind = response.headers.get_content_type()
    if kind == "text/html":
        raise WeightsUnavailable(f"{url} gave a web page in place of the file", hint=hint)
    stated = response.headers.get("Content-Length")
    length = int(stated) if stated and stated.isdigit() else size
    if length is None:
        raise WeightsUnavailable(f"{url} does not say how long the file is", hint=hint)
    if size is not None and length != size:
        raise WeightsUnavailable(f"{url} has {length:,} bytes, and not the expected {size:,}", hint=hint)
    return length


def _range(response: http.client.HTTPResponse) -> tuple[int, int] | None:
    """The first byte and the whole file's length, out of an answer's Content-Range."""
    unit, _, rest = response.headers.get("Content-Range", "").partition(" ")
    span, _, total = rest.partition("/")
    first = span.partition("-")[0]
    return (int(first), int(total)) if unit == "bytes" and first.isdigit() and total.isdigit() else None


def _etag(response: http.client.HTTPResponse) -> str | None:
    """The strong ETag of an answer; a weak one does not promise the same bytes."""
    etag: str | None = response.headers.get("ETag")
    return etag if etag and etag.startswith('"') else None


def _said(problem: Any) -> str:
    """What a network failure says, without its number."""
    return getattr(problem, "strerror", None) or str(problem) or type(problem).__name__
