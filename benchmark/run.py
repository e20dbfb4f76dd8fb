"""Train a script of this repository over seeds; collect results, learning curves and a table.

    python benchmark/run.py a2c --seeds 10 --threshold 475
    python benchmark/run.py a2c --seeds 10 --threshold -85 -- --env-id Acrobot-v1

What stands after -- goes to the script. Each seed trains and evaluates in a process of its own, one at a time, so that
the seconds can be trusted; --jobs runs several at once where only the learning matters. Into benchmark/results go
NAME.csv (one row a seed), NAME_curves.csv (the mean return of the last 100 episodes) and NAME.png. A seed is written as
soon as it has finished, and the same command after an interruption runs only the seeds that are missing.
"""

import argparse
import ast
import contextlib
import csv
import hashlib
import importlib
import importlib.util
import io
import json
import os
import platform
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from datetime import date, timedelta
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmark" / "results"
PATHS = {path.stem: path for folder in (ROOT, ROOT / "related") for path in folder.glob("*.py")}
sys.path[:0] = [str(ROOT), str(ROOT / "related")]
processes = []  # one a seed, to end those that still run when the program ends


def timed_train(script, flags):
    """Train and evaluate a script (a module) in a temporary folder -> agent, args, history, returns, steps, seconds.

    The script knows nothing of the clock. Training begins when its `start_run`, the last of the set-up, returns, and
    ends when its `evaluate` is called: both are wrapped here to note the time. Without them, all of `train` counts.
    """
    began, ended, returns = [time.perf_counter()], [], []

    def start_run(*args, **kwargs):
        result = originals["start_run"](*args, **kwargs)
        began.append(time.perf_counter())
        return result

    def evaluate(*args, **kwargs):
        ended.append(time.perf_counter())
        returns[:] = originals["evaluate"](*args, **kwargs)
        return list(returns)

    wrappers = {f.__name__: f for f in (start_run, evaluate) if hasattr(script, f.__name__)}
    originals = {name: getattr(script, name) for name in wrappers}
    with tempfile.TemporaryDirectory() as folder:
        args = script.parse_args([*flags, "--run-dir", folder, "--wandb-mode", "disabled"])
        vars(script).update(wrappers)
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                agent, history = script.train(args)
            seconds = [*ended, time.perf_counter()][0] - began[-1]
        finally:
            vars(script).update(originals)
        torch = importlib.import_module("torch")
        steps = torch.load(next(Path(folder).glob("*/checkpoint.pt")), weights_only=True)["global_step"]
    return SimpleNamespace(agent=agent, args=args, history=history, returns=returns, steps=steps, seconds=seconds)


def work(script, flags):
    """What a seed's own process does: train, then print the row and the curve as one line of JSON."""
    signal.signal(signal.SIGTERM, lambda signum, frame: sys.exit(128 + signum))  # unwinds, so that no files stay
    run = timed_train(importlib.import_module(script), flags)
    row = {
        "code": fingerprint(script),
        "seed": run.args.seed,
        "env_id": run.args.env_id,
        "total_timesteps": run.args.total_timesteps,
        "steps": run.steps,
        "train_seconds": round(run.seconds, 3),
        "steps_per_second": round(run.steps / run.seconds),
        "eval_mean": round(float(np.mean(run.returns)), 3) if run.returns else "",
        "eval_std": round(float(np.std(run.returns)), 3) if run.returns else "",
        "eval_episodes": len(run.returns),
    }
    print(json.dumps({"row": row, "curve": [(run.args.seed, *point) for point in curve(run.history, run.steps)]}))


