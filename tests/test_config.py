"""Configuration: strict, with one line that names key, origin and what is valid."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hfgen import recipe as recipes
from hfgen.build import build_component, build_components
from hfgen.config import merge, nest, parse_overrides, parse_yaml, to_yaml
from hfgen.data import DataSpec
from hfgen.errors import HfgenError


@pytest.mark.parametrize("name", recipes.bundled())
def test_a_recipe_is_its_own_yaml(name):
    recipe = recipes.load(name)
    assert recipes.decode(parse_yaml(recipe.to_yaml(), "x")) == recipe


@pytest.mark.parametrize(
    ("settings_", "said"),
    [
        (
            ["--training.max_step", "5"],
            "command line: unknown key 'training.max_step'; did you mean 'max_steps'?",
        ),
        (["--trainin.max_steps", "5"], "unknown key 'trainin'; did you mean 'training'?"),
        (
            ["--training.max_steps", "1.5"],
            "training.max_steps: expected a whole number or null, got 1.5",
        ),
        (["--training.max_steps", "true"], "expected a whole number or null, got True"),
        (["--training.max_steps", "+1000"], "expected a whole number or null, got '+1000'"),
        (["--training.max_steps", "0"], "max_steps must be positive, got 0"),
        (["--training.total_batch_size", "-4"], "total_batch_size must be positive, got -4"),
        (["--training.seed", "null"], "training.seed: expected a whole number, got None"),
        (["--data.random_flip", "1"], "data.random_flip: expected true or false, got 1"),
        (["--training.mixed_precision", "fp8"], "expected one of 'no', 'bf16', 'fp16', got 'fp8'"),
        (["--objective.type", "elb"], "objective.type: unknown value 'elb'; did you mean 'elbo'?"),
        (["--objective.likelihood", "gauss"], "unknown value 'gauss'"),
        (["--objective.likelihood.std", "0.1"], "unknown key 'objective.likelihood.std'"),
        (["--objective.beta", "-1"], "beta must be at least 0, got -1"),
        (["--objective.type", "gan"], "the objective trains 'discriminator'"),
        (["--logging.report_to", "wandbb"], "unknown tracker 'wandbb'"),
        (["--optimizer.learning_rate", "0"], "learning_rate must be positive, got 0"),
        (["--format_version", "9"], "format_version: 9 is not 1"),
        (["--training.max_steps"], "--training.max_steps needs a value"),
        (["max_steps"], "unexpected 'max_steps'"),
        (["--data.path", "[1"], "is not valid YAML"),
    ],
)
def test_a_mistake_is_one_line(settings_, said):
    with pytest.raises(HfgenError) as caught:
        recipes.load("mnist-vae", settings_)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["AutoencoderKL", "LadderVAE"])
def test_a_flow_needs_a_flat_latent(kind):
    with pytest.raises(HfgenError, match=f"{kind} has one of its own; flows .* need the flat"):
        build_component("vae", {"type": kind, "posterior": {"type": "iaf"}})


SPACES = [
    ("mnist-poincare-vae", "gaussian", "PoincarePrior does not go with .* gaussian: .* flat space"),
    ("mnist-svae", "poincare", "SphereUniformPrior does not go with .*; valid: PoincarePrior"),
    ("mnist-vae", "vmf", "none does not go with .* vmf: .*; valid: SphereUniformPrior"),
]


@pytest.mark.parametrize(("name", "posterior", "said"), SPACES)
def test_posterior_and_prior_live_on_one_space(name, posterior, said):
    recipe = recipes.load(name, {"model": {"vae": {"posterior": {"type": posterior}}}})
    data = DataSpec(
        name="x", split="train", num_images=1, channels=1, height=28, width=28, fingerprint="x"
    )
    with pytest.raises(HfgenError, match=said):
        build_components(recipe, data)


def test_an_unknown_recipe_names_the_near_one():
    with pytest.raises(HfgenError, match="did you mean 'mnist-vae'"):
        recipes.load("mnist-vea")


def test_a_broken_file_is_named_with_its_line(tmp_path):
    file = tmp_path / "my.yaml"
    file.write_text("name: a\n  family: [vae\n")
    with pytest.raises(HfgenError, match=r"my\.yaml: line 2"):
        recipes.load(str(file))


def test_a_key_of_a_file_is_blamed_on_the_file(tmp_path):
    file = tmp_path / "my.yaml"
    file.write_text("base: mnist-vae\ndata: {pth: x}\n")
    with pytest.raises(HfgenError, match=r"my\.yaml: unknown key 'data\.pth'; did you mean 'path'"):
        recipes.load(str(file))


def test_another_optimizer_keeps_the_learning_rate():
    below = {"optimizer": {"type": "adamw", "learning_rate": 2e-4, "roles": {"unet": {"lr": 1}}}}
    merged = merge(below, {"optimizer": {"type": "adam", "adam_beta1": 0.5}})
    assert merged["optimizer"] == {**below["optimizer"], "type": "adam", "adam_beta1": 0.5}


def test_a_new_type_drops_the_old_types_keys():
    recipe = recipes.load(
        "mnist-vae",
        ["--objective.likelihood.type", "gaussian", "--objective.likelihood.std", "0.5"],
    )
    written = recipe.to_dict()["objective"]["likelihood"]
    assert written["type"] == "gaussian" and written["std"] == 0.5 and "logits" not in written


def test_numbers_are_read_as_yaml_1_2():
    assert parse_overrides(["--a", "1e-4", "--b=yes", "--c", "1_000", "--d", "-2"]) == {
        "a": 1e-4,
        "b": "yes",
        "c": 1000,
        "d": -2,
    }


names = st.text("abc", min_size=1, max_size=2)
trees = st.recursive(
    st.one_of(
        st.integers(),
        st.booleans(),
        st.none(),
        st.floats(allow_nan=False, allow_infinity=False),
        st.text("ab c1-:", max_size=6),
    ),
    lambda inner: st.dictionaries(names, inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(names, trees, max_size=4))
def test_yaml_round_trip(values):
    assert parse_yaml(to_yaml(values), "x") == values or values == {}


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(names, trees, max_size=3), st.dictionaries(names, trees, max_size=3))
def test_merge_keeps_what_is_on_top(base, over):
    merged = merge(base, over)
    assert merge(merged, over) == merged
    assert set(merged) == {*base, *over}


def test_nest_refuses_a_value_and_a_key_inside_it():
    with pytest.raises(HfgenError, match="was given a value and a key inside it"):
        nest({"a": 1, "a.b": 2})
