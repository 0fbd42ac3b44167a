"""Shape and type hints of the numerical layers are checked while tests run; the hooks go in before any import."""

import importlib.abc
import importlib.machinery
import sys
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest
import torch
import typer
from hypothesis import HealthCheck, settings
from jaxtyping import install_import_hook

CHECKED = (
    "distill",
    "optimize",
    "pointe",
    "priors.stable_diffusion",
    "priors.text",
    "refine",
    "render.cameras",
    "render.raster",
    "render.view",
    "splats.gaussians",
)
"""Modules and packages whose shape annotations are checked."""


class _Unwrapped(importlib.abc.MetaPathFinder):
    """Keeps the hook away from the rasteriser's kernels, which numba must get as they are written."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != "segdream_cli.render.raster.kernels":
            return None
        return importlib.machinery.PathFinder.find_spec(fullname, path, target)


for module in CHECKED:
    source = Path(__file__).parents[1] / "segdream_cli" / module.replace(".", "/")
    assert source.is_dir() or source.with_suffix(".py").exists(), f"{module} does not exist, so nothing is checked"
install_import_hook([f"segdream_cli.{name}" for name in CHECKED], "beartype.beartype")
sys.meta_path.insert(0, _Unwrapped())

settings.register_profile("segdream", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("segdream")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of CUDA are for machines that have it."""
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture(scope="session", autouse=True)
def command_tree() -> Iterator[None]:
    """Builds Typer's tree of commands once: it takes a tenth of a second, and holds nothing between two commands."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(typer.main, "get_command", cache(typer.main.get_command))
        yield


@pytest.fixture
def other_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of another disk with space, as hints name it."""
    monkeypatch.setattr("segdream_cli.util.files._other_folders", lambda *_, **__: iter([tmp_path]))
    return tmp_path
