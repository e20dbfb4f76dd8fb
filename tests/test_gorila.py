"""Test gorila.py: equations, what server and bundles say to each other, every branch, probe environments, faults."""

import ast
import contextlib
import copy
import itertools
import math
import multiprocessing
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from multiprocessing.connection import Client
from pathlib import Path
from types import SimpleNamespace

import gorila
import gymnasium as gym
import numpy as np
import probes
import pytest
import torch
from gymnasium.spaces import Box
from torch.nn import functional as F

import dqn

ROOT = Path(__file__).parents[1]
FRAMES = Box(0, 255, (4, 84, 84), np.uint8)
torch.set_num_threads(1)  # as in the script
pytestmark = pytest.mark.usefixtures("handlers")


class Closing(probes.ConstantReward):
    """It says when it has been played for a while, and when it is closed after that."""

    steps = 0

    def play(self, action):
        self.steps += 1
        if self.steps == 40:
            print("played", flush=True)
        if self.steps >= 40:
            time.sleep(0.01)  # leaves the cores to the runs beside this one
        return super().play(action)

    def close(self):
        if self.steps >= 40:
            print("closed", flush=True)


class Hang(Closing):
    """The first to reach its 50th step hangs in it, even on SIGTERM; a file tells the others."""

    def play(self, action):
        result = super().play(action)
        with contextlib.suppress(FileExistsError):
            if self.steps == 50:
                open("hangs", "x").close()
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
                time.sleep(1000)
        return result


gym.register("GorilaHang-v0", Hang)
gym.register("GorilaClosing-v0", Closing)


def quick(*flags):
    """Return the arguments of a very short run; later flags override earlier ones."""
    small = (
        "--total-timesteps 1024 --num-bundles 1 --num-envs 8 --learning-rate 0.001 --buffer-size 1000 "
        "--batch-size 32 --learning-starts 64 --train-interval 16 --eval-episodes 0 --log-interval 256"
    ).split()
    return gorila.parse_args(["--wandb-mode", "disabled", *small, *flags])


def flat(tensors):
    """Return all numbers of some tensors as one vector."""
    return torch.cat([x.detach().flatten() for x in tensors]).clone()


# Equations


def test_functions_copied_from_other_scripts():
    """These are copies, too, although test_twins_are_identical exempts them."""

    def texts(path):
        source = path.read_text()
        nodes = [x for x in ast.parse(source).body if isinstance(x, ast.FunctionDef | ast.ClassDef)]
        return {node.name: ast.get_source_segment(source, node) for node in nodes}

    own = texts(ROOT / "related" / "gorila.py")
    for name in ("evaluate", "td_target"):
        assert own[name] == texts(ROOT / "dqn.py")[name], name


@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        ("nips", [(16, 4, 8, 8), (32, 16, 4, 4), (256, 2592), (6, 256)]),
        ("nature", [(32, 4, 8, 8), (64, 32, 4, 4), (64, 64, 3, 3), (512, 3136), (6, 512)]),
    ],
)
def test_the_convolutions_are_those_of_the_papers(name, shapes):
    network = gorila.QNetwork(FRAMES, 6, name, [64], False)
    assert [tuple(p.shape) for p in network.parameters() if p.ndim > 1] == shapes
    frames = torch.randint(256, (3, 4, 84, 84), dtype=torch.uint8)
    x = frames / 255 - frames.sum((-2, -1), keepdim=True) / (255 * 84 * 84)
    p = list(network.parameters())
    for i, stride in enumerate((4, 2, 1)[: len(shapes) - 2]):
        x = F.relu(F.conv2d(x, p[2 * i], p[2 * i + 1], stride=stride))
    expected = F.relu(x.flatten(1) @ p[-4].T + p[-3]) @ p[-2].T + p[-1]
    torch.testing.assert_close(network(frames), expected, rtol=1e-4, atol=1e-5)


def make_networks(args, optimizer):
    """Return two different networks Q and Q⁻ (two inputs, three actions) and an optimizer of Q."""
    torch.manual_seed(1)
    networks = [dqn.QNetwork(Box(-1, 1, (2,)), 3, "nature", [8], args.dueling) for _ in range(2)]
    return *networks, optimizer(networks[0].parameters(), lr=0.01)


