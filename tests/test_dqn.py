"""dqn.py: its equations against independent definitions, its buffer against a naive one, every branch, probes."""

import collections
import math
import re
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box
from torch.nn import functional as F

import dqn


def quick(*flags):
    """Arguments of a run that lasts a blink; later flags win."""
    small = (
        "--total-timesteps 1024 --num-envs 8 --learning-rate 0.001 --buffer-size 1000 --batch-size 32 "
        "--learning-starts 64 --train-interval 16 --eval-episodes 1"
    ).split()
    return dqn.parse_args(["--wandb-mode", "disabled", "--device", "cpu", *small, *flags])


def spied(monkeypatch, name, before=lambda *args: None):
    """Record what `before` makes of the arguments of each call of dqn.NAME, which is called as usual."""
    calls, original = [], getattr(dqn, name)
    monkeypatch.setattr(dqn, name, lambda *args: calls.append(before(*args)) or original(*args))
    return calls


# Schedules


def test_linear_schedule():
    steps = np.arange(0, 300, 7)
    values = [dqn.linear_schedule(0.9, 0.1, 200, step) for step in steps]
    np.testing.assert_allclose(values, np.interp(steps, [0, 200], [0.9, 0.1]), rtol=0, atol=1e-12)


def test_exponential_schedule():
    """The way that is left shrinks by the same factor in each step, which is 1/e in `duration` of them."""
    values = [dqn.exponential_schedule(0.9, 0.1, 200, step) for step in range(1000)]
    rest = 0.8
    for value in values:
        assert value == pytest.approx(0.1 + rest)
        rest *= (1 / math.e) ** (1 / 200)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("", lambda step: np.interp(step, [0, 10_000], [1, 0.2])),
        ("--exponential-epsilon", lambda step: 0.2 + 0.8 * math.exp(-step / 10_000)),
    ],
)
def test_epsilon_anneals_in_a_full_run(monkeypatch, flags, expected):
    """What is logged, and what is played: of a Q that always prefers action 1, action 0 is taken with ε / 2."""
    monkeypatch.setattr(dqn.QNetwork, "forward", lambda self, obs: torch.tensor([[0.0, 1.0]]).expand(len(obs), 2))
    charts = spied(monkeypatch, "log_progress", lambda *args: (args[2], args[4]["charts/epsilon"]))
    flags = f"--env-id ActionReward-v0 --epsilon-steps 10000 --epsilon-end 0.2 --learning-rate 0 {flags}".split()
    run = "--num-envs 8 --total-timesteps 20000 --train-interval 100000 --log-interval 2000".split()
    _, history = dqn.train(quick(*flags, *run))
    assert [step for step, _ in charts] == list(range(2000, 20_001, 2000))
    for step, epsilon in charts:
        assert epsilon == pytest.approx(expected(step - 8))
        rewards = [reward for s, reward in history if step - 2000 < s <= step]  # 1, and -1 for action 0
        epsilons = [expected(s - 8) for s, _ in history if step - 2000 < s <= step]
        assert np.mean(rewards) == pytest.approx(1 - np.mean(epsilons), abs=5 / math.sqrt(len(rewards)))


# Targets and loss


@pytest.fixture
def batch():
    """Rewards, Q⁻(s',·), Q(s',·) and terminated of 64 transitions, some terminal; a truncated one is not."""
    rng = np.random.default_rng(0)
    arrays = rng.normal(size=64), rng.normal(size=(64, 3)), rng.normal(size=(64, 3)), rng.random(64) < 0.3
    return [torch.as_tensor(x) for x in arrays]


def test_td_target(batch):
    reward, next_q, next_online_q, terminated = (x.numpy() for x in batch)
    plain = [r + (0 if end else 0.9 * max(q)) for r, q, end in zip(reward, next_q, terminated, strict=True)]
    np.testing.assert_allclose(dqn.td_target(*batch[:2], None, batch[3], 0.9), plain, rtol=0, atol=1e-12)
    double = plain.copy()
    for i in range(64):
        if not terminated[i]:
            double[i] = reward[i] + 0.9 * next_q[i, list(next_online_q[i]).index(max(next_online_q[i]))]
    target = dqn.td_target(*batch, 0.9)
    np.testing.assert_allclose(target, double, rtol=0, atol=1e-12)
    differs = (next_q.argmax(1) != next_online_q.argmax(1)) & ~terminated
    assert 0 < differs.sum() < 64 and np.array_equal(target.numpy() != np.array(plain), differs)
    assert np.all(target.numpy() <= np.array(plain))  # which is what double DQN is for


