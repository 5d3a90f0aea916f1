"""``make demo``: train ``mnist-vae`` on bundled digits, print its test ELBO, and load the result as
anybody would.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from hfgen.cli import main
from hfgen.data import load_source
from hfgen.evaluation import log_likelihood
from hfgen.hub.load import load
from hfgen.recipe import load as load_recipe

RUN = Path("runs/demo")
ELSEWHERE = """
from diffusers import DiffusionPipeline
pipeline = DiffusionPipeline.from_pretrained("runs/demo/pipeline", trust_remote_code=True)
for number, image in enumerate(pipeline(batch_size=4).images):
    image.save(f"runs/demo/image-{number}.png")
print("images:   runs/demo/image-0.png ... image-3.png, from a new process")
"""


def demo() -> int:
    """Exit status: 0 when everything worked."""
    status = main(["train", "mnist-vae", "--overwrite", "--output_dir", str(RUN)])
    if status != 0:
        return status
    test = load_source(load_recipe("mnist-vae").data, split="validation")
    elbo = log_likelihood(load(RUN), test, bound="elbo")
    print(f"test ELBO: {elbo.nats:.2f} nats on {len(test)} held-out digits")
    grid = sorted((RUN / "samples").glob("*.png"))[-1]
    print(f"grid:     {grid}", flush=True)
    return subprocess.run([sys.executable, "-W", "ignore", "-c", ELSEWHERE]).returncode


if __name__ == "__main__":
    sys.exit(demo())
