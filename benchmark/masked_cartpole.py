"""CartPole-v1 without its two velocities, which must be inferred from memory.

--env-id benchmark.masked_cartpole:MaskedCartPole-v0
"""

import gymnasium as gym
from gymnasium.envs.classic_control import CartPoleEnv


class MaskedCartPole(CartPoleEnv):
    """Observe only the cart's position and the pole's angle."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        low, high = self.observation_space.low, self.observation_space.high
        self.observation_space = gym.spaces.Box(low[::2], high[::2])

    def reset(self, **kwargs):
        obs, info = super().reset(**kwargs)
        return obs[::2], info

    def step(self, action):
        obs, *rest = super().step(action)
        return obs[::2], *rest


gym.register("MaskedCartPole-v0", entry_point=MaskedCartPole, max_episode_steps=500)
