"""What the lectures say of A3C, GA3C and PAAC, measured: a3c.py, ga3c.py and paac_gpu.py with equal settings.

    python benchmark/asynchrony.py    a quarter of an hour; --plot-only draws what is stored

CartPole-v1 with 1, 2, 4, 8 and 16 environments: return, steps/s, updates/s, states through the network per second, and
the policy lag, the number of updates between the weights that chose an action and those that learn from it (PAAC has
none: nobody plays while it learns). Pong with 8 environments for a few minutes: the same without the return.
Equal are learning rate, t_max, discount, loss weights and number of steps, not the first weights and RMSProp's form.
The losses are sums over time, in a3c.py over one rollout, in ga3c.py over the pieces of a batch, in paac_gpu.py a mean
over environments.
Writes benchmark/results/asynchrony.csv, asynchrony_curves.csv and asynchrony.png.
"""

import argparse
import importlib
import os
from datetime import date
from unittest import mock

import numpy as np
from run import RESULTS, curve, fingerprint, read_csv, setting, timed_train, write_csv

NUMBERS = [1, 2, 4, 8, 16]
COMMON = "--learning-rate 1e-3 --num-steps 20 --vf-coef 0.1 --ent-coef 0.01 --max-grad-norm 40"
CARTPOLE = "--env-id CartPole-v1 --gamma 0.98 --total-timesteps 200000 --log-interval 10000"
PONG = "--env-id ALE/Pong-v5 --gamma 0.99 --repeat-action-probability 0 --total-timesteps 20000 --log-interval 20000"
PONG += " --eval-episodes 0"
FLAGS = {  # of each script: the name of its number of environments, and what makes its settings those of the others
    "a3c": "--rmsprop-eps 0.01 --num-workers",
    "ga3c": "--rmsprop-eps 0.1 --num-agents",  # beside the root, not in it
    "paac_gpu": "--rmsprop-eps 0.01 --gae-lambda 1 --loss-scale 20 --device cpu --num-envs",
}
LABELS = {"a3c": "A3C", "ga3c": "GA3C", "paac_gpu": "PAAC"}
COLORS = {"a3c": "#0072B2", "ga3c": "#D55E00", "paac_gpu": "#009E73"}  # Okabe and Ito


def measure(name, number, flags):
    """One run of a script -> its row of results and its learning curve."""
    script, logged = importlib.import_module(name), []
    flags = [*COMMON.split(), *flags.split(), *FLAGS[name].split(), str(number)]
    with mock.patch.object(script, "log_progress", lambda *args: logged.append(args)):
        run = timed_train(script, flags)
    speed, metrics = logged[-1][3], [row[-1] for row in logged]
    lags = [row.get("charts/policy_lag", 0) for row in metrics]
    row = {"script": name, "env_id": run.args.env_id, "num_envs": number, "seed": run.args.seed, "steps": run.steps}
    row |= {"steps_per_second": round(speed), "updates_per_second": round(metrics[-1]["charts/TPS"], 1)}
    row["predictions_per_second"] = round(metrics[-1].get("charts/PPS", speed))  # A3C: one state a step
    score = round(float(np.mean(run.returns)), 1) if run.returns else ""
    row |= {"policy_lag": round(float(np.mean(lags)), 3), "eval_mean": score}
    row |= {"code": fingerprint(name), "date": date.today(), "flags": " ".join(flags)} | setting()
    return row, curve(run.history, run.steps)


def draw(rows, points):
    """Four panels: return against steps, and steps/s, updates/s and policy lag against the number of environments."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    fig, axes = plt.subplots(2, 2, figsize=(11, 8), dpi=130, layout="constrained")
    columns = {"steps_per_second": "steps/s", "updates_per_second": "updates/s", "policy_lag": "policy lag, updates"}
    for name, label in LABELS.items():
        style = {"color": COLORS[name], "label": label, "linewidth": 2}
        most = str(NUMBERS[-1])
        mine = [row for row in points if (row["script"], row["num_envs"]) == (name, most)]
        x, y = ([float(row[column]) for row in mine] for column in ("global_step", "mean_return"))
        axes[0, 0].plot(x, y, **style)
        mine = [row for row in rows if (row["script"], row["env_id"]) == (name, "CartPole-v1")]
        for ax, column in zip(axes.flat[1:], columns, strict=True):
            ax.plot([int(row["num_envs"]) for row in mine], [float(row[column]) for row in mine], marker="o", **style)
    axes[0, 0].set(xlabel="environment steps", ylabel="return, mean of the last 100 episodes")
    axes[0, 0].set_title(f"CartPole-v1, {NUMBERS[-1]} environments")
    for ax, title in zip(axes.flat[1:], columns.values(), strict=True):
        ax.set(xlabel="environments (workers, agents)", title=title, xscale="log", xticks=NUMBERS)
        ax.set_xticks(NUMBERS, [str(number) for number in NUMBERS])
        ax.minorticks_off()
    for ax in axes.flat:
        ax.grid(alpha=0.3)
    axes[0, 0].legend(frameon=False, fontsize=12)
    fig.savefig(RESULTS / "asynchrony.png")


def table(rows):
    """The results in Markdown."""
    columns = "num_envs steps_per_second predictions_per_second updates_per_second policy_lag eval_mean".split()
    print("| game | script | environments | steps/s | predictions/s | updates/s | policy lag | greedy return |")
    print("|" + " --- |" * 8)
    for row in rows:
        print("|", " | ".join([row["env_id"], row["script"], *(row[column] for column in columns)]), "|")


def main():
    """Run, store after each run, print and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plot-only", action="store_true", help="only the table and the figure")
    parser.add_argument("--pong-envs", type=int, default=8, help="environments for Pong (default: 8)")
    args = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # the games' processes share the cores
    rows, points = [], []
    contests = [(name, number, CARTPOLE) for number in NUMBERS for name in FLAGS]
    contests += [(name, args.pong_envs, PONG) for name in FLAGS]
    for name, number, flags in [] if args.plot_only else contests:
        row, steps = measure(name, number, flags)
        rows.append(row)
        if row["env_id"] == "CartPole-v1":
            where = {"script": name, "num_envs": number}
            points += [where | {"global_step": step, "mean_return": value} for step, value in steps]
        print(
            f"{name} {row['env_id']} {number}: {row['steps_per_second']:,} steps/s, lag {row['policy_lag']}", flush=True
        )
        write_csv(RESULTS / "asynchrony.csv", rows)
        write_csv(RESULTS / "asynchrony_curves.csv", points)
    rows = read_csv(RESULTS / "asynchrony.csv")
    table(rows)
    draw(rows, read_csv(RESULTS / "asynchrony_curves.csv"))


if __name__ == "__main__":
    main()
