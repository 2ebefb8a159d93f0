"""The key `selection`: datasets whose validation images are held-out training images.

Each dataset becomes another one, `<name>_selection`. It has the same files and another
index, so its results lie in folders of their own, beside those of the final runs.
"""

from collections.abc import Mapping
from typing import Any

from kproba.data.kinds import KINDS
from kproba.plan.errors import ConfigError

Config = dict[str, Any]
SUFFIX = "_selection"
SHARE = "selection"  # the key of the share in the settings of a dataset


def for_selection(config: Config) -> Config:
    """Return the configuration with the datasets that `selection` makes.

    Args:
        config: A checked configuration with all defaults. It is not changed.

    Raises:
        ConfigError: A dataset has no training images to hold out, or a name is taken.
    """
    share = config["selection"]
    if not share:
        return config
    datasets = config["datasets"]
    _check(datasets)
    renamed = {
        f"{name}{SUFFIX}": {**settings, SHARE: share}
        for name, settings in datasets.items()
    }
    experiments = [
        {**experiment, "dataset": f"{experiment['dataset']}{SUFFIX}"}
        if experiment["dataset"] in datasets
        else experiment
        for experiment in config["experiments"]
    ]
    return {**config, "datasets": renamed, "experiments": experiments}


def files_name(part: str, settings: Mapping[str, Any]) -> str:
    """The name of the dataset or addition whose made files a part uses.

    A dataset for a selection uses the scenes or the unpacked archives of the dataset
    that it was made from.
    """
    if not settings.get(SHARE):
        return part
    dataset, plus, number = part.partition("+")
    return dataset.removesuffix(SUFFIX) + plus + number


def _check(datasets: Mapping[str, Config]) -> None:
    """Refuse datasets that cannot be used for a selection."""
    for name, settings in datasets.items():
        if name.endswith(SUFFIX):
            raise ConfigError(
                f"selection: expected dataset names without the ending '{SUFFIX}', "
                f"because a selection adds it to every name, but got datasets.{name}. "
                f"Rename the dataset, or set `selection` to 0."
            )
        if KINDS[settings["kind"]].validation_only:
            raise ConfigError(
                f"selection: expected datasets with training images, because a share "
                f"of them is held out, but datasets.{name} is of the kind "
                f"'{settings['kind']}', which has only validation images. Set "
                f"`selection` to 0, or choose with another dataset."
            )
