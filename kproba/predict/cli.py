"""The command `kproba`: use what a step has learned.

kproba predict STEP photos/ --out found
kproba info STEP
kproba export STEP model.onnx
kproba tensorboard results/digits/6-2-overlap
"""

import argparse
import csv
import logging
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from kproba import __version__
from kproba.bank.description import find_description
from kproba.data.drawing import class_colours, overlay
from kproba.data.label_images import write_label_image
from kproba.data.loaders import batches_of_one_size
from kproba.predict.segmenter import TILE, Segmentation, Segmenter, load, read_picture
from kproba.runtime.files import atomic_path, read_json
from kproba.runtime.logs import log_to_stderr, told_errors
from kproba.runtime.progress import Stage

log = logging.getLogger("kproba")

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"}


AREA_COLUMNS = ("file", "width", "height", "how", "class", "label", "pixels", "percent")


SOME_SKIPPED = 3  # exit status: the other files are done


# What Pillow raises at files that are no images, damaged or absurdly large.
UNREADABLE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)


class Item(NamedTuple):
    """A file to segment: where it is, what its results are called, its size."""

    path: Path
    name: str
    width: int
    height: int


Fault = tuple[Path, str]


Writer = Callable[[str, Image.Image, Segmentation], None]


def predict(options: argparse.Namespace) -> int:
    """Segment files; returns 3 if some could not be read."""
    paths = list(find_files(options.files))
    if not paths:
        raise ValueError(
            f"Expected images, but found none in {', '.join(options.files)}. Endings "
            f"that are looked for in folders: {', '.join(sorted(SUFFIXES))}."
        )
    segmenter = load(options.step, device=device_of(options.device))
    writers = list(_writers(segmenter, options))
    items, faults = measure(paths)
    with (
        atomic_path(options.out / "areas.csv") as temporary,
        temporary.open("w", newline="", encoding="utf-8") as file,
    ):
        table = csv.writer(file)
        table.writerow(AREA_COLUMNS)
        sizes = [(item.width, item.height) for item in items]
        batches = batches_of_one_size(sizes, options.batch_size)
        for batch in Stage(batches, "predicting", len(items), size=len):
            opened = list(_opened([items[number] for number in batch], faults))
            found = segmenter.predict_batch(
                [image for _, image in opened],
                long_side=options.long_side,
                tile=options.tile,
            )
            for (item, image), one in zip(opened, found, strict=True):
                for write in writers:
                    write(item.name, image, one)
                table.writerows(_areas(item, image, one))
    for path, reason in faults:
        log.error("skipped %s: %s", path, reason)
    done = len(paths) - len(faults)
    log.info("%d of %d images segmented, in %s", done, len(paths), options.out)
    return SOME_SKIPPED if faults else 0


def find_files(given: Iterable[str]) -> Iterator[tuple[Path, str]]:
    """Files with the names of their results, which are unique.

    Args:
        given: Files, folders (searched to the bottom for images), or "-" for a list on
            standard input, one path per line.
    """
    taken: set[str] = set()
    for path, name in _named(given):
        unique, number = name, 1
        while unique in taken:
            number += 1
            unique = f"{name}-{number}"
        taken.add(unique)
        yield path, unique


def _named(given: Iterable[str]) -> Iterator[tuple[Path, str]]:
    for word in given:
        if word == "-":
            lines = (line.rstrip("\r\n") for line in sys.stdin)
            yield from _named(line for line in lines if line)
        elif Path(word).is_dir():
            for path in sorted(Path(word).rglob("*")):
                if path.suffix.lower() in SUFFIXES and path.is_file():
                    inside = path.relative_to(word).with_suffix("")
                    yield path, inside.as_posix()
        else:
            yield Path(word), Path(word).stem


def measure(paths: Sequence[tuple[Path, str]]) -> tuple[list[Item], list[Fault]]:
    """Sizes of images from their headers, and which files are none."""
    items, faults = [], []
    for path, name in paths:
        try:
            with Image.open(path) as image:
                items.append(Item(path, name, *image.size))
        except UNREADABLE as error:
            faults.append((path, _reason(error)))
    return items, faults


