"""A learned metric: its closed forms against autograd, its paths, its density, its flow."""

import math

import pytest
import torch

from hfgen.data import TensorSource
from hfgen.errors import HfgenError
from hfgen.finish import finish
from hfgen.likelihoods import Gaussian
from hfgen.models.layers.metric import Metric, geodesics
from hfgen.models.prior_metric import MetricPrior
from hfgen.models.prior_poincare import PoincarePrior
from hfgen.models.prior_sphere import SphereUniformPrior
from hfgen.models.vae_hamiltonian import LeapfrogFlow
from hfgen.models.vae_mlp import MLPVAE
from hfgen.models.vae_riemannian import RiemannianLeapfrog
from hfgen.objectives.base import Clock
from hfgen.objectives.vae_hamiltonian import HamiltonianELBO
from hfgen.objectives.vae_riemannian import RiemannianELBO
from hfgen.pipelines.vae_pipeline import VAEPipeline
from hfgen.rng import Rng
from tests.objectives.test_vae_hamiltonian import STD, Linear

START = Clock(0, 0, 1)


def curved(dim=2, count=5, dtype=torch.float64) -> Metric:
    draw = torch.Generator().manual_seed(0)
    lower = torch.randn(count, dim, dim, generator=draw, dtype=dtype).tril()
    centroids = torch.randn(count, dim, generator=draw, dtype=dtype)
    return Metric(centroids, lower @ lower.transpose(1, 2), 0.9, 0.05)


def points(rows=7, dim=2):
    return torch.randn(rows, dim, generator=torch.Generator().manual_seed(1)).double()


@pytest.mark.parametrize("dim", [1, 2, 4])
def test_metric_is_positive_definite_and_its_forms_agree(dim):
    metric, z = curved(dim), points(7, dim)
    inverse = metric.inverse(z)
    torch.testing.assert_close(inverse, inverse.transpose(1, 2))
    assert torch.linalg.eigvalsh(inverse).min() >= 0.05 - 1e-9
    torch.testing.assert_close(metric.log_volume(z), 0.5 * torch.logdet(inverse))
    far = metric.inverse(z + 100)
    torch.testing.assert_close(far, 0.05 * torch.eye(dim).double().expand_as(far))


def test_what_is_not_finite_goes_through_to_the_loss():
    """Where the trainer stops the run with a checkpoint and says what to try."""
    broken = Metric(torch.full((1, 2), math.nan), torch.eye(2)[None], 0.8, 0.01)
    z = torch.zeros(3, 2)
    assert broken.root(z).isnan().any() and broken.log_volume(z).isnan().all()
    assert broken.slope(z, z + 1).isnan().all()
    metric = curved()
    lower = metric.root(points())
    torch.testing.assert_close(
        lower @ lower.mT @ metric.inverse(points()), torch.eye(2).double().expand(7, 2, 2)
    )


def test_slope_is_the_gradient_of_the_energy():
    metric, z, momentum = curved(), points().requires_grad_(), points() * 2 + 1

    def energy(rho):
        kinetic = 0.5 * torch.einsum("bd,bde,be->b", rho, metric.inverse(z), rho)
        return kinetic - metric.log_volume(z)

    for rho in (momentum, None):
        value = energy(torch.zeros_like(z) if rho is None else rho).sum()
        (expected,) = torch.autograd.grad(value, z)
        torch.testing.assert_close(metric.slope(z, rho), expected)


def test_geodesic_of_a_flat_metric_is_the_straight_line():
    flat = Metric(torch.zeros(1, 3), torch.zeros(1, 3, 3), 1.0, 0.3)
    a, b = torch.tensor([[0.0, 0, 0]]), torch.tensor([[1.0, -2, 4]])
    path = geodesics(flat.inverse, a, b, 6)
    share = torch.linspace(0, 1, 6)[:, None]
    torch.testing.assert_close(path[0], share * b, atol=1e-4, rtol=0)


