"""dqn.py: its equations against independent definitions, its buffer against a naive one, every branch, probes."""

import collections
import math
import runpy
import signal
import sys

import gymnasium as gym
import numpy as np
import probes
import pytest
import torch
from gymnasium.spaces import Box, Discrete
from torch.nn import functional as F

import dqn


def quick(*flags):
    """Arguments of a run that lasts a blink; later flags win."""
    small = (
        "--total-timesteps 1024 --num-envs 8 --learning-rate 0.001 --buffer-size 1000 --batch-size 32 "
        "--learning-starts 64 --train-interval 16 --eval-episodes 0"
    ).split()
    return dqn.parse_args(["--wandb-mode", "disabled", *small, *flags])


def spied(monkeypatch, name, before):
    """Record what `before` makes of the arguments of each call of dqn.NAME, which is called as usual."""
    calls, original = [], getattr(dqn, name)
    monkeypatch.setattr(dqn, name, lambda *args: calls.append(before(*args)) or original(*args))
    return calls


# Schedules


def test_schedules():
    """Linear: a line and then a constant. Exponential: what is left shrinks by the same factor in each step."""
    steps = np.arange(0, 300, 7)
    expected = {
        dqn.linear_schedule: np.interp(steps, [0, 200], [0.9, 0.1]),
        dqn.exponential_schedule: 0.1 + 0.8 * np.e ** (-steps / 200),
    }
    for schedule, values in expected.items():
        np.testing.assert_allclose([schedule(0.9, 0.1, 200, step) for step in steps], values, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ([], lambda step: np.interp(step, [0, 5_000], [1, 0.2])),
        (["--exponential-epsilon"], lambda step: 0.2 + 0.8 * math.exp(-step / 5_000)),
    ],
)
def test_epsilon_anneals_in_a_full_run(monkeypatch, flags, expected):
    """What is logged, and what is played: of a Q that always prefers action 1, action 0 is taken with ε / 2."""
    monkeypatch.setattr(dqn.QNetwork, "forward", lambda self, obs: torch.tensor([[0.0, 1.0]]).expand(len(obs), 2))
    charts = spied(monkeypatch, "log_progress", lambda *args: (args[2], args[6]["charts/epsilon"]))
    run = "--env-id ActionReward-v0 --num-envs 32 --epsilon-steps 5000 --epsilon-end 0.2 --train-interval 100000"
    _, history = dqn.train(quick(*run.split(), *"--total-timesteps 9600 --log-interval 1600".split(), *flags))
    assert [step for step, _ in charts] == list(range(1600, 9601, 1600))
    for step, epsilon in charts:
        assert epsilon == pytest.approx(expected(step - 32))
        rewards = [reward for s, reward in history if step - 1600 < s <= step]  # 1, and -1 for action 0
        epsilons = [expected(s - 32) for s, _ in history if step - 1600 < s <= step]
        assert np.mean(rewards) == pytest.approx(1 - np.mean(epsilons), abs=4 / math.sqrt(len(rewards)))


# Targets and loss


def test_td_target():
    """64 transitions, some terminal; a truncated one is not."""
    rng = np.random.default_rng(0)
    reward, next_q, next_online_q = rng.normal(size=64), rng.normal(size=(64, 3)), rng.normal(size=(64, 3))
    terminated = rng.random(64) < 0.3
    batch = [torch.as_tensor(x) for x in (reward, next_q, next_online_q, terminated)]
    plain = [r + (0 if end else 0.9 * max(q)) for r, q, end in zip(reward, next_q, terminated, strict=True)]
    np.testing.assert_allclose(dqn.td_target(*batch[:2], None, batch[3], 0.9), plain, rtol=0, atol=1e-12)
    double = plain.copy()
    for i in np.flatnonzero(~terminated):
        double[i] = reward[i] + 0.9 * next_q[i, list(next_online_q[i]).index(max(next_online_q[i]))]
    target = dqn.td_target(*batch, 0.9).numpy()
    np.testing.assert_allclose(target, double, rtol=0, atol=1e-12)
    assert np.all(target <= np.array(plain)) and np.any(target < np.array(plain))  # which is what double DQN is for


