"""Where head only is best: labels that are a linear function of the deepest features.

    python benchmarks/head_only.py DATA --work FOLDER --json OUT [--image-size 96] [--classes 4] [--seeds 3]

The pictures of a folder get new labels: the class whose random direction has the largest product
with the picture's deepest features (their leading principal components, each of variance one), so
that the head alone can express them exactly. A search that pays for unfreezing here has been
fooled by noise. A row says the depth chosen, and the test accuracy.
"""

import argparse
import datetime
import json
from pathlib import Path

import torch
from main_job import figures, machine

import frostline as fl


class Relabelled:
    """The same samples under other labels."""

    def __init__(self, samples, labels: torch.Tensor) -> None:
        self._samples = samples
        self.labels = labels
        self.views = samples.views
        self.names, self.digests, self.preparation = samples.names, samples.digests, samples.preparation

    def __len__(self) -> int:
        return len(self._samples)

    def read(self, rows, view: int = 0):
        return self._samples.read(rows, view)


def relabelled(task: fl.Task, *, classes: int, components: int, seed: int) -> fl.Task:
    graph = fl.trace(task.model, task.example())
    deepest = fl.split(task.model, graph, graph.max_depth).frozen
    parts = (task.train, task.valid, task.test)
    features = [
        torch.cat(
            [deepest(*part.read(range(i, min(i + 32, len(part)))))[0].flatten(1) for i in range(0, len(part), 32)]
        )
        for part in parts
    ]
    mean = features[0].mean(dim=0)
    _, sizes, axes = torch.pca_lowrank(features[0] - mean, q=components, center=False)
    scale = sizes / len(features[0]) ** 0.5
    directions = torch.randn(components, classes, generator=torch.Generator().manual_seed(seed))
    named = [
        Relabelled(p, ((f - mean) @ axes / scale @ directions).argmax(dim=1))
        for p, f in zip(parts, features, strict=True)
    ]
    return fl.Task(fl.load_model("efficientnet_lite0", classes).model, *named)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--image-size", type=int, default=96)
    parser.add_argument("--classes", type=int, default=4)
    parser.add_argument("--components", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    task = fl.load_task(options.data, image_size=options.image_size, folder=options.work / "pictures")
    rows = []
    for seed in range(options.seeds):
        torch.manual_seed(seed)  # pca_lowrank draws from the global generator
        linear = relabelled(task, classes=options.classes, components=options.components, seed=seed)
        result = fl.fit(linear, seed=seed, out=options.work / f"linear-{options.data.name}-{seed}")
        rows.append({"data": options.data.name, "seed": seed} | figures(result))
        print(f"seed {seed}: depth {result.depth} of {result.choice.max_depth}; {result.choice.reason}", flush=True)
    options.json.write_text(
        json.dumps({"date": str(datetime.date.today()), "machine": machine(), "rows": rows}, indent=1)
    )


if __name__ == "__main__":
    main()
