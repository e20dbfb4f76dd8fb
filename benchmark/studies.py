"""Measure what the lectures claim, what default flags reach elsewhere, and how dqn.py handles images.

    python benchmark/studies.py exact         greedy policy of tabular_q.py beside the optimum, 10 seeds; 4 minutes
    python benchmark/studies.py cliff         Q-learning, SARSA, expected SARSA (Sutton & Barto, example 6.6); 3 minutes
    python benchmark/studies.py variance      variance of reinforce.py's gradient estimate for each --psi; 1 minute
    python benchmark/studies.py pgql          actor-critic, Q-learning and PGQL on a grid world, 10 seeds; 2 minutes
    python benchmark/studies.py asynchrony    A3C, GA3C, PAAC, IMPALA: speed, gradient delay, policy lag; 15 minutes
    python benchmark/studies.py lag           related/impala.py with a forced lag, with and without V-trace; 10 minutes
    python benchmark/studies.py bundles       related/gorila.py with 1, 2 and 4 bundles, and dqn.py, 3 seeds; 20 minutes
    python benchmark/studies.py elsewhere     default flags with another --env-id, 5 seeds; 3 hours for all scripts
    python benchmark/studies.py frames        what dqn.py --pixels observes of CartPole-v1
    python benchmark/studies.py memory        memory of a replay buffer of a million Atari transitions; 8 GB, 30 s

Studies write a CSV, a PNG or both to benchmark/results; asynchrony --plot-only redraws from stored data.
"""

import argparse
import importlib
import json
import os
import resource
import sys
import time
from datetime import date
from unittest import mock

import gymnasium as gym
import numpy as np
from run import (
    RESULTS,
    axes,
    band,
    command_line,
    curve,
    fingerprint,
    fresh,
    read_csv,
    run_seed,
    setting,
    timed_train,
    write_csv,
)

BLUE, ORANGE, GREEN = "#0072B2", "#D55E00", "#009E73"  # Okabe and Ito


def stamp(script):
    """Return the last columns of a row."""
    return {"code": fingerprint(script), "date": date.today()} | setting()


# Tabular control


EXACT = {  # flags: seeds
    "": 10,
    "--env-id FrozenLake-v1": 10,
    "@settings/tabular_q_FrozenLake8x8-v1.txt": 10,
    "--env-id Taxi-v4 --algorithm policy_iteration": 1,
    "--env-id FrozenLake-v1 --algorithm policy_iteration": 1,
    "--env-id CliffWalking-v1 --algorithm policy_iteration": 1,
}


def exact():
    """Train, and solve the model for the values of the greedy and of the optimal policy."""
    import tabular_q

    rows = []
    for flags, num_seeds in EXACT.items():
        for seed in range(1, num_seeds + 1):
            run = timed_train(tabular_q, [*flags.split(), "--seed", str(seed), "--eval-episodes", "0"])
            world = gym.make(run.args.env_id).unwrapped
            start, greedy = world.initial_state_distrib, tabular_q.greedy_policy(run.agent)
            began = time.perf_counter()
            _, best = tabular_q.policy_iteration(world.P, run.args.gamma)
            seconds = run.seconds if run.history else time.perf_counter() - began  # for the solution alone
            values = tabular_q.policy_evaluation(world.P, greedy, run.args.gamma)
            row = {"command": command_line("tabular_q", flags.split()), "seed": seed}
            row |= {"greedy_value": start @ values, "optimal_value": start @ best, "starts": (start > 0).sum()}
            row |= {"optimal_starts": np.isclose(values, best, atol=1e-9)[start > 0].sum()}
            row |= {"undiscounted": start @ tabular_q.policy_evaluation(world.P, greedy, 1.0)}
            rows.append(row | {"seconds": round(seconds, 3)} | stamp("tabular_q"))
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


