"""OpenUSD's `ParticleField3DGaussianSplat` (26.03 and later) in a package or a layer, with Pixar's own library.

The stage is y up like the inner frame. Scales and opacities are stored after their activations; the spherical
harmonics are stored per Gaussian, degree 0 first. The library is the extra "usd", and is imported here only.
"""

import io
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Mapping, Sized
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from segdream_cli import __version__
from segdream_cli.errors import EnvironmentProblem, SegdreamError, UsageProblem
from segdream_cli.formats.common import (
    DEFAULT,
    ZIP_ERRORS,
    Reading,
    escapes_archive,
    finish,
    open_asset,
    require_finite,
    to_log_scales,
    to_opacity_logits,
)
from segdream_cli.splats import Float32s, Float64s, Splats, concat, sanitize
from segdream_cli.splats.frames import INNER
from segdream_cli.splats.transform import transform
from segdream_cli.util.files import atomic_write, parse_json, relocation, scratch_space

SCHEMA = "ParticleField3DGaussianSplat"
COEFFICIENTS = (1, 4, 9, 16)
"""Spherical harmonics of each degree and those below."""
PROVENANCE = "segdream"
EARLIEST = 365 * 10 * 86400 + 7 * 86400
"""Seconds; a few days into 1980, where a zip's dates begin."""
MEMORY, SECONDS = 2 << 30, 30
"""Bytes and seconds of processor time that reading a file may take; a large file gets more."""
PATIENCE = 10
"""Factor from processor time to the time-out by the clock, for busy machines."""
LAYERS = {b"PK\x03\x04": ".usdz", b"PXR-USDC": ".usdc", b"#usda ": ".usda"}
"""Start of a file -> the suffix by which the library chooses its reader."""
UNREADABLE = "is damaged: the library could not read it"
Z_UP = np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]])
"""Rotation of a z-up stage into the inner frame."""


def write(path: Path, splats: Splats) -> None:
    """Writes one prim with float attributes, 56 bytes per Gaussian, 236 with spherical harmonics of degree 3.

    Clamps as in `ply.write`. Provenance goes into the layer's custom data as JSON.

    Raises:
        EnvironmentProblem: the extra "usd" is not installed.
        SegdreamError: there are no Gaussians, some are not finite, or the disk is full.
        UsageProblem: the folder can't be written.
    """
    require_finite(splats)
    pxr = _Pxr.load()
    with scratch_space() as folder:
        layer, package = folder / "asset.usdc", folder / "asset.usdz"
        try:
            _fill(pxr, pxr.Usd.Stage.CreateNew(str(layer)), sanitize(splats))
            os.utime(layer, (EARLIEST, EARLIEST))  # the package stores the time, and equal assets must give equal files
            packed = pxr.UsdUtils.CreateNewUsdzPackage(str(layer), str(package))
        except pxr.Tf.ErrorException as problem:
            raise SegdreamError(f"{path} was not written: {problem}", hint=relocation("TMPDIR", folder)) from problem
        if not packed:
            raise SegdreamError(
                f"{path} was not written: the package could not be made", hint=relocation("TMPDIR", folder)
            )
        with atomic_write(path) as temporary:
            temporary.write_bytes(package.read_bytes())


def check_packages() -> None:
    """Raises EnvironmentProblem if usd-core is missing or too old."""
    _Pxr.load()


