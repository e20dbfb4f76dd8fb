"""a3c.py: its equations against independent definitions, every branch, probe environments, and what can go wrong."""

import math
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete

import a3c

ROOT = Path(__file__).parents[1]
FAULT_RUNS = int(os.environ.get("FAULT_RUNS", 1))  # how often each fault is tried
SPAWN = multiprocessing.get_context("spawn")


def quick(*flags):
    """Arguments of a run that lasts a blink; later flags win."""
    base = "--wandb-mode disabled --total-timesteps 1024 --num-workers 1 --eval-episodes 1"
    return a3c.parse_args([*base.split(), *flags])


def make(args):
    """The shared agent and optimizer, as train makes them."""
    torch.manual_seed(args.seed)
    agent = a3c.ActorCritic(*a3c.spaces(args), args.lstm)
    return agent, a3c.SharedRMSprop(agent, 1, args.rmsprop_decay, args.rmsprop_eps)


def work(*flags, rank=0, start_step=0):
    """One worker in this process -> agent, what it has sent after its first message, the counter."""
    torch.set_num_threads(1)  # as in a process of its own
    args, sent = quick(*flags), []
    agent, optimizer = make(args)
    steps = SPAWN.Value("q", start_step)
    a3c.worker(sent.append, rank, args, optimizer, steps, start_step)
    assert sent[0] == (start_step, 0, 0.0, None, {})
    return agent, sent[1:], steps.value


def recorded(monkeypatch, *flags, **options):
    """Run a worker -> what each update received, by name; what the worker sent."""
    calls, original = [], a3c.update
    names = "observations state actions rewards terminated learning_rate rank".split()

    def update(agent, optimizer, *rest):
        calls.append(dict(zip(names, rest[:-1], strict=True)))
        return original(agent, optimizer, *rest)

    monkeypatch.setattr(a3c, "update", update)
    _, sent, _ = work(*flags, **options)
    return calls, sent


# Returns and loss


@pytest.mark.parametrize("seed", range(5))
def test_returns_are_the_discounted_sums(seed):
    rng = np.random.default_rng(seed)
    rewards, last_value = rng.normal(size=7).tolist(), rng.normal()
    expected = [sum(0.9**k * r for k, r in enumerate(rewards[t:])) + 0.9 ** (7 - t) * last_value for t in range(7)]
    np.testing.assert_allclose(a3c.n_step_returns(rewards, last_value, 0.9), expected, rtol=0, atol=1e-12)


def test_the_fox():
    """The A2C comic: rewards 1, 20, 2, then a state that the critic values at 18, γ = 1."""
    assert a3c.n_step_returns([1.0, 20.0, 2.0], 18.0, 1.0) == [41, 40, 20]


def test_loss_and_its_gradient():
    rng = np.random.default_rng(0)
    log_prob, entropy, values, returns = (torch.as_tensor(x).requires_grad_() for x in rng.normal(size=(4, 7)))
    loss, metrics = a3c.a3c_loss(log_prob, entropy, values, returns.detach(), 0.5, 0.01)
    expected = 0.0
    for t in range(7):
        advantage = returns[t].item() - values[t].item()
        expected += -log_prob[t].item() * advantage + 0.5 * advantage**2 - 0.01 * entropy[t].item()
    assert loss.item() == pytest.approx(expected, abs=1e-12)
    advantages = (returns - values).detach()
    assert {name: value.item() for name, value in metrics.items()} == pytest.approx(
        {
            "policy_loss": -(advantages * log_prob).mean().item(),
            "value_loss": (advantages**2).mean().item(),
            "entropy": entropy.mean().item(),
        }
    )
    loss.backward()
    torch.testing.assert_close(log_prob.grad, -advantages)  # raises what was better than expected
    torch.testing.assert_close(values.grad, -advantages)  # draws V to R: 2 vf_coef = 1; not moved by the actor's loss
    torch.testing.assert_close(entropy.grad, torch.full((7,), -0.01).double())  # descent raises the entropy


# Policy


