"""reinforce.py: its equations against independent definitions, the gradient of an enumerated MDP, branches, probes."""

import math

import gymnasium as gym
import numpy as np
import probes
import pytest
import torch
from gymnasium.spaces import Box, Discrete

import reinforce

T, N = 7, 5  # num_steps, num_envs of the random batches below


class Ragged(probes.Probe):
    """Episodes of 1 to 6 steps, half of which the clock cuts, whatever the actions; obs = (its length, t)."""

    observation_space = Box(-np.inf, np.inf, (2,), np.float32)

    def reset(self, *, seed=None, options=None):
        gym.Env.reset(self, seed=seed)
        self.t, self.length, self.terminates = 0, int(self.np_random.integers(1, 7)), self.np_random.random() < 0.5
        return np.array([self.length, 0], np.float32), {}

    def step(self, action):
        self.t += 1
        end, obs = self.t == self.length, np.array([self.length, self.t], np.float32)
        return obs, 10.0 * self.length + self.t, end and self.terminates, end and not self.terminates, {}


gym.register("Ragged-v0", entry_point=Ragged)
gym.register("Endless-v0", entry_point=probes.EndlessReward)


def quick(*flags):
    """Arguments of a run that lasts a blink; later flags win."""
    flags = ["--total-timesteps", "1024", "--num-envs", "4", "--eval-episodes", "1", *flags]
    return reinforce.parse_args(["--wandb-mode", "disabled", *flags])


def random_batch(seed):
    """Rewards (0 after the end), V(s_t), valid, each (T, N): episodes of 1 to T steps, one of them of T."""
    rng = np.random.default_rng(seed)
    lengths = np.append(rng.integers(1, T + 1, N - 1), T)
    valid = np.arange(T)[:, None] < lengths
    rewards, values = rng.normal(size=(2, T, N))
    return torch.as_tensor(rewards * valid), torch.as_tensor(values), torch.as_tensor(valid)


# Returns and weights


@pytest.mark.parametrize("gamma", [0.0, 0.9, 1.0])
@pytest.mark.parametrize("seed", range(3))
def test_returns_are_the_discounted_sums(gamma, seed):
    rewards, _, valid = random_batch(seed)
    expected = [[sum(gamma ** (k - t) * rewards[k, n].item() for k in range(t, T)) for n in range(N)] for t in range(T)]
    returns = reinforce.discounted_returns(rewards, gamma)
    np.testing.assert_allclose(returns, expected, rtol=0, atol=1e-12)
    assert (returns[~valid] == 0).all()


def test_returns_take_linear_time():
    rewards = torch.ones(20_000, 1)
    assert reinforce.discounted_returns(rewards, 1.0).flatten().tolist() == list(range(20_000, 0, -1))


@pytest.mark.parametrize("seed", range(3))
def test_psi_weights(seed):
    """Each kind, episode by episode, on the steps that count."""
    rewards, values, valid = random_batch(seed)
    returns = reinforce.discounted_returns(rewards, 0.9)
    weights = {psi: reinforce.psi_weights(psi, returns, values, valid, 0.3) for psi in reinforce.PSI}
    mean = np.mean([returns[t, n] for t in range(T) for n in range(N) if valid[t, n]])
    best = sorted(range(N), key=lambda n: -returns[0, n])[:2]  # 2 is 0.3 * 5, rounded up
    for t, n in valid.nonzero().tolist():
        expected = {
            "total_return": returns[0, n],
            "reward_to_go": returns[t, n],
            "mean_baseline": returns[t, n] - mean,
            "value_baseline": returns[t, n] - values[t, n],
            "elite": float(n in best),
        }
        for psi in reinforce.PSI:
            assert weights[psi][t, n].item() == pytest.approx(float(expected[psi]), abs=1e-12), psi
    assert len(expected) == len(reinforce.PSI) and all(w.shape == (T, N) for w in weights.values())


@pytest.mark.parametrize("fraction, num_envs, expected", [(0.07, 100, 7), (0.25, 9, 3), (1.0, 4, 4), (0.0, 4, 1)])
def test_the_elite_are_the_best_episodes_rounded_up(fraction, num_envs, expected):
    returns = torch.randn(3, num_envs)
    weights = reinforce.psi_weights("elite", returns, returns, returns > 0, fraction)
    chosen = weights[0] == 1
    assert chosen.sum() == expected and weights.sum() == 3 * expected
    assert chosen.all() or returns[0][chosen].min() > returns[0][~chosen].max()


