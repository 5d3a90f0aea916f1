"""Flow maps: networks u(x_t, t, r) that put out the average velocity from t to r, for few steps.

x_r = x_t - (t - r) u(x_t, t, r) on the linear path, so one call with r = 0 makes an image. At
r = t, u is the velocity that rectified flow learns. The network has two times (``second_time``);
``FlowMapEulerDiscreteScheduler`` takes exactly these steps.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from hfgen.denoising import LinearPath, like_image, run_network
from hfgen.errors import HfgenError
from hfgen.objectives.base import Batch, Clock, Objective, Phase, detach
from hfgen.objectives.diffusion import (
    check_channels,
    class_labels,
    per_image_error,
    scheduler_parameterisation,
)
from hfgen.rng import Rng

FlowMap = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(x_t [B, C, H, W], t [B], r [B]) -> average velocity [B, C, H, W]."""


class FlowMapTarget(ABC):
    """What u(x_t, t, r) is regressed on, given the velocity at t."""

    @abstractmethod
    def times(self, rng: Rng, batch: int) -> tuple[Tensor, Tensor]:
        """t and r [batch] with 0 <= r <= t <= 1."""

    @abstractmethod
    def target(self, u: FlowMap, x_t: Tensor, t: Tensor, r: Tensor, velocity: Tensor) -> Tensor:
        """The target, without gradient; equals ``velocity`` where r = t."""


@dataclass(frozen=True, kw_only=True)
class MeanFlowTarget(FlowMapTarget):
    """MeanFlow (Geng et al. 2025, eq. 6): v - (t - r) du/dt along the path.

    du/dt is the derivative of u along (v, 1, 0), exact by forward-mode differentiation ("jvp"), or
    a central difference ("difference"), which runs on any network and in any precision and costs
    two evaluations without gradient.

    Args:
        mean, std: t and r are the larger and the smaller of two sigmoid(N(mean, std^2)).
        instantaneous: share of rows with r = t.
        derivative: how du/dt is computed.
        step: half width of the difference, in t.
        improved: differentiate along the network's own velocity u(x_t, t, t) rather than along the
            noisy n - x (improved MeanFlow, Geng et al. 2025b).
    """

    mean: float = -0.4
    std: float = 1.0
    instantaneous: float = 0.5
    derivative: Literal["jvp", "difference"] = "jvp"
    step: float = 0.005
    improved: bool = False

    def times(self, rng: Rng, batch: int) -> tuple[Tensor, Tensor]:
        pair = torch.sigmoid(self.mean + self.std * rng.randn("t", (batch, 2)))
        t, r = pair.amax(1), pair.amin(1)
        still = rng.rand("instantaneous", (batch,)) < self.instantaneous
        return t, torch.where(still, t, r)

    def target(self, u: FlowMap, x_t: Tensor, t: Tensor, r: Tensor, velocity: Tensor) -> Tensor:
        with torch.no_grad():
            along = u(x_t, t, t) if self.improved else velocity
            if self.derivative == "jvp":
                change = _jvp(u, x_t, t, r, along)
            else:
                change = _difference(u, x_t, t, r, along, self.step)
        if not bool(change.isfinite().all()):
            raise HfgenError(f"mean flow: NaN in the {self.derivative} of the network; try float32")
        return velocity - like_image(t - r, x_t) * change


def _jvp(u: FlowMap, x_t: Tensor, t: Tensor, r: Tensor, along: Tensor) -> Tensor:
    tangents = (along, torch.ones_like(t), torch.zeros_like(r))
    return torch.func.jvp(u, (x_t, t, r), tangents)[1].detach()


def _difference(
    u: FlowMap, x_t: Tensor, t: Tensor, r: Tensor, along: Tensor, step: float
) -> Tensor:
    after = u(x_t + step * along, t + step, r)
    before = u(x_t - step * along, t - step, r)
    return (after - before) / (2 * step)


@dataclass(frozen=True, kw_only=True)
class ShortcutTarget(FlowMapTarget):
    """Shortcut models (Frans et al. 2024, eq. 5): one step equals the two of half its size.

    Needs no derivative. r = t - 2^-k with t on the grid of that step.

    Args:
        steps: the finest grid, a power of two.
        instantaneous: share of rows that learn the velocity, at t ~ U(0, 1).
    """

    steps: int = 64
    instantaneous: float = 0.75

    def __post_init__(self) -> None:
        if self.steps < 2 or self.steps & (self.steps - 1):
            raise ValueError(f"steps of a shortcut must be a power of two from 2, got {self.steps}")

    def times(self, rng: Rng, batch: int) -> tuple[Tensor, Tensor]:
        levels = self.steps.bit_length() - 1
        parts = 2.0 ** rng.randint("level", levels, (batch,)).float()  # 1, 2, ..., steps / 2
        share = rng.rand("t", (batch,))
        t = (torch.floor(share * parts) + 1) / parts
        still = rng.rand("instantaneous", (batch,)) < self.instantaneous
        return torch.where(still, share, t), torch.where(still, share, t - 1 / parts)

    def target(self, u: FlowMap, x_t: Tensor, t: Tensor, r: Tensor, velocity: Tensor) -> Tensor:
        with torch.no_grad():
            middle = (t + r) / 2
            first = u(x_t, t, middle)
            second = u(x_t - like_image(t - middle, x_t) * first, middle, r)
        return torch.where(like_image(t == r, x_t), velocity, (first + second) / 2)


