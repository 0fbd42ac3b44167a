"""Downloading one file, from a real server on the loopback interface that misbehaves on demand."""

import hashlib
import json
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from file_server import FileServer, running

from segdream_cli.errors import WeightsUnavailable
from segdream_cli.util import download as module
from segdream_cli.util.download import cache_folder, check_space, download

HINT = "type this"
CONTENT = np.random.default_rng(0).bytes(300_000)
OTHER = np.random.default_rng(1).bytes(300_000)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    monkeypatch.setattr(module, "DELAYS_S", (0.0, 0.0, 0.0))
    monkeypatch.setattr(module, "CHUNK", 2**15)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with running() as server:
        server.files["/model.pt"] = CONTENT
        yield server


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "model.pt"


def fetch(server: FileServer, target: Path, **options: Any) -> str:
    return download(f"{server.address}/model.pt", target, hint=HINT, **options)


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def left(target: Path) -> set[str]:
    return {path.name for path in target.parent.glob("*")} if target.parent.is_dir() else set()


def cut(**options: Any) -> Any:
    """An answer of the server's that is not quite what it should be."""
    return lambda handler: handler.send_file(**options)


def page(status: int, text: str = "") -> Any:
    return lambda handler: handler.send_page(status, text)


def refuses(server: FileServer, target: Path, words: str, **options: Any) -> WeightsUnavailable:
    with pytest.raises(WeightsUnavailable, match=words) as caught:
        fetch(server, target, **options)
    assert caught.value.exit_code == 4
    assert not target.exists()
    return caught.value


def test_download_writes_the_file_and_returns_its_hash(server: FileServer, target: Path) -> None:
    told: list[tuple[int, int]] = []
    found = fetch(
        server, target, size=len(CONTENT), sha256=sha256(CONTENT), progress=lambda *report: told.append(report)
    )
    assert target.read_bytes() == CONTENT
    assert found == sha256(CONTENT)
    assert left(target) == {"model.pt"}
    done = [one for one, _ in told]
    assert (done[0], done[-1]) == (0, len(CONTENT))
    assert done == sorted(done)
    assert len(done) > 5
    assert {total for _, total in told} == {len(CONTENT)}


def test_download_resumes_a_broken_connection(server: FileServer, target: Path) -> None:
    server.script = [cut(body=100_000), cut(body=50_000), cut(body=1)]
    told: list[int] = []
    fetch(server, target, progress=lambda done, _: told.append(done))
    assert target.read_bytes() == CONTENT
    assert server.ranges() == [None, "bytes=100000-", "bytes=150000-", "bytes=150001-"]
    assert told == sorted(told)


def test_download_survives_many_breaks_while_the_file_grows(server: FileServer, target: Path) -> None:
    server.script = [cut(body=2**15) for _ in range(8)]
    fetch(server, target)
    assert target.read_bytes() == CONTENT
    assert len(server.requests) == 9


def test_download_keeps_the_partial_file_for_the_next_call(server: FileServer, target: Path) -> None:
    server.script = [cut(body=100_000)] + [cut(body=10) for _ in range(4)]
    error = refuses(server, target, "ended after 100,040 of 300,000 bytes")
    assert error.hint == HINT
    assert left(target) == {"model.pt.part", "model.pt.part.json"}
    server.requests.clear()
    fetch(server, target)
    assert server.ranges() == ["bytes=100040-"]
    assert target.read_bytes() == CONTENT
    assert left(target) == {"model.pt"}


