"""The assets that prompts and seeds ask for, and the file of each."""

import codecs
import operator
import re
import sys
import unicodedata
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from shlex import quote
from types import MappingProxyType
from typing import Any, Self

from segdream_cli.errors import UsageProblem
from segdream_cli.util.files import free_path, is_folder, other_output, read_problem

MAX_SEEDS = 1000
MAX_SEED = 10**15 - 1
"""The largest seed of fifteen digits, the limit of `--seeds`; torch's generators take 64 bits."""
SLUG_LENGTH = 60
TEMPLATE_FIELDS = ("prompt", "seed", "index", "method", "prior")
"""Fields of a template of files, for `fill_template`."""
NEW_LIST = Path("prompts.txt")
"""A list of prompts for hints to write, under another name if it exists."""
FIELD = re.compile(r"\{([a-z_]+)\}")
MARKS: Mapping[bytes, str] = {
    codecs.BOM_UTF32_LE: "UTF-32",  # before UTF-16, whose mark it begins with
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
"""Byte-order mark of a list -> its encoding."""


@dataclass(frozen=True, slots=True)
class Source:
    """The file of an asset to refine.

    Args:
        path: the absolute path, with `~` for the user's home.
        sha256: hash of its content.
        front_deg: azimuth of the object's front, once `up` is +y: 0 is +z, 90 is +x.
        sh: highest degree of spherical harmonics to keep, 0 to 3.
        up: the axis of its own frame that points up, x to -z.
        frame: where the axes of a splat file point; None is what the file or its format says.
        strict: refuse a splat file with rows that are not finite, which are dropped otherwise.
        as_splats: read a plain point cloud as small Gaussians.
    """

    path: str
    sha256: str
    front_deg: float = 0.0
    sh: int = 3
    up: str = "y"
    frame: str | None = None
    strict: bool = False
    as_splats: bool = False


@dataclass(frozen=True, slots=True)
class Job:
    """One asset to make, from nothing or from a source."""

    prompt: str
    seed: int
    output: Path
    source: Source | None = None

    @property
    def proofs(self) -> tuple[Path, ...]:
        """The files that exist once it is done."""
        return (self.output,)

    @property
    def folders(self) -> set[Path]:
        """The folders that a machine must see to do it in place."""
        return {self.output.parent}

    def in_place(self, roots: Mapping[Path, Path]) -> Self:
        """The job on a machine that sees its folders; `roots` has their absolute paths."""
        return replace(self, output=roots[self.output.parent] / self.output.name)

    def in_scratch(self, folder: Path) -> Self:
        """The job on a machine that makes its files in a scratch folder."""
        return replace(self, output=folder / self.output.name)


INPUTS = "inputs"
"""Folder of a scratch folder with the files that a job reads."""


@dataclass(frozen=True, slots=True)
class FileJob(Job):
    """Files to make from one asset's files, or numbers to measure; `output` identifies it.

    Args:
        asset: its path.
        inputs: the files to read: the asset's own, and others.
        outputs: the files or folders to write, all in the folder of `output`; none if it only measures.
        last: the files that exist once it is done.
        places: path of the asset, another input or an output -> where it is on the machine that does the job.
    """

    asset: Path = Path()
    inputs: tuple[Path, ...] = ()
    outputs: tuple[Path, ...] = ()
    last: tuple[Path, ...] = ()
    places: Mapping[Path, Path] = field(default_factory=dict, compare=False)

    @property
    def proofs(self) -> tuple[Path, ...]:
        """See `Job`."""
        return self.last

    @property
    def folders(self) -> set[Path]:
        """See `Job`."""
        elsewhere = {path.parent for path in self.inputs if not path.is_relative_to(self.asset.parent)}
        return {self.asset.parent, *elsewhere, *(path.parent for path in self.outputs)}

    def in_place(self, roots: Mapping[Path, Path]) -> Self:
        """See `Job`."""
        paths = {self.asset, *self.inputs, *self.outputs}
        return replace(self, places={path: self._absolute(path, roots) for path in paths})

    def in_scratch(self, folder: Path) -> Self:
        """See `Job`."""
        places = {path: folder / INPUTS / self._name(path) for path in {self.asset, *self.inputs}}
        places |= {path: folder / path.name for path in self.outputs}
        return replace(self, output=folder / self.output.name, places=places)

    def cargo(self) -> dict[str, Path]:
        """Path in a scratch folder -> file to bring there."""
        return {f"{INPUTS}/{self._name(path)}": path for path in self.inputs}

    def here(self, path: Path) -> Path:
        """Where a path is on this machine."""
        return self.places.get(path, path)

    def translate(self, text: str) -> str:
        """A text of this machine with the paths as they were given."""
        for path, here in self.places.items():
            text = text.replace(str(here), str(path))
        return text

    @staticmethod
    def _absolute(path: Path, roots: Mapping[Path, Path]) -> Path:
        for folder in path.parents:
            if folder in roots:
                return roots[folder] / path.relative_to(folder)
        return path

    def _name(self, path: Path) -> str:
        folder = self.asset.parent
        return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else path.name


def titles_of(jobs: Sequence[Job]) -> list[str]:
    """A line about each of several jobs, such as "[2/3] a red ball, seed 4"; the seed only if seeds differ."""
    with_seed = len({job.seed for job in jobs}) > 1
    return [
        f"[{number}/{len(jobs)}] {job.prompt}" + (f", seed {job.seed}" if with_seed else "")
        for number, job in enumerate(jobs, 1)
    ]


def check_seed(seed: Any) -> int:
    """The seed as a Python integer.

    Raises:
        UsageProblem: it is not an integer, negative or too large.
    """
    try:
        number = operator.index(seed)
    except TypeError:
        number = -1
    if isinstance(seed, bool) or not 0 <= number <= MAX_SEED:
        raise UsageProblem(f"the seed {seed!r} is not an integer in 0 to {MAX_SEED:,}", hint="--seed 0")
    return number


def parse_seeds(text: str) -> list[int]:
    """The seeds of `0-3`, `1,5` or a mixture, in the order given.

    Raises:
        UsageProblem: the text is something else, or names none, one twice or too many.
    """
    hint = "--seeds 0-3  # or --seeds 1,5"
    seeds: list[int] = []
    for part in text.replace(" ", "").split(","):
        match = re.fullmatch(r"(\d{1,15})(?:-(\d{1,15}))?", part)
        if match is None:
            raise UsageProblem(f"--seeds {text!r} is not a list of seeds", hint=hint)
        low, high = int(match[1]), int(match[2] or match[1])
        if high < low or high - low >= MAX_SEEDS:
            raise UsageProblem(f"--seeds {part!r} must be an ascending range of at most {MAX_SEEDS:,} seeds", hint=hint)
        seeds += range(low, high + 1)
    if len(set(seeds)) < len(seeds):
        raise UsageProblem(f"--seeds {text!r} names a seed twice", hint=hint)
    return seeds


def slug(prompt: str) -> str:
    """A file name for a prompt: lower case, words joined by underscores, accents dropped where ASCII has the letter."""
    plain = unicodedata.normalize("NFKD", prompt.lower())
    words = re.findall(r"\w+", "".join(character for character in plain if not unicodedata.combining(character)))
    name = "_".join(words)[:SLUG_LENGTH].rstrip("_")
    return name or "asset"


def fill_template(template: Path, job: "Job", index: int = 1, labels: Mapping[str, str] = MappingProxyType({})) -> Path:
    """The file of a job: a template with the fields `{prompt}`, `{seed}`, `{index}` and those of `labels` filled in.

    Args:
        template: the path; the prompt fills in as `slug` writes it.
        job: the job; its `output` does not count.
        index: its number among the jobs, from 1.
        labels: values of the fields `method` and `prior`.

    Raises:
        UsageProblem: the template has a field of another name.
    """
    values = {"index": str(index), "prompt": slug(job.prompt), "seed": str(job.seed), **labels}
    return fill_fields(template, values, dict.fromkeys((*TEMPLATE_FIELDS, *labels)))


def fill_fields(template: Path, values: Mapping[str, str], known: Collection[str] = ()) -> Path:
    """A path with its fields filled in.

    Args:
        template: the path.
        values: field -> value; the first one is what the hint of the error uses.
        known: the fields that the error names; by default those of `values`.

    Raises:
        UsageProblem: the path has a field without a value.
    """

    def value(match: re.Match[str]) -> str:
        if match[1] not in values:
            names = ", ".join(f"{{{name}}}" for name in known or values)
            spare = f"{{{next(iter(values))}}}"
            cured = FIELD.sub(lambda field: field[0] if field[1] in values else spare, str(template))
            raise UsageProblem(f"-o {template} has the field {match[0]}, not one of {names}", hint=f"-o {quote(cured)}")
        return values[match[1]]

    return Path(FIELD.sub(value, str(template)))


def has_field(template: Path | None, *names: str) -> bool:
    """Whether a template has one of the named fields."""
    return any(match[1] in names for match in FIELD.finditer(str(template or "")))


def jobs_of_prompt(
    prompt: str,
    output: Path | None,
    seeds: Sequence[int] | None,
    seed: int,
    labels: Mapping[str, str] = MappingProxyType({}),
) -> list[Job]:
    """The jobs of one prompt: one, or with `seeds` one per seed; `output` may be a template, see `fill_template`.

    Several seeds go into the folder `output` if it exists or has neither a suffix nor a field in its name.

    Raises:
        UsageProblem: several seeds for one file, one seed for a folder, or an unknown field.
    """
    if seeds is None and output is not None and is_folder(output):
        (inside,) = _jobs([(prompt, seed)], output / "{prompt}.ply", labels)
        raise UsageProblem(f"{output} is a folder", hint=f"-o {quote(str(free_path(inside.output)))}")
    if seeds is None:
        return _jobs([(prompt, seed)], output or Path("{prompt}.ply"), labels)
    name = "{prompt}-{seed}.ply"
    if output is None:
        output = Path(name)
    elif output.is_dir() or not (output.suffix or FIELD.search(output.name)):
        output /= name
    elif not has_field(output, "seed", "index"):
        several = output.with_name(f"{output.stem}-{{seed}}{output.suffix}")
        raise UsageProblem(
            f"-o {output} is one file, and several seeds were requested", hint=f"-o {quote(str(several))}"
        )
    return _jobs([(prompt, each) for each in seeds], output, labels)


def _jobs(items: Sequence[tuple[str, int]], template: Path, labels: Mapping[str, str]) -> list[Job]:
    """The jobs of prompts and seeds; a file that two of them would have gets a number, as in `bus-2.ply`."""
    jobs: dict[Path, Job] = {}
    for index, (prompt, seed) in enumerate(items, 1):
        first = output = fill_template(template, Job(prompt, seed, template), index, labels)
        number = 2
        while output in jobs:
            output, number = first.with_stem(f"{first.stem}-{number}"), number + 1
        jobs[output] = Job(prompt, seed, output)
    return list(jobs.values())


def read_prompts(source: str) -> list[str]:
    """The lines of a list of prompts, without empty ones and those that begin with #.

    Args:
        source: a file, or "-" for standard input.

    Raises:
        UsageProblem: there is no such file, or no prompt in it.
    """
    if source != "-" and is_folder(Path(source)):
        lists = sorted(Path(source).glob("*.txt"))
        raise UsageProblem(f"{source} is a folder", hint=f"--prompts {quote(str(lists[0]))}" if lists else None)
    try:
        content = sys.stdin.buffer.read() if source == "-" else Path(source).read_bytes()
    except OSError as problem:
        raise read_problem(problem, Path(source), "a yellow school bus") from problem
    lines = [line.strip() for line in _decode(content, source).splitlines()]
    found = [line for line in lines if line and not line.startswith("#")]
    if not found:
        new = free_path(NEW_LIST)
        example = "echo 'a yellow school bus'"
        raise UsageProblem(
            f"{source} has no prompt; it needs one per line, and # begins a comment",
            hint=f"{example} >> {quote(source)}" if Path(source).is_file() else f"{example} > {new} && --prompts {new}",
        )
    return found


def _decode(content: bytes, source: str) -> str:
    """The text of a list: UTF-8, or the encoding that its byte-order mark names; `source` names it in errors.

    Raises:
        UsageProblem: it is in another encoding, damaged, or no text.
    """
    encoding = next((name for mark, name in MARKS.items() if content.startswith(mark)), "UTF-8")
    try:
        text = content.decode("utf-8-sig" if encoding == "UTF-8" else encoding)
        wrong = text.find("\0")  # of a binary file, or of UTF-16 without its mark
    except UnicodeDecodeError as problem:
        wrong = problem.start
    if wrong < 0:
        return text
    message = f"{source} is not {encoding} text"
    if encoding != "UTF-8":
        raise UsageProblem(f"{message}: it is cut off or damaged after byte {wrong}")
    guesses = ("utf-16le", "utf-16be") if b"\0" in content else ("cp1252",)
    found = [each for each in guesses if _is_text(content, each)]
    new = free_path(NEW_LIST)
    cure = f"iconv -f {found[0]} -t utf-8 {quote(source)} > {new} && --prompts {new}" if found else None
    raise UsageProblem(message, hint=cure if source != "-" else None)


def _is_text(content: bytes, encoding: str) -> bool:
    """Whether bytes are characters of an encoding, none of them a zero."""
    try:
        return "\0" not in content.decode(encoding)
    except UnicodeDecodeError:
        return False


def match_prompts(lines: Sequence[str], stems: Sequence[str], source: str) -> list[str]:
    """The prompt of each asset, from a list: by name or, if no name fits, by position.

    A line is a prompt, or the stem of a file, a tab and a prompt. Without tabs, a prompt belongs to the files that
    `generate` would name after it, with or without a number at the end.

    Args:
        lines: of `read_prompts`.
        stems: of the assets' files.
        source: name of the list in errors.

    Raises:
        UsageProblem: an asset has no prompt.
    """
    new = free_path(NEW_LIST)
    rows = " ".join(f"{quote(stem)} 'a yellow school bus'" for stem in stems)
    example = f"printf '%s\\t%s\\n' {rows} > {new} && --prompts {new}"
    tabbed = [line.split("\t", 1) for line in lines if "\t" in line]
    if tabbed and len(tabbed) < len(lines):
        odd = next(line for line in lines if "\t" not in line)
        raise UsageProblem(f"{source} names files with tabs, but not in the line {odd!r}", hint=example)
    named = {name.strip(): prompt.strip() for name, prompt in tabbed} or {slug(line): line for line in lines}
    found = [named.get(stem, named.get(re.sub(r"-\d+$", "", stem))) for stem in stems]
    if tabbed or any(found):
        if None in found:
            raise UsageProblem(f"{source} has no prompt for {stems[found.index(None)]}", hint=example)
        return [prompt for prompt in found if prompt is not None]
    if len(lines) != len(stems):
        raise UsageProblem(
            f"{source} has {len(lines)} prompts for {len(stems)} assets, and none matches a file's name", hint=example
        )
    return list(lines)


def jobs_of_list(
    source: str,
    out_dir: Path | None,
    seeds: Sequence[int],
    output: Path | None = None,
    labels: Mapping[str, str] = MappingProxyType({}),
    *,
    with_seed: bool,
) -> list[Job]:
    """The jobs of a list of prompts, one per line; empty lines and those that begin with # are skipped.

    Args:
        source: a file, or "-" for standard input.
        out_dir: folder of the assets.
        seeds: seeds for each prompt.
        output: a template of their files in place of a folder.
        labels: see `fill_template`.
        with_seed: several seeds were requested: the files' names need them.

    Raises:
        UsageProblem: neither folder nor template or both, a template for too few files, no such list, or no prompt in
            it.
    """
    if out_dir is None and output is None:
        message = "--prompts needs a folder for the assets, or a template of their files"
        raise UsageProblem(message, hint="--out-dir assets")
    if out_dir is not None and output is not None:
        raise UsageProblem("--out-dir and -o both say where the assets of --prompts go", without=["-o"])
    found = list(dict.fromkeys(read_prompts(source)))
    if output is None:
        template = (out_dir or Path()) / ("{prompt}-{seed}.ply" if with_seed else "{prompt}.ply")
    else:
        template = output
        needed = [] if has_field(output, "index") else ["prompt", "seed"] if with_seed else ["prompt"]
        if lacking := [f"{{{name}}}" for name in needed if not has_field(output, name)]:
            several = output.with_name("-".join([output.stem, *lacking]) + (output.suffix or ".ply"))
            raise UsageProblem(f"-o {output} has no {lacking[0]}", hint=f"-o {quote(str(several))}")
    return _jobs([(prompt, seed) for prompt in found for seed in seeds], template, labels)


def make_folders(jobs: Sequence[Job], option: str, given: Path) -> None:
    """Creates the folders of the assets of an option, and their parents, if they do not exist.

    Args:
        jobs: the assets.
        option: the option.
        given: its value.

    Raises:
        UsageProblem: that fails.
    """
    for folder in dict.fromkeys(job.output.parent for job in jobs):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as problem:
            raise UsageProblem(
                f"the folder {folder} can't be created: {problem.strerror}", hint=other_output(problem, given, option)
            ) from problem
