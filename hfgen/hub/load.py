"""Loading a pipeline, or one component of it, without running the code that comes with it."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
from diffusers import DiffusionPipeline
from diffusers.pipelines.pipeline_loading_utils import simple_get_class_obj
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import RemoteEntryNotFoundError
from safetensors import SafetensorError
from torch import nn

from hfgen.errors import HfgenError
from hfgen.hub.client import hub_errors, meant_id
from hfgen.hub.folder import is_run
from hfgen.pipelines._self_contained import (  # pyright: ignore[reportMissingImports]
    HASHED,
    code_lock,
    installed_modules,
    is_component,
    same_module,
    use_installed,
)

INDEX = "model_index.json"
DOWNLOAD = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "token")
"""Arguments of ``from_pretrained`` that say how to download."""


def load(path_or_id: str | Path, **kwargs: Any) -> Any:
    """A pipeline, as its installed class.

    Args:
        path_or_id: a run's folder (its ``pipeline`` is taken), a saved pipeline's folder, or a Hub
            id; ours, or any pipeline of diffusers.
        **kwargs: those of ``DiffusionPipeline.from_pretrained``. With ``trust_remote_code=True``
            the code that comes with the pipeline runs instead of the installed one. Only
            safetensors are read, unless ``use_safetensors=False``.
    Raises:
        HfgenError: nothing there, or no pipeline; code that is not installed, or not in this
            version; weights that are missing or broken.
    """
    source = _source(path_or_id)
    kwargs = {"use_safetensors": True, **kwargs}
    with _one_line(source, foreign=bool(kwargs.get("trust_remote_code"))):
        index = _read(source, INDEX, kwargs)
        if kwargs.get("trust_remote_code"):
            with code_lock():
                return DiffusionPipeline.from_pretrained(source, **kwargs)
        return _pipeline_class(index, source).from_pretrained(source, **kwargs)


def load_component(path_or_id: str | Path, role: str, **kwargs: Any) -> Any:
    """One component (``vae``, ``unet``, ``scheduler`` ...) of what ``load`` takes.

    A folder or repository that holds one model of diffusers and no pipeline will do as well.

    Raises:
        HfgenError: as ``load``; or the pipeline has no such component.
    """
    source = _source(path_or_id)
    if kwargs.get("trust_remote_code"):
        return _part(load(source, **kwargs).components, role, source)
    with _one_line(source):
        bare = (Path(source) / "config.json").is_file() and not (Path(source) / INDEX).is_file()
        index = {role: _bare(source)} if bare else _read(source, INDEX, kwargs)
        cls: Any = _component_class(index, role, source)
        is_model = issubclass(cls, nn.Module)
        options = {"use_safetensors": True} if is_model else {}
        where = {} if bare else {"subfolder": role}
        return cls.from_pretrained(source, **{**options, **where, **kwargs})


def component_names(path_or_id: str | Path) -> list[str] | None:
    """Roles of the pipeline that ``load`` would give; None for a folder or repository of one model.

    Raises:
        HfgenError: as ``load``.
    """
    source = _source(path_or_id)
    with _one_line(source):
        if (Path(source) / "config.json").is_file() and not (Path(source) / INDEX).is_file():
            return None
        index = _read(source, INDEX, {})
    return list(_present(index))


def pipeline_config(path_or_id: str | Path) -> dict[str, Any]:
    """Settings of a pipeline that are no components; none for a folder or repository of one model.

    Raises:
        HfgenError: as ``load``.
    """
    if component_names(path_or_id) is None:
        return {}
    index = _read(_source(path_or_id), INDEX, {})
    present = _present(index)
    return {k: v for k, v in index.items() if k not in present and not k.startswith("_")}


def _source(path_or_id: str | Path) -> str:
    """The pipeline's folder, or the Hub id."""
    path = Path(path_or_id)
    if (path / "pipeline" / INDEX).is_file():
        return str(path / "pipeline")
    if path.is_dir():
        return str(path)
    return meant_id(path_or_id)


