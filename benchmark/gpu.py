"""Measure paac_gpu.py and dqn.py on one GPU; every row is saved as soon as it is known.

    python benchmark/gpu.py                  speed of the emulators, of paac_gpu.py and of its variants, paac_gpu.py on
                                             Pong to a return of 18, speed of dqn.py and, last, of paac_gpu.py compiled:
                                             an error in compiled code can break CUDA for the rest
    python benchmark/gpu.py --part breakout  paac_gpu.py on Breakout to a return of 250, dqn.py on Pong to 18
    python benchmark/gpu.py --part torchrun  a short run by torchrun, one process
    python benchmark/gpu.py --small          small numbers, with or without a GPU: a test of this program

The CSV files go to --out: gpu_emulators.csv; gpu_speed.csv, steps/s and the shares of time of emulators, acting and
updates; gpu_SCRIPT_GAME.csv, the learning curve of a game, which ends when its return is reached or time is up.
"""

import argparse
import contextlib
import importlib
import io
import os
import subprocess
import sys
import tempfile
import time
import traceback
from datetime import date
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from run import RESULTS, ROOT, command_line, fingerprint, setting, write_csv

PONG = ["--env-id", "ALE/Pong-v5"]


class Enough(Exception):
    """Ends a training run that has been measured."""


def train(script, flags):
    """Train in a temporary folder, to the end or until something raises Enough."""
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(Enough):
        own = ["--run-dir", folder, "--wandb-mode", "disabled", "--eval-episodes", "0"]
        script.train(script.parse_args([*flags, *own]))


def emulators_alone(script, flags, num_envs, seconds):
    """Play random actions for `seconds` -> {"steps_per_second": ...}."""
    envs = script.make_envs(script.parse_args(flags), num_envs)
    envs.reset(seed=1)
    num_actions, rng = envs.single_action_space.n, np.random.default_rng(1)
    steps, start = 0, time.perf_counter()
    while time.perf_counter() < start + seconds:
        envs.step(rng.integers(num_actions, size=num_envs))
        steps += num_envs
    elapsed = time.perf_counter() - start
    envs.close()
    return {"steps_per_second": round(steps / elapsed)}


def speed(script, flags, seconds, updates):
    """Train for `seconds` after the first `updates` -> steps/s and the shares of time, a dict.

    Acting is the time outside `envs.step` and `update`; in dqn.py it includes sampling from the replay buffer.
    """
    times, counts, window = {"emulators": 0.0, "updates": 0.0}, {"steps": 0, "updates": 0}, {}
    make_envs, learn = script.make_envs, script.update

    def timed_make_envs(args, num_envs, **options):
        envs = make_envs(args, num_envs, **options)
        step = envs.step

        def timed_step(actions):
            start = time.perf_counter()
            if "start" not in window and counts["updates"] >= updates:
                window["start"] = start
                counts["steps"] = 0
                times.update(emulators=0.0, updates=0.0)
            elif "start" in window and start >= window["start"] + seconds:
                window["end"] = start
                raise Enough
            result = step(actions)
            counts["steps"] += num_envs
            times["emulators"] += time.perf_counter() - start
            return result

        envs.step = timed_step
        return envs

    def timed_update(*args):
        start = time.perf_counter()
        result = learn(*args)
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # the optimizer's step may still be running
        counts["updates"] += 1
        times["updates"] += time.perf_counter() - start
        return result

    patch = mock.patch.multiple(script, make_envs=timed_make_envs, update=timed_update)
    with patch, contextlib.redirect_stdout(io.StringIO()):
        train(script, [*flags, "--total-timesteps", "1000000000"])
    elapsed = window["end"] - window["start"]
    shares = {name: round(times[name] / elapsed, 3) for name in ("emulators", "updates")}
    shares["acting"] = round(1 - sum(shares.values()), 3)
    return {"steps_per_second": round(counts["steps"] / elapsed)} | shares


