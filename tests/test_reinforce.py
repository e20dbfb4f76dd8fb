"""Test reinforce.py: its equations against independent definitions, the gradient of a small MDP, training, probes."""

import copy
import functools
import math

import gymnasium as gym
import numpy as np
import probes
import pytest
import torch
from gymnasium.spaces import Box, Discrete

import reinforce

PSI = ["total_return", "reward_to_go", "mean_baseline", "value_baseline", "elite"]
T, N = 7, 5  # num_steps and num_envs of the random batches below

pytestmark = pytest.mark.filterwarnings("error:::reinforce")


class Uneven(probes.Probe):
    """Episodes of 1 to 6 steps that are terminated (0), truncated (1) or both (2); obs = (length, kind of end, t)."""

    observation_space = Box(-np.inf, np.inf, (3,), np.float32)

    def reset(self, *, seed=None, options=None):
        gym.Env.reset(self, seed=seed)
        self.t, self.length, self.end = 0, *map(int, self.np_random.integers((1, 0), (7, 3)))
        return np.array([self.length, self.end, 0], np.float32), {}

    def step(self, action):
        self.t += 1
        last, obs = self.t == self.length, np.array([self.length, self.end, self.t], np.float32)
        return obs, 10.0 * self.length + self.t, last and self.end != 1, last and self.end != 0, {}


class FromOne(probes.Probe):
    action_space = Discrete(2, start=1)


class MatrixAction(probes.Probe):
    action_space = Box(-1, 1, (2, 2))


gym.register("Uneven-v0", entry_point=Uneven)
gym.register("NoLimit-v0", entry_point=probes.EndlessReward)
gym.register("FromOne-v0", entry_point=FromOne)
gym.register("MatrixAction-v0", entry_point=MatrixAction)


def quick(*flags):
    """Return the arguments of a very short run; later flags override earlier ones."""
    flags = ["--total-timesteps", "1024", "--num-envs", "4", "--eval-episodes", "0", "--value-warmup", "0", *flags]
    return reinforce.parse_args(["--wandb-mode", "disabled", *flags])


def random_batch(seed):
    """Return rewards (0 after the end), V(s_t) and is_transition, each (T, N): episodes of 1 to T steps, one of T."""
    rng = np.random.default_rng(seed)
    is_transition = np.arange(T)[:, None] < np.append(rng.integers(1, T + 1, N - 1), T)
    rewards, values = rng.normal(size=(2, T, N))
    return rewards * is_transition, values, is_transition


# Returns and weights


@pytest.mark.parametrize("gamma", [0.0, 0.9, 1.0])
def test_returns_are_the_discounted_sums(gamma):
    rewards, _, is_transition = random_batch(0)
    expected = [[sum(gamma ** (k - t) * rewards[k, n] for k in range(t, T)) for n in range(N)] for t in range(T)]
    returns = reinforce.discounted_returns(rewards, gamma)
    np.testing.assert_allclose(returns, expected, rtol=0, atol=1e-6)
    assert (returns[~is_transition] == 0).all() and returns.dtype == np.float32


def weights_by_definition(psi, returns, values, num_elite):
    """Return Ψ of each step (t, n) as a list; returns and values are dictionaries of G_t and V(s_t)."""
    best = sorted({n for _, n in returns}, key=lambda n: -returns[0, n])[:num_elite]
    mean = sum(returns.values()) / len(returns)
    return [
        {
            "total_return": returns[0, n],
            "reward_to_go": returns[t, n],
            "mean_baseline": returns[t, n] - mean,
            "value_baseline": returns[t, n] - values[t, n],
            "elite": float(n in best),
        }[psi]
        for t, n in returns
    ]


