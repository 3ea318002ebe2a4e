"""Energy that counters tell is told, and nothing else: fakes of codecarbon, and codecarbon itself where it is there."""

import functools
import logging
import sys
import threading
from types import ModuleType, SimpleNamespace

import pytest
import torch

from frostline.energy import metered, own_counter

PROCESSOR, CARD = torch.device("cpu"), torch.device("cuda", 0)
KWH = 1 / 3.6e6
"""One joule."""


def module(monkeypatch, name, **holds):
    made = ModuleType(name)
    made.__dict__.update(holds)
    monkeypatch.setitem(sys.modules, name, made)


@pytest.fixture
def codecarbon(monkeypatch):
    """Make a codecarbon of a processor or a card whose counters say what the test says."""

    class NVMLError(Exception):
        pass

    def make(packages=None, cards=None):
        for name in ("codecarbon", "codecarbon.core"):
            module(monkeypatch, name)
        module(monkeypatch, "codecarbon.core.units", Time=float)
        module(monkeypatch, "codecarbon.core.cpu", IntelRAPL=packages)
        module(
            monkeypatch, "codecarbon.core.gpu", AllGPUDevices=cards, is_gpu_details_available=lambda: cards is not None
        )
        module(monkeypatch, "pynvml", NVMLError=NVMLError)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="11-22"))

    return make


def packages_that_say(*readings):
    """A processor whose readings are these dicts, one after the other."""
    left = list(readings)
    return lambda: SimpleNamespace(start=lambda: None, get_cpu_details=lambda time: left.pop(0))


def cards_that_say(*looks):
    """Cards whose looks are these lists of (uuid, millijoules), one after the other."""
    left = list(looks)

    def look():
        names = ("uuid", "total_energy_consumption", "power_usage")
        return [dict(zip(names, (*card, 300.0), strict=True)) for card in left.pop(0)]

    return lambda: SimpleNamespace(get_gpu_details=look)


# --- the block --------------------------------------------------------------------------------


def test_what_was_drawn_inside_is_told_at_the_end():
    with metered(PROCESSOR, counter_of=lambda device: lambda: 42.0) as drawn:
        assert drawn.joules is None

    assert drawn.joules == 42.0


def test_device_without_a_counter_tells_nothing():
    with metered(PROCESSOR, counter_of=lambda device: None) as drawn:
        pass

    assert drawn.joules is None


def test_readings_go_on_meanwhile():
    read, often = [], threading.Event()

    def counter():
        read.append(len(read))
        if len(read) > 3:
            often.set()
        return float(len(read))

    with metered(PROCESSOR, counter_of=lambda device: counter, seconds_between=0.001) as drawn:
        assert often.wait(60)

    assert drawn.joules == len(read) > 4


def test_error_inside_ends_the_readings_and_goes_on_its_way():
    with (
        pytest.raises(KeyError),
        metered(PROCESSOR, counter_of=lambda device: lambda: 1.0, seconds_between=0.001),
    ):
        raise KeyError

    assert not [thread for thread in threading.enumerate() if thread.name == "frostline energy"]


def test_logging_that_codecarbon_sets_up_is_undone(codecarbon):
    log = logging.getLogger("codecarbon")
    before = log.handlers[:], log.level, log.propagate, log.disabled

    def loud(device):
        log.addHandler(logging.StreamHandler())
        log.setLevel(logging.INFO)
        log.propagate = False

    with metered(PROCESSOR, counter_of=loud):
        assert not log.isEnabledFor(logging.CRITICAL)

    assert (log.handlers[:], log.level, log.propagate, log.disabled) == before


# --- whose counter ----------------------------------------------------------------------------


@pytest.mark.parametrize("device", [PROCESSOR, CARD], ids=str)
def test_without_codecarbon_nothing_is_told(monkeypatch, device):
    monkeypatch.setitem(sys.modules, "codecarbon", None)

    assert own_counter(device) is None


@pytest.mark.parametrize("error", [FileNotFoundError, PermissionError, SystemError, ValueError])
def test_processor_whose_counter_may_not_be_read_tells_nothing(codecarbon, error):
    def refuse():
        raise error

    codecarbon(packages=refuse)

    assert own_counter(PROCESSOR) is None


