"""paac_gpu.py: its optimizer, update and networks, what train hands to them, Atari, two ranks, probe environments."""

import functools
import os
import re
import runpy
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete

import a2c
import paac_gpu

ROOT = Path(__file__).parents[1]
FRAMES = Box(0, 255, (4, 84, 84), np.uint8)
torch.set_num_threads(1)  # threads that spin while they wait cost the tests beside them their cores


def quick(*flags):
    """Arguments of a run that lasts a blink, with the authors' constants; later flags win."""
    short = "--env-id CartPole-v1 --num-envs 8 --num-steps 8 --total-timesteps 1024 --eval-episodes 0"
    short = f"@{ROOT}/settings/paac_gpu_authors.txt {short} --wandb-mode disabled".split()
    return paac_gpu.parse_args([*short, *" ".join(flags).split()])


def act(agent, observations):
    """What train keeps of acting, step by step: outputs (num_steps, num_envs, ...) and values, with one row more."""
    outputs, values = zip(*(agent(torch.as_tensor(obs)) for obs in observations), strict=True)
    return torch.stack(outputs[:-1]), torch.stack(values)


def recorded(*flags):
    """Run train -> copies of what each update received, of what it was computed from, and of the optimizer; history."""
    calls, seen, original_update, original_forward = [], [], paac_gpu.update, paac_gpu.ActorCritic.forward

    def forward(agent, obs):
        seen.append(obs.clone())
        return original_forward(agent, obs)

    def update(agent, optimizer, output, values, *arrays_and_args):
        *arrays, args = arrays_and_args
        observations = seen[-args.num_steps - 1 :]
        fresh = act(agent, observations)
        torch.testing.assert_close((output, values), fresh, rtol=0, atol=1e-4)  # one graph with these weights
        names = "actions rewards terminateds dones valids".split()
        call = {name: array.copy() for name, array in zip(names, arrays, strict=True)}
        call["observations"] = torch.stack(observations).cpu().numpy()
        call |= {"lr": optimizer.param_groups[0]["lr"], "decay": optimizer.decay, "eps": optimizer.eps}
        call |= {"mean_square": optimizer.state[agent.critic.weight]["mean_square"].clone()}
        calls.append(SimpleNamespace(**call, noise_seed=torch.initial_seed()))
        metrics = original_update(agent, optimizer, output, values, *arrays_and_args)
        seen.clear()
        return metrics

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paac_gpu.ActorCritic, "forward", forward)
        patch.setattr(paac_gpu, "update", update)
        return calls, *paac_gpu.train(quick(*flags))


# The optimizer and one update


def test_rmsprop_is_tensorflow_s():
    """ms = decay ms + (1 - decay) g², var -= lr g / √(ms + ε), ms at first 1, in NumPy; saved and loaded halfway."""
    rng = np.random.default_rng(0)
    variables = [rng.normal(size=shape) for shape in ((3, 2), (4,))]
    parameters = [torch.nn.Parameter(torch.tensor(x)) for x in variables]
    optimizer = paac_gpu.RMSProp(parameters, lr=0.0, decay=0.9, eps=0.1)
    mean_squares = [np.ones_like(x) for x in variables]
    for step in range(20):
        if step == 10:
            state, optimizer = optimizer.state_dict(), paac_gpu.RMSProp(parameters, lr=0.0, decay=0.9, eps=0.1)
            optimizer.load_state_dict(state)
        optimizer.param_groups[0]["lr"] = 0.1 / (step + 1)
        for p, x, ms in zip(parameters, variables, mean_squares, strict=True):
            g = rng.normal(size=x.shape) * 10 ** rng.uniform(-2, 2)
            p.grad = torch.tensor(g)
            ms[:] = 0.9 * ms + 0.1 * g**2
            x -= 0.1 / (step + 1) * g / np.sqrt(ms + 0.1)
        optimizer.step()
        for p, x in zip(parameters, variables, strict=True):
            np.testing.assert_allclose(p.detach(), x, rtol=0, atol=1e-12)


