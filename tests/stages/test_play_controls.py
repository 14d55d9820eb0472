"""The controls of the page of `make play` in a real browser, for hands, keys and screen readers. Nothing is drawn."""

import itertools
import math
import re
import shlex
import subprocess
import time
from contextlib import closing

import pytest

from tests.conftest import make
from tests.stages.browsing import DRAWN, FAKE, faking, labels, settled
from tests.stages.playing import PIXEL, serving


def test_a_screen_reader_is_told_each_controls_name_and_value(page_of):
    said = page_of(faking(guidance=2)).locator("#controls").aria_snapshot()
    for words in ('slider "Steps": "10"', 'slider "Guidance": "2"', 'spinbutton "Seed": "0"', 'button "Another seed"'):
        assert words in said
    assert said.count("- status") == 1  # the one that says how it goes


def test_a_drawing_can_be_stopped_while_the_seed_is_being_typed(page_of):
    painter = faking(seconds=2.0)
    page = page_of(painter, "#objects=red cube&models=fake")
    page.wait_for_selector("#draw:has-text('Stop')")
    page.fill("#seed", "")
    page.click("#draw")
    page.wait_for_selector("#status:has-text('Stopped')")
    page.click("#draw")  # a request must have a seed
    assert page.text_content("#draw") == "Draw"


def test_a_link_gives_a_seed_that_can_be_drawn_and_may_choose_no_model(page_of):
    page = page_of(faking(), "#objects=red cube&models=fake&seed=1.6")
    settled(page)
    assert page.input_value("#seed") == "2"
    page.uncheck("#models [value=fake]")
    page.reload()
    page.wait_for_selector("body[data-ready]")
    assert labels(page, "#tray")[0].startswith("red cube") and not page.is_checked("#models [value=fake]")


def test_hundreds_of_changes_in_a_moment_are_all_in_the_link(page_of):
    page = page_of(faking(guidance=1))
    page.evaluate(
        "window.calls = 0; const { replaceState } = history;"
        "history.replaceState = (...all) => (window.calls++, replaceState.apply(history, all));"
        "navigator.clipboard.writeText = async (text) => void (window.copied = text);"
    )
    page.evaluate(
        "for (let i = 0; i < 500; i++) {"
        " document.getElementById('guidance').value = i % 80 / 10;"
        " document.getElementById('guidance').dispatchEvent(new Event('input', { bubbles: true })); }"
    )
    page.click("#link")
    page.wait_for_selector("#status:has-text('Link copied')")
    assert "guidance=1.9" in page.evaluate("window.copied")
    page.wait_for_url(re.compile("guidance=1.9"))
    assert page.evaluate("window.calls") < 50  # browsers refuse a hundred


def test_two_fingers_drag_two_objects(page_of):
    page = page_of(faking(), has_touch=True)
    names = ("red cube", "cyan sphere")
    for name in names:
        page.click(f"#palette [data-name='{name}']")
    boxes = [page.locator(f"#tray [data-name='{name}']").bounding_box() for name in names]
    floor = page.locator("#floor").bounding_box()
    start = [(box["x"] + 12, box["y"] + 12) for box in boxes]
    end = [(floor["x"] + x * floor["width"], floor["y"] + y * floor["height"]) for x, y in ((0.2, 0.3), (0.8, 0.7))]
    session = page.context.new_cdp_session(page)
    for kind, points in (
        ("touchStart", {0: start[0]}),
        ("touchStart", {0: start[0], 1: start[1]}),
        ("touchMove", {0: end[0], 1: end[1]}),
        ("touchEnd", {1: end[1]}),  # the first finger is lifted
        ("touchEnd", {}),
    ):
        touches = [{"x": x, "y": y, "id": i} for i, (x, y) in points.items()]
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": touches})
    page.wait_for_selector("#placed [data-name='cyan sphere']")
    first, second = labels(page)
    assert first.startswith("red cube at 0.20 0.30.") and second.startswith("cyan sphere at 0.80 0.70.")


@pytest.mark.parametrize("element", ["[data-name]", ".remove"])
def test_after_an_object_is_removed_by_keyboard_the_focus_is_on_its_choice(page_of, element):
    page = page_of(faking())
    page.click("#palette [data-name='cyan sphere']")
    page.press(f"#tray {element}", "Enter" if element == ".remove" else "Delete")
    assert labels(page, "#tray") == []
    assert page.evaluate("document.activeElement.matches('#palette [data-name=\"cyan sphere\"]')")


def test_a_click_without_a_pointer_puts_an_object_onto_the_floor_and_back(page_of):
    page = page_of(faking(), "#objects=red cube")
    for before, after in (("#tray", "#placed"), ("#placed", "#tray")):
        page.dispatch_event(f"{before} [data-name]", "click")  # as a screen reader sends it, without a key
        assert labels(page, before) == [] and labels(page, after)[0].startswith("red cube")
    for key, where in (("Space", "#placed"), ("Enter", "#tray"), ("Enter", "#placed"), ("Space", "#tray")):
        page.keyboard.press(key)  # not once more by the click that a button makes of it
        assert labels(page, where)[0].startswith("red cube")


