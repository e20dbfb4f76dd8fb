"""Test related/impala.py: V-trace against its definitions, what actors send, the lag, probe environments, faults."""

import contextlib
import itertools
import math
import multiprocessing
import os
import signal
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import gymnasium as gym
import impala
import numpy as np
import probes
import pytest
import torch
from gymnasium.spaces import Box, Discrete
from torch.nn.utils import parameters_to_vector

import a2c

ROOT = Path(__file__).parents[1]
T, N = 9, 5  # num_steps, batch_size of the random unrolls
torch.set_num_threads(1)  # as in a worker
pytestmark = pytest.mark.usefixtures("handlers")


class Hang(probes.Probe):
    """Its 50th step never ends, even after SIGTERM."""

    steps = 0

    def play(self, action):
        self.steps += 1
        if self.steps == 50:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            time.sleep(1000)
        return 0.0, 1, self.t == 10


class Closing(probes.ConstantReward):
    """Writes to the file `closed` when it is closed."""

    def close(self):
        with open("closed", "a") as file:
            file.write("closed\n")


class Lives(gym.Env):
    """Games of 8 steps and 2 lives: one is lost in the 3rd step, the other in the 8th; the reward of step t is -t."""

    observation_space, action_space = Box(-np.inf, np.inf, (1,), np.float32), Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return np.zeros(1, np.float32), {"lives": 2}

    def step(self, action):
        self.t += 1
        lives = 2 - (self.t >= 3) - (self.t >= 8)
        return np.full(1, self.t, np.float32), -float(self.t), self.t == 8, False, {"lives": lives}


gym.register("ImpalaHang-v0", Hang)
gym.register("ImpalaClosing-v0", Closing)
gym.register("ImpalaLives-v0", Lives)


def quick(*flags):
    """Return the arguments of a very short run; later flags override earlier ones."""
    base = "--wandb-mode disabled --total-timesteps 400 --num-workers 1 --batch-size 2 --eval-episodes 1"
    return impala.parse_args([*base.split(), *" ".join(flags).split()])


# V-trace


def random_unrolls(seed):
    """Return vtrace's arrays: ratios from 0.1 to 10; episodes end in every way, also both ways at once."""
    rng = np.random.default_rng(seed)
    terminations, truncations = rng.random((2, T, N)) < 0.2
    assert (truncations & ~terminations).any() and terminations.any() and not (terminations | truncations)[-1].all()
    ratios, rewards, values, next_values = np.exp(rng.uniform(-2.3, 2.3, (T, N))), *rng.normal(size=(3, T, N))
    same_episode = ~(terminations | truncations)[:-1]
    next_values[:-1] = np.where(same_episode, values[1:], next_values[:-1])
    return ratios, rewards, values, next_values, terminations, terminations | truncations


def vtrace_by_definition(ratios, rewards, values, next_values, terminations, dones, gamma, rho_bar, c_bar):
    """Compute eq. 1 as a double sum of products, and the advantages of section 4.2, for each step by itself."""

    def bootstrap(t, n):
        return 0.0 if terminations[t, n] else next_values[t, n]

    targets, advantages = np.zeros_like(values), np.zeros_like(values)
    for s, n in np.ndindex(values.shape):
        targets[s, n] = values[s, n]
        for t in range(s, len(values)):
            trace = math.prod(min(c_bar, ratios[i, n]) for i in range(s, t))
            delta = min(rho_bar, ratios[t, n]) * (rewards[t, n] + gamma * bootstrap(t, n) - values[t, n])
            targets[s, n] += gamma ** (t - s) * trace * delta
            if dones[t, n]:
                break
    for s, n in np.ndindex(values.shape):
        last = dones[s, n] or s == len(values) - 1
        next_target = bootstrap(s, n) if last else targets[s + 1, n]
        advantages[s, n] = min(rho_bar, ratios[s, n]) * (rewards[s, n] + gamma * next_target - values[s, n])
    return targets, advantages


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("rho_bar", "c_bar"), [(1.0, 1.0), (3.0, 1.0), (3.0, 0.5), (1e9, 1e9), (0.3, 0.0)])
def test_vtrace_is_its_definition(seed, rho_bar, c_bar):
    arrays = random_unrolls(seed)
    copies = [x.copy() for x in arrays]
    results = impala.vtrace(*arrays, 0.9, rho_bar, c_bar)
    np.testing.assert_allclose(results, vtrace_by_definition(*copies, 0.9, rho_bar, c_bar), rtol=0, atol=1e-9)
    assert all(np.array_equal(x, y) for x, y in zip(arrays, copies, strict=True))  # nothing was changed in place


