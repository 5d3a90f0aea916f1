"""Denoising: path x prediction x time sampling x weighting.

    t ~ time,   n ~ N(0, I),   x_t = alpha(t) x + sigma(t) n,   loss = weight(t) |network(x_t, t) -
    target|^2

The path and the prediction are those of the ``scheduler`` that samples the exported network, so the
two always match. DDPM is this with a ``DDPMScheduler`` and the defaults; EDM, rectified flow,
v-prediction and the rest are recipes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from hfgen.chain import Chain, split_variance
from hfgen.denoising import Parameterisation, like_image, parameterisation, run_network
from hfgen.errors import HfgenError
from hfgen.objectives.base import Batch, Clock, Objective, Phase, detach
from hfgen.objectives.diffusion_couplings import Coupling, IndependentCoupling
from hfgen.objectives.diffusion_importance import LossHistory
from hfgen.objectives.diffusion_times import TimeSampler, UniformTime
from hfgen.objectives.diffusion_weightings import (
    LearnedWeight,
    LogVariance,
    UniformWeight,
    Weighting,
)
from hfgen.rng import Rng


@dataclass(frozen=True, kw_only=True)
class Diffusion(Objective):
    """One phase that trains ``network`` to denoise, on the path of ``models["scheduler"]``.

    Args:
        network: the role that is trained: ``unet``, or ``transformer`` for a DiT.
        time: which noise levels are trained on.
        weighting: how much each level's error counts.
        importance: draw noise levels in proportion to the root mean square of their loss, and
            weigh them by the inverse (Nichol & Dhariwal 2021, eq. 18).
        bound_weight: weight of the variational bound (nats per dimension, times the steps) for a
            network with a learned variance: ``out_channels`` twice the image's, and a scheduler
            with ``variance_type: learned_range`` (Nichol & Dhariwal 2021, eq. 16).
        coupling: which noise goes with which image.
        label_dropout: share of the labels that is replaced by the null label, for classifier-free
            guidance (Ho & Salimans 2022). The null label is the network's last class: set
            ``num_class_embeds`` to classes + 1.
        self_conditioning: share of the rows that are told the image of a first evaluation, 0.5 in
            the paper (Chen et al. 2023, "Analog bits", section 3.2); the others are told zeros. The
            network takes twice the channels: set its ``in_channels``.
    """

    network: str = "unet"
    time: TimeSampler = field(default_factory=UniformTime)
    weighting: Weighting = field(default_factory=UniformWeight)
    importance: bool = False
    bound_weight: float = 1e-3
    coupling: Coupling = field(default_factory=IndependentCoupling)
    label_dropout: float = 0.0
    self_conditioning: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.label_dropout < 1:
            raise HfgenError(f"label_dropout must be in [0, 1), got {self.label_dropout}")
        if not 0 <= self.self_conditioning <= 1:
            raise HfgenError(f"self_conditioning must be in [0, 1], got {self.self_conditioning}")

    @property
    def phases(self) -> tuple[Phase, ...]:
        learned = ("log_variance",) if isinstance(self.weighting, LearnedWeight) else ()
        return (Phase(name="denoise", trains=(self.network, *learned)),)

    def extra_models(self) -> dict[str, nn.Module]:
        learned = isinstance(self.weighting, LearnedWeight)
        weight: dict[str, nn.Module] = {"log_variance": LogVariance()} if learned else {}
        return {**weight, **({"loss_history": LossHistory()} if self.importance else {})}

    def loss(
        self, phase: str, models: Mapping[str, nn.Module], batch: Batch, rng: Rng, clock: Clock
    ) -> tuple[Tensor, dict[str, Tensor]]:
        param = scheduler_parameterisation(models)
        network = models[self.network]
        labels = class_labels(network, batch, rng, self.label_dropout)
        x, noise = self.pairs(models, param, batch, rng)
        u, kept = self._shares(models, rng, len(x), clock)
        t = self.time.at(u, param.path)
        x_t = param.path.add_noise(x, noise, t)
        seen = self._seen(network, param, x_t, t, labels, rng)
        output, raw = split_variance(predict(network, param, x_t, t, labels, seen), x.shape[1])
        error = per_image_error(output, param.target(x, noise, t))
        rows, terms = self._weighted(models, param, t, error), {"mse": error.mean()}
        if raw is not None:
            chain = Chain.of(learned_range(models)).to(x.device)
            estimate = param.denoised(output.detach(), x_t, t)  # the bound trains the variance only
            bound = chain.step_bound(x.double(), x_t, estimate, raw, t) / x[0].numel()
            bound = (bound * len(chain.image)).float()
            rows, terms["bound"] = rows + self.bound_weight * bound, (kept * bound).mean()
        if self.importance:
            cast(LossHistory, models["loss_history"]).add(u, rows.detach(), clock.step)
        loss = (kept * rows).mean()
        return loss, detach({"loss": loss, **terms})

    def pairs(
        self, models: Mapping[str, nn.Module], param: Parameterisation, batch: Batch, rng: Rng
    ) -> tuple[Tensor, Tensor]:
        """Images and the noise that goes with each, both [B, C, H, W]."""
        x = batch["images"]
        return x, self.coupling.pair(x, rng.randn("noise", x.shape), batch.get("labels"))

    def _shares(
        self, models: Mapping[str, nn.Module], rng: Rng, batch: int, clock: Clock
    ) -> tuple[Tensor, Tensor]:
        """Shares of the time distribution [B], and the weight of each row [B]."""
        u = self.time.shares(rng, batch, clock.total_batch_size)
        if not self.importance:
            return u, torch.ones_like(u)
        return cast(LossHistory, models["loss_history"]).warp(u, clock.step)

    def _seen(
        self,
        network: nn.Module,
        param: Parameterisation,
        x_t: Tensor,
        t: Tensor,
        labels: Tensor | None,
        rng: Rng,
    ) -> Tensor | None:
        """What a self-conditioned network is told: its own first image, or zeros."""
        if self.self_conditioning == 0:
            return None
        nothing = torch.zeros_like(x_t)
        with torch.no_grad():
            output = predict(network, param, x_t, t, labels, nothing)
            first = param.denoised(split_variance(output, x_t.shape[1])[0], x_t, t)
        told = rng.rand("self_conditioning", (len(x_t),)) < self.self_conditioning
        return torch.where(like_image(told, x_t), first, nothing)

    def _weighted(
        self, models: Mapping[str, nn.Module], param: Parameterisation, t: Tensor, error: Tensor
    ) -> Tensor:
        """The loss of each row [B]."""
        alpha, sigma = param.path.alpha_sigma(t)
        rows = self.weighting.weight(alpha, sigma, param.prediction) * error
        if not isinstance(self.weighting, LearnedWeight):
            return rows
        log_variance = models["log_variance"](alpha, sigma)
        return rows * torch.exp(-log_variance) + log_variance


def scheduler_parameterisation(models: Mapping[str, Any]) -> Parameterisation:
    """``parameterisation`` of the recipe's scheduler; HfgenError where the recipe has none, or one
    that cannot train.
    """
    if "scheduler" not in models:
        raise HfgenError(
            "model.scheduler: missing; diffusion needs one, e.g. scheduler: {type: DDPMScheduler}"
        )
    try:
        return parameterisation(models["scheduler"])
    except ValueError as error:
        raise HfgenError(f"model.scheduler: {error}") from error


def learned_range(models: Mapping[str, Any]) -> Any:
    """The recipe's scheduler, which samples with the variance that the network puts out."""
    scheduler = models["scheduler"]
    kind = scheduler.config.get("variance_type")
    if kind != "learned_range":
        raise HfgenError(
            f"model.scheduler: variance_type {kind!r} for a network that puts out a variance too; "
            "set variance_type: learned_range, or out_channels to the data's"
        )
    return scheduler


