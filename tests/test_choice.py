"""Choosing among methods by paired differences: the rule, and the command."""

import math
from statistics import mean, stdev

import pandas as pd
import pytest
from plan_configs import SCHEMA
from small_summaries import seeds, summary, write
from snakemake_calls import jobs, snakemake

from kproba import cli
from kproba.results.choice import (
    choose,
    chosen_method,
    describe_choice,
    read_summaries,
    write_choice,
)
from kproba.results.comparison import Spread, paired_difference

FIRST = seeds(40, 42, 41)


def table_of(first: dict, second: dict | None = None, **names) -> pd.DataFrame:
    """One dataset, or two with the same methods."""
    tables = [summary(first, **names)]
    if second is not None:
        tables.append(summary(second, dataset="cars"))
    return pd.concat(tables, ignore_index=True)


def row(choice: pd.DataFrame, method: str, dataset: str = "pets") -> pd.Series:
    return choice.set_index(["method", "dataset"]).loc[(method, dataset)]


# --- numbers -------------------------------------------------------------------------


def test_numbers_are_those_of_plain_formulas():
    better = seeds(41, 42.5, 43)
    choice = choose(table_of({"a": FIRST, "b": better}))
    line = row(choice, "b")
    differences = [1, 0.5, 2]
    assert line["seeds"] == 3
    assert line["all"] == pytest.approx(mean(better.values()))
    assert line["all_sd"] == pytest.approx(stdev(better.values()))
    assert line["old"] == pytest.approx(mean(better.values()) + 2)
    assert line["new"] == pytest.approx(mean(better.values()) - 3)
    assert line["difference"] == pytest.approx(mean(differences))
    # The deviation of the differences, not one made of two deviations.
    assert line["difference_sd"] == pytest.approx(stdev(differences))
    assert line["mean_difference"] == pytest.approx(mean(differences))


def test_the_mean_difference_counts_every_experiment_once():
    one = {"a": seeds(40, 40, 40), "b": seeds(41, 41, 41)}
    other = {"a": seeds(50), "b": seeds(54)}
    choice = choose(table_of(one, other))
    assert set(choice.loc[choice["method"] == "b", "mean_difference"]) == {2.5}


def test_seeds_are_paired_by_number_not_by_order():
    rows = table_of({"a": seeds(1, 2, 3), "b": {2: 3.5, 0: 1.5, 1: 2.5}})
    ended = rows[rows["step"] == 1]
    spread = paired_difference(ended, "b", "a")
    assert (spread.mean, spread.deviation, spread.count) == (0.5, 0, 3)


@pytest.mark.parametrize(
    ("values", "positive", "negative"),
    [
        ([1.0, 2.0, 3.0], True, False),  # 2 ± 1
        ([0.0, 1.0, 2.0], False, False),  # 1 ± 1
        ([-0.0, -1.0, -2.0], False, False),  # -1 ± 1: not by more than one
        ([-1.0, -2.0, -3.0], False, True),
        ([-0.1], False, True),  # one seed: any loss counts
        ([0.1], False, False),  # one seed: no gain is sure
        ([], False, False),
    ],
)
def test_signs_of_differences(values, positive, negative):
    spread = Spread.of(values)
    assert (spread.is_positive, spread.is_negative) == (positive, negative)


def test_a_spread_as_text():
    assert Spread.of([1.0, 2.0]).text == "1.5 ± 0.7"
    assert Spread.of([-0.04]).text == "0.0"
    assert Spread.of([-1.0]).text == "−1.0"
    assert Spread.of([math.nan]).text == "–"


# --- the rule ------------------------------------------------------------------------


def test_the_largest_mean_difference_is_chosen():
    runs = {"a": FIRST, "b": seeds(41, 43, 42), "c": seeds(42, 44, 43)}
    assert chosen_method(choose(table_of(runs))) == "c"


def test_the_first_method_stays_if_none_is_better():
    choice = choose(table_of({"a": FIRST, "b": FIRST, "c": seeds(39, 41, 40)}))
    assert chosen_method(choice) == "a"
    assert row(choice, "a")["reason"] == "reference"
    assert row(choice, "b")["reason"] == "mean difference not above 0"
    assert row(choice, "c")["reason"] == "below the reference: pets 1-1 overlap"


