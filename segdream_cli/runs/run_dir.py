"""The folder of a run: its record, its latest checkpoint, its events and previews.

run.json                 configuration, prompt, seed, prior, versions; enough to resume or to repeat the run
checkpoint.safetensors   everything the next step depends on
events.jsonl             one line per reported step
preview-000400.png       preview images, if requested
"""

import json
import platform
import shlex
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Self

from safetensors import SafetensorError, safe_open
from torch import Tensor

from segdream_cli.config import Config
from segdream_cli.errors import OutputExists, SegdreamError, UsageProblem
from segdream_cli.optimize.state import AssetState
from segdream_cli.runs.jobs import Source
from segdream_cli.util.files import atomic_write, write_problem
from segdream_cli.util.tensor_files import dump_tensors, load_tensors

FORMAT = 1
RECORD_TYPES: Mapping[str, type | tuple[type, ...]] = {
    "prompt": str,
    "seed": int,
    "negative_prompt": (str, type(None)),
    "output": str,
    "quality": str,
    "config": dict,
    "prior": dict,
}
PACKAGES = ("segdream", "torch", "openvino", "diffusers", "transformers", "gsplat", "numba", "numpy", "safetensors")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """The content of `run.json`.

    Args:
        prompt, seed, negative_prompt: the job's; None as negative prompt means the prior's own.
        output: the asset's path, relative to the run folder's parent.
        quality: the preset the configuration started from.
        config: dotted settings.
        prior: name and digest of the checkpoint.
        device: the device that computed the asset.
        versions: of Python and the packages that can change the result.
        source: the asset that is refined, as the fields of `Source`; None for an asset from nothing.
    """

    prompt: str
    seed: int
    negative_prompt: str | None
    output: str
    quality: str
    config: Mapping[str, Any]
    prior: Mapping[str, str]
    device: str
    versions: Mapping[str, str]
    format: int = FORMAT
    source: Mapping[str, Any] | None = None


def _parse_record(data: Mapping[str, Any]) -> RunRecord:
    """The record in the content of a `run.json`.

    Raises:
        TypeError: an entry is missing, unknown or of the wrong type.
    """
    record = RunRecord(**data)
    for name, kind in RECORD_TYPES.items():
        if not isinstance(data[name], kind):
            raise TypeError(f"{name} can't be {data[name]!r}")
    if missing := {"name", "digest"} - set(record.prior):
        raise TypeError(f"the prior lacks its {missing.pop()}")
    if record.source is not None:
        Source(**record.source)
    return record