# Loss


def test_loss_and_its_gradient():
    rng = np.random.default_rng(0)
    log_prob, entropy, weights = (torch.as_tensor(rng.normal(size=(T, N))).requires_grad_() for _ in range(3))
    valid = random_batch(0)[2]
    loss, metrics = reinforce.reinforce_loss(log_prob, entropy, weights, valid, 0.01)
    rows = valid.nonzero().tolist()
    policy_loss = -sum(log_prob[t, n].item() * weights[t, n].item() for t, n in rows) / N
    total_entropy = sum(entropy[t, n].item() for t, n in rows)
    assert loss.item() == pytest.approx(policy_loss - 0.01 * total_entropy / N, abs=1e-12)
    assert metrics["policy_loss"].item() == pytest.approx(policy_loss, abs=1e-12)
    assert metrics["entropy"].item() == pytest.approx(total_entropy / len(rows), abs=1e-12)
    loss.backward()
    torch.testing.assert_close(log_prob.grad, -weights.detach() * valid / N)  # raises what was better than expected
    torch.testing.assert_close(entropy.grad, -0.01 * valid.double() / N)  # descent raises the entropy
    assert weights.grad is None  # a constant: the policy's loss must not move the critic


# The gradient of a known MDP: two states that go on and an end, two actions, at most HORIZON steps

HORIZON, SAMPLES = 3, 100_000
NEXT = torch.tensor([[[0.3, 0.5, 0.2], [0.1, 0.3, 0.6]], [[0.6, 0.2, 0.2], [0.2, 0.7, 0.1]]]).double()  # s, a -> s'
REWARD = torch.tensor([[1.0, 3.0], [-2.0, 0.5]]).double()  # s, a; every episode starts in state 0
LOGITS = torch.tensor(
    [[[0.2, -0.3], [0.5, 0.1]], [[-0.4, 0.6], [0.0, 0.3]], [[0.1, 0.7], [-0.2, 0.4]]]
).double()  # t, s


def expected_return(logits, gamma, t=0, s=0):
    """E[G_t | s_t = s] by going through all that can happen; differentiable in logits."""
    if t == HORIZON or s == 2:
        return 0.0
    policy = logits[t, s].softmax(-1)
    return sum(
        policy[a]
        * (REWARD[s, a] + gamma * sum(NEXT[s, a, z] * expected_return(logits, gamma, t + 1, z) for z in range(3)))
        for a in range(2)
    )


def true_gradient(gamma):
    """Of E[G_0], in the logits."""
    logits = LOGITS.clone().requires_grad_()
    return torch.autograd.grad(expected_return(logits, gamma), logits)[0]


def sampled_episodes(seed, samples=SAMPLES, horizon=HORIZON):
    """States, actions, rewards, valid of so many episodes, each (horizon, samples)."""
    rng = torch.Generator().manual_seed(seed)
    state, rows = torch.zeros(samples, dtype=torch.int64), []
    for t in range(horizon):
        valid = state < 2
        s = state.clamp(max=1)
        action = torch.multinomial(LOGITS[t].softmax(-1)[s], 1, generator=rng).squeeze(-1)
        rows.append((s, action, REWARD[s, action] * valid, valid))
        state = torch.where(valid, torch.multinomial(NEXT[s, action], 1, generator=rng).squeeze(-1), 2)
    return [torch.stack(column) for column in zip(*rows, strict=True)]


def estimates(psi, gamma, batch=SAMPLES, seed=0, baseline=None, **sizes):
    """-∇L of each sampled batch of episodes in the logits, by autograd: (num_batches, HORIZON, 2, 2)."""
    states, actions, rewards, valid = sampled_episodes(seed, **sizes)
    returns = reinforce.discounted_returns(rewards, gamma)
    if baseline is None:
        baseline = torch.tensor([[0.0, -1.0], [1.0, 0.0], [2.0, 1.0]]).double()  # t, s: any function of them will do
    values = torch.stack([baseline[t, s] for t, s in enumerate(states)])
    parts = zip(*(x.split(batch, dim=1) for x in (returns, values, valid)), strict=True)
    weights = torch.cat([reinforce.psi_weights(psi, *part, 0.25) for part in parts], dim=1)
    samples = states.shape[1]
    logits = LOGITS.expand(samples, -1, -1, -1).clone().requires_grad_()  # one's own for each episode, so its gradient
    t, n = torch.arange(len(states))[:, None], torch.arange(samples)
    log_probs = logits[n, t, states].log_softmax(-1)
    log_prob = log_probs.gather(-1, actions.unsqueeze(-1)).squeeze(-1)
    loss, _ = reinforce.reinforce_loss(log_prob, torch.zeros_like(log_prob), weights, valid, 0.0)
    gradients = -torch.autograd.grad(loss, logits)[0] * samples  # undoes the mean over all the episodes
    return gradients if batch == SAMPLES else gradients.unflatten(0, (-1, batch)).mean(1)


