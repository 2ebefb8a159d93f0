"""The real chain on real pictures, small shares of them, and on bad input."""

import hashlib
import io
import json
import re
import shutil
import tarfile
import threading
import zipfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from snakemake_calls import ROOT, jobs, names, snakemake

pytestmark = pytest.mark.workflow

SHORT: dict[str, Any] = {
    "epochs": 0.3,
    "batch_size": 4,
    "optimizer": "adamw",
}
SMALL: dict[str, Any] = {
    "model": {"backbone": "efficientnet_lite0", "aspp_channels": 16},
    "base": SHORT,
    "increment": SHORT,
    "augmentation": {"crop_size": 64},
    "bank": {"dimension": 64, "maps": 2, "calibration_cells": 500},
    "compute": {"gpus": 0, "threads": 1, "workers": 0},
}


def _configure(folder: Path, template: str, **sections: Any) -> dict[str, Any]:
    """A shipped configuration made small, and with sections replaced."""
    config = yaml.safe_load((ROOT / "config" / template).read_text())
    for name, section in SMALL.items():
        config[name] = {**config.get(name, {}), **section}
    config.update(sections)
    folder.mkdir(exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return config


def _share(source: Path, target: Path, every: int) -> None:
    """Every so manyeth image of a folder dataset, by links."""
    for subset in ("train", "val"):
        for kind in ("images", "masks"):
            (target / kind / subset).mkdir(parents=True)
        for image in sorted((source / "images" / subset).iterdir())[::every]:
            (target / "images" / subset / image.name).symlink_to(image)
            mask = f"masks/{subset}/{image.stem}.png"
            (target / mask).symlink_to(source / mask)
    shutil.copy(source / "classes.txt", target)


def _sizes(run: Path, dataset: str, task: str, setting: str = "overlap") -> list[int]:
    steps = sorted((run / f"results/splits/{dataset}/{task}-{setting}").glob("*.csv"))
    return [len(pd.read_csv(path)) for path in steps]


# --- folders -------------------------------------------------------------------------


def test_whole_chain_on_a_share_of_voc_animals(test_data, tmp_path):
    _share(test_data / "voc_animals", tmp_path / "my animals", every=12)
    experiments = [
        {"dataset": "animals", "task": "mine", "methods": ["kproba", "joint"]}
    ]
    _configure(
        tmp_path / "run",
        "folder.yaml",
        datasets={"animals": {"kind": "folder", "path": "../my animals"}},
        experiments=experiments,
    )
    snakemake(tmp_path / "run")
    summary = pd.read_csv(tmp_path / "run/results/summary.csv")
    assert summary["step"].tolist() == [0, 1, 2, 2]
    assert summary["all"].between(0, 100).all()
    chain = tmp_path / "run/results/animals/mine-overlap/kproba/seed0/step2"
    result = json.loads((chain / "evaluation.json").read_text())
    assert [entry["name"] for entry in result["classes"]] == [
        *["background", "car", "cat", "chair", "cow", "dog"],
        *["horse", "person", "sheep", "sofa"],
    ]
    assert result["images"] == len(names(tmp_path / "my animals/images/val"))
    assert jobs(tmp_path / "run") == {}


def test_whole_chain_on_a_share_of_camvid(test_data, tmp_path):
    """Street scenes: no background of their own, so MiB's policy."""
    _share(test_data / "camvid", tmp_path / "camvid", every=12)
    _configure(
        tmp_path / "run",
        "folder.yaml",
        datasets={"camvid": {"kind": "folder", "path": "../camvid"}},
        tasks={},
        experiments=[{"dataset": "camvid", "task": "9-2", "methods": ["kproba"]}],
        evaluation={"policy": "mib", "examples": 2},
    )
    snakemake(tmp_path / "run")
    summary = pd.read_csv(tmp_path / "run/results/summary.csv")
    assert summary["step"].tolist() == [0, 1]
    report = json.loads(
        (tmp_path / "run/results/data/camvid/integrity.json").read_text()
    )
    assert "0" not in report["images_with_label"]


@pytest.mark.parametrize(
    ("setting", "sizes"),
    [("overlap", [1216, 412, 207]), ("disjoint", [984, 375, 207])],
)
def test_splits_of_all_voc_animals(test_data, tmp_path, setting, sizes):
    path = str(test_data / "voc_animals")
    _configure(
        tmp_path,
        "folder.yaml",
        datasets={"animals": {"kind": "folder", "path": path}},
        experiments=[{"dataset": "animals", "task": "5-2", "setting": setting}],
    )
    folder = f"results/splits/animals/5-2-{setting}"
    snakemake(tmp_path, *(f"{folder}/step{step}.csv" for step in range(3)))
    assert _sizes(tmp_path, "animals", "5-2", setting) == sizes


def test_read_only_folder_is_enough(test_data, tmp_path):
    source = tmp_path / "data"
    shutil.copytree(test_data / "voc_mini", tmp_path / "voc_mini")
    shutil.copytree(tmp_path / "voc_mini/JPEGImages", source / "images/train")
    shutil.copytree(tmp_path / "voc_mini/SegmentationClassAug", source / "masks/train")
    classes = ["background", *(f"class {number}" for number in range(1, 21))]
    _configure(
        tmp_path / "run",
        "folder.yaml",
        datasets={"voc": {"kind": "folder", "path": str(source), "classes": classes}},
        experiments=[{"dataset": "voc", "task": "15-5"}],
    )
    paths = [source, *source.rglob("*")]
    for path in paths:
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        snakemake(tmp_path / "run", "results/splits/voc/15-5-overlap/step0.csv")
        assert sorted([source, *source.rglob("*")]) == sorted(paths)
    finally:
        for path in paths:
            path.chmod(0o755)
    index = pd.read_csv(tmp_path / "run/results/data/voc/index.csv")
    assert set(index["subset"]) == {"train", "val"}


def test_faulty_folder_stops_with_one_message_and_no_index(test_data, tmp_path):
    _share(test_data / "voc_animals", tmp_path / "data", every=60)
    image = sorted((tmp_path / "data/images/train").iterdir())[3]
    content = image.read_bytes()
    image.unlink()
    image.write_bytes(content[: len(content) // 2])
    config = _configure(
        tmp_path / "run",
        "folder.yaml",
        datasets={"animals": {"kind": "folder", "path": str(tmp_path / "data")}},
        experiments=[{"dataset": "animals", "task": "5-2"}],
    )
    output = snakemake(tmp_path / "run", succeeds=False)
    assert output.count(f"{image}: ") == 1
    assert "truncated" in output
    assert "on_error: skip" in output
    data = tmp_path / "run/results/data/animals"
    assert names(data) == ["index.log", "problems.csv"]

    config["datasets"]["animals"]["on_error"] = "skip"
    (tmp_path / "run/config.yaml").write_text(yaml.safe_dump(config))
    snakemake(tmp_path / "run", "results/data/animals/index.csv")
    report = json.loads((data / "integrity.json").read_text())
    assert report["problems_by_kind"] == {"unreadable image": 1}
    assert image.stem not in pd.read_csv(data / "index.csv")["id"].tolist()


def test_added_image_makes_the_index_again(test_data, tmp_path):
    _share(test_data / "voc_animals", tmp_path / "data", every=60)
    _configure(
        tmp_path / "run",
        "folder.yaml",
        datasets={"animals": {"kind": "folder", "path": str(tmp_path / "data")}},
        experiments=[{"dataset": "animals", "task": "5-2"}],
    )
    target = "results/data/animals/index.csv"
    snakemake(tmp_path / "run", target)
    assert jobs(tmp_path / "run", target) == {}
    (tmp_path / "data/images/train/.DS_Store").write_bytes(b"x")
    assert jobs(tmp_path / "run", target) == {}
    for kind in ("images", "masks"):
        one = sorted((tmp_path / "data" / kind / "train").iterdir())[1]
        shutil.copy(one, one.with_name(f"new{one.suffix}"))
    assert jobs(tmp_path / "run", target) == {"prepare_dataset": 1}


# --- Pascal VOC ----------------------------------------------------------------------


def test_whole_chain_on_pictures_in_the_layout_of_voc(test_data, tmp_path):
    _configure(
        tmp_path,
        "voc.yaml",
        datasets={"voc": {"kind": "voc", "path": str(test_data / "voc_mini")}},
        experiments=[{"dataset": "voc", "task": "15-5", "methods": ["kproba"]}],
        evaluation={"policy": "ssul", "crop": 96, "examples": 2},
    )
    snakemake(tmp_path)
    summary = pd.read_csv(tmp_path / "results/summary.csv")
    assert summary["step"].tolist() == [0, 1]
    chain = tmp_path / "results/voc/15-5-overlap/kproba/seed0/step1"
    result = json.loads((chain / "evaluation.json").read_text())
    assert result["class_order"] == list(range(1, 21))
    assert result["protocol"] == {
        "policy": "ssul",
        "ignore_background": False,
        "crop": 96,
        "checkpoint": "last",
    }
    expected = _presence(test_data, "train_cls.txt")
    for step, new in enumerate((range(1, 16), range(16, 21))):
        task = "15-5" if step else "15"  # step 0 is shared by all tasks that begin so
        path = f"results/splits/voc/{task}-overlap/step{step}.csv"
        split = pd.read_csv(tmp_path / path)
        ids = {name for name, labels in expected.items() if labels & set(new)}
        assert set(split["id"]) == ids


def _presence(test_data: Path, name: str) -> dict[str, set[int]]:
    lines = (test_data / "voc_mini" / name).read_text().splitlines()
    cells = (line.split() for line in lines)
    return {name: {int(number) + 1 for number in numbers} for name, *numbers in cells}


@pytest.mark.parametrize(
    ("name", "trainings", "words"),
    [
        ("voc.yaml", 5, ["VOCtrainval_11-May-2012.tar", "SegmentationClassAug.zip"]),
        ("ade20k.yaml", 5, ["ADEChallengeData2016.zip"]),
    ],
)
def test_a_missing_dataset_is_refused_at_once_with_what_to_fetch(
    tmp_path, name, trainings, words
):
    config = yaml.safe_load((ROOT / "config" / name).read_text())
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    output = snakemake(tmp_path, "--dry-run", succeeds=False)
    for word in [*words, "http", "download: true", str(tmp_path / "datasets")]:
        assert word in output
    assert not (tmp_path / "results").exists()
    dataset = name.removesuffix(".yaml")
    config["datasets"][dataset]["download"] = True  # then the plan needs none
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    planned = jobs(tmp_path)
    assert planned["prepare_dataset"] == planned["train_base"] == 1
    assert planned["train_step"] == trainings
    assert planned["fetch_weights"] == 1
    assert planned["download_archive"] == len(words)


# --- download ------------------------------------------------------------------------


@pytest.fixture
def mirror(test_data, tmp_path):
    """A server with two small archives in the form of VOC's; yields URL and folder."""
    root, source = tmp_path / "mirror", test_data / "voc_mini"
    root.mkdir()
    with tarfile.open(root / "images.tar", "w") as archive:
        for part in ("JPEGImages", "ImageSets"):
            archive.add(source / part, f"VOCdevkit/VOC2012/{part}")
    with zipfile.ZipFile(root / "masks.zip", "w") as archive:
        for mask in (source / "SegmentationClassAug").iterdir():
            archive.write(mask, f"SegmentationClassAug/{mask.name}")
    handler = partial(SimpleHTTPRequestHandler, directory=str(root))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", root
    server.shutdown()
    server.server_close()


def _download(folder: Path, url: str, checksum: str) -> None:
    dead = "http://127.0.0.1:9"
    _configure(
        folder,
        "voc.yaml",
        datasets={
            "voc": {
                "kind": "voc",
                "path": "nowhere",
                "download": True,
                "mirrors": {
                    "images": [f"{dead}/images.tar", f"{url}/images.tar"],
                    "masks": [f"{url}/masks.zip"],
                },
                "checksums": {"images": checksum},
            }
        },
        experiments=[{"dataset": "voc", "task": "15-5"}],
    )


def test_dataset_is_downloaded_unpacked_and_indexed(mirror, tmp_path):
    url, root = mirror
    checksum = hashlib.sha256((root / "images.tar").read_bytes()).hexdigest()
    _download(tmp_path / "run", url, checksum)
    target = "results/data/voc/index.csv"
    assert jobs(tmp_path / "run", target) == {
        "download_archive": 2,
        "prepare_dataset": 1,
        "unpack_archives": 1,
    }
    snakemake(tmp_path / "run", target)
    index = pd.read_csv(tmp_path / "run" / target)
    assert len(index) == 66
    assert jobs(tmp_path / "run", target) == {}
    _download(tmp_path / "run", url.replace("127.0.0.1", "localhost"), checksum)
    assert jobs(tmp_path / "run", target) == {}  # another mirror, the same files


def test_wrong_download_is_refused_in_one_message(mirror, tmp_path):
    url, _ = mirror
    _download(tmp_path / "run", url, "0" * 64)
    output = snakemake(tmp_path / "run", "results/data/voc/index.csv", succeeds=False)
    assert f"expected sha256 {'0' * 64}" in output
    assert re.search(r"download VOCtrainval_11-May-2012\.tar by hand and save", output)
    archives = tmp_path / "run/results/data/voc/archives"
    assert "VOCtrainval_11-May-2012.tar" not in names(archives)


def test_hostile_download_writes_nothing(mirror, tmp_path):
    url, root = mirror
    with tarfile.open(root / "images.tar", "w") as archive:
        member = tarfile.TarInfo("../../evil.txt")
        member.size = 4
        archive.addfile(member, io.BytesIO(b"evil"))
    checksum = hashlib.sha256((root / "images.tar").read_bytes()).hexdigest()
    _download(tmp_path / "run", url, checksum)
    output = snakemake(tmp_path / "run", "results/data/voc/index.csv", succeeds=False)
    assert "'../../evil.txt' would be written outside of the folder" in output
    assert not list(tmp_path.rglob("evil*"))
    assert not (tmp_path / "run/results/data/voc/unpacked").exists()
