"""The command line as a person typed it: contradictions are refused, and hints repeat it without some of them.

Its help has the groups in the order of use, and plain names for values.
"""

import shlex
from collections.abc import Collection, Iterator
from typing import Any

import typer
from typer.core import TyperCommand

from segdream_cli.errors import OptionProblem

GROUPS = ("Prompt", "Output", "", "Quality", "Run", "Start", "Hardware and weights")
"""Groups of options in the order of use; the empty name stands for a command's own groups."""
LAST = ("force", "json", "quiet", "no_browser", "help")
"""Options at the end of their group, in this order."""
VALUES = {"str": "TEXT", "int": "N", "float": "X", "Path": "PATH"}
"""Type of a value -> its name in the help."""


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
            OptionProblem: a switch is given in both ways; or the command raised it.
        """
        try:
            _refuse_contradictions(ctx)
            return super().invoke(ctx)
        except OptionProblem as problem:
            if problem.hint is None and problem.without:
                problem.hint = _without(ctx, problem.without)
            raise


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


def _refuse_contradictions(context: typer.Context) -> None:
    """Refuses a switch that is given in both ways. Of two values of another option, the last wins, as in most tools."""
    given: dict[str, str] = {}
    opposites = {str(each.name) for each in context.command.params if each.secondary_opts}
    for name, words in _split(context):
        before = given.setdefault(name, words[0])
        if name in opposites and before != words[0]:
            kept = [word for _, each in _split(context) for word in each if word != before]
            hint = shlex.join([*context.command_path.split(), *kept])
            raise OptionProblem(f"{before} and {words[0]} contradict each other", hint=hint)


def _without(context: typer.Context, options: Collection[str]) -> str:
    """The command line without some options, or without its argument PROMPT."""
    dropped = {str(each.name) for each in context.command.params if {*each.opts} & {*options}}
    kept = [word for name, words in _split(context) if name not in dropped for word in words]
    if "PROMPT" in options:
        kept = [word for word in kept if word != context.params["prompt"]]
    return shlex.join([*context.command_path.split(), *kept])


def _split(context: typer.Context) -> Iterator[tuple[str, list[str]]]:
    """Yields the words of the command line with the parameter that they give; arguments have the name "".

    `context.obj` holds the words after the program's name.
    """
    options = {opt: each for each in context.command.params for opt in (*each.opts, *each.secondary_opts)}
    words = iter(context.obj[1:])
    for word in words:
        opt, equals, _ = word.partition("=") if word.startswith("--") else (word[:2], word[2:], "")
        found = options.get(opt) if word.startswith("-") else None
        if found is None:
            yield "", [word, *words] if word == "--" else [word]
        elif getattr(found, "is_flag", False) or equals:
            yield str(found.name), [word]
        else:
            yield str(found.name), [word, next(words, "")]
