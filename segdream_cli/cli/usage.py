"""Command lines that Typer can't parse: the hint is the nearest one that it can.

Each kind of error has a cure, a function from the error and the words after `segdream` to better words, or to None if
the correction can't be known. Cures are applied until the line can be parsed, since it may have several errors.
"""

import difflib
import math
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any

import typer

from segdream_cli.cli.command_line import find_missing_value, rewrite, split_words
from segdream_cli.config import MINI, SD21
from segdream_cli.errors import SegdreamError, UsageProblem
from segdream_cli.priors.prompt import EXAMPLE, read_prompt
from segdream_cli.util.compat import usage_error

ROUNDS = 8
"""Most errors that are corrected in one command line."""
SHOWN = ("--help", "-h", "--version")
"""Options that show something in place of what the command does."""
ARGUMENTS: Mapping[str, str] = MappingProxyType({"PROMPT": EXAMPLE, "WEIGHTS": SD21})
"""Name of an argument -> its value in hints; of others, which may be assets, an asset of this folder or `ASSET`."""
ASSET = "bus.ply"
VALUES: Mapping[str, str] = MappingProxyType(
    {
        "--prompts": "prompts.txt",
        "--out-dir": "assets",
        "--batch": "4",
        "--seeds": "0-3",
        "--best-of": "4",
        "--negative": "a red ball",
        "--init": "sphere",
        "--init-prompt": "a bus",
        "--init-points": "1024",
        "--init-scale": "1.5",
        "--steps": "500",
        "--guidance-scale": "7.5",
        "--set": "optim.steps=500",
        "--devices": "0,1",
        "--preview-every": "50",
        "--resume": "bus.run",
        "--frame": "rdf",
        "--view": "35,15",
        "--n-frames": "120",
        "--fps": "30",
        "--caption": "bus",
        "--format": "ply",
        "--output-frame": "ruf",
        "--prune-opacity": "0.05",
        "--crop": "0.8",
        "--max-gaussians": "10000",
        "--keep": "25%",
        "--rotate": "0,90,0",
        "--scale": "2",
        "--height": "3.2m",
        "--sh": "0",
        "--spz-bits": "16",
        "--levels": "3",
        "--strength": "0.3",
        "--distil": "50",
        "--metrics": "judge",
        "--count": "5000",
    }
)
"""Option without a default -> its value in hints."""
OUTPUTS: Mapping[str, str] = MappingProxyType(
    {"render": "bus.mp4", "export": "bus.spz", "report": "bus.html", "lod": "levels"}
)
"""Command -> its output in hints, where that is not an asset."""
SYNONYMS: Mapping[str, Sequence[str]] = MappingProxyType(
    {
        "generate": ("make", "create", "new", "gen", "text-to-3d"),
        "view": ("show", "open", "preview", "serve"),
        "info": ("inspect", "describe", "stat"),
        "render": ("video", "turntable", "image"),
        "export": ("convert", "save", "edit"),
        "refine": ("optimize", "optimise", "improve", "polish"),
        "evaluate": ("eval", "measure", "score"),
        "runs": ("list", "ls", "clean"),
        "fetch": ("download", "install", "pull"),
        "doctor": ("check", "test", "diagnose"),
        "--version": ("version",),
        "--help": ("help",),
    }
)
"""Command -> words that other programs have for it."""
OPTION_SYNONYMS: Mapping[str, Sequence[str]] = MappingProxyType(
    {
        "--quality": ("--preset",),
        "--steps": ("--iterations", "--iters", "--num-steps", "--max-steps"),
        "--guidance-scale": ("--cfg", "--cfg-scale", "--guidance"),
        "--negative": ("--negative-prompt",),
        "--out-dir": ("--output-dir", "--output-folder"),
        "--prompts": ("--prompt-file", "--prompts-file"),
        "--force": ("--overwrite", "--replace", "--yes"),
        "--quiet": ("--silent",),
        "--size": ("--resolution", "--res"),
        "--n-frames": ("--num-frames",),
        "--background": ("--bg",),
        "--clean": ("--delete", "--remove", "--purge"),
    }
)
"""Option -> names that other programs have for it."""

