"""Streams without readers, full disks, and characters that would change a terminal."""

import io
import os
import sys
from pathlib import Path

import pytest

from segdream_cli.cli.streams import LastingStream, lasting_streams
from segdream_cli.util.text import printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("ein süßer Bus, 日本 🚌👨‍👩‍👧", "ein süßer Bus, 日本 🚌👨‍👩‍👧"),
        ("a\x1b[31mred\x07", r"a\x1b[31mred\x07"),
        ("bus.ply\nerror: none", r"bus.ply\nerror: none"),
        ("gpj.\u202eexe\u2066\u200f", r"gpj.\u202eexe\u2066\u200f"),
        ("a\udc9bb", r"a\udc9bb"),
        ("a\x9bb\x7f\u2028", r"a\x9bb\x7f\u2028"),
    ],
)
def test_printable_escapes_what_changes_a_terminal(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_lasting_stream_ignores_a_reader_that_left() -> None:
    reading, writing = os.pipe()
    stream = LastingStream(os.fdopen(writing, "w"))
    stream.write("kept\n")
    stream.flush()
    assert os.read(reading, 9) == b"kept\n"
    os.close(reading)
    for _ in range(2):
        stream.write("lost\n" * 100_000)
        stream.flush()
    assert stream.failure is None
    stream.close()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_lasting_stream_keeps_the_error_of_a_full_disk() -> None:
    with Path("/dev/full").open("w") as full:
        stream = LastingStream(full)
        stream.write("lost\n")
        stream.flush()
        assert stream.failure is not None
        assert stream.failure.strerror == "No space left on device"


def test_lasting_streams_replaces_missing_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with lasting_streams():
        sys.stdout.write("nobody hears this")