@pytest.mark.parametrize("kind", ["squared", "huber"])
def test_loss_and_its_gradient(kind):
    """Half the squared error, whose gradient is the error; for huber linear, and ±1, where the error is beyond ±1."""
    torch.manual_seed(0)
    q_values = torch.randn(50, 3, dtype=torch.float64).mul(2).requires_grad_()
    action, target = torch.randint(3, (50,)), torch.randn(50, dtype=torch.float64).mul(2)
    loss, metrics = dqn.dqn_loss(q_values, action, target, kind)
    value = np.array([q_values[i, action[i]].item() for i in range(50)])
    error = value - target.numpy()
    large = abs(error) > 1
    assert 0 < large.sum() < 50
    expected, slope = error**2 / 2, error
    if kind == "huber":
        expected, slope = np.where(large, abs(error) - 0.5, expected), np.where(large, np.sign(error), error)
    assert loss.item() == pytest.approx(expected.mean(), abs=1e-12) == metrics["losses/td_loss"].item()
    assert metrics["losses/q_value"].item() == pytest.approx(value.mean())
    loss.backward()
    gradient = np.zeros((50, 3))
    gradient[np.arange(50), action] = slope / 50
    np.testing.assert_allclose(q_values.grad, gradient, rtol=0, atol=1e-12)


# Networks


def box(*shape):
    """A space of vectors without bounds, or of frames."""
    return Box(0, 255, shape, np.uint8) if len(shape) == 3 else Box(-np.inf, np.inf, shape)


def numpy_q(weights, obs):
    """Q values and, for backpropagation, the hidden layer of each head before its ReLU, in NumPy."""
    heads = {name.split(".")[0] for name in weights}
    hidden = {h: obs @ weights[f"{h}.0.weight"].T + weights[f"{h}.0.bias"] for h in heads}
    out = {h: np.maximum(z, 0) @ weights[f"{h}.2.weight"].T + weights[f"{h}.2.bias"] for h, z in hidden.items()}
    q_values = out["advantage"]
    if "value" in out:
        q_values = out["value"] + q_values - q_values.mean(1, keepdims=True)
    return q_values, hidden


def arrays(network):
    return {name: p.double().numpy().copy() for name, p in network.state_dict().items()}


@pytest.mark.parametrize(
    ("double", "dueling", "loss"), [(0, 0, "squared"), (1, 0, "huber"), (0, 1, "huber"), (1, 1, "squared")]
)
def test_one_update_is_the_one_written_out_in_numpy(double, dueling, loss):
    """Targets, loss, backpropagation, clipping and a plain gradient step; of the batch one transition is terminal."""
    torch.manual_seed(1)
    args = quick("--gamma", "0.95", "--max-grad-norm", "0.5", "--loss", loss, *["--double"] * double)
    q_network, target_network = (dqn.QNetwork(box(2), 3, "nature", [8], dueling) for _ in range(2))
    weights, target_weights = arrays(q_network), arrays(target_network)
    obs, next_obs = torch.randn(2, 5, 2)
    action, reward = torch.tensor([0, 1, 2, 0, 2]), torch.tensor([3.0, -2.0, 0.5, 4.0, 0.1])
    terminated = torch.tensor([False, True, False, False, False])  # the third was cut by the clock: no terminal

    next_q = numpy_q(target_weights, next_obs.double().numpy())[0]
    chosen = numpy_q(weights, next_obs.double().numpy())[0] if double else next_q
    bootstrap = next_q[np.arange(5), chosen.argmax(1)] * [1, 0, 1, 1, 1]
    x = obs.double().numpy()
    q_values, hidden = numpy_q(weights, x)
    error = q_values[np.arange(5), action] - (reward.double().numpy() + 0.95 * bootstrap)
    assert (abs(error) > 1).any() and (abs(error) < 1).any()
    grad_q = np.zeros((5, 3))
    grad_q[np.arange(5), action] = (np.clip(error, -1, 1) if loss == "huber" else error) / 5
    grad_out = {"advantage": grad_q}
    if dueling:
        grad_out = {"advantage": grad_q - grad_q.mean(1, keepdims=True), "value": grad_q.sum(1, keepdims=True)}
    gradients = {}
    for h, g in grad_out.items():
        gradients |= {f"{h}.2.weight": g.T @ np.maximum(hidden[h], 0), f"{h}.2.bias": g.sum(0)}
        g = g @ weights[f"{h}.2.weight"] * (hidden[h] > 0)
        gradients |= {f"{h}.0.weight": g.T @ x, f"{h}.0.bias": g.sum(0)}
    norm = math.sqrt(sum((g**2).sum() for g in gradients.values()))
    assert norm > 0.5, "the batch must exercise the clipping"

    optimizer = torch.optim.SGD(q_network.parameters(), lr=1)
    for p in q_network.parameters():
        p.grad = torch.full_like(p, 100)  # of an update before
    batch = obs, action, reward, terminated, next_obs
    metrics = dqn.update(q_network, target_network, optimizer, *batch, args)
    assert metrics["losses/grad_norm"].item() == pytest.approx(norm, rel=1e-5) and len(metrics) == 3
    for name, after in arrays(q_network).items():
        np.testing.assert_allclose(after, weights[name] - gradients[name] * 0.5 / norm, rtol=0, atol=1e-6)
    assert all(np.array_equal(w, target_weights[name]) for name, w in arrays(target_network).items())
    assert all(p.grad is None for p in target_network.parameters())

    weights = arrays(q_network)
    with pytest.raises(dqn.RunError, match="not finite"):
        dqn.update(q_network, target_network, optimizer, obs, action, reward * math.nan, *batch[3:], args)
    assert all(np.array_equal(w, weights[name]) for name, w in arrays(q_network).items())


