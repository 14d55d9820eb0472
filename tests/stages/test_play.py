"""`make play`: what it refuses, how it queues, who may ask."""

import asyncio
import base64
import io
import json
import re
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from PIL import Image

from tests.conftest import HERE, SMOKE, finish
from tests.stages.playing import HEAD, RED, TWO, FakePainter, ask, events_of, opened, serving, start

pytest.importorskip("uvicorn", reason="the extra [play] is not installed: make play")
pytest.importorskip("starlette", reason="the extra [play] is not installed: make play")


@pytest.fixture
def fake():
    painter = FakePainter()
    with serving(painter) as port:
        yield painter, port


@pytest.fixture(scope="module")
def playing(chain):
    """The command itself with the smoke weights: its port."""
    process = start(f"root={chain}")
    said = process.stdout.readline()
    found = re.search(r"http://127\.0\.0\.1:(\d+)", said)
    assert found, said + str(finish(process))
    yield int(found[1])
    process.send_signal(signal.SIGINT)
    status, said = finish(process)
    assert (status, said.split()) == (130, ["stopped"])


MANY = [{"name": name} for name in ("red cube", "cyan sphere", "gray cylinder")]
MALFORMED = [
    b"",
    b"{",
    b"null",
    b"[]",
    b'"red cube"',
    b"\xff\xfe",
    b'{"objects": [{"name": "\xed\xa0\x80"}], "models": ["fake"]}',
    b"[" * 4000,
    b'{"a":' * 800,
    {},
    {"objects": []},
    {"models": ["fake"]},
    RED | {"objects": "red cube"},
    RED | {"objects": [{"name": "red car"}]},
    RED | {"objects": [{"name": "<img src=x onerror=alert(1)>"}]},
    RED | {"objects": [{"name": 3}]},
    RED | {"objects": [{"name": "red cube"}] * 2},
    RED | {"objects": MANY * 2},
    RED | {"objects": [{"name": "red cube", "place": [0.5]}]},
    RED | {"objects": [{"name": "red cube", "place": [0.5, 1.5]}]},
    RED | {"objects": [{"name": "red cube", "place": [-0.5, 0.5]}]},
    RED | {"objects": [{"name": "red cube", "place": ["0.5", 0.5]}]},
    RED | {"objects": [{"name": one["name"], "place": [0.5, 0.5]} for one in MANY]},
    b'{"objects": [{"name": "red cube", "place": [NaN, 0.5]}], "models": ["fake"]}',
    b'{"objects": [{"name": "red cube", "place": [1e999, 0.5]}], "models": ["fake"]}',
    RED | {"models": []},
    RED | {"models": ["../../etc/passwd"]},
    RED | {"models": ["fake", "fake"]},
    RED | {"count": 0},
    RED | {"count": 9},
    RED | {"count": True},
    RED | {"count": 1.5},
    RED | {"seed": -1},
    RED | {"seed": 2**31},
    RED | {"steps": 0},
    RED | {"steps": 11},
    RED | {"steps": "10"},
    RED | {"guidance": -1},
    RED | {"guidance": 20.5},
    RED | {"unknown\n<key>": 1},
]


def assert_refused(status, headers, lines, *allowed):
    assert status in (allowed or (400,))
    assert headers["content-type"] == "application/json"
    assert len(lines) == 1
    words = json.loads(lines[0])["error"]
    assert words and "\n" not in words and "Traceback" not in words


def test_a_malformed_request_is_answered_by_one_line_of_json(fake):
    painter, port = fake
    for body in MALFORMED:
        assert_refused(*ask(port, body))
    assert painter.drawn == 0
    assert events_of(ask(port)[2])[-2:] == ["done", "end"]


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"body": b" " * 5000}, 413),
        ({"content_type": "text/plain"}, 415),
        ({"content_type": "application/x-www-form-urlencoded"}, 415),
        ({"path": "/api/nothing"}, 404),
        ({"path": "/api/draw/"}, 404),
        ({"method": "GET"}, 405),
        ({"method": "GET", "path": "/../../../../etc/passwd"}, 404),
        ({"method": "GET", "path": "/%2e%2e/%2e%2e/etc/passwd"}, 404),
        ({"method": "GET", "path": "/server.py"}, 404),
        ({"method": "GET", "path": "//page.html"}, 404),
        ({"method": "GET", "path": "/page.js%00.html"}, 404),
        ({"method": "DELETE", "path": "/"}, 405),
        ({"host": "evil.example"}, 403),
        ({"host": "evil.example:80"}, 403),
        ({"host": "localhost.evil.example"}, 403),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "https://evil.example"}, 403),
        ({"host": "evil.example", "origin": "https://evil.example"}, 403),  # a name that was pointed here
        ({"origin": "ftp://127.0.0.1"}, 403),
        ({"origin": "null"}, 403),
    ],
)
def test_what_is_not_served_is_one_line_of_json(fake, changes, status):
    answer = ask(fake[1], **changes)
    assert_refused(*answer, status)
    assert ask(fake[1])[0] == 200