@contextlib.contextmanager
def high_precision():
    """Let matrix products of float32 use TensorFloat-32."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    yield
    torch.set_float32_matmul_precision(before)


def variants(agent_class, small):
    """Yield (name, context manager) for patches that may make an agent faster on a GPU."""
    forward = agent_class.forward

    def bfloat16(self, obs):
        with torch.autocast(obs.device.type, torch.bfloat16):
            output, values = forward(self, obs)
        return output.float(), values.float()

    compiled = torch.compile(forward, **({"backend": "aot_eager"} if small else {"mode": "reduce-overhead"}))
    yield "matmul precision high", high_precision()
    yield "cudnn.benchmark", torch.backends.cudnn.flags(enabled=True, benchmark=True)
    yield "bfloat16", mock.patch.object(agent_class, "forward", bfloat16)
    yield "compiled", mock.patch.object(agent_class, "forward", compiled)


def play(name, flags, target, deadline, path):
    """Train until the mean return of the last 100 games reaches `target`, or until the deadline; save the curve."""
    if time.perf_counter() >= deadline:
        print(f"{path.stem}: no time is left", flush=True)
        return
    script = importlib.import_module(name)
    log_progress, rows, described, start = script.log_progress, [], origin(name, flags), time.perf_counter()

    def log_and_save(run, args, global_step, history, lengths, metrics):
        log_progress(run, args, global_step, history, lengths, metrics)
        mean_return = float(np.mean([episode_return for _, episode_return in history[-100:]] or [np.nan]))
        row = {"seconds": round(time.perf_counter() - start, 1), "global_step": global_step}
        rows.append(row | {"mean_return": round(mean_return, 2)} | described)
        write_csv(path, rows)
        if (len(history) >= 100 and mean_return >= target) or time.perf_counter() >= deadline:
            print(f"{name}.py: return {mean_return:.1f} of {target} after {row['seconds']} s", flush=True)
            raise Enough

    with reported(path.stem), mock.patch.object(script, "log_progress", log_and_save):
        train(script, flags)


def origin(name, flags):
    """Return the columns that describe where a row comes from."""
    row = {"command": command_line(name, flags), "code": fingerprint(name), "date": date.today()} | setting()
    return row | {"threads": torch.get_num_threads()}  # of PyTorch and of ALE


@contextlib.contextmanager
def reported(what):
    """Print an error, and continue with the next measurement."""
    try:
        yield
    except (Exception, SystemExit) as error:
        print(f"{what}: {error!r}", flush=True)
        traceback.print_exc()


class Table:
    """A CSV file that is written with each new row."""

    def __init__(self, path):
        self.path, self.rows = path, []

    def measure(self, name, flags, columns, function, *args):
        """Add a row: the columns and the dict that the function returns."""
        with reported(columns):
            row = columns | function(importlib.import_module(name), flags, *args)
            print("  ".join(f"{key} {value}" for key, value in row.items()), flush=True)
            self.rows.append(row | origin(name, flags))
            write_csv(self.path, self.rows)


def measure_speeds(args, deadline):
    """Measure emulators, paac_gpu.py, its variants, Pong by paac_gpu.py, dqn.py, and paac_gpu.py compiled."""
    numbers, window = ((2, 4), (0.3, 1)) if args.small else ((16, 64, 128, 256), (6, 10))  # seconds, updates
    table = Table(args.out / "gpu_emulators.csv")
    for num_envs in numbers:
        table.measure("paac_gpu", PONG, {"num_envs": num_envs}, emulators_alone, num_envs, window[0])

    table = Table(args.out / "gpu_speed.csv")
    for network in ("nips", "nature"):
        for num_envs in numbers:
            columns = {"script": "paac_gpu", "network": network, "num_envs": num_envs, "variant": ""}
            flags = [*PONG, "--network", network, "--num-envs", str(num_envs)]
            table.measure("paac_gpu", flags, columns, speed, *window)

    columns["num_envs"] = numbers[1]
    flags = [*PONG, "--network", "nature", "--num-envs", str(numbers[1])]
    *eager, compiled = variants(importlib.import_module("paac_gpu").ActorCritic, args.small)
    for variant, change in eager:
        with change:
            table.measure("paac_gpu", flags, columns | {"variant": variant}, speed, *window)

    play("paac_gpu", settings("paac_gpu", "Pong", args), 18, deadline - 90, args.out / "gpu_paac_gpu_Pong.csv")

    late = ["--learning-starts", "1000", "--buffer-size", "50000", "--epsilon-start", "0.02"]  # most actions from Q
    columns_of_dqn = {"script": "dqn", "network": "", "num_envs": "", "variant": ""}
    table.measure("dqn", [*settings("dqn", "Pong", args), *late], columns_of_dqn, speed, *window)

    variant, change = compiled
    with change:
        table.measure("paac_gpu", flags, columns | {"variant": variant}, speed, *window)


def measure_breakout(args, deadline):
    """Measure Breakout by paac_gpu.py, then Pong by dqn.py."""
    flags = settings("paac_gpu", "Breakout", args)
    play("paac_gpu", flags, 250, deadline, args.out / "gpu_paac_gpu_Breakout.csv")
    play("dqn", settings("dqn", "Pong", args), 18, deadline, args.out / "gpu_dqn_Pong.csv")


def measure_torchrun(args, deadline):
    """Run paac_gpu.py by torchrun with one process: NCCL on a GPU, Gloo on a CPU."""
    flags = [*PONG, "--num-envs", "4", "--total-timesteps", "1000" if args.small else "20000", "--eval-episodes", "0"]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1"]
        command += ["paac_gpu.py", *flags, "--run-dir", folder, "--wandb-mode", "disabled"]
        subprocess.run(command, check=True, timeout=90)


def settings(name, game, args):
    """Return the flags of a game: its settings file for GPUs or, if there is none, the other one."""
    file = Path("settings", f"{name}_{game}_gpu.txt")
    flags = [f"@{file if file.exists() else file.with_name(f'{name}_{game}.txt')}", "--log-interval", "50000"]
    if args.small:
        flags += ["--num-envs", "4", "--log-interval", "200", "--total-timesteps", "800"]
        flags += ["--learning-starts", "400", "--buffer-size", "5000"] if name == "dqn" else []
    return flags


def main():
    """Parse the flags and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = {"speed": measure_speeds, "breakout": measure_breakout, "torchrun": measure_torchrun}
    parser.add_argument("--part", default="speed", choices=parts, help="what to measure (default: speed)")
    parser.add_argument(
        "--out", type=Path, help="folder of the results (default: benchmark/results; --small: a new one)"
    )
    parser.add_argument("--minutes", type=float, default=8.5, help="games end after this time (default: 8.5)")
    parser.add_argument("--small", action="store_true", help="small numbers: a test of this program")
    args = parser.parse_args()
    if not (args.small or torch.cuda.is_available()):
        parser.error("there is no GPU; --small runs without one")
    args.out = (args.out or (Path(tempfile.mkdtemp()) if args.small else RESULTS)).resolve()
    print(f"results in {args.out}", flush=True)
    os.chdir(ROOT)  # the settings files are named from there
    parts[args.part](args, time.perf_counter() + 60 * args.minutes)


if __name__ == "__main__":
    main()
