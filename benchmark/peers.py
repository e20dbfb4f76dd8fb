"""Hold a2c.py against Stable-Baselines3's A2C: the same numbers, the speed, the learning; learning curves of peers.

    python benchmark/peers.py agreement    equal data and weights -> equal advantages, returns and updates; 10 seconds
    python benchmark/peers.py speed        steps/s on CartPole-v1 at equal settings, in turns; 15 seconds a round
    python benchmark/peers.py learning     evaluation on CartPole-v1 after equal steps, in turns; 10 seconds a seed
    python benchmark/peers.py curves       returns on CartPole-v1 of its A2C and DQN and of minimalRL's REINFORCE,
                                           each with its authors' settings; two minutes a seed

It needs the versions listed in PINS. An interpreter that has them is used as it is; any other one makes a virtual
environment at benchmark/.venv-sb3 first (once, some minutes of downloading) and goes on there. speed and learning write
benchmark/results/a2c_speed.csv and a2c_learning.csv, row by row, and run only what is missing there; curves writes
peers_curves.csv anew.
"""

import argparse
import importlib.metadata
import subprocess
import sys
import time
import venv
from datetime import date
from pathlib import Path
from unittest import mock

PINS = {"stable-baselines3": "2.9.2", "torch": "2.13.0", "gymnasium": "1.4.0", "numpy": "2.4.6", "wandb": "0.31.0"}
TOLERANCE = 1e-5
HERE = Path(__file__).resolve().parent
EQUAL = {  # hyper-parameters that both libraries call by the same names, in agreement and speed
    "learning_rate": 0.002,
    "gamma": 0.99,
    "gae_lambda": 0.9,
    "vf_coef": 0.5,
    "ent_coef": 0.1,  # enough to be seen where it is wrong, as Adam divides the size of a gradient away
    "max_grad_norm": 0.5,
}
NUM_VALID = 8  # transitions per environment and rollout of the scripted environment
ENDS = [  # per environment: after which transitions an episode ends. Each rollout of 8 has one reset row in all of them
    {3: "terminated", 13: "truncated"},  # an episode goes across the end of the first rollout
    {5: "truncated", 9: "terminated"},
    {2: "terminated", 8: "truncated"},  # cut at the rollout's last transition: the next one starts with its reset row
    {4: "both", 10: "truncated", 16: "terminated"},  # terminated and truncated at once: terminated wins
]


def versions_fit():
    """Whether this interpreter has the versions of PINS."""
    try:
        return all(importlib.metadata.version(name).split("+")[0] == pin for name, pin in PINS.items())
    except importlib.metadata.PackageNotFoundError:
        return False


if versions_fit():  # otherwise main goes on in an environment that has them
    import gymnasium as gym
    import numpy as np
    import torch
    from reinforce_speed import minimal
    from run import RESULTS, ROOT, fingerprint, read_csv, setting, timed_train, write_csv
    from stable_baselines3 import A2C, DQN
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.vec_env import DummyVecEnv

    import a2c
    import reinforce

ZOO = {  # Stable-Baselines3's DQN on CartPole-v1: hyperparams/dqn.yml of github.com/DLR-RM/rl-baselines3-zoo
    "learning_rate": 2.3e-3,
    "batch_size": 64,
    "buffer_size": 100_000,
    "learning_starts": 1_000,
    "gamma": 0.99,
    "target_update_interval": 10,
    "train_freq": 256,
    "gradient_steps": 128,
    "exploration_fraction": 0.16,
    "exploration_final_eps": 0.04,
    "policy_kwargs": {"net_arch": [256, 256]},
}


def run_in_own_venv():
    """Make benchmark/.venv-sb3 unless it is there, and run this command in it."""
    folder = HERE / ".venv-sb3"
    python = folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    complete = folder / "complete.txt"  # written last: an installation that was interrupted starts again
    pins = [f"{name}=={pin}" for name, pin in PINS.items()]
    if not complete.exists() or complete.read_text().split() != pins:
        print(f"making benchmark/{folder.name} with {', '.join(pins)}: some minutes, once", flush=True)
        venv.create(folder, clear=True, with_pip=True)
        if subprocess.run([python, "-m", "pip", "install", "--quiet", *pins]).returncode:
            sys.exit("peers.py: pip failed, see above; the same command tries again")
        complete.write_text(" ".join(pins))
    sys.exit(subprocess.run([python, __file__, *sys.argv[1:]]).returncode)


