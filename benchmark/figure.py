"""Draw the README's figures from the stored learning curves: six panels, one a script, beside what peers made.

    python benchmark/figure.py    benchmark/results/seconds.png and steps.png

Our seconds are the steps of the curve times the run's seconds per step; peers' are those noted at their episodes.
"""

import numpy as np
from run import RESULTS, read_csv

PANELS = {  # script -> results, title
    "tabular_q": ("tabular_q_Taxi-v4", "tabular_q.py, Taxi-v4"),
    "reinforce": ("reinforce_CartPole-v1", "reinforce.py, CartPole-v1"),
    "dqn": ("dqn_CartPole-v1", "dqn.py, CartPole-v1"),
    "a2c": ("a2c_CartPole-v1", "a2c.py, CartPole-v1"),
    "a3c": ("a3c_CartPole-v1", "a3c.py, CartPole-v1"),
    "paac_gpu": ("paac_gpu_CartPole-v1", "paac_gpu.py, CartPole-v1"),
}
COLORS = {"Stable-Baselines3": "#D55E00", "CleanRL": "#009E73", "minimalRL": "#CC79A7"}  # ours is blue: Okabe and Ito


def our_curves(name, axis):
    """The stored curves of a script, one a seed: [(x, returns)], x in seconds or steps."""
    runs = {row["seed"]: row for row in read_csv(RESULTS / f"{name}.csv")}
    return [
        (x * (float(row["train_seconds"]) / float(row["steps"]) if axis == "seconds" else 1), y)
        for seed, row in runs.items()
        for x, y in [points(read_csv(RESULTS / f"{name}_curves.csv"), "global_step", seed=seed)]
    ]


def peer_curves(script, axis):
    """Curves of the peers that have this script's algorithm: {peer: [(x, returns)]}."""
    rows = [row for row in read_csv(RESULTS / "peers_curves.csv") if row["script"] == script]
    if script == "dqn":
        rows += read_csv(RESULTS / "dqn_cleanrl_curves.csv")
    column = {"seconds": "seconds", "steps": "global_step"}[axis]
    return {
        peer: [points(rows, column, peer=peer, seed=seed) for seed in sorted({row["seed"] for row in rows})]
        for peer in sorted({row["peer"] for row in rows})
    }


def points(rows, column, **same):
    """(x, returns) of the rows that agree with `same`."""
    mine = [row for row in rows if all(row[name] == value for name, value in same.items())]
    return np.array([(float(row[column]), float(row["mean_return"])) for row in mine]).T


def plot(ax, curves, label, color):
    """Their mean on a common grid, and a band from the lowest to the highest."""
    grid = np.linspace(max(x[0] for x, _ in curves), min(x[-1] for x, _ in curves), 200)
    returns = np.stack([np.interp(grid, x, y) for x, y in curves])
    ax.fill_between(grid, returns.min(0), returns.max(0), color=color, alpha=0.25, linewidth=0)
    ax.plot(grid, returns.mean(0), color=color, linewidth=2, label=f"{label}, {len(curves)} seeds")


def draw(axis):
    """All panels over seconds or steps."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    fig, axes = plt.subplots(2, 3, figsize=(13, 7), dpi=130, layout="constrained")
    for ax, (script, (name, title)) in zip(axes.flat, PANELS.items(), strict=True):
        for peer, curves in peer_curves(script, axis).items():
            plot(ax, curves, peer, COLORS[peer])
        plot(ax, our_curves(name, axis), "ours", "#0072B2")
        ax.set_title(title, fontsize=14)
        ax.set_xlabel("training time (s)" if axis == "seconds" else "environment steps", fontsize=12)
        ax.xaxis.set_major_formatter(lambda x, _: f"{x / 1000:g}k" if x >= 1000 else f"{x:g}")
        ax.tick_params(labelsize=11)
        ax.grid(alpha=0.3)
        ax.set_xlim(left=0)
        ax.legend(fontsize=11, framealpha=0.8, edgecolor="none", loc="lower right")
    for ax in axes[:, 0]:
        ax.set_ylabel("return, mean of the last\n100 training episodes", fontsize=12)
    fig.savefig(RESULTS / f"{axis}.png")


if __name__ == "__main__":
    for axis in ("seconds", "steps"):
        draw(axis)
