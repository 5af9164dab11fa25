"""A person with a browser: where they go, what they see, and what the browser noticed meanwhile."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from service.client import Job, Recovery

if TYPE_CHECKING:
    from playwright.sync_api import Browser, ConsoleMessage, Locator, Page, Request

STEPS = 240
"""Of the training that the form starts."""
HOSTILE = "<img src=x onerror=alert(1)>"
"""A name that would be markup if anything made it so."""
IMAGES = Path(__file__).resolve().parents[2] / "docs" / "images"
WIDE, PHONE = (1280, 860), (390, 844)
MAX_IMAGE_BYTES = 300_000
_PATIENCE_MS = 240_000  # on a machine that is busy otherwise
_STILL = """async () => {
  const moving = document.getAnimations().filter((one) => one.effect.getComputedTiming().endTime !== Infinity);
  await Promise.allSettled(moving.map((one) => one.finished));
}"""
ALL_LOOKS = ((True, True), (True, False), (False, True), (False, False))
"""(wide or phone, dark or light)"""


class Visitor:
    """One browser context, one page."""

    def __init__(self, browser: Browser, url: str) -> None:
        self.url = url
        self.context = browser.new_context(viewport=_size(WIDE), color_scheme="light", accept_downloads=True)
        self.page: Page = self.context.new_page()
        self.page.set_default_timeout(_PATIENCE_MS)
        self.complaints: list[str] = []
        """What the console said, and what scripts raised."""
        self.foreign_requests: list[str] = []
        self._refusals = 0
        self.page.on("console", self._on_console)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.context.on("request", self._on_request)

    def _on_console(self, message: ConsoleMessage) -> None:
        if self._refusals and message.text.startswith(
            "Failed to load resource: the server responded with a status of 4"
        ):
            return  # the browser's own note of an answer that the test is about
        if message.type in ("error", "warning"):
            self.complaints.append(f"{message.text} at {message.location.get('url')}")

    def _on_request(self, request: Request) -> None:
        if not request.url.startswith((self.url, "blob:", "data:")):
            self.foreign_requests.append(request.url)

    @contextlib.contextmanager
    def refused(self) -> Iterator[None]:
        """Within the block the service may answer 4xx, which browsers note in their console."""
        self._refusals += 1
        try:
            yield
            self.page.wait_for_timeout(50)
        finally:
            self._refusals -= 1

    def go(self, place: str) -> Locator:
        """Open a view and wait for it; its heading."""
        self.page.evaluate("address => { location.hash = address; }", f"#{place}")
        self.page.wait_for_function(
            "address => location.hash === address && document.querySelector('main .view > :not(.loading)')",
            arg=f"#{place}",
        )
        return self.page.locator("main h1")

    def open(self, path: str = "/") -> None:
        """Load a page anew; from another view of the same document a browser would only follow the fragment."""
        self.page.goto("about:blank")
        self.page.goto(self.url + path)
        self.page.locator("main h1").wait_for()

    def button(self, name: str) -> Locator:
        """A button by its whole name."""
        return self.page.get_by_role("button", name=name, exact=True)

    def look(self, name: str, *, full: bool = True, wide: bool = True, dark: bool = False) -> Path:
        """A picture of what is seen now, for the documents."""
        from PIL import Image

        self.dress(wide=wide, dark=dark)
        path = IMAGES / f"web-{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=path, full_page=full, animations="disabled")
        with Image.open(path) as picture:  # a palette makes it a third as large; octrees keep small spots of colour
            packed = picture.convert("RGB").quantize(256, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
        packed.save(path, optimize=True)
        self.dress()
        assert path.stat().st_size < MAX_IMAGE_BYTES
        return path

    def dress(self, *, wide: bool = True, dark: bool = False) -> None:
        """Change the window's size and the colour scheme."""
        self.page.emulate_media(color_scheme="dark" if dark else "light")
        self.page.set_viewport_size(_size(WIDE if wide else PHONE))
        self.page.wait_for_timeout(100)  # charts follow the width with the next frame
        self.page.evaluate(_STILL)  # colours fade, for longer on a busy machine

    def faults(self, *, looks: Iterable[tuple[bool, ...]] = ALL_LOOKS) -> list[str]:
        """Serious and critical findings of axe-core for each look: (wide or phone, dark or light)."""
        from axe_playwright_python.sync_playwright import Axe

        found: list[str] = []
        for wide, dark in looks:
            self.dress(wide=wide, dark=dark)
            where = f"{'wide' if wide else 'phone'}, {'dark' if dark else 'light'}"
            result: Any = Axe().run(self.page, options={"resultTypes": ["violations"]})
            found += [
                f"{where}: {one['id']} ({one['impact']}): {node['html']} {node['failureSummary']}"
                for one in result.response["violations"]
                if one["impact"] in ("serious", "critical")
                for node in one["nodes"]
            ]
            if self.page.evaluate("document.documentElement.scrollWidth > window.innerWidth"):
                found.append(f"{where}: the page is wider than the window")
        self.dress()
        return found

    def leave(self) -> None:
        """Close the browser context."""
        self.context.close()


def finished(visitor: Visitor, recovery: Recovery, job_id: str) -> Job:
    """The job at its end, which the page shows too."""
    for _ in recovery.events(job_id):
        pass
    job = recovery.job(job_id)
    assert job["status"] == "succeeded", job["error"]
    visitor.page.locator(".status.succeeded").first.wait_for()
    return job


def _size(size: tuple[int, int]) -> Any:
    return {"width": size[0], "height": size[1]}
