"""Text to image in ``docs/coverage.md``: names from the code, a test and a page found by search."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Iterator

from coverage_hub import place, texts

from hfgen.caption_tokenizer import TRAINED
from hfgen.data.config import DataConfig
from hfgen.hub.load_text import PACKAGED
from hfgen.models.layers.vq import QUANTIZERS
from hfgen.objectives.contrastive import Contrastive
from hfgen.objectives.discrete_vae import DiscreteVAE
from hfgen.objectives.image_codes import ImageCodes
from hfgen.objectives.text_diffusion import TextDiffusion
from hfgen.pipelines.codes_pipeline import CodesPipeline
from hfgen.pipelines.text_to_image_pipeline import TextToImagePipeline

OBJECTIVES = (DiscreteVAE, ImageCodes, Contrastive, TextDiffusion)
PIPELINES = (CodesPipeline, TextToImagePipeline)
DENOISERS = ("UNet2DConditionModel", "PixArtTransformer2DModel", "SD3Transformer2DModel")
TEXT_ENCODERS = ("CLIPTextModel", "BertModel", *PACKAGED)
EXPORTS = ("StableDiffusionPipeline", "CodesPipeline", "TextToImagePipeline", "CLIPModel")
FINE_TUNING = ("lora", "model.pretrained", "model.vae", "model.codes", "model.text_encoder")
LIKELIHOOD = ("log_prob", "bits_per_dim")
CACHES = ("latents", "null_text", "text_mask")
"""What a batch holds that was computed once."""
PRIORS = {"text": "has_text|KINDS", "class": "class_conditional", "nothing": '"nothing"'}


def text_lines() -> list[str]:
    """The section's lines."""
    tests = texts("tests/text/test_*.py", "tests/data/test_captions.py", "tests/hub/test_text*.py")
    tests |= texts("tests/models/test_vae_vq.py", "tests/test_latents.py")
    pages = texts("docs/text-to-image.md", "docs/vae.md", "docs/data.md")
    rows = [
        (kind, name, place(pattern, tests), place(pattern, pages))
        for kind, name, pattern in names()
    ]
    done = sum(bool(test) for _, _, test, _ in rows)
    lines = [f"## Text to image ({done} of {len(rows)} tested)", ""]
    lines += ["| kind | name | test | page |", "|---|---|---|---|"]
    lines += [f"| {kind} | `{name}` | {test} | {page} |" for kind, name, test, page in rows]
    return [*lines, ""]


def names() -> Iterator[tuple[str, str, str]]:
    """Kind, name, and the pattern by which it is found."""
    for name in QUANTIZERS:
        yield "codes", name, rf"[\"'`]{name}[\"'`]"
    for name, pattern in PRIORS.items():
        yield "prior over codes", name, pattern
    for cls in PIPELINES:
        for name in inspect.signature(cls.__call__).parameters:
            if name not in ("self", "output_type", "return_dict"):
                yield cls.__name__, name, rf"\b{name}\b"
    for objective in OBJECTIVES:
        for field in dataclasses.fields(objective):
            yield objective.__name__, field.name, rf"\b{field.name}\b"
    for field in dataclasses.fields(DataConfig):
        if "caption" in field.name:
            yield "captions", f"data.{field.name}", rf"\b{field.name}\b"
    for kind, given in (
        ("captions", ("metadata.jsonl", "metadata.csv", "unseen")),
        ("tokenizer trained", tuple(TRAINED)),
        ("text encoder", TEXT_ENCODERS),
        ("denoiser", DENOISERS),
        ("export", EXPORTS),
        ("fine-tuning", FINE_TUNING),
        ("likelihood", LIKELIHOOD),
        ("cached", CACHES),
    ):
        for name in given:
            yield kind, name, re.escape(name)
