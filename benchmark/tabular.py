"""tabular_q.py beside the exact optimum, on the cliff of Sutton & Barto, example 6.6, and its speed.

    python benchmark/tabular.py exact    the greedy policy's exact value beside the optimum, 10 seeds; 4 minutes
    python benchmark/tabular.py cliff    Q-learning, SARSA, expected SARSA at ε = 0.1 and γ = 1; 3 minutes
    python benchmark/tabular.py speed    steps/s of training and of random actions, in turns; 1 minute

All from the root of the repository. The curves of cliff are those of the first episodes, where α has hardly fallen from
0.5; the greedy paths are those at the end, where it is 0 and SARSA's noise is gone. Into benchmark/results go
tabular_q_exact.csv, tabular_q_cliff.csv (one row an algorithm and seed), tabular_q_cliff.png and tabular_q_speed.csv.
"""

import argparse
import time
from datetime import date

import gymnasium as gym
import matplotlib
import numpy as np
from run import RESULTS, command_line, fingerprint, setting, timed_train, write_csv

import tabular_q

matplotlib.use("Agg")
from matplotlib import pyplot as plt

EXACT = {  # flags: seeds
    "": 10,
    "--env-id FrozenLake-v1": 10,
    "@settings/tabular_q_FrozenLake8x8-v1.txt": 10,
    "--env-id Taxi-v4 --algorithm policy_iteration": 1,
    "--env-id FrozenLake-v1 --algorithm policy_iteration": 1,
    "--env-id CliffWalking-v1 --algorithm policy_iteration": 1,
}
CLIFF = "--env-id CliffWalking-v1 --total-timesteps 100000 --learning-rate 0.5 --gamma 1 --eval-episodes 1"
CLIFF += " --epsilon-start 0.1 --epsilon-end 0.1"
ALGORITHMS = {"q_learning": "#D55E00", "sarsa": "#0072B2", "expected_sarsa": "#009E73"}  # and their colours
NUM_EPISODES, NUM_SEEDS, WINDOW = 500, 30, 20
STEPS, ROUNDS = 200_000, 5


def exact():
    """Train, and solve the model for the values of the greedy policy and of the best one."""
    rows = []
    for flags, num_seeds in EXACT.items():
        for seed in range(1, num_seeds + 1):
            run = timed_train(tabular_q, [*flags.split(), "--seed", str(seed), "--eval-episodes", "0"])
            world = gym.make(run.args.env_id).unwrapped
            start, greedy = world.initial_state_distrib, tabular_q.greedy_policy(run.agent)
            began = time.perf_counter()
            _, best = tabular_q.policy_iteration(world.P, run.args.gamma)
            seconds = run.seconds if run.history else time.perf_counter() - began  # of the solution alone
            values = tabular_q.policy_evaluation(world.P, greedy, run.args.gamma)
            rows.append(
                {"command": command_line("tabular_q", flags.split()), "code": fingerprint("tabular_q"), "seed": seed}
                | {"greedy_value": start @ values, "optimal_value": start @ best}
                | {"starts": (start > 0).sum(), "optimal_starts": np.isclose(values, best, atol=1e-9)[start > 0].sum()}
                | {"undiscounted": start @ tabular_q.policy_evaluation(world.P, greedy, 1.0)}
                | {"seconds": round(seconds, 3), "date": date.today().isoformat()}
                | setting()
            )
        mine = rows[-num_seeds:]
        ratios = [row["greedy_value"] / row["optimal_value"] for row in mine]
        print(
            f"{mine[0]['command']}: greedy / optimal value {min(ratios):.4f} to {max(ratios):.4f}, "
            f"at least {min(row['optimal_starts'] for row in mine)} of {mine[0]['starts']} starts optimal, "
            f"undiscounted {np.mean([row['undiscounted'] for row in mine]):.4f}, "
            f"{np.median([row['seconds'] for row in mine]):.3f} s ({num_seeds} seeds)",
            flush=True,
        )
    write_csv(RESULTS / "tabular_q_exact.csv", rows)


