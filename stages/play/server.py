"""The HTTP side of `make play`: the page's files, a description of the experiment, and a stream of pictures.

The routes are fixed: no path or text of a request reaches the file system. Every answer but a picture's stream is one
line of JSON or one of the page's own files, and a strict Content-Security-Policy lets the page load nothing else.
"""

import asyncio
import json
import logging
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from stages.engine.errors import UserError, is_out_of_memory
from stages.play.asked import BODY, Asked, Refused
from stages.play.line import Line, Stop, Worker, call_soon

ROOM = 24  # drawings that wait or run; the next one is told to come back
PATIENCE = 60.0  # seconds that a request may wait for its turn
LONGEST = 120.0  # seconds that a drawing may take
SLOW = 10.0  # seconds that a client may take to send its request, or to take a PIECE of the answer
BEAT = 0.5  # seconds between two words to a client that waits
PIECE = 2**16  # bytes that a client must take within SLOW

SCRIPTS = ("page.js", "scene.js", "card.js", "shapes.js")
FILES = {  # path: file of this folder, media type
    "/": ("page.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    **{f"/{name}": (name, "text/javascript") for name in SCRIPTS},
}
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}

Event = dict[str, Any]
Tell = Callable[[Event], None]


class Stopped(Exception):
    """Ends a drawing that nobody waits for."""


class Painter(Protocol):
    """What the server needs of the models: stages/play/painter.py."""

    about: dict[str, Any]  # what the page is told of the experiment

    def read(self, body: bytes) -> Asked:
        """Reads and checks a request. Raises Refused."""

    def draw(self, asked: Asked, tell: Tell, stop: Callable[[], bool]) -> None:
        """Draws, and tells each step. Raises Stopped soon after `stop` returns True, UserError for what cannot be."""


def one_line(value: Any) -> bytes:
    """Encodes JSON as one line of ASCII: no text of a user can break a line or leave its string."""
    return json.dumps(value, allow_nan=False).encode() + b"\n"


def refusal(words: str, status: int, headers: dict[str, str] | None = None) -> Response:
    return Response(one_line({"error": words}), status, headers, "application/json")


class Guard:
    """Refuses what comes from elsewhere, and adds the security headers to every answer.

    A page of another site may make a browser send requests here: the Origin header shows it or, if its name points to
    this machine (DNS rebinding), the Host header. `hosts`: the names that may be called, None for any.
    """

    def __init__(self, app: ASGIApp, hosts: frozenset[str] | None):
        self.app, self.hosts = app, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                own = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
                message = {**message, "headers": [*message["headers"], *own]}
            await send(message)

        words = self._refusal(Headers(scope=scope))
        app = refusal(words, 403) if words else self.app
        await app(scope, receive, guarded)

    def _refusal(self, headers: Headers) -> str | None:
        called = headers.getlist("host")
        if len(called) != 1:
            return "a request must name its host once"
        name = called[0].rpartition(":")[0] if called[0].rpartition(":")[2].isdigit() else called[0]
        if self.hosts is not None and name.lower() not in self.hosts:
            return "this host name is not served here; use localhost, or start with HOST="
        origin = headers.get("origin")
        own = [f"{scheme}://{called[0].lower()}" for scheme in ("http", "https")]  # https: behind a proxy with TLS
        if origin is not None and origin.lower() not in own:
            return "requests from other sites are not served"
        return None


