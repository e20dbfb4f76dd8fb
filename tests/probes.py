"""Tiny environments with known answers, registered on import: `probes:Name-v0` or, once imported, `Name-v0`."""

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box, Discrete


class Probe(gym.Env):
    """Flat observations of one number, two actions; subclasses define `play`."""

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
    """One step, reward 1 for the action that the observation asks for, -1 for the other."""

    def play(self, action):
        return 0.0, 1 if (action == 1) == (self.obs > 0) else -1, True


class EndlessReward(Probe):
    """Reward 1 for ever, cut by the clock: V = 1 / (1 - γ), not the sum up to the cut."""

    def play(self, action):
        return 0.0, 1, False


class Memory(Probe):
    """Three steps, observed as a cue, -1 or 1, then 0, 0; reward 1 if the last action is the one for the cue."""

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
    """It raises at the 1000th step of the environment."""

    steps = 0

    def play(self, action):
        self.steps += 1
        if self.steps == 1000:
            raise ZeroDivisionError("by its\nstep")
        return 0.0, 1, self.t == 10


class CrashTable(Crash):
    """The same with one discrete observation."""

    observation_space = Discrete(1)

    def reset(self, *, seed=None, options=None):
        return 0, super().reset(seed=seed)[1]

    def step(self, action):
        return 0, *super().step(action)[1:]


class NotANumber(Probe):
    """Its reward is NaN from the 300th step of the environment on."""

    steps = 0

    def play(self, action):
        self.steps += 1
        return 0.0, 1.0 if self.steps < 300 else np.nan, self.t == 10


class NotANumberTable(NotANumber):
    """The same with one discrete observation."""

    observation_space = Discrete(1)

    def reset(self, *, seed=None, options=None):
        return 0, super().reset(seed=seed)[1]

    def step(self, action):
        return 0, *super().step(action)[1:]


class Scripted(gym.Env):
    """Episodes of 3 steps that end by themselves, then of 4 that the clock cuts, in turn; obs = (episode, t)."""

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


class DictObservation(Probe):
    observation_space = gym.spaces.Dict({"x": Box(-1.0, 1.0, (1,), np.float32)})


class ImageObservation(Probe):
    observation_space = Box(0, 255, (84, 84, 3), np.uint8)


class MultiDiscreteAction(Probe):
    action_space = gym.spaces.MultiDiscrete([2, 3])


class IntegerAction(Probe):
    action_space = Box(0, 10, (2,), np.int32)


class NeedsArgument(Probe):
    def __init__(self, size):
        self.size = size


class BrokenReset(Probe):
    def reset(self, *, seed=None, options=None):
        raise ZeroDivisionError("by its reset")


def same_step(num_envs, **kwargs):
    """A vector environment that resets within the step of the done."""
    return gym.vector.SyncVectorEnv([ConstantReward] * num_envs, autoreset_mode=gym.vector.AutoresetMode.SAME_STEP)


gym.register("SameStep-v0", entry_point=ConstantReward, vector_entry_point=same_step)
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
    (CrashTable, None),
    (NotANumber, None),
    (NotANumberTable, None),
    (Scripted, None),
    (DictObservation, None),
    (ImageObservation, None),
    (MultiDiscreteAction, None),
    (IntegerAction, None),
    (NeedsArgument, None),
    (BrokenReset, None),
):
    gym.register(f"{probe.__name__}-v0", entry_point=probe, max_episode_steps=limit)
