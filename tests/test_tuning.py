import contextlib
import math
import threading
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

from frostline import tuning
from frostline.calibration import best_temperature
from frostline.carrying import one_ahead
from frostline.data import TensorSamples
from frostline.errors import WeightsDoNotFit
from frostline.leaving_out import balancing
from frostline.records import Recipe, TrialSpec
from frostline.testing import ROUGH
from frostline.tuning import load_best, optimizer_for, train_step, tune

SAMPLES = 37


def network(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = nn.Sequential()
        net.add_module("conv", nn.Conv2d(3, 6, 1))
        net.add_module("norm", nn.BatchNorm2d(6))
        net.add_module("act", nn.ReLU(inplace=True))
        net.add_module("drop", nn.Dropout(0.3))
        net.add_module("pool", nn.AdaptiveAvgPool2d(1))
        net.add_module("flat", nn.Flatten())
        net.add_module("head", nn.Linear(6, 3))
    return net.to(memory_format=torch.channels_last)


class Twice:
    """The same rows in two views; remembers which view was read."""

    def __init__(self, inputs):
        self.inputs = inputs
        self.views = 2
        self.seen = []

    def __len__(self):
        return len(self.inputs)

    def read(self, rows, view=0):
        self.seen.append(view)
        return ((self.inputs[list(rows)] + view).clone(),)


def part(seed=0, samples=SAMPLES):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(3, (samples,), generator=generator)
    inputs = torch.randn(samples, 3, 4, 4, generator=generator) + labels[:, None, None, None]
    return TensorSamples(inputs, labels)


def spec_of(epochs=2, *, parent=None, first_epoch=0, depth=0, seed=0, **recipe):
    given = {"learning_rate": 1e-2, "head_learning_rate": 1e-2, "schedule": "constant", "batch_size": 8, **recipe}
    return TrialSpec(
        depth=depth, recipe=Recipe(**given), seed=seed, epochs=epochs, parent=parent, first_epoch=first_epoch
    )


def run(spec, folder, *, net=None, train=None, start=None, **more):
    net, train, valid = net or network(), train or part(), part(1)
    trial = tune(
        net,
        train,
        valid,
        train_labels=part().labels,
        valid_labels=valid.labels,
        spec=spec,
        head="head",
        start=start,
        save_to=folder / f"{spec.key}.safetensors",
        **more,
    )
    return trial, net


def calibrated(outputs, labels):
    return nn.functional.cross_entropy(outputs * best_temperature(outputs, labels), labels, reduction="none")


def facts(trial):
    return [
        (point.epoch, point.train_loss, point.valid_loss, point.valid_accuracy, point.gradient_norm)
        for point in trial.curve
    ]


modes = st.fixed_dictionaries(
    {
        "norm_mode": st.sampled_from(["eval", "train"]),
        "averaging": st.sampled_from([0.0, 0.9]),
        "seed": st.integers(0, 3),
    }
)


def in_two_rungs(folder, first, second, more):
    parent, _ = run(spec_of(first, **more), folder)
    child_spec = spec_of(second, parent=parent.spec.key, first_epoch=first, **more)
    return parent, *run(child_spec, folder, net=network(9), start=folder / parent.weights)


@settings(max_examples=6, deadline=None)
@given(st.integers(1, 2), st.integers(1, 3), modes)
def test_two_rungs_through_files_are_one_rung_bit_for_bit(tmp_path_factory, first, second, more):
    folder = tmp_path_factory.mktemp("rungs")
    whole, net = run(spec_of(first + second, **more), folder)

    parent, child, again = in_two_rungs(folder, first, second, more)

    assert facts(whole) == facts(parent) + facts(child)
    assert (child.best_epoch, child.losses, child.hits) == (whole.best_epoch, whole.losses, whole.hits)
    kept, expected = load_file(folder / child.weights), load_file(folder / whole.weights)
    assert kept.keys() == expected.keys()
    assert all(torch.equal(kept[name], expected[name]) for name in kept)
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), net.state_dict().values(), strict=True))


