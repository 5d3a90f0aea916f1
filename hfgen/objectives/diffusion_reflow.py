"""Reflow: rectified flow once more, on the pairs that a trained flow has made straight."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hfgen.denoising import Parameterisation, like_image
from hfgen.errors import HfgenError
from hfgen.objectives.base import Batch
from hfgen.objectives.diffusion import Diffusion, class_labels, predict
from hfgen.rng import Rng


@dataclass(frozen=True, kw_only=True)
class Reflow(Diffusion):
    """2-rectified flow (Liu et al. 2022, section 2.2): noise with the image that a frozen teacher
    makes of it, so that paths cross less and few steps are enough.

    The pairs are made as they are needed, never stored: every step has new ones. The data give
    the labels only.

    Args:
        teacher: the frozen role, of the same path and prediction as the network.
        teacher_steps: DDIM (on the linear path: Euler) steps to an image; each is one evaluation
            without gradient.
    """

    teacher: str = "teacher"
    teacher_steps: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.teacher_steps < 1:
            raise HfgenError(f"teacher_steps must be at least 1, got {self.teacher_steps}")

    def pairs(
        self, models: Mapping[str, nn.Module], param: Parameterisation, batch: Batch, rng: Rng
    ) -> tuple[Tensor, Tensor]:
        if self.teacher not in models:
            raise HfgenError(f"model.{self.teacher}: missing; give the run of a trained flow")
        network = models[self.teacher]
        noise = rng.randn("noise", batch["images"].shape)
        labels = class_labels(network, batch, rng, 0.0)
        return deterministic_samples(network, param, noise, labels, self.teacher_steps), noise


@torch.no_grad()
def deterministic_samples(
    network: nn.Module, param: Parameterisation, noise: Tensor, labels: Tensor | None, steps: int
) -> Tensor:
    """Images [B, C, H, W] of ``noise`` by ``steps`` of DDIM, even in the path's time (Song et al.
    2021, eq. 12 with sigma = 0).
    """
    path = param.path
    shares = torch.linspace(1, 0, steps + 1, device=noise.device).clamp(max=1 - 1e-6)
    image, remaining = noise, noise
    x_t = path.add_noise(torch.zeros_like(noise), noise, path.at(shares[:1]).expand(len(noise)))
    for share, after in zip(shares[:-1], shares[1:], strict=True):
        t = path.at(share[None]).expand(len(noise))
        image = param.denoised(predict(network, param, x_t, t, labels), x_t, t)
        remaining = param.noise(image, x_t, t)
        alpha, sigma = (like_image(v, noise) for v in path.alpha_sigma(path.at(after[None])))
        x_t = alpha * image + sigma * remaining
    return image
