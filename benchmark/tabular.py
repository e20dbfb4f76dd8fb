"""tabular_q.py on the cliff of Sutton & Barto, example 6.6, and its speed beside that of the environments alone.

    python benchmark/tabular.py exact    the greedy policy's exact value beside the optimum, 10 seeds; 4 minutes
    python benchmark/tabular.py cliff    Q-learning, SARSA, expected SARSA at ε = 0.1 and γ = 1; 3 minutes
    python benchmark/tabular.py speed    steps/s of training and of random actions, in turns; 1 minute

The curves of cliff are those of the first episodes, where α has hardly fallen from 0.5; the greedy paths are those at
the end, where it is 0 and SARSA's noise is gone. Into benchmark/results go tabular_q_cliff.csv (one row an algorithm
and seed), tabular_q_cliff_curves.csv and tabular_q_cliff.png, tabular_q_exact.csv, tabular_q_speed.csv.
"""

import argparse
import random
import time
from datetime import date

import gymnasium as gym
import matplotlib
import numpy as np
from run import RESULTS, ROOT, command_line, fingerprint, setting, timed_train, write_csv

import tabular_q

matplotlib.use("Agg")
from matplotlib import pyplot as plt

ALGORITHMS = {"q_learning": "#D55E00", "sarsa": "#0072B2", "expected_sarsa": "#009E73"}  # and their colours
EXACT = [  # flags, seeds
    ("", 10),
    ("--env-id FrozenLake-v1", 10),
    ("--env-id FrozenLake8x8-v1 --total-timesteps 1000000 --epsilon-steps 900000 --learning-rate 0.5", 10),
    *(
        (f"--env-id {env_id} --algorithm policy_iteration", 1)
        for env_id in ("Taxi-v4", "FrozenLake-v1", "CliffWalking-v1")
    ),
]
CLIFF = "--env-id CliffWalking-v1 --total-timesteps 100000 --learning-rate 0.5 --gamma 1"
CLIFF += " --epsilon-start 0.1 --epsilon-end 0.1"
NUM_EPISODES, NUM_SEEDS, WINDOW = 500, 30, 20


def exact():
    """Train, and solve the model for the values of the greedy policy and of the best one."""
    rows = []
    for flags, num_seeds in EXACT:
        for seed in range(1, num_seeds + 1):
            run = timed_train(tabular_q, [*flags.split(), "--seed", str(seed), "--eval-episodes", "0"])
            world = gym.make(run.args.env_id).unwrapped
            start, greedy = world.initial_state_distrib, tabular_q.greedy_policy(run.agent)
            began = time.perf_counter()
            _, best = tabular_q.policy_iteration(world.P, run.args.gamma)
            seconds = run.seconds if run.args.algorithm != "policy_iteration" else time.perf_counter() - began
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
    rows, returns = [], {}
    for algorithm in ALGORITHMS:
        flags = [*CLIFF.split(), "--algorithm", algorithm, "--eval-episodes", "1"]
        returns[algorithm] = []
        for seed in range(1, NUM_SEEDS + 1):
            run = timed_train(tabular_q, [*flags, "--seed", str(seed)])
            episodes = [value for _, value in run.history[:NUM_EPISODES]]
            assert len(episodes) == NUM_EPISODES
            returns[algorithm].append(episodes)
            last = float(np.mean(episodes[-100:]))
            rows.append(
                {"command": command_line("tabular_q", flags), "code": fingerprint("tabular_q"), "algorithm": algorithm}
                | {"seed": seed, "greedy_return": run.returns[0], "last_100_episodes": round(last, 2)}
                | {"date": date.today().isoformat()}
                | setting()
            )
        mine = [row for row in rows if row["algorithm"] == algorithm]
        greedy, last = (np.array([row[key] for row in mine]) for key in ("greedy_return", "last_100_episodes"))
        share = ", ".join(f"{value:g} in {(greedy == value).sum()}" for value in sorted(set(greedy), reverse=True))
        print(f"{algorithm}: last 100 of {NUM_EPISODES} episodes {last.mean():.1f} ± {last.std():.1f}; greedy {share}")
    write_csv(RESULTS / "tabular_q_cliff.csv", rows)

    means = {name: np.mean(episodes, axis=0) for name, episodes in returns.items()}
    smooth = {name: np.convolve(mean, np.ones(WINDOW) / WINDOW, "valid") for name, mean in means.items()}
    episodes = np.arange(WINDOW, NUM_EPISODES + 1)
    points = [
        {"episode": int(episode)} | {name: round(float(smooth[name][i]), 3) for name in smooth}
        for i, episode in enumerate(episodes)
    ]
    write_csv(RESULTS / "tabular_q_cliff_curves.csv", points)
    fig, ax = plt.subplots(figsize=(8, 4.5), dpi=160, layout="constrained")
    for name, curve in smooth.items():
        ax.plot(episodes, curve, color=ALGORITHMS[name], linewidth=2, label=name)
    ax.axhline(-13, color="black", linestyle="--", linewidth=1.2, label="shortest path, along the edge: -13")
    ax.set_ylim(-100, 0)
    ax.set_title("tabular_q.py on CliffWalking-v1, ε = 0.1 (Sutton & Barto, example 6.6)", fontsize=14)
    ax.set_xlabel("episode", fontsize=13)
    ax.set_ylabel(f"return, mean of {WINDOW} episodes", fontsize=13)
    ax.tick_params(labelsize=12)
    ax.grid(alpha=0.3)
    ax.legend(fontsize=12, frameon=False, loc="lower right")
    fig.savefig(RESULTS / "tabular_q_cliff.png")
    print(f"wrote {(RESULTS / 'tabular_q_cliff.png').relative_to(ROOT)}")


def speed(steps=200_000, rounds=5):
    """Steps/s of training with the default flags and of stepping the environment with random actions, in turns."""
    rows = []
    for env_id in ("Taxi-v4", "CliffWalking-v1"):
        for i in range(rounds):
            flags = ["--env-id", env_id, "--total-timesteps", str(steps), "--eval-episodes", "0"]
            ours, alone = steps / timed_train(tabular_q, flags).seconds, environment_only(env_id, steps)
            row = {"env_id": env_id, "round": i, "training": round(ours), "environment": round(alone)}
            rows.append(row | {"ratio": round(ours / alone, 3), "date": date.today().isoformat()} | setting())
        mine = [row for row in rows if row["env_id"] == env_id]
        ours, alone, ratio = (np.median([row[key] for row in mine]) for key in ("training", "environment", "ratio"))
        print(f"{env_id}: {ours:,.0f} steps/s, the environment alone {alone:,.0f}: {ratio:.0%} (medians of {rounds})")
    write_csv(RESULTS / "tabular_q_speed.csv", rows)


def environment_only(env_id, steps):
    """Steps/s of an environment with actions drawn beforehand."""
    env = tabular_q.with_limit(gym.make(env_id))
    env.reset(seed=1)
    rng = random.Random(1)
    actions = [rng.randrange(int(env.action_space.n)) for _ in range(steps)]
    start = time.perf_counter()
    for action in actions:
        _, _, terminated, truncated, _ = env.step(action)
        if terminated or truncated:
            env.reset()
    return steps / (time.perf_counter() - start)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mode", choices=["exact", "cliff", "speed"])
    {"exact": exact, "cliff": cliff, "speed": speed}[parser.parse_args().mode]()