def test_geodesic_of_the_poincare_ball_is_the_known_one():
    a, b = torch.tensor([[0.5, 0.1]]), torch.tensor([[-0.1, 0.6]])

    def inverse(z):
        scale = (1 - z.square().sum(1)).square() / 4
        return scale[:, None, None] * torch.eye(2)

    known = PoincarePrior(2).geodesic(a, b, 9)
    found = geodesics(inverse, a, b, 9, rounds=1000)
    straight = a + torch.linspace(0, 1, 9)[:, None] * (b - a)
    torch.testing.assert_close(known[0, [0, -1]], torch.cat([a, b]), atol=1e-5, rtol=0)
    assert (known - straight).norm(dim=2).max() > 0.05
    torch.testing.assert_close(found, known, atol=0.006, rtol=0)


def test_geodesics_of_the_sphere_are_great_circles_of_constant_speed():
    a, b = torch.nn.functional.normalize(points(2, 3), dim=1)[:, None].float()
    path = SphereUniformPrior(3).geodesic(a, b, 5)[0]
    torch.testing.assert_close(path.norm(dim=1), torch.ones(5))
    torch.testing.assert_close(path[[0, -1]], torch.cat([a, b]))
    lengths = path.diff(dim=0).norm(dim=1)
    torch.testing.assert_close(lengths, lengths[:1].expand(4))


def test_a_path_prefers_where_the_inverse_metric_is_large():
    # distances are short near the centroids: an arc of them draws the path aside
    angle = torch.linspace(0, math.pi, 12)
    arc = torch.stack([angle.cos(), angle.sin()], dim=1)
    metric = Metric(arc, torch.eye(2).repeat(12, 1, 1), 0.4, 1e-3)
    path = geodesics(metric.inverse, arc[:1], arc[-1:], 15, rounds=600)[0]
    assert path[7, 1] > 0.5


def fitted(count=6) -> MetricPrior:
    torch.manual_seed(0)
    prior = MetricPrior(2, num_centroids=count, sample_size=4, hidden_size=8, step_size=0.1)
    with torch.no_grad():
        for parameter in prior.net.parameters():
            parameter.mul_(2)
    prior.fit(1.5 * torch.randn(count, 2), torch.randn(count, 1, 4, 4))
    return prior.eval()


@torch.no_grad()
def test_density_sums_to_one_and_draws_follow_it():
    prior = fitted()
    side = torch.linspace(-30, 30, 401)
    grid = torch.cartesian_prod(side, side)
    mass = prior.log_prob(grid).exp() * (side[1] - side[0]) ** 2
    assert float(mass.sum()) == pytest.approx(1, abs=0.05)
    drawn = prior.sample(3000, torch.Generator().manual_seed(0))
    near = drawn.abs().amax(1) < 2
    share = float(mass[grid.abs().amax(1) < 2].sum())
    assert float(near.float().mean()) == pytest.approx(share, abs=0.1)
    rows = [torch.Generator().manual_seed(i) for i in range(3)]
    again = [torch.Generator().manual_seed(i) for i in range(3)]
    torch.testing.assert_close(prior.sample(3, rows)[1:], prior.sample(2, again[1:]))


def test_flow_changes_volume_by_its_temperature_alone():
    flow = RiemannianLeapfrog(
        num_steps=3, step_size=0.09, max_step_size=0.3, temperature=0.3, num_rounds=40
    ).double()
    metric = curved()

    def carried(both):
        out = flow(both[None, :2], both[None, 2:], lambda z: z**3 + torch.sin(z), metric)
        return torch.cat([out.latents[0], out.momentum[0]])

    jacobian = torch.autograd.functional.jacobian(carried, points(1, 4)[0])
    _, log_det = torch.linalg.slogdet(jacobian.detach())
    assert log_det.item() == pytest.approx(math.log(flow.beta.item()), abs=1e-6)  # D / 2 = 1


class Flat(MetricPrior):
    """G = I: the metric has no part in the dynamics."""

    def metric(self, centroids=None, matrices=None):
        return Metric(torch.zeros(1, 2), torch.zeros(1, 2, 2), 1.0, 1.0)


