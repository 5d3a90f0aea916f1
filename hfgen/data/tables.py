"""From a location to rows: opened by `datasets`, columns and split chosen, undecoded."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from glob import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hfgen.data import bundled
from hfgen.data.columns import Columns, find_columns
from hfgen.data.config import DataConfig
from hfgen.data.locate import Location, near_names
from hfgen.data.sampling import held_out_count, sample
from hfgen.errors import HfgenError, one_of

if TYPE_CHECKING:
    from datasets import Dataset, Features

logger = logging.getLogger(__name__)

VALIDATION_NAMES = ("validation", "val", "valid", "dev", "test")
SPLIT_FOLDERS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
"""Names of folders that are splits, where one of them is for training."""
STREAM_HELD_OUT = 1000
"""Images held out from the beginning of a stream."""


@dataclass(frozen=True)
class Table:
    """Rows with undecoded images, a ``Dataset`` or (``num_rows`` None) ``IterableDataset``."""

    rows: Any
    num_rows: int | None
    columns: Columns
    identity: str
    credit: str | None


def open_rows(location: Location, config: DataConfig, role: str) -> Table:
    """The rows for ``role``, train or validation: a stream where ``config.streaming``."""
    return (open_stream if config.streaming else open_table)(location, config, role)


def open_table(location: Location, config: DataConfig, role: str) -> Table:
    """The rows for ``role`` (train or validation), as a ``Dataset``.

    Raises:
        HfgenError: it cannot be opened; unknown split or column; nothing is left to validate on.
    """
    splits = _open(location, config, streaming=False)
    rows = _rows(splits, config, role)
    identity = location.identity or f"{rows._fingerprint}"
    if config.max_images is not None and config.max_images < len(rows):
        rows = rows.select(sample(len(rows), config.max_images, config.seed, "max_images"))
    return _table(rows, identity, location, config)


def open_stream(location: Location, config: DataConfig, role: str) -> Table:
    """The rows for ``role`` as an ``IterableDataset``.

    Without a split to validate on, the first ``STREAM_HELD_OUT`` images of the training split are
    held out.
    """
    splits = _open(location, config, streaming=True)
    training, validation = _split_names(splits, config)
    rows = splits[training if role == "train" else validation or training]
    if validation is None:
        rows = rows.skip(STREAM_HELD_OUT) if role == "train" else rows.take(STREAM_HELD_OUT)
    if config.max_images is not None:
        rows = rows.take(config.max_images)
    return _table(rows, location.identity or _commit(location, config), location, config)


def _table(rows: Any, identity: str, location: Location, config: DataConfig) -> Table:
    from datasets import Dataset, Image

    if rows.features is None:
        raise HfgenError(f"data.path {config.path!r}: its columns are not known before it is read")
    columns = find_columns(_without_split_labels(rows.features), config)
    if not isinstance(rows, Dataset):
        columns = _of_stream(columns, config)
    # in this order: a stream decodes images to select columns
    rows = rows.cast_column(columns.image, Image(decode=False)).select_columns(columns.names())
    return Table(
        rows=rows,
        num_rows=len(rows) if isinstance(rows, Dataset) else None,
        columns=columns,
        identity=identity,
        credit=_credit(location, rows.info.license),
    )


def _without_split_labels(features: Features) -> Features:
    """Without the labels that `datasets` makes of folders named ``train`` and ``test``."""
    from datasets import ClassLabel, Features

    feature = features.get("label")
    names = [name.lower() for name in getattr(feature, "names", ())]
    if not isinstance(feature, ClassLabel) or not SPLIT_FOLDERS.keys() >= set(names):
        return features
    return Features({name: kept for name, kept in features.items() if name != "label"})


def _of_stream(columns: Columns, config: DataConfig) -> Columns:
    """Classes whose names are not in the column's type would have to be read first."""
    if columns.label is None or columns.class_names is not None:
        return columns
    if config.label_column is not None:
        raise HfgenError(
            f"data.label_column: {columns.label!r} is no ClassLabel column, so a stream does not "
            "know its classes beforehand; cast it, or set data.streaming: false"
        )
    logger.warning("labels in %r are left out: a stream needs a ClassLabel column", columns.label)
    return replace(columns, label=None)


def _credit(location: Location, licence: str | None) -> str | None:
    if location.kind == "bundled":
        return bundled.credit(location.path)
    where = f"https://huggingface.co/datasets/{location.path}" if location.kind == "hub" else None
    known = [text for text in (where, f"licence: {licence}" if licence else None) if text]
    return ", ".join(known) or None


