import copy
import gc
import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import lr_scheduler
from torch.utils.checkpoint import checkpoint

import frostline as fl
from frostline.errors import AlreadyWrapped, BadArgument, CutBlocked, NoParameters, UnknownStage
from frostline.freezing import Thaw, freeze, freeze_to, layer_status, param_groups, unfreeze, verify
from frostline.frost import frost_of
from frostline.testing import CLOSE, PIECES, SAME, menagerie, network, snapshot, specimen
from frostline.trees import tensors

few = settings(max_examples=12, deadline=None)
pieces = st.lists(st.sampled_from(sorted(PIECES)), max_size=7)


def chain():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Linear(5, 6), nn.BatchNorm1d(6), nn.ReLU(),
            nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.ReLU(),
            nn.Linear(6, 6), nn.ReLU(),
            nn.Linear(6, 3),
        )  # fmt: skip


X = torch.randn(8, 5, generator=torch.Generator().manual_seed(0))


def bits(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def moved(model, before):
    return {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}


def run(model, example):
    return tensors(
        model(**example)
        if isinstance(example, dict)
        else model(*example)
        if isinstance(example, tuple)
        else model(example)
    )


def train(model, example, *, optimizer=None, steps=3):
    optimizer = optimizer or torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        sum(out.square().mean() for out in run(model, example)).backward()
        optimizer.step()


def flags(model):
    return [weight.requires_grad for weight in model.parameters()]


def modes(model):
    return [module.training for module in model.modules()]


# --- the laws ---------------------------------------------------------------------------------


@few
@given(pieces)
def test_training_moves_no_key_of_the_stages_below_and_leaves_all_keys_in_place(chosen):
    one = network(chosen)
    graph = fl.trace(one.model, one.example)

    for depth in graph.open_depths:
        model = copy.deepcopy(one.model)
        before = bits(model)
        freeze(model, depth, graph)
        train(model, one.example)

        assert list(model.state_dict()) == list(before)
        assert not moved(model, before) & {key for stage in graph.stages[:depth] for key in stage.keys}
        assert moved(model, before) & {key for stage in graph.stages[depth:] for key in stage.keys}


@few
@given(pieces, st.booleans())
def test_a_frozen_network_trains_like_its_live_part_on_kept_wires(chosen, mode):
    one = network(chosen)
    graph = fl.trace(one.model, one.example)

    for depth in graph.open_depths[1:]:
        model, parts = copy.deepcopy(one.model), fl.split(one.model, graph, depth)
        freeze(model, depth, graph)
        found = []
        for net, given_ in ((model, one.inputs), (parts.live, parts.frozen(*one.inputs))):
            torch.manual_seed(3)
            loss = net.train(mode)(*given_).square().sum()
            loss.backward()
            found.append(
                (loss, {name: weight.grad for name, weight in net.named_parameters() if weight.grad is not None})
            )

        (mine, my_gradients), (theirs, their_gradients) = found
        torch.testing.assert_close(mine, theirs, **SAME)
        assert my_gradients.keys() == their_gradients.keys()
        for name, gradient in my_gradients.items():
            torch.testing.assert_close(gradient, their_gradients[name], **SAME)


@pytest.mark.parametrize("name", [one.name for one in menagerie()])
def test_every_network_is_as_it_was_after_freezing_training_nothing_and_unfreezing(name):
    one = specimen(name)
    one.model.train()
    unfreeze(one.model)
    graph = fl.trace(one.model, one.example)
    freeze(one.model, 0, graph)
    before = snapshot(one.model)

    for depth in graph.open_depths:
        freeze(one.model, depth, graph)
    unfreeze(one.model)

    assert snapshot(one.model) == before


# --- freezing and unfreezing ------------------------------------------------------------------


def test_nothing_changes_when_the_depth_is_refused():
    one = specimen("tied")
    before = snapshot(one.model)

    for depth, error in ((1, CutBlocked), (99, UnknownStage)):
        with pytest.raises(error):
            freeze(one.model, depth, one.example)

    assert snapshot(one.model) == before


def test_freeze_to_is_freeze():
    assert freeze_to is freeze


def test_a_smaller_depth_gives_back_the_stages_above_it():
    net = chain().train()
    net[3].bias.requires_grad_(False)
    net[5].eval()
    before = flags(net), modes(net)
    freeze(net, 3, X)

    freeze(net, 1)

    assert flags(net) == [False] * 4 + before[0][4:]
    assert modes(net)[4:] == before[1][4:]


def test_a_larger_depth_remembers_what_there_was_before_the_first_freeze():
    net = chain().train()
    net[1].eval()
    net[0].bias.requires_grad_(False)
    before = flags(net), modes(net)

    for depth in (1, 3, 2, 1):
        freeze(net, depth, X)
    unfreeze(net)

    assert (flags(net), modes(net)) == before


def test_thawed_modules_follow_a_network_that_was_switched_meanwhile():
    net = chain().eval()
    freeze(net, 2, X)
    net.train()

    unfreeze(net)

    assert all(modes(net))


def test_unfreezing_what_was_never_frozen_does_nothing():
    net = chain()
    before = snapshot(net)

    unfreeze(net)

    assert snapshot(net) == before


def test_gradients_that_were_pending_are_dropped():
    net = chain()
    net(X).sum().backward()

    freeze(net, 1, X)

    assert [weight.grad is None for weight in net.parameters()] == [True] * 4 + [False] * 8


@pytest.mark.parametrize("set_to_none", [True, False])
def test_an_optimizer_made_before_moves_nothing_that_is_frozen_later(set_to_none):
    kinds = {
        "nesterov": lambda weights: torch.optim.SGD(weights, lr=0.1, momentum=0.9, nesterov=True),
        "decay": lambda weights: torch.optim.SGD(weights, lr=0.1, weight_decay=0.1),
        "AdamW": lambda weights: torch.optim.AdamW(weights, lr=0.01, weight_decay=0.1),
        "RMSprop": lambda weights: torch.optim.RMSprop(weights, lr=0.01, momentum=0.9, weight_decay=0.1),
        "Rprop": torch.optim.Rprop,
        "foreach": lambda weights: torch.optim.Adam(weights, foreach=True, weight_decay=0.1),
    }
    found = {}

    for name, make in kinds.items():
        net = chain()
        optimizer = make(net.parameters())
        train(net, X, optimizer=optimizer)
        freeze(net, 2, X)
        before = bits(net)
        for _ in range(3):
            optimizer.zero_grad(set_to_none=set_to_none)
            net.train()(X).square().mean().backward()
            optimizer.step()
        found[name] = verify(net, before).moved

    assert found == dict.fromkeys(kinds, ())


def test_checkpointing_across_the_cut_trains_like_plain_training():
    gradients = []
    for kind in ("plain", "checkpointed"):
        net = chain()
        freeze(net, 2, X)
        net.train()
        out = net(X) if kind == "plain" else checkpoint(net, X, use_reentrant=False)
        out.sum().backward()
        gradients.append([weight.grad for weight in net.parameters() if weight.grad is not None])

    assert len(gradients[0]) == 4
    assert all(map(torch.equal, *gradients))


# --- torch.compile ----------------------------------------------------------------------------

of_torch = pytest.mark.filterwarnings("ignore::DeprecationWarning:torch", "ignore::FutureWarning:torch")


@of_torch
@pytest.mark.parametrize(("backend", "depths"), [("eager", (0, 2, 0, 3)), ("aot_eager", (2, 3))])
def test_a_compiled_network_follows_every_change_without_a_graph_break(backend, depths):
    net, plain = chain().eval(), chain().eval()
    compiled = torch.compile(net, backend=backend, fullgraph=True)
    found = []

    for depth in depths:
        for model in (compiled, plain):
            freeze(model, depth, X)
            model.zero_grad()
            model(X).square().mean().backward()
        found.append([weight.grad for weight in net.parameters()])
        expected = [weight.grad for weight in plain.parameters()]
        torch.testing.assert_close(found[-1], expected, **CLOSE)

    torch.compiler.reset()
    assert [sum(gradient is not None for gradient in gradients) for gradients in found] == [
        {0: 12, 2: 4, 3: 2}[depth] for depth in depths
    ]


# --- several processes ------------------------------------------------------------------------


@pytest.fixture
def alone(tmp_path):
    """A group of this process only."""
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'meet'}", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.usefixtures("alone")
def test_a_wrapped_network_refuses_every_change_and_stays_as_it_is():
    net = chain()
    freeze(net, 2, X)
    thaw = Thaw(net, {0: 2, 1: 0}, X)
    wrapped = DistributedDataParallel(net)
    before = snapshot(net)

    for change in (lambda: freeze(net, 1), lambda: freeze(wrapped, 3), lambda: unfreeze(net), thaw.step):
        with pytest.raises(AlreadyWrapped, match="wrap it again"):
            change()

    assert snapshot(net) == before
    assert thaw.depth == 2


