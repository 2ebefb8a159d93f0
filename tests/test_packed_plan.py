"""New pictures of a packed step are scaled as its own were."""

from pathlib import Path

import pytest
from plan_configs import make_plan

from kproba.network.architecture import Architecture
from kproba.plan import datasets
from kproba.predict.packed import PackedStep

STEP = PackedStep(
    path=Path("step.zip"),
    dataset="pets",
    task="1-1",
    setting="overlap",
    method="barm",
    seed=0,
    step=1,
    groups=((1,), (2,)),
    names=("background", "cat", "dog"),
    values=(0, 1, 2),
    architecture=Architecture("resnet50", 16, (6, 12, 18), 16, 0.1, 0.01),
    extensions=(),
    bank=None,
    features=None,
    long_side=640,
    members={},
)


@pytest.mark.parametrize(("own", "used"), [(None, 640), (320, 320)])
def test_long_side_of_a_packed_step(tmp_path, monkeypatch, own, used):
    monkeypatch.setattr(datasets, "read_packed_step", lambda name, settings: STEP)
    (tmp_path / "classes.txt").write_text("background\ncat\ndog\ncow\n")
    for what in ("images", "masks"):
        (tmp_path / what / "train").mkdir(parents=True)
    packed = {"kind": "packed", "path": "step.zip", "additions": [str(tmp_path)]}
    plan = make_plan(
        datasets={"pets": {**packed, "long_side": own}},
        experiments=[{"dataset": "pets", "task": "1-1", "methods": ["barm"]}],
    )
    assert plan.datasets.index_settings("pets+1")["long_side"] == used
    assert plan.datasets.long_side("pets") == used  # that of predictions
