"""A hierarchical VAE with top-down inference."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.autoencoders.vae import DecoderOutput
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from hfgen.models.layers.conditioning import one_hot_labels
from hfgen.models.layers.conv import DownBlock, ResBlock, UpBlock, group_norm
from hfgen.models.layers.posterior import DiagonalGaussian, Posterior, VAEOutput

Choose = Callable[[int, Tensor], Tensor]
"""Given the number of a stochastic layer and the state, its whitened latents."""


class LadderPosterior(Posterior):
    """q(e_1 | x) q(e_2 | e_1, x) ... over the whitened latents of a ``LadderVAE``.

    Args:
        model: whose layers say what each conditional is.
        features: of the images, [B, C, r, r] for each resolution r.
        start: the state at the top, [B, C, r, r].
    """

    def __init__(self, model: LadderVAE, features: dict[int, Tensor], start: Tensor):
        self.model, self.features, self.start = model, features, start
        self._terms: Tensor | None = None

    @property
    def noise_shape(self) -> torch.Size:
        return torch.Size((len(self.start), *self.model.latent_shape))

    def _conditional(self, layer: int, h: Tensor) -> DiagonalGaussian:
        features = self.features[h.shape[-1]]
        features = features.repeat(len(h) // len(features), 1, 1, 1)
        return self.model.layers[layer].posterior(h, features)  # type: ignore[operator]

    def rsample(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        flat = noise.reshape(-1, noise.shape[-1])
        parts = self.model.split(flat)
        chosen, log_q, terms = [], [], []

        def choose(layer: int, h: Tensor) -> Tensor:
            conditional = self._conditional(layer, h)
            drawn, log_density = conditional.rsample(parts[layer])
            chosen.append(drawn.flatten(1))
            log_q.append(log_density)
            terms.append(conditional.kl_terms())
            return drawn

        self.model.walk(self.start.repeat(len(flat) // len(self.start), 1, 1, 1), choose)
        self._terms = torch.cat(terms, dim=1) if noise.dim() == 2 else None
        z = torch.cat(chosen, dim=1).view(noise.shape)
        return z, torch.stack(log_q).sum(0).view(noise.shape[:-1])

    def log_prob(self, z: Tensor) -> Tensor:
        """ln q(z|x) in nats of latents [B, D], [B]."""
        parts, log_q = self.model.split(z), []

        def choose(layer: int, h: Tensor) -> Tensor:
            log_q.append(self._conditional(layer, h).log_prob(parts[layer]))
            return parts[layer]

        self.model.walk(self.start, choose)
        return torch.stack(log_q).sum(0)

    def mode(self) -> Tensor:
        """Each conditional's mean, given the means above it."""
        means = []

        def choose(layer: int, h: Tensor) -> Tensor:
            mean = self._conditional(layer, h).mode()
            means.append(mean.flatten(1))
            return mean

        self.model.walk(self.start, choose)
        return torch.cat(means, dim=1)

    def kl_terms(self) -> Tensor | None:
        """Of each conditional, given the latents that ``rsample`` drew last; None before that."""
        return self._terms


