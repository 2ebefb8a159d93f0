"""Charts of the page as SVG. Colours come from CSS, so they follow the colour scheme.

A chart has a width of `WIDTH` or `SMALL` units and is scaled to its column. The style
sheet may draw its text larger on a phone; the distances here leave room for that.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from kproba.results.cells import fixed
from kproba.results.palette import Style
from kproba.results.svg import Frame, axes, element, marker, nice_ticks, spread_labels

WIDTH, HEIGHT = 620, 460  # of the large chart
SMALL, LOW = 300, 132  # of a small one
TALL = 170  # height of a chart of a loss
LABEL = 21  # units between the middles of two labels
LETTER = 10.5  # units of a letter, at most
LONGEST = 18  # letters of a label
ROW = 30  # of a ranking
LEAST = 20.0  # points that the axis of a measure spans, at least


@dataclass(frozen=True)
class Point:
    """A value with its deviation over seeds.

    Attributes:
        x: The step.
        y: Mean over seeds.
        spread: Standard deviation over seeds; 0 for one seed.
    """

    x: float
    y: float
    spread: float = 0.0

    @property
    def text(self) -> str:
        """The value in words."""
        spread = f" ± {fixed(self.spread)}" if self.spread else ""
        return f"{fixed(self.y)}{spread}"


@dataclass(frozen=True)
class Series:
    """The values of one method.

    Attributes:
        name: The method.
        style: How it is drawn.
        points: Its values, in order.
        level: Whether it is one line through all steps, as joint training is.
    """

    name: str
    style: Style
    points: Sequence[Point]
    level: bool = False


def value_range(series: Sequence[Series]) -> list[float]:
    """Ticks that hold all values of some series.

    They begin at 0 unless all values are far from it, and span `LEAST` at least, so
    that small differences do not look large.
    """
    values = [
        bound
        for one in series
        for point in one.points
        for bound in (point.y - point.spread, point.y + point.spread)
    ]
    low, high = min(values, default=0.0), max(values, default=100.0)
    if 0 <= low < 0.7 * high:
        low = 0.0
    return nice_ticks(min(low, high - LEAST), high)


def line_chart(
    title: str, series: Sequence[Series], steps: Sequence[int], ticks: Sequence[float]
) -> Markup:
    """The large chart of a measure: a curve per method, with its name at the end.

    Args:
        title: The measure.
        series: The curves.
        steps: The steps of the horizontal axis.
        ticks: Of the vertical axis, which begins and ends with them.
    """
    drawn = [one for one in series if one.points]
    longest = max((min(LONGEST, len(one.name)) for one in drawn), default=0)
    right = WIDTH - 26 - LETTER * (longest + 5)
    frame = _frame(46, 16, right, HEIGHT - 46, steps, ticks)
    parts = [axes(frame, steps, ticks), *(_curve(one, frame) for one in drawn)]
    ends = [frame.up(one.points[-1].y) for one in drawn]
    moved = spread_labels(ends, LABEL, frame.top, frame.bottom)
    for one, end, place in zip(drawn, ends, moved, strict=True):
        parts.append(_end_label(one, frame, end, place))
    caption = element(
        "text", "step", class_="axis", x=(frame.left + frame.right) / 2, y=HEIGHT - 6.0
    )
    return _svg(title, drawn, (WIDTH, HEIGHT), [*parts, caption])


def small_chart(
    title: str, series: Sequence[Series], steps: Sequence[int], ticks: Sequence[float]
) -> Markup:
    """A small chart of a measure, whose colours the large one explains.

    Args:
        title: The measure.
        series: The curves.
        steps: The steps of the horizontal axis.
        ticks: Of the vertical axis; all measures have the same.
    """
    drawn = [one for one in series if one.points]
    frame = _frame(34, 12, SMALL - 14, LOW - 26, steps, ticks)
    sparse = ticks if len(ticks) < 5 else ticks[::2]
    parts = [axes(frame, steps, sparse), *(_curve(one, frame) for one in drawn)]
    return _svg(title, drawn, (SMALL, LOW), parts)


def _frame(
    left: float,
    top: float,
    right: float,
    bottom: float,
    steps: Sequence[int],
    ticks: Sequence[float],
) -> Frame:
    inset = 0.04 * (max(steps) - min(steps))
    x = (min(steps) - inset, max(steps) + inset)
    return Frame(left, top, right, bottom, x, (min(ticks), max(ticks)))


def _svg(
    title: str, series: Sequence[Series], size: tuple[float, float], parts: list[Markup]
) -> Markup:
    ended = "; ".join(f"{one.name} {one.points[-1].text}" for one in series)
    label = f"{title} over the steps, in percent. At the end: {ended or 'no value'}."
    return element(
        "svg",
        Markup("").join(parts),
        viewBox=f"0 0 {size[0]} {size[1]}",
        role="img",
        aria_label=label,
        class_="chart",
    )


def _curve(series: Series, frame: Frame) -> Markup:
    """A curve with a marker per value, or a level line."""
    if series.level:
        point = series.points[-1]
        y = frame.up(point.y)
        hint = element("title", f"{series.name}: {point.text}")
        ends = {"x1": float(frame.left), "x2": float(frame.right), "y1": y, "y2": y}
        line = element("line", hint, class_="level", **ends)
        return element("g", line, class_=f"series {series.style.name}")
    places = [(frame.across(p.x), frame.up(p.y)) for p in series.points]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    parts = [element("polyline", points=path)]
    for point, (x, y) in zip(series.points, places, strict=True):
        if point.spread:
            low, high = (
                frame.up(point.y - point.spread),
                frame.up(point.y + point.spread),
            )
            parts.append(element("line", class_="error", x1=x, x2=x, y1=low, y2=high))
        hint = element("title", f"{series.name}, step {point.x:g}: {point.text}")
        parts.append(marker(series.style.marker, x, y, hint))
    return element("g", Markup("").join(parts), class_=f"series {series.style.name}")


def _end_label(series: Series, frame: Frame, end: float, place: float) -> Markup:
    """Name and last value of a curve at its right end, with a line to it if moved."""
    name = series.name
    if len(name) > LONGEST:
        name = name[: LONGEST - 1] + "…"
    start = frame.right if series.level else frame.across(series.points[-1].x) + 7
    value = element("tspan", fixed(series.points[-1].y), class_="value")
    text = element(
        "text",
        Markup("{} {}").format(name, value),
        class_="name",
        x=frame.right + 16.0,
        y=place + 5,
    )
    lead = {"x1": start, "y1": end, "x2": frame.right + 12.0, "y2": place}
    line = element("line", class_="lead", **lead)
    return element("g", line, class_=f"series {series.style.name}") + text


def ranking(
    title: str, series: Sequence[Series], levels: Sequence[Series] = ()
) -> Markup:
    """A row per method, the best first: for more methods than curves can show.

    Args:
        title: The measure.
        series: Methods; the last value of each is shown.
        levels: Methods that are lines from top to bottom, as joint training is.
    """
    drawn = sorted((s for s in series if s.points), key=lambda s: -s.points[-1].y)
    lines = [one for one in levels if one.points]
    longest = max((min(LONGEST, len(one.name)) for one in drawn), default=0)
    height = ROW * len(drawn) + 62
    ticks = value_range([*drawn, *lines])
    frame = Frame(
        LETTER * longest + 16,
        24,
        WIDTH - 66,
        height - 34,
        (min(ticks), max(ticks)),
        (0, 1),
    )
    parts = [_ruler(frame, ticks)]
    for one in lines:
        parts.append(_upright(one, frame))
    for place, one in enumerate(drawn):
        parts.append(_rank(one, frame, frame.top + ROW * (place + 0.5)))
    return _svg(title, [*drawn, *lines], (WIDTH, height), parts)


def _ruler(frame: Frame, ticks: Sequence[float]) -> Markup:
    parts = []
    for tick in ticks:
        x = frame.across(tick)
        line = {"x1": x, "x2": x, "y1": float(frame.top), "y2": float(frame.bottom)}
        parts.append(element("line", class_="grid", **line))
        place = {"x": x, "y": frame.bottom + 20.0}
        parts.append(element("text", f"{tick:g}", class_="step", **place))
    return Markup("").join(parts)


def _upright(series: Series, frame: Frame) -> Markup:
    point = series.points[-1]
    x = frame.across(point.y)
    hint = element("title", f"{series.name}: {point.text}")
    ends = {"x1": x, "x2": x, "y1": float(frame.top), "y2": float(frame.bottom)}
    line = element("line", hint, class_="level", **ends)
    text = f"{series.name[:LONGEST]} {fixed(point.y)}"
    label = element("text", text, class_="step", x=x, y=frame.top - 8.0)
    return element("g", line, class_=f"series {series.style.name}") + label


def _rank(series: Series, frame: Frame, y: float) -> Markup:
    point, name = series.points[-1], series.name
    if len(name) > LONGEST:
        name = name[: LONGEST - 1] + "…"
    parts = []
    if point.spread:
        low, high = point.y - point.spread, point.y + point.spread
        ends = {"x1": frame.across(low), "x2": frame.across(high), "y1": y, "y2": y}
        parts.append(element("line", class_="error", **ends))
    hint = element("title", f"{series.name}: {point.text}")
    parts.append(marker(series.style.marker, frame.across(point.y), y, hint))
    drawn = element("g", Markup("").join(parts), class_=f"series {series.style.name}")
    label = element("text", name, class_="tick", x=frame.left - 12.0, y=y + 5)
    place = {"x": frame.right + 14.0, "y": y + 5}
    return drawn + label + element("text", fixed(point.y), class_="name", **place)


@dataclass(frozen=True)
class Curve:
    """One term of the loss of a training, over its iterations.

    Attributes:
        name: The method.
        style: How it is drawn.
        steps: By step the iterations and the values. Values that are not finite leave a
            gap.
    """

    name: str
    style: Style
    steps: Mapping[int, tuple[Sequence[float], Sequence[float]]]


def loss_chart(term: str, curves: Sequence[Curve], ends: Mapping[int, float]) -> Markup:
    """One term of the loss, a line per method, the steps side by side.

    Args:
        term: Its name.
        curves: The methods that have it.
        ends: By step its last iteration, the largest of all methods.
    """
    values = [v for curve in curves for _, ys in curve.steps.values() for v in ys]
    finite = [value for value in values if math.isfinite(value)]
    ticks = nice_ticks(min(0.0, *finite, 0.0), max(finite, default=1.0), 3)
    total = sum(ends.values()) or 1.0
    y = (min(ticks), max(ticks))
    frame = Frame(40, 20, SMALL - 8, TALL - 10, (0, total), y)
    parts, start = [axes(frame, [], ticks)], 0.0
    for step, length in ends.items():
        left, right = frame.across(start), frame.across(start + length)
        text = f"step {step}" if right - left > 44 else str(step)
        parts.append(element("text", text, class_="step", x=(left + right) / 2, y=13.0))
        line = {"x1": right, "x2": right, "y1": 20.0, "y2": float(frame.bottom)}
        parts.append(element("line", class_="grid", **line))
        parts += [_term(curve, step, frame, start) for curve in curves]
        start += length
    named = ", ".join(curve.name for curve in curves)
    return element(
        "svg",
        Markup("").join(parts),
        viewBox=f"0 0 {SMALL} {TALL}",
        role="img",
        aria_label=f"Loss term {term} over the iterations of all steps: {named}.",
        class_="chart",
    )


def _term(curve: Curve, step: int, frame: Frame, start: float) -> Markup:
    """The line of a step, or nothing."""
    x, values = curve.steps.get(step, ((), ()))
    places = [
        f"{frame.across(start + at):.1f},{frame.up(value):.1f}"
        for at, value in zip(x, values, strict=True)
        if math.isfinite(value)
    ]
    if not places:
        return Markup("")
    hint = element("title", f"{curve.name}, step {step}")
    line = element("polyline", hint, points=" ".join(places))
    return element("g", line, class_=f"series thin {curve.style.name}")
