"""paac_gpu.py: its equations against independent definitions, every branch, probe environments, and several ranks."""

import copy
import math
import os
import re
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

import a2c
import paac_gpu

ROOT = Path(__file__).parents[1]
T, N = 7, 3  # num_steps, num_envs of the random rollouts below
FRAMES = Box(0, 255, (4, 84, 84), np.uint8)


def quick(*flags):
    """Arguments of a run that lasts a blink; later flags win."""
    cartpole = "--env-id CartPole-v1 --num-envs 8 --num-steps 8 --total-timesteps 1024 --device cpu".split()
    return paac_gpu.parse_args([*cartpole, "--wandb-mode", "disabled", "--eval-episodes", "1", *flags])


def mlp_agent(obs_dim=2, num_actions=2):
    return paac_gpu.ActorCritic(Box(-1, 1, (obs_dim,)), num_actions, "nips")


def random_rollout(seed):
    """Observations (T + 1, N, 2), actions, rewards, terminated, done, valid (T, N), as an environment gives them."""
    rng = np.random.default_rng(seed)
    observations, rewards, actions = (
        rng.normal(size=(T + 1, N, 2)),
        3 * rng.normal(size=(T, N)),
        rng.integers(2, size=(T, N)),
    )
    terminated, done, valid = np.zeros((T, N), bool), np.zeros((T, N), bool), np.ones((T, N), bool)
    for n, ends in enumerate([(2, 5), (3, T - 1), (0,)]):  # at a step and later, at the last step, at the first
        for k, t in enumerate(ends):
            done[t, n], terminated[t, n] = True, (n + k + seed) % 2
            valid[t + 1 : t + 2, n] = False
    rewards[~valid] = 0
    return tuple(torch.as_tensor(x) for x in (observations, actions, rewards, terminated, done, valid))


def act(agent, observations):
    """Logits (T, N, num_actions) and values (T + 1, N) as train collects them, step by step."""
    steps = [agent(obs) for obs in observations]
    with torch.no_grad():
        last = agent(observations[-1])[1]
    return torch.stack([logits for logits, _ in steps[:-1]]), torch.stack([*(v for _, v in steps[:-1]), last])


# The optimizer


def test_rmsprop_is_tensorflow_s():
    """ms = decay ms + (1 - decay) g², var -= lr g / √(ms + ε), ms at first 1, in NumPy over 20 steps."""
    rng = np.random.default_rng(0)
    variables = [rng.normal(size=shape) for shape in ((3, 2), (4,))]
    parameters = [torch.nn.Parameter(torch.tensor(x)) for x in variables]
    optimizer = paac_gpu.RMSProp(parameters, lr=0.0, decay=0.9, eps=0.1)
    mean_squares = [np.ones_like(x) for x in variables]
    for step in range(20):
        optimizer.param_groups[0]["lr"] = 0.1 / (step + 1)
        for p, x, ms in zip(parameters, variables, mean_squares, strict=True):
            g = rng.normal(size=x.shape) * 10 ** rng.uniform(-2, 2)
            p.grad = torch.tensor(g)
            ms[:] = 0.9 * ms + 0.1 * g**2
            x -= 0.1 / (step + 1) * g / np.sqrt(ms + 0.1)
        optimizer.step()
        for p, x in zip(parameters, variables, strict=True):
            np.testing.assert_allclose(p.detach(), x, rtol=0, atol=1e-12)


def test_rmsprop_goes_on_from_its_state():
    p = torch.nn.Parameter(torch.ones(3))
    optimizer = paac_gpu.RMSProp([p], lr=0.1, decay=0.9, eps=0.1)
    p.grad = torch.tensor([1.0, -2.0, 30.0])
    optimizer.step()
    q = torch.nn.Parameter(p.detach().clone())
    other = paac_gpu.RMSProp([q], lr=0.5, decay=0.5, eps=0.5)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))  # as from a file
    q.grad = p.grad.clone()
    optimizer.step()
    other.step()
    assert torch.equal(p, q) and not torch.equal(p, torch.ones(3))


# One update


@pytest.mark.parametrize("seed", range(3))
def test_an_update_is_a2c_s(seed):
    """The same weights, rollout and optimizer, λ = 1, no normalization: a2c.py's one forward pass, to 1e-6."""
    torch.manual_seed(seed)
    observations, *rollout = random_rollout(seed)
    flags = "--gamma 0.9 --gae-lambda 1 --vf-coef 0.25 --ent-coef 0.02 --max-grad-norm 0.5".split()
    agents = [a2c.ActorCritic(Box(-1, 1, (2,)), Discrete(2)).double() for _ in range(2)]
    agents[1].load_state_dict(agents[0].state_dict())
    optimizers = [paac_gpu.RMSProp(agent.parameters(), lr=1.0, decay=0.99, eps=0.1) for agent in agents]
    before = agents[0].actor[0].weight.detach().clone()
    for _ in range(3):
        args = a2c.parse_args(["--no-normalize-advantage", *flags])
        metrics = a2c.update(agents[0], optimizers[0], observations, *rollout, args)
        logits, values = act(agents[1], observations)
        args = quick("--loss-scale", "1", *flags)
        others = paac_gpu.update(agents[1], optimizers[1], logits, values, *rollout, args)
        assert metrics.keys() == others.keys() and metrics["grad_norm"] > 0.5, "the rollout must exercise the clipping"
        for name, value in metrics.items():
            assert value.item() == pytest.approx(others[name].item(), abs=1e-6)
    for p, q in zip(*(agent.parameters() for agent in agents), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-6)
    assert (agents[0].actor[0].weight - before).abs().max() > 1e-3


