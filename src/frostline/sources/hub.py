"""Whether the outside world can be asked, and how not to ask it."""

import contextlib
import urllib.error
import urllib.request
from collections.abc import Iterator

from frostline.errors import WeightsNotReachable


@contextlib.contextmanager
def offline() -> Iterator[None]:
    """Let the Hugging Face libraries use only what they have kept on this machine.

    Example:
        >>> with offline():
        ...     from huggingface_hub import is_offline_mode
        ...
        ...     is_offline_mode()
        True
    """
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def is_reachable(address: str, seconds: float = 10.0) -> bool:
    """Whether anything answers there. The hub's own library tries for most of a minute before it says no."""
    try:
        with urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=seconds):
            return True
    except urllib.error.HTTPError:
        return True
    except (OSError, ValueError):
        return False


def not_reachable(name: str, hub: str, reason: object) -> WeightsNotReachable:
    """The error for weights that could not be fetched."""
    return WeightsNotReachable(
        f"WeightsNotReachable: the weights of {name} could not be fetched from {hub} ({reason}). Connect this machine "
        "once, or give a local file with --weights FILE (safetensors or .pth); the default model efficientnet_lite0 "
        "needs no network.",
        name=name,
        hub=hub,
    )
