"""Exceptions that no code foresaw, as errors with one sentence."""

import errno
import re
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path
from traceback import walk_tb

from segdream_cli.errors import EnvironmentProblem, Interrupted, OutOfMemory, SegdreamError, UsageProblem
from segdream_cli.util.files import known_problem

NO_MEMORY = (
    "DefaultCPUAllocator",
    "bad_alloc",
    "can't start new thread",
    "Cannot allocate memory",
    "cannot allocate memory",
    "failed to map segment",
)
"""Parts of the messages of libraries that report a failed allocation as another error."""
UNLIMITED = "ulimit -v unlimited"
GIB = 2**30
HOME = __name__.partition(".")[0]
DISTRIBUTIONS = {HOME: "segdream", "PIL": "pillow", "pxr": "usd-core", "skimage": "scikit-image"}
"""Distributions whose name differs from the module's by more than hyphens."""


def address_space_limit() -> int | None:
    """Bytes of address space that this process may have (`ulimit -v`); None without a limit."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    return None if limit == resource.RLIM_INFINITY else limit


def check_address_space(needed_gib: float) -> None:
    """Refuses a limit that is too low for libraries that abort or hang, instead of raising, once they reach it.

    Raises:
        OutOfMemory: this process may have less than `needed_gib`.
    """
    limit = address_space_limit()
    if limit is not None and limit < needed_gib * GIB:
        raise OutOfMemory(
            f"this process may use {limit / GIB:.1f} GiB of address space, and needs {needed_gib:g} GiB", hint=UNLIMITED
        )


@contextmanager
def convert_failures() -> Iterator[None]:
    """Turns each exception of the block into a `SegdreamError`; a request to stop stays as it is."""
    try:
        yield
    except (SegdreamError, Interrupted):
        raise
    except Exception as problem:
        raise as_failure(problem) from problem


def as_failure(problem: Exception) -> SegdreamError:
    """The error with the sentence for any exception."""
    if isinstance(problem, SegdreamError):
        return problem
    if lacks_memory(problem):
        hint = "--set densify.cap=5000" if address_space_limit() is None else UNLIMITED
        return OutOfMemory("this machine does not have enough memory", hint=hint)
    path = problem.filename if isinstance(problem, OSError) else None
    if isinstance(problem, OSError) and path and (known := known_problem(problem, Path(str(path)), "used")):
        return known
    if failed := import_problem(problem):
        return failed
    if isinstance(problem, FileNotFoundError) and path is None and _lacks_current_folder():
        return UsageProblem("the current folder was removed", hint="cd ~  # then run the command again")
    if isinstance(problem, OSError) and problem.strerror:
        return SegdreamError(f"{problem.strerror}: {path}" if path is not None else problem.strerror)
    text = next(iter(str(problem).strip().splitlines()), "")
    return SegdreamError(
        f"unexpected {type(problem).__name__}{': ' if text else ''}{text}",
        hint="export SEGDREAM_DEBUG=1  # then run the command again, which shows where it happened",
    )


def _lacks_current_folder() -> bool:
    """Whether the current folder was removed, so that relative paths lead nowhere."""
    try:
        Path.cwd()
    except FileNotFoundError:
        return True
    return False


def import_problem(problem: Exception) -> EnvironmentProblem | None:
    """The error for a package that is missing or can't be imported; None if an exception is of another kind."""
    root: BaseException = problem
    while root.__cause__ is not None:  # libraries with lazy imports wrap the failure
        root = root.__cause__
    packages = _failed_packages(problem, root)
    if not packages:
        return None
    lacking = str(root.name) if isinstance(root, ModuleNotFoundError) else ""
    if lacking in packages[:1] or _is_required(lacking):
        command = shlex.join(["pip", "install", _requirement(lacking)])
        return EnvironmentProblem(f"the package {_distribution(lacking)} is not installed", hint=command)
    # pip reinstalls the dependencies of a package too, but not the packages that it can do without
    package = next((name for name in reversed(packages) if _is_required(name)), packages[0])
    text = next(iter(str(root).strip().splitlines()), type(root).__name__)
    return EnvironmentProblem(
        f"the package {_distribution(package)} can't be imported: {text}",
        hint=shlex.join(["pip", "install", "--force-reinstall", _requirement(package)]),
    )


def _failed_packages(problem: Exception, root: BaseException) -> list[str]:
    """The top-level modules that import each other, from segdream's own import on; empty if no import failed."""
    imports = _imports(problem)
    importing = bool(imports) and imports[0][1]
    if root is not problem:
        inner = _imports(root)
        importing = importing or any(is_import for _, is_import in inner)
        imports += inner
    packages = [module for index, (module, is_import) in enumerate(imports) if is_import or index == 0]
    if isinstance(root, SyntaxError):
        damaged = _module_of(Path(root.filename or ""))
        return [*packages, damaged] if damaged else []
    if isinstance(root, ImportError):
        return packages or [name.partition(".")[0] for name in [root.name] if name]
    return packages if importing else []


def _imports(problem: BaseException) -> list[tuple[str, bool]]:
    """The modules in a traceback after segdream's last frame, and whether each frame is that of an import."""
    found: list[tuple[str, bool]] = []
    for frame, _ in walk_tb(problem.__traceback__):
        finder = frame.f_code.co_name == "_find_and_load"  # the machinery of Python's import, where it is not cut off
        module = str(frame.f_locals.get("name") if finder else frame.f_globals.get("__name__")).partition(".")[0]
        if module == HOME:
            found.clear()
        elif finder or module not in sys.stdlib_module_names:
            found.append((module, finder or frame.f_code.co_name == "<module>"))
    return found


def _module_of(file: Path) -> str:
    """The top-level module that a source file belongs to; empty if it is none that can be imported."""
    if file.suffix != ".py":
        return ""
    roots = [Path(entry or ".").resolve() for entry in sys.path]
    inside = max((root for root in roots if file.is_relative_to(root)), key=lambda root: len(root.parts), default=None)
    return "" if inside is None else file.relative_to(inside).parts[0].removesuffix(".py")


def _distribution(module: str) -> str:
    return DISTRIBUTIONS.get(module, module.replace("_", "-"))


def _requirement(module: str) -> str:
    """The distribution of a top-level module, with the versions that segdream accepts if it requires it."""
    return _requirements().get(_distribution(module), _distribution(module))


def _is_required(module: str) -> bool:
    return _distribution(module) in _requirements()


def _requirements() -> dict[str, str]:
    """What segdream requires, by distribution; empty if it runs from its source folder."""
    try:
        lines = requires(_distribution(HOME)) or []
    except PackageNotFoundError:
        return {}
    found = [line.partition(";")[0].strip() for line in lines]
    return {_distribution(re.split(r"[^\w.-]", line)[0]): line for line in found}


def lacks_memory(problem: BaseException) -> bool:
    """Whether an exception, or one that led to it, of Python, a library or the system means a failed allocation."""
    if isinstance(problem, MemoryError) or type(problem).__name__ == "OutOfMemoryError":
        return True
    if isinstance(problem, OSError) and problem.errno == errno.ENOMEM:
        return True
    if isinstance(problem, (RuntimeError, ImportError, OSError)) and any(part in str(problem) for part in NO_MEMORY):
        return True
    before = problem.__cause__ or problem.__context__
    return before is not None and lacks_memory(before)
