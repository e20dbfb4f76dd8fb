"""Test tabular_q.py: its equations against independent definitions, exact solutions of known worlds, learning."""

import random

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.spaces import Discrete

import tabular_q

LEARNERS = ["q_learning", "sarsa", "expected_sarsa"]
START, GOLD, SILVER, TRIANGLE, HOME, PRISON = range(6)
NORTH, SOUTH = 0, 1


def quick(flags, more=""):
    """Return the arguments of a short run; later flags override earlier ones."""
    return tabular_q.parse_args(f"--wandb-mode disabled --eval-episodes 0 {flags} {more}".split())


def certain(*states):
    """Return a deterministic model; each state is given as one (next_state, reward, terminated) per action."""
    return {s: {a: [(1.0, *row)] for a, row in enumerate(rows)} for s, rows in enumerate(states)}


def sail(north, south):
    """Return the transitions of a state where an action works with probability 0.8; otherwise the other one happens."""
    return {NORTH: [(0.8, *north), (0.2, *south)], SOUTH: [(0.8, *south), (0.2, *north)]}


SHIP = certain(*([(s, 0.0, True)] * 2 for s in range(6))) | {  # the ship of the lecture, with rewards on entering
    START: sail((GOLD, 2.0, False), (SILVER, 1.0, False)),
    GOLD: sail((TRIANGLE, -2.0, True), (HOME, 1.0, True)),
    SILVER: sail((HOME, 1.0, True), (PRISON, -0.5, True)),
}
STAY_OR_GO = certain([(0, 0.0, False), (0, -1.0, True)])
PAID = certain([(0, 1.0, False), (0, 0.0, True)])  # staying pays forever: without discount no policy is best


def random_model(rng):
    """Return a model of seven states and three actions; each leads to three random states, terminal or not."""

    def row(p):
        return p, int(rng.integers(7)), rng.normal(), bool(rng.random() < 0.2)

    return {s: {a: [row(p) for p in rng.dirichlet([1] * 3)] for a in range(3)} for s in range(7)}


def backup(transitions, values, gamma):
    """Return Q(s, a) = Σ p (r + γ V(s')), term by term."""

    def mean(rows):
        return sum(p * (r + (0 if end else gamma * values[s])) for p, s, r, end in rows)

    return np.array([[mean(rows) for rows in actions.values()] for actions in transitions.values()])


def iterate(transitions, gamma, policy=None):
    """Return V of a policy, or V* without one, by iterating Bellman's equation until nothing changes."""
    values, previous = np.zeros(len(transitions)), np.inf
    while np.abs(values - previous).max() > 1e-12:
        q, previous = backup(transitions, values, gamma), values
        values = q.max(1) if policy is None else (policy * q).sum(1)
    return values


# Equations


def test_linear_schedule():
    schedule = [tabular_q.linear_schedule(1.0, 0.2, 8, step) for step in range(11)]
    assert schedule == pytest.approx([1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.2, 0.2])


def test_behaviour_and_targets():
    q, policy, rng = [1.0, 4.0, 4.0, 2.0], [0.1, 0.4, 0.4, 0.1], random.Random(0)  # ε-greedy for ε = 0.4
    counts = np.bincount([tabular_q.epsilon_greedy(q, 0.4, rng) for _ in range(20_000)])
    np.testing.assert_allclose(counts / 20_000, policy, atol=0.015)
    assert {tabular_q.epsilon_greedy(q, 0.0, rng) for _ in range(100)} == {1, 2}
    for algorithm, value in zip(LEARNERS, (4.0, 2.0, np.dot(policy, q)), strict=True):
        assert tabular_q.td_target(algorithm, 0.5, q, 3, 0.4, False, 0.9) == pytest.approx(0.5 + 0.9 * value)
        assert tabular_q.td_target(algorithm, 0.5, q, 3, 0.4, True, 0.9) == 0.5


def test_greedy_policy_shares_what_is_equal_up_to_rounding():
    q = np.array([[2, 1, 0], [1, 1 + 1e-15, 0], [-1e6, -1e6 - 1e-6, -2e6], [0, 1e-12, -1], [1, 1 - 1e-9, 0], [-1] * 3])
    best = [[1, 0, 0], [0.5, 0.5, 0], [0.5, 0.5, 0], [0.5, 0.5, 0], [1, 0, 0], [1 / 3] * 3]
    np.testing.assert_allclose(tabular_q.greedy_policy(q), best)


