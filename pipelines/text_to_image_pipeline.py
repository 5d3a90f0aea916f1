"""Images from texts by a denoising network with cross-attention to any text encoder."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput, ModelMixin, SchedulerMixin
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..denoising import run_text_network  # pyright: ignore[reportMissingImports]
from ._autoencoder import decode_latents
from ._common import (
    Generators,
    check_batch,
    check_latents,
    check_output_type,
    draw_latents,
    to_output,
)
from ._self_contained import SelfContainedMixin
from ._text import (
    check_belongs,
    check_prompts,
    embed_tokens,
    repeat_prompts,
    text_width,
    tokenize,
    uses_mask,
)


class TextToImagePipeline(SelfContainedMixin, DiffusionPipeline):
    """Latent (or pixel) diffusion and flow models on texts (Rombach et al. 2022).

    For what ``StableDiffusionPipeline`` does not take: another text encoder than CLIP's, another
    autoencoder than AutoencoderKL, or none, a transformer as denoiser, flow-matching schedulers.

    Args:
        text_encoder: an encoder of transformers; frozen in training.
        tokenizer: its tokenizer; texts are padded to its ``model_max_length``.
        unet: UNet2DConditionModel, or a transformer of diffusers on texts
            (PixArtTransformer2DModel, SD3Transformer2DModel).
        scheduler: the diffusers scheduler that ``unet`` was trained for, or a compatible one.
        vae: autoencoder of the latents; None for a model of pixels.
        decoder_likelihood: what the decoder's output means; None where it is the image itself.
    """

    model_cpu_offload_seq = "text_encoder->unet->vae"
    _optional_components = ["vae"]

    def __init__(
        self,
        text_encoder: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        unet: ModelMixin,
        scheduler: SchedulerMixin,
        vae: ModelMixin | None = None,
        decoder_likelihood: dict | None = None,
    ):
        super().__init__()
        self.register_modules(
            text_encoder=text_encoder, tokenizer=tokenizer, unet=unet, scheduler=scheduler, vae=vae
        )
        self.register_to_config(decoder_likelihood=decoder_likelihood)
        check_belongs(tokenizer, text_encoder.config.vocab_size, "text encoder")
        width, wanted = text_encoder.config.hidden_size, text_width(unet)
        if wanted != width:
            raise ValueError(
                f"unet: reads texts of width {wanted}, but the text encoder's embeddings have "
                f"{width}"
            )

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """[C, H, W] of what is denoised."""
        size = self.unet.config["sample_size"]
        return (self.unet.config["in_channels"], size, size)

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str],
        negative_prompt: str | list[str] | None = None,
        batch_size: int = 1,
        num_images_per_prompt: int = 1,
        guidance_scale: float = 4.0,
        num_inference_steps: int = 50,
        generator: Generators = None,
        latents: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> ImagePipelineOutput | tuple[Any]:
        """Draw images.

        Args:
            prompt: one text for all images, or a list of them.
            negative_prompt: guide away from these texts instead of the empty one.
            batch_size: number of images, where ``prompt`` is no list.
            num_images_per_prompt: images of each prompt in a list, one after the other.
            guidance_scale: w in ``other + w (conditional - other)`` (Ho & Salimans 2022); 1 is
                off.
            num_inference_steps: steps of the scheduler.
            generator: one for the batch, or one per image.
            latents: [B, C, H, W] standard normal noise to use instead of drawing some.
            output_type: "pil", "np" [B, H, W, C] or "pt" [B, C, H, W] in [0, 1], or "latent".
            return_dict: an ``ImagePipelineOutput``, or a tuple of one.
        Raises:
            ValueError: an argument that does not fit the model or the others.
        """
        check_output_type(output_type)
        if guidance_scale < 0:
            raise ValueError(f"guidance_scale={guidance_scale}: must not be negative")
        if num_inference_steps < 1:
            raise ValueError(f"num_inference_steps={num_inference_steps}: must be at least 1")
        prompts = repeat_prompts(prompt, batch_size, num_images_per_prompt)
        check_batch(len(prompts), generator)
        conditions = [self.encode_prompt(prompts)]
        if guidance_scale != 1.0:
            conditions.append(self.encode_prompt(_negatives(negative_prompt, len(prompts)), True))
        if latents is None:
            latents = draw_latents(
                len(prompts), self.latent_shape, generator, self._execution_device
            )
        check_latents(latents, self.latent_shape, len(prompts))
        x = latents.to(self._execution_device)
        x = self._denoise(x, conditions, guidance_scale, num_inference_steps, generator)
        images: Any = x
        if output_type != "latent":
            given = self.config["decoder_likelihood"]
            pixels = x if self.vae is None else decode_latents(self.vae, x, given)
            images = to_output(pixels, output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def encode_prompt(
        self, texts: list[str], negative: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Embeddings [B, T, D] and mask [B, T], None where padding is not masked."""
        name = "negative_prompt" if negative else "prompt"
        ids, mask = tokenize(self.tokenizer, texts, name)
        embeds = embed_tokens(self.text_encoder, ids, mask)
        return embeds, mask.to(embeds.device) if uses_mask(self.text_encoder) else None

    def _denoise(
        self,
        x: Tensor,
        conditions: list[tuple[Tensor, Tensor | None]],
        scale: float,
        steps: int,
        generator: Generators,
    ) -> Tensor:
        scheduler: Any = self.scheduler
        scheduler.set_timesteps(steps, device=x.device)
        random = "generator" in inspect.signature(scheduler.step).parameters
        options = {"generator": generator} if random else {}
        rescale = getattr(scheduler, "scale_model_input", lambda sample, timestep: sample)
        embeds = torch.cat([condition[0] for condition in conditions]).to(self.unet.dtype)
        masks = [condition[1] for condition in conditions if condition[1] is not None]
        mask = torch.cat(masks) if masks else None
        x = x * getattr(scheduler, "init_noise_sigma", 1.0)
        pipeline: Any = self  # the decorator of progress_bar hides its type
        for t in pipeline.progress_bar(scheduler.timesteps):
            sample = rescale(x, t).to(self.unet.dtype).repeat(len(conditions), 1, 1, 1)
            output = run_text_network(self.unet, sample, t, embeds, mask)
            if len(conditions) == 2:
                conditional, other = output.chunk(2)
                output = other + scale * (conditional - other)
            x = scheduler.step(output, t, x, **options).prev_sample
        return x


def _negatives(negative: Any, rows: int) -> list[str]:
    texts = check_prompts("" if negative is None else negative, "negative_prompt", empty=True)
    if len(texts) not in (1, rows):
        raise ValueError(f"{len(texts)} negative prompts for {rows} images: must be equal or 1")
    return texts * (rows // len(texts))
