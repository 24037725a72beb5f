"""Train DiffCSE. The whole program on one page: read the recipe, build, fit.

    deepspeed train.py --deepspeed_config ds_configs/zero2.json                          # the embedded example
    deepspeed --num_gpus 8 train.py --deepspeed_config ds_configs/zero2.json \\
        --recipe bert_base_sts data.files=corpus.txt evaluation.data=sts/ --output runs/mine
    deepspeed ... --output runs/mine --resume                                             # continue that run
    python train.py --recipe quickstart                                                   # one process
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from pathlib import Path

from diffcse_scale.distributed import is_main, local_rank, rank, world_size
from diffcse_scale.errors import InputError
from diffcse_scale.model.backbone import load_backbone, load_tokenizer
from diffcse_scale.model.diffcse import DiffCSE
from diffcse_scale.model.generator import load_generator
from diffcse_scale.model.official_checkpoint import load_official_checkpoint
from diffcse_scale.randomness import seed_everything
from diffcse_scale.recipe import load_recipe
from diffcse_scale.text.batches import Batches, share_of
from diffcse_scale.text.tokens import tokenize
from diffcse_scale.training import engine as deepspeed_engine
from diffcse_scale.training.console import print_start, print_summary, setup_logging
from diffcse_scale.training.development import DevelopmentSet
from diffcse_scale.training.run_directory import RunDirectory
from diffcse_scale.training.schedule import make_plan
from diffcse_scale.training.trainer import Trainer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="quickstart", help="a shipped recipe or a .yaml file (default: quickstart)")
    parser.add_argument("--deepspeed_config", default=None, help="DeepSpeed JSON (default: the shipped zero2.json)")
    parser.add_argument("--output", default=None, help="run folder (default: runs/<recipe name>)")
    parser.add_argument("--resume", action="store_true", help="continue the run in the output folder")
    parser.add_argument("--local_rank", type=int, default=0, help=argparse.SUPPRESS)  # the launcher passes it
    parser.add_argument("overrides", nargs="*", metavar="section.field=value", help="changes to the recipe")
    arguments = parser.parse_intermixed_args()

    recipe = load_recipe(arguments.recipe, arguments.overrides)
    config = deepspeed_engine.load_deepspeed_config(arguments.deepspeed_config)
    deepspeed_engine.start_process_group()
    setup_logging()
    share_of(recipe.batch.sentences, world_size(), recipe.batch.length_groups)  # before anything is written
    run = RunDirectory.open(arguments.output, recipe, arguments.resume)
    seed_everything(recipe.seed)

    tokenizer = load_tokenizer(recipe.model.encoder, recipe.model.trust_remote_code)
    development = DevelopmentSet.of(recipe, tokenizer)
    generator = load_generator(recipe, tokenizer, deepspeed_engine.device())
    tokens = tokenize(recipe.data, tokenizer, seed=recipe.seed, main=is_main())
    batches = Batches(tokens, tokenizer, recipe, rank(), world_size())
    plan = make_plan(recipe, len(tokens), tokens.views, world_size())

    backbone = load_backbone(recipe.model.encoder, recipe.model.trust_remote_code)
    if recipe.model.gradient_checkpointing:
        backbone.gradient_checkpointing_enable({"use_reentrant": False})  # ZeRO-2 and 3 fail with the reentrant kind
    model = DiffCSE(backbone, recipe.objective, recipe.model.pooling, recipe.model.projection)
    if recipe.model.checkpoint is not None:
        load_official_checkpoint(model, Path(recipe.model.checkpoint))
    config = deepspeed_engine.complete_config(config, recipe, plan)
    engine = deepspeed_engine.initialize(model, recipe, config)

    run.describe(recipe, plan=asdict(plan), deepspeed_config=config, data_fingerprint=tokens.fingerprint)
    print_start(recipe, plan, deepspeed_engine.precision(config), engine.zero_optimization_stage())
    trainer = Trainer(recipe, plan, engine, generator, batches, tokenizer, development, run)
    if arguments.resume:
        trainer.resume()
    print_summary(recipe, run, trainer.fit())


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        if local_rank() == 0:  # once a machine: not every machine need see the same mistake
            print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
