"""Measure exported runs by one protocol, and write what the tables of the documentation are made
of.

    python scripts/measure.py mnist-vae mnist-dcgan        # after `hfgen train` of each

For each run: ``docs/results/NAME.json`` (scores with error bars and protocol, baselines, recipe
hash, commit, images seen, seconds, hardware) and ``docs/images/NAME.png``, and in the run's own
folder what `hfgen compare` reads. Nothing in those files is typed by hand.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from hfgen import recipe as recipes
from hfgen.build import build_components, build_pipeline, pipeline_class
from hfgen.data import load_source
from hfgen.environment import commit
from hfgen.errors import HfgenError
from hfgen.evaluation import evaluate
from hfgen.evaluation.baselines import PixelGaussian, RepeatedImages
from hfgen.evaluation.images import PipelineImages
from hfgen.evaluation.likelihood import has_likelihood, log_likelihood
from hfgen.evaluation.likelihood_diffusion import denoiser
from hfgen.evaluation.model_metrics import MODEL_METRICS, ModelEvidence
from hfgen.evaluation.text_metrics import MAX_IMAGES, is_clip
from hfgen.hub.load import load
from hfgen.latents import training_source
from hfgen.samples import (
    draws_images,
    grid,
    prompt_sheet,
    sample_call,
    sample_prompts,
    save_samples,
    takes_prompt,
    validation_images,
)

DOCS = Path(__file__).parents[1] / "docs"
NUM_IMAGES = 1000
REFERENCE_IMAGES = 10_000  # of larger training sets
PAPER_SAMPLES = 500
CLIP = "runs/emoji-clip"
"""Dual encoder of CLIP scores, where it is there."""
EVALUATIONS = 8_000
"""Of a denoiser for its likelihood: 62 images, half a minute to two on one core."""
ANNEALED_EVALUATIONS = 3_072_000
"""Of a decoder and its gradient: 256 images, two minutes on one core."""
UNTRAINED_STEPS = 10  # noise needs no more
METRICS = ("fd", "kd", "precision_recall", "density_coverage", "vendi")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("names", nargs="+", help="recipes with a finished run in runs/")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    options = parser.parse_args()
    for name in options.names:
        measure(options.runs / name, name)


def measure(run: Path, name: str) -> None:
    """One run: scores of its exported pipeline, of its untrained network and of the data's
    baselines.
    """
    recipe = recipes.decode(recipes.read(run / "recipe.yaml"), lambda key: str(run / "recipe.yaml"))
    train = load_source(recipe.data, split="train")
    validation = load_source(recipe.data, split="validation")
    steps = recipe.logging.num_inference_steps
    call = sample_call(pipeline_class(recipe.pipeline), recipe)
    quick = {**call, **{k: min(steps, UNTRAINED_STEPS) for k in call if k == "num_inference_steps"}}
    settings: dict[str, Any] = {"data": train, "num_images": NUM_IMAGES, "progress": False}
    if len(train) > REFERENCE_IMAGES:
        settings["reference_images"] = REFERENCE_IMAGES
    pipeline = load(run)
    drawing = sample_metrics(pipeline, train) if draws_images(pipeline) else ()
    settings["weights"] = {"clip": CLIP} if takes_prompt(pipeline) and Path(CLIP).is_dir() else {}
    text = text_metrics(pipeline, validation, settings["weights"])
    classes = validation.spec.num_classes
    denoising = denoiser_metrics(pipeline, classes)
    results = evaluate(
        pipeline,
        heldout=validation,
        **({"evaluations": EVALUATIONS} if denoising else {}),
        metrics=(
            *drawing,
            *text,
            *code_metrics(pipeline, validation),
            *autoencoder_metrics(pipeline, validation),
            *denoising,
        ),
        output=run / "evaluation",
        call=call,
        ema=bool(recipe.ema.half_lives),
        **settings,
    )
    paper = recipes.load(name).paper
    if paper is not None and paper.annealed:
        again = {"evaluations": ANNEALED_EVALUATIONS, "output": run / "evaluation", "add": True}
        results = evaluate(pipeline, heldout=validation, metrics=("ais",), **again, **settings)
    torch.manual_seed(recipe.training.seed)
    source = training_source(recipe)
    untrained = build_pipeline(recipe, build_components(recipe, source.spec, source.parts))
    written = {
        "recipe": name,
        "recipe_hash": recipes.digest(recipe),
        "family": recipe.family,
        "data": recipe.data.path,
        **trained(run),
        "measured_at_commit": commit(),
        "scores": scores(results),
        **as_published(paper, pipeline, validation),
        "baselines": {
            "untrained network": scores(
                evaluate(
                    untrained, heldout=validation, metrics=drawing or text, call=quick, **settings
                )
            ),
            **(data_baselines(recipe, train, settings) if drawing else {}),
        },
    }
    (DOCS / "results").mkdir(parents=True, exist_ok=True)
    (DOCS / "results" / f"{name}.json").write_text(json.dumps(written, indent=1) + "\n")
    if drawing:
        prompts = {"prompt": sample_prompts(recipe, train)} if takes_prompt(pipeline) else {}
        picture = DOCS / "images" / f"{name}.png"
        save_samples(pipeline, picture, 64, seed=0, **prompts, **call)
        if type(pipeline).__name__ == "VAEPipeline":
            add_reconstructions(pipeline, recipe, validation, picture)
        if has_codes(pipeline):
            by_code(pipeline).save(picture)
    elif is_clip(pipeline):
        nearest(pipeline, validation).save(DOCS / "images" / f"{name}.png")
    print(f"{name}: " + "  ".join(f"{s['name']} {s['value']:.4g}" for s in written["scores"]))


def add_reconstructions(pipeline: Any, recipe: Any, validation: Any, picture: Path) -> None:
    """Below the samples: two rows of eight test images, each above its reconstructions."""
    images = validation_images(recipe, 16)
    given = {"class_labels": validation.labels(range(16))} if pipeline.num_classes else {}
    again = pipeline.reconstruct(images, **given).images
    below = grid([*images[:8], *again[:8], *images[8:], *again[8:]], columns=8)
    with Image.open(picture) as above:
        sheet = Image.new(above.mode, (above.width, above.height + below.height), "white")
        sheet.paste(above, (0, 0))
    sheet.paste(below, (0, sheet.height - below.height))
    sheet.save(picture)


def has_codes(pipeline: Any) -> bool:
    """Whether a categorical code is among the latents (InfoGAN)."""
    generator = pipeline.components.get("generator")
    return bool(generator is not None and generator.config.get("categorical_codes"))


def by_code(pipeline: Any) -> Image.Image:
    """One column for each value of the code; the other latents of a row are the same."""
    count = pipeline.generator.config["categorical_codes"]
    draws = torch.randn(8, *pipeline.latent_shape, generator=torch.Generator().manual_seed(0))
    z = draws.repeat_interleave(count, 0)
    z[:, :count] = torch.eye(count).repeat(len(draws), 1)
    return grid(pipeline(latents=z).images, columns=count)


def nearest(clip: Any, validation: Any) -> Image.Image:
    """For each of eight held-out captions the eight held-out images that are nearest to it."""
    rows = range(min(len(validation), MAX_IMAGES))
    pictures = [Image.fromarray(x.permute(1, 2, 0).numpy()) for x in validation.uint8(rows)]
    prompts = validation.captions(rows)[:: len(rows) // 8 + 1]
    near = clip.embed_texts(prompts) @ clip.embed_images(pictures).T
    best = near.argsort(dim=1, descending=True)[:, :8].flatten()
    return prompt_sheet([pictures[i] for i in best], prompts)


def text_metrics(pipeline: Any, validation: Any, weights: dict[str, str]) -> tuple[str, ...]:
    """What a pipeline of texts and its captions allow: scores by a dual encoder, retrieval, the
    likelihood of codes.
    """
    evidence = ModelEvidence(pipeline, validation, weights)
    names = ("text", "retrieval", "codes") if pipeline.components.get("tokenizer") else ("codes",)
    return tuple(name for name in names if MODEL_METRICS[name].applies(evidence))


def as_published(paper: recipes.Paper | None, pipeline: Any, validation: Any) -> dict[str, Any]:
    """-ln p(x) by the bound of the paper that the recipe follows, on 1,000 test images."""
    if paper is None:
        return {}
    samples = min(paper.num_samples, PAPER_SAMPLES)
    result = log_likelihood(
        pipeline,
        validation,
        bound=paper.bound,
        k=samples,
        max_images=min(NUM_IMAGES, len(validation)),
    )
    error = result.standard_error
    measured = {"value": -result.nats, "standard_error": error, "images": result.count}
    return {"paper": {"bound": f"{paper.bound}-{samples}", **measured}}


def autoencoder_metrics(pipeline: Any, validation: Any) -> tuple[str, ...]:
    """What an autoencoder and its data allow: likelihood, reconstruction, latents; features of
    reconstructions where latents are maps (a tokenizer for other models).
    """
    if type(pipeline).__name__ != "VAEPipeline":
        return ()
    names = [name for name in allowed(pipeline, validation) if not MODEL_METRICS[name].on_request]
    if len(pipeline.latent_shape) == 1:
        return tuple(names)
    # hundreds of decoded maps for each image, for a bound that nobody asks of a tokenizer
    return (*(name for name in names if name != "likelihood"), "rfd")


def allowed(pipeline: Any, validation: Any) -> list[str]:
    """Metrics of the model that a pipeline and its held-out images have what it takes for."""
    evidence = ModelEvidence(pipeline, validation, {})
    return [name for name, metric in MODEL_METRICS.items() if metric.applies(evidence)]


def sample_metrics(pipeline: Any, source: Any) -> tuple[str, ...]:
    """The same few for all; and, where it draws images of a given class, whether they are of it."""
    images = PipelineImages(pipeline, NUM_IMAGES, conditions=source)
    return METRICS if images.labels() is None else (*METRICS, "class_accuracy")


def code_metrics(pipeline: Any, validation: Any) -> tuple[str, ...]:
    """What the code of an InfoGAN says."""
    evidence = ModelEvidence(pipeline, validation, {})
    return ("latent_code",) if MODEL_METRICS["latent_code"].applies(evidence) else ()


def denoiser_metrics(pipeline: Any, classes: int | None) -> tuple[str, ...]:
    """What a denoiser of pixels allows: its features, and likelihood where it has a density."""
    if "unet" not in pipeline.components:
        return ()
    try:
        denoiser(pipeline, None)
    except HfgenError:
        return ()
    dense = has_likelihood(pipeline, "pf_ode", classes)
    return ("likelihood", "representation") if dense else ("representation",)


def trained(run: Path) -> dict[str, Any]:
    """What the run's own files say of its training."""
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    environment = json.loads((run / "environment.json").read_text())
    return {
        "images_seen": last["images_seen"],
        "seconds": round(last["seconds"]),
        "images_per_second": round(last["images_seen"] / last["seconds"]),
        "hardware": environment["hardware"],
        "threads": environment["threads"],
        "trained_at_commit": environment["commit"],
    }


def data_baselines(recipe: Any, train: Any, settings: dict[str, Any]) -> dict[str, Any]:
    """Scores of images that need no model; measured once for a data set."""
    cache = DOCS / "results" / "baselines" / f"{Path(recipe.data.path).name}.json"
    if cache.exists():
        return json.loads(cache.read_text())
    found = {
        "per-pixel Gaussian": PixelGaussian(train, NUM_IMAGES),
        "10 training images repeated": RepeatedImages(train, NUM_IMAGES, distinct=10),
    }
    measured = {
        what: scores(evaluate(images=images, metrics=METRICS, **settings))
        for what, images in found.items()
    }
    cache.parent.mkdir(parents=True, exist_ok=True)
    cache.write_text(json.dumps(measured, indent=1) + "\n")
    return measured


def scores(results: Any) -> list[dict[str, Any]]:
    """Name, value, error and protocol of each score."""
    return [
        {
            "name": score.name,
            "value": score.value,
            "standard_error": score.standard_error,
            "settings": score.settings,
            "protocol": score.protocol,
        }
        for score in results.scores
    ]


if __name__ == "__main__":
    main()
