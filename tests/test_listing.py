"""What folders and manifests hold: classes, parts, copies, and what is passed over."""

import csv
import subprocess
import sys

import pytest
from PIL import Image

from frostline.errors import BadSample, BadSplit, DataError, EmptyData, NoSuchData, OneClass, UnknownClass
from frostline.listing import PICTURE_ENDINGS, hashed, list_pictures, readable, walk


def draw(path, shade=0):
    """Write a small grey picture; another shade gives other bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # By the ending alone Pillow knows no format for a folder's odd names, so it is said.
    Image.new("L", (8, 8), shade).save(path, "PNG")
    return path


@pytest.fixture
def pets(tmp_path):
    """Two classes of three different pictures each."""
    for shade, label in enumerate(("cat", "dog")):
        for number in range(3):
            draw(tmp_path / "pets" / label / f"{number}.png", 10 * number + shade)
    return tmp_path / "pets"


def manifest(folder, rows, header=("path", "label"), name="pets.csv"):
    with (folder / name).open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter="\t" if name.endswith("tsv") else ",").writerows([header, *rows])
    return folder / name


# --- folders ----------------------------------------------------------------------------------


def test_each_folder_is_a_class(pets):
    listing = list_pictures(pets)

    assert listing.classes == ("cat", "dog")
    assert listing.labels == (0, 0, 0, 1, 1, 1)
    assert listing.names[0] == "cat/0.png"
    assert set(listing.parts) == {None}


def test_nested_folders_belong_to_their_class(pets):
    draw(pets / "cat" / "2019" / "summer" / "9.png")

    listing = list_pictures(pets)

    assert listing.labels[listing.names.index("cat/2019/summer/9.png")] == 0


def test_hidden_files_and_folders_are_passed_over(pets):
    for path in (".git/x.png", "cat/.thumbs/x.png", "cat/._0.png", "__MACOSX/cat/0.png"):
        draw(pets / path)

    assert len(list_pictures(pets)) == 6


def test_files_that_are_no_pictures_are_counted(pets):
    (pets / "cat" / "notes.txt").write_text("cats")
    (pets / "README").write_text("pets")

    listing = list_pictures(pets)

    assert (len(listing), listing.ignored) == (6, 2)


@pytest.mark.parametrize(
    "name", ["UPPER.PNG", "with space.JpEg", "snø 雪.png", "a.b.c.WEBP", "-dash.tif", "#&?%41.bmp"]
)
def test_odd_file_names_are_found(pets, name):
    draw(pets / "cat" / name)

    assert f"cat/{name}" in list_pictures(pets).names


def test_names_that_are_no_utf8_are_read_and_survive_json(pets):
    bad = draw(pets / "cat" / "caf\udce9.png", 99)

    listing = list_pictures(pets)

    assert "cat/caf\\xe9.png" in listing.names
    assert listing.content(listing.names.index("cat/caf\\xe9.png")) == bad.read_bytes()


def test_class_names_are_taken_as_they_are(pets):
    draw(pets / "<script>alert(1)<" / "0.png")
    draw(pets / "Größe 9" / "0.png")

    assert set(list_pictures(pets).classes) == {"cat", "dog", "<script>alert(1)<", "Größe 9"}


def test_folders_without_pictures_are_no_classes(pets):
    (pets / "empty").mkdir()
    (pets / "docs").mkdir()
    (pets / "docs" / "a.txt").write_text("a")

    assert list_pictures(pets).classes == ("cat", "dog")


def test_links_are_followed_once(pets, tmp_path):
    draw(tmp_path / "elsewhere" / "bird" / "0.png")
    (pets / "bird").symlink_to(tmp_path / "elsewhere" / "bird")
    (pets / "cat" / "loop").symlink_to(pets / "cat")

    listing = list_pictures(pets)

    assert listing.classes == ("bird", "cat", "dog")
    assert len(listing) == 7


@pytest.mark.parametrize("valid", ["valid", "val", "validation", "Val"])
def test_parts_above_the_classes_are_seen(tmp_path, valid):
    for part in ("train", valid, "test"):
        for shade, label in enumerate(("cat", "dog")):
            draw(tmp_path / part / label / "0.png", shade)

    listing = list_pictures(tmp_path)

    assert listing.classes == ("cat", "dog")
    assert dict(zip(listing.names, listing.parts, strict=True))[f"{valid}/dog/0.png"] == "valid"
    assert sorted(listing.parts) == ["test", "test", "train", "train", "valid", "valid"]


def test_classes_called_train_and_test_are_classes(tmp_path):
    for shade, label in enumerate(("train", "test", "tram")):
        draw(tmp_path / label / "0.png", shade)

    assert list_pictures(tmp_path).classes == ("test", "train", "tram")


def test_pictures_beside_the_parts_are_refused(tmp_path):
    for folder in ("train/cat", "train/dog", "test/cat", "more/bird"):
        draw(tmp_path / folder / "0.png")

    with pytest.raises(DataError, match="'more' with pictures"):
        list_pictures(tmp_path)


def test_one_class_that_holds_the_classes_gets_a_hint(pets):
    with pytest.raises(OneClass, match=r"did you mean .*/pets\?"):
        list_pictures(pets.parent)


def test_walk_gives_files_in_one_order(pets):
    assert list(walk(pets)) == sorted(walk(pets))


def test_formats_that_need_a_plugin_are_not_passed_over():
    assert ".heic" in PICTURE_ENDINGS


def test_readable_leaves_plain_names_alone():
    assert readable("snø/雪.png") == "snø/雪.png"


# --- manifests --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["pets.csv", "pets.tsv", "PETS.CSV"])
def test_manifest_paths_are_relative_to_it(pets, monkeypatch, tmp_path, name):
    monkeypatch.chdir(tmp_path)
    file = manifest(pets, [("cat/0.png", "Katze"), ("dog/0.png", "Hund, groß")], name=name)

    listing = list_pictures(file)

    assert listing.classes == ("Hund, groß", "Katze")
    assert listing.content(listing.names.index("cat/0.png")) == (pets / "cat" / "0.png").read_bytes()


def test_manifest_labels_are_names_not_numbers(pets):
    file = manifest(pets, [("cat/0.png", "007"), ("cat/1.png", "NA"), ("dog/0.png", "1.0")])

    assert list_pictures(file).classes == ("007", "1.0", "NA")


def test_manifest_with_a_byte_order_mark_and_other_columns_is_read(pets):
    file = pets / "excel.csv"
    file.write_text("id,Path,Label\r\n1,cat/0.png,cat\r\n2,dog/0.png,dog\r\n", encoding="utf-8-sig")

    assert list_pictures(file).classes == ("cat", "dog")


def test_manifest_may_give_the_parts(pets):
    rows = [
        (f"{label}/{row}.png", label, part)
        for label in ("cat", "dog")
        for row, part in enumerate(("train", "val", "test"))
    ]

    listing = list_pictures(manifest(pets, rows, header=("path", "label", "split")))

    assert sorted(listing.parts) == ["test", "test", "train", "train", "valid", "valid"]


def test_parquet_manifest_is_read(pets):
    from datasets import Dataset

    table = Dataset.from_dict({"path": ["cat/0.png", "dog/0.png"], "label": [3, 5]})
    table.to_parquet(str(pets / "pets.parquet"))

    assert list_pictures(pets / "pets.parquet").classes == ("3", "5")


def test_parquet_may_hold_the_pictures_themselves(pets, tmp_path):
    from datasets import ClassLabel, Dataset, Features, Image

    features = Features({"image": Image(), "label": ClassLabel(names=["cat", "dog"])})
    files = [pets / "cat" / "0.png", pets / "dog" / "0.png"]
    table = Dataset.from_dict({"image": list(map(str, files)), "label": [0, 1]}, features=features)
    table.to_parquet(str(tmp_path / "p.parquet"))

    listing = list_pictures(tmp_path / "p.parquet")

    assert listing.classes == ("cat", "dog")
    assert {listing.content(row) for row in range(2)} == {file.read_bytes() for file in files}


def test_manifest_without_the_columns_lists_those_it_has(pets):
    with pytest.raises(DataError, match="has the columns a, b; it needs one named path"):
        list_pictures(manifest(pets, [("cat/0.png", "cat")], header=("a", "b")))


@pytest.mark.parametrize(
    ("row", "reason"), [(("", "cat"), "row 2 .* no path"), (("cat/0.png", ""), "row 2 .* no label")]
)
def test_manifest_rows_with_gaps_are_numbered(pets, row, reason):
    with pytest.raises(DataError, match=reason):
        list_pictures(manifest(pets, [("dog/0.png", "dog"), row]))


def test_manifest_with_an_unknown_part_is_refused(pets):
    rows = [("cat/0.png", "cat", "holdout")]

    with pytest.raises(BadSplit, match="'holdout'; a part is train, valid or test"):
        list_pictures(manifest(pets, rows, header=("path", "label", "split")))


def test_manifest_that_is_no_table_is_refused(pets):
    (pets / "bad.parquet").write_bytes(b"nonsense")

    with pytest.raises(EmptyData, match="cannot be read as parquet"):
        list_pictures(pets / "bad.parquet")


def test_missing_files_of_a_manifest_are_all_named(pets):
    listing = list_pictures(manifest(pets, [("cat/8.png", "cat"), ("dog/9.png", "dog"), ("dog/0.png", "dog")]))

    with pytest.raises(BadSample, match="no such file") as caught:
        hashed(listing)

    assert caught.value.paths == ("cat/8.png", "dog/9.png")


QUIET = """
import os, socket, sys
def refuse(*args, **kwargs):
    print("CALL", args, flush=True)
    os._exit(9)
socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = refuse
import frostline as fl
print(fl.list_pictures(sys.argv[1]).classes)
"""


def test_local_manifest_sends_nothing_and_leaves_nothing_at_home(pets, tmp_path):
    file = manifest(pets, [("cat/0.png", "cat"), ("dog/0.png", "dog")])
    home = tmp_path / "home"
    home.mkdir()

    outcome = subprocess.run(
        [sys.executable, "-c", QUIET, str(file)], capture_output=True, text=True, env={"HOME": str(home), "PATH": ""}
    )

    assert outcome.stdout.strip() == "('cat', 'dog')", outcome.stderr
    assert not [path for path in home.rglob("*") if path.is_file()]


# --- the Hub ----------------------------------------------------------------------------------


def test_hub_name_goes_to_the_hub_and_says_plainly_that_it_cannot(outside_calls):
    with pytest.raises(NoSuchData, match="'beans' could not be fetched from the Hugging Face Hub"):
        list_pictures("hub:beans")


def test_hub_parts_pictures_and_class_names_are_read(pets, monkeypatch):
    import datasets

    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    files = {"img": [str(pets / "cat" / "0.png"), str(pets / "dog" / "0.png")], "label": [0, 1]}
    table = datasets.Dataset.from_dict(files, features=features)
    monkeypatch.setattr(datasets, "load_dataset", lambda name: {"train": table, "test": table})

    listing = list_pictures("hub:someone/pets")

    assert listing.classes == ("cat", "dog")
    assert listing.parts == ("test", "test", "train", "train")
    assert listing.content(0) == (pets / "cat" / "0.png").read_bytes()


def test_mistyped_folder_is_not_looked_for_on_the_hub():
    with pytest.raises(NoSuchData, match="hub:NAME"):
        list_pictures("photos/pets")


# --- copies -----------------------------------------------------------------------------------


def test_duplicates_and_conflicts_are_told(pets):
    draw(pets / "cat" / "copy.png", 0)
    draw(pets / "dog" / "strange.png", 10)

    listing = hashed(list_pictures(pets))

    assert listing.duplicates == (("cat/0.png", "cat/copy.png"), ("cat/1.png", "dog/strange.png"))
    assert listing.conflicts == (("cat/1.png", "dog/strange.png"),)


def test_copies_across_given_parts_stay_in_the_test_part(tmp_path):
    for part, shades in (("train", (1, 2, 3, 4)), ("valid", (3, 5)), ("test", (4, 6))):
        for shade in shades:
            draw(tmp_path / part / "cat" / f"{shade}.png", shade)
            draw(tmp_path / part / "dog" / f"{shade}.png", shade + 100)

    listing = hashed(list_pictures(tmp_path))

    assert "train/cat/3.png" not in listing.names
    assert "train/cat/4.png" not in listing.names
    assert {"valid/cat/3.png", "test/cat/4.png"} < set(listing.names)
    assert ("train/cat/4.png", "left out of train: same bytes as test/cat/4.png") in listing.skipped


def test_class_that_only_test_has_is_named(tmp_path):
    for folder in ("train/cat", "train/dog", "test/cat", "test/bird"):
        draw(tmp_path / folder / "0.png")

    with pytest.raises(UnknownClass, match=r"test/ of .* holds 'bird', which train/ lacks") as caught:
        list_pictures(tmp_path)

    assert caught.value.classes == ("bird",)


def test_reading_is_heard(pets):
    heard = []

    hashed(list_pictures(pets), heard.append)

    assert [(event.phase, event.done) for event in heard] == [("read", done) for done in range(7)]
    assert heard[0].unit == "pictures"
