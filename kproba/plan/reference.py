"""docs/configuration.md: every key of the configuration, written from the schema.

`python -m kproba.plan.reference`, in the folder of the project, writes the page.
"""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from kproba.data.kinds import KINDS
from kproba.plan.old_keys import RENAMED, REPLACED
from kproba.plan.schema import Config, load_schema
from kproba.runtime.files import atomic_path

SCHEMA = Path("workflow/schemas/config.schema.yaml")
PAGE = Path("docs/configuration.md")
NO_DEFAULT = object()

HEAD = """\
# Configuration reference

This page lists every key of a configuration file, for everybody who writes one.
It is written from
[the schema](../workflow/schemas/config.schema.yaml), which also checks the file.
[config/README.md](../config/README.md) lists the ready-made files, and shows how to use
a file of your own.

## Rules for all files

- A section that you leave out has its defaults. So has every key that you leave out.
  Only `datasets` and `experiments` are required.
- An unknown key, a wrong type or a value out of bounds stops the run before any work.
  One message lists all such errors.
- A file must give each key once, must not contain itself, and may expand to at most
  100,000 values.
- Numbers may be written as `1e-3`.
- On the command line, `--config` sets single keys:
  `--config 'evaluation={policy: plop, crop: null}' 'base={epochs: 2}'`.

## Sections

Every section lists which finished work runs again after a change of its keys.
[How it works](how_it_works.md#what-runs-again) has the same as one table.

"""
KIND_NOTES = {
    "packed": (
        "It continues from a step without the old images. The `task` of its experiment "
        "must be the task of the archive, which `kproba info` shows. At least one "
        "addition is required."
    ),
    "folder": (
        "Give the names of the classes in classes.txt, or with one of the keys "
        "`classes`, `labels` and `labelmap`."
    ),
}
TYPES = {
    "integer": "whole number",
    "number": "number",
    "string": "text",
    "boolean": "`true` or `false`",
    "null": "`null`",
    "object": "map",
}
PLURALS = {"integer": "whole numbers", "number": "numbers", "string": "texts"}


def render(schema: Config) -> str:
    """The page of a schema that `load_schema` read."""
    sections = {
        name: _resolve(entry, schema) for name, entry in schema["properties"].items()
    }
    overview = "".join(
        f"- [{name}](#{name}): {section['x-title']}\n"
        for name, section in sections.items()
    )
    parts = [HEAD + overview]
    for name, section in sections.items():
        parts.append(_section(name, section, schema))
    parts.append(_renamed())
    return "\n".join(parts)


def _section(name: str, section: Config, schema: Config) -> str:
    """Heading, meaning, keys, example and links of one section."""
    lines = [f"## {name}", "", *_sentences(section["description"]), ""]
    lines += ["**What runs again after a change:**", *_sentences(section["x-rerun"])]
    if name == "datasets":
        lines += ["", *_kinds(schema)]
    elif name == "increment":
        lines += ["", *_differences(section)]
    else:
        lines += ["", *(_keys(section, schema) or _alone(section))]
    if "x-notes" in section:
        lines += ["", *_sentences(section["x-notes"])]
    lines += ["", "Example:", "", "```yaml", section["x-example"].rstrip(), "```"]
    if "x-see" in section:
        links = [f"[{title}]({page})" for title, page in section["x-see"].items()]
        lines += ["", f"More: {', '.join(links)}."]
    return "\n".join(lines) + "\n"


def _kinds(schema: Config) -> list[str]:
    """The keys of datasets, by kind."""
    definitions = schema["$defs"]
    common = definitions["dataset"]["properties"]["kind"]
    lines = ["All kinds of dataset have two keys:", ""]
    lines += _entry("kind", common, required=True)
    additions = definitions["additions"]
    lines += _entry("additions", {**additions, "default": NO_DEFAULT})
    lines += ["", "An addition is a path, or these keys:", ""]
    lines += _keys(additions, schema)
    for name in KINDS:
        kind = definitions[f"dataset_{name}"]
        keys = {**kind["properties"]}
        for shared in ("kind", "additions"):
            del keys[shared]
        lines += ["", f"### kind: {name}", ""]
        meaning = common["x-values"].get(name, KINDS[name].title)
        meaning = meaning[:1].upper() + meaning[1:]
        lines += [*_sentences(f"{meaning}. {KIND_NOTES.get(name, '')}"), ""]
        lines += _keys({**kind, "properties": keys}, schema)
    return lines


def _differences(section: Config) -> list[str]:
    """The keys of `increment`, as far as their defaults are not those of `base`."""
    own = [
        f"- `{path}`: default `{_value(value)}`"
        for path, value in _leaves(section["default"])
    ]
    return [
        "The keys are those of [base](#base). These have another default:",
        "",
        *own,
    ]


