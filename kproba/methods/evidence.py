"""The scores that the rules of the pseudo labels use, as one predictor.

`kproba.bank.large` averages scores over tiles. The rules use the scores of network and
bank, so both are concatenated to one map with twice as many channels. If the head has
hidden channels, their scores follow.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch

from kproba.bank.fusion import Combination
from kproba.bank.large import PartlyScored
from kproba.bank.views import Place, View, views
from kproba.network.layers import upsample
from kproba.network.network import SegmentationNetwork


class Evidence(NamedTuple):
    """The scores of some pixels.

    Attributes:
        log_p: Log p over S_{t-1}, (b, C, h, w) float32.
        log_evidence: The bank's log evidence, of the same shape; None without a bank.
        log_apart: Log p of the background and of each hidden channel of the head, each
            alone (`Head.apart`), (b, 1 + hidden, h, w); None if nothing is hidden.
    """

    log_p: torch.Tensor
    log_evidence: torch.Tensor | None = None
    log_apart: torch.Tensor | None = None


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
    ) -> Iterator[tuple[Place, Evidence]]:
        """The evidence for images.

        Args:
            images: (B, 3, H, W) uint8.
            sizes: Height and width of each image, where they are on a canvas.

        Yields:
            The slices of some images in (B, H, W), and their evidence.
        """
        for view in views(self.network, images, sizes, self.combination):
            yield view.place, self.of_view(view)

    def of_view(self, view: View) -> Evidence:
        """The evidence for the outputs of some images."""
        network, combination = self.network, self.combination
        logits = upsample(network.compose(view.outputs), view.size)
        log_apart = network.head.apart(logits)
        log_p = network.log_probabilities(network.head.merge(logits))
        evidence = None
        if combination is not None:
            evidence = combination.log_evidence_of_pixels(view.features, view.size)
        return Evidence(log_p, evidence, log_apart)

    def log_scores(self, images: torch.Tensor) -> torch.Tensor:
        """The result of `compute` as one map, (B, `channels`, H, W)."""
        ((_, evidence),) = self.compute(images)
        maps = [scores for scores in evidence if scores is not None]
        return maps[0] if len(maps) == 1 else torch.cat(maps, dim=1)

    @property
    def channels(self) -> int:
        """Channels of the map: C, C of the bank, and 1 + hidden, as far as they are."""
        maps = 1 if self.combination is None else 2
        hidden = self.network.head.hidden
        return maps * self.network.channels + (1 + hidden if hidden else 0)

    def fit(
        self, log_s: torch.Tensor, sample: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The scores unchanged."""
        return log_s

    def in_tiles(self, image: torch.Tensor) -> PartlyScored:
        """The map of an image (3, H, W) uint8 that needs tiles, part by part."""
        return PartlyScored(self, image, self.channels, device=str(image.device))

    def split(self, scores: torch.Tensor) -> Evidence:
        """The evidence (1, .., h, w) of a map (`channels`, h, w)."""
        classes, known = self.network.channels, scores[None]
        log_p, rest = known[:, :classes], known[:, classes:]
        evidence = None
        if self.combination is not None:
            evidence, rest = rest[:, :classes], rest[:, classes:]
        return Evidence(log_p, evidence, rest if self.network.head.hidden else None)
