"""tabular_q.py: its equations against independent definitions, exact solutions of known worlds, learning on them."""

import math
import random

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.spaces import Discrete

import tabular_q

WORLDS = ["Taxi-v4", "FrozenLake-v1", "FrozenLake8x8-v1", "CliffWalking-v1"]
START, GOLD, SILVER, TRIANGLE, HOME, PRISON = range(6)
NORTH, SOUTH = 0, 1


def quick(*flags):
    """Arguments of a short run; later flags win."""
    return tabular_q.parse_args(
        ["--wandb-mode", "disabled", "--total-timesteps", "2000", "--eval-episodes", "0", *flags]
    )


def ship():
    """The lecture's ship as a model: what is tried succeeds with probability 0.8, else the other way is gone."""
    ways = {START: (GOLD, SILVER), GOLD: (TRIANGLE, HOME), SILVER: (HOME, PRISON)}  # north, south
    reward = {GOLD: 2, SILVER: 1, TRIANGLE: -2, HOME: 1, PRISON: -0.5}  # on entering

    def sail(state, action):
        chances = zip((0.8, 0.2), (ways[state][action], ways[state][1 - action]), strict=True)
        return [(p, island, reward[island], island not in ways) for p, island in chances]

    harbour = {s: {a: [(1.0, s, 0.0, True)] for a in (NORTH, SOUTH)} for s in (TRIANGLE, HOME, PRISON)}
    return {s: {a: sail(s, a) for a in (NORTH, SOUTH)} for s in ways} | harbour


def random_model(seed, num_states=7, num_actions=3):
    """A model whose actions lead to three random states each, terminal or not."""
    rng = np.random.default_rng(seed)
    return [
        [
            [(p, int(rng.integers(num_states)), rng.normal(), bool(rng.random() < 0.2)) for p in rng.dirichlet([1] * 3)]
            for _ in range(num_actions)
        ]
        for _ in range(num_states)
    ]


def backup(transitions, values, state, action, gamma):
    """Σ p (r + γ V(s')), term by term."""
    return sum(p * (r + (0 if end else gamma * values[s])) for p, s, r, end in transitions[state][action])


def value_iteration(transitions, gamma):
    """V*, by applying the optimality equation until it changes nothing."""
    values = np.zeros(len(transitions))
    while True:
        new = np.array(
            [
                max(backup(transitions, values, s, a, gamma) for a in range(len(transitions[s])))
                for s in range(len(values))
            ]
        )
        if np.abs(new - values).max() < 1e-12:
            return new
        values = new


# Targets


def test_targets():
    next_q, gamma, epsilon = [1.0, 4.0, 2.0], 0.9, 0.3
    assert tabular_q.q_learning_target(0.5, next_q, False, gamma) == pytest.approx(0.5 + 0.9 * 4)
    assert tabular_q.sarsa_target(0.5, next_q, 2, False, gamma) == pytest.approx(0.5 + 0.9 * 2)
    probabilities = [0.1, 0.8, 0.1]  # a random action in 3 of 10 steps, of which one in three is the best by chance
    mean = sum(p * q for p, q in zip(probabilities, next_q, strict=True))
    assert tabular_q.expected_sarsa_target(0.5, next_q, epsilon, False, gamma) == pytest.approx(0.5 + 0.9 * mean)
    assert tabular_q.q_learning_target(0.5, next_q, True, gamma) == 0.5
    assert tabular_q.sarsa_target(0.5, next_q, 2, True, gamma) == 0.5
    assert tabular_q.expected_sarsa_target(0.5, next_q, epsilon, True, gamma) == 0.5


def test_expected_sarsa_is_the_mean_of_sarsa():
    rng, next_q = random.Random(0), [1.0, 4.0, 4.0, 2.0]
    actions = [tabular_q.epsilon_greedy(next_q, 0.4, rng) for _ in range(100_000)]
    targets = [tabular_q.sarsa_target(1.0, next_q, action, False, 0.9) for action in actions]
    expected = tabular_q.expected_sarsa_target(1.0, next_q, 0.4, False, 0.9)
    assert np.mean(targets) == pytest.approx(expected, abs=5 * np.std(targets) / math.sqrt(len(targets)))


