#!/usr/bin/env bash
# Run the tests of tests/cuda_rehearsal with a CUDA build of torch and without a GPU. If .venv has such a build, it is
# used; otherwise .venv-cuda is. That has the same release of torch (4.5 GB, installed once) and everything else from
# .venv.
# Arguments: pytest's.
set -euo pipefail
cd "$(dirname "$0")/../.."
release=$(.venv/bin/python -c 'import torch; print(torch.__version__.partition("+")[0])')
has_cuda() {
    "$1/bin/python" -c "import sys, torch; sys.exit(not (torch.version.cuda and torch.__version__.startswith('$release')))" \
        2>/dev/null
}
environment=.venv
if ! has_cuda .venv; then
    environment=.venv-cuda
    if ! has_cuda .venv-cuda; then
        rm -rf .venv-cuda
        .venv/bin/python -m venv --without-pip .venv-cuda
        grep -v '^torch==' constraints.txt >.venv-cuda/constraints.txt
        # three equal signs: exactly the release on PyPI, and not a CPU build of it from another index
        .venv/bin/pip --python .venv-cuda/bin/python install --quiet --no-compile \
            --constraint .venv-cuda/constraints.txt "torch===$release" || true
        packages='import sysconfig; print(sysconfig.get_path("purelib"))'
        echo "import site; site.addsitedir('$(.venv/bin/python -c "$packages")')" \
            >"$(.venv-cuda/bin/python -c "$packages")/beside.pth"
    fi
    if ! has_cuda .venv-cuda; then
        rm -rf .venv-cuda
        echo "rehearse-cuda: a CUDA build of torch $release cannot be installed here, so nothing was rehearsed."
        exit 0
    fi
fi
exec "$environment/bin/python" -m pytest tests/cuda_rehearsal "$@"
