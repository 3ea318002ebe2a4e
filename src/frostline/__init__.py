"""frostline finds how many initial layers of a pretrained network to freeze, and trains only the rest.

Names are loaded when first used, so that `import frostline` is instant.
"""

import importlib
import logging
from typing import Any

__version__ = "0.1.0.dev0"

_HOME = {
    "Task": "task",
    "TensorSamples": "data",
    "list_pictures": "data",
    "read_pictures": "data",
    "trace": "tracing",
    "split": "splitting",
    "prove": "splitting",
    "freeze": "freezing",
    "freeze_to": "freezing",
    "unfreeze": "freezing",
    "verify": "freezing",
    "layer_status": "freezing",
    "param_groups": "freezing",
    "Thaw": "freezing",
    "cache": "features",
    "cache_all": "features",
    "probe": "probing",
    "probe_tangent": "tangent",
    "tune": "tuning",
    "score": "scoring",
    "choose": "choosing",
    "save_delta": "delta",
    "apply_delta": "delta",
    "gather": "claims",
    "render": "reporting",
    "fit": "run",
    "plan": "run",
    "report": "reporting",
    "compare": "reporting",
    "evidence": "trying",
    "Result": "result",
    "load_model": "sources",
    "load_task": "sources",
    "look": "sources",
    "load_tuned": "sources.saved",
    "predict": "sources.saved",
    "demo": "sources.demo",
    "Event": "events",
    "FrostlineError": "errors",
}

__all__ = sorted([*_HOME, "__version__"])

logging.getLogger("frostline").addHandler(logging.NullHandler())


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'frostline' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"frostline.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
