"""Denoising on the condition of a text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

from hfgen.denoising import run_text_network
from hfgen.errors import HfgenError
from hfgen.objectives.base import Batch, Clock, Objective, Phase, detach
from hfgen.objectives.diffusion import per_image_error, scheduler_parameterisation
from hfgen.objectives.diffusion_times import TimeSampler, UniformTime
from hfgen.objectives.diffusion_weightings import UniformWeight, Weighting
from hfgen.objectives.image_codes import drop_captions
from hfgen.rng import Rng


@dataclass(frozen=True, kw_only=True)
class TextDiffusion(Objective):
    """Trains role ``unet`` to denoise given a text's embeddings (Rombach et al. 2022, eq. 3).

    ``unet`` is a UNet2DConditionModel or a transformer of diffusers on texts (DiT, MMDiT). Path and
    prediction are those of ``models["scheduler"]``: diffusion, v-prediction or flow matching. The
    batch holds ``text`` [B, T, D] of the frozen text encoder.

    Args:
        time: which noise levels are trained on.
        weighting: how much each level's error counts.
        caption_dropout: share of the texts that is replaced by the empty text, for
            classifier-free guidance (Ho & Salimans 2022).
    """

    time: TimeSampler = field(default_factory=UniformTime)
    weighting: Weighting = field(default_factory=UniformWeight)
    caption_dropout: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.caption_dropout < 1:
            raise HfgenError(f"caption_dropout must be in [0, 1), got {self.caption_dropout}")

    @property
    def phases(self) -> tuple[Phase, ...]:
        return (Phase(name="denoise", trains=("unet",)),)

    def loss(
        self, phase: str, models: Mapping[str, nn.Module], batch: Batch, rng: Rng, clock: Clock
    ) -> tuple[Tensor, dict[str, Tensor]]:
        param, x = scheduler_parameterisation(models), batch["images"]
        if "text" not in batch:
            raise HfgenError(
                "model.text_encoder: missing; text-diffusion needs one, and a tokenizer"
            )
        noise = rng.randn("noise", x.shape)
        t = self.time.sample(rng, len(x), param.path)
        x_t = param.path.add_noise(x, noise, t)
        sample, time = param.path.model_input(x_t, t)
        text, mask = self._condition(batch, rng)
        output = run_text_network(models["unet"], sample, time, text, mask)
        error = per_image_error(output, param.target(x, noise, t))
        alpha, sigma = param.path.alpha_sigma(t)
        loss = (self.weighting.weight(alpha, sigma, param.prediction) * error).mean()
        return loss, detach({"loss": loss, "mse": error})

    def _condition(self, batch: Batch, rng: Rng) -> tuple[Tensor, Tensor | None]:
        text = drop_captions(batch, "text", rng, self.caption_dropout)
        if "text_mask" not in batch:
            return text, None
        return text, drop_captions(batch, "text_mask", rng, self.caption_dropout)
