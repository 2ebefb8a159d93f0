"""The benchmark of scale works, at sizes that take a moment."""

import json
from dataclasses import replace

import pytest

from benchmarks import scale, scale_page
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


ORDER = [
    ("first", ("reading", "pictures")),
    ("first", ("writing, `x`", "pictures in the index")),
    ("second", ("counting", "classes")),
]


def test_rows_are_known_by_their_work_and_unit():
    row = "| writing, `x` | 1 / 10,000 / 5 pictures in the index | 1 | – | 2 | – |"
    assert scale_page.key_of(row) == ("writing, `x`", "pictures in the index")


def test_the_page_has_a_row_for_every_case():
    """The page is written by the tool: each case has a row, and each row a case."""
    rows = scale_page.read_rows(scale.PAGE.read_text(encoding="utf-8"))
    assert list(rows) == [(case.what, case.unit) for case in CASES]


def test_a_group_replaces_its_rows_and_keeps_the_others(tmp_path):
    page = tmp_path / "scale.md"
    first = [
        "| reading | 1 / 2 pictures | 1 / 2 | – | 0 / 0 | – |",
        "| writing, `x` | 1 / 2 pictures in the index | 1 / 2 | – | 0 / 0 | – |",
    ]
    second = "| counting | 10 / 1,000 classes | 3 / 4 | – | 0 / 0 | – |"
    again = second.replace("3 / 4", "5 / 6")
    scale_page.write_page(page, ORDER, {"second": [second]}, {"kproba": "1"})
    scale_page.write_page(page, ORDER, {"first": first}, {"kproba": "2"})
    text = page.read_text(encoding="utf-8")
    assert list(scale_page.read_rows(text).values()) == [*first, second]
    assert '`{"groups": ["first"], "kproba": "2"}`' in text
    assert '`{"groups": ["second"], "kproba": "1"}`' in text
    scale_page.write_page(page, ORDER, {"second": [again]}, {"kproba": "2"})
    text = page.read_text(encoding="utf-8")
    assert list(scale_page.read_rows(text).values()) == [*first, again]
    assert '`{"groups": ["first", "second"], "kproba": "2"}`' in text
    assert text.startswith("# Scale") and text.endswith(scale_page.REMARKS)


def test_versions_without_groups_are_those_of_all_other_groups():
    text = '`{"kproba": "1"}`\n\n`{"groups": ["second"], "kproba": "2"}`\n'
    machines = scale_page.read_machines(text, ["first", "second"])
    assert machines == {"first": '{"kproba": "1"}', "second": '{"kproba": "2"}'}


def test_the_texts_of_the_page_are_written_without_a_measurement(tmp_path, monkeypatch):
    page = tmp_path / "scale.md"
    written = scale.PAGE.read_text(encoding="utf-8")
    page.write_text(written.replace("# Scale", "# Old"), encoding="utf-8")
    monkeypatch.setattr(scale, "PAGE", page)
    monkeypatch.setattr("sys.argv", ["benchmarks.scale", "--page"])
    scale.main()
    assert page.read_text(encoding="utf-8") == written
