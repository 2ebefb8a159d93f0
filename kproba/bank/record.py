"""prototypes.json: the description of a bank. The plan reads it, so no torch here."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kproba.bank.settings import BANK_SETTINGS, BankSettings
from kproba.network.record import MOST_CLASSES, PROVENANCE
from kproba.runtime import records

BANK = records.record(
    {
        "settings": BANK_SETTINGS,
        "seed": records.integer(),
        "gamma": records.maybe(records.number(above=0)),
        "temperature": records.number(1e-6, 1e6),
        "scatter_count": records.number(0, 1e15),
    },
    {
        "model": records.text(),
        "network": records.choice("pretrained"),  # that the model is, if of no step
        "sha256": records.digest,
        "cells_per_class": records.list_of(
            records.integer(), least=1, most=MOST_CLASSES + 1
        ),
        "labels": records.list_of(
            records.integer(0, MOST_CLASSES), least=1, distinct=True
        ),
        "classes": records.list_of(records.text()),  # names, before version 0.2
        "provenance": PROVENANCE,
    },
    others=True,
)


@dataclass(frozen=True)
class BankRecord:
    """The content of a prototypes.json.

    Attributes:
        path: The file.
        settings: Settings of the bank.
        seed: Seed of the maps.
        gamma: γ in use; None for the identity map.
        temperature: T of the posterior.
        scatter_count: Cells that the scatter holds.
        model: Fingerprint of the model that the bank belongs to; None if unknown.
        sha256: Of the file of statistics; None before version 0.2.
        content: The whole content.
    """

    path: Path
    settings: BankSettings
    seed: int
    gamma: float | None
    temperature: float
    scatter_count: float
    model: str | None
    sha256: str | None
    content: Mapping[str, Any]


def read_bank_record(bank: str | Path) -> BankRecord:
    """Read the description beside a bank.

    Args:
        bank: prototypes.safetensors of any step and version; it need not exist.

    Raises:
        FileNotFoundError: There is no prototypes.json beside it.
        ArtifactError: It is damaged or holds something else.
    """
    path = Path(bank).with_suffix(".json")
    content = records.read_record(path, BANK)
    settings = BankSettings(**content["settings"])
    _check_map(settings, content["gamma"], path)
    return BankRecord(
        path=path,
        settings=settings,
        seed=content["seed"],
        gamma=content["gamma"],
        temperature=content["temperature"],
        scatter_count=content["scatter_count"],
        model=content.get("model"),
        sha256=content.get("sha256"),
        content=content,
    )


def _check_map(settings: BankSettings, gamma: float | None, path: Path) -> None:
    """Refuse settings that do not fit the map of a bank.

    Raises:
        ArtifactError: A number that the map needs is missing, or there are several
            maps of a kind that has one.
    """
    needed: dict[str, object] = {"settings.ridge": settings.ridge}
    if settings.map == "rff":
        needed |= {"gamma": gamma, "settings.dimension": settings.dimension}
    if settings.map == "relu":
        needed = {
            "settings.dimension": settings.dimension,
            "settings.regularisation": settings.regularisation,
            "settings.scatter": settings.scatter or None,
        }
    missing = [f"`{name}`" for name, value in needed.items() if value is None]
    if missing:
        raise records.ArtifactError(
            f"Expected {', '.join(f'`{name}`' for name in needed)} of a bank with the "
            f"map '{settings.map}' in {path}, but {', '.join(missing)} is missing. "
            f"{records.REMAKE}"
        )
    if settings.map != "rff" and settings.maps != 1:
        raise records.ArtifactError(
            f"Expected 1 for `settings.maps` in {path}, because its map is "
            f"'{settings.map}', but got {settings.maps}. {records.REMAKE}"
        )
