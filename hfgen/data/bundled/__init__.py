"""Two small real data sets that come with the package; made by scripts/make_bundled_data.py.

``NAME-train.parquet`` and ``NAME-test.parquet`` in the image format of ``datasets``, and
``NAME-CREDIT.md``: origin, licence and changes.
"""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parent
NAMES = ("emoji", "mnist")


def files(name: str) -> dict[str, Path]:
    """The parquet file of each split."""
    return {split: FOLDER / f"{name}-{split}.parquet" for split in ("train", "test")}


def credit(name: str) -> str:
    """One line of origin and licence: the first paragraph of the credit file."""
    text = (FOLDER / f"{name}-CREDIT.md").read_text(encoding="utf-8")
    return " ".join(text.split("\n\n")[1].split())
