"""Make the data sets bundled in hfgen/data/bundled from the full ones.

    python scripts/make_bundled_data.py SOURCE

SOURCE holds `mnist/` and `emoji/`, each with train.parquet and test.parquet in the image format of
`datasets`. Pictures are stored as PPM inside zstd-compressed parquet columns: neighbours compress
together, a third smaller than as PNGs, and any parquet reader with PIL reads them.
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path

import pyarrow.parquet as parquet
from datasets import Dataset, Features, Image, load_dataset
from PIL import Image as PIL

OUT = Path(__file__).resolve().parents[1] / "hfgen" / "data" / "bundled"
MNIST_IMAGES = {"train": 10_000, "test": 2_000}
EMOJI_SIDE = 32


def ppm(image: PIL.Image) -> dict:
    buffer = io.BytesIO()
    image.save(buffer, format="PPM")
    return {"bytes": buffer.getvalue(), "path": None}


def write(dataset: Dataset, images: list[PIL.Image], columns: list[str], path: Path) -> None:
    features = {"image": Image()} | {name: dataset.features[name] for name in columns}
    rows = {"image": [ppm(image) for image in images]} | {
        name: dataset[name][:] for name in columns
    }
    table = Dataset.from_dict(rows, features=Features(features)).with_format("arrow")[:]
    table = table.replace_schema_metadata(Features(features).arrow_schema.metadata)
    # not Dataset.to_parquet: it stores image columns uncompressed
    parquet.write_table(
        table,
        path,
        compression="zstd",
        compression_level=19,
        use_dictionary=False,
        data_page_size=1 << 24,
    )
    print(f"{path.name}: {len(images)} images, {path.stat().st_size / 1e6:.2f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path, help="folder with mnist/ and emoji/")
    source = parser.parse_args().source
    mnist, emoji = (load_dataset(str(source / name)) for name in ("mnist", "emoji"))
    for split, count in MNIST_IMAGES.items():
        chosen = mnist[split].shuffle(seed=0).select(range(count)).flatten_indices()
        write(chosen, list(chosen["image"]), ["label"], OUT / f"mnist-{split}.parquet")
    for split, rows in emoji.items():
        side = (EMOJI_SIDE, EMOJI_SIDE)
        small = [image.resize(side, PIL.Resampling.LANCZOS) for image in rows["image"]]
        write(rows, small, ["label", "caption"], OUT / f"emoji-{split}.parquet")


if __name__ == "__main__":
    main()
