"""What a step has learned, for any image of any size.

    segmenter = kproba.load("results/digits/6-2-overlap/kproba/seed0/step2")
    found = segmenter.predict("photo.jpg")
    found.labels    # (H, W) uint8, values as in the dataset's masks
    found.areas()   # {"background": 0.91, "three": 0.09}

An image is asked whole and at its own size, as in the test, if no side is longer than
a tile. A larger one is cut into overlapping tiles, whose probabilities are joined with
weights that fall towards a tile's edges; the image prior sees the joined image. What
would need more memory than `MOST_VALUES` is scaled down before, and can be on request
(`long_side`). `Segmentation.how` says what was done.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torchvision.transforms.functional import pil_to_tensor

from kproba.bank.description import SeenClass, find_description
from kproba.bank.predictor import load_predictor
from kproba.runtime.files import read_json

TILE = 1024  # pixels


OVERLAP = 0.25  # of a tile


MOST_VALUES = 2**28  # probabilities of one image: 1 GiB of float32


Picture = str | Path | Image.Image | np.ndarray | torch.Tensor


class PixelPredictor(Protocol):
    """`FusedPredictor` or `NetworkPredictor`."""

    def log_scores(self, images: torch.Tensor) -> torch.Tensor:
        """Log-probabilities (B, C, H, W) of images (B, 3, H, W) uint8, by pixel."""

    def fit(self, log_s: torch.Tensor) -> torch.Tensor:
        """The same with what whole images say of their classes."""


@dataclass(frozen=True)
class Segmentation:
    """What was found in one image.

    Attributes:
        classes: In the order of `indices`, background first.
        indices: (H, W) uint8, the likeliest class of every pixel as index of `classes`.
        confidence: (H, W) float32, its probability.
        asked: Probabilities (C, h, w) float32, at the size that the network saw.
        how: "whole", "6 tiles", "scaled to 1024x683", or both.
    """

    classes: tuple[SeenClass, ...]
    indices: np.ndarray
    confidence: np.ndarray
    asked: torch.Tensor
    how: str

    @property
    def labels(self) -> np.ndarray:
        """(H, W) uint8, values as in the masks of the dataset."""
        table = np.array([entry.label for entry in self.classes], np.uint8)
        return table[self.indices]

    @property
    def probabilities(self) -> np.ndarray:
        """(C, H, W) float32, at the image's own size."""
        return _resized(self.asked, self.indices.shape).numpy()

    def pixels(self) -> dict[str, int]:
        """How many pixels every class has, by name, those without any too."""
        counts = np.bincount(self.indices.ravel(), minlength=len(self.classes))
        names = [entry.name for entry in self.classes]
        return dict(zip(names, counts.tolist(), strict=True))

    def areas(self) -> dict[str, float]:
        """The share of the image of every class that it shows, by name."""
        whole = self.indices.size
        return {name: n / whole for name, n in self.pixels().items() if n}


