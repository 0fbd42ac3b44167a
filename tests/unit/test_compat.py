"""Private interfaces of other libraries: each must be there and do what `util/compat.py` uses it for."""

import importlib
import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch

from segdream_cli.accel.cuda_graphs import RECOMPUTE_OPTIONS
from segdream_cli.util import compat

CHECKED = {"torch": "2.13.0", "gsplat": "1.5.3", "huggingface_hub": "2.4.0", "typer": "0.29.2", "ray": "2.60.0"}
"""The versions that the private interfaces were checked with."""


def versions(library: str) -> str:
    """What to compare when an interface is gone."""
    return f"{library} {version(library)} is installed, util/compat.py was checked with {CHECKED[library]}"


def private(library: str, module: str, *names: str) -> Any:
    """A module of a library, or a failure that names the interface and the version that had it."""
    try:
        found = importlib.import_module(module)
    except ImportError as problem:
        pytest.fail(f"{module} can't be imported ({problem}): {versions(library)}")
    for name in names:
        if not hasattr(found, name):
            pytest.fail(f"{module}.{name} is gone: {versions(library)}")
    return found


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")  # the compiler's own imports
def test_filter_compiler_options_are_attributes_of_the_inductor_config() -> None:
    private("torch", "torch._inductor.config", *RECOMPUTE_OPTIONS)
    assert compat.filter_compiler_options(RECOMPUTE_OPTIONS | {"no_such_option": 1}) == RECOMPUTE_OPTIONS


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
def test_cache_custom_autograd_functions_sets_the_functorch_option(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "autograd_cache_allow_custom_autograd_functions"
    config = private("torch", "torch._functorch.config")
    if torch.__version__ < CHECKED["torch"] and not hasattr(config, name):
        compat.cache_custom_autograd_functions()  # old versions have no such option, and none is made up
        assert not hasattr(config, name)
        return
    private("torch", "torch._functorch.config", name)
    monkeypatch.setattr(config, name, False)
    compat.cache_custom_autograd_functions()
    assert getattr(config, name) is True


def test_has_triton_is_torchs_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    module = private("torch", "torch.utils._triton", "has_triton")
    assert isinstance(compat.has_triton(), bool)
    for answer in (True, False):
        monkeypatch.setattr(module, "has_triton", lambda answer=answer: answer)
        assert compat.has_triton() is answer


def test_adam_takes_the_step_of_the_optimizer() -> None:
    private("torch", "torch.optim.adam", "adam")
    parameter, twin = (torch.nn.Parameter(torch.tensor([1.0, -2.0])) for _ in range(2))
    gradient = torch.tensor([0.5, 3.0])
    twin.grad = gradient.clone()
    torch.optim.Adam([twin], lr=0.1).step()
    moments = [torch.zeros(2)], [torch.zeros(2)]
    with torch.no_grad():
        compat.adam(
            [parameter],
            [gradient],
            *moments,
            [],
            [torch.zeros(())],
            foreach=False,
            fused=False,
            found_inf=None,
            amsgrad=False,
            beta1=0.9,
            beta2=0.999,
            lr=0.1,
            weight_decay=0.0,
            eps=1e-8,
            maximize=False,
        )
    torch.testing.assert_close(parameter, twin)


def test_numba_cache_names_the_files_of_a_kernel() -> None:
    private("numba", "numba.core.caching", "FunctionCache")
    kernels = importlib.import_module("segdream_cli.render.raster.kernels")
    folder, stem = compat.numba_cache(kernels.project.py_func)
    assert list(folder.glob(f"{stem}.nbi")), versions("numba")
    assert list(folder.glob(f"{stem}.*.nbc")), versions("numba")


@pytest.mark.gpu
def test_gsplat_kernels_are_built_on_cuda() -> None:
    private("gsplat", "gsplat.cuda._backend", "_C")
    assert compat.gsplat_kernels() is not None


def test_gsplat_kernels_are_a_name_of_the_backend() -> None:
    """Read, not imported: without CUDA the import fails, each compiler in its own way."""
    backend = Path(str(importlib.import_module("gsplat").__file__)).parent / "cuda" / "_backend.py"
    assert backend.is_file(), versions("gsplat")
    assert re.search(r"^\s*_C = ", backend.read_text(encoding="utf-8"), re.MULTILINE), versions("gsplat")


def test_hub_utils_have_a_bar_and_its_switches() -> None:
    names = "tqdm", "are_progress_bars_disabled", "disable_progress_bars", "enable_progress_bars"
    private("huggingface_hub", "huggingface_hub.utils", *names)
    utils = compat.hub_utils()
    before = utils.are_progress_bars_disabled()
    utils.disable_progress_bars()
    assert utils.are_progress_bars_disabled()
    utils.enable_progress_bars()
    assert not utils.are_progress_bars_disabled()
    if before:
        utils.disable_progress_bars()
    with utils.tqdm(total=3, unit="B", disable=True) as bar:
        bar.n += 1
    assert bar.n == 1


def test_silence_ray_keeps_lines_of_a_raylet_off_stdout(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = pytest.importorskip("ray._private.worker", reason='the extra "cluster" is not installed')
    line = {"lines": ["a line of a raylet"], "pid": "raylet", "is_err": False}
    monkeypatch.setattr(worker, "_worker_logs_enabled", True)  # an earlier test may have silenced it
    worker.print_to_stdstream(line, ignore_prefix=False)
    assert "a line of a raylet" in capsys.readouterr().out, versions("ray")
    compat.silence_ray()
    worker.print_to_stdstream({**line, "lines": ["another one"]}, ignore_prefix=False)
    assert capsys.readouterr().out == "", versions("ray")


def test_usage_error_covers_bad_values_and_unknown_options() -> None:
    typer = importlib.import_module("typer")
    error = compat.usage_error(typer.BadParameter)
    assert issubclass(typer.BadParameter, error), versions("typer")
    assert error not in (Exception, object), versions("typer")
    assert hasattr(error("it is wrong"), "format_message"), versions("typer")
    application = typer.Typer()
    application.command()(lambda: None)
    with pytest.raises(error):
        application(args=["--no-such-option"], standalone_mode=False)