@pytest.mark.parametrize("flags", ["", "--double --loss huber", "--dueling --max-grad-norm 0.1"])
def test_a_bundle_s_gradient_applied_by_the_server_is_an_update_of_dqn(flags):
    """Three updates in a row, of which the second and third must not include earlier gradients."""
    args = quick("--gamma", "0.95", *flags.split())
    q_network, target_network, optimizer = make_networks(args, torch.optim.Adam)
    bundle_network = copy.deepcopy(q_network)
    bundle_weights = gorila.flatten_parameters(bundle_network)
    weights = bundle_weights.clone()
    server_optimizer = torch.optim.Adam([weights], lr=0.01)
    for _ in range(3):
        batch = torch.randn(6, 2), torch.randint(3, (6,)), torch.randn(6), torch.rand(6) < 0.3, torch.randn(6, 2)
        expected = dqn.update(q_network, target_network, optimizer, batch, args)
        bundle_weights.copy_(weights)
        gradient, metrics = gorila.compute_gradient(bundle_network, target_network, batch, args)
        grad_norm = gorila.apply_gradient(weights, server_optimizer, gradient, args)
        assert metrics | {"losses/grad_norm": grad_norm.item()} == pytest.approx(
            {name: value.item() for name, value in expected.items()}, rel=1e-5
        )
        torch.testing.assert_close(weights, flat(q_network.parameters()))
    assert all(p.grad is None for p in target_network.parameters())
    before = weights.clone()
    for bad in (math.nan, math.inf):
        with pytest.raises(gorila.RunError, match=r"the gradient is not finite: .*CartPole-v1"):
            gorila.apply_gradient(weights, server_optimizer, gradient * bad, args)
    assert torch.equal(weights, before)


def test_outliers_are_losses_far_above_the_recent_ones():
    recent = deque([1.0, 2.0, 3.0, 6.0], maxlen=4)  # mean 3, variance (4 + 1 + 0 + 9) / 4
    limit = 3 + 2 * math.sqrt(3.5)
    losses = (limit + 1e-9, limit - 1e-9, 0.0, math.inf, math.nan)
    assert [gorila.is_outlier(loss, recent, 2) for loss in losses] == [True, False, False, True, False]
    assert not gorila.is_outlier(100.0, deque([1.0, 2.0], maxlen=4), 2)  # too few to judge by
    assert not gorila.is_outlier(1.0, deque([1.0, math.nan], maxlen=2), 2)


# A bundle, alone, with a server that a test plays


def act_and_learn(monkeypatch, answer, *flags, bundle=0, start_step=0):
    """Run a bundle with a server that answers with (weights, counts) -> a list of what the bundle sends and computes.

    Each item has gradient, report, batch, weights and target_weights; the last three are None if it learns nothing.
    """
    records, computed, compute_gradient = [], [], gorila.compute_gradient

    def spied(q_network, target_network, batch, args):
        own, target = flat(q_network.parameters()), flat(target_network.parameters())
        gradient, metrics = compute_gradient(q_network, target_network, batch, args)
        computed.append((gradient, [x.clone() for x in batch], own, target))
        return gradient, metrics

    def exchange(gradient, **report):
        last = computed.pop() if computed else (None, None, None, None)
        records.append(SimpleNamespace(sent=gradient, report=report, gradient=last[0], batch=last[1]))
        records[-1].weights, records[-1].target_weights = last[2:]
        return answer(len(records) - 1)

    monkeypatch.setattr(gorila, "compute_gradient", spied)
    with contextlib.suppress(EOFError):
        gorila.act_and_learn(exchange, bundle, start_step, quick(*flags))
    return records


def constant_server(num_weights, num_answers, updates=lambda k: k):
    """Return a server whose k-th weights are all k / 1000, and which ends after num_answers of them."""

    def answer(k):
        if k == num_answers:
            raise EOFError
        return np.full(num_weights, k / 1000, np.float32), {"num_updates": updates(k), "global_step": 16 * k}

    return answer


CARTPOLE_WEIGHTS = 4 * 8 + 8 + 8 * 2 + 2  # with --hidden-sizes 8


