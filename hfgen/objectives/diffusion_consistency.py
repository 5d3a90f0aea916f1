"""Consistency training: one step from any noise level to the image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from hfgen.denoising import EDMPath, EDMPrecondition, Parameterisation, like_image
from hfgen.errors import HfgenError
from hfgen.objectives.base import Batch, Clock, Objective, Phase, detach
from hfgen.objectives.diffusion import class_labels, predict, scheduler_parameterisation
from hfgen.objectives.diffusion_times import LogNormalTime, TimeSampler
from hfgen.rng import Rng


@dataclass(frozen=True, kw_only=True)
class Consistency(Objective):
    """Easy consistency tuning (Geng et al. 2024): |D(x_t, t) - stopgrad D(x_r, r)| / (t - r).

    x_t and x_r share image and noise, r < t, and the gap closes in stages: r / t = 1 - n(t) / q^s
    with n(t) = 1 + k sigmoid(-b t) (eq. 12 there), s = 0 ... ``stages`` over the run. In the first
    stage r = 0, which is diffusion training, so a run may start from scratch. Sampled by
    ``CMStochasticIterativeScheduler`` in ``ConsistencyModelPipeline``.

    With a ``teacher`` this is consistency distillation (Song et al. 2023, algorithm 2): x_r is one
    Heun step of the teacher's ODE from x_t, instead of the same noise at r.

    Args:
        network: the role that is trained.
        time: noise levels; ECT's are ln t ~ N(-1.1, 2.0^2).
        q: base of the stages.
        stages: how many come after the first; the last gap is t n(t) / q^stages.
        k, b: of n(t).
        huber: c of the pseudo-Huber distance sqrt(e + c^2) - c (Song & Dhariwal 2023, section 3.2),
            times the root of the number of pixels; 0 for the root of e itself.
        teacher: a frozen role trained by EDM with the same ``sigma_data``; None to train alone.
        first_stage: stage to begin with; a teacher's single step wants small gaps, 2 or so.
    """

    network: str = "unet"
    time: TimeSampler = field(default_factory=lambda: LogNormalTime(mean=-1.1, std=2.0))
    q: float = 4.0
    stages: int = 4
    k: float = 8.0
    b: float = 1.0
    huber: float = 0.00054
    teacher: str | None = None
    first_stage: int = 0

    def __post_init__(self) -> None:
        if self.q <= 1 or self.stages < 1:
            raise HfgenError(
                f"q must be above 1 and stages at least 1, got {self.q}, {self.stages}"
            )
        if not 0 <= self.first_stage <= self.stages:
            raise HfgenError(f"first_stage must be in 0 ... stages, got {self.first_stage}")

    @property
    def phases(self) -> tuple[Phase, ...]:
        return (Phase(name="consistency", trains=(self.network,)),)

    def earlier(self, t: Tensor, clock: Clock) -> Tensor:
        """r [B] for the noise levels ``t`` [B] at this point of the run."""
        stages = self.stages - self.first_stage
        stage = self.first_stage + min(int(clock.progress() * (stages + 1)), stages)
        share = (1 + self.k * torch.sigmoid(-self.b * t)) / self.q**stage
        return t * (1 - share).clamp(min=0)

    def loss(
        self, phase: str, models: Mapping[str, nn.Module], batch: Batch, rng: Rng, clock: Clock
    ) -> tuple[Tensor, dict[str, Tensor]]:
        param = scheduler_parameterisation(models)
        path, x, network = param.path, batch["images"], models[self.network]
        if not isinstance(path, EDMPath):
            raise HfgenError("model.scheduler: consistency needs CMStochasticIterativeScheduler")
        noise = rng.randn("noise", x.shape)
        t = self.time.sample(rng, len(x), path).clamp(path.sigma_min * 1.01, path.sigma_max)
        r = self.earlier(t, clock).clamp(min=path.sigma_min)  # D(x, sigma_min) = x
        labels = class_labels(network, batch, rng, 0.0)

        def denoise(noisy: Tensor, level: Tensor) -> Tensor:
            return param.denoised(predict(network, param, noisy, level, labels), noisy, level)

        x_t = path.add_noise(x, noise, t)
        with torch.no_grad():
            if self.teacher is None:
                known = like_image(r <= path.sigma_min, x)
                target = torch.where(known, x, denoise(path.add_noise(x, noise, r), r))
            else:
                target = denoise(self._teacher_step(models, path, x_t, t, r, batch, rng), r)
        error = (denoise(x_t, t) - target).square().flatten(1).sum(1)
        c = self.huber * x[0].numel() ** 0.5
        loss = (((error + c**2).sqrt() - c) / (t - r)).mean()
        return loss, detach({"loss": loss, "mse": error.mean() / x[0].numel(), "gap": (t - r) / t})

    def _teacher_step(
        self,
        models: Mapping[str, nn.Module],
        path: EDMPath,
        x_t: Tensor,
        t: Tensor,
        r: Tensor,
        batch: Batch,
        rng: Rng,
    ) -> Tensor:
        """x_r by Heun's method on dx/dt = (x - D(x, t)) / t (Karras et al. 2022, algorithm 1)."""
        teacher = models.get(str(self.teacher))
        if teacher is None:
            raise HfgenError(f"model.{self.teacher}: missing; give the run of a trained EDM")
        levels = EDMPath(path.sigma_min, path.sigma_max, path.sigma_data)
        param = Parameterisation(levels, EDMPrecondition(path.sigma_data))
        labels = class_labels(teacher, batch, rng, 0.0)

        def slope(x: Tensor, level: Tensor) -> Tensor:
            image = param.denoised(predict(teacher, param, x, level, labels), x, level)
            return (x - image) / like_image(level, x)

        step = like_image(r - t, x_t)
        first = slope(x_t, t)
        return x_t + step * (first + slope(x_t + step * first, r)) / 2