class StochasticLayer(nn.Module):
    """One layer of latents in the top-down path: their prior, their posterior, what they do.

    The posterior is relative to the prior (Vahdat & Kautz 2020, eq. 2): z = m_p + s_p e with
    e ~ N(0, I) under the prior and e ~ N(dm, ds^2) under the posterior. So the whitened e are
    standard normal a priori, at every depth.
    """

    def __init__(self, channels: int, latent_channels: int):
        super().__init__()
        self.prior = nn.Sequential(
            group_norm(channels), nn.SiLU(), nn.Conv2d(channels, 2 * latent_channels, 3, padding=1)
        )
        self.relative = nn.Sequential(
            nn.Conv2d(2 * channels, channels, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(channels, 2 * latent_channels, 3, padding=1),
        )
        self.merge = nn.Conv2d(latent_channels, channels, 1)
        self.block = ResBlock(channels)
        nn.init.zeros_(self.relative[-1].weight)  # type: ignore[arg-type]

    def posterior(self, h: Tensor, features: Tensor) -> DiagonalGaussian:
        """State and features [B, C, r, r] -> q(e | the latents above, x)."""
        mean, logvar = self.relative(torch.cat([h, features], dim=1)).chunk(2, dim=1)
        return DiagonalGaussian(mean, logvar)

    def forward(self, h: Tensor, whitened: Tensor) -> Tensor:
        mean, raw = self.prior(h).chunk(2, dim=1)
        z = mean + torch.exp(torch.tanh(raw)) * whitened
        return self.block(h + self.merge(z))


class LadderVAE(ModelMixin, ConfigMixin):
    """Ladder of latents from coarse to fine (Sonderby et al. 2016; Child 2021).

    The latent that ``encode``, ``decode`` and every prior and sampler see is the concatenation of
    all layers' latents, each whitened by its prior given those above: a flat vector that is
    standard normal a priori. So a hierarchy is used like any other VAE.

    Args:
        sample_size: side of the square image in pixels.
        in_channels: channels of the image.
        out_channels: channels of the decoder's output (the likelihood's parameters); those of the
            image when None.
        levels: resolutions from the top and how many layers of latents each has, "1x1,4x2,7x2".
            The last is at most half the image's size.
        hidden_size: channels of all feature maps.
        latent_channels: channels of each layer's latents.
        num_class_embeds: number of classes; labels join the image as constant planes and the top
            of the decoder as an embedding.
    """

    @register_to_config
    def __init__(
        self,
        sample_size: int = 28,
        in_channels: int = 1,
        out_channels: int | None = None,
        levels: str = "1x1,4x2,7x2",
        hidden_size: int = 48,
        latent_channels: int = 4,
        num_class_embeds: int | None = None,
    ):
        super().__init__()
        self.levels = _parse(levels, sample_size)
        classes = num_class_embeds or 0
        half = (sample_size + 1) // 2
        self.stem = DownBlock(in_channels + classes, hidden_size, 1)
        sizes = [size for size, _ in self.levels]
        self.up_features = nn.ModuleDict({str(size): ResBlock(hidden_size) for size in sizes})
        self.start = nn.Parameter(torch.zeros(hidden_size, sizes[0], sizes[0]))
        self.label_start = nn.Linear(classes, hidden_size, bias=False) if classes else None
        self.resolutions = [size for size, count in self.levels for _ in range(count)]
        self.latent_channels = latent_channels
        self.layers = nn.ModuleList(
            [StochasticLayer(hidden_size, latent_channels) for _ in self.resolutions]
        )
        self.last_block = ResBlock(hidden_size)
        self.out = UpBlock(hidden_size, out_channels or in_channels, 1, sample_size)
        self.base_size = half

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """Shape of one latent: all layers' latents, from the top."""
        return (sum(self.group_sizes),)

    @property
    def group_sizes(self) -> list[int]:
        """How many latents each stochastic layer has, from the top."""
        return [self.latent_channels * size**2 for size in self.resolutions]

    def split(self, z: Tensor) -> list[Tensor]:
        """Flat latents [B, D] -> one map [B, latent_channels, r, r] per layer."""
        parts = z.split(self.group_sizes, dim=1)
        pairs = zip(parts, self.resolutions, strict=True)
        return [part.view(len(z), self.latent_channels, size, size) for part, size in pairs]

    def walk(self, h: Tensor, choose: Choose) -> Tensor:
        """From the top down, each layer's latents chosen on the way -> the last state."""
        for number, (layer, size) in enumerate(zip(self.layers, self.resolutions, strict=True)):
            if h.shape[-1] != size:
                h = F.interpolate(h, size=(size, size), mode="nearest")
            h = layer(h, choose(number, h))
        return h

    def _start(self, batch: int, class_labels: Tensor | None) -> Tensor:
        labels = one_hot_labels(class_labels, self.config["num_class_embeds"], batch, self.start)
        h = self.start.expand(batch, -1, -1, -1)
        return h if self.label_start is None else h + self.label_start(labels)[:, :, None, None]

    def encode(
        self, x: Tensor, class_labels: Tensor | None = None, return_dict: bool = True
    ) -> AutoencoderKLOutput | tuple[Posterior]:
        """Images [B, C, H, W] in [-1, 1] -> ``latent_dist`` over [B, *latent_shape].

        Raises:
            ValueError: images of another size, or labels that do not fit the model.
        """
        size = self.config["sample_size"]
        expected = (self.config["in_channels"], size, size)
        if tuple(x.shape[1:]) != expected:
            raise ValueError(f"LadderVAE: images must be [B, {expected}], got {tuple(x.shape)}")
        labels = one_hot_labels(class_labels, self.config["num_class_embeds"], len(x), x)
        h = self.stem(torch.cat([x, labels[:, :, None, None].expand(-1, -1, size, size)], dim=1))
        features = {}
        for resolution, _ in reversed(self.levels):
            h = F.adaptive_avg_pool2d(h, resolution)
            h = features[resolution] = self.up_features[str(resolution)](h)
        posterior = LadderPosterior(self, features, self._start(len(x), class_labels))
        return AutoencoderKLOutput(latent_dist=posterior) if return_dict else (posterior,)  # type: ignore[arg-type]

    def decode(
        self, z: Tensor, class_labels: Tensor | None = None, return_dict: bool = True
    ) -> DecoderOutput | tuple[Tensor]:
        """Latents [B, *latent_shape] -> ``sample``, the likelihood's parameters [B, out, H, W]."""
        parts = self.split(z)
        h = self.walk(self._start(len(z), class_labels), lambda layer, _: parts[layer])
        h = F.interpolate(h, size=(self.base_size, self.base_size), mode="nearest")
        sample = self.out(self.last_block(h))
        return DecoderOutput(sample=sample) if return_dict else (sample,)

    def forward(
        self,
        sample: Tensor,
        class_labels: Tensor | None = None,
        sample_posterior: bool = False,
        generator: torch.Generator | None = None,
        return_dict: bool = True,
    ) -> VAEOutput | tuple:
        """Reconstruct: encode, take the posterior's mode (or draw from it), decode."""
        posterior = self.encode(sample, class_labels, return_dict=False)[0]
        z = posterior.sample(generator) if sample_posterior else posterior.mode()
        params = self.decode(z, class_labels, return_dict=False)[0]
        return (
            VAEOutput(sample=params, latent_dist=posterior) if return_dict else (params, posterior)
        )


def _parse(levels: str, sample_size: int) -> list[tuple[int, int]]:
    """ "1x1,4x2" -> [(1, 1), (4, 2)]; ValueError unless the resolutions rise."""
    try:
        parsed = [tuple(map(int, level.split("x"))) for level in levels.split(",")]
        pairs = [(size, count) for size, count in parsed]
    except ValueError:
        raise ValueError(
            f"LadderVAE: levels must look like '1x1,4x2,7x2', got {levels!r}"
        ) from None
    sizes = [size for size, _ in pairs]
    rising = (
        sizes == sorted(set(sizes)) and sizes[0] >= 1 and sizes[-1] <= math.ceil(sample_size / 2)
    )
    if not rising or min(count for _, count in pairs) < 1:
        raise ValueError(
            f"LadderVAE: levels {levels!r}: resolutions must rise from >= 1 to at most half of "
            f"sample_size {sample_size}, each with at least one layer"
        )
    return pairs
