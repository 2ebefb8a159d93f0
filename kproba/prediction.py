"""What is seen in an image: by the network alone, or by network and bank together.

Network and bank answer from different evidence. The network is trained step by step,
and its newest branch has not met the old classes: on one that looks like its own (a
cow, after the step that brought horses) it is wrong with confidence. The bank's
discriminant analysis weighs all classes, whatever step they came in, in one feature
space that does not change if the backbone does not; but it is linear in φ and sees one
cell at a time. Their product, argmax_c w log p̄_c + a log q_c, is the rule by which the
pseudo labels are found, here for every pixel of a test image.
"""

import torch

from kproba.model import SegmentationNetwork, compose_logits, upsample
from kproba.prototypes import PrototypeBank
from kproba.pseudo_labels import (
    PseudoLabelSettings,
    evidence,
    log_probabilities,
    scores,
)


class FusedPredictor:
    """Network and bank of one step as one model.

    Args:
        network: Model of step t.
        bank: Its bank, built from this very model, on the same device.
        settings: The rule with its weights; None: `klda` or `lda`, as the bank is, with
            all weights 1.

    Raises:
        ValueError: Network and bank know different numbers of classes.
    """

    def __init__(
        self,
        network: SegmentationNetwork,
        bank: PrototypeBank,
        settings: PseudoLabelSettings | None = None,
    ):
        if bank.classes != network.channels:
            raise ValueError(
                f"Expected a bank of the {network.channels} classes of the network, "
                f"background included, but it has {bank.classes}. Take the bank of the "
                f"same step."
            )
        self.network, self.bank = network, bank
        self.settings = settings or PseudoLabelSettings(
            rule="lda" if bank.settings.map == "identity" else "klda",
            threshold=0.0,
            probability_weight=1.0,
            posterior_weight=1.0,
            foreground_bias=0.0,
            temperature=1.0,
            metric="euclidean",
        )

    @torch.inference_mode()
    def predict_logits(self, images: torch.Tensor) -> torch.Tensor:
        """Scores over S_t, (B, |S_t|, H, W) float32, of images (B, 3, H, W) uint8."""
        outputs = self.network(images)
        size = images.shape[-2:]
        logits = upsample(compose_logits(outputs.logits).float(), size)
        log_p = log_probabilities(logits, softmax=self.network.architecture.softmax)
        log_evidence = upsample(evidence(outputs, self.bank, self.settings), size)
        return scores(log_p, log_evidence, self.settings)

    def predict(self, images: torch.Tensor) -> torch.Tensor:
        """Labels (B, H, W) uint8 in output indices; 0 is background."""
        return self.predict_logits(images).argmax(dim=1).to(torch.uint8)
