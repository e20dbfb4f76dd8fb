"""Hold paac_gpu.py's speed on Pong against Stable-Baselines3's A2C and against the emulators alone.

    python benchmark/paac_speed.py    steps/s on the CPU, in turns; some minutes, after making benchmark/.venv-sb3-atari

All play 32 games, A2C and PAAC with 5 steps per update. Stable-Baselines3 plays them as its user makes them, by
make_atari_env in one process, with its Nature network, to which --network nature is the equal. The emulators alone take
random actions. Each runs in a process of its own; a step is an action of a game, four of its frames. Writes
benchmark/results/paac_speed.csv.
"""

import argparse
import re
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from datetime import date
from pathlib import Path

HERE = Path(__file__).resolve().parent
PINS = "stable-baselines3==2.9.2 opencv-python-headless==4.13.0.92 ale-py==0.12.1 torch==2.13.0 gymnasium==1.4.0"
PINS += " numpy==2.4.6"
NUM_ENVS, NUM_STEPS = 32, 5


def their_python():
    """Make the virtual environment of Stable-Baselines3, unless it is there -> its interpreter."""
    folder = HERE / ".venv-sb3-atari"
    python = folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    complete = folder / "complete.txt"  # written last: an installation that was interrupted starts again
    if not complete.exists() or complete.read_text() != PINS:
        print(f"making benchmark/{folder.name} with {PINS}: some minutes, once", flush=True)
        venv.create(folder, clear=True, with_pip=True)
        if subprocess.run([python, "-m", "pip", "install", "--quiet", *PINS.split()]).returncode:
            sys.exit("paac_speed.py: pip failed, see above; the same command tries again")
        complete.write_text(PINS)
    return python


def theirs(steps):
    """Stable-Baselines3's A2C -> steps/s."""
    import ale_py
    import gymnasium as gym
    from stable_baselines3 import A2C
    from stable_baselines3.common.env_util import make_atari_env
    from stable_baselines3.common.vec_env import VecFrameStack

    gym.register_envs(ale_py)
    envs = VecFrameStack(make_atari_env("PongNoFrameskip-v4", n_envs=NUM_ENVS, seed=1), n_stack=4)
    model = A2C("CnnPolicy", envs, n_steps=NUM_STEPS, device="cpu", seed=1)
    model.learn(4 * NUM_ENVS * NUM_STEPS)  # to warm up
    start = time.perf_counter()
    model.learn(steps)
    return model.num_timesteps / (time.perf_counter() - start)


def emulators(steps):
    """The games of paac_gpu.py with random actions and nothing else -> steps/s."""
    sys.path.insert(0, str(HERE.parent))
    import numpy as np

    import paac_gpu

    envs = paac_gpu.make_envs(paac_gpu.parse_args(["--num-envs", str(NUM_ENVS)]))
    envs.reset(seed=1)
    actions = np.random.default_rng(1).integers(envs.single_action_space.n, size=(steps // NUM_ENVS, NUM_ENVS))
    start = time.perf_counter()
    for action in actions:
        envs.step(action)
    return actions.size / (time.perf_counter() - start)


def ours(network, steps):
    """paac_gpu.py as a user starts it -> steps/s."""
    flags = f"--device cpu --network {network} --num-envs {NUM_ENVS} --num-steps {NUM_STEPS} --total-timesteps {steps} "
    flags += f"--log-interval {steps} --eval-episodes 0 --checkpoint-interval 0 --wandb-mode disabled"
    return number_in([sys.executable, HERE.parent / "paac_gpu.py", *flags.split()], r"([\d,]+) steps/s")


def number_in(command, pattern):
    """Run a command in an empty folder -> the number that the pattern's group finds last in what it prints."""
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    if process.returncode:
        sys.exit(f"paac_speed.py: {command[1]} failed: {(process.stderr.strip().splitlines() or ['?'])[-1]}")
    return float(re.findall(pattern, process.stdout)[-1].replace(",", ""))


def main():
    """In each round all in turns; medians, and the ratio to Stable-Baselines3 within the rounds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="how often it is measured (default: 3)")
    parser.add_argument("--steps", type=int, default=16_000, help="of each run (default: 16000)")
    parser.add_argument("--only", choices=["theirs", "emulators"], help="that one alone, in this process")
    args = parser.parse_args()
    if args.rounds < 1 or args.steps < 1_000:
        parser.error("takes --rounds from 1 and --steps from 1000")
    if args.only:
        speed = {"theirs": theirs, "emulators": emulators}[args.only](args.steps)
        sys.exit(print(f"{speed:.1f} steps/s"))
    from run import RESULTS, ROOT, fingerprint, setting, write_csv

    python = their_python()

    def alone(interpreter, what):
        return number_in([interpreter, __file__, "--only", what, "--steps", str(args.steps)], r"([\d.]+) steps/s")

    contests = {
        "Stable-Baselines3": lambda: alone(python, "theirs"),
        "paac_gpu.py, nature": lambda: ours("nature", args.steps),
        "paac_gpu.py, nips": lambda: ours("nips", args.steps),
        "emulators alone": lambda: alone(sys.executable, "emulators"),
    }
    path, rows = RESULTS / "paac_speed.csv", []
    for number in range(1, args.rounds + 1):
        for name, play in contests.items():
            row = {"round": number, "what": name, "num_envs": NUM_ENVS, "num_steps": NUM_STEPS, "steps": args.steps}
            row |= {"steps_per_second": round(play()), "code": fingerprint("paac_gpu"), "date": date.today()}
            rows.append(row | setting())
            print(f"round {number}  {name:20} {row['steps_per_second']:6,} steps/s", flush=True)
        write_csv(path, rows)
    for i, name in enumerate(contests):
        speeds = [row["steps_per_second"] for row in rows[i :: len(contests)]]
        ratios = [speed / row["steps_per_second"] for speed, row in zip(speeds, rows[:: len(contests)], strict=True)]
        print(f"{name:20} median {statistics.median(speeds):,.0f} steps/s, ratio {statistics.median(ratios):.2f}")
    print(f"wrote {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
