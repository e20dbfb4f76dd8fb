"""Start the programs of other repositories on today's libraries, and write down how each ends.

    python benchmark/peers_today.py    a minute each, after some minutes of downloading

It makes a virtual environment with PINS, benchmark/.venv-today, and clones the repositories into its folder source (one
that lies there already is taken as it is). A program that still runs after LIMIT seconds counts as running. Rows go to
benchmark/results/peers_today.csv.
"""

import os
import re
import signal
import subprocess
import sys
import venv
from datetime import date

from run import RESULTS, ROOT, write_csv

PINS = "torch==2.13.0 gymnasium[classic-control,atari]==1.4.0 gym==0.26.2 numpy==2.4.6 opencv-python-headless tyro"
PINS = [*PINS.split(), "tensorboard", "setuptools<81"]
LIMIT = 60
SOURCES = {
    "CleanRL": ("vwxyzjn/cleanrl", "fe8d8a03c41a7ef5b523e2e354bd01c363e786bb"),
    "minimalRL": ("seungeunrho/minimalRL", "c8efed8481e3cd40e9739cfde220a55522555b57"),
    "pytorch-a3c": ("ikostrikov/pytorch-a3c", "48d95844755e2c3e2c7e48bbd1a7141f7212b63f"),
    "PAAC": ("Alfredvc/paac", "a8bb99360e6df2069bde18486b615904fc190a51"),
}
COMMANDS = [  # MountainCar-v0 meets its time limit after 200 steps, CartPole-v1 only once it is played well
    ("CleanRL", "cleanrl/dqn.py --no-cuda --env-id MountainCar-v0 --total-timesteps 11000"),
    ("minimalRL", "REINFORCE.py"),
    ("minimalRL", "dqn.py"),
    ("minimalRL", "actor_critic.py"),
    ("minimalRL", "a2c.py"),
    ("minimalRL", "a3c.py"),
    ("pytorch-a3c", "main.py"),
    ("PAAC", "train.py -g pong"),
]


def today():
    """Make the virtual environment and clone the repositories, unless they are there -> interpreter, folder."""
    folder = ROOT / "benchmark" / ".venv-today"
    python = folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    complete = folder / "complete.txt"  # written last: an installation that was interrupted starts again
    if not complete.exists() or complete.read_text() != " ".join(PINS):
        print(f"making benchmark/{folder.name}: some minutes, once", flush=True)
        venv.create(folder, with_pip=True)
        if subprocess.run([python, "-m", "pip", "install", "--quiet", *PINS]).returncode:
            sys.exit("peers_today.py: pip failed, see above; the same command tries again")
        complete.write_text(" ".join(PINS))
    for name, (repository, commit) in SOURCES.items():
        source = folder / "source" / name
        if not source.exists():
            git = ["git", "clone", "--quiet", f"https://github.com/{repository}", source]
            if (
                subprocess.run(git).returncode
                or subprocess.run(["git", "-C", source, "checkout", "--quiet", commit]).returncode
            ):
                sys.exit(f"peers_today.py: git failed, see above; or put {repository} at {commit[:7]} into {source}")
    return python, folder / "source"


def ending(command, folder):
    """Run a command in a folder for LIMIT seconds at most -> how it ended: its first error, or that it runs."""
    environment = os.environ | {"PYTHONPATH": str(folder), "SDL_VIDEODRIVER": "dummy", "PYTHONWARNINGS": "ignore"}
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=LIMIT)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # its workers, too
        output, _ = process.communicate()
        process.returncode = 0
    if error := re.search(r"^[\w.]+(Error|NotFound): .*", output, re.MULTILINE):
        return error[0]  # the first, in a worker too: others follow from it, or the program waits for ever
    return "runs" if process.returncode == 0 else f"exit code {process.returncode}"


def main():
    """One row a command."""
    python, sources = today()
    rows = []
    for name, command in COMMANDS:
        end = ending([python, *command.split()], sources / name)
        print(f"{name}: {command}: {end}", flush=True)
        rows.append({"repository": SOURCES[name][0], "commit": SOURCES[name][1], "command": command, "ends": end})
        rows[-1] |= {"date": date.today().isoformat(), "versions": " ".join(PINS)}
    write_csv(RESULTS / "peers_today.csv", rows)


if __name__ == "__main__":
    main()
