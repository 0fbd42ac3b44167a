"""Damaged files of numba's cache are compiled anew, not executed."""

import os
import subprocess
import sys
from pathlib import Path

CODE = """
import random, sys
from pathlib import Path
import numba
import numpy as np
from segdream_cli.render.raster.kernel_cache import compile_kernel
import function

compiled = []
real = numba.core.compiler.Compiler.compile_extra
numba.core.compiler.Compiler.compile_extra = lambda self, *a: compiled.append(1) or real(self, *a)

def run(name):
    compiled.clear()
    kernel = compile_kernel(function.total, "float64(float64[:])", {"nogil": True})
    print(name, len(compiled), kernel(np.arange(5.0)))

run("whole")
draws = random.Random(0)
for suffix in sys.argv[1:]:
    (path,) = Path(numba.config.CACHE_DIR).rglob("*" + suffix)
    content = bytearray(path.read_bytes())
    content[draws.randrange(len(content))] ^= 1 << draws.randrange(7)
    path.write_bytes(content)
    run(suffix)
    run(suffix)
"""
FUNCTION = """
def total(values):
    result = 0.0
    for value in values:
        result += value * value
    return result
"""


def test_compile_kernel_replaces_damaged_files(tmp_path: Path) -> None:
    (tmp_path / "function.py").write_text(FUNCTION)
    root = Path(__file__).resolve().parents[2]
    environment = os.environ | {
        "PYTHONPATH": f"{root}{os.pathsep}{tmp_path}",
        "NUMBA_CACHE_DIR": str(tmp_path / "cache"),
    }

    def run(*damaged: str) -> list[str]:
        command = [sys.executable, "-c", CODE, *damaged]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        return done.stdout.splitlines()

    assert run() == ["whole 1 30.0"]
    suffixes = (".nbi", ".nbc", ".sha256")
    replaced = [f"{suffix} {count} 30.0" for suffix in suffixes for count in (1, 0)]
    assert run(*suffixes) == ["whole 0 30.0", *replaced]  # loaded; each damaged file is compiled anew, then loaded
