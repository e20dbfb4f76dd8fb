"""Compare the scripts with other people's programs, and with the environments alone.

    python benchmark/peers.py speed        steps/s, alternately, in 5 rounds of about 4 minutes; --only a2c for one
    python benchmark/peers.py curves       returns on CartPole-v1, each with its authors' settings; 5 minutes per seed
    python benchmark/peers.py control      a2c.py and Stable-Baselines3's A2C on MuJoCo; 3 hours per seed
    python benchmark/peers.py breakout     CleanRL's DQN on Breakout, 1M steps; 2 hours and 9 GB of memory per seed
    python benchmark/peers.py agreement    a2c.py and Stable-Baselines3: equal data and weights -> equal updates
    python benchmark/peers.py today        how the programs of other repositories end on today's libraries; 5 minutes

Missing virtual environments are created at benchmark/.venv-NAME from PINS (once; a few minutes of downloading), and
SOURCES are cloned into benchmark/.venv-sources and checked out at these commits. All parts except `today` run in the
Stable-Baselines3 environment. Each program runs in its own process, with one thread if its network is tiny. Results are
in benchmark/results: speeds.csv, peers_curves.csv, control.csv, control_curves.csv, dqn_Breakout_CleanRL_curves.csv and
peers_today.csv.
"""

import argparse
import functools
import importlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import venv
from datetime import date
from importlib.metadata import version
from pathlib import Path
from unittest import mock

import numpy as np
from run import RESULTS, ROOT, curve, fingerprint, fresh, read_csv, setting, timed_train, write_csv

PINS = {
    "sb3": "stable-baselines3==2.9.2 torch==2.13.0 gymnasium[mujoco]==1.4.0 numpy==2.4.6 wandb==0.31.0 ale-py==0.12.1 "
    "mujoco==4.0.0 opencv-python-headless==4.13.0.92",
    "cleanrl": "torch==2.4.1 gymnasium==0.29.1 numpy==1.24.4 tyro==0.5.10 tensorboard==2.11.2 protobuf==3.20.3 "
    "psutil==5.9.5 setuptools==67.7.2",  # its own
    "today": "torch==2.13.0 gymnasium[classic-control,atari]==1.4.0 gym==0.26.2 numpy==2.4.6 opencv-python-headless "
    "tyro tensorboard setuptools<81",
}
PINS["cleanrl-atari"] = f"{PINS['cleanrl']} ale-py==0.8.1 shimmy==1.1.0 opencv-python-headless==4.7.0.72"
SOURCES = {
    "vwxyzjn/cleanrl": "fe8d8a03c41a7ef5b523e2e354bd01c363e786bb",
    "seungeunrho/minimalRL": "c8efed8481e3cd40e9739cfde220a55522555b57",
    "ikostrikov/pytorch-a3c": "48d95844755e2c3e2c7e48bbd1a7141f7212b63f",
    "Alfredvc/paac": "a8bb99360e6df2069bde18486b615904fc190a51",
}


def interpreter(name):
    """Return the Python of benchmark/.venv-NAME, creating it if it is missing."""
    folder, pins = ROOT / "benchmark" / f".venv-{name}", PINS[name]
    python = folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    complete = folder / "complete.txt"  # written last: an installation that was interrupted starts again
    if not complete.exists() or complete.read_text() != pins:
        if name.startswith("cleanrl") and sys.version_info >= (3, 12):
            sys.exit("peers.py: numpy 1.24.4, which CleanRL pins, needs Python 3.11")
        print(f"making benchmark/{folder.name} with {pins}: some minutes, once", flush=True)
        venv.create(folder, clear=True, with_pip=True)
        if subprocess.run([python, "-m", "pip", "install", "--quiet", *pins.split()]).returncode:
            sys.exit("peers.py: pip failed, see above; the same command tries again")
        complete.write_text(pins)
    return python


def source(repository):
    """Return the folder of a repository's clone at its commit; clone it if it is missing."""
    folder, commit = ROOT / "benchmark" / ".venv-sources" / repository.split("/")[1], SOURCES[repository]
    if not folder.exists():
        subprocess.run(["git", "clone", "--quiet", f"https://github.com/{repository}", folder])
    if subprocess.run(["git", "-C", folder, "checkout", "--quiet", commit]).returncode:
        sys.exit(f"peers.py: git failed, see above; or put {repository} at {commit[:7]} into {folder}")
    return folder


# The programs: each plays `steps` steps -> [(steps, seconds, return)], one per episode, and steps/s.


