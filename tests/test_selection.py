"""The key `selection`: held-out training images take the place of the validation."""

import pytest
from plan_configs import experiment, make_plan
from small_pictures import labels_of

from kproba.data.kinds.folder import is_held_out
from kproba.data.selection import is_for_selection
from kproba.data.splits import in_step, parse_classes, read_index, write_split
from kproba.plan.errors import ConfigError
from kproba.runtime.files import read_json

pytestmark = pytest.mark.usefixtures("schema_is_parsed_once")
SHARE = 0.2
IMAGES = 400


@pytest.fixture
def folder(folder_dataset):
    """Images with one of three classes each, and five validation images."""
    return folder_dataset(
        {
            "train": {f"t{n:03d}": labels_of(1 + n % 3) for n in range(IMAGES)},
            "val": {f"v{n}": labels_of(1 + n % 3) for n in range(5)},
        }
    )


def test_held_out_images_replace_the_validation_images(folder, index_of):
    plain = read_index(index_of(folder)[0])
    index, report = index_of(folder, selection=SHARE)
    table = read_index(index)
    train, held = (set(table.loc[table["subset"] == s, "id"]) for s in ("train", "val"))
    assert train | held == set(plain.loc[plain["subset"] == "train", "id"])
    assert held == {name for name in train | held if is_for_selection(name, SHARE)}
    assert abs(len(held) - SHARE * IMAGES) < 30
    # The validation images are neither read nor listed.
    assert not table["id"].str.startswith("v").any()
    content = read_json(report)
    assert content["images"] == {"train": len(train), "val": len(held)}
    assert content["selection"] == SHARE


def test_no_step_of_any_task_trains_on_a_held_out_image(folder, index_of, tmp_path):
    index, _ = index_of(folder, selection=SHARE)
    for groups in (((1,), (2,), (3,)), ((3, 1), (2,)), ((1, 2, 3),)):
        for setting in ("overlap", "disjoint", "sequential", "partitioned"):
            for step in range(len(groups)):
                split = tmp_path / "split.csv"
                classes = tuple(label for group in groups for label in group)
                write_split(
                    [index],
                    split,
                    groups=groups[: step + 1],
                    setting=setting,
                    classes=classes if setting == "partitioned" else None,
                )
                names = read_index(split)["id"]
                assert len(names) > 0
                assert not any(is_for_selection(name, SHARE) for name in names)


def test_every_step_loses_about_the_share(folder, index_of):
    everything, kept = (
        read_index(index_of(folder, selection=share)[0]) for share in (0, SHARE)
    )
    for new in (1, 2, 3):
        counts = []
        for table in (everything, kept):
            rows = table[table["subset"] == "train"]
            present = map(parse_classes, rows["classes"])
            seen, added = frozenset(range(1, new + 1)), frozenset([new])
            counts.append(sum(in_step(p, seen, added, "overlap") for p in present))
        assert 0.65 < counts[1] / counts[0] < 0.95


def test_selection_does_not_depend_on_the_choice_of_validation_images():
    names = [f"image {number}" for number in range(5000)]
    kept = [name for name in names if not is_held_out(name, 0.2)]
    share = sum(is_for_selection(name, SHARE) for name in kept) / len(kept)
    assert abs(share - SHARE) < 0.02


@pytest.mark.parametrize("share", [0.001, 0.9])
def test_too_few_images_name_the_key(folder_dataset, index_of, share):
    held = (name for name in map(str, range(100)) if is_for_selection(name, 0.9))
    names = [name for name in held if not is_for_selection(name, 0.001)]
    masks = {name: labels_of(number) for number, name in enumerate(names[:2], 1)}
    folder = folder_dataset({"train": masks, "val": {"v": labels_of(1)}})
    with pytest.raises(ValueError, match=r"Expected (val|train) images .*`selection`"):
        index_of(folder, selection=share)


# --- in the plan ---------------------------------------------------------------------


def test_runs_of_a_selection_have_paths_of_their_own():
    plain, chosen = make_plan(), make_plan(selection=SHARE)
    assert {run.dataset for run in plain.runs} == {"tiny"}
    assert {run.dataset for run in chosen.runs} == {"tiny_selection"}
    files = [
        {result.evaluation for result in plan.results(plan.runs)}
        for plan in (plain, chosen)
    ]
    assert not files[0] & files[1]
    settings = chosen.datasets.index_settings("tiny_selection")
    assert settings["selection"] == SHARE
    assert "selection" not in plain.datasets.index_settings("tiny")
    described = [
        p.describe_experiment(p.runs[0]).get("selection") for p in (plain, chosen)
    ]
    assert described == [None, SHARE]


def test_scenes_are_drawn_once_for_both():
    plain, chosen = make_plan(), make_plan(selection=SHARE)
    made = plain.datasets.made_folders("tiny")
    assert chosen.datasets.made_folders("tiny_selection") == made
    assert chosen.datasets.drawing_settings("tiny") == (
        plain.datasets.drawing_settings("tiny")
    )


def test_additions_hold_out_the_same_share(tmp_path):
    names = make_plan().datasets.names(
        "tiny", make_plan().datasets.groups("tiny", "6-2")
    )
    (tmp_path / "classes.txt").write_text("\n".join([*names, "cross"]) + "\n")
    datasets = {"tiny": {"kind": "digits", "additions": [str(tmp_path)]}}
    plan = make_plan(datasets=datasets, selection=SHARE)
    parts = plan.datasets.planned_parts()
    assert parts == ["tiny_selection", "tiny_selection+1"]
    assert [plan.datasets.selection(part) for part in parts] == [SHARE, SHARE]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param({"selection": 1}, r"selection.*1", id="everything"),
        pytest.param({"selection": -0.1}, r"selection.*-0\.1", id="negative"),
        pytest.param(
            {
                "datasets": {"tiny_selection": {"kind": "digits"}},
                "selection": SHARE,
                **experiment(dataset="tiny_selection"),
            },
            r"datasets\.tiny_selection.*Rename",
            id="taken name",
        ),
        pytest.param(
            {
                "datasets": {
                    "old": {"kind": "packed", "path": "step.zip", "additions": ["more"]}
                },
                "selection": SHARE,
                **experiment(dataset="old"),
            },
            r"datasets\.old is of the kind 'packed'",
            id="no training images",
        ),
    ],
)
def test_selection_refuses(changes, message):
    with pytest.raises(ConfigError, match=message):
        make_plan(**changes)
