"""Keys of earlier versions of the configuration, with their remedies."""

from collections.abc import Mapping
from typing import Any

Config = dict[str, Any]

_DECISION = (
    *("foreground", "probability_weight", "posterior_weight", "foreground_bias"),
    *("image_prior", "temperature", "metric"),
)
# Keys of earlier versions, by section, and their new names.
RENAMED: dict[str, dict[str, str]] = {
    "compute": {"looks": "compute.val_times", "look_images": "compute.val_images"},
    "pseudo_labels": {key: f"decision.{key}" for key in _DECISION},
}
# Removed keys of methods, with a remedy for each value.
REPLACED: dict[tuple[str, Any], str] = {
    ("scale_by_certainty", True): "Write `cross_entropy: certain_ce` instead.",
    ("scale_by_certainty", False): "Write `cross_entropy: ce` instead.",
    ("keeps_background", "pseudo"): (
        "Write `losses: {bga_t: 0, bga_t_remaining: 5}` instead."
    ),
    ("keeps_background", "raw"): "This is the default: remove the key.",
}


def find_old_keys(config: Config) -> list[str]:
    """Return messages about keys of earlier versions, with their new names."""
    errors = []

    def collect(section: Any, where: str, names: Mapping[str, str]) -> None:
        for key in names if isinstance(section, Mapping) else ():
            if key in section:
                errors.append(
                    f"{where}.{key}: this key is now `{names[key]}`. Rename it."
                )

    for name, names in RENAMED.items():
        collect(config.get(name), name, names)
    methods = config.get("methods")
    for method, changes in methods.items() if isinstance(methods, Mapping) else ():
        if not isinstance(changes, Mapping):
            continue
        for (key, value), remedy in REPLACED.items():
            if key in changes and changes[key] == value:
                errors.append(f"methods.{method}.{key}: this key was removed. {remedy}")
        for name, names in RENAMED.items():
            collect(changes.get(name), f"methods.{method}.{name}", names)
    return errors
