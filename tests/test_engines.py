"""Engines give the network's outputs, own their memory, and talk to nobody."""

import importlib.util
import logging
import os
import subprocess
import sys
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from frostline import engines
from frostline.copies import plain_torch
from frostline.engines import Compiled, compiled, filled, pick, relative_error
from frostline.errors import BadArgument, MissingExtra

needs_openvino = pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="openvino is an extra")
both = pytest.mark.parametrize("engine", ["torch", pytest.param("openvino", marks=needs_openvino)])


class Prefix(nn.Module):
    """Convolutions, batch norm and dropout; gives two wires and passes whole numbers on."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.5))
        self.path = nn.Conv2d(8, 4, 3, stride=2)

    def forward(self, x, ids):
        h = self.stem(x)
        return self.path(h), h.flatten(2).transpose(1, 2), ids


@pytest.fixture
def net():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Prefix()
        net.stem[1].running_mean.normal_()
        return net.eval()


def inputs(batch, seed=0, channels_last=False):
    draw = torch.Generator().manual_seed(seed)
    x = torch.rand(batch, 3, 12, 12, generator=draw)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    return x, torch.randint(0, 9, (batch, 5), generator=draw)


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


def speeds(monkeypatch, torch_seconds, openvino_seconds, error=1.0):
    def seconds(run, example):
        return torch_seconds if run.engine == "torch" else openvino_seconds

    monkeypatch.setattr(engines, "_batch_seconds", seconds)
    monkeypatch.setattr(engines, "_is_installed", lambda: True)
    monkeypatch.setattr(
        engines,
        "_converted",
        lambda module, example: Compiled(lambda x: (module(*x) * error,), batch=example[0].shape[0], engine="openvino"),
    )


@pytest.mark.parametrize(
    ("torch_seconds", "openvino_seconds", "chosen"), [(1, 0.5, "openvino"), (1, 1.19, "openvino"), (1, 1.21, "torch")]
)
def test_auto_takes_openvino_unless_torch_is_a_fifth_faster(monkeypatch, torch_seconds, openvino_seconds, chosen):
    speeds(monkeypatch, torch_seconds, openvino_seconds)

    report = pick(nn.Linear(3, 2).eval(), (torch.rand(4, 3),))

    assert report.engine == chosen
    assert "OpenVINO" in report.why
    assert "rows a second" in report.why
    assert report.rows_per_second == pytest.approx(4 / (torch_seconds if chosen == "torch" else openvino_seconds))


@pytest.mark.parametrize(("torch_seconds", "openvino_seconds", "engine"), [(1, 9, "openvino"), (9, 1, "torch")])
def test_an_engine_that_was_asked_for_is_taken_though_slower(monkeypatch, torch_seconds, openvino_seconds, engine):
    speeds(monkeypatch, torch_seconds, openvino_seconds)

    assert pick(nn.Linear(3, 2).eval(), (torch.rand(4, 3),), engine=engine).engine == engine


def test_an_engine_that_is_wrong_is_not_picked(monkeypatch):
    speeds(monkeypatch, 9, 1, error=1.01)

    report = pick(nn.Linear(3, 2).eval(), (torch.rand(4, 3),))

    assert report.engine == "torch"
    assert "away from torch's outputs" in report.why


def test_auto_without_openvino_is_torch(monkeypatch):
    monkeypatch.setattr(engines, "_is_installed", lambda: False)

    report = pick(nn.Linear(3, 2).eval(), (torch.rand(4, 3),))

    assert report.engine == "torch"
    assert "pip install 'frostline[cpu]'" in report.why


@pytest.mark.parametrize("ask", [pick, compiled])
def test_openvino_that_is_not_installed_names_the_extra(monkeypatch, ask):
    monkeypatch.setattr(engines, "_is_installed", lambda: False)

    with pytest.raises(MissingExtra, match=r"pip install 'frostline\[cpu\]'"):
        ask(nn.Linear(3, 2).eval(), (torch.rand(4, 3),), engine="openvino")


@pytest.mark.parametrize("ask", [pick, compiled])
def test_an_engine_that_does_not_exist_is_refused(ask):
    with pytest.raises(BadArgument, match="engine is 'onnx'"):
        ask(nn.Linear(3, 2).eval(), (torch.rand(4, 3),), engine="onnx")


def test_a_precision_that_does_not_exist_is_refused():
    with pytest.raises(BadArgument, match="precision is 'float8'"):
        compiled(nn.Linear(3, 2).eval(), (torch.rand(4, 3),), precision="float8")


class Odd(nn.Module):
    """What OpenVINO has no rule for."""

    def forward(self, x):
        return torch.linalg.eigvals(x @ x.transpose(-1, -2)).real


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
@pytest.mark.parametrize("module", [Odd(), nn.Linear(4, 4)], ids=["refused", "converted"])
def test_converting_leaves_the_root_logger_and_the_warnings_as_they_were(module):
    root = logging.getLogger()
    before = root.level, list(root.handlers), list(root.filters), list(warnings.filters)

    compiled(module.eval(), (torch.rand(2, 4, 4),), engine="openvino")

    assert (root.level, root.handlers, root.filters, list(warnings.filters)) == before


@needs_openvino
def test_an_input_that_is_not_read_does_no_harm():
    example = (torch.rand(4, 3), torch.ones(4, 3, dtype=torch.int64))

    outputs = compiled(Deaf().eval(), example, engine="openvino")(example)

    assert torch.equal(outputs[0], example[0] * 2)


# --- nothing leaves the machine ---------------------------------------------------------------

WATCHED = """
import os, sys

