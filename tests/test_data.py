"""Samples in memory and pictures from a folder, as every room reads them."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import frostline as fl
from frostline import data, decoding
from frostline.data import Reading, decoding_seconds, feed_of, settle
from frostline.errors import BadArgument, BadSample, EmptyData
from frostline.records import Preprocessing

quick = settings(max_examples=15, deadline=None)
SMALL = Preprocessing(image_size=8, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


@pytest.fixture
def pets(tmp_path):
    """Two classes of ten different pictures each."""
    for shade, label in enumerate(("cat", "dog")):
        for number in range(10):
            file = tmp_path / "pets" / label / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (9, 9), (10 * number, shade, 0)).save(file)
    return tmp_path / "pets"


def read(where, **more):
    return fl.read_pictures(fl.list_pictures(where), SMALL, **more)


# --- tensors ----------------------------------------------------------------------------------


@quick
@given(st.integers(1, 9), st.lists(st.integers(0, 8), min_size=1, max_size=5), st.integers(1, 3))
def test_rows_of_tensors_are_copies_of_the_rows_asked_for(number, wanted, count):
    inputs = tuple(torch.randn(number, place + 1) for place in range(count))
    part = fl.TensorSamples(inputs, torch.arange(number))
    rows = [row % number for row in wanted]
    before = [tensor[rows].clone() for tensor in inputs]

    found = part.read(rows)
    equal = all(map(torch.equal, found, before))
    for tensor in found:
        tensor.zero_()

    assert equal
    assert all(map(torch.equal, part.read(rows), before))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool, torch.uint8])
def test_digests_follow_content_of_any_type(dtype):
    rows = torch.tensor([[0, 1], [1, 0], [0, 1]]).to(dtype)

    digests = fl.TensorSamples(rows, torch.tensor([0, 1, 0])).digests

    assert digests[0] == digests[2] != digests[1]


def test_digest_covers_every_input():
    first, second = torch.zeros(2, 3), torch.tensor([[1.0], [2.0]])

    digests = fl.TensorSamples((first, second), torch.tensor([0, 1])).digests

    assert digests[0] != digests[1]


def test_tensors_with_gradients_are_read_without():
    part = fl.TensorSamples(torch.randn(2, 3, requires_grad=True), torch.tensor([0, 1]))

    assert not part.read([0])[0].requires_grad


TEXTS = torch.tensor([[2, 1, 0], [1, 3, 0]])


@pytest.mark.parametrize(
    "words", [["[PAD]", "my", "card"], ("[PAD]", "my", "card"), {0: "[PAD]", 1: "my", 2: "card", 3: "3"}.__getitem__]
)
def test_a_token_is_called_what_the_vocabulary_says(words):
    part = fl.TensorSamples(TEXTS, torch.tensor([0, 1]), words=words)

    assert part.words([2, 1, 0, 3]) == ("card", "my", "[PAD]", "3")


def test_letters_can_be_the_vocabulary_in_one_string():
    assert fl.TensorSamples(TEXTS, torch.tensor([0, 1]), words="_abc").words([1, 3]) == ("a", "c")


def test_tokens_without_words_are_called_by_their_numbers():
    assert fl.TensorSamples(TEXTS, torch.tensor([0, 1])).words([2, 0]) == ("2", "0")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ({"card": 2}, "words is a dict"),
        (7, "words is a int"),
        ([0, 1, 2], "words gives a int for the token 2"),
        (lambda token: None, "words gives a NoneType for the token 2"),
    ],
)
def test_what_is_no_vocabulary_is_refused(words, says):
    with pytest.raises(BadArgument, match=says):
        fl.TensorSamples(TEXTS, torch.tensor([0, 1]), words=words)


def test_a_vocabulary_changes_nothing_that_is_computed():
    plain, worded = (fl.TensorSamples(TEXTS, torch.tensor([0, 1]), words=words) for words in (None, "_abc"))

    assert (plain.digests, plain.preparation) == (worded.digests, worded.preparation)


@pytest.mark.parametrize(
    "labels",
    [torch.zeros(3), torch.zeros(3, 1, dtype=torch.long), torch.zeros(2, dtype=torch.long), torch.tensor([0, -1, 1])],
)
def test_labels_that_are_none_are_refused(labels):
    with pytest.raises(BadArgument, match="label"):
        fl.TensorSamples(torch.zeros(3, 2), labels)


def test_no_samples_are_refused():
    with pytest.raises(EmptyData, match="no samples"):
        fl.TensorSamples(torch.zeros(0, 2), torch.zeros(0, dtype=torch.long))


def test_tensors_have_one_view():
    part = fl.TensorSamples(torch.zeros(3, 2), torch.tensor([0, 1, 0]))

    with pytest.raises(BadArgument, match="only view 0"):
        part.read([0], view=1)


# --- pictures ---------------------------------------------------------------------------------


def test_parts_and_counts_agree(pets):
    parts = read(pets)

    assert [len(part) for part in (parts.train, parts.valid, parts.test)] == [12, 4, 4]
    assert parts.summary.counts == ((6, 2, 2), (6, 2, 2))


def test_labels_belong_to_their_pictures(pets):
    for part in (read(pets).train, read(pets).valid, read(pets).test):
        (inputs,) = part.read(range(len(part)))
        shades = ((inputs[:, 1, 4, 4] * 0.5 + 0.5) * 255).round().long()
        assert torch.equal(shades, part.labels)
        assert all(name.startswith("cat") == (label == 0) for name, label in zip(part.names, part.labels, strict=True))


def test_all_bad_files_are_named_at_once(pets):
    (pets / "cat" / "bad.jpg").write_bytes(b"junk")
    (pets / "dog" / "worse.png").write_bytes((pets / "dog" / "0.png").read_bytes()[:40])

    with pytest.raises(BadSample, match=r"2 of 22 pictures .* --skip-bad") as caught:
        read(pets)

    assert caught.value.paths == ("cat/bad.jpg", "dog/worse.png")


def test_skip_bad_goes_on_and_tells(pets):
    (pets / "cat" / "bad.jpg").write_bytes(b"junk")
    (pets / "cat" / "gone.jpg").symlink_to(pets / "nothing")

    summary = read(pets, skip_bad=True).summary

    assert [name for name, _ in summary.skipped] == ["cat/gone.jpg", "cat/bad.jpg"]
    assert sum(map(sum, summary.counts)) == 20


def test_bad_files_stay_known_when_the_pixels_are_kept(pets, tmp_path):
    (pets / "cat" / "bad.jpg").write_bytes(b"junk")

    first, second = (read(pets, skip_bad=True, folder=tmp_path / "kept").summary for _ in range(2))

    assert first == second


def test_kept_pixels_serve_another_division(pets, tmp_path):
    settle(read(pets, folder=tmp_path / "kept").train)
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "kept").iterdir()}

    parts = read(pets, folder=tmp_path / "kept", seed=5, valid=0.3)

    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "kept").iterdir()} == before
    assert len(parts.valid) == 6


def test_changed_picture_gets_other_digest_and_pixels(pets, tmp_path):
    first = read(pets, folder=tmp_path / "kept")
    settle(first.train)
    Image.new("RGB", (9, 9), (255, 0, 255)).save(pets / "cat" / "0.png")

    second = read(pets, folder=tmp_path / "kept")
    settle(second.train)

    digests = [{*parts.train.digests, *parts.valid.digests, *parts.test.digests} for parts in (first, second)]
    assert len(digests[0] - digests[1]) == len(digests[1] - digests[0]) == 1
    assert len(list((tmp_path / "kept").glob("*.pixels"))) == 2


def test_same_seed_gives_the_same_parts(pets):
    assert read(pets, seed=3).test.names == read(pets, seed=3).test.names


def test_summary_survives_json(pets):
    (pets / "cat" / "copy.png").write_bytes((pets / "dog" / "1.png").read_bytes())

    summary = read(pets).summary

    assert summary.conflicts == (("cat/copy.png", "dog/1.png"),)
    assert type(summary).model_validate_json(summary.model_dump_json()) == summary


# --- passes -----------------------------------------------------------------------------------


def damaged(content):
    """Bytes whose end is in its place and whose middle is not."""
    return content[:45] + bytes(8) + content[53:]


def test_a_picture_whose_damage_does_not_show_is_named_by_the_first_pass(pets):
    whole = (pets / "dog" / "3.png").read_bytes()
    (pets / "dog" / "3.png").write_bytes(damaged(whole))
    parts = read(pets)

    with pytest.raises(BadSample, match=r"1 of 20 pictures .*'dog/3\.png'"):
        settle(parts.train, parts.valid, parts.test)


def test_skip_bad_finds_damage_that_does_not_show_before_the_division(pets):
    whole = (pets / "dog" / "3.png").read_bytes()
    (pets / "dog" / "3.png").write_bytes(damaged(whole))

    parts = read(pets, skip_bad=True)
    settle(parts.train, parts.valid, parts.test)

    assert [name for name, _ in parts.summary.skipped] == ["dog/3.png"]
    assert sum(map(sum, parts.summary.counts)) == 19


def test_what_was_skipped_once_is_not_skipped_silently_later(pets, tmp_path):
    whole = (pets / "dog" / "3.png").read_bytes()
    (pets / "dog" / "3.png").write_bytes(damaged(whole))
    read(pets, skip_bad=True, folder=tmp_path / "kept")

    with pytest.raises(BadSample, match=r"dog/3\.png"):
        read(pets, folder=tmp_path / "kept")


def test_a_pass_gives_what_single_reads_give(pets):
    part = read(pets).train
    batches = [(0, range(4)), (0, range(4, 8)), (0, [11, 0])]

    with Reading(part, batches) as reading:
        found = [inputs[0] for inputs in reading]

    assert all(torch.equal(inputs, part.read(rows)[0]) for inputs, (_, rows) in zip(found, batches, strict=True))


def test_a_pass_decodes_while_what_was_read_is_worked_on(pets, monkeypatch):
    order = []
    decode = decoding.decode
    monkeypatch.setattr(decoding, "decode", lambda *args: order.append("decode") or decode(*args))
    part = read(pets).train
    rows = [(0, [row]) for row in range(12)]

    with Reading(part, rows) as reading:
        for inputs in reading:
            order.append("work")
            assert inputs[0].shape == (1, 3, 8, 8)

    first_work = order.index("work")
    assert first_work < len(order) - order[::-1].index("decode")


@pytest.mark.parametrize(("slow", "note"), [("reading", "waiting for pictures"), ("working", "waiting for the engine")])
def test_a_pass_says_what_it_waits_for(slow, note, monkeypatch):
    part = fl.TensorSamples(torch.zeros(4, 2), torch.tensor([0, 1, 0, 1]))
    now = [0.0]
    monkeypatch.setattr(data.time, "perf_counter", lambda: now[0])

    def read(rows, view):
        now[0] += 3.0 if slow == "reading" else 1.0
        return part.read(rows)

    with Reading(part, [(0, [row]) for row in range(4)], read) as reading:
        for number, _ in enumerate(reading):
            # The first batch waits for the engine to be made, which says nothing of the pass.
            now[0] += 2.0 if number else 1000.0

    assert reading.note == note


def test_pictures_are_fed_as_bytes_and_finished_to_their_inputs(pets):
    part = read(pets).train
    feed = feed_of(part)

    inputs = feed.read([3, 1], 0)

    assert inputs[0].dtype == torch.uint8
    assert torch.equal(feed.finished(inputs)[0], part.read([3, 1])[0])
    assert torch.equal(feed.before(torch.nn.Flatten())(*inputs), part.read([3, 1])[0].flatten(1))


def test_pictures_are_finished_where_the_network_is(pets):
    feed = feed_of(read(pets).train, device=torch.device("meta"))

    inputs = feed.finished(tuple(tensor.to("meta") for tensor in feed.read([3, 1], 0)))

    assert feed.read([3, 1], 0)[0].device.type == "cpu"
    assert inputs[0].device.type == "meta"


def test_further_views_and_tensors_are_fed_as_they_are(pets):
    part = read(pets).train.with_views(2)
    tensors = fl.TensorSamples(torch.zeros(2, 4), torch.tensor([0, 1]))
    module = torch.nn.Flatten()

    assert torch.equal(feed_of(part, views=2).read([3], 1)[0], part.read([3], 1)[0])
    assert feed_of(tensors).before(module) is module


def test_decoding_is_counted_and_tensors_need_none(pets):
    part = read(pets).train
    before = decoding_seconds(part)

    settle(part)

    assert decoding_seconds(part) > before
    assert decoding_seconds(fl.TensorSamples(torch.zeros(2, 4), torch.tensor([0, 1]))) == 0
