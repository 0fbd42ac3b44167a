"""`segdream doctor`: reports the machine's software and hardware, and whether it can make assets."""

import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer

from segdream_cli.cli import options as shared
from segdream_cli.cli.command_line import complete_hint
from segdream_cli.cli.fetch import POINT_E
from segdream_cli.cli.next_step import FIRST_ASSET
from segdream_cli.cli.output import Output
from segdream_cli.cli.schema import Finding
from segdream_cli.config import SD21
from segdream_cli.errors import EnvironmentProblem, SegdreamError, WeightsAbsent, WeightsUnavailable
from segdream_cli.util.failures import as_failure

GENERATE = (
    "priors.stable_diffusion",
    "priors.text",
    "optimize.density",
    "optimize.start",
    "render.images",
    "render.raster.kernels",
    "formats.ply",
    "runs.session",
)
"""The modules through which `segdream generate` imports its packages."""
LOW_DISK_GIB = 1.0
DOWNLOADS = SD21, POINT_E
"""Names of the findings about downloaded weights."""


def doctor(
    build_kernels: Annotated[
        bool, typer.Option("--build-kernels", help="Build gsplat's CUDA kernels first, and show the compiler's output.")
    ] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Read downloaded weights again, and compare their hashes.")
    ] = False,
    json: shared.JsonOption = False,
) -> None:
    """Check whether this machine can make assets.

    The exit code is 3 if it can't, and 4 if downloaded weights are damaged.
    """
    sink = Output(json=json)
    if verify:
        from segdream_cli.util.hashes import forget_hashes  # a slow import

        forget_hashes()
    if build_kernels:
        _show_compiler_output(sink)
    findings = []
    for finding in _examine():
        findings.append(finding)
        texts = [f"{finding.state:8} {finding.name:12} {finding.detail}"]
        texts += [f"{'':8} {'':12} hint: {finding.hint}"] if finding.hint else []
        sink.result(finding, *texts)
    if verify and not any(each.name in DOWNLOADS and each.state != "absent" for each in findings):
        sink.note("--verify has no effect: no weights were downloaded")
    broken = [finding.name for finding in findings if finding.state == "problem"]
    if broken:
        raise EnvironmentProblem(f"this machine can't make assets: {', '.join(broken)}; follow the hints above")
    if damaged := [finding.detail for finding in findings if finding.state == "damaged"]:
        raise WeightsUnavailable(f"weights are damaged: {'; '.join(damaged)}")
    sink.suggest(FIRST_ASSET)


def _show_compiler_output(sink: Output) -> None:
    """Makes gsplat show its compiler's output while the check of the rasteriser builds its kernels.

    Raises:
        EnvironmentProblem: there is no CUDA device.
    """
    import torch

    if not torch.cuda.is_available():
        raise EnvironmentProblem("gsplat's kernels need CUDA, and no CUDA device is visible")
    os.environ["VERBOSE"] = "1"  # gsplat's own switch
    sink.note("building gsplat's CUDA kernels, once per torch version: about a minute on 16 cores")


def _examine() -> Iterator[Finding]:
    """The findings of all checks; a check that fails is a problem, which is reported once."""
    reported = set()
    for name, check in CHECKS.items():
        try:
            for finding in check():
                reported.add(finding.detail)
                yield finding
        except Exception as error:
            problem = as_failure(error)
            if problem.message not in reported:
                yield Finding(name, "problem", problem.message, complete_hint(problem))
            reported.add(problem.message)


def _finding_of(name: str, check: Callable[[], str], *, needed: bool = True) -> Finding:
    """Runs a check that returns a detail or raises an error, and returns its finding."""
    try:
        return Finding(name, "ok", check())
    except SegdreamError as problem:
        return Finding(name, "problem" if needed else "absent", problem.message, complete_hint(problem))


def _check_python() -> Iterator[Finding]:
    from segdream_cli import __version__

    fits = (3, 11) <= sys.version_info[:2] < (3, 14)
    yield Finding(
        "python",
        "ok" if fits else "problem",
        f"{platform.python_version()} on {platform.system()} {platform.machine()}, segdream {__version__}",
        None if fits else "python3.11 -m venv .venv",
    )


def _check_packages() -> Iterator[Finding]:
    """Imports the modules that import the packages of `segdream generate`."""
    problems = {}
    for module in GENERATE:
        try:
            import_module(f"segdream_cli.{module}")
        except Exception as error:
            problem = as_failure(error)
            problems[problem.message] = complete_hint(problem)
    yield from (Finding("packages", "problem", message, hint) for message, hint in problems.items())
    if not problems:
        versions = import_module("segdream_cli.runs.run_dir").package_versions()
        yield Finding("packages", "ok", ", ".join(f"{name} {version}" for name, version in versions.items()))


def _check_torch() -> Iterator[Finding]:
    import torch

    from segdream_cli.util.failures import GIB

    yield Finding("torch", "ok", f"{torch.__version__}, {torch.get_num_threads()} threads")
    if not torch.cuda.is_available():
        yield Finding("cuda", "absent", "no device; the CPU is used")
        return
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        name = torch.cuda.get_device_name(index)
        yield Finding("cuda", "ok", f"cuda:{index} {name}, {free / GIB:.1f} of {total / GIB:.1f} GiB free")


