"""The soft limit of open files is raised as far as it may be."""

from __future__ import annotations

import resource

import pytest

from diffcse_scale.foundation.descriptors import allow_all_descriptors


@pytest.fixture
def limits():
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield before
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_the_soft_limit_becomes_the_hard_one(limits):
    _, hard = limits
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    assert allow_all_descriptors() == (float("inf") if hard == resource.RLIM_INFINITY else hard)
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
