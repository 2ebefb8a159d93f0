"""The kinds of tables in documents; `kproba.results.documents` says how they are named.

Every function here takes the measured results, the names and the options of a line, and
returns Markdown. The cells are means over seeds in percent, with the standard deviation
where there are several seeds. Differences are taken seed by seed
(`kproba.results.comparison`).
"""

import math
from collections.abc import Callable, Mapping, Sequence

from kproba.results import measures
from kproba.results.choice import MEANS
from kproba.results.comparison import (
    ALL,
    Spread,
    experiments,
    mean_of,
    paired_difference,
)
from kproba.results.document_cells import (
    best_method,
    by_mean,
    count_seeds,
    describe_lead,
    difference_cell,
    expect_names,
    in_units,
    looks_best,
    markdown,
    of_other_machine,
    pick_columns,
    pick_methods,
    share_cell,
    signed,
)
from kproba.results.measured import LIST_OF_FILES, REMEDY, Measured, Results
from kproba.results.tables import EXPERIMENT
from kproba.runtime.records import ArtifactError
from kproba.runtime.tables import read_table

Options = Mapping[str, str]
OURS = "kproba"  # the method that others are compared with
STEPWISE = ("avg", "forgetting")  # not defined for what is trained at once


def method_tables(measured: Measured, names: Sequence[str], options: Options) -> str:
    """A row per method for each experiment of a file; a memory has its own table.

    Options: `dataset`, `task` and `setting` of the experiment; `columns`, measures;
    `methods`, which ones; `reference` of the differences; `costs`, a file with numbers
    per method; `sort=file` keeps the order of the file, or of `methods`.
    """
    (name,) = expect_names(names, 1, "a results file")
    chosen = [
        entry
        for entry in measured.results(name)
        if all(
            options.get(name, value) == value
            for name, value in zip(EXPERIMENT, entry.key, strict=True)
        )
    ]
    if not chosen:
        raise ArtifactError(
            f"Expected an experiment with {dict(options)} in {measured.path(name)}, "
            f"but got none. Correct {', '.join(EXPERIMENT)}."
        )
    blocks = []
    for results in chosen:
        if len(chosen) > 1:
            blocks.append(f"{results.title}:")
        blocks += _tables_of_experiment(measured, results, options)
    return "\n\n".join(blocks)


def _tables_of_experiment(
    measured: Measured, results: Results, options: Options
) -> list[str]:
    """One table, a second one for methods with a memory, and the notes below."""
    methods = pick_methods(options.get("methods"), results)
    kinds = {method: measured.method(method).kind for method in methods}
    if options.get("sort") != "file":
        methods = by_mean(results, methods)
    joint = [method for method in methods if kinds[method] == "joint"]
    plain = [m for m in methods if kinds[m] in ("method", "variant")]
    memory = [method for method in methods if kinds[method] == "memory"]
    reference = pick_methods(options.get("reference", OURS), results)[0]
    starred = of_other_machine(results, reference)
    blocks = []
    for ranked, more in ((plain, joint), (memory, [])):
        if ranked or more:
            if ranked is memory:
                blocks.append("With a memory of old images:")
            table = _MethodTable(measured, results, options, reference, starred)
            blocks.append(table.render(ranked, more))
    if starred.intersection(methods):
        blocks.append(
            f"\\* On another machine than {measured.shown(reference)}, so its seeds "
            f"are not exactly the same."
        )
    return blocks


