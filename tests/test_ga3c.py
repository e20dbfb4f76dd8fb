"""Test related/ga3c.py: its loss and update, its pipes, the policy lag, probe environments, and faults."""

import contextlib
import itertools
import math
import multiprocessing
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import ga3c
import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete
from torch.nn import functional as F

torch.set_num_threads(1)
pytestmark = pytest.mark.usefixtures("handlers")


class Clock(gym.Env):
    """Observes (episode, step); reward: action + 10 step; episodes terminate and are truncated in turn."""

    observation_space, action_space, episode = Box(-np.inf, np.inf, (2,)), Discrete(4), -1

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.episode, self.t = self.episode + 1, 0
        return np.array([self.episode, 0], np.float32), {}

    def step(self, action):
        self.t += 1
        over = self.t == 3 + self.episode % 2
        obs, odd = np.array([self.episode, self.t], np.float32), bool(self.episode % 2)
        return obs, 10.0 * self.t + action, over and not odd, over and odd, {}


gym.register("Clock-v0", Clock)


def quick(*flags):
    """Return the arguments of a very short run; later flags override earlier ones."""
    base = "--wandb-mode disabled --total-timesteps 400 --num-agents 1 --eval-episodes 1"
    return ga3c.parse_args([*base.split(), *" ".join(flags).split()])


class Pipes:
    """One end of a pipe: it keeps what is sent to it and answers requests with a function."""

    def __init__(self, answer=None, limit=math.inf):
        self.answer, self.limit, self.sent = answer, limit, []

    def send(self, message):
        if len(self.sent) == self.limit:
            raise BrokenPipeError
        self.sent.append(message)

    def recv(self):
        return self.answer(self.sent[-1])


# Loss and update


def test_loss_and_its_gradient():
    """Compare with NumPy and finite differences; where π is far below ε the gradient vanishes."""
    rng, epsilon = np.random.default_rng(0), 0.01
    logits, values, returns = rng.normal(size=(5, 3)), rng.normal(size=5), rng.normal(size=5)
    actions = np.array([0, 1, 2, 2, 1])
    logits[3] = [0, 0, -20]

    def loss(logits, values, baseline):
        p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        chosen = np.log(p[np.arange(5), actions] + epsilon)
        entropy = -(p * np.log(p + epsilon)).sum(1)
        return (-chosen * (returns - baseline) + 0.4 * (returns - values) ** 2 - 0.1 * entropy).sum()

    x, v = (torch.tensor(array, requires_grad=True) for array in (logits, values))
    result, metrics = ga3c.ga3c_loss(x, torch.as_tensor(actions), v, torch.as_tensor(returns), 0.4, 0.1, epsilon)
    assert result.item() == pytest.approx(loss(logits, values, values))
    assert metrics["losses/value_loss"].item() == pytest.approx(((returns - values) ** 2).mean())
    explained_variance = 1 - np.var(returns - values) / np.var(returns)
    assert metrics["losses/explained_variance"].item() == pytest.approx(explained_variance)
    terms = metrics["losses/policy_loss"] + 0.4 * metrics["losses/value_loss"] - 0.1 * metrics["losses/entropy"]
    assert 5 * terms.item() == pytest.approx(result.item())
    result.backward()
    for array, gradient in ((logits, x.grad), (values, v.grad)):
        for i in np.ndindex(array.shape):
            shifted = [array.copy(), array.copy()]
            for sign, copy in zip((1, -1), shifted, strict=True):
                copy[i] += sign * 1e-6
            pairs = [(c, values) if array is logits else (logits, c) for c in shifted]
            difference = (loss(*pairs[0], values) - loss(*pairs[1], values)) / 2e-6
            assert gradient[i].item() == pytest.approx(difference, abs=1e-6)
    assert x.grad[3, 2].abs() < 1e-5  # π is 1e-9 there; without ε the gradient would be the advantage


def test_the_logarithm_of_a_probability_that_underflows_is_finite():
    logits, one = torch.tensor([[0.0, -200.0]], requires_grad=True), torch.ones(1)
    loss, _ = ga3c.ga3c_loss(logits, torch.tensor([1]), one, 2 * one, 0.0, 0.0, 1e-6)
    loss.backward()
    assert loss.item() == pytest.approx(-math.log(1e-6)) and logits.grad.abs().max() < 1e-6


