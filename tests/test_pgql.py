"""Test pgql.py: Q-learning's equations against independent definitions, the replay buffer, a2c.py where η = 0."""

import math

import numpy as np
import pgql
import probes  # noqa: F401
import pytest
import torch
from gymnasium.spaces import Box
from torch.nn.utils import parameters_to_vector

import a2c

T, N = 8, 4  # num_steps, num_envs of the random rollouts


def quick(*flags):
    """Return the arguments of a very short run; later flags override earlier ones."""
    return pgql.parse_args(["--wandb-mode", "disabled", "--total-timesteps", "1024", "--eval-episodes", "0", *flags])


def random_rollout(seed):
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
    rewards = np.where(is_transition, rng.normal(size=(T, N)), 1e3)
    actions = rng.integers(3, size=(T, N))
    return rng.normal(size=(T + 1, N, 2)), actions, rewards, terminations, dones, is_transition


def random_batch(seed, size=10):
    """Return replayed transitions in float64, in the order of sample_transitions."""
    rng = np.random.default_rng(seed)
    obs, next_obs = rng.normal(size=(2, size, 2))
    return obs, rng.integers(3, size=size), rng.normal(size=size), rng.random(size) < 0.3, next_obs


# Q̃ and δ


def test_implied_q_values():
    """Q̃ by its definition; its mean under π is V, softmax(Q̃ / α) is π, and the greedy actions are those of π."""
    rng = np.random.default_rng(0)
    logits, values, alpha = rng.normal(size=(5, 3)) * 3, rng.normal(size=5), 0.3
    q_values = pgql.implied_q_values(torch.tensor(logits), torch.tensor(values), alpha).numpy()
    for s in range(5):
        probs = np.exp(logits[s]) / np.exp(logits[s]).sum()
        entropy = -sum(p * math.log(p) for p in probs)
        expected = [alpha * (math.log(p) + entropy) + values[s] for p in probs]
        np.testing.assert_allclose(q_values[s], expected, atol=1e-12)
        assert probs @ q_values[s] == pytest.approx(values[s])
        boltzmann = np.exp(q_values[s] / alpha - q_values[s].max() / alpha)
        np.testing.assert_allclose(boltzmann / boltzmann.sum(), probs, atol=1e-12)
    assert (q_values.argmax(-1) == logits.argmax(-1)).all()


def test_implied_q_values_of_a_nearly_deterministic_policy_are_finite():
    q_values = pgql.implied_q_values(torch.tensor([[0.0, 300.0]]), torch.tensor([1.0]), 0.1)
    torch.testing.assert_close(q_values, torch.tensor([[1 - 30.0, 1.0]]))


def test_td_errors():
    """δ = r + γ max Q̃(s',·) - Q̃(s,a), without the maximum where s' is terminal."""
    q_values, next_q_values = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[5.0, -7.0], [100.0, 200.0]])
    actions, rewards, terminations = torch.tensor([0, 1]), torch.tensor([0.5, 0.25]), torch.tensor([False, True])
    td_errors = pgql.compute_td_errors(q_values, actions, rewards, next_q_values, terminations, 0.9)
    assert td_errors.tolist() == pytest.approx([0.5 + 0.9 * 5 - 1, 0.25 - 4])


def test_a2c_converges_to_the_implied_q_values():
    """At the fixed point of A2C's expected update Q̃ = Q: a bandit with known action values."""
    rewards, alpha = torch.tensor([1.0, 0.0, 0.5]), 0.4
    logits, value = torch.zeros(3, requires_grad=True), torch.zeros((), requires_grad=True)
    for _ in range(400):
        log_probs = logits.log_softmax(-1)
        advantages = (rewards - value).detach()
        entropy = -(log_probs.exp() * log_probs).sum()
        policy_loss = -(log_probs.exp().detach() * log_probs * advantages).sum() - alpha * entropy
        value_loss = (log_probs.exp().detach() * (rewards - value).square()).sum()
        gradients = torch.autograd.grad(policy_loss + value_loss, [logits, value])
        with torch.no_grad():
            logits -= gradients[0]
            value -= 0.3 * gradients[1]
    q_values = pgql.implied_q_values(logits[None].detach(), value[None].detach(), alpha)[0]
    torch.testing.assert_close(q_values, rewards, rtol=0, atol=1e-4)