def test_of_equal_alternatives_the_first_is_chosen():
    same = seeds(41, 43, 42)
    for names in (["b", "c"], ["c", "b"]):
        choice = choose(table_of({"a": FIRST, **dict.fromkeys(names, same)}))
        assert chosen_method(choice) == names[0]


def test_a_loss_on_one_dataset_outweighs_any_gain_on_another():
    gain, loss = seeds(50, 52, 51), seeds(38, 40, 39)
    choice = choose(table_of({"a": FIRST, "b": gain}, {"a": FIRST, "b": loss}))
    assert row(choice, "b")["mean_difference"] == pytest.approx(4)
    assert row(choice, "b")["reason"] == "below the reference: cars 1-1 overlap"
    assert chosen_method(choice) == "a"


def test_a_loss_within_one_deviation_is_allowed():
    gain, level = seeds(50, 52, 51), seeds(37, 43, 40)  # -3, 1, -1: -1 ± 2
    choice = choose(table_of({"a": FIRST, "b": gain}, {"a": FIRST, "b": level}))
    assert row(choice, "b", "cars")["difference"] == pytest.approx(-1)
    assert chosen_method(choice) == "b"


def test_one_seed_must_not_lose_at_all():
    gain, loss = seeds(50), seeds(39.9)
    one = seeds(40)
    choice = choose(table_of({"a": one, "b": gain}, {"a": one, "b": loss}))
    assert chosen_method(choice) == "a"
    assert math.isnan(row(choice, "b")["difference_sd"])
    choice = choose(table_of({"a": one, "b": gain}, {"a": one, "b": one}))
    assert chosen_method(choice) == "b"


def test_joint_is_no_alternative():
    runs = {"joint": seeds(90, 90, 90), "a": FIRST, "mine": seeds(80, 80, 80)}
    rows = table_of(runs)
    assert set(choose(rows)["method"]) == {"a", "mine"}
    only = choose(rows, without=["joint", "mine"])
    assert set(only["method"]) == {"a"} and chosen_method(only) == "a"


def test_the_reference_may_be_named():
    rows = table_of({"a": FIRST, "b": seeds(39, 41, 40)})
    choice = choose(rows, reference="b")
    assert chosen_method(choice) == "a"
    assert row(choice, "b")["reason"] == "reference"
    with pytest.raises(ValueError, match="a reference of a, b, but got 'c'"):
        choose(rows, reference="c")


# --- what is refused -----------------------------------------------------------------


def test_a_method_that_a_dataset_lacks_is_refused_by_run():
    rows = table_of({"a": FIRST, "b": FIRST}, {"a": seeds(1, 2)})
    with pytest.raises(ValueError) as refused:
        choose(rows)
    message = str(refused.value)
    assert "missing: cars 1-1 overlap b seed 0; cars 1-1 overlap b seed 1." in message
    assert "--without" in message


def test_a_seed_that_a_method_lacks_is_refused():
    with pytest.raises(ValueError, match="missing: pets 1-1 overlap b seed 2"):
        choose(table_of({"a": FIRST, "b": seeds(1, 2)}))


def test_unfinished_runs_are_refused():
    rows = table_of({"a": FIRST, "b": FIRST})
    cut = rows["method"].eq("b") & rows["seed"].eq(1) & rows["step"].eq(1)
    with pytest.raises(ValueError, match="unfinished: pets 1-1 overlap b seed 1"):
        choose(rows[~cut])


def test_runs_that_only_joint_has_finished_are_refused():
    rows = table_of({"a": seeds(1), "joint": seeds(2)})
    with pytest.raises(ValueError, match="unfinished: pets 1-1 overlap a seed 0"):
        choose(rows[rows["method"].eq("joint") | rows["step"].eq(0)])


def test_many_missing_runs_are_counted():
    many = dict.fromkeys(range(30), 1.0)
    with pytest.raises(ValueError, match="and 10 more"):
        choose(table_of({"a": many, "b": many}, {"a": many}))


def test_an_unclear_reference_is_refused():
    rows = table_of({"a": FIRST, "b": FIRST}, {"b": FIRST, "a": FIRST})
    with pytest.raises(ValueError, match=r"but got a, b. Name it with --reference"):
        choose(rows)


def test_only_joint_is_refused():
    with pytest.raises(ValueError, match="Expected the results of alternatives"):
        choose(table_of({"joint": FIRST}))


