"""Finished results stay done: copied, cloned, with other names, at another place.

Every test works on its own copy of one whole run.
"""

import os
import shutil
import subprocess
from pathlib import Path

import pandas as pd
import pytest
import yaml
from snakemake_calls import ROOT, command, jobs, snakemake
from whole_runs import write_config

from kproba.data.kinds.digits import CLASS_NAMES, DigitScenes, write_digits
from kproba.runtime.files import read_json

pytestmark = pytest.mark.workflow
DONE = "Nothing to be done"


def git(folder: Path, *words: str) -> None:
    who = ("-c", "user.name=a", "-c", "user.email=a@b")
    subprocess.run(["git", *who, *words], cwd=folder, check=True, capture_output=True)


def copy_results(finished: Path, here: Path, how: str) -> None:
    """Results and configuration at another place, without Snakemake's records."""
    here.mkdir()
    if how == "git clone":
        made = here.with_name("made")
        shutil.copytree(finished, made, ignore=shutil.ignore_patterns(".snakemake"))
        git(made, "init", "-q", ".")
        git(made, "add", "--force", ".")
        git(made, "commit", "-q", "-m", "results")
        git(here.parent, "clone", "-q", str(made), str(here))
        return
    shutil.copy(finished / "config.yaml", here)
    for path in sorted(finished.joinpath("results").rglob("*")):  # in another order
        target = here / path.relative_to(finished)
        if path.is_dir():
            target.mkdir(parents=True, exist_ok=True)
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            (shutil.copy2 if how == "cp -a" else shutil.copyfile)(path, target)


@pytest.mark.parametrize("how", ["cp -a", "cp -r", "git clone"])
def test_copied_results_are_done(finished: Path, tmp_path: Path, how: str) -> None:
    copy_results(finished, tmp_path / "here", how)
    assert DONE in snakemake(tmp_path / "here", "--dry-run")


def test_results_of_a_copy_can_be_gone_on_with(finished: Path, tmp_path: Path) -> None:
    """A file that is missing there is made, and then all is done again."""
    here = tmp_path / "here"
    copy_results(finished, here, "cp -r")
    (here / "results" / "report.html").unlink()
    assert jobs(here) == {"publish": 1, "all": 1}
    snakemake(here)
    assert DONE in snakemake(here, "--dry-run")


def test_a_clone_with_touched_scripts_runs_nothing_again(
    finished: Path, tmp_path: Path
) -> None:
    """A clone of the workflow beside results that were copied along."""
    clone = tmp_path / "my {x} clone"
    parts = ("Snakefile", "workflow", "kproba", "envs", "profiles")
    for part in parts:
        copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copy
        clone.mkdir(exist_ok=True)
        copy(ROOT / part, clone / part)
    for name in ("results", ".snakemake"):
        shutil.copytree(finished / name, clone / name, copy_function=shutil.copy2)
    shutil.copy(finished / "config.yaml", clone)
    for path in clone.joinpath("workflow").rglob("*"):
        os.utime(path)
    words = [word for word in command(clone) if word not in ("--cores", "2")]
    words[words.index("--snakefile") + 1] = str(clone / "Snakefile")
    done = subprocess.run(
        [*words, "--cores", "2", "--dry-run"],
        cwd=clone,
        capture_output=True,
        text=True,
        check=False,
    )
    assert DONE in done.stdout + done.stderr
    page = clone / "results" / "report.html"
    page.unlink()
    subprocess.run([*words, "--cores", "2"], check=True, cwd=clone, capture_output=True)
    assert page.is_file()


