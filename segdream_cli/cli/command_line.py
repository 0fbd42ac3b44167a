"""The command line as a person typed it: contradictions are refused, and hints repeat it without some of them.

Its help has the groups in the order of use, and plain names for values.
"""

import difflib
import shlex
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextvars import ContextVar
from itertools import chain
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperCommand

from segdream_cli.config.start import POINT_E
from segdream_cli.errors import OptionProblem, SegdreamError
from segdream_cli.priors.prompt import WORDS_HINT

GROUPS = ("Prompt", "Output", "", "Quality", "Run", "Start", "Hardware and weights")
"""Groups of options in the order of use; the empty name stands for a command's own groups."""
LAST = ("force", "json", "quiet", "no_browser", "help")
"""Options at the end of their group, in this order."""
VALUES = {"str": "TEXT", "int": "N", "float": "X", "Path": "PATH"}
"""Type of a value -> its name in the help."""
STANDS_FOR = "segdream.settings"
"""Key in a context's `meta` of the settings that options stand for: setting -> option."""
EXCLUDES = {
    "prior": ("model",),
    "model": ("prior",),
    "output": ("out_dir",),
    "out_dir": ("output",),
    "seed": ("seeds",),
    "seeds": ("seed",),
    "device": ("devices", "ray"),
    "init": (
        *("init_prompt", "init_color", "init_points", "init_scale", "point_e_dir"),
        *("frame", "strict", "as_splats"),
    ),
}
"""Parameter -> others that it takes the place of in a hint; --init point-e takes the place of none."""
OF_PRIOR = ("prior", "model", "device", "config")
"""Parameters that choose the prior, whose words a hint lists."""
_current: ContextVar[typer.Context | None] = ContextVar("_current", default=None)
"""The latest command of this process; its context outlives it, since its error is printed after its end."""


class Command(TyperCommand):
    """A command that refuses contradicting options, and says in hints which command works."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        for each in self.params:
            if each.metavar is None:
                each.metavar = name_value(each)

    def get_params(self, ctx: typer.Context) -> list[Any]:  # type: ignore[override]
        """The parameters in the order in which the help shows them; `--help` is the last one of the outputs."""
        found: list[Any] = list(super().get_params(ctx))
        for each in found:
            if each.name == "help":
                each.rich_help_panel, each.metavar = "Output", ""
        return sorted(found, key=_rank)

    def invoke(self, ctx: typer.Context) -> Any:  # type: ignore[override]
        """Runs the command.

        Raises:
            OptionProblem: a switch is given in both ways, or an option takes another one as its value; or the command
            raised it.
        """
        _current.set(ctx)
        _refuse_missing_value(ctx)
        _refuse_contradictions(ctx)
        return super().invoke(ctx)


def complete_hint(problem: SegdreamError) -> str | None:
    """The hint of an error as a whole command.

    Options alone, also after "&&", are put into the command line that failed, in place of those that they replace or
    contradict. None if that command does not have them.
    """
    context, hint = _current.get(), (problem.hint or "").partition("  # ")[0]  # zsh takes no comments
    if context is None:
        return hint or None
    if hint == WORDS_HINT:
        uses = [_of_prior(name, words) for name, words in split_words(context, context.obj[1:])]
        return shlex.join([*shlex.split(hint), *chain(*uses)])
    before, joint, options = hint.rpartition(" && ")
    if problem.words and {*problem.words} <= {each for word in context.obj for each in (word, str(Path(word)))}:
        options = ""
    elif not options.startswith("-") and (hint or not problem.without):
        return hint or None
    amended = _amend(context, shlex.split(options), problem)
    return amended and f"{before}{joint}{amended}"


def remember_settings(names: Mapping[str, str]) -> None:
    """Tells hints which option of the command stands for a setting, since `--set` can't be given beside it."""
    if context := _current.get():
        context.meta[STANDS_FOR] = names


def forget_command() -> None:
    """Lets hints stay as they are until a command begins: this one has none, or none that can be read."""
    _current.set(None)


