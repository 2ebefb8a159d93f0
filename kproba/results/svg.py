"""Parts of charts as SVG: elements, axes, markers and places of labels."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup


@dataclass(frozen=True)
class Frame:
    """The area of a chart between its axes.

    Attributes:
        left, top, right, bottom: In units of the chart.
        x, y: Range of the values.
    """

    left: float
    top: float
    right: float
    bottom: float
    x: tuple[float, float]
    y: tuple[float, float]

    def across(self, value: float) -> float:
        """Horizontal place of a value."""
        return self.left + (self.right - self.left) * _share(value, *self.x)

    def up(self, value: float) -> float:
        """Vertical place of a value."""
        return self.bottom - (self.bottom - self.top) * _share(value, *self.y)


def _share(value: float, low: float, high: float) -> float:
    return (value - low) / (high - low) if high > low else 0.5


def element(name: str, content: str | Markup = "", /, **attributes: object) -> Markup:
    """An SVG element; texts are escaped.

    Args:
        name: Its tag.
        content: Text, or elements as Markup.
        attributes: Numbers are rounded to a tenth; "_" in a name becomes "-", and one
            at its end is dropped.
    """
    parts = Markup(" ").join(
        Markup('{}="{}"').format(key.rstrip("_").replace("_", "-"), _plain(value))
        for key, value in attributes.items()
    )
    opening = Markup("<{}{}{}").format(Markup(name), " " if parts else "", parts)
    return opening + Markup(">") + content + Markup("</{}>").format(Markup(name))


def _plain(value: object) -> str:
    return f"{round(value, 1):g}" if isinstance(value, float) else str(value)


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers from `low` or below to `high` or above.

    Args:
        low: Smallest value.
        high: Largest value.
        count: About how many.
    """
    if high <= low:
        low, high = low - 0.5, high + 0.5
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * n for n in (1, 2, 2.5, 5, 10) if power * n >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(step * place, 10) for place in range(first, last + 1)]


def spread_labels(
    places: Sequence[float], gap: float, low: float, high: float
) -> list[float]:
    """Move labels apart, as little as needed.

    Args:
        places: Where they belong.
        gap: Smallest distance of two labels.
        low: Where the first may be.
        high: Where the last may be.

    Returns:
        Their places, in the order given. Labels that do not all fit go below `high`.
    """
    order = sorted(range(len(places)), key=lambda k: places[k])
    blocks: list[tuple[float, list[int]]] = []  # middle, and the labels of a block
    for label in order:
        middle, members = places[label], [label]
        while True:
            half = gap * (len(members) - 1) / 2
            middle = max(low + half, min(high - half, middle))
            if not blocks:
                break
            above, earlier = blocks[-1]
            if middle - half >= above + gap * (len(earlier) - 1) / 2 + gap - 1e-9:
                break
            blocks.pop()
            members = earlier + members
            middle = sum(places[k] for k in members) / len(members)
        blocks.append((middle, members))
    moved = [0.0] * len(places)
    for middle, members in blocks:
        top = max(low, middle - gap * (len(members) - 1) / 2)
        for number, label in enumerate(members):
            moved[label] = top + gap * number
    return moved


def axes(frame: Frame, steps: Sequence[int], ticks: Sequence[float]) -> Markup:
    """Lines and numbers of both axes.

    Args:
        frame: The area between them.
        steps: Numbers of the horizontal axis; of many every second or third.
        ticks: Numbers of the vertical axis.
    """
    parts = []
    for tick in ticks:
        y = frame.up(tick)
        line = {"x1": float(frame.left), "x2": float(frame.right), "y1": y, "y2": y}
        parts.append(element("line", class_="grid", **line))
        text = f"{tick:g}"
        parts.append(element("text", text, class_="tick", x=frame.left - 8.0, y=y + 5))
    shown = steps if len(steps) <= 12 else steps[:: math.ceil(len(steps) / 12)]
    for step in shown:
        place = {"x": frame.across(step), "y": frame.bottom + 19.0}
        parts.append(element("text", str(step), class_="step", **place))
    return Markup("").join(parts)


def marker(kind: str, x: float, y: float, hint: Markup | str = "") -> Markup:
    """A marker of a curve.

    Args:
        kind: As matplotlib calls it.
        x: Its middle, from the left.
        y: Its middle, from the top.
        hint: A `title` element.
    """
    shapes: Mapping[str, list[tuple[float, float]]] = {
        "s": [(-4, -4), (4, -4), (4, 4), (-4, 4)],
        "^": [(0, -5.5), (5, 4), (-5, 4)],
        "D": [(0, -5.5), (5.5, 0), (0, 5.5), (-5.5, 0)],
        "v": [(0, 5.5), (5, -4), (-5, -4)],
    }
    if kind not in shapes:
        return element("circle", hint, class_="mark", cx=x, cy=y, r=4.5)
    points = " ".join(f"{x + dx:.1f},{y + dy:.1f}" for dx, dy in shapes[kind])
    return element("polygon", hint, class_="mark", points=points)