@settings(max_examples=6, deadline=None)
@given(st.integers(1, 14), modes)
def test_a_rung_may_end_within_an_epoch(tmp_path_factory, step, more):
    folder = tmp_path_factory.mktemp("rungs")
    whole, _ = run(spec_of(3, **more), folder)

    _, child, _ = in_two_rungs(folder, step / 5, 3 - step / 5, more)

    kept, expected = load_file(folder / child.weights), load_file(folder / whole.weights)
    assert all(torch.equal(kept[name], expected[name]) for name in expected if not name.startswith(("best/", "valid/")))
    assert facts(child)[1:] == [fact for fact in facts(whole) if fact[0] > child.curve[0].epoch]


def test_a_running_average_is_scored_and_kept_in_place_of_the_weights(tmp_path):
    spec = spec_of(2, averaging=0.5)

    trial, net = run(spec, tmp_path)

    kept = load_file(tmp_path / trial.weights)
    with torch.no_grad():
        outputs = net(part(1).read(range(SAMPLES))[0])
    assert trial.best_epoch == 2
    assert torch.equal(net.conv.weight, kept["average/conv.weight"])
    assert not torch.equal(kept["average/conv.weight"], kept["last/conv.weight"])
    torch.testing.assert_close(calibrated(outputs, part(1).labels), torch.tensor(trial.losses))


def test_the_average_follows_the_weights_slowly(tmp_path):
    slow, fast = (run(spec_of(1, averaging=kept), tmp_path)[1].conv.weight for kept in (0.5, 0.01))

    start, end = network().conv.weight, run(spec_of(1), tmp_path)[1].conv.weight
    assert (fast - end).norm() < (slow - end).norm() < (start - end).norm()


def test_a_trial_repeats_its_bits_whatever_ran_before(tmp_path):
    once, _ = run(spec_of(), tmp_path)
    torch.randn(100)

    again, _ = run(spec_of(), tmp_path)

    assert facts(once) == facts(again)


def test_a_trial_leaves_the_random_state_alone(tmp_path):
    before = torch.get_rng_state()

    run(spec_of(), tmp_path)

    assert torch.equal(torch.get_rng_state(), before)


def test_numbers_below_the_normal_range_count_as_zero_while_training_and_only_then(tmp_path):
    seen = []
    net = network()
    net.act.register_forward_hook(lambda *_: seen.append(float(torch.full((), 1e-39) * 1.0)) if net.training else None)

    run(spec_of(), tmp_path, net=net)

    assert set(seen) == {0.0}
    assert float(torch.full((), 1e-39) * 1.0) > 0


def test_another_seed_trains_otherwise(tmp_path):
    assert facts(run(spec_of(seed=0), tmp_path)[0])[1:] != facts(run(spec_of(seed=1), tmp_path)[0])[1:]


def test_epoch_zero_is_scored_and_may_be_the_best(tmp_path):
    untouched = network().eval()
    valid = part(1)

    trial, net = run(spec_of(learning_rate=1e3, head_learning_rate=1e3, clip_norm=1e9), tmp_path)

    expected = calibrated(untouched(valid.read(range(SAMPLES))[0]).detach(), valid.labels).mean()
    assert trial.curve[0].train_loss is None
    assert trial.curve[0].valid_loss == pytest.approx(float(expected), rel=1e-5)
    assert trial.best_epoch == 0
    assert all(torch.equal(net.state_dict()[name], tensor) for name, tensor in network().state_dict().items())


def test_a_start_with_a_softened_head_is_scored_and_never_the_best(tmp_path):
    wild = {"learning_rate": 1e3, "head_learning_rate": 1e3, "clip_norm": 1e9}

    trial, _ = run(spec_of(2, head_scale=0.3, **wild), tmp_path)

    later = trial.curve[1:]
    assert all(point.valid_loss > trial.curve[0].valid_loss for point in later)
    assert trial.best_epoch == min(later, key=lambda point: point.valid_loss).epoch
    assert trial.loss == pytest.approx(min(point.valid_loss for point in later))


@pytest.mark.parametrize(
    ("recipe", "begins"), [({}, 0), ({"head_scale": 0.3}, 1), ({"head_scale": 0.3, "averaging": 0}, 0)]
)
def test_an_arm_whose_start_cannot_be_its_best_is_not_scored_there(tmp_path, recipe, begins):
    trial, _ = run(spec_of(2, **({"schedule": "constant", "averaging": 0.9} | recipe)), tmp_path)

    assert [point.epoch for point in trial.curve] == list(range(begins, 3))


