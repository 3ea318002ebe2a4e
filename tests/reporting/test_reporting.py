"""The report is one offline file in which every name is text."""

import base64
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from exhibited import album_of, picture, six_claims, sounds_of, texts_of

import frostline as fl
from frostline.errors import BadArgument, NewerSchema, NotARun, NotWritable
from frostline.files import read_record, write_record
from frostline.records import DataSummary, Evidence
from frostline.reporting import compare, render, report

FORMATS = sorted((Path(__file__).parent.parent / "data" / "formats").glob("evidence-*.json"))
HOSTILE = (
    "<script>alert(1)</script>",
    "</script><script>alert(2)</script>",
    "<!--<script>",
    '"><img src=x onerror=alert(3)>',
    "{{ 7 * 7 }}",
    "@frozen",
    "&lt;b&gt;",
    "$x^2$",
    "line\nbreak\x00\x1b[31m",
    "Ünïcödé 猫 عربي",
)
LARGE = base64.b64encode(b"\xff\xd8\xff" + bytes(3700)).decode()
VOID = {"meta", "link", "br", "img", "input", "hr"}


class Outline(HTMLParser):
    """What a browser would make of a page: its elements, and whether each one is closed."""

    def __init__(self):
        super().__init__()
        self.found, self.open, self.text, self.scripts = [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        inside = self.open[-1] if self.open else ""
        (self.scripts if inside == "script" else self.text).append(data)

    def all(self, tag):
        return [attrs for name, attrs in self.found if name == tag]


def outline_of(evidence, tmp_path, album=None):
    outline = Outline()
    outline.feed(render(evidence, tmp_path / "report.html", album=album).read_text("utf-8"))
    outline.close()
    return outline


@pytest.fixture(scope="module")
def hostile_evidence(fake_evidence):
    evidence = fake_evidence(HOSTILE)
    bad = HOSTILE[1]
    return evidence.model_copy(
        update={
            "data": DataSummary(
                name=bad,
                classes=HOSTILE,
                counts=evidence.data.counts,
                duplicates=((bad, "b.png"),),
                conflicts=((bad, "b.png"),),
                skipped=((bad, bad),),
            ),
            "source": evidence.source.model_copy(update={"name": bad}),
            "choice": evidence.choice.model_copy(update={"stage_name": bad, "reason": bad, "rule": bad}),
            "arguments": (("depth", bad),),
            "delta": evidence.delta.model_copy(update={"file": f"runs/{bad}/delta.safetensors"}),
            "claims": six_claims(bad),
        }
    )


def test_report_is_one_file_under_eight_megabytes(fake_evidence, tmp_path):
    file = render(fake_evidence(), tmp_path / "report.html")

    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    assert file.stat().st_size < 8_000_000


@pytest.mark.parametrize("classes", [2, 136, 1000])
def test_report_stays_small_for_any_number_of_classes_and_pictures(fake_evidence, tmp_path, classes):
    names = tuple(f"a class with a rather long name {k}" for k in range(classes))
    evidence = fake_evidence(names).model_copy(update={"claims": six_claims()})

    file = render(evidence, tmp_path / "report.html", album=album_of(image=LARGE))

    assert file.stat().st_size < 8_000_000


def test_equal_evidence_gives_equal_bytes(fake_evidence, tmp_path):
    one, two = (render(fake_evidence(), tmp_path / name).read_bytes() for name in ("one.html", "two.html"))

    assert one == two


def test_names_are_text_and_make_no_element(fake_evidence, hostile_evidence, tmp_path):
    tame = outline_of(fake_evidence(tuple("abcdefghij")), tmp_path)
    hostile = outline_of(hostile_evidence, tmp_path, album_of(HOSTILE[1], stages=2, name=HOSTILE[1]))

    assert len(hostile.all("script")) == len(tame.all("script")) == 3
    assert {attrs["src"][:10] for attrs in hostile.all("img")} == {"data:image"}
    assert hostile.open == []
    written = "".join(hostile.text)
    for name in HOSTILE[:7]:
        assert name in written


@pytest.mark.parametrize("word", [*HOSTILE[:8], "</mark></li><li>", "' onmouseover='alert(5)"])
def test_a_token_is_text_and_makes_no_element(fake_evidence, tmp_path, word):
    tame = outline_of(fake_evidence(), tmp_path, texts_of("card"))
    hostile = outline_of(fake_evidence(), tmp_path, texts_of(word, label=word, name=word))

    assert [tag for tag, _ in hostile.found] == [tag for tag, _ in tame.found]
    assert not [name for _, attrs in hostile.found for name in attrs if name.startswith("on")]
    assert hostile.open == []
    assert "".join(hostile.text).count(word.replace(" ", "␣")) >= 2 * 36


def test_no_element_has_a_handler_in_its_attributes(hostile_evidence, tmp_path):
    outline = outline_of(hostile_evidence, tmp_path, album_of('" onload="alert(4)'))

    assert not [name for _, attrs in outline.found for name in attrs if name.startswith("on")]


def test_figures_are_json_that_cannot_leave_its_script(hostile_evidence, tmp_path):
    text = render(hostile_evidence, tmp_path / "report.html").read_text("utf-8")

    block = re.search(r'<script type="application/json" id="figures">(.*?)</script>', text, flags=re.DOTALL)[1]

    assert not set(block) & set("<>&")
    figures = json.loads(block)["figures"]
    assert figures["confusion"]["data"][0]["y"][0].startswith("&lt;script&gt;")


def test_policy_of_the_page_lets_nothing_be_fetched(fake_evidence, tmp_path):
    outline = outline_of(fake_evidence(), tmp_path)

    policy = next(attrs["content"] for attrs in outline.all("meta") if "content-security-policy" in str(attrs).lower())

    assert "default-src 'none'" in policy
    assert "img-src data:;" in policy
    assert "'unsafe-inline'" not in policy.split("script-src")[1].split(";")[0]
    assert not [attrs for attrs in outline.all("script") if "src" in attrs]
    assert all(attrs["href"].startswith(("#", "data:")) for tag in ("a", "link") for attrs in outline.all(tag))


def test_page_is_told_to_those_who_cannot_see_it(fake_evidence, tmp_path):
    outline = outline_of(fake_evidence().model_copy(update={"claims": six_claims()}), tmp_path, album_of())

    assert outline.all("html")[0]["lang"] == "en"
    assert len(outline.all("h1")) == 1
    assert len(outline.all("caption")) == len(outline.all("table"))
    plots = [attrs for attrs in outline.all("div") if "plot" in attrs.get("class", "").split()]
    assert len(plots) == 4 + 5
    assert all(attrs["alt"] for attrs in outline.all("img"))
    assert all(attrs["role"] == "img" and len(attrs["aria-label"]) > 40 for attrs in plots)


def test_headings_skip_no_level(fake_evidence, tmp_path):
    outline = outline_of(fake_evidence().model_copy(update={"claims": six_claims()}), tmp_path, album_of())

    levels = [int(tag[1]) for tag, _ in outline.found if re.fullmatch("h[1-6]", tag)]
    assert all(after <= before + 1 for before, after in zip([0, *levels], levels, strict=False))


def test_every_reference_inside_the_page_leads_somewhere(fake_evidence, tmp_path):
    outline = outline_of(fake_evidence().model_copy(update={"claims": six_claims()}), tmp_path, album_of())
    ids = [attrs["id"] for _, attrs in outline.found if "id" in attrs]

    assert len(ids) == len(set(ids))
    asked = [attrs["href"][1:] for attrs in outline.all("a")]
    asked += [attrs[name] for _, attrs in outline.found for name in ("aria-labelledby", "data-copy") if name in attrs]
    assert set(asked) <= set(ids)


@pytest.mark.parametrize("depth", [0, 1, 18])
def test_report_of_an_extreme_choice_is_whole(fake_evidence, tmp_path, depth):
    outline = outline_of(fake_evidence(depth=depth), tmp_path)

    assert outline.open == []
    assert len(outline.all("section")) == 10


def test_report_without_votes_rivals_preprocessing_and_findings_is_whole(fake_evidence, tmp_path):
    evidence = fake_evidence(failed=False)
    bare = evidence.model_copy(
        update={
            "prior": evidence.prior.model_copy(update={"votes": (), "head": None, "doubts": ()}),
            "choice": evidence.choice.model_copy(update={"rivals": ()}),
            "preprocessing": None,
            "data": evidence.data.model_copy(update={"duplicates": (), "conflicts": (), "skipped": ()}),
        }
    )

    outline = outline_of(bare, tmp_path)

    assert outline.open == []
    assert "".join(outline.text).count("None.") == 4


# --- claims and pictures ----------------------------------------------------------------------


def test_a_claim_is_told_with_verdict_number_sentence_and_control(fake_evidence, tmp_path):
    claim = six_claims()[0]

    outline = outline_of(fake_evidence().model_copy(update={"claims": (claim,)}), tmp_path)

    written = " ".join(" ".join(outline.text).split())
    for part in ("✓ holds", "31.2 points (28.1 to 34.3)", claim.sentence, claim.control):
        assert part in written


def test_a_claim_without_a_number_is_told_without_one(fake_evidence, tmp_path):
    claim = six_claims()[3].model_copy(update={"value": None, "low": None, "high": None})

    outline = outline_of(fake_evidence().model_copy(update={"claims": (claim,)}), tmp_path)

    assert not [attrs for attrs in outline.all("p") if attrs.get("class") == "number"]
    assert claim.sentence in "".join(outline.text)


def test_a_run_without_claims_and_pictures_says_how_to_measure_them(fake_evidence, tmp_path):
    outline = outline_of(fake_evidence(), tmp_path)

    assert "".join(outline.text).count("frostline evidence runs/sign-digits-3f9c --claims") == 6
    assert not outline.all("img")
    assert "sights" not in [attrs.get("id") for attrs in outline.all("section")]


def test_every_picture_of_an_album_is_shown(fake_evidence, tmp_path):
    outline = outline_of(fake_evidence(), tmp_path, album_of(stages=5))

    shown = [attrs["src"] for attrs in outline.all("img")]
    assert len(shown) == 32 + 5 * 3 * 4 + 12 + 3
    assert f"data:image/jpeg;base64,{picture(11, side=96)}" in shown


def test_labels_in_doubt_are_listed_where_there_is_no_picture_of_them(fake_evidence, tmp_path):
    outline, pictured = (outline_of(fake_evidence(), tmp_path, album) for album in (None, album_of(stages=2)))

    written, shown = (" ".join("".join(one.text).split()) for one in (outline, pictured))
    assert "Training sample 17: digit zero, looks like digit one (.970)" in written
    assert "2 training samples look like another class" in written
    assert "Training sample 17" not in shown


def test_each_token_is_marked_once_and_told_to_those_who_do_not_see_the_mark(fake_evidence, tmp_path):
    outline = outline_of(fake_evidence(), tmp_path, texts_of("card", stages=3))

    assert len(outline.all("mark")) == 3 * 3 * 4
    written = "".join(outline.text)
    assert written.count("how do I card ##ing ␣the Ġway (strongest at card; text ") == 3 * 3 * 4
    assert "Stage 2, layer.1: sees 3 of 12 tokens" in written
    assert "The tokens of your own training texts" in written


def test_sounds_are_shown_as_spectrograms(fake_evidence, tmp_path):
    outline = outline_of(fake_evidence(), tmp_path, sounds_of(stages=2))

    told = [attrs["alt"] for attrs in outline.all("img")]
    assert len(told) == 2 * 3 * 4
    assert told[0] == "spectrogram of sound 0, samples 0 to 79, class seven"
    assert "low tones are at the bottom" in "".join(outline.text)
    assert "fine" not in {part for attrs in outline.all("div") for part in attrs.get("class", "").split()}


def test_what_is_no_picture_makes_no_element(fake_evidence, tmp_path):
    outline = outline_of(fake_evidence(), tmp_path, album_of(image="https://example.org/track.png"))

    assert not outline.all("img")
    assert outline.open == []


def test_names_that_are_no_text_on_any_disk_can_still_be_written(fake_evidence, tmp_path):
    evidence = fake_evidence()
    name = b"caf\xe9.png".decode("utf-8", "surrogateescape")
    odd = evidence.model_copy(
        update={
            "data": evidence.data.model_copy(update={"skipped": ((name, "broken"),)}),
            "choice": evidence.choice.model_copy(update={"reason": name}),
        }
    )

    text = render(odd, tmp_path / "report.html").read_text("utf-8")

    assert text.count("caf\\udce9.png") == 3


def test_a_folder_that_cannot_be_written_is_refused(fake_evidence, tmp_path):
    (tmp_path / "file").write_text("")

    with pytest.raises(NotWritable):
        render(fake_evidence(), tmp_path / "file" / "report.html")


def test_render_does_not_load_torch(fake_evidence, tmp_path):
    (tmp_path / "evidence.json").write_text(fake_evidence().model_dump_json(), "utf-8")
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from frostline.records import Evidence\n"
        "from frostline.reporting import render\n"
        "render(Evidence.model_validate_json(Path('evidence.json').read_text('utf-8')), 'report.html')\n"
        "print([name for name in ('torch', 'timm', 'sklearn', 'pandas') if name in sys.modules])\n"
    )

    found = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)

    assert found.stdout.strip() == "[]"
    assert (tmp_path / "report.html").exists()