def test_epsilon_greedy_breaks_ties_by_chance():
    rng = random.Random(0)
    counts = np.bincount([tabular_q.epsilon_greedy([1.0, 3.0, 3.0, 0.0], 0.2, rng) for _ in range(100_000)])
    np.testing.assert_allclose(counts / 100_000, [0.05, 0.45, 0.45, 0.05], atol=5 * 0.5 / math.sqrt(100_000))
    assert {tabular_q.epsilon_greedy([0.0, 1.0], 0.0, rng) for _ in range(100)} == {1}


def test_linear_schedule():
    schedule = [tabular_q.linear_schedule(1.0, 0.2, 8, step) for step in range(11)]
    assert schedule == pytest.approx([1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.2, 0.2])


# Dynamic programming


@pytest.mark.parametrize("gamma", [0.0, 0.9, 0.99])
@pytest.mark.parametrize("env_id", WORLDS)
def test_policy_iteration_agrees_with_value_iteration(env_id, gamma):
    transitions = gym.make(env_id).unwrapped.P
    policy, values = tabular_q.policy_iteration(transitions, gamma)
    np.testing.assert_allclose(values, value_iteration(transitions, gamma), rtol=0, atol=1e-8)
    np.testing.assert_allclose(tabular_q.policy_evaluation(transitions, policy, gamma), values, rtol=0, atol=1e-12)
    np.testing.assert_allclose(policy.sum(1), 1)


@pytest.mark.parametrize(("env_id", "best"), [("Taxi-v4", 7.93), ("CliffWalking-v1", -13), ("FrozenLake-v1", 14 / 17)])
def test_known_optima_without_discount(env_id, best):
    """7.93 is the mean over Taxi's 300 starts; 14/17 is FrozenLake's without a time limit."""
    world = gym.make(env_id).unwrapped
    _, values = tabular_q.policy_iteration(world.P, 1.0)
    assert world.initial_state_distrib @ values == pytest.approx(best, abs=1e-8)


@pytest.mark.parametrize("gamma", [0.5, 1.0])
@pytest.mark.parametrize("seed", range(5))
def test_policy_evaluation_is_the_fixed_point_of_eq_4_4(seed, gamma):
    transitions = random_model(seed)
    policy = np.random.default_rng(seed).dirichlet([1] * 3, size=7)
    values = np.zeros(7)
    for _ in range(2000):
        values = np.array(
            [sum(policy[s, a] * backup(transitions, values, s, a, gamma) for a in range(3)) for s in range(7)]
        )
    np.testing.assert_allclose(tabular_q.policy_evaluation(transitions, policy, gamma), values, rtol=0, atol=1e-10)
    actions = policy.argmax(1)
    np.testing.assert_allclose(
        tabular_q.policy_evaluation(transitions, actions, 0.5),
        tabular_q.policy_evaluation(transitions, np.eye(3)[actions], 0.5),
    )


@pytest.mark.parametrize("seed", range(5))
def test_policy_iteration_on_random_models(seed):
    transitions = random_model(seed)
    policy, values = tabular_q.policy_iteration(transitions, 0.9)
    np.testing.assert_allclose(values, value_iteration(transitions, 0.9), rtol=0, atol=1e-10)
    q = tabular_q.action_values(transitions, values, 0.9)
    np.testing.assert_allclose(q, [[backup(transitions, values, s, a, 0.9) for a in range(3)] for s in range(7)])
    np.testing.assert_array_equal(policy > 0, np.isclose(q, q.max(1, keepdims=True), rtol=0, atol=1e-9))


def test_the_ship():
    policy, values = tabular_q.policy_iteration(ship(), 1.0)
    assert policy[[START, GOLD, SILVER]].argmax(1).tolist() == [NORTH, SOUTH, NORTH]
    np.testing.assert_allclose(values[[START, GOLD, SILVER]], [2.26, 0.4, 0.7], atol=1e-12)
    # The slide adds up both actions, where a policy takes one, and ends with this policy, which is worth less.
    slide = tabular_q.policy_evaluation(ship(), np.array([SOUTH, SOUTH, NORTH, 0, 0, 0]), 1.0)
    assert slide[START] == pytest.approx(1.84) and slide[START] < values[START]


