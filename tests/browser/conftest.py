"""Pages in a real browser: Chromium without a window, driven by playwright (extra ``test``).

A machine without Chromium, as one that only runs the other tests, collects nothing here.
"""

import importlib.util
import shutil

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
collect_ignore_glob = [] if CHROMIUM and importlib.util.find_spec("playwright") else ["test_*.py"]


class Opened:
    """A page that is open, with everything that it tried to do beside showing itself.

    Attributes:
      page: of playwright.
      faults: errors, dialogs and messages of the console.
      requests: addresses that were asked for.
    """

    def __init__(self, page):
        self.page = page
        self.faults = []
        self.requests = []
        page.set_default_timeout(15_000)
        page.on("pageerror", lambda error: self.faults.append(str(error)))
        page.on("console", lambda message: self.faults.append(message.text))
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("dialog", self.dismiss)

    def dismiss(self, dialog):
        self.faults.append(f"dialog {dialog.message}")
        dialog.dismiss()

    def goto(self, path, fragment=""):
        """Opens a file, after which the viewer is ready."""
        self.page.goto("about:blank")  # a fragment alone would not load the page again
        self.page.goto(path.as_uri() + fragment)
        self.page.locator("html[data-ready]").wait_for()
        return self

    def choose(self, label, value):
        """Chooses the option of a filter that begins with a value."""
        select = self.control(label).locator("select")
        texts = select.locator("option").all_text_contents()
        (option,) = [text for text in texts if text.startswith(f"{value} (") or text == value]
        select.select_option(label=option)

    def fill(self, label, low="", high=""):
        """Fills the two fields of a range."""
        for name, value in (("from", low), ("to", high)):
            self.page.get_by_label(f"{label} {name}", exact=True).first.fill(str(value))

    def search(self, text):
        self.page.locator("input[type=search]").first.fill(text)

    def control(self, label):
        return self.page.locator("form.filters label").filter(has_text=label).first

    def count(self, count, view="trajectories"):
        """Waits until so many entries are listed."""
        text = f"{count} of "
        self.page.locator(f"#{view} .count").filter(has_text=text).wait_for()
        summary = self.page.locator(f"#{view} .count").text_content()
        assert summary.startswith(text), summary
        return summary


@pytest.fixture(scope="module")
def browser():
    """Its event loop runs until it is closed, so no test of another file may find it open."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # A sandbox of its own is not allowed in containers, and the files are ours.
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser):
    """Returns a function that makes a page without a network, of a width, a scheme, and so on."""
    contexts = []

    def make(width=1180, **options):
        options = {"viewport": {"width": width, "height": 900}, "offline": True} | options
        contexts.append(browser.new_context(**options))
        return Opened(contexts[-1].new_page())

    yield make
    for context in contexts:
        context.close()
