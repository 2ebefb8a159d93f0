"""Results that were copied without their times get one time, and stay done."""

import json
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


def record(folder, records):
    """What Snakemake records of results when it makes them."""
    records.mkdir(parents=True)
    for number, path in enumerate(p for p in folder.rglob("*") if p.is_file()):
        ended = {"rule": "x", "endtime": path.stat().st_mtime}
        (records / str(number)).write_text(json.dumps(ended))


@pytest.mark.parametrize("recorded", [True, False], ids=["records too", "no records"])
@pytest.mark.parametrize(
    "copy", [shutil.copyfile, shutil.copy2], ids=["cp -r", "cp -a"]
)
def test_times_of_a_copy(results, tmp_path, copy, recorded):
    here, records = tmp_path / "here" / "results", tmp_path / "metadata"
    shutil.copytree(results, here, copy_function=copy)
    if recorded:
        record(results, records)
    settled = settle_times(here, records)
    assert settled == (copy is shutil.copyfile)
    assert len(times(here)) == (1 if settled else len(AGES))
    assert not settle_times(here, records)


@pytest.mark.parametrize("number", range(len(AGES)))
def test_times_count_once_a_result_was_made_here(results, tmp_path, number):
    here, records = tmp_path / "here" / "results", tmp_path / "metadata"
    shutil.copytree(results, here, copy_function=shutil.copyfile)
    record(results, records)
    for other, path in enumerate(sorted(p for p in here.rglob("*") if p.is_file())):
        os.utime(path, (time.time() + other, time.time() + other))
        if other == number:
            made = json.dumps({"endtime": path.stat().st_mtime})
            (records / "made here").write_text(made)
    before = times(here)
    assert not settle_times(here, records)
    assert times(here) == before


@pytest.mark.parametrize("content", ["{}", "", "[1]", '{"endtime": null}', "\\x00"])
def test_records_that_are_of_no_use(results, tmp_path, content):
    here, records = tmp_path / "here" / "results", tmp_path / "metadata"
    shutil.copytree(results, here, copy_function=shutil.copyfile)
    records.mkdir()
    (records / "entry").write_text(content)
    assert settle_times(here, records)


def test_nothing_to_settle(tmp_path):
    assert not settle_times(tmp_path / "results", tmp_path / "metadata")
    (tmp_path / "results").mkdir()
    assert not settle_times(tmp_path / "results", tmp_path / "metadata")