def scripted(space):
    """A class of environments whose observations, rewards and ENDS follow from the first seed, whatever the actions."""

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
            return self.observation(), float(self.rng.normal()), terminated, truncated, {}

        def observation(self):
            return self.rng.normal(size=4).astype(np.float32)

    return Scripted


def flags(**settings):
    """Keyword arguments -> flags of a2c.py."""
    return [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]


def shared_body(obs_space):
    """The body of a2c.py's network as Stable-Baselines3's features extractor, which its actor and critic share."""
    body = a2c.ActorCritic(obs_space, gym.spaces.Discrete(2)).body
    body.features_dim = body[2].out_features
    return body


def policy_like_ours(optimizer):
    """policy_kwargs with which Stable-Baselines3's network and optimizer are those of a2c.py."""
    names = "betas", "eps", "weight_decay", "amsgrad"
    network = {"features_extractor_class": shared_body, "net_arch": []}  # nothing between the body and the two heads
    adam = {name: optimizer.defaults[name] for name in names}
    return network | {"optimizer_class": type(optimizer), "optimizer_kwargs": adam}


def parameter_pairs(agent, policy):
    """(ours, theirs) for each tensor of two networks of one form; log_std is there where actions are continuous."""
    heads = (agent.actor, policy.action_net), (agent.critic, policy.value_net)
    for ours, theirs in ((agent.body, policy.features_extractor), *heads):
        yield from zip(ours.parameters(), theirs.parameters(), strict=True)
    if not agent.discrete:
        yield agent.log_std, policy.log_std


def our_updates(space, settings):
    """a2c.py's train on two rollouts of the scripted environment -> agent, optimizer, a dict of arrays per update."""
    gym.registry.pop("Scripted-v0", None)
    gym.register("Scripted-v0", scripted(space))
    records, update = [], a2c.update

    def recorded_update(agent, optimizer, observations, actions, rewards, terminateds, dones, valids, args):
        def real(x):  # what is not a reset row, as Stable-Baselines3 has none: (NUM_VALID, num_envs, ...)
            return x.swapaxes(0, 1)[valids.T].reshape(len(ENDS), NUM_VALID, *x.shape[2:]).swapaxes(0, 1)

        values = agent(torch.as_tensor(observations))[1].detach().numpy()
        advantages = a2c.compute_advantages(rewards, values, terminateds, dones, args.gamma, args.gae_lambda)
        record = {"advantages": real(advantages), "returns": real(advantages + values[:-1]), "actions": real(actions)}
        record["before"] = {name: tensor.clone() for name, tensor in agent.state_dict().items()}
        metrics = update(agent, optimizer, observations, actions, rewards, terminateds, dones, valids, args)
        record["after"] = {name: tensor.clone() for name, tensor in agent.state_dict().items()}
        records.append(record)
        recorded_update.optimizer = optimizer
        return metrics

    num_envs, num_steps = len(ENDS), NUM_VALID + 1  # one of them is the reset row
    sizes = flags(num_envs=num_envs, num_steps=num_steps, total_timesteps=2 * num_envs * num_steps)
    rest = flags(env_id="Scripted-v0", seed=0, eval_episodes=0, **settings)
    with mock.patch.object(a2c, "update", recorded_update):
        run = timed_train(a2c, [*sizes, *rest])
    return run.agent, recorded_update.optimizer, records


