"""Segments images of any size with a trained step.

    segmenter = kproba.load("results/digits/6-2-overlap/kproba/seed0/step2")
    segmentation = segmenter.predict("photo.jpg")
    segmentation.labels    # (H, W) uint8, values as in the dataset's masks
    segmentation.areas()   # {"background": 0.91, "three": 0.09}

If no side of an image is longer than a tile, the network gets the whole image at its
own size, as in the evaluation. A larger image is cut into overlapping tiles, and their
probabilities are averaged with weights that fall towards the edges of each tile. The
image prior is applied to the whole image. An image whose probabilities would need more
memory than `MOST_VALUES` allows is processed in parts, see `kproba.bank.large`. An
image is scaled only on request (`long_side`), or if the training images were scaled.
`Segmentation.how` records which of these was done.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torchvision.transforms.v2.functional import pil_to_tensor, resize

from kproba.bank.decision import Decision
from kproba.bank.description import SeenClass, read_description
from kproba.bank.large import MOST_VALUES, PartlyScored
from kproba.bank.predictor import FusedPredictor, NetworkPredictor, load_predictor
from kproba.data.canvases import Anchor, Size, pad, rounded
from kproba.data.pictures import MOST_PIXELS, scaled_size
from kproba.data.tiles import TILE
from kproba.predict.segmentation import (
    Picture,
    Segmentation,
    describe_size,
    likeliest,
    read_picture,
    resized,
)
from kproba.predict.steps import opened_step
from kproba.predict.tiles import check_sizes


class ModelError(ValueError):
    """A model returns NaN or infinite scores, so no image can be segmented."""


class Segmenter:
    """Predicts the classes of images, by a network or by a network and its bank.

    Args:
        predictor: Network, or network and bank, on `device`.
        classes: The classes in output order.
        channels: The predictor's channel of each class.
        device: Device of the predictor.
        long_side: Longest side in pixels of the training images, if they were scaled
            down to it. Larger images are then scaled down, too.
        name: The model's file, for messages.
    """

    def __init__(
        self,
        predictor: NetworkPredictor | FusedPredictor,
        classes: Sequence[SeenClass],
        channels: Sequence[int],
        device: str = "cpu",
        *,
        long_side: int | None = None,
        name: str = "the model",
    ):
        self.predictor, self.device = predictor, device
        self.classes, self.channels = tuple(classes), list(channels)
        self.long_side, self.name = long_side, name

    def predict(
        self, image: Picture, *, long_side: int | None = None, tile: int = TILE
    ) -> Segmentation:
        """Segment one image.

        Args:
            image: A path, a PIL image, an array (H, W, 3) or (H, W) uint8, or a tensor
                (3, H, W) uint8.
            long_side: Scale the image so that its longer side has this many pixels;
                at least 32. 0: keep its size. None: keep it, or scale a longer image
                down to the segmenter's `long_side` if it has one.
            tile: Longest side in pixels that the network gets at once, at least 64.

        Raises:
            ValueError: The image does not have 8 bits, `tile` or `long_side` is too
                small, or `long_side` makes more than `MOST_PIXELS`.
            ModelError: The model returns NaN or infinite scores.
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
        """Segment images, all in one batch if they have one size and need no tiles.

        Args:
            images: Each as for `predict`.
            long_side: As for `predict`.
            tile: As for `predict`.

        Raises:
            ValueError: As `predict`.
            OSError: As `predict`.
        """
        check_sizes(long_side, tile)
        pictures = [read_picture(image) for image in images]
        scaled = [self._scale(picture, long_side) for picture in pictures]
        if self._can_stack(scaled, tile):
            stacked = torch.stack(scaled).to(self.device)
            scores = self.predictor.fit(self.predictor.log_scores(stacked))
            return [
                self._make_segmentation(log_s, picture, 1)
                for log_s, picture in zip(scores, pictures, strict=True)
            ]
        if self._can_share_canvas(scaled, tile):
            found = self._scores_on_canvas(scaled)
            return [
                self._make_segmentation(log_s, picture, 1)
                for log_s, picture in zip(found, pictures, strict=True)
            ]
        return [
            self._segment_alone(image, picture, tile)
            for image, picture in zip(scaled, pictures, strict=True)
        ]

    def keeps_probabilities(
        self, width: int, height: int, long_side: int | None = None
    ) -> bool:
        """Whether the probabilities of all classes of an image fit into memory.

        Args:
            width: Width of the image in pixels.
            height: Height of the image in pixels.
            long_side: As for `predict`.
        """
        used = self.used_size(width, height, long_side)
        pixels = max(width * height, used[0] * used[1])
        return len(self.classes) * pixels <= MOST_VALUES

    def used_size(
        self, width: int, height: int, long_side: int | None = None
    ) -> tuple[int, int]:
        """Width and height at which the network sees an image.

        Args:
            width: Width of the image in pixels.
            height: Height of the image in pixels.
            long_side: As for `predict`.
        """
        if long_side is None:
            return scaled_size((width, height), self.long_side)
        factor = (long_side or max(width, height)) / max(width, height)
        return max(1, round(factor * width)), max(1, round(factor * height))

    def _segment_alone(
        self, image: torch.Tensor, picture: Image.Image, tile: int
    ) -> Segmentation:
        _, height, width = image.shape
        if len(self.classes) * height * width > MOST_VALUES:
            return self._segment_parts(image, picture, tile)
        log_s, tiles = self._predict_tiles(image, tile)
        return self._make_segmentation(log_s, picture, tiles)

    def _can_stack(self, images: Sequence[torch.Tensor], tile: int) -> bool:
        """Whether images have one size, need no tiles, and fit into memory together."""
        shapes = {image.shape for image in images}
        if len(shapes) != 1:
            return False
        [(_, height, width)] = shapes
        values = len(images) * len(self.classes) * height * width
        return max(height, width) <= tile and values <= MOST_VALUES

    def size_in_batch(
        self, width: int, height: int, long_side: int | None = None
    ) -> tuple[int, int]:
        """Width and height of the batches that an image may be in.

        Args:
            width: Width of the image in pixels.
            height: Height of the image in pixels.
            long_side: As for `predict`.
        """
        width, height = self.used_size(width, height, long_side)
        if self.anchor is None:
            return width, height
        canvas = rounded(Size(height, width))
        return canvas.width, canvas.height

    @property
    def anchor(self) -> Anchor | None:
        """Where images of several sizes lie on a canvas; None: they do not share one.

        A canvas saves time only on a GPU; see `kproba.data.canvases`.
        """
        if self.device == "cpu":
            return None
        return self.predictor.network.backbone.anchor

    def _can_share_canvas(self, images: Sequence[torch.Tensor], tile: int) -> bool:
        """Whether images of several sizes have one canvas and fit into memory on it."""
        canvases = {rounded(Size(*image.shape[1:])) for image in images}
        if self.anchor is None or len(images) < 2 or len(canvases) != 1:
            return False
        [canvas] = canvases
        values = len(images) * len(self.classes) * canvas.height * canvas.width
        largest = max(max(image.shape[1:]) for image in images)
        return largest <= tile and values <= MOST_VALUES

    def _scores_on_canvas(self, images: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Log s (C, h, w) of images of several sizes that share a canvas."""
        assert self.anchor is not None
        sizes = [Size(*image.shape[1:]) for image in images]
        canvas = rounded(sizes[0])
        padded = torch.stack([pad(each, canvas, self.anchor, 0) for each in images])
        found = self.predictor.predict_scores(padded.to(self.device), sizes)
        return [log_s[0] for _, log_s in found]

    def _scale(self, image: Image.Image, long_side: int | None) -> torch.Tensor:
        """Image (3, h, w) uint8, scaled as described in `predict`."""
        size = self.used_size(*image.size, long_side)
        if size[0] * size[1] > max(MOST_PIXELS, image.width * image.height):
            raise ValueError(
                f"Expected images of at most {MOST_PIXELS / 1e6:.0f} million pixels "
                f"after scaling, but a long side of {long_side} scales an image to "
                f"{size[0]}x{size[1]}. Use a smaller long side."
            )
        if size == image.size:
            return pil_to_tensor(image)
        if long_side is None:  # as `kproba.data.sources` scales the training images
            scaled: torch.Tensor = resize(
                pil_to_tensor(image), [size[1], size[0]], antialias=True
            )
            return scaled
        return pil_to_tensor(image.resize(size, Image.Resampling.LANCZOS))

    def _predict_tiles(
        self, image: torch.Tensor, tile: int
    ) -> tuple[torch.Tensor, int]:
        """Log s (C, h, w) of an image (3, h, w), and the number of its tiles."""
        height, width = image.shape[1:]
        if max(height, width) <= tile:
            pixels = image[None].to(self.device)
            return self.predictor.fit(self.predictor.log_scores(pixels))[0], 1
        scores = self._partly_scored(image, tile)
        return scores.fitted(), scores.tiles

    def _partly_scored(self, image: torch.Tensor, tile: int) -> PartlyScored:
        return PartlyScored(
            self.predictor,
            image,
            len(self.channels),
            tile=tile,
            most_values=MOST_VALUES,
            device=self.device,
        )

    def _make_segmentation(
        self, log_s: torch.Tensor, picture: Image.Image, tiles: int
    ) -> Segmentation:
        probabilities = log_s[self.channels].exp().cpu()
        width, height = picture.size
        index, best = likeliest(probabilities, (height, width))
        self._check_finite(best)
        return Segmentation(
            self.classes,
            index.numpy(),
            best.clamp(max=1).numpy(),
            probabilities,
            describe_size(tiles, picture, probabilities.shape[1:]),
        )

    def _segment_parts(
        self, image: torch.Tensor, picture: Image.Image, tile: int
    ) -> Segmentation:
        """As `_predict_tiles` and `_make_segmentation`, in bounded memory."""
        scores = self._partly_scored(image, tile)
        shape = image.shape[1:]
        index = torch.zeros(shape, dtype=torch.uint8)
        best = torch.zeros(shape)
        for rows, columns, log_s in scores.fitted_parts():
            probabilities = log_s[self.channels].exp().cpu()
            found = likeliest(probabilities, probabilities.shape[1:])
            index[rows, columns], best[rows, columns] = found
        self._check_finite(best)
        how = f"{describe_size(scores.tiles, picture, shape)}, in parts"
        if shape != picture.size[::-1]:  # scaled, and still too large
            size = picture.size[::-1]
            index = F.interpolate(index[None, None], size, mode="nearest")[0, 0]
            best = resized(best[None], size)[0]
        return Segmentation(
            self.classes, index.numpy(), best.clamp(max=1).numpy(), None, how
        )

    def _check_finite(self, best: torch.Tensor) -> None:
        """Refuse probabilities that are NaN or infinite."""
        if not torch.isfinite(best).all():
            raise ModelError(
                f"Expected probabilities from {self.name}, but its output is NaN or "
                f"infinite. The model is damaged, or its training diverged. Copy it "
                f"again, or train the step again."
            )


def load(path: str | Path, device: str = "cpu") -> Segmenter:
    """Load a step as it was evaluated: the network, or network and bank.

    Args:
        path: Folder of a step, its predictor.json or its model.safetensors, or an
            archive that `kproba pack` wrote.
        device: "cpu", "cuda", "cuda:1", ..

    Raises:
        FileNotFoundError: predictor.json or a file that it names is missing.
        ValueError: The bank was built with another model.
    """
    with opened_step(path) as step:
        description = read_description(step)
        settings = description.decision
        predictor = load_predictor(
            description.network,
            bank=description.bank,
            feature_network=description.feature_network,
            decision=Decision.from_dict(settings) if settings else None,
            device=device,
        )
    return Segmenter(
        predictor,
        description.classes,
        description.channels,
        device,
        long_side=getattr(description, "long_side", None),
        name=str(description.network if step == Path(path) else path),
    )
