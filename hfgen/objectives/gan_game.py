"""One micro-batch as one side of the game sees it: latents, images and verdicts, computed when
asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from hfgen.errors import HfgenError
from hfgen.objectives.base import Batch, Clock
from hfgen.rng import Rng

DISCRIMINATOR, GENERATOR = "discriminator", "generator"


def no_augmentation(game: Game, kind: str, images: Tensor, rng: Rng) -> Tensor:
    """Images as they are."""
    return images


@dataclass
class Game:
    """What losses and regularisers look at.

    Args:
        side: ``discriminator`` or ``generator``: who is trained. The discriminator's side sees
            generated images cut from the generator.
        leaves: which of ``real`` and ``fake`` a gradient penalty differentiates by.
        augment: what both kinds of images pass on their way into the discriminator.
    """

    side: str
    models: Mapping[str, nn.Module]
    batch: Batch
    rng: Rng
    clock: Clock
    leaves: frozenset[str] = frozenset()
    augment: Callable[[Game, str, Tensor, Rng], Tensor] = no_augmentation
    _verdicts: dict[str, Any] = field(default_factory=dict)
    _views: dict[str, Tensor] = field(default_factory=dict)
    _gradients: dict[str, Tensor] = field(default_factory=dict)

    @property
    def generator(self) -> Any:
        return self.models["generator"]

    @property
    def discriminator(self) -> Any:
        return self.models["discriminator"]

    @cached_property
    def z(self) -> Tensor:
        """Latents [B, latent_dim] ~ N(0, 1)."""
        images = self.batch["images"]
        shape = (images.shape[0], self.generator.config.latent_dim)
        return self.rng.randn("z", shape).to(images.dtype)

    @property
    def num_codes(self) -> int:
        """Values that the generator's categorical code takes (InfoGAN); 0 without one."""
        return int(self.generator.config.get("categorical_codes", 0))

    @property
    def codes(self) -> Tensor | None:
        """The code in each row of ``z``, [B] int64; None for a generator without one."""
        return self.z[:, : self.num_codes].argmax(1) if self.num_codes else None

    @cached_property
    def real(self) -> Tensor:
        return self.batch["images"].detach().requires_grad_("real" in self.leaves)

    @cached_property
    def fake(self) -> Tensor:
        """Generated images, one for each row of the batch, with that row's label."""
        if self.side == GENERATOR:
            return self.generate(self.z)
        with torch.no_grad():
            fake = self.generate(self.z)
        return fake.requires_grad_("fake" in self.leaves)

    @property
    def real_verdict(self) -> Any:
        """The discriminator's output for the real images."""
        return self._verdict("real")

    @property
    def fake_verdict(self) -> Any:
        """The discriminator's output for the generated images."""
        return self._verdict("fake")

    def meet(self) -> None:
        """Judge real and generated images in one forward, where that is the same and saves time."""
        mixes = any(isinstance(layer, _BatchNorm) for layer in self.discriminator.modules())
        # with a gradient to differentiate, two graphs of half the rows are faster on a CPU
        if self.side == GENERATOR or mixes or self.leaves:
            return
        views = torch.cat([self.view("real"), self.view("fake")])
        labels = self.labels("discriminator")
        output = self.discriminator(views, None if labels is None else labels.repeat(2))
        for i, name in enumerate(("real", "fake")):
            self._verdicts[name] = type(output)(
                **{key: value.chunk(2)[i] for key, value in output.items()}
            )

    def input_gradient(self, name: str) -> Tensor:
        """d logit / d image of each row of ``real`` or ``fake``, one of ``leaves``; differentiable
        again. All leaves share one backward pass, since no row sees another.
        """
        if name not in self._gradients:
            leaves = sorted(self.leaves)
            total = torch.stack([self._verdict(leaf).logits.sum() for leaf in leaves]).sum()
            images = [self.real if leaf == "real" else self.fake for leaf in leaves]
            found = torch.autograd.grad(total, images, create_graph=True)
            self._gradients = dict(zip(leaves, found, strict=True))
        return self._gradients[name]

    def generate(self, z: Tensor) -> Tensor:
        """Images for other latents, with the labels of the batch."""
        return self.generator(z, self.labels("generator")).sample

    def judge(self, images: Tensor) -> Any:
        """The discriminator's output for other images, with the labels of the batch."""
        return self.discriminator(images, self.labels("discriminator"))

    def labels(self, role: str) -> Tensor | None:
        """Labels for a conditional model (HfgenError without any, or for one that it does not
        know), None for an unconditional one.
        """
        classes = self.models[role].config["num_class_embeds"]  # type: ignore[index]
        if classes is None:
            return None
        if "labels" not in self.batch:
            raise HfgenError(
                f"model.{role}.num_class_embeds: is {classes}, but the data has no labels"
            )
        labels = self.batch["labels"]
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= classes:
            raise HfgenError(
                f"model.{role}.num_class_embeds: is {classes}, but the data has labels from {low} "
                f"to {high}; leave it out, and data.class_conditional: true sets it"
            )
        return labels

    def _verdict(self, name: str) -> Any:
        if name not in self._verdicts:
            # The generator's loss takes the discriminator's view of real images as a constant.
            constant = self.side == GENERATOR and name == "real"
            with torch.set_grad_enabled(torch.is_grad_enabled() and not constant):
                self._verdicts[name] = self.judge(self.view(name))
        return self._verdicts[name]

    def view(self, name: str) -> Tensor:
        """What the discriminator is shown of ``real`` or ``fake``."""
        if name not in self._views:
            images = self.real if name == "real" else self.fake
            self._views[name] = self.augment(self, name, images, self.rng.fork("augment", name))
        return self._views[name]
