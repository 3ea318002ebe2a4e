"""Engines give the network's outputs, own their memory, and are picked by measuring."""

import importlib.util

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from prefixes import Odd, Prefix, inputs
from torch import nn

from frostline import engines
from frostline.copies import plain_torch
from frostline.engines import LARGEST_ERROR, compiled, filled, pick, quickest, relative_error
from frostline.errors import BadArgument, MissingExtra

needs_openvino = pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="openvino is an extra")
both = pytest.mark.parametrize("engine", ["torch", pytest.param("openvino", marks=needs_openvino)])


@pytest.fixture
def net():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Prefix()
        net.stem[1].running_mean.normal_()
        return net.eval()


# --- laws -------------------------------------------------------------------------------------


@given(rows=st.integers(1, 6), batch=st.integers(1, 6))
@settings(max_examples=20, deadline=None)
def test_filling_repeats_rows_and_keeps_the_memory_order(rows, batch):
    rows = min(rows, batch)
    tensor = torch.rand(rows, 3, 4, 4).contiguous(memory_format=torch.channels_last)

    full = filled(tensor, batch)

    assert torch.equal(full, tensor[[i % rows for i in range(batch)]])
    assert full.is_contiguous(memory_format=torch.channels_last)


@given(rows=st.integers(1, 8), channels_last=st.booleans())
@settings(max_examples=10, deadline=None)
def test_torch_gives_the_bits_of_the_module_at_the_same_batch_shape(rows, channels_last):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Prefix().eval()
    run = compiled(net, inputs(8, channels_last=channels_last))
    some = inputs(rows, seed=1, channels_last=channels_last)

    outputs = run(some)

    with torch.no_grad():
        whole = net(*(filled(x, 8) for x in some))
    assert all(torch.equal(a, b[:rows]) for a, b in zip(outputs, whole, strict=True))


# --- both engines -----------------------------------------------------------------------------


@both
@pytest.mark.parametrize("rows", [8, 3, 1])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("example_channels_last", [False, True])
def test_an_engine_gives_the_outputs_of_the_module(net, engine, rows, channels_last, example_channels_last):
    run = compiled(net, inputs(8, channels_last=example_channels_last), engine=engine)
    some = inputs(rows, seed=1, channels_last=channels_last)

    outputs = run(some)

    with torch.no_grad():
        wanted = net(*some)
    assert run.engine == engine
    assert [x.dtype for x in outputs] == [torch.float32, torch.float32, torch.int64]
    assert torch.equal(outputs[2], some[1])
    assert relative_error(outputs[:2], wanted[:2]) < 1e-5


@both
def test_outputs_own_their_memory(net, engine):
    run = compiled(net, inputs(8), engine=engine)
    first_inputs = inputs(8, seed=1)
    first = run(first_inputs)
    before = [output.clone() for output in first]

    run(inputs(8, seed=2))
    for tensor in first_inputs:
        tensor.zero_()

    assert all(torch.equal(a, b) for a, b in zip(first, before, strict=True))


@both
def test_outputs_may_be_changed_without_changing_the_next(net, engine):
    run = compiled(net, inputs(8), engine=engine)
    before = [output.clone() for output in run(inputs(8))]

    for output in run(inputs(8)):
        output.zero_()

    assert all(torch.equal(a, b) for a, b in zip(run(inputs(8)), before, strict=True))


@both
def test_the_module_is_left_as_it_was(net, engine):
    net.stem.train()
    state = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    modes = [part.training for part in net.modules()]
    fast_path, grad = torch.backends.mha.get_fastpath_enabled(), torch.is_grad_enabled()

    compiled(net, inputs(4), engine=engine)(inputs(4))

    assert all(torch.equal(tensor, state[name]) for name, tensor in net.state_dict().items())
    assert [part.training for part in net.modules()] == modes
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in net.modules())
    assert all(p.requires_grad for p in net.parameters())
    assert (torch.backends.mha.get_fastpath_enabled(), torch.is_grad_enabled()) == (fast_path, grad)


