"""The configurations of comparisons: each can be planned, and trains what it should."""

from pathlib import Path

import pytest
import yaml
from job_dump import write_class_lists

from kproba.plan.plan import Plan
from kproba.plan.schema import check, merged

ROOT = Path(__file__).parents[1]
SCHEMA = ROOT / "workflow" / "schemas" / "config.schema.yaml"
COMPARISONS = ROOT / "config" / "comparisons"
# The files that are named together; the other files are named after animals.yaml.
AFTER = {
    **{name: [name] for name in ("digits", "ablation", "glyphs", "animals")},
    "choice_msrc": ["animals", "msrc", "choice", "choice_msrc"],
}
NAMES = sorted(path.stem for path in COMPARISONS.glob("*.yaml"))

pytestmark = pytest.mark.usefixtures("schema_is_parsed_once")


@pytest.fixture
def plan_of(tmp_path, monkeypatch):
    """Plans a comparison as `--configfile` does: later files over earlier ones."""
    write_class_lists(tmp_path)
    monkeypatch.chdir(tmp_path)

    def make(name: str, **changes) -> Plan:
        names = AFTER.get(name, ["animals", name])
        config: dict = {}
        for each in names:
            text = (COMPARISONS / f"{each}.yaml").read_text(encoding="utf-8")
            config = merged(config, yaml.safe_load(text))
        return Plan(check({**config, **changes}, SCHEMA))

    return make


def networks(plan: Plan) -> set[str]:
    """The trained networks of the first seed, step 0 left out."""
    runs = [run for run in plan.runs if run.seed == plan.runs[0].seed]
    return {
        plan.result(run, step).model for run in runs for step in plan.steps(run)[1:]
    }


@pytest.mark.parametrize("name", NAMES)
def test_every_comparison_can_be_planned(plan_of, name):
    plan = plan_of(name)
    assert plan.results(plan.runs)
    chosen = plan_of(name, selection=0.2)
    assert len(chosen.runs) == len(plan.runs)
    assert all(run.dataset.endswith("_selection") for run in chosen.runs)


@pytest.mark.parametrize("name", ["choice", "choice_msrc", "kernel", "where_from"])
def test_alternatives_of_the_prediction_share_their_networks(plan_of, name):
    plan = plan_of(name)
    assert len(networks(plan)) == 2  # steps 1 and 2
    results = plan.results(plan.runs)
    assert len({result.evaluation for result in results if result.step}) == len(
        [result for result in results if result.step]
    )


def test_teachers_and_labels_are_trained_each(plan_of):
    """The bank teaches from step 2 on, so two alternatives share step 1."""
    assert len(networks(plan_of("teachers"))) == 2 * 5 - 1


def test_methods_with_a_memory_have_names_of_their_own(plan_of):
    plan = plan_of("animals_memory")
    for run in plan.runs:
        assert run.method.endswith("_m")
        assert plan.method(run.method).has_memory