def cliff(num_episodes=500, num_seeds=30, window=20):
    """Compare the algorithms with ε = 0.1 and γ = 1.

    The curves show the first episodes, where α has hardly decayed from 0.5; the greedy paths are those at the end of
    training, where α is 0.
    """
    import tabular_q

    fig, ax = axes("tabular_q.py on CliffWalking-v1, ε = 0.1 (Sutton & Barto, example 6.6)", "episode")
    rows = []
    for algorithm, color in {"q_learning": ORANGE, "sarsa": BLUE, "expected_sarsa": GREEN}.items():
        flags = "--env-id CliffWalking-v1 --total-timesteps 100000 --learning-rate 0.5 --gamma 1 --eval-episodes 1"
        flags = f"{flags} --epsilon-start 0.1 --epsilon-end 0.1 --algorithm {algorithm}".split()
        returns, greedy = [], []
        for seed in range(1, num_seeds + 1):
            run = timed_train(tabular_q, [*flags, "--seed", str(seed)])
            returns.append([value for _, value in run.history[:num_episodes]])
            greedy.append(run.returns[0])
            row = {"command": command_line("tabular_q", flags), "algorithm": algorithm, "seed": seed}
            row |= {"greedy_return": greedy[-1], "last_100_episodes": round(float(np.mean(returns[-1][-100:])), 2)}
            rows.append(row | stamp("tabular_q"))
        last = np.mean(returns, axis=0)[-100:].mean()
        share = ", ".join(f"{value:g} in {greedy.count(value)}" for value in sorted(set(greedy), reverse=True))
        print(f"{algorithm}: last 100 of {num_episodes} episodes {last:.1f}; greedy {share}", flush=True)
        smooth = np.convolve(np.mean(returns, axis=0), np.ones(window) / window, "valid")
        ax.plot(np.arange(window, num_episodes + 1), smooth, color=color, linewidth=2, label=algorithm)
    write_csv(RESULTS / "tabular_q_cliff.csv", rows)
    ax.axhline(-13, color="black", linestyle="--", linewidth=1.2, label="shortest path, along the edge: -13")
    ax.set(ylim=(-100, 0), ylabel=f"return, mean of {window} episodes")
    ax.legend(fontsize=12, frameon=False, loc="lower right")
    fig.savefig(RESULTS / "tabular_q_cliff.png")


# The weights of REINFORCE


PSI = ["total_return", "reward_to_go", "mean_baseline", "value_baseline", "elite"]


def estimates(agent, observations, actions, rewards, truncations, is_transition, args):
    """Return -∇L of the policy alone on one batch, one row per Ψ: (num_psi, num_weights).

    All Ψ share one set of returns, without the bootstrap that reinforce.py adds to those of value_baseline, which would
    make it estimate the gradient of another objective.
    """
    import torch

    import reinforce

    output, values = agent(torch.as_tensor(observations[:-1][is_transition]))
    log_prob, entropy = agent.log_prob_and_entropy(output, torch.as_tensor(actions[is_transition]))
    baseline = agent.return_statistics.rms() * values.detach().numpy()
    returns = reinforce.discounted_returns(rewards, args.gamma)
    gradients = []
    for psi in PSI:
        weights = reinforce.psi_weights(psi, returns, baseline, is_transition, args.elite_fraction)
        loss, _ = reinforce.reinforce_loss(log_prob, entropy, torch.as_tensor(weights), args.num_envs, 0.0)
        gradient = torch.autograd.grad(loss, list(agent.actor.parameters()), retain_graph=True)
        gradients.append(-torch.cat([g.flatten() for g in gradient]))
    return torch.stack(gradients).double()