def test_on_policy_vtrace_is_the_n_step_return():
    """Eq. 2, as in A2C: R <- V or 0, then R <- r + γR; with c̄ = λ it is GAE(γ, λ)."""
    _, rewards, values, next_values, terminations, dones = random_unrolls(0)
    ones = np.ones((T, N))
    targets, advantages = impala.vtrace(ones, rewards, values, next_values, terminations, dones, 0.9, 2.0, 1.5)
    returns = np.zeros((T, N))
    for n in range(N):
        for t in reversed(range(T)):
            if dones[t, n] or t == T - 1:
                later = 0.0 if terminations[t, n] else next_values[t, n]
            returns[t, n] = later = rewards[t, n] + 0.9 * later
    np.testing.assert_allclose(targets, returns, rtol=0, atol=1e-9)
    np.testing.assert_allclose(advantages, returns - values, rtol=0, atol=1e-9)
    values, terminations = np.random.default_rng(0).normal(size=(T + 1, N)), dones  # no truncations: a2c's values
    arrays = rewards, values[:-1], values[1:], terminations, dones
    for gae_lambda in (0.0, 0.7, 1.0):
        expected = a2c.compute_advantages(rewards, values, terminations, dones, 0.9, gae_lambda)
        targets, _ = impala.vtrace(ones, *arrays, 0.9, 1.0, gae_lambda)
        np.testing.assert_allclose(targets - values[:-1], expected, rtol=0, atol=1e-9)


def test_the_fox():
    """The numbers of the A2C comic: rewards 1, 20, 2, then a state with V = 18; γ = 1."""
    values, next_values, never = np.array([[20.0], [19], [22]]), np.array([[19.0], [22], [18]]), np.zeros((3, 1), bool)
    targets, advantages = impala.vtrace(
        np.ones((3, 1)), np.array([[1.0], [20], [2]]), values, next_values, never, never, 1.0, 1.0, 1.0
    )
    assert targets.flatten().tolist() == [41, 40, 20] and advantages.flatten().tolist() == [21, 21, -2]


@pytest.mark.parametrize(("rho_bar", "c_bar"), [(1.0, 1.0), (1.0, 0.2), (2.0, 1.0), (1e9, 1.0), (1e-9, 1e-9)])
def test_fixed_point_of_the_clipped_policy(rho_bar, c_bar):
    """E[v] = V for V of the policy of eq. 3, whatever c̄ is, and there E[A / ρ | s, a] = Q(s, a) - V(s).

    All paths of 3 steps through an MDP of 3 states and 2 actions are a batch; their probabilities weight the results.
    """
    rng, gamma = np.random.default_rng(0), 0.8
    mu, pi = rng.dirichlet([1, 1], size=(2, 3))
    transition, reward = rng.dirichlet([1, 1, 1], size=(3, 2)), rng.normal(size=(3, 2))
    paths = np.array(list(itertools.product(range(3), *[range(2), range(3)] * 3))).T  # s a s a s a s
    states, actions = paths[::2], paths[1::2]
    steps = states[:-1], actions
    probability = (mu[steps] * transition[(*steps, states[1:])]).prod(0)  # of a path, given its first state
    ratios, never = (pi / mu)[steps], np.zeros(actions.shape, bool)
    if rho_bar == 1e-9:  # the limit is the value of μ; the steps towards it are tiny
        clipped = mu
    else:
        clipped = np.minimum(rho_bar * mu, pi)
        clipped /= clipped.sum(1, keepdims=True)
    p_clipped = np.einsum("sa,sat->st", clipped, transition)
    expected = np.linalg.solve(np.eye(3) - gamma * p_clipped, (clipped * reward).sum(1))
    if rho_bar == 1e9:
        np.testing.assert_allclose(clipped, pi)

    def expectation(values):
        arrays = ratios, reward[steps], values[states[:-1]], values[states[1:]], never, never
        targets, advantages = impala.vtrace(*arrays, gamma, rho_bar, c_bar)
        return np.bincount(states[0], probability * targets[0]), advantages[0]

    values, advantages = expectation(expected)
    np.testing.assert_allclose(values, expected, rtol=0, atol=1e-9)
    first = states[0] * 2 + actions[0]
    q_minus_v = np.bincount(first, probability * advantages / np.minimum(ratios[0], rho_bar)) / mu.flatten()
    q_values = reward + gamma * transition @ expected
    np.testing.assert_allclose(q_minus_v.reshape(3, 2), q_values - expected[:, None], rtol=0, atol=1e-9)
    if rho_bar > 1e-9:  # a contraction: from elsewhere, too
        values = rng.normal(size=3)
        for _ in range(300):
            values, _ = expectation(values)
        np.testing.assert_allclose(values, expected, rtol=0, atol=1e-9)


