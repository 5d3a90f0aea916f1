"""The pictures of a model card, drawn with the pipeline itself from fixed seeds."""

from __future__ import annotations

import inspect
import sys
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from hfgen import recipe as recipes
from hfgen.errors import HfgenError
from hfgen.hub.card import write_card
from hfgen.hub.folder import check_pipeline, components
from hfgen.hub.load import load
from hfgen.recipe import Recipe
from hfgen.samples import (
    accepted,
    draw,
    draws_images,
    grid,
    sample_call,
    takes_prompt,
    validation_images,
)

COLUMNS = 8
MAX_STEPS = 100


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
    older than its pipeline; reconstructions only where the recipe's data is at hand.

    Raises:
        HfgenError: as ``hfgen.load``.
    """
    folder = run / "pipeline" if (run / "pipeline").is_dir() else run
    exported = (folder / "model_index.json").stat().st_mtime
    drawn = [path for path in (run / "samples").glob("*.png") if path.stat().st_mtime >= exported]
    present = {path.stem for path in drawn}
    if expected_pictures(folder) <= present:
        return []
    pipeline, recipe = load(run), _recipe(run)
    return draw_pictures(
        pipeline,
        run / "samples",
        images=_images(pipeline, recipe),
        seed=seed,
        keep=present,
        call=sample_call(pipeline, recipe) if recipe else None,
    )


def expected_pictures(folder: Path) -> set[str]:
    """What the components of a pipeline let expect of its card."""
    roles = components(check_pipeline(folder))
    if "tokenizer" in roles or "clip" in roles:
        return {"grid"}  # of the training's own texts
    if "scheduler" in roles:
        return {"grid", "denoising"}
    return {"grid", "interpolation"} | ({"reconstructions"} if "vae" in roles else set())


def _recipe(run: Path) -> Recipe | None:
    file = run / "recipe.yaml"
    return recipes.decode(recipes.read(file), lambda key: str(file)) if file.is_file() else None


def _images(pipeline: Any, recipe: Recipe | None) -> list[Image.Image]:
    """Held-out images; none, and why, where they are not to be had."""
    if recipe is None or not hasattr(type(pipeline), "reconstruct"):
        return []
    try:
        return validation_images(recipe, 2 * COLUMNS)
    except HfgenError as error:
        print(f"hfgen: no reconstructions: {error}", file=sys.stderr)
        return []


def draw_pictures(
    pipeline: Any,
    folder: Path,
    *,
    images: list[Image.Image] | None = None,
    seed: int = 0,
    keep: set[str] = frozenset(),  # type: ignore[assignment]
    call: dict[str, Any] | None = None,
) -> list[Path]:
    """Write ``grid.png`` and, as far as the pipeline can, ``interpolation.png`` (from latents),
    ``reconstructions.png`` (of ``images``), ``denoising.png`` (with a scheduler).

    Args:
        images: of the data, of the model's size.
        keep: names that are not drawn again.
        call: arguments of every call; default a number of steps that a CPU bears.
    Returns:
        The files written; none for a pipeline that draws from texts, or draws nothing.
    """
    if takes_prompt(pipeline) or not draws_images(pipeline):
        return []
    pipeline.set_progress_bar_config(disable=True)
    call = _steps(pipeline) if call is None else call
    drawings = {
        "grid": lambda: grid(draw(pipeline, 64, seed=seed, **call), columns=COLUMNS),
        "interpolation": lambda: interpolation(pipeline, seed),
        "reconstructions": lambda: reconstructions(pipeline, images or []),
        "denoising": lambda: denoising(pipeline, seed, call),
    }
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, make in drawings.items():
        picture = make() if name not in keep else None
        if picture is not None:
            picture.save(folder / f"{name}.png")
            written.append(folder / f"{name}.png")
    return written


def interpolation(pipeline: Any, seed: int, rows: int = 5) -> Image.Image | None:
    """Rows of images between two latents each; None for a pipeline that takes no latents."""
    if "latents" not in inspect.signature(pipeline.__call__).parameters:
        return None
    random = torch.Generator().manual_seed(seed)
    ends = torch.randn(2, rows, *pipeline.latent_shape, generator=random)
    shares = torch.linspace(0, 1, COLUMNS)
    latents = torch.stack([_between(ends[0], ends[1], float(share)) for share in shares], dim=1)
    labels = accepted(pipeline, class_labels=0) if _num_classes(pipeline) else {}
    made = pipeline(latents=latents.flatten(0, 1), **labels, **_steps(pipeline)).images
    return grid(made, columns=COLUMNS)


def _between(a: Tensor, b: Tensor, share: float) -> Tensor:
    """A point between standard normal latents with their variance: (1-t) a + t b, rescaled."""
    scale = ((1 - share) ** 2 + share**2) ** -0.5
    return scale * ((1 - share) * a + share * b)


def reconstructions(pipeline: Any, images: list[Image.Image]) -> Image.Image | None:
    """Rows of images, each above the row of its reconstructions; None where there is no encoder."""
    reconstruct = getattr(pipeline, "reconstruct", None)
    if reconstruct is None or not images or _num_classes(pipeline):
        return None
    whole = images[: len(images) // COLUMNS * COLUMNS or len(images)]
    made = reconstruct(whole).images
    rows = range(0, len(whole), COLUMNS)
    return grid(
        [image for row in rows for part in (whole, made) for image in part[row : row + COLUMNS]],
        columns=min(COLUMNS, len(whole)),
    )


def denoising(pipeline: Any, seed: int, call: dict[str, Any], rows: int = 4) -> Image.Image | None:
    """From noise to images, left to right; None for a pipeline that takes no steps in pixels."""
    if "num_inference_steps" not in inspect.signature(pipeline.__call__).parameters:
        return None
    generators = [torch.Generator().manual_seed(seed + row) for row in range(rows)]
    options = {"batch_size": rows, "generator": generators, **call}
    labels = {"class_labels": list(range(rows))} if _num_classes(pipeline) else {}
    with _watched(pipeline) as inputs:
        last = pipeline(**accepted(pipeline, **options, **labels)).images
    seen = max(inputs.values(), key=len)[:: _stride(inputs)]
    if seen[0].shape[1] not in (1, 3):
        return None
    strips = [[_image(step[row]) for step in seen] + [last[row]] for row in range(rows)]
    return grid([image for strip in strips for image in strip], columns=len(strips[0]))


def _stride(inputs: dict[str, list[Tensor]]) -> int:
    return max(1, -(-max(map(len, inputs.values())) // (COLUMNS - 1)))


@contextmanager
def _watched(pipeline: Any) -> Iterator[dict[str, list[Tensor]]]:
    """Component -> what each of its calls was given; the denoiser is the one called most."""
    inputs: dict[str, list[Tensor]] = defaultdict(list)

    def watch(name: str) -> Any:
        def record(_: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
            tensors = [value for value in (*given, *named.values()) if isinstance(value, Tensor)]
            if tensors and tensors[0].ndim == 4:
                inputs[name].append(tensors[0].detach().cpu())

        return record

    modules = {n: part for n, part in pipeline.components.items() if isinstance(part, nn.Module)}
    hooks = [
        part.register_forward_pre_hook(watch(name), with_kwargs=True)
        for name, part in modules.items()
    ]
    try:
        yield inputs
    finally:
        for hook in hooks:
            hook.remove()


def _image(x: Tensor) -> Image.Image:
    """[C, H, W], shown between its own 1st and 99th percentile at most outside [-1, 1]."""
    bound = max(1.0, float(x.float().abs().quantile(0.99)))
    pixels = ((x.float() / bound).clamp(-1, 1) * 127.5 + 127.5).round().byte()
    array = pixels.permute(1, 2, 0).numpy()
    return Image.fromarray(array[..., 0] if array.shape[2] == 1 else array)


def _steps(pipeline: Any) -> dict[str, Any]:
    """A number of steps that a CPU bears, where the pipeline counts steps."""
    config = getattr(getattr(pipeline, "scheduler", None), "config", {})
    most = config.get("num_train_timesteps", MAX_STEPS)
    return accepted(pipeline, num_inference_steps=min(MAX_STEPS, most))


def _num_classes(pipeline: Any) -> int | None:
    return getattr(pipeline, "num_classes", None)
