"""The names in the folder of a run. They stand down here because models, evaluations and exports know them too."""

from __future__ import annotations

RECIPE = "recipe.yaml"  # what was trained, every field
# how: DeepSpeed configuration, batch table, fingerprints, what tokenization lost, machine, command; again on resume
RECORD = "run.json"
INCARNATIONS = "incarnations.jsonl"  # the processes that have had the run, one after another; the last one owns it
REQUEUES = "requeues"  # since which start its job has made no new checkpoint (`slurm/common.sh`)
LOCK = ".lock"  # of the process that writes there
STATUS = "status.json"  # where it is now (`diffcse-scale status`)
STOP = "stop"  # put there by whoever wants the run to checkpoint and leave; it is taken away when that is done
METRICS = "metrics.jsonl"  # a row a log line and a row an evaluation
TRACKING = "tracking"  # what the trackers of --track keep here, a folder each (`trackers.py`)
CHECKPOINTS = "checkpoints"  # to resume from (`manifest.py`)
HANG = "hang"  # stacks of the ranks that waited for a silent one (`watchdog.py`)
NONFINITE = "nonfinite"  # what was found where numbers were not finite (`nonfinite.py`)
BEST = "best"  # the encoder with the best development score so far, and the projection of the same step
MODEL = "model"  # the result: loads in sentence-transformers and transformers; README.md is its card
PROJECTION = "projection.safetensors"  # what was trained with it, for `diffcse-scale export --with-projection`
CURVES = "curves.png"  # losses and development score against steps
EVALUATIONS = "evaluation"  # what `diffcse-scale evaluate` has found (`recorded.py`)
RESULT = "result.json"  # written last; a run without it has not finished
