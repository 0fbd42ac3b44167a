"""The folder of a run: its record, its latest checkpoint, its events and previews.

run.json                 configuration, prompt, seed, prior, versions; enough to resume or to repeat the run
checkpoint.safetensors   everything the next step depends on
events.jsonl             one line per reported step
preview-000400.png       preview images, if requested
tried.json, tried-3.png  with `--best-of`: the score and an image of each seed
"""

import difflib
import errno
import json
import os
import platform
import shlex
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import MISSING, asdict, dataclass, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from safetensors import SafetensorError, safe_open

from segdream_cli.config import Config
from segdream_cli.errors import OutputExists, SegdreamError, UsageProblem
from segdream_cli.runs.jobs import Source
from segdream_cli.runs.ownership import (
    CHECKPOINT,
    EVENTS,
    OWN_NAMES,
    RECORD,
    RunLock,
    exchange,
    remove_contents,
    scratch_folder,
    sweep_folders,
)
from segdream_cli.util.files import (
    atomic_write,
    free_name,
    free_path,
    is_file,
    is_folder,
    known_problem,
    lexists,
    other_path,
    parse_json,
    sweep,
    write_problem,
)
from segdream_cli.util.home import expand

if TYPE_CHECKING:
    from torch import Tensor

    from segdream_cli.optimize.state import AssetState

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
        prompt_read: the text that the prior read, if it differs from the prompt in more than case and punctuation.
        machine: its processor, memory, GPU and system, as `describe_machine` names them.
        began: date and time (UTC) at which the folder was made.
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
    prompt_read: str | None = None
    machine: Mapping[str, str] | None = None
    began: str | None = None


def _parse_record(data: Mapping[str, Any]) -> RunRecord:
    """The record in the content of a `run.json`.

    Raises:
        ValueError, TypeError: an entry is missing, unknown or of the wrong type.
    """
    known = {each.name: each for each in fields(RunRecord)}
    if lacking := [name for name, each in known.items() if each.default is MISSING and name not in data]:
        raise ValueError(f"it lacks {lacking[0]!r}")
    if unknown := data.keys() - known.keys():
        raise ValueError(f"it has the unknown entry {min(unknown)!r}")
    record = RunRecord(**data)
    for name, kind in RECORD_TYPES.items():
        if not isinstance(data[name], kind):
            raise TypeError(f"{name} can't be {data[name]!r}")
    if record.output in ("", "..") or Path(record.output).name != record.output:
        raise TypeError(f"output {record.output!r} is not a file beside the folder")
    if missing := {"name", "digest"} - set(record.prior):
        raise TypeError(f"the prior lacks its {missing.pop()}")
    if record.source is not None:
        Source(**record.source)
    return record


def _write_record(folder: Path, record: RunRecord) -> None:
    """Writes the `run.json` of a folder; raises the errors of `atomic_write`."""
    with atomic_write(folder / RECORD) as temporary:
        temporary.write_text(json.dumps(asdict(record), indent=1) + "\n", encoding="utf-8")


