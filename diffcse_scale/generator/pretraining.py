"""Masked-LM training of a generator (BERT, Devlin et al. 2019) from raw text.

DiffCSE needs a masked language model that knows the language of the corpus. Where there is none (a new domain,
a new language) this makes one: from scratch with a WordPiece vocabulary learnt on the text, or from another.
The loop is transformers' Trainer, so that `torchrun` and bf16 work as elsewhere; ours are the options, the
vocabulary, and a head that reads masked tokens only.
"""

from __future__ import annotations

import math
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import DataLoader
from transformers import (
    BertConfig,
    BertForMaskedLM,
    DataCollatorForLanguageModeling,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from diffcse_scale.distributed import agree
from diffcse_scale.foundation.durable import apply_umask, publish, save_weights
from diffcse_scale.foundation.environment import environment
from diffcse_scale.foundation.errors import InputError, RunEnded, disk_errors_at
from diffcse_scale.foundation.exit_codes import ExitCode
from diffcse_scale.foundation.finite import NotFinite
from diffcse_scale.foundation.paths import given_path
from diffcse_scale.foundation.patience import until_written
from diffcse_scale.foundation.randomness import seed_everything, seed_initial_numbers
from diffcse_scale.foundation.secrets import masked
from diffcse_scale.foundation.signals import listening
from diffcse_scale.foundation.strict_json import to_json
from diffcse_scale.generator.pretrain_options import PretrainOptions
from diffcse_scale.generator.wordpiece import wordpiece_of
from diffcse_scale.model.attention import choose_attention_kernels
from diffcse_scale.model.backbone import load_masked_lm, load_tokenizer
from diffcse_scale.model.fits import check_fits
from diffcse_scale.text.sentences import GroupedByLength, Sentences
from diffcse_scale.text.tokenizers import known_ids
from diffcse_scale.text.tokens import tokenize

IGNORED = -100  # label of a token that is not predicted, as everywhere in transformers


def pretrain_generator(options: PretrainOptions) -> dict[str, Any]:
    """Train a masked language model; write it, its tokenizer and `training_record.json` to `options.output`.

    The result is a function of the options on a CPU with a fixed number of threads, unless `seconds` or a signal ends
    it.

    Returns:
        The record: options, loss curve, loss and accuracy on held-out text before and after, machine, command.

    Raises:
        InputError: the output holds something, the base is not a masked LM, or the corpus cannot be used.
        RunEnded: a signal asked for an end while it trained; what was learnt by then is written all the same.
    """
    output = _output(options)
    if os.path.lexists(output) and (not output.is_dir() or any(output.iterdir())):
        raise InputError(f"Output {options.output} already exists; choose another folder or remove it.")
    if options.seconds is not None and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        # each process has its own clock: one would stop a step before the others, which would wait for it
        raise InputError("seconds limits a single process only; give steps to train with several.")
    seed_everything(options.seed)
    tokenizer = _tokenizer(options)
    model = _model(options, tokenizer)
    train, held_out = _sentences(options, tokenizer).split(options.held_out, options.seed)

    arguments = _arguments(options)
    # only then the Trainer, which begins with a random state of its own: the evaluation draws from what it finds
    before = held_out_accuracy(model.to(arguments.device), tokenizer, held_out, options)
    trainer, asked = _trainer(options, arguments, model, tokenizer, train), StopRequest()
    trainer.add_callback(asked)
    with listening(asked.hear):
        start = time.perf_counter()
        trainer.train()
        minutes = (time.perf_counter() - start) / 60
        after = held_out_accuracy(model, tokenizer, held_out, options)

        record = {
            "options": options.model_dump(mode="json"),
            "sentences": {"train": len(train), "held_out": len(held_out)},
            "steps": trainer.state.global_step,
            "minutes": round(minutes, 2),
            "loss": [
                {"step": entry["step"], "loss": round(entry["loss"], 4)}
                for entry in trainer.state.log_history
                if "loss" in entry
            ],
            "held_out_before": before,
            "held_out_after": after,
            "parameters": model.num_parameters(),
            "environment": environment(),
            "command": masked(options.command()),
        }
        if trainer.is_world_process_zero():
            until_written(lambda: _save(options, model, tokenizer, record), "The trained generator")
    if asked.by is not None:
        raise RunEnded(
            f"Stopped by {asked.by} after step {trainer.state.global_step} of {options.steps}; what was learnt is in "
            f"{options.output}: go on from it with --base {options.output} and another --output.",
            ExitCode.STOPPED,
        )
    return record


def held_out_accuracy(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    sentences: Sentences,
    options: PretrainOptions,
) -> dict[str, float]:
    """Mean cross-entropy, and share guessed right, of the masked tokens; the seed decides which they are.

    Raises:
        NotFinite: the cross-entropy is no number, or infinite.
    """
    loader = DataLoader(sentences, batch_size=options.batch_size, collate_fn=_collator(tokenizer, options))
    loss, right, count = 0.0, 0, 0
    training = model.training
    model.eval()
    with torch.inference_mode():
        for batch in loader:
            batch = {name: value.to(model.device) for name, value in batch.items()}
            labels = batch.pop("labels")
            logits = _masked_logits(model, model, batch, labels != IGNORED).float()
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


class MaskedLMTrainer(Trainer):
    """A Trainer whose vocabulary head reads masked tokens only: the same loss, 2.4 times faster if tiny."""

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *_: Any, **__: Any) -> torch.Tensor:
        labels = inputs.pop("labels")
        logits = _masked_logits(model, self.accelerator.unwrap_model(model), inputs, labels != IGNORED)
        labels = labels[labels != IGNORED]
        # a sum: of one short sentence perhaps nothing is masked, and a mean over nothing is not a number
        return F.cross_entropy(logits.float(), labels, reduction="sum") / max(len(labels), 1)

    def _get_train_sampler(self, dataset: Any = None) -> GroupedByLength:
        # the argument "group_by_length" means the same, but reads the sentences for their lengths
        assert isinstance(self.train_dataset, Sentences)
        return GroupedByLength(self.args.train_batch_size, self.train_dataset.lengths())


