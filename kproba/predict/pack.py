"""Writes an evaluated step to one archive, with everything for a next step.

    kproba pack results/digits/6-2-overlap/kproba/seed0/step2 --out step2.zip

The archive holds the network, the bank (if there is one), the network of the bank's
features, their descriptions, and the results. `kproba predict`, `info` and `export`
accept it instead of a step. A configuration can start the next step from it, on another
machine and without the pictures of the step. Unpacked by hand, it is the folder of a
step. Equal steps have equal archives.
"""

import hashlib
import json
import logging
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kproba.bank.description import (
    FILES,
    StepDescription,
    find_description,
    read_content,
    read_description,
)
from kproba.bank.record import BankRecord, read_bank_record
from kproba.network.record import ModelRecord, read_model_record
from kproba.predict.packed import (
    BANK,
    EVALUATION,
    FIRST_NETWORK,
    FORMAT,
    NETWORK,
    PREDICTOR,
    STEP_FILE,
    VERSION,
    PackedStep,
    is_archive,
    is_packed,
    read_packed,
)
from kproba.predict.unpack import opened, unpack_step
from kproba.runtime import records
from kproba.runtime.files import atomic_path
from kproba.runtime.provenance import file_digest, fingerprint
from kproba.runtime.records import ArtifactError
from kproba.runtime.run_file import read_run

__all__ = ["PackedStep", "opened", "pack_step", "read_packed", "unpack_step"]

log = logging.getLogger("kproba")

CHUNK = 2**20  # bytes
DATE = (1980, 1, 1, 0, 0, 0)  # of all members, so that equal steps have equal archives
EVENTS = "tensorboard"  # in the folder of a model; names the previous step
MOST_STEPS = 10_000  # most steps back to step 0

# A member of an archive: a file to copy, or a text.
Source = Path | str


def pack_step(step: str | Path, out: str | Path | None = None) -> Path:
    """Write a step to an archive.

    Args:
        step: Folder of an evaluated step, or its predictor.json.
        out: The archive; None: a file in the current folder, named after the step. An
            archive that this function wrote is replaced; any other file is not.

    Returns:
        The archive.

    Raises:
        FileNotFoundError: The step has not been evaluated, or a file is missing.
        ArtifactError: A file of the step is damaged or of another step. It is a
            ValueError.
        OSError: `out` is another kind of file, or cannot be written.
    """
    if is_archive(step):
        raise ArtifactError(
            f"Expected the folder of an evaluated step, but got the archive {step}. It "
            f"is packed already: copy the file."
        )
    record, sources = collect(step)
    run = record["run"]
    name = f"{run['dataset']}-{run['task']}-{run['setting']}-{run['method']}"
    path = Path(out or f"{name}-seed{run['seed']}-step{run['step']}.zip")
    if os.path.lexists(path) and not is_packed(path):
        raise FileExistsError(
            f"Expected a new name or an archive that `kproba pack` wrote for --out, "
            f"but {path} is another file. Choose another name, or remove that file."
        )
    text = to_text(record)
    with (
        atomic_path(path) as temporary,
        zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive,
    ):
        # First, so that the plan finds it at once.
        _write_member(archive, STEP_FILE, text)
        for member in sorted(sources):
            written = _write_member(archive, member, sources[member])
            if written != record["members"][member]["sha256"]:
                raise ArtifactError(
                    f"Expected {sources[member]} not to change while it is packed, but "
                    f"it changed. Pack the step again when no job writes to it."
                )
    log.info("wrote %s, %.1f MiB", path, path.stat().st_size / 2**20)
    return path


def collect(
    step: str | Path, *, verify: bool = True
) -> tuple[dict[str, Any], dict[str, Source]]:
    """Collect all files of a step from their folders.

    Args:
        step: Folder of an evaluated step, or its predictor.json.
        verify: Read all files and compare them with the recorded digests. Otherwise
            recorded digests are used without a check.

    Returns:
        The content of step.json, and the members of an archive by name.

    Raises:
        FileNotFoundError, ArtifactError, OSError: As `pack_step`.
    """
    file = find_description(step)
    description = read_description(file, verify=verify)
    model = read_model_record(description.network)
    bank = _find_bank(description, file, model)
    first = _find_first(description, file, bank)
    places: dict[str, Path] = {NETWORK: description.network}
    if bank is not None:
        places[BANK] = bank.path.with_suffix(".safetensors")
    if first is not None and _reads_first(bank, description, verify=verify):
        places[FIRST_NETWORK] = first
    sources: dict[str, Source] = {}
    members: dict[str, dict[str, Any]] = {}
    for name, place in places.items():
        members[name] = _entry(place, model=place, verify=verify)
        below = str(Path(name).with_suffix(".json"))
        members[below] = _entry(place.with_suffix(".json"))
        sources |= {name: place, below: place.with_suffix(".json")}
    if first is not None and FIRST_NETWORK not in places:
        sources["step0/model.json"] = first.with_suffix(".json")
        members["step0/model.json"] = _entry(first.with_suffix(".json"))
    content = _local_description(file, description, members)
    sources[PREDICTOR] = to_text(content)
    result = file.with_name(EVALUATION)
    if result.exists():
        sources[EVALUATION] = result
    for name in (PREDICTOR, EVALUATION):
        if name in sources:
            members[name] = _entry(sources[name])
    record = {
        "format": FORMAT,
        "version": VERSION,
        "run": {key: description.about[key] for key in _RUN},
        "groups": _groups(description, model),
        "names": [entry.name for entry in description.classes],
        "values": [entry.label for entry in description.classes],
        "architecture": vars(model.architecture),
        "extensions": list(model.extensions),
        "bank": None
        if bank is None
        else {
            "settings": vars(bank.settings),
            "features": bank.content.get("network", "step0")
            if FIRST_NETWORK in places
            else "network",
        },
        "long_side": description.long_side,
        "members": members,
    }
    return record, sources