class Table(torch.nn.Module):
    """Logits and values of every state of a small problem; observations are one-hot."""

    def __init__(self, num_states, num_actions):
        super().__init__()
        self.logits = torch.nn.Parameter(torch.zeros(num_states, num_actions))
        self.values = torch.nn.Parameter(torch.zeros(num_states))
        self.return_statistics = pgql.RunningStatistics(())  # rewards stay as they are

    def forward(self, obs):
        return obs @ self.logits, obs @ self.values


def test_q_learning_alone_converges_to_the_optimal_q_values():
    """With η = 1, from transitions of a uniform policy, Q̃ becomes Q* of value iteration, not the uniform policy's Q."""
    rng = np.random.default_rng(0)
    next_states, rewards = rng.integers(4, size=(4, 2)), rng.normal(size=(4, 2)).astype(np.float32)
    terminations = rng.random((4, 2)) < 0.2
    optimal = np.zeros((4, 2))
    for _ in range(500):
        optimal = rewards + 0.8 * optimal.max(-1)[next_states] * ~terminations
    states, one_hot = np.repeat(np.arange(4), 2), np.eye(4, dtype=np.float32)
    batch = one_hot[states], np.tile([0, 1], 4), rewards.ravel(), terminations.ravel(), one_hot[next_states.ravel()]
    flags = "--eta 1 --gamma 0.8 --ent-coef 0.5 --vf-coef 0.5 --max-grad-norm 100"
    agent, args = Table(4, 2), quick(*flags.split())
    optimizer = torch.optim.SGD(agent.parameters(), lr=4.0)
    _, actions, *rest = random_rollout(0)  # an arbitrary rollout, which must have no effect
    rollout = rng.normal(size=(T + 1, N, 4)).astype(np.float32), actions % 2, rest[0].astype(np.float32), *rest[1:]
    for _ in range(200):
        metrics = pgql.update(agent, optimizer, rollout, batch, args)
    q_values = pgql.implied_q_values(agent.logits, agent.values, 0.5).detach().numpy()
    np.testing.assert_allclose(q_values, optimal, atol=1e-3)
    assert metrics["losses/td_loss"] < 1e-6


# The update


