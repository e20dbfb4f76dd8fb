"""CartPole-v1 without its two velocities: where the pole is going, only a memory can tell.

    python benchmark/run.py a3c --name a3c_masked_lstm --seeds 3 --threshold 400 -- FLAGS --lstm
    python benchmark/run.py a3c --name a3c_masked_feedforward --seeds 3 -- FLAGS
    python benchmark/masked_cartpole.py    draws both into benchmark/results/a3c_masked.png

FLAGS: @settings/a3c_MaskedCartPole-v0.txt
"""

import gymnasium as gym
from gymnasium.envs.classic_control import CartPoleEnv


class MaskedCartPole(CartPoleEnv):
    """It shows the cart's position and the pole's angle only."""

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


def draw():
    """Both learning curves in one figure: mean over seeds, and a band from the lowest to the highest."""
    import matplotlib
    import numpy as np
    from run import RESULTS, read_csv

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    fig, ax = plt.subplots(figsize=(8, 4.5), dpi=160, layout="constrained")
    for name, label, color in (("lstm", "--lstm", "#0072B2"), ("feedforward", "without memory", "#D55E00")):
        points = read_csv(RESULTS / f"a3c_masked_{name}_curves.csv")
        curves = [
            np.array([(float(p["global_step"]), float(p["mean_return"])) for p in points if p["seed"] == seed]).T
            for seed in sorted({p["seed"] for p in points})
        ]
        grid = np.linspace(max(steps[0] for steps, _ in curves), min(steps[-1] for steps, _ in curves), 200)
        returns = np.stack([np.interp(grid, steps, values) for steps, values in curves])
        ax.fill_between(grid, returns.min(0), returns.max(0), color=color, alpha=0.25)
        ax.plot(grid, returns.mean(0), color=color, linewidth=2.5, label=f"{label}, mean of {len(curves)} seeds")
    ax.set_title("a3c.py on CartPole-v1 with hidden velocities", fontsize=14)
    ax.set_xlabel("environment steps", fontsize=13)
    ax.set_ylabel("return, mean of the last 100 episodes", fontsize=13)
    ax.xaxis.set_major_formatter(lambda x, _: f"{x:,.0f}")
    ax.tick_params(labelsize=12)
    ax.grid(alpha=0.3)
    ax.legend(fontsize=12, frameon=False)
    fig.savefig(RESULTS / "a3c_masked.png")


if __name__ == "__main__":
    draw()
