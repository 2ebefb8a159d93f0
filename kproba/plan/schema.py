"""The schema of the configuration: checks, defaults and messages.

Names and keys that tables hold (backbones, heads, loss terms, label rules, kinds of
datasets) are filled into the schema, so a new entry does not need a change of the
schema.
"""

import copy
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jsonschema
import yaml

from kproba.data.kinds import KINDS
from kproba.data.memory_rules import MEMORY_RULES
from kproba.extensions import ExtensionError, load_extensions
from kproba.methods.builtin import METHODS
from kproba.methods.method import PRETRAINED
from kproba.methods.rules import RULES, scoring_rules
from kproba.methods.terms import (
    TERMS,
    collect_options,
    cross_entropies,
    further_terms,
)
from kproba.network.backbones import BACKBONES
from kproba.network.heads import HEADS
from kproba.plan.errors import ConfigError, suggestion
from kproba.plan.old_keys import find_old_keys
from kproba.plan.selection import for_selection

Config = dict[str, Any]

# Sections of which a method may change keys.
SECTIONS = ("bank", "decision", "pseudo_labels", "memory", "increment")


def check(config: Mapping[str, Any], schema_path: str | Path) -> Config:
    """Validate a configuration and fill in the defaults.

    With the key `selection`, its datasets are those of `kproba.plan.selection`.

    Files under `extensions` are loaded first: they may add names that it uses.

    Raises:
        ConfigError: A key is unknown or missing, a value has a wrong type or is out of
            bounds, or an extension fails. All errors of one kind are in one message.
    """
    config = _make_lists(_numbers(copy.deepcopy(dict(config))))
    extensions = config.get("extensions", [])
    if isinstance(extensions, list) and all(isinstance(e, str) for e in extensions):
        try:
            load_extensions(extensions)
        except ExtensionError as error:
            raise ConfigError(f"extensions: {error}") from error
    schema = load_schema(schema_path)
    config = dict(_typed(config, schema, schema))
    _refuse(find_old_keys(config) + _counted_twice(config))
    _refuse(_errors(config, schema) + _not_finite(config))
    filled = _with_defaults(config, schema, schema)
    errors = _wrong_ranges(filled)
    for changes in filled["methods"].values():
        increment = changes.get("increment", {})
        if "epochs" in increment:  # of a method, over iterations of the section
            increment.setdefault("iterations", None)
    own = {name: method.sections for name, method in METHODS.items()}
    for name, changes in filled["methods"].items():
        own[name] = merged(own.get(changes["based_on"], {}), changes)
    for name, keys in own.items():
        for section in [section for section in SECTIONS if section in keys]:
            laid_over = merged(filled[section], keys[section])
            where = f"methods.{name}.{section}"
            errors += _errors(laid_over, _section(schema, section), where)
    _refuse(errors)
    return for_selection(filled)


def _readers(option: str) -> str:
    """Which loss terms read an option."""
    names = [name for name, term in TERMS.items() if option in term.options]
    return f"Read by the loss terms {' and '.join(names)}."


def load_schema(path: str | Path) -> Config:
    """The schema in a file, with the names and keys that the tables hold."""
    schema: Config = _numbers(yaml.safe_load(Path(path).read_text(encoding="utf-8")))
    properties, definitions = schema["properties"], schema["$defs"]
    properties["model"]["properties"]["backbone"]["enum"] = list(BACKBONES)
    definitions["pseudo_labels"]["properties"]["rule"]["enum"] = list(RULES)
    memory = definitions["memory"]["properties"]
    memory["rule"]["enum"] = list(MEMORY_RULES)
    memory["rule"]["x-values"] = {
        name: rule.description for name, rule in MEMORY_RULES.items()
    }
    reserved = [*(head.base for head in HEADS.values()), PRETRAINED, "figures"]
    properties["methods"]["propertyNames"]["not"] = {"enum": reserved}
    method = properties["methods"]["additionalProperties"]["properties"]
    method["head"]["enum"] = list(HEADS)
    method["cross_entropy"]["enum"] = cross_entropies()
    method["prediction"]["enum"] = ["network", "fused", *scoring_rules()]
    method["losses"]["properties"] = {
        name: {"description": TERMS[name].description, "type": "number", "minimum": 0}
        for name in further_terms()
    }
    method["options"]["properties"] = {
        name: {"description": _readers(name), "type": "number", "minimum": 0}
        for name in collect_options(TERMS)
    }
    addition = definitions["additions"]["items"]["properties"]
    for key in ("labels", "labelmap", "mask_suffix"):  # additions are folders
        addition[key] = copy.deepcopy(KINDS["folder"].settings[key])
    dataset = definitions["dataset"]
    dataset["properties"]["kind"]["enum"] = list(KINDS)
    dataset["allOf"] = []
    for name, kind in KINDS.items():
        case = {"required": ["kind"], "properties": {"kind": {"const": name}}}
        reference = {"$ref": f"#/$defs/dataset_{name}"}
        dataset["allOf"].append({"if": case, "then": reference})
        definitions[f"dataset_{name}"] = {
            "type": "object",
            "additionalProperties": False,
            "required": list(kind.required),
            "properties": {
                "kind": {"const": name, "description": f"Kind: {kind.title}."},
                "additions": {
                    "description": (
                        "Folders of pictures with new classes that came later."
                    ),
                    "$ref": "#/$defs/additions",
                },
                **copy.deepcopy(dict(kind.settings)),
            },
        }
    _close_patterns(schema)
    return schema


