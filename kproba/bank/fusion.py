"""Network and bank combined, for evaluation, teacher and pseudo labels alike.

The network decides how likely a pixel is foreground, and both decide which class it is.
(Or both decide everything, see `Decision.foreground`.) An image contains few classes,
so classes that cover a large part of it are preferred.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from kproba.bank.bank import PrototypeBank, bank_features, load_bank_of_model
from kproba.bank.decision import Decision
from kproba.bank.ensemble import fuse_networks, network_evidence
from kproba.network.architecture import Architecture
from kproba.network.backbones import backbone_entry
from kproba.network.files import load_model
from kproba.network.folding import load_folded
from kproba.network.heads import Head, head_entry
from kproba.network.layers import upsample
from kproba.network.network import Outputs, SegmentationNetwork
from kproba.network.record import read_model_record
from kproba.network.sharing import equal_stages, forward_beside
from kproba.runtime.records import REMAKE, ArtifactError
from kproba.runtime.references import resolve

# The features that a bank uses (`BankSettings.feature`), and their width.
_WIDTHS: dict[str, Callable[[Architecture], int]] = {
    "backbone": lambda of: backbone_entry(of.backbone).channels,
    "block": lambda of: of.aspp_channels,
    "both": lambda of: backbone_entry(of.backbone).channels + of.aspp_channels,
}

LEAST_EVIDENCE = -60.0  # log q or log κ
LEAST_SHARE = 1e-6  # of a class


@dataclass(frozen=True)
class Combination:
    """A bank, the network of its features, and the rule to combine it with a network.

    Attributes:
        bank: On the device of the networks.
        decision: The rule that combines network and bank.
        feature_network: Network of the bank's features; None: the network that decides
            with it.
        shared_stages: Number of first stages that both networks share (`beside`).
        head: The head of the networks, for rules that have the network of step 0 in
            the place of the bank; else it may be None.
    """

    bank: PrototypeBank
    decision: Decision
    feature_network: SegmentationNetwork | None = None
    shared_stages: int = 0
    head: Head | None = None

    @classmethod
    def load(
        cls,
        bank: str | Path,
        decision: Decision,
        *,
        network: str | Path,
        feature_network: str | Path | None,
        device: str,
        fold: bool = True,
    ) -> "Combination":
        """Read bank and feature network from files.

        Args:
            bank: prototypes.safetensors.
            decision: The rule that combines network and bank.
            network: model.safetensors of the network that decides with the bank.
            feature_network: model.safetensors of the bank's features, if not `network`.
            device: Device of the networks and the bank.
            fold: Whether to fold the batch norms of the feature network
                (`kproba.network.folding`).

        Raises:
            FileNotFoundError: A file is missing.
            ArtifactError: A file is damaged, or the bank was built with another model
                or for another rule, or is of another step. It is a ValueError.
        """
        loaded = load_bank_of_model(bank, feature_network or network, device)
        other = None
        if feature_network is not None:
            read = load_folded if fold else load_model
            other = read(feature_network, device=device)
        _check_sizes(loaded, bank, network, feature_network or network)
        _check_rule(loaded, bank, decision)
        return cls(loaded, decision, other, head=_head_of(network))

    def beside(self, network: SegmentationNetwork) -> "Combination":
        """Return this combination with the number of shared first stages set.

        Args:
            network: The network that decides with the bank; it is not trained. From now
                on its outputs contain the shared stages.
        """
        if self.feature_network is None or not self.decision.reads_evidence:
            return self
        network.shared_stages = equal_stages(network, self.feature_network)
        return replace(self, shared_stages=network.shared_stages)

    def features(self, outputs: Outputs, images: torch.Tensor) -> Outputs:
        """Compute the outputs that hold the features of the bank.

        Args:
            outputs: Outputs of the network that decides with the bank.
            images: (B, 3, H, W) uint8, the images of these outputs.
        """
        if self.feature_network is None or not self.decision.reads_evidence:
            return outputs
        shared = self.shared_stages
        return forward_beside(self.feature_network, outputs, images, shared)

    def log_evidence(self, features: Outputs) -> torch.Tensor:
        """The bank's log evidence of every cell, (B, C, h, w) float32, at least -60.

        Args:
            features: Result of `features`.
        """
        if not self.decision.reads_evidence:
            batch, _, height, width = features.backbone.shape
            size = (batch, self.bank.classes, height, width)
            return features.backbone.new_zeros(size, dtype=torch.float32)
        if self.decision.by_networks:
            return self._network_evidence(features)
        maps = bank_features(features, self.bank.settings).float()
        batch, _, height, width = maps.shape
        cells = maps.permute(0, 2, 3, 1).flatten(0, 2)
        if self.decision.by_distance:
            evidence = self.bank.log_kappa(
                cells,
                temperature=self.decision.temperature,
                metric=self.decision.metric,
            )
        else:
            evidence = self.bank.log_posterior(cells)
        # A class without a prototype has -inf, which must not be interpolated.
        evidence = evidence.clamp(min=LEAST_EVIDENCE)
        return evidence.view(batch, height, width, -1).permute(0, 3, 1, 2)

    def log_evidence_of_pixels(
        self, features: Outputs, size: Sequence[int]
    ) -> torch.Tensor:
        """The bank's log evidence at the size of the images, (B, C, H, W) float32.

        Args:
            features: Result of `features`.
            size: (H, W).
        """
        if self.decision.by_networks:
            return self._network_evidence(features, size)
        return upsample(self.log_evidence(features), size)

    def _network_evidence(
        self, features: Outputs, size: Sequence[int] | None = None
    ) -> torch.Tensor:
        """Log p of step 0's network; see `kproba.bank.ensemble.network_evidence`."""
        if self.head is None:
            raise ValueError(
                f"Expected the head of the networks for the rule "
                f"'{self.decision.rule}', but got None. Set Combination.head."
            )
        return network_evidence(self.head, features, self.bank.classes, size)

    @property
    def known(self) -> int:
        """Number of classes that the network of the features knows, with background."""
        network = self.feature_network
        return self.bank.classes if network is None else network.channels

    def log_scores(
        self, log_p: torch.Tensor, log_evidence: torch.Tensor
    ) -> torch.Tensor:
        """Log s of every pixel or cell separately; see `fuse` and `fuse_networks`."""
        if self.decision.by_networks:
            return fuse_networks(log_p, log_evidence, self.known, self.decision)
        return fuse(log_p, log_evidence, self.decision)

    def fit(
        self,
        log_s: torch.Tensor,
        counted: torch.Tensor | None = None,
        sample: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Correct log s by the prior of each image, if the decision has one.

        Args:
            log_s: Result of `log_scores`, of whole images, or of parts of them if
                there is a `sample`.
            counted: See `fit_to_image`.
            sample: See `fit_to_image`.
        """
        iterations = self.decision.image_prior
        if not iterations:
            return log_s
        return fit_to_image(log_s, self.trained_shares, iterations, counted, sample)

    @property
    def trained_shares(self) -> torch.Tensor:
        """π of the image prior, (C - 1,); see `trained_shares`."""
        return trained_shares(self.bank.share, self.decision.least_share)


def pixel_log_probabilities(
    network: SegmentationNetwork, outputs: Outputs, size: Sequence[int]
) -> torch.Tensor:
    """Log p of every pixel by the network alone, (B, |S_t|, H, W) float32.

    Args:
        network: Its head computes p from the logits.
        outputs: Outputs of the network for images (B, 3, H, W).
        size: (H, W).
    """
    return network.log_probabilities(network.pixel_logits(outputs, size))


def fuse(
    log_p: torch.Tensor, log_evidence: torch.Tensor, decision: Decision
) -> torch.Tensor:
    """Scores of network and bank together: log s, (B, C, H, W) float32.

    With p̄ the network's probabilities normalised over the classes and q the bank's,
    if the network alone decides on the foreground,

        s_0 = p̄_0,  s_c = (1 - p̄_0) softmax_{c>0}(w log p̄_c + a log q_c),

    and if both decide, s = softmax(w log p̄ + a log q + b [c>0]). `kappa` has κ for q,
    and neither a nor b.

    Args:
        log_p: Log-probabilities of the network, (B, C, H, W).
        log_evidence: Log q or log κ of the bank, (B, C, H, W).
        decision: The rule that combines them.
    """
    log_p = log_p.log_softmax(dim=1)
    score = log_evidence * decision.evidence_weight
    if decision.probability_weight:  # 0 times a log p of -inf would be NaN
        score += decision.probability_weight * log_p
    if decision.foreground == "both":
        score[:, 1:] += decision.bias
        return score.log_softmax(dim=1)
    foreground = log_p[:, 1:].logsumexp(dim=1, keepdim=True)
    return torch.cat([log_p[:, :1], foreground + score[:, 1:].log_softmax(1)], dim=1)


def trained_shares(share: torch.Tensor, least: float = 0.0) -> torch.Tensor:
    """π, the shares of the classes c > 0 in the training, for the image prior.

    The prior multiplies the score of a class by π'_c / π_c. The shares of the classes
    of ADE20K span three orders of magnitude. A very rare class would be raised so much
    that it wins wherever it has any score at all. A floor limits that.

    Args:
        share: Share of every class in the training, the background first, (C,), any
            scale.
        least: The floor, as a part of the equal share 1 / (C - 1); 0 for none.

    Returns:
        (C - 1,). Without floor the sum is 1.
    """
    classes = share[1:] / share[1:].sum()
    floor = max(LEAST_SHARE, least / len(classes)) if least else LEAST_SHARE
    return classes.clamp(min=floor)


def fit_to_image(
    log_s: torch.Tensor,
    trained: torch.Tensor,
    iterations: int,
    counted: torch.Tensor | None = None,
    sample: torch.Tensor | None = None,
) -> torch.Tensor:
    """Replace the class shares of the training by those of the image.

    An image shows only a few classes. If most of its foreground is one class, the
    uncertain rest probably is this class, too. EM for the shares of the classes c > 0
    in the foreground, with one image as the new data (Saerens, Latinne & Decaestecker,
    Neural Computation 14, 2002):

        π'_c = mean over pixels of s_c / (1 - s_0), each weighted by its 1 - s_0,
        s_c ← s_c π'_c / π_c, normalised to 1 - s_0, from the first s_c each time.

    Args:
        log_s: Result of `fuse`, (B, C, H, W).
        trained: π, the result of `trained_shares`, (C - 1,).
        iterations: Iterations of EM.
        counted: Pixels that count for the class shares, (B, H, W) bool; None: all.
        sample: Scores of pixels that represent the whole image, (B, C, h, w), if
            `log_s` is only a part of it; `counted` is then of these. None: `log_s`.

    Returns:
        Log s after the iterations, (B, C, H, W); s_0 as it was.
    """
    log_trained = trained.log().to(log_s)
    part = log_s
    log_s = part if sample is None else sample
    foreground = log_s[:, 1:].logsumexp(dim=1, keepdim=True)
    first = log_s[:, 1:] - foreground
    weight = (
        foreground.exp() if counted is None else foreground.exp() * counted[:, None]
    )
    total = weight.sum(dim=(2, 3)).clamp(min=1e-6)
    fitted, change = first, torch.zeros_like(total)
    for _ in range(iterations):
        image_share = (fitted.exp() * weight).sum(dim=(2, 3)) / total
        change = image_share.clamp(min=LEAST_SHARE).log() - log_trained
        fitted = (first + change[:, :, None, None]).log_softmax(dim=1)
    if sample is not None:
        foreground = part[:, 1:].logsumexp(dim=1, keepdim=True)
        first = part[:, 1:] - foreground
        fitted = (first + change[:, :, None, None]).log_softmax(dim=1)
    return torch.cat([part[:, :1], foreground + fitted], dim=1)


def _head_of(network: str | Path) -> Head:
    """The head of a network, from the record of its model."""
    record = read_model_record(network)
    record.load_extensions()
    head: Head = resolve(head_entry(record.architecture.head).implementation)()
    return head


def _check_sizes(
    bank: PrototypeBank,
    path: str | Path,
    network: str | Path,
    feature_network: str | Path,
) -> None:
    """Refuse a bank whose classes or features do not fit the networks.

    Raises:
        ArtifactError: The message names the bank and the network.
    """
    deciding = read_model_record(network)
    if bank.classes != deciding.channels:
        raise ArtifactError(
            f"Expected a bank with the {deciding.channels} classes of {network}, "
            f"background included, but {path} has {bank.classes}. It belongs to "
            f"another step. {REMAKE}"
        )
    reading = read_model_record(feature_network)
    reading.load_extensions()
    width = _WIDTHS[bank.settings.feature](reading.architecture)
    width *= 1 if bank.settings.context == 1 else 2
    if len(bank.centre) != width:
        raise ArtifactError(
            f"Expected a bank with the {width} features of {feature_network}, but "
            f"{path} has {len(bank.centre)}. {REMAKE}"
        )


def _check_rule(bank: PrototypeBank, path: str | Path, decision: Decision) -> None:
    """Refuse a ridge regression for the rule of an analysis, and the reverse.

    Raises:
        ArtifactError: The message names the bank and the rule.
    """
    kind = bank.settings.map
    if (decision.rule == "ridge") != (kind == "relu"):
        raise ArtifactError(
            f"Expected a bank with the map 'relu' for the rule 'ridge', and another "
            f"map for other rules, but got the rule '{decision.rule}' and {path} with "
            f"the map '{kind}'. {REMAKE}"
        )
