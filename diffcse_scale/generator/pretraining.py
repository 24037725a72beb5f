"""Masked-LM training of a generator (BERT, Devlin et al. 2019) from raw text.

DiffCSE needs a masked language model that knows the language of the corpus. If there is none (for a new domain or
language), this module trains one: from scratch with a WordPiece vocabulary learnt on the text, or from another model.
The loop is transformers' Trainer, so `torchrun` and bf16 work as usual. The options, the vocabulary, and a head that
reads masked tokens only are our own.
"""

from __future__ import annotations

import math
import os
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import DataLoader
from transformers import (
    BertConfig,
    BertForMaskedLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainingArguments,
)

from diffcse_scale.distributed import broadcast_object, is_main
from diffcse_scale.foundation.durable import apply_umask, publish, save_weights
from diffcse_scale.foundation.environment import environment
from diffcse_scale.foundation.errors import InputError, RunEnded, disk_errors_at
from diffcse_scale.foundation.exit_codes import ExitCode
from diffcse_scale.foundation.finite import NotFinite
from diffcse_scale.foundation.launched import launched_rank
from diffcse_scale.foundation.paths import given_path
from diffcse_scale.foundation.patience import until_written
from diffcse_scale.foundation.randomness import seed_everything, seed_initial_numbers
from diffcse_scale.foundation.secrets import masked
from diffcse_scale.foundation.signals import listening
from diffcse_scale.foundation.strict_json import to_json
from diffcse_scale.generator.masked_lm_trainer import IGNORED, MaskedLMTrainer, Masking, StopRequest, masked_logits
from diffcse_scale.generator.pretrain_options import PretrainOptions
from diffcse_scale.generator.spelling import Spelling, spelling_of
from diffcse_scale.generator.unfinished import PROCESSES, TEXT, Unfinished
from diffcse_scale.generator.wordpiece import wordpiece_of
from diffcse_scale.model.attention import choose_attention_kernels
from diffcse_scale.model.backbone import load_masked_lm, load_tokenizer
from diffcse_scale.model.fits import check_fits
from diffcse_scale.text.sentences import Sentences
from diffcse_scale.text.tokenizers import known_ids
from diffcse_scale.text.tokens import tokenize


def pretrain_generator(options: PretrainOptions) -> dict[str, Any]:
    """Train a masked language model; write it, its tokenizer and `training_record.json` to `options.output`.

    On a CPU with a fixed number of threads the result depends only on the options, unless `seconds` or a signal ends
    the training.

    Returns:
        The record: options, loss curve, loss and accuracy on held-out text before and after, machine, command.

    Raises:
        InputError: the output is not empty, the base is not a masked LM, the corpus cannot be used, another process
            trains for this output, or the interrupted training there has other settings.
        RunEnded: a signal ended the training; the same call continues it.
    """
    if options.seconds is not None and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        # each process has its own clock, so one could stop a step before the others, which would wait for it
        raise InputError("seconds limits a single process only; give steps to train with several.")
    _refuse_existing(options)
    unfinished = Unfinished(_output(options))
    if launched_rank() > 0:
        return _pretrain(options, unfinished)
    with unfinished.held(options.output):
        _refuse_existing(options)  # another process may have written it in the meantime
        record = _pretrain(options, unfinished)
        unfinished.remove()
    return record


def _refuse_existing(options: PretrainOptions) -> None:
    output = _output(options)
    if os.path.lexists(output) and (not output.is_dir() or any(output.iterdir())):
        raise InputError(f"Output {options.output} already exists; choose another folder or remove it.")