def name_value(parameter: Any) -> str | None:
    """The name of an option's value, or of an argument; None for a choice, which is named by its values."""
    if parameter.param_type_name == "argument":
        return str(parameter.name).upper()
    if parameter.is_flag:
        return ""
    return VALUES.get(parameter.bare_type().removeprefix("list[").removesuffix("]"))


def _rank(parameter: Any) -> tuple[int, int]:
    """Place of a parameter in the help: that of its group, and within the group."""
    if parameter.param_type_name == "argument":
        return -1, 0
    group, name = parameter.rich_help_panel, str(parameter.name)
    return GROUPS.index(group if group in GROUPS else ""), LAST.index(name) if name in LAST else -1


def find_missing_value(context: typer.Context, given: Sequence[str]) -> tuple[str, list[str]] | None:
    """An option without its value, in place of which Typer takes the option after it.

    Returns:
        the error in one line, and the words `given` without the first option; None if there is no such option.
    """
    named = context.command.get_params(context)
    opts = {opt for each in named for opt in (*each.opts, *each.secondary_opts) if opt.startswith("-")}
    uses = list(split_words(context, given))
    for i, (name, words) in enumerate(uses):
        if name and len(words) == 2 and words[1].partition("=")[0] in opts:
            kept = [word for _, each in [*uses[:i], ("", words[1:]), *uses[i + 1 :]] for word in each]
            return f"{words[0]} needs a value, and {words[1]} is the next option", kept
    return None


def _refuse_missing_value(context: typer.Context) -> None:
    """Refuses an option that takes another one as its value."""
    if found := find_missing_value(context, context.obj[1:]):
        message, kept = found
        raise OptionProblem(message, hint=shlex.join([*context.command_path.split(), *kept]))


def _refuse_contradictions(context: typer.Context) -> None:
    """Refuses a switch that is given in both ways. Of two values of another option, the last wins, as in most tools."""
    given: dict[str, str] = {}
    opposites = {str(each.name) for each in context.command.params if each.secondary_opts}
    for name, words in split_words(context, context.obj[1:]):
        before = given.setdefault(name, words[0])
        if name in opposites and before != words[0]:
            kept = [word for _, each in split_words(context, context.obj[1:]) for word in each if word != before]
            hint = shlex.join([*context.command_path.split(), *kept])
            raise OptionProblem(f"{before} and {words[0]} contradict each other", hint=hint)


def rewrite(context: typer.Context, without: Collection[str], added: Sequence[str]) -> list[str]:
    """The words of the command line without some options, and with other words at its end."""
    dropped = {str(each.name) for each in context.command.params if {*each.opts} & {*without}}
    kept = [word for name, words in split_words(context, context.obj[1:]) if name not in dropped for word in words]
    return [*context.command_path.split(), *kept, *added]


def options_of(context: typer.Context, without: Collection[str]) -> list[str]:
    """The words of the options of the command line, but for some parameters."""
    return [
        word for name, words in split_words(context, context.obj[1:]) if name not in {"", *without} for word in words
    ]


def _amend(context: typer.Context, words: Sequence[str], problem: SegdreamError) -> str | None:
    """The command line with some options, and the other corrections of a problem."""
    added, given = list(split_words(context, words)), list(_spell(context, problem.words))
    if not all(name for name, _ in added):
        return None
    uses = [_identity(context, name, each) for name, each in given]
    excluded = {(other, None) for name, each in added if each[-1] != POINT_E for other in EXCLUDES.get(name, ())}
    left_out = _left_out(context, problem.without)
    changed = excluded | left_out
    kept: list[str] = []
    changes = [word for _, each in added for word in each]
    replaced = {_match_use(context, name, each, uses, left_out) for name, each in added} | _twins(context, added)
    for use, (_, each) in zip(uses, given, strict=True):
        if use in replaced or each[0] == "--":  # after which there are only arguments
            kept, changes = [*kept, *changes], []
        if not {use, (use[0], None)} & (replaced | changed):
            kept += each
    return shlex.join([*context.command_path.split(), *kept, *changes])


