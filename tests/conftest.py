import os
import signal
import sys
from multiprocessing.forkserver import ensure_running
from pathlib import Path

import pytest
import torch
import wandb

HERE = Path(__file__).parent
WANDB_VARIABLES = [name for name in os.environ if name.startswith("WANDB_")]
sys.path[:0] = [str(path) for path in (HERE.parent, HERE.parent / "related", HERE)]  # the scripts, and probes.py

import probes  # noqa: E402, F401


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch, request):
    """Run a test in an empty folder, with gradients, on the CPU unless marked gpu, without W&B's variables."""
    torch.set_grad_enabled(True)  # a signal in another test can have left it off
    monkeypatch.chdir(tmp_path)
    if request.node.get_closest_marker("gpu") is None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)  # in this process
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # in the processes it starts
    elif not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    for name in WANDB_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(wandb, "run", None)  # which a test that ends without wandb.finish would leave set


@pytest.fixture(scope="session")
def forkserver_errors(tmp_path_factory):
    """Start a server from which workers are forked -> the file of their error output, of the current test alone."""
    context = torch.multiprocessing.get_context("forkserver")
    # Slow imports: an optimizer imports torch._dynamo, and a child process its parent's __main__, which is pytest.
    context.set_forkserver_preload(["torch", "torch._dynamo", "gymnasium", "wandb", "pytest"])
    path, stderr = tmp_path_factory.mktemp("forkserver") / "errors", os.dup(2)
    with path.open("a") as file:
        os.dup2(file.fileno(), 2)  # otherwise the server keeps the stream of the test that starts it
        ensure_running()
    os.dup2(stderr, 2)
    os.close(stderr)
    return path


@pytest.fixture
def forkserver(monkeypatch, forkserver_errors):
    """Fork workers from a process that has already imported the slow modules, once for all tests."""
    context = torch.multiprocessing.get_context("forkserver")
    monkeypatch.setattr(torch.multiprocessing, "get_context", lambda method: context)
    os.truncate(forkserver_errors, 0)
    yield context
    sys.stderr.write(forkserver_errors.read_text())  # pytest shows it if the test has failed


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
