"""Images from a transformer over discrete codes: from texts, classes or nothing (DALL-E)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput, ModelMixin
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ..likelihoods import likelihood_from_config  # pyright: ignore[reportMissingImports]
from ._common import (
    Generators,
    check_batch,
    check_labels,
    check_output_type,
    to_output,
    to_tensor,
)
from ._self_contained import SelfContainedMixin
from ._text import check_belongs, check_prompts, repeat_prompts, tokenize

Ranker = Callable[[list, list[str]], Tensor]
"""PIL images and their prompts -> one score each, higher is better; a CLIPScorePipeline is one."""


class CodesPipeline(SelfContainedMixin, DiffusionPipeline):
    """codes ~ p(codes | text, class or nothing), image = decoder(codes) (Ramesh et al. 2021).

    Args:
        codes: an autoencoder with a codebook: VQVAE, whatever its quantiser.
        transformer: a CodeTransformer for these codes.
        tokenizer: of the texts; None for a model without.
        decoder_likelihood: what the decoder's output means; None where it is the image itself.
    """

    model_cpu_offload_seq = "transformer->codes"
    _optional_components = ["tokenizer"]

    def __init__(
        self,
        codes: ModelMixin,
        transformer: ModelMixin,
        tokenizer: PreTrainedTokenizerBase | None = None,
        decoder_likelihood: dict | None = None,
    ):
        super().__init__()
        self.register_modules(codes=codes, transformer=transformer, tokenizer=tokenizer)
        self.register_to_config(decoder_likelihood=decoder_likelihood)
        _check_fit(codes, transformer, tokenizer)

    @property
    def num_classes(self) -> int | None:
        """Number of classes that the model is conditioned on, if any."""
        return self.transformer.config["num_class_embeds"]

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """[C, H, W] of the images."""
        size = self.codes.config["sample_size"]
        return (self.codes.config["in_channels"], size, size)

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        negative_prompt: str | list[str] | None = None,
        class_labels: int | Sequence[int] | Tensor | None = None,
        batch_size: int = 1,
        num_images_per_prompt: int = 1,
        guidance_scale: float = 1.0,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float = 1.0,
        image: Any = None,
        keep: float = 0.5,
        ranker: Ranker | None = None,
        num_candidates: int = 1,
        generator: Generators = None,
        latents: Tensor | None = None,
        use_cache: bool = True,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> ImagePipelineOutput | tuple[Any]:
        """Draw images.

        Args:
            prompt: one text for all images, or a list of them, for a model with text.
            negative_prompt: guide away from these texts instead of the empty one.
            class_labels: one label, or one per image, for a model with classes.
            batch_size: number of images, where there is no list of prompts.
            num_images_per_prompt: images of each prompt in a list, one after the other.
            guidance_scale: s in ``other + s (conditional - other)``, on ln p of each code; 1 is
                off.
            temperature: divides ln p; 0 takes the likeliest code each time.
            top_k, top_p: draw from the k likeliest codes, or from the likeliest ones that have
                the share p together.
            image: complete this one (or one per image to draw): its first codes are kept.
            keep: share of the rows of codes that is kept of ``image``.
            ranker: score ``num_candidates`` images for each one asked for, return the best.
            generator: one for the batch, or one per image.
            latents: codes, int64 [B, height, width, levels], to decode instead of drawing any.
            use_cache: keep keys and values of the codes before; off gives the same, slower.
            output_type: "pil", "np" [B, H, W, C] or "pt" [B, C, H, W] in [0, 1], or "latent":
                the codes, int64 [B, height, width, levels].
            return_dict: an ``ImagePipelineOutput``, or a tuple of one.
        Raises:
            ValueError: an argument that does not fit the model or the others.
        """
        check_output_type(output_type)
        _check_sampling(guidance_scale, temperature, top_k, top_p)
        if latents is not None:
            return self._finish(latents, output_type, return_dict)
        prompts = self._prompts(prompt, batch_size, num_images_per_prompt)
        rows = batch_size if prompts is None else len(prompts)
        check_batch(rows, generator)
        condition = self._condition(prompts, class_labels, rows)
        other = self._other(negative_prompt, guidance_scale, rows)
        prefix = self._prefix(image, keep, rows)
        if num_candidates < 1 or (num_candidates > 1) != (ranker is not None):
            raise ValueError(
                f"num_candidates={num_candidates}: more than 1 go with a ranker, and the other "
                "way round"
            )
        noise = uniform_draws(rows, num_candidates * self.transformer.length, generator)
        filters = (guidance_scale, temperature, top_k, top_p)
        drawn = [
            self._draw(condition, other, prefix, part, filters, use_cache)[0]
            for part in noise.split(self.transformer.length, dim=1)
        ]
        found = drawn[0] if ranker is None else self._best(drawn, ranker, prompts)
        return self._finish(self._map(found), output_type, return_dict)

    @torch.no_grad()
    def encode_image(self, image: Any) -> Tensor:
        """Codes of images, int64 [B, height, width, levels].

        Args:
            image: PIL images, an array [B, H, W, C] or a tensor [B, C, H, W] in [0, 1].
        """
        x = to_tensor(image, self.image_shape, self._execution_device).to(self.codes.dtype)
        encode = apply_forward_hook(type(self.codes).encode_map)
        return self.codes.quantize(encode(self.codes, x)).indices

    @torch.no_grad()
    def log_prob(
        self,
        codes: Tensor,
        prompt: str | list[str] | None = None,
        class_labels: int | Sequence[int] | Tensor | None = None,
    ) -> Tensor:
        """ln p(codes | condition) in nats, [B], exactly, by one pass of teacher forcing.

        Args:
            codes: int64 [B, height, width, levels], as ``encode_image`` gives them.
        """
        prompts = self._prompts(prompt, len(codes), 1)
        condition = self._condition(prompts, class_labels, len(codes))
        return self.transformer.log_prob(codes.flatten(1), condition)

    def bits_per_dim(self, image: Any, **condition: Any) -> Tensor:
        """-log2 p(codes of ``image`` | condition) over its pixels times channels, [B].

        The rate of the code alone: what the decoder loses is not in it.
        """
        nats = self.log_prob(self.encode_image(image), **condition)
        return -nats / (math.log(2) * math.prod(self.image_shape))

    def _prompts(self, prompt: Any, rows: int, each: int) -> list[str] | None:
        if not self.transformer.has_text:
            if prompt is not None:
                raise ValueError("prompt: given, but the model has no text")
            return None
        return repeat_prompts(prompt, rows, each)

    def _condition(self, prompts: list[str] | None, class_labels: Any, rows: int) -> Tensor | None:
        device = self._execution_device
        labels = check_labels(class_labels, self.num_classes, rows, device)
        return labels if prompts is None else tokenize(self.tokenizer, prompts)[0].to(device)

    def _other(self, negative: Any, scale: float, rows: int) -> Tensor | None:
        """Tokens of what guidance leads away from."""
        if scale == 1.0:
            return None
        if not self.transformer.has_text:
            raise ValueError(f"guidance_scale={scale}: this model has no text; valid: 1")
        texts = check_prompts("" if negative is None else negative, "negative_prompt", empty=True)
        if len(texts) not in (1, rows):
            raise ValueError(f"{len(texts)} negative prompts for {rows} images: must be equal or 1")
        ids = tokenize(self.tokenizer, texts, "negative_prompt")[0]
        return ids.expand(rows, -1).to(self._execution_device)

    def _prefix(self, image: Any, keep: float, rows: int) -> Tensor:
        """Codes [rows, n] that are given."""
        if image is None:
            return torch.zeros(rows, 0, dtype=torch.long, device=self._execution_device)
        if not 0 < keep < 1:
            raise ValueError(f"keep={keep}: must be above 0 and below 1")
        codes = self.encode_image(image)
        if len(codes) not in (1, rows):
            raise ValueError(f"{len(codes)} images to complete for {rows} to draw: must be equal")
        kept = codes[:, : round(keep * codes.shape[1])].flatten(1)
        return kept.expand(rows, -1)

    def _draw(
        self,
        condition: Tensor | None,
        other: Tensor | None,
        prefix: Tensor,
        uniform: Tensor,
        filters: tuple[float, float, int | None, float],  # guidance, temperature, top-k, top-p
        use_cache: bool,
    ) -> tuple[Tensor, Tensor]:
        """Codes [B, length] and ln of the probability [B] that they were drawn with."""
        scale, temperature, top_k, top_p = filters
        both = condition if other is None or condition is None else torch.cat([condition, other])
        repeat = 2 if other is not None else 1
        codes, model = prefix, self.transformer
        logits, cache = None, None
        nats = torch.zeros(len(prefix), dtype=torch.float64, device=prefix.device)
        pipeline: Any = self  # the decorator of progress_bar hides its type
        for i in pipeline.progress_bar(range(prefix.shape[1], model.length)):
            if not use_cache:
                logits = model(codes.repeat(repeat, 1), both)[:, -1]
            elif cache is None:
                logits, cache = model.start(repeat * len(codes), both)
                if codes.shape[1]:
                    logits = model.step(codes.repeat(repeat, 1), cache)
            else:
                logits = model.step(codes[:, -1:].repeat(repeat, 1), cache)
            log_p = _filtered(_guided(logits, scale, repeat), temperature, top_k, top_p)
            index = _pick(log_p.exp(), uniform[:, i : i + 1].to(log_p.device))
            nats = nats + log_p.gather(1, index).squeeze(1)
            codes = torch.cat([codes, index], dim=1)
        return codes, nats

    def _map(self, codes: Tensor) -> Tensor:
        size = self.transformer.config["code_size"]
        return codes.view(len(codes), size, size, -1)

    def _finish(
        self, codes: Tensor, output_type: str, return_dict: bool
    ) -> ImagePipelineOutput | tuple[Any]:
        config = self.transformer.config
        shape = (config["code_size"], config["code_size"], config["num_quantizers"])
        if codes.is_floating_point() or tuple(codes.shape[1:]) != shape:
            raise ValueError(
                f"latents: {codes.dtype} {list(codes.shape)}; must be codes, int64 [B, "
                f"{', '.join(map(str, shape))}]"
            )
        images: Any = codes
        if output_type != "latent":
            images = to_output(self._decode(codes.to(self._execution_device)), output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _decode(self, codes: Tensor) -> Tensor:
        """Images [B, C, H, W] in [-1, 1]."""
        z = self.codes.codebook.embed(self._map(codes))
        decode = apply_forward_hook(type(self.codes).decode)
        params = decode(self.codes, z.to(self.codes.dtype)).sample.float()
        given = self.config["decoder_likelihood"]
        return params if given is None else likelihood_from_config(given).mean(params)

    def _best(self, drawn: list[Tensor], ranker: Ranker, prompts: list[str] | None) -> Tensor:
        """Of each image's candidates the one that the ranker likes best."""
        if prompts is None:
            raise ValueError("ranker: it compares images with prompts, and this model has none")
        scores = [ranker(to_output(self._decode(codes), "pil"), prompts) for codes in drawn]
        best = torch.stack([torch.as_tensor(score) for score in scores]).argmax(0)
        stacked = torch.stack(drawn)
        return stacked[best.to(stacked.device), torch.arange(len(best), device=stacked.device)]


