"""DDPM's chain of steps as a probability model: posteriors, learned variances, the bound's terms.

Ho et al. 2020; learned variances after Nichol & Dhariwal 2021. Images are [-1, 1]; this file needs
only torch.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

HALF_LEVEL = 1 / 255
"""Half the width of an 8-bit level on the [-1, 1] scale."""


@dataclass(frozen=True)
class Chain:
    """Posterior q(x_{t-1} | x_t, x_0) of each step (Ho et al. 2020, eq. 7), float64 [T].

    Attributes:
        alphas_cumprod: [T].
        image, noisy: weights of x_0 and of x_t in the posterior's mean.
        variance: of the posterior; at t = 0, where it is 0, the next one.
        upper: beta_t, the upper bound of the reverse step's variance.
        model: variance that the sampler uses where none is learned: one of the two.
    """

    alphas_cumprod: Tensor
    image: Tensor
    noisy: Tensor
    variance: Tensor
    upper: Tensor
    model: Tensor

    @classmethod
    def of(cls, scheduler: Any) -> Chain:
        """The chain of a scheduler with ``alphas_cumprod``, and the variance that it names."""
        alpha_bar = scheduler.alphas_cumprod.double()
        before = torch.cat([alpha_bar.new_ones(1), alpha_bar[:-1]])
        beta = 1 - alpha_bar / before
        variance = beta * (1 - before) / (1 - alpha_bar)
        variance[0] = variance[1]
        large = (scheduler.config.get("variance_type") or "fixed_small").startswith("fixed_large")
        return cls(
            alphas_cumprod=alpha_bar,
            image=before.sqrt() * beta / (1 - alpha_bar),
            noisy=(1 - beta).sqrt() * (1 - before) / (1 - alpha_bar),
            variance=variance,
            upper=beta,
            model=torch.cat([variance[1:2], beta[1:]]) if large else variance,
        )

    def to(self, device: torch.device | str) -> Chain:
        """The same on another device."""
        return Chain(**{f.name: getattr(self, f.name).to(device) for f in fields(self)})

    def step_variance(self, raw: Tensor | None, t: Tensor, image: Tensor) -> Tensor:
        """Variance of the model's step at ``t`` [B], broadcast against ``image`` [B, ...].

        exp(f ln beta + (1 - f) ln posterior) with f = (raw + 1) / 2 where the network has a
        ``raw`` second output (Nichol & Dhariwal 2021, eq. 15); the fixed one where not.
        """
        if raw is None:
            return _rows(self.model, t, image)
        share = (raw.double() + 1) / 2
        low, high = (_rows(v, t, image).log() for v in (self.variance, self.upper))
        return (share * high + (1 - share) * low).exp()

    def step_bound(
        self, x: Tensor, x_t: Tensor, estimate: Tensor, raw: Tensor | None, t: Tensor
    ) -> Tensor:
        """The bound's term of step ``t`` [B] for images ``x`` [B, ...] on 8-bit levels, nats [B].

        KL(q(x_{t-1} | x_t, x) || p(x_{t-1} | x_t)), and -ln p(x | x_1) at t = 0.

        Args:
            estimate: the image that the network sees in ``x_t``.
            raw: the network's second output, or None.
        """
        image, noisy = _rows(self.image, t, x), _rows(self.noisy, t, x)
        mean, variance = image * estimate + noisy * x_t, self.step_variance(raw, t, x)
        kl = gaussian_kl(image * x + noisy * x_t, _rows(self.variance, t, x), mean, variance)
        decoder = -discretised_log_prob(x, mean, variance.sqrt())
        return torch.where(t == 0, decoder, kl)


def split_variance(output: Tensor, channels: int) -> tuple[Tensor, Tensor | None]:
    """A network's output [B, C or 2 C, H, W] as prediction and raw variance, if there is one."""
    if output.shape[1] == 2 * channels:
        return output[:, :channels], output[:, channels:]
    return output, None


def discretised_log_prob(x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """ln P of 8-bit levels, bins x +- 1 / 255 with open ends, [B] (Ho et al. 2020, eq. 13)."""
    upper = torch.special.ndtr((x - mean + HALF_LEVEL) / std)
    lower = torch.special.ndtr((x - mean - HALF_LEVEL) / std)
    upper = torch.where(x > 0.999, torch.ones_like(x), upper)
    lower = torch.where(x < -0.999, torch.zeros_like(x), lower)
    return (upper - lower).clamp(min=1e-12).log().flatten(1).sum(1)


def gaussian_kl(mean: Tensor, variance: Tensor, other: Tensor, other_variance: Tensor) -> Tensor:
    """KL(N(mean, variance) || N(other, other_variance)) in nats, summed to [B]."""
    ratio = variance / other_variance
    constant = 0.5 * (ratio - 1 - ratio.log())
    return (constant + 0.5 * (mean - other) ** 2 / other_variance).flatten(1).sum(1)


def _rows(table: Tensor, t: Tensor, image: Tensor) -> Tensor:
    return table.to(t.device)[t].reshape(-1, *([1] * (image.dim() - 1)))