def compare(label, space, settings):
    """Both libraries on the scripted environment with equal weights and actions -> the largest difference, printed."""
    agent, optimizer, records = our_updates(space, settings)
    envs = DummyVecEnv([scripted(space)] * len(ENDS))
    kwargs = settings | {"n_steps": NUM_VALID, "use_rms_prop": False, "policy_kwargs": policy_like_ours(optimizer)}
    # Both step sizes fall linearly; but what is left of the run, ours counts before the rollout, theirs after it.
    kwargs["learning_rate"] = lambda left: settings["learning_rate"] * (left + 1 / len(records))
    seed = a2c.env_seed(0, 0, 0)  # with which train began: both count up from it, one per environment
    model = A2C("MlpPolicy", envs, seed=seed, device="cpu", **kwargs)
    policy, their_train = model.policy, model.train
    agent.load_state_dict(records[0]["before"])
    with torch.no_grad():
        for ours, theirs in parameter_pairs(agent, policy):
            theirs.copy_(ours)
    actions, updates, worst = iter(np.concatenate([record["actions"] for record in records])), iter(records), []

    def forward(obs, deterministic=False):
        """In place of its policy's own, for it to play our actions."""
        action = torch.as_tensor(next(actions))
        value, log_prob, _ = policy.evaluate_actions(obs, action)
        return action, value, log_prob

    def train():
        """Its own train, between two comparisons; its buffer has been filled, and its rewards corrected, by itself."""
        record, buffer = next(updates), model.rollout_buffer
        gaps = [np.abs(record[name] - getattr(buffer, name)).max() for name in ("advantages", "returns")]
        their_train()
        moved = max(float((record["after"][name] - record["before"][name]).abs().max()) for name in record["after"])
        agent.load_state_dict(record["after"])
        gaps.append(max(float((a - b).detach().abs().max()) for a, b in parameter_pairs(agent, policy)))
        worst.append(np.max(gaps))
        shown = "  ".join(f"{gap:10.1e}" for gap in gaps)
        print(f"{label}  rollout {len(worst)}  {shown}  {moved:10.1e}", flush=True)

    policy.forward, model.train = forward, train
    model.learn(len(records) * NUM_VALID * len(ENDS), log_interval=None)
    return np.max(worst)


def agreement(args):
    """Largest differences between the two libraries; exit code 1 if any is above TOLERANCE."""
    print("two rollouts in turn, with terminal states, time limits and episodes that go on across the rollouts' end;")
    print("the largest absolute differences, and how far the update moved the weights:")
    print(f"{'':38}advantages     returns     weights    moved by")
    discrete, continuous = gym.spaces.Discrete(3), gym.spaces.Box(-1, 1, (2,), np.float32)
    worst = [
        compare("discrete,   λ = 0.9", discrete, EQUAL),
        compare("discrete,   λ = 1  ", discrete, EQUAL | {"gae_lambda": 1.0}),
        compare("continuous, λ = 0.9", continuous, EQUAL),
    ]
    agree = np.max(worst) <= TOLERANCE  # False for NaN too
    print(
        f"{'agreement' if agree else 'NO AGREEMENT'}: largest difference {np.max(worst):.1e}, allowed {TOLERANCE:.0e}"
    )
    sys.exit(0 if agree else 1)


def their_model(num_envs, seed, **kwargs):
    """Stable-Baselines3's A2C on CartPole-v1, as its user makes it: MlpPolicy, make_vec_env, no logging."""
    return A2C("MlpPolicy", make_vec_env("CartPole-v1", num_envs, seed=seed), seed=seed, device="cpu", **kwargs)


def timed_learn(model, steps):
    """Its learn -> seconds."""
    start = time.perf_counter()
    model.learn(steps, log_interval=None)
    return time.perf_counter() - start


def stored(path, same):
    """The rows that an earlier run left, which must have been measured in the same way."""
    rows = read_csv(path)
    for row in rows:
        for name, value in same.items():
            if row[name] != str(value):
                sys.exit(f"peers.py: {path.relative_to(ROOT)} has {name} {row[name]}, not {value}: remove it first")
    return rows