def variance(num_envs=64):
    """Compare the gradient estimates of all Ψ on the same episodes of an early and of a later policy.

    The policy plays a million steps in batches of 64 episodes. Noise is the trace of the covariance of the estimates,
    signal the squared norm of their mean minus the noise left in it. Only their ratio compares weights of different
    scale, such as those of elite. The critic is the one that was trained together with the policy.
    """
    import torch

    import reinforce

    rows, panels = [], {"early": 30_000, "later": 100_000}
    fig, axs = axes("", "", nrows=1, ncols=2, figsize=(10, 4), sharey=True)
    for ax, (policy, steps) in zip(axs, panels.items(), strict=True):
        flags = f"--gamma=1 --num-envs={num_envs} --learning-rate=3e-3 --eval-episodes=0".split()
        agent = timed_train(reinforce, [*flags, f"--total-timesteps={steps}"]).agent
        batches = []

        def update(agent, optimizer, *batch, batches=batches):  # the script's own update would change the policy
            batches.append(estimates(agent, *batch))
            return {}

        flags += ["--total-timesteps=1000000", "--seed=2"]
        network = mock.patch.object(reinforce, "ActorCritic", lambda *_, agent=agent: agent)
        statistics = mock.patch.object(agent.obs_statistics, "update", lambda samples: None)  # part of the policy, too
        with mock.patch.object(reinforce, "update", update), network, statistics:
            score = np.mean([value for _, value in timed_train(reinforce, flags).history])
        gradients = torch.stack(batches[:-1])  # the end of training truncates the last batch
        noise = gradients.var(0).sum(-1)
        signal = gradients.mean(0).square().sum(-1) - noise / len(gradients)
        ratios = (noise / signal).tolist()
        for psi, n, s, ratio in zip(PSI, noise.tolist(), signal.tolist(), ratios, strict=True):
            row = {"policy": policy, "train_steps": steps, "mean_return": round(score, 1), "psi": psi}
            row |= {"batches": len(gradients), "episodes_per_batch": num_envs, "noise": n, "signal": s}
            rows.append(row | {"noise_to_signal": ratio} | stamp("reinforce"))
            print(f"{policy}  {psi:15} noise {n:10.4g}   signal {s:10.4g}   ratio {ratio:8.3g}", flush=True)
        bars = ax.barh(PSI, ratios, color=BLUE)
        ax.bar_label(bars, [f"{ratio:.2g}" for ratio in ratios], padding=4, fontsize=12)
        ax.set(title=f"after {steps:,} steps, mean return {score:.0f}", ylabel="", xlim=(0, 1.2 * max(ratios)))
    axs[0].invert_yaxis()
    fig.supxlabel(f"variance of the gradient estimate / |its mean|², batches of {num_envs} episodes", fontsize=13)
    write_csv(RESULTS / "reinforce_gradient_variance.csv", rows)
    fig.savefig(RESULTS / "reinforce_gradient_variance.png")


# PGQL


GRID = ["FFFFFG", "FFFFFF", "FFFFFF", "SFFFFF"]  # without holes; the goal's reward of 1 is the only one
PGQL_FLAGS = "--gamma 0.95 --ent-coef 0.001 --num-envs 4 --num-steps 8 --total-timesteps 8000 --eval-episodes 0"
PGQL = {"actor-critic, η = 0": "--eta 0", "PGQL, η = 0.5": "--eta 0.5", "Q-learning, η = 1": "--eta 1"}


def policy_value(agent, model, start, gamma):
    """Return the exact value of the policy at the start, from the model P of a FrozenLake and one-hot observations."""
    import torch

    num_states = len(model)
    policy = agent(torch.eye(num_states))[0].softmax(-1).detach().double().numpy()
    transitions, rewards = np.zeros((num_states, num_states)), np.zeros(num_states)
    for s, action_outcomes in model.items():
        for a, outcomes in action_outcomes.items():
            for probability, next_state, reward, terminated in outcomes:
                rewards[s] += policy[s, a] * probability * reward
                transitions[s, next_state] += policy[s, a] * probability * (not terminated)
    return start @ np.linalg.solve(np.eye(num_states) - gamma * transitions, rewards)


