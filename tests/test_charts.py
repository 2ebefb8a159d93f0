"""Charts of the page and their colours."""

import re
from importlib.resources import files
from xml.etree import ElementTree

import numpy as np
import pytest

from kproba.methods.builtin import METHODS
from kproba.results.charts import (
    LABEL,
    Curve,
    Point,
    Series,
    line_chart,
    loss_chart,
    ranking,
    small_chart,
    value_range,
)
from kproba.results.palette import (
    LEVEL_LINES,
    LEVELS,
    SERIES,
    cell_level,
    contrast,
    method_styles,
    mix,
    tokens,
)
from kproba.results.svg import nice_ticks, spread_labels

PAGE_CSS = (files("kproba.results") / "templates" / "page.css").read_text("utf-8")

STEPS = [0, 1, 2]


def series(name: str, *values: float, spread: float = 0.0) -> Series:
    points = [Point(step, value, spread) for step, value in enumerate(values)]
    return Series(name, method_styles([name])[name], points)


def parse(svg: str) -> ElementTree.Element:
    return ElementTree.fromstring(svg)


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0, 100, [0, 20, 40, 60, 80, 100]),
        (0, 69, [0, 20, 40, 60, 80]),
        (61.2, 66.9, [60, 62, 64, 66, 68]),
        (0, 0.9, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (-3, 3, [-4, -2, 0, 2, 4]),
        (5, 5, [4.4, 4.6, 4.8, 5, 5.2, 5.4, 5.6]),
    ],
)
def test_ticks_are_round_and_hold_all_values(low, high, ticks):
    found = nice_ticks(low, high)
    assert found[0] <= low and found[-1] >= high
    assert found == pytest.approx(ticks)


def test_axis_begins_at_zero_unless_all_values_are_far_from_it():
    assert value_range([series("a", 10, 60)])[0] == 0
    near = value_range([series("a", 60, 66, spread=2)])
    assert near[0] > 0
    assert near[0] <= 58 and near[-1] >= 68
    assert near[-1] - near[0] >= 20  # small differences do not look large


@pytest.mark.parametrize("seed", range(5))
def test_labels_never_overlap(seed):
    rng = np.random.default_rng(seed)
    places = rng.uniform(0, 300, 9).tolist()
    moved = spread_labels(places, LABEL, 0, 300)
    gaps = np.diff(sorted(moved))
    assert (gaps >= LABEL - 1e-6).all()
    assert min(moved) >= 0 and max(moved) <= 300
    assert np.argsort(moved).tolist() == np.argsort(places).tolist()


def test_labels_that_do_not_overlap_stay():
    assert spread_labels([200, 20, 100], LABEL, 0, 300) == [200, 20, 100]


def test_curve_has_a_mark_with_its_value_for_every_step():
    shown = [series("kproba", 60, 55, 50, spread=1.5), series("mib", 60, 40)]
    svg = parse(line_chart("all", shown, STEPS, value_range(shown)))
    hints = [hint.text for hint in svg.iter("title")]
    assert "kproba, step 2: 50.0 ± 1.5" in hints
    assert "mib, step 1: 40.0" in hints
    assert len(hints) == 5
    assert svg.attrib["role"] == "img"
    assert "kproba 50.0 ± 1.5; mib 40.0" in svg.attrib["aria-label"]
    names = [text for text in svg.iter("text") if text.get("class") == "name"]
    assert ["".join(name.itertext()) for name in names] == ["kproba 50.0", "mib 40.0"]


def test_all_marks_are_inside_their_chart():
    shown = [series("kproba", 99, 55, 0, spread=4), series("mib", 100, 40, 3)]
    for draw in (line_chart, small_chart):
        svg = parse(draw("all", shown, STEPS, value_range(shown)))
        _, _, width, height = map(float, svg.attrib["viewBox"].split())
        for node in svg.iter():
            for name, most in (("cx", width), ("cy", height), ("y1", height)):
                assert 0 <= float(node.get(name, 0)) <= most


