"""Pictures of the report in a browser: views, dialog, keyboard, phone."""

import re
from collections.abc import Iterator

import numpy as np
import pytest
from picture_page import (
    COLOURS,
    ERRORS,
    SIDE,
    TEMPLATES,
    prediction,
    render,
    write_results,
)
from playwright.sync_api import Page

from kproba.data.colours import STRIPES


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> str:
    return render(*write_results(tmp_path_factory.mktemp("pictures")))


@pytest.fixture
def opened(browser, page, tmp_path) -> Iterator[Page]:
    """The page, drawn in the first view; any message on the console is an error."""
    said: list[str] = []
    path = tmp_path / "page.html"
    path.write_text(page, encoding="utf-8")
    tab = browser.new_page(viewport={"width": 1400, "height": 1000})
    tab.on("console", lambda message: said.append(message.text))
    tab.on("pageerror", lambda error: said.append(str(error)))
    tab.goto(path.as_uri())
    wait_until_drawn(tab)
    yield tab
    tab.close()
    assert said == []


def wait_until_drawn(tab: Page) -> None:
    """Wait for the last picture of the first grid in the current view."""
    tab.wait_for_function(
        """() => { const table = document.querySelector(".px-grid");
        const view = table.closest(".px").dataset.view;
        const open = [...table.querySelectorAll(".px-open:not([data-kind=photo])")];
        return table.dataset.drawn === view && open.every(one =>
          one.querySelector("canvas")?.dataset.view === view); }"""
    )


def pixels(tab: Page, selector: str) -> np.ndarray:
    """The pixels (H, W, 3) of a canvas."""
    canvas = tab.locator(selector).first
    width, height, data = canvas.evaluate(
        """canvas => [canvas.width, canvas.height, [...canvas.getContext("2d")
        .getImageData(0, 0, canvas.width, canvas.height).data]]"""
    )
    return np.reshape(data, (height, width, 4)).astype(np.uint8)[..., :3]


def choose(tab: Page, view: str) -> None:
    tab.locator(f'input[name="px-x-examples"][value="{view}"]').check(force=True)
    wait_until_drawn(tab)


MASK = '.px-grid [data-title="kproba, step 1"] canvas'


def test_labels_are_drawn_with_white_between_regions(opened):
    drawn = pixels(opened, MASK)
    scale = len(drawn) // SIDE
    assert scale == 4  # a small picture is enlarged, so that lines are thin
    labels = prediction(1).repeat(scale, 0).repeat(scale, 1)
    inner = drawn[40 + 2 * scale * 15 :, 100]  # far from all borders
    np.testing.assert_array_equal(
        drawn[25 * scale, 40 * scale], COLOURS[labels[25 * scale, 40 * scale]]
    )
    assert tuple(inner[0]) == tuple(COLOURS[2])
    border = drawn[15 * scale : 31 * scale, 40 * scale]
    between = (border == 255).all(-1).sum()
    assert 1 <= between <= 2


def test_errors_are_drawn_in_their_colours(opened):
    choose(opened, "errors")
    drawn = pixels(opened, MASK).astype(int)
    scale = len(drawn) // SIDE

    def nearest(row: int, column: int) -> str:
        css = (TEMPLATES / "pictures.css").read_text()
        found = [re.search(rf"--px-{kind}: #(\w{{6}})", css)[1] for kind in ERRORS]
        colours = [[int(c[k : k + 2], 16) for k in (0, 2, 4)] for c in found]
        own = drawn[row * scale, column * scale]
        apart = np.abs(np.array(colours) - own).sum(-1)
        return ERRORS[int(apart.argmin())] if apart.min() < 120 else "none"

    assert nearest(20, 3) == "missed"
    assert nearest(20, 9) == "confused"
    assert nearest(5, 3) == "invented"
    assert nearest(20, 40) == "right"
    later = drawn[50 * scale, 20 * scale : 40 * scale]  # the cow comes in step 2
    assert {tuple(colour) for colour in later} == set(STRIPES)
    ignored = drawn[5 * scale, -scale:]
    assert {tuple(colour) for colour in ignored} <= set(STRIPES)
    correct = drawn[5 * scale, 30 * scale : 50 * scale]
    assert (correct.max(-1) == correct.min(-1)).all()  # background: a grey photo
    assert opened.locator(".px-shares").first.is_visible()
    assert not opened.locator(".px-named + .px-shares").first.is_hidden()


def test_overlays_have_pure_contours(opened):
    choose(opened, "overlay")
    drawn = pixels(opened, MASK)
    scale = len(drawn) // SIDE
    column = drawn[:, 40 * scale]
    for index in (1, 2):
        assert (column == COLOURS[index]).all(-1).sum() >= 2
    assert (column == 255).all(-1).sum() >= 3