def test_discrete_policy():
    torch.manual_seed(0)
    agent = a3c.ActorCritic(Box(-1, 1, (4,)), Discrete(3), False)
    logits, values, state = agent(torch.randn(5, 4))
    assert logits.shape == (5, 3) and values.shape == (5,) and state is None
    assert logits.abs().max() < 0.1  # the first policy has no preference
    logits = torch.tensor([0.0, 1.0, -1.0])
    probabilities = np.exp([0.0, 1.0, -1.0]) / np.exp([0.0, 1.0, -1.0]).sum()
    frequencies = np.bincount(agent.sample(logits.expand(100_000, 3)), minlength=3) / 100_000
    np.testing.assert_allclose(frequencies, probabilities, atol=5 * 0.5 / math.sqrt(100_000))  # 5 sigma
    log_prob, entropy = agent.log_prob_and_entropy(logits.expand(3, 3), torch.arange(3))
    np.testing.assert_allclose(log_prob, np.log(probabilities), atol=1e-6)
    np.testing.assert_allclose(entropy, -(probabilities * np.log(probabilities)).sum(), atol=1e-6)
    assert agent.greedy(logits) == 1


def test_continuous_policy():
    torch.manual_seed(0)
    agent = a3c.ActorCritic(Box(-1, 1, (4,)), Box(-1, 1, (2,)), False)
    means, values, _ = agent(torch.randn(5, 4))
    assert means.shape == (5, 2) and values.shape == (5,)
    torch.nn.init.constant_(agent.log_std, -1.0)
    mean, std = np.array([0.3, -0.2]), np.exp(-1.0)
    actions = agent.sample(torch.tensor(mean).expand(100_000, 2)).detach().numpy()
    np.testing.assert_allclose(actions.mean(0), mean, atol=5 / math.sqrt(len(actions)))
    np.testing.assert_allclose(actions.std(0), std, rtol=0.02)
    action = np.array([0.5, 0.5])
    log_prob, entropy = agent.log_prob_and_entropy(torch.tensor(mean), torch.tensor(action))
    density = np.exp(-(((action - mean) / std) ** 2) / 2) / (std * math.sqrt(2 * math.pi))
    assert log_prob.item() == pytest.approx(np.log(density).sum(), abs=1e-6)
    assert entropy.item() == pytest.approx(2 * (np.log(std) + 0.5 * math.log(2 * math.pi * math.e)), abs=1e-6)
    assert agent.greedy(torch.tensor(mean)).tolist() == mean.tolist()


def lstm_by_hand(lstm, features, state):
    """(num_steps, num_features), (h, c) -> the outputs, one step after the other, from the definition."""
    (h, c), outputs = state, []
    for x in features:
        gates = lstm.weight_ih_l0 @ x + lstm.bias_ih_l0 + lstm.weight_hh_l0 @ h + lstm.bias_hh_l0
        i, f, g, o = gates.split(256)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        outputs.append(h)
    return torch.stack(outputs), (h, c)


def test_the_memory_is_an_lstm_whose_state_goes_on():
    torch.manual_seed(0)
    agent, zeros = a3c.ActorCritic(Box(-1, 1, (4,)), Discrete(2), True), torch.zeros(256)
    observations = torch.randn(7, 4)
    logits, values, state = agent(observations)
    outputs, (h, c) = lstm_by_hand(agent.lstm, agent.body(observations), (zeros, zeros))
    torch.testing.assert_close(logits, agent.actor(outputs))
    torch.testing.assert_close(values, agent.critic(outputs).squeeze(-1))
    torch.testing.assert_close(state, (h[None], c[None]))
    first, _, state = agent(observations[:3])
    second, _, _ = agent(observations[3:], state)
    torch.testing.assert_close(torch.cat([first, second]), logits)


def test_the_network_for_atari():
    agent = a3c.ActorCritic(Box(0, 255, (4, 84, 84), np.uint8), Discrete(6), False)
    shapes = [tuple(p.shape) for name, p in agent.named_parameters() if name.endswith("weight")]
    assert shapes == [(16, 4, 8, 8), (32, 16, 4, 4), (256, 2592), (6, 256), (1, 256)]
    frames = torch.randint(256, (3, 4, 84, 84), dtype=torch.uint8)
    logits, values, _ = agent(frames)
    assert logits.shape == (3, 6) and values.shape == (3,)
    torch.testing.assert_close(values, agent.critic(agent.body(frames.float() / 255)).squeeze(-1))
    assert a3c.ActorCritic(Box(0, 255, (4, 84, 84), np.uint8), Discrete(6), True)(frames)[0].shape == (3, 6)