def _check_fit(codes: Any, transformer: Any, tokenizer: Any) -> None:
    has = (codes.codebook.num_embeddings, codes.size, codes.codebook.num_quantizers)
    names = ("num_embeddings", "code_size", "num_quantizers")
    wants = tuple(transformer.config[name] for name in names)
    if has != wants:
        raise ValueError(
            f"transformer: made for codes with {', '.join(names)} {wants}, but these are of "
            f"another vocabulary or size: {has}"
        )
    if transformer.has_text and tokenizer is None:
        raise ValueError("tokenizer: missing; the transformer is conditioned on texts")
    if transformer.has_text:
        check_belongs(tokenizer, transformer.config["text_vocab_size"], "transformer")


def _check_sampling(scale: float, temperature: float, top_k: int | None, top_p: float) -> None:
    if scale < 0:
        raise ValueError(f"guidance_scale={scale}: must not be negative")
    if temperature < 0:
        raise ValueError(f"temperature={temperature}: must not be negative")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k={top_k}: must be at least 1, or None")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p={top_p}: must be above 0 and at most 1")


def uniform_draws(rows: int, count: int, generator: Generators) -> Tensor:
    """Numbers in [0, 1), float64 [rows, count]; each row from its own generator if there is one."""
    options: dict[str, Any] = {"dtype": torch.float64}
    if isinstance(generator, list):
        parts = [torch.rand(count, generator=g, device=g.device, **options) for g in generator]
        return torch.stack([part.cpu() for part in parts])
    device = "cpu" if generator is None else generator.device
    return torch.rand(rows, count, generator=generator, device=device, **options).cpu()