def gae(rewards, values, terminations, dones, gamma, gae_lambda):
    """Compute advantages as a sum, A_t = Σ_l (γλ)^l δ_t+l, up to the end of the episode or rollout."""
    advantages = np.zeros_like(rewards)
    for t, n in np.ndindex(rewards.shape):
        for k in range(t, len(rewards)):
            bootstrap = 0.0 if terminations[k, n] else gamma * values[k + 1, n]
            advantages[t, n] += (gamma * gae_lambda) ** (k - t) * (rewards[k, n] + bootstrap - values[k, n])
            if dones[k, n]:
                break
    return advantages


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_an_update_equals_one_written_by_hand(eta):
    """(1 - η) times the actor-critic's gradient plus η times Q-learning's, clipped; NaN rewards change no weight.

    Rewards are divided by the root mean square of running returns, here 2, and observations normalized.
    """
    torch.manual_seed(0)
    flags = "--gae-lambda 0.9 --gamma 0.95 --vf-coef 0.4 --ent-coef 0.3 --max-grad-norm 0.1"
    args, rollout, batch = quick("--eta", str(eta), *flags.split()), random_rollout(0), random_batch(1)
    agent = pgql.ActorCritic(Box(-1, 1, (2,)), 3).double()
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

    def policy_and_value(obs):
        logits, value = network(obs, "actor"), network(obs, "critic")[..., 0]
        return logits - logits.exp().sum(-1, keepdim=True).log(), value

    observations, actions, rewards, terminations, dones, is_transition = rollout
    log_probs, values = policy_and_value(observations)
    advantages = gae(rewards / 2, values.detach().numpy(), terminations, dones, 0.95, 0.9)
    loss, q_gradients = 0.0, [torch.zeros_like(w) for w in weights.values()]
    for t, n in np.argwhere(is_transition):
        entropy = -(log_probs[t, n].exp() * log_probs[t, n]).sum()
        target = advantages[t, n] + values[t, n].item()
        loss = loss - log_probs[t, n, actions[t, n]] * advantages[t, n]
        loss = loss + 0.4 * (target - values[t, n]) ** 2 - 0.3 * entropy
    ac_gradients = torch.autograd.grad(loss / is_transition.sum(), list(weights.values()))

    def q(log_probs, value):
        return 0.3 * (log_probs - (log_probs.exp() * log_probs).sum()) + value

    td_loss = 0.0
    for obs, action, reward, terminated, next_obs in zip(*batch, strict=True):
        log_probs, value = policy_and_value(obs)
        target = reward / 2 + (0.0 if terminated else 0.95 * q(*policy_and_value(next_obs)).max().item())
        td_error = target - q(log_probs, value)[action].item()
        td_loss += td_error**2 / len(batch[0])
        ascent = torch.autograd.grad(log_probs[action] + 2 * 0.4 * value, list(weights.values()))
        q_gradients = [g - td_error * a / len(batch[0]) for g, a in zip(q_gradients, ascent, strict=True)]
    gradients = [(1 - eta) * a + eta * q for a, q in zip(ac_gradients, q_gradients, strict=True)]
    norm = math.sqrt(sum((g**2).sum().item() for g in gradients))
    assert norm > 0.1, "the batch must exercise the clipping"

    optimizer = torch.optim.SGD(agent.parameters(), lr=1.0)
    metrics = pgql.update(agent, optimizer, rollout, batch, args)
    assert metrics["losses/grad_norm"].item() == pytest.approx(norm)
    assert metrics["losses/td_loss"].item() == pytest.approx(td_loss)
    names = "policy_loss value_loss entropy explained_variance td_loss grad_norm".split()
    assert set(metrics) == {f"losses/{name}" for name in names}
    for p, before, g in zip(agent.parameters(), weights.values(), gradients, strict=True):
        torch.testing.assert_close(p, before - g * 0.1 / norm, rtol=0, atol=1e-6)
        assert g.abs().max() * 0.1 / norm > 1e-4
    before = parameters_to_vector(agent.parameters())
    no_rewards = (observations, actions, rewards * np.nan, *rollout[3:]), (*batch[:2], batch[2] * np.nan, *batch[3:])
    for bad in ((no_rewards[0], batch), (rollout, no_rewards[1])):
        with pytest.raises(pgql.RunError, match="the gradient is not finite: lower --learning-rate, or look for NaN"):
            pgql.update(agent, optimizer, *bad, args)
    assert torch.equal(before, parameters_to_vector(agent.parameters()))


def test_eta_0_is_a2c():
    """Same seed and flags: the same episodes and, after 40 updates, the same weights."""
    flags = "--total-timesteps 5000 --ent-coef 0.02 --learning-rate 0.01 --gamma 0.98 --num-envs 16 --num-steps 8"
    flags += " --wandb-mode disabled --eval-episodes 0 --seed 3"
    agent, history = pgql.train(pgql.parse_args([*flags.split(), "--eta", "0"]))
    expected, expected_history = a2c.train(a2c.parse_args(flags.split()))
    torch.testing.assert_close(agent.state_dict(), expected.state_dict(), rtol=0, atol=1e-6)
    assert history == expected_history and len(history) > 50
    other, _ = pgql.train(pgql.parse_args([*flags.split(), "--eta", "0.1"]))
    assert (parameters_to_vector(other.parameters()) - parameters_to_vector(agent.parameters())).abs().max() > 1e-2


# The replay buffer


