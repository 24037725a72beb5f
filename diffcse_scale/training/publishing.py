"""`--push-to-hub`: checks the write permission before anything is loaded, and uploads when the run is finished."""

from __future__ import annotations

from pathlib import Path

from diffcse_scale.foundation.launched import launched_rank


def check_publishing(repo: str | None) -> None:
    """Check that the Hub accepts an upload, in the one process that will upload.

    Raises:
        InputError: as `check_can_push`.
    """
    if repo is not None and launched_rank() == 0:
        from diffcse_scale.export.hub import check_can_push

        check_can_push(repo)


def publish(run: Path, repo: str | None) -> None:
    """Upload the model of a finished run. A failure is reported and does not undo the run. Called on every rank.

    The other ranks wait for the upload, because SLURM ends all ranks one minute after the first has ended.
    """
    if repo is None:
        return
    from diffcse_scale.distributed import barrier, is_main  # imports torch

    if is_main():
        from diffcse_scale.export.command import push_run  # the import takes seconds

        push_run(run, repo)
    barrier()
