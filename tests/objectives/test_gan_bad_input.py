"""What a recipe of a GAN cannot mean is said in one line, before a run begins."""

from __future__ import annotations

import pytest

from hfgen.cli import main
from hfgen.models.gan_dcgan import DCGANDiscriminator
from hfgen.objectives.gan import GAN
from hfgen.objectives.gan_regularizers import REGULARIZERS

CASES = {
    "a resolution": (
        ["mnist-dcgan", "--data.resolution", "30"],
        "sample_size 30 cannot be made: the nearest valid sizes are 28 and 32",
    ),
    "a batch of 1 with minibatch statistics": (
        ["emoji-stylegan2-ada", "--training.total_batch_size", "1"],
        "micro-batches of 1 image(s), but the minibatch standard deviation",
    ),
    "micro-batches that are no groups": (
        ["emoji-stylegan2-ada", "--training.gradient_accumulation_steps", "16"],
        "micro-batches of 2 image(s)",
    ),
    "compiling a gradient penalty": (
        ["mnist-wgan-gp", "--training.compile", "true"],
        "torch.compile has no second derivative, which gradient_penalty needs",
    ),
    "no labels for a loss of classes": (
        ["mnist-multi-hinge", "--data.class_conditional", "false"],
        "multi_hinge needs data.class_conditional: true",
    ),
    "labels out of range": (
        [
            "mnist-dcgan",
            "--data.class_conditional",
            "true",
            "--model.generator.num_class_embeds",
            "5",
        ],
        "model.generator.num_class_embeds: is 5, but the data has labels from 0 to 9",
    ),
    "classes for a model that is told none": (
        ["mnist-dcgan", "--model.generator.num_class_embeds", "10"],
        "model.generator.num_class_embeds: is 10, but data.class_conditional is false",
    ),
    "no styles for the path length": (
        ["mnist-dcgan", "--objective.regularizers", "[{type: path_length, every: 1}]"],
        "path_length needs a generator with styles",
    ),
    "a part to freeze": (["mnist-dcgan", "--objective.freeze", "[block]"], "discriminator.block"),
    "roll-backs without measurements": (
        ["mnist-dcgan", "--training.roll_backs", "1"],
        "roll_backs needs evaluate_every",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_one_line(case, tmp_path, capsys):
    words, said = CASES[case]
    more = {"training.max_steps": 1, "training.sample_every": 0, "data.max_images": 128}
    more |= {"training.mixed_precision": "no", "output_dir": tmp_path / "run"}
    options = [str(word) for key, value in more.items() for word in (f"--{key}", value)]
    assert main(["train", *words, *options]) == 2
    errors = [x for x in capsys.readouterr().err.splitlines() if x.startswith("hfgen: error: ")]
    assert len(errors) == 1 and said in errors[0], errors


def test_only_penalties_of_gradients_forbid_compiling():
    models = {"discriminator": DCGANDiscriminator(8, 1, 4)}
    names = {name for name, cls in REGULARIZERS.items() if cls.differentiates}
    assert names == {"r1", "r2", "gradient_penalty", "path_length"}
    GAN(r1_gamma=0).check(models, 1, compiled=True)
