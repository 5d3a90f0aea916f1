"""What can be done in the latent space of a generator: styles, classes, directions, inversion.

Every generator takes z. One with ``map`` (z -> w, one w for each layer) and ``synthesize`` (w ->
image), like StyleGAN2's, has styles as well; wherever a method takes latents, these may be z
[B, latent_dim] or w [B, num_styles, style_dim].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from diffusers import ImagePipelineOutput
from diffusers.utils import BaseOutput
from torch import Tensor

from ._common import (
    Generators,
    check_labels,
    check_latents,
    draw_latents,
    to_tensor,
)
from ._latents import LatentsMixin

Features = Callable[[Tensor], Tensor]
"""Images [B, C, H, W] in [-1, 1] -> features [B, ...], differentiable."""


@dataclass
class InversionOutput(BaseOutput):
    """Result of ``invert``.

    Attributes:
        latents: z [B, latent_dim] or w [B, num_styles, style_dim], to be given to the pipeline.
        error: mean squared error of the pixels of each image as it is shown, on [-1, 1], [B].
    """

    latents: Tensor
    error: Tensor


class LatentSpaceMixin(LatentsMixin):
    """Needs ``generator``, ``discriminator`` and ``num_classes``; see the module's docstring."""

    generator: Any
    discriminator: Any

    if TYPE_CHECKING:

        @property
        def num_classes(self) -> int | None: ...

    @property
    def has_styles(self) -> bool:
        """Whether the generator has a space of styles, W."""
        return callable(getattr(self.generator, "synthesize", None))

    @property
    def style_shape(self) -> tuple[int, int]:
        """(num_styles, style_dim); ValueError for a generator without styles."""
        if not self.has_styles:
            raise ValueError(f"{type(self.generator).__name__} has no styles (W): use z")
        return self.generator.num_styles, self.generator.config["style_dim"]

    def _check_latents(self, latents: Tensor, batch_size: int | None = None) -> None:
        is_w = self.has_styles and latents.ndim == 3
        check_latents(latents, self.style_shape if is_w else self.latent_shape, batch_size)

    # -- styles

    @torch.no_grad()
    def styles(self, latents: Tensor, class_labels: Any = None) -> Tensor:
        """w [B, num_styles, style_dim] of z [B, latent_dim] (ValueError without styles)."""
        shape = self.style_shape
        check_latents(latents, self.latent_shape)
        device = self._execution_device
        labels = check_labels(class_labels, self.num_classes, len(latents), device)
        w = self.generator.map(latents.to(device, self.generator.dtype), labels)
        return w.reshape(len(latents), *shape).float()

    @torch.no_grad()
    def style_centers(
        self, num_centers: int = 1, class_labels: int | None = None, num_samples: int = 2048
    ) -> Tensor:
        """Centres of W towards which styles can be truncated, [num_centers, style_dim].

        One is the mean of W (Karras et al. 2019, StyleGAN, appendix B); several are the means of
        clusters, found by k-means from fixed draws (Mokady et al. 2022, "Self-Distilled StyleGAN",
        section 4: multimodal truncation keeps each mode's own look).
        """
        if not 1 <= num_centers <= num_samples:
            raise ValueError(f"num_centers={num_centers}: must be from 1 to {num_samples}")
        fixed = torch.Generator().manual_seed(0)
        z = torch.randn(num_samples, *self.latent_shape, generator=fixed)
        w = self.styles(z, class_labels)[:, 0]
        centers = w[:num_centers]
        for _ in range(1 if num_centers == 1 else 20):
            nearest = torch.cdist(w, centers).argmin(1)
            members = F.one_hot(nearest, num_centers).to(w).T  # [centers, samples]
            count = members.sum(1, keepdim=True)
            centers = torch.where(count > 0, members @ w / count.clamp_min(1), centers)
        return centers

    def truncate_styles(self, w: Tensor, psi: float, centers: Tensor) -> Tensor:
        """center + psi (w - center), with the centre nearest to each w (Karras et al. 2019)."""
        shape = (self.style_shape[1],)
        if centers.ndim != 2 or centers.shape[1:] != shape:
            raise ValueError(f"centers of shape {list(centers.shape)}: must be [K, {shape[0]}]")
        centers = centers.to(w)
        nearest = centers[torch.cdist(w.mean(1), centers).argmin(1)][:, None]
        return nearest + psi * (w - nearest)

    def mix_styles(
        self, coarse: Tensor, fine: Tensor, crossover: int | None = None, **kwargs: Any
    ) -> ImagePipelineOutput | tuple[Any]:
        """Coarse layers from one image, fine ones from another (Karras et al. 2019, section 3.1).

        Args:
            coarse, fine: z or w, [B, ...] each.
            crossover: the first layer that follows ``fine``, from 1 to num_styles - 1; by default
                the middle.
            **kwargs: ``class_labels``, ``output_type``, ``return_dict``.
        """
        number = self.style_shape[0]
        crossover = number // 2 if crossover is None else crossover
        if not 0 < crossover < number:
            raise ValueError(f"crossover={crossover}: must be from 1 to {number - 1}")
        if len(coarse) != len(fine):
            raise ValueError(f"{len(coarse)} coarse and {len(fine)} fine latents: must be equal")
        labels = kwargs.pop("class_labels", None)
        first, second = (self._as_styles(x, labels) for x in (coarse, fine))
        return self(latents=torch.cat([first[:, :crossover], second[:, crossover:]], 1), **kwargs)

    def _as_styles(self, latents: Tensor, class_labels: Any) -> Tensor:
        self._check_latents(latents)
        return latents if latents.ndim == 3 else self.styles(latents, class_labels)

    # -- classes

    @torch.no_grad()
    def interpolate_classes(
        self,
        latents: Tensor,
        first: int,
        last: int,
        steps: int = 8,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> ImagePipelineOutput | tuple[Any]:
        """One latent on the way from a class to another, by mixing the classes' embeddings (Miyato
        & Koyama 2018, figure 7).

        Args:
            latents: z [B, latent_dim].
            first, last: the two classes.
            steps: images on each way, both ends included.
        Returns:
            B * steps images, latent by latent.
        """
        if steps < 2:
            raise ValueError(f"steps={steps}: must be at least 2")
        check_latents(latents, self.latent_shape)
        device = self._execution_device
        ends = check_labels([first, last], self.num_classes, 2, device)
        one_hot = F.one_hot(torch.as_tensor(ends), self.num_classes or 1).float()
        share = torch.linspace(0, 1, steps, device=device)[:, None]
        way = (1 - share) * one_hot[0] + share * one_hot[1]
        weights = way.repeat(len(latents), 1).to(self.generator.dtype)
        z = latents.to(device).repeat_interleave(steps, 0)
        return self._finish(z, weights, output_type, return_dict)

    # -- directions

    @torch.no_grad()
    def directions(
        self,
        num_directions: int = 8,
        method: str = "sefa",
        class_labels: int | None = None,
        num_samples: int = 512,
    ) -> Tensor:
        """Directions along which images change most, [num_directions, latent_dim], or [...,
        style_dim] in W for a generator with styles; rows of length 1, the strongest first.

        Args:
            method: "sefa": right singular vectors of the first weights that latents meet (Shen &
                Zhou 2021, equation 5). "pca": with styles, principal components of w; otherwise the
                change of z that goes with the principal components of the images, by linear
                regression (Harkonen et al. 2020, GANSpace, section 2.1, with the image as layer).
            class_labels: for "pca" of a conditional generator: one class.
            num_samples: for "pca": draws, from a fixed seed.
        """
        size = self.style_shape[1] if self.has_styles else self.latent_shape[0]
        if not 1 <= num_directions <= size:
            raise ValueError(f"num_directions={num_directions}: must be from 1 to {size}")
        if method == "sefa":
            weight = getattr(self.generator, "style_weight" if self.has_styles else "latent_weight")
            return torch.linalg.svd(weight.float(), full_matrices=False).Vh[:num_directions]
        if method != "pca":
            raise ValueError(f"method={method!r} is unknown; valid: sefa, pca")
        if num_samples <= num_directions:
            raise ValueError(f"num_samples={num_samples}: must be above {num_directions}")
        fixed = torch.Generator().manual_seed(0)
        z = torch.randn(num_samples, *self.latent_shape, generator=fixed)
        if self.has_styles:
            return _components(self.styles(z, class_labels)[:, 0], num_directions)[1]
        labels = {} if class_labels is None else {"class_labels": class_labels}
        images: Any = self(latents=z, output_type="pt", **labels)
        coordinates, _ = _components(images.images.flatten(1), num_directions)
        change = torch.linalg.lstsq(coordinates, z - z.mean(0)).solution
        return F.normalize(change, dim=1)

    def move(
        self,
        latents: Tensor,
        direction: Tensor,
        strengths: Sequence[float] = (-3, -2, -1, 0, 1, 2, 3),
        **kwargs: Any,
    ) -> ImagePipelineOutput | tuple[Any]:
        """Images along a direction of ``directions``: latent + strength * direction.

        Args:
            latents: z, or w with styles, [B, ...]; with styles, z is turned into w first.
            direction: [latent_dim], or [style_dim].
            strengths: how far, image by image.
            **kwargs: ``class_labels``, ``output_type``, ``return_dict``.
        Returns:
            B * len(strengths) images, latent by latent.
        """
        if self.has_styles:
            latents = self._as_styles(latents, kwargs.pop("class_labels", None))
        self._check_latents(latents)
        if tuple(direction.shape) != (latents.shape[-1],):
            raise ValueError(
                f"direction of shape {list(direction.shape)}: must be [{latents.shape[-1]}]"
            )
        steps = torch.as_tensor(strengths, dtype=latents.dtype)[:, None] * direction.cpu()
        steps = steps.to(latents).reshape(1, len(steps), *[1] * (latents.ndim - 2), -1)
        return self(latents=(latents[:, None] + steps).flatten(0, 1), **kwargs)

    # -- inversion

    def invert(
        self,
        images: Any,
        class_labels: Any = None,
        *,
        steps: int = 200,
        learning_rate: float = 0.05,
        feature_weight: float = 0.1,
        features: Features | None = None,
        num_candidates: int = 64,
        generator: Generators = None,
    ) -> InversionOutput:
        """The latents of given images, by optimisation (Abdal et al. 2019, Image2StyleGAN, in W+
        where there are styles; Zhu et al. 2016 in z).

        Minimised is the mean squared error of pixels plus ``feature_weight`` times that of
        features, relative to the features' mean square, by Adam, from the best of some random
        latents. The best point on the way is kept, so that the error never exceeds the start's.

        Args:
            images: PIL images, an array [B, H, W, C] or a tensor [B, C, H, W] in [0, 1].
            class_labels: one label, or one per image, for a class-conditional model.
            steps: of Adam.
            learning_rate: of Adam, falling to zero along a cosine.
            feature_weight: 0 for pixels alone.
            features: a differentiable network, say of LPIPS; by default the discriminator's last
                features, where the pipeline has one.
            num_candidates: random latents of which each image starts from its best.
            generator: of these candidates.
        Raises:
            ValueError: images of another size, labels that do not fit, a number out of range.
        """
        for name, value in (("steps", steps), ("num_candidates", num_candidates)):
            if value < 1:
                raise ValueError(f"{name}={value}: must be at least 1")
        if learning_rate <= 0 or feature_weight < 0:
            raise ValueError(
                f"learning_rate={learning_rate} and feature_weight={feature_weight}: must be "
                f"positive and at least 0"
            )
        config, device = self.generator.config, self._execution_device
        shape = (config["out_channels"], config["sample_size"], config["sample_size"])
        target = to_tensor(images, shape, device)
        labels = check_labels(class_labels, self.num_classes, len(target), device)
        distance = _Distance(target, features or self._features(labels), feature_weight)
        latents = self._best_candidates(distance, labels, num_candidates, generator)
        return self._descend(latents, distance, labels, steps, learning_rate)

    def _features(self, labels: Tensor | None) -> Features | None:
        """The discriminator's, with the labels where it takes some."""
        if self.discriminator is None:
            return None
        known = None if self.discriminator.config.get("num_class_embeds") is None else labels
        return lambda x: self.discriminator(x.to(self.discriminator.dtype), known).features

    @torch.no_grad()
    def _best_candidates(
        self, distance: _Distance, labels: Tensor | None, number: int, generator: Generators
    ) -> Tensor:
        rows, device = len(distance.target), self._execution_device
        best = torch.full((rows,), torch.inf, device=device)
        chosen = torch.zeros(rows, *self.latent_shape, device=device)
        for _ in range(number):
            z = draw_latents(rows, self.latent_shape, generator, device)
            error = distance(self._decode(z, labels).float())
            chosen = torch.where((error < best)[:, None], z, chosen)
            best = torch.minimum(error, best)
        return self.styles(chosen, labels) if self.has_styles else chosen

    @torch.enable_grad()
    def _descend(
        self, start: Tensor, distance: _Distance, labels: Tensor | None, steps: int, rate: float
    ) -> InversionOutput:
        x = start.clone().requires_grad_(True)
        optimizer = torch.optim.Adam([x], rate)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        best = torch.full((len(x),), torch.inf, device=x.device)
        kept, error = start.clone(), best.clone()
        pipeline: Any = self  # the decorator of progress_bar hides its type
        for _ in pipeline.progress_bar(range(steps + 1)):
            images = self._decode(x, labels).float()
            value = distance(images)
            with torch.no_grad():
                better = value < best
                best = torch.where(better, value, best)
                kept[better] = x[better]
                error[better] = distance.pixels(images.clamp(-1, 1))[better]
            (x.grad,) = torch.autograd.grad(value.sum(), x)
            optimizer.step()
            schedule.step()
        self.maybe_free_model_hooks()
        return InversionOutput(latents=kept, error=error)


class _Distance:
    """Per image: mean squared error of pixels + weight * relative squared error of features."""

    def __init__(self, target: Tensor, features: Features | None, weight: float):
        self.target, self.weight = target, weight
        self.features = features if weight else None
        with torch.no_grad():
            self.wanted = None if self.features is None else self.features(target).float()

    def pixels(self, images: Tensor) -> Tensor:
        return (images - self.target).square().flatten(1).mean(1)

    def __call__(self, images: Tensor) -> Tensor:
        error = self.pixels(images)
        if self.features is None or self.wanted is None:
            return error
        change = (self.features(images).float() - self.wanted).square().flatten(1).mean(1)
        return error + self.weight * change / (self.wanted.square().mean() + 1e-8)


def _components(rows: Tensor, number: int) -> tuple[Tensor, Tensor]:
    """Coordinates [N, number] and principal directions [number, D] of rows [N, D]."""
    centred = rows.float() - rows.float().mean(0)
    u, s, vh = torch.linalg.svd(centred, full_matrices=False)
    return u[:, :number] * s[:number], vh[:number]