def pgql(num_seeds=10):
    """Learn a grid world of the size in the PGQL paper (section 6.1), 4 by 6, with its γ 0.95 and α 0.001.

    The value of the policy is computed from the model after each update, as in the paper's figure 1.
    """
    import pgql as script

    world = {"is_slippery": False, "desc": GRID}
    model = gym.make("FrozenLake-v1", **world).unwrapped
    flags = ["--env-id", "FrozenLake-v1", "--env-kwargs", json.dumps(world), *PGQL_FLAGS.split()]
    rows, update = [], script.update
    fig, ax = axes("related/pgql.py on a grid world of 4 by 6", "environment steps")
    for (label, eta), color in zip(PGQL.items(), (BLUE, GREEN, ORANGE), strict=True):
        curves = []
        for seed in range(1, num_seeds + 1):
            points = []

            def recorded(agent, optimizer, rollout, batch, args, points=points):
                metrics = update(agent, optimizer, rollout, batch, args)
                value = policy_value(agent, model.P, model.initial_state_distrib, args.gamma)
                points.append(((len(points) + 1) * rollout[2].size, value))
                return metrics

            with mock.patch.object(script, "update", recorded):
                timed_train(script, [*flags, *eta.split(), "--seed", str(seed)])
            curves.append(np.array(points).T)
            row = {"command": command_line("pgql", [*flags, *eta.split()]), "algorithm": label, "seed": seed}
            row |= {"final_value": points[-1][1], "mean_value": np.mean([value for _, value in points])}
            rows.append(row | stamp("pgql"))
        mean = np.mean([row["mean_value"] for row in rows[-num_seeds:]])
        final = [row["final_value"] for row in rows[-num_seeds:]]
        print(f"{label}: training {mean:.3f}, final {np.mean(final):.3f}, lowest {min(final):.3f}", flush=True)
        band(ax, curves, label, color)
    best = 0.95**7  # the goal is 8 steps away
    ax.axhline(best, color="black", linestyle="--", linewidth=1.2)
    ax.set_ylabel("value of the policy at the start")
    write_csv(RESULTS / "pgql_grid.csv", rows)
    fig.savefig(RESULTS / "pgql_grid.png")


# A3C, GA3C, PAAC, IMPALA


NUMBERS = [1, 2, 4, 8, 16]  # of environments
COMMON = "--learning-rate 1e-3 --num-steps 20 --vf-coef 0.1 --ent-coef 0.01 --max-grad-norm 40"
CARTPOLE = "--env-id CartPole-v1 --gamma 0.98 --total-timesteps 200000 --log-interval 10000"
PONG = "--env-id ALE/Pong-v5 --gamma 0.99 --total-timesteps 20000 --log-interval 4000 --eval-episodes 0"
FLAGS = {  # script: flags that make its settings comparable, ending with its number of environments
    "a3c": "--rmsprop-eps 0.01 --num-workers",
    "ga3c": "--rmsprop-eps 0.1 --device cpu --num-agents",  # ε is added outside the square root
    "paac_gpu": "--gae-lambda 1 --network nips --device cpu --num-envs",
    "impala": "--batch-size 1 --device cpu --num-workers",
}


def measure(name, number, flags):
    """Run a script once -> its row of results and its learning curve."""
    script, logged, clock = importlib.import_module(name), [], []
    flags = [*COMMON.split(), *flags.split(), *FLAGS[name].split(), str(number)]

    def log(run, args, global_step, history, lengths, metrics):
        clock.append((time.perf_counter(), global_step))
        logged.append(metrics)

    with mock.patch.object(script, "log_progress", log):
        run = timed_train(script, flags)
    (start, first_step), (end, last_step) = clock[0], clock[-1]  # by the first log all processes have started
    speed = (last_step - first_step) / (end - start)
    delays = {"gradient_delay": "charts/gradient_delay", "policy_lag": "charts/policy_lag"}  # of A3C; of GA3C, IMPALA
    row = {"script": name, "env_id": run.args.env_id, "num_envs": number, "seed": run.args.seed, "steps": run.steps}
    row["steps_per_second"] = round(speed)
    last = logged[-1]
    steps_per_update = last["charts/SPS"] / last["charts/TPS"] if "charts/TPS" in last else number * run.args.num_steps
    row["updates_per_second"] = round(speed / steps_per_update, 1)
    for column, chart in delays.items():
        row[column] = round(float(np.mean([metrics[chart] for metrics in logged])), 3) if chart in logged[0] else ""
    row["eval_mean"] = round(float(np.mean(run.returns)), 1) if run.returns else ""
    return row | {"flags": " ".join(flags)} | stamp(name), curve(run.history, run.steps)