WRONG = "?"
"""No choice of any option: its error lists the choices, and its cure is one of them."""

Words = Sequence[str]


def explain(problem: Any, group: Any, words: Words) -> UsageProblem:
    """The error to raise for a usage error of Typer.

    Args:
        problem: Typer's error.
        group: the command that has all others.
        words: the command line without the program.
    """
    context = _context_of(problem, group, words)
    return UsageProblem(_describe(problem, context, words), hint=_hint(problem, group, words))


def example_asset() -> str:
    """The latest asset of this folder, for hints; `ASSET` if there is none."""
    from segdream_cli.formats import readable_suffix  # a slow import

    ages: dict[str, float] = {}
    with suppress(OSError):
        ages = {path.name: path.stat().st_mtime for path in Path().iterdir() if readable_suffix(path)}
    return max(ages, key=lambda name: ages[name], default=ASSET)


def with_asset(context: typer.Context, options: Words = ()) -> str:
    """The command line with `example_asset`, and options, at its end, for hints."""
    return shlex.join(rewrite(context, (), [example_asset(), *options]))


def find_problem(group: Any, words: Words) -> Any | None:
    """The usage error of a command line, which is not run; None if Typer can parse it."""
    if {*words} & {*SHOWN}:
        return None
    try:
        with group.make_context("segdream", list(words)) as context:
            name, command, rest = group.resolve_command(context, list(words))
            with command.make_context(name, rest, parent=context):
                pass
    except usage_error(typer.BadParameter) as problem:
        return problem
    return None


def _context_of(problem: Any, group: Any, words: Words) -> Any:
    """The context of an error: its own, or that of the command, since Typer knows none for a value that is missing."""
    if problem.ctx is not None:
        return problem.ctx
    parent = group.make_context("segdream", [], resilient_parsing=True)
    command = group.commands.get(words[0])
    return command.make_context(words[0], [], parent=parent, resilient_parsing=True) if command else parent


def _hint(problem: Any, group: Any, words: Words) -> str:
    """The nearest command line that can be parsed, else the one that shows the help."""
    found, typed = problem, words
    for _ in range(ROUNDS):
        cured = _cure(found, _context_of(found, group, typed), typed)
        if cured is None:
            break
        typed, found = cured, find_problem(group, cured)
        if found is None:
            return shlex.join(["segdream", *typed])
    return f"{_context_of(problem, group, words).command_path} --help"


def _cure(problem: Any, context: Any, words: Words) -> list[str] | None:
    """The command line without one error; None if the correction can't be known."""
    kind = type(problem).__name__
    if context.parent is None:
        return _cure_group(problem, context, words, unknown_option=kind == "NoSuchOption")
    if found := _find_missing_value(problem, context, words):
        return [words[0], *found[1]]
    cures: Mapping[str, Callable[[Any, Any, Words], list[str] | None]] = {
        "NoSuchOption": _rename_option,
        "BadOptionUsage": _fit_value,
        "MissingParameter": _add_argument,
        "BadParameter": _replace_value,
        "UsageError": _join_arguments,
    }
    cured = cures[kind](problem, context, words[1:]) if kind in cures else None
    return None if cured is None else [words[0], *cured]


def _find_missing_value(problem: Any, context: Any, words: Words) -> tuple[str, list[str]] | None:
    """As `find_missing_value`, for the errors to which an option without its value leads."""
    is_possible = type(problem).__name__ in ("BadParameter", "UsageError")
    return find_missing_value(context, words[1:]) if is_possible else None


