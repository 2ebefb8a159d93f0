"""The memory in a plan: who has one, what it reads, what runs again."""

from pathlib import Path

import pytest
from plan_configs import experiment, make_plan, make_run, method
from test_packed_plan import STEP

from kproba.methods.builtin import METHODS
from kproba.plan import datasets
from kproba.plan.errors import ConfigError
from kproba.plan.jobs import Memory
from kproba.plan.run import Run

pytestmark = pytest.mark.usefixtures("schema_is_parsed_once")
BASE = make_run("base", task="6")


def with_memory(**memory):
    return method(based_on="barm", memory={"images": 100, **memory})


def shapes(plan, run, step) -> dict[str, str]:
    """What determines the jobs of a step, by kind."""
    return {type(job).__name__: job.shape for job in plan.chain.jobs(run, step)}


def changed(before: dict[str, str], after: dict[str, str]) -> set[str]:
    return {kind for kind in before if before[kind] != after[kind]}


def test_no_method_has_a_memory_by_default():
    plan = make_plan()
    for name in METHODS:
        assert not plan.method(name).has_memory
    assert "memory" not in plan.settings(make_run(), 1)
    inputs = plan.training_inputs(make_run(), 1)
    assert inputs["memory"] == inputs["memory_labels"] == []
    assert not [p for p in plan.for_next_step() if "memory" in p]
    assert "Memory" not in shapes(plan, make_run(), 1)
    with pytest.raises(ConfigError, match="'kproba' has none"):
        plan.memory_inputs(make_run(), 1)


def test_each_memory_feeds_the_next_step():
    plan = make_plan(**with_memory())
    run, chain = make_run("mine"), "results/tiny/6-2-overlap/mine/seed0"
    first = "results/tiny/6-overlap/mine/seed0/step0"
    assert plan.training_inputs(run, 1)["memory"] == f"{first}/memory.csv"
    assert plan.training_inputs(run, 1)["memory_labels"] == f"{first}/memory"
    assert plan.training_inputs(run, 2)["memory"] == f"{chain}/step1/memory.csv"
    assert plan.memory_inputs(run, 1) == {
        "split": "results/splits/tiny/6-2-overlap/step1.csv",
        "model": f"{chain}/step1/model.safetensors",
        "previous": f"{first}/memory.csv",
        "previous_labels": f"{first}/memory",
    }
    assert f"{chain}/step2/memory.csv" in plan.for_next_step()
    times = plan.result(run, 2).times
    assert times["old images"] == f"{chain}/step1/memory.benchmark.tsv"
    assert "old images" not in plan.result(run, 0).times


def test_the_first_memory_reads_no_network_and_is_shared():
    """Nothing is older than step 0, so only its labels count."""
    other = {"based_on": "mib", "memory": {"images": 100, "threshold": 0.5}}
    mine = {"based_on": "barm", "memory": {"images": 100}}
    plan = make_plan(
        methods={"mine": mine, "other": other}, **experiment(methods=["mine", "other"])
    )
    assert plan.memory_inputs(make_run("mine"), 0)["model"] == []
    files = [plan.training_inputs(make_run(n), 1)["memory"] for n in ("mine", "other")]
    assert files[0] == files[1]
    files = [plan.training_inputs(make_run(n), 2)["memory"] for n in ("mine", "other")]
    assert files[0] != files[1]


def test_settings_of_a_training_hold_what_changes_it():
    plan = make_plan(**with_memory(share=0.5))
    memory = {"images": 100, "rule": "known", "share": 0.5}
    assert plan.settings(make_run("mine"), 1)["memory"] == memory
    assert "memory" not in plan.settings(BASE, 0)


def test_a_memory_never_changes_step_0():
    plain, more = make_plan(), make_plan(memory={"images": 9}, **experiment())
    assert plain.settings(BASE, 0) == more.settings(BASE, 0)
    for name in ("kproba", "mib"):
        models = [plan.result(make_run(name), 0).model for plan in (plain, more)]
        assert models[0] == models[1]
        assert plain.chain.training(make_run(name), 0) == more.chain.training(
            make_run(name), 0
        )


