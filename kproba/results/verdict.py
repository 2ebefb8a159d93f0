"""What an experiment shows, in one or two sentences made from its numbers."""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import pandas as pd
from markupsafe import Markup

from kproba.results import measures
from kproba.results.cells import fixed, percent_of

FORGETTING = "forgetting"
FINETUNE = "finetune"
FIXED = "\u00a0"  # a space at which no line ends
SPOKEN = {FINETUNE: "fine-tuning"}
AT_ONCE = "trained on everything at once"


@dataclass(frozen=True)
class Score:
    """`all` of a method after the last step.

    Attributes:
        method: Its name.
        mean: Percent, mean over seeds.
        deviation: Standard deviation over seeds; NaN for one seed.
        seeds: How many.
        forgotten: Points; NaN where it is not defined.
    """

    method: str
    mean: float
    deviation: float
    seeds: int
    forgotten: float

    @property
    def number(self) -> str:
        """The mean, with the deviation where there are several seeds."""
        if math.isnan(self.deviation):
            return fixed(self.mean)
        return f"{fixed(self.mean)}{FIXED}±{FIXED}{fixed(self.deviation)}"

    @property
    def name(self) -> Markup:
        """The method in a sentence."""
        if self.method in SPOKEN:
            return Markup('<b class="whole">{}</b>').format(SPOKEN[self.method])
        return Markup("<b>{}</b>").format(self.method)


@dataclass(frozen=True)
class Verdict:
    """The message of an experiment.

    Attributes:
        lead: One or two sentences, as HTML.
        notes: Sentences that the reader needs to judge it, as plain text.
        best: The best method that learns step by step; None without one.
    """

    lead: Markup
    notes: Sequence[str]
    best: str | None

    @property
    def text(self) -> str:
        """The lead without markup."""
        return self.lead.striptags()


def read_scores(last: pd.DataFrame) -> list[Score]:
    """Scores of all methods that were evaluated after the last step, the best first.

    Args:
        last: The last step of summary.csv.
    """
    scores = []
    for method, runs in last.groupby("method", sort=False):
        values = runs[measures.ALL.name].astype(float).dropna()
        if len(values):
            forgotten = math.nan
            if FORGETTING in runs:
                forgotten = float(runs[FORGETTING].astype(float).mean())
            mean, spread = float(values.mean()), float(values.std())
            scores.append(Score(str(method), mean, spread, len(values), forgotten))
    return sorted(scores, key=lambda score: -score.mean)


def give_verdict(
    last: pd.DataFrame,
    joint: Collection[str],
    *,
    absent: Sequence[str] = (),
    left_out: bool = False,
) -> Verdict:
    """The verdict of an experiment.

    Args:
        last: The last step of summary.csv.
        joint: Methods that are trained on everything at once.
        absent: Classes that no validation image shows.
        left_out: Whether these are left out of the means.
    """
    scores = read_scores(last)
    steps = int(last["step"].max()) + 1 if len(last) else 0
    levels = [score for score in scores if score.method in joint]
    ranked = [score for score in scores if score.method not in joint]
    level = levels[0] if levels else None
    if ranked:
        lead = _first_sentence(ranked, level, steps) + _second_sentence(ranked, steps)
    elif level:
        lead = level.name + f", {AT_ONCE}, reaches {level.number}{FIXED}mIoU."
    else:
        lead = Markup("There is no result after the last step yet.")
    notes = [*_note_seeds(scores), *_note_absent(absent, left_out)]
    return Verdict(lead, notes, ranked[0].method if ranked else None)


def _first_sentence(ranked: Sequence[Score], level: Score | None, steps: int) -> Markup:
    best = ranked[0]
    when = f"After {steps} steps " if steps > 1 else "After one step "
    text = Markup(when) + best.name + f" reaches {best.number}{FIXED}mIoU"
    if level is not None:
        text += _compare(best, level)
    return text + "."


def _compare(best: Score, level: Score) -> Markup:
    """The best method against the best joint training, which it may exceed."""
    difference = best.mean - level.mean
    points = fixed(abs(difference))
    if points == "0.0":
        how = "as much as"
    elif difference > 0:
        how = f"{points} {'point' if points == '1.0' else 'points'} more than"
    elif level.mean <= 0:
        return Markup("")
    else:
        how = f"{percent_of(100 * best.mean / level.mean)}{FIXED}% of"
    rest = f" ({fixed(level.mean)}), which is {AT_ONCE}"
    return Markup(f", {how} ") + level.name + rest


def _second_sentence(ranked: Sequence[Score], steps: int) -> Markup:
    best, others = ranked[0], ranked[1:]
    parts = []
    if steps > 1 and not math.isnan(best.forgotten):
        parts.append(Markup(_forgetting(best.forgotten)))
    floor = [score for score in others if score.method == FINETUNE]
    rest = [score for score in others if score.method != FINETUNE]
    if rest:
        of = f"the second of {len(ranked)} methods" if len(ranked) > 10 else "the next"
        parts.append(
            Markup(f"{of}, ") + rest[0].name + f", reaches {fixed(rest[0].mean)}"
        )
    if floor:
        parts.append(floor[0].name + f" ends at {fixed(floor[0].mean)}")
    if not parts:
        return Markup("")
    return " " + _capital(Markup("; ").join(parts)) + "."


def _forgetting(points: float) -> str:
    text = fixed(abs(points))
    if text == "0.0":
        return "it forgot nothing"
    if points < 0:
        return f"it forgot nothing: earlier classes gained {text} points"
    return f"it forgot {text} {'point' if text == '1.0' else 'points'}"


def _capital(text: Markup) -> Markup:
    """The text with a capital first letter, unless it begins with a method's name."""
    if text.startswith("<b>"):
        return text
    start = text.index(">") + 1 if text.startswith("<") else 0
    return text[:start] + text[start : start + 1].upper() + text[start + 1 :]


def _note_seeds(scores: Sequence[Score]) -> list[str]:
    counts = {score.seeds for score in scores}
    if max(counts, default=1) == 1:
        return []
    if len(counts) == 1:
        return [f"Means ± standard deviations over {counts.pop()} seeds."]
    return [
        f"Means ± standard deviations over up to {max(counts)} seeds; "
        "not all methods have the same number of seeds."
    ]


def _note_absent(absent: Sequence[str], left_out: bool) -> list[str]:
    if not absent:
        return []
    listed = ", ".join(absent)
    effect = (
        "These classes are left out of the means."
        if left_out
        else "Their IoU counts as 0 in the means."
    )
    return [f"No validation image shows {listed}. {effect}"]
