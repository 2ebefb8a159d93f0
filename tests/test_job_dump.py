"""The plan of every shipped configuration is the reviewed one."""

import difflib

import pytest
from job_dump import COMPARISON, CONFIG, DUMP, SHIPPED, dump

pytestmark = pytest.mark.workflow
SHOWN = 200  # lines of a difference


def test_every_shipped_configuration_is_in_the_dump():
    """Or it is a comparison: test_comparisons.py plans all of those."""
    named = {path for files in SHIPPED.values() for path in files}
    assert named | set(COMPARISON.glob("*.yaml")) == set(CONFIG.rglob("*.yaml"))
    assert set(CONFIG.glob("*.yaml")) <= named


def test_jobs_of_the_shipped_configurations_are_the_reviewed_ones():
    reviewed = DUMP.read_text(encoding="utf-8").splitlines()
    lines = list(
        difflib.unified_diff(
            reviewed, dump().splitlines(), "reviewed", "now", lineterm="", n=1
        )
    )
    more = len(lines) - SHOWN
    shown = "\n".join([*lines[:SHOWN], *([f"and {more} more"] if more > 0 else [])])
    assert not lines, (
        f"The jobs, their inputs or their settings are not as in {DUMP.name}. If that "
        f"is meant, run `python tests/job_dump.py` and review the change:\n{shown}"
    )