def ours(flags, script):
    """Train one of our scripts -> None, transitions/s; reset steps do not count."""
    module = importlib.import_module(script)
    with mock.patch.object(module, "log_progress") as log:
        run = timed_train(module, [*flags.split(), "--eval-episodes", "0"])
    resets = len(run.history) if script in ("a2c", "dqn", "paac_gpu") else 0
    return None, log.call_args.args[5]["charts/SPS"] * (1 - resets / run.steps)


def learned(model, steps):
    """Run Stable-Baselines3's learn -> episodes, steps/s."""
    episodes, start = [], time.perf_counter()

    def note(local, _):
        for info in local["infos"]:
            if "episode" in info:
                episodes.append((local["self"].num_timesteps, time.perf_counter() - start, info["episode"]["r"]))
        return True  # continue

    model.learn(steps, callback=note, log_interval=None)
    return episodes, model.num_timesteps / (time.perf_counter() - start)


def sb3_a2c(steps, seed, equal=False):
    """Run Stable-Baselines3's A2C on CartPole-v1 with the zoo's settings or, if equal, a2c.py's settings and network.

    It normalizes neither observations nor rewards, which a2c.py does.
    """
    import torch
    from stable_baselines3 import A2C
    from stable_baselines3.common.env_util import make_vec_env

    torch.set_num_threads(1)
    settings = {"ent_coef": 0.0}
    if equal:
        _, optimizer, _ = our_updates(discrete_space(), EQUAL)  # also warms up
        settings = EQUAL | {"n_steps": 5, "use_rms_prop": False, "policy_kwargs": policy_like_ours(optimizer)}
    envs = make_vec_env("CartPole-v1", 8, seed=seed)
    return learned(A2C("MlpPolicy", envs, seed=seed, device="cpu", **settings), steps)


def sb3_dqn(steps, seed):
    """Run Stable-Baselines3's DQN on CartPole-v1 with hyperparams/dqn.yml of github.com/DLR-RM/rl-baselines3-zoo."""
    import torch
    from stable_baselines3 import DQN
    from stable_baselines3.common.env_util import make_vec_env

    torch.set_num_threads(1)
    zoo = {"learning_rate": 2.3e-3, "batch_size": 64, "buffer_size": 100_000, "learning_starts": 1_000, "gamma": 0.99}
    zoo |= {"target_update_interval": 10, "train_freq": 256, "gradient_steps": 128, "exploration_fraction": 0.16}
    zoo |= {"exploration_final_eps": 0.04, "policy_kwargs": {"net_arch": [256, 256]}}
    return learned(DQN("MlpPolicy", make_vec_env("CartPole-v1", 1, seed=seed), seed=seed, device="cpu", **zoo), steps)


def sb3_control(env_id, steps, seed, entry="PyBullet"):
    """Run Stable-Baselines3's A2C on MuJoCo -> episodes, and 20 greedy returns.

    entry: rl-baselines3-zoo's settings for MuJoCo, which are the library's defaults, or those for PyBullet's robots.
    """
    import torch
    from stable_baselines3 import A2C
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.evaluation import evaluate_policy
    from stable_baselines3.common.vec_env import VecNormalize

    torch.set_num_threads(1)
    num_envs, zoo = 1, {}
    if entry == "PyBullet":
        num_envs = 4
        zoo = {"n_steps": 8, "gae_lambda": 0.9, "vf_coef": 0.4, "learning_rate": lambda left: 9.6e-4 * left}
        zoo |= {"use_sde": True, "policy_kwargs": {"log_std_init": -2, "ortho_init": False}}
    envs = VecNormalize(make_vec_env(env_id, num_envs, seed=seed), gamma=0.99)  # both entries have "normalize: true"
    model = A2C("MlpPolicy", envs, seed=seed, device="cpu", **zoo)
    episodes, _ = learned(model, steps)
    envs.training = envs.norm_reward = False
    return episodes, evaluate_policy(model, envs, n_eval_episodes=20, return_episode_rewards=True)[0]


def sb3_pong(steps, seed):
    """Run Stable-Baselines3's A2C on Pong with 32 games x 5 steps, as users do: make_atari_env, Nature network."""
    import ale_py
    import gymnasium as gym
    from stable_baselines3 import A2C
    from stable_baselines3.common.env_util import make_atari_env
    from stable_baselines3.common.vec_env import VecFrameStack

    gym.register_envs(ale_py)
    envs = VecFrameStack(make_atari_env("PongNoFrameskip-v4", n_envs=32, seed=seed), n_stack=4)
    model = A2C("CnnPolicy", envs, n_steps=5, device="cpu", seed=seed)
    model.learn(640)  # to warm up
    return learned(model, steps)


