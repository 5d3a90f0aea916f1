"""Images from a denoising network on pixels or latents: guided, edited, inverted."""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from diffusers import (
    DiffusionPipeline,
    FlowMapEulerDiscreteScheduler,
    ImagePipelineOutput,
    ModelMixin,
    SchedulerMixin,
    ScoreSdeVeScheduler,
)
from torch import Tensor

from ..denoising import parameterisation, run_network  # pyright: ignore[reportMissingImports]
from ..probability_flow import Network, ProbabilityFlow, ancestral, diffuse, rk45, rotate  # pyright: ignore[reportMissingImports]
from ._autoencoder import decode_latents, encode_images, latent_channels
from ._common import (
    Generators,
    check_batch,
    check_labels,
    check_latents,
    check_output_type,
    draw_latents,
    interpolate_latents,
    to_output,
    to_tensor,
)
from ._self_contained import SelfContainedMixin

SOLVERS = ("scheduler", "rk45")


class DenoisingPipeline(SelfContainedMixin, DiffusionPipeline):
    """Diffusion and flow models, with or without classes, on any path of ``denoising``.

    Where the model is unconditional and only sampled from, the stock ``DDPMPipeline`` does too, or
    ``LDMPipeline`` on latents.

    Args:
        unet: ``forward(sample, timestep, class_labels)`` with ``.sample``; its config has
            ``sample_size``, ``in_channels`` and, with classes, ``num_class_embeds``.
        scheduler: the diffusers scheduler that ``unet`` was trained for, or a compatible one.
        guide: a weaker network of the same kind for autoguidance (Karras et al. 2024).
        vae: the autoencoder whose scaled latents ``unet`` denoises; None for pixels.
        label_dropout: share of labels that were dropped in training; above 0, the last class is the
            null label, and classifier-free guidance is possible.
        decoder_likelihood: what the autoencoder's output means; None for the image itself.
        self_conditioning: above 0, ``unet`` was trained on its own earlier images too, and takes
            twice the channels; each evaluation is told the image of the one before.
    """

    model_cpu_offload_seq = "unet->vae"
    _optional_components = ["guide", "vae"]
    _exclude_from_cpu_offload = ["guide"]

    def __init__(
        self,
        unet: ModelMixin,
        scheduler: SchedulerMixin,
        guide: ModelMixin | None = None,
        vae: ModelMixin | None = None,
        label_dropout: float = 0.0,
        decoder_likelihood: dict | None = None,
        self_conditioning: float = 0.0,
    ):
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler, guide=guide, vae=vae)
        self.register_to_config(
            label_dropout=label_dropout,
            decoder_likelihood=decoder_likelihood,
            self_conditioning=self_conditioning,
        )
        _check_latent_channels(vae, self.latent_shape[0])

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """[C, H, W] of the noise: of the images, or of their latents."""
        size = self.unet.config["sample_size"]
        channels = self.unet.config["in_channels"]
        return (channels // 2 if self.config["self_conditioning"] else channels, size, size)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """[C, H, W] of the images."""
        if self.vae is None:
            return self.latent_shape
        with torch.no_grad():
            z = torch.zeros(1, *self.latent_shape, device=self._execution_device)
            image = self._decode(z)
        return (image.shape[1], image.shape[2], image.shape[3])

    @property
    def num_classes(self) -> int | None:
        """Number of classes that the model is conditioned on, the null label left out."""
        count = self.unet.config.get("num_class_embeds")
        return count - 1 if count is not None and self.config["label_dropout"] > 0 else count

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int = 1,
        generator: Generators = None,
        class_labels: int | Sequence[int] | Tensor | None = None,
        negative_class_labels: int | Sequence[int] | Tensor | None = None,
        guidance_scale: float = 1.0,
        guidance_interval: tuple[float, float] = (0.0, math.inf),
        num_inference_steps: int = 50,
        latents: Tensor | None = None,
        solver: str = "scheduler",
        tolerance: float = 1e-3,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> ImagePipelineOutput | tuple[Any]:
        """Draw images.

        Args:
            batch_size: number of images; that of ``latents`` where they are given.
            generator: one for the batch, or a list of one per image.
            class_labels: one label, or one per image, for a class-conditional model.
            negative_class_labels: guide away from these classes instead of from no class.
            guidance_scale: w in ``other + w (conditional - other)`` (Ho & Salimans 2022); ``other``
                is the null label or the negative class, or ``guide``, where there is one. 1 is off.
            guidance_interval: noise levels sigma / alpha at which guidance is on (Kynkaanniemi et
                al. 2024).
            num_inference_steps: steps of the scheduler.
            latents: [B, C, H, W] standard normal noise to use instead of drawing some.
            solver: "scheduler", or "rk45": the probability-flow ODE by adaptive Runge-Kutta.
            tolerance: relative and absolute error of a step of "rk45".
            output_type: "pil", "np" [B, H, W, C] or "pt" [B, C, H, W] in [0, 1], or "latent".
            return_dict: an ``ImagePipelineOutput``, or a tuple of one.
        Raises:
            ValueError: an argument that does not fit the model or the others.
        """
        check_output_type(output_type)
        batch_size = batch_size if latents is None else len(latents)
        check_batch(batch_size, generator)
        if solver not in SOLVERS:
            raise ValueError(f"solver={solver!r} is unknown; valid: {', '.join(SOLVERS)}")
        _check_steps(num_inference_steps)
        network = self._guided(
            batch_size, class_labels, negative_class_labels, guidance_scale, guidance_interval
        )
        if latents is None:
            latents = draw_latents(batch_size, self.latent_shape, generator, self._execution_device)
        check_latents(latents, self.latent_shape)
        z = latents.to(self._execution_device)
        if solver == "rk45":
            flow = ProbabilityFlow(parameterisation(self.scheduler), network)
            clean, dirty = flow.ends
            z, _ = rk45(flow.velocity, z, dirty, clean, tolerance, tolerance)
        elif isinstance(self.scheduler, ScoreSdeVeScheduler):
            z = self._predict_and_correct(network, z, num_inference_steps, generator)
        else:
            z = self._run_scheduler(network, z, num_inference_steps, generator)
        return self._finish(z, output_type, return_dict)

    @torch.no_grad()
    def edit(
        self,
        image: Any,
        mask: Tensor | None = None,
        strength: float = 0.6,
        resample: int = 1,
        generator: Generators = None,
        class_labels: int | Sequence[int] | Tensor | None = None,
        negative_class_labels: int | Sequence[int] | Tensor | None = None,
        guidance_scale: float = 1.0,
        guidance_interval: tuple[float, float] = (0.0, math.inf),
        num_inference_steps: int = 50,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> ImagePipelineOutput | tuple[Any]:
        """Add noise to images and denoise them again; with ``mask``, only where it is 1.

        SDEdit (Meng et al. 2022) without a mask, RePaint (Lugmayr et al. 2022, algorithm 1, jumps
        of one step) with one. Ancestral steps, whatever the scheduler.

        Args:
            image: PIL images, an array [B, H, W, C] or a tensor [B, C, H, W] in [0, 1].
            mask: [B or 1, 1, H, W], 1 where new content goes; the rest is kept. On latents the
                nearest of their cells.
            strength: share of the path that noise is added for, in (0, 1].
            resample: how often each step is taken (RePaint's U), to harmonise both parts.
            generator ... return_dict: as for drawing images.
        Raises:
            ValueError: an argument that does not fit the model or the others.
        """
        check_output_type(output_type)
        _check_steps(num_inference_steps)
        device = self._execution_device
        known = self._encode(image)
        check_batch(len(known), generator)
        if not 0 < strength <= 1:
            raise ValueError(f"strength={strength}: must be above 0 and at most 1")
        if resample < 1:
            raise ValueError(f"resample={resample}: must be at least 1")
        mask = _check_mask(mask, known, self.image_shape)
        network = self._guided(
            len(known), class_labels, negative_class_labels, guidance_scale, guidance_interval
        )
        flow = ProbabilityFlow(parameterisation(self.scheduler), network)
        grid = self._levels(flow, num_inference_steps, strength)

        def fresh() -> Tensor:
            return draw_latents(len(known), self.latent_shape, generator, device)

        z = rotate(known, fresh(), grid[0])
        pairs = list(zip(grid[:-1], grid[1:], strict=True))
        pipeline: Any = self  # the decorator of progress_bar hides its type
        for start, end in pipeline.progress_bar(pairs):
            for again in range(resample):
                seen, _ = flow.split(z, start)
                seen = seen.clamp(-1, 1) if self.vae is None else seen
                new = ancestral(seen, z, start, end, fresh())
                new = mask * new + (1 - mask) * rotate(known, fresh(), end)
                z = new if again == resample - 1 else diffuse(new, end, start, fresh())
        z = mask * z + (1 - mask) * known
        return self._finish(z, output_type, return_dict)

    @torch.no_grad()
    def invert(
        self,
        image: Any,
        class_labels: int | Sequence[int] | Tensor | None = None,
        tolerance: float = 1e-3,
    ) -> Tensor:
        """The noise [B, C, H, W] that ``solver="rk45"`` turns into ``image`` (DDIM inversion).

        The probability-flow ODE from image to noise; args as in ``edit``, and the tolerance as for
        drawing. ``self(latents=...)`` makes the image again, with another class if so wished.
        """
        known = self._encode(image)
        network = self._guided(len(known), class_labels, None, 1.0, (0.0, math.inf))
        flow = ProbabilityFlow(parameterisation(self.scheduler), network)
        clean, dirty = flow.ends
        return rk45(flow.velocity, known, clean, dirty, tolerance, tolerance)[0]

    def interpolate(
        self, a: Tensor, b: Tensor, steps: int = 8, mode: str = "spherical", **kwargs: Any
    ) -> ImagePipelineOutput | tuple[Any]:
        """Images on the way from the noise ``a`` to ``b`` [B, C, H, W], both ends included.

        Args:
            steps: images on each path.
            mode: "spherical" or "linear".
            **kwargs: as for drawing images; with a deterministic scheduler or "rk45".
        Returns:
            B * steps images, path by path.
        """
        check_latents(a, self.latent_shape)
        return self(latents=interpolate_latents(a, b, steps, mode), **kwargs)

    def _guided(
        self,
        batch_size: int,
        class_labels: int | Sequence[int] | Tensor | None,
        negative_class_labels: int | Sequence[int] | Tensor | None,
        scale: float,
        interval: tuple[float, float],
    ) -> Network:
        """The network under its conditions: (input, time) -> output."""
        device = self._execution_device
        labels = check_labels(class_labels, self.num_classes, batch_size, device)
        if scale == 1.0:
            return self._conditioned(self.unet, labels)
        other = self._other_labels(negative_class_labels, labels, batch_size)
        weaker = self.guide if self.guide is not None else self.unet
        path, (low, high) = parameterisation(self.scheduler).path, interval
        guided, away = self._conditioned(self.unet, labels), self._conditioned(weaker, other)

        def network(sample: Tensor, time: Tensor, second: Tensor | None = None) -> Tensor:
            output = guided(sample, time, second)
            alpha, sigma = path.alpha_sigma(path.from_model_time(time[:1]))
            if not low * alpha < sigma <= high * alpha:
                return output
            base = away(sample, time, second)
            return base + scale * (output - base)

        return network

    def _other_labels(
        self,
        negative: int | Sequence[int] | Tensor | None,
        labels: Tensor | None,
        batch_size: int,
    ) -> Tensor | None:
        """Labels of what guidance leads away from."""
        if negative is not None:
            return check_labels(negative, self.num_classes, batch_size, self._execution_device)
        if self.guide is not None:
            return labels
        if labels is None or self.config["label_dropout"] == 0:
            raise ValueError(
                "guidance_scale: the model has no null label to guide away from (trained without "
                "classes or label_dropout); valid: guidance_scale=1, a negative class, or a guide"
            )
        return torch.full_like(labels, self.unet.config["num_class_embeds"] - 1)

    def _conditioned(self, network: Any, labels: Tensor | None) -> Any:
        """The network under labels: (input, time, second time) -> output, float32."""
        if not self.config["self_conditioning"]:
            return partial(self._forward, network, labels)
        param, seen = parameterisation(self.scheduler), None

        def call(sample: Tensor, time: Tensor, second: Tensor | None = None) -> Tensor:
            nonlocal seen
            seen = torch.zeros_like(sample) if seen is None else seen
            output = self._forward(network, labels, sample, time, second, seen)
            seen = param.denoised_input(output[:, : sample.shape[1]], sample, time).to(sample)
            return output

        return call

    def _forward(
        self,
        network: Any,
        labels: Tensor | None,
        sample: Tensor,
        time: Tensor,
        second: Tensor | None = None,
        seen: Tensor | None = None,
    ) -> Tensor:
        sample = sample.to(network.dtype)
        return run_network(network, sample, time, labels, second, seen).float()

    def _run_scheduler(
        self, network: Network, z: Tensor, steps: int, generator: Generators
    ) -> Tensor:
        scheduler: Any = self.scheduler
        scheduler.set_timesteps(steps, device=z.device)
        random = "generator" in inspect.signature(scheduler.step).parameters
        options = {"generator": generator} if random else {}
        flow_map = isinstance(scheduler, FlowMapEulerDiscreteScheduler)
        scale = getattr(scheduler, "scale_model_input", lambda sample, timestep: sample)
        x = z * getattr(scheduler, "init_noise_sigma", 1.0)
        pipeline: Any = self  # the decorator of progress_bar hides its type
        ends = [*scheduler.timesteps[1:], torch.zeros_like(scheduler.timesteps[0])]
        for t, end in pipeline.progress_bar(list(zip(scheduler.timesteps, ends, strict=True))):
            rows = t.expand(len(x))
            output = network(scale(x, t), rows, *([end.expand(len(x))] if flow_map else []))
            x = scheduler.step(output, t, x, **options).prev_sample
        return x

    def _predict_and_correct(
        self, network: Network, z: Tensor, steps: int, generator: Generators
    ) -> Tensor:
        """An ancestral step after Langevin steps at every level (Song et al. 2021, algorithm 2).

        A Langevin step is as long as the scores of the whole batch say, as in the scheduler: here
        alone an image depends on its neighbours.
        """
        if steps < 2:
            raise ValueError(f"num_inference_steps={steps}: ScoreSdeVeScheduler takes at least 2")
        scheduler: Any = self.scheduler
        scheduler.set_timesteps(steps, device=z.device)
        scheduler.set_sigmas(steps)
        x = mean = z * scheduler.init_noise_sigma
        pipeline: Any = self  # the decorator of progress_bar hides its type
        levels = list(zip(scheduler.timesteps, scheduler.sigmas.to(x), strict=True))
        for t, sigma in pipeline.progress_bar(levels):
            rows = sigma.expand(len(x))
            for _ in range(scheduler.config.correct_steps):
                x = scheduler.step_correct(network(x, rows), x, generator=generator).prev_sample
            step = scheduler.step_pred(network(x, rows), t, x, generator=generator)
            x, mean = step.prev_sample, step.prev_sample_mean
        return mean

    def _levels(self, flow: ProbabilityFlow, steps: int, strength: float) -> Tensor:
        """phi from noisy to clean, evenly spaced in the path's own time."""
        path = flow.param.path
        shares = torch.linspace(strength, 0, steps + 1, dtype=torch.float64).clamp(max=1 - 1e-6)
        alpha, sigma = path.alpha_sigma(path.at(shares))
        low, high = flow.ends
        return torch.atan2(sigma, alpha).double().clamp(low, high)

    def _encode(self, image: Any) -> Tensor:
        """Images of any type -> what is denoised, [B, *latent_shape]."""
        pixels = to_tensor(image, self.image_shape, self._execution_device)
        return pixels if self.vae is None else encode_images(self.vae, pixels)

    def _decode(self, latents: Tensor) -> Tensor:
        """What has been denoised -> images in [-1, 1]."""
        if self.vae is None:
            return latents
        return decode_latents(self.vae, latents, self.config["decoder_likelihood"])

    def _finish(
        self, x: Tensor, output_type: str, return_dict: bool
    ) -> ImagePipelineOutput | tuple[Any]:
        images: Any = x if output_type == "latent" else to_output(self._decode(x), output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)


def _check_steps(steps: int) -> None:
    if steps < 1:
        raise ValueError(f"num_inference_steps={steps}: must be at least 1")


def _check_latent_channels(vae: Any, channels: int) -> None:
    has = None if vae is None else latent_channels(vae)
    if has is not None and has != channels:
        raise ValueError(
            f"vae: {type(vae).__name__} has latents of {has} channels, the unet takes {channels}: "
            "not the autoencoder that it was trained on"
        )


def _check_mask(mask: Tensor | None, known: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """[B, 1, h, w] in [0, 1], of the size of ``known``; all ones without a mask."""
    if mask is None:
        return torch.ones_like(known[:, :1])
    mask = torch.as_tensor(mask, dtype=torch.float32, device=known.device)
    if mask.ndim != 4 or mask.shape[1] != 1 or mask.shape[2:] != shape[1:]:
        raise ValueError(
            f"mask of shape {list(mask.shape)}: must be [B, 1, {shape[1]}, {shape[2]}]"
        )
    mask = torch.nn.functional.interpolate(mask, known.shape[2:], mode="nearest")
    return mask.expand(len(known), -1, -1, -1)
