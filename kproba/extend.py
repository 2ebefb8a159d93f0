"""The interface for extensions: entry types of all tables, and functions to add them.

    from kproba.extend import Method, Term, add_method, add_term

docs/extending.md has recipes. Nothing here imports torch. A file of extensions should
import it inside its functions, because the plan of the workflow loads the file at every
call of Snakemake.

Do not change the tables directly: Snakemake would not run jobs again after an edit of
such an entry. All functions raise `ExtensionError` if the entry is wrong or its name
exists already.
"""

import re
from collections.abc import Iterable
from typing import Any

from kproba.data.kinds import KINDS, DatasetKind
from kproba.data.kinds.kind import missing_dataset
from kproba.data.kinds.pairs import Pair, Problem
from kproba.data.kinds.settings import ON_ERROR, SHARE, path_setting
from kproba.extensions import ExtensionError, add_entry
from kproba.methods.builtin import METHODS
from kproba.methods.method import Method, Recipe
from kproba.methods.rules import (
    DEFAULT_COMBINATION,
    RULES,
    LabelRule,
    scoring_rules,
)
from kproba.methods.terms import (
    NEEDS,
    SALIENCY,
    TERMS,
    Term,
    cross_entropies,
    further_terms,
)
from kproba.network.backbones import BACKBONES, BackboneEntry
from kproba.network.heads import HEADS, HeadEntry
from kproba.results.measures import MEASURES, CostMeasure, RunMeasure, StepMeasure

__all__ = [
    "ON_ERROR",
    "SHARE",
    "BackboneEntry",
    "CostMeasure",
    "DatasetKind",
    "ExtensionError",
    "HeadEntry",
    "LabelRule",
    "Method",
    "Pair",
    "Problem",
    "Recipe",
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
    "missing_dataset",
    "path_setting",
]

# Names become keys of the configuration and parts of paths.
NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]*")
NO_METHOD = "figures"  # a folder beside those of the methods
OUTPUT_STRIDES = (8, 16)  # that the configuration allows
# Columns of metrics.csv that no term may have.
METRICS = ("iteration", "loss")
# Keys of evaluation.json and columns of summary.csv that no measure may have.
RESULTS = (
    *("dataset", "task", "setting", "method", "seed", "step", "folder"),
    *("class_order", "prediction", "protocol", "images", "classes"),
)


def add_term(term: Term) -> None:
    """Add a loss term, for the `losses` or the `cross_entropy` of methods."""
    where = _check(term, Term, "loss term")
    _check_code(where, term, ("function",), ("scale", "totals"))
    _expect(
        isinstance(term.needs, set | frozenset),
        f"{where}: expected a frozenset for `needs`, but got {term.needs!r}.",
    )
    # The needs are not checked yet, because their head may be added later.
    _expect(
        all(isinstance(need, str) for need in term.needs),
        f"{where}: expected strings in `needs`, but got "
        f"{', '.join(sorted(map(repr, term.needs)))}.",
    )
    column = term.column or term.name
    _expect(
        column not in METRICS and not column.startswith("lr_"),
        f"{where}: expected a column name other than {', '.join(METRICS)} and lr_.., "
        f"but got '{column}'. Set `column`.",
    )
    add_entry("loss term", TERMS, term.name, term)


def add_head(head: HeadEntry) -> None:
    """Add an output head, for the `head` of methods, after the terms of its step 0."""
    where = _check(head, HeadEntry, "head")
    _check_code(where, head, ("implementation",))
    _expect(
        isinstance(head.provides, set | frozenset),
        f"{where}: expected a frozenset for `provides`, but got {head.provides!r}.",
    )
    _check_choice(where, "step_0_loss", head.step_0_loss, cross_entropies())
    for term in head.step_0_terms:
        _check_choice(where, "step_0_terms", term, further_terms())
    for term in (head.step_0_loss, *head.step_0_terms):
        lacking = TERMS[term].needs - head.provides - {SALIENCY}
        _expect(
            not lacking,
            f"{where}: expected terms of step 0 that need only what the head provides "
            f"({', '.join(sorted(head.provides))}), but {term} needs "
            f"{', '.join(sorted(lacking))}. Change the term or `provides`.",
        )
    taken = [*(entry.base for entry in HEADS.values()), *METHODS, NO_METHOD]
    _expect(
        bool(NAME.fullmatch(head.base)) and head.base not in taken,
        f"{where}: expected a new name of letters, digits, '_', '.' and '-' for "
        f"`base`, but got {head.base!r}. Choose a name that no head or method uses.",
    )
    add_entry("head", HEADS, head.name, head)


