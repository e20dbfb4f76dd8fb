"""a2c.py: its equations against independent definitions, every branch, and probe environments that it must solve."""

import math

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete

import a2c

T, N = 7, 3  # num_steps, num_envs of the random rollouts below


def quick(*flags):
    """Arguments of a run that lasts a blink; later flags win."""
    return a2c.parse_args(["--wandb-mode", "disabled", "--total-timesteps", "1024", "--eval-episodes", "1", *flags])


def random_rollout(seed):
    """Rewards, V(s_t), V(s_t+1), terminated, done, each (T, N) float64, with all ways in which an episode can end."""
    rng = np.random.default_rng(seed)
    rewards, values, next_values = rng.normal(size=(3, T, N))
    terminated, truncated = rng.random((2, T, N)) < 0.25
    return tuple(torch.as_tensor(x) for x in (rewards, values, next_values, terminated, terminated | truncated))


# Advantages


@pytest.mark.parametrize("gae_lambda", [0.0, 0.5, 0.95, 1.0])
@pytest.mark.parametrize("seed", range(5))
def test_advantages_are_the_sum_of_eq_16(gae_lambda, seed):
    rewards, values, next_values, terminated, done = rollout = random_rollout(seed)
    gamma = 0.9
    expected = np.zeros((T, N))
    for n in range(N):
        for t in range(T):
            for k in range(t, T):  # A_t = Σ_l (γλ)^l δ_t+l, to the end of the episode or the rollout
                bootstrap = 0.0 if terminated[k, n] else gamma * next_values[k, n]
                delta = rewards[k, n] + bootstrap - values[k, n]
                expected[t, n] += (gamma * gae_lambda) ** (k - t) * delta
                if done[k, n]:
                    break
    advantages = a2c.compute_advantages(*rollout, gamma, gae_lambda)
    np.testing.assert_allclose(advantages, expected, rtol=0, atol=1e-12)
    as_float = a2c.compute_advantages(*rollout[:3], terminated.double(), done.double(), gamma, gae_lambda)
    assert torch.equal(as_float, advantages)


@pytest.mark.parametrize("seed", range(5))
def test_lambda_1_is_the_n_step_return_of_algorithm_s3(seed):
    """R <- V(s_T) or 0; R <- r_i + γR, backwards, for a critic whose V(s_t+1) is the next step's V(s_t)."""
    rewards, values, next_values, terminated, done = random_rollout(seed)
    next_values[:-1] = torch.where(done[:-1], next_values[:-1], values[1:])
    returns = np.zeros((T, N))
    for n in range(N):
        for t in reversed(range(T)):
            if done[t, n] or t == T - 1:
                later = 0.0 if terminated[t, n] else next_values[t, n]
            returns[t, n] = later = rewards[t, n] + 0.9 * later
    advantages = a2c.compute_advantages(rewards, values, next_values, terminated, done, 0.9, 1.0)
    np.testing.assert_allclose(advantages + values, returns, rtol=0, atol=1e-12)


def test_the_fox():
    """The A2C comic: rewards 1, 20, 2, then a state that the critic values at 18, γ = 1."""
    rewards, values, next_values = torch.tensor([[[1.0], [20], [2]], [[20], [19], [22]], [[19], [22], [18]]])
    never = torch.zeros(3, 1)
    advantages = a2c.compute_advantages(rewards, values, next_values, never, never, 1.0, 1.0)
    assert (advantages + values).flatten().tolist() == [41, 40, 20]
    assert advantages.flatten().tolist() == [21, 21, -2]


# Loss


