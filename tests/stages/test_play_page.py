"""The page of `make play` in a real browser: objects are placed, pictures come, a link brings everything back."""

import io
import os
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from tests.conftest import HERE, SMOKE
from tests.stages.browsing import DRAWN, drag, faking, labels, pictures, settled, watched
from tests.stages.playing import serving

LINK = "#objects=red cube at 0.300 0.600, cyan sphere&models=ldm,gan&steps=3&guidance=1.5&seed=7&count=8&marks=1"


@pytest.fixture(scope="module")
def address(chain) -> Iterator[str]:
    from stages import load
    from stages.play.painter import LibraryPainter

    folder = os.environ.get("PLAY")  # of a trained experiment, for a screenshot
    with serving(LibraryPainter(load(folder) if folder else load(HERE / SMOKE, f"root={chain}"))) as port:
        yield f"http://localhost:{port}/"


@pytest.fixture
def opened(browser, address):
    with watched(browser, address) as open_page:
        yield open_page


def test_objects_are_dragged_drawn_judged_and_come_back_with_the_link(opened):
    page = opened()
    drag(page, "#palette [data-name='red cube']", 0.3, 0.4)
    drag(page, "#palette [data-name='cyan sphere']", 0.7, 0.6)
    assert [re.match(r"(.* at [\d.]+ [\d.]+)\.", words)[1] for words in labels(page)] == [
        "red cube at 0.30 0.40",
        "cyan sphere at 0.70 0.60",
    ]
    page.click("#palette [data-name='gray cylinder']")
    assert len(labels(page, "#tray")) == 1 and page.text_content("#how-many") == "3 of 5"
    page.fill("#steps", "4")
    page.click("#draw")
    settled(page)
    words = page.locator("[data-model=ldm] .verdict li").all_text_contents()
    for verdict, name in zip(words, ["red cube", "cyan sphere", "gray cylinder"], strict=True):
        assert re.match(rf"{name} (not )?found", verdict)
    (last,) = pictures(page, "ldm")[:1]
    assert last.startswith("data:image/png") and page.locator("[data-model=ldm] .scrub").get_attribute("max") == "4"
    page.locator("[data-model=ldm] .scrub").fill("1")  # the steps can be looked at again
    assert pictures(page, "ldm")[0].startswith("data:image/jpeg")
    with page.expect_download() as got:
        page.click("[data-model=ldm] button:has-text('PNG')")
    image = Image.open(io.BytesIO(Path(got.value.path()).read_bytes()))
    assert image.size == (256, 256) and got.value.suggested_filename == "red-cube_cyan-sphere_gray-cylinder_ldm_0.png"
    with page.expect_download() as got:
        page.click("[data-model=ldm] button:has-text('GIF')")
    assert Image.open(io.BytesIO(Path(got.value.path()).read_bytes())).n_frames == 4

    page.uncheck("#models [value=ldm]")  # another model
    page.check("#models [value=gan]")
    page.click("#draw")
    page.wait_for_selector("[data-model=gan] .verdict li")
    settled(page)
    assert page.locator("[data-model]").count() == 1 and "takes no places" in page.text_content("[data-model=gan]")
    drawn, asked = pictures(page, "gan"), labels(page)
    page.reload()
    page.wait_for_selector("[data-model=gan] .verdict li")
    settled(page)
    assert labels(page) == asked and pictures(page, "gan") == drawn  # to the bit
    assert page.input_value("#steps") == "4" and page.is_checked("#models [value=gan]")


