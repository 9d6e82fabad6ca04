"""Tells what went wrong in a download: whether it may pass, and what to do about it."""

from __future__ import annotations

import errno
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from keras_resnets.extras import extra
from keras_resnets.weights.records import Weights, WeightsError

_PAUSES = (1.0, 2.0)  # seconds before the second and the third attempt
_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_NO_ROUTE = {errno.ENETUNREACH, errno.EHOSTUNREACH}
T = TypeVar("T")


def retried(call: Callable[[], T], worthwhile: Callable[[], bool] = lambda: True) -> T:
    """A call's result, after up to three attempts where the fault may pass."""
    for pause in _PAUSES:
        try:
            return call()
        except Exception as error:
            if not (_passing(error) and worthwhile()):
                raise
        time.sleep(pause)
    return call()


@contextmanager
def explained(weights: Weights, host: str, partial: Path | None = None) -> Iterator[None]:
    """Turn what goes wrong in a download into an error that says what happened and what to do."""
    with extra("pretrained"):
        from huggingface_hub import errors

    # Its base of all transport errors, whichever HTTP library this huggingface_hub stands on.
    transport: type[Exception] = getattr(errors, "HTTPError", OSError)
    xet: type[Exception] = getattr(errors, "XetDownloadError", RuntimeError)
    try:
        yield
    except WeightsError:
        raise
    except (OSError, ValueError, RuntimeError, transport, xet) as error:
        if partial is not None and _INCOMPLETE in str(error):
            partial.unlink(missing_ok=True)  # of a wrong size; resumed, it would stay so
        resumes = partial is not None and partial.is_file()
        raise WeightsError(
            f"{weights.name} could not be downloaded from {host}: {_reason(error)}"
            + (" The next attempt resumes where this one stopped." if resumes else "")
        ) from error


_STATUS = {
    401: "it is missing, private or gated (HTTP 401). Check its name, or log in (`hf auth login`) if you have access.",
    403: "access is refused (HTTP 403). Accept its terms on its page and log in (`hf auth login`).",
    404: "it is not there (HTTP 404). Update this package, or choose other weights.",
    429: "too many requests (HTTP 429). Wait a few minutes; who is logged in (`hf auth login`) may ask more often.",
}
_INCOMPLETE = "Consistency check failed"  # the hub's words for a file of the wrong size
_BROKEN = {"RemoteProtocolError", "ReadError", "ProtocolError", "IncompleteRead", "ChunkedEncodingError"}


def _reason(error: BaseException) -> str:
    """What happened, and what to do."""
    status = _status(error)
    if status is not None:
        return _STATUS.get(status, f"the host answers HTTP {status}. Try again later.")
    for happened, text in (
        (_disk_full, "the disk is full, or a quota is reached. Free some space and try again."),
        (
            _unreachable,
            "the host cannot be reached. Check the network and the proxy settings, or name a mirror "
            "(HF_ENDPOINT, KERAS_RESNETS_KERAS_URL).",
        ),
        (_timed_out, "the host does not answer, or no longer. Try again, or wait longer (HF_HUB_DOWNLOAD_TIMEOUT)."),
        (_broken_off, "the connection broke off before the file was complete. Try again."),
        (_mismatched, f"it is damaged, or not the file that was published ({error}). Try again, or take others."),
    ):
        if happened(error):
            return text
    return f"{type(error).__name__}: {error}"


def _passing(error: BaseException) -> bool:
    """Whether the fault may be gone a second later."""
    status = _status(error)
    if status is not None:
        return status >= 500
    return not _disk_full(error) and (_unreachable(error) or _timed_out(error) or _broken_off(error))


def _status(error: BaseException) -> int | None:
    """The HTTP status that the error is about."""
    answers = (getattr(cause, "response", None) for cause in _causes(error))
    return next((answer.status_code for answer in answers if answer is not None), None)


def _disk_full(error: BaseException) -> bool:
    return any(isinstance(cause, OSError) and cause.errno in _NO_SPACE for cause in _causes(error))


def _unreachable(error: BaseException) -> bool:
    return any(
        isinstance(cause, (ConnectionRefusedError, socket.gaierror))
        or (isinstance(cause, OSError) and cause.errno in _NO_ROUTE)
        for cause in _causes(error)
    )


def _timed_out(error: BaseException) -> bool:
    # By name, as requests, urllib3, httpx and the standard library have one each.
    return any("Timeout" in base.__name__ for cause in _causes(error) for base in type(cause).__mro__)


def _broken_off(error: BaseException) -> bool:
    return any(
        isinstance(cause, (ConnectionResetError, ConnectionAbortedError, BrokenPipeError))
        or type(cause).__name__ in _BROKEN
        or _INCOMPLETE in str(cause)
        for cause in _causes(error)
    )


def _mismatched(error: BaseException) -> bool:
    return isinstance(error, ValueError) and "does not match the known hash" in str(error)  # pooch's words


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error and what it came from."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        yield current
        seen.add(id(current))
        current = current.__cause__ or current.__context__
