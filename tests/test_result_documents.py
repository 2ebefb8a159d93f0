"""How tables in documents are made from measured results."""

import subprocess
import sys
from statistics import mean, stdev

import pandas as pd
import pytest
from small_summaries import seeds, summary, write

from kproba.results.choice import choose, write_choice
from kproba.results.documents import END, fill
from kproba.results.measured import Measured

METHODS = """\
method,kind,shown
kproba,method,
barm,method,
mib,method,
joint,joint,
joint_softmax,joint,
old_name,variant,new_name
*_m,memory,
"""
RUNS = {
    "kproba": seeds(40, 42, 44),
    "barm": seeds(30, 33, 33),
    "mib": seeds(20, 20, 23),
    "joint": seeds(48, 50, 52),
    "joint_softmax": seeds(44, 45, 46),
}


@pytest.fixture
def measured(tmp_path) -> Measured:
    folder = tmp_path / "docs" / "measured"
    write(summary(RUNS), folder / "pets_summary.csv")
    (folder / "methods.csv").write_text(METHODS)
    (folder / "files.csv").write_text(
        "file,comparison,version,what,command\n"
        "pets_summary.csv,yes,1.0,all measures,`pets.yaml`\n"
        "methods.csv,,–,kinds,by hand\n"
    )
    return Measured(folder)


def rewrite(measured: Measured, runs: dict, name: str = "pets", **names) -> None:
    write(summary(runs, **names), measured.folder / f"{name}_summary.csv")


def render(measured: Measured, line: str) -> str:
    return fill(f"before\n<!-- {line} -->\nold\n{END}\nafter", measured)


def rows(text: str) -> dict[str, list[str]]:
    """The cells of the lines of all tables by their first cell."""
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    return {first: rest for first, *rest in cells}


# --- tables of methods ---------------------------------------------------------------


def test_a_table_by_hand(measured):
    text = render(measured, "table: pets columns=old,all,avg")
    lines = text.splitlines()
    assert lines[:2] == ["before", "<!-- table: pets columns=old,all,avg -->"]
    assert lines[-2:] == [END, "after"] and "old" not in lines
    assert lines[3].split(" | ")[-3:] == ["% of `joint`", "behind `kproba`", "seeds |"]
    table = rows(text)
    assert list(table) == [
        *("method", "**`kproba`**", "`barm`", "`mib`", "`joint`", "`joint_softmax`")
    ]
    assert table["**`kproba`**"] == [
        *("44.0 ± 2.0", "**42.0 ± 2.0**", "43.0 ± 2.0", "84 %", "–", "3")
    ]
    barm, behind = RUNS["barm"].values(), [10, 9, 11]
    assert table["`barm`"] == [
        f"{mean(barm) + 2:.1f} ± {stdev(barm):.1f}",
        f"{mean(barm):.1f} ± {stdev(barm):.1f}",
        f"{mean(barm) + 1:.1f} ± {stdev(barm):.1f}",
        f"{100 * mean(barm) / 50:.0f} %",
        f"{mean(behind):.1f} ± {stdev(behind):.1f}",
        "3",
    ]
    # `avg` of a single evaluation is no mean over steps.
    assert table["`joint`"][2:] == ["–", "100 %", "−8.0 ± 0.0", "3"]


def test_a_plain_copy_of_a_summary_is_accepted(measured, tables):
    """All columns of a run: seconds, folder and classes without pixels too."""
    copy = measured.folder / "copy_summary.csv"
    copy.write_bytes(tables[0].read_bytes())
    text = measured.folder / "methods.csv"
    text.write_text(f"{METHODS}finetune,method,\n")
    table = rows(render(Measured(measured.folder), "table: copy"))
    titles = ["old", "new", "all", "hIoU", "avg", "forgetting"]
    assert table["method"] == [*titles, "% of `joint`", "behind `kproba`", "seeds"]
    assert table["**`kproba`**"][2] == "**28.8**"  # 28.75, of step 2
    assert table["`finetune`"][2:3] + table["`finetune`"][-2:] == ["25.0", "3.8", "1"]