seen = []
def hook(event, args):
    if event.startswith(("socket.", "urllib.", "http.")) or event in ("subprocess.Popen", "os.fork", "os.posix_spawn"):
        seen.append(event)
    elif event == "open" and isinstance(args[0], str) and args[0].startswith(os.environ["HOME"]):
        seen.append(f"open {args[0]}")
sys.addaudithook(hook)

import torch
from frostline.engines import compiled, pick

net, x = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU()).eval(), torch.rand(4, 3, 8, 8)
before = dict(os.environ)
seen.clear()
report = pick(net, (x,), engine="openvino")
run = compiled(net, (x,), engine="openvino")
run((x,))
import threading, time
print(report.engine, seen, dict(os.environ) == before, "openvino_telemetry" in sys.modules, threading.active_count())
"""


@needs_openvino
def test_converting_sends_nothing_and_writes_nothing_at_home(tmp_path):
    # As a person's machine is: no consent was ever asked for, and this is no CI job.
    environment = {name: value for name, value in os.environ.items() if name not in ("CI", "TF_BUILD", "JENKINS_URL")}
    environment["HOME"] = str(tmp_path)

    watched = subprocess.run(
        [sys.executable, "-c", WATCHED], env=environment, check=True, capture_output=True, text=True, timeout=120
    )

    assert watched.stdout.strip() == "openvino [] True False 1"
    assert list(tmp_path.iterdir()) == []


TALKING = """
import sys, types

said = []
class Telemetry:
    def __init__(self, *args, **kwargs): pass
    def send_event(self, *args, **kwargs): said.append(args)
    send_error = send_stack_trace = start_session = end_session = force_shutdown = send_event

fake = types.ModuleType("openvino_telemetry")
fake.Telemetry = Telemetry
backend = types.ModuleType("openvino_telemetry.backend")
backend.backend_ga4 = fake.backend = backend
sys.modules.update({"openvino_telemetry": fake, "openvino_telemetry.backend": backend})

import torch, openvino
net, x = torch.nn.Linear(3, 2).eval(), torch.rand(4, 3)
by_user = len(said)
from frostline.engines import compiled
run = compiled(net, (x,), engine="openvino")
by_us = len(said) - by_user
import warnings
warnings.simplefilter("ignore")
openvino.convert_model(net, example_input=x)
print(run.engine, by_user > 0, by_us, len(said) > by_user + by_us, sys.modules["openvino_telemetry"] is fake)
"""


@needs_openvino
def test_telemetry_that_the_user_loaded_is_silent_for_us_and_his_own_afterwards():
    told = subprocess.run([sys.executable, "-c", TALKING], check=True, capture_output=True, text=True, timeout=120)

    assert told.stdout.strip() == "openvino True 0 True True"
