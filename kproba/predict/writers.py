"""What `kproba predict` writes of one image: the contents of its files."""

import io
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image

from kproba.bank.description import SeenClass
from kproba.data.colours import class_colours
from kproba.data.drawing import overlay
from kproba.data.fonts import drawn_name
from kproba.predict.segmentation import Segmentation

LONGEST_JPEG = 65500  # pixels of a side

# The content of a file of results, from the image and its segmentation.
Writer = Callable[[Image.Image, Segmentation], bytes]


def make_writers(
    classes: Sequence[SeenClass],
    *,
    overlays: bool,
    confidence: bool,
    probabilities: bool,
) -> dict[str, Writer]:
    """Functions that make the files of one image, by kind, masks first.

    Args:
        classes: The classes in output order.
        overlays: Whether to make overlays.
        confidence: Whether to make pictures of the confidence.
        probabilities: Whether to make files of probabilities.
    """
    names = [entry.name for entry in classes]
    labels = [entry.label for entry in classes]
    palette = class_colours(len(names))
    palette_of_labels = palette.copy()
    palette_of_labels[labels] = palette[: len(labels)]
    flat_palette = palette_of_labels.ravel().tolist()

    def write_mask(image: Image.Image, result: Segmentation) -> bytes:
        mask = Image.fromarray(result.labels)
        mask.putpalette(flat_palette)
        return _encoded(mask, "PNG")

    def write_overlay(image: Image.Image, result: Segmentation) -> bytes:
        drawn = [drawn_name(entry.name, f"label {entry.label}") for entry in classes]
        picture = overlay(image, result.indices, drawn)
        if max(picture.size) > LONGEST_JPEG:
            picture.thumbnail((LONGEST_JPEG, LONGEST_JPEG))
        # Half the resolution of colours, which is usual, would blur the contours.
        return _encoded(picture, "JPEG", quality=92, subsampling=0)

    def write_confidence(image: Image.Image, result: Segmentation) -> bytes:
        grey = (255 * result.confidence).round().astype(np.uint8)
        return _encoded(Image.fromarray(grey), "PNG")

    def write_probabilities(image: Image.Image, result: Segmentation) -> bytes:
        file = io.BytesIO()
        np.savez_compressed(
            file,
            probabilities=result.probabilities.astype(np.float16),
            classes=np.array(names),
            labels=np.array(labels),
        )
        return file.getvalue()

    writers: dict[str, Writer] = {"masks": write_mask}
    if overlays:
        writers["overlays"] = write_overlay
    if confidence:
        writers["confidence"] = write_confidence
    if probabilities:
        writers["probabilities"] = write_probabilities
    return writers


def _encoded(picture: Image.Image, kind: str, **options: Any) -> bytes:
    """The file of a picture; made in memory, so that a full disk is seen as such."""
    file = io.BytesIO()
    picture.save(file, format=kind, **options)
    return file.getvalue()