_RUN = ("dataset", "task", "setting", "method", "seed", "step")


def _groups(description: StepDescription, model: ModelRecord) -> list[list[int]]:
    """Raw labels of the classes of the steps 0..t, in output order."""
    raw = model.labels
    groups: list[list[int]] = [[] for _ in range(description.classes[-1].step + 1)]
    pairs = zip(description.classes, description.channels, strict=True)
    for entry, channel in list(pairs)[1:]:
        groups[entry.step].append(raw[channel])
    return groups


def _local_description(
    file: Path, description: StepDescription, members: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """The content of predictor.json with the names of an archive."""
    content = dict(read_content(file))
    names = dict(zip(FILES, (NETWORK, BANK, FIRST_NETWORK), strict=True))
    digests = {}
    for key, name in names.items():
        if content[key] is None:
            continue
        if key == "feature_network" and FIRST_NETWORK not in members:
            content[key] = None  # the bank reads the features of the network itself
            continue
        content[key] = name
        for each in (name, str(Path(name).with_suffix(".json"))):
            digests[each] = members[each]["sha256"]
    return {**content, "digests": dict(sorted(digests.items()))}


def _find_bank(
    description: StepDescription, file: Path, model: ModelRecord
) -> BankRecord | None:
    """The bank of the step, even if it is not used for predictions."""
    places = [file.with_name(BANK), description.network.with_name(BANK)]
    if description.bank is not None:
        places = [description.bank]
    for place in places:
        if place.exists() and place.with_suffix(".json").exists():
            bank = read_bank_record(place)
            cells = bank.content.get("cells_per_class", [])
            if len(cells) == model.channels:
                return bank
            log.warning("%s belongs to another step and is left out", place)
    return None


def _reads_first(
    bank: BankRecord | None, description: StepDescription, *, verify: bool
) -> bool:
    """Whether a bank uses the features of another network than the step's network."""
    if bank is None:
        return False
    return bank.model != _model_fingerprint(description.network, verify=verify)


def _find_first(
    description: StepDescription, file: Path, bank: BankRecord | None
) -> Path | None:
    """model.safetensors of the network of the bank's features, if it is another one.

    Otherwise that of step 0; None if this is step 0, or the file is unknown.

    Raises:
        FileNotFoundError: The bank uses its features, but the file was not found.
    """
    candidates = [file.parent / FIRST_NETWORK, *_earlier(description.network)]
    if description.feature_network is not None:
        candidates.insert(0, description.feature_network)
    own = description.network.resolve()
    candidates = [
        place
        for place in candidates
        if place.with_suffix(".json").exists() and place.resolve() != own
    ]
    if not _reads_first(bank, description, verify=False):
        found = [read_model_record(place) for place in candidates[-1:]]
        return candidates[-1] if found and len(found[0].classes_per_step) == 1 else None
    assert bank is not None
    experiments = file.resolve().parents[min(4, len(file.resolve().parents) - 1)]
    candidates += sorted(experiments.glob("*/*/seed*/step0/model.safetensors"))
    for place in candidates:
        if place.exists() and _model_fingerprint(place, verify=True) == bank.model:
            return place
    raise FileNotFoundError(
        f"Expected the network whose features {bank.path} uses below {experiments}, "
        f"but did not find it. Copy the whole folder results/."
    )


def _earlier(network: Path) -> list[Path]:
    """Models of the earlier steps, the latest first, as far as they are known."""
    found: list[Path] = []
    events = network.parent / EVENTS
    for _ in range(MOST_STEPS):
        run = read_run(events) if events.is_dir() else None
        if run is None or run.previous is None:
            break
        events = run.previous
        place = Path(os.path.normpath(events)).with_name(NETWORK)
        if place in found or not place.with_suffix(".json").exists():
            break
        found.append(place)
    return found


def _model_fingerprint(model: Path, *, verify: bool) -> str:
    """`fingerprint` of a model; from the recorded digest, unless `verify` is set."""
    record = read_model_record(model)
    if verify or record.sha256 is None:
        return fingerprint(model)
    return hashlib.sha256(bytes.fromhex(record.sha256)).hexdigest()


def _entry(
    source: Source, *, model: Path | None = None, verify: bool = True
) -> dict[str, Any]:
    """Digest and size of a member."""
    if isinstance(source, str):
        raw = source.encode()
        return {"sha256": hashlib.sha256(raw).hexdigest(), "bytes": len(raw)}
    size = records.regular_file(source)
    if model is not None and not verify:
        content = records.read_json(source.with_suffix(".json"))
        if isinstance(content.get("sha256"), str):
            return {"sha256": content["sha256"], "bytes": size}
    return {"sha256": file_digest(source), "bytes": size}


def to_text(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False, sort_keys=True) + "\n"


def _write_member(archive: zipfile.ZipFile, name: str, source: Source) -> str:
    """Write a member; returns its SHA-256."""
    info = zipfile.ZipInfo(name, DATE)
    info.create_system, info.external_attr = 3, 0o644 << 16
    size = len(source.encode()) if isinstance(source, str) else source.stat().st_size
    info.file_size = size
    digest = hashlib.sha256()
    with archive.open(info, "w", force_zip64=size >= 2**31) as file:
        if isinstance(source, str):
            file.write(source.encode())
            digest.update(source.encode())
        else:
            with source.open("rb") as content:
                while chunk := content.read(CHUNK):
                    digest.update(chunk)
                    file.write(chunk)
    return digest.hexdigest()