def _close_patterns(schema: Any) -> None:
    """Make `$` in patterns match only the end, not a line break before it."""
    if isinstance(schema, list):
        for item in schema:
            _close_patterns(item)
    elif isinstance(schema, dict):
        pattern = schema.get("pattern")
        if isinstance(pattern, str) and pattern.endswith("$"):
            schema["pattern"] = pattern[:-1] + r"\Z"
        for item in schema.values():
            _close_patterns(item)


def _counted_twice(config: Config) -> list[str]:
    """Yield messages about sections with both epochs and iterations."""
    methods = config.get("methods")
    sections = {name: config.get(name) for name in ("base", "increment")}
    for name, changes in methods.items() if isinstance(methods, Mapping) else ():
        if isinstance(changes, Mapping):
            sections[f"methods.{name}.increment"] = changes.get("increment")
    return [
        f"{where}: expected epochs or iterations, but got both. Remove one."
        for where, section in sections.items()
        if isinstance(section, Mapping)
        and "epochs" in section
        and section.get("iterations") is not None
    ]


def _typed(value: Any, schema: Config, root: Config) -> Any:
    """Read text as YAML where the schema expects a number, a truth value or null.

    Snakemake passes all values below `--config 'section={key: 2}'` as text.
    """
    schema = _resolve(schema, root)
    for case in schema.get("allOf", []):
        if jsonschema.Draft202012Validator(case["if"]).is_valid(value):
            schema = {**schema, **_resolve(case["then"], root)}
    if isinstance(value, dict):
        properties = schema.get("properties", {})
        others = schema.get("additionalProperties")
        entries = {key: properties.get(key, others) for key in value}
        return {
            key: _typed(item, entries[key], root)
            if isinstance(entries[key], dict)
            else item
            for key, item in value.items()
        }
    if isinstance(value, list) and isinstance(schema.get("items"), dict):
        return [_typed(item, schema["items"], root) for item in value]
    if isinstance(value, str):
        own = {key: schema[key] for key in ("type", "enum") if key in schema}
        validator = jsonschema.Draft202012Validator(own)
        if own and not validator.is_valid(value):
            try:
                read = yaml.safe_load(value)
            except yaml.YAMLError:
                return value
            if not isinstance(read, dict | list) and validator.is_valid(read):
                return read
    return value


def _make_lists(config: Config) -> Config:
    """Expand short forms: a single task or setting, or an addition given as a path."""
    datasets = config.get("datasets")
    for settings in datasets.values() if isinstance(datasets, dict) else []:
        additions = settings.get("additions") if isinstance(settings, dict) else None
        if isinstance(additions, list):
            settings["additions"] = [
                {"path": entry} if isinstance(entry, str) else entry
                for entry in additions
            ]
    experiments = config.get("experiments")
    for experiment in experiments if isinstance(experiments, list) else []:
        for key in ("task", "setting") if isinstance(experiment, dict) else ():
            if key in experiment and not isinstance(experiment[key], list):
                experiment[key] = [experiment[key]]
    return config


def _section(schema: Config, section: str) -> Config:
    """The schema of one section, with the definitions it refers to."""
    return {**_resolve(schema["properties"][section], schema), "$defs": schema["$defs"]}


def _errors(value: Any, schema: Mapping[str, Any], where: str = "") -> list[str]:
    validator = jsonschema.Draft202012Validator(schema)
    errors = sorted(validator.iter_errors(value), key=lambda e: list(map(str, e.path)))
    return list(dict.fromkeys(_explain(error, where) for error in errors))


def _refuse(errors: list[str]) -> None:
    if errors:
        listed = "".join(f"\n  {line}" for line in errors)
        raise ConfigError(f"The configuration is wrong:{listed}")


def _not_finite(value: Any, path: str = "") -> list[str]:
    """Numbers that are NaN or infinite."""
    if isinstance(value, dict):
        items = value.items()
        return [e for key, item in items for e in _not_finite(item, f"{path}.{key}")]
    if isinstance(value, list):
        return [e for item in value for e in _not_finite(item, path)]
    if isinstance(value, float) and not math.isfinite(value):
        return [f"{path[1:]}: expected a finite number, but got {value}."]
    return []


