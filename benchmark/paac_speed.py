"""Hold paac_gpu.py's speed on Pong against Stable-Baselines3's A2C and against the emulators alone.

    python benchmark/paac_speed.py          steps/s on the CPU; some minutes, after making benchmark/.venv-sb3-atari
    python benchmark/paac_speed.py --gpu    steps/s on a GPU with 32 to 256 games, in float32 and with --bf16

All run in turns and have 5 steps per update, on the CPU 32 games. Stable-Baselines3 plays them as its user makes them,
by make_atari_env in one process, with its Nature network, to which --network nature is the equal. The emulators alone
take random actions. Each runs in a process of its own; a step is an action of a game, four of its frames. Writes
benchmark/results/paac_speed.csv or paac_speed_gpu.csv.
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
ON_CPU = ["--network nature", "--network nips", "--network nature --bf16", "--network nips --bf16"]
ON_GPU = ["", "--bf16"]


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


def emulators(num_envs, steps):
    """The games of paac_gpu.py with random actions and nothing else -> steps/s."""
    sys.path.insert(0, str(HERE.parent))
    import numpy as np

    import paac_gpu

    envs = paac_gpu.make_envs(paac_gpu.parse_args([]), num_envs)
    envs.reset(seed=1)
    actions = np.random.default_rng(1).integers(envs.single_action_space.n, size=(steps // num_envs, num_envs))
    start = time.perf_counter()
    for action in actions:
        envs.step(action)
    return actions.size / (time.perf_counter() - start)


def ours(flags, num_envs, steps):
    """paac_gpu.py as a user starts it -> steps/s."""
    flags += f" --num-envs {num_envs} --num-steps {NUM_STEPS} --total-timesteps {steps} --log-interval {steps} "
    flags += "--eval-episodes 0 --wandb-mode disabled"
    return number_in([sys.executable, HERE.parent / "paac_gpu.py", *flags.split()], r"([\d,]+) steps/s")


def number_in(command, pattern):
    """Run a command in an empty folder -> the number that the pattern's group finds last in what it prints."""
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    if process.returncode:
        sys.exit(f"paac_speed.py: {command[1]} failed: {(process.stderr.strip().splitlines() or ['?'])[-1]}")
    return float(re.findall(pattern, process.stdout)[-1].replace(",", ""))


def main():
    """In each round all in turns; medians, and the ratio to Stable-Baselines3 or the emulators within the rounds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="how often it is measured (default: 3)")
    parser.add_argument("--steps", type=int, help="of each run (default: 16000, on a GPU 200000)")
    parser.add_argument("--gpu", action="store_true", help="on a GPU")
    parser.add_argument("--only", choices=["theirs", "emulators"], help="that one alone, in this process")
    parser.add_argument("--num-envs", type=int, default=NUM_ENVS, help="for --only emulators (default: 32)")
    args = parser.parse_args()
    steps = args.steps or (200_000 if args.gpu else 16_000)
    if args.rounds < 1 or steps < 1_000:
        parser.error("takes --rounds from 1 and --steps from 1000")
    if args.only:
        speed = theirs(steps) if args.only == "theirs" else emulators(args.num_envs, steps)
        sys.exit(print(f"{speed:.1f} steps/s"))
    from run import RESULTS, ROOT, fingerprint, setting, write_csv

    def alone(interpreter, what, num_envs):
        command = [interpreter, __file__, "--only", what, "--num-envs", str(num_envs), "--steps", str(steps)]
        return number_in(command, r"([\d.]+) steps/s")

    contests = []  # (what, num_envs, how); the first with each num_envs is what the others are compared to
    if args.gpu:
        for n in (32, 64, 128, 256):
            contests.append(("emulators alone", n, lambda n=n: alone(sys.executable, "emulators", n)))
            for flags in ON_GPU:
                contests.append(
                    (f"paac_gpu.py {flags}".strip(), n, lambda f=flags, n=n: ours(f"--device cuda {f}", n, steps))
                )
    else:
        python = their_python()
        contests.append(("Stable-Baselines3", NUM_ENVS, lambda: alone(python, "theirs", NUM_ENVS)))
        for flags in ON_CPU:
            contests.append(
                (f"paac_gpu.py {flags}", NUM_ENVS, lambda f=flags: ours(f"--device cpu {f}", NUM_ENVS, steps))
            )
        contests.append(("emulators alone", NUM_ENVS, lambda: alone(sys.executable, "emulators", NUM_ENVS)))
    path, rows = RESULTS / f"paac_speed{'_gpu' * args.gpu}.csv", []
    for number in range(1, args.rounds + 1):
        for what, num_envs, play in contests:
            row = {"round": number, "what": what, "num_envs": num_envs, "num_steps": NUM_STEPS, "steps": steps}
            row |= {"steps_per_second": round(play()), "code": fingerprint("paac_gpu"), "date": date.today()}
            rows.append(row | setting())
            print(f"round {number}  {what:35} {num_envs:3} games {row['steps_per_second']:7,} steps/s", flush=True)
        write_csv(path, rows)
    speeds = {}
    for row in rows:
        speeds.setdefault((row["num_envs"], row["what"]), []).append(row["steps_per_second"])
    for (num_envs, what), values in speeds.items():
        base = next(other for (n, _), other in speeds.items() if n == num_envs)
        ratio = statistics.median(x / y for x, y in zip(values, base, strict=True))
        print(f"{what:35} {num_envs:3} games  median {statistics.median(values):7,.0f} steps/s, ratio {ratio:.2f}")
    print(f"wrote {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
