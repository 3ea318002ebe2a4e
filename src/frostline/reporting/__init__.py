"""Offline HTML files that say what was chosen, how good it is, what it cost, and why."""

import base64
import hashlib
import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from frostline import amounts
from frostline.errors import BadArgument, NotARun
from frostline.exhibits import Album
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
from frostline.reporting.album import album_told
from frostline.reporting.claimed import claim_figures, claimed
from frostline.reporting.comparison import Comparison, comparison
from frostline.reporting.curves import cost_points, depth_curves
from frostline.reporting.page import chosen_score, page
from frostline.reporting.sides import sides
from frostline.reporting.summary import summary

_HERE = Path(__file__).parent


def render(evidence: Evidence, file: Path | str, *, album: Album | None = None) -> Path:
    """Write the report: one HTML file that needs neither network nor torch.

    The same evidence gives the same bytes. Names of classes and files are shown as text; the
    page's own policy lets no other script run and nothing be fetched.

    Args:
        evidence: Everything that is to be said.
        file: Replaced if it exists.
        album: Pictures to show with it, as far as there is room; what is no JPEG or PNG is left out.

    Returns:
        The file, under 8 MB.

    Raises:
        DiskFull: The disk filled up; what was at `file` before is untouched.
        NotWritable: The folder cannot be written.

    Example:
        >>> import inspect
        >>> list(inspect.signature(render).parameters)
        ['evidence', 'file', 'album']
    """
    side = evidence.preprocessing.image_size if evidence.preprocessing else None
    told = page(evidence) | {
        "claims": claimed(evidence),
        "album": album_told(album or Album(), picture_side=side),
        "version": evidence.frostline,
        "most_written": MOST_WRITTEN,
        "most_drawn": MOST_DRAWN,
    }
    return _lay_out("report.html.j2", Path(file), told, _figures(evidence))


def report(run: Path | str) -> Path:
    """Write report and summary of a finished run again from its files, without torch.

    Args:
        run: Run folder.

    Returns:
        The HTML file; `summary.md` beside it says the same in short, to paste into a pull request.

    Raises:
        NotARun: The folder holds no finished run, or its `album.json` holds something else.

    Example:
        >>> fl.report("no-such-run")
        Traceback (most recent call last):
        ...
        frostline.errors.NotARun: ...
    """
    evidence = _evidence_of(run)
    _write(Path(run) / "summary.md", summary(evidence))
    pictures = Path(run) / "album.json"
    album = read_record(pictures, Album) if pictures.exists() else None
    return render(evidence, Path(run) / "report.html", album=album)


def compare(*runs: Path | str, out: Path | str | None = None) -> Comparison:
    """Show several finished runs side by side on one offline HTML page, without torch.

    Runs that were tested on the same samples are compared answer by answer; runs on other data
    are told apart from them.

    Args:
        runs: Two run folders or more.
        out: The HTML file; None writes `comparison.html` beside the first run folder.

    Returns:
        The figures; `file` is where the page is.

    Raises:
        BadArgument: Fewer than two runs.
        NotARun: A folder holds no finished run.

    Example:
        >>> fl.compare("no-such-run", "nor-this")
        Traceback (most recent call last):
        ...
        frostline.errors.NotARun: ...
    """
    if len(runs) < 2:
        raise BadArgument(
            f"BadArgument: {len(runs)} run{'' if len(runs) == 1 else 's'} given; two or more are compared. Add another "
            "run folder, or see one run with `frostline report`.",
            runs=runs,
        )
    found = [(str(run), _evidence_of(run)) for run in runs]
    file = Path(out) if out is not None else Path(runs[0]).absolute().parent / "comparison.html"
    record, evidence = comparison(found, str(file))
    told = sides(record, evidence) | {"version": version("frostline")}
    _lay_out(
        "comparison.html.j2",
        file,
        told,
        {"depths": depth_curves(record.runs, evidence), "costs": cost_points(record.runs)},
    )
    return record


def _evidence_of(run: Path | str) -> Evidence:
    folder = Path(run)
    file = folder / "evidence.json"
    if file.exists():
        return read_record(file, Evidence)
    if not folder.is_dir():
        found = "is a file" if folder.exists() else "does not exist"
        needed = "A run folder is needed. Give the folder that `frostline fit` printed."
    elif (folder / "arguments.json").exists():
        found = "holds a run that is not finished (no evidence.json)"
        needed = "Start its `frostline fit` again: it goes on from what is there."
    else:
        found = "holds no run (no evidence.json)"
        needed = "Give the folder that `frostline fit` printed."
    raise NotARun(f"NotARun: {run} {found}. {needed}", run=run)


def _lay_out(template: str, file: Path, told: Mapping[str, Any], figures: Mapping[str, Figure]) -> Path:
    from plotly.offline import get_plotlyjs

    scripts = [get_plotlyjs(), (_HERE / "report.js").read_text(encoding="utf-8")]
    environment = Environment(
        loader=FileSystemLoader(_HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    text = environment.get_template(template).render(
        told,
        numbers=amounts,
        palettes=PALETTES,
        css=(_HERE / "report.css").read_text(encoding="utf-8"),
        scripts=scripts,
        script_digests=[_digest(script) for script in scripts],
        figures_json=_script_safe({"palettes": {name: dict(PALETTES[name]) for name in PALETTES}, "figures": figures}),
    )
    return _write(file, text)


def _write(file: Path, text: str) -> Path:
    # A path may hold bytes that are no UTF-8; Python keeps them as surrogates that cannot be written.
    write_whole(file, text.encode("utf-8", "backslashreplace"))
    return file


def _figures(evidence: Evidence) -> dict[str, Figure]:
    loss, accuracy = learning_curves(evidence.trials, evidence.choice)
    valid = chosen_score(evidence)
    curve = depth_curve(evidence.graph, evidence.prior, evidence.plan, choice=evidence.choice, valid=valid)
    mistakes = confusion(evidence.data.classes, evidence.test)
    figures = {"depth": curve, "loss": loss, "accuracy": accuracy, "confusion": mistakes, **claim_figures(evidence)}
    if MOST_WRITTEN < len(evidence.data.classes) <= MOST_DRAWN:
        figures["overview"] = confusion_overview(evidence.data.classes, evidence.test)
    return figures


def _script_safe(value: object) -> str:
    """JSON that cannot end the script element it stands in, whatever the names in it say."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _digest(script: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}"