@pytest.mark.usefixtures("alone")
def test_a_wrapped_network_takes_the_depth_that_it_has():
    net = chain()
    freeze(net, 2, X)
    wrapped = DistributedDataParallel(net)

    status = freeze(wrapped, 2, X)

    assert status.depth == 2


@pytest.mark.usefixtures("alone")
def test_a_network_inside_a_larger_one_that_is_wrapped_refuses_too():
    net = chain()
    held = DistributedDataParallel(nn.ModuleDict({"net": net}))

    with pytest.raises(AlreadyWrapped):
        freeze(net, 1, X)

    assert held.module["net"] is net


@pytest.mark.usefixtures("alone")
def test_a_wrapper_that_was_dropped_is_no_hindrance_also_where_it_still_lies_about():
    net = chain()
    held = DistributedDataParallel(net)
    vars(held)["loop"] = held
    gc.disable()
    del held
    try:
        freeze(net, 1, X)
    finally:
        gc.enable()

    assert layer_status(net).depth == 1


# --- the table --------------------------------------------------------------------------------


def test_table_says_of_each_stage_how_it_stands():
    net = chain().train()

    status = freeze(net, 1, X)

    assert [(row.name, row.state, row.parameters, row.trainable, row.buffers, row.mode) for row in status.stages] == [
        ("2", "frozen", 48, 0, 3, "eval"),
        ("6", "live", 54, 54, 3, "train"),
        ("8", "live", 42, 42, 0, "train"),
        ("9", "live", 21, 21, 0, "train"),
    ]
    assert str(status).splitlines()[1:3] == [
        "   stage  state   parameters  trainable  buffers  mode",
        "0  2      frozen          48          0        3  eval",
    ]


