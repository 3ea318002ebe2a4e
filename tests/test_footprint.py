"""The memory of training, measured in a process of its own."""

import pytest
import torch
from torch import nn

import frostline as fl
from frostline.footprint import Request, measure_memory
from frostline.records import Recipe

WIDTH = 1500


def measured(folder, *, depth, is_stored=True, network=None):
    folder.mkdir()
    net = network or nn.Sequential(*[nn.Linear(WIDTH, WIDTH) for _ in range(4)], nn.Linear(WIDTH, 2))
    x = torch.zeros(32, WIDTH)
    graph = fl.trace(net, x[:4])
    rows = fl.split(net, graph, depth).frozen(x) if is_stored and depth else (x,)
    request = Request(
        source=None, image_size=None, depth=depth, is_stored=is_stored, recipe=Recipe(), threads=torch.get_num_threads()
    )
    labels = torch.zeros(32, dtype=torch.int64)
    return measure_memory(request, rows, example=(x[:4],), labels=labels, network=net, folder=folder)


@pytest.mark.slow
def test_training_everything_takes_at_least_weights_gradients_and_moments_and_training_the_head_much_less(tmp_path):
    full = measured(tmp_path / "full", depth=0)
    head = measured(tmp_path / "head", depth=4)
    unstored = measured(tmp_path / "unstored", depth=4, is_stored=False)

    weights = 4 * 4 * WIDTH * (WIDTH + 1) + 4 * 2 * (WIDTH + 1)
    assert full.state_bytes == 3 * weights
    assert 4 * weights < full.peak_bytes < 8 * weights
    assert head.state_bytes == unstored.state_bytes == 3 * 4 * 2 * (WIDTH + 1)
    assert head.peak_bytes < weights / 2 < unstored.peak_bytes < full.peak_bytes / 2


class Homeless(nn.Linear):
    """A class that no other process can import."""


Homeless.__module__ = "no_such_module"


def test_a_network_that_no_fresh_process_can_make_is_told(tmp_path):
    with pytest.raises(Exception, match="no_such_module"):
        measured(tmp_path / "run", depth=0, network=nn.Sequential(Homeless(WIDTH, 2)))