# --- run folders ------------------------------------------------------------------------------


@pytest.fixture
def run_folder(fake_evidence, tmp_path):
    """Make a folder of a finished run; returns its path."""

    def make(name, **changes):
        evidence = fake_evidence(**{key: changes.pop(key) for key in ("depth", "classes") if key in changes})
        write_record(tmp_path / name / "evidence.json", evidence.model_copy(update=changes))
        return tmp_path / name

    return make


def test_report_leaves_page_and_summary(run_folder):
    run = run_folder("run")

    assert report(run) == run / "report.html"
    assert (run / "summary.md").read_text("utf-8").startswith("### Freeze the first 7")


def test_report_shows_the_pictures_beside_the_evidence(run_folder):
    run = run_folder("run")
    write_record(run / "album.json", album_of())

    text = report(run).read_text("utf-8")

    assert "What each stage sees" in text
    assert "The most confident mistakes" in text


def test_an_album_that_holds_something_else_is_refused(run_folder):
    run = run_folder("run")
    (run / "album.json").write_text('{"schema": 1, "photos": []}')

    with pytest.raises(NotARun, match="Album"):
        report(run)


@pytest.mark.parametrize(
    ("holds", "says"),
    [
        (None, "does not exist. A run folder is needed"),
        ("photo.png", r"holds no run \(no evidence.json\)"),
        ("arguments.json", r"not finished \(no evidence.json\). Start its `frostline fit` again"),
    ],
)
def test_what_is_no_finished_run_is_refused_with_the_reason(run_folder, tmp_path, holds, says):
    if holds:
        (tmp_path / "other").mkdir()
        (tmp_path / "other" / holds).write_text("{}")

    with pytest.raises(NotARun, match=says):
        compare(run_folder("run"), tmp_path / "other")
    with pytest.raises(NotARun, match=says):
        report(tmp_path / "other")


