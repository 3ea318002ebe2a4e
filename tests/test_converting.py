"""OpenVINO gives the rows in their order, piece by piece, and talks to nobody."""

import ctypes
import gc
import logging
import os
import subprocess
import sys
import warnings

import pytest
import torch
from prefixes import Odd, Prefix, inputs
from torch import nn

from frostline.compiling import as_tuple
from frostline.engines import compiled, relative_error

pytest.importorskip("openvino", reason="openvino is an extra")


@pytest.fixture
def net():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Prefix().eval()


# --- the process it runs in ---------------------------------------------------------------------


class Stack(ctypes.Structure):
    """Where signals are handled, as Linux says it."""

    _fields_ = (("start", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


def signal_stack():
    found = Stack()
    assert ctypes.CDLL(None).sigaltstack(None, ctypes.byref(found)) == 0
    return found.start, found.flags, found.size


@pytest.mark.skipif(sys.platform != "linux", reason="signal stacks are laid out otherwise elsewhere")
@pytest.mark.parametrize("piece", [0, 2])
def test_signals_are_handled_where_they_were_before_whichever_network_goes_first(net, piece):
    # A process died of it: at the next signal its stack was memory that OpenVINO had freed.
    before = signal_stack()
    runs = [compiled(net, inputs(8), engine="openvino", piece=piece) for _ in range(3)]
    assert {run.engine for run in runs} == {"openvino"}
    seen = [signal_stack()]
    for _ in range(len(runs)):
        del runs[0]
        gc.collect()
        seen.append(signal_stack())

    assert seen == [before] * 4


# --- pieces -----------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [8, 3])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("threads", [1, 3])
def test_pieces_give_the_rows_in_their_order(net, rows, channels_last, threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        run = compiled(net, inputs(8, channels_last=channels_last), engine="openvino", piece=2)
    finally:
        torch.set_num_threads(before)
    some = inputs(rows, seed=1, channels_last=channels_last)

    outputs = run(some)

    with torch.no_grad():
        wanted = net(*some)
    assert run.piece == 2
    assert torch.equal(outputs[2], some[1])
    assert relative_error(outputs[:2], wanted[:2]) < 1e-5


class Sideways(nn.Module):
    """Rows along the second axis, and several of them for each sample."""

    def forward(self, x):
        return x.transpose(0, 1) * 2, x.reshape(-1, 2) * 3


def test_pieces_are_put_together_along_the_axis_of_the_batch():
    some = (torch.rand(8, 6),)

    run = compiled(Sideways().eval(), some, engine="openvino", piece=2)

    assert run.piece == 2
    assert all(torch.equal(a, b) for a, b in zip(run(some), Sideways()(*some), strict=True))


class Mixed(nn.Module):
    """What all rows have in common beside the rows."""

    def forward(self, x):
        return x * 2, x.mean(0)


@pytest.mark.parametrize(("module", "piece"), [(Mixed(), 2), (nn.Linear(6, 2), 3)], ids=["no rows", "not whole"])
def test_a_batch_that_cannot_be_had_in_pieces_is_run_whole(module, piece):
    some = (torch.rand(8, 6),)

    run = compiled(module.eval(), some, engine="openvino", piece=piece)

    assert (run.engine, run.piece) == ("openvino", 0)
    assert relative_error(run(some), as_tuple(module(*some))) < 1e-5


# --- nothing of the process is changed --------------------------------------------------------


@pytest.mark.parametrize("module", [Odd(), nn.Linear(4, 4)], ids=["refused", "converted"])
def test_converting_leaves_the_root_logger_and_the_warnings_as_they_were(module):
    root = logging.getLogger()
    before = root.level, list(root.handlers), list(root.filters), list(warnings.filters)

    compiled(module.eval(), (torch.rand(2, 4, 4),), engine="openvino")

    assert (root.level, root.handlers, root.filters, list(warnings.filters)) == before


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


def test_telemetry_that_the_user_loaded_is_silent_for_us_and_his_own_afterwards():
    told = subprocess.run([sys.executable, "-c", TALKING], check=True, capture_output=True, text=True, timeout=120)

    assert told.stdout.strip() == "openvino True 0 True True"