class _MethodTable:
    """A table of the methods of an experiment."""

    def __init__(
        self,
        measured: Measured,
        results: Results,
        options: Options,
        reference: str,
        starred: set[str],
    ):
        self.measured, self.results = measured, results
        self.reference, self.starred = reference, starred
        self.columns = pick_columns(options.get("columns"), results)
        self.joint = best_method(measured, results, ("joint",))
        self.costs = options.get("costs")

    def render(self, ranked: Sequence[str], joint: Sequence[str]) -> str:
        """The table: ranked methods, of which the best is bold, then joint ones."""
        heads = ["method", *(measures.MEASURES[name].title for name in self.columns)]
        if self.joint:
            heads.append(f"% of {self.measured.shown(self.joint)}")
        heads.append(f"behind {self.measured.shown(self.reference)}")
        numbers = None
        if self.costs:
            numbers = self.measured.costs(self.costs, [*ranked, *joint])
            heads += [str(column).replace("_", " ") for column in numbers]
        best = looks_best(self.results, ranked)
        rows = []
        for method in (*ranked, *joint):
            cells = self._cells(method, method in best, method in joint)
            if numbers is not None:
                cells += [
                    in_units(float(value)) for value in numbers.loc[method].to_numpy()
                ]
            rows.append([*cells, str(count_seeds(self.results, method))])
        return markdown([*heads, "seeds"], rows)

    def _cells(self, method: str, is_best: bool, is_joint: bool) -> list[str]:
        ended = self.results.ended
        star = "*" if method in self.starred else ""
        name = self.measured.shown(method)
        cells = [_bold(name, is_best) + star]
        for column in self.columns:
            text = mean_of(ended, method, column).text
            if is_joint and column in STEPWISE:
                text = "–"
            cells.append(_bold(text, is_best and column == ALL))
        if self.joint:
            cells.append(share_cell(self.results, method, self.joint))
        return [*cells, difference_cell(self.results, self.reference, method)]


def summary_table(measured: Measured, names: Sequence[str], options: Options) -> str:
    """A row per experiment: reference, next best method without memory, best joint.

    The last columns say whether the reference is ahead of *every* other method without
    memory by more than one standard deviation of the differences seed by seed. Variants
    of a method are not counted. Option: `reference`.
    """
    reference = options.get("reference", OURS)
    heads = ["dataset and task", measured.shown(reference), "next best method"]
    heads += ["ahead by", "best joint", "% of it", "first by more than one sd", "seeds"]
    rows = []
    for results in _experiments(measured, names):
        pick_methods(reference, results)  # refuses an experiment without it
        ended = results.ended
        own = mean_of(ended, reference).text
        is_first, how = describe_lead(measured, results, reference)
        cells = [results.title, _bold(own, is_first)]
        other = best_method(measured, results, ("method",), without=reference)
        if other:
            level = mean_of(ended, other).text
            cells.append(f"{measured.shown(other)} {_bold(level, not is_first)}")
            cells.append(paired_difference(ended, reference, other).text)
        else:
            cells += ["–", "–"]
        joint = best_method(measured, results, ("joint",))
        if joint:
            level = f"{measured.shown(joint)} {mean_of(ended, joint).text}"
            cells += [level, share_cell(results, reference, joint)]
        else:
            cells += ["–", "–"]
        rows.append([*cells, how, str(count_seeds(results, reference))])
    return markdown(heads, rows)


def compare_table(measured: Measured, names: Sequence[str], options: Options) -> str:
    """`all` of some methods, a column per experiment; the best of a column is bold.

    Option: `methods`, in this order. The best is that of all methods without memory,
    also of those that are not shown.
    """
    listed = _experiments(measured, names)
    methods = options.get("methods", OURS).split(",")
    rows = []
    for method in methods:
        if all(method not in results.methods for results in listed):
            raise ArtifactError(
                f"Expected '{method}' in at least one comparison, but it is in none. "
                f"Correct the name, or copy its results to {measured.folder}."
            )
        cells = [measured.shown(method)]
        for results in listed:
            text = mean_of(results.ended, method).text
            best = best_method(measured, results, ("method",))
            cells.append(_bold(text, method == best))
        rows.append(cells)
    return markdown(["method", *(results.title for results in listed)], rows)


