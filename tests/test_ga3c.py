"""related/ga3c.py: its loss and update, what crosses the pipes, the policy lag, probe environments, and faults."""

import contextlib
import math
import multiprocessing
import os
import signal
import threading
import time
from types import SimpleNamespace

import ga3c
import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete

torch.set_num_threads(1)
pytestmark = pytest.mark.usefixtures("handlers")


class Clock(gym.Env):
    """Observes (episode, step) and rewards the action plus 10 times the step; ends by task and by time in turns."""

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
    """Arguments of a run that lasts a blink; later flags win."""
    base = "--wandb-mode disabled --total-timesteps 400 --num-agents 1 --eval-episodes 1"
    return ga3c.parse_args([*base.split(), *" ".join(flags).split()])


class Pipes:
    """An end of a pipe that answers requests by a function and keeps what is sent to it."""

    def __init__(self, answer=None, limit=math.inf):
        self.answer, self.limit, self.sent = answer, limit, []

    def send(self, message):
        if len(self.sent) == self.limit:
            raise BrokenPipeError
        self.sent.append(message)

    def recv(self):
        return self.answer(self.sent[-1])


# Loss and update


def test_loss_and_its_gradient_with_the_epsilon_of_the_paper():
    """In NumPy, and by finite differences; where π(a|s) is all but 0 the gradient is bounded by ε."""
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
    assert x.grad[3, 2].abs() < 1e-5  # without ε it would be the advantage


def piece(observations, actions, rewards, terminated, versions=(), episode=None):
    return np.array(observations, np.float32), np.array(actions), list(rewards), terminated, list(versions), episode


@pytest.mark.parametrize("max_grad_norm", [0.5, 1e6])
def test_an_update_is_a_step_on_the_sum_over_pieces(max_grad_norm):
    """Pieces of different lengths, one terminal, against each written out by itself; then NaN changes nothing."""
    torch.manual_seed(0)
    agent = ga3c.ActorCritic(Box(-1, 1, (2,)), 3)
    optimizer = torch.optim.SGD(agent.parameters(), lr=0.1)
    args = quick(f"--gamma 0.9 --vf-coef 0.4 --ent-coef 0.02 --max-grad-norm {max_grad_norm} --log-epsilon 0.001")
    rng = np.random.default_rng(0)
    pieces = [
        piece(rng.normal(size=(n + 1, 2)), rng.integers(3, size=n), rng.normal(size=n) * 3, end)
        for n, end in ((4, False), (1, True), (3, True), (2, False))
    ]
    total = 0
    for observations, actions, rewards, terminated, *_ in pieces:
        logits, values = agent(torch.as_tensor(observations))
        target, returns = 0.0 if terminated else values[-1].item(), []
        for reward in reversed(rewards):
            target = reward + 0.9 * target
            returns.insert(0, target)
        acted = logits[:-1], torch.as_tensor(actions), values[:-1], torch.tensor(returns)
        total += ga3c.ga3c_loss(*acted, 0.4, 0.02, 0.001)[0]
    before = [p.detach().clone() for p in agent.parameters()]
    gradients = torch.autograd.grad(total, list(agent.parameters()))
    norm = torch.cat([g.flatten() for g in gradients]).norm().item()
    assert norm > 0.5
    for p in agent.parameters():
        p.grad = torch.full_like(p, 100)  # of an update before
    metrics = ga3c.update(agent, optimizer, pieces, args)
    assert metrics["losses/grad_norm"].item() == pytest.approx(norm, rel=1e-4)
    for p, old, g in zip(agent.parameters(), before, gradients, strict=True):
        torch.testing.assert_close(p, old - 0.1 * g * min(1, max_grad_norm / norm), rtol=1e-4, atol=1e-6)
    before = [p.detach().clone() for p in agent.parameters()]
    with pytest.raises(ga3c.RunError, match=r"the gradient is not finite: .*CartPole-v1"):
        ga3c.update(agent, optimizer, [piece([[0, 0], [0, 0]], [0], [math.nan], True)], args)
    assert all(torch.equal(p, old) for p, old in zip(agent.parameters(), before, strict=True))


def test_the_network_for_atari():
    agent = ga3c.ActorCritic(Box(0, 255, (4, 84, 84), np.uint8), 6)
    shapes = [tuple(p.shape) for p in agent.parameters() if p.ndim > 1]
    assert shapes == [(16, 4, 8, 8), (32, 16, 4, 4), (256, 2592), (6, 256), (1, 256)]
    frames = torch.randint(256, (3, 4, 84, 84), dtype=torch.uint8)
    logits, values = agent(frames)
    features = agent.body(frames / 255 - frames.sum((-2, -1), keepdim=True) / (255 * 84 * 84))
    torch.testing.assert_close((logits, values), (agent.actor(features), agent.critic(features)[:, 0]))


