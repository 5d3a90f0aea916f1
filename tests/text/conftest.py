"""Pictures with captions, and runs on them that several files of tests look at."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.text import tiny
from tests.text.training import COLORS, TOKENIZER, stable_parts, train


@pytest.fixture(scope="session")
def pictures(tmp_path_factory) -> Path:
    """Four images with captions, as a folder with metadata.jsonl."""
    folder = tmp_path_factory.mktemp("pictures")
    lines = []
    for i, (caption, color) in enumerate(COLORS.items()):
        image = np.zeros((16, 16, 3), np.uint8)
        image[3:13, 3 + i : 13] = color
        Image.fromarray(image).save(folder / f"{i}.png")
        lines.append(json.dumps({"file_name": f"{i}.png", "caption": f"  {caption}\n"}))
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="session")
def root(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="session")
def book(root, pictures) -> Path:
    """A trained autoencoder with a codebook."""
    return train(
        root,
        pictures,
        "book",
        150,
        pipeline="VAEPipeline",
        objective={"type": "vq", "likelihood": {"type": "gaussian", "std": 0.2}},
        model={
            "vae": {
                "type": "VQVAE",
                "block_out_channels": [16, 16],
                "quantizer": {"type": "vq", "num_embeddings": 16, "dim": 8, "ema_decay": 0.9},
            }
        },
    )


@pytest.fixture(scope="session")
def dalle(root, pictures, book) -> Path:
    transformer = {"type": "CodeTransformer", "hidden_size": 32, "num_layers": 2, "num_heads": 2}
    return train(
        root,
        pictures,
        "dalle",
        150,
        pipeline="CodesPipeline",
        objective={"type": "image-codes", "caption_dropout": 0.1},
        model={"codes": str(book), "tokenizer": TOKENIZER, "transformer": transformer},
    )


@pytest.fixture(scope="session")
def clip(root, pictures) -> Path:
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    half = [0.5, 0.5, 0.5]
    return train(
        root,
        pictures,
        "clip",
        40,
        pipeline="CLIPScorePipeline",
        objective={"type": "contrastive"},
        model={
            "tokenizer": {"type": "CLIPTokenizer", "vocab_size": 620, "max_length": 8},
            "image_processor": {
                "type": "CLIPImageProcessorPil",
                "size": {"height": 16, "width": 16},
                "do_center_crop": False,
                "image_mean": half,
                "image_std": half,
            },
            "clip": {
                "type": "CLIPModel",
                "projection_dim": 16,
                "text_config": {**size, "num_attention_heads": 2},
                "vision_config": {**size, "num_attention_heads": 2, "patch_size": 8},
            },
        },
    )


@pytest.fixture(scope="session")
def stable(root, pictures, clip) -> Path:
    """A stock StableDiffusionPipeline: CLIP's text model, AutoencoderKL."""
    tiny.kl_vae().save_pretrained(root / "vae")
    return train(root, pictures, "stable", 2, **stable_parts(root, clip))
