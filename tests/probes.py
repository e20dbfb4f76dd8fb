"""Tiny environments, solvable or faulty, registered on import: `probes:Name-v0` or, once imported, `Name-v0`."""

import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box, Discrete


class Probe(gym.Env):
    """Observations of one number, two actions; subclasses define `play`."""

    observation_space = Box(-1.0, 1.0, (1,), np.float32)
    action_space = Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        self.obs = self.first_obs()
        return np.array([self.obs], np.float32), {}

    def first_obs(self):
        return 0.0

    def step(self, action):
        self.t += 1
        self.obs, reward, terminated = self.play(action)
        return np.array([self.obs], np.float32), float(reward), terminated, False, {}


class ConstantReward(Probe):
    """One step, reward 1: V = 1."""

    def play(self, action):
        return 0.0, 1, True


class ObservationReward(Probe):
    """One step, the reward is the observation, -1 or 1: V(s) = s."""

    def first_obs(self):
        return float(self.np_random.choice([-1.0, 1.0]))

    def play(self, action):
        return 0.0, self.obs, True


class DelayedReward(Probe):
    """Two steps, observed as 0 then 1, reward 1 on the second: V(0) = γ, V(1) = 1."""

    def play(self, action):
        return 1.0, self.t == 2, self.t == 2


class ActionReward(Probe):
    """One step, reward 1 for action 1, -1 for action 0."""

    def play(self, action):
        return 0.0, 1 if action == 1 else -1, True


class ObservationActionReward(ObservationReward):
    """One step, reward 1 for action 1 where the observation is 1, otherwise for action 0; -1 for the other action."""

    def play(self, action):
        return 0.0, 1 if (action == 1) == (self.obs > 0) else -1, True


class EndlessReward(Probe):
    """Reward 1 at every step, truncated: V = 1 / (1 - γ), not the sum up to the time limit."""

    def play(self, action):
        return 0.0, 1, False


class Memory(Probe):
    """Three steps, observed as a cue of -1 or 1, then 0, 0; reward 1 if the last action matches it, otherwise -1."""

    def first_obs(self):
        self.cue = float(self.np_random.choice([-1.0, 1.0]))
        return self.cue

    def play(self, action):
        right = (action == 1) == (self.cue > 0)
        return 0.0, self.t == 3 and (1 if right else -1), self.t == 3


class Target(Probe):
    """One step, a continuous action in [-2, 2], reward -(action - 0.5)²."""

    action_space = Box(-2.0, 2.0, (1,), np.float32)

    def play(self, action):
        assert self.action_space.contains(action), action
        return 0.0, -((action[0] - 0.5) ** 2), True


class Crash(Probe):
    """An environment that raises in its 300th step."""

    steps = 0

    def play(self, action):
        self.steps += 1
        if self.steps == 300:
            raise ZeroDivisionError("by its\nstep")
        return 0.0, 1, self.t == 10


class Quit(Crash):
    """An environment that ends its process in its 300th step, without an error."""

    def play(self, action):
        try:
            return super().play(action)
        except ZeroDivisionError:
            sys.exit()


class CrashTable(Crash):
    """Crash with a single discrete observation."""

    observation_space = Discrete(1)

    def reset(self, *, seed=None, options=None):
        return 0, super().reset(seed=seed)[1]

    def step(self, action):
        return 0, *super().step(action)[1:]


class NotANumber(Probe):
    """The reward is NaN from the 300th step on."""

    steps = 0

    def play(self, action):
        self.steps += 1
        return 0.0, 1.0 if self.steps < 300 else np.nan, self.t == 10


class NotANumberTable(NotANumber):
    """The same with a single discrete observation."""

    observation_space = Discrete(1)

    def reset(self, *, seed=None, options=None):
        return 0, super().reset(seed=seed)[1]

    def step(self, action):
        return 0, *super().step(action)[1:]


class NotFinite(Probe):
    """From the 60th step on the reward or the observation is the given value, such as NaN or infinity."""

    steps = 0

    def __init__(self, reward=1.0, observation=0.0):
        self.late = observation, reward

    def play(self, action):
        self.steps += 1
        observation, reward = self.late if self.steps >= 60 else (0.0, 1.0)
        return observation, reward, self.t == 10


class Scripted(gym.Env):
    """Alternating episodes of 3 steps that terminate and 4 that are truncated; obs = (episode, t)."""

    observation_space = Box(-np.inf, np.inf, (2,), np.float32)
    action_space = Discrete(2)
    episode = -1

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.episode += 1
        self.t = 0
        return np.array([self.episode, self.t], np.float32), {}

    def step(self, action):
        self.t += 1
        terminated = self.episode % 2 == 0 and self.t == 3
        truncated = self.episode % 2 == 1 and self.t == 4
        obs = np.array([self.episode, self.t], np.float32)
        return obs, float(10 * self.episode + self.t), terminated, truncated, {}


