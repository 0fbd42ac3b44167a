"""The fuzzer of the readers, on a few damaged files of every format."""

import subprocess
import sys
import time
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


def test_read_in_fork_ends_a_deadlock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzz_readers, "USD_SECONDS", 1)
    monkeypatch.setattr(fuzz_readers.usd, "PATIENCE", 1)
    monkeypatch.setattr(fuzz_readers.usd, "_read_here", lambda *_: time.sleep(600))
    assert fuzz_readers.read_in_fork(tmp_path / "a.usdz", tmp_path / "a.npz", 0, 0) == UNREADABLE
