"""Writes the generated tables of the pages anew: python tests/tables.py. A test compares them."""

from __future__ import annotations

import re
from pathlib import Path

from keras_resnets.models.tables import page_tables

ROOT = Path(__file__).parent.parent
PAGES = {  # which tables stand on which page
    "README.md": ("constructors",),
    "README.zh-CN.md": ("constructors",),
    "docs/models.md": ("models",),
    "docs/weights.md": ("weights",),
}


def renewed(page: str) -> str:
    """A page's text with each of its tables between the markers replaced."""
    text = (ROOT / page).read_text(encoding="utf-8")
    for name in PAGES[page]:
        begin, end, table = f"<!-- {name}: make tables -->\n", f"<!-- end of {name} -->", page_tables()[name]
        text, count = re.subn(
            f"(?<={re.escape(begin)}).*?(?={re.escape(end)})", lambda _, table=table: f"\n{table}\n", text, flags=re.S
        )
        assert count == 1, f"{page} has no place for the table of {name}"
    return text


if __name__ == "__main__":
    for page in PAGES:
        (ROOT / page).write_text(renewed(page), encoding="utf-8")
