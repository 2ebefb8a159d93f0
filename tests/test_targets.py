"""Files of steps that a configuration does not have are refused by name."""

import pytest
from plan_configs import make_plan

from kproba.plan.errors import ConfigError
from kproba.plan.targets import check_targets

STEP = "results/tiny/6-2-overlap/kproba/seed0/step2"


@pytest.mark.parametrize(
    "target",
    [
        *(f"{STEP}/model.safetensors", f"./{STEP}/evaluation.json"),
        "results/tiny/6-overlap/base/seed0/step0/model.safetensors",
        "results/tiny/6-2-disjoint/mib/seed7/step1/model.safetensors",
        *("all", "--cores", "-n", "results/summary.csv", "results/splits/x/y/z.csv"),
    ],
)
def test_what_exists_or_is_no_step_passes(target):
    check_targets(make_plan(), [target])


@pytest.mark.parametrize(
    ("wrong", "right", "message"),
    [
        ("step3", "step2", "0 to 2, but got step 3"),
        ("step99", "step2", "0 to 2, but got step 99"),
        ("tinyy", "tiny", "did you mean 'tiny'"),
        ("6-3", "6-2", "did you mean '6-2'"),
        ("kprob/", "kproba/", "did you mean 'kproba'"),
        ("/base/", "/kproba/", "no other"),
    ],
)
def test_what_does_not_exist_is_refused(wrong, right, message):
    target = f"{STEP}/model.safetensors".replace(right, wrong)
    with pytest.raises(ConfigError) as caught:
        check_targets(make_plan(), ["--cores", "1", target])
    assert str(caught.value).startswith(target)
    assert message in str(caught.value)
