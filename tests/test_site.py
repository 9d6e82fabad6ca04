"""The documentation's site: it is built without a warning, and every link in it leads to a file and its anchor."""

import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

ROOT = Path(__file__).parent.parent


class Page(HTMLParser):
    """The links of a page, and what they could lead to in it."""

    def __init__(self, text):
        super().__init__()
        self.links, self.anchors = [], set()
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.anchors.add(given.get("id"))
        self.links += [given[name] for name in ("href", "src") if given.get(name)]


@pytest.mark.docs
def test_the_site_is_built_and_its_links_lead_somewhere(tmp_path):
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-c", "docs", "-d", tmp_path / "trees"]
    done = subprocess.run([*command, ".", tmp_path / "site"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    site = (tmp_path / "site").resolve()
    written = {
        file: Page(file.read_text(encoding="utf-8")) for file in site.rglob("*.html") if "results" not in str(file)
    }
    assert {site / "index.html", site / "docs" / "tutorial.html", site / "notebooks" / "03_deploy.html"} <= set(written)
    missing = []
    for file, page in written.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (file.parent / unquote(parts.path)).resolve() if parts.path else file
            found = target.is_file() and target.is_relative_to(site)
            if not found or (parts.fragment and target in written and parts.fragment not in written[target].anchors):
                missing.append(f"{file.relative_to(site)}: {link}")
    assert missing == []
    command_line = (site / "docs" / "reference" / "cli.html").read_text(encoding="utf-8")
    assert "--max-accuracy-drop" in command_line