def test_flat_riemannian_elbo_is_the_hamiltonian_one_and_below_the_evidence():
    vae, batch = Linear(), {"images": (torch.rand(512, 1, 2, 2) * 2 - 1)}
    options = {"num_steps": 4, "step_size": 0.15, "max_step_size": 0.5, "temperature": 0.7}
    prior = Flat(2, num_centroids=2, sample_size=2, hidden_size=4)
    likelihood = Gaussian(std=STD)
    curved_models = {"vae": vae, "prior": prior, "leapfrog": RiemannianLeapfrog(**options)}
    flat_models = {"vae": vae, "leapfrog": LeapfrogFlow(2, **options)}
    ours, logs = RiemannianELBO(likelihood=likelihood).loss(
        "vae", curved_models, batch, Rng(0), START
    )
    theirs, _ = HamiltonianELBO(likelihood=likelihood).loss(
        "vae", flat_models, batch, Rng(0), START
    )
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    assert logs["elbo"] < vae.evidence(batch["images"]) + 0.02


def test_gradients_reach_every_part():
    torch.manual_seed(0)
    models = {
        "vae": MLPVAE(sample_size=4, hidden_size=8, latent_dim=3),
        "prior": MetricPrior(3, num_centroids=4, sample_size=4, hidden_size=8),
        "leapfrog": RiemannianLeapfrog(num_steps=2),
    }
    batch = {"images": torch.rand(4, 1, 4, 4).round() * 2 - 1}
    loss, logs = RiemannianELBO().loss("vae", models, batch, Rng(0), START)
    loss.backward()
    grads = [p.grad for model in models.values() for p in model.parameters()]
    assert all(g is not None and g.abs().max() > 0 for g in grads)
    assert logs["moved"] > 0
    models["prior"] = MetricPrior(5, sample_size=4)
    with pytest.raises(HfgenError, match=r"prior.latent_dim is 5, but .* latents are \(3,\)"):
        RiemannianELBO().loss("vae", models, batch, Rng(0), START)


def test_a_run_ends_with_centroids_and_a_pipeline_of_geodesics():
    torch.manual_seed(0)
    vae = MLPVAE(sample_size=4, hidden_size=8, latent_dim=2)
    prior = MetricPrior(2, num_centroids=8, sample_size=4, hidden_size=8)
    pipeline = VAEPipeline(vae.eval(), prior.eval(), likelihood={"type": "bernoulli"})
    pipeline.set_progress_bar_config(disable=True)
    source = TensorSource(torch.rand(40, 1, 4, 4) * 2 - 1)
    finish(pipeline, RiemannianELBO(), source)
    expected = vae.encode(source.batch(range(0, 40, 5))["images"]).latent_dist.mode()
    torch.testing.assert_close(prior.centroids, expected.detach())
    a, b = prior.centroids[:2].split(1)
    path = pipeline.interpolate(a, b, 5, "geodesic", output_type="latent").images
    assert path.shape == (5, 2)
    torch.testing.assert_close(path[[0, -1]], prior.centroids[:2])
    assert pipeline(2, output_type="pt").images.shape == (2, 1, 4, 4)
    bare = VAEPipeline(vae)
    with pytest.raises(ValueError, match="'geodesic' is unknown .no metric on these latents.; val"):
        bare.interpolate(a, b, mode="geodesic")


@pytest.mark.parametrize(
    "make,message",
    [
        (lambda: MetricPrior(num_centroids=1), "num_centroids >= 2, got 2 and 1"),
        (lambda: MetricPrior(temperature=0.0), "temperature must be positive, got 0"),
        (lambda: RiemannianLeapfrog(num_rounds=0), "must be at least 1, got 3 and 0"),
        (lambda: RiemannianLeapfrog(temperature=1.0), r"temperature in \(0, 1\)"),
        (lambda: fitted().fit(torch.zeros(3, 2), torch.zeros(3, 1, 4, 4)), r"means of \[3, 2\]"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(ValueError, match=message):
        make()
