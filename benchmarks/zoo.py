"""Which networks can be cut: all families of torchvision and timm, and architectures of transformers.

    python benchmarks/zoo.py --json OUT [--kinds torchvision,timm,transformers] [--only PATTERN ...]
                             [--again PATTERN ...] [--markdown docs/zoo.md] [--jobs 1] [--limit 180]

All weights are random and seeded, nothing is downloaded. Of each family the smallest member by
parameters is traced and every open cut proven, then compared with the network at another batch
size; a few larger members of torchvision get three proofs each. One process a row; the rows lie
in OUT.rows, so that the same command goes on where it stopped. `--again` runs rows once more,
`--only` no others; a pattern is compared with a row's name, its family and KIND/NAME. Depth 0
freezes nothing and is not counted anywhere.
"""

import argparse
import ctypes
import datetime
import fnmatch
import gc
import importlib.metadata
import json
import multiprocessing
import os
import platform
import statistics
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import nn
from zoo_networks import KINDS, SEED, Network, Subject, built, smallest_members, subjects, write

import frostline as fl
from frostline.claims import machine
from frostline.records import CutGraph
from frostline.testing import CLOSE
from frostline.trees import arguments, tensors

BATCH, OTHER_BATCH = 2, 3


# --- a row ------------------------------------------------------------------------------------


