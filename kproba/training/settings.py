"""The settings of a step: everything that determines its result, except for files."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from kproba.bank.decision import DECISION, Decision, convert_decision
from kproba.data.augmentation import OUTSIDE, Augmentation
from kproba.data.labels import LabelMap
from kproba.data.memory_rules import MEMORY_RULES
from kproba.extensions import load_recorded
from kproba.methods.method import Method
from kproba.methods.terms import TERMS
from kproba.network.architecture import ARCHITECTURE, Architecture
from kproba.network.backbones import BACKBONES
from kproba.network.heads import HEADS
from kproba.network.record import EXTENSIONS, MOST_CLASSES
from kproba.runtime import records

REWRITE = "Let Snakemake write the file again."

_RATE = records.number(0)
_EPOCHS = records.number(most=1e6, above=0)
_BATCH = records.integer(1, 2**20)
# A step of a chain has one of the two.
CHAIN_STEP = records.either(
    records.record({"batch_size": _BATCH, "epochs": _EPOCHS}),
    records.record({"batch_size": _BATCH, "iterations": records.integer(1, 10**9)}),
)
OPTIMISATION = records.record(
    {
        "epochs": _EPOCHS,
        "batch_size": _BATCH,
        "optimizer": records.choice("sgd", "adamw"),
        "learning_rate": records.record(
            dict.fromkeys(("backbone", "aspp", "branch", "old_branches"), _RATE)
        ),
        "momentum": records.number(0, 1),
        "weight_decay": _RATE,
        "power": _RATE,
        "floor": _RATE,
        "gradient_clip": records.maybe(records.number(above=0)),
        "precision": records.choice("auto", "float32", "bfloat16", "float16"),
    },
    {
        "iterations": records.maybe(records.integer(0, 10**9)),
        "chain": records.list_of(CHAIN_STEP, least=1, most=10_000),
    },
)
AUGMENTATION = records.record(
    {
        "crop_size": records.integer(1, 2**16),
        "scale": records.list_of(records.number(most=1e3, above=0), least=2, most=2),
        "horizontal_flip": records.number(0, 1),
    },
    {
        **dict.fromkeys(("brightness", "contrast", "saturation"), records.number(0, 1)),
        "outside": records.choice(*OUTSIDE),
    },
)
METHOD = records.record(
    {
        "head": records.text(100),
        "cross_entropy": records.text(100),
        "trains": records.choice("all", "heads", "newest", "nothing"),
        "start_from_background": records.flag,
        "losses": records.mapping_of(records.number(0), most=1000),
    },
    {
        "options": records.mapping_of(records.number(), most=1000),
        "dropout": records.flag,
    },
)
MEMORY = records.record(
    {
        "images": records.integer(1, 10**6),
        "rule": records.choice(*MEMORY_RULES),
        "share": records.maybe(records.number(most=1, above=0)),
    }
)
SETTINGS = records.record(
    {
        "run": records.record(
            {
                **dict.fromkeys(
                    ("dataset", "task", "setting", "method"), records.text()
                ),
                "seed": records.integer(),
                "step": records.integer(0, 10_000),
            }
        ),
        "seed": records.integer(),
        "groups": records.list_of(
            records.list_of(records.integer(1, MOST_CLASSES), least=1, distinct=True),
            least=1,
            most=MOST_CLASSES,
        ),
        "sequential": records.flag,
        "architecture": records.maybe(ARCHITECTURE),
        "weights": records.maybe(records.text(4096)),
        "augmentation": AUGMENTATION,
        "optimisation": OPTIMISATION,
        "method": METHOD,
    },
    {
        "decision": records.maybe(DECISION),
        "replay": records.choice("overlap", "disjoint"),
        "extensions": EXTENSIONS,
        "memory": records.maybe(MEMORY),
    },
)


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
class ChainStep:
    """How long one step of a chain is trained; one of epochs and iterations is set.

    Attributes:
        batch_size: Images per iteration over all processes.
        epochs: Passes over the step's images.
        iterations: Iterations of the step.
    """

    batch_size: int
    epochs: float | None = None
    iterations: int | None = None

    def to_dict(self) -> dict[str, float]:
        """The values that are set, as in settings.json."""
        return {key: value for key, value in vars(self).items() if value is not None}


@dataclass(frozen=True)
class Optimisation:
    """The optimisation of a step; see docs/configuration.md.

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
        iterations: Iterations of the step, in place of `epochs`; None: by epochs; 0: a
            step that trains nothing.
        chain: The steps 0..T of a chain. The training has as many iterations as all of
            them together, in place of `epochs`; empty for other trainings.
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
    iterations: int | None = None
    chain: tuple[ChainStep, ...] = ()

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "Optimisation":
        """From a section of the configuration."""
        rates = LearningRates(**content["learning_rate"])
        chain = tuple(ChainStep(**step) for step in content.get("chain", ()))
        return cls(**{**content, "learning_rate": rates, "chain": chain})

    @property
    def by_epochs(self) -> bool:
        """Whether `epochs` decides on the length of the training."""
        return self.iterations is None and not self.chain


@dataclass(frozen=True)
class MemorySettings:
    """How a step uses old images.

    Attributes:
        images: Number of old images for all classes together, at most.
        rule: One of `kproba.data.memory_rules.MEMORY_RULES`.
        share: Their share of every global batch; None: they are added to the images of
            the step.
    """

    images: int
    rule: str
    share: float | None


