"""Rankings and cells for the tables in documents (`kproba.results.document_tables`)."""

import math
from collections.abc import Collection, Sequence

from kproba.results import measures
from kproba.results.cells import percent_of
from kproba.results.comparison import MINUS, Spread, mean_of, paired_difference
from kproba.results.measured import Measured, Results
from kproba.runtime.records import ArtifactError

UNITS = ((1e9, " G"), (1e6, " M"), (1e3, " k"))


def expect_names(
    names: Sequence[str], count: int, what: str, *, more: bool = False
) -> Sequence[str]:
    """The names of a line, if they are as many as expected.

    Args:
        names: What the line has.
        count: How many there should be.
        what: What they name, for the message.
        more: Whether there may be more.

    Raises:
        ArtifactError: There are others.
    """
    if len(names) < count or (len(names) > count and not more):
        got = " ".join(names) or "nothing"
        raise ArtifactError(f"Expected {what}, but got {got}. Correct the line.")
    return names


def pick_methods(listed: str | None, results: Results) -> list[str]:
    """The methods of a list with commas, or all.

    Raises:
        ArtifactError: The results do not have one.
    """
    if listed is None:
        return results.methods
    methods = listed.split(",")
    missing = [method for method in methods if method not in results.methods]
    if missing:
        raise ArtifactError(
            f"Expected the methods {', '.join(methods)} for {results.title} in "
            f"{results.source}, but {', '.join(missing)} is missing. The file has "
            f"{', '.join(results.methods)}. Copy its results, or correct the name."
        )
    return methods


def pick_columns(listed: str | None, results: Results) -> list[str]:
    """The measures of a list with commas, or all percentages that the file has.

    Raises:
        ArtifactError: The file does not have one, or it is no measure.
    """
    known = [
        name
        for name, measure in measures.MEASURES.items()
        if not isinstance(measure, measures.CostMeasure) and name in results.ended
    ]
    columns = known if listed is None else listed.split(",")
    missing = [name for name in columns if name not in known]
    if missing:
        raise ArtifactError(
            f"Expected the measures {', '.join(columns)} in {results.source}, but it "
            f"has only {', '.join(known)}. Correct the name, or copy a file "
            f"that has them."
        )
    return columns


def by_mean(results: Results, methods: Sequence[str]) -> list[str]:
    """Methods by their mean of `all`, the best first; equal ones keep their order."""

    def rank(method: str) -> float:
        mean = mean_of(results.ended, method).mean
        return math.inf if math.isnan(mean) else -mean

    return sorted(methods, key=rank)


def best_method(
    measured: Measured, results: Results, kinds: Collection[str], without: str = ""
) -> str | None:
    """The method of some kinds with the best mean of `all`; None without one.

    Args:
        measured: Knows the kinds.
        results: An experiment.
        kinds: Of `kproba.results.measured.KINDS`.
        without: A method that is left out.
    """
    methods = [
        method
        for method in results.methods
        if method != without and measured.method(method).kind in kinds
    ]
    return next(iter(by_mean(results, methods)), None)


def looks_best(results: Results, methods: Sequence[str]) -> set[str]:
    """The methods whose mean of `all` is the best with one digit after the point."""
    means = {method: mean_of(results.ended, method).mean for method in methods}
    numbers = [round(mean, 1) for mean in means.values() if not math.isnan(mean)]
    if not numbers:
        return set()
    return {method for method, mean in means.items() if round(mean, 1) == max(numbers)}


def describe_lead(
    measured: Measured, results: Results, reference: str
) -> tuple[bool, str]:
    """Whether a method is ahead of every other one, and by more than a deviation.

    Only methods without memory count, and no variants. The deviation is that of the
    differences seed by seed.

    Returns:
        Whether its mean of `all` is the largest; and "yes", or "no" with the reason.
    """
    others = {
        method: paired_difference(results.ended, reference, method)
        for method in by_mean(results, results.methods)
        if method != reference and measured.method(method).kind == "method"
    }
    if not others:
        return True, "–"
    mean = mean_of(results.ended, reference).mean
    ahead = [m for m in others if not mean_of(results.ended, m).mean < mean]
    if ahead:
        return False, f"no: {measured.shown(ahead[0])} is ahead"
    if few := [method for method, spread in others.items() if spread.count < 2]:
        return True, f"open: one seed of {measured.shown(few[0])}"
    close = [method for method, spread in others.items() if not spread.is_positive]
    if close:
        return True, f"no: {measured.shown(close[0])} is within one sd"
    return True, "yes"


def of_other_machine(results: Results, reference: str) -> set[str]:
    """The methods that ran on other machines than a method, as far as it is known."""
    if "machine" not in results.ended:
        return set()
    machines = results.ended.groupby("method")["machine"].agg(set)
    return {name for name in results.methods if machines[name] != machines[reference]}


def count_seeds(results: Results, method: str) -> int:
    """The number of seeds of a method."""
    return int((results.ended["method"] == method).sum())


def share_cell(results: Results, method: str, joint: str) -> str:
    """The mean of `all` as a share of that of a joint training."""
    mean, level = (mean_of(results.ended, name).mean for name in (method, joint))
    if math.isnan(mean) or not level > 0:
        return "–"
    return f"{percent_of(100 * mean / level)} %"


def difference_cell(results: Results, reference: str, method: str) -> str:
    """How much a method is behind the reference; of how many seeds if not of all."""
    if method == reference:
        return "–"
    behind = paired_difference(results.ended, reference, method)
    if behind.count == count_seeds(results, method) or not behind.count:
        return behind.text
    pairs = "one pair" if behind.count == 1 else f"{behind.count} pairs"
    return f"{behind.text} ({pairs})"


def signed(change: Spread) -> str:
    """A difference with its sign."""
    text = change.text
    return text if text.startswith((MINUS, "–", "0.0")) else f"+{text}"


def in_units(value: float) -> str:
    """A number of any size with three digits: "4.65 M", "0.0230"; "–" for none."""
    if math.isnan(value):
        return "–"
    for factor, unit in UNITS:
        if abs(value) >= factor:
            return f"{value / factor:.3g}{unit}"
    return f"{value:.3g}"


def markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [heads, *rows]
    text = [f"| {' | '.join(cells)} |" for cells in lines]
    return "\n".join([text[0], "|---" * len(heads) + "|", *text[1:]])
