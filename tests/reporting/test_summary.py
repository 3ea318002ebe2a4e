"""The summary is short Markdown in which every name is text."""

import re

import pytest
from exhibited import six_claims

from frostline.reporting.summary import curve, escaped, summary


def test_summary_says_choice_figures_curve_and_use(fake_evidence):
    text = summary(fake_evidence())

    assert text.startswith("### Freeze the first 7 of 18 stages, up to blocks.")
    assert "| test accuracy | .968 (.943–.983), 400 samples |" in text
    assert "| cost | .617 full fine-tunes by seconds, .560 by operations |" in text
    assert "```text\ndepth" in text
    assert "fl.predict('runs/sign-digits-3f9c'" in text
    assert len(text.splitlines()) < 60


def test_code_of_the_summary_is_python(fake_evidence):
    (block,) = re.findall(r"```python\n(.*?)```", summary(fake_evidence()), flags=re.DOTALL)

    compile(block, "summary", "exec")


def test_curve_has_a_line_for_each_open_depth_and_marks_the_chosen_one(fake_evidence):
    evidence = fake_evidence()

    lines = curve(evidence)[1:]

    assert [int(line.split()[0]) for line in lines] == [0, *evidence.graph.open_depths[1:]][-len(lines) :]
    assert [line.split()[0] for line in lines if line.endswith("chosen")] == ["7"]


def test_trained_depths_have_full_bars_and_probed_ones_hollow(fake_evidence):
    evidence = fake_evidence()
    trained = {evidence.choice.depth, *(rival.depth for rival in evidence.choice.rivals)}

    lines = curve(evidence)[1:]

    assert {int(line.split()[0]) for line in lines if "█" in line} == trained
    assert all(("█" in line) != ("░" in line) for line in lines)


def test_a_higher_accuracy_has_no_shorter_bar(fake_evidence):
    evidence = fake_evidence()
    rivals = {rival.depth: rival.accuracy for rival in evidence.choice.rivals}

    bars = {int(line.split()[0]): line.count("█") for line in curve(evidence)[1:]}

    by_accuracy = sorted(rivals, key=rivals.get)
    assert [bars[depth] for depth in by_accuracy] == sorted(bars[depth] for depth in rivals)
    assert max(bars.values()) <= 20


@pytest.mark.parametrize("name", ["a|b", "<img src=x>", "`tick`", "[link](x)", "*bold* _it_", "# head", "a\nb", "&lt;"])
def test_names_make_no_markup(fake_evidence, name):
    evidence = fake_evidence()
    data = evidence.data.model_copy(update={"name": name})

    (row,) = [line for line in summary(evidence.model_copy(update={"data": data})).splitlines() if "| data |" in line]

    assert not re.search(r"(?<!\\)[`<*_\[\]#&]", row.removeprefix("| data |"))
    assert len(re.findall(r"(?<!\\)\|", row)) == 3


def test_names_call_nobody():
    assert escaped("mail @everyone") == "mail @<!-- -->everyone"


def test_summary_without_votes_and_rivals_is_whole(fake_evidence):
    evidence = fake_evidence()
    bare = evidence.model_copy(
        update={
            "prior": evidence.prior.model_copy(update={"votes": ()}),
            "choice": evidence.choice.model_copy(update={"rivals": ()}),
        }
    )

    assert len(curve(bare)) == 2


def test_summary_tells_each_claim_that_was_measured_and_how_to_measure_the_rest(fake_evidence):
    text = summary(fake_evidence().model_copy(update={"claims": six_claims()}))

    assert "| Reuse of features | **holds** | 31.2 points (28.1 to 34.3) |" in text
    assert len(re.findall(r"\| \*\*(?:holds|does not hold|not decided)\*\* \|", text)) == 5
    assert "Not measured: `frostline evidence RUN --claims resources` does it." in text


def test_summary_without_claims_has_no_table_of_them(fake_evidence):
    assert "freezing is said to bring" not in summary(fake_evidence())
