"""Likelihood of denoising models on pixels: the probability-flow ODE, and the bound of DDPM.

Bounds for ``likelihood.BOUNDS``. A class-conditional model is told the classes of the images; where
they have none, it is scored under its null label, as the unconditional model that label dropout has
made of it. A latent model is refused: its ODE gives
the density of latents, which is none of images.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from hfgen.chain import Chain, gaussian_kl, split_variance
from hfgen.denoising import (
    DiscretePath,
    LinearPath,
    Parameterisation,
    Sample,
    parameterisation,
    run_network,
)
from hfgen.errors import HfgenError
from hfgen.evaluation.bound import DENSITY, DISCRETE, Bound, Pixels
from hfgen.evaluation.conditions import Condition, check_classes, network_classes
from hfgen.probability_flow import Network, ProbabilityFlow, heun, rk45
from hfgen.rng import Rng

Steps = Callable[[Callable[[Tensor, Tensor], Tensor], Tensor], Tensor]
"""Solves an ODE: (field, state at the image) -> state at the noise."""


@dataclass(frozen=True, kw_only=True)
class ProbabilityFlowODE(Bound):
    """ln p(x) by the instantaneous change of variables (Song et al. 2021, eq. 39).

    The ODE of ``ProbabilityFlow`` from the image to the noise, Heun's method on Karras' grid; its
    divergence by Hutchinson's estimator with one Rademacher probe for the whole way, so that the
    integrand is smooth. No bound, but an estimate of the model's own density, with the error of
    the solver.

    Args:
        steps: of Heun's method, two evaluations each.
    """

    steps: int = 64

    def condition(self, pipeline: Any, num_classes: int | None) -> Condition:
        param = _parameterisation(pipeline)
        if isinstance(param.path, LinearPath) and isinstance(param.prediction, Sample):
            # Measured on a trained JiT: 666 bits/dim, the error of the network over sigma ~ 0
            raise HfgenError(
                f"pf_ode: {type(pipeline).__name__} predicts the image along a flow; its velocity "
                "(x - image) / sigma grows without bound at the image, so it has no density there"
            )
        return _condition(pipeline, num_classes)

    def pixels(self, pipeline: Any, images: Tensor) -> Pixels:
        return DENSITY

    def nfe(self, pipeline: Any, k: int) -> int:
        return 2 * self.steps * k

    def log_prob(
        self, pipeline: Any, images: Tensor, k: int, rng: Rng, labels: Tensor | None = None
    ) -> Tensor:
        param, network = denoiser(pipeline, labels)
        flow = ProbabilityFlow(param, network)
        probes = [2.0 * rng.randint(f"probe{i}", 2, images.shape) - 1.0 for i in range(k)]
        solve = self._solve(flow)
        return torch.stack([flow_log_prob(flow, images, p, solve) for p in probes]).mean(0)

    def _solve(self, flow: ProbabilityFlow) -> Steps:
        grid = flow.grid(self.steps)
        return lambda field, state: heun(field, state, grid)


@dataclass(frozen=True, kw_only=True)
class AdaptiveProbabilityFlowODE(ProbabilityFlowODE):
    """The same by adaptive Runge-Kutta 5(4), as Song et al. 2021 report; on request only.

    Args:
        tolerance: relative and absolute error of a step.
    """

    tolerance: float = 1e-4
    by_default: ClassVar[bool] = False

    def _solve(self, flow: ProbabilityFlow) -> Steps:
        (clean, dirty), tolerance = flow.ends, self.tolerance
        return lambda field, state: rk45(field, state, clean, dirty, tolerance, tolerance)[0]

    def nfe(self, pipeline: Any, k: int) -> int:
        return 0  # adaptive: known when it has run


def flow_log_prob(flow: ProbabilityFlow, images: Tensor, probe: Tensor, solve: Steps) -> Tensor:
    """ln p(x) in nats [B], of images [B, C, H, W], with a fixed ``probe`` of the same shape.

    p is the density at the cleanest noise level that the network knows.
    """
    clean, dirty = flow.ends
    rows, size = len(images), images[0].numel()
    probe = probe.double().clone()

    def field(state: Tensor, phi: Tensor) -> Tensor:
        z = state[:, :-1].reshape(images.shape)
        velocity, divergence = _divergence(flow, z, phi, probe)
        return torch.cat([velocity.flatten(1), divergence[:, None]], dim=1)

    start = images.double().flatten(1) * math.cos(clean)
    state = solve(field, torch.cat([start, start.new_zeros(rows, 1)], dim=1))
    z, divergence = state[:, :-1], state[:, -1]
    prior = -0.5 * (z.square().sum(1) + size * math.log(2 * math.pi))
    return prior + divergence + size * math.log(math.cos(clean))


def _divergence(
    flow: ProbabilityFlow, z: Tensor, phi: Tensor, probe: Tensor
) -> tuple[Tensor, Tensor]:
    """The velocity, and probe^T J probe [B] of its Jacobian (Hutchinson 1990)."""
    with torch.inference_mode(False), torch.enable_grad():
        point = z.clone().requires_grad_()
        velocity = flow.velocity(point, phi.clone())
        (product,) = torch.autograd.grad((velocity * probe.clone()).sum(), point)
    return velocity.detach(), (product * probe).flatten(1).sum(1)


@dataclass(frozen=True, kw_only=True)
class VariationalBound(Bound):
    """The variational bound of a discrete chain (Ho et al. 2020, eq. 5), all of its T steps."""

    def condition(self, pipeline: Any, num_classes: int | None) -> Condition:
        if not isinstance(_parameterisation(pipeline).path, DiscretePath):
            name = type(pipeline.scheduler).__name__
            raise HfgenError(f"vlb: {name} has no discrete chain; use pf_ode")
        if pipeline.scheduler.alphas_cumprod[-1] == 0:
            raise HfgenError("vlb: at zero terminal SNR the bound is not finite; use pf_ode")
        return _condition(pipeline, num_classes)

    def pixels(self, pipeline: Any, images: Tensor) -> Pixels:
        return DISCRETE

    def nfe(self, pipeline: Any, k: int) -> int:
        return len(pipeline.scheduler.alphas_cumprod) * k

    def log_prob(
        self, pipeline: Any, images: Tensor, k: int, rng: Rng, labels: Tensor | None = None
    ) -> Tensor:
        param, network = denoiser(pipeline, labels)
        chain = Chain.of(pipeline.scheduler).to(images.device)
        clip = bool(pipeline.scheduler.config.get("clip_sample", False))
        draws = [vlb_terms(param, network, chain, images, rng.fork(i), clip) for i in range(k)]
        return -torch.stack(draws).sum(2).mean(0)


def vlb_terms(
    param: Parameterisation, network: Network, chain: Chain, images: Tensor, rng: Rng, clip: bool
) -> Tensor:
    """[B, T + 1] nats: L_0 (discretised), L_1 ... L_{T-1}, and the prior's L_T.

    Args:
        images: [B, C, H, W] on the levels k / 127.5 - 1.
        clip: clip the image's estimate to [-1, 1], as the sampler does.
    """
    x, terms = images.double(), []
    for step in range(len(chain.image)):
        t = torch.full((len(images),), step, device=images.device)
        x_t = param.path.add_noise(images, rng.randn(f"noise{step}", images.shape), t)
        output = network(*param.path.model_input(x_t, t)).double()
        mixed, raw = split_variance(output, images.shape[1])
        estimate = param.denoised(mixed, x_t, t)
        estimate = estimate.clamp(-1, 1) if clip else estimate
        terms.append(chain.step_bound(x, x_t.double(), estimate, raw, t))
    last = chain.alphas_cumprod[-1]
    terms.append(gaussian_kl(last.sqrt() * x, 1 - last, torch.zeros_like(x), last.new_ones(())))
    return torch.stack(terms, dim=1)


def denoiser(pipeline: Any, labels: Tensor | None) -> tuple[Parameterisation, Network]:
    """What a pipeline's network is told and means, and the network for images of these classes.

    Args:
        labels: [B] or None: the null label for a network that has one.
    """
    unet, null = pipeline.unet, None if labels is not None else _null_label(pipeline)
    told = bool(pipeline.config.get("self_conditioning", 0.0))  # nothing: a density has no memory

    def network(sample: Tensor, time: Tensor) -> Tensor:
        given = labels if null is None else torch.full_like(time, null, dtype=torch.int64)
        seen = torch.zeros_like(sample) if told else None
        output = run_network(unet, sample.to(unet.dtype), time, given, seen=seen)
        return output.to(sample.dtype)

    return _parameterisation(pipeline), network


def _parameterisation(pipeline: Any) -> Parameterisation:
    """HfgenError for a pipeline that is no denoiser of pixels."""
    name, parts = type(pipeline).__name__, pipeline.components
    if parts.get("vae") is not None or parts.get("vqvae") is not None:
        raise HfgenError(
            f"{name}: a latent model; its ODE gives the density of latents, not of images, so no "
            "bits/dim is computed; valid: metrics of samples, or elbo of its autoencoder's run"
        )
    if "unet" not in parts or "scheduler" not in parts:
        raise HfgenError(f"{name} has no such likelihood: this needs a unet and a scheduler")
    if parts.get("text_encoder") is not None:
        raise HfgenError(f"{name}: draws from texts; its p(image | text) is not computed")
    try:
        return parameterisation(pipeline.scheduler)
    except ValueError as error:
        raise HfgenError(f"{name}: {error}") from error


def _condition(pipeline: Any, num_classes: int | None) -> Condition:
    """The classes of the images where they have any, else the null label."""
    known = network_classes(pipeline.unet)
    if known is None:
        return Condition.NONE
    if num_classes is None:
        _null_label(pipeline)
        return Condition.NULL_LABEL
    null = bool(pipeline.config.get("label_dropout", 0.0))
    check_classes(type(pipeline).__name__, known - null, num_classes)
    return Condition.CLASS


def _null_label(pipeline: Any) -> int | None:
    """The label that stands for no class; None for a network without classes."""
    known = network_classes(pipeline.unet)
    if known is None:
        return None
    if not pipeline.config.get("label_dropout", 0.0):
        raise HfgenError(
            f"{type(pipeline).__name__}: class-conditional without a null label: trained with "
            "label_dropout 0, so it has p(x | class) but no p(x), and these images have no labels"
        )
    return known - 1