# Shared memory, RMSProp, and the hand-over


def follow(optimizer, agent, pipe):
    """In a process: RMSProp's step for each gradient that comes, until None; then what the agent holds here."""
    while (message := pipe.recv()) is not None:
        optimizer.step(*message)
        pipe.send(None)
    pipe.send(torch.cat([p.detach().flatten() for p in agent.parameters()]).numpy())


def paper(theta, g, gradient, learning_rate, decay=0.9, eps=0.01):
    """RMSProp of the paper, in float64 -> (θ, g)."""
    g = decay * g + (1 - decay) * gradient.astype(float) ** 2
    return theta - learning_rate * gradient / np.sqrt(g + eps), g


@pytest.mark.parametrize("num_statistics", [1, 2])
def test_rmsprop_is_the_paper_s_from_two_processes(num_statistics):
    """10 steps in turns; with one g for both processes, and with one for each."""
    agent = a3c.ActorCritic(Box(-1, 1, (2,)), Discrete(2), False)
    optimizer = a3c.SharedRMSprop(agent, num_statistics, 0.9, 0.01)
    optimizer.weights.mul_(0.1)  # ten roundings of a float32 near 1 would be more than 1e-7
    theta, g = optimizer.weights.numpy().astype(float), np.zeros((num_statistics, len(optimizer.weights)))
    pipes, processes = [], []
    for _ in range(2):
        pipe, other = SPAWN.Pipe()
        processes.append(SPAWN.Process(target=follow, args=(optimizer, agent, other), daemon=True))
        pipes.append(pipe)
        processes[-1].start()
    rng = np.random.default_rng(0)
    for i in range(10):
        gradient, learning_rate, rank = rng.normal(size=len(theta)).astype(np.float32), 1e-3 / (1 + i), i % 2
        pipes[rank].send((torch.as_tensor(gradient), learning_rate, rank))
        pipes[rank].recv()
        row = rank if num_statistics == 2 else 0
        theta, g[row] = paper(theta, g[row], gradient, learning_rate)
    np.testing.assert_allclose(optimizer.weights, theta, rtol=0, atol=1e-7)
    np.testing.assert_allclose(optimizer.mean_square, g, rtol=1e-5, atol=1e-7)
    own = torch.cat([p.detach().flatten() for p in agent.parameters()])  # the agent's parameters are these weights
    for pipe, process in zip(pipes, processes, strict=True):
        pipe.send(None)
        assert np.array_equal(pipe.recv(), own) and np.array_equal(own, optimizer.weights)
        process.join()


def random_rollout(agent, num_steps, obs_dim):
    """(observations, state, actions, rewards) with more rows of observations than steps, as update takes them."""
    actions = torch.randint(2, (num_steps,)) if agent.discrete else torch.randn(num_steps, 2)
    state = (torch.randn(1, 256), torch.randn(1, 256)) if agent.lstm is not None else None
    return torch.randn(num_steps + 1, obs_dim), state, actions, torch.randn(num_steps).tolist()


def gradient_by_hand(agent, observations, state, actions, rewards, terminated, args):
    """∇L of Alg. S3, step by step, for the weights of the agent -> a list of tensors."""
    if agent.lstm is not None:
        features, _ = lstm_by_hand(agent.lstm, agent.body(observations), (state[0][0], state[1][0]))
    else:
        features = agent.body(observations)
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
    return torch.autograd.grad(loss, list(agent.parameters()))