def minimal_reinforce(steps, seed, learning_rate=0.0002, gamma=0.98):
    """Run REINFORCE.py of github.com/seungeunrho/minimalRL (MIT licence), ported to Gymnasium.

    One environment; one distribution and one backward pass per step, one Adam step per episode.
    """
    import gymnasium as gym
    import torch
    from torch.distributions import Categorical

    torch.set_num_threads(1)
    torch.manual_seed(seed)
    policy = torch.nn.Sequential(torch.nn.Linear(4, 128), torch.nn.ReLU(), torch.nn.Linear(128, 2))
    optimizer = torch.optim.Adam(policy.parameters(), lr=learning_rate)
    env, episodes, played, start = gym.make("CartPole-v1"), [], 0, time.perf_counter()
    obs, _ = env.reset(seed=seed)
    while played < steps:
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
            g = reward + gamma * g
            loss = -torch.log(prob) * g
            loss.backward()
        optimizer.step()
        played += len(data)
        episodes.append((played, time.perf_counter() - start, sum(reward for reward, _ in data)))
        obs, _ = env.reset()
    return episodes, played / (time.perf_counter() - start)


def minimal_a3c(steps, seed, gamma=0.98):
    """Run one worker of minimalRL's a3c.py, ported to Gymnasium; it clears the local gradients, which torch 2 adds up.

    One distribution per step, an update every 5 steps, a hidden layer of 256.
    """
    import gymnasium as gym
    import torch
    from torch import nn
    from torch.distributions import Categorical
    from torch.nn import functional as F

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc1, self.fc_pi, self.fc_v = nn.Linear(4, 256), nn.Linear(256, 2), nn.Linear(256, 1)

        def pi(self, x, softmax_dim=0):
            return F.softmax(self.fc_pi(F.relu(self.fc1(x))), dim=softmax_dim)

        def v(self, x):
            return self.fc_v(F.relu(self.fc1(x)))

    torch.set_num_threads(1)
    torch.manual_seed(seed)
    shared_agent, agent = Network().share_memory(), Network()
    agent.load_state_dict(shared_agent.state_dict())
    optimizer = torch.optim.Adam(shared_agent.parameters(), lr=0.0002)
    env, played = gym.make("CartPole-v1"), 0
    env.reset(seed=seed)
    start = time.perf_counter()
    while played < steps:
        obs, done = env.reset()[0], False
        while not done:
            observations, actions, rewards = [], [], []
            while len(rewards) < 5 and not done:
                action = Categorical(agent.pi(torch.from_numpy(obs).float())).sample().item()
                next_obs, reward, terminated, truncated, _ = env.step(action)
                done = terminated or truncated
                observations.append(obs)
                actions.append([action])
                rewards.append(reward / 100.0)
                obs = next_obs
            played += len(rewards)
            total, targets = 0.0 if terminated else agent.v(torch.tensor(obs, dtype=torch.float)).item(), []
            for reward in rewards[::-1]:
                total = gamma * total + reward
                targets.append([total])
            batch, target = torch.tensor(np.array(observations)), torch.tensor(targets[::-1])
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
    return None, played / (time.perf_counter() - start)


def cleanrl_dqn(steps, seed):
    """Run CleanRL's dqn.py on CartPole-v1 as it is."""
    return cleanrl(interpreter("cleanrl"), "dqn.py", steps, seed)


def cleanrl_dqn_atari(steps, seed):
    """Run CleanRL's dqn_atari.py on Breakout; buffer and start of learning are those of settings/dqn_Breakout.txt."""
    import ale_py

    python = interpreter("cleanrl-atari")
    (roms,) = python.parent.parent.glob("**/ale_py/roms")  # empty: the old ale-py came without games
    shutil.copy(Path(ale_py.__file__).parent / "roms" / "breakout.bin", roms)
    return cleanrl(python, "dqn_atari.py", steps, seed, "--buffer-size", "300000", "--learning-starts", "20000")


