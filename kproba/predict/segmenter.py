"""Applies what a step has learned to any image of any size.

    segmenter = kproba.load("results/digits/6-2-overlap/kproba/seed0/step2")
    segmentation = segmenter.predict("photo.jpg")
    segmentation.labels    # (H, W) uint8, values as in the dataset's masks
    segmentation.areas()   # {"background": 0.91, "three": 0.09}

If no side of an image is longer than a tile, the network gets the whole image at its
own size, as in the test. A larger image is cut into overlapping tiles, and their
probabilities are averaged with weights that fall towards the edges of each tile. The
image prior is applied to the whole image. An image that would need more memory than
`MOST_VALUES` allows is scaled down first; `long_side` scales on request.
`Segmentation.how` says what was done.
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

from kproba.bank.decision import Decision
from kproba.bank.description import SeenClass, read_description
from kproba.bank.predictor import load_predictor
from kproba.predict.tiles import SMALLEST_TILE, TILE, tile_starts

MOST_VALUES = 2**28  # probabilities of one image, 1 GiB of float32


SMALLEST_LONG_SIDE = 32  # pixels


Picture = str | Path | Image.Image | np.ndarray | torch.Tensor


class PixelPredictor(Protocol):
    """`FusedPredictor` or `NetworkPredictor`."""

    def log_scores(self, images: torch.Tensor) -> torch.Tensor:
        """Log-probabilities (B, C, H, W) of images (B, 3, H, W) uint8, by pixel."""

    def fit(self, log_s: torch.Tensor) -> torch.Tensor:
        """Log-probabilities (B, C, H, W), corrected by each image's prior."""


@dataclass(frozen=True)
class Segmentation:
    """The classes of the pixels of one image.

    Attributes:
        classes: The classes, background first.
        indices: (H, W) uint8, the likeliest class of each pixel as index of `classes`.
        confidence: (H, W) float32, the probability of that class.
        network_probabilities: (C, h, w) float32, at the size of the network's input.
        how: "whole", "6 tiles", "scaled to 1024x683", or both of the latter.
    """

    classes: tuple[SeenClass, ...]
    indices: np.ndarray
    confidence: np.ndarray
    network_probabilities: torch.Tensor
    how: str

    @property
    def labels(self) -> np.ndarray:
        """(H, W) uint8, values as in the masks of the dataset."""
        table = np.array([entry.label for entry in self.classes], np.uint8)
        return table[self.indices]

    @property
    def probabilities(self) -> np.ndarray:
        """(C, H, W) float32, at the image's own size."""
        return _resized(self.network_probabilities, self.indices.shape).numpy()

    def pixels(self) -> dict[str, int]:
        """Number of pixels of each class by name, also of classes without any."""
        counts = np.bincount(self.indices.ravel(), minlength=len(self.classes))
        names = [entry.name for entry in self.classes]
        return dict(zip(names, counts.tolist(), strict=True))

    def areas(self) -> dict[str, float]:
        """Share of the image of each class by name, of classes with pixels only."""
        total = self.indices.size
        return {name: count / total for name, count in self.pixels().items() if count}


