"""Any exception becomes an error with one sentence and the right exit code."""

import ast
import errno
from pathlib import Path

import pytest
import torch

from segdream_cli.errors import Diverged, EnvironmentProblem, Interrupted, OutOfMemory, SegdreamError
from segdream_cli.util import failures
from segdream_cli.util.failures import as_failure, convert_failures, import_problem


def failing_allocation() -> Exception:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60)
    return caught.value


def caused_by_memory() -> Exception:
    problem = OSError("the library literally cannot be found")
    problem.__context__ = OSError("libllvmlite.so: failed to map segment from shared object")
    return problem


@pytest.mark.parametrize(
    ("problem", "code", "sentence"),
    [
        (MemoryError(), 5, "does not have enough memory"),
        (failing_allocation(), 5, "does not have enough memory"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), 5, "does not have enough memory"),
        (RuntimeError("can't start new thread"), 5, "does not have enough memory"),
        (ImportError("lib.so: failed to map segment from shared object"), 5, "does not have enough memory"),
        (caused_by_memory(), 5, "does not have enough memory"),
        (OSError(errno.ENOSPC, "No space left on device", "a/b.ply"), 1, "the disk is full: a/b.ply"),
        (PermissionError(errno.EACCES, "Permission denied", "a/b.ply"), 1, "Permission denied: a/b.ply"),
        (ZeroDivisionError("float division\nby zero"), 1, "unexpected ZeroDivisionError: float division"),
        (KeyError("step"), 1, "unexpected KeyError: 'step'"),
        (AssertionError(), 1, "unexpected AssertionError"),
    ],
)
def test_as_failure_names_each_kind(problem: Exception, code: int, sentence: str) -> None:
    found = as_failure(problem)
    assert found.exit_code == code
    assert found.message.startswith(sentence) or sentence in found.message
    assert "\n" not in found.message
    assert type(found) is OutOfMemory or code != 5


def test_as_failure_notices_that_the_current_folder_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    (tmp_path / "here").rmdir()
    with pytest.raises(FileNotFoundError) as caught:
        Path("bus.ply").absolute()
    found = as_failure(caught.value)
    assert (found.message, found.exit_code) == ("the current folder was removed", 2)
    monkeypatch.chdir(tmp_path)
    assert as_failure(caught.value).message == "No such file or directory"


@pytest.mark.parametrize("problem", [Diverged("x", index=1), Interrupted("x"), KeyboardInterrupt()])
def test_convert_failures_leaves_known_errors(problem: BaseException) -> None:
    with pytest.raises(type(problem)) as caught, convert_failures():
        raise problem
    assert caught.value is problem


STUBS = {
    "missing": ("import absent_package", "the package absent-package is not installed", "pip install absent-package"),
    "library": (
        "import stub_package",
        "the package stub-package can't be imported: libx.so: cannot open",
        "pip install --force-reinstall 'stub_package>=2'",
    ),
    "dependency": (
        "import stub_needy",
        "the package stub-needy can't be imported: No module named 'absent_part'",
        "pip install --force-reinstall stub-needy",
    ),
    "undeclared": ("import stub_undeclared", "the package numba is not installed", "pip install 'numba>=0.61'"),
    "optional": (
        "import stub_optional",
        "the package stub-package can't be imported: libx.so: cannot open",
        "pip install --force-reinstall 'stub_package>=2'",
    ),
    "syntax": (
        "import stub_syntax",
        "the package stub-syntax can't be imported: '(' was never closed (stub_syntax.py, line 1)",
        "pip install --force-reinstall stub-syntax",
    ),
    "lazy syntax": (
        "import stub_lazy_syntax; stub_lazy_syntax.load()",
        "the package stub-lazy-syntax can't be imported: '(' was never closed (stub_syntax.py, line 1)",
        "pip install --force-reinstall stub-lazy-syntax",
    ),
    "lazy": (
        "import stub_lazy; stub_lazy.load()",
        "the package stub-lazy can't be imported: libx.so: cannot open",
        "pip install --force-reinstall stub-lazy",
    ),
}


@pytest.fixture
def stubs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Packages whose import fails, each in another way."""
    broken = 'raise ImportError("libx.so: cannot open")'
    for name, source in {
        "package": 'raise OSError("libx.so: cannot open")',
        "optional": "import stub_package",
        "lazy_syntax": "def load():\n try:\n  import stub_syntax\n except Exception as e:\n  raise OSError(1) from e",
        "needy": "import absent_part",
        "undeclared": """raise ModuleNotFoundError("No module named 'numba'", name="numba")""",
        "syntax": "broken = (1,",
        "lazy": f"def load():\n try:\n  {broken}\n except ImportError as e:\n  raise RuntimeError('see below') from e",
    }.items():
        (tmp_path / f"stub_{name}.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(
        failures, "requires", lambda _: ["numba>=0.61", "stub_package>=2", "usd-core>=26.3; extra == 'usd'"]
    )


@pytest.mark.parametrize(("statement", "message", "hint"), STUBS.values(), ids=STUBS)
@pytest.mark.usefixtures("stubs")
def test_import_problem_names_what_segdream_imports(statement: str, message: str, hint: str) -> None:
    with pytest.raises(Exception, match=r".") as caught:
        exec(statement, {"__name__": "segdream_cli.formats.sog"})
    found = as_failure(caught.value)
    assert (type(found), found.message, found.hint) == (EnvironmentProblem, message, hint)


def test_import_problem_ignores_errors_at_run_time() -> None:
    with pytest.raises(ValueError, match="shape") as caught:
        torch.zeros(2).numpy().reshape(3)
    assert import_problem(caught.value) is None
    with pytest.raises(SyntaxError) as caught:
        ast.literal_eval("(1,")
    assert import_problem(caught.value) is None


def test_convert_failures_keeps_the_cause() -> None:
    with pytest.raises(SegdreamError) as caught, convert_failures():
        [].pop()
    assert isinstance(caught.value.__cause__, IndexError)
