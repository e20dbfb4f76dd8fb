"""Hold the speed of every script that has a peer against it, all in one sitting, and print the table of ratios.

    python benchmark/ratios.py    a quarter of an hour, after making the peers' virtual environments

Each of these measures in turns and writes its results anew; nothing else should run on the machine meanwhile.
"""

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
PARTS = ["reinforce_speed.py", "peers.py speed", "a3c_speed.py peer", "dqn_peers.py --seeds 2", "paac_speed.py"]

for name in ("a2c_speed.csv", "dqn_cleanrl.csv"):  # to which peers.py and dqn_peers.py would only add what is missing
    (HERE / "results" / name).unlink(missing_ok=True)
for part in [*PARTS, "summary.py"]:
    print(f"benchmark/{part}", flush=True)
    script, *flags = part.split()
    if subprocess.run([sys.executable, HERE / script, *flags]).returncode:
        sys.exit(f"ratios.py: {part} failed, see above")