def deviation(gradients, expected):
    """How many standard errors the mean over samples lies from what is expected, at most."""
    error = gradients.std(0) / math.sqrt(len(gradients))
    return ((gradients.mean(0) - expected) / error.clamp(min=1e-9)).abs().max().item()


def test_the_true_gradient_by_finite_differences():
    gradient, eps = true_gradient(0.9), 1e-6
    for i in np.ndindex(*LOGITS.shape):
        step = torch.zeros_like(LOGITS)
        step[i] = eps
        slope = (expected_return(LOGITS + step, 0.9) - expected_return(LOGITS - step, 0.9)) / (2 * eps)
        assert gradient[i].item() == pytest.approx(float(slope), abs=1e-8)


@pytest.mark.parametrize(
    "psi, gamma", [("total_return", 1.0), ("reward_to_go", 1.0), ("value_baseline", 1.0), ("total_return", 0.8)]
)
def test_unbiased_weights_give_the_gradient_of_the_expected_return(psi, gamma):
    """Within 3.5 standard errors in each of 10 entries, from 100,000 episodes; no batch is involved in these."""
    gradients = estimates(psi, gamma)
    assert len(gradients) == SAMPLES and deviation(gradients, true_gradient(gamma)) < 3.5
    assert deviation(gradients, 1.1 * true_gradient(gamma)) > 7  # it would notice


@pytest.mark.parametrize("psi", ["reward_to_go", "value_baseline"])
def test_below_gamma_1_the_missing_discount_of_time_is_a_bias(psi):
    """With γ^t in front, as in the theorem, it goes away: Departs."""
    gradients = estimates(psi, 0.8)
    assert deviation(gradients, true_gradient(0.8)) > 7
    discount = 0.8 ** torch.arange(HORIZON).double()[:, None, None]
    assert deviation(gradients * discount, true_gradient(0.8)) < 3.5


@pytest.mark.parametrize("batch", [2, 5, 20])
def test_the_bias_of_mean_baseline_is_of_order_1_over_n(batch):
    """Episodes of one step: the mean holds the episode itself, so that on average (1 - 1/N) of the gradient is left."""
    gradients = estimates("mean_baseline", 1.0, batch, horizon=1)
    states, actions, rewards, _ = sampled_episodes(1, 10, horizon=1)
    assert (rewards[0] == REWARD[states[0], actions[0]]).all()
    policy = LOGITS[0, 0].softmax(-1)
    gradient = policy * (REWARD[0] - policy @ REWARD[0])  # of Σ π(a) r(a)
    assert deviation(gradients[:, 0, 0], (1 - 1 / batch) * gradient) < 3.5
    assert batch == 20 or deviation(gradients[:, 0, 0], gradient) > 7


def test_elite_follows_another_objective():
    gradients, gradient = estimates("elite", 1.0, 4), true_gradient(1.0)
    mean = gradients.mean(0)
    slope = (mean * gradient).sum() / gradient.square().sum()
    assert slope > 0 and deviation(gradients, slope * gradient) > 7  # it helps, and is no multiple of the gradient


def test_causality_and_a_baseline_lower_the_variance():
    """At equal policy and episodes, with V itself as the baseline."""
    value = torch.tensor([[expected_return(LOGITS, 1.0, t, s) for s in range(2)] for t in range(HORIZON)]).double()
    kinds = "total_return", "reward_to_go", "value_baseline"
    total, to_go, advantage = (estimates(psi, 1.0, baseline=value).var(0).sum() for psi in kinds)
    assert advantage < 0.8 * to_go < 0.8 * total