def _read(source: str, name: str, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON file of a folder or repository."""
    if Path(source).is_dir():
        path = Path(source, name)
        if not path.is_file():
            state = (
                "a run that has exported no pipeline yet" if is_run(Path(source)) else "no pipeline"
            )
            raise HfgenError(f"{source}: {state} (it holds no {name})")
    else:
        options = {key: kwargs[key] for key in DOWNLOAD if key in kwargs}
        try:
            path = Path(hf_hub_download(source, name, **options))
        except RemoteEntryNotFoundError:
            raise HfgenError(f"{source}: no pipeline (it holds no {name})") from None
    value = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(value, dict):
        raise HfgenError(f"{path}: not a JSON object")
    return value


def _pipeline_class(index: dict[str, Any], source: str) -> type[DiffusionPipeline]:
    entry: Any = index.get("_class_name")
    if is_component(entry) and _is_exported(entry):
        modules = installed_modules("pipelines", *entry)
        module = same_module(entry[0], modules, source, index.get("_hfgen_version"))
        cls = getattr(sys.modules[module], entry[1])
        use_installed(index, cls, source)
        return cls
    own = [name for name, value in _present(index).items() if _is_exported(value)]
    if is_component(entry) or own:
        names = ", ".join([str(entry[0])] * is_component(entry) + own)
        raise HfgenError(
            f"{source}: brings code of its own ({names}) that is not hfgen's: read it, then pass "
            "trust_remote_code=True to run it"
        )
    if not hasattr(diffusers, str(entry)):
        raise HfgenError(
            f"{source}: a {entry} saved by diffusers {index.get('_diffusers_version', '?')}, which "
            f"the installed {diffusers.__version__} does not have"
        )
    return DiffusionPipeline


def _is_exported(entry: Any) -> bool:
    return HASHED.fullmatch(str(entry[0])) is not None


def _component_class(index: dict[str, Any], role: str, source: str) -> Any:
    entry = _part(_present(index), role, source)
    if not _is_exported(entry):
        return simple_get_class_obj(*entry)
    modules = installed_modules("models", *entry)
    where = f"{source}/{role}"
    module = same_module(entry[0], modules, where, index.get("_hfgen_version"))
    return getattr(sys.modules[module], entry[1])


def _present(index: Mapping[str, Any]) -> dict[str, list[str]]:
    """Entries of the components that there are: an optional one may be [null, null]."""
    entries = {name: entry for name, entry in index.items() if not name.startswith("_")}
    return {name: entry for name, entry in entries.items() if is_component(entry) and entry[0]}


def _part(components: Mapping[str, Any], role: str, source: str) -> Any:
    known = [name for name, part in components.items() if part is not None]
    if role not in known:
        raise HfgenError(f"{source}: no component {role!r}; it has {', '.join(sorted(known))}")
    return components[role]


def _bare(source: str) -> tuple[str, str]:
    """The index entry of a folder that holds one model and no pipeline."""
    name = str(_read(source, "config.json", {}).get("_class_name"))
    if not hasattr(diffusers, name):
        raise HfgenError(
            f"{source}: its class {name!r} is none of diffusers {diffusers.__version__}"
        )
    return ("diffusers", name)


@contextmanager
def _one_line(source: str, foreign: bool = False) -> Iterator[None]:
    """What the libraries raise on bad input, as one line; and whatever ``foreign`` code raises."""
    try:
        with hub_errors(source):
            yield
    except (OSError, ValueError, ImportError, SafetensorError) as error:
        text = " ".join(str(error).split())
        raise HfgenError(text if text.startswith(source) else f"{source}: {text}") from error
    except Exception as error:
        if not foreign or isinstance(error, HfgenError):
            raise
        raise HfgenError(f"{source}: its code fails: {' '.join(repr(error).split())}") from error
