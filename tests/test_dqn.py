"""Test dqn.py: equations and replay buffer against independent definitions, every branch, probe environments."""

import collections
import math
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import probes
import pytest
import torch
from gymnasium.spaces import Box, Discrete
from torch.nn import functional as F

import dqn


def quick(*flags):
    """Return the arguments of a very short run; later flags override earlier ones."""
    small = (
        "--total-timesteps 1024 --num-envs 8 --learning-rate 0.001 --buffer-size 1000 --batch-size 32 "
        "--learning-starts 64 --train-interval 16 --gradient-steps 1 --eval-episodes 0"
    ).split()
    return dqn.parse_args(["--wandb-mode", "disabled", *small, *flags])


def spied(monkeypatch, name, record):
    """Call dqn.NAME as usual -> a list that collects record(*args) of each call."""
    calls, original = [], getattr(dqn, name)
    monkeypatch.setattr(dqn, name, lambda *args: calls.append(record(*args)) or original(*args))
    return calls


# Schedules


def test_schedules():
    """Linear: a line, then a constant. Exponential: each step shrinks the remaining distance by the same factor."""
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
def test_epsilon_decays_in_training(monkeypatch, flags, expected):
    """Both the logged ε and the played one: if Q always prefers action 1, action 0 has probability ε / 2."""
    monkeypatch.setattr(dqn.QNetwork, "forward", lambda self, obs: torch.tensor([[0.0, 1.0]]).expand(len(obs), 2))
    charts = spied(monkeypatch, "log_progress", lambda *args: (args[2], args[5]["charts/epsilon"]))
    run = "--env-id ActionReward-v0 --num-envs 32 --epsilon-steps 5000 --epsilon-end 0.2 --learning-starts 100000"
    _, history = dqn.train(quick(*run.split(), *"--total-timesteps 9600 --log-interval 1600".split(), *flags))
    assert [step for step, _ in charts] == list(range(1600, 9601, 1600))
    for step, epsilon in charts:
        assert epsilon == pytest.approx(expected(step - 32))
        rewards = [reward for s, reward in history if step - 1600 < s <= step]  # 1, and -1 for action 0
        epsilons = [expected(s - 32) for s, _ in history if step - 1600 < s <= step]
        assert np.mean(rewards) == pytest.approx(1 - np.mean(epsilons), abs=4 / math.sqrt(len(rewards)))


# Targets and loss


def test_td_target():
    """The formula transition by transition, of which some are terminal; double DQN never has the larger target."""
    rng = np.random.default_rng(0)
    rewards, next_q, next_online_q = rng.normal(size=64), rng.normal(size=(64, 3)), rng.normal(size=(64, 3))
    terminations = rng.random(64) < 0.3
    batch = [torch.as_tensor(x) for x in (rewards, next_q, next_online_q, terminations)]
    plain = [r + (0 if end else 0.9 * max(q)) for r, q, end in zip(rewards, next_q, terminations, strict=True)]
    np.testing.assert_allclose(dqn.td_target(*batch[:2], None, batch[3], 0.9), plain, rtol=0, atol=1e-12)
    double = plain.copy()
    for i in np.flatnonzero(~terminations):
        double[i] = rewards[i] + 0.9 * next_q[i, list(next_online_q[i]).index(max(next_online_q[i]))]
    targets = dqn.td_target(*batch, 0.9).numpy()
    np.testing.assert_allclose(targets, double, rtol=0, atol=1e-12)
    assert np.all(targets <= np.array(plain)) and np.any(targets < np.array(plain))