def test_joules_of_all_packages_are_added_up_over_the_readings(codecarbon):
    reading = {
        "Processor Energy Delta_0(kWh)": 3 * KWH,
        "Processor Power Delta_0(kWh)": 99.0,
        "Processor Energy Delta_1(kWh)": 2 * KWH,
        "dram": 7 * KWH,
    }
    codecarbon(packages=packages_that_say(reading, reading))

    counter = own_counter(PROCESSOR)

    assert [counter(), counter()] == pytest.approx([5.0, 10.0])


@pytest.mark.parametrize("silent", [{}, {"Processor Energy Delta_0(kWh)": 0.0}, {"core": KWH}], ids=str)
def test_processor_that_falls_silent_once_tells_nothing_any_more(codecarbon, silent):
    spoken = {"Processor Energy Delta_0(kWh)": KWH}
    codecarbon(packages=packages_that_say(spoken, silent, spoken))

    counter = own_counter(PROCESSOR)

    assert counter() == pytest.approx(1.0)
    assert [counter(), counter()] == [None, None]


def test_card_counts_for_itself_alone(codecarbon):
    codecarbon(
        cards=cards_that_say([("GPU-33-44", 10), ("GPU-11-22", 5000)], [("GPU-33-44", 9e9), ("GPU-11-22", 7500)])
    )

    assert own_counter(CARD)() == 2.5


@pytest.mark.parametrize(
    "looks",
    [
        ([("GPU-11-22", None)], [("GPU-11-22", None)]),
        ([("GPU-11-22", 5000)], [("GPU-11-22", None)]),
        ([("GPU-11-22", 5000)], []),
        ([("GPU-11-22", 5000)], [("GPU-11-22", 5000)]),
        ([("GPU-11-22", 5000)], [("GPU-11-22", 10)]),
        ([("GPU-33-44", 10)], [("GPU-33-44", 20)]),
    ],
    ids=["has no counter", "lost it", "lost the card", "stands still", "began anew", "is another's"],
)
def test_power_of_a_card_does_not_stand_in_for_its_counter(codecarbon, looks):
    codecarbon(cards=cards_that_say(*looks))

    assert own_counter(CARD)() is None


def test_card_without_its_library_tells_nothing(codecarbon):
    codecarbon()

    assert own_counter(CARD) is None


def test_card_that_may_not_be_opened_tells_nothing(codecarbon):
    def refuse():
        raise sys.modules["pynvml"].NVMLError

    codecarbon(cards=refuse)

    assert own_counter(CARD) is None


# --- codecarbon itself ------------------------------------------------------------------------


@pytest.fixture
def package(monkeypatch, tmp_path):
    """The counter's file of a processor as codecarbon itself finds it."""
    cpu = pytest.importorskip("codecarbon.core.cpu", reason="codecarbon is not installed")
    domain = tmp_path / "intel-rapl" / "intel-rapl:0"
    domain.mkdir(parents=True)
    (domain / "name").write_text("package-0\n")
    (domain / "max_energy_range_uj").write_text("262143328850\n")
    (domain / "energy_uj").write_text("5000000\n")
    monkeypatch.setattr(cpu, "IntelRAPL", functools.partial(cpu.IntelRAPL, rapl_dir=str(tmp_path / "intel-rapl")))
    return domain / "energy_uj"


def test_codecarbon_reads_the_processor(package):
    with metered(PROCESSOR) as drawn:
        package.write_text("12500000\n")

    assert drawn.joules == pytest.approx(7.5, rel=1e-5)


def test_counter_that_begins_anew_is_followed(package):
    with metered(PROCESSOR) as drawn:
        package.write_text("1000000\n")

    assert drawn.joules == pytest.approx(262143.33 - 4, rel=1e-5)


@pytest.mark.parametrize("spoilt", ["", "no number"])
def test_codecarbon_estimates_nothing_where_the_counter_cannot_be_read(package, spoilt):
    package.write_text(spoilt)

    with metered(PROCESSOR) as drawn:
        pass

    assert drawn.joules is None


def test_codecarbon_estimates_nothing_on_a_machine_without_counters(package, tmp_path):
    (tmp_path / "intel-rapl").rename(tmp_path / "elsewhere")

    assert own_counter(PROCESSOR) is None