def _opened(
    items: Iterable[Item], faults: list[Fault]
) -> Iterator[tuple[Item, Image.Image]]:
    """Decoded images; what cannot be decoded is added to `faults`."""
    for item in items:
        try:
            yield item, read_picture(item.path)
        except UNREADABLE as error:
            faults.append((item.path, _reason(error)))


def _reason(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


def _writers(segmenter: Segmenter, options: argparse.Namespace) -> Iterator[Writer]:
    """What writes the wanted files of one image."""
    names = [entry.name for entry in segmenter.classes]
    labels = [entry.label for entry in segmenter.classes]
    palette = class_colours(len(names))
    of_label = palette.copy()
    of_label[labels] = palette[: len(labels)]

    def place(kind: str, name: str, ending: str) -> Path:
        path: Path = options.out / kind / f"{name}{ending}"
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def mask(name: str, image: Image.Image, found: Segmentation) -> None:
        path = place("masks", name, ".png")
        write_label_image(path, found.labels, of_label.ravel().tolist())

    def picture(name: str, image: Image.Image, found: Segmentation) -> None:
        sheet = overlay(image, found.indices, names)
        sheet.save(place("overlays", name, ".jpg"), quality=92)

    def confidence(name: str, image: Image.Image, found: Segmentation) -> None:
        grey = Image.fromarray((255 * found.confidence).round().astype(np.uint8))
        grey.save(place("confidence", name, ".png"))

    def probabilities(name: str, image: Image.Image, found: Segmentation) -> None:
        np.savez_compressed(
            place("probabilities", name, ".npz"),
            probabilities=found.probabilities.astype(np.float16),
            classes=np.array(names),
            labels=np.array(labels),
        )

    yield mask
    if not options.no_overlays:
        yield picture
    if options.confidence:
        yield confidence
    if options.probabilities:
        yield probabilities


def _areas(item: Item, image: Image.Image, found: Segmentation) -> list[list[Any]]:
    """Rows of areas.csv: the classes that the image shows."""
    pixels, whole = found.pixels(), found.indices.size
    return [
        [
            *(item.path, image.width, image.height, found.how),
            *(entry.name, entry.label, pixels[entry.name]),
            f"{100 * pixels[entry.name] / whole:.3f}",
        ]
        for entry in found.classes
        if pixels[entry.name]
    ]


def device_of(wanted: str) -> str:
    """The device to compute on; "auto" is the first GPU, if there is one.

    Raises:
        ValueError: It is not there.
    """
    import torch

    there = torch.cuda.is_available()
    if wanted == "auto":
        return "cuda" if there else "cpu"
    if wanted.startswith("cuda") and not there:
        raise ValueError(f"Expected a GPU for --device {wanted}, but found none.")
    return wanted


def info(options: argparse.Namespace) -> int:
    """Print what is known of a step."""
    print("\n".join(described(options.step)))
    return 0


def described(step: str | Path) -> list[str]:
    """Lines about a step: its run, classes, files, bank, results and provenance."""
    found = find_description(step)
    about, here = read_json(found), found.parent
    run = about["about"]
    lines = [
        f"{run['dataset']} {run['task']} {run['setting']}, {run['method']}, "
        f"seed {run['seed']}, after step {run['step']}",
        "",
    ]
    steps = sorted({entry["step"] for entry in about["classes"]})
    for number in steps:
        known = [
            f"{entry['name']} ({entry['label']})"
            for entry in about["classes"]
            if entry["step"] == number
        ]
        lines.append(f"  step {number}: {', '.join(known)}")
    lines.append("  (in brackets the values in masks)")
    with_bank = about["bank"] is not None
    by = f"network and bank ({about['rule']['rule']})" if with_bank else "network"
    lines += ["", f"predicts by: {by}"]
    for kind in ("network", "bank", "source"):
        if about[kind] is not None:
            path = (here / about[kind]).resolve()
            size = path.stat().st_size / 2**20
            lines.append(f"  {kind:<8} {path}  ({size:.1f} MiB)")
    model = read_json((here / about["network"]).with_suffix(".json"))
    shown = model["architecture"]
    lines.append(
        f"network: {shown['backbone']}, output stride {shown['output_stride']}, "
        f"{'softmax' if shown['softmax'] else 'a sigmoid per class'}"
    )
    if with_bank:
        lines += _bank_lines(read_json((here / about["bank"]).with_suffix(".json")))
    result = here / "evaluation.json"
    if result.is_file():
        lines += ["", _result_line(read_json(result))]
    lines += ["", "made by:"]
    made = model["provenance"]
    lines += [f"  {key:<12} {made[key]}" for key in made if made[key] is not None]
    return lines


def _bank_lines(bank: Mapping[str, Any]) -> list[str]:
    settings = bank["settings"]
    kind = (
        "linear (LDA)"
        if settings["map"] == "identity"
        else f"{settings['maps']} maps of {settings['dimension']} Fourier features"
    )
    cells = zip(bank["classes"], bank["cells_per_class"], strict=True)
    return [
        f"bank: {kind} on {settings['feature']}, ridge {settings['ridge']}, "
        f"temperature {bank['temperature']:.2f}",
        f"  cells: {', '.join(f'{name} {count}' for name, count in cells)}",
    ]


def _result_line(result: Mapping[str, Any]) -> str:
    means = [
        f"{name} {result[name]:.1f}"
        for name in ("old", "new", "all")
        if result[name] is not None
    ]
    return (
        f"mIoU: {', '.join(means)} percent on {result['images']} images "
        f"(policy {result['protocol']['policy']})"
    )


def export(options: argparse.Namespace) -> int:
    """Write a model file that runs without this package."""
    from kproba.predict.export import export as write

    apart = write(load(options.step), options.file)
    size = options.file.stat().st_size / 2**20
    log.info(
        "%s written, %.1f MiB; its probabilities differ from PyTorch's by %.1g at most",
        *(options.file, size, apart),
    )
    return 0


def tensorboard(options: argparse.Namespace) -> int:
    """Show the curves of all steps below a folder."""
    from kproba.results.tensorboard import show_curves

    return show_curves(options.folder, port=options.port, host=options.host)


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="kproba", description="Use what a step has learned."
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, job: Callable[[argparse.Namespace], int], what: str) -> Any:
        sub = commands.add_parser(name, help=what, description=what)
        sub.set_defaults(job=job)
        return sub

    def of_step(name: str, job: Callable[[argparse.Namespace], int], what: str) -> Any:
        sub = command(name, job, what)
        sub.add_argument(
            "step",
            help="folder of a tested step, such as results/digits/6-2-overlap/"
            "kproba/seed0/step2, or its predictor.json",
        )
        return sub

    sub = of_step("predict", predict, "Segment images.")
    sub.add_argument(
        "files",
        nargs="+",
        help="images, folders, or - for a list on standard input",
    )
    sub.add_argument(
        "--out", type=Path, default=Path("predictions"), help="folder (%(default)s)"
    )
    sub.add_argument("--no-overlays", action="store_true", help="masks and areas alone")
    sub.add_argument(
        "--confidence",
        action="store_true",
        help="grey images of the likeliest class's probability, 255 is 1",
    )
    sub.add_argument(
        "--probabilities",
        action="store_true",
        help="all classes' probabilities (C, H, W) float16, as .npz",
    )
    sub.add_argument(
        "--long-side", type=int, help="scale images to so many pixels before"
    )
    sub.add_argument(
        "--tile",
        type=int,
        default=TILE,
        help="cut images with a longer side into tiles of this side (%(default)s)",
    )
    sub.add_argument("--batch-size", type=int, default=4, help="images at once (4)")
    sub.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1")
    of_step("info", info, "Print what is known of a step.")
    sub = of_step("export", export, "Write a model file that runs without kproba.")
    sub.add_argument("file", type=Path, help="ends in .onnx, or .pt for TorchScript")
    sub = command("tensorboard", tensorboard, "Show the curves of all steps in order.")
    sub.add_argument(
        "folder",
        type=Path,
        nargs="?",
        default=Path("results"),
        help="of results, an experiment or a step (%(default)s)",
    )
    sub.add_argument("--port", type=int, default=6006, help="(%(default)s)")
    sub.add_argument("--host", default="localhost", help="(%(default)s)")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command; exit status 1 with a message when it cannot be done."""
    options = arguments(argv)
    log_to_stderr(first=True)
    with told_errors():
        status = options.job(options)
    sys.exit(status)


if __name__ == "__main__":
    main()
