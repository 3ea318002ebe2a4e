"""Report and comparison in a real browser: Debian's chromium, driven by Playwright."""

import os
import shutil
from contextlib import contextmanager
from pathlib import Path

import pytest
from exhibited import album_of, six_claims, texts_of

from frostline.files import write_record
from frostline.reporting import compare, render

CHROMIUM = shutil.which("chromium")
AXE = Path(os.environ.get("AXE_CORE", Path(__file__).parent.parent / "build/node_modules/axe-core/axe.min.js"))
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
    """All six claims and an album, with a hostile name wherever one of the user's can stand."""
    evidence = fake_evidence(CLASSES).model_copy(update={"claims": six_claims(SCRIPT)})
    album = album_of(CLASSES[1], name=SCRIPT)
    return render(evidence, tmp_path_factory.mktemp("report") / "report.html", album=album)


@pytest.fixture(scope="module")
def report_of_texts(fake_evidence, tmp_path_factory):
    """Tokens of every length, all of them hostile."""
    album = texts_of("</mark><img src=x onerror=alert(4)>" + 90 * "-", label=CLASSES[1], name=SCRIPT)
    return render(fake_evidence(CLASSES), tmp_path_factory.mktemp("report") / "texts.html", album=album)


@pytest.fixture(scope="module")
def report_of_many(fake_evidence, tmp_path_factory):
    names = tuple(f"Alphabet of the {k // 20}th kind/character{k % 20:02d}" for k in range(136))
    return render(fake_evidence(names, depth=0), tmp_path_factory.mktemp("report") / "many.html")


@pytest.fixture(scope="module")
def comparison(fake_evidence, tmp_path_factory):
    """Three runs on one test part and two on another, one of them with hostile names and stages of its own."""
    folder = tmp_path_factory.mktemp("comparison")
    runs = {
        "head only": fake_evidence(depth=18),
        "auto": fake_evidence(depth=7),
        "<img src=x onerror=alert(3)>": fake_evidence(CLASSES, depth=3, seed=4, stages=12),
        "nothing-frozen-with-a-name-that-is-longer-than-any-label-should-be": fake_evidence(depth=0, seed=2),
        "$x^2$": fake_evidence(CLASSES, depth=0, seed=5, stages=12),
    }
    for name, evidence in runs.items():
        hostile = evidence.data.classes == CLASSES
        data = evidence.data.model_copy(update={"name": SCRIPT if hostile else evidence.data.name})
        arguments = (("task", "another"),) if hostile else evidence.arguments
        write_record(
            folder / name / "evidence.json", evidence.model_copy(update={"data": data, "arguments": arguments})
        )
    return Path(compare(*(folder / name for name in runs)).file)


@pytest.fixture(scope="module")
def axe():
    if not AXE.exists():
        pytest.skip(f"axe-core is not at {AXE} (npm install --no-save --no-package-lock --prefix build axe-core)")
    return AXE.read_text("utf-8")


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
        assert page.locator("img:not([src^='data:image/'])").count() == 0
        assert page.locator("#sights summary bdi").first.inner_text() == f"{SCRIPT}.0"
        assert page.locator(".mistakes figcaption bdi").first.inner_text() == CLASSES[1]
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
        assert page.locator(".plot").count() == 4 + 5
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
            "What freezing brings on this data",
            "The stages of EfficientNet",
            "What each stage sees",
            "Learning curves",
            "What it gets right and wrong",
            "Predicted and actual cost",
            "The data that was found",
            "Use the tuned network",
            "Repeat this run",
        ]


@pytest.mark.parametrize("width", [320, 390, 768, 1280])
@pytest.mark.parametrize("file", ["report", "report_of_texts", "report_of_many", "comparison"])
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


def test_every_picture_is_decoded_and_large_enough_to_be_looked_at(browser, report):
    with opened(browser, report, width=390, height=844) as page:
        page.evaluate("document.querySelectorAll('details').forEach((fold) => { fold.open = true; })")
        page.evaluate(
            "Promise.all(Array.from(document.images, (image) => { image.loading = 'eager'; return image.decode(); }))"
        )

        pictures = page.evaluate(
            "Array.from(document.images, (image) => [image.naturalWidth, image.clientWidth, image.clientHeight])"
        )

        assert len(pictures) == 32 + 18 * 3 * 4 + 12 + 3
        assert all(width > 0 for width, _, _ in pictures)
        assert min(side for _, *sides in pictures for side in sides) >= 48
        assert page.trouble == []


def test_a_token_named_like_an_element_is_marked_as_text(browser, report_of_texts):
    with opened(browser, report_of_texts) as page:
        marks = page.locator("#sights mark")

        assert marks.count() == 3 * 3 * 4
        assert marks.first.inner_text() == "</mark><img␣src=x␣onerror=alert(4)>" + 90 * "-"
        assert page.locator("#sights img").count() == 0
        assert page.trouble == []


def test_three_stages_that_tell_most_are_open_and_the_others_folded(browser, report):
    with opened(browser, report) as page:
        is_open = page.evaluate("Array.from(document.querySelectorAll('.sight'), (fold) => fold.open)")

        assert [place for place, one in enumerate(is_open) if one] == [0, 4, 17]


