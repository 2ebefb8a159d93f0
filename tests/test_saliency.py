"""Saliency maps: where they are found, what is refused, and what a training reads."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from indexed_folders import exif_of
from PIL import Image
from plan_configs import make_plan, make_run
from test_dataset_state import set_times, write_dataset

from kproba.data.augmentation import Augmentation
from kproba.data.folders import Folders
from kproba.data.index import index_dataset
from kproba.data.kinds import KINDS
from kproba.data.kinds.digits import DigitScenes, write_digits
from kproba.data.label_images import read_label_image, write_label_image
from kproba.data.labels import UNKNOWN, LabelMap, check_room_for_unknown
from kproba.data.loaders import Item, TrainingImages
from kproba.data.saliency import SaliencyFolders
from kproba.data.saliency_table import list_saliency, with_saliency
from kproba.data.sources import ChangedPictureError
from kproba.data.splits import read_index
from kproba.plan.dataset_state import state_of_files
from kproba.plan.errors import ConfigError

MAP = np.zeros((8, 8), np.uint8)
MAP[:, 5:] = 200
WHOLE = Augmentation(crop_size=8, scale=(1.0, 1.0), horizontal_flip=0)


def folders_of(folder: Path, kind: str = "folder") -> SaliencyFolders:
    return SaliencyFolders(tuple(KINDS[kind].find_saliency(folder)))


def write_map(path: Path, values: np.ndarray = MAP, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path, **options)
    return path


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    """Two training pictures of 8 x 8 pixels and their maps, in train/."""
    folder = write_dataset(tmp_path / "pets")
    for number in range(2):
        write_map(folder / f"saliency/train/train{number}.png")
    return folder


def listed(folder: Path, kind: str = "folder", **settings: object) -> pd.DataFrame:
    """The training images with their maps, as a training reads them."""
    out = folder.parent / "out"
    dataset = {"kind": kind, "folder": folder, "class_count": 20, "dataset": "pets"}
    index_dataset(out / "index.csv", out / "integrity.json", **dataset, **settings)
    return relisted(folder, kind)


def relisted(folder: Path, kind: str = "folder") -> pd.DataFrame:
    """The same with the index that there is."""
    out = folder.parent / "out"
    list_saliency(
        out / "index.csv",
        out / "saliency.csv",
        out / "files.saliency.json",
        **{"dataset": "pets", "folder": folder, "folders": folders_of(folder, kind)},
    )
    where = {"pets": Folders(str(folder), str(out / "masks"))}
    index = read_index(out / "index.csv", where)
    train = index[index["subset"] == "train"].reset_index(drop=True)
    return with_saliency(train, [out / "saliency.csv"], where)


def images_of(split: pd.DataFrame, **options: object) -> TrainingImages:
    table = LabelMap(((1,),)).training_table()
    options = {"augmentation": WHOLE, "seed": 0, "label_table": table} | options
    return TrainingImages(split, **options)


# Where maps are found


@pytest.mark.parametrize("place", ["saliency/train", "saliency"])
@pytest.mark.parametrize("ending", ["png", "PNG", "bmp", "tif"])
def test_maps_have_the_names_of_their_pictures(pets, place, ending):
    shutil.rmtree(pets / "saliency")
    for number in range(2):
        write_map(pets / place / f"train{number}.{ending}", format="PNG")
    split = listed(pets)
    assert [Path(path).name for path in split["saliency"]] == [
        f"train{number}.{ending}" for number in range(2)
    ]
    assert (images_of(split).decode(1)[1] == UNKNOWN).any()


def test_pictures_in_subfolders_and_accents_have_their_maps(pets):
    name = "caf\u00e9"
    for what in ("images", "masks"):
        folder = pets / what / "train"
        (folder / "site").mkdir()
        shutil.copy(folder / "train0.png", folder / f"site/{name}.png")
    write_map(pets / "saliency/train/site/cafe\u0301.png")
    split = listed(pets).set_index("id")
    assert split.loc[f"site__{name}", "saliency"].endswith("site/cafe\u0301.png")


def test_voc_has_them_beside_its_pictures(test_data, tmp_path):
    folder = tmp_path / "VOC2012"
    shutil.copytree(test_data / "voc_mini", folder)
    images = sorted((folder / "JPEGImages").glob("*.jpg"))
    for path in images:
        with Image.open(path) as image:
            values = np.zeros(image.size[::-1], np.uint8)
        values[: len(values) // 2] = 255
        write_map(folder / "saliency_map" / f"{path.stem}.png", values)
    for above in (folder, tmp_path):  # the folder, or the one above it
        found, problems = folders_of(above, "voc").find(images)
        assert not problems and all(path is not None for path in found.values())
    split = listed(folder, "voc")
    assert len(split) > 2
    _, target = images_of(split, label_table=np.zeros(256, np.uint8)).decode(0)
    half = len(target) // 2
    assert (target[:half] == UNKNOWN).all() and not target[half:].any()


def test_digits_draw_them_only_if_asked(tmp_path):
    scenes = {"train": 3, "val": 1, "size": 48, "digits": (2, 3), "height": (0.4, 0.6)}
    scenes |= {"rotation": 10, "seed": 0}
    write_digits(tmp_path / "plain", DigitScenes(**scenes))
    write_digits(tmp_path / "with", DigitScenes(**scenes, saliency=True))
    plain = {p.relative_to(tmp_path / "plain") for p in (tmp_path / "plain").rglob("*")}
    extra = {p.relative_to(tmp_path / "with") for p in (tmp_path / "with").rglob("*")}
    assert {path.parts[0] for path in extra - plain} == {"saliency"}
    for path in plain:
        if (tmp_path / "plain" / path).is_file():
            one, other = (tmp_path / name / path for name in ("plain", "with"))
            assert one.read_bytes() == other.read_bytes()
    for subset, count in (("train", 3), ("val", 1)):
        maps = sorted((tmp_path / "with/saliency" / subset).glob("*.png"))
        assert len(maps) == count
        for path in maps:
            mask = read_label_image(tmp_path / "with/masks" / subset / path.name)
            assert np.array_equal(np.asarray(Image.open(path)) > 0, mask > 0)
            assert set(np.unique(mask)) > {0}


def test_the_bytes_of_the_default_digits_do_not_depend_on_the_key():
    """The digest of the drawing is a parameter of its rule."""
    plain = make_plan().datasets.drawing_settings("tiny")
    assert "saliency" not in plain
    dataset = {"tiny": {"kind": "digits", "saliency": True}}
    drawn = make_plan(datasets=dataset).datasets.drawing_settings("tiny")
    assert drawn == {**plain, "saliency": True}


# What a training reads


def test_salient_background_is_unknown_and_nothing_else(pets):
    mask = np.zeros((8, 8), np.uint8)
    mask[:2], mask[2:4], mask[4:6] = 1, 2, 255
    write_label_image(pets / "masks/train/train0.png", mask)
    _, target = images_of(listed(pets)).decode(0)
    expected = np.zeros((8, 8), np.uint8)
    expected[:2], expected[4:6] = 1, 255
    expected[2:4, 5:] = expected[6:, 5:] = UNKNOWN  # class 2 is of another step
    assert np.array_equal(target, expected)


def test_pseudo_labels_come_first(pets, tmp_path):
    labels = np.zeros((8, 8), np.uint8)
    labels[:, 6], labels[0], labels[1] = 2, 255, 254
    for number in range(2):
        write_label_image(tmp_path / f"train{number}.png", labels)
    images = images_of(listed(pets), pseudo_labels=tmp_path, label_table=None)
    _, target = images.decode(0)
    expected = labels.copy()
    expected[2:, 5] = expected[2:, 7] = UNKNOWN
    assert np.array_equal(target, expected)


def test_the_augmentation_moves_map_and_target_together(pets):
    random = np.random.default_rng(0)
    values = (random.random((8, 8)) < 0.5).astype(np.uint8)
    write_map(pets / "saliency/train/train0.png", values)
    write_label_image(pets / "masks/train/train0.png", np.zeros((8, 8), np.uint8))
    picture = np.repeat(values[:, :, None] * 255, 3, axis=2)
    Image.fromarray(picture).save(pets / "images/train/train0.png")
    moved = Augmentation(crop_size=6, scale=(1.0, 1.0), horizontal_flip=0.5)
    images = images_of(listed(pets), augmentation=moved)
    found = set()
    for epoch in range(8):
        sample = images[Item(epoch, 0)]
        assert torch.equal(sample.target == UNKNOWN, sample.image[0] == 255)
        found.add(sample.target.numpy().tobytes())
    assert len(found) > 2


def test_maps_follow_the_size_at_which_a_picture_is_used(pets):
    shutil.rmtree(pets / "images/train")
    values = np.zeros((80, 40), np.uint8)
    values[40:] = 1
    for number in range(2):
        path = pets / f"images/train/train{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (40, 80)).save(path)
        write_label_image(pets / f"masks/train/train{number}.png", values * 0)
        write_map(pets / f"saliency/train/train{number}.png", values)
    image, target = images_of(listed(pets, long_side=40)).decode(0)
    assert image.shape == (3, 40, 20) and target.shape == (40, 20)
    assert not target[:20].any() and (target[20:] == UNKNOWN).all()


@pytest.mark.parametrize("upright", [True, False])
def test_maps_are_turned_as_their_pictures(pets, upright):
    """A map has the size of the picture as it is shown, or as it is stored."""
    stored = np.zeros((8, 12, 3), np.uint8)
    stored[:, 6:] = 255  # white on the right
    Image.fromarray(stored).save(pets / "images/train/train0.png", exif=exif_of(6))
    values = stored[..., 0] if not upright else np.rot90(stored[..., 0], -1)
    write_label_image(pets / "masks/train/train0.png", np.zeros((12, 8), np.uint8))
    write_map(pets / "saliency/train/train0.png", np.ascontiguousarray(values))
    split = listed(pets)
    assert split["saliency_turned"].tolist() == [1 if upright else 6, 1]
    image, target = images_of(split).decode(0)
    assert torch.equal(target == UNKNOWN, image[0] == 255)
    assert (target == UNKNOWN).sum() == 48


def test_a_map_that_has_changed_is_refused(pets):
    split = listed(pets)
    write_map(pets / "saliency/train/train0.png", 255 - MAP)
    with pytest.raises(ChangedPictureError, match=r"map .*content has changed"):
        images_of(split).decode(0)
    (pets / "saliency/train/train0.png").unlink()
    with pytest.raises(ChangedPictureError, match="saliency map"):
        images_of(split).decode(0)


def test_a_split_without_maps_reads_none(pets):
    listed(pets)
    where = {"pets": Folders(str(pets), "")}
    index = read_index(pets.parent / "out/index.csv", where)
    shutil.rmtree(pets / "saliency")
    _, target = images_of(index[index["subset"] == "train"]).decode(0)
    assert UNKNOWN not in target


def test_a_table_that_lacks_an_image_is_refused(pets):
    split = listed(pets)
    table = pets.parent / "out/saliency.csv"
    rows = pd.read_csv(table, dtype=str)
    rows[rows["id"] != "train1"].to_csv(table, index=False)
    plain = split.drop(columns=[name for name in split if name.startswith("saliency")])
    with pytest.raises(ValueError, match=r"1 are missing .*train1"):
        with_saliency(plain, [table], {"pets": Folders(str(pets), "")})


# What is refused


def test_missing_maps_are_counted_and_named_with_folder_and_remedy(pets):
    (pets / "saliency/train/train1.png").unlink()
    with pytest.raises(ValueError, match="ssul_light") as error:
        listed(pets)
    text = str(error.value)
    assert "dataset 'pets'" in text and "1 map(s) are missing: train1." in text
    assert str((pets / "saliency").absolute()) in text
    assert not (pets.parent / "out/saliency.csv").exists()


def test_validation_images_need_none(pets):
    assert len(listed(pets)) == 2
    assert not list(pets.rglob("saliency/*/val*"))


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("size", "size mismatch"),
        ("colours", "no grey picture"),
        ("deep", "no grey picture"),
        ("lossy", "no grey picture"),
        ("damaged", "no known image format"),
        ("twice", "belongs to train0.png too"),
    ],
)
def test_maps_that_cannot_be_used_are_named(pets, fault, message):
    path = pets / "saliency/train/train0.png"
    if fault == "size":
        write_map(path, MAP[:4])
        message = "8x4 pixels, but .* has 8x8"
    elif fault == "colours":
        write_map(path, np.dstack([MAP, MAP, MAP]))
    elif fault == "deep":
        write_map(path, MAP.astype(np.uint16) * 256)
    elif fault == "lossy":
        write_map(path, format="JPEG")
    elif fault == "damaged":
        path.write_bytes(b"nothing")
    else:
        write_map(path.with_suffix(".bmp"))
    with pytest.raises(ValueError, match=message) as error:
        listed(pets)
    text = str(error.value)
    assert "1 problem(s)" in text or (fault == "twice" and "2 problem(s)" in text)
    assert "train0" in text and "train1" not in text and "ssul_light" in text


def test_the_table_depends_on_the_contents_alone(pets):
    folders, out = folders_of(pets), pets.parent / "out"
    listed(pets)
    table, files = out / "saliency.csv", out / "files.saliency.json"
    before = table.read_bytes()
    state = state_of_files(folders, pets, files)
    content = json.loads(files.read_text())
    files.write_text(json.dumps({**content, "state": state}, indent=2))
    set_times(pets / "saliency", 1_000_000)
    assert folders.digest_files(pets) != state
    assert state_of_files(folders, pets, files) == state  # a copy is the same
    write_map(pets / "saliency/train/train0.png", 255 - MAP)
    assert state_of_files(folders, pets, files) != state
    relisted(pets)
    assert table.read_bytes() != before


# The plan


def plan_of(folder: Path, method: str = "ssul", **settings: object):
    dataset = {"kind": "folder", "path": str(folder), **settings}
    experiment = {"dataset": "pets", "task": "1-1", "methods": [method]}
    plan = make_plan(datasets={"pets": dataset}, experiments=[experiment])
    plan.check_images()
    return plan


def test_the_plan_finds_missing_maps_before_anything_runs(pets):
    plan_of(pets)
    (pets / "saliency/train/train0.png").unlink()
    with pytest.raises(ConfigError, match=r"1 map\(s\) .*: train0.*ssul_light"):
        plan_of(pets)
    plan_of(pets, "ssul_light")
    plan_of(pets, "plop")


def test_the_plan_reads_the_index_that_is_there(pets, tmp_path, monkeypatch):
    for what, content in (("images", None), ("masks", b"damaged")):
        folder = pets / what / "train"
        shutil.copy(folder / "train0.png", folder / "more.png")
        if content is not None:
            (folder / "more.png").write_bytes(content)
    plan_of(pets, on_error="skip")  # without an index it is not known who is left out
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "results/data/pets"
    index_dataset(
        out / "index.csv",
        out / "integrity.json",
        **{"kind": "folder", "folder": pets, "class_count": 2, "dataset": "pets"},
        **{"on_error": "skip", "state": KINDS["folder"].digest_files(pets)},
    )
    plan_of(pets, on_error="skip")  # the image without a map is left out
    (pets / "saliency/train/train1.png").unlink()
    with pytest.raises(ConfigError, match=r"1 map\(s\) are missing: train1"):
        plan_of(pets, on_error="skip")


def test_maps_may_be_in_another_folder(pets, tmp_path):
    (pets / "saliency").rename(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match=r"2 map\(s\)"):
        plan_of(pets)
    for named in (tmp_path / "elsewhere", "../elsewhere"):
        plan = plan_of(pets, saliency_folder=str(named))
        pairs = plan.saliency.settings("pets")["pairs"]
        assert pairs[0] == [str(pets / "images"), str(pets / named)]
        assert plan.saliency.state("pets")


def test_digits_need_the_switch():
    experiment = {"dataset": "tiny", "task": "6-2", "methods": ["ssul"]}
    with pytest.raises(ConfigError, match=r"datasets.tiny.saliency: .*ssul_light"):
        make_plan(experiments=[experiment]).check_images()
    dataset = {"tiny": {"kind": "digits", "saliency": True}}
    make_plan(datasets=dataset, experiments=[experiment]).check_images()


def test_a_kind_without_maps_is_refused(pets, monkeypatch):
    monkeypatch.setattr(
        type(KINDS["folder"]), "find_saliency", lambda *_: [], raising=0
    )
    monkeypatch.setitem(KINDS["folder"].__dict__, "find_saliency", lambda folder: [])
    with pytest.raises(ConfigError, match=r"saliency maps, .* but got 'folder'"):
        plan_of(pets)


def test_only_trainings_that_read_maps_depend_on_them():
    dataset = {"tiny": {"kind": "digits", "saliency": True}}
    experiment = {"dataset": "tiny", "task": "6-2", "methods": ["ssul", "ssul_light"]}
    plan = make_plan(datasets=dataset, experiments=[experiment])
    table = ["results/data/tiny/saliency.csv"]
    base = make_run("base_unknown", task="6")
    assert plan.training_inputs(base, 0)["saliency"] == table
    assert plan.training_inputs(make_run("ssul"), 1)["saliency"] == table
    for run, step in ((make_run("base", task="6"), 0), (make_run("ssul_light"), 1)):
        assert plan.training_inputs(run, step)["saliency"] == []
    assert plan.chain.training(make_run("ssul"), 0) == plan.chain.training(base, 0)


def test_a_method_for_unknown_objects_has_room_for_252_classes():
    check_room_for_unknown(253)
    with pytest.raises(ValueError, match=r"at most 252 classes .* but got 253"):
        check_room_for_unknown(254)