@pytest.mark.parametrize("gae_lambda", [1.0, 0.8])
def test_one_update_is_the_one_written_out_by_hand(gae_lambda):
    """Alg. 1 with the authors' constants and the weights after it, from sums over single transitions."""
    torch.manual_seed(1)
    observations, actions, rewards, terminated, done, valid = rollout = random_rollout(1)
    args = quick("--gamma", "0.95", "--gae-lambda", str(gae_lambda), "--max-grad-norm", "0.7")
    assert (args.loss_scale, args.vf_coef, args.ent_coef) == (5.0, 0.25, 0.02)
    agent = mlp_agent().double()
    weights = [p.detach().clone() for p in agent.parameters()]
    with torch.no_grad():
        value = {(t, n): agent(observations[t, n])[1].item() for t in range(T + 1) for n in range(N)}
    loss, count = 0.0, valid.sum().item()
    for t, n in valid.nonzero().tolist():
        if gae_lambda == 1:  # R of Alg. 1: rewards up to the end of the episode or rollout, then V
            target, k = 0.0, t
            while k < T and not (k > t and done[k - 1, n]):
                target += 0.95 ** (k - t) * rewards[k, n].item()
                k += 1
            if not terminated[k - 1, n]:
                target += 0.95 ** (k - t) * value[k, n]
        else:
            target = value[t, n]
            for k in range(t, T):
                delta = rewards[k, n].item() + 0.95 * value[k + 1, n] * (not terminated[k, n]) - value[k, n]
                target += (0.95 * gae_lambda) ** (k - t) * delta
                if done[k, n]:
                    break
        logits, v = agent(observations[t, n])
        log_probs = logits - logits.exp().sum().log()
        entropy = -(log_probs.exp() * log_probs).sum()
        policy_term = -log_probs[actions[t, n]] * (target - value[t, n])
        loss = loss + policy_term + 0.25 * (target - v) ** 2 - 0.02 * entropy
    gradients = torch.autograd.grad(5 * loss / count, list(agent.parameters()))
    norm = math.sqrt(sum((g**2).sum().item() for g in gradients))
    assert norm > 0.7, "the rollout must exercise the clipping"

    optimizer = paac_gpu.RMSProp(agent.parameters(), lr=0.0224, decay=0.99, eps=0.1)
    logits, values = act(agent, observations)
    metrics = paac_gpu.update(agent, optimizer, logits, values, *rollout[1:], args)
    assert metrics["grad_norm"].item() == pytest.approx(norm, rel=1e-6)
    for p, before, g in zip(agent.parameters(), weights, gradients, strict=True):
        g = g * 0.7 / norm
        expected = before - 0.0224 * g / (0.99 + 0.01 * g**2 + 0.1).sqrt()
        torch.testing.assert_close(p.detach(), expected, rtol=0, atol=1e-7)
        assert (p.detach() - before).abs().max() > 1e-4


def test_rows_that_only_reset_teach_nothing():
    torch.manual_seed(0)
    observations, actions, rewards, terminated, done, valid = random_rollout(0)
    agent = mlp_agent().double()

    def gradient(rewards, actions):
        optimizer = torch.optim.SGD(agent.parameters(), lr=0.0)
        logits, values = act(agent, observations)
        paac_gpu.update(agent, optimizer, logits, values, actions, rewards, terminated, done, valid, quick())
        return torch.cat([p.grad.flatten() for p in agent.parameters()])

    reference = gradient(rewards, actions)
    other = gradient(torch.where(valid, rewards, 1e3), torch.where(valid, actions, 1 - actions))
    assert torch.equal(reference, other)
    assert not torch.equal(reference, gradient(torch.where(valid, 1e3, rewards), actions))


def test_a_gradient_that_is_not_finite_changes_no_weight():
    agent = mlp_agent()
    before = [p.detach().clone() for p in agent.parameters()]
    optimizer = paac_gpu.RMSProp(agent.parameters(), lr=0.1, decay=0.99, eps=0.1)
    logits, values = act(agent, torch.zeros(4, 1, 2))
    no, yes = torch.zeros(3, 1), torch.ones(3, 1)
    paac_gpu.update(agent, optimizer, logits, values, no.long(), yes * torch.nan, no, no, yes, quick())
    assert all(torch.equal(a, b) for a, b in zip(before, agent.parameters(), strict=True))


def test_a_loss_that_is_not_finite_is_seen_in_the_last_update():
    """Rewards are NaN from the 300th step on: with the resets in between that is in the sixth of six rollouts."""
    flags = "--env-id NotANumber-v0 --num-envs 1 --num-steps 64 --total-timesteps 384".split()
    with pytest.raises(ValueError, match="step 384: the loss is not finite"):
        paac_gpu.train(quick(*flags))


# Network