# Loss and update


def test_loss_and_its_gradient():
    tensors = torch.randn(5, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    log_prob, entropy, values, advantages, targets = tensors
    learned = [x.requires_grad_() for x in (log_prob, entropy, values)]
    loss, metrics = impala.impala_loss(log_prob, entropy, values, advantages, targets, 0.3, 0.01)
    p, h, v, a, y = tensors.detach().numpy()
    terms = {"policy_loss": -(p * a).sum() / 9, "value_loss": ((y - v) ** 2).sum() / 9, "entropy": h.sum() / 9}
    terms["explained_variance"] = 1 - np.var(y - v) / np.var(y)
    expected = {f"losses/{name}": value for name, value in terms.items()}
    assert {name: value.item() for name, value in metrics.items()} == pytest.approx(expected, abs=1e-12)
    assert loss.item() == pytest.approx(
        terms["policy_loss"] + 0.3 * terms["value_loss"] - 0.01 * terms["entropy"], abs=1e-12
    )
    # Descent makes better-than-expected actions more likely, raises the entropy, and moves V towards v.
    gradients = -advantages / 9, torch.full((3, 3), -0.01 / 9).double(), -0.6 * (targets - values) / 9
    torch.testing.assert_close(torch.autograd.grad(loss, learned), gradients)


def unrolls_for_update(seed, num_steps=6):
    """Return three unrolls in float64: one without an end, one with a termination, one with two truncations."""
    rng, unrolls = np.random.default_rng(seed), []
    for i in range(3):
        terminations, truncations = np.zeros(num_steps, bool), np.zeros(num_steps, bool)
        terminations[2], truncations[[1, 5]] = i == 1, i == 2
        unrolls.append(
            SimpleNamespace(
                observations=rng.normal(size=(num_steps + 1, 2)),
                actions=rng.integers(3, size=num_steps),
                logits=rng.normal(size=(num_steps, 3)),
                rewards=rng.normal(size=num_steps) * 3,
                terminations=terminations,
                dones=terminations | truncations,
                last_observations={int(t): rng.normal(size=2) for t in np.flatnonzero(truncations)},
            )
        )
    return unrolls


@pytest.mark.parametrize("flags", ["--rho-bar 1.5 --c-bar 0.9", "--no-vtrace", "--max-grad-norm 1e6"])
def test_an_update_equals_one_written_by_hand(flags):
    """Network, ratios, true last observations, V-trace, losses, clipping, step; NaN rewards change no weight.

    Rewards are divided by the root mean square of running returns, here 2, and observations normalized.
    """
    torch.manual_seed(0)
    args = quick("--gamma 0.95 --vf-coef 0.4 --ent-coef 0.3 --max-grad-norm 0.1", flags)
    agent, unrolls = impala.ActorCritic(Box(-1, 1, (2,)), 3).double(), unrolls_for_update(0)
    agent.return_statistics.update([2.0, -2.0])
    agent.obs_statistics.update(np.array([[0.8, 1.0], [-0.2, -1.0]]))
    for p in agent.parameters():
        torch.nn.init.normal_(p, std=0.3)
        p.grad = torch.ones_like(p)  # left over from the previous update
    weights = {name: p.detach().clone().requires_grad_() for name, p in agent.named_parameters()}

    def layer(x, name):
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def network(obs, name):
        obs = (torch.as_tensor(obs) - torch.tensor([0.3, 0.0])) / torch.tensor([0.5, 1.0])
        return layer(layer(layer(obs, f"{name}.0").tanh(), f"{name}.2").tanh(), f"{name}.4")

    def forward(obs):
        return network(obs, "actor"), network(obs, "critic")[..., 0]

    loss, clipped = 0.0, []
    for unroll in unrolls:
        logits, values = forward(unroll.observations)
        log_probs = logits[:-1] - logits[:-1].exp().sum(-1, keepdim=True).log()
        chosen = log_probs[torch.arange(6), torch.as_tensor(unroll.actions)]
        mu = np.exp(unroll.logits) / np.exp(unroll.logits).sum(-1, keepdims=True)
        ratios = chosen.exp().detach().numpy() / mu[np.arange(6), unroll.actions]
        clipped += list(ratios > args.rho_bar)
        baseline = values.detach().numpy()
        next_values = baseline[1:].copy()
        for t, obs in unroll.last_observations.items():
            next_values[t] = forward(obs)[1].item()
        arrays = ratios if args.vtrace else np.ones(6), unroll.rewards / 2, baseline[:-1], next_values
        arrays = [x[:, None] for x in (*arrays, unroll.terminations, unroll.dones)]
        targets, advantages = vtrace_by_definition(*arrays, 0.95, args.rho_bar, args.c_bar)
        loss = loss - (chosen * torch.as_tensor(advantages[:, 0])).sum()
        loss = loss + 0.4 * (torch.as_tensor(targets[:, 0]) - values[:-1]).square().sum()
        loss = loss + 0.3 * (log_probs.exp() * log_probs).sum()
    assert 0 < np.mean(clipped) < 1
    gradients = torch.autograd.grad(loss / 18, list(weights.values()))
    norm = math.sqrt(sum((g**2).sum().item() for g in gradients))
    assert norm > 0.1, "the unrolls must exercise the clipping"

    optimizer = torch.optim.SGD(agent.parameters(), lr=1.0)
    metrics = impala.update(agent, optimizer, unrolls, args)
    assert metrics["losses/grad_norm"].item() == pytest.approx(norm)
    assert metrics["charts/clipped_rho"] == pytest.approx(np.mean(clipped))
    for p, before, g in zip(agent.parameters(), weights.values(), gradients, strict=True):
        torch.testing.assert_close(p, before - g * min(1, args.max_grad_norm / norm), rtol=0, atol=1e-6)
    before = parameters_to_vector(agent.parameters())
    unrolls[0].rewards[0] = math.nan
    with pytest.raises(impala.RunError, match=r"the gradient is not finite: .*CartPole-v1"):
        impala.update(agent, optimizer, unrolls, args)
    assert torch.equal(before, parameters_to_vector(agent.parameters()))


def test_the_networks():
    """Layers are orthogonal with the usual gains, biases zero; the mean image is subtracted from frames."""
    torch.manual_seed(0)
    flat = impala.ActorCritic(Box(-1, 1, (4,)), 6)
    image = impala.ActorCritic(Box(0, 255, (4, 84, 84), np.uint8), 6)
    gains = {layer: 2**0.5 for network in (flat.actor, flat.critic) for layer in (network[0], network[2])}
    gains |= {image.body[i]: 2**0.5 for i in (0, 2, 5)}
    gains |= {flat.actor[4]: 0.01, flat.critic[4]: 1.0, image.actor: 0.01, image.critic: 1.0}
    for layer, gain in gains.items():
        singular_values = torch.linalg.svdvals(layer.weight.flatten(1))  # of an orthogonal matrix: all the same
        torch.testing.assert_close(singular_values, torch.full_like(singular_values, gain))
        assert not layer.bias.any()
    frames = torch.randint(256, (3, 2, 4, 84, 84), dtype=torch.uint8)
    mean = torch.rand(84, 84) * 255
    image.obs_statistics.mean.copy_(mean)
    logits, values = image(frames)
    assert logits.shape == (3, 2, 6) and values.shape == (3, 2)
    features = frames.flatten(0, 1) / 255 - mean / 255
    for layer in (image.body[0], image.body[2], torch.nn.Flatten(), image.body[5]):
        features = layer(features).relu()
    torch.testing.assert_close(logits.flatten(0, 1), image.actor(features), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(values.flatten(), image.critic(features).squeeze(-1), rtol=1e-4, atol=1e-5)


def test_log_prob_and_entropy():
    logits, p = torch.tensor([0.0, 1.0, -1.0]), np.exp([0.0, 1.0, -1.0]) / np.exp([0.0, 1.0, -1.0]).sum()
    log_prob, entropy = impala.log_prob_and_entropy(logits.expand(2, 3, 3), torch.arange(3).expand(2, 3))
    np.testing.assert_allclose(log_prob, np.log([p, p]), atol=1e-6)
    np.testing.assert_allclose(entropy, np.full((2, 3), -(p * np.log(p)).sum()), atol=1e-6)


# What an actor sends


class Stop(Exception):
    pass


def act(*flags, num_unrolls, rank=0, start_step=0, between=lambda shared_agent, version: None):
    """Run an actor in this process -> its unrolls; between is called after each of them."""
    args, unrolls = quick(*flags), []
    env = impala.make_env(args)
    torch.manual_seed(0)
    shared_agent = impala.ActorCritic(env.observation_space, env.action_space.n)
    version = multiprocessing.Value("q", 0)

    def send(unroll):
        unrolls.append(unroll)
        between(shared_agent, version)
        if len(unrolls) == num_unrolls:
            raise Stop

    slot = threading.Semaphore(num_unrolls)
    with pytest.raises(Stop):
        impala.worker(send, rank, args, shared_agent, version, slot, start_step)
    return unrolls


def test_unrolls_are_the_transitions_of_the_environment():
    """Every row agrees with the scripted environment, across episodes and unrolls; last observations are true."""
    unrolls = act("--env-id Scripted-v0 --num-steps 5 --gamma 0.5", num_unrolls=20)
    episode = t = 0
    for unroll in unrolls:
        returns = []
        for row in range(5):
            assert tuple(unroll.observations[row]) == (episode, t)
            t += 1
            terminated, truncated = episode % 2 == 0 and t == 3, episode % 2 == 1 and t == 4
            assert unroll.rewards[row] == 10 * episode + t
            assert unroll.running_returns[row] == sum(0.5 ** (t - k) * (10 * episode + k) for k in range(1, t + 1))
            assert unroll.terminations[row] == terminated and unroll.dones[row] == (terminated or truncated)
            assert (row in unroll.last_observations) == truncated
            assert not truncated or tuple(unroll.last_observations[row]) == (episode, 4)
            if terminated or truncated:
                returns.append((10 * episode * t + t * (t + 1) / 2, t))
                episode, t = episode + 1, 0
        assert tuple(unroll.observations[5]) == (episode, t)
        assert [(x["r"], x["l"]) for x in unroll.statistics] == returns
    assert unroll.rewards.dtype == unroll.logits.dtype == np.float32 and unroll.actions.dtype == np.int64


def test_the_logits_are_those_of_the_weights_copied_at_the_start():
    """Between unrolls the shared weights change; actions are drawn from the softmax of the logits."""
    weights, versions = [], [0]

    def between(shared_agent, version):
        for p in shared_agent.parameters():
            torch.nn.init.normal_(p, std=0.3)
        weights.append({name: p.clone() for name, p in shared_agent.state_dict().items()})
        version.value += 3
        versions.append(version.value)

    unrolls = act("--num-steps 60", num_unrolls=12, between=between)
    assert [unroll.version for unroll in unrolls] == versions[:-1]
    differences, variances = [], []
    for unroll, state in zip(unrolls[1:], weights[:-1], strict=True):
        agent = impala.ActorCritic(Box(-1, 1, (4,)), 2)
        agent.load_state_dict(state)
        logits, _ = agent(torch.as_tensor(unroll.observations[:-1]))
        torch.testing.assert_close(torch.as_tensor(unroll.logits), logits, rtol=1e-4, atol=1e-5)
        best, probability = logits.argmax(-1).numpy(), logits.softmax(-1).amax(-1).detach().numpy()
        differences += list((unroll.actions == best) - probability)
        variances += list(probability * (1 - probability))
    assert abs(sum(differences)) < 5 * math.sqrt(sum(variances)) and sum(variances) > 50  # 5 sigma


def test_each_actor_and_each_start_has_its_own_stream():
    streams = [act("--num-steps 50", num_unrolls=1, rank=r, start_step=s)[0] for r, s in ((0, 0), (1, 0), (0, 400))]
    assert len({tuple(stream.observations[0]) for stream in streams}) == 3
    assert len({tuple(stream.actions) for stream in streams}) == 3


def test_a_lost_life_is_terminal_for_the_learner_of_an_atari_game(monkeypatch):
    """The game continues; rewards are clipped for learning and reported raw."""
    make_env = impala.make_env
    monkeypatch.setattr(impala, "make_env", lambda args: make_env(quick("--env-id ImpalaLives-v0")))
    (unroll,) = act("--env-id ALE/Lives-v5 --num-steps 12", num_unrolls=1)
    assert np.flatnonzero(unroll.terminations).tolist() == np.flatnonzero(unroll.dones).tolist() == [2, 7, 10]
    assert unroll.observations[:, 0].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3, 4]
    assert unroll.rewards.tolist() == [-1] * 12 and [x["r"] for x in unroll.statistics] == [-36]
    (unroll,) = act("--env-id ImpalaLives-v0 --num-steps 12", num_unrolls=1)  # another environment may count lives, too
    assert np.flatnonzero(unroll.terminations).tolist() == [7] and unroll.rewards.tolist()[1] == -2


def test_atari(forkserver):
    (unroll,) = act("--env-id ALE/Pong-v5 --num-steps 30", num_unrolls=1)
    assert unroll.observations.shape == (31, 4, 84, 84) and unroll.observations.dtype == np.uint8
    env = impala.make_env(quick("--env-id ALE/Pong-v5"))
    settings = [env.get_wrapper_attr(name) for name in ("frame_skip", "noop_max", "terminal_on_life_loss")]
    assert settings == [4, 30, False] and env.unwrapped.ale.getFloat("repeat_action_probability") == 0
    env = impala.make_env(
        impala.parse_args(["--env-id=ALE/Pong-v5", '--env-kwargs={"repeat_action_probability": 0.5}'])
    )
    assert env.unwrapped.ale.getFloat("repeat_action_probability") == 0.5
    agent, history = impala.train(quick("--env-id ALE/Pong-v5 --total-timesteps 80 --eval-episodes 0 --num-steps 20"))
    assert history == [] and agent.body[0].weight.shape == (16, 4, 8, 8)


def test_an_actor_waits_until_its_previous_unroll_has_been_received():
    sent, slot, args = [], threading.Semaphore(1), quick()
    agent = impala.ActorCritic(Box(-1, 1, (4,)), 2)

    def send(unroll):
        sent.append(unroll)
        if len(sent) == 3:
            raise Stop

    def run():
        with contextlib.suppress(Stop):
            impala.worker(send, 0, args, agent, multiprocessing.Value("q", 0), slot, 0)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    for received in range(1, 4):
        deadline = time.monotonic() + 60
        while len(sent) < received and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.2)  # in which it plays its next unroll
        assert len(sent) == received
        slot.release()
    thread.join(60)
    assert not thread.is_alive()


