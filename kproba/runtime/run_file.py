"""run.json names the training that wrote the event files, and its previous step.

Every training writes one at its start. `kproba tensorboard` follows `previous` from
step to step, so folders may have any name and path.
"""

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from kproba.runtime import records
from kproba.runtime.files import write_json

RUN_FILE = "run.json"
NAMES = ("dataset", "task", "setting", "method", "seed", "step")
SETTINGS = "settings.json"  # beside the folder, of a training by kproba 0.1.0

REMEDY = "Delete it. The curves of this training will then be missing."
_NUMBER = records.either(records.integer(), records.text(20))
RUN = records.record(
    {
        **dict.fromkeys(("dataset", "task", "setting", "method"), records.text()),
        **dict.fromkeys(("seed", "step"), _NUMBER),
        "previous": records.maybe(records.text(4096)),
    },
    {"joint": records.flag},
    others=True,
)
SOMETHING = records.mapping_of(records.anything)


@dataclass(frozen=True)
class TrainedStep:
    """The training that wrote a folder of event files.

    Attributes:
        dataset, task, setting, method, seed, step: Names of the run and step.
        previous: Folder of the event files of step t-1; None at step 0, or if unknown.
        joint: Whether it is one training of all classes of the steps 0..t.
    """

    dataset: str
    task: str
    setting: str
    method: str
    seed: int
    step: int
    previous: Path | None = None
    joint: bool = False

    @classmethod
    def from_names(
        cls, names: Mapping[str, object], previous: Path | None = None
    ) -> "TrainedStep":
        """From a mapping with at least the six names, and perhaps `joint`.

        Further keys are ignored.

        Raises:
            KeyError: A name is missing.
        """
        return cls(
            dataset=str(names["dataset"]),
            task=str(names["task"]),
            setting=str(names["setting"]),
            method=str(names["method"]),
            seed=int(str(names["seed"])),
            step=int(str(names["step"])),
            previous=previous,
            joint=bool(names.get("joint", False)),
        )

    @property
    def experiment(self) -> tuple[str, str, str]:
        """Dataset, task and setting."""
        return self.dataset, self.task, self.setting


def write_run(
    folder: Path, run: Mapping[str, object], previous: Path | None = None
) -> None:
    """Write run.json into a folder of event files, which need not exist yet.

    Args:
        folder: `<step folder>/tensorboard`.
        run: dataset, task, setting, method, seed and step, and `joint` if it is a
            training of all classes; further keys are left out.
        previous: The folder `tensorboard` of step t-1; None at step 0. It is written
            relative to `folder`, so that all results may move together.

    Raises:
        KeyError: A name is missing.
        OSError: The file cannot be written.
    """
    content = asdict(TrainedStep.from_names(run))
    link = None if previous is None else os.path.relpath(previous, folder)
    content["previous"] = link
    if not content["joint"]:
        del content["joint"]
    write_json(folder / RUN_FILE, content)


def read_run(folder: Path) -> TrainedStep | None:
    """Identify the training that wrote a folder of event files.

    Of trainings by kproba 0.1.0, which wrote no run.json, the settings.json beside the
    folder has the names, but not the previous step.

    Args:
        folder: `<step folder>/tensorboard`.

    Returns:
        None if neither file exists, or the file has another content.
    """
    written, settings = folder / RUN_FILE, folder.parent / SETTINGS
    if written.is_file():
        content = records.read_record(written, RUN, remedy=REMEDY)
        link = content["previous"]
        return TrainedStep.from_names(content, None if link is None else folder / link)
    if folder.is_dir() and settings.is_file():
        content = records.read_record(settings, SOMETHING, remedy=REMEDY)
        names = content.get("run", content)
        return TrainedStep.from_names(names) if has_names(names) else None
    return None


def has_names(names: Mapping[str, object]) -> bool:
    """Whether a mapping has all keys that `TrainedStep.from_names` needs."""
    return all(name in names for name in NAMES)