@pytest.mark.parametrize("space", [Discrete(2), Box(-1, 1, (2,))], ids=["discrete", "continuous"])
@pytest.mark.parametrize("lstm", [False, True])
@pytest.mark.parametrize("terminated", [False, True])
def test_two_updates_are_those_written_out_by_hand(space, lstm, terminated):
    """Loss, clipping, RMSProp; and the second update is by the second gradient alone, at the weights then copied."""
    torch.manual_seed(1)
    args = quick("--gamma", "0.95", "--ent-coef", "0.02", "--vf-coef", "0.4", "--max-grad-norm", "0.5")
    shared = a3c.ActorCritic(Box(-1, 1, (2,)), space, lstm)
    agent = a3c.ActorCritic(Box(-1, 1, (2,)), space, lstm)
    optimizer, weights = a3c.SharedRMSprop(shared, 1, 0.9, 0.01), a3c.one_vector(agent)
    theta, g = optimizer.weights.numpy().astype(float), np.zeros(len(weights))
    for _ in range(2):
        weights.copy_(optimizer.weights)
        rollout = random_rollout(agent, 6, 2)
        gradients = gradient_by_hand(agent, *rollout, terminated, args)
        gradient = torch.cat([x.flatten() for x in gradients]).numpy()
        norm = np.linalg.norm(gradient)
        assert norm > 0.5, "the rollout must exercise the clipping"
        before = theta
        theta, g = paper(theta, g, gradient * 0.5 / norm, 0.01)
        metrics = a3c.update(agent, optimizer, *rollout, terminated, 0.01, 0, args)
        assert metrics["grad_norm"].item() == pytest.approx(norm, rel=1e-5)
        np.testing.assert_allclose(optimizer.weights, theta, rtol=0, atol=1e-6)
        assert np.abs(theta - before).max() > 1e-3
        assert not torch.equal(weights, optimizer.weights)  # only the next copy brings the step to the local agent


def test_small_gradients_are_not_clipped():
    torch.manual_seed(1)
    agent, args = a3c.ActorCritic(Box(-1, 1, (2,)), Discrete(2), False), quick("--max-grad-norm", "1e6")
    optimizer = a3c.SharedRMSprop(agent, 1, 0.0, 0.0)
    rollout = random_rollout(agent, 6, 2)
    gradient = torch.cat([x.flatten() for x in gradient_by_hand(agent, *rollout, False, args)])
    a3c.update(agent, optimizer, *rollout, False, 0.0, 0, args)
    torch.testing.assert_close(optimizer.mean_square[0], gradient**2)


def test_a_gradient_that_is_not_finite_changes_nothing():
    agent = a3c.ActorCritic(Box(-1, 1, (2,)), Discrete(2), False)
    optimizer = a3c.SharedRMSprop(agent, 1, 0.9, 0.01)
    before = optimizer.weights.clone()
    observations, state, actions, _ = random_rollout(agent, 6, 2)
    a3c.update(agent, optimizer, observations, state, actions, [math.nan] * 6, False, 0.1, 0, quick())
    assert torch.equal(optimizer.weights, before) and not optimizer.mean_square.any()


@pytest.mark.parametrize("lstm", ["--lstm", "--no-lstm"])
def test_one_worker_is_a_single_process_bit_for_bit(lstm):
    """Against a plain loop with gradients by autograd.grad and no memory shared: equal weights and history."""
    flags = [lstm, "--no-shared-statistics", "--num-steps", "7"]
    args = quick(*flags)
    trained, history = a3c.train(args)

    torch.manual_seed(args.seed)
    env = gym.make(args.env_id)
    agent = a3c.ActorCritic(env.observation_space, env.action_space, args.lstm)
    weights = torch.nn.utils.parameters_to_vector(agent.parameters()).detach()
    g = torch.zeros_like(weights)
    seed = a3c.env_seed(args.seed, 0, 0, 0)
    torch.manual_seed(seed)
    obs, _ = env.reset(seed=seed)
    step, expected, total, state = 0, [], 0.0, None
    while step < args.total_timesteps:
        learning_rate = args.learning_rate * (1 - step / args.total_timesteps)
        observations, actions, rewards, before = [obs], [], [], state
        for _ in range(min(7, args.total_timesteps - step)):
            with torch.no_grad():
                logits, _, state = agent(torch.as_tensor(obs)[None], state)
                actions.append(int(agent.sample(logits)))
            obs, reward, terminated, truncated, _ = env.step(actions[-1])
            observations.append(obs)
            rewards.append(reward)
            if terminated or truncated:
                break
        step, total = step + len(rewards), total + sum(rewards)
        logits, values, _ = agent(torch.as_tensor(np.stack(observations)), before)
        returns = a3c.n_step_returns(rewards, 0.0 if terminated else values[-1].item(), args.gamma)
        log_prob, entropy = agent.log_prob_and_entropy(logits[:-1], torch.tensor(actions))
        loss, _ = a3c.a3c_loss(log_prob, entropy, values[:-1], torch.tensor(returns), args.vf_coef, args.ent_coef)
        gradients = torch.autograd.grad(loss, list(agent.parameters()))
        gradient = torch.cat([x.flatten() for x in gradients])
        gradient = gradient * (args.max_grad_norm / gradient.norm()).clamp(max=1)
        g = (args.rmsprop_decay * g).addcmul(gradient, gradient, value=1 - args.rmsprop_decay)
        weights = weights.addcdiv(gradient, (g + args.rmsprop_eps).sqrt(), value=-learning_rate)
        torch.nn.utils.vector_to_parameters(weights, agent.parameters())
        if terminated or truncated:
            expected.append((step, total))
            obs, _ = env.reset()
            total, state = 0.0, None
    assert history == expected and step == args.total_timesteps
    for p, q in zip(trained.parameters(), agent.parameters(), strict=True):
        assert torch.equal(p, q)
    assert multiprocessing.active_children() == []


