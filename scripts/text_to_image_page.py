"""Fill the results of ``docs/text-to-image.md`` from ``docs/results/``, and draw its pictures of
prompts x samples from exported pipelines.

    python scripts/text_to_image_page.py                                  # the tables
    python scripts/text_to_image_page.py --draw emoji-dalle emoji-latent-t2i

Each prompt is marked by what the training captions say of it: ``seen``, ``held out`` (a caption of
the test split alone) or ``new`` (a combination of words that no caption of either has).
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from coverage import header, minutes, read_results, show

from hfgen import recipe as recipes
from hfgen.build import pipeline_class
from hfgen.data import load_source
from hfgen.data.captions import unseen_words, words
from hfgen.hub.load import load
from hfgen.samples import draw, prompt_sheet, sample_call

DOCS = Path(__file__).parents[1] / "docs"
PAGE = DOCS / "text-to-image.md"
SYSTEMS = {
    "emoji-dalle": "codes, transformer",
    "emoji-latent-t2i": "latent diffusion, UNet, our CLIP",
    "emoji-latent-mmdit": "latent flow, MMDiT, MiniLM",
}
COLUMNS = {
    "FD": "fd",
    "precision": "precision",
    "recall": "recall",
    "CLIP score": "clip_score",
    "R-precision": "r_precision",
    "bits/dim of the codes": "code_bits_per_dim",
}
PROMPTS = (
    *("green heart", "grinning face", "japan flag", "clock face nine oclock"),
    *("pink heart", "large red circle", "large blue square", "woman: red hair"),
    *("purple book", "blue apple", "large green diamond", "orange cat face"),
)
SAMPLES = 6


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--draw", nargs="*", default=[], help="recipes with a finished run")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--data", help="where the recipe's images lie, if elsewhere here")
    options = parser.parse_args()
    for name in options.draw:
        print(sheet(options.runs / name, name, options.data))
    PAGE.write_text(filled(PAGE.read_text()))


def sheet(run: Path, name: str, path: str | None = None) -> Path:
    """Six samples of each prompt, with the guidance of the run's recipe."""
    recipe = recipes.decode(recipes.read(run / "recipe.yaml"))
    data = replace(recipe.data, path=path or recipe.data.path)
    splits = [load_source(data, split=split) for split in ("train", "validation")]
    train, test = ({*source.captions(range(len(source)))} for source in splits)
    repeated = [text for text in PROMPTS for _ in range(SAMPLES)]
    call = sample_call(pipeline_class(recipe.pipeline), recipe)
    images = draw(load(run), len(repeated), prompt=repeated, **call)
    picture = DOCS / "images" / f"{name}-prompts.png"
    labels = [f"{text} ({kind(text, train, test)})" for text in PROMPTS]
    prompt_sheet(images, labels).save(picture)
    return picture


def kind(prompt: str, train: set[str], test: set[str]) -> str:
    """What the captions of the splits say of a prompt."""
    if prompt in train:
        return "seen"
    unknown = unseen_words([prompt], words(train))
    where = "held out" if prompt in test else "new"
    return f"{where}, unknown: {' '.join(unknown)}" if unknown else where


def filled(page: str) -> str:
    """``page`` with its results between the marks."""
    first, last = "<!-- results -->", "<!-- /results -->"
    before, rest = page.split(first)
    lines = "\n".join([*systems(read_results()), "", *pictures()])
    return f"{before}{first}\n{lines}\n{last}{rest.split(last)[1]}"


def systems(results: dict[str, dict[str, Any]]) -> list[str]:
    """The measured systems; under them real images, and what an untrained network gets."""
    lines = header("recipe", "system", *COLUMNS, "training, one core")
    measured = {name: results[name] for name in SYSTEMS if name in results}
    for name, result in measured.items():
        cells = [f"`{name}`", SYSTEMS[name], *scores(result["scores"]), minutes(result)]
        lines.append(f"| {' | '.join(cells)} |")
    for name, result in measured.items():
        untrained = scores(result["baselines"]["untrained network"])
        lines.append(f"| `{name}` | untrained | {' | '.join(untrained)} | |")
    for result in [*measured.values()][:1]:
        real = {score["name"]: score for score in result["scores"]}
        found = [f"real_{name}" for name in COLUMNS.values()]
        cells = [show(real[name]) if name in real else "" for name in found]
        lines.append(f"| held-out images | | {' | '.join(cells)} | |")
    return [*lines, "", *retrieval(results)]


def scores(found: list[dict[str, Any]]) -> list[str]:
    named = {score["name"]: score for score in found}
    return [show(named[name]) if name in named else "" for name in COLUMNS.values()]


def retrieval(results: dict[str, dict[str, Any]]) -> list[str]:
    """How far the dual encoder can be trusted."""
    if "emoji-clip" not in results:
        return []
    result = results["emoji-clip"]
    named = {score["name"]: score for score in result["scores"]}
    parts = [f"{name.replace('_', ' ')} {show(score)}" for name, score in named.items()]
    return [
        f"`emoji-clip`, which scores them, on {named['r_precision']['settings']}: "
        f"{', '.join(parts)}; {minutes(result)} of training."
    ]


def pictures() -> list[str]:
    drawn = [name for name in SYSTEMS if (DOCS / "images" / f"{name}-prompts.png").exists()]
    return [f"![{name}](images/{name}-prompts.png)" for name in drawn]


if __name__ == "__main__":
    main()
