"""predictor.json: what a tested step predicts with, for `kproba.load`.

The file names the network, the bank if there is one, and the classes. Paths in it are
relative to its folder, so that a step can move together with the files that it names.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kproba.runtime.files import read_json, write_json

PREDICTOR = "predictor.json"

# Keys that name a file, or null.
FILES = ("network", "bank", "feature_network")


@dataclass(frozen=True)
class SeenClass:
    """A class that a model has learned.

    Attributes:
        label: Value of the class in the dataset's masks and in predicted masks. The
            background has 255 where a label offset leaves the masks without one.
        name: Name of the class.
        step: Step that introduced the class; the background belongs to step 0.
    """

    label: int
    name: str
    step: int


@dataclass(frozen=True)
class StepDescription:
    """What a step predicts with.

    Attributes:
        network: model.safetensors of the step.
        bank: prototypes.safetensors, if network and bank predict together; else None.
        feature_network: model.safetensors of the network whose features the bank
            reads, if that is not `network`.
        decision: `Decision` as a dictionary, if network and bank predict together.
        classes: The classes in output order, background first.
        channels: The network's channel of each class.
        about: The run and the step: dataset, task, setting, method, seed, step.
    """

    network: Path
    bank: Path | None
    feature_network: Path | None
    decision: dict[str, Any] | None
    classes: tuple[SeenClass, ...]
    channels: tuple[int, ...]
    about: dict[str, Any]


def write_description(path: str | Path, description: StepDescription) -> None:
    """Write predictor.json.

    Args:
        path: Output JSON.
        description: Its content; its paths may be relative to the current folder.
    """
    folder = Path(path).parent
    files = {key: getattr(description, key) for key in FILES}
    write_json(
        path,
        {
            **{
                key: None if file is None else os.path.relpath(file, folder)
                for key, file in files.items()
            },
            "decision": description.decision,
            "classes": [vars(entry) for entry in description.classes],
            "channels": description.channels,
            "about": description.about,
        },
    )


def read_description(path: str | Path) -> StepDescription:
    """Read predictor.json; paths start with the folder of that file.

    Args:
        path: As for `find_description`.

    Raises:
        FileNotFoundError: There is no such file.
    """
    file = find_description(path)
    content = convert_description(read_json(file))

    def locate(key: str) -> Path | None:
        return None if content[key] is None else file.parent / content[key]

    return StepDescription(
        network=file.parent / content["network"],
        bank=locate("bank"),
        feature_network=locate("feature_network"),
        decision=content["decision"],
        classes=tuple(SeenClass(**entry) for entry in content["classes"]),
        channels=tuple(content["channels"]),
        about=content["about"],
    )


def convert_description(content: Mapping[str, Any]) -> dict[str, Any]:
    """The content of predictor.json with the keys of this version.

    Version 0.1.0 named the feature network "source" and the decision "rule".
    """
    renamed = {"source": "feature_network", "rule": "decision"}
    return {renamed.get(key, key): value for key, value in content.items()}


def find_description(path: str | Path) -> Path:
    """The predictor.json of a step.

    Args:
        path: That file, the folder of the step, or a model in that folder.

    Raises:
        FileNotFoundError: There is no such file.
    """
    given = Path(path)
    folder = given if given.is_dir() else given.parent
    file = given if given.name == PREDICTOR else folder / PREDICTOR
    if not file.is_file():
        raise FileNotFoundError(
            f"Expected a tested step, a folder with {PREDICTOR}, but {file} does not "
            f"exist. Name results/<dataset>/<task>-<setting>/<method>/seed<n>/step<t>, "
            f"after Snakemake has made its evaluation.json."
        )
    return file
