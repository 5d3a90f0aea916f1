"""Leapfrog steps on a curved latent space."""

from __future__ import annotations

from collections.abc import Callable

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor

from hfgen.models.layers.leapfrog import LeapfrogOutput, TemperedLeapfrog, tempering
from hfgen.models.layers.metric import Metric


class RiemannianLeapfrog(TemperedLeapfrog, ModelMixin, ConfigMixin):
    """Tempered dynamics of H(z, rho) = U(z) + ln det G(z) / 2 + rho^T G^-1(z) rho / 2 (Chadebec et
    al. 2020, section 3.2), by the generalised leapfrog (Girolami & Calderhead 2011, eq. 16-18).

    Its implicit halves are found by fixed-point rounds. It keeps volumes; the momentum is then
    scaled as in ``LeapfrogFlow``, so that ln |det| = (D / 2) ln beta_0 once the rounds converge.

    Args:
        num_steps: K.
        step_size: of all steps, at the start; learned, below ``max_step_size``. Where the metric is
            small momenta are large, and too long a step lets the fixed points diverge.
        max_step_size: upper end of the learned step size.
        temperature: beta_0 at the start, in (0, 1); learned.
        num_rounds: of the fixed points.
    """

    @register_to_config
    def __init__(
        self,
        num_steps: int = 3,
        step_size: float = 0.001,
        max_step_size: float = 0.01,
        temperature: float = 0.3,
        num_rounds: int = 3,
    ):
        super().__init__()
        if num_steps < 1 or num_rounds < 1:
            raise ValueError(
                "RiemannianLeapfrog: num_steps and num_rounds must be at least 1, got "
                f"{num_steps} and {num_rounds}"
            )
        self.learn((), step_size, max_step_size, temperature)

    def forward(
        self,
        z: Tensor,
        momentum: Tensor,
        gradient: Callable[[Tensor], Tensor],
        metric: Metric,
        return_dict: bool = True,
    ) -> LeapfrogOutput | tuple[Tensor, Tensor]:
        """(z_0, rho_0) [B, D] -> (z_K, rho_K).

        Args:
            gradient: z -> the gradient of U there, [B, D].
            metric: on the latent space.
        """
        step = self.step
        slope = gradient(z)
        for factor in tempering(self.beta, self.config["num_steps"]):
            half = self._half_momentum(z, momentum, slope, step, metric)
            z = self._position(z, half, step, metric)
            slope = gradient(z)
            momentum = half - step / 2 * (slope + metric.slope(z, half))
            momentum = momentum * factor
        return LeapfrogOutput(latents=z, momentum=momentum) if return_dict else (z, momentum)

    def _half_momentum(
        self, z: Tensor, momentum: Tensor, slope: Tensor, step: Tensor, metric: Metric
    ) -> Tensor:
        """The rho' with rho' = rho - step / 2 dH/dz(z, rho')."""
        half = momentum
        for _ in range(self.config["num_rounds"]):
            half = momentum - step / 2 * (slope + metric.slope(z, half))
        return half

    def _position(self, z: Tensor, half: Tensor, step: Tensor, metric: Metric) -> Tensor:
        """The z' with z' = z + step / 2 (G^-1(z) + G^-1(z')) rho'."""
        here, there = metric.inverse(z), z
        for _ in range(self.config["num_rounds"]):
            mixed = (here + metric.inverse(there)).to(half.dtype)
            speed = torch.einsum("bde,be->bd", mixed, half)
            there = z + step / 2 * speed
        return there
