"""``data`` section -> source."""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import asdict
from pathlib import Path

from hfgen.data.cache import CachedSource, Meta, cache_root, finished, read_meta
from hfgen.data.config import DataConfig
from hfgen.data.locate import GENERATED, Location, locate
from hfgen.data.source import DataSpec, Source
from hfgen.errors import HfgenError, one_of

logger = logging.getLogger(__name__)

ROLES = ("train", "validation")
CACHE_VERSION = 2
"""Part of every key: raise it when what a cache holds changes."""
_NOT_IN_KEY = {
    "path",
    "class_conditional",
    "random_flip",
    "binarize",
    "max_corrupt",
    "shuffle_buffer",
    "cache_dir",
}
NAMED = 10
"""How many unreadable images a message names."""


def load_source(config: DataConfig, split: str = "train") -> Source:
    """The images of ``config`` for ``split``: ``train`` or ``validation``.

    The first call decodes them into a cache; later ones, of any process, map it into memory.
    Validation images are never augmented; under ``binarize: dynamic`` they are binarised once, so
    that every evaluation sees the same.

    Raises:
        HfgenError: one line on what is wrong with the path, a column, a split or an image, and
            what would be valid.
    """
    if split not in ROLES:
        raise one_of("split", split, ROLES)
    if config.path in GENERATED:
        from hfgen.data.generated import generate

        return generate(config, split)
    location = locate(config.path)
    if config.streaming and split == "train":
        from hfgen.data.streaming import open_streaming

        return open_streaming(location, config)
    return _cached(location, config, split)


def _cached(location: Location, config: DataConfig, role: str) -> CachedSource:
    binarize = (
        "static" if config.binarize == "dynamic" and role == "validation" else config.binarize
    )
    identity = location.identity or _hub_identity(location, config, role)
    folder = finished(
        cache_root(config.cache_dir) / "images",
        _key(identity, config, role, binarize),
        lambda folder: _decode(location, config, role, binarize, folder),
    )
    meta = read_meta(folder)
    _check(meta, config, role)
    return CachedSource(folder, _spec(meta, config, role, binarize))


def _decode(location: Location, config: DataConfig, role: str, binarize: str, folder: Path) -> None:
    # imported here: a run whose images are cached does without `datasets`, a second of start-up
    from hfgen.data.build import build
    from hfgen.data.plan import make_plan
    from hfgen.data.tables import open_rows

    training = open_rows(location, config, "train")
    table = training if role == "train" else open_rows(location, config, role)
    seed = config.seed if binarize == "static" else None
    build(
        table,
        make_plan(training, config),
        folder,
        name=f"{config.path} ({role})",
        static_seed=seed,
        template=config.caption_template,
    )


def _hub_identity(location: Location, config: DataConfig, role: str) -> str:
    from hfgen.data.tables import open_rows

    return open_rows(location, config, role).identity


def _key(identity: str, config: DataConfig, role: str, binarize: str) -> str:
    kept = {name: value for name, value in asdict(config).items() if name not in _NOT_IN_KEY}
    stored = "static" if binarize == "static" else "grey"
    text = json.dumps([CACHE_VERSION, identity, role, stored, kept], sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()


def _check(meta: Meta, config: DataConfig, role: str) -> None:
    """Name unreadable images; more than ``max_corrupt``, or nothing else, are an error."""
    if meta.num_images == 0 and not meta.corrupt:
        raise HfgenError(f"data.path: {config.path!r} ({role}) has no images")
    if not meta.corrupt:
        return
    count = len(meta.corrupt)
    more = f"; and {count - NAMED} more" if count > NAMED else ""
    found = (
        f"{count} unreadable in {config.path!r} ({role}): {'; '.join(meta.corrupt[:NAMED])}{more}"
    )
    if count > config.max_corrupt:
        raise HfgenError(
            f"data.max_corrupt is {config.max_corrupt}, but of the images there are {found}; "
            f"remove them, or set data.max_corrupt: {count}"
        )
    if meta.num_images == 0:
        raise HfgenError(f"data.path: no image is left, there are {found}")
    logger.warning("skipped %s", found)


def _spec(meta: Meta, config: DataConfig, role: str, binarize: str) -> DataSpec:
    return DataSpec(
        name=config.path,
        split=role,
        num_images=meta.num_images,
        channels=meta.channels,
        height=meta.height,
        width=meta.width,
        class_names=meta.class_names,
        has_captions=meta.has_captions,
        fingerprint=meta.fingerprint,
        binarize=binarize,
        credit=meta.credit,
    )
