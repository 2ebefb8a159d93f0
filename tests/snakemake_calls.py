"""Calls of Snakemake, as a user types them."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def command(folder: Path, *words: str) -> list[str]:
    return [
        sys.executable,
        "-m",
        "snakemake",
        "--snakefile",
        str(ROOT / "Snakefile"),
        "--directory",
        str(folder),
        "--configfile",
        str(folder / "config.yaml"),
        "--cores",
        "2",
        *words,
    ]


def snakemake(folder: Path, *words: str, succeeds: bool = True) -> str:
    done = subprocess.run(
        command(folder, *words), capture_output=True, text=True, check=False
    )
    output = done.stdout + done.stderr
    assert (done.returncode == 0) == succeeds, output[-5000:]
    return output


def jobs(folder: Path, *words: str) -> dict[str, int]:
    """Rules that Snakemake would run, and how often."""
    output = snakemake(folder, "--dry-run", *words)
    table = re.findall(r"^([a-z_0-9]+) +(\d+)$", output, re.MULTILINE)
    return {rule: int(count) for rule, count in table if rule != "total"}


def names(folder: Path) -> list[str]:
    """Names of the entries of a folder, sorted."""
    return sorted(path.name for path in folder.iterdir())
