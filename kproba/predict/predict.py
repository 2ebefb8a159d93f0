"""Segments image files: masks, overlays and a table of areas in one folder."""

import logging
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from PIL import Image

from kproba.data.files import IMAGE_SUFFIXES
from kproba.data.pictures import UnreadableError, read_picture
from kproba.data.tiles import TILE
from kproba.predict.inputs import Inputs, find_inputs, read_size
from kproba.predict.outputs import KINDS, OutputFolder, WriteError
from kproba.predict.steps import check_step
from kproba.predict.tiles import check_sizes
from kproba.runtime.logs import is_full_gpu, is_full_memory
from kproba.runtime.progress import Stage

if TYPE_CHECKING:
    from kproba.predict.segmentation import Segmentation
    from kproba.predict.segmenter import Segmenter

log = logging.getLogger("kproba")

FILES_SKIPPED = 3  # exit status if some files could not be used


@dataclass(frozen=True)
class PredictSettings:
    """Settings of a prediction: the results to write, and how to segment images.

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

    def check(self) -> None:
        """Check the numbers.

        Raises:
            ValueError: One is too small.
        """
        check_sizes(self.long_side, self.tile)
        if self.batch_size < 1:
            raise ValueError(
                f"Expected a --batch-size of at least 1, but got {self.batch_size}. "
                f"Increase it, or leave it out."
            )

    @property
    def kinds(self) -> list[str]:
        """The kinds of results that are written."""
        wanted = (True, self.overlays, self.confidence, self.probabilities)
        return [
            kind for kind, is_wanted in zip(KINDS, wanted, strict=True) if is_wanted
        ]


class ImageFile(NamedTuple):
    """An image file, the name of its results without ending, and its size in pixels."""

    path: Path
    name: str
    width: int
    height: int


def segment_files(
    step: str | Path,
    files: Sequence[str],
    settings: PredictSettings,
    *,
    device: str = "auto",
) -> int:
    """Segment image files; skip unusable files, and log their names.

    Args:
        step: Folder of an evaluated step, its predictor.json, or a packed archive.
        files: As for `kproba.predict.inputs.find_inputs`.
        settings: Results to write, and their folder.
        device: As for `choose_device`.

    Returns:
        The exit status: 0, or 3 if some files could not be used.

    Raises:
        ValueError: There are no images, none can be used, there is no such device, a
            number is too small, or a file of the user would be replaced.
        OSError: The output folder cannot be written, or the disk is full.
        FileNotFoundError: The step has not been evaluated.
    """
    settings.check()
    check_step(step)
    out = OutputFolder(settings.out, settings.kinds)
    inputs = find_inputs(files, out.leave_out)
    if not inputs.files and not inputs.skipped:
        raise ValueError(
            f"Expected images, but found none in {', '.join(files)}. In folders, only "
            f"files with these endings count as images: {', '.join(IMAGE_SUFFIXES)}."
        )
    if not inputs.files:
        raise _nothing_readable(inputs)
    named = out.prepare(inputs.files)
    try:
        images = list(_with_sizes(named, inputs))
        if not images:
            raise _nothing_readable(inputs)
        run = _Prediction(_load(step, device), settings, out, inputs)
        run.segment(images)
    finally:
        out.remove_if_unused()
    return run.status(len(images))


def _load(step: str | Path, device: str) -> "Segmenter":
    from kproba.predict.segmenter import load  # slow, so errors are reported before

    return load(step, device=choose_device(device))


def _nothing_readable(inputs: Inputs) -> ValueError:
    """The error of a run without any usable file; the names were logged."""
    _log_skipped(inputs)
    return ValueError(
        f"Expected at least one usable image, but none of the {len(inputs.skipped)} "
        f"files can be used. The reasons are listed above. Name other files."
    )


def _log_skipped(inputs: Inputs) -> None:
    for path, reason in inputs.skipped:
        log.error("skipped %s: %s", path, reason)


def _with_sizes(named: Sequence[Any], inputs: Inputs) -> Iterator[ImageFile]:
    """Images with the sizes in their headers; others are skipped."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Pillow, of images that are used anyway
        for path, name in named:
            try:
                yield ImageFile(path, name, *read_size(path))
            except UnreadableError as error:
                inputs.skip(path, str(error))


