"""The profiles of Snakemake: lines that users edit, and triggers of jobs."""

import re

import pytest
import yte
from snakemake_calls import ROOT

TEXT = (ROOT / "profiles" / "slurm" / "profile.yaml").read_text()
GPU_RULES = {
    *("train_base", "train_joint", "train_step", "measure_features", "update_memory"),
    *("write_pretrained", "build_prototypes", "export_pseudo_labels", "evaluate"),
}


def edited(**changes):
    """The profile with some of the lines changed that it asks to edit."""
    text = TEXT
    for name, value in changes.items():
        text, count = re.subn(rf"(?m)^  {name}: \S+", f"  {name}: {value}", text)
        assert count == 1, name
    return yte.process_yaml(text)


def test_lines_to_edit_reach_every_rule():
    content = edited(
        account='"me"',
        cpu_partition='"short"',
        cpu_minutes=60,
        gpu_partition='"volta"',
        gpu_minutes=99,
        gpu_model='"a100"',
        most_jobs=7,
    )
    assert content["jobs"] == 7
    assert content["default-resources"] == {
        "slurm_account": "me",
        "slurm_partition": "short",
        "mem_mb": "4000 * attempt",
        "runtime": "min(120 * attempt, 60)",
    }
    assert content["set-resources"].keys() == GPU_RULES
    for entry in content["set-resources"].values():
        assert entry["slurm_partition"] == "volta"
        assert entry["gpu_model"] == "a100"
        assert entry["runtime"].endswith("* attempt, 99)")


def test_account_and_model_are_left_to_slurm_by_default():
    content = edited()
    assert "slurm_account" not in content["default-resources"]
    assert all("gpu_model" not in entry for entry in content["set-resources"].values())


@pytest.mark.parametrize("attempt", [1, 2, 3])
def test_no_attempt_exceeds_the_limit_of_its_partition(attempt):
    content = edited(cpu_minutes=100, gpu_minutes=500)
    entries = [content["default-resources"], *content["set-resources"].values()]
    for entry, limit in zip(entries, [100, *[500] * len(GPU_RULES)], strict=True):
        assert 0 < eval(entry["runtime"], {"attempt": attempt}) <= limit


@pytest.mark.parametrize("name", ["default", "slurm"])
def test_no_profile_runs_jobs_again_because_of_a_checkout(name):
    text = (ROOT / "profiles" / name / "profile.yaml").read_text()
    text = text.replace("  - check_command_line()\n", "")  # ends pytest for its words
    triggers = yte.process_yaml(text)["rerun-triggers"]
    assert triggers == ["mtime", "params", "input", "software-env"]