# One update, written out


@pytest.mark.parametrize("space", [Discrete(2), Box(-1, 1, (2,))], ids=["discrete", "continuous"])
@pytest.mark.parametrize("psi", reinforce.PSI)
def test_one_update_is_the_one_written_out_by_hand(psi, space):
    """On episodes of 6, 3, 4 steps, the first and last cut by the clock: weights to 1e-6."""
    torch.manual_seed(1)
    args = quick("--psi", psi, "--elite-fraction", "0.5", "--gamma", "0.95", "--ent-coef", "0.02")
    args.max_grad_norm, learning_rate, eps = 0.3, 1e-2, 1e-5
    agent = reinforce.ActorCritic(Box(-1, 1, (2,)), space).double()
    before = {name: p.detach().clone() for name, p in agent.named_parameters()}
    lengths, clock, steps, envs = (6, 3, 4), (True, False, True), 6, 3
    observations = torch.randn(steps + 1, envs, 2).double()
    actions = torch.randint(2, (steps, envs)) if isinstance(space, Discrete) else torch.randn(steps, envs, 2).double()
    valid = torch.arange(steps)[:, None] < torch.tensor(lengths)
    rewards = torch.randn(steps, envs).double() * valid
    cut = torch.zeros(steps, envs, dtype=torch.bool)
    for n in range(envs):
        cut[lengths[n] - 1, n] = clock[n]

    with torch.no_grad():
        value = {(t, n): agent.critic(observations[t, n]).item() for t in range(steps + 1) for n in range(envs)}
    returns = {}
    for n, length in enumerate(lengths):
        later = value[length, n] if psi == "value_baseline" and clock[n] else 0.0
        for t in reversed(range(length)):
            returns[t, n] = later = rewards[t, n].item() + 0.95 * later
    best = sorted(range(envs), key=lambda n: -returns[0, n])[:2]
    loss = value_loss = 0.0
    for t, n in returns:
        output = agent.actor(observations[t, n])
        if isinstance(space, Discrete):
            log_probs = output - output.exp().sum().log()
            log_prob, entropy = log_probs[actions[t, n]], -(log_probs.exp() * log_probs).sum()
        else:
            std = agent.log_std.exp()
            log_prob = (-(((actions[t, n] - output) / std) ** 2) / 2 - std.log() - math.log(2 * math.pi) / 2).sum()
            entropy = (std.log() + 0.5 * math.log(2 * math.pi * math.e)).sum()
        weight = {
            "total_return": returns[0, n],
            "reward_to_go": returns[t, n],
            "mean_baseline": returns[t, n] - sum(returns.values()) / len(returns),
            "value_baseline": returns[t, n] - value[t, n],
            "elite": float(n in best),
        }[psi]
        loss = loss - (weight * log_prob + 0.02 * entropy) / envs
        value_loss = value_loss + (returns[t, n] - agent.critic(observations[t, n])[0]) ** 2 / len(returns)
    if psi == "value_baseline":
        loss = loss + value_loss
    named = {name: p for name, p in agent.named_parameters() if psi == "value_baseline" or "critic" not in name}
    gradients = dict(zip(named, torch.autograd.grad(loss, list(named.values())), strict=True))
    norm = math.sqrt(sum((g**2).sum().item() for g in gradients.values()))
    assert norm > args.max_grad_norm, "the batch must exercise the clipping"

    optimizer = torch.optim.Adam(agent.parameters(), lr=learning_rate, eps=eps, fused=True)
    metrics = reinforce.update(agent, optimizer, observations, actions, rewards, cut, valid, args)
    assert metrics["grad_norm"].item() == pytest.approx(norm, rel=1e-6)
    assert ("value_loss" in metrics) == (psi == "value_baseline")
    for name, p in agent.named_parameters():
        if name not in gradients:
            assert torch.equal(p.detach(), before[name])  # the critic has nothing to learn
            continue
        g = gradients[name] * args.max_grad_norm / norm
        expected = before[name] - learning_rate * g / (g.abs() + eps)  # Adam's first step: m / √v = g / |g|
        torch.testing.assert_close(p.detach(), expected, rtol=0, atol=1e-6)
        assert (p.detach() - before[name]).abs().max() > 1e-4


