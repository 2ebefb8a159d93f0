"""The wheel brings the workflow along: installed elsewhere, it runs by itself."""

import ast
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from email.parser import HeaderParser
from pathlib import Path

import pytest
import yaml
from snakemake_calls import ROOT

VERSION = re.search(
    r'^__version__ = "(.*)"', (ROOT / "kproba" / "__init__.py").read_text(), re.M
)[1]
# Files that an image of a container gets; kproba.def names each.
COPIED = re.findall(
    r"^    (\S+) /src/(\S+)$", (ROOT / "container" / "kproba.def").read_text(), re.M
)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel, built from the files that the image of a container gets, alone."""
    source = tmp_path_factory.mktemp("source")
    for name, target in COPIED:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copyfile
        copy(ROOT / name, source / target)
    out = source / "dist"
    words = ["build", "--wheel", "--no-isolation", "--outdir", str(out), str(source)]
    run(source, "-m", *words)
    [file] = out.glob("*.whl")
    return file


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """A folder with the unpacked wheel, for PYTHONPATH."""
    folder = tmp_path_factory.mktemp("site")
    words = ["pip", "install", "--quiet", "--no-deps", "--no-index", "--target"]
    run(folder, "-m", *words, str(folder), str(wheel))
    return folder


def run(folder, *words, succeeds=True, **variables):
    done = subprocess.run(
        [sys.executable, *map(str, words)],
        cwd=folder,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    output = done.stdout + done.stderr
    assert (done.returncode == 0) == succeeds, output[-5000:]
    return output


def metadata(wheel):
    with zipfile.ZipFile(wheel) as archive:
        text = archive.read(f"kproba-{VERSION}.dist-info/METADATA").decode()
    return HeaderParser().parsestr(text)


def test_the_wheel_has_every_file_of_the_package_and_the_workflow(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    listed = subprocess.run(
        ["git", "ls-files", "kproba", "workflow", "config", "profiles", "envs"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert len(listed) > 200
    places = {
        name if name.startswith("kproba/") else f"kproba/project_files/{name}"
        for name in listed
        if (ROOT / name).is_file()
    }
    assert places - names == set()
    assert {"kproba/py.typed", "kproba/project_files/constraints.txt"} <= names
    assert not [name for name in names if "__pycache__" in name]


def test_the_metadata_is_what_an_index_shows(wheel):
    fields = metadata(wheel)
    assert fields["Version"] == VERSION
    assert fields["License-Expression"] == "MIT"
    assert "Typing :: Typed" in fields.get_all("Classifier")
    addresses = dict(line.split(", ") for line in fields.get_all("Project-URL"))
    assert addresses["Homepage"] == "https://github.com/kproba/kproba"
    readme = fields.get_payload()
    links = re.findall(r"\]\(([^)]*)\)", readme)
    assert links and all(link.startswith(("https://", "#")) for link in links)
    for picture in re.findall(r"!\[[^\]]*\]\(([^)]*)\)", readme):
        start = f"https://raw.githubusercontent.com/kproba/kproba/v{VERSION}/"
        assert picture.startswith(start)
        assert (ROOT / picture.removeprefix(start)).is_file()


def test_all_places_name_the_same_version_and_repository():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert str(citation["version"]) == VERSION
    assert citation["repository-code"] == project["urls"]["Homepage"]
    assert f"## [{VERSION}] - {citation['date-released']}" in (
        ROOT / "CHANGELOG.md"
    ).read_text(encoding="utf-8")


def test_the_environment_of_conda_follows_the_requirements(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "envs")
    import update

    text = (ROOT / "envs" / "kproba.yaml").read_text()
    assert f"# requirements: {update.requirements_digest()}\n" in text, (
        "run `python envs/update.py`"
    )
    assert yaml.safe_load(text)["channels"] == ["conda-forge", "nodefaults"]


@pytest.mark.parametrize("release", [False, True])
def test_the_environment_of_conda_gets_the_code_that_runs(tmp_path, release):
    called = tmp_path / "python"
    called.write_text('#!/bin/sh\necho "$@" > "$(dirname "$0")/words"\n')
    called.chmod(0o755)
    source = "kproba==1.2.3" if release else str(ROOT)
    subprocess.run(
        ["bash", str(ROOT / "envs" / "kproba.post-deploy.sh")],
        env={"PATH": f"{tmp_path}:/usr/bin:/bin", "KPROBA_SOURCE": source},
        cwd=tmp_path,
        check=True,
    )
    words = (tmp_path / "words").read_text().split()
    pinned = ["--constraint", f"{ROOT}/constraints.txt", "--editable", str(ROOT)]
    expected = [source] if release else pinned
    assert words == ["-m", "pip", "install", *expected]


def test_a_new_project_is_ready(installed, tmp_path):
    output = run(
        tmp_path, "-m", "kproba.cli", "init", "my project", PYTHONPATH=str(installed)
    )
    project = tmp_path / "my project"
    assert "cd 'my project' && kproba run" in output
    for path in (ROOT / "config" / "config.yaml", ROOT / "profiles/slurm/profile.yaml"):
        assert (project / path.relative_to(ROOT)).read_bytes() == path.read_bytes()
    links = re.findall(r"\]\(([^)]*)\)", (project / "config/README.md").read_text())
    assert links
    for link in links:
        remote = link.startswith("https://")
        assert remote or (project / "config" / link.split("#")[0]).exists(), link
    # By Snakefile and profile of the folder, and by those of the package alone
    for words in (["snakemake", "-n"], ["kproba.cli", "run", "-n"]):
        output = run(project, "-m", *words, PYTHONPATH=str(installed))
        assert re.search(r"^train_step +4$", output, re.MULTILINE)
        assert "Jobs that would run (rule, target, reason):" in output
    shutil.rmtree(project / "profiles")
    output = run(project, "-m", "kproba.cli", "run", "-n", PYTHONPATH=str(installed))
    assert f"profile {installed}/kproba/project_files/profiles/default" in output


def test_a_project_replaces_no_file(tmp_path):
    mine = tmp_path / "config" / "config.yaml"
    mine.parent.mkdir()
    mine.write_text("mine")
    output = run(tmp_path, "-m", "kproba.cli", "init", ".", succeeds=False)
    assert "has config/config.yaml. Choose another folder." in output
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [mine]
    assert mine.read_text() == "mine"


def test_a_folder_without_a_configuration_gets_a_message(tmp_path):
    output = run(tmp_path, "-m", "kproba.cli", "run", "-n", succeeds=False)
    assert f"Expected a configuration in {tmp_path}/config/config.yaml" in output
    assert "kproba init my-project" in output and "Traceback" not in output


@pytest.mark.parametrize(
    ("words", "cores"),
    [
        ([], True),
        (["-n", "all"], True),
        (["--configfile", "a.yaml", "--", "-c"], True),
        (["--cores", "2"], False),
        (["--cores=2"], False),
        (["-c2"], False),
        (["--config", "x=1"], True),
        (["--profile", "profiles/slurm"], False),
        (["-j", "3"], False),
    ],
)
def test_run_passes_its_words_on(words, cores):
    from kproba.project import snakemake_command

    command = snakemake_command(words)
    expected = ["--cores", "all", *words] if cores else words
    assert command[:4] == [sys.executable, "-m", "snakemake", "--snakefile"]
    assert command[5:] == expected


MODULE = """\
configfile: "settings.yaml"

