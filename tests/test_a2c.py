"""Test a2c.py: equations against independent definitions, the data that train passes to them, probe environments."""

import itertools
import math

import gymnasium as gym
import numpy as np
import probes
import pytest
import torch
from gymnasium.spaces import Box, Discrete
from torch.nn.utils import parameters_to_vector

import a2c

T, N = 8, 4  # num_steps, num_envs of the random rollouts
ROLLOUT = "observations actions rewards terminations dones is_transition".split()  # in the order of update's arguments


def quick(*flags):
    """Return the arguments of a very short run; later flags override earlier ones."""
    short = "--wandb-mode disabled --num-envs 16 --num-steps 8 --total-timesteps 1024 --eval-episodes 0"
    return a2c.parse_args([*short.split(), *flags])


def random_rollout(seed, discrete=True):
    """Return update's arrays in float64: episodes end in every way, and reset steps have absurd rewards."""
    rng = np.random.default_rng(seed)
    terminations, truncations = rng.random((2, T, N)) < 0.2
    dones, is_transition = terminations | truncations, np.ones((T, N), bool)
    is_transition[0] = np.arange(N) > 0  # environment 0 ended with the previous rollout
    for t in range(T):
        dones[t] &= is_transition[t]
        is_transition[t + 1 : t + 2] = ~dones[t]
    terminations &= dones
    assert (dones & ~terminations).any() and terminations[:-1].any() and not dones[-1].all()
    actions = rng.integers(2, size=(T, N)) if discrete else rng.normal(size=(T, N, 2))
    rewards = np.where(is_transition, rng.normal(size=(T, N)), 1e3)
    return rng.normal(size=(T + 1, N, 2)), actions, rewards, terminations, dones, is_transition


# Statistics


@pytest.mark.parametrize("shape", [(), (3,), (2, 4)])
def test_running_statistics_are_those_of_all_samples(shape):
    """After each of several batches, of one row or more, arrays or tensors; the initial values do not count."""
    statistics, rng = a2c.RunningStatistics(shape), np.random.default_rng(0)
    initial = statistics.mean, statistics.var
    assert not initial[0].any() and (initial[1] == 1).all() and statistics.count == 0
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
    statistics = a2c.RunningStatistics(())
    assert statistics.rms() == 1.0
    statistics.update(np.zeros(9))
    assert 0 < statistics.rms() < 1e-3


# Advantages


def gae(rewards, values, terminations, dones, gamma, gae_lambda):
    """Compute eq. 16 as a sum, A_t = Σ_l (γλ)^l δ_t+l, up to the end of the episode or rollout."""
    advantages = np.zeros_like(rewards)
    for t, n in np.ndindex(rewards.shape):
        for k in range(t, len(rewards)):
            bootstrap = 0.0 if terminations[k, n] else gamma * values[k + 1, n]
            advantages[t, n] += (gamma * gae_lambda) ** (k - t) * (rewards[k, n] + bootstrap - values[k, n])
            if dones[k, n]:
                break
    return advantages


@pytest.mark.parametrize("seed", range(5))
def test_advantages(seed):
    """They equal the sum of eq. 16 and, for λ = 1, the returns of Alg. S3: R <- V(s_T) or 0, then R <- r_i + γR."""
    _, _, rewards, *ends, _ = random_rollout(seed)
    terminations, dones = ends
    values = np.random.default_rng(seed).normal(size=(T + 1, N))
    for gae_lambda in (0.0, 0.5, 1.0):
        advantages = a2c.compute_advantages(rewards, values, *ends, 0.9, gae_lambda)
        np.testing.assert_allclose(advantages, gae(rewards, values, *ends, 0.9, gae_lambda), rtol=0, atol=1e-9)
    returns = np.zeros((T, N))
    for n in range(N):
        for t in reversed(range(T)):
            if dones[t, n] or t == T - 1:
                later = 0.0 if terminations[t, n] else values[t + 1, n]
            returns[t, n] = later = rewards[t, n] + 0.9 * later
    np.testing.assert_allclose(advantages + values[:-1], returns, rtol=0, atol=1e-9)


def test_the_fox():
    """The numbers of the A2C comic: rewards 1, 20, 2, then a state with V = 18; γ = λ = 1."""
    values, never = np.array([[20.0], [19], [22], [18]]), np.zeros((3, 1), bool)
    advantages = a2c.compute_advantages(np.array([[1.0], [20], [2]]), values, never, never, 1.0, 1.0)
    assert advantages.flatten().tolist() == [21, 21, -2]


