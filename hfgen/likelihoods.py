"""p(x | decoder output): objects with ``log_prob``, ``sample`` and ``mean``.

Images go in and come out in [-1, 1]; every likelihood knows its own scale. The decoder's output,
``params``, has ``channels(c)`` channels for an image of ``c``. This file needs only torch: the
export of a pipeline inlines it, so that a shared model still knows what its decoder's output means.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import ContinuousBernoulli as ContinuousBernoulliDistribution


class Likelihood(ABC):
    """Distribution of an image given a decoder's output. Concrete ones are frozen dataclasses."""

    continuous: bool = True
    """A density on continuous pixels (true), or probabilities of discrete values (false)."""

    def channels(self, image_channels: int) -> int:
        """How many channels the decoder must put out for an image of ``image_channels``."""
        return image_channels

    @abstractmethod
    def log_prob(self, x: Tensor, params: Tensor) -> Tensor:
        """Log-probability of each image, in nats, summed over its dimensions.

        Args:
            x: images [B, C, H, W] in [-1, 1].
            params: decoder output [B, channels(C), H, W].
        Returns:
            [B].
        """

    @abstractmethod
    def mean(self, params: Tensor) -> Tensor:
        """Expected image, [-1, 1]."""

    @abstractmethod
    def sample(self, params: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """One image drawn from the distribution, [-1, 1]."""


@dataclass(frozen=True, kw_only=True)
class Bernoulli(Likelihood):
    """Independent Bernoulli pixels on {0, 1} = (x + 1) / 2 (Kingma & Welling 2013, appendix C.1).

    Grey values in between count as probabilities (the cross-entropy of PyTorch's classic VAE
    example): then the result is an expected log-likelihood of the binarised image, not a density.

    Args:
        logits: whether ``params`` are logits (true) or probabilities from a sigmoid (false).
    """

    logits: bool = True
    continuous = False

    def _logits(self, params: Tensor) -> Tensor:
        return params if self.logits else torch.logit(params, eps=1e-7)

    def log_prob(self, x: Tensor, params: Tensor) -> Tensor:
        target = (x + 1) / 2
        nats = F.binary_cross_entropy_with_logits(self._logits(params), target, reduction="none")
        return -nats.flatten(1).sum(1)

    def mean(self, params: Tensor) -> Tensor:
        return 2 * torch.sigmoid(self._logits(params)) - 1

    def sample(self, params: Tensor, generator: torch.Generator | None = None) -> Tensor:
        probability = torch.sigmoid(self._logits(params))
        return 2 * torch.bernoulli(probability, generator=generator) - 1


@dataclass(frozen=True, kw_only=True)
class ContinuousBernoulli(Likelihood):
    """Continuous Bernoulli pixels on [0, 1] = (x + 1) / 2 (Loaiza-Ganem & Cunningham 2019).

    The cross-entropy of ``Bernoulli`` with the normaliser that makes it a density of grey values,
    here in units of the [-1, 1] scale (hence the ln 2 per pixel). ``params`` are logits.
    """

    def _distribution(self, params: Tensor) -> ContinuousBernoulliDistribution:
        return ContinuousBernoulliDistribution(logits=params, validate_args=False)

    def log_prob(self, x: Tensor, params: Tensor) -> Tensor:
        density = self._distribution(params).log_prob((x + 1) / 2) - math.log(2)
        return density.flatten(1).sum(1)

    def mean(self, params: Tensor) -> Tensor:
        return 2 * self._distribution(params).mean - 1

    def sample(self, params: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return 2 * self._distribution(params).icdf(_uniform(params.shape, params, generator)) - 1


@dataclass(frozen=True, kw_only=True)
class Gaussian(Likelihood):
    """Independent normal pixels; the standard deviation is in units of the [-1, 1] scale.

    log N(x; mu, sigma^2) = -(x - mu)^2 / (2 sigma^2) - ln sigma - ln(2 pi) / 2

    Args:
        std: one fixed standard deviation; None when the decoder puts out ln(std) as a second half
            of its channels, per pixel or, where it holds one shared value, as the optimal
            sigma-VAE (Rybkin et al. 2021).
        min_std: a soft lower bound of a standard deviation from the decoder (their soft clipping).
    """

    std: float | None = 1.0
    min_std: float = 0.005

    def __post_init__(self) -> None:
        _check_scale("std", self.std, self.min_std)

    def channels(self, image_channels: int) -> int:
        return image_channels if self.std is not None else 2 * image_channels

    def log_prob(self, x: Tensor, params: Tensor) -> Tensor:
        mean, log_std = _location_and_log_scale(params, self.std, self.min_std)
        z = (x - mean) * torch.exp(-log_std)
        return (-0.5 * z * z - log_std - 0.5 * math.log(2 * math.pi)).flatten(1).sum(1)

    def mean(self, params: Tensor) -> Tensor:
        return _location_and_log_scale(params, self.std, self.min_std)[0].clamp(-1, 1)

    def sample(self, params: Tensor, generator: torch.Generator | None = None) -> Tensor:
        mean, log_std = _location_and_log_scale(params, self.std, self.min_std)
        noise = torch.randn(mean.shape, generator=generator, device=mean.device, dtype=mean.dtype)
        return (mean + log_std.exp() * noise).clamp(-1, 1)


@dataclass(frozen=True, kw_only=True)
class Laplace(Likelihood):
    """Independent Laplace pixels: log p = -|x - mu| / b - ln(2b), the density of an L1 loss.

    Args:
        scale: one fixed b in units of the [-1, 1] scale; None when the decoder puts out ln(b) as
            a second half of its channels.
        min_scale: a soft lower bound of a scale from the decoder.
    """

    scale: float | None = 1.0
    min_scale: float = 0.005

    def __post_init__(self) -> None:
        _check_scale("scale", self.scale, self.min_scale)

    def channels(self, image_channels: int) -> int:
        return image_channels if self.scale is not None else 2 * image_channels

    def log_prob(self, x: Tensor, params: Tensor) -> Tensor:
        location, log_scale = _location_and_log_scale(params, self.scale, self.min_scale)
        density = -(x - location).abs() * torch.exp(-log_scale) - log_scale - math.log(2)
        return density.flatten(1).sum(1)

    def mean(self, params: Tensor) -> Tensor:
        return _location_and_log_scale(params, self.scale, self.min_scale)[0].clamp(-1, 1)

    def sample(self, params: Tensor, generator: torch.Generator | None = None) -> Tensor:
        location, log_scale = _location_and_log_scale(params, self.scale, self.min_scale)
        centred = _uniform(location.shape, location, generator) - 0.5
        noise = -centred.sign() * torch.log1p(-2 * centred.abs())
        return (location + log_scale.exp() * noise).clamp(-1, 1)


@dataclass(frozen=True, kw_only=True)
class DiscretizedLogistic(Likelihood):
    """Logistic mass on the ``levels`` grey values of a pixel (Kingma et al. 2016, appendix A).

    P(x_k) = sigmoid((x_k + h - mu) / s) - sigmoid((x_k - h - mu) / s) on x_k = 2k / (levels - 1) -
    1 with h = 1 / (levels - 1); the outermost bins are open. ``params`` are mu and ln s.
    """

    levels: int = 256
    continuous = False

    def __post_init__(self) -> None:
        _check_levels(self.levels)

    def channels(self, image_channels: int) -> int:
        return 2 * image_channels

    def log_prob(self, x: Tensor, params: Tensor) -> Tensor:
        mean, log_scale = params.chunk(2, dim=1)
        mass = _log_logistic_mass(_to_grid(x, self.levels), mean, log_scale, self.levels)
        return mass.flatten(1).sum(1)

    def mean(self, params: Tensor) -> Tensor:
        """The logistic's mean, clamped: that of the discretised values up to half a bin."""
        return params.chunk(2, dim=1)[0].clamp(-1, 1)

    def sample(self, params: Tensor, generator: torch.Generator | None = None) -> Tensor:
        mean, log_scale = params.chunk(2, dim=1)
        return _sample_logistic(mean, log_scale, self.levels, generator)


@dataclass(frozen=True, kw_only=True)
class DiscretizedLogisticMixture(Likelihood):
    """Mixture of discretised logistics with linear channel coupling (Salimans et al. 2017,
    2.1-2.2).

    Per pixel, one of ``components`` is chosen for all channels; inside it the mean of channel j is
    mu_j + sum_{i<j} tanh(a_ji) x_i. ``params`` hold, per component, one weight logit, c means,
    c log-scales and c (c - 1) / 2 couplings.
    """

    components: int = 10
    levels: int = 256
    continuous = False

    def __post_init__(self) -> None:
        _check_levels(self.levels)
        if self.components < 1:
            raise ValueError(f"components must be at least 1, got {self.components}")

    def channels(self, image_channels: int) -> int:
        pairs = image_channels * (image_channels - 1) // 2
        return self.components * (1 + 2 * image_channels + pairs)

    def _split(self, params: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """-> weight logits [B, K, H, W]; means, log-scales and couplings [B, K, ., H, W]."""
        parts = params.unflatten(1, (self.components, -1))
        rest = parts.shape[2] - 1  # 2c + c (c - 1) / 2
        c = next(c for c in range(1, rest) if 2 * c + c * (c - 1) // 2 == rest)
        sizes = [1, c, c, rest - 2 * c]
        logits, means, log_scales, couplings = parts.split(sizes, dim=2)
        return logits.squeeze(2), means, log_scales, torch.tanh(couplings)

    def _coupled(self, j: int, means: Tensor, couplings: Tensor, x: Tensor) -> Tensor:
        """Mean of channel ``j`` given the channels before it, [B, K, H, W]; x is [B, K, c, H,
        W].
        """
        first = j * (j - 1) // 2
        return means[:, :, j] + (couplings[:, :, first : first + j] * x[:, :, :j]).sum(2)

    def log_prob(self, x: Tensor, params: Tensor) -> Tensor:
        logits, means, log_scales, couplings = self._split(params)
        x = _to_grid(x, self.levels).unsqueeze(1)
        mass = torch.log_softmax(logits, dim=1)
        for j in range(x.shape[2]):
            mean = self._coupled(j, means, couplings, x)
            mass = mass + _log_logistic_mass(x[:, :, j], mean, log_scales[:, :, j], self.levels)
        return torch.logsumexp(mass, dim=1).flatten(1).sum(1)

    def mean(self, params: Tensor) -> Tensor:
        """Mean of the logistics, coupled channels at their own means, clamped."""
        logits, means, _, couplings = self._split(params)
        coupled = means.clone()
        for j in range(1, means.shape[2]):
            coupled[:, :, j] = self._coupled(j, means, couplings, coupled.clone())
        return (torch.softmax(logits, dim=1).unsqueeze(2) * coupled.clamp(-1, 1)).sum(1)

    def sample(self, params: Tensor, generator: torch.Generator | None = None) -> Tensor:
        logits, means, log_scales, couplings = self._split(params)
        gumbel = -torch.log(-torch.log(_uniform(logits.shape, params, generator)))
        chosen = (logits + gumbel).argmax(1)[:, None, None]

        def pick(values: Tensor) -> Tensor:
            return values.gather(1, chosen.expand(-1, 1, values.shape[2], -1, -1))

        means, log_scales, couplings = pick(means), pick(log_scales), pick(couplings)
        x = torch.zeros_like(means)
        for j in range(means.shape[2]):
            mean = self._coupled(j, means, couplings, x)
            x[:, :, j] = _sample_logistic(mean, log_scales[:, :, j], self.levels, generator)
        return x.squeeze(1)


@dataclass(frozen=True, kw_only=True)
class Categorical(Likelihood):
    """A free probability for each of ``levels`` grey values of each pixel (van den Oord et al.
    2016).

    ``params`` are ``levels`` logits per image channel, levels varying fastest.
    """

    levels: int = 256
    continuous = False

    def __post_init__(self) -> None:
        _check_levels(self.levels)

    def channels(self, image_channels: int) -> int:
        return self.levels * image_channels

    def log_prob(self, x: Tensor, params: Tensor) -> Tensor:
        log_probability = torch.log_softmax(params.unflatten(1, (-1, self.levels)), dim=2)
        index = ((x + 1) / 2 * (self.levels - 1)).round().long().clamp(0, self.levels - 1)
        return log_probability.gather(2, index.unsqueeze(2)).flatten(1).sum(1)

    def mean(self, params: Tensor) -> Tensor:
        grid = torch.linspace(-1, 1, self.levels, device=params.device, dtype=params.dtype)
        probability = torch.softmax(params.unflatten(1, (-1, self.levels)), dim=2)
        return torch.einsum("bclhw,l->bchw", probability, grid)

    def sample(self, params: Tensor, generator: torch.Generator | None = None) -> Tensor:
        logits = params.unflatten(1, (-1, self.levels))
        gumbel = -torch.log(-torch.log(_uniform(logits.shape, params, generator)))
        return 2 * (logits + gumbel).argmax(2).to(params.dtype) / (self.levels - 1) - 1


def _uniform(shape: tuple[int, ...], like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Uniform numbers strictly inside (0, 1), so that logarithms of them are finite."""
    draw = torch.rand(shape, generator=generator, device=like.device, dtype=like.dtype)
    return draw.clamp(1e-6, 1 - 1e-6)


def _check_scale(name: str, scale: float | None, least: float) -> None:
    if scale is not None and scale <= 0:
        raise ValueError(
            f"{name} must be positive, or null when the decoder puts it out, got {scale}"
        )
    if least <= 0:
        raise ValueError(f"min_{name} must be positive, got {least}")


def _check_levels(levels: int) -> None:
    if levels < 2:
        raise ValueError(f"levels must be at least 2, got {levels}")


def _location_and_log_scale(
    params: Tensor, scale: float | None, least: float
) -> tuple[Tensor, Tensor]:
    """Decoder output -> location and ln(scale), softly bounded below when it is predicted."""
    if scale is not None:
        return params, torch.full((), math.log(scale), dtype=params.dtype, device=params.device)
    location, raw = params.chunk(2, dim=1)
    return location, math.log(least) + F.softplus(raw - math.log(least))


def _to_grid(x: Tensor, levels: int) -> Tensor:
    """The nearest of the ``levels`` values 2k / (levels - 1) - 1."""
    return 2 * ((x + 1) / 2 * (levels - 1)).round().clamp(0, levels - 1) / (levels - 1) - 1


def _log_logistic_mass(x: Tensor, mean: Tensor, log_scale: Tensor, levels: int) -> Tensor:
    """ln of the logistic's mass in the bin around ``x``, elementwise.

    sigmoid(a) - sigmoid(b) = sigmoid(a) sigmoid(-b) (1 - exp(b - a)): no difference of nearly equal
    numbers. The scale is kept above exp(-7) as in Salimans et al. 2017.
    """
    inverse, half = torch.exp(-log_scale.clamp(min=-7.0)), 1 / (levels - 1)
    upper = F.logsigmoid(inverse * (x - mean + half))
    lower = F.logsigmoid(-inverse * (x - mean - half))
    inner = upper + lower + torch.log(-torch.expm1(-2 * half * inverse))
    first, last = x < -1 + half, x > 1 - half
    return torch.where(first, upper, torch.where(last, lower, inner))


def _sample_logistic(
    mean: Tensor, log_scale: Tensor, levels: int, generator: torch.Generator | None
) -> Tensor:
    noise = torch.logit(_uniform(mean.shape, mean, generator))
    return _to_grid(mean + torch.exp(log_scale.clamp(min=-7.0)) * noise, levels)


LIKELIHOODS: dict[str, type[Likelihood]] = {
    "bernoulli": Bernoulli,
    "continuous-bernoulli": ContinuousBernoulli,
    "gaussian": Gaussian,
    "laplace": Laplace,
    "discretized-logistic": DiscretizedLogistic,
    "discretized-logistic-mixture": DiscretizedLogisticMixture,
    "categorical": Categorical,
}
"""Names for recipes and for a pipeline's config."""


def likelihood_from_config(config: dict) -> Likelihood:
    """``{"type": "gaussian", "std": 0.1}`` -> ``Gaussian(std=0.1)``; ValueError on an unknown
    type.
    """
    options = dict(config)
    kind = options.pop("type", None)
    if kind not in LIKELIHOODS:
        raise ValueError(f"unknown likelihood {kind!r}; known: {', '.join(sorted(LIKELIHOODS))}")
    return LIKELIHOODS[kind](**options)


def likelihood_to_config(likelihood: Likelihood) -> dict:
    """The inverse of ``likelihood_from_config``: plain JSON values."""
    kind = next(name for name, cls in LIKELIHOODS.items() if type(likelihood) is cls)
    return {"type": kind, **asdict(likelihood)}  # type: ignore[call-overload]
