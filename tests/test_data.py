"""Samples in memory and pictures from a folder, as every room reads them."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import frostline as fl
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


def read(data, **more):
    return fl.read_pictures(fl.list_pictures(data), SMALL, **more)


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
    read(pets, folder=tmp_path / "kept")
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "kept").iterdir()}

    parts = read(pets, folder=tmp_path / "kept", seed=5, valid=0.3)

    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "kept").iterdir()} == before
    assert len(parts.valid) == 6


def test_changed_picture_gets_other_digest_and_pixels(pets, tmp_path):
    first = read(pets, folder=tmp_path / "kept")
    Image.new("RGB", (9, 9), (255, 0, 255)).save(pets / "cat" / "0.png")

    second = read(pets, folder=tmp_path / "kept")

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