@pytest.mark.parametrize("psi", reinforce.PSI)
def test_what_is_played_after_the_end_teaches_nothing(psi):
    torch.manual_seed(0)
    agent = reinforce.ActorCritic(Box(-1, 1, (2,)), Discrete(2))
    rewards, _, valid = random_batch(1)
    last = valid & ~torch.cat([valid[1:], torch.zeros(1, N, dtype=torch.bool)])
    observations, actions = torch.randn(T + 1, N, 2), torch.randint(2, (T, N))
    seen = torch.cat([torch.ones(1, N, dtype=torch.bool), valid])  # with the last observation of each episode
    args = quick("--psi", psi, "--ent-coef", "0.1")

    def gradient(observations, actions):
        optimizer = torch.optim.SGD(agent.parameters(), lr=0.0)
        reinforce.update(agent, optimizer, observations, actions, rewards.float(), last, valid, args)
        return torch.cat([p.grad.flatten() for p in agent.parameters() if p.grad is not None])

    reference = gradient(observations, actions)
    changed = torch.where(seen[..., None], observations, 9.0), torch.where(valid, actions, 1 - actions)
    torch.testing.assert_close(gradient(*changed), reference, rtol=1e-6, atol=1e-6)
    assert not torch.allclose(reference, gradient(observations, torch.where(valid, 1 - actions, actions)))


# Policy


def test_the_first_policy_has_no_preference():
    assert reinforce.ActorCritic(Box(-1, 1, (4,)), Discrete(2))(torch.randn(99, 4))[0].abs().max() < 0.1


@pytest.mark.parametrize("space", [Discrete(3), Box(-1, 1, (3,))], ids=["discrete", "continuous"])
def test_actions_are_drawn_from_the_policy_that_is_scored(space):
    """The mean of ∇log π over its own actions is 0: sample and log_prob_and_entropy speak of one distribution."""
    torch.manual_seed(0)
    agent = reinforce.ActorCritic(Box(-1, 1, (4,)), space)
    parameters = torch.tensor([0.0, 1.0, -1.0]).expand(100_000, 3).clone().requires_grad_()
    actions = agent.sample(parameters.detach()).detach()
    log_prob, entropy = agent.log_prob_and_entropy(parameters, actions)
    scores = torch.autograd.grad(log_prob.sum(), parameters)[0]
    assert deviation(scores, 0.0) < 4
    error = log_prob.std() / math.sqrt(len(log_prob))
    assert abs(-log_prob.mean() - entropy[0]) < 4 * error + 1e-6  # H = -E[log π]
    assert agent.greedy(parameters[0]).tolist() == (1 if isinstance(space, Discrete) else [0.0, 1.0, -1.0])


# What train hands to the update


def recorded(monkeypatch, *flags):
    """Run train and return what each update received, copies in the order of its arguments, and train's result."""
    calls, original = [], reinforce.update

    def update(agent, optimizer, *tensors_and_args):
        *tensors, _ = tensors_and_args
        calls.append([x.numpy().copy() for x in tensors] + [[group["lr"] for group in optimizer.param_groups]])
        return original(agent, optimizer, *tensors_and_args)

    monkeypatch.setattr(reinforce, "update", update)
    return calls, reinforce.train(quick(*flags))


def test_batches_are_one_complete_episode_of_every_environment(monkeypatch):
    """Every row against the script of the environment; ends, time limits and the rows after them; the history."""
    calls, (_, history) = recorded(monkeypatch, "--env-id", "Ragged-v0", "--total-timesteps", "500")
    expected, start, kinds = [], 0, set()
    for observations, actions, rewards, cut, valid, _ in calls:
        lengths = observations[0, :, 0].astype(int)
        assert len(rewards) == lengths.max() and len(observations) == len(rewards) + 1
        assert rewards.dtype == observations.dtype == np.float32 and actions.dtype == np.int64
        assert np.array_equal(valid, np.arange(len(rewards))[:, None] < lengths)
        for n, length in enumerate(lengths):
            assert observations[: length + 1, n].tolist() == [[length, t] for t in range(length + 1)]
            assert rewards[:, n].tolist() == [10 * length + t + 1 if t < length else 0 for t in range(len(rewards))]
            assert not cut[np.arange(len(cut)) != length - 1, n].any()
            kinds.add(bool(cut[length - 1, n]))
        for length in sorted(lengths):
            played = sum(min(length, other) for other in lengths)
            expected.append((start + played, 10.0 * length**2 + length * (length + 1) / 2))
        start += lengths.sum()
    assert history == expected and kinds == {True, False} and len(calls) > 20
    assert len({tuple(call[0][0, :, 0]) for call in calls}) > 10  # each batch has episodes of its own


