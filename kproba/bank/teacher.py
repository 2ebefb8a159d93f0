"""The bank as a teacher: it corrects what an increment learns of old classes.

BARM's `gkd` holds the old branches to the outputs of the network of step t-1 on the
step's images. Where that network has begun to mistake one class for another, each
further step learns the mistake again. The bank has not changed: so network and bank
together decide which old class a cell of background shows, and `gkd` holds the branches
to that. It does so from step `kproba.methods.method.FIRST_CORRECTED_STEP` on: step 0's
network cannot have mistaken anything for a class that it has not met.
"""

from dataclasses import dataclass

import torch

from kproba.bank.fusion import Combination
from kproba.network.logits import compose_logits
from kproba.network.network import Outputs, SegmentationNetwork

LEAST = 1e-5  # of a probability, and of what is left to 1


@dataclass(frozen=True)
class BankTeacher:
    """The bank of step t-1 beside the network of step t-1, as teachers of an increment.

    Attributes:
        network: Network of step t-1.
        combination: Its bank, and how both decide together.
    """

    network: SegmentationNetwork
    combination: Combination

    def features(self, outputs: Outputs, images: torch.Tensor) -> Outputs:
        """The outputs that hold the bank's features; see `Combination.features`."""
        return self.combination.features(outputs, images)

    def correct(
        self, outputs: Outputs, features: Outputs, background: torch.Tensor
    ) -> Outputs:
        """The network's outputs, corrected on M⁻ by what both say of the old classes.

        How likely a cell is of any old class is left to the network, Σ_c p_c; how that
        is shared out among the classes is decided by network and bank together,

            p'_c = (Σ_{c'>0} p_{c'}) s_c / (1 - s_0),

        with the shares of the classes fitted to M⁻ of the image, if the decision has an
        image prior. The background's logit and the adaptations stay as they are.

        Args:
            outputs: Outputs of the network of step t-1.
            features: What `features` returned.
            background: M⁻, (B, h, w) bool; elsewhere the network's answer stays.

        Returns:
            `outputs` with corrected logits in float32.
        """
        logits = [z.float() for z in outputs.logits]
        composed = compose_logits(logits)
        log_p = self.network.log_probabilities(composed)
        log_s = self.combination.log_scores(
            log_p, self.combination.log_evidence(features)
        )
        log_s = self.combination.fit(log_s, background)
        shares = log_s[:, 1:].softmax(dim=1)
        whole = composed[:, 1:].sigmoid().sum(dim=1, keepdim=True)
        corrected = (whole * shares).clamp(LEAST, 1 - LEAST).logit()
        corrected = torch.where(background[:, None], corrected, composed[:, 1:])
        counts = [z.shape[1] - 1 for z in logits]
        parts = zip(logits, corrected.split(counts, dim=1), strict=True)
        return outputs._replace(logits=[torch.cat([z[:, :1], c], 1) for z, c in parts])
