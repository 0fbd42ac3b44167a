"""The fuzzer of the readers, on a few damaged files of every format."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import fuzz_readers
import pytest
from mutations import READABLE

from segdream_cli.formats.usd import UNREADABLE

SCRIPT = Path(fuzz_readers.__file__)
USD = {"usdz", "usda"}
OTHERS = set(READABLE) - USD


@pytest.mark.slow
@pytest.mark.parametrize(("formats", "count"), [(OTHERS, 200), (USD, 60)], ids=["others", "usd"])
def test_fuzz_readers_reads_or_refuses_every_file(formats: set[str], count: int, tmp_path: Path) -> None:
    """Some damage is harmless: 8 % (sog) to 33 % of the files are read."""
    command = [sys.executable, str(SCRIPT), "--formats", *sorted(formats)]
    command += ["--count", str(count), "--keep", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = []
    for name, files, read, refused, _, failed, *_ in (line.split() for line in done.stdout.splitlines()[1:]):
        found.append(name)
        assert (files, failed) == (str(count), "0"), done.stderr
        assert int(read) + int(refused) == count
        assert count / 100 < int(read) < count * 0.6, name
    assert sorted(found) == sorted(formats)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def forks() -> Iterator[fuzz_readers.Forks]:
    made = fuzz_readers.Forks()
    yield made
    made.close()


def ask(forks: fuzz_readers.Forks, name: str) -> str:
    return forks(Path(name), Path("a.npz"), 0, 0)


def test_forks_end_a_deadlock(forks: fuzz_readers.Forks, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzz_readers, "USD_SECONDS", 1)
    monkeypatch.setattr(fuzz_readers.usd, "PATIENCE", 1)
    monkeypatch.setattr(fuzz_readers.usd, "_read_here", lambda *_: time.sleep(600))
    assert ask(forks, "a.usdz") == UNREADABLE


def test_forks_read_a_file_again_in_a_fresh_process(forks: fuzz_readers.Forks, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of a process that is worn out, that ends any process, and that raises."""
    seen: list[str] = []  # of one process

    def read_here(path: Path, *_: object) -> str:
        seen.append(path.name)
        if path.name == "crash" or len(seen) > 2:
            os._exit(1)
        return f"{path.name} {1 / len(path.stem):.0f} {len(seen)}"

    monkeypatch.setattr(fuzz_readers.usd, "_read_here", read_here)
    names = ["a", "b", "c", "crash", "d"]
    assert [ask(forks, name) for name in names] == ["a 1 1", "b 1 2", "c 1 1", UNREADABLE, "d 1 1"]
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        ask(forks, "")