def test_observations_within_narrow_bounds_are_stretched():
    low, high = np.array([[-4, -np.inf, -0.5, 0, 0, -0.1], [2, np.inf, 0.25, 8, 0, 1]], np.float32)
    bounded, free = (dqn.QNetwork(space, 2, "nature", [32, 16], False) for space in (Box(low, high), box(6)))
    free.load_state_dict(bounded.state_dict())
    obs = torch.randn(9, 6)
    torch.testing.assert_close(bounded(obs), free(obs / torch.tensor([1, 1, 0.5, 1, 1, 1])), rtol=0, atol=0)
    torch.testing.assert_close(bounded(obs.double()), bounded(obs))


def test_hidden_sizes():
    shapes = [tuple(p.shape) for p in dqn.QNetwork(box(4), 2, "nature", [120, 84], False).parameters()]
    assert shapes == [(120, 4), (120,), (84, 120), (84,), (2, 84), (2,)]  # CleanRL's
    network = dqn.QNetwork(box(4), 2, "nature", [5, 6, 7], True)
    shapes = [tuple(p.shape) for p in network.parameters() if p.ndim == 2]
    assert shapes == [(5, 4), (6, 5), (7, 6), (2, 7), (7, 6), (1, 7)]
    x, p = torch.randn(3, 4), list(network.parameters())
    torch.testing.assert_close(network.body(x), F.relu(F.relu(x @ p[0].T + p[1]) @ p[2].T + p[3]))


@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        ("nips", [(16, 4, 8, 8), (32, 16, 4, 4), (256, 2592), (6, 256)]),
        ("nature", [(32, 4, 8, 8), (64, 32, 4, 4), (64, 64, 3, 3), (512, 3136), (6, 512)]),
    ],
)
def test_the_convolutions_are_the_papers(name, shapes):
    network = dqn.QNetwork(box(4, 84, 84), 6, name, [64], False)
    assert [tuple(p.shape) for p in network.parameters() if p.ndim > 1] == shapes
    frames = torch.randint(256, (3, 4, 84, 84), dtype=torch.uint8)
    x = frames / 255 - frames.sum((2, 3), keepdim=True) / (255 * 84 * 84)
    p = list(network.parameters())
    for i, stride in enumerate((4, 2, 1)[: len(shapes) - 2]):
        x = F.relu(F.conv2d(x, p[2 * i], p[2 * i + 1], stride=stride))
    expected = F.relu(x.flatten(1) @ p[-4].T + p[-3]) @ p[-2].T + p[-1]
    torch.testing.assert_close(network(frames), expected, rtol=1e-4, atol=1e-5)
    dueling, hidden = dqn.QNetwork(box(4, 84, 84), 6, name, [64], True), shapes[-1][1]
    assert dueling(frames).shape == (3, 6)
    assert [p.shape[0] for p in dueling.value.parameters()] == [hidden, hidden, 1, 1]