def test_a_second_writing_changes_nothing(measured):
    text = render(measured, "table: pets")
    assert fill(text, measured) == text


def test_methods_with_a_memory_have_a_table_of_their_own(measured):
    rewrite(measured, {**RUNS, "kproba_m": seeds(60, 60, 60), "mib_m": seeds(50)})
    text = render(measured, "table: pets columns=all")
    first, second = text.split("With a memory of old images:")
    assert "_m`" not in first and "**`kproba`**" in first
    assert list(rows(second)) == ["method", "**`kproba_m`**", "`mib_m`"]
    assert rows(second)["`mib_m`"] == ["50.0", "100 %", "−10.0", "1"]


def test_the_best_method_is_bold_and_may_be_another_one(measured):
    rewrite(measured, {**RUNS, "mib": seeds(41, 43, 44)})
    table = rows(render(measured, "table: pets columns=all"))
    assert "**`mib`**" in table and "`kproba`" in table
    assert table["**`mib`**"][0] == "**42.7 ± 1.5**"


def test_methods_of_equal_looks_are_both_bold(measured):
    rewrite(measured, {**RUNS, "mib": seeds(40.01, 42, 44)})
    table = rows(render(measured, "table: pets columns=all"))
    assert {"**`mib`**", "**`kproba`**"} <= set(table)


def test_seeds_without_a_pair_are_counted(measured):
    rewrite(measured, {**RUNS, "mib": {1: 20.0, 2: 21.0, 7: 25.0}})
    table = rows(render(measured, "table: pets columns=all"))
    assert table["`mib`"][2:] == ["22.5 ± 0.7 (2 pairs)", "3"]
    rewrite(measured, {**RUNS, "mib": {7: 25.0}})
    assert rows(render(measured, "table: pets"))["`mib`"][-2:] == ["–", "1"]


def test_other_machines_are_marked(measured):
    path = measured.folder / "pets_summary.csv"
    table = summary(RUNS)
    table["machine"] = ["b" if name == "mib" else "a" for name in table["method"]]
    write(table, path)
    text = render(measured, "table: pets")
    assert "`mib`*" in rows(text) and "`barm`" in rows(text)
    assert "\\* On another machine than `kproba`" in text
    shown = render(measured, "table: pets methods=kproba,barm")
    assert "another machine" not in shown


def test_several_experiments_of_a_file_have_titles(measured):
    both = [summary(RUNS), summary({"kproba": seeds(1)}, setting="disjoint")]
    write(pd.concat(both), measured.folder / "pets_summary.csv")
    text = render(measured, "table: pets columns=all")
    assert "\npets 1-1, overlap:\n" in text and "\npets 1-1, disjoint:\n" in text
    one = render(measured, "table: pets columns=all setting=disjoint")
    assert list(rows(one)) == ["method", "**`kproba`**"]
    assert rows(one)["**`kproba`**"] == ["**1.0**", "–", "1"]


def test_names_and_order_of_methods(measured):
    rewrite(measured, {**RUNS, "old_name": seeds(1)})
    line = "table: pets methods=old_name,kproba,mib sort=file columns=all reference=mib"
    table = rows(render(measured, line))
    assert list(table) == ["method", "`new_name`", "**`kproba`**", "`mib`"]
    assert table["**`kproba`**"][2] == "−21.0 ± 1.0"