@pytest.mark.parametrize("averaging", [0.0, 0.9])
def test_a_rung_of_no_steps_leaves_the_start_even_with_a_softened_head(tmp_path, averaging):
    trial, _ = run(spec_of(0, head_scale=0.3, averaging=averaging), tmp_path)

    assert (trial.best_epoch, len(trial.losses)) == (0, SAMPLES)


def test_losses_and_hits_are_those_of_the_best_epoch(tmp_path):
    trial, net = run(spec_of(3), tmp_path)
    valid = part(1)

    outputs = net(valid.read(range(SAMPLES))[0]).detach()

    assert trial.best_epoch == min(trial.curve, key=lambda point: point.valid_loss).epoch
    assert list(trial.hits) == (outputs.argmax(1) == valid.labels).tolist()
    torch.testing.assert_close(torch.tensor(trial.losses), calibrated(outputs, valid.labels))


def test_losses_at_the_end_are_those_of_the_last_weights_where_these_are_past_their_best(tmp_path):
    first, _ = run(spec_of(4), tmp_path)
    spec = spec_of(1, parent=first.spec.key, first_epoch=4, learning_rate=3.0, head_learning_rate=3.0)
    trial, net = run(spec, tmp_path, start=tmp_path / first.weights)
    state, valid = load_file(tmp_path / trial.weights), part(1)
    net.load_state_dict({name[5:]: tensor for name, tensor in state.items() if name.startswith("last/")})

    outputs = net(valid.read(range(SAMPLES))[0]).detach()

    assert first.best_epoch == 4
    assert (first.last_losses, first.losses_at_the_end) == ((), first.losses)
    assert (trial.best_epoch, trial.losses) == (first.best_epoch, first.losses)
    torch.testing.assert_close(torch.tensor(trial.last_losses), calibrated(outputs, valid.labels))
    assert trial.loss_at_the_end == pytest.approx(trial.curve[-1].valid_loss)


def test_gradients_are_measured_before_they_are_clipped(tmp_path):
    net = nn.Sequential(nn.Flatten(), nn.Linear(1, 2, bias=False))
    nn.init.zeros_(net[1].weight)
    train = TensorSamples(torch.tensor([1.0, 3.0]).view(2, 1, 1, 1), torch.tensor([0, 1]))
    spec = spec_of(1, learning_rate=0.0, batch_size=1, clip_norm=0.1)

    trial = tune(
        net, train, train, train_labels=train.labels, valid_labels=train.labels, spec=spec, save_to=tmp_path / "t"
    )

    # A sample x has the gradient (x / 2, -x / 2), of norm x / sqrt(2), before the weights have moved.
    before, after = trial.curve
    assert (before.gradient_norm, before.gradient_spread) == (None, None)
    assert after.gradient_norm == pytest.approx(2 / math.sqrt(2), rel=1e-5)
    assert after.gradient_spread == pytest.approx(1 / math.sqrt(2), rel=1e-5)


def test_each_row_is_learnt_with_its_own_label(tmp_path):
    net, train = network(), part()
    net.drop.p = 0.0
    outputs = net.eval()(train.read(range(SAMPLES))[0]).detach()

    trial, _ = run(spec_of(1, learning_rate=0.0, head_learning_rate=0.0), tmp_path, net=net)

    assert trial.curve[-1].train_loss == pytest.approx(float(nn.functional.cross_entropy(outputs, train.labels)))


def test_steps_take_the_quick_way_through_convolutions(tmp_path):
    net, ways = network(), []
    net.norm.register_forward_hook(lambda module, given, output: ways.append(type(output.grad_fn).__name__))

    run(spec_of(1), tmp_path, net=net)
    train_step(net, part().read(range(8)), part().labels[:8], recipe=Recipe(), head="head")()

    # Watching and scoring have no gradients.
    assert set(ways) == {"NoneType", "_ConvolveBackward"}
    assert ways[-1] == "_ConvolveBackward"


def test_a_step_trains_on_the_rows_as_they_were_read(tmp_path):
    class Kept(Twice):
        def read(self, rows, view=0):
            self.given.append(super().read(rows, view))
            return self.given[-1]

    train, net, seen = Kept(part().read(range(SAMPLES))[0]), network(), []
    train.given = []
    net.conv.register_forward_pre_hook(lambda conv, args: seen.append(args[0]) if torch.is_grad_enabled() else None)

    run(spec_of(1), tmp_path, net=net, train=train)

    assert [x.data_ptr() for x in seen] == [x.data_ptr() for (x,) in train.given]


