"""Every metric that a run allows and whose network comes with its weights, measured once.

    python scripts/measure_all.py mnist-vae mnist-dcgan mnist-ddpm sprites-vae

`scripts/measure.py` measures the same few for every recipe; this shows that the others work, on one
run of each family: ``docs/results/metrics/NAME.json``.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from measure import DOCS, allowed, scores

from hfgen import recipe as recipes
from hfgen.build import pipeline_class
from hfgen.data import load_source
from hfgen.environment import commit
from hfgen.evaluation import evaluate
from hfgen.evaluation.table import METRICS
from hfgen.hub.load import load
from hfgen.samples import sample_call

EVALUATIONS = 16_000  # of a network for one bound: 16 images at 1000 steps


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("names", nargs="+", help="recipes with a finished run in runs/")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--num-images", type=int, default=1000)
    parser.add_argument("--reference-images", type=int, default=10_000)
    options = parser.parse_args()
    for name in options.names:
        measure(options.runs / name, name, options.num_images, options.reference_images)


def measure(run: Path, name: str, num_images: int, reference_images: int) -> None:
    """One run."""
    recipe = recipes.decode(recipes.read(run / "recipe.yaml"), lambda key: str(run / "recipe.yaml"))
    train, validation = (load_source(recipe.data, split=s) for s in ("train", "validation"))
    pipeline = load(run)
    results = evaluate(
        pipeline,
        data=train,
        heldout=validation,
        metrics=applicable(pipeline, validation),
        num_images=num_images,
        reference_images=min(reference_images, len(train)),
        evaluations=EVALUATIONS,
        call=sample_call(pipeline_class(recipe.pipeline), recipe),
        ema=bool(recipe.ema.half_lives),
    )
    written = {
        "recipe": name,
        "recipe_hash": recipes.digest(recipe),
        "family": recipe.family,
        "data": recipe.data.path,
        "measured_at_commit": commit(),
        "scores": scores(results),
    }
    path = DOCS / "results" / "metrics" / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(written, indent=1) + "\n")
    print(results.table())


def applicable(pipeline, validation) -> list[str]:
    """Metrics without a fixed network, and those of the model that it and its data allow."""
    vae = pipeline.components.get("vae") is not None
    samples = [
        name
        for name, metric in METRICS.items()
        if metric.backbone is None
        and (vae or not metric.reconstructions)
        and not metric.labelled  # by ``measure.py``, of the models that it is about
    ]
    return samples + allowed(pipeline, validation)


if __name__ == "__main__":
    main()
