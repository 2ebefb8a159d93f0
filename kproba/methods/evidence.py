"""The scores that the rules of the pseudo labels use, as one predictor.

`kproba.bank.large` averages scores over tiles. The rules use the scores of network and
bank, so both are concatenated to one map with twice as many channels.
"""

from collections.abc import Iterator, Sequence

import torch

from kproba.bank.fusion import Combination, pixel_log_probabilities
from kproba.bank.large import PartlyScored
from kproba.bank.views import Place, View, views
from kproba.network.network import SegmentationNetwork


class PixelEvidence:
    """Log p of a network and, with a bank, its log evidence.

    Args:
        network: Network of step t-1.
        combination: Its bank; None without one.
    """

    has_image_prior = False  # the rules fit their own scores to an image

    def __init__(
        self, network: SegmentationNetwork, combination: Combination | None = None
    ):
        self.network, self.combination = network, combination

    def compute(
        self, images: torch.Tensor, sizes: Sequence[tuple[int, int]] | None = None
    ) -> Iterator[tuple[Place, torch.Tensor, torch.Tensor | None]]:
        """Log p and log evidence (None without a bank), each (b, C, h, w) float32.

        Args:
            images: (B, 3, H, W) uint8.
            sizes: Height and width of each image, where they are on a canvas.

        Yields:
            The slices of some images in (B, H, W), and both of them.
        """
        for view in views(self.network, images, sizes, self.combination):
            yield view.place, *self.of_view(view)

    def of_view(self, view: View) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Log p and log evidence for the outputs of some images."""
        log_p = pixel_log_probabilities(self.network, view.outputs, view.size)
        if self.combination is None:
            return log_p, None
        evidence = self.combination.log_evidence_of_pixels(view.features, view.size)
        return log_p, evidence

    def log_scores(self, images: torch.Tensor) -> torch.Tensor:
        """The results of `compute` as one map, (B, C, H, W) or (B, 2 C, H, W)."""
        ((_, log_p, evidence),) = self.compute(images)
        return log_p if evidence is None else torch.cat([log_p, evidence], dim=1)

    def fit(
        self, log_s: torch.Tensor, sample: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The scores unchanged."""
        return log_s

    def in_tiles(self, image: torch.Tensor) -> PartlyScored:
        """The map of an image (3, H, W) uint8 that needs tiles, part by part."""
        maps = 1 if self.combination is None else 2
        channels = maps * self.network.channels
        return PartlyScored(self, image, channels, device=str(image.device))

    def split(self, scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Log p and log evidence, (1, C, h, w), of a map (C or 2 C, h, w)."""
        if self.combination is None:
            return scores[None], None
        log_p, evidence = scores[None].chunk(2, dim=1)
        return log_p, evidence
