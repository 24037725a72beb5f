"""An interrupted pretraining goes on with the same command, and ends as if nothing had happened.

The truth is a training that was left alone.
"""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable

import pytest
import torch
from transformers import AutoModelForMaskedLM

from diffcse_scale.embedded.grammar import training_sentences
from diffcse_scale.foundation.errors import InputError, RunEnded
from diffcse_scale.foundation.exit_codes import ExitCode
from diffcse_scale.foundation.signals import REQUESTS
from diffcse_scale.generator import pretraining as module
from diffcse_scale.generator.pretraining import pretrain_generator
from diffcse_scale.generator.unfinished import Unfinished
from tests.support.file_events import FileEvents, fail
from tests.support.generators import saved_weights


def _when(step: int, act: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> None:
    """Have something happen as a step begins."""
    before = module.MaskedLMTrainer.compute_loss

    def compute_loss(trainer, *arguments, **options):
        if trainer.state.global_step == step - 1:
            act()
        return before(trainer, *arguments, **options)

    monkeypatch.setattr(module.MaskedLMTrainer, "compute_loss", compute_loss)


class Killed(BaseException):
    """As if the process were no more: nobody hears it."""


def _die() -> None:
    raise Killed


@pytest.mark.slow
@pytest.mark.parametrize("number", REQUESTS)
def test_a_signal_ends_the_training_after_its_step_and_the_same_command_goes_on(options, tmp_path, monkeypatch, number):
    with monkeypatch.context() as patch:
        _when(3, lambda: os.kill(os.getpid(), number), patch)
        name = signal.Signals(number).name.removeprefix("SIG")
        said = (
            rf"Stopped by signal {name} after step 3 of 5; the same command continues from .*out\.unfinished/step-0*3\."
        )
        with pytest.raises(RunEnded, match=said) as end:
            pretrain_generator(options(steps=5, log_every=1))
    assert end.value.exit_code is ExitCode.STOPPED and not (tmp_path / "out").exists()
    state = tmp_path / "out.unfinished" / "step-00000003"
    assert AutoModelForMaskedLM.from_pretrained(state).num_parameters() > 0, "a generator as it is by then"
    record = pretrain_generator(options(steps=5, log_every=1))
    assert [entry["step"] for entry in record["loss"]] == [1, 2, 3, 4, 5]


@pytest.mark.slow
@pytest.mark.parametrize("step", [9, 14, 15])
def test_a_killed_training_goes_on_and_ends_as_if_it_had_not_been(options, tmp_path, monkeypatch, capsys, step):
    """Killed within an epoch, which has 14 steps, before its last step and before the first of the next one."""
    unbroken = pretrain_generator(options(output=str(tmp_path / "unbroken"), steps=20, log_every=1))
    often = options(steps=20, log_every=1, save_minutes=1e-9)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        _when(step, _die, patch)
        pretrain_generator(often)
    assert [path.name for path in (tmp_path / "out.unfinished").glob("step*")] == [f"step-{step - 1:08d}"]
    record = pretrain_generator(often)
    assert f"Continuing from {tmp_path / 'out.unfinished'}/step-{step - 1:08d}; " in capsys.readouterr().out
    whole, broken = saved_weights(tmp_path / "unbroken"), saved_weights(tmp_path / "out")
    assert all(torch.equal(whole[name], broken[name]) for name in whole)
    assert record["loss"] == unbroken["loss"] and record["held_out_after"] == unbroken["held_out_after"]
    assert not (tmp_path / "out.unfinished").exists()


def test_an_interrupted_training_is_not_gone_on_with_as_another(options, tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(Killed):
        _when(3, _die, patch)
        pretrain_generator(options(save_minutes=1e-9))
    said = r"out.unfinished holds .* \(--learning-rate 0\.005, not 0\.1\); give those settings .* or remove that"
    with monkeypatch.context() as patch, pytest.raises(InputError, match=said):
        patch.setattr(module, "spelling_of", lambda *_: pytest.fail("the text is read before the refusal"))
        pretrain_generator(options(learning_rate=0.1))
    (tmp_path / "corpus.txt").write_text("\n".join(training_sentences(400, seed=9)))
    with pytest.raises(InputError, match=r"\(another text or tokenizer\); give those settings"):
        pretrain_generator(options())
    assert (tmp_path / "out.unfinished" / "step-00000002").is_dir()


def test_two_trainings_for_one_output_are_refused_and_leave_each_other_alone(options, tmp_path):
    with (
        Unfinished(tmp_path / "out").held("out"),
        pytest.raises(InputError, match=r"Another process trains the generator of \S*/out; wait for it"),
    ):
        pretrain_generator(options())
    assert not (tmp_path / "out.unfinished").exists() and not (tmp_path / "out").exists()


def test_a_state_that_the_disk_refuses_is_told_and_training_goes_on(options, tmp_path, caplog):
    with FileEvents([tmp_path / "out.unfinished"], fail(3, errno.ENOSPC, times=1), only="mkdir"):
        record = pretrain_generator(options(steps=3, save_minutes=1e-9))
    (said,) = [line.getMessage() for line in caplog.records if "is not kept" in line.getMessage()]
    assert said.startswith("The state after step 1 is not kept: ") and "free disk space" in said
    assert record["steps"] == 3 and not (tmp_path / "out.unfinished").exists()


@pytest.mark.parametrize(("only", "named"), [("open", "facts.json"), ("rename", "step-")])
def test_a_state_whose_last_file_or_name_the_disk_refuses_is_told_too(options, tmp_path, caplog, only, named):
    with FileEvents([tmp_path / "out.unfinished"], fail(1, errno.ENOSPC, times=1), only=only, named=named) as events:
        record = pretrain_generator(options(steps=3, save_minutes=1e-9))
    (said,) = [line.getMessage() for line in caplog.records if "is not kept" in line.getMessage()]
    assert said.startswith("The state after step 1 is not kept: ") and "free disk space" in said
    assert record["steps"] == 3 and events.count > 1, "the next state is kept"


def test_an_error_of_the_training_is_not_taken_for_another_process(tmp_path):
    with pytest.raises(BlockingIOError), Unfinished(tmp_path / "out").held("out"):
        raise BlockingIOError(errno.EAGAIN, "a pipe is full")
