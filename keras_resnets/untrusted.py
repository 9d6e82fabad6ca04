"""Reads JSON that anybody may have written.

Python's parser goes one call deeper for each nested list, and is stopped by the interpreter's recursion limit alone.
Networks of a thousand layers raise that limit; then a hundred thousand brackets would end the process.
"""

from __future__ import annotations

import json
import re
from typing import Any

DEPTH = 200
_TEXTS = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)
_BRACKETS = re.compile(r"[\[\]{}]")


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: when it is not JSON, or nested deeper than 200 lists and objects.
    """
    if isinstance(text, bytes):
        text = text.decode(json.detect_encoding(text))
    if text.count("[") + text.count("{") > DEPTH and _depth(text) > DEPTH:
        raise ValueError(f"the JSON is nested deeper than {DEPTH} levels")
    return json.loads(text)


def _depth(text: str) -> int:
    deepest = depth = 0
    for bracket in _BRACKETS.findall(_TEXTS.sub("", text)):
        depth += 1 if bracket in "[{" else -1
        deepest = max(deepest, depth)
    return deepest