@pytest.mark.parametrize("kind", ["squared", "huber"])
def test_loss_and_its_gradient(kind):
    """Half the squared error, whose gradient is the error; huber is linear with gradient ±1 for errors beyond ±1."""
    torch.manual_seed(0)
    q_values = torch.randn(50, 3, dtype=torch.float64).mul(2).requires_grad_()
    actions, targets = torch.randint(3, (50,)), torch.randn(50, dtype=torch.float64).mul(2)
    loss, metrics = dqn.dqn_loss(q_values, actions, targets, kind)
    value = np.array([q_values[i, actions[i]].item() for i in range(50)])
    error = value - targets.numpy()
    large = abs(error) > 1
    assert 0 < large.sum() < 50
    expected, slope = error**2 / 2, error
    if kind == "huber":
        expected, slope = np.where(large, abs(error) - 0.5, expected), np.where(large, np.sign(error), error)
    assert loss.item() == pytest.approx(expected.mean(), abs=1e-12) == metrics["losses/td_loss"].item()
    assert metrics["losses/q_value"].item() == pytest.approx(value.mean())
    loss.backward()
    gradient = np.zeros((50, 3))
    gradient[np.arange(50), actions] = slope / 50
    np.testing.assert_allclose(q_values.grad, gradient, rtol=0, atol=1e-12)


# Networks


def box(*shape):
    """Return a space of frames or of unbounded vectors."""
    return Box(0, 255, shape, np.uint8) if len(shape) == 3 else Box(-np.inf, np.inf, shape)


def numpy_q(weights, obs):
    """Compute Q values and the hidden layer before its ReLU in NumPy; the network has one hidden layer."""
    hidden = obs @ weights["body.0.weight"].T + weights["body.0.bias"]
    out = {
        head: np.maximum(hidden, 0) @ weights[f"{head}.0.weight"].T + weights[f"{head}.0.bias"]
        for head in ("advantage", "value")
        if f"{head}.0.weight" in weights
    }
    q_values = out["advantage"]
    if "value" in out:
        q_values = out["value"] + q_values - q_values.mean(1, keepdims=True)
    return q_values, hidden


def arrays(network):
    """Return a copy of the network's weights in float64."""
    return {name: p.double().numpy().copy() for name, p in network.state_dict().items()}


@pytest.mark.parametrize(
    ("double", "dueling", "loss"), [(0, 0, "squared"), (1, 0, "huber"), (0, 1, "huber"), (1, 1, "squared")]
)
def test_an_update_equals_one_written_in_numpy(double, dueling, loss):
    """Targets, loss, backpropagation, clipping and a plain gradient step; NaN changes no weight."""
    torch.manual_seed(1)
    args = quick("--gamma", "0.95", "--max-grad-norm", "0.5", "--loss", loss, *["--double"] * double)
    q_network = dqn.QNetwork(box(2), 3, "nature", [8], dueling)
    target_network = dqn.QNetwork(box(2), 3, "nature", [8], dueling)
    weights, target_weights = arrays(q_network), arrays(target_network)
    observations, next_observations = torch.randn(2, 5, 2)
    actions, rewards = torch.tensor([0, 1, 2, 0, 2]), torch.tensor([3.0, -2.0, 0.5, 4.0, 0.1])
    terminations = torch.tensor([False, True, False, False, False])

    next_q = numpy_q(target_weights, next_observations.double().numpy())[0]
    chosen = numpy_q(weights, next_observations.double().numpy())[0] if double else next_q
    bootstrap = next_q[np.arange(5), chosen.argmax(1)] * [1, 0, 1, 1, 1]
    x = observations.double().numpy()
    q_values, hidden = numpy_q(weights, x)
    error = q_values[np.arange(5), actions] - (rewards.double().numpy() + 0.95 * bootstrap)
    assert (abs(error) > 1).any() and (abs(error) < 1).any()
    grad_q = np.zeros((5, 3))
    grad_q[np.arange(5), actions] = (np.clip(error, -1, 1) if loss == "huber" else error) / 5
    grad_out = {"advantage": grad_q}
    if dueling:
        grad_out = {"advantage": grad_q - grad_q.mean(1, keepdims=True), "value": grad_q.sum(1, keepdims=True)}
    gradients, grad_hidden = {}, 0
    for head, g in grad_out.items():
        gradients |= {f"{head}.0.weight": g.T @ np.maximum(hidden, 0), f"{head}.0.bias": g.sum(0)}
        grad_hidden = grad_hidden + g @ weights[f"{head}.0.weight"] * (hidden > 0)  # without the paper's 1/√2
    gradients |= {"body.0.weight": grad_hidden.T @ x, "body.0.bias": grad_hidden.sum(0)}
    norm = math.sqrt(sum((g**2).sum() for g in gradients.values()))
    assert norm > 0.5, "the batch must exercise the clipping"

    optimizer = torch.optim.SGD(q_network.parameters(), lr=1)
    for p in q_network.parameters():
        p.grad = torch.full_like(p, 100)  # left over from the previous update
    batch = observations, actions, rewards, terminations, next_observations
    metrics = dqn.update(q_network, target_network, optimizer, batch, args)
    assert metrics["losses/grad_norm"].item() == pytest.approx(norm, rel=1e-5) and len(metrics) == 3
    for name, after in arrays(q_network).items():
        np.testing.assert_allclose(after, weights[name] - gradients[name] * 0.5 / norm, rtol=0, atol=1e-6)
    assert all(np.array_equal(w, target_weights[name]) for name, w in arrays(target_network).items())
    assert all(p.grad is None for p in target_network.parameters())

    weights = arrays(q_network)
    batch = observations, actions, rewards * math.nan, terminations, next_observations
    with pytest.raises(dqn.RunError, match="not finite"):
        dqn.update(q_network, target_network, optimizer, batch, args)
    assert all(np.array_equal(w, weights[name]) for name, w in arrays(q_network).items())


