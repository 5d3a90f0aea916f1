"""Post-hoc averages against integrals and against averages that were tracked."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from scipy import integrate

import hfgen
from hfgen import recipe as recipes
from hfgen.cli import main
from hfgen.errors import HfgenError
from hfgen.training.posthoc_ema import (
    Profile,
    combination,
    decay,
    gamma_of,
    inner_product,
    reconstruct,
    relative_std,
)


def density(profile: Profile, tau: float) -> float:
    scale = (profile.gamma + 1) / profile.images_seen ** (profile.gamma + 1)
    return scale * tau**profile.gamma


@pytest.mark.parametrize("sigma_rel", [0.01, 0.05, 0.10, 0.25])
def test_gamma_inverts_the_width_and_the_width_is_the_profiles(sigma_rel):
    gamma = gamma_of(sigma_rel)
    assert relative_std(gamma) == pytest.approx(sigma_rel, rel=1e-9)
    profile = Profile(1.0, gamma)
    moments = [
        integrate.quad(lambda tau, k=k: tau**k * density(profile, tau), 0, 1)[0] for k in (0, 1, 2)
    ]
    assert moments[0] == pytest.approx(1)
    assert (moments[2] - moments[1] ** 2) ** 0.5 == pytest.approx(sigma_rel, rel=1e-4)


def test_the_papers_exponents():
    """EDM2, section 3.1: sigma_rel 0.05 and 0.10 are gamma 16.97 and 6.94."""
    assert gamma_of(0.05) == pytest.approx(16.97, abs=0.01)
    assert gamma_of(0.10) == pytest.approx(6.94, abs=0.01)


@pytest.mark.parametrize(
    ("a", "b"),
    [(Profile(10, 6.94), Profile(10, 16.97)), (Profile(4, 3.0), Profile(9, 1.5))],
)
def test_inner_product_is_the_integral(a, b):
    end = min(a.images_seen, b.images_seen)
    integral = integrate.quad(lambda tau: density(a, tau) * density(b, tau), 0, end)[0]
    assert inner_product(a, b) == pytest.approx(integral, rel=1e-6)
    assert inner_product(a, b) == pytest.approx(inner_product(b, a))


def test_a_stored_profile_is_reconstructed_by_itself():
    stored = [Profile(t, g) for t in (100, 200, 300) for g in (6.94, 16.97)]
    for index, target in enumerate(stored):
        unit = np.eye(len(stored))[index]
        np.testing.assert_allclose(combination(stored, target), unit, atol=1e-6)


def track(gammas: list[float], steps: int, batch: int) -> dict[tuple[int, float], torch.Tensor]:
    """Every power-function average of a curved, noisy path of 4 weights, after every step."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(steps + 1, 4, generator=generator, dtype=torch.float64)
    average = {gamma: torch.zeros(4, dtype=torch.float64) for gamma in gammas}
    history = {}
    for step in range(1, steps + 1):
        t = step / steps
        point = torch.tensor([t, t**2, np.sin(6 * t), 1 - t], dtype=torch.float64)
        for gamma in gammas:
            keep = decay(gamma, step * batch, batch)
            average[gamma] = keep * average[gamma] + (1 - keep) * (point + 0.01 * noise[step])
            history[step, gamma] = average[gamma]
    return history


@pytest.mark.parametrize("sigma_rel", [0.03, 0.07, 0.15])
def test_another_width_is_reconstructed_as_if_it_had_been_tracked(sigma_rel):
    stored_gammas, wanted = [gamma_of(0.05), gamma_of(0.10)], gamma_of(sigma_rel)
    steps, batch = 2000, 64
    history = track([*stored_gammas, wanted], steps, batch)
    times = range(steps // 16, steps + 1, steps // 16)
    stored = [Profile(step * batch, gamma) for step in times for gamma in stored_gammas]
    states = [{"w": history[step, gamma]} for step in times for gamma in stored_gammas]
    weights = combination(stored, Profile(steps * batch, wanted))
    assert weights.sum() == pytest.approx(1, abs=1e-3)
    tracked = history[steps, wanted]
    torch.testing.assert_close(reconstruct(states, weights)["w"], tracked, rtol=0, atol=3e-3)
    nearest = min((history[steps, g] - tracked).abs().max() for g in stored_gammas)
    assert nearest > 6e-3


def test_counters_are_copied_and_dtypes_kept():
    states = [{"w": torch.ones(2, dtype=torch.bfloat16), "n": torch.tensor(k)} for k in (1, 2)]
    result = reconstruct(states, [0.25, 0.5])
    assert result["w"].tolist() == [0.75, 0.75] and result["w"].dtype == torch.bfloat16
    assert result["n"].item() == 2


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: gamma_of(0.3), "sigma_rel must be in"),
        (lambda: gamma_of(0.0), "sigma_rel must be in"),
        (lambda: combination([], Profile(1, 1)), "no averages"),
        (lambda: combination([Profile(1, 1)], Profile(2, 1)), "later than 1"),
        (lambda: Profile(0, 1), "images_seen"),
    ],
)
def test_bad_widths_and_times_are_one_line(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_run_stores_what_any_width_is_made_of(tmp_path):
    """``hfgen ema`` gives the average that a run with that width has tracked itself."""
    widths = (0.05, 0.1, 0.15)
    run = hfgen.train(
        "mnist-vae",
        **{
            "ema.sigma_rels": list(widths),
            "ema.snapshots": 10,
            "model.vae.hidden_size": 16,
            "training.max_steps": 200,
            "training.total_batch_size": 16,
            "training.sample_every": 0,
            "data.max_images": 200,
            "output_dir": str(tmp_path / "run"),
        },
    )
    stored = tmp_path / "run" / "ema"
    moments = sorted(path.name for path in stored.iterdir())
    assert len(moments) == 10 and int(moments[-1]) == 3200
    tracked = load_file(stored / moments[-1] / "0.15-vae.safetensors")
    for path in stored.glob("*/0.15-*"):
        path.unlink()  # now only the other two are there
    assert main(["ema", str(run.output_dir), "--sigma-rel", "0.15"]) == 0
    made = hfgen.load(tmp_path / "run" / "pipeline-ema-0.15").vae.state_dict()
    narrow = load_file(stored / moments[-1] / "0.1-vae.safetensors")
    for name, value in made.items():
        scale = (tracked[name].float() - narrow[name].float()).abs().max()
        assert (value - tracked[name].float()).abs().max() < 0.25 * scale + 2e-3, name
    assert hfgen.load(run.output_dir)(output_type="np").images.shape[0] == 1


def test_widths_that_are_not_there_are_one_line(tmp_path, capsys):
    (tmp_path / "run").mkdir()
    recipe = recipes.load("mnist-vae")
    (tmp_path / "run" / "recipe.yaml").write_text(recipe.to_yaml())
    assert main(["ema", str(tmp_path / "run"), "--sigma-rel", "0.1"]) == 2
    assert "no averages of vae are stored; train with ema.sigma_rels" in capsys.readouterr().err
    with pytest.raises(HfgenError, match="sigma_rels must lie in"):
        recipes.load("mnist-vae", {"ema": {"sigma_rels": [0.4]}})
