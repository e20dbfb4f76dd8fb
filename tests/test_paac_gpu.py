"""Test paac_gpu.py: its update, networks, the data that train passes to update, Atari, ranks, probe environments."""

import itertools
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import probes
import pytest
import torch
from gymnasium.spaces import Box, Discrete

import a2c
import paac_gpu

ROOT = Path(__file__).parents[1]
FRAMES = Box(0, 255, (4, 84, 84), np.uint8)
ROLLOUT = "observations actions rewards terminations dones is_transition".split()  # in the order of update's arguments
torch.set_num_threads(1)  # idle threads would busy-wait and slow the tests that run in parallel


def quick(*flags):
    """Return the arguments of a very short run; later flags override earlier ones."""
    short = "--env-id CartPole-v1 --num-envs 8 --num-steps 8 --total-timesteps 1024 --eval-episodes 0 --device cpu"
    return paac_gpu.parse_args([*short.split(), "--wandb-mode", "disabled", *" ".join(flags).split()])


def recorded(*flags):
    """Run train -> one namespace per update (rollout, step size, Adam's state, ...), the agent, and history."""
    calls, passes, original, forward = [], [], paac_gpu.update, paac_gpu.ActorCritic.forward

    def seen(agent, obs):
        """Replace the forward pass: record what goes in and comes out."""
        result = forward(agent, obs)
        passes.append([x.detach().cpu().numpy().copy() for x in (obs, *result)] + [obs.device.type])
        return result

    def update(agent, optimizer, output, values, *arrays_and_args):
        num_steps = len(arrays_and_args[0])
        batched = passes[-1][0].ndim > passes[0][0].ndim  # one pass over the rollout, after one per step
        rows = passes[-num_steps - 1 :]
        if batched:
            observations = passes[-1][0]
            assert all(np.array_equal(row[0], obs) for row, obs in zip(rows[:-1], observations[:-1], strict=True))
        else:
            observations = np.stack([row[0] for row in rows])
        for k, learned in enumerate((output, values), 1):  # learning uses the outputs of acting, even if recomputed
            acted = np.stack([row[k] for row in rows[:num_steps]])
            tolerance = 1e-5 if learned.device.type == "cpu" else 1e-2  # GPUs round convolutions to 10 bits
            np.testing.assert_allclose(learned.detach().cpu()[:-1], acted, rtol=0, atol=tolerance)
        arrays = [observations, *arrays_and_args[:-1]]
        call = {name: array.copy() for name, array in zip(ROLLOUT, arrays, strict=True)}
        call |= {"lr": optimizer.param_groups[0]["lr"], "defaults": optimizer.defaults, "batched": batched}
        call |= {"adam_steps": {int(state["step"]) for state in optimizer.state.values() if "step" in state}}
        call |= {"device": passes[-1][-1], "noise_seed": torch.initial_seed()}
        call |= {"statistics": buffers(agent), "rms": agent.return_statistics.rms()}
        calls.append(SimpleNamespace(**call))
        passes.clear()
        metrics = original(agent, optimizer, output, values, *arrays_and_args)
        if len(calls) <= 2:  # megabytes each
            calls[-1].gradient = torch.cat([p.grad.flatten() for p in agent.parameters()]).cpu()
        return metrics

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paac_gpu, "update", update)
        patch.setattr(paac_gpu.ActorCritic, "forward", seen)
        return calls, *paac_gpu.train(quick(*flags))


def buffers(agent):
    """Return copies of an agent's statistics, arrays by name."""
    return {name: buffer.cpu().numpy().copy() for name, buffer in agent.named_buffers()}


# One update


