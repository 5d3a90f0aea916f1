"""Evaluates in each of several processes; the main one writes what it saw. Run by test_evaluate."""

import json
import sys
from pathlib import Path

from hfgen.evaluation import evaluate
from hfgen.evaluation.world import world
from tests.evaluation.test_evaluate import ALL_FREE, backbone, source, vae_pipeline

output = Path(sys.argv[1])
results = evaluate(
    vae_pipeline(),
    data=source(),
    num_images=150,
    metrics=ALL_FREE,
    backbone=backbone(),
    output=output,
    cache_dir=str(output / "cache"),
    progress=False,
)
if world().is_main_process:
    seen = [{"processes": world().num_processes, "values": results.values()}]
    (output / "seen.json").write_text(json.dumps(seen))
world().destroy_process_group()