def speed(args):
    """In each round ours and theirs at 8 x 5 and ours at 64 x 16, in turns -> a2c_speed.csv, medians."""
    path, same = RESULTS / "a2c_speed.csv", {"steps": args.steps, "code": fingerprint("a2c")} | setting()
    rows = stored(path, same)
    done = {int(row["round"]) for row in rows}
    print(f"{args.rounds} rounds, {len(done)} of them done, about {args.steps / 8_000:.0f} seconds each", flush=True)
    _, optimizer, _ = our_updates(gym.spaces.Discrete(2), EQUAL)  # also warms up
    kwargs = EQUAL | {"n_steps": 5, "use_rms_prop": False, "policy_kwargs": policy_like_ours(optimizer)}
    timed_learn(their_model(8, 0, **kwargs), 2_000)

    def ours(num_envs, num_steps, steps, seed):
        sizes = flags(num_envs=num_envs, num_steps=num_steps, total_timesteps=steps, log_interval=steps, seed=seed)
        run = timed_train(a2c, [*sizes, *flags(eval_episodes=0, **EQUAL)])
        return run.steps - len(run.history), run.seconds  # the reset row after an episode is no transition

    def theirs(num_envs, num_steps, steps, seed):
        model = their_model(num_envs, seed, **kwargs)
        seconds = timed_learn(model, steps)
        return model.num_timesteps, seconds

    contests = [("a2c.py", ours, 8, 5, 1), ("Stable-Baselines3", theirs, 8, 5, 1), ("a2c.py", ours, 64, 16, 5)]
    for number in sorted(set(range(1, args.rounds + 1)) - done):
        for library, play, num_envs, num_steps, times in contests:
            transitions, seconds = play(num_envs, num_steps, times * args.steps, number)
            row = {"round": number, "library": library, "num_envs": num_envs, "num_steps": num_steps}
            row |= {"transitions": transitions, "seconds": round(seconds, 3)}
            rows.append(row | {"steps_per_second": round(transitions / seconds)} | same | {"date": date.today()})
        write_csv(path, rows)
        fast, slow, large = (row["steps_per_second"] for row in rows[-3:])
        print(f"round {number}: ours {fast:,}, theirs {slow:,} steps/s, ratio {fast / slow:.2f}; ", end="")
        print(f"ours at 64 x 16 {large:,}", flush=True)
    fast, slow, large = np.array([float(row["steps_per_second"]) for row in rows]).reshape(-1, 3).T
    print(f"median of {len(fast)} rounds: ours {np.median(fast):,.0f}, theirs {np.median(slow):,.0f} steps/s, ", end="")
    print(f"ratio {np.median(fast / slow):.2f}; ours at 64 x 16 {np.median(large):,.0f} steps/s")


def learning(args):
    """Each with its own defaults (theirs: 8 environments x 5 steps) on equal steps, in turns -> a2c_learning.csv."""
    path, same = RESULTS / "a2c_learning.csv", {"code": fingerprint("a2c")} | setting()
    rows = stored(path, same)
    done = {int(row["seed"]) for row in rows if int(row["steps"]) == args.steps}
    print(f"{args.seeds} seeds, {len(done)} of them done, about {args.steps / 12_000:.0f} seconds each", flush=True)
    for seed in sorted(set(range(1, args.seeds + 1)) - done):
        ours = timed_train(a2c, [f"--total-timesteps={args.steps}", f"--seed={seed}"])
        model = their_model(8, seed)
        seconds = timed_learn(model, args.steps)
        agent = a2c.ActorCritic(model.observation_space, model.action_space)
        agent.body.load_state_dict(model.policy.mlp_extractor.policy_net.state_dict())  # its critic has one of its own
        agent.actor.load_state_dict(model.policy.action_net.state_dict())
        results = [
            ("a2c.py", ours.seconds, ours.returns),
            ("Stable-Baselines3", seconds, a2c.evaluate(agent, ours.args, len(ours.returns))),  # the same episodes
        ]
        for library, seconds, returns in results:
            row = {"steps": args.steps, "seed": seed, "library": library, "train_seconds": round(seconds, 3)}
            row |= {"eval_mean": np.mean(returns), "eval_std": round(np.std(returns), 3), "eval_episodes": len(returns)}
            rows.append(row | same | {"date": date.today()})
            print(f"seed {seed}  {library:17}  evaluation {row['eval_mean']:5.1f}, {seconds:4.1f} s", flush=True)
        write_csv(path, rows)
    for library in ("a2c.py", "Stable-Baselines3"):
        mine = [row for row in rows if (row["library"], int(row["steps"])) == (library, args.steps)]
        scores = np.array([float(row["eval_mean"]) for row in mine])
        seconds = np.median([float(row["train_seconds"]) for row in mine])
        print(
            f"{library:17}  evaluation {scores.mean():.1f} ± {scores.std():.1f} over {len(mine)} seeds, lowest ", end=""
        )
        print(f"{scores.min():.1f}, {(scores >= 475).sum()} at or above 475, median {seconds:.1f} s of training")