@pytest.mark.parametrize(
    ("change", "step", "expected"),
    [
        ({"images": 50}, 0, {"Memory"}),
        ({"images": 50}, 1, {"Training", "Test", "Memory", "Bank"}),
        ({"share": 0.5}, 0, set()),
        ({"share": 0.5}, 1, {"Training", "Test", "Memory", "Bank"}),
        ({"threshold": 0.5}, 0, set()),
        ({"threshold": 0.5}, 1, {"Memory"}),
        ({"threshold": 0.5}, 2, {"Training", "Test", "Memory", "Bank"}),
        ({"rule": "true_labels"}, 0, {"Memory"}),
    ],
)
def test_what_a_change_of_the_memory_changes(change, step, expected):
    network = {"bank": {"network": "after"}}
    before = make_plan(**with_memory(), **network)
    after = make_plan(**with_memory(**change), **network)
    run = make_run("mine")
    assert changed(shapes(before, run, step), shapes(after, run, step)) == expected
    for name in METHODS:  # methods without a memory keep everything
        if name != "joint":
            other = make_run(name)
            assert shapes(before, other, step) == shapes(after, other, step)


def test_a_threshold_is_no_setting_of_the_rule_that_does_not_read_it():
    plans = [
        make_plan(**with_memory(rule="true_labels", threshold=value))
        for value in (0.5, 0.9)
    ]
    for step in range(3):
        one, other = (shapes(plan, make_run("mine"), step) for plan in plans)
        assert one == other


def test_true_labels_are_those_of_the_step_that_trains_on_them():
    plan = make_plan(**with_memory(rule="true_labels"))
    job = plan.chain.memory(make_run("mine"), 0)
    assert job.settings["groups"] == [[1, 2, 3, 4, 5, 6]]
    assert job.settings["shown"] == [[1, 2, 3, 4, 5, 6], [7, 8]]
    last = plan.chain.memory(make_run("mine"), 2)
    assert last.settings["shown"] == last.settings["groups"]
    assert job.model is last.model is None


def test_sequential_has_true_old_labels_and_reads_no_network():
    plan = make_plan(
        **with_memory() | experiment(methods=["mine"], setting="sequential")
    )
    job = plan.chain.memory(Run("tiny", "6-2", "sequential", "mine", 0), 1)
    assert isinstance(job, Memory) and job.model is None
    assert job.settings["sequential"] is True and "threshold" not in job.settings


def test_joint_has_no_memory():
    plan = make_plan(memory={"images": 9}, **experiment(methods=["joint", "barm"]))
    assert not plan.method("joint").has_memory
    assert plan.method("barm").has_memory
    memories = [p for p in plan.for_next_step() if p.endswith("memory.csv")]
    assert [Path(path).parts[3] for path in memories] == ["barm"]


def test_a_share_needs_two_images_per_batch():
    mine = with_memory(share=0.5)
    mine["methods"]["mine"]["increment"] = {"batch_size": 1}
    with pytest.raises(ConfigError, match=r"increment \(of mine\).*at least 2"):
        make_plan(**mine)
    mine["methods"]["mine"]["memory"]["share"] = None
    make_plan(**mine)


@pytest.mark.parametrize("value", [0, 1, 1.5, -0.1])
def test_a_share_is_a_true_part(value):
    with pytest.raises(ConfigError, match=r"methods\.mine\.memory\.share"):
        make_plan(**with_memory(share=value))


def test_a_packed_step_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets, "read_packed_step", lambda name, settings: STEP)
    (tmp_path / "classes.txt").write_text("background\ncat\ndog\ncow\n")
    for what in ("images", "masks"):
        (tmp_path / what / "train").mkdir(parents=True)
    packed = {"kind": "packed", "path": "step.zip", "additions": [str(tmp_path)]}
    names = ["barm", "mine"]
    plan = make_plan(
        datasets={"pets": packed},
        methods={"mine": {"based_on": "barm", "memory": {"images": 5}}},
        experiments=[{"dataset": "pets", "task": "1-1", "methods": names}],
    )
    assert plan.settings(Run("pets", "1-1", "overlap", "barm", 0), 2)
    with pytest.raises(
        ConfigError, match=r"'mine' has memory\.images = 5.*no pictures"
    ):
        plan.settings(Run("pets", "1-1", "overlap", "mine", 0), 2)