# What a worker hands to the update


def test_rollouts_are_the_environment_s_transitions(monkeypatch):
    """Every row against the script of the environment; the step budget is met exactly."""
    calls, sent = recorded(monkeypatch, *"--env-id Scripted-v0 --num-steps 2 --total-timesteps 99".split())
    episode = t = step = 0
    ends = []
    for call in calls:
        first = t
        for row, reward in enumerate(call["rewards"]):
            assert tuple(call["observations"][row]) == (episode, t)
            t, step = t + 1, step + 1
            assert reward == 10 * episode + t
        assert tuple(call["observations"][-1]) == (episode, t) and len(call["observations"]) == t - first + 1
        assert call["terminated"] == (episode % 2 == 0 and t == 3)
        if t == (3, 4)[episode % 2]:
            ends.append((step, (sum(10 * episode + k for k in range(1, t + 1)), t)))
            episode, t = episode + 1, 0
        else:
            assert t - first == 2 or step == 99
    assert step == 99
    assert [(message[0], message[3]) for message in sent if message[3]] == ends


def test_the_memory_s_state_is_carried_and_reset(monkeypatch):
    """From rollout to rollout without a graph, from zeros again with each episode."""
    calls, _ = recorded(monkeypatch, *"--env-id Scripted-v0 --num-steps 2 --total-timesteps 35 --lstm".split())
    starts = [tuple(call["observations"][0].tolist())[1] == 0 for call in calls]
    assert starts[:4] == [True, False, True, False]
    for start, call in zip(starts, calls, strict=True):
        assert (call["state"] is None) == start
        assert start or not any(x.requires_grad for x in call["state"])
    args = quick("--lstm", "--env-id", "Scripted-v0")
    agent, _ = make(args)  # the weights before the first update, with which the first rollout was played
    _, _, state = agent(calls[0]["observations"][:2])
    torch.testing.assert_close(calls[1]["state"], state)


def test_learning_rate_falls_to_zero(monkeypatch):
    flags = "--learning-rate 0.1 --env-id EndlessReward-v0 --num-steps 5 --total-timesteps 20".split()
    calls, sent = recorded(monkeypatch, *flags)
    assert [call["learning_rate"] for call in calls] == pytest.approx([0.1, 0.075, 0.05, 0.025])
    assert [message[2] for message in sent] == [call["learning_rate"] for call in calls]
    monkeypatch.undo()
    calls, _ = recorded(monkeypatch, *flags, "--no-anneal-lr")
    assert [call["learning_rate"] for call in calls] == [0.1] * 4
    monkeypatch.undo()
    calls, _ = recorded(monkeypatch, *flags, start_step=10)  # resumed: the schedule goes on
    assert [call["learning_rate"] for call in calls] == pytest.approx([0.05, 0.025])


def test_each_worker_has_its_own_stream(monkeypatch):
    """Other episodes and other actions for each rank, and after a resume."""
    rollouts = {}
    for rank, start_step in ((0, 0), (1, 0), (0, 100)):
        calls, _ = recorded(monkeypatch, "--total-timesteps", "120", rank=rank, start_step=start_step)
        rollouts[rank, start_step] = calls[0]
        assert calls[0]["rank"] == rank
        monkeypatch.undo()
    assert len({tuple(x["observations"][0].tolist()) for x in rollouts.values()}) == 3
    assert len({tuple(x["actions"].tolist()) for x in rollouts.values()}) == 3


