"""step.json, the description of a step in an archive that `kproba pack` wrote.

The plan reads it at every call of Snakemake, so nothing here imports torch or pandas.
"""

import hashlib
import json
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from kproba.bank.description import ABOUT, find_description
from kproba.bank.settings import BANK_SETTINGS, BankSettings
from kproba.network.architecture import ARCHITECTURE, Architecture
from kproba.network.record import EXTENSIONS, MOST_CLASSES
from kproba.runtime import records
from kproba.runtime.records import ArtifactError, quote

STEP_FILE = "step.json"
FORMAT = "kproba step"
VERSION = 1

# All files that an archive may hold besides step.json, by their names in it.
PREDICTOR = "predictor.json"
NETWORK = "model.safetensors"
BANK = "prototypes.safetensors"
FIRST_NETWORK = "step0/model.safetensors"  # the network of the bank's features
EVALUATION = "evaluation.json"
NEEDED = (PREDICTOR, NETWORK, "model.json")
MEMBERS = (
    *(*NEEDED, BANK, "prototypes.json"),
    *(FIRST_NETWORK, "step0/model.json", EVALUATION),
)
MOST_STEP_BYTES = 2**22  # of step.json

# Errors that zipfile raises for a damaged archive, besides OSError.
UNREADABLE = (
    *(zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError),
    *(struct.error, zlib.error, ValueError, OverflowError),
)

PACK_AGAIN = "Write the archive again with `kproba pack`, or copy it again."

RECORD = records.record(
    {
        "format": records.choice(FORMAT),
        "version": records.integer(1),
        "run": ABOUT,
        "groups": records.list_of(
            records.list_of(records.integer(1, MOST_CLASSES), distinct=True),
            least=1,
            most=10_000,
        ),
        "names": records.list_of(
            records.text(), least=1, most=MOST_CLASSES + 1, distinct=True
        ),
        "values": records.list_of(
            records.integer(0, MOST_CLASSES), least=1, most=MOST_CLASSES + 1
        ),
        "architecture": ARCHITECTURE,
        "extensions": EXTENSIONS,
        "bank": records.maybe(
            records.record(
                {
                    "settings": BANK_SETTINGS,
                    "features": records.choice("network", "step0", "pretrained"),
                }
            )
        ),
        "long_side": records.maybe(records.integer(1, 2**20)),
        "members": records.mapping_of(
            records.record(
                {"sha256": records.digest, "bytes": records.integer(0, 2**40)}
            ),
            most=len(MEMBERS),
        ),
    }
)