def test_ties_end_and_are_shared():
    """All actions are equally good everywhere, in circles, too: a rule that flips between them would never end."""
    circle = [[[(1.0, (s + move) % 4, 0.0, False)] for move in (1, -1)] for s in range(4)]
    policy, values = tabular_q.policy_iteration(circle, 0.9)
    assert (policy == 0.5).all() and (values == 0).all()
    assert tabular_q.greedy_policy(np.array([[1.0, 1.0 + 1e-15, 0.0], [2.0, 1.0, 0.0]])).tolist() == [
        [0.5, 0.5, 0],
        [1, 0, 0],
    ]


def test_gamma_1_takes_policies_that_end():
    """State 0: stay for nothing, or go for good. Without discount only the policies that go have a value."""
    transitions = [[[(1.0, 0, 0.0, False)], [(1.0, 0, -1.0, True)]]]
    assert tabular_q.policy_evaluation(transitions, [1], 1.0) == [-1]
    assert tabular_q.policy_evaluation(transitions, [[0.5, 0.5]], 1.0) == [-1]
    assert tabular_q.policy_evaluation(transitions, [0], 0.9) == [0]
    with pytest.raises(ValueError, match=r"--gamma 1: .*state 0"):
        tabular_q.policy_evaluation(transitions, [0], 1.0)
    paid = [[[(1.0, 0, 1.0, False)], [(1.0, 0, 0.0, True)]]]  # staying pays for ever: there is no best policy
    with pytest.raises(ValueError, match=r"--gamma 1: .*state 0"):
        tabular_q.policy_iteration(paid, 1.0)
    walk = [[[(1.0, 1, -1.0, False)], [(1.0, 0, -1.0, False)]], [[(1.0, 0, -1.0, False)], [(1.0, 1, -1.0, True)]]]
    assert tabular_q.policy_iteration(walk, 1.0)[1].tolist() == [-2, -1]  # of several steps


# Learning


class World(gym.Env):
    """A model to walk in: the observation is the state, episodes start in state 0."""

    def __init__(self, transitions, with_model=True):
        self.observation_space, self.action_space = Discrete(len(transitions)), Discrete(len(transitions[0]))
        self.transitions = transitions
        if with_model:
            self.P, self.initial_state_distrib = transitions, np.eye(len(transitions))[0]

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.state = 0
        return self.state, {}

    def step(self, action):
        outcomes = self.transitions[self.state][action]
        _, self.state, reward, terminated = outcomes[self.np_random.choice(len(outcomes), p=[o[0] for o in outcomes])]
        return self.state, float(reward), terminated, False, {}


DELAYED = [[[(1.0, 1, 0.0, False)]] * 2, [[(1.0, 1, 1.0, True)]] * 2]  # reward 1 one step later
ENDLESS = [[[(1.0, 0, 1.0, False)]] * 2]  # reward 1 for ever, cut by the clock
gym.register("Ship-v0", entry_point=lambda: World(ship()))
gym.register("Sea-v0", entry_point=lambda: World(ship(), with_model=False))
gym.register("DelayedTable-v0", entry_point=lambda: World(DELAYED))
gym.register("EndlessTable-v0", entry_point=lambda: World(ENDLESS), max_episode_steps=5)
gym.register("UnlimitedTable-v0", entry_point=lambda: World(ENDLESS))
LEARNERS = ["q_learning", "sarsa", "expected_sarsa"]


@pytest.mark.parametrize("algorithm", LEARNERS)
def test_delayed_reward(algorithm):
    q, _ = tabular_q.train(quick("--env-id", "DelayedTable-v0", "--algorithm", algorithm, "--gamma", "0.7"))
    np.testing.assert_allclose(q, [[0.7, 0.7], [1, 1]], atol=1e-3)


@pytest.mark.parametrize("algorithm", LEARNERS)
def test_a_time_limit_does_not_cut_the_value(algorithm):
    q, history = tabular_q.train(quick("--env-id", "EndlessTable-v0", "--algorithm", algorithm, "--gamma", "0.9"))
    np.testing.assert_allclose(q, [[10, 10]], rtol=1e-3)  # 1 / (1 - γ), not 1 + 0.9 + ... of five steps
    assert {value for _, value in history} == {5.0} and [step for step, _ in history[:3]] == [5, 10, 15]