def package_versions() -> dict[str, str]:
    """Versions of Python and of the packages that can change a result."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


class RunDir:
    """A run folder on disk.

    Args:
        path: the folder; it need not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def beside(cls, output: Path) -> Self:
        """The run folder of an asset: `bus.ply` has `bus.run`."""
        return cls(output.with_suffix(".run"))

    @property
    def checkpoint(self) -> Path:
        """The latest checkpoint."""
        return self.path / "checkpoint.safetensors"

    def exists(self) -> bool:
        """Whether the folder has a record."""
        return (self.path / "run.json").is_file()

    def can_resume(self) -> bool:
        """Whether the folder has an unfinished run with a checkpoint."""
        return self.exists() and self.checkpoint.exists()

    def resume_command(self) -> str:
        """The command that resumes the run."""
        return f"segdream generate --resume {shlex.quote(str(self.path))}"

    def check_free(self, *, force: bool) -> None:
        """Refuses to start a run that would delete another one.

        Raises:
            OutputExists: the folder has an unfinished run and `force` is false, or is not a run folder.
        """
        if self.path.exists() and not self.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            raise OutputExists(f"{self.path} exists and is not a run folder", hint="choose another -o")
        if self.can_resume() and not force:
            raise OutputExists(
                f"{self.path} holds an unfinished run at step {self.step()}",
                hint=f"{self.resume_command()}  # or --force to start over",
            )

    def create(self, record: RunRecord) -> None:
        """Replaces the folder with a new one that has a record.

        Raises:
            SegdreamError: the disk is full; UsageProblem: the folder can't be written.
        """
        try:
            if self.path.exists():
                shutil.rmtree(self.path)
            self.path.mkdir()
        except OSError as problem:
            raise write_problem(problem, self.path) from problem
        try:
            with atomic_write(self.path / "run.json") as temporary:
                temporary.write_text(json.dumps(asdict(record), indent=1) + "\n", encoding="utf-8")
        except SegdreamError:
            with suppress(OSError):
                self.path.rmdir()
            raise

    def finish(self) -> None:
        """Marks the run as done: its record can repeat it, but it can't be resumed."""
        self.checkpoint.unlink(missing_ok=True)

    def record(self) -> RunRecord:
        """The record of the run.

        Raises:
            UsageProblem: the folder is not a run folder, or a later version wrote it.
        """
        try:
            data = json.loads((self.path / "run.json").read_text(encoding="utf-8"))
            if data["format"] != FORMAT:
                raise UsageProblem(
                    f"{self.path} was written by another version of segdream (run format {data['format']})",
                    hint="pip install --upgrade segdream",
                )
            record = _parse_record(data)
        except OSError as problem:
            reason = "it has no run.json" if self.path.is_dir() else problem.strerror
            raise UsageProblem(f"{self.path} is not a run folder: {reason}", hint="ls -d *.run") from problem
        except (ValueError, KeyError, TypeError) as problem:
            raise UsageProblem(
                f"{self.path / 'run.json'} is damaged: {problem}", hint="add --force to start over"
            ) from problem
        return record

    def config(self) -> Config:
        """The run's configuration."""
        return Config().set(self.record().config)

    def save(self, asset: AssetState) -> None:
        """Replaces the checkpoint with the asset's current state."""
        tensors = {name: value.detach().cpu().contiguous() for name, value in asset.tensors().items()}
        with atomic_write(self.checkpoint) as temporary:
            temporary.write_bytes(dump_tensors(tensors))  # save_file of safetensors hides that the disk is full

    def load(self) -> dict[str, Tensor]:
        """The tensors of the latest checkpoint; those of version 0.1.0 have no SHA-256 to compare.

        Raises:
            UsageProblem: it is damaged.
        """
        try:
            tensors, _ = load_tensors(self.checkpoint)
        except (SafetensorError, OSError, ValueError) as problem:
            raise self.damage_error(problem) from problem
        return tensors

    def step(self) -> int:
        """The step of the latest checkpoint; 0 without one."""
        if not self.checkpoint.exists():
            return 0
        try:
            with safe_open(self.checkpoint, "pt") as tensors:
                return int(tensors.get_tensor("step"))
        except (SafetensorError, OSError) as problem:
            raise self.damage_error(problem) from problem

    def damage_error(self, problem: Exception) -> UsageProblem:
        """The error to raise when the checkpoint can't be used."""
        return UsageProblem(f"{self.checkpoint} is damaged: {problem}", hint="add --force to start over")

    def append_event(self, event: Mapping[str, Any]) -> None:
        """Adds a line to `events.jsonl` and hands it to the operating system."""
        line = json.dumps(event, separators=(",", ":"))
        try:
            with (self.path / "events.jsonl").open("a", encoding="utf-8") as stream:
                stream.write(line + "\n")
        except OSError as problem:
            raise write_problem(problem, self.path / "events.jsonl") from problem

    def trim_events(self, step: int) -> None:
        """Drops the lines after `step`, whose steps will be repeated, and a line that a crash cut short."""
        path = self.path / "events.jsonl"
        if not path.exists():
            return
        kept = []
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            with suppress(ValueError, KeyError, TypeError):
                if json.loads(line)["step"] <= step:
                    kept.append(line + "\n")
        with atomic_write(path) as temporary:
            temporary.write_text("".join(kept), encoding="utf-8")
