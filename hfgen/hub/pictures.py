"""The pictures of a model card: which ones a model has, and drawing those that are missing."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from diffusers.utils import logging
from PIL import Image

from hfgen import recipe as recipes
from hfgen.errors import HfgenError
from hfgen.hub.card import write_card
from hfgen.hub.drawings import (
    COLUMNS,
    denoising,
    encodes,
    few_steps,
    interpolation,
    reconstructions,
    samples,
    similarity,
)
from hfgen.hub.folder import check_pipeline, components
from hfgen.hub.load import load
from hfgen.recipe import Recipe
from hfgen.samples import HeldOut, draws_images, held_out, sample_call, takes_prompt


def refresh_pictures(run: Path) -> None:
    """``draw_missing``, after the card was found to be in order; a pipeline whose own code may not
    run here goes without, and that is said.

    Raises:
        HfgenError: as ``write_card``.
    """
    write_card(run)
    try:
        draw_missing(run)
    except HfgenError as error:
        print(f"hfgen: pictures not drawn: {error}", file=sys.stderr)


def draw_missing(run: Path, *, seed: int = 0) -> list[Path]:
    """Draw those pictures of a run (or a pipeline folder) that its ``samples`` lack, or that are
    older than its pipeline; those of held-out images only where the recipe's data is at hand.

    Raises:
        HfgenError: as ``hfgen.load``.
    """
    folder = run / "pipeline" if (run / "pipeline").is_dir() else run
    exported = (folder / "model_index.json").stat().st_mtime
    drawn = [path for path in (run / "samples").glob("*.png") if path.stat().st_mtime >= exported]
    present = {path.stem for path in drawn}
    if expected_pictures(folder) <= present:
        return []
    with _no_progress_bars():
        pipeline, recipe = load(run), _recipe(run)
    return draw_pictures(
        pipeline,
        run / "samples",
        data=_held_out(pipeline, recipe),
        prompts=list(recipe.logging.sample_prompts) if recipe else [],
        seed=seed,
        keep=present,
        call=sample_call(pipeline, recipe) if recipe else None,
    )


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    """Nobody asked for a pipeline to be loaded, so nothing is said of it."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def expected_pictures(folder: Path) -> set[str]:
    """What the components of a pipeline let expect of its card."""
    roles = components(check_pipeline(folder))
    if "clip" in roles:
        return {"similarity"}
    if "codes" in roles:
        return {"grid"}
    if "scheduler" in roles:
        return {"grid", "denoising"}
    return {"grid", "interpolation"} | ({"reconstructions"} if "vae" in roles else set())


def _recipe(run: Path) -> Recipe | None:
    file = run / "recipe.yaml"
    return recipes.decode(recipes.read(file), lambda key: str(file)) if file.is_file() else None


def _held_out(pipeline: Any, recipe: Recipe | None) -> HeldOut:
    """Held-out images; none, and why, where they are not to be had."""
    texts = takes_prompt(pipeline) or not draws_images(pipeline)
    if recipe is None or not (texts or encodes(pipeline)):
        return HeldOut()
    try:
        if not texts:
            return held_out(recipe, 2 * COLUMNS)
        many = held_out(recipe, COLUMNS * COLUMNS)  # neighbours have captions that are alike
        return HeldOut(images=many.images[::COLUMNS], captions=many.captions[::COLUMNS])
    except HfgenError as error:
        print(f"hfgen: no pictures of held-out images: {error}", file=sys.stderr)
        return HeldOut()


def draw_pictures(
    pipeline: Any,
    folder: Path,
    *,
    data: HeldOut = HeldOut(),  # noqa: B008 (frozen)
    prompts: list[str] | None = None,
    seed: int = 0,
    keep: set[str] = frozenset(),  # type: ignore[assignment]
    call: dict[str, Any] | None = None,
) -> list[Path]:
    """Write ``grid.png`` and, as far as the pipeline can, ``interpolation.png`` (from latents),
    ``reconstructions.png`` (of ``data``), ``denoising.png`` (with a scheduler), or
    ``similarity.png`` (of ``data``, by a dual encoder).

    Args:
        data: images of the model's size, and their captions.
        prompts: for a pipeline that draws from texts; default captions of ``data``.
        keep: names that are not drawn again.
        call: arguments of every call; default a number of steps that a CPU bears.
    Returns:
        The files written; none for a pipeline that draws from texts where there are none.
    """
    pipeline.set_progress_bar_config(disable=True)
    call = few_steps(pipeline) if call is None else call
    written = []
    for name, make in _drawings(pipeline, data, prompts, seed, call).items():
        picture = make() if name not in keep else None
        if picture is not None:
            folder.mkdir(parents=True, exist_ok=True)
            picture.save(folder / f"{name}.png")
            written.append(folder / f"{name}.png")
    return written


def _drawings(
    pipeline: Any, data: HeldOut, prompts: list[str] | None, seed: int, call: dict[str, Any]
) -> dict[str, Callable[[], Image.Image | None]]:
    """Name of each picture -> what draws it."""
    if not draws_images(pipeline):
        return {"similarity": lambda: similarity(pipeline, data)}
    texts = (prompts or data.captions[:COLUMNS]) if takes_prompt(pipeline) else []
    if takes_prompt(pipeline) and not texts:
        return {}
    drawings: dict[str, Callable[[], Image.Image | None]] = {
        "grid": lambda: samples(pipeline, seed, call, texts),
        "denoising": lambda: denoising(pipeline, seed, call, texts),
    }
    if not texts:
        drawings["interpolation"] = lambda: interpolation(pipeline, seed)
        drawings["reconstructions"] = lambda: reconstructions(pipeline, data)
    return drawings
