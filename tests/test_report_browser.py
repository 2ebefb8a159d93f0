"""The page of results in a browser: wide and narrow, light and dark, by keyboard."""

import csv
import io
import time
from pathlib import Path

import pandas as pd
import pytest
from invented_results import invent
from parsed_page import experiment, write_page
from playwright.sync_api import Page
from small_experiment import repeat_step, write_tables

from kproba.results.page import write_report
from kproba.results.palette import tokens

WIDE, NARROW = 1280, 390
# Contrast of all texts in tables with the colour behind them, the lowest first.
CONTRASTS = """() => {
  const parse = text => {
    const n = text.match(/[\\d.]+/g).map(Number);
    return text.startsWith("color(") ? n : n.map((v, k) => k < 3 ? v / 255 : v);
  };
  const light = c => {
    const [r, g, b] = c.slice(0, 3)
      .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = node => {
    for (let e = node; e; e = e.parentElement) {
      const colour = parse(getComputedStyle(e).backgroundColor);
      if (colour.length < 4 || colour[3] === 1) return colour;
    }
  };
  const found = [...document.querySelectorAll("td, th, dt, dd, p, summary, li")]
    .filter(e => e.textContent.trim()).map(e => {
      const [a, b] = [light(parse(getComputedStyle(e).color)), light(ground(e))];
      return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    });
  return [found.length, Math.min(...found)];
}"""


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> tuple[Path, float]:
    """A page of VOC 15-1, six methods and three seeds; and the seconds it took."""
    folder = tmp_path_factory.mktemp("voc")
    invented = invent(folder / "results")
    tables = write_tables(invented.results, folder)
    names = ("summary", "classes", "pseudo_labels")
    page = folder / "report.html"
    start = time.process_time()
    write_report(
        invented.results,
        [invented.experiment],
        page,
        **dict(zip(names, tables, strict=True)),
    )
    return page, time.process_time() - start


@pytest.fixture
def small(results, index, tmp_path) -> Path:
    """The page of the small experiment, with a second seed of kproba."""
    again = repeat_step(results[2], tmp_path / "other", "finetune", seed=5)
    write_page([*results, again], tmp_path, experiment(index))
    return tmp_path / "report.html"


def open_page(browser, path: Path, width: int, scheme: str = "light") -> Page:
    """The page; its attribute `messages` lists errors and requests."""
    tab = browser.new_page(
        viewport={"width": width, "height": 800}, color_scheme=scheme
    )
    tab.messages = []
    tab.on("console", lambda message: tab.messages.append(message.text))
    tab.on("pageerror", lambda error: tab.messages.append(str(error)))
    local = ("file:", "data:", "blob:")
    tab.on("request", lambda r: r.url.startswith(local) or tab.messages.append(r.url))
    tab.goto(path.as_uri())
    return tab


def test_large_page_is_small_and_made_fast(large):
    page, seconds = large
    assert page.stat().st_size < 2_000_000
    assert seconds < 10


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [WIDE, NARROW])
def test_large_page_fits_and_has_no_errors(browser, large, width, scheme):
    tab = open_page(browser, large[0], width, scheme)
    tab.evaluate(
        "document.querySelectorAll('main details').forEach(d => d.open = true)"
    )
    tab.wait_for_timeout(100)
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    # What is wider than its place can be scrolled, by keyboard too, and says so.
    areas = tab.evaluate(
        "[...document.querySelectorAll('.scroll')].map(a => [a.tabIndex, a.role ?? "
        "a.getAttribute('role'), a.scrollWidth > a.clientWidth + 1, "
        "a.closest('.tablebox').classList.contains('more')])"
    )
    assert len(areas) > 20
    assert all(tab_index == 0 and role == "region" for tab_index, role, *_ in areas)
    assert all(wider == hinted for *_, wider, hinted in areas)
    assert any(wider for *_, wider, _ in areas) or width == WIDE
    count, lowest = tab.evaluate(CONTRASTS)
    assert count > 1000
    assert lowest >= 4.5
    assert tab.messages == []
    tab.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_follow_the_colour_scheme(browser, small, scheme):
    tab = open_page(browser, small, WIDE, scheme)
    colours = tokens(scheme == "dark")
    for selector, kind, name in (
        ("body", "backgroundColor", "paper"),
        ("body", "color", "ink"),
        (".series.s0 polyline", "stroke", "s0"),
        (".series.s1 polyline", "stroke", "s1"),
        ("line.level", "stroke", "joint"),
    ):
        found = tab.locator(selector).first.evaluate(
            f"node => getComputedStyle(node).{kind}"
        )
        channels = [int(colours[name][k : k + 2], 16) for k in (1, 3, 5)]
        assert found == f"rgb({', '.join(map(str, channels))})"
    tab.close()


