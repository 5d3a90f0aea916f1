"""The Hamiltonian ELBO: the flow's volume, and its bound on a model whose evidence is known."""

import math

import pytest
import torch

from hfgen.errors import HfgenError
from hfgen.likelihoods import Gaussian
from hfgen.models.vae_hamiltonian import LeapfrogFlow
from hfgen.models.vae_mlp import MLPVAE
from hfgen.objectives.base import Clock
from hfgen.objectives.vae import ELBO
from hfgen.objectives.vae_hamiltonian import HamiltonianELBO
from hfgen.rng import Rng

START = Clock(0, 0, 1)
STD = 0.7


class Linear(torch.nn.Module):
    """x = A z + noise, with an encoder that is a little off: p(x) is N(0, A A^T + s^2 I)."""

    def __init__(self, offset: float = 0.5):
        super().__init__()
        torch.manual_seed(0)
        self.decoder = torch.nn.Linear(2, 4, bias=False)
        self.offset = torch.nn.Parameter(torch.tensor(offset))
        self.config: dict = {}

    def encode(self, x):
        from types import SimpleNamespace

        from hfgen.models.layers.posterior import DiagonalGaussian

        a = self.decoder.weight
        precision = torch.eye(2) + a.T @ a / STD**2
        mean = x.flatten(1) @ a / STD**2 @ torch.linalg.inv(precision) + self.offset
        logvar = -precision.diagonal().log().expand_as(mean)
        return SimpleNamespace(latent_dist=DiagonalGaussian(mean, logvar))

    def decode(self, z):
        from types import SimpleNamespace

        return SimpleNamespace(sample=self.decoder(z).unflatten(1, (1, 2, 2)))

    def evidence(self, x):
        a = self.decoder.weight
        normal = torch.distributions.MultivariateNormal(
            torch.zeros(4), a @ a.T + STD**2 * torch.eye(4)
        )
        return normal.log_prob(x.flatten(1)).mean()


def test_the_flow_changes_volume_by_its_temperature_alone():
    torch.manual_seed(0)
    flow = LeapfrogFlow(latent_dim=2, num_steps=3, temperature=0.3).double()
    with torch.no_grad():
        flow.step_logit.copy_(torch.tensor([0.2, -1.0]))

    def carried(both):
        z, rho = flow(both[None, :2], both[None, 2:], lambda z: z**3 + torch.sin(z)).to_tuple()
        return torch.cat([z[0], rho[0]])

    jacobian = torch.autograd.functional.jacobian(carried, torch.randn(4).double())
    _, log_det = torch.linalg.slogdet(jacobian.detach())
    assert log_det.item() == pytest.approx(math.log(flow.beta.item()), abs=1e-6)  # D / 2 = 1


def test_steps_without_length_and_temper_leave_the_elbo():
    vae, flow = Linear(), LeapfrogFlow(2, 3, step_size=1e-7, temperature=1 - 1e-6)
    batch = {"images": torch.rand(64, 1, 2, 2) - 0.5}
    options = {"likelihood": Gaussian(std=STD)}
    ours, _ = HamiltonianELBO(**options).loss(
        "vae", {"vae": vae, "leapfrog": flow}, batch, Rng(0), START
    )
    z_only = ELBO(**options)
    posterior = vae.encode(batch["images"]).latent_dist
    noise = Rng(0).randn("eps", posterior.noise_shape)
    z, log_q = posterior.rsample(noise)
    log_p = z_only.likelihood.log_prob(batch["images"], vae.decode(z).sample)
    log_p = log_p - 0.5 * (z.square() + math.log(2 * math.pi)).sum(1)
    torch.testing.assert_close(ours, -(log_p - log_q).mean(), atol=1e-3, rtol=1e-4)


def test_the_bound_is_tighter_and_stays_below_the_evidence():
    torch.manual_seed(0)
    vae = Linear()
    flow = LeapfrogFlow(2, num_steps=5, step_size=0.2, temperature=0.7)
    batch = {"images": (torch.rand(2048, 1, 2, 2) * 2 - 1).clamp(-1, 1)}
    options = {"likelihood": Gaussian(std=STD)}
    models = {"vae": vae, "leapfrog": flow}
    with torch.enable_grad():
        _, ours = HamiltonianELBO(**options).loss("vae", models, batch, Rng(0), START)
        _, plain = ELBO(**options).loss("vae", models, batch, Rng(0), START)
    exact = vae.evidence(batch["images"]).detach()
    assert plain["elbo"] + 0.05 < ours["elbo"] < exact + 0.02


def test_gradients_reach_encoder_decoder_and_flow():
    torch.manual_seed(0)
    models = {
        "vae": MLPVAE(sample_size=4, hidden_size=8, latent_dim=3),
        "leapfrog": LeapfrogFlow(latent_dim=3, num_steps=2),
    }
    batch = {"images": torch.rand(4, 1, 4, 4).round() * 2 - 1}
    loss, logs = HamiltonianELBO().loss("vae", models, batch, Rng(0), START)
    loss.backward()
    grads = [p.grad for model in models.values() for p in model.parameters()]
    assert all(g is not None and g.abs().max() > 0 for g in grads)
    assert logs["moved"] > 0
    models["leapfrog"] = LeapfrogFlow(latent_dim=5)
    with pytest.raises(HfgenError, match=r"leapfrog.latent_dim is 5, but .* latents are \(3,\)"):
        HamiltonianELBO().loss("vae", models, batch, Rng(0), START)
    with pytest.raises(ValueError, match="num_steps must be at least 1, got 0"):
        LeapfrogFlow(num_steps=0)
