"""A GPU that is not there: tensors on "cuda" have shape, dtype and device, and no numbers; those on the CPU are real.

Needs a CUDA build of torch, and no device. What a GPU refuses or waits for shows: an operation on tensors of two
devices, a number that the host reads, a size that only the device knows, a copy that stops the host. There is no
backward pass: torch's engine asks the driver for the device.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch._library.custom_ops import OPDEFS
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

ROOT = Path(__file__).parents[2]
ROOMS = ("diffcse_scale", "kernels", "tests")
LIBRARIES = ("transformers", "sentence_transformers", "peft")
GPU = torch.device("cuda", 0)
TO_HOST = "a copy to the host"
HOPPER = SimpleNamespace(name="imagined", major=9, minor=0, total_memory=80 * 2**30, multi_processor_count=132)


class ImaginedStream(torch.Stream):
    """Everything is done in the order in which it is asked for."""

    def __new__(cls, device: Any = None) -> ImaginedStream:
        return super().__new__(cls, stream_id=0, device_index=0, device_type=1)

    def wait_stream(self, other: Any) -> None: ...

    def wait_event(self, event: Any) -> None: ...

    def record_event(self, event: Any = None) -> object:
        return object()


def _swap_what_differs(first: Tensor, second: Tensor, swap: Any = torch.utils.swap_tensors) -> None:
    """`Module.to` swaps also those tensors that are already where they should be, which imagined ones do not bear."""
    if (first.device, first.dtype) != (second.device, second.dtype):
        swap(first, second)


# what the product and its libraries ask before they compute
ANSWERS = {
    "torch.cuda.get_device_properties": lambda *_: HOPPER,
    "torch.cuda.is_bf16_supported": lambda *_, **__: True,
    "torch.cuda.amp.common.amp_definitely_not_available": lambda: False,
    "torch.cuda.Stream": ImaginedStream,
    "torch.cuda.current_stream": ImaginedStream,
    "torch.cuda.stream": nullcontext,
    "torch.utils.swap_tensors": _swap_what_differs,
    # it spares tensors without numbers the looks that it takes at those of a device
    "transformers.utils.import_utils.is_fake_tensor": lambda _: False,
}


class HostWaits(RuntimeError):
    """The host would stop until the device has done all that was asked of it."""


class ImaginedGPU(TorchDispatchMode):
    """Inside, there is a GPU, and the host may wait for it only where that is meant.

    The project's own operators are computed by their reference, and not taken at their word.

    Args:
        meant: what the host may wait for, each as `HostWaits` tells it: folder/file: function: why. It reads zeros.

    Attributes:
        met: those of `meant` that the host has waited for.
    """

    def __init__(self, *meant: str) -> None:
        super().__init__()
        self.met: set[str] = set()
        self._meant = meant
        self._building = False
        self._fake = FakeTensorMode(allow_non_fake_inputs=True)
        self._answers = ExitStack()

    def __enter__(self) -> ImaginedGPU:
        for name, answer in ANSWERS.items():
            self._answers.enter_context(patch(name, answer))
        self._fake.__enter__()  # beneath this mode: torch looks for no driver where it sees that one
        super().__enter__()
        return self

    def __exit__(self, *raised: Any) -> None:
        super().__exit__(*raised)
        self._fake.__exit__(*raised)
        self._answers.close()

    @contextmanager
    def building(self) -> Iterator[None]:
        """Inside, the host may wait anywhere: networks are made and moved once."""
        self._building = True
        try:
            yield
        finally:
            self._building = False

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if operation.namespace == "prim":  # asks a tensor for its device
            return operation(*args)
        kwargs = kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        is_there = any(isinstance(tensor, FakeTensor) for tensor in tensors)
        target = kwargs.get("device")
        if not is_there and (target is None or target.type == "cpu"):
            with unset_fake_temporarily():
                return operation(*args, **kwargs)
        name = operation.overloadpacket._qualified_op_name.removeprefix("aten::")
        if name == "record_stream":  # to the allocator, which is not imagined
            return None
        if name in OPDEFS:
            return self._inside(OPDEFS[name]._init_fn, *args, **kwargs)
        if operation.namespace == "aten" and _is_composite(operation):
            return self._inside(operation.decompose, *args, **kwargs)  # which in inference mode nobody has done before
        why = _why_the_host_waits(name, operation.tags, args, kwargs)
        if why is None:
            return operation(*args, **kwargs)  # FakeTensorMode's, which refuses a mixture of devices
        if not self._building:
            wait = f"{place()}: {why}"
            if wait not in self._meant:
                raise HostWaits(wait)
            self.met.add(wait)
        is_read = torch.Tag.data_dependent_output in operation.tags or why == TO_HOST
        return _zeros_on_the_host(name, args, kwargs) if is_read else operation(*args, **kwargs)

    def _inside(self, function: Any, *args: Any, **kwargs: Any) -> Any:
        super().__enter__()
        try:
            return function(*args, **kwargs)
        finally:
            super().__exit__(None, None, None)


@cache
def _is_composite(operation: Any) -> bool:
    found: bool = torch._C._dispatch_has_kernel_for_dispatch_key(operation.name(), "CompositeImplicitAutograd")
    return found


def place() -> str:
    """`folder/file: function` of the innermost line of the project or of `LIBRARIES` that is executed now."""
    frame = sys._getframe()
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        for home in () if path == Path(__file__) else (*(ROOT / room for room in ROOMS), *LIBRARIES):
            if path.is_relative_to(home) if isinstance(home, Path) else home in path.parts:
                return f"{path.parent.name}/{path.name}: {frame.f_code.co_name}"
        frame = frame.f_back  # type: ignore[assignment]
    return "?"


def _why_the_host_waits(name: str, tags: Any, args: Any, kwargs: Any) -> str | None:
    """Why the host cannot go on before the device has done this operation; None where it can."""
    if torch.Tag.data_dependent_output in tags:
        return f"{name} reads a number"
    if name in ("index", "index_put", "index_put_", "_index_put_impl_"):
        indices = [index for index in args[1] if index is not None]
        if any(index.dtype in (torch.bool, torch.uint8) for index in indices):
            return f"{name} by a mask asks how many are chosen"
        return f"{name} copies indices from the host" if any(index.is_cpu for index in indices) else None
    if torch.Tag.dynamic_output_shape in tags and kwargs.get("output_size") is None:
        return f"{name} asks how large its result is"
    if name in ("_to_copy", "copy_"):
        source, *others = reversed(args[:2])
        target = others[0].device if others else kwargs.get("device") or source.device
        if source.is_cuda and target.type == "cpu":
            return TO_HOST
        if source.is_cpu and target.type == "cuda" and not (kwargs.get("non_blocking") or args[2:] == (True,)):
            return "a copy from the host that is not non_blocking"
    return None


def _zeros_on_the_host(name: str, args: Any, kwargs: Any) -> Any:
    """What the host has waited for."""
    with unset_fake_temporarily():
        if name == "copy_":
            return args[0].zero_()
        zeros = torch.zeros(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
        return zeros if name == "_to_copy" else zeros.item()
