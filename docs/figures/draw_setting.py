"""Draw docs/images/setting.png: old, new and future classes in one training image.

    python docs/figures/draw_setting.py

The image is a scene of the embedded example that has one digit of each kind.
"""

import io
import itertools
import tempfile
from pathlib import Path

import matplotlib
import numpy as np
import yaml
from PIL import Image

from kproba.data.kinds.digits import CLASS_NAMES, DigitScenes, write_digits
from kproba.data.label_images import read_label_image

matplotlib.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.patches import FancyBboxPatch

ROOT = Path(__file__).resolve().parents[2]
OUTPUT = ROOT / "docs" / "images" / "setting.png"
SCENES = 720  # number of scenes that are searched: those of the example

# Okabe and Ito's colours, which colour-blind readers can tell apart.
OLD, NEW, FUTURE, BACKGROUND = "#0072b2", "#e69f00", "#cc79a7", "#e4e4e4"
GROUPS = (  # name, colour, first and last label of the mask, step
    ("old", OLD, 1, 6, 0),
    ("new", NEW, 7, 8, 1),
    ("future", FUTURE, 9, 10, 2),
)


def find_scene() -> tuple[np.ndarray, np.ndarray]:
    """The scene whose old, new and future digit are furthest apart.

    Returns:
        Image (144, 144, 3) uint8 and mask (144, 144) uint8.

    Raises:
        ValueError: No scene has exactly one digit of each group.
    """
    config = yaml.safe_load((ROOT / "config" / "config.yaml").read_text())
    dataset = config["datasets"]["digits"]
    scenes = DigitScenes(
        train=SCENES,
        val=1,
        size=dataset["size"],
        digits=tuple(dataset["digits"]),
        height=tuple(dataset["height"]),
        rotation=dataset["rotation"],
        seed=0,
    )
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "scenes"
        write_digits(folder, scenes)
        masks = {
            path.name: read_label_image(path)
            for path in sorted((folder / "masks" / "train").iterdir())
        }
        masks = {name: mask for name, mask in masks.items() if has_each_group(mask)}
        name = max(masks, key=lambda name: distance(masks[name]))
        return np.array(Image.open(folder / "images" / "train" / name)), masks[name]


def has_each_group(mask: np.ndarray) -> bool:
    """Whether a mask (H, W) has exactly one old, one new and one future digit."""
    present = np.unique(mask[mask > 0])
    return all(
        ((present >= first) & (present <= last)).sum() == 1
        for _, _, first, last, _ in GROUPS
    )


def distance(mask: np.ndarray) -> float:
    """Smallest distance of two digits of a mask (H, W), in pixels between centres."""
    centres = [
        np.argwhere(mask == label).mean(0) for label in np.unique(mask[mask > 0])
    ]
    return min(
        float(np.linalg.norm(a - b)) for a, b in itertools.combinations(centres, 2)
    )


def paint(mask: np.ndarray, shown: tuple[str, ...]) -> np.ndarray:
    """Colours (H, W, 3) of a mask (H, W), where only the groups `shown` are painted."""
    colours = np.empty((*mask.shape, 3))
    colours[:] = to_rgb(BACKGROUND)
    for name, colour, first, last, _ in GROUPS:
        if name in shown:
            colours[(mask >= first) & (mask <= last)] = to_rgb(colour)
    return colours


def add_names(axes: Axes, mask: np.ndarray, shown: tuple[str, ...]) -> None:
    """Write a name on each digit of a mask (H, W), and outline those not in `shown`."""
    for name, _, first, last, _ in GROUPS:
        for label in range(first, last + 1):
            pixels = np.argwhere(mask == label)
            if not pixels.size:
                continue
            centre = pixels.mean(axis=0)
            row, column = pixels[np.linalg.norm(pixels - centre, axis=1).argmin()]
            text = f"{CLASS_NAMES[label - 1]}\n{name}"
            if name not in shown:
                text = f"{CLASS_NAMES[label - 1]}:\nbackground"
                axes.contour(
                    mask == label,
                    [0.5],
                    colors="#777777",
                    linestyles="--",
                    linewidths=1,
                )
            axes.text(
                *(column, row, text),
                ha="center",
                va="center",
                fontsize=8.5,
                bbox={"boxstyle": "round,pad=0.2", "fc": "white", "ec": "none"},
            )


def draw_timeline(axes: Axes) -> None:
    """A box per step of task 6-2, as it is called while step 1 is trained."""
    axes.set(xlim=(0, 10), ylim=(0, 1))
    axes.axis("off")
    for name, colour, first, last, step in GROUPS:
        left, right = first - 1 + 0.06, last - 0.06
        box = FancyBboxPatch(
            (left, 0.1),
            right - left,
            0.62,
            boxstyle="round,pad=0",
            fc=colour,
            ec="none",
        )
        axes.add_patch(box)
        names = ", ".join(CLASS_NAMES[first - 1 : last])
        ink = "white" if name == "old" else "black"
        axes.text((left + right) / 2, 0.41, names, ha="center", va="center", color=ink)
        axes.text(
            (left + right) / 2,
            0.95,
            f"step {step}: {name} classes",
            ha="center",
            va="center",
            weight="bold",
        )


def draw(output: Path) -> None:
    """Draw the figure of the setting.

    Args:
        output: PNG file.
    """
    image, mask = find_scene()
    panels = (
        ("1. Training image of step 1", image, None),
        ("2. Everything in it", paint(mask, ("old", "new", "future")), None),
        ("3. Labels in step 1 (overlap)", paint(mask, ("new",)), ("new",)),
        ("4. Right answer after step 1", paint(mask, ("old", "new")), ("old", "new")),
    )
    figure = plt.figure(figsize=(9, 3.7), facecolor="white", dpi=160)
    grid = figure.add_gridspec(
        *(2, 4), height_ratios=(0.75, 3), wspace=0.05, hspace=0.22,
        left=0.01, right=0.99, top=0.97, bottom=0.02,
    )  # fmt: skip
    draw_timeline(figure.add_subplot(grid[0, :]))
    for number, (title, picture, shown) in enumerate(panels):
        axes = figure.add_subplot(grid[1, number])
        axes.imshow(picture, interpolation="nearest" if number else "bilinear")
        axes.set_title(title, fontsize=10)
        axes.axis("off")
        if number:
            add_names(axes, mask, shown or ("old", "new", "future"))
    with io.BytesIO() as file:
        figure.savefig(file)
        drawn = Image.open(file).convert("RGB")
    plt.close(figure)
    drawn.quantize(256, dither=Image.Dither.FLOYDSTEINBERG).save(output, optimize=True)


if __name__ == "__main__":
    draw(OUTPUT)
    print(f"{OUTPUT.relative_to(ROOT)}: {OUTPUT.stat().st_size / 1000:.0f} kB")