@pytest.mark.parametrize(
    ("network", "shapes"),
    [
        ("nips", [(16, 4, 8, 8), (32, 16, 4, 4), (256, 2592), (6, 256), (1, 256)]),
        ("nature", [(32, 4, 8, 8), (64, 32, 4, 4), (64, 64, 3, 3), (512, 3136), (6, 512), (1, 512)]),
    ],
)
def test_networks_for_frames(network, shapes):
    torch.manual_seed(0)
    agent = paac_gpu.ActorCritic(FRAMES, 6, network)
    assert [tuple(p.shape) for p in agent.parameters() if p.ndim > 1] == shapes
    for weight, bias in zip(*[iter(agent.parameters())] * 2, strict=True):
        bound = 1 / math.sqrt(weight[0].numel())
        for p in (weight, bias):
            assert p.abs().max() <= bound
        assert abs(weight.std() / bound - 1 / math.sqrt(3)) < 0.1 and bias.abs().min() > 0  # uniform, not zero
    frames = torch.randint(256, (3, 4, 84, 84), dtype=torch.uint8)
    logits, values = agent(frames)
    assert logits.shape == (3, 6) and values.shape == (3,)
    one = frames[1].float()  # as evaluate gives it: one observation, in floats
    one_logits, one_value = agent(one)
    assert torch.equal(one, frames[1].float())  # is left alone
    torch.testing.assert_close((one_logits, one_value), (logits[1], values[1]), rtol=0, atol=1e-5)
    torch.testing.assert_close(agent.actor(agent.body(frames / 255.0)), logits)
    agent.to(memory_format=torch.channels_last)
    torch.testing.assert_close(agent(frames), (logits, values), rtol=0, atol=1e-5)


def test_network_for_flat_observations():
    agent = mlp_agent(4, 3)
    logits, values = agent(torch.randn(5, 2, 4))
    assert logits.shape == (5, 2, 3) and values.shape == (5, 2)
    assert agent(torch.randn(4).double())[0].dtype == torch.float32


@pytest.mark.parametrize("space", [FRAMES, Box(-1, 1, (4,))])
def test_bfloat16_is_for_the_body_alone(space):
    """Outputs, weights and gradients are float32; they are near those of float32, and not the same."""
    torch.manual_seed(0)
    agents = [paac_gpu.ActorCritic(space, 3, "nature", bf16) for bf16 in (False, True)]
    agents[1].load_state_dict(agents[0].state_dict())
    obs = torch.as_tensor(np.stack([space.sample() for _ in range(8)]))
    outputs = [torch.cat([logits, values.unsqueeze(-1)], -1) for logits, values in (agent(obs) for agent in agents)]
    assert outputs[1].dtype == torch.float32 and not torch.equal(*outputs)
    torch.testing.assert_close(*outputs, rtol=0.02, atol=0.002)
    for output in outputs:
        (output**2).sum().backward()
    for p, q in zip(*(agent.parameters() for agent in agents), strict=True):
        assert q.dtype == q.grad.dtype == torch.float32
        assert (p.grad - q.grad).norm() < 0.15 * p.grad.norm()


def test_policy():
    torch.manual_seed(0)
    agent, logits = mlp_agent(2, 3), torch.tensor([0.0, 1.0, -1.0])
    probabilities = np.exp([0.0, 1.0, -1.0]) / np.exp([0.0, 1.0, -1.0]).sum()
    noise = torch.empty(100_000, 3).exponential_()
    actions = agent.sample(logits.expand(100_000, 3), noise)
    frequencies = np.bincount(actions, minlength=3) / len(actions)
    np.testing.assert_allclose(frequencies, probabilities, atol=5 * 0.5 / math.sqrt(len(actions)))  # 5 sigma
    log_prob, entropy = agent.log_prob_and_entropy(logits.expand(3, 3), torch.arange(3))
    np.testing.assert_allclose(log_prob, np.log(probabilities), atol=1e-6)
    np.testing.assert_allclose(entropy, -(probabilities * np.log(probabilities)).sum(), atol=1e-6)
    assert agent.greedy(logits) == 1


# What train hands to the update


def recorded(monkeypatch, *flags):
    """Run train -> what each update received, with the observations first and the learning rate last; the result."""
    calls, seen, original_update, original_to_device = [], [], paac_gpu.update, paac_gpu.to_device

    def to_device(obs, device):
        seen.append(original_to_device(obs, device))
        return seen[-1]

    def update(agent, optimizer, logits, values, *tensors_and_args):
        *tensors, args = tensors_and_args
        observations = torch.stack(seen[1 : args.num_steps + 2])  # after the noise, before the rewards
        seen.clear()
        with torch.no_grad():  # acting has left what these weights say of these observations
            for kept, fresh in zip((logits, values), agent(observations.flatten(0, 1)), strict=True):
                fresh = fresh.unflatten(0, (args.num_steps + 1, args.num_envs))
                torch.testing.assert_close(kept.detach(), fresh[: len(kept)], rtol=0, atol=1e-4)
        calls.append([x.numpy().copy() for x in (observations, *tensors)] + [optimizer.param_groups[0]["lr"].item()])
        return original_update(agent, optimizer, logits, values, *tensors_and_args)

    monkeypatch.setattr(paac_gpu, "to_device", to_device)
    monkeypatch.setattr(paac_gpu, "update", update)
    return calls, paac_gpu.train(quick(*flags))