def _commit(location: Location, config: DataConfig) -> str:
    """The commit that ``revision`` stands for on the Hub."""
    from huggingface_hub import HfApi

    try:
        return str(HfApi().dataset_info(location.path, revision=config.revision).sha)
    except (OSError, ValueError) as error:
        raise _one_line(location, config, error) from error


def _split_names(splits: dict, config: DataConfig) -> tuple[str, str | None]:
    """The names of the splits to train and validate on; None: validation is held out."""
    for field in ("split", "validation_split"):
        name = getattr(config, field)
        if name is not None and name not in splits:
            raise one_of(f"data.{field} of {config.path!r}", name, list(splits))
    found = (name for name in VALIDATION_NAMES if name in splits and name != config.split)
    return config.split, config.validation_split or next(found, None)


def _rows(splits: dict, config: DataConfig, role: str) -> Dataset:
    training, validation = _split_names(splits, config)
    if validation is not None:
        return splits[training if role == "train" else validation]
    rows = splits[training]
    held_out = sample(len(rows), held_out_count(len(rows)), config.seed, "held out")
    if role == "train":
        return rows.select(np.setdiff1d(np.arange(len(rows)), held_out))
    if len(held_out) == 0:
        raise HfgenError(f"data.path: {config.path!r} has one image only, none to validate on")
    return rows.select(held_out)


def _open(location: Location, config: DataConfig, *, streaming: bool) -> dict:
    """All splits by name. Errors of `datasets` become one line."""
    from datasets import load_dataset, load_from_disk
    from datasets.exceptions import DatasetsError

    cache = (
        None if config.cache_dir is None else str(Path(config.cache_dir).expanduser() / "datasets")
    )
    options: dict[str, Any] = {"cache_dir": cache, "streaming": streaming}
    try:
        with _quiet():
            if location.kind == "bundled":
                files = {split: str(file) for split, file in bundled.files(location.path).items()}
                return load_dataset("parquet", data_files=files, **options)
            if location.kind == "saved":
                return _saved(load_from_disk(location.path), streaming)
            if location.kind == "imagefolder":
                files = _folder_files(Path(location.path))
                return load_dataset("imagefolder", data_files=files, **options)
            if location.kind == "hub":
                return load_dataset(location.path, config.name, revision=config.revision, **options)
            if Path(location.path).is_file():
                return load_dataset(location.kind, data_files=location.path, **options)
            return load_dataset(location.path, config.name, **options)
    except (DatasetsError, OSError, ValueError, RuntimeError, IndexError) as error:
        raise _one_line(location, config, error) from error


def _folder_files(folder: Path) -> dict[str, list[str]]:
    """Patterns of the files of each split: of the folders named so, or else all for training.

    Left to itself, `datasets` also looks for ``train`` and ``test`` in the names of files, and
    leaves out all others.
    """
    inside = sorted(entry for entry in folder.iterdir() if entry.is_dir())
    splits = {entry: SPLIT_FOLDERS.get(entry.name.lower()) for entry in inside}
    if "train" not in splits.values():
        return {"train": [f"{escape(str(folder))}/**"]}
    found: dict[str, list[str]] = {}
    for entry, split in splits.items():
        if split is not None:
            found.setdefault(split, []).append(f"{escape(str(entry))}/**")
    return found


def _saved(saved: Any, streaming: bool) -> dict:
    splits = saved if isinstance(saved, dict) else {"train": saved}
    if streaming:
        return {name: rows.to_iterable_dataset() for name, rows in splits.items()}
    return splits


def _one_line(location: Location, config: DataConfig, error: Exception) -> HfgenError:
    cause = error.__cause__ or error
    why = f"{type(cause).__name__}: {' '.join(str(cause).split())[:300]}"
    if location.kind != "hub":
        return HfgenError(f"data.path: {config.path!r} cannot be opened as {location.kind}: {why}")
    asked = {"name": config.name, "revision": config.revision}
    what = ", ".join(f"{key} {value!r}" for key, value in asked.items() if value)
    return HfgenError(
        f"data.path: {config.path!r}{f' ({what})' if what else ''} is not here on the disk"
        f"{near_names(config.path)}, and could not be had from the Hub: {why}; check the spelling "
        "and the network; for a gated set, accept its terms on its page and run `hf auth login`"
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the bars of `datasets`: hfgen shows its own."""
    from datasets import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    shown = not are_progress_bars_disabled()
    disable_progress_bars()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", category=FutureWarning)
            yield
    finally:
        if shown:
            enable_progress_bars()