def test_joint_training_is_a_level_line():
    joint = Series("joint", method_styles(["joint"])["joint"], [Point(2, 70)], True)
    shown = [series("kproba", 60, 55, 50), joint]
    svg = parse(line_chart("all", shown, STEPS, value_range(shown)))
    [line] = [node for node in svg.iter("line") if node.get("class") == "level"]
    assert line.attrib["y1"] == line.attrib["y2"]


@pytest.mark.parametrize("name", ['<b>"&', "日本", "{{ x }}", "a" * 300])
def test_any_name_can_be_drawn(name):
    shown = [series(name, 60, 55, 50)]
    curve = Curve(name, shown[0].style, {0: ([1.0, 2.0], [float("nan"), 0.5])})
    charts = [
        line_chart(name, shown, STEPS, value_range(shown)),
        ranking(name, shown, shown),
        loss_chart(name, [curve], {0: 2.0}),
    ]
    for chart in charts:
        svg = parse(chart)
        assert any(name in (hint.text or "") for hint in svg.iter("title"))


def test_ranking_begins_with_the_best():
    shown = [series(f"m{k}", value) for k, value in enumerate((40, 60, 50))]
    svg = parse(ranking("all", shown, [series("joint", 70)]))
    ticks = [text.text for text in svg.iter("text") if text.get("class") == "tick"]
    assert ticks == ["m1", "m2", "m0"]
    assert "joint 70.0" in [text.text for text in svg.iter("text")]


# --- colours -------------------------------------------------------------------------


def test_methods_of_the_package_have_one_style_everywhere():
    alone = {name: method_styles([name])[name] for name in METHODS}
    assert method_styles(METHODS) == alone
    styles = method_styles(["mine", *METHODS, "yours"])
    assert {name: styles[name] for name in METHODS} == alone
    assert len({style.name for style in styles.values()}) == len(styles)
    assert styles["joint"].name == "joint"


def test_what_is_trained_on_everything_at_once_has_level_lines_of_its_own():
    styles = method_styles(["mine", "joint_softmax", "joint"], joint=["mine"])
    assert {style.marker for style in styles.values()} == {""}
    assert len({style.name for style in styles.values()}) == 3
    assert len({style.dashes for style in styles.values()}) == 3
    assert {style.name for style in styles.values()} == set(LEVEL_LINES)
    # The page draws the same dashes.
    for name in set(LEVEL_LINES) - {"joint"}:
        assert f".{name} line.level {{ stroke-dasharray" in PAGE_CSS


@pytest.mark.parametrize("dark", [False, True])
def test_colours_have_contrast(dark):
    """4.5 to 1 for text, 3 to 1 for marks (WCAG 2.2, 1.4.3 and 1.4.11)."""
    colours = tokens(dark)
    for ground in ("paper", "panel"):
        for text in ("ink", "muted", "accent", "good", "bad"):
            assert contrast(colours[text], colours[ground]) >= 4.5
        for mark in ("focus", *LEVEL_LINES, *(f"s{k}" for k in range(len(SERIES)))):
            assert contrast(colours[mark], colours[ground]) >= 3
    for cell in ("loss", "gain", "heat"):
        for level in range(1, LEVELS + 1):
            ground = mix(colours[cell], colours["paper"], level / LEVELS)
            assert contrast(colours["ink"], ground) >= 4.5


def test_contrast_by_hand():
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)
    assert mix("#ff0000", "#ffffff", 0.5) == "#ff8080"


def test_levels_are_symmetrical_and_end():
    assert [cell_level(value, 25) for value in (0, 1, 12.5, 25, 80)] == [
        0,
        0,
        5,
        10,
        10,
    ]


def test_colours_in_charts_come_from_css():
    shown = [series("kproba", 60, 55, 50)]
    svg = line_chart("all", shown, STEPS, value_range(shown))
    assert not re.search(r"#[0-9a-f]{6}|fill=|stroke=", svg)