def package_versions() -> dict[str, str]:
    """Versions of Python and of the packages that can change a result."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def _entries(record: RunRecord) -> dict[str, Any]:
    """The entries of a record by dotted name, as JSON stores them; settings have their own names."""
    entries: dict[str, Any] = {}
    for key, value in json.loads(json.dumps(asdict(record))).items():
        prefix = "" if key == "config" else f"{key}."
        entries |= {prefix + name: each for name, each in value.items()} if isinstance(value, dict) else {key: value}
    return entries


def _open_here(path: str, flags: int) -> int:
    """Opens a file but follows no link, which could lead out of the folder."""
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)


class RunDir:
    """A run folder on disk.

    From `create` or `acquire` to `release`, `finish` or the end of this process, no other process works on the run.

    Args:
        path: the folder; it need not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._record: RunRecord | None = None
        self._lock: RunLock | None = None
        self._current_folder: Path | None = None

    @classmethod
    def beside(cls, output: Path) -> Self:
        """The run folder of an asset: `bus.ply` has `bus.run`."""
        return cls(output.with_suffix(".run"))

    @property
    def checkpoint(self) -> Path:
        """The latest checkpoint."""
        return self.path / CHECKPOINT

    def exists(self) -> bool:
        """Whether the folder has a record."""
        return is_file(self.path / RECORD)

    def is_foreign(self) -> bool:
        """Whether its `run.json` is whole JSON without any entry of a record: another program wrote it."""
        with suppress(OSError, ValueError):
            data = parse_json((self.path / RECORD).read_text(encoding="utf-8"))
            return not isinstance(data, dict) or not {"format", *RECORD_TYPES} & data.keys()
        return False

    def can_resume(self) -> bool:
        """Whether the folder has an unfinished run with a checkpoint."""
        return self.exists() and self.checkpoint.exists()

    def resume_command(self) -> str:
        """The command that resumes the run."""
        return f"segdream generate --resume {shlex.quote(str(self.path))}"

    def repeat_command(self, record: RunRecord) -> str:
        """The command that makes the asset of a run from its beginning."""
        parts = ["segdream", "generate", record.prompt]
        if record.source is not None:
            source = Source(**record.source)
            parts = ["segdream", "refine", str(expand(source.path)), record.prompt]
            parts += ["--front", str(source.front_deg), "--up", source.up, "--sh", str(source.sh)]
            parts += [] if source.frame is None else ["--frame", source.frame]
        parts += ["--seed", str(record.seed), "--quality", record.quality]
        if record.negative_prompt is not None:
            parts += ["--negative", record.negative_prompt]
        parts += ["--config", str(self.path / RECORD), "-o", str(self.path.parent / record.output)]
        return shlex.join(parts)

    def check_free(self, *, force: bool) -> None:
        """Refuses to start a run that would delete another one, or files that segdream did not write.

        Raises:
            OutputExists: the folder holds other files, another process works on its run, or the run is unfinished and
                `force` is false.
            UsageProblem: its record can't be used, and `force` is false.
        """
        try:
            names = [path.name for path in self.path.iterdir()] if lexists(self.path) else []
        except OSError as problem:
            if problem.errno in (errno.ENOTDIR, errno.ENOENT, errno.ELOOP):  # a file, or a link that leads nowhere
                raise OutputExists(f"{self.path} exists and is not a run folder", hint=self._move_away()) from None
            raise write_problem(problem, self.path) from problem
        if foreign := [name for name in names if not OWN_NAMES.fullmatch(name)]:
            raise OutputExists(
                f"{self.path} exists and is not a run folder: it holds {foreign[0]!r}", hint=self._move_away()
            )
        if RECORD in names and self._lock is None:
            if (self.path / RECORD).is_dir():
                raise OutputExists(
                    f"{self.path} exists and is not a run folder: its {RECORD} is a folder", hint=self._move_away()
                )
            if CHECKPOINT not in names and self.is_foreign():
                raise OutputExists(
                    f"{self.path} exists and is not a run folder: its {RECORD} is another program's",
                    hint=self._move_away(),
                )
            self.check_idle()
        if force:
            return
        if CHECKPOINT in names:
            raise OutputExists(
                f"{self.path} holds an unfinished run at step {self.step() - self.skipped()}; --force starts over",
                hint=self.resume_command(),
            )
        if RECORD in names:
            self.record()

    def check_idle(self) -> None:
        """Refuses a run that another process works on.

        Raises:
            OutputExists: one does.
            SegdreamError: its record can't be opened for writing.
        """
        try:
            RunLock(self.path).release()
        except BlockingIOError as problem:
            raise self._busy_error() from problem
        except OSError as problem:
            raise write_problem(problem, self.path / RECORD) from problem

    def _busy_error(self) -> OutputExists:
        hint = None
        if shutil.which("flock"):
            hint = f"flock {shlex.quote(str(self.path / RECORD))} true  # waits for its end; then run the command again"
        return OutputExists(f"another process works on {self.path}", hint=hint)

    def create(self, record: RunRecord, *, force: bool = False) -> None:
        """Acquires a new folder with a record, which takes the place of an old one by a rename.

        Raises:
            OutputExists: see `check_free`.
            SegdreamError: the disk is full or fails; UsageProblem: the folder can't be written.
        """
        self.release()
        folder = self.path.resolve() if self.path.is_symlink() else self.path
        try:
            sweep_folders(folder)
            with scratch_folder(folder) as staged, scratch_folder(folder) as removed:
                staged.mkdir()
                _write_record(staged, record)
                held = RunLock(staged)
                self.check_free(force=force)
                exchange(folder, staged, removed)
        except BlockingIOError as problem:
            raise self._busy_error() from problem
        except OSError as problem:
            raise write_problem(problem, self.path) from problem
        except SegdreamError as problem:
            if isinstance(problem.__cause__, OSError) and not isinstance(problem, OutputExists):
                raise write_problem(problem.__cause__, self.path / RECORD) from problem.__cause__
            raise
        self._record, self._lock, self._current_folder = record, held, Path.cwd()

    def adopt(self, content: bytes, *, force: bool = False) -> None:
        """Acquires a new folder with the content of a `run.json` that another machine wrote.

        Raises:
            UsageProblem: it is not one; otherwise as `create`.
        """
        try:
            record = _parse_record(parse_json(content))
        except (ValueError, TypeError) as problem:
            raise UsageProblem(f"the record for {self.path} is damaged: {problem}") from problem
        self.create(record, force=force)

    def acquire(self) -> None:
        """Locks an existing run for this process.

        Raises:
            OutputExists: another process works on it.
            UsageProblem: it is not a run folder, or its record can't be used or locked.
        """
        record = self.record()
        try:
            self._lock = RunLock(self.path)
        except BlockingIOError as problem:
            raise self._busy_error() from problem
        except OSError as problem:
            raise write_problem(problem, self.path / RECORD, self._copy_elsewhere(problem)) from problem
        self._record, self._current_folder = record, Path.cwd()
        sweep(self.path)

    def release(self) -> None:
        """Lets other processes work on the run."""
        if self._lock is not None:
            self._lock.release()
        self._lock = None

    def restore(self) -> str | None:
        """Creates the folder again if it was removed or renamed since this process acquired it.

        So it does with the current folder, to which relative paths refer.

        Returns:
            a message about that, or None.

        Raises:
            SegdreamError: see `create`.
        """
        if self._lock is None or self._record is None or self._lock.is_at(self.path):
            return None
        before = self.path
        if lexists(before):
            self.path = free_name(before)
        try:
            self._enter_again()
            before.parent.mkdir(parents=True, exist_ok=True)
        except OSError as problem:
            raise write_problem(problem, before) from problem
        self.create(self._record)
        instead = "a new folder" if self.path == before else self.path
        return f"{before} was removed or renamed during the run; {instead} takes its place"

    def _enter_again(self) -> None:
        """Creates the current folder again if it was removed; raises OSError if that fails."""
        try:
            Path.cwd()
        except FileNotFoundError:
            if self._current_folder is None:
                raise
            self._current_folder.mkdir(parents=True, exist_ok=True)
            os.chdir(self._current_folder)

    def finish(self, *, keep: bool = True) -> None:
        """Marks the run as done: its record can repeat it, but it can't be resumed; without `keep`, removes it."""
        with suppress(OSError):  # the asset is whole; a checkpoint that stays only leads to the same one
            self.checkpoint.unlink()
        sweep(self.path)
        if not keep:
            remove_contents(self.path)
        self.release()

    def record(self) -> RunRecord:
        """The record of the run.

        Raises:
            UsageProblem: the folder is not a run folder, or a later version wrote it.
        """
        try:
            data = parse_json((self.path / RECORD).read_text(encoding="utf-8"))
            if data.get("format", FORMAT) != FORMAT:
                raise UsageProblem(
                    f"{self.path} was written by another version of segdream (run format {data['format']})",
                    hint="pip install --upgrade segdream",
                )
            record = _parse_record(data)
        except OSError as problem:
            if known := known_problem(problem, self.path / RECORD, "read"):
                raise known from problem
            reason = "it has no run.json" if self.path.is_dir() else problem.strerror
            raise UsageProblem(f"{self.path} is not a run folder: {reason}", hint=self._resume_nearest()) from problem
        except (ValueError, TypeError, AttributeError) as problem:
            if not self.checkpoint.exists() and self.is_foreign():
                message = f"{self.path} is not a run folder: its {RECORD} is another program's"
                raise UsageProblem(message, hint=self._resume_nearest()) from problem
            raise UsageProblem(f"{self.path / RECORD} is damaged: {problem}", hint=self._move_away()) from problem
        return record

    def repair(self) -> str | None:
        """Writes a missing or damaged record again, from the copy in a whole checkpoint.

        Returns:
            a message about that; None if the record is whole, or there is no such copy.

        Raises:
            OutputExists: another process works on the run.
            SegdreamError: the record can't be read or written.
        """
        path, copy = self.path / RECORD, None
        try:
            self.record()
        except UsageProblem as problem:
            cause = problem.__cause__
            if not isinstance(cause, OSError) or isinstance(cause, FileNotFoundError):
                copy = self._saved_record()
        if copy is None:
            return None
        held, state = None, "damaged" if path.exists() else "missing"
        try:
            held = RunLock(self.path) if path.exists() else None
            _write_record(self.path, copy)
        except BlockingIOError as problem:
            raise self._busy_error() from problem
        except OSError as problem:
            raise write_problem(problem, path) from problem
        finally:
            if held is not None:
                held.release()
        return f"{path} was {state}, and is restored from the checkpoint"

    def _saved_record(self) -> RunRecord | None:
        """The record in the latest checkpoint; None if that is damaged, or has none of this version."""
        from segdream_cli.util.tensor_files import load_tensors  # imports torch, which takes seconds

        with suppress(OSError, SafetensorError, ValueError, KeyError, TypeError):
            _, metadata = load_tensors(self.checkpoint)
            record = _parse_record(parse_json(metadata["record"]))
            return record if record.format == FORMAT else None
        return None

    def _copy_elsewhere(self, problem: OSError) -> str | None:
        """The command that resumes a copy of a run that can't be written; None if there is no other folder."""
        other = other_path(problem, self.path)
        if other is None:
            return None
        return f"{shlex.join(['cp', '-r', str(self.path), str(other)])} && {RunDir(other).resume_command()}"

    def edits(self) -> list[str]:
        """How the record differs from that of the latest checkpoint, such as "optim.steps is 9 and was 6".

        Raises:
            UsageProblem: the checkpoint is damaged.
        """
        with self._reading(), safe_open(self.checkpoint, "np") as file:
            saved = (file.metadata() or {}).get("record")
            if saved is None:  # version 0.1.0 saved none
                return []
            before = _entries(RunRecord(**json.loads(saved)))
        after = _entries(self.record())
        return [
            f"{key} is {after.get(key)!r} and was {before.get(key)!r}"
            for key in {**after, **before}
            if after.get(key) != before.get(key)
        ]

    def check_edits(self) -> None:
        """Refuses a record that differs from that of the latest checkpoint.

        Raises:
            UsageProblem: it differs, or the checkpoint is damaged.
        """
        edits = self.edits()
        if not edits:
            return
        self.load()  # for its errors: a damaged checkpoint differs too
        raise UsageProblem(
            f"{self.path / RECORD} was edited during the run: {', '.join(edits)}",
            hint=f"{self.undo_command()}  # or start over as edited: {self.repeat_command(self.record())} --force",
        )

    def config(self) -> Config:
        """The run's configuration."""
        return Config().set(self.record().config)

    def save(self, asset: "AssetState") -> None:
        """Replaces the checkpoint with the asset's current state; it also holds the record that the run began with."""
        from segdream_cli.util.tensor_files import dump_tensors  # imports torch, which takes seconds

        tensors = {name: value.detach().cpu().contiguous() for name, value in asset.tensors().items()}
        metadata = {} if self._record is None else {"record": json.dumps(asdict(self._record))}
        with atomic_write(self.checkpoint) as temporary:
            # save_file of safetensors hides that the disk is full
            temporary.write_bytes(dump_tensors(tensors, metadata))

    def load(self) -> "dict[str, Tensor]":
        """The tensors of the latest checkpoint; those of version 0.1.0 have no SHA-256 to compare.

        Raises:
            UsageProblem: it is damaged, or can't be read.
        """
        from segdream_cli.util.tensor_files import load_tensors  # imports torch, which takes seconds

        with self._reading():
            tensors, _ = load_tensors(self.checkpoint)
        return tensors

    def step(self) -> int:
        """The step of the latest checkpoint; 0 without one.

        Raises:
            UsageProblem: it is damaged, or can't be read.
        """
        if not self.checkpoint.exists():
            return 0
        with self._reading(), safe_open(self.checkpoint, "np") as tensors:  # numpy, since torch takes seconds to import
            return int(tensors.get_tensor("step"))

    def skipped(self) -> int:
        """Number of distillation steps that the latest checkpoint counts as done, but that were left out.

        Raises:
            UsageProblem: it is damaged, or can't be read.
        """
        with self._reading(), safe_open(self.checkpoint, "np") as tensors:
            return int(tensors.get_tensor("stop.skipped")) if "stop.skipped" in tensors.keys() else 0  # noqa: SIM118

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """Converts the errors of a block that reads the checkpoint."""
        try:
            self.checkpoint.open("rb").close()  # safetensors reports every failure to open as a missing file
            yield
        except OSError as problem:
            if known := known_problem(problem, self.checkpoint, "read"):
                raise known from problem
            raise UsageProblem(
                f"{self.checkpoint} can't be read: {problem.strerror or problem}", hint=self._start_over()
            ) from problem
        except (SafetensorError, ValueError, TypeError) as problem:
            raise self.damage_error(problem) from problem

    def damage_error(self, problem: Exception) -> UsageProblem:
        """The error to raise when the checkpoint can't be used."""
        return UsageProblem(f"{self.checkpoint} is damaged: {problem}", hint=self._start_over())

    def _resume_nearest(self) -> str | None:
        """The command that resumes the unfinished run whose name is most like this one's, or else lists all runs."""
        found: dict[str, RunDir] = {}
        with suppress(OSError):
            others = map(type(self), sorted(self.path.parent.glob("*.run")))
            found = {other.path.name: other for other in others if other.path != self.path and other.can_resume()}
        nearest = difflib.get_close_matches(self.path.name, found, n=1, cutoff=0)
        if nearest:
            return found[nearest[0]].resume_command()
        folder = self.path.parent
        named = [] if folder == Path() else [str(folder)]
        return shlex.join(["segdream", "runs", *named]) if is_folder(folder) else None

    def undo_command(self) -> str:
        """The command that moves an edited record away and resumes the run with the one that it began with."""
        kept = free_path(self.path.with_name(f"{self.path.name}.json"))
        return f"{shlex.join(['mv', str(self.path / RECORD), str(kept)])} && {self.resume_command()}"

    def _start_over(self) -> str:
        """The command that starts the run over, or moves it away where its record can't be read."""
        try:
            return f"{self.repeat_command(self.record())} --force"
        except SegdreamError:
            return self._move_away()

    def _move_away(self) -> str:
        """The command that frees the name; --force would also replace the other assets of a list."""
        return f"mv {shlex.quote(str(self.path))} {shlex.quote(str(free_name(self.path)))}  # then make the asset again"

    def append_event(self, event: Mapping[str, Any]) -> None:
        """Adds a line to `events.jsonl` and hands it to the operating system."""
        line, path = json.dumps(event, separators=(",", ":")), self.path / EVENTS
        try:
            with open(path, "a", encoding="utf-8", opener=_open_here) as stream:
                stream.write(line + "\n")
        except OSError as problem:
            raise write_problem(problem, path) from problem

    def trim_events(self, step: int) -> None:
        """Drops the lines after `step`, whose steps will be repeated, and a line that a crash cut short."""
        path = self.path / EVENTS
        if not path.exists():
            return
        kept = []
        try:
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError as problem:
            raise write_problem(problem, path) from problem
        for line in lines:
            with suppress(ValueError, KeyError, TypeError):
                if parse_json(line)["step"] <= step:
                    kept.append(line + "\n")
        with atomic_write(path) as temporary:
            temporary.write_text("".join(kept), encoding="utf-8")
