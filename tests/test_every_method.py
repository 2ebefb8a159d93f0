"""Every method of the package through the test configuration, with one later step."""

import math
from pathlib import Path

import pandas as pd
import pytest
import yaml
from snakemake_calls import ROOT, jobs, snakemake

from kproba.methods.builtin import METHODS
from kproba.methods.terms import TERMS
from kproba.runtime.files import read_json

pytestmark = pytest.mark.workflow

# Switches of methods, and a memory of old images.
VARIANTS = {
    "adapter": {"based_on": "star", "losses": {"uncertainty": 0.1}},
    "plop_lgkd": {"based_on": "plop", "losses": {"lgkd": 1, "lgkd_new": 1}},
    "dkd_m": {"based_on": "dkd", "memory": {"images": 8}},
    "ssul_m": {
        "based_on": "ssul",
        "memory": {"images": 8, "rule": "true_labels", "share": 0.5},
    },
}
NAMES = [*METHODS, *VARIANTS]
SUMMARY = "results/reports/config/summary.csv"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight classes, then two: a step of every method, with maps for `ssul`."""
    folder = tmp_path_factory.mktemp("methods")
    config = yaml.safe_load((ROOT / "config" / "test.yaml").read_text())
    config["datasets"]["tiny"]["saliency"] = True
    config["experiments"] = [{"dataset": "tiny", "task": "8-2", "methods": NAMES}]
    config["methods"] = VARIANTS
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    snakemake(folder, SUMMARY)
    return folder


def test_every_method_has_results_and_a_second_call_does_nothing(run: Path) -> None:
    summary = pd.read_csv(run / SUMMARY)
    last = summary[summary["step"] == 1].set_index("method")
    assert set(last.index) == set(NAMES)
    assert last["all"].between(0, 100).all()
    assert jobs(run, SUMMARY) == {}


@pytest.mark.parametrize("name", NAMES)
def test_a_later_step_trains_on_the_terms_of_its_method(run: Path, name: str) -> None:
    folder = run / "results" / "tiny" / "8-2-overlap" / name / "seed0" / "step1"
    settings = read_json(folder / "settings.json")["method"]
    if METHODS[VARIANTS.get(name, {}).get("based_on", name)].trains_nothing:
        assert pd.read_csv(folder / "metrics.csv").empty
        return
    metrics = pd.read_csv(folder / "metrics.csv")
    terms = [settings["cross_entropy"], *settings["losses"]]
    columns = {TERMS[term].column or term for term in terms}
    assert columns <= set(metrics)
    values = metrics[sorted(columns)].to_numpy()
    assert math.isfinite(values.sum()) and (values != 0).any(axis=0).all()
