"""How the scripts whose runs are killed end a process at a certain call."""

import os
import signal
import sys


def suicide(*_, **__):
    """End as power failures do."""
    os.kill(os.getpid(), signal.SIGKILL)


def on_call(number, function, before=True):
    """The function, which ends the process at its call with this number."""
    calls = iter(range(1, 10**9))

    def wrapped(*args, **kwargs):
        last = next(calls) == number
        if last and before:
            suicide()
        result = function(*args, **kwargs)
        if last:
            suicide()
        return result

    return wrapped


def patch(owner, name, wrapped):
    """Set an attribute for the rest of the process."""
    setattr(owner, name, wrapped)


def leave(code):
    """End a forked process, without what its parent would do at its end."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
