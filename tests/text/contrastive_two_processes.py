"""The contrastive loss under DDP: started by torchrun in several processes, each with its share of
the pairs; the first writes loss and gradients to the file that it is given.
"""

from __future__ import annotations

import sys

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from hfgen.objectives.base import Clock
from hfgen.objectives.contrastive import Contrastive
from hfgen.rng import Rng
from hfgen.training.phase import PhaseModule, learned
from tests.text import tiny

CAPTIONS = [*tiny.CAPTIONS, "red heart", "blue circle"]
"""Two are there twice, once in each half."""


def loss_and_gradients(rank: int = 0, world: int = 1) -> dict[str, torch.Tensor]:
    """The mean loss of the whole batch, and the gradient of every parameter."""
    count, tokenizer = len(CAPTIONS), tiny.bytes_pairs()
    padded = tokenizer(CAPTIONS, padding="max_length", max_length=tiny.LENGTH, return_tensors="pt")
    images = torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(1)).double()
    rows = slice(rank * count // world, (rank + 1) * count // world)
    clip, objective = tiny.clip(tokenizer).double(), Contrastive()
    (phase,) = objective.phases
    module = PhaseModule(phase, objective, {"clip": clip}, {"clip": learned(clip)})
    module.unfreeze()
    wrapped = DistributedDataParallel(module) if world > 1 else module
    batch = {"images": images[rows], "input_ids": padded.input_ids[rows]}
    clock = Clock(step=0, images_seen=0, total_images=100, total_batch_size=count)
    loss, _ = wrapped(batch, Rng(0, start=rows.start), clock)
    loss.backward()
    loss = loss.detach()
    if world > 1:
        dist.all_reduce(loss)
    found = {name: p.grad for name, p in clip.named_parameters() if p.grad is not None}
    return {"loss": loss / world, **found}


if __name__ == "__main__":
    dist.init_process_group("gloo")
    result = loss_and_gradients(dist.get_rank(), dist.get_world_size())
    if dist.get_rank() == 0:
        torch.save(result, sys.argv[1])
    dist.destroy_process_group()
