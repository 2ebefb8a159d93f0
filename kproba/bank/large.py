"""Predictions for large images in overlapping tiles, with bounded memory.

The probabilities of the tiles are averaged with weights that fall towards the edges of
each tile. The averaged scores are returned in parts, so the scores of all classes and
pixels are never in memory at once. The image prior needs to see the whole image: it
gets an evenly spaced sample of its pixels. The scores are kept in between if they fit
into memory; otherwise all tiles are computed twice.

Evaluation, pseudo labels and prediction all use this module.
"""

from collections.abc import Iterator
from typing import NamedTuple, Protocol

import torch

from kproba.data import tiles
from kproba.data.tiles import tile_starts

SAMPLE = 2**16  # pixels that represent the whole image
MOST_VALUES = 2**28  # scores of one image that are kept, 1 GiB of float32


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
        """Log-probabilities (B, C, H, W), corrected by the prior of each image.

        The prior comes from `sample` (B, C, h, w) if it is given, else from `log_s`.
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
        image: (3, H, W) uint8, on any device.
        channels: Number of the predictor's channels C.
        tile: Longest side in pixels of the network's input, `TILE` if None. It is
            reduced if the scores of one tile would have more values than `most_values`.
        most_values: Most values that are kept at once, `MOST_VALUES` if None.
        device: Device of the predictor.
    """

    def __init__(
        self,
        predictor: PixelPredictor,
        image: torch.Tensor,
        channels: int,
        *,
        device: str,
        tile: int | None = None,
        most_values: int | None = None,
    ):
        self.predictor, self.image, self.device = predictor, image, device
        self.channels, self.most_values = channels, most_values or MOST_VALUES
        most_side = max(1, int((self.most_values / channels) ** 0.5))
        self.tile = min(tile or tiles.TILE, most_side)
        self.kept: list[Part] | None = None
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

    @property
    def pixels(self) -> int:
        """Number of pixels."""
        return self.image.shape[1] * self.image.shape[2]

    def parts(self) -> Iterator[Part]:
        """Parts that cover the image once, with the averaged scores of their pixels."""
        return self._computed_parts() if self.kept is None else iter(self.kept)

    def _computed_parts(self) -> Iterator[Part]:
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

    def fitted(self) -> torch.Tensor:
        """Log s (C, H, W) of the whole image with its prior, if it fits into memory."""
        size = (self.channels, *self.image.shape[1:])
        log_s = torch.empty(size, device=self.device)
        for rows, columns, part in self.fitted_parts():
            log_s[:, rows, columns] = part
        return log_s

    def sample_places(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows (h,) and columns (w,) int64 of at most `SAMPLE` evenly spaced pixels."""
        height, width = self.image.shape[1:]
        down = max(1, min(height, round((SAMPLE * height / width) ** 0.5), SAMPLE))
        across = max(1, min(width, SAMPLE // down))
        return _spread(height, down), _spread(width, across)

    def sample(self) -> torch.Tensor:
        """Scores (C, h, w) of the pixels of `sample_places`.

        The scores of all pixels are kept for the next pass, if they fit.
        """
        if self.kept is None and self.channels * self.pixels <= self.most_values:
            self.kept = list(self._computed_parts())
        rows, columns = self.sample_places()
        size = (self.channels, len(rows), len(columns))
        sample = torch.zeros(size, device=self.device)
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
    """The sorted places that are in one part of the side."""
    first, last = torch.searchsorted(places, torch.tensor([part.start, part.stop]))
    return slice(int(first), int(last))
