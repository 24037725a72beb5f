"""File names in the folder of a run. They are here because models, evaluations and exports need them too."""

from __future__ import annotations

RECIPE = "recipe.yaml"  # what was trained, every field
# how it was trained: DeepSpeed configuration, batch table, fingerprints, text lost in tokenization, machine, command;
# written again on resume
RECORD = "run.json"
INCARNATIONS = "incarnations.jsonl"  # the processes that have owned the run, in order; the last one owns it now
REQUEUES = "requeues"  # the start since which the job has made no new checkpoint (`slurm/common.sh`)
LOCK = ".lock"  # locked by the process that writes the run
STATUS = "status.json"  # the current state (`diffcse-scale status`)
STOP = "stop"  # created to make the run checkpoint and exit; the run then removes it
METRICS = "metrics.jsonl"  # one row per log line and one per evaluation
TRACKING = "tracking"  # a folder for each tracker of --track (`trackers.py`)
CHECKPOINTS = "checkpoints"  # to resume from (`manifest.py`)
HANG = "hang"  # stacks of the ranks that waited for a silent one (`watchdog.py`)
NONFINITE = "nonfinite"  # findings about numbers that were not finite (`nonfinite.py`)
BEST = "best"  # the encoder with the best development score so far, and the projection of the same step
MODEL = "model"  # the result: loads in sentence-transformers and transformers; README.md is its card
PROJECTION = "projection.safetensors"  # the trained projection, for `diffcse-scale export --with-projection`
CURVES = "curves.png"  # losses and development score against steps
EVALUATIONS = "evaluation"  # results of `diffcse-scale evaluate` (`recorded.py`)
RESULT = "result.json"  # written last; a run without it has not finished