@pytest.mark.parametrize("space", [Discrete(3), Box(-1, 1, (2,))], ids=["discrete", "continuous"])
def test_an_update_is_the_one_of_a2c(space):
    """The reference is tested against an update that is written out by hand."""
    rng = np.random.default_rng(0)
    observations, rewards = rng.normal(size=(8, 4, 2)).astype(np.float32), rng.normal(size=(7, 4)).astype(np.float32)
    actions = rng.integers(3, size=(7, 4)) if space == Discrete(3) else rng.normal(size=(7, 4, 2)).astype(np.float32)
    terminations, dones, is_transition = np.zeros((7, 4), bool), np.zeros((7, 4), bool), np.ones((7, 4), bool)
    for n, ends in enumerate([(2, 5), (3, 6), (0,), (6,)]):  # within the rollout, in its last step, in its first
        for k, t in enumerate(ends):
            dones[t, n], terminations[t, n], is_transition[t + 1 : t + 2, n] = True, (n + k) % 2, False
    rollout = actions, rewards, terminations, dones, is_transition
    flags = "--gamma 0.9 --gae-lambda 0.8 --vf-coef 0.4 --ent-coef 0.1 --max-grad-norm 0.5".split()
    torch.manual_seed(0)
    ours = paac_gpu.ActorCritic(Box(-1, 1, (2,)), space, "nips")
    torch.manual_seed(0)
    theirs = a2c.ActorCritic(Box(-1, 1, (2,)), space)
    assert all(torch.equal(value, theirs.state_dict()[name]) for name, value in ours.state_dict().items())
    for p in ours.parameters():
        torch.nn.init.normal_(p, std=0.3)
    ours.obs_statistics.update(observations[0] * 0.1 + 0.5)
    theirs.load_state_dict(ours.state_dict())
    start = ours.actor[0].weight.detach().clone()
    optimizer, reference = (torch.optim.SGD(agent.parameters(), lr=0.1) for agent in (ours, theirs))
    for _ in range(3):
        metrics = paac_gpu.update(ours, optimizer, *ours(torch.tensor(observations)), *rollout, quick(*flags))
        expected = a2c.update(theirs, reference, observations, *rollout, a2c.parse_args(flags))
        assert expected["losses/grad_norm"] > 0.5, "the rollout must exercise the clipping"
        torch.testing.assert_close(metrics, expected)
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q)
    assert (ours.actor[0].weight - start).abs().max() > 1e-3


# Networks


@pytest.mark.parametrize(
    ("network", "shapes"),
    [
        ("nips", [(16, 4, 8, 8), (32, 16, 4, 4), (256, 2592), (6, 256), (1, 256)]),
        ("nature", [(32, 4, 8, 8), (64, 32, 4, 4), (64, 64, 3, 3), (512, 3136), (6, 512), (1, 512)]),
    ],
)
def test_networks_for_frames(network, shapes):
    """Layers, initial weights, and the mean image that is subtracted, with one batch dimension or two."""
    torch.manual_seed(0)
    agent = paac_gpu.ActorCritic(FRAMES, Discrete(6), network)
    assert [tuple(p.shape) for p in agent.parameters() if p.ndim > 1] == shapes
    assert sum(isinstance(layer, torch.nn.ReLU) for layer in agent.body) == len(shapes) - 2
    gains = [2**0.5] * (len(shapes) - 2) + [0.01, 1]
    for weight, bias, gain in zip(*[iter(agent.parameters())] * 2, gains, strict=True):
        rows = weight.flatten(1)
        torch.testing.assert_close(rows @ rows.T, gain**2 * torch.eye(len(rows)), rtol=0, atol=1e-4)
        assert not bias.any()
    frames = torch.randint(256, (2, 3, 4, 84, 84), dtype=torch.uint8)
    image = torch.rand(84, 84) * 255
    agent.obs_statistics.mean.copy_(image)
    logits, values = agent(frames[0])
    assert logits.shape == (3, 6) and values.shape == (3,)
    features = agent.body(torch.stack([frames[0, :, k] / 255 - image / 255 for k in range(4)], 1))
    torch.testing.assert_close((agent.actor(features), agent.critic(features)[:, 0]), (logits, values))
    torch.testing.assert_close(agent(frames[0].float()), (logits, values))  # as in evaluate
    all_logits, all_values = agent(frames)
    assert all_logits.shape == (2, 3, 6) and all_values.shape == (2, 3)
    torch.testing.assert_close((all_logits[0], all_values[0]), (logits, values))
    agent.to(memory_format=torch.channels_last)
    inputs = []
    agent.body.register_forward_pre_hook(lambda _, inputs_: inputs.extend(inputs_))
    torch.testing.assert_close(agent(frames[0]), (logits, values), rtol=0, atol=1e-5)
    assert inputs[0].is_contiguous(memory_format=torch.channels_last)


# What train passes to update


