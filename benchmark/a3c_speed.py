"""a3c.py's speed: more workers, the environments alone, and the same algorithm in minimalRL's form.

    python benchmark/a3c_speed.py workers    steps/s with 1, 2, ... workers on CartPole and Pong; a minute a round
    python benchmark/a3c_speed.py peer       steps/s of one worker beside minimalRL's; half a minute a round

The steps/s of training are those that a3c.py itself logs at its end: they count from when the first worker is ready, so
that starting the processes is not in them. The environments alone play random actions, in as many processes.
The peer's loop follows a3c.py of github.com/seungeunrho/minimalRL (MIT licence), which needs the old Gym: it makes a
distribution a step, an update each 5 steps, one hidden layer of 256. Here it is brought to Gymnasium, and clears
its local gradients, which it would otherwise add up since torch 2.0.
Writes benchmark/results/a3c_workers.csv and a3c_peer.csv.
"""

import argparse
import multiprocessing
import time
from datetime import date
from unittest import mock

import gymnasium as gym
import numpy as np
import torch
from run import RESULTS, ROOT, fingerprint, setting, timed_train, write_csv
from torch import nn
from torch.distributions import Categorical
from torch.nn import functional as F

import a3c

STEPS = {"CartPole-v1": 60_000, "ALE/Pong-v5": 6_000}  # of each worker
SPAWN = multiprocessing.get_context("spawn")


def training(env_id, num_workers):
    """Steps/s of a3c.py with its default flags."""
    steps = STEPS[env_id] * num_workers
    flags = f"--env-id {env_id} --num-workers {num_workers} --total-timesteps {steps} --log-interval {steps}"
    with mock.patch.object(a3c, "log_progress") as log:
        timed_train(a3c, [*flags.split(), "--eval-episodes", "0"])
    (_, _, _, speed, *_), _ = log.call_args
    return speed


def play(env_id, barrier):
    """In a process: steps/s with random actions, all processes at once."""
    torch.set_num_threads(1)
    args = a3c.parse_args(["--env-id", env_id])
    env, steps = a3c.make_env(args), STEPS[env_id]
    env.reset(seed=1)
    actions = np.random.default_rng(1).integers(env.action_space.n, size=steps)
    barrier.wait()
    start = time.perf_counter()
    for action in actions:
        _, _, terminated, truncated, _ = env.step(action)
        if terminated or truncated:
            env.reset()
    return steps / (time.perf_counter() - start)


def environments(env_id, num_workers):
    """Steps/s of the environments alone, summed over as many processes as workers."""
    with SPAWN.Manager() as manager, SPAWN.Pool(num_workers) as pool:
        return sum(pool.starmap(play, [(env_id, manager.Barrier(num_workers))] * num_workers, chunksize=1))


def workers(args):
    """Training and environments alone, for each number of workers in turns."""
    rows, numbers = [], sorted(args.workers)
    for number in range(1, args.rounds + 1):
        for env_id in STEPS:
            speeds = {}
            for num_workers in numbers:
                ours, alone = training(env_id, num_workers), environments(env_id, num_workers)
                speeds[num_workers] = ours
                row = {"round": number, "env_id": env_id, "num_workers": num_workers, "steps_per_second": round(ours)}
                row |= {"times_one_worker": round(ours / speeds[numbers[0]], 2), "environments_alone": round(alone)}
                rows.append(row | {"code": fingerprint("a3c"), "date": date.today()} | setting())
            shown = ", ".join(f"{n}: {speed:,.0f}" for n, speed in speeds.items())
            print(f"round {number}  {env_id}  steps/s with workers {shown}", flush=True)
        write_csv(RESULTS / "a3c_workers.csv", rows)
    for env_id in STEPS:
        for num_workers in numbers:
            mine = [row for row in rows if (row["env_id"], row["num_workers"]) == (env_id, num_workers)]
            columns = "steps_per_second", "times_one_worker", "environments_alone"
            speed, times, alone = (np.median([row[name] for row in mine]) for name in columns)
            print(f"{env_id:12} {num_workers} workers: {speed:,.0f} steps/s, x {times:.2f}, environments {alone:,.0f}")


class TheirNetwork(nn.Module):
    """minimalRL's actor-critic."""

    def __init__(self):
        super().__init__()
        self.fc1, self.fc_pi, self.fc_v = nn.Linear(4, 256), nn.Linear(256, 2), nn.Linear(256, 1)

    def pi(self, x, softmax_dim=0):
        return F.softmax(self.fc_pi(F.relu(self.fc1(x))), dim=softmax_dim)

    def v(self, x):
        return self.fc_v(F.relu(self.fc1(x)))