def test_loss_and_its_gradient():
    rng = np.random.default_rng(0)
    log_prob, entropy, values, advantages, returns = (torch.as_tensor(rng.normal(size=(T, N))) for _ in range(5))
    valid = torch.as_tensor(rng.random((T, N)) < 0.7).double()
    for x in (log_prob, entropy, values, advantages, returns):
        x.requires_grad_()
    loss, metrics = a2c.a2c_loss(log_prob, entropy, values, advantages, returns, valid, 0.5, 0.01)
    rows = [(t, n) for t in range(T) for n in range(N) if valid[t, n]]
    policy_loss = -sum(log_prob[i].item() * advantages[i].item() for i in rows) / len(rows)
    value_loss = sum((returns[i].item() - values[i].item()) ** 2 for i in rows) / len(rows)
    mean_entropy = sum(entropy[i].item() for i in rows) / len(rows)
    assert loss.item() == pytest.approx(policy_loss + 0.5 * value_loss - 0.01 * mean_entropy, abs=1e-12)
    assert {name: value.item() for name, value in metrics.items()} == pytest.approx(
        {"policy_loss": policy_loss, "value_loss": value_loss, "entropy": mean_entropy}, abs=1e-12
    )
    loss.backward()
    share = valid / len(rows)
    torch.testing.assert_close(log_prob.grad, -advantages.detach() * share)  # raises what was better than expected
    torch.testing.assert_close(values.grad, -(returns - values).detach() * share)  # draws V to R: 2 vf_coef = 1
    torch.testing.assert_close(entropy.grad, -0.01 * share)  # descent raises the entropy
    assert advantages.grad is None and returns.grad is None  # constants: the actor's loss must not move the critic


def test_rows_that_only_reset_teach_nothing():
    torch.manual_seed(0)
    agent = a2c.ActorCritic(Box(-1, 1, (2,)), Discrete(2))
    args = quick("--normalize-advantage", "--ent-coef", "0.1")
    observations, rewards = torch.randn(T + 1, N, 2), torch.randn(T, N)
    done = torch.rand(T, N) < 0.3
    valid = torch.cat([torch.ones(1, N, dtype=torch.bool), ~done[:-1]])
    done &= valid  # a row that resets is never done itself
    actions, terminated = torch.randint(2, (T, N)), done & (torch.rand(T, N) < 0.5)
    assert 0 < (~valid).sum() < valid.sum()

    def gradient(rewards, actions):
        optimizer = torch.optim.SGD(agent.parameters(), lr=0.0)
        a2c.update(agent, optimizer, observations, actions, rewards, terminated, done, valid, args)
        return torch.cat([p.grad.flatten() for p in agent.parameters()])

    reference = gradient(rewards, actions)
    other = gradient(torch.where(valid, rewards, 1e3), torch.where(valid, actions, 1 - actions))
    assert torch.equal(reference, other)
    assert not torch.equal(reference, gradient(torch.where(valid, 1e3, rewards), actions))


def test_normalize_uses_the_valid_rows():
    x, valid = torch.randn(T, N, dtype=torch.float64) * 5 + 3, torch.rand(T, N) < 0.7
    chosen = a2c.normalize(x, valid)[valid]
    assert chosen.mean().abs() < 1e-6 and abs(chosen.std(correction=0) - 1) < 1e-6
    none = torch.zeros(T, N, dtype=torch.bool)
    assert a2c.normalize(x, none).isfinite().all() and a2c.a2c_loss(x, x, x, x, x + 1, none, 1.0, 1.0)[0] == 0


# Policy


def test_discrete_policy():
    torch.manual_seed(0)
    agent = a2c.ActorCritic(Box(-1, 1, (4,)), Discrete(3))
    logits, values = agent(torch.randn(5, 2, 4))
    assert logits.shape == (5, 2, 3) and values.shape == (5, 2)
    logits = torch.tensor([0.0, 1.0, -1.0])
    probabilities = np.exp([0.0, 1.0, -1.0]) / np.exp([0.0, 1.0, -1.0]).sum()
    actions = agent.sample(logits.expand(100_000, 3))
    frequencies = np.bincount(actions, minlength=3) / len(actions)
    np.testing.assert_allclose(frequencies, probabilities, atol=5 * 0.5 / math.sqrt(len(actions)))  # 5 sigma
    log_prob, entropy = agent.log_prob_and_entropy(logits.expand(3, 3), torch.arange(3))
    np.testing.assert_allclose(log_prob, np.log(probabilities), atol=1e-6)
    np.testing.assert_allclose(entropy, -(probabilities * np.log(probabilities)).sum(), atol=1e-6)
    assert agent.greedy(logits) == 1