def test_flat_observations_of_any_dtype():
    network, obs = dqn.QNetwork(box(6), 2, "nature", [32, 16], False), torch.randint(2, (9, 6))
    for dtype in (torch.float64, torch.int64, torch.bool):
        torch.testing.assert_close(network(obs.to(dtype)), network(obs.float()), rtol=0, atol=0)


def test_bytes_are_stored_as_bytes(monkeypatch):
    """A flattened image takes a quarter of the memory of floats."""
    buffers, replay_buffer = [], dqn.ReplayBuffer
    monkeypatch.setattr(dqn, "ReplayBuffer", lambda *args: buffers.append(replay_buffer(*args)) or buffers[-1])
    dqn.train(quick("--env-id", "probes:Picture-v0"))
    (buffer,) = buffers
    assert buffer.frames.dtype == np.uint8 and set(buffer.frames[1:50].flat) == {100, 200}


@pytest.mark.parametrize("dueling", [False, True])
def test_hidden_sizes(dueling):
    """All hidden layers are shared; the heads are linear."""
    network = dqn.QNetwork(box(4), 2, "nature", [120, 84], dueling)
    shapes = [(120, 4), (120,), (84, 120), (84,), (2, 84), (2,)]  # CleanRL's
    assert [tuple(p.shape) for p in network.parameters()] == shapes + [(1, 84), (1,)] * dueling
    x, p = torch.randn(3, 4), list(network.parameters())
    features = F.relu(F.relu(x @ p[0].T + p[1]) @ p[2].T + p[3])
    expected = features @ p[4].T + p[5]
    if dueling:
        expected = features @ p[6].T + p[7] + expected - expected.mean(1, keepdim=True)
    torch.testing.assert_close(network(x), expected)


