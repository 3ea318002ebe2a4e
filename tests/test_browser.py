"""The report in a real browser: Debian's chromium, driven by Playwright."""

import shutil
from contextlib import contextmanager
from pathlib import Path

import pytest

from frostline.reporting import render

CHROMIUM = shutil.which("chromium")
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
SCRIPT = "<script>alert(1)</script>"
CLASSES = (
    SCRIPT,
    "</script><img src=x onerror=alert(2)>",
    "$x^2$",
    "%{x}",
    "a class whose name is much longer than any label should be",
    "Ünïcödé 猫",
)

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed (apt-get install chromium)"),
]


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield started
        started.close()


@pytest.fixture(scope="module")
def report(fake_evidence, tmp_path_factory):
    return render(fake_evidence(CLASSES), tmp_path_factory.mktemp("report") / "report.html")


@pytest.fixture(scope="module")
def report_of_many(fake_evidence, tmp_path_factory):
    names = tuple(f"Alphabet of the {k // 20}th kind/character{k % 20:02d}" for k in range(136))
    return render(fake_evidence(names, depth=0), tmp_path_factory.mktemp("report") / "many.html")


@contextmanager
def opened(browser, file, *, width=1280, height=800, **context):
    """Open a file and collect whatever should not happen: messages, errors, requests, dialogs."""
    page = browser.new_page(viewport={"width": width, "height": height}, **context)
    page.trouble = []
    page.on("console", lambda message: page.trouble.append(f"console: {message.text}"))
    page.on("pageerror", lambda error: page.trouble.append(f"error: {error}"))
    page.on("dialog", lambda dialog: (page.trouble.append(f"dialog: {dialog.message}"), dialog.dismiss()))
    page.on(
        "request",
        lambda request: (
            None
            if request.url.startswith((file.as_uri(), "data:", "blob:"))
            else page.trouble.append(f"request: {request.url}")
        ),
    )
    page.goto(file.as_uri())
    page.wait_for_selector(".plot .main-svg")
    yield page
    page.close()


def test_page_opens_without_message_error_request_or_dialog(browser, report):
    with opened(browser, report) as page:
        page.mouse.move(600, 500)
        page.locator("#plot-confusion").scroll_into_view_if_needed()
        page.wait_for_timeout(200)

        assert page.trouble == []


def test_a_class_named_like_a_script_is_shown_as_text(browser, report):
    with opened(browser, report) as page:
        cells = page.locator("#data tbody th").all_inner_texts()
        labels = page.locator("#plot-confusion .ytick text").all_text_contents()

        assert cells[:4] == list(CLASSES[:4])
        assert any(label.startswith("<script>alert(1)") for label in labels)
        assert "$x^2$" in labels
        assert page.evaluate("document.scripts.length") == 3
        assert page.locator("img").count() == 0
        assert page.trouble == []


def test_a_class_named_like_a_script_is_text_when_pointed_at(browser, report):
    with opened(browser, report) as page:
        page.locator("#plot-confusion").scroll_into_view_if_needed()
        box = page.locator("#plot-confusion .heatmaplayer").bounding_box()
        page.mouse.move(box["x"] + box["width"] / 12, box["y"] + box["height"] / 12)
        page.wait_for_selector("#plot-confusion .hoverlayer text")

        said = " ".join(page.locator("#plot-confusion .hoverlayer text").all_text_contents())

        assert SCRIPT in said
        assert page.trouble == []


def test_every_plot_is_drawn(browser, report):
    with opened(browser, report) as page:
        assert page.locator(".plot").count() == 4
        for plot in page.locator(".plot").all():
            assert plot.locator("svg.main-svg").count() >= 1
        assert page.locator("#plot-depth .points path").count() > 20
        assert page.locator("#plot-depth .errorbar").count() == 4


def test_first_screen_holds_choice_numbers_curve_and_network(browser, report):
    with opened(browser, report) as page:
        for selector in ("h1", ".strip", "#plot-depth", ".card"):
            box = page.locator(selector).first.bounding_box()

            assert box["y"] + box["height"] <= 800, selector