def learned(model, steps):
    """Its learn -> [(steps, seconds, return)], one an episode."""
    episodes, start = [], time.perf_counter()

    def note(local, _):
        for info in local["infos"]:
            if "episode" in info:
                episodes.append((local["self"].num_timesteps, time.perf_counter() - start, info["episode"]["r"]))
        return True  # go on

    model.learn(steps, callback=note, log_interval=None)
    return episodes


def minimal_rl(seed):
    """minimalRL's REINFORCE on CartPole-v1, its network and constants -> [(steps, seconds, return)]."""
    torch.manual_seed(seed)
    policy = torch.nn.Sequential(torch.nn.Linear(4, 128), torch.nn.ReLU(), torch.nn.Linear(128, 2))
    constants = "--learning-rate 0.0002 --gamma 0.98 --total-timesteps 200000".split()
    return minimal(policy, reinforce.parse_args([*constants, "--seed", str(seed)]))


def curves(args):
    """The mean return of the last 100 training episodes at 100 times of each run -> peers_curves.csv."""
    contests = {
        ("a2c", "Stable-Baselines3"): lambda seed: learned(their_model(8, seed, ent_coef=0.0), 500_000),
        ("dqn", "Stable-Baselines3"): lambda seed: learned(
            DQN("MlpPolicy", make_vec_env("CartPole-v1", 1, seed=seed), seed=seed, device="cpu", **ZOO), 50_000
        ),
        ("reinforce", "minimalRL"): minimal_rl,
    }
    rows = []
    for seed in range(1, args.seeds + 1):
        for (script, peer), play in contests.items():
            steps, seconds, returns = np.array(play(seed)).T
            means = [np.mean(returns[max(0, i - 99) : i + 1]) for i in range(len(returns))]
            for i in np.unique(np.linspace(0, len(returns) - 1, 100).astype(int)):
                row = {"script": script, "peer": peer, "seed": seed, "global_step": int(steps[i])}
                row |= {"seconds": round(seconds[i], 3), "mean_return": round(means[i], 2)}
                rows.append(row | setting() | {"date": date.today()})
            print(f"seed {seed}  {peer} {script}: {rows[-1]['mean_return']} after {seconds[-1]:.0f} s", flush=True)
    write_csv(RESULTS / "peers_curves.csv", rows)


def positive(text):
    """An argparse type: a whole number from 1."""
    if text.isdecimal() and int(text) > 0:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text} is not a whole number from 1")


def main():
    """Parse, see to the environment, run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["agreement", "speed", "learning", "curves"])
    parser.add_argument("--steps", type=positive, default=125_000, help="speed, learning: of a run (default: 125000)")
    parser.add_argument("--rounds", type=positive, default=5, help="speed: how often it is measured (default: 5)")
    parser.add_argument("--seeds", type=positive, default=5, help="learning, curves: the seeds 1 to N (default: 5)")
    args = parser.parse_args()
    if args.steps < 1_000:
        parser.error(f"argument --steps: {args.steps} is less than 1000")
    if not versions_fit():
        run_in_own_venv()
    torch.set_num_threads(1)
    {"agreement": agreement, "speed": speed, "learning": learning, "curves": curves}[args.what](args)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("peers.py: stopped; the same command runs what is missing")
