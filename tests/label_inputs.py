"""Rules of pseudo labels, a small bank, and networks with given outputs."""

from dataclasses import fields

import torch

from kproba.bank.bank import PrototypeBank
from kproba.bank.decision import Decision
from kproba.bank.fusion import Combination
from kproba.bank.settings import BankSettings
from kproba.methods.labels import LabelCase, Labeller, LabelSettings, decide
from kproba.methods.rules import RULES
from kproba.network.heads import HEADS
from kproba.network.logits import compose_logits
from kproba.network.network import Outputs, SegmentationNetwork
from kproba.runtime.references import resolve

OF_DECISION = {field.name for field in fields(Decision)}


def rule(name, **changes):
    """A rule with a threshold of 0.7; both decide on everything, with weights of 1."""
    numbers = {"foreground": "both", "posterior_weight": 1.0, "image_prior": 0}
    numbers |= {key: value for key, value in changes.items() if key in OF_DECISION}
    others = {key: value for key, value in changes.items() if key not in OF_DECISION}
    decision = Decision(RULES[name].combines or "lda", **numbers)
    return LabelSettings(name, **{"threshold": 0.7, **others}, decision=decision)


def combination_of(settings, bank):
    """A bank that decides as the settings of a rule say."""
    return Combination(bank, settings.decision)


def labeller_of(teacher, settings, bank=None):
    """A network that labels, with its bank."""
    combination = None if bank is None else combination_of(settings, bank)
    return Labeller(teacher, settings, combination)


def decide_by(settings, log_p, log_evidence=None, *, bank=None, **more):
    """Labels by a rule; of the bank only the shares are read."""
    combination = None
    if log_evidence is not None:
        combination = combination_of(settings, bank or bank_of())
    case = LabelCase(log_p, settings, log_evidence, combination, **more)
    labels = decide(case)
    assert labels.dtype == torch.uint8
    return labels


# One feature, prototypes of the classes 0 and 1 at 0 and 10, class 2 has
# none; variance 4. So log q_1 - log q_0 = (10 g - 50) / 4.


def bank_of(*, feature="block", scatter=True):
    return PrototypeBank(
        settings=BankSettings(
            feature=feature,
            map="identity",
            scatter=scatter,
            ridge=0.0,
            calibration_cells=10,
        ),
        seed=0,
        gamma=None,
        centre=torch.zeros(1),
        spread=torch.ones(1),
        count=torch.tensor([5.0, 5.0, 0.0], dtype=torch.float64),
        share=torch.tensor([0.5, 0.5, 0.0], dtype=torch.float64),
        means=[torch.tensor([[0.0], [10.0], [0.0]], dtype=torch.float64)],
        scatter=[torch.tensor([[40.0]], dtype=torch.float64)] if scatter else None,
        scatter_count=10.0,
        temperature=1.0,
    )


FEATURES = torch.tensor([[0.0, 10.0], [4.0, 6.0]])


class Teacher:
    """A network with given outputs."""

    compose = SegmentationNetwork.compose
    pixel_logits = SegmentationNetwork.pixel_logits

    def __init__(self, outputs_of, *, head="branches", channels=3):
        self.outputs_of, self.channels = outputs_of, channels
        self.head = resolve(HEADS[head].implementation)()
        self.log_probabilities = self.head.log_probabilities
        self.probabilities = self.head.probabilities

    def __call__(self, images):
        """Outputs that answer to images, whatever they are."""
        return self.outputs_of(images)

    def predict_logits(self, images):
        """At the size of the images."""
        return compose_logits(self(images).logits)


def teacher_with(probabilities, *, block=FEATURES, backbone=FEATURES):
    logits = torch.tensor(probabilities).logit().view(1, -1, 1, 1).expand(1, -1, 2, 2)
    outputs = Outputs(backbone[None, None], [block[None, None]], [logits])
    return Teacher(lambda images: outputs)


def pixels(size):
    return torch.zeros(1, 3, *size, dtype=torch.uint8)