def asynchrony(plot_only):
    """Run CartPole-v1 with 1 to 16 environments, and Pong with 8 for a few minutes, not evaluated.

    Gradient delay: the updates that other workers made between a worker's copy of the weights and its own update.
    Policy lag: the updates between the weights that chose an action and those being updated. PAAC has neither.
    Learning rate, t_max, discount, loss weights and steps are equal. PAAC and IMPALA use Adam, the others RMSProp.
    """
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # the processes share the cores
    rows, points = [], []
    contests = [(name, number, CARTPOLE) for number in NUMBERS for name in FLAGS] + [(name, 8, PONG) for name in FLAGS]
    for name, number, flags in [] if plot_only else contests:
        row, steps = measure(name, number, flags)
        rows.append(row)
        if flags == CARTPOLE:
            points += [{"script": name, "num_envs": number, "global_step": x, "mean_return": y} for x, y in steps]
        print(f"{name} {row['env_id']} {number}: {row['steps_per_second']:,} steps/s", flush=True)
        write_csv(RESULTS / "asynchrony.csv", rows)
        write_csv(RESULTS / "asynchrony_curves.csv", points)
    rows, points = read_csv(RESULTS / "asynchrony.csv"), read_csv(RESULTS / "asynchrony_curves.csv")

    columns = "num_envs steps_per_second updates_per_second gradient_delay policy_lag eval_mean".split()
    print("| game | script | environments | steps/s | updates/s | gradient delay | policy lag | greedy return |")
    print("|" + " --- |" * 8)
    for row in rows:
        print("|", " | ".join([row["env_id"], row["script"], *(row[column] for column in columns)]), "|")

    fig, axs = axes("", "environments (workers, agents)", nrows=2, ncols=2, figsize=(11, 8), dpi=130)
    titles = {"steps_per_second": "steps/s", "updates_per_second": "updates/s"}
    labels = {"a3c": "A3C", "ga3c": "GA3C", "paac_gpu": "PAAC", "impala": "IMPALA"}
    for (name, label), color in zip(labels.items(), (BLUE, ORANGE, GREEN, "black"), strict=True):
        mine = [row for row in points if (row["script"], row["num_envs"]) == (name, str(NUMBERS[-1]))]
        x, y = ([float(row[column]) for row in mine] for column in ("global_step", "mean_return"))
        band(axs[0, 0], [(x, y)], label, color)
        mine = [row for row in rows if (row["script"], row["env_id"]) == (name, "CartPole-v1")]
        numbers = [int(row["num_envs"]) for row in mine]
        for ax, column in zip(axs.flat[1:], titles, strict=False):
            ax.plot(numbers, [float(row[column]) for row in mine], "o-", color=color)
        for column in ("gradient_delay", "policy_lag"):
            if mine[0][column]:
                text = f"{label}: {column.replace('_', ' ')}"
                axs[1, 1].plot(numbers, [float(row[column]) for row in mine], "o-", color=color, label=text)
    axs[0, 0].set(xlabel="environment steps", title=f"CartPole-v1, {NUMBERS[-1]} environments")
    axs[1, 1].legend(fontsize=12, framealpha=0.8, edgecolor="none")
    for ax, title in zip(axs.flat[1:], [*titles.values(), "updates of delay: two different quantities"], strict=True):
        ax.set(ylabel="", title=title, xscale="log")
        ax.set_xticks(NUMBERS, [str(number) for number in NUMBERS])
        ax.minorticks_off()
    fig.savefig(RESULTS / "asynchrony.png")


