"""Checks of GPUs and of the compilers that their kernels need."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from diffcse_scale.doctor.machine import GIB, Machine
from diffcse_scale.doctor.verdict import Row, Verdict
from diffcse_scale.foundation.devices import hidden_by

OK, SLOWER, BROKEN = Verdict.OK, Verdict.SLOWER, Verdict.BROKEN
# the lowest capability with bfloat16 products, for which the Triton kernels are compiled and tested
FIRST_CAPABILITY = (8, 0)
# if less than this share of a device's memory is free, another process uses it
MOSTLY_FREE = 0.9


def _wants_cpu(machine: Machine) -> str | None:
    """The variable with which the user has turned GPUs off, if there is one."""
    return "DS_ACCELERATOR" if machine.environ.get("DS_ACCELERATOR") == "cpu" else hidden_by(machine.environ)


def torch_build(machine: Machine) -> Row:
    """Check torch's build: a CPU build on a machine with GPUs would silently train on the CPU."""
    found = f"{machine.packages['torch']}, built for {machine.torch_build}"
    if machine.torch_build == "CPU" and machine.device_files and not _wants_cpu(machine):
        advice = "install a torch build for this driver's CUDA (pytorch.org/get-started), or set DS_ACCELERATOR=cpu"
        return Row("torch", f"{found}; {len(machine.device_files)} GPUs are here", BROKEN, advice)
    return Row("torch", found)


def driver(machine: Machine) -> Row:
    """Check the driver: one that is too old for torch's build is useless."""
    found = machine.driver or ("none" if not machine.device_files else "version unknown")
    if machine.torch_build != "CPU" and machine.device_files and machine.device_error and not _wants_cpu(machine):
        advice = (
            f"update the driver to one that supports {machine.torch_build}, or install a torch built for an older one"
        )
        return Row("driver", f"{found}; {machine.device_error}", BROKEN, advice)
    return Row("driver", found)


def devices(machine: Machine) -> Row:
    """Count the devices, and check that they are equal and free."""
    if not machine.devices:
        if (variable := _wants_cpu(machine)) and machine.device_files:
            return Row("devices", f"{len(machine.device_files)} GPUs, none to be used", SLOWER, f"unset {variable}")
        return Row("devices", "no GPU", SLOWER, "training runs on the CPU; a large backbone needs a GPU")
    kinds = Counter((device.name, round(device.memory / GIB)) for device in machine.devices)
    found = "; ".join(f"{count} x {name}, {memory} GiB" for (name, memory), count in kinds.items())
    busy = [number for number, device in enumerate(machine.devices) if device.free < MOSTLY_FREE * device.memory]
    if busy:
        free = ", ".join(f"cuda:{number} has {machine.devices[number].free / GIB:.0f} GiB free" for number in busy)
        return Row(
            "devices", f"{found}; {free}", SLOWER, "check with nvidia-smi who else uses them; plan with the free memory"
        )
    if len(kinds) > 1:
        return Row(
            "devices", found, SLOWER, "the slowest device sets the pace; choose equal devices with CUDA_VISIBLE_DEVICES"
        )
    return Row("devices", found)


def capability(machine: Machine) -> Row:
    """Check that torch has programs for the devices, and that they support bfloat16."""
    if not machine.devices or machine.torch_build.startswith("ROCm"):
        return Row("capability", "no NVIDIA device")
    levels = sorted({device.capability for device in machine.devices})
    found = ", ".join(f"sm_{major}{minor}" for major, minor in levels)
    if not all(any(_runs(program, level) for program in machine.torch_architectures) for level in levels):
        have = ", ".join(machine.torch_architectures)
        return Row(
            "capability", f"{found}; torch has {have}", BROKEN, "install a build of torch made for these devices"
        )
    if levels[0] < FIRST_CAPABILITY or not all(device.bfloat16 for device in machine.devices):
        advice = (
            'a DeepSpeed configuration with "fp16": {"enabled": true} computes there; the kernels\' plain versions run'
        )
        return Row("capability", f"{found}, without bfloat16", SLOWER, advice)
    return Row("capability", found)


def _runs(program: str, level: tuple[int, int]) -> bool:
    """Whether a program runs on a level: binaries (sm_) on later minor levels, PTX (compute_) on all later levels."""
    kind, _, digits = program.partition("_")
    digits = digits.rstrip("af")
    made_for = (int(digits[:-1]), int(digits[-1]))
    return made_for <= level and (kind == "compute" or made_for[0] == level[0])


def nccl(machine: Machine) -> Row:
    """Check NCCL, through which devices exchange data. One device needs none."""
    if len(machine.devices) < 2 and machine.nodes < 2:
        return Row("NCCL", machine.nccl or "none, and nothing that needs it")
    if not machine.devices:
        return Row("NCCL", "none: ranks on CPUs exchange through gloo")
    if machine.nccl is None:
        return Row("NCCL", "not in this torch", BROKEN, "install a build of torch with NCCL, or train on one device")
    if machine.environ.get("NCCL_P2P_DISABLE") == "1":
        return Row("NCCL", f"{machine.nccl}, NCCL_P2P_DISABLE=1", SLOWER, "unset it, unless NCCL hangs without it")
    if not machine.peers:
        advice = "devices exchange through host memory; a larger batch or ZeRO-0 exchanges less often"
        return Row("NCCL", f"{machine.nccl}; some devices do not reach each other's memory", SLOWER, advice)
    return Row("NCCL", f"{machine.nccl}; every device reaches every other's memory")


def kernels(machine: Machine) -> Row:
    """Check the tools of the kernels: Triton compiles a launcher in C when a kernel first runs."""
    if not machine.devices:
        return Row("kernels", "the plain versions, as on every CPU")
    missing = [name for name, there in (("Triton", machine.triton), ("a C compiler", machine.c_compiler)) if not there]
    if not machine.python_h:
        missing.append("Python.h")
    if missing:
        advice = "install them (apt-get install gcc python3-dev; pip install triton): until then the plain versions run"
        return Row("kernels", f"missing: {', '.join(missing)}", SLOWER, advice)
    return Row("kernels", f"Triton {machine.triton}, {machine.c_compiler}, Python.h")


def compiling(machine: Machine) -> Row:
    """Check for a C++ compiler: model.compile generates C++ on CPUs, and Triton with a C launcher on GPUs."""
    if machine.cxx_compiler is None:
        return Row("model.compile", "no C++ compiler", SLOWER, "install g++ to use model.compile, or leave it out")
    return Row("model.compile", machine.cxx_compiler)


def deepspeed(machine: Machine) -> Row:
    """Check DeepSpeed's device. Its compiled operators are not needed: the optimizer is torch's, also on the host."""
    if machine.deepspeed_error:
        return Row(
            "DeepSpeed", machine.deepspeed_error, BROKEN, "run `make install` again and check that its imports work"
        )
    built = ", ".join(machine.operators) or "none built, none needed"
    found = f"{machine.packages['deepspeed']} on {machine.accelerator}; operators: {built}"
    if machine.devices and machine.accelerator == "cpu" and not _wants_cpu(machine):
        return Row("DeepSpeed", found, BROKEN, "set DS_ACCELERATOR=cuda to see what is missing")
    return Row("DeepSpeed", found)


CHECKS: tuple[Callable[[Machine], Row], ...] = (
    *(torch_build, driver, devices, capability, nccl, kernels, compiling, deepspeed),
)
