"""One offline HTML file that says what was chosen, how good it is, what it cost, and why."""

import base64
import hashlib
import json
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from frostline import amounts
from frostline.errors import NotARun
from frostline.files import read_record, write_whole
from frostline.plots import (
    MOST_DRAWN,
    MOST_WRITTEN,
    PALETTES,
    Figure,
    confusion,
    confusion_overview,
    depth_curve,
    learning_curves,
)
from frostline.records import Evidence
from frostline.reporting.page import page

_HERE = Path(__file__).parent


def render(evidence: Evidence, file: Path | str) -> Path:
    """Write the report: one HTML file that needs neither network nor torch.

    The same evidence gives the same bytes. Names of classes and files are shown as text; the
    page's own policy lets no other script run and nothing be fetched.

    Args:
        evidence: Everything that is to be said.
        file: Replaced if it exists.

    Returns:
        The file, under 8 MB.

    Raises:
        DiskFull: The disk filled up; what was at `file` before is untouched.
        NotWritable: The folder cannot be written.

    Example:
        >>> import inspect
        >>> list(inspect.signature(render).parameters)
        ['evidence', 'file']
    """
    from plotly.offline import get_plotlyjs

    file = Path(file)
    scripts = [get_plotlyjs(), (_HERE / "report.js").read_text(encoding="utf-8")]
    environment = Environment(
        loader=FileSystemLoader(_HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    text = environment.get_template("report.html.j2").render(
        page(evidence),
        numbers=amounts,
        most_written=MOST_WRITTEN,
        most_drawn=MOST_DRAWN,
        palettes=PALETTES,
        css=(_HERE / "report.css").read_text(encoding="utf-8"),
        scripts=scripts,
        script_digests=[_digest(script) for script in scripts],
        figures_json=_script_safe(
            {"palettes": {name: dict(PALETTES[name]) for name in PALETTES}, **_figures(evidence)}
        ),
    )
    # A path may hold bytes that are no UTF-8; Python keeps them as surrogates that cannot be written.
    write_whole(file, text.encode("utf-8", "backslashreplace"))
    return file


def report(run: Path | str) -> Path:
    """Write the report of a finished run again from its evidence, without torch.

    Args:
        run: Run folder.

    Returns:
        The HTML file.

    Raises:
        NotARun: The folder holds no finished run.

    Example:
        >>> fl.report("no-such-run")
        Traceback (most recent call last):
        ...
        frostline.errors.NotARun: ...
    """
    file = Path(run) / "evidence.json"
    if not file.exists():
        raise NotARun(
            f"NotARun: {run} holds no finished run (no evidence.json). Give the folder that `frostline fit` printed, "
            "or start that fit again to finish it.",
            run=run,
        )
    return render(read_record(file, Evidence), Path(run) / "report.html")


def _figures(evidence: Evidence) -> dict[str, dict[str, Figure]]:
    loss, accuracy = learning_curves(evidence.trials, evidence.choice)
    curve = depth_curve(evidence.graph, evidence.prior, evidence.plan, choice=evidence.choice, valid=evidence.valid)
    mistakes = confusion(evidence.data.classes, evidence.test)
    figures = {"depth": curve, "loss": loss, "accuracy": accuracy, "confusion": mistakes}
    if MOST_WRITTEN < len(evidence.data.classes) <= MOST_DRAWN:
        figures["overview"] = confusion_overview(evidence.data.classes, evidence.test)
    return {"figures": figures}


def _script_safe(value: object) -> str:
    """JSON that cannot end the script element it stands in, whatever the names in it say."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _digest(script: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}"
