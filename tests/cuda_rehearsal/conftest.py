"""The rehearsal needs a CUDA build of torch, and no GPU: `make rehearse-cuda`."""

from __future__ import annotations

import pytest
import torch

WITHOUT_CUDA = pytest.mark.skipif(torch.version.cuda is None, reason="needs a CUDA build of torch: make rehearse-cuda")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent.name == "cuda_rehearsal":
            item.add_marker(WITHOUT_CUDA)