def test_episodes_that_are_logged(monkeypatch):
    seen, log = [], reinforce.log_progress
    spy = lambda *args: seen.append(list(args[3])) or log(*args)  # noqa: E731
    monkeypatch.setattr(reinforce, "log_progress", spy)
    _, history = reinforce.train(quick("--env-id", "Ragged-v0", "--total-timesteps", "2048"))
    assert [value for value, _ in seen[-1]] == [value for _, value in history[-100:]] and len(history) > 100
    assert all(value == 10 * length**2 + length * (length + 1) / 2 for value, length in seen[-1])


def test_the_budget_is_not_exceeded(monkeypatch, tmp_path):
    """The batch in which the steps run out is not learned from, and a run that is complete stays so."""
    for total in range(40, 60):
        flags = ["--env-id", "Ragged-v0", "--total-timesteps", str(total), "--run-dir", f"runs/{total}"]
        calls, (_, history) = recorded(monkeypatch, *flags)
        learned = sum(call[4].sum() for call in calls)
        monkeypatch.undo()
        monkeypatch.chdir(tmp_path)
        assert learned <= total and history[-1][0] == learned and len(history) == 4 * len(calls)
        (path,) = tmp_path.glob(f"runs/{total}/*/checkpoint.pt")
        assert torch.load(path, weights_only=True)["global_step"] == total
        _, history = reinforce.train(quick(*flags, "--resume", str(path)))
        assert history == []
    longer, _ = recorded(monkeypatch, "--env-id", "Ragged-v0", "--total-timesteps", "400")
    fits = np.cumsum([call[4].sum() for call in longer])
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    for total in (fits[2], fits[2] - 1):  # to the step: a batch that fits is learned from
        calls, _ = recorded(monkeypatch, "--env-id", "Ragged-v0", "--total-timesteps", str(total))
        assert len(calls) == (3 if total == fits[2] else 2)
        monkeypatch.undo()
        monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("flags", ["--total-timesteps 3", "--env-id Endless-v0", "--total-timesteps 60"])
def test_not_one_batch(flags):
    """Too few steps, or an environment whose episodes do not end."""
    with pytest.raises(ValueError, match=r"--total-timesteps .*not enough for one batch of 4 episodes") as error:
        reinforce.train(quick(*flags.split()))
    assert "\n" not in str(error.value)


def test_a_resumed_run_without_a_batch_left_is_evaluated(tmp_path):
    agent, _ = reinforce.train(quick())
    (path,) = tmp_path.glob("runs/*/checkpoint.pt")
    resumed, history = reinforce.train(quick("--resume", str(path), "--total-timesteps", "1030"))
    assert history == [] and all(
        torch.equal(a, b) for a, b in zip(agent.parameters(), resumed.parameters(), strict=True)
    )


def test_learning_rates_fall_to_zero(monkeypatch):
    flags = "--env-id EndlessReward-v0 --learning-rate 0.1 --value-learning-rate 0.2 --num-envs 5".split()
    calls, _ = recorded(monkeypatch, *flags, "--total-timesteps", "100")  # 25 steps a batch
    assert np.allclose([call[-1] for call in calls], [(0.1, 0.2), (0.075, 0.15), (0.05, 0.1), (0.025, 0.05)])
    monkeypatch.undo()
    calls, _ = recorded(monkeypatch, *flags, "--total-timesteps", "100", "--no-anneal-lr")
    assert [call[-1] for call in calls] == [[0.1, 0.2]] * 4


def test_a_step_can_be_terminated_and_truncated_at_once(monkeypatch):
    gym.register("Both-v0", entry_point=probes.DelayedReward, max_episode_steps=2)
    calls, _ = recorded(monkeypatch, "--env-id", "Both-v0", "--total-timesteps", "100")
    assert calls and not any(call[3].any() for call in calls)
    del gym.registry["Both-v0"]


