"""One visit of the page: what is done on it, and what the browser said meanwhile."""

import base64
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tests.contract.data import Pixels, pixels
from tests.helpers.live import SHIPPED

if TYPE_CHECKING:
    from playwright.sync_api import Browser, FloatRect, Locator, Page, Request, Route
else:  # it may be missing
    Browser = FloatRect = Locator = Page = Request = Route = Any

__all__ = [
    "PATIENCE_MS",
    "SEVEN",
    "Browser",
    "Page",
    "Request",
    "Route",
    "Visit",
    "visiting",
]
PATIENCE_MS = 120_000.0  # nothing here takes a tenth of it, unless the machine is busy
VERDICT = re.compile(
    r"^(Made real|This is what|The network leaves|Not quite real|There is too little|This does not|A guess)"
)
SEVEN = ((0.28, 0.25), (0.5, 0.24), (0.72, 0.25), (0.62, 0.45), (0.52, 0.65), (0.45, 0.82))


@dataclass
class Visit:
    """The page in one tab."""

    page: Page
    url: str
    complaints: list[str] = field(default_factory=list)
    hosts: set[str] = field(default_factory=set)
    expected: list[str] = field(default_factory=list)  # complaints that hold one of these are meant

    def one(self, selector: str) -> Locator:
        return self.page.locator(selector)

    def button(self, name: str, within: str = "body") -> Locator:
        return self.one(within).get_by_role("button", name=name, exact=True)

    def ready(self) -> None:
        """Wait until there is a model, without which nothing on the page can be used."""
        self.one("#real:not([inert])").wait_for()

    def empty(self) -> None:
        """Wait for the example that is shown at first, and clear the canvas."""
        self.settled()
        self.button("Clear").click()
        self.says("real", "Draw something first.")

    def settled(self) -> None:
        """Wait until the result is that of what is on the canvas."""
        self.ready()
        self.page.wait_for_function(
            """() => !document.querySelector("#real").hasAttribute("data-stale")
              && !document.querySelector("#made").hidden"""
        )

    def opens(self, content: bytes) -> None:
        """Open a picture of any size, and wait for what the model makes of it."""
        file: Any = {"name": "mine.png", "mimeType": "image/png", "buffer": content}
        self.one("#file").set_input_files(file)
        self.one("#made[alt^='mine.png made real']").wait_for()
        self.settled()

    def toast(self, text: str) -> Locator:
        """The message over the page that says this."""
        found = (
            self.page.get_by_role("region", name="Messages").locator("> *").filter(has_text=text)
        )
        found.wait_for(timeout=PATIENCE_MS)
        return found

    def choose(self, name: str) -> None:
        """Choose a tool, a model or a length by its label, for the radio buttons themselves take no
        clicks.
        """
        button = self.page.get_by_role("radio", name=name, exact=True)
        button.locator("xpath=..").click()
        assert button.is_checked()

    def box(self, selector: str) -> "FloatRect":
        """Where it stands in the window."""
        found = self.one(selector).bounding_box()
        assert found is not None
        return found

    def draw(self, stroke: Sequence[tuple[float, float]] = SEVEN, on: str = "#paint") -> None:
        """One stroke with the mouse, in shares of the canvas, or of what else it is drawn on."""
        self.ready()
        self.one(on).scroll_into_view_if_needed()
        box = self.box(on)
        at = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in stroke]
        self.page.mouse.move(*at[0])
        self.page.mouse.down()
        for place in at[1:]:
            self.page.mouse.move(*place, steps=8)
        self.page.mouse.up()

    def says(self, section: str, text: str) -> None:
        """Wait until a section's status says this."""
        self.one(f"#{section} .status").filter(has_text=text).wait_for(timeout=PATIENCE_MS)

    def picture(self, selector: str, mode: str = "L") -> Pixels:
        """What an <img> with its picture in its address shows."""
        self.one(selector).wait_for(timeout=PATIENCE_MS)
        address = self.one(selector).get_attribute("src")
        assert address is not None
        assert address.startswith("data:image/png;base64,")
        return pixels(base64.b64decode(address.partition(",")[2]), mode)

    def canvas(self, mode: str = "L") -> Pixels:
        """What is drawn, as bytes of grey."""
        address = self.page.evaluate("document.querySelector('#paint').toDataURL()")
        return pixels(base64.b64decode(address.partition(",")[2]), mode)

    def verdict(self) -> str:
        """What is said of the result, in words and in numbers."""
        self.one("#verdict .status").filter(has_text=VERDICT).wait_for()
        return self.one("#verdict").inner_text()

    def call(self, file: str, name: str, *values: Any) -> Any:
        """What a function of a module of the page returns."""
        call = (
            "async ([file, name, values]) => (await import(`./page/${file}.js`))[name](...values)"
        )
        return self.page.evaluate(call, [file, name, list(values)])

    def accessible(self) -> None:
        """Axe finds nothing, once nothing moves."""
        axe = pytest.importorskip(
            "axe_playwright_python.sync_playwright", reason="axe-playwright-python is missing"
        )
        self.page.evaluate(
            "Promise.all(document.getAnimations().map((animation) => animation.finished))"
        )
        found = axe.Axe().run(self.page)
        assert found.violations_count == 0, found.generate_report()

    def saved(self, button: str) -> Path:
        """The file that a button saves, with the name that the page gives it."""
        with self.page.expect_download() as waiting:
            self.button(button).click()
        path = waiting.value.path().with_name(waiting.value.suggested_filename)
        waiting.value.save_as(path)
        return path


@contextmanager
def visiting(
    browser: Browser, url: str, model: str = SHIPPED["mnist"], **options: Any
) -> Iterator[Visit]:
    """Open the page with this model, if there is one; in the end nothing may have failed, or come
    from another host.
    """
    context = browser.new_context(**({"viewport": {"width": 1280, "height": 900}} | options))
    context.set_default_timeout(PATIENCE_MS)
    page = context.new_page()
    visit = Visit(page, url)
    page.on(
        "console",
        lambda said: visit.complaints.extend(
            [said.text] if said.type in ("error", "warning") else []
        ),
    )
    page.on("pageerror", lambda error: visit.complaints.append(str(error)))
    page.on("request", lambda asked: visit.hosts.add(_host(asked.url)))
    try:
        page.goto(url if "#" in url or url.endswith("/docs") else f"{url.rstrip('/')}/#m={model}")
        yield visit
    finally:
        context.close()
    assert visit.hosts <= {_host(url), ""}
    unforeseen = [
        said for said in visit.complaints if not any(known in said for known in visit.expected)
    ]
    assert unforeseen == []


def _host(address: str) -> str:
    """Host and port; none of what is in the page itself."""
    return (
        "" if address.startswith(("data:", "blob:")) else httpx.URL(address).netloc.decode("ascii")
    )
