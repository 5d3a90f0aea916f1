"""Pictures of what a pipeline makes."""

from __future__ import annotations

import inspect
import logging
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont

from hfgen.data.captions import unseen_words
from hfgen.errors import HfgenError
from hfgen.pipelines._text import check_prompts, tokenize  # pyright: ignore[reportMissingImports]

logger = logging.getLogger(__name__)

WORDS = "words.txt"
"""Words of the captions that a pipeline was trained on, beside its recipe."""


def draw(
    pipeline: Any, num_images: int, *, seed: int = 0, batch_size: int = 64, **options: Any
) -> list[Image.Image]:
    """``num_images`` PIL images; image i comes from its own generator (seed, i), so the batch size
    changes nothing. ``class_labels`` and ``prompt`` hold one for each image.
    """
    images: list[Image.Image] = []
    pipeline.set_progress_bar_config(disable=True)
    if not draws_images(pipeline):
        raise HfgenError(f"sample: {type(pipeline).__name__} draws no images")
    if takes_prompt(pipeline) and "prompt" not in options:
        raise HfgenError(f"sample: {type(pipeline).__name__} draws from texts; give --prompt")
    sized = "batch_size" in inspect.signature(pipeline.__call__).parameters
    for first in range(0, num_images, batch_size):
        numbers = range(first, min(first + batch_size, num_images))
        generators = [
            torch.Generator().manual_seed(seed * 1_000_003 + number) for number in numbers
        ]
        call = {**options, **_labels(pipeline, numbers, options)}
        for name in ("class_labels", "prompt"):
            if name in options:
                call[name] = options[name][first : first + len(numbers)]
        if isinstance(options.get("negative_prompt"), str):
            call["negative_prompt"] = [options["negative_prompt"]] * len(numbers)
        size = {"batch_size": len(numbers)} if sized else {}
        result = pipeline(generator=generators, **size, **call)
        images += result.images
    return images


def _labels(pipeline: Any, numbers: range, options: dict[str, Any]) -> dict[str, Any]:
    """One class after the other, for a class-conditional pipeline that was given no labels."""
    classes = getattr(pipeline, "num_classes", None)
    if not classes or "class_labels" in options:
        return {}
    return accepted(pipeline, class_labels=[number % classes for number in numbers])


def draws_images(pipeline: Any) -> bool:
    """Whether calling the pipeline gives images (a dual encoder compares them instead)."""
    return "generator" in inspect.signature(pipeline.__call__).parameters


def takes_prompt(pipeline: Any) -> bool:
    """Whether the pipeline draws from texts."""
    parameters = inspect.signature(pipeline.__call__).parameters
    return "prompt" in parameters and pipeline.components.get("tokenizer") is not None