@dataclass(frozen=True)
class PackedStep:
    """A step, in an archive or a folder, that a next step can start from.

    Attributes:
        path: The archive, or the folder.
        dataset, task, setting, method, seed, step: Names of the run and step.
        groups: Raw labels of the classes of the steps 0..t, in output order.
        names: Names of S_t in output order, "background" first.
        values: Values of these classes in the masks of the dataset.
        architecture: Settings of the network.
        extensions: Files of the user that the network is made with.
        bank: Settings of the step's bank; None if there is none.
        features: Network of the bank's features: "network", the network of the step;
            "step0", the network of step 0; "pretrained", the network before step 0;
            None without a bank.
        long_side: As in `kproba.bank.description.StepDescription`.
        members: SHA-256 of every file by its name in an archive.
    """

    path: Path
    dataset: str
    task: str
    setting: str
    method: str
    seed: int
    step: int
    groups: tuple[tuple[int, ...], ...]
    names: tuple[str, ...]
    values: tuple[int, ...]
    architecture: Architecture
    extensions: tuple[Mapping[str, str], ...]
    bank: BankSettings | None
    features: Literal["network", "step0", "pretrained"] | None
    long_side: int | None
    members: Mapping[str, str]

    @property
    def head(self) -> str:
        """The head of the network."""
        return self.architecture.head

    @property
    def labels(self) -> tuple[int, ...]:
        """Raw labels of S_t in output order, 0 first."""
        return 0, *(label for group in self.groups for label in group)

    @property
    def digest(self) -> str:
        """SHA-256 of the files that the training of a next step reads.

        These are networks and bank, without names of classes and results.
        """
        read = {
            name: sha256
            for name, sha256 in self.members.items()
            if name not in (PREDICTOR, EVALUATION)
        }
        text = json.dumps(read, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def to_packed_step(record: Mapping[str, Any], path: Path) -> PackedStep:
    """From the content of a step.json.

    Args:
        record: The content.
        path: The archive or folder with this record.

    Raises:
        ArtifactError: It is of a newer version, damaged, or contradicts itself.
    """
    source = f"{STEP_FILE} of {path}"
    if isinstance(record, Mapping) and record.get("format") == FORMAT:
        version = record.get("version")
        if isinstance(version, int) and version > VERSION:
            raise ArtifactError(
                f"Expected at most version {VERSION} in {source}, but got {version}. A "
                f"newer version of kproba wrote the archive. Update kproba."
            )
    records.check_content(record, RECORD, source, remedy=PACK_AGAIN)
    bank = record["bank"]
    _check_members(record, source)
    labels = [label for group in record["groups"] for label in group]
    counts = {len(labels) + 1, len(record["names"]), len(record["values"])}
    if len(counts) > 1 or len(set(labels)) < len(labels):
        raise ArtifactError(
            f"Expected the same number of labels, names and values in {source}, and "
            f"different labels, but got {len(labels) + 1} labels, "
            f"{len(record['names'])} names and {len(record['values'])} values. "
            f"{PACK_AGAIN}"
        )
    return PackedStep(
        path=path,
        **{key: record["run"][key] for key in ("dataset", "task", "setting")},
        **{key: record["run"][key] for key in ("method", "seed", "step")},
        groups=tuple(tuple(group) for group in record["groups"]),
        names=tuple(record["names"]),
        values=tuple(record["values"]),
        architecture=Architecture.from_dict(record["architecture"]),
        extensions=tuple(record["extensions"]),
        bank=None if bank is None else BankSettings(**bank["settings"]),
        features=None if bank is None else bank["features"],
        long_side=record["long_side"],
        members={name: entry["sha256"] for name, entry in record["members"].items()},
    )


def _check_members(record: Mapping[str, Any], source: str) -> None:
    """Refuse unknown and missing members."""
    names, bank = record["members"].keys(), record["bank"]
    needed = set(NEEDED)
    if bank is not None:
        needed |= {BANK, "prototypes.json"}
        if bank["features"] != "network":
            needed |= {FIRST_NETWORK, "step0/model.json"}
    unknown, missing = sorted(names - set(MEMBERS)), sorted(needed - names)
    if unknown or missing:
        raise ArtifactError(
            f"Expected the members {', '.join(sorted(needed))} in {source}, but "
            f"{quote((unknown or missing)[0])} is "
            f"{'unknown' if unknown else 'missing'}. {PACK_AGAIN}"
        )


def is_archive(path: str | Path) -> bool:
    """Whether a path is a file, but not one of the files in a step's folder."""
    path = Path(path)
    if not path.exists() or path.is_dir():
        return path.suffix.lower() == ".zip"
    return path.suffix.lower() not in (".json", ".safetensors")


@contextmanager
def open_archive(path: Path) -> Iterator[tuple[zipfile.ZipFile, dict[str, Any]]]:
    """An archive that `kproba pack` wrote, and the content of its step.json.

    Its members are exactly the files in step.json, with the listed sizes. They are not
    compressed, so the archive cannot expand to more bytes than it has.

    Raises:
        FileNotFoundError: There is no such file.
        ArtifactError: It is damaged, or another kind of file.
        OSError: It must not be read.
    """
    size = records.regular_file(path, remedy=PACK_AGAIN)
    with _named(path), zipfile.ZipFile(path) as archive:
        infos = archive.infolist()
        _check_infos(infos, size, path)
        raw = archive.read(STEP_FILE)
        record = records.parse_json(raw, f"{STEP_FILE} of {path}", remedy=PACK_AGAIN)
        to_packed_step(record, path)
        sizes = {name: entry["bytes"] for name, entry in record["members"].items()}
        held = {info.filename: info.file_size for info in infos}
        held.pop(STEP_FILE)
        if sizes != held:
            raise ArtifactError(
                f"Expected exactly the files that {STEP_FILE} lists in {path}, but "
                f"found other files or other sizes. {PACK_AGAIN}"
            )
        yield archive, record


def _check_infos(infos: list[zipfile.ZipInfo], size: int, path: Path) -> None:
    """Refuse members that `kproba pack` does not write."""
    names = [info.filename for info in infos]
    fault = ""
    if STEP_FILE not in names:
        fault = f"it has no {STEP_FILE}"
    for info in infos:
        if info.filename not in (*MEMBERS, STEP_FILE):
            fault = f"it holds {quote(info.filename)}, which is unknown"
        elif info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
            fault = f"{info.filename} is compressed or encrypted"
        elif info.file_size > size or info.file_size != info.compress_size:
            fault = f"{info.filename} cannot have {info.file_size} bytes"
        elif info.filename == STEP_FILE and info.file_size > MOST_STEP_BYTES:
            fault = f"{STEP_FILE} has {info.file_size} bytes"
    if len(set(names)) < len(names):
        fault = "it holds a file twice"
    if fault:
        raise ArtifactError(
            f"Expected an archive that `kproba pack` wrote in {path}, but {fault}. "
            f"Write it with `kproba pack`. If it is a folder that was zipped by hand, "
            f"unpack it and use the folder."
        )


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Run a block, and turn all errors of zipfile into one with the path."""
    try:
        yield
    except ArtifactError:
        raise
    except OSError as error:
        if error.errno is None:  # one that has its message
            raise
        raise OSError(
            f"Expected to read {path}, but: {error.strerror}. {PACK_AGAIN}"
        ) from error
    except UNREADABLE as error:
        raise ArtifactError(
            f"Expected an undamaged archive that `kproba pack` wrote in {path}, but: "
            f"{error or type(error).__name__}. {PACK_AGAIN}"
        ) from error


def is_packed(path: Path) -> bool:
    """Whether a file is an archive that `kproba pack` wrote, of any version."""
    if not path.is_file():
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.getinfo(STEP_FILE).file_size > MOST_STEP_BYTES:
                return False
            content = records.parse_json(archive.read(STEP_FILE), path)
            return isinstance(content, dict) and content.get("format") == FORMAT
    except (OSError, KeyError, *UNREADABLE):
        return False


def read_packed(path: str | Path) -> PackedStep:
    """Read the description of a packed step.

    Args:
        path: An archive that `kproba pack` wrote, or the folder of an evaluated step.

    Raises:
        FileNotFoundError: A file is missing.
        ArtifactError: A file is damaged or something else. It is a ValueError.
        OSError: A file must not be read.
    """
    if is_archive(path):
        with open_archive(Path(path)) as (_, record):
            return to_packed_step(record, Path(path))
    from kproba.predict.pack import collect

    record, _ = collect(path, verify=False)
    return to_packed_step(record, find_description(path).parent)
