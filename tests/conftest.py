"""What all tests share: property tests repeat themselves exactly, and nobody's environment changes an answer."""

from __future__ import annotations

import os

if "PYTEST_XDIST_WORKER" in os.environ:  # as many processes as cores: a second thread of torch would be waited for
    os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings

settings.register_profile("repeatable", deadline=None, derandomize=True, database=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))


@pytest.fixture(autouse=True)
def _plain_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Colours and widths of the terminal that runs the tests stay out of what is compared."""
    for name in ("FORCE_COLOR", "NO_COLOR", "COLUMNS", "PYTHONWARNINGS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """For small networks, which only wait for a team of threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
