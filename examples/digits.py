"""Fine-tune a network on real handwritten digits, and say what freezing bought.

Run it with `python examples/digits.py`. It needs no download: the digits come with scikit-learn,
the pretrained weights with a package that frostline depends on.
"""

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

import frostline as fl

EACH = 90  # pictures of each digit


def write_pictures(folder: Path) -> None:
    """Write a folder with a folder per digit, as real pictures come."""
    digits = load_digits()
    for label in range(10):
        place = folder / str(label)
        place.mkdir(parents=True)
        for number, values in enumerate(digits.images[digits.target == label][:EACH]):
            grey = np.uint8(255 - values * 255 / 16)
            Image.fromarray(grey).resize((64, 64), Image.Resampling.BICUBIC).save(place / f"{number}.png")


def main() -> None:
    """Fit, then compare what was tried."""
    with TemporaryDirectory() as folder:
        pictures, run = Path(folder, "pictures"), Path(folder, "run")
        write_pictures(pictures)

        task = fl.load_task(pictures, image_size=64, seed=0)
        result = fl.fit(task, epochs=10, seed=0, out=run)

        choice, test, cost = result.choice, result.test, result.cost
        print(f"{len(task.train)} pictures to train on, {len(task.test)} to test")
        print(f"depth {choice.depth} of {choice.max_depth}: {choice.reason}")
        for rival in choice.rivals:
            print(f"  depth {rival.depth:2} was at {rival.accuracy:.3f} on validation: {rival.verdict}")
        print(f"test accuracy {test.accuracy:.3f}, 95 % interval {test.low:.3f} to {test.high:.3f}")
        print(f"cost {cost.share_seconds:.2f} of one full fine-tune ({cost.seconds:.0f} s)")


if __name__ == "__main__":
    main()