def _guided(logits: Tensor, scale: float, repeat: int) -> Tensor:
    """ln p, float64 [B, K]."""
    log_p = torch.log_softmax(logits.double(), dim=-1)
    if repeat == 1:
        return log_p
    conditional, other = log_p.chunk(2)
    return torch.log_softmax(other + scale * (conditional - other), dim=-1)


def _filtered(log_p: Tensor, temperature: float, top_k: int | None, top_p: float) -> Tensor:
    """ln p after temperature, top-k and top-p (Holtzman et al. 2020), normalised."""
    if temperature == 0:
        likeliest = log_p.argmax(-1, keepdim=True)
        return torch.full_like(log_p, -math.inf).scatter(1, likeliest, 0.0)
    log_p = torch.log_softmax(log_p / temperature, dim=-1)
    ordered, order = log_p.sort(dim=-1, descending=True, stable=True)
    before = ordered.exp().cumsum(-1) - ordered.exp()
    drop = before >= top_p
    drop[:, 0] = False
    if top_k is not None:
        drop[:, top_k:] = True
    ordered = ordered.masked_fill(drop, -math.inf)
    return torch.log_softmax(torch.empty_like(log_p).scatter(1, order, ordered), dim=-1)


def _pick(share: Tensor, uniform: Tensor) -> Tensor:
    """Index [B, 1] at which the cumulated share [B, K] first exceeds ``uniform`` [B, 1]."""
    total = share.cumsum(-1)
    return (total <= uniform * total[:, -1:]).sum(-1, keepdim=True)