def test_a_file_is_no_run(run_folder):
    with pytest.raises(NotARun, match=r"evidence\.json is a file"):
        report(run_folder("run") / "evidence.json")


@pytest.mark.parametrize("runs", [(), ("run",)])
def test_fewer_than_two_runs_are_nothing_to_compare(runs):
    with pytest.raises(BadArgument, match=r"two or more are compared\. Add another run folder"):
        compare(*runs)


def test_comparison_is_one_small_file_beside_the_first_run(run_folder):
    runs = [run_folder("a"), run_folder("b", depth=3)]

    record = compare(*runs)

    file = runs[0].parent / "comparison.html"
    assert record.file == str(file)
    assert file.stat().st_size < 8_000_000
    assert [run.run for run in record.runs] == [str(run) for run in runs]


def test_comparison_goes_where_it_is_told(run_folder, tmp_path):
    compare(run_folder("a"), run_folder("b"), out=tmp_path / "new" / "page.html")

    assert (tmp_path / "new" / "page.html").exists()


def test_equal_runs_give_equal_bytes(run_folder, tmp_path):
    runs = [run_folder("a"), run_folder("b", depth=3)]

    one, two = (Path(compare(*runs, out=tmp_path / name).file).read_bytes() for name in ("one.html", "two.html"))

    assert one == two


