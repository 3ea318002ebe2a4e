"""For tests, ours and yours: tolerances, small networks of every kind, false cuts, contracts of the seams."""

from collections.abc import Mapping
from types import MappingProxyType

from frostline.testing.contracts import ExecutorContract, StrategyContract, TracerContract
from frostline.testing.laws import FalseCut, breach, false_cuts, opened, snapshot, without_wire
from frostline.testing.menagerie import PIECES, Specimen, menagerie, network, specimen
from frostline.testing.patchwork import PATCHES, TRAITS, patchwork

__all__ = [
    "CLOSE",
    "PATCHES",
    "PIECES",
    "ROUGH",
    "SAME",
    "TRAITS",
    "ExecutorContract",
    "FalseCut",
    "Specimen",
    "StrategyContract",
    "TracerContract",
    "breach",
    "false_cuts",
    "menagerie",
    "network",
    "opened",
    "patchwork",
    "snapshot",
    "specimen",
    "without_wire",
]

SAME: Mapping[str, float] = MappingProxyType({"rtol": 0.0, "atol": 0.0})
"""Bit for bit: same code, device and batch shape. Use as `torch.testing.assert_close(a, b, **SAME)`."""

CLOSE: Mapping[str, float] = MappingProxyType({"rtol": 1e-4, "atol": 1e-5})
"""Float32 across batch shapes, engines or devices."""

ROUGH: Mapping[str, float] = MappingProxyType({"rtol": 3e-2, "atol": 1e-2})
"""Half precision."""