@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        ("nips", [(16, 4, 8, 8), (32, 16, 4, 4), (256, 2592), (6, 256)]),
        ("nature", [(32, 4, 8, 8), (64, 32, 4, 4), (64, 64, 3, 3), (512, 3136), (6, 512)]),
    ],
)
def test_the_convolutions_are_those_of_the_papers(name, shapes):
    network = dqn.QNetwork(box(4, 84, 84), 6, name, [64], False)
    assert [tuple(p.shape) for p in network.parameters() if p.ndim > 1] == shapes
    frames = torch.randint(256, (3, 4, 84, 84), dtype=torch.uint8)
    mean_image = torch.rand(84, 84) * 255
    network.mean_image.copy_(mean_image)
    x = frames / 255 - (mean_image / 255).expand(3, 4, 84, 84)
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
    "sizes",  # the last has no episode ends: its single row could otherwise be a reset
    [(99, 3, 600, 0.15), (50, 1, 300, 0.15), (2, 1, 300, 0.15), (10, 4, 300, 0.15), (8, 4, 300, 0.15), (4, 4, 50, 0)],
)
@pytest.mark.parametrize(("obs_shape", "dtype"), [((3,), np.float32), ((4, 3, 2), np.uint8), ((2, 3, 2), np.uint8)])
def test_the_buffer_agrees_with_one_that_stores_every_stack(obs_shape, dtype, sizes):
    """In random episodes, many of one or two steps, each sample is a recorded one and each record is sampled."""
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


def test_transitions_are_sampled_uniformly():
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
    """Four rows come on top of the transitions: one for the newest observation, three for older frames."""
    buffer = dqn.ReplayBuffer(1000, 8, (4, 84, 84), np.uint8, None)
    num_bytes = sum(x.nbytes for x in vars(buffer).values() if isinstance(x, np.ndarray))
    assert num_bytes / (1000 + 4 * 8) * 1e6 == 7.07e9


def test_a_buffer_larger_than_memory_fails_at_once(tmp_path):
    with pytest.raises(MemoryError, match=r"Unable to allocate 14\.2 PiB"):
        dqn.train(quick("--buffer-size", f"{10**15}"))
    assert not list(tmp_path.iterdir())


def test_a_buffer_of_less_than_two_steps_is_refused(capsys):
    with pytest.raises(SystemExit, match="2"):
        quick("--num-envs", "17", "--buffer-size", "33")
    assert "error: argument --buffer-size: " in capsys.readouterr().err


@pytest.mark.parametrize("env_id", ["ALE/Pong-v5", "ALE/Breakout-v5", "CartPole-v1"])
def test_sampled_stacks_are_those_of_the_environment(env_id, monkeypatch):
    """Episodes end after 20 steps; a transition's reward is its number."""
    shorten_games(monkeypatch, 80)
    envs = dqn.make_envs(quick("--env-id", env_id, "--pixels"), 2)
    rng = np.random.default_rng(0)
    buffer = dqn.ReplayBuffer(50, 2, (4, 84, 84), np.uint8, rng)
    obs, _ = envs.reset(seed=0)
    buffer.reset(obs)
    done, records, ends = np.zeros(2, bool), {}, 0
    for step in range(60):
        is_transition, action = ~done, rng.integers(envs.single_action_space.n, size=2)
        next_obs, _, terminated, truncated, _ = envs.step(action)
        done = terminated | truncated
        ends += done.sum()
        for n in np.flatnonzero(is_transition):
            records[2 * step + n] = obs[n].copy(), next_obs[n].copy()
        buffer.add(action, 2 * step + np.arange(2), terminated, done, next_obs)
        obs = next_obs.copy()
        for x, _, number, _, next_x in zip(*buffer.sample(8), strict=True):
            assert np.array_equal(x, records[number][0]) and np.array_equal(next_x, records[number][1])
    envs.close()
    assert ends >= 4


# What train passes to update, and when


def test_batches_are_the_transitions_of_the_environment(monkeypatch):
    """Each sample agrees with the scripted environment: last observations true, reset steps left out."""
    batches = spied(monkeypatch, "update", lambda *args: [x.numpy().copy() for x in args[3]])
    lengths = spied(monkeypatch, "log_progress", lambda *args: list(args[4]))
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
    """Return all weights of a network as one vector."""
    return torch.cat([p.detach().flatten() for p in network.parameters()]).clone()


