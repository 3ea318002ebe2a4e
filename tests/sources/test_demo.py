"""The demo's pictures are scikit-learn's digits, each written whole."""

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from frostline.sources.demo import write_digits


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return write_digits(tmp_path_factory.mktemp("demo") / "digits")


def test_every_digit_is_in_the_folder_of_its_class(digits):
    found = {int(path.stem): int(path.parent.name) for path in digits.glob("*/*.png")}

    assert [found[number] for number in range(1797)] == load_digits().target.tolist()


def test_pictures_are_the_digits_enlarged(digits):
    picture = Image.open(digits / "0" / "0000.png")

    small = np.asarray(picture.resize((8, 8), Image.Resampling.BOX), dtype=float)
    assert picture.size == (64, 64)
    assert np.corrcoef(small.ravel(), load_digits().images[0].ravel())[0, 1] > 0.97


def test_second_call_writes_nothing(digits):
    before = {path: path.stat().st_mtime_ns for path in digits.rglob("*")}

    write_digits(digits)

    assert {path: path.stat().st_mtime_ns for path in digits.rglob("*")} == before


def test_missing_picture_is_written_again(digits):
    (digits / "0" / "0000.png").unlink()

    write_digits(digits)

    assert (digits / "0" / "0000.png").exists()
