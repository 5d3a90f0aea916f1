"""Figures of a comparison, as PNG bytes; drawn without a display."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from hfgen.evaluation.results import Results, Score

COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#999999", "#000000")
ARROWS = {"lower": "lower is better", "higher": "higher is better", "none": ""}
Curve = Sequence[tuple[float, float]]


def colour(index: int) -> str:
    """The colour of run ``index`` in every figure."""
    return COLOURS[index % len(COLOURS)]


def bars(results: Mapping[str, Results]) -> bytes | None:
    """One small bar chart per score that at least one run has, with standard errors."""
    names = list(dict.fromkeys(s.name for r in results.values() for s in r.scores))
    if not names:
        return None
    columns = min(4, len(names))
    figure, axes = _panels(len(names), columns, height=0.5 + 0.3 * len(results))
    for axis, name in zip(axes, names, strict=False):
        _bar(axis, name, {run: _find(r, name) for run, r in results.items()})
    return _png(figure)


def precision_recall_plane(results: Mapping[str, Results]) -> bytes | None:
    """Runs in the plane of recall and precision; None where no run has both."""
    points = {
        run: (recall.value, precision.value)
        for run, r in results.items()
        if (recall := _find(r, "recall")) and (precision := _find(r, "precision"))
    }
    if not points:
        return None
    figure, (axis,) = _panels(1, 1, width=4.2, height=4.0)
    for index, run in enumerate(results):
        if run in points:
            axis.scatter(*points[run], s=60, color=colour(index), label=run, zorder=3)
    axis.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xlabel="recall", ylabel="precision")
    axis.legend(fontsize=7)
    return _png(figure)


def training_curves(curves: Mapping[str, Mapping[str, Curve]]) -> bytes | None:
    """One panel per run: each logged term over images seen; None where no run was logged."""
    logged = {run: terms for run, terms in curves.items() if terms}
    if not logged:
        return None
    figure, axes = _panels(len(logged), min(3, len(logged)), width=3.6, height=2.6)
    for axis, (run, terms) in zip(axes, logged.items(), strict=False):
        for index, (term, points) in enumerate(terms.items()):
            axis.plot(*zip(*points, strict=True), label=term, color=colour(index), linewidth=1)
        axis.set_title(run, fontsize=8)
        axis.set_xlabel("images seen", fontsize=7)
        axis.legend(fontsize=6)
    return _png(figure)


def _bar(axis: Axes, name: str, scores: Mapping[str, Score | None]) -> None:
    better = ""
    for position, score in enumerate(scores.values()):
        if score is None:
            continue
        better = ARROWS[score.better]
        axis.barh(position, score.value, xerr=score.standard_error, color=colour(position))
    axis.set_yticks(range(len(scores)), list(scores), fontsize=6)
    axis.invert_yaxis()
    axis.set_title(f"{name}\n{better}", fontsize=8)


def _panels(
    count: int, columns: int, *, width: float = 2.8, height: float = 2.0
) -> tuple[Figure, list[Axes]]:
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(rows, columns, squeeze=False)
    axes = list(grid.flat)
    for axis in axes:
        axis.tick_params(labelsize=6)
        axis.spines[["top", "right"]].set_visible(False)
    for axis in axes[count:]:
        axis.set_axis_off()
    return figure, axes


def _find(results: Results, name: str) -> Score | None:
    return next((score for score in results.scores if score.name == name), None)


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()