@pytest.mark.parametrize("delta", [1.0, 2.5])
def test_loss_is_huber_and_its_gradient_the_clipped_error(delta):
    q_values = torch.randn(50, 3, dtype=torch.float64).mul(2).requires_grad_()
    action, target = torch.randint(3, (50,)), torch.randn(50, dtype=torch.float64).mul(2).requires_grad_()
    loss, metrics = dqn.dqn_loss(lambda obs: q_values, None, action, target.detach(), delta)
    error = np.array([q_values[i, action[i]].item() - target[i].item() for i in range(50)])
    huber = np.where(abs(error) < delta, error**2 / 2, delta * (abs(error) - delta / 2))
    assert (abs(error) > delta).any() and (abs(error) < delta).any()
    assert loss.item() == pytest.approx(huber.mean(), abs=1e-12) == metrics["td_loss"].item()
    assert metrics["q_value"].item() == pytest.approx(np.mean(error + target.detach().numpy()))
    loss.backward()
    expected = np.zeros((50, 3))
    expected[np.arange(50), action] = np.clip(error, -delta, delta) / 50
    np.testing.assert_allclose(q_values.grad, expected, rtol=0, atol=1e-12)


# Networks


def box(*shape):
    """A space of vectors without bounds, or of frames."""
    return Box(0, 255, shape, np.uint8) if len(shape) == 3 else Box(-np.inf, np.inf, shape)


def numpy_q(weights, obs):
    """Q values and, for backpropagation, the hidden layer of each head before its ReLU, in NumPy."""
    out, hidden = {}, {h: obs @ weights[f"{h}.0.weight"].T + weights[f"{h}.0.bias"] for h in heads(weights)}
    for h, z in hidden.items():
        out[h] = np.maximum(z, 0) @ weights[f"{h}.2.weight"].T + weights[f"{h}.2.bias"]
    q_values = out["advantage"]
    if "value" in out:
        q_values = out["value"] + q_values - q_values.mean(1, keepdims=True)
    return q_values, hidden


def heads(weights):
    return sorted({name.split(".")[0] for name in weights})


def arrays(network):
    return {name: p.detach().double().numpy().copy() for name, p in network.state_dict().items()}


@pytest.mark.parametrize("dueling", [False, True])
@pytest.mark.parametrize("double", [False, True])
def test_one_update_is_the_one_written_out_in_numpy(double, dueling):
    """Targets, Huber loss, backpropagation, clipping and Adam; of the batch one is terminal and one truncated."""
    torch.manual_seed(1)
    flags = "--gamma 0.95 --max-grad-norm 0.5 --huber-delta 1.5".split()
    args = quick(*flags, "--double" if double else "--no-double")
    q_network, target_network = (dqn.QNetwork(box(2), 3, [8], dueling) for _ in range(2))
    weights, target_weights = arrays(q_network), arrays(target_network)
    obs, next_obs = torch.randn(2, 5, 2)
    action, reward = torch.tensor([0, 1, 2, 0, 2]), torch.tensor([3.0, -2.0, 0.5, 4.0, 0.1])
    terminated = torch.tensor([False, True, False, False, False])  # the third was cut by the clock: no terminal

    next_q = numpy_q(target_weights, next_obs.double().numpy())[0]
    chosen = numpy_q(weights, next_obs.double().numpy())[0] if double else next_q
    bootstrap = next_q[np.arange(5), chosen.argmax(1)] * [1, 0, 1, 1, 1]
    target = reward.double().numpy() + 0.95 * bootstrap
    x = obs.double().numpy()
    q_values, hidden = numpy_q(weights, x)
    error = q_values[np.arange(5), action] - target
    assert (abs(error) > 1.5).any() and (abs(error) < 1.5).any()
    grad_q = np.zeros((5, 3))
    grad_q[np.arange(5), action] = np.clip(error, -1.5, 1.5) / 5
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

    optimizer = torch.optim.Adam(q_network.parameters(), lr=0.01, fused=True)
    metrics = dqn.update(q_network, target_network, optimizer, obs, action, reward, terminated, next_obs, args)
    assert metrics["grad_norm"].item() == pytest.approx(norm, rel=1e-5)
    for name, p in q_network.state_dict().items():
        g = gradients[name] * 0.5 / norm
        expected = weights[name] - 0.01 * g / (abs(g) + 1e-8)  # Adam's first step: m / √v = g / |g|
        clear = abs(g) > 1e-5  # below that, rounding decides
        np.testing.assert_allclose(p.numpy()[clear], expected[clear], rtol=0, atol=1e-4)
        np.testing.assert_allclose(p.numpy()[g == 0], weights[name][g == 0], rtol=0, atol=1e-7)
    assert all(np.array_equal(w, target_weights[name]) for name, w in arrays(target_network).items())
    assert all(p.grad is None for p in target_network.parameters())


