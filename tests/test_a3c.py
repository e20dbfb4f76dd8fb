"""a3c.py: its equations against independent definitions, every branch, probe environments, and what can go wrong."""

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
    """Its 50th step never ends, whatever SIGTERM asks."""

    steps = 0

    def play(self, action):
        self.steps += 1
        if self.steps == 50:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            time.sleep(1000)
        return 0.0, 1, self.t == 10


class Closing(probes.ConstantReward):
    """It says when it has been played for a while, and when it is closed."""

    steps = 0

    def play(self, action):
        self.steps += 1
        if self.steps == 80:
            print("played", flush=True)
        return super().play(action)

    def close(self):
        print("closed", flush=True)


gym.register("Hang-v0", Hang)
gym.register("Closing-v0", Closing)


def quick(*flags):
    """Arguments of a run that lasts a blink; later flags win."""
    base = "--wandb-mode disabled --total-timesteps 400 --num-workers 1 --eval-episodes 1"
    return a3c.parse_args([*base.split(), *flags])


def make(args):
    """The shared agent and optimizer, as train makes them."""
    torch.manual_seed(args.seed)
    env = a3c.make_env(args)
    agent = a3c.ActorCritic(env.observation_space, env.action_space, args.lstm)
    return agent, a3c.SharedRMSprop(agent, args.rmsprop_decay, args.rmsprop_eps)


