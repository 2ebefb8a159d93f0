"""Large datasets and plans: how much work is done, counted and not timed."""

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from plan_configs import ROOT, experiment, make_plan, make_run
from small_experiment import CLASS_NAMES, GROUPS
from whole_runs import write_config

from kproba.data import splits
from kproba.data.folders import Folders
from kproba.data.kinds import KINDS, pairs
from kproba.plan import dataset_state
from kproba.plan.errors import ConfigError
from kproba.plan.results import LazyResults
from kproba.results import costs, page_classes, page_tables
from kproba.results.experiment import Experiment
from kproba.results.figures import draw_figures
from kproba.results.page_pictures import draw_examples
from kproba.results.tables import summarise
from kproba.runtime import records
from kproba.runtime.files import write_json

# --- Plan ---------------------------------------------------------------------------

SEEDS = [3, 0, 7]
TASKS = ["6-2", "4-3"]


def results_of(seeds):
    plan = make_plan(**experiment(task=TASKS, seeds=seeds))
    return plan, plan.results(plan.runs)


@pytest.mark.usefixtures("schema_is_parsed_once")
def test_owners_are_found_for_one_seed_and_hold_for_all():
    plan, together = results_of(SEEDS)
    one_by_one = [result for seed in SEEDS for result in results_of([seed])[1]]
    # Tasks come first in a configuration, then seeds.
    in_order = sorted(one_by_one, key=lambda result: TASKS.index(result.task))
    assert together == in_order
    built = {seed: Counter() for seed in SEEDS}
    for _, run, _ in plan.chain._jobs:
        built[run.seed][run.method] += 1
    # The first seed is the one whose owners are looked for, among all methods.
    assert built[SEEDS[0]].keys() == plan.methods.keys()
    for seed in SEEDS[1:]:
        named = {"kproba", "finetune", "joint"}
        assert built[seed].keys() == {"base", "pretrained"} | named
    assert built[SEEDS[1]] == built[SEEDS[2]]


@pytest.mark.usefixtures("schema_is_parsed_once")
def test_a_job_of_another_seed_is_another_job_and_has_no_owner_in_a_run():
    plan = make_plan(**experiment(seeds=[0, 1]))
    first, second = (plan.chain.bank(make_run(seed=seed), 2) for seed in (0, 1))
    assert first.shape == second.shape
    assert first != second and first.seeds == {0} and second.seeds == {1}
    assert plan.chain.split(make_run(seed=0), 1) == plan.chain.split(
        make_run(seed=1), 1
    )
    with pytest.raises(ConfigError, match="Expected a job of the plan"):
        plan.owner(first, make_run(seed=1))


def test_lazy_results_are_found_once_and_when_they_are_needed():
    calls = []
    results = LazyResults(lambda: calls.append("found") or ["a", "b", "c"])
    assert not calls
    assert list(results) == ["a", "b", "c"]
    assert results[-1] == "c" and results[:2] == ["a", "b"] and len(results) == 3
    assert calls == ["found"]


COUNT = """
import sys
from collections import Counter
from kproba.data.kinds.kind import DatasetKind
from kproba.plan.plan import Plan
from snakemake.cli import main

calls = Counter()

def count(owner, name):
    original = getattr(owner, name)
    def counted(*arguments):
        calls[name] += 1
        return original(*arguments)
    setattr(owner, name, counted)

for owner, names in {
    Plan: ("__init__", "result", "results", "check_images"),
    DatasetKind: ("digest_files",),
}.items():
    for name in names:
        count(owner, name)
sys.argv[0] = "snakemake"
try:
    main(sys.argv[1:])
except SystemExit as ended:
    assert not ended.code
print("\\ncalls", dict(calls))
"""


def calls_of_snakemake(folder: Path, *words: str) -> dict[str, int]:
    """How often parts of the plan are worked on in a dry run."""
    command = [sys.executable, "-c", COUNT, "--dry-run", "--cores", "1", *words]
    command += ["--snakefile", str(ROOT / "Snakefile"), "--directory", str(folder)]
    command += ["--configfile", str(folder / "config.yaml"), "--quiet", "all"]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT)
    [line] = [line for line in done.stdout.splitlines() if line.startswith("calls")]
    return json.loads(line.removeprefix("calls").replace("'", '"'))


@pytest.fixture
def planned(tmp_path: Path, small_folder: Path) -> Path:
    """The tiny configuration with pictures of a user, one method and three seeds."""
    chosen = {"dataset": "tiny", "task": "grow", "methods": ["finetune"]}
    change = {
        "datasets": {"tiny": {"kind": "folder", "path": str(small_folder)}},
        "experiments": [{**chosen, "seeds": [0, 1, 2]}],
        "tasks": {"grow": [["cat"], ["dog"], ["cow"]]},
    }
    write_config(tmp_path, change)
    return tmp_path