def _pretrain(options: PretrainOptions, unfinished: Unfinished) -> dict[str, Any]:
    transformers.utils.logging.disable_progress_bar()
    seed_everything(options.seed)
    unfinished.check(_settings(options))  # before a vocabulary is learnt and the text tokenized
    spelling = None if options.base or options.tokenizer else _spelling(options)
    tokenizer = _tokenizer(options, spelling)
    model = _model(options, tokenizer)
    corpus = _sentences(options, tokenizer)
    facts = {**_settings(options), TEXT: corpus.tokens.fingerprint}
    unfinished.check(facts)
    train, held_out = corpus.split(options.held_out, options.seed)

    arguments = _arguments(options, unfinished)
    # must precede the Trainer, which resets the random state: this evaluation draws from the current one
    before = held_out_accuracy(model.to(arguments.device), tokenizer, held_out, options)
    state = broadcast_object(unfinished.newest())
    _drop_out(model, options.dropout)
    trainer = MaskedLMTrainer(
        unfinished,
        facts,
        model=model,
        args=arguments,
        data_collator=_collator(tokenizer, options),
        train_dataset=train,
        processing_class=tokenizer,
    )
    asked = StopRequest(trainer.pace, 60 * options.save_minutes, options.seconds)
    trainer.add_callback(asked)
    if state is not None and is_main():
        print(f"Continuing from {state}; remove {unfinished.folder} to start over.", flush=True)
    with listening(asked.hear):
        trainer.train(resume_from_checkpoint=None if state is None else str(state))
        if asked.by is not None:
            raise RunEnded(_stopped(asked.by, trainer, unfinished), ExitCode.STOPPED)
        minutes = trainer.pace.seconds() / 60
        try:
            after = held_out_accuracy(model, tokenizer, held_out, options)
        except NotFinite:
            if is_main():
                unfinished.remove()  # the state is useless
            raise

        record = {
            "options": options.model_dump(mode="json"),
            "vocabulary": None if spelling is None else asdict(spelling),
            "sentences": {"train": len(train), "held_out": len(held_out)},
            "steps": trainer.state.global_step,
            "minutes": round(minutes, 2),
            "loss": _loss_curve(trainer),
            "held_out_before": before,
            "held_out_after": after,
            "parameters": model.num_parameters(),
            "environment": environment(),
            "command": masked(options.command()),
        }
        if is_main():
            until_written(lambda: _save(options, model, tokenizer, record), "The trained generator")
    return record


def _loss_curve(trainer: MaskedLMTrainer) -> list[dict[str, float]]:
    entries = (entry for entry in trainer.state.log_history if "loss" in entry)
    return [{"step": entry["step"], "loss": round(entry["loss"], 4)} for entry in entries]


def _stopped(by: str, trainer: MaskedLMTrainer, unfinished: Unfinished) -> str:
    """A message on how the training ended and what is kept."""
    state, step = unfinished.newest(), trainer.state.global_step
    kept = f"the same command continues from {state}" if state is not None else "nothing is kept"
    return f"Stopped by {by} after step {step} of {trainer.state.max_steps}; {kept}."


def _settings(options: PretrainOptions) -> dict[str, Any]:
    """Everything except the text that the result depends on. Of the text only the tokens matter, not its path."""
    elsewhere = {"files", "columns", "separator", "header", "limit", "workers"}  # covered by the tokens' fingerprint
    without = {"output", "seconds", "log_every", "save_minutes", *elsewhere}
    settings = options.model_dump(mode="json", exclude=without)
    return {**settings, PROCESSES: int(os.environ.get("WORLD_SIZE", "1"))}


def _drop_out(model: PreTrainedModel, probability: float | None) -> None:
    """Set the dropout of the modules, but not of the configuration, which is saved."""
    for module in model.modules():
        if isinstance(module, nn.Dropout) and probability is not None:
            module.p = probability


def held_out_accuracy(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    sentences: Sentences,
    options: PretrainOptions,
) -> dict[str, float]:
    """Mean cross-entropy and accuracy on masked tokens, which the seed chooses.

    Raises:
        NotFinite: the cross-entropy is NaN or infinite.
    """
    loader = DataLoader(sentences, batch_size=options.batch_size, collate_fn=_collator(tokenizer, options))
    loss, right, count = 0.0, 0, 0
    training = model.training
    model.eval()
    with torch.inference_mode():
        for batch in loader:
            batch = {name: value.to(model.device) for name, value in batch.items()}
            labels = batch.pop("labels")
            logits = masked_logits(model, model, batch, labels != IGNORED).float()
            labels = labels[labels != IGNORED]
            loss += F.cross_entropy(logits, labels, reduction="sum").item()
            right += int((logits.argmax(-1) == labels).sum())
            count += len(labels)
    model.train(training)
    if not math.isfinite(loss):
        raise NotFinite(
            "The masked language model gives numbers that are not finite for the held-out sentences; lower "
            "learning_rate, or choose another base; nothing was written."
        )
    return {"loss": round(loss / count, 4), "accuracy": round(right / count, 4), "masked_tokens": count}


