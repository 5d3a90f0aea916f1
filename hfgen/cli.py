"""``hfgen train | sample | evaluate | compare | push | check | ...``: arguments in, one function
call out.

Nothing heavy is imported before it is known which command runs, so that ``hfgen --help`` answers at
once.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from typing import Any

from hfgen import __version__
from hfgen.errors import HfgenError
from hfgen.memory import keep_freed_memory

TEXT_OPTIONS = (
    "guidance_scale",
    "negative_prompt",
    "num_candidates",
    "temperature",
    "top_k",
    "top_p",
    "keep",
)
"""Options of ``hfgen sample`` that go to the pipeline as they are."""

Command = Callable[[argparse.Namespace, list[str]], int]


def main(arguments: list[str] | None = None) -> int:
    """Run one command; 0 on success, 2 on a user's mistake (one line on stderr), 130/143 when
    stopped by a signal.
    """
    parser = build_parser()
    options, rest = parser.parse_known_args(arguments)
    if rest and not options.takes_settings:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    _quiet_libraries()
    keep_freed_memory()
    try:
        return options.command(options, rest)
    except HfgenError as error:
        # one write: processes of a launch share the stream, unbuffered
        sys.stderr.write(f"hfgen: error: {' '.join(str(error).split())}\n")
        return 2
    except KeyboardInterrupt:
        print("hfgen: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 1


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = argparse.ArgumentParser(
        prog="hfgen", description="Train, measure and share generative models of images."
    )
    parser.add_argument("--version", action="version", version=f"hfgen {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _train_parser(
        _command(
            commands, "train", _train, "train a recipe: hfgen train mnist-vae", takes_settings=True
        )
    )
    _sample_parser(
        _command(
            commands, "sample", _sample, "draw a grid of images from a run, a pipeline or a Hub id"
        )
    )
    _command(commands, "recipes", _recipes, "list the bundled recipes")
    text = "write a run's pipeline anew from one of its checkpoints"
    _export_parser(_command(commands, "export", _export, text))
    text = "make a pipeline with another average of a run's weights"
    _ema_parser(_command(commands, "ema", _ema, text))
    _evaluation_parsers(commands)
    _hub_parsers(commands)
    _fit_prior_parser(
        _command(commands, "fit-prior", _fit_prior, "fit a prior to a trained autoencoder")
    )
    return parser


def _evaluation_parsers(commands: Any) -> None:
    from hfgen.evaluation import command

    text = "measure a model, or a folder of images, against a data set"
    evaluate = _command(commands, "evaluate", command.run_evaluate, text, takes_settings=True)
    command.add_evaluate_arguments(evaluate)
    compare = _command(commands, "compare", command.run_compare, "one report over several runs")
    command.add_compare_arguments(compare)


def _hub_parsers(commands: Any) -> None:
    from hfgen.hub import command

    for name, run, add, text in (
        ("push", command.run_push, command.add_push_arguments, "share a run on the Hub"),
        ("check", command.run_check, command.add_check_arguments, "examine what was shared"),
        ("card", command.run_card, command.add_card_arguments, "write or refresh the model card"),
        ("space", command.run_space, command.add_space_arguments, "share a demo as a Space"),
        ("demo", command.run_demo, command.add_demo_arguments, "serve the demo on this machine"),
    ):
        add(_command(commands, name, run, text))


def _export_parser(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", help="a run's folder")
    parser.add_argument("--checkpoint", default="latest", metavar="latest|best|PATH")
    parser.add_argument("--ema", type=int, default=0, help="which average (default: the first)")


def _ema_parser(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", help="the folder of a run with stored averages (ema.sigma_rels)")
    parser.add_argument("--sigma-rel", type=float, required=True, metavar="W", help="its width")
    parser.add_argument("--output", metavar="FOLDER", help="default: RUN/pipeline-ema-W")


def _fit_prior_parser(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", help="a run's folder; its pipeline gets the prior")
    parser.add_argument("--prior", default="gmm", metavar="KIND")
    parser.add_argument("--num-components", type=int, default=20, help="of a mixture")
    parser.add_argument("--total-images", type=int, default=300_000, help="seen while fitting")
    parser.add_argument("--seed", type=int, default=0)


def _command(
    commands: Any, name: str, run: Command, text: str, takes_settings: bool = False
) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
    parser.set_defaults(command=run, takes_settings=takes_settings)
    return parser


def _train_parser(parser: argparse.ArgumentParser) -> None:
    parser.usage = "hfgen train RECIPE [options] [--section.key VALUE ...]"
    parser.add_argument(
        "recipe",
        help="a bundled recipe (hfgen recipes), a YAML file, a run's folder, or a Hub id",
    )
    parser.add_argument(
        "--resume", metavar="latest|PATH", help="short for --training.resume_from_checkpoint"
    )
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="replace a run that is already in the output folder",
    )
    parser.add_argument(
        "--trust-remote-code", action="store_true", help="let a repository's own code run"
    )
    parser.add_argument(
        "--print-config", action="store_true", help="print the full recipe and stop"
    )
    parser.add_argument(
        "--num-processes",
        type=int,
        metavar="N",
        help="start N processes with Accelerate's launcher",
    )
    parser.add_argument(
        "--config_file", metavar="FILE", help="an `accelerate config` file for the launcher"
    )


def _sample_parser(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="a run's folder, a pipeline's folder or a Hub id")
    parser.add_argument("--num-images", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument(
        "--output", default="grid.png", help="the picture of all images (default: grid.png)"
    )
    parser.add_argument(
        "--class-labels", type=int, nargs="+", metavar="C", help="classes, repeated over the images"
    )
    parser.add_argument("--num-inference-steps", type=int, help="steps of a diffusion sampler")
    parser.add_argument("--guidance-scale", type=float, help="strength of classifier-free guidance")
    parser.add_argument(
        "--prompt", nargs="+", metavar="TEXT", help="texts to draw, --num-images of each"
    )
    parser.add_argument("--negative-prompt", metavar="TEXT", help="what to lead away from")
    parser.add_argument("--rank-with", metavar="CLIP", help="keep the best of --num-candidates")
    parser.add_argument("--num-candidates", type=int, metavar="N", help="drawn for each kept")
    parser.add_argument("--temperature", type=float, help="of an autoregressive model")
    parser.add_argument("--top-k", type=int, metavar="K", help="of an autoregressive model")
    parser.add_argument("--top-p", type=float, metavar="P", help="of an autoregressive model")
    parser.add_argument("--image", metavar="FILE", help="complete this image")
    parser.add_argument("--keep", type=float, help="share of --image that is kept, from the top")
    parser.add_argument("--scheduler", help="a diffusers scheduler class to sample with")
    parser.add_argument(
        "--compare-schedulers",
        type=int,
        nargs="*",
        metavar="STEPS",
        help="quality of all that fit, at these numbers of steps: a table, and a plot (--output)",
    )
    parser.add_argument(
        "--trust-remote-code", action="store_true", help="let the repository's own code run"
    )


def _train(options: argparse.Namespace, settings: list[str]) -> int:
    from hfgen import recipe as recipes
    from hfgen.config import merge, nest, parse_overrides

    over = parse_overrides(settings)
    if options.resume is not None:
        over = merge(over, nest({"training.resume_from_checkpoint": options.resume}))
    if options.print_config:
        print(recipes.load(options.recipe, over).to_yaml(), end="")
        return 0
    from hfgen.run import continued, train_recipe

    options.recipe = continued(options.recipe, over)
    recipe = recipes.load(options.recipe, over)
    asked = options.num_processes is not None or options.config_file is not None
    if asked and "LOCAL_RANK" not in os.environ:
        from hfgen.hub.admit import admit_sources
        from hfgen.launch import launch

        # a worker has no terminal to ask at
        trusted = admit_sources(recipe, trust_remote_code=options.trust_remote_code)
        options.trust_remote_code = bool(trusted)
        return launch(
            options.num_processes, options.config_file, _relaunched(options, settings), recipe
        )
    trust = options.trust_remote_code
    run = train_recipe(recipe, overwrite=options.overwrite, trust_remote_code=trust)
    # Under a launcher a worker that saved and stopped has done well; the launcher's parent says
    # how it ended.
    return 0 if run.finished or "LOCAL_RANK" in os.environ else 128 + run.signal


def _relaunched(options: argparse.Namespace, settings: list[str]) -> list[str]:
    words = ["train", options.recipe, *settings]
    if options.resume is not None:
        words += ["--resume", options.resume]
    flags = {"--overwrite": options.overwrite, "--trust-remote-code": options.trust_remote_code}
    return words + [flag for flag, given in flags.items() if given]


def _sample(options: argparse.Namespace, _: list[str]) -> int:
    if options.compare_schedulers is not None:
        return _compare_schedulers(options)
    from hfgen.samples import sample_to_file

    path = sample_to_file(
        options.model,
        options.output,
        num_images=options.num_images,
        seed=options.seed,
        batch_size=options.batch_size,
        class_labels=options.class_labels,
        scheduler=options.scheduler,
        trust_remote_code=options.trust_remote_code,
        num_inference_steps=options.num_inference_steps,
        prompt=options.prompt,
        rank_with=options.rank_with,
        image=_opened(options.image),
        **{name: getattr(options, name) for name in TEXT_OPTIONS},
    )
    print(path)
    return 0


def _opened(path: str | None) -> Any:
    from PIL import Image, UnidentifiedImageError

    if path is None:
        return None
    try:
        return Image.open(path).copy()
    except (OSError, UnidentifiedImageError) as error:
        raise HfgenError(f"--image {path}: cannot be read as an image: {error}") from None


def _compare_schedulers(options: argparse.Namespace) -> int:
    from hfgen.compare_schedulers import STEPS, compare_schedulers, table

    guidance = {} if options.guidance_scale is None else {"guidance_scale": options.guidance_scale}
    scores = compare_schedulers(
        options.model,
        options.output,
        num_images=options.num_images,
        steps=options.compare_schedulers or STEPS,
        seed=options.seed,
        **guidance,
    )
    print(table(scores), end="")
    return 0


def _export(options: argparse.Namespace, _: list[str]) -> int:
    from hfgen.export import export_checkpoint

    print(f"pipeline: {export_checkpoint(options.run, options.checkpoint, options.ema)}")
    return 0


def _ema(options: argparse.Namespace, _: list[str]) -> int:
    from hfgen.export import export_ema

    print(f"pipeline: {export_ema(options.run, options.sigma_rel, options.output)}")
    return 0


def _fit_prior(options: argparse.Namespace, _: list[str]) -> int:
    from hfgen.export import fit_prior_of_run

    path = fit_prior_of_run(
        options.run,
        options.prior,
        num_components=options.num_components,
        total_images=options.total_images,
        seed=options.seed,
    )
    print(f"pipeline: {path}")
    return 0


def _recipes(options: argparse.Namespace, _: list[str]) -> int:
    from hfgen.recipe import bundled, find, read

    rows = [("name", "family", "data", "what to expect", "2 cores")]
    for name in bundled():
        values = read(find(name))
        data = values.get("data", {}).get("path", "mnist")
        rows.append(
            (
                name,
                values["family"],
                data,
                values.get("expect", "not measured yet"),
                values.get("duration", ""),
            )
        )
    widths = [max(len(row[i]) for row in rows) for i in range(5)]
    for row in rows:
        print(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        )
    return 0


def _quiet_libraries() -> None:
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
