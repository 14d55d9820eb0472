"""The cards of the page of `make play` in a real browser: pictures, steps, verdicts, and what is said of failures."""

import pytest

from tests.stages.browsing import DRAWN, faking, labels, pictures, settled
from tests.stages.playing import PIXEL, serving

TWO = "#objects=red cube at 0.2 0.3, cyan sphere&models=fake&seed=4"


def told(*events: dict):
    """A painter that tells these events of two pictures."""
    painter = faking()
    painter.about["limits"]["count"] = 2
    painter.draw = lambda asked, tell, stop: [tell({"model": "fake"} | event) for event in events]
    return painter


def named(name: str) -> str:
    """A picture's URL that shows its name to the test alone."""
    return PIXEL.replace("image/gif", f"image/gif;name={name}")


def both(name: str) -> list[str]:
    return [named(f"{name}-{i}") for i in range(2)]


def verdict(name: str, found: bool, pixels: float | None = None, instead: str | None = None) -> dict:
    return {"object": name, "found": found, "pixels": pixels, "instead": instead}


STEPS = [
    {"event": "step", "step": step, "of": 2, "pictures": both(f"clean{step}"), "noisy": both(f"noisy{step}")}
    for step in (1, 2)
]
SEEN = [
    [verdict("red cube", True, 1.26), verdict("cyan sphere", True)],
    [verdict("red cube", True, 0.0), verdict("cyan sphere", False, instead="gray cube")],
]
DONE = {"event": "done", "seconds": 1.23, "pictures": both("done"), "verdicts": SEEN}


def test_a_card_shows_each_picture_with_its_steps_noise_places_and_verdicts(page_of):
    page = page_of(told(*STEPS, DONE), TWO + "&count=2&marks=1&noise=1")
    settled(page)
    assert page.text_content("#status") == "Done: Fake 3 of 4 found"
    assert page.text_content(".total") == "3 of 4 objects found" and page.text_content(".time") == "1.2 s"
    assert page.is_checked("#noise")
    ring = page.locator(".overlay circle")
    assert [ring.get_attribute(key) for key in ("cx", "cy")] == ["20", "30"]
    said = [page.locator(".thumbs button").nth(i).get_attribute("aria-label") for i in range(2)]
    assert said == ["Picture 1, all found", "Picture 2, 1 not found"]
    assert page.locator(".verdict li").all_text_contents() == ["red cube found, 1.3 pixels off", "cyan sphere found"]
    assert pictures(page, "fake") == [named("done-0"), *both("done")]  # at the end nothing is noisy
    page.click(".thumbs button:nth-child(2)")
    assert page.locator(".verdict li").all_text_contents() == [
        "red cube found, 0.0 pixels off",
        "cyan sphere not found, rather a gray cube",
    ]
    assert page.get_attribute(".large", "alt") == "Fake: red cube, cyan sphere, picture 2"
    page.locator(".scrub").fill("1")
    assert pictures(page, "fake")[0] == named("noisy1-1")
    page.uncheck("#noise")
    assert pictures(page, "fake")[0] == named("clean1-1")


@pytest.mark.parametrize(
    ("events", "words"),
    [([{"event": "error", "error": "out of memory"}], "out of memory"), ([], "The server closed the connection")],
)
def test_a_drawing_that_fails_is_said_and_leaves_what_it_had(page_of, events, words):
    painter = told(STEPS[0], *events)
    page = page_of(painter)
    if not events:
        cut = '{"event": "queued", "ahead": 0}\n'
        page.route("**/api/draw", lambda one: one.fulfill(body=cut, content_type="application/x-ndjson"))
    page.click("#palette [data-name='red cube']")
    page.click("#draw")
    page.wait_for_selector(f"#error:has-text('{words}')")
    assert page.text_content("#draw") == "Draw" and page.text_content("#status") == ""
    assert page.locator(".result.unfinished").count() == 1 and page.locator("progress").is_hidden()
    page.unroute_all()
    painter.draw = lambda asked, tell, stop: tell({"model": "fake"} | DONE | {"pictures": [PIXEL]})
    page.click("#draw")
    settled(page)  # the error is gone
    assert page.locator(".result.unfinished").count() == 0


def test_a_page_whose_server_is_lost_before_it_starts_says_so(browser):
    page = browser.new_page()
    page.set_default_timeout(DRAWN)
    with serving(faking()) as port:
        page.route("**/api/experiment", lambda one: one.abort())
        page.goto(f"http://127.0.0.1:{port}/")
        page.wait_for_selector("#error:has-text('does not answer')")
    page.close()


def test_a_drag_ends_with_escape_and_clear_empties_the_scene(page_of):
    page = page_of(faking(), "#objects=red cube at 0.2 0.3, cyan sphere at 0.6 0.2&models=")
    assert [one[:11] for one in labels(page)] == ["cyan sphere", "red cube at"]  # what is nearer is in front
    floor = page.locator("#floor").bounding_box()
    page.hover("#placed [data-name='red cube']")
    page.mouse.down()
    page.mouse.move(floor["x"] + floor["width"] / 2, floor["y"] + floor["height"] / 2, steps=3)
    assert page.locator(".ghost").count() == 1
    page.keyboard.press("Escape")
    page.mouse.up()
    assert page.locator(".ghost, .dragged").count() == 0 and labels(page)[1].startswith("red cube at 0.20 0.30")
    before = page.input_value("#seed")
    page.evaluate("Math.random = () => 0.5")
    page.click("#dice")
    assert page.input_value("#seed") == "50000" != before
    page.click("#clear")
    assert labels(page) == [] and page.text_content("#how-many") == "0 of 5"
    page.go_back()
    page.wait_for_selector("#how-many:has-text('2 of 5')")
    assert labels(page)[1].startswith("red cube at 0.20 0.30")


def test_the_browsers_own_keys_move_no_object(page_of):
    page = page_of(faking(), "#objects=red cube at 0.2 0.3&models=")
    before = labels(page)
    for key in ("Control+ArrowLeft", "Alt+ArrowRight", "Meta+ArrowUp", "Control+Backspace", "Control+Enter"):
        page.locator("#placed .object").press(key)
        assert labels(page) == before
    page.locator("#placed .object").press("ArrowLeft")
    assert labels(page) != before