def segment(observations, actions, rewards, terminated, versions=(), statistics=None):
    observations = np.array(observations, np.float32)
    return ga3c.Segment(observations, np.array(actions), list(rewards), terminated, list(versions), statistics)


@pytest.mark.parametrize("max_grad_norm", [0.5, 1e6])
def test_an_update_is_one_step_on_the_sum_over_segments(max_grad_norm):
    """Segments of different lengths equal the sum of each written out by hand; a NaN changes no weight."""
    torch.manual_seed(0)
    agent = ga3c.ActorCritic(Box(-1, 1, (2,)), 3)
    optimizer = torch.optim.SGD(agent.parameters(), lr=0.1)
    args = quick(f"--gamma 0.9 --vf-coef 0.4 --ent-coef 0.02 --max-grad-norm {max_grad_norm} --log-epsilon 0.001")
    rng = np.random.default_rng(0)
    segments = [
        segment(rng.normal(size=(n + 1, 2)), rng.integers(3, size=n), rng.normal(size=n) * 3, end)
        for n, end in ((4, False), (1, True), (3, True), (2, False))
    ]
    total = 0
    for part in segments:
        logits, values = agent(torch.as_tensor(part.observations))
        target, returns = 0.0 if part.terminated else values[-1].item(), []
        for reward in reversed(part.rewards):
            target = reward + 0.9 * target
            returns.insert(0, target)
        actions, returns = torch.as_tensor(part.actions), torch.tensor(returns)
        total += ga3c.ga3c_loss(logits[:-1], actions, values[:-1], returns, 0.4, 0.02, 0.001)[0]
    before = [p.detach().clone() for p in agent.parameters()]
    gradients = torch.autograd.grad(total, list(agent.parameters()))
    norm = torch.cat([g.flatten() for g in gradients]).norm().item()
    assert norm > 0.5
    for p in agent.parameters():
        p.grad = torch.full_like(p, 100)  # left over from the previous update
    metrics = ga3c.update(agent, optimizer, segments, args)
    assert metrics["losses/grad_norm"].item() == pytest.approx(norm, rel=1e-4)
    for p, old, g in zip(agent.parameters(), before, gradients, strict=True):
        torch.testing.assert_close(p, old - 0.1 * g * min(1, max_grad_norm / norm), rtol=1e-4, atol=1e-6)
    before = [p.detach().clone() for p in agent.parameters()]
    with pytest.raises(ga3c.RunError, match=r"the gradient is not finite: .*CartPole-v1"):
        ga3c.update(agent, optimizer, [segment([[0, 0], [0, 0]], [0], [math.nan], True)], args)
    assert all(torch.equal(p, old) for p, old in zip(agent.parameters(), before, strict=True))


def test_the_network_for_atari():
    agent = ga3c.ActorCritic(Box(0, 255, (4, 84, 84), np.uint8), 6)
    shapes = [tuple(p.shape) for p in agent.parameters() if p.ndim > 1]
    assert shapes == [(16, 4, 8, 8), (32, 16, 4, 4), (256, 2592), (6, 256), (1, 256)]
    frames = torch.randint(256, (3, 4, 84, 84), dtype=torch.uint8)
    logits, values = agent(frames)
    x = frames / 255 - frames.sum((-2, -1), keepdim=True) / (255 * 84 * 84)
    p = list(agent.parameters())
    for i, stride in enumerate((4, 2)):
        x = F.relu(F.conv2d(x, p[2 * i], p[2 * i + 1], stride=stride))
    x = F.relu(x.flatten(1) @ p[4].T + p[5])
    expected = x @ p[6].T + p[7], (x @ p[8].T + p[9])[:, 0]
    torch.testing.assert_close((logits, values), expected, rtol=1e-4, atol=1e-5)


# What is sent through the pipes


