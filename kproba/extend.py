"""For files of extensions: the entries of all tables, and a function to add each.

    from kproba.extend import Method, Term, add_method, add_term

docs/extending.md has a recipe for each. Nothing here imports torch; a file of
extensions should import it inside its functions, because the plan of the workflow loads
the file too.
"""

from kproba.data.kinds import KINDS, DatasetKind
from kproba.data.kinds.pairs import Pair, Problem
from kproba.extensions import add_entry
from kproba.methods.builtin import METHODS
from kproba.methods.method import Method
from kproba.methods.rules import RULES, LabelRule
from kproba.methods.terms import TERMS, Term
from kproba.network.backbones import BACKBONES, BackboneEntry
from kproba.network.heads import HEADS, HeadEntry
from kproba.results.measures import MEASURES, CostMeasure, RunMeasure, StepMeasure

__all__ = [
    "BACKBONES",
    "HEADS",
    "KINDS",
    "MEASURES",
    "METHODS",
    "RULES",
    "TERMS",
    "BackboneEntry",
    "CostMeasure",
    "DatasetKind",
    "HeadEntry",
    "LabelRule",
    "Method",
    "Pair",
    "Problem",
    "RunMeasure",
    "StepMeasure",
    "Term",
    "add_backbone",
    "add_dataset_kind",
    "add_head",
    "add_label_rule",
    "add_measure",
    "add_method",
    "add_term",
]


def add_term(term: Term) -> None:
    """Add a loss term, for the `losses` or the `cross_entropy` of methods."""
    add_entry("loss term", TERMS, term.name, term)


def add_head(head: HeadEntry) -> None:
    """Add an output head, for the `head` of methods."""
    add_entry("head", HEADS, head.name, head)


def add_backbone(backbone: BackboneEntry) -> None:
    """Add a backbone, for `model.backbone`."""
    add_entry("backbone", BACKBONES, backbone.name, backbone)


def add_label_rule(rule: LabelRule) -> None:
    """Add a rule of the pseudo labels, for `pseudo_labels.rule`."""
    add_entry("label rule", RULES, rule.name, rule)


def add_dataset_kind(kind: DatasetKind) -> None:
    """Add a kind of dataset, for the `kind` of a dataset."""
    add_entry("dataset kind", KINDS, kind.name, kind)


def add_method(name: str, method: Method) -> None:
    """Add a method, for the `methods` of an experiment."""
    add_entry("method", METHODS, name, method)


def add_measure(measure: StepMeasure | RunMeasure) -> None:
    """Add a measure to tables, figures and page; it stands after the others."""
    add_entry("measure", MEASURES, measure.name, measure)