def test_what_a_worker_reports():
    """A message for each episode's end and at each interval, with the newest metrics as plain numbers."""
    flags = "--env-id EndlessReward-v0 --num-steps 2 --log-interval 8 --checkpoint-interval 14 --total-timesteps 21"
    _, sent, steps = work(*flags.split())
    assert [(message[0], message[1], message[3]) for message in sent] == [
        (5, 1, (5.0, 5)),
        (9, 2, None),
        (10, 1, (5.0, 5)),
        (14, 2, None),
        (15, 1, (5.0, 5)),
        (17, 2, None),
        (20, 1, (5.0, 5)),
        (21, 1, None),
    ]
    assert steps == 21
    for *_, metrics in sent:
        assert set(metrics) == {"policy_loss", "value_loss", "entropy", "grad_norm"}
        assert all(type(value) is float for value in metrics.values())


def test_continuous_actions_are_clipped_only_at_the_door(monkeypatch):
    calls, _ = recorded(monkeypatch, "--env-id", "Target-v0")  # which asserts that its actions lie in the Box
    actions = torch.cat([call["actions"] for call in calls])
    assert actions.shape == (1024, 1) and actions.dtype == torch.float32
    assert actions.abs().max() > 2  # the log-probabilities are those of the actions as they were drawn


def test_atari(monkeypatch):
    """Frames as they come, clipped rewards to learn from, raw ones reported, no row for a reset."""
    flags = "--env-id ALE/MsPacman-v5 --total-timesteps 700 --num-steps 50 --learning-rate 0"
    calls, sent = recorded(monkeypatch, *flags.split())
    rewards = [reward for call in calls for reward in call["rewards"]]
    assert set(rewards) == {0.0, 1.0} and len(rewards) == 700
    frames = torch.cat([call["observations"][:-1] for call in calls])
    assert frames.shape == (700, 4, 84, 84) and frames.dtype == torch.uint8
    (step, _, _, episode, _), *_ = [message for message in sent if message[3]]
    assert episode[1] == step and episode[0] == 10 * sum(rewards[:step]) >= 100  # pellets
    ends = [i for i, call in enumerate(calls[:-1]) if call["terminated"]]
    assert ends
    for i in range(len(calls) - 1):
        last, first = calls[i]["observations"][-1], calls[i + 1]["observations"][0]
        assert torch.equal(last, first) == (i not in ends)
        if i in ends:
            assert not torch.equal(first[:-1], last[1:])
    args = quick(*flags.split())
    args.eval_episodes = 1
    assert a3c.evaluate(make(args)[0], args)[0] % 10 == 0


# Runs


def test_two_workers_share_one_budget(tmp_path, capsys):
    handler = signal.getsignal(signal.SIGINT)
    flags = "--num-workers 2 --total-timesteps 10000 --num-steps 9 --no-shared-statistics --log-interval 2000"
    agent, history = a3c.train(quick(*flags.split()))
    (path,) = tmp_path.glob("runs/*/checkpoint.pt")
    checkpoint = torch.load(path, weights_only=True)
    assert 10_000 <= checkpoint["global_step"] < 10_000 + 2 * 9
    assert sum(value for _, value in history) <= checkpoint["global_step"]  # CartPole: a reward a step
    assert checkpoint["optimizer"].shape == (2, sum(p.numel() for p in agent.parameters()))
    assert checkpoint["optimizer"][0].any()
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step")]
    assert len(lines) == 5 and "100%" in lines[-1]
    assert multiprocessing.active_children() == [] and signal.getsignal(signal.SIGINT) is handler
    a3c.train(quick(*flags.split(), "--total-timesteps", "10100", "--resume", str(path)))
    with pytest.raises(ValueError, match="no checkpoint of this script, environment and network"):
        a3c.train(quick("--resume", str(path)))  # whose statistics are one row
    with pytest.raises(ValueError, match="no checkpoint of this script, environment and network"):
        a3c.train(quick(*flags.split(), "--lstm", "--resume", str(path)))