def test_keyboard_reaches_the_most_confident_mistakes(browser, report):
    with opened(browser, report, width=390, reduced_motion="reduce") as page:
        page.get_by_role("region", name="Weakest classes").focus()

        page.keyboard.press("Tab")

        assert page.evaluate("document.activeElement.querySelectorAll('.mistakes img').length") == 12


def test_verdicts_stand_beside_the_name_of_their_claim(browser, report):
    with opened(browser, report) as page:
        heads = [text.replace("\n", " ") for text in page.locator(".claim .head").all_inner_texts()]

        assert heads == [
            "Reuse of features ✓ holds",
            "Less data ✓ holds",
            "Faster convergence ✗ does not hold",
            "More stable training ? not decided",
            "Less overfitting ? not decided",
        ]
        assert "Fewer resources" in page.locator(".missing").inner_text()


STOPS = """
    Array.from(document.querySelectorAll("a[href], button, summary, input, select, textarea, [tabindex]"))
        .filter((element) => element.tabIndex >= 0 && element.checkVisibility())
"""
STOP = f"""
(() => {{
    const element = document.activeElement;
    const box = element.getBoundingClientRect();
    const ring = getComputedStyle(element);
    const header = document.querySelector("header");
    const above = header.contains(element) || element.className === "skip" ? 0 : header.getBoundingClientRect().bottom;
    return {{
        place: {STOPS}.indexOf(element),
        name: element.tagName + " " + element.textContent.trim().slice(0, 30),
        is_ringed: ring.outlineStyle === "solid" && parseFloat(ring.outlineWidth) >= 2,
        is_seen: box.bottom > above && box.top < innerHeight && box.right > 0 && box.left < innerWidth,
    }};
}})()
"""


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("file", ["report", "report_of_many", "comparison"])
def test_keyboard_walks_through_everything_in_order_and_shows_where_it_is(browser, file, width, request):
    # Smooth scrolling would still be on its way when the next key is pressed.
    with opened(browser, request.getfixturevalue(file), width=width, reduced_motion="reduce") as page:
        count = page.evaluate(f"{STOPS}.length")
        stops = []
        for _ in range(count):
            page.keyboard.press("Tab")
            stops.append(page.evaluate(STOP))

        assert count >= 10
        assert stops[0]["name"] == "A Skip to the content"
        assert [stop["place"] for stop in stops] == list(range(count))
        assert [stop["name"] for stop in stops if not stop["is_ringed"]] == []
        assert [stop["name"] for stop in stops if not stop["is_seen"]] == []
        assert page.trouble == []


def test_keyboard_opens_a_fold_and_goes_on_inside_it(browser, report):
    with opened(browser, report) as page:
        page.locator("summary").first.focus()

        page.keyboard.press("Enter")
        page.keyboard.press("Tab")

        assert page.evaluate("document.activeElement.closest('details').open")
        assert page.evaluate("document.activeElement.getAttribute('role')") == "region"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("file", ["report", "report_of_texts", "comparison"])
def test_axe_finds_no_violation(browser, axe, file, width, scheme, request):
    with opened(browser, request.getfixturevalue(file), width=width, color_scheme=scheme) as page:
        page.evaluate("document.querySelectorAll('details').forEach((fold) => { fold.open = true; })")
        page.evaluate(axe)
        # A plot is one picture with a text of its own; what is drawn inside is not read out.
        found = page.evaluate("axe.run({ exclude: [['.main-svg']] })")

        told = [(one["impact"], one["id"], [node["target"] for node in one["nodes"]]) for one in found["violations"]]
        assert told == []
        assert len(found["passes"]) > 20
        assert page.trouble == []


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


# --- several runs side by side ----------------------------------------------------------------


def test_comparison_shows_each_run_as_text_in_its_own_colour(browser, comparison):
    with opened(browser, comparison) as page:
        letters = page.locator(".run .letter").all_inner_texts()
        grounds = {
            page.evaluate("(at) => getComputedStyle(document.querySelectorAll('.run .letter')[at]).backgroundColor", at)
            for at in range(5)
        }

        assert letters == list("ABCDE")
        assert len(grounds) == 5
        assert "<img src=x onerror=alert(3)>" in page.locator(".run h3").all_inner_texts()[3]
        assert page.locator("img").count() == 0
        assert page.trouble == []


def test_comparison_tells_runs_on_other_data_apart(browser, comparison):
    with opened(browser, comparison) as page:
        assert "2 different sets of samples" in page.locator(".notice").inner_text()
        assert page.locator(".group .runs").count() == 2
        assert page.locator(".sides thead th.group").count() == 2
        assert page.locator("#differences tbody tr").count() == 4


def test_comparison_draws_a_curve_and_a_point_for_each_run(browser, comparison):
    with opened(browser, comparison) as page:
        assert page.locator("#plot-depths .legend .traces").count() == 5
        assert page.locator("#plot-costs .errorbars").count() == 5
        assert page.locator("#plot-costs .textpoint text").first.text_content() == "A"


def test_comparison_prints_light_and_whole(browser, comparison, tmp_path):
    with opened(browser, comparison, color_scheme="dark") as page:
        page.evaluate(
            "window.addEventListener('beforeprint', () => {"
            " window.printed = document.querySelector('#plot-depths').layout.paper_bgcolor; })"
        )

        page.pdf(path=tmp_path / "comparison.pdf", format="A4")

        assert page.evaluate("window.printed") == "#ffffff"
        assert page.trouble == []