def test_two_configurations_keep_a_report_each(run: Path) -> None:
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["experiments"] = [{**config["experiments"][0], "methods": ["finetune"]}]
    (run / "other.yaml").write_text(yaml.safe_dump(config))
    words = [*command(run), "--configfile", str(run / "other.yaml")]
    first = words.index("--configfile")
    del words[first : first + 2]
    before = (run / "results" / "summary.csv").read_bytes()
    subprocess.run(words, check=True, capture_output=True)
    reports = run / "results" / "reports"
    assert (reports / "config" / "summary.csv").read_bytes() == before
    others = pd.read_csv(reports / "other" / "summary.csv")
    assert set(others["method"]) == {"finetune"}
    for name in ("summary.csv", "classes.csv", "pseudo_labels.csv", "report.html"):
        latest = (run / "results" / name).read_bytes()
        assert latest == (reports / "other" / name).read_bytes()
    assert jobs(run).keys() <= {"publish", "draw_figures", "write_report", "all"}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one method on a folder of pictures; tests work on copies."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    scenes = DigitScenes(24, 6, 64, (2, 3), (0.3, 0.5), 15, 0)
    write_digits(folder.parent / "pictures", scenes)
    folder.mkdir()
    write_config(folder)
    config = yaml.safe_load((folder / "config.yaml").read_text())
    path = str(folder.parent / "pictures")
    config["datasets"]["tiny"] = {"kind": "folder", "path": path}
    config["tasks"] = {"short": [[*CLASS_NAMES[:8]], [*CLASS_NAMES[8:]]]}
    config["experiments"] = [
        {"dataset": "tiny", "task": "short", "methods": ["finetune"]}
    ]
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    snakemake(folder)
    return folder


@pytest.fixture
def own_pictures(trained: Path, tmp_path: Path) -> Path:
    """A copy of that run, with its pictures beside it."""
    shutil.copytree(trained.parent / "pictures", tmp_path / "pictures")
    shutil.copytree(trained, tmp_path / "own", copy_function=shutil.copy2)
    change_config(tmp_path / "own", str(trained.parent), str(tmp_path))
    return tmp_path / "own"


def change_config(run: Path, old: str, new: str) -> None:
    text = (run / "config.yaml").read_text()
    assert old in text
    (run / "config.yaml").write_text(text.replace(old, new))


def test_identity_is_content(own_pictures: Path, tmp_path: Path) -> None:
    """Moved or copied pictures run nothing; another spelling trains nothing."""
    run, here = own_pictures, tmp_path / "pictures"
    moved = here.rename(tmp_path / "moved")
    change_config(run, str(here), str(moved))
    assert jobs(run) == {}
    (tmp_path / "link").symlink_to(moved)
    change_config(run, str(moved), str(tmp_path / "link"))
    assert jobs(run) == {}
    shutil.copytree(moved, tmp_path / "copied", copy_function=shutil.copyfile)
    change_config(run, str(tmp_path / "link"), str(tmp_path / "copied"))
    assert jobs(run) == {}
    listed = tmp_path / "copied" / "classes.txt"
    listed.write_text(listed.read_text().replace("zero", "nought"))
    change_config(run, "zero", "nought")
    expected = {"evaluate", "write_card", "list_classes", "summarise", "draw_figures"}
    again = jobs(run)
    assert set(again) == {*expected, "write_report", "publish", "all"}
    snakemake(run)
    step = run / "results" / "tiny" / "short-overlap" / "finetune" / "seed0" / "step1"
    tested = read_json(step / "evaluation.json")["classes"]
    assert "nought" in [entry["name"] for entry in tested]


def test_a_changed_picture_ends_the_job_that_reads_it(own_pictures: Path) -> None:
    """It was replaced after the check, with its size and time."""
    mask = min(own_pictures.parent.joinpath("pictures", "masks", "val").glob("*.png"))
    status = mask.stat()
    content = bytearray(mask.read_bytes())
    content[-20] ^= 1
    mask.write_bytes(content)
    os.utime(mask, ns=(status.st_atime_ns, status.st_mtime_ns))
    step = "results/tiny/short-overlap/finetune/seed0/step1"
    output = snakemake(
        own_pictures,
        *("--forcerun", "evaluate", "--", f"{step}/evaluation.json"),
        succeeds=False,
    )
    assert f"Expected the mask {mask} to be unchanged since" in output
    assert "Traceback" not in output
