"""Text to image: sampling beside stock diffusers, and what caching texts and latents saves.

    OMP_NUM_THREADS=1 python benchmarks/text_to_image.py

Networks, autoencoder and text encoder are those of emoji-latent-t2i and emoji-dalle, with random
weights: speed does not depend on what was learned. Training steps have the recipe's batch and its
fused optimizer. Caching is measured a second time with encoders of Stable Diffusion 1's size (CLIP
ViT-L's text half over 77 tokens, AutoencoderKL of 128 to 512 channels) before the same network.
CPU-seconds of this process, best of two after one to warm up. Prints, and writes
docs/benchmarks/text_to_image.json.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from transformers import CLIPTextConfig, CLIPTextModel

from hfgen import recipe as recipes
from hfgen.build import build_component
from hfgen.build_transformers import sizes_of
from hfgen.caption_tokenizer import train_tokenizer
from hfgen.data import DataConfig, load_source
from hfgen.environment import describe
from hfgen.objectives.base import Clock
from hfgen.objectives.text_diffusion import TextDiffusion
from hfgen.pipelines._autoencoder import encode_images
from hfgen.pipelines._text import embed_tokens, text_width, tokenize
from hfgen.pipelines.codes_pipeline import CodesPipeline
from hfgen.pipelines.text_to_image_pipeline import TextToImagePipeline
from hfgen.rng import Rng

OUT = Path(__file__).parents[1] / "docs" / "benchmarks" / "text_to_image.json"
ROWS, STEPS, BATCH = 4, 25, 64


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
    tokenizer = tokenizer_of(24)
    text = text_encoder(tokenizer, hidden_size=128, intermediate_size=512, num_hidden_layers=4)
    vae = build_component("vae", recipes.load("emoji-kl-vae").model["vae"])
    follow = {"sample_size": 8, "in_channels": 4, "out_channels": 4, "text_width": 128}
    return {
        "vae": vae.eval(),
        "text_encoder": text,
        "tokenizer": tokenizer,
        "unet": build_component("unet", recipe.model["unet"], follow).eval(),
        "scheduler": build_component("scheduler", recipe.model["scheduler"]),
    }


def tokenizer_of(tokens: int) -> Any:
    """A tokenizer that fills each text up to ``tokens``."""
    texts = load_source(DataConfig(path="emoji")).captions(range(500))
    return train_tokenizer(texts, "CLIPTokenizer", 1500, tokens)


def text_encoder(tokenizer: Any, **sizes: int) -> CLIPTextModel:
    ends = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id")}
    fixed = {"vocab_size": len(tokenizer), **ends}
    fixed["max_position_embeddings"] = tokenizer.model_max_length
    return CLIPTextModel(CLIPTextConfig(**fixed, num_attention_heads=4, **sizes)).eval()


def large_encoders(given: dict[str, Any]) -> dict[str, Any]:
    """``given`` with an autoencoder and a text encoder of Stable Diffusion 1's size; the embeddings
    are cut to the width that the network reads.
    """
    tokenizer = tokenizer_of(77)
    text = text_encoder(tokenizer, hidden_size=768, intermediate_size=3072, num_hidden_layers=12)
    vae = AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
    )
    return {**given, "tokenizer": tokenizer, "text_encoder": text, "vae": vae.eval()}


def sampling(given: dict[str, Any]) -> dict[str, float]:
    """Images per CPU-second of stock, own and autoregressive sampling, with guidance."""
    stock = StableDiffusionPipeline(
        **given, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )
    own = TextToImagePipeline(**given)
    torch.manual_seed(0)
    book = build_component(
        "codes", recipes.load("emoji-vqvae").model["vae"], {"sample_size": 64, "in_channels": 3}
    ).eval()
    follow = {**sizes_of("codes", book), **sizes_of("tokenizer", given["tokenizer"])}
    prior = build_component("transformer", recipes.load("emoji-dalle").model["transformer"], follow)
    prior.eval()
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
    optimizer = torch.optim.AdamW(unet.parameters(), fused=True)

    def encoded() -> dict[str, torch.Tensor]:
        ids, mask = tokenize(given["tokenizer"], [*captions, ""])
        width = text_width(unet)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            text = embed_tokens(given["text_encoder"], ids, mask)[..., :width]
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
    taken = {name: seconds(run, 2) for name, run in found.items()}
    return {**taken, "cached is faster by": taken["encoding each time"] / taken["cached"]}


def main() -> None:
    given = parts()
    steps = {
        "encoders of emoji-latent-t2i": training(given),
        "encoders of Stable Diffusion 1's size": training(large_encoders(given)),
    }
    result = {
        "hardware": describe()["hardware"],
        "threads": torch.get_num_threads(),
        "images_per_cpu_second": sampling(given),
        f"cpu_seconds_per_step_of_{BATCH}": steps,
    }
    OUT.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