def test_an_action_without_a_value_is_not_greedy():
    q = np.array([[np.nan, -5.0, -7.0], [-1.0, np.nan, -1.0], [np.nan, np.nan, np.nan]])
    np.testing.assert_allclose(tabular_q.greedy_policy(q), [[0, 1, 0], [0.5, 0, 0.5], [1 / 3] * 3])


@pytest.mark.parametrize("seed", range(5))
def test_random_models(seed):
    rng = np.random.default_rng(seed)
    transitions, policy = random_model(rng), rng.dirichlet([1] * 3, size=7)
    lists = [list(actions.values()) for actions in transitions.values()]
    for array, expected in zip(tabular_q.flat_model(lists), tabular_q.flat_model(transitions), strict=True):
        np.testing.assert_array_equal(array, expected)
    for gamma in (0.5, 1.0):
        values = tabular_q.policy_evaluation(transitions, policy, gamma)
        np.testing.assert_allclose(values, iterate(transitions, gamma, policy), rtol=0, atol=1e-10)
        q = tabular_q.action_values(transitions, values, gamma)
        np.testing.assert_allclose(q, backup(transitions, values, gamma), rtol=0, atol=1e-12)
    policy, values = tabular_q.policy_iteration(transitions, 0.9)
    np.testing.assert_allclose(values, iterate(transitions, 0.9), rtol=0, atol=1e-10)
    np.testing.assert_array_equal(policy.argmax(1), backup(transitions, values, 0.9).argmax(1))


OPTIMA = {"Taxi-v4": 7.93, "CliffWalking-v1": -13, "FrozenLake-v1": 14 / 17, "FrozenLake8x8-v1": 1}


@pytest.mark.parametrize(("env_id", "best"), OPTIMA.items())
def test_known_worlds(env_id, best):
    """The optimal values without discount and time limit; 7.93 is the mean over Taxi's 300 initial states."""
    world = gym.make(env_id).unwrapped
    _, values = tabular_q.policy_iteration(world.P, 1.0)
    assert world.initial_state_distrib @ values == pytest.approx(best, abs=1e-8)
    _, values = tabular_q.policy_iteration(world.P, 0.7)
    np.testing.assert_allclose(values, iterate(world.P, 0.7), rtol=0, atol=1e-10)


def test_the_ship():
    policy, values = tabular_q.policy_iteration(SHIP, 1.0)
    assert policy[:TRIANGLE].argmax(1).tolist() == [NORTH, SOUTH, NORTH]
    np.testing.assert_allclose(values, [2.26, 0.4, 0.7, 0, 0, 0], atol=1e-12)
    # The slide sums over both actions, although a policy takes one, and arrives at this worse policy.
    slide = np.eye(2)[[SOUTH, SOUTH, NORTH, 0, 0, 0]]
    assert tabular_q.policy_evaluation(SHIP, slide, 1.0)[START] == pytest.approx(1.84)


def test_ties_are_shared_and_small_differences_count():
    """In a circle all actions are equally good; a rule that alternated between them would never stop."""
    circle = certain(*([((s + move) % 4, 0.0, False) for move in (1, -1)] for s in range(4)))
    policy, values = tabular_q.policy_iteration(circle, 0.9)
    assert (policy == 0.5).all() and (values == 0).all()
    detour = certain([(0, 1000.0, True), (1, 0.0, False)], [(0, 999.999998, True), (0, 1000.000001, True)])
    np.testing.assert_allclose(tabular_q.policy_iteration(detour, 1.0)[1], 1000.000001, rtol=1e-12)


def test_without_discount_only_policies_that_terminate_have_a_value():
    for policy, gamma, value in (([0, 1], 1, -1), ([0.5, 0.5], 1, -1), ([1, 0], 0.9, 0), ([1, 0], 1, np.nan)):
        np.testing.assert_allclose(tabular_q.policy_evaluation(STAY_OR_GO, np.array([policy]), gamma), [value])
    far = certain(*([(s + 1, -1.0, False), (0, -1.0, False)] for s in range(4)), [(0, -1.0, True)] * 2)
    np.testing.assert_allclose(tabular_q.policy_iteration(far, 1.0)[1], [-5, -4, -3, -2, -1])