@pytest.mark.parametrize(
    "sizes", [(1, 4, 3, 65), (8, 4, 1, 64), (8, 20, 2, 64), (4, 10, 1, 0), (1, 1, 1, 180), (7, 3, 1, 49)]
)
def test_updates_and_copies_to_the_target_network(monkeypatch, sizes):
    """From learning_starts on, gradient_steps per train_interval; a copy per 10 steps, after the updates."""
    num_envs, train_interval, gradient_steps, starts = sizes
    records, update = [], dqn.update

    def recorded(q_network, target_network, optimizer, *rest):
        defaults = optimizer.defaults
        assert type(optimizer) is torch.optim.Adam and (defaults["betas"], defaults["eps"]) == ((0.9, 0.999), ADAM_EPS)
        assert not any(p.requires_grad for p in target_network.parameters())
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
        if step == 0 and starts == 0:
            just = range(0, num_envs + 1)
        updates = sum(s >= starts and (s - starts) % train_interval == 0 for s in just) * gradient_steps
        for learning_rate, before, now, after in [records.pop(0) for _ in range(updates)]:
            assert learning_rate == pytest.approx(0.01 * (1 - step / 200))
            assert torch.equal(before, q) and torch.equal(now, target) and not torch.equal(before, after)
            q = after
        target = q if any(s > 0 and s % 10 == 0 for s in just) else target
    assert not records


ADAM_EPS = 1e-8


def test_the_step_size_is_constant_without_annealing(monkeypatch):
    rates = spied(monkeypatch, "update", lambda *args: args[2].param_groups[0]["lr"])
    dqn.train(quick("--no-anneal-lr", "--learning-rate", "0.003"))
    assert set(rates) == {0.003} and len(rates) == 61


def test_a_resumed_run_continues(tmp_path, monkeypatch):
    """Networks and schedules continue, the buffer is filled anew, episodes and random actions differ."""
    buffers, replay_buffer = [], dqn.ReplayBuffer
    monkeypatch.setattr(dqn, "ReplayBuffer", lambda *args: buffers.append(replay_buffer(*args)) or buffers[-1])
    charts = spied(monkeypatch, "log_progress", lambda *args: args[5]["charts/epsilon"])
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
    assert len(np.unique(starts, axis=0)) == 24  # Gymnasium counts up from the seed, one per environment
    assert np.mean(buffers[0].actions[:7] == buffers[1].actions[:7]) < 0.6


# Branches


def test_the_smallest_run():
    agent, history = dqn.train(quick(*"--num-envs 1 --batch-size 1 --buffer-size 2 --hidden-sizes 8".split()))
    assert history and agent.advantage[0].in_features == 8 and all(p.isfinite().all() for p in agent.parameters())


def test_one_environment_is_stepped_without_a_vector_class():
    """Several are stepped by CartPole's own vector class."""
    for num_envs, is_sync in ((1, True), (2, False)):
        envs = dqn.make_envs(quick(), num_envs)
        assert isinstance(envs.unwrapped, gym.vector.SyncVectorEnv) == is_sync
        envs.close()


def test_pixels(tmp_path):
    flags = "--pixels --num-envs 2 --total-timesteps 100 --learning-starts 90 --train-interval 4 --batch-size 4"
    agent, history = dqn.train(quick(*flags.split(), "--capture-video"))
    assert history and isinstance(agent.body[0], torch.nn.Conv2d)
    (video,) = tmp_path.glob("runs/*/video/*.mp4")
    assert video.stat().st_size > 1000


