"""Freezing where other machinery keeps its own view of the network, and where the user's hand slips."""

import importlib
import json
import os
import subprocess
import sys
from datetime import timedelta

import pytest
import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from frostline.errors import FrostlineError


def network(seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3))


def batch(seed=0):
    return torch.randn(8, 5, generator=torch.Generator().manual_seed(seed))


def trained_on_two_ranks(freezing, rank, meet):
    """Freeze, wrap and train as one of two ranks; what moved, and whether both ranks hold the same bits."""
    distributed.init_process_group("gloo", init_method=meet, rank=rank, world_size=2, timeout=timedelta(seconds=100))
    try:
        net = network()
        freezing.freeze(net, 1, batch())
        before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
        wrapped = DistributedDataParallel(net)
        optimizer = torch.optim.AdamW(net.parameters(), lr=0.1, weight_decay=0.1)
        for step in range(4):
            optimizer.zero_grad()
            wrapped.train()(batch(10 * step + rank)).square().mean().backward()
            optimizer.step()
        flat = torch.cat([tensor.double().flatten() for tensor in net.state_dict().values()])
        both = [torch.zeros_like(flat) for _ in range(2)]
        distributed.all_gather(both, flat)
    finally:
        distributed.destroy_process_group()
    return [name for name, tensor in net.state_dict().items() if not torch.equal(tensor, before[name])], torch.equal(
        *both
    )


def test_case_41_two_ranks_with_a_frozen_part_stay_equal_and_need_no_search_for_unused_weights(freezing, tmp_path):
    meet = f"file://{tmp_path / 'meet'}"
    settings = os.environ | {"OMP_NUM_THREADS": "1"}

    ranks = [
        subprocess.Popen(
            [sys.executable, __file__, freezing.__name__, str(rank), meet], env=settings, stdout=subprocess.PIPE
        )
        for rank in range(2)
    ]
    (moved, is_equal), other = (json.loads(rank.communicate(timeout=200)[0]) for rank in ranks)

    assert other == [moved, is_equal]
    assert moved == ["2.weight", "2.bias", "4.weight", "4.bias"]
    assert is_equal


@pytest.fixture
def alone(tmp_path):
    """A group of this process only."""
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'meet'}", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def test_case_41_a_change_of_depth_after_the_wrap_is_refused_with_what_to_do(freezing, alone):
    net = network()
    freezing.freeze(net, 1, batch())
    wrapped = DistributedDataParallel(net)

    for target in (wrapped, net):
        with pytest.raises(FrostlineError, match=r"wrap.* again"):
            freezing.freeze(target, 2, batch())

    assert [weight.requires_grad for weight in net.parameters()] == [False] * 4 + [True] * 4


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch", "ignore::FutureWarning:torch")
def test_case_42_a_compiled_network_follows_a_change_of_depth(freezing):
    net, x = network(), batch()
    freezing.freeze(net, 2, x)
    compiled = torch.compile(net, backend="eager")
    trained = {}

    for depth in (2, 1, 2, 0):
        freezing.freeze(net, depth, x)
        before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        net.zero_grad()
        net.train()
        compiled(x).square().mean().backward()
        optimizer.step()
        trained[depth] = {name[0] for name, tensor in net.state_dict().items() if not torch.equal(tensor, before[name])}

    assert trained == {2: {"4"}, 1: {"2", "4"}, 0: {"0", "1", "2", "4"}}
    torch._dynamo.reset()


def test_case_43_a_flag_set_on_a_module_instead_of_its_weights_is_told(freezing):
    net = network()
    net[0].requires_grad = False
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}

    told = freezing.verify(net, before).advice + freezing.layer_status(net, batch()).advice

    assert any("requires_grad_" in advice and "0" in advice for advice in told)


# --- each case can fail -----------------------------------------------------------------------


def test_broken_freeze_fails_exactly_the_cases_that_it_should(broken, cases_failed_by):
    assert cases_failed_by(globals(), broken) == {42, 43}


def test_broken_freeze_changes_a_wrapped_network_in_silence(broken, alone):
    with pytest.raises(pytest.fail.Exception, match="DID NOT RAISE"):
        test_case_41_a_change_of_depth_after_the_wrap_is_refused_with_what_to_do(broken, alone)


def test_weights_that_freeze_after_the_wrap_are_what_case_41_guards_against(alone):
    net = network()
    wrapped = DistributedDataParallel(net)
    net[0].requires_grad_(False)

    wrapped(batch()).square().mean().backward()

    with pytest.raises(RuntimeError, match="find_unused_parameters"):
        wrapped(batch())


if __name__ == "__main__":
    sys.stdout.write(
        json.dumps(trained_on_two_ranks(importlib.import_module(sys.argv[1]), int(sys.argv[2]), sys.argv[3]))
    )
    sys.stdout.flush()
    # Torch 2.14 leaves threads of gloo unjoined: one process in ten aborts where it ends by itself.
    os._exit(0)
