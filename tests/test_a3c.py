"""Test a3c.py: equations against independent definitions, every branch, probe environments, faults of its processes."""

import contextlib
import copy
import itertools
import math
import multiprocessing
import os
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

import a3c

ROOT = Path(__file__).parents[1]
torch.set_num_threads(1)  # as in a worker
pytestmark = pytest.mark.usefixtures("handlers")


class Hang(probes.Probe):
    """Its 50th step never returns, not even after SIGTERM."""

    steps = 0

    def play(self, action):
        self.steps += 1
        if self.steps == 50:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            time.sleep(1000)
        return 0.0, 1, self.t == 10


class Closing(probes.ConstantReward):
    """Prints when it has been played for a while and when it is closed."""

    steps = 0

    def play(self, action):
        self.steps += 1
        if self.steps == 80:
            print("played", flush=True)
        if self.steps >= 80:
            time.sleep(0.01)  # leaves the cores to the runs beside this one
        return super().play(action)

    def close(self):
        print("closed", flush=True)


class Lives(probes.Probe):
    """Episodes of 7 steps; a life is lost in the 3rd and 5th step, and the last one in the 7th."""

    def reset(self, *, seed=None, options=None):
        return super().reset(seed=seed)[0], {"lives": 3}

    def step(self, action):
        obs, _, _, truncated, _ = super().step(action)
        return obs, 1.0, self.t == 7, truncated, {"lives": 3 - (self.t >= 3) - (self.t >= 5) - (self.t >= 7)}

    def play(self, action):
        return self.t / 10, 1, False


gym.register("Hang-v0", Hang)
gym.register("Closing-v0", Closing)
gym.register("Lives-v0", Lives)


def quick(*flags):
    """Return the arguments of a very short run; later flags override earlier ones."""
    base = "--wandb-mode disabled --total-timesteps 400 --num-workers 1 --num-steps 20 --eval-episodes 1"
    return a3c.parse_args([*base.split(), *flags])


def make(args):
    """Return the shared agent and optimizer, made as in train."""
    torch.manual_seed(args.seed)
    env = a3c.make_env(args)
    agent = a3c.ActorCritic(env.observation_space, env.action_space, args.lstm)
    return agent, a3c.SharedRMSprop(agent, args.rmsprop_decay, args.rmsprop_eps)


