"""Choosing among alternatives by held-out images: choice.csv.

The rule. The first method of the experiments is the reference. For every other method,
`all` after the last step is compared with that of the reference, seed by seed. A method
is better than the reference only if

1. the mean of its differences over all experiments is above 0, and
2. in no experiment it is below the reference by more than one standard deviation of the
   differences.

An experiment is a dataset, a task and a setting, and all count the same. A single seed
has no deviation: then a method must not be below the reference at all. Of the methods
that are better, the one with the largest mean difference is chosen, and of equal ones
the first. If there is none, the reference stays.

The choice is honest only if the images are not those of the final numbers. With the key
`selection`, a share of the training images is held out and takes the place of the
validation images.
"""

from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from kproba.methods.builtin import METHODS
from kproba.results.comparison import (
    ALL,
    RUN,
    Spread,
    describe_run,
    experiments,
    last_steps,
    mean_of,
    paired_difference,
    unfinished_runs,
)
from kproba.results.tables import EXPERIMENT
from kproba.runtime.files import atomic_path
from kproba.runtime.records import ArtifactError
from kproba.runtime.tables import read_table

# Trained on everything at once, so no alternative.
JOINT = tuple(name for name, method in METHODS.items() if method.joint)
MEANS = ("old", "new", ALL)
HELD_OUT = "_selection"  # end of the names of datasets with held-out images
MOST_NAMED = 20  # runs in a message


def read_summaries(paths: Sequence[str | Path]) -> pd.DataFrame:
    """Read one or more summary.csv as one table.

    A run may be in several of them if its numbers are the same.

    Args:
        paths: The files; datasets may be run in several folders.

    Raises:
        FileNotFoundError: There is no such file.
        ArtifactError: A file is no such table, or two files have other numbers for the
            same run. It is a ValueError.
    """
    columns: dict[str, type] = dict.fromkeys((*EXPERIMENT, "method"), str)
    columns |= {"seed": int, "step": int, **dict.fromkeys(MEANS, float)}
    tables = [read_table(path, columns)[list(columns)] for path in paths]
    joined = pd.concat(tables, ignore_index=True).drop_duplicates(ignore_index=True)
    twice = joined[joined.duplicated([*RUN, "step"])]
    if len(twice):
        raise ArtifactError(
            f"Expected the same numbers of a run in {', '.join(map(str, paths))}, but "
            f"got several for {describe_run(twice.iloc[0][RUN])}. Name only the "
            f"summaries that belong together."
        )
    return joined


def choose(
    summary: pd.DataFrame,
    *,
    reference: str | None = None,
    without: Collection[str] = JOINT,
) -> pd.DataFrame:
    """Compare all methods with the reference, and choose one by the rule above.

    Args:
        summary: Rows of summary.csv of all experiments.
        reference: The method that stays unless another one is better; None: the first
            one of every experiment.
        without: Methods that are no alternatives, such as `joint`.

    Returns:
        A row per method and experiment: its names, `seeds`, the means `old`, `new` and
        `all` in percent with their deviations (`old_sd`, ..), `difference` to the
        reference in points with `difference_sd`, `mean_difference` over all
        experiments, `chosen` ("yes" or "no"), and `reason` why it was not better.

    Raises:
        ArtifactError: A run is missing or unfinished, or the reference is not clear. It
            is a ValueError.
    """
    ended = last_steps(summary)  # `joint` has the last step, even if no other run has
    summary, ended = (
        table[~table["method"].isin(list(without))] for table in (summary, ended)
    )
    if summary.empty:
        raise ArtifactError(
            f"Expected the results of alternatives, but got none besides "
            f"{', '.join(without) or 'an empty table'}. Name a summary.csv with at "
            f"least one other method."
        )
    _refuse_missing_runs(summary, ended)
    methods = list(dict.fromkeys(summary["method"]))
    reference = _find_reference(summary, reference)
    return pd.DataFrame(_compare(ended, methods, reference))


def _compare(
    ended: pd.DataFrame, methods: Sequence[str], reference: str
) -> list[dict[str, object]]:
    """The rows of the table of `choose`."""
    differences = {
        method: {
            key: paired_difference(rows, method, reference)
            for key, rows in experiments(ended)
        }
        for method in methods
    }
    averages = {
        method: float(np.mean([entry.mean for entry in by_experiment.values()]))
        for method, by_experiment in differences.items()
    }
    reasons = {
        method: "reference"
        if method == reference
        else _reason(differences[method], averages[method])
        for method in methods
    }
    better = [method for method in methods if not reasons[method]]
    chosen = max(better, key=averages.__getitem__, default=reference)
    return [
        {
            **dict(zip(EXPERIMENT, key, strict=True)),
            **_row(rows, method, differences[method][key]),
            "mean_difference": averages[method],
            "chosen": "yes" if method == chosen else "no",
            "reason": reasons[method],
        }
        for method in methods
        for key, rows in experiments(ended)
    ]