def test_comparison_is_whole_and_told_to_those_who_cannot_see_it(run_folder, hostile_evidence, tmp_path):
    bad = run_folder(
        "b", **{name: getattr(hostile_evidence, name) for name in ("data", "source", "choice", "arguments")}
    )
    shutil.move(bad, tmp_path / "<img src=x onerror=alert(4)>")
    outline = Outline()

    outline.feed(
        Path(
            compare(run_folder("a"), tmp_path / "<img src=x onerror=alert(4)>", out=tmp_path / "c.html").file
        ).read_text("utf-8")
    )

    assert outline.open == []
    assert not outline.all("img")
    assert len(outline.all("script")) == 3
    assert len(outline.all("caption")) == len(outline.all("table"))
    levels = [int(tag[1]) for tag, _ in outline.found if re.fullmatch("h[1-6]", tag)]
    assert all(after <= before + 1 for before, after in zip([0, *levels], levels, strict=False))
    ids = [attrs["id"] for _, attrs in outline.found if "id" in attrs]
    asked = [attrs["href"][1:] for attrs in outline.all("a")]
    asked += [attrs[name] for _, attrs in outline.found for name in ("aria-labelledby", "data-copy") if name in attrs]
    assert len(ids) == len(set(ids))
    assert set(asked) <= set(ids)


