"""Schemas of the configuration keys that several kinds of dataset share."""

from collections.abc import Mapping
from typing import Any

from kproba.data.download import Archive
from kproba.data.kinds.pairs import VAL_SHARE

ON_ERROR: dict[str, Any] = {
    "description": (
        "At files that are missing, unreadable or wrong: stop, or skip these images."
    ),
    "enum": ["stop", "skip"],
    "default": "stop",
}
SHARE: dict[str, Any] = {
    "description": "Share held out for validation, chosen by a hash of the file name.",
    "type": "number",
    "exclusiveMinimum": 0,
    "exclusiveMaximum": 1,
    "default": VAL_SHARE,
}
LONG_SIDE: dict[str, Any] = {
    "description": (
        "Longer side in pixels of all pictures that are longer, everywhere: in "
        "training, bank and test. Null uses every picture at its own size."
    ),
    "type": ["integer", "null"],
    "minimum": 32,
    "default": None,
}
LABELS: dict[str, Any] = {
    "description": (
        "Class by value in the masks, {10: cat, 20: dog}, in the place of `classes`. "
        "0 is the background if no class has it, 255 is ignored."
    ),
    "type": ["object", "null"],
    "minProperties": 1,
    "propertyNames": {"pattern": "^[0-9]{1,4}$"},
    "additionalProperties": {
        "description": 'Name of the class, or "background".',
        "type": "string",
        "minLength": 1,
    },
    "default": None,
}
LABELMAP: dict[str, Any] = {
    "description": (
        'File with lines "name:red,green,blue::" for masks with colours, in the folder '
        "of the dataset; null for labelmap.txt, if it is there."
    ),
    "type": ["string", "null"],
    "minLength": 1,
    "default": None,
}
MASK_SUFFIX: dict[str, Any] = {
    "description": (
        'What the names of masks have after that of their image, such as "_mask".'
    ),
    "type": "string",
    "pattern": "^[^/\\x00-\\x1f]*\\Z",
    "default": "",
}


def path_setting(description: str, default: str | None = None) -> dict[str, Any]:
    """Schema of `path`."""
    schema: dict[str, Any] = {
        "description": description,
        "type": "string",
        "minLength": 1,
    }
    return schema if default is None else {**schema, "default": default}


def archive_settings(archives: Mapping[str, Archive]) -> dict[str, Any]:
    """Schemas of `download`, `mirrors` and `checksums` of a published dataset.

    Args:
        archives: Archives by name; the names are keys of `mirrors` and `checksums`.
    """
    return {
        "download": {
            "description": (
                "Download and unpack below results/data/ if `path` has no dataset."
            ),
            "type": "boolean",
            "default": False,
        },
        "mirrors": {
            "description": "URLs to try in order, by archive; null for the known ones.",
            "type": "object",
            "additionalProperties": False,
            "properties": {
                name: {
                    "description": f"URLs of {archive.name}.",
                    "type": ["array", "null"],
                    "minItems": 1,
                    "items": {"type": "string", "pattern": "^https?://"},
                    "default": None,
                }
                for name, archive in archives.items()
            },
            "default": {},
        },
        "checksums": {
            "description": (
                "MD5, SHA-1 or SHA-256 by archive; null for the known ones."
            ),
            "type": "object",
            "additionalProperties": False,
            "properties": {
                name: {
                    "description": f"Hexadecimal digits, of {archive.name}.",
                    "type": ["string", "null"],
                    "pattern": "^([0-9a-fA-F]{32}|[0-9a-fA-F]{40}|[0-9a-fA-F]{64})$",
                    "default": None,
                }
                for name, archive in archives.items()
            },
            "default": {},
        },
    }
