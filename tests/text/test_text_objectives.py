"""Objectives of texts and codes against closed forms."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from hfgen.errors import HfgenError
from hfgen.models.layers.vq import build_quantizer
from hfgen.models.prior_codes import CodePrior
from hfgen.objectives.base import Clock
from hfgen.objectives.contrastive import Contrastive
from hfgen.objectives.diffusion_weightings import UniformWeight
from hfgen.objectives.discrete_vae import DiscreteVAE, kl_to_uniform
from hfgen.objectives.image_codes import ImageCodes, drop_captions
from hfgen.objectives.text_diffusion import TextDiffusion
from hfgen.rng import Rng
from tests.text import contrastive_two_processes, tiny

CLOCK = Clock(0, 0, 100, 4)


def pairs(captions: list[str]) -> dict[str, torch.Tensor]:
    tokenizer = tiny.bytes_pairs()
    ids = tokenizer(captions, padding="max_length", max_length=8, return_tensors="pt").input_ids
    images = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    return {"images": images, "input_ids": ids}


def test_contrastive_is_clips_own_loss():
    model, batch = tiny.clip(tiny.bytes_pairs()), pairs(tiny.CAPTIONS[:4])
    loss, _ = Contrastive().loss("contrast", {"clip": model}, batch, Rng(0), CLOCK)
    theirs = model(input_ids=batch["input_ids"], pixel_values=batch["images"], return_loss=True)
    torch.testing.assert_close(loss, theirs.loss)


def test_equal_captions_share_the_target():
    model, batch = tiny.clip(tiny.bytes_pairs()), pairs(["red heart"] * 4)
    loss, logs = Contrastive().loss("contrast", {"clip": model}, batch, Rng(0), CLOCK)
    assert float(logs["accuracy"]) == 1
    with torch.no_grad():
        similarity = model(**{"input_ids": batch["input_ids"], "pixel_values": batch["images"]})
    per_text = -torch.log_softmax(similarity.logits_per_text, -1).mean()
    per_image = -torch.log_softmax(similarity.logits_per_image, -1).mean()
    torch.testing.assert_close(loss, (per_text + per_image) / 2)


def test_micro_batches_are_refused():
    model, batch = tiny.clip(tiny.bytes_pairs()), pairs(tiny.CAPTIONS[:4])
    clock = Clock(0, 0, 100, 8)
    with pytest.raises(HfgenError, match="gradient_accumulation_steps.*all 8 pairs.*got 4"):
        Contrastive().loss("contrast", {"clip": model}, batch, Rng(0), clock)


def test_pairs_of_the_other_process_are_negatives_too(tmp_path):
    """Loss and gradients of two processes are those of one with the whole batch."""
    file = tmp_path / "gradients.pt"
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    script = str(Path(contrastive_two_processes.__file__))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = str(Path(__file__).parents[2])
    command = [sys.executable, *launcher, script, str(file)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    alone, together = contrastive_two_processes.loss_and_gradients(), torch.load(file)
    assert alone.keys() == together.keys() and "logit_scale" in alone
    assert sum(bool(gradient.abs().max() > 1e-4) for gradient in alone.values()) > len(alone) / 2
    for name, whole in alone.items():  # similarities are float32
        torch.testing.assert_close(together[name], whole, rtol=1e-5, atol=2e-6, msg=name)


def test_kl_to_uniform():
    even = torch.zeros(2, 3, 3, 5)
    torch.testing.assert_close(kl_to_uniform(even), torch.zeros(2))
    sure = F.one_hot(torch.zeros(2, 3, 3, dtype=torch.long), 5) * 100.0
    torch.testing.assert_close(kl_to_uniform(sure), torch.full((2,), 9 * math.log(5)))
    logits = torch.randn(1, 1, 1, 5)
    q = torch.distributions.Categorical(logits=logits)
    p = torch.distributions.Categorical(logits=torch.zeros_like(logits))
    expected = torch.distributions.kl_divergence(q, p).sum()
    torch.testing.assert_close(kl_to_uniform(logits)[0], expected)


def test_gumbel_draws_follow_the_logits():
    """The arg max of logits plus noise is a draw from their softmax (Gumbel 1954)."""
    book = build_quantizer({"type": "gumbel", "num_embeddings": 3, "dim": 3})
    with torch.no_grad():
        book.codebook.copy_(torch.eye(3))
        logits = torch.tensor([0.0, 1.0, 2.0]).expand(20_000, 1, 3)
        uniform = torch.rand(20_000, 1, 3, generator=torch.Generator().manual_seed(0))
        codes = book.relax(logits, uniform, temperature=1e-3)
    share = codes.squeeze(-1).mean(0)
    torch.testing.assert_close(share, logits[0, 0].softmax(0), atol=0.015, rtol=0)
    assert float(codes.max(1).values.mean()) > 0.99, "nearly one code at a low temperature"


def test_the_temperature_falls_by_a_cosine():
    objective = DiscreteVAE(temperature=1.0, final_temperature=0.1, annealing=0.5)

    def at(share: float) -> float:
        return objective.temperature_at(Clock(0, int(share * 1000), 1000, 1))

    assert at(0) == 1 and at(0.5) == pytest.approx(0.1) and at(1) == pytest.approx(0.1)
    assert at(0.25) == pytest.approx(0.55)


def test_the_bound_at_beta_one():
    vae = tiny.codes({"type": "gumbel", "num_embeddings": 12, "dim": 4}).train()
    images = torch.rand(4, 3, 16, 16) * 2 - 1
    models, batch = {"vae": vae}, {"images": images}
    logs = {
        beta: DiscreteVAE(beta=beta).loss("vae", models, batch, Rng(0), CLOCK)[1]
        for beta in (0.0, 1.0)
    }
    difference = logs[1.0]["loss"] - logs[0.0]["loss"]
    torch.testing.assert_close(difference, logs[1.0]["kl"], rtol=1e-3, atol=1e-2)
    with pytest.raises(HfgenError, match="needs {type: gumbel}"):
        DiscreteVAE().loss("vae", {"vae": tiny.codes()}, batch, Rng(0), CLOCK)


def test_beta_rises_over_its_ramp():
    vae = tiny.codes({"type": "gumbel", "num_embeddings": 12, "dim": 4}).train()
    models, batch = {"vae": vae}, {"images": torch.rand(4, 3, 16, 16) * 2 - 1}
    clock = Clock(1, 25, 100, 4)  # a quarter of a ramp of 100 images
    objective = DiscreteVAE(beta=2.0, beta_ramp_images=100, temperature=1.0, final_temperature=1.0)
    logs = objective.loss("vae", models, batch, Rng(0), clock)[1]
    expected = logs["reconstruction"] + 2.0 * 0.25 * logs["kl"]
    torch.testing.assert_close(logs["loss"], expected, rtol=1e-5, atol=1e-3)


def test_the_discrete_vaes_prior_learns_its_codes_in_a_phase_of_its_own():
    vae = tiny.codes({"type": "gumbel", "num_embeddings": 12, "dim": 4}).train()
    prior = CodePrior(latent_shape=(4, 4, 4), num_embeddings=12, hidden_size=16, num_layers=1)
    objective, batch = DiscreteVAE(learn_prior=True), {"images": torch.rand(4, 3, 16, 16) * 2 - 1}
    assert [(phase.name, phase.trains) for phase in objective.phases] == [
        ("vae", ("vae",)),
        ("prior", ("prior",)),
    ]
    models = {"vae": vae, "prior": prior}
    loss, _ = objective.loss("prior", models, batch, Rng(0), CLOCK)
    loss.backward()
    with torch.no_grad():
        codes = vae.quantize(vae.encode_map(batch["images"])).indices
        torch.testing.assert_close(loss.detach(), -prior.log_prob_indices(codes, None).mean())
    assert all(p.grad is None for p in vae.parameters())
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in prior.parameters())


def test_label_smoothing_spreads_a_share_over_all_codes():
    model = tiny.spread(tiny.transformer(tiny.codes()))
    codes = torch.randint(12, (4, 4, 4, 1))
    models, batch = {"transformer": model}, {"images": codes}
    loss, logs = ImageCodes(label_smoothing=0.3).loss("prior", models, batch, Rng(0), CLOCK)
    flat = codes.flatten(1)
    with torch.no_grad():
        log_p = torch.log_softmax(model(flat[:, :-1]), dim=-1)
    own, even = -log_p.gather(2, flat.unsqueeze(2)).mean(), -log_p.mean()
    torch.testing.assert_close(loss.detach(), 0.7 * own + 0.3 * even)
    torch.testing.assert_close(logs["nats_per_code"].mean(), own)


def test_image_codes_is_the_mean_negative_log_likelihood():
    book = tiny.codes()
    model = tiny.spread(tiny.transformer(book, text_vocab_size=64, text_length=8))
    codes = torch.randint(12, (4, 4, 4, 1))
    ids = torch.randint(64, (4, 8))
    batch = {"images": codes, "input_ids": ids, "null_input_ids": ids[0]}
    loss, _ = ImageCodes(caption_dropout=0).loss(
        "prior", {"transformer": model}, batch, Rng(0), CLOCK
    )
    torch.testing.assert_close(loss, -model.log_prob(codes.flatten(1), ids).mean() / 16)
    with pytest.raises(HfgenError, match="made for 16 codes of 12"):
        wrong = {**batch, "images": codes + 5}
        ImageCodes().loss("prior", {"transformer": model}, wrong, Rng(0), CLOCK)


def test_dropped_captions_are_a_share_and_split_invariant():
    batch = {"text": torch.ones(64, 2, 3), "null_text": torch.zeros(2, 3)}
    dropped = drop_captions(batch, "text", Rng(0), 0.25)
    share = 1 - float(dropped.mean())
    assert 0.1 < share < 0.4
    half = {"text": batch["text"][32:], "null_text": batch["null_text"]}
    assert torch.equal(drop_captions(half, "text", Rng(0, start=32), 0.25), dropped[32:])
    assert drop_captions(batch, "text", Rng(0), 0.0) is batch["text"]


class Double(UniformWeight):
    def weight(self, *given):
        return 2 * super().weight(*given)


def test_text_diffusion_weighs_the_error():
    batch = {"images": torch.randn(4, 4, 4, 4), "text": torch.randn(4, 8, 16)}
    batch["null_text"] = torch.zeros(8, 16)
    models = {"unet": tiny.unet(16), "scheduler": tiny.scheduler()}
    plain, _ = TextDiffusion().loss("denoise", models, batch, Rng(0), CLOCK)
    double, logs = TextDiffusion(weighting=Double()).loss("denoise", models, batch, Rng(0), CLOCK)
    torch.testing.assert_close(double, 2 * plain)
    torch.testing.assert_close(logs["mse"].mean(), plain.detach())


def test_text_diffusion_reads_the_text():
    batch = {
        "images": torch.randn(4, 4, 4, 4),
        "text": torch.randn(4, 8, 16),
        "null_text": torch.zeros(8, 16),
    }
    models = {"unet": tiny.unet(16), "scheduler": tiny.scheduler()}
    loss, _ = TextDiffusion(caption_dropout=0).loss("denoise", models, batch, Rng(0), CLOCK)
    other = {**batch, "text": -batch["text"]}
    changed, _ = TextDiffusion(caption_dropout=0).loss("denoise", models, other, Rng(0), CLOCK)
    assert not torch.equal(loss, changed)
    with pytest.raises(HfgenError, match="model.text_encoder: missing"):
        TextDiffusion().loss("denoise", models, {"images": batch["images"]}, Rng(0), CLOCK)