def test_a_checkpoint_brings_everything_back(tmp_path):
    args = quick()
    agent, optimizer = make(args)
    optimizer.mean_square.uniform_()
    a3c.save_checkpoint(tmp_path, args, agent, optimizer, 512, "id")
    torch.manual_seed(9)
    other = a3c.ActorCritic(Box(-1, 1, (4,)), Discrete(2), False)
    fresh = a3c.SharedRMSprop(other, 1, 0.9, 0.1)
    assert a3c.load_checkpoint(quick("--resume", str(tmp_path / "checkpoint.pt")), other, fresh) == (512, "id")
    assert torch.equal(fresh.weights, optimizer.weights) and torch.equal(fresh.mean_square, optimizer.mean_square)
    assert fresh.weights.is_shared() and fresh.mean_square.is_shared()
    assert all(torch.equal(p, q) for p, q in zip(agent.parameters(), other.parameters(), strict=True))


def test_a_save_that_fails_leaves_the_last_checkpoint(tmp_path, monkeypatch):
    args = quick()
    a3c.save_checkpoint(tmp_path, args, *make(args), 512, "id")
    before = (tmp_path / "checkpoint.pt").read_bytes()

    def half(checkpoint, file):
        file.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(OSError):
        a3c.save_checkpoint(tmp_path, args, *make(args), 1024, "id")
    assert (tmp_path / "checkpoint.pt").read_bytes() == before


def test_evaluation_is_greedy_and_seeded():
    args = quick("--eval-episodes", "3")
    agent, _ = make(args)
    returns = a3c.evaluate(agent, args)
    assert len(returns) == 3 and a3c.evaluate(agent, args) == returns
    env, expected = gym.make("CartPole-v1"), []
    for episode in range(3):
        obs, _ = env.reset(seed=a3c.env_seed(args.seed, 1, episode))
        done, total = False, 0.0
        while not done:
            obs, reward, terminated, truncated, _ = env.step(int(agent(torch.as_tensor(obs)[None])[0].argmax()))
            done, total = terminated or truncated, total + reward
        expected.append(total)
    assert returns == expected


def test_evaluation_speaks_the_environment_s_actions():
    args = quick("--env-id", "Target-v0")
    agent, _ = make(args)
    torch.nn.init.constant_(agent.actor.bias, 9.0)  # far outside the Box, which Target-v0 asserts
    assert a3c.evaluate(agent, args) == [-2.25]


@pytest.mark.parametrize(
    "env_id",
    ["DictObservation-v0", "ImageObservation-v0", "MultiDiscreteAction-v0", "IntegerAction-v0", "FrozenLake-v1"],
)
def test_environments_that_it_cannot_take(env_id, tmp_path):
    with pytest.raises(ValueError, match=f"--env-id {env_id}: takes flat Box observations"):
        a3c.train(quick("--env-id", env_id))
    assert not list(tmp_path.iterdir())


def test_environments_that_fail(tmp_path):
    with pytest.raises(ValueError, match="--env-id NeedsArgument-v0"):
        a3c.train(quick("--env-id", "NeedsArgument-v0"))
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match=r"worker 0: ZeroDivisionError: by its reset \(.*probes.py, line \d+\)"):
        a3c.train(quick("--env-id", "probes:BrokenReset-v0"))
    assert multiprocessing.active_children() == []


# Faults, each in a run of its own, FAULT_RUNS times


def children(pid):
    """Processes whose parent is `pid`: {pid: command line}."""
    found = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(stat.read_text().rpartition(")")[2].split()[1]) == pid:
                found[int(stat.parent.name)] = (stat.parent / "cmdline").read_text()
        except (OSError, ValueError):  # it has ended in the meantime
            pass
    return found