def test_rollouts_are_the_environment_s_transitions(monkeypatch):
    """Every row against the script of the environment: last observations true, reset rows invalid, nothing lost."""
    flags = "--env-id Scripted-v0 --num-envs 2 --num-steps 5 --total-timesteps 200".split()
    calls, (_, history) = recorded(monkeypatch, *flags)
    assert len(calls) == 20
    for n in range(2):
        episode = t = 0
        resets = False
        for observations, _, rewards, terminated, done, valid, _ in calls:
            for row in range(5):
                obs, next_obs = observations[row, n], observations[row + 1, n]
                assert valid[row, n] == (not resets)
                if resets:
                    episode, t, resets = episode + 1, 0, False
                    assert rewards[row, n] == 0 and not done[row, n] and tuple(next_obs) == (episode, 0)
                    continue
                assert tuple(obs) == (episode, t) and tuple(next_obs) == (episode, t + 1)
                t += 1
                assert rewards[row, n] == 10 * episode + t
                assert terminated[row, n] == (episode % 2 == 0 and t == 3)
                resets = bool(done[row, n])
                assert resets == (t == (3, 4)[episode % 2])
    lengths = [(3, 4)[k % 2] for k in range(len(history))]
    by_episode = [sum(10 * k + t for t in range(1, lengths[k] + 1)) for k in range(len(history) // 2)]
    assert [value for _, value in history] == [value for value in by_episode for _ in range(2)]
    assert [step for step, _ in history[:5]] == [6, 6, 16, 16, 24]  # 3 steps, reset, 4 steps, reset, 3 steps; 2 envs


def test_actions_are_those_that_were_played(monkeypatch):
    """In a bandit that pays 1 for action 1 and -1 for action 0, rewards tell the actions."""
    calls, _ = recorded(monkeypatch, "--env-id", "ActionReward-v0")
    actions, rewards, valid = (np.concatenate([call[i] for call in calls]) for i in (1, 2, 5))
    assert np.array_equal(rewards[valid], 2 * actions[valid] - 1) and 0.1 < actions.mean() < 1
    assert not all((call[1] == call[1][0]).all() for call in calls)  # new noise at each step


def test_learning_rate_falls_to_zero(monkeypatch):
    calls, _ = recorded(monkeypatch, "--learning-rate", "0.1", "--num-envs", "4", "--num-steps", "64")
    assert [call[-1] for call in calls] == pytest.approx([0.1, 0.075, 0.05, 0.025])
    monkeypatch.undo()
    calls, _ = recorded(monkeypatch, "--learning-rate", "0.1", "--no-anneal-lr", "--num-envs", "4", "--num-steps", "64")
    assert [call[-1] for call in calls] == pytest.approx([0.1] * 4)


def test_optimizer_settings(monkeypatch, tmp_path):
    """The flags hold, in a resumed run too: its own, not the last one's."""
    seen, update = [], paac_gpu.update
    spy = lambda agent, optimizer, *rest: seen.append(optimizer.param_groups[0]) or update(agent, optimizer, *rest)  # noqa: E731
    monkeypatch.setattr(paac_gpu, "update", spy)
    paac_gpu.train(quick("--rmsprop-decay", "0.9", "--rmsprop-eps", "0.2"))
    assert (seen[0]["decay"], seen[0]["eps"]) == (0.9, 0.2)
    (path,) = tmp_path.glob("runs/*/checkpoint.pt")
    more = "--rmsprop-decay", "0.8", "--rmsprop-eps", "0.3", "--total-timesteps", "2048"
    paac_gpu.train(quick("--resume", str(path), *more))
    assert (seen[-1]["decay"], seen[-1]["eps"]) == (0.8, 0.3)


# Atari


def test_atari_rollouts(monkeypatch):
    """Frames stay uint8 up to the device, rewards are clipped for learning and logged as the game gives them."""
    flags = "--env-id ALE/MsPacman-v5 --num-envs 4 --num-steps 8 --total-timesteps 3200 --eval-episodes 0".split()
    calls, (_, history) = recorded(monkeypatch, *flags)
    observations, _, rewards, terminated, done, valid, _ = calls[0]
    assert observations.dtype == np.uint8 and observations.shape == (9, 4, 4, 84, 84) and observations.max() > 100
    rewards, terminated, done, valid = (np.stack([call[i] for call in calls]).reshape(-1, 4) for i in (2, 3, 4, 5))
    assert set(np.unique(rewards)) == {0.0, 1.0}
    assert terminated.any() and np.array_equal(valid[1:], ~done[:-1])  # the row after a done only resets
    assert history and all(value % 10 == 0 and value >= 60 for _, value in history)  # 10 points a pellet
    total = sum(rewards[: np.flatnonzero(done[:, n])[0] + 1, n].sum() for n in range(4) if done[:, n].any())
    assert total < sum(value for _, value in history) / 5


@pytest.mark.parametrize(("num_envs", "threads"), [(8, 3), (2, 2)])
def test_atari_settings(num_envs, threads, monkeypatch):
    """What ALE is asked for: rewards of the game, sticky actions as given, and no more threads than games."""
    seen = {}
    monkeypatch.setattr(gym, "make_vec", lambda env_id, **settings: seen.update(settings))
    paac_gpu.make_atari(quick("--env-threads", "3", "--repeat-action-probability", "0.1"), num_envs)
    expected = {"num_envs": num_envs, "num_threads": threads}
    assert seen == expected | {"repeat_action_probability": 0.1, "reward_clipping": False}


def test_atari_is_deterministic_and_resumes(tmp_path):
    flags = "--env-id ALE/Pong-v5 --num-envs 4 --num-steps 5 --total-timesteps 100 --eval-episodes 0".split()
    one, two = (paac_gpu.train(quick(*flags, "--env-threads", threads))[0] for threads in "12")
    for p, q in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.equal(p, q)
    path = next(tmp_path.glob("runs/*/checkpoint.pt"))
    with pytest.raises(ValueError, match="no checkpoint of this script, environment and network"):
        paac_gpu.train(quick(*flags, "--resume", str(path), "--network", "nature"))
    resumed, _ = paac_gpu.train(quick(*flags, "--resume", str(path), "--total-timesteps", "200"))
    assert not torch.equal(resumed.actor.weight, one.actor.weight)


def test_atari_evaluation_and_video(tmp_path, monkeypatch):
    """One episode of Pong by an agent that never moves: 21 points lost; its frames in the video."""
    monkeypatch.setattr(paac_gpu.ActorCritic, "greedy", lambda self, logits: torch.tensor(0))
    flags = "--env-id ALE/Pong-v5 --num-envs 1 --num-steps 1 --total-timesteps 1 --capture-video".split()
    agent, _ = paac_gpu.train(quick(*flags))
    (video,) = tmp_path.glob("runs/*/videos/*.mp4")
    assert video.stat().st_size > 10_000
    flags.remove("--capture-video")
    assert paac_gpu.evaluate(agent, quick(*flags)) == [-21.0]


# Branches


@pytest.mark.parametrize("flags", ["", "--num-envs 1 --num-steps 1", "--gae-lambda 0.9", "--eval-episodes 0"])
def test_a_short_run(flags):
    agent, history = paac_gpu.train(quick("--total-timesteps", "600", *flags.split()))
    assert history and all(0 < step <= 600 and value > 0 for step, value in history)
    assert all(p.isfinite().all() for p in agent.parameters())


def test_a_checkpoint_brings_everything_back(tmp_path):
    paac_gpu.train(quick())
    (path,) = tmp_path.glob("runs/*/checkpoint.pt")
    saved = torch.load(path, weights_only=True)
    torch.manual_seed(9)
    agent = mlp_agent(4)
    optimizer = paac_gpu.RMSProp(agent.parameters(), lr=0.1, decay=0.5, eps=0.5)
    assert paac_gpu.load_checkpoint(quick("--resume", str(path)), agent, optimizer) == (1024, saved["wandb_id"])
    assert all(torch.equal(p, saved["agent"][name]) for name, p in agent.named_parameters())
    assert torch.equal(torch.get_rng_state(), saved["torch_rng"])
    state, expected = optimizer.state_dict()["state"], saved["optimizer"]["state"]
    assert len(expected) == 8
    for i, x in expected.items():
        assert torch.equal(state[i]["mean_square"], x["mean_square"]) and not (x["mean_square"] == 1).all()


def test_a_resumed_run_goes_on(tmp_path, monkeypatch):
    """The schedule from its step on, the same W&B run, other episodes than those of any other start."""
    seeds, make_envs = [], paac_gpu.make_envs

    def spied(args):
        envs = make_envs(args)
        reset = envs.reset
        envs.reset = lambda seed: seeds.append(seed) or reset(seed=seed)
        return envs

    monkeypatch.setattr(paac_gpu, "make_envs", spied)
    paac_gpu.train(quick("--total-timesteps", "512"))
    (path,) = tmp_path.glob("runs/*/checkpoint.pt")
    calls, _ = recorded(monkeypatch, "--learning-rate", "0.1", "--resume", str(path))
    assert calls[0][-1] == pytest.approx(0.05)
    paac_gpu.train(quick("--seed", "2"))
    assert len(seeds) == 3 and min(np.diff(sorted(seeds))) > 1000  # Gymnasium counts up, one per environment
    ids = [torch.load(p, weights_only=True)["wandb_id"] for p in tmp_path.glob("runs/*/checkpoint.pt")]
    assert ids.count(torch.load(path, weights_only=True)["wandb_id"]) == 2


def test_the_seed_draws_the_network():
    one, two = (paac_gpu.train(quick("--learning-rate", "0", "--seed", seed))[0] for seed in "12")
    assert not torch.equal(one.actor.weight, two.actor.weight)


def test_what_is_logged(monkeypatch):
    seen, log = [], paac_gpu.log_progress
    spy = lambda *args: seen.append((list(args[3]), args[4])) or log(*args)  # noqa: E731
    monkeypatch.setattr(paac_gpu, "log_progress", spy)
    _, history = paac_gpu.train(quick("--env-id", "Scripted-v0", "--total-timesteps", "2048"))
    recent, charts = seen[-1]
    assert [value for value, _ in recent] == [value for _, value in history[-100:]] and len(history) > 100
    assert {length for _, length in recent} == {3, 4}  # the reset row is no step of an episode
    assert charts["charts/PPS"] == pytest.approx(charts["charts/SPS"] * 9 / 8)  # 8 steps and the bootstrap's state
    assert charts["charts/TPS"] == pytest.approx(charts["charts/SPS"] / 64)
    shares = {name: share for name, share in charts.items() if name.startswith("time/")}
    assert sum(shares.values()) == pytest.approx(1) and min(shares.values()) > 0
    assert set(shares) >= {"time/acting", "time/environments", "time/learning"}


def test_clock(monkeypatch):
    now = iter([0.0, 1.0, 3.0, 4.0])
    monkeypatch.setattr(paac_gpu.time, "perf_counter", lambda: next(now))
    clock = paac_gpu.Clock()
    for name in ("a", "b", "a"):
        clock.lap(name)
    assert clock.shares() == {"time/a": 0.5, "time/b": 0.5}


def test_a_save_that_fails_leaves_the_last_checkpoint(tmp_path, monkeypatch):
    paac_gpu.train(quick())
    (path,) = tmp_path.glob("runs/*/checkpoint.pt")
    before = path.read_bytes()

    def half(checkpoint, file):
        file.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", half)
    agent = mlp_agent()
    with pytest.raises(OSError):
        paac_gpu.save_checkpoint(path.parent, quick(), agent, torch.optim.SGD(agent.parameters()), 0, "")
    assert path.read_bytes() == before


def test_evaluation_is_greedy_and_seeded():
    torch.manual_seed(0)
    agent, args = mlp_agent(4), quick("--eval-episodes", "3")
    returns = paac_gpu.evaluate(agent, args)
    assert len(returns) == 3 and paac_gpu.evaluate(agent, args) == returns
    env, expected = gym.make("CartPole-v1"), []
    for episode in range(3):
        obs, _ = env.reset(seed=paac_gpu.env_seed(args.seed, 1, episode))
        done, total = False, 0.0
        while not done:
            obs, reward, terminated, truncated, _ = env.step(int(agent(torch.as_tensor(obs))[0].argmax()))
            done, total = terminated or truncated, total + reward
        expected.append(total)
    assert returns == expected


@pytest.mark.parametrize(
    "env_id",
    ["DictObservation-v0", "ImageObservation-v0", "MultiDiscreteAction-v0", "Target-v0", "FrozenLake-v1"],
)
def test_environments_that_it_cannot_take(env_id, tmp_path):
    with pytest.raises(ValueError, match=f"--env-id {env_id}: takes flat Box observations or Atari, Discrete actions"):
        paac_gpu.train(quick("--env-id", env_id))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("env_id", ["NeedsArgument-v0", "SameStep-v0", "BrokenReset-v0", "ALE/Pongo-v5"])
def test_environments_that_fail(env_id, tmp_path):
    """Before training starts: an error that names the environment or is its own, and nothing on the disk."""
    with pytest.raises((ValueError, ZeroDivisionError), match=f"--env-id {env_id}|by its reset"):
        paac_gpu.train(quick("--env-id", env_id))
    assert not list(tmp_path.iterdir())


def test_an_epsilon_of_zero_is_refused(capsys):
    """A weight whose gradient has always been 0 would be divided by the root of 0."""
    with pytest.raises(SystemExit) as stop:
        paac_gpu.parse_args(["--rmsprop-eps", "0"])
    assert stop.value.code == 2 and "--rmsprop-eps: takes float from 1e-12" in capsys.readouterr().err


@pytest.mark.parametrize(("ranks", "steps"), [(1, 80), (3, 240)])
def test_less_than_one_rollout(ranks, steps, capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", str(ranks))
    flags = ["--num-envs", "8", "--num-steps", "10", "--total-timesteps"]
    assert paac_gpu.parse_args([*flags, str(steps)]).total_timesteps == steps
    with pytest.raises(SystemExit) as stop:
        paac_gpu.parse_args([*flags, str(steps - 1)])
    assert stop.value.code == 2 and f"num_envs x num_steps x ranks = {steps}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flag", "image", "gpus", "rank", "device"),
    [
        ("auto", True, 0, 0, "cpu"),
        ("auto", True, 2, 1, "cuda:1"),
        ("auto", False, 2, 1, "cpu"),
        ("cpu", True, 2, 1, "cpu"),
        ("cuda", False, 2, 1, "cuda:1"),
        ("cuda:0", False, 2, 1, "cuda:0"),
        ("auto", True, 2, 2, None),
    ],
)
def test_each_rank_has_a_device(flag, image, gpus, rank, device, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    args = quick()
    args.device = flag
    if device:
        assert paac_gpu.choose_device(args, image, rank) == torch.device(device)
    else:
        with pytest.raises(ValueError, match="a GPU for each process, and there are 2"):
            paac_gpu.choose_device(args, image, rank)


def test_observations_are_copied():
    """The graph that acting keeps must not see what an environment writes into its buffer later."""
    obs = np.zeros((2, 3), np.float32)
    tensor = paac_gpu.to_device(obs, torch.device("cpu"))
    obs[:] = 1
    assert (tensor == 0).all() and tensor.dtype == torch.float32
    frames = np.random.default_rng(0).integers(256, size=(2, 4, 84, 84), dtype=np.uint8)
    tensor = paac_gpu.to_device(frames, torch.device("cpu"))
    assert np.array_equal(tensor, frames) and tensor.is_contiguous(memory_format=torch.channels_last)


def test_waiting_threads_soon_sleep_only_where_it_is_the_program(monkeypatch):
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    monkeypatch.setattr(sys, "argv", ["paac_gpu.py", "--help"])
    handlers = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        runpy.run_path(str(ROOT / "paac_gpu.py"), run_name="imported")
        assert "GOMP_SPINCOUNT" not in os.environ
        with pytest.raises(SystemExit):
            runpy.run_path(str(ROOT / "paac_gpu.py"), run_name="__main__")
        assert os.environ["GOMP_SPINCOUNT"] == "10000"
    finally:
        for signum, handler in handlers.items():
            signal.signal(signum, handler)


# CUDA graphs


def tensors(tree):
    """The tensors of nested lists and dicts; .data, so that autograd does not see what is done to them."""
    return [x.data for x in tree_leaves(tree) if isinstance(x, torch.Tensor)]


def address(x):
    return x.untyped_storage().data_ptr()


class Graph:
    """torch.cuda.CUDAGraph on the CPU: a list of (operation, args, kwargs, outputs)."""

    replays = 0

    def __init__(self):
        self.operations = []

    def replay(self):
        """Run the operations again, on the tensors that they had and into the tensors that they gave."""
        Graph.replays += 1
        for function, args, kwargs, outputs in self.operations:
            data = tree_map(lambda x: x.data if isinstance(x, torch.Tensor) else x, (args, kwargs))
            for x, result in zip(outputs, tensors(function(*data[0], **data[1])), strict=True):
                x.copy_(result)


class Recorder(TorchDispatchMode):
    """torch.cuda.graph on the CPU: notes the operations and leaves memory as if they had not been run, as there."""

    def __init__(self, graph, stream):
        super().__init__()
        assert stream == "side stream"
        self.graph, self.changed, self.fresh = graph, {}, {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        for forbidden in ("_local_scalar_dense", "lift_fresh", "nonzero", "masked_select", "exponential"):
            assert forbidden not in str(function), "waits for the GPU, or is not recorded"
        inputs = tensors((args, kwargs))
        if function._schema.is_mutable:
            for x in inputs:
                self.changed.setdefault(address(x), (x.untyped_storage(), x.untyped_storage().clone()))
        result = function(*args, **kwargs or {})
        outputs = tensors(result)
        fresh = [x for x in outputs if address(x) not in map(address, inputs)]
        self.fresh |= {address(x): x for x in fresh}
        if fresh or function._schema.is_mutable:  # the others are views, no work
            self.graph.operations.append((function, args, kwargs or {}, outputs))
        return result

    def __exit__(self, *error):
        super().__exit__(*error)
        for storage, before in self.changed.values():
            storage.copy_(before)
        for x in self.fresh.values():
            x.fill_(math.nan if x.is_floating_point() else 0)


@pytest.fixture
def cuda_graphs(monkeypatch):
    """The CPU in the place of a GPU that can record graphs."""
    monkeypatch.setattr(paac_gpu, "choose_device", lambda *args: torch.device("cpu"))
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: "side stream")
    monkeypatch.setattr(torch.cuda, "set_stream", lambda stream: None)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: "side stream")
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", Recorder)
    monkeypatch.setattr(Graph, "replays", 0)


@pytest.mark.parametrize("flags", ["--gae-lambda 0.9 --num-steps 3", "--bf16", "--env-id ALE/Pong-v5"])
def test_recorded_graphs_train_as_the_functions_do(flags, cuda_graphs):
    """Bit for bit, on a stand-in for CUDA's graphs: what is recorded reads no stale tensor and never waits."""
    args = quick("--num-envs", "4", "--num-steps", "5", *flags.split())
    (agent, history), rollouts = paac_gpu.train(args), args.total_timesteps // (4 * args.num_steps)
    assert Graph.replays == 0
    args.cuda_graphs = True
    graphed, other_history = paac_gpu.train(args)
    assert Graph.replays == (rollouts - 3) * (args.num_steps + 1)
    assert history == other_history
    for p, q in zip(agent.parameters(), graphed.parameters(), strict=True):
        assert torch.equal(p, q)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("network", ["nips", "nature"])
def test_graphs_on_a_gpu(network):
    """Actions and the weights after 20 updates, eager and as CUDA graphs, up to float tolerance."""
    flags = ["--env-id", "ALE/Pong-v5", "--total-timesteps", "3200", "--num-envs", "32", "--num-steps", "5"]
    flags += ["--network", network, "--device", "cuda", "--eval-episodes", "0"]
    agents = [paac_gpu.train(quick(*flags, *more))[0] for more in ([], ["--cuda-graphs"])]
    for p, q in zip(*(agent.parameters() for agent in agents), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5)


def test_graphs_take_one_gpu(capsys, monkeypatch):
    with pytest.raises(ValueError, match="--cuda-graphs: takes a GPU; the device is cpu"):
        paac_gpu.train(quick("--cuda-graphs"))
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SystemExit) as end:
        quick("--cuda-graphs")
    assert end.value.code == 2 and "--cuda-graphs: takes a single process" in capsys.readouterr().err


