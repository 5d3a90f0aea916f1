"""Regularisers of adversarial training: hyperparameters plus a pure call on one micro-batch.

Each returns the penalty of every row, [B], or a scalar, without its weight. With ``every`` = n > 1
it becomes a phase of its own on each n-th step, with n times the weight (lazy regularisation,
Karras et al. 2020, StyleGAN2, appendix B).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hfgen.errors import HfgenError
from hfgen.objectives.base import Clock
from hfgen.objectives.gan_class_losses import (
    conditional_contrastive,
    data_to_data,
    invariant_information,
)
from hfgen.objectives.gan_game import DISCRIMINATOR, GENERATOR, Game
from hfgen.objectives.gan_state import StepAverage
from hfgen.objectives.gan_transforms import slight, warp
from hfgen.rng import Rng


@dataclass(frozen=True, kw_only=True)
class Regularizer(ABC):
    """A term of the loss of one side, or of both.

    Args:
        every: run on each n-th step.

    ``couples_rows``: the penalty of a row depends on others; ``differentiates``: it is a function
    of a gradient, so that training takes a second derivative.
    """

    every: int = 1
    sides: ClassVar[tuple[str, ...]] = (DISCRIMINATOR,)
    leaves: ClassVar[frozenset[str]] = frozenset()
    couples_rows: ClassVar[bool] = False
    differentiates: ClassVar[bool] = False

    @abstractmethod
    def __call__(self, game: Game) -> Tensor:
        """The unweighted penalty: [B], or a scalar where rows act together."""

    @abstractmethod
    def scale(self, clock: Clock, pixels: int) -> float:
        """The weight at this time, for images of ``pixels`` = height * width."""

    def modules(self) -> dict[str, nn.Module]:
        """State, by role; none by default."""
        return {}


@dataclass(frozen=True, kw_only=True)
class Weighted(Regularizer):
    """A regulariser with one constant weight."""

    weight: float = 1.0

    def scale(self, clock: Clock, pixels: int) -> float:
        return self.weight


def cosine(clock: Clock, first: float, last: float, images: int | None = None) -> float:
    """From ``first`` to ``last`` along half a cosine over ``images`` (or the whole run), then
    constant.
    """
    share = clock.progress() if images is None else clock.ramp(images)
    return last + (first - last) * 0.5 * (1 + math.cos(math.pi * share))


def gradient(logits: Tensor, images: Tensor) -> Tensor:
    """d logits[i] / d images[i] for each row i, differentiable again. Rows must not see one
    another.
    """
    (result,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
    return result


def squared_norm(rows: Tensor) -> Tensor:
    """||row||^2 of each row, [B]."""
    return rows.square().flatten(1).sum(1)


@dataclass(frozen=True, kw_only=True)
class ZeroCentred(Regularizer):
    """Common to R1 and R2: (gamma / 2) ||grad_x D(x)||^2 (Mescheder et al. 2018, equations 8 and
    9).

    Args:
        gamma: not set, StyleGAN2's heuristic, see ``default_gamma``.
        decay: gamma falls to this share of itself along half a cosine (R3GAN: 0.1).
        decay_images: over so many images; not set, over the whole run.
    """

    gamma: float | None = None
    decay: float = 1.0
    decay_images: int | None = None
    differentiates: ClassVar[bool] = True

    def scale(self, clock: Clock, pixels: int) -> float:
        gamma = self.gamma
        if gamma is None:
            gamma = default_gamma(clock.total_batch_size, pixels)
        return 0.5 * cosine(clock, gamma, self.decay * gamma, self.decay_images)


def default_gamma(total_batch_size: int, pixels: int) -> float:
    """0.0002 * resolution^2 / batch (Karras et al. 2020, StyleGAN2-ADA, table 5 and its released
    code).

    The squared norm sums over pixels while neighbouring pixels move together, so that at one weight
    the penalty bites less as images grow; and a larger batch gives a cleaner gradient that needs
    less damping. It is a start to search from by factors of 2 to 5, not an optimum.
    """
    if total_batch_size < 1:
        raise ValueError("gamma is not set, and its default needs the clock's total_batch_size")
    return 0.0002 * pixels / total_batch_size


@dataclass(frozen=True, kw_only=True)
class R1(ZeroCentred):
    """Gradient at real images, before augmentation."""

    leaves: ClassVar[frozenset[str]] = frozenset({"real"})

    def __call__(self, game: Game) -> Tensor:
        return squared_norm(game.input_gradient("real"))


@dataclass(frozen=True, kw_only=True)
class R2(ZeroCentred):
    """Gradient at generated images, before augmentation."""

    leaves: ClassVar[frozenset[str]] = frozenset({"fake"})

    def __call__(self, game: Game) -> Tensor:
        return squared_norm(game.input_gradient("fake"))


@dataclass(frozen=True, kw_only=True)
class GradientPenalty(Weighted):
    """(||grad D(x^)|| - 1)^2 at random points (Gulrajani et al. 2017, WGAN-GP, equation 3).

    Args:
        at: ``between`` a real and a generated image, or ``around`` a real one: DRAGAN (Kodali et
            al. 2017, algorithm 1), noise of half the image's own standard deviation, so that rows
            stay independent (the paper takes the batch's).
        one_sided: punish only norms above 1 (Petzka et al. 2018, WGAN-LP, equation 8).
    """

    weight: float = 10.0
    at: Literal["between", "around"] = "between"
    one_sided: bool = False
    differentiates: ClassVar[bool] = True

    def __call__(self, game: Game) -> Tensor:
        x = self._points(game).requires_grad_(True)
        norm = (squared_norm(gradient(game.judge(x).logits, x)) + 1e-12).sqrt()
        excess = F.relu(norm - 1) if self.one_sided else norm - 1
        return excess.square()

    def _points(self, game: Game) -> Tensor:
        real = game.real.detach()
        if self.at == "between":
            mix = game.rng.rand("gp", (len(real), 1, 1, 1)).to(real)
            return torch.lerp(real, game.fake.detach().to(real), mix)
        spread = real.flatten(1).std(1)[:, None, None, None]
        return real + 0.5 * spread * game.rng.rand("gp", real.shape).to(real)


@dataclass(frozen=True, kw_only=True)
class Orthogonal(Weighted):
    """sum over layers ||W W^T * (1 - I)||_F^2 (Brock et al. 2019, BigGAN, equation 3); not on
    embeddings.

    Args:
        side: whose weights.
    """

    weight: float = 1e-4
    side: Literal["generator", "discriminator"] = "generator"

    @property
    def sides(self) -> tuple[str, ...]:  # type: ignore[override]
        return (self.side,)

    def __call__(self, game: Game) -> Tensor:
        layers = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)
        weights = [m.weight for m in game.models[self.side].modules() if isinstance(m, layers)]
        return torch.stack([off_diagonal(weight.flatten(1)) for weight in weights]).sum()


def off_diagonal(weight: Tensor) -> Tensor:
    """||W W^T * (1 - I)||_F^2 of a matrix."""
    gram = weight @ weight.T
    return (gram - gram.diag().diag()).square().sum()


@dataclass(frozen=True, kw_only=True)
class Consistency(Regularizer):
    """(D(x) - D(T(x)))^2 under flips and shifts (Zhang et al. 2020, CR; Zhao et al. 2021, bCR,
    algorithm 1).

    Args:
        real: weight at real images (10 in both papers).
        fake: weight at generated ones (0: CR; 10: bCR).
        shift: largest shift, in pixels.
    """

    real: float = 10.0
    fake: float = 0.0
    shift: int = 4

    def scale(self, clock: Clock, pixels: int) -> float:
        return 1.0

    def __call__(self, game: Game) -> Tensor:
        moved = flip_and_shift(game.real, self.shift, game.rng.fork("real"))
        total = self.real * (game.real_verdict.logits - game.judge(moved).logits).square()
        if self.fake:
            moved = flip_and_shift(game.fake, self.shift, game.rng.fork("fake"))
            change = game.fake_verdict.logits - game.judge(moved).logits
            total = total + self.fake * change.square()
        return total


def flip_and_shift(images: Tensor, shift: int, rng: Rng) -> Tensor:
    """Each row mirrored with probability 1/2 and moved by up to ``shift`` pixels, edges
    repeated.
    """
    rows, _, height, width = images.shape
    flip = rng.rand("flip", (rows,)).to(images.device) < 0.5
    images = torch.where(flip[:, None, None, None], images.flip(3), images)
    padded = F.pad(images, [shift] * 4, mode="replicate")
    offset = rng.randint("shift", 2 * shift + 1, (rows, 2)).to(images.device)
    y = offset[:, :1] + torch.arange(height, device=images.device)
    x = offset[:, 1:] + torch.arange(width, device=images.device)
    row = torch.arange(rows, device=images.device)[:, None, None]
    return padded.permute(0, 2, 3, 1)[row, y[:, :, None], x[:, None, :]].permute(0, 3, 1, 2)


@dataclass(frozen=True, kw_only=True)
class LatentConsistency(Regularizer):
    """zCR: near latents, near verdicts but distant images (Zhao et al. 2021, ICR, algorithm 2).

    D: discriminator * (D(G(z)) - D(G(z + dz)))^2; G: -generator * ||G(z) - G(z + dz)||^2 / values.

    Args:
        discriminator, generator: the two weights (the paper: 5 and 0.5 on CIFAR-10).
        std: of dz.
    """

    discriminator: float = 5.0
    generator: float = 0.5
    std: float = 0.07
    sides: ClassVar[tuple[str, ...]] = (DISCRIMINATOR, GENERATOR)

    def scale(self, clock: Clock, pixels: int) -> float:
        return 1.0

    def __call__(self, game: Game) -> Tensor:
        noise = self.std * game.rng.randn("dz", game.z.shape).to(game.z)
        if game.side == GENERATOR:
            change = game.generate(game.z + noise) - game.fake
            return -self.generator * change.square().flatten(1).mean(1)
        with torch.no_grad():
            near = game.generate(game.z + noise)
        change = game.fake_verdict.logits - game.judge(near).logits
        return self.discriminator * change.square()


@dataclass(frozen=True, kw_only=True)
class LeCam(Weighted):
    """(D(x) - a_F)^2 + (D(G(z)) - a_R)^2 (Tseng et al. 2021, equation 7); for small data sets.

    a_R and a_F are running means of the logits of real and of generated images over earlier steps.

    Args:
        decay: of the running means.
    """

    weight: float = 0.1
    decay: float = 0.99

    def modules(self) -> dict[str, nn.Module]:
        return {"lecam": StepAverage(2, self.decay)}

    def __call__(self, game: Game) -> Tensor:
        logits = torch.stack([game.real_verdict.logits, game.fake_verdict.logits], dim=1)
        anchors, started = game.models["lecam"](logits.detach(), game.clock.step)
        if not started:
            return 0 * logits.sum(1)
        return (logits - anchors.flip(0).to(logits)).square().sum(1)


@dataclass(frozen=True, kw_only=True)
class FeatureMatching(Weighted):
    """||mean f(x) - mean f(G(z))||^2 over the discriminator's features (Salimans et al. 2016,
    section 3.1).
    """

    sides: ClassVar[tuple[str, ...]] = (GENERATOR,)
    couples_rows: ClassVar[bool] = True

    def __call__(self, game: Game) -> Tensor:
        real, fake = game.real_verdict.features, game.fake_verdict.features
        return (real.mean(0) - fake.mean(0)).square().sum()


@dataclass(frozen=True, kw_only=True)
class ModeSeeking(Weighted):
    """1 / (|G(z1) - G(z2)| / |z1 - z2| + eps) (Mao et al. 2019, MSGAN, equation 3), per row, mean
    absolute differences."""

    sides: ClassVar[tuple[str, ...]] = (GENERATOR,)

    def __call__(self, game: Game) -> Tensor:
        other = game.rng.randn("z2", game.z.shape).to(game.z)
        images = (game.generate(other) - game.fake).abs().flatten(1).mean(1)
        latents = (other - game.z).abs().flatten(1).mean(1)
        return 1 / (images / latents + 1e-5)


@dataclass(frozen=True, kw_only=True)
class PathLength(Weighted):
    """(||J_w^T y|| - a)^2, y ~ N(0, I) / sqrt(pixels), a the running mean of the norm (Karras et
    al. 2020, StyleGAN2, equation 4). The generator must have ``map`` and ``synthesize``.

    Args:
        decay: of the running mean.
    """

    weight: float = 2.0
    every: int = 4
    decay: float = 0.99
    sides: ClassVar[tuple[str, ...]] = (GENERATOR,)
    differentiates: ClassVar[bool] = True

    def modules(self) -> dict[str, nn.Module]:
        return {"path_length": StepAverage(1, self.decay)}

    def __call__(self, game: Game) -> Tensor:
        if not callable(getattr(game.generator, "synthesize", None)):
            raise HfgenError(
                f"objective.regularizers: path_length needs a generator with styles, as "
                f"StyleGAN2Generator; {type(game.generator).__name__} has none"
            )
        w = game.generator.map(game.z, game.labels("generator"))
        images = game.generator.synthesize(w).sample
        noise = game.rng.randn("path", images.shape).to(images) / math.sqrt(images[0, 0].numel())
        (jacobian,) = torch.autograd.grad((images * noise).sum(), w, create_graph=True)
        length = jacobian.square().sum(-1).flatten(1).mean(1).sqrt()
        mean, _ = game.models["path_length"](length.detach()[:, None], game.clock.step)
        return (length - mean.to(length)).square()


@dataclass(frozen=True, kw_only=True)
class AuxiliaryClassifier(Weighted):
    """Cross-entropy of the label (Odena et al. 2017, AC-GAN, equation 2): D on real, G on generated
    images.

    The discriminator must be made with ``conditioning: auxiliary``.
    """

    sides: ClassVar[tuple[str, ...]] = (DISCRIMINATOR, GENERATOR)

    def __call__(self, game: Game) -> Tensor:
        verdict, labels = labelled(game, "auxiliary_classifier", "class_logits", "auxiliary")
        return F.cross_entropy(verdict.class_logits, labels, reduction="none")


def labelled(game: Game, name: str, output: str, conditioning: str) -> tuple[Any, Tensor]:
    """The verdict on real images for the discriminator, on generated ones for the generator, and
    their labels; HfgenError where the discriminator does not give ``output``.
    """
    verdict = game.real_verdict if game.side == DISCRIMINATOR else game.fake_verdict
    labels = game.labels("generator")
    if getattr(verdict, output) is None or labels is None:
        raise HfgenError(
            f"objective.regularizers: {name} needs a class-conditional generator and a "
            f"discriminator with conditioning: {conditioning}"
        )
    return verdict, labels


@dataclass(frozen=True, kw_only=True)
class TwinAuxiliaryClassifier(Weighted):
    """AC-GAN with a second classifier that learns on generated images and that the generator
    escapes (Gong et al. 2019, TAC-GAN, equation 5), since the first alone rewards images that are
    easy to tell apart.

    D: CE(C(x), y) + CE(C'(G(z, y)), y); G: CE(C(G(z, y)), y) - CE(C'(G(z, y)), y). The
    discriminator must be made with ``conditioning: twin_auxiliary``.
    """

    sides: ClassVar[tuple[str, ...]] = (DISCRIMINATOR, GENERATOR)

    def __call__(self, game: Game) -> Tensor:
        verdict, labels = labelled(
            game, "twin_auxiliary_classifier", "twin_logits", "twin_auxiliary"
        )
        first = F.cross_entropy(verdict.class_logits, labels, reduction="none")
        twin = F.cross_entropy(game.fake_verdict.twin_logits, labels, reduction="none")
        return first + twin if game.side == DISCRIMINATOR else first - twin


@dataclass(frozen=True, kw_only=True)
class ConditionalContrastive(Weighted):
    """ContraGAN's 2C loss (Kang & Park 2020, equation 8): D on real, G on generated images; see
    ``gan_class_losses``. The discriminator must be made with ``conditioning: contrastive``.
    """

    temperature: float = 1.0
    sides: ClassVar[tuple[str, ...]] = (DISCRIMINATOR, GENERATOR)
    couples_rows: ClassVar[bool] = True

    def __call__(self, game: Game) -> Tensor:
        verdict, labels = labelled(game, "conditional_contrastive", "embeddings", "contrastive")
        return conditional_contrastive(
            verdict.embeddings, verdict.proxies, labels, self.temperature
        )


@dataclass(frozen=True, kw_only=True)
class DataToData(Weighted):
    """D2D-CE (Kang et al. 2021, ReACGAN): D on real, G on generated images; see
    ``gan_class_losses``. The discriminator must be made with ``conditioning: contrastive``.

    Args:
        weight: 0.5 on CIFAR-10 in the paper.
        temperature, positive, negative: t, m_p and m_n (there: 0.5, 0.98 and 0.02).
    """

    weight: float = 0.5
    temperature: float = 0.5
    positive: float = 0.98
    negative: float = 0.02
    sides: ClassVar[tuple[str, ...]] = (DISCRIMINATOR, GENERATOR)
    couples_rows: ClassVar[bool] = True

    def __call__(self, game: Game) -> Tensor:
        verdict, labels = labelled(game, "d2d_ce", "embeddings", "contrastive")
        settings = (self.temperature, self.positive, self.negative)
        return data_to_data(verdict.embeddings, verdict.proxies, labels, *settings)


@dataclass(frozen=True, kw_only=True)
class MutualInformation(Weighted):
    """InfoGAN's lower bound on I(c; G(z, c)) (Chen et al. 2016, equation 5), on generated images,
    both sides.

    The generator's ``categorical_codes`` = K makes the first K latents the code (their argmax is
    uniform); the next ``continuous`` latents are Gaussian codes, predicted with unit variance. The
    discriminator must be made with ``num_codes`` = K + continuous.

    Args:
        continuous: number of continuous codes.
        continuous_weight: of their part (0.1 in the paper's appendix C).
    """

    continuous: int = 0
    continuous_weight: float = 0.1
    sides: ClassVar[tuple[str, ...]] = (DISCRIMINATOR, GENERATOR)

    def __call__(self, game: Game) -> Tensor:
        codes, k = game.fake_verdict.codes, game.num_codes
        if codes is None or codes.shape[1] != k + self.continuous:
            raise HfgenError(
                f"objective.regularizers: mutual_information needs a discriminator with num_codes: "
                f"{k + self.continuous}"
            )
        loss = codes.new_zeros(len(codes))
        if game.codes is not None:
            loss = loss + F.cross_entropy(codes[:, :k], game.codes, reduction="none")
        if self.continuous:
            error = codes[:, k:] - game.z[:, k : k + self.continuous]
            loss = loss + self.continuous_weight * 0.5 * error.square().sum(1)
        return loss


@dataclass(frozen=True, kw_only=True)
class InvariantInformation(Weighted):
    """The categorical code that the discriminator reads from a real image is informative, and the
    same after a slight affine map: Invariant Information Clustering (Ji et al. 2019, equation 3) as
    a companion of ``mutual_information``.

    InfoGAN alone may settle on any factor, such as slant; that codes of real images should survive
    such transformations makes it the identity (the idea of Ojha et al. 2020, "Elastic-InfoGAN",
    with a contrastive loss there). On the discriminator's side only.

    Args:
        weight: below 1 a code takes longer to become a class, above 5 samples of a code look alike.
        rotation: largest angle, in degrees.
        zoom: largest change of either axis, as a share.
        shear: largest shear.
        shift: largest shift, as a share of the side.
    """

    weight: float = 3.0
    rotation: float = 15.0
    zoom: float = 0.2
    shear: float = 0.3
    shift: float = 0.1
    couples_rows: ClassVar[bool] = True

    def __call__(self, game: Game) -> Tensor:
        codes, k = game.real_verdict.codes, game.num_codes
        if codes is None or not 2 <= k <= codes.shape[1]:
            raise HfgenError(
                "objective.regularizers: invariant_information needs a generator with "
                "categorical_codes: K, from 2 on, and a discriminator with as many num_codes"
            )
        ranges = (self.rotation, self.zoom, self.shear, self.shift)
        maps = slight(len(game.real), *ranges, game.rng.fork("invariant"))
        moved = game.judge(warp(game.real, maps)).codes
        return invariant_information(codes[:, :k].float(), moved[:, :k].float())


@dataclass(frozen=True, kw_only=True)
class Reconstruction(Weighted):
    """Mean squared error between what the discriminator saw of a real image, at half its side, and
    what its decoder makes of its features (Liu et al. 2021, equation 3, by pixels instead of
    LPIPS). The discriminator must have ``reconstruct``: ``LightweightDiscriminator``.
    """

    def __call__(self, game: Game) -> Tensor:
        maps = game.real_verdict.maps
        if maps is None:
            raise HfgenError(
                "objective.regularizers: reconstruction needs a discriminator with a decoder, as "
                "LightweightDiscriminator"
            )
        target = F.avg_pool2d(game.view("real").detach(), 2)
        return (game.discriminator.reconstruct(maps) - target).square().flatten(1).mean(1)


REGULARIZERS: dict[str, type[Regularizer]] = {
    "r1": R1,
    "r2": R2,
    "gradient_penalty": GradientPenalty,
    "orthogonal": Orthogonal,
    "consistency": Consistency,
    "latent_consistency": LatentConsistency,
    "lecam": LeCam,
    "feature_matching": FeatureMatching,
    "mode_seeking": ModeSeeking,
    "path_length": PathLength,
    "reconstruction": Reconstruction,
    "auxiliary_classifier": AuxiliaryClassifier,
    "twin_auxiliary_classifier": TwinAuxiliaryClassifier,
    "conditional_contrastive": ConditionalContrastive,
    "d2d_ce": DataToData,
    "mutual_information": MutualInformation,
    "invariant_information": InvariantInformation,
}
"""Names for recipes."""
