"""What an increment is taught of old classes: by network and bank together.

BARM's `gkd` holds the old branches to what the network of step t-1 thinks of the step's
images. Where that network has begun to mistake one class for another, each further step
learns the mistake again. The bank has not moved, so here both say which old class a
cell of background is of (`kproba.bank.fusion.fuse`), and `gkd` holds the branches to
that. From step `kproba.methods.method.FIRST_GUIDED` on: step 0's network has mistaken nothing
for a class that it has not met.
"""

from dataclasses import dataclass
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
from kproba.network.network import Outputs, SegmentationNetwork

LEAST = 1e-5  # of a probability, and of what is left to 1


@dataclass(frozen=True)
class Guide:
    """The bank beside the network of step t-1, as teachers of one increment.

    Attributes:
        bank: Of step t-1, on the network's device.
        rule: How network and bank decide together.
        source: Network of the bank's features; None for the teacher itself.
    """

    bank: PrototypeBank
    rule: PseudoLabelSettings
    source: SegmentationNetwork | None = None

    @classmethod
    def load(
        cls,
        bank: str | Path,
        rule: dict[str, Any],
        *,
        network: str | Path,
        source: str | Path | None,
        device: str,
    ) -> "Guide":
        """From files.

        Args:
            bank: prototypes.safetensors of step t-1.
            rule: `PseudoLabelSettings` as a dictionary.
            network: model.safetensors of step t-1.
            source: model.safetensors of the bank's features, if not `network`.
            device: Where to put them.

        Raises:
            ValueError: The bank was built with another model.
        """
        loaded = bank_of_model(bank, source or network, device)
        other = None
        if source is not None:
            other = load_model(source, device=device)
            other = other.to(memory_format=torch.channels_last)
        return cls(loaded, PseudoLabelSettings(**rule), other)

    def look(self, taught: Outputs, images: torch.Tensor) -> Outputs:
        """The outputs that the bank's features are in, of images (B, 3, H, W) uint8."""
        if self.source is None:
            return taught
        outputs: Outputs = self.source(images)
        return outputs

    def correct(
        self, taught: Outputs, shown: Outputs, background: torch.Tensor
    ) -> Outputs:
        """The teacher's outputs with what both say of the old classes on M⁻.

        How likely a cell is of any old class stays the network's word, Σ_c p_c; how it
        is dealt out among them is what network and bank say together,

            p'_c = (Σ_{c'>0} p_{c'}) s_c / (1 - s_0),

        with the shares of the classes fitted to M⁻ of the image, if the rule does that.
        The background's logit and the adaptations stay as they are.

        Args:
            taught: Of the network of step t-1.
            shown: What `look` gave.
            background: M⁻, (B, h, w) bool; elsewhere the network teaches alone.

        Returns:
            `taught` with logits in float32.
        """
        logits = [z.float() for z in taught.logits]
        composed = compose_logits(logits)
        log_s = fuse(
            log_probabilities(composed, softmax=False),
            evidence(shown, self.bank, self.rule),
            self.rule,
        )
        if self.rule.image_prior:
            share = self.bank.share
            log_s = fit_to_image(log_s, share, self.rule.image_prior, background)
        dealt = log_s[:, 1:].softmax(dim=1)
        whole = composed[:, 1:].sigmoid().sum(dim=1, keepdim=True)
        guided = (whole * dealt).clamp(LEAST, 1 - LEAST).logit()
        guided = torch.where(background[:, None], guided, composed[:, 1:])
        counts = [z.shape[1] - 1 for z in logits]
        parts = zip(logits, guided.split(counts, dim=1), strict=True)
        return taught._replace(logits=[torch.cat([z[:, :1], g], 1) for z, g in parts])