# Several ranks

# CartPole-v1, but each environment with a random generator of its own; its native vector has one for all of them.
REGISTER = """
import gymnasium as gym
gym.register("CartPoles-v0", "gymnasium.envs.classic_control:CartPoleEnv", max_episode_steps=500)
"""
exec(REGISTER)
DRIVER = """
import os, signal, sys
sys.path.insert(0, {root!r})
import torch
import paac_gpu
{register}
signal.signal(signal.SIGTERM, paac_gpu.stop)
rank, updates, original = int(os.environ["RANK"]), 0, paac_gpu.update
def update(*args):
    global updates
    updates += 1
    if {dies!r} and rank == 1 and updates == 20:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*args)
paac_gpu.update = update
agent, history = paac_gpu.train(paac_gpu.parse_args(sys.argv[1:]))
torch.save({{"agent": agent.state_dict(), "history": history, "updates": updates}}, f"rank{{rank}}.pt")
"""
RANK_FLAGS = "--env-id CartPoles-v0 --num-envs 4 --num-steps 8 --wandb-mode disabled --eval-episodes 1".split()


def torchrun(*flags, dies=False, **options):
    """Start two ranks of train as torchrun does; each saves what it has at the end as rankK.pt."""
    Path("driver.py").write_text(DRIVER.format(root=str(ROOT), register=REGISTER, dies=dies))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "driver.py"]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | options
    return subprocess.Popen([*command, *RANK_FLAGS, *flags], **options)