def test_continuous_actions_are_clipped_only_at_the_door(monkeypatch):
    calls, _ = recorded(monkeypatch, "--env-id", "Target-v0")  # which asserts that its actions lie in the Box
    actions = np.concatenate([call[1] for call in calls])
    assert actions.shape[-1] == 1 and actions.dtype == np.float32
    assert np.abs(actions).max() > 2  # the log-probabilities are those of the actions as they were drawn


# Branches


@pytest.mark.parametrize("flags", [*(f"--psi {psi}" for psi in reinforce.PSI), "--num-envs 1", "--eval-episodes 0"])
def test_a_short_run(flags):
    agent, history = reinforce.train(quick("--total-timesteps", "600", *flags.split()))
    assert history and all(0 < step <= 600 and value > 0 for step, value in history)
    assert all(p.isfinite().all() for p in agent.parameters())


def test_unknown_psi(capsys):
    with pytest.raises(SystemExit) as stop:
        reinforce.parse_args(["--psi", "advantage"])
    assert stop.value.code == 2 and "argument --psi" in capsys.readouterr().err


def test_a_video_of_no_episode(capsys):
    with pytest.raises(SystemExit) as stop:
        reinforce.parse_args(["--capture-video", "--eval-episodes", "0"])
    assert stop.value.code == 2 and "argument --capture-video" in capsys.readouterr().err


def test_a_checkpoint_brings_everything_back(tmp_path):
    reinforce.train(quick())
    (path,) = tmp_path.glob("runs/*/checkpoint.pt")
    saved = torch.load(path, weights_only=True)
    torch.manual_seed(9)
    agent = reinforce.ActorCritic(Box(-1, 1, (4,)), Discrete(2))
    optimizer = reinforce.make_optimizer(agent, quick())
    assert reinforce.load_checkpoint(quick("--resume", str(path)), agent, optimizer) == (1024, saved["wandb_id"])
    assert all(torch.equal(p, saved["agent"][name]) for name, p in agent.named_parameters())
    assert torch.equal(torch.get_rng_state(), saved["torch_rng"])
    state, expected = optimizer.state_dict()["state"], saved["optimizer"]["state"]
    assert [len(group["params"]) for group in optimizer.param_groups] == [6, 6]  # all of π, all of V
    assert len(expected) == 12
    assert all(torch.equal(state[i]["exp_avg_sq"], expected[i]["exp_avg_sq"]) for i in expected)


@pytest.mark.parametrize("psi", ["value_baseline", "elite"])
def test_a_resumed_run_is_the_run_that_was_not_interrupted(psi, tmp_path, monkeypatch):
    """Bit for bit: weights, optimizer, random numbers, schedule and episodes go on from the end of a batch."""
    save, saved = reinforce.save_checkpoint, []

    def keep_the_first(folder, *rest):
        save(folder, *rest)
        if not saved:
            saved.append(rest[3])
            (folder / "checkpoint.pt").rename(tmp_path / "middle.pt")

    monkeypatch.setattr(reinforce, "save_checkpoint", keep_the_first)
    flags = ["--psi", psi, "--checkpoint-interval", "500"]
    whole, history = reinforce.train(quick(*flags))
    rest, later = reinforce.train(quick(*flags, "--resume", "middle.pt"))
    assert 0 < saved[0] < 1024 and later == [point for point in history if point[0] > saved[0]]
    assert later and all(torch.equal(a, b) for a, b in zip(whole.parameters(), rest.parameters(), strict=True))
    ids = {torch.load(p, weights_only=True)["wandb_id"] for p in tmp_path.glob("runs/*/checkpoint.pt")}
    assert len(ids) == 1


def test_the_seed_draws_the_network_and_the_episodes(monkeypatch):
    (one, _), (two, _) = (recorded(monkeypatch, "--learning-rate", "0", "--seed", seed) for seed in "12")
    assert not np.array_equal(one[0][0][0], two[0][0][0])
    one, two = (reinforce.train(quick("--learning-rate", "0", "--seed", seed))[0] for seed in "12")
    assert not torch.equal(one.actor[0].weight, two.actor[0].weight)


def test_a_gradient_that_is_not_finite_changes_no_weight():
    agent = reinforce.ActorCritic(Box(-1, 1, (2,)), Discrete(2))
    before = [p.detach().clone() for p in agent.parameters()]
    actions, no, yes = torch.zeros(3, 1, dtype=torch.int64), torch.zeros(3, 1), torch.ones(3, 1)
    optimizer = torch.optim.Adam(agent.parameters())
    reinforce.update(agent, optimizer, torch.zeros(4, 1, 2), actions, yes * torch.nan, no, yes, quick())
    assert all(torch.equal(a, b) for a, b in zip(before, agent.parameters(), strict=True))


