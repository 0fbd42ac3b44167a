"""Damaged files of numba's cache are compiled anew, not executed."""

import os
import random
import subprocess
import sys
from pathlib import Path

CODE = """
import numba
compiled = []
real = numba.core.compiler.Compiler.compile_extra
numba.core.compiler.Compiler.compile_extra = lambda self, *a: compiled.append(1) or real(self, *a)
from segdream_cli.render.raster.kernel_cache import compile_kernel
import function
kernel = compile_kernel(function.total, "float64(float64[:])", {"nogil": True})
import numpy as np
print(len(compiled), kernel(np.arange(5.0)))
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

    def run() -> str:
        done = subprocess.run([sys.executable, "-c", CODE], env=environment, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    assert run() == "1 30.0"
    assert run() == "0 30.0"  # loaded
    draws = random.Random(0)
    for suffix in (".nbi", ".nbc", ".sha256"):
        (path,) = (tmp_path / "cache").rglob(f"*{suffix}")
        content = bytearray(path.read_bytes())
        content[draws.randrange(len(content))] ^= 1 << draws.randrange(7)
        path.write_bytes(content)
        assert run() == "1 30.0", suffix
        assert run() == "0 30.0", suffix