def _cure_group(problem: Any, context: Any, words: Words, *, unknown_option: bool) -> list[str] | None:
    """Options before the command follow it, a command gets its name, and a sentence gets `generate`."""
    commands = context.command.commands
    first = next((i for i, word in enumerate(words) if word in commands), None)
    if unknown_option:
        if first:
            return [*words[first:], *words[:first]]
        return _rename_option(problem, context, words)
    from segdream_cli.formats import readable_suffix  # a slow import

    name = words[0].lower()
    known = [command for command, others in SYNONYMS.items() if name in others]
    if known == ["--help"]:
        return [*[word for word in words[1:2] if word in commands], "--help"]
    if near := known or difflib.get_close_matches(name, commands, n=1, cutoff=0.7):
        return [near[0], *words[1:]]
    if readable_suffix(Path(words[0])):
        return ["view", *words]
    sentence = " " in words[0] or (len(words) > 1 and words[1].isalpha())
    return ["generate", *words] if sentence or _is_thing(name) else None


def _is_thing(word: str) -> bool:
    """Whether the embedded prior makes a thing of this name."""
    from segdream_cli.config.sections import PriorConfig
    from segdream_cli.priors.checkpoint import profile_of  # a slow import

    try:
        read_prompt(word, profile_of(PriorConfig(name=MINI), cuda=False).vocabulary)
    except SegdreamError:
        return False
    return True


def _rename_option(problem: Any, context: Any, words: Words) -> list[str] | None:
    """The option whose name is nearest, if one is near."""
    wrong = problem.option_name
    names = [opt for each in context.command.params for opt in (*each.opts, *each.secondary_opts)]
    for i, word in enumerate(words):
        name, equals, value = word.partition("=")
        if name == wrong or (f"-{name}" in names and name.startswith(wrong)):  # -seed is -s and more for Typer
            full = f"--{name.lstrip('-')}"
            longer = [opt for opt, others in OPTION_SYNONYMS.items() if opt in names and full in others]
            longer += [each for each in names if each.startswith(full) and len(name) > 2]
            near = longer or difflib.get_close_matches(full, names, n=1, cutoff=0.7)
            return [*words[:i], near[0] + equals + value, *words[i + 1 :]] if near else None
    return None


def _fit_value(problem: Any, context: Any, words: Words) -> list[str] | None:
    """A value for the last option, which lacks one, or a switch without the value that it does not take."""
    wrong = problem.option_name
    for i, word in enumerate(words):
        if word.startswith(f"{wrong}="):
            return [*words[:i], wrong, *words[i + 1 :]]
    found = _parameter(context, wrong)
    value = found and _example(context, found)
    return [*words, value] if value and words[-1:] == [wrong] else None


def _add_argument(problem: Any, context: Any, words: Words) -> list[str] | None:
    """An example of the argument that is missing, after the others."""
    name = str(problem.param.metavar)
    value = ARGUMENTS.get(name) or example_asset()
    uses = list(split_words(context, words))
    last = max((i for i, (use, each) in enumerate(uses, 1) if not use and each[0] != "--"), default=0)
    return [word for _, each in [*uses[:last], ("", [value]), *uses[last:]] for word in each]


def _replace_value(problem: Any, context: Any, words: Words) -> list[str] | None:
    """The value that is nearest to a wrong one: of choices, or in a range."""
    found = problem.param
    uses = list(split_words(context, words))
    for i, (name, each) in enumerate(uses):
        value = _value(each) if name else each[0]
        new = _nearest_value(problem, context, value)
        if new is not None and (name == found.name or (not name and f"{value!r} is not one of" in problem.message)):
            given = [f"{each[0].partition('=')[0]}={new}"] if name and len(each) == 1 else [*each[:-1], new]
            return [word for _, other in [*uses[:i], (name, given), *uses[i + 1 :]] for word in other]
    return None


