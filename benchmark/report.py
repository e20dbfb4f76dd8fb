"""Print and draw what is stored in benchmark/results.

    python benchmark/report.py tables     returns over seeds, and speeds beside peers, in Markdown
    python benchmark/report.py figures    learning curves beside those of peers: seconds.png, steps.png, a3c_masked.png,
                                          dqn_Breakout_CleanRL.png, control.png
    python benchmark/report.py gif VIDEO GIF    five seconds of a recorded episode, such as video/rl-video-episode-0.mp4

Returns: mean, standard deviation, lowest and interquartile mean (without the lowest and the highest quarter, rounded
down) of the seeds' evaluation means, with a 95% bootstrap interval from 10,000 resamples of the seeds (Agarwal
et al. 2021, arXiv:2108.13264). Code: whether the script has changed since. Speeds: steps/s, and the ratio to the peer's
in the same round (median, lowest and highest over rounds).
"""

import shlex
import sys

import numpy as np
from run import RESULTS, axes, band, fingerprint, read_csv, stored_curves

PANELS = {  # our results: (title, peers)
    "tabular_q_Taxi-v4": ("tabular_q.py, Taxi-v4", []),
    "reinforce_CartPole-v1": ("reinforce.py, CartPole-v1", ["minimalRL"]),
    "dqn_CartPole-v1": ("dqn.py, CartPole-v1", ["CleanRL", "Stable-Baselines3"]),
    "a2c_CartPole-v1": ("a2c.py, CartPole-v1", ["Stable-Baselines3"]),
    "a3c_CartPole-v1": ("a3c.py, CartPole-v1", []),
    "paac_gpu_CartPole-v1": ("paac_gpu.py, CartPole-v1", []),
}
COLORS = {"Stable-Baselines3": "#D55E00", "CleanRL": "#009E73", "minimalRL": "#CC79A7"}  # ours is blue: Okabe and Ito
CONTROL_COLORS = {
    "Stable-Baselines3 (PyBullet)": "#D55E00",
    "Stable-Baselines3 (MuJoCo)": "#009E73",
    "a2c.py": "#0072B2",
}


def interquartile_mean(scores):
    """Return the mean of the last axis without its lowest and highest quarter, rounded down."""
    cut = scores.shape[-1] // 4
    return np.sort(scores)[..., cut : scores.shape[-1] - cut].mean(-1)


def bootstrap_interval(scores, samples=10_000):
    """Return the middle 95% of the interquartile means of samples drawn with replacement -> (low, high)."""
    drawn = np.random.default_rng(0).choice(scores, (samples, len(scores)))
    return np.quantile(interquartile_mean(drawn), [0.025, 0.975])


def returns_table():
    """Return a row for each file of results that run.py has written."""
    rows = [["results", "seeds", "mean ± std", "lowest", "interquartile mean", "95% interval", "code"]]
    for path in sorted(RESULTS.glob("*.csv")):
        if runs := [row for row in read_csv(path) if "jobs" in row]:
            scores = np.array([float(row["eval_mean"] or "nan") for row in runs])
            mean, lowest, middle = f"{scores.mean():.1f}", f"{scores.min():.1f}", f"{interquartile_mean(scores):.1f}"
            low, high = bootstrap_interval(scores)
            many = [f"{mean} ± {scores.std():.1f}", lowest, middle, f"{low:.1f} to {high:.1f}"]
            _, _, *flags = shlex.split(runs[0]["command"])
            now = fingerprint(runs[0]["script"], flags)
            code = "current" if {row["code"] for row in runs} == {now} else "earlier"
            rows.append([path.stem, len(scores), *(many if len(scores) > 1 else [mean, lowest, "", ""]), code])
    return rows


def speeds_table():
    """Return a row for each contest of peers.py."""
    table, contests = [["steps/s", "beside", "ours", "theirs", "ratio", "lowest to highest round", "code"]], {}
    for row in read_csv(RESULTS / "speeds.csv"):
        contests.setdefault((row["contest"], row["peer"]), []).append(row)
    for names, rows in contests.items():
        ours, theirs = np.array([[float(row[name]) for name in ("ours", "theirs")] for row in rows]).T
        ratio = ours / theirs
        middle = f"{np.median(ours):,.0f}", f"{np.median(theirs):,.0f}", f"{np.median(ratio):.2f}"
        code = "current" if {row["code"] for row in rows} == {fingerprint(rows[0]["script"])} else "earlier"
        table.append([*names, *middle, f"{ratio.min():.2f} to {ratio.max():.2f}", code])
    return table