def test_table_of_a_network_that_was_never_frozen_needs_an_example_and_changes_nothing():
    net = chain()
    before = snapshot(net)

    status = layer_status(net, X)

    assert (status.depth, {row.state for row in status.stages}) == (0, {"live"})
    assert snapshot(net) == before


def test_a_stage_that_was_frozen_by_its_flags_alone_is_mixed_and_the_table_says_why():
    net = chain().train()
    net[:3].requires_grad_(False)

    status = layer_status(net, X)

    assert status.stages[0].state == "mixed"
    assert "`1` first" in status.advice[0]


def test_a_frozen_stage_whose_flags_were_set_again_does_not_pass_for_live():
    net = chain()
    freeze(net, 2, X)
    net.requires_grad_(True)

    assert [row.state for row in layer_status(net).stages] == ["mixed", "mixed", "live", "live"]


def test_a_flag_on_a_module_is_told():
    net = chain()
    net[0].requires_grad = False

    (advice,) = layer_status(net, X).advice

    assert "`0`" in advice
    assert "requires_grad_(False)" in advice


def test_a_frozen_network_needs_no_advice():
    net = chain()
    net[7].requires_grad_(False)

    assert freeze(net, 2, X).advice == ()


# --- the proof --------------------------------------------------------------------------------


def test_what_was_moved_by_hand_is_named():
    net = chain()
    freeze(net, 2, X)
    before = bits(net)
    with torch.no_grad():
        net[0].weight[0, 0] += 1
    net[1].running_mean[0] = math.nan

    found = verify(net, before)

    assert found.moved == ("0.weight", "1.running_mean")
    assert (found.holds, found.compared) == (False, 14)
    assert str(found) == "2 of 14 frozen tensors moved: 0.weight, 1.running_mean."


@pytest.mark.usefixtures("alone")
def test_a_wrapped_network_is_proven_under_the_names_of_its_wrapper():
    net = chain()
    freeze(net, 2, X)
    wrapped = DistributedDataParallel(net)

    assert verify(wrapped, bits(wrapped)).compared == verify(net, bits(net)).compared == 14


