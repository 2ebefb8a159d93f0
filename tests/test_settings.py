"""What a training reads: settings.json, and the learning rates that follow from it."""

import json

import pytest
import torch
from training_steps import step_settings

from kproba.training.optimizer import set_learning_rates
from kproba.training.settings import Optimisation, StepSettings


def test_learning_rates_follow_the_poly_schedule() -> None:
    section = step_settings(0)["optimisation"] | {"floor": 1e-6}
    section["learning_rate"] |= {"backbone": 1.0, "branch": 2e-6}
    settings = Optimisation.from_dict(section)
    groups = [
        {
            "name": name,
            "initial_lr": rate,
            "params": [torch.nn.Parameter(torch.ones(1))],
        }
        for name, rate in section["learning_rate"].items()
    ]
    optimizer = torch.optim.SGD(groups, lr=0.1)
    rates = set_learning_rates(optimizer, settings, iteration=75, iterations=100)
    assert rates["lr_backbone"] == pytest.approx(0.25**0.9)
    assert rates["lr_branch"] == 1e-6  # the floor


def test_settings_are_read_as_they_are_written() -> None:
    content = step_settings(1)
    settings = StepSettings.from_dict(content)
    assert json.loads(json.dumps(settings.to_dict())) == content
    assert settings.step == content["run"]["step"] == 1


def test_settings_without_the_later_keys_are_read() -> None:
    """settings.json of version 0.2.0."""
    content = step_settings(1)
    del content["augmentation"]["outside"]
    settings = StepSettings.from_dict(content)
    assert settings.augmentation.outside == "ignore"
    content["augmentation"]["outside"] = "mirror"
    with pytest.raises(ValueError, match=r"ignore.*background.*mirror"):
        StepSettings.from_dict(content)


OLD_FORM = {
    # Version 0.1, and what came between.
    "flat names": lambda new: {
        **{key: new[key] for key in new if key not in ("run", "method")},
        **new["run"],
        "recipe": new["method"],
        "guide": None,
    },
    "missing key": lambda new: {k: v for k, v in new.items() if k != "method"},
    "unknown key": lambda new: {**new, "looks": 4},
}


@pytest.mark.parametrize("form", OLD_FORM)
def test_settings_of_another_version_are_refused_in_one_message(form: str) -> None:
    content = OLD_FORM[form](step_settings(1))
    with pytest.raises(ValueError, match=r"Expected the keys .*, run, .* got") as error:
        StepSettings.from_dict(content)
    message = str(error.value)
    assert "Let Snakemake write the file again" in message
    assert len(message.splitlines()) == 1
