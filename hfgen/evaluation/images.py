"""Images by index, as 8-bit tensors: from a pipeline, a data source or a folder."""

from __future__ import annotations

import hashlib
import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor, nn

from hfgen.data import Source
from hfgen.data.source import quantize
from hfgen.errors import HfgenError
from hfgen.evaluation.conditions import label_arguments
from hfgen.evaluation.protocol import ImagesProtocol, SamplingProtocol

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


class Images(ABC):
    """``count`` images, any of which can be had by its index."""

    count: int

    @property
    @abstractmethod
    def protocol(self) -> SamplingProtocol | ImagesProtocol: ...

    @abstractmethod
    def uint8(self, indices: Sequence[int]) -> Tensor:
        """Images [B, C, H, W] in 0..255."""

    def labels(self) -> np.ndarray | None:
        """The class [N] of each image, or, of samples, that it was asked for; None without any."""
        return None


class SourceImages(Images):
    """The first ``count`` images of a seeded permutation of a source (all of them, in order, by
    default)."""

    def __init__(self, source: Source, count: int | None = None, seed: int = 0):
        total = len(source)
        if count is not None and not 2 <= count <= total:
            raise HfgenError(f"count: {count} images of {source.spec.name}, which has {total}")
        self.source, self.count, self.seed = source, count or total, seed
        whole = self.count == total
        order = np.random.default_rng(seed).permutation(total)[: self.count]
        self.order = np.arange(total) if whole else np.sort(order)
        self.whole = whole

    @property
    def protocol(self) -> ImagesProtocol:
        spec = self.source.spec
        return ImagesProtocol(
            name=spec.name,
            split=spec.split,
            fingerprint=spec.fingerprint,
            count=self.count,
            rows="all" if self.whole else "drawn",
            seed=0 if self.whole else self.seed,
        )

    def uint8(self, indices: Sequence[int]) -> Tensor:
        return self.source.uint8(self.order[np.asarray(indices)])

    def labels(self) -> np.ndarray | None:
        return _labels(self.source, self.order)