# What crosses the pipes


def test_pieces_are_what_happened_in_order():
    """Up to num_steps steps of one episode, each action with its version, the end by task or by time, the return."""
    requests = Pipes(lambda obs: (int(obs[1]) % 2 + 1, 100 * int(obs[0]) + int(obs[1])))
    pieces = Pipes(limit=8)
    with pytest.raises(BrokenPipeError):
        ga3c.play(requests, pieces, 0, quick("--env-id Clock-v0 --num-steps 2"), 0)
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
            expected.append(
                (observations, actions, rewards, over and episode % 2 == 0, versions, (total, length) if over else None)
            )
    assert [(o.tolist(), a.tolist(), *rest) for o, a, *rest in pieces.sent] == expected
    asked = [[e, t] for e, length in enumerate([3, 4, 3, 4]) for t in range(length)]
    assert [obs.tolist() for obs in requests.sent[: len(asked)]] == asked


def test_atari_s_rewards_are_clipped_to_learn_from_and_reported_raw(monkeypatch):
    make_env = ga3c.make_env
    monkeypatch.setattr(ga3c, "make_env", lambda args: make_env(quick("--env-id Clock-v0")))
    pieces = Pipes(limit=1)
    with pytest.raises(BrokenPipeError):
        ga3c.play(Pipes(lambda obs: (0, 0)), pieces, 0, quick("--env-id ALE/Clock-v0 --num-steps 9"), 0)
    assert pieces.sent[0][2] == [1.0, 1.0, 1.0] and pieces.sent[0][-1] == (10 + 20 + 30, 3)


def test_each_agent_gets_the_action_for_its_own_observation():
    """Many agents, two predictors: logits that leave no choice, and the version of the weights."""
    counts = SimpleNamespace(updates=7, predictions=0, lock=threading.Lock(), asking=threading.Lock())
    pairs, args = [multiprocessing.Pipe() for _ in range(5)], quick("--env-id Clock-v0")

    def agent(obs):
        return torch.nn.functional.one_hot(obs[:, 0].long(), 4) * 1e6, None

    threads = [start(ga3c.predict, [ours for ours, _ in pairs], agent, counts, args) for _ in range(2)]
    for turn in range(40):
        chosen = [(i + turn) % 4 for i in range(5)]
        for (_, theirs), action in zip(pairs, chosen, strict=True):
            theirs.send(np.array([action, turn], np.float32))
        assert [theirs.recv() for _, theirs in pairs] == [(action, 7) for action in chosen]
    assert counts.predictions == 200
    for _, theirs in pairs:
        theirs.close()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()


def test_actions_are_drawn_from_the_policy():
    counts = SimpleNamespace(updates=0, predictions=0, lock=threading.Lock(), asking=threading.Lock())
    probabilities = torch.tensor([0.1, 0.2, 0.7])
    (ours, theirs), drawn = multiprocessing.Pipe(), []
    torch.manual_seed(0)
    start(ga3c.predict, [ours], lambda obs: (probabilities.log().expand(len(obs), 3), None), counts, quick())
    for _ in range(4000):
        theirs.send(np.zeros(1, np.float32))
        drawn.append(theirs.recv()[0])
    theirs.close()
    np.testing.assert_allclose(np.bincount(drawn) / 4000, probabilities, atol=5 * 0.5 / math.sqrt(4000))  # 5 sigma


def start(function, *args):
    """Run it in a thread, to the end of a pipe."""

    def run():
        with contextlib.suppress(EOFError, OSError):
            function(*args)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


def test_trainers_learn_from_what_waits_and_count(monkeypatch):
    """At least min_batch_size pieces an update; its lags, its learning rate; the last update may exceed the budget."""
    calls, args = [], quick("--min-batch-size 3 --total-timesteps 20 --learning-rate 0.1")
    parameters = [torch.nn.Parameter(torch.zeros(1))]
    optimizer, reports = torch.optim.SGD(parameters, 1), Pipes()
    reports.put = reports.send

    def update(agent, optimizer, pieces, args):
        calls.append((pieces, optimizer.param_groups[0]["lr"]))
        return {}

    monkeypatch.setattr(ga3c, "update", update)
    pipes = [multiprocessing.Pipe(duplex=False) for _ in range(2)]
    for i in range(6):  # of 2 steps each, chosen before the update i and after it
        for _, sender in pipes:
            sender.send(piece([[0], [0], [0]], [0, 1], [1, 1], False, [0, min(i, 1)], (i, 2) if i % 2 else None))
    for _, sender in pipes:
        sender.close()
    counts = SimpleNamespace(global_step=4, updates=1, lock=threading.Lock(), collecting=threading.Lock())
    ga3c.learn([receiver for receiver, _ in pipes], None, optimizer, counts, reports, args)
    assert [len(pieces) for pieces, _ in calls] == [4, 4] and (counts.global_step, counts.updates) == (20, 3)
    assert [lr for _, lr in calls] == pytest.approx([0.1 * 16 / 20, 0.1 * 8 / 20])
    (first, second) = reports.sent
    assert first == (12, [(1, 2), (1, 2)], [1, 1, 1, 1, 1, 0, 1, 0], {})
    assert second == (20, [(3, 2), (3, 2)], [2, 1, 2, 1, 2, 1, 2, 1], {})


