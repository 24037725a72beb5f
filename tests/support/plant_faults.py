"""Plants faults in a copy of the checkout, one at a time, and says which the default suite notices.

    python -m tests.support.plant_faults [WORD ...]          # all, or those whose description has a WORD

First the tests run without a fault: a test that fails anyway notices nothing. Then each fault is `new` in the place of
`old`, which must occur once in `file`, and the tests that should notice run. Prints a table,
and leaves with 1 if a fault went unnoticed.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]


class Fault(NamedTuple):
    """What is wrong, and the arguments of pytest for the tests that should notice."""

    what: str
    file: str
    old: str
    new: str
    tests: str


PACKAGE = "diffcse_scale/"
TRITON = "kernels/diffcse_kernels/triton/"
FAULTS = [
    Fault(
        "RTD is not multiplied by the world size",
        PACKAGE + "objective/replaced_tokens.py",
        "self.ranks.world_size * loss.loss_sum / prepared",
        "loss.loss_sum / prepared",
        "tests/test_distributed.py -k float64",
    ),
    Fault(
        "token means are per rank",
        PACKAGE + "objective/replaced_tokens.py",
        "return all_sum(own, self.ranks)",
        "return own * self.ranks.world_size",
        "tests/test_distributed.py -k float64",
    ),
    Fault(
        "the gather's backward keeps only this rank's gradient",
        PACKAGE + "distributed.py",
        "return _sum_of_own(total, shares, ranks).to(gradient.dtype), None, None",
        "return gradient.split(list(ctx.shares))[ctx.ranks.rank], None, None",
        "tests/test_distributed.py -k float64",
    ),
    Fault(
        "rows gathered in two levels stay in the order of numbers",
        PACKAGE + "distributed.py",
        "gathered = _every(levels.across.world_size, gathered, [largest] * len(shares))",
        "gathered = gathered.contiguous()",
        "tests/objective/test_two_levels.py -k rows",
    ),
    Fault(
        "sums of gradients stay on their node",
        PACKAGE + "distributed.py",
        "shares, ranks = shares[levels.within.rank :: count], levels.across",
        "return total.split(shares[levels.within.rank :: count])[levels.across.rank].to(gradient.dtype), None, None",
        "tests/objective/test_two_levels.py -k rows",
    ),
    Fault(
        "gradients in the encoder's parameters are one rank's",
        PACKAGE + "objective/gradients_in_parameters.py",
        "all_sum(gradient, ranks)",
        "gradient",
        "tests/objective/test_gradients_in_parameters.py",
    ),
    Fault(
        "BatchNorm sees only its own rank",
        PACKAGE + "model/projection.py",
        "sum_over_ranks(torch.cat([count, count * own, deviation + count * own.square()]), self.ranks)",
        "torch.cat([count, count * own, deviation + count * own.square()])",
        "tests/test_distributed.py -k float64",
    ),
    Fault(
        "a chunk's second pass draws other dropout",
        PACKAGE + "model/networks.py",
        "if chunk.seed is not None:",
        "if chunk.seed is None:",
        "tests/training/test_chunking.py",
    ),
    Fault(
        "a resumed run forgets the window of its log line",
        PACKAGE + "training/trainer.py",
        'self.window.restore(state["window"], device())',
        "pass",
        "tests/supervision/test_preemption.py -k stop_file",
    ),
    Fault(
        "a resumed run begins with the first batch",
        PACKAGE + "training/trainer.py",
        "self.batches.prefetch(self.step, self.plan.steps)",
        "self.batches.prefetch(0, self.plan.steps)",
        "tests/training/test_train.py -k resumed_run",
    ),
    Fault(
        "every epoch has the same order",
        PACKAGE + "text/order.py",
        'derive_seed(seed, "order", epoch)',
        'derive_seed(seed, "order")',
        "tests/text/test_order.py tests/text/test_batches.py",
    ),
    Fault(
        "the generator is a part of what is trained and saved",
        "train.py",
        "            if recipe.model.compile:\n",
        "            model.add_module('generator', generator.model.requires_grad_())\n"
        "            if recipe.model.compile:\n",
        "tests/training/test_train.py -k generator",
    ),
    Fault(
        "metrics are rounded",
        PACKAGE + "runs/metrics_file.py",
        "self._file.write(to_json(row)",
        "self._file.write(to_json({k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()})",
        "tests/training/test_train.py -k metrics",
    ),
    Fault(
        "`latest` moves before a checkpoint has its name",
        PACKAGE + "checkpoints/checkpoint.py",
        "        write_manifest(partial, entries)\n",
        "        write_durably(checkpoint_name(step), self._folder / LATEST)\n"
        "        write_manifest(partial, entries)\n",
        "tests/checkpoints/test_checkpoint.py",
    ),
    Fault(
        "a superseded incarnation goes on writing",
        PACKAGE + "checkpoints/checkpoint.py",
        "        if not self._owned():\n            return None",
        "        if False:\n            return None",
        "tests/checkpoints/test_checkpoint.py -k superseded",
    ),
    Fault(
        "a preempted run leaves with another code",
        PACKAGE + "foundation/exit_codes.py",
        "PREEMPTED = 75",
        "PREEMPTED = 73",
        "tests/supervision/test_preemption.py -k before_training",
    ),
    Fault(
        "a rank that fails leaves with 0",
        PACKAGE + "supervision/ending.py",
        "sys.exit(exit_code_of(end))",
        "sys.exit(0)",
        "tests/supervision/test_preemption.py -k one_signalled",
    ),
    Fault(
        "the networks import the trainer",
        PACKAGE + "model/pooling.py",
        "import torch\n",
        "import torch\nfrom diffcse_scale.training import schedule\n",
        "tests/test_layers.py",
    ),
    Fault(
        "skipped steps leave their statistics",
        PACKAGE + "training/skipped_steps.py",
        "            self._buffers.put_back()\n",
        "",
        "tests/training/test_nonfinite.py -k isolated",
    ),
    Fault(
        "the official RTD leaves out padding",
        PACKAGE + "model/discriminator.py",
        "torch.ones_like(attention_mask).sum() if self.official else attention_mask.sum()",
        "attention_mask.sum()",
        "tests/test_golden.py",
    ),
    Fault(
        "a kernel takes the wrong column for the positive",
        "kernels/diffcse_kernels/reference/info_nce.py",
        "logits.diagonal(first + rows.start)",
        "logits.diagonal(first)",
        "tests/kernels/test_info_nce.py -k eager",
    ),
    Fault(
        "a Triton kernel leaves out the last step along the width",
        "kernels/diffcse_kernels/triton/similarity.py",
        "for start in range(0, width, BLOCK_D):",
        "for start in range(0, width - BLOCK_D, BLOCK_D):",
        "tests/kernels/test_info_nce_triton.py",
    ),
    Fault(
        "Triton: the columns that add up are not counted",
        TRITON + "similarity.py",
        "reach = 2 * (LARGEST_EXPONENT - math.log(len(pair.k.values)))",
        "reach = 2 * LARGEST_EXPONENT",
        "tests/kernels/test_row_shifts_triton.py",
    ),
    Fault(
        "Triton: exponents may be of any size",
        TRITON + "similarity.py",
        "LARGEST_EXPONENT = 75.0",
        "LARGEST_EXPONENT = 8000.0",
        "tests/kernels/test_row_shifts_triton.py",
    ),
    Fault(
        "Triton: norms of any size leave room for exponents",
        TRITON + "similarity.py",
        "torch.where(usual.all(), reach, -torch.inf)",
        "torch.full_like(scale, reach)",
        "tests/kernels/test_row_shifts_triton.py",
    ),
    Fault(
        "Triton: the shift is halfway, however far the bounds are apart",
        TRITON + "similarity.py",
        "torch.where(known >= most - reach, (known + most) / 2, known)",
        "(known + most) / 2",
        "tests/kernels/test_row_shifts_triton.py",
    ),
    Fault(
        "Triton: one row of a tile with enough suffices",
        TRITON + "similarity.py",
        "least = tl.min(maximum, 0)",
        "least = tl.max(maximum, 0)",
        "tests/kernels/test_row_shifts_triton.py",
    ),
    Fault(
        "Triton: a hard negative's weight raises no bound",
        TRITON + "similarity.py",
        "max(pair.bonus, 0.0) + scale",
        "scale",
        "tests/kernels/test_row_shifts_triton.py",
    ),
    Fault(
        "Triton: a hard negative's weight lowers no bound",
        TRITON + "similarity.py",
        "return min(pair.bonus, 0.0) - scale",
        "return -scale",
        "tests/kernels/test_row_shifts_triton.py",
    ),
    Fault(
        "Triton: later strips look for the positives of the first",
        TRITON + "similarity.py",
        "positive=self.positive + rows.start",
        "positive=self.positive",
        "tests/kernels/test_info_nce_triton.py -k strips_and",
    ),
    Fault(
        "Triton: strided rows are read as if they were contiguous",
        TRITON + "normed_rows.py",
        "        values = values.contiguous()\n",
        "",
        "tests/kernels/test_info_nce_triton.py -k strided",
    ),
    Fault(
        "Triton: rows of a strip begin anywhere",
        TRITON + "strips.py",
        "return triton.cdiv(columns, 16) * 16",
        "return columns",
        "tests/kernels/test_info_nce_triton.py -k strip_begin",
    ),
    Fault(
        "Triton: the temperature's gradient is forgotten where it is alone",
        TRITON + "info_nce.py",
        "if needs.queries or needs.temperature else None",
        "if needs.queries else None",
        "tests/kernels/test_info_nce_triton.py -k alone",
    ),
    Fault(
        "Triton: later strips take the shifts of the first",
        TRITON + "key_blocks.py",
        "shifts[rows], unit",
        "shifts[: rows.stop - rows.start], unit",
        "tests/kernels/test_key_blocks.py -k strip",
    ),
    Fault(
        "Triton: addmm is trusted unseen",
        TRITON + "products.py",
        "return torch.equal(total, torch.full_like(total, 17 + 2.0**-18))",
        "return True",
        "tests/kernels/test_products_triton.py",
    ),
    Fault(
        "Triton: a strip may have no end",
        TRITON + "strips.py",
        "budget = max(WORKSPACE_BYTES, 4 * columns * width)",
        "budget = 2 * columns * rows",
        "tests/kernels/test_strips_triton.py",
    ),
    Fault(
        "Triton: strips do not grow",
        TRITON + "strips.py",
        "budget = max(WORKSPACE_BYTES, 4 * columns * width)",
        "budget = WORKSPACE_BYTES",
        "tests/kernels/test_strips_triton.py",
    ),
    Fault(
        "Triton: processors idle in the last wave",
        TRITON + "strips.py",
        "    fewest = max(most // 2, most - processors) + 1 ",
        "    fewest = most ",
        "tests/kernels/test_strips_triton.py",
    ),
    Fault(
        "Triton: a row's place has 32 bits",
        TRITON + "row_gradients.py",
        "start = first.to(tl.int64) * width",
        "start = first * width",
        "tests/kernels/test_compiled.py",
    ),
    Fault(
        "Triton: tiles are four times smaller",
        TRITON + "tiles.py",
        "return Tiles(128, 128 if hopper else 64, 64,",
        "return Tiles(64, 64 if hopper else 32, 64,",
        "tests/kernels/test_compiled.py",
    ),
    Fault(
        "Triton: operands are waited for",
        TRITON + "tiles.py",
        "num_warps=8, num_stages=3",
        "num_warps=8, num_stages=1",
        "tests/kernels/test_compiled.py",
    ),
    Fault(
        "Triton: stores do not end at a multiple of 16 columns",
        TRITON + "tile_of_strip.py",
        "(row < num_rows)[:, None] & (column < stride)[None, :]",
        "(row < num_rows)[:, None] & (column < stride - 1)[None, :]",
        "tests/kernels/test_compiled.py",
    ),
    Fault(
        "Triton: each number of rows compiles a kernel",
        TRITON + "similarity.py",
        "@triton.jit(do_not_specialize=RAGGED)",
        "@triton.jit",
        "tests/kernels/test_compiled.py",
    ),
]


def copy_of_the_checkout(folder: Path) -> Path:
    """Its tracked and new files, without what git ignores."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    for name in filter(None, names):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    return folder


