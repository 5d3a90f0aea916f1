"""Pipelines that carry their own code: what they save loads where hfgen is not installed.

``save_pretrained`` of diffusers writes ``["hfgen.models.vae_mlp", "MLPVAE"]`` into
``model_index.json`` and copies no code, so the folder loads nowhere else. ``SelfContainedMixin``
puts the source of the pipeline and of every component that is no library class beside the weights,
as one standalone file each, and names those files in the index:

    model_index.json    {"_class_name": ["vae_pipeline__1a2b3c4d", "VAEPipeline"],
                         "vae": ["vae_mlp__5e6f7a8b", "MLPVAE"], ...}
    vae_pipeline__1a2b3c4d.py
    vae/config.json  vae/vae_mlp__5e6f7a8b.py  vae/diffusion_pytorch_model.safetensors

The file names carry a hash of the code, since diffusers copies the code of all local folders
into one flat cache, where a file of the same name would replace another's code.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

from diffusers import DiffusionPipeline
from diffusers.pipelines.pipeline_loading_utils import LOADABLE_CLASSES
from diffusers.utils.constants import HF_MODULES_CACHE
from diffusers.utils.torch_utils import is_compiled_module
from huggingface_hub import file_exists, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from huggingface_hub.utils import WeakFileLock

from ._standalone import meaning, standalone

HASHED = re.compile(r"(?P<stem>\w+)__[0-9a-f]{8}")
"""Name of an exported file: stem of the source file, two underscores, 8 digits of a hash."""

_Base = DiffusionPipeline if TYPE_CHECKING else object


class SelfContainedMixin(_Base):
    """Saves code beside weights, and loads without running it where the same code is installed.

    Use: ``class MyPipeline(SelfContainedMixin, DiffusionPipeline)``.
    """

    _card: str | None = None

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any):
        """As in diffusers. With ``trust_remote_code=True`` the repository's code runs; without it
        only installed code does, and a ValueError says so where the two differ."""
        kwargs = {"use_safetensors": True, **kwargs}  # no stranger's pickle
        if kwargs.get("trust_remote_code"):
            with code_lock():
                return DiffusionPipeline.from_pretrained(pretrained_model_name_or_path, **kwargs)
        return super().from_pretrained(pretrained_model_name_or_path, **kwargs)

    @classmethod
    def _dict_from_json_file(cls, json_file: str | os.PathLike) -> dict[str, Any]:
        index = super()._dict_from_json_file(json_file)
        return use_installed(index, cls, str(Path(json_file).parent))

    def save_pretrained(
        self, save_directory: str | os.PathLike, safe_serialization: bool = True, **kwargs: Any
    ) -> None:
        """As in diffusers; always safetensors, since a pickle runs code when it is loaded."""
        if not safe_serialization:
            raise ValueError("safe_serialization=False: weights are saved as safetensors only")
        folder = str(save_directory)  # diffusers splits it as a string when it pushes
        self._card = _read_card(Path(folder))
        super().save_pretrained(folder, **kwargs)

    def to_json_file(self, json_file_path: str | os.PathLike) -> None:
        """Write ``model_index.json`` and the code that it names."""
        folder = Path(json_file_path).parent
        index = json.loads(self.to_json_string())
        index.pop("_name_or_path", None)
        version = getattr(_root_package(__name__), "__version__", None)
        if version is not None:
            index["_hfgen_version"] = version
        for name, component in self.components.items():
            _forget_origin(folder / name)
            cls = type(_unwrapped(component))
            if index[name][0] is not None and not is_library(cls):
                index[name] = write_code(cls, folder / name)
        index["_class_name"] = write_code(type(self), folder)
        text = json.dumps(index, indent=2, sort_keys=True) + "\n"
        Path(json_file_path).write_text(text, encoding="utf-8")

    def _upload_folder(self, working_dir: Any, repo_id: str, **kwargs: Any):
        """Upload, with the card that stood in the folder or where the pipeline came from, in place
        of the empty one that diffusers has just written. One that the repository has stays."""
        token, folder = kwargs.get("token"), Path(working_dir)
        if not file_exists(repo_id, "README.md", token=token):
            if self._card is not None:
                (folder / "README.md").write_text(self._card, encoding="utf-8")
            elif self.name_or_path:
                _bring_card(self.name_or_path, folder, repo_id, token)
        return super()._upload_folder(working_dir, repo_id, **kwargs)


def _forget_origin(folder: Path) -> None:
    """Drop the path that a component was loaded from: it tells nothing but the sharer's folders."""
    for path in folder.glob("*config.json"):
        config = json.loads(path.read_text(encoding="utf-8"))
        if config.pop("_name_or_path", None) is not None:
            path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _read_card(folder: Path) -> str | None:
    path = folder / "README.md"
    return path.read_text(encoding="utf-8") if path.is_file() else None


_SHOWN = re.compile(r"\]\((samples/[\w-]+\.\w+)\)")


