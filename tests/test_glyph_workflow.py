"""The rules that draw and index the dataset of many classes."""

from pathlib import Path

import pytest
import yaml
from snakemake_calls import jobs, snakemake

from kproba.data.splits import read_index

pytestmark = pytest.mark.workflow
INDEX = "results/data/many/index.csv"


def write_config(folder: Path, **settings: object) -> None:
    dataset = {"kind": "glyphs", "classes": 8, "train": 16, "val": 10, "size": 48}
    content = {
        "datasets": {"many": {**dataset, "least": 2, **settings}},
        "experiments": [{"dataset": "many", "task": "4-2", "methods": ["finetune"]}],
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(content))


def test_glyphs_are_drawn_by_a_rule_and_drawn_again_after_a_change(tmp_path):
    write_config(tmp_path)
    snakemake(tmp_path, "--", INDEX)
    index = read_index(tmp_path / INDEX)
    assert index["subset"].value_counts().to_dict() == {"train": 16, "val": 10}
    names = (tmp_path / "results/data/many/scenes/classes.txt").read_text().split("\n")
    assert names[:2] == ["background", "plain 01"] and len(names) == 10
    assert jobs(tmp_path, "--", INDEX) == {}
    write_config(tmp_path, imbalance=10)
    assert jobs(tmp_path, "--", INDEX) == {"draw_scenes": 1, "prepare_dataset": 1}