def predict(
    network: nn.Module,
    param: Parameterisation,
    x_t: Tensor,
    t: Tensor,
    labels: Tensor | None,
    seen: Tensor | None = None,
) -> Tensor:
    """The network's output, float32, for noisy images ``x_t`` [B, C, H, W] at times ``t`` [B]."""
    check_channels(network, x_t if seen is None else torch.cat([x_t, seen], dim=1))
    sample, time = param.path.model_input(x_t, t)
    return run_network(network, sample, time, labels, seen=seen).float()


def check_channels(network: nn.Module, sample: Tensor) -> None:
    """HfgenError where ``network`` takes another number of channels than ``sample`` [B, C, H, W]
    has.
    """
    config: Any = network.config
    given = sample.shape[1]
    if config.get("in_channels", given) != given:
        raise HfgenError(
            f"the network takes {config['in_channels']} channel(s), but is given {given}; set its "
            "in_channels to the data's (twice that many with self_conditioning)"
        )


def per_image_error(output: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of each image [B]."""
    if output.shape != target.shape:
        raise HfgenError(
            f"the network puts out {list(output.shape[1:])} for images of "
            f"{list(target.shape[1:])}; "
            "set its out_channels and sample_size to the data's"
        )
    return (output - target).square().flatten(1).mean(1)


def class_count(network: nn.Module) -> int | None:
    """How many labels ``network`` knows, a null label included; None for an unconditional one."""
    config: Any = network.config
    if config.get("num_class_embeds") is not None:
        return config["num_class_embeds"]
    classes = config.get("num_embeds_ada_norm")  # DiT adds its null label to them itself
    return None if classes is None else classes + 1


def class_labels(network: nn.Module, batch: Batch, rng: Rng, dropout: float) -> Tensor | None:
    """Labels [B] for ``network``, a share ``dropout`` of them its last class; None without."""
    count = class_count(network)
    if count is None:
        if dropout > 0:
            raise HfgenError(
                f"label_dropout {dropout}: the network is unconditional; set its num_class_embeds"
            )
        return None
    if "labels" not in batch:
        raise HfgenError(f"the network has {count} classes, but the data has no labels")
    labels, null = batch["labels"], count - 1
    known = null if dropout > 0 else count
    if int(labels.max()) >= known:
        spare = " besides the null label" if dropout > 0 else ""
        raise HfgenError(
            f"label {int(labels.max())} in the data; the network knows {known} classes{spare} "
            f"(num_class_embeds {count})"
        )
    if dropout == 0:
        return labels
    drop = rng.rand("label_dropout", labels.shape) < dropout
    return torch.where(drop, torch.full_like(labels, null), labels)
