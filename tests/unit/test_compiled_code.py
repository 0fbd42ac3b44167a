"""Compiled code that one process exports is loaded by another one, which then compiles nothing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from segdream_cli.accel.compiled_code import machine_kind

COMPILE = """
import sys, torch
from pathlib import Path
from segdream_cli.accel.compiled_code import export_code, load_code
from segdream_cli.accel.cuda_graphs import compile_function
from torch._dynamo.utils import counters

def function(x):
    return torch.sin(x) * 3 + x.cos()

code = Path("code")
if code.exists():
    assert load_code(code.read_bytes())
x = torch.linspace(0, 1, 64)
torch.testing.assert_close(compile_function(function)(x), function(x))
if not code.exists():
    code.write_bytes(export_code())
print(counters["inductor"]["fxgraph_cache_miss"], counters["inductor"]["fxgraph_cache_hit"])
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(torch.compiler, "save_cache_artifacts"), reason="this torch exports no code")
def test_exported_code_is_not_compiled_again(tmp_path: Path) -> None:
    counts = []
    for name in ("first", "second"):
        environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / name)}
        command = [sys.executable, "-c", COMPILE]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        counts.append(done.stdout.split())
    assert counts == [["1", "0"], ["0", "1"]]


def test_machine_kind_depends_on_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    before = machine_kind(torch.device("cpu"))
    assert machine_kind(torch.device("cpu")) == before
    monkeypatch.setattr(torch, "__version__", "9.9")
    assert machine_kind(torch.device("cpu")) != before
