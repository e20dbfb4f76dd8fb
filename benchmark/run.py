"""Train a script of this repository over seeds; collect results, learning curves and a figure.

    python benchmark/run.py a2c --seeds 10 --threshold 475
    python benchmark/run.py dqn --seeds 5 --threshold -110 -- @settings/dqn_MountainCar-v0.txt

Everything after -- is passed to the script. Each seed trains and evaluates in its own process, one at a time, so that
the seconds can be trusted; --jobs runs several at once where only learning matters. The results go to
benchmark/results: NAME.csv (one row per seed), NAME_curves.csv (mean return of the last 100 episodes) and NAME.png. A
seed is written as soon as it has finished, and after an interruption the same command runs only the missing seeds.
--same repeats seed 1 after a change of the script: if its learning curve and evaluation equal the stored ones to the
last digit, the stored rows, with their seconds, count as results of the current script.
"""

import argparse
import ast
import contextlib
import csv
import hashlib
import importlib
import io
import multiprocessing
import os
import platform
import shlex
import signal
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from datetime import date
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmark" / "results"
PATHS = {path.stem: path for folder in (ROOT, ROOT / "related") for path in folder.glob("*.py")}
sys.path[:0] = [str(ROOT), str(ROOT / "related")]


def timed_train(script, flags):
    """Train and evaluate a script (a module) in a temporary folder -> agent, args, history, returns, steps, seconds.

    Training starts when the script's `start_run` returns (worker processes start after that, and count) and ends when
    its `evaluate` is called; both are wrapped here to record the time. If a script lacks them, all of `train` is timed.
    """
    began, ended, returns = [time.perf_counter()], [], []

    def start_run(*args, **kwargs):
        result = originals["start_run"](*args, **kwargs)
        began.append(time.perf_counter())
        return result

    def evaluate(*args, **kwargs):
        ended.append(time.perf_counter())
        result = originals["evaluate"](*args, **kwargs)
        returns[:] = returns or result  # a second call plays the game of --capture-video
        return result

    wrappers = {f.__name__: f for f in (start_run, evaluate) if hasattr(script, f.__name__)}
    originals = {name: getattr(script, name) for name in wrappers}
    with tempfile.TemporaryDirectory() as folder:
        args = script.parse_args([*flags, "--run-dir", folder, "--wandb-mode", "disabled"])
        vars(script).update(wrappers)
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                agent, history = script.train(args)
            seconds = (ended[0] if ended else time.perf_counter()) - began[-1]
        finally:
            vars(script).update(originals)
        torch = importlib.import_module("torch")
        steps = torch.load(next(Path(folder).glob("*/checkpoint.pt")), weights_only=True)["global_step"]
    return SimpleNamespace(agent=agent, args=args, history=history, returns=returns, steps=steps, seconds=seconds)


def fresh(function, *args):
    """Call a function in a new process."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *args).result()


def run_seed(script, flags, seed):
    """Run one seed in its own process -> its row and its learning curve, a list of rows."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # unwinds, so that temporary files are removed
    row = {"code": fingerprint(script, flags), "seed": seed}  # before training: someone may edit the script meanwhile
    run = timed_train(importlib.import_module(script), [*flags, "--seed", str(seed)])
    row |= {"env_id": run.args.env_id}
    row |= {"total_timesteps": run.args.total_timesteps, "steps": run.steps, "train_seconds": round(run.seconds, 3)}
    row |= {"steps_per_second": round(run.steps / run.seconds), "eval_mean": "", "eval_std": ""}
    if run.returns:
        row |= {f"eval_{f.__name__}": round(float(f(run.returns)), 3) for f in (np.mean, np.std)}
    points = [{"seed": seed, "global_step": x, "mean_return": y} for x, y in curve(run.history, run.steps)]
    return row | {"eval_episodes": len(run.returns)}, points


