"""What diffusers' PipelineTesterMixin checks of its pipelines holds for ours."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from tiny_pipelines import PIPELINE_CASES, TINY_PIPELINES

from hfgen.hub.load import load
from hfgen.recipe import PIPELINES


@pytest.fixture(params=PIPELINE_CASES)
def case(request):
    """(options of every call, the pipeline)."""
    name, one = PIPELINE_CASES[request.param]
    return one.options, one.build(name)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw(pipeline, options, output_type="np", **more):
    pipeline.set_progress_bar_config(disable=True)
    arguments = {"batch_size": 2, "generator": seeded(), **options, **more}
    return pipeline(output_type=output_type, **arguments).images


def test_every_registered_pipeline_has_a_tiny_instance():
    assert sorted(set(PIPELINES) - set(TINY_PIPELINES)) == []


def test_the_call_has_the_arguments_of_diffusers(case):
    parameters = inspect.signature(case[1].__call__).parameters
    defaults = {"batch_size": 1, "generator": None, "output_type": "pil", "return_dict": True}
    assert {name: parameters[name].default for name in defaults} == defaults


def test_save_and_load(case, tmp_path):
    options, pipeline = case
    expected = draw(pipeline, options)
    pipeline.save_pretrained(tmp_path)
    for loaded in (type(pipeline).from_pretrained(tmp_path), load(tmp_path)):
        assert type(loaded) is type(pipeline)
        np.testing.assert_array_equal(draw(loaded, options), expected)
    types = {path.suffix for path in tmp_path.rglob("*") if path.is_file()}
    assert types == {".json", ".py", ".safetensors"}


def test_optional_components_may_be_absent(case, tmp_path):
    options, pipeline = case
    for name in pipeline._optional_components:
        setattr(pipeline, name, None)
    pipeline.save_pretrained(tmp_path)
    loaded = type(pipeline).from_pretrained(tmp_path)
    for name in pipeline._optional_components:
        assert getattr(loaded, name) is None
        assert not (tmp_path / name).exists()
    np.testing.assert_array_equal(draw(loaded, options), draw(pipeline, options))


def test_components_and_parameters_make_the_same_pipeline(case):
    options, pipeline = case
    again = type(pipeline)(**pipeline.components, **pipeline.parameters)
    np.testing.assert_array_equal(draw(again, options), draw(pipeline, options))


def test_a_component_can_be_given_to_from_pretrained(case, tmp_path):
    options, pipeline = case
    pipeline.save_pretrained(tmp_path)
    name = next(key for key, part in pipeline.components.items() if part is not None)
    part = getattr(pipeline, name)
    loaded = type(pipeline).from_pretrained(tmp_path, **{name: part})
    assert getattr(loaded, name) is part
    np.testing.assert_array_equal(draw(loaded, options), draw(pipeline, options))


def test_tuples_and_dicts_are_equivalent(case):
    options, pipeline = case
    output = pipeline(generator=seeded(), output_type="np", **options)
    (images,) = pipeline(generator=seeded(), output_type="np", return_dict=False, **options)
    np.testing.assert_array_equal(images, output.images)


def test_output_types_agree(case):
    options, pipeline = case
    array = draw(pipeline, options)
    assert array.dtype == np.float32 and array.min() >= 0 and array.max() <= 1
    tensor = draw(pipeline, options, "pt")
    np.testing.assert_array_equal(tensor.permute(0, 2, 3, 1).numpy(), array)
    for picture, expected in zip(draw(pipeline, options, "pil"), array, strict=True):
        pixels = np.asarray(picture).reshape(expected.shape)
        np.testing.assert_array_equal(pixels, (expected * 255).round().astype(np.uint8))


def test_an_image_does_not_depend_on_its_batch(case):
    options, pipeline = case
    generators = [seeded(i) for i in range(3)]
    together = draw(pipeline, options, batch_size=3, generator=generators)
    for i in range(3):
        alone = draw(pipeline, options, batch_size=1, generator=[seeded(i)])
        np.testing.assert_allclose(alone[0], together[i], atol=1e-4)


def test_seeds_differ_and_repeat(case):
    options, pipeline = case
    first = draw(pipeline, options)
    np.testing.assert_array_equal(draw(pipeline, options), first)
    assert not np.array_equal(draw(pipeline, options, generator=seeded(1)), first)
    assert not np.array_equal(first[0], first[1])


def test_dtype(case, tmp_path):
    options, pipeline = case
    expected = draw(pipeline, options)
    pipeline.save_pretrained(tmp_path)
    loaded = type(pipeline).from_pretrained(tmp_path, dtype=torch.bfloat16)
    models = [part for part in loaded.components.values() if isinstance(part, torch.nn.Module)]
    assert {model.dtype for model in models} == {torch.bfloat16}
    images = draw(loaded, options)
    assert images.dtype == np.float32
    np.testing.assert_allclose(images, expected, atol=0.1)
    np.testing.assert_array_equal(draw(pipeline.to(torch.bfloat16), options), images)


def test_variant_shards_and_device_map(case, tmp_path):
    options, pipeline = case
    pipeline.save_pretrained(tmp_path, variant="fp16", max_shard_size="1KB")
    assert list(tmp_path.rglob("*.fp16-00001-of-*.safetensors"))
    loaded = type(pipeline).from_pretrained(tmp_path, variant="fp16", device_map="cpu")
    np.testing.assert_array_equal(draw(loaded, options), draw(pipeline, options))
    with pytest.raises(ValueError, match="no such modeling files"):
        type(pipeline).from_pretrained(tmp_path, variant="ema")


def test_offloading_moves_each_model_before_its_use(case, monkeypatch):
    """With the CPU itself as the accelerator: what matters is that the hooks are called."""
    from accelerate.hooks import CpuOffload

    options, pipeline = case
    expected = draw(pipeline, options)
    called = []
    original = CpuOffload.pre_forward

    def pre_forward(self, module, *args, **kwargs):
        called.append(module)
        return original(self, module, *args, **kwargs)

    monkeypatch.setattr(CpuOffload, "pre_forward", pre_forward)
    pipeline.enable_model_cpu_offload(device="cpu")
    images = draw(pipeline, options)
    np.testing.assert_array_equal(images, expected)
    needed = pipeline.model_cpu_offload_seq.split("->")
    present = [getattr(pipeline, name) for name in needed if getattr(pipeline, name) is not None]
    assert {id(model) for model in called} == {id(model) for model in present}
    pipeline.remove_all_hooks()


@pytest.mark.parametrize("offload_type", ["leaf_level", "block_level"])
def test_group_offloading(case, offload_type):
    """With the CPU itself as the accelerator: the hooks are called, and change nothing."""
    options, pipeline = case
    expected = draw(pipeline, options)
    cpu = torch.device("cpu")
    blocks = {"num_blocks_per_group": 1} if offload_type == "block_level" else {}
    pipeline.enable_group_offload(
        onload_device=cpu, offload_device=cpu, offload_type=offload_type, **blocks
    )
    np.testing.assert_array_equal(draw(pipeline, options), expected)


def test_the_progress_bar_can_be_switched_off(case, capfd):
    options, pipeline = case
    draw(pipeline, options)
    assert capfd.readouterr().err == ""
    pipeline.set_progress_bar_config(disable=False)
    pipeline(**options)
    assert "100%" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"batch_size": 0}, "batch_size=0"),
        ({"batch_size": 2, "generator": [seeded()]}, "1 generators for batch_size=2"),
        ({"output_type": "jpg"}, "output_type='jpg' is unknown"),
        ({"class_labels": 99}, "class_labels"),
        ({"latents": torch.zeros(2, 1, 1, 1, 1)}, "latents"),
    ],
)
def test_bad_input_is_refused_in_one_line(case, wrong, said):
    options, pipeline = case
    with pytest.raises((ValueError, TypeError), match=said) as caught:
        pipeline(**{**options, **wrong})
    assert "\n" not in str(caught.value)


def test_the_base_class_asks_for_the_flag(case, tmp_path):
    _, pipeline = case
    pipeline.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        DiffusionPipeline.from_pretrained(tmp_path)
