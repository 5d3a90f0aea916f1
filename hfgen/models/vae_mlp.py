"""The classic fully connected VAE."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.autoencoders.vae import DecoderOutput
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from hfgen.models.layers.conditioning import one_hot_labels
from hfgen.models.layers.posterior import Posterior, VAEOutput
from hfgen.models.layers.posterior_families import build_posterior
from hfgen.models.layers.scale import scale_head


class MLPVAE(ModelMixin, ConfigMixin):
    """784-400-20: one hidden layer on each side, two linear heads for mean and log-variance.

    The network of Kingma & Welling 2013 (appendix C) as PyTorch's classic example writes it (ReLU,
    parameters ``fc1 fc21 fc22 fc3 fc4``): a state_dict of that example loads and computes the same.
    Images come in [-1, 1] and are mapped to the example's [0, 1] inside. Further hidden layers
    (``num_layers > 1``) are named ``encoder_layers``/``decoder_layers``.

    Args:
        sample_size: side of the square image in pixels.
        in_channels: channels of the image.
        out_channels: channels of the decoder's output; those of the image when None.
        hidden_size: width of the hidden layers.
        latent_dim: length of the latent.
        num_layers: hidden layers on each side.
        act_fn: "relu" or "tanh".
        logits: the decoder's output is logits (true), or goes through a sigmoid (false).
        posterior: its ``type`` ("gaussian", "planar", "radial", "iaf", "maf", "vmf", "poincare")
            and options; a diagonal Gaussian by default.
        shared_scale: the second half of the decoder's channels is one learned value each
            (sigma-VAE), rather than predicted per pixel.
        num_class_embeds: number of classes; labels join the input and the latent as one-hot
            vectors.
    """

    @register_to_config
    def __init__(
        self,
        sample_size: int = 28,
        in_channels: int = 1,
        out_channels: int | None = None,
        hidden_size: int = 400,
        latent_dim: int = 20,
        num_layers: int = 1,
        act_fn: str = "relu",
        logits: bool = True,
        posterior: dict | None = None,
        shared_scale: bool = False,
        num_class_embeds: int | None = None,
    ):
        super().__init__()
        sizes = {"sample_size": sample_size, "in_channels": in_channels, "num_layers": num_layers}
        for name, value in {**sizes, "hidden_size": hidden_size, "latent_dim": latent_dim}.items():
            if value < 1:
                raise ValueError(f"MLPVAE: {name} must be at least 1, got {value}")
        if act_fn not in ("relu", "tanh"):
            raise ValueError(f"MLPVAE: act_fn must be 'relu' or 'tanh', got {act_fn!r}")
        self.act = nn.ReLU() if act_fn == "relu" else nn.Tanh()
        predicted, self.scale = scale_head(shared_scale, out_channels or in_channels)
        self.out_shape = (predicted, sample_size, sample_size)
        classes, pixels = num_class_embeds or 0, sample_size**2
        self.fc1 = nn.Linear(in_channels * pixels + classes, hidden_size)
        self.fc21 = nn.Linear(hidden_size, latent_dim)
        self.head = build_posterior(posterior, latent_dim, hidden_size)
        self.fc22 = nn.Linear(hidden_size, self.head.spread_size)
        self.fc3 = nn.Linear(latent_dim + classes, hidden_size)
        self.fc4 = nn.Linear(hidden_size, self.out_shape[0] * pixels)
        self.encoder_layers = self._hidden_layers(hidden_size, num_layers - 1)
        self.decoder_layers = self._hidden_layers(hidden_size, num_layers - 1)

    def _hidden_layers(self, width: int, count: int) -> nn.Sequential:
        layers = [nn.Sequential(nn.Linear(width, width), self.act) for _ in range(count)]
        return nn.Sequential(*layers)

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """Shape of one latent."""
        return (self.config["latent_dim"],)

    def encode(
        self, x: Tensor, class_labels: Tensor | None = None, return_dict: bool = True
    ) -> AutoencoderKLOutput | tuple[Posterior]:
        """Images [B, C, H, W] in [-1, 1] -> ``latent_dist``, over [B, latent_dim].

        Raises:
            ValueError: images of another size, or labels that do not fit the model.
        """
        expected = (self.config["in_channels"], *self.out_shape[1:])
        if tuple(x.shape[1:]) != expected:
            raise ValueError(f"MLPVAE: images must be [B, {expected}], got {tuple(x.shape)}")
        pixels = (x.flatten(1) + 1) / 2
        labels = one_hot_labels(class_labels, self.config["num_class_embeds"], len(x), x)
        h = self.encoder_layers(self.act(self.fc1(torch.cat([pixels, labels], dim=1))))
        posterior = self.head(self.fc21(h), self.fc22(h), h)
        return AutoencoderKLOutput(latent_dist=posterior) if return_dict else (posterior,)  # type: ignore[arg-type]

    def decode(
        self, z: Tensor, class_labels: Tensor | None = None, return_dict: bool = True
    ) -> DecoderOutput | tuple[Tensor]:
        """Latents [B, latent_dim] -> ``sample``, the likelihood's parameters [B, out_channels, H,
        W].
        """
        labels = one_hot_labels(class_labels, self.config["num_class_embeds"], len(z), z)
        h = self.decoder_layers(self.act(self.fc3(torch.cat([z, labels], dim=1))))
        sample = self.fc4(h).unflatten(1, self.out_shape)
        sample = self.scale(sample if self.config["logits"] else F.sigmoid(sample))
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
