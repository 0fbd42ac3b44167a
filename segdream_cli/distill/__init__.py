"""Distillation methods, one file each, behind the interface of `method`.

A new method is a file with a class like `Sctd`, a section of settings in `config/distill.py`, a row of `METHODS`, and
a test file.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from segdream_cli.config import Config
from segdream_cli.config.distill import MethodName
from segdream_cli.distill.cds import Cds
from segdream_cli.distill.csd import Csd
from segdream_cli.distill.gcs import Gcs
from segdream_cli.distill.ism import Ism
from segdream_cli.distill.method import Method
from segdream_cli.distill.sctd import Sctd
from segdream_cli.distill.sds import Sds

METHODS: Mapping[MethodName, Callable[[Config], Method]] = MappingProxyType(
    {"sctd": Sctd, "sds": Sds, "ism": Ism, "cds": Cds, "csd": Csd, "gcs": Gcs}
)
"""Name, as `distill.method` has it, to method."""


def build_method(config: Config) -> Method:
    """The method that a run's settings choose.

    Raises:
        UsageProblem: its settings do not fit together.
    """
    return METHODS[config.distill.method](config)
