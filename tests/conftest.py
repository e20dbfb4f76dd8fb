import signal
import sys
from pathlib import Path

import pytest
import torch
import wandb

HERE = Path(__file__).parent
sys.path[:0] = [str(path) for path in (HERE.parent, HERE.parent / "related", HERE)]  # the scripts, and probes.py

import probes  # noqa: E402, F401


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    """Each test runs in an empty folder, on the CPU, without the caller's W&B settings."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)  # in this process
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # in the processes it starts
    for name in ("WANDB_MODE", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(wandb, "run", None)  # which a test that ends without wandb.finish would leave set


@pytest.fixture
def forkserver(monkeypatch):
    """Fork workers from a process that has already imported the slow modules, once for all tests."""
    context = torch.multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "gymnasium", "wandb"])
    monkeypatch.setattr(torch.multiprocessing, "get_context", lambda method: context)
    return context


@pytest.fixture
def handlers():
    """Signals act as in the program, even if pytest runs in the background, where Ctrl-C is ignored."""
    handlers = {signal.SIGTERM: lambda *_: sys.exit(143), signal.SIGINT: signal.default_int_handler}
    before = {signum: signal.signal(signum, handler) for signum, handler in handlers.items()}
    yield
    for signum, handler in before.items():
        signal.signal(signum, handler)
    signal.pthread_sigmask(
        signal.SIG_UNBLOCK, before
    )  # a3c.py blocks it while it starts a worker, and may be interrupted then
