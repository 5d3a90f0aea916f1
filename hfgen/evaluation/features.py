"""One pass over images, by any number of processes: each is made once and measured once."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather
from torch import Tensor
from tqdm import tqdm

from hfgen.evaluation.backbones import Backbone
from hfgen.evaluation.images import Images
from hfgen.evaluation.protocol import VERSION, BackboneProtocol, digest
from hfgen.evaluation.store import BLOCK, FeatureStore
from hfgen.evaluation.world import world


def open_store(folder: Path, images: Images, backbone: Backbone) -> FeatureStore:
    """The store of these images under this backbone, in a folder named by what it depends on."""
    key = {
        "version": VERSION,
        "backbone": asdict(BackboneProtocol.of(backbone)),
        "images": asdict(images.protocol),
        "quantisation": "round to uint8",
    }
    return FeatureStore(folder / f"{backbone.name}-{digest(key)}", key, images.count)


def extract(
    images: Images,
    backbones: Mapping[str, Backbone],
    stores: Mapping[str, FeatureStore],
    *,
    label: str = "images",
    progress: bool = True,
) -> float:
    """Fill the stores with what they lack; all processes call it, the main one writes.

    Work goes out in blocks of 64 images with fixed indices. A process without a block in the last
    round sends padding with index -1, which is dropped; so every image enters exactly once, and the
    stores hold the same bits for any number of processes.

    Returns:
        Images made per second, over the blocks of this call (0.0 when none was missing).
    """
    state = world()
    missing = _missing_blocks(stores, state)
    started, rounds = time.perf_counter(), -(-len(missing) // state.num_processes)
    bar = tqdm(
        total=min(len(missing) * BLOCK, images.count),
        desc=label,
        unit="img",
        disable=not (progress and state.is_main_process and missing),
    )
    for r in range(rounds):
        position = r * state.num_processes + state.process_index
        block = missing[position] if position < len(missing) else None
        rows, outputs = _measure(images, backbones, stores, block)
        if state.num_processes > 1:
            rows, outputs = _gather(rows, outputs, state)
        if state.is_main_process:
            for name, values in outputs.items():
                stores[name].write(rows, values)
            bar.update(int((rows >= 0).sum()))
    bar.close()
    state.wait_for_everyone()
    done = min(len(missing) * BLOCK, images.count)
    return done / (time.perf_counter() - started) if missing else 0.0


Outputs = dict[str, dict[str, np.ndarray]]
"""Backbone name -> output name -> rows."""


def _missing_blocks(stores: Mapping[str, FeatureStore], state: PartialState) -> list[int]:
    """Blocks that any store lacks, as the main process sees them."""
    done = np.logical_and.reduce([store.done for store in stores.values()])
    found = [np.flatnonzero(~done).tolist()]
    if state.num_processes > 1:
        broadcast_object_list(found)
    return found[0]


def _measure(
    images: Images,
    backbones: Mapping[str, Backbone],
    stores: Mapping[str, FeatureStore],
    block: int | None,
) -> tuple[np.ndarray, Outputs]:
    """Rows and outputs of one block; nothing for None."""
    if block is None:
        return np.zeros(0, dtype=np.int64), {}
    rows = next(iter(stores.values())).rows(block)
    pixels = images.uint8(rows)
    outputs: Outputs = {}
    for name, backbone in backbones.items():
        outputs[name] = {key: v.numpy() for key, v in backbone.extract(pixels).items()}
        outputs[name]["images"] = pixels.numpy()
    return np.asarray(rows, dtype=np.int64), outputs


def _gather(rows: np.ndarray, outputs: Outputs, state: PartialState) -> tuple[np.ndarray, Outputs]:
    """Everybody's rows. Each process pads to a whole block; shapes come from the main process."""
    shapes = [{n: {k: (v.shape[1:], v.dtype) for k, v in o.items()} for n, o in outputs.items()}]
    broadcast_object_list(shapes)
    padded = torch.full((BLOCK,), -1, dtype=torch.int64)
    padded[: len(rows)] = torch.from_numpy(rows)
    everything: Outputs = {}
    for name, keys in shapes[0].items():
        everything[name] = {}
        for key, (shape, dtype) in keys.items():
            part = np.zeros((BLOCK, *shape), dtype=dtype)
            if name in outputs:
                part[: len(rows)] = outputs[name][key]
            everything[name][key] = _gather_rows(torch.from_numpy(part), state)
    return _gather_rows(padded, state), everything


def _gather_rows(part: Tensor, state: PartialState) -> np.ndarray:
    gathered = gather(part.to(state.device))
    assert isinstance(gathered, Tensor)
    return gathered.cpu().numpy()
