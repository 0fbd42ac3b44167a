"""The libraries of the extra "mesh", which nothing else imports."""

from importlib import import_module
from typing import Any

from segdream_cli.errors import EnvironmentProblem

SURFACE = ("skimage.measure", "trimesh", "fast_simplification")
"""For a closed surface."""
UNWRAP, PIECES, DRACO = "xatlas", "coacd", "DracoPy"
"""For texture coordinates, for convex pieces, for compressed files."""


def library(name: str) -> Any:
    """A module of the extra "mesh".

    Raises:
        EnvironmentProblem: it is missing.
    """
    try:
        return import_module(name)
    except ImportError as problem:
        raise EnvironmentProblem(
            f"meshes need the library {name.partition('.')[0]}, which is missing: {problem}",
            hint='pip install "segdream[mesh]"',
        ) from problem


def check_packages(*names: str) -> None:
    """Raises EnvironmentProblem if a library for a closed surface is missing, or one of these."""
    for name in (*SURFACE, *names):
        library(name)
