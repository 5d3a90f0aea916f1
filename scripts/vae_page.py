"""Fill the tables of ``docs/vae.md`` from ``docs/results/`` and ``docs/benchmarks/vae.json``.

python scripts/vae_page.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from coverage import find, header, minutes, read_results, show, value

from hfgen.data.sprites import FACTOR_NAMES

DOCS = Path(__file__).parents[1] / "docs"
PAGE = DOCS / "vae.md"
PLAIN = "sprites-vae"
SPRITES = (PLAIN, "sprites-beta-vae", "sprites-factor-vae", "sprites-beta-tcvae")
FACTORS = {
    "mig": "MIG",
    "dci_disentanglement": "DCI disentanglement",
    "dci_completeness": "DCI completeness",
    "sap": "SAP",
    "factor_vae_score": "FactorVAE score",
    "psnr": "PSNR",
    "active_units": "units in use",
}
DISENTANGLED = ("mig", "dci_disentanglement", "sap", "factor_vae_score")
"""Scores that the papers find higher than the plain VAE's."""


def main() -> None:
    page = PAGE.read_text()
    tables = {"disentanglement": disentanglement(), "speed": speed()}
    for name, lines in tables.items():
        first, last = f"<!-- {name} -->", f"<!-- /{name} -->"
        before, rest = page.split(first)
        page = f"{before}{first}\n" + "\n".join(lines) + f"\n{last}{rest.split(last)[1]}"
    PAGE.write_text(page)


def disentanglement() -> list[str]:
    """Scores of the VAEs of sprites, as far as they are measured, and where they are not as the
    literature has them.
    """
    results = read_results()
    lines = header("recipe", *FACTORS.values(), "time")
    for name in SPRITES:
        if name not in results:
            lines.append(f"| `{name}` | not measured yet |" + " |" * len(FACTORS))
            continue
        row = results[name]
        scores = [show(find(row["scores"], score)) for score in FACTORS]
        lines.append(f"| {' | '.join([f'`{name}`', *scores, minutes(row)])} |")
    if PLAIN not in results:
        return lines
    plain = results[PLAIN]["scores"]
    verdicts = [
        verdict(name, results[name]["scores"], plain) for name in SPRITES[1:] if name in results
    ]
    return [*lines, "", "The papers find the penalised objectives above the plain VAE.", *verdicts]


def verdict(name: str, scores: list[dict[str, Any]], plain: list[dict[str, Any]]) -> str:
    """On which scores a recipe is below the plain VAE, and what its units in use allow."""
    below = [
        f"{FACTORS[score]} ({value(scores, score):.4g} against {value(plain, score):.4g})"
        for score in DISENTANGLED
        if value(scores, score) < value(plain, score)
    ]
    if not below:
        return f"So it is with `{name}`, on every score."
    units, factors = int(value(scores, "active_units")), len(FACTOR_NAMES)
    limit = (
        f" Only {units} of its units are in use, for {factors} factors: a majority vote names at "
        "most one factor for each, so that the FactorVAE score cannot exceed "
        f"{units / factors:.1f}; the penalty is too strong at this size and length of training."
        if units < factors
        else ""
    )
    return f"`{name}` goes the other way on {', '.join(below)}.{limit}"


def speed() -> list[str]:
    """What ``benchmarks/vae.py`` measured."""
    path = DOCS / "benchmarks" / "vae.json"
    if not path.is_file():
        return ["Not measured on this machine yet."]
    report = json.loads(path.read_text())
    lines = header("model", "pythae 0.1.2", "hfgen", "ratio")
    for name, row in report["images_per_cpu_second"].items():
        cells = [name, f"{row['pythae']:,.0f}", f"{row['hfgen']:,.0f}", f"{row['ratio']:.2f}"]
        lines.append(f"| {' | '.join(cells)} |")
    nats = report["nats_after"]
    return [
        *lines,
        "",
        f"-ln p(x) of 784-400-20 by IW-100 after {nats['cpu_seconds']:g} CPU-seconds each: pythae "
        f"{nats['pythae']:.2f}, hfgen {nats['hfgen']:.2f} nats.",
    ]


if __name__ == "__main__":
    main()
