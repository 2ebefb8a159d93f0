"""Results that were copied without their times get one time, and stay done."""

import os
import shutil
import time

import pytest

from kproba.plan.arrival import settle_times

AGES = {"index.csv": 300, "step0/model.safetensors": 200, "step1/model.json": 100}


@pytest.fixture
def results(tmp_path):
    """Results that were made over some minutes, long ago."""
    folder = tmp_path / "made" / "results"
    for name, age in AGES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
        os.utime(path, (time.time() - age, time.time() - age))
    return folder


def times(folder):
    return {p.stat().st_mtime for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize(
    "copy", [shutil.copyfile, shutil.copy2], ids=["cp -r", "cp -a"]
)
def test_times_of_a_copy(results, tmp_path, copy):
    here = tmp_path / "here" / "results"
    shutil.copytree(results, here, copy_function=copy)
    settled = settle_times(here, tmp_path / "here" / ".snakemake" / "metadata")
    assert settled == (copy is shutil.copyfile)
    assert len(times(here)) == (1 if settled else len(AGES))


def test_results_that_were_made_here_keep_their_times(results, tmp_path):
    here = tmp_path / "here" / "results"
    shutil.copytree(results, here, copy_function=shutil.copyfile)
    records = tmp_path / "here" / ".snakemake" / "metadata"
    records.mkdir(parents=True)
    (records / "entry").write_text("{}")
    before = times(here)
    assert not settle_times(here, records)
    assert times(here) == before


def test_nothing_to_settle(tmp_path):
    assert not settle_times(tmp_path / "results", tmp_path / "metadata")
    (tmp_path / "results").mkdir()
    assert not settle_times(tmp_path / "results", tmp_path / "metadata")
