"""What is seen in an image: by the network alone, or by network and bank together.

Network and bank answer from different evidence. The network is trained step by step,
and its newest branch has not met the old classes: on one that looks like its own (a
cow, after the step that brought horses) it is wrong with confidence. The bank's
discriminant analysis weighs all classes, whatever step they came in, in one feature
space, that of step 0's network, which does not change; but it is linear in φ and sees
one cell at a time, so it blurs edges. Together (`kproba.bank.fusion.fuse`), the
network says how likely a pixel is of any class at all, and both say of which; and as an
image shows few classes, those count more that it shows much of.
"""

from pathlib import Path
from typing import Any

import torch

from kproba.bank.bank import PrototypeBank, bank_of_model
from kproba.bank.fusion import (
    PseudoLabelSettings,
    evidence,
    fit_to_image,
    fuse,
    log_probabilities,
)
from kproba.network.files import load_model
from kproba.network.heads import compose_logits
from kproba.network.layers import upsample
from kproba.network.network import SegmentationNetwork


class NetworkPredictor:
    """The network of a step by itself, with the face of `FusedPredictor`."""

    def __init__(self, network: SegmentationNetwork):
        self.network = network

    def log_scores(self, images: torch.Tensor) -> torch.Tensor:
        """Log p̄ over S_t, (B, |S_t|, H, W) float32, of images (B, 3, H, W) uint8."""
        softmax = self.network.architecture.softmax
        logits = self.network.predict_logits(images)
        return log_probabilities(logits, softmax=softmax).log_softmax(dim=1)

    def fit(self, log_s: torch.Tensor) -> torch.Tensor:
        """The same: a network has no prior of its own."""
        return log_s

    @torch.inference_mode()
    def predict_logits(self, images: torch.Tensor) -> torch.Tensor:
        """Logits over S_t, (B, |S_t|, H, W) float32, of images (B, 3, H, W) uint8."""
        return self.network.predict_logits(images)


class FusedPredictor:
    """Network and bank of one step as one model.

    Args:
        network: Model of step t.
        bank: Bank of that step, on the same device.
        settings: The rule with its weights; None: `klda` or `lda`, as the bank is, with
            the default weights.
        source: Network that the bank's features are of, if not `network` itself: with
            `bank.network: base` the model of step 0.

    Raises:
        ValueError: Network and bank know different numbers of classes.
    """

    def __init__(
        self,
        network: SegmentationNetwork,
        bank: PrototypeBank,
        settings: PseudoLabelSettings | None = None,
        source: SegmentationNetwork | None = None,
    ):
        if bank.classes != network.channels:
            raise ValueError(
                f"Expected a bank of the {network.channels} classes of the network, "
                f"background included, but it has {bank.classes}. Take the bank of the "
                f"same step."
            )
        self.network, self.bank, self.source = network, bank, source
        self.settings = settings or PseudoLabelSettings(
            rule="lda" if bank.settings.map == "identity" else "klda",
            threshold=0.0,
            score_threshold=0.0,
            foreground="network",
            probability_weight=1.0,
            posterior_weight=0.5,
            foreground_bias=0.0,
            image_prior=1,
            temperature=1.0,
            metric="euclidean",
        )

    def log_scores(self, images: torch.Tensor) -> torch.Tensor:
        """Log s, (B, |S_t|, H, W) float32, pixel by pixel: no image prior yet."""
        outputs = self.network(images)
        size = images.shape[-2:]
        logits = upsample(compose_logits(outputs.logits).float(), size)
        log_p = log_probabilities(logits, softmax=self.network.architecture.softmax)
        shown = outputs if self.source is None else self.source(images)
        log_evidence = upsample(evidence(shown, self.bank, self.settings), size)
        return fuse(log_p, log_evidence, self.settings)

    def fit(self, log_s: torch.Tensor) -> torch.Tensor:
        """Log s of whole images with the prior of each image."""
        if not self.settings.image_prior:
            return log_s
        return fit_to_image(log_s, self.bank.share, self.settings.image_prior)

    @torch.inference_mode()
    def predict_logits(self, images: torch.Tensor) -> torch.Tensor:
        """Log s over S_t, (B, |S_t|, H, W) float32, of images (B, 3, H, W) uint8."""
        return self.fit(self.log_scores(images))

    def predict(self, images: torch.Tensor) -> torch.Tensor:
        """Labels (B, H, W) uint8 in output indices; 0 is background."""
        return self.predict_logits(images).argmax(dim=1).to(torch.uint8)


def load_predictor(
    network: str | Path,
    *,
    bank: str | Path | None,
    source: str | Path | None,
    rule: dict[str, Any] | None,
    device: str,
) -> NetworkPredictor | FusedPredictor:
    """What predicts after a step, from its files.

    Args:
        network: model.safetensors of the step.
        bank: prototypes.safetensors, where both predict.
        source: model.safetensors of the bank's features, if not `network`.
        rule: `PseudoLabelSettings` as a dictionary; None: the network alone.
        device: Where to put them.

    Raises:
        ValueError: There is a rule and no bank, or the bank is of another model.
    """
    loaded = load_model(network, device=device)
    if rule is None:
        return NetworkPredictor(loaded)
    if bank is None:
        raise ValueError("Expected the step's bank to predict with, but got none.")
    return FusedPredictor(
        loaded,
        bank_of_model(bank, source or network, device),
        PseudoLabelSettings(**rule),
        None if source is None else load_model(source, device=device),
    )