def _nearest_value(problem: Any, context: Any, value: str) -> str | None:
    """The allowed value that is nearest to a wrong one; else an example."""
    found = problem.param
    choices = re.findall(r"'([^']*)'", problem.message.partition("is not one of")[2])
    if choices:
        near = difflib.get_close_matches(value.lower(), choices, n=1, cutoff=0.5)
        return near[0] if near else _default(found) or choices[0]
    number = re.match(r"[-+]?\d+(\.\d+)?", value.replace(",", ""))
    if number is None:
        return _example(context, found)
    within = max(float(number[0]), -math.inf if found.min is None else found.min)
    within = min(within, math.inf if found.max is None else found.max)
    return f"{within:.0f}" if found.bare_type() == "int" else f"{within:g}"


def _join_arguments(problem: Any, context: Any, words: Words) -> list[str] | None:
    """The words of a prompt as one argument, and a file after it as the output; else without the arguments too many."""
    uses = list(split_words(context, words))
    places = [i for i, (name, _) in enumerate(uses) if not name]
    if any(uses[i][1][0] == "--" for i in places):
        return None
    arguments = [each for each in context.command.params if each.param_type_name == "argument"]
    kept, extra = places[: len(arguments)], places[len(arguments) :]
    added: list[str] = []
    if arguments and arguments[-1].metavar == "PROMPT":
        texts = [uses[i][1][0] for i in (kept[-1], *extra)]
        if Path(texts[-1]).suffix and not any(name == "output" for name, _ in uses):
            added = ["-o", texts.pop()]
        uses[kept[-1]] = "", [" ".join(texts)]
    return [word for i, (_, each) in enumerate(uses) if i not in extra for word in each] + added


def _parameter(context: Any, opt: str) -> Any | None:
    """The parameter of an option."""
    return next((each for each in context.command.params if opt in (*each.opts, *each.secondary_opts)), None)


def _value(words: Words) -> str:
    """The value in the words of an option: --steps 3, --steps=3."""
    return words[-1] if len(words) > 1 else words[0].partition("=")[2]


def _default(parameter: Any) -> str | None:
    """The default of a parameter as typed; None if it has none."""
    return None if parameter.default is None else str(parameter.default)


def _example(context: Any, parameter: Any) -> str | None:
    """A value of an option for hints; None if none can be known."""
    if parameter.opts[-1] == "--output":
        return OUTPUTS.get(str(context.info_name), ASSET)
    if parameter.metavar is None:
        return _default(parameter) or WRONG
    return _default(parameter) or VALUES.get(parameter.opts[-1])


def _describe(problem: Any, context: Any, words: Words) -> str:
    """The error in one line: Typer's message, except where that needs more or plainer words."""
    name = type(problem).__name__
    # pydantic puts this prefix before Typer's own message about a choice
    message = " ".join(problem.format_message().replace("Value error, ", "").rstrip(".").split())
    message = message.replace(". Choose from: ", ", one of ")
    message = re.split(r" \(Possible options: |\. Did you mean ", message)[0]  # the hint has the nearest one
    commands = getattr(context.command, "commands", {})
    if name == "NoSuchOption" and {*words} & {*commands}:
        return f"options follow the command, and {problem.option_name} is before it"
    if missing := _find_missing_value(problem, context, words):
        return missing[0]
    if name == "UsageError" and not commands:
        extra = message.partition("(")[2].removeprefix("s) (").removesuffix(")")
        is_prompt = not Path(extra).suffix and any(each.metavar == "PROMPT" for each in context.command.params)
        return f"too many arguments: {extra}" + ("; a prompt of several words needs quotes" if is_prompt else "")
    found = getattr(problem, "param", None)
    kind = found and {"int": "an integer", "float": "a number"}.get(found.bare_type())
    if found and kind and name == "BadParameter":
        value = next((_value(each) for use, each in split_words(context, words[1:]) if use == found.name), "")
        return f"{found.opts[-1]} {value!r} is not {kind}{_range(found)}"
    return message[:1].lower() + message[1:]


def _range(parameter: Any) -> str:
    """The limits of a number, as the end of a sentence."""
    low, high = (None if limit is None else f"{limit:,}" for limit in (parameter.min, parameter.max))
    if high is None:
        return "" if low is None else f" of at least {low}"
    return f" from {low} to {high}"
