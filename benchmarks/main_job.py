"""The main job on real pictures: the searched depth against head only and full fine-tuning.

    python benchmarks/main_job.py DATA [DATA ...] --work FOLDER --json OUT [--image-size 96] [--seed 0] [--without-full]

For each folder of labelled pictures, `fl.fit` runs three times on the same split: depth "auto",
-1 (head only) and 0 (nothing frozen). Started again, it goes on where it stopped. A row says the
test accuracies with their 95 % intervals, the paired difference of the searched depth to both
baselines with its standard error, and what each cost in full fine-tunes.
"""

import argparse
import datetime
import json
import platform
import time
from pathlib import Path

import torch

import frostline as fl
from frostline import claims

ARMS = {"auto": "auto", "head only": -1, "nothing frozen": 0}


def run(data: Path, work: Path, *, image_size: int, seed: int, arms: list[str]) -> dict:
    row = {"data": data.name, "image_size": image_size, "seed": seed}
    hits = {}
    for arm in arms:
        depth = ARMS[arm]
        out = work / f"{data.name}-{image_size}-{seed}-{arm.replace(' ', '-')}"
        began = time.perf_counter()
        task = fl.load_task(data, image_size=image_size, seed=seed, folder=work / f"pictures-{data.name}-{image_size}")
        result = fl.fit(task, depth=depth, seed=seed, out=out)
        predictions = torch.tensor(result.test.predictions)
        hits[arm] = (predictions == task.test.labels).float()
        row[arm] = figures(result) | {"wall_seconds": round(time.perf_counter() - began, 1)}
        print(
            f"{data.name}: {arm}: depth {result.depth} of {result.choice.max_depth}, test {result.test.accuracy:.3f} "
            f"({result.test.low:.3f}-{result.test.high:.3f}), cost {result.cost.share_seconds:.2f} by seconds, "
            f"{result.cost.share_flops:.2f} by operations, {row[arm]['wall_seconds']} s",
            flush=True,
        )
    for arm in arms[1:]:
        difference = hits["auto"] - hits[arm]
        row[f"auto less {arm}"] = {
            "difference": float(difference.mean()),
            "standard_error": float(difference.std() / len(difference) ** 0.5),
        }
    return row


def figures(result: fl.Result) -> dict:
    """The summary without what holds on one machine only."""
    return {name: value for name, value in result.summary().items() if name not in ("report", "run")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="+", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--image-size", type=int, default=96)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--without-full", action="store_true", help="leave the dearest baseline out")
    options = parser.parse_args()
    arms = list(ARMS)[:2] if options.without_full else list(ARMS)
    rows = [
        run(data, options.work, image_size=options.image_size, seed=options.seed, arms=arms) for data in options.data
    ]
    options.json.write_text(
        json.dumps({"date": str(datetime.date.today()), "machine": machine(), "rows": rows}, indent=1)
    )


def machine() -> dict[str, str | int]:
    return {
        "processor": dict(claims.machine())["processor"],
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "frostline": fl.__version__,
    }


if __name__ == "__main__":
    main()
