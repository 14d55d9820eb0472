"""`make play`: serves the page until Ctrl-C."""

import errno
import ipaddress
import os
import socket
import sys
import threading
from typing import Any

from stages.commands import COMMANDS
from stages.engine.command import Context, run_command
from stages.engine.errors import Interrupted, UserError, of_the_system

LOCAL = frozenset({"localhost", "127.0.0.1", "[::1]"})


def listen(host: str, port: int) -> socket.socket:
    """Returns a socket that listens there. Raises UserError."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=256)
    except (socket.gaierror, UnicodeError):
        raise UserError(f"HOST={host}: no such address on this machine; leave it out for 127.0.0.1") from None
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise UserError(f"port {port} is taken; choose another with PORT={(port + 1) % 2**16}") from None
        if error.errno in (errno.EACCES, errno.EPERM):
            raise UserError(f"port {port} may not be used; choose one from 1024 on, such as PORT=8000") from None
        raise of_the_system(error, f"HOST={host} PORT={port}") from None


def is_local(listening: socket.socket) -> bool:
    """Returns True if only this machine reaches the socket."""
    return ipaddress.ip_address(listening.getsockname()[0]).is_loopback


def main(context: Context) -> None:
    a = context.arguments
    try:
        import uvicorn

        from stages.play.connection import settings
        from stages.play.server import application
    except ImportError as error:
        raise UserError(f"{error.name} is not installed; `make play` installs it, or pip install '.[play]'") from None
    from stages.play.line import Worker
    from stages.play.painter import LibraryPainter, command_of
    from stages.use.library import load

    with listen(a.host, a.port) as listening:  # before the weights are read: what cannot be is said at once
        painter, worker = LibraryPainter(load(a.config, *a.overrides), command_of(a.config, a.overrides)), Worker()
        hosts = LOCAL | {a.host.lower()} if is_local(listening) else None
        server = uvicorn.Server(settings(application(painter, worker, hosts)))
        announce(listening, a.host)
        threading.Thread(target=_serve, args=(server, listening), daemon=True).start()  # it leaves signals to this one
        try:
            painter.warm_up()
            worker.run()
        except Interrupted as stop:
            print("stopped", file=sys.stderr, flush=True)
            os._exit(stop.exit_status)  # nothing is to be saved, and a drawing may hold the server's thread


def _serve(server: Any, listening: socket.socket) -> None:
    """Serves forever. If the server ends, so does the process: nothing else gives the worker jobs."""
    try:
        server.run([listening])
    finally:
        print("error: the server ended; its last messages are above", file=sys.stderr, flush=True)
        os._exit(1)


def announce(listening: socket.socket, host: str) -> None:
    """Prints where the page is, and who can reach it."""
    name, port, others = f"[{host}]" if ":" in host else host, listening.getsockname()[1], ""
    if ipaddress.ip_address(listening.getsockname()[0]).is_unspecified:  # 0.0.0.0 is no address to open
        name, others = "localhost", f", from other machines at http://{socket.gethostname()}:{port}"
    print(f"play at http://{name}:{port}{others}  (Ctrl-C ends it)", flush=True)
    if not is_local(listening):
        words = "everyone who reaches this machine can use the page, and it asks for no password"
        print(f"warning: HOST={host}: {words}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    run_command(COMMANDS["play"], main)
