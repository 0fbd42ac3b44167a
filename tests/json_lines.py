"""Compares lines of `--json` with their classes, and these with the page that describes them."""

import json
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from segdream_cli.cli import schema

PAGE = Path(__file__).parents[1] / "docs" / "json.md"
JSON_TYPES = {str: "string", Path: "string", int: "integer", float: "number", bool: "boolean"}
BOTH = ("schema", "event")


def line_classes() -> list[type[schema.Line]]:
    """The classes of lines that a command prints."""
    every = [each for each in vars(schema).values() if isinstance(each, type) and issubclass(each, schema.Line)]
    return [each for each in every if each not in (schema.Line, schema.Done)]


def hints(kind: type[schema.Line]) -> dict[str, Any]:
    """The type of each field."""
    found = typing.get_type_hints(kind)
    return {each.name: found[each.name] for each in fields(kind)}


def check_lines(text: str) -> list[dict[str, Any]]:
    """The lines of an output; fails if one does not fit exactly one class."""
    lines = [json.loads(line, parse_constant=_refuse) for line in text.splitlines()]
    for line in lines:
        assert line["schema"] == schema.SCHEMA
        content = {name: value for name, value in line.items() if name not in BOTH}
        fitting = [
            kind
            for kind in line_classes()
            if kind.event == line["event"]
            and hints(kind).keys() == content.keys()
            and all(fits(content[name], hint) for name, hint in hints(kind).items())
        ]
        assert len(fitting) == 1, (line, fitting)
    return lines


def fits(value: Any, hint: Any) -> bool:
    """Whether a value of JSON has a type."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return any(fits(value, each) for each in arguments)
    if hint is types.NoneType:
        return value is None
    if origin is Mapping:
        return isinstance(value, dict) and all(fits(each, arguments[1]) for each in value.values())
    if origin is Sequence:
        return isinstance(value, list) and all(fits(each, arguments[0]) for each in value)
    kinds = {Path: str, float: (int, float)}.get(hint, hint)
    return isinstance(value, kinds) and (isinstance(value, bool) == (hint is bool))


def describe(hint: Any) -> str:
    """The type of a field in the words of the page."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return f"{describe(arguments[0])} or null"
    if origin is Mapping:
        return "object"
    if origin is Sequence:
        return f"list of {describe(arguments[0])}s"
    return JSON_TYPES[hint]


def described() -> Iterator[tuple[str, dict[str, str]]]:
    """The event, and the type of each field, of each table of the page."""
    for section in PAGE.read_text(encoding="utf-8").split("\n### ")[1:]:
        event = re.match(r"`(\w+)`", section)
        assert event
        yield event[1], dict(re.findall(r"^\| `(\w+)` \| ([\w ]+) \|", section.partition("\n## ")[0], re.MULTILINE))


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
