"""Leapfrog steps that carry a latent towards its posterior."""

from __future__ import annotations

from collections.abc import Callable

from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor

from hfgen.models.layers.leapfrog import LeapfrogOutput, TemperedLeapfrog, tempering


class LeapfrogFlow(TemperedLeapfrog, ModelMixin, ConfigMixin):
    """Tempered Hamiltonian dynamics (Caterini et al. 2018, section 3 and algorithm 1).

    Each step moves (z, rho) by a leapfrog of the potential -ln p(x, z), then scales the momentum
    by sqrt(beta_(k-1) / beta_k) along a schedule from beta_0 to 1 (their eq. 9), so that
    ln |det| = (D / 2) ln beta_0 whatever the potential.

    Args:
        latent_dim: D.
        num_steps: K.
        step_size: the leapfrog's start; one is learned for each dimension, below ``max_step_size``.
        max_step_size: upper end of the learned step sizes.
        temperature: beta_0 at the start, in (0, 1); learned.
    """

    @register_to_config
    def __init__(
        self,
        latent_dim: int = 20,
        num_steps: int = 4,
        step_size: float = 0.05,
        max_step_size: float = 0.5,
        temperature: float = 0.5,
    ):
        super().__init__()
        if num_steps < 1:
            raise ValueError(f"LeapfrogFlow: num_steps must be at least 1, got {num_steps}")
        self.learn((latent_dim,), step_size, max_step_size, temperature)

    def forward(
        self,
        z: Tensor,
        momentum: Tensor,
        gradient: Callable[[Tensor], Tensor],
        return_dict: bool = True,
    ) -> LeapfrogOutput | tuple[Tensor, Tensor]:
        """(z_0, rho_0) [B, D] -> (z_K, rho_K).

        Args:
            gradient: z -> the potential's gradient there, [B, D].
        """
        step = self.step
        for factor in tempering(self.beta, self.config["num_steps"]):
            momentum = momentum - step / 2 * gradient(z)
            z = z + step * momentum
            momentum = momentum - step / 2 * gradient(z)
            momentum = momentum * factor
        return LeapfrogOutput(latents=z, momentum=momentum) if return_dict else (z, momentum)
