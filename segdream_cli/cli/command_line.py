"""The command line as a person typed it: contradictions are refused, and hints repeat it without some of them."""

import shlex
from collections.abc import Collection, Iterator
from typing import Any

import typer
from typer.core import TyperCommand

from segdream_cli.errors import OptionProblem


class Command(TyperCommand):
    """A command that refuses contradicting options, and says in hints which command works."""

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