def test_with_the_shipped_weights_dragged_objects_are_drawn_and_seen_where_they_were_dropped(browser):
    from stages import load
    from stages.play.painter import LibraryPainter

    with (
        serving(LibraryPainter(load("scenes", device="cpu"))) as port,
        watched(browser, f"http://127.0.0.1:{port}/") as open_page,
    ):
        page = open_page()
        drag(page, "#palette [data-name='red cube']", 0.3, 0.4)
        drag(page, "#palette [data-name='cyan sphere']", 0.7, 0.6)
        page.click("#draw")
        settled(page)
        assert page.locator("[data-model] .verdict").count() == 3
        for model in ("ldm", "onestep", "gan"):
            for name in ("red cube", "cyan sphere"):
                words = page.locator(f"[data-model={model}] .verdict .found:has-text('{name}')").text_content()
                assert float(re.fullmatch(rf"{name} found, ([\d.]+) pixels off", words)[1]) < 2
        marks = page.evaluate("performance.getEntriesByType('mark').map((mark) => mark.name)")  # by their time
        assert marks == ["click", "first step", "picture"]


def test_a_link_brings_back_the_whole_state(opened):
    page = opened(LINK)
    settled(page)
    values = [page.input_value(f"#{name}") for name in ("steps", "guidance", "seed")]
    assert values == ["3", "1.5", "7"] and page.is_checked("#eight") and page.is_checked("#rings")
    assert page.is_checked("#models [value=ldm]") and page.is_checked("#models [value=gan]")
    assert labels(page)[0].startswith("red cube at 0.30 0.60") and labels(page, "#tray")[0].startswith("cyan sphere,")
    for model in ("ldm", "gan"):
        assert page.locator(f"[data-model={model}] .thumbs button").count() == 8
        assert len(set(pictures(page, model)[1:])) == 8  # eight variations, none like another
        page.click(f"[data-model={model}] .thumbs button:nth-child(5)")
        assert pictures(page, model)[0] == pictures(page, model)[5]
    assert page.locator("[data-model=ldm] .overlay circle").is_visible()
    asked = 'LABELS="red cube at 0.300 0.600, cyan sphere" MODEL=ldm COUNT=8 SEED=7'
    assert asked in page.text_content("#command")


def test_everything_goes_by_keyboard(opened):
    page = opened()
    page.focus("#palette [data-name='blue sphere']")
    page.keyboard.press("Enter")
    assert labels(page, "#tray")[0].startswith("blue sphere, anywhere")
    page.focus("#tray [data-name='blue sphere']")
    page.keyboard.press("ArrowUp")  # onto the middle of the floor
    for key in ("ArrowRight", "ArrowRight", "Shift+ArrowDown"):
        page.keyboard.press(key)
    assert labels(page)[0].startswith("blue sphere at 0.54 0.60")
    page.keyboard.press("Enter")
    assert labels(page) == [] and len(labels(page, "#tray")) == 1
    page.keyboard.press("Delete")
    assert labels(page, "#tray") == [] and page.is_disabled("#draw")


