"""Take the pictures of the pages from a run's report, in Debian's chromium through Playwright.

    python docs/pictures/take.py RUN [--out FOLDER] [--only report claims ...]

Writes the first screen on a desk and on a phone, light and dark, what freezing brings, the card of each claim, and what
each stage sees. What the report of the run does not hold is left out.
"""

import argparse
import io
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

from frostline.exhibits import CLAIMS

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
MOST_BYTES = 300_000
TALLEST = 1800
"""Pixels of a picture of a section, which ends where a card or a stage ends."""

DESK, PHONE = (1280, 820), (390, 844)
READY = """
async () => {
    await Promise.all(Array.from(document.images, (image) => { image.loading = "eager"; return image.decode(); }));
    await document.fonts.ready;
}
"""
PLACE = """
([section, ends, tallest]) => {
    const around = document.querySelector(section).getBoundingClientRect();
    const bottoms = Array.from(document.querySelectorAll(ends), (one) => one.getBoundingClientRect().bottom);
    const bottom = Math.max(...bottoms.filter((one) => one - around.top <= tallest)) + 12;
    const top = around.top + window.scrollY;
    return { x: around.left, y: top, width: around.width, height: Math.min(bottom, around.bottom) - around.top };
}
"""


@contextmanager
def opened(browser: Browser, report: Path, size: tuple[int, int], scheme: str) -> Iterator[Page]:
    """Open the report with all its plots drawn and all its pictures decoded."""
    width, height = size
    context = browser.new_context(
        viewport={"width": width, "height": height},
        color_scheme="dark" if scheme == "dark" else "light",
        reduced_motion="reduce",
        offline=True,
    )
    page = context.new_page()
    page.goto(report.resolve().as_uri())
    page.wait_for_selector(".plot .main-svg")
    page.evaluate(READY)
    page.wait_for_timeout(500)
    yield page
    context.close()


def first_screen(page: Page) -> bytes:
    """What is seen without scrolling."""
    return page.screenshot()


def section(name: str, ends: str) -> Callable[[Page], bytes | None]:
    """A section of the page, down to the last of its parts that fits."""

    def take(page: Page) -> bytes | None:
        if not page.locator(name).count():
            return None
        # A header that stays at the top of the window would lie in the middle of a tall picture.
        page.add_style_tag(content=".top { position: static; }")
        clip: Any = page.evaluate(PLACE, [name, ends, TALLEST])
        return page.screenshot(full_page=True, clip=clip)

    return take


PICTURES: dict[str, tuple[tuple[int, int], str, Callable[[Page], bytes | None]]] = {
    "report": (DESK, "light", first_screen),
    "report-dark": (DESK, "dark", first_screen),
    "report-phone": (PHONE, "light", first_screen),
    "report-phone-dark": (PHONE, "dark", first_screen),
    "claims": (DESK, "light", section("#claims", "#claims > .panel")),
    "sights": (DESK, "light", section("#sights", "#sights .filters, #sights .sight")),
}
PICTURES |= {f"claim-{name}": (DESK, "light", section(f"#claim-{name}", f"#claim-{name}")) for name in CLAIMS}


def shrunk(taken: bytes) -> bytes:
    """A PNG with as many colours as a repository can hold."""
    picture = Image.open(io.BytesIO(taken)).convert("RGB")
    for colours in (256, 128, 64, 32, 16):
        file = io.BytesIO()
        picture.quantize(colours, dither=Image.Dither.NONE).save(file, "PNG", optimize=True)
        if file.tell() < MOST_BYTES:
            break
    return file.getvalue()


def main() -> None:
    """Take all of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    parser.add_argument("--only", nargs="+", choices=PICTURES, default=list(PICTURES))
    options = parser.parse_args()
    chromium = shutil.which("chromium")
    if chromium is None:
        parser.error("chromium is not installed; `apt-get install chromium` brings it")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=FLAGS)
        for name in options.only:
            size, scheme, take = PICTURES[name]
            with opened(browser, options.run / "report.html", size, scheme) as page:
                taken = take(page)
            if taken is not None:
                content = shrunk(taken)
                (options.out / f"{name}.png").write_bytes(content)
                print(f"{name}.png  {len(content):,} bytes")
        browser.close()


if __name__ == "__main__":
    main()