@pytest.mark.parametrize("space", [Discrete(3), Box(-1, 1, (2,))], ids=["discrete", "continuous"])
@pytest.mark.parametrize(("max_grad_norm", "factor"), [("0.5", 1), ("1e9", 5)])
def test_an_update_by_acting_s_graph_is_a2c_s(space, max_grad_norm, factor):
    """a2c.py's, by a second forward pass and held by hand in its tests; unless clipped, loss_scale times its step."""
    rng = np.random.default_rng(0)
    observations, rewards = rng.normal(size=(8, 4, 2)).astype(np.float32), rng.normal(size=(7, 4)).astype(np.float32)
    actions = rng.integers(3, size=(7, 4)) if space == Discrete(3) else rng.normal(size=(7, 4, 2)).astype(np.float32)
    terminateds, dones, valids = np.zeros((7, 4), bool), np.zeros((7, 4), bool), np.ones((7, 4), bool)
    for n, ends in enumerate([(2, 5), (3, 6), (0,), (6,)]):  # at a step and later, at the last step, at the first
        for k, t in enumerate(ends):
            dones[t, n], terminateds[t, n], valids[t + 1 : t + 2, n] = True, (n + k) % 2, False
    rollout = actions, rewards, terminateds, dones, valids
    flags = f"--gamma 0.9 --gae-lambda 0.8 --vf-coef 0.4 --ent-coef 0.1 --max-grad-norm {max_grad_norm}".split()
    torch.manual_seed(0)
    ours, theirs = paac_gpu.ActorCritic(Box(-1, 1, (2,)), space, "nips"), a2c.ActorCritic(Box(-1, 1, (2,)), space)
    theirs.load_state_dict(ours.state_dict())
    assert ours.discrete or not ours.log_std.any()  # a standard deviation of 1 at first
    start = ours.body[0].weight.detach().clone()
    optimizer, reference = (torch.optim.SGD(x.parameters(), lr) for x, lr in ((ours, 0.1), (theirs, 0.1 * factor)))
    for _ in range(3):
        metrics = paac_gpu.update(ours, optimizer, *act(ours, observations), *rollout, quick("--loss-scale 5", *flags))
        expected = a2c.update(theirs, reference, observations, *rollout, a2c.parse_args(flags))
        assert expected["losses/grad_norm"] > 0.5, "the rollout must exercise the clipping"
        expected["losses/grad_norm"] *= 5
        torch.testing.assert_close(metrics, expected, rtol=1e-4, atol=1e-5)
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-5)
    assert (ours.body[0].weight - start).abs().max() > 1e-3


# Networks


@pytest.mark.parametrize(
    ("network", "shapes"),
    [
        ("nips", [(16, 4, 8, 8), (32, 16, 4, 4), (256, 2592), (6, 256), (1, 256)]),
        ("nature", [(32, 4, 8, 8), (64, 32, 4, 4), (64, 64, 3, 3), (512, 3136), (6, 512), (1, 512)]),
    ],
)
def test_networks_for_frames(network, shapes):
    torch.manual_seed(0)
    agent = paac_gpu.ActorCritic(FRAMES, Discrete(6), network)
    assert [tuple(p.shape) for p in agent.parameters() if p.ndim > 1] == shapes
    assert sum(isinstance(layer, torch.nn.ReLU) for layer in agent.body) == len(shapes) - 2
    for weight, bias in zip(*[iter(agent.parameters())] * 2, strict=True):
        bound = weight[0].numel() ** -0.5
        assert max(weight.abs().max(), bias.abs().max()) <= bound
        assert abs(weight.std() / bound - 3**-0.5) < 0.1 and bias.abs().min() > 0  # uniform, not zero
    frames = torch.randint(256, (3, 4, 84, 84), dtype=torch.uint8)
    logits, values = agent(frames)
    assert logits.shape == (3, 6) and values.shape == (3,)
    features = agent.body(frames / 255 - frames.sum((2, 3), keepdim=True) / (255 * 84 * 84))
    torch.testing.assert_close((agent.actor(features), agent.critic(features)[:, 0]), (logits, values))
    floats = frames.float()  # as evaluate gives them
    torch.testing.assert_close(agent(floats), (logits, values))
    assert torch.equal(floats, frames.float())  # are left alone
    agent.to(memory_format=torch.channels_last)
    inputs = []
    agent.body.register_forward_pre_hook(lambda _, inputs_: inputs.extend(inputs_))
    torch.testing.assert_close(agent(frames), (logits, values), rtol=0, atol=1e-5)
    assert inputs[0].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("space", [FRAMES, Box(-1, 1, (4,))], ids=["frames", "flat"])
