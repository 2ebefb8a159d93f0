"""Labels in fewer passes: the argmax of the scores, but for ties."""

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small_banks import CLASSES, bank_of, decision_by, images_of, network_of

from kproba.bank.bank import PrototypeBank
from kproba.bank.fusion import LEAST_EVIDENCE, Combination
from kproba.bank.likeliest import largest_logits, likeliest_classes
from kproba.bank.predictor import FusedPredictor, NetworkPredictor
from kproba.bank.views import View
from kproba.methods.labels import Labeller, LabelSettings
from kproba.methods.rules import RULES
from kproba.network.layers import get_classifier, log_sigmoid, upsample
from kproba.network.logits import compose_logits
from kproba.network.network import SegmentationNetwork

SIZE = (64, 48)
TIE = 1e-4  # of log scores: as close as rounding


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    """Three images: noise, and a smooth one."""
    smooth = torch.linspace(0, 255, SIZE[0] * SIZE[1]).view(1, 1, *SIZE)
    return torch.cat([images_of(*SIZE), smooth.expand(1, 3, -1, -1).byte()])


@pytest.fixture(scope="module", params=["branches", "softmax"])
def network(
    request: pytest.FixtureRequest, images: torch.Tensor
) -> SegmentationNetwork:
    """It takes about half of the pixels for background."""
    found = network_of(3, head=request.param)
    with torch.no_grad():
        for branch in found.branches:
            branch.get_submodule("classifier").weight.mul_(3)
        z = compose_logits(found(images).logits)
        bias = get_classifier(found.branches[0]).bias
        assert bias is not None
        bias[0] += (z[:, 1:].logsumexp(dim=1) - z[:, 0]).median()
    return found


@pytest.fixture(scope="module")
def banks(
    network: SegmentationNetwork, images: torch.Tensor
) -> dict[str, PrototypeBank]:
    """By the rule that reads them."""
    maps = ("identity", "rff", "relu")
    of_map = {m: bank_of(network, images[:2], m) for m in maps}
    rules = {"lda": "identity", "klda": "rff", "kappa": "rff", "ridge": "relu"}
    return {rule: of_map[map_] for rule, map_ in rules.items()}


def assert_likeliest(
    labels: torch.Tensor, log_s: torch.Tensor, least: int = 2, ties: float = 0.001
) -> None:
    """The score of a pixel's label is the largest, and few are any but the first."""
    assert labels.dtype == torch.int64 and not log_s.isnan().any()
    assert labels.min() >= 0 and labels.max() < log_s.shape[1]
    of_label = log_s.gather(1, labels[:, None])[:, 0]
    assert (log_s.amax(dim=1) - of_label).max() < TIE
    assert (labels != log_s.argmax(dim=1)).double().mean() < ties
    assert len(labels.unique()) >= least, "the test needs several labels"


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("prior", [0, 1, 3])
@pytest.mark.parametrize("weight", [1.0, 0.7, 0.0])
@pytest.mark.parametrize("foreground", ["network", "both"])
@pytest.mark.parametrize("rule", ["lda", "klda", "kappa", "ridge"])
def test_labels_are_those_of_the_largest_score(
    network: SegmentationNetwork,
    images: torch.Tensor,
    banks: dict[str, PrototypeBank],
    rule: str,
    foreground: str,
    weight: float,
    prior: int,
    count: int,
) -> None:
    numbers: dict[str, Any] = {
        "foreground": foreground,
        "probability_weight": weight,
        "image_prior": prior,
        "posterior_weight": 0.5,
    }
    decision = decision_by(rule, **numbers)
    predictor = FusedPredictor(network, banks[rule], decision)
    chosen = images[:count]
    with torch.inference_mode():
        ((place, labels),) = predictor.predict_labels(chosen)
    assert labels.shape == chosen[:, 0][place].shape == chosen[:, 0].shape
    # A bank alone may take one class for everything. Between two sure cells, both of
    # its classes have the same mean of 0 and `LEAST_EVIDENCE`.
    alone = {"least": 1, "ties": 0.02} if decision.bank_alone else {}
    assert_likeliest(labels, predictor.predict_logits(chosen), **alone)


def test_labels_of_a_network_are_those_of_its_largest_logit(
    network: SegmentationNetwork, images: torch.Tensor
) -> None:
    predictor = NetworkPredictor(network)
    ((_, labels),) = predictor.predict_labels(images)
    assert torch.equal(labels, predictor.predict_logits(images).argmax(dim=1))


