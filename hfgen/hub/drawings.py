"""Each picture of a model card: drawn with the pipeline itself, from fixed seeds."""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from hfgen.pipelines._autoencoder import decode_latents  # pyright: ignore[reportMissingImports]
from hfgen.samples import HeldOut, accepted, draw, grid, prompt_sheet

COLUMNS = 8
MAX_STEPS = 100
AUTOENCODERS = ("vae", "vqvae")


def samples(pipeline: Any, seed: int, call: dict[str, Any], prompts: list[str]) -> Image.Image:
    """Rows of images; with ``prompts``, a row for each, beside its text."""
    if not prompts:
        return grid(draw(pipeline, COLUMNS * COLUMNS, seed=seed, **call), columns=COLUMNS)
    repeated = [text for text in prompts for _ in range(COLUMNS)]
    images = draw(pipeline, len(repeated), seed=seed, prompt=repeated, **call)
    return prompt_sheet(images, prompts)


def interpolation(pipeline: Any, seed: int, rows: int = 5) -> Image.Image | None:
    """Rows of images between two latents each; None for a pipeline that takes no latents."""
    takes = "latents" in inspect.signature(pipeline.__call__).parameters
    if not takes or not hasattr(type(pipeline), "latent_shape"):
        return None
    random = torch.Generator().manual_seed(seed)
    ends = torch.randn(2, rows, *pipeline.latent_shape, generator=random)
    shares = torch.linspace(0, 1, COLUMNS)
    latents = torch.stack([_between(ends[0], ends[1], float(share)) for share in shares], dim=1)
    labels = accepted(pipeline, class_labels=0) if num_classes(pipeline) else {}
    made = pipeline(latents=latents.flatten(0, 1), **labels, **few_steps(pipeline)).images
    return grid(made, columns=COLUMNS)


def _between(a: Tensor, b: Tensor, share: float) -> Tensor:
    """A point between standard normal latents with their variance: (1-t) a + t b, rescaled."""
    scale = ((1 - share) ** 2 + share**2) ** -0.5
    return scale * ((1 - share) * a + share * b)


def reconstructions(pipeline: Any, data: HeldOut) -> Image.Image | None:
    """Rows of images, each above the row of its reconstructions; None where there is no encoder,
    or the data lacks the classes that it needs.
    """
    needs_labels = num_classes(pipeline) is not None
    if not encodes(pipeline) or not data.images or (needs_labels and not data.labels):
        return None
    whole = data.images[: len(data.images) // COLUMNS * COLUMNS or len(data.images)]
    labels = {"class_labels": data.labels[: len(whole)]} if needs_labels else {}
    made = pipeline.reconstruct(whole, **labels).images
    rows = range(0, len(whole), COLUMNS)
    return grid(
        [image for row in rows for part in (whole, made) for image in part[row : row + COLUMNS]],
        columns=min(COLUMNS, len(whole)),
    )


def encodes(pipeline: Any) -> bool:
    """Whether the pipeline can reconstruct images."""
    return hasattr(type(pipeline), "reconstruct")


def denoising(
    pipeline: Any, seed: int, call: dict[str, Any], prompts: list[str], rows: int = 4
) -> Image.Image | None:
    """From noise to images, left to right, each step as the network is given it (decoded, where it
    works on latents); None for a pipeline that takes no steps.
    """
    if "num_inference_steps" not in inspect.signature(pipeline.__call__).parameters:
        return None
    given: dict[str, Any] = {}
    if prompts:
        given["prompt"] = [prompts[row % len(prompts)] for row in range(rows)]
    if num_classes(pipeline):
        given["class_labels"] = list(range(rows))
    generators = [torch.Generator().manual_seed(seed + row) for row in range(rows)]
    options = {"batch_size": rows, "generator": generators, **call, **given}
    if prompts:
        del options["batch_size"]
    with _watched(pipeline) as inputs:
        last = pipeline(**accepted(pipeline, **options)).images
    seen = [_pixels(pipeline, x[:rows]) for x in max(inputs.values(), key=len)[:: _stride(inputs)]]
    if seen[0].shape[1] not in (1, 3):
        return None
    strips = [[_image(step[row]) for step in seen] + [last[row]] for row in range(rows)]
    return grid([image for strip in strips for image in strip], columns=len(strips[0]))


@torch.no_grad()
def _pixels(pipeline: Any, x: Tensor) -> Tensor:
    """[B, C, H, W] of what is denoised; of latents their decoding."""
    found = [pipeline.components[name] for name in AUTOENCODERS if name in pipeline.components]
    vae = next((part for part in found if part is not None), None)
    if vae is None:
        return x
    return decode_latents(vae, x.to(vae.device), pipeline.config.get("decoder_likelihood")).cpu()


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


def similarity(pipeline: Any, data: HeldOut, side: int = 64) -> Image.Image | None:
    """The cosines of a dual encoder as a table: a row for each caption, a column for each image,
    the brighter the more alike; None without captions.
    """
    images, captions = data.images[:COLUMNS], data.captions[:COLUMNS]
    if not captions:
        return None
    cosines = pipeline.embed_texts(captions) @ pipeline.embed_images(images).T  # [text, image]
    low, high = float(cosines.min()), float(cosines.max())
    shades = ((cosines - low) / max(high - low, 1e-6) * 255).round().byte().tolist()
    heads = [image.convert("RGB").resize((side, side)) for image in images]
    cells = [Image.new("RGB", (side, side), (shade,) * 3) for row in shades for shade in row]
    return prompt_sheet([*heads, *cells], ["", *captions])


def few_steps(pipeline: Any) -> dict[str, Any]:
    """A number of steps that a CPU bears, where the pipeline counts steps."""
    config = getattr(getattr(pipeline, "scheduler", None), "config", {})
    most = config.get("num_train_timesteps", MAX_STEPS)
    return accepted(pipeline, num_inference_steps=min(MAX_STEPS, most))


def num_classes(pipeline: Any) -> int | None:
    """Number of classes of a conditional pipeline; None for another."""
    return getattr(pipeline, "num_classes", None)
