"""The workflow that this package brings along: where it is, and folders to run it in.

In a clone the files are at the top of the repository. A wheel holds copies of them.
Another workflow uses the installed workflow as a module:

    from kproba.project import SNAKEFILE

    module kproba:
        snakefile: SNAKEFILE
        config: config["kproba"]

    use rule * from kproba as kproba_*
"""

import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from kproba import __version__

_PACKAGE = Path(__file__).resolve().parent
_COPIES = _PACKAGE / "project_files"

# The folder with Snakefile, workflow/, config/, profiles/ and envs/.
ROOT = _COPIES if _COPIES.is_dir() else _PACKAGE.parent
SNAKEFILE = str(ROOT / "workflow" / "Snakefile")
REPOSITORY = "https://github.com/kproba/kproba"

# Folders of which a new project gets a copy.
COPIED = ("config", "profiles")
# Files of a new project by name.
WRITTEN = {
    "Snakefile": """\
# The workflow that the installed package brings along. Add rules of your own below.
from kproba.project import SNAKEFILE


include: SNAKEFILE


workflow.default_target = "all"  # an included file has no default target
""",
    ".gitignore": "results/\n.snakemake/\n",
    "README.md": f"""\
# A KProBA project

Made by `kproba init`, version {__version__}.

    snakemake -n                # list what would run, and why
    snakemake --cores all       # run config/config.yaml: the embedded example
    snakemake --cores all --configfile config/folder.yaml

The second command takes some minutes on two cores. Then open results/report.html.

- `config/config.yaml`: the embedded example, which needs no download
- `config/folder.yaml`: a template for your own images and masks
- `config/voc.yaml`, `config/ade20k.yaml`: Pascal VOC 2012 and ADE20K
- `config/README.md`: how configurations work
- `profiles/slurm/profile.yaml`: for a SLURM cluster; edit the marked lines

Documentation: {REPOSITORY}/tree/main/docs
""",
}

# Options of Snakemake that say where jobs run. Without one of them all cores are used.
_PLACES = ("--cores", "-c", "--jobs", "-j", "--executor", "-e", "--profile")
REPORT = Path("results/report.html")


def package_source() -> str:
    """What pip installs into an environment that Snakemake makes for the jobs.

    Returns:
        The folder of the clone, or this release by name and version.
    """
    return f"kproba=={__version__}" if ROOT == _COPIES else str(ROOT)


def init_project(folder: str | Path) -> list[str]:
    """Write a folder from which the workflow can be run.

    Args:
        folder: The folder; it is made if it is missing. Other files in it stay.

    Returns:
        Names of the files that were written, relative to `folder`.

    Raises:
        FileExistsError: One of the files is there already. Nothing is written then.
        OSError: The folder cannot be written.
    """
    folder = Path(folder)
    names = [*WRITTEN, *_files_to_copy()]
    present = [name for name in names if (folder / name).exists()]
    if present:
        raise FileExistsError(
            f"Expected a new folder, or one without the files of a project, but "
            f"{folder} has {', '.join(present)}. Choose another folder."
        )
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        text = WRITTEN.get(name) or (ROOT / name).read_text(encoding="utf-8")
        if path.suffix == ".md":  # a project has no documents beside it
            text = text.replace("](../", f"]({REPOSITORY}/blob/v{__version__}/")
        path.write_text(text, encoding="utf-8")
    return names


def _files_to_copy() -> Iterator[str]:
    for top in COPIED:
        for path in sorted((ROOT / top).rglob("*")):
            if path.is_file():
                yield path.relative_to(ROOT).as_posix()


def snakemake_command(words: Sequence[str]) -> list[str]:
    """The command line that runs the installed workflow.

    Args:
        words: Options and targets of Snakemake. Without an option that says where jobs
            run, all cores of this machine are used.
    """
    named = any(_names_place(word) for word in _options(words))
    places = [] if named else ["--cores", "all"]
    # The file beside profiles/default, where Snakemake looks for the default profile.
    start = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile")]
    return [*start, *places, *words]


def _options(words: Sequence[str]) -> Iterator[str]:
    """The words before `--`."""
    for word in words:
        if word == "--":
            return
        yield word


def _names_place(word: str) -> bool:
    long = word.split("=", 1)[0] in _PLACES
    return long or (len(word) > 2 and word[:2] in ("-c", "-j") and word[2:].isdecimal())


def run_workflow(words: Sequence[str]) -> int:
    """Run the installed workflow in the working directory.

    Args:
        words: As those of `snakemake_command`.

    Returns:
        The exit status of Snakemake.
    """
    before = _time_of_report()
    process = subprocess.Popen(snakemake_command(words))
    # Ctrl-C reaches Snakemake by itself. It stops its jobs and ends; this waits for it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: process.terminate())
    status = process.wait()
    if status == 0 and _time_of_report() != before:
        print(f"Report: {REPORT.absolute()}")
    return status if status >= 0 else 128 - status


def _time_of_report() -> int | None:
    return REPORT.stat().st_mtime_ns if REPORT.is_file() else None
