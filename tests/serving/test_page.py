"""The page at /, in headless Chromium (Debian's `chromium`), driven by Playwright; `make test-browser` runs it."""

import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("playwright.sync_api", reason="make test-browser installs it")

pytestmark = pytest.mark.browser
PICTURES = Path(os.environ.get("KERAS_RESNETS_PICTURES", Path(__file__).parents[2] / "build" / "pictures"))


@pytest.fixture(scope="module")
def server(serving, exported, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    for name in ("first", "second"):
        shutil.copytree(exported()[1], folder / name)
    with serving("--repository", folder) as running:
        yield running


@pytest.fixture
def open_page(browser, server):
    """Gives an open page; nothing may be asked of another host, and no script may fail."""
    pages = []

    def visit(url=server.url, **options):
        page = browser.new_page(**options)
        page.elsewhere, page.errors = [], []
        page.on("request", lambda request: url not in request.url and page.elsewhere.append(request.url))
        page.on("pageerror", lambda error: page.errors.append(str(error)))
        page.on("console", lambda line: line.type == "error" and page.errors.append(line.text))
        page.goto(url)
        pages.append(page)
        return page

    yield visit
    for page in pages:
        assert [url for url in page.elsewhere if not url.startswith(("blob:", "data:"))] == []
        page.close()


@pytest.fixture
def image(png, tmp_path):
    file = tmp_path / "image.png"
    file.write_bytes(
        png(np.kron(np.random.default_rng(0).integers(0, 256, (8, 8)), np.ones((16, 16))).astype(np.uint8))
    )
    return file


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1100, 360])
def test_an_image_is_chosen_and_classified(open_page, image, scheme, width):
    page = open_page(color_scheme=scheme, viewport={"width": width, "height": 900})
    page.wait_for_selector("#card dd")
    page.set_input_files("#file", image)
    page.wait_for_selector("#classes li")
    shares = [
        float(text.removesuffix(" %")) for text in page.locator("#classes .row span:last-child").all_inner_texts()
    ]
    assert len(shares) == 3 and sum(shares) == pytest.approx(100, abs=0.2) and shares == sorted(shares, reverse=True)
    assert re.fullmatch(
        r"[\d.]+ ms in all; the server took [\d.]+ ms, the network in it [\d.]+ ms\.", page.inner_text("#status")
    )
    assert page.evaluate("document.documentElement.scrollWidth") <= width  # nothing sticks out
    PICTURES.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=PICTURES / f"page_{scheme}_{width}.png", full_page=True)
    assert not page.errors


def test_the_model_card_says_what_the_bundle_does(open_page):
    page = open_page()
    page.wait_for_selector("#card dd")
    card = dict(
        zip(page.locator("#card dt").all_inner_texts(), page.locator("#card dd").all_inner_texts(), strict=True)
    )
    assert card["Input"] == "8 × 8 pixels, grey" and card["Precision"] == "float32 on cpu" and card["Classes"] == "3"
    assert "away from Keras" in card["Golden sample"]
    page.click("summary")
    assert page.locator("#proof tr").count() > 3


def test_it_works_by_keyboard_alone(open_page, image):
    page = open_page()
    page.wait_for_selector("#card dd")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "model"
    page.keyboard.press("ArrowDown")
    assert page.input_value("#model") == "second"
    page.keyboard.press("Tab")
    page.wait_for_function("document.activeElement.id == 'drop'")
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Enter")
    chooser.value.set_files(image)
    page.wait_for_selector("#classes li")


def test_errors_are_shown(open_page, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no image")
    page = open_page()
    page.wait_for_selector("#card dd")
    page.set_input_files("#file", tmp_path / "bad.png")
    page.wait_for_selector("#status.bad")
    assert "not a JPEG, PNG or WEBP image" in page.inner_text("#status")


def test_a_dropped_image_is_classified(open_page, image):
    page = open_page()
    page.wait_for_selector("#card dd")
    page.evaluate(
        """async bytes => {
            const data = new DataTransfer();
            data.items.add(new File([new Uint8Array(bytes)], "image.png", { type: "image/png" }));
            document.dispatchEvent(new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true }));
        }""",
        list(image.read_bytes()),
    )
    page.wait_for_selector("#classes li")


def test_a_key_is_asked_for(serving, exported, open_page, image, tmp_path):
    (tmp_path / "key").write_text("secret")
    with serving(exported()[1], "--api-key-file", tmp_path / "key") as server:
        page = open_page(url="about:blank")
        page.on("dialog", lambda dialog: dialog.accept("secret"))
        page.goto(server.url)
        page.wait_for_selector("#card dd")
        page.set_input_files("#file", image)
        page.wait_for_selector("#classes li")
        page.elsewhere.clear()
