"""Which columns hold images, labels and captions: found by feature type, unless named."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hfgen.data.config import DataConfig
from hfgen.errors import HfgenError

if TYPE_CHECKING:
    from datasets import Features

LABEL_NAMES = ("label", "labels", "class", "cls")
NO_COLUMN = "none"
CAPTION_NAMES = ("caption", "captions", "text", "txt", "prompt")


@dataclass(frozen=True)
class Columns:
    """Names of the columns in use; ``class_names`` where the label column's type has them."""

    image: str
    label: str | None
    caption: str | None
    class_names: tuple[str, ...] | None

    def names(self) -> list[str]:
        return [name for name in (self.image, self.label, self.caption) if name is not None]


def find_columns(features: Features, config: DataConfig) -> Columns:
    """The columns that ``config`` names, or else those that their types show.

    Raises:
        HfgenError: a named column is not there or of another type; no image column, or several.
    """
    from datasets import ClassLabel

    image = _image_column(features, config)
    label = _label_column(features, config)
    feature = features[label] if label else None
    return Columns(
        image=image,
        label=label,
        caption=_caption_column(features, config),
        class_names=tuple(feature.names) if isinstance(feature, ClassLabel) else None,
    )


def _image_column(features: Features, config: DataConfig) -> str:
    if config.image_column is not None:
        if not _can_be_image(_named(features, "image_column", config)):
            raise _wrong_type(features, "image_column", config, "images (or their bytes)")
        return config.image_column
    found = [name for name, feature in features.items() if _is_image(feature)]
    if len(found) == 1:
        return found[0]
    what = f"{len(found)} image columns ({', '.join(found)})" if found else "no image column"
    raise HfgenError(
        f"data.path {config.path!r} has {what}; name one in data.image_column; "
        f"columns: {_listing(features)}"
    )


def _label_column(features: Features, config: DataConfig) -> str | None:
    from datasets import ClassLabel

    if config.label_column == NO_COLUMN:
        return None
    if config.label_column is not None:
        if not _can_be_label(_named(features, "label_column", config)):
            raise _wrong_type(features, "label_column", config, "class labels, integers or text")
        return config.label_column
    classes = [name for name, feature in features.items() if isinstance(feature, ClassLabel)]
    if len(classes) == 1:
        return classes[0]
    candidates = classes or [name for name in features if _dtype(features[name]).startswith("int")]
    return _first(LABEL_NAMES, candidates)


def _caption_column(features: Features, config: DataConfig) -> str | None:
    if config.caption_column == NO_COLUMN:
        return None
    if config.caption_column is not None:
        if not _is_text(_named(features, "caption_column", config)):
            raise _wrong_type(features, "caption_column", config, "text")
        return config.caption_column
    return _first(CAPTION_NAMES, [name for name in features if _is_text(features[name])])


def _named(features: Features, field: str, config: DataConfig) -> object:
    name = getattr(config, field)
    if name not in features:
        raise HfgenError(
            f"data.{field}: data set {config.path!r} has no column {name!r}; "
            f"columns: {_listing(features)}"
        )
    return features[name]


def _wrong_type(features: Features, field: str, config: DataConfig, wanted: str) -> HfgenError:
    return HfgenError(
        f"data.{field}: column {getattr(config, field)!r} of {config.path!r} does not hold "
        f"{wanted}; columns: {_listing(features)}"
    )


def _is_image(feature: object) -> bool:
    from datasets import Image

    # an image column that lost its type: parquet written without the `datasets` metadata
    return isinstance(feature, Image) or (
        isinstance(feature, dict) and set(feature) == {"bytes", "path"}
    )


def _can_be_image(feature: object) -> bool:
    return _is_image(feature) or _dtype(feature) in ("binary", "large_binary", "string")


def _can_be_label(feature: object) -> bool:
    from datasets import ClassLabel

    dtype = _dtype(feature)
    return isinstance(feature, ClassLabel) or _is_text(feature) or dtype == "bool" or "int" in dtype


def _is_text(feature: object) -> bool:
    return _dtype(feature) in ("string", "large_string")


def _dtype(feature: object) -> str:
    from datasets import Value

    return feature.dtype if isinstance(feature, Value) else ""


def _first(wanted: Sequence[str], there: Sequence[str]) -> str | None:
    return next((name for name in wanted if name in there), None)


def _listing(features: Features) -> str:
    return ", ".join(f"{name} ({_type_name(feature)})" for name, feature in features.items())


def _type_name(feature: object) -> str:
    return _dtype(feature) or type(feature).__name__
