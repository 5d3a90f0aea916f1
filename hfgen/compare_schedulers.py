"""Quality against network evaluations for every scheduler that samples a model."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hfgen import recipe as recipes
from hfgen.data import load_source
from hfgen.errors import HfgenError
from hfgen.evaluation import evaluate
from hfgen.hub.load import load
from hfgen.schedulers import fitting, with_scheduler

STEPS = (5, 10, 20, 40)


@dataclass(frozen=True)
class SchedulerScore:
    """One scheduler at one number of steps.

    Attributes:
        steps: as asked for; ``nfe`` is what the network was called for each image, guidance
            included.
        fd, standard_error: Frechet distance of the samples to the training images.
        seconds: for all samples, metrics left out.
    """

    scheduler: str
    steps: int
    nfe: float
    fd: float
    standard_error: float | None
    seconds: float


def compare_schedulers(
    model: str,
    output: str,
    *,
    num_images: int = 200,
    steps: Sequence[int] = STEPS,
    seed: int = 0,
    **call: Any,
) -> list[SchedulerScore]:
    """Measure every scheduler that fits a run; write ``output`` (a plot), with a ``.md`` and a
    ``.json`` beside it.

    Args:
        model: a run's or a pipeline's folder, or a Hub id, with its recipe.
        num_images: samples for each entry; the same seeds for all.
        call: further arguments of the pipeline.
    Raises:
        HfgenError: a model without a scheduler or without a recipe.
    """
    path = recipes.find(model)
    recipe = recipes.decode(recipes.read(path), lambda key: str(path))
    data = load_source(recipe.data, split="train")
    pipeline = load(model)
    if getattr(pipeline, "scheduler", None) is None:
        raise HfgenError(f"--compare-schedulers: {type(pipeline).__name__} has no scheduler")
    scores = [
        _measure(with_scheduler(pipeline, scheduler), name, count, data, num_images, seed, call)
        for name, scheduler in fitting(pipeline.scheduler).items()
        for count in steps
    ]
    target = Path(output)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.with_suffix(".md").write_text(table(scores), encoding="utf-8")
    rows = [asdict(score) for score in scores]
    target.with_suffix(".json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    _plot(scores, target)
    return scores


def _measure(
    pipeline: Any, name: str, steps: int, data: Any, num_images: int, seed: int, call: dict
) -> SchedulerScore:
    pipeline.set_progress_bar_config(disable=True)
    rows = 0

    def count(module: Any, arguments: tuple, keywords: dict) -> None:
        nonlocal rows
        rows += len(arguments[0] if arguments else keywords["sample"])

    handle = pipeline.unet.register_forward_pre_hook(count, with_kwargs=True)
    began = time.perf_counter()
    try:
        results = evaluate(
            pipeline,
            data=data,
            metrics=("fd",),
            num_images=num_images,
            seed=seed,
            progress=False,
            call={"num_inference_steps": steps, **call},
        )
    finally:
        handle.remove()
    score = results.scores[0]
    return SchedulerScore(
        scheduler=name,
        steps=steps,
        nfe=rows / num_images,
        fd=float(score.value),
        standard_error=score.standard_error,
        seconds=round(time.perf_counter() - began, 2),
    )


def table(scores: Sequence[SchedulerScore]) -> str:
    """Markdown, best first."""
    lines = ["| scheduler | steps | NFE | FD | seconds |", "|---|---|---|---|---|"]
    for s in sorted(scores, key=lambda score: score.fd):
        error = "" if s.standard_error is None else f" ± {s.standard_error:.2g}"
        lines.append(f"| {s.scheduler} | {s.steps} | {s.nfe:g} | {s.fd:.2f}{error} | {s.seconds} |")
    return "\n".join(lines) + "\n"


def _plot(scores: Sequence[SchedulerScore], path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.add_subplot()
    for name in dict.fromkeys(score.scheduler for score in scores):
        mine = sorted((s.nfe, s.fd) for s in scores if s.scheduler == name)
        axis.plot(*zip(*mine, strict=True), marker="o", label=name.removesuffix("Scheduler"))
    axis.set(xscale="log", yscale="log", xlabel="network evaluations per image", ylabel="FD")
    axis.legend(fontsize=7)
    figure.savefig(path, dpi=120)
