"""Segments image files: masks, overlays and a table of areas in one folder."""

import csv
import logging
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from kproba.data.drawing import class_colours, overlay
from kproba.data.label_images import write_label_image
from kproba.data.loaders import batches_of_one_size
from kproba.predict.segmenter import Segmentation, Segmenter, load, read_picture
from kproba.predict.tiles import TILE
from kproba.runtime.files import atomic_path
from kproba.runtime.progress import Stage

log = logging.getLogger("kproba")

# File name endings of the images that are segmented in folders.
SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"}


AREA_COLUMNS = ("file", "width", "height", "how", "class", "label", "pixels", "percent")


FILES_SKIPPED = 3  # exit status: some files could not be read, the others are done


# What Pillow raises for files that are not images, are damaged, or absurdly large.
UNREADABLE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)


@dataclass(frozen=True)
class PredictSettings:
    """What is written, and how images are segmented.

    Attributes:
        out: Output folder.
        overlays: Whether to write overlays/*.jpg.
        confidence: Whether to write confidence/*.png.
        probabilities: Whether to write probabilities/*.npz.
        long_side: As in `Segmenter.predict`.
        tile: As in `Segmenter.predict`.
        batch_size: Images of equal size per batch.
    """

    out: Path
    overlays: bool = True
    confidence: bool = False
    probabilities: bool = False
    long_side: int | None = None
    tile: int = TILE
    batch_size: int = 4


class ImageFile(NamedTuple):
    """An image file, the name of its results without ending, and its size in pixels."""

    path: Path
    name: str
    width: int
    height: int


# A file that cannot be read, and why.
Skipped = tuple[Path, str]


# Writes one result of an image: its name, the image, its segmentation.
Writer = Callable[[str, Image.Image, Segmentation], None]


def segment_files(
    step: str | Path,
    files: Sequence[str],
    settings: PredictSettings,
    *,
    device: str = "auto",
) -> int:
    """Segment image files; skip those that cannot be read, and log their names.

    Args:
        step: Folder of a tested step, or its predictor.json.
        files: As for `find_files`.
        settings: What to write, and where.
        device: As for `choose_device`.

    Returns:
        The exit status: 0, or 3 if some files could not be read.

    Raises:
        ValueError: There are no images, or no such device.
        FileNotFoundError: The step has not been tested.
    """
    paths = list(find_files(files))
    if not paths:
        raise ValueError(
            f"Expected images, but found none in {', '.join(files)}. In folders, files "
            f"with these endings are images: {', '.join(sorted(SUFFIXES))}."
        )
    segmenter = load(step, device=choose_device(device))
    writers = list(_make_writers(segmenter, settings))
    images, skipped = read_sizes(paths)
    with (
        atomic_path(settings.out / "areas.csv") as temporary,
        temporary.open("w", newline="", encoding="utf-8") as file,
    ):
        table = csv.writer(file)
        table.writerow(AREA_COLUMNS)
        sizes = [(image.width, image.height) for image in images]
        batches = batches_of_one_size(sizes, settings.batch_size)
        for batch in Stage(batches, "predicting", len(images), size=len):
            opened = list(_open([images[number] for number in batch], skipped))
            segmentations = segmenter.predict_batch(
                [picture for _, picture in opened],
                long_side=settings.long_side,
                tile=settings.tile,
            )
            for (image, picture), segmentation in zip(
                opened, segmentations, strict=True
            ):
                for write in writers:
                    write(image.name, picture, segmentation)
                table.writerows(_area_rows(image, picture, segmentation))
    for path, reason in skipped:
        log.error("skipped %s: %s", path, reason)
    done = len(paths) - len(skipped)
    log.info("segmented %d of %d images, in %s", done, len(paths), settings.out)
    return FILES_SKIPPED if skipped else 0


def find_files(arguments: Iterable[str]) -> Iterator[tuple[Path, str]]:
    """Paths of images, each with a unique name for its results.

    Args:
        arguments: Files, folders (searched with their subfolders), or "-" for a list on
            standard input, one path per line.
    """
    taken: set[str] = set()
    for path, name in _named_paths(arguments):
        unique, number = name, 1
        while unique in taken:
            number += 1
            unique = f"{name}-{number}"
        taken.add(unique)
        yield path, unique


