"""The page of a benchmark's result in headless Chromium, from a file and without a network; `make test-browser`."""

import os
from pathlib import Path

import pytest

from keras_resnets.serving.report import write_html

pytest.importorskip("playwright.sync_api", reason="make test-browser installs it")

pytestmark = pytest.mark.browser
PICTURES = Path(os.environ.get("KERAS_RESNETS_PICTURES", Path(__file__).parents[2] / "build" / "pictures"))


@pytest.fixture(scope="module")
def files(neighbour, tmp_path_factory):
    """A page of a usual result, and one of a result with all that may be in one."""
    made, folder = neighbour("serving/results.py"), tmp_path_factory.mktemp("reports")
    usual = made.result(*made.sweep())
    full = made.result(
        *made.sweep(providers=("cpu", "openvino"), batches=(1, 8, 32)),
        *made.sweep("a <b>network</b> whose user gave it a name_without_any_spaces_that_is_long", batches=(1, 8)),
        made.refused("2 threads were asked for, and the session has 1", precision="bfloat16"),
        warnings=["other programs used 31% of the CPUs before the first run: the figures may be too slow"],
        scenarios=[
            {
                "scenario": "server", "target": "resnet50, int8", "valid": True, "metric": "samples_per_second",
                "figures": {"samples_per_second": 61.2, "p50_ms": 12.4, "p99_ms": 14.9, "queries": 3710},
            },
            {"scenario": "offline", "target": "resnet50, int8", "valid": False, "reason": "2 answers were wrong"},
        ],
        comparison=[
            {
                "name": "resnet50, int8, cpu, batch 8, 2 threads", "verdict": "slower", "p": 0.003, "why": "",
                "figures": {"images_per_second": {"ratio": 0.92, "low": 0.9, "high": 0.95}},
            },
        ],
    )  # fmt: skip
    for name, result in (("usual", usual), ("full", full)):
        write_html(result, folder / f"{name}.html")
    return folder


@pytest.fixture
def open_page(browser, files):
    """Gives an open page; nothing may be asked for but the file, and nothing may fail."""
    pages = []

    def visit(name, **options):
        page = browser.new_page(offline=True, **options)
        page.asked, page.errors = [], []
        page.on("request", lambda request: page.asked.append(request.url))
        page.on("pageerror", lambda error: page.errors.append(str(error)))
        page.on("console", lambda line: page.errors.append(line.text))
        page.goto((files / f"{name}.html").as_uri())
        pages.append(page)
        return page

    yield visit
    for page in pages:
        assert [url for url in page.asked if not url.startswith(("file:", "data:"))] == [] and len(page.asked) >= 1
        assert page.errors == []
        page.close()


@pytest.mark.parametrize("name", ["usual", "full"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1100, 360])
def test_the_report_is_readable(open_page, name, scheme, width):
    page = open_page(name, color_scheme=scheme, viewport={"width": width, "height": 800})
    PICTURES.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=PICTURES / f"report_{name}_{scheme}_{width}.png", full_page=True)
    box = page.locator(".headline").bounding_box()
    assert box["y"] >= 0 and box["y"] + box["height"] < 800
    assert "is fastest" in page.inner_text(".headline")
    assert page.evaluate("document.documentElement.scrollWidth") <= width  # nothing sticks out
    pictures = page.locator("svg").all()
    assert len(pictures) == 4
    for picture in pictures:
        box = picture.bounding_box()
        assert box["width"] > 250 and box["height"] > 150


@pytest.mark.parametrize("name", ["usual", "full"])
def test_the_words_of_a_picture_do_not_overlap(open_page, name):
    page = open_page(name, viewport={"width": 1100, "height": 800})
    overlaps = page.evaluate(
        """() => [...document.querySelectorAll("svg")].flatMap(svg => {
            const words = [...svg.querySelectorAll("text")];
            const boxes = words.map(text => [text.textContent, text.getBoundingClientRect()]);
            return boxes.flatMap(([a, one], i) => boxes.slice(i + 1).filter(([b, other]) =>
                one.left < other.right - 1 && other.left < one.right - 1 &&
                one.top < other.bottom - 4 && other.top < one.bottom - 4).map(([b]) => [a, b]));
        })"""
    )
    assert overlaps == []


def test_words_in_the_dark_have_the_contrast_of_the_page(open_page):
    page = open_page("usual", color_scheme="dark")
    colours = page.evaluate(
        """() => [...new Set([...document.querySelectorAll("svg text")].map(text => getComputedStyle(text).fill))]"""
    )
    assert colours == [page.evaluate("getComputedStyle(document.body).color")]


def test_wide_tables_scroll_by_keyboard_with_their_names_in_sight(open_page):
    page = open_page("usual", viewport={"width": 360, "height": 800})
    table = page.locator(".rows")
    table.focus()
    for _ in range(10):
        page.keyboard.press("ArrowRight")
    page.wait_for_function("document.querySelector('.rows').scrollLeft > 50")
    name = page.locator(".rows tbody th").first.bounding_box()
    assert name["x"] >= table.bounding_box()["x"]