@pytest.mark.workflow
def test_a_dry_run_plans_each_result_once_and_looks_at_the_pictures_once(planned):
    calls = calls_of_snakemake(planned)
    steps, seeds = 3, 3
    once = {"__init__": 1, "results": 1, "check_images": 1, "digest_files": 1}
    assert calls == {**once, "result": steps * seeds}


@pytest.mark.workflow
def test_a_job_of_a_cluster_does_not_plan_the_results_of_all_others(planned):
    job = "train_step:dataset=tiny,task=grow,setting=overlap,method=finetune"
    calls = calls_of_snakemake(
        planned,
        *("--mode", "remote", "--target-jobs", f"{job},seed=1,step=2"),
        *("--allowed-rules", "train_step", "--force", "--nolock"),
    )
    assert calls == {"__init__": 1}


# --- Index --------------------------------------------------------------------------


def record_of_files(path: Path, names: list[str], **more: object) -> None:
    entries = {name: [1, 2, "a" * 16] for name in names}
    write_json(path, {"state": "recorded", "files": entries, **more})


@pytest.mark.parametrize("more", [{}, {"known": ["other"]}])
@pytest.mark.parametrize(
    "names", [["a.png", 'b"files": {.png', "c\n  }.png", "é\\.png", "  }"], []]
)
def test_the_state_of_files_is_read_without_the_files(
    names, more, tmp_path, monkeypatch
):
    path = tmp_path / "files.json"
    record_of_files(path, names, **more)
    whole = json.loads(path.read_text())
    assert dataset_state._read(path) == whole
    parsed = []
    parse = records.parse_json
    monkeypatch.setattr(
        records,
        "parse_json",
        lambda raw, *rest: parsed.append(raw) or parse(raw, *rest),
    )
    assert dataset_state._read(path, files=False) == {**whole, "files": {}}
    assert len(parsed) == 1 and not any(b".png" in raw for raw in parsed)


def test_the_state_of_more_files_than_fit_other_records_is_known(tmp_path, monkeypatch):
    path = tmp_path / "files.json"
    record_of_files(path, [f"{number}.png" for number in range(100)])
    monkeypatch.setattr(records, "MOST_BYTES", 1000)
    assert path.stat().st_size > 1000
    assert dataset_state.recorded_state(path) == "recorded"


def test_a_record_in_another_layout_is_read_too(tmp_path):
    path = tmp_path / "files.json"
    path.write_text('{"files": {"a": [1, 2, "b"]}, "state": "recorded"}')
    assert dataset_state.recorded_state(path) == "recorded"
    path.write_text('{\n  "files": {\n  "a": [1]\n  }}, "state": "recorded"}')
    assert dataset_state.recorded_state(path) is None


NAMES = ("a.png", "b/c.png", "./a", "b//c", "b/./c", "../a", "b/..", "a.", "a/", "")
FOLDERS = ("x", "x/", ".", "./x//y", "/x", "/", "../x", "x/./y", "a b")


@pytest.mark.parametrize("folder", FOLDERS)
def test_paths_are_joined_as_pathlib_does(folder):
    names = [*NAMES, "/elsewhere/a.png", "/", ".", "a./b", ".hidden", "..."]
    expected = [str(Path(folder) / name) for name in names]
    assert splits.join_paths([folder] * len(names), names) == expected


