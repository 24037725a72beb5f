"""Train DiffCSE. The whole program on one page: read the recipe, build, fit.

    deepspeed train.py --deepspeed_config ds_configs/zero2.json                          # the embedded example
    deepspeed --num_gpus 8 train.py --deepspeed_config ds_configs/zero2.json \\
        --recipe bert_base_sts data.files=corpus.txt evaluation.data=sts/ --output runs/mine
    deepspeed ... --output runs/mine --resume                                             # continue that run
    deepspeed ... --output runs/mine --auto-resume                     # begin it, continue it, or see that it is done
    python train.py --recipe quickstart                                                   # one process
    sbatch slurm/train.sbatch --recipe bert_base_sts data.files=corpus.txt                # a cluster
"""

from __future__ import annotations

import argparse
import errno
import os
import sys
import time
from dataclasses import asdict

from diffcse_scale import launchers  # noqa: F401  before all that takes long

# isort: split
from diffcse_scale.distributed import is_main, leave, local_rank, rank, world_size
from diffcse_scale.environment import code_version
from diffcse_scale.errors import InputError, RunEnded
from diffcse_scale.exit_codes import ExitCode
from diffcse_scale.model.backbone import load_tokenizers
from diffcse_scale.model.build import build_model
from diffcse_scale.model.compiled import compile_networks
from diffcse_scale.model.dropout import check_views_differ
from diffcse_scale.model.generator import load_generator
from diffcse_scale.recipe import load_recipe
from diffcse_scale.text.batches import Batches
from diffcse_scale.text.cache import fingerprint
from diffcse_scale.text.edits import load_edits
from diffcse_scale.text.tokens import tokenize
from diffcse_scale.training import engine as deepspeed_engine
from diffcse_scale.training.console import print_start, print_summary, setup_logging
from diffcse_scale.training.development import DevelopmentSet
from diffcse_scale.training.run_directory import RunDirectory
from diffcse_scale.training.schedule import make_plan
from diffcse_scale.training.start_checks import check_interconnect, check_same_everywhere, check_world
from diffcse_scale.training.supervision import Supervision
from diffcse_scale.training.trainer import Trainer
from diffcse_scale.training.watchdog import Watchdog


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="quickstart", help="a shipped recipe or a .yaml file (default: quickstart)")
    parser.add_argument("--deepspeed_config", default=None, help="DeepSpeed JSON (default: the shipped zero2.json)")
    parser.add_argument("--output", default=None, help="run folder (default: runs/<recipe name>)")
    start = parser.add_mutually_exclusive_group()
    start.set_defaults(start="new")
    for option, value, text in (
        ("--resume", "resume", "continue the run in the output folder"),
        ("--auto-resume", "auto", "begin the run in the output folder, or continue it if it is there"),
        ("--replay", "replay", "compute the step again at which the run stopped for numbers that are not finite"),
    ):
        start.add_argument(option, dest="start", action="store_const", const=value, help=text)
    parser.add_argument(
        "--hang-timeout", type=float, default=600.0, help="seconds after which a silent rank is lost (default: 600)"
    )
    parser.add_argument("--local_rank", type=int, default=0, help=argparse.SUPPRESS)  # the launcher passes it
    parser.add_argument("overrides", nargs="*", metavar="section.field=value", help="changes to the recipe")
    arguments = parser.parse_intermixed_args()

    recipe = load_recipe(arguments.recipe, arguments.overrides)
    config = deepspeed_engine.load_deepspeed_config(arguments.deepspeed_config)
    check_world()
    deepspeed_engine.start_process_group(arguments.hang_timeout)
    setup_logging()
    config = deepspeed_engine.complete_config(config, recipe, world_size())
    check_same_everywhere(
        code_version=code_version(),
        recipe=fingerprint(recipe.model_dump(mode="json")),
        DeepSpeed_configuration=fingerprint(config),
    )
    with (
        RunDirectory.open(arguments.output, recipe, arguments.start) as run,
        Watchdog(run.hang, arguments.hang_timeout, run.failed) as watchdog,
    ):
        supervision = Supervision(run, watchdog)
        with supervision.preparing():
            interconnect = check_interconnect(deepspeed_engine.device())
            # what can be wrong is loaded before the corpus is tokenized, which may take long
            tokenizers = load_tokenizers(recipe.model)
            development = DevelopmentSet.of(recipe, tokenizers)
            with deepspeed_engine.partitioned_loading(config, recipe):
                model = build_model(recipe, tokenizers, deepspeed_engine.device())
            generator = load_generator(recipe, tokenizers, deepspeed_engine.device())
            if recipe.model.compile:
                compile_networks(model, generator)
            tokens = tokenize(recipe.data, tokenizers.streams, seed=recipe.seed, main=is_main())
            check_same_everywhere(corpus=tokens.fingerprint)
            check_views_differ(model.encoder, recipe, tokens.columns)
            batches = Batches(tokens, tokenizers, recipe, rank(), world_size(), load_edits(tokens, recipe))
            plan = make_plan(recipe, len(tokens), tokens.views, world_size())
            engine = deepspeed_engine.initialize(model, recipe, config)

            precision = deepspeed_engine.precision(config)
            facts = {"plan": asdict(plan), "precision": precision, "data_fingerprint": tokens.fingerprint}
            run.describe(recipe, **facts, interconnect=interconnect, deepspeed_config=config)
            print_start(recipe, plan, precision, engine.zero_optimization_stage())
            trainer = Trainer(
                recipe, plan, engine, generator, batches, tokenizers.encoder, development, run, supervision
            )
            if arguments.start == "replay":
                return trainer.replay()
            if run.begun:
                trainer.resume()
        print_summary(recipe, run, trainer.fit())


if __name__ == "__main__":
    try:
        main()
        leave()
    except RunEnded as end:
        if is_main():
            print(end, file=sys.stderr)
        leave()
        sys.exit(end.exit_code)
    except InputError as error:
        if local_rank() > 0:
            # most mistakes are seen by all ranks, and the launcher ends the others when the first leaves; a mistake
            # that only this rank can see is told all the same
            time.sleep(3)
        print(f"error: {error}" if local_rank() == 0 else f"error on rank {rank()}: {error}", file=sys.stderr)
        leave(alone=True)
        sys.exit(ExitCode.MISTAKE)
    except Exception as error:
        if os.strerror(errno.ENOSPC) not in str(error):
            raise
        print(f"error: {error}; the newest whole checkpoint stays; free some and go on with --resume.", file=sys.stderr)
        sys.exit(ExitCode.MISTAKE)