def test_bits_are_compared_and_not_values():
    net = nn.Sequential(nn.Linear(5, 6, bias=False), nn.BatchNorm1d(6), nn.Linear(6, 3))
    net[1].running_mean.fill_(math.nan)
    net[1].bias.data.zero_()
    freeze(net, 1, X)
    before = bits(net)

    same = verify(net, before)
    net[1].bias.data.neg_()

    assert same.holds
    assert verify(net, before).moved == ("1.bias",)


def test_a_network_that_others_froze_is_proven_by_its_flags():
    net = chain()
    net[:5].requires_grad_(False)
    before = bits(net)
    train(net, X)

    found = verify(net, before)

    assert found.compared == 14
    assert set(found.moved) == {f"{at}.{name}" for at in (1, 4) for name, _ in net[1].named_buffers()}


def test_a_norm_without_weights_counts_with_what_is_around_it():
    net = nn.Sequential(
        nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6, affine=False)), nn.BatchNorm1d(6, affine=False)
    )
    net.append(nn.Linear(6, 3))
    net[0].requires_grad_(False)

    found = verify(net, bits(net))

    assert found.compared == 2 + 3


def test_nothing_compared_is_no_proof():
    net = chain()

    found = verify(net, bits(net))

    assert (found.holds, found.compared) == (False, 0)
    assert str(found).startswith("Nothing was compared")


# --- groups -----------------------------------------------------------------------------------


def grouped(groups):
    return [id(weight) for group in groups for weight in group["params"]]


def test_groups_hold_each_live_parameter_once_with_its_stage_rate_and_decay():
    net = chain()
    freeze(net, 1, X)

    groups = param_groups(net, 0.1, layer_decay=0.5, weight_decay=0.2)

    assert [(group["name"], group["lr"], group["weight_decay"], len(group["params"])) for group in groups] == [
        ("6", 0.025, 0.2, 1),
        ("6, no decay", 0.025, 0.0, 3),
        ("8", 0.05, 0.2, 1),
        ("8, no decay", 0.05, 0.0, 1),
        ("9", 0.1, 0.2, 1),
        ("9, no decay", 0.1, 0.0, 1),
    ]
    assert sorted(grouped(groups)) == sorted(id(weight) for weight in net[3:].parameters())


@pytest.mark.parametrize("name", [one.name for one in menagerie()])
def test_groups_of_any_network_hold_all_that_trains_and_nothing_twice(name):
    one = specimen(name)
    for depth in fl.trace(one.model, one.example).open_depths:
        freeze(one.model, depth, one.example)

        held = grouped(param_groups(one.model, 0.1))

        assert len(held) == len(set(held))
        assert set(held) == {id(weight) for weight in one.model.parameters() if weight.requires_grad}


def test_a_parameter_that_no_pass_has_read_is_in_a_group():
    net = chain()
    net.mask = nn.Parameter(torch.ones(2, 2))

    groups = param_groups(net, 0.1, example=X)

    assert id(net.mask) in grouped(groups)


def test_a_frozen_parameter_whose_flag_was_set_again_stays_out():
    net = chain()
    freeze(net, 1, X)
    net.requires_grad_(True)

    assert id(net[0].weight) not in grouped(param_groups(net, 0.1))


def test_groups_down_to_a_depth_hold_what_will_be_live_there_but_nothing_that_the_user_froze():
    net = chain()
    net[3].bias.requires_grad_(False)
    freeze(net, 3, X)

    held = grouped(param_groups(net, 0.1, down_to=1))

    assert set(held) == {id(weight) for weight in net[3:].parameters()} - {id(net[3].bias)}


def test_a_network_on_which_nothing_trains_gets_no_groups():
    net = chain().requires_grad_(False)

    with pytest.raises(NoParameters, match=r"requires_grad_\(True\).*`9`"):
        param_groups(net, 0.1, example=X)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("lr", {"lr": -1.0}),
        ("lr", {"lr": math.nan}),
        ("layer_decay", {"lr": 0.1, "layer_decay": 1.5}),
        ("weight_decay", {"lr": 0.1, "weight_decay": -0.1}),
    ],
)
def test_a_rate_outside_its_range_is_refused(name, settings):
    net = chain()

    with pytest.raises(BadArgument, match=f"{name} is"):
        param_groups(net, example=X, **settings)


# --- thawing ----------------------------------------------------------------------------------


