"""Line charts as inline SVG, drawn with the classes of the page's style sheet, without scripts."""

import html
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 640, 200
LEFT, RIGHT, TOP, BOTTOM = 64, 10, 24, 26
"""Margins for the labels."""
MOST_POINTS = 2000
"""Of more points, every second, third ... is drawn."""
MOST_TICKS = 6

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Chart:
    """One quantity over the steps of a run.

    Args:
        title: its name and unit.
        points: step and value.
        log: a logarithmic axis, which leaves out values of 0 and below.
        dots: draw dots, for values that jump from step to step.
    """

    title: str
    points: Points
    log: bool = False
    dots: bool = False


def draw(chart: Chart, last: float, stages: Mapping[str, float]) -> str:
    """The chart as an SVG element; empty without points.

    Args:
        chart: the quantity.
        last: step at the right end of the axis.
        stages: name -> its first step; a line and the name mark where it begins.
    """
    points = [(x, y) for x, y in chart.points if math.isfinite(y) and (y > 0 or not chart.log)]
    points = points[:: math.ceil(len(points) / MOST_POINTS) or 1]
    if not points:
        return ""
    values = [y for _, y in points]
    ticks = _log_ticks(min(values), max(values)) if chart.log else linear_ticks(min(0, *values), max(values))
    low, high = min(ticks[0], *values), max(ticks[-1], *values)

    def across(step: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (step / max(1.0, last))

    def down(value: float) -> float:
        if chart.log:
            value, bottom, top = math.log(value), math.log(low), math.log(high)
        else:
            bottom, top = low, high
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (value - bottom) / ((top - bottom) or 1.0)

    places = [(across(x), down(y)) for x, y in points]
    parts = [
        *(_line_at(down(value), _number(value)) for value in ticks),
        *(_step_at(across(step), _number(step)) for step in linear_ticks(0, last) if step <= last),
        *_stage_lines(stages, across),
        _dots(places) if chart.dots or len(places) == 1 else _path(places),
    ]
    title = html.escape(chart.title)
    return (
        f'<figure class="chart"><figcaption>{title}</figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img"><title>{title}</title>{"".join(parts)}</svg></figure>'
    )


def linear_ticks(low: float, high: float) -> list[float]:
    """Round numbers from `low` or below to `high` or above, 1, 2 or 5 times a power of ten apart."""
    width = (high - low) or abs(high) or 1.0
    power = 10.0 ** math.floor(math.log10(width / (MOST_TICKS - 1)))
    gap = next(factor * power for factor in (1, 2, 5, 10) if factor * power * (MOST_TICKS - 1) >= width * (1 - 1e-9))
    first, last = math.floor(low / gap + 1e-9), math.ceil(high / gap - 1e-9)
    return [index * gap for index in range(first, max(last, first + 1) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten about a range of positive values, and between them 2 and 5 times each if they are few."""
    first, last = math.floor(math.log10(low)), max(math.ceil(math.log10(high)), math.floor(math.log10(low)) + 1)
    gap = math.ceil((last - first) / (MOST_TICKS - 1))
    ticks = [10.0**power for power in range(first, last + gap, gap)]
    if len(ticks) > 3:
        return ticks
    between = sorted(factor * 10.0**power for power in range(first, last) for factor in (1, 2, 5))
    inner = [tick for tick in between if low <= tick <= high]
    below = max((tick for tick in between if tick <= low), default=ticks[0])
    above = min((tick for tick in [*between, ticks[-1]] if tick >= high), default=ticks[-1])
    return sorted({below, *inner, above})


def _number(value: float) -> str:
    """A short number with its thousands separated."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _line_at(y: float, label: str) -> str:
    """A horizontal line of the grid with its value."""
    line = f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>'
    return f'{line}<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{label}</text>'


def _step_at(x: float, label: str) -> str:
    """The number of a step below the axis."""
    return f'<text x="{x:.1f}" y="{HEIGHT - 8}" text-anchor="middle">{label}</text>'


def _stage_lines(stages: Mapping[str, float], across: Callable[[float], float]) -> Iterator[str]:
    """A vertical line where each stage begins, with its name."""
    for name, first in stages.items():
        x = across(first - 1)
        yield f'<path class="stage" d="M{x:.1f} {TOP - 8}V{HEIGHT - BOTTOM}"/>'
        yield f'<text x="{x + 4:.1f}" y="{TOP - 10}">{html.escape(name)}</text>'


def _path(places: Points) -> str:
    return f'<path class="curve" d="M{"L".join(f"{x:.1f} {y:.1f}" for x, y in places)}"/>'


def _dots(places: Points) -> str:
    """Dots as one path: a round cap makes each line of no length a dot."""
    return f'<path class="dots" d="{"".join(f"M{x:.1f} {y:.1f}h0" for x, y in places)}"/>'
