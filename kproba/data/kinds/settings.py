"""Schemas of the configuration keys that several kinds of dataset share."""

from collections.abc import Mapping
from typing import Any

from kproba.data.download import Archive
from kproba.data.kinds.pairs import VAL_SHARE

ON_ERROR: dict[str, Any] = {
    "description": (
        "What to do if files are missing, unreadable or wrong: stop the run, or skip "
        "these images."
    ),
    "enum": ["stop", "skip"],
    "default": "stop",
}
SHARE: dict[str, Any] = {
    "description": (
        "Share of the images that is held out for validation if there are no val "
        "folders. A hash of the file name chooses the images."
    ),
    "type": "number",
    "exclusiveMinimum": 0,
    "exclusiveMaximum": 1,
    "default": VAL_SHARE,
}
LONG_SIDE: dict[str, Any] = {
    "description": (
        "Images with a longer side above this number of pixels are scaled down to it, "
        "for training, bank, evaluation and prediction. null uses every image at its "
        "own size."
    ),
    "type": ["integer", "null"],
    "minimum": 32,
    "default": None,
}
LABELS: dict[str, Any] = {
    "description": (
        "Names of the classes by their value in the masks, such as `{10: cat, 20: "
        "dog}`, in place of `classes`. 0 is the background unless it has a name. 255 "
        "is ignored."
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
        "File in the folder of the dataset that explains the colours of the masks, "
        "with lines `name:red,green,blue::`. null takes labelmap.txt, if it is there."
    ),
    "type": ["string", "null"],
    "minLength": 1,
    "default": None,
}
SALIENCY_FOLDER: dict[str, Any] = {
    "description": (
        "Folder of the saliency maps of the training images, for the method ssul. A "
        "relative path starts in the folder of the dataset. null takes the folder in "
        "the layout of the kind (docs/data.md)."
    ),
    "type": ["string", "null"],
    "minLength": 1,
    "default": None,
}
MASK_SUFFIX: dict[str, Any] = {
    "description": (
        "What the name of a mask has after the name of its image, such as `_mask`."
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
                "Whether to download and unpack the dataset, below results/data/, if "
                "it is not at `path`."
            ),
            "type": "boolean",
            "default": False,
        },
        "mirrors": {
            "description": (
                "Addresses of the archives. null takes the known addresses."
            ),
            "type": "object",
            "additionalProperties": False,
            "properties": {
                name: {
                    "description": f"Addresses of {archive.name}, tried in order.",
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
                "Checksums of the archives (MD5, SHA-1 or SHA-256). null takes the "
                "known checksums."
            ),
            "type": "object",
            "additionalProperties": False,
            "properties": {
                name: {
                    "description": f"Checksum of {archive.name} in hexadecimal.",
                    "type": ["string", "null"],
                    "pattern": "^([0-9a-fA-F]{32}|[0-9a-fA-F]{40}|[0-9a-fA-F]{64})$",
                    "default": None,
                }
                for name, archive in archives.items()
            },
            "default": {},
        },
    }
