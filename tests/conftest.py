import signal
import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent
sys.path[:0] = [str(path) for path in (HERE.parent, HERE.parent / "related", HERE)]  # the scripts, and probes.py

import probes  # noqa: E402, F401


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    """Each test runs in an empty folder, on CPUs, with W&B's settings of the caller out of the way."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)  # in this process
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # in those that it starts
    for name in ("WANDB_MODE", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def forkserver(monkeypatch):
    """Workers are forked from a process that has imported what takes long, once for all tests."""
    context = torch.multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "gymnasium", "wandb"])
    monkeypatch.setattr(torch.multiprocessing, "get_context", lambda method: context)
    return context


@pytest.fixture
def handlers():
    """Signals do what they do to the program, also where pytest runs in the background, which ignores Ctrl-C."""
    handlers = {signal.SIGTERM: lambda *_: sys.exit(143), signal.SIGINT: signal.default_int_handler}
    before = {signum: signal.signal(signum, handler) for signum, handler in handlers.items()}
    yield
    for signum, handler in before.items():
        signal.signal(signum, handler)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, before)  # a3c.py blocks one while it starts a worker, and is struck then
