"""Helpers for tests of `make play`: a server in this process with a painter that draws nothing, and a client."""

import http.client
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from stages.play.asked import read
from tests.conftest import HERE, SMOKE

NAMES = ["red cube", "cyan sphere", "gray cylinder"]
TWO = {"objects": [{"name": "red cube", "place": [0.3, 0.6]}, {"name": "cyan sphere"}]}
PIXEL = "data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7"
HEAD = b"POST /api/draw HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
RED = {"objects": [{"name": "red cube"}], "models": ["fake"]}


class FakePainter:
    """Takes `seconds` for each of ten steps, or of those asked for; counts what it draws, and what at once at most."""

    def __init__(self, seconds: float = 0.0):
        self.about = {"name": "fake", "models": [], "objects": []}
        self.seconds, self.drawn, self.stopped, self.now, self.most = seconds, 0, 0, 0, 0

    def read(self, body):
        return read(body, NAMES, {"fake": 10, "steppless": None})

    def draw(self, asked, tell, stop):
        from stages.play.server import Stopped

        self.now += 1
        self.most = max(self.most, self.now)
        try:
            steps = asked.steps or 10
            for step in range(1, steps + 1):
                if stop():
                    self.stopped += 1
                    raise Stopped
                time.sleep(self.seconds)
                views = {"pictures": [PIXEL], "noisy": [PIXEL]}
                tell({"event": "step", "model": "fake", "step": step, "of": steps, **views})
            if asked.seed == 13:
                raise ValueError("a secret of the server's")
            self.drawn += 1
            gif = {"gif": PIXEL} if asked.gif and steps > 1 else {}
            tell({"event": "done", "model": "fake", "seed": asked.seed, "seconds": 0.1, "pictures": [PIXEL], **gif})
        finally:
            self.now -= 1


def start(*arguments: str) -> subprocess.Popen:
    """Starts the command on the smoke configuration, at a free port."""
    command = [sys.executable, "-m", "stages.play", "--config", SMOKE, "--port", "0", *arguments]
    return subprocess.Popen(command, cwd=HERE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@contextmanager
def serving(painter, hosts=frozenset({"localhost", "127.0.0.1"}), room: int = 24) -> Iterator[int]:
    """Serves in threads of this process and gives the port."""
    import uvicorn

    from stages.play.connection import settings
    from stages.play.line import Worker
    from stages.play.server import application

    worker = Worker()
    app = application(painter, worker, hosts, room)
    with socket.create_server(("127.0.0.1", 0), backlog=256) as listening:
        server = uvicorn.Server(settings(app))
        threading.Thread(target=worker.run, daemon=True).start()
        thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
        thread.start()
        yield listening.getsockname()[1]
        server.should_exit = server.force_exit = True
        thread.join(10)


def ask(port: int, body=RED, method: str = "POST", path: str = "/api/draw", source: str = "127.0.0.1", **headers: str):
    """Sends one request. Returns status, headers and the body's lines; fails if no answer comes within a minute."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60, source_address=(source, 0))
    if method == "POST":
        headers = {"content-type": "application/json"} | {k.replace("_", "-"): v for k, v in headers.items()}
    content = body if isinstance(body, bytes | None) else json.dumps(body).encode()
    try:
        connection.request(method, path, content if method == "POST" else None, headers)
        answer = connection.getresponse()
        return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read().decode().splitlines()
    finally:
        connection.close()


def events_of(lines: list[str]) -> list[str]:
    return [json.loads(line)["event"] for line in lines]


def opened(port: int, until: bytes, asked: dict = RED) -> socket.socket:
    """A client that has sent its request and got as far as `until`."""
    body = json.dumps(asked).encode()
    connection = socket.create_connection(("127.0.0.1", port), timeout=20)
    connection.sendall(HEAD % len(body) + body)
    got = b""
    while until not in got:
        part = connection.recv(4096)
        assert part, got
        got += part
    return connection