def sample_prompts(recipe: Any, source: Any) -> list[str]:
    """Texts to draw: those of the recipe, or eight captions of ``source``."""
    if recipe.logging.sample_prompts:
        return list(recipe.logging.sample_prompts)
    step = max(len(source) // 8, 1)
    return source.captions(range(0, min(8 * step, len(source)), step))


def sample_call(pipeline: Any, recipe: Any) -> dict[str, Any]:
    """Arguments of the pipeline's call that its recipe names."""
    steps = accepted(pipeline, num_inference_steps=recipe.logging.num_inference_steps)
    return {**steps, **recipe.logging.sample_call}


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """Images that a model was not trained on, and what the data says of each of them.

    ``labels`` and ``captions`` are empty where the data has none.
    """

    images: list[Image.Image] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    captions: list[str] = field(default_factory=list)


def held_out(recipe: Any, count: int) -> HeldOut:
    """The first ``count`` held-out images of a recipe's data. Raises HfgenError: no such data."""
    from hfgen.data import load_source

    source = load_source(recipe.data, split="validation")
    rows = range(min(count, len(source)))
    pixels = source.uint8(rows).permute(0, 2, 3, 1).numpy()
    labels = source.labels(rows)
    return HeldOut(
        images=[Image.fromarray(p[..., 0] if p.shape[2] == 1 else p) for p in pixels],
        labels=[] if labels is None else labels.tolist(),
        captions=source.captions(rows) if source.spec.has_captions else [],
    )


def validation_images(recipe: Any, count: int) -> list[Image.Image]:
    """The images of ``held_out``."""
    return held_out(recipe, count).images


def accepted(pipeline: Any, **options: Any) -> dict[str, Any]:
    """Those of ``options`` that the pipeline's call has a parameter for."""
    parameters = inspect.signature(pipeline.__call__).parameters
    return {name: value for name, value in options.items() if name in parameters}


def grid(images: list[Image.Image], *, columns: int | None = None, padding: int = 2) -> Image.Image:
    """One picture of all images, row by row, nearly square unless ``columns`` is given."""
    if not images:
        raise HfgenError("grid: no images")
    columns = columns or math.ceil(math.sqrt(len(images)))
    rows = math.ceil(len(images) / columns)
    width, height = images[0].size
    white = 255 if images[0].mode == "L" else (255, 255, 255)
    size = (columns * (width + padding) + padding, rows * (height + padding) + padding)
    sheet = Image.new(images[0].mode, size, white)
    for i, image in enumerate(images):
        x, y = i % columns, i // columns
        sheet.paste(image, (padding + x * (width + padding), padding + y * (height + padding)))
    return sheet


def prompt_sheet(images: list[Image.Image], prompts: list[str]) -> Image.Image:
    """One row of images for each prompt, with the text beside it."""
    sheet = grid(images, columns=len(images) // len(prompts)).convert("RGB")
    font: Any = ImageFont.load_default(size=12)
    margin = 8 + int(max(font.getlength(text) for text in prompts))
    whole = Image.new("RGB", (sheet.width + margin, sheet.height), (255, 255, 255))
    whole.paste(sheet, (margin, 0))
    pen, height = ImageDraw.Draw(whole), sheet.height / len(prompts)
    for i, text in enumerate(prompts):
        pen.text((4, (i + 0.5) * height), text, fill=(0, 0, 0), font=font, anchor="lm")
    return whole


def unseen_in(model: str, prompts: list[str]) -> list[str]:
    """Words of ``prompts`` that the captions of ``model``'s training did not have."""
    for file in (Path(model, "pipeline", WORDS), Path(model, WORDS)):
        if file.is_file():
            return unseen_words(prompts, file.read_text(encoding="utf-8").split())
    return []


def save_samples(
    pipeline: Any, path: Path, num_images: int, *, seed: int = 0, **options: Any
) -> Path:
    """Draw and save a grid; HfgenError where the file cannot be written.

    With ``prompt``, a list of texts, the images are spread over them, a row each with its text.
    """
    prompts = options.pop("prompt", None)
    if prompts is None:
        sheet = grid(draw(pipeline, num_images, seed=seed, **options))
    else:
        each = max(num_images // len(prompts), 1)
        repeated = [text for text in prompts for _ in range(each)]
        images = draw(pipeline, len(repeated), seed=seed, prompt=repeated, **options)
        sheet = prompt_sheet(images, prompts)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        sheet.save(path)
    except (OSError, ValueError) as error:
        raise HfgenError(f"{path}: picture cannot be written: {error}") from None
    return path


def sample_to_file(
    model: str,
    output: str,
    *,
    num_images: int,
    seed: int = 0,
    batch_size: int = 64,
    class_labels: list[int] | None = None,
    prompt: list[str] | None = None,
    rank_with: str | None = None,
    scheduler: str | None = None,
    trust_remote_code: bool = False,
    **options: Any,
) -> Path:
    """Load a model and save a grid of its images; ``options`` that are None are those of the recipe
    beside the model, or with another scheduler or without a recipe the pipeline's own. With prompts
    there are ``num_images`` of each, and unseen words are reported.
    """
    if num_images < 1 or batch_size < 1:
        raise HfgenError(
            f"sample: --num-images and --batch-size must be positive, got {num_images} and "
            f"{batch_size}"
        )
    from hfgen.beside import recipe_call
    from hfgen.hub.trust import load_asking
    from hfgen.schedulers import swapped

    pipeline = load_asking(model, trust_remote_code=trust_remote_code)
    asked = {name: value for name, value in options.items() if value is not None}
    given = asked if scheduler is not None else {**recipe_call(model, pipeline), **asked}
    accepted = inspect.signature(pipeline.__call__).parameters
    if prompt is not None:
        given["prompt"] = prompt
        num_images *= len(prompt)
        unseen = unseen_in(model, prompt)
        if unseen:
            logger.warning("words that no caption of the training had: %s", ", ".join(unseen))
    if rank_with is not None:
        from hfgen.hub.load_text import load_clip

        given["ranker"] = load_clip(rank_with)
    if given.get("guidance_scale", 0) < 0:
        raise HfgenError(
            f"sample: --guidance-scale {given['guidance_scale']}: must not be negative"
        )
    if given.get("num_inference_steps", 1) < 1:  # stock pipelines hand back noise, or divide by 0
        raise HfgenError(
            f"sample: --num-inference-steps {given['num_inference_steps']}: must be at least 1"
        )
    for name in [*given, *(["class_labels"] if class_labels else [])]:
        if name not in accepted:
            raise HfgenError(
                f"sample: {type(pipeline).__name__} takes no --{name.replace('_', '-')}"
            )
    if class_labels:
        given["class_labels"] = [class_labels[i % len(class_labels)] for i in range(num_images)]
    if scheduler is not None:
        pipeline = swapped(pipeline, scheduler)
    try:
        if takes_prompt(pipeline) and prompt is not None:
            tokenize(pipeline.tokenizer, check_prompts(prompt))  # stock pipelines cut in silence
        return save_samples(
            pipeline, Path(output), num_images, seed=seed, batch_size=batch_size, **given
        )
    except ValueError as error:
        raise HfgenError(f"sample: {error}") from None
