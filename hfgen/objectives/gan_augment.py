"""Differentiable augmentation between the images and the discriminator: DiffAugment, ADA, APA."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hfgen.errors import HfgenError, one_of
from hfgen.objectives import gan_transforms as transforms
from hfgen.objectives.base import Clock
from hfgen.objectives.gan_game import DISCRIMINATOR, Game
from hfgen.objectives.gan_state import StepSum
from hfgen.rng import Rng

POLICIES = ("color", "translation", "cutout")
PIPES = ("blit", "geometry", "color", "filter", "noise", "cutout")


@dataclass(frozen=True, kw_only=True)
class Augmentation(ABC):
    """What images pass on their way into the discriminator; its state is a module."""

    @abstractmethod
    def __call__(self, game: Game, kind: str, images: Tensor, rng: Rng) -> Tensor:
        """What the discriminator sees of ``images`` [B, C, H, W]; ``kind`` is "real" or "fake"."""

    def observe(self, logits: Tensor, game: Game) -> None:
        """Look at the logits [B] of real training images; nothing by default."""
        return None

    def modules(self) -> dict[str, nn.Module]:
        """State, by role; none by default."""
        return {}


@dataclass(frozen=True, kw_only=True)
class DiffAugment(Augmentation):
    """Every image, always (Zhao et al. 2020, https://arxiv.org/abs/2006.10738).

    Args:
        policy: which of color, translation and cutout, in this order.
    """

    policy: tuple[str, ...] = POLICIES

    def __post_init__(self) -> None:
        for name in self.policy:
            if name not in POLICIES:
                raise one_of("objective.augmentation.policy", name, POLICIES)

    def __call__(self, game: Game, kind: str, images: Tensor, rng: Rng) -> Tensor:
        if "color" in self.policy:
            images = transforms.jitter(images, rng)
        if "translation" in self.policy:
            images = transforms.translate(images, rng)
        if "cutout" in self.policy:
            images = transforms.cutout(images, 1.0, rng)
        return images


class Probability(nn.Module):
    """A probability that rises while the discriminator overfits and falls while it does not.

    r = mean sign(D(x)) over real training images; p moves by sign(r - target) * images / speed and
    stays in [0, limit] (Karras et al. 2020, ADA, section 3.1). It changes only between steps, so
    that no split of a batch can be seen.

    Args:
        start: the first p.
    """

    p: Tensor

    def __init__(self, start: float):
        super().__init__()
        self.sums = StepSum(1)
        self.register_buffer("p", torch.tensor(float(start), dtype=torch.float64))

    @torch.no_grad()
    def observe(
        self, logits: Tensor, step: int, *, target: float, speed: int, interval: int, limit: float
    ) -> None:
        """Move p by what earlier steps saw, once ``interval`` images have come; remember
        ``logits``.
        """
        taken = self.sums.take(step, at_least=interval)
        if taken is not None:
            mean, images = taken
            self.p.add_(torch.sign(mean[0] - target) * images / speed).clamp_(0, limit)
        self.sums.add(logits.sign()[:, None], step)


@dataclass(frozen=True, kw_only=True)
class Adaptive(Augmentation):
    """Common to ADA and APA: how p adapts.

    Args:
        target: the sign of the logits of real images to hold; not set, p stays at ``start``.
        speed: images in which p can go from 0 to 1.
        interval: images between two changes of p.
        start: p at the start.
        limit: p never exceeds this.
    """

    target: float | None = 0.6
    speed: int = 500_000
    interval: int = 256
    start: float = 0.0
    limit: float = 0.8

    def __post_init__(self) -> None:
        if not 0 <= self.start <= self.limit <= 1:
            raise HfgenError(
                f"objective.augmentation: 0 <= start <= limit <= 1 must hold, got {self.start} and"
                f" {self.limit}"
            )
        if self.speed < 1 or self.interval < 1:
            raise HfgenError("objective.augmentation: speed and interval must be positive")

    def modules(self) -> dict[str, nn.Module]:
        return {"augment": Probability(self.start)}

    def observe(self, logits: Tensor, game: Game) -> None:
        if self.target is not None:
            module: nn.Module = game.models["augment"]
            module.observe(  # type: ignore[operator]
                logits,
                game.clock.step,
                target=self.target,
                speed=self.speed,
                interval=self.interval,
                limit=self.limit,
            )

    def probability(self, game: Game) -> float:
        """p at this step."""
        return float(game.models["augment"].p)  # type: ignore[arg-type]


@dataclass(frozen=True, kw_only=True)
class ADA(Adaptive):
    """Adaptive discriminator augmentation (Karras et al. 2020, https://arxiv.org/abs/2006.06676).

    Flips, quarter turns and whole shifts; scaling, rotation and fractional shifts; colour; bands of
    frequencies; noise; cutout: each with probability p (appendix B). Maps are composed and sampled
    once, bilinearly with reflected borders.

    Args:
        pipe: which of blit, geometry, color, filter, noise and cutout (the paper's best: the first
            three).
        oversample: sample at twice the resolution, between wavelet filters (the paper's way; costs
            four times a plain sampling).
        color_strength: share of p with which colours change (R3GAN: 0.5).
        ramp_images: p rises from 0 to ``limit`` along half a cosine over so many images instead of
            adapting (R3GAN); set ``target`` to null with it.
    """

    pipe: tuple[str, ...] = ("blit", "geometry", "color")
    oversample: bool = False
    color_strength: float = 1.0
    ramp_images: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.pipe:
            if name not in PIPES:
                raise one_of("objective.augmentation.pipe", name, PIPES)
        if self.ramp_images is not None and self.target is not None:
            raise HfgenError("objective.augmentation: ramp_images wants target: null")

    def probability(self, game: Game) -> float:
        if self.ramp_images is not None:
            return ramp(game.clock, self.limit, self.ramp_images)
        return super().probability(game)

    def __call__(self, game: Game, kind: str, images: Tensor, rng: Rng) -> Tensor:
        p = self.probability(game)
        return augment(images, p, rng, self.pipe, self.color_strength, self.oversample)


def ramp(clock: Clock, limit: float, images: int) -> float:
    """From 0 to ``limit`` along half a cosine over ``images``."""
    return limit * 0.5 * (1 - math.cos(math.pi * clock.ramp(images)))


def augment(
    images: Tensor,
    p: float,
    rng: Rng,
    pipe: tuple[str, ...] = PIPES,
    color_strength: float = 1.0,
    oversample: bool = False,
) -> Tensor:
    """ADA's transformations with probability ``p`` each; exactly the images themselves at p = 0.

    Maps and filters are too fine for half precision: images go through in float32 at least.
    """
    if p == 0:
        return images
    images = images.to(torch.promote_types(images.dtype, torch.float32))
    with torch.autocast(images.device.type, enabled=False):
        return _piped(images, p, rng, pipe, color_strength, oversample)


def _piped(
    images: Tensor,
    p: float,
    rng: Rng,
    pipe: tuple[str, ...],
    color_strength: float,
    oversample: bool,
) -> Tensor:
    inverse = torch.eye(3, device=rng.device).expand(len(images), 3, 3)
    if "blit" in pipe:
        inverse = inverse @ transforms.blit(images, p, rng)
    if "geometry" in pipe:
        inverse = inverse @ transforms.geometry(images, p, rng)
    if "blit" in pipe or "geometry" in pipe:
        warp = transforms.warp_oversampled if oversample else transforms.warp
        images = warp(images, inverse)
    if "color" in pipe:
        images = transforms.color(images, p * color_strength, rng)
    if "filter" in pipe:
        images = transforms.band_filter(images, p, rng)
    if "noise" in pipe:
        images = transforms.noise(images, p, rng)
    if "cutout" in pipe:
        images = transforms.cutout(images, p, rng)
    return images


@dataclass(frozen=True, kw_only=True)
class APA(Adaptive):
    """Adaptive pseudo augmentation (Jiang et al. 2021, https://arxiv.org/abs/2111.06849).

    With probability p the discriminator is shown a generated image and told that it is real.
    """

    def __call__(self, game: Game, kind: str, images: Tensor, rng: Rng) -> Tensor:
        p = self.probability(game)
        if kind == "fake" or game.side != DISCRIMINATOR or p == 0:
            return images
        z = rng.randn("pseudo", game.z.shape).to(images)
        with torch.no_grad():
            pseudo = game.generate(z)
        deceive = (rng.rand("pseudo?", (len(images),)) < p).to(images.device)
        return torch.where(deceive[:, None, None, None], pseudo, images)


AUGMENTATIONS: dict[str, type[Augmentation]] = {
    "diffaugment": DiffAugment,
    "ada": ADA,
    "apa": APA,
}
"""Names for recipes."""