class _Prediction:
    """One run of `kproba predict`: its progress, and the rows of areas.csv."""

    def __init__(
        self,
        segmenter: "Segmenter",
        settings: PredictSettings,
        out: OutputFolder,
        inputs: Inputs,
    ):
        from kproba.predict.writers import make_writers

        self.segmenter, self.settings = segmenter, settings
        self.out, self.inputs = out, inputs
        self.rows: list[list[Any]] = []
        self.done = 0
        self.last_error: Exception | None = None
        self.writers = make_writers(
            segmenter.classes,
            overlays=settings.overlays,
            confidence=settings.confidence,
            probabilities=settings.probabilities,
        )

    def segment(self, images: Sequence[ImageFile]) -> None:
        """Segment all images. After an error, the finished results are kept.

        Raises:
            KeyboardInterrupt: Ctrl-C, with the number of finished images.
            FullDiskError: The disk is full.
            ModelError: The model returns NaN or infinite scores.
        """
        try:
            batches = self._batches(images)
            for batch in Stage(batches, "predicting", len(images), size=len):
                self._segment_batch(batch)
        except BaseException as error:
            done = f"{self.done} of {len(images)} images were segmented"
            _log_skipped(self.inputs)
            try:
                self.out.write_areas(self.rows)
            except OSError as second:
                log.error("%s", second)
            if isinstance(error, KeyboardInterrupt):
                raise KeyboardInterrupt(f"{done}, in {self.out.folder}.") from None
            log.error("%s, in %s", done, self.out.folder)
            raise
        self.out.write_areas(self.rows)

    def status(self, images: int) -> int:
        """Report the number of segmented images; returns the exit status.

        Raises:
            ValueError: No image was segmented.
        """
        if not self.done and self.last_error is not None:
            _log_skipped(self.inputs)
            raise self.last_error
        if not self.done:
            raise _nothing_readable(self.inputs)
        _log_skipped(self.inputs)
        total = self.done + len(self.inputs.skipped)
        log.info("segmented %d of %d images, in %s", self.done, total, self.out.folder)
        return FILES_SKIPPED if self.inputs.skipped else 0

    def _batches(self, images: Sequence[ImageFile]) -> list[list[ImageFile]]:
        """Batches of images with one size or canvas; images with tiles are alone."""
        from kproba.data.whole_images import batches_of_one_size

        small: list[ImageFile] = []
        large: list[ImageFile] = []
        for image in images:
            size = self.segmenter.used_size(
                image.width, image.height, self.settings.long_side
            )
            (small if max(size) <= self.settings.tile else large).append(image)
        long_side = self.settings.long_side
        sizes = [
            self.segmenter.size_in_batch(image.width, image.height, long_side)
            for image in small
        ]
        batches = [
            [small[number] for number in batch]
            for batch in batches_of_one_size(sizes, self.settings.batch_size)
        ]
        return [*batches, *([image] for image in large)]

    def _segment_batch(self, batch: Sequence[ImageFile]) -> None:
        opened = list(self._open(batch))
        if not opened:
            return
        try:
            results = self._predict([picture for _, picture in opened])
        except (MemoryError, RuntimeError, ValueError) as error:
            if isinstance(error, _model_error()):
                raise
            if len(opened) > 1:  # a single image usually fits
                del opened
                for image in batch:
                    self._segment_batch([image])
                return
            self._skip_segmented(opened[0][0], error)
            return
        for (image, picture), result in zip(opened, results, strict=True):
            self._write(image, picture, result)

    def _predict(self, pictures: list[Image.Image]) -> list["Segmentation"]:
        return self.segmenter.predict_batch(
            pictures, long_side=self.settings.long_side, tile=self.settings.tile
        )

    def _skip_segmented(self, image: ImageFile, error: Exception) -> None:
        """Skip an image whose segmentation failed."""
        log.debug("while segmenting %s", image.path, exc_info=error)
        text = (str(error) or type(error).__name__).splitlines()[0]
        if is_full_gpu(error) or is_full_memory(error):
            text = (
                f"does not fit into memory at {image.width}x{image.height} pixels; "
                f"reduce --tile, or use --long-side"
            )
        self.last_error = error
        self.inputs.skip(image.path, text)

    def _open(
        self, batch: Sequence[ImageFile]
    ) -> Iterator[tuple[ImageFile, Image.Image]]:
        """Decoded images; those that cannot be used are skipped."""
        for image in batch:
            size = (image.width, image.height)
            in_parts = not self.segmenter.keeps_probabilities(
                *size, self.settings.long_side
            )
            if in_parts and self.settings.probabilities:
                self.inputs.skip(
                    image.path,
                    f"the probabilities of {size[0]}x{size[1]} pixels and "
                    f"{len(self.segmenter.classes)} classes do not fit into memory; "
                    f"leave out --probabilities, or cut the image",
                )
                continue
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # of Pillow
                    yield image, read_picture(image.path)
            except UnreadableError as error:
                self.inputs.skip(image.path, str(error))

    def _write(
        self, image: ImageFile, picture: Image.Image, result: "Segmentation"
    ) -> None:
        """Write the results of an image; log the ones that cannot be written."""
        if result.network_probabilities is None:
            log.info(
                "%s does not fit into memory as a whole: %s", image.path, result.how
            )
        failed = []
        for kind, make in self.writers.items():
            try:
                self.out.write(kind, image.name, make(picture, result))
            except (WriteError, MemoryError) as error:
                failed.append(str(error) or "does not fit into memory")
                if kind == "masks":
                    break  # the table lists only written masks
            if kind == "masks":
                self.rows += _area_rows(image, picture, result)
        if failed:
            self.inputs.skip(image.path, "; ".join(failed))
        else:
            self.done += 1


def _model_error() -> type[Exception]:
    from kproba.predict.segmenter import ModelError

    return ModelError


def _area_rows(
    image: ImageFile, picture: Image.Image, segmentation: "Segmentation"
) -> list[list[Any]]:
    """Rows of areas.csv: one per class with at least one pixel."""
    pixels, total = segmentation.pixels(), segmentation.indices.size
    return [
        [
            image.path,
            image.name,
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
        ValueError: There is no such device.
    """
    import torch

    available = torch.cuda.is_available()
    if name == "auto":
        return "cuda" if available else "cpu"
    kind, _, number = name.partition(":")
    if name != "cpu" and (
        kind != "cuda"
        or (number and not (number.isascii() and number.isdigit()))
        or name.endswith(":")
    ):
        raise ValueError(
            f"Expected auto, cpu, cuda, or cuda: and a number (such as cuda:1) for "
            f"--device, but got {name!r}."
        )
    if kind == "cuda" and not available:
        raise ValueError(
            f"Expected a GPU for --device {name}, but found none. Use --device cpu, or "
            f"check the driver and CUDA_VISIBLE_DEVICES."
        )
    if number and int(number) >= torch.cuda.device_count():
        raise ValueError(
            f"Expected a GPU number from 0 to {torch.cuda.device_count() - 1} for "
            f"--device, but got {name}. Use a smaller number, or check "
            f"CUDA_VISIBLE_DEVICES."
        )
    return name
