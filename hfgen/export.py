"""A run's pipeline: put together, written to disk, and made anew from what a run holds."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hfgen import recipe as recipes
from hfgen.errors import HfgenError
from hfgen.recipe import Recipe


def assemble(recipe: Recipe, components: Mapping[str, Any]) -> Any:
    """The recipe's pipeline over trained ``components``, with standing statistics where asked
    for.
    """
    from hfgen.build import build_pipeline
    from hfgen.objectives.gan import GAN
    from hfgen.standing_statistics import set_standing_statistics

    if isinstance(recipe.objective, GAN) and recipe.objective.standing_statistics:
        set_standing_statistics(components["generator"], recipe.objective.standing_statistics)
    return build_pipeline(recipe, components)


def export(pipeline: Any, recipe: Recipe, folder: Path, words: tuple[str, ...] = ()) -> None:
    """Write the pipeline with its recipe beside it, aside first, so that a half-written one is
    never there.

    Adapters are added to the weights, and written by themselves into ``lora``.

    Args:
        words: of the captions that it was trained on; kept in ``words.txt``.
    """
    from hfgen.build_transformers import save_adapters
    from hfgen.samples import WORDS

    aside = folder.with_name(f".writing-{folder.name}")
    shutil.rmtree(aside, ignore_errors=True)
    save_adapters(pipeline, recipe.model, aside).save_pretrained(aside)
    if words:
        (aside / WORDS).write_text("\n".join(words) + "\n", encoding="utf-8")
    (aside / "recipe.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(aside, folder)


def export_checkpoint(folder: str, checkpoint: str = "latest", ema: int = 0) -> Path:
    """Write a run's ``pipeline`` anew from one of its checkpoints, with the code that is installed
    now.

    Args:
        folder: the run's folder.
        checkpoint: "latest", "best" (by ``training.best_metric``) or a checkpoint's folder.
        ema: which of the averages to take, by its place in ``ema.half_lives``.
    Raises:
        HfgenError: not a run, no such checkpoint, no such average.
    """
    from hfgen.build import build_components, exported_roles
    from hfgen.finish import finish
    from hfgen.latents import training_source
    from hfgen.training.checkpoints import Checkpoints, load_module

    recipe = _recipe_of(folder)
    if recipe.ema.half_lives and not 0 <= ema < len(recipe.ema.half_lives):
        raise HfgenError(
            f"--ema: {ema} is none of the {len(recipe.ema.half_lives)} averages of {folder}, "
            f"counted from 0"
        )
    checkpoints = Checkpoints(Path(folder) / "checkpoints", None)
    best = checkpoints.best()
    if checkpoint == "best" and best is None:
        raise HfgenError(
            f"--checkpoint best: {folder} was not evaluated while it trained; set "
            f"training.evaluate_every"
        )
    source = (
        checkpoints.folder / best["checkpoint"]
        if checkpoint == "best" and best
        else checkpoints.resolve(checkpoint)
    )
    images = training_source(recipe)
    components = build_components(recipe, images.spec, images.parts)
    for role in {role for phase in recipe.objective.phases for role in phase.trains}:
        averaged = recipe.ema.half_lives and role in exported_roles(recipe)
        load_module(
            source / f"{f'ema{ema}-' if averaged else ''}{role}.safetensors", components[role]
        )
    target = Path(folder) / "pipeline"
    pipeline = assemble(recipe, components)
    finish(pipeline, recipe.objective, images)
    export(pipeline, recipe, target, images.words)
    return target


def export_ema(folder: str, sigma_rel: float, output: str | None = None) -> Path:
    """A pipeline of a run with another average of its weights, from the stored power-function
    averages (Karras et al. 2024, section 3.2).

    Args:
        folder: the run's folder; it was trained with ``ema.sigma_rels``.
        sigma_rel: relative width of the average, in (0, 0.2886].
        output: where the pipeline goes; by default ``pipeline-ema-<sigma_rel>`` in the run.
    Raises:
        HfgenError: not a run, no averages, an impossible width.
    """
    from hfgen.build import build_components, exported_roles
    from hfgen.latents import training_source
    from hfgen.training.ema_snapshots import reconstruct_width

    recipe = _recipe_of(folder)
    trained = {role for phase in recipe.objective.phases for role in phase.trains}
    roles = [role for role in exported_roles(recipe) if role in trained]
    weights = {role: reconstruct_width(Path(folder) / "ema", role, sigma_rel) for role in roles}
    components = build_components(recipe, training_source(recipe).spec)
    for role in roles:
        components[role].load_state_dict(weights[role])
    target = Path(output or Path(folder) / f"pipeline-ema-{sigma_rel:g}")
    export(assemble(recipe, components), recipe, target)
    return target


def _recipe_of(folder: str) -> Recipe:
    file = Path(folder) / "recipe.yaml"
    if not file.is_file():
        raise HfgenError(f"{folder}: not a run (no recipe.yaml)")
    return recipes.decode(recipes.read(file), lambda key: str(file))


def fit_prior_of_run(folder: str, kind: str, **options: Any) -> Path:
    """Fit a prior to the latents of a run's autoencoder and export the pipeline with it; its
    folder.
    """
    from hfgen.data import load_source
    from hfgen.fit_prior import fit_prior
    from hfgen.hub.load import load

    recipe = _recipe_of(folder)
    pipeline = load(folder)
    if "prior" not in pipeline.components:
        raise HfgenError(f"fit-prior: {type(pipeline).__name__} takes no prior; valid: VAEPipeline")
    fit_prior(pipeline, load_source(recipe.data, split="train"), kind, **options)
    export(pipeline, recipe, Path(folder) / "pipeline")
    return Path(folder) / "pipeline"
