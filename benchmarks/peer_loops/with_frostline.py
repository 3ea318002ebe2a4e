"""`frostline fit`."""

# What the run would import by and by is imported before the clock runs, as it is for the others.
import openvino  # noqa: F401
import timm  # noqa: F401

from frostline import fit, load_task
from frostline.events import Event
from frostline.search import USUAL_LIMIT
from peer_loops import Job


def run(job: Job, *, budget: float = USUAL_LIMIT) -> dict[str, str]:
    """Read and fit as the command does; the network is trained when the test part is looked at."""

    def hear(event: Event) -> None:
        if event.phase == "test":
            job.mark("answered" if event.done else "trained")

    out = job.scratch / "run"
    task = load_task(job.data, image_size=job.image_size, seed=job.seed, folder=out / "pictures", listener=hear)
    result = fit(task, budget=budget, seed=job.seed, out=out, listener=hear)
    job.mark("reported")
    job.details = {
        "depth": result.depth,
        "reason": result.choice.reason,
        "full_finetunes": {"seconds": result.cost.share_seconds, "flops": result.cost.share_flops},
        "seconds_by_phase": dict(result.cost.by_phase),
    }
    told = zip(task.test.names, result.test.predictions, strict=True)
    return {name.removeprefix("test/"): task.classes[label] for name, label in told}
