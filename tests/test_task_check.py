"""A step without training images is found before anything is trained."""

import pytest
from snakemake_calls import snakemake
from test_dataset_state import write_dataset
from whole_runs import write_config

from kproba.data.task_check import TaskSteps, check_steps, empty_steps

NAMES = ["cat", "dog", "cow"]
CELLS = {"a": "0 1", "b": "0 1 2", "c": "1 255"}


def steps(setting="overlap", groups=((1,), (2,), (3,)), checked=(0, 1, 2)):
    return [TaskSteps("mine", setting, groups, checked)]


@pytest.mark.parametrize(
    ("task", "empty"),
    [
        (steps(), ["step 2"]),
        (steps(groups=((1, 2), (3,)), checked=(0, 1)), ["step 1"]),
        (steps(groups=((1,), (2, 3)), checked=(0, 1)), []),
        (steps(checked=(0, 1)), []),
        # The only dog is beside a cat: of a later step if cats come later.
        (steps("disjoint", ((2,), (1,)), (0, 1)), ["step 0"]),
        (steps("disjoint", ((1,), (2,)), (0, 1)), []),
        (steps("sequential", ((2,), (1,)), (0, 1)), ["step 0"]),
        (steps("partitioned", ((1,), (2,)), (0, 1)), []),
    ],
)
def test_empty_steps(task, empty):
    found = empty_steps(CELLS, task, NAMES)
    assert [sentence[:6] for sentence in found] == empty


def test_a_step_of_partitioned_whose_only_image_another_step_has_is_empty():
    """The image "b" belongs to the dog, so nothing is left for a cat."""
    [sentence] = empty_steps(
        {"b": "0 1 2"}, steps("partitioned", ((1,), (2,)), (0, 1)), NAMES
    )
    assert sentence == (
        "step 0 of task 'mine' (partitioned) has no training image: no image shows cat "
        "and belongs to this step"
    )


def test_the_sentence_names_task_setting_and_classes():
    [text] = empty_steps(CELLS, steps(checked=(2,)), NAMES)
    assert text == (
        "step 2 of task 'mine' (overlap) has no training image: no image shows cow"
    )


def test_validation_images_do_not_count(tmp_path):
    index = tmp_path / "index.csv"
    index.write_text(
        "id,image,mask,width,height,subset,classes\na,a,a,1,1,train,1\nb,b,b,1,1,val,2\n"
    )
    with pytest.raises(ValueError, match="no image shows dog"):
        check_steps(index, steps(groups=((1,), (2,)), checked=(0, 1)), NAMES)


@pytest.mark.workflow
def test_the_run_stops_before_step_0_is_trained(tmp_path):
    """At the first call by the index, at later ones by the plan."""
    folder = write_dataset(tmp_path / "pets")
    (folder / "classes.txt").write_text("background\ncat\ndog\ncow\n")
    write_config(tmp_path)
    settings = {
        "datasets": {"pets": {"kind": "folder", "path": str(folder)}},
        "experiments": [{"dataset": "pets", "task": "2-1", "methods": ["finetune"]}],
    }
    write_config(tmp_path, {**settings, "report": "pets"})
    config = (tmp_path / "config.yaml").read_text()
    assert "tiny" in config  # beside it, and not used
    output = snakemake(tmp_path, succeeds=False)
    assert "step 1 of task '2-1' (overlap) has no training image" in output
    assert not list(tmp_path.rglob("train.log"))
