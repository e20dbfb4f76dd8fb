"""Hold reinforce.py's speed against the same algorithm in minimalRL's form: one environment, one step at a time.

    python benchmark/reinforce_speed.py    steps/s on CartPole-v1 in turns; half a minute a round

The peer's loop follows REINFORCE.py of github.com/seungeunrho/minimalRL (MIT licence), which itself needs the old Gym:
a distribution object and a backward pass a step, one Adam step an episode. Here it is brought to Gymnasium, with the
time limit as an end, and has the network, γ and learning rate of reinforce.py, whose --psi reward_to_go is the same
algorithm. That runs with its own 64 environments, and with 1 for an equal number of episodes per update. All learn.
Writes benchmark/results/reinforce_speed.csv.
"""

import argparse
import time
from datetime import date

import gymnasium as gym
import numpy as np
import torch
from run import RESULTS, ROOT, fingerprint, setting, timed_train, write_csv
from torch.distributions import Categorical

import reinforce


def minimal(policy, args):
    """REINFORCE in minimalRL's form for args.total_timesteps -> [(steps, seconds, return)], one an episode."""
    env = gym.make(args.env_id)
    optimizer = torch.optim.Adam(policy.parameters(), lr=args.learning_rate)
    episodes, steps, start = [], 0, time.perf_counter()
    obs, _ = env.reset(seed=args.seed)
    while steps < args.total_timesteps:
        data, done = [], False
        while not done:
            probs = policy(torch.from_numpy(obs)).softmax(-1)
            action = Categorical(probs).sample()
            obs, reward, terminated, truncated, _ = env.step(action.item())
            data.append((reward, probs[action]))
            done = terminated or truncated
        g = 0.0
        optimizer.zero_grad()
        for reward, prob in data[::-1]:
            g = reward + args.gamma * g
            loss = -torch.log(prob) * g
            loss.backward()
        optimizer.step()
        steps += len(data)
        episodes.append((steps, time.perf_counter() - start, sum(reward for reward, _ in data)))
        obs, _ = env.reset()
    return episodes


def theirs(flags):
    """minimalRL's form with the network of reinforce.py -> steps, seconds."""
    args = reinforce.parse_args(flags)
    torch.manual_seed(args.seed)
    env = gym.make(args.env_id)
    return minimal(reinforce.ActorCritic(env.observation_space, env.action_space).actor, args)[-1][:2]


def ours(flags):
    """reinforce.py -> steps, seconds."""
    run = timed_train(reinforce, flags)
    return run.steps, run.seconds


def main():
    """In each round the three in turns; medians, and the ratio within the rounds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="how often it is measured (default: 5)")
    parser.add_argument("--steps", type=int, default=40_000, help="of each run (default: 40000)")
    args = parser.parse_args()
    if min(args.rounds, args.steps) < 1:
        parser.error("--rounds and --steps start at 1")
    torch.set_num_threads(1)
    path, rows = RESULTS / "reinforce_speed.csv", []
    for number in range(1, args.rounds + 1):
        flags = f"--psi reward_to_go --total-timesteps {args.steps} --seed {number} --eval-episodes 0".split()
        contests = {
            "minimalRL's form": lambda flags=flags: theirs(flags),
            "reinforce.py, 1 environment": lambda flags=flags: ours([*flags, "--num-envs", "1"]),
            "reinforce.py, 64 environments": lambda flags=flags: ours(flags),
        }
        for name, play in contests.items():
            steps, seconds = play()
            row = {"round": number, "what": name, "steps": steps, "seconds": round(seconds, 3)}
            row |= {"steps_per_second": round(steps / seconds), "code": fingerprint("reinforce"), "date": date.today()}
            rows.append(row | setting())
        write_csv(path, rows)
        shown = ", ".join(f"{row['steps_per_second']:,}" for row in rows[-3:])
        print(f"round {number}: {shown} steps/s", flush=True)
    speeds = np.array([row["steps_per_second"] for row in rows]).reshape(-1, 3)
    for name, speed, ratio in zip(contests, np.median(speeds, 0), np.median(speeds / speeds[:, :1], 0), strict=True):
        print(f"{name:30} median {speed:,.0f} steps/s, ratio {ratio:.2f}")
    print(f"wrote {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