def _spell(context: typer.Context, words: Mapping[str, str]) -> Iterator[tuple[str, list[str]]]:
    """The uses of the command line with other words, in arguments or, where no argument has a word, in options."""
    uses = list(split_words(context, context.obj[1:]))
    known = {word: words.get(word) or words.get(str(Path(word))) or word for _, each in uses for word in each}
    arguments = {each[0] for name, each in uses if not name}
    for name, each in uses:
        yield name, [word if name and word in arguments else known[word] for word in each]


def _of_prior(name: str, words: Sequence[str]) -> Sequence[str]:
    """The words of a use that chooses the prior; none of another one."""
    sets_prior = name == "assignments" and words[-1].removeprefix("--set=").startswith("prior.")
    return words if name in OF_PRIOR or sets_prior else ()


Use = tuple[str, str | None]
"""A parameter of the command line, and which of its values; None stands for all."""


def _identity(context: typer.Context, name: str, words: Sequence[str]) -> Use:
    """What two uses of a parameter have in common if one replaces the other: the setting of `--set`, or the value."""
    found = next((each for each in context.command.params if each.name == name), None)
    if not name:
        return "", words[0]
    if found is None or not getattr(found, "multiple", False):
        return name, ""
    value = words[-1].removeprefix(f"{words[0].partition('=')[0]}=") if len(words) == 1 else words[-1]
    return name, _setting(value) if name == "assignments" else value


def _setting(assignment: str) -> str:
    """The key of key=value without the method, since `distill.t_min` may be `distill.sctd.t_min`."""
    first, *others = assignment.partition("=")[0].strip().split(".")
    return ".".join([first, *(others[-1:] if first == "distill" else others)])


def _left_out(context: typer.Context, names: Sequence[str]) -> set[Use]:
    """The uses that `SegdreamError.without` names."""
    found = set[Use]()
    for name in names:
        opt, _, value = name.partition(" ")
        for each in context.command.params:
            if opt in (*each.opts, *each.secondary_opts):
                found.add(_identity(context, str(each.name), [opt, value]) if value else (str(each.name), None))
            elif name == each.metavar or name == str(each.name).upper():
                given = context.params[str(each.name)]
                found |= {("", str(value)) for value in (given if isinstance(given, list) else [given])}
        found.add(("", name))
    return found


def _match_use(
    context: typer.Context, name: str, words: Sequence[str], uses: Sequence[Use], left_out: Collection[Use]
) -> Use:
    """The use that an added option replaces: of several values, the one that is left out or most like its own."""
    use = _identity(context, name, words)
    others = [value for other, value in uses if other == name and value is not None]
    if name == "assignments" or not use[1] or not others:
        return use
    wrong = [value for value in others if (name, value) in left_out]
    return name, (wrong or difflib.get_close_matches(use[1], others, n=1, cutoff=0))[0]


def _twins(context: typer.Context, added: Sequence[tuple[str, Sequence[str]]]) -> set[Use]:
    """The uses of options that set the same as those that are added: `--steps 3` and `--set optim.steps=3`."""
    names = {opt: str(each.name) for each in context.command.params for opt in (*each.opts, *each.secondary_opts)}
    pairs = [(_setting(key), names[opt]) for key, opt in context.meta.get(STANDS_FOR, {}).items() if opt in names]
    given = {_identity(context, name, words) for name, words in added}
    return {(name, "") for key, name in pairs if ("assignments", key) in given} | {
        ("assignments", key) for key, name in pairs if (name, "") in given
    }


def split_words(context: typer.Context, given: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """Yields the words of a command line with the parameter that they give; arguments have the name ""."""
    options = {opt: each for each in context.command.params for opt in (*each.opts, *each.secondary_opts)}
    words = iter(given)
    for word in words:
        opt, equals, _ = word.partition("=") if word.startswith("--") else (word[:2], word[2:], "")
        found = options.get(opt) if word.startswith("-") else None
        if found is None:
            yield "", [word, *words] if word == "--" else [word]
        elif getattr(found, "is_flag", False) or equals:
            yield str(found.name), [word]
        else:
            yield str(found.name), [word, next(words, "")]