def test_without_discount_states_that_cannot_terminate_are_nan_and_no_others():
    loop = (1.0, 1, 5.0, False)
    model = {
        0: {0: [(1.0, 0, -1.0, True), (0.0, 1, 0.0, False)], 1: [(1.0, 0, -2.0, True)]},  # one transition never happens
        1: {0: [loop], 1: [loop]},  # no way out
        2: {0: [(1.0, 0, -3.0, False)], 1: [loop]},  # can terminate, or be caught
        3: {0: [(1.0, 2, -1.0, False)], 1: [(1.0, 0, -9.0, False)]},
        4: {0: [(0.5, 0, 0.0, True), (0.5, 1, 0.0, False)], 1: [loop]},  # cannot be sure to terminate
        5: {0: [(1.0, 1, 0.0, True)], 1: [(1.0, 5, -1.0, False)]},  # a terminal state without a value of its own
    }
    first = np.eye(2)[[0] * 6]
    np.testing.assert_allclose(tabular_q.policy_evaluation(model, first, 1.0), [-1, np.nan, -4, -5, np.nan, 0])
    uniform = np.full((6, 2), 0.5)  # may be caught in 2 and so in 3
    values = tabular_q.policy_evaluation(model, uniform, 1.0)
    np.testing.assert_allclose(values, [-1.5, np.nan, np.nan, np.nan, np.nan, -1])
    policy, values = tabular_q.policy_iteration(model, 1.0)
    np.testing.assert_allclose(values, [-1, np.nan, -4, -5, np.nan, 0])
    assert policy[[0, 2, 3, 5]].tolist() == [[1, 0]] * 4
    np.testing.assert_allclose(tabular_q.policy_evaluation(model, uniform, 0.5), iterate(model, 0.5, uniform))


def test_without_discount_a_loop_that_costs_nothing_is_escaped_and_one_that_pays_has_no_value():
    free = certain([(1, -2.0, False), (0, 1.0, True)], [(0, 2.0, False), (0, 0.0, True)])  # 0 -> 1 -> 0 sums to 0
    np.testing.assert_allclose(tabular_q.policy_iteration(free, 1.0)[1], [1, 3])
    assert np.isnan(tabular_q.policy_iteration(PAID, 1.0)[1]).all()
    pays = certain([(1, -2.0, False), (0, 1.0, True)], [(0, 2.5, False), (0, 0.0, True)])
    assert np.isnan(tabular_q.policy_iteration(pays, 1.0)[1]).all()


# Learning


class World(gym.Env):
    """The environment of a model: the observation is the state, episodes start in state 0."""

    def __init__(self, transitions, with_model=True, first_action=0):
        self.observation_space = Discrete(len(transitions))
        self.action_space = Discrete(len(transitions[0]), start=first_action)
        self.transitions = transitions
        if with_model:
            self.P, self.initial_state_distrib = transitions, np.eye(len(transitions))[0]

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.state = 0
        return self.state, {}

    def step(self, action):
        rows = self.transitions[self.state][action]
        _, self.state, reward, terminated = rows[self.np_random.choice(len(rows), p=[row[0] for row in rows])]
        return self.state, float(reward), terminated, False, {}


ENDLESS = certain([(0, 1.0, False)] * 2)  # reward 1 at every step, until the time limit
WORLDS = {"Ship": SHIP, "Paid": PAID, "Endless": ENDLESS, "Unlimited": ENDLESS}
WORLDS["Delayed"] = certain([(1, 0.0, False)] * 2, [(1, 1.0, True)] * 2)  # reward 1 one step later
WORLDS["Lottery"] = {0: {0: [(0.5, 0, 0.0, False), (0.5, 0, 1.0, True)], 1: [(1.0, 0, 3.0, True)]}}
for name, transitions in WORLDS.items():
    limit = 5 if name == "Endless" else None
    gym.register(f"{name}Table-v0", World, max_episode_steps=limit, kwargs={"transitions": transitions})
DELAYED, SHIP_AND_LOOP = WORLDS["Delayed"], SHIP | {6: {a: [(1.0, 6, 0.0, False)] for a in range(2)}}


class InPlace(World):
    """Returns the same 0-dimensional array at every step and overwrites it."""

    def reset(self, **kwargs):
        self.array = np.array(super().reset(**kwargs)[0])
        return self.array, {}

    def step(self, action):
        self.array[...], *rest = super().step(action)
        return self.array, *rest


class ByDict(World):
    """Uses its action as a dictionary key."""

    def step(self, action):
        return super().step({0: 0, 1: 1}[action])


