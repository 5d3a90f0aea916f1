"""Our metrics beside the peers', in one run on the same features: CPU-seconds, memory and values.

    python benchmarks/evaluation.py --output docs/benchmarks/evaluation.json

Each measurement is a process of its own on the same seeded features, so that its peak memory is
that of one metric. By default with one thread, where CPU-seconds do not count threads that wait
for one another. Who is measured alternates in several rounds, and the best round counts, since a
shared machine changes its speed from minute to minute. Peers come from the package index:
torch-fidelity (imported with an empty stub of torchvision), prdc, scipy.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
SMALL = 1000
TARGETS = {
    ("frechet", "torch-fidelity"): 4,
    ("frechet", "scipy"): 8,
    ("frechet_small", "torch-fidelity"): 5,
    ("frechet_small", "scipy"): 5,
    ("prdc", "prdc"): 4,
    ("kid", "torch-fidelity"): 1.5,
}
CASES = {
    "frechet": ["hfgen", "torch-fidelity", "scipy"],
    "frechet_small": ["hfgen", "torch-fidelity", "scipy"],
    "prdc": ["hfgen", "prdc"],
    "kid": ["hfgen", "torch-fidelity"],
    "frechet_error": ["hfgen"],
}


def features(samples: int, dimensions: int):
    """Two sets of correlated, rectified features, as those of a network are; float32."""
    draw = np.random.default_rng(0)
    mix = (draw.normal(size=(dimensions, dimensions)) / dimensions**0.5).astype(np.float32)
    sets = []
    for shift in (0.2, 0.25):
        x = draw.normal(size=(samples, dimensions)).astype(np.float32)
        sets.append(np.maximum(x @ mix + np.float32(shift), 0))
    return sets


def frechet_hfgen(a, b):
    from hfgen.evaluation.metrics import frechet_distance

    return lambda: frechet_distance(a, b)


def frechet_torch_fidelity(a, b):
    import torch

    peer = _torch_fidelity("metric_fid")

    def run():
        parts = [peer.fid_features_to_statistics(torch.from_numpy(x)) for x in (a, b)]
        return peer.fid_statistics_to_metric(*parts, verbose=False)["frechet_inception_distance"]

    return run


def frechet_scipy(a, b):
    from scipy.linalg import sqrtm

    def run():
        s1, s2 = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
        shift = a.mean(0) - b.mean(0)
        return float(
            shift @ shift + np.trace(s1) + np.trace(s2) - 2 * np.trace(sqrtm(s1 @ s2).real)
        )

    return run


def frechet_error_hfgen(a, b):
    from hfgen.evaluation.metrics import frechet_distance_with_error

    return lambda: frechet_distance_with_error(a, b).standard_error


def prdc_hfgen(a, b):
    from hfgen.evaluation.metrics import prdc

    def run():
        found = prdc(a, b, 5)
        return [found.precision, found.recall, found.density, found.coverage]

    return run


def prdc_prdc(a, b):
    from prdc import compute_prdc

    def run():
        found = compute_prdc(a, b, 5)
        return [float(found[k]) for k in ("precision", "recall", "density", "coverage")]

    return run


def kid_hfgen(a, b):
    from hfgen.evaluation.metrics import kernel_distance

    return lambda: kernel_distance(a, b).value


def kid_torch_fidelity(a, b):
    import torch

    peer = _torch_fidelity("metric_kid")
    options = {"kid_subsets": 100, "kid_subset_size": 1000, "verbose": False}
    x, y = torch.from_numpy(a), torch.from_numpy(b)
    return lambda: peer.kid_features_to_metric(x, y, **options)["kernel_inception_distance_mean"]


def _torch_fidelity(module: str):
    sys.path.insert(0, str(ROOT))
    from tests.evaluation.peers import torch_fidelity

    return torch_fidelity(module)


def measure(case: str, who: str, folder: str) -> dict:
    """One measurement, in this process."""
    import torch

    count = SMALL if case == "frechet_small" else None
    a, b = (np.load(Path(folder) / name)[:count] for name in ("a.npy", "b.npy"))
    base = "frechet" if case == "frechet_small" else case
    run = globals()[f"{base}_{who.replace('-', '_')}"](a, b)
    torch.linalg.eigvalsh(torch.eye(8, dtype=torch.float64))  # library start-up is not the metric's
    before = resource.getrusage(resource.RUSAGE_SELF)
    memory_before = before.ru_maxrss
    value = run()
    after = resource.getrusage(resource.RUSAGE_SELF)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {
        "case": case,
        "who": who,
        "cpu_seconds": round(seconds, 3),
        "peak_mb_above_start": round((after.ru_maxrss - memory_before) / 1024),
        "peak_mb": round(after.ru_maxrss / 1024),
        "value": value,
    }


def spawn(case: str, who: str, folder: str, threads: int) -> dict:
    """One measurement, in a process of its own."""
    limits = {f"{name}_NUM_THREADS": str(threads) for name in ("OMP", "MKL", "OPENBLAS")}
    command = [sys.executable, __file__, "--measure", case, who, folder]
    done = subprocess.run(command, env={**os.environ, **limits}, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return json.loads(done.stdout.splitlines()[-1])


def compare(case: str, folder: str, threads: int, rounds: int) -> list[dict]:
    """All of one case, with ratios to ours."""
    measured: dict[str, list[dict]] = {who: [] for who in CASES[case]}
    for _ in range(rounds):
        for who, results in measured.items():
            results.append(spawn(case, who, folder, threads))
    found = []
    for who, results in measured.items():
        result = min(results, key=lambda one: one["cpu_seconds"])
        result["rounds"] = [one["cpu_seconds"] for one in results]
        found.append(result)
        ours = found[0]
        result["threads"] = threads
        result["ratio_to_hfgen"] = round(result["cpu_seconds"] / ours["cpu_seconds"], 2)
        result["target_ratio"] = TARGETS.get((case, who))
        memory = result["peak_mb_above_start"]
        result["hfgen_memory_ratio"] = round(ours["peak_mb_above_start"] / max(memory, 1), 2)
        cost = f"{result['cpu_seconds']:8.2f} CPU-s {result['peak_mb_above_start']:6} MB"
        ratio = f"{result['ratio_to_hfgen']:6.2f}x"
        print(f"{threads} {case:14} {who:15} {cost} {ratio} {result['value']}", flush=True)
    return found


def hardware() -> dict:
    cpu = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line]
    return {
        "cpu": cpu[0].split(":")[1].strip() if cpu else platform.processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "numpy", "scipy", "torch-fidelity", "prdc")},
    }


def save(path: Path, options: argparse.Namespace, results: list[dict]) -> None:
    """The report, with the rows that were not measured anew."""
    size = {"samples": options.samples, "dimensions": options.dimensions}
    about = {**size, "hardware": hardware()}
    before = json.loads(path.read_text()) if path.exists() else {}
    comparable = all(before.get(key) == value for key, value in about.items())
    again = {(one["case"], one["threads"]) for one in results}
    old = before["results"] if comparable else []
    kept = [one for one in old if (one["case"], one["threads"]) not in again]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**about, "results": kept + results}, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--dimensions", type=int, default=2048)
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=CASES)
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--output", help="rows of other cases and threads in it are kept")
    parser.add_argument("--measure", nargs=3)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(*options.measure)))
        return
    results = []
    with tempfile.TemporaryDirectory() as folder:
        a, b = features(options.samples, options.dimensions)
        np.save(Path(folder) / "a.npy", a)
        np.save(Path(folder) / "b.npy", b)
        del a, b
        for threads in options.threads:
            for case in options.cases:
                results += compare(case, folder, threads, options.rounds)
                if options.output:
                    save(Path(options.output), options, results)


if __name__ == "__main__":
    main()