def scripted_rows(num_rows, gamma):
    """Return the first rows of Scripted: (observation, reward, r_t + γ r_t-1 + ...), or None for a reset step."""
    rows, episode = [], 0
    while len(rows) < num_rows:
        rewards = []
        for t in range((3, 4)[episode % 2]):
            rewards.insert(0, 10 * episode + t + 1)  # the newest first
            rows.append(((episode, t), rewards[0], sum(gamma**k * reward for k, reward in enumerate(rewards))))
        rows.append(None)
        episode += 1
    return rows[:num_rows]


class Cue(gym.Env):
    """20 steps; action 1 is right where the sign is 1, otherwise action 0. Best return 20, by chance 10."""

    observation_space = Box(-1, 1, (1,), np.float32)
    action_space = Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.state = np.array([self.np_random.choice([-1, 1])], np.float32)
        return self.show(), {}

    def step(self, action):
        reward = float(self.judge(action))
        self.state[0] = self.np_random.choice([-1, 1])
        return self.show(), reward, False, False, self.info()

    def show(self):
        return self.state.copy()

    def judge(self, action):
        return (action == 1) == (self.state[0] > 0)

    def info(self):
        return {}


class ByDict(Cue):
    """Uses its action as a dictionary key."""

    def judge(self, action):
        return {0: -1, 1: 1}[action] == self.state[0]


class InPlace(Cue):
    """Returns the same array at every step and overwrites it."""

    def show(self):
        return self.state


class OneInfo(Cue):
    """Returns the same info dictionary at every step."""

    def info(self):
        self.same = getattr(self, "same", {})
        return self.same


class OwnStatistics(Cue):
    """Its info has statistics with keys that Gymnasium's wrapper uses, too."""

    def info(self):
        return {"statistics": {"r": 12345.0, "l": 7}}


class Ragged(OneInfo):
    """Its info, always the same dictionary, holds arrays of changing length."""

    def info(self):
        super().info()["legal"] = np.arange(np.random.default_rng().integers(1, 4))
        return self.same


class Awkward(ByDict, InPlace, Ragged):
    """ByDict, InPlace and Ragged at the same time."""


class OneInfoTable(OneInfo):
    """OneInfo with a single discrete observation."""

    observation_space = Discrete(1)

    def show(self):
        return 0


class Percent(Cue):
    """The action should be 75, within a range from 50 to 100."""

    action_space = Box(50, 100, (1,), np.float32)

    def judge(self, action):
        return 1 - abs(action[0] - 75) / 25


class Bounds(Cue):
    """The reward is the share of the action's components strictly inside their bounds; none may be outside."""

    action_space = Box(np.float32([0.1, 50, -np.inf]), np.float32([0.7, np.inf, -3]))

    def judge(self, action):
        assert self.action_space.contains(action), action
        return np.mean((self.action_space.low < action) & (action < self.action_space.high))


class Fixed(Bounds):
    """Half-precision actions, one component of which is fixed."""

    action_space = Box(np.float16([-1, 3]), np.float16([1, 3]), dtype=np.float16)


class Growing(Cue):
    """Observations without a fixed size."""

    observation_space = gym.spaces.Sequence(Box(-1, 1, (1,), np.float32))

    def show(self):
        return (self.state.copy(),)


class WrongShape(Cue):
    """Observations whose shape differs from the declared space."""

    def show(self):
        return self.state.copy()[None]


class Square(Cue):
    """Observations of shape (5, 5)."""

    observation_space = Box(-1, 1, (5, 5), np.float64)

    def show(self):
        return np.full((5, 5), float(self.state[0]))


class Word(Cue):
    """Observations that are text."""

    observation_space = gym.spaces.Text(1, charset="+-")

    def show(self):
        return "+" if self.state[0] > 0 else "-"


class Picture(Cue):
    """Observations that are bytes, (2, 3)."""

    observation_space = Box(0, 255, (2, 3), np.uint8)

    def show(self):
        return np.full((2, 3), 200 if self.state[0] > 0 else 100, np.uint8)


class Mixed(Cue):
    """Observations that are a dictionary of a tuple, a discrete value and bits."""

    observation_space = gym.spaces.Dict(
        {
            "pair": gym.spaces.Tuple([Discrete(3), Box(-1, 1, (2, 2), np.float32)]),
            "sign": Discrete(2),
            "bits": gym.spaces.MultiBinary(4),
        }
    )

    def show(self):
        square = np.zeros((2, 2), np.float32)
        return {"pair": (1, square), "sign": int(self.state[0] > 0), "bits": np.ones(4, np.int8)}


