"""What the pipelines share: checking arguments, drawing latents, turning tensors into images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image
from torch import Tensor

Generators = torch.Generator | list[torch.Generator] | None
"""One for the batch, one for each row (which then depends on no other), or the global one."""

MODES = {1: "L", 3: "RGB", 4: "RGBA"}
"""Modes of PIL images by number of channels."""

OUTPUT_TYPES = ("pil", "np", "pt", "latent")


def check_output_type(output_type: str) -> None:
    if output_type not in OUTPUT_TYPES:
        raise ValueError(
            f"output_type={output_type!r} is unknown; valid: {', '.join(OUTPUT_TYPES)}"
        )


def check_batch(batch_size: int, generator: Generators) -> None:
    """A positive number of rows, with one generator or as many as rows."""
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}: must be at least 1")
    if isinstance(generator, list) and len(generator) != batch_size:
        raise ValueError(f"{len(generator)} generators for batch_size={batch_size}: must be equal")


def check_latents(latents: Tensor, shape: Sequence[int], batch_size: int | None = None) -> None:
    """[B, *shape], with B = ``batch_size`` where that is given."""
    rows = "B" if batch_size is None else str(batch_size)
    right = latents.ndim == len(shape) + 1 and tuple(latents.shape[1:]) == tuple(shape)
    if not right or (batch_size is not None and len(latents) != batch_size):
        expected = ", ".join([rows, *map(str, shape)])
        raise ValueError(f"latents of shape {list(latents.shape)}: must be [{expected}]")


def check_labels(
    class_labels: int | Sequence[int] | Tensor | None,
    num_classes: int | None,
    batch_size: int,
    device: torch.device,
) -> Tensor | None:
    """Labels as int64 [B] on ``device``, or None for a model without classes.

    One label serves all rows.
    """
    if num_classes is None and class_labels is None:
        return None
    if num_classes is None:
        raise ValueError("class_labels were given, but the model has no classes")
    if class_labels is None:
        raise ValueError(f"class_labels are missing: the model has classes 0 to {num_classes - 1}")
    labels = torch.as_tensor(class_labels, device=device)
    if labels.is_floating_point() or labels.ndim > 1 or labels.numel() not in (1, batch_size):
        given = class_labels if labels.numel() < 9 else f"{labels.numel()} numbers"
        raise ValueError(
            f"class_labels={given}: must be one integer, or one for each of the {batch_size} images"
        )
    strange = labels[(labels < 0) | (labels >= num_classes)]
    if len(strange):
        raise ValueError(f"class_labels={int(strange[0])}: must be from 0 to {num_classes - 1}")
    return labels.long().reshape(-1).expand(batch_size)


def draw_latents(
    batch_size: int, shape: Sequence[int], generator: Generators, device: torch.device
) -> Tensor:
    """Standard normal [batch_size, *shape].

    In float32 whatever the model's dtype, so that a seed means one image.
    """
    return randn_tensor((batch_size, *shape), generator, device, dtype=torch.float32)


def interpolate_latents(a: Tensor, b: Tensor, steps: int, mode: str, prior: Any = None) -> Tensor:
    """Latents on the way from ``a`` to ``b``, both ends included.

    ``spherical`` keeps the norm that normal latents have in high dimensions (White 2016, "Sampling
    Generative Networks", section 2.1, after Shoemake 1985); where the two are parallel it is the
    straight line.

    Args:
        a, b: [B, *shape].
        steps: points on each path, at least 2.
        mode: "linear", "spherical", or "geodesic" for a prior that has a metric.
        prior: with ``geodesic(a, b, steps) -> [B, steps, *shape]`` where there is a metric.
    Returns:
        [B * steps, *shape], path by path.
    """
    if steps < 2:
        raise ValueError(f"steps={steps}: must be at least 2")
    geodesic = getattr(prior, "geodesic", None)
    valid = ("linear", "spherical") if geodesic is None else ("linear", "spherical", "geodesic")
    if mode not in valid:
        why = " (no metric on these latents)" if mode == "geodesic" else ""
        raise ValueError(f"mode={mode!r} is unknown{why}; valid: {', '.join(valid)}")
    if a.shape != b.shape:
        raise ValueError(
            f"latents of shapes {list(a.shape)} and {list(b.shape)} are not comparable"
        )
    if geodesic is not None and mode == "geodesic":
        return geodesic(a.float(), b.float(), steps).flatten(0, 1)
    start, end = a.float().flatten(1)[:, None], b.float().flatten(1)[:, None]  # [B, 1, D]
    t = torch.linspace(0, 1, steps, device=a.device)[None, :, None]
    path = (1 - t) * start + t * end
    if mode == "spherical":
        cosine = torch.cosine_similarity(start, end, dim=2).clamp(-1, 1)[..., None]
        angle = torch.acos(cosine)
        arc = (torch.sin((1 - t) * angle) * start + torch.sin(t * angle) * end) / torch.sin(angle)
        path = torch.where(torch.sin(angle).abs() > 1e-4, arc, path)
    return path.reshape(-1, *a.shape[1:])


def to_output(images: Tensor, output_type: str) -> Any:
    """[B, C, H, W] in [-1, 1] -> "pt": [B, C, H, W], "np": [B, H, W, C], both in [0, 1], or a list
    of "pil" images.
    """
    images = (images.float() / 2 + 0.5).clamp(0, 1).cpu()
    if output_type == "pt":
        return images
    array = images.permute(0, 2, 3, 1).numpy()
    return array if output_type == "np" else to_pil(array)


def to_pil(images: np.ndarray) -> list[Image.Image]:
    """[B, H, W, C] in [0, 1] -> images of mode "L", "RGB" or "RGBA" for 1, 3 or 4 channels."""
    if images.shape[-1] not in MODES:
        raise ValueError(f'{images.shape[-1]} channels make no image: use output_type="np" or "pt"')
    pixels = (images * 255).round().astype("uint8")
    return [Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image) for image in pixels]


def to_tensor(images: Any, shape: Sequence[int], device: torch.device) -> Tensor:
    """The inverse of ``to_output``: images in any of its three types -> [B, C, H, W] in [-1, 1].

    Args:
        images: a PIL image or a list of them (of any mode; converted), an array [B, H, W, C] or a
            tensor [B, C, H, W] in [0, 1].
        shape: (C, H, W) that the model takes.
    Raises:
        ValueError: another size, another number of channels, or values outside [0, 1].
    """
    if isinstance(images, Image.Image):
        images = [images]
    if isinstance(images, list | tuple):
        images = _from_pil(images, shape[0])
    if isinstance(images, np.ndarray):
        images = torch.from_numpy(images)
        images = images.permute(0, 3, 1, 2) if images.ndim == 4 else images
    if not isinstance(images, Tensor):
        raise ValueError(f"images of type {type(images).__name__}: must be PIL, array or tensor")
    if tuple(images.shape[1:]) != tuple(shape):
        expected = ", ".join(map(str, shape))
        raise ValueError(f"images of shape {list(images.shape)}: must be [B, {expected}]")
    low, high = float(images.min()), float(images.max())
    if not (low >= 0 and high <= 1):  # nor not a number
        raise ValueError(f"images are in [{low:.3g}, {high:.3g}]: must be in [0, 1]")
    return images.to(device, torch.float32) * 2 - 1


def _from_pil(images: Sequence[Image.Image], channels: int) -> np.ndarray:
    if not images or not all(isinstance(image, Image.Image) for image in images):
        raise ValueError("a list of images must hold PIL images, at least one")
    if channels not in MODES:
        raise ValueError(f"the model takes {channels} channels, which no PIL image has")
    rows = [np.asarray(image.convert(MODES[channels]), dtype=np.float32) for image in images]
    return np.stack(rows).reshape(len(rows), *rows[0].shape[:2], channels) / 255