def test_bfloat16_is_for_the_body_alone(space):
    """Outputs, weights and gradients are float32; they are near those of float32, and not the same."""
    torch.manual_seed(0)
    agents = [paac_gpu.ActorCritic(space, Discrete(3), "nature", bf16) for bf16 in (False, True)]
    agents[1].load_state_dict(agents[0].state_dict())
    space.seed(0)
    obs = torch.as_tensor(np.stack([space.sample() for _ in range(8)]))
    outputs = [torch.cat([logits, values.unsqueeze(-1)], -1) for logits, values in (agent(obs) for agent in agents)]
    assert outputs[1].dtype == torch.float32 and not torch.equal(*outputs)
    torch.testing.assert_close(*outputs, rtol=0.02, atol=0.002)
    for output in outputs:
        output.square().sum().backward()
    for p, q in zip(*(agent.parameters() for agent in agents), strict=True):
        assert q.dtype == q.grad.dtype == torch.float32
        assert (p.grad - q.grad).norm() < 0.15 * p.grad.norm()


# What train hands to the update


def test_rollouts_are_the_environment_s_transitions():
    """Every row against the script of the environment: last observations true, reset rows invalid, nothing lost."""
    calls, _, history = recorded("--env-id Scripted-v0 --num-envs 2 --num-steps 5 --total-timesteps 200")
    assert len(calls) == 20
    for n in range(2):
        episode = t = 0
        resets = False
        for call in calls:
            for row in range(5):
                obs, next_obs = call.observations[row, n], call.observations[row + 1, n]
                assert call.valids[row, n] == (not resets)
                if resets:
                    episode, t, resets = episode + 1, 0, False
                    assert not call.dones[row, n] and tuple(next_obs) == (episode, 0)
                    continue
                assert tuple(obs) == (episode, t) and tuple(next_obs) == (episode, t + 1)
                t += 1
                assert call.rewards[row, n] == 10 * episode + t
                assert call.terminateds[row, n] == (episode % 2 == 0 and t == 3)
                resets = bool(call.dones[row, n])
                assert resets == (t == (3, 4)[episode % 2])
    lengths = [(3, 4)[k % 2] for k in range(len(history))]
    by_episode = [sum(10 * k + t for t in range(1, lengths[k] + 1)) for k in range(len(history) // 2)]
    assert [value for _, value in history] == [value for value in by_episode for _ in range(2)]
    assert [step for step, _ in history[:5]] == [6, 6, 16, 16, 24]  # 3 steps, reset, 4 steps, reset, 3 steps; 2 envs


def test_rollouts_of_resets_alone_are_left_out():
    calls, _, history = recorded("--env-id ConstantReward-v0 --num-envs 1 --num-steps 1 --total-timesteps 21")
    assert len(calls) == 11 and all(call.valids.all() for call in calls)
    assert history == [(step, 1.0) for step in range(1, 22, 2)]


@pytest.mark.parametrize(
    ("env_id", "pays"),
    [("ActionReward-v0", lambda a: 2 * a - 1), ("Target-v0", lambda a: -((a[:, 0].clip(-2, 2) - 0.5) ** 2))],
)
def test_actions_are_those_that_were_played(env_id, pays):
    """Rewards tell the actions, which are clipped to their Box only at the environment's door, and drawn anew."""
    calls, *_ = recorded("--env-id", env_id)
    actions, rewards = (np.concatenate([getattr(c, x)[c.valids] for c in calls]) for x in ("actions", "rewards"))
    np.testing.assert_allclose(rewards, pays(actions), rtol=0, atol=1e-6)
    if env_id == "Target-v0":
        assert actions.dtype == np.float32 and np.abs(actions).max() > 2
    assert not any((call.actions == call.actions[0]).all() for call in calls[:3])


def test_settings_of_a_run_and_of_one_that_goes_on(tmp_path):
    """The rate falls linearly to zero; the resumed run has its own flags, the saved mean squares, and fresh noise."""
    flags = "--learning-rate 0.1 --num-envs 4 --num-steps 64 --rmsprop-decay 0.9 --rmsprop-eps 0.2"
    calls, *_ = recorded(flags)
    (path,) = tmp_path.glob("runs/*/checkpoint.pt")
    saved = torch.load(path)["optimizer"]["state"][6]["mean_square"]
    others = "--total-timesteps 2048 --rmsprop-decay 0.8 --rmsprop-eps 0.3 --bf16"
    more, agent, _ = recorded(flags, f"--resume {path}", others)
    assert [call.lr for call in calls] == pytest.approx([0.1, 0.075, 0.05, 0.025])
    assert [call.lr for call in more] == pytest.approx([0.05, 0.0375, 0.025, 0.0125])
    assert [(call.decay, call.eps) for call in (calls[0], more[0])] == [(0.9, 0.2), (0.8, 0.3)]
    assert agent.bf16
    assert torch.equal(more[0].mean_square, saved) and (calls[0].mean_square == 1).all() and not (saved == 1).all()
    assert more[0].noise_seed != calls[0].noise_seed
    assert not np.array_equal(more[0].observations[0], calls[0].observations[0])


def test_what_is_logged(monkeypatch):
    rows = []
    monkeypatch.setattr(paac_gpu, "log_progress", lambda *args: rows.append(args))
    paac_gpu.train(quick("--total-timesteps 360 --log-interval 100"))  # rollouts of 64 steps
    assert [row[2] for row in rows] == [128, 256, 320, 384]
    _, _, _, speed, _, _, metrics = rows[-1]
    assert metrics["charts/PPS"] == pytest.approx(speed * 9 / 8)  # 8 steps and the bootstrap's state
    assert metrics["charts/TPS"] == pytest.approx(speed / 64)


# Atari, devices, what is refused


@pytest.mark.parametrize(
    "device",
    ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))],
)
def test_atari_rollouts(device, monkeypatch):
    """Frames stay uint8 up to the device, rewards are clipped for learning and logged as the game gives them."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)  # which would be too coarse for `recorded`
    monkeypatch.setattr(torch.cuda, "device_count", lambda: int(device == "cuda"))
    flags = f"--env-id ALE/Qbert-v5 --network nature --num-envs 2 --num-steps 8 --total-timesteps 720 --device {device}"
    calls, agent, history = recorded(flags, f"--eval-episodes {int(device == 'cuda')}")
    assert agent.body[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert agent.body[0].weight.device.type == device and agent.actor.in_features == 512
    observations = calls[0].observations
    assert observations.dtype == np.uint8 and observations.shape == (9, 2, 4, 84, 84) and observations.max() > 100
    rewards, dones, valids = (np.concatenate([getattr(c, x) for c in calls]) for x in ("rewards", "dones", "valids"))
    assert set(np.unique(rewards)) == {0.0, 1.0}
    assert np.array_equal(valids[1:], ~dones[:-1])  # the row after a done only resets
    assert history and all(value >= 25 and value % 25 == 0 for _, value in history)  # 25 points a cube
    ends = [np.flatnonzero(dones[:, n])[:1] for n in range(2)]
    firsts = [rewards[: end[0] + 1, n].sum() for n, end in enumerate(ends) if len(end)]
    assert sum(firsts) <= sum(value for _, value in history) / 25


def test_atari_evaluation_and_video(tmp_path, monkeypatch):
    """An agent that never moves loses a point of Pong soon; its frames and the emulator's own look alike."""
    monkeypatch.setattr(paac_gpu.ActorCritic, "greedy", lambda self, output: torch.zeros(len(output), dtype=int))
    monkeypatch.setattr(paac_gpu, "range", lambda n: range(n // 1000), raising=False)  # evaluate's limit: 100 steps
    args = quick("--env-id ALE/Pong-v5")
    agent = paac_gpu.ActorCritic(FRAMES, Discrete(6), "nips")
    assert paac_gpu.evaluate(agent, args, 1, tmp_path / "video")[0] in (-1, -2)
    (video,) = tmp_path.glob("video/*.mp4")
    assert video.stat().st_size > 2000
    ours, ale = (paac_gpu.make_envs(args, 2, **x).reset(seed=1)[0] for x in ({"render_mode": "rgb_array"}, {}))
    assert ours.shape == ale.shape == (2, 4, 84, 84) and ours.dtype == ale.dtype == np.uint8
    assert not ours[:, :3].any() and not ale[:, :3].any() and abs(ours[:, 3].mean() - ale[:, 3].mean()) < 5


def test_what_emulators_are_asked_for(monkeypatch):
    """Rewards of the game, sticky actions as given, and no more threads than games."""
    monkeypatch.setattr(gym, "make_vec", lambda env_id, **settings: settings)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    args = quick("--repeat-action-probability 0.1")
    for num_envs, threads in ((8, 3), (2, 2)):
        expected = {"num_envs": num_envs, "num_threads": threads, "reward_clipping": False}
        assert paac_gpu.make_games(args, num_envs) == expected | {"repeat_action_probability": 0.1}
    assert paac_gpu.make_games(args, 1, render_mode="rgb_array")["repeat_action_probability"] == 0.1


def test_observations_are_copied():
    """The graph that acting keeps must not see what an environment writes into its buffer later."""
    agent = paac_gpu.ActorCritic(Box(-1, 1, (3,)), Discrete(2), "nips")
    gradients = []
    for later in (0, 1):
        obs = np.zeros((2, 3), np.float32)
        _, values = agent(torch.as_tensor(obs))
        obs[:] = later
        gradients.append(torch.autograd.grad(values.sum(), agent.body[0].weight)[0])
    torch.testing.assert_close(*gradients, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("flags", "rank", "device"),
    [
        ("", None, "cuda"),
        ("", "1", "cuda:1"),
        ("--device cuda", "1", "cuda:1"),
        ("--device cuda:0", "1", "cuda:0"),
        ("--device cpu", "1", "cpu"),
        ("--device cuda", "2", None),
        ("--device cuda:2", "0", None),
    ],
)
def test_each_rank_has_a_gpu(flags, rank, device, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    if rank:
        monkeypatch.setenv("LOCAL_RANK", rank)
    if device:
        assert paac_gpu.parse_args(flags.split()).device == device
    else:
        with pytest.raises(SystemExit) as stop:
            paac_gpu.parse_args(flags.split())
        assert stop.value.code == 2 and "error: argument --device: " in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("name", "DictObservation ImageObservation MultiDiscreteAction IntegerAction SameStep".split())
def test_environments_that_it_cannot_take(name, tmp_path):
    with pytest.raises(paac_gpu.RunError, match=f"--env-id {name}-v0: takes flat observations or Atari, Discrete"):
        paac_gpu.train(quick("--env-id", f"{name}-v0"))
    assert not list(tmp_path.iterdir())


def test_an_epsilon_of_zero_is_refused(capsys):
    """A weight whose gradient has always been 0 would be divided by the root of 0."""
    with pytest.raises(SystemExit) as stop:
        quick("--rmsprop-eps 0")
    assert stop.value.code == 2 and "--rmsprop-eps: 0 is not from 1e-12" in capsys.readouterr().err


def test_waiting_threads_soon_sleep_only_where_it_is_the_program(monkeypatch):
    monkeypatch.setattr(os, "environ", {k: v for k, v in os.environ.items() if k != "GOMP_SPINCOUNT"})
    monkeypatch.setattr(sys, "argv", ["paac_gpu.py", "--help"])
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    for name, count in (("imported", None), ("__main__", "10000")):
        with suppress(SystemExit):
            runpy.run_path(str(ROOT / "paac_gpu.py"), run_name=name)
        assert os.environ.get("GOMP_SPINCOUNT") == count


# Two ranks


class Dice(gym.Env):
    """Observations and ends by dice; most episodes are of a step or two."""

    observation_space, action_space = Box(-1, 1, (3,)), Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.np_random.uniform(-1, 1, 3).astype(np.float32), {}

    def step(self, action):
        obs, ends = self.np_random.uniform(-1, 1, 3).astype(np.float32), self.np_random.random(2) < 0.6
        return obs, float(obs[0] + action), bool(ends[0]), bool(ends[1]), {}


gym.register("Dice-v0", Dice)
RANKS = "--env-id Dice-v0 --num-envs 2 --num-steps 1 --total-timesteps 240 --log-interval 238 --learning-rate 0.1"


def a_rank():
    """What each of the two processes does: a run that is noted, and one that goes on from its checkpoint for ever."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    rank, (calls, agent, history) = int(os.environ["RANK"]), recorded(RANKS, "--eval-episodes 3")
    torch.save((calls, agent.state_dict(), history), f"rank{rank}.pt")
    while not (paths := list(Path("runs").glob("*/checkpoint.pt"))):
        time.sleep(0.01)
    # For the second group a store in a file, as torchrun's still has the addresses of the first one.
    where = {"init_method": f"file://{Path('store').resolve()}", "rank": rank, "world_size": 2}
    torch.distributed.init_process_group = functools.partial(torch.distributed.init_process_group, **where)
    paac_gpu.train(quick(RANKS, f"--resume {paths[0]} --total-timesteps 1000000000"))


def test_two_ranks_learn_as_one_process_on_the_rollouts_of_both(tmp_path):
    """Rollouts of resets alone, on a rank or on both, included; SIGTERM leaves the one checkpoint."""
    command = "-m torch.distributed.run --standalone --nproc-per-node 2 --no-python".split()
    process = subprocess.Popen(
        [sys.executable, *command, sys.executable, "-c", "import test_paac_gpu; test_paac_gpu.a_rank()"],
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
    count = [len(re.findall(f"^{word} ", out, re.M)) for word in ("paac_gpu.py", "evaluation", "checkpoint")]
    assert count == [2, 1, 2]  # only the first rank reports
    assert re.findall(r"^step +(\d+) ", out, re.M)[:3] == ["240", "476", "716"]  # of both ranks, 4 a rollout
    (path,) = tmp_path.glob("runs/*/checkpoint.pt")
    assert torch.load(path)["global_step"] == int(re.findall(r"step +([\d,]+)\n", out)[-1].replace(",", ""))

    ranks = [torch.load(f"rank{rank}.pt", weights_only=False) for rank in range(2)]
    (calls, weights, history), (others, other_weights, other_history) = ranks
    pairs = list(zip(calls, others, strict=True))
    assert {(a.valids.sum(), b.valids.sum()) for a, b in pairs} >= {(0, 0), (0, 2), (1, 2)}
    assert calls[0].noise_seed != others[0].noise_seed
    assert not np.isin(calls[0].observations, others[0].observations).any()
    assert history != other_history and min(len(history), len(other_history)) > 30 and history[-1][0] > 220
    torch.manual_seed(1)
    agent = paac_gpu.ActorCritic(Dice.observation_space, Dice.action_space, "nips")
    args, start = quick(RANKS), agent.body[0].weight.detach().clone()
    optimizer = paac_gpu.RMSProp(agent.parameters(), 0.1, args.rmsprop_decay, args.rmsprop_eps)
    for step, (a, b) in enumerate(pairs):
        names = "observations actions rewards terminateds dones valids".split()
        observations, *rollout = (np.concatenate([getattr(x, name) for x in (a, b)], 1) for name in names)
        optimizer.param_groups[0]["lr"] = 0.1 * (1 - step / 60)
        if rollout[-1].any():
            paac_gpu.update(agent, optimizer, *act(agent, observations), *rollout, args)
        else:
            optimizer.zero_grad(set_to_none=False)
            optimizer.step()
    assert len(calls) == 60 and (agent.body[0].weight - start).abs().max() > 1e-2
    for name, p in agent.state_dict().items():
        assert torch.equal(weights[name], other_weights[name])
        torch.testing.assert_close(weights[name], p, rtol=0, atol=1e-4)


# Probe environments


def learn(env_id, flags=""):
    """Train on a probe -> agent, history."""
    probe = "--num-envs 8 --num-steps 8 --learning-rate 0.03 --gamma 0.9 --vf-coef 0.5 --total-timesteps 6000"
    return paac_gpu.train(quick(probe, "--env-id", env_id, flags))


@pytest.mark.parametrize(
    ("env_id", "flags", "values"),
    [
        ("ConstantReward-v0", "", {0: 1}),
        ("ObservationReward-v0", "", {-1: -1, 1: 1}),
        ("DelayedReward-v0", "--gae-lambda 0.8", {0: 0.9, 1: 1}),
        ("EndlessReward-v0", "", {0: 10}),  # 1 / (1 - γ), though every episode is cut after 5 steps, whose sum is 4.1
        ("EndlessReward-v0", "--gae-lambda 0.8", {0: 10}),
    ],
)
def test_probes_1_2_3_6_values(env_id, flags, values):
    agent, _ = learn(env_id, flags)
    for obs, value in values.items():
        assert agent(torch.tensor([[float(obs)]]))[1].item() == pytest.approx(value, rel=0.02)


@pytest.mark.parametrize("env_id", ["ActionReward-v0", "ObservationActionReward-v0"])
def test_probes_4_and_5_reward_depends_on_the_action(env_id):
    agent, history = learn(env_id)
    assert paac_gpu.evaluate(agent, quick("--env-id", env_id), 20) == [1.0] * 20
    assert np.mean([value for _, value in history[-100:]]) > 0.9  # what is sampled is near what is greedy


def test_a_continuous_action_finds_its_target():
    agent, _ = learn("Target-v0")
    assert agent(torch.zeros(1, 1))[0].item() == pytest.approx(0.5, abs=0.15)
