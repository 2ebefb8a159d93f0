"""Small configurations for the tests of the plan."""

import copy
from pathlib import Path
from typing import Any

from kproba.plan.plan import Plan
from kproba.plan.run import Run
from kproba.plan.schema import check, load_schema

ROOT = Path(__file__).parents[1]
SCHEMA_PATH = ROOT / "workflow" / "schemas" / "config.schema.yaml"
SCHEMA = load_schema(SCHEMA_PATH)
SHIPPED = sorted((ROOT / "config").glob("*.yaml"))

MINIMAL = {
    "datasets": {"tiny": {"kind": "digits"}},
    "experiments": [{"dataset": "tiny", "task": "6-2"}],
}


def config(**changes: Any) -> dict[str, Any]:
    """MINIMAL with whole top-level keys replaced."""
    return {**copy.deepcopy(MINIMAL), **copy.deepcopy(changes)}


def checked(**changes: Any) -> dict[str, Any]:
    return check(config(**changes), SCHEMA_PATH)


def make_plan(**changes: Any) -> Plan:
    return Plan(checked(**changes))


def experiment(**changes: Any) -> dict[str, Any]:
    return {"experiments": [{**MINIMAL["experiments"][0], **changes}]}


def method(**changes: Any) -> dict[str, Any]:
    """A method of one's own, `mine`, used by the only experiment."""
    return {
        "methods": {"mine": {"based_on": "kproba", **changes}},
        **experiment(methods=["mine"]),
    }


def make_run(name: str = "kproba", task: str = "6-2", seed: int = 0) -> Run:
    return Run("tiny", task, "overlap", name, seed)
