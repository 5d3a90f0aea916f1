"""What pipelines that turn one latent into one image share: decoding, interpolation, traversal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput
from torch import Tensor

from ._common import check_latents, interpolate_latents, to_output

AT_ONCE = 256
"""Rows that go through the model together, so that a large batch needs no more memory."""

_PipelineBase = DiffusionPipeline if TYPE_CHECKING else object


class LatentsMixin(_PipelineBase):
    """Needs ``latent_shape``, ``_decode`` and a ``__call__`` that takes ``latents``."""

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """Shape of one latent."""
        raise NotImplementedError

    @property
    def _metric(self) -> Any:
        """What has a ``geodesic`` on these latents, or None."""
        return None

    def _check_latents(self, latents: Tensor, batch_size: int | None = None) -> None:
        """ValueError where ``latents`` are none that the pipeline decodes."""
        check_latents(latents, self.latent_shape, batch_size)

    def _decode(self, latents: Tensor, labels: Tensor | None) -> Tensor:
        """Latents [B, *latent_shape] -> images [B, C, H, W] in [-1, 1]."""
        raise NotImplementedError

    def __call__(self, *args: Any, **kwargs: Any) -> ImagePipelineOutput | tuple[Any]:
        """Draw images, or make those of given ``latents``."""
        raise NotImplementedError

    @torch.no_grad()
    def _finish(
        self, latents: Tensor, labels: Tensor | None, output_type: str, return_dict: bool
    ) -> ImagePipelineOutput | tuple[Any]:
        """Decode, and put the images into the type that was asked for."""
        images: Any = latents
        if output_type != "latent":
            latents, parts = latents.to(self._execution_device), []
            pipeline: Any = self  # the decorator of progress_bar hides its type
            for start in pipeline.progress_bar(range(0, len(latents), AT_ONCE)):
                rows = slice(start, start + AT_ONCE)
                parts.append(self._decode(latents[rows], None if labels is None else labels[rows]))
            images = to_output(torch.cat(parts), output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def interpolate(
        self, a: Tensor, b: Tensor, steps: int = 8, mode: str = "spherical", **kwargs: Any
    ) -> ImagePipelineOutput | tuple[Any]:
        """Images on the way from the latents ``a`` to ``b``.

        Args:
            a, b: [B, *latent_shape].
            steps: images on each path, both ends included.
            mode: "linear", "spherical", or "geodesic": the shortest path, where the prior has a
                metric.
            **kwargs: ``class_labels`` (one for all images), ``output_type``, ``return_dict``.
        Returns:
            B * steps images, path by path.
        """
        self._check_latents(a)
        return self(latents=interpolate_latents(a, b, steps, mode, self._metric), **kwargs)

    def traverse(
        self,
        latents: Tensor,
        dimensions: Sequence[int] | None = None,
        values: Sequence[float] = (-3, -2, -1, 0, 1, 2, 3),
        **kwargs: Any,
    ) -> ImagePipelineOutput | tuple[Any]:
        """Set one coordinate of a latent at a time (Higgins et al. 2017, figure 1).

        Args:
            latents: [1, *latent_shape], the point to start from.
            dimensions: indices into the flattened latent; all of them when None.
            values: what each is set to.
            **kwargs: ``class_labels`` (one for all images), ``output_type``, ``return_dict``.
        Returns:
            len(dimensions) * len(values) images, dimension by dimension.
        """
        check_latents(latents, self.latent_shape, batch_size=1)
        size = latents.numel()
        dimensions = range(size) if dimensions is None else dimensions
        if not dimensions or min(dimensions) < 0 or max(dimensions) >= size:
            raise ValueError(f"dimensions={dimensions}: must be from 0 to {size - 1}")
        moved = latents.flatten(1).repeat(len(dimensions), len(values), 1)
        for row, index in enumerate(dimensions):
            moved[row, :, index] = torch.as_tensor(values, dtype=moved.dtype, device=moved.device)
        return self(latents=moved.reshape(-1, *self.latent_shape), **kwargs)