def test_a_timed_step_leaves_its_rows_as_they_are():
    net, rows = nn.Sequential(nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(48, 3)), part().read(range(8))

    train_step(net, rows, part().labels[:8], recipe=Recipe(), head=None)()

    assert torch.equal(rows[0], part().read(range(8))[0])


def test_memory_is_kept_while_training_and_only_then(tmp_path, monkeypatch):
    told = []

    @contextlib.contextmanager
    def kept():
        told.append("kept")
        yield
        told.append("given back")

    monkeypatch.setattr(tuning, "kept_heap", kept)
    run(spec_of(1), tmp_path, listener=lambda event: told.append(event.phase))

    assert told == ["kept", "train", "given back"]


def test_being_too_sure_is_no_loss(tmp_path):
    # The fourth knows enough of the labels that the best temperature is within its range.
    sure, doubtful = network(4), network(4)
    with torch.no_grad():
        for parameter in doubtful.head.parameters():
            parameter /= 7

    one, _ = run(spec_of(1, learning_rate=0.0, head_learning_rate=0.0), tmp_path, net=sure)
    other, _ = run(spec_of(1, learning_rate=0.0, head_learning_rate=0.0), tmp_path, net=doubtful)

    torch.testing.assert_close(torch.tensor(one.losses), torch.tensor(other.losses), rtol=1e-3, atol=1e-4)


def test_a_child_that_never_improves_keeps_its_parents_best(tmp_path):
    parent, net = run(spec_of(4), tmp_path)
    best = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    spec = spec_of(1, parent=parent.spec.key, first_epoch=4, learning_rate=1e3, head_learning_rate=1e3, clip_norm=1e9)

    child, net = run(spec, tmp_path, start=tmp_path / parent.weights)

    assert (child.best_epoch, child.losses) == (parent.best_epoch, parent.losses)
    assert all(torch.equal(net.state_dict()[name], tensor) for name, tensor in best.items())


def test_the_best_weights_can_be_loaded_into_a_fresh_part(tmp_path):
    trial, net = run(spec_of(), tmp_path)
    fresh = network(5)

    load_best(fresh, tmp_path / trial.weights)

    assert all(torch.equal(fresh.state_dict()[name], tensor) for name, tensor in net.state_dict().items())
    assert fresh.conv.weight.is_contiguous(memory_format=torch.channels_last)


def test_a_loss_that_is_not_finite_fails_the_trial_without_an_exception(tmp_path):
    train = part()
    train_rows = TensorSamples(train.read(range(SAMPLES))[0] * float("inf"), train.labels)

    trial, _ = run(spec_of(), tmp_path, train=train_rows)

    assert "training loss in epoch 1" in trial.failure
    assert trial.loss == math.inf
    assert trial.weights is None
    assert not list(tmp_path.iterdir())


def test_a_validation_loss_that_is_not_finite_fails_the_trial(tmp_path):
    net = network()
    with torch.no_grad():
        net.head.bias.fill_(float("nan"))

    trial, _ = run(spec_of(), tmp_path, net=net)

    assert "validation loss after epoch 0" in trial.failure


def test_norms_keep_their_statistics_in_eval_mode_and_learn_new_ones_in_train_mode(tmp_path):
    _, kept = run(spec_of(norm_mode="eval"), tmp_path)
    _, learnt = run(spec_of(norm_mode="train"), tmp_path)

    assert torch.equal(kept.norm.running_mean, torch.zeros(6))
    assert int(learnt.norm.num_batches_tracked) > 0


def test_only_norms_with_statistics_leave_train_mode():
    net = network()
    modes = {}
    net.drop.register_forward_hook(lambda module, *_: modes.update(drop=module.training))
    net.norm.register_forward_hook(lambda module, *_: modes.update(norm=module.training))

    train_step(net, part().read(range(8)), part().labels[:8], recipe=Recipe(), head="head")()

    assert modes == {"drop": True, "norm": False}


def test_decay_falls_on_weights_only_and_the_head_has_its_own_rate():
    recipe = Recipe(learning_rate=1e-4, head_learning_rate=1e-2, weight_decay=0.1)

    groups = optimizer_for(network(), recipe, head="head").param_groups

    assert {(group["lr"], group["weight_decay"], group["params"][0].ndim) for group in groups} == {
        (1e-4, 0.1, 4),
        (1e-4, 0.0, 1),
        (1e-2, 0.1, 2),
        (1e-2, 0.0, 1),
    }
    assert sum(len(group["params"]) for group in groups) == len(list(network().parameters()))


