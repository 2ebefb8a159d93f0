"""Configuration files that cannot be used get a message before anybody reads them."""

import itertools
import os
import subprocess
import sys

import pytest
from snakemake_calls import ROOT

from kproba.plan.config_files import (
    ConfigFileError,
    check_files,
    check_text,
    files_of_arguments,
    name_of_files,
)

LEVELS = "abcdefghij"


def bomb(width: int = 9) -> str:
    """Ten lines that stand for width ** 10 values."""
    lines = [f"{LEVELS[0]}: &{LEVELS[0]} [{', '.join('x' * width)}]"]
    for below, level in itertools.pairwise(LEVELS):
        lines.append(f"{level}: &{level} [{', '.join([f'*{below}'] * width)}]")
    return "\n".join(lines) + "\n"


WRONG = {
    "empty": ("", "the file is empty"),
    "a list": ("[1, 2]", "key: value"),
    "a number": ("7", "key: value"),
    "bad YAML": ("base: [1\nx: :", "line 2"),
    "a tab": ("base:\n\tepochs: 1\n", "line 2"),
    "NUL": ("base: \0\n", "Expected YAML"),
    "in itself": ("datasets: &x\n  a: *x\n", "contains itself"),
    "in itself, as a list": ("datasets: &x [1, *x]\n", "contains itself"),
    "endless": (bomb(), "at most 100000 values"),
    "wide": (bomb(4), "at most 100000 values"),
    "a key twice": (
        "base: 1\nbank: 2\nbase: 3\n",
        "'base' in line 1 and again in line 3",
    ),
    "a key twice below": ("base:\n  epochs: 1\n  epochs: 2\n", "'epochs' in line 2"),
    "deep": ("a: " + "[" * 3000 + "]" * 3000, "nested too deeply"),
}


@pytest.mark.parametrize(("text", "message"), WRONG.values(), ids=WRONG)
def test_wrong_content_is_refused_by_name(text, message):
    with pytest.raises(ConfigFileError) as caught:
        check_text(text, "my.yaml")
    assert message in str(caught.value) and "my.yaml" in str(caught.value)
    assert str(caught.value).startswith("Expected ")


@pytest.mark.parametrize(
    "text",
    [
        "a: 1\n",
        '{"a": 1}',
        "a: &x {b: 1}\nc: *x\nd: *x\n",
        "a: &x {b: 1}\nc:\n  <<: *x\n",
    ],
    ids=["YAML", "JSON", "repeated", "merged"],
)
def test_right_content_passes(text):
    check_text(text, "my.yaml")


def test_shipped_configurations_pass():
    files = sorted((ROOT / "config").rglob("*.yaml"))
    assert files
    check_files(files)


def unusable(kind, folder):
    path = folder / "config.yaml"
    if kind == "folder":
        path.mkdir()
    elif kind == "FIFO":
        os.mkfifo(path)
    elif kind == "dead link":
        path.symlink_to("nowhere")
    elif kind == "loop":
        path.symlink_to(path)
    elif kind == "large":
        path.write_text("# " + "x" * 2**20)
    elif kind == "Latin-1":
        path.write_bytes("a: é".encode("latin-1"))
    return path


@pytest.mark.parametrize(
    "kind", ["missing", "folder", "FIFO", "dead link", "loop", "large", "Latin-1"]
)
def test_unusable_files_are_refused_by_name(kind, tmp_path):
    path = unusable(kind, tmp_path)
    with pytest.raises(ConfigFileError, match=r"Expected .*config\.yaml"):
        check_files([path])


@pytest.mark.parametrize(
    ("words", "files"),
    [
        (["-n"], []),
        (["--configfile", "a.yaml", "-n"], ["a.yaml"]),
        (["--configfile", "a.yaml", "b.yaml", "--", "x"], ["a.yaml", "b.yaml"]),
        (["--configfile=a.yaml", "x"], ["a.yaml"]),
        (["--configfiles", "a.yaml"], ["a.yaml"]),
        (["--configfile"], []),
        (
            ["--cores", "2", "--configfile", "a.yaml", "--configfile", "b"],
            ["a.yaml", "b"],
        ),
    ],
)
def test_files_are_found_on_the_command_line(words, files):
    assert files_of_arguments(words) == files


@pytest.mark.parametrize(
    ("paths", "name"),
    [
        (["config/config.yaml"], "config"),
        (["a b/my pets.yaml"], "my_pets"),
        (["a.yaml", "x/b.yml"], "a+b"),
        ([], "config"),
        ([".yaml"], "yaml"),
        (["$(touch x).yaml"], "__touch_x_"),
    ],
)
def test_reports_are_named_after_the_files(paths, name):
    assert name_of_files(paths) == name


@pytest.mark.workflow
@pytest.mark.parametrize("kind", ["missing", "endless", "in itself", "a key twice"])
def test_snakemake_ends_with_the_message_alone(kind, tmp_path):
    path = tmp_path / "my.yaml"
    if kind != "missing":
        path.write_text(WRONG[kind][0])
    words = [sys.executable, "-m", "snakemake", "-n", "--cores", "1"]
    words += ["--snakefile", str(ROOT / "Snakefile"), "--configfile", str(path)]
    done = subprocess.run(
        words, capture_output=True, text=True, timeout=60, check=False, cwd=ROOT
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("Error: Expected ")
