"""torch.compile gives the outputs of a frozen part, or its reason not to."""

import pytest
import torch
from prefixes import inputs
from torch import nn

import frostline as fl
from frostline.engines import LARGEST_ERROR, compiled, relative_error


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_torch_compile_gives_the_outputs_of_a_frozen_part(precision):
    convolutions = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.Conv2d(8, 4, 3))
    net = nn.Sequential(convolutions, nn.Flatten(), nn.Linear(256, 2)).eval()
    x = inputs(8)[0]
    frozen = fl.split(net, fl.trace(net, x), 2).frozen

    run = compiled(frozen.module, (x,), engine="compile", precision=precision)

    assert (run.engine, run.precision) == ("compile", precision)
    assert relative_error(run((x[:3],)), frozen(x[:3])) <= LARGEST_ERROR[precision] / (
        1 if precision != "float32" else 100
    )
    assert all(output.dtype == torch.float32 for output in run((x,)))


def test_what_torch_compile_cannot_take_is_run_by_torch_with_the_reason(caplog):
    class Refusing(nn.Module):
        def forward(self, x):
            if torch.fx.experimental.proxy_tensor.get_proxy_mode() is not None:
                raise RuntimeError("not to be watched")
            return x * 2

    run = compiled(Refusing(), (torch.ones(2, 2),), engine="compile")

    assert (run.engine, run.why) == ("torch", "torch.compile cannot run this network: not to be watched")
    assert any("not to be watched" in record.message for record in caplog.records)
