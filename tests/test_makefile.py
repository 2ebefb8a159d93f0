"""`make` uses its own environment, in a place that Snakemake can use."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from snakemake_calls import ROOT


def make(folder: Path, *words: str, **variables: str) -> subprocess.CompletedProcess:
    """What make would do in a folder with the project's Makefile."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, folder)
    environment = {**os.environ, "XDG_CACHE_HOME": "/tmp/cache", **variables}
    environment.pop("MAKEFLAGS", None)
    return subprocess.run(
        ["make", "--dry-run", *words],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    "variables",
    [
        {"VENV": "/usr/local"},
        {"PYTHON": "/usr/bin/false"},
        {"PIP_FLAGS": "--target /usr"},
        {"CORES": "99"},
        {"PYTEST_FLAGS": "--collect-only"},
    ],
    ids=lambda variables: next(iter(variables)),
)
def test_variables_of_the_shell_are_ignored(tmp_path, variables):
    for target in ("setup", "demo", "test"):
        plain, exported = make(tmp_path, target), make(tmp_path, target, **variables)
        assert plain.returncode == exported.returncode == 0
        assert exported.stdout == plain.stdout


def test_variables_of_the_command_line_count(tmp_path):
    done = make(tmp_path, "setup", "VENV=/opt/kproba", "PYTHON=python3.12")
    assert "python3.12 -m venv /opt/kproba" in done.stdout


@pytest.mark.parametrize(
    "name", ["my clone", "{x}", "a;b", "$HOME", "it's", "a&b", "ü"]
)
def test_a_folder_with_other_characters_has_its_environment_elsewhere(tmp_path, name):
    folder = tmp_path / name
    folder.mkdir()
    done = make(folder, "setup")
    assert done.returncode == 0, done.stderr
    [line] = [line for line in done.stdout.splitlines() if "--editable" in line]
    place = line.split("/bin/python")[0]
    assert place.startswith("/tmp/cache/kproba/") and len(place.split("/")[-1]) == 16
    assert f"ln -sfn {place} .venv" in done.stdout
    assert make(folder, "setup").stdout == done.stdout


def test_an_ordinary_folder_has_its_own_environment(tmp_path):
    done = make(tmp_path, "setup")
    assert "./.venv/bin/python -m pip install" in done.stdout


@pytest.mark.parametrize("venv", ["a b", "x{y}", "$(touch x)", "a;b", ""])
def test_an_environment_that_snakemake_cannot_use_is_refused(tmp_path, venv):
    done = make(tmp_path, "setup", f"VENV={venv}")
    assert done.returncode != 0
    assert "Expected an environment in a path of letters" in done.stderr
    assert not (tmp_path / "x").exists()


def test_a_folder_with_other_files_is_no_environment(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    make(tmp_path)  # copies the Makefile
    done = subprocess.run(
        ["make", "setup", "VENV=mine"],
        **{"cwd": tmp_path, "capture_output": True, "text": True},
        check=False,
    )
    assert done.returncode != 0
    assert "it contains other files" in done.stdout
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]
