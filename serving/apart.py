"""Asks a program in a process of its own: a request as JSON on its standard input, the answer in its last line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any

# NumPy's own threads would wait beside the runtime's; and a folder called keras_resnets may lie where we are.
_ENVIRONMENT = {"OPENBLAS_NUM_THREADS": "1", "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONSAFEPATH": "1"}


class NoAnswerError(RuntimeError):
    """A process that ended without an answer, or was out of time; the message says which."""


def answer_of(program: Sequence[str], request: Mapping[str, Any], timeout: float) -> dict[str, Any]:
    """The answer of a program to a request.

    Args:
        program: command and arguments.
        request: what it reads.
        timeout: seconds, after which it is killed.

    Raises:
        NoAnswerError: when there is none.
    """
    try:
        done = subprocess.run(
            program, input=json.dumps(request), capture_output=True, text=True, env={**os.environ, **_ENVIRONMENT},
            timeout=timeout, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise NoAnswerError(f"gave no figures within {timeout:.0f} s") from None
    if done.returncode < 0:
        raise NoAnswerError(f"the process was killed by {signal.Signals(-done.returncode).name}")
    try:
        answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        why = lines[-1] if lines else f"exit status {done.returncode}"
        raise NoAnswerError(f"the process failed: {why}") from None
    return answer
