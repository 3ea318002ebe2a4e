"""What every result says of itself: the machine and the versions that it was made with, and the day."""

import datetime
from typing import Any

import frostline as fl
from frostline.claims import machine


def stamp() -> dict[str, Any]:
    return {"machine": dict(machine()), "frostline": fl.__version__, "date": str(datetime.date.today())}
