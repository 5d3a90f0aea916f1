"""What a denoising network is told, and what its output means: paths and predictions.

A *path* mixes an image with noise, ``x_t = alpha(t) x + sigma(t) n`` with ``n ~ N(0, I)``; a
*prediction* says which mixture of image and noise the network puts out. Both are read from the
diffusers scheduler that samples the trained network, so that training, sampling and likelihood
cannot disagree. Images are [-1, 1]. This file needs only torch and diffusers: the export of a
pipeline inlines it.
"""

from __future__ import annotations

import inspect
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import (
    CMStochasticIterativeScheduler,
    FlowMapEulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    SCMScheduler,
    ScoreSdeVeScheduler,
)
from torch import Tensor


def like_image(values: Tensor, image: Tensor) -> Tensor:
    """``values`` [B], shaped to multiply ``image`` [B, ...]."""
    return values.reshape(-1, *([1] * (image.dim() - 1)))


class ProbabilityPath(ABC):
    """x_t = alpha(t) x + sigma(t) n; its time ``t`` grows with the noise, in a unit of its own."""

    @abstractmethod
    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Scale of the image and of the noise at times ``t``, both shaped as ``t``."""

    @abstractmethod
    def at(self, u: Tensor) -> Tensor:
        """The time at the share ``u`` in [0, 1) of the path, from clean to noise."""

    @abstractmethod
    def at_ratio(self, ratio: Tensor) -> Tensor:
        """The time at which sigma / alpha is ``ratio`` (> 0): the inverse of ``alpha_sigma``."""

    @property
    @abstractmethod
    def ratios(self) -> tuple[float, float]:
        """Lowest and highest sigma / alpha at which a network trained on this path is called."""

    def snap(self, t: Tensor) -> Tensor:
        """The nearest time that is trained on: every one, except for chains of steps."""
        return t

    def model_input(self, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """What the network is called with: the scaled image, and the time in its own unit."""
        return x_t, t

    def from_model_time(self, time: Tensor) -> Tensor:
        """The time of the path from the network's, i.e. from a scheduler's ``timesteps``."""
        return time

    def add_noise(self, x: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """x_t of images ``x`` [B, ...] at times ``t`` [B]."""
        alpha, sigma = self.alpha_sigma(t)
        return like_image(alpha, x) * x + like_image(sigma, x) * noise


@dataclass(frozen=True, eq=False)
class DiscretePath(ProbabilityPath):
    """The variance-preserving chain of DDPM (Ho et al. 2020, eq. 4): t in {0, ..., T-1}.

    alpha^2 = alphas_cumprod, the scheduler's own table, whatever its noise schedule (linear, scaled
    linear, cosine, zero terminal SNR).
    """

    alphas_cumprod: Tensor

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """At whole steps the table's values; in between, log(sigma / alpha) is interpolated."""
        if not t.is_floating_point():
            alpha_bar = self.alphas_cumprod.to(t.device)[t]
            return alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
        table = self._log_ratios(t)
        low = t.long().clamp(0, len(table) - 2)
        ratio = torch.lerp(table[low], table[low + 1], t - low).exp()
        alpha = (1 + ratio**2).rsqrt()
        return alpha, ratio * alpha

    def at(self, u: Tensor) -> Tensor:
        steps = len(self.alphas_cumprod)
        return (u * steps).long().clamp(max=steps - 1)

    def at_ratio(self, ratio: Tensor) -> Tensor:
        table = self._log_ratios(ratio)
        log_ratio = ratio.log().clamp(table[0], table[-1])
        low = torch.searchsorted(table, log_ratio, right=True).clamp(1, len(table) - 1) - 1
        gap = (table[low + 1] - table[low]).clamp(min=1e-9)  # equal where SNR is taken for 0
        return low + (log_ratio - table[low]) / gap

    @property
    def ratios(self) -> tuple[float, float]:
        table = self._log_ratios(torch.zeros(1)).exp()
        return table[0].item(), table[-1].item()

    def snap(self, t: Tensor) -> Tensor:
        return t.round().long()

    def from_model_time(self, time: Tensor) -> Tensor:
        return self.snap(time.float())

    def _log_ratios(self, like: Tensor) -> Tensor:
        # A zero terminal SNR has no logarithm: the last ratio is then e^8, sigma^2 = 1 - 1e-7.
        alpha_bar = self.alphas_cumprod.to(like).clamp(min=math.exp(-16))
        return 0.5 * (torch.log1p(-alpha_bar) - torch.log(alpha_bar))


