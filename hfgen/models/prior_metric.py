"""The density that a learned Riemannian metric gives a latent space."""

from __future__ import annotations

import math

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor, nn

from hfgen.models.layers.metric import Metric, geodesics
from hfgen.models.layers.prior import Generators, Prior

ENVELOPE = 3.0
"""Standard deviation of the envelope, in those of the centroids."""
PROPOSALS = 20_000


class MetricPrior(ModelMixin, ConfigMixin, Prior):
    """p(z) ~ sqrt(det G^-1(z)): many draws where data are (Chadebec et al. 2022, TPAMI, eq. 12).

    The metric's network reads an image and gives the matrix of its centroid; it is trained by the
    Riemannian Hamiltonian ELBO. ``fit`` then places the centroids: posterior means of training
    images. The paper cuts the density off at a compact set, since G^-1 stays lambda I far away;
    here a wide normal around the centroids does so smoothly. Draws come of Hamiltonian Monte Carlo
    from the centroids, as in the paper.

    Args:
        latent_dim: D.
        num_centroids: how many training images the metric keeps.
        sample_size, in_channels: of the images.
        hidden_size: of the metric's network.
        temperature: T, in units of the latents.
        regularization: lambda.
        num_steps, num_leapfrog, step_size: of the chain that draws.
    """

    centroids: Tensor
    matrices: Tensor
    centre: Tensor
    spread: Tensor
    log_normaliser: Tensor

    @register_to_config
    def __init__(
        self,
        latent_dim: int = 2,
        num_centroids: int = 200,
        sample_size: int = 28,
        in_channels: int = 1,
        hidden_size: int = 400,
        temperature: float = 0.8,
        regularization: float = 0.01,
        num_steps: int = 50,
        num_leapfrog: int = 10,
        step_size: float = 0.05,
    ):
        super().__init__()
        if latent_dim < 1 or num_centroids < 2:
            raise ValueError(
                "MetricPrior: needs latent_dim >= 1 and num_centroids >= 2, got "
                f"{latent_dim} and {num_centroids}"
            )
        for name, value in (("temperature", temperature), ("regularization", regularization)):
            if value <= 0:
                raise ValueError(f"MetricPrior: {name} must be positive, got {value}")
        self.net = nn.Sequential(
            nn.Flatten(),
            nn.Linear(in_channels * sample_size**2, hidden_size),
            nn.ReLU(),
            nn.Linear(hidden_size, latent_dim * (latent_dim + 1) // 2),
        )
        self.register_buffer("centroids", torch.zeros(num_centroids, latent_dim))
        self.register_buffer("matrices", torch.eye(latent_dim).repeat(num_centroids, 1, 1))
        self.register_buffer("centre", torch.zeros(latent_dim))
        self.register_buffer("spread", torch.tensor(ENVELOPE))
        self.register_buffer("log_normaliser", torch.zeros(()))

    def read(self, images: Tensor) -> Tensor:
        """Images [B, C, H, W] -> M = L L^T [B, D, D], L lower triangular with a positive diagonal
        (eq. 9's L_psi).
        """
        numbers, dim = self.net(images), self.config["latent_dim"]
        lower = numbers.new_zeros(len(numbers), dim, dim)
        rows, columns = torch.tril_indices(dim, dim, -1)
        lower[:, rows, columns] = numbers[:, dim:]
        lower = lower + torch.diag_embed(numbers[:, :dim].exp())
        return lower @ lower.transpose(1, 2)

    def metric(self, centroids: Tensor | None = None, matrices: Tensor | None = None) -> Metric:
        """Around given centroids [N, D] with matrices [N, D, D]; those of ``fit`` by default."""
        return Metric(
            self.centroids if centroids is None else centroids,
            self.matrices if matrices is None else matrices,
            self.config["temperature"],
            self.config["regularization"],
        )

    @torch.no_grad()
    def fit(self, means: Tensor, images: Tensor) -> None:
        """Place the centroids at posterior means [N, D] of training images [N, C, H, W]."""
        if means.shape != self.centroids.shape:
            raise ValueError(
                f"MetricPrior: centroids are {list(self.centroids.shape)}, got means of "
                f"{list(means.shape)}"
            )
        self.centroids.copy_(means)
        self.matrices.copy_(self.read(images))
        self.centre.copy_(means.mean(0))
        self.spread.copy_(ENVELOPE * means.std(0).square().mean().sqrt())
        self.log_normaliser.copy_(self._log_total())

    def _log_density(self, z: Tensor) -> Tensor:
        away = (z - self.centre).square().sum(1) / self.spread**2
        return self.metric().log_volume(z) - 0.5 * away

    def _slope(self, z: Tensor) -> Tensor:
        return -self.metric().slope(z) - (z - self.centre) / self.spread**2

    def _log_total(self) -> Tensor:
        """ln of the density's integral by importance sampling: half of the draws around the
        centroids, half of the envelope.
        """
        count, dim = self.centroids.shape
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(PROPOSALS, dim, generator=generator).to(self.centroids)
        near, half = self.config["temperature"] / math.sqrt(2), PROPOSALS // 2
        chosen = self.centroids[torch.arange(half, device=noise.device) % count]
        z = torch.cat([chosen + near * noise[:half], self.centre + self.spread * noise[half:]])
        parts = []
        for rows in z.split(1000):
            square = torch.cdist(rows, self.centroids).square() / near**2
            local = torch.logsumexp(-0.5 * square, 1) - math.log(count) - dim * math.log(near)
            wide = -0.5 * (rows - self.centre).square().sum(1) / self.spread**2
            wide = wide - dim * self.spread.log()
            proposal = torch.logaddexp(local, wide) - math.log(2) - dim / 2 * math.log(2 * math.pi)
            parts.append(self._log_density(rows) - proposal)
        return torch.logsumexp(torch.cat(parts), 0) - math.log(PROPOSALS)

    def log_prob(self, z: Tensor) -> Tensor:
        return self._log_density(z) - self.log_normaliser

    @torch.no_grad()
    def sample(
        self,
        batch_size: int = 1,
        generator: Generators = None,
        class_labels: Tensor | None = None,
        temperature: float = 1.0,
    ) -> Tensor:
        """Latents [batch_size, D]; ``temperature`` scales the momenta of the chain."""
        count, dim = self.centroids.shape
        steps, width = self.config["num_steps"], self.config["step_size"]
        shape = (batch_size, 2 + steps, dim + 1)
        noise = randn_tensor(shape, generator, self.centroids.device, self.centroids.dtype)
        uniform = torch.special.ndtr(noise[..., 0])
        first = (uniform[:, 0] * count).long().clamp(max=count - 1)
        z = self.centroids[first] + temperature * self.config["temperature"] * noise[:, 1, 1:]
        value = self._log_density(z)
        for i in range(steps):
            momentum = temperature * noise[:, 2 + i, 1:]
            there, speed, slope = z, momentum, self._slope(z)
            for _ in range(self.config["num_leapfrog"]):
                speed = speed + width / 2 * slope
                there = there + width * speed
                slope = self._slope(there)
                speed = speed + width / 2 * slope
            found = self._log_density(there)
            change = found - value + 0.5 * (momentum.square() - speed.square()).sum(1)
            taken = uniform[:, 2 + i].log() < change
            z = torch.where(taken[:, None], there, z)
            value = torch.where(taken, found, value)
        return z

    def geodesic(self, a: Tensor, b: Tensor, steps: int) -> Tensor:
        """Shortest paths under the metric from a to b [B, D], [B, steps, D]."""
        metric = self.metric()
        return geodesics(metric.inverse, a, b, steps)
