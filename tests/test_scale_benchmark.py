"""The benchmark of scale works, at sizes that take a moment."""

import json
from dataclasses import replace

import pytest

from benchmarks import scale
from benchmarks.scale_cases import all_cases

CASES = all_cases()
# A small size of every unit; trainings are given by the number of seeds.
SMALL = {
    "pictures": 40,
    "classes": 10,
    "trainings": 1,
    "steps": 3,
    "pictures in the index": 200,
}


def name(case):
    return f"{case.group}: {case.what}, {case.unit}"


@pytest.mark.parametrize("case", [case for case in CASES if case.work], ids=name)
def test_every_piece_of_work_can_be_measured(case, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    size = str(SMALL[case.unit])
    assert scale.work_here(case, ["prepare", size]) == ""
    measured = json.loads(scale.work_here(case, ["measure", size, size, str(tmp_path)]))
    seconds, memory = measured
    assert seconds > 0 and isinstance(memory, int)


@pytest.mark.workflow
@pytest.mark.parametrize("case", [case for case in CASES if case.command], ids=name)
def test_every_command_can_be_measured(case, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    case.prepare(1)
    seconds, memory = scale._run(case.command, tmp_path)
    assert seconds > 0.2  # the command did more than fail
    assert memory < 2**30


def test_sizes_are_measured_in_processes_of_their_own():
    [case] = [case for case in CASES if case.what == "reading index.csv"]
    small, large = scale.measure(replace(case, sizes=(10, 20_000)))
    assert (small.size, large.size) == (10, 20_000)
    assert large.memory > 4 * 2**20 > small.memory
    assert large.seconds > small.seconds > 0


def test_the_exponent_is_the_slope_of_the_upper_half():
    sizes = [1, 10, 100, 1000]
    assert scale.exponent(sizes, [7 * n**2 for n in sizes]) == pytest.approx(2)
    assert scale.exponent(sizes, [999, 10, 100, 1000]) == pytest.approx(1)
    assert scale.exponent([1, 2], [4, 4]) == pytest.approx(0)


def test_a_row_shows_no_exponent_of_what_is_too_short_or_too_little():
    case = replace(CASES[0], what="work", unit="things")
    results = [scale.Measured(n, n / 1000, n * 2**20) for n in (1, 10, 100)]
    line = (
        "| work | 1 / 10 / 100 things | 0.001 / 0.01 / 0.1 | – | 1 / 10 / 100 | 1.00 |"
    )
    assert scale.row(case, results) == line
