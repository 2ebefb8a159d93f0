"""The statistics of features, what is drawn from them, and trainings that do so."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from gloo_processes import finished_within, in_processes
from training_runs import SHARED, STATE, train_with, trained
from training_steps import largest_relative_difference, step_settings

from kproba.data.splits import read_index
from kproba.data.tasks import parse_task
from kproba.jobs.step_statistics import StatisticsFiles, measure_step
from kproba.methods.replay import (
    ClassStatistics,
    FeatureSums,
    Replay,
    cells_of,
    count_recognised,
    next_statistics,
    recognise,
)
from kproba.network import load_model
from kproba.network.network import Outputs
from kproba.runtime.compute import Compute
from kproba.runtime.distributed import Process
from kproba.runtime.records import ArtifactError

GROUPS = parse_task("6-2", 10)


def cells(seed=0, count=200, channels=4, classes=3):
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(count, channels, generator=draw).relu()
    x[0] = 0  # a cell without a direction
    return x, torch.randint(0, classes + 1, (count,), generator=draw)


def statistics_of(x, labels, classes=3):
    sums = FeatureSums(classes, x.shape[1])
    sums.add(x, labels)
    return sums.statistics()


def test_statistics_are_those_of_directions_and_lengths():
    x, labels = cells()
    found = statistics_of(x, labels)
    assert found.background == int((labels == 0).sum())
    for c in range(3):
        own = x[labels == c + 1].double()
        length = (own**2).sum(dim=1).sqrt()
        u = own / length.clamp(min=1e-12)[:, None]
        mean = u.sum(dim=0)
        mean = mean / (mean**2).sum().sqrt()
        spread = ((u - mean) ** 2).mean(dim=0).sqrt()
        assert found.count[c] == len(own)
        torch.testing.assert_close(found.mean[c], mean)
        torch.testing.assert_close(found.spread[c], spread)
        torch.testing.assert_close(found.length[c], length.mean())
        deviation = ((length - length.mean()) ** 2).mean().sqrt()
        torch.testing.assert_close(found.length_spread[c], deviation)


def test_order_and_parts_of_the_cells_do_not_matter():
    x, labels = cells()
    whole, parts = statistics_of(x, labels), FeatureSums(3, x.shape[1])
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(1))
    for chosen in order.split(37):
        parts.add(x[chosen], labels[chosen])
    for name, value in vars(parts.statistics()).items():
        torch.testing.assert_close(value, getattr(whole, name))


def test_a_class_is_recognised_above_the_logit_one_half():
    logits = torch.tensor([[9.0, 0.6, 0.2], [9.0, 0.5, 0.4], [9.0, -1.0, 2.0]])
    assert recognise(logits.view(3, 3, 1, 1)).flatten().tolist() == [1, 0, 2]


def test_recognised_cells_are_counted_where_the_label_is_no_new_class():
    z = torch.zeros(1, 3, 2, 2)
    z[0, 1:] = torch.tensor([[[2.0, -1.0], [2.0, 2.0]], [[-1.0, -1.0], [5.0, 2.1]]])
    # Labels at cells: 0, 0 / old class 2, new class 3; then 255 in the first cell.
    targets = torch.tensor([[[0, 0], [2, 3]]], dtype=torch.uint8)
    outputs = Outputs(z, [z], [z])
    assert count_recognised(outputs, targets, 3).tolist() == [1, 1, 1]
    targets[0, 0, 0] = 255
    assert count_recognised(outputs, targets, 3).tolist() == [1, 0, 1]


def some_statistics(counts=(100.0, 40.0), background=1000.0):
    x, labels = cells(classes=len(counts))
    found = statistics_of(x, labels, len(counts))
    found.count = torch.tensor(counts, dtype=torch.float64)
    found.background = torch.tensor(background, dtype=torch.float64)
    return found


def planned(*, overlap, recognised, new=2, iterations=8.5, **more):
    return Replay.plan(
        some_statistics(**more),
        torch.tensor(recognised, dtype=torch.float64),
        new_classes=new,
        iterations=iterations,
        overlap=overlap,
        seed=3,
        step=1,
    )


def test_features_and_background_make_up_for_what_the_step_does_not_show():
    replay = planned(overlap=True, recognised=[600, 30, 90])
    assert replay.counts == (math.floor((100 - 30) / 8.5), 0)
    assert replay.background_factor == pytest.approx(1000 * 0.98 / 600 - 0.5)
    replay = planned(overlap=False, recognised=[600, 30, 90])
    assert replay.counts == (math.floor(100 / 8.5), math.floor(40 / 8.5))
    assert replay.background_factor == pytest.approx(1000 / 600)
    many = planned(overlap=True, recognised=[10_000, 0, 0])
    assert many.background_factor == 0
    none = planned(overlap=True, recognised=[0, 0, 0])
    assert math.isfinite(none.background_factor)


def test_old_classes_keep_their_statistics():
    before, new = some_statistics(), some_statistics((7.0,), 5.0)
    recognised = torch.tensor([600.0, 30.0, 90.0], dtype=torch.float64)
    after = next_statistics(before, new, recognised, overlap=True)
    assert after.background == pytest.approx(300 + 1000 * 0.99)
    assert after.count.tolist() == [100, 40, 7]
    for name in ("mean", "spread", "length", "length_spread"):
        joined = torch.cat([getattr(before, name), getattr(new, name)])
        assert torch.equal(getattr(after, name), joined)
    after = next_statistics(before, new, recognised, overlap=False)
    assert after.background == 1600 and after.count.tolist() == [130, 130, 7]


def test_draws_are_the_same_for_any_number_of_parts_and_other_each_time():
    replay = planned(overlap=False, recognised=[600, 0, 0])
    whole = replay.draw(5, 0, 1)
    assert whole.drawn == len(whole.fakes) == sum(replay.counts)
    parts = [replay.draw(5, part, 3) for part in range(3)]
    assert torch.equal(torch.cat([part.fakes for part in parts]), whole.fakes)
    assert {part.drawn for part in parts} == {whole.drawn}
    assert not torch.equal(replay.draw(6, 0, 1).fakes, whole.fakes)


def test_drawn_features_have_the_statistics_of_their_class():
    replay = planned(
        overlap=False, recognised=[1, 0, 0], counts=(40_000.0, 40_000.0), iterations=1
    )
    of, fakes = replay.statistics, replay.draw(0, 0, 1).fakes
    for c, own in enumerate(fakes.split(40_000)):
        # The direction and the length are drawn independently.
        torch.testing.assert_close(
            own.mean(dim=0), of.mean[c] * of.length[c], rtol=0, atol=0.02
        )
        second = (of.mean[c] ** 2 + of.spread[c] ** 2) * (
            of.length[c] ** 2 + of.length_spread[c] ** 2
        )
        torch.testing.assert_close((own**2).mean(dim=0), second, rtol=0.05, atol=0.03)


def job_of(step, **more):
    job = {
        "augmentation": step_settings(step)["augmentation"],
        "groups": GROUPS[: step + 1],
        "sequential": False,
        "seed": 0,
    }
    return {**job, **more}


def measure(process, files, job):
    measure_step(files, job, Compute(batch_size=3), process)


@pytest.fixture(scope="module")
def star(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A step 0 of the method `star` and its statistics."""
    folder = tmp_path_factory.mktemp("star")
    first = trained(data, folder / "base", step_settings(0, "star", epochs=4))
    model, out = first / "model.safetensors", folder / "statistics.safetensors"
    measure(Process(), StatisticsFiles(model, data / "step0.csv", out), job_of(0))
    return {"model": model, "statistics": out}


