import copy
import io
import pickle

import pytest
import torch
from torch import nn

import frostline as fl
from frostline.errors import BadArgument
from frostline.standins import frozen_names, with_stand_ins
from frostline.testing import CLOSE, Specimen, menagerie, network, specimen


def standing(name, depth, fill=0.0):
    one = specimen(name)
    one.model.eval()
    graph = fl.trace(one.model, one.example)
    return one, graph, with_stand_ins(one.model, graph.recording, depth, fill=fill)


def test_frozen_places_take_no_memory():
    _, _, live = standing("attention", 3)

    for name in ("token", "positions"):
        assert isinstance(getattr(live, name), torch.Tensor)
        assert getattr(live, name).untyped_storage().nbytes() == 4
    assert live.patches.weight.untyped_storage().nbytes() == 4


def test_stand_in_runs_no_operation():
    one, graph, live = standing("chain", 2)
    wires = fl.split(one.model, graph, 2).frozen(one.example)
    with torch.profiler.profile() as profile, torch.no_grad():
        live(*wires)

    products = [event for event in profile.events() if event.name == "aten::addmm"]
    assert len(products) == 2


def test_blanks_carry_the_fill():
    _, _, live = standing("chain", 2, fill=float("nan"))

    assert live[0].weight.isnan().all()