def test_segments_are_what_happened_in_order():
    """Up to num_steps steps of one episode, the version of each action, how the episode ends, its return and length."""
    requests = Pipes(lambda obs: (int(obs[1]) % 2 + 1, 100 * int(obs[0]) + int(obs[1])))
    segments = Pipes(limit=8)
    with pytest.raises(BrokenPipeError):
        ga3c.play(requests, segments, 0, quick("--env-id Clock-v0 --num-steps 2"), 0)
    expected = []
    for episode, length in enumerate([3, 4, 3, 4]):
        total = 0
        for start in range(0, length, 2):
            steps = range(start, min(start + 2, length))
            actions = [t % 2 + 1 for t in steps]
            rewards = [10.0 * (t + 1) + a for t, a in zip(steps, actions, strict=True)]
            total += sum(rewards)
            over = steps[-1] + 1 == length
            observations = [[episode, t] for t in (*steps, steps[-1] + 1)]
            versions = [100 * episode + t for t in steps]
            statistics = (total, length) if over else None
            expected.append((observations, actions, rewards, over and episode % 2 == 0, versions, statistics))
    sent = []
    for part in itertools.starmap(ga3c.Segment, segments.sent):
        assert part.actions.dtype == np.int64
        statistics = part.statistics and (part.statistics["r"], part.statistics["l"])
        sent.append((part.observations.tolist(), part.actions.tolist(), *part[2:5], statistics))
    assert sent == expected
    asked = [[e, t] for e, length in enumerate([3, 4, 3, 4]) for t in range(length)]
    assert [obs.tolist() for obs in requests.sent[: len(asked)]] == asked


def test_atari_s_rewards_are_clipped_for_learning_and_reported_raw(monkeypatch):
    make_env = ga3c.make_env
    monkeypatch.setattr(ga3c, "make_env", lambda args: make_env(quick("--env-id Clock-v0")))
    segments = Pipes(limit=1)
    with pytest.raises(BrokenPipeError):
        ga3c.play(Pipes(lambda obs: (0, 0)), segments, 0, quick("--env-id ALE/Clock-v0 --num-steps 9"), 0)
    part = ga3c.Segment(*segments.sent[0])
    assert part.rewards == [1.0, 1.0, 1.0] and part.statistics["r"] == 10 + 20 + 30


def test_each_agent_gets_the_action_for_its_own_observation():
    """Five agents, two predictors: the logits determine the action, and the version comes with it."""
    shared = SimpleNamespace(num_updates=7, num_predictions=0, lock=threading.Lock(), predictor_lock=threading.Lock())
    pairs, args = [multiprocessing.Pipe() for _ in range(5)], quick("--env-id Clock-v0")

    def agent(obs):
        return torch.nn.functional.one_hot(obs[:, 0].long(), 4) * 1e6, None

    threads = [start(ga3c.predict, [ours for ours, _ in pairs], agent, shared, args) for _ in range(2)]
    for turn in range(40):
        chosen = [(i + turn) % 4 for i in range(5)]
        for (_, theirs), action in zip(pairs, chosen, strict=True):
            theirs.send(np.array([action, turn], np.float32))
        assert [theirs.recv() for _, theirs in pairs] == [(action, 7) for action in chosen]
    assert shared.num_predictions == 200
    for _, theirs in pairs:
        theirs.close()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()


def test_actions_are_drawn_from_the_policy():
    shared = SimpleNamespace(num_updates=0, num_predictions=0, lock=threading.Lock(), predictor_lock=threading.Lock())
    probabilities = torch.tensor([0.1, 0.2, 0.7])
    (ours, theirs), drawn = multiprocessing.Pipe(), []
    torch.manual_seed(0)
    start(ga3c.predict, [ours], lambda obs: (probabilities.log().expand(len(obs), 3), None), shared, quick())
    for _ in range(4000):
        theirs.send(np.zeros(1, np.float32))
        drawn.append(theirs.recv()[0])
    theirs.close()
    np.testing.assert_allclose(np.bincount(drawn) / 4000, probabilities, atol=5 * 0.5 / math.sqrt(4000))  # 5 sigma


def start(function, *args):
    """Run a function in a thread until a pipe is closed."""

    def run():
        with contextlib.suppress(EOFError, OSError):
            function(*args)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