@both
def test_dropout_does_not_roll_and_the_random_state_stays(net, engine):
    state = torch.random.get_rng_state()

    run = compiled(net.train(), inputs(4), engine=engine)

    assert torch.equal(run(inputs(4))[0], run(inputs(4))[0])
    assert torch.equal(torch.random.get_rng_state(), state)


@both
def test_a_module_that_returns_one_tensor_gives_a_tuple_of_one(engine):
    run = compiled(nn.Linear(3, 2).eval(), (torch.rand(4, 3),), engine=engine)

    assert [tuple(x.shape) for x in run((torch.rand(2, 3),))] == [(2, 2)]


@both
def test_several_output_rows_for_a_sample_are_cut_back_together(engine):
    class Inner(nn.Module):
        def forward(self, x):
            return x.reshape(-1, 2) * 2

    run = compiled(Inner().eval(), (torch.rand(4, 6),), engine=engine)
    some = torch.rand(3, 6)

    assert torch.equal(run((some,))[0], some.reshape(9, 2) * 2)


@both
def test_attention_runs(engine):
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    example = (torch.rand(4, 5, 8),)

    outputs = compiled(layer, example, engine=engine)(example)

    with torch.no_grad(), plain_torch():
        assert relative_error(outputs, (layer(*example),)) < 1e-5


@pytest.mark.parametrize("rows", [0, 9])
def test_a_batch_that_does_not_fit_is_refused(net, rows):
    with pytest.raises(BadArgument, match=f"{rows} rows; this engine takes 1 to 8"):
        compiled(net, inputs(8))(inputs(rows))


# --- fewer bits -------------------------------------------------------------------------------


@both
def test_fewer_bits_give_float32_that_is_near_to_the_module(net, engine):
    run = compiled(net, inputs(8), engine=engine, precision="bfloat16")
    full = compiled(net, inputs(8), engine=engine)

    outputs, wanted = run(inputs(8)), full(inputs(8))

    assert [x.dtype for x in outputs] == [torch.float32, torch.float32, torch.int64]
    assert relative_error(outputs[:2], wanted[:2]) <= LARGEST_ERROR["bfloat16"]
    assert torch.equal(outputs[2], wanted[2])


def test_fewer_bits_are_fewer_in_torch(net):
    outputs = compiled(net, inputs(8), precision="bfloat16")(inputs(8))

    assert torch.equal(outputs[0], outputs[0].bfloat16().float())
    assert not torch.equal(outputs[0], compiled(net, inputs(8))(inputs(8))[0])


# --- errors of engines ------------------------------------------------------------------------


def test_relative_error_is_largest_difference_over_largest_value():
    wanted = (torch.tensor([1.0, -4.0]), torch.tensor([10.0]))

    assert relative_error((torch.tensor([1.0, -4.4]), torch.tensor([10.5])), wanted) == pytest.approx(0.1)
    assert relative_error(wanted, wanted) == 0


@pytest.mark.parametrize(
    "outputs", [(torch.zeros(3),), (torch.full((2,), float("nan")),), (torch.zeros(2), torch.zeros(2)), ()]
)
def test_outputs_of_another_shape_or_nan_are_infinitely_wrong(outputs):
    assert relative_error(outputs, (torch.ones(2),)) == float("inf")


# --- picking ----------------------------------------------------------------------------------


class Fast:
    """A conversion that gives the module's outputs times something."""

    def __init__(self, module, batch, factors, pieces):
        self.module, self.batch, self.factors, self.pieces = module, batch, factors, pieces

    def has_pieces_of(self, piece):
        return piece in self.pieces

    def ready(self, *, precision="float32", piece=0):
        return lambda inputs: (self.module(*inputs) * self.factors.get(precision, 1.0),)