@dataclass(frozen=True)
class LinearPath(ProbabilityPath):
    """Rectified flow (Liu et al. 2022; Lipman et al. 2022): x_t = (1 - t) x + t n, t in [0, 1].

    Args:
        time_scale: what the network is told at t = 1 (the scheduler's ``num_train_timesteps``).
    """

    time_scale: float = 1000.0

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return 1 - t, t

    def at(self, u: Tensor) -> Tensor:
        return u

    def at_ratio(self, ratio: Tensor) -> Tensor:
        return ratio / (1 + ratio)

    @property
    def ratios(self) -> tuple[float, float]:
        return 1e-3, 1e4

    def model_input(self, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        return x_t, t * self.time_scale

    def from_model_time(self, time: Tensor) -> Tensor:
        return time / self.time_scale


@dataclass(frozen=True)
class TrigPath(ProbabilityPath):
    """cos(t) x + sin(t) n, t in [0, pi/2] (GVP of Ma et al. 2024; TrigFlow of Lu & Song 2024)."""

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return t.cos(), t.sin()

    def at(self, u: Tensor) -> Tensor:
        return u * (math.pi / 2)

    def at_ratio(self, ratio: Tensor) -> Tensor:
        return ratio.atan()

    @property
    def ratios(self) -> tuple[float, float]:
        return 1e-3, 1e4


@dataclass(frozen=True)
class VEPath(ProbabilityPath):
    """Variance exploding (Song et al. 2021, eq. 30): x_t = x + t n, where the time is sigma
    itself.
    """

    sigma_min: float
    sigma_max: float

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ones_like(t), t

    def at(self, u: Tensor) -> Tensor:
        return self.sigma_min * (self.sigma_max / self.sigma_min) ** u

    def at_ratio(self, ratio: Tensor) -> Tensor:
        return ratio

    @property
    def ratios(self) -> tuple[float, float]:
        return self.sigma_min, self.sigma_max


@dataclass(frozen=True)
class EDMPath(VEPath):
    """Karras et al. 2022, table 1: the VE path; the network sees c_in x_t and c_noise = ln(sigma) /
    4.

    Args:
        sigma_data: standard deviation of the data.
        noise_scale: factor on c_noise (1000 for consistency models, which say 1000 ln(sigma) / 4).
    """

    sigma_data: float = 0.5
    noise_scale: float = 1.0

    def model_input(self, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        c_in = (t**2 + self.sigma_data**2).rsqrt()
        return like_image(c_in, x_t) * x_t, 0.25 * self.noise_scale * t.log()

    def from_model_time(self, time: Tensor) -> Tensor:
        return torch.exp(4 * time / self.noise_scale)


PATHS: dict[str, type[ProbabilityPath]] = {
    "discrete": DiscretePath,
    "linear": LinearPath,
    "trig": TrigPath,
    "ve": VEPath,
    "edm": EDMPath,
}
"""Names for tables and tests; which one holds is read from the scheduler (``parameterisation``)."""


class Prediction(ABC):
    """Which mixture of image ``x`` and noise ``n`` is put out; alpha, sigma broadcast to images."""

    @abstractmethod
    def target(self, x: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """What the network should put out."""

    @abstractmethod
    def denoised(self, output: Tensor, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """The image that an output means."""

    @abstractmethod
    def error_scale(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        """|output - target|^2 / |denoised - x|^2: how a plain loss weighs the image's error."""


@dataclass(frozen=True)
class Epsilon(Prediction):
    """The noise (Ho et al. 2020)."""

    def target(self, x: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return noise

    def denoised(self, output: Tensor, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return (x_t - sigma * output) / alpha

    def error_scale(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        return (alpha / sigma) ** 2


@dataclass(frozen=True)
class Sample(Prediction):
    """The image itself."""

    def target(self, x: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return x

    def denoised(self, output: Tensor, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return output

    def error_scale(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        return torch.ones_like(alpha)


@dataclass(frozen=True)
class Velocity(Prediction):
    """v = alpha n - sigma x (Salimans & Ho 2022, appendix D)."""

    def target(self, x: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return alpha * noise - sigma * x

    def denoised(self, output: Tensor, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return (alpha * x_t - sigma * output) / (alpha**2 + sigma**2)

    def error_scale(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        return ((alpha**2 + sigma**2) / sigma) ** 2


@dataclass(frozen=True)
class Flow(Prediction):
    """n - x: the velocity dx_t/dt of the linear path (Liu et al. 2022)."""

    def target(self, x: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return noise - x

    def denoised(self, output: Tensor, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return (x_t - sigma * output) / (alpha + sigma)

    def error_scale(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        return ((alpha + sigma) / sigma) ** 2


@dataclass(frozen=True)
class Score(Prediction):
    """The score of the noisy density, -n / sigma (Song et al. 2021)."""

    def target(self, x: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return -noise / sigma

    def denoised(self, output: Tensor, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return (x_t + sigma**2 * output) / alpha

    def error_scale(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        return (alpha / sigma**2) ** 2


@dataclass(frozen=True)
class EDMPrecondition(Prediction):
    """The raw network F of Karras et al. 2022: D = c_skip x_t + c_out F, alpha = 1.

    Args:
        sigma_data: standard deviation of the data.
        sign: of c_out (diffusers: +1 for ``epsilon``, -1 for ``v_prediction``).
        sigma_min: noise level at which D = x_t exactly (consistency models' boundary, Song et al.
            2023, eq. 18); 0 for EDM.
    """

    sigma_data: float = 0.5
    sign: int = 1
    sigma_min: float = 0.0

    def _skip_out(self, sigma: Tensor) -> tuple[Tensor, Tensor]:
        shifted, variance = sigma - self.sigma_min, self.sigma_data**2
        c_skip = variance / (shifted**2 + variance)
        c_out = self.sign * shifted * self.sigma_data * (sigma**2 + variance).rsqrt()
        return c_skip, c_out

    def target(self, x: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        c_skip, c_out = self._skip_out(sigma)
        return (x - c_skip * (x + sigma * noise)) / c_out

    def denoised(self, output: Tensor, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        c_skip, c_out = self._skip_out(sigma)
        return c_skip * x_t + c_out * output

    def error_scale(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        return self._skip_out(sigma)[1] ** -2


PREDICTIONS: dict[str, type[Prediction]] = {
    "epsilon": Epsilon,
    "sample": Sample,
    "v_prediction": Velocity,
    "flow_prediction": Flow,
    "score": Score,
    "edm": EDMPrecondition,
}
"""Names of a scheduler's ``prediction_type``; ``score`` and ``edm`` are those of VE and EDM."""


@dataclass(frozen=True)
class Parameterisation:
    """A path and a prediction: all that turns a network into a denoiser."""

    path: ProbabilityPath
    prediction: Prediction = field(default_factory=Epsilon)

    def target(self, x: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """What the network should put out: images ``x`` [B, ...], ``noise`` alike, ``t`` [B]."""
        alpha, sigma = (like_image(s, x) for s in self.path.alpha_sigma(t))
        return self.prediction.target(x, noise, alpha, sigma)

    def denoised(self, output: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """The image [B, ...] that ``output`` means at times ``t`` [B]."""
        alpha, sigma = (like_image(s, x_t) for s in self.path.alpha_sigma(t))
        return self.prediction.denoised(output, x_t, alpha, sigma)

    def denoised_input(self, output: Tensor, sample: Tensor, time: Tensor) -> Tensor:
        """The image that ``output`` means, from what the network was called with: ``sample``
        [B, ...] and ``time`` [B], as ``model_input`` gives them.
        """
        t = self.path.from_model_time(time)
        unit, _ = self.path.model_input(torch.ones_like(sample), t)
        return self.denoised(output, sample / unit, t)

    def noise(self, denoised: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """The noise that goes with a denoised image: (x_t - alpha x) / sigma."""
        alpha, sigma = (like_image(s, x_t) for s in self.path.alpha_sigma(t))
        return (x_t - alpha * denoised) / sigma


def run_network(
    network: Any,
    sample: Tensor,
    time: Tensor,
    labels: Tensor | None,
    second: Tensor | None = None,
    seen: Tensor | None = None,
) -> Tensor:
    """A diffusers denoiser's output for what ``model_input`` gives it.

    Args:
        labels: [B], or None for a network without classes.
        second: [B], where a network with ``second_time`` is to go; by default it stays at ``time``,
            where an average velocity is the velocity.
        seen: the image of an earlier evaluation, for a self-conditioned network, which takes twice
            the channels (Chen et al. 2023, section 3).
    """
    if seen is not None:
        sample = torch.cat([sample, seen.to(sample.dtype)], dim=1)
    conditions = {} if labels is None else {"class_labels": labels}
    if network.config.get("second_time", False):
        conditions["second_timestep"] = time if second is None else second
    return network(sample, time, **conditions).sample


_FLOW = (
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    FlowMapEulerDiscreteScheduler,
)
# Ours by name, since an exported file brings its own copy of the class.
_EDM = ("EDMEulerScheduler", "EDMDPMSolverMultistepScheduler", "EDMHeunScheduler")


def run_text_network(
    network: Any, x_t: Tensor, time: Tensor, text: Tensor, mask: Tensor | None = None
) -> Tensor:
    """Output, float32, of one of diffusers' networks for ``x_t`` [B, C, H, W] on the condition of
    texts.

    UNet2DConditionModel and transformers with cross-attention (PixArtTransformer2DModel, Chen et
    al. 2023) are given ``mask``; where a network takes none, embeddings of padding are zero.
    SD3Transformer2DModel (MMDiT, Esser et al. 2024) needs one vector for the whole text too: the
    mean of its embeddings.

    Args:
        time: [B] or a single one, as the scheduler counts.
        text: embeddings [B, T, D].
        mask: 1 for a token and 0 for padding, [B, T]; None where padding is read as well.
    """
    takes = inspect.signature(network.forward).parameters
    options: dict[str, Any] = {}
    if mask is not None and "encoder_attention_mask" in takes:
        options["encoder_attention_mask"] = mask
    elif mask is not None:
        text = text * mask.unsqueeze(2).to(text.dtype)
    if "pooled_projections" in takes:
        count = text.shape[1] if mask is None else mask.sum(1, keepdim=True).clamp(min=1)
        options["pooled_projections"] = text.sum(1) / count
    time = time.expand(len(x_t))
    return network(x_t, timestep=time, encoder_hidden_states=text, **options).sample.float()


def parameterisation(scheduler) -> Parameterisation:
    """The path and the prediction that a diffusers ``scheduler`` expects of its network.

    Raises:
        ValueError: for a scheduler without one of the known paths, or a prediction that its path
        cannot take.
    """
    config, name = scheduler.config, type(scheduler).__name__
    if isinstance(scheduler, _FLOW):
        return Parameterisation(LinearPath(config.num_train_timesteps), Flow())
    if name in _EDM:
        sign = -1 if config.prediction_type == "v_prediction" else 1
        path = EDMPath(config.sigma_min, config.sigma_max, config.sigma_data)
        return Parameterisation(path, EDMPrecondition(config.sigma_data, sign))
    if isinstance(scheduler, CMStochasticIterativeScheduler):
        path = EDMPath(config.sigma_min, config.sigma_max, config.sigma_data, noise_scale=1000.0)
        prediction = EDMPrecondition(config.sigma_data, 1, config.sigma_min)
        return Parameterisation(path, prediction)
    if isinstance(scheduler, ScoreSdeVeScheduler):
        return Parameterisation(VEPath(config.sigma_min, config.sigma_max), Score())
    if isinstance(scheduler, SCMScheduler):
        return Parameterisation(TrigPath(), Velocity())
    if getattr(scheduler, "alphas_cumprod", None) is None:
        raise ValueError(
            f"{name} cannot be trained for: it has neither alphas_cumprod nor a known path"
        )
    prediction = _prediction(config.prediction_type, name)
    if config.get("use_flow_sigmas", False) and _has_flow_sigmas(type(scheduler)):
        return Parameterisation(LinearPath(config.num_train_timesteps), prediction)
    return Parameterisation(_discrete_path(scheduler, prediction), prediction)


def _has_flow_sigmas(cls: type) -> bool:
    """Whether the class reads that setting: ``from_config`` keeps others' keys in any config."""
    return "use_flow_sigmas" in inspect.signature(cls.__init__).parameters


def _prediction(kind: str, name: str) -> Prediction:
    if kind not in ("epsilon", "sample", "v_prediction", "flow_prediction"):
        raise ValueError(f"{name}: prediction_type {kind!r} cannot be trained for")
    return PREDICTIONS[kind]()


def _discrete_path(scheduler, prediction: Prediction) -> DiscretePath:
    if isinstance(prediction, Epsilon) and scheduler.alphas_cumprod[-1] == 0:
        raise ValueError(
            f"{type(scheduler).__name__}: prediction_type 'epsilon' says nothing at zero terminal "
            "SNR; valid with rescale_betas_zero_snr: 'v_prediction', 'sample'"
        )
    return DiscretePath(scheduler.alphas_cumprod)