def session(pid):
    """Processes of the session that `pid` has begun."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, leader = stat.read_text().rpartition(")")[2].split()[:4]
        except OSError:
            continue
        if int(leader) == pid and state != "Z":
            found.append(int(stat.parent.name))
    return found


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
@pytest.mark.parametrize("run", range(FAULT_RUNS))
@pytest.mark.parametrize("fault", ["worker killed", "environment raises", "SIGTERM", "Ctrl-C", "parent killed"])
def test_faults_end_everything_at_once(fault, run, tmp_path):
    env_id = "probes:Crash-v0" if fault == "environment raises" else "CartPole-v1"
    flags = f"--env-id {env_id} --total-timesteps 100000000 --log-interval 200 --checkpoint-interval 200"
    command = [sys.executable, ROOT / "a3c.py", *flags.split(), "--wandb-mode", "disabled"]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "tests")}
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    with subprocess.Popen(command, env=environment, **options) as process:
        lines = (line for line in process.stdout if line.startswith("step"))
        next(lines), next(lines)  # at the second line the first checkpoint has been written
        workers = [pid for pid, command in children(process.pid).items() if "spawn_main" in command]
        start = time.monotonic()
        if fault == "worker killed":
            os.kill(workers[run % 2], signal.SIGKILL)
        elif fault == "SIGTERM":
            process.terminate()
        elif fault == "Ctrl-C":
            os.killpg(process.pid, signal.SIGINT)  # as a terminal does, to all of them
        elif fault == "parent killed":
            process.kill()
        out, err = process.communicate(timeout=30)
        while session(process.pid) and time.monotonic() - start < 10:
            time.sleep(0.01)
        assert time.monotonic() - start < 10
        assert fault == "environment raises" or len(workers) == 2  # it may raise before they are counted
    expected = {"SIGTERM": 143, "Ctrl-C": 130, "parent killed": -9}.get(fault, 2)
    assert process.returncode == expected and "Traceback" not in err
    if fault == "worker killed":
        assert "a3c.py: error: worker " in err and "died, exit code -9" in err
    elif fault == "environment raises":
        assert "a3c.py: error: worker " in err and ": ZeroDivisionError: by its step (" in err.splitlines()[-1]
    elif fault in ("SIGTERM", "Ctrl-C"):
        assert "stopped at step" in out and err == ""
    (path,) = tmp_path.glob("runs/*/checkpoint.pt")
    assert torch.load(path, weights_only=True)["global_step"] >= 200


# Probe environments

PROBE = "--num-steps 8 --learning-rate 0.003 --gamma 0.9 --eval-episodes 20 --total-timesteps 3000".split()


def learn(env_id, *flags):
    """Train on a probe in this process -> the agent and a function that gives V of an observation."""
    agent, _, _ = work(*PROBE, "--env-id", env_id, *flags)
    return agent, lambda obs: agent(torch.tensor([[float(obs)]]))[1].item()


def test_probe_1_value_of_a_constant_reward():
    _, value = learn("ConstantReward-v0")
    assert value(0) == pytest.approx(1, abs=0.05)


def test_probe_2_value_depends_on_the_observation():
    _, value = learn("ObservationReward-v0")
    assert value(-1) == pytest.approx(-1, abs=0.05) and value(1) == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("num_steps", ["1", "8"])
def test_probe_3_reward_one_step_later(num_steps):
    _, value = learn("DelayedReward-v0", "--num-steps", num_steps)
    assert value(0) == pytest.approx(0.9, abs=0.05) and value(1) == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("env_id", ["ActionReward-v0", "ObservationActionReward-v0"])
def test_probes_4_and_5_reward_depends_on_the_action(env_id):
    agent, _ = learn(env_id)
    assert a3c.evaluate(agent, quick(*PROBE, "--env-id", env_id)) == [1.0] * 20


@pytest.mark.parametrize("num_steps", ["2", "8"])
def test_probe_6_a_time_limit_is_no_end(num_steps):
    """V = 1 / (1 - γ) = 10, though every episode is cut after 5 steps, whose sum is 4.1."""
    _, value = learn("EndlessReward-v0", "--num-steps", num_steps)
    assert value(0) == pytest.approx(10, rel=0.05)


def test_probe_7_a_continuous_action():
    agent, _ = learn("Target-v0")
    assert agent(torch.zeros(1, 1))[0].item() == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize("lstm", ["--lstm", "--no-lstm"])
def test_probe_8_only_a_memory_keeps_what_it_has_seen(lstm):
    flags = [*PROBE, "--env-id", "Memory-v0", lstm]
    agent, _, _ = work(*flags)
    returns = a3c.evaluate(agent, quick(*flags))
    assert returns == [1.0] * 20 if lstm == "--lstm" else abs(np.mean(returns)) < 0.9