def add_backbone(backbone: BackboneEntry) -> None:
    """Add a backbone, for `model.backbone`."""
    where = _check(backbone, BackboneEntry, "backbone")
    optional = ("read_pretrained", "adapt_state", "feature_size")
    _check_code(where, backbone, ("build", "stages"), optional)
    _expect(
        bool(backbone.output_strides)
        and set(backbone.output_strides) <= set(OUTPUT_STRIDES),
        f"{where}: expected `output_strides` of {OUTPUT_STRIDES}, but got "
        f"{backbone.output_strides!r}.",
    )
    for field in ("mean", "std"):
        values = getattr(backbone, field)
        _expect(
            isinstance(values, tuple) and len(values) == 3,
            f"{where}: expected three numbers for `{field}`, but got {values!r}.",
        )
    _expect(
        backbone.anchor in (None, "start", "end"),
        f"{where}: expected 'start', 'end' or None for `anchor`, but got "
        f"{backbone.anchor!r}.",
    )
    add_entry("backbone", BACKBONES, backbone.name, backbone)


def add_label_rule(rule: LabelRule) -> None:
    """Add a rule of the pseudo labels, for `pseudo_labels.rule`."""
    where = _check(rule, LabelRule, "label rule")
    _check_code(where, rule, ("function",), ("prepare",))
    for key in rule.reads:
        known = {key for entry in RULES.values() for key in entry.reads}
        _check_choice(where, "reads", key, known)
    _expect(
        not rule.scores,
        f"{where}: expected scores=False, because only {', '.join(scoring_rules())} "
        f"can predict, but got True. Set `combines` to one of them.",
    )
    if rule.combines is not None:
        _check_choice(where, "combines", rule.combines, scoring_rules())
    if rule.bank is not None:
        fitting = [name for name in scoring_rules() if RULES[name].bank == rule.bank]
        # None means the default rule, which cannot use a bank with "rff".
        combines = rule.combines or DEFAULT_COMBINATION
        _expect(
            combines in fitting,
            f"{where}: expected `combines` to be a rule with the bank {rule.bank!r} "
            f"({', '.join(fitting)}), but got {rule.combines!r}.",
        )
    add_entry("label rule", RULES, rule.name, rule)


def add_dataset_kind(kind: DatasetKind) -> None:
    """Add a kind of dataset, for the `kind` of a dataset."""
    where = _check(kind, DatasetKind, "dataset kind")
    _check_code(where, kind, ("find_pairs", "find_folders", "class_names"), strict=True)
    _expect(
        not kind.drawn,
        f"{where}: expected drawn=False, because no workflow rule draws this dataset, "
        f"but got True.",
    )
    keys = ["path", *kind.required]
    if kind.archives:
        keys += ["download", "mirrors", "checksums"]
    missing = [key for key in keys if key not in kind.settings]
    _expect(
        not missing,
        f"{where}: expected a schema for {', '.join(keys)} in `settings`, but "
        f"{', '.join(missing)} is missing. Add it; `path_setting` returns the schema "
        f"of `path`.",
    )
    add_entry("dataset kind", KINDS, kind.name, kind)