def test_compare_does_not_load_torch(run_folder, tmp_path):
    runs = [str(run_folder(name)) for name in "ab"]
    code = f"import sys, frostline as fl\nfl.compare(*{runs!r})\nprint('torch' in sys.modules)"

    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert found.stdout.strip() == "False"


# --- older and newer runs ---------------------------------------------------------------------


@pytest.mark.parametrize("file", FORMATS, ids=lambda file: file.stem)
def test_a_run_of_every_schema_is_read_and_written_again(file, tmp_path):
    shutil.copy(file, tmp_path / "evidence.json")

    report(tmp_path)

    assert "Freeze everything but the head" in (tmp_path / "report.html").read_text("utf-8")
    assert "| live parameters | 14 of 108 |" in (tmp_path / "summary.md").read_text("utf-8")


def test_there_is_a_sample_of_every_schema():
    assert [json.loads(file.read_text("utf-8"))["schema"] for file in FORMATS] == list(range(Evidence.version + 1))


def test_an_upgraded_run_equals_the_same_run_of_today():
    old, *_, today = (read_record(file, Evidence) for file in FORMATS)

    assert old == today


@pytest.mark.parametrize("file", FORMATS, ids=lambda file: file.stem)
def test_a_run_of_every_schema_knows_its_chosen_trial_and_the_parents(file):
    evidence = read_record(file, Evidence)

    names = {trial.spec.key for trial in evidence.trials}
    assert evidence.choice.trial in names
    assert {trial.spec.parent for trial in evidence.trials} - {None} <= names


def test_an_old_run_and_one_of_today_are_compared(tmp_path):
    pair = FORMATS[0], FORMATS[-1]
    for file in pair:
        (tmp_path / file.stem).mkdir()
        shutil.copy(file, tmp_path / file.stem / "evidence.json")

    (difference,) = fl.compare(*(tmp_path / file.stem for file in pair)).differences

    assert (difference.difference, difference.verdict) == (0.0, "not decided")


def test_a_run_of_a_later_version_is_refused(tmp_path):
    content = json.loads(FORMATS[-1].read_text("utf-8")) | {"schema": Evidence.version + 1}
    (tmp_path / "evidence.json").write_text(json.dumps(content), "utf-8")

    with pytest.raises(NewerSchema, match="Install a later version"):
        report(tmp_path)


def test_an_old_run_that_is_cut_short_is_refused_with_what_is_missing(tmp_path):
    (tmp_path / "evidence.json").write_text('{"schema": 0}', "utf-8")

    with pytest.raises(NotARun, match="'graph' is missing"):
        report(tmp_path)
