"""TODO plan.schema."""

import copy
import difflib
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jsonschema
import yaml

Config = dict[str, Any]


class ConfigError(ValueError):
    """The configuration is wrong; the message names the key and the mend."""


def check(config: Mapping[str, Any], schema_path: str | Path) -> Config:
    """Validate a configuration and fill in the defaults.

    Raises:
        ConfigError: A key is unknown or missing, or a value has a wrong type or is out
            of bounds. All such errors stand in the one message.
    """
    schema = _numbers(yaml.safe_load(Path(schema_path).read_text(encoding="utf-8")))
    config = _make_lists(_numbers(copy.deepcopy(dict(config))))
    _refuse(_errors(config, schema) + _not_finite(config))
    filled = _with_defaults(config, schema, schema)
    errors = _wrong_ranges(filled)
    for name, changes in filled["methods"].items():
        for section in ("bank", "pseudo_labels", "increment"):
            merged = _merged(filled[section], changes.get(section, {}))
            where = f"methods.{name}.{section}"
            errors += _errors(merged, _section(schema, section), where)
    _refuse(errors)
    return filled


def _make_lists(config: Config) -> Config:
    """What may be written shorter: one task or setting, an addition as its path."""
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
        for key in ("digits", "height"):
            if key in settings:
                ranges[f"datasets.{name}.{key}"] = settings[key]
    return [
        f"{path}: expected the smallest value first, but got {low} and {high}."
        for path, (low, high) in ranges.items()
        if low > high
    ]


def _explain(error: jsonschema.ValidationError, where: str) -> str:
    """One line: where, what was expected, what came, the mend."""
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
        hints = [f"'{key}'{_suggestion(str(key), known)}" for key in unknown]
        return (
            f"{path}: unknown key {', '.join(hints)}. Known keys: {', '.join(known)}."
        )
    if rule == "required":
        missing = [key for key in wanted if key not in instance]
        return f"{path}: missing key {', '.join(missing)}. Add it."
    if rule == "enum":
        hint = _suggestion(str(instance), [str(entry) for entry in wanted])
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


def _suggestion(word: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean '{close[0]}'?)" if close else ""


def _numbers(value: Any, where: str = "the top level") -> Any:
    """Make strings such as "1e-3", which YAML 1.1 reads as text, numbers.

    Raises:
        ConfigError: A key is no text.
    """
    if isinstance(value, Mapping):
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
            value = _merged(schema["default"], value)
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


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> Config:
    """`above` laid over `below`, key by key, down to the leaves."""
    merged = copy.deepcopy(dict(below))
    for key, value in above.items():
        if isinstance(value, Mapping) and isinstance(merged.get(key), Mapping):
            merged[key] = _merged(merged[key], value)
        else:
            merged[key] = copy.deepcopy(value)
    return merged