def test_costs_are_joined_by_method(measured):
    costs = measured.folder / "costs.csv"
    costs.write_text(
        "method,parameters,seconds_per_image\n"
        "kproba,4652000,0.02345\nbarm,920,\nmib,1,2\njoint,1,2\njoint_softmax,1,2\n"
    )
    text = render(measured, "table: pets columns=all costs=costs")
    assert "| parameters | seconds per image | seeds |" in text
    assert rows(text)["**`kproba`**"][-3:] == ["4.65 M", "0.0234", "3"]
    assert rows(text)["`barm`"][-3:] == ["920", "–", "3"]
    costs.write_text("method,parameters\nkproba,1\n")
    with pytest.raises(ValueError, match=r"costs.csv, but barm, .* is missing"):
        render(measured, "table: pets columns=all costs=costs")


# --- tables over experiments ---------------------------------------------------------


def lead(measured: Measured, runs: dict) -> list[str]:
    rewrite(measured, runs)
    return rows(render(measured, "summary:"))["pets 1-1, overlap"]


def test_the_summary_by_hand(measured):
    assert lead(measured, {**RUNS, "old_name": seeds(41, 43, 45)}) == [
        *("**42.0 ± 2.0**", "`barm` 32.0 ± 1.7", "10.0 ± 1.0"),
        *("`joint` 50.0 ± 2.0", "84 %", "yes", "3"),
    ]


def test_the_lead_must_be_more_than_one_deviation(measured):
    # 2, 0 and 1 points: 1 ± 1 is not more than one deviation.
    row = lead(measured, {**RUNS, "barm": seeds(38, 42, 43)})
    assert row[1:3] == ["`barm` 41.0 ± 2.6", "1.0 ± 1.0"]
    assert row[5] == "no: `barm` is within one sd"


def test_the_lead_is_asked_of_every_method(measured):
    # `mib` is worse than `barm` on average, but not surely worse than `kproba`.
    runs = {**RUNS, "barm": seeds(38, 40, 42), "mib": seeds(41, 40, 20)}
    row = lead(measured, runs)
    assert row[1].startswith("`barm`")
    assert row[5] == "no: `mib` is within one sd"


def test_a_method_that_is_ahead_is_named(measured):
    row = lead(measured, {**RUNS, "mib": seeds(43, 43, 44)})
    assert row[0] == "42.0 ± 2.0"
    assert row[1] == "`mib` **43.3 ± 0.6**"
    assert row[5] == "no: `mib` is ahead"


def test_one_seed_leaves_the_question_open(measured):
    assert lead(measured, {**RUNS, "mib": seeds(1)})[5] == "open: one seed of `mib`"


def test_memory_does_not_count_as_next_best(measured):
    row = lead(measured, {**RUNS, "mib_m": seeds(60, 60, 60)})
    assert row[1].startswith("`barm`") and row[5] == "yes"


def test_a_comparison_of_some_methods(measured):
    rewrite(measured, {**RUNS, "mib": seeds(50, 50, 50)}, name="cars", dataset="cars")
    line = "compare: pets cars methods=kproba,joint"
    table = rows(render(measured, line))
    assert table["method"] == ["pets 1-1, overlap", "cars 1-1, overlap"]
    # The best method of `cars` is not shown, so nothing is bold there.
    assert table["`kproba`"] == ["**42.0 ± 2.0**", "42.0 ± 2.0"]
    with pytest.raises(ValueError, match="Expected 'dkd' in at least one comparison"):
        render(measured, "compare: methods=kproba,dkd")


def test_the_table_of_a_method(measured):
    table = rows(render(measured, "method: mib"))
    assert table["pets 1-1, overlap"] == [
        *("23.0 ± 1.7", "18.0 ± 1.7", "21.0 ± 1.7", "42 %", "21.0 ± 1.0", "3")
    ]
    rewrite(measured, {"kproba": seeds(1)})
    assert "has not been measured" in render(measured, "method: mib")


def test_the_table_of_a_choice(measured):
    runs = {"a": seeds(40, 42), "b": seeds(41, 44), "c": seeds(39, 40)}
    write_choice(choose(summary(runs)), measured.folder / "choice.csv")
    table = rows(render(measured, "choice: choice"))
    assert table["`a`"] == ["41.0 ± 1.4", "–", "no", "reference", "2"]
    assert table["`b`"] == ["42.5 ± 2.1 (+1.5 ± 0.7)", "+1.5", "**yes**", "", "2"]
    assert table["`c`"][0] == "39.5 ± 0.7 (−1.5 ± 0.7)"


