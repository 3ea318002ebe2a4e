"""Scikit-learn's handwritten digits as a folder of pictures, and a fit on them."""

import os
from pathlib import Path

import frostline as fl
from frostline.events import Listener, silent

_SIDE = 64
_COUNT = 1797


def demo(out: str | os.PathLike[str] | None = None, *, listener: Listener = silent) -> "fl.Result":
    """Fit real handwritten digits from start to report, without any download.

    Args:
        out: Folder for the pictures (`digits`) and the run (`run`); None takes `runs/demo`.
        listener: Hears what happens.

    Returns:
        What `fit` returns; `.report` is the page to open.

    Example:
        >>> fl.demo  # takes about two minutes
        <function demo at ...>
    """
    folder = Path(out) if out is not None else Path("runs") / "demo"
    task = fl.load_task(
        write_digits(folder / "digits"), image_size=_SIDE, folder=folder / "run" / "pictures", listener=listener
    )
    return fl.fit(task, out=folder / "run", listener=listener)


def write_digits(folder: str | os.PathLike[str]) -> Path:
    """Write scikit-learn's 1,797 handwritten digits as PNG files, one folder for each digit.

    The 8 x 8 originals are enlarged to 64 x 64, so that a person who opens one sees a digit.

    Args:
        folder: New, or one that an earlier call wrote.

    Returns:
        The folder.

    Example:
        >>> folder = fl.sources.demo.write_digits(tmp / "digits")
        >>> sorted(path.name for path in folder.iterdir())[:3]
        ['0', '1', '2']
    """
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_digits

    folder = Path(folder)
    if sum(1 for _ in folder.glob("*/*.png")) == _COUNT:
        return folder
    digits = load_digits()
    for number, (pixels, digit) in enumerate(zip(digits.images, digits.target, strict=True)):
        file = folder / str(digit) / f"{number:04d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        picture = Image.fromarray(np.asarray(pixels * (255 / 16), dtype=np.uint8))
        part = file.with_suffix(".part")
        picture.resize((_SIDE, _SIDE), Image.Resampling.BICUBIC).save(part, "PNG")
        part.replace(file)
    return folder