def _check_engine() -> Iterator[Finding]:
    """Imports OpenVINO if `prior.engine=auto` would use it."""
    import torch

    from segdream_cli.accel.openvino_engine import INSTALL, choose_engine, has_bf16, import_openvino
    from segdream_cli.config import PriorConfig

    engine, reason = choose_engine(PriorConfig(), torch.device("cpu"), full_size=False)
    if engine == "torch":
        yield Finding("engine", "absent", f"torch computes the U-Net on a CPU: {reason}", INSTALL)
        return
    try:
        import_openvino()
    except ImportError as problem:
        detail = f"torch computes the U-Net on a CPU: OpenVINO can't be imported: {problem}"
        yield Finding("engine", "absent", detail, f"{INSTALL} --force-reinstall")
        return
    precision = "bf16" if has_bf16() else "fp32"
    yield Finding("engine", "ok", f"openvino computes the U-Net on a CPU, in {precision}: {reason}")


def _check_rasterizer() -> Iterator[Finding]:
    """Renders one opaque ball on each kind of device, and checks its middle."""
    import torch

    from segdream_cli.render.cameras import frame_sphere
    from segdream_cli.render.raster import rasterize

    def render_ball(device: str) -> str:
        camera = frame_sphere(torch.zeros(1), torch.zeros(1), 16).to(torch.device(device))
        ones = torch.ones(1, 3, device=device)
        view = rasterize(
            0 * ones,
            torch.eye(4, device=device)[:1],
            0.3 * ones,
            0.9 * ones[:, 0],
            ones,
            camera.viewmats,
            camera.Ks,
            16,
            16,
        )
        middle = float(view.alpha[0, 8, 8, 0])
        if not 0.8 < middle < 0.91:
            raise EnvironmentProblem(
                f"a test image is wrong: alpha is {middle:.3f} in its middle, not 0.9",
                hint="pip install --force-reinstall segdream",
            )
        return "renders a test image"

    yield _finding_of("numba", lambda: render_ball("cpu"))
    if torch.cuda.is_available():
        yield _finding_of("gsplat", lambda: render_ball("cuda"))


def _check_embedded_prior() -> Iterator[Finding]:
    from segdream_cli.config import MINI, PriorConfig
    from segdream_cli.priors.checkpoint import resolve

    def look() -> str:
        checkpoint = resolve(PriorConfig(name=MINI), cuda=False, offline=True, announce=lambda _: None)
        return f"{checkpoint.name}, {checkpoint.digest[:12]}"

    yield _finding_of("prior", look)


def _check_downloaded_prior() -> Iterator[Finding]:
    from segdream_cli.config import PriorConfig
    from segdream_cli.priors.checkpoint import resolve

    def look() -> str:
        checkpoint = resolve(PriorConfig(name=SD21), cuda=False, offline=True, announce=lambda _: None)
        return f"{checkpoint.name} in {checkpoint.folder}"

    yield _finding_of_weights(SD21, look)


def _check_point_e() -> Iterator[Finding]:
    from segdream_cli.pointe.checkpoint import resolve_point_e
    from segdream_cli.pointe.clip import resolve_clip

    def look() -> str:
        folder = resolve_point_e(None, offline=True, announce=lambda _: None).base.parent
        return f"in {folder}, its text encoder in {resolve_clip(None, offline=True, announce=lambda _: None)}"

    yield _finding_of_weights(POINT_E, look)


def _finding_of_weights(name: str, look: Callable[[], str]) -> Finding:
    """The finding about weights that `segdream fetch` downloads by this name: ok, absent or damaged."""
    try:
        return Finding(name, "ok", look())
    except WeightsAbsent as problem:
        return Finding(name, "absent", problem.message.partition(", and")[0], f"segdream fetch {name}")
    except WeightsUnavailable as problem:
        return Finding(name, "damaged", problem.message, complete_hint(problem))


def _check_ffmpeg() -> Iterator[Finding]:
    from segdream_cli.render.video import ffmpeg_version

    yield _finding_of("ffmpeg", ffmpeg_version, needed=False)


def _check_disk() -> Iterator[Finding]:
    from segdream_cli.util.failures import GIB

    free = shutil.disk_usage(Path.cwd()).free / GIB
    low = free < LOW_DISK_GIB
    yield Finding("disk", "low" if low else "ok", f"{free:.1f} GiB free here")


CHECKS: dict[str, Callable[[], Iterator[Finding]]] = {
    "python": _check_python,
    "packages": _check_packages,
    "torch": _check_torch,
    "engine": _check_engine,
    "numba": _check_rasterizer,
    "prior": _check_embedded_prior,
    "downloads": _check_downloaded_prior,
    "point-e": _check_point_e,
    "ffmpeg": _check_ffmpeg,
    "disk": _check_disk,
}
"""Each check, by the name of its finding if it fails unexpectedly."""