class OnlyOne(Cue):
    """A simulator of which only one can be open, in all processes together."""

    def __init__(self):
        self.lock = Path("open").resolve()
        self.lock.touch(exist_ok=False)  # FileExistsError if another one is open

    def close(self):
        self.lock.unlink(missing_ok=True)


class OnlyOneTable(OnlyOne):
    """The same with a single discrete observation."""

    observation_space = Discrete(1)

    def show(self):
        return 0


class NotANumberObservation(Cue):
    """Observations are NaN from the 300th step on."""

    steps = 0

    def show(self):
        self.steps += 1
        return self.state.copy() if self.steps < 300 else np.full(1, np.nan, np.float32)


class NeedsFile(Cue):
    """Opens a file that does not exist."""

    def __init__(self):
        open("level.json")


class Kwargs(Cue):
    """Accepts an option: a bonus for each step."""

    def __init__(self, bonus=0.0):
        self.bonus = bonus

    def judge(self, action):
        return super().judge(action) + self.bonus


def recorded():
    """CartPole, already wrapped in RecordEpisodeStatistics."""
    return gym.wrappers.RecordEpisodeStatistics(gym.make("CartPole-v1"))


class MultiDiscreteAction(Probe):
    action_space = gym.spaces.MultiDiscrete([2, 3])


class IntegerAction(Probe):
    action_space = Box(0, 10, (2,), np.int32)


def same_step(num_envs, **kwargs):
    """A vector environment that resets in the same step that ends an episode."""
    return gym.vector.SyncVectorEnv([ConstantReward] * num_envs, autoreset_mode=gym.vector.AutoresetMode.SAME_STEP)


class CountsLives(gym.vector.SyncVectorEnv):
    """Every second environment loses a life in each step, if lives are counted."""

    def __init__(self, num_envs, counted=True):
        super().__init__([lambda: gym.make("Cue-v0")] * num_envs)
        self.counted, self.lives = counted, np.full(num_envs, 10**9)

    def step(self, actions):
        *result, infos = super().step(actions)
        self.lives -= np.arange(self.num_envs) % 2
        return *result, infos | ({"lives": self.lives.copy()} if self.counted else {})


class Lives(gym.vector.VectorEnv):
    """An Atari game with two lives: a life is lost at steps 2 and 5, where the game ends; truncated in game 2."""

    num_envs = 1
    single_observation_space, single_action_space = Box(0, 255, (4, 84, 84), np.uint8), Discrete(2)
    metadata = {"autoreset_mode": gym.vector.AutoresetMode.NEXT_STEP}  # noqa: RUF012

    def outcome(self, reward=0.0, terminated=False, truncated=False):
        obs = np.full((1, 4, 84, 84), 10 * self.game + self.t, np.uint8)
        lives = {"lives": np.array([2 - (self.t >= 2) - (self.t >= 5)], np.int32)}
        return obs, np.array([reward]), np.array([terminated]), np.array([truncated]), lives

    def reset(self, *, seed=None, options=None):
        self.game, self.t = 0, 0
        obs, *_, infos = self.outcome()
        return obs, infos

    def step(self, action):
        if self.t == (4 if self.game % 2 else 5):
            self.game, self.t = self.game + 1, 0
            return self.outcome()
        self.t += 1
        return self.outcome(1.0, self.t == 5, self.game % 2 == 1 and self.t == 4)


gym.register("SameStep-v0", entry_point=ConstantReward, vector_entry_point=same_step)
gym.register("CountsLives-v0", entry_point=Cue, vector_entry_point=CountsLives)
for probe, limit in (
    (ConstantReward, None),
    (ObservationReward, None),
    (DelayedReward, None),
    (ActionReward, None),
    (ObservationActionReward, None),
    (EndlessReward, 5),
    (Memory, None),
    (Target, None),
    (Crash, None),
    (Quit, None),
    (CrashTable, None),
    (NotANumber, None),
    (NotANumberTable, None),
    (NotFinite, None),
    (Scripted, None),
    (MultiDiscreteAction, None),
    (IntegerAction, None),
):
    gym.register(f"{probe.__name__}-v0", entry_point=probe, max_episode_steps=limit)


def recorded_lake():
    """FrozenLake, already wrapped in RecordEpisodeStatistics."""
    return gym.wrappers.RecordEpisodeStatistics(gym.make("FrozenLake-v1"))


for probe in (
    Cue,
    ByDict,
    InPlace,
    Awkward,
    OneInfoTable,
    OwnStatistics,
    Percent,
    Bounds,
    Fixed,
    Growing,
    WrongShape,
    Square,
    Word,
    Picture,
    Mixed,
    OnlyOne,
    OnlyOneTable,
    NotANumberObservation,
    NeedsFile,
    Kwargs,
):
    gym.register(f"{probe.__name__}-v0", probe, max_episode_steps=20)
gym.register("Recorded-v0", recorded)
gym.register("RecordedLake-v0", recorded_lake)