def _wrong_ranges(config: Config) -> list[str]:
    """Ranges whose smallest value is above the largest."""
    ranges = {"augmentation.scale": config["augmentation"]["scale"]}
    for name, settings in config["datasets"].items():
        for key in ("digits", "glyphs", "height"):
            if key in settings:
                ranges[f"datasets.{name}.{key}"] = settings[key]
    return [
        f"{path}: expected the smallest value first, but got {low} and {high}."
        for path, (low, high) in ranges.items()
        if low > high
    ]


def _explain(error: jsonschema.ValidationError, where: str) -> str:
    """One line: the key, the expected value, the actual value, and the remedy."""
    parts = [where] if where else []
    path = ".".join(parts + [str(part) for part in error.absolute_path])
    path = path or "the top level"
    instance: Any = error.instance
    got = f"got {instance!r}"
    rule = str(error.validator)
    wanted: Any = error.validator_value
    schema: Any = error.schema
    if rule == "additionalProperties":
        known = list(schema.get("properties", {}))
        unknown = [key for key in instance if key not in known]
        hints = [f"'{key}'{suggestion(str(key), known)}" for key in unknown]
        return (
            f"{path}: unknown key {', '.join(hints)}. Known keys: {', '.join(known)}."
        )
    if rule == "required":
        missing = [key for key in wanted if key not in instance]
        return f"{path}: missing key {', '.join(missing)}. Add it."
    if rule == "enum":
        hint = suggestion(str(instance), [str(entry) for entry in wanted])
        return (
            f"{path}: expected one of {', '.join(map(str, wanted))}, but {got}{hint}."
        )
    if rule == "type":
        kinds = wanted if isinstance(wanted, list) else [wanted]
        return f"{path}: expected {' or '.join(kinds)}, but {got}."
    if rule == "anyOf":
        return f"{path}: {schema.get('description', 'no form fits')}; {got}."
    if rule in ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"):
        relation = {
            "minimum": "at least",
            "maximum": "at most",
            "exclusiveMinimum": "more than",
            "exclusiveMaximum": "less than",
        }[rule]
        return f"{path}: expected {relation} {wanted}, but {got}."
    if rule == "multipleOf":
        return f"{path}: expected a multiple of {wanted}, but {got}."
    return f"{path}: {error.message}."


def _numbers(value: Any, where: str = "the top level") -> Any:
    """Turn strings such as "1e-3", which YAML 1.1 reads as text, into numbers.

    Raises:
        ConfigError: A key is not text.
    """
    if isinstance(value, Mapping):
        if where == "labels":  # of a dataset, by value in its masks: numbers are fine
            value = {
                str(key) if type(key) is int else key: item
                for key, item in value.items()
            }
        for key in value:
            if not isinstance(key, str):
                raise ConfigError(
                    f"{where}: expected text as key, but got {key!r}. Put it in quotes."
                )
        return {key: _numbers(item, key) for key, item in value.items()}
    if isinstance(value, list):
        return [_numbers(item, where) for item in value]
    if isinstance(value, str) and re.fullmatch(r"[+-]?\d+\.?\d*[eE][+-]?\d+", value):
        value = float(value)
    if isinstance(value, float) and value.is_integer():
        return int(value)  # so that 8, 8.0 and 8e0 are one setting
    return value


def _resolve(schema: Config, root: Config) -> Config:
    """A schema with its $ref replaced by what it refers to."""
    if "$ref" not in schema:
        return schema
    target = root["$defs"][schema["$ref"].rsplit("/", 1)[1]]
    return {**target, **{key: item for key, item in schema.items() if key != "$ref"}}


def _with_defaults(value: Any, schema: Config, root: Config) -> Any:
    schema = _resolve(schema, root)
    for case in schema.get("allOf", []):
        if jsonschema.Draft202012Validator(case["if"]).is_valid(value):
            schema = {**schema, **_resolve(case["then"], root)}
    if isinstance(value, dict):
        if isinstance(schema.get("default"), dict):
            value = merged(schema["default"], value)
        properties = schema.get("properties", {})
        for key, entry in properties.items():
            if key not in value and "default" in _resolve(entry, root):
                value[key] = copy.deepcopy(_resolve(entry, root)["default"])
        others = schema.get("additionalProperties")
        for key in value:
            entry = properties.get(key, others)
            if isinstance(entry, dict):
                value[key] = _with_defaults(value[key], entry, root)
    elif isinstance(value, list) and "items" in schema:
        value = [_with_defaults(item, schema["items"], root) for item in value]
    return value


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> Config:
    """Merge `above` into `below`, key by key, down to the leaves."""
    result = copy.deepcopy(dict(below))
    for key, value in above.items():
        if isinstance(value, Mapping) and isinstance(result.get(key), Mapping):
            result[key] = merged(result[key], value)
        else:
            result[key] = copy.deepcopy(value)
    return result
