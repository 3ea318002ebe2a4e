"""Which modules people would call a stage."""

import torch
from torch import nn

import frostline as fl


def test_repeated_blocks_are_entered_and_others_are_one_stage():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            return self.two(self.one(x).relu())

    class Single(Block):
        pass

    class Body(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = nn.ModuleList([Block(), Block()])

        def forward(self, x):
            for block in self.blocks:
                x = block(x)
            return x

    net = nn.Sequential(nn.Linear(2, 4), Body(), Single(), nn.Linear(4, 3))

    graph = fl.trace(net, torch.ones(2, 2))

    # Of the two cuts behind the last block, its own and that of the body, the later one stays.
    assert [stage.name for stage in graph.stages] == ["0", "1.blocks.0", "1", "2", "3"]
    assert graph.stages[2].keys[0] == "1.blocks.1.one.weight"


class Half(nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.one, self.two = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x):
        return self.two(self.one(x).relu())


class Pair(nn.Module):
    def __init__(self, width=4, wider=4):
        super().__init__()
        self.widen = nn.Linear(width, wider)
        self.first, self.second = Half(wider), Half(wider)

    def forward(self, x):
        return self.second(self.first(self.widen(x)))


def stage_names(*modules):
    net = nn.Sequential(nn.Linear(2, 4), *modules)
    return [stage.name for stage in fl.trace(net, torch.ones(2, 2)).stages]


def test_halves_of_a_repeated_block_are_no_blocks():
    names = stage_names(Pair(), Pair(), Pair(), nn.Linear(4, 3))

    assert names == ["0", "1", "2", "3", "4"]


def test_blocks_of_stages_that_widen_are_entered():
    names = stage_names(Pair(4, 5), Pair(5, 6), Pair(6, 7), nn.Linear(7, 3))

    assert names == ["0", "1.widen", "1.first", "1", "2.widen", "2.first", "2", "3.widen", "3.first", "3", "4"]


def test_two_towers_of_one_class_are_entered():
    names = stage_names(Pair(), Pair(), nn.Linear(4, 3))

    assert names == ["0", "1.widen", "1.first", "1", "2.widen", "2.first", "2", "3"]


def test_blocks_are_counted_through_the_containers_they_lie_in():
    class Body(nn.Module):
        def __init__(self):
            super().__init__()
            self.groups = nn.ModuleList(nn.Sequential(Half(), nn.Sequential(nn.Linear(4, 4))) for _ in range(2))

        def forward(self, x):
            for group in self.groups:
                x = group(x)
            return x

    graph = fl.trace(nn.Sequential(nn.Linear(2, 4), Body(), nn.Linear(4, 3)), torch.ones(2, 2))

    assert [stage.name for stage in graph.stages] == ["0", "1.groups.0.0", "1.groups.0", "1.groups.1.0", "1", "2"]


def test_module_that_holds_nearly_all_of_the_network_is_entered():
    class Backbone(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two, self.three = nn.Linear(2, 4), nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            return self.three(self.two(self.one(x)))

    graph = fl.trace(nn.Sequential(Backbone(), nn.Linear(4, 3)), torch.ones(2, 2))

    assert [stage.name for stage in graph.stages] == ["0.one", "0.two", "0", "1"]
