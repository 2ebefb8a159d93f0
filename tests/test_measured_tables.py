"""All tables of results in the documents are those of the files in docs/measured/."""

import re
import shutil
from pathlib import Path

import pandas as pd
import pytest
from snakemake_calls import ROOT

from kproba.results.documents import find_documents, update


def copy_documents(target: Path) -> None:
    for path in find_documents(ROOT):
        copy = target / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
    for path in (ROOT / "docs/measured").glob("*.csv"):
        shutil.copyfile(path, target / path.relative_to(ROOT))


def test_all_tables_are_those_of_the_measured_files():
    assert update(ROOT, check=True) == [], (
        "Run `python -m kproba.results.documents` in the folder of the project."
    )


@pytest.mark.parametrize(
    ("page", "shown", "other"),
    [
        ("docs/results.md", r"\d+\.\d ± \d", "99.9 ± 9"),
        ("README.md", r"\d+\.\d ± \d", "99.9 ± 9"),
        ("docs/methods/mib.md", r"\d+\.\d ± \d", "99.9 ± 9"),
    ],
)
def test_another_number_in_a_table_is_noticed(tmp_path, page, shown, other):
    copy_documents(tmp_path)
    path = tmp_path / page
    text = path.read_text()
    changed, count = re.subn(shown, other, text, count=1)
    assert count == 1 and changed != text
    path.write_text(changed)
    assert update(tmp_path, check=True) == [path]
    assert path.read_text() == changed  # --check writes nothing
    assert update(tmp_path) == [path]
    assert path.read_text() == text


def test_another_number_in_a_measured_file_is_noticed(tmp_path):
    copy_documents(tmp_path)
    path = tmp_path / "docs/measured/msrc_5-5_summary.csv"
    table = pd.read_csv(path, dtype=str)
    last = table["method"].eq("kproba") & table["step"].eq("2")
    table.loc[last, "all"] = "10.0"
    table.to_csv(path, index=False)
    changed = update(tmp_path, check=True)
    assert tmp_path / "docs/results.md" in changed
    assert tmp_path / "README.md" in changed


@pytest.mark.parametrize(
    "page", ["README.md", "docs/results.md", *sorted((ROOT / "docs/methods").glob("*"))]
)
def test_means_with_deviations_stand_in_tables_alone(page):
    """A sentence with such a number would not change with the measured files."""
    text = re.sub(r"<!-- \w+:.*? -->.*?<!-- end -->", "", read(page), flags=re.DOTALL)
    assert re.findall(r".*\d ± \d.*", text) == []


def read(page: str | Path) -> str:
    return (ROOT / page).read_text()