# Loss and update


def test_loss_and_its_gradient():
    tensors = torch.randn(5, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    log_prob, entropy, values, advantages, returns = tensors
    learned = [x.requires_grad_() for x in (log_prob, entropy, values)]
    loss, metrics = a2c.a2c_loss(log_prob, entropy, values, advantages, returns, 0.3, 0.01)
    p, h, v, a, r = tensors.tolist()
    policy_loss = -sum(x * y for x, y in zip(p, a, strict=True)) / 9
    value_loss = sum((x - y) ** 2 for x, y in zip(r, v, strict=True)) / 9
    explained_variance = 1 - np.var(np.subtract(r, v)) / np.var(r)
    expected = {"losses/policy_loss": policy_loss, "losses/value_loss": value_loss, "losses/entropy": sum(h) / 9}
    expected["losses/explained_variance"] = explained_variance
    assert {name: value.item() for name, value in metrics.items()} == pytest.approx(expected, abs=1e-12)
    assert loss.item() == pytest.approx(policy_loss + 0.3 * value_loss - 0.01 * sum(h) / 9, abs=1e-12)
    # Descent makes better-than-expected actions more likely, raises the entropy, and moves V towards R.
    gradients = -advantages / 9, torch.full((9,), -0.01 / 9).double(), -0.6 * (returns - values) / 9
    torch.testing.assert_close(torch.autograd.grad(loss, learned), gradients)


@pytest.mark.parametrize("discrete", [True, False])
def test_an_update_equals_one_written_by_hand(discrete):
    """Network, advantages, losses, means without reset steps, clipping, step; NaN rewards change no weight."""
    torch.manual_seed(0)
    flags = "--gae-lambda 0.9 --gamma 0.95 --vf-coef 0.4 --ent-coef 0.3 --max-grad-norm 0.5"
    args, rollout = quick(*flags.split()), random_rollout(0, discrete)
    agent = a2c.ActorCritic(Box(-1, 1, (2,)), Discrete(2) if discrete else Box(-1, 1, (2,))).double()
    for p in agent.parameters():
        torch.nn.init.normal_(p, std=0.3)
        p.grad = torch.ones_like(p)  # left over from the previous update
    agent.obs_statistics.mean.copy_(torch.tensor([0.5, -1.0]))
    agent.obs_statistics.var.copy_(torch.tensor([4.0, 0.04]))
    weights = {name: p.detach().clone().requires_grad_() for name, p in agent.named_parameters()}

    def layer(x, name):
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    observations, actions, rewards, terminations, dones, is_transition = rollout
    normalized = (observations - np.array([0.5, -1.0])) / np.array([2, 0.2])
    assert (np.abs(normalized) > 10).any(), "the rollout must exercise the limit of observations"
    normalized = torch.as_tensor(np.minimum(np.maximum(normalized, -10), 10))

    def network(name):
        return layer(layer(layer(normalized, f"{name}.0").tanh(), f"{name}.2").tanh(), f"{name}.4")

    outputs, values = network("actor"), network("critic")[..., 0]
    advantages = gae(rewards, values.detach().numpy(), terminations, dones, 0.95, 0.9)
    loss = 0.0
    for t, n in np.argwhere(is_transition):
        output, action = outputs[t, n], torch.as_tensor(actions[t, n])
        if discrete:
            log_probs = output - output.exp().sum().log()
            log_prob, entropy = log_probs[action], -(log_probs.exp() * log_probs).sum()
        else:
            log_std = weights["log_std"]
            log_prob = -(((action - output) / log_std.exp()) ** 2 / 2 + log_std + math.log(2 * math.pi) / 2).sum()
            entropy = (log_std + math.log(2 * math.pi * math.e) / 2).sum()
        target = advantages[t, n] + values[t, n].item()
        loss = loss - log_prob * advantages[t, n] + 0.4 * (target - values[t, n]) ** 2 - 0.3 * entropy
    gradients = torch.autograd.grad(loss / is_transition.sum(), list(weights.values()))
    norm = math.sqrt(sum((g**2).sum().item() for g in gradients))
    assert norm > 0.5, "the rollout must exercise the clipping"

    optimizer = torch.optim.SGD(agent.parameters(), lr=1.0)
    metrics = a2c.update(agent, optimizer, *rollout, args)
    assert metrics["losses/grad_norm"].item() == pytest.approx(norm)
    names = "policy_loss value_loss entropy explained_variance grad_norm".split()
    assert set(metrics) == {f"losses/{name}" for name in names}
    for p, before, g in zip(agent.parameters(), weights.values(), gradients, strict=True):
        torch.testing.assert_close(p, before - g * 0.5 / norm, rtol=0, atol=1e-6)
        assert g.abs().max() * 0.5 / norm > 1e-4
    before = parameters_to_vector(agent.state_dict().values())
    with pytest.raises(a2c.RunError, match="the gradient is not finite: lower --learning-rate, or look for NaN"):
        a2c.update(agent, optimizer, observations, actions, rewards * np.nan, terminations, dones, is_transition, args)
    assert torch.equal(before, parameters_to_vector(agent.state_dict().values()))


# Policy


def test_discrete_policy():
    torch.manual_seed(0)
    agent = a2c.ActorCritic(Box(-1, 1, (4,)), Discrete(3))
    logits = torch.tensor([0.0, 1.0, -1.0])
    probabilities = np.exp([0.0, 1.0, -1.0]) / np.exp([0.0, 1.0, -1.0]).sum()
    actions = agent.sample(logits.expand(100_000, 3))
    assert actions.shape == (100_000,)
    np.testing.assert_allclose(np.bincount(actions) / 1e5, probabilities, atol=0.008)  # 5 sigma
    log_prob, entropy = agent.log_prob_and_entropy(logits.expand(3, 3), torch.arange(3))
    np.testing.assert_allclose(log_prob, np.log(probabilities), atol=1e-6)
    np.testing.assert_allclose(entropy, -(probabilities * np.log(probabilities)).sum(), atol=1e-6)
    assert agent.greedy(torch.stack([logits, -logits])).tolist() == [1, 2]
    assert agent.sample(torch.full((2, 3), torch.nan)).shape == (2,)  # update reports it, not the sampler


def test_continuous_policy():
    torch.manual_seed(0)
    agent = a2c.ActorCritic(Box(-1, 1, (4,)), Box(-1, 1, (2,)))
    assert agent.log_std.tolist() == [0, 0]
    agent.log_std.data = torch.tensor([0.5, -1.0])
    mean, std = np.array([0.3, -0.2]), np.exp([0.5, -1.0])
    actions = agent.sample(torch.tensor(mean, dtype=torch.float32).expand(50_000, 2, 2)).detach().numpy()
    np.testing.assert_allclose(actions.mean((0, 1)), mean, atol=0.03)  # 5 sigma
    np.testing.assert_allclose(actions.std((0, 1)), std, rtol=0.02)
    assert abs(np.corrcoef(actions.reshape(-1, 2).T)[0, 1]) < 0.02  # the noise of the dimensions is independent
    action = np.array([[0.5, 0.5], [-3, 0]])
    log_prob, entropy = agent.log_prob_and_entropy(torch.tensor(mean).expand(2, 2), torch.tensor(action))
    density = np.exp(-(((action - mean) / std) ** 2) / 2) / (std * math.sqrt(2 * math.pi))
    np.testing.assert_allclose(log_prob.detach(), np.log(density).sum(-1), atol=1e-6)
    assert entropy.tolist() == pytest.approx([(np.log(std) + math.log(2 * math.pi * math.e) / 2).sum()] * 2, abs=1e-6)
    assert agent.greedy(torch.tensor(mean)).tolist() == mean.tolist()


def test_the_initial_network():
    """Layers are orthogonal with the usual gains, biases zero; different seeds give different weights."""
    one, two, again = (a2c.train(quick("--learning-rate", "0", "--seed", seed))[0] for seed in "121")
    gains = {"actor.0": 2**0.5, "actor.2": 2**0.5, "actor.4": 0.01}
    gains |= {"critic.0": 2**0.5, "critic.2": 2**0.5, "critic.4": 1}
    for name, gain in gains.items():
        weight, other = (agent.get_submodule(name).weight.detach() for agent in (one, two))
        gram = weight @ weight.T if len(weight) <= weight.shape[1] else weight.T @ weight
        torch.testing.assert_close(gram, gain**2 * torch.eye(len(gram)), rtol=0, atol=gain**2 * 1e-5)
        assert (one.get_submodule(name).bias == 0).all()
        assert not torch.equal(weight, other) and torch.equal(weight, again.get_submodule(name).weight)
    assert not torch.equal(one.actor[0].weight, one.critic[0].weight)


# What train passes to update


@pytest.fixture
def recorded(monkeypatch):
    """A function that runs train -> one dict per update (rollout, step size, Adam, weights, ...), and history."""
    calls, original, acted, sample = [], a2c.update, [], a2c.ActorCritic.sample

    def update(agent, optimizer, *rollout_and_args):
        call = dict(zip(ROLLOUT, map(np.copy, rollout_and_args[:-1]), strict=True))
        call |= {"acted": np.stack(acted[-len(call["actions"]) :]), "agent": agent}  # logits or means
        call |= {"learned": agent(torch.as_tensor(call["observations"]))[0].detach().numpy()[:-1]}
        call |= {"statistics": buffers(agent), "rms": agent.return_statistics.rms()}
        call |= {"lr": optimizer.param_groups[0]["lr"], "before": parameters_to_vector(agent.parameters())}
        call |= {"optimizer": optimizer, "adam_steps": [int(state["step"]) for state in optimizer.state.values()]}
        metrics = original(agent, optimizer, *rollout_and_args)
        calls.append(call | {"after": parameters_to_vector(agent.parameters())})
        return metrics

    def run(*flags):
        calls.clear()
        _, history = a2c.train(quick(*flags))
        return list(calls), history

    monkeypatch.setattr(a2c, "update", update)
    monkeypatch.setattr(a2c.ActorCritic, "sample", lambda agent, x: acted.append(x.numpy().copy()) or sample(agent, x))
    return run


def buffers(agent):
    """Return copies of an agent's statistics, arrays by name."""
    return {name: buffer.numpy().copy() for name, buffer in agent.named_buffers()}


def test_rollouts_are_the_transitions_of_the_environment(recorded, monkeypatch):
    """Every row agrees with the scripted environment: last observations true, reset steps marked, nothing lost."""
    logs, log = [], a2c.log_progress
    monkeypatch.setattr(a2c, "log_progress", lambda *args: logs.append((args[2], list(args[4]))) or log(*args))
    flags = "--env-id Scripted-v0 --num-envs 2 --num-steps 5 --total-timesteps 995 --log-interval 250"
    calls, history = recorded(*flags.split(), "--learning-rate", "0.1")
    assert len(calls) == 100  # the last rollout ends at step 1000
    for n in range(2):
        episode = t = 0
        resets = False
        for call in calls:
            for row in range(5):
                obs, next_obs = call["observations"][row, n], call["observations"][row + 1, n]
                reward, terminated, done = (call[name][row, n] for name in ("rewards", "terminations", "dones"))
                assert call["is_transition"][row, n] == (not resets)
                if resets:
                    episode, t, resets = episode + 1, 0, False
                    assert reward == 0 and not done and tuple(next_obs) == (episode, 0)
                    continue
                assert tuple(obs) == (episode, t) and tuple(next_obs) == (episode, t + 1)
                t += 1
                assert reward == pytest.approx(min((10 * episode + t) / call["rms"], 10), rel=1e-5)
                assert terminated == (episode % 2 == 0 and t == 3)
                resets = bool(done)
                assert resets == (t == (3, 4)[episode % 2])
    by_episode = [sum(10 * k + t for t in range(1, (4, 5)[k % 2])) for k in range(len(history) // 2)]
    assert [value for _, value in history] == [value for value in by_episode for _ in range(2)]  # not scaled
    assert [step for step, _ in history[:5]] == [6, 6, 16, 16, 24]  # 3 steps, reset, 4 steps, reset, 3 steps; 2 envs
    assert [step for step, _ in logs] == [250, 500, 750, 1000] and logs[-1][1] == [4, 4, 3, 3] * 25
    assert [call["lr"] for call in calls] == pytest.approx([0.1 * (1 - k * 10 / 995) for k in range(100)])
    defaults = calls[0]["optimizer"].defaults
    assert type(calls[0]["optimizer"]) is torch.optim.Adam and defaults["betas"] == (0, 0.999)
    assert (defaults["eps"], defaults["weight_decay"], defaults["amsgrad"]) == (1e-5, 0, False)


def test_statistics_are_those_of_all_transitions_so_far(recorded):
    """Reset steps are left out; running returns cross the ends of rollouts; rewards are divided by their rms."""
    flags = "--env-id Scripted-v0 --num-envs 2 --num-steps 5 --total-timesteps 400 --gamma 0.9 --learning-rate 0.1"
    calls, _ = recorded(*flags.split())
    rows = probes.scripted_rows(200, 0.9)  # the same in both environments
    statistics = [*(call["statistics"] for call in calls), buffers(calls[0]["agent"])]
    for k in range(1, 41):
        observations, _, returns = (np.array(x) for x in zip(*filter(None, rows[: 5 * k]), strict=True))
        moments = [2 * len(returns), observations.mean(0), observations.var(0)]
        moments += [2 * len(returns), returns.mean(), returns.var()]
        for name, value in zip(statistics[k], moments, strict=True):
            np.testing.assert_allclose(statistics[k][name], value, rtol=1e-5, err_msg=name)
        if k < 40:
            rewards = [row[1] if row else 0 for row in rows[5 * k : 5 * k + 5]]
            expected = np.array(rewards) / np.sqrt(np.square(returns).mean())
            np.testing.assert_allclose(calls[k]["rewards"], expected[:, None].repeat(2, 1), rtol=1e-5)
    assert [value.sum() for value in statistics[0].values()] == [0, 0, 2, 0, 0, 1]  # mean 0, variance 1
    np.testing.assert_array_equal(calls[0]["rewards"], [[1, 1], [2, 2], [3, 3], [0, 0], [10, 10]])  # limited


@pytest.mark.parametrize("env_id", ["Scripted-v0", "Target-v0"])
def test_acting_and_learning_outputs_agree(recorded, env_id):
    """update recomputes the outputs of acting, and so the log-probabilities, although the statistics change."""
    calls, _ = recorded("--env-id", env_id, "--learning-rate", "0.1")
    for call in calls:
        np.testing.assert_allclose(call["learned"], call["acted"], rtol=0, atol=1e-5)
    assert np.ptp([call["acted"][0, 0, 0] for call in calls]) > 0.1


def test_a_rollout_of_reset_steps_only_is_skipped(recorded):
    """With one environment and one step every other rollout is a reset; weights change only in updates."""
    flags = "--env-id ObservationActionReward-v0 --num-envs 1 --num-steps 1 --total-timesteps 64".split()
    calls, history = recorded(*flags)
    assert len(calls) == len(history) == 32 and all(call["is_transition"].all() for call in calls)
    for last, call in itertools.pairwise(calls):
        assert torch.equal(last["after"], call["before"]) and not torch.equal(call["before"], call["after"])


def test_the_step_size_is_constant_without_annealing(recorded):
    calls, _ = recorded("--no-anneal-lr", "--learning-rate", "0.003")
    assert {call["lr"] for call in calls} == {0.003}


@pytest.mark.parametrize(("env_id", "low", "high"), [("Target-v0", -2, 2), ("Percent-v0", 50, 100)])
def test_bounded_actions_are_rescaled_then_clipped(recorded, monkeypatch, env_id, low, high):
    """The policy's [-1, 1] covers the range; the log-probabilities belong to the actions as they were drawn."""
    taken, original = [], getattr(probes, env_id[:-3]).step
    monkeypatch.setattr(getattr(probes, env_id[:-3]), "step", lambda env, a: taken.append(a) or original(env, a))
    calls, _ = recorded("--env-id", env_id, "--num-envs", "4")
    drawn = np.concatenate([call["actions"][call["is_transition"]] for call in calls])
    assert drawn.shape[1:] == (1,) and drawn.dtype == np.float32 and np.abs(drawn).max() > 2
    expected = low + (np.clip(drawn, -1, 1) + 1) / 2 * (high - low)
    np.testing.assert_allclose(np.stack(taken), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("low", "high", "shift"), [(50, np.inf, 51), (-np.inf, 50, 49), (-np.inf, np.inf, 0)])
def test_actions_with_a_bound_missing_are_shifted_then_clipped(recorded, monkeypatch, low, high, shift):
    """-1 becomes the lower bound, or 1 the upper one."""
    taken = []
    monkeypatch.setattr(probes.Target, "action_space", Box(low, high, (1,), np.float32))
    monkeypatch.setattr(probes.Target, "play", lambda env, action: taken.append(action) or (0.0, 0.0, True))
    calls, _ = recorded("--env-id", "Target-v0", "--num-envs", "4")
    drawn = np.concatenate([call["actions"][call["is_transition"]] for call in calls])
    np.testing.assert_allclose(np.stack(taken), np.clip(drawn + shift, low, high), rtol=1e-5)


def test_a_resumed_run_continues(recorded, monkeypatch, tmp_path):
    """The schedule, Adam and the statistics continue; noise and episodes differ from those of every other start."""
    seeds, make_envs = [], a2c.make_envs

    def spied(*args):
        envs = make_envs(*args)
        reset = envs.reset
        envs.reset = lambda seed, **options: seeds.append(seed) or reset(seed=seed, **options)
        return envs

    monkeypatch.setattr(a2c, "make_envs", spied)
    flags = "--env-id ObservationReward-v0 --learning-rate 1e-9 --eval-episodes 1".split()  # the policy hardly changes
    first, _ = recorded(*flags, "--total-timesteps", "512")
    (path,) = tmp_path.glob("runs/*/checkpoint.pt")
    resumed, _ = recorded(*flags, "--resume", str(path))
    assert (first[0]["lr"], resumed[0]["lr"]) == pytest.approx((1e-9, 5e-10)) and len(resumed) == 4
    assert resumed[0]["adam_steps"] == [4] * 12 and torch.equal(first[-1]["after"], resumed[0]["before"])
    for name, value in resumed[0]["statistics"].items():
        assert np.array_equal(value, buffers(first[0]["agent"])[name]) and value.any()
    assert resumed[0]["statistics"]["obs_statistics.count"] == sum(call["is_transition"].sum() for call in first)
    assert not np.array_equal(first[0]["actions"], resumed[0]["actions"])
    other, _ = recorded(*flags, "--seed", "2")
    assert not np.array_equal(first[0]["actions"], other[0]["actions"])
    assert len(seeds) == 6 and seeds[1] == seeds.pop(3)  # the two evaluations of seed 1
    assert min(np.diff(sorted(seeds))) > 1000  # from each, Gymnasium counts up, one per environment


# Evaluation and environments


def test_evaluation_is_greedy_and_seeded(monkeypatch, capsys):
    """Returns are those of each environment's first episode; an endless episode is cut, and the output says so."""
    torch.manual_seed(0)
    gym.register("Pole-v0", "gymnasium.envs.classic_control:CartPoleEnv")  # CartPole-v1 has its own vector class
    agent, args, expected = a2c.ActorCritic(Box(-1, 1, (4,)), Discrete(2)), quick("--env-id", "Pole-v0"), []
    agent.obs_statistics.mean.copy_(torch.tensor([0.02, 0.3, -0.02, -0.3]))  # as training would leave them
    agent.obs_statistics.var.copy_(torch.tensor([0.01, 0.25, 0.01, 0.25]))
    env = gym.make("Pole-v0")
    for episode in range(5):
        obs, _ = env.reset(seed=a2c.derive_seed(args.seed, 1) + episode)
        done, total = False, 0.0
        while not done:
            obs = (obs - [0.02, 0.3, -0.02, -0.3]) / [0.1, 0.5, 0.1, 0.5]
            logits = agent.actor(torch.as_tensor(obs, dtype=torch.float32))
            obs, reward, terminated, truncated, _ = env.step(int(logits.argmax()))
            done, total = terminated or truncated, total + reward
        expected.append(total)
    assert len(set(expected)) > 1 and a2c.evaluate(agent, args, 5) == expected
    cut = int(min(expected)) + 1
    monkeypatch.setattr(a2c, "range", lambda limit: range(cut * (limit == 100_000)), raising=False)
    assert a2c.evaluate(agent, args, 5) == [min(total, cut) for total in expected]
    assert (
        f"evaluation  {sum(np.array(expected) > cut)} of 5 episodes unfinished after 100,000 steps"
        in capsys.readouterr().out
    )


def test_evaluation_clips_actions_and_does_not_scale_rewards():
    agent = a2c.ActorCritic(Box(-1, 1, (1,)), Box(-2, 2, (1,)))
    torch.nn.init.constant_(agent.actor[-1].bias, 9.0)  # far above 1, the upper bound after rescaling
    assert a2c.evaluate(agent, quick("--env-id", "Target-v0"), 1) == [-2.25]
    agent = a2c.ActorCritic(Box(-1, 1, (1,)), Discrete(2))
    agent.return_statistics.update(np.full(9, 10.0))
    assert a2c.evaluate(agent, quick("--env-id", "EndlessReward-v0"), 2) == [5, 5]  # to the time limit


def test_unsupported_environments_are_refused(tmp_path):
    for number, space in enumerate((Discrete(2, start=5), Box(-1, 1, (2, 2)))):
        entry = type("Odd", (probes.ConstantReward,), {"action_space": space})
        gym.register(f"Odd{number}-v0", entry_point=entry)
    for env_id in "MultiDiscreteAction-v0 IntegerAction-v0 SameStep-v0 Odd0-v0 Odd1-v0".split():
        with pytest.raises(a2c.RunError, match=f"--env-id {env_id}: needs Discrete actions counted from 0"):
            a2c.train(quick("--env-id", env_id))
    assert not list(tmp_path.iterdir())


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # of NumPy, ∞ - ∞
@pytest.mark.parametrize(
    ("where", "value"), [("reward", "Infinity"), ("observation", "NaN"), ("observation", "-Infinity")]
)
def test_values_that_are_not_finite_end_the_run(where, value, tmp_path):
    """The run ends with a one-line error before they reach the weights or the statistics of the checkpoint."""
    flags = f'--env-id NotFinite-v0 --num-envs 2 --num-steps 8 --total-timesteps 900 --env-kwargs {{"{where}":{value}}}'
    with pytest.raises(a2c.RunError, match=r"^[^\n]* is not finite[^\n]*$"):
        a2c.train(quick(*flags.split()))
    (path,) = tmp_path.glob("runs/*/checkpoint.pt")
    checkpoint = torch.load(path)
    assert all(x.isfinite().all() for x in checkpoint["agent"].values()) and 100 < checkpoint["global_step"] < 150


# Probe environments

PROBE = "--num-envs 16 --num-steps 4 --learning-rate 0.01 --gamma 0.9 --vf-coef 0.5 --max-grad-norm 3".split()


def learn(env_id, *flags, steps="3000"):
    """Train on a probe environment -> the agent and its value of an observation in units of the rewards."""
    agent, _ = a2c.train(quick(*PROBE, "--env-id", env_id, "--total-timesteps", steps, *flags))
    return agent, lambda obs: agent(torch.tensor([float(obs)]))[1].item() * agent.return_statistics.rms()


def test_probe_1_value_of_a_constant_reward():
    _, value = learn("ConstantReward-v0")
    assert value(0) == pytest.approx(1, abs=0.05)


def test_probe_2_value_depends_on_the_observation():
    _, value = learn("ObservationReward-v0")
    assert value(-1) == pytest.approx(-1, abs=0.05) and value(1) == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("gae_lambda", ["0", "1"])
def test_probe_3_reward_one_step_later(gae_lambda):
    _, value = learn("DelayedReward-v0", "--gae-lambda", gae_lambda)
    assert value(0) == pytest.approx(0.9, abs=0.05) and value(1) == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("env_id", ["ActionReward-v0", "ObservationActionReward-v0"])
def test_probes_4_and_5_reward_depends_on_the_action(env_id):
    agent, _ = learn(env_id)
    assert a2c.evaluate(agent, quick("--env-id", env_id), 20) == [1.0] * 20


@pytest.mark.parametrize("gae_lambda", ["0", "1"])
def test_probe_6_a_truncated_episode_has_not_ended(gae_lambda):
    """V = 1 / (1 - γ) = 10, although every episode is truncated after 5 steps, whose discounted sum is 4.1."""
    _, value = learn("EndlessReward-v0", "--gae-lambda", gae_lambda)
    assert value(0) == pytest.approx(10, rel=0.05)


def test_initial_std():
    """The flag sets σ in every action dimension, in actions that are scaled to ±1; learning changes it from there."""
    agent, _ = a2c.train(quick("--env-id", "probes:Target-v0", "--initial-std", "0.4", "--learning-rate", "0"))
    assert agent.log_std.exp().tolist() == pytest.approx([0.4])
    agent = a2c.ActorCritic(Box(-1, 1, (4,)), Box(-1, 1, (2,)), initial_std=0.1)
    assert agent.sample(torch.zeros(50_000, 2)).std(0).tolist() == pytest.approx([0.1, 0.1], rel=0.02)


def test_probe_7_a_continuous_action():
    agent, _ = learn("Target-v0", steps="12000")
    assert 2 * agent(torch.zeros(1))[0].item() == pytest.approx(0.5, abs=0.2) and agent.log_std.exp() < 0.9