def test_continuous_policy():
    torch.manual_seed(0)
    agent = a2c.ActorCritic(Box(-1, 1, (4,)), Box(-1, 1, (2,)))
    means, values = agent(torch.randn(5, 3, 4))
    assert means.shape == (5, 3, 2) and values.shape == (5, 3)
    agent.log_std.data = torch.tensor([0.0, -1.0])
    mean, std = np.array([0.3, -0.2]), np.exp([0.0, -1.0])
    actions = agent.sample(torch.tensor(mean, dtype=torch.float32).expand(100_000, 2)).detach().numpy()
    np.testing.assert_allclose(actions.mean(0), mean, atol=5 / math.sqrt(len(actions)))
    np.testing.assert_allclose(actions.std(0), std, rtol=0.02)
    action = np.array([0.5, 0.5])
    log_prob, entropy = agent.log_prob_and_entropy(torch.tensor(mean), torch.tensor(action))
    density = np.exp(-(((action - mean) / std) ** 2) / 2) / (std * math.sqrt(2 * math.pi))
    assert log_prob.item() == pytest.approx(np.log(density).sum(), abs=1e-6)
    assert entropy.item() == pytest.approx((np.log(std) + 0.5 * math.log(2 * math.pi * math.e)).sum(), abs=1e-6)
    assert agent.greedy(torch.tensor(mean)).tolist() == mean.tolist()


# One update, written out


@pytest.mark.parametrize("space", [Discrete(2), Box(-1, 1, (2,))], ids=["discrete", "continuous"])
@pytest.mark.parametrize("normalized", [False, True])
def test_one_update_is_the_one_written_out_by_hand(space, normalized):
    """On a rollout with a terminal, a truncation, reset rows and a boundary inside episodes: weights to 1e-6."""
    torch.manual_seed(1)
    args = quick("--gae-lambda", "0.9", "--gamma", "0.95", "--ent-coef", "0.02", "--vf-coef", "0.4")
    args.normalize_advantage, args.max_grad_norm, learning_rate, eps = normalized, 0.3, 1e-2, 1e-5
    agent = a2c.ActorCritic(Box(-1, 1, (2,)), space).double()
    weights = {name: p.detach().clone() for name, p in agent.named_parameters()}
    steps, envs = 6, 2
    observations, rewards = torch.randn(steps + 1, envs, 2).double(), torch.randn(steps, envs).double()
    actions = torch.randint(2, (steps, envs)) if isinstance(space, Discrete) else torch.randn(steps, envs, 2).double()
    terminated, done = torch.zeros(2, steps, envs, dtype=torch.bool)
    valid = torch.ones(steps, envs, dtype=torch.bool)
    terminated[2, 0] = done[2, 0] = True  # environment 0 ends by itself, environment 1 is cut by the clock
    done[3, 1] = True
    valid[3, 0] = valid[4, 1] = False

    with torch.no_grad():
        value = {(t, n): agent.critic(observations[t, n]).item() for t in range(steps + 1) for n in range(envs)}
    transitions = [(t, n) for t in range(steps) for n in range(envs) if valid[t, n]]
    advantages = []
    for t, n in transitions:
        advantage = 0.0
        for k in range(t, steps):
            delta = rewards[k, n].item() + 0.95 * value[k + 1, n] * (not terminated[k, n]) - value[k, n]
            advantage += (0.95 * 0.9) ** (k - t) * delta
            if done[k, n]:
                break
        advantages.append(advantage)
    weighted = (advantages - np.mean(advantages)) / np.std(advantages) if normalized else advantages
    loss = 0.0
    for (t, n), advantage, weight in zip(transitions, advantages, weighted, strict=True):
        output = agent.actor(observations[t, n])
        if isinstance(space, Discrete):
            log_probs = output - output.exp().sum().log()
            log_prob, entropy = log_probs[actions[t, n]], -(log_probs.exp() * log_probs).sum()
        else:
            std = agent.log_std.exp()
            log_prob = (-(((actions[t, n] - output) / std) ** 2) / 2 - std.log() - math.log(2 * math.pi) / 2).sum()
            entropy = (std.log() + 0.5 * math.log(2 * math.pi * math.e)).sum()
        target = advantage + value[t, n]
        loss = loss - log_prob * weight + 0.4 * (target - agent.critic(observations[t, n])[0]) ** 2 - 0.02 * entropy
    gradients = torch.autograd.grad(loss / len(transitions), list(agent.parameters()))
    norm = math.sqrt(sum((g**2).sum().item() for g in gradients))
    assert norm > args.max_grad_norm, "the rollout must exercise the clipping"

    optimizer = torch.optim.Adam(agent.parameters(), lr=learning_rate, eps=eps, fused=True)
    metrics = a2c.update(agent, optimizer, observations, actions, rewards, terminated, done, valid, args)
    assert metrics["grad_norm"].item() == pytest.approx(norm, rel=1e-6)
    for (name, p), g in zip(agent.named_parameters(), gradients, strict=True):
        g = g * args.max_grad_norm / norm
        expected = weights[name] - learning_rate * g / (g.abs() + eps)  # Adam's first step: m / √v = g / |g|
        torch.testing.assert_close(p.detach(), expected, rtol=0, atol=1e-6)
        assert (p.detach() - weights[name]).abs().max() > 1e-4


