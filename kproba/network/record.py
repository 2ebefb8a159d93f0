"""model.json: the description of a model. The plan reads it, so no torch here."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kproba.extensions import load_recorded
from kproba.network.architecture import ARCHITECTURE, Architecture
from kproba.network.backbones import BACKBONES
from kproba.network.heads import HEADS
from kproba.runtime import records

MOST_CLASSES = 255  # labels are bytes, and one is the background

EXTENSIONS = records.list_of(
    records.record({"path": records.text(4096), "sha256": records.digest}), most=1000
)
PROVENANCE = records.mapping_of(records.maybe(records.text()), most=100)

MODEL = records.record(
    {
        "architecture": ARCHITECTURE,
        "classes_per_step": records.list_of(
            records.integer(1, MOST_CLASSES), least=1, most=MOST_CLASSES
        ),
    },
    {
        "sha256": records.digest,
        "extensions": EXTENSIONS,
        "provenance": PROVENANCE,
        "settings": records.mapping_of(records.anything),
    },
    others=True,
)

CLASSES = records.record(
    {
        "classes": records.list_of(
            records.record({"label": records.integer(0, MOST_CLASSES)}, others=True),
            least=1,
            most=MOST_CLASSES + 1,
        )
    },
    others=True,
)


@dataclass(frozen=True)
class ModelRecord:
    """The content of a model.json.

    Attributes:
        path: The file.
        architecture: Settings of the network.
        classes_per_step: |C_0| without background, |C_1|, ...
        sha256: Digest of the file of weights; None before version 0.2.
        extensions: Files of the user that define parts of the network.
        content: The whole content.
    """

    path: Path
    architecture: Architecture
    classes_per_step: tuple[int, ...]
    sha256: str | None
    extensions: tuple[Mapping[str, str], ...]
    content: Mapping[str, Any]

    def load_extensions(self) -> None:
        """Load the user's files that define the backbone and the head, if needed.

        Raises:
            ExtensionError: A file is missing.
        """
        known = self.architecture.backbone in BACKBONES
        if not known or self.architecture.head not in HEADS:
            load_recorded(self.extensions, self.path.with_suffix(".safetensors"))

    @property
    def channels(self) -> int:
        """|S_t|: background and all classes seen."""
        return 1 + sum(self.classes_per_step)

    @property
    def labels(self) -> list[int]:
        """Raw label of every channel, 0 first.

        Raises:
            ArtifactError: The file does not contain them.
        """
        records.check_content(self.content, CLASSES, self.path)
        labels = [entry["label"] for entry in self.content["classes"]]
        if len(set(labels)) < len(labels) or len(labels) != self.channels or labels[0]:
            raise records.ArtifactError(
                f"Expected {self.channels} different labels, 0 first, for `classes` in "
                f"{self.path}, but got {labels}. {records.REMAKE}"
            )
        return labels

    def has_labels(self, labels: Sequence[int]) -> bool:
        """Whether the channels have these raw labels, 0 first, in this order.

        Raises:
            ArtifactError: The labels in the file are invalid.
        """
        if "classes" not in self.content:  # then compare their number
            return self.channels == len(labels)
        return self.labels == list(labels)

    @property
    def provenance(self) -> Mapping[str, str | None]:
        """Versions and commit that trained the model; empty if unknown."""
        found: Mapping[str, str | None] = self.content.get("provenance", {})
        return found


def read_model_record(model: str | Path) -> ModelRecord:
    """Read the description beside a model.

    Args:
        model: model.safetensors of any step and version; it need not exist.

    Raises:
        FileNotFoundError: There is no model.json beside it.
        ArtifactError: It is damaged or holds something else.
    """
    path = Path(model).with_suffix(".json")
    content = records.read_record(path, MODEL)
    if sum(content["classes_per_step"]) > MOST_CLASSES:
        raise records.ArtifactError(
            f"Expected at most {MOST_CLASSES} classes for `classes_per_step` in "
            f"{path}, but got {sum(content['classes_per_step'])}. {records.REMAKE}"
        )
    return ModelRecord(
        path=path,
        architecture=Architecture.from_dict(content["architecture"]),
        classes_per_step=tuple(content["classes_per_step"]),
        sha256=content.get("sha256"),
        extensions=tuple(content.get("extensions", ())),
        content=content,
    )
