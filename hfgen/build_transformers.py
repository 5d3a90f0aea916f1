"""Components of transformers, built or loaded; and adapters on pretrained networks."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from hfgen.config import one_of_key
from hfgen.errors import HfgenError
from hfgen.pipelines._text import TEXT_WIDTHS  # pyright: ignore[reportMissingImports]

TEXT_WIDTH = "text_width"
"""Width of a text's embeddings; each class of networks has a name of its own for it."""
CLIP_PARTS = ("text_config", "vision_config")


def is_transformers_role(role: str) -> bool:
    """Whether a role is loaded by transformers' own rules rather than from a pipeline's index."""
    return role in ("text_encoder", "tokenizer")


def load_role(role: str, source: str, options: dict[str, Any]) -> Any:
    """The text encoder or tokenizer of ``source``.

    Args:
        options: ``max_length`` of a tokenizer: tokens that every text is padded or cut to.
    """
    from hfgen.hub.load_text import load_text_encoder, load_tokenizer

    valid = ["max_length"] if role == "tokenizer" else []
    for name in options:
        if name not in valid:
            raise HfgenError(one_of_key(f"model.{role}.{name}", name, valid))
    if role == "text_encoder":
        return load_text_encoder(source)
    tokenizer = load_tokenizer(source)
    if "max_length" in options:
        tokenizer.model_max_length = options["max_length"]
    return tokenizer


def transformers_class(name: str) -> Any:
    """A model or image processor of transformers by name; None where there is no such class."""
    import transformers

    cls = getattr(transformers, name, None)
    if cls is None:
        return None
    bases = (transformers.PreTrainedModel, transformers.BaseImageProcessor)
    return cls if isinstance(cls, type) and issubclass(cls, bases) else None


def build_transformers(cls: Any, options: Mapping[str, Any], follow: Mapping[str, Any]) -> Any:
    """A model of transformers from the arguments of its configuration, or an image processor.

    What belongs to the data and the tokenizer is filled in: for a dual encoder, the vocabulary
    and the length of texts, the size and channels of images.

    Raises:
        ValueError, TypeError: arguments that do not fit.
    """
    import transformers

    if issubclass(cls, transformers.BaseImageProcessor):
        return cls(**options)
    config = dict(options)
    if cls.config_class.__name__ == "CLIPConfig":
        text, vision = (dict(config.get(part, {})) for part in CLIP_PARTS)
        image = {"image_size": follow.get("sample_size"), "num_channels": follow.get("in_channels")}
        config |= {
            "text_config": {**_text_sizes(follow), **text},
            "vision_config": {**_given(image), **vision},
        }
    return cls(cls.config_class(**config))


def _text_sizes(follow: Mapping[str, Any]) -> dict[str, Any]:
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    sizes = {"vocab_size": "text_vocab_size", "max_position_embeddings": "text_length"}
    found = {name: follow.get(source) for name, source in sizes.items()}
    return _given({**found, **{name: follow.get(name) for name in names}})


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def sizes_of(role: str, component: Any) -> dict[str, Any]:
    """Constructor arguments of other components that follow this one."""
    if role == "tokenizer":
        names = ("bos_token_id", "eos_token_id", "pad_token_id")
        ids = {name: getattr(component, name) for name in names}
        length = component.model_max_length
        return {"text_vocab_size": len(component), "text_length": length, **ids}
    if role == "text_encoder":
        return {TEXT_WIDTH: component.config.hidden_size}
    if role == "codes":
        book = component.codebook
        return {
            "num_embeddings": book.num_embeddings,
            "num_quantizers": book.num_quantizers,
            "code_size": component.size,
        }
    return {}


def denoiser_sizes(parameters: Collection[str], follow: Mapping[str, Any]) -> dict[str, Any]:
    """``follow`` with the width of the text by the names that a denoiser's constructor has."""
    width = follow.get(TEXT_WIDTH)
    own = next((name for name in TEXT_WIDTHS if name in parameters), None)
    if width is None or own is None:
        return dict(follow)
    return {**follow, own: width, "pooled_projection_dim": width}


def add_lora(role: str, model: Any, options: Mapping[str, Any]) -> Any:
    """``model`` with low-rank adapters (Hu et al. 2022), which are all that is left to train.

    Args:
        options: of peft's ``LoraConfig``; by default rank 4 on the attention's projections.
    Raises:
        HfgenError: peft is missing, or does not take these options for this model.
    """
    try:
        from peft import LoraConfig
    except ImportError:
        raise HfgenError(f"model.{role}.lora: needs peft; pip install peft") from None
    modules = ["to_q", "to_k", "to_v", "to_out.0"]
    try:
        config = LoraConfig(**{"r": 4, "lora_alpha": 4, "target_modules": modules, **options})
        model.requires_grad_(False)
        model.add_adapter(config)
    except (TypeError, ValueError, AttributeError) as error:
        raise HfgenError(f"model.{role}.lora: {' '.join(str(error).split())[:200]}") from None
    return model


def save_adapters(pipeline: Any, settings: Mapping[str, Any], folder: Path) -> Any:
    """``pipeline`` as it is saved: with the adapters of roles that have ``lora`` added to the
    weights, on copies, and written to ``folder/lora/ROLE``.
    """
    adapted = {
        role: pipeline.components[role]
        for role, value in settings.items()
        if isinstance(value, Mapping) and "lora" in value and role in pipeline.components
    }
    if not adapted:
        return pipeline
    merged = copy.copy(pipeline)
    for role, model in adapted.items():
        model.save_lora_adapter(folder / "lora" / role)
        whole = copy.deepcopy(model)
        whole.fuse_lora()
        whole.unload_lora()
        merged.register_modules(**{role: whole})
    return merged