def curve(history, steps):
    """History -> [(step, mean return of the last 100 episodes that ended by then)], at 100 steps evenly spread."""
    ends, returns = np.array(sorted(history), dtype=float).reshape(-1, 2).T
    points = []
    for step in (steps * i // 100 for i in range(1, 101)):
        last = returns[: np.searchsorted(ends, step, side="right")][-100:]
        if len(last):
            points.append((step, round(float(last.mean()), 3)))
    return points


def run_seed(script, flags, seed):
    """One seed in a fresh process -> (row, curve); RuntimeError with the last line of what went wrong."""
    command = [sys.executable, __file__, script, "--worker", "--", *flags, "--seed", str(seed)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        processes.append(process)
        output, error = process.communicate()
    if process.returncode:
        raise RuntimeError(f"seed {seed}: {(error.strip() or f'exit code {process.returncode}').splitlines()[-1]}")
    result = json.loads(output.splitlines()[-1])
    return result["row"], result["curve"]


def run_seeds(name, script, flags, seeds, jobs):
    """Run `seeds`, `jobs` at a time, and store each as it ends; one that fails or an interruption ends the program."""
    results, start = RESULTS / f"{name}.csv", time.perf_counter()
    head = {"name": name, "script": script, "command": command_line(script, flags)}
    tail = {"jobs": jobs, "date": date.today().isoformat()} | setting()
    signal.signal(signal.SIGTERM, lambda signum, frame: sys.exit(128 + signum))
    with ThreadPoolExecutor(jobs) as pool:
        futures = [pool.submit(run_seed, script, flags, seed) for seed in seeds]
        try:
            for finished, future in enumerate(as_completed(futures), start=1):
                row, points = future.result()
                if points:
                    names = "seed", "global_step", "mean_return"
                    keep(RESULTS / f"{name}_curves.csv", [dict(zip(names, point, strict=True)) for point in points])
                keep(results, [head | row | tail])  # last: a seed that stands here is complete
                togo = len(seeds) - finished
                left = timedelta(seconds=round((time.perf_counter() - start) / finished * togo))
                result = f"evaluation {row['eval_mean']} ± {row['eval_std']}, {row['train_seconds']:.1f} s"
                print(
                    f"seed {row['seed']}: {result}, {row['steps_per_second']:,} steps/s; {togo} to go, {left}",
                    flush=True,
                )
        except (RuntimeError, KeyboardInterrupt, SystemExit) as error:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in processes:
                process.terminate()
            reason = error if isinstance(error, RuntimeError) else "stopped; the same command runs what is missing"
            sys.exit(f"run.py: {reason}")


def command_line(script, flags):
    """The command as a user would type it."""
    return shlex.join(["python", PATHS[script].relative_to(ROOT).as_posix(), *flags])


def fingerprint(script):
    """A short hash of the script's code; its comments and its header do not count."""
    tree = ast.parse(PATHS[script].read_text(encoding="utf-8"))
    return hashlib.sha256(ast.dump(ast.Module(tree.body[1:], [])).encode()).hexdigest()[:12]


def setting():
    """Columns that say where and with what a row was measured: the processor (and GPU), its cores, the versions."""
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
    """A CSV file -> a list of dicts of strings, empty if there is no file."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write_csv(path, rows):
    """Write a list of dicts, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_suffix(".tmp").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    os.replace(path.with_suffix(".tmp"), path)


def keep(path, rows):
    """Put the rows of one seed into a CSV file, in the order of the seeds."""
    others = [row for row in read_csv(path) if row["seed"] != str(rows[0]["seed"])]
    write_csv(path, sorted(others + rows, key=lambda row: int(row["seed"])))


def report(rows, threshold):
    """Print the table, in Markdown."""
    scores = np.array([float(row["eval_mean"] or "nan") for row in rows])
    seconds, speed = (np.median([float(row[key]) for row in rows]) for key in ("train_seconds", "steps_per_second"))
    table = {
        "seeds": len(rows),
        "evaluation, mean ± std over seeds": f"{scores.mean():.1f} ± {scores.std():.1f}",
        "lowest": f"{scores.min():.1f}",
        f"at or above {threshold:g}"
        if threshold is not None
        else "": f"{(scores >= (threshold or 0)).sum()} of {len(rows)}",
        "training seconds, median": f"{seconds:.1f}",
        "steps/s, median": f"{speed:,.0f}",
    }
    table.pop("", None)
    print(f"\n{rows[0]['command']}    {rows[0]['total_timesteps']} steps    {rows[0]['machine']}\n")
    print(f"| {' | '.join(table)} |\n|{' --- |' * len(table)}\n| {' | '.join(map(str, table.values()))} |\n")
    if any(row["jobs"] != "1" for row in rows):
        print("The seconds and steps/s were measured with several runs at once (column jobs): do not quote them.")


def draw(path, rows, points, threshold):
    """The learning curve over seeds as PNG: their mean, and a band from the lowest to the highest."""
    import matplotlib  # here, as a seed's own process needs none of it

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    curves = []
    for row in rows:
        mine = [(float(p["global_step"]), float(p["mean_return"])) for p in points if p["seed"] == row["seed"]]
        if mine:
            curves.append(np.array(mine).T)
    if not curves:
        return print("no training episode ended: no learning curve to draw")
    grid = np.linspace(max(steps[0] for steps, _ in curves), min(steps[-1] for steps, _ in curves), 200)
    returns = np.stack([np.interp(grid, steps, returns) for steps, returns in curves])
    fig, ax = plt.subplots(figsize=(8, 4.5), dpi=160, layout="constrained")
    label = f"seed {rows[0]['seed']}"
    if len(curves) > 1:
        label = f"mean of {len(curves)} seeds"
        ax.fill_between(
            grid, returns.min(0), returns.max(0), color="#56B4E9", alpha=0.4, label="lowest to highest seed"
        )
    ax.plot(grid, returns.mean(0), color="#0072B2", linewidth=2.5, label=label)
    if threshold is not None:
        ax.axhline(threshold, color="black", linestyle="--", linewidth=1.2, label=f"threshold {threshold:g}")
    ax.set_title(f"{rows[0]['script']}.py on {rows[0]['env_id']}", fontsize=14)
    ax.set_xlabel("environment steps", fontsize=13)
    ax.set_ylabel("return, mean of the last 100 episodes", fontsize=13)
    ax.xaxis.set_major_formatter(lambda x, _: f"{x:,.0f}")
    ax.tick_params(labelsize=12)
    ax.grid(alpha=0.3)
    ax.legend(fontsize=12, frameon=False)
    fig.savefig(path)
    print(f"wrote {path.relative_to(ROOT)}")


def main():
    """Parse, run what is missing, report and draw."""
    argv = sys.argv[1:]
    cut = argv.index("--") if "--" in argv else len(argv)
    own, flags = argv[:cut], argv[cut + 1 :]
    parser = argparse.ArgumentParser(
        usage="run.py SCRIPT [options] [-- FLAGS OF THE SCRIPT]",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("script", help="the script's name, such as a2c")
    parser.add_argument("--seeds", type=int, default=10, help="train with the seeds 1 to N (default: 10)")
    parser.add_argument("--name", help="of the result files (default: SCRIPT_ENVIRONMENT)")
    parser.add_argument(
        "--jobs", type=int, default=1, help="seeds at once, up to the cores; 1 to measure time (default)"
    )
    parser.add_argument("--threshold", type=float, help="count the seeds whose evaluation reaches this mean return")
    parser.add_argument(
        "--plot-only", action="store_true", help="only the table and the figure, from the stored results"
    )
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args(own)

    script = args.script.removesuffix(".py")
    if script not in PATHS:
        parser.error(f"argument script: there is no {script}.py; there are {', '.join(sorted(PATHS))}")
    if args.worker:
        return work(script, flags)
    if args.seeds < 1:
        parser.error(f"argument --seeds: {args.seeds} is not 1 or more")
    if not 1 <= args.jobs <= os.cpu_count():
        parser.error(f"argument --jobs: {args.jobs} is not from 1 to the {os.cpu_count()} cores")
    if taken := {"--seed", "--run-dir", "--wandb-mode"} & {flag.split("=")[0] for flag in flags}:
        parser.error(f"{', '.join(sorted(taken))} after --: set by run.py itself")
    wanted = importlib.import_module(script).parse_args(flags)  # a bad flag ends here, before anything is run
    name = args.name or f"{script}_{wanted.env_id.replace('/', '-').replace(':', '-')}"
    if Path(name).name != name:
        parser.error(f"argument --name: {name} is not a plain file name")
    if importlib.util.find_spec("matplotlib") is None:
        parser.error("needs matplotlib: pip install -r benchmark/requirements.txt")
    results, curves = RESULTS / f"{name}.csv", RESULTS / f"{name}_curves.csv"

    rows, command = read_csv(results), command_line(script, flags)
    if args.plot_only and not rows:
        parser.error(f"argument --plot-only: there is no {results.relative_to(ROOT)}")
    if not args.plot_only:
        for row in rows:
            if (row["command"], row["code"]) != (command, fingerprint(script)):
                was = row["command"] if row["command"] != command else f"another version of {script}.py"
                parser.error(f"{results.relative_to(ROOT)} holds runs of {was}: remove it or choose another --name")
        missing = sorted(set(range(1, args.seeds + 1)) - {int(row["seed"]) for row in rows})
        print(f"{command}    {wanted.total_timesteps:,} steps a seed into {results.relative_to(ROOT)}")
        print(
            f"{len(missing)} of {args.seeds} seeds to run, {args.jobs} at a time; the time left shows after the first"
        )
        run_seeds(name, script, flags, missing, args.jobs)
        rows = read_csv(results)
    report(rows, args.threshold)
    draw(results.with_suffix(".png"), rows, read_csv(curves), args.threshold)


if __name__ == "__main__":
    main()