@pytest.mark.parametrize(
    ("buffer_size", "rows"),  # 30 steps before the first update overwrite most of a ring of 19 rows
    [(1000, range(30)), (30, [12, 13, 14, *range(19, 31)])],
)
def test_the_mean_image(buffer_size, rows, tmp_path, monkeypatch):
    """Both networks subtract the mean of the frames before the first update; it stays, in a resumed run as well."""
    frames, reset, add = [], dqn.ReplayBuffer.reset, dqn.ReplayBuffer.add
    monkeypatch.setattr(dqn.ReplayBuffer, "reset", lambda self, obs: frames.append(obs[:, 3]) or reset(self, obs))
    monkeypatch.setattr(dqn.ReplayBuffer, "add", lambda *args: frames.append(args[-1][:, 3]) or add(*args))
    means = spied(monkeypatch, "update", lambda *args: [network.mean_image.clone() for network in args[:2]])
    flags = f"--pixels --num-envs 2 --buffer-size {buffer_size} --learning-starts 60 --train-interval 4 --batch-size 2"
    flags = [*flags.split(), "--target-update-interval", "8", "--total-timesteps"]
    dqn.train(quick(*flags, "80"))
    assert len(means) == 6
    np.testing.assert_allclose(means[0][0], np.mean([frames[i] for i in rows], (0, 1)), rtol=1e-5, atol=1e-4)
    (path,) = tmp_path.glob("runs/*/checkpoint.pt")
    dqn.train(quick(*flags, "160", "--resume", str(path)))
    assert len(means) == 12 and all(torch.equal(mean, means[0][0]) for pair in means for mean in pair)


def test_pixels_are_the_rendered_frame():
    """84 x 84 cells of equal size, the mean grey level of each, inverted."""
    env = dqn.observe_rendering(gym.make("CartPole-v1", render_mode="rgb_array"))
    obs, _ = env.reset(seed=3)
    assert obs.shape == (4, 84, 84) and obs.dtype == np.uint8 and not obs[:3].any()
    frame = env.render().astype(float) @ [0.2125, 0.7154, 0.0721]
    overlaps = []
    for size in frame.shape:
        edges, pixel = np.arange(85) * size / 84, np.arange(size)
        overlaps.append(np.minimum(edges[1:, None], pixel + 1) - np.maximum(edges[:-1, None], pixel))
    rows, columns = (np.maximum(x, 0) * 84 / size for x, size in zip(overlaps, frame.shape, strict=True))
    assert abs(obs[3] - (255 - rows @ frame @ columns.T)).max() < 2  # rounded twice
    first = obs[3]
    for _ in range(3):
        obs, *_ = env.step(1)
    assert np.array_equal(obs[0], first) and (obs[1] != obs[3]).any()  # motion is visible
    env.close()


def test_unsupported_environments_are_refused(tmp_path):
    gym.register("OddDiscrete-v0", type("Odd", (probes.ConstantReward,), {"action_space": Discrete(2, start=5)}))
    for env_id in "MultiDiscreteAction-v0 Target-v0 SameStep-v0 OddDiscrete-v0".split():
        with pytest.raises(dqn.RunError, match=f"--env-id {env_id}: needs Discrete actions counted from 0"):
            dqn.train(quick("--env-id", env_id))
    assert not list(tmp_path.iterdir())


# Atari


def shorten_games(monkeypatch, num_frames):
    """End Atari games after num_frames -> a list that collects the options of each gym.make_vec."""
    options, make_vec = [], gym.make_vec

    def shorter(env_id, *args, **kwargs):
        options.append(kwargs)
        limit = {"max_num_frames_per_episode": num_frames} if "ALE/" in env_id else {}
        return make_vec(env_id, *args, **kwargs, **limit)

    monkeypatch.setattr(gym, "make_vec", shorter)
    return options


class TenTimes(gym.vector.VectorWrapper):
    """Ten times every reward, plus ten at each step that is not a reset."""

    done = False

    def step(self, action):
        obs, reward, terminated, truncated, info = self.env.step(action)
        reward = np.where(self.done, 0.0, 10.0 * reward + 10)
        self.done = terminated | truncated
        return obs, reward, terminated, truncated, info


