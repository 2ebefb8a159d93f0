"""Prediction after a step, by the network alone or by network and bank.

Network and bank use different evidence. The network is trained step by step, and its
newest branch was never trained on the old classes. If an old class resembles a class of
the new step (a cow, after the step that added horses), the branch is wrong with high
confidence. The bank's discriminant analysis compares all classes of all steps
in the feature space of one network, which does not change. But it is linear in φ
and sees one cell at a time, so it blurs edges. `kproba.bank.fusion` combines both.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from kproba.bank.bank import PrototypeBank
from kproba.bank.decision import Decision
from kproba.bank.fusion import Combination, pixel_log_probabilities
from kproba.bank.likeliest import (
    largest_logits,
    likeliest_by_bank,
    likeliest_classes,
)
from kproba.bank.views import Place, View, views
from kproba.network.folding import load_folded
from kproba.network.network import SegmentationNetwork

# The rule that reads a bank, where none is given.
RULE_OF_MAP = {"identity": "lda", "rff": "klda", "relu": "ridge"}


class NetworkPredictor:
    """The network of a step alone, with the same interface as `FusedPredictor`."""

    def __init__(self, network: SegmentationNetwork):
        self.network = network

    def log_scores(self, images: torch.Tensor) -> torch.Tensor:
        """Log p̄ over S_t, (B, |S_t|, H, W) float32, of images (B, 3, H, W) uint8."""
        ((_, log_p),) = self.predict_scores(images)
        return log_p

    def predict_labels(
        self, images: torch.Tensor, sizes: Sequence[tuple[int, int]] | None = None
    ) -> Iterator[tuple[Place, torch.Tensor]]:
        """The likeliest channel of every pixel; see `FusedPredictor.predict_labels`."""
        for view in views(self.network, images, sizes):
            logits = self.network.compose(view.outputs)
            labels = largest_logits(logits, view.size, self.network.head)
            yield view.place, labels

    def predict_scores(
        self, images: torch.Tensor, sizes: Sequence[tuple[int, int]] | None = None
    ) -> Iterator[tuple[Place, torch.Tensor]]:
        """Log p̄ of every pixel; see `FusedPredictor.predict_scores`."""
        for view in views(self.network, images, sizes):
            log_p = pixel_log_probabilities(self.network, view.outputs, view.size)
            yield view.place, log_p.log_softmax(dim=1)

    has_image_prior = False

    def fit(
        self, log_s: torch.Tensor, sample: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return the scores unchanged, because a network has no prior."""
        return log_s

    @torch.inference_mode()
    def predict_logits(self, images: torch.Tensor) -> torch.Tensor:
        """Logits over S_t, (B, |S_t|, H, W) float32, of images (B, 3, H, W) uint8."""
        return self.network.predict_logits(images)