class TimeLimit(TrainerCallback):
    """Stops the training when `seconds` have passed."""

    def __init__(self, seconds: float) -> None:
        self.deadline = time.monotonic() + seconds

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        control.should_training_stop |= time.monotonic() > self.deadline


class StopRequest(TrainerCallback):
    """Stops the training of all ranks after the step in which a signal asked one of them to.

    Attributes:
        by: the signal in words, once training has stopped for it.
    """

    def __init__(self) -> None:
        self.by: str | None = None
        self._number = 0

    def hear(self, number: int, _: object) -> None:
        """A handler of signals."""
        self._number = number

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        (number,) = agree(self._number)
        if number and not control.should_training_stop:
            self.by = f"signal {signal.Signals(number).name.removeprefix('SIG')}"
            control.should_training_stop = True


def _masked_logits(
    model: nn.Module, bare: PreTrainedModel, inputs: dict[str, torch.Tensor], masked: torch.Tensor
) -> torch.Tensor:
    """Logits [masked tokens, vocabulary] of `model` (`bare`, or a wrapper of it); `masked`: bool [rows, length].

    A hook takes the other tokens away between trunk and head: right wherever the head is position-wise.
    """

    def keep_masked(_module: nn.Module, _arguments: Any, output: Any) -> Any:
        output["last_hidden_state"] = output.last_hidden_state[masked].unsqueeze(0)
        return output

    hook = bare.base_model.register_forward_hook(keep_masked)
    try:
        return model(**inputs).logits.squeeze(0)
    finally:
        hook.remove()


def _tokenizer(options: PretrainOptions) -> PreTrainedTokenizerBase:
    source = options.base or options.tokenizer
    if source is None:
        return wordpiece_of(options.data(), options.vocab_size, options.lowercase, options.character_coverage)
    tokenizer = load_tokenizer(source)
    if tokenizer.mask_token is None:
        raise InputError(f"Tokenizer of {source} has no mask token; choose that of a masked language model.")
    return tokenizer


def _sentences(options: PretrainOptions, tokenizer: PreTrainedTokenizerBase) -> Sentences:
    """The corpus as training reads it: one process makes it, and all map it."""
    main = int(os.environ.get("RANK", "0")) == 0
    sentences = Sentences(tokenize(options.data(), [tokenizer], main=main), tokenizer)
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
            # BERT's 0.02 at width 768, in proportion; with 0.02 a narrow model learns nothing for a while
            initializer_range=round(0.02 * (768 / options.hidden) ** 0.5, 4),
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def _collator(tokenizer: PreTrainedTokenizerBase, options: PretrainOptions) -> DataCollatorForLanguageModeling:
    return DataCollatorForLanguageModeling(tokenizer, mlm_probability=options.masking_ratio, seed=options.seed)


def _arguments(options: PretrainOptions) -> TrainingArguments:
    arguments = TrainingArguments(
        output_dir=str(_partial(options)),  # nothing is written there before the end
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
        logging_nan_inf_filter=False,  # which would show a mean in place of a NaN
        save_strategy="no",
        report_to="none",
    )
    arguments._n_gpu = 1  # several devices: torchrun. DataParallel would split the batch beneath the hook
    return arguments


def _trainer(
    options: PretrainOptions,
    arguments: TrainingArguments,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    sentences: Sentences,
) -> MaskedLMTrainer:
    if options.dropout is not None:
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = options.dropout  # not the configuration, which is saved
    return MaskedLMTrainer(
        model=model,
        args=arguments,
        data_collator=_collator(tokenizer, options),
        train_dataset=sentences,
        processing_class=tokenizer,
        callbacks=[TimeLimit(options.seconds)] if options.seconds else [],
    )


def _output(options: PretrainOptions) -> Path:
    """Of a link, what it names."""
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
    """Everything under a temporary name first, so that a folder with the final name is whole."""
    partial = _partial(options)
    shutil.rmtree(partial, ignore_errors=True)  # of a command that was killed
    with disk_errors_at(partial):
        model.save_pretrained(partial)
        if options.store_bf16:  # config.json keeps float32, the dtype to load as
            for file in partial.glob("*.safetensors"):
                weights = {name: weight.bfloat16() for name, weight in load_file(file).items()}
                save_weights(weights, file)
        tokenizer.save_pretrained(partial)
        (partial / "training_record.json").write_text(to_json(record, indent=2) + "\n", encoding="utf-8")
        apply_umask(partial)
        publish(partial, _output(options))
