"""The pictures of an index or a split, read in the same way as by the index.

A row names the files of a picture and its mask, their digests, and the size at which
the picture is used. Pictures are returned upright and in that size. If a file has
changed since the index was written, the job ends with a message.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from kproba.data.images import decode_image
from kproba.data.label_images import decode_label_image
from kproba.data.masks import decode_map, turn_labels
from kproba.data.pictures import UnreadableError, read_file

DIGITS = 16  # of a SHA-256 in hexadecimal


class ChangedPictureError(ValueError):
    """A picture or mask is not the one that was indexed."""


class Source(NamedTuple):
    """A picture and its mask.

    Attributes:
        id: Id of the picture.
        image, mask: Files.
        width, height: Size in pixels at which both are used; 0 if the table of an
            earlier version does not list it.
        image_sha256, mask_sha256: First digits of the SHA-256 of the files; "": no
            comparison.
        label_offset: Added to the values of the mask.
        saliency: File of the saliency map; "": none is used.
        saliency_sha256: First digits of the SHA-256 of that file.
        saliency_turned: EXIF orientation by which the map is turned; 1 for none.
    """

    id: str
    image: str
    mask: str
    width: int = 0
    height: int = 0
    image_sha256: str = ""
    mask_sha256: str = ""
    label_offset: int = 0
    saliency: str = ""
    saliency_sha256: str = ""
    saliency_turned: int = 1

    @classmethod
    def from_row(cls, row: Mapping[Any, Any]) -> "Source":
        """From a row of a table that `kproba.data.splits.read_index` returned."""
        values = {name: row[name] for name in cls._fields if name in row}
        for name in ("width", "height", "label_offset"):
            values[name] = int(values.get(name, 0))
        values["saliency_turned"] = int(values.get("saliency_turned", 1))
        return cls(**values)

    def read_image(self) -> torch.Tensor:
        """The picture, (3, H, W) uint8 RGB.

        Raises:
            ChangedPictureError: It is missing, or not the one that was indexed.
        """
        content = _read(self.image, self.image_sha256, "picture")
        try:
            image = decode_image(content)
        except UnreadableError as error:
            raise _changed("picture", self.image, f"it {error}") from error
        if self.width and image.shape[1:] != (self.height, self.width):
            size = [self.height, self.width]
            return F.resize(image, size, antialias=True)
        return image

    def read_labels(self) -> np.ndarray:
        """The labels of the mask, (H, W) uint8, with the offset of the dataset.

        Raises:
            ChangedPictureError: The mask is missing, or not the one that was indexed.
        """
        content = _read(self.mask, self.mask_sha256, "mask")
        try:
            labels = decode_label_image(content, self.mask, self.label_offset)
        except (UnreadableError, ValueError) as error:
            raise _changed("mask", self.mask, f"it cannot be read: {error}") from error
        return self._scaled(labels)

    def read_saliency(self) -> np.ndarray:
        """The salient pixels, (H, W) bool, of the picture's saliency map.

        Raises:
            ChangedPictureError: The map is missing, or not the one that was listed.
        """
        what = "saliency map"
        content = _read(self.saliency, self.saliency_sha256, what)
        try:
            salient = decode_map(content).astype(np.uint8)
        except (UnreadableError, ValueError) as error:
            text = f"it cannot be read: {error}"
            raise _changed(what, self.saliency, text) from error
        if self.saliency_turned != 1:
            salient = turn_labels(salient, self.saliency_turned)
        return self._scaled(salient) > 0

    def _scaled(self, values: np.ndarray) -> np.ndarray:
        """An array (H, W) uint8 at the size of the picture: the nearest values."""
        if not self.width or values.shape == (self.height, self.width):
            return values
        resized = F.resize(
            torch.from_numpy(values)[None],
            [self.height, self.width],
            interpolation=InterpolationMode.NEAREST_EXACT,
        )
        return resized[0].numpy()


def replace_mask(source: Source, folder: str | Path) -> Source:
    """Return a source whose targets are pseudo labels instead of its mask."""
    mask = str(Path(folder) / f"{source.id}.png")
    return source._replace(mask=mask, mask_sha256="", label_offset=0)


def list_sources(rows: pd.DataFrame) -> list[Source]:
    """The pictures of a table, in its order."""
    return [Source.from_row(row) for row in rows.to_dict("records")]


def digest(content: bytes) -> str:
    """The digest of a file's content that an index records."""
    return hashlib.sha256(content).hexdigest()[:DIGITS]


def _read(path: str, expected: str, what: str) -> bytes:
    try:
        content = read_file(path)
    except UnreadableError as error:
        raise _changed(what, path, str(error)) from error
    if expected and digest(content) != expected:
        raise _changed(what, path, "its content has changed")
    return content


def _changed(what: str, path: str, text: str) -> ChangedPictureError:
    return ChangedPictureError(
        f"Expected the {what} {path} to be unchanged since the dataset was checked, "
        f"but {text}. Run snakemake again: it checks the dataset again and repeats all "
        f"jobs that depend on the {what}. (If it has nothing to do, delete index.csv "
        f"of the dataset below results/data/ first.)"
    )
