"""A tiny instance of every registered pipeline; a new line in the table needs one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import AutoencoderKL, DDPMScheduler
from tiny_models import cases, tiny

from hfgen.config import resolve
from hfgen.recipe import MODELS, PIPELINES
from tests.text import tiny as text
from tests.tiny_unet import tiny_unet


@dataclass(frozen=True, kw_only=True)
class TinyPipeline:
    """``parts()`` of the constructor, and further ``options`` of every call."""

    parts: Callable[[], dict[str, Any]]
    options: dict[str, Any] = field(default_factory=dict)

    def build(self, name: str) -> Any:
        pipeline = resolve(PIPELINES[name])(**self.parts())
        pipeline.set_progress_bar_config(disable=True)
        return pipeline


def tiny_autoencoder() -> AutoencoderKL:
    torch.manual_seed(0)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        latent_channels=2,
        norm_num_groups=4,
        sample_size=8,
    )
    return vae.eval()


def text_parts(kind: str) -> dict[str, Any]:
    return text.codes_pipeline(kind).components


TINY_PIPELINES: dict[str, list[TinyPipeline]] = {
    "VAEPipeline": [
        TinyPipeline(parts=lambda: {"vae": tiny("MLPVAE"), "likelihood": {"type": "bernoulli"}}),
        TinyPipeline(parts=lambda: {"vae": tiny("ConvVAE", 1)}, options={"class_labels": 1}),
        TinyPipeline(parts=lambda: {"vae": tiny_autoencoder()}),
        TinyPipeline(
            parts=lambda: {
                "vae": tiny("MLPVAE"),
                "prior": tiny("GaussianMixturePrior"),
                "likelihood": {"type": "bernoulli"},
            }
        ),
        TinyPipeline(parts=lambda: {"vae": tiny("MLPVAE"), "prior": tiny("TwoStagePrior")}),
    ],
    "GANPipeline": [
        TinyPipeline(
            parts=lambda: {
                "generator": tiny("DCGANGenerator"),
                "discriminator": tiny("DCGANDiscriminator"),
            }
        ),
        TinyPipeline(
            parts=lambda: {"generator": tiny("R3GANGenerator")},
            options={"class_labels": 2, "truncation_psi": 0.5},
        ),
    ],
    "DenoisingPipeline": [
        TinyPipeline(
            parts=lambda: {"unet": tiny_unet(), "scheduler": DDPMScheduler()},
            options={"num_inference_steps": 2},
        ),
        TinyPipeline(
            parts=lambda: {"unet": tiny("PixelTransformer"), "scheduler": DDPMScheduler()},
            options={"num_inference_steps": 2, "class_labels": 1},
        ),
        TinyPipeline(
            parts=lambda: {
                "unet": tiny_unet(),
                "scheduler": resolve(MODELS["EDMHeunScheduler"])(sigma_max=2.0, s_churn=1.0),
            },
            options={"num_inference_steps": 2},
        ),
        TinyPipeline(
            parts=lambda: {
                "unet": tiny_unet(sample_size=4, in_channels=2, out_channels=2),
                "scheduler": DDPMScheduler(),
                "vae": tiny_autoencoder(),
            },
            options={"num_inference_steps": 2},
        ),
    ],
    "CodesPipeline": [
        TinyPipeline(parts=lambda: text_parts("nothing")),
        TinyPipeline(parts=lambda: text_parts("class"), options={"class_labels": 1}),
    ],
    "TextToImagePipeline": [
        TinyPipeline(
            parts=lambda: {
                "tokenizer": text.words(),
                "text_encoder": text.bert(text.words()),
                "unet": text.unet(16, channels=1),
                "scheduler": text.scheduler(),
            },
            options={"num_inference_steps": 2, "prompt": "red heart"},
        ),
    ],
    "CLIPScorePipeline": [],  # it draws no images: tests/text
}


PIPELINE_CASES = cases(PIPELINES, TINY_PIPELINES)
