"""Reading settings from text, and checking their values."""

import difflib
import math
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Annotated, Any, Literal

from segdream_cli.errors import UsageProblem
from segdream_cli.util.files import parse_json, read_problem


@dataclass(frozen=True, slots=True)
class Within:
    """Limits of the numbers of a setting.

    Args:
        low: smallest value.
        high: largest value.
        increasing: the first of a pair must not exceed the second.
        steps: the setting counts steps of a full run, which `Config.with_steps` scales.
    """

    low: float
    high: float = math.inf
    increasing: bool = False
    steps: bool = False


MAX_STEPS = 1_000_000
MAX_GUIDANCE = 1000.0
"""Ten times the largest published guidance scale, that of DreamFusion."""
Range = tuple[float, float]
Natural = Annotated[int, Within(0)]
Count = Annotated[int, Within(1)]
Steps = Annotated[int, Within(0, steps=True)]
Period = Annotated[int, Within(1, steps=True)]
Amount = Annotated[float, Within(0)]
Share = Annotated[float, Within(0, 1)]
Guidance = Annotated[float, Within(0, MAX_GUIDANCE)]


def read_toml(path: Path) -> dict[str, Any]:
    """The settings of a TOML file, as tables, or of a run's `run.json`, to repeat that run.

    Raises:
        UsageProblem: the file can't be read, or is neither.
    """
    import tomllib  # here, since reading the help needs none of it

    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".json":
            # records that name no method are older than the second one
            return {"distill.method": "sctd", **parse_json(text)["config"]}
        return tomllib.loads(text)
    except OSError as problem:
        raise read_problem(problem, path, "optim.steps = 1000") from problem
    except (ValueError, KeyError, TypeError, RecursionError) as problem:
        raise UsageProblem(f"{path} is not a configuration: {problem}") from problem


def parse_assignments(assignments: Sequence[str]) -> dict[str, Any]:
    """Dotted settings of `key=value` strings; a value is read as TOML or, if that fails, as text. The last one wins.

    Raises:
        UsageProblem: an entry without an equals sign.
    """
    import tomllib

    parsed: dict[str, Any] = {}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals:
            raise UsageProblem(f"--set {assignment!r} has no '='", without=[f"--set {assignment}"])
        try:
            (parsed[key.strip()],) = tomllib.loads(f"value = {text.strip()}").values()
        except (ValueError, RecursionError):  # not TOML, or more than one line of it
            parsed[key.strip()] = text.strip()
    return parsed


def nearest(key: str, known: Mapping[str, Any]) -> str:
    """The key that may have been meant by an unknown one: the same name in another section, or the nearest."""
    by_name = [full for full in known if full.rpartition(".")[2] == key.rpartition(".")[2]]
    return (by_name or difflib.get_close_matches(key, known, n=1, cutoff=0.0))[0]


def convert(key: str, value: Any, annotation: Any, default: Any = None) -> Any:
    """The value as the setting's type; `default` is for hints.

    Raises:
        UsageProblem: it has another type, or lies outside the setting's limits.
    """
    if typing.get_origin(annotation) is Annotated:
        kind, limits = typing.get_args(annotation)
        return _check_limits(key, convert(key, value, kind, default), limits)
    options = typing.get_args(annotation) if _is_union(annotation) else (annotation,)
    # None comes first: the word "none" means None even where text is allowed
    for option in sorted(options, key=lambda kind: kind is not type(None)):
        accepted, result = _accept(value, option)
        if accepted:
            return result
    choices = [text for option in options if typing.get_origin(option) is Literal for text in typing.get_args(option)]
    if choices:
        close = difflib.get_close_matches(str(value), map(str, choices), n=1, cutoff=0)[0]
        message = f"{key} can't be {value!r}; use one of {', '.join(map(str, choices))}"
        raise UsageProblem(message, hint=f"--set {assignment(key, close)}")
    raise UsageProblem(f"{key} can't be {value!r}", hint=f"--set {assignment(key, default)}")


def counts_steps(annotation: Any) -> bool:
    """Whether a setting counts optimisation steps, which `Config.with_steps` scales."""
    limits = [part for part in typing.get_args(annotation) if isinstance(part, Within)]
    return any(part.steps for part in limits)


def _check_limits(key: str, value: Any, limits: Within) -> Any:
    """The value, a number, a pair of numbers or None, if it lies within the limits.

    Raises:
        UsageProblem: it does not; the hint has the nearest value that does.
    """
    if value is None:
        return None
    numbers = value if isinstance(value, tuple) else (value,)
    nearest = tuple(min(max(number, limits.low), limits.high) for number in numbers)
    if numbers != nearest:
        named = (("at least", limits.low), ("at most", limits.high))
        bounds = " and ".join(f"{word} {bound:g}" for word, bound in named if math.isfinite(bound))
        raise UsageProblem(
            f"{key} can't be {_format(value)}: it must be {bounds}",
            hint=f"--set {assignment(key, nearest if isinstance(value, tuple) else nearest[0])}",
        )
    if limits.increasing and list(numbers) != sorted(numbers):
        reason = "the first number must not exceed the second"
        ordered = assignment(key, tuple(sorted(numbers)))
        raise UsageProblem(f"{key} can't be {_format(value)}: {reason}", hint=f"--set {ordered}")
    return value


def _format(value: Any) -> str:
    """A value as it is typed after `--set key=`."""
    if isinstance(value, (tuple, list)):
        return f"[{','.join(map(_format, value))}]"
    if isinstance(value, Mapping):
        return f"{{{','.join(f'{key}={_format(part)}' for key, part in value.items())}}}"
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def assignment(key: str, value: Any) -> str:
    """The `key=value` of a setting, quoted for a shell."""
    return quote(f"{key}={_format(value)}")


def _is_union(annotation: Any) -> bool:
    return type(None) in typing.get_args(annotation)


def _accept(value: Any, kind: Any) -> tuple[bool, Any]:
    """Whether `value` is of `kind`, and the value as that kind."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        return value in arguments, value
    if kind is type(None):
        return value is None or value == "none", None
    if origin is tuple:
        return _accept_numbers(value, arguments)
    if origin is Mapping:
        weights = isinstance(value, Mapping) and all(
            _accept(part, option)[0] for entry in value.items() for part, option in zip(entry, arguments, strict=True)
        )
        return weights, dict(value) if weights else None
    if kind is float:
        return _is_number(value), float(value) if _is_number(value) else None
    return type(value) is kind, value


def _accept_numbers(value: Any, kinds: tuple[Any, ...]) -> tuple[bool, Any]:
    """Whether `value` is a list of numbers: one per kind, or one or more of the first kind if an ellipsis follows."""
    if not isinstance(value, (list, tuple)) or not value:
        return False, None
    if Ellipsis in kinds:
        kinds = kinds[:1] * len(value)
    if len(value) != len(kinds):
        return False, None
    accepted, numbers = zip(*map(_accept, value, kinds), strict=True)
    return all(accepted), numbers


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def plain(value: Any) -> Any:
    """A setting's value as a JSON value."""
    if isinstance(value, Mapping):
        return dict(value)
    return list(value) if isinstance(value, tuple) else value