def add_method(name: str, method: Method) -> None:
    """Add a method, for the `methods` of an experiment, after adding its parts."""
    where = _check(method, Method, "method", name)
    bases = [head.base for head in HEADS.values()]
    _expect(
        name not in (*bases, NO_METHOD),
        f"{where}: this name is reserved. Choose another name.",
    )
    _check_choice(where, "head", method.head, HEADS)
    _check_choice(where, "cross_entropy", method.cross_entropy, cross_entropies())
    of_recipes = _check_recipes(where, method)
    for term in (*method.losses, *of_recipes):
        _check_choice(where, "losses", term, further_terms())
    provided = HEADS[method.head].provides | set(NEEDS)
    for term in (*method.terms, *of_recipes):
        lacking = TERMS[term].needs - provided
        _expect(
            not lacking,
            f"{where}: expected terms that fit the head '{method.head}', but {term} "
            f"needs {', '.join(sorted(lacking))}. Change the term or the head.",
        )
    rule = method.pseudo_labels.get("rule")
    if rule is not None:
        _check_choice(where, "pseudo_labels.rule", rule, RULES)
    _check_choice(where, "teacher", method.teacher, ("network", "fused"))
    parts = ("all", "heads", "newest", "nothing")
    _check_choice(where, "trains", method.trains, parts)
    predictions = ("network", "fused", *scoring_rules())
    _check_choice(where, "prediction", method.prediction, predictions)
    add_entry("method", METHODS, name, method)


def _check_recipes(where: str, method: Method) -> list[str]:
    """Check the recipes of a method; returns the loss terms in them."""
    _expect(
        all(isinstance(recipe, Recipe) for recipe in method.recipes),
        f"{where}: expected Recipe entries in `recipes`, but got {method.recipes!r}.",
    )
    for recipe in method.recipes:
        _expect(
            isinstance(recipe.kinds, tuple) and isinstance(recipe.tasks, tuple),
            f"{where}: expected tuples of names as `kinds` and `tasks` of a recipe, "
            f"but got {recipe.kinds!r} and {recipe.tasks!r}. Write them as ('voc',).",
        )
    return [name for recipe in method.recipes for name in recipe.losses]


def add_measure(measure: StepMeasure | RunMeasure | CostMeasure) -> None:
    """Add a measure to tables, figures and page, after the existing ones."""
    kinds = (StepMeasure, RunMeasure, CostMeasure)
    where = _check(measure, kinds, "measure")
    _check_code(where, measure, ("compute",), strict=True)
    titles = [entry.title for entry in MEASURES.values() if entry.name != measure.name]
    _expect(
        measure.name not in RESULTS and measure.title not in titles,
        f"{where}: expected a name and a title that no other column of the tables has, "
        f"but got '{measure.name}' and '{measure.title}'. Choose others.",
    )
    add_entry("measure", MEASURES, measure.name, measure)


def _expect(holds: bool, message: str) -> None:
    if not holds:
        raise ExtensionError(message)


def _check(
    entry: Any, kinds: type | tuple[type, ...], what: str, name: Any = None
) -> str:
    """Check type and name of an entry; returns the start of further messages."""
    types = kinds if isinstance(kinds, tuple) else (kinds,)
    _expect(
        isinstance(entry, types),
        f"Expected a {' or '.join(kind.__name__ for kind in types)} of kproba.extend "
        f"as the {what}, but got {entry!r}.",
    )
    name = entry.name if name is None else name
    _expect(
        isinstance(name, str) and NAME.fullmatch(name) is not None,
        f"Expected a name of letters, digits, '_', '.' and '-' for a {what}, but got "
        f"{name!r}.",
    )
    return f"{what} '{name}'"


def _check_code(
    where: str,
    entry: Any,
    needed: tuple[str, ...],
    optional: tuple[str, ...] = (),
    *,
    strict: bool = False,
) -> None:
    """Check that fields hold functions, or references to them unless `strict`."""
    for field in (*needed, *optional):
        value = getattr(entry, field)
        if callable(value) or (field in optional and value is None):
            continue
        wanted = "a function"
        if not strict:
            wanted += " or its reference 'package.module:name'"
            if isinstance(value, str) and value.count(":") == 1:
                continue
        raise ExtensionError(
            f"{where}: expected {wanted} as `{field}`, but got {value!r}."
        )


def _check_choice(where: str, field: str, value: Any, known: Iterable[str]) -> None:
    """Check a name from another table; its entry must be added before."""
    names = list(known)
    _expect(
        value in names,
        f"{where}: expected `{field}` of {', '.join(sorted(names))}, but got "
        f"{value!r}. Correct the name, or add that entry first.",
    )