# Lag


@pytest.fixture
def recorded(monkeypatch, forkserver):
    """A function that runs train -> one dict per update (unrolls, weights, step size, Adam), history, log lines."""
    calls, logs, shared = [], [], []
    update, start_worker, log_progress = impala.update, impala.start_worker, impala.log_progress

    def record(agent, optimizer, unrolls, args):
        call = {"unrolls": unrolls, "lr": optimizer.param_groups[0]["lr"], "version": shared[1].value}
        call |= {"before": parameters_to_vector(agent.parameters()).detach()}
        call |= {"shared": parameters_to_vector(shared[0].parameters()).detach(), "optimizer": optimizer}
        call |= {"adam_steps": [int(state["step"]) for state in optimizer.state.values()]}
        calls.append(call)
        return update(agent, optimizer, unrolls, args)

    def start(workers, context, rank, args, shared_agent, version, *rest):
        assert rank == len(workers)
        shared[:] = shared_agent, version
        start_worker(workers, context, rank, args, shared_agent, version, *rest)

    def run(*flags):
        calls.clear()
        logs.clear()
        _, history = impala.train(quick(*flags))
        return list(calls), history, list(logs)

    def evaluated(*args):
        assert multiprocessing.active_children() == []  # the actors have closed their environments

    monkeypatch.setattr(impala, "log_evaluation", evaluated)
    monkeypatch.setattr(impala, "update", record)
    monkeypatch.setattr(impala, "start_worker", start)
    monkeypatch.setattr(impala, "log_progress", lambda *args: logs.append(args) or log_progress(*args))
    return run