def lag(num_seeds=3):
    """Train related/impala.py on CartPole-v1 with a forced policy lag, with and without V-trace.

    Actors can copy new weights only after every --sync-interval updates.
    """
    import impala

    os.environ.setdefault("OMP_NUM_THREADS", "1")
    rows, intervals = [], [1, 4, 16, 64, 256]
    fig, ax = axes("related/impala.py on CartPole-v1", "updates between the weights that actors can copy")
    for label, vtrace, color in (("V-trace", "--vtrace", BLUE), ("without V-trace", "--no-vtrace", ORANGE)):
        returns = []
        for interval in intervals:
            for seed in range(1, num_seeds + 1):
                flags = ["--total-timesteps", "100000", vtrace, "--sync-interval", str(interval), "--seed", str(seed)]
                logged = []
                with mock.patch.object(impala, "log_progress", lambda *args, logged=logged: logged.append(args[-1])):
                    run = timed_train(impala, flags)
                late = [value for step, value in run.history if step > run.args.total_timesteps / 2]
                row = {"command": command_line("impala", flags), "vtrace": label == "V-trace", "interval": interval}
                row |= {"seed": seed, "policy_lag": np.mean([metrics["charts/policy_lag"] for metrics in logged])}
                row |= {"late_return": np.mean(late), "eval_mean": np.mean(run.returns)}
                rows.append(row | stamp("impala"))
            mine = rows[-num_seeds:]
            returns.append([row["late_return"] for row in mine])
            columns = [np.mean([row[column] for row in mine]) for column in ("policy_lag", "late_return", "eval_mean")]
            print(f"| {label} | {interval} | {columns[0]:.1f} | {columns[1]:.1f} | {columns[2]:.1f} |", flush=True)
            write_csv(RESULTS / "impala_lag.csv", rows)
        ax.plot(intervals, np.mean(returns, axis=1), "o-", color=color, linewidth=2.5, label=label)
        ax.fill_between(intervals, np.min(returns, axis=1), np.max(returns, axis=1), color=color, alpha=0.25)
    ax.set(xscale="log", ylabel="return in the second half of training")
    ax.set_xticks(intervals, [str(interval) for interval in intervals])
    ax.minorticks_off()
    ax.legend(fontsize=12, framealpha=0.8, edgecolor="none")
    fig.savefig(RESULTS / "impala_lag.png")


# Gorila