def table_of_method(measured: Measured, names: Sequence[str], options: Options) -> str:
    """A row per experiment that has the method. Option: `reference`."""
    method, *files = expect_names(names, 1, "a method", more=True)
    measured.method(method)
    reference = options.get("reference", OURS)
    listed = [r for r in _experiments(measured, files) if method in r.methods]
    if not listed:
        return "It has not been measured in these comparisons yet."
    heads = ["dataset and task", "old", "new", "all", "% of the best joint"]
    heads += [f"behind {measured.shown(reference)}", "seeds"]
    rows = []
    for results in listed:
        ended = results.ended
        cells = [results.title, *(mean_of(ended, method, name).text for name in MEANS)]
        joint = best_method(measured, results, ("joint",))
        cells.append(share_cell(results, method, joint) if joint else "–")
        cells.append(difference_cell(results, reference, method))
        rows.append([*cells, str(count_seeds(results, method))])
    return markdown(heads, rows)


def choice_table(measured: Measured, names: Sequence[str], options: Options) -> str:
    """The alternatives of a choice.csv: `all`, and the difference to the first one."""
    (name,) = expect_names(names, 1, "a choice file")
    words = ("dataset", "task", "setting", "method", "chosen", "reason")
    numbers = ("all", "all_sd", "difference", "difference_sd", "mean_difference")
    columns = {
        **dict.fromkeys(words, str),
        **dict.fromkeys(numbers, float),
        "seeds": int,
    }
    table = read_table(measured.path(name), columns, remedy=REMEDY)
    titles = [f"{key[0]} {key[1]}, {key[2]}" for key, _ in experiments(table)]
    rows = []
    for method, lines in table.groupby("method", sort=False):
        cells = [f"`{method}`"]
        is_reference = (lines["reason"] == "reference").all()
        for line in lines.to_dict("records"):
            value = Spread(line["all"], line["all_sd"], line["seeds"]).text
            change = Spread(line["difference"], line["difference_sd"], line["seeds"])
            cells.append(value if is_reference else f"{value} ({signed(change)})")
        average = Spread(lines["mean_difference"].iloc[0], math.nan, 1)
        cells.append("–" if is_reference else signed(average))
        chosen = lines["chosen"].iloc[0] == "yes"
        reason = str(lines["reason"].iloc[0])
        cells += ["**yes**" if chosen else "no", reason, str(lines["seeds"].min())]
        rows.append(cells)
    heads = ["alternative", *titles, "mean difference", "chosen", "note", "seeds"]
    return markdown(heads, rows)


def file_table(measured: Measured, names: Sequence[str], options: Options) -> str:
    """The list of the measured files.

    Raises:
        ArtifactError: A file is not listed, or a listed one is not there.
    """
    expect_names(names, 0, "no name")
    table = measured.files()
    listed = set(table["file"])
    there = {path.name for path in measured.folder.glob("*.csv")} - {LIST_OF_FILES}
    if wrong := listed ^ there:
        raise ArtifactError(
            f"Expected all CSV files of {measured.folder} in its {LIST_OF_FILES} and "
            f"no others, but {', '.join(sorted(wrong))} differ. Add or delete their "
            f"lines."
        )
    rows = [
        [f"[{file}]({file})", what, version, command]
        for file, what, version, command in table[
            ["file", "what", "version", "command"]
        ].itertuples(index=False, name=None)
    ]
    return markdown(["file", "contents", "version", "made by"], rows)


def _bold(text: str, is_best: bool) -> str:
    return f"**{text}**" if is_best else text


def _experiments(measured: Measured, names: Sequence[str]) -> list[Results]:
    """The experiments of some files, or of all comparisons."""
    if not names:
        return measured.comparisons()
    return [results for name in names for results in measured.results(name)]


# Name of each kind in a document: its function and its options.
Renderer = Callable[[Measured, Sequence[str], Options], str]
TABLES: dict[str, tuple[Renderer, tuple[str, ...]]] = {
    "table": (
        method_tables,
        (*EXPERIMENT, "columns", "methods", "reference", "costs", "sort"),
    ),
    "summary": (summary_table, ("reference",)),
    "compare": (compare_table, ("methods",)),
    "method": (table_of_method, ("reference",)),
    "choice": (choice_table, ()),
    "files": (file_table, ()),
}