@pytest.mark.parametrize("interval", [1, 4])
def test_the_weights_that_actors_copy_and_the_lag(recorded, interval):
    """They are the learner's after every sync_interval updates; the chart is the mean lag since the last log."""
    flags = f"--num-workers 2 --num-steps 10 --total-timesteps 800 --log-interval 200 --sync-interval {interval}"
    calls, history, logs = recorded(flags, "--learning-rate 0.01")
    assert len(calls) == 40 and all(len(call["unrolls"]) == 2 for call in calls)
    for i, call in enumerate(calls):
        assert call["version"] == i // interval * interval
        assert torch.equal(call["shared"], calls[call["version"]]["before"])
        assert all(unroll.version % interval == 0 and unroll.version <= i for unroll in call["unrolls"])
    assert all(unroll.rank in (0, 1) for call in calls for unroll in call["unrolls"])
    lags = [[i - unroll.version for unroll in call["unrolls"]] for i, call in enumerate(calls)]
    assert [args[2] for args in logs] == [200, 400, 600, 800]
    charts = [args[-1]["charts/policy_lag"] for args in logs]
    assert charts == pytest.approx([np.mean(lags[i : i + 10]) for i in range(0, 40, 10)])
    ended = [(20 * (i + 1), x["r"]) for i, c in enumerate(calls) for u in c["unrolls"] for x in u.statistics]
    assert history == ended and sum(value for _, value in history) <= 800
    assert [args[4][-1] for args in logs if args[4]] == [
        [x["l"] for c in calls[: args[2] // 20] for u in c["unrolls"] for x in u.statistics][-1]
        for args in logs
        if args[4]
    ]


def test_the_running_statistics_are_those_of_all_unrolls(recorded, tmp_path):
    """Of their observations and running returns; actors copy them with the weights, and a checkpoint has them."""
    calls, _, _ = recorded("--env-id probes:Scripted-v0 --num-steps 5")
    observations = np.concatenate([unroll.observations[:-1] for call in calls for unroll in call["unrolls"]])
    returns = np.concatenate([unroll.running_returns for call in calls for unroll in call["unrolls"]])
    (path,) = tmp_path.glob("runs/*/checkpoint.pt")
    statistics = torch.load(path, weights_only=True)["agent"]
    for name, samples in (("obs", observations), ("return", returns)):
        assert statistics[f"{name}_statistics.count"] == len(samples) == 400
        np.testing.assert_allclose(statistics[f"{name}_statistics.mean"], samples.mean(0), rtol=1e-4)
        np.testing.assert_allclose(statistics[f"{name}_statistics.var"], samples.var(0), rtol=1e-4)


def test_the_optimizer_and_its_step_size(recorded):
    calls, _, _ = recorded("--num-steps 20 --total-timesteps 395 --learning-rate 0.1")
    assert len(calls) == 10
    assert [call["lr"] for call in calls] == pytest.approx([0.1 * (1 - 40 * i / 395) for i in range(10)])
    optimizer = calls[0]["optimizer"]
    assert type(optimizer) is torch.optim.Adam and optimizer.defaults["betas"] == (0, 0.999)
    calls, _, _ = recorded("--learning-rate 0.1 --no-anneal-lr")
    assert {call["lr"] for call in calls} == {0.1}


def test_a_resumed_run_continues(recorded, tmp_path):
    """The schedule, Adam's state and the weights, which its actors copy; episodes and noise are new."""
    first, _, _ = recorded("--num-steps 20 --learning-rate 0.01")
    (path,) = tmp_path.glob("runs/*/checkpoint.pt")
    checkpoint = torch.load(path, weights_only=True)
    resumed, _, logs = recorded("--total-timesteps 800 --learning-rate 0.01 --log-interval 200 --resume", str(path))
    assert (checkpoint["global_step"], len(first), len(resumed)) == (400, 10, 10)
    assert resumed[0]["lr"] == pytest.approx(0.005) and resumed[0]["adam_steps"] == [10] * 12
    weights = torch.cat([p.flatten() for name, p in checkpoint["agent"].items() if "statistics" not in name])
    assert torch.equal(resumed[0]["before"], weights) and torch.equal(resumed[0]["shared"], weights)
    assert [args[2] for args in logs] == [600, 800]
    streams = [tuple(calls[0]["unrolls"][0].observations[0]) for calls in (first, resumed)]
    assert streams[0] != streams[1]


# Flags, evaluation, environments


def test_flags_that_are_refused(capsys):
    for flags, message in (
        ("--c-bar 2", "argument --c-bar: 2.0 exceeds --rho-bar 1.0"),
        (
            "--env-id PongNoFrameskip-v4",
            "argument --env-id: PongNoFrameskip-v4 is now called ALE/Pong-v5",
        ),
    ):
        with pytest.raises(SystemExit, match="2"):
            quick(flags)
        assert message in capsys.readouterr().err.splitlines()[-1]
    assert quick("--rho-bar 2 --c-bar 2").c_bar == 2


def test_evaluation_is_greedy_and_seeded():
    """Parallel episodes equal those played one by one; only each environment's first counts."""
    torch.manual_seed(0)
    agent, args, expected, env = impala.ActorCritic(Box(-1, 1, (4,)), 2), quick(), [], gym.make("CartPole-v1")
    for episode in range(5):
        obs, _ = env.reset(seed=impala.derive_seed(args.seed, 1) + episode)
        terminated, total = False, 0.0
        while not terminated:
            obs, reward, terminated, _, _ = env.step(int(agent(torch.as_tensor(obs))[0].argmax()))
            total += reward
        expected.append(total)
    assert impala.evaluate(agent, args, 5) == expected and len(set(expected)) > 1
    agent = impala.ActorCritic(Box(-1, 1, (1,)), 2)
    assert impala.evaluate(agent, quick("--env-id EndlessReward-v0"), 2) == [5, 5]  # to the time limit


def test_unsupported_environments_are_refused(monkeypatch):
    for space in (Discrete(2, start=1), Box(-1, 1, (2,))):
        monkeypatch.setattr(probes.ConstantReward, "action_space", space)
        with pytest.raises(impala.RunError, match=r"--env-id ConstantReward-v0: needs Discrete actions counted from 0"):
            impala.make_env(quick("--env-id ConstantReward-v0"))


# Probe environments

PROBE = "--num-workers 2 --num-steps 8 --batch-size 4 --learning-rate 0.01 --gamma 0.9 --vf-coef 0.5 --env-id"


@pytest.mark.parametrize(
    ("env_id", "steps", "values"),
    [
        ("ConstantReward-v0", 1500, {0: 1}),
        ("ObservationReward-v0", 2000, {-1: -1, 1: 1}),
        ("DelayedReward-v0", 2000, {0: 0.9, 1: 1}),
        ("EndlessReward-v0", 3000, {0: 10}),  # 1 / (1 - γ), although every episode is truncated after 5 steps
    ],
)
def test_probes_of_values(env_id, steps, values, forkserver):
    agent, _ = impala.train(quick(PROBE, f"probes:{env_id} --total-timesteps {steps} --max-grad-norm 3"))
    estimates = agent(torch.tensor([[float(obs)] for obs in values]))[1] * agent.return_statistics.rms()
    assert estimates.tolist() == pytest.approx(list(values.values()), rel=0.05)


@pytest.mark.parametrize(
    ("env_id", "flags"),
    [
        ("ActionReward-v0", ""),
        ("ObservationActionReward-v0", ""),
        ("ObservationActionReward-v0", "--sync-interval 8"),
        ("ObservationActionReward-v0", "--no-vtrace"),
    ],
)
def test_probes_of_actions(env_id, flags, forkserver):
    agent, _ = impala.train(quick(PROBE, f"probes:{env_id} --total-timesteps 2000", flags))
    assert impala.evaluate(agent, quick("--env-id", env_id), 20) == [1.0] * 20


# Faults: whatever happens, the run ends at once, what was learned is kept, and no process is left


def send(signum):
    """Return a replacement for log_progress that sends a signal to this process."""
    return lambda *_: os.kill(os.getpid(), signum)


def kill_one(*_):
    """Kill an actor soon after the learner's first update, when both actors hang."""
    time.sleep(0.5)
    workers = multiprocessing.active_children()
    for process in workers:
        os.kill(process.pid, signal.SIGINT)  # Ctrl-C, which a terminal sends to all, is for the parent alone
    time.sleep(0.2)
    workers[0].kill()


def kill_waiting(*_):
    """Kill an actor that waits for its unroll to be received; the other one waits as well."""
    time.sleep(0.5)
    multiprocessing.active_children()[0].kill()


@pytest.mark.parametrize(
    ("env_id", "strike", "error", "message"),
    [
        ("test_impala:ImpalaHang-v0", kill_one, impala.RunError, "worker . died, exit code -9"),
        ("CartPole-v1", kill_waiting, impala.RunError, "worker . died, exit code -9"),
        ("probes:Crash-v0", send(0), impala.RunError, "worker . died, exit code 1"),
        ("probes:WrongShape-v0", send(0), impala.RunError, r"observation of shape \(1, 1\), declared \(1,\)"),
        ("probes:NotANumber-v0", send(0), impala.RunError, "the gradient is not finite"),
        ("test_impala:ImpalaClosing-v0", send(signal.SIGTERM), SystemExit, "143"),
        ("CartPole-v1", send(signal.SIGINT), KeyboardInterrupt, None),
    ],
    ids=["killed", "killed while waiting", "raises", "wrong shape", "NaN", "SIGTERM", "Ctrl-C"],
)
def test_faults_end_all_actors(env_id, strike, error, message, tmp_path, monkeypatch, forkserver):
    """For signals in the shell and a killed parent, see test_a3c.py: the functions are the same."""
    monkeypatch.setattr(impala, "log_progress", strike)
    start = time.monotonic()
    flags = f"--env-id {env_id} --num-workers 2 --num-steps 8 --total-timesteps 9999999 --log-interval 80"
    with pytest.raises(error, match=message):
        impala.train(quick(flags))
    assert multiprocessing.active_children() == [] and time.monotonic() - start < 90
    (path,) = tmp_path.glob("runs/*/checkpoint.pt")
    checkpoint = torch.load(path, weights_only=True)
    assert checkpoint["global_step"] >= 80 or "WrongShape" in env_id
    assert all(value.isfinite().all() for value in checkpoint["agent"].values())
    if "Closing" in env_id:  # the learner's, opened for its spaces, and one per worker that has started
        assert Path("closed").read_text() in ("closed\n" * 2, "closed\n" * 3)


@pytest.mark.parametrize(("signum", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)])
def test_a_signal_while_a_worker_is_started_is_not_lost(signum, error, monkeypatch, forkserver):
    start = forkserver.Process.start
    monkeypatch.setattr(forkserver.Process, "start", lambda process: (start(process), send(signum)()))
    with pytest.raises(error):
        impala.train(quick())
    for process in multiprocessing.active_children():  # one that train did not know yet ends with the program
        process.kill()
