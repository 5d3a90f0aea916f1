"""Batch norm of an averaged generator: means and variances of what it generates itself."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

BATCH = 64


@torch.no_grad()
def set_standing_statistics(generator: Any, num_images: int) -> None:
    """Replace every running mean and variance by those over fresh latents and labels, batch after
    batch (Brock et al. 2019, BigGAN, section 4: "standing statistics").

    An average of weights keeps the buffers of the last raw weights, which are not its own. The
    draws are fixed, so that the same weights always give the same image.

    Args:
        generator: ``forward(z, class_labels)``; nothing happens where it has no batch norm.
        num_images: rounded up to batches of 64.
    """
    norms = [layer for layer in generator.modules() if isinstance(layer, _BatchNorm)]
    if not norms:
        return
    training, momenta = generator.training, [layer.momentum for layer in norms]
    generator.eval()
    for layer in norms:
        layer.reset_running_stats()
        layer.momentum = None  # the plain mean over batches
        layer.train()
    draws = torch.Generator().manual_seed(0)
    for _ in range(-(-num_images // BATCH)):
        generator(*_draw(generator, draws))
    for layer, momentum in zip(norms, momenta, strict=True):
        layer.momentum = momentum
    generator.train(training)


def _draw(generator: Any, draws: torch.Generator) -> tuple[Tensor, Tensor | None]:
    """z [64, latent_dim] ~ N(0, 1), and labels that are evenly likely, where there are classes."""
    z = torch.randn(BATCH, generator.config["latent_dim"], generator=draws)
    z = z.to(generator.device, generator.dtype)
    classes = generator.config["num_class_embeds"]
    if classes is None:
        return z, None
    return z, torch.randint(classes, (BATCH,), generator=draws).to(generator.device)
