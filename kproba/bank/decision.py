"""The section `decision`: how network and bank are combined."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from kproba.runtime import records

# The rules that have the network of step 0 in the place of the bank.
NETWORKS = ("step0", "step0_mean")

# What predictor.json and the settings of a job hold. The two thresholds are of the
# pseudo labels; version 0.1 wrote them beside the rest, and a temperature of 0 where it
# was not read.
DECISION = records.record(
    {"rule": records.choice("lda", "klda", "kappa", "ridge", *NETWORKS)},
    {
        "foreground": records.choice("network", "both"),
        "probability_weight": records.number(0, 1e12),
        "posterior_weight": records.number(0, 1e12),
        "foreground_bias": records.number(-1e12, 1e12),
        "image_prior": records.integer(0, 1000),
        "temperature": records.number(most=1e12, above=0),
        "metric": records.choice("euclidean", "mahalanobis"),
        "least_share": records.number(0, 1),
    },
)
_OLD = ("threshold", "score_threshold")


@dataclass(frozen=True)
class Decision:
    """The rule that combines network and bank, with its parameters.

    The defaults are those of the configuration. A rule ignores the parameters that it
    does not use.

    Attributes:
        rule: Where the bank's evidence comes from: "lda" or "klda", the posterior of
            the discriminant analysis, "ridge", that of a ridge regression, or "kappa",
            distances to prototypes. "step0" and "step0_mean" have the network of step 0
            in the place of the bank (`kproba.bank.ensemble`).
        foreground: What decides how likely a pixel is foreground, that is, any class
            but the background: the "network" or "both".
        probability_weight: w of log p; 0: the bank alone.
        posterior_weight: a of log q, of `lda`, `klda`, `ridge` and `step0`.
        foreground_bias: b, added to every class but the background. Used by `lda`,
            `klda`, `ridge` and `step0` if both decide on the foreground.
        image_prior: Number of EM iterations that fit the class shares to the image; 0:
            no fit.
        temperature: τ of `kappa`.
        metric: Distance of `kappa`.
        least_share: Smallest share of a class in the training that the image prior
            divides by, as a part of the equal share 1 / (C - 1).
    """

    rule: str = "lda"
    foreground: Literal["network", "both"] = "network"
    probability_weight: float = 1.0
    posterior_weight: float = 0.5
    foreground_bias: float = 0.0
    image_prior: int = 1
    temperature: float = 1.0
    metric: Literal["euclidean", "mahalanobis"] = "euclidean"
    least_share: float = 0.0

    @property
    def by_distance(self) -> bool:
        """Whether the evidence is the distance to prototypes, not a posterior."""
        return self.rule == "kappa"

    @property
    def by_networks(self) -> bool:
        """Whether the network of step 0 takes the place of the bank."""
        return self.rule in NETWORKS

    @property
    def reads_evidence(self) -> bool:
        """Whether the features of the bank, or step 0's network, change anything."""
        return self.by_networks or self.evidence_weight != 0

    @property
    def by_parts(self) -> bool:
        """Whether labels need no scores of all classes (`kproba.bank.likeliest`)."""
        return self.foreground == "network" or self.rule == "step0_mean"

    @property
    def evidence_weight(self) -> float:
        """The exponent of the bank's evidence: a, or 1 for κ."""
        return 1.0 if self.by_distance else self.posterior_weight

    @property
    def bias(self) -> float:
        """What is added to every class but the background: b, or 0 for κ."""
        return 0.0 if self.by_distance else self.foreground_bias

    @property
    def bank_alone(self) -> bool:
        """Whether the probabilities of the network change nothing."""
        alone = self.foreground == "both" and not self.probability_weight
        return alone and not self.by_networks

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for an artifact, as far as earlier versions know them."""
        content = asdict(self)
        if not self.least_share:
            del content["least_share"]
        return content

    @classmethod
    def from_dict(
        cls, content: Mapping[str, Any], source: str | Path = "the decision"
    ) -> "Decision":
        """From an artifact, or from the settings of a job.

        Args:
            content: The section `decision`, of any version.
            source: Its source, for messages.

        Raises:
            ArtifactError: This version does not know a rule, key or number.
        """
        content = convert_decision(content)
        records.check_content(content, DECISION, source)
        return cls(**content)


def convert_decision(content: Any) -> Any:
    """Convert a section `decision` to the keys of this version.

    Version 0.1 wrote the keys of the pseudo labels beside these, and then a temperature
    of 0 where the rule reads none.
    """
    if not isinstance(content, Mapping) or not set(_OLD) & content.keys():
        return content
    kept = {key: value for key, value in content.items() if key not in _OLD}
    if kept.get("rule") != "kappa" and kept.get("temperature") == 0:
        del kept["temperature"]
    return kept