def test_text_observations_arrive_from_other_processes():
    envs = paac_gpu.make_envs(quick("--env-id Word-v0 --vectorization-mode async"), 2)
    observations = [envs.reset(seed=0)[0]] + [envs.step(np.zeros(2, int))[0] for _ in range(15)]
    envs.close()
    assert {tuple(obs) for obs in np.concatenate(observations)} == {(0,), (1,)}


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_rollouts_are_the_transitions_of_the_environment(mode):
    """Every row agrees with the scripted environment: last observations true, reset steps marked, nothing lost."""
    flags = f"--env-id Scripted-v0 --num-envs 2 --num-steps 5 --total-timesteps 200 --vectorization-mode {mode}"
    calls, _, history = recorded(flags, "--adam-beta1 0.8")
    assert len(calls) == 20
    for n in range(2):
        episode = t = 0
        resets = False
        for call in calls:
            for row in range(5):
                obs, next_obs = call.observations[row, n], call.observations[row + 1, n]
                assert call.is_transition[row, n] == (not resets)
                if resets:
                    episode, t, resets = episode + 1, 0, False
                    assert not call.dones[row, n] and tuple(next_obs) == (episode, 0)
                    continue
                assert tuple(obs) == (episode, t) and tuple(next_obs) == (episode, t + 1)
                t += 1
                assert call.rewards[row, n] == pytest.approx(min((10 * episode + t) / call.rms, 10), rel=1e-5)
                assert call.terminations[row, n] == (episode % 2 == 0 and t == 3)
                resets = bool(call.dones[row, n])
                assert resets == (t == (3, 4)[episode % 2])
    lengths = [(3, 4)[k % 2] for k in range(len(history))]
    by_episode = [sum(10 * k + t for t in range(1, lengths[k] + 1)) for k in range(len(history) // 2)]
    assert [value for _, value in history] == [value for value in by_episode for _ in range(2)]
    assert [step for step, _ in history[:5]] == [6, 6, 16, 16, 24]  # 3 steps, reset, 4 steps, reset, 3 steps; 2 envs
    defaults = calls[0].defaults
    assert (defaults["betas"], defaults["eps"]) == ((0.8, 0.999), 1e-5)


def test_statistics_are_those_of_all_transitions_so_far():
    """Reset steps are left out; running returns cross the ends of rollouts; rewards are divided by their rms."""
    flags = "--env-id Scripted-v0 --num-envs 2 --num-steps 5 --total-timesteps 200 --gamma 0.9"
    calls, agent, _ = recorded(flags)
    rows = probes.scripted_rows(100, 0.9)  # the same in both environments
    statistics = [*(call.statistics for call in calls), buffers(agent)]
    for k in range(1, 21):
        observations, _, returns = (np.array(x) for x in zip(*filter(None, rows[: 5 * k]), strict=True))
        moments = [2 * len(returns), observations.mean(0), observations.var(0)]
        moments += [2 * len(returns), returns.mean(), returns.var()]
        for name, value in zip(statistics[k], moments, strict=True):
            np.testing.assert_allclose(statistics[k][name], value, rtol=1e-5, err_msg=name)
        if k < 20:
            rewards = [row[1] if row else 0 for row in rows[5 * k : 5 * k + 5]]
            expected = np.array(rewards) / np.sqrt(np.square(returns).mean())
            np.testing.assert_allclose(calls[k].rewards, expected[:, None].repeat(2, 1), rtol=1e-5)
    np.testing.assert_array_equal(calls[0].rewards, [[1, 1], [2, 2], [3, 3], [0, 0], [10, 10]])  # limited


class Frames(gym.Env):
    """Frames of noise, brighter from left to right; rewards of -10, 0 and 10; episodes of a few steps."""

    observation_space, action_space = FRAMES, Discrete(6)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.frames(), {}

    def step(self, action):
        terminated, truncated = self.np_random.random(2) < 0.2
        return self.frames(), 10.0 * self.np_random.integers(-1, 2), bool(terminated), bool(truncated), {}

    def frames(self):
        return self.np_random.integers(np.arange(1, 85) * 3, size=(4, 84, 84), dtype=np.uint8)


@pytest.fixture
def frames(monkeypatch):
    """Flags for a game of a few Frames."""
    make = lambda args, num_envs: gym.vector.SyncVectorEnv([Frames] * num_envs)  # noqa: E731
    monkeypatch.setattr(paac_gpu, "make_atari", make)
    return "--env-id ALE/Frames-v0 --num-envs 3 --num-steps 4"


def test_the_mean_image(frames):
    """It is that of the newest frames of all transitions so far; rewards are clipped to ±1 and not scaled."""
    calls, agent, history = recorded(frames, "--network nips --total-timesteps 96 --learning-rate 1e-9")
    newest = [call.observations[:-1][call.is_transition][:, 3] for call in calls]
    for k, statistics in enumerate([*(call.statistics for call in calls[1:]), buffers(agent)], 1):
        image = np.concatenate(newest[:k]).mean(0)
        np.testing.assert_allclose(statistics["obs_statistics.mean"], image, rtol=1e-5)
        assert statistics["obs_statistics.count"] == len(np.concatenate(newest[:k]))
    assert sum(map(len, newest)) < 96 and len(history) > 10 and image.shape == (84, 84)
    rewards = np.concatenate([call.rewards for call in calls])
    assert set(np.unique(rewards)) == {-1, 0, 1} and max(abs(call.rms - 1) for call in calls) > 0.1
    assert max(abs(value) for _, value in history) >= 10


@pytest.mark.parametrize("network", ["nips", "nature"])
def test_kept_graphs_and_one_pass_give_the_same_gradient(network, frames):
    """With frames, a CPU keeps the graphs of acting; other devices (cpu:0 counts as one) make a second pass."""
    flags = f"{frames} --learning-rate 0 --max-grad-norm 1000 --total-timesteps 24 --ent-coef 0.1 --gae-lambda 0.9"
    kept, agent, _ = recorded(flags, f"--network {network} --device cpu")
    batched, other, _ = recorded(flags, f"--network {network} --device cpu:0")
    assert [(a.batched, b.batched) for a, b in zip(kept, batched, strict=True)] == [(False, True)] * 2
    for a, b in zip(kept, batched, strict=True):
        assert all(np.array_equal(getattr(a, name), getattr(b, name)) for name in ROLLOUT)
        torch.testing.assert_close(a.gradient, b.gradient, rtol=0, atol=1e-6)
        assert a.gradient.abs().max() > 0.1 and not a.is_transition.all()
    assert all(np.array_equal(value, buffers(other)[name]) for name, value in buffers(agent).items())


@pytest.mark.parametrize(("where", "value"), [("reward", "NaN"), ("observation", "NaN"), ("observation", "Infinity")])
def test_values_that_are_not_finite_end_the_run(where, value, tmp_path):
    """The run ends with a one-line error before they reach the weights or the statistics of the checkpoint."""
    flags = f'--env-id NotFinite-v0 --num-envs 2 --num-steps 8 --total-timesteps 900 --env-kwargs {{"{where}":{value}}}'
    with pytest.raises(paac_gpu.RunError, match=r"^[^\n]* is not finite[^\n]*$"):
        paac_gpu.train(quick(flags))
    (path,) = tmp_path.glob("runs/*/checkpoint.pt")
    checkpoint = torch.load(path)
    assert all(x.isfinite().all() for x in checkpoint["agent"].values()) and 100 < checkpoint["global_step"] < 150


def test_a_rollout_of_reset_steps_only_is_skipped():
    calls, _, history = recorded("--env-id ConstantReward-v0 --num-envs 1 --num-steps 1 --total-timesteps 21")
    assert len(calls) == 11 and all(call.is_transition.all() for call in calls)
    assert history == [(step, 1.0) for step in range(1, 22, 2)]


@pytest.mark.parametrize(
    ("env_id", "reward"),
    [("ActionReward-v0", lambda a: 2 * a - 1), ("Target-v0", lambda a: -((2 * a[:, 0].clip(-1, 1) - 0.5) ** 2))],
)
def test_actions_are_those_that_were_played(env_id, reward):
    """Rewards reveal the actions; those of update are as drawn, neither rescaled nor clipped, and new in each step."""
    calls, *_ = recorded("--env-id", env_id)
    actions = np.concatenate([call.actions[call.is_transition] for call in calls])
    rewards = np.concatenate([call.rewards[call.is_transition] * call.rms for call in calls])
    np.testing.assert_allclose(rewards, reward(actions), rtol=0, atol=1e-6)
    if env_id == "Target-v0":
        assert actions.dtype == np.float32 and np.abs(actions).max() > 1
    assert not any((call.actions == call.actions[0]).all() for call in calls[:3])


def test_a_resumed_run_continues(tmp_path):
    """Step size, Adam's state and the statistics continue; noise and episodes are new."""
    flags = "--learning-rate 0.1 --num-envs 4 --num-steps 64"
    calls, agent, _ = recorded(flags)
    (path,) = tmp_path.glob("runs/*/checkpoint.pt")
    more, *_ = recorded("--num-envs 4 --num-steps 64", f"--resume {path} --total-timesteps 2048")
    for name, value in more[0].statistics.items():
        assert np.array_equal(value, buffers(agent)[name]) and value.any()
    assert [call.lr for call in calls] == pytest.approx([0.1, 0.075, 0.05, 0.025])
    assert [call.lr for call in more] == pytest.approx([0.05, 0.0375, 0.025, 0.0125])
    assert [call.adam_steps for call in (calls[0], calls[1], more[0])] == [set(), {1}, {4}]
    assert more[0].noise_seed != calls[0].noise_seed
    assert not np.array_equal(more[0].observations[0], calls[0].observations[0])


def test_flags_given_with_resume_reach_the_optimizer(tmp_path, monkeypatch):
    """They override what the checkpoint restores."""
    betas, update = [], paac_gpu.update

    def spied(agent, optimizer, *rest):
        betas.append(optimizer.param_groups[0]["betas"])
        return update(agent, optimizer, *rest)

    monkeypatch.setattr(paac_gpu, "update", spied)
    paac_gpu.train(quick("--num-envs 4 --num-steps 64 --total-timesteps 512 --adam-beta1 0.9"))
    (path,) = tmp_path.glob("runs/*/checkpoint.pt")
    paac_gpu.train(paac_gpu.parse_args(f"--resume {path} --wandb-mode disabled --total-timesteps 1024".split()))
    flags = f"--resume {path} --wandb-mode disabled --total-timesteps 1536 --adam-beta1 0.5"
    paac_gpu.train(paac_gpu.parse_args(flags.split()))
    assert betas == [(0.9, 0.999)] * 4 + [(0.5, 0.999)] * 2


# Atari


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_atari_rollouts(device):
    """Frames stay uint8 and are on the device; rewards are clipped for learning and logged as the game gives them."""
    flags = f"--env-id ALE/Qbert-v5 --num-envs 2 --num-steps 8 --total-timesteps 720 --device {device}"
    calls, agent, history = recorded(flags, f"--network nips --eval-episodes {int(device == 'cuda')}")
    assert agent.body[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert agent.body[0].weight.device.type == calls[0].device == device and agent.actor.in_features == 256
    observations = calls[0].observations
    assert observations.dtype == np.uint8 and observations.shape == (9, 2, 4, 84, 84) and observations.max() > 100
    assert all(np.array_equal(a.observations[-1], b.observations[0]) for a, b in itertools.pairwise(calls))
    rewards = np.concatenate([call.rewards for call in calls])
    assert set(np.unique(rewards)) == {0.0, 1.0} and abs(calls[-1].rms - 1) > 0.1  # not scaled
    assert {call.batched for call in calls} == {device == "cuda"}
    assert history and all(value >= 25 and value % 25 == 0 for _, value in history)  # 25 points per cube


@pytest.mark.parametrize("on", [True, False])
def test_a_lost_life_is_terminal_for_the_values_alone(on, monkeypatch):
    """The game continues: no reset step follows, and the episode's return has all lives."""
    played, make_atari = [], paac_gpu.make_atari

    def spied(*args):
        envs = make_atari(*args)
        step = envs.step

        def noted(actions):
            result = step(actions)
            played.append((result[2] | result[3], result[4]["lives"]))
            return result

        envs.step = noted
        return envs

    monkeypatch.setattr(paac_gpu, "make_atari", spied)
    flag = "--terminal-on-life-loss" if on else "--no-terminal-on-life-loss"
    flags = "--env-id ALE/Breakout-v5 --network nips --num-envs 2 --num-steps 32 --total-timesteps 960"
    calls, _, history = recorded(flags, flag)
    terminations, dones, is_transition = (np.concatenate([getattr(c, x) for c in calls]) for x in ROLLOUT[3:])
    games_end, lives = (np.array(x) for x in zip(*played, strict=True))
    lost = np.diff(lives, axis=0, prepend=5) < 0  # 5 lives, and a reset brings 5 again
    assert np.array_equal(is_transition[1:], ~games_end[:-1])
    assert np.array_equal(terminations, lost if on else games_end) and np.array_equal(dones, terminations)
    assert len(history) == games_end.sum() > 1 and lost.sum() >= 5 * games_end.sum()


def test_both_forms_of_a_game_agree(monkeypatch):
    """ALE's vector environment and the rendered one: same lives, rewards and frames from the same actions."""
    make_vec = gym.make_vec

    def make_without_no_ops(*args, **options):
        if "wrappers" in options:
            options["wrappers"][0] = lambda env: gym.wrappers.AtariPreprocessing(env, noop_max=0)
        else:
            options["noop_max"] = 0
        return make_vec(*args, **options)

    monkeypatch.setattr(gym, "make_vec", make_without_no_ops)
    args, rng = quick("--env-id ALE/Breakout-v5"), np.random.default_rng(0)
    ale, rendered = paac_gpu.make_envs(args, 1), paac_gpu.make_envs(args, 1, render_mode="rgb_array")
    (frames, infos), (rendered_frames, _) = ale.reset(seed=1), rendered.reset(seed=1)
    results, episodes = set(), 0
    while episodes < 2:
        assert infos["lives"][0] == rendered.unwrapped.envs[0].unwrapped.ale.lives()
        assert frames.shape == rendered_frames.shape == (1, 4, 84, 84) and frames.dtype == rendered_frames.dtype
        assert np.abs(frames.astype(int) - rendered_frames).max() <= 1  # grey levels are rounded
        action = rng.integers(4, size=1)
        frames, *result, infos = ale.step(action)
        rendered_frames, *rendered_result, _ = rendered.step(action)
        assert result == rendered_result  # reward, terminated, truncated
        results.add((int(infos["lives"][0]), float(result[0][0])))
        episodes += result[1][0]
    assert {lives for lives, _ in results} == set(range(6)) and {reward for _, reward in results} == {0, 1}


def test_atari_evaluation_and_video(tmp_path, monkeypatch):
    """An agent that never moves loses the first points of Pong."""
    monkeypatch.setattr(paac_gpu.ActorCritic, "greedy", lambda self, output: torch.zeros(len(output), dtype=int))
    monkeypatch.setattr(paac_gpu, "range", lambda n: range(n // 1000), raising=False)  # evaluate's limit: 100 steps
    agent = paac_gpu.ActorCritic(FRAMES, Discrete(6), "nips")
    assert paac_gpu.evaluate(agent, quick("--env-id ale_py:ALE/Pong-v5"), 1, tmp_path / "video")[0] in (-1, -2)
    (video,) = tmp_path.glob("video/*.mp4")
    assert video.stat().st_size > 2000


def test_options_of_the_emulators(monkeypatch):
    """Unclipped rewards, no FIRE at reset, sticky actions as given, no more threads than games."""
    monkeypatch.setattr(gym, "make_vec", lambda *args, **options: (args, options))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    args = quick("--env-id ALE/Pong-v5")
    expected = {"reward_clipping": False, "use_fire_reset": False, "repeat_action_probability": 0.0}
    for num_envs, threads in ((8, 3), (2, 2)):
        assert paac_gpu.make_atari(args, num_envs) == (("ALE/Pong-v5", num_envs), expected | {"num_threads": threads})
    args = quick('--env-id ALE/Pong-v5 --env-kwargs {"repeat_action_probability":0.25}')
    assert paac_gpu.make_atari(args, 1)[1]["repeat_action_probability"] == 0.25
    assert paac_gpu.make_atari(args, 1, render_mode="rgb_array")[1]["repeat_action_probability"] == 0.25


def test_old_names_of_games_are_explained(capsys):
    with pytest.raises(SystemExit, match="2"):
        quick("--env-id PongNoFrameskip-v4")
    assert "PongNoFrameskip-v4 is now called ALE/Pong-v5" in capsys.readouterr().err


# Environments in processes of their own


def test_ctrl_c_in_the_shell_ends_the_processes_of_environments(tmp_path):
    """The checkpoint is saved and nothing waits for a step that the signal has interrupted."""
    flags = "--env-id Acrobot-v1 --vectorization-mode async --num-envs 2 --total-timesteps 100000000"
    flags += " --log-interval 100 --wandb-mode disabled --device cpu"
    process = subprocess.Popen(
        [sys.executable, ROOT / "paac_gpu.py", *flags.split()],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    while not process.stdout.readline().startswith("step"):
        assert process.poll() is None
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "checkpoint  " in out and list(tmp_path.glob("runs/*/checkpoint.pt"))
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)  # no process is left


class Resource(probes.ConstantReward):
    """It writes to the file `notes` when it is opened and when it is closed."""

    def __init__(self):
        self.note("opened")

    def close(self):
        self.note("closed")

    def note(self, word):
        with open("notes", "a") as file:
            file.write(f"{word}\n")


gym.register("Resource-v0", Resource)


def test_environments_in_processes_are_closed():
    """Those of training before those of the evaluation are opened; Gymnasium opens one more to know the spaces."""
    paac_gpu.train(quick("--env-id Resource-v0 --vectorization-mode async --num-envs 2 --eval-episodes 2"))
    words = Path("notes").read_text().split()
    assert [sorted(words[i : i + 6]) for i in (0, 6)] == [["closed"] * 3 + ["opened"] * 3] * 2 and len(words) == 12


def test_an_error_in_the_process_of_an_environment_is_raised(tmp_path):
    warning = pytest.warns(UserWarning, match="Received the following error from Worker")
    with warning, pytest.raises(ZeroDivisionError, match="by its\nstep"):
        paac_gpu.train(quick("--env-id Crash-v0 --vectorization-mode async --num-envs 2 --total-timesteps 20000"))
    assert list(tmp_path.glob("runs/*/checkpoint.pt"))


def test_unsupported_environments_are_refused(tmp_path):
    for number, space in enumerate((Discrete(2, start=5), Box(-1, 1, (2, 2)))):
        entry = type("Odd", (probes.ConstantReward,), {"action_space": space})
        gym.register(f"PaacOdd{number}-v0", entry_point=entry)
    for env_id in "MultiDiscreteAction-v0 IntegerAction-v0 SameStep-v0 PaacOdd0-v0 PaacOdd1-v0".split():
        with pytest.raises(paac_gpu.RunError, match=f"--env-id {env_id}: needs Discrete actions counted from 0"):
            paac_gpu.train(quick("--env-id", env_id))
    assert not list(tmp_path.iterdir())


# Two ranks


class Dice(gym.Env):
    """Random observations and ends; most episodes last a step or two."""

    observation_space, action_space = Box(-1, 1, (3,)), Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.np_random.uniform(-1, 1, 3).astype(np.float32), {}

    def step(self, action):
        obs, ends = self.np_random.uniform(-1, 1, 3).astype(np.float32), self.np_random.random(2) < 0.6
        return obs, float(obs[0] + action), bool(ends[0]), bool(ends[1]), {}


gym.register("Dice-v0", Dice)
RANKS = "--env-id Dice-v0 --num-envs 2 --num-steps 1 --total-timesteps 240 --log-interval 238 --learning-rate 1"
RANKS += " --gamma 0.9 --max-grad-norm 0.5"


def run_rank():
    """Run one of the two processes: a recorded run, known gradients, and a resumed run without an end."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    torch.optim.Adam = lambda parameters, lr, **_: torch.optim.SGD(parameters, lr)  # Adam enlarges rounding errors
    torch.distributed.destroy_process_group = lambda: None  # the group is used again
    rank = int(os.environ["RANK"])
    calls, agent, history = recorded(RANKS, "--eval-episodes 3")

    averages = []
    network = paac_gpu.ActorCritic(FRAMES, Discrete(6), "nips").to(memory_format=torch.channels_last)
    for counts, values in (((3, 1), (1.0, 5.0)), ((0, 2), (float("nan"), 5.0)), ((0, 0), (float("nan"),) * 2)):
        for p in network.parameters():
            p.grad = torch.full_like(p, values[rank])
        paac_gpu.average_gradient(network, counts[rank])
        averages.append([p.grad.unique().tolist() for p in network.parameters()])
    torch.save((calls, agent.state_dict(), history, averages), f"rank{rank}.pt")

    while not (paths := list(Path("runs").glob("*/checkpoint.pt"))):
        time.sleep(0.01)
    torch.distributed.init_process_group = lambda backend: None
    paac_gpu.train(quick(RANKS, f"--resume {paths[0]} --total-timesteps 1000000000"))


def test_two_ranks_learn_as_one_process_with_the_rollouts_of_both(tmp_path):
    """The statistics are the first rank's. Some rollouts are reset steps only; SIGTERM leaves the one checkpoint."""
    command = "-m torch.distributed.run --standalone --nproc-per-node 2 --no-python".split()
    process = subprocess.Popen(
        [sys.executable, *command, sys.executable, "-c", "import test_paac_gpu; test_paac_gpu.run_rank()"],
        env=os.environ | {"PYTHONPATH": f"{ROOT}:{Path(__file__).parent}"},
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True},
    )
    for _ in range(900):
        time.sleep(0.1)
        saved = list(tmp_path.glob("runs/*/checkpoint.pt"))
        if process.poll() is not None or (saved and torch.load(saved[0])["global_step"] > 700):
            break
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=180)
    assert process.returncode != 0 and "SignalException" in err, err
    count = [len(re.findall(f"^{word} ", out, re.M)) for word in ("paac_gpu", "evaluation", "checkpoint")]
    assert count == [2, 1, 2]  # only the first rank reports
    assert re.findall(r"^step +(\d+) ", out, re.M)[:3] == ["240", "480", "716"]  # of both ranks, 4 per rollout
    assert len(list(tmp_path.glob("runs/*/checkpoint.pt"))) == 1

    ranks = [torch.load(f"rank{rank}.pt", weights_only=False) for rank in range(2)]
    (calls, weights, history, averages), (others, other_weights, other_history, other_averages) = ranks
    pairs = list(zip(calls, others, strict=True))
    assert {(a.is_transition.sum(), b.is_transition.sum()) for a, b in pairs} >= {(0, 0), (0, 2), (1, 2)}
    assert calls[0].noise_seed != others[0].noise_seed
    assert not np.isin(calls[0].observations, others[0].observations).any()
    assert history != other_history and min(len(history), len(other_history)) > 30 and history[-1][0] > 220
    torch.manual_seed(1)
    agent = paac_gpu.ActorCritic(Dice.observation_space, Dice.action_space, "nips")
    args, start = quick(RANKS), agent.actor[0].weight.detach().clone()
    optimizer = torch.optim.SGD(agent.parameters(), lr=1.0)
    seen, returns, running_return = np.zeros((0, 3)), np.zeros(0), np.zeros(2)  # of the first rank
    for step, (a, b) in enumerate(pairs):
        if len(seen):
            agent.obs_statistics.mean.copy_(torch.tensor(seen.mean(0)))
            agent.obs_statistics.var.copy_(torch.tensor(seen.var(0)))
        rms = np.sqrt(np.square(returns).mean()) if len(returns) else 1.0
        for x in (a, b):  # Dice's rewards
            rewards = (x.observations[1:, :, 0] + x.actions) * x.is_transition
            np.testing.assert_allclose(x.rewards, rewards / rms, rtol=0, atol=1e-5)
        observations, *rollout = (np.concatenate([getattr(x, name) for x in (a, b)], 1) for name in ROLLOUT)
        optimizer.param_groups[0]["lr"] = 1 - step / 60
        if rollout[-1].any():
            paac_gpu.update(agent, optimizer, *agent(torch.tensor(observations)), *rollout, args)
        played = a.is_transition[0]  # the other environments only reset
        running_return = (a.observations[1, :, 0] + a.actions[0] + 0.9 * running_return) * played
        seen = np.concatenate([seen, a.observations[0][played]])
        returns = np.concatenate([returns, running_return[played]])
    assert len(calls) == 60 and (agent.actor[0].weight - start).abs().max() > 1e-2
    expected = agent.state_dict()  # the weights, and the statistics after the last update
    for name, samples in (("obs_statistics", seen), ("return_statistics", returns)):
        moments = {"count": float(len(samples)), "mean": samples.mean(0), "var": samples.var(0)}
        expected |= {f"{name}.{key}": torch.as_tensor(value, dtype=torch.float32) for key, value in moments.items()}
    for name, p in expected.items():
        assert torch.equal(weights[name], other_weights[name])
        torch.testing.assert_close(weights[name], p, rtol=0, atol=1e-5)
    assert averages == other_averages == [[[value]] * 10 for value in (2.0, 5.0, 0.0)]


@pytest.mark.parametrize(("device", "chosen"), [("cuda", [1]), ("cuda:0", []), ("cpu", [])])
def test_each_rank_has_a_gpu(device, chosen, monkeypatch):
    """With --device cuda; the other devices are what the user says. The backend follows from the device."""
    devices, backends = [], []
    monkeypatch.setattr(torch.cuda, "set_device", devices.append)
    monkeypatch.setattr(torch.distributed, "init_process_group", backends.append)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    args = SimpleNamespace(device=device)
    assert paac_gpu.start_ranks(args) == (0, 1) and not devices
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert paac_gpu.start_ranks(args) == (1, 2) and devices == chosen
    assert backends == ["gloo" if device == "cpu" else "nccl"]  # a CUDA build's default would not be Gloo


# Probe environments


def learn(env_id, flags=""):
    """Train on a probe -> agent, history."""
    probe = "--num-envs 16 --num-steps 4 --learning-rate 0.01 --adam-beta1 0.9 --gamma 0.9 --gae-lambda 1"
    return paac_gpu.train(quick(probe, "--max-grad-norm 3 --total-timesteps 4000 --env-id", env_id, flags))


@pytest.mark.parametrize(
    ("env_id", "flags", "values"),
    [
        ("ConstantReward-v0", "", {0: 1}),
        ("ObservationReward-v0", "", {-1: -1, 1: 1}),
        ("DelayedReward-v0", "--gae-lambda 0.8", {0: 0.9, 1: 1}),
        ("EndlessReward-v0", "", {0: 10}),  # 1 / (1 - γ), although episodes are truncated after 5 steps (4.1)
        ("EndlessReward-v0", "--gae-lambda 0.8", {0: 10}),
    ],
)
def test_probes_1_2_3_6_values(env_id, flags, values):
    agent, _ = learn(env_id, flags)
    for obs, value in values.items():
        scale = agent.return_statistics.rms()  # V is in units of it
        assert agent(torch.tensor([[float(obs)]]))[1].item() * scale == pytest.approx(value, rel=0.05)


@pytest.mark.parametrize("env_id", ["ActionReward-v0", "ObservationActionReward-v0"])
def test_probes_4_and_5_reward_depends_on_the_action(env_id):
    agent, history = learn(env_id)
    assert paac_gpu.evaluate(agent, quick("--env-id", env_id), 20) == [1.0] * 20
    assert np.mean([value for _, value in history[-100:]]) > 0.9  # the sampled policy is nearly greedy


def test_probe_7_a_continuous_action():
    agent, _ = learn("Target-v0", "--total-timesteps 12000")
    assert 2 * agent(torch.zeros(1, 1))[0].item() == pytest.approx(0.5, abs=0.2)