@dataclass(frozen=True)
class RunStep:
    """The names of a step and its run; they do not affect the result.

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
        sequential: Whether old classes keep their true labels (setting "sequential").
        architecture, weights: The network; None from step 1 on, where both come
            with the previous model.
        augmentation: How images are augmented.
        optimisation: How the step is optimised.
        method: Head, loss terms, and trained parts.
        decision: How network and bank are combined for the targets of the old classes;
            None: the previous network is the only teacher.
        replay: The rule of the replayed features, "overlap" or "disjoint"
            (`kproba.methods.replay`); None: no term needs them.
        extensions: Files of the user that the step uses, with their SHA-256.
        memory: How the step uses old images; None: it has none.
    """

    run: RunStep
    seed: int
    groups: tuple[tuple[int, ...], ...]
    sequential: bool
    architecture: Architecture | None
    weights: str | None
    augmentation: Augmentation
    optimisation: Optimisation
    method: Method
    decision: Decision | None = None
    replay: Literal["overlap", "disjoint"] | None = None
    extensions: tuple[dict[str, str], ...] = ()
    memory: MemorySettings | None = None

    @classmethod
    def from_dict(
        cls, content: Any, source: str | Path = "settings.json"
    ) -> "StepSettings":
        """From the content of settings.json.

        Args:
            content: Plain values; `class_names`, of version 0.1, are left out.
            source: Their source, for messages.

        Raises:
            ArtifactError: A key is missing or unknown, as in a file of another version,
                or a value has a wrong type or is out of bounds. It is a ValueError.
        """
        if not isinstance(content, Mapping):
            content = {}
        content = {key: value for key, value in content.items() if key != "class_names"}
        known = {field.name for field in fields(cls)}
        needed = known - {"decision", "replay", "extensions", "memory"}
        if not needed <= content.keys() <= known:
            got = ", ".join(str(key) for key in content)[:500] or "none"
            raise records.ArtifactError(
                f"Expected the keys {', '.join(sorted(needed))} in {source}, but "
                f"got {got}. {REWRITE}"
            )
        if content.get("decision") is not None:
            content["decision"] = convert_decision(content["decision"])
        records.check_content(content, SETTINGS, source, remedy=REWRITE)
        return cls(**_parsed(content))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for model.json and the mark of a saved state."""
        content = {**asdict(self), "method": self.method.to_dict()}
        if not self.extensions:
            del content["extensions"]
        if self.memory is None:
            del content["memory"]
        if self.replay is None:
            del content["replay"]
        # As settings.json has it.
        if self.optimisation.iterations is None:
            del content["optimisation"]["iterations"]
        chain = [step.to_dict() for step in self.optimisation.chain]
        content["optimisation"] |= {"chain": chain}
        if not chain:
            del content["optimisation"]["chain"]
        return content

    @property
    def step(self) -> int:
        """T, the number of steps before this one.

        It is 0 for a training of all classes at once, whatever the step in its path is.
        """
        return len(self.groups) - 1

    @property
    def label_map(self) -> LabelMap:
        """Raw labels to output indices at this step."""
        return LabelMap(self.groups, "sequential" if self.sequential else "overlap")


def _parsed(content: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `StepSettings` from the content of settings.json."""
    architecture, decision = content["architecture"], content.get("decision")
    memory = content.get("memory")
    return {
        "run": RunStep(**content["run"]),
        "seed": content["seed"],
        "groups": tuple(tuple(group) for group in content["groups"]),
        "sequential": content["sequential"],
        "architecture": architecture and Architecture.from_dict(architecture),
        "weights": content["weights"],
        "augmentation": Augmentation.from_dict(content["augmentation"]),
        "optimisation": Optimisation.from_dict(content["optimisation"]),
        "method": Method.from_dict(content["method"]),
        "decision": decision and Decision.from_dict(decision),
        "replay": content.get("replay"),
        "extensions": tuple(content.get("extensions", ())),
        "memory": memory and MemorySettings(**memory),
    }


def read_settings(path: str | Path) -> StepSettings:
    """Read a settings.json, and load the files of extensions that it names.

    Raises:
        FileNotFoundError: There is no such file.
        ArtifactError: It is damaged, or of another version. It is a ValueError.
        ExtensionError: A file of extensions is missing or has changed.
    """
    content = records.read_json(path, remedy=REWRITE)
    settings = StepSettings.from_dict(content, path)
    load_recorded(settings.extensions)
    _check_names(settings, Path(path))
    return settings


def _check_names(settings: StepSettings, path: Path) -> None:
    """Refuse names that are in no table, after the extensions were loaded."""
    architecture, method = settings.architecture, settings.method
    named: list[tuple[str, str, Mapping[str, object]]]
    named = [("head", method.head, HEADS)]
    named += [
        ("loss term", term, TERMS) for term in (method.cross_entropy, *method.losses)
    ]
    if architecture is not None:
        named += [("backbone", architecture.backbone, BACKBONES)]
        named += [("head", architecture.head, HEADS)]
    for what, name, table in named:
        if name not in table:
            raise records.ArtifactError(
                f"Expected a {what} of {', '.join(table)} in {path}, but got "
                f"{records.quote(name)}. {REWRITE}"
            )
