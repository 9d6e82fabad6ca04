"""Ports that a server of several processes holds: taken once, by the parent, so that a port in use is told once."""

from __future__ import annotations

import socket
from contextlib import ExitStack

from .server import BACKLOG, ServeError, cannot_listen


def listeners(host: str, port: int) -> list[socket.socket]:
    """Sockets that listen on every address of the host, as asyncio's servers do; port 0 is any that is free.

    Raises:
        ServeError: when the port is taken, or the host is none of this machine.
    """
    with ExitStack() as opened:
        found: list[socket.socket] = []
        try:
            for family, address in _addresses(host, port):
                one = opened.enter_context(socket.socket(family, socket.SOCK_STREAM))
                one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections of a former server may linger
                if family == socket.AF_INET6:
                    one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                given = found[0].getsockname()[1] if found else port
                one.bind((address[0], given, *address[2:]))
                one.listen(BACKLOG)
                one.setblocking(False)
                found.append(one)
        except OSError as error:
            raise ServeError(cannot_listen(host, port)) from error
        opened.pop_all()
    return found


def shared_port(host: str, port: int) -> socket.socket:
    """A socket that holds a port for other processes of this user to listen on, and does not listen itself.

    Raises:
        ServeError: when the port is taken, or the host is none of this machine.
    """
    try:
        family, address = _addresses(host, port)[0]
        with socket.socket(family, socket.SOCK_STREAM) as alone:  # what shares a port would join another's group
            alone.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            alone.bind(address)
            port = alone.getsockname()[1]
        return _held(family, (address[0], port, *address[2:]))
    except OSError as error:
        raise ServeError(cannot_listen(host, port)) from error


def _held(family: socket.AddressFamily, address: tuple) -> socket.socket:
    for options in ((socket.SO_REUSEPORT,), (socket.SO_REUSEPORT, socket.SO_REUSEADDR)):
        holder = socket.socket(family, socket.SOCK_STREAM)
        for option in options:
            holder.setsockopt(socket.SOL_SOCKET, option, 1)
        try:
            holder.bind(address)
        except OSError as error:  # connections of a former server that did not share the port linger
            holder.close()
            last = error
        else:
            return holder
    raise last


def _addresses(host: str, port: int) -> list[tuple[socket.AddressFamily, tuple]]:
    found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    return list(dict.fromkeys((family, address) for family, _, _, _, address in found))