def test_paths_of_many_pictures_need_few_objects(tmp_path, monkeypatch):
    rows = 300
    table = {name: ["1"] * rows for name in splits.COLUMNS}
    table["image"] = [f"images/{number}.jpg" for number in range(rows)]
    table["mask"] = [f"masks/{number}.png" for number in range(rows)]
    table |= {"dataset": ["pets", "pets+1"] * (rows // 2), "mask_made": [0, 1, 0] * 100}
    pd.DataFrame(table).to_csv(tmp_path / "index.csv", index=False)
    made = []
    monkeypatch.setattr(splits, "Path", lambda path: made.append(path) or Path(path))
    folders = {"pets": Folders("p", "pm"), "pets+1": Folders("q", "qm")}
    located = splits.read_index(tmp_path / "index.csv", folders)
    assert located["image"].tolist()[:2] == ["p/images/0.jpg", "q/images/1.jpg"]
    assert located["mask"].tolist()[:3] == [
        *("p/masks/0.png", "qm/masks/1.png", "p/masks/2.png")
    ]
    assert len(made) <= 8


class CountedNames(dict):
    """Names of files, which count how often one is looked at."""

    looked = 0

    def __iter__(self) -> Iterator[str]:
        for name in super().__iter__():
            self.looked += 1
            yield name


@pytest.mark.parametrize("wrong", [None, "77"])
def test_a_suffix_of_masks_is_found_in_few_looks(wrong):
    numbers = [str(number) for number in range(1, 201)]  # many begin with "1"
    images = CountedNames.fromkeys(numbers, ())
    masks = dict.fromkeys((f"{number}_m" for number in numbers), ())
    if wrong:
        masks[f"{wrong}_n"] = masks.pop(f"{wrong}_m")
    assert pairs._common_suffix(images, masks) == ("" if wrong else "_m")
    assert images.looked <= 5 * len(numbers)


# --- Results ------------------------------------------------------------------------


def test_files_of_costs_are_read_once_for_all_later_steps(
    results, tmp_path, monkeypatch
):
    read = Counter()
    for name in ("read_table", "read_usage_record"):
        original = getattr(costs, name)

        def counted(path, *rest, original=original, **more):
            read[str(path)] += 1
            return original(path, *rest, **more)

        monkeypatch.setattr(costs, name, counted)
    summarise(results, tmp_path / "summary.csv", tmp_path / "classes.csv")
    later = [result for result in results if result.step > 0]
    files = {path for result in later for path in result.times.values()}
    files |= {result.usage for result in later}
    assert read == dict.fromkeys(files, 1)


def test_costs_of_a_step_read_its_usage_once(results, monkeypatch):
    read = Counter()
    original = costs.read_usage_record
    monkeypatch.setattr(
        costs,
        "read_usage_record",
        lambda path: read.update([str(path)]) or original(path),
    )
    later = [result for result in results if result.step > 0]
    page_tables.cost_table(later)
    assert read == {result.usage: 1 for result in later}


def test_tables_of_classes_do_not_search_all_rows_for_each_class(monkeypatch):
    classes, steps = 40, 5
    rows = [
        {"method": method, "seed": seed, "step": step, "index": index}
        for method in ("kproba", "finetune")
        for seed in (0, 1)
        for step in range(steps)
        for index in range(classes)
    ]
    table = pd.DataFrame(rows)
    values = np.random.default_rng(0).uniform(0, 100, (len(rows), 2))
    table[["iou", "forgetting"]] = values
    groups = tuple(map(tuple, np.arange(1, classes + steps - 5 + 1).reshape(steps, -1)))
    about = {"dataset": "d", "kind": "folder", "task": "t", "setting": "overlap"}
    shown = Experiment(
        **about,
        groups=groups,
        names=[f"class {index}" for index in range(classes)],
        indices=[],
    )
    compared = []
    equal = pd.Series.__eq__
    monkeypatch.setattr(
        pd.Series,
        "__eq__",
        lambda series, other: compared.append(len(series)) or equal(series, other),
    )
    found = page_classes.class_tables(shown, table)
    assert sum(compared) <= 2 * len(table)
    of_kproba = table["method"] == "kproba"
    for index in (0, 17, classes - 1):
        mine = table[of_kproba & (table["index"] == index)]
        line = found["kproba"].rows[index]
        by_step = [mine[mine["step"] == step]["iou"].mean() for step in range(steps)]
        assert [cell.sort for cell in line[1:-1]] == by_step
        lost = mine[mine["step"] == steps - 1]["forgetting"].mean()
        assert line[-1].sort == lost


def test_pictures_are_looked_up_without_a_record_of_every_row(
    results, index, tmp_path, monkeypatch
):
    rows = pd.read_csv(index, dtype=str, keep_default_na=False)
    last = rows.iloc[-1:]
    more = [last.assign(id=f"more {number}") for number in range(200)]
    pd.concat([rows, *more]).to_csv(index, index=False)
    converted = []
    to_dict = pd.DataFrame.to_dict
    monkeypatch.setattr(
        pd.DataFrame,
        "to_dict",
        lambda table, *words: converted.append(len(table)) or to_dict(table, *words),
    )
    names = ("miou", "training", "classes", "pseudo_labels", "examples")
    outputs = {name: tmp_path / f"{name}.png" for name in names}
    draw_figures(results, [index], outputs, groups=GROUPS)
    shown = Experiment(
        dataset="pets",
        kind="folder",
        task="1-1",
        setting="overlap",
        groups=GROUPS,
        names=CLASS_NAMES,
        indices=[str(index)],
    )
    examples = draw_examples(shown, results)
    assert [example["name"] for example in examples] == ["v1", "v2"]
    assert converted == [2, 2]


def test_the_pictures_of_a_dataset_are_looked_at_once_in_a_plan(
    small_folder, monkeypatch
):
    digested = []
    digest = type(KINDS["folder"]).digest_files
    monkeypatch.setattr(
        type(KINDS["folder"]),
        "digest_files",
        lambda kind, folder: digested.append(folder) or digest(kind, folder),
    )
    plan = make_plan(
        datasets={"own": {"kind": "folder", "path": str(small_folder)}},
        **experiment(dataset="own", task="1-1"),
    )
    assert plan.datasets.state_of_files("own") == plan.datasets.state_of_files("own")
    assert digested == [str(small_folder)]
