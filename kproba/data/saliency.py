"""Saliency maps: where a picture shows any object, for methods with unknown objects.

A map belongs to the picture with its name. It is a grey picture without loss: 0 where
no object is, anything above it elsewhere. Nothing here imports torch or pandas, because
the plan looks for missing maps. `kproba.data.saliency_table` reads the maps.
"""

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kproba.data.files import find_files
from kproba.data.kinds.kind import digest_of_files, relative_name
from kproba.data.kinds.pairs import Problem, files_by_name
from kproba.data.masks import MASK_SUFFIXES

LISTED = 5  # names in a message
ALTERNATIVE = "or use the method ssul_light, which needs none"


@dataclass(frozen=True)
class SaliencyFolders:
    """Where the maps of a dataset are.

    Attributes:
        pairs: Folders of pictures, each with the folder of their maps. The first pair
            that has a map for a picture counts.
    """

    pairs: tuple[tuple[Path, Path], ...]

    @property
    def folder(self) -> Path:
        """The folder of the maps, for messages."""
        return self.pairs[0][1].absolute()

    def list_files(self, folder: str | Path) -> dict[str, Path]:
        """The maps by their path in the folder of the dataset; it raises no error."""
        files: dict[str, Path] = {}
        for maps in dict.fromkeys(maps for _, maps in self.pairs):
            for path in find_files(maps, MASK_SUFFIXES).files:
                files[relative_name(path, Path(folder))] = path
        return files

    def digest_files(self, folder: str | Path) -> str:
        """Digest of names, sizes and times of the maps; "" if there are none."""
        return digest_of_files(self.list_files(folder))

    def find(
        self, images: Iterable[Path]
    ) -> tuple[dict[Path, Path | None], list[Problem]]:
        """The map of each picture, None if it is missing, and problems with maps."""
        problems: list[Problem] = []
        maps = {
            folder: files_by_name(folder, MASK_SUFFIXES, problems)
            for folder in dict.fromkeys(folder for _, folder in self.pairs)
        }
        found: dict[Path, Path | None] = {}
        for image in images:
            candidates = self._candidates(image, maps)
            found[image] = candidates[0] if candidates else None
            for path in candidates if len(candidates) > 1 else ():
                text = f"another map belongs to {image.name} too; remove one of them"
                problems.append(Problem("duplicate map", str(path), text))
        return found, problems

    def _candidates(
        self, image: Path, maps: Mapping[Path, Mapping[str, Sequence[Path]]]
    ) -> Sequence[Path]:
        """The maps with the name of a picture, of the first folder that has any."""
        for pictures, folder in self.pairs:
            if image.is_relative_to(pictures):
                name = image.relative_to(pictures).with_suffix("").as_posix()
                named = maps[folder].get(unicodedata.normalize("NFC", name))
                if named:
                    return named
        return ()


def describe_missing(dataset: str, missing: Sequence[Path], folder: Path) -> str:
    """The message about missing maps, with what is expected and what helps.

    Args:
        dataset: Name of the dataset or addition.
        missing: The training pictures without a map.
        folder: Where the maps are expected.
    """
    names = ", ".join(path.stem for path in missing[:LISTED])
    more = ", .." if len(missing) > LISTED else ""
    return (
        f"Expected a saliency map for every training image of the dataset '{dataset}', "
        f"because a method of the configuration trains a class for unknown objects, "
        f"but {len(missing)} map(s) are missing: {names}{more}. Put them into "
        f"{folder}, as PNGs with the names of the images (docs/data.md), {ALTERNATIVE}."
    )
