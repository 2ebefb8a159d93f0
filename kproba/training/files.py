"""The files of a training. This module loads no library, for a fast command line."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path

from kproba import artifacts
from kproba.data.folders import Folders

OUTPUTS = ("model", "metrics", "usage", "tensorboard")


@dataclass(frozen=True)
class Files:
    """Inputs and outputs of a training.

    Attributes:
        split: CSV of the step's images.
        model, metrics, usage, tensorboard: Outputs.
        previous: Model of step t-1; None at step 0.
        pseudo_labels: Folder of targets; None to train on the raw labels.
        weights: Weights of the backbone at step 0, if they come from a file.
        bank: Bank of step t-1, if it corrects the teacher.
        feature_network: Model whose features the bank uses, if not `previous`.
        statistics: Statistics of the old classes' features, if a term needs them.
        chain: CSVs of the images of the steps 0..T, if the training has as many
            iterations as this chain; else empty.
        saliency: saliency.csv of the dataset and of its additions, if the method reads
            saliency maps; else empty.
        memory: Table of the old images after step t-1; None without.
        memory_labels: Folder of their targets.
        validation: Indices of the dataset and of its additions, for validation checks
            during the training; empty for no checks.
        folders: Folders of the pictures, by dataset or addition.
        names: Names of the classes so far, for pictures; empty: use labels instead.
    """

    split: Path
    model: Path
    metrics: Path
    usage: Path
    tensorboard: Path
    previous: Path | None = None
    pseudo_labels: Path | None = None
    weights: Path | None = None
    bank: Path | None = None
    feature_network: Path | None = None
    statistics: Path | None = None
    memory: Path | None = None
    memory_labels: Path | None = None
    chain: tuple[Path, ...] = ()
    saliency: tuple[Path, ...] = ()
    validation: tuple[Path, ...] = ()
    folders: Mapping[str, Folders] = field(default_factory=dict)
    names: tuple[str, ...] = ()

    @property
    def state(self) -> Path:
        """State of an unfinished run; removed at the end."""
        return self.model.with_name(Path(artifacts.STATE).name)

    def inputs(self) -> list[Path]:
        """The files whose content determines the result: all but these two kinds."""
        others = (*OUTPUTS, "chain", "validation", "folders", "names")
        names = [field.name for field in fields(self) if field.name not in others]
        files: list[Path] = []
        for value in (getattr(self, name) for name in names):
            for path in value if isinstance(value, tuple) else (value,):
                if path is not None:
                    files += sorted(path.glob("*.png")) if path.is_dir() else [path]
        return [*files, *self.chain]
