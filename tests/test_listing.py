"""Plans of Snakemake in short."""

import logging
from enum import StrEnum

import pytest

from kproba.plan.listing import PlannedJob, ShortLog, list_jobs, shorten


class Event(StrEnum):
    """As Snakemake's events: only their values are read."""

    JOB_INFO = "job_info"
    RUN_INFO = "run_info"


def job(rule="train_step", step=None, reason="Missing output files: x", **names):
    wildcards = {**names, **({} if step is None else {"step": str(step)})}
    content = {"rule_name": rule, "wildcards": wildcards, "reason": reason}
    return PlannedJob.from_record(content)


RUN = {"dataset": "voc", "task": "15-1", "setting": "overlap", "method": "barm"}


def test_steps_of_a_run_are_one_line():
    jobs = [job(step=step, **RUN, seed="0") for step in (3, 1, 2, 5)]
    _, line = list_jobs(jobs)
    assert line.split() == [
        *("train_step", "voc", "15-1-overlap", "barm", "seed0", "steps", "1-3,"),
        *("5:", "no", "result", "yet"),
    ]


def test_runs_rules_and_reasons_have_lines_of_their_own():
    jobs = [
        job(step=1, **RUN, seed="0"),
        job(step=1, **RUN, seed="1"),
        job("evaluate", step=1, **RUN, seed="0"),
        job(step=2, **RUN, seed="0", reason="Params have changed since"),
    ]
    lines = list_jobs(jobs)[1:]
    assert len(lines) == 4
    assert sum("a setting changed" in line for line in lines) == 1


def test_jobs_without_wildcards_are_listed():
    assert list_jobs([job("summarise")])[1:] == ["  summarise: no result yet"]


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        (
            "Missing output files: a; Input files updated by another job: b",
            "no result yet",
        ),
        (
            "Input files updated by another job: b",
            "its input is updated by another job",
        ),
        ("Updated input files: a/b.csv", "an input is newer"),
        (
            "Params have changed since last execution: before: a, now: b",
            "a setting changed",
        ),
        ("Forced execution", "forced"),
        ("Something else", "Something else"),
    ],
)
def test_reasons_are_in_words(reason, words):
    assert job(reason=reason).reason == words


def test_long_reasons_are_cut():
    files = ", ".join(
        f"results/voc/15-1/kproba/seed0/step{n}/model.json" for n in range(99)
    )
    text = shorten(f"Missing output files: {files}; Input files updated: {files}")
    assert len(text) <= 200
    assert text.startswith(
        "Missing output files: model.json, model.json, model.json and 96"
    )


def record(event, message, **attributes):
    made = logging.makeLogRecord({"msg": message, **attributes})
    made.event = event
    return made


def test_a_dry_run_lists_jobs_before_its_last_table():
    log = ShortLog(dry_run=True)
    first = {"rule_name": "evaluate", "wildcards": RUN, "reason": "Forced execution"}
    assert not log.filter(record(Event.JOB_INFO, None, **first))
    table = record(Event.RUN_INFO, "Job stats: 1")
    assert log.filter(table)
    assert table.msg.splitlines()[-1] == "Job stats: 1"
    assert "evaluate" in table.msg
    again = record(Event.RUN_INFO, "Job stats: 1")
    assert log.filter(again) and again.msg == "Job stats: 1"


def test_a_run_shows_every_job_with_a_short_reason():
    log = ShortLog(dry_run=False)
    shown = record(Event.JOB_INFO, None, reason=f"Missing output files: {'x, ' * 400}")
    assert log.filter(shown)
    assert len(shown.reason) <= 200


def test_other_records_pass_unchanged():
    plain = logging.makeLogRecord({"msg": "text"})
    assert ShortLog(dry_run=True).filter(plain) and plain.msg == "text"