def test_the_job_measures_the_crops_of_the_step(data, star):
    from kproba.data.augmentation import Augmentation
    from kproba.data.crops import crop_batches
    from kproba.data.labels import LabelMap

    network = load_model(star["model"], device="cpu")
    augmentation = Augmentation.from_dict(step_settings(0)["augmentation"])
    rows = read_index(data / "step0.csv")
    batches = crop_batches(
        rows, LabelMap(GROUPS[:1]), augmentation, 0, Compute(workers=0), Process(), "x"
    )
    features, labels = [], []
    with torch.no_grad():
        for batch in batches:
            x, y = cells_of(network(batch.images), batch.targets)
            features.append(x[y != 255])
            labels.append(y[y != 255])
    expected = statistics_of(torch.cat(features), torch.cat(labels), 6)
    found = ClassStatistics.load(star["statistics"], model=star["model"])
    for name, value in vars(found).items():
        torch.testing.assert_close(value, getattr(expected, name), rtol=1e-4, atol=1e-5)
    about = json.loads(star["statistics"].with_suffix(".json").read_text())
    assert about["labels"] == [0, 1, 2, 3, 4, 5, 6]


@pytest.fixture(scope="module")
def later(data: Path, star, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Step 1 of the method `star` by one process."""
    folder = tmp_path_factory.mktemp("later")
    settings = step_settings(1, "star", **SHARED)
    assert settings["replay"] == "overlap"
    return trained(
        data,
        folder / "1",
        settings,
        base=star["model"],
        inputs={"statistics": star["statistics"]},
    )


@pytest.mark.parametrize(("processes", "accumulation"), [(1, 3), (2, 1), (3, 2)])
def test_star_has_the_same_weights_by_several_processes_and_micro_batches(
    data, star, later, tmp_path, processes, accumulation
):
    shared = trained(
        data,
        tmp_path / "shared",
        step_settings(1, "star", **SHARED),
        base=star["model"],
        processes=processes,
        accumulation=accumulation,
        inputs={"statistics": star["statistics"]},
    )
    assert largest_relative_difference(later, shared) < 3e-5


def test_statistics_are_the_same_by_two_processes(data, star, later, tmp_path):
    files = [
        StatisticsFiles(
            later / "model.safetensors",
            data / "step1.csv",
            tmp_path / f"{count}.safetensors",
            teacher=star["model"],
            previous=star["statistics"],
        )
        for count in (1, 2)
    ]
    for count, each in enumerate(files, start=1):
        in_processes(count, measure, each, job_of(1, replay="overlap"))
    one, two = (
        ClassStatistics.load(each.statistics, model=each.model) for each in files
    )
    for name, value in vars(one).items():
        torch.testing.assert_close(value, getattr(two, name), rtol=1e-9, atol=1e-9)
    before = ClassStatistics.load(star["statistics"], model=star["model"])
    assert torch.equal(one.mean[:6], before.mean) and len(one.count) == 8


def test_star_killed_again_and_again_ends_with_the_same_bytes(
    data, star, later, tmp_path
):
    out = tmp_path / "killed"
    out.mkdir()
    settings = step_settings(1, "star", **SHARED)
    (out / "settings.json").write_text(json.dumps(settings))
    compute, inputs = Compute(state_minutes=1e-6), {"statistics": star["statistics"]}
    job = (train_with, data, out, star["model"], compute, inputs)
    resumed, moment = 0, 0.6
    for attempt in range(100):
        resumed += (out / STATE).exists()
        if finished_within(moment * 1.05**attempt, 1, *job):
            break
    assert resumed >= 1, "the run was not caught in the middle"
    for name in ("model.safetensors", "metrics.csv"):
        assert (out / name).read_bytes() == (later / name).read_bytes(), name


def test_other_statistics_are_another_training(data, star, later, tmp_path):
    changed = tmp_path / "statistics.safetensors"
    statistics = ClassStatistics.load(star["statistics"], model=star["model"])
    statistics.count *= 100
    content = json.loads(star["statistics"].with_suffix(".json").read_text())
    about = {key: content[key] for key in ("labels", "model")}
    statistics.save(changed, about=about)
    other = trained(
        data,
        tmp_path / "other",
        step_settings(1, "star", **SHARED),
        base=star["model"],
        inputs={"statistics": changed},
    )
    assert largest_relative_difference(later, other) > 1e-4


def test_statistics_of_another_model_are_refused(data, star, later, tmp_path):
    with pytest.raises(ArtifactError, match="was measured with another model"):
        ClassStatistics.load(star["statistics"], model=later / "model.safetensors")
    copy = tmp_path / "statistics.safetensors"
    shutil.copy(star["statistics"], copy)
    shutil.copy(star["statistics"].with_suffix(".json"), copy.with_suffix(".json"))
    copy.write_bytes(copy.read_bytes()[:-8] + b"12345678")
    with pytest.raises(ArtifactError, match="its content is different"):
        ClassStatistics.load(copy, model=star["model"])
    out = tmp_path / "out"
    out.mkdir()
    (out / "settings.json").write_text(json.dumps(step_settings(1, "star")))
    with pytest.raises(ValueError, match="Expected the statistics and the model"):
        train_with(Process(), data, out, star["model"], Compute())
