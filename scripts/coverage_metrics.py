"""Rows of ``docs/coverage.md`` for metrics, likelihood bounds and backbones, from their tables.

A cell is what was found: a measured score in ``docs/results``, a test that names the function. For
a network whose weights no package brings, the row says where they are and which test covers it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from hfgen import recipe as recipes
from hfgen.evaluation import backbones
from hfgen.evaluation.metrics.lpips import WEIGHTS as LPIPS_WEIGHTS
from hfgen.evaluation.model_metrics import MODEL_METRICS
from hfgen.evaluation.table import METRICS

DOCS = Path(__file__).parents[1] / "docs"
Cells = tuple[str, str, str, str, str, str]
"""kind, name, recipe, test, picture, measured."""
Found = tuple[str, Mapping[str, Any]]
"""A recipe and one of its scores."""


def rows(results: Mapping[str, Any], tests: Mapping[str, str]) -> Iterator[Cells]:
    """One per metric, score of a model metric, and backbone.

    Args:
        results: recipe -> measured file; with ``all_metrics``, also those of `--metrics all`.
        tests: path -> text of every test file.
    """
    for name, metric in METRICS.items():
        found = [find(results, score) for score in metric.scores(name)]
        test = test_of([metric.function.__name__, _plain(metric.function)], tests)
        kind = "Metrics of samples"
        if metric.backbone is None or packaged(metric.backbone):
            yield _row(kind, name, found, test)
        else:
            cell = f"{test}, {_network_test(metric.backbone, tests)}"
            yield (kind, name, "", cell, "", _awaited(metric.backbone))
    for metric in MODEL_METRICS.values():
        kind = "Likelihood, reconstruction, representation"
        for score, function in metric.functions.items():
            test = test_of([function.__name__, score], tests)
            if function.__name__ == "AlexNetDistance":
                yield (kind, score, "", test_of(["load_lpips"], tests), "", LPIPS_WEIGHTS)
            else:
                yield _row(kind, score, [find(results, score)], test)
    for name in backbones.BACKBONES:
        test = _network_test(name, tests)
        if packaged(name):
            yield _row("Backbones", name, [find(results, "fd")], test)
        else:
            yield ("Backbones", name, "", test, "", _awaited(name))


def all_metrics(results: Mapping[str, Any]) -> dict[str, Any]:
    """``results``, each with the scores that `measure.py --metrics all` found for it added."""
    found = {name: dict(result) for name, result in results.items()}
    for path in sorted((DOCS / "results" / "metrics").glob("*.json")):
        extra = json.loads(path.read_text())
        name = extra["recipe"]
        known = name in recipes.bundled()
        if known and recipes.digest(recipes.load(name)) == extra["recipe_hash"]:
            result = found.setdefault(name, {**extra, "scores": []})
            result["scores"] = [*result["scores"], *extra["scores"]]
    return found


def find(results: Mapping[str, Any], name: str) -> Found | None:
    """The first recipe with a score of this name; a bound's score carries its unit."""
    for recipe, result in results.items():
        for score in result["scores"]:
            if score["name"] in (name, f"{name}_bits_per_dim", f"{name}_nats"):
                return recipe, score
    return None


def test_of(names: Sequence[str], tests: Mapping[str, str]) -> str:
    """The test file that names these most often; empty where none does."""
    pattern = re.compile("|".join(rf"\b{re.escape(name)}\b" for name in names))
    counts = {path: len(pattern.findall(text)) for path, text in tests.items()}
    best = max(counts, key=lambda path: counts[path], default="")
    return f"[{Path(best).stem}](../{best})" if best and counts[best] else ""


def backbone_class(name: str) -> type[backbones.Backbone]:
    module, cls = backbones.BACKBONES[name]
    return getattr(import_module(f"{backbones.__name__}.{module}"), cls)


def packaged(backbone: str) -> bool:
    """Whether a package brings the network's weights, so that its metrics can be measured."""
    return backbone_class(backbone).packaged


def _awaited(backbone: str) -> str:
    return f"not measured: `{backbone}` needs {backbone_class(backbone).weights_from}"


def _network_test(backbone: str, tests: Mapping[str, str]) -> str:
    """The evaluation's test of a network: of inception, parity with torch-fidelity's."""
    own = {path: text for path, text in tests.items() if "/evaluation/" in path}
    return test_of([backbone_class(backbone).__name__, backbone], own)


def _plain(function: Any) -> str:
    return function.__name__.removesuffix("_with_error")


def _row(kind: str, name: str, found: Sequence[Found | None], test: str) -> Cells:
    present = [pair for pair in found if pair is not None]
    if not present:
        return (kind, name, "", test, "", "")
    recipe = present[0][0]
    image = DOCS / "images" / f"{recipe}.png"
    picture = f"[picture](images/{recipe}.png)" if image.exists() else ""
    number = ", ".join(f"{score['name']} {_show(score)}" for _, score in present)
    return (kind, name, recipe, test, picture, number)


def _show(score: Mapping[str, Any]) -> str:
    error = score.get("standard_error")
    return f"{score['value']:.4g}" + (f" ± {error:.1g}" if error else "")