def test_the_list_of_files_is_complete(measured):
    assert "[pets_summary.csv](pets_summary.csv)" in rows(render(measured, "files:"))
    (measured.folder / "more.csv").write_text("a\n")
    with pytest.raises(ValueError, match=r"but more.csv differ"):
        render(measured, "files:")


# --- what is refused -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("table: cars", r"cars_summary.csv, but neither exists. Copy the summary.csv"),
        ("table: pets methods=kproba,dkd", "but dkd is missing. The file has kproba"),
        ("table: pets reference=dkd", "but dkd is missing"),
        ("table: pets columns=old,size", "has only old, new, all, avg"),
        ("table: pets task=9-9", "but got none. Correct dataset, task, setting"),
        ("table: pets colums=old", "for 'table', but got 'colums'"),
        ("table:", "Expected a results file, but got nothing"),
        ("table: pets cars", "Expected a results file, but got pets cars"),
        ("method: dkd", r"the method 'dkd' in .*methods.csv.*`dkd,variant,`"),
        ("summary: reference=old_name", "but old_name is missing"),
    ],
)
def test_lines_with_faults_are_refused(measured, line, message):
    with pytest.raises(ValueError, match=message) as refused:
        render(measured, line)
    assert str(refused.value).startswith("the text, line 2: Expected")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"a\n{END}", "an end without a beginning in the text, line 2"),
        ("<!-- table: pets -->\na", "got none in the text, line 1"),
        (f"<!-- tabel: pets -->\n{END}", "an end without a beginning"),
        (
            f"<!-- table: pets -->\n<!-- table: pets -->\n{END}",
            "no end in the text, line 1",
        ),
    ],
)
def test_tables_without_both_lines_are_refused(measured, text, message):
    with pytest.raises(ValueError, match=message):
        fill(text, measured)


def test_methods_that_are_not_listed_are_refused(measured):
    rewrite(measured, {**RUNS, "new": seeds(1)})
    with pytest.raises(ValueError, match="Expected the method 'new'"):
        render(measured, "table: pets methods=kproba")


def test_unfinished_and_repeated_runs_are_refused(measured):
    table = summary(RUNS)
    path = measured.folder / "pets_summary.csv"
    last = table["method"].eq("mib") & table["seed"].eq(1) & table["step"].eq(1)
    write(table[~last], path)
    with pytest.raises(
        ValueError, match="unfinished ones: pets 1-1 overlap mib seed 1"
    ):
        render(measured, "table: pets")
    write(pd.concat([table, table[last]]), path)
    with pytest.raises(ValueError, match="overlap mib seed 1 twice"):
        render(measured, "table: pets")


def test_a_wrong_kind_of_method_is_refused(measured):
    path = measured.folder / "methods.csv"
    path.write_text(METHODS.replace("mib,method", "mib,methods"))
    with pytest.raises(ValueError, match=r"for 'mib' in .* but got 'methods'"):
        Measured(measured.folder)


# --- the command ---------------------------------------------------------------------


def test_the_command_writes_and_checks(measured, tmp_path):
    text = f"<!-- table: pets -->\n{END}\n"
    (tmp_path / "README.md").write_text(text)
    command = [sys.executable, "-m", "kproba.results.documents"]

    def call(*words: str) -> tuple[int, str]:
        done = subprocess.run(
            [*command, *words],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, done.stdout

    assert call("--check") == (1, "README.md differs\n")
    assert (tmp_path / "README.md").read_text() == text
    assert call() == (0, "README.md written\n")
    assert call("--check") == (0, "")
    assert call("--help")[0] == 2