def test_observations_within_narrow_bounds_are_stretched():
    torch.manual_seed(0)
    low, high = np.array([-4, -np.inf, -0.5, 0, 0, -0.1]), np.array([2, np.inf, 0.25, 8, 0, 1])
    bounded = dqn.QNetwork(Box(low.astype(np.float32), high.astype(np.float32)), 2, [32, 16], False)
    free = dqn.QNetwork(box(6), 2, [32, 16], False)
    free.load_state_dict(bounded.state_dict())
    obs = torch.randn(9, 6)
    stretched = obs / torch.tensor([1, 1, 0.5, 1, 1, 1])
    torch.testing.assert_close(bounded(obs), free(stretched), rtol=0, atol=0)
    torch.testing.assert_close(bounded(obs.double()), bounded(obs))


def test_hidden_sizes():
    shapes = [tuple(p.shape) for p in dqn.QNetwork(box(4), 2, [120, 84], False).parameters()]
    assert shapes == [(120, 4), (120,), (84, 120), (84,), (2, 84), (2,)]  # CleanRL's
    shapes = [tuple(p.shape) for p in dqn.QNetwork(box(4), 2, [5, 6, 7], True).parameters()]
    assert shapes[:4] == [(5, 4), (5,), (6, 5), (6,)] and sorted(shapes[4:]) == sorted(
        [(7, 6), (7,), (2, 7), (2,), (7, 6), (7,), (1, 7), (1,)]
    )


def test_dueling_advantages_sum_to_zero():
    torch.manual_seed(0)
    network, obs = dqn.QNetwork(box(4), 3, [16, 16], True), torch.randn(20, 4)
    q_values, value = network(obs), network.value(network.body(obs))
    torch.testing.assert_close((q_values - value).sum(-1), torch.zeros(20), rtol=0, atol=1e-6)
    advantage = network.advantage(network.body(obs))
    torch.testing.assert_close(q_values.diff(dim=-1), advantage.diff(dim=-1), rtol=0, atol=1e-6)


def test_the_convolutions_are_the_paper_s():
    torch.manual_seed(0)
    network = dqn.QNetwork(box(4, 84, 84), 6, [64], False)
    shapes = [tuple(p.shape) for p in network.parameters() if p.ndim > 1]
    assert shapes == [(32, 4, 8, 8), (64, 32, 4, 4), (64, 64, 3, 3), (512, 3136), (6, 512)]
    frames = torch.randint(256, (3, 4, 84, 84), dtype=torch.uint8)
    x, p = frames.float() / 255, list(network.parameters())
    for i, stride in enumerate((4, 2, 1)):
        x = F.relu(F.conv2d(x, p[2 * i], p[2 * i + 1], stride=stride))
    expected = F.relu(x.flatten(1) @ p[6].T + p[7]) @ p[8].T + p[9]
    torch.testing.assert_close(network(frames), expected, rtol=1e-4, atol=1e-5)
    dueling = dqn.QNetwork(box(4, 84, 84), 6, [64], True)
    assert dueling(frames).shape == (3, 6)
    assert [tuple(p.shape) for p in dueling.value.parameters()] == [(512, 3136), (512,), (1, 512), (1,)]


# Replay buffer


def test_a_frame_once_buffer_is_bit_identical_to_a_naive_one():
    check_buffer((4, 3, 2), np.uint8, capacity=99, num_envs=3, num_steps=10_000)


@pytest.mark.parametrize(("capacity", "num_envs"), [(50, 1), (2, 1), (10, 4), (8, 4)])
@pytest.mark.parametrize(("obs_shape", "dtype"), [((3,), np.float32), ((2, 3, 2), np.uint8)])
def test_small_buffers(obs_shape, dtype, capacity, num_envs):
    check_buffer(obs_shape, dtype, capacity, num_envs, 300)


def check_buffer(obs_shape, dtype, capacity, num_envs, num_steps):
    """Random episodes, many of one or two steps: every sample is a naive record, and every record is sampled."""
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
        terminated, truncated = (rng.random((2, num_envs)) < 0.15) & ~done
        for n in range(num_envs):
            record = obs[n], action[n], reward[n], terminated[n], next_obs[n]
            naive[n].append(None if done[n] else record)
        done = terminated | truncated
        buffer.add(action, reward.astype(float), terminated, done, next_obs)
        obs = next_obs
        records = {int(record[2]): record for rows in naive for record in rows if record is not None}
        samples = list(zip(*buffer.sample(5), strict=True))
        if step == num_steps - 1:
            samples += list(zip(*buffer.sample(200 * capacity), strict=True))
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


