"""Test the pure functions of benchmark/: learning curves, fingerprints, statistics over seeds, gradient estimates."""

import sys
from pathlib import Path
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
import torch

import reinforce

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "benchmark"))

import report  # noqa: E402
import run  # noqa: E402
import studies  # noqa: E402


def test_curve():
    """The mean of the last 100 episodes, in the order of the history where several end in the same step."""
    rng = np.random.default_rng(0)
    history = [(8 * (i // 8 + 1), float(value)) for i, value in enumerate(rng.normal(size=1000))]
    points = run.curve(history, 1000)
    assert [step for step, _ in points] == list(range(10, 1001, 10))
    for step, mean in points:
        last = [value for end, value in history if end <= step][-100:]
        assert mean == pytest.approx(np.mean(last), abs=1e-3)
    assert run.curve(history[8:], 1000)[0][0] == 20  # nothing before the first episode has ended
    assert run.curve([], 1000) == []


def test_fingerprint(tmp_path, monkeypatch):
    """It depends on code and settings, not on comments, docstrings and help texts."""
    monkeypatch.setattr(run, "ROOT", tmp_path)
    monkeypatch.setitem(run.PATHS, "script", tmp_path / "script.py")

    def fingerprint(code, settings=""):
        (tmp_path / "script.py").write_text(code)
        (tmp_path / "settings.txt").write_text(settings)
        return run.fingerprint("script", ["--seed", "1", "@settings.txt"])

    first = fingerprint('"""Doc."""\ndef f(x):\n    """Doc."""\n    return add(x, help="what")  # why\n')
    assert first == fingerprint('def f(x):\n    return add(x, help="that")\n')
    assert first != fingerprint('def f(x):\n    return add(x, 1, help="that")\n')
    assert first != fingerprint('def f(x):\n    return add(x, help="that")\n', "--gamma=1")


@pytest.mark.parametrize("size", [1, 2, 3, 5, 10])
def test_interquartile_mean(size):
    scores = np.random.default_rng(size).normal(size=size)
    kept = sorted(scores)[size // 4 : size - size // 4]
    assert report.interquartile_mean(scores) == pytest.approx(np.mean(kept))
    rng = np.random.default_rng(0)
    means = sorted(report.interquartile_mean(rng.choice(scores, size)) for _ in range(41))
    assert report.bootstrap_interval(scores, samples=41) == pytest.approx([means[1], means[-2]])  # 1/40 at each end


def test_gradient_estimates():
    """They are what reinforce.py's update gives the policy, for each Ψ, if no episode is truncated."""
    rng, observations = np.random.default_rng(0), np.zeros((7, 4, 4), np.float32)
    observations[:] = rng.normal(3, 2, observations.shape)
    actions, rewards = rng.integers(2, size=(6, 4)), rng.normal(size=(6, 4)).astype(np.float32)
    is_transition = np.arange(6)[:, None] < np.array([2, 6, 4, 6])
    rewards[~is_transition] = 0
    no_truncations = np.zeros((6, 4), bool)
    env = gym.make("CartPole-v1")
    torch.manual_seed(0)
    agent = reinforce.ActorCritic(env.observation_space, env.action_space)
    agent.obs_statistics.update(observations.reshape(-1, 4))
    agent.return_statistics.update(np.array([3.0, 5.0]))
    batch = observations, actions, rewards, no_truncations, is_transition
    estimates = studies.estimates(agent, *batch, reinforce.parse_args(["--num-envs", "4", "--gamma", "1"]))
    optimizer = SimpleNamespace(zero_grad=agent.zero_grad, step=lambda: None)
    for psi, estimate in zip(studies.PSI, estimates, strict=True):
        flags = ["--num-envs", "4", "--gamma", "1", "--ent-coef", "0", "--psi", psi, "--value-steps", "1"]
        gradients = []
        optimizer.step = lambda gradients=gradients: gradients.append([p.grad for p in agent.actor.parameters()])
        args = reinforce.parse_args([*flags, "--value-warmup", "0"])
        copies = [x.copy() for x in batch]
        statistics = {name: value.clone() for name, value in agent.return_statistics.state_dict().items()}
        reinforce.update(agent, optimizer, *copies, args)
        agent.return_statistics.load_state_dict(statistics)
        expected = -torch.cat([gradient.flatten() for gradient in gradients[0]])
        torch.testing.assert_close(estimate.float(), expected, rtol=1e-4, atol=1e-5)
