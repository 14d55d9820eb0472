"""Fixtures of the tests that look at the page of `make play` in Chromium; without one they are skipped."""

import pytest

from tests.stages.browsing import CHROMIUM, chromium, opening


@pytest.fixture(scope="module")
def browser():
    pytest.importorskip("uvicorn", reason="the extra [play] is not installed: make play")
    pytest.importorskip("playwright.sync_api", reason="the extra [browser] is not installed: make browser")
    if CHROMIUM is None:
        pytest.skip("NO BROWSER: THE PAGE IS NOT TESTED; apt-get install chromium")
    with chromium() as started:
        yield started


@pytest.fixture
def page_of(browser):
    with opening(browser) as open_page:
        yield open_page