def test_a_run_with_two_results_is_refused(tmp_path):
    one = write(table_of({"a": seeds(40)}), tmp_path / "one.csv")
    other = write(table_of({"a": seeds(41)}), tmp_path / "other.csv")
    with pytest.raises(ValueError, match="several for pets 1-1 overlap a seed 0"):
        read_summaries([one, other])
    assert len(read_summaries([one, one])) == 2  # two steps, each once


# --- the file and the command --------------------------------------------------------


def test_the_file_has_a_row_per_method_and_experiment(tmp_path):
    runs = {"a": FIRST, "b": seeds(41, 43, 42)}
    write_choice(choose(table_of(runs, runs)), tmp_path / "choice.csv")
    table = pd.read_csv(tmp_path / "choice.csv")
    assert list(table) == [
        *("dataset", "task", "setting", "method", "seeds"),
        *("old", "old_sd", "new", "new_sd", "all", "all_sd"),
        *("difference", "difference_sd", "mean_difference", "chosen", "reason"),
    ]
    assert list(zip(table["method"], table["dataset"], strict=True)) == [
        *(("a", "pets"), ("a", "cars"), ("b", "pets"), ("b", "cars"))
    ]
    assert list(table["chosen"]) == ["no", "no", "yes", "yes"]


def run_command(capsys, *words) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        cli.main(["choose", *map(str, words)])
    return ended.value.code, *capsys.readouterr()


def test_the_command_joins_summaries(tmp_path, capsys):
    runs = {"a": FIRST, "b": seeds(41, 43, 42), "mine": seeds(1, 1, 1)}
    paths = [
        write(summary(runs, dataset=name), tmp_path / name / "summary.csv")
        for name in ("pets_selection", "cars_selection")
    ]
    out = tmp_path / "choice.csv"
    status, printed, _ = run_command(capsys, *paths, "-o", out, "--without", "mine")
    assert status == 0
    assert printed.endswith("Chosen: b\n")
    assert "1.0 ± 0.0" in printed
    assert set(pd.read_csv(out)["dataset"]) == {"pets_selection", "cars_selection"}
    assert "mine" not in out.read_text()


def test_images_that_are_not_held_out_are_named():
    choice = choose(table_of({"a": FIRST, "b": FIRST}))
    assert "are not held out: pets." in describe_choice(choice)


def test_the_command_without_all_runs_is_an_error(tmp_path, capsys):
    rows = table_of({"a": FIRST, "b": seeds(1)})
    path = write(rows, tmp_path / "summary.csv")
    status, printed, said = run_command(capsys, path, "-o", tmp_path / "choice.csv")
    assert (status, printed) == (1, "")
    assert said.startswith("Error: Expected every method with every seed")
    assert not (tmp_path / "choice.csv").exists()


def test_something_else_than_a_summary_is_an_error(tmp_path, capsys):
    path = tmp_path / "summary.csv"
    path.write_text("method,seed\na,0\n")
    status, _, said = run_command(capsys, path)
    assert status == 1 and "dataset, task, setting" in said


# --- the rule of the workflow --------------------------------------------------------

CONFIG = """\
datasets: { digits: { kind: digits, train: 40, val: 10 } }
experiments:
  - { dataset: digits, task: 6-2, methods: [barm, mib, everything] }
methods: { everything: { based_on: joint } }
"""
CHOICE = "results/reports/config/choice.csv"


def test_the_workflow_makes_the_choice_from_its_summary(tmp_path):
    (tmp_path / "config.yaml").write_text(CONFIG)
    assert "choose" not in jobs(tmp_path)  # only on request
    assert jobs(tmp_path, "--", CHOICE)["choose"] == 1
    runs = {"barm": FIRST, "mib": seeds(41, 43, 42), "everything": seeds(90, 90, 90)}
    write(summary(runs), tmp_path / "results/reports/config/summary.csv")
    snakemake(tmp_path, "--allowed-rules", "choose", "--", CHOICE)
    table = pd.read_csv(tmp_path / CHOICE)
    assert dict(zip(table["method"], table["chosen"], strict=True)) == {
        "barm": "no",
        "mib": "yes",
    }


@pytest.mark.skipif(
    "selection" not in SCHEMA["properties"], reason="needs the key `selection`"
)
def test_with_held_out_images_the_choice_is_part_of_the_results(tmp_path):
    (tmp_path / "config.yaml").write_text(f"{CONFIG}selection: 0.2\n")
    assert jobs(tmp_path)["choose"] == 1