def test_headings_tell_the_story_in_order(browser, report):
    with opened(browser, report) as page:
        headings = page.locator("h2").all_inner_texts()

        assert headings == [
            "Accuracy and cost by depth",
            "Why this depth, and its rivals",
            "The stages of EfficientNet",
            "Learning curves",
            "What it gets right and wrong",
            "Predicted and actual cost",
            "The data that was found",
            "Use the tuned network",
            "Repeat this run",
        ]


@pytest.mark.parametrize("width", [320, 390, 768, 1280])
@pytest.mark.parametrize("file", ["report", "report_of_many"])
def test_page_never_scrolls_sideways(browser, file, width, request):
    with opened(browser, request.getfixturevalue(file), width=width, height=844) as page:
        page.evaluate("document.querySelectorAll('details').forEach((fold) => { fold.open = true; })")
        page.wait_for_timeout(100)

        assert page.evaluate("document.documentElement.scrollWidth") == width
        assert page.trouble == []


def test_dark_mode_reaches_page_and_plots_and_follows_a_change(browser, report):
    def grounds(page):
        page.wait_for_timeout(300)
        body = page.evaluate("getComputedStyle(document.body).backgroundColor")
        card = page.evaluate("getComputedStyle(document.querySelector('.panel')).backgroundColor")
        plot = page.evaluate("document.querySelector('#plot-depth').layout.paper_bgcolor")
        return body, card, plot

    with opened(browser, report, color_scheme="dark") as page:
        dark = grounds(page)
        page.emulate_media(color_scheme="light")
        light = grounds(page)

    assert dark == ("rgb(15, 20, 25)", "rgb(23, 30, 38)", "#171e26")
    assert light == ("rgb(247, 248, 250)", "rgb(255, 255, 255)", "#ffffff")


def test_folded_plot_is_drawn_when_it_is_opened(browser, report_of_many):
    with opened(browser, report_of_many) as page:
        page.get_by_text("The whole matrix of 136 classes").click()

        page.wait_for_selector("#plot-overview svg.main-svg")
        page.wait_for_timeout(200)
        assert page.locator("#plot-overview .heatmaplayer").bounding_box()["height"] > 400
        assert page.trouble == []


def test_keyboard_reaches_content_links_folds_and_code(browser, report):
    with opened(browser, report) as page:
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.textContent") == "Skip to the content"

        reached = set()
        for _ in range(60):
            page.keyboard.press("Tab")
            reached.add(page.evaluate("document.activeElement.tagName"))

        assert {"A", "SUMMARY", "PRE", "BUTTON", "DIV"} <= reached


def test_copy_button_gives_the_code_as_it_stands(browser, report):
    with opened(browser, report, permissions=["clipboard-read", "clipboard-write"]) as page:
        page.locator("button[data-copy=use-python]").click()

        # a locator, since the page's own policy forbids the `eval` that `wait_for_function` polls by
        page.locator("button[data-copy=use-python]", has_text="Copied").wait_for(timeout=5_000)
        assert page.evaluate("navigator.clipboard.readText()").startswith("import frostline as fl\n\nfor found in")


def test_print_is_light_and_shows_what_is_folded(browser, report, tmp_path):
    with opened(browser, report, color_scheme="dark") as page:
        page.evaluate(
            "window.addEventListener('beforeprint', () => { window.printed = document.querySelectorAll("
            "'details:not([open])').length + document.querySelector('#plot-depth').layout.paper_bgcolor; })"
        )

        page.pdf(path=tmp_path / "report.pdf", format="A4")

        assert page.evaluate("window.printed") == "0#ffffff"
        assert page.trouble == []


def test_page_without_scripts_still_tells_everything_in_tables(browser, report):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(Path(report).as_uri())

    assert page.locator("table").count() >= 9
    assert "needs JavaScript" in page.locator("#why, .hero").first.inner_text()
    context.close()
