"""How many glyphs of every class there are, and which scene shows which classes.

The shares of the classes in the pixels fall geometrically from the most to the least
frequent class, by the factor `imbalance` over all. The number of scenes with a class
takes the exponent 2/3 of it, and the area of its glyphs 1/3: rare classes are also
small, as in photographs.
"""

import numpy as np

OF_NUMBERS = 2 / 3  # exponent of `imbalance` in the ratio of the numbers
OF_HEIGHTS = (1 - OF_NUMBERS) / 2  # in the ratio of the heights: the areas' root
GOLDEN = 0.618034
SWAPS = 10  # attempted exchanges per glyph


def class_ranks(classes: int, order: str) -> np.ndarray:
    """Place of each class from 0, the most frequent one, to 1, the rarest, (classes,).

    Args:
        classes: Number of classes.
        order: "mixed": any few classes in a row have places all over [0, 1]. Multiples
            of the golden ratio, modulo 1, have this property. "frequent_first": the
            classes are sorted by frequency, as those of ADE20K are.
    """
    places = np.arange(classes)
    if order == "mixed":
        places = np.argsort(np.argsort(places * GOLDEN % 1))
    return places / max(classes - 1, 1)


def height_factors(ranks: np.ndarray, imbalance: float) -> np.ndarray:
    """Height of the glyphs of each class as a share of the most frequent one's."""
    return np.asarray(imbalance ** (-OF_HEIGHTS * ranks))


def class_counts(
    ranks: np.ndarray, imbalance: float, *, scenes: int, total: int, least: int
) -> np.ndarray:
    """Number of the scenes that show each class, (classes,) int.

    The numbers are in proportion to imbalance^(-2/3 rank), as far as no class has less
    than `least` or more than all scenes.

    Args:
        ranks: Result of `class_ranks`.
        imbalance: Ratio of the pixels of the most and the least frequent class.
        scenes: Number of scenes.
        total: Sum of the numbers, at least `least` per class, at most `scenes` per
            class.
        least: Smallest number.
    """
    weights = imbalance ** (-OF_NUMBERS * ranks)
    low, high = 0.0, scenes / weights.min()
    for _ in range(200):  # bisection, to the last digit
        middle = (low + high) / 2
        if np.clip(middle * weights, least, scenes).sum() < total:
            low = middle
        else:
            high = middle
    exact = np.clip(high * weights, least, scenes)
    counts = np.floor(exact).astype(np.int64)
    missing = max(total - int(counts.sum()), 0)
    order = np.argsort(-(exact - counts), kind="stable")
    counts[order[:missing]] += 1
    return counts


def deal(
    rng: np.random.Generator, counts: np.ndarray, places: np.ndarray
) -> list[list[int]]:
    """Deal classes to scenes, so that no scene gets a class twice.

    A class goes to the scenes with the most free places. This succeeds if any deal does
    (Ryser 1957; Gale 1957). Random exchanges between scenes then make the deal random.

    Args:
        rng: Source of all randomness.
        counts: (classes,) number of the scenes that show each class.
        places: (scenes,) number of glyphs of each scene.

    Returns:
        Numbers of the classes of each scene, from 0.
    """
    free = places.copy()
    scenes: list[list[int]] = [[] for _ in places]
    for number in np.argsort(counts, kind="stable"):  # rare classes get all of theirs
        order = np.argsort(-(free + rng.random(len(free))), kind="stable")
        for scene in order[: counts[number]]:
            if free[scene] > 0:
                scenes[scene].append(int(number))
                free[scene] -= 1
    _exchange(rng, scenes)
    return scenes


def _exchange(rng: np.random.Generator, scenes: list[list[int]]) -> None:
    """Exchange glyphs of random scenes, where no scene gets a class twice by it."""
    glyphs = [(s, g) for s, scene in enumerate(scenes) for g in range(len(scene))]
    pairs = rng.integers(len(glyphs), size=(SWAPS * len(glyphs), 2))
    for one, other in pairs.tolist():
        (scene, place), (second, there) = glyphs[one], glyphs[other]
        mine, yours = scenes[scene][place], scenes[second][there]
        if mine not in scenes[second] and yours not in scenes[scene]:
            scenes[scene][place], scenes[second][there] = yours, mine