def test_transitions_are_drawn_uniformly():
    """Every transition of every rollout equally often, its next observation one row later; never a reset step."""
    observations = np.arange(3 * 3 * 2.0).reshape(3, 3, 2, 1)  # 3 rollouts of 2 steps in 2 environments
    actions, terminations = np.arange(12).reshape(3, 2, 2), np.arange(12).reshape(3, 2, 2) % 5 == 0
    is_transition = actions != 2  # step 1 of environment 0 in rollout 0 is a reset
    is_transition[2] = False  # not filled yet
    replay = observations, actions, actions * 10.0, terminations, terminations, is_transition
    batch = pgql.sample_transitions(replay, 70_000, np.random.default_rng(0))
    obs, drawn, rewards, terminated, next_obs = batch
    assert np.bincount(drawn).tolist() == pytest.approx([1e4, 1e4, 0, *[1e4] * 5], abs=500)
    i, t, n = np.unravel_index(drawn, (3, 2, 2))
    assert (obs[:, 0] == 6 * i + 2 * t + n).all() and (next_obs == obs + 2).all()
    assert (rewards == 10 * drawn).all() and (terminated == (drawn % 5 == 0)).all()


@pytest.fixture
def recorded(monkeypatch):
    """A function that runs train -> for each update the replay buffer, the batch and the rollout."""
    calls, update, sample = [], pgql.update, pgql.sample_transitions

    def spied_sample(replay, *args):
        calls.append({"replay": [x.copy() for x in replay], "batch": sample(replay, *args)})
        return calls[-1]["batch"]

    def spied_update(agent, optimizer, rollout, batch, args):
        calls[-1] |= {"rollout": [x.copy() for x in rollout], "used": batch, "lr": optimizer.param_groups[0]["lr"]}
        return update(agent, optimizer, rollout, batch, args)

    def run(*flags):
        calls.clear()
        _, history = pgql.train(quick(*flags))
        return list(calls), history

    monkeypatch.setattr(pgql, "sample_transitions", spied_sample)
    monkeypatch.setattr(pgql, "update", spied_update)
    return run


def test_the_buffer_holds_the_last_transitions_of_the_environment(recorded):
    """Each replayed transition is one of the scripted environment: no resets, no crossing of episodes, true ends."""
    flags = "--env-id Scripted-v0 --num-envs 2 --num-steps 5 --total-timesteps 1000 --buffer-size 100 --batch-size 50"
    calls, history = recorded(*flags.split())
    assert len(calls) == 100 and len(history) == 2 * 111  # 9 steps for every two episodes, resets included
    seen = set()
    for number, call in enumerate(calls):
        assert call["used"] is call["batch"] and len(call["replay"][0]) == 11  # 10 are 100 transitions, one to spare
        for stored, array in zip(call["replay"], call["rollout"], strict=True):
            assert np.array_equal(stored[(number + 1) % 11], array)  # the newest
        assert call["replay"][5].any((1, 2)).sum() == min(number + 1, 11)
        obs, _, rewards, terminated, next_obs = call["batch"]
        episode, t = obs.T
        assert (next_obs[:, 0] == episode).all() and (next_obs[:, 1] == t + 1).all()
        assert (rewards == 10 * episode + t + 1).all()
        assert (terminated == ((episode % 2 == 0) & (t == 2))).all()
        assert (t < np.where(episode % 2, 4, 3)).all()
        last = calls[number]["rollout"][0][-1, :, 0].max()
        assert episode.min() >= last - 11 * 5 / 4.5 - 1  # the oldest rollouts are gone
        seen |= set(zip(episode.tolist(), t.tolist(), strict=True))
    assert {(20, t) for t in range(3)} | {(21, t) for t in range(4)} <= seen  # a truncated episode's last step, too


def test_a_small_buffer_holds_the_current_rollout(recorded):
    calls, _ = recorded("--env-id", "Scripted-v0", "--buffer-size", "1")
    for call in calls:
        assert len(call["replay"]) == 6 and len(call["replay"][0]) == 1
        assert np.array_equal(call["replay"][0][0], call["rollout"][0])


def test_rollouts_of_reset_steps_only_are_skipped(recorded):
    """With one environment and one step every other rollout is a reset."""
    flags = "--env-id ConstantReward-v0 --num-envs 1 --num-steps 1 --total-timesteps 64"
    for size in ("1", "1000"):
        calls, history = recorded(*flags.split(), "--buffer-size", size)
        assert len(calls) == len(history) == 32 and all((call["batch"][2] == 1).all() for call in calls)


