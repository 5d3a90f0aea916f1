"""What a run does with its models now and then while it trains."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from hfgen.export import assemble, export
from hfgen.finish import finish
from hfgen.hub.background import RunPusher
from hfgen.recipe import Recipe
from hfgen.samples import (
    accepted,
    draws_images,
    sample_call,
    sample_prompts,
    save_samples,
    takes_prompt,
)


class RunHooks:
    """Pictures, small measurements and pushes of the pipeline that a run would export now.

    Args:
        recipe: of the run.
        components: the models that it was built from; those in training are given to each hook.
        source: the training images.
    """

    def __init__(self, recipe: Recipe, components: Mapping[str, Any], source: Any):
        self._recipe, self._components, self._source = recipe, components, source
        self._pusher = RunPusher(recipe.folder, recipe.hub) if recipe.hub.push_to_hub else None

    def sample(self, models: Mapping[str, Any], images_seen: int) -> None:
        """A grid of samples, where the pipeline draws images."""
        recipe, pipeline = self._recipe, self._pipeline(models)
        if not draws_images(pipeline):
            return
        call = sample_call(pipeline, recipe)
        if takes_prompt(pipeline):
            call["prompt"] = sample_prompts(recipe, self._source)
        target = recipe.folder / "samples" / f"{images_seen:010d}.png"
        number, seed = recipe.logging.num_sample_images, recipe.training.seed
        save_samples(pipeline, target, number, seed=seed, **call)

    def evaluate(self, models: Mapping[str, Any]) -> dict[str, float]:
        """Scores of a small protocol on the held-out images."""
        return self._protocol(self._pipeline(models))

    def saved(self, models: Mapping[str, Any], checkpoint: Path) -> None:
        """Push a checkpoint, where the recipe asks for it, without waiting."""
        if self._pusher is None:
            return
        made, recipe, words = self._finished(models), self._recipe, self._source.words
        self._pusher.saved(checkpoint, lambda folder: export(made, recipe, folder, words))

    def export(self, models: Mapping[str, Any]) -> None:
        """Write the run's pipeline."""
        made, words = self._finished(models), self._source.words
        export(made, self._recipe, self._recipe.folder / "pipeline", words)

    def pushed(self) -> None:
        """Wait for the last push and say where the run is, where the recipe asks for one."""
        if self._pusher is not None:
            print(f"pushed:   {self._pusher.finish().url}")

    def _pipeline(self, models: Mapping[str, Any]) -> Any:
        return assemble(self._recipe, {**self._components, **models})

    def _finished(self, models: Mapping[str, Any]) -> Any:
        pipeline = self._pipeline(models)
        finish(pipeline, self._recipe.objective, self._source)
        return pipeline

    @cached_property
    def _protocol(self) -> Any:
        """Its backbone is loaded when it is first needed."""
        from hfgen.build import pipeline_class
        from hfgen.data import load_source
        from hfgen.evaluation import small_protocol

        recipe = self._recipe
        steps = recipe.logging.num_inference_steps
        call = accepted(pipeline_class(recipe.pipeline), num_inference_steps=steps)
        source = load_source(recipe.data, split="validation")
        return small_protocol(source, num_images=recipe.training.evaluate_num_images, call=call)