def test_parameters_that_ask_for_no_gradient_stay_as_they_are(tmp_path):
    net = network()
    net.conv.requires_grad_(False)
    before = net.conv.weight.clone()

    run(spec_of(), tmp_path, net=net)

    assert torch.equal(net.conv.weight, before)


def test_epochs_take_turns_among_the_views(tmp_path):
    train = Twice(part().read(range(SAMPLES))[0])

    run(spec_of(3), tmp_path, train=train)

    steps = math.ceil(SAMPLES / 8)
    assert train.seen == [0] * steps + [1] * steps + [0] * steps


def test_the_warm_head_is_where_training_starts(tmp_path):
    warm = {"weight": torch.full((3, 6), 0.5), "bias": torch.tensor([1.0, 2.0, 3.0])}
    save_file(warm, tmp_path / "warm.safetensors")
    net = network()
    net.head.load_state_dict(warm)
    expected, _ = run(spec_of(1), tmp_path, net=net)

    trial, _ = run(spec_of(1), tmp_path, warm=tmp_path / "warm.safetensors")

    assert facts(trial) == facts(expected)


def test_the_warm_head_may_start_softer(tmp_path):
    save_file({"weight": torch.ones(3, 6), "bias": torch.arange(3.0)}, tmp_path / "warm.safetensors")
    net = network()
    net.head.load_state_dict({"weight": torch.full((3, 6), 0.25), "bias": torch.arange(3.0) / 4})
    expected, _ = run(spec_of(1), tmp_path, net=net)

    trial, _ = run(spec_of(1, head_scale=0.25), tmp_path, warm=tmp_path / "warm.safetensors")

    assert facts(trial) == facts(expected)


def test_a_head_without_a_bias_takes_the_weight_of_the_warm_head(tmp_path):
    save_file({"weight": torch.ones(3, 6), "bias": torch.ones(3)}, tmp_path / "warm.safetensors")
    net = network()
    net.head = nn.Linear(6, 3, bias=False)

    trial, _ = run(spec_of(1), tmp_path, net=net, warm=tmp_path / "warm.safetensors")

    assert trial.failure is None


def test_a_warm_head_of_another_width_is_refused(tmp_path):
    save_file({"weight": torch.ones(3, 7), "bias": torch.ones(3)}, tmp_path / "warm.safetensors")

    with pytest.raises(WeightsDoNotFit, match="weight") as caught:
        run(spec_of(1), tmp_path, warm=tmp_path / "warm.safetensors")

    assert caught.value.names == ("weight",)


def test_tied_weights_survive_the_file(tmp_path):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.one = nn.Linear(4, 4)
            self.two = nn.Linear(4, 4)
            self.two.weight = self.one.weight
            self.head = nn.Linear(4, 3)

        def forward(self, x):
            return self.head(self.two(self.one(x.mean((2, 3)).repeat(1, 2)[:, :4])))

    parent, _ = run(spec_of(1), tmp_path, net=Tied())
    spec = spec_of(1, parent=parent.spec.key, first_epoch=1)

    child, net = run(spec, tmp_path, net=Tied(), start=tmp_path / parent.weights)

    assert child.failure is None
    assert net.two.weight is net.one.weight


def test_operations_are_counted_three_times_for_training_and_once_for_scoring(tmp_path):
    trial, _ = run(spec_of(2), tmp_path, flops_per_sample=10.0)

    assert trial.flops == 10.0 * (2 * 3 * SAMPLES + 3 * SAMPLES)


def test_progress_is_told_in_steps(tmp_path):
    events = []

    run(spec_of(2), tmp_path, listener=events.append)

    assert {event.phase for event in events} == {"train"}
    assert [event.fraction for event in events] == [1.0, 1.0]