def test_a_resumed_run_starts_with_an_empty_buffer_and_new_noise(recorded, tmp_path):
    flags = "--env-id ConstantReward-v0 --learning-rate 1e-9".split()  # the policy hardly changes
    first, _ = recorded(*flags, "--total-timesteps", "512")
    (path,) = tmp_path.glob("runs/*/checkpoint.pt")
    resumed, _ = recorded(*flags, "--resume", str(path))
    assert (first[0]["lr"], resumed[0]["lr"]) == pytest.approx((1e-9, 5e-10))
    assert resumed[0]["replay"][5].any((1, 2)).sum() == 1  # rollout
    assert not np.array_equal(first[0]["batch"][1], resumed[0]["batch"][1])
    other, _ = recorded(*flags, "--seed", "2")
    assert not np.array_equal(first[0]["batch"][1], other[0]["batch"][1])


# Environments


def test_continuous_actions_are_refused(tmp_path):
    for env_id in "Target-v0 MultiDiscreteAction-v0 SameStep-v0".split():
        with pytest.raises(pgql.RunError, match=f"--env-id {env_id}: needs Discrete actions counted from 0"):
            pgql.train(quick("--env-id", env_id))
    assert not list(tmp_path.iterdir())


def test_training_samples_and_evaluation_is_greedy():
    torch.manual_seed(0)
    agent = pgql.ActorCritic(Box(-1, 1, (1,)), 2)
    torch.nn.init.zeros_(agent.actor[-1].weight)
    agent.actor[-1].bias.data = torch.tensor([0.0, 1.0])
    drawn = agent.sample(agent(torch.zeros(50_000, 1))[0])
    assert drawn.float().mean().item() == pytest.approx(math.e / (1 + math.e), abs=0.01)  # 5 sigma
    assert agent.sample(torch.full((2, 3), torch.nan)).shape == (2,)  # update reports it, not the sampler
    assert pgql.evaluate(agent, quick("--env-id", "ActionReward-v0"), 100) == [1.0] * 100


PROBE = "--num-envs 8 --num-steps 8 --learning-rate 0.01 --gamma 0.9 --vf-coef 0.5 --max-grad-norm 3 --ent-coef 0.05"
ETAS = pytest.mark.parametrize("eta", ["0.5", "1"])


def learn(env_id, eta, steps="4000"):
    """Train on a probe environment -> the agent and its value function of one number, in units of rewards."""
    agent, _ = pgql.train(quick(*PROBE.split(), "--env-id", env_id, "--total-timesteps", steps, "--eta", eta))
    return agent, lambda obs: agent(torch.tensor([float(obs)]))[1].item() * agent.return_statistics.rms()


@ETAS
def test_probe_1_value_of_a_constant_reward(eta):
    _, value = learn("ConstantReward-v0", eta)
    assert value(0) == pytest.approx(1, abs=0.05)


@ETAS
def test_probe_2_value_depends_on_the_observation(eta):
    _, value = learn("ObservationReward-v0", eta)
    assert value(-1) == pytest.approx(-1, abs=0.05) and value(1) == pytest.approx(1, abs=0.05)


@ETAS
def test_probe_3_reward_one_step_later(eta):
    _, value = learn("DelayedReward-v0", eta)
    assert value(0) == pytest.approx(0.9, abs=0.05) and value(1) == pytest.approx(1, abs=0.05)


@ETAS
@pytest.mark.parametrize("env_id", ["ActionReward-v0", "ObservationActionReward-v0"])
def test_probes_4_and_5_reward_depends_on_the_action(env_id, eta):
    agent, _ = learn(env_id, eta)
    assert pgql.evaluate(agent, quick("--env-id", env_id), 20) == [1.0] * 20


@ETAS
def test_probe_6_a_truncated_episode_has_not_ended(eta):
    """V = 1 / (1 - γ) = 10, although every episode is truncated after 5 steps, whose discounted sum is 4.1."""
    _, value = learn("EndlessReward-v0", eta, steps="8000")
    assert value(0) == pytest.approx(10, rel=0.05)
