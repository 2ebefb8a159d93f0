"""The tiny configuration of whole runs of the workflow."""

from pathlib import Path
from typing import Any

import yaml
from snakemake_calls import ROOT


def write_config(folder: Path, change: dict[str, Any] | None = None) -> None:
    """The tiny configuration with some keys changed, section by section."""
    config = yaml.safe_load((ROOT / "config" / "test.yaml").read_text())
    for section, values in (change or {}).items():
        if isinstance(values, dict):
            config.setdefault(section, {}).update(values)
        else:
            config[section] = values
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
