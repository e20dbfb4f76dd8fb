"""Hold dqn.py against CleanRL's dqn.py at CleanRL's settings on CartPole-v1: steps per second and what is learned.

    python benchmark/dqn_peers.py --seeds 3    in turns, 500k steps each; some 3 minutes a seed

CleanRL's two files come from GitHub at COMMIT, checked by their hashes, and run in a virtual environment of their own
with the versions that it pins, benchmark/.venv-cleanrl (made once, some minutes of downloading). Both play one
environment with one thread on the CPU and log, dqn.py without W&B as CleanRL by default. What differs: the learning
rate, which falls to 0 where CleanRL's is constant; the pole's angle, which is stretched to ±1; Adam, which is fused;
the squared error, which is halved, as Adam does not see; 50 checkpoints, which CleanRL does not write. Rows go to
benchmark/results/dqn_cleanrl.csv, CleanRL's curves to dqn_cleanrl_curves.csv, seed by seed; the same command after an
interruption runs what is missing.
"""

import argparse
import hashlib
import os
import re
import subprocess
import sys
import tempfile
import urllib.request
import venv
from datetime import date
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))
from run import RESULTS, ROOT, curve, fingerprint, keep, read_csv, setting, timed_train, write_csv

COMMIT = "fe8d8a03c41a7ef5b523e2e354bd01c363e786bb"  # of github.com/vwxyzjn/cleanrl
FILES = {
    "cleanrl/dqn.py": "a0effc7d087264da1644c3c79eb99cc3ab02b214a758ebf6e9c1443b21ad57d3",
    "cleanrl_utils/buffers.py": "b43d54020783ac53f7d23fe7c0ed72aff20e1f377a633d134d66eb9bdbece4b8",
}
PINS = "torch==2.4.1 gymnasium==0.29.1 numpy==1.24.4 tyro==0.5.10 tensorboard==2.11.2 protobuf==3.20.3 psutil==5.9.5"
PINS = [*PINS.split(), "setuptools==67.7.2"]
OURS = (  # CleanRL's defaults in our flags; a gradient norm that is never reached
    "--num-envs 1 --hidden-sizes 120 84 --learning-rate 0.00025 --gamma 0.99 --buffer-size 10000 "
    "--batch-size 128 --learning-starts 10000 --train-interval 10 --gradient-steps 1 --target-update-interval 500 "
    "--epsilon-start 1 --epsilon-end 0.05 --max-grad-norm 1000000 --device cpu"
).split()


def cleanrl():
    """Make its virtual environment and fetch its files, unless they are there -> its interpreter, its folder."""
    folder = ROOT / "benchmark" / ".venv-cleanrl"
    python = folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    complete = folder / "complete.txt"  # written last: an installation that was interrupted starts again
    if not complete.exists() or complete.read_text().split() != PINS:
        if sys.version_info >= (3, 12):
            sys.exit("dqn_peers.py: numpy 1.24.4, which CleanRL pins, needs Python 3.11")
        print(f"making benchmark/{folder.name} with {', '.join(PINS)}: some minutes, once", flush=True)
        venv.create(folder, clear=True, with_pip=True)
        if subprocess.run([python, "-m", "pip", "install", "--quiet", *PINS]).returncode:
            sys.exit("dqn_peers.py: pip failed, see above; the same command tries again")
        complete.write_text(" ".join(PINS))
    for name, wanted in FILES.items():
        path = folder / "source" / name
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            url = f"https://raw.githubusercontent.com/vwxyzjn/cleanrl/{COMMIT}/{name}"
            try:
                path.write_bytes(urllib.request.urlopen(url, timeout=60).read())
            except OSError as error:
                sys.exit(f"dqn_peers.py: {url}: {error}; or put the file at {path}")
        if hashlib.sha256(path.read_bytes()).hexdigest() != wanted:
            sys.exit(f"dqn_peers.py: {path} is not the file of {COMMIT[:7]}: remove it, and the same command gets it")
    return python, folder / "source"