def _row(rows: pd.DataFrame, method: str, difference: Spread) -> dict[str, object]:
    """The numbers of a method in an experiment."""
    values: dict[str, object] = {"method": method}
    values["seeds"] = int((rows["method"] == method).sum())
    for name in MEANS:
        spread = mean_of(rows, method, name)
        values |= {name: spread.mean, f"{name}_sd": spread.deviation}
    return values | {
        "difference": difference.mean,
        "difference_sd": difference.deviation,
    }


def _reason(differences: dict[tuple[str, ...], Spread], average: float) -> str:
    """Why a method is not better than the reference; "" if it is."""
    below = [" ".join(key) for key, spread in differences.items() if spread.is_negative]
    if below:
        return f"below the reference: {', '.join(below)}"
    return "" if average > 0 else "mean difference not above 0"


def _find_reference(summary: pd.DataFrame, reference: str | None) -> str:
    """The reference by its name, or the first method of all experiments."""
    if reference is not None:
        known = list(dict.fromkeys(summary["method"]))
        if reference not in known:
            raise ArtifactError(
                f"Expected a reference of {', '.join(known)}, but got '{reference}'. "
                f"Correct the name."
            )
        return reference
    first = {str(rows["method"].iloc[0]) for _, rows in experiments(summary)}
    if len(first) > 1:
        raise ArtifactError(
            f"Expected the same first method in all experiments, which is the "
            f"reference, but got {', '.join(sorted(first))}. Name it with --reference."
        )
    return first.pop()


def _refuse_missing_runs(summary: pd.DataFrame, ended: pd.DataFrame) -> None:
    """Every method needs every seed of every experiment, up to the last step."""
    unfinished = unfinished_runs(summary, ended)
    made = set(summary[RUN].itertuples(index=False, name=None))
    methods = list(dict.fromkeys(summary["method"]))
    missing = [
        describe_run((*key, method, seed))
        for key, rows in experiments(summary)
        for method in methods
        for seed in sorted(rows["seed"].unique())
        if (*key, method, seed) not in made
    ]
    faults = [
        f"{what}: {'; '.join(runs[:MOST_NAMED])}"
        + (f" and {len(runs) - MOST_NAMED} more" if len(runs) > MOST_NAMED else "")
        for what, runs in (("missing", missing), ("unfinished", unfinished))
        if runs
    ]
    if faults:
        raise ArtifactError(
            f"Expected every method with every seed in every experiment, but got "
            f"{', and '.join(faults)}. Run them, or leave the method out: --without."
        )


def chosen_method(choice: pd.DataFrame) -> str:
    """The method that a table of `choose` has chosen."""
    return str(choice.loc[choice["chosen"] == "yes", "method"].iloc[0])


def write_choice(choice: pd.DataFrame, path: str | Path) -> None:
    """Write a table of `choose` as CSV, numbers with four digits after the point."""
    with atomic_path(path) as temporary:
        choice.to_csv(temporary, index=False, float_format="%.4f")


def describe_choice(choice: pd.DataFrame) -> str:
    """A table of `choose` as text, and the method that was chosen."""
    lines = []
    width = max(len(name) for name in choice["method"]) + 2
    titles = f"{'seeds':>6}" + "".join(f"{name:>14}" for name in (*MEANS, "difference"))
    for key, rows in experiments(choice):
        lines += [f"{' '.join(key)}: percent", " " * width + titles]
        for row in rows.to_dict("records"):
            cells = [
                Spread(row[name], row[f"{name}_sd"], row["seeds"]).text
                for name in (*MEANS, "difference")
            ]
            numbers = "".join(f"{cell:>14}" for cell in cells)
            lines.append(f"{row['method']:<{width}}{row['seeds']:>6}{numbers}")
        lines.append("")
    lines.append("Mean difference over all experiments:")
    for row in choice.drop_duplicates("method").to_dict("records"):
        average = Spread(row["mean_difference"], float("nan"), 1).text
        reason = f"   {row['reason']}" if row["reason"] else ""
        lines.append(f"{row['method']:<{width}}{average:>6}{reason}")
    lines += ["", f"Chosen: {chosen_method(choice)}"]
    seen = [name for name in dict.fromkeys(choice["dataset"]) if not _is_held_out(name)]
    if seen:
        lines.append(
            f"The names of these datasets do not end in {HELD_OUT}, so their images "
            f"are not held out: {', '.join(seen)}. Do not report results on the images "
            f"that a choice was made with."
        )
    return "\n".join(lines)


def _is_held_out(dataset: str) -> bool:
    return dataset.endswith(HELD_OUT)