def test_trainers_learn_from_all_pending_segments(monkeypatch):
    """At least min_batch_size segments per update; policy lags, step size, and an end after total_timesteps."""
    calls, args = [], quick("--min-batch-size 3 --total-timesteps 20 --learning-rate 0.1")
    parameters = [torch.nn.Parameter(torch.zeros(1))]
    optimizer, reports = torch.optim.SGD(parameters, 1), Pipes()
    reports.put = reports.send

    def update(agent, optimizer, segments, args):
        calls.append((segments, optimizer.param_groups[0]["lr"]))
        return {}

    monkeypatch.setattr(ga3c, "update", update)
    pipes = [multiprocessing.Pipe(duplex=False) for _ in range(2)]
    for i in range(6):  # segments of 2 steps
        for _, sender in pipes:
            sender.send(tuple(segment([[0], [0], [0]], [0, 1], [1, 1], False, [0, min(i, 1)])))
    for _, sender in pipes:
        sender.close()
    shared = SimpleNamespace(global_step=4, num_updates=1, lock=threading.Lock(), trainer_lock=threading.Lock())
    ga3c.learn([receiver for receiver, _ in pipes], None, optimizer, shared, reports, args)
    assert [len(segments) for segments, _ in calls] == [4, 4] and (shared.global_step, shared.num_updates) == (20, 3)
    assert [lr for _, lr in calls] == pytest.approx([0.1 * 16 / 20, 0.1 * 8 / 20])
    assert [report.global_step for report in reports.sent] == [12, 20]
    assert [report.segments for report in reports.sent] == [segments for segments, _ in calls]
    assert [report.policy_lags.tolist() for report in reports.sent] == [[1, 1, 1, 1, 1, 0, 1, 0], [2, 1] * 4]
    assert [report.metrics for report in reports.sent] == [{"charts/learning_rate": lr} for _, lr in calls]


class Ended:
    """A process that has ended, but whose exit code is known only after it is joined."""

    name, exitcode = "agent 7", None

    def __init__(self):
        self.sentinel, other_end = multiprocessing.Pipe(duplex=False)
        other_end.close()

    def join(self):
        self.exitcode = 3


def test_what_trainers_and_agents_raise_reaches_the_main_thread():
    reports = queue.SimpleQueue()
    report = ga3c.TrainerReport(1, [], np.zeros(0), {})
    for item in (report, ZeroDivisionError("in a thread")):
        reports.put(item)
    assert ga3c.next_report(reports, {}) is report
    with pytest.raises(ZeroDivisionError, match="in a thread"):
        ga3c.next_report(reports, {})
    reports.put(EOFError())
    with pytest.raises(ga3c.RunError, match="agent 7 died, exit code 3"):
        ga3c.next_report(reports, {None: Ended()})


def test_agents_ignore_ctrl_c_from_the_start():
    """Even the first, with which Python's resource tracker starts: hence a new process, which has none yet."""
    code = (
        "import ga3c, pathlib, signal, torch\n"
        "if __name__ == '__main__':\n"
        "    workers = {}\n"
        "    args = ga3c.parse_args([])\n"
        "    ga3c.start_worker(workers, torch.multiprocessing.get_context('spawn'), 0, args, 0)\n"
        "    (process,) = workers.values()\n"
        "    status = pathlib.Path(f'/proc/{process.pid}/status').read_text()\n"
        "    print(int(status.split('SigBlk:')[1].split()[0], 16) >> (signal.SIGINT - 1) & 1)\n"
        "    ga3c.end_workers(workers)\n"
    )
    Path("start.py").write_text(code)
    environment = os.environ | {"PYTHONPATH": str(Path(ga3c.__file__).parent)}
    assert subprocess.run([sys.executable, "start.py"], env=environment, capture_output=True, text=True).stdout == "1\n"


def test_flags_given_with_resume_reach_the_optimizer(tmp_path, monkeypatch, forkserver):
    """They override what the checkpoint restores."""
    groups, update = [], ga3c.update

    def spied(agent, optimizer, *rest):
        groups.append((optimizer.param_groups[0]["alpha"], optimizer.param_groups[0]["eps"]))
        return update(agent, optimizer, *rest)

    monkeypatch.setattr(ga3c, "update", spied)
    ga3c.train(quick("--total-timesteps 100 --rmsprop-decay 0.9"))
    (path,) = tmp_path.glob("runs/*/checkpoint.pt")
    flags = f"--resume {path} --wandb-mode disabled --total-timesteps 200 --rmsprop-eps 0.25"
    ga3c.train(ga3c.parse_args(flags.split()))
    assert groups[0] == (0.9, 0.1) and groups[-1] == (0.9, 0.25)