def test_message_and_results_are_on_the_first_screen(browser, large):
    tab = open_page(browser, large[0], WIDE)
    for selector in ("h1", ".verdict", ".facts", "#voc-15-1-overlap-results"):
        box = tab.locator(selector).bounding_box()
        assert box["y"] + box["height"] < 800
    size = tab.locator(".verdict").evaluate(
        "e => parseFloat(getComputedStyle(e).fontSize)"
    )
    assert size >= 24
    tab.close()


def test_contents_stay_beside_the_page_and_are_folded_on_a_phone(browser, large):
    tab = open_page(browser, large[0], WIDE)
    tab.get_by_role("link", name="Published numbers", exact=True).click()
    tab.wait_for_timeout(200)
    assert tab.locator("#voc-15-1-overlap-published").bounding_box()["y"] < 100
    assert tab.locator(".toc").bounding_box()["y"] == 0
    assert tab.locator(".toc [aria-current]").inner_text() == "Published numbers"
    tab.close()
    tab = open_page(browser, large[0], NARROW)
    link = tab.locator(".toc").get_by_role("link", name="Glossary")
    assert not link.is_visible()
    tab.locator(".toc summary").click()
    assert link.is_visible()
    tab.close()


def test_published_numbers_are_visible_on_a_phone(browser, large):
    tab = open_page(browser, large[0], NARROW)
    table = tab.locator("table.published").first
    for cell in table.locator("tbody tr:nth-child(8) > :nth-child(-n + 4)").all():
        box = cell.bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= NARROW
    tab.close()


def test_no_column_of_the_results_is_lost_on_a_phone(browser, large):
    tab = open_page(browser, large[0], NARROW)
    heads = tab.locator("table").first.locator("thead th")
    assert heads.last.inner_text() == "forgetting"
    box = heads.last.bounding_box()
    assert box["x"] + box["width"] <= NARROW
    area = tab.locator(".tablebox .scroll").first
    assert area.evaluate("area => area.scrollWidth - area.clientWidth") == 0
    tab.close()


def column(tab: Page, number: int) -> list[str]:
    """The cells of a column of the first table, methods and joint training."""
    cells = tab.locator("table").first.locator(f"tbody tr > :nth-child({number})")
    return [text.split()[0] for text in cells.all_inner_texts()]


@pytest.mark.parametrize("width", [WIDE, NARROW])
def test_tables_are_sorted_by_their_headings(browser, small, width):
    tab = open_page(browser, small, width)
    heads = tab.locator("table").first.locator("thead button")
    assert column(tab, 1) == ["kproba", "finetune", "joint"]
    heads.nth(1).click()  # all
    assert column(tab, 2) == ["26.9", "25.0", "67.5"]  # joint training stays apart
    heads.nth(1).press("Enter")
    assert column(tab, 2) == ["25.0", "26.9", "67.5"]
    assert tab.locator("th[aria-sort]").get_attribute("aria-sort") == "ascending"
    heads.nth(0).press("Space")
    assert column(tab, 1) == ["finetune", "kproba", "joint"]
    assert tab.messages == []
    tab.close()


def read_download(tab: Page, name: str) -> list[dict[str, str]]:
    """The rows of a table that a button downloads."""
    button = tab.get_by_role("button", name=f"download as CSV: {name}", exact=True)
    with tab.expect_download() as download:
        button.press("Enter")
    text = Path(download.value.path()).read_text(encoding="utf-8")
    return list(csv.DictReader(io.StringIO(text)))


def test_tables_are_downloaded_with_exact_numbers(browser, small):
    tab = open_page(browser, small, WIDE)
    rows = read_download(tab, "Results after the last step, in percent")
    assert [row["method"] for row in rows] == ["kproba", "finetune", "joint"]
    assert float(rows[0]["all"]) == 26.875  # shown as 26.9
    deviation = pd.Series([28.75, 25.0]).std()
    assert float(rows[0]["all sd"]) == pytest.approx(deviation, rel=1e-5)
    assert rows[1]["all sd"] == rows[2]["forgetting"] == ""
    rows = read_download(tab, "kproba: IoU of every class in percent")
    assert list(rows[0]) == ["class", "step 0", "step 1", "step 2", "lost"]
    assert rows[3]["step 0"] == ""
    assert tab.messages == []
    tab.close()


def test_a_link_into_a_folded_part_opens_it(browser, small):
    tab = open_page(browser, small, WIDE)
    tab.evaluate(
        "const p = document.createElement('p'); p.id = 'inside';"
        "document.querySelector('main details:not([open])').append(p);"
        "location.hash = '#inside'"
    )
    tab.wait_for_timeout(100)
    assert tab.locator("#inside").evaluate("e => e.closest('details').open")
    tab.close()