class Floats(World):
    """Returns states and rewards as NumPy floats of low precision."""

    def reset(self, **kwargs):
        return np.float32(super().reset(**kwargs)[0]), {}

    def step(self, action):
        state, reward, *rest = super().step(action)
        return np.float32(state), np.float16(reward), *rest


gym.register("FloatsTable-v0", Floats, kwargs={"transitions": DELAYED})
gym.register("InPlaceTable-v0", InPlace, kwargs={"transitions": DELAYED})
gym.register("ByDictTable-v0", ByDict, kwargs={"transitions": DELAYED})
gym.register("ShipAndLoopTable-v0", World, kwargs={"transitions": SHIP_AND_LOOP})
gym.register("PatientTable-v0", World, max_episode_steps=10**9, kwargs={"transitions": ENDLESS})
gym.register("SeaTable-v0", World, kwargs={"transitions": SHIP, "with_model": False})
gym.register("CountedTable-v0", World, kwargs={"transitions": SHIP, "first_action": 1})


@pytest.mark.parametrize("algorithm", LEARNERS)
def test_a_run_step_by_step(algorithm, monkeypatch):
    """The table after 300 steps follows from the transitions by definition; an episode of the ship has two steps."""
    seen, epsilons, logged = [], [], []
    step, behave = World.step, tabular_q.epsilon_greedy

    def spied_step(self, action):
        state, result = self.state, step(self, action)
        seen.append((state, action, *result[:3]))
        return result

    monkeypatch.setattr(World, "step", spied_step)
    monkeypatch.setattr(tabular_q, "epsilon_greedy", lambda q, *rest: epsilons.append(rest[0]) or behave(q, *rest))
    monkeypatch.setattr(tabular_q, "log_progress", lambda run, args, *rest: logged.append((rest[0], rest[-1])))
    flags = "--env-id ShipTable-v0 --total-timesteps 300 --learning-rate 0.5 --gamma 0.9 --initial-q 1"
    schedule = "--epsilon-start 0.8 --epsilon-end 0.2 --epsilon-steps 200 --log-interval 120"
    q, history = tabular_q.train(quick(flags, f"{schedule} --algorithm {algorithm}"))

    replayed, td_errors = np.ones((6, 2)), []
    epsilon = [max(0.2, 0.8 - 0.6 * t / 200) for t in range(300)]
    for t, (state, action, next_state, reward, end) in enumerate(seen):
        best, mean = replayed[next_state].max(), replayed[next_state].mean()
        value = {"q_learning": best, "expected_sarsa": (1 - epsilon[t]) * best + epsilon[t] * mean}
        value["sarsa"] = 0 if end else replayed[next_state, seen[t + 1][1]]  # the next action taken
        td_errors.append(reward + (0 if end else 0.9 * value[algorithm]) - replayed[state, action])
        replayed[state, action] += 0.5 * (1 - t / 300) * td_errors[-1]
    np.testing.assert_allclose(q, replayed, rtol=1e-12)
    assert history == [(t + 1, seen[t - 1][3] + seen[t][3]) for t in range(1, 300, 2)]
    assert epsilons == pytest.approx(
        [epsilon[t] for t in range(300) for _ in range(1 + t % 2)]
    )  # for a', and after each episode for the first action

    assert [global_step for global_step, *_ in logged] == [120, 240, 300]
    for global_step, metrics in logged:
        assert metrics["charts/epsilon"] == pytest.approx(epsilon[global_step - 1])
        assert metrics["charts/learning_rate"] == pytest.approx(0.5 * (1 - (global_step - 1) / 300))
        assert metrics["losses/td_error"] == pytest.approx(td_errors[global_step - 1])


@pytest.mark.parametrize("algorithm", LEARNERS)
def test_values_are_learned(algorithm):
    def learn(flags):
        return tabular_q.train(quick(flags, f"--algorithm {algorithm}"))

    q, _ = learn("--env-id DelayedTable-v0 --gamma 0.7 --total-timesteps 500")
    np.testing.assert_allclose(q, [[0.7, 0.7], [1, 1]], atol=0.01)
    q, history = learn("--env-id EndlessTable-v0 --gamma 0.9 --total-timesteps 1000")
    np.testing.assert_allclose(q, [[10, 10]], atol=0.01)  # 1 / (1 - γ), not 1 + 0.9 + ... of five steps
    assert history == [(step, 5.0) for step in range(5, 1001, 5)]
    schedule = "--total-timesteps 5000 --epsilon-steps 4500 --epsilon-end 0.01 --learning-rate 0.1"
    q, _ = learn(f"--env-id ShipTable-v0 --gamma 1 {schedule}")
    assert q[:TRIANGLE].argmax(1).tolist() == [NORTH, SOUTH, NORTH]
    np.testing.assert_allclose(q[:TRIANGLE].max(1), [2.26, 0.4, 0.7], atol=0.3)