def failures(checkout: Path, tests: str) -> list[str]:
    """The default suite's tests among `tests` that do not pass in a checkout."""
    options = ["-q", "-p", "no:cacheprovider", "-m", "not slow and not slurm and not realdata and not gpu"]
    command = [sys.executable, "-m", "pytest", *options, *tests.split()]
    done = subprocess.run(command, cwd=checkout, capture_output=True, text=True)
    found = re.findall(r"^(?:FAILED|ERROR) (\S+)", done.stdout, flags=re.MULTILINE)
    assert done.returncode in (0, 1) and bool(found) == bool(done.returncode), done.stdout + done.stderr
    return found


def main() -> None:
    words = sys.argv[1:]
    chosen = [fault for fault in FAULTS if not words or any(word in fault.what for word in words)]
    with tempfile.TemporaryDirectory() as folder:
        checkout = copy_of_the_checkout(Path(folder))
        for tests in sorted({fault.tests for fault in chosen}):
            assert not (found := failures(checkout, tests)), f"without a fault: {found}"
        unnoticed = 0
        print("| planted fault | where | noticed by |\n|---|---|---|", flush=True)
        for fault in chosen:
            file = checkout / fault.file
            source = file.read_text(encoding="utf-8")
            assert source.count(fault.old) == 1, f"{fault.old!r} occurs {source.count(fault.old)} times in {fault.file}"
            file.write_text(source.replace(fault.old, fault.new), encoding="utf-8")
            found = failures(checkout, fault.tests)
            file.write_text(source, encoding="utf-8")
            unnoticed += not found
            first = f"`{found[0].partition('[')[0]}`" if found else "**nothing**"
            others = f" and {len(found) - 1} more" if len(found) > 1 else ""
            print(f"| {fault.what} | `{fault.file}` | {first}{others} |", flush=True)
    sys.exit(1 if unnoticed else 0)


if __name__ == "__main__":
    main()