def theirs(steps, seed, gamma=0.98):
    """One worker in minimalRL's form -> steps/s."""
    torch.manual_seed(seed)
    shared_agent, agent = TheirNetwork().share_memory(), TheirNetwork()
    agent.load_state_dict(shared_agent.state_dict())
    optimizer = torch.optim.Adam(shared_agent.parameters(), lr=0.0002)
    env, played = gym.make("CartPole-v1"), 0
    env.reset(seed=seed)
    start = time.perf_counter()
    while played < steps:
        obs, done = env.reset()[0], False
        while not done:
            observations, actions, rewards = [], [], []
            for _ in range(5):
                prob = agent.pi(torch.from_numpy(obs).float())
                action = Categorical(prob).sample().item()
                next_obs, reward, terminated, truncated, _ = env.step(action)
                done = terminated or truncated
                observations.append(obs)
                actions.append([action])
                rewards.append(reward / 100.0)
                obs = next_obs
                if done:
                    break
            played += len(rewards)
            total = 0.0 if terminated else agent.v(torch.tensor(obs, dtype=torch.float)).item()
            targets = []
            for reward in rewards[::-1]:
                total = gamma * total + reward
                targets.append([total])
            targets.reverse()
            batch, target = torch.tensor(np.array(observations)), torch.tensor(targets)
            advantage = target - agent.v(batch)
            chosen = agent.pi(batch, softmax_dim=1).gather(1, torch.tensor(actions))
            loss = -torch.log(chosen) * advantage.detach() + F.smooth_l1_loss(agent.v(batch), target.detach())
            optimizer.zero_grad()
            agent.zero_grad()
            loss.mean().backward()
            for shared_p, p in zip(shared_agent.parameters(), agent.parameters(), strict=True):
                shared_p._grad = p.grad
            optimizer.step()
            agent.load_state_dict(shared_agent.state_dict())
    return played / (time.perf_counter() - start)


def ours(steps, seed, *flags):
    """One worker of a3c.py, in this process -> steps/s."""
    args = a3c.parse_args([*flags, "--num-workers", "1", "--total-timesteps", str(steps), "--seed", str(seed)])
    torch.manual_seed(seed)
    env = a3c.make_env(args)
    agent = a3c.ActorCritic(env.observation_space, env.action_space, args.lstm)
    optimizer = a3c.SharedRMSprop(agent, args.rmsprop_decay, args.rmsprop_eps)
    start = time.perf_counter()
    a3c.worker(lambda message: None, 0, args, optimizer, SPAWN.Value("q", 0), 0)
    return steps / (time.perf_counter() - start)


def peer(args):
    """In each round the three in turns; medians, and the ratio within the rounds."""
    contests = {
        "minimalRL's form, updates of 5 steps": theirs,
        "a3c.py, updates of 5 steps": lambda steps, seed: ours(steps, seed, "--num-steps", "5"),
        "a3c.py, default flags": ours,
    }
    rows = []
    for number in range(1, args.rounds + 1):
        for name, contestant in contests.items():
            row = {"round": number, "what": name, "steps_per_second": round(contestant(30_000, number))}
            rows.append(row | {"code": fingerprint("a3c"), "date": date.today()} | setting())
        write_csv(RESULTS / "a3c_peer.csv", rows)
    speeds = np.array([row["steps_per_second"] for row in rows]).reshape(-1, len(contests))
    for name, speed, ratio in zip(contests, np.median(speeds, 0), np.median(speeds / speeds[:, :1], 0), strict=True):
        print(f"{name:38} median {speed:,.0f} steps/s, ratio {ratio:.2f}")


def main():
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["workers", "peer"])
    parser.add_argument("--rounds", type=int, default=5, help="how often it is measured (default: 5)")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2], help="numbers of workers (default: 1 2)")
    args = parser.parse_args()
    if min(args.rounds, *args.workers) < 1:
        parser.error("--rounds and --workers start at 1")
    torch.set_num_threads(1)
    {"workers": workers, "peer": peer}[args.what](args)
    print(f"wrote {(RESULTS / f'a3c_{args.what}.csv').relative_to(ROOT)}")


if __name__ == "__main__":
    main()
