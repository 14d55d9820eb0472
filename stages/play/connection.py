"""Limits clients: each must send whole requests, and take the answers, soon and over few connections.

uvicorn waits forever for the head of a request and for a client that reads nothing, and counts such a connection as
active.
"""

import asyncio
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from stages.play.server import SLOW

CONNECTIONS = 512  # at most; further ones are closed (uvicorn's own limit would refuse requests over the old ones too)
PER_ADDRESS = 128  # of them at most from one address, which may be that of a proxy
IDLE = 30  # seconds that a connection may stay open between two requests


class Connection(H11Protocol):
    """uvicorn's HTTP/1.1, but a connection is closed if its client takes longer than SLOW to send a request.

    So it is if the client takes longer to accept what has been written. Between an answer and the next request the
    limit is IDLE, which uvicorn enforces.
    """

    deadline: asyncio.TimerHandle | None = None
    stalled: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=0)  # writing pauses while anything waits for the client
        clients = [getattr(other, "client", None) for other in self.connections]  # (address, port)
        address = self.client and self.client[0]
        alike = sum(client is not None and client[0] == address for client in clients)
        if alike > PER_ADDRESS or len(self.connections) > CONNECTIONS:
            transport.abort()
        else:
            self._watch()

    def handle_events(self) -> None:
        super().handle_events()
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._unwatch()
        self._moves()

    def pause_writing(self) -> None:
        super().pause_writing()
        self.stalled = self.loop.call_later(SLOW, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._moves()

    def _moves(self) -> None:
        if self.stalled is not None:
            self.stalled.cancel()
            self.stalled = None

    def _watch(self) -> None:
        """Sets a deadline while the server waits for the client. Further bytes do not extend it."""
        if self.cycle is not None and not self.cycle.response_complete:
            self._unwatch()
        elif self.deadline is None and self.timeout_keep_alive_task is None:
            self.deadline = self.loop.call_later(SLOW, self.transport.abort)

    def _unwatch(self) -> None:
        if self.deadline is not None:
            self.deadline.cancel()
            self.deadline = None


def settings(app: Any) -> uvicorn.Config:
    """Returns how uvicorn serves the application."""
    return uvicorn.Config(
        app,
        http=Connection,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=IDLE,
    )
