"""Arguments of ``hfgen evaluate`` and ``hfgen compare``, and what they call. Imports nothing heavy
until a command runs.
"""

from __future__ import annotations

import argparse
import ast
from pathlib import Path
from typing import Any

from hfgen.errors import HfgenError

DATA = "data."


def add_evaluate_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``hfgen evaluate``; ``--data.KEY VALUE`` is left to the rest."""
    parser.usage = "hfgen evaluate [MODEL] [options] [--data.KEY VALUE ...]"
    parser.add_argument("model", nargs="?", help="a run's folder, a pipeline's folder or a Hub id")
    parser.add_argument("--images", metavar="FOLDER", help="measure these images, not a model's")
    parser.add_argument("--reference", metavar="FOLDER", help="against these, not a data set")
    parser.add_argument("--metrics", metavar="A,B,...", help="see docs/evaluation.md")
    parser.add_argument("--num-images", type=int, metavar="N", help="samples to draw")
    parser.add_argument("--reference-images", type=int, metavar="N", help="reals to use (all)")
    parser.add_argument(
        "--evaluations", type=int, metavar="N", help="of a network for a likelihood bound (64000)"
    )
    parser.add_argument("--reference-split", choices=("train", "validation"))
    parser.add_argument("--backbone", metavar="NAME", help="of metrics that do not fix one")
    parser.add_argument(
        "--weights", action="append", default=[], metavar="BACKBONE=PATH", help="local weights"
    )
    parser.add_argument("--batch-size", type=int, metavar="N", help="images in one call")
    parser.add_argument("--seed", type=int)
    parser.add_argument("--feature-layer", metavar="NAME", help="of a denoiser's representation")
    parser.add_argument("--feature-noise", type=float, metavar="R", help="sigma/alpha there (0.3)")
    parser.add_argument("--num-inference-steps", type=int, metavar="N")
    parser.add_argument("--guidance-scale", type=float, metavar="W")
    parser.add_argument(
        "--call", action="append", default=[], metavar="NAME=VALUE", help="more call arguments"
    )
    parser.add_argument(
        "--trust-remote-code", action="store_true", help="let code that a model brings run"
    )
    parser.add_argument("--cache-dir", metavar="FOLDER", help="of reference features")
    parser.add_argument("--output", metavar="FOLDER", help="for metrics.json and pictures")
    parser.add_argument(
        "--add", action="store_true", help="keep other scores that the output holds already"
    )


def add_compare_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``hfgen compare``."""
    parser.add_argument("runs", nargs="+", help="evaluated runs, or folders of metrics.json")
    parser.add_argument("--output", default="report", metavar="FOLDER", help="of report.html")
    parser.add_argument("--title", default="Comparison")


def run_evaluate(options: argparse.Namespace, rest: list[str]) -> int:
    """Evaluate, print the table on the main process; 0. HfgenError on a mistake."""
    from hfgen.evaluation.measure import evaluate
    from hfgen.evaluation.world import world

    names = ("num_images", "reference_images", "reference_split", "backbone", "batch_size")
    names += ("evaluations", "seed", "cache_dir", "trust_remote_code")
    names += ("feature_layer", "feature_noise")
    chosen = {name: getattr(options, name) for name in names}
    settings: dict[str, Any] = {name: value for name, value in chosen.items() if value is not None}
    if options.metrics is not None:
        settings["metrics"] = tuple(name for name in options.metrics.split(",") if name)
    call = _pairs("--call", options.call, literal=True)
    if options.num_inference_steps is not None and options.num_inference_steps < 1:
        raise HfgenError(
            f"evaluate: --num-inference-steps {options.num_inference_steps}: must be at least 1"
        )
    for name in ("num_inference_steps", "guidance_scale"):
        if getattr(options, name) is not None:
            call[name] = getattr(options, name)
    model, changes = _untangle(options.model, rest)
    results = evaluate(
        model,
        data=_data(model, changes),
        images=options.images,
        reference=options.reference,
        output=options.output,
        add=options.add,
        weights=_pairs("--weights", options.weights),
        call=call,
        **settings,
    )
    if world().is_main_process:
        print(results.table())
        if results.output:
            print(f"  written: {Path(results.output) / 'metrics.json'}")
    return 0


def run_compare(options: argparse.Namespace, rest: list[str]) -> int:
    """Write the report and print where it is; 0."""
    from hfgen.evaluation.report import compare

    if rest:
        raise HfgenError(f"compare: unknown arguments {' '.join(rest)}")
    print(compare(options.runs, options.output, title=options.title))
    return 0


def _data(model: str | None, changes: dict[str, Any]) -> Any:
    """A ``DataConfig`` of the changes over the run's own data; None without any."""
    if not changes:
        return None
    from hfgen.beside import recipe_data
    from hfgen.evaluation.measure import data_config

    return data_config({**recipe_data(model), **changes}, "command line")


def _untangle(model: str | None, rest: list[str]) -> tuple[str | None, dict[str, Any]]:
    """The model, and ``--data.path mnist --data.channels=1`` as {"path": "mnist", "channels": 1}.

    argparse takes the first free word for the optional MODEL, also one that is the value of a
    ``--data.KEY`` it does not know, and leaves a model that comes after options to the rest.
    """
    words = [part for word in rest for part in (word.split("=", 1) if _is_key(word) else [word])]
    found: dict[str, Any] = {}
    while words:
        word = words.pop(0)
        if not _is_key(word):
            if model is not None or word.startswith("-"):
                raise HfgenError(f"evaluate: unknown argument {word}; settings: --data.KEY VALUE")
            model = word
            continue
        missing = not words or _is_key(words[0])
        if missing and model is None:
            raise HfgenError(f"evaluate: {word} needs a value")
        value, model = (model, None) if missing else (words.pop(0), model)
        found[word.removeprefix(f"--{DATA}")] = _literal(str(value))
    return model, found


def _is_key(word: str) -> bool:
    return word.startswith(f"--{DATA}")


def _pairs(option: str, words: list[str], *, literal: bool = False) -> dict[str, Any]:
    found = {}
    for word in words:
        name, separator, value = word.partition("=")
        if not separator or not name or not value:
            raise HfgenError(f"{option} {word}: expected NAME=VALUE")
        found[name] = _literal(value) if literal else value
    return found


def _literal(text: str) -> Any:
    """A number, true/false/none, or the text itself."""
    words = {"true": True, "false": False, "none": None, "null": None}
    if text.lower() in words:
        return words[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
