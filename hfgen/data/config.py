"""The ``data`` section of a recipe. Plain fields, no torch: reading a recipe must stay quick."""

from __future__ import annotations

from dataclasses import dataclass

from hfgen.data.captions import check_template

INTERPOLATIONS = ("bicubic", "lanczos", "bilinear")
BINARIZE = ("none", "dynamic", "static")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which images, and what is done to them before training.

    Attributes:
        path: a bundled or generated set by name (``mnist``, ``emoji``, ``stacked-mnist``,
            ``sprites``, ``gaussian-grid``); a folder of images, with or without class folders,
            with or without ``metadata.csv``/``metadata.jsonl``; a folder or file of parquet or
            webdataset shards; a folder made by ``Dataset.save_to_disk``; or the id of a data set
            on the Hub. A name without a slash that is bundled wins over a folder of that name:
            write ``./mnist`` for the folder.
        name: configuration of the data set, where it has several.
        revision: branch, tag or commit on the Hub.
        split: the split to train on.
        validation_split: the split to validate on. By default ``validation`` or else ``test``
            where there is one; where there is none, a tenth of ``split`` drawn with ``seed`` is
            held out.
        image_column: by default the only column of images.
        label_column: by default the only ``ClassLabel`` column, or else integers named label,
            labels, class or cls.
            Text makes classes as well; ``none`` leaves labels out.
        caption_column: by default a text column named caption, captions, text, txt or prompt.
            Captions are cleaned of markup, control characters and runs of white space.
        caption_template: what a caption is put into, e.g. ``"an emoji of {caption}"``; with
            ``{label}``, the name of the class, a set without captions has some too.
        class_conditional: whether models are told the class; the number of classes then follows
            the data.
        resolution: side of the square images in pixels; None keeps them as they are, if they are
            all of one size.
        channels: 1 (grey), 3 (RGB), or None: grey if all images are grey, RGB otherwise.
        center_crop: resize the shorter side to ``resolution`` and cut the middle out; False
            squashes the whole image.
        random_flip: mirror each training image left to right with probability 1/2, anew at each
            draw.
        interpolation: how images are resized: bicubic, lanczos or bilinear.
        binarize: ``dynamic`` draws each pixel from a Bernoulli of its grey value anew at each draw
            (validation images once), ``static`` once for all, ``none`` never.
        max_corrupt: how many unreadable images may be skipped before it is an error.
        max_images: take only so many images of each split, drawn with ``seed``.
        streaming: read from the files while training, for sets that do not fit on the disk.
        shuffle_buffer: images that a stream holds (still compressed) and shuffles at a time.
        cache_dir: where decoded images are kept; by default ``hfgen`` in the Hugging Face home
            folder.
        seed: of the held-out tenth, of ``max_images``, of static binarisation and of generated
            sets.
    """

    path: str = "mnist"
    name: str | None = None
    revision: str | None = None
    split: str = "train"
    validation_split: str | None = None
    image_column: str | None = None
    label_column: str | None = None
    caption_column: str | None = None
    caption_template: str | None = None
    class_conditional: bool = False
    resolution: int | None = None
    channels: int | None = None
    center_crop: bool = True
    random_flip: bool = False
    interpolation: str = "bicubic"
    binarize: str = "none"
    max_corrupt: int = 0
    max_images: int | None = None
    streaming: bool = False
    shuffle_buffer: int = 10_000
    cache_dir: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        _require(bool(self.path.strip()), "path", self.path, "a name, a folder or a Hub id")
        _require(bool(self.split.strip()), "split", self.split, "the name of a split")
        _require(
            self.resolution is None or self.resolution > 0, "resolution", self.resolution, "> 0"
        )
        _require(self.channels in (None, 1, 3), "channels", self.channels, "1 (grey) or 3 (RGB)")
        if self.caption_template is not None:
            check_template(self.caption_template)
        _one_of("interpolation", self.interpolation, INTERPOLATIONS)
        _one_of("binarize", self.binarize, BINARIZE)
        _require(self.max_corrupt >= 0, "max_corrupt", self.max_corrupt, ">= 0")
        _require(
            self.max_images is None or self.max_images > 0, "max_images", self.max_images, "> 0"
        )
        _require(self.shuffle_buffer > 0, "shuffle_buffer", self.shuffle_buffer, "> 0")
        _require(self.seed >= 0, "seed", self.seed, ">= 0")


def _require(valid: bool, field: str, value: object, what: str) -> None:
    if not valid:
        raise ValueError(f"data.{field}: must be {what}, got {value!r}")


def _one_of(field: str, value: str, valid: tuple[str, ...]) -> None:
    _require(value in valid, field, value, f"one of {', '.join(valid)}")