def test_download_retries_a_silent_server(server: FileServer, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TIMEOUT_S", 0.2)
    server.script = [cut(body=100_000, pause=1.0), lambda _: time.sleep(1.0)]
    began = time.monotonic()
    fetch(server, target)
    assert time.monotonic() - began < 0.9
    assert target.read_bytes() == CONTENT
    assert server.ranges() == [None, "bytes=98304-", "bytes=98304-"]


@pytest.mark.parametrize("if_range", [True, False])
def test_download_restarts_if_the_file_changed(server: FileServer, target: Path, if_range: bool) -> None:
    def change(handler: Any) -> None:
        server.files["/model.pt"] = OTHER
        handler.send_file(if_range=if_range)

    server.script = [cut(body=100_000), change]
    fetch(server, target)
    assert target.read_bytes() == OTHER
    assert server.ranges()[1] == "bytes=100000-"


def test_download_restarts_if_the_file_shrank(server: FileServer, target: Path) -> None:
    def shrink(handler: Any) -> None:
        server.files["/model.pt"] = OTHER[:500]
        handler.send_file(if_range=False)

    server.script = [cut(body=100_000), shrink]
    fetch(server, target)
    assert target.read_bytes() == OTHER[:500]
    assert server.ranges() == [None, "bytes=100000-", None]


@pytest.mark.parametrize("first", [{"etag": None}, {"etag": "weak"}])
def test_download_restarts_without_a_strong_etag(server: FileServer, target: Path, first: dict[str, Any]) -> None:
    server.script = [cut(body=100_000, **first)]
    fetch(server, target)
    assert target.read_bytes() == CONTENT
    assert server.ranges() == [None, None]


def test_download_restarts_without_ranges(server: FileServer, target: Path) -> None:
    server.script = [cut(body=100_000, ranges=False), cut(ranges=False)]
    fetch(server, target)
    assert target.read_bytes() == CONTENT
    assert len(server.requests) == 2


def test_download_ignores_a_partial_file_of_another_address(server: FileServer, target: Path) -> None:
    server.files["/other.pt"] = OTHER
    server.script = [cut(body=100_000)] + [cut(body=0) for _ in range(4)]
    refuses(server, target, "ended after")
    server.requests.clear()
    download(f"{server.address}/other.pt", target, hint=HINT)
    assert server.ranges() == [None]
    assert target.read_bytes() == OTHER


@pytest.mark.parametrize("record", ["", "[]", "{}", '{"url": 3}', '{"url": 1, "etag": 2, "size": 3, "more": 4}'])
def test_download_ignores_a_damaged_record(server: FileServer, target: Path, record: str) -> None:
    target.parent.mkdir()
    target.with_name("model.pt.part").write_bytes(OTHER[:1000])
    target.with_name("model.pt.part.json").write_text(record)
    fetch(server, target)
    assert target.read_bytes() == CONTENT
    assert left(target) == {"model.pt"}


def test_download_makes_no_request_for_a_complete_partial_file(server: FileServer, target: Path) -> None:
    target.parent.mkdir()
    target.with_name("model.pt.part").write_bytes(CONTENT)
    fields = {"url": f"{server.address}/model.pt", "etag": '"x"', "size": len(CONTENT)}
    target.with_name("model.pt.part.json").write_text(json.dumps(fields))
    assert fetch(server, target, sha256=sha256(CONTENT)) == sha256(CONTENT)
    assert server.requests == []


@pytest.mark.parametrize("status", [401, 403, 404, 410])
def test_download_fails_at_once_if_the_server_refuses(server: FileServer, target: Path, status: int) -> None:
    server.script = [page(status, "<html>no</html>")]
    error = refuses(server, target, f"model.pt answered {status}")
    assert error.hint == HINT
    assert len(server.requests) == 1
    assert left(target) == set()


def test_download_refuses_a_web_page_with_status_200(server: FileServer, target: Path) -> None:
    server.script = [page(200, "<html>Please sign in</html>")]
    refuses(server, target, "answered with a web page instead of the file")
    assert left(target) == set()


@pytest.mark.parametrize("status", [204, 206])
def test_download_refuses_other_success_codes(server: FileServer, target: Path, status: int) -> None:
    server.script = [page(status) for _ in range(4)]
    refuses(server, target, "answered 204|another part of the file")
    assert left(target) == set()


def test_download_refuses_another_length_before_the_body(server: FileServer, target: Path) -> None:
    told: list[int] = []
    refuses(
        server,
        target,
        "has 300,000 bytes instead of the expected 299,999",
        size=299_999,
        progress=lambda done, _: told.append(done),
    )
    assert told == []
    assert left(target) == set()


def test_download_needs_a_stated_or_known_length(server: FileServer, target: Path) -> None:
    server.script = [cut(length=False)]
    refuses(server, target, "does not state the length")
    server.script = [cut(length=False)]
    fetch(server, target, size=len(CONTENT))
    assert target.read_bytes() == CONTENT


def test_download_retries_a_busy_server_a_few_times(server: FileServer, target: Path) -> None:
    server.script = [page(503), page(429), page(500)]
    fetch(server, target)
    assert target.read_bytes() == CONTENT
    target.unlink()
    server.requests.clear()
    server.script = [page(503) for _ in range(9)]
    refuses(server, target, "can't be downloaded: the server answered 503")
    assert len(server.requests) == 4


def test_download_fails_at_once_without_a_server(
    server: FileServer, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "DELAYS_S", (9.0, 9.0, 9.0))
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/model.pt"
    began = time.monotonic()
    with pytest.raises(WeightsUnavailable, match=r"can't be reached: Connection refused") as caught:
        download(url, target, hint=HINT)
    assert time.monotonic() - began < 2
    assert caught.value.hint == HINT


@pytest.mark.parametrize("url", ["file:///etc/passwd", "nonsense", "", "http://", "http://a b/c", "http://[::1/x"])
def test_download_refuses_other_addresses_than_http(target: Path, url: str) -> None:
    with pytest.raises(WeightsUnavailable, match=r"is not an http address|can't be reached"):
        download(url, target, hint=HINT)
    assert not target.exists()


def test_download_refuses_another_hash(server: FileServer, target: Path) -> None:
    error = refuses(server, target, sha256(CONTENT), sha256=sha256(OTHER))
    assert sha256(OTHER) in error.message
    assert error.hint == HINT
    assert left(target) == set()
    assert len(server.requests) == 1


def test_download_restarts_if_the_partial_file_changed(server: FileServer, target: Path) -> None:
    server.script = [cut(body=100_000)] + [cut(body=0) for _ in range(4)]
    refuses(server, target, "ended after")
    target.with_name("model.pt.part").write_bytes(OTHER[:100_000])
    assert fetch(server, target, sha256=sha256(CONTENT)) == sha256(CONTENT)
    assert target.read_bytes() == CONTENT


def test_download_checks_the_free_space_first(
    server: FileServer, target: Path, other_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=299_999))
    error = refuses(server, target, "300.0 kB free, and 300.0 kB are needed")
    assert f"SEGDREAM_CACHE={other_disk / 'segdream-cache'}" in str(error.hint)
    assert not target.with_name("model.pt.part").exists()


