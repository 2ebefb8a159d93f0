"""The bank as a teacher: it corrects the targets for old classes in an increment.

The loss `gkd` of BARM distils the outputs of the network of step t-1 into the old
branches. If that network confuses two classes, each further step learns the confusion
again. The bank has not changed. So network and bank together decide which old class a
background cell shows, and `gkd` uses this decision as its target. The correction starts
at step `kproba.methods.method.Method.teacher_from`, because the network of step 0
cannot confuse its classes with classes of later steps.
"""

from dataclasses import dataclass

import torch

from kproba.bank.fusion import Combination
from kproba.network.network import Outputs, SegmentationNetwork

LEAST = 1e-5  # smallest p and 1 - p


@dataclass(frozen=True)
class BankTeacher:
    """Bank and network of step t-1, combined as the teacher of an increment.

    Attributes:
        network: Network of step t-1.
        combination: Its bank, and how the two are combined.
    """

    network: SegmentationNetwork
    combination: Combination

    def features(self, outputs: Outputs, images: torch.Tensor) -> Outputs:
        """The outputs that hold the bank's features; see `Combination.features`."""
        return self.combination.features(outputs, images)

    def correct(
        self, outputs: Outputs, features: Outputs, background: torch.Tensor
    ) -> Outputs:
        """Return the outputs of the network, with corrected old classes on M⁻.

        The network alone decides how likely a cell is any old class, Σ_c p_c. Network
        and bank together divide this probability among the classes,

            p'_c = (Σ_{c'>0} p_{c'}) s_c / (1 - s_0),

        with the shares of the classes fitted to M⁻ of the image, if the decision has an
        image prior. The background's logit and the adaptations stay as they are.

        Args:
            outputs: Outputs of the network of step t-1.
            features: Result of `features`.
            background: M⁻, (B, h, w) bool; other cells keep the network's outputs.

        Returns:
            `outputs` with corrected logits in float32.
        """
        logits = [z.float() for z in outputs.logits]
        composed = self.network.compose(outputs._replace(logits=logits))
        composed = self.network.head.merge(composed)
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