# Policy lag


def run(*flags):
    """Train with agents forked from a server -> agent, history, the metrics of each log."""
    rows, original = [], ga3c.log_progress
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ga3c, "log_progress", lambda *args: (rows.append(args[-1]), original(*args)))
        agent, history = ga3c.train(quick(*flags))
    return agent, history, rows


def test_no_lag_where_the_agent_waits_for_the_trainer():
    """One agent, predictor and trainer; the agent continues only when the trainer has learned from its last segment."""
    args = quick("--env-id CartPole-v1 --num-steps 3 --total-timesteps 300")
    env = ga3c.make_env(args)
    agent = ga3c.ActorCritic(env.observation_space, 2)
    optimizer, lags, sent = torch.optim.RMSprop(agent.parameters()), [], []
    shared = SimpleNamespace(global_step=0, num_updates=0, num_predictions=0)
    shared.lock, shared.predictor_lock, shared.trainer_lock = (threading.Lock() for _ in range(3))
    (requests, asker), (segments, sender) = multiprocessing.Pipe(), multiprocessing.Pipe(duplex=False)

    def send(message):
        sender.send(message)
        sent.append(message)
        while shared.num_updates < len(sent):
            time.sleep(1e-4)
        if shared.global_step >= args.total_timesteps:
            raise BrokenPipeError

    reports = SimpleNamespace(put=lambda report: lags.extend(report.policy_lags))
    trainer = start(ga3c.learn, [segments], agent, optimizer, shared, reports, args)
    predictor = start(ga3c.predict, [requests], agent, shared, args)
    with pytest.raises(BrokenPipeError):
        ga3c.play(asker, SimpleNamespace(send=send), 0, args, 0)
    for thread, end in ((trainer, sender), (predictor, asker)):
        end.close()
        thread.join(20)
        assert not thread.is_alive()
    assert len(lags) == shared.global_step == shared.num_predictions >= 300 and set(lags) == {0}