@pytest.mark.parametrize("psi", PSI)
def test_psi_weights(psi):
    for seed in range(3):
        rewards, values, is_transition = random_batch(seed)
        returns = reinforce.discounted_returns(rewards, 0.9)
        weights = reinforce.psi_weights(psi, returns, values[is_transition], is_transition, 0.3)
        dicts = [{(t, n): x[t, n] for t, n in np.argwhere(is_transition)} for x in (returns, values)]
        expected = weights_by_definition(psi, *dicts, 2)  # 0.3 * 5 episodes, rounded
        np.testing.assert_allclose(weights, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("fraction, num_envs, expected", [(0.07, 100, 7), (0.25, 9, 2), (1.0, 4, 4), (0.0, 4, 1)])
def test_the_elite_are_the_best_episodes(fraction, num_envs, expected):
    returns, is_transition = np.random.default_rng(0).normal(size=(3, num_envs)), np.ones((3, num_envs), bool)
    weights = reinforce.psi_weights("elite", returns, returns[is_transition], is_transition, fraction)
    weights = weights.reshape(3, num_envs)
    chosen = weights[0] == 1
    assert chosen.sum() == expected and weights.sum() == 3 * expected
    assert chosen.all() or returns[0][chosen].min() > returns[0][~chosen].max()


# The gradient of a known MDP: two states, a terminal state (2) and two actions; at most HORIZON steps

HORIZON, SAMPLES = 3, 50_000
NEXT = torch.tensor([[[0.3, 0.5, 0.2], [0.1, 0.3, 0.6]], [[0.6, 0.2, 0.2], [0.2, 0.7, 0.1]]]).double()  # s, a -> s'
REWARD = torch.tensor([[1.0, 3.0], [-2.0, 0.5]]).double()  # s, a; every episode starts in state 0
LOGITS = torch.tensor(
    [[[0.2, -0.3], [0.5, 0.1]], [[-0.4, 0.6], [0.0, 0.3]], [[0.1, 0.7], [-0.2, 0.4]]]
).double()  # t, s


def expected_return(logits, gamma, t=0, s=0):
    """Return E[G_t | s_t = s] by enumerating everything that can happen; differentiable with respect to logits."""
    if t == HORIZON or s == 2:
        return 0.0
    policy = logits[t, s].softmax(-1)
    return sum(
        policy[a]
        * (REWARD[s, a] + gamma * sum(NEXT[s, a, z] * expected_return(logits, gamma, t + 1, z) for z in range(3)))
        for a in range(2)
    )


def true_gradient(gamma):
    """Return the gradient of E[G_0] with respect to the logits."""
    logits = LOGITS.clone().requires_grad_()
    return torch.autograd.grad(expected_return(logits, gamma), logits)[0]


def sampled_episodes(samples, horizon):
    """Return states, actions, rewards and is_transition of sampled episodes, each (horizon, samples)."""
    rng = torch.Generator().manual_seed(0)
    state, rows = torch.zeros(samples, dtype=torch.int64), []
    for t in range(horizon):
        playing = state < 2
        s = state.clamp(max=1)
        action = torch.multinomial(LOGITS[t].softmax(-1)[s], 1, generator=rng).squeeze(-1)
        rows.append((s, action, REWARD[s, action] * playing, playing))
        state = torch.where(playing, torch.multinomial(NEXT[s, action], 1, generator=rng).squeeze(-1), 2)
    return [torch.stack(column).numpy() for column in zip(*rows, strict=True)]


@functools.cache
def estimates(psi, gamma, samples=SAMPLES, batch=SAMPLES, horizon=HORIZON):
    """Return -∇L with respect to the logits for each batch of sampled episodes; for each episode if batch = samples."""
    baseline = np.array([[expected_return(LOGITS, 1.0, t, s) for s in range(2)] for t in range(HORIZON)])  # V at γ = 1
    states, actions, rewards, is_transition = sampled_episodes(samples, horizon)
    returns = reinforce.discounted_returns(rewards, gamma)
    values, weights = baseline[np.arange(horizon)[:, None], states], np.zeros(rewards.shape)
    for first in range(0, samples, batch):
        part = np.s_[:, first : first + batch]
        steps = is_transition[part]
        weights[part][steps] = reinforce.psi_weights(psi, returns[part], values[part][steps], steps, 0.25)
    logits = LOGITS.expand(samples, -1, -1, -1).clone().requires_grad_()  # a copy, and so a gradient, per episode
    t, n = is_transition.nonzero()
    log_prob = logits[n, t, states[is_transition]].log_softmax(-1)[np.arange(len(t)), actions[is_transition]]
    weights = torch.as_tensor(weights[is_transition])
    loss, _ = reinforce.reinforce_loss(log_prob, torch.zeros(1), weights, samples, 0.0)
    gradients = -torch.autograd.grad(loss, logits)[0] * samples  # undoes the mean over all episodes
    return gradients if batch == samples else gradients.unflatten(0, (-1, batch)).mean(1)


def deviation(gradients, expected):
    """Return the largest distance between the mean over samples and its expectation, in standard errors."""
    error = gradients.std(0) / math.sqrt(len(gradients))
    return ((gradients.mean(0) - expected) / error.clamp(min=1e-9)).abs().max().item()


@pytest.mark.parametrize(
    "psi, gamma", [("total_return", 1.0), ("reward_to_go", 1.0), ("value_baseline", 1.0), ("total_return", 0.8)]
)
def test_unbiased_weights_give_the_gradient_of_the_expected_return(psi, gamma):
    """Within 3.5 standard errors in each of 10 entries, from 50,000 episodes."""
    gradients = estimates(psi, gamma)
    assert len(gradients) == SAMPLES and deviation(gradients, true_gradient(gamma)) < 3.5
    assert deviation(gradients, 1.1 * true_gradient(gamma)) > 5  # a gradient 10% larger would be noticed


@pytest.mark.parametrize("psi", ["reward_to_go", "value_baseline"])
def test_below_gamma_1_the_missing_discount_of_time_is_a_bias(psi):
    """Multiplying by γ^t, as in the theorem, removes the bias."""
    gradients = estimates(psi, 0.8)
    assert deviation(gradients, true_gradient(0.8)) > 7
    discount = 0.8 ** torch.arange(HORIZON).double()[:, None, None]
    assert deviation(gradients * discount, true_gradient(0.8)) < 3.5


@pytest.mark.parametrize("batch", [2, 4])
def test_the_bias_of_mean_baseline_is_of_order_1_over_n(batch):
    """In episodes of one step, 1 - 1/N of the gradient remains, because the mean includes the episode itself."""
    gradients = estimates("mean_baseline", 1.0, 10_000, batch, horizon=1)
    policy = LOGITS[0, 0].softmax(-1)
    gradient = policy * (REWARD[0] - policy @ REWARD[0])  # of Σ π(a) r(a)
    assert deviation(gradients[:, 0, 0], (1 - 1 / batch) * gradient) < 3.5
    assert deviation(gradients[:, 0, 0], gradient) > 7


def test_elite_follows_another_objective():
    gradients, gradient = estimates("elite", 1.0, batch=4), true_gradient(1.0)
    slope = (gradients.mean(0) * gradient).sum() / gradient.square().sum()
    assert slope > 0 and deviation(gradients, slope * gradient) > 7  # it helps, but is not a multiple of the gradient


def test_causality_and_a_baseline_lower_the_variance():
    """With the same policy and episodes, and the exact V as the baseline."""
    kinds = "total_return", "reward_to_go", "value_baseline"
    total, to_go, advantage = (estimates(psi, 1.0).var(0).sum() for psi in kinds)
    assert advantage < 0.8 * to_go < 0.8 * total


# Policy and update


@pytest.mark.parametrize("space", [Discrete(3), Box(-1, 1, (3,))], ids=["discrete", "continuous"])
def test_actions_are_drawn_from_the_policy_that_is_scored(space):
    """The mean of ∇log π over sampled actions is 0 if sample and log_prob_and_entropy use the same distribution."""
    torch.manual_seed(0)
    agent = reinforce.ActorCritic(Box(-1, 1, (4,)), space)
    output = torch.tensor([0.0, 1.0, -1.0]).expand(100_000, 3).clone().requires_grad_()
    scored = [output]
    if not agent.discrete:
        agent.log_std = torch.nn.Parameter(torch.tensor([-1.0, 0.0, 0.7]).expand(100_000, 3).clone())
        scored.append(agent.log_std)
    actions = agent.sample(output).detach()
    log_prob, entropy = agent.log_prob_and_entropy(output, actions)
    for scores in torch.autograd.grad(log_prob.sum(), scored):
        assert deviation(scores, 0.0) < 4
    error = log_prob.std() / math.sqrt(len(log_prob))
    assert abs(-log_prob.mean() - entropy[0]) < 4 * error + 1e-6  # H = -E[log π]
    if agent.discrete:
        assert np.allclose(actions.bincount() / 100_000, output[0].detach().softmax(-1), atol=0.01)
        assert actions.dtype == torch.int64 and agent.greedy(output)[:2].tolist() == [1, 1]
    else:
        assert np.allclose(actions.std(0), [math.exp(-1), 1, math.exp(0.7)], rtol=0.02)
        assert torch.equal(agent.greedy(output), output)


@pytest.mark.parametrize("space", [Discrete(2), Box(-1, 1, (2,))], ids=["discrete", "continuous"])
@pytest.mark.parametrize("flags", [*PSI, "value_baseline --value-warmup 3", "value_baseline --value-warmup 4"])
def test_an_update_equals_one_written_by_hand(flags, space):
    """Episodes of 6, 3 and 4 steps, two of them truncated; the rows after their ends are NaN and must be ignored.

    V's unit is the root mean square of earlier returns; the targets of its step are in the unit that includes these.
    With 3 earlier steps a warmup of 3 has ended, and one of 4 has not: π stays as it is.
    """
    torch.manual_seed(2)
    psi = flags.split()[0]
    flags = f"--psi {flags} --num-envs 3 --elite-fraction 0.5 --gamma 0.95 --ent-coef 0.02 --value-steps 1"
    args = quick(*flags.split())
    agent = reinforce.ActorCritic(Box(-1, 1, (2,)), space).double()
    earlier = [2.0, -1.0, 4.0]
    agent.return_statistics.update(earlier)
    if not agent.discrete:
        agent.log_std.data = torch.tensor([-0.5, 0.3]).double()
    lengths, is_truncated, steps, envs = np.array([6, 3, 4]), np.array([True, False, True]), 6, 3
    observations = torch.randn(steps + 1, envs, 2).double().numpy()
    observations[np.arange(steps + 1)[:, None] > lengths] = np.nan
    actions = (torch.randint(2, (steps, envs)) if agent.discrete else torch.randn(steps, envs, 2).double()).numpy()
    is_transition = np.arange(steps)[:, None] < lengths
    truncations = (np.arange(1, steps + 1)[:, None] == lengths) & is_truncated
    rewards = torch.randn(steps, envs).numpy() * is_transition

    values = {(t, n): agent.critic(torch.as_tensor(observations[t, n]))[0] for t in range(steps + 1) for n in range(3)}
    returns = {}
    for n, length in enumerate(lengths):
        later = values[length, n].item() * 7**0.5 if psi == "value_baseline" and is_truncated[n] else 0.0
        for t in reversed(range(length)):
            returns[t, n] = later = float(rewards[t, n]) + 0.95 * later
    weights = weights_by_definition(psi, returns, {step: v.item() * 7**0.5 for step, v in values.items()}, 2)
    rms = np.sqrt(np.mean(np.square([*earlier, *returns.values()])))
    policy_loss = value_loss = entropies = 0.0
    for (t, n), weight in zip(returns, weights, strict=True):
        output, action = agent.actor(torch.as_tensor(observations[t, n])), torch.as_tensor(actions[t, n])
        if agent.discrete:
            log_probs = output - output.exp().sum().log()
            log_prob, entropy = log_probs[action], -(log_probs.exp() * log_probs).sum()
        else:
            std = agent.log_std.exp()
            log_prob = (-(((action - output) / std) ** 2) / 2 - std.log() - math.log(2 * math.pi) / 2).sum()
            entropy = (std.log() + 0.5 * math.log(2 * math.pi * math.e)).sum()
        policy_loss = policy_loss - weight * log_prob / envs
        entropies = entropies + entropy
        value_loss = value_loss + (returns[t, n] / rms - values[t, n]) ** 2 / len(returns)
    expected = {"losses/policy_loss": policy_loss.item(), "losses/entropy": (entropies / len(returns)).item()}
    if psi == "value_baseline":
        errors = [g - values[step].item() * 7**0.5 for step, g in returns.items()]
        expected["losses/value_loss"] = value_loss.item()
        expected["losses/explained_variance"] = 1 - np.var(errors) / np.var(list(returns.values()))
    loss = policy_loss - 0.02 * entropies / envs
    parameters = list(agent.parameters())
    gradients = torch.autograd.grad(loss, parameters, materialize_grads=True, retain_graph=True)
    expected["losses/grad_norm"] = sum((g**2).sum() for g in gradients).sqrt().item()
    if psi == "value_baseline":
        loss = value_loss if "--value-warmup 4" in flags else loss + value_loss
    gradients = torch.autograd.grad(loss, parameters, materialize_grads=True)

    before = [p.detach().clone() for p in parameters]
    optimizer = torch.optim.SGD(parameters, lr=1.0)  # its step is the gradient
    for p in parameters:
        p.grad = torch.ones_like(p)  # left by an earlier step
    batch = observations, actions, rewards, truncations, is_transition
    metrics = reinforce.update(agent, optimizer, *batch, args)
    assert {k: x.item() for k, x in metrics.items()} == pytest.approx(expected, 1e-5)
    for p, old, gradient in zip(parameters, before, gradients, strict=True):
        torch.testing.assert_close(old - p.detach(), gradient, rtol=1e-5, atol=1e-6)


def test_the_steps_on_v_are_those_of_a_regression_on_g():
    """Adam steps on the mean square error; none of them moves π, although Adam's momentum is not 0."""
    torch.manual_seed(3)
    args = quick("--gamma", "0.9", "--value-steps", "4")
    agent = reinforce.ActorCritic(Box(-1, 1, (2,)), Discrete(2))
    critic, obs = copy.deepcopy(agent.critic), torch.randn(4, 1, 2)
    rewards, yes = np.array([[1.0], [-2.0], [3.0]], np.float32), np.ones((3, 1), bool)
    returns = torch.tensor([1 - 0.9 * 2 + 0.81 * 3, -2 + 0.9 * 3, 3.0])
    returns /= returns.square().mean().sqrt()
    regression = torch.optim.Adam(critic.parameters(), lr=0.01)
    for _ in range(4):
        loss = (critic(obs[:3, 0])[:, 0] - returns).square().sum() / 3
        regression.zero_grad()
        loss.backward()
        regression.step()
    optimizer = torch.optim.Adam(agent.parameters(), lr=0.01)
    metrics = reinforce.update(agent, optimizer, obs.numpy(), np.zeros((3, 1), int), rewards, ~yes, yes, args)
    assert metrics["losses/value_loss"].item() == pytest.approx(loss.item(), rel=1e-5)  # before the last step
    for p, q in zip(agent.critic.parameters(), critic.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-6)
    assert {int(optimizer.state[p]["step"]) for p in agent.actor.parameters()} == {1}


@pytest.mark.parametrize("psi", PSI)
def test_rewards_that_are_not_finite_change_no_weight(psi):
    agent = reinforce.ActorCritic(Box(-1, 1, (2,)), Discrete(2))
    before = [p.detach().clone() for p in agent.parameters()]
    actions, no, yes = np.zeros((3, 1), np.int64), np.zeros((3, 1), bool), np.ones((3, 1), bool)
    optimizer, rewards = torch.optim.Adam(agent.parameters()), np.full((3, 1), np.nan, np.float32)
    with pytest.raises(reinforce.RunError, match="the gradient is not finite: lower --learning-rate"):
        args = quick("--psi", psi)
        reinforce.update(agent, optimizer, np.zeros((4, 1, 2), np.float32), actions, rewards, no, yes, args)
    assert all(torch.equal(a, b) for a, b in zip(before, agent.parameters(), strict=True))


# Training


def test_a_run_that_ends_before_the_policy_learns_is_refused(capsys):
    with pytest.raises(SystemExit, match="2"):
        quick("--value-warmup", "1024")
    assert "argument --value-warmup: 1024 is not below --total-timesteps" in capsys.readouterr().err
    assert quick("--value-warmup", "1023").value_warmup == 1023
    assert quick("--value-warmup", "1024", "--psi", "elite").value_warmup == 1024


def recorded(monkeypatch, *flags):
    """Run train -> its result, the arguments of each update and of each log line, and the optimizer."""
    updates, logs, optimizers, update = [], [], [], reinforce.update

    def spy(agent, optimizer, *batch):
        updates.append([*(x.copy() for x in batch[:-1]), [group["lr"] for group in optimizer.param_groups]])
        optimizers[:] = [optimizer]
        return update(agent, optimizer, *batch)

    def log_progress(run, args, global_step, history, lengths, metrics):
        logs.append((global_step, list(history), list(lengths)))

    with monkeypatch.context() as patch:
        patch.setattr(reinforce, "update", spy)
        patch.setattr(reinforce, "log_progress", log_progress)
        agent, history = reinforce.train(quick(*flags))
    return agent, history, updates, logs, optimizers[0]


def check_uneven(start, total, num_envs, history, updates, logs):
    """Check a recorded run on Uneven against the known course of its episodes -> the step at which it stops."""
    expected, lengths_seen, expected_logs, run_start = [], [], [], start
    learning_rate = reinforce.parse_args([]).learning_rate
    for observations, actions, rewards, truncations, is_transition, rates in updates:
        assert start < total and np.allclose(rates, [learning_rate * (1 - start / total)])
        lengths, ends = observations[0, :, :2].astype(int).T
        # The steps of the longest episode, or those until the end of training.
        steps = next(s for s in range(1, 7) if s == lengths.max() or start + np.minimum(lengths, s).sum() >= total)
        t = np.arange(steps + 1)[:, None]
        assert len(observations) == steps + 1 and actions.shape == is_transition.shape == (steps, num_envs)
        assert (rewards.dtype, observations.dtype, actions.dtype) == (np.float32, np.float32, np.int64)
        course = np.broadcast_arrays(lengths, ends, t)
        assert np.array_equal(observations[t <= lengths], np.stack(course, -1)[t <= lengths])
        assert np.array_equal(is_transition, t[:-1] < lengths)
        assert np.array_equal(rewards, is_transition * (10 * lengths + t[:-1] + 1))
        last = t[1:] == np.minimum(lengths, steps)
        assert np.array_equal(truncations, last & ((ends == 1) | (lengths > steps)))
        for length in sorted(lengths[lengths <= steps]):
            step = start + np.minimum(lengths, length).sum()
            expected.append((step, 10.0 * length**2 + length * (length + 1) / 2))
            lengths_seen.append(length)
        first, start = start, start + is_transition.sum()
        if (start - run_start) // 50 > (first - run_start) // 50 or start >= total:
            expected_logs.append((start, expected[:], lengths_seen[-100:]))
    assert start >= total and history == expected and logs == expected_logs
    return start


@pytest.mark.parametrize("num_envs, total", [(4, 600), (1, 100), (64, 320), *((4, total) for total in range(3, 15))])
def test_every_batch_of_a_run_and_of_its_resumption(num_envs, total, monkeypatch, tmp_path):
    """Whole episodes except in the last batch, of every length and kind of end; the log lines; the learning rates."""
    flags = f"--env-id Uneven-v0 --num-envs {num_envs} --log-interval 50 --total-timesteps".split()
    _, history, updates, logs, _ = recorded(monkeypatch, *flags, str(total))
    stop = check_uneven(0, total, num_envs, history, updates, logs)
    (path,) = tmp_path.glob("runs/*/checkpoint.pt")
    assert torch.load(path, weights_only=True)["global_step"] == stop
    flags += [str(2 * stop), "--resume", str(path)]
    _, history, more_updates, logs, _ = recorded(monkeypatch, *flags)
    check_uneven(stop, 2 * stop, num_envs, history, more_updates, logs)
    if total > 99:  # every batch has different episodes
        batches = [tuple(observations[0, :, 0]) for observations, *_ in updates + more_updates]
        assert len(set(batches)) > min(5, len(batches) - 1)


def test_without_annealing_the_learning_rate_is_constant_and_equals_the_flag(monkeypatch, tmp_path):
    """Also in a resumed run, whose optimizer comes with the learning rate of the checkpoint."""
    flags = "--env-id ConstantReward-v0 --total-timesteps 12 --no-anneal-lr".split()
    _, _, updates, _, _ = recorded(monkeypatch, *flags, "--learning-rate", "0.5")
    assert [rates for *_, rates in updates] == [[0.5]] * 3
    (path,) = tmp_path.glob("runs/*/checkpoint.pt")
    flags = ["--resume", str(path), "--total-timesteps", "20", "--learning-rate", "0.125"]
    _, _, updates, _, _ = recorded(monkeypatch, *flags)
    assert [rates for *_, rates in updates] == [[0.125]] * 2


def test_continuous_actions_are_clipped_only_for_the_environment(monkeypatch):
    """Target is learned; it asserts that actions are inside its Box."""
    flags = "--env-id Target-v0 --num-envs 32 --total-timesteps 8000".split()
    agent, _, updates, _, optimizer = recorded(monkeypatch, *PROBE, *flags)
    actions = np.concatenate([actions[is_transition] for _, actions, _, _, is_transition, _ in updates])
    assert actions.shape[1:] == (1,) and actions.dtype == np.float32
    assert np.abs(actions).max() > 2  # log-probabilities belong to the actions as they were sampled
    assert agent(torch.zeros(1))[0].item() == pytest.approx(0.25, abs=0.1)  # [-1, 1] is rescaled to [-2, 2]
    assert agent.log_std < -0.1
    assert {id(p) for p in optimizer.param_groups[0]["params"]} == {id(p) for p in agent.parameters()}
    assert optimizer.defaults["betas"] == (0.9, 0.999) and optimizer.defaults["eps"] == 1e-8


def test_observations_are_normalized_by_the_statistics_of_all_transitions(monkeypatch, tmp_path):
    """Reset steps and finished environments do not count; checkpoints, resumed runs and evaluation use them."""
    flags = "--env-id Uneven-v0 --num-envs 3 --total-timesteps".split()
    agent, _, updates, _, _ = recorded(monkeypatch, *flags, "60")
    seen = np.concatenate([observations[:-1][is_transition] for observations, *_, is_transition, _ in updates])
    mean, var = seen.mean(0), seen.var(0)
    assert np.allclose(agent.obs_statistics.mean, mean, rtol=1e-5) and np.allclose(agent.obs_statistics.var, var, 1e-5)
    obs = np.array([[6.0, 0.0, 3.0], [1.0, 2.0, 1e9]], np.float32)
    normalized = torch.tensor(np.clip((obs - mean) / np.sqrt(var), -10, 10), dtype=torch.float32)
    for output, network in zip(agent(torch.tensor(obs)), (agent.actor, agent.critic), strict=True):
        torch.testing.assert_close(output.flatten(), network(normalized).flatten(), rtol=1e-4, atol=1e-5)
    (path,) = tmp_path.glob("runs/*/checkpoint.pt")
    resumed, _ = reinforce.train(quick("--resume", str(path), "--total-timesteps", "60"))  # nothing is left to train
    assert torch.equal(resumed.obs_statistics.mean, agent.obs_statistics.mean)
    assert int(resumed.obs_statistics.count) == len(seen)


def test_acting_and_learning_use_the_same_statistics(monkeypatch):
    """The outputs that acted are those in the update: with a step size of 0 only the statistics could differ."""
    acted, learned, forward = [], [], reinforce.ActorCritic.forward
    sample = reinforce.ActorCritic.sample
    monkeypatch.setattr(reinforce.ActorCritic, "sample", lambda self, x: acted.append(x.clone()) or sample(self, x))
    monkeypatch.setattr(
        reinforce.ActorCritic, "forward", lambda self, x: learned.append(out := forward(self, x)) or out
    )
    reinforce.train(quick(*"--env-id Uneven-v0 --num-envs 1 --total-timesteps 40 --psi reward_to_go".split()))
    outputs = torch.cat([output.detach() for output, _ in learned])  # a row per step: one environment has no idle steps
    assert len(learned) > 5
    torch.testing.assert_close(outputs, torch.cat(acted), rtol=1e-5, atol=1e-6)


def test_other_seeds_have_other_episodes_and_a_resumed_run_has_other_noise(monkeypatch, tmp_path):
    flags = "--env-id Acrobot-v1 --total-timesteps 1 --seed".split()
    one, two = (recorded(monkeypatch, *flags, seed)[2][0][0][0] for seed in "12")  # the first observations
    assert not {*map(tuple, one)} & {*map(tuple, two)}
    flags = "--env-id ConstantReward-v0 --num-envs 64 --learning-rate 0".split()
    one = recorded(monkeypatch, *flags, "--total-timesteps", "1")[2][0][1]
    (path,) = tmp_path.glob("runs/ConstantReward*/checkpoint.pt")
    two = recorded(monkeypatch, *flags, "--resume", str(path))[2][0][1]
    assert one.shape == two.shape and not np.array_equal(one, two)


@pytest.mark.parametrize("env_id", ["ObservationActionReward-v0", "Uneven-v0"])
def test_evaluation_is_greedy_and_seeded(env_id):
    """The first episode of each of 20 environments, where rewards depend on actions and where lengths differ."""
    torch.manual_seed(13)
    env, args, expected = gym.make(env_id), quick("--env-id", env_id), []
    agent = reinforce.ActorCritic(env.observation_space, env.action_space)
    for episode in range(20):
        obs, _ = env.reset(seed=reinforce.derive_seed(args.seed, 1) + episode)
        done, total = False, 0.0
        while not done:
            obs, reward, terminated, truncated, _ = env.step(int(agent.actor(torch.as_tensor(obs)).argmax()))
            done, total = terminated or truncated, total + reward
        expected.append(total)
    assert reinforce.evaluate(agent, args, 20) == expected and len(set(expected)) > 1


def test_evaluation_stops_without_a_time_limit_and_says_so(monkeypatch, capsys):
    monkeypatch.setattr(reinforce, "range", lambda count: range(count // 1000), raising=False)
    agent = reinforce.ActorCritic(probes.Probe.observation_space, probes.Probe.action_space)
    assert reinforce.evaluate(agent, quick("--env-id", "NoLimit-v0"), 2) == [100.0, 100.0]
    assert capsys.readouterr().out == "evaluation  2 of 2 episodes unfinished after 100,000 steps\n"


@pytest.mark.parametrize("name", "MultiDiscreteAction IntegerAction MatrixAction FromOne SameStep".split())
def test_unsupported_environments(name, tmp_path):
    env_id = f"{name}-v0"
    with pytest.raises(reinforce.RunError, match=f"--env-id {env_id}: needs Discrete actions counted from 0 or a"):
        reinforce.train(quick("--env-id", env_id))
    assert not list(tmp_path.iterdir())


# Probe environments

PROBE = "--num-envs 16 --total-timesteps 1600 --learning-rate 0.02 --gamma 0.9".split()


def learn(env_id, *flags):
    """Train on a probe -> the agent and a function that returns V of an observation, in units of rewards."""
    agent, _ = reinforce.train(quick(*PROBE, "--env-id", env_id, *flags))
    return agent, lambda obs: agent(torch.tensor([float(obs)]))[1].item() * agent.return_statistics.rms()


def test_probe_1_value_of_a_constant_reward():
    _, value = learn("ConstantReward-v0")
    assert value(0) == pytest.approx(1, abs=0.02)


def test_probe_2_value_depends_on_the_observation():
    _, value = learn("ObservationReward-v0")
    assert value(-1) == pytest.approx(-1, abs=0.02) and value(1) == pytest.approx(1, abs=0.02)


def test_probe_3_reward_one_step_later():
    _, value = learn("DelayedReward-v0")
    assert value(0) == pytest.approx(0.9, abs=0.02) and value(1) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("env_id", ["ActionReward-v0", "ObservationActionReward-v0"])
@pytest.mark.parametrize("psi", PSI)
def test_probes_4_and_5_reward_depends_on_the_action(env_id, psi):
    agent, _ = learn(env_id, "--psi", psi)
    assert reinforce.evaluate(agent, quick("--env-id", env_id), 20) == [1.0] * 20


def test_probe_6_a_truncated_episode_has_not_ended():
    """V = 1 / (1 - γ) = 10, although every episode is truncated after 5 steps, whose sum is 4.1."""
    _, value = learn("EndlessReward-v0", "--total-timesteps", "8000")
    assert value(0) == pytest.approx(10, rel=0.05)
