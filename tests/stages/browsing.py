"""Helpers for tests of the page of `make play` in Chromium."""

import shutil
from contextlib import ExitStack, contextmanager

from tests.stages.playing import FakePainter, serving

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
QUIET = ("gpu", "quic", "background-networking", "component-update", "sync", "dev-shm-usage")  # what it must not use
DRAWN = 120_000  # ms that a drawing may take on a loaded machine
FAKE = {"name": "fake", "title": "Fake", "places": True, "guidance": None, "steps": 10, "most_steps": 10}


@contextmanager
def chromium():
    """Yields a Chromium without a window."""
    from playwright.sync_api import sync_playwright

    # Chromium's sandbox needs user namespaces, which root and many containers lack; it loads this machine's page alone
    switches = ["--no-sandbox", "--no-first-run", *(f"--disable-{name}" for name in QUIET)]
    with sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=CHROMIUM, args=switches)
        yield started
        started.close()


@contextmanager
def watched(browser, address: str):
    """Yields what opens pages, and fails if one says anything in its console or asks for anything elsewhere."""
    contexts, faults = [], []

    def open_page(link: str = "", **options):
        context = browser.new_context(**({"viewport": {"width": 1280, "height": 900}} | options))
        context.set_default_timeout(DRAWN)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: faults.append(message.text))
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("request", lambda one: one.url.startswith((address, "data:", "blob:")) or faults.append(one.url))
        page.goto(address + link)
        page.wait_for_selector("body[data-ready]")
        return page

    try:
        yield open_page
    finally:
        for context in contexts:
            context.close()
    assert faults == []


@contextmanager
def opening(browser):
    """Yields what opens the page of a painter."""
    with ExitStack() as stack:

        def open_page(painter, link: str = "", host: str = "localhost", **options):
            port = stack.enter_context(serving(painter, hosts=None))
            return stack.enter_context(watched(browser, f"http://{host}:{port}/"))(link, **options)

        yield open_page


def settled(page):
    """Waits until a drawing has ended well."""
    page.wait_for_selector("#status:has-text('Done'), #error:not(:empty)")
    assert page.text_content("#error") == ""


def drag(page, source: str, x: float, y: float) -> None:
    """Drags an element to a place on the floor, in parts of its side."""
    box = page.locator("#floor").bounding_box()
    page.hover(source)
    page.mouse.down()
    for part in (0.5, 1.0):
        page.mouse.move(box["x"] + box["width"] * x * part, box["y"] + box["height"] * y, steps=3)
    page.mouse.up()


def labels(page, where: str = "#placed") -> list[str]:
    return [one.get_attribute("aria-label").split(".  ")[0] for one in page.locator(f"{where} [data-name]").all()]


def pictures(page, model: str) -> list[str]:
    return [one.get_attribute("src") for one in page.locator(f"[data-model={model}] img").all()]


def faking(seconds: float = 0.0, **facts):
    """A painter that draws nothing, with what the page needs to know of it."""
    painter = FakePainter(seconds)
    painter.about = {
        "name": "fake",
        "size": 64,
        "command": "make sample CONFIG=mine.yaml",
        "objects": [{"name": "red cube"}, {"name": "cyan sphere"}, {"name": "a thing of another data set"}],
        "models": [FAKE | facts],
        "limits": {"objects": 5, "count": 8, "steps": 100, "guidance": 20, "seed": 9},
    }
    return painter