class FusedPredictor:
    """Network and bank of one step, combined to one model.

    Args:
        network: Model of step t.
        bank: Bank of that step, on the same device.
        decision: How they are combined; None: `klda`, `lda` or `ridge`, depending on
            the bank, with the default weights.
        feature_network: Network whose features the bank uses, if it is not `network`.
            With `bank.network: pretrained` it is the network before the training of
            step 0, with `base` the model of step 0.

    Raises:
        ValueError: Network and bank know different numbers of classes.
    """

    def __init__(
        self,
        network: SegmentationNetwork,
        bank: PrototypeBank,
        decision: Decision | None = None,
        feature_network: SegmentationNetwork | None = None,
    ):
        if bank.classes != network.channels:
            raise ValueError(
                f"Expected a bank with the {network.channels} classes of the network, "
                f"background included, but it has {bank.classes}. Use the bank of the "
                f"same step."
            )
        if decision is None:
            decision = Decision(RULE_OF_MAP[bank.settings.map])
        self.network = network
        self.feature_network = feature_network  # the export finds the networks here
        # If the bank decides alone, only the network of its features has to run.
        self.running = network
        if decision.bank_alone and feature_network is not None:
            self.running, feature_network = feature_network, None
        combination = Combination(bank, decision, feature_network, head=network.head)
        self.combination = combination.beside(self.running)

    def log_scores(self, images: torch.Tensor) -> torch.Tensor:
        """Log s, (B, |S_t|, H, W) float32, pixel by pixel: no image prior yet."""
        (view,) = views(self.running, images, combination=self.combination)
        return self._log_scores(view)

    def _log_scores(self, view: View) -> torch.Tensor:
        log_q = self.combination.log_evidence_of_pixels(view.features, view.size)
        if self.combination.decision.bank_alone:
            log_p = log_q  # it has the weight 0
        else:
            log_p = pixel_log_probabilities(self.network, view.outputs, view.size)
        return self.combination.log_scores(log_p, log_q)

    @property
    def has_image_prior(self) -> bool:
        """Whether `fit` changes scores."""
        return self.combination.decision.image_prior > 0

    def fit(
        self, log_s: torch.Tensor, sample: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Log s with the prior of each image.

        Args:
            log_s: Scores of whole images, or of parts of them if there is a `sample`.
            sample: Scores of pixels that represent the whole images, (B, C, h, w).
        """
        return self.combination.fit(log_s, sample=sample)

    @torch.inference_mode()
    def predict_logits(self, images: torch.Tensor) -> torch.Tensor:
        """Log s over S_t, (B, |S_t|, H, W) float32, of images (B, 3, H, W) uint8."""
        return self.fit(self.log_scores(images))

    def predict_scores(
        self, images: torch.Tensor, sizes: Sequence[tuple[int, int]] | None = None
    ) -> Iterator[tuple[Place, torch.Tensor]]:
        """Log s of every pixel, with the prior of each image.

        Arguments as in `predict_labels`; the scores are (b, |S_t|, h, w) float32.
        """
        for view in views(self.running, images, sizes, self.combination):
            yield view.place, self.fit(self._log_scores(view))

    def predict_labels(
        self, images: torch.Tensor, sizes: Sequence[tuple[int, int]] | None = None
    ) -> Iterator[tuple[Place, torch.Tensor]]:
        """The likeliest channel of every pixel; 0 is background.

        Args:
            images: (B, 3, H, W) uint8.
            sizes: Height and width of each image, where they are on a canvas
                (`kproba.bank.views`); None: all have the size of the batch.

        Yields:
            The slices of some images in (B, H, W), and their labels (b, h, w) int64.
        """
        network, combination = self.network, self.combination
        decision = combination.decision
        for view in views(self.running, images, sizes, combination):
            if decision.bank_alone and not decision.image_prior:
                labels = likeliest_by_bank(combination, view)
            elif decision.by_parts:
                _, labels = likeliest_classes(network, combination, view)
            else:
                labels = self.fit(self._log_scores(view)).argmax(dim=1)
            yield view.place, labels


def load_predictor(
    network: str | Path,
    *,
    bank: str | Path | None,
    feature_network: str | Path | None,
    decision: Decision | None,
    device: str,
) -> NetworkPredictor | FusedPredictor:
    """Load the predictor of a step from its files.

    Args:
        network: model.safetensors of the step.
        bank: prototypes.safetensors, if network and bank are combined.
        feature_network: model.safetensors of the bank's features, if not `network`.
        decision: How they are combined; None: the network alone.
        device: Device of the networks and the bank.

    Raises:
        ValueError: There is a decision but no bank, or the bank belongs to another
            model.
    """
    loaded = load_folded(network, device=device)
    if decision is None:
        return NetworkPredictor(loaded)
    if bank is None:
        raise ValueError("Expected the step's bank to predict with, but got none.")
    combination = Combination.load(
        bank,
        decision,
        network=network,
        feature_network=feature_network,
        device=device,
    )
    return FusedPredictor(
        loaded, combination.bank, decision, combination.feature_network
    )
