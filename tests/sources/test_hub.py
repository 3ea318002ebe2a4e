"""Asking whether the outside world is there, and not asking it at all."""

import http.server
import threading

from huggingface_hub import constants, is_offline_mode

from frostline.errors import WeightsNotReachable
from frostline.sources.hub import is_reachable, not_reachable, offline


def test_offline_is_put_back(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)

    with offline():
        assert is_offline_mode()
    assert not is_offline_mode()


def test_anything_that_answers_is_reachable():
    class Refusing(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.send_error(403)

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Refusing) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()

        assert is_reachable(f"http://127.0.0.1:{server.server_port}/")


def test_nothing_there_is_not_reachable(outside_calls):
    assert not is_reachable("https://huggingface.co")
    assert not is_reachable("")
    assert outside_calls


def test_message_says_the_way_out():
    error = not_reachable("timm:resnet18", "https://huggingface.co", "no network")

    assert isinstance(error, WeightsNotReachable)
    assert "--weights FILE" in str(error)
    assert error.name == "timm:resnet18"