def test_objects_that_enter_puts_on_the_floor_do_not_cover_each_other(page_of):
    names = ("red cube", "cyan sphere", "blue cube", "gray cylinder", "green cube")
    painter = faking()
    painter.about["objects"] = [{"name": name} for name in names]
    page = page_of(painter, f"#objects={','.join(names)}&models=")  # nothing is drawn
    for name in names:
        page.focus(f"#tray [data-name='{name}']")
        page.keyboard.press("Enter")
    places = [[float(word) for word in re.findall(r"\d\.\d\d", label)] for label in labels(page)]
    assert [0.5, 0.5] in places and len(places) == 5
    boxes = [page.locator(f"#placed [data-name='{name}'] .under").bounding_box() for name in names]
    for one, other in itertools.combinations(boxes, 2):  # circles around the objects
        middles = [(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2) for box in (one, other)]
        assert math.dist(*middles) > (one["width"] + other["width"]) / 2 / 1.12


def test_a_choice_that_is_pressed_again_is_removed(page_of):
    page = page_of(faking(), "#objects=red cube at 0.3 0.4")
    choice = page.locator("#palette [data-name='red cube']")
    for pressed in ("false", "true", "false"):
        choice.click()
        assert choice.get_attribute("aria-pressed") == pressed
    assert page.text_content("#how-many") == "0 of 5" and page.text_content("#status") == "red cube removed"


def test_only_what_is_dragged_off_the_floor_is_removed(page_of):
    page = page_of(faking(), "#objects=red cube at 0.3 0.4")
    chosen = page.locator("#palette [data-name='red cube']").bounding_box()
    beside = (chosen["x"] + chosen["width"] / 2 + 20, chosen["y"] + chosen["height"] / 2)
    for source, left in (("#palette [data-name='red cube']", 1), ("#placed [data-name]", 0)):
        page.hover(source)
        page.mouse.down()
        page.mouse.move(*beside, steps=3)
        page.mouse.up()
        assert len(labels(page)) == left


def test_a_link_opened_or_a_surprise_during_a_drawing_is_drawn_instead(page_of):
    painter = faking(seconds=0.5)
    painter.about["objects"].pop()  # which the fake server does not know
    page = page_of(painter, "#objects=red cube&models=fake&seed=1")
    page.wait_for_selector("#draw:has-text('Stop')")
    with page.expect_request("**/api/draw") as asked:
        page.evaluate("location.hash = 'objects=cyan sphere&models=fake&seed=2'")
    assert asked.value.post_data_json["seed"] == 2
    page.wait_for_selector("#status:has-text('step')")
    with page.expect_request("**/api/draw") as asked:
        page.click("#surprise")
    objects = asked.value.post_data_json["objects"]
    painter.seconds = 0.0
    settled(page)
    names = ", ".join(one["name"] for one in objects)
    assert page.get_attribute("[data-model=fake] .large", "alt") == f"Fake: {names}"
    assert painter.drawn == 1 and painter.most == 1  # the others were stopped
    assert page.text_content("#draw") == "Draw" and page.locator("progress").is_hidden()


def test_while_the_server_draws_a_gif_is_not_offered_and_the_status_is_read_out(page_of):
    painter = faking()
    page = page_of(painter, "#objects=red cube&models=fake")
    settled(page)
    painter.seconds = 0.5
    gif = page.locator("[data-model=fake] button:has-text('GIF')")
    assert gif.is_enabled()
    gif.focus()
    page.keyboard.press("Enter")
    page.wait_for_selector("#results[aria-busy=true]")
    assert gif.is_disabled() and gif.evaluate("it => it === document.activeElement")
    assert page.locator("[aria-busy] #status, [aria-busy] #error").count() == 0
    painter.seconds = 0.0
    page.wait_for_selector("#status:has-text('The GIF is downloaded')")
    assert gif.is_enabled() and page.locator("[aria-busy]").count() == 0


def test_a_setting_that_no_chosen_model_takes_is_not_offered(page_of):
    painter = faking(guidance=None)
    painter.about["models"].append(FAKE | {"name": "steppless", "guidance": 11.5})
    page = page_of(painter, "#objects=red cube&models=fake")
    settled(page)
    assert page.is_disabled("#guidance") and page.text_content("#guidance-shown") == "–" and page.is_enabled("#steps")
    page.check("#models [value=steppless]")
    assert page.text_content("#guidance-shown") == "11.5"  # the experiment's own, beyond what the slider has for others
    page.uncheck("#models [value=fake]")
    with page.expect_request("**/api/draw") as asked:
        page.click("#draw")
    assert asked.value.post_data_json["guidance"] == 11.5


def test_the_page_says_which_machine_draws(page_of):
    assert page_of(faking()).text_content("#experiment") == "fake, 64×64 pixels, on this machine"
    others = page_of(faking(), host="studio.localhost")  # a name that every browser takes for this machine's
    assert others.text_content("#experiment") == "fake, 64×64 pixels, on studio.localhost"