FLOW_MAP_TARGETS: dict[str, type[FlowMapTarget]] = {
    "mean_flow": MeanFlowTarget,
    "shortcut": ShortcutTarget,
}


@dataclass(frozen=True, kw_only=True)
class FlowMaps(Objective):
    """One phase that trains ``network`` to be a flow map.

    loss = w |u - target|^2 with w = 1 / (error + c)^p, without gradient (Geng et al. 2025, eq. 22).

    Args:
        network: the role that is trained; it takes a second time.
        target: how the average velocity is learned.
        power, offset: p and c of the adaptive weight; p = 0 for the plain squared error.
        guidance_scale: w of classifier-free guidance that is learned in, so that sampling needs
            none (section 4.2 there): v := w (n - x) + (1 - w) u(x_t, t, t | no class).
        label_dropout: share of the labels that is replaced by the null label.
    """

    network: str = "unet"
    target: FlowMapTarget = field(default_factory=MeanFlowTarget)
    power: float = 1.0
    offset: float = 1e-3
    guidance_scale: float = 1.0
    label_dropout: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.label_dropout < 1:
            raise HfgenError(f"label_dropout must be in [0, 1), got {self.label_dropout}")
        if self.guidance_scale != 1 and self.label_dropout == 0:
            raise HfgenError("guidance_scale needs label_dropout above 0: there is no null label")

    @property
    def phases(self) -> tuple[Phase, ...]:
        return (Phase(name="flow_map", trains=(self.network,)),)

    def loss(
        self, phase: str, models: Mapping[str, nn.Module], batch: Batch, rng: Rng, clock: Clock
    ) -> tuple[Tensor, dict[str, Tensor]]:
        path = scheduler_parameterisation(models).path
        if not isinstance(path, LinearPath):
            raise HfgenError("model.scheduler: flow maps need FlowMapEulerDiscreteScheduler")
        x, network = batch["images"], models[self.network]
        noise = rng.randn("noise", x.shape)
        t, r = self.target.times(rng, len(x))
        x_t = path.add_noise(x, noise, t)
        check_channels(network, x)
        labels = class_labels(network, batch, rng, self.label_dropout)
        target = self._velocity(network, path, labels, x_t, t, noise - x)
        moving = (t > r).nonzero().squeeze(1)  # where r = t the target is the velocity, for nothing
        if len(moving):
            u = flow_map(network, path, None if labels is None else labels[moving])
            parts = (tensor[moving] for tensor in (x_t, t, r, target))
            target = target.index_copy(0, moving, self.target.target(u, *parts).to(target))
        error = per_image_error(flow_map(network, path, labels)(x_t, t, r), target)
        weight = (error.detach() + self.offset) ** -self.power
        still = (t == r).float()
        rows = {"mse": error.mean(), "velocity_mse": (error * still).sum() / still.sum().clamp(1)}
        loss = (weight * error).mean()
        return loss, detach({"loss": loss, **rows})

    def _velocity(
        self,
        network: nn.Module,
        path: LinearPath,
        labels: Tensor | None,
        x_t: Tensor,
        t: Tensor,
        velocity: Tensor,
    ) -> Tensor:
        """The velocity at t, guided for the rows that have kept their label."""
        if self.guidance_scale == 1 or labels is None:
            return velocity
        null = torch.full_like(labels, int(network.config["num_class_embeds"]) - 1)  # type: ignore[index]
        with torch.no_grad():
            free = flow_map(network, path, null)(x_t, t, t)
        guided = self.guidance_scale * velocity + (1 - self.guidance_scale) * free
        return torch.where(like_image(labels == null, x_t), velocity, guided)


def flow_map(network: nn.Module, path: LinearPath, labels: Tensor | None) -> FlowMap:
    """The network as a function of times in [0, 1]; float32 out."""

    def u(x_t: Tensor, t: Tensor, r: Tensor) -> Tensor:
        scale = path.time_scale
        return run_network(network, x_t, t * scale, labels, r * scale).float()

    return u
