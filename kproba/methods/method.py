"""A method: a short declaration for the training loop.

A method names its output head, its cross-entropy, the further loss terms with their
weights, the rule of its pseudo labels, the parts that an increment trains, settings of
its bank and of its increments, and whether it is incremental. Everything else (splits,
loop, evaluation) is the same code for every method.
"""

from collections.abc import Container, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from kproba.data.tasks import without_order
from kproba.methods.terms import (
    SALIENCY,
    STATISTICS,
    TEACHER,
    TEACHER_LOGITS,
    TERMS,
    collect_needs,
    collect_options,
    in_order,
)
from kproba.network.heads import HEADS

# The run that holds the network of step 0 before its training, and the value of
# `bank.network` for a bank with its features.
PRETRAINED = "pretrained"


@dataclass(frozen=True)
class Recipe:
    """What the authors of a method change on some datasets and tasks.

    Attributes:
        kinds: Kinds of dataset, such as "voc"; empty: all.
        tasks: Tasks such as "15-1", which stands for every order of the classes;
            empty: all.
        losses: Weights of further loss terms, in place of those of the method; 0 takes
            a term away.
        options: Numbers that the terms read, in place of those of the method.
    """

    kinds: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    losses: Mapping[str, float] = field(default_factory=dict)
    options: Mapping[str, float] = field(default_factory=dict)

    def applies(self, kind: str, task: str) -> bool:
        """Whether a run uses the recipe.

        Args:
            kind: Kind of its dataset.
            task: Name of its task, such as "15-1" or "15-1_b".
        """
        of_kind = not self.kinds or kind in self.kinds
        return of_kind and (not self.tasks or without_order(task) in self.tasks)

    def without(self, names: Container[str]) -> "Recipe":
        """The recipe without the terms and options that a user has set."""
        losses, options = (
            {name: values[name] for name in values if name not in names}
            for values in (self.losses, self.options)
        )
        return replace(self, losses=losses, options=options)


