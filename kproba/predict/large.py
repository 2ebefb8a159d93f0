"""Images whose class probabilities do not fit into memory at once.

They are cut into tiles like other large images, but the averaged scores are kept for a
part of the image at a time. The image prior needs to see the whole image: it gets an
evenly spaced sample of its pixels, for which all tiles are computed once before.
"""

from collections.abc import Iterator
from typing import NamedTuple, Protocol

import torch

from kproba.predict.tiles import tile_starts

SAMPLE = 2**16  # pixels that stand for the whole image


class PixelPredictor(Protocol):
    """`FusedPredictor` or `NetworkPredictor`."""

    @property
    def has_image_prior(self) -> bool:
        """Whether `fit` changes scores."""

    def log_scores(self, images: torch.Tensor) -> torch.Tensor:
        """Log-probabilities (B, C, H, W) of images (B, 3, H, W) uint8, by pixel."""

    def fit(
        self, log_s: torch.Tensor, sample: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Log-probabilities (B, C, H, W), corrected by each image's prior.

        That of the image that `sample` (B, C, h, w) is of, or of `log_s` itself.
        """


class Part(NamedTuple):
    """Scores of a part of an image: log s (C, rows, columns)."""

    rows: slice
    columns: slice
    log_s: torch.Tensor


class PartlyScored:
    """The scores of one image, part by part.

    Args:
        predictor: On `device`.
        image: (3, H, W) uint8, on the CPU.
        channels: Number of the predictor's channels C.
        tile: Longest side in pixels that the network gets at once; lowered where the
            scores of one tile would have more values than `most_values`.
        most_values: Most values that are kept at once.
        device: Device of the predictor.
    """

    def __init__(
        self,
        predictor: PixelPredictor,
        image: torch.Tensor,
        channels: int,
        *,
        tile: int,
        most_values: int,
        device: str,
    ):
        self.predictor, self.image, self.device = predictor, image, device
        self.channels, self.most_values = channels, most_values
        self.tile = min(tile, max(1, int((most_values / channels) ** 0.5)))
        height, width = image.shape[1:]
        self.high, self.wide = min(self.tile, height), min(self.tile, width)
        self.tops = tile_starts(height, self.tile)
        self.lefts = tile_starts(width, self.tile)
        self.total_down = _total_weights(height, self.high, self.tops)
        self.total_across = _total_weights(width, self.wide, self.lefts)

    @property
    def tiles(self) -> int:
        """Number of tiles."""
        return len(self.tops) * len(self.lefts)

    def parts(self) -> Iterator[Part]:
        """Parts that cover the image once, with the averaged scores of their pixels."""
        width = self.image.shape[2]
        across = max(1, self.most_values // (self.channels * self.high))
        for left in range(0, width, across):
            yield from self._parts_of_panel(left, min(left + across, width))

    def fitted_parts(self) -> Iterator[Part]:
        """The same parts, with the prior of the whole image."""
        sample = self.sample() if self.predictor.has_image_prior else None
        for rows, columns, log_s in self.parts():
            given = None if sample is None else sample[None]
            yield Part(rows, columns, self.predictor.fit(log_s[None], given)[0])

    def sample(self) -> torch.Tensor:
        """Scores (C, h, w) of at most `SAMPLE` evenly spaced pixels."""
        height, width = self.image.shape[1:]
        down = max(1, min(height, round((SAMPLE * height / width) ** 0.5), SAMPLE))
        across = max(1, min(width, SAMPLE // down))
        rows, columns = _spread(height, down), _spread(width, across)
        sample = torch.zeros(self.channels, down, across, device=self.device)
        for part in self.parts():
            of_rows = _places_within(rows, part.rows)
            of_columns = _places_within(columns, part.columns)
            y = rows[of_rows] - part.rows.start
            x = columns[of_columns] - part.columns.start
            sample[:, of_rows, of_columns] = part.log_s[:, y][..., x]
        return sample

    def _parts_of_panel(self, left: int, right: int) -> Iterator[Part]:
        """The parts of the columns from `left` to `right`, from top to bottom.

        After a row of tiles, the pixels above the next row are complete.
        """
        height = self.image.shape[1]
        size = (self.channels, self.high, right - left)
        total = torch.zeros(size, device=self.device)
        for top, following in zip(self.tops, [*self.tops[1:], height], strict=True):
            for start in self.lefts:
                self._add_tile(total, top, start, left, right)
            done = following - top
            yield from self._averaged(total[:, :done], top, left)
            kept = total[:, done:].clone()
            total.zero_()
            total[:, : kept.shape[1]] = kept

    def _add_tile(
        self, total: torch.Tensor, top: int, start: int, left: int, right: int
    ) -> None:
        """Add the weighted probabilities of a tile to those of a panel."""
        first, last = max(start, left), min(start + self.wide, right)
        if first >= last:
            return
        pixels = self.image[:, top : top + self.high, start : start + self.wide]
        log_s = self.predictor.log_scores(pixels[None].contiguous().to(self.device))[0]
        weight = edge_weights(self.high)[:, None] * edge_weights(self.wide)
        shown = slice(first - start, last - start)
        weighted = weight[:, shown].to(self.device) * log_s[..., shown].exp()
        total[..., first - left : last - left] += weighted

    def _averaged(self, total: torch.Tensor, top: int, left: int) -> Iterator[Part]:
        """Parts of complete sums (C, rows, columns), few rows at a time."""
        _, height, width = total.shape
        step = max(1, self.most_values // (8 * self.channels * width))
        columns = slice(left, left + width)
        for row in range(0, height, step):
            end = min(row + step, height)
            rows = slice(top + row, top + end)
            weights = self.total_down[rows, None] * self.total_across[columns]
            averaged = total[:, row:end] / weights.to(self.device)
            yield Part(rows, columns, averaged.clamp(min=1e-30).log())


def edge_weights(length: int) -> torch.Tensor:
    """Weights (length,) along a side of a tile: 1 in the middle, near 0 at the ends."""
    place = torch.arange(length) + 0.5
    return torch.minimum(place, length - place) / (length / 2)


def _total_weights(length: int, tile: int, starts: list[int]) -> torch.Tensor:
    """Sum (length,) of the weights of all tiles along one side of an image."""
    total = torch.zeros(length)
    for start in starts:
        total[start : start + tile] += edge_weights(tile)
    return total


def _spread(length: int, count: int) -> torch.Tensor:
    """Evenly spaced places (count,) int64 along a side."""
    return ((torch.arange(count) + 0.5) * length / count).long()


def _places_within(places: torch.Tensor, part: slice) -> slice:
    """Which of sorted places lie in a part of the side."""
    first, last = torch.searchsorted(places, torch.tensor([part.start, part.stop]))
    return slice(int(first), int(last))