def _leaves(values: Mapping[str, Any], path: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", value


def _alone(section: Config) -> list[str]:
    """Form and default of a section that is a single value."""
    lines = [f"The section is a {_form(section)}."]
    if section["default"] is None:
        lines.append("The default is `null`.")
    return lines


def _keys(section: Config, schema: Config, path: str = "") -> list[str]:
    """One entry per key, and the keys of objects below it with their full names."""
    lines: list[str] = []
    items = section.get("items")
    others = section.get("additionalProperties")
    for holder in (items, others):
        if isinstance(holder, dict) and "properties" in holder:
            section = holder
    for name, named in section.get("properties", {}).items():
        entry = _resolve(named, schema)
        lines += _entry(f"{path}{name}", entry, name in section.get("required", ()))
        if entry.get("type") == "object" and "properties" in entry:
            lines += _keys(entry, schema, f"{path}{name}.")
    return lines


def _entry(name: str, entry: Config, required: bool = False) -> list[str]:
    """A key: form, default, meaning and the meaning of each value."""
    about = [f"**`{name}`**", _form(entry)]
    default = entry.get("default", NO_DEFAULT)
    if required:
        about.append("required")
    elif default is not NO_DEFAULT and not isinstance(default, dict):
        about.append(f"default `{_value(default)}`")
    lines = [f"- {' · '.join(about)}\\"]
    lines += [f"  {sentence}" for sentence in _sentences(entry["description"])]
    for value, meaning in entry.get("x-values", {}).items():
        shown = f"`{value}`" if " " not in value else value
        lines.append(f"  - {shown}: {' '.join(_sentences(meaning))}")
    return lines


def _form(entry: Config) -> str:
    """Type, values and bounds of a key, in words."""
    if "x-form" in entry:
        return str(entry["x-form"])
    if "anyOf" in entry:
        return "number, or `median`"
    if "enum" in entry and "x-values" not in entry:
        return "one of " + ", ".join(f"`{_value(value)}`" for value in entry["enum"])
    kinds = entry.get("type", [])
    kinds = kinds if isinstance(kinds, list) else [kinds]
    if "enum" in entry:
        return "one of these values"
    words = []
    for kind in kinds:
        if kind == "array":
            words.append(_list_form(entry))
        elif kind in ("integer", "number"):
            words.append(f"{TYPES[kind]}{_bounds(entry)}")
        else:
            words.append(TYPES[kind])
    return " or ".join(words)


def _list_form(entry: Config) -> str:
    items = entry.get("items", {})
    kind = items.get("type")
    least, most = entry.get("minItems"), entry.get("maxItems")
    count = "two " if least == most == 2 else "list of "
    if isinstance(kind, str) and kind in PLURALS:
        return f"{count}{PLURALS[kind]}{_bounds(items)}"
    return "list"


def _bounds(entry: Config) -> str:
    low, high = entry.get("minimum"), entry.get("maximum")
    above, below = entry.get("exclusiveMinimum"), entry.get("exclusiveMaximum")
    words = []
    if low is not None and high is not None:
        words.append(f" {_value(low)} to {_value(high)}")
    elif low is not None:
        words.append(f" from {_value(low)}")
    if above is not None:
        words.append(f" above {_value(above)}")
    if below is not None:
        words.append(f" below {_value(below)}")
    if high is not None and low is None:
        words.append(f" up to {_value(high)}")
    if "multipleOf" in entry:
        words.append(f" multiple of {entry['multipleOf']}")
    return f" ({','.join(words).strip()})" if words else ""


def _value(value: Any) -> str:
    """A value as one writes it in YAML."""
    if isinstance(value, float) and value < 1e-4:
        return f"{value:f}"
    if isinstance(value, list):
        return f"[{', '.join(map(_value, value))}]"
    if isinstance(value, str):
        return value or '""'
    return json.dumps(value)


def _renamed() -> str:
    """The keys of earlier versions."""
    lines = ["## Renamed keys", ""]
    lines += ["The old keys are refused, with a message that names the new one.", ""]
    lines += ["| old key | new key |", "|---|---|"]
    for section, names in RENAMED.items():
        lines += [f"| `{section}.{old}` | `{new}` |" for old, new in names.items()]
    lines += ["", "Of a method:", "", "| old key | what to do |", "|---|---|"]
    lines += [
        f"| `{key}: {_value(value)}` | {remedy} |"
        for (key, value), remedy in REPLACED.items()
    ]
    return "\n".join(lines) + "\n"


def _resolve(entry: Config, schema: Config) -> Config:
    if "$ref" not in entry:
        return entry
    target = schema["$defs"][entry["$ref"].rsplit("/", 1)[1]]
    return {**target, **{key: value for key, value in entry.items() if key != "$ref"}}


def _sentences(text: str) -> list[str]:
    """One line per sentence, with links to documents and marked values."""
    text = " ".join(text.split())
    text = re.sub(r"(?<!`)\bnull\b(?!`)", "`null`", text)
    text = re.sub(r"docs/([\w/]+\.md)", r"[docs/\1](\1)", text)
    return re.split(r"(?<=\.) (?=[A-Z0-9`\[]|classes\.txt)", text)


def main() -> None:
    """Write the page below the working directory."""
    with atomic_path(PAGE) as temporary:
        temporary.write_text(render(load_schema(SCHEMA)), encoding="utf-8")


if __name__ == "__main__":
    main()
