"""All jobs of the shipped configurations as text: a net under changes of the plan.

python tests/job_dump.py    # writes tests/golden/jobs.txt again; review its difference

A block per job: the rule with its first output, further outputs, inputs and parameters
by name. A table that reaches a job as a resource stands in place of the digest that is
its parameter. Files of a job's own folder stand without the folder. Values that are
lists or tables are listed once, at the end.
Jobs that differ in the seed alone stand once, with "seed*" for the seed.
"""

import hashlib
import json
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import yaml
from snakemake.api import SnakemakeApi
from snakemake.settings.types import (
    ConfigSettings,
    DAGSettings,
    OutputSettings,
    Quietness,
    ResourceSettings,
)

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "config"
DUMP = ROOT / "tests" / "golden" / "jobs.txt"
COMPARISON = CONFIG / "comparisons"
ANIMALS = COMPARISON / "animals.yaml"
# Shipped configurations; some are made to be named after another one.
SHIPPED: dict[str, list[Path]] = {
    "config.yaml": [CONFIG / "config.yaml"],
    "test.yaml": [CONFIG / "test.yaml"],
    "folder.yaml": [CONFIG / "folder.yaml"],
    "voc.yaml": [CONFIG / "voc.yaml"],
    "ade20k.yaml": [CONFIG / "ade20k.yaml"],
    "digits.yaml": [COMPARISON / "digits.yaml"],
    "ablation.yaml": [COMPARISON / "ablation.yaml"],
    "glyphs.yaml": [COMPARISON / "glyphs.yaml"],
    "animals.yaml": [ANIMALS],
    "animals_banks.yaml": [ANIMALS, COMPARISON / "animals_banks.yaml"],
    "animals_teacher.yaml": [ANIMALS, COMPARISON / "animals_teacher.yaml"],
    "where_from.yaml": [ANIMALS, COMPARISON / "where_from.yaml"],
}
CLASSES = {"my_images": 9, "voc_animals": 9, "msrc_objects": 15, "camvid": 11}
# Folders without which a dataset is not there.
PUBLISHED = {
    "VOC2012": ("JPEGImages", "SegmentationClassAug"),
    "ADEChallengeData2016": [
        f"{what}/{part}"
        for what in ("images", "annotations")
        for part in ("training", "validation")
    ],
}
# Resources that say where files are, what the machine offers, or what is only shown.
PLACES = ("folders", "context", "compute", "names")


def write_class_lists(folder: Path) -> None:
    """Folders of the datasets that a user brings, with nothing but class names."""
    template = yaml.safe_load((CONFIG / "folder.yaml").read_text(encoding="utf-8"))
    for name, count in CLASSES.items():
        names = [f"class {number}" for number in range(1, count + 1)]
        if name == "my_images":
            names = [entry for step in template["tasks"]["mine"] for entry in step]
        path = folder / "datasets" / name / "classes.txt"
        for part in ("images", "masks"):
            (path.parent / part / "train").mkdir(parents=True)
        path.write_text("\n".join(["background", *names]) + "\n", encoding="utf-8")
    for name, parts in PUBLISHED.items():
        for part in parts:
            (folder / "datasets" / name / part).mkdir(parents=True)


def planned_jobs(configfiles: list[Path], folder: Path, **config: Any) -> list[Any]:
    """Snakemake's jobs for a configuration when nothing is done yet.

    Args:
        configfiles: As after --configfile.
        folder: Where it would work.
        config: As after --config.
    """
    with (
        Path(os.devnull).open("w") as silence,
        redirect_stdout(silence),
        redirect_stderr(silence),
        SnakemakeApi(OutputSettings(quiet={Quietness.ALL})) as api,
    ):
        workflow = api.workflow(
            resource_settings=ResourceSettings(cores=8, resources={"gpu": 1024}),
            config_settings=ConfigSettings(configfiles=configfiles, config=config),
            snakefile=ROOT / "Snakefile",
            workdir=folder,
        )
        workflow.dag(dag_settings=DAGSettings())
        inner = workflow._workflow
        inner._prepare_dag(forceall=True, ignore_incomplete=True, lock_warn_only=True)
        inner._build_dag()
        return sorted(inner.dag.jobs, key=lambda job: (str(job.rule), *job.output))


def without_seed(value: Any) -> Any:
    """A parameter with "*" for every seed, and rows that are then equal once."""
    if isinstance(value, Mapping):
        items = {str(key): without_seed(item) for key, item in value.items()}
        return items | ({"seed": "*"} if "seed" in items and "step" in items else {})
    if isinstance(value, list | tuple):
        items = [without_seed(item) for item in value]
        if any(isinstance(item, dict) for item in items):
            items = list({json.dumps(item): item for item in items}.values())
        return items
    return re.sub("/seed[0-9]+/", "/seed*/", value) if isinstance(value, str) else value


def job_blocks(jobs: list[Any], values: dict[str, str]) -> Iterator[str]:
    """A block of text per job; `values` gets the content of what is named by digest."""

    def named(value: Any) -> str:
        value = without_seed(value)
        if not isinstance(value, Mapping | list):
            return json.dumps(value, ensure_ascii=False)
        text = json.dumps(value, ensure_ascii=False, sort_keys=True)
        name = f"#{hashlib.sha256(text.encode()).hexdigest()[:10]}"
        if isinstance(value, list) and any(isinstance(item, dict) for item in value):
            rows = [json.dumps(item, ensure_ascii=False) for item in value]
            text = "\n  " + "\n  ".join(rows)
        values[name] = text
        return name

    for job in jobs:
        outputs = [str(path) for path in job.output]
        folder = f"{os.path.dirname(outputs[0])}/" if outputs else ""  # noqa: PTH120
        lines = [f"{job.rule} {outputs[0] if outputs else ''}".rstrip()]

        def short(path: Any, folder: str = folder) -> str:
            return str(path).removeprefix(folder) if folder else str(path)

        if outputs[1:]:
            lines.append(f"  also {' '.join(map(short, outputs[1:]))}")
        for name, item in job.input._allitems():
            paths = [item] if isinstance(item, str) else item
            lines += [f"  {name or 'input'} < {short(path)}" for path in paths]
        tables = {
            name: json.loads(value)
            for name, value in job.resources.items()
            if str(value).startswith(("{", "[")) and name not in PLACES
        }
        for name, value in {**dict(job.params._allitems()), **tables}.items():
            content = value
            if isinstance(content, Mapping):
                for key, item in content.items():
                    lines.append(f"  {name}.{key} = {named(item)}")
            else:
                lines.append(f"  {name} = {named(content)}")
        lines = [re.sub("/seed[0-9]+/", "/seed*/", line) for line in lines]
        lines = [re.sub("seed = [0-9]+$", "seed = *", line) for line in lines]
        yield "\n".join(dict.fromkeys(lines))


def dump() -> str:
    """The text of all shipped configurations."""
    values: dict[str, str] = {}
    parts: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        write_class_lists(Path(folder))
        before = Path.cwd()
        for name, files in SHIPPED.items():
            jobs = planned_jobs(files, Path(folder))
            os.chdir(before)
            blocks = dict.fromkeys(job_blocks(jobs, values))
            parts.append(f"=== {name}: {len(jobs)} jobs\n\n" + "\n".join(blocks))
    listed = "\n".join(f"{name} {values[name]}" for name in sorted(values))
    return "\n\n".join([*parts, f"=== values\n\n{listed}\n"])


if __name__ == "__main__":
    DUMP.write_text(dump(), encoding="utf-8")
    sys.exit(0)
