"""Calls of `kproba predict` with a stand-in for the step's model, to be fast."""

import csv
import logging
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image

from kproba import cli
from kproba.bank.description import SeenClass
from kproba.predict import predict
from kproba.predict.segmenter import Segmenter


class Columns:
    """Stands in for a network: a pixel's class follows from its own value."""

    has_image_prior = False

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []

    def log_scores(self, images: torch.Tensor) -> torch.Tensor:
        """Red pixels are background."""
        self.shapes.append(tuple(images.shape))
        chance = images[:, :1].float() / 300 + 0.05
        return torch.cat([chance, 1 - chance], dim=1).log()

    def fit(
        self, log_s: torch.Tensor, sample: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Nothing to fit."""
        self.fitted = tuple(log_s.shape)
        return log_s


def columns() -> Segmenter:
    classes = [SeenClass(0, "background", 0), SeenClass(7, "thing", 0)]
    return Segmenter(Columns(), classes, [0, 1])


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    random = np.random.default_rng(seed)
    return Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8))


class Ended(NamedTuple):
    """How a command ended: its exit status, and all that it said."""

    status: int
    said: str


class Command:
    """Runs `kproba predict` in this process.

    `model` is the stand-in; it is None until a run gets as far as loading the model.
    """

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
        caplog: pytest.LogCaptureFixture,
    ):
        self.capsys, self.caplog = capsys, caplog
        self.model: Any = None
        caplog.set_level("INFO", "kproba")
        # Other tests leave handlers of files that are closed.
        monkeypatch.setattr(logging.getLogger(), "handlers", [caplog.handler])
        monkeypatch.setattr(predict, "_load", self.load)
        monkeypatch.setattr(predict, "check_step", lambda step: None)

    def load(self, step: str, device: str) -> Segmenter:
        """The stand-in for what a step has learned."""
        self.model = columns()
        return self.model

    def __call__(self, *words: object) -> Ended:
        """Run with arguments."""
        self.caplog.clear()
        self.model = None
        with pytest.raises(SystemExit) as ended:
            cli.main(["predict", "a-step", *(str(word) for word in words)])
        captured = self.capsys.readouterr()
        said = captured.out + captured.err + self.caplog.text
        assert "Traceback" not in said
        return Ended(int(ended.value.code or 0), said)


def rows(folder: Path) -> list[dict[str, str]]:
    """Rows of the areas.csv of an output folder."""
    with (folder / "areas.csv").open(
        newline="", encoding="utf-8", errors="surrogateescape"
    ) as file:
        return list(csv.DictReader(file))


def results(folder: Path) -> set[str]:
    """Files in an output folder, without those that begin with a dot."""
    return {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith(".")
    }
