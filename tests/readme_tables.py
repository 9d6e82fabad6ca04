"""Writes the README's generated tables anew: python tests/readme_tables.py. A test compares them."""

from __future__ import annotations

import re
from pathlib import Path

from keras_resnets.models.tables import readme_tables

README = Path(__file__).parent.parent / "README.md"


def renewed(text: str) -> str:
    """The README's text with each table between its markers replaced."""
    for name, table in readme_tables().items():
        begin, end = f"<!-- {name}: make readme -->\n", f"<!-- end of {name} -->"
        text, count = re.subn(
            f"(?<={re.escape(begin)}).*?(?={re.escape(end)})", lambda _, table=table: f"\n{table}\n", text, flags=re.S
        )
        assert count == 1, f"the README has no place for the table of {name}"
    return text


if __name__ == "__main__":
    README.write_text(renewed(README.read_text(encoding="utf-8")), encoding="utf-8")