def test_two_ranks_are_one_process_with_twice_the_environments(tmp_path):
    """50 updates with episodes that end: equal bits on both ranks, one process's weights to 1e-4, all its episodes."""
    flags = ["--total-timesteps", str(50 * 2 * 4 * 8), "--log-interval", "1600"]
    process = torchrun(*flags)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert len(re.findall("^step ", out, re.M)) == 2 and len(re.findall("^checkpoint", out, re.M)) == 1  # one rank logs
    ranks = [torch.load(f"rank{rank}.pt") for rank in range(2)]
    (path,) = tmp_path.glob("runs/*/checkpoint.pt")
    checkpoint = torch.load(path)
    one, history = paac_gpu.train(paac_gpu.parse_args([*RANK_FLAGS, *flags, "--num-envs", "8"]))
    assert ranks[0]["updates"] == 50 and checkpoint["global_step"] == 3200
    assert sorted(ranks[0]["history"] + ranks[1]["history"]) == sorted(history) and len(history) > 50
    torch.manual_seed(1)
    start = mlp_agent(4).state_dict()
    for name, p in one.state_dict().items():
        assert torch.equal(ranks[0]["agent"][name], ranks[1]["agent"][name])
        assert torch.equal(ranks[0]["agent"][name], checkpoint["agent"][name])
        torch.testing.assert_close(ranks[0]["agent"][name], p, rtol=0, atol=1e-4)
        assert (p - start[name]).abs().max() > 1e-2