def row_of(network: Network, proofs: int | None, deadline: float) -> dict[str, Any]:
    model, example = network.model.eval(), network.example(BATCH)
    began = time.perf_counter()
    graph = fl.trace(model, example)
    row: dict[str, Any] = {
        "name": network.name,
        "model": graph.model,
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "input": inputs_in_words(example),
        "stages": len(graph.stages),
        "open": sum(depth > 0 for depth in graph.open_depths),
        "trace_seconds": time.perf_counter() - began,
        "blocked": [said(cut.depth, cut.name, cut.blocked) for cut in graph.cuts[1:] if cut.blocked],
        "stage_names": [stage.name for stage in graph.stages],
    }
    depths = [depth for depth in graph.open_depths if depth]
    if proofs and len(depths) > proofs:
        depths = [depths[0], depths[len(depths) // 2], depths[-1]]
    row |= proven(model, graph, depths, example, deadline)
    row |= compared(model, graph, depths[: row["tried"]], network.example(OTHER_BATCH))
    if depths:
        middle = depths[len(depths) // 2]
        row |= {"glue_depth": middle, "glue_share": glue_share(model, graph, middle, network.example(8))}
    row["memory"] = memory(model, network.example)
    if row["tried"] < len(depths):
        row["trouble"] = f"the time limit came after {row['tried']} of {len(depths)} proofs"
    return row


def inputs_in_words(example: Any) -> str:
    args, kwargs = arguments(example)
    named = [("", value) for value in args] + [(name + " ", value) for name, value in kwargs.items()]
    return ", ".join(f"{name}{'x'.join(map(str, value.shape[1:]))}" for name, value in named)


def said(depth: int, name: str, reason: str | None) -> dict[str, Any]:
    return {"depth": depth, "name": name, "reason": reason}


def proven(model: nn.Module, graph: CutGraph, depths: Sequence[int], example: Any, deadline: float) -> dict[str, Any]:
    seconds, refused = [], []
    for depth in depths:
        if time.monotonic() > deadline:
            break
        began = time.perf_counter()
        reason = fl.prove(model, graph, depth, example=example)
        seconds.append(time.perf_counter() - began)
        if reason:
            refused.append(said(depth, graph.cuts[depth].name, reason))
    return {
        "tried": len(seconds),
        "proven": len(seconds) - len(refused),
        "refused": refused,
        "prove_seconds": statistics.median(seconds) if seconds else None,
    }


def compared(model: nn.Module, graph: CutGraph, depths: Sequence[int], example: Any) -> dict[str, Any]:
    """Both parts, one after the other, against the network at a batch size that was not traced."""
    args, kwargs = arguments(example)
    apart = []
    with torch.no_grad():
        expected = tensors(model(*args, **kwargs))
        for depth in depths:
            try:
                parts = fl.split(model, graph, depth)
                found = tensors(parts.live(*wires_of(parts, example)))
                for one, other in zip(found, expected, strict=True):
                    torch.testing.assert_close(one, other, **CLOSE)
            except Exception as error:
                apart.append(said(depth, graph.cuts[depth].name, in_words(error)))
    return {"close": len(depths) - len(apart), "not_close": apart}


def wires_of(parts: Any, example: Any) -> tuple[torch.Tensor, ...]:
    return parts.frozen(example) if isinstance(example, Mapping) else parts.frozen(*arguments(example)[0])


def in_words(error: BaseException) -> str:
    last = traceback.extract_tb(error.__traceback__)[-1]
    text = " ".join(str(error).split())[:200]
    return f"{type(error).__name__}: {text} ({Path(last.filename).name}:{last.lineno})"


def glue_share(model: nn.Module, graph: CutGraph, depth: int, example: Any) -> float:
    """Share of a live pass that is over when the last stand-in returns: all before that moment lies below the cut."""
    parts = fl.split(model, graph, depth)
    wires = wires_of(parts, example)
    moment = 0.0
    calls: dict[nn.Module, int] = {}

    def note(module: nn.Module, args: Any, output: Any) -> None:
        nonlocal moment
        calls[module] = calls.get(module, 0) + 1
        if calls[module] <= len(module.forward.script):
            moment = time.perf_counter()

    for module in parts.live.modules():
        if hasattr(vars(module).get("forward"), "script"):
            module.register_forward_hook(note)
    shares = []
    for _ in range(6):
        calls.clear()
        began = time.perf_counter()
        parts.live(*wires)
        shares.append((moment - began) / (time.perf_counter() - began))
    return statistics.median(shares[1:])


def memory(model: nn.Module, example: Callable[[int], Any]) -> dict[str, Any]:
    """Peak memory of the trace and of a plain forward at a batch whose activations outweigh all else.

    `allocated` is the most that torch's allocator held at once, `resident` the growth of the
    whole process, the median of three; both without what was there before.
    """

    def forward() -> None:
        args, kwargs = arguments(given)
        with torch.no_grad():
            model(*args, **kwargs)

    def trace() -> None:
        fl.trace(model, given)

    batch, given = 8, example(8)
    plain = allocated_peak(forward)
    began = time.perf_counter()
    forward()
    seconds = time.perf_counter() - began
    factor = min((32 << 20) / plain, 0.5 / seconds, 64)
    if factor >= 2:
        batch = 8 * int(factor)
        given = example(batch)
        plain = allocated_peak(forward)
    resident = [(resident_peak(forward), resident_peak(trace)) for _ in range(3)]
    plain_resident, trace_resident = (statistics.median(column) for column in zip(*resident, strict=True))
    return {
        "batch": batch,
        "plain_allocated": plain,
        "trace_allocated": allocated_peak(trace),
        "plain_resident": plain_resident,
        "trace_resident": trace_resident,
    }


def allocated_peak(work: Callable[[], Any]) -> int:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as seen:
        work()
    events = [event for event in seen.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def resident_peak(work: Callable[[], Any]) -> int:
    gc.collect()
    # Freed memory that the C library keeps for later would hide what is needed anew.
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = highest_resident()
    work()
    return highest_resident() - before


def highest_resident() -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


# --- one process a row ------------------------------------------------------------------------


def run(wanted: Sequence[Subject], folder: Path, *, jobs: int, limit: float) -> None:
    # The profiler that counts what torch allocates writes of its start and stop.
    os.environ |= {"KINETO_LOG_LEVEL": "99", "TORCH_CPP_LOG_LEVEL": "ERROR"}
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["__main__", "frostline.tracing", "frostline.splitting", "transformers.modeling_utils"]
    )
    choice = folder / "smallest.json"
    families = [subject.family for subject in wanted if subject.kind == "timm"]
    chooser = context.Process(target=smallest_members, args=(families, choice))
    chooser.start()
    chooser.join()
    smallest = json.loads(choice.read_text()) if choice.exists() else {}

    def make(subject: Subject) -> dict[str, Any]:
        return row_in_process(context, subject, row_file(folder, subject), smallest, limit=limit)

    with ThreadPoolExecutor(jobs) as pool:
        for number, row in enumerate(pool.map(make, wanted), 1):
            print(f"{number}/{len(wanted)} {line_of(row)}", flush=True)


def row_in_process(
    context: Any, subject: Subject, file: Path, smallest: Mapping[str, str], *, limit: float
) -> dict[str, Any]:
    file.unlink(missing_ok=True)
    process = context.Process(target=write_row, args=(subject, file, smallest, limit))
    process.start()
    # What follows the proofs has a time of its own.
    process.join(2 * limit)
    if process.is_alive():
        process.kill()
        process.join()
    if not file.exists():
        why = f"took more than {2 * limit:g} s" if process.exitcode == -9 else f"ended with code {process.exitcode}"
        write(file, head_of(subject) | {"trouble": f"its process {why}"})
    return json.loads(file.read_text())


def head_of(subject: Subject) -> dict[str, Any]:
    head = {"key": subject.key, "kind": subject.kind, "family": subject.family, "proofs": subject.proofs or "all"}
    return head | {"name": subject.member or subject.family}


def write_row(subject: Subject, file: Path, smallest: Mapping[str, str], limit: float) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(threads())
    began = time.monotonic()
    try:
        row = row_of(built(subject, smallest), subject.proofs, began + limit)
    except Exception as error:
        row = {"trouble": in_words(error), "name": subject.member or smallest.get(subject.family, subject.family)}
    write(file, head_of(subject) | row | {"seconds": time.monotonic() - began})


def row_file(folder: Path, subject: Subject) -> Path:
    return folder / f"{subject.key.replace('/', '-').replace(' ', '_')}.json"


def line_of(row: Mapping[str, Any]) -> str:
    if "stages" not in row:
        return f"{row['key']} {row.get('name', '')}: {row['trouble']}"
    words = (
        f"{row['key']} {row['name']}: {row['stages']} stages, {row['open']} open, {row['proven']} of {row['tried']} "
        f"proven, {row['close']} close, {len(row['blocked'])} blocked, trace {row['trace_seconds']:.2f} s, "
        f"proof {row['prove_seconds'] or 0:.2f} s, memory {times(row, 'resident'):.2f}"
    )
    reasons = [item["reason"] for item in (*row["refused"], *row["not_close"])]
    return "; ".join([words, *reasons[:1], *filter(None, [row.get("trouble")])])


# --- the summary ------------------------------------------------------------------------------


def summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Figures over the architectures, each open cut of which was tried; the larger networks count for themselves."""
    every = [row for row in rows if row["proofs"] == "all"]
    larger = [row for row in rows if row["proofs"] != "all" and "stages" in row]
    whole = [row for row in every if "stages" in row]
    proofs = [row for row in whole if row["prove_seconds"] is not None]
    figures = {
        "larger_networks": len(rows) - len(every),
        "larger_tried_cuts": sum(row["tried"] for row in larger),
        "larger_proven_cuts": sum(row["proven"] for row in larger),
        "larger_close_cuts": sum(row["close"] for row in larger),
        "in_trouble": sum(bool(row.get("trouble")) for row in rows),
        "trace_seconds": spread([row["trace_seconds"] for row in whole]),
        "prove_seconds": spread([row["prove_seconds"] for row in proofs]),
        "trace_and_proof_seconds": spread([row["trace_seconds"] + row["prove_seconds"] for row in proofs]),
        "allocated_times": spread([times(row, "allocated") for row in whole]),
        "resident_times": spread([times(row, "resident") for row in whole]),
        "within_twice": sum(max(times(row, "allocated"), times(row, "resident")) <= 2 for row in whole),
        "glue_share": spread([row["glue_share"] for row in proofs]),
        "blocked_cuts": sum(len(row["blocked"]) for row in whole),
        "close_cuts": sum(row["close"] for row in whole),
        "architectures": len(every),
        "with_four_depths": sum(row["open"] >= 4 for row in whole),
        "open_cuts": sum(row["open"] for row in whole),
        "proven_cuts": sum(row["proven"] for row in whole),
    }
    return {"bars": bars(figures), **figures}


def times(row: Mapping[str, Any], counted: str) -> float:
    """How many times the memory of a plain forward the trace took."""
    return row["memory"][f"trace_{counted}"] / max(1, row["memory"][f"plain_{counted}"])


def spread(values: Sequence[float]) -> dict[str, float]:
    """The quartiles and the largest."""
    if len(values) < 2:
        return dict.fromkeys(("low", "median", "high", "most"), *values or (0.0,))
    found = (*statistics.quantiles(values, n=4, method="inclusive"), max(values))
    return dict(zip(("low", "median", "high", "most"), (round(value, 3) for value in found), strict=True))


def bars(figures: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What the zoo must show, what it shows, and whether that is enough."""
    deep, every = figures["with_four_depths"], figures["architectures"]
    opened, proofs, near = figures["open_cuts"], figures["proven_cuts"], figures["close_cuts"]
    seconds, memory = figures["trace_and_proof_seconds"], figures["resident_times"]
    return [
        bar("at least 95 % have four or more open depths beside 0", f"{deep} of {every}", deep >= 0.95 * every),
        bar("every open cut is proven", f"{proofs} of {opened}", proofs == opened),
        bar(f"every open cut is CLOSE at batch {OTHER_BATCH}", f"{near} of {opened}", near == opened),
        bar(
            "trace and one proof take at most 5 s for the median architecture",
            f"{seconds['median']:.2f} s (quartiles {seconds['low']:.2f} and {seconds['high']:.2f} s)",
            seconds["median"] <= 5,
        ),
        bar(
            "a trace takes at most twice a plain forward's memory",
            f"{figures['within_twice']} of {every}, median {memory['median']:.2f}, most {memory['most']:.2f} times",
            figures["within_twice"] == every,
        ),
    ]


def bar(needed: str, found: str, holds: bool) -> dict[str, Any]:
    return {"needed": needed, "found": found, "holds": holds}


def setting() -> dict[str, Any]:
    """Where and when the rows were made."""
    packages = ("frostline", "torch", "torchvision", "timm", "transformers")
    processor = dict(machine())["processor"]
    return {
        "machine": {"processor": processor, "cores": os.cpu_count(), "threads": threads(), "system": platform.system()},
        "versions": {"python": platform.python_version(), **{name: version_of(name) for name in packages}},
        "seed": SEED,
        "date": str(datetime.date.today()),
    }


def threads() -> int:
    return int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1))


def version_of(package: str) -> str | None:
    try:
        return fl.__version__ if package == "frostline" else importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


# --- the page ---------------------------------------------------------------------------------

COLUMNS = (
    *("network", "million parameters", "stages", "open", "proven", "close", "blocked", "trace, s", "proof, s"),
    *("memory, times", "glue, %"),
)


def page(found: Mapping[str, Any]) -> str:
    rows = found["rows"]
    machine, versions = found["machine"], found["versions"]
    named = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    lines = [
        "# Which networks can be cut?",
        "",
        f"All that were tried: {found['architectures']} architectures, {found['open_cuts']} cuts, of which "
        f"{found['proven_cuts']} are proven. The table is made by "
        "`benchmarks/zoo.py` "
        f"on {machine['processor']}, {machine['threads']} of {machine['cores']} cores, with {named}, "
        f"seed {found['seed']}, {found['date']}.",
        "",
        "| what it must show | what it shows | |",
        "| --- | --- | --- |",
        *(
            f"| {item['needed']} | {item['found']} | {'holds' if item['holds'] else 'fails'} |"
            for item in found["bars"]
        ),
        "",
        *EXPLANATION,
    ]
    for kind in KINDS:
        mine = [row for row in rows if row["kind"] == kind]
        if mine:
            lines += ["", f"## {kind}", "", f"| {' | '.join(COLUMNS)} |", f"|{' --- |' * len(COLUMNS)}"]
            lines += [table_line(row) for row in mine]
    return "\n".join([*lines, *reasons(rows), ""])


EXPLANATION = (
    "Of each family of torchvision and timm it is the smallest member, with every open cut tried. Rows marked * are "
    "larger members with three cuts tried: the first, the middle and the last. The networks of transformers have the "
    "real architecture at a small width. All weights are random.",
    "",
    "- **stages** counts the head; **open** are the cuts that may be used, **blocked** those that may not, each with "
    "its reason below. Depth 0, which freezes nothing, is not counted.",
    "- **proven** cuts have passed `fl.prove`: fed NaN for all that is not kept, the live part gives the bits and the "
    f"gradients of the whole network. **close** cuts agree with it at batch {OTHER_BATCH} too, which was never traced.",
    "- **trace** and **proof** are seconds for one trace and, the median, for one cut.",
    "- **memory** is the peak during a trace, in times that of a plain forward without gradients, at a batch that "
    "allocates about 32 MiB or takes half a second, 8 to 512: what torch allocates / what the process grows by.",
    "- **glue** is the share of a live pass at the middle depth, batch 8, that is over when the last stand-in has "
    "returned: what the network's own code around the frozen part costs.",
)


def table_line(row: Mapping[str, Any]) -> str:
    name = f"`{row['name']}`" + ("" if row["proofs"] == "all" else " *")
    if "stages" not in row:
        return f"| {name} | {row['trouble']} |" + " |" * (len(COLUMNS) - 2)
    cells = [
        name,
        f"{row['parameters'] / 1e6:.2f}",
        row["stages"],
        row["open"],
        f"{row['proven']} of {row['tried']}",
        f"{row['close']} of {row['tried']}",
        len(row["blocked"]),
        f"{row['trace_seconds']:.2f}",
        "" if row["prove_seconds"] is None else f"{row['prove_seconds']:.2f}",
        f"{times(row, 'allocated'):.2f} / {times(row, 'resident'):.2f}",
        f"{100 * row['glue_share']:.0f}" if "glue_share" in row else "",
    ]
    return f"| {' | '.join(map(str, cells))} |"


def reasons(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """A paragraph for each network in which something is blocked, refused or missing."""
    told = [row for row in rows if any(row.get(part) for part in ("blocked", "refused", "not_close", "trouble"))]
    if told:
        yield from ("", "## Where a cut cannot be used, and why")
    for row in told:
        yield from ("", f"`{row['name']}` ({row['kind']})", "")
        for part, word in (("blocked", "blocked"), ("refused", "not proven"), ("not_close", "not close")):
            by_reason: dict[str, list[str]] = {}
            for item in row.get(part, ()):
                by_reason.setdefault(item["reason"], []).append(str(item["depth"]))
            for reason, depths in by_reason.items():
                yield f"- depth {', '.join(depths)} {word}: {reason}"
        if row.get("trouble"):
            yield f"- {row['trouble']}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--only", nargs="+", default=["*"], metavar="PATTERN")
    parser.add_argument("--again", nargs="+", default=[], metavar="PATTERN", help="run these rows once more")
    parser.add_argument("--markdown", type=Path, help="write the table as a page")
    parser.add_argument("--jobs", type=int, default=1, help="rows at once; figures of time want 1")
    parser.add_argument("--limit", type=float, default=180, help="seconds for the proofs of a row")
    options = parser.parse_args()
    folder = options.json.with_name(options.json.name + ".rows")
    folder.mkdir(parents=True, exist_ok=True)
    every = subjects(options.kinds.split(","))
    chosen = [subject for subject in every if matches(subject, folder, options.only)]
    wanted = [
        subject
        for subject in chosen
        if not row_file(folder, subject).exists() or matches(subject, folder, options.again)
    ]
    run(wanted, folder, jobs=options.jobs, limit=options.limit)
    files = [row_file(folder, subject) for subject in subjects(KINDS)]
    rows = [json.loads(file.read_text()) for file in files if file.exists()]
    found = {"rows": rows, **setting(), **summary(rows)}
    write(options.json, found)
    if options.markdown:
        options.markdown.write_text(page(found))
    for item in found["bars"]:
        print(f"{'holds' if item['holds'] else 'FAILS'}: {item['needed']}: {item['found']}")


def matches(subject: Subject, folder: Path, patterns: Sequence[str]) -> bool:
    """Whether a pattern fits the row's name, its family or KIND/NAME."""
    file = row_file(folder, subject)
    name = json.loads(file.read_text()).get("name", "") if file.exists() else subject.member or ""
    names = (subject.key, subject.family, name)
    return any(fnmatch.fnmatchcase(candidate, pattern) for candidate in names for pattern in patterns)


if __name__ == "__main__":
    main()
