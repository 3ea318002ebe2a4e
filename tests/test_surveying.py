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


def test_value_that_is_the_same_for_every_sample_is_kept_once_and_no_wire():
    class Biased(nn.Module):
        """Makes a bias of weights alone, below the first cut, and adds it above."""

        def __init__(self):
            super().__init__()
            self.bias, self.stem, self.head = nn.Embedding(6, 8), nn.Linear(4, 8), nn.Linear(8, 3)

        def forward(self, x):
            bias = self.bias(torch.arange(6))
            return self.head(self.stem(x) + bias.expand(len(x), -1, -1).contiguous())

    model, x, y = Biased().eval(), torch.randn(2, 6, 4), torch.randn(5, 6, 4)
    graph = fl.trace(model, x)

    parts = fl.split(model, graph, 1)

    assert [wire.name for wire in graph.cuts[1].wires] == ["stem"]
    assert fl.prove(model, graph, 1, example=x) is None
    assert set(parts.live.state_dict()) == {"head.weight", "head.bias"}
    assert torch.equal(parts.live(*parts.frozen(y)), model(y))


def test_number_from_which_a_table_is_read_lives_as_long_as_the_table():
    class Stem(nn.Linear):
        def forward(self, x):
            return super().forward(x), torch.ones(len(x), dtype=torch.long)

    class Numbered(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.second, self.head = Stem(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)
            self.register_buffer("table", torch.arange(8.0).reshape(2, 4))

        def forward(self, x):
            x, places = self.stem(x)
            scale = self.table[places]
            return self.head(self.second(x) * scale)

    model, x = Numbered(), torch.randn(2, 4)

    graph = fl.trace(model, x)

    assert [wire.name for wire in graph.cuts[2].wires] == ["stem[1]", "second"]
    assert fl.prove(model, graph, 2, example=x) is None