def test_on_policy_and_off_policy_values():
    """CliffWalking at ε = 0.1: Q-learning walks along the edge, both SARSAs take the detour, which is not optimal."""
    greedy, training = [], []
    for algorithm in LEARNERS:
        flags = "--gamma 1 --epsilon-start 0.1 --epsilon-end 0.1 --learning-rate 0.5 --total-timesteps 15000"
        args = quick(flags, f"--env-id CliffWalking-v1 --algorithm {algorithm}")
        q, history = tabular_q.train(args)
        greedy += tabular_q.evaluate(q, args, 1)
        training.append(np.mean([value for _, value in history[len(history) // 2 :]]))
    assert greedy[0] == -13 and all(-21 <= value <= -15 for value in greedy[1:])
    assert min(training[1:]) > training[0] + 10


# Reports


def test_exact_values_and_the_map(monkeypatch, capsys):
    logged = []
    monkeypatch.setattr(tabular_q, "log_progress", lambda *args: logged.append(args[-1]))
    q, _ = tabular_q.train(quick("--env-id FrozenLake-v1 --gamma 0.95 --total-timesteps 2000"))
    world = gym.make("FrozenLake-v1").unwrapped
    value, optimum = (iterate(world.P, 0.95, policy)[0] for policy in (tabular_q.greedy_policy(q), None))
    exact = {"charts/greedy_value": value, "charts/optimal_value": optimum}
    assert {key: logged[-1][key] for key in exact} == pytest.approx(exact, abs=1e-9)
    *lake, line = capsys.readouterr().out.splitlines()[1:6]
    cells = [c if c in "HG" else "<v>^"[action] for c, action in zip("SFFFFHFHFFFHHFFG", q.argmax(1), strict=True)]
    assert lake == [" ".join(cells[i : i + 4]) for i in (0, 4, 8, 12)]
    assert line == f"greedy policy  exact value {value:.4f}  optimum {optimum:.4f}"

    tabular_q.train(quick("--env-id SeaTable-v0 --total-timesteps 10"))  # no model, so no optimum
    assert not set(exact) & set(logged[-1]) and "optimum" not in capsys.readouterr().out
    exact = tabular_q.exact_values(World(STAY_OR_GO), [[1.0, 0.0]], np.array([-1.0]), 1.0)
    assert exact == pytest.approx({"charts/greedy_value": np.nan, "charts/optimal_value": -1}, nan_ok=True)


def test_policy_iteration_as_a_run(tmp_path, capsys):
    flags = "--env-id CliffWalking-v1 --algorithm policy_iteration --gamma 1"
    q, history = tabular_q.train(quick(flags, "--eval-episodes 2"))
    out = capsys.readouterr().out
    assert history == [] and "evaluation  return -13.0 ± 0.0  2 greedy episodes" in out
    assert (
        "> > > > > > > > > > > v\n^ . . . . . . . . . . .\ngreedy policy  exact value -13.0000  optimum -13.0000" in out
    )
    (path,) = tmp_path.glob("runs/*/checkpoint.pt")
    np.testing.assert_array_equal(torch.load(path, weights_only=True)["agent"]["q"], q)
    for env_id in ("SeaTable-v0", "PaidTable-v0"):
        with pytest.raises(tabular_q.RunError, match="--algorithm policy_iteration: needs P and initial_state_"):
            tabular_q.train(quick(flags, f"--env-id {env_id}"))
    assert len(list(tmp_path.glob("runs/*"))) == 1


def test_evaluation(monkeypatch):
    """First episodes, of any length, with ties broken at random and seeds that training does not use."""
    args, seeds, reset = quick("--env-id LotteryTable-v0"), set(), World.reset
    monkeypatch.setattr(World, "reset", lambda self, **kwargs: seeds.add(kwargs["seed"]) or reset(self, **kwargs))
    assert tabular_q.evaluate(np.array([[1.0, 0.0]]), args, 20) == [1.0] * 20
    assert seeds - {None} == {tabular_q.derive_seed(1, 1) + i for i in range(20)}
    returns = tabular_q.evaluate(np.zeros((1, 2)), args, 300)
    assert set(returns) == {1.0, 3.0} and 0.55 < np.mean(np.array(returns) == 3.0) < 0.78  # 2 in 3
    assert returns == tabular_q.evaluate(np.zeros((1, 2)), args, 300)
    assert tabular_q.evaluate(np.zeros((1, 2)), quick("--env-id UnlimitedTable-v0"), 1) == [1000.0]


def test_evaluation_stops_where_the_time_limit_is_long_and_says_so(monkeypatch, capsys):
    monkeypatch.setattr(tabular_q, "range", lambda *count: range(*count[:-1], count[-1] // 1000), raising=False)
    returns = tabular_q.evaluate(np.zeros((1, 2)), quick("--env-id PatientTable-v0"), 2)
    assert returns == [100.0, 100.0]
    assert capsys.readouterr().out == "evaluation  2 of 2 episodes unfinished after 100,000 steps\n"


def test_without_annealing_the_step_size_is_constant(monkeypatch):
    """Every update with α = 1 moves Q to its target: at the end Q is r + γ max Q of the last visit."""
    q, _ = tabular_q.train(
        quick("--env-id DelayedTable-v0 --gamma 0.5 --learning-rate 1 --no-anneal-lr", "--total-timesteps 200")
    )
    assert q.tolist() == [[0.5, 0.5], [1.0, 1.0]]


def test_initial_q_may_be_negative():
    args = quick("--env-id SeaTable-v0 --total-timesteps 1 --learning-rate 0 --initial-q -5")
    assert (tabular_q.train(args)[0] == -5).all()


def test_an_unreachable_loop_does_not_hide_the_exact_values(monkeypatch):
    logged = []
    monkeypatch.setattr(tabular_q, "log_progress", lambda *args: logged.append(args[-1]))
    for flags in ("", "--algorithm policy_iteration"):
        q, _ = tabular_q.train(quick("--env-id ShipAndLoopTable-v0 --gamma 1 --total-timesteps 2000", flags))
        assert q.shape == (7, 2) and q[START].argmax() == NORTH
    assert logged[-1]["charts/optimal_value"] == pytest.approx(2.26)
    assert not np.isnan(logged[-1]["charts/greedy_value"])


@pytest.mark.parametrize("env_id", ["InPlaceTable-v0", "ByDictTable-v0", "FloatsTable-v0"])
def test_states_are_copied_and_actions_are_ints(env_id):
    """One array, overwritten at every step; actions used as dictionary keys; states and rewards as NumPy floats."""
    flags = "--gamma 0.7 --total-timesteps 500 --eval-episodes 2"
    expected, _ = tabular_q.train(quick(f"--env-id DelayedTable-v0 {flags}"))
    q, _ = tabular_q.train(quick(f"--env-id {env_id} {flags}"))
    np.testing.assert_array_equal(q, expected)


@pytest.mark.parametrize(
    "obs", [-1, 2, 0.5, np.array([0]), np.array([[1]])], ids=["negative", "too large", "between", "(1,)", "(1, 1)"]
)
def test_observations_outside_the_declared_space_are_an_error(obs, monkeypatch):
    reset = World.reset
    monkeypatch.setattr(World, "reset", lambda self, **kwargs: (obs, reset(self, **kwargs)[1]))
    with pytest.raises(tabular_q.RunError, match=r"the observation .* is not in the declared Discrete\(2\)"):
        tabular_q.train(quick("--env-id DelayedTable-v0 --total-timesteps 10"))


def test_unsupported_environments_and_flags(tmp_path, capsys):
    for env_id in ("CartPole-v1", "CountedTable-v0"):
        with pytest.raises(
            tabular_q.RunError, match=f"--env-id {env_id}: needs Discrete spaces, counted from 0; it has"
        ):
            tabular_q.train(quick(f"--env-id {env_id}"))
    for flag in ("--epsilon-start", "--epsilon-end", "--learning-rate"):
        with pytest.raises(SystemExit):
            tabular_q.parse_args([flag, "1.1"])
        assert f"argument {flag}: 1.1 is not between 0 and 1" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        tabular_q.parse_args(["--total-timesteps", "0"])
    assert "argument --total-timesteps: 0 is not at least 1" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
