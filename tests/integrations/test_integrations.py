import pytest
import torch
from torch import nn

import frostline as fl
from frostline.errors import BadArgument, FrozenMoved
from frostline.integrations import FrozenTraining

EXAMPLE = torch.zeros(2, 6)


@pytest.fixture
def network():
    first, second = (nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.ReLU()) for _ in range(2))
    return nn.Sequential(first, second, nn.Linear(6, 3))


def groups(network):
    return torch.optim.SGD(network.parameters(), lr=0.1).param_groups


def test_until_the_start_all_that_the_schedule_thaws_is_trainable(network):
    FrozenTraining(network, -1, EXAMPLE, schedule={1: 1})

    assert fl.layer_status(network).depth == 1


def test_the_start_freezes_at_the_first_depth(network):
    training = FrozenTraining(network, -1, EXAMPLE, schedule={1: 1})

    training.start(groups(network))

    assert fl.layer_status(network).depth == 2


def test_a_stage_that_moved_before_it_was_thawed_is_found(network):
    training = FrozenTraining(network, -1, EXAMPLE, schedule={1: 0})
    training.start(groups(network))
    with torch.no_grad():
        network[0][0].weight.add_(1)

    with pytest.raises(FrozenMoved, match=r"0\.0\.weight"):
        training.step()


def test_a_stage_that_moved_once_thawed_is_no_matter(network):
    training = FrozenTraining(network, -1, EXAMPLE, schedule={1: 1})
    training.start(groups(network))
    training.step()
    with torch.no_grad():
        network[1][0].weight.add_(1)

    training.check()

    assert fl.layer_status(network).depth == 1


def test_a_stage_that_the_schedule_freezes_later_is_held_as_it_was_then(network):
    training = FrozenTraining(network, 1, EXAMPLE, schedule={1: -1})
    training.start(groups(network))
    network[1][1].running_mean.add_(1)
    training.step()

    training.check()


def test_a_schedule_that_begins_at_epoch_0_is_refused(network):
    with pytest.raises(BadArgument, match="begins at epoch 0"):
        FrozenTraining(network, -1, EXAMPLE, schedule={0: 1})


def test_a_saved_state_sets_the_depth(network):
    first = FrozenTraining(network, -1, EXAMPLE, schedule={1: 1, 2: 0})
    first.start(groups(network))
    first.step()
    again = FrozenTraining(network, -1, EXAMPLE, schedule={1: 1, 2: 0})

    again.start(groups(network), first.state_dict())

    assert fl.layer_status(network).depth == 1


def test_one_depth_has_no_state(network):
    training = FrozenTraining(network, -1, EXAMPLE)
    training.start(groups(network))

    training.step()

    assert training.state_dict() == {}
