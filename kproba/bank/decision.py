"""The section `decision`: how network and bank decide together."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal


@dataclass(frozen=True)
class Decision:
    """The rule by which network and bank decide together, with its numbers.

    The defaults are those of the configuration. What a rule does not read does not
    change its result.

    Attributes:
        rule: Where the bank's evidence comes from: "lda" or "klda", the posterior of
            the discriminant analysis, or "kappa", distances to prototypes.
        foreground: Who decides how likely a pixel is of any class at all: the "network"
            or "both".
        probability_weight: w of log p; 0: the bank alone.
        posterior_weight: a of log q, of `lda` and `klda`.
        foreground_bias: b, added to every class but the background, of `lda` and `klda`
            where both decide on the foreground.
        image_prior: How often the shares of the classes are fitted to the image; 0:
            never.
        temperature: τ of `kappa`.
        metric: Distance of `kappa`.
    """

    rule: str = "lda"
    foreground: Literal["network", "both"] = "network"
    probability_weight: float = 1.0
    posterior_weight: float = 0.5
    foreground_bias: float = 0.0
    image_prior: int = 1
    temperature: float = 1.0
    metric: Literal["euclidean", "mahalanobis"] = "euclidean"

    @property
    def by_distance(self) -> bool:
        """Whether the evidence is the distance to prototypes, not a posterior."""
        return self.rule == "kappa"

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for an artifact."""
        return asdict(self)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "Decision":
        """From an artifact, or from the settings of a job.

        Keys of the pseudo labels (`threshold`, `score_threshold`), which version 0.1
        wrote beside these, are left out.
        """
        known = {field.name for field in fields(cls)}
        return cls(**{key: value for key, value in content.items() if key in known})
