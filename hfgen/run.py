"""One run, from a recipe to an exported pipeline."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
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
        if recipe.hub.push_to_hub and accelerator.is_main_process:
            _check_hub(str(recipe.hub.hub_model_id))
        return _train(recipe, accelerator, trust_remote_code)
    finally:
        accelerator.free_memory()
        AcceleratorState._reset_state()  # the next run of this process may use another precision


def _train(recipe: Recipe, accelerator: Any, trust_remote_code: bool) -> Run:
    import torch

    from hfgen.build import build_components, exported_roles
    from hfgen.data import BatchStream
    from hfgen.hooks import RunHooks
    from hfgen.hub.admit import admit_sources
    from hfgen.latents import training_source
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
    log = Log(accelerator, recipe.logging, recipe.folder)
    hooks = RunHooks(recipe, components, source)
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
        hooks=Hooks(sample=hooks.sample, evaluate=hooks.evaluate, saved=hooks.saved),
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
        hooks.export(trainer.averaged)
        _say_end(recipe, stopped_by == 0, checkpoints.latest())
        if stopped_by == 0:
            hooks.pushed()
    accelerator.wait_for_everyone()
    log.close()
    return Run(recipe.folder, stopped_by)


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


def _check_hub(repo_id: str) -> None:
    """HfgenError where the run could never be pushed; a Hub that is away may be back by then."""
    from hfgen.hub.client import HubUnavailable, check_account

    try:
        check_account(repo_id)
    except HubUnavailable as error:
        print(f"hfgen: {error}; training begins, the push is tried later", file=sys.stderr)


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