@pytest.mark.parametrize("algorithm", LEARNERS)
def test_the_ship_is_learned(algorithm):
    flags = f"--env-id Ship-v0 --algorithm {algorithm} --gamma 1 --total-timesteps 50000 --learning-rate 0.1"
    q, _ = tabular_q.train(quick(*flags.split(), "--epsilon-steps", "45000", "--epsilon-end", "0.01"))
    assert q[[START, GOLD, SILVER]].argmax(1).tolist() == [NORTH, SOUTH, NORTH]
    np.testing.assert_allclose(q.max(1)[[START, GOLD, SILVER]], [2.26, 0.4, 0.7], atol=0.25)


def test_on_policy_and_off_policy_values():
    """CliffWalking at ε = 0.1: Q-learning takes the edge, both SARSAs the detour, and the detour is not the best."""
    returns = {}
    for algorithm in LEARNERS:
        flags = "--env-id CliffWalking-v1 --gamma 1 --epsilon-start 0.1 --epsilon-end 0.1 --learning-rate 0.2".split()
        flags += ["--no-anneal-lr"] if algorithm == "q_learning" else []
        args = quick(*flags, "--total-timesteps", "100000", "--algorithm", algorithm, "--eval-episodes", "1")
        q, history = tabular_q.train(args)
        (greedy,) = tabular_q.evaluate(q, args)
        returns[algorithm] = greedy, np.mean([value for _, value in history[-1000:]])
    assert returns["q_learning"][0] == -13
    assert all(-21 <= returns[name][0] <= -15 for name in ("sarsa", "expected_sarsa"))
    assert all(returns[name][1] > returns["q_learning"][1] + 10 for name in ("sarsa", "expected_sarsa"))


def test_sarsa_takes_the_action_it_learned_from(monkeypatch):
    targets, steps = [], []
    target, world_step = tabular_q.sarsa_target, World.step

    def spy_target(reward, next_q, next_action, terminated, gamma):
        targets.append((next_action, terminated))
        return target(reward, next_q, next_action, terminated, gamma)

    def spy_step(self, action):
        steps.append(action)
        return world_step(self, action)

    monkeypatch.setattr(tabular_q, "sarsa_target", spy_target)
    monkeypatch.setattr(World, "step", spy_step)
    tabular_q.train(quick("--env-id", "Ship-v0", "--algorithm", "sarsa", "--epsilon-end", "1"))
    pairs = [(learned, taken) for (learned, end), taken in zip(targets, steps[1:], strict=False) if not end]
    assert len(pairs) > 500 and all(learned == taken for learned, taken in pairs)


def test_schedules(monkeypatch):
    seen = []
    monkeypatch.setattr(tabular_q, "log_progress", lambda *args: seen.append(args[4]))
    flags = "--epsilon-start 0.8 --epsilon-end 0.2 --epsilon-steps 1000 --learning-rate 0.4 --log-interval 500"
    tabular_q.train(quick(*flags.split()))
    assert [charts["charts/epsilon"] for charts in seen] == pytest.approx([0.5, 0.2, 0.2, 0.2], abs=1e-3)
    assert [charts["charts/learning_rate"] for charts in seen] == pytest.approx([0.3, 0.2, 0.1, 0.0], abs=1e-3)
    seen.clear()
    q, _ = tabular_q.train(quick("--no-anneal-lr", "--learning-rate", "0.4", "--initial-q", "5"))
    assert seen[-1]["charts/learning_rate"] == 0.4
    assert (q[0] == 5).all()  # the passenger is where he wants to go: no episode has this state


# What it reports