@dataclass(frozen=True)
class Method:
    """One class-incremental method.

    Attributes:
        head: Output head, an entry of `kproba.network.heads.HEADS`.
        cross_entropy: Name of the cross-entropy term of an increment.
        losses: Weights of the further terms of an increment, by name.
        options: Numbers that the terms read as `case.options`, by name; the terms that
            need one name it in `Term.options`, with its default.
        joint: Train on everything at once (all images with the labels of all classes)
            instead of step by step.
        use_pseudo_labels: Train an increment on the labels that `export_pseudo_labels`
            wrote (old classes found in the background) instead of the raw labels.
        pseudo_labels: Keys of the configuration's `pseudo_labels` that the method sets.
        bank: Keys of the configuration's `bank` that the method sets.
        decision: Keys of the configuration's `decision` that the method sets.
        increment: Keys of the configuration's `increment` that the method sets.
        teacher: Who provides the targets of `gkd`: the previous "network", or from step
            `teacher_from` on network and bank together, "fused", where the label is
            background (`kproba.bank.teacher`).
        teacher_from: The first step whose targets the bank corrects. By default it is
            step 2: the network of step 0 has learned all its classes together and knows
            no later classes.
        trains: "all"; "heads": everything but the backbone; "newest": the newest
            branch alone, or what the head names instead (`Head.newest`); or "nothing":
            the bank learns alone.
        prediction: How classes are predicted: "network": by the network alone; "lda",
            "klda", "kappa" or "ridge": by network and bank with this evidence; "step0"
            or "step0_mean": by the network and that of step 0; "fused": with the
            evidence of the pseudo-label rule, or "lda" if that rule uses no bank. It
            affects the training only if the teacher is "fused".
        start_from_background: Whether new classes start from the weights of the
            background instead of random ones. Some heads ignore this.
        dropout: Whether the dropout of the ASPP is active in an increment.
        recipes: Changes on some datasets and tasks; of several that apply, the last
            one counts.
    """

    head: str = "branches"
    cross_entropy: str = "protected_bce"
    losses: Mapping[str, float] = field(default_factory=dict)
    options: Mapping[str, float] = field(default_factory=dict)
    joint: bool = False
    use_pseudo_labels: bool = True
    pseudo_labels: Mapping[str, Any] = field(default_factory=dict)
    bank: Mapping[str, Any] = field(default_factory=dict)
    decision: Mapping[str, Any] = field(default_factory=dict)
    increment: Mapping[str, Any] = field(default_factory=dict)
    teacher: Literal["network", "fused"] = "network"
    teacher_from: int = 2
    trains: Literal["all", "heads", "newest", "nothing"] = "all"
    prediction: str = "network"
    start_from_background: bool = False
    dropout: bool = True
    recipes: tuple[Recipe, ...] = ()

    def for_run(self, kind: str, task: str) -> "Method":
        """The method as a run uses it, with the recipes that apply.

        Args:
            kind: Kind of the run's dataset.
            task: Name of its task.
        """
        losses, options = dict(self.losses), dict(self.options)
        for recipe in self.recipes:
            if recipe.applies(kind, task):
                losses |= recipe.losses
                options |= recipe.options
        return replace(self, losses=in_order(losses), options=options, recipes=())

    @property
    def terms(self) -> dict[str, float]:
        """All terms of an increment with their weights, the cross-entropy first."""
        return {self.cross_entropy: 1.0, **in_order(self.losses)}

    @property
    def needs(self) -> frozenset[str]:
        """All outputs and labels that the terms need."""
        return collect_needs(self.terms)

    @property
    def needs_totals(self) -> bool:
        """Whether a term asks for sums over the global batch."""
        return any(TERMS[name].totals is not None for name in self.terms)

    @property
    def read_options(self) -> dict[str, float]:
        """The options that the terms read, with their defaults."""
        defaults = collect_options(self.terms)
        known = {key: value for key, value in self.options.items() if key in defaults}
        return {key: float(value) for key, value in {**defaults, **known}.items()}

    @property
    def sections(self) -> dict[str, Mapping[str, Any]]:
        """The keys that the method sets, by section of the configuration."""
        names = ("bank", "decision", "pseudo_labels", "increment")
        found = {name: getattr(self, name) for name in names}
        return {name: keys for name, keys in found.items() if keys}

    @property
    def trains_nothing(self) -> bool:
        """Whether an increment leaves the network as it is."""
        return self.trains == "nothing"

    @property
    def distils(self) -> bool:
        """Whether an increment runs the previous network."""
        return TEACHER in self.needs

    @property
    def replays(self) -> bool:
        """Whether a term draws features of old classes from their statistics."""
        return STATISTICS in self.needs

    @property
    def reads_saliency(self) -> bool:
        """Whether step 0 or an increment reads saliency maps."""
        head = HEADS[self.head]
        base = collect_needs([head.step_0_loss, *head.step_0_terms])
        return SALIENCY in self.needs | base

    @property
    def bank_teaches(self) -> bool:
        """Whether the bank corrects targets of an increment."""
        return self.teacher == "fused" and TEACHER_LOGITS in self.needs

    @property
    def base(self) -> str:
        """The name of the shared training of step 0 for this head."""
        if self.joint and self.trains_nothing:
            return PRETRAINED
        return HEADS[self.head].base

    def to_dict(self) -> dict[str, Any]:
        """The fields that the training of an increment uses, as plain JSON types."""
        names = ("head", "cross_entropy", "trains", "start_from_background")
        content = {name: getattr(self, name) for name in names}
        content["losses"] = in_order(self.losses)
        if self.read_options:
            content["options"] = self.read_options
        if not self.dropout:
            content["dropout"] = False
        return content

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "Method":
        """Read the values that `to_dict` wrote."""
        return cls(**content)
