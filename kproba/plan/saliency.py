"""The saliency maps of a plan: their folders, their tables, and what is missing."""

from pathlib import Path
from typing import Any

from kproba import artifacts
from kproba.data.kinds.pairs import VAL_SHARE
from kproba.data.saliency import ALTERNATIVE, SaliencyFolders, describe_missing
from kproba.data.selection import hold_out
from kproba.data.tasks import Groups
from kproba.plan.dataset_state import state_of_files, training_images
from kproba.plan.datasets import Datasets, Locate
from kproba.plan.errors import ConfigError


class PlannedSaliency:
    """The saliency maps of the datasets and additions of a configuration.

    Args:
        datasets: The datasets.
        locate: Returns the path of a file of `kproba.artifacts`; see `Plan`.
    """

    def __init__(self, datasets: Datasets, locate: Locate = str):
        self._datasets, self._locate = datasets, locate

    def folders(self, part: str) -> SaliencyFolders | None:
        """The folders of a part's maps; None if its kind has none."""
        folder = Path(self._datasets.folder(part))
        pairs = self._datasets.kind(part).find_saliency(folder)
        own = self._own_folder(part)
        if own is not None:  # an absolute path stays as it is
            pairs = [(images, folder / own) for images, _ in pairs]
        return SaliencyFolders(tuple(pairs)) if pairs else None

    def _own_folder(self, part: str) -> Path | None:
        """The folder of maps that the configuration names."""
        own = self._datasets.settings(part).get("saliency_folder")
        return None if own is None else Path(own).expanduser()

    def tables(self, dataset: str, groups: Groups) -> list[str]:
        """saliency.csv of every part with training images at the last step."""
        return [
            artifacts.fill(artifacts.SALIENCY, {"dataset": part})
            for part in self._datasets.parts(dataset, groups)
            if not self._datasets.kind(part).validation_only
        ]

    def settings(self, part: str) -> dict[str, Any]:
        """Arguments of the job that lists the maps of a part.

        No job depends on these paths, because a moved dataset is the same dataset.
        """
        folders = self.folders(part)
        pairs = folders.pairs if folders else ()
        return {
            "dataset": part,
            "folder": self._datasets.folder(part),
            "pairs": [[str(path) for path in pair] for pair in pairs],
        }

    def state(self, part: str) -> str:
        """A text that changes with the maps of a part, if no rule writes them."""
        folders = self.folders(part)
        made = self._datasets.made_folders(part) and self._own_folder(part) is None
        if folders is None or made:
            return ""
        recorded = artifacts.fill(artifacts.SALIENCY_FILES, {"dataset": part})
        folder = self._datasets.folder(part)
        return state_of_files(folders, folder, self._locate(recorded))

    def check(self, part: str) -> None:
        """Refuse a part whose training images have no maps.

        The images are those of the index, if it is up to date, else those that the kind
        finds. A folder that a rule still has to write is not checked.

        Raises:
            ConfigError: Maps are missing, or the dataset cannot have any.
        """
        kind, where = self._datasets.kind(part), f"datasets.{part}"
        if kind.drawn and not self._datasets.settings(part)["saliency"]:
            raise ConfigError(
                f"{where}.saliency: expected true, because a method of the "
                f"configuration reads saliency maps, but got false. Set it to true, "
                f"{ALTERNATIVE}."
            )
        folders, folder = self.folders(part), self._datasets.folder(part)
        if folders is None:
            raise ConfigError(
                f"{where}: expected a kind of dataset with saliency maps, because a "
                f"method of the configuration reads them, but got '{kind.name}'. "
                f"Choose another kind, {ALTERNATIVE}."
            )
        if kind.drawn or not kind.is_there(folder):
            return
        images = self._training_images(part)
        found, _ = folders.find(images)
        if missing := [image for image in images if found[image] is None]:
            text = describe_missing(part, missing, folders.folder)
            raise ConfigError(f"{where}: {text}")

    def _training_images(self, part: str) -> list[Path]:
        """The training images of a part, as far as they are known."""
        folder = Path(self._datasets.folder(part))
        listed = self._datasets.listed_by_index(part, training_images)
        if listed is not None:
            return [folder / name for name in listed.values()]
        settings = self._datasets.settings(part)
        if settings.get("on_error") == "skip":
            return []  # the index will leave some out
        share = settings.get("val_share", VAL_SHARE)
        try:
            pairs, _ = self._datasets.kind(part).find_pairs(folder, share)
        except (OSError, ValueError):
            return []  # the job that reads them reports the error
        pairs = hold_out(pairs, self._datasets.selection(part))
        return [pair.image for pair in pairs if pair.subset == "train"]