def _bring_card(origin: str, folder: Path, repo_id: str, token: str | bool | None) -> None:
    """Copy the card of the folder or repository that a pipeline was loaded from, with the pictures
    that it shows and the recipe, into ``folder``; what its lines load is then ``repo_id``."""
    card = _origin_file(origin, "README.md", token)
    if card is None:
        return
    text = card.read_text(encoding="utf-8").replace(f'"{origin}"', f'"{repo_id}"')
    (folder / "README.md").write_text(text, encoding="utf-8")
    for name in ("recipe.yaml", *_SHOWN.findall(text)):
        path = _origin_file(origin, name, token)
        if path is not None:
            (folder / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(path, folder / name)


def _origin_file(origin: str, name: str, token: str | bool | None) -> Path | None:
    """A file of a folder or repository; None where there is none."""
    if Path(origin).is_dir():
        return Path(origin, name) if Path(origin, name).is_file() else None
    try:
        return Path(hf_hub_download(origin, name, token=token))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError):
        return None


# ------------------------------------------------------------------------- saving


def is_component(entry: Any) -> TypeGuard[list[str]]:
    """Whether a value of ``model_index.json`` names a component: ``[library, class]``."""
    pair = isinstance(entry, list | tuple) and len(entry) == 2
    return pair and all(isinstance(part, str | None) for part in entry)


def is_library(cls: type) -> bool:
    """Whether diffusers finds the class by itself, in one of the libraries that it loads from."""
    libraries = {name.split(".")[0] for name, classes in LOADABLE_CLASSES.items() if classes}
    return cls.__module__.split(".")[0] in libraries


def write_code(cls: type, folder: Path) -> list[str]:
    """Write the standalone source of ``cls`` into ``folder``; returns its entry for the index."""
    code = standalone(cls.__module__)
    stem = export_name(cls.__module__, code)
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.py"):  # of an earlier save into the same folder
        if HASHED.fullmatch(old.stem) and _stem(old.stem) == _stem(stem):
            old.unlink()
    (folder / f"{stem}.py").write_text(code, encoding="utf-8", newline="\n")
    return [stem, cls.__name__]


def export_name(module: str, code: str) -> str:
    """Stem of the exported file of ``module``: ``vae_mlp__5e6f7a8b``."""
    digest = hashlib.sha256(meaning(code).encode()).hexdigest()[:8]
    return f"{_stem(module.rsplit('.', 1)[-1])}__{digest}"


def _stem(name: str) -> str:
    exported = HASHED.fullmatch(name)
    return exported["stem"] if exported else name


def _unwrapped(component: Any) -> Any:
    return component._orig_mod if is_compiled_module(component) else component


def _root_package(module: str) -> Any:
    return sys.modules.get(module.split(".")[0])


# ------------------------------------------------------------------------- loading


@contextmanager
def code_lock() -> Iterator[None]:
    """One process of this machine at a time: diffusers copies the code of a repository into its
    cache without a lock, so another process might run half a file."""
    Path(HF_MODULES_CACHE).mkdir(parents=True, exist_ok=True)
    with WeakFileLock(Path(HF_MODULES_CACHE) / "hfgen.lock"):
        yield


def use_installed(index: dict[str, Any], pipeline: type, where: str) -> dict[str, Any]:
    """``model_index.json`` with installed modules in place of exported files of the same content.

    Raises:
        ValueError: the repository's code is not installed, or differs from what is.
    """
    index = dict(index)
    saved_by = index.get("_hfgen_version")
    class_name = index.get("_class_name")
    if is_component(class_name):
        if class_name[1] == pipeline.__name__:
            same_module(class_name[0], [pipeline.__module__], where, saved_by)
        index["_class_name"] = pipeline.__name__
    for name, entry in index.items():
        if is_component(entry) and HASHED.fullmatch(str(entry[0])):
            candidates = installed_modules("models", *entry)
            module = same_module(entry[0], candidates, f"{where}/{name}", saved_by)
            LOADABLE_CLASSES.setdefault(module, {})  # or the download takes it for a missing file
            index[name] = [module, entry[1]]
    return index


def installed_modules(room: str, exported: str, class_name: str) -> list[str]:
    """Modules that an exported file may come from: one in our ``room``, or imported already."""
    stem = _stem(exported)
    root = (__package__ or "").rpartition(".")[0]
    if root and importlib.util.find_spec(f"{root}.{room}"):
        if importlib.util.find_spec(f"{root}.{room}.{stem}"):
            importlib.import_module(f"{root}.{room}.{stem}")
    same_stem = [name for name in list(sys.modules) if name.rpartition(".")[2] == stem]
    found = [(name, getattr(sys.modules[name], class_name, None)) for name in same_stem]
    return [name for name, cls in found if isinstance(cls, type) and cls.__module__ == name]


def same_module(exported: str, candidates: list[str], where: str, saved_by: str | None) -> str:
    """The candidate whose export has the same name, hence the same content; else a ValueError."""
    names = [_installed_name(module) for module in candidates]
    if exported in names:
        return candidates[names.index(exported)]
    version = getattr(_root_package(__name__), "__version__", None)
    here = f"installed is {' and '.join(names)}.py" if names else "no such code is installed"
    raise ValueError(
        f"{where} brings its own code, {exported}.py (saved by hfgen {saved_by or '?'}), but {here}"
        f" (hfgen {version or 'is not installed'}): read that file, then pass "
        "trust_remote_code=True to run it"
    )


@lru_cache
def _installed_name(module: str) -> str:
    return export_name(module, standalone(module))
