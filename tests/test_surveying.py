import torch
from torch import nn

import frostline as fl
from frostline.surveying import survey
from frostline.watching import watch


def surveyed(model, first, second):
    model = model.eval()
    passes = [(watch(model, (x,), {}, ("x",)), len(x)) for x in (first, second)]
    return survey(model, *passes)


def test_two_passes_make_a_graph():
    net = nn.Sequential(nn.Linear(2, 4), nn.Linear(4, 3))

    graph = surveyed(net, torch.ones(2, 2), torch.ones(3, 2))

    assert graph.batch == 2
    assert [wire.shape for wire in graph.cuts[1].wires] == [(2, 4)]


def test_network_that_takes_another_path_at_another_batch_size_is_blocked():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.more, self.head = nn.Linear(2, 4), nn.Linear(4, 4), nn.Linear(4, 3)

        def forward(self, x):
            y = self.stem(x)
            return self.head(self.more(y) if len(x) > 2 else y)

    graph = surveyed(Odd(), torch.ones(2, 2), torch.ones(4, 2))

    assert graph.cuts[1].blocked == (
        "the network calls other modules at another batch size, so the batch axis cannot be found"
    )


def test_sum_over_the_batch_has_no_rows():
    class Pooled(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.all, self.head = nn.Linear(2, 4), nn.Linear(4, 4), nn.Linear(4, 3)

        def forward(self, x):
            return self.head(self.all(self.stem(x).sum(0, keepdim=True)))

    graph = surveyed(Pooled(), torch.ones(2, 2), torch.ones(4, 2))

    assert graph.cuts[1].blocked is None
    assert graph.cuts[2].blocked == "no axis of 'all' (1, 4) grows with the batch, so it has no rows to keep"


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
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        return self.two(self.one(x).relu())


class Pair(nn.Module):
    """Two halves, with what came in going around them or not."""

    def __init__(self, *, around):
        super().__init__()
        self.first, self.second = Half(), Half()
        self.around = around

    def forward(self, x):
        y = self.second(self.first(x))
        return x + y if self.around else y


def names_of_pairs(*, around):
    net = nn.Sequential(nn.Linear(2, 4), *(Pair(around=around) for _ in range(3)), nn.Linear(4, 3))
    return [stage.name for stage in fl.trace(net, torch.ones(2, 2)).stages]


def test_halves_of_a_residual_block_are_no_blocks():
    assert names_of_pairs(around=True) == ["0", "1", "2", "3", "4"]


def test_blocks_that_follow_each_other_in_a_repeated_module_are_stages():
    assert names_of_pairs(around=False) == ["0", "1.first", "1", "2.first", "2", "3.first", "3", "4"]


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
