"""The shapes, patterns and colours of the classes of `kproba.data.kinds.glyphs`.

A class belongs to a family. Its outline is a closed curve around its centre with the
radius

    r(θ) = 1 + Σ_k a_k cos(kθ + φ_k),

scaled so that the largest radius is 1. The amplitudes a_k, the phases φ_k and two
colours are those of the family, with small deviations of the class. One of six patterns
of both colours fills the outline. The classes of a family have different patterns, so
they resemble each other, but can be told apart.
"""

import colorsys
from dataclasses import dataclass

import numpy as np

PATTERNS = ("plain", "stripes", "bars", "checks", "rings", "rays")
ORDERS = np.array([2, 3, 4, 5, 7])  # k
AMPLITUDE = 0.3  # largest a_k of a family
MOST_AMPLITUDE = 0.75  # sum of all |a_k|, so that the radius stays positive
DEVIATION = 0.05  # standard deviation of the a_k of a class, and again of each glyph
GOLDEN = 0.618034  # multiples of it, modulo 1, are spread evenly over [0, 1)
CYCLES = 2.5  # of stripes, bars, checks and rings across a glyph
RAYS = 5
SHARPNESS = 4  # of the border between the two colours of a pattern
FAMILIES, CLASSES = 3, 4  # marks of random streams; 0 to 2 are those of the scenes


@dataclass(frozen=True)
class Shape:
    """What all glyphs of a class have in common.

    Attributes:
        pattern: One of `PATTERNS`.
        amplitudes: (5,) a_k.
        phases: (5,) φ_k in radians.
        hues: Hues of both colours, in [0, 1).
        values: Brightness of both colours, in [0, 1].
    """

    pattern: str
    amplitudes: np.ndarray
    phases: np.ndarray
    hues: tuple[float, float]
    values: tuple[float, float]


def family_count(classes: int) -> int:
    """Number of families of `classes` classes, each of at most six."""
    return -(-classes // len(PATTERNS))


def family_and_pattern(number: int, families: int) -> tuple[int, str]:
    """Family and pattern of the class `number`, from 0.

    Neighbouring classes have different families. So the classes of a later step
    resemble classes of earlier steps.
    """
    family, place = number % families, number // families
    return family, PATTERNS[(place + family) % len(PATTERNS)]


def class_names(classes: int) -> list[str]:
    """Names of the classes, such as "rings 07": the pattern and the family."""
    families = family_count(classes)
    pairs = [family_and_pattern(number, families) for number in range(classes)]
    return [f"{pattern} {family + 1:02d}" for family, pattern in pairs]


def make_shapes(classes: int, seed: int) -> list[Shape]:
    """The shapes of the classes.

    Args:
        classes: Number of classes.
        seed: Seed of all shapes.
    """
    families = family_count(classes)
    shapes = []
    for number in range(classes):
        family, pattern = family_and_pattern(number, families)
        rng = np.random.default_rng([seed, FAMILIES, family])
        amplitudes = rng.uniform(0, AMPLITUDE, len(ORDERS))
        phases = rng.uniform(0, 2 * np.pi, len(ORDERS))
        hue = (rng.uniform(0, 0.02) + family * GOLDEN) % 1
        other = (hue + rng.uniform(0.15, 0.5)) % 1
        values = rng.uniform(0.75, 1), rng.uniform(0.2, 0.45)
        own = np.random.default_rng([seed, CLASSES, number])
        amplitudes += own.normal(0, DEVIATION, len(ORDERS))
        shapes.append(Shape(pattern, amplitudes, phases, (hue, other), values))
    return shapes


def render(
    rng: np.random.Generator, shape: Shape, side: int, angle: float
) -> tuple[np.ndarray, np.ndarray]:
    """Draw one glyph.

    Args:
        rng: Source of its small deviations.
        shape: The shape of its class.
        side: Side of the square around it, in pixels.
        angle: Rotation in degrees.

    Returns:
        Colour (side, side, 3) float32 in grey levels, and how much of every pixel the
        glyph covers, (side, side) float32 in [0, 1].
    """
    places = (np.arange(side, dtype=np.float32) + 0.5) * 2 / side - 1
    turn = np.deg2rad(angle)
    x = np.cos(turn) * places + np.sin(turn) * places[:, None]
    y = np.cos(turn) * places[:, None] - np.sin(turn) * places
    radius, theta = np.hypot(x, y), np.arctan2(y, x)
    amplitudes = shape.amplitudes + rng.normal(0, DEVIATION, len(ORDERS))
    amplitudes *= min(1, MOST_AMPLITUDE / np.abs(amplitudes).sum())
    around = np.linspace(-np.pi, np.pi, 181)
    waves = np.cos(ORDERS * around[:, None] + shape.phases) @ amplitudes
    outline = np.interp(theta, around, (1 + waves) / (1 + waves.max()))
    cover = np.clip((outline - radius) * side / 2 + 0.5, 0, 1)
    share = _pattern(shape.pattern, x, y, rng.uniform(0, 2 * np.pi))[..., None]
    first, second = (
        _colour(rng, hue, value)
        for hue, value in zip(shape.hues, shape.values, strict=True)
    )
    colour = share * first + (1 - share) * second
    return colour.astype(np.float32), cover.astype(np.float32)


def _pattern(name: str, x: np.ndarray, y: np.ndarray, phase: float) -> np.ndarray:
    """Share of the first colour at places x and y in [-1, 1], (side, side)."""
    along, across = np.pi * CYCLES * x, np.pi * CYCLES * y
    waves = {
        "plain": lambda: np.ones_like(x),
        "stripes": lambda: np.sin(across + phase),
        "bars": lambda: np.sin(along + phase),
        "checks": lambda: 2 * np.sin(along + phase) * np.sin(across + phase),
        "rings": lambda: np.sin(2 * np.pi * CYCLES * np.hypot(x, y) + phase),
        "rays": lambda: np.sin(RAYS * np.arctan2(y, x) + phase),
    }
    return np.asarray(0.5 + 0.5 * np.tanh(SHARPNESS * waves[name]()))


def _colour(rng: np.random.Generator, hue: float, value: float) -> np.ndarray:
    """A colour (3,) in grey levels, a little beside hue and value."""
    hue = (hue + rng.normal(0, 0.01)) % 1
    value = float(np.clip(value + rng.normal(0, 0.05), 0, 1))
    return 255 * np.array(colorsys.hsv_to_rgb(hue, rng.uniform(0.6, 0.9), value))