class Segmenter:
    """Predicts the classes of images, by a network or by a network and its bank.

    Args:
        predictor: Network, or network and bank, on `device`.
        classes: The classes in output order.
        channels: The predictor's channel of each class.
        device: Device of the predictor.
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
            long_side: Scale the image so that its longer side has this many pixels;
                at least 32. None: keep its size.
            tile: Longest side in pixels that the network gets at once, at least 64.

        Raises:
            ValueError: The image does not have 8 bits, or `tile` or `long_side` is too
                small.
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
        """Segment images, all at once if they have one size and need no tiles.

        Args:
            images: Each as for `predict`.
            long_side: As for `predict`.
            tile: As for `predict`.

        Raises:
            ValueError: As `predict`.
            OSError: As `predict`.
        """
        too_short = long_side is not None and long_side < SMALLEST_LONG_SIDE
        if tile < SMALLEST_TILE or too_short:
            raise ValueError(
                f"Expected a tile of at least {SMALLEST_TILE} pixels and a long side "
                f"of at least {SMALLEST_LONG_SIDE}, but got {tile} and {long_side}. "
                f"Raise them, or leave them out."
            )
        pictures = [read_picture(image) for image in images]
        scaled = [self._scale(picture, long_side) for picture in pictures]
        if self._can_stack(scaled, tile):
            stacked = torch.stack(scaled).to(self.device)
            scores = self.predictor.fit(self.predictor.log_scores(stacked))
            results = [(log_s, 1) for log_s in scores]
        else:
            results = [self._predict_tiles(image, tile) for image in scaled]
        return [
            self._make_segmentation(log_s, picture, tiles)
            for (log_s, tiles), picture in zip(results, pictures, strict=True)
        ]

    def _can_stack(self, images: Sequence[torch.Tensor], tile: int) -> bool:
        """Whether images have one size, need no tiles, and fit into memory together."""
        shapes = {image.shape for image in images}
        if len(shapes) != 1:
            return False
        [(_, height, width)] = shapes
        values = len(images) * len(self.classes) * height * width
        return max(height, width) <= tile and values <= MOST_VALUES

    def _scale(self, image: Image.Image, long_side: int | None) -> torch.Tensor:
        """Image (3, h, w) uint8, scaled to `long_side` and to what memory allows."""
        width, height = image.size
        factor = 1.0 if long_side is None else long_side / max(width, height)
        values = len(self.classes) * width * height * factor**2
        factor *= min(1.0, (MOST_VALUES / values) ** 0.5)
        if factor != 1.0:
            size = [max(1, round(factor * side)) for side in (width, height)]
            image = image.resize((size[0], size[1]), Image.Resampling.LANCZOS)
        return pil_to_tensor(image)

    def _predict_tiles(
        self, image: torch.Tensor, tile: int
    ) -> tuple[torch.Tensor, int]:
        """Log s (C, h, w) of an image (3, h, w), and the number of its tiles."""
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
        weight = _edge_weights(high)[:, None] * _edge_weights(wide)
        weight = weight.to(self.device)
        total = torch.zeros(1, len(self.channels), height, width, device=self.device)
        weights = torch.zeros(height, width, device=self.device)
        for top, left in places:
            rows, columns = slice(top, top + high), slice(left, left + wide)
            log_s = self.predictor.log_scores(pixels[..., rows, columns].contiguous())
            total[..., rows, columns] += weight * log_s.exp()
            weights[rows, columns] += weight
        averaged = (total / weights).clamp(min=1e-30).log()
        return self.predictor.fit(averaged)[0], len(places)

    def _make_segmentation(
        self, log_s: torch.Tensor, picture: Image.Image, tiles: int
    ) -> Segmentation:
        probabilities = log_s[self.channels].exp().cpu()
        width, height = picture.size
        how = [] if tiles == 1 else [f"{tiles} tiles"]
        if probabilities.shape[1:] != (height, width):
            high, wide = probabilities.shape[1:]
            how.insert(0, f"scaled to {wide}x{high}")
        best = torch.full((height, width), -torch.inf)
        index = torch.zeros(height, width, dtype=torch.uint8)
        # One class at a time, because all of them at full size may not fit in memory.
        for number, small in enumerate(probabilities):
            values = _resized(small[None], (height, width))[0]
            index[values > best] = number
            best = torch.maximum(best, values)
        return Segmentation(
            self.classes,
            index.numpy(),
            best.clamp(max=1).numpy(),
            probabilities,
            ", ".join(how) or "whole",
        )


def read_picture(image: Picture) -> Image.Image:
    """An image as RGB, turned upright according to its EXIF orientation.

    Args:
        image: As for `Segmenter.predict`.

    Raises:
        ValueError: The image has more than 8 bits per channel, or a wrong shape or
            type.
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
                f"Expected an image of shape (H, W, 3) or (H, W) and type uint8, but "
                f"got shape {image.shape} and type {image.dtype}. Convert it."
            )
        image = Image.fromarray(image)
    if image.mode.startswith(("I", "F")):
        raise ValueError(
            f"Expected 8 bits per channel, but got an image of mode {image.mode}. "
            f"Convert it to 8 bits."
        )
    upright = ImageOps.exif_transpose(image)
    return upright.convert("RGB")


def _edge_weights(length: int) -> torch.Tensor:
    """Weights along one side of a tile: 1 in the middle, near 0 at the ends."""
    place = torch.arange(length) + 0.5
    return torch.minimum(place, length - place) / (length / 2)


def _resized(values: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """(C, h, w) to (C, *size), bilinear."""
    if values.shape[1:] == tuple(size):
        return values
    resized = F.interpolate(
        values[None], tuple(size), mode="bilinear", align_corners=False
    )
    return resized[0]


def load(path: str | Path, device: str = "cpu") -> Segmenter:
    """Load what a step has learned, as it was tested: network, or network and bank.

    Args:
        path: Folder of a step, its predictor.json or its model.safetensors.
        device: "cpu", "cuda", "cuda:1", ..

    Raises:
        FileNotFoundError: predictor.json or a file that it names is missing.
        ValueError: The bank was built with another model.
    """
    description = read_description(path)
    settings = description.decision
    predictor = load_predictor(
        description.network,
        bank=description.bank,
        feature_network=description.feature_network,
        decision=Decision.from_dict(settings) if settings else None,
        device=device,
    )
    return Segmenter(predictor, description.classes, description.channels, device)
