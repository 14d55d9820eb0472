"""`make play`: how long a client may hold a connection, and how many."""

import asyncio
import http.client
import json
import socket
import time
from contextlib import closing, suppress

import pytest

from stages.play.line import call_soon
from tests.stages.playing import HEAD, RED, FakePainter, ask, events_of, serving

pytest.importorskip("uvicorn", reason="the extra [play] is not installed: make play")

WHOLE = b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n"
UNREAD = b"DELETE / HTTP/1.1\r\nhost: localhost\r\ncontent-length: 9999\r\n\r\n"  # answered before its body is here


def is_closed(connection: socket.socket) -> bool:
    """Returns whether the server has closed it, or does within the connection's timeout."""
    try:
        while connection.recv(4096):
            pass
    except ConnectionError:
        return True
    except TimeoutError:
        return False
    return True


@pytest.mark.parametrize("sent", [b"", b"GET / HTTP/1.1\r\nhost: local", WHOLE + b"GET / HTTP/1.1\r\nx: ", UNREAD])
def test_a_connection_without_a_whole_request_is_closed(monkeypatch, sent):
    monkeypatch.setattr("stages.play.connection.SLOW", 0.3)
    with serving(FakePainter()) as port, socket.create_connection(("127.0.0.1", port), timeout=0.1) as slow:
        slow.sendall(sent)
        limit = time.monotonic() + 15  # half of what a connection may be idle
        while not is_closed(slow):
            assert time.monotonic() < limit
            with suppress(ConnectionError):
                slow.sendall(b"a" if sent else b"")  # byte after byte, none of them the last


def test_a_drawing_and_an_idle_connection_outlast_what_a_request_may_take(monkeypatch):
    monkeypatch.setattr("stages.play.connection.SLOW", 0.3)
    with serving(FakePainter(seconds=0.1)) as port:
        assert events_of(ask(port)[2])[-2:] == ["done", "end"]
        with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=20)) as client:
            client.connect()
            for _ in range(2):
                client.request("GET", "/")
                assert client.getresponse().read()
                time.sleep(0.6)


def test_one_address_cannot_take_all_connections(monkeypatch):
    monkeypatch.setattr("stages.play.connection.CONNECTIONS", 8)
    monkeypatch.setattr("stages.play.connection.PER_ADDRESS", 4)
    with serving(FakePainter()) as port:
        held = [socket.create_connection(("127.0.0.1", port), timeout=5) for _ in range(12)]
        assert all(is_closed(one) for one in held[4:])  # at once: of the others the time is not over
        assert ask(port, source="127.0.0.2")[0] == 200
        for one in held:
            one.close()
        time.sleep(0.5)
        assert ask(port)[0] == 200


def test_of_all_connections_too_many_are_closed_and_the_others_still_served(monkeypatch):
    monkeypatch.setattr("stages.play.connection.CONNECTIONS", 8)
    with serving(FakePainter()) as port:
        sources = [("127.0.0.2", 0), ("127.0.0.3", 0)]
        held = [socket.create_connection(("127.0.0.1", port), 5, sources[n % 2]) for n in range(12)]
        assert all(is_closed(one) for one in held[8:])
        held[0].sendall(WHOLE)
        assert held[0].recv(12) == b"HTTP/1.1 200"
        for one in held:
            one.close()


def test_a_slow_client_gets_a_large_event_whole(monkeypatch):
    """It takes longer than SLOW for the event, but less for each piece."""
    monkeypatch.setattr("stages.play.connection.SLOW", 1.0)
    monkeypatch.setattr("stages.play.server.SLOW", 1.0)
    painter, size = FakePainter(), 2**24
    painter.draw = lambda asked, tell, stop: tell({"event": "step", "pictures": ["a" * size]})
    with serving(painter) as port, socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**16)
        client.settimeout(20)
        client.connect(("127.0.0.1", port))
        client.sendall(HEAD % len(ASKED) + ASKED)
        began, taken, last = time.monotonic(), 0, b""
        while part := client.recv(2**16):
            taken, last = taken + len(part), (last + part)[-200:]
            if b'"end"' in last:
                break
            time.sleep(0.01)
        assert taken > size and time.monotonic() - began > 1.5


ASKED = json.dumps(RED).encode()
FILES = b"GET /page.js HTTP/1.1\r\nhost: localhost\r\n\r\n" * 900


@pytest.mark.parametrize("sent", [HEAD % len(ASKED) + ASKED, FILES])
def test_the_connection_of_a_client_that_takes_nothing_is_closed(monkeypatch, sent):
    monkeypatch.setattr("stages.play.connection.SLOW", 0.3)
    monkeypatch.setattr("stages.play.connection.PER_ADDRESS", 1)
    painter = FakePainter()
    painter.draw = lambda asked, tell, stop: tell({"event": "step", "pictures": ["a" * 2**23]})
    with serving(painter) as port, socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", port))
        client.sendall(sent)
        limit = time.monotonic() + 15  # half of what a connection may be idle
        while True:  # the server has no room for a second connection before it has closed the first
            with suppress(ConnectionError, http.client.HTTPException):
                assert ask(port, method="GET", path="/")[0] == 200
                break
            assert time.monotonic() < limit
            time.sleep(0.1)


def test_a_drawing_that_outlives_the_server_does_not_fail():
    """What it tells then reaches nobody, and the thread that draws goes on."""
    loop, told = asyncio.new_event_loop(), []
    call_soon(loop, lambda: told.append("while it runs"))
    call_soon(loop, loop.stop)
    loop.run_forever()
    loop.close()
    call_soon(loop, lambda: told.append("after its end"))
    assert told == ["while it runs"]