def test_download_needs_space_only_for_the_rest(
    server: FileServer, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.script = [cut(body=100_000)] + [cut(body=0) for _ in range(4)]
    refuses(server, target, "ended after")
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=200_000))
    fetch(server, target)
    assert target.read_bytes() == CONTENT


def test_download_names_a_disk_that_fills_up(
    server: FileServer, target: Path, other_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "_receive", full)
    error = refuses(server, target, "cache can't be written: No space left on device")
    assert f"SEGDREAM_CACHE={other_disk / 'segdream-cache'}" in str(error.hint)
    assert len(server.requests) == 1


def test_download_names_a_cache_that_can_not_be_written(server: FileServer, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    error = refuses(server, tmp_path / "file" / "model.pt", "file can't be written: ")
    assert "SEGDREAM_CACHE=" in str(error.hint)
    assert server.requests == []


def test_check_space_accepts_a_folder_that_does_not_exist_yet(tmp_path: Path, other_disk: Path) -> None:
    check_space(tmp_path / "not" / "yet", 1)
    with pytest.raises(WeightsUnavailable, match="TB are needed") as caught:
        check_space(tmp_path / "not" / "yet", 10**18, variable="HF_HOME")
    assert f"HF_HOME={other_disk / 'segdream-cache'}" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"SEGDREAM_CACHE": "/a/b", "XDG_CACHE_HOME": "/c"}, "/a/b"),
        ({"SEGDREAM_CACHE": "~/b"}, "/home/me/b"),
        ({"SEGDREAM_CACHE": "", "XDG_CACHE_HOME": "/c"}, "/c/segdream"),
        ({"XDG_CACHE_HOME": "relative"}, "/home/me/.cache/segdream"),
        ({"XDG_CACHE_HOME": ""}, "/home/me/.cache/segdream"),
        ({}, "/home/me/.cache/segdream"),
    ],
)
def test_cache_folder_follows_the_environment(
    environment: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SEGDREAM_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"HOME": "/home/me", **environment}.items():
        monkeypatch.setenv(name, value)
    assert cache_folder() == Path(expected)
