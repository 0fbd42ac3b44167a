"""Reads files that atheris makes, guided by the coverage of our readers; Python 3.11, not among the dependencies.

python -m venv /tmp/atheris && /tmp/atheris/bin/pip install atheris numpy pillow plyfile zstandard
PYTHONPATH=. /tmp/atheris/bin/python tests/fuzz/fuzz_atheris.py FORMAT [-max_total_time=120]

It starts from the files of `mutations.py`; further options are libFuzzer's. A file must be read or refused as
`UsageProblem`: anything else ends the run with the file that caused it.
"""

import sys
import tempfile
import warnings
from contextlib import suppress
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["segdream_cli"]):
    from segdream_cli import formats
    from segdream_cli.errors import UsageProblem
    from segdream_cli.formats import compressed, glb, ksplat, ply, points, sog, splat, spz  # noqa: F401

from mutations import reading_of, seeds, suffix_of

LONGEST = 1 << 16
"""Bytes of a file."""


def main() -> None:
    """Runs until libFuzzer ends the process."""
    name = sys.argv.pop(1)
    warnings.simplefilter("error")
    folder = Path(tempfile.mkdtemp(prefix="atheris-"))
    corpus, path = folder / "corpus", folder / f"fuzzed{suffix_of(name)}"
    corpus.mkdir()
    for number, content in enumerate(seeds(name)):
        (corpus / str(number)).write_bytes(content)

    def read(data: bytes) -> None:
        path.write_bytes(data)
        with suppress(UsageProblem):
            formats.read(path, reading_of(name))

    atheris.Setup([*sys.argv, f"-max_len={LONGEST}", str(corpus)], read)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