def test_weighted_validation_rows_pick_the_epoch_and_stand_in_the_trial(tmp_path):
    valid = part(1)
    weights = balancing(valid.labels)

    trial, _ = run(spec_of(3), tmp_path, valid_weights=weights)

    by_class = [trial.hits[place] for place in range(SAMPLES)]
    means = [
        sum(hit for hit, label in zip(by_class, valid.labels.tolist(), strict=True) if label == number)
        / int((valid.labels == number).sum())
        for number in range(3)
    ]
    best = min(trial.curve, key=lambda point: point.valid_loss)
    assert trial.accuracy == pytest.approx(sum(means) / 3, abs=1e-6)
    assert (best.epoch, best.valid_accuracy) == (trial.best_epoch, pytest.approx(trial.accuracy, abs=1e-6))


class Wandering(nn.Module):
    """A network that writes into its input, and takes another path after some training steps."""

    def __init__(self, after):
        super().__init__()
        self.body = network()
        self.after = after
        self.steps = 0

    def forward(self, x):
        self.steps += torch.is_grad_enabled()
        maps = self.body.conv(x.add_(1.0))
        if self.steps > self.after:
            maps = maps * 1.0
        return self.body[2:](self.body.norm(maps))


def test_a_network_that_changes_its_path_goes_on_training(tmp_path):
    trials = []
    for name, net in (("steady", Wandering(after=math.inf)), ("wandering", Wandering(after=2))):
        trial = tune(
            net,
            part(),
            part(1),
            train_labels=part().labels,
            valid_labels=part(1).labels,
            spec=spec_of(2),
            save_to=tmp_path / name,
        )
        trials.append(trial)

    steady, wandering = trials

    assert wandering.failure is None
    assert wandering.losses == pytest.approx(steady.losses, rel=1e-3)


class Ahead:
    """Carries batches as for a GPU, read by a thread one ahead, to where they are already."""

    def __init__(self, device):
        pass

    @contextlib.contextmanager
    def ahead(self, reads):
        with one_ahead(reads) as batches:
            yield (partial(tuple, batch) for batch in batches)


def test_rows_read_ahead_train_to_the_same_bits(tmp_path, monkeypatch):
    directly, _ = run(spec_of(2, averaging=0.9), tmp_path, train=Twice(part().read(range(SAMPLES))[0]))
    monkeypatch.setattr(tuning, "Carrier", Ahead)

    ahead, _ = run(spec_of(2, averaging=0.9), tmp_path, train=Twice(part().read(range(SAMPLES))[0]))

    assert facts(ahead) == facts(directly)
    assert (ahead.losses, ahead.hits) == (directly.losses, directly.hits)


def test_a_diverged_training_leaves_no_thread(tmp_path, monkeypatch):
    monkeypatch.setattr(tuning, "Carrier", Ahead)
    before, train = set(threading.enumerate()), part()
    rows = TensorSamples(train.read(range(SAMPLES))[0] * float("inf"), train.labels)

    trial, _ = run(spec_of(), tmp_path, train=rows)

    assert "training loss in epoch 1" in trial.failure
    assert not set(threading.enumerate()) - before


@pytest.mark.parametrize("is_ahead", [False, True])
def test_what_reading_a_row_raises_reaches_the_caller(tmp_path, monkeypatch, is_ahead):
    class Torn(Twice):
        def read(self, rows, view=0):
            if len(self.seen) == 3:
                raise OSError("the disk is gone")
            return super().read(rows, view)

    if is_ahead:
        monkeypatch.setattr(tuning, "Carrier", Ahead)

    with pytest.raises(OSError, match="the disk is gone"):
        run(spec_of(), tmp_path, train=Torn(part().read(range(SAMPLES))[0]))


def test_training_in_fewer_bits_is_near_and_keeps_weights_and_scoring_in_float32(tmp_path):
    net, seen = network(), {True: set(), False: set()}
    net.conv.register_forward_hook(lambda conv, args, output: seen[conv.training].add(output.dtype))
    full, _ = run(spec_of(3), tmp_path)

    fewer, _ = run(spec_of(3, precision="bfloat16"), tmp_path, net=net)

    # The first pass that trains is watched for the quick way through convolutions, in float32.
    assert torch.bfloat16 in seen[True]
    assert seen[False] == {torch.float32}
    assert {weight.dtype for weight in net.parameters()} == {torch.float32}
    assert facts(fewer) != facts(full)
    for curve in ("train_loss", "valid_loss"):
        ours, theirs = ([getattr(point, curve) for point in trial.curve[1:]] for trial in (fewer, full))
        torch.testing.assert_close(torch.tensor(ours), torch.tensor(theirs), **ROUGH)