def test_only_this_machines_names_are_served_unless_it_listens_to_others(fake):
    port = fake[1]
    for name in (f"localhost:{port}", f"127.0.0.1:{port}", "LOCALHOST"):
        assert ask(port, host=name, origin=f"http://{name}")[0] == 200
        assert ask(port, host=name, origin=f"https://{name}")[0] == 200  # behind a proxy with TLS
    with serving(FakePainter(), hosts=None) as open_port:
        assert ask(open_port, host="my-machine:80", origin="http://my-machine:80")[0] == 200
        for scheme in ("http", "https"):
            assert ask(open_port, host="my-machine", origin=f"{scheme}://evil.example")[0] == 403


def test_broken_http_does_not_stop_the_server(fake):
    for sent in (b"\0\0\0\r\n\r\n", b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n", b"A" * 70000):
        with socket.create_connection(("127.0.0.1", fake[1]), timeout=10) as connection:
            connection.sendall(sent)
            connection.shutdown(socket.SHUT_WR)
            answer = connection.recv(100)
            assert answer == b"" or answer.startswith(b"HTTP/1.1 4")
    assert ask(fake[1])[0] == 200


def test_every_answer_allows_the_page_its_own_files_alone(fake):
    port = fake[1]
    for path in ("/", "/page.js", "/scene.js", "/card.js", "/shapes.js", "/page.css", "/api/experiment", "/no"):
        _, headers, _ = ask(port, method="GET", path=path)
        policy = headers["content-security-policy"]
        assert policy.startswith("default-src 'none'") and "unsafe" not in policy and "http" not in policy
        assert all(f"{rule} 'none'" in policy for rule in ("frame-ancestors", "form-action", "base-uri"))  # no default
        assert headers["x-content-type-options"] == "nosniff" and headers["referrer-policy"] == "no-referrer"
        assert headers["cross-origin-opener-policy"] == headers["cross-origin-resource-policy"] == "same-origin"
        assert headers["cache-control"] == "no-store"  # the page is of the server's version
        assert not [name for name in headers if name.startswith("access-control")]
    page = "\n".join(ask(port, method="GET", path="/")[2])
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\son\w+=|\sstyle=", page)  # the policy would block these
    assert not re.search(r"(src|href)=\"(?!/[a-z]|data:)", page)  # nothing from the network
    scripts = [
        line for path in ("page", "scene", "card", "shapes") for line in ask(port, method="GET", path=f"/{path}.js")[2]
    ]
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|https?://(?!www\.w3\.org)", "\n".join(scripts)
    )


def test_of_a_hundred_at_once_each_is_served_or_told_to_come_back():
    painter = FakePainter(seconds=0.02)
    with serving(painter, room=24) as port, ThreadPoolExecutor(100) as pool:
        answers = list(pool.map(lambda seed: ask(port, RED | {"seed": 100 + seed}), range(100)))
    served = [lines for status, _, lines in answers if status == 200]
    refused = [answer for answer in answers if answer[0] == 503]
    assert len(served) + len(refused) == 100 and len(served) >= 24 and refused
    assert all(events_of(lines)[-2:] == ["done", "end"] for lines in served)
    assert painter.drawn == len(served) and painter.most == 1
    for answer in refused:
        assert_refused(*answer, 503)
        assert 1 <= int(answer[1]["retry-after"]) <= 60


def test_a_client_that_goes_away_frees_its_place():
    painter = FakePainter(seconds=0.5)
    with serving(painter, room=3) as port:
        drawing = opened(port, b'"step"')
        waiting = [opened(port, b'"queued"') for _ in range(2)]
        assert ask(port)[0] == 503
        for client in waiting:
            client.close()
        time.sleep(1.5)  # they are missed at the next beat
        third = opened(port, b'"queued"')  # there is room again
        began = time.monotonic()
        drawing.close()
        painter.seconds = 0.0
        while third.recv(4096) and time.monotonic() < began + 20:
            if painter.drawn:
                break
        assert painter.stopped == 1 and painter.drawn == 1  # the first was not drawn to its end
        third.close()
        assert events_of(ask(port)[2])[-1] == "end"


def test_waiting_and_drawing_have_their_limits(monkeypatch):
    monkeypatch.setattr("stages.play.server.PATIENCE", 0.2)
    monkeypatch.setattr("stages.play.server.LONGEST", 1.0)
    painter = FakePainter(seconds=0.2)
    with serving(painter) as port, ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: ask(port)[2], range(2))
    words = sorted(line for lines in (first, second) for line in lines if '"error"' in line)
    assert len(words) == 2 and "the drawing was stopped" in words[0] and "waited" in words[1]
    assert painter.drawn == 0 and painter.now == 0


def test_a_request_that_never_ends_is_given_up(monkeypatch):
    monkeypatch.setattr("stages.play.server.SLOW", 0.3)
    with serving(FakePainter(), room=1) as port:
        with socket.create_connection(("127.0.0.1", port), timeout=20) as slow:
            slow.sendall(HEAD % 9 + b"{")
            assert slow.recv(4096).startswith(b"HTTP/1.1 408")
        assert ask(port)[0] == 200


