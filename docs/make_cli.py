"""Writes docs/cli.md from the command line: python docs/make_cli.py > docs/cli.md.

Unlike Typer's own generator, it keeps the groups of options, and quotes stay quotes.
"""

import inspect
import re
import sys
from collections.abc import Iterator
from typing import Any

import typer

from segdream_cli.cli import app

EXAMPLE = re.compile(r"(segdream |\{)")
"""Start of a paragraph of a command's help that is code."""


def main() -> None:
    """Prints the page."""
    sys.stdout.write("\n".join(page()) + "\n")


def page() -> Iterator[str]:
    """The lines of the page."""
    group = typer.main.get_command(app)
    context = typer.Context(group, info_name="segdream", help_option_names=["-h", "--help"])
    commands = {name: each for name, each in group.commands.items() if not each.hidden}  # type: ignore[attr-defined]
    yield "# Commands and options"
    yield from paragraphs(group.help)
    yield from ["", "| command | |", "| --- | --- |"]
    for name, each in commands.items():
        yield f"| [`{name}`](#segdream-{name}) | {each.get_short_help_str(100)} |"
    yield from ["", group.epilog or ""]
    yield from options(group, context)
    for name, each in commands.items():
        yield from ["", f"## `segdream {name}`"]
        yield from paragraphs(each.help)
        own = typer.Context(each, info_name=name, parent=context)
        yield from ["", f"Usage: `segdream {name} {' '.join(each.collect_usage_pieces(own))}`"]
        yield from options(each, own)


def paragraphs(text: str | None) -> Iterator[str]:
    """The help of a command, with its examples as blocks of code."""
    blocks = inspect.cleandoc(text or "").split("\n\n")
    for block in blocks:
        code = EXAMPLE.match(block)
        yield ""
        yield from (f"    {line}" if code else line for line in block.splitlines())


def options(command: Any, context: typer.Context) -> Iterator[str]:
    """Arguments and options by group, in the order of the help in a terminal."""
    groups: dict[str, list[str]] = {}
    for each in command.get_params(context):
        if not getattr(each, "hidden", False):
            title = "Arguments" if each.param_type_name == "argument" else each.rich_help_panel or "Options"
            groups.setdefault(title, []).append(entry(each, context))
    for title in sorted(groups, key=lambda title: ("Arguments", "Options", title).index(title)):
        yield from ["", f"**{title}**", "", *groups[title]]


def entry(parameter: Any, context: typer.Context) -> str:
    """An argument or option as an item of a list: names, value, and help with its range and default."""
    _, about = parameter.get_help_record(context)
    about = " ".join(about.split())
    if parameter.param_type_name == "argument":
        return f"* `{parameter.display_name_raw}`: {about}"
    names = ", ".join([*sorted(parameter.opts, key=len), *parameter.secondary_opts])  # those of --help are a set
    value = "" if parameter.is_flag else parameter.display_type_rich(context).strip("<>")
    return f"* `{names}{' ' + value if value else ''}`: {about}"


if __name__ == "__main__":
    main()
