"""Faults planted in a kernel's source, so that a slow test shows that its comparison would notice them."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType


def with_fault(module: ModuleType, old: str, new: str, folder: Path) -> ModuleType:
    """A fresh copy of `module` in which `new` stands for `old`, which must occur exactly once.

    `folder` (a test's `tmp_path`) holds the changed source, because Triton reads a kernel's source from its file. The
    copy's relative imports are those of `module`, which itself stays as it was.
    """
    source = Path(str(module.__file__)).read_text(encoding="utf-8")
    assert source.count(old) == 1, f"{old!r} occurs {source.count(old)} times in {module.__file__}"
    file = folder / f"{module.__name__.rpartition('.')[2]}.py"
    file.write_text(source.replace(old, new), encoding="utf-8")
    spec = importlib.util.spec_from_file_location(f"{module.__name__}_with_fault", file)
    assert spec and spec.loader
    changed = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(changed)
    return changed