# What train hands to the update


def recorded(monkeypatch, *flags):
    """Run train and return what each update received: NumPy copies in the order of update's arguments."""
    calls, original = [], a2c.update

    def update(agent, optimizer, *tensors_and_args):
        *tensors, _ = tensors_and_args
        calls.append([x.numpy().copy() for x in tensors] + [optimizer.param_groups[0]["lr"]])
        return original(agent, optimizer, *tensors_and_args)

    monkeypatch.setattr(a2c, "update", update)
    return calls, a2c.train(quick(*flags))


def test_rollouts_are_the_environment_s_transitions(monkeypatch):
    """Every row against the script of the environment: last observations true, reset rows invalid, nothing lost."""
    flags = "--env-id Scripted-v0 --num-envs 2 --num-steps 5 --total-timesteps 200".split()
    calls, (_, history) = recorded(monkeypatch, *flags)
    assert len(calls) == 20
    for n in range(2):
        episode = t = 0
        resets = False
        for observations, _, rewards, terminated, done, valid, _ in calls:
            for row in range(5):
                obs, next_obs = observations[row, n], observations[row + 1, n]
                assert valid[row, n] == (not resets)
                if resets:
                    episode, t, resets = episode + 1, 0, False
                    assert rewards[row, n] == 0 and not done[row, n] and tuple(next_obs) == (episode, 0)
                    continue
                assert tuple(obs) == (episode, t) and tuple(next_obs) == (episode, t + 1)
                t += 1
                assert rewards[row, n] == 10 * episode + t
                assert terminated[row, n] == (episode % 2 == 0 and t == 3)
                resets = bool(done[row, n])
                assert resets == (t == (3, 4)[episode % 2])
    lengths = [(3, 4)[k % 2] for k in range(len(history))]
    by_episode = [sum(10 * k + t for t in range(1, lengths[k] + 1)) for k in range(len(history) // 2)]
    assert [value for _, value in history] == [value for value in by_episode for _ in range(2)]
    assert [step for step, _ in history[:5]] == [6, 6, 16, 16, 24]  # 3 steps, reset, 4 steps, reset, 3 steps; 2 envs


def test_learning_rate_falls_to_zero(monkeypatch):
    calls, _ = recorded(monkeypatch, "--learning-rate", "0.1", "--num-envs", "4", "--num-steps", "64")
    assert [call[-1] for call in calls] == pytest.approx([0.1, 0.075, 0.05, 0.025])
    monkeypatch.undo()
    calls, _ = recorded(monkeypatch, "--learning-rate", "0.1", "--no-anneal-lr", "--num-envs", "4", "--num-steps", "64")
    assert [call[-1] for call in calls] == [0.1] * 4


def test_continuous_actions_are_clipped_only_at_the_door(monkeypatch):
    calls, _ = recorded(monkeypatch, "--env-id", "Target-v0")  # which asserts that its actions lie in the Box
    actions = np.concatenate([call[1] for call in calls])
    assert actions.shape[-1] == 1 and actions.dtype == np.float32
    assert np.abs(actions).max() > 2  # the log-probabilities are those of the actions as they were drawn


def test_discrete_actions_may_start_anywhere():
    assert a2c.env_action(np.array([0, 1]), Discrete(2, start=5)).tolist() == [5, 6]


# Branches


@pytest.mark.parametrize(
    "flags",
    [
        "",
        "--normalize-advantage",
        "--normalize-env",
        "--num-envs 1 --num-steps 1 --no-normalize-advantage",
        "--gae-lambda 1",
        "--eval-episodes 0",
    ],
)
def test_a_short_run(flags):
    agent, history = a2c.train(quick("--total-timesteps", "600", *flags.split()))
    assert history and all(0 < step <= 600 and value > 0 for step, value in history)
    assert all(p.isfinite().all() for p in agent.parameters())


def test_normalized_environment(tmp_path):
    """History in raw rewards, statistics in the checkpoint, evaluation with these and without touching them."""
    flags = ["--env-id", "Pendulum-v1", "--normalize-env", "--num-steps", "64", "--total-timesteps", "4096"]
    agent, history = a2c.train(quick(*flags))
    assert all(-2000 < value < -300 for _, value in history)  # 200 steps of a random policy
    obs_rms, return_rms = agent.statistics
    assert obs_rms.count > 4096 and return_rms.count > 4000 and obs_rms.mean.shape == (3,)
    before = obs_rms.mean.copy(), obs_rms.var.copy(), obs_rms.count
    returns = a2c.evaluate(agent, quick(*flags))
    assert np.array_equal(before[0], obs_rms.mean) and before[2] == obs_rms.count
    (path,) = tmp_path.glob("runs/*/checkpoint.pt")
    resumed, _ = a2c.train(quick(*flags, "--resume", str(path)))
    for rms, other in zip(agent.statistics, resumed.statistics, strict=True):
        assert np.array_equal(rms.mean, other.mean) and np.array_equal(rms.var, other.var) and rms.count == other.count
    assert a2c.evaluate(resumed, quick(*flags)) == returns
    assert a2c.evaluate(resumed, quick("--env-id", "Pendulum-v1")) != returns  # they do matter
    with pytest.raises(ValueError, match="normalize_env True"):
        a2c.train(quick("--env-id", "Pendulum-v1", "--total-timesteps", "4096", "--resume", str(path)))


def test_a_checkpoint_brings_everything_back(tmp_path):
    a2c.train(quick())
    (path,) = tmp_path.glob("runs/*/checkpoint.pt")
    saved = torch.load(path, weights_only=True)
    torch.manual_seed(9)
    agent = a2c.ActorCritic(Box(-1, 1, (4,)), Discrete(2))
    agent.statistics = ()
    optimizer = torch.optim.Adam(agent.parameters())
    assert a2c.load_checkpoint(quick("--resume", str(path)), agent, optimizer) == (1024, saved["wandb_id"])
    assert all(torch.equal(p, saved["agent"][name]) for name, p in agent.named_parameters())
    assert torch.equal(torch.get_rng_state(), saved["torch_rng"])
    state, expected = optimizer.state_dict()["state"], saved["optimizer"]["state"]
    assert len(expected) == 12
    assert all(torch.equal(state[i]["exp_avg_sq"], expected[i]["exp_avg_sq"]) for i in expected)


def test_a_resumed_run_goes_on(tmp_path, monkeypatch):
    """The schedule from its step on, the same W&B run, other episodes than those of any other start."""
    seeds, make_envs = [], a2c.make_envs

    def spied(args):
        envs = make_envs(args)
        reset = envs.reset
        envs.reset = lambda seed: seeds.append(seed) or reset(seed=seed)
        return envs

    monkeypatch.setattr(a2c, "make_envs", spied)
    a2c.train(quick("--total-timesteps", "512"))
    (path,) = tmp_path.glob("runs/*/checkpoint.pt")
    calls, _ = recorded(monkeypatch, "--learning-rate", "0.1", "--resume", str(path))
    assert calls[0][-1] == pytest.approx(0.05)
    a2c.train(quick("--seed", "2"))
    assert len(seeds) == 3 and min(np.diff(sorted(seeds))) > 1000  # Gymnasium counts up, one per environment
    ids = [torch.load(p, weights_only=True)["wandb_id"] for p in tmp_path.glob("runs/*/checkpoint.pt")]
    assert ids.count(torch.load(path, weights_only=True)["wandb_id"]) == 2


def test_the_seed_draws_the_network():
    one, two = (a2c.train(quick("--learning-rate", "0", "--seed", seed))[0] for seed in "12")
    assert not torch.equal(one.actor[0].weight, two.actor[0].weight)


def test_the_first_policy_has_no_preference():
    assert a2c.ActorCritic(Box(-1, 1, (4,)), Discrete(2))(torch.randn(99, 4))[0].abs().max() < 0.1


def test_a_gradient_that_is_not_finite_changes_no_weight():
    agent = a2c.ActorCritic(Box(-1, 1, (2,)), Discrete(2))
    before = [p.detach().clone() for p in agent.parameters()]
    actions, no, yes = torch.zeros(3, 1, dtype=torch.int64), torch.zeros(3, 1), torch.ones(3, 1)
    optimizer = torch.optim.Adam(agent.parameters())
    a2c.update(agent, optimizer, torch.zeros(4, 1, 2), actions, yes * torch.nan, no, no, yes, quick())
    assert all(torch.equal(a, b) for a, b in zip(before, agent.parameters(), strict=True))


def test_adam_has_no_momentum(monkeypatch):
    seen, update = [], a2c.update
    spy = lambda agent, optimizer, *rest: seen.append(optimizer.defaults) or update(agent, optimizer, *rest)  # noqa: E731
    monkeypatch.setattr(a2c, "update", spy)
    a2c.train(quick())
    assert seen[0]["betas"] == (0.0, 0.999) and seen[0]["eps"] == 1e-5


def test_episodes_that_are_logged(monkeypatch):
    seen, log = [], a2c.log_progress
    spy = lambda *args: seen.append(list(args[3])) or log(*args)  # noqa: E731
    monkeypatch.setattr(a2c, "log_progress", spy)
    _, history = a2c.train(quick("--env-id", "Scripted-v0", "--total-timesteps", "2048"))
    assert [value for value, _ in seen[-1]] == [value for _, value in history[-100:]] and len(history) > 100
    assert {length for _, length in seen[-1]} == {3, 4}  # the reset row is no step of an episode


def test_a_save_that_fails_leaves_the_last_checkpoint(tmp_path, monkeypatch):
    a2c.train(quick())
    (path,) = tmp_path.glob("runs/*/checkpoint.pt")
    before = path.read_bytes()

    def half(checkpoint, file):
        file.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", half)
    agent = a2c.ActorCritic(Box(-1, 1, (4,)), Discrete(2))
    agent.statistics = ()
    with pytest.raises(OSError):
        a2c.save_checkpoint(path.parent, quick(), agent, torch.optim.Adam(agent.parameters()), 0, "")
    assert path.read_bytes() == before


def test_evaluation_speaks_the_environment_s_actions():
    agent = a2c.ActorCritic(Box(-1, 1, (1,)), Box(-2, 2, (1,)))
    torch.nn.init.constant_(agent.actor[-1].bias, 9.0)  # far outside the Box, which Target-v0 asserts
    assert a2c.evaluate(agent, quick("--env-id", "Target-v0")) == [-2.25]


def test_evaluation_is_greedy_and_seeded():
    torch.manual_seed(0)
    agent, args = a2c.ActorCritic(Box(-1, 1, (4,)), Discrete(2)), quick("--eval-episodes", "3")
    returns = a2c.evaluate(agent, args)
    assert len(returns) == 3 and a2c.evaluate(agent, args) == returns
    env, expected = gym.make("CartPole-v1"), []
    for episode in range(3):
        obs, _ = env.reset(seed=a2c.env_seed(args.seed, 1, episode))
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
        a2c.train(quick("--env-id", env_id))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("env_id", ["NeedsArgument-v0", "SameStep-v0", "BrokenReset-v0"])
def test_environments_that_fail(env_id, tmp_path):
    """Before training starts: an error that names the environment or is its own, and nothing on the disk."""
    with pytest.raises((ValueError, ZeroDivisionError), match=f"--env-id {env_id}|by its reset"):
        a2c.train(quick("--env-id", env_id))
    assert not list(tmp_path.iterdir())


def test_less_than_one_rollout(capsys):
    with pytest.raises(SystemExit) as stop:
        a2c.parse_args(["--num-envs", "8", "--num-steps", "10", "--total-timesteps", "79"])
    assert stop.value.code == 2 and "num_envs x num_steps = 80" in capsys.readouterr().err


# Probe environments

PROBE = "--num-envs 8 --num-steps 8 --learning-rate 0.01 --gamma 0.9 --vf-coef 0.5 --eval-episodes 20".split()


def learn(env_id, *flags):
    """Train on a probe -> the agent and a function that gives V of an observation."""
    agent, _ = a2c.train(quick(*PROBE, "--env-id", env_id, "--total-timesteps", "20000", *flags))
    return agent, lambda obs: agent(torch.tensor([float(obs)]))[1].item()


def test_probe_1_value_of_a_constant_reward():
    _, value = learn("ConstantReward-v0")
    assert value(0) == pytest.approx(1, abs=0.05)


def test_probe_2_value_depends_on_the_observation():
    _, value = learn("ObservationReward-v0")
    assert value(-1) == pytest.approx(-1, abs=0.05) and value(1) == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("gae_lambda", ["0", "0.8", "1"])
def test_probe_3_reward_one_step_later(gae_lambda):
    _, value = learn("DelayedReward-v0", "--gae-lambda", gae_lambda)
    assert value(0) == pytest.approx(0.9, abs=0.05) and value(1) == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("env_id", ["ActionReward-v0", "ObservationActionReward-v0"])
def test_probes_4_and_5_reward_depends_on_the_action(env_id):
    agent, _ = learn(env_id)
    assert a2c.evaluate(agent, quick(*PROBE, "--env-id", env_id)) == [1.0] * 20


@pytest.mark.parametrize("gae_lambda", ["0", "0.8", "1"])
def test_probe_6_a_time_limit_is_no_end(gae_lambda):
    """V = 1 / (1 - γ) = 10, though every episode is cut after 5 steps, whose sum is 4.1."""
    _, value = learn("EndlessReward-v0", "--gae-lambda", gae_lambda)
    assert value(0) == pytest.approx(10, rel=0.05)


def test_probe_7_a_continuous_action():
    agent, _ = learn("Target-v0", "--learning-rate", "0.003")
    assert agent(torch.zeros(1))[0].item() == pytest.approx(0.5, abs=0.1)