def bundles(num_seeds=3):
    """Train related/gorila.py with 1, 2 and 4 bundles on CartPole-v1, and dqn.py with as many gradients."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    rows = []
    fig, ax = axes("related/gorila.py on CartPole-v1, 2 cores", "environment steps")
    contests = [("gorila", str(number), color) for number, color in ((1, BLUE), (2, GREEN), (4, ORANGE))]
    for name, number, color in [*contests, ("dqn", "", "black")]:
        curves = []
        for seed in range(1, num_seeds + 1):
            flags = ["--total-timesteps", "100000", "--seed", str(seed)]
            flags += ["--num-bundles", number] if name == "gorila" else ["--device", "cpu"]
            script, logged = importlib.import_module(name), []
            with mock.patch.object(script, "log_progress", lambda *args, logged=logged: logged.append(args[-1])):
                run = timed_train(script, flags)
            row = {"command": command_line(name, flags), "bundles": number, "seed": seed}
            row["steps_per_second"] = round(logged[-1]["charts/SPS"])
            if name == "gorila":
                row["gradients_per_second"] = round(logged[-1]["charts/TPS"], 1)
                row["gradient_delay"] = logged[-1]["charts/gradient_delay"]  # mean since the previous log
            else:
                row["gradients_per_second"] = round(row["steps_per_second"] / run.args.train_interval, 1)
                row["gradient_delay"] = 0.0
            rows.append(row | {"eval_mean": np.mean(run.returns)} | stamp(name))
            curves.append(curve(run.history, run.steps))
            write_csv(RESULTS / "gorila_bundles.csv", rows)
        mine = rows[-num_seeds:]
        columns = ("steps_per_second", "gradients_per_second", "gradient_delay", "eval_mean")
        means = [f"{np.mean([row[column] for row in mine]):.1f}" for column in columns]
        print(f"| {name} | {number} |", " | ".join(means), "|", flush=True)
        label = {"": "dqn.py", "1": "1 bundle"}.get(number, f"{number} bundles")
        band(ax, [np.array(points).T for points in curves], label, color)
    fig.savefig(RESULTS / "gorila_bundles.png")


# Other environments


ELSEWHERE = {  # script: flags besides --env-id and --total-timesteps
    "reinforce": "",
    "dqn": "",
    "a2c": "",
    "a3c": "",
    "paac_gpu": "@settings/paac_gpu_CartPole-v1.txt",
}


def elsewhere(scripts, num_seeds=5):
    """Train with default flags for 500,000 steps, where only --env-id changes."""
    path = RESULTS / "elsewhere.csv"
    for script in scripts or ELSEWHERE:
        for env_id in ["CartPole-v1", "Acrobot-v1", "LunarLander-v3"] + ["MountainCar-v0"] * (script == "dqn"):
            flags = [*ELSEWHERE[script].split(), "--env-id", env_id, "--total-timesteps", "500000"]
            row = {"script": script, "command": command_line(script, flags)}
            for seed in range(1, num_seeds + 1):
                done = [(x["command"], x["seed"], x["code"]) for x in read_csv(path)]
                if (row["command"], str(seed), fingerprint(script, flags)) not in done:
                    result, _ = fresh(run_seed, script, flags, seed)
                    others = [x for x in read_csv(path) if (x["command"], x["seed"]) != (row["command"], str(seed))]
                    write_csv(path, [*others, row | result | {"date": date.today()} | setting()])
    returns = {}
    for x in read_csv(path):
        returns.setdefault((x["script"], x["env_id"]), []).append(float(x["eval_mean"]))
    for (script, env_id), y in returns.items():
        print(f"{script} on {env_id}: {np.mean(y):.1f} ± {np.std(y):.1f}, lowest {min(y):.1f}, {len(y)} seeds")


# Images


def frames():
    """Draw the four frames of an observation after eight pushes to the right, beside the rendered frame."""
    import dqn

    env = dqn.observe_rendering(gym.make("CartPole-v1", render_mode="rgb_array"))
    env.reset(seed=1)
    for _ in range(8):
        obs, *_ = env.step(1)
    fig, axs = axes("", "", nrows=1, ncols=5, figsize=(13, 3), width_ratios=[1.5, 1, 1, 1, 1])
    for i, picture in enumerate([env.render(), *obs]):
        axs[i].imshow(picture, cmap="gray", vmin=0, vmax=255)
        axs[i].set_title(f"frame {i} of 4, 84 x 84" if i else "rendered, 400 x 600", fontsize=12)
        axs[i].set_axis_off()
    fig.savefig(RESULTS / "dqn_pixels_frames.png")


def memory():
    """Fill a buffer with a million transitions -> the size of its arrays and the growth of the process."""
    import dqn

    def peak():  # kilobytes on Linux, bytes on macOS
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

    before, rng = peak(), np.random.default_rng(0)
    buffer = dqn.ReplayBuffer(1_000_000, 8, (4, 84, 84), np.uint8, rng)
    obs = rng.integers(1, 256, size=(8, 4, 84, 84), dtype=np.uint8)
    buffer.reset(obs)
    no, zero = np.zeros(8, bool), np.zeros(8, np.int64)
    for _ in range(len(buffer.frames) + 100):
        buffer.add(zero, zero, no, no, obs)
    assert buffer.frames.min() > 0 and buffer.sample(32)[0].shape == (32, 4, 84, 84)
    num_bytes = sum(x.nbytes for x in vars(buffer).values() if isinstance(x, np.ndarray))
    row = {"transitions": 1_000_000, "arrays_gb": round(num_bytes / 1e9, 3)}
    print(row := row | {"peak_growth_gb": round((peak() - before) / 1e9, 3)})
    write_csv(RESULTS / "dqn_atari_memory.csv", [row | stamp("dqn")])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    studies = [exact, cliff, variance, pgql, asynchrony, lag, bundles, elsewhere, frames, memory]
    studies = {study.__name__: study for study in studies}
    parser.add_argument("what", choices=studies)
    parser.add_argument("scripts", nargs="*", help="elsewhere: only these scripts")
    parser.add_argument("--plot-only", action="store_true", help="asynchrony: only the table and the figure")
    args = parser.parse_args()
    options = {"asynchrony": [args.plot_only], "elsewhere": [args.scripts]}
    studies[args.what](*options.get(args.what, []))