def test_exact_gap(monkeypatch, capsys):
    seen = []
    monkeypatch.setattr(tabular_q, "log_progress", lambda *args: seen.append(args[4]))
    q, _ = tabular_q.train(quick("--env-id", "FrozenLake-v1", "--gamma", "0.95"))
    world = gym.make("FrozenLake-v1").unwrapped
    policy, values = tabular_q.greedy_policy(q), np.zeros(16)
    for _ in range(2000):
        values = np.array(
            [sum(policy[s, a] * backup(world.P, values, s, a, 0.95) for a in range(4)) for s in range(16)]
        )
    optimum = value_iteration(world.P, 0.95)[0]
    assert seen[-1]["charts/greedy_value"] == pytest.approx(values[0], abs=1e-9)
    assert seen[-1]["charts/optimal_value"] == pytest.approx(optimum, abs=1e-9)
    assert f"value {values[0]:.4f}  optimum {optimum:.4f}" in capsys.readouterr().out
    tabular_q.train(quick("--env-id", "Sea-v0"))
    assert "charts/greedy_value" not in seen[-1] and "optimum" not in capsys.readouterr().out
    never_ends = [[[(1.0, 0, 0.0, False)], [(1.0, 0, 1.0, True)]]]
    env = World(never_ends)
    for q, value in (([[1.0, 0.0]], math.nan), ([[0.0, 1.0]], 1.0)):
        gap = tabular_q.exact_gap(env, np.array(q), np.ones(1), 1.0)
        assert gap == pytest.approx({"charts/greedy_value": value, "charts/optimal_value": 1.0}, nan_ok=True)


def test_policy_iteration_as_a_run(tmp_path, capsys):
    args = quick(
        "--env-id", "CliffWalking-v1", "--algorithm", "policy_iteration", "--eval-episodes", "2", "--gamma", "1"
    )
    q, history = tabular_q.train(args)
    assert history == [] and tabular_q.evaluate(q, args) == [-13, -13]
    out = capsys.readouterr().out
    assert "value -13.0000  optimum -13.0000" in out and "evaluation  return -13.0 ± 0.0" in out
    assert "→ → → → → → → → → → → ↓\n↑ C C C C C C C C C C G\n" in out
    with pytest.raises(ValueError, match=r"--algorithm policy_iteration: .*Sea-v0"):
        tabular_q.train(quick("--env-id", "Sea-v0", "--algorithm", "policy_iteration"))
    assert len(list(tmp_path.glob("runs/*"))) == 1


def test_the_lake_is_drawn(capsys):
    tabular_q.train(quick("--env-id", "FrozenLake-v1", "--algorithm", "policy_iteration"))
    lines = capsys.readouterr().out.splitlines()[1:5]
    assert lines == ["← ↑ ↑ ↑", "← H ← H", "↑ ↓ ← H", "H → ↓ G"]


def test_the_most_visited_states_are_listed(capsys):
    tabular_q.train(quick())
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("state ")]
    visits = [int(line.split()[3].replace(",", "")) for line in lines]
    assert len(lines) == 10 and visits == sorted(visits, reverse=True) and len(lines[0].split("Q")[1].split()) == 6


def test_evaluation_ends_without_a_time_limit():
    args = quick("--env-id", "UnlimitedTable-v0", "--eval-episodes", "1")
    assert tabular_q.evaluate(np.zeros((1, 2)), args) == [tabular_q.MAX_EPISODE_STEPS]


def test_resume_goes_on_with_the_table(tmp_path):
    args = quick("--env-id", "Ship-v0")
    q, _ = tabular_q.train(args)
    (path,) = tmp_path.glob("runs/*/checkpoint.pt")
    q2, history = tabular_q.train(quick("--env-id", "Ship-v0", "--total-timesteps", "2100", "--resume", str(path)))
    assert history[0][0] > 2000 and 0 < np.abs(q2 - q).max() < 1


# Bad input


class Counted(World):
    """Its actions are 1 and 2."""

    def __init__(self):
        super().__init__(DELAYED)
        self.action_space = Discrete(2, start=1)


gym.register("Counted-v0", entry_point=Counted)


@pytest.mark.parametrize(
    "env_id", ["CartPole-v1", "probes:DictObservation-v0", "probes:Target-v0", "Blackjack-v1", "Counted-v0"]
)
def test_environments_that_it_does_not_take(env_id, tmp_path):
    with pytest.raises(ValueError, match=f"--env-id {env_id}: takes Discrete observations and actions from 0 on") as e:
        tabular_q.train(quick("--env-id", env_id))
    assert "\n" not in str(e.value) and not list(tmp_path.iterdir())


@pytest.mark.parametrize("flags", ["--capture-video --eval-episodes 0", "--epsilon-start 1.1", "--learning-rate 2"])
def test_flags_that_do_not_fit(flags, capsys):
    with pytest.raises(SystemExit):
        tabular_q.parse_args(flags.split())
    assert f"argument {flags.split()[0]}" in capsys.readouterr().err
