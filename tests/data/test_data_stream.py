"""Batches are a pure function of (seed, draw), however they are split."""

from __future__ import annotations

import json
from collections import Counter

import pytest
import torch

from hfgen.data import BatchStream, TensorSource, load_source
from hfgen.data import stream as stream_module
from hfgen.data.order import Permutations
from hfgen.data.source import normalize
from hfgen.errors import HfgenError
from hfgen.rng import Rng


def numbered(count: int, binarize: str = "none") -> TensorSource:
    """Image i: a value that grows with i in the left half, 255 in the right; label i."""
    images = torch.full((count, 1, 2, 4), 255, dtype=torch.uint8)
    images[..., :2] = (torch.arange(count) * 250 // count)[:, None, None, None]
    return TensorSource(images, torch.arange(count), binarize=binarize)


def labels(stream: BatchStream, draws: int) -> list[int]:
    drawn = []
    for _ in range(draws):
        drawn += stream.rows(0, stream.total_batch_size)["labels"].tolist()
        stream.advance()
    return drawn


@pytest.mark.parametrize(("count", "batch"), [(10, 10), (10, 3), (50, 16), (7, 5)])
def test_each_epoch_holds_each_image_once_and_batches_run_across_epochs(count, batch):
    drawn = labels(BatchStream(numbered(count), batch, seed=1), draws=2 * count)  # 2 * batch epochs
    epochs = [drawn[i : i + count] for i in range(0, len(drawn), count)]
    assert len(epochs) == 2 * batch
    assert all(sorted(epoch) == list(range(count)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == len(epochs)  # 5040 orders at least


def test_permutations_are_uniform():
    """Each image comes first equally often: chi-squared, 9 degrees of freedom, 99.9 %: 27.9."""
    counts = Counter(int(Permutations(10, seed)(0, 1)) for seed in range(2000))
    assert sum((counts[i] - 200) ** 2 / 200 for i in range(10)) < 27.9


@pytest.mark.parametrize("cuts", [[0, 4, 24], [0, 1, 17, 24], [0, 6, 12, 18, 24]])
@pytest.mark.parametrize("binarize", ["none", "dynamic"])
def test_any_split_gives_the_same_rows(cuts, binarize):
    stream = BatchStream(numbered(30), 24, seed=5, random_flip=True, binarize=binarize)
    for _ in range(3):
        whole = stream.rows(0, 24)
        for key, values in whole.items():
            parts = [stream.rows(a, b)[key] for a, b in zip(cuts, cuts[1:], strict=False)]
            assert torch.equal(torch.cat(parts), values)
        stream.advance()


def test_draws_keyed_by_the_place_in_the_micro_batch_would_be_seen(monkeypatch):
    """The guard of the test above: with the usual mistake in it, the split shows."""
    monkeypatch.setattr(stream_module, "Rng", lambda *key, start=0: Rng(*key, start=0))
    stream = BatchStream(numbered(30), 24, seed=5, random_flip=True)
    parts = torch.cat([stream.rows(0, 12)["images"], stream.rows(12, 24)["images"]])
    assert not torch.equal(parts, stream.rows(0, 24)["images"])


def test_the_state_continues_bit_for_bit():
    make = lambda: BatchStream(numbered(30), 8, 3, random_flip=True, binarize="dynamic")  # noqa: E731
    stream, resumed = make(), make()
    labels(stream, 11)
    resumed.load_state_dict(json.loads(json.dumps(stream.state_dict())))
    for _ in range(9):
        for key, values in stream.rows(0, 8).items():
            assert torch.equal(resumed.rows(0, 8)[key], values)
        stream.advance()
        resumed.advance()


def test_seeds_give_other_orders():
    assert labels(BatchStream(numbered(30), 8, seed=0), 3) != labels(
        BatchStream(numbered(30), 8, seed=1), 3
    )


def test_half_of_the_images_are_flipped_and_flips_change_from_draw_to_draw():
    stream = BatchStream(numbered(200), 200, seed=0, random_flip=True)
    flips = []
    for _ in range(10):
        images = stream.rows(0, 200)["images"]
        flips.append(images[:, 0, 0, 0] > images[:, 0, 0, 3])
        straight = torch.where(flips[-1][:, None, None, None], images.flip(-1), images)
        assert torch.equal(straight[..., 2:], torch.ones(200, 1, 2, 2))
        stream.advance()
    share = torch.stack(flips).float().mean().item()
    assert abs(share - 0.5) < 4 * (0.25 / 2000) ** 0.5
    assert not torch.equal(flips[0], flips[1])


def test_without_flip_or_binarisation_rows_are_the_images():
    source = numbered(40)
    stream = BatchStream(source, 40, seed=2)
    rows = stream.rows(0, 40)
    assert torch.equal(rows["images"], source.batch(rows["labels"])["images"])


def test_dynamic_binarisation_draws_each_pixel_with_its_grey_value():
    """P(x = 1) = grey / 255: means of 4000 draws within 4.5 standard errors at all 256 greys."""
    grey = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    stream = BatchStream(TensorSource(grey.expand(4000, -1, -1, -1), binarize="dynamic"), 4000, 0)
    images = stream.rows(0, 4000)["images"]
    assert set(images.unique().tolist()) == {-1.0, 1.0}
    p = torch.arange(256) / 255
    share = ((images + 1) / 2).mean(0).flatten()
    assert ((share - p).abs() <= 4.5 * (p * (1 - p) / 4000).sqrt()).all()


def test_the_batch_must_fit_the_data():
    with pytest.raises(HfgenError, match="total_batch_size is 31.*only 30 images.*valid: 1 to 30"):
        BatchStream(numbered(30), 31, seed=0)
    with pytest.raises(HfgenError, match="total_batch_size: must be > 0, got 0"):
        BatchStream(numbered(30), 0, seed=0)
    with pytest.raises(HfgenError, match="data.binarize: unknown value 'yes'"):
        BatchStream(numbered(30), 8, seed=0, binarize="yes")


@pytest.mark.parametrize("name", ["tensors", "mnist", "sprites", "stacked-mnist"])
def test_drawing_leaves_the_source_as_it_is(name, config):
    """Flips are made in place, so they must be made on a copy, of each channel on its own."""
    settings = config(name, max_images=64, channels=3 if name == "sprites" else None)
    source = numbered(64) if name == "tensors" else load_source(settings)
    before = source.uint8(range(64)).clone()
    rows = BatchStream(source, 64, seed=0, random_flip=True).rows(0, 64)["images"]
    assert torch.equal(source.uint8(range(64)), before)
    known = {normalize(image).numpy().tobytes() for image in torch.cat([before, before.flip(-1)])}
    assert all(image.numpy().tobytes() in known for image in rows)