def test_lag_with_many_agents(forkserver, monkeypatch):
    """What is logged is the mean over all actions since the last log."""
    reports, original = [], ga3c.next_report
    monkeypatch.setattr(ga3c, "next_report", lambda *args: reports.append(original(*args)) or reports[-1])
    _, history, rows = run("--num-agents 4 --num-steps 4 --total-timesteps 2000 --log-interval 500")
    assert history and len(rows) == 4
    lags = []
    for i in range(4):
        steps_before = [(report.global_step - len(report.policy_lags), report) for report in reports]
        lags.append(np.concatenate([report.policy_lags for step, report in steps_before if step // 500 == i]))
    assert [row["charts/policy_lag"] for row in rows] == [x.mean() for x in lags] and min(map(np.mean, lags)) > 0.5
    assert all(row["charts/PPS"] > row["charts/TPS"] > 0 for row in rows)


# Probe environments


PROBE = "--num-agents 2 --num-steps 8 --learning-rate 0.006 --rmsprop-decay 0.9 --gamma 0.9 --vf-coef 0.5 --env-id"


@pytest.mark.parametrize(
    ("env_id", "steps", "values"),
    [
        ("ConstantReward-v0", 400, {0: 1}),
        ("ObservationReward-v0", 600, {-1: -1, 1: 1}),
        ("DelayedReward-v0", 1000, {0: 0.9, 1: 1}),
        ("EndlessReward-v0", 2000, {0: 10}),  # 1 / (1 - γ), though every episode is truncated after 5 steps, sum 4.1
    ],
)
def test_probes_of_values(env_id, steps, values, forkserver):
    agent, _, _ = run(PROBE, f"probes:{env_id} --total-timesteps {steps}")
    estimates = agent(torch.tensor([[float(obs)] for obs in values]))[1]
    assert estimates.tolist() == pytest.approx(list(values.values()), rel=0.03)


@pytest.mark.parametrize("env_id", ["ActionReward-v0", "ObservationActionReward-v0"])
def test_probes_of_actions(env_id, forkserver):
    agent, _, _ = run(PROBE, f"probes:{env_id} --total-timesteps 1000")
    assert ga3c.evaluate(agent, quick("--env-id", env_id), 20) == [1.0] * 20


# Environments of users


def test_observations_that_are_overwritten_in_place_are_copied():
    segments = Pipes(limit=1)
    with pytest.raises(BrokenPipeError):
        ga3c.play(Pipes(lambda obs: (0, 0)), segments, 0, quick("--env-id InPlace-v0"), 0)
    assert len(np.unique(ga3c.Segment(*segments.sent[0]).observations)) == 2


@pytest.mark.parametrize(("env_id", "size"), [("ByDict-v0", 1), ("Square-v0", 25), ("Mixed-v0", 13)])
def test_observations_are_flat_float32(env_id, size):
    env = ga3c.make_env(quick("--env-id", env_id))
    for obs in (env.reset()[0], env.step(0)[0]):
        assert obs.shape == (size,) and obs.dtype == np.float32
    agent = ga3c.ActorCritic(env.observation_space, 2)
    assert len(ga3c.evaluate(agent, quick("--env-id", env_id), 2)) == 2


def test_environments_that_are_not_supported(tmp_path):
    with pytest.raises(ga3c.RunError, match=r"--env-id Target-v0: needs Discrete actions .*; it has Box"):
        ga3c.train(quick("--env-id Target-v0"))
    with pytest.raises(ga3c.RunError, match=r"--env-id WrongShape-v0: observation of shape \(1, 1\), declared \(1,\)"):
        ga3c.train(quick("--env-id WrongShape-v0"))
    assert not list(tmp_path.iterdir())


def test_the_environment_of_atari():
    env = ga3c.make_env(quick("--env-id ALE/Pong-v5"))
    settings = [env.get_wrapper_attr(name) for name in ("frame_skip", "noop_max", "terminal_on_life_loss")]
    assert settings == [4, 30, False] and env.unwrapped.ale.getFloat("repeat_action_probability") == 0
    obs, _ = env.reset(seed=0)
    assert obs.shape == (4, 84, 84) and obs.dtype == np.uint8


# Faults


def send(signum):
    """Return a replacement for log_progress that sends this process a signal, or does nothing if signum is 0."""
    return lambda *_: os.kill(os.getpid(), signum)


def kill_one(*_):
    multiprocessing.active_children()[0].kill()


@pytest.mark.parametrize(
    ("env_id", "strike", "error", "message"),
    [
        ("test_a3c:Hang-v0", kill_one, ga3c.RunError, "agent . died, exit code -9"),
        ("probes:Crash-v0", send(0), ga3c.RunError, "agent . died, exit code 1"),
        ("probes:NotANumber-v0", send(0), ga3c.RunError, "the gradient is not finite"),
        ("CartPole-v1", send(signal.SIGTERM), SystemExit, "143"),
        ("CartPole-v1", send(signal.SIGINT), KeyboardInterrupt, None),
    ],
    ids=["killed", "raises", "NaN", "SIGTERM", "Ctrl-C"],
)
def test_faults_end_all_agents(env_id, strike, error, message, tmp_path, monkeypatch, forkserver):
    """Soon, even if an agent hangs and ignores SIGTERM; with a checkpoint."""
    monkeypatch.setattr(ga3c, "log_progress", strike)
    before, start = set(threading.enumerate()), time.monotonic()
    with pytest.raises(error, match=message):
        ga3c.train(quick(f"--env-id {env_id} --num-agents 2 --total-timesteps 9999999 --log-interval 80"))
    left = [thread.name for thread in threading.enumerate() if thread not in before]
    assert multiprocessing.active_children() == [] and not [name for name in left if not name.startswith("wandb")]
    assert time.monotonic() - start < 90
    (path,) = tmp_path.glob("runs/*/checkpoint.pt")
    checkpoint = torch.load(path, weights_only=True)
    assert checkpoint["global_step"] >= 80
    assert all(value.isfinite().all() for value in checkpoint["agent"].values())