def curve(history, steps):
    """Return [(step, mean return of the last 100 episodes by then)] at 100 evenly spaced steps."""
    ordered = sorted(history, key=lambda episode: episode[0])  # not by return where several end in the same step
    ends, returns = np.array(ordered, dtype=float).reshape(-1, 2).T
    counts = {step: np.searchsorted(ends, step, side="right") for step in (steps * i // 100 for i in range(1, 101))}
    return [(step, round(float(returns[:n][-100:].mean()), 3)) for step, n in counts.items() if n]


def run_seeds(name, script, flags, seeds, jobs):
    """Run `seeds`, `jobs` at a time, and store each when it ends; a failure or an interruption ends the program."""
    head = {"name": name, "script": script, "command": command_line(script, flags)}
    tail = {"jobs": jobs, "date": date.today().isoformat()} | setting()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with ThreadPoolExecutor(jobs) as pool:
        futures = [pool.submit(fresh, run_seed, script, flags, seed) for seed in seeds]
        try:
            for future in as_completed(futures):
                row, points = future.result()
                if points:
                    keep(RESULTS / f"{name}_curves.csv", points)
                keep(RESULTS / f"{name}.csv", [head | row | tail])  # last: a seed listed here is complete
                result = f"evaluation {row['eval_mean']} ± {row['eval_std']}, {row['train_seconds']:.1f} s"
                print(f"seed {row['seed']}: {result}, {row['steps_per_second']:,} steps/s", flush=True)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():
                process.terminate()
            raise


def check_same(name, script, flags):
    """Carry out --same: repeat seed 1 and, if it equals what is stored, update command and fingerprint in all rows."""
    path = RESULTS / f"{name}.csv"
    rows, stored = read_csv(path), read_csv(RESULTS / f"{name}_curves.csv")
    row, points = run_seed(script, flags, 1)
    new = [{key: str(value) for key, value in point.items()} for point in points]
    before = next(x["eval_mean"] for x in rows if x["seed"] == "1")
    if new != [x for x in stored if x["seed"] == "1"] or str(row["eval_mean"]) != before:
        sys.exit(f"run.py: {name}: seed 1 differs from the stored one: {row['eval_mean']}, was {before}")
    write_csv(path, [x | {"command": command_line(script, flags), "code": row["code"]} for x in rows])
    print(f"{name}: seed 1 is the same to the last digit, evaluation {row['eval_mean']}, {len(points)} points")


def command_line(script, flags):
    """Return the command as a user would type it."""
    return shlex.join(["python", PATHS[script].relative_to(ROOT).as_posix(), *flags])


def fingerprint(script, flags=()):
    """Return a short hash of the settings files and of the code without comments, docstrings and help texts."""
    tree = ast.parse(PATHS[script].read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:]
        elif isinstance(node, ast.Call):
            node.keywords = [keyword for keyword in node.keywords if keyword.arg != "help"]
    digest = hashlib.sha256(ast.dump(tree).encode())
    for flag in flags:
        if flag.startswith("@"):
            digest.update((ROOT / flag[1:]).read_bytes())
    return digest.hexdigest()[:12]


def setting():
    """Return the columns that describe the measurement: processor and GPU, cores, versions."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        model = platform.processor() or platform.machine()
    torch = importlib.import_module("torch")
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    versions = {"python": platform.python_version()} | {name: version(name) for name in ("torch", "gymnasium", "numpy")}
    return versions | {"machine": f"{model}, {os.cpu_count()} cores{gpu}"}


def read_csv(path):
    """Read a CSV file -> a list of dicts of strings, empty if there is no file."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write_csv(path, rows):
    """Write a list of dicts as a CSV file, atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_suffix(".tmp").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    os.replace(path.with_suffix(".tmp"), path)


def keep(path, rows):
    """Put the rows of one seed into a CSV file, ordered by seed."""
    others = [row for row in read_csv(path) if row["seed"] != str(rows[0]["seed"])]
    write_csv(path, sorted(others + rows, key=lambda row: int(row["seed"])))


def report(rows, threshold):
    """Print the results over seeds."""
    scores = np.array([float(row["eval_mean"] or "nan") for row in rows])
    seconds, speed = (np.median([float(row[key]) for row in rows]) for key in ("train_seconds", "steps_per_second"))
    reached = f", {(scores >= threshold).sum()} at or above {threshold:g}" if threshold is not None else ""
    print(f"{rows[0]['command']}    {rows[0]['total_timesteps']} steps    {rows[0]['machine']}")
    print(
        f"evaluation {scores.mean():.1f} ± {scores.std():.1f} over {len(rows)} seeds, lowest {scores.min():.1f}", end=""
    )
    print(f"{reached}; training {seconds:.1f} s, {speed:,.0f} steps/s (medians)")
    if any(row["jobs"] != "1" for row in rows):
        print("Seconds and steps/s were measured with several runs at once (column jobs): the times are upper bounds.")


def axes(title, xlabel, **size):
    """Make a figure -> figure, axes."""
    import matplotlib  # here, because the process of a seed does not need it

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    fig, ax = plt.subplots(**{"figsize": (8, 4.5), "dpi": 160, "layout": "constrained"} | size)
    for panel in np.ravel(ax):
        panel.set_title(title, fontsize=14)
        panel.set_xlabel(xlabel, fontsize=13)
        panel.set_ylabel("return, mean of the last 100 episodes", fontsize=12)
        panel.xaxis.set_major_formatter(lambda x, _: f"{x / 1000:,g}k" if x >= 1000 else f"{x:g}")
        panel.tick_params(labelsize=12)
        panel.grid(alpha=0.3)
    return fig, ax


def band(ax, curves, label, color="#0072B2"):
    """Draw curves [(x, y)] as their mean on a common grid, with a band from the lowest to the highest."""
    grid = np.linspace(max(x[0] for x, _ in curves), max(x[-1] for x, _ in curves), 200)
    values = np.stack([np.interp(grid, x, y) for x, y in curves])  # a curve that has ended keeps its last value
    ax.fill_between(grid, values.min(0), values.max(0), color=color, alpha=0.25, linewidth=0)
    ax.plot(grid, values.mean(0), color=color, linewidth=2.5, label=label)
    ax.legend(fontsize=12, framealpha=0.8, edgecolor="none")


def stored_curves(name, column="global_step", **same):
    """Return one curve (x, returns) per seed from the rows of a file that match `same`."""
    seeds = {}
    for row in read_csv(RESULTS / f"{name}.csv"):
        if all(row[key] == value for key, value in same.items()):
            seeds.setdefault(row["seed"], []).append((float(row[column]), float(row["mean_return"])))
    return [np.array(points).T for points in seeds.values()]


def main():
    """Parse the flags, run the missing seeds, report and draw."""
    argv = sys.argv[1:]
    cut = argv.index("--") if "--" in argv else len(argv)
    own, flags = argv[:cut], argv[cut + 1 :]
    parser = argparse.ArgumentParser(
        usage="run.py SCRIPT [options] [-- FLAGS OF THE SCRIPT]",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("script", help="the script's name, such as a2c")
    add("--seeds", type=int, default=10, help="train with the seeds 1 to N (default: 10)")
    add("--name", help="name of the result files (default: SCRIPT_ENVIRONMENT)")
    add("--jobs", type=int, default=1, help="seeds at once, up to the cores; 1 to measure time (default)")
    add("--threshold", type=float, help="count the seeds whose evaluation reaches this mean return")
    add("--same", action="store_true", help="repeat seed 1; if it is unchanged, mark all rows as current")
    args = parser.parse_args(own)

    script = args.script.removesuffix(".py")
    if script not in PATHS:
        parser.error(f"argument script: there is no {script}.py; there are {', '.join(sorted(PATHS))}")
    if args.seeds < 1:
        parser.error(f"argument --seeds: {args.seeds} is not at least 1")
    if not 1 <= args.jobs <= os.cpu_count():
        parser.error(f"argument --jobs: {args.jobs} is not between 1 and the {os.cpu_count()} cores")
    if taken := {"--seed", "--run-dir", "--wandb-mode"} & {flag.split("=")[0] for flag in flags}:
        parser.error(f"{', '.join(sorted(taken))} after --: run.py sets these itself")
    wanted = importlib.import_module(script).parse_args(flags)  # a bad flag ends the program here, before any run
    name = args.name or f"{script}_{wanted.env_id.replace('/', '-').replace(':', '-')}"
    path, command = RESULTS / f"{name}.csv", command_line(script, flags)
    if Path(name).name != name:
        parser.error(f"argument --name: {name} is not a plain file name")

    rows = read_csv(path)
    missing = sorted(set(range(1, args.seeds + 1)) - {int(row["seed"]) for row in rows})
    if args.same:
        if "1" not in {row["seed"] for row in rows}:
            parser.error(f"argument --same: {path.relative_to(ROOT)} does not hold seed 1")
        return check_same(name, script, flags)
    if other := {row["command"] for row in rows} - {command}:
        parser.error(f"{path.relative_to(ROOT)} holds runs of {other.pop()}: remove it and its curves, or use --name")
    if {row["code"] for row in rows} - {fingerprint(script, flags)}:
        parser.error(f"{path.relative_to(ROOT)} holds runs of another version: remove it and its curves, or see --same")
    print(f"{command}    {wanted.total_timesteps:,} steps per seed, {len(missing)} of {args.seeds} seeds to run")
    run_seeds(name, script, flags, missing, args.jobs)
    report(read_csv(path), args.threshold)
    if curves := stored_curves(f"{name}_curves"):
        fig, ax = axes(f"{script}.py on {wanted.env_id}", "environment steps")
        band(ax, curves, f"mean of {len(curves)} seeds" if len(curves) > 1 else f"seed {read_csv(path)[0]['seed']}")
        if args.threshold is not None:
            ax.axhline(args.threshold, color="black", linestyle="--", linewidth=1.2)
        fig.savefig(path.with_suffix(".png"))


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("run.py: stopped; the same command runs what is missing")