# Policy lag


def run(*flags):
    """Train with agents forked from a server -> agent, history, the metrics of each log line."""
    rows, original = [], ga3c.log_progress
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ga3c, "log_progress", lambda *args: (rows.append(args[-1]), original(*args)))
        agent, history = ga3c.train(quick(*flags))
    return agent, history, rows


def test_no_lag_where_the_agent_waits_for_the_trainer():
    """One of each; the agent asks on only when the trainer has learned from its last piece."""
    args = quick("--env-id CartPole-v1 --num-steps 3 --total-timesteps 300")
    env = ga3c.make_env(args)
    agent = ga3c.ActorCritic(env.observation_space, 2)
    optimizer, lags, sent = torch.optim.RMSprop(agent.parameters()), [], []
    counts = SimpleNamespace(global_step=0, updates=0, predictions=0)
    counts.lock, counts.asking, counts.collecting = (threading.Lock() for _ in range(3))
    (requests, asker), (pieces, sender) = multiprocessing.Pipe(), multiprocessing.Pipe(duplex=False)

    def send(message):
        sender.send(message)
        sent.append(message)
        while counts.updates < len(sent):
            time.sleep(1e-4)
        if counts.global_step >= args.total_timesteps:
            raise BrokenPipeError

    reports = SimpleNamespace(put=lambda report: lags.extend(report[2]))
    trainer = start(ga3c.learn, [pieces], agent, optimizer, counts, reports, args)
    predictor = start(ga3c.predict, [requests], agent, counts, args)
    with pytest.raises(BrokenPipeError):
        ga3c.play(asker, SimpleNamespace(send=send), 0, args, 0)
    for thread, end in ((trainer, sender), (predictor, asker)):
        end.close()
        thread.join(20)
        assert not thread.is_alive()
    assert len(lags) == counts.global_step == counts.predictions >= 300 and set(lags) == {0}


def test_lag_with_many_agents(forkserver, monkeypatch):
    """A mean over the transitions since the last log."""
    reports, original = [], ga3c.next_report
    monkeypatch.setattr(ga3c, "next_report", lambda *args: reports.append(original(*args)) or reports[-1])
    _, history, rows = run("--num-agents 4 --num-steps 4 --total-timesteps 2000 --log-interval 500")
    assert history and len(rows) == 4
    lags = [np.concatenate([x for step, _, x, _ in reports if (step - len(x)) // 500 == i]) for i in range(4)]
    assert [row["charts/policy_lag"] for row in rows] == [x.mean() for x in lags] and min(map(np.mean, lags)) > 0.5
    assert all(row["charts/PPS"] > row["charts/TPS"] > 0 for row in rows)


# Probe environments


PROBE = "--num-agents 2 --num-steps 8 --learning-rate 0.003 --rmsprop-decay 0.9 --gamma 0.9 --vf-coef 0.5 --env-id"


@pytest.mark.parametrize(
    ("env_id", "steps", "values"),
    [
        ("ConstantReward-v0", 1000, {0: 1}),
        ("ObservationReward-v0", 1500, {-1: -1, 1: 1}),
        ("DelayedReward-v0", 3000, {0: 0.9, 1: 1}),
        ("EndlessReward-v0", 6000, {0: 10}),  # 1 / (1 - γ), though every episode is cut after 5 steps, of sum 4.1
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


# What can go wrong


def send(signum):
    """A strike: log_progress that sends a signal to this process."""
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
    """In seconds, also where an agent hangs and does not heed SIGTERM; with a checkpoint."""
    monkeypatch.setattr(ga3c, "log_progress", strike)
    before = threading.active_count()
    with pytest.raises(error, match=message):
        ga3c.train(quick(f"--env-id {env_id} --num-agents 2 --total-timesteps 9999999 --log-interval 80"))
    assert multiprocessing.active_children() == [] and threading.active_count() == before
    (path,) = tmp_path.glob("runs/*/checkpoint.pt")
    checkpoint = torch.load(path, weights_only=True)
    assert checkpoint["global_step"] >= 80
    assert all(value.isfinite().all() for value in checkpoint["agent"].values())
