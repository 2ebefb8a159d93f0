"""A short log for Snakemake: reasons in one line, and grouped jobs in dry runs.

A dry run (`-n`) of a large configuration has hundreds of jobs, and Snakemake names all
files of each. Here it gets one line per rule, run and reason, with the steps.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

LONGEST = 200  # characters of a reason
NAMED = 3  # files or rules that a reason names


@dataclass(frozen=True)
class PlannedJob:
    """A job of a dry run.

    Attributes:
        rule: Name of its rule.
        place: The wildcards without the step, such as dataset and method.
        step: The step; None for a job without.
        reason: Why it would run, in a few words.
    """

    rule: str
    place: str
    step: int | None
    reason: str

    @classmethod
    def from_record(cls, content: Mapping[str, Any]) -> "PlannedJob":
        """From the attributes of Snakemake's log record of a job."""
        wildcards = dict(content.get("wildcards") or {})
        step = wildcards.pop("step", None)
        names = {name: str(value) for name, value in wildcards.items()}
        if "setting" in names:
            names["task"] += f"-{names.pop('setting')}"
        if "seed" in names:
            names["seed"] = f"seed{names['seed']}"
        return cls(
            rule=str(content.get("rule_name", "")),
            place=" ".join(names.values()),
            step=int(step) if step is not None else None,
            reason=_in_words(str(content.get("reason", ""))),
        )


# Beginnings of Snakemake's reasons, and the words in the listing.
_WORDS = {
    "Missing output files": "no result yet",
    "Input files updated by another job": "its input is updated by another job",
    "Updated input files": "an input is newer",
    "Params have changed": "a setting changed",
    "Set of input files has changed": "other inputs",
    "Forced execution": "forced",
    "Software environment definition has changed": "another environment",
    "Incomplete": "incomplete",
}


def _in_words(reason: str) -> str:
    """Snakemake's reason in a few words; the first known beginning decides."""
    found = [(reason.find(text), words) for text, words in _WORDS.items()]
    found = [(place, words) for place, words in found if place >= 0]
    return min(found)[1] if found else shorten(reason, 60)


def shorten(reason: str, longest: int = LONGEST) -> str:
    """A reason with at most `NAMED` files in each of its lists."""
    parts = []
    for part in reason.split("; "):
        head, colon, files = part.partition(": ")
        names = [PurePosixPath(name).name for name in files.split(", ")]
        more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
        parts.append(f"{head}{colon}{', '.join(names[:NAMED])}{more}")
    text = "; ".join(parts)
    return text if len(text) <= longest else f"{text[: longest - 2]}.."


def list_jobs(jobs: Iterable[PlannedJob]) -> list[str]:
    """Lines of text: jobs of a rule and place together, with their steps.

    Args:
        jobs: The jobs in Snakemake's order.
    """
    groups: dict[tuple[str, str, str], list[int | None]] = {}
    for job in jobs:
        groups.setdefault((job.rule, job.place, job.reason), []).append(job.step)
    lines = ["Jobs that would run (rule, target, reason):"]
    for (rule, place, reason), steps in sorted(
        groups.items(), key=lambda item: (item[0][1], item[0][0], item[0][2])
    ):
        words = [rule, place, _steps_in_words(steps)]
        text = "  ".join(word for word in words if word)
        lines.append(f"  {text}: {reason}"[:250])
    return lines


class ShortLog(logging.Filter):
    """Shortens what Snakemake logs about jobs.

    A filter for the logger of Snakemake. It shortens records, and holds back those of a
    dry run until the last job is known. Unknown records pass unchanged.

    Args:
        dry_run: Whether this is a dry run.
    """

    def __init__(self, *, dry_run: bool):
        super().__init__()
        self.dry_run = dry_run
        self._planned: list[PlannedJob] = []

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a record is shown."""
        event = getattr(getattr(record, "event", None), "value", None)
        if event == "job_info":
            if self.dry_run:
                self._planned.append(PlannedJob.from_record(vars(record)))
                return False
            record.reason = shorten(str(getattr(record, "reason", "")))
        elif event == "run_info" and self._planned:
            lines = "\n".join(list_jobs(self._planned))
            record.msg = f"{lines}\n\n{record.msg}"
            self._planned = []
        return True


def shorten_log(*, dry_run: bool) -> None:
    """Let Snakemake's logger write short reasons and plans; once per process."""
    logger = logging.getLogger("snakemake.logging")
    for present in list(logger.filters):
        if isinstance(present, ShortLog):
            logger.removeFilter(present)
    logger.addFilter(ShortLog(dry_run=dry_run))


def _steps_in_words(steps: Sequence[int | None]) -> str:
    """Such as "step 2", "steps 1-5" or "steps 0, 2-3"; nothing without steps."""
    numbers = sorted({step for step in steps if step is not None})
    if not numbers:
        return ""
    ranges: list[list[int]] = []
    for number in numbers:
        if ranges and number == ranges[-1][-1] + 1:
            ranges[-1] = [ranges[-1][0], number]
        else:
            ranges.append([number])
    texts = ["-".join(map(str, pair)) for pair in ranges]
    return f"step{'s' if len(numbers) > 1 else ''} {', '.join(texts)}"
