"""What a finished run leaves in the hand of its caller."""

import json

import torch
from torch import nn

import frostline as fl


def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 2))


def points(seed: int) -> fl.TensorSamples:
    x = torch.randn(60, 4, generator=torch.Generator().manual_seed(seed))
    return fl.TensorSamples(x, (x[:, 0] * x[:, 1] > 0).long())


def small_task() -> fl.Task:
    return fl.Task(network(), points(0), points(1), points(2))


def test_the_summary_holds_what_the_command_line_promises(tmp_path):
    summary = fl.fit(small_task(), epochs=3, engine="torch", out=tmp_path / "run").summary()

    assert {"depth", "max_depth", "stage_name", "test", "valid", "cost", "seconds", "report"} <= set(summary)
    assert {"accuracy", "low", "high"} <= set(summary["test"])
    assert summary["test"]["low"] <= summary["test"]["accuracy"] <= summary["test"]["high"]
    assert set(summary["cost"]["full_finetunes"]) == {"seconds", "flops", "search_flops"}
    assert json.loads(json.dumps(summary)) == summary


def test_the_merged_network_runs_without_frostline(tmp_path):
    result = fl.fit(small_task(), depth=1, epochs=2, engine="torch", out=tmp_path / "run")
    torch.save(result.model.state_dict(), tmp_path / "merged.pt")
    inputs = points(5).read(range(8))[0]

    plain = network()
    plain.load_state_dict(torch.load(tmp_path / "merged.pt", weights_only=True))

    assert torch.equal(plain.eval()(inputs), result.model(inputs))
    assert type(result.model) is nn.Sequential