@pytest.fixture
def speeds(monkeypatch):
    """Say how many seconds a batch takes by engine, by (engine, precision) or by (engine, precision, piece)."""

    def set_up(pieces=(), compiles=True, factors=None, **unused):
        def seconds(run, example):
            by_bits = table.get((run.engine, run.precision), table.get(run.engine, 100.0))
            return table.get((run.engine, run.precision, run.piece), by_bits)

        def fused(module, example, *, precision="float32"):
            made.append(precision)
            return (lambda inputs: (module(*inputs) * (factors or {}).get(precision, 1.0),)) if compiles else "no graph"

        table, made = unused.pop("table"), []
        assert not unused
        monkeypatch.setattr(engines, "_batch_seconds", seconds)
        monkeypatch.setattr(engines, "is_installed", lambda: True)
        monkeypatch.setattr(engines, "fused", fused)
        monkeypatch.setattr(
            engines,
            "converted",
            lambda module, example: Fast(module, example[0].shape[0], factors or {}, pieces),
        )
        return made

    return set_up


def linear(batch=4):
    return nn.Linear(3, 2).eval(), (torch.rand(batch, 3),)


@pytest.mark.parametrize(
    ("torch_seconds", "openvino_seconds", "chosen"), [(1, 0.5, "openvino"), (1, 1.19, "openvino"), (1, 1.21, "torch")]
)
def test_auto_takes_openvino_unless_torch_is_a_fifth_faster(speeds, torch_seconds, openvino_seconds, chosen):
    speeds(table={"torch": torch_seconds, "openvino": openvino_seconds})

    report = pick(*linear())

    assert report.engine == chosen
    assert "OpenVINO" in report.why
    assert "rows a second" in report.why
    assert report.rows_per_second == pytest.approx(4 / (torch_seconds if chosen == "torch" else openvino_seconds))


@pytest.mark.parametrize("engine", ["torch", "openvino", "compile"])
def test_an_engine_that_was_asked_for_is_taken_though_slower(speeds, engine):
    speeds(table={"torch": 1, "openvino": 1, "compile": 1, engine: 9})

    report = pick(*linear(), engine=engine)

    assert report.engine == engine
    assert "asked for" in report.why


def test_an_engine_that_is_wrong_is_not_picked(speeds):
    speeds(table={"torch": 9, "openvino": 1}, factors={"float32": 1.01})

    report = pick(*linear())

    assert report.engine == "torch"
    assert "away from torch's outputs" in report.why


@pytest.mark.parametrize(
    ("seconds", "piece"),
    [({2: 1.0}, 2), ({8: 1.0}, 8), ({2: 3.0}, 0), ({8: 3.0}, 0), ({2: 1.0, 8: 1.5}, 2), ({2: 1.5, 8: 1.0}, 8)],
)
def test_the_quickest_of_pieces_and_whole_batches_is_picked(speeds, monkeypatch, seconds, piece):
    monkeypatch.setattr(engines.torch, "get_num_threads", lambda: 1)
    times = {("openvino", "float32", rows): each for rows, each in seconds.items()}
    speeds(pieces=tuple(seconds), table={"torch": 9, "openvino": 2.0, **times})

    report = pick(*linear(16))

    assert (report.engine, report.piece) == ("openvino", piece)
    assert all(f"OpenVINO by {rows} rows" in report.why for rows in seconds)


@pytest.mark.parametrize(
    ("threads", "possible", "batch", "tried"),
    [
        (1, (2, 8), 32, (2, 8)),
        (4, (2, 8), 32, (2, 8)),
        (5, (2, 8), 32, (2, 0)),
        (16, (2, 8), 32, (2, 0)),
        (17, (2, 8), 32, (0,)),
        (2, (8,), 32, (8, 0)),
        (2, (2,), 32, (2, 0)),
        (2, (), 32, (0,)),
        (2, (2, 8), 16, (2, 8)),
        (2, (2, 8), 8, (2, 0)),
    ],
)
def test_pieces_are_tried_that_are_possible_and_leave_no_thread_waiting(monkeypatch, threads, possible, batch, tried):
    monkeypatch.setattr(engines.torch, "get_num_threads", lambda: threads)

    assert engines._pieces(Fast(None, batch, {}, possible)) == tried


