"""TODO bank.description."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kproba.runtime.files import write_json

PREDICTOR = "predictor.json"


@dataclass(frozen=True)
class SeenClass:
    """A class that a model knows.

    Attributes:
        label: Its value in the dataset's masks, and in those that are written.
        name: Its name.
        step: The step that introduced it; the background belongs to step 0.
    """

    label: int
    name: str
    step: int


def describe(
    path: str | Path,
    *,
    network: str | Path,
    bank: str | Path | None,
    source: str | Path | None,
    rule: dict[str, Any] | None,
    classes: Sequence[SeenClass],
    channels: Sequence[int],
    about: dict[str, Any],
) -> None:
    """Write predictor.json: all that `load` needs, files named from its own folder.

    Args:
        path: Output JSON.
        network: model.safetensors of the step.
        bank: prototypes.safetensors, where network and bank predict together.
        source: model.safetensors of the bank's features, if another.
        rule: `PseudoLabelSettings` as a dictionary, with a bank.
        classes: In output order.
        channels: Per class the network's channel.
        about: Which run and step.
    """
    here = Path(path).parent
    files = {"network": network, "bank": bank, "source": source}
    write_json(
        path,
        {
            **{
                name: None if file is None else os.path.relpath(file, here)
                for name, file in files.items()
            },
            "rule": rule,
            "classes": [vars(entry) for entry in classes],
            "channels": list(channels),
            "about": about,
        },
    )


def find_description(path: str | Path) -> Path:
    """The predictor.json that a path means: itself, in that folder, or of that model.

    Raises:
        FileNotFoundError: There is none.
    """
    given = Path(path)
    folder = given if given.is_dir() else given.parent
    found = given if given.name == PREDICTOR else folder / PREDICTOR
    if not found.is_file():
        raise FileNotFoundError(
            f"Expected a tested step, a folder with {PREDICTOR}, but {found} does not "
            f"exist. Name results/<dataset>/<task>-<setting>/<method>/seed<n>/step<t>, "
            f"after Snakemake has made its evaluation.json."
        )
    return found