def test_a_rank_that_dies_ends_the_job(tmp_path):
    process = torchrun("--total-timesteps", "100000000", dies=True)
    start = time.time()
    _, err = process.communicate(timeout=60)
    assert process.returncode != 0 and time.time() - start < 40 and "SIGKILL" in err
    (path,) = tmp_path.glob("runs/*/checkpoint.pt")
    assert torch.load(path)["global_step"] == 20 * 64  # what was learned from 19 rollouts is saved


def test_ranks_resume_and_sigterm_ends_them_with_a_checkpoint(tmp_path):
    paac_gpu.train(paac_gpu.parse_args([*RANK_FLAGS, "--total-timesteps", "640"]))
    (path,) = tmp_path.glob("runs/*/checkpoint.pt")
    process = torchrun("--resume", str(path), "--total-timesteps", "100000000", "--log-interval", "640")
    for line in process.stdout:
        if line.startswith("step"):
            break
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode != 0 and "step       1,280 /" in line
    (path,) = set(tmp_path.glob("runs/*/checkpoint.pt")) - {path}
    assert torch.load(path)["global_step"] >= 1280 and not list(tmp_path.glob("runs/*/*.tmp"))


# Probe environments

PROBE = "--num-envs 8 --num-steps 8 --learning-rate 0.02 --gamma 0.9 --vf-coef 0.5 --eval-episodes 20".split()