def _spelling(options: PretrainOptions) -> Spelling:
    spelling = spelling_of(options.data(), options.languages, options.lowercase)
    if launched_rank() == 0:
        print(f"Vocabulary: {spelling}.", flush=True)
    return spelling


def _tokenizer(options: PretrainOptions, spelling: Spelling | None) -> PreTrainedTokenizerBase:
    if spelling is not None:
        return wordpiece_of(options.data(), options.vocab_size, spelling, options.character_coverage)
    source = options.base or options.tokenizer
    assert source is not None
    tokenizer = load_tokenizer(source)
    if tokenizer.mask_token is None:
        raise InputError(f"Tokenizer of {source} has no mask token; choose that of a masked language model.")
    return tokenizer


def _sentences(options: PretrainOptions, tokenizer: PreTrainedTokenizerBase) -> Sentences:
    """The tokenized corpus. One process makes it, and all memory-map it."""
    sentences = Sentences(tokenize(options.data(), [tokenizer], main=launched_rank() == 0), tokenizer)
    needed = options.held_out + options.batch_size
    if len(sentences) < needed:
        raise InputError(
            f"Corpus {', '.join(options.files)} has {len(sentences)} sentences, but held_out ({options.held_out}) "
            f"and one batch ({options.batch_size}) need {needed}: lower one of them or add text."
        )
    return sentences


def _model(options: PretrainOptions, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    choose_attention_kernels()
    if options.base is not None:
        model = load_masked_lm(options.base)
        check_fits(model, tokenizer, options.base, {"max_length": options.max_length})
        return model
    seed_initial_numbers(options.seed, "masked language model")
    return BertForMaskedLM(
        BertConfig(
            vocab_size=known_ids(tokenizer)[-1] + 1,
            num_hidden_layers=options.layers,
            hidden_size=options.hidden,
            num_attention_heads=options.heads,
            intermediate_size=options.intermediate or 4 * options.hidden,
            max_position_embeddings=options.max_positions,
            # scaled from BERT's 0.02 at width 768; with 0.02 a narrow model learns nothing for a while
            initializer_range=round(0.02 * (768 / options.hidden) ** 0.5, 4),
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def _collator(tokenizer: PreTrainedTokenizerBase, options: PretrainOptions) -> Masking:
    return Masking(tokenizer, mlm_probability=options.masking_ratio, seed=options.seed)


def _arguments(options: PretrainOptions, unfinished: Unfinished) -> TrainingArguments:
    arguments = TrainingArguments(
        output_dir=str(unfinished.partial),
        max_steps=options.steps,
        per_device_train_batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=round(options.warmup * options.steps),
        weight_decay=options.weight_decay,
        bf16=options.bf16,
        seed=options.seed,
        dataloader_drop_last=True,
        dataloader_pin_memory=torch.cuda.is_available(),
        remove_unused_columns=False,
        logging_steps=options.log_every,
        logging_nan_inf_filter=False,  # the filter would show a mean instead of a NaN
        save_strategy="no",  # only `StopRequest` triggers saving
        disable_tqdm=True,
        report_to="none",
    )
    arguments._n_gpu = 1  # use torchrun for several devices: DataParallel would split the batch below the hook
    return arguments


def _output(options: PretrainOptions) -> Path:
    """The output path with links resolved."""
    return Path(os.path.realpath(given_path(options.output)))


def _partial(options: PretrainOptions) -> Path:
    output = _output(options)
    return output.with_name(f".{output.name}.partial")


def _save(
    options: PretrainOptions,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    record: dict[str, Any],
) -> None:
    """Write everything under a temporary name first, so that a folder with the final name is complete."""
    partial = _partial(options)
    shutil.rmtree(partial, ignore_errors=True)  # may be left from a killed command
    with disk_errors_at(partial):
        model.save_pretrained(partial)
        if options.store_bf16:  # config.json keeps float32, the dtype for loading
            for file in partial.glob("*.safetensors"):
                weights = {name: weight.bfloat16() for name, weight in load_file(file).items()}
                save_weights(weights, file)
        tokenizer.save_pretrained(partial)
        (partial / "training_record.json").write_text(to_json(record, indent=2) + "\n", encoding="utf-8")
        apply_umask(partial)
        publish(partial, _output(options))
