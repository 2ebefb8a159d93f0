"""Reads evaluation.json and usage.json, which hold the results and costs of a step."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from kproba.runtime import records

_PERCENT = records.maybe(records.number(-1e9, 1e9))

EVALUATION = records.record(
    {
        "protocol": records.record({"policy": records.text(50)}, others=True),
        "images": records.integer(),
        "classes": records.list_of(
            records.record(
                {
                    "index": records.integer(0, 255),
                    "name": records.text(),
                    "step": records.integer(0, 10_000),
                    "iou": _PERCENT,
                },
                others=True,
            ),
            least=1,
        ),
    },
    {"prediction": records.text()},
    others=True,
)
USAGE = records.record(
    {},
    {
        "device": records.text(),
        "processes": records.integer(1),
        "seconds": records.number(0),
        "images_per_second": records.number(0),
        "peak_memory_bytes": records.maybe(records.integer()),
    },
    others=True,
)


def read_evaluation_record(
    path: str | Path, measures: Iterable[str] = ()
) -> dict[str, Any]:
    """Read an evaluation.json.

    Args:
        path: The file.
        measures: Names of measures; each may be absent, or null where it is undefined.

    Raises:
        FileNotFoundError: There is no such file.
        ArtifactError: It is damaged or holds something else. It is a ValueError.
    """
    content: dict[str, Any] = records.read_record(path, EVALUATION)
    numbers = records.record({}, dict.fromkeys(measures, _PERCENT), others=True)
    records.check_content(content, numbers, path)
    return content


def read_usage_record(path: str | Path) -> dict[str, Any]:
    """Read a usage.json.

    Raises:
        FileNotFoundError: There is no such file.
        ArtifactError: It is damaged or holds something else. It is a ValueError.
    """
    content: dict[str, Any] = records.read_record(path, USAGE)
    return content