class FolderImages(Images):
    """All images of a folder and its subfolders, in the order of their paths, as RGB.

    Raises:
        HfgenError: no folder, no images, one that cannot be read, or images of several sizes.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder).expanduser()
        if not self.folder.is_dir():
            raise HfgenError(f"{self.folder}: no such folder of images")
        found = (p for p in self.folder.rglob("*") if p.suffix.lower() in SUFFIXES)
        self.files = sorted(found)
        self.count = len(self.files)
        if self.count < 2:
            raise HfgenError(
                f"{self.folder}: {self.count} images ({', '.join(SUFFIXES)}); at least 2 are needed"
            )
        self.size = self._read(self.files[0]).shape

    @property
    def protocol(self) -> ImagesProtocol:
        content = hashlib.sha256()
        for file in self.files:
            content.update(str(file.relative_to(self.folder)).encode() + file.read_bytes())
        name = str(self.folder)
        fingerprint = content.hexdigest()[:16]
        return ImagesProtocol(name=name, split="folder", fingerprint=fingerprint, count=self.count)

    def uint8(self, indices: Sequence[int]) -> Tensor:
        return torch.stack([self._checked(self.files[int(i)]) for i in indices])

    def _checked(self, file: Path) -> Tensor:
        image = self._read(file)
        if image.shape != self.size:
            sizes = " and ".join(f"{s[2]}x{s[1]}" for s in (self.size, image.shape))
            raise HfgenError(f"{file}: images of several sizes ({sizes}); resize them to one")
        return image

    @staticmethod
    def _read(file: Path) -> Tensor:
        try:
            with Image.open(file) as image:
                pixels = np.array(image.convert("RGB"))
        except (OSError, UnidentifiedImageError) as error:
            raise HfgenError(f"{file}: cannot be read as an image ({error})") from error
        return torch.from_numpy(pixels).permute(2, 0, 1)


class PipelineImages(Images):
    """Images of any ``DiffusionPipeline`` whose call takes ``batch_size`` or labels or prompts.

    Image i is drawn with its own CPU generator, seeded by (seed, i), so that it does not depend on
    the batch it is drawn in (but for the rounding of the network's arithmetic).

    Args:
        pipeline: it is called with ``output_type="np"``.
        count: how many images.
        conditions: a source of class labels or captions for conditional pipelines.
        call: further arguments of the call, e.g. ``num_inference_steps``.
        name: how the model is called in the protocol.
    Raises:
        HfgenError: an argument that the pipeline does not take, or conditions that are missing.
    """

    def __init__(
        self,
        pipeline: Any,
        count: int,
        *,
        seed: int = 0,
        batch_size: int = 64,
        conditions: Source | None = None,
        call: dict[str, Any] | None = None,
        name: str = "",
        ema: bool | None = None,
    ):
        if count < 2:
            raise HfgenError(f"num_images: {count}; at least 2 are needed")
        if batch_size < 1:
            raise HfgenError(f"batch_size: {batch_size}; must be at least 1")
        self.pipeline, self.count, self.seed, self.batch_size = pipeline, count, seed, batch_size
        self.call, self.name, self.ema = dict(call or {}), name or type(pipeline).__name__, ema
        self.parameters = inspect.signature(pipeline.__call__).parameters
        for argument in self.call:
            if argument not in self.parameters:
                raise HfgenError(
                    f"{argument}: {type(pipeline).__name__} takes no such argument; "
                    f"it takes {', '.join(self.parameters)}"
                )
        self.condition, self.conditions = _condition(pipeline, self.parameters), conditions
        if self.condition and conditions is None:
            raise HfgenError(
                f"{type(pipeline).__name__} needs {self.condition}: name a data set that has them"
            )

    @property
    def protocol(self) -> SamplingProtocol:
        scheduler = self.pipeline.components.get("scheduler")
        sampler = type(self.pipeline).__name__
        if scheduler is not None:
            sampler += f" + {type(scheduler).__name__}"
        given = self.conditions.spec.name if self.condition and self.conditions else ""
        return SamplingProtocol(
            model=self.name,
            weights=weights_digest(self.pipeline),
            ema=self.ema,
            count=self.count,
            seed=self.seed,
            sampler=sampler,
            call=self.call,
            labels=f"{self.condition} of {given}" if self.condition else "none",
        )

    def uint8(self, indices: Sequence[int]) -> Tensor:
        parts = [
            self._draw(indices[i : i + self.batch_size])
            for i in range(0, len(indices), self.batch_size)
        ]
        return torch.cat(parts)

    def labels(self) -> np.ndarray | None:
        if self.condition != "class_labels" or self.conditions is None:
            return None
        return _labels(self.conditions, self._rows(range(self.count)))

    def _draw(self, indices: Sequence[int]) -> Tensor:
        arguments: dict[str, Any] = dict(self.call)
        arguments["generator"] = [image_generator(self.seed, int(i)) for i in indices]
        arguments["output_type"] = "np"
        arguments.update(self._conditions(indices))
        if self.condition is None or "batch_size" in self.parameters:
            arguments["batch_size"] = len(indices)
        try:
            result = self.pipeline(**arguments)
        except ValueError as error:  # how pipelines refuse an argument
            raise HfgenError(f"{type(self.pipeline).__name__}: {error}") from error
        images = getattr(result, "images", None)
        return _to_uint8(images, len(indices), type(self.pipeline).__name__)

    def _conditions(self, indices: Sequence[int]) -> dict[str, Any]:
        if self.condition is None or self.conditions is None:
            return {}
        rows = self._rows(indices)
        if self.condition == "prompt":
            return {"prompt": self.conditions.captions(rows)}
        labels = _labels(self.conditions, rows)
        if labels is None:
            raise HfgenError(f"{self.conditions.spec.name}: no class labels to draw samples with")
        return {"class_labels": labels.tolist()}

    def _rows(self, indices: Sequence[int]) -> np.ndarray:
        """Rows of the data that give images their labels or captions."""
        assert self.conditions is not None
        total = len(self.conditions)
        return np.array([condition_row(self.seed, int(i), total) for i in indices])


class ReconstructedImages(Images):
    """Images of a source through a VAE's encoder mean and decoder."""

    def __init__(self, pipeline: Any, images: SourceImages, name: str = ""):
        if pipeline.components.get("vae") is None:
            raise HfgenError(f"{type(pipeline).__name__}: no vae to reconstruct images with")
        self.pipeline, self.images, self.count = pipeline, images, images.count
        self.name = name or type(pipeline).__name__

    @property
    def protocol(self) -> SamplingProtocol:
        of = self.images.protocol
        return SamplingProtocol(
            model=self.name,
            weights=weights_digest(self.pipeline),
            ema=None,
            count=self.count,
            seed=of.seed,
            sampler=f"reconstructions of {of.name}/{of.split} {of.fingerprint}",
        )

    @torch.inference_mode()
    def uint8(self, indices: Sequence[int]) -> Tensor:
        rows = self.images.order[np.asarray(indices)]
        return quantize(reconstruct(self.pipeline, self.images.source.batch(rows)))


def reconstruct(pipeline: Any, batch: Mapping[str, Tensor]) -> Tensor:
    """Expected images of the decoded posterior means, [-1, 1], on the CPU.

    Args:
        batch: of a source; its ``labels`` are told to a class-conditional model.
    """
    given = label_arguments(pipeline.vae, batch.get("labels"))
    posterior = pipeline.vae.encode(batch["images"].to(pipeline.device), **given).latent_dist
    params = pipeline.vae.decode(posterior.mode(), **given).sample
    own = getattr(pipeline, "likelihood", None)
    return (own.mean(params) if own is not None else params.clamp(-1, 1)).float().cpu()


def _labels(source: Source, rows: np.ndarray) -> np.ndarray | None:
    found = source.labels(rows)
    return None if found is None else found.numpy()


def image_generator(seed: int, index: int) -> torch.Generator:
    """The random generator of image ``index``."""
    return torch.Generator().manual_seed(_hash(seed, index, "image"))


def condition_row(seed: int, index: int, rows: int) -> int:
    """Which row of the data gives image ``index`` its label or caption."""
    return _hash(seed, index, "condition") % rows


def weights_digest(pipeline: Any) -> str:
    """Hash of all parameters and buffers of the pipeline's networks, 16 hexadecimal digits."""
    content = hashlib.blake2b(digest_size=8)
    for role, component in sorted(pipeline.components.items()):
        if isinstance(component, nn.Module):
            for name, value in sorted(component.state_dict().items()):
                content.update(f"{role}.{name}".encode())
                content.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return content.hexdigest()


def num_parameters(pipeline: Any) -> int:
    """Parameters of all networks of a pipeline."""
    modules = [c for c in pipeline.components.values() if isinstance(c, nn.Module)]
    return sum(p.numel() for module in modules for p in module.parameters())


def _condition(pipeline: Any, parameters: Any) -> str | None:
    """``class_labels`` or ``prompt`` where a call needs them."""
    for name in ("class_labels", "prompt"):
        if name in parameters:
            required = parameters[name].default is inspect.Parameter.empty
            texts = name == "prompt" and pipeline.components.get("tokenizer") is not None
            if required or texts or getattr(pipeline, "num_classes", None):
                return name
    return None


def _to_uint8(images: Any, expected: int, who: str) -> Tensor:
    """Arrays [B, H, W, C] in [0, 1] -> uint8 [B, C, H, W], rounded."""
    if images is None or len(images) == 0:
        raise HfgenError(f"{who}: its call returned no images")
    array = np.asarray(images)
    if array.ndim == 3:
        array = array[..., None]
    if array.ndim != 4 or len(array) != expected:
        raise HfgenError(
            f"{who}: expected {expected} images [B, H, W, C], its call returned {array.shape}"
        )
    if not np.isfinite(array).all():
        raise HfgenError(f"{who}: the generated images hold NaN or infinity")
    pixels = np.rint(array.clip(0, 1) * 255).astype(np.uint8)
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()


def _hash(*key: object) -> int:
    value = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return int.from_bytes(value, "little") >> 1