def cleanrl(python, program, steps, seed, *flags):
    """Run one of CleanRL's programs, with the versions it pins; its own clock starts with its loop."""
    folder = source("vwxyzjn/cleanrl")
    environment = os.environ | {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    command = [python, "-W", "ignore", folder / "cleanrl" / program, "--no-cuda", *flags]
    command += ["--total-timesteps", str(steps), "--seed", str(seed)]
    with tempfile.TemporaryDirectory() as empty:
        result = subprocess.run(command, cwd=empty, env=environment, capture_output=True, text=True)
    if result.returncode:
        sys.exit(f"peers.py: CleanRL failed: {result.stderr.strip().splitlines()[-1]}")
    speed = float(re.findall(r"SPS: (\d+)", result.stdout)[-1])
    episodes = re.findall(r"global_step=(\d+), episodic_return=\[?([\d.]+)", result.stdout)
    return [(int(step), int(step) / speed, float(value)) for step, value in episodes], speed


def taxi_alone(steps, seed):
    """Play random actions, drawn beforehand, in Taxi-v4."""
    import gymnasium as gym

    env = gym.make("Taxi-v4")
    env.reset(seed=seed)
    actions = np.random.default_rng(seed).integers(env.action_space.n, size=steps).tolist()
    start = time.perf_counter()
    for action in actions:
        _, _, terminated, truncated, _ = env.step(action)
        if terminated or truncated:
            env.reset()
    return None, steps / (time.perf_counter() - start)


def pong_alone(steps, seed):
    """Play random actions in the 32 games of paac_gpu.py."""
    import paac_gpu

    envs = paac_gpu.make_envs(paac_gpu.parse_args([]), 32)
    envs.reset(seed=seed)
    actions = np.random.default_rng(seed).integers(envs.single_action_space.n, size=(steps // 32, 32))
    start = time.perf_counter()
    for action in actions:
        envs.step(action)
    return None, actions.size / (time.perf_counter() - start)


# Speed and learning


EQUAL = {  # hyper-parameters that a2c.py and Stable-Baselines3 call by the same names
    "learning_rate": 0.002,
    "gamma": 0.99,
    "gae_lambda": 0.9,
    "vf_coef": 0.5,
    "ent_coef": 0.1,  # large enough for an error to show: Adam cancels the scale of a gradient
    "max_grad_norm": 0.5,
}
AS_CLEANRL = (  # its dqn.py's defaults in our flags; its learning rate is constant, ours decays to 0
    "--num-envs 1 --hidden-sizes 120 84 --learning-rate 0.00025 --gamma 0.99 --buffer-size 10000 "
    "--batch-size 128 --learning-starts 10000 --train-interval 10 --gradient-steps 1 --target-update-interval 500 "
    "--epsilon-start 1 --epsilon-end 0.05 --epsilon-steps 50000 --max-grad-norm 1000000 --log-interval 10000"
)
A2C = " ".join(f"--{name.replace('_', '-')}={value}" for name, value in EQUAL.items()) + " --num-envs 8 --num-steps 5"
A2C += " --log-interval 125000"  # one checkpoint; the peer writes none
CONTROL = {  # environments and the settings files of a2c.py
    "InvertedPendulum-v5": "a2c_MuJoCo.txt",
    "HalfCheetah-v5": "a2c_HalfCheetah-v5.txt",
    "Hopper-v5": "a2c_MuJoCo.txt",
    "Walker2d-v5": "a2c_MuJoCo.txt",
}
PSI = "--psi reward_to_go"
PSI_64 = f"{PSI} --num-envs 64 --total-timesteps 1000000"  # about as long as the peer takes for 40,000
PAAC = "--num-envs 32 --num-steps 5 --device cpu"
NIPS = f"{PAAC} --network nips"
equal_a2c = functools.partial(sb3_a2c, equal=True)
CONTESTS = {  # (what, beside whom): script, flags, steps, the other program
    ("Q-learning, Taxi-v4", "environment alone"): ("tabular_q", "", 200_000, taxi_alone),
    ("REINFORCE, 64 environments", "minimalRL"): ("reinforce", PSI_64, 40_000, minimal_reinforce),
    ("REINFORCE, 1 environment", "minimalRL"): ("reinforce", f"{PSI} --num-envs 1", 40_000, minimal_reinforce),
    ("DQN, CleanRL's settings", "CleanRL"): ("dqn", AS_CLEANRL, 100_000, cleanrl_dqn),
    ("A2C, equal settings, 8 environments", "Stable-Baselines3"): ("a2c", A2C, 125_000, equal_a2c),
    ("A3C, 1 worker, updates of 20 steps", "minimalRL"): ("a3c", "--num-workers 1 --num-steps 20", 30_000, minimal_a3c),
    ("A3C, 1 worker, updates of 5 steps", "minimalRL"): ("a3c", "--num-workers 1 --num-steps 5", 30_000, minimal_a3c),
    ("PAAC, Pong, equal network", "Stable-Baselines3"): ("paac_gpu", f"{PAAC} --network nature", 16_000, sb3_pong),
    ("PAAC, Pong, nips network", "Stable-Baselines3"): ("paac_gpu", NIPS, 16_000, sb3_pong),
    ("PAAC, Pong, nips network", "emulators alone"): ("paac_gpu", NIPS, 16_000, pong_alone),
}


def speed(args):
    """Run all contests in rounds, ours first in every other one -> speeds.csv; a program in two contests runs once."""
    play = functools.cache(lambda program, *args: round(fresh(program, *args)[1]))
    rows = [row for row in read_csv(RESULTS / "speeds.csv") if args.only not in (None, row["script"])]
    for number in range(1, args.rounds + 1):
        for (contest, peer), (script, flags, steps, program) in CONTESTS.items():
            if args.only not in (None, script):
                continue
            flags = f"--total-timesteps {steps} --seed {number} {flags}"
            row = {"round": number, "contest": contest, "peer": peer, "script": script, "flags": flags}
            runs = {"ours": (ours, flags, script), "theirs": (program, steps, number)}
            for who in ("ours", "theirs") if number % 2 else ("theirs", "ours"):
                row[who] = play(*runs[who])
            rows.append(row | {"code": fingerprint(script), "date": date.today()} | setting())
            ratio = row["ours"] / row["theirs"]
            print(f"round {number}  {contest}: {row['ours']:,}, {peer} {row['theirs']:,}: {ratio:.2f}", flush=True)
            write_csv(RESULTS / "speeds.csv", rows)


def curves(args):
    """Store the mean return of the last 100 training episodes at 100 times of each run -> peers_curves.csv."""
    contests = {
        ("reinforce", "minimalRL"): (minimal_reinforce, 200_000),
        ("dqn", "CleanRL"): (cleanrl_dqn, 500_000),
        ("dqn", "Stable-Baselines3"): (sb3_dqn, 50_000),
        ("a2c", "Stable-Baselines3"): (sb3_a2c, 500_000),
    }
    rows = []
    for seed in range(1, args.seeds + 1):
        for (script, peer), (program, num_steps) in contests.items():
            steps, seconds, returns = np.array(fresh(program, num_steps, seed)[0]).T
            for i in np.unique(np.linspace(0, len(returns) - 1, 100).astype(int)):
                row = {"script": script, "peer": peer, "seed": seed, "global_step": int(steps[i])}
                row |= {
                    "seconds": round(seconds[i], 3),
                    "mean_return": round(returns[max(0, i - 99) : i + 1].mean(), 2),
                }
                pins = dict(pin.split("==") for pin in PINS["cleanrl"].split()) if peer == "CleanRL" else {}
                rows.append(row | {name: pins.get(name, x) for name, x in setting().items()} | {"date": date.today()})
            print(f"seed {seed}  {peer} {script}: {rows[-1]['mean_return']} after {seconds[-1]:.0f} s", flush=True)
            write_csv(RESULTS / "peers_curves.csv", rows)


def our_control(env_id, steps, seed):
    """Run a2c.py with its settings for MuJoCo -> episodes (seconds in proportion to steps) and 20 greedy returns."""
    settings = f"@{ROOT / 'settings' / CONTROL[env_id]}"
    flags = [settings, "--env-id", env_id, "--total-timesteps", str(steps), "--seed", str(seed)]
    run = timed_train(importlib.import_module("a2c"), flags)
    return [(step, run.seconds * step / run.steps, value) for step, value in run.history], run.returns


CONTROL_PROGRAMS = {
    "a2c.py": our_control,
    "Stable-Baselines3 (PyBullet)": sb3_control,
    "Stable-Baselines3 (MuJoCo)": functools.partial(sb3_control, entry="MuJoCo"),
}


def control(args, steps=1_000_000):
    """Train a2c.py and Stable-Baselines3's A2C alternately on MuJoCo -> control.csv, control_curves.csv.

    A row has the mean of the last 100 training episodes, and of 20 greedy ones. Rows of an earlier call are kept.
    """
    path, curves_path = RESULTS / "control.csv", RESULTS / "control_curves.csv"
    for seed in range(1, args.seeds + 1):
        for env_id in CONTROL:
            for program, play in CONTROL_PROGRAMS.items():
                key = {"program": program, "env_id": env_id, "seed": seed}
                code = version("stable-baselines3")
                if play is our_control:
                    code = fingerprint("a2c", [f"@settings/{CONTROL[env_id]}"])
                same = [row for row in read_csv(path) if all(row[name] == str(key[name]) for name in key)]
                if same and same[0]["code"] == code:
                    continue
                episodes, greedy = fresh(play, env_id, steps, seed)
                seconds, points = episodes[-1][1], curve([(step, value) for step, _, value in episodes], steps)
                row = key | {"steps": steps, "train_seconds": round(seconds, 1), "training": points[-1][1]}
                row |= {f"eval_{f.__name__}": round(float(f(greedy)), 1) for f in (np.mean, np.std)} | {"code": code}
                points = [key | {"global_step": x, "mean_return": y} for x, y in points]
                others = [x for x in read_csv(curves_path) if any(x[name] != str(key[name]) for name in key)]
                write_csv(curves_path, others + points)
                kept = [x for x in read_csv(path) if x not in same]
                write_csv(path, [*kept, row | {"date": date.today()} | setting()])
                print(*(row[name] for name in row if name not in ("steps", "code")), flush=True)
    rows = read_csv(path)
    for env_id in CONTROL:
        for program in CONTROL_PROGRAMS:
            some = [row for row in rows if (row["env_id"], row["program"]) == (env_id, program)]
            means = [np.array([float(row[name]) for row in some]) for name in ("training", "eval_mean")]
            print(f"| {env_id} | {program} |", " | ".join(f"{x.mean():.0f} ± {x.std():.0f}" for x in means), "|")


def breakout(args, steps=1_000_000):
    """Store the mean return of the last 100 training games of CleanRL's DQN on Breakout, with the running time."""
    path, pins = RESULTS / "dqn_Breakout_CleanRL_curves.csv", dict(p.split("==") for p in PINS["cleanrl-atari"].split())
    rows = []
    for seed in range(1, args.seeds + 1):
        episodes, speed = fresh(cleanrl_dqn_atari, steps, seed)
        for step, mean_return in curve([(step, value) for step, _, value in episodes], steps):
            row = {"seed": seed, "global_step": step, "seconds": round(step / speed), "mean_return": mean_return}
            rows.append(row | {name: pins.get(name, x) for name, x in setting().items()} | {"date": date.today()})
        print(f"seed {seed}: {rows[-1]['mean_return']} after {rows[-1]['seconds']} s", flush=True)
        write_csv(path, rows)


# Agreement of a2c.py and Stable-Baselines3


NUM_VALID = 8  # transitions per environment and rollout of the scripted environment
ENDS = [  # per environment: {transition that ends an episode: how}; each rollout of 8 has one reset row
    {3: "terminated", 13: "truncated"},  # an episode goes across the end of the first rollout
    {5: "truncated", 9: "terminated"},
    {2: "terminated", 8: "truncated"},  # truncated by a rollout's last transition: the next one starts with a reset row
    {4: "both", 10: "truncated", 16: "terminated"},  # terminated and truncated at once: terminated wins
]


def discrete_space(n=2):
    """Return a space of n discrete actions."""
    return importlib.import_module("gymnasium").spaces.Discrete(n)


def scripted(space):
    """Return a class of environments whose observations, rewards and ENDS depend on the first seed, not on actions."""
    import gymnasium as gym

    class Scripted(gym.Env):
        observation_space = gym.spaces.Box(-np.inf, np.inf, (4,), np.float32)
        action_space = space

        def reset(self, seed=None, options=None):
            if seed is not None:
                self.rng, self.ends, self.count = np.random.default_rng(seed), ENDS[seed % len(ENDS)], 0
            return self.observation(), {}

        def step(self, action):
            self.count += 1
            end = self.ends.get(self.count)
            terminated, truncated = end in ("terminated", "both"), end in ("truncated", "both")
            return self.observation(), float(self.rng.normal(1, 3)), terminated, truncated, {}

        def observation(self):
            return self.rng.normal(3, 5, 4).astype(np.float32)  # far from mean 0, variance 1

    return Scripted


def policy_like_ours(optimizer):
    """Return policy_kwargs with which Stable-Baselines3's network and optimizer are those of a2c.py."""
    adam = {name: optimizer.defaults[name] for name in ("betas", "eps", "weight_decay", "amsgrad")}
    network = {"net_arch": {"pi": [64, 64], "vf": [64, 64]}}  # separate networks of tanh
    return network | {"optimizer_class": type(optimizer), "optimizer_kwargs": adam}


def parameter_pairs(agent, policy):
    """Yield (ours, theirs) for each tensor of two networks of the same shape; log_std if actions are continuous."""
    body = policy.mlp_extractor
    for mine, hidden, head in (
        (agent.actor, body.policy_net, policy.action_net),
        (agent.critic, body.value_net, policy.value_net),
    ):
        yield from zip(mine.parameters(), [*hidden.parameters(), *head.parameters()], strict=True)
    if not agent.discrete:
        yield agent.log_std, policy.log_std


def our_updates(space, settings):
    """Run a2c.py's train on two rollouts of the scripted environment -> agent, optimizer, a dict per update."""
    import gymnasium as gym
    import torch

    import a2c

    gym.registry.pop("Scripted-v0", None)
    gym.register("Scripted-v0", scripted(space))
    records, optimizers, update = [], [], a2c.update

    def recorded_update(agent, optimizer, observations, actions, rewards, terminations, dones, is_transition, args):
        def real(x):  # what is not a reset row, as Stable-Baselines3 has none: (NUM_VALID, num_envs, ...)
            return x.swapaxes(0, 1)[is_transition.T].reshape(len(ENDS), NUM_VALID, *x.shape[2:]).swapaxes(0, 1)

        values = agent(torch.as_tensor(observations))[1].detach().numpy()
        advantages = a2c.compute_advantages(rewards, values, terminations, dones, args.gamma, args.gae_lambda)
        record = {"advantages": real(advantages), "returns": real(advantages + values[:-1]), "actions": real(actions)}
        record["before"] = {name: tensor.clone() for name, tensor in agent.state_dict().items()}
        metrics = update(agent, optimizer, observations, actions, rewards, terminations, dones, is_transition, args)
        record["after"] = {name: tensor.clone() for name, tensor in agent.state_dict().items()}
        records.append(record)
        optimizers.append(optimizer)
        return metrics

    sizes = {"num_envs": len(ENDS), "num_steps": NUM_VALID + 1}  # one of them is the reset row
    sizes |= {
        "total_timesteps": 2 * len(ENDS) * (NUM_VALID + 1),
        "env_id": "Scripted-v0",
        "seed": 0,
        "eval_episodes": 0,
    }
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in (sizes | settings).items()]
    with mock.patch.object(a2c, "update", recorded_update):
        run = timed_train(a2c, flags)
    return run.agent, optimizers[0], records


def compare(label, space, settings):
    """Run both libraries on the scripted environment with equal weights, statistics, actions -> the largest difference.

    Stable-Baselines3 uses our statistics, because its own would change at every step.
    """
    import torch
    from stable_baselines3 import A2C
    from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

    import a2c

    agent, optimizer, records = our_updates(space, settings)
    envs = DummyVecEnv([scripted(space)] * len(ENDS))
    envs = VecNormalize(envs, training=False, norm_obs=False, clip_reward=np.inf, epsilon=0.0)  # by our statistics
    kwargs = settings | {"n_steps": NUM_VALID, "use_rms_prop": False, "policy_kwargs": policy_like_ours(optimizer)}
    # Both step sizes fall linearly; but ours uses the fraction left before the rollout, theirs the one after it.
    kwargs["learning_rate"] = lambda left: settings["learning_rate"] * (left + 1 / len(records))
    seed = a2c.derive_seed(0, 0, 0)  # the seed that train used; both libraries count up from it, one per environment
    model = A2C("MlpPolicy", envs, seed=seed, device="cpu", **kwargs)
    policy, their_train = model.policy, model.train
    policy.features_extractor.forward = agent.normalize  # by our statistics

    def start_rollout(record):
        """Give both libraries the statistics with which our rollout began, and our agent its weights."""
        agent.load_state_dict(record["before"])
        envs.ret_rms.var = agent.return_statistics.rms() ** 2

    start_rollout(records[0])
    with torch.no_grad():
        for mine, theirs in parameter_pairs(agent, policy):
            theirs.copy_(mine)
    actions, updates, worst = iter(np.concatenate([record["actions"] for record in records])), iter(records), []

    def forward(obs, deterministic=False):
        """Replace the policy's forward, so that it plays our actions."""
        action = torch.as_tensor(next(actions))
        value, log_prob, _ = policy.evaluate_actions(obs, action)
        return action, value, log_prob

    def train():
        """Run its own train between two comparisons; it has filled the buffer and corrected the rewards itself."""
        record, buffer = next(updates), model.rollout_buffer
        gaps = [np.abs(record[name] - getattr(buffer, name)).max() for name in ("advantages", "returns")]
        their_train()
        moved = max(float((record["after"][name] - record["before"][name]).abs().max()) for name in record["after"])
        agent.load_state_dict(record["after"])
        gaps.append(max(float((a - b).detach().abs().max()) for a, b in parameter_pairs(agent, policy)))
        worst.append(np.max(gaps))
        if len(worst) < len(records):
            start_rollout(records[len(worst)])
        print(f"{label}  rollout {len(worst)}", *(f"{gap:11.1e}" for gap in [*gaps, moved]), flush=True)

    policy.forward, model.train = forward, train
    model.learn(len(records) * NUM_VALID * len(ENDS), log_interval=None)
    return np.max(worst)


def agreement(_):
    """Print the largest differences between the two libraries; exit code 1 if any is above 1e-5."""
    import gymnasium as gym

    print("two rollouts in turn, with terminal states, time limits and episodes that cross the end of a rollout;")
    print("the largest absolute differences, and how far the update moved the weights:")
    print(f"{'':30}  advantages     returns     weights    moved by")
    worst = [
        compare("discrete,   λ = 0.9", discrete_space(3), EQUAL),
        compare("discrete,   λ = 1  ", discrete_space(3), EQUAL | {"gae_lambda": 1.0}),
        compare("continuous, λ = 0.9", gym.spaces.Box(-1, 1, (2,), np.float32), EQUAL),
    ]
    if not np.max(worst) <= 1e-5:  # also catches NaN
        sys.exit(f"NO AGREEMENT: largest difference {np.max(worst):.1e}, allowed 1e-5")
    print(f"agreement: largest difference {np.max(worst):.1e}, allowed 1e-5")


# Other repositories on today's libraries


def ending(command, folder):
    """Run a command in a folder for a minute at most -> how it ended: its first error, or that it runs."""
    environment = os.environ | {"PYTHONPATH": str(folder), "SDL_VIDEODRIVER": "dummy", "PYTHONWARNINGS": "ignore"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    process = subprocess.Popen(command, cwd=folder, env=environment, start_new_session=True, **pipes)
    try:
        output, _ = process.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # its workers, too
        output, _ = process.communicate()
        process.returncode = 0
    if error := re.search(r"^[\w.]+(Error|NotFound): .*", output, re.MULTILINE):
        return error[0]  # the first, in a worker too: others follow from it, or the program waits forever
    return "runs" if process.returncode == 0 else f"exit code {process.returncode}"


def today(_):
    """Run each for a minute; MountainCar-v0 reaches its time limit after 200 steps, CartPole-v1 only if played well."""
    commands = {
        "vwxyzjn/cleanrl": ["cleanrl/dqn.py --no-cuda --env-id MountainCar-v0 --total-timesteps 11000"],
        "seungeunrho/minimalRL": ["REINFORCE.py", "dqn.py", "actor_critic.py", "a2c.py", "a3c.py"],
        "ikostrikov/pytorch-a3c": ["main.py"],
        "Alfredvc/paac": ["train.py -g pong"],
    }
    rows = []
    for repository, command in [(repository, command) for repository, x in commands.items() for command in x]:
        end = ending([interpreter("today"), *command.split()], source(repository))
        print(f"{repository}: {command}: {end}", flush=True)
        row = {"repository": repository, "commit": SOURCES[repository], "command": command, "ends": end}
        rows.append(row | {"date": date.today().isoformat(), "versions": PINS["today"]})
    write_csv(RESULTS / "peers_today.csv", rows)


def main():
    """Parse the flags, switch to the right environment, and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["speed", "curves", "control", "breakout", "agreement", "today"])
    parser.add_argument("--rounds", type=int, default=5, help="speed: how often it is measured (default: 5)")
    parser.add_argument(
        "--only", choices=sorted({script for script, *_ in CONTESTS.values()}), help="speed: one script"
    )
    parser.add_argument("--seeds", type=int, default=2, help="curves, control, breakout: the seeds 1 to N (default: 2)")
    args = parser.parse_args()
    if min(args.rounds, args.seeds) < 1:
        parser.error("--rounds and --seeds start at 1")
    python = Path(sys.executable) if args.what == "today" else interpreter("sb3")
    if python != Path(sys.executable):
        sys.exit(subprocess.run([python, __file__, *sys.argv[1:]]).returncode)
    programs = [speed, curves, control, breakout, agreement, today]
    {program.__name__: program for program in programs}[args.what](args)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("peers.py: stopped")
