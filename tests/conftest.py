"""What every test shares: threads, the recorded fixtures, offline hubs."""

import os
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).parent))  # so that every test can import `models`

import pytest  # noqa: E402
import torch  # noqa: E402
from models import fixture  # noqa: E402

if os.environ.get("CFX_THREADS"):
    torch.set_num_threads(int(os.environ["CFX_THREADS"]))


@pytest.fixture(name="fixture", scope="session")
def _fixture():
    """The loader of recorded fixtures: `tensors, meta = fixture("02_schedule")`."""
    return fixture