def test_atari(tmp_path, monkeypatch):
    """Rewards are clipped for learning and logged as they are; ALE uses no more threads than torch."""
    options, make_atari = shorten_games(monkeypatch, 120), dqn.make_atari
    monkeypatch.setattr(dqn, "make_atari", lambda *args, **render: TenTimes(make_atari(*args, **render)))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    batches = spied(monkeypatch, "update", lambda *args: [x.numpy().copy() for x in args[3]])
    flags = (
        "--env-id ALE/Pong-v5 --num-envs 2 --total-timesteps 140 --learning-starts 130 --batch-size 8 --capture-video "
        "--train-interval 4 --env-kwargs"
    )
    args = quick(*flags.split(), '{"repeat_action_probability": 0.5}')
    agent, history = dqn.train(args)
    assert isinstance(agent.body[0], torch.nn.Conv2d)
    assert len(batches) == 3 and all((batch[2] == 1).all() for batch in batches)
    assert {value for _, value in history} == {300.0} and len(history) == 4
    assert dqn.evaluate(agent, args, 4) == [300.0] * 4
    (video,) = tmp_path.glob("runs/ALE-Pong-v5__dqn__1__*/video/*.mp4")
    assert video.stat().st_size > 1000
    protocol = {"repeat_action_probability": 0.5, "reward_clipping": False, "use_fire_reset": False}
    assert options[0] == protocol | {"num_threads": 2}
    assert options[2] == protocol | {"num_threads": 3}
    assert options[1]["repeat_action_probability"] == 0.5 and options[1]["render_mode"] == "rgb_array"


@pytest.mark.parametrize("game", ["Pong", "Breakout", "SpaceInvaders"])
def test_a_rendered_game_is_the_same_game(game, monkeypatch):
    """Equal actions give equal observations, rewards and ends; no-ops, which are drawn differently, are off."""
    args, outcomes = quick("--env-id", f"ALE/{game}-v5"), []
    preprocessing = gym.wrappers.AtariPreprocessing
    monkeypatch.setattr(gym.wrappers, "AtariPreprocessing", lambda env: preprocessing(env, noop_max=0))
    for options in ({"noop_max": 0}, {"render_mode": "rgb_array"}):
        envs, rng = dqn.make_envs(args, 2, **options), np.random.default_rng(0)
        assert envs.single_observation_space == box(4, 84, 84)
        outcome = [envs.reset(seed=1)[0].copy()]
        for _ in range(300):
            outcome.extend(np.copy(x) for x in envs.step(rng.integers(envs.single_action_space.n, size=2))[:4])
        outcomes.append(outcome)
        envs.close()
    assert all(np.array_equal(x, y) for x, y in zip(*outcomes, strict=True))
    assert sum(reward.sum() for reward in outcomes[0][2::4]) != 0
    assert not outcomes[0][0][:, :3].any() and outcomes[0][0][:, 3].any()


def test_no_game_starts_by_itself():
    """Breakout serves the ball on FIRE: without it no life is lost, in either form of the environment."""
    for options in ({}, {"render_mode": "rgb_array"}):
        envs = dqn.make_envs(quick("--env-id", "ALE/Breakout-v5"), 1, **options)
        envs.reset(seed=1)
        for _ in range(150):
            obs, *_ = envs.step(np.array([0]))
        assert (obs[0, 0] == obs[0, 3]).all()
        envs.close()