# Replay buffer


@pytest.mark.parametrize(
    "sizes",  # the last: of one row, where after an end there would be nothing to sample but the reset
    [(99, 3, 1500, 0.15), (50, 1, 300, 0.15), (2, 1, 300, 0.15), (10, 4, 300, 0.15), (8, 4, 300, 0.15), (4, 4, 50, 0)],
)
@pytest.mark.parametrize(("obs_shape", "dtype"), [((3,), np.float32), ((4, 3, 2), np.uint8), ((2, 3, 2), np.uint8)])
def test_a_frame_once_buffer_is_bit_identical_to_a_naive_one(obs_shape, dtype, sizes):
    """Random episodes, many of one or two steps: every sample is a naive record, and every record is sampled."""
    capacity, num_envs, num_steps, end_probability = sizes
    rng = np.random.default_rng(capacity)
    buffer = dqn.ReplayBuffer(capacity, num_envs, obs_shape, dtype, np.random.default_rng(0))
    naive = [collections.deque(maxlen=-(-capacity // num_envs)) for _ in range(num_envs)]  # rows; None for a reset
    stacked = len(obs_shape) == 3

    def observe(n, starts):
        if not stacked:
            return rng.normal(size=obs_shape).astype(dtype)
        frame = rng.integers(1, 256, size=obs_shape[1:]).astype(dtype)
        stacks[n] = np.stack([*(np.zeros_like(stacks[n][1:]) if starts else stacks[n][1:]), frame])
        return stacks[n]

    stacks, done, sampled = np.zeros((num_envs, *obs_shape), dtype), np.zeros(num_envs, bool), set()
    obs = np.stack([observe(n, True) for n in range(num_envs)])
    buffer.reset(obs)
    for step in range(num_steps):
        action, reward = rng.integers(3, size=num_envs), np.arange(num_envs) + num_envs * step  # the record's number
        next_obs = np.stack([observe(n, done[n]) for n in range(num_envs)])
        terminated, truncated = (rng.random((2, num_envs)) < end_probability) & ~done
        for n in range(num_envs):
            record = obs[n], action[n], reward[n], terminated[n], next_obs[n]
            naive[n].append(None if done[n] else record)
        done = terminated | truncated
        buffer.add(action, reward.astype(float), terminated, done, next_obs)
        obs = next_obs
        records = {int(record[2]): record for rows in naive for record in rows if record is not None}
        samples = list(zip(*buffer.sample(5), strict=True))
        if step == num_steps - 1:
            samples += list(zip(*buffer.sample(50 * capacity), strict=True))
        for sample in samples:
            number = int(sample[2])
            assert all(np.array_equal(x, y) for x, y in zip(sample, records[number], strict=True))
            sampled.add(number)
    assert set(records) <= sampled and sampled - set(records)
    assert [x.dtype for x in buffer.sample(1)] == [dtype, np.int64, np.float32, bool, dtype]


def test_transitions_are_drawn_uniformly():
    buffer = dqn.ReplayBuffer(20, 2, (1,), np.float32, np.random.default_rng(0))
    buffer.reset(np.zeros((2, 1)))
    for step in range(14):
        done = np.array([step % 3 == 1, False])
        buffer.add(np.zeros(2), np.array([step, 100 + step]), done, done, np.zeros((2, 1)))
    rewards, counts = np.unique(buffer.sample(170_000)[2], return_counts=True)
    expected = [4, 6, 7, 9, 10, 12, 13, *range(104, 114)]  # the last 10 rows, without the resets after 1, 4, 7, 10
    assert rewards.tolist() == expected
    assert abs(counts - 10_000).max() < 5 * 100  # 5 sigma


def test_a_million_atari_transitions_take_7_gb():
    """Four rows more than transitions: the newest observation's, and three of older frames."""
    buffer = dqn.ReplayBuffer(1000, 8, (4, 84, 84), np.uint8, None)
    num_bytes = sum(x.nbytes for x in vars(buffer).values() if isinstance(x, np.ndarray))
    assert num_bytes / (1000 + 4 * 8) * 1e6 == 7.07e9


def test_more_memory_than_there_is(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["dqn.py", "--buffer-size", f"{10**15}", "--wandb-mode", "disabled"])
    monkeypatch.setattr(signal, "signal", lambda *args: None)
    with pytest.raises(SystemExit, match=r"^dqn.py: error: Unable to allocate 14.2 PiB"):
        runpy.run_path(dqn.__file__, run_name="__main__")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("env_id", ["ALE/Pong-v5", "ALE/Breakout-v5", "CartPole-v1"])
def test_stacks_are_those_of_the_environment(env_id, monkeypatch):
    """Sampled obs and next obs against those that were observed, told apart by the reward; games end after 20 steps."""
    shorten_games(monkeypatch, 80)
    envs = dqn.make_envs(quick("--env-id", env_id, "--pixels"), 2)
    rng = np.random.default_rng(0)
    buffer = dqn.ReplayBuffer(50, 2, (4, 84, 84), np.uint8, rng)
    obs, _ = envs.reset(seed=0)
    buffer.reset(obs)
    done, records, ends = np.zeros(2, bool), {}, 0
    for step in range(60):
        valid, action = ~done, rng.integers(envs.single_action_space.n, size=2)
        next_obs, _, terminated, truncated, _ = envs.step(action)
        done = terminated | truncated
        ends += done.sum()
        for n in np.flatnonzero(valid):
            records[2 * step + n] = obs[n].copy(), next_obs[n].copy()
        buffer.add(action, 2 * step + np.arange(2), terminated, done, next_obs)
        obs = next_obs.copy()
        for x, _, number, _, next_x in zip(*buffer.sample(8), strict=True):
            assert np.array_equal(x, records[number][0]) and np.array_equal(next_x, records[number][1])
    envs.close()
    assert ends >= 4


def shorten_games(monkeypatch, num_frames):
    """Let Atari games end after so many frames -> a list that receives the options of each gym.make_vec."""
    options, make_vec = [], gym.make_vec

    def shorter(env_id, **kwargs):
        options.append(kwargs)
        return make_vec(env_id, **kwargs, **({"max_num_frames_per_episode": num_frames} if "ALE/" in env_id else {}))

    monkeypatch.setattr(gym, "make_vec", shorter)
    return options


# What train hands to the update, and when


def test_batches_are_the_environment_s_transitions(monkeypatch):
    """Every sampled transition against the environment's script: true last observations, no resets, nothing else."""
    batches = spied(monkeypatch, "update", lambda *args: [x.numpy().copy() for x in args[3:8]])
    lengths = spied(monkeypatch, "log_progress", lambda *args: list(args[5]))
    _, history = dqn.train(quick("--env-id", "Scripted-v0", "--num-envs", "2", "--total-timesteps", "400"))
    seen = collections.Counter()
    for batch in batches:
        for obs, _, reward, terminated, next_obs in zip(*batch, strict=True):
            episode, t = obs
            assert tuple(next_obs) == (episode, t + 1) and reward == 10 * episode + t + 1
            assert terminated == (episode % 2 == 0 and t == 2)
            seen[episode % 2, t] += 1
    assert sorted(seen) == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (1, 3)]
    by_episode = [(k, (3, 4)[k % 2]) for k in range(len(history) // 2) for _ in range(2)]  # number, length; 2 envs
    assert [value for _, value in history] == [sum(10 * k + t for t in range(1, n + 1)) for k, n in by_episode]
    assert [step for step, _ in history[:5]] == [6, 6, 16, 16, 24]  # 3 steps, reset, 4 steps, reset, 3 steps
    assert lengths[-1] == [n for _, n in by_episode][-100:]


def flat(network):
    """All weights of a network."""
    return torch.cat([p.detach().flatten() for p in network.parameters()]).clone()


@pytest.mark.parametrize(
    "sizes", [(1, 4, 3, 65), (8, 4, 1, 64), (8, 20, 2, 64), (4, 10, 1, 0), (1, 1, 1, 180), (7, 3, 1, 49)]
)
def test_updates_and_copies_of_the_target_network(monkeypatch, sizes):
    """gradient_steps at each multiple of train_interval from learning_starts on; a copy at each multiple of 10."""
    num_envs, train_interval, gradient_steps, starts = sizes
    records, update = [], dqn.update

    def recorded(q_network, target_network, optimizer, *rest):
        assert type(optimizer) is torch.optim.Adam and not any(p.requires_grad for p in target_network.parameters())
        before, target = flat(q_network), flat(target_network)
        metrics = update(q_network, target_network, optimizer, *rest)
        records.append((optimizer.param_groups[0]["lr"], before, target, flat(q_network)))
        return metrics

    monkeypatch.setattr(dqn, "update", recorded)
    flags = f"--num-envs {num_envs} --train-interval {train_interval} --gradient-steps {gradient_steps}"
    run = f"--learning-starts {starts} --total-timesteps 200 --target-update-interval 10 --learning-rate 0.01"
    dqn.train(quick(*flags.split(), *run.split()))
    q, target = records[0][1:3]
    assert torch.equal(q, target)
    for step in range(0, 200, num_envs):
        just = range(step + 1, step + num_envs + 1)  # the steps that the environments make together
        due = sum(s % train_interval == 0 for s in just) * gradient_steps if just[-1] >= starts else 0
        for learning_rate, before, now, after in [records.pop(0) for _ in range(due)]:
            assert learning_rate == pytest.approx(0.01 * (1 - step / 200))
            assert torch.equal(before, q) and torch.equal(now, target) and not torch.equal(before, after)
            q = after
        target = q if any(s % 10 == 0 for s in just) else target  # the copy of a step comes after its update
    assert not records


def test_a_resumed_run_goes_on(tmp_path, monkeypatch):
    """Networks and schedules as they were, an empty buffer filled first, other episodes and other random actions."""
    buffers, replay_buffer = [], dqn.ReplayBuffer
    monkeypatch.setattr(dqn, "ReplayBuffer", lambda *args: buffers.append(replay_buffer(*args)) or buffers[-1])
    charts = spied(monkeypatch, "log_progress", lambda *args: args[6]["charts/epsilon"])
    first = spied(monkeypatch, "update", lambda *args: (args[2].param_groups[0]["lr"], flat(args[0]), flat(args[1])))
    flags = (
        "--env-id Acrobot-v1 --train-interval 8 --log-interval 8 --epsilon-steps 2000 --learning-rate 0.01 "
        "--target-update-interval 300"
    ).split()
    dqn.train(quick(*flags, "--total-timesteps", "512"))
    (path,) = tmp_path.glob("runs/*/checkpoint.pt")
    saved = torch.load(path, weights_only=True)
    del charts[:], first[:]
    dqn.train(quick(*flags, "--resume", str(path)))
    assert charts == pytest.approx(np.interp(np.arange(512, 1024, 8), [0, 2000], [1, quick().epsilon_end]))
    assert [record[0] for record in first] == pytest.approx(0.01 * (1 - np.arange(512 + 56, 1024, 8) / 1024))
    for name, weights in (("agent", first[0][1]), ("target_network", first[0][2])):
        assert torch.equal(torch.cat([p.flatten() for p in saved[name].values()]), weights)
    assert not torch.equal(*first[0][1:])
    dqn.train(quick(*flags, "--seed", "2", "--total-timesteps", "8"))
    starts = np.concatenate([buffer.frames[0] for buffer in buffers])
    assert len(np.unique(starts, axis=0)) == 24  # Gymnasium counts the seeds up, one per environment
    assert np.mean(buffers[0].actions[:7] == buffers[1].actions[:7]) < 0.6


# Branches


def test_the_smallest_run():
    agent, history = dqn.train(quick(*"--num-envs 1 --batch-size 1 --buffer-size 2 --hidden-sizes 8".split()))
    assert history and agent.advantage[2].in_features == 8 and all(p.isfinite().all() for p in agent.parameters())


def test_pixels(tmp_path, capsys):
    flags = "--pixels --num-envs 2 --total-timesteps 100 --learning-starts 90 --train-interval 4 --batch-size 4"
    agent, history = dqn.train(quick(*flags.split(), "--capture-video"))
    assert history and agent.bound == 255 and "replay buffer  0.01 GB" in capsys.readouterr().out
    (video,) = tmp_path.glob("runs/*/video/*.mp4")
    assert video.stat().st_size > 1000


def test_pixels_are_the_picture():
    """The grey negative of the means over 84 x 84 parts of equal size."""
    env = dqn.observe_pictures(gym.make("CartPole-v1", render_mode="rgb_array"))
    obs, _ = env.reset(seed=3)
    assert obs.shape == (4, 84, 84) and obs.dtype == np.uint8 and not obs[:3].any()
    picture = env.render().astype(float) @ [0.2125, 0.7154, 0.0721]
    shares = []
    for size in picture.shape:
        edges, pixel = np.arange(85) * size / 84, np.arange(size)
        shares.append(np.minimum(edges[1:, None], pixel + 1) - np.maximum(edges[:-1, None], pixel))
    rows, columns = (np.maximum(x, 0) * 84 / size for x, size in zip(shares, picture.shape, strict=True))
    assert abs(obs[3] - (255 - rows @ picture @ columns.T)).max() < 2  # rounded twice
    first = obs[3]
    for _ in range(3):
        obs, *_ = env.step(1)
    assert np.array_equal(obs[0], first) and (obs[1] != obs[3]).any()  # it shows motion
    env.close()


class TenTimes(gym.vector.VectorWrapper):
    """Every reward times ten, and one of ten at each step that is not a reset."""

    done = False

    def step(self, action):
        obs, reward, terminated, truncated, info = self.env.step(action)
        reward = np.where(self.done, 0.0, 10.0 * reward + 10)
        self.done = terminated | truncated
        return obs, reward, terminated, truncated, info


def test_atari(tmp_path, monkeypatch):
    """Rewards are clipped for learning and logged as they are; sticky actions; no more threads than torch has."""
    options, make_games = shorten_games(monkeypatch, 120), dqn.make_games
    monkeypatch.setattr(dqn, "make_games", lambda *args, **render: TenTimes(make_games(*args, **render)))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    batches = spied(monkeypatch, "update", lambda *args: [x.numpy().copy() for x in args[3:8]])
    flags = (
        "--env-id ALE/Pong-v5 --num-envs 2 --total-timesteps 140 --learning-starts 130 --batch-size 8 --capture-video "
        "--train-interval 4 --repeat-action-probability 0.5"
    )
    args = quick(*flags.split())
    agent, history = dqn.train(args)
    assert agent.bound == 255 and len(batches) == 3 and all((batch[2] == 1).all() for batch in batches)
    assert {value for _, value in history} == {300.0} and len(history) == 4
    assert dqn.evaluate(agent, args, 4) == [300.0] * 4
    (video,) = tmp_path.glob("runs/ALE-Pong-v5__dqn__1__*/video/*.mp4")
    assert video.stat().st_size > 1000
    vector = {"reward_clipping": False, "repeat_action_probability": 0.5}
    assert options[0] == vector | {"num_envs": 2, "num_threads": 2}
    assert options[2] == vector | {"num_envs": 4, "num_threads": 3}
    assert options[1]["repeat_action_probability"] == 0.5 and options[1]["render_mode"] == "rgb_array"


def test_atari_is_the_same_where_it_is_rendered():
    args, seen = quick("--env-id", "ALE/Pong-v5"), []
    for render in ({}, {"render_mode": "rgb_array"}):
        envs = dqn.make_envs(args, 1, **render)
        obs, _ = envs.reset(seed=1)
        assert obs.dtype == np.uint8 and not obs[0, :3].any() and obs[0, 3].any()
        for _ in range(20):
            obs, *_ = envs.step(np.array([0]))
        greys, counts = np.unique(obs[0], return_counts=True)
        seen.append((obs.shape, greys[counts.argsort()[-4:]].tolist()))
        assert envs.single_observation_space == box(4, 84, 84)
        envs.close()
    assert seen[0] == seen[1]


class Countdown(probes.Probe):
    """As many steps as first observed, in tenths; reward 2 for action 0 and 1 for action 1."""

    def first_obs(self):
        return self.np_random.integers(1, 9) / 10

    def play(self, action):
        left = round(self.obs * 10 - 1) / 10
        return left, 2 - action, left == 0


gym.register("Countdown-v0", entry_point=Countdown, max_episode_steps=6)


def test_evaluation_is_greedy_and_each_environment_s_first_episode():
    args, returns, lengths = quick("--env-id", "Countdown-v0"), [], set()

    def agent(obs):
        return torch.cat([obs, 1 - obs], -1)

    for i in range(12):
        env, total, done = gym.make("Countdown-v0"), 0, False
        obs, _ = env.reset(seed=dqn.env_seed(args.seed, 1) + i)
        lengths.add(float(obs[0]))
        while not done:
            obs, reward, terminated, truncated, _ = env.step(int(agent(torch.as_tensor(obs)).argmax()))
            done, total = terminated or truncated, total + reward
        returns.append(total)
    assert dqn.evaluate(agent, args, 12) == returns and len(lengths) > 3


def test_evaluation_of_endless_episodes_is_cut(monkeypatch):
    gym.register("Endless-v0", entry_point=probes.EndlessReward)
    args, counts = quick("--env-id", "Endless-v0"), []
    monkeypatch.setattr(dqn, "range", lambda count: counts.append(count) or range(50), raising=False)
    assert dqn.evaluate(lambda obs: obs, args, 2) == [50, 50] and counts == [100_000]


def test_environments_that_it_cannot_take(monkeypatch):
    monkeypatch.setattr(probes.ActionReward, "action_space", Discrete(2, start=1))
    for name in "DictObservation ImageObservation MultiDiscreteAction Target SameStep ActionReward".split():
        with pytest.raises(dqn.RunError, match=f"--env-id {name}-v0: takes flat observations, .* Discrete actions"):
            dqn.make_envs(quick("--env-id", f"{name}-v0"), 2)


def test_a_buffer_of_less_than_two_steps_is_refused(capsys):
    with pytest.raises(SystemExit):
        quick("--num-envs", "17", "--buffer-size", "33")
    assert "error: argument --buffer-size: " in capsys.readouterr().err


# Probe environments


@pytest.mark.parametrize(
    ("env_id", "flags", "expected"),
    [
        ("ConstantReward", "", {0: [1, 1]}),
        ("ObservationReward", "--dueling", {-1: [-1, -1], 1: [1, 1]}),
        ("DelayedReward", "--loss huber", {0: [0.8, 0.8], 1: [1, 1]}),
        ("DelayedReward", "--double --dueling", {0: [0.8, 0.8], 1: [1, 1]}),
        ("ActionReward", "--double", {0: [-1, 1]}),
        ("ObservationActionReward", "", {-1: [1, -1], 1: [-1, 1]}),
        ("ObservationActionReward", "--double --dueling", {-1: [1, -1], 1: [-1, 1]}),
        ("EndlessReward", "", {0: [5, 5]}),  # 1 / (1 - γ), though every episode is cut after 5 steps, a sum of 3.4
        ("EndlessReward", "--double --dueling", {0: [5, 5]}),
    ],
)
def test_probes(env_id, flags, expected):
    """Q goes to its known value."""
    run = (
        "--total-timesteps 1600 --train-interval 8 --target-update-interval 40 --learning-rate 0.01 "
        "--hidden-sizes 32 --gamma 0.8 --epsilon-steps 1000 --epsilon-end 0.3"
    )
    agent, _ = dqn.train(quick("--env-id", f"{env_id}-v0", *run.split(), *flags.split()))
    assert (agent.value is not None) == ("--dueling" in flags)
    for obs, q_values in expected.items():
        assert agent(torch.tensor([[float(obs)]]))[0].tolist() == pytest.approx(q_values, abs=0.05)
