"""One setting on one job: `python -m peer_loops`, which `benchmarks/peers.py` starts anew for each row."""

import argparse
import contextlib
import importlib
import json
import sys
from pathlib import Path

from peer_loops import SETTINGS, Job


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("setting", choices=SETTINGS)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--scratch", type=Path, required=True)
    parser.add_argument("--image-size", type=int, required=True)
    parser.add_argument("--epochs", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    options = parser.parse_args()
    setting = SETTINGS[options.setting]
    job = Job(options.data, options.scratch, options.image_size, options.epochs, options.seed)
    # Tools print as they like; the last line of stdout is ours.
    with contextlib.redirect_stdout(sys.stderr):
        loop = importlib.import_module(f"peer_loops.with_{setting.package}")
        job.mark("imported")
        answers = loop.run(job, **setting.options)
        job.mark("answered")
        job.mark("reported")
    hits = [answers[f"{file.parent.name}/{file.name}"] == file.parent.name for file in job.files("test")]
    print(
        json.dumps(
            {
                "moments": job.moments,
                "test_hits": "".join("1" if hit else "0" for hit in hits),
                "threads": sys.modules["torch"].get_num_threads(),
                "details": job.details,
            }
        )
    )


if __name__ == "__main__":
    main()