def theirs(steps, seed):
    """A run of CleanRL -> its own steps/s (its clock starts with its loop), its history."""
    python, source = cleanrl()
    with tempfile.TemporaryDirectory() as folder:
        flags = ["--total-timesteps", str(steps), "--seed", str(seed), "--no-cuda"]
        environment = os.environ | {"PYTHONPATH": str(source), "OMP_NUM_THREADS": "1"}
        command = [python, "-W", "ignore", source / "cleanrl/dqn.py", *flags]
        result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if result.returncode:
        sys.exit(f"dqn_peers.py: CleanRL failed: {result.stderr.strip().splitlines()[-1]}")
    episodes = re.findall(r"global_step=(\d+), episodic_return=\[?([\d.]+)", result.stdout)
    return float(re.findall(r"SPS: (\d+)", result.stdout)[-1]), [(int(step), float(value)) for step, value in episodes]


def ours(steps, seed):
    """A run of dqn.py -> steps/s, its history, its greedy evaluation."""
    import dqn

    flags = [*OURS, f"--epsilon-steps={steps // 2}", f"--total-timesteps={steps}", f"--seed={seed}"]
    run = timed_train(dqn, [*flags, f"--log-interval={steps // 50}"])
    transitions = run.steps - len(run.history)  # the reset row after an episode is no transition
    return transitions / run.seconds, run.history, float(np.mean(run.returns))


def last_100(history):
    """The mean return of the last 100 episodes."""
    return round(float(np.mean([value for _, value in history[-100:]])), 2)


def main():
    """Parse, run what is missing in turns, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="the seeds 1 to N (default: 3)")
    parser.add_argument("--steps", type=int, default=500_000, help="environment steps of a run (default: 500000)")
    args = parser.parse_args()
    if args.seeds < 1 or args.steps < 20_000:
        parser.error("takes --seeds from 1 and --steps from 20000")
    cleanrl()
    path, same = RESULTS / "dqn_cleanrl.csv", {"steps": args.steps, "code": fingerprint("dqn")} | setting()
    rows = read_csv(path)
    for row in rows:
        if any(row[name] != str(value) for name, value in same.items()):
            sys.exit(f"dqn_peers.py: {path.relative_to(ROOT)} was measured otherwise: remove it first")
    for seed in sorted(set(range(1, args.seeds + 1)) - {int(row["seed"]) for row in rows}):
        speed, history, evaluation = ours(args.steps, seed)
        their_speed, their_history = theirs(args.steps, seed)
        points = [
            {"peer": "CleanRL", "seed": seed, "global_step": step, "seconds": round(step / their_speed, 2)}
            | {"mean_return": mean_return}
            for step, mean_return in curve(their_history, args.steps)
        ]
        keep(RESULTS / "dqn_cleanrl_curves.csv", points)
        rows.append(
            {
                "seed": seed,
                "steps_per_second": round(speed),
                "cleanrl_steps_per_second": round(their_speed),
                "ratio": round(speed / their_speed, 3),
                "last_100_returns": last_100(history),
                "cleanrl_last_100_returns": last_100(their_history),
                "eval_mean": evaluation,
            }
            | same
            | {"date": date.today()}
        )
        write_csv(path, rows)
        print({name: rows[-1][name] for name in list(rows[-1])[:7]}, flush=True)
    for name in ("steps_per_second", "cleanrl_steps_per_second", "ratio"):
        print(f"{name}: median {np.median([float(row[name]) for row in rows]):,.2f}")
    for name in ("last_100_returns", "cleanrl_last_100_returns", "eval_mean"):
        values = [float(row[name]) for row in rows]
        print(f"{name}: {np.mean(values):.1f} ± {np.std(values):.1f}, lowest {min(values):.1f}, {len(values)} seeds")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("dqn_peers.py: stopped; the same command runs what is missing")
