"""EDM's stochastic second-order sampler (Karras et al. 2022, algorithm 2) for diffusers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from diffusers import ConfigMixin, SchedulerMixin
from diffusers.configuration_utils import register_to_config
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor


@dataclass
class EDMHeunOutput(BaseOutput):
    """``prev_sample``: what to call the network with next."""

    prev_sample: Tensor


class EDMHeunScheduler(SchedulerMixin, ConfigMixin):
    """Heun's method on EDM's noise levels, with noise added anew before each step ("churn").

    N steps are 2 N - 1 evaluations: ``timesteps`` names the noise level of each. The config's keys
    are those of ``EDMEulerScheduler``, so either loads from the other's.

    Args:
        sigma_min, sigma_max, sigma_data, rho: as in the paper's table 1.
        prediction_type: "epsilon" or "v_prediction": the sign of c_out, as in diffusers.
        s_churn, s_tmin, s_tmax, s_noise: stochasticity (algorithm 2); 0 churn is deterministic.
    """

    _compatibles = ["EDMEulerScheduler", "EDMDPMSolverMultistepScheduler"]
    order = 2

    @register_to_config
    def __init__(
        self,
        sigma_min: float = 0.002,
        sigma_max: float = 80.0,
        sigma_data: float = 0.5,
        rho: float = 7.0,
        num_train_timesteps: int = 1000,
        prediction_type: Literal["epsilon", "v_prediction"] = "epsilon",
        s_churn: float = 0.0,
        s_tmin: float = 0.0,
        s_tmax: float = math.inf,
        s_noise: float = 1.0,
    ):
        self.set_timesteps(18)

    @property
    def init_noise_sigma(self) -> float:
        """Scale of the first sample: sigma_max, and the first step's churn on top."""
        return float(self.churned[0])

    def set_timesteps(self, num_inference_steps: int, device: str | torch.device | None = None):
        """Karras' noise levels (eq. 5), those after churn, and c_noise of every evaluation."""
        if num_inference_steps < 1:
            raise ValueError(f"num_inference_steps={num_inference_steps}: must be at least 1")
        c = self.config
        ends = c["sigma_max"] ** (1 / c["rho"]), c["sigma_min"] ** (1 / c["rho"])
        ramp = torch.linspace(*ends, num_inference_steps, dtype=torch.float64) ** c["rho"]
        self.num_inference_steps = num_inference_steps
        self.sigmas = torch.cat([ramp, ramp.new_zeros(1)])
        gamma = min(c["s_churn"] / num_inference_steps, math.sqrt(2) - 1)
        inside = (ramp >= c["s_tmin"]) & (ramp <= c["s_tmax"])
        self.churned = torch.where(inside, ramp * (1 + gamma), ramp)
        levels = torch.stack([self.churned, self.sigmas[1:]], dim=1).flatten()[:-1]
        self.levels = levels  # churned_0, sigma_1, churned_1, ..., churned_{N-1}
        self.timesteps = (0.25 * levels.log()).to(device=device, dtype=torch.float32)
        self._evaluation, self._start, self._slope = 0, None, None

    def scale_model_input(self, sample: Tensor, timestep: Tensor | float) -> Tensor:
        """c_in x."""
        sigma = float(self.levels[self._evaluation])
        return sample / math.sqrt(sigma**2 + self.config["sigma_data"] ** 2)

    def step(
        self,
        model_output: Tensor,
        timestep: Tensor | float,
        sample: Tensor,
        generator: torch.Generator | list[torch.Generator] | None = None,
        return_dict: bool = True,
    ) -> EDMHeunOutput | tuple[Tensor]:
        """From the network's output at ``sample`` to the next sample that it is to see."""
        index, corrects = divmod(self._evaluation, 2)
        sigma, after = float(self.levels[self._evaluation]), float(self.sigmas[index + 1])
        slope = (sample - self._denoised(model_output, sample, sigma)) / sigma
        self._evaluation += 1
        if not corrects:
            self._start, self._slope = sample, slope
            result = sample + (after - sigma) * slope
        else:
            start, first = self._start, self._slope
            if start is None or first is None:
                raise ValueError("step was called before set_timesteps")
            result = start + (after - float(self.churned[index])) * (first + slope) / 2
            result = self._churn(result, index + 1, generator)
        return EDMHeunOutput(prev_sample=result) if return_dict else (result,)

    def _denoised(self, output: Tensor, sample: Tensor, sigma: float) -> Tensor:
        data = self.config["sigma_data"]
        c_skip = data**2 / (sigma**2 + data**2)
        c_out = sigma * data / math.sqrt(sigma**2 + data**2)
        sign = -1 if self.config["prediction_type"] == "v_prediction" else 1
        return c_skip * sample + sign * c_out * output

    def _churn(self, sample: Tensor, index: int, generator) -> Tensor:
        """Noise from sigma to the level after churn."""
        sigma, churned = float(self.sigmas[index]), float(self.churned[index])
        if churned <= sigma:
            return sample
        noise = randn_tensor(sample.shape, generator, sample.device, sample.dtype)
        return sample + math.sqrt(churned**2 - sigma**2) * self.config["s_noise"] * noise

    def __len__(self) -> int:
        return self.config["num_train_timesteps"]
