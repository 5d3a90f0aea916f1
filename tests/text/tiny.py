"""Tiny parts of text-to-image models, of the real classes."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from transformers import BertConfig, BertModel, CLIPConfig, CLIPImageProcessorPil, CLIPModel

from hfgen.caption_tokenizer import train_tokenizer
from hfgen.models.transformer_codes import CodeTransformer
from hfgen.models.vae_vq import VQVAE
from hfgen.pipelines.clip_pipeline import CLIPScorePipeline
from hfgen.pipelines.codes_pipeline import CodesPipeline

CAPTIONS = ["red heart", "blue heart", "grinning face", "red face", "green circle", "blue circle"]
LENGTH = 8


def words() -> Any:
    return train_tokenizer(CAPTIONS, "PreTrainedTokenizerFast", 64, LENGTH)


def bytes_pairs() -> Any:
    return train_tokenizer(CAPTIONS, "CLIPTokenizer", 620, LENGTH)


def clip(tokenizer: Any) -> CLIPModel:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    ends = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id")}
    text = {"vocab_size": len(tokenizer), "max_position_embeddings": LENGTH, **ends}
    config = CLIPConfig(
        text_config={**sizes, **text, "num_attention_heads": 2},
        vision_config={**sizes, "num_attention_heads": 2, "image_size": 16, "patch_size": 8},
        projection_dim=16,
    )
    return CLIPModel(config).eval()


def clip_pipeline() -> CLIPScorePipeline:
    tokenizer = bytes_pairs()
    half = [0.5, 0.5, 0.5]
    size = {"height": 16, "width": 16}
    processor = CLIPImageProcessorPil(
        size=size, do_center_crop=False, image_mean=half, image_std=half
    )
    return CLIPScorePipeline(clip(tokenizer), tokenizer, processor)


def bert(tokenizer: Any) -> BertModel:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=LENGTH,
    )
    return BertModel(config).eval()


def codes(quantizer: dict | None = None) -> VQVAE:
    torch.manual_seed(0)
    quantizer = quantizer or {"type": "vq", "num_embeddings": 12, "dim": 4, "kmeans_start": False}
    return VQVAE(16, 3, block_out_channels=(8, 8), quantizer=quantizer).eval()


def transformer(book: VQVAE, **condition: Any) -> CodeTransformer:
    torch.manual_seed(0)
    return CodeTransformer(
        num_embeddings=book.codebook.num_embeddings,
        code_size=book.size,
        num_quantizers=book.codebook.num_quantizers,
        hidden_size=16,
        num_layers=2,
        num_heads=2,
        **condition,
    ).eval()


def spread(model: CodeTransformer) -> CodeTransformer:
    """Weights large enough that codes depend on the condition and on one another."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4 if parameter.dim() > 1 else 1)
    return model


def codes_pipeline(kind: str = "text", quantizer: dict | None = None) -> CodesPipeline:
    book, tokenizer = codes(quantizer), words() if kind == "text" else None
    condition = {
        "text": {"text_vocab_size": tokenizer and len(tokenizer), "text_length": LENGTH},
        "class": {"num_class_embeds": 3},
        "nothing": {},
    }[kind]
    pipeline = CodesPipeline(book, spread(transformer(book, **condition)), tokenizer)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def unet(width: int, channels: int = 4, size: int = 4) -> UNet2DConditionModel:
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=size,
        in_channels=channels,
        out_channels=channels,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=width,
        attention_head_dim=2,
        norm_num_groups=4,
    ).eval()


def kl_vae() -> AutoencoderKL:
    torch.manual_seed(0)
    return AutoencoderKL(
        block_out_channels=(8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        norm_num_groups=4,
        sample_size=16,
        scaling_factor=1.0,
    ).eval()


def scheduler() -> DDIMScheduler:
    return DDIMScheduler(
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
        steps_offset=1,
    )
