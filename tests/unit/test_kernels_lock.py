"""One process at a time builds gsplat's kernels; a package of the same names stands in for gsplat."""

import logging
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from filelock import FileLock, Timeout

from segdream_cli.errors import EnvironmentProblem
from segdream_cli.render.raster import cuda


def found() -> None:
    """gsplat's entry point."""


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SEGDREAM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(sys.modules, "gsplat.cuda", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "gsplat.cuda._backend", SimpleNamespace(_C="kernels"))
    return tmp_path / "cache"


def load(monkeypatch: pytest.MonkeyPatch, rasterization: Callable[[], Any]) -> Callable[..., Any]:
    """What `load_kernels` finds where importing gsplat's entry point calls a function."""

    class Package:
        @property
        def rasterization(self) -> Any:
            return rasterization()

    monkeypatch.setitem(sys.modules, "gsplat", Package())
    return cuda.load_kernels.__wrapped__()


def test_load_kernels_holds_a_lock_in_the_cache(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    lock = FileLock(cache / "gsplat.lock")

    def build() -> Callable[..., Any]:
        with pytest.raises(Timeout):
            lock.acquire(timeout=0)
        sys.stdout.write("ninja: no work to do\n")
        return found

    assert load(monkeypatch, build) is found
    assert capfd.readouterr() == ("", "ninja: no work to do\n")  # stdout is for results, and nobody waits
    lock.acquire(timeout=0)


def test_load_kernels_warns_while_another_process_builds(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.mkdir()
    other = FileLock(cache / "gsplat.lock")
    other.acquire(timeout=0)
    said: list[str] = []

    class Waiting(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage())
            other.release()  # the build ends as soon as somebody waits for it

    handler = Waiting()
    logging.getLogger("segdream_cli").addHandler(handler)
    try:
        assert load(monkeypatch, lambda: found) is found
    finally:
        logging.getLogger("segdream_cli").removeHandler(handler)
    (line,) = said
    assert line.startswith("waiting for another process")


def test_load_kernels_names_a_cache_that_can_not_be_written(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.write_text("in the way")
    with pytest.raises(EnvironmentProblem, match="cache can't be written") as caught:
        load(monkeypatch, lambda: pytest.fail("it is loaded without a lock"))
    assert "SEGDREAM_CACHE" in str(caught.value.hint)
    cache.unlink()
    (cache / "gsplat.lock").mkdir(parents=True)
    with pytest.raises(EnvironmentProblem, match="cache can't be written"):
        load(monkeypatch, lambda: pytest.fail("it is loaded without a lock"))


def test_load_kernels_releases_the_lock_if_the_build_fails(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise OSError("cannot open shared object file")

    with pytest.raises(EnvironmentProblem, match="can't be built or loaded: cannot open shared"):
        load(monkeypatch, fail)
    FileLock(cache / "gsplat.lock").acquire(timeout=0)
