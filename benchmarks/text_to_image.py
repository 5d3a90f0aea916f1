"""Text to image: sampling beside stock diffusers, and what caching texts and latents saves.

    OMP_NUM_THREADS=1 python benchmarks/text_to_image.py

Models are of the size of emoji-latent-t2i and emoji-dalle, with random weights, and a text encoder
of CLIP ViT-B/32's depth and half its width: speed does not depend on what was learned. CPU-seconds
of this process, best of three. Prints a table; writes docs/benchmarks/text_to_image.json.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from transformers import CLIPTextConfig, CLIPTextModel

from hfgen import recipe as recipes
from hfgen.build import build_component
from hfgen.caption_tokenizer import train_tokenizer
from hfgen.data import DataConfig, load_source
from hfgen.environment import describe
from hfgen.models.transformer_codes import CodeTransformer
from hfgen.models.vae_vq import VQVAE
from hfgen.objectives.base import Clock
from hfgen.objectives.text_diffusion import TextDiffusion
from hfgen.pipelines._autoencoder import encode_images
from hfgen.pipelines._text import embed_tokens, tokenize
from hfgen.pipelines.codes_pipeline import CodesPipeline
from hfgen.pipelines.text_to_image_pipeline import TextToImagePipeline
from hfgen.rng import Rng

OUT = Path(__file__).parents[1] / "docs" / "benchmarks" / "text_to_image.json"
ROWS, STEPS, BATCH = 2, 5, 16


def seconds(run: Callable[[], Any], repeats: int = 3) -> float:
    """CPU-seconds of ``run``, the least of ``repeats`` after one to warm up."""
    run()
    taken = []
    for _ in range(repeats):
        began = time.process_time()
        run()
        taken.append(time.process_time() - began)
    return min(taken)


def parts() -> dict[str, Any]:
    torch.manual_seed(0)
    recipe = recipes.load("emoji-latent-t2i")
    texts = load_source(DataConfig(path="emoji")).captions(range(500))
    tokenizer = train_tokenizer(texts, "CLIPTokenizer", 1500, 24)
    ends = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id")}
    width = {"hidden_size": 256, "intermediate_size": 1024, "projection_dim": 256}
    depth = {"num_hidden_layers": 12, "num_attention_heads": 4, "max_position_embeddings": 24}
    text = CLIPTextModel(CLIPTextConfig(vocab_size=len(tokenizer), **width, **depth, **ends))
    vae = build_component("vae", recipes.load("emoji-kl-vae").model["vae"])
    follow = {"sample_size": 8, "in_channels": 4, "out_channels": 4, "cross_attention_dim": 256}
    return {
        "vae": vae.eval(),
        "text_encoder": text.eval(),
        "tokenizer": tokenizer,
        "unet": build_component("unet", recipe.model["unet"], follow).eval(),
        "scheduler": build_component("scheduler", recipe.model["scheduler"]),
    }


def sampling(given: dict[str, Any]) -> dict[str, float]:
    """Images per CPU-second of stock, own and autoregressive sampling, with guidance."""
    stock = StableDiffusionPipeline(
        **given, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )
    own = TextToImagePipeline(**given)
    torch.manual_seed(0)
    book = VQVAE(64, 3, block_out_channels=(32, 64, 128), quantizer={"type": "fsq"}).eval()
    prior = CodeTransformer(
        num_embeddings=book.codebook.num_embeddings,
        code_size=book.size,
        text_vocab_size=len(given["tokenizer"]),
        text_length=24,
    ).eval()
    dalle = CodesPipeline(book, prior, given["tokenizer"])
    call: dict[str, Any] = {"guidance_scale": 3.0, "output_type": "np"}
    steps = {**call, "num_inference_steps": STEPS}
    prompts = ["red heart"] * ROWS
    for pipeline in (stock, own, dalle):
        pipeline.set_progress_bar_config(disable=True)
    runs = {
        f"StableDiffusionPipeline (stock), {STEPS} steps": lambda: stock(prompts, **steps),
        f"TextToImagePipeline, {STEPS} steps": lambda: own(prompts, **steps),
        "CodesPipeline, cached keys and values": lambda: dalle(prompts, **call),
        "CodesPipeline, uncached": lambda: dalle(prompts, use_cache=False, **call),
    }
    return {name: ROWS / seconds(run, 2) for name, run in runs.items()}


def training(given: dict[str, Any]) -> dict[str, float]:
    """CPU-seconds of a training step that encodes, and of one that reads what was cached."""
    unet, objective = given["unet"].train(), TextDiffusion()
    models = {"unet": unet, "scheduler": given["scheduler"]}
    captions = load_source(DataConfig(path="emoji")).captions(range(BATCH))
    images = torch.rand(BATCH, 3, 64, 64) * 2 - 1
    optimizer = torch.optim.AdamW(unet.parameters())

    def encoded() -> dict[str, torch.Tensor]:
        ids, mask = tokenize(given["tokenizer"], [*captions, ""])
        text = embed_tokens(given["text_encoder"], ids, mask)
        with torch.no_grad():
            latents = encode_images(given["vae"], images)
        return {"images": latents, "text": text[:-1], "null_text": text[-1]}

    def step(batch: dict[str, torch.Tensor]) -> None:
        with torch.autocast("cpu", torch.bfloat16):
            loss, _ = objective.loss("denoise", models, batch, Rng(0), Clock(0, 0, 1, BATCH))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    cached = encoded()
    found = {"encoding each time": lambda: step(encoded()), "cached": lambda: step(cached)}
    return {name: seconds(run, 2) for name, run in found.items()}


def main() -> None:
    given = parts()
    images, steps = sampling(given), training(given)
    result = {
        "hardware": describe()["hardware"],
        "threads": torch.get_num_threads(),
        "images_per_cpu_second": images,
        "cpu_seconds_per_step": steps,
        "caching_is_faster_by": steps["encoding each time"] / steps["cached"],
    }
    OUT.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