def work(*flags, rank=0, start_step=0, others=()):
    """Run one worker in this process -> agent, its reports, and each update's arguments and the statistics before it.

    others are the numbers of updates that other workers make during each of its own.
    """
    args, reports, calls, acted, original, sample = quick(*flags), [], [], [], a3c.update, a3c.ActorCritic.sample
    names = "observations lstm_state actions rewards terminated learning_rate".split()

    def update(agent, optimizer, *rest):
        shared.updates.value += sum(others[len(calls) : len(calls) + 1])
        calls.append(dict(zip(names, rest[:-1], strict=True)))
        calls[-1] |= {"statistics": buffers(agent), "rms": agent.return_statistics.rms()}
        assert torch.equal(flat(agent.parameters()), optimizer.weights)  # the worker has copied the shared weights
        with torch.no_grad():  # what acted is what learns: the statistics have not changed, either
            output, _, _ = agent(calls[-1]["observations"], calls[-1]["lstm_state"])
        torch.testing.assert_close(torch.cat(acted), output[:-1], rtol=1e-4, atol=1e-5)
        acted.clear()
        return original(agent, optimizer, *rest)

    def send(report):
        reports.append(report)
        if report.global_step >= shared.next_log.value:  # as the parent does
            shared.next_log.value = min(shared.next_log.value + args.log_interval, args.total_timesteps)

    agent, optimizer = make(args)
    shared = SimpleNamespace(
        global_step=multiprocessing.Value("q", start_step, lock=False),
        updates=multiprocessing.Value("q", 0, lock=False),
        next_log=multiprocessing.Value("q", min(start_step + args.log_interval, args.total_timesteps), lock=False),
        obs_statistics=agent.obs_statistics,
        return_statistics=agent.return_statistics,
        lock=multiprocessing.Lock(),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(a3c, "update", update)
        patch.setattr(a3c.ActorCritic, "sample", lambda agent, output: acted.append(output) or sample(agent, output))
        a3c.worker(send, rank, args, optimizer, shared, start_step)
    assert shared.updates.value == len(calls) + sum(others)
    assert reports[0] == a3c.Report(start_step, {}, [], None)
    return agent, reports[1:], calls


def episodes(reports):
    """Return (global_step, return, length) of each reported episode."""
    return [(report.global_step, report.statistics["r"], report.statistics["l"]) for report in reports if report[-1]]


def flat(tensors):
    """Return all numbers as one vector."""
    return torch.cat([x.detach().flatten() for x in tensors])


def buffers(module):
    """Return copies of a module's statistics, arrays by name."""
    return {name: buffer.numpy().copy() for name, buffer in module.named_buffers()}


def set_statistics(agent):
    """Give an agent for flat observations statistics as training would leave them -> mean, standard deviation."""
    size = len(agent.obs_statistics.mean)
    mean, std = np.linspace(-0.1, 0.2, size), np.geomspace(0.1, 1.0, size)
    agent.obs_statistics.mean.copy_(torch.tensor(mean))
    agent.obs_statistics.var.copy_(torch.tensor(std**2))
    agent.return_statistics.update(np.full(9, 10.0))
    return mean, std


def normalized(observations, mean, std):
    """Return (observations - mean) / std, limited to ±10, a tensor of observations' dtype."""
    numbers = np.minimum(np.maximum((observations.numpy() - mean) / std, -10), 10)
    return torch.as_tensor(numbers, dtype=observations.dtype)


# Statistics


@pytest.mark.parametrize("shape", [(), (3,), (2, 4)])
def test_running_statistics_are_those_of_all_samples(shape):
    """After each of several batches, of one row or more, arrays or tensors; the initial values do not count."""
    statistics, rng = a3c.RunningStatistics(shape), np.random.default_rng(0)
    assert not statistics.mean.any() and (statistics.var == 1).all() and statistics.count == 0
    samples = np.zeros((0, *shape))
    for number, rows in enumerate((1, 1, 5, 2, 300, 1, 64)):
        batch = rng.normal(5 + number, 1 + number, (rows, *shape)).astype(np.float32)  # each from another distribution
        statistics.update(torch.tensor(batch) if number % 2 else batch)
        samples = np.concatenate([samples, batch])
        assert statistics.count == len(samples)
        np.testing.assert_allclose(statistics.mean, samples.mean(0), rtol=1e-5)
        np.testing.assert_allclose(statistics.var, samples.var(0), rtol=1e-5, atol=1e-5)  # 0 for one row, not NaN
        if shape == ():
            assert statistics.rms() == pytest.approx(np.sqrt(np.square(samples).mean()), rel=1e-5)
    names = {"count", "mean", "var"}  # in checkpoints, but not for the optimizer
    assert set(statistics.state_dict()) == names and not list(statistics.parameters())


def test_a_root_mean_square_is_above_0():
    """It is 1 initially; after zeros alone it is small but positive, so rewards can be divided by it."""
    statistics = a3c.RunningStatistics(())
    assert statistics.rms() == 1.0
    statistics.update(np.zeros(9))
    assert 0 < statistics.rms() < 1e-3


# Returns and loss


def test_returns_are_discounted_sums():
    rng = np.random.default_rng(0)
    rewards, last_value = rng.normal(size=7).tolist(), rng.normal()
    expected = [sum(0.9**k * r for k, r in enumerate(rewards[t:])) + 0.9 ** (7 - t) * last_value for t in range(7)]
    np.testing.assert_allclose(a3c.n_step_returns(rewards, last_value, 0.9), expected, rtol=0, atol=1e-12)
    # The fox of the A2C comic: rewards 1, 20, 2, then a state with V = 18; γ = 1.
    assert a3c.n_step_returns([1.0, 20.0, 2.0], 18.0, 1.0) == [41, 40, 20]


def test_loss_and_its_gradient():
    numbers = np.random.default_rng(0).normal(size=(4, 7))
    log_prob, entropy, values, returns = (torch.tensor(x, requires_grad=True) for x in numbers)
    loss, metrics = a3c.a3c_loss(log_prob, entropy, values, returns.detach(), 0.5, 0.01)
    advantages = numbers[3] - numbers[2]
    terms = {"policy_loss": -numbers[0] * advantages, "value_loss": advantages**2, "entropy": numbers[1]}
    assert loss.item() == pytest.approx(np.dot([1, 0.5, -0.01], [term.sum() for term in terms.values()]))
    expected = {f"losses/{name}": term.mean() for name, term in terms.items()}
    expected["losses/explained_variance"] = 1 - np.var(advantages) / np.var(numbers[3])
    assert {name: value.item() for name, value in metrics.items()} == pytest.approx(expected)
    loss.backward()
    np.testing.assert_allclose(log_prob.grad, -advantages)  # better-than-expected actions become more likely
    np.testing.assert_allclose(values.grad, -advantages)  # V moves towards R by 2 vf_coef = 1, only by the value loss
    np.testing.assert_allclose(entropy.grad, [-0.01] * 7)  # descent raises the entropy


# Policy


def check_initial(layer, gain):
    """Check that a layer has orthogonal weights of this gain, and zero biases."""
    singular_values = torch.linalg.svdvals(layer.weight.flatten(1))  # those of an orthogonal matrix are all equal
    torch.testing.assert_close(singular_values, torch.full_like(singular_values, gain))
    assert not layer.bias.any()


def test_discrete_policy():
    torch.manual_seed(0)
    agent = a3c.ActorCritic(Box(-1, 1, (4,)), Discrete(3), False)
    mean, std = set_statistics(agent)
    observations = torch.randn(5, 4)
    observations[0] *= 20
    assert ((observations.numpy() - mean) / std > 10).any(), "the limit must be reached"
    logits, values, lstm_state = agent(observations)
    assert logits.shape == (5, 3) and values.shape == (5,) and lstm_state is None
    outputs = []
    for network, gain in ((agent.actor, 0.01), (agent.critic, 1.0)):  # nothing is shared
        features = normalized(observations, mean, std)
        for layer in (network[0], network[2]):
            features = torch.tanh(features @ layer.weight.T)
        outputs.append(features @ network[4].weight.T)
        for layer, layer_gain in ((network[0], 2**0.5), (network[2], 2**0.5), (network[4], gain)):
            check_initial(layer, layer_gain)
    torch.testing.assert_close(logits, outputs[0])
    torch.testing.assert_close(values, outputs[1][:, 0])
    assert not torch.equal(agent.actor[0].weight, agent.critic[0].weight)
    shapes = [(64, 4), (64, 64), (3, 64), (64, 4), (64, 64), (1, 64)]
    assert [tuple(p.shape) for p in agent.parameters() if p.dim() > 1] == shapes
    logits = torch.tensor([0.0, 1.0, -1.0])
    probabilities = np.exp(logits.numpy()) / np.exp(logits.numpy()).sum()
    frequencies = np.bincount(agent.sample(logits.expand(100_000, 3)), minlength=3) / 100_000
    np.testing.assert_allclose(frequencies, probabilities, atol=5 * 0.5 / math.sqrt(100_000))  # 5 sigma
    log_prob, entropy = agent.log_prob_and_entropy(logits.expand(3, 3), torch.arange(3))
    np.testing.assert_allclose(log_prob, np.log(probabilities), atol=1e-6)
    np.testing.assert_allclose(entropy, -(probabilities * np.log(probabilities)).sum(), atol=1e-6)
    assert agent.greedy(logits) == 1


def test_continuous_policy():
    """Each action dimension has its own standard deviation."""
    torch.manual_seed(0)
    agent, count = a3c.ActorCritic(Box(-1, 1, (4,)), Box(-1, 1, (3,)), False), 100_000
    means, values, _ = agent(torch.randn(5, 4))
    assert means.shape == (5, 3) and values.shape == (5,) and not agent.log_std.any()
    mean, log_std, action = np.array([0.3, -0.2, 4.0]), np.array([-2.0, 0.0, 1.0]), np.array([0.5, 0.5, 0.5])
    agent.log_std = torch.nn.Parameter(torch.tensor(log_std))
    std = np.exp(log_std)
    noise = (agent.sample(torch.tensor(mean).expand(count, 3)).detach().numpy() - mean) / std
    np.testing.assert_allclose(noise.mean(0), 0, atol=5 / math.sqrt(count))  # 5 sigma
    np.testing.assert_allclose(noise.T @ noise / count, np.eye(3), atol=5 * math.sqrt(2 / count))
    log_prob, entropy = agent.log_prob_and_entropy(torch.tensor(mean), torch.tensor(action))
    density = np.exp(-(((action - mean) / std) ** 2) / 2) / (std * math.sqrt(2 * math.pi))
    assert log_prob.item() == pytest.approx(np.log(density).sum(), abs=1e-6)
    assert entropy.item() == pytest.approx((log_std + 0.5 * math.log(2 * math.pi * math.e)).sum(), abs=1e-6)
    assert agent.greedy(torch.tensor(mean)).tolist() == mean.tolist()


def lstm_by_hand(lstm, features, state):
    """Apply an LSTM step by step from its definition: (num_steps, num_features), (h, c) -> outputs, (h, c)."""
    (h, c), outputs = state, []
    for x in features:
        gates = lstm.weight_ih_l0 @ x + lstm.bias_ih_l0 + lstm.weight_hh_l0 @ h + lstm.bias_hh_l0
        i, f, g, o = gates.split(256)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        outputs.append(h)
    return torch.stack(outputs), (h, c)


def test_the_lstm_carries_its_state_from_one_rollout_to_the_next():
    torch.manual_seed(0)
    agent, zeros = a3c.ActorCritic(Box(-1, 1, (4,)), Discrete(2), True), torch.zeros(256)
    for layer, gain in ((agent.body[0], 2**0.5), (agent.actor, 0.01), (agent.critic, 1.0)):
        check_initial(layer, gain)
    mean, std = set_statistics(agent)
    observations = torch.randn(7, 2, 4)  # from two environments
    close = dict(rtol=1e-4, atol=1e-5)
    logits, values, _ = agent(observations)
    for i in range(2):  # environments in parallel do not influence each other
        features = torch.tanh(normalized(observations[:, i], mean, std) @ agent.body[0].weight.T)  # (7, 256)
        outputs, (h, c) = lstm_by_hand(agent.lstm, features, (zeros, zeros))
        torch.testing.assert_close(logits[:, i], agent.actor(outputs), **close)
        torch.testing.assert_close(values[:, i], agent.critic(outputs).squeeze(-1), **close)
        first, _, state = agent(observations[:3, i])
        rest, _, state = agent(observations[3:, i], state)
        torch.testing.assert_close(torch.cat([first, rest]), logits[:, i], **close)
        torch.testing.assert_close(state, (h[None], c[None]), **close)


def test_the_network_for_atari():
    frames = torch.randint(256, (3, 2, 4, 84, 84), dtype=torch.uint8)  # 3 steps of 2 environments
    mean_image = torch.rand(84, 84) * 255
    for lstm in (False, True):
        agent = a3c.ActorCritic(Box(0, 255, (4, 84, 84), np.uint8), Discrete(6), lstm)
        shapes = [tuple(p.shape) for name, p in agent.named_parameters() if name.endswith("weight")]
        assert shapes == [(16, 4, 8, 8), (32, 16, 4, 4), (256, 2592), (6, 256), (1, 256)]
        for layer in (agent.body[0], agent.body[2], agent.body[5]):
            check_initial(layer, 2**0.5)
        check_initial(agent.actor, 0.01)
        check_initial(agent.critic, 1.0)
        agent.obs_statistics.mean.copy_(mean_image)
        agent.obs_statistics.var.fill_(9.0)  # not used
        logits, values, _ = agent(frames)
        assert logits.shape == (3, 2, 6) and values.shape == (3, 2)
        for i in range(2):
            features = frames[:, i] / 255 - (mean_image / 255).expand(3, 4, 84, 84)
            for layer in (agent.body[0], agent.body[2], torch.nn.Flatten(), agent.body[5]):
                features = layer(features).relu()
            features = agent.lstm(features)[0] if lstm else features
            torch.testing.assert_close(logits[:, i], agent.actor(features))
            torch.testing.assert_close(values[:, i], agent.critic(features).squeeze(-1))
            torch.testing.assert_close(agent(frames[:, i])[0], logits[:, i])


# Shared memory, RMSProp, and the hand-over


def paper(theta, g, gradient, learning_rate, decay=0.9, eps=0.01):
    """Apply the paper's RMSProp in float64 -> (θ, g)."""
    g = decay * g + (1 - decay) * gradient.astype(float) ** 2
    return theta - learning_rate * gradient / np.sqrt(g + eps), g


def step_in_a_worker(optimizer, gradient, learning_rate):
    """Apply a gradient with one thread, as workers do: with two, MKL's first square roots may be off by 3e-4."""
    torch.set_num_threads(1)
    optimizer.step(gradient, learning_rate)


def test_rmsprop_is_the_paper_s_from_two_processes(forkserver):
    """This process and others take turns in updating the same weights and statistics."""
    agent, rng = a3c.ActorCritic(Box(-1, 1, (2,)), Discrete(2), False), np.random.default_rng(0)
    optimizer = a3c.SharedRMSprop(agent, 0.9, 0.01)
    assert optimizer.weights.is_shared() and optimizer.mean_square.is_shared()  # before a process is started
    optimizer.weights.mul_(0.1)  # rounding errors of a float32 close to 1 would exceed 1e-7
    theta = optimizer.weights.numpy().astype(float)
    g = np.ones(len(theta))
    for i in range(6):
        gradient, learning_rate = rng.normal(size=len(theta)).astype(np.float32), 1e-3 / (1 + i)
        theta, g = paper(theta, g, gradient, learning_rate)
        if i % 2:
            optimizer.step(torch.as_tensor(gradient), learning_rate)
        else:
            args = optimizer, torch.as_tensor(gradient), learning_rate
            process = forkserver.Process(target=step_in_a_worker, args=args)
            process.start()
            process.join()
        np.testing.assert_allclose(optimizer.weights, theta, rtol=0, atol=1e-7)
        np.testing.assert_allclose(optimizer.mean_square, g, rtol=1e-5, atol=1e-7)
        assert torch.equal(flat(agent.parameters()), optimizer.weights)  # the agent's parameters are views of them


def gradient_by_hand(agent, observations, lstm_state, actions, rewards, terminated, args):
    """Compute ∇L of Alg. S3 step by step in float64, at the agent's weights -> one vector."""
    agent = copy.deepcopy(agent).double()
    mean, std = agent.obs_statistics.mean.numpy(), agent.obs_statistics.var.sqrt().numpy()
    features = agent.body(normalized(observations.double(), mean, std))
    if agent.lstm is not None:
        features, _ = lstm_by_hand(agent.lstm, features, (lstm_state[0][0].double(), lstm_state[1][0].double()))
    loss, total = 0.0, 0.0 if terminated else agent.critic(features[-1]).item()
    for t in reversed(range(len(rewards))):
        total = rewards[t] + args.gamma * total
        output, value = agent.actor(features[t]), agent.critic(features[t])[0]
        if agent.discrete:
            log_probs = output - output.exp().sum().log()
            log_prob, entropy = log_probs[actions[t]], -(log_probs.exp() * log_probs).sum()
        else:
            std = agent.log_std.exp()
            log_prob = (-(((actions[t] - output) / std) ** 2) / 2 - std.log() - math.log(2 * math.pi) / 2).sum()
            entropy = (std.log() + 0.5 * math.log(2 * math.pi * math.e)).sum()
        advantage = total - value.item()
        loss = loss - log_prob * advantage + args.vf_coef * (total - value) ** 2 - args.ent_coef * entropy
    return flat(torch.autograd.grad(loss, list(agent.parameters()))).numpy()


@pytest.mark.parametrize("space", [Discrete(2), Box(-1, 1, (2,))], ids=["discrete", "continuous"])
@pytest.mark.parametrize("lstm", [False, True])
@pytest.mark.parametrize(("terminated", "max_grad_norm"), [(False, 0.5), (True, 0.5), (True, 1e6)])
def test_two_updates_equal_those_written_by_hand(space, lstm, terminated, max_grad_norm):
    """Loss, clipping, RMSProp; the second update applies the second gradient alone, at the weights just copied."""
    torch.manual_seed(1)
    args = quick(*f"--gamma 0.95 --ent-coef 0.02 --vf-coef 0.4 --max-grad-norm {max_grad_norm}".split())
    shared_agent, agent = (a3c.ActorCritic(Box(-1, 1, (2,)), space, lstm) for _ in range(2))
    optimizer, weights = a3c.SharedRMSprop(shared_agent, 0.9, 0.01), a3c.flatten_parameters(agent)
    theta, g = optimizer.weights.numpy().astype(float), np.ones(len(weights))
    set_statistics(agent)
    for _ in range(2):
        weights.copy_(optimizer.weights)
        actions = torch.randint(2, (6,)) if agent.discrete else torch.randn(6, 2)
        lstm_state = (torch.randn(1, 256), torch.randn(1, 256)) if lstm else None
        rollout = torch.randn(7, 2), lstm_state, actions, torch.randn(6).tolist()
        gradient = gradient_by_hand(agent, *rollout, terminated, args)
        norm, before = np.linalg.norm(gradient), theta
        assert norm > 0.5, "the rollout must exercise the clipping"
        theta, g = paper(theta, g, gradient * min(1, max_grad_norm / norm), 0.01)
        metrics = a3c.update(agent, optimizer, *rollout, terminated, 0.01, args)
        assert metrics["losses/grad_norm"].item() == pytest.approx(norm, rel=1e-4)
        np.testing.assert_allclose(optimizer.weights, theta, rtol=0, atol=1e-5)
        np.testing.assert_allclose(optimizer.mean_square, g, rtol=1e-3, atol=1e-6)
        assert np.abs(theta - before).max() > 1e-4
        assert not torch.equal(weights, optimizer.weights)  # only the next copy brings the step to the local agent
    before = [x.clone() for x in (optimizer.weights, optimizer.mean_square)]
    for reward in (math.nan, 1e30):
        with pytest.raises(a3c.RunError, match=r"the gradient is not finite: .*CartPole-v1"):
            a3c.update(agent, optimizer, *rollout[:3], [reward] * 6, terminated, 0.01, args)
    assert torch.equal(optimizer.weights, before[0]) and torch.equal(optimizer.mean_square, before[1])


# What a worker passes to the update, and what it reports


def test_rollouts_are_the_environment_s_transitions():
    """Compare every row with the environment's script; the step budget is met and the LSTM's state is carried over."""
    flags = "--env-id Scripted-v0 --num-steps 2 --total-timesteps 99 --lstm".split()
    _, reports, calls = work(*flags)
    rows = []
    for call in calls:
        obs, next_obs = call["observations"][:-1].tolist(), call["observations"][1:].tolist()
        rewards = [round(reward * call["rms"], 6) for reward in call["rewards"]]  # as the environment gave them
        rows += zip(obs, rewards, next_obs, strict=True)
        (episode, first), (_, t) = obs[0], next_obs[-1]
        assert t - first == 2 or t == 3 + episode % 2 or call is calls[-1]
        assert call["terminated"] == (episode % 2 == 0 and t == 3)
        assert (call["lstm_state"] is None) == (first == 0)  # each episode starts with zeros
        assert first == 0 or not any(x.requires_grad for x in call["lstm_state"])
    assert rows == [([e, t], 10 * e + t + 1, [e, t + 1]) for e in range(29) for t in range(3 + e % 2)][:99]
    lengths = [3 + e % 2 for e in range(28)]
    ends = [(sum(lengths[: e + 1]), 10 * e * n + n * (n + 1) / 2, n) for e, n in enumerate(lengths)]
    assert episodes(reports) == ends
    agent, _ = make(quick(*flags))  # the initial weights, with which the first rollout was played
    torch.testing.assert_close(calls[1]["lstm_state"], agent(calls[0]["observations"][:2])[2])


def test_statistics_are_those_of_all_transitions_so_far():
    """Running returns restart at each episode and continue across rollouts; their rms divides the next rewards."""
    flags = "--env-id Scripted-v0 --num-steps 2 --total-timesteps 99 --gamma 0.9 --learning-rate 0.1".split()
    agent, _, calls = work(*flags)
    rows = [row for row in probes.scripted_rows(150, 0.9) if row]  # a single environment has no reset steps
    starts = np.cumsum([0, *(len(call["rewards"]) for call in calls)])
    last = {"statistics": buffers(agent), "rewards": []}
    for start, call in zip(starts[1:], [*calls[1:], last], strict=True):
        observations, _, returns = (np.array(column) for column in zip(*rows[:start], strict=True))
        samples = {"obs_statistics": observations, "return_statistics": returns}
        moments = {f"{name}.count": start for name in samples}
        moments |= {f"{name}.mean": x.mean(0) for name, x in samples.items()}
        moments |= {f"{name}.var": x.var(0) for name, x in samples.items()}
        assert call["statistics"].keys() == moments.keys()
        for name, value in moments.items():
            np.testing.assert_allclose(call["statistics"][name], value, rtol=1e-5, atol=1e-6, err_msg=name)
        expected = [row[1] / np.sqrt(np.square(returns).mean()) for row in rows[start : start + len(call["rewards"])]]
        assert call["rewards"] == pytest.approx(expected, rel=1e-5)
    assert len(calls) == 57 and calls[0]["rewards"] == [1.0, 2.0]  # not divided
    assert [value.sum() for value in calls[0]["statistics"].values()] == [0, 0, 2, 0, 0, 1]  # mean 0, variance 1


@pytest.mark.parametrize(("start_step", "logs"), [(0, [9, 17, 21]), (14, [21])])
def test_what_a_worker_reports(start_step, logs):
    """It reports the end of each episode, each log interval and the end of training; the step size decays to 0."""
    flags = "--env-id EndlessReward-v0 --num-steps 2 --log-interval 8 --total-timesteps 21 --learning-rate 0.1".split()
    _, reports, calls = work(*flags, start_step=start_step)  # a resumed run continues the schedule
    ends = [(step, 5.0, 5) for step in range(start_step + 5, 22, 5)]
    assert episodes(reports) == ends
    assert {report.global_step for report in reports} == {*logs, *(step for step, *_ in ends)}
    names = {f"losses/{name}" for name in "policy_loss value_loss entropy explained_variance grad_norm".split()}
    assert all(set(report.metrics) == names | {"charts/learning_rate"} for report in reports)
    assert all(type(value) is float for report in reports for value in report.metrics.values())
    steps = np.cumsum([start_step, *(len(call["rewards"]) for call in calls)])
    assert [call["learning_rate"] for call in calls] == pytest.approx(0.1 * (1 - steps[:-1] / 21)) and steps[-1] == 21
    assert reports[-1].metrics["charts/learning_rate"] == calls[-1]["learning_rate"]
    _, _, calls = work(*flags, "--no-anneal-lr")
    assert {call["learning_rate"] for call in calls} == {0.1}


def test_workers_take_turns_in_updating_the_statistics(monkeypatch):
    """Two first updates at the same time would each replace the initial variance, and their sum could be negative."""
    lock, held, update = multiprocessing.Lock(), [], a3c.RunningStatistics.update

    def spied(statistics, samples):
        free = lock.acquire(block=False)
        if free:
            lock.release()
        held.append(not free)
        update(statistics, samples)

    monkeypatch.setattr(multiprocessing, "Lock", lambda: lock)
    monkeypatch.setattr(a3c.RunningStatistics, "update", spied)
    _, _, calls = work("--env-id", "EndlessReward-v0")
    assert held == [True] * 2 * len(calls)


def test_gradient_delay_is_the_number_of_updates_by_others_since_the_copy():
    flags = "--env-id EndlessReward-v0 --num-steps 2 --log-interval 7 --total-timesteps 40".split()
    others = [0, 3, 1, 0, 2, 2, 2, 4, 0, 1, 0, 1, 7]
    _, reports, calls = work(*flags, others=others)
    delays = [delay for report in reports for delay in report.gradient_delays]
    assert delays == others + [0] * (len(calls) - len(others))


def test_the_logged_gradient_delay_is_a_mean_over_all_updates_since_the_last_log(monkeypatch, forkserver):
    rows, reports, receive = [], [], a3c.receive_reports
    monkeypatch.setattr(a3c, "receive_reports", lambda *key: (reports.append(x) or x for x in receive(*key)))
    monkeypatch.setattr(a3c, "log_progress", lambda *args: rows.append((args[2], args[-1], len(reports))))
    a3c.train(quick(*"--num-workers 2 --total-timesteps 2000 --log-interval 500".split()))
    assert [step // 500 for step, *_ in rows] == [1, 2, 3, 4]
    for (*_, first), (_, metrics, last) in itertools.pairwise([(0, {}, 0), *rows]):
        delays = [delay for report in reports[first:last] for delay in report.gradient_delays]
        assert metrics["charts/gradient_delay"] == pytest.approx(np.mean(delays)) and metrics["charts/TPS"] > 0


def test_each_worker_and_each_resumed_run_has_its_own_stream():
    """Episodes and actions differ between ranks, and after a resume."""
    streams = [work("--total-timesteps", "150", rank=r, start_step=s)[2] for r, s in ((0, 0), (1, 0), (0, 50))]
    starts = [tuple(call["observations"][0].tolist()) for calls in streams for call in calls]
    assert len(set(starts)) == len(starts) > 20
    assert len({tuple(calls[0]["actions"].tolist()) for calls in streams}) == 3


def test_a_lost_life_is_terminal_for_the_learner_alone(monkeypatch):
    """The rollout ends there with V = 0; episode, running return and the LSTM's state continue. Only in Atari."""
    flags = "--env-id Lives-v0 --total-timesteps 21 --num-steps 5 --lstm".split()
    assert [(len(call["rewards"]), call["terminated"]) for call in work(*flags)[2]] == [(5, False), (2, True)] * 3
    make_env = a3c.make_env
    monkeypatch.setattr(a3c, "make_env", lambda args: make_env(quick("--env-id", "Lives-v0")))
    flags = "--env-id ALE/Lives-v5 --total-timesteps 21 --num-steps 5 --gamma 0.9 --lstm".split()
    agent, reports, calls = work(*flags)
    returns = [sum(0.9**k for k in range(t + 1)) for t in range(7)]
    assert agent.return_statistics.mean.item() == pytest.approx(np.mean(returns), rel=1e-5)
    assert [len(call["rewards"]) for call in calls] == [3, 2, 2] * 3 and all(call["terminated"] for call in calls)
    assert [call["lstm_state"] is None for call in calls] == [True, False, False] * 3
    assert episodes(reports) == [(7, 7.0, 7), (14, 7.0, 7), (21, 7.0, 7)]
    _, reports, calls = work(*flags, "--no-terminal-on-life-loss")
    assert [(len(call["rewards"]), call["terminated"]) for call in calls] == [(5, False), (2, True)] * 3
    assert len(episodes(reports)) == 3


def test_atari(monkeypatch, tmp_path):
    """Frames are kept as bytes, rewards are clipped for the learner and reported raw, and nothing presses FIRE."""
    flags = "--env-id ALE/Asterix-v5 --total-timesteps 400 --num-steps 50 --learning-rate 0".split()
    agent, reports, calls = work(*flags)
    rewards = [reward for call in calls for reward in call["rewards"]]
    assert set(rewards) == {0.0, 1.0} and len(rewards) == 400
    assert abs(agent.return_statistics.rms() - 1) > 0.1  # by which clipped rewards are not divided
    frames = torch.cat([call["observations"][:-1] for call in calls])
    assert frames.shape == (400, 4, 84, 84) and frames.dtype == torch.uint8
    newest = frames[:, -1].numpy().astype(float)
    np.testing.assert_allclose(agent.obs_statistics.mean, newest.mean(0), rtol=1e-4, atol=1e-3)  # the mean image
    assert agent.obs_statistics.count == 400 and np.ptp(newest.mean(0)) > 50
    (step, episode_return, length), *_ = episodes(reports)
    assert (episode_return, length) == (50 * sum(rewards[:step]), step) and episode_return >= 100
    steps, ends = np.cumsum([len(call["rewards"]) for call in calls]), [step for step, *_ in episodes(reports)]
    assert sum(call["terminated"] for call in calls) > len(ends) > 0  # lives are lost, too
    for count, call, following in zip(steps[:-1], calls[:-1], calls[1:], strict=True):
        last, first = call["observations"][-1], following["observations"][0]
        assert torch.equal(last, first) == (count not in ends)  # only the end of the game resets it
        assert count not in ends or not first[:-1].any()  # a stack starts with black frames
    env = a3c.make_env(quick(*flags))
    settings = [env.get_wrapper_attr(name) for name in ("frame_skip", "noop_max", "terminal_on_life_loss")]
    assert settings == [4, 30, False] and env.unwrapped.ale.getFloat("repeat_action_probability") == 0
    args = quick(*flags, "--env-kwargs", '{"repeat_action_probability": 0.25}')
    assert a3c.make_env(args).unwrapped.ale.getFloat("repeat_action_probability") == 0.25
    monkeypatch.setattr(a3c, "range", lambda n: range(n // 5000), raising=False)  # instead of 100,000 steps
    returns = a3c.evaluate(make(args)[0], args, 2, video_folder=tmp_path / "video")
    assert [value % 50 for value in returns] == [0, 0] and len(list(tmp_path.glob("video/*.mp4"))) == 1


def test_which_ids_are_atari(capsys):
    assert all(a3c.is_atari(quick("--env-id", env_id)) for env_id in ("ALE/Pong-v5", "ale_py:ALE/Pong-v5"))
    assert not any(a3c.is_atari(quick("--env-id", env_id)) for env_id in ("SCALE/Pong-v5", "ALE:Pong-v5"))
    with pytest.raises(SystemExit, match="2"):
        quick("--env-id", "PongNoFrameskip-v4")
    assert capsys.readouterr().err.splitlines()[-1].endswith("PongNoFrameskip-v4 is now called ALE/Pong-v5")


# Environments of users


def test_observations_that_are_overwritten_in_place_are_learned():
    flags = "--env-id InPlace-v0 --learning-rate 0.01 --total-timesteps 4000".split()
    agent, _, calls = work(*flags)
    assert len(calls[0]["observations"].unique(dim=0)) == 2  # copies, not one array many times
    assert a3c.evaluate(agent, quick(*flags), 20) == [20.0] * 20


@pytest.mark.parametrize(
    ("env_id", "size"), [("ByDict-v0", 1), ("Square-v0", 25), ("Mixed-v0", 13), ("FrozenLake-v1", 16)]
)
def test_actions_are_ints_and_observations_are_flat_float32(env_id, size):
    agent, _, calls = work("--env-id", env_id)
    assert all(call["observations"].dtype == torch.float32 for call in calls)
    assert all(call["observations"].shape[1:] == (size,) for call in calls)
    assert len(a3c.evaluate(agent, quick("--env-id", env_id), 2)) == 2


def test_an_observation_of_the_wrong_shape_is_an_error():
    with pytest.raises(a3c.RunError, match=r"--env-id WrongShape-v0: observation of shape \(1, 1\), declared \(1,\)"):
        work("--env-id", "WrongShape-v0")


def test_bounded_actions_are_rescaled():
    """The policy's [-1, 1] is the environment's range; the learner sees its own actions."""
    env = a3c.make_env(quick("--env-id", "Percent-v0"))
    env.reset()
    for action, reward in ((0.0, 1), (1.0, 0), (-0.5, 0.5), (99.0, 0)):
        assert env.step(np.array([action], np.float32))[1] == pytest.approx(reward)


def test_environments_that_are_not_supported(monkeypatch):
    for space in (Discrete(2, start=1), Box(-1, 1, (2, 2)), Box(0, 10, (2,), np.int32)):
        monkeypatch.setattr(probes.ConstantReward, "action_space", space)
        with pytest.raises(a3c.RunError, match=r"--env-id ConstantReward-v0: needs Discrete actions .*; it has"):
            a3c.make_env(quick("--env-id", "ConstantReward-v0"))


# Runs


def test_one_worker_is_reproducible_bit_for_bit(forkserver):
    """A run with its processes equals a worker alone in this process."""
    flags = "--env-id probes:ObservationActionReward-v0 --total-timesteps 200".split()
    trained, history = a3c.train(quick(*flags))
    agent, reports, _ = work(*flags)
    assert history == [(step, value) for step, value, _ in episodes(reports)] and len(history) == 200
    trained, agent = trained.state_dict(), agent.state_dict()  # weights and statistics
    assert trained.keys() == agent.keys() and torch.equal(flat(trained.values()), flat(agent.values()))


def test_two_workers_share_one_step_budget(tmp_path, capsys, monkeypatch, forkserver):
    ranks, given, initial, original = [], [], [], a3c.start_worker

    def start_worker(workers, context, rank, args, optimizer, shared, start_step):
        ranks.append(rank)
        given.append({name: getattr(shared, name) for name in ("obs_statistics", "return_statistics")})
        if rank == 0:  # no worker has played yet
            initial.append({f"{name}.{key}": x for name in given[-1] for key, x in buffers(given[-1][name]).items()})
        return original(workers, context, rank, args, optimizer, shared, start_step)

    monkeypatch.setattr(a3c, "start_worker", start_worker)
    flags = "--num-workers 2 --total-timesteps 4000 --num-steps 9 --log-interval 800".split()
    agent, history = a3c.train(quick(*flags))
    (path,) = tmp_path.glob("runs/*/checkpoint.pt")
    before = torch.load(path, weights_only=True)
    assert 4000 <= before["global_step"] < 4000 + 2 * 9 and ranks == [0, 1]
    played = sum(value for _, value in history)  # CartPole's reward is 1 per step
    assert played <= before["global_step"] < played + 2 * 500
    assert torch.equal(flat(before["agent"].values()), flat(agent.state_dict().values()))
    for name, statistics in given[0].items():  # all workers and the parent have the same
        assert given[1][name] is statistics is getattr(agent, name) and all(x.is_shared() for x in statistics.buffers())
        assert statistics.count == before["global_step"]
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step")]
    assert len(lines) == 5 and lines[-1].endswith(" 0 s left")
    assert multiprocessing.active_children() == [] and not signal.pthread_sigmask(signal.SIG_BLOCK, [])
    frozen = "--learning-rate 0 --rmsprop-decay 1 --total-timesteps 5000 --resume".split()
    agent, _ = a3c.train(quick(*frozen, str(path)))  # no weight changes: this shows that everything was restored
    after = torch.load(path, weights_only=True)
    assert after["global_step"] == 5000 and (before["optimizer"]["mean_square"] < 0.9).sum() > 1000
    weights = [name for name, _ in agent.named_parameters()]
    for module, names in (("agent", weights), ("optimizer", ["mean_square"])):
        assert all(torch.equal(before[module][name], after[module][name]) for name in names)
    assert set(before["agent"]) == {*weights, *initial[1]}
    for name, value in initial[1].items():
        assert np.array_equal(before["agent"][name], value) and not np.array_equal(after["agent"][name], value)
    assert agent.obs_statistics.count == agent.return_statistics.count == 5000


@pytest.mark.parametrize("lstm", [[], ["--lstm"]], ids=["feedforward", "lstm"])
def test_evaluation_is_greedy_and_seeded(lstm):
    """Parallel episodes equal the same episodes played one by one; only the first of each environment counts."""
    args = quick(*lstm)
    agent, _ = make(args)
    plain = copy.deepcopy(agent)  # does not normalize
    mean, std = set_statistics(agent)
    env, expected = gym.make("CartPole-v1"), []
    for episode in range(5):
        obs, _ = env.reset(seed=a3c.derive_seed(args.seed, 1) + episode)
        terminated, total, lstm_state = False, 0.0, None
        while not terminated:
            logits, _, lstm_state = plain(normalized(torch.as_tensor(obs)[None], mean, std), lstm_state)
            obs, reward, terminated, _, _ = env.step(int(logits.argmax()))
            total += reward
        expected.append(total)
    assert a3c.evaluate(agent, args, 5) == expected and len(set(expected)) > 1


def test_evaluation_ends_and_clips_actions(monkeypatch, capsys):
    args = quick("--env-id", "Target-v0")
    agent, _ = make(args)
    torch.nn.init.constant_(agent.actor[-1].bias, 9.0)  # far outside the Box, which Target-v0 asserts
    assert a3c.evaluate(agent, args, 2) == [-2.25, -2.25]
    monkeypatch.setattr(probes.Target, "play", lambda self, action: (0.0, 1.0, False))  # never ends
    monkeypatch.setattr(a3c, "range", lambda n: range(n // 10_000), raising=False)
    assert a3c.evaluate(agent, args, 2) == [10.0, 10.0]
    assert "2 of 2 episodes unfinished" in capsys.readouterr().out
    args = quick("--env-id", "EndlessReward-v0")
    agent, _ = make(args)
    set_statistics(agent)
    assert a3c.evaluate(agent, args, 2) == [5.0, 5.0]  # up to its time limit; rewards are not divided


# Faults: whatever happens, the run ends at once, what was learned is saved, and no process is left


def send(signum):
    """Return a replacement for log_progress that sends this process a signal, or does nothing if signum is 0."""
    return lambda *_: os.kill(os.getpid(), signum)


def kill_one(*_):
    """Kill one of two hanging workers, soon after the 80 steps that they have reported together."""
    time.sleep(0.5)
    workers = multiprocessing.active_children()
    for process in workers:
        os.kill(process.pid, signal.SIGINT)  # a terminal sends Ctrl-C to all processes, but it is for the parent alone
    time.sleep(0.2)
    workers[0].kill()


@pytest.mark.parametrize(
    ("env_id", "strike", "error", "message"),
    [
        ("test_a3c:Hang-v0", kill_one, a3c.RunError, "worker . died, exit code -9"),
        ("probes:Crash-v0", send(0), a3c.RunError, "worker . died, exit code 1"),
        ("probes:Quit-v0", send(0), a3c.RunError, "worker . died, exit code 0"),
        ("probes:NotANumber-v0", send(0), a3c.RunError, "the gradient is not finite"),
        ("CartPole-v1", send(signal.SIGTERM), SystemExit, "143"),
        ("CartPole-v1", send(signal.SIGINT), KeyboardInterrupt, None),
    ],
    ids=["killed", "raises", "quits", "NaN", "SIGTERM", "Ctrl-C"],
)
def test_faults_end_all_workers(env_id, strike, error, message, tmp_path, monkeypatch, forkserver):
    """Workers end before the checkpoint is saved, and it is saved before the W&B run is finished."""
    order, save_checkpoint = [], a3c.save_checkpoint
    monkeypatch.setattr(a3c, "log_progress", strike)
    start_run = a3c.start_run

    def spied_start(*args):
        run, folder = start_run(*args)
        monkeypatch.setattr(run, "finish", lambda exit_code: order.append(("finish", exit_code)))
        return run, folder

    def spied_save(*args, **modules):
        order.append(("save", len(multiprocessing.active_children())))
        return save_checkpoint(*args, **modules)

    monkeypatch.setattr(a3c, "start_run", spied_start)
    monkeypatch.setattr(a3c, "save_checkpoint", spied_save)
    start = time.monotonic()
    with pytest.raises(error, match=message):
        a3c.train(quick(*f"--env-id {env_id} --num-workers 2 --total-timesteps 9999999 --log-interval 80".split()))
    assert multiprocessing.active_children() == [] and time.monotonic() - start < 90
    assert order[-2:] == [("save", 0), ("finish", 1)]
    (path,) = tmp_path.glob("runs/*/checkpoint.pt")
    checkpoint = torch.load(path, weights_only=True)
    assert checkpoint["global_step"] >= 80 and flat(checkpoint["agent"].values()).isfinite().all()


@pytest.mark.parametrize(
    ("where", "value"), [("reward", "Infinity"), ("observation", "NaN"), ("observation", "-Infinity")]
)
def test_values_that_are_not_finite_end_the_run(where, value, tmp_path, forkserver):
    """The run ends with a one-line error; no weight and no statistic of the checkpoint is NaN or infinite."""
    flags = f'--env-id probes:NotFinite-v0 --total-timesteps 2000 --env-kwargs {{"{where}":{value}}}'
    one_line = (
        r"^the gradient is not finite: lower .*, or look for NaN in probes:N|^an observation or a reward of .* is not"
    )
    with pytest.raises(a3c.RunError, match=one_line):
        a3c.train(quick(*flags.split()))
    (path,) = tmp_path.glob("runs/*/checkpoint.pt")
    checkpoint = torch.load(path, weights_only=True)
    assert flat(checkpoint["agent"].values()).isfinite().all() and 0 < checkpoint["global_step"] <= 300


@pytest.mark.parametrize(("signum", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)])
def test_a_signal_while_a_worker_starts_is_not_lost(signum, error, monkeypatch, forkserver):
    start = forkserver.Process.start
    monkeypatch.setattr(forkserver.Process, "start", lambda process: (start(process), send(signum)()))
    with pytest.raises(error):
        a3c.train(quick())
    for process in multiprocessing.active_children():  # train did not know this one yet; it ends with the program
        process.kill()


def test_faults_in_the_shell_leave_no_process():
    """Three runs at the same time, each with its own fault."""

    def ctrl_c(process):
        os.killpg(process.pid, signal.SIGINT)

    faults = {  # environment and flags, lines to wait for, fault, exit code
        "Ctrl-C early": ("CartPole-v1 --num-workers 1", ["a3c"], ctrl_c, 130),
        "SIGTERM": ("test_a3c:Closing-v0", ["played", "played"], subprocess.Popen.terminate, 143),  # from both workers
        "parent killed": ("test_a3c:Hang-v0 --num-workers 1", ["step"], subprocess.Popen.kill, -9),
    }
    flags = "--total-timesteps 100000000 --log-interval 40 --wandb-mode disabled --env-id".split()
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    # Unbuffered, print writes a line and its newline separately: the lines of two processes would mix.
    options["env"] = os.environ | {"PYTHONPATH": str(ROOT / "tests"), "PYTHONUNBUFFERED": ""}
    with contextlib.ExitStack() as stack:
        runs = []
        for fault, (env_id, *_) in faults.items():
            command = [sys.executable, ROOT / "a3c.py", *flags, *env_id.split(), "--run-dir", fault]
            runs.append(stack.enter_context(subprocess.Popen(command, **options)))
            stack.callback(runs[-1].kill)  # if a check fails while it is still running
        for process, (_, lines, strike, _) in zip(runs, faults.values(), strict=True):
            for expected in lines:
                next(line for line in process.stdout if line.startswith(expected))
            time.sleep(0.5)  # while the workers import, play or begin to hang
            strike(process)
        for process, (fault, (*_, code)) in zip(runs, faults.items(), strict=True):
            out, err = process.communicate(timeout=180)  # returns when all processes, which hold the pipes, have ended
            assert process.returncode == code and (err == "" or fault == "parent killed"), f"{fault}: {err}"
            steps = [torch.load(path, weights_only=True)["global_step"] for path in Path(fault).glob("*/checkpoint.pt")]
            assert min(steps) >= 40 if fault != "Ctrl-C early" else steps == [0]
            assert fault != "SIGTERM" or out.count("closed") == 2  # each worker closes its environment


# Probe environments


PROBE = "--num-steps 8 --learning-rate 0.01 --rmsprop-decay 0.9 --rmsprop-eps 0.01 --gamma 0.9 --vf-coef 0.5"
PROBE += " --ent-coef 0.01 --max-grad-norm 40 --no-anneal-lr --total-timesteps 400 --env-id"
PROBE = PROBE.split()


@pytest.mark.parametrize(
    ("env_id", "num_steps", "values"),
    [
        ("ConstantReward-v0", 8, {0: 1}),  # probe 1
        ("ObservationReward-v0", 8, {-1: -1, 1: 1}),  # 2
        ("DelayedReward-v0", 1, {0: 0.9, 1: 1}),  # 3: one step earlier, discounted by γ
        ("DelayedReward-v0", 8, {0: 0.9, 1: 1}),
        ("EndlessReward-v0", 2, {0: 10}),  # 6: 1 / (1 - γ), though every episode is truncated after 5 steps, sum 4.1
        ("EndlessReward-v0", 8, {0: 10}),
    ],
)
def test_probes_of_values(env_id, num_steps, values):
    agent, _, _ = work(*PROBE, env_id, "--num-steps", str(num_steps))
    estimates = agent(torch.tensor([[float(obs)] for obs in values]))[1] * agent.return_statistics.rms()
    assert estimates.tolist() == pytest.approx(list(values.values()), rel=0.02)


@pytest.mark.parametrize("env_id", ["ActionReward-v0", "ObservationActionReward-v0"])
def test_probes_4_and_5_reward_depends_on_the_action(env_id):
    agent, _, _ = work(*PROBE, env_id)
    assert a3c.evaluate(agent, quick("--env-id", env_id), 20) == [1.0] * 20


def test_probe_7_a_continuous_action():
    """The environment, whose optimum is 0.5 of [-2, 2], asserts that actions are inside its Box."""
    agent, _, calls = work(*PROBE, "Target-v0")
    assert agent(torch.zeros(1, 1))[0].item() == pytest.approx(0.25, abs=0.1)
    actions = torch.cat([call["actions"] for call in calls])
    assert actions.shape == (400, 1) and actions.dtype == torch.float32
    assert actions.abs().max() > 1  # the log-probabilities are those of the actions as drawn, before clipping


def test_probe_8_the_lstm_remembers():
    flags = [*PROBE, *"Memory-v0 --lstm --rmsprop-eps 0.001 --total-timesteps 800".split()]
    agent, _, _ = work(*flags)
    assert a3c.evaluate(agent, quick(*flags), 20) == [1.0] * 20