def _fill(pxr: "_Pxr", stage: Any, splats: Splats) -> None:
    """Puts the Gaussians on an empty stage, and saves it."""
    k = splats.shN.shape[1]
    quats = np.roll(splats.quats, -1, axis=1)  # real part last, as the library keeps it in memory
    opacities = (1 / (1 + np.exp(-splats.opacity_logits.astype(np.float64)))).astype(np.float32)
    scales = np.exp(splats.log_scales)
    harmonics = np.concatenate([splats.sh0[:, None], splats.shN], axis=1).reshape(-1, 3)
    pxr.UsdGeom.SetStageUpAxis(stage, pxr.UsdGeom.Tokens.y)
    pxr.UsdGeom.SetStageMetersPerUnit(stage, 1.0)
    prim = pxr.UsdVol.ParticleField3DGaussianSplat.Define(stage, "/asset").GetPrim()
    stage.SetDefaultPrim(prim)
    reach = 3 * scales.max(axis=1, keepdims=True)
    extent = np.stack([(splats.means - reach).min(axis=0), (splats.means + reach).max(axis=0)])
    Vec3fs = pxr.Vt.Vec3fArray.FromNumpy
    values = {
        "positions": Vec3fs(splats.means),
        "orientations": pxr.Vt.QuatfArray.FromNumpy(np.ascontiguousarray(quats)),
        "scales": Vec3fs(scales),
        "opacities": pxr.Vt.FloatArray.FromNumpy(opacities),
        "radiance:sphericalHarmonicsDegree": COEFFICIENTS.index(k + 1),
        "radiance:sphericalHarmonicsCoefficients": Vec3fs(np.ascontiguousarray(harmonics)),
        "sortingModeHint": "cameraDistance",
        "extent": Vec3fs(extent),
    }
    for name, value in values.items():
        prim.GetAttribute(name).Set(value)
    layer = stage.GetRootLayer()
    layer.documentation = f"segdream {__version__}"
    if splats.provenance:
        layer.customLayerData = {PROVENANCE: json.dumps(dict(splats.provenance))}
    layer.Save()