def test_a_client_that_takes_nothing_is_given_up_and_frees_its_place(monkeypatch):
    from stages.play.line import Worker
    from stages.play.server import Drawing

    monkeypatch.setattr("stages.play.server.SLOW", 0.2)
    worker, body = Worker(), [{"type": "http.request", "body": json.dumps(RED).encode()}]
    threading.Thread(target=worker.run, daemon=True).start()

    async def receive():
        return body.pop() if body else await asyncio.Event().wait()

    async def send(message):
        if message["type"] == "http.response.body":
            await asyncio.Event().wait()  # its buffers are full

    async def one() -> Drawing:
        drawing = Drawing(FakePainter(), worker)
        scope = {"type": "http", "method": "POST", "headers": [(b"content-type", b"application/json")]}
        await asyncio.wait_for(drawing(scope, receive, send), 60)
        return drawing

    assert asyncio.run(one()).line.turns == []


def test_a_fault_outside_a_drawing_is_one_line_of_json(fake):
    painter, port = fake
    painter.read = lambda body: 1 / 0
    answer = ask(port)
    assert_refused(*answer, 500)
    assert answer[1]["x-content-type-options"] == "nosniff"
    del painter.read
    assert ask(port)[0] == 200


def test_a_fault_of_the_server_tells_the_client_nothing_of_itself(fake, caplog):
    _, _, lines = ask(fake[1], RED | {"seed": 13})
    assert events_of(lines)[-2:] == ["error", "end"]
    assert "secret" not in "".join(lines) and "Traceback" not in "".join(lines)
    assert "a secret of the server's" in caplog.text  # its own terminal has it
    assert events_of(ask(fake[1])[2])[-1] == "end"


def picture(url: str) -> Image.Image:
    kind, _, text = url.partition(";base64,")
    assert kind.startswith("data:image/")
    return Image.open(io.BytesIO(base64.b64decode(text)))


def test_the_pictures_are_the_librarys_with_steps_and_verdicts(playing, chain):
    from stages import load

    asked = TWO | {"models": ["ldm", "gan"], "count": 8, "seed": 3, "steps": 4, "guidance": 1.5, "gif": True}
    status, headers, lines = ask(playing, asked)
    assert status == 200 and headers["content-type"] == "application/x-ndjson"
    events = [json.loads(line) for line in lines]
    steps = [event for event in events if event["event"] == "step"]
    assert [(event["model"], event["step"], event["of"]) for event in steps] == [("ldm", i, 4) for i in (1, 2, 3, 4)]
    assert all(picture(url).size == (64, 64) for event in steps for url in event["pictures"] + event["noisy"])
    ldm, gan = (event for event in events if event["event"] == "done")
    experiment = load(HERE / SMOKE, f"root={chain}", device="cpu")
    placed = "red cube at 0.3 0.6, cyan sphere"
    for event, of in (
        (ldm, experiment.draw(placed, 8, 3, model="ldm", steps=4, guidance=1.5)),
        (gan, experiment.draw("red cube, cyan sphere", 8, 3, model="gan")),  # it takes no places
    ):
        assert [picture(url).tobytes() for url in event["pictures"]] == [one.tobytes() for one in of]
        assert [[v["object"] for v in one] for one in event["verdicts"]] == [["red cube", "cyan sphere"]] * 8
    words = [[v["found"] for v in one] for one in ldm["verdicts"]]
    assert words == [[v.found for v in one] for one in experiment.judge([picture(u) for u in ldm["pictures"]], placed)]
    assert picture(ldm["gif"]).n_frames == 4 and "gif" not in gan


def test_the_command_serves_this_machines_names_alone(playing):
    for name in ("localhost", "127.0.0.1", "[::1]"):
        for host in (name, f"{name}:{playing}"):
            assert ask(playing, method="GET", path="/", host=host)[0] == 200
    assert_refused(*ask(playing, method="GET", path="/", host="evil.example"), 403)


def test_two_hundred_requests_twenty_at_once_lose_nothing(playing):
    def one(seed: int) -> list[str]:
        status, _, lines = ask(playing, {"objects": MANY[:1], "models": ["gan"], "seed": seed})
        return [str(status), *events_of(lines)[-2:]]

    with ThreadPoolExecutor(20) as pool:
        assert list(pool.map(one, range(200))) == [["200", "done", "end"]] * 200


def test_a_wish_that_the_models_cannot_fulfil_is_refused(playing, chain):
    assert_refused(*ask(playing, TWO | {"models": ["ddpm"]}))
    assert_refused(*ask(playing, TWO | {"models": ["ldm"], "steps": 101}))  # smoke has a hundred timesteps
    about = json.loads(ask(playing, method="GET", path="/api/experiment")[2][0])
    assert [model["name"] for model in about["models"]] == ["ldm", "gan"]
    assert [model["places"] for model in about["models"]] == [True, False]
    assert about["command"] == f"make sample CONFIG={SMOKE} SET=root={chain}"
    assert about["objects"][1] == {"name": "red cube", "shape": "cube", "colour": "#ad2323"}