def cliff():
    """Train, store, draw."""
    rows = []
    fig, ax = plt.subplots(figsize=(8, 4.5), dpi=160, layout="constrained")
    for algorithm, color in ALGORITHMS.items():
        flags, returns = [*CLIFF.split(), "--algorithm", algorithm], []
        for seed in range(1, NUM_SEEDS + 1):
            run = timed_train(tabular_q, [*flags, "--seed", str(seed)])
            returns.append([value for _, value in run.history[:NUM_EPISODES]])
            last = round(float(np.mean(returns[-1][-100:])), 2)
            rows.append(
                {"command": command_line("tabular_q", flags), "code": fingerprint("tabular_q"), "algorithm": algorithm}
                | {"seed": seed, "greedy_return": run.returns[0], "last_100_episodes": last}
                | {"date": date.today().isoformat()}
                | setting()
            )
        keys = "greedy_return", "last_100_episodes"
        greedy, last = np.array([[row[key] for row in rows[-NUM_SEEDS:]] for key in keys])
        share = ", ".join(f"{value:g} in {(greedy == value).sum()}" for value in np.unique(greedy)[::-1])
        print(f"{algorithm}: last 100 of {NUM_EPISODES} episodes {last.mean():.1f} ± {last.std():.1f}; greedy {share}")
        curve = np.convolve(np.mean(returns, axis=0), np.ones(WINDOW) / WINDOW, "valid")
        ax.plot(np.arange(WINDOW, NUM_EPISODES + 1), curve, color=color, linewidth=2, label=algorithm)
    write_csv(RESULTS / "tabular_q_cliff.csv", rows)

    ax.axhline(-13, color="black", linestyle="--", linewidth=1.2, label="shortest path, along the edge: -13")
    ax.set_ylim(-100, 0)
    ax.set_title("tabular_q.py on CliffWalking-v1, ε = 0.1 (Sutton & Barto, example 6.6)", fontsize=14)
    ax.set_xlabel("episode", fontsize=13)
    ax.set_ylabel(f"return, mean of {WINDOW} episodes", fontsize=13)
    ax.tick_params(labelsize=12)
    ax.grid(alpha=0.3)
    ax.legend(fontsize=12, frameon=False, loc="lower right")
    fig.savefig(RESULTS / "tabular_q_cliff.png")


def speed():
    """Steps/s of training with the default flags and of stepping the environment with random actions, in turns."""
    rows = []
    for env_id in ("Taxi-v4", "CliffWalking-v1"):
        for i in range(ROUNDS):
            flags = ["--env-id", env_id, "--total-timesteps", str(STEPS), "--eval-episodes", "0"]
            ours, alone = STEPS / timed_train(tabular_q, flags).seconds, environment_only(env_id)
            row = {"env_id": env_id, "round": i, "training": round(ours), "environment": round(alone)}
            rows.append(row | {"ratio": round(ours / alone, 3), "date": date.today().isoformat()} | setting())
        keys = "training", "environment", "ratio"
        ours, alone, ratio = np.median([[row[key] for key in keys] for row in rows[-ROUNDS:]], axis=0)
        print(f"{env_id}: {ours:,.0f} steps/s, the environment alone {alone:,.0f}: {ratio:.0%} (medians of {ROUNDS})")
    write_csv(RESULTS / "tabular_q_speed.csv", rows)


def environment_only(env_id):
    """Steps/s of an environment with actions drawn beforehand."""
    env = gym.make(env_id)
    env.reset(seed=1)
    actions = np.random.default_rng(1).integers(env.action_space.n, size=STEPS).tolist()
    start = time.perf_counter()
    for action in actions:
        _, _, terminated, truncated, _ = env.step(action)
        if terminated or truncated:
            env.reset()
    return STEPS / (time.perf_counter() - start)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mode", choices=["exact", "cliff", "speed"])
    {"exact": exact, "cliff": cliff, "speed": speed}[parser.parse_args().mode]()
