"""`--push-to-hub`: the right to write is checked before anything is loaded; the upload comes when the run is done."""

from __future__ import annotations

from pathlib import Path

from diffcse_scale.foundation.launched import launched_rank


def check_publishing(repo: str | None) -> None:
    """On the one process that is to upload; the Hub is not asked by all ranks at once.

    Raises:
        InputError: as `check_can_push`.
    """
    if repo is not None and launched_rank() == 0:
        from diffcse_scale.export.hub import check_can_push

        check_can_push(repo)


def publish(run: Path, repo: str | None) -> None:
    """Upload the model of a finished run; a failure is told, and does not undo the run. Called on every rank.

    The others wait: where one rank has ended, SLURM ends the rest after a minute.
    """
    if repo is None:
        return
    from diffcse_scale.distributed import barrier, is_main  # torch with it

    if is_main():
        from diffcse_scale.export.command import push_run  # takes seconds

        push_run(run, repo)
    barrier()