def work(*flags, rank=0, start_step=0, others=()):
    """One worker in this process -> agent, what it has sent since it was ready, what each update received, by name.

    others are the numbers of updates that others make during each of its own.
    """
    args, sent, calls, original = quick(*flags), [], [], a3c.update
    names = "observations state actions rewards terminated learning_rate".split()

    def update(agent, optimizer, *rest):
        updates.value += sum(others[len(calls) : len(calls) + 1])
        calls.append(dict(zip(names, rest[:-1], strict=True)))
        assert torch.equal(flat(agent.parameters()), optimizer.weights)  # the shared weights, copied
        return original(agent, optimizer, *rest)

    agent, optimizer = make(args)
    steps, updates = multiprocessing.Value("q", start_step), multiprocessing.Value("q", 0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(a3c, "update", update)
        a3c.worker(sent.append, rank, args, optimizer, steps, updates, start_step)
    assert updates.value == len(calls) + sum(others)
    assert sent[0] == (start_step, False, None, {})
    return agent, sent[1:], calls


def flat(tensors):
    """One vector of all the numbers."""
    return torch.cat([x.detach().flatten() for x in tensors])


# Returns and loss


def test_returns_are_the_discounted_sums():
    rng = np.random.default_rng(0)
    rewards, last_value = rng.normal(size=7).tolist(), rng.normal()
    expected = [sum(0.9**k * r for k, r in enumerate(rewards[t:])) + 0.9 ** (7 - t) * last_value for t in range(7)]
    np.testing.assert_allclose(a3c.n_step_returns(rewards, last_value, 0.9), expected, rtol=0, atol=1e-12)
    # The fox of the A2C comic: rewards 1, 20, 2, then a state that the critic values at 18, γ = 1.
    assert a3c.n_step_returns([1.0, 20.0, 2.0], 18.0, 1.0) == [41, 40, 20]


def test_loss_and_its_gradient():
    numbers = np.random.default_rng(0).normal(size=(4, 7))
    log_prob, entropy, values, returns = (torch.tensor(x, requires_grad=True) for x in numbers)
    loss, metrics = a3c.a3c_loss(log_prob, entropy, values, returns.detach(), 0.5, 0.01)
    advantages = numbers[3] - numbers[2]
    terms = {"policy_loss": -numbers[0] * advantages, "value_loss": advantages**2, "entropy": numbers[1]}
    assert loss.item() == pytest.approx(np.dot([1, 0.5, -0.01], [term.sum() for term in terms.values()]))
    for name, term in terms.items():
        assert metrics[f"losses/{name}"].item() == pytest.approx(term.mean())
    loss.backward()
    np.testing.assert_allclose(log_prob.grad, -advantages)  # raises what was better than expected
    np.testing.assert_allclose(values.grad, -advantages)  # draws V to R: 2 vf_coef = 1; not moved by the actor's loss
    np.testing.assert_allclose(entropy.grad, [-0.01] * 7)  # descent raises the entropy


# Policy


def test_discrete_policy():
    torch.manual_seed(0)
    agent = a3c.ActorCritic(Box(-1, 1, (4,)), Discrete(3), False)
    features = observations = torch.randn(5, 4)
    logits, values, state = agent(observations)
    assert logits.shape == (5, 3) and values.shape == (5,) and state is None
    for layer in (agent.body[0], agent.body[2]):
        features = torch.tanh(features @ layer.weight.T)
    torch.testing.assert_close(logits, features @ agent.actor.weight.T)
    torch.testing.assert_close(values, features @ agent.critic.weight[0])
    for layer, gain in ((agent.body[0], 2**0.5), (agent.body[2], 2**0.5), (agent.actor, 0.01), (agent.critic, 1.0)):
        singular_values = torch.linalg.svdvals(layer.weight)  # of an orthogonal matrix they are all the same
        torch.testing.assert_close(singular_values, torch.full_like(singular_values, gain))
        assert not layer.bias.any()
    logits = torch.tensor([0.0, 1.0, -1.0])
    probabilities = np.exp(logits.numpy()) / np.exp(logits.numpy()).sum()
    frequencies = np.bincount(agent.sample(logits.expand(100_000, 3)), minlength=3) / 100_000
    np.testing.assert_allclose(frequencies, probabilities, atol=5 * 0.5 / math.sqrt(100_000))  # 5 sigma
    log_prob, entropy = agent.log_prob_and_entropy(logits.expand(3, 3), torch.arange(3))
    np.testing.assert_allclose(log_prob, np.log(probabilities), atol=1e-6)
    np.testing.assert_allclose(entropy, -(probabilities * np.log(probabilities)).sum(), atol=1e-6)
    assert agent.greedy(logits) == 1


def test_continuous_policy():
    """With a standard deviation of its own in each dimension, none of them 1 but the second."""
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
    observations = torch.randn(7, 2, 4)  # of two environments
    close = dict(rtol=1e-4, atol=1e-5)
    logits, values, _ = agent(observations)
    for i in range(2):  # side by side is each on its own
        outputs, (h, c) = lstm_by_hand(agent.lstm, agent.body(observations[:, i]), (zeros, zeros))
        torch.testing.assert_close(logits[:, i], agent.actor(outputs), **close)
        torch.testing.assert_close(values[:, i], agent.critic(outputs).squeeze(-1), **close)
        first, _, state = agent(observations[:3, i])
        rest, _, state = agent(observations[3:, i], state)
        torch.testing.assert_close(torch.cat([first, rest]), logits[:, i], **close)
        torch.testing.assert_close(state, (h[None], c[None]), **close)


def test_the_network_for_atari():
    frames = torch.randint(256, (3, 2, 4, 84, 84), dtype=torch.uint8)  # 3 steps of 2 environments
    for lstm in (False, True):
        agent = a3c.ActorCritic(Box(0, 255, (4, 84, 84), np.uint8), Discrete(6), lstm)
        shapes = [tuple(p.shape) for name, p in agent.named_parameters() if name.endswith("weight")]
        assert shapes == [(16, 4, 8, 8), (32, 16, 4, 4), (256, 2592), (6, 256), (1, 256)]
        for layer in (agent.body[0], agent.body[2], agent.body[5]):
            singular_values = torch.linalg.svdvals(layer.weight.flatten(1))
            torch.testing.assert_close(singular_values, torch.full_like(singular_values, 2**0.5))
            assert not layer.bias.any()
        logits, values, _ = agent(frames)
        assert logits.shape == (3, 2, 6) and values.shape == (3, 2)
        for i in range(2):
            features = frames[:, i] / 255 - frames[:, i].sum((-2, -1), keepdim=True) / (255 * 84 * 84)
            for layer in (agent.body[0], agent.body[2], torch.nn.Flatten(), agent.body[5]):
                features = layer(features).relu()
            features = agent.lstm(features)[0] if lstm else features
            torch.testing.assert_close(values[:, i], agent.critic(features).squeeze(-1))
            torch.testing.assert_close(agent(frames[:, i])[0], logits[:, i])


# Shared memory, RMSProp, and the hand-over


def paper(theta, g, gradient, learning_rate, decay=0.9, eps=0.01):
    """RMSProp of the paper, in float64 -> (θ, g)."""
    g = decay * g + (1 - decay) * gradient.astype(float) ** 2
    return theta - learning_rate * gradient / np.sqrt(g + eps), g


def test_rmsprop_is_the_paper_s_from_two_processes(forkserver):
    """Steps in turns here and in other processes, on the same weights and statistics."""
    agent, rng = a3c.ActorCritic(Box(-1, 1, (2,)), Discrete(2), False), np.random.default_rng(0)
    optimizer = a3c.SharedRMSprop(agent, 0.9, 0.01)
    assert optimizer.weights.is_shared() and optimizer.mean_square.is_shared()  # before a process is started
    optimizer.weights.mul_(0.1)  # the roundings of a float32 near 1 would be more than 1e-7
    theta = optimizer.weights.numpy().astype(float)
    g = np.ones(len(theta))
    for i in range(6):
        gradient, learning_rate = rng.normal(size=len(theta)).astype(np.float32), 1e-3 / (1 + i)
        theta, g = paper(theta, g, gradient, learning_rate)
        if i % 2:
            optimizer.step(torch.as_tensor(gradient), learning_rate)
        else:
            process = forkserver.Process(target=optimizer.step, args=(torch.as_tensor(gradient), learning_rate))
            process.start()
            process.join()
        np.testing.assert_allclose(optimizer.weights, theta, rtol=0, atol=1e-7)
        np.testing.assert_allclose(optimizer.mean_square, g, rtol=1e-5, atol=1e-7)
        assert torch.equal(flat(agent.parameters()), optimizer.weights)  # they are the agent's parameters


def gradient_by_hand(agent, observations, state, actions, rewards, terminated, args):
    """∇L of Alg. S3, step by step in float64, for the weights of the agent -> one vector."""
    agent = copy.deepcopy(agent).double()
    features = agent.body(observations.double())
    if agent.lstm is not None:
        features, _ = lstm_by_hand(agent.lstm, features, (state[0][0].double(), state[1][0].double()))
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
def test_two_updates_are_those_written_out_by_hand(space, lstm, terminated, max_grad_norm):
    """Loss, clipping, RMSProp; and the second update is by the second gradient alone, at the weights then copied."""
    torch.manual_seed(1)
    args = quick(*f"--gamma 0.95 --ent-coef 0.02 --vf-coef 0.4 --max-grad-norm {max_grad_norm}".split())
    shared, agent = (a3c.ActorCritic(Box(-1, 1, (2,)), space, lstm) for _ in range(2))
    optimizer, weights = a3c.SharedRMSprop(shared, 0.9, 0.01), a3c.one_vector(agent)
    theta, g = optimizer.weights.numpy().astype(float), np.ones(len(weights))
    for _ in range(2):
        weights.copy_(optimizer.weights)
        actions = torch.randint(2, (6,)) if agent.discrete else torch.randn(6, 2)
        state = (torch.randn(1, 256), torch.randn(1, 256)) if lstm else None
        rollout = torch.randn(7, 2), state, actions, torch.randn(6).tolist()
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
    parts = [optimizer.weights, optimizer.mean_square]
    before = [x.clone() for x in parts]
    for reward in (math.nan, 1e30):
        with pytest.raises(a3c.RunError, match=r"the gradient is not finite: .*CartPole-v1"):
            a3c.update(agent, optimizer, *rollout[:3], [reward] * 6, terminated, 0.01, args)
    assert all(torch.equal(x, y) for x, y in zip(parts, before, strict=True))


# What a worker hands to the update, and what it reports


def test_rollouts_are_the_environment_s_transitions():
    """Every row against the script of the environment, the step budget met exactly, the memory's state carried on."""
    flags = "--env-id Scripted-v0 --num-steps 2 --total-timesteps 99 --lstm".split()
    _, sent, calls = work(*flags)
    rows = []
    for call in calls:
        obs, next_obs = call["observations"][:-1].tolist(), call["observations"][1:].tolist()
        rows += zip(obs, call["rewards"], next_obs, strict=True)
        (episode, first), (_, t) = obs[0], next_obs[-1]
        assert t - first == 2 or t == 3 + episode % 2 or call is calls[-1]
        assert call["terminated"] == (episode % 2 == 0 and t == 3)
        assert (call["state"] is None) == (first == 0)  # zeros with each episode
        assert first == 0 or not any(x.requires_grad for x in call["state"])
    assert rows == [([e, t], 10 * e + t + 1, [e, t + 1]) for e in range(29) for t in range(3 + e % 2)][:99]
    lengths = [3 + e % 2 for e in range(28)]
    ends = [(sum(lengths[: e + 1]), (10 * e * n + n * (n + 1) / 2, n)) for e, n in enumerate(lengths)]
    assert [(message[0], message[2]) for message in sent if message[2]] == ends
    agent, _ = make(quick(*flags))  # the weights before the first update, with which the first rollout was played
    torch.testing.assert_close(calls[1]["state"], agent(calls[0]["observations"][:2])[2])


@pytest.mark.parametrize(("start_step", "due"), [(0, [9, 17, 21]), (14, [16, 21])])
def test_what_a_worker_reports(start_step, due):
    """Each end of an episode, each interval and the end, with plain numbers; the learning rate falls to 0."""
    flags = "--env-id EndlessReward-v0 --num-steps 2 --log-interval 8 --total-timesteps 21 --learning-rate 0.1".split()
    _, sent, calls = work(*flags, start_step=start_step)  # a resumed run goes on with the schedule
    ends = [(step, (5.0, 5)) for step in range(start_step + 5, 22, 5)]
    assert [message[0] for message in sent if message[1]] == due
    assert [(message[0], message[2]) for message in sent if message[2]] == ends and len(sent) == len(due) + len(ends)
    names = {f"losses/{name}" for name in ("policy_loss", "value_loss", "entropy", "grad_norm")}
    assert all(set(metrics) - {"charts/policy_lag"} == names for *_, metrics in sent)
    assert all(metrics.get("charts/policy_lag") == (0 if due else None) for _, due, _, metrics in sent)
    assert all(type(value) is float for *_, metrics in sent for value in metrics.values())
    steps = np.cumsum([start_step, *(len(call["rewards"]) for call in calls)])
    assert [call["learning_rate"] for call in calls] == pytest.approx(0.1 * (1 - steps[:-1] / 21)) and steps[-1] == 21


def test_policy_lag_is_the_updates_of_others_since_the_copy():
    """The mean over the worker's updates since it last logged."""
    flags = "--env-id EndlessReward-v0 --num-steps 5 --log-interval 20 --total-timesteps 40".split()
    _, sent, _ = work(*flags, others=[0, 3, 1, 0, 2, 2, 2, 4])
    assert [metrics["charts/policy_lag"] for _, due, _, metrics in sent if due] == [1, 2.5]


def test_each_worker_and_each_episode_has_its_own_stream():
    """Other episodes and other actions for each rank, and after a resume."""
    streams = [work("--total-timesteps", "150", rank=r, start_step=s)[2] for r, s in ((0, 0), (1, 0), (0, 50))]
    starts = [tuple(call["observations"][0].tolist()) for calls in streams for call in calls]
    assert len(set(starts)) == len(starts) > 20
    assert len({tuple(calls[0]["actions"].tolist()) for calls in streams}) == 3


def test_atari(monkeypatch, tmp_path):
    """Frames as they come, clipped rewards to learn from, raw ones reported, no end with a lost life."""
    flags = "--env-id ALE/Asterix-v5 --total-timesteps 400 --num-steps 50 --learning-rate 0".split()
    _, sent, calls = work(*flags)
    rewards = [reward for call in calls for reward in call["rewards"]]
    assert set(rewards) == {0.0, 1.0} and len(rewards) == 400
    frames = torch.cat([call["observations"][:-1] for call in calls])
    assert frames.shape == (400, 4, 84, 84) and frames.dtype == torch.uint8
    (step, _, episode, _), *_ = [message for message in sent if message[2]]
    assert episode == (50 * sum(rewards[:step]), step) and episode[0] >= 100
    for call, following in itertools.pairwise(calls):
        last, first = call["observations"][-1], following["observations"][0]
        assert torch.equal(last, first) == (not call["terminated"])
        assert not call["terminated"] or not first[:-1].any()  # a stack begins with black frames
    args = quick(*flags, "--repeat-action-probability", "0.1")
    env = a3c.make_env(args)
    settings = [env.get_wrapper_attr(name) for name in ("frame_skip", "noop_max", "terminal_on_life_loss")]
    assert settings == [4, 30, False] and env.unwrapped.ale.getFloat("repeat_action_probability") == pytest.approx(0.1)
    monkeypatch.setattr(a3c, "range", lambda n: range(n // 5000), raising=False)  # of 100,000 steps
    returns = a3c.evaluate(make(args)[0], args, 2, video_folder=tmp_path / "video")
    assert [value % 50 for value in returns] == [0, 0] and len(list(tmp_path.glob("video/*.mp4"))) == 1


# Runs


def test_one_worker_is_a_single_process_bit_for_bit(forkserver):
    """A run with its processes, and a worker alone in this one."""
    flags = "--env-id probes:ObservationActionReward-v0 --total-timesteps 200".split()
    trained, history = a3c.train(quick(*flags))
    agent, sent, _ = work(*flags)
    assert history == [(message[0], message[2][0]) for message in sent] and len(history) == 200
    assert torch.equal(flat(trained.parameters()), flat(agent.parameters()))


def test_two_workers_share_one_budget(tmp_path, capsys, monkeypatch, forkserver):
    ranks, original = [], a3c.start_worker
    monkeypatch.setattr(a3c, "start_worker", lambda *rest: (ranks.append(rest[2]), original(*rest)))
    flags = "--num-workers 2 --total-timesteps 4000 --num-steps 9 --log-interval 800".split()
    agent, history = a3c.train(quick(*flags))
    (path,) = tmp_path.glob("runs/*/checkpoint.pt")
    before = torch.load(path, weights_only=True)
    assert 4000 <= before["global_step"] < 4000 + 2 * 9 and ranks == [0, 1]
    played = sum(value for _, value in history)  # CartPole: a reward a step
    assert played <= before["global_step"] < played + 2 * 500
    assert torch.equal(flat(before["agent"].values()), flat(agent.parameters()))
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step")]
    assert len(lines) == 5 and lines[-1].endswith(" 0 s left")
    assert multiprocessing.active_children() == [] and not signal.pthread_sigmask(signal.SIG_BLOCK, [])
    still = "--learning-rate 0 --rmsprop-decay 1 --total-timesteps 5000 --resume".split()
    a3c.train(quick(*still, str(path)))  # a run that changes nothing: all that was learned has come back
    after = torch.load(path, weights_only=True)
    assert after["global_step"] == 5000 and (before["optimizer"]["mean_square"] < 0.9).sum() > 1000
    for part in ("agent", "optimizer"):
        assert torch.equal(flat(before[part].values()), flat(after[part].values()))


@pytest.mark.parametrize("lstm", [[], ["--lstm"]], ids=["feedforward", "lstm"])
def test_evaluation_is_greedy_and_seeded(lstm):
    """Side by side they are the episodes one by one, the first of each environment alone."""
    args = quick(*lstm)
    agent, _ = make(args)
    env, expected = gym.make("CartPole-v1"), []
    for episode in range(5):
        obs, _ = env.reset(seed=a3c.env_seed(args.seed, 1) + episode)
        terminated, total, state = False, 0.0, None
        while not terminated:
            logits, _, state = agent(torch.as_tensor(obs)[None], state)
            obs, reward, terminated, _, _ = env.step(int(logits.argmax()))
            total += reward
        expected.append(total)
    assert a3c.evaluate(agent, args, 5) == expected and len(set(expected)) > 1


def test_evaluation_ends_and_speaks_the_environment_s_actions(monkeypatch):
    args = quick("--env-id", "Target-v0")
    agent, _ = make(args)
    torch.nn.init.constant_(agent.actor.bias, 9.0)  # far outside the Box, which Target-v0 asserts
    assert a3c.evaluate(agent, args, 2) == [-2.25, -2.25]
    monkeypatch.setattr(probes.Target, "play", lambda self, action: (0.0, 1.0, False))  # without an end
    monkeypatch.setattr(a3c, "range", lambda n: range(n // 10_000), raising=False)
    assert a3c.evaluate(agent, args, 2) == [10.0, 10.0]
    args = quick("--env-id", "EndlessReward-v0")
    assert a3c.evaluate(make(args)[0], args, 2) == [5.0, 5.0]  # which its time limit ends


def test_environments_that_it_cannot_take(monkeypatch):
    for space in (Discrete(2, start=1), Box(-1, 1, (2, 2)), Box(0, 10, (2,), np.int32)):
        monkeypatch.setattr(probes.ConstantReward, "action_space", space)
        with pytest.raises(a3c.RunError, match=r"--env-id ConstantReward-v0: takes flat observations or Atari and"):
            a3c.make_env(quick("--env-id", "ConstantReward-v0"))
    with pytest.raises(a3c.RunError, match="not Discrete"):
        a3c.make_env(quick("--env-id", "FrozenLake-v1"))


# Faults: whatever happens, the run ends at once, what was learned is kept, and no process is left


def send(signum):
    """What a run's log_progress does instead: it sends this process a signal, nothing if it is 0."""
    return lambda *_: os.kill(os.getpid(), signum)


def kill_one(*_):
    """End a worker when both hang, soon after the 80 steps that they have reported together."""
    time.sleep(0.5)
    workers = multiprocessing.active_children()
    for process in workers:
        os.kill(process.pid, signal.SIGINT)  # Ctrl-C, which a terminal sends to all, is for the parent alone
    time.sleep(0.2)
    workers[0].kill()


@pytest.mark.parametrize(
    ("env_id", "strike", "error", "message"),
    [
        ("test_a3c:Hang-v0", kill_one, a3c.RunError, "worker . died, exit code -9"),
        ("probes:Crash-v0", send(0), a3c.RunError, "worker . died, exit code 1"),
        ("probes:NotANumber-v0", send(0), a3c.RunError, "the gradient is not finite"),
        ("CartPole-v1", send(signal.SIGTERM), SystemExit, "143"),
        ("CartPole-v1", send(signal.SIGINT), KeyboardInterrupt, None),
    ],
    ids=["killed", "raises", "NaN", "SIGTERM", "Ctrl-C"],
)
def test_faults_end_all_workers(env_id, strike, error, message, tmp_path, monkeypatch, forkserver):
    monkeypatch.setattr(a3c, "log_progress", strike)
    start = time.monotonic()
    with pytest.raises(error, match=message):
        a3c.train(quick(*f"--env-id {env_id} --num-workers 2 --total-timesteps 9999999 --log-interval 80".split()))
    assert multiprocessing.active_children() == [] and time.monotonic() - start < 90
    (path,) = tmp_path.glob("runs/*/checkpoint.pt")
    checkpoint = torch.load(path, weights_only=True)
    assert checkpoint["global_step"] >= 80 and flat(checkpoint["agent"].values()).isfinite().all()


@pytest.mark.parametrize(("signum", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)])
def test_a_signal_while_a_worker_is_started_is_not_lost(signum, error, monkeypatch, forkserver):
    start = forkserver.Process.start
    monkeypatch.setattr(forkserver.Process, "start", lambda process: (start(process), send(signum)()))
    with pytest.raises(error):
        a3c.train(quick())
    for process in multiprocessing.active_children():  # one that train did not know yet ends with the program
        process.kill()


def test_faults_in_the_shell_leave_no_process():
    """Each in a run of its own, side by side."""
    faults = {  # environment, after which lines, what, exit code
        "Ctrl-C early": ("CartPole-v1", ["a3c.py"], lambda process: os.killpg(process.pid, signal.SIGINT), 130),
        "SIGTERM": ("test_a3c:Closing-v0", ["played", "played"], subprocess.Popen.terminate, 143),  # of both workers
        "parent killed": ("test_a3c:Hang-v0", ["step"], subprocess.Popen.kill, -9),
    }
    flags = "--total-timesteps 100000000 --log-interval 80 --wandb-mode disabled --env-id".split()
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    # Unbuffered, print writes a line and its end apart: those of two processes mix, and what is waited for never comes.
    options["env"] = os.environ | {"PYTHONPATH": str(ROOT / "tests"), "PYTHONUNBUFFERED": ""}
    with contextlib.ExitStack() as stack:
        runs = []
        for fault, (env_id, *_) in faults.items():
            command = [sys.executable, ROOT / "a3c.py", *flags, env_id, "--run-dir", fault]
            runs.append(stack.enter_context(subprocess.Popen(command, **options)))
            stack.callback(runs[-1].kill)  # if it still runs, as a check has failed
        for process, (_, lines, strike, _) in zip(runs, faults.values(), strict=True):
            for expected in lines:
                next(line for line in process.stdout if line.startswith(expected))
            time.sleep(0.5)  # in which the workers import, play or begin to hang
            strike(process)
        for process, (fault, (*_, code)) in zip(runs, faults.items(), strict=True):
            out, err = process.communicate(timeout=180)  # to the end of all processes, as each holds the pipes
            assert process.returncode == code and (err == "" or fault == "parent killed"), f"{fault}: {err}"
            steps = [torch.load(path, weights_only=True)["global_step"] for path in Path(fault).glob("*/checkpoint.pt")]
            assert min(steps) >= 80 if fault != "Ctrl-C early" else not steps
            assert fault != "SIGTERM" or out.count("closed") == 2  # each worker's environment


# Probe environments


PROBE = "--num-steps 8 --learning-rate 0.01 --rmsprop-decay 0.9 --gamma 0.9 --vf-coef 0.5 --total-timesteps 600"
PROBE = [*PROBE.split(), "--env-id"]


@pytest.mark.parametrize(
    ("env_id", "num_steps", "values"),
    [
        ("ConstantReward-v0", 8, {0: 1}),  # probe 1
        ("ObservationReward-v0", 8, {-1: -1, 1: 1}),  # 2
        ("DelayedReward-v0", 1, {0: 0.9, 1: 1}),  # 3: one step later, by γ less
        ("DelayedReward-v0", 8, {0: 0.9, 1: 1}),
        ("EndlessReward-v0", 2, {0: 10}),  # 6: 1 / (1 - γ), though every episode is cut after 5 steps, of sum 4.1
        ("EndlessReward-v0", 8, {0: 10}),
    ],
)
def test_probes_of_values(env_id, num_steps, values):
    agent, _, _ = work(*PROBE, env_id, "--num-steps", str(num_steps))
    estimates = agent(torch.tensor([[float(obs)] for obs in values]))[1]
    assert estimates.tolist() == pytest.approx(list(values.values()), rel=0.02)


@pytest.mark.parametrize("env_id", ["ActionReward-v0", "ObservationActionReward-v0"])
def test_probes_4_and_5_reward_depends_on_the_action(env_id):
    agent, _, _ = work(*PROBE, env_id)
    assert a3c.evaluate(agent, quick("--env-id", env_id), 20) == [1.0] * 20


def test_probe_7_a_continuous_action():
    """The environment asserts that its actions lie in the Box."""
    agent, _, calls = work(*PROBE, "Target-v0")
    assert agent(torch.zeros(1, 1))[0].item() == pytest.approx(0.5, abs=0.2)
    actions = torch.cat([call["actions"] for call in calls])
    assert actions.shape == (600, 1) and actions.dtype == torch.float32
    assert actions.abs().max() > 2  # the log-probabilities are those of the actions as they were drawn


def test_probe_8_a_memory_keeps_what_it_has_seen():
    flags = [*PROBE, *"Memory-v0 --lstm --rmsprop-eps 0.001 --total-timesteps 1200".split()]
    agent, _, _ = work(*flags)
    assert a3c.evaluate(agent, quick(*flags), 20) == [1.0] * 20