SHADES = """() => {
  const shades = [...document.querySelectorAll("#light stop")].map((stop) => getComputedStyle(stop).stopColor);
  const of = (what, key) => getComputedStyle(document.querySelector(what))[key];
  document.querySelector("#placed .object").focus();
  return { floor: shades, hint: of("#hint", "fill"), rings: [of(".under", "stroke"), of(".under ~ .focus", "stroke")],
    small: [of(".chip .remove", "color"), of(".chip", "backgroundColor")] };
}"""


def contrast(one: str, other: str) -> float:
    """Returns the ratio of two colours "rgb(r, g, b)" as WCAG 2.2 defines it, 1 to 21."""

    def luminance(colour: str) -> float:
        shares = [int(value) / 255 for value in re.findall(r"\d+", colour)[:3]]
        linear = [share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4 for share in shares]
        return sum(weight * value for weight, value in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_words_and_the_ring_of_the_focus_are_seen_on_their_ground(page_of, scheme):
    page = page_of(faking(), "#objects=red cube at 0.5 0.5, cyan sphere", color_scheme=scheme)
    page.press("#placed .object", "ArrowUp")  # a key shows the focus
    shades = page.evaluate(SHADES)
    assert all(contrast(shades["hint"], shade) >= 4.5 for shade in shades["floor"][:2])  # the middle, where it stands
    assert all(max(contrast(ring, shade) for ring in shades["rings"]) >= 3 for shade in shades["floor"])
    assert contrast(*shades["small"]) >= 4.5


def test_the_command_of_a_model_with_a_fixed_number_of_steps_has_its_guidance_alone(page_of):
    painter = faking(guidance=2)
    for key in ("steps", "most_steps"):
        del painter.about["models"][0][key]
    page = page_of(painter, "#objects=red cube&models=fake&guidance=3")
    settled(page)
    assert page.is_disabled("#steps") and page.is_enabled("#guidance")
    assert page.text_content("#command").endswith(' SEED=0 FLAGS="--guidance 3"')


def test_an_experiments_guidance_is_the_pages_too(page_of):
    assert page_of(faking(guidance=1.25)).text_content("#guidance-shown") == "1.25"
    assert page_of(faking(guidance=1.3)).get_attribute("#guidance", "step") == "0.1"


def test_a_screen_reader_is_told_which_of_many_steps_is_seen(page_of):
    painter = faking()
    event = {"event": "step", "model": "fake", "of": 50, "pictures": [PIXEL], "noisy": [PIXEL]}

    def draw(asked, tell, stop):
        for step in (1, 20, 50):  # of many steps only some are shown
            tell(event | {"step": step})
        tell({"event": "done", "model": "fake", "seconds": 0.1, "pictures": [PIXEL]})

    painter.draw = draw
    page = page_of(painter, "#objects=red cube&models=fake")
    settled(page)
    scrub = page.locator("[data-model=fake] .scrub")
    for place, words in (("3", "step 50 of 50"), ("2", "step 20 of 50")):
        scrub.fill(place)
        assert scrub.get_attribute("aria-valuetext") == words


@pytest.mark.parametrize("name", ['a "large" thing', "of 5$ $HOME", "a `pwd` $(pwd)", "it's 5$ \\"])
def test_a_pasted_command_asks_for_a_name_with_signs_of_the_shell(page_of, name):
    painter = faking()
    painter.about |= {"objects": [{"name": name}], "command": "make sample"}
    page = page_of(painter)
    page.click("#palette button")
    recipe = make("-n", *shlex.split(page.text_content("#command"))[1:]).stdout
    run = f'set -- {recipe.rpartition("--labels ")[2]}printf %s "$1"'  # as the recipe's shell reads it
    assert subprocess.run(["sh", "-c", run], capture_output=True, text=True).stdout == name


def test_a_full_server_is_asked_again_after_the_time_it_names(browser):
    painter, asked = faking(), []

    def answer(route):
        asked.append(time.monotonic())
        busy = {"status": 503, "headers": {"retry-after": "1"}, "json": {"error": "busy; try again"}}
        route.continue_() if len(asked) == 3 else route.fulfill(**busy)

    with serving(painter) as port, closing(browser.new_page()) as page:
        page.set_default_timeout(DRAWN)
        page.goto(f"http://127.0.0.1:{port}/")
        page.route("**/api/draw", answer)
        page.click("#palette [data-name='red cube']")
        page.click("#draw")
        page.wait_for_selector("#status:has-text('next try in 1 s')")
        settled(page)
        assert len(asked) == 3 and asked[1] - asked[0] > 0.9 and painter.drawn == 1
        page.click("#draw")
        page.wait_for_selector("#error:has-text('busy; try again')")  # it gives up some time
        assert len(asked) == 8
        page.click("#draw")
        page.wait_for_selector("#status:has-text('next try')")
        page.click("#draw")  # a pause can be stopped too
        page.wait_for_selector("#status:has-text('Stopped')")
        assert len(asked) == 9