def test_thaw_takes_each_depth_at_its_epoch():
    thaw = Thaw(chain(), {4: 0, 0: -1, 2: 1}, X)

    assert (thaw.depth, [thaw.step() for _ in range(5)]) == (3, [3, 1, 1, 0, 0])


def test_thaw_with_patience_takes_the_next_depth_when_the_loss_stalls():
    thaw = Thaw(chain(), (-1, 2, 0), X, patience=2)

    depths = [thaw.step(loss) for loss in (1.0, 0.9, 0.95, 0.9, 0.8, math.nan, 0.8, 0.9, 0.9)]

    assert depths == [3, 3, 3, 2, 2, 2, 0, 0, 0]


def test_thaw_counts_the_network_as_frozen_at_the_depth_that_it_says():
    net = chain()
    thaw = Thaw(net, {0: -1, 1: 1}, X)

    thaw.step()

    assert layer_status(net).depth == thaw.depth == 1
    assert net[3].weight.requires_grad


def test_thaw_goes_on_exactly_from_a_state_that_went_through_json():
    losses = [1.0, 1.0, 0.5, 0.6, 0.7, 0.8, 0.9]
    unbroken = Thaw(chain(), (-1, 2, 1, 0), X, patience=1)
    expected = [unbroken.step(loss) for loss in losses]

    for stop in range(len(losses)):
        first, net = Thaw(chain(), (-1, 2, 1, 0), X, patience=1), chain()
        begun = [first.step(loss) for loss in losses[:stop]]
        second = Thaw(net, (-1, 2, 1, 0), X, patience=1)
        second.load_state_dict(json.loads(json.dumps(first.state_dict())))
        assert frost_of(net).depth == first.depth
        assert begun + [second.step(loss) for loss in losses[stop:]] == expected


def test_thaw_refuses_the_state_of_another_schedule():
    thaw = Thaw(chain(), {0: -1, 1: 0}, X)

    with pytest.raises(BadArgument, match="schedule that was saved"):
        thaw.load_state_dict(Thaw(chain(), {0: -1, 1: 1}, X).state_dict())


def test_groups_of_a_thaw_hold_all_that_will_ever_be_live():
    net = chain()
    thaw = Thaw(net, {0: -1, 1: 2, 3: 1}, X)

    groups = thaw.param_groups(0.1, layer_decay=0.5)

    assert set(grouped(groups)) == {id(weight) for weight in net[3:].parameters()}
    assert groups == param_groups(net, 0.1, layer_decay=0.5, down_to=1)


def test_one_cycle_over_a_thaw_trains_each_stage_from_its_epoch_on():
    net = chain()
    thaw = Thaw(net, {0: -1, 1: 2, 2: 0}, X)
    optimizer = torch.optim.SGD(thaw.param_groups(0.1), lr=0.1, momentum=0.9)
    rates = lr_scheduler.OneCycleLR(optimizer, [group["lr"] for group in optimizer.param_groups], total_steps=4)
    seen = []

    for _ in range(3):
        before = bits(net)
        train(net, X, optimizer=optimizer, steps=1)
        rates.step()
        thaw.step()
        seen.append({name[0] for name in moved(net, before)})

    assert seen == [{"9"}, {"7", "9"}, {"0", "1", "3", "4", "7", "9"}]


@pytest.mark.parametrize("schedule", [{}, {1: 0}, {-1: 0, 0: 1}, (1, 0), "2"])
def test_a_schedule_that_does_not_begin_at_epoch_0_is_refused(schedule):
    with pytest.raises(BadArgument, match="epoch 0"):
        Thaw(chain(), schedule, X)


@pytest.mark.parametrize(("schedule", "patience"), [((), 1), ({0: 1}, 1), ("12", 1), ((2, 1), 0)])
def test_patience_without_a_sequence_of_depths_is_refused(schedule, patience):
    with pytest.raises(BadArgument, match="sequence of depths"):
        Thaw(chain(), schedule, X, patience=patience)


def test_a_schedule_with_an_unknown_depth_is_refused_before_anything_is_frozen():
    net = chain()
    before = snapshot(net)

    with pytest.raises(UnknownStage):
        Thaw(net, {0: -1, 3: "nowhere"}, X)

    assert snapshot(net) == before


def test_patience_needs_a_loss():
    thaw = Thaw(chain(), (-1, 0), X, patience=1)

    with pytest.raises(BadArgument, match="validation loss"):
        thaw.step()
