"""predictor.json lists what an evaluated step predicts with, for `kproba.load`.

The file names the network, the bank if there is one, and the classes. Paths in it are
relative to its folder, so that a step can move together with the files that it names.
It records their SHA-256, so that a file of another step or method is detected.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from kproba.artifacts import RESULTS
from kproba.bank.decision import DECISION, convert_decision
from kproba.network.record import MOST_CLASSES, read_model_record
from kproba.runtime import records
from kproba.runtime.files import write_json
from kproba.runtime.provenance import file_digest
from kproba.runtime.records import ArtifactError

PREDICTOR = "predictor.json"

# Keys that name a file, or null.
FILES = ("network", "bank", "feature_network")

# Folders from results/ down to a step. A moved step may use files up to this far above.
DEPTH = 5

MOVED = (
    "A step needs all files that its predictor.json names. Move or copy the whole "
    "folder results/, or write the step to one file with `kproba pack`."
)

NAMES = ("dataset", "task", "setting", "method")
ABOUT = records.record(
    {
        **dict.fromkeys(NAMES, records.text()),
        "seed": records.integer(),
        "step": records.integer(0, 10_000),
    },
    others=True,
)
_FILE = records.text(4096)
_LABEL = records.integer(0, MOST_CLASSES)
DESCRIPTION = records.record(
    {
        "network": _FILE,
        "bank": records.maybe(_FILE),
        "feature_network": records.maybe(_FILE),
        "decision": records.maybe(DECISION),
        "classes": records.list_of(
            records.record(
                {
                    "label": _LABEL,
                    "name": records.text(),
                    "step": records.integer(0, 10_000),
                }
            ),
            least=1,
            most=MOST_CLASSES + 1,
        ),
        "channels": records.list_of(
            records.integer(0, MOST_CLASSES),
            least=1,
            most=MOST_CLASSES + 1,
            distinct=True,
        ),
        "about": ABOUT,
    },
    {
        "digests": records.mapping_of(records.digest, most=100),
        "long_side": records.maybe(records.integer(1, 2**20)),
    },
)


@dataclass(frozen=True)
class SeenClass:
    """A class that a model has learned.

    Attributes:
        label: Value of the class in the dataset's masks and in predicted masks. The
            background has 255 where a label offset leaves the masks without one.
        name: Name of the class.
        step: Step that introduced the class; the background belongs to step 0.
    """

    label: int
    name: str
    step: int


@dataclass(frozen=True)
class StepDescription:
    """The files and classes that a step predicts with.

    Attributes:
        network: model.safetensors of the step.
        bank: prototypes.safetensors, if network and bank predict together; else None.
        feature_network: model.safetensors of the network whose features the bank
            reads, if that is not `network`.
        decision: `Decision` as a dictionary, if network and bank predict together.
        classes: The classes in output order, background first.
        channels: The network's channel of each class.
        about: The run and the step: dataset, task, setting, method, seed, step.
        long_side: Pixels of the longer side to which images of the dataset are scaled
            before the network sees them; None: they keep their size.
    """

    network: Path
    bank: Path | None
    feature_network: Path | None
    decision: dict[str, Any] | None
    classes: tuple[SeenClass, ...]
    channels: tuple[int, ...]
    about: dict[str, Any]
    long_side: int | None = None

    @property
    def files(self) -> list[Path]:
        """All files that it names, each with its description."""
        named = [getattr(self, key) for key in FILES]
        files = dict.fromkeys(path for path in named if path is not None)
        return [each for path in files for each in (path, path.with_suffix(".json"))]


def write_description(path: str | Path, description: StepDescription) -> None:
    """Write predictor.json.

    Args:
        path: Output JSON.
        description: Its content; its paths may be relative to the current folder.

    Raises:
        FileNotFoundError: A file that it names is missing.
        OSError: The file cannot be written.
    """
    folder = Path(path).parent
    files = {key: getattr(description, key) for key in FILES}
    content: dict[str, Any] = {
        **{
            key: None if file is None else os.path.relpath(file, folder)
            for key, file in files.items()
        },
        "decision": description.decision,
        "classes": [vars(entry) for entry in description.classes],
        "channels": description.channels,
        "about": description.about,
        "digests": {
            os.path.relpath(file, folder): file_digest(file)
            for file in description.files
        },
    }
    if description.long_side is not None:
        content["long_side"] = description.long_side
    write_json(path, content)


def read_description(path: str | Path, *, verify: bool = True) -> StepDescription:
    """Read predictor.json; paths start with the folder of that file.

    Args:
        path: As for `find_description`.
        verify: Compare the files that it names with the digests that it records.

    Raises:
        FileNotFoundError: There is no such file, or one that it names is missing.
        ArtifactError: It is damaged, or names files outside of results/ or of another
            step. It is a ValueError.
    """
    file = find_description(path)
    content = read_content(file)
    named = {
        key: None if content[key] is None else _locate(file, content[key])
        for key in FILES
    }
    network = named["network"]
    assert network is not None  # the check of the content
    description = StepDescription(
        network=network,
        bank=named["bank"],
        feature_network=named["feature_network"],
        decision=content["decision"],
        classes=tuple(SeenClass(**entry) for entry in content["classes"]),
        channels=tuple(content["channels"]),
        about=content["about"],
        long_side=content.get("long_side"),
    )
    _check_classes(description, file)
    for each in description.files:
        if not each.exists():
            raise FileNotFoundError(
                f"Expected the file {each}, which {file} names, but it does not exist. "
                f"{MOVED}"
            )
    if verify:
        _check_digests(file, content)
    _check_channels(description, file)
    return description


def read_content(file: Path) -> dict[str, Any]:
    """The content of a predictor.json with the keys of this version, checked.

    Raises:
        FileNotFoundError: There is no such file.
        ArtifactError: It is damaged or holds something else.
    """
    content = records.read_json(file)
    if isinstance(content, Mapping):
        content = convert_description(content)
    records.check_content(content, DESCRIPTION, file)
    checked: dict[str, Any] = content
    return checked


def convert_description(content: Mapping[str, Any]) -> dict[str, Any]:
    """The content of predictor.json with the keys of this version.

    Version 0.1.0 named the feature network "source" and the decision "rule".
    """
    renamed = {"source": "feature_network", "rule": "decision"}
    converted = {renamed.get(key, key): value for key, value in content.items()}
    if "decision" in converted:
        converted["decision"] = convert_decision(converted["decision"])
    return converted


def _locate(file: Path, named: str) -> Path:
    """Return the path of a file that a predictor.json names.

    The file must be in the same folder `results` as the step. For a step elsewhere, it
    may be as many levels above as results/ would be. If the folder of the step is a
    link, the path of the link is tried first, then the target of the link.

    Raises:
        ArtifactError: The path leaves this folder, or is not a file of tensors.
    """
    relative = PurePosixPath(named)
    if relative.is_absolute() or relative.suffix != ".safetensors":
        raise ArtifactError(
            f"Expected relative names of .safetensors files in {file}, but got "
            f"{records.quote(named)}. {records.REMAKE}"
        )
    allowed = []
    for folder in (file.parent, Path(os.path.realpath(file.parent))):
        place = Path(os.path.normpath(folder / named))
        if _absolute(place).is_relative_to(_root(folder)):
            allowed.append(place)
    if not allowed:
        raise ArtifactError(
            f"Expected {file} to name files below {_root(file.parent)}, but "
            f"{records.quote(named)} is outside of it. {MOVED}"
        )
    return next((place for place in allowed if place.exists()), allowed[0])


def _root(folder: Path) -> Path:
    """The folder that contains all files that a step in `folder` may name."""
    absolute = _absolute(folder)
    above = [absolute, *absolute.parents]
    results = [each for each in above if each.name == RESULTS]
    return results[0] if results else above[: DEPTH + 1][-1]


def _absolute(path: Path) -> Path:
    """A path from the root; links in it are not followed."""
    return Path(os.path.normpath(Path.cwd() / path))


def _check_classes(description: StepDescription, file: Path) -> None:
    """Refuse classes that contradict each other."""
    classes, channels = description.classes, description.channels
    steps = [entry.step for entry in classes]
    good = {
        "a channel for every class": sorted(channels) == list(range(len(classes))),
        "different labels": len({entry.label for entry in classes}) == len(classes),
        "different names": len({entry.name for entry in classes}) == len(classes),
        "classes in the order of their steps": steps == sorted(steps),
        "a bank for its decision": (description.bank is None)
        == (description.decision is None),
        "a bank for its feature network": description.feature_network is None
        or description.bank is not None,
    }
    for expected, is_good in good.items():
        if not is_good:
            raise ArtifactError(
                f"Expected {expected} in {file}, but found something else. "
                f"{records.REMAKE}"
            )


def _check_digests(file: Path, content: Mapping[str, Any]) -> None:
    """Refuse files that changed since a predictor.json named them."""
    digests = content.get("digests")
    if digests is None:  # of an older version
        return
    names = [content[key] for key in FILES if content[key] is not None]
    for name in names:
        for each in (name, str(PurePosixPath(name).with_suffix(".json"))):
            if each not in digests:
                raise ArtifactError(
                    f"Expected a digest of {each} in {file}, but it has none. "
                    f"{records.REMAKE}"
                )
            place = _locate(file, name).with_suffix(Path(each).suffix)
            records.regular_file(place)
            if file_digest(place) != digests[each]:
                raise ArtifactError(
                    f"Expected {place} to be unchanged since {file} was written, but "
                    f"its content is different. It is damaged, or belongs to another "
                    f"step or method. {records.REMAKE}"
                )


def _check_channels(description: StepDescription, file: Path) -> None:
    """Refuse a network that does not have the classes of the description."""
    model = read_model_record(description.network)
    if model.channels != len(description.channels):
        raise ArtifactError(
            f"Expected a network with the {len(description.channels)} classes of "
            f"{file}, background included, but {model.path} has {model.channels}. The "
            f"two files belong to different steps. {records.REMAKE}"
        )


def find_description(path: str | Path) -> Path:
    """The predictor.json of a step.

    Args:
        path: That file, the folder of the step, or a model in that folder.

    Raises:
        FileNotFoundError: There is no such file.
    """
    given = Path(path)
    folder = given if given.is_dir() else given.parent
    file = given if given.name == PREDICTOR else folder / PREDICTOR
    if not file.is_file():
        raise FileNotFoundError(
            f"Expected an evaluated step, which is a folder with {PREDICTOR}, but "
            f"{file} does not exist. Name a folder such as "
            f"results/<dataset>/<task>-<setting>/<method>/seed<n>/step<t>. If the step "
            f"has no evaluation.json yet, run Snakemake first."
        )
    return file
