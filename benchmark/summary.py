"""Print two tables in Markdown from the stored results: returns over seeds, and speeds beside peers.

    python benchmark/summary.py

Returns: of each seed's mean over its evaluation episodes the mean, deviation, lowest and interquartile mean, which is
that of the middle half of the seeds, with a bootstrap interval (Agarwal et al. 2021, arXiv:2108.13264): 95% of the
interquartile means of 10,000 samples of the seeds, drawn with replacement. Code: whether the script has changed since.

Speeds: steps/s, and the ratio to the peer's in the same round: the median over rounds, the lowest and the highest.
"""

import numpy as np
from run import RESULTS, fingerprint, read_csv

RATIOS = [  # what, file of results, column of the names, name of ours, name of the peer
    ("REINFORCE, 64 environments", "reinforce_speed", "what", "reinforce.py, 64 environments", "minimalRL's form"),
    ("REINFORCE, 1 environment", "reinforce_speed", "what", "reinforce.py, 1 environment", "minimalRL's form"),
    ("A2C, 8 environments, equal settings", "a2c_speed", "library", "a2c.py", "Stable-Baselines3"),
    (
        "A3C, 1 worker, default flags",
        "a3c_peer",
        "what",
        "a3c.py, default flags",
        "minimalRL's form, updates of 5 steps",
    ),
    (
        "A3C, 1 worker, 5 steps an update",
        "a3c_peer",
        "what",
        "a3c.py, updates of 5 steps",
        "minimalRL's form, updates of 5 steps",
    ),
    ("PAAC, Pong, smaller network", "paac_speed", "what", "paac_gpu.py --network nips", "Stable-Baselines3"),
    (
        "PAAC, Pong, smaller network, --bf16",
        "paac_speed",
        "what",
        "paac_gpu.py --network nips --bf16",
        "Stable-Baselines3",
    ),
    ("PAAC, Pong, equal network", "paac_speed", "what", "paac_gpu.py --network nature", "Stable-Baselines3"),
]


def interquartile_mean(scores):
    """The mean of the middle half of the last axis."""
    cut = scores.shape[-1] // 4
    return np.sort(scores)[..., cut : scores.shape[-1] - cut].mean(-1)


def bootstrap_interval(scores, samples=10_000):
    """The middle 95% of the interquartile means of samples drawn with replacement -> (low, high)."""
    drawn = np.random.default_rng(0).choice(scores, (samples, len(scores)))
    return np.quantile(interquartile_mean(drawn), [0.025, 0.975])


def returns_table():
    """A row for each file of results that run.py has written."""
    rows = [["results", "seeds", "mean ± std", "lowest", "interquartile mean", "95% interval", "code"]]
    for path in sorted(RESULTS.glob("*.csv")):
        runs = [row for row in read_csv(path) if "jobs" in row]
        scores = np.array([float(row["eval_mean"]) for row in runs])
        if runs:
            code = "as it stands" if {row["code"] for row in runs} == {fingerprint(runs[0]["script"])} else "earlier"
            mean, lowest, (low, high) = f"{scores.mean():.1f}", f"{scores.min():.1f}", bootstrap_interval(scores)
            spread = [
                f"{mean} ± {scores.std():.1f}",
                lowest,
                f"{interquartile_mean(scores):.1f}",
                f"{low:.1f} to {high:.1f}",
            ]
            rows.append([path.stem, len(scores), *(spread if len(scores) > 1 else [mean, lowest, "", ""]), code])
    return rows


def ratios_table():
    """A row for each comparison of speeds."""
    table = [["steps/s beside a peer", "peer", "ours", "the peer's", "ratio", "lowest to highest round"]]
    for what, name, column, ours, peer in RATIOS:
        rounds = {}
        for row in read_csv(RESULTS / f"{name}.csv"):
            if (row.get("num_envs"), row.get("num_steps")) != ("64", "16"):  # a2c.py alone
                rounds.setdefault(row["round"], {})[row[column]] = float(row["steps_per_second"])
        table.append([what, peer.split("'")[0], *speeds([(x[ours], x[peer]) for x in rounds.values()])])
    columns = "steps_per_second", "cleanrl_steps_per_second"
    pairs = [[float(row[column]) for column in columns] for row in read_csv(RESULTS / "dqn_cleanrl.csv")]
    table.append(["DQN, CleanRL's settings", "CleanRL", *speeds(pairs)])
    return table


def speeds(pairs):
    """[(ours, the peer's) of a round] -> both medians and the ratio's median and range, as text."""
    ours, peers = np.array(pairs).T
    ratio = ours / peers
    middle = f"{np.median(ours):,.0f}", f"{np.median(peers):,.0f}", f"{np.median(ratio):.1f}"
    return *middle, f"{ratio.min():.1f} to {ratio.max():.1f}"


for table in (returns_table(), ratios_table()):
    head, *rows = [f"| {' | '.join(map(str, row))} |" for row in table]
    print(head, "|" + " --- |" * len(table[0]), *rows, sep="\n", end="\n\n")
