"""A page with the pictures of a small experiment, whose errors are known by hand."""

import dataclasses
from importlib.resources import files
from pathlib import Path

import jinja2
import numpy as np
from markupsafe import Markup
from PIL import Image
from small_experiment import step_result

from kproba.data.colours import drawing_colours
from kproba.data.index import index_dataset
from kproba.data.label_images import write_label_image
from kproba.plan.results import StepResult
from kproba.results.experiment import Experiment
from kproba.results.page_pictures import ClassList, draw_examples, draw_labels

NAMES = ("background", "cat", "dog", "cow")
GROUPS = ((1,), (2,), (3,))
CLASSES = ClassList(NAMES, GROUPS)
COLOURS = drawing_colours(4)
SIDE = 60  # pixels of the small pictures
TEMPLATES = files("kproba.results") / "templates"
ERRORS = ("right", "missed", "invented", "confused")

PAGE = """{% import "pictures.html.jinja" as pictures %}
<!doctype html><html lang="en"><meta charset="utf-8"><title>pictures</title>
<link rel="icon" href="data:,"><style>{{ css }}</style>
<h2>Examples</h2>{{ pictures.examples(examples, "x") }}
<h2>Labels</h2>{{ pictures.labels(labels, "x") }}
<script>{{ js }}</script>"""


def environment() -> jinja2.Environment:
    return jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=jinja2.FileSystemLoader(str(TEMPLATES)),
    )


def truth() -> np.ndarray:
    """Rows of 15: background, cat, dog and cow; the last column is ignored."""
    labels = np.repeat(np.arange(4, dtype=np.uint8), 15)[:, None].repeat(SIDE, 1)
    labels[:, -1] = 255
    return labels


def prediction(step: int) -> np.ndarray:
    """The truth of the classes so far, with errors in the first columns.

    Of cat, 6 columns are missed and 6 are dog; 6 columns of the background are cat.
    """
    labels = np.where(truth() == 255, 0, truth())
    labels[labels > step + 1] = 0
    labels[15:30, :6] = 0
    labels[15:30, 6:12] = 2
    labels[:15, :6] = 1
    return labels


def write_results(folder: Path) -> tuple[Experiment, list[StepResult]]:
    """Write two methods on three steps, and `joint`, which has the last step alone."""
    random = np.random.default_rng(0)
    for subset, names in (("train", ("t",)), ("val", ("v1", "v2"))):
        for kind in ("images", "masks"):
            (folder / "data" / kind / subset).mkdir(parents=True)
        for name in names:
            photo = random.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
            Image.fromarray(photo).save(folder / f"data/images/{subset}/{name}.png")
            write_label_image(folder / f"data/masks/{subset}/{name}.png", truth())
    (folder / "data" / "classes.txt").write_text("\n".join(NAMES))
    index = folder / "index.csv"
    index_dataset(
        *(index, folder / "i.json"),
        kind="folder",
        folder=folder / "data",
        class_count=3,
    )
    results = []
    for method, steps in (("kproba", (0, 1, 2)), ("finetune", (0, 1)), ("joint", (2,))):
        for step in steps:
            place = folder / method / str(step)
            for name in ("v1", "v2"):
                (place / "examples").mkdir(parents=True, exist_ok=True)
                path = place / "examples" / f"{name}.png"
                write_label_image(path, prediction(step))
            result = step_result(place, method, step)
            if method == "kproba" and step:
                (place / "labels").mkdir()
                targets = prediction(step)
                targets[:, 30:] = 254
                write_label_image(place / "labels" / "t.png", targets)
                split = folder / "split.csv"
                lines = index.read_text().splitlines()
                split.write_text("\n".join(x for x in lines if ",val," not in x))
                result = dataclasses.replace(
                    result, labels=str(place / "labels"), split=str(split)
                )
            results.append(result)
    experiment = Experiment(
        dataset="pets",
        kind="folder",
        task="1-1",
        setting="overlap",
        groups=GROUPS,
        names=NAMES,
        indices=[str(index)],
        folders=None,
    )
    return experiment, results


def render(experiment: Experiment, results: list[StepResult]) -> str:
    """The pictures on a page of their own."""
    return (
        environment()
        .from_string(PAGE)
        .render(
            examples=draw_examples(experiment, results),
            labels=draw_labels(experiment, results),
            css=Markup((TEMPLATES / "pictures.css").read_text()),
            js=Markup((TEMPLATES / "pictures.js").read_text()),
        )
    )
