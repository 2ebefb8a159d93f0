"""The settings of a step and the files of its training."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from kproba import artifacts
from kproba.bank.decision import Decision
from kproba.data.augmentation import Augmentation
from kproba.data.labels import LabelMap
from kproba.methods.method import Method
from kproba.network.architecture import Architecture


@dataclass(frozen=True)
class LearningRates:
    """Learning rates by part of the network.

    Attributes:
        backbone: The backbone.
        aspp: The ASPP.
        branch: The newest branch; with the head "softmax" all classifiers.
        old_branches: The branches of earlier steps; with the head "softmax" nothing.
    """

    backbone: float
    aspp: float
    branch: float
    old_branches: float


@dataclass(frozen=True)
class Optimisation:
    """The optimisation of a step; see docs/method.md.

    Attributes:
        epochs: Passes over the step's images.
        batch_size: Images per iteration over all processes.
        optimizer: "sgd" (Nesterov) or "adamw".
        learning_rate: Initial rates.
        momentum: Momentum of SGD.
        weight_decay: For all parameters.
        power, floor: lr = max(floor, lr_0 (1 - i/n)^power) at iteration i of n.
        gradient_clip: Largest norm of the gradient, None for no clipping.
        precision: "auto": bfloat16 on a GPU that supports it, else float16 with loss
            scaling; float32 on the CPU. Or one of "float32", "bfloat16", "float16".
    """

    epochs: float
    batch_size: int
    optimizer: Literal["sgd", "adamw"]
    learning_rate: LearningRates
    momentum: float
    weight_decay: float
    power: float
    floor: float
    gradient_clip: float | None
    precision: Literal["auto", "float32", "bfloat16", "float16"]

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "Optimisation":
        """From a section of the configuration."""
        rates = LearningRates(**content["learning_rate"])
        return cls(**{**content, "learning_rate": rates})


@dataclass(frozen=True)
class RunStep:
    """Which step of which run; names alone, they determine nothing.

    Attributes:
        dataset, task, setting, method, seed, step: As in the path of the artifacts.
    """

    dataset: str
    task: str
    setting: str
    method: str
    seed: int
    step: int


@dataclass(frozen=True)
class StepSettings:
    """Everything that determines the result of a step, besides its input files.

    Attributes:
        run: Names of the run that owns the artifacts.
        seed: Seed of weights, order, augmentation and dropout.
        groups: Raw labels of the classes of the steps 0..t.
        class_names: Names of S_t in output order, "background" first.
        sequential: Old classes keep their true labels (setting "sequential").
        architecture, weights: The network; None from step 1 on, where both come
            with the previous model.
        augmentation: How images are augmented.
        optimisation: How the step is optimised.
        method: Head, loss terms, and what is trained.
        decision: How network and bank decide together on the targets of the old
            classes; None: the previous network is the only teacher.
        extensions: Files of the user that the step uses, with their SHA-256.
    """

    run: RunStep
    seed: int
    groups: tuple[tuple[int, ...], ...]
    class_names: list[str]
    sequential: bool
    architecture: Architecture | None
    weights: str | None
    augmentation: Augmentation
    optimisation: Optimisation
    method: Method
    decision: Decision | None = None
    extensions: tuple[dict[str, str], ...] = ()

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "StepSettings":
        """From the content of settings.json.

        Raises:
            ValueError: A key is missing or unknown, as in a file of another version.
        """
        known = {field.name for field in fields(cls)}
        needed = known - {"decision", "extensions"}
        if not needed <= content.keys() <= known:
            raise ValueError(
                f"Expected the keys {', '.join(sorted(needed))} in settings.json, but "
                f"got {', '.join(content)}. Let Snakemake write the file again."
            )
        try:
            return cls(**_parsed(content))
        except (KeyError, TypeError) as error:
            raise ValueError(
                f"Expected the settings of this version in settings.json, but got "
                f"others ({error}). Let Snakemake write the file again."
            ) from error

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for model.json and the mark of a saved state."""
        content = {**asdict(self), "method": self.method.to_dict()}
        if not self.extensions:
            del content["extensions"]
        return content

    @property
    def step(self) -> int:
        """T."""
        return self.run.step

    @property
    def label_map(self) -> LabelMap:
        """Raw labels to output indices at this step."""
        return LabelMap(self.groups, "sequential" if self.sequential else "overlap")


def _parsed(content: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `StepSettings` from the content of settings.json."""
    architecture, decision = content["architecture"], content.get("decision")
    return {
        "run": RunStep(**content["run"]),
        "seed": content["seed"],
        "groups": tuple(tuple(group) for group in content["groups"]),
        "class_names": content["class_names"],
        "sequential": content["sequential"],
        "architecture": architecture and Architecture.from_dict(architecture),
        "weights": content["weights"],
        "augmentation": Augmentation.from_dict(content["augmentation"]),
        "optimisation": Optimisation.from_dict(content["optimisation"]),
        "method": Method.from_dict(content["method"]),
        "decision": decision and Decision.from_dict(decision),
        "extensions": tuple(content.get("extensions", ())),
    }


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
        bank: Bank of step t-1, where it corrects the teacher.
        feature_network: Model whose features the bank reads, if not `previous`.
        validation: Index of the dataset and of its additions, of which some validation
            images are tested now and then; empty for none.
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
    validation: tuple[Path, ...] = ()

    @property
    def state(self) -> Path:
        """State of an unfinished run; removed at the end."""
        return self.model.with_name(Path(artifacts.STATE).name)

    def inputs(self) -> list[Path]:
        """The files whose content determines the result: all but these two kinds."""
        others = (*OUTPUTS, "validation")
        names = [field.name for field in fields(self) if field.name not in others]
        files: list[Path] = []
        for path in (getattr(self, name) for name in names):
            if path is not None:
                files += sorted(path.glob("*.png")) if path.is_dir() else [path]
        return files
