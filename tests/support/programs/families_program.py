"""Every family trains three steps and exports, one after another in one launch.

    deepspeed --num_gpus 2 tests/support/programs/families_program.py --stage 3 --models MODELS --output OUTPUT

Each subfolder of MODELS holds a model, its tokenizer, `corpus.txt` and the overrides of its recipe. OUTPUT/<name> gets
the run with its exported model and `trained.npy`, the vectors of SENTENCES as the engine's own encoder gives them.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np

from diffcse_scale.distributed import is_main, rank, world_size
from diffcse_scale.engine.configuration import complete_config
from diffcse_scale.engine.engine import initialize, partitioned_loading
from diffcse_scale.engine.launch import device, start_process_group
from diffcse_scale.model.backbone import load_tokenizers
from diffcse_scale.model.build import build_model
from diffcse_scale.model.encoder import encode_sentences
from diffcse_scale.model.generator import load_generator
from diffcse_scale.recipe_file import load_recipe
from diffcse_scale.runs.directory import RunDirectory
from diffcse_scale.supervision.supervision import Supervision
from diffcse_scale.supervision.watchdog import Watchdog
from diffcse_scale.text.batches import Batches
from diffcse_scale.text.tokens import tokenize
from diffcse_scale.training.schedule import make_plan
from diffcse_scale.training.standard_hooks import all_hooks
from diffcse_scale.training.trainer import Trainer

STEPS = 3
MAX_LENGTH = 24
SENTENCES = ["a dog runs", "the cat", "a dog runs fast over green grass and barks at the cat"]


def train(folder: Path, stage: int, output: Path) -> None:
    """One model, as train.py does it."""
    overrides = [
        *(f"model.encoder={folder}", "model.generator=null", f"data.files={folder / 'corpus.txt'}", "data.workers=1"),
        *(f"data.cache_dir={folder / 'cache'}", f"data.max_length={MAX_LENGTH}", "batch.sentences=8"),
        *(f"max_steps={STEPS}", "log_every=1", "evaluation.data=null", f"evaluation.max_length={MAX_LENGTH}"),
        *json.loads((folder / "overrides.json").read_text()),
    ]
    recipe = load_recipe("quickstart", overrides)
    # nothing stays whole at ZeRO-3: the default would leave every tensor of a model this small on all ranks
    config = {"zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 0}}
    if stage != 3:
        del config["zero_optimization"]["stage3_param_persistence_threshold"]
    config = complete_config(config, recipe, world_size())
    run = RunDirectory.open(str(output), recipe, start="new")
    tokenizers = load_tokenizers(recipe.model)
    with partitioned_loading(config, recipe):
        model = build_model(recipe, tokenizers)
    generator = load_generator(recipe, tokenizers, device())
    tokens = tokenize(recipe.data, tokenizers.streams, seed=recipe.seed, main=is_main())
    batches = Batches(tokens, tokenizers, recipe, rank(), world_size())
    plan = make_plan(recipe, len(tokens), tokens.views, world_size())
    engine = initialize(model, recipe, config)
    run.describe(recipe, plan=asdict(plan), precision="float32", data_fingerprint=tokens.fingerprint)
    supervision = Supervision(run, Watchdog(run.hang, patience=600))
    Trainer(
        recipe, plan, engine, generator, batches, tokenizers.encoder, run, supervision, all_hooks(recipe, None)
    ).fit()
    # all ranks together, as ZeRO-3 wants it
    vectors = encode_sentences(engine.module.encoder, tokenizers.encoder, SENTENCES, MAX_LENGTH)
    if is_main():
        np.save(output / "trained.npy", vectors)
    engine.destroy()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--stage", type=int, required=True)
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--local_rank", type=int, default=0)
    arguments = parser.parse_args()
    start_process_group()
    for folder in sorted(arguments.models.iterdir()):
        train(folder, arguments.stage, arguments.output / folder.name)


if __name__ == "__main__":
    main()
