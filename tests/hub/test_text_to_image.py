"""A stock StableDiffusionPipeline of the Hub is trained on: adapters alone, and all of it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hub_client import MAIN
from PIL import Image
from safetensors.torch import load_file

STOCK = """
import torch
from diffusers import (
    AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel)
from transformers import CLIPTextConfig, CLIPTextModel
from hfgen.caption_tokenizer import train_tokenizer
torch.manual_seed(0)
tokenizer = train_tokenizer(["red square", "blue square"], "CLIPTokenizer", 620, 8)
ends = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id")}
text = CLIPTextModel(CLIPTextConfig(vocab_size=len(tokenizer), hidden_size=16,
    intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, max_position_embeddings=8,
    **ends))
vae = AutoencoderKL(block_out_channels=(8, 8), norm_num_groups=4, sample_size=16,
    down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2)
with torch.no_grad():
    std = vae.encode(torch.rand(4, 3, 16, 16) * 2 - 1).latent_dist.sample().std()
vae.register_to_config(scaling_factor=1 / float(std))
unet = UNet2DConditionModel(sample_size=8, block_out_channels=(8, 16), layers_per_block=1,
    down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), norm_num_groups=4,
    up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), cross_attention_dim=16,
    attention_head_dim=2)
scheduler = DDIMScheduler(beta_schedule="scaled_linear", clip_sample=False, steps_offset=1)
StableDiffusionPipeline(vae, text, tokenizer, unet, scheduler, safety_checker=None,
    feature_extractor=None, requires_safety_checker=False).save_pretrained(folder)
"""
LOADED = """
import sys, torch
from diffusers import StableDiffusionPipeline
pipe = StableDiffusionPipeline.from_pretrained(folder)
pipe.set_progress_bar_config(disable=True)
images = pipe("red square", num_inference_steps=2, output_type="np").images
result = ["hfgen" in sys.modules, list(images.shape)]
"""
WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def stock(client, tmp_path_factory) -> Path:
    """Saved by diffusers alone: no recipe, nothing of hfgen."""
    folder = tmp_path_factory.mktemp("stable") / "pipeline"
    client.run(STOCK, folder=str(folder))
    return folder


@pytest.fixture(scope="module")
def captioned(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("captioned")
    lines = []
    for i, (name, color) in enumerate({"red": (255, 0, 0), "blue": (0, 0, 255)}.items()):
        image = np.full((16, 16, 3), 255, np.uint8)
        image[2:14, 2 + i : 14] = color
        Image.fromarray(image).save(folder / f"{name}.png")
        lines.append(json.dumps({"file_name": f"{name}.png", "text": f"{name} square"}))
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    return folder


def files(folder: Path) -> dict[str, bytes]:
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def changed(run: Path, role: str, stock: Path) -> set[str]:
    """Names of the weights that training has changed."""
    old = load_file(next((stock / role).glob("*.safetensors")))
    new = load_file(next((run / "pipeline" / role).glob("*.safetensors")))
    assert old.keys() == new.keys()
    return {name for name in old if not old[name].equal(new[name])}


@pytest.mark.parametrize("kind", ["adapters", "all"])
def test_a_stock_pipeline_of_the_hub_is_trained_on(
    hub, client, stranger, stock, captioned, tmp_path, kind
):
    hub.put("user/stable", files(stock))
    run = tmp_path / "run"
    words = ["train", "emoji-latent-t2i", "--model.pretrained", "user/stable"]
    words += ["--data.path", str(captioned), "--data.validation_split", "train"]
    words += ["--training.max_steps", "2", "--training.total_batch_size", "2"]
    words += ["--training.sample_every", "0", "--optimizer.lr_warmup_steps", "0"]
    words += ["--model.unet.lora.r", "2"] if kind == "adapters" else []
    code, said = client.run(MAIN, words=[*words, "--output_dir", str(run)])
    assert code == 0, said

    assert changed(run, "vae", stock) == changed(run, "text_encoder", stock) == set()
    moved, whole = changed(run, "unet", stock), load_file(stock / "unet" / WEIGHTS)
    if kind == "adapters":
        assert moved and all(".to_" in name for name in moved)
        adapter = load_file(run / "pipeline/lora/unet/pytorch_lora_weights.safetensors")
        assert all(min(value.shape) == 2 for value in adapter.values())
    else:
        assert len(moved) > 0.9 * len(whole)
    index = json.loads((run / "pipeline" / "model_index.json").read_text())
    assert index["_class_name"] == "StableDiffusionPipeline"
    stranger_saw = stranger.run(LOADED, folder=str(run / "pipeline"))
    assert stranger_saw == [False, [1, 16, 16, 3]]


def test_what_was_trained_travels_and_is_trained_on(hub, client, stock, captioned, tmp_path):
    """Pushed as a run, its own recipe says how to go on; another autoencoder can be put in."""
    hub.put("user/stable", files(stock))
    common = ["--training.max_steps", "1", "--training.total_batch_size", "2"]
    common += ["--training.sample_every", "0", "--optimizer.lr_warmup_steps", "0"]
    common += ["--data.path", str(captioned), "--data.validation_split", "train"]
    first, second = str(tmp_path / "first"), str(tmp_path / "second")
    source = ["--model.pretrained", "user/stable"]
    words = ["train", "emoji-latent-t2i", *source, *common, "--output_dir", first]
    assert client.run(MAIN, words=words)[0] == 0
    assert client.run(MAIN, words=["push", first, "user/mine"])[0] == 0
    words = ["train", "user/mine", "--model.vae", str(stock), *common, "--output_dir", second]
    code, said = client.run(MAIN, words=words)
    assert code == 0, said
    code, said = client.run(MAIN, words=[*words, "--model.unet.layers_per_block", "2"])
    assert code == 2 and "model.unet.layers_per_block: unet comes from user/mine" in said