def test_adam_has_no_momentum(monkeypatch):
    seen, update = [], reinforce.update
    spy = lambda agent, optimizer, *rest: seen.append(optimizer.defaults) or update(agent, optimizer, *rest)  # noqa: E731
    monkeypatch.setattr(reinforce, "update", spy)
    reinforce.train(quick())
    assert seen[0]["betas"] == (0.0, 0.999) and seen[0]["eps"] == 1e-5


def test_nothing_warns(recwarn):
    reinforce.train(quick())
    assert not [str(warning.message) for warning in recwarn if "reinforce" in warning.filename]


def test_evaluation_is_greedy_and_seeded():
    torch.manual_seed(0)
    agent, args = reinforce.ActorCritic(Box(-1, 1, (4,)), Discrete(2)), quick("--eval-episodes", "3")
    returns = reinforce.evaluate(agent, args)
    assert len(returns) == 3 and reinforce.evaluate(agent, args) == returns
    env, expected = gym.make("CartPole-v1"), []
    for episode in range(3):
        obs, _ = env.reset(seed=reinforce.env_seed(args.seed, 1, episode))
        done, total = False, 0.0
        while not done:
            obs, reward, terminated, truncated, _ = env.step(int(agent.actor(torch.as_tensor(obs)).argmax()))
            done, total = terminated or truncated, total + reward
        expected.append(total)
    assert returns == expected


@pytest.mark.parametrize(
    "env_id",
    ["DictObservation-v0", "ImageObservation-v0", "MultiDiscreteAction-v0", "IntegerAction-v0", "FrozenLake-v1"],
)
def test_environments_that_it_cannot_take(env_id, tmp_path):
    with pytest.raises(ValueError, match=f"--env-id {env_id}: takes flat Box observations"):
        reinforce.train(quick("--env-id", env_id))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("env_id", ["NeedsArgument-v0", "SameStep-v0"])
def test_environments_that_fail(env_id, tmp_path):
    with pytest.raises(ValueError, match=f"--env-id {env_id}"):
        reinforce.train(quick("--env-id", env_id))
    assert not list(tmp_path.iterdir())


# Probe environments

PROBE = "--num-envs 8 --learning-rate 0.01 --gamma 0.9 --value-learning-rate 0.01 --eval-episodes 20".split()


def learn(env_id, *flags):
    """Train on a probe -> the agent and a function that gives V of an observation."""
    agent, _ = reinforce.train(quick(*PROBE, "--env-id", env_id, "--total-timesteps", "4000", *flags))
    return agent, lambda obs: agent(torch.tensor([float(obs)]))[1].item()


def test_probe_1_value_of_a_constant_reward():
    _, value = learn("ConstantReward-v0")
    assert value(0) == pytest.approx(1, abs=0.05)


def test_probe_2_value_depends_on_the_observation():
    _, value = learn("ObservationReward-v0")
    assert value(-1) == pytest.approx(-1, abs=0.05) and value(1) == pytest.approx(1, abs=0.05)


def test_probe_3_reward_one_step_later():
    _, value = learn("DelayedReward-v0")
    assert value(0) == pytest.approx(0.9, abs=0.05) and value(1) == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("psi", reinforce.PSI)
@pytest.mark.parametrize("env_id", ["ActionReward-v0", "ObservationActionReward-v0"])
def test_probes_4_and_5_reward_depends_on_the_action(env_id, psi):
    agent, _ = learn(env_id, "--psi", psi)
    assert reinforce.evaluate(agent, quick(*PROBE, "--env-id", env_id)) == [1.0] * 20


def test_probe_6_a_time_limit_is_no_end():
    """V = 1 / (1 - γ) = 10, though every episode is cut after 5 steps, whose sum is 4.1."""
    _, value = learn("EndlessReward-v0", "--total-timesteps", "20000")
    assert value(0) == pytest.approx(10, rel=0.05)


def test_probe_7_a_continuous_action():
    agent, _ = learn("Target-v0", "--total-timesteps", "8000")
    assert agent(torch.zeros(1))[0].item() == pytest.approx(0.5, abs=0.1)