def test_a_bundle_sends_the_gradient_at_the_weights_it_has_fetched(monkeypatch):
    """From learning_starts on; Q⁻ is what was fetched when the updates last passed a multiple of the interval."""
    updates = [3 * k + 40 * (k > 4) for k in range(21)]  # other bundles make many at once
    answer = constant_server(CARTPOLE_WEIGHTS, 20, updates=updates.__getitem__)
    records = act_and_learn(monkeypatch, answer, *"--hidden-sizes 8 --target-update-interval 7".split())
    assert records[0].report == {"steps": 0, "episodes": [], "metrics": {}, "outlier": False}
    assert len(records) == 21 and [len(record.sent) for record in records[:4]] == [0] * 4
    for k, record in enumerate(records[1:]):
        assert record.report["steps"] == 16 and not record.report["outlier"] and record.report["version"] == updates[k]
        if k < 3:  # 16, 32, 48 steps of 64
            assert record.gradient is None
            continue
        assert np.array_equal(record.sent, record.gradient) and len(record.sent) == CARTPOLE_WEIGHTS
        assert record.weights.unique().tolist() == pytest.approx([k / 1000])
        copied_at = max(i for i in range(k + 1) if i == 0 or updates[i] // 7 > updates[i - 1] // 7)
        assert record.target_weights.unique().tolist() == pytest.approx([copied_at / 1000])
        assert set(record.report["metrics"]) == {"losses/td_loss", "losses/q_value", "charts/epsilon"}


def test_a_bundle_discards_outliers_and_says_so(monkeypatch):
    losses = iter([*np.tile([1.0, 3.0], 50), 5.1, 4.9, math.nan, 100.0])  # mean 2, standard deviation 1
    monkeypatch.setattr(gorila, "compute_gradient", lambda *_: (np.ones(58), {"losses/td_loss": next(losses)}))
    sent, answer = [], constant_server(CARTPOLE_WEIGHTS, 104)

    def exchange(gradient, **report):
        sent.append((len(gradient), report["outlier"]))
        return answer(len(sent) - 1)

    flags = "--hidden-sizes 8 --learning-starts 0 --outlier-stds 3".split()
    with contextlib.suppress(EOFError):
        gorila.act_and_learn(exchange, 0, 0, quick(*flags))
    assert sent == [(0, False)] + [(58, False)] * 100 + [(0, True), (58, False), (58, False), (58, False)]


def test_batches_are_the_transitions_of_the_environment(monkeypatch):
    """Each sample agrees with the scripted environment, whose episodes of 3 steps terminate, those of 4 do not."""
    flags = "--env-id Scripted-v0 --num-envs 2 --train-interval 4 --hidden-sizes 8".split()
    records = act_and_learn(monkeypatch, constant_server(2 * 8 + 8 + 8 * 2 + 2, 100), *flags)
    seen = set()
    for record in records:
        for obs, _, reward, terminated, next_obs in zip(*(record.batch or [[]] * 5), strict=True):
            episode, t = obs.tolist()
            assert next_obs.tolist() == [episode, t + 1] and reward == 10 * episode + t + 1
            assert terminated == (episode % 2 == 0 and t == 2)
            seen.add((episode % 2, t))
    assert sorted(seen) == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (1, 3)]
    episodes = [episode for record in records for episode in record.report["episodes"]]
    lengths = [(3, 4)[k // 2 % 2] for k in range(len(episodes))]  # two environments
    assert episodes == [[sum(10 * (k // 2) + t for t in range(1, n + 1)), n] for k, n in enumerate(lengths)]
    assert sum(record.report["steps"] for record in records) == 400 and len(episodes) == 88


def test_epsilon_decays_with_the_steps_of_all_bundles(monkeypatch):
    """If Q always prefers action 1, action 0 has probability ε / 2."""
    monkeypatch.setattr(gorila.QNetwork, "forward", lambda self, obs: torch.tensor([[0.0, 1.0]]).expand(len(obs), 2))
    flags = "--env-id ActionReward-v0 --num-envs 400 --buffer-size 800 --train-interval 800 --learning-starts 999999"
    schedule = "--epsilon-steps 160 --epsilon-end 0.2 --hidden-sizes 8"
    answer = constant_server(8 + 8 + 8 * 2 + 2, 16)
    records = act_and_learn(monkeypatch, answer, *flags.split(), *schedule.split())
    for k, record in enumerate(records[1:]):
        epsilon = np.interp(16 * k, [0, 160], [1, 0.2])
        assert record.report["metrics"] == {"charts/epsilon": pytest.approx(epsilon)}
        rewards = [episode_return for episode_return, _ in record.report["episodes"]]  # 1, and -1 for action 0
        assert len(rewards) == 400 and np.mean(rewards) == pytest.approx(1 - epsilon, abs=4 / math.sqrt(400))


def test_each_bundle_and_each_resumed_run_has_its_own_episodes(monkeypatch):
    batches = []
    for bundle, start_step in ((0, 0), (1, 0), (0, 512), (0, 0)):
        answer = constant_server(CARTPOLE_WEIGHTS, 5)
        flags = "--hidden-sizes 8 --learning-starts 0".split()
        batches.append(act_and_learn(monkeypatch, answer, *flags, bundle=bundle, start_step=start_step)[-1].batch)
        monkeypatch.undo()
    assert all(torch.equal(x, y) for x, y in zip(batches[0], batches[3], strict=True))
    for first, second in itertools.combinations(batches[:3], 2):
        starts = {tuple(obs.tolist()) for obs in first[0]} & {tuple(obs.tolist()) for obs in second[0]}
        assert not starts and not torch.equal(first[1], second[1])


def test_lives_count_only_in_atari(monkeypatch):
    flags = "--env-id CountsLives-v0 --hidden-sizes 8 --learning-starts 0".split()
    records = act_and_learn(monkeypatch, constant_server(8 + 8 + 8 * 2 + 2, 20), *flags)
    assert not records[-1].batch[3].any()  # no episode terminates


@pytest.mark.parametrize("lost", [True, False])
def test_a_lost_life_stops_the_bootstrap_but_not_the_game(monkeypatch, lost):
    """A life is lost at step 2 of each game; every second game is truncated, the others terminate after step 5."""
    monkeypatch.setattr(gorila, "make_atari", lambda args, num_envs, **options: probes.Lives())
    flags = "--env-id ALE/Pong-v5 --network nips --num-envs 1 --learning-starts 99 --train-interval 4 --batch-size 64"
    flag = "--terminal-on-life-loss" if lost else "--no-terminal-on-life-loss"
    num_weights = sum(p.numel() for p in gorila.QNetwork(FRAMES, 2, "nips", [], False).parameters())
    records = act_and_learn(monkeypatch, constant_server(num_weights, 30), *flags.split(), flag)
    ends = {}
    for record in records:
        for obs, terminated in zip(record.batch[0], record.batch[3], strict=True) if record.batch else ():
            game, t = divmod(int(obs[-1, 0, 0]), 10)
            ends.setdefault((game % 2, t), set()).add(bool(terminated))
    assert ends == {(g, t): {(t == 1 and lost) or (g, t) == (0, 4)} for g in (0, 1) for t in range(5 - g)}


# The server, alone, with bundles that a test plays


def serve(monkeypatch, messages, *flags):
    """Run a server that receives messages, (bundle, gradient, report) -> agent, history, its answers, its logs."""
    answers, logs = [], []

    def receive_messages(_):
        for bundle, gradient, report in messages:
            full = {"version": 0, "steps": 16, "episodes": [], "metrics": {}, "outlier": False} | report
            # A copy, because Adam works in place; a real connection sends it at once.
            send = lambda answer, bundle=bundle: answers.append((bundle, answer[0].copy(), answer[1]))  # noqa: E731
            yield SimpleNamespace(send=send), np.array(gradient, np.float32), full

    def log(*args):
        logs.append((args[2], list(args[4]), {name: float(value) for name, value in args[5].items()}))

    monkeypatch.setattr(gorila, "receive_messages", receive_messages)
    monkeypatch.setattr(gorila, "start_bundle", lambda *_: None)
    monkeypatch.setattr(gorila, "log_progress", log)
    flags = ["--hidden-sizes", "8", "--num-bundles", "2", *flags]
    return *gorila.train(quick(*flags)), answers, logs


def test_the_server_applies_gradients_in_order_and_drops_those_that_are_stale(monkeypatch):
    """Adam with the annealed step size; a delay equal to the limit is allowed; without a gradient nothing changes."""
    rng, updates = np.random.default_rng(0), 0
    # bundle, updates that the weights of its gradient had seen; None for no gradient
    script = [(0, 0), (1, 0), (0, None), (1, 0), (0, 2), (1, 0), (0, 2), (1, 2)]
    gradients = [rng.normal(size=CARTPOLE_WEIGHTS) if seen is not None else [] for _, seen in script]
    messages = [(bundle, g, {"version": seen}) for (bundle, seen), g in zip(script, gradients, strict=True)]
    flags = "--max-gradient-delay 2 --total-timesteps 128 --log-interval 48"
    flags += " --learning-rate 0.1 --max-grad-norm 1"
    agent, _, answers, logs = serve(monkeypatch, messages, *flags.split())
    torch.manual_seed(1)
    env = gym.make("CartPole-v1")
    weights = gorila.flatten_parameters(dqn.QNetwork(env.observation_space, 2, "nature", [8], False))
    optimizer = torch.optim.Adam([weights])
    for k, ((bundle, seen), gradient) in enumerate(zip(script, gradients, strict=True)):
        if seen is not None and updates - seen <= 2:
            optimizer.param_groups[0]["lr"] = 0.1 * (1 - 16 * k / 128)
            weights.grad = torch.as_tensor(gradient / np.linalg.norm(gradient), dtype=torch.float32)
            optimizer.step()
            updates += 1
        receiver, vector, counts = answers[k]
        expected = {"num_updates": updates, "global_step": 16 * k + 16}
        assert (receiver, counts) == (bundle, expected)
        torch.testing.assert_close(torch.as_tensor(vector), weights)
    assert updates == 5 and len(answers) == 8
    torch.testing.assert_close(flat(agent.parameters()), weights)
    assert [step for step, *_ in logs] == [48, 96, 128]
    delays = [metrics["charts/gradient_delay"] for *_, metrics in logs]
    assert delays == pytest.approx([np.mean([0, 1]), np.mean([2, 1, 4]), np.mean([2, 3])])
    assert [metrics["charts/stale_gradients"] for *_, metrics in logs] == [0, 1, 1]
    assert logs[-1][2]["charts/learning_rate"] == pytest.approx(0.1 / 8)


def test_what_the_server_logs(monkeypatch):
    """Episodes in order of arrival, at the step that includes them; outliers counted since the last log."""
    reports = [{"episodes": [[3.0, 7], [4.5, 8]]}, {"outlier": True}, {"outlier": True, "episodes": [[1.0, 2]]}, {}]
    reports[3]["metrics"] = {"losses/td_loss": 0.25, "charts/epsilon": 0.5}
    messages = [(k % 2, [], report) for k, report in enumerate(reports)]
    _, history, _, logs = serve(monkeypatch, messages, *"--total-timesteps 64 --log-interval 32".split())
    assert history == [(16, 3.0), (16, 4.5), (48, 1.0)]
    assert [(step, lengths) for step, lengths, _ in logs] == [(32, [7, 8]), (64, [7, 8, 2])]
    assert [metrics["charts/outlier_gradients"] for *_, metrics in logs] == [1, 1]
    assert math.isnan(logs[0][2]["charts/gradient_delay"]) and logs[1][2]["losses/td_loss"] == 0.25
    assert {"charts/SPS", "charts/TPS", "charts/epsilon", "charts/learning_rate"} <= set(logs[1][2])


def test_the_step_size_is_constant_without_annealing(monkeypatch):
    messages = [(0, np.ones(CARTPOLE_WEIGHTS), {})] * 4
    flags = "--no-anneal-lr --learning-rate 0.003 --total-timesteps 64 --log-interval 16".split()
    logs = serve(monkeypatch, messages, *flags)[3]
    assert [metrics["charts/learning_rate"] for *_, metrics in logs] == [0.003] * 4


# Messages


def test_messages_arrive_as_they_were_sent(capsys):
    """From pipes and, once their bundles have connected, from other machines; a bundle's end is reported."""
    store, connections = SimpleNamespace(values={}), {}
    store.set = store.values.__setitem__
    thread = threading.Thread(target=lambda: connections.update(gorila.accept(store, 2)))
    thread.start()
    while "port" not in store.values:
        time.sleep(0.01)
    address, key = ("localhost", int(store.values["port"])), store.values["key"]
    socket.create_connection(address).close()
    with socket.create_connection(address) as stranger:
        stranger.sendall(b"GET / HTTP/1.0\r\n\r\n")
        with contextlib.suppress(ConnectionResetError):
            while stranger.recv(1000):  # until it is turned away
                pass
    with pytest.raises(multiprocessing.AuthenticationError):
        Client(address, authkey=b"guessed")
    bundles = []
    for number in (5, 3):
        bundles.append(Client(address, authkey=key))
        bundles[-1].send(number)
    thread.join(60)
    with pytest.raises(ConnectionRefusedError):
        Client(address, authkey=key)  # the port is closed
    here, bundle = multiprocessing.Pipe()
    bundles.append(bundle)
    connections[here] = 0
    messages = gorila.receive_messages(connections)
    report = {"episodes": [[1.5, 3]], "metrics": {"a": -1e-300, "π": 2**60}, "outlier": False}
    vectors = [np.zeros(0, np.float32), np.random.randn(100_000), np.array([math.inf, -0.0, 1e-45])]
    for number, bundle in zip((5, 3, 0), bundles, strict=True):
        for vector in vectors:
            thread = threading.Thread(target=bundle.send, args=((vector, report),))  # it may exceed the pipe's buffer
            thread.start()
            connection, gradient, received = next(messages)
            assert connections[connection] == number and np.array_equal(gradient, vector) and received == report
            thread.join()
            connection.send((vector[:10], {"num_updates": 1}))
            assert np.array_equal(bundle.recv()[0], vector[:10])
    capsys.readouterr()
    bundles[1].close()
    bundles[2].send((vector, report))
    assert next(messages)[0] is here and capsys.readouterr().out == "bundle 3 died, 2 left\n"
    bundles[0].close()
    bundles[2].close()
    with pytest.raises(gorila.RunError, match=r"bundle [05] died, and no other is left"):
        next(messages)


# Runs, with bundles in threads of this process


@pytest.fixture
def in_threads(monkeypatch):
    """Bundles are threads, connected with the server by pipes: what a run learns does not depend on processes."""
    errors = []

    def play(connection, *bundle_args):
        def exchange(gradient, **report):
            connection.send((gradient, report))
            return connection.recv()

        try:
            gorila.act_and_learn(exchange, *bundle_args)
        except (EOFError, OSError):
            pass  # the run has ended
        except Exception as error:
            errors.append(error)
        connection.close()

    def train(args):
        result = gorila.train(args)
        assert not errors
        return result

    def start_bundle(workers, *bundle_args):
        threading.Thread(target=play, args=bundle_args, daemon=True).start()

    monkeypatch.setattr(gorila, "start_bundle", start_bundle)
    return train


@pytest.mark.parametrize("num_bundles", [1, 3])
def test_a_run_plays_as_long_as_it_should(in_threads, num_bundles, tmp_path):
    """CartPole has a reward per step, so that returns count the steps; each bundle may overshoot by one gradient."""
    _, history = in_threads(quick("--num-bundles", str(num_bundles), "--total-timesteps", "3000"))
    (path,) = tmp_path.glob("runs/*/checkpoint.pt")
    step = torch.load(path, weights_only=True)["global_step"]
    assert 3000 <= step < 3016 and len(history) > 80
    played = sum(value for _, value in history)
    assert 0.8 * step < played < step


def test_the_smallest_run(in_threads):
    flags = "--num-envs 1 --batch-size 1 --buffer-size 2 --hidden-sizes 8 --train-interval 1 --learning-starts 0"
    agent, history = in_threads(quick(*flags.split(), "--total-timesteps", "200"))
    assert history and all(p.isfinite().all() for p in agent.parameters())


def test_several_gradients_per_step_of_the_environments(monkeypatch):
    """With a train_interval below num_envs some of them follow each other without a step."""
    flags = "--hidden-sizes 8 --num-envs 8 --train-interval 4 --learning-starts 0".split()
    records = act_and_learn(monkeypatch, constant_server(CARTPOLE_WEIGHTS, 6), *flags)
    assert [record.report["steps"] for record in records] == [0, 8, 0, 8, 0, 8, 0]
    assert all(record.gradient is not None for record in records[1:])


def test_a_resumed_run_continues(in_threads, tmp_path):
    """Weights and Adam's statistics come back; the step size and ε continue."""
    in_threads(quick())
    (path,) = tmp_path.glob("runs/*/checkpoint.pt")
    before = torch.load(path, weights_only=True)
    agent, history = in_threads(gorila.parse_args(["--resume", str(path), "--wandb-mode", "disabled"]))
    assert history == [] and torch.equal(flat(agent.parameters()), flat(before["agent"].values()))
    still = "--total-timesteps 2048 --learning-rate 0 --wandb-mode disabled --resume".split()
    agent, history = in_threads(gorila.parse_args([*still, str(path)]))
    after = torch.load(path, weights_only=True)
    assert history and history[0][0] > 1024 and after["global_step"] == 2048
    assert torch.equal(flat(before["agent"].values()), flat(after["agent"].values()))
    steps = [checkpoint["optimizer"]["state"][0]["step"].item() for checkpoint in (before, after)]
    assert steps == [61, 61 + 61]  # the buffer is filled anew


@pytest.mark.parametrize(
    ("env_id", "flags", "expected"),
    [
        ("ConstantReward", "", {0: [1, 1]}),
        ("ObservationReward", "--dueling", {-1: [-1, -1], 1: [1, 1]}),
        ("DelayedReward", "--loss huber", {0: [0.8, 0.8], 1: [1, 1]}),
        ("DelayedReward", "--double --dueling", {0: [0.8, 0.8], 1: [1, 1]}),
        ("ActionReward", "--double", {0: [-1, 1]}),
        ("ObservationActionReward", "", {-1: [1, -1], 1: [-1, 1]}),
        ("EndlessReward", "", {0: [5, 5]}),  # 1 / (1 - γ), although every episode is truncated after a sum of 3.4
    ],
)
def test_probes(in_threads, env_id, flags, expected):
    """Q approaches its known value, with two bundles."""
    run = (
        "--num-bundles 2 --total-timesteps 1600 --train-interval 8 --target-update-interval 5 --learning-rate 0.01 "
        "--hidden-sizes 32 --gamma 0.8 --epsilon-steps 1000 --epsilon-end 0.3 --loss squared"
    )
    agent, _ = in_threads(quick("--env-id", f"{env_id}-v0", *run.split(), *flags.split()))
    for obs, q_values in expected.items():
        assert agent(torch.tensor([[float(obs)]]))[0].tolist() == pytest.approx(q_values, abs=0.05)


class TenTimes(gym.vector.VectorWrapper):
    """Ten times every reward, plus ten at each step that is not a reset."""

    done = False

    def step(self, action):
        obs, reward, terminated, truncated, info = self.env.step(action)
        reward = np.where(self.done, 0.0, 10.0 * reward + 10)
        self.done = terminated | truncated
        return obs, reward, terminated, truncated, info


def test_atari(in_threads, tmp_path, monkeypatch):
    """Frames through the convolutions; rewards are clipped for learning and logged as they are."""
    make_vec, make_atari, batches = gym.make_vec, gorila.make_atari, []
    compute_gradient = gorila.compute_gradient
    monkeypatch.setattr(gym, "make_vec", lambda *args, **kw: make_vec(*args, **kw, max_num_frames_per_episode=120))
    monkeypatch.setattr(gorila, "make_atari", lambda *args, **render: TenTimes(make_atari(*args, **render)))
    monkeypatch.setattr(gorila, "compute_gradient", lambda *args: batches.append(args[2]) or compute_gradient(*args))
    flags = "--env-id ALE/Pong-v5 --num-envs 2 --total-timesteps 140 --learning-starts 130 --batch-size 8"
    args = quick(*flags.split(), *"--train-interval 4 --capture-video --network nips".split())
    agent, history = in_threads(args)
    assert isinstance(agent.body[0], torch.nn.Conv2d)
    assert 3 <= len(batches) <= 4 and all((batch[2] == 1).all() for batch in batches)
    assert {value for _, value in history} == {300.0} and len(history) == 4
    (video,) = tmp_path.glob("runs/ALE-Pong-v5__gorila__1__*/video/*.mp4")
    assert video.stat().st_size > 1000


def test_the_old_names_of_atari_games_are_pointed_out(capsys):
    with pytest.raises(SystemExit, match="2"):
        quick("--env-id", "BreakoutNoFrameskip-v4")
    assert "BreakoutNoFrameskip-v4 is now called ALE/Breakout-v5" in capsys.readouterr().err.splitlines()[-1]


def test_a_buffer_of_less_than_two_steps_is_refused(capsys):
    with pytest.raises(SystemExit, match="2"):
        quick("--num-envs", "17", "--buffer-size", "33")
    assert "error: argument --buffer-size: " in capsys.readouterr().err


# Faults: the run continues if a bundle dies; after any other fault it ends at once and saves what was learned


def processes():
    """Return the running bundles."""
    return sorted(multiprocessing.active_children(), key=lambda process: process.pid)


def test_a_killed_bundle_does_not_stop_the_others(tmp_path, monkeypatch, forkserver, capsys):
    """One of two is killed after the first log; the other one plays all remaining steps."""
    log_progress, steps = gorila.log_progress, []

    def kill(*args):
        log_progress(*args)
        steps.append(args[2])
        if len(steps) == 1:
            processes()[1].kill()

    monkeypatch.setattr(gorila, "log_progress", kill)
    flags = "--num-bundles 2 --total-timesteps 8000 --log-interval 800".split()
    gorila.train(quick(*flags))
    out = capsys.readouterr().out
    assert out.count("died") == 1 and ("bundle 0 died, 1 left\n" in out or "bundle 1 died, 1 left\n" in out)
    assert len(steps) == 10 and steps[-1] >= 8_000
    (path,) = tmp_path.glob("runs/*/checkpoint.pt")
    assert torch.load(path, weights_only=True)["global_step"] == steps[-1]
    assert multiprocessing.active_children() == []


def strike_with(signum):
    """Return a replacement for log_progress that sends this process a signal, or does nothing if signum is 0."""
    return lambda *_: os.kill(os.getpid(), signum)


def kill_all(*_):
    for process in processes():
        process.kill()


@pytest.mark.parametrize(
    ("env_id", "strike", "error", "message"),
    [
        ("CartPole-v1", kill_all, gorila.RunError, "bundle . died, and no other is left"),
        ("probes:Crash-v0", strike_with(0), gorila.RunError, "bundle . died, and no other is left"),
        ("probes:NotANumber-v0", strike_with(0), gorila.RunError, "the gradient is not finite"),
        ("test_gorila:GorilaHang-v0", strike_with(signal.SIGTERM), SystemExit, "143"),
        ("CartPole-v1", strike_with(signal.SIGTERM), SystemExit, "143"),
        ("CartPole-v1", strike_with(signal.SIGINT), KeyboardInterrupt, None),
    ],
    ids=["all killed", "raises", "NaN", "hangs", "SIGTERM", "Ctrl-C"],
)
def test_faults_that_end_the_run(env_id, strike, error, message, tmp_path, monkeypatch, forkserver):
    """Bundles end before the checkpoint is saved, and it is saved before the W&B run is finished."""
    order, save_checkpoint, start_run = [], gorila.save_checkpoint, gorila.start_run
    monkeypatch.setattr(gorila, "log_progress", strike)

    def spied_start(*args):
        run, folder = start_run(*args)
        monkeypatch.setattr(run, "finish", lambda exit_code: order.append(("finish", exit_code)))
        return run, folder

    def spied_save(*args, **modules):
        order.append(("save", len(multiprocessing.active_children())))
        return save_checkpoint(*args, **modules)

    monkeypatch.setattr(gorila, "start_run", spied_start)
    monkeypatch.setattr(gorila, "save_checkpoint", spied_save)
    flags = f"--env-id {env_id} --num-bundles 2 --total-timesteps 9999999 --num-envs 2 --log-interval 80".split()
    with pytest.raises(error, match=message):
        gorila.train(quick(*flags))
    assert multiprocessing.active_children() == []
    assert order[-2:] == [("save", 0), ("finish", 1)]
    (path,) = tmp_path.glob("runs/*/checkpoint.pt")
    checkpoint = torch.load(path, weights_only=True)
    assert checkpoint["global_step"] >= 80 and flat(checkpoint["agent"].values()).isfinite().all()


def test_a_bundle_that_dies_before_it_connects_is_noticed(monkeypatch, forkserver):
    start = forkserver.Process.start
    monkeypatch.setattr(forkserver.Process, "start", lambda process: (start(process), process.kill()))
    with pytest.raises(gorila.RunError, match="bundle 0 died, and no other is left"):
        gorila.train(quick())


def test_faults_in_the_shell_leave_no_process():
    """Three runs at the same time, each with its own fault; a bundle of a killed server says what has happened."""

    def ctrl_c(process):
        os.killpg(process.pid, signal.SIGINT)

    faults = {  # environment and flags, lines to wait for, fault, exit code, error output
        "Ctrl-C early": ("CartPole-v1 --num-bundles 1", ["gorila"], ctrl_c, 130, ""),
        "Ctrl-C": ("test_gorila:GorilaClosing-v0 --num-bundles 1", ["played"] * 2, ctrl_c, 130, ""),
        "killed": (
            "test_gorila:GorilaHang-v0 --num-bundles 2",  # with two environments each; one bundle hangs
            ["played"] * 4,
            subprocess.Popen.kill,
            -9,
            "bundle [01]: the connection to the parameter server has ended\n",
        ),
    }
    flags = (
        "--total-timesteps 100000000 --log-interval 80 --wandb-mode disabled --num-envs 2 --train-interval 8 "
        "--learning-starts 64 --batch-size 8 --buffer-size 1000 --env-id"
    )
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    # Unbuffered, print writes a line and its newline separately: the lines of two processes would mix.
    options["env"] = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}", "PYTHONUNBUFFERED": ""}
    with contextlib.ExitStack() as stack:
        runs = []
        for fault, (env_id, *_) in faults.items():
            script = [sys.executable, ROOT / "related" / "gorila.py"]
            command = [*script, *flags.split(), *env_id.split(), "--run-dir", fault]
            runs.append(stack.enter_context(subprocess.Popen(command, **options)))
            stack.callback(runs[-1].kill)  # if a check fails while it is still running
        for process, (_, lines, strike, *_) in zip(runs, faults.values(), strict=True):
            for expected in lines:
                next(line for line in process.stdout if line.startswith(expected))
            time.sleep(0.5)  # while the bundles import, play or begin to hang
            strike(process)
        for process, (fault, (*_, code, error)) in zip(runs, faults.items(), strict=True):
            out, err = process.communicate(timeout=180)  # returns when all processes, which hold the pipes, have ended
            assert process.returncode == code and re.fullmatch(error, err), f"{fault}: {err}"
            steps = [torch.load(path, weights_only=True)["global_step"] for path in Path(fault).glob("*/checkpoint.pt")]
            assert steps == [0] if fault == "Ctrl-C early" else min(steps) >= 80
            assert out.count("closed") == (0 if fault == "Ctrl-C early" else 2)  # by the bundle that does not hang


# torchrun


def test_two_machines_are_two_torchrun_commands(tmp_path):
    """Both on this machine, with two bundles each; one of the second's is killed, and the run continues to its end."""
    with socket.create_server(("localhost", 0)) as server:
        port = server.getsockname()[1]
    flags = (
        "--env-id test_gorila:GorilaClosing-v0 --total-timesteps 3000 --num-bundles 2 --num-envs 2 --train-interval 8 "
        "--learning-starts 64 --batch-size 8 --log-interval 1000 --wandb-mode disabled --eval-episodes 2"
    )
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    options["env"] = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}", "PYTHONUNBUFFERED": ""}
    with contextlib.ExitStack() as stack:
        runs = []
        for rank in (0, 1):
            torchrun = (
                f"-m torch.distributed.run --nnodes 2 --node-rank {rank} --master-addr localhost --master-port {port}"
            )
            command = [sys.executable, *torchrun.split(), ROOT / "related" / "gorila.py", *flags.split()]
            runs.append(stack.enter_context(subprocess.Popen(command, **options)))
            stack.callback(os.killpg, runs[-1].pid, signal.SIGKILL)
        for _ in range(4):  # both bundles play, in two environments each
            next(line for line in runs[1].stdout if line.startswith("played"))
        os.kill(bundles_of(runs[1].pid)[0], signal.SIGKILL)
        outs = [process.communicate(timeout=300) for process in runs]
        stack.pop_all()
    assert [process.returncode for process in runs] == [0, 0], outs
    assert re.search(r"^bundle [23] died, 3 left$", outs[0][0], re.MULTILINE) and outs[0][0].count("died") == 1
    assert re.search(r"^waiting for 2 bundles of other machines on port \d+$", outs[0][0], re.MULTILINE)
    assert re.search(r"^bundle [23]: the connection to the parameter server has ended$", outs[1][1], re.MULTILINE)
    assert "evaluation  return" in outs[0][0]
    (path,) = tmp_path.glob("runs/*/checkpoint.pt")
    assert torch.load(path, weights_only=True)["global_step"] >= 3000


def bundles_of(pid):
    """Return the children of the training script that torchrun (process pid) has started."""

    def children(pid):
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    (script,) = children(pid)
    return [child for child in children(script) if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]
