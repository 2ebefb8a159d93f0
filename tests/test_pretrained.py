"""bank.network: pretrained, the features of a backbone that was never fine-tuned."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from plan_configs import experiment, make_plan, make_run
from tested_steps import write_tested_step
from training_steps import launch, step_settings, write_data

from kproba.methods.method import PRETRAINED
from kproba.network.backbones.backbone import Backbone
from kproba.network.files import load_model
from kproba.plan.chain import Training
from kproba.plan.errors import ConfigError
from kproba.plan.received import received_bank, received_features
from kproba.plan.run import Run
from kproba.predict.pack import pack_step, read_packed

pytestmark = pytest.mark.usefixtures("schema_is_parsed_once")
BANK = {"network": PRETRAINED}


def plan_of(*methods: str, **changes):
    """A plan whose methods have banks with pretrained features."""
    own = {
        f"{name}_p": {"based_on": name, "prediction": "fused", "bank": BANK}
        for name in methods
    }
    return make_plan(methods=own, **experiment(methods=list(own)), **changes)


def test_one_network_before_step_0_gives_the_features_of_all_steps():
    plan = plan_of("kproba")
    banks = [plan.chain.bank(make_run("kproba_p"), step) for step in range(3)]
    models = {bank.model for bank in banks}
    assert len(models) == 1
    (model,) = models
    assert isinstance(model, Training)
    assert model.settings["optimisation"]["iterations"] == 0
    assert model.previous is None
    base = plan.chain.training(make_run("kproba_p"), 0)
    assert model != base
    assert model.split == base.split
    for step, bank in enumerate(banks):
        assert bank.feature_network(plan.chain.training(make_run("kproba_p"), step))
        assert bank.settings["network"] == PRETRAINED
        # The features do not change, so the temperature of step 0 stays right.
        assert bank.settings["keep_temperature"] == (step > 0)


def test_its_files_have_a_run_of_their_own():
    plan = plan_of("kproba")
    run = make_run("kproba_p")
    inputs = plan.bank_inputs(run, 2)
    place = f"results/tiny/6-overlap/{PRETRAINED}/seed0/step0/model.safetensors"
    assert inputs["model"] == place
    assert plan.test_inputs(run, 2)["feature_network"] == place
    # It also corrects the teacher of step 2.
    assert plan.training_inputs(run, 2)["feature_network"] == place
    settings = plan.settings(Run("tiny", "6", "overlap", PRETRAINED, 0), 0)
    assert settings["run"]["method"] == PRETRAINED


def test_heads_and_predictions_share_the_network():
    plan = plan_of("kproba", "mib", "star", "plop")
    places = {
        plan.bank_inputs(make_run(f"{name}_p"), 1)["model"]
        for name in ("kproba", "mib", "star", "plop")
    }
    assert len(places) == 1


def test_it_is_no_method_of_an_experiment():
    with pytest.raises(ConfigError, match=PRETRAINED):
        make_plan(**experiment(methods=[PRETRAINED]))
    with pytest.raises(ConfigError, match=PRETRAINED):
        make_plan(methods={PRETRAINED: {"based_on": "kproba"}})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"bank": {"feature": "block"}},
            r"kproba_p\.bank\.feature: expected 'backbone'",
        ),
        ({"bank": {"feature": "both"}}, r"got 'both'"),
        ({"model": {"weights": "none"}}, r"kproba_p\.bank\.network: .*random weights"),
    ],
)
def test_random_features_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        plan_of("kproba", **changes)


def test_a_ridge_regression_may_use_it():
    bank = {**BANK, "feature": "backbone"}
    own = {"own": {"based_on": "ridge", "bank": bank}}
    plan = make_plan(methods=own, **experiment(methods=["own"]))
    job = plan.chain.bank(make_run("own"), 1)
    assert job.model.settings["optimisation"]["iterations"] == 0


def test_the_backbone_keeps_the_weights_of_the_file(tmp_path: Path):
    data = write_data(tmp_path / "data")
    settings = step_settings(0, weights="imagenet")
    settings["optimisation"] = {**settings["optimisation"], "iterations": 0}
    settings["method"] = {**settings["method"], "trains": "nothing"}
    model = launch(data, tmp_path / "out", settings)
    found = load_model(model / "model.safetensors").backbone.state_dict()
    expected = Backbone(
        "efficientnet_lite0", output_stride=16, weights="imagenet"
    ).state_dict()
    assert found.keys() == expected.keys()
    for name, weights in expected.items():
        assert torch.equal(found[name], weights), name


# --- packed --------------------------------------------------------------------------


@pytest.fixture
def step(tmp_path: Path) -> Path:
    """A tested step whose bank says that its features are pretrained."""
    folder = write_tested_step(tmp_path)
    record = json.loads((folder / "prototypes.json").read_text())
    record["network"] = PRETRAINED
    (folder / "prototypes.json").write_text(json.dumps(record))
    described = json.loads((folder / "predictor.json").read_text())
    del described["digests"]
    (folder / "predictor.json").write_text(json.dumps(described))
    return folder


def test_an_archive_says_which_network_it_holds(step: Path, tmp_path: Path):
    packed = read_packed(pack_step(step, tmp_path / "step.zip"))
    assert packed.features == PRETRAINED
    assert "step0/model.safetensors" in packed.members
    assert received_features(packed).network == "step0"
    with pytest.raises(ConfigError, match=r"does not hold it\. Set bank\.network"):
        received_features(replace(packed, features="step0"))


def test_only_a_bank_of_the_same_network_goes_on(step: Path, tmp_path: Path):
    packed = read_packed(pack_step(step, tmp_path / "step.zip"))
    method = plan_of("kproba").method("kproba_p")
    same = replace(method, bank=vars(packed.bank))
    assert received_bank(packed, 1, same).model == received_features(packed)
    for network in ("base", "after"):
        other = replace(same, bank_network=network)
        with pytest.raises(ConfigError, match="features of another network"):
            received_bank(packed, 1, other)
    with pytest.raises(ConfigError, match="features of another network"):
        received_bank(replace(packed, features="step0"), 1, same)
    # At step 0, the network of the step is that of step 0, but was trained.
    at_step_0 = replace(packed, step=0)
    assert received_bank(at_step_0, 0, same).model.network == "step0"
    with pytest.raises(ConfigError, match="features of another network"):
        received_bank(at_step_0, 0, replace(same, bank_network="base"))