@pytest.mark.parametrize("flag", ["--terminal-on-life-loss", "--no-terminal-on-life-loss"])
def test_a_lost_life_stops_the_bootstrap_but_not_the_game(monkeypatch, flag):
    """Games of 5 steps that terminate alternate with games of 4 that are truncated; lives return in a reset."""
    monkeypatch.setattr(dqn, "make_atari", lambda args, num_envs, **options: probes.Lives())
    batches = spied(monkeypatch, "update", lambda *args: [x.numpy().copy() for x in args[3]])
    flags = "--env-id ALE/Pong-v5 --num-envs 1 --total-timesteps 110 --learning-starts 99 --train-interval 4"
    _, history = dqn.train(quick(*flags.split(), "--network", "nips", "--batch-size", "64", flag))
    assert [value for _, value in history] == [5.0, 4.0] * 10
    assert [step for step, _ in history[:3]] == [5, 10, 16]
    ends = collections.defaultdict(set)
    for obs, _, _, terminated, next_obs in (x for batch in batches for x in zip(*batch, strict=True)):
        game, t = divmod(int(obs[-1, 0, 0]), 10)
        ends[game % 2, t].add(bool(terminated))
        assert next_obs[-1, 0, 0] == obs[-1, 0, 0] + 1
        assert t == 0 or obs[-2, 0, 0] == obs[-1, 0, 0] - 1  # frames are stacked across the lost life
    lost = flag == "--terminal-on-life-loss"
    assert ends == {(g, t): {(t == 1 and lost) or (g, t) == (0, 4)} for g in (0, 1) for t in range(5 - g)}


def test_the_old_names_of_atari_games_are_pointed_out(capsys):
    with pytest.raises(SystemExit, match="2"):
        quick("--env-id", "BreakoutNoFrameskip-v4")
    assert "BreakoutNoFrameskip-v4 is now called ALE/Breakout-v5" in capsys.readouterr().err.splitlines()[-1]


def test_atari_is_a_namespace():
    names = ("ALE/Pong-v5", "ale_py:ALE/Pong-v5", "mine:FEMALE/Game-v0", "Whale/Game-v0")
    assert [dqn.is_atari(SimpleNamespace(env_id=name)) for name in names] == [True, True, False, False]


# Evaluation


class Countdown(probes.Probe):
    """As many steps as the first observation says, in tenths; reward 2 for action 0 and 1 for action 1."""

    def first_obs(self):
        return self.np_random.integers(1, 9) / 10

    def play(self, action):
        remaining = round(self.obs * 10 - 1) / 10
        return remaining, 2 - action, remaining == 0


gym.register("Countdown-v0", entry_point=Countdown, max_episode_steps=6)


def test_evaluation_is_greedy_and_seeded():
    """Returns are those of each environment's first episode, also of one that is truncated."""
    args, returns, lengths = quick("--env-id", "Countdown-v0"), [], set()

    def agent(obs):
        return torch.cat([obs, 1 - obs], -1)

    for i in range(12):
        env, total, done = gym.make("Countdown-v0"), 0, False
        obs, _ = env.reset(seed=dqn.derive_seed(args.seed, 1) + i)
        lengths.add(float(obs[0]))
        while not done:
            obs, reward, terminated, truncated, _ = env.step(int(agent(torch.as_tensor(obs)).argmax()))
            done, total = terminated or truncated, total + reward
        returns.append(total)
    assert dqn.evaluate(agent, args, 12) == returns and len(lengths) > 3


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
        ("EndlessReward", "", {0: [5, 5]}),  # 1 / (1 - γ), although every episode is truncated after a sum of 3.4
        ("EndlessReward", "--double --dueling", {0: [5, 5]}),
    ],
)
def test_probes(env_id, flags, expected):
    """Q approaches its known value."""
    run = (
        "--total-timesteps 1600 --train-interval 8 --target-update-interval 40 --learning-rate 0.01 "
        "--hidden-sizes 32 --gamma 0.8 --epsilon-steps 1000 --epsilon-end 0.3 --loss squared"
    )
    agent, _ = dqn.train(quick("--env-id", f"{env_id}-v0", *run.split(), *flags.split()))
    assert (agent.value is not None) == ("--dueling" in flags)
    for obs, q_values in expected.items():
        assert agent(torch.tensor([[float(obs)]]))[0].tolist() == pytest.approx(q_values, abs=0.05)
