"""TODO training.settings."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from kproba.data.augmentation import Augmentation
from kproba.data.labels import LabelMap
from kproba.methods.method import Method
from kproba.network.network import Architecture


@dataclass(frozen=True)
class Optimisation:
    """How a step is optimised; method.md, "Optimisation".

    Attributes:
        epochs: Passes over the step's images.
        batch_size: Images per iteration over all processes.
        optimizer: "sgd" (Nesterov) or "adamw".
        backbone, aspp, branch, old_branches: Learning rates; `branch` is the newest.
        momentum: Of SGD.
        weight_decay: For all parameters.
        power, floor: lr = max(floor, lr_0 (1 - i/n)^power) at iteration i of n.
        gradient_clip: Largest norm of the gradient, None for no clipping.
        precision: "auto": bfloat16 on a GPU that supports it, else float16 with loss
            scaling; float32 on the CPU. Or one of "float32", "bfloat16", "float16".
    """

    epochs: float
    batch_size: int
    optimizer: Literal["sgd", "adamw"]
    backbone: float
    aspp: float
    branch: float
    old_branches: float
    momentum: float
    weight_decay: float
    power: float
    floor: float
    gradient_clip: float | None
    precision: Literal["auto", "float32", "bfloat16", "float16"]


@dataclass(frozen=True)
class StepSettings:
    """Everything that determines the result of a step, besides its input files.

    Attributes:
        dataset, task, setting, method, seed, step: Which step of which run.
        groups: Raw labels of the classes of the steps 0..t.
        class_names: Names of S_t in output order, "background" first.
        architecture, weights: Of the network; None from step 1 on, where both come
            with the previous model.
        augmentation, optimisation, recipe: How it trains.
        guide: `PseudoLabelSettings` as a dictionary: how network and bank teach
            together; None: the network alone.
    """

    dataset: str
    task: str
    setting: str
    method: str
    seed: int
    step: int
    groups: tuple[tuple[int, ...], ...]
    class_names: list[str]
    architecture: Architecture | None
    weights: str | None
    augmentation: Augmentation
    optimisation: Optimisation
    recipe: Method
    guide: dict[str, Any] | None = None

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> "StepSettings":
        """From the content of settings.json."""
        augmentation = dict(content["augmentation"])
        augmentation["scale"] = tuple(augmentation["scale"])
        architecture = content["architecture"]
        return cls(
            **{
                **content,
                "groups": tuple(tuple(group) for group in content["groups"]),
                "architecture": architecture and Architecture(**architecture),
                "augmentation": Augmentation(**augmentation),
                "optimisation": Optimisation(**content["optimisation"]),
                "recipe": Method.from_dict(content["recipe"]),
            }
        )

    @property
    def label_map(self) -> LabelMap:
        """Raw labels to output indices at this step."""
        return LabelMap(self.groups, self.setting)


@dataclass(frozen=True)
class Files:
    """Inputs and outputs of a step.

    Attributes:
        split: CSV of the step's images.
        previous: Model of step t-1; None at step 0.
        pseudo_labels: Folder of targets; None to train on the raw labels.
        weights: Of the backbone at step 0, if they come from a file.
        bank: Of step t-1, where it teaches too.
        source: Model of that bank's features, if not `previous`.
        model, metrics, usage, tensorboard: Outputs.
        validation: Index of the dataset and of its additions, to look at some of their
            validation images now and then; empty not to.
        state: Where an unfinished run keeps its state; removed at the end.
    """

    split: Path
    previous: Path | None
    pseudo_labels: Path | None
    weights: Path | None
    model: Path
    metrics: Path
    usage: Path
    tensorboard: Path
    state: Path
    validation: tuple[Path, ...] = ()
    bank: Path | None = None
    source: Path | None = None

    def inputs(self) -> list[Path]:
        """The files whose content determines the result."""
        maybe = (self.split, self.previous, self.weights, self.bank, self.source)
        files = [path for path in maybe if path is not None]
        if self.pseudo_labels is not None:
            files += sorted(self.pseudo_labels.glob("*.png"))
        return files


@dataclass(frozen=True)
class Means:
    """What the machine offers; changes speed, never the experiment.

    Attributes:
        workers: Loader processes per process.
        accumulation: Micro-batches per iteration and process.
        compile: Let `torch.compile` make kernels of its own for the backbone.
        cache_gib: Memory per process for decoded images, in GiB.
        state_minutes: Minutes between two saved states.
        log_seconds: Seconds between two log lines.
        looks: How often the validation images are looked at.
        look_images: How many of them.
    """

    workers: int = 0
    accumulation: int = 1
    compile: bool = False
    cache_gib: float = 0.0
    state_minutes: float = 5.0
    log_seconds: float = 15.0
    looks: int = 0
    look_images: int = 0
