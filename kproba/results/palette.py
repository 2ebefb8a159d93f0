"""Colours of the page and of the figures, for a light and a dark screen.

The page reads them as CSS variables. Every method of the package has one colour and
one marker, the same on every page and in every figure.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

# Ink and surfaces. Text has a contrast of 4.5 at least on paper, panel and every cell,
# marks and lines of the focus one of 3 (WCAG 2.2, 1.4.3 and 1.4.11).
LIGHT = {
    **{"ink": "#1c1f23", "paper": "#ffffff", "muted": "#5a626b", "line": "#d9dde2"},
    **{"panel": "#f5f6f8", "accent": "#0b5fa5", "focus": "#0b5fa5"},
    **{"good": "#1a7f4b", "bad": "#b3261e"},
    **{"joint": "#6b7280", "joint1": "#3f4a5a", "joint2": "#80705c"},
    # The strongest colours of cells: a lost class, a gained class, a confusion.
    **{"loss": "#f2956f", "gain": "#7fb8ea", "heat": "#f0b35c"},
}
DARK = {
    **{"ink": "#e6e8eb", "paper": "#14171b", "muted": "#a0a8b2", "line": "#333a43"},
    **{"panel": "#1d2127", "accent": "#6cb4f5", "focus": "#6cb4f5"},
    **{"good": "#5cc78d", "bad": "#ff8a80"},
    **{"joint": "#98a1ad", "joint1": "#cdd5df", "joint2": "#bba78d"},
    **{"loss": "#94402a", "gain": "#1f5f96", "heat": "#80561a"},
}

# Colours of methods: on white, and on the dark paper.
SERIES = [
    ("#0b6bb3", "#5eb1f5"),  # blue
    ("#cf4a12", "#ff9163"),  # vermilion
    ("#008562", "#3fcb9f"),  # green
    ("#a8458f", "#e58fd2"),  # purple
    ("#96690a", "#e3b341"),  # amber
    ("#1689a0", "#56cfe3"),  # teal
    ("#6a55c9", "#ab9cff"),  # violet
    ("#b3243f", "#ff8096"),  # crimson
    ("#62761a", "#b5c95a"),  # olive
    ("#7d5646", "#cfa38f"),  # brown
    ("#475a75", "#a3b6d3"),  # slate
    ("#8c2f8c", "#f0a3f0"),  # magenta
    ("#2d6a4f", "#95d5b2"),  # pine
]
MARKERS = ["o", "s", "^", "D", "v"]  # names of matplotlib
BUILT_IN = {
    **{"kproba": 0, "finetune": 1, "barm": 2, "mib": 3, "plop": 4},
    **{"ssul_light": 5, "lwf": 6, "ssul": 7, "dkd": 8, "star": 9, "ridge": 10},
}
# Level lines of the methods that are trained on everything at once, by the name of
# their colour: how matplotlib calls the dashes. page.css has the same ones.
LEVEL_LINES = {"joint": "--", "joint1": ":", "joint2": "-."}
AT_ONCE = {"joint": "joint", "joint_softmax": "joint1"}  # those of the package
LEVELS = 10  # shades of a coloured cell


@dataclass(frozen=True)
class Style:
    """How a method is drawn.

    Attributes:
        name: Name of the CSS variable of its colour: "s0" to "s12", or one of
            `LEVEL_LINES`.
        colour: The colour on white, as "#rrggbb".
        marker: Marker, as matplotlib calls it; "" for a level line.
    """

    name: str
    colour: str
    marker: str

    @property
    def dashes(self) -> str:
        """Dashes of its level line, as matplotlib calls them."""
        return LEVEL_LINES.get(self.name, "--")


def method_styles(
    methods: Iterable[str], joint: Iterable[str] = ()
) -> dict[str, Style]:
    """One colour and marker for every method.

    Args:
        methods: Names. A method of the package always has the same style; the other
            methods get the remaining ones in order.
        joint: The methods among them that are trained on everything at once. Beside
            those of the package they share one style.
    """
    methods, joint = list(dict.fromkeys(methods)), {*AT_ONCE, *joint}
    free = [n for n in range(len(SERIES)) if n not in BUILT_IN.values()]
    used = {BUILT_IN[name] for name in methods if name in BUILT_IN}
    free += [n for n in BUILT_IN.values() if n not in used]
    free = free or list(range(len(SERIES)))  # all are taken: colours repeat
    styles, others = {}, 0
    for method in methods:
        if method in joint:
            name = AT_ONCE.get(method, "joint2")
            styles[method] = Style(name, LIGHT[name], "")
            continue
        if method in BUILT_IN:
            place = BUILT_IN[method]
        else:
            place, others = free[others % len(free)], others + 1
        colour = SERIES[place][0]
        styles[method] = Style(f"s{place}", colour, MARKERS[place % len(MARKERS)])
    return styles


def tokens(dark: bool = False) -> dict[str, str]:
    """All colours of the page by the names of their CSS variables."""
    series = {f"s{place}": pair[dark] for place, pair in enumerate(SERIES)}
    return {**(DARK if dark else LIGHT), **series}


def as_css(colours: Mapping[str, str]) -> str:
    """Declarations of CSS variables."""
    return "".join(f"--{name}:{colour};" for name, colour in colours.items())


def cell_level(value: float, limit: float) -> int:
    """Shade of a cell: 0 for no colour, `LEVELS` for `limit` and more.

    Args:
        value: A number of 0 or more.
        limit: Where the strongest shade begins, above 0.
    """
    return min(LEVELS, round(LEVELS * value / limit))


def mix(colour: str, paper: str, share: float) -> str:
    """A colour laid over paper, as CSS's `color-mix(in srgb, ..)` computes it.

    Args:
        colour: As "#rrggbb".
        paper: As "#rrggbb".
        share: Share of the colour, from 0 to 1.
    """
    mixed = share * _srgb(colour) + (1 - share) * _srgb(paper)
    return "#" + "".join(f"{round(255 * value):02x}" for value in mixed)


def contrast(first: str, second: str) -> float:
    """Contrast of two colours as "#rrggbb", from 1 to 21 (WCAG 2.2)."""
    darker, lighter = sorted((luminance(_srgb(first)), luminance(_srgb(second))))
    return (lighter + 0.05) / (darker + 0.05)


def luminance(colour: Sequence[float] | np.ndarray) -> float:
    """Relative luminance of sRGB in 0..1 (WCAG 2.2)."""
    srgb = np.asarray(colour)
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def _srgb(colour: str) -> np.ndarray:
    """Red, green and blue in 0..1 of "#rrggbb"."""
    return np.array([int(colour[k : k + 2], 16) for k in (1, 3, 5)]) / 255
