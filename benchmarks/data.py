"""Images per second of the input path, against `datasets` and a DataLoader in the same run.

    python benchmarks/data.py [--images 6000] [--pairs 7] [--output docs/benchmarks/data.json]

Real pictures (the bundled emoji, enlarged) as 64 x 64 RGB PNGs in one folder. Both sides give
batches of 128 float tensors in [-1, 1], in random order, each image mirrored with probability 1/2.
Rounds of all sides are interleaved; medians over rounds, in images per second of wall time and of
CPU time (of all threads; that of worker processes cannot be seen and is left out).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import datasets
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from hfgen.data import BatchStream, DataConfig, load_source

BATCH = 128
SIDE = 64


def make_folder(folder: Path, images: int, cache: Path) -> None:
    """PNGs of emoji, enlarged; the second time round mirrored, so that no two files are alike."""
    emoji = load_source(DataConfig(path="emoji", cache_dir=str(cache)))
    for i in range(images):
        pixels = emoji.uint8([i % len(emoji)])[0].permute(1, 2, 0).numpy()
        if i >= len(emoji):
            pixels = pixels[:, ::-1]
        image = Image.fromarray(np.ascontiguousarray(pixels)).resize(
            (SIDE, SIDE), Image.Resampling.BICUBIC
        )
        image.save(folder / f"{i:06d}.png")


def ours(folder: Path, cache: Path) -> Iterator[Tensor]:
    source = load_source(DataConfig(path=str(folder), cache_dir=str(cache)))
    stream = BatchStream(source, BATCH, seed=0, random_flip=True)
    while True:
        yield stream.rows(0, BATCH)["images"]
        stream.advance()


def transform(rows: dict) -> dict:
    """What a training script does for each image, with PIL and numpy."""
    images = []
    for image in rows["image"]:
        if torch.rand(()) < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        pixels = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
        images.append(pixels.float() / 127.5 - 1)
    return {"image": images}


def imagefolder(folder: Path, cache: Path, workers: int) -> Iterator[Tensor]:
    rows = datasets.load_dataset(
        "imagefolder", data_dir=str(folder), split="train", cache_dir=str(cache / "datasets")
    ).with_transform(transform)
    loader = torch.utils.data.DataLoader(
        rows, batch_size=BATCH, shuffle=True, drop_last=True, num_workers=workers
    )
    while True:
        for batch in loader:
            yield batch["image"]


def arrow_bytes(folder: Path, cache: Path) -> Iterator[Tensor]:
    """The cache that was weighed against ours: raw bytes in an Arrow column of `datasets`."""
    source = load_source(DataConfig(path=str(folder), cache_dir=str(cache)))
    raw = [image.numpy().tobytes() for image in source.uint8(range(len(source)))]
    datasets.Dataset.from_dict({"raw": raw}).save_to_disk(cache / "arrow")
    rows = datasets.load_from_disk(str(cache / "arrow"))
    while True:
        chosen = torch.randperm(len(rows))[:BATCH]
        joined = bytearray(b"".join(rows[chosen.tolist()]["raw"]))
        pixels = torch.frombuffer(joined, dtype=torch.uint8).view(BATCH, 3, SIDE, SIDE)
        flip = (torch.rand(BATCH) < 0.5)[:, None, None, None]
        yield torch.where(flip, pixels.flip(-1), pixels).float().div_(127.5).sub_(1)


def speed(batches: Iterator[Tensor], seconds: float) -> dict[str, float]:
    """Images per second over at least ``seconds``."""
    images, wall, cpu = 0, time.perf_counter(), time.process_time()
    while time.perf_counter() - wall < seconds:
        batch = next(batches)
        assert batch.shape == (BATCH, 3, SIDE, SIDE) and batch.dtype == torch.float32
        images += BATCH
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {"wall": images / wall, "cpu": images / cpu}


def measure(sides: dict[str, Iterator[Tensor]], rounds: int, seconds: float) -> dict[str, dict]:
    """Medians of interleaved rounds."""
    for batches in sides.values():
        speed(batches, 0.2)
    results: dict[str, list] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, batches in sides.items():
            results[name].append(speed(batches, seconds))
    return {name: summary(name, runs) for name, runs in results.items()}


def summary(name: str, runs: list[dict[str, float]]) -> dict[str, object]:
    wall, cpu = ([run[clock] for run in runs] for clock in ("wall", "cpu"))
    found = {"per_second": statistics.median(wall), "range": [min(wall), max(wall)]}
    if "workers" not in name or "_0_" in name:
        found["per_cpu_second"] = statistics.median(cpu)
    return found


def timed(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def hardware() -> dict[str, object]:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":")[1].strip() for line in lines if "model name" in line), "")
    return {
        "cpu": model or platform.processor(),
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "datasets": datasets.__version__,
        "load_average": os.getloadavg()[0],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, default=6000)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--output", type=Path, default=Path("docs/benchmarks/data.json"))
    options = parser.parse_args()
    datasets.disable_progress_bars()
    machine = hardware()
    with tempfile.TemporaryDirectory() as place:
        folder, cache = Path(place) / "pictures", Path(place) / "cache"
        folder.mkdir()
        make_folder(folder, options.images, cache)
        config = DataConfig(path=str(folder), cache_dir=str(cache))
        decoding = timed(lambda: load_source(config))
        warm = timed(lambda: load_source(config))
        sides = {
            "hfgen": ours(folder, cache),
            "imagefolder_transform_0_workers": imagefolder(folder, cache, 0),
            "imagefolder_transform_2_workers": imagefolder(folder, cache, 2),
            "arrow_bytes_column": arrow_bytes(folder, cache),
        }
        results = measure(sides, options.pairs, options.seconds)
        del sides
    peers = [results[f"imagefolder_transform_{workers}_workers"] for workers in (0, 2)]
    report = {
        "what": f"{SIDE}x{SIDE} RGB, batch {BATCH}, random order, flip and normalise",
        "hardware": machine,
        "files": options.images,
        "rounds": options.pairs,
        "images": results,
        "ratio_per_second": results["hfgen"]["per_second"] / max(p["per_second"] for p in peers),
        "ratio_per_cpu_second": results["hfgen"]["per_cpu_second"] / peers[0]["per_cpu_second"],
        "decode_once_per_second": (options.images - options.images // 10) / decoding,
        "warm_start_seconds": warm,
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