@pytest.mark.parametrize("kind", ["noise", "smooth", "few", "constant", "extreme"])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(
    ("cells", "size"),
    [
        ((1, 1), (5, 7)),
        ((1, 4), (16, 60)),
        ((5, 4), (80, 64)),
        ((5, 4), (75, 50)),
        ((3, 3), (3, 3)),
    ],
)
def test_classes_that_win_nowhere_are_left_out(
    monkeypatch: pytest.MonkeyPatch,
    cells: tuple[int, int],
    size: tuple[int, int],
    batch: int,
    kind: str,
) -> None:
    """And the largest logit is the same as of all classes."""
    generator = torch.Generator().manual_seed(len(kind))
    logits = torch.randn(batch, 40, *cells, generator=generator)
    if kind == "smooth":
        logits = logits / 100 + torch.arange(40).view(-1, 1, 1) % 7
    elif kind == "few":
        logits[:, 5:] -= 20
    elif kind == "constant":
        logits = torch.zeros_like(logits) + 1e6
    elif kind == "extreme":
        logits = 400 * (logits > 0) - 200.0
    widths = []

    def recorded(x: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        widths.append(x.shape[1])
        return upsample(x, size)

    monkeypatch.setattr("kproba.bank.likeliest.upsample", recorded)
    with torch.inference_mode():
        found = largest_logits(logits, size)
    every = upsample(logits, size)
    assert found.shape == (batch, *size) and found.dtype == torch.int64
    best, of_label = every.amax(dim=1), every.gather(1, found[:, None])[:, 0]
    torch.testing.assert_close(of_label, best, rtol=1e-5, atol=1e-5)
    if kind in ("noise", "few"):
        assert torch.equal(found, every.argmax(dim=1))
    if kind in ("few", "smooth"):
        assert widths[0] <= 6
    if kind == "constant":
        assert widths == [40]


@pytest.mark.parametrize("numbers", [{}, {"image_prior": 3}, {"posterior_weight": 9}])
def test_the_bank_and_its_numbers_matter(
    network: SegmentationNetwork,
    images: torch.Tensor,
    banks: dict[str, PrototypeBank],
    numbers: dict[str, float],
) -> None:
    """Otherwise the tests of equal labels would say little."""

    def labels(**others: Any) -> torch.Tensor:
        predictor = FusedPredictor(network, banks["lda"], decision_by("lda", **others))
        ((_, found),) = predictor.predict_labels(images)
        return found

    assert not torch.equal(labels(**numbers), labels(posterior_weight=0.0))


@pytest.mark.parametrize("prior", [0, 1, 3])
@pytest.mark.parametrize("weight", [1.0, 0.7])
@pytest.mark.parametrize("extreme", [200.0, -200.0, 60.0, None])
def test_extreme_logits_give_labels_and_no_nan(
    network: SegmentationNetwork,
    images: torch.Tensor,
    banks: dict[str, PrototypeBank],
    extreme: float | None,
    weight: float,
    prior: int,
) -> None:
    """Cells whose logits are all ±200, or one of them; None: of either sign."""
    bank = banks["lda"]
    decision = decision_by("lda", probability_weight=weight, image_prior=prior)
    outputs = network(images)
    logits = [z.clone() for z in outputs.logits]
    if extreme is None:
        generator = torch.Generator().manual_seed(0)
        for z in logits:
            z.copy_(400 * torch.randint(0, 2, z.shape, generator=generator) - 200)
    else:
        logits[0][0] = extreme  # background and class 1, all of an image
        logits[1][1, 1] = extreme  # class 2 of another
        logits[0][2, 0, 0] = extreme  # one row of the background
    outputs = outputs._replace(logits=logits)
    view = View((slice(None),), SIZE, outputs, outputs)
    _, labels = likeliest_classes(network, Combination(bank, decision), view)
    predictor = FusedPredictor(network, bank, decision)
    log_s = predictor.fit(predictor._log_scores(view))
    assert not log_s.isnan().any()
    assert labels.min() >= 0 and labels.max() < CLASSES
    of_label = log_s.gather(1, labels[:, None])[:, 0]
    apart = log_s.amax(dim=1) - of_label
    log_p = network.log_probabilities(upsample(compose_logits(logits), SIZE))
    cells = predictor.combination.log_evidence(outputs)[:, 1:]
    log_q = upsample(cells - cells.amax(dim=1, keepdim=True), SIZE)
    log_u = (weight * log_p[:, 1:] + log_q).amax(dim=1)
    # Beyond float32 it is background.
    known = (log_p.amax(dim=1) > -80) & (log_u > -80)
    # What is beyond it elsewhere has a small part in the shares of an image.
    assert apart[known].max() < (0.2 if prior and extreme is None else TIE)
    assert (labels[log_p.amax(dim=1) < -110] == 0).all()
    assert known.double().mean() > 0.5


@pytest.mark.parametrize("prior", [0, 2])
@pytest.mark.parametrize("weight", [0.5, 1.0, 2.0, 5.0, 50.0])
def test_a_bank_that_is_sure_of_the_background_leaves_the_network_its_classes(
    network: SegmentationNetwork,
    images: torch.Tensor,
    banks: dict[str, PrototypeBank],
    monkeypatch: pytest.MonkeyPatch,
    weight: float,
    prior: int,
) -> None:
    """Its evidence for all other classes is the least that there is, or close to it."""
    generator = torch.Generator().manual_seed(0)
    evidence = LEAST_EVIDENCE + torch.rand(3, CLASSES, 4, 3, generator=generator)
    evidence[:, 0] = 0
    monkeypatch.setattr(Combination, "log_evidence", lambda *_: evidence.clone())
    decision = decision_by("lda", posterior_weight=weight, image_prior=prior)
    predictor = FusedPredictor(network, banks["lda"], decision)
    with torch.inference_mode():
        ((_, labels),) = predictor.predict_labels(images)
    assert_likeliest(labels, predictor.predict_logits(images))


# --- log sigmoid ----------------------------------------------------------------------

POINTS = [-200.0, -100.0, -88.8, -20.0, -1e-4, 0.0, 1e-4, 0.5, 17.0, 88.8, 200.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_log_sigmoid_is_that_of_torch(dtype: torch.dtype) -> None:
    x = torch.cat([torch.tensor(POINTS), torch.linspace(-30, 30, 4001)]).to(dtype)
    before = x.clone()
    found = log_sigmoid(x)
    torch.testing.assert_close(found, F.logsigmoid(x), rtol=1e-6, atol=1e-6)
    assert torch.equal(x, before) and found.dtype == dtype
    exact = -torch.log1p(torch.exp(-x.double()))
    known = x > -80  # where the plain formula does not overflow
    torch.testing.assert_close(
        found[known].double(), exact[known], rtol=1e-6, atol=1e-8
    )


@pytest.mark.parametrize("shape", [(0,), (1,), (2, 3, 4, 5)])
def test_log_sigmoid_of_any_shape(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape)
    assert log_sigmoid(x).shape == shape
    turned = torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    assert log_sigmoid(turned).is_contiguous(memory_format=torch.channels_last)


def test_log_sigmoid_has_a_gradient_where_it_is_wanted() -> None:
    x = torch.tensor(POINTS, requires_grad=True)
    log_sigmoid(x).sum().backward()
    torch.testing.assert_close(x.grad, torch.sigmoid(-x.detach()))
    with torch.no_grad():
        assert not log_sigmoid(x).requires_grad
    assert not log_sigmoid(x.detach()).requires_grad


@pytest.mark.parametrize("threshold", [0.0, 0.4])
@pytest.mark.parametrize("mask", [False, True])
@pytest.mark.parametrize("rule", ["lda", "klda", "kappa", "confidence"])
def test_quick_pseudo_labels_are_those_of_the_rule(
    network: SegmentationNetwork,
    images: torch.Tensor,
    banks: dict[str, PrototypeBank],
    monkeypatch: pytest.MonkeyPatch,
    rule: str,
    mask: bool,
    threshold: float,
) -> None:
    reads_bank = rule in banks
    decision = decision_by(rule, image_prior=1) if reads_bank else None
    settings = LabelSettings(
        rule, threshold=threshold, score_threshold=threshold, decision=decision
    )
    combination = Combination(banks[rule], decision) if decision else None
    labeller = Labeller(network, settings, combination)
    hidden = None
    if mask:
        hidden = torch.zeros(len(images), *SIZE, dtype=torch.bool)
        hidden[:, :40, 5:30] = True
    assert RULES[rule].quick is not None
    quick = labeller.label(images, hidden)
    monkeypatch.setitem(RULES, rule, replace(RULES[rule], quick=None))
    usual = labeller.label(images, hidden)
    assert quick.dtype == usual.dtype == torch.uint8
    assert (quick != usual).double().mean() < 0.001
    assert len(usual.unique()) >= 2


def test_thresholds_and_hidden_pixels_change_the_quick_labels(
    network: SegmentationNetwork,
    images: torch.Tensor,
    banks: dict[str, PrototypeBank],
) -> None:
    hidden = torch.zeros(len(images), *SIZE, dtype=torch.bool)
    hidden[:, :40, 5:30] = True
    found = []
    for threshold, where in ((0.0, None), (0.9, None), (0.0, hidden)):
        decision = decision_by("lda", image_prior=1)
        settings = LabelSettings("lda", score_threshold=threshold, decision=decision)
        labeller = Labeller(network, settings, Combination(banks["lda"], decision))
        found.append(labeller.label(images, where))
    plain, sure, of_hidden = found
    assert (sure == 0).sum() > (plain == 0).sum()
    assert not torch.equal(plain, of_hidden)