def test_one_million_atari_transitions_take_7_gb(monkeypatch):
    seen = []
    monkeypatch.setattr(dqn, "free_memory", lambda: seen.append(1) or 1e9)
    with pytest.raises(dqn.RunError, match=r"--buffer-size 1000000: takes 7\.07 GB of memory, of which 1\.00 GB"):
        dqn.ReplayBuffer(1_000_000, 8, (4, 84, 84), np.uint8, None)
    assert seen
    monkeypatch.undo()
    buffer = dqn.ReplayBuffer(1000, 8, (4, 84, 84), np.uint8, None)
    assert buffer.num_bytes == sum(x.nbytes for x in vars(buffer).values() if isinstance(x, np.ndarray))
    with pytest.raises(ValueError, match="--buffer-size 1000000000000: takes"):
        dqn.train(quick("--buffer-size", "1000000000000"))


def test_free_memory(monkeypatch):
    assert 1e7 < dqn.free_memory() < 1e14
    monkeypatch.setattr(dqn.Path, "read_text", lambda self: (_ for _ in ()).throw(FileNotFoundError))
    assert 1e7 < dqn.free_memory() < 1e14
    monkeypatch.delattr(dqn.os, "sysconf")
    assert dqn.free_memory() == math.inf


@pytest.mark.parametrize("file", ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"])
def test_a_container_s_limit(file, monkeypatch):
    for text, expected in (("1000000\n", 1_000_000), ("max\n", 8_192_000), ("9000000\n", 8_192_000)):
        files = {"/proc/meminfo": "MemTotal: 16 kB\nMemAvailable:       8000 kB\n", file: text}
        monkeypatch.setattr(dqn.Path, "exists", lambda self, files=files: str(self) in files)
        monkeypatch.setattr(dqn.Path, "read_text", lambda self, files=files: files[str(self)])
        assert dqn.free_memory() == expected


@pytest.mark.parametrize("env_id", ["ALE/Pong-v5", "ALE/Breakout-v5"])
def test_stacks_are_those_of_atari(env_id):
    """Also across the end of an episode, which is cut after some 20 steps here."""
    args = quick("--env-id", env_id, "--num-envs", "2")
    import ale_py

    gym.register_envs(ale_py)
    envs = gym.make_vec(env_id, num_envs=2, max_num_frames_per_episode=80, reward_clipping=False, num_threads=1)
    check_stacks(envs, args, 120)


def test_stacks_are_those_of_pixels():
    check_stacks(dqn.make_envs(quick("--env-id", "CartPole-v1", "--pixels", "--num-envs", "2")), None, 60)


def check_stacks(envs, args, num_steps):
    """Sampled obs and next obs against those that the environments returned, told apart by the reward."""
    rng = np.random.default_rng(0)
    buffer = dqn.ReplayBuffer(50, 2, (4, 84, 84), np.uint8, rng)
    obs, _ = envs.reset(seed=0)
    buffer.reset(obs)
    done, records, ends = np.zeros(2, bool), {}, 0
    for step in range(num_steps):
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


# What train hands to the update, and when


def test_batches_are_the_environment_s_transitions(monkeypatch):
    """Every sampled transition against the environment's script: true last observations, no resets, nothing else."""
    batches = spied(monkeypatch, "update", lambda *args: [x.numpy().copy() for x in args[3:8]])
    _, history = dqn.train(quick("--env-id", "Scripted-v0", "--num-envs", "2", "--total-timesteps", "400"))
    seen = collections.Counter()
    for batch in batches:
        for obs, _, reward, terminated, next_obs in zip(*batch, strict=True):
            episode, t = obs
            assert tuple(next_obs) == (episode, t + 1) and reward == 10 * episode + t + 1
            assert terminated == (episode % 2 == 0 and t == 2)
            seen[episode % 2, t] += 1
    assert sorted(seen) == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (1, 3)]
    lengths = [(3, 4)[k % 2] for k in range(len(history))]
    by_episode = [sum(10 * k + t for t in range(1, lengths[k] + 1)) for k in range(len(history) // 2)]
    assert [value for _, value in history] == [value for value in by_episode for _ in range(2)]
    assert [step for step, _ in history[:5]] == [6, 6, 16, 16, 24]  # 3 steps, reset, 4 steps, reset, 3 steps; 2 envs


@pytest.mark.parametrize(
    ("num_envs", "train_interval", "gradient_steps", "starts", "expected"),
    [
        (1, 4, 1, 64, 35),
        (1, 4, 3, 65, 102),
        (8, 4, 1, 64, 36),
        (8, 20, 2, 64, 16),
        (4, 10, 1, 0, 20),
        (1, 1, 1, 199, 2),
    ],
)
def test_number_of_updates(monkeypatch, num_envs, train_interval, gradient_steps, starts, expected):
    """gradient_steps for each multiple of train_interval that a step reaches, from learning_starts on, to step 200."""
    calls = spied(monkeypatch, "update")
    flags = f"--num-envs {num_envs} --train-interval {train_interval} --gradient-steps {gradient_steps}".split()
    dqn.train(quick(*flags, "--learning-starts", str(starts), "--total-timesteps", "200"))
    assert len(calls) == expected


@pytest.mark.parametrize(("train_interval", "num_envs"), [(3, 1), (1, 1), (7, 1), (4, 2)])
def test_the_target_network_changes_exactly_at_its_steps(monkeypatch, train_interval, num_envs):
    """Q⁻ in the update of a step is Q after all updates up to the last multiple of 10 before that step."""
    records, update = [], dqn.update

    def flat(network):
        return torch.cat([p.detach().flatten() for p in network.parameters()]).clone()

    def recorded(q_network, target_network, *rest):
        assert all(p.grad is None and not p.requires_grad for p in target_network.parameters())
        before, target = flat(q_network), flat(target_network)
        metrics = update(q_network, target_network, *rest)
        records.append((before, target, flat(q_network)))
        return metrics

    monkeypatch.setattr(dqn, "update", recorded)
    flags = f"--num-envs {num_envs} --train-interval {train_interval} --target-update-interval 10".split()
    dqn.train(quick(*flags, "--learning-starts", "50", "--total-timesteps", "200"))
    steps = [s for s in range(num_envs, 201, num_envs) if s % train_interval == 0 and s >= 50]
    assert len(steps) == len(records)
    q_at = {0: records[0][0]}  # step -> Q after it
    changes = 0
    for step, (before, target, after) in zip(steps, records, strict=True):
        copied = (step - 1) // 10 * 10  # the copy of a step comes after its update
        assert torch.equal(target, q_at[max(s for s in q_at if s <= copied)])
        changes += not torch.equal(target, records[0][1])
        assert not torch.equal(before, after)
        q_at[step] = after
    assert changes > 0


def test_learning_rate_falls_to_zero(monkeypatch):
    for flags, expected in (([], 0.01 * (1 - np.arange(64, 1024, 8) / 1024)), (["--no-anneal-lr"], np.full(120, 0.01))):
        rates = spied(monkeypatch, "update", lambda *args: args[2].param_groups[0]["lr"])
        flags += ["--num-envs", "8", "--train-interval", "8", "--learning-starts", "72"]
        dqn.train(quick("--learning-rate", "0.01", *flags))
        assert rates == pytest.approx(expected)
        monkeypatch.undo()


def test_random_and_greedy_actions(monkeypatch):
    """ε = 0 plays argmax Q alone, ε = 1 never asks the network; the seed draws the actions."""
    monkeypatch.setattr(dqn.QNetwork, "forward", lambda self, obs: pytest.fail("asked"))
    flags = "--env-id ActionReward-v0 --train-interval 100000 --eval-episodes 0 --epsilon-start".split()
    histories = [dqn.train(quick(*flags, "1", "--epsilon-end", "1", "--seed", seed))[1] for seed in "112"]
    assert histories[0] == histories[1] != histories[2]
    monkeypatch.undo()
    monkeypatch.setattr(dqn.QNetwork, "forward", lambda self, obs: torch.tensor([[0.0, 1.0]]).expand(len(obs), 2))
    _, history = dqn.train(quick(*flags, "0", "--epsilon-end", "0"))
    assert {value for _, value in history} == {1.0}


# Branches


@pytest.mark.parametrize(
    "flags",
    [
        "--double --dueling",
        "--exponential-epsilon",
        "--num-envs 1 --batch-size 1 --buffer-size 2 --hidden-sizes 8",
        "--buffer-size 100 --learning-starts 0",
        "--env-id Acrobot-v1 --num-envs 3 --total-timesteps 3000 --eval-episodes 0",
    ],
)
def test_a_short_run(flags):
    agent, history = dqn.train(quick(*flags.split()))
    assert history and all(0 < step <= 3000 for step, _ in history)
    assert all(p.isfinite().all() for p in agent.parameters())


def test_pixels(tmp_path, capsys):
    flags = (
        "--pixels --num-envs 2 --total-timesteps 200 --learning-starts 190 --train-interval 4 --batch-size 4".split()
    )
    agent, history = dqn.train(quick(*flags, "--capture-video"))
    assert history and agent.bound == 255 and "replay buffer  1,000 transitions  0.01 GB" in capsys.readouterr().out
    (video,) = tmp_path.glob("runs/*/videos/*.mp4")
    assert video.stat().st_size > 1000
    (path,) = tmp_path.glob("runs/*/checkpoint.pt")
    with pytest.raises(ValueError, match="pixels True"):
        dqn.train(quick("--resume", str(path)))


def test_pixels_are_the_picture():
    env = dqn.make_eval_env(quick("--pixels"), None)
    obs, _ = env.reset(seed=3)
    picture = env.render()
    assert obs.shape == (4, 84, 84) and obs.dtype == np.uint8 and not obs[:3].any()
    for _ in range(3):
        obs, *_ = env.step(1)
    assert (obs[1] != obs[3]).any()  # it shows motion
    env.close()
    obs, (height, width, _) = dqn.shrink(picture), picture.shape
    for y in range(84):
        for x in range(84):
            part = picture[y * height // 84, x * width // 84 : (x + 1) * width // 84]
            assert obs[y, x] == 255 - int(part.astype(int).sum() / part.size)


class TenTimes(gym.vector.VectorWrapper):
    """Every reward times ten, and one of ten at each step that is not a reset."""

    done = False

    def step(self, action):
        obs, reward, terminated, truncated, info = self.env.step(action)
        reward = np.where(self.done, 0.0, 10.0 * reward + 10)
        self.done = terminated | truncated
        return obs, reward, terminated, truncated, info


def test_atari(tmp_path, monkeypatch):
    """Rewards are clipped for learning and logged as they are; frames of the buffer are the game's."""
    make_atari = dqn.make_atari
    short = SimpleNamespace(repeat_action_probability=0.25, env_id="ALE/Pong-v5")

    def cut(args, num_envs):
        envs = make_atari(short, num_envs)
        games = gym.make_vec("ALE/Pong-v5", num_envs=num_envs, max_num_frames_per_episode=200, num_threads=1)
        assert games.single_observation_space == envs.single_observation_space
        return TenTimes(games)

    monkeypatch.setattr(dqn, "make_atari", cut)
    batches = spied(monkeypatch, "update", lambda *args: [x.numpy().copy() for x in args[3:8]])
    flags = (
        "--env-id ALE/Pong-v5 --num-envs 2 --total-timesteps 240 --learning-starts 230 --batch-size 8 --capture-video"
    )
    agent, history = dqn.train(quick(*flags.split(), "--train-interval", "4"))
    assert agent.bound == 255 and len(batches) == 3 and all((batch[2] == 1).all() for batch in batches)
    assert {value for _, value in history} == {500.0} and len(history) == 4
    (video,) = tmp_path.glob("runs/ALE-Pong-v5__dqn__1__*/videos/*.mp4")
    assert video.stat().st_size > 1000


def test_atari_environments(monkeypatch):
    """Sticky actions, raw rewards, whole games, no more threads than torch has."""
    seen, make_vec = [], gym.make_vec
    monkeypatch.setattr(
        gym, "make_vec", lambda *args, **kwargs: seen.append((args, kwargs)) or make_vec(*args, **kwargs)
    )
    env = dqn.make_eval_env(quick("--env-id", "ALE/Breakout-v5", "--repeat-action-probability", "0.5"), None)
    obs, _ = env.reset(seed=5)
    assert obs.shape == (4, 84, 84) and not obs[:3].any() and obs[3].any()
    picture = env.render()
    assert picture.shape == (84, 84, 3) and all(np.array_equal(picture[..., c], obs[3]) for c in range(3))
    step = env.step(0)
    assert step[0].shape == (4, 84, 84) and not step[2] and not step[3]
    env.close()
    options = {"repeat_action_probability": 0.5, "reward_clipping": False, "num_threads": 1, "num_envs": 1}
    assert seen == [(("ALE/Breakout-v5",), options)]
    with pytest.raises(ValueError, match="--env-id ALE/Pang-v5"):
        dqn.train(quick("--env-id", "ALE/Pang-v5"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_auto_takes_the_gpu_for_images_alone(monkeypatch):
    """With a GPU that is not there, a run on images fails on it, and a run on flat observations does not."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    dqn.train(quick("--device", "auto"))
    with pytest.raises((RuntimeError, AssertionError)):
        dqn.train(quick("--device", "auto", "--pixels"))


def test_a_checkpoint_brings_everything_back(tmp_path):
    agent, _ = dqn.train(quick("--target-update-interval", "1000", "--num-envs", "8"))
    (path,) = tmp_path.glob("runs/*/checkpoint.pt")
    saved = torch.load(path, weights_only=True)
    other, target = (dqn.QNetwork(box(4), 2, quick().hidden_sizes, False) for _ in range(2))
    optimizer, rng = torch.optim.Adam(other.parameters()), np.random.default_rng(7)
    step = dqn.load_checkpoint(quick("--resume", str(path)), other, target, optimizer, rng)
    assert step == (1024, saved["wandb_id"])
    assert all(torch.equal(p, q) for p, q in zip(agent.parameters(), other.parameters(), strict=True))
    assert all(torch.equal(p, saved["target_network"][name]) for name, p in target.state_dict().items())
    assert not all(torch.equal(p, q) for p, q in zip(target.parameters(), other.parameters(), strict=True))
    assert rng.bit_generator.state == saved["numpy_rng"] != np.random.default_rng(1).bit_generator.state
    state, expected = optimizer.state_dict()["state"], saved["optimizer"]["state"]
    assert expected and all(torch.equal(state[i]["exp_avg_sq"], expected[i]["exp_avg_sq"]) for i in expected)


def test_a_resumed_run_goes_on(tmp_path, monkeypatch):
    """Schedules from its step on, learning after learning_starts further steps, other episodes, the same W&B run."""
    flags = "--num-envs 8 --train-interval 8 --log-interval 8 --epsilon-steps 2000 --learning-rate 0.01".split()
    seeds, make_envs = [], dqn.make_envs

    def spy(args):
        envs = make_envs(args)
        reset = envs.reset
        envs.reset = lambda seed: seeds.append(seed) or reset(seed=seed)
        return envs

    monkeypatch.setattr(dqn, "make_envs", spy)
    dqn.train(quick(*flags, "--total-timesteps", "512"))
    (path,) = tmp_path.glob("runs/*/checkpoint.pt")
    updates = spied(monkeypatch, "update", lambda *args: args[2].param_groups[0]["lr"])
    charts = spied(monkeypatch, "log_progress", lambda *args: args[4]["charts/epsilon"])
    dqn.train(quick(*flags, "--resume", str(path)))
    assert charts == pytest.approx(np.interp(np.arange(512, 1024, 8), [0, 2000], [1, quick().epsilon_end]))
    assert updates == pytest.approx(0.01 * (1 - np.arange(512 + 56, 1024, 8) / 1024))
    dqn.train(quick("--seed", "2"))
    assert len(seeds) == 3 and min(np.diff(sorted(seeds))) > 1000  # Gymnasium counts up, one per environment
    ids = [torch.load(p, weights_only=True)["wandb_id"] for p in tmp_path.glob("runs/*/checkpoint.pt")]
    assert ids.count(torch.load(path, weights_only=True)["wandb_id"]) == 2


def test_a_gradient_that_is_not_finite_changes_no_weight():
    network = dqn.QNetwork(box(2), 2, [4], False)
    before = [p.detach().clone() for p in network.parameters()]
    optimizer = torch.optim.Adam(network.parameters())
    obs, action, reward = torch.zeros(3, 2), torch.zeros(3, dtype=torch.int64), torch.full((3,), torch.nan)
    dqn.update(network, network, optimizer, obs, action, reward, action > 0, obs, quick())
    assert all(torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))


def test_episodes_that_are_logged(monkeypatch):
    recent = spied(monkeypatch, "log_progress", lambda *args: list(args[3]))
    _, history = dqn.train(quick("--env-id", "Scripted-v0"))
    assert [value for value, _ in recent[-1]] == [value for _, value in history[-100:]] and len(history) > 100
    assert {length for _, length in recent[-1]} == {3, 4}  # the reset row is no step of an episode


def test_evaluation_is_greedy_and_seeded():
    torch.manual_seed(0)
    agent, args = dqn.QNetwork(box(4), 2, [16], False), quick("--eval-episodes", "3")
    returns = dqn.evaluate(agent, args)
    assert len(returns) == 3 and dqn.evaluate(agent, args) == returns
    env, expected = gym.make("CartPole-v1"), []
    for episode in range(3):
        obs, _ = env.reset(seed=dqn.env_seed(args.seed, 1, episode))
        done, total = False, 0.0
        while not done:
            obs, reward, terminated, truncated, _ = env.step(int(agent(torch.as_tensor(obs[None])).argmax()))
            done, total = terminated or truncated, total + reward
        expected.append(total)
    assert returns == expected


@pytest.mark.parametrize(
    "env_id", ["DictObservation-v0", "ImageObservation-v0", "MultiDiscreteAction-v0", "Target-v0", "FrozenLake-v1"]
)
def test_environments_that_it_cannot_take(env_id, tmp_path):
    with pytest.raises(ValueError, match=f"--env-id {env_id}: takes flat Box observations, .*, Discrete actions"):
        dqn.train(quick("--env-id", env_id))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("env_id", ["NeedsArgument-v0", "SameStep-v0", "BrokenReset-v0"])
def test_environments_that_fail(env_id, tmp_path):
    """Before training starts: an error that names the environment or is its own, and nothing on the disk."""
    with pytest.raises((ValueError, ZeroDivisionError), match=f"--env-id {env_id}|by its reset"):
        dqn.train(quick("--env-id", env_id))
    assert not list(tmp_path.iterdir())


def test_pictures_that_are_not_there():
    with pytest.raises(ValueError, match="--env-id ConstantReward-v0: "):
        dqn.train(quick("--env-id", "ConstantReward-v0", "--pixels"))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--total-timesteps 7 --num-envs 8", "argument --total-timesteps: .*num_envs = 8"),
        ("--total-timesteps 1000 --learning-starts 1000", "argument --learning-starts: must be below .* 1000"),
        ("--batch-size 33 --buffer-size 32", "argument --buffer-size: takes at least batch_size"),
        ("--num-envs 17 --buffer-size 33", "argument --buffer-size: .* two steps of every environment"),
        ("--pixels --env-id ALE/Pong-v5", "argument --pixels: Atari"),
        ("--hidden-sizes 0", "argument --hidden-sizes: takes int from 1"),
        ("--hidden-sizes", "argument --hidden-sizes: expected at least one"),
        ("--capture-video --eval-episodes 0", "argument --capture-video: "),
    ],
)
def test_what_does_not_fit_together(flags, message, capsys):
    with pytest.raises(SystemExit) as stop:
        quick(*flags.split())
    assert stop.value.code == 2
    assert re.search(message, capsys.readouterr().err)


# Probe environments

PROBE = (
    "--num-envs 8 --total-timesteps 6000 --train-interval 8 --target-update-interval 80 --learning-rate 0.003 "
    "--hidden-sizes 32 --gamma 0.9 --epsilon-steps 3000 --epsilon-end 0.2 --eval-episodes 0"
).split()


def learn(env_id, *flags):
    """Train on a probe -> a function that gives Q of an observation."""
    agent, _ = dqn.train(quick(*PROBE, "--env-id", env_id, *flags))
    return lambda obs: agent(torch.tensor([[float(obs)]]))[0].tolist()


VARIANTS = pytest.mark.parametrize("flags", [[], ["--double", "--dueling"]], ids=str)


def test_probe_1_value_of_a_constant_reward():
    assert learn("ConstantReward-v0")(0) == pytest.approx([1, 1], abs=0.05)


def test_probe_2_value_depends_on_the_observation():
    q = learn("ObservationReward-v0")
    assert q(-1) == pytest.approx([-1, -1], abs=0.05) and q(1) == pytest.approx([1, 1], abs=0.05)


@VARIANTS
def test_probe_3_reward_one_step_later(flags):
    q = learn("DelayedReward-v0", *flags)
    assert q(0) == pytest.approx([0.9, 0.9], abs=0.05) and q(1) == pytest.approx([1, 1], abs=0.05)


def test_probe_4_reward_depends_on_the_action():
    assert learn("ActionReward-v0")(0) == pytest.approx([-1, 1], abs=0.05)


@VARIANTS
def test_probe_5_reward_depends_on_observation_and_action(flags):
    q = learn("ObservationActionReward-v0", *flags)
    assert q(-1) == pytest.approx([1, -1], abs=0.1) and q(1) == pytest.approx([-1, 1], abs=0.1)


@VARIANTS
def test_probe_6_a_time_limit_is_no_end(flags):
    """Q = 1 / (1 - γ) = 10, though every episode is cut after 5 steps, whose sum is 4.1."""
    assert learn("EndlessReward-v0", *flags)(0) == pytest.approx([10, 10], rel=0.05)