def test_folded_pictures_are_drawn_when_they_are_opened(opened):
    second = opened.locator(".px-image").nth(1)
    assert second.locator("canvas").count() == 0
    second.locator("summary").click()
    second.locator("canvas").nth(6).wait_for()
    assert second.locator("canvas").count() == 7


def test_views_are_changed_with_the_keyboard(opened):
    opened.locator('input[name="px-x-examples"]').first.focus()
    opened.keyboard.press("ArrowRight")
    assert opened.locator(".px").first.get_attribute("data-view") == "overlay"
    assert opened.locator(".px").nth(1).get_attribute("data-view") == "labels"
    wait_until_drawn(opened)


def test_a_dialog_moves_with_the_arrows_and_gives_the_focus_back(opened):
    button = opened.locator('[data-title="kproba, step 1"]').first
    button.focus()
    opened.keyboard.press("Enter")
    title = opened.locator("#px-title")
    assert title.inner_text() == "v1: kproba, step 1"
    assert opened.locator(".px-stage canvas").count() == 3
    steps = [
        ("ArrowRight", "kproba, step 2"),
        ("ArrowRight", "kproba, step 2"),  # there is no further step
        ("ArrowDown", "finetune, step 1"),  # its last one
        ("ArrowDown", "joint, step 2"),
        ("ArrowUp", "finetune, step 1"),
        ("ArrowLeft", "finetune, step 0"),
    ]
    for key, expected in steps:
        opened.keyboard.press(key)
        assert title.inner_text() == f"v1: {expected}", key
    opened.wait_for_function(
        "() => document.querySelector('.px-stage [data-kind=mask]').width >= 700"
    )
    opened.keyboard.press("Escape")
    assert opened.locator("dialog[open]").count() == 0
    focused = "document.activeElement.dataset.title"
    assert opened.evaluate(focused) == "kproba, step 1"


def test_the_dialog_shows_the_whole_row_of_a_method(opened):
    opened.locator('[data-title="kproba, step 1"]').first.click()
    title, row = opened.locator("#px-title"), opened.locator(".px-row button")
    assert row.all_inner_texts() == ["step 0", "step 1", "step 2"]
    current = opened.locator(".px-row [aria-current]")
    assert current.inner_text() == "step 1"
    current.focus()
    opened.keyboard.press("ArrowRight")  # a focused small picture keeps the keys
    assert title.inner_text() == "v1: kproba, step 2"
    opened.keyboard.press("ArrowDown")
    assert row.all_inner_texts() == ["step 0", "step 1"]  # finetune has two steps
    row.first.click()
    assert title.inner_text() == "v1: finetune, step 0"
    assert current.inner_text() == "step 0"
    opened.wait_for_function(
        "() => [...document.querySelectorAll('.px-row canvas')]"
        ".every(canvas => canvas.dataset.view === 'labels')"
    )


def test_a_click_beside_the_dialog_closes_it(opened):
    opened.locator('[data-kind="truth"]').first.click()
    assert opened.locator("#px-title").inner_text() == "v1: kproba, step 0"
    opened.mouse.click(3, 3)
    assert opened.locator("dialog[open]").count() == 0
    opened.locator('[data-kind="photo"]').first.click()
    opened.get_by_role("button", name="close").click()
    assert opened.locator("dialog[open]").count() == 0


@pytest.mark.parametrize("width", [390, 1280])
def test_method_names_and_steps_stay_when_a_grid_is_moved(opened, width):
    opened.set_viewport_size({"width": width, "height": 700})
    area = opened.locator(".px-scroll").first
    area.evaluate("area => area.scrollTo(200, 150)")
    frame = area.bounding_box()
    name = opened.locator(".px-grid tbody th").nth(1).bounding_box()
    head = opened.locator(".px-grid thead th").first.bounding_box()
    assert frame and name and head
    assert name["x"] == pytest.approx(frame["x"], abs=1)
    assert head["y"] == pytest.approx(frame["y"], abs=1)
    assert opened.evaluate("document.documentElement.scrollWidth") <= width


def test_without_the_script_the_masks_are_shown(browser, page, tmp_path):
    path = tmp_path / "page.html"
    path.write_text(page, encoding="utf-8")
    context = browser.new_context(java_script_enabled=False)
    tab = context.new_page()
    tab.goto(path.as_uri())
    mask = tab.locator('[data-title="kproba, step 1"] img').first
    assert mask.is_visible()
    assert (mask.bounding_box() or {})["width"] > 100
    assert tab.locator(".px-views").first.is_hidden()
    context.close()