@pytest.mark.parametrize(("rows", "is_tried"), [(0, False), (100, False), (250, True)])
def test_torch_compile_is_tried_only_where_the_pass_is_long_enough_to_pay_for_it(speeds, rows, is_tried):
    made = speeds(table={"torch": 2, "openvino": 1, "compile": 0.1})

    report = pick(*linear(), rows=rows)

    assert bool(made) == is_tried
    assert report.engine == ("compile" if is_tried else "openvino")


def test_torch_compile_that_saves_less_than_its_making_takes_is_not_picked(speeds, monkeypatch):
    speeds(table={"torch": 2, "openvino": 1, "compile": 0.9})
    ticks = iter(range(0, 1_000_000, 40))
    monkeypatch.setattr(engines.time, "perf_counter", lambda: next(ticks))

    report = pick(*linear(), rows=250)

    assert report.engine == "openvino"
    assert "torch.compile" in report.why


def test_fewer_bits_are_taken_where_they_are_right_and_save_a_second(speeds):
    speeds(table={"torch": 9, "openvino": 1, ("openvino", "bfloat16"): 0.5}, factors={"bfloat16": 1.005})

    report = pick(*linear(), rows=1000)

    assert (report.engine, report.precision) == ("openvino", "bfloat16")
    assert report.error == pytest.approx(0.005, rel=0.01)
    assert "OpenVINO in bfloat16" in report.why


@pytest.mark.parametrize(
    ("seconds", "factor", "rows", "precision"),
    [(0.5, 1.02, 1000, "auto"), (0.5, 1.0, 4, "auto"), (0.9, 1.0, 1000, "auto"), (0.5, 1.0, 1000, "float32")],
    ids=["wrong", "few rows", "hardly faster", "not wanted"],
)
def test_full_precision_stays_otherwise(speeds, seconds, factor, rows, precision):
    speeds(table={"torch": 9, "openvino": 1, ("openvino", "bfloat16"): seconds}, factors={"bfloat16": factor})

    report = pick(*linear(), rows=rows, precision=precision)

    assert (report.engine, report.precision) == ("openvino", "float32")


def test_what_was_chosen_before_bits_were_given_up_is_handed_over_too(speeds):
    speeds(table={"torch": 9, "openvino": 1, ("openvino", "bfloat16"): 0.5}, factors={"bfloat16": 1.005})

    report, run, in_full = quickest(*linear(), rows=1000)

    assert report.precision == run.precision == "bfloat16"
    assert (in_full.engine, in_full.precision) == ("openvino", "float32")


def test_fewer_bits_that_were_asked_for_are_taken_on_few_rows_but_not_where_they_are_wrong(speeds):
    speeds(table={"torch": 9, "openvino": 1, ("openvino", "bfloat16"): 2}, factors={"bfloat16": 1.005})
    right = quickest(*linear(), precision="bfloat16").report
    speeds(table={"torch": 9, "openvino": 1, ("openvino", "bfloat16"): 2}, factors={"bfloat16": 1.02})
    wrong = quickest(*linear(), precision="bfloat16").report

    assert (right.precision, wrong.precision) == ("bfloat16", "float32")
    assert "away from torch's outputs" in wrong.why


def test_a_network_that_gives_nan_is_run_by_torch(speeds):
    module, (x,) = linear()
    speeds(table={"torch": 9, "openvino": 1})

    report = pick(module, (x * torch.nan,))

    assert (report.engine, report.error) == ("torch", 0.0)


def test_auto_without_openvino_is_torch(monkeypatch):
    monkeypatch.setattr(engines, "is_installed", lambda: False)

    report = pick(*linear())

    assert report.engine == "torch"
    assert "pip install 'frostline[cpu]'" in report.why