async def body_of(request: Request) -> bytes:
    """Returns a request's body. Raises Refused if it is too large, too slow or not declared as JSON."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise Refused("send application/json", 415)
    body = b""
    try:
        async with asyncio.timeout(SLOW):
            async for part in request.stream():
                body += part
                if len(body) > BODY:
                    raise Refused(f"a request has at most {BODY} bytes", 413)
    except TimeoutError:
        raise Refused(f"the request did not arrive within {SLOW:g} seconds", 408) from None
    return body


class Drawing:
    """Answers POST /api/draw with a stream of events, one line of JSON each: queued, step, done, error, end."""

    def __init__(self, painter: Painter, worker: Worker, room: int = ROOM):
        self.painter, self.worker, self.line = painter, worker, Line(room)
        self.took = 1.0  # seconds of the last drawing, for Retry-After

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            asked = self.painter.read(await body_of(Request(scope, receive)))
        except ClientDisconnect:
            return
        turn = self.line.join()
        if turn is None:
            seconds = str(min(60, max(1, math.ceil(self.took * self.line.room / 2))))
            busy = refusal(f"{self.line.room} drawings wait already; try again", 503, {"retry-after": seconds})
            return await busy(scope, receive, send)
        events: asyncio.Queue[Event | None] = asyncio.Queue()
        stop = Stop()
        drawing = asyncio.create_task(self._draw(asked, turn, events, stop))
        sending, gone = asyncio.create_task(_send(events, send)), asyncio.create_task(_gone(receive))
        try:
            await asyncio.wait({sending, gone}, return_when=asyncio.FIRST_COMPLETED)
        finally:  # the client has everything, or has gone
            stop.set()
            gone.cancel()
            sending.cancel()
            await asyncio.gather(drawing, sending, gone, return_exceptions=True)

    async def _draw(self, asked: Asked, turn: asyncio.Event, events: asyncio.Queue, stop: Stop) -> None:
        """Waits for the turn and draws. Leaves the line when the drawing has ended, whether or not it was sent."""
        loop, began = asyncio.get_running_loop(), time.monotonic()

        def tell(event: Event) -> None:
            call_soon(loop, lambda: events.put_nowait(event))

        try:
            if await self._turn(turn, tell, stop):
                began = time.monotonic()
                limit = began + LONGEST
                await self.worker.do(lambda: self._drawn(asked, tell, lambda: bool(stop) or time.monotonic() > limit))
                self.took = time.monotonic() - began
        finally:
            self.line.leave(turn)
            tell({"event": "end"})
            loop.call_soon(events.put_nowait, None)

    async def _turn(self, turn: asyncio.Event, tell: Tell, stop: Stop) -> bool:
        """Waits for the turn; returns False if the client went away or waited too long."""
        limit = time.monotonic() + PATIENCE
        while not turn.is_set() and not stop:
            if time.monotonic() > limit:
                tell({"event": "error", "error": f"waited {PATIENCE:g} seconds; try again"})
                return False
            tell({"event": "queued", "ahead": self.line.ahead(turn)})
            try:
                async with asyncio.timeout(BEAT):
                    await turn.wait()
            except TimeoutError:
                continue
        return not stop

    def _drawn(self, asked: Asked, tell: Tell, stop: Callable[[], bool]) -> None:
        """Draws in the worker's thread; whatever goes wrong becomes one event."""
        try:
            self.painter.draw(asked, tell, stop)
        except Stopped:
            tell({"event": "error", "error": f"the drawing was stopped; it may take {LONGEST:g} seconds at most"})
        except UserError as error:
            tell({"event": "error", "error": str(error)})
        except Exception as error:
            words = "out of memory: ask for fewer pictures" if is_out_of_memory(error) else "the drawing failed"
            logging.getLogger(__name__).exception("a drawing failed")
            tell({"event": "error", "error": f"{words}; the server's terminal says more"})


async def _send(events: asyncio.Queue, send: Send) -> None:
    """Sends events until None. Gives up on a client that accepts nothing for too long."""
    head = [(b"content-type", b"application/x-ndjson")]
    await send({"type": "http.response.start", "status": 200, "headers": head})
    while (event := await events.get()) is not None:
        line = one_line(event)
        for first in range(0, len(line), PIECE):
            async with asyncio.timeout(SLOW):
                await send({"type": "http.response.body", "body": line[first : first + PIECE], "more_body": True})
    await send({"type": "http.response.body", "body": b""})


async def _gone(receive: Receive) -> None:
    """Returns when the client has closed the connection."""
    while (await receive())["type"] != "http.disconnect":
        pass


def application(painter: Painter, worker: Worker, hosts: frozenset[str] | None, room: int = ROOM) -> ASGIApp:
    """Returns the ASGI application. `hosts`: the names it may be called by, None for any."""
    folder = Path(__file__).parent
    files = {path: ((folder / name).read_bytes(), kind) for path, (name, kind) in FILES.items()}
    about = one_line(painter.about)

    async def file(request: Request) -> Response:
        body, kind = files[request.scope["path"]]
        return Response(body, media_type=kind)

    async def experiment(request: Request) -> Response:
        return Response(about, media_type="application/json")

    async def refused(request: Request, error: Exception) -> Response:
        assert isinstance(error, Refused)
        return refusal(str(error), error.status)

    async def http_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return refusal(error.detail, error.status_code, dict(error.headers or {}))

    async def failed(request: Request, error: Exception) -> Response:
        return refusal("the server failed; its terminal says more", 500)

    routes = [
        *(Route(path, file) for path in files),
        Route("/api/experiment", experiment),
        Route("/api/draw", Drawing(painter, worker, room), methods=["POST"]),
    ]
    app = Starlette(
        routes=routes,
        exception_handlers={Refused: refused, HTTPException: http_error, Exception: failed},
    )
    app.router.redirect_slashes = False  # a redirect would repeat the request's Host
    return Guard(app, hosts)  # from outside: Starlette sends the answer of `failed` past its middleware