def test_never_read_tensors_stay_in_the_base():
    class Kept(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.head, self.spare = nn.Linear(2, 4), nn.Linear(4, 3), nn.Linear(3, 3)

        def forward(self, x):
            return self.head(self.stem(x))

    model = Kept()
    graph = fl.trace(model, torch.ones(2, 2))

    assert frozen_names(graph.recording, 1) == {"stem.weight", "stem.bias", "spare.weight", "spare.bias"}
    assert frozen_names(graph.recording, 0) == set()
    assert set(with_stand_ins(model, graph.recording, 0).state_dict()) == set(model.state_dict())
    assert set(with_stand_ins(model, graph.recording, 1).state_dict()) == {"head.weight", "head.bias"}


def test_weight_that_only_train_mode_reads_belongs_to_the_module_around_it():
    class Masking(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.mask, self.head = nn.Linear(2, 4), nn.Parameter(torch.randn(4)), nn.Linear(4, 3)

        def forward(self, x):
            x = self.stem(x)
            return self.head(x + self.mask if self.training else x)

    model = Masking()
    graph = fl.trace(model, torch.ones(2, 2))

    assert set(with_stand_ins(model, graph.recording, 1).state_dict()) == {"mask", "head.weight", "head.bias"}
    assert fl.prove(model, graph, 1, example=torch.ones(2, 2)) is None


def test_buffer_that_glue_reads_stays_and_is_not_in_the_state():
    class Numbered(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.head = nn.Linear(2, 4), nn.Linear(4, 3)
            self.register_buffer("numbers", torch.arange(4))

        def forward(self, x, keep):
            mask = keep & (self.numbers < 3)
            return self.head(self.stem(x) * mask)

    one = Specimen("numbered", Numbered(), (torch.randn(4, 2), torch.ones(4, 1, dtype=torch.bool)))
    graph = fl.trace(one.model, one.example)
    live = with_stand_ins(one.model, graph.recording, 1)

    assert torch.equal(live.numbers, one.model.numbers)
    assert set(live.state_dict()) == {"head.weight", "head.bias"}
    assert fl.prove(one.model, graph, 1, example=one.example) is None


class PlacesThroughIdentity(nn.Module):
    """Relative places, which the root computes from weights, pass through an `Identity` and reach every block."""

    def __init__(self):
        super().__init__()
        self.register_buffer("coordinates", torch.linspace(-1, 1, 6)[:, None])
        self.places = nn.Linear(1, 6)
        self.act = nn.Identity()
        self.blocks = nn.ModuleList([nn.Linear(6, 6) for _ in range(3)])

    def forward(self, x):
        places = self.act((4 * self.places(self.coordinates)).T).sum(0)
        for block in self.blocks:
            x = block(x) + places
        return x


def test_what_is_the_same_for_every_sample_passes_through_an_identity():
    net, x = PlacesThroughIdentity().eval(), torch.randn(3, 6)
    graph = fl.trace(net, x)

    reasons = {depth: fl.prove(net, graph, depth, example=x) for depth in graph.open_depths}

    assert len(reasons) >= 3
    assert set(reasons.values()) == {None}


def test_module_called_on_both_sides_gives_the_record_first_and_runs_then():
    one, graph, live = standing("shared_activation", 2)
    wires = fl.split(one.model, graph, 2).frozen(one.example)

    with torch.no_grad():
        first, second = live(*wires), live(*wires)

    assert torch.equal(first, one.output())
    assert torch.equal(second, one.output())


def test_two_outputs_that_are_views_of_one_storage_are_both_given():
    class Halves(nn.Module):
        def __init__(self):
            super().__init__()
            self.wide = nn.Linear(5, 8)

        def forward(self, x):
            return {"left": (y := self.wide(x))[:, :4], "right": y[:, 4:], "all": y}

    class Views(nn.Module):
        def __init__(self):
            super().__init__()
            self.halves, self.last, self.head = Halves(), nn.Linear(4, 4), nn.Linear(4, 3)

        def forward(self, x):
            parts = self.halves(x)
            return self.head(self.last(parts["left"] * parts["right"]) + parts["all"][:, 2:6])

    one = Specimen("views", Views(), torch.randn(4, 5))
    graph = fl.trace(one.model, one.example)

    assert len(graph.cuts[1].wires) == 1
    assert [fl.prove(one.model, graph, depth, example=one.example) for depth in graph.open_depths] == [None] * 3


def test_number_that_grows_with_the_batch_is_given_for_this_batch():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(5, 4)

        def forward(self, x):
            return self.inner(x), len(x)

    class Mean(nn.Module):
        def __init__(self):
            super().__init__()
            self.count, self.head = Counting(), nn.Linear(4, 3)

        def forward(self, x):
            y, count = self.count(x)
            return self.head(y) * count

    model = Mean().eval()
    graph = fl.trace(model, torch.randn(2, 5))
    x = torch.randn(7, 5)
    parts = fl.split(model, graph, 1)

    with torch.no_grad():
        assert torch.equal(parts.live(*parts.frozen(x)), model(x))


@pytest.mark.parametrize("count", [0, 3])
def test_other_number_of_wires_is_refused(count):
    _, _, live = standing("chain", 1)

    with pytest.raises(BadArgument, match="1 wires cross this cut"):
        live(*[torch.ones(4, 6)] * count)


def test_wires_of_the_caller_survive_glue_that_writes_into_them_twice():
    one = network(["keep", "join", "join"])
    one.model.eval()
    graph = fl.trace(one.model, one.example)
    depth = [stage.name for stage in graph.stages].index("pieces.1.1") + 1
    parts = fl.split(one.model, graph, depth)
    wires = parts.frozen(one.example)
    kept = [wire.clone() for wire in wires]

    with torch.no_grad():
        found = parts.live(*wires)

    assert torch.equal(found, one.output())
    assert all(map(torch.equal, wires, kept))


# --- a live part is a module like any other ---------------------------------------------------


def through_a_file(module):
    """What `torch.load` makes of a module that `torch.save` wrote."""
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize(
    "again",
    [copy.deepcopy, lambda live: pickle.loads(pickle.dumps(live)), through_a_file],
    ids=["copy", "pickle", "file"],
)
@pytest.mark.parametrize("name", ["batch_norm", "shared_activation", "attention", "padded_tokens", "in_place"])
def test_live_part_survives_copying_and_writing_with_the_same_bits(again, name):
    one, graph, live = standing(name, 3)
    wires = fl.split(one.model, graph, 3).frozen(*one.inputs)
    live(*wires)

    other = again(live)

    with torch.no_grad():
        assert torch.equal(other(*wires), one.output())
    assert other.state_dict().keys() == live.state_dict().keys()


def test_written_live_part_holds_no_wires():
    one, graph, live = standing("batch_norm", 2)
    wires = fl.split(one.model, graph, 2).frozen(one.example)

    live(*wires)
    few = len(pickle.dumps(live))
    live(*[torch.cat([wire] * 20) for wire in wires])

    assert len(pickle.dumps(live)) == few


@pytest.mark.parametrize("one", menagerie(), ids=lambda one: one.name)
def test_plain_dict_loads_into_a_live_part(one):
    graph = fl.trace(one.model, one.example)
    for depth in graph.open_depths:
        parts = fl.split(one.model, graph, depth)
        plain = {key: tensor + 1 for key, tensor in parts.live.state_dict().items()}

        parts.live.load_state_dict(plain)

        assert all(torch.equal(tensor, plain[key]) for key, tensor in parts.live.state_dict().items())


def test_compiled_live_part_takes_another_batch_size():
    one, graph, live = standing("residual", 2)
    frozen = fl.split(one.model, graph, 2).frozen
    compiled = torch.compile(live, backend="eager", dynamic=True)

    with torch.no_grad():
        for batch in (4, 7, 2):
            x = torch.randn(batch, 5)
            torch.testing.assert_close(compiled(*frozen(x)), one.model(x), **CLOSE)


def test_compiled_live_part_of_a_transformer_gives_what_the_live_part_gives():
    one, graph, live = standing("attention", 2)
    wires = fl.split(one.model, graph, 2).frozen(one.example)

    with torch.no_grad():
        found = torch.compile(live, backend="eager")(*wires)

    torch.testing.assert_close(found, one.output(), **CLOSE)


def test_compiled_live_part_trains():
    one, graph, live = standing("residual", 2)
    wires = fl.split(one.model, graph, 2).frozen(one.example)
    twin = copy.deepcopy(live)

    torch.compile(live, backend="aot_eager")(*wires).sum().backward()
    twin(*wires).sum().backward()

    for mine, theirs in zip(live.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, **CLOSE)
