"""The configuration reference, and the configurations that documents show."""

import copy
import re
import subprocess
import sys
from typing import Any

import pytest
import yaml
from plan_configs import SCHEMA, SCHEMA_PATH, config, make_plan
from snakemake_calls import ROOT

from kproba.plan.reference import PAGE, render
from kproba.plan.schema import check

EXAMPLES = {
    name: yaml.safe_load(section["x-example"])
    for name, section in SCHEMA["properties"].items()
}


def test_the_page_is_what_the_schema_gives(tmp_path):
    """A process of its own: tests of extensions add to the tables of this one."""
    schema = tmp_path / "workflow" / "schemas" / "config.schema.yaml"
    schema.parent.mkdir(parents=True)
    schema.write_bytes(SCHEMA_PATH.read_bytes())
    (tmp_path / "docs").mkdir()
    command = [sys.executable, "-m", "kproba.plan.reference"]
    subprocess.run(command, cwd=tmp_path, check=True)
    assert (tmp_path / PAGE).read_text() == (ROOT / PAGE).read_text(), (
        "Run `python -m kproba.plan.reference` in the folder of the project."
    )


def test_the_page_has_every_section_and_key():
    page = render(SCHEMA)
    for name, section in SCHEMA["properties"].items():
        assert f"\n## {name}\n" in page
        assert section["x-title"] in page
    for name in SCHEMA["$defs"]["decision"]["properties"]:
        assert f"**`{name}`**" in page
    assert "one of `stop`, `skip` · default `stop`" in page
    assert "number (from 0, below 1) · default `0.9`" in page


def test_a_changed_default_changes_the_page():
    changed = copy.deepcopy(SCHEMA)
    changed["$defs"]["bank"]["properties"]["ridge"]["default"] = 0.125
    assert "default `0.125`" in render(changed)
    assert "default `0.125`" not in render(SCHEMA)


@pytest.mark.parametrize("section", EXAMPLES)
def test_the_example_of_a_section_is_accepted(section, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    changes: dict[str, Any] = EXAMPLES[section]
    assert list(changes) == [section]
    if section == "extensions":
        (tmp_path / changes["extensions"][0]).write_text("")
    check({**config(), **changes}, SCHEMA_PATH)


@pytest.mark.parametrize("section", EXAMPLES)
def test_links_of_a_section_lead_to_pages(section):
    for page in SCHEMA["properties"][section].get("x-see", {}).values():
        assert (ROOT / "docs" / page).is_file(), page


DOCUMENTS = [
    *(ROOT / "docs" / name for name in ("configuration.md", "recipes.md")),
    *sorted((ROOT / "docs" / "methods").glob("*.md")),
]
METHODS = {
    f"{path.name}: {name}": changes
    for path in DOCUMENTS
    for block in re.findall(r"^```yaml\n(.*?)^```$", path.read_text(), re.M | re.S)
    for name, changes in yaml.safe_load(block).get("methods", {}).items()
}


@pytest.mark.parametrize("changes", METHODS.values(), ids=METHODS)
def test_a_method_in_a_document_can_be_planned(changes):
    """On a dataset that is here; tests/test_documents.py checks it by the schema."""
    experiments = [{"dataset": "tiny", "task": "6-2", "methods": ["mine"]}]
    plan = make_plan(methods={"mine": changes}, experiments=experiments)
    assert {run.method for run in plan.runs} == {"mine"}


def test_documents_have_methods():
    assert len(METHODS) > 10