def learn(env_id, *flags):
    """Train on a probe -> the agent and a function that gives V of an observation."""
    agent, _ = paac_gpu.train(quick(*PROBE, "--env-id", env_id, "--total-timesteps", "20000", *flags))
    return agent, lambda obs: agent(torch.tensor([float(obs)]))[1].item()


def test_probe_1_value_of_a_constant_reward():
    _, value = learn("ConstantReward-v0")
    assert value(0) == pytest.approx(1, abs=0.05)


def test_probe_2_value_depends_on_the_observation():
    _, value = learn("ObservationReward-v0")
    assert value(-1) == pytest.approx(-1, abs=0.05) and value(1) == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("gae_lambda", ["0.8", "1"])
def test_probe_3_reward_one_step_later(gae_lambda):
    _, value = learn("DelayedReward-v0", "--gae-lambda", gae_lambda)
    assert value(0) == pytest.approx(0.9, abs=0.05) and value(1) == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("env_id", ["ActionReward-v0", "ObservationActionReward-v0"])
def test_probes_4_and_5_reward_depends_on_the_action(env_id):
    agent, _ = learn(env_id)
    assert paac_gpu.evaluate(agent, quick(*PROBE, "--env-id", env_id)) == [1.0] * 20


@pytest.mark.parametrize("gae_lambda", ["0.8", "1"])
def test_probe_6_a_time_limit_is_no_end(gae_lambda):
    """V = 1 / (1 - γ) = 10, though every episode is cut after 5 steps, whose sum is 4.1."""
    _, value = learn("EndlessReward-v0", "--gae-lambda", gae_lambda)
    assert value(0) == pytest.approx(10, rel=0.05)
