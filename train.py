"""Train DiffCSE. The whole program on one page: read the recipe, build, fit.

deepspeed train.py --deepspeed_config zero2                      # the embedded example; or `python train.py`
deepspeed --num_gpus 8 train.py --recipe bert_base_sts data.files=corpus.txt evaluation.data=sts/ --output runs/mine
deepspeed train.py --output runs/mine --resume                    # continue that run with its own recipe
deepspeed ... --output runs/mine --auto-resume                     # start it, or continue it if it is there
deepspeed ... --dry-run --hook mine:Tell               # check everything, with a hook from mine.py, and stop
sbatch slurm/train.sbatch --recipe bert_base_sts data.files=corpus.txt                # a cluster
"""

from __future__ import annotations

from argparse import Namespace
from dataclasses import asdict

from diffcse_scale.supervision.beginning import begin

begin(__name__)  # before the slow imports

from diffcse_scale.training.train_arguments import parse_arguments

# reports wrong arguments before torch is imported
ARGUMENTS = parse_arguments(__doc__) if __name__ == "__main__" else None

from diffcse_scale.distributed import is_main, rank, world_size
from diffcse_scale.engine.configuration import complete_config, precision
from diffcse_scale.engine.engine import initialize, loading_device, partitioned_loading
from diffcse_scale.engine.launch import device, start_process_group
from diffcse_scale.foundation.environment import code_version
from diffcse_scale.model.backbone import load_tokenizers
from diffcse_scale.model.build import build_model
from diffcse_scale.model.compiled import compile_networks
from diffcse_scale.model.fits import check_first_token
from diffcse_scale.model.generator import load_generator
from diffcse_scale.runs.directory import RunDirectory
from diffcse_scale.supervision.ending import run_to_its_end
from diffcse_scale.supervision.start_checks import check_interconnect, check_same_everywhere, check_world
from diffcse_scale.supervision.supervision import Supervision
from diffcse_scale.supervision.watchdog import Watchdog
from diffcse_scale.text.batches import Batches
from diffcse_scale.text.cache import fingerprint
from diffcse_scale.text.edits import load_edits
from diffcse_scale.text.tokens import tokenize
from diffcse_scale.training.console import print_start, print_summary, setup_logging
from diffcse_scale.training.development import DevelopmentSet, fingerprints
from diffcse_scale.training.hook import load_hooks
from diffcse_scale.training.publishing import publish
from diffcse_scale.training.schedule import make_plan
from diffcse_scale.training.standard_hooks import all_hooks
from diffcse_scale.training.trainer import Trainer
from diffcse_scale.training.views import check_views_differ


def main(arguments: Namespace) -> None:
    recipe, config, added = arguments.recipe, arguments.deepspeed_config, load_hooks(arguments.hook)
    check_world()
    start_process_group(arguments.hang_timeout)
    setup_logging()
    config = complete_config(config, recipe, world_size(), arguments.called)
    check_same_everywhere(
        code_version=code_version(),
        recipe=fingerprint(recipe.model_dump(mode="json")),
        DeepSpeed_configuration=fingerprint(config),
    )
    with (
        RunDirectory.open(arguments.output, recipe, arguments.start) as run,
        Watchdog(run.hang, arguments.hang_timeout, run.failed) as watchdog,
    ):
        with Supervision(run, watchdog).preparing() as supervision:
            interconnect = check_interconnect(device())
            # tokenizing the corpus may take long, so everything that can fail is loaded first
            tokenizers = load_tokenizers(recipe.model)
            if not run.begun:
                check_first_token(tokenizers.encoder, recipe.model.pooling, recipe.model.encoder)
            development = DevelopmentSet.of(recipe, tokenizers)
            with partitioned_loading(config, recipe):
                model = build_model(recipe, tokenizers, loading_device(config, recipe, device()))
            generator = load_generator(recipe, tokenizers, device())
            if recipe.model.compile:
                compile_networks(model, generator)
            engine = initialize(model, recipe, config)
            if not run.begun:
                check_views_differ(engine, recipe, tokenizers.encoder)
            tokens = tokenize(recipe.data, tokenizers.streams, seed=recipe.seed, main=is_main())
            contents = fingerprints(recipe, tokens, development)
            check_same_everywhere(**contents)
            batches = Batches(tokens, tokenizers, recipe, rank(), world_size(), load_edits(tokens, recipe))
            plan = make_plan(recipe, len(tokens), tokens.views, world_size())
            facts = {"plan": asdict(plan), "precision": precision(config), "corpus": tokens.facts(), **contents}
            run.describe(recipe, **facts, interconnect=interconnect, deepspeed_config=config)
            shown = print_start(recipe, plan, precision(config), engine, tokens, tokenizers.encoder, development)
            hooks = all_hooks(recipe, development, added, arguments.track, shown)
            trainer = Trainer(recipe, plan, engine, generator, batches, tokenizers.encoder, run, supervision, hooks)
            if run.is_trial:
                return trainer.without_training(arguments)
            if run.begun:
                trainer.resume()
        print_summary(recipe, run, trainer.fit())
    publish(run.path, arguments.push_to_hub)


if __name__ == "__main__":
    run_to_its_end(lambda: main(ARGUMENTS))
