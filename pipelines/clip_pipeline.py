"""How well images and texts go together, by a dual encoder."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from diffusers import DiffusionPipeline
from PIL import Image
from torch import Tensor
from transformers import BaseImageProcessor, CLIPModel, PreTrainedTokenizerBase

from ._self_contained import SelfContainedMixin
from ._text import check_belongs, check_prompts, tokenize

AT_ONCE = 64


class CLIPScorePipeline(SelfContainedMixin, DiffusionPipeline):
    """Cosine similarity of images and texts (Radford et al. 2021; CLIPScore, Hessel et al. 2021).

    Its parts are stock: ``CLIPModel.from_pretrained(folder, subfolder="clip")`` loads the model,
    ``CLIPTokenizerFast`` and ``CLIPImageProcessor`` what belongs to it.

    Args:
        clip: a CLIPModel, or a dual encoder of transformers with its interface.
        tokenizer: its tokenizer.
        image_processor: its image processor.
    """

    model_cpu_offload_seq = "clip"

    def __init__(
        self,
        clip: CLIPModel,
        tokenizer: PreTrainedTokenizerBase,
        image_processor: BaseImageProcessor,
    ):
        super().__init__()
        self.register_modules(clip=clip, tokenizer=tokenizer, image_processor=image_processor)
        text: Any = clip.config.text_config
        check_belongs(tokenizer, text.vocab_size, "text encoder")

    @torch.no_grad()
    def __call__(self, images: list[Image.Image], prompt: str | list[str]) -> Tensor:
        """Cosine similarity, float32 [B], of each image to its own text.

        Args:
            images: PIL images.
            prompt: one text for all, or one for each.
        Raises:
            ValueError: as many texts as images, or one, are needed.
        """
        prompts = check_prompts(prompt)
        if len(prompts) not in (1, len(images)):
            raise ValueError(f"{len(prompts)} prompts for {len(images)} images: must be equal")
        return (self.embed_images(images) * self.embed_texts(prompts)).sum(1)

    @torch.no_grad()
    def embed_texts(self, texts: list[str]) -> Tensor:
        """Unit vectors [B, D]; texts that are too long are cut."""
        parts = []
        for start in range(0, len(texts), AT_ONCE):
            ids, mask = tokenize(self.tokenizer, texts[start : start + AT_ONCE], truncate=True)
            device = self._execution_device
            found = self.clip.get_text_features(ids.to(device), attention_mask=mask.to(device))
            parts.append(_unit(found))
        return torch.cat(parts)

    @torch.no_grad()
    def embed_images(self, images: list[Image.Image]) -> Tensor:
        """Unit vectors [B, D] of PIL images."""
        parts = []
        for start in range(0, len(images), AT_ONCE):
            rows = [image.convert("RGB") for image in images[start : start + AT_ONCE]]
            pixels = self.image_processor(rows, return_tensors="pt").pixel_values
            found = self.clip.get_image_features(pixels.to(self._execution_device, self.clip.dtype))
            parts.append(_unit(found))
        return torch.cat(parts)


def _unit(output: Any) -> Tensor:
    """Transformers 5 wraps the embedding that earlier versions returned."""
    rows = output if isinstance(output, Tensor) else output.pooler_output
    return F.normalize(rows.float(), dim=-1).cpu()
