"""What holds for every test and doctest: no outside world, the same draws each time, a few names for doctests."""

import os
import random
import socket
from pathlib import Path

import hypothesis
import pytest
import torch

# Read when the libraries are first imported, so they are set before any test module is.
for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HUB_DISABLE_TELEMETRY"):
    os.environ.setdefault(name, "1")

LOCAL = ("localhost", "127.", "::1", "0.0.0.0")


class TorchDraws:
    """What Hypothesis needs to know of torch's draws, to begin each example with the same ones."""

    seed = staticmethod(torch.manual_seed)
    getstate = staticmethod(torch.get_rng_state)
    setstate = staticmethod(torch.set_rng_state)


TORCH_DRAWS = TorchDraws()
hypothesis.register_random(TORCH_DRAWS)  # It keeps no reference of its own.


class OutsideWorld(OSError):
    """A test tried to reach another machine."""


def is_local(address):
    """Whether an address of `connect` stays on this machine; paths of Unix sockets and no host do."""
    host = address[0] if isinstance(address, tuple) else None
    host = host.decode() if isinstance(host, bytes) else host
    return not isinstance(host, str) or host == "" or host.startswith(LOCAL)


@pytest.fixture(autouse=True)
def no_outside_world(request, monkeypatch):
    """Refuse every connection to another machine, and fail the test that tried."""
    calls = []
    if "network" in request.keywords:
        yield calls
        return

    def guarded(call, address_of):
        def refuse_or_call(*args, **kwargs):
            address = address_of(*args)
            if is_local(address):
                return call(*args, **kwargs)
            calls.append(address)
            raise OutsideWorld(f"OutsideWorld: a test tried to reach {address!r}; mark it `network` or take that out.")

        return refuse_or_call

    for method in ("connect", "connect_ex"):
        call = getattr(socket.socket, method)
        monkeypatch.setattr(socket.socket, method, guarded(call, lambda sock, address: address))
    monkeypatch.setattr(socket, "getaddrinfo", guarded(socket.getaddrinfo, lambda host, *port: (host, *port)))

    yield calls

    if calls and "outside_calls" not in request.fixturenames:
        pytest.fail(f"the test tried to reach {calls}; one that means to asks for `outside_calls`")


@pytest.fixture
def outside_calls(no_outside_world):
    """Addresses that the test tried to reach and was refused; asking for them allows the try."""
    return no_outside_world


@pytest.fixture(autouse=True)
def same_draws():
    """Begin every test with the same draws, whatever ran before it; other ones than the seeds that tests give."""
    random.seed(20)
    torch.manual_seed(20)


@pytest.fixture(autouse=True)
def names_of_doctests(request, doctest_namespace):
    """Give doctests `fl`, the package, and `tmp`, an empty folder that is also where they run."""
    if not isinstance(request.node, pytest.DoctestItem):
        yield
        return
    import frostline

    tmp = request.getfixturevalue("tmp_path")
    doctest_namespace.update(fl=frostline, tmp=tmp)
    before = Path.cwd()
    os.chdir(tmp)
    yield
    os.chdir(before)


@pytest.fixture
def photos(tmp_path):
    """A folder `photos` with thirty discs called cats and thirty squares called dogs, of any colour and place."""
    from PIL import Image, ImageDraw

    for label, shape in (("cat", "ellipse"), ("dog", "rectangle")):
        place = tmp_path / "photos" / label
        place.mkdir(parents=True)
        for number in range(30):
            picture = Image.new("RGB", (96, 96), (number * 8, 255 - number * 8, 128))
            getattr(ImageDraw.Draw(picture), shape)((20 + number, 20, 60 + number, 60), fill=(255, number * 5, 0))
            picture.save(place / f"{number}.png")
    return tmp_path / "photos"