def test_fingers_drag_too_and_a_sixth_object_is_refused(opened):
    page = opened(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    for name in ("red cube", "blue cube", "gray cube", "green cube", "cyan cube", "brown cube"):
        page.tap(f"#palette [data-name='{name}']", force=True)  # the sixth says that it is disabled
    assert page.text_content("#how-many") == "5 of 5" and "at most 5" in page.text_content("#status")
    session = page.context.new_cdp_session(page)
    page.locator("#floor").scroll_into_view_if_needed()
    start, floor = (page.locator(w).bounding_box() for w in ("#tray [data-name='red cube']", "#floor"))
    down = (start["x"] + 12, start["y"] + 12)
    over = (floor["x"] + floor["width"] * 0.25, floor["y"] + floor["height"] * 0.75)
    for kind, points in (("touchStart", [down]), ("touchMove", [over]), ("touchEnd", [])):
        touches = [{"x": x, "y": y} for x, y in points]
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": touches})
    page.wait_for_selector("#placed [data-name='red cube']")
    assert labels(page)[0].startswith("red cube at 0.25 0.75")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390  # nothing sticks out


def test_no_text_of_a_link_becomes_part_of_the_page(opened):
    evil = "<img src=x onerror=alert(1)>"
    page = opened(
        f"#objects={evil}, red cube at 9 9, {evil} at 0.5 0.5, red cube&models={evil}&steps=1e9&seed=x&count={evil}"
    )
    assert page.locator("img[src=x]").count() == 0 and page.text_content("#how-many") == "1 of 5"
    assert labels(page)[0].startswith("red cube at 1.00 1.00") and page.input_value("#steps") == "100"
    settled(page)


def test_a_gif_shows_the_picture_of_its_card_whatever_the_scene_is_now(browser):
    page = browser.new_page()
    page.set_default_timeout(DRAWN)
    with serving(faking()) as port:
        page.goto(f"http://127.0.0.1:{port}/#objects=red cube at 0.300 0.600&models=fake&steps=3")
        settled(page)
        page.focus("#placed [data-name='red cube']")
        page.keyboard.press("ArrowRight")
        page.click("#palette [data-name='cyan sphere']")
        with page.expect_request("**/api/draw") as asked, page.expect_download():
            page.click("[data-model=fake] button:has-text('GIF')")
        assert asked.value.post_data_json["objects"] == [{"name": "red cube", "place": [0.3, 0.6]}]
        page.wait_for_selector("#status:has-text('The GIF is downloaded')")
        assert page.locator("[data-model=fake] button:has-text('GIF')").is_visible()
        page.fill("#steps", "1")  # nothing moves in one step
        page.click("#draw")
        settled(page)
        assert not page.locator("[data-model=fake] button:has-text('GIF')").is_visible()
    page.close()


def test_the_command_names_the_configuration_and_only_what_the_model_takes(browser):
    page = browser.new_page()
    page.set_default_timeout(DRAWN)
    with serving(faking(places=False)) as port:
        page.goto(f"http://127.0.0.1:{port}/#objects=red cube at 0.300 0.600&models=fake&steps=3&guidance=2")
        settled(page)
        command = 'make sample CONFIG=mine.yaml LABELS="red cube" MODEL=fake COUNT=1 SEED=0 FLAGS="--steps 3"'
        assert page.text_content("#command") == command  # neither places nor guidance
    page.close()


def test_a_stopped_drawing_and_a_server_that_is_gone_are_said_in_words(browser):
    painter = faking(seconds=2.0)  # long enough to be stopped on a loaded machine
    page = browser.new_page()
    page.set_default_timeout(DRAWN)
    with serving(painter) as port:
        page.goto(f"http://127.0.0.1:{port}/")
        page.click("#palette [data-name='red cube']")
        page.click("#draw")
        page.wait_for_selector("#draw:has-text('Stop')")
        page.click("#draw")
        page.wait_for_selector("#status:has-text('Stopped')")
        done = threading.Event()
        while painter.now and not done.wait(0.1):
            pass
        assert painter.stopped == 1
        busy = {"status": 502, "content_type": "text/plain", "body": "Bad gateway"}  # from a proxy, or uvicorn itself
        page.route("**/api/*", lambda one: one.fulfill(**busy))
        page.click("#draw")
        page.wait_for_selector("#error:has-text('answers 502')")
        page.unroute_all()
    page.click("#draw")
    page.wait_for_selector("#error:has-text('does not answer')")
    page.close()


@pytest.mark.skipif("PLAY" not in os.environ, reason="PLAY=experiment writes docs/play.png with its pictures")
def test_the_picture_of_the_documentation(opened):
    page = opened(
        "#objects=red cube at 0.35 0.42, cyan sphere at 0.66 0.55, yellow cylinder"
        "&models=ldm,onestep,gan&seed=1&steps=10",
        viewport={"width": 1500, "height": 860},
    )
    settled(page)
    picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    colours = picture.quantize(256, Image.Quantize.FASTOCTREE)  # the others lose the small shapes' colours
    picture.quantize(palette=colours).save(HERE / "docs/play.png", optimize=True)  # dithered
    assert (HERE / "docs/play.png").stat().st_size <= 150 * 1024