def tables():
    """Print both tables in Markdown."""
    for table in (returns_table(), speeds_table()):
        head, *rows = [f"| {' | '.join(map(str, row))} |" for row in table]
        print(head, "|" + " --- |" * len(table[0]), *rows, sep="\n", end="\n\n")


def our_curves(name, axis):
    """Return our curves over steps, or over seconds: steps times the run's seconds per step."""
    runs = read_csv(RESULTS / f"{name}.csv")
    scale = [float(row["train_seconds"]) / float(row["steps"]) if axis == "seconds" else 1 for row in runs]
    return [(x * factor, y) for factor, (x, y) in zip(scale, stored_curves(f"{name}_curves"), strict=True)]


def figures():
    """Draw all panels over seconds and over steps, A3C with and without a memory, DQN on Breakout, A2C on MuJoCo."""
    for axis, xlabel in (("seconds", "training time (s)"), ("global_step", "environment steps")):
        fig, panels = axes("", xlabel, nrows=2, ncols=3, figsize=(13, 7.5), dpi=130)
        for ax, (name, (title, peers)) in zip(panels.flat, PANELS.items(), strict=True):
            for peer in peers:
                curves = stored_curves("peers_curves", axis, peer=peer, script=name.rpartition("_")[0])
                band(ax, curves, f"{peer}, {len(curves)} seeds", COLORS[peer])
            curves = our_curves(name, axis)
            band(ax, curves, f"ours, {len(curves)} seeds")
            ax.set_title(title, fontsize=14)
            ax.set_ylabel("return" if ax in panels[:, 0] else "")
            ax.set_xlim(left=0)
            ax.legend(fontsize=11, framealpha=0.8, edgecolor="none", loc="lower right")
        fig.savefig(RESULTS / f"{'seconds' if axis == 'seconds' else 'steps'}.png")

    fig, ax = axes("a3c.py on CartPole-v1 with hidden velocities", "environment steps")
    for name, label, color in (("lstm", "--lstm", "#0072B2"), ("feedforward", "without memory", "#D55E00")):
        curves = stored_curves(f"a3c_masked_{name}_curves")
        band(ax, curves, f"{label}, mean of {len(curves)} seeds", color)
    fig.savefig(RESULTS / "a3c_masked.png")

    fig, ax = axes("DQN on Breakout, one seed each", "environment steps")
    band(ax, stored_curves("dqn_Breakout_curves"), "dqn.py")
    band(ax, stored_curves("dqn_Breakout_CleanRL_curves"), "CleanRL's dqn_atari.py", COLORS["CleanRL"])
    fig.savefig(RESULTS / "dqn_Breakout_CleanRL.png")

    env_ids = list(dict.fromkeys(row["env_id"] for row in read_csv(RESULTS / "control.csv")))
    fig, panels = axes("", "environment steps", nrows=1, ncols=len(env_ids), figsize=(16, 4), dpi=130)
    for ax, env_id in zip(panels, env_ids, strict=True):
        for program, color in CONTROL_COLORS.items():
            if curves := stored_curves("control_curves", program=program, env_id=env_id):
                band(ax, curves, program, color)
        ax.set_title(env_id, fontsize=14)
        ax.set_ylabel("return" if ax is panels[0] else "")
        ax.locator_params(axis="x", nbins=4)
        if ax is not panels[-1]:
            ax.get_legend().remove()
    fig.savefig(RESULTS / "control.png")


def gif(video, path):
    """Write the first five seconds of a video as a small GIF."""
    from moviepy import VideoFileClip

    with VideoFileClip(video) as clip:
        clip.subclipped(0, min(5, clip.duration)).resized(width=240).write_gif(path, fps=15, logger=None)


if __name__ == "__main__":
    commands = {"tables": (tables, 2), "figures": (figures, 2), "gif": (gif, 4)}
    if len(sys.argv) < 2 or sys.argv[1] not in commands or len(sys.argv) != commands[sys.argv[1]][1]:
        sys.exit(__doc__)
    commands[sys.argv[1]][0](*sys.argv[2:])
