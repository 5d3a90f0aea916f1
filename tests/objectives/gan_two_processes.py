"""Gradients of a GAN's phases under DDP: started by torchrun in several processes, each with its
share of the rows; the first writes them to the file that it is given.
"""

from __future__ import annotations

import sys

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from hfgen.models.gan_r3gan import R3GANDiscriminator, R3GANGenerator
from hfgen.objectives.base import Clock
from hfgen.objectives.gan import GAN
from hfgen.rng import Rng
from hfgen.training.phase import PhaseModule, learned

CLOCK = Clock(step=3, images_seen=24, total_images=100, total_batch_size=8)
OBJECTIVES = {
    "eager": GAN(adversarial_loss="relativistic_pairing", r1_gamma=0.7, r2_gamma=0.3, r1_every=1),
    "lazy": GAN(adversarial_loss="relativistic_pairing", r1_gamma=0.7, r2_gamma=0.3, r1_every=2),
}


def modules(objective: GAN) -> dict[str, PhaseModule]:
    """The wrapped computation of each phase, over the same networks."""
    torch.manual_seed(0)
    common = {"sample_size": 8, "channels": 16, "num_layers": 1}
    models = {
        "generator": R3GANGenerator(out_channels=1, latent_dim=4, **common).double(),
        "discriminator": R3GANDiscriminator(in_channels=1, **common).double(),
    }
    for model in models.values():
        for name, parameter in model.named_parameters():
            if "reduce" in name:  # branches start at zero, and with them most gradients
                torch.nn.init.normal_(parameter, std=0.2)
    learns = {role: learned(model) for role, model in models.items()}
    return {p.name: PhaseModule(p, objective, models, learns) for p in objective.phases}


def gradients(rank: int = 0, world: int = 1) -> dict[str, list[torch.Tensor]]:
    """Gradients of every phase, by objective and phase."""
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(8, 1, 8, 8, generator=generator, dtype=torch.float64) * 2 - 1
    rows = slice(rank * 8 // world, (rank + 1) * 8 // world)
    found = {}
    for name, objective in OBJECTIVES.items():
        for phase, module in modules(objective).items():
            module.unfreeze()
            wrapped = DistributedDataParallel(module) if world > 1 else module
            rng = Rng(0, 3, phase, start=rows.start)
            wrapped({"images": images[rows]}, rng, CLOCK)[0].backward()
            trained = [p for p in module.trained.parameters() if p.grad is not None]
            found[f"{name}-{phase}"] = [p.grad.clone() for p in trained if p.grad is not None]
    return found


if __name__ == "__main__":
    dist.init_process_group("gloo")
    result = gradients(dist.get_rank(), dist.get_world_size())
    if dist.get_rank() == 0:
        torch.save(result, sys.argv[1])
    dist.destroy_process_group()
