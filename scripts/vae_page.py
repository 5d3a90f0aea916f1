"""Fill the tables of ``docs/vae.md`` from ``docs/results/`` and ``docs/benchmarks/vae.json``.

python scripts/vae_page.py
"""

from __future__ import annotations

import json
from pathlib import Path

from coverage import find, header, minutes, read_results, show

DOCS = Path(__file__).parents[1] / "docs"
PAGE = DOCS / "vae.md"
SPRITES = ("sprites-vae", "sprites-beta-vae", "sprites-factor-vae", "sprites-beta-tcvae")
FACTORS = {
    "mig": "MIG",
    "dci_disentanglement": "DCI disentanglement",
    "dci_completeness": "DCI completeness",
    "sap": "SAP",
    "factor_vae_score": "FactorVAE score",
    "psnr": "PSNR",
    "active_units": "units in use",
}


def main() -> None:
    page = PAGE.read_text()
    tables = {"disentanglement": disentanglement(), "speed": speed()}
    for name, lines in tables.items():
        first, last = f"<!-- {name} -->", f"<!-- /{name} -->"
        before, rest = page.split(first)
        page = f"{before}{first}\n" + "\n".join(lines) + f"\n{last}{rest.split(last)[1]}"
    PAGE.write_text(page)


def disentanglement() -> list[str]:
    """Scores of the VAEs of sprites, as far as they are measured."""
    results = read_results()
    lines = header("recipe", *FACTORS.values(), "time")
    for name in SPRITES:
        if name in results:
            row = results[name]
            scores = [show(find(row["scores"], score)) for score in FACTORS]
            lines.append(f"| {' | '.join([f'`{name}`', *scores, minutes(row)])} |")
    return lines


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