@pytest.mark.parametrize("ask", [pick, compiled])
def test_openvino_that_is_not_installed_names_the_extra(monkeypatch, ask):
    monkeypatch.setattr(engines, "is_installed", lambda: False)

    with pytest.raises(MissingExtra, match=r"pip install 'frostline\[cpu\]'"):
        ask(*linear(), engine="openvino")


@pytest.mark.parametrize("ask", [pick, compiled])
def test_an_engine_that_does_not_exist_is_refused(ask):
    with pytest.raises(BadArgument, match="engine is 'onnx'"):
        ask(*linear(), engine="onnx")


@pytest.mark.parametrize("ask", [pick, compiled])
def test_a_precision_that_does_not_exist_is_refused(ask):
    with pytest.raises(BadArgument, match="precision is 'float8'"):
        ask(*linear(), precision="float8")


@pytest.fixture
def elsewhere(monkeypatch):
    """Let the engines believe that what they are given is on a GPU."""
    gpu = torch.device("cuda", 0)
    monkeypatch.setattr(engines, "is_installed", lambda: True)
    monkeypatch.setattr(engines, "device_of", lambda module: gpu)
    monkeypatch.setattr(engines, "carried", lambda tensors, device: tuple(tensors))
    for name in ("converted", "fused"):
        monkeypatch.setattr(engines, name, lambda *given, **more: pytest.fail("made for a processor"))


@pytest.mark.parametrize("engine", ["auto", "openvino", "compile"])
def test_what_is_not_on_a_processor_is_run_by_torch_which_says_why(elsewhere, engine):
    report, run, _ = quickest(*linear(), engine=engine, rows=10**9, precision="float32")

    assert report.engine == run.engine == "torch"
    assert "for processors only, and the network is on cuda:0" in report.why
    assert run.why in report.why
    assert report.rows_per_second > 0


def test_torch_that_was_asked_for_needs_no_reason_anywhere(elsewhere):
    report, run, _ = quickest(*linear(), engine="torch")

    assert "processors" not in report.why
    assert run.why == ""


@pytest.mark.parametrize("engine", ["openvino", "compile"])
def test_an_engine_of_a_run_begun_on_a_processor_gives_way_to_torch_on_a_gpu(elsewhere, engine, caplog):
    run = compiled(*linear(), engine=engine)

    assert (run.engine, run.device.type) == ("torch", "cuda")
    assert "for processors only" in run.why
    assert any(run.why in record.message for record in caplog.records)


class Untraceable(nn.Module):
    """What torch.jit.trace cannot watch."""

    def forward(self, x):
        if torch.jit.is_tracing():
            raise KeyError("no tracing here")
        return x * 2


class Deaf(nn.Module):
    """What reads one of its inputs alone."""

    def forward(self, x, mask):
        return x * 2


@needs_openvino
@pytest.mark.parametrize(
    ("module", "example", "says"),
    [
        (Odd(), (torch.rand(2, 4, 4),), "aten::linalg_eigvals"),
        (Untraceable(), (torch.rand(2, 4),), "no tracing here"),
    ],
    ids=["no rule", "no trace"],
)
def test_what_openvino_cannot_convert_is_run_by_torch_with_the_reason(module, example, says, caplog):
    report = pick(module.eval(), example, engine="openvino")
    run = compiled(module.eval(), example, engine="openvino")

    assert report.engine == run.engine == "torch"
    assert says in report.why
    assert says in run.why
    assert torch.equal(run(example)[0], module(*example))
    assert any(says in record.message for record in caplog.records)


@needs_openvino
def test_an_input_that_is_not_read_does_no_harm():
    example = (torch.rand(4, 3), torch.ones(4, 3, dtype=torch.int64))

    outputs = compiled(Deaf().eval(), example, engine="openvino")(example)

    assert torch.equal(outputs[0], example[0] * 2)