class Segmenter:
    """A model, with its bank where both predict, and the names of its classes.

    Args:
        predictor: Network, or network and bank, on `device`.
        classes: In output order.
        channels: Per class the predictor's channel.
        device: Of the predictor.
    """

    def __init__(
        self,
        predictor: PixelPredictor,
        classes: Sequence[SeenClass],
        channels: Sequence[int],
        device: str = "cpu",
    ):
        self.predictor, self.device = predictor, device
        self.classes, self.channels = tuple(classes), list(channels)

    def predict(
        self, image: Picture, *, long_side: int | None = None, tile: int = TILE
    ) -> Segmentation:
        """Segment one image.

        Args:
            image: A path, a PIL image, an array (H, W, 3) or (H, W) uint8, or a tensor
                (3, H, W) uint8.
            long_side: Scale to so many pixels first; None: its own size.
            tile: Longest side that is asked at once, at least 64.

        Raises:
            ValueError: Not an image of 8 bits, or a size that makes no sense.
            OSError: The file cannot be read.
        """
        return self.predict_batch([image], long_side=long_side, tile=tile)[0]

    @torch.inference_mode()
    def predict_batch(
        self,
        images: Sequence[Picture],
        *,
        long_side: int | None = None,
        tile: int = TILE,
    ) -> list[Segmentation]:
        """Segment images; those of one size that need no tiles are asked together.

        See `predict`.
        """
        if tile < 64 or (long_side is not None and long_side < 32):
            raise ValueError(
                f"Expected a tile of at least 64 pixels and a long side of at least "
                f"32, but got {tile} and {long_side}."
            )
        pictures = [read_picture(image) for image in images]
        scaled = [self._scaled(picture, long_side) for picture in pictures]
        if self._fit_together(scaled, tile):
            stacked = torch.stack(scaled).to(self.device)
            asked = self.predictor.fit(self.predictor.log_scores(stacked))
            results = [(log_s, 1) for log_s in asked]
        else:
            results = [self._tiled(image, tile) for image in scaled]
        return [
            self._segmentation(log_s, picture, tiles)
            for (log_s, tiles), picture in zip(results, pictures, strict=True)
        ]

    def _fit_together(self, images: Sequence[torch.Tensor], tile: int) -> bool:
        """Whether images can be asked at once: of one size, no tiles, little memory."""
        shapes = {image.shape for image in images}
        if len(shapes) != 1:
            return False
        [(_, height, width)] = shapes
        values = len(images) * len(self.classes) * height * width
        return max(height, width) <= tile and values <= MOST_VALUES

    def _scaled(self, image: Image.Image, long_side: int | None) -> torch.Tensor:
        width, height = image.size
        factor = 1.0 if long_side is None else long_side / max(width, height)
        values = len(self.classes) * width * height * factor**2
        factor *= min(1.0, (MOST_VALUES / values) ** 0.5)
        if factor != 1.0:
            size = [max(1, round(factor * side)) for side in (width, height)]
            image = image.resize((size[0], size[1]), Image.Resampling.LANCZOS)
        return pil_to_tensor(image)

    def _tiled(self, image: torch.Tensor, tile: int) -> tuple[torch.Tensor, int]:
        """Log s (C, h, w) of one image, on the device, and in how many tiles."""
        height, width = image.shape[1:]
        places = [
            (top, left)
            for top in tile_starts(height, tile)
            for left in tile_starts(width, tile)
        ]
        pixels = image[None].to(self.device)
        if len(places) == 1:
            return self.predictor.fit(self.predictor.log_scores(pixels))[0], 1
        high, wide = min(tile, height), min(tile, width)
        weight = _falling(high)[:, None] * _falling(wide)
        weight = weight.to(self.device)
        total = torch.zeros(1, len(self.channels), height, width, device=self.device)
        weights = torch.zeros(height, width, device=self.device)
        for top, left in places:
            rows, columns = slice(top, top + high), slice(left, left + wide)
            log_s = self.predictor.log_scores(pixels[..., rows, columns].contiguous())
            total[..., rows, columns] += weight * log_s.exp()
            weights[rows, columns] += weight
        joined = (total / weights).clamp(min=1e-30).log()
        return self.predictor.fit(joined)[0], len(places)

    def _segmentation(
        self, log_s: torch.Tensor, picture: Image.Image, tiles: int
    ) -> Segmentation:
        asked = log_s[self.channels].exp().cpu()
        width, height = picture.size
        how = [] if tiles == 1 else [f"{tiles} tiles"]
        if asked.shape[1:] != (height, width):
            how.insert(0, f"scaled to {asked.shape[2]}x{asked.shape[1]}")
        best = torch.full((height, width), -torch.inf)
        index = torch.zeros(height, width, dtype=torch.uint8)
        for number, of_class in enumerate(asked):  # one at a time, for the memory
            values = _resized(of_class[None], (height, width))[0]
            index[values > best] = number
            best = torch.maximum(best, values)
        return Segmentation(
            self.classes,
            index.numpy(),
            best.clamp(max=1).numpy(),
            asked,
            ", ".join(how) or "whole",
        )


def read_picture(image: Picture) -> Image.Image:
    """An image as upright RGB.

    Raises:
        ValueError: It has more than 8 bits per channel, or another shape or type.
        OSError: The file cannot be read.
    """
    if isinstance(image, str | Path):
        with Image.open(image) as opened:
            return read_picture(opened)
    if isinstance(image, torch.Tensor):
        image = image.permute(1, 2, 0).cpu().numpy()
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim not in (2, 3):
            raise ValueError(
                f"Expected an image (H, W, 3) or (H, W) of uint8, but got "
                f"{image.shape} of {image.dtype}."
            )
        image = Image.fromarray(image)
    if image.mode.startswith(("I", "F")):
        raise ValueError(
            f"Expected 8 bits per channel, but got an image of mode {image.mode}. "
            f"Convert it to 8 bits."
        )
    upright = ImageOps.exif_transpose(image)
    return upright.convert("RGB")


def tile_starts(length: int, tile: int) -> list[int]:
    """Where tiles begin that cover a side, evenly, and overlap by a quarter or more."""
    if length <= tile:
        return [0]
    step = tile - round(OVERLAP * tile)
    count = 1 + -(-(length - tile) // step)
    starts = np.linspace(0, length - tile, count).round().astype(int)
    return [int(start) for start in starts]


def _falling(length: int) -> torch.Tensor:
    """Weights along one side of a tile: 1 in the middle, near 0 at the ends."""
    place = torch.arange(length) + 0.5
    return torch.minimum(place, length - place) / (length / 2)


def _resized(values: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """(C, h, w) to (C, *size), bilinear."""
    if values.shape[1:] == tuple(size):
        return values
    how = {"mode": "bilinear", "align_corners": False}
    return F.interpolate(values[None], tuple(size), **how)[0]  # type: ignore[arg-type]


def load(path: str | Path, device: str = "cpu") -> Segmenter:
    """Load what a step learned, as it was tested: network, or network and bank.

    Args:
        path: Folder of a step, its predictor.json or its model.safetensors.
        device: "cpu", "cuda", "cuda:1", ...

    Raises:
        FileNotFoundError: predictor.json or a file that it names is missing.
        ValueError: The bank was built with another model.
    """
    found = find_description(path)
    about, here = read_json(found), found.parent
    files = {
        name: None if about[name] is None else here / about[name]
        for name in ("bank", "source")
    }
    predictor = load_predictor(
        here / about["network"], **files, rule=about["rule"], device=device
    )
    classes = [SeenClass(**entry) for entry in about["classes"]]
    return Segmenter(predictor, classes, about["channels"], device)
