"""Several evaluated runs side by side on one page that needs nothing else."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, select_autoescape

from hfgen.errors import HfgenError
from hfgen.evaluation.plots import bars, colour, precision_recall_plane, training_curves
from hfgen.evaluation.results import Results, write_atomically

NOT_TERMS = {"step", "images_seen", "epoch", "time", "seconds", "images_per_second"}


@dataclass(frozen=True)
class EvaluatedRun:
    """What the report reads of one run.

    Attributes:
        name: the run's folder.
        folder: where ``metrics.json``, ``samples.png`` and ``neighbours.png`` are.
        results: the numbers.
        curves: term -> (images seen, value), from the run's ``metrics.jsonl`` where it has one.
    """

    name: str
    folder: Path
    results: Results
    curves: dict[str, list[tuple[float, float]]]

    @classmethod
    def read(cls, path: str | Path) -> EvaluatedRun:
        """HfgenError when there is no evaluation."""
        root = Path(path)
        folder = root / "evaluation" if (root / "evaluation").is_dir() else root
        results = Results.load(folder / "metrics.json")
        name = root.parent.name if root.name == "evaluation" else root.name
        return cls(name, folder, results, _curves(root / "metrics.jsonl"))


def compare(runs: Sequence[str | Path], output: str | Path, *, title: str = "Comparison") -> Path:
    """Write ``report.html`` and its plots as PNG files into ``output``.

    The page has the table with error bars and protocols, bar plots, the precision-recall plane,
    samples drawn with the same seeds, nearest training images, training curves, throughput and
    parameters. All pictures are embedded.

    Args:
        runs: evaluated runs, or folders that hold a ``metrics.json``.
    Returns:
        The page's path.
    Raises:
        HfgenError: no runs, or one that has not been evaluated.
    """
    if not runs:
        raise HfgenError("compare: no runs given")
    found = [EvaluatedRun.read(run) for run in runs]
    names = _unique([run.name for run in found])
    results = {name: run.results for name, run in zip(names, found, strict=True)}
    curves = {name: run.curves for name, run in zip(names, found, strict=True)}
    plots = {
        "scores": bars(results),
        "precision_recall": precision_recall_plane(results),
        "training": training_curves(curves),
    }
    target = Path(output)
    page = _render(title, names, found, plots)
    write_atomically(target / "report.html", page)
    for name, png in plots.items():
        if png is not None:
            (target / f"{name}.png").write_bytes(png)
    return target / "report.html"


def _render(
    title: str, names: list[str], runs: list[EvaluatedRun], plots: dict[str, bytes | None]
) -> str:
    environment = Environment(
        loader=PackageLoader("hfgen.evaluation", "templates"),
        autoescape=select_autoescape(["html", "jinja"]),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    pictures = [
        {
            "name": name,
            "colour": colour(index),
            "samples": _picture(run.folder / "samples.png"),
            "neighbours": _picture(run.folder / "neighbours.png"),
        }
        for index, (name, run) in enumerate(zip(names, runs, strict=True))
    ]
    return environment.get_template("report.html.jinja").render(
        title=title,
        names=names,
        rows=_rows([run.results for run in runs]),
        protocols={k: v for run in runs for k, v in run.results.protocols.items()},
        warnings=[(n, w) for n, r in zip(names, runs, strict=True) for w in r.results.warnings],
        mismatches=_mismatches(names, runs),
        plots={name: _embed(png) for name, png in plots.items() if png is not None},
        pictures=pictures,
    )


def _rows(results: Sequence[Results]) -> list[dict[str, Any]]:
    """One row per score, then speed and size: name, direction, settings, cell per run."""
    names = list(dict.fromkeys(s.name for r in results for s in r.scores))
    rows = []
    for name in names:
        scores = [next((s for s in r.scores if s.name == name), None) for r in results]
        first = next(s for s in scores if s is not None)
        cells = [
            {"text": "", "protocol": ""} if s is None else {"text": str(s), "protocol": s.protocol}
            for s in scores
        ]
        best = _best([None if s is None else s.value for s in scores], first.better)
        for index in best:
            cells[index]["best"] = "best"
        rows.append(
            {"name": name, "better": first.better, "settings": first.settings, "cells": cells}
        )
    for name, values in (
        ("images per second (draw and measure)", [r.images_per_second for r in results]),
        ("parameters", [r.num_parameters for r in results]),
    ):
        cells = [
            {"text": "" if v is None else f"{v:,.4g}" if v < 1e4 else f"{v:,.0f}"} for v in values
        ]
        rows.append({"name": name, "better": "none", "settings": "", "cells": cells})
    return rows


def _best(values: list[float | None], better: str) -> list[int]:
    known = [value for value in values if value is not None]
    if better == "none" or len(known) < 2:
        return []
    target = min(known) if better == "lower" else max(known)
    return [index for index, value in enumerate(values) if value == target]


def _mismatches(names: list[str], runs: list[EvaluatedRun]) -> list[str]:
    """Reasons why numbers of one row may not be compared."""
    found = []
    for what in ("backbone", "reference", "quantisation", "ddof"):
        seen: dict[str, list[str]] = {}
        for name, run in zip(names, runs, strict=True):
            values = {json.dumps(p[what], sort_keys=True) for p in run.results.protocols.values()}
            seen.setdefault(" ".join(sorted(values)), []).append(name)
        if len(seen) > 1:
            groups = " | ".join(", ".join(group) for group in seen.values())
            found.append(f"{what} differs between {groups}")
    counts: dict[int, list[str]] = {}
    for name, run in zip(names, runs, strict=True):
        for protocol in run.results.protocols.values():
            counts.setdefault(protocol["samples"]["count"], []).append(name)
    if len(counts) > 1:
        groups = "; ".join(f"{n}: {', '.join(dict.fromkeys(g))}" for n, g in counts.items())
        found.append(f"number of samples differs ({groups})")
    return found


def _curves(path: Path) -> dict[str, list[tuple[float, float]]]:
    """Numbers of a ``metrics.jsonl`` over images seen; lines without that clock are left out."""
    if not path.is_file():
        return {}
    curves: dict[str, list[tuple[float, float]]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue  # the last line of a run that was killed may be cut off
        clock = entry.get("images_seen")
        for term, value in entry.items():
            if clock is not None and term not in NOT_TERMS and isinstance(value, int | float):
                curves.setdefault(term, []).append((clock, value))
    return curves


def _unique(names: list[str]) -> list[str]:
    return [
        name if names.count(name) == 1 else f"{name} ({index + 1})"
        for index, name in enumerate(names)
    ]


def _picture(path: Path) -> str:
    return _embed(path.read_bytes()) if path.is_file() else ""


def _embed(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()