from kproba.project import SNAKEFILE

module kproba:
    snakefile: SNAKEFILE
    config: config["kproba"]
    prefix: "segmentation"

use rule * from kproba as kproba_*

rule count_pixels:
    input:
        "segmentation/results/summary.csv",
        everything=rules.kproba_all.input,
    output:
        "counted.txt",
    default_target: True
    shell:
        "wc -l {input[0]} > {output}"
"""


@pytest.mark.workflow
def test_another_workflow_uses_this_one_as_a_module(installed, tmp_path):
    config = yaml.safe_load((ROOT / "config" / "test.yaml").read_text())
    (tmp_path / "settings.yaml").write_text(yaml.safe_dump({"kproba": config}))
    (tmp_path / "Snakefile").write_text(MODULE)
    words = ["-m", "snakemake", "--cores", "2"]
    place = {"PYTHONPATH": str(installed)}
    output = run(tmp_path, *words, **place)
    assert "kproba_train_step" in output
    # Everything of the module is below its prefix, and the paths in its tables too.
    top = {path.name for path in tmp_path.iterdir()}
    assert top == {
        *("Snakefile", "settings.yaml", ".snakemake", "segmentation", "counted.txt"),
    }
    results = tmp_path / "segmentation" / "results"
    header, *rows = (results / "summary.csv").read_text().splitlines()
    assert len(rows) == 7  # kproba and finetune after three steps, joint after one
    folder = header.split(",").index("folder")
    for row in rows:
        assert (tmp_path / row.split(",")[folder] / "evaluation.json").is_file()
    page = (results / "reports" / "kproba" / "report.html").read_bytes()
    assert (
        hashlib.sha256(page).digest()
        == hashlib.sha256((results / "report.html").read_bytes()).digest()
    )
    assert len(list(results.rglob("card.md"))) == 7
    assert "Nothing to be done" in run(tmp_path, *words, **place)
    # The installed package did the work: a clone would have recorded its commit.
    models = list(results.rglob("model.json"))
    assert models
    for model in models:
        assert json.loads(model.read_text())["provenance"]["commit"] is None


def test_a_module_without_a_configuration_gets_a_message(tmp_path):
    text = MODULE.replace('    config: config["kproba"]\n', "")
    (tmp_path / "Snakefile").write_text(text)
    (tmp_path / "settings.yaml").write_text("{a: 1}")
    output = run(tmp_path, "-m", "snakemake", "-n", succeeds=False)
    assert "Expected the configuration of KProBA in the module statement" in output


def test_names_in_the_docstring_of_the_project_module_exist():
    import kproba.project

    [line] = re.findall(r"^    (from .*)$", kproba.project.__doc__, re.MULTILINE)
    [statement] = ast.parse(line).body
    for alias in statement.names:
        assert Path(getattr(kproba.project, alias.name)).is_file()