def _named_paths(arguments: Iterable[str]) -> Iterator[tuple[Path, str]]:
    """Paths of images with their names, which may repeat."""
    for argument in arguments:
        if argument == "-":
            lines = (line.rstrip("\r\n") for line in sys.stdin)
            yield from _named_paths(line for line in lines if line)
        elif Path(argument).is_dir():
            for path in sorted(Path(argument).rglob("*")):
                if path.suffix.lower() in SUFFIXES and path.is_file():
                    name = path.relative_to(argument).with_suffix("")
                    yield path, name.as_posix()
        else:
            yield Path(argument), Path(argument).stem


def read_sizes(
    paths: Sequence[tuple[Path, str]],
) -> tuple[list[ImageFile], list[Skipped]]:
    """Sizes of images from their headers, and the files that are not images."""
    images, skipped = [], []
    for path, name in paths:
        try:
            with Image.open(path) as image:
                images.append(ImageFile(path, name, *image.size))
        except UNREADABLE as error:
            skipped.append((path, _reason(error)))
    return images, skipped


def _open(
    images: Iterable[ImageFile], skipped: list[Skipped]
) -> Iterator[tuple[ImageFile, Image.Image]]:
    """Decoded images; those that cannot be decoded are added to `skipped`."""
    for image in images:
        try:
            yield image, read_picture(image.path)
        except UNREADABLE as error:
            skipped.append((image.path, _reason(error)))


def _reason(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


def _make_writers(segmenter: Segmenter, settings: PredictSettings) -> Iterator[Writer]:
    """Functions that write the results of one image, as the settings say."""
    names = [entry.name for entry in segmenter.classes]
    labels = [entry.label for entry in segmenter.classes]
    palette = class_colours(len(names))
    palette_of_labels = palette.copy()
    palette_of_labels[labels] = palette[: len(labels)]

    def make_path(kind: str, name: str, ending: str) -> Path:
        path = settings.out / kind / f"{name}{ending}"
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def write_mask(name: str, image: Image.Image, result: Segmentation) -> None:
        path = make_path("masks", name, ".png")
        write_label_image(path, result.labels, palette_of_labels.ravel().tolist())

    def write_overlay(name: str, image: Image.Image, result: Segmentation) -> None:
        picture = overlay(image, result.indices, names)
        picture.save(make_path("overlays", name, ".jpg"), quality=92)

    def write_confidence(name: str, image: Image.Image, result: Segmentation) -> None:
        grey = Image.fromarray((255 * result.confidence).round().astype(np.uint8))
        grey.save(make_path("confidence", name, ".png"))

    def write_probabilities(
        name: str, image: Image.Image, result: Segmentation
    ) -> None:
        np.savez_compressed(
            make_path("probabilities", name, ".npz"),
            probabilities=result.probabilities.astype(np.float16),
            classes=np.array(names),
            labels=np.array(labels),
        )

    yield write_mask
    if settings.overlays:
        yield write_overlay
    if settings.confidence:
        yield write_confidence
    if settings.probabilities:
        yield write_probabilities


def _area_rows(
    image: ImageFile, picture: Image.Image, segmentation: Segmentation
) -> list[list[Any]]:
    """Rows of areas.csv: one per class with at least one pixel."""
    pixels, total = segmentation.pixels(), segmentation.indices.size
    return [
        [
            image.path,
            picture.width,
            picture.height,
            segmentation.how,
            entry.name,
            entry.label,
            pixels[entry.name],
            f"{100 * pixels[entry.name] / total:.3f}",
        ]
        for entry in segmentation.classes
        if pixels[entry.name]
    ]


def choose_device(name: str) -> str:
    """The device to compute on.

    Args:
        name: "cpu", "cuda", "cuda:1", .., or "auto" for the first GPU if there is one.

    Raises:
        ValueError: There is no GPU, but `name` asks for one.
    """
    available = torch.cuda.is_available()
    if name == "auto":
        return "cuda" if available else "cpu"
    if name.startswith("cuda") and not available:
        raise ValueError(
            f"Expected a GPU for --device {name}, but found none. Use --device cpu, or "
            f"check the driver and CUDA_VISIBLE_DEVICES."
        )
    return name
