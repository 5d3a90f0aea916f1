"""Flows: log-determinants against autograd Jacobians, inverses, autoregressive order."""

import pytest
import torch

from hfgen.models.layers.flows import MADE, InverseFlow, MaskedAffineFlow, PlanarFlow, RadialFlow

DIM, CONTEXT = 4, 3


def randomise(module):
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.5)
    return module.double()


FLOWS = {
    "masked": lambda: MaskedAffineFlow(DIM, 3, 16, CONTEXT),
    "masked, inverse": lambda: InverseFlow(MaskedAffineFlow(DIM, 3, 16, CONTEXT)),
    "planar": lambda: PlanarFlow(DIM, 4, CONTEXT),
    "radial": lambda: RadialFlow(DIM, 4, CONTEXT),
}


@pytest.mark.parametrize("kind", FLOWS)
def test_log_determinant_is_that_of_the_jacobian(kind):
    flow = randomise(FLOWS[kind]())
    z, context = torch.randn(6, DIM).double(), torch.randn(6, CONTEXT).double()
    _, log_det = flow(z, context)
    for i in range(6):
        jacobian = torch.autograd.functional.jacobian(
            lambda one, i=i: flow(one[None], context[i : i + 1])[0][0], z[i]
        )
        sign, expected = torch.linalg.slogdet(jacobian)
        assert sign > 0
        torch.testing.assert_close(log_det[i], expected)


@pytest.mark.parametrize("kind", FLOWS)
def test_leading_samples_equal_single_ones(kind):
    flow = randomise(FLOWS[kind]())
    z, context = torch.randn(5, 6, DIM).double(), torch.randn(6, CONTEXT).double()
    many, log_det = flow(z, context)
    one, one_log_det = flow(z[2], context)
    torch.testing.assert_close(many[2], one)
    torch.testing.assert_close(log_det[2], one_log_det)


def test_masked_flow_inverts():
    flow = randomise(FLOWS["masked"]())
    z, context = torch.randn(6, DIM).double(), torch.randn(6, CONTEXT).double()
    y, log_det = flow(z, context)
    back, back_log_det = flow.inverse(y, context)
    torch.testing.assert_close(back, z)
    torch.testing.assert_close(back_log_det, -log_det)


@pytest.mark.parametrize("dim", [1, 2, 5])
def test_made_sees_only_what_came_before(dim):
    made = randomise(MADE(dim, 16))
    x = torch.randn(dim).double()
    for output in range(2):
        jacobian = torch.autograd.functional.jacobian(lambda v, o=output: made(v)[o], x)
        assert torch.equal(jacobian.triu(), torch.zeros_like(jacobian))
        if dim > 1:
            assert (jacobian.tril(-1) != 0).sum() == dim * (dim - 1) // 2


def test_masked_flow_starts_as_a_permutation():
    z = torch.randn(3, DIM)
    y, log_det = MaskedAffineFlow(DIM, 2, 16)(z)
    assert torch.equal(y, z) and torch.equal(log_det, torch.zeros(3))
