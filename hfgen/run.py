"""One run, from a recipe to an exported pipeline."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from hfgen import recipe as recipes
from hfgen.config import nest, read_yaml
from hfgen.environment import describe
from hfgen.errors import HfgenError
from hfgen.launch import check_environment, refuse_sharding
from hfgen.recipe import Recipe


@dataclass(frozen=True)
class Run:
    """A finished (or interrupted) run on disk.

    Attributes:
        output_dir: the run's folder.
        signal: number of the signal that stopped it early, 0 when it finished;
            ``resume_from_checkpoint="latest"`` goes on.
    """

    output_dir: Path
    signal: int = 0

    @property
    def finished(self) -> bool:
        """Whether training reached its end."""
        return self.signal == 0

    @cached_property
    def pipeline(self) -> Any:
        """The exported pipeline, loaded from the folder."""
        from hfgen.hub.load import load

        return load(str(self.output_dir))


def train(
    name: str, *, overwrite: bool = False, trust_remote_code: bool = False, **overrides: Any
) -> Run:
    """Train a recipe: ``hfgen.train("mnist-vae", **{"training.max_steps": 500})``.

    Args:
        name: a bundled recipe, a YAML file, a run's folder, or a Hub id.
        overwrite: replace a run that is already in the output folder.
        trust_remote_code: let code that a pretrained model brings run without asking.
        **overrides: dotted keys, as on the command line.
    Raises:
        HfgenError: one line that says what is wrong and what would be valid.
    """
    over = nest(overrides)
    recipe = recipes.load(continued(name, over), over)
    return train_recipe(recipe, overwrite=overwrite, trust_remote_code=trust_remote_code)


def continued(name: str, over: Mapping[str, Any]) -> str:
    """``name``; or, where it is a Hub id whose run is to be resumed, the folder that it now is.

    Raises:
        HfgenError: as ``hfgen.hub.fetch.fetch_run``.
    """
    if over.get("training", {}).get("resume_from_checkpoint") != "latest":
        return name
    if not recipes.is_hub_id(name):
        return name
    from hfgen.evaluation.world import world
    from hfgen.hub.fetch import fetch_run

    folder = Path(over.get("output_dir") or Path("runs") / name.split("/")[1])
    state = world()
    with state.main_process_first():
        if state.is_main_process:
            fetch_run(name, folder)
    return str(folder)


def train_recipe(
    recipe: Recipe, *, overwrite: bool = False, trust_remote_code: bool = False
) -> Run:
    """Train a decoded recipe in this process (each process of a launch calls it); options as of
    ``train``.
    """
    _check_processes()
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    from hfgen.training.log import check_trackers

    check_trackers(recipe.logging)
    accelerator = Accelerator(
        mixed_precision=recipe.training.mixed_precision,
        log_with=recipe.logging.trackers or None,  # type: ignore[arg-type]
        project_dir=str(recipe.folder),
    )
    try:
        _check_accelerator(accelerator)
        _check_folder(recipe, overwrite)
        return _train(recipe, accelerator, trust_remote_code)
    finally:
        accelerator.free_memory()
        AcceleratorState._reset_state()  # the next run of this process may use another precision


def _train(recipe: Recipe, accelerator: Any, trust_remote_code: bool) -> Run:
    import torch

    from hfgen.build import build_components, exported_roles
    from hfgen.data import BatchStream
    from hfgen.finish import finish
    from hfgen.hub.admit import admit_sources
    from hfgen.hub.background import RunPusher
    from hfgen.latents import training_source
    from hfgen.samples import (
        draws_images,
        sample_call,
        sample_prompts,
        save_samples,
        takes_prompt,
    )
    from hfgen.training.checkpoints import Checkpoints
    from hfgen.training.log import Log
    from hfgen.training.trainer import Hooks, Trainer

    config = recipe.training
    checkpoints = Checkpoints(recipe.folder / "checkpoints", config.checkpoints_total_limit)
    resume = (
        checkpoints.resolve(config.resume_from_checkpoint)
        if config.resume_from_checkpoint
        else None
    )
    if resume is not None:
        _check_same_recipe(recipe, resume)
    with accelerator.main_process_first():  # what has to be downloaded is, once
        admit_sources(recipe, trust_remote_code=trust_remote_code)
        source = training_source(recipe, accelerator.device)
        torch.manual_seed(config.seed)
        components = build_components(recipe, source.spec, source.parts)
    stream = BatchStream(
        source,
        config.total_batch_size,
        seed=config.seed,
        random_flip=recipe.data.random_flip,
        binarize=recipe.data.binarize,
    )

    def pipeline(models: Mapping[str, Any]) -> Any:
        return assemble(recipe, {**components, **models})

    def sample(models: Mapping[str, Any], images_seen: int) -> None:
        target = recipe.folder / "samples" / f"{images_seen:010d}.png"
        pipe = pipeline(models)
        if not draws_images(pipe):
            return
        steps = sample_call(pipe, recipe)
        if takes_prompt(pipe):
            steps["prompt"] = sample_prompts(recipe, source)
        save_samples(pipe, target, recipe.logging.num_sample_images, seed=config.seed, **steps)

    log = Log(accelerator, recipe.logging, recipe.folder)
    pusher = RunPusher(recipe.folder, recipe.hub) if recipe.hub.push_to_hub else None

    def saved(models: Mapping[str, Any], checkpoint: Path) -> None:
        if pusher is not None:
            made = pipeline(models)
            finish(made, recipe.objective, source)
            pusher.saved(checkpoint, lambda folder: export(made, recipe, folder, source.words))

    trainer = Trainer(
        accelerator=accelerator,
        objective=recipe.objective,
        models=components,
        exported=exported_roles(recipe),
        stream=stream,
        training=config,
        optimizer=recipe.optimizer,
        ema=recipe.ema,
        log=log,
        checkpoints=checkpoints,
        recipe=recipe.to_yaml(),
        hooks=Hooks(sample=sample, evaluate=_evaluator(recipe, pipeline), saved=saved),
    )
    # Only now that everything fits: a mistake leaves no half-made run, and no old one is lost.
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        _open_folder(recipe, accelerator.num_processes)
    accelerator.wait_for_everyone()
    log.start(recipe.to_dict())
    if resume is not None:
        trainer.restore(resume)
    stopped_by = trainer.run()
    if accelerator.is_main_process:
        trained = pipeline(trainer.averaged)
        finish(trained, recipe.objective, source)
        export(trained, recipe, recipe.folder / "pipeline", source.words)
        _say_end(recipe, stopped_by == 0, checkpoints.latest())
        if pusher is not None and stopped_by == 0:
            print(f"pushed:   {pusher.finish().url}")
    accelerator.wait_for_everyone()
    log.close()
    return Run(recipe.folder, stopped_by)


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


def _evaluator(recipe: Recipe, pipeline: Callable[..., Any]) -> Callable[..., dict[str, float]]:
    """Measures the averaged models by a small protocol; the backbone is loaded when it is first
    needed.
    """

    @cache
    def protocol() -> Any:
        from hfgen.build import pipeline_class
        from hfgen.data import load_source
        from hfgen.evaluation import small_protocol
        from hfgen.samples import accepted

        steps = recipe.logging.num_inference_steps
        call = accepted(pipeline_class(recipe.pipeline), num_inference_steps=steps)
        source = load_source(recipe.data, split="validation")
        return small_protocol(source, num_images=recipe.training.evaluate_num_images, call=call)

    return lambda models: protocol()(pipeline(models))


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


def _say_end(recipe: Recipe, finished: bool, latest: Path | None) -> None:
    grids = sorted((recipe.folder / "samples").glob("*.png"))
    if not finished:
        print(
            f"stopped; saved {latest}. Go on with: hfgen train {recipe.folder} --resume latest",
            file=sys.stderr,
        )
    if grids:
        print(f"samples:  {grids[-1]}")
    print(f"pipeline: {recipe.folder / 'pipeline'}")


def _check_processes() -> None:
    check_environment()
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK"):
        value = os.environ.get(name, "0")
        if not value.isdigit():
            raise HfgenError(
                f"environment: {name} is {value!r}, not a number; unset it or launch with "
                f"--num-processes"
            )


def _check_accelerator(accelerator: Any) -> None:
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world != accelerator.num_processes:
        raise HfgenError(
            f"environment: WORLD_SIZE is {world} but Accelerate runs "
            f"{accelerator.num_processes} process(es); "
            "launch with hfgen train --num-processes, or unset WORLD_SIZE"
        )
    refuse_sharding(accelerator.distributed_type.value, "accelerate config")


def _check_folder(recipe: Recipe, overwrite: bool) -> None:
    """HfgenError where the output folder holds a run that is neither resumed nor to be replaced."""
    folder = recipe.folder
    resuming = recipe.training.resume_from_checkpoint is not None
    if resuming or not folder.exists() or not (folder.is_file() or any(folder.iterdir())):
        return
    if not overwrite:
        raise HfgenError(
            f"output_dir: {folder} already holds a run; use --resume latest, --overwrite or "
            f"--output_dir OTHER"
        )
    if not (folder / "recipe.yaml").is_file():
        raise HfgenError(
            f"output_dir: {folder} is not a run (no recipe.yaml), so --overwrite will not delete it"
        )


def _open_folder(recipe: Recipe, num_processes: int) -> None:
    """Make the run's folder, once everything else has been found to be in order."""
    folder = recipe.folder
    try:
        if folder.exists() and recipe.training.resume_from_checkpoint is None:
            shutil.rmtree(folder)
        (folder / "samples").mkdir(parents=True, exist_ok=True)
        (folder / "recipe.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
        (folder / "environment.json").write_text(json.dumps(describe(num_processes), indent=1))
    except OSError as error:
        raise HfgenError(f"output_dir: {folder} cannot be written: {error.strerror}") from None


def _check_same_recipe(recipe: Recipe, checkpoint: Path) -> None:
    from hfgen.training.checkpoints import read_state

    read_state(checkpoint)
    old = read_yaml(checkpoint / "recipe.yaml")
    changed = recipes.differences(old, read_plain(recipe))
    if changed and not recipe.training.allow_recipe_change:
        raise HfgenError(
            f"resume_from_checkpoint: the recipe differs from {checkpoint}'s in "
            f"{', '.join(changed)}; "
            "change it back, or add --training.allow_recipe_change true"
        )


def read_plain(recipe: Recipe) -> dict[str, Any]:
    """The recipe as a YAML reader would see it, so that tuples and lists compare equal."""
    from hfgen.config import parse_yaml

    return parse_yaml(recipe.to_yaml(), "recipe")


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