def read(path: Path, reading: Reading = DEFAULT) -> Splats:
    """All Gaussians of a stage, where its transforms place them, in the inner frame.

    The stage is a `.usdz` package, a binary layer or a text layer. Nothing outside the file is read. Lengths stay in
    units of the stage, whatever its metersPerUnit. Spherical harmonics above degree 3 are left out. This function
    checks a package, including its checksums, so accidental damage never reaches the library. The library runs in a
    process of its own, since a malicious file can crash or hang it.

    Raises:
        EnvironmentProblem: the extra "usd" is not installed.
        UsageProblem: the file can't be opened, is not a stage, is damaged, refers to other files, or is empty.
    """
    _Pxr.load()
    with scratch_space() as folder:
        copy, target = _copy_stage(path, folder), folder / "splats.npz"
        size = copy.stat().st_size
        problem = _apart(copy, target, MEMORY + 64 * size, SECONDS + size // 1_000_000)
        if problem:
            raise UsageProblem(f"{path} {problem}")
        with np.load(target, allow_pickle=False) as found:
            arrays = dict(found)
    provenance = _provenance(str(arrays.pop(PROVENANCE)))
    return finish(path, Splats(**arrays, provenance=provenance), reading, INNER)


def _copy_stage(path: Path, folder: Path) -> Path:
    """A copy of the stage in `path` in a folder of its own, with the suffix that the library needs for its content.

    Raises:
        UsageProblem: it is not a stage, or a damaged package.
    """
    with open_asset(path) as stream:
        head = stream.read(8)
        suffix = next((suffix for magic, suffix in LAYERS.items() if head.startswith(magic)), None)
        if suffix is None:
            raise UsageProblem(f"{path} is not a .usdz package, nor a .usda or .usdc layer")
        stream.seek(0)
        if suffix == ".usdz":
            _check_package(path, stream)
            stream.seek(0)
        copy = folder / f"asset{suffix}"
        with copy.open("wb") as target:
            shutil.copyfileobj(stream, target)
    return copy


def _check_package(path: Path, stream: BinaryIO) -> None:
    """Checks that a package's members are uncompressed and their checksums right.

    Raises:
        UsageProblem: they are not, or it is not a package.
    """
    size = stream.seek(0, io.SEEK_END)
    try:
        with zipfile.ZipFile(stream) as package:
            for info in package.infolist():
                if escapes_archive(info.filename):
                    raise UsageProblem(f"{path} is damaged: the name {info.filename[:80]!r} points outside it")
                if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
                    raise UsageProblem(
                        f"{path} is damaged: {info.filename[:80]!r} is compressed, which this format forbids"
                    )
            if sum(info.file_size for info in package.infolist()) > size:
                raise UsageProblem(f"{path} is damaged: its files claim more than it holds")
            wrong = package.testzip()
    except ZIP_ERRORS as problem:
        raise UsageProblem(f"{path} is not a .usdz package: {problem}") from problem
    if wrong is not None:
        raise UsageProblem(f"{path} is damaged: the checksum of {wrong[:80]!r} is wrong")


def _apart(path: Path, target: Path, memory: int, seconds: int) -> str:
    """Runs `_read_here` in a process of its own; returns the file's problem, or an empty text."""
    command = [sys.executable, "-m", __name__, str(path.resolve()), str(target), str(memory), str(seconds)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    try:
        done = subprocess.run(command, capture_output=True, check=False, env=environment, timeout=PATIENCE * seconds)
    except subprocess.TimeoutExpired:  # a deadlock takes no processor time
        return UNREADABLE
    if done.returncode == 0:
        return ""
    lines = done.stderr.decode("utf-8", "replace").strip().splitlines()  # the library's own messages come first
    return lines[-1] if done.returncode == 1 and lines else UNREADABLE


def _read_here(path: Path, target: Path, memory: int, seconds: int) -> str:
    """Writes the Gaussians in `path` to `target` as numpy arrays; returns the file's problem, or an empty text."""
    pxr = _Pxr.load()
    with suppress(ImportError):  # Windows has no such limits
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        layer = pxr.Sdf.Layer.OpenAsAnonymous(str(path))
        if layer is None:
            return "is damaged: it has no layer"
        if layer.GetCompositionAssetDependencies() or _has_clips(pxr, layer):
            return "refers to other files, which segdream does not read"
        parts = list(_parts(pxr, pxr.Usd.Stage.Open(layer)))
        if not parts:
            return f"holds no {SCHEMA}"
        splats = concat(parts, {})
        note = str(layer.customLayerData.get(PROVENANCE, ""))
    except (pxr.Tf.ErrorException, ValueError, MemoryError) as problem:
        return f"is damaged: {_reason(pxr, problem, path.parent)}"
    arrays: dict[str, Any] = dict(splats.arrays())
    arrays[PROVENANCE] = np.array(note)
    np.savez(target, **arrays)
    return ""


def _reason(pxr: "_Pxr", problem: Exception, folder: Path) -> str:
    """The reason for refusing a file in `folder`, in one line without the folder or names of the library's code."""
    try:
        errors = problem.args if isinstance(problem, pxr.Tf.ErrorException) else ()
        text = "; ".join(error.commentary for error in errors) or str(problem)
    except UnicodeDecodeError as undecodable:  # the library quotes bytes of the file
        text = undecodable.object.decode("utf-8", "replace")
    if place := re.match(rf"{re.escape(str(folder))}[^:]*:(\d+):(\d+): ", text):
        return "the text can't be parsed at line {}, column {}".format(*place.groups())
    return " ".join(text.replace(f"{folder}{os.sep}", "").split())[:200]


def _has_clips(pxr: "_Pxr", layer: Any) -> bool:
    """Whether a prim of a layer takes values from clips, files that are not among its composition dependencies."""
    found: list[str] = []

    def visit(path: Any) -> None:
        if path.IsPrimPath() or path.IsPrimVariantSelectionPath():
            found.extend(key for key in layer.GetObjectAtPath(path).ListInfoKeys() if key.startswith("clip"))

    layer.Traverse(pxr.Sdf.Path.absoluteRootPath, visit)
    return bool(found)


def _parts(pxr: "_Pxr", stage: Any) -> Iterator[Splats]:
    """The Gaussians of each prim, in the inner frame."""
    upright = Z_UP if pxr.UsdGeom.GetStageUpAxis(stage) == pxr.UsdGeom.Tokens.z else np.eye(3)
    placements = pxr.UsdGeom.XformCache()
    for prim in stage.Traverse():
        if prim.GetTypeName() != SCHEMA:
            continue
        matrix = np.array(placements.GetLocalToWorldTransform(prim)).T  # the library's vectors are rows
        part = _splats(pxr, prim)
        turned: Float64s = upright @ matrix[:3, :3]
        if np.array_equal(turned, np.eye(3)) and not matrix[:3, 3].any():
            yield part
        else:
            yield transform(part, turned, upright @ matrix[:3, 3])


def _splats(pxr: "_Pxr", prim: Any) -> Splats:
    """The Gaussians of a prim, in its own frame; invalid values become NaN.

    Raises:
        ValueError: its arrays are missing or of other types, or do not fit together.
    """
    first = pxr.Usd.TimeCode.EarliestTime()

    def values(name: str, width: int) -> Float32s:
        for spelled in (name, f"{name}h"):  # the second in half precision
            found = prim.GetAttribute(spelled).Get(first)
            if isinstance(found, Sized) and len(found):
                try:
                    return np.array(found, np.float32).reshape(-1, width)
                except (TypeError, ValueError) as problem:
                    raise ValueError(f"{name} of {prim.GetPath()} is not rows of {width} numbers") from problem
        raise ValueError(f"{prim.GetPath()} has no {name}")

    means = values("positions", 3)
    n = len(means)
    quats, scales, opacities = values("orientations", 4), values("scales", 3), values("opacities", 1)
    degree = prim.GetAttribute("radiance:sphericalHarmonicsDegree").Get(first)
    if type(degree) is not int:
        raise ValueError(f"the degree of the spherical harmonics of {prim.GetPath()} is not a whole number")
    harmonics = values("radiance:sphericalHarmonicsCoefficients", 3)
    if {len(quats), len(scales), len(opacities)} != {n} or len(harmonics) != n * (degree + 1) ** 2:
        raise ValueError(f"the arrays of {prim.GetPath()} differ in length")
    harmonics = harmonics.reshape(n, -1, 3)
    return Splats(
        means=means,
        quats=np.roll(quats, 1, axis=1),
        log_scales=to_log_scales(scales),
        opacity_logits=to_opacity_logits(opacities[:, 0]),
        sh0=np.ascontiguousarray(harmonics[:, 0]),
        shN=np.ascontiguousarray(harmonics[:, 1 : COEFFICIENTS[-1]]),
    )


def _provenance(text: str) -> Mapping[str, Any]:
    """The provenance in the JSON text that `write` stored; empty for any other text."""
    try:
        found = parse_json(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


@dataclass(frozen=True, slots=True)
class _Pxr:
    """The library's modules."""

    Sdf: Any
    Tf: Any
    Usd: Any
    UsdGeom: Any
    UsdUtils: Any
    UsdVol: Any
    Vt: Any

    @classmethod
    def load(cls) -> "_Pxr":
        """The modules.

        Raises:
            EnvironmentProblem: they are not installed, or too old for Gaussians.
        """
        hint = 'pip install "segdream[usd]"'
        try:
            found = {name: import_module(f"pxr.{name}") for name in cls.__dataclass_fields__}
        except ImportError as problem:
            raise EnvironmentProblem(f".usdz files need the package usd-core: {problem}", hint=hint) from problem
        if not hasattr(found["UsdVol"], SCHEMA):
            raise EnvironmentProblem(".usdz files need usd-core 26.3 or later; an older one is installed", hint=hint)
        return cls(**found)


if __name__ == "__main__":
    sys.exit(_read_here(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])) or 0)
