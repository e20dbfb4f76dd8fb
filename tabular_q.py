# /// script
# requires-python = ">=3.11"
# dependencies = ["gymnasium[classic-control,other]>=1.3", "numpy>=1.26", "torch>=2.6", "wandb>=0.28"]
# ///
"""Tabular control: Q-learning, SARSA and expected SARSA; policy iteration where the environment's model is known.

Book     Sutton & Barto 2018, Reinforcement Learning, 2nd edition: eq. 6.7 to 6.9, section 4.3, section 2.6
Update   Q(s, a) <- Q(s, a) + α (target - Q(s, a))    after every step; a is ε-greedy
         q_learning      target = r + γ max_a' Q(s', a')         the value of the best next action, eq. 6.8
         sarsa           target = r + γ Q(s', a')                the value of the next action taken, eq. 6.7
         expected_sarsa  target = r + γ Σ_a' π(a'|s') Q(s', a')  the mean value under the ε-greedy policy, eq. 6.9
         The target is r alone if s' is terminal, but not where only a time limit ends the episode.
         policy_iteration: solve V = r_π + γ P_π V, make π greedy with respect to V, repeat until V stops improving
Departs  ε and α decay linearly; a' is chosen before the update (SARSA needs it; the others follow); environments
         without a time limit get one of 1,000 steps
Run      python tabular_q.py    python tabular_q.py --env-id CliffWalking-v1 --algorithm sarsa --gamma 1
Result   Taxi-v4, first command: the greedy policy is optimal from all 300 starts in 10 of 10 seeds
"""

import argparse
import contextlib
import io
import json
import math
import os
import random
import secrets
import signal
import sys
import time
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch
import wandb
from gymnasium.spaces import Discrete
from torch import nn

SCRIPT = "tabular_q"  # names run folders; stored in checkpoints
ARROWS = {"FrozenLakeEnv": "<v>^", "CliffWalkingEnv": "^>v<"}  # arrows for the actions of each grid world


def parse_args(argv=None):
    """Parse the flags; a value out of range ends the program with exit code 2 and an error message."""
    parser = argparse.ArgumentParser(fromfile_prefix_chars="@", formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.description = __doc__.splitlines()[0]
    parser.convert_arg_line_to_args = lambda line: [line.strip()] if line.strip() else []  # @FILE may have blank lines
    parser.register("type", "JSON object", lambda text: dict(json.loads(text)))  # dict refuses other JSON values
    add = parser.add_argument
    algorithms = ["q_learning", "sarsa", "expected_sarsa", "policy_iteration"]
    add("--env-id", default="Taxi-v4", help="Gymnasium id, or MODULE:ID for your own environment")
    add("--env-kwargs", type="JSON object", default={}, help="environment options as JSON")
    add("--total-timesteps", type=number(int, 1), default=600_000, help="environment steps")
    add("--algorithm", default="q_learning", choices=algorithms, help="policy_iteration solves the model, others learn")
    add("--learning-rate", type=number(float, 0, 1), default=0.8, help="step size α")
    add("--anneal-lr", action=argparse.BooleanOptionalAction, default=True, help="decay the step size linearly to 0")
    add("--gamma", type=number(float, 0, 1), default=0.99, help="discount γ")
    add("--epsilon-start", type=number(float, 0, 1), default=1.0, help="initial ε, the probability of a random action")
    add("--epsilon-end", type=number(float, 0, 1), default=0.05, help="final ε")
    add("--epsilon-steps", type=number(int, 1), default=550_000, help="environment steps over which ε decays")
    add("--initial-q", type=number(float, -sys.maxsize), default=0.0, help="initial Q; high values lead to exploration")
    add("--seed", type=number(int, 0), default=1, help="seed of all random numbers")
    add("--log-interval", type=number(int, 1), default=30_000, help="environment steps between logs and checkpoints")
    add("--eval-episodes", type=number(int, 0), default=20, help="greedy episodes after training; 0 for none")
    add("--capture-video", action="store_true", help="record a greedy episode as MP4")
    add("--resume", help="checkpoint.pt to continue from, with its flags unless others are given")
    add("--run-dir", default="runs", help="folder for run folders, which hold checkpoint and video")
    modes = ["disabled", "offline", "online"]
    add("--wandb-mode", default=os.environ.get("WANDB_MODE") or "offline", choices=modes, help="online: upload runs")
    add("--wandb-project", default=os.environ.get("WANDB_PROJECT") or "reference-rl", help="W&B project")
    args = parser.parse_args(argv)
    if args.resume is not None:  # continue with the run's own flags, except machine-specific ones and those given now
        flags = load_checkpoint(args.resume)["flags"]
        kept = flags.keys() - {"resume", "device", "run_dir", "wandb_mode", "wandb_project"}
        parser.set_defaults(**{name: flags[name] for name in kept})
        args = parser.parse_args(argv)
        if args.env_id != flags["env_id"]:
            parser.error(f"argument --resume: {args.resume} was trained on {flags['env_id']}, not on {args.env_id}")
    return args


def linear_schedule(start, end, duration, step):
    """Interpolate from start at step 0 to end at step `duration`; constant afterwards."""
    return start + (end - start) * min(step / duration, 1)


def epsilon_greedy(q, epsilon, rng):
    """Choose a random action with probability ε, otherwise a best one from Q(s, ·), a list, ties broken at random."""
    if rng.random() < epsilon:
        return rng.randrange(len(q))
    best = max(q)
    return q.index(best) if q.count(best) == 1 else rng.choice([a for a, value in enumerate(q) if value == best])


def td_target(algorithm, reward, next_q, next_action, epsilon, terminated, gamma):
    """Return the target of the module docstring; next_q is Q(s', ·), a list, next_action a', epsilon the policy's ε."""
    if terminated:
        return reward
    if algorithm == "q_learning":
        return reward + gamma * max(next_q)
    if algorithm == "sarsa":
        return reward + gamma * next_q[next_action]
    return reward + gamma * ((1 - epsilon) * max(next_q) + epsilon * sum(next_q) / len(next_q))


def greedy_policy(q):
    """Q (num_states, num_actions) -> π(a|s) of the same shape: the best actions of a state are equally likely."""
    q = np.where(np.isnan(q), -np.inf, q)  # an action without a value is never better than one that has a value
    best = np.isclose(q, q.max(axis=1, keepdims=True), rtol=1e-11, atol=1e-11)  # equal up to rounding
    return best / best.sum(axis=1, keepdims=True)


def flat_model(model):
    """model[s][a], lists of (p, s', r, terminated) -> arrays s, a, p, s', r, terminated of those with p > 0."""
    rows = [(s, a, *row) for s in range(len(model)) for a in range(len(model[0])) for row in model[s][a]]
    s, a, p, next_s, r, terminated = np.array([row for row in rows if row[2] > 0], dtype=float).T
    return s.astype(int), a.astype(int), p, next_s.astype(int), r, terminated.astype(bool)


def can_reach(p_pi, goals):
    """Return a mask of the states that can reach a goal, goals included; goals is a mask, too, (num_states,)."""
    reached = goals
    while True:
        extended = reached | (p_pi[:, reached] > 0).any(axis=1)  # by one more step
        if np.array_equal(extended, reached):
            return reached
        reached = extended


def policy_evaluation(transitions, policy, gamma):
    """Solve V = r_π + γ P_π V, eq. 4.4, exactly -> V_π (num_states,); NaN if γ = 1 and π may never terminate."""
    num_states = len(transitions)
    s, a, p, next_s, r, terminated = flat_model(transitions)
    weight = policy[s, a] * p  # the probability of each transition, given its state
    r_pi = np.bincount(s, weight * r, num_states)
    p_pi = np.zeros((num_states, num_states))  # P_π without the transitions that end the episode
    np.add.at(p_pi, (s, next_s), weight * ~terminated)
    has_value = np.ones(num_states, bool)
    if gamma == 1:
        can_end = can_reach(p_pi, np.bincount(s, weight * terminated, num_states) > 0)
        has_value = ~can_reach(p_pi, ~can_end)  # π never leads to a state from which it cannot terminate
    values = np.full(num_states, np.nan)
    equations = np.eye(num_states) - gamma * p_pi
    values[has_value] = np.linalg.solve(equations[np.ix_(has_value, has_value)], r_pi[has_value])
    return values


def action_values(transitions, values, gamma):
    """Return Q(s, a) = Σ p(s', r|s, a) (r + γ V(s')), eq. 4.6: (num_states,) -> (num_states, num_actions)."""
    s, a, p, next_s, r, terminated = flat_model(transitions)
    q = np.zeros((len(transitions), len(transitions[0])))
    np.add.at(q, (s, a), p * (r + gamma * np.where(terminated, 0, values[next_s])))
    return q


def policy_iteration(transitions, gamma):
    """Return an optimal policy (num_states, num_actions) and its values (num_states,), section 4.3."""
    # With γ = 1 a loop with reward has no finite value: NaN. A loop without reward is always left, because the initial
    # policy is uniform and ties share probability. An action that may lead to NaN is taken only if all actions may.
    policy = np.full((len(transitions), len(transitions[0])), 1 / len(transitions[0]))
    values = policy_evaluation(transitions, policy, gamma)
    while True:
        policy = greedy_policy(action_values(transitions, values, gamma))
        previous, values = values, policy_evaluation(transitions, policy, gamma)
        if np.isnan(values[~np.isnan(previous)]).any():  # a loop earns reward forever: no policy is best
            return policy, np.full(len(values), np.nan)
        scale = np.abs(values[~np.isnan(values)]).max(initial=1.0)
        if np.allclose(values, previous, rtol=0, atol=1e-12 * scale, equal_nan=True):
            return policy, values


def train(args):
    """Learn or solve, log, save, evaluate -> (Q, history): (num_states, num_actions), [(global_step, return), ...]."""
    env = gym.wrappers.RecordEpisodeStatistics(make_env(args), stats_key="recorded_episode")
    q = [[args.initial_q] * int(env.action_space.n) for _ in range(env.observation_space.n)]  # lists are faster
    table = as_module(q)
    checkpoint = load_checkpoint(args.resume, agent=table) if args.resume else {}
    start_step, run_id, q = checkpoint.get("global_step", 0), checkpoint.get("run_id"), table.q.tolist()
    rng = random.Random(derive_seed(args.seed, 2, start_step))  # a resumed run draws new noise
    optimal_values = None
    if hasattr(env.unwrapped, "P") and hasattr(env.unwrapped, "initial_state_distrib"):
        # For policy iteration and the charts: the learners do not use the model.
        _, optimal_values = policy_iteration(env.unwrapped.P, args.gamma)
    if args.algorithm == "policy_iteration":
        if np.isnan(exact_values(env, q, optimal_values, args.gamma).get("charts/optimal_value", np.nan)):
            raise RunError(
                "--algorithm policy_iteration: needs P and initial_state_distrib; with --gamma 1 episodes must end"
            )
        q = action_values(env.unwrapped.P, optimal_values, args.gamma).tolist()

    history = []
    global_step = start_step
    next_log = start_step + args.log_interval
    state, _ = env.reset(seed=derive_seed(args.seed, 0, start_step))
    action = rng.randrange(len(q[state]))
    run, folder = start_run(args, run_id)
    start_time = time.perf_counter()

    def save():
        return save_checkpoint(folder, args, global_step, run.id, agent=as_module(q))

    with finishing(run, env, save):
        while global_step < args.total_timesteps and args.algorithm != "policy_iteration":
            epsilon = linear_schedule(args.epsilon_start, args.epsilon_end, args.epsilon_steps, global_step)
            remaining = 1 - global_step / args.total_timesteps if args.anneal_lr else 1.0
            learning_rate = args.learning_rate * remaining

            # 1. Take one step, and choose the next action.
            next_state, reward, terminated, truncated, info = env.step(action)
            next_action = epsilon_greedy(q[next_state], epsilon, rng)
            global_step += 1

            # 2. Learn from it. Only a terminal state ends the sum of rewards: a truncated episode would have continued.
            target = td_target(args.algorithm, reward, q[next_state], next_action, epsilon, terminated, args.gamma)
            td_error = target - q[state][action]
            if not math.isfinite(td_error):
                raise RunError(f"the TD error is not finite: lower --learning-rate, or look for NaN in {args.env_id}")
            q[state][action] += learning_rate * td_error

            # 3. Continue with the next state, or with a new episode.
            state, action = next_state, next_action
            if terminated or truncated:
                history.append((global_step, float(info.pop("recorded_episode")["r"])))
                state, _ = env.reset()
                action = epsilon_greedy(q[state], epsilon, rng)

            # 4. Log and save.
            if global_step >= min(next_log, args.total_timesteps):
                next_log += args.log_interval
                metrics = {"losses/td_error": td_error, "charts/epsilon": epsilon}
                metrics |= exact_values(env, q, optimal_values, args.gamma)
                metrics["charts/SPS"] = (global_step - start_step) / (time.perf_counter() - start_time)
                metrics["charts/learning_rate"] = learning_rate
                log_progress(run, args, global_step, history, env.length_queue, metrics)
                save()

        print_policy(env, q, exact_values(env, q, optimal_values, args.gamma))
        env.close()
        log_evaluation(run, folder, np.array(q), args, global_step)
    return np.array(q), history


def exact_values(env, q, optimal_values, gamma):
    """Return exact values of the greedy and the optimal policy, means over the initial states; {} without a model."""
    if optimal_values is None:
        return {}
    greedy_values = policy_evaluation(env.unwrapped.P, greedy_policy(np.array(q)), gamma)
    start = env.unwrapped.initial_state_distrib
    can_start = start > 0  # other states may have no value
    return {
        "charts/greedy_value": float(start[can_start] @ greedy_values[can_start]),
        "charts/optimal_value": float(start[can_start] @ optimal_values[can_start]),
    }


def print_policy(env, q, exact):
    """Print the greedy policy of a grid world as arrows on its map, and the values from exact_values."""
    world = env.unwrapped
    if type(world).__name__ in ARROWS:
        _, _, _, next_s, _, terminated = flat_model(world.P)
        cells = world.desc.astype(str) if hasattr(world, "desc") else np.full(world.shape, ".")  # the lake, the cliff
        for s in set(next_s[~terminated]):  # wherever there is an action to choose
            cells.flat[s] = ARROWS[type(world).__name__][np.argmax(q[s])]
        print(*(" ".join(row) for row in cells), sep="\n")
    if exact:
        print("greedy policy  exact value {:.4f}  optimum {:.4f}".format(*exact.values()), flush=True)


def evaluate(agent, args, num_episodes, video_folder=None):
    """Play greedy episodes in parallel, with seeds that training does not use -> their returns, floats."""
    render = {"render_mode": "rgb_array"} if video_folder else {}
    envs = gym.vector.SyncVectorEnv([lambda: make_env(args, **render)] * num_episodes)
    envs.unwrapped._add_info = lambda infos, info, i: infos  # private hook; drop infos: some cannot be stacked
    if video_folder:
        # At most 1,000 frames, which are kept in memory.
        envs = gym.wrappers.vector.RecordVideo(envs, video_folder, episode_trigger=lambda n: n == 0, video_length=1_000)
    state, _ = envs.reset(seed=derive_seed(args.seed, 1))
    policy = greedy_policy(agent)
    rng = np.random.default_rng(derive_seed(args.seed, 3))
    returns = np.zeros(num_episodes)
    playing = np.ones(num_episodes, bool)  # only each environment's first episode: more would favour short ones
    for _ in range(100_000):  # without a time limit a greedy policy may loop forever
        action = np.array([rng.choice(len(policy[s]), p=policy[s]) for s in state])  # ties are broken at random
        state, reward, terminated, truncated, _ = envs.step(action)
        returns[playing] += reward[playing]
        playing &= ~(terminated | truncated)
        if not playing.any():
            break
    else:
        print(f"evaluation  {playing.sum()} of {num_episodes} episodes unfinished after 100,000 steps", flush=True)
    envs.close()
    return returns.tolist()


def derive_seed(*key):
    """Return an independent seed for each key; trailing zeros are ignored: (1, 0) is (1,)."""
    return int(np.random.default_rng(key).integers(2**31))


def make_env(args, **options):
    """Make one environment without autoreset; raise RunError for spaces that a table cannot hold."""
    env = gym.make(args.env_id, **args.env_kwargs | options)
    if args.capture_video and "rgb_array" not in env.metadata.get("render_modes", []):
        raise RunError(f"--capture-video: {args.env_id} has no render mode rgb_array")
    for space in (env.observation_space, env.action_space):
        if not (isinstance(space, Discrete) and space.start == 0):
            found = " ".join(str(space).split())  # in one line
            raise RunError(f"--env-id {args.env_id}: needs Discrete spaces, counted from 0; it has {found}")
    if not env.spec.max_episode_steps:  # a greedy policy may loop forever
        env = gym.wrappers.TimeLimit(env, 1_000)
    env = gym.wrappers.TransformReward(env, float)  # NumPy float16 and float32 would round Q
    num_states = env.observation_space.n

    def to_state(obs):
        if getattr(obs, "shape", ()) == () and 0 <= obs < num_states and int(obs) == obs:
            return int(obs)
        raise RunError(f"the observation {obs!r} is not in the declared Discrete({num_states})")

    return gym.wrappers.TransformObservation(env, to_state, env.observation_space)


def as_module(q):
    """Wrap the table in a module, which save_checkpoint can write and load_checkpoint can fill."""
    table = nn.Module()
    table.register_buffer("q", torch.tensor(q, dtype=torch.float64))
    return table


def start_run(args, run_id):
    """Make the run folder and start W&B, or continue both from --resume -> (run, folder)."""
    new_id = secrets.token_hex(4)
    name = f"{args.env_id}__{SCRIPT}__{args.seed}__{new_id}".replace("/", "-").replace(":", "-")
    folder = Path(args.resume).resolve().parent if run_id else Path(args.run_dir, name)
    folder.mkdir(parents=True, exist_ok=True)
    if not os.environ.get("WANDB_MODE"):
        os.environ.pop("WANDB_MODE", None)  # W&B rejects a WANDB_MODE that is set but empty
    run = wandb.init(
        project=args.wandb_project,
        mode=args.wandb_mode,
        name=folder.name,
        id=run_id or new_id,
        resume="allow",
        config=vars(args),
        save_code=True,
    )
    run.define_metric("*", step_metric="global_step")
    print(f"{SCRIPT}  {args.env_id}  {getattr(args, 'device', 'cpu')}  {folder}", flush=True)
    return run, folder


def finishing(run, envs, save):
    """However the block ends, even by Ctrl-C, SIGTERM or an error: save, close the environments, finish the W&B run."""
    stack = contextlib.ExitStack()  # the last entry runs first, and each runs even if another one fails
    stack.push(lambda error, *_: run.finish(exit_code=int(error is not None)))
    stack.callback(envs.close)
    stack.callback(lambda: print(f"checkpoint  {save()}", flush=True))
    return stack


def log_progress(run, args, global_step, history, lengths, metrics):
    """Log the metrics and the means over the last 100 episodes to W&B, and a line to the terminal."""
    mean_return = np.mean([episode_return for _, episode_return in history[-100:]] or [np.nan])
    mean_length = np.mean(lengths or [np.nan])
    row = {name: torch.as_tensor(value).item() for name, value in metrics.items()}
    row |= {"charts/episodic_return": mean_return, "charts/episodic_length": mean_length, "global_step": global_step}
    run.log(row)
    speed = row["charts/SPS"]
    left = max(0, args.total_timesteps - global_step) / speed  # seconds
    print(f"step {global_step:11,}  return {mean_return:8.1f}  {speed:9,.0f} steps/s  {left:6.0f} s left", flush=True)


def log_evaluation(run, folder, agent, args, global_step):
    """Log the greedy policy's return and, with --capture-video, a video."""
    if args.eval_episodes:
        returns = evaluate(agent, args, args.eval_episodes)
        mean, std = np.mean(returns), np.std(returns)
        run.log({"eval/episodic_return": mean, "eval/episodic_return_std": std, "global_step": global_step})
        print(f"evaluation  return {mean:.1f} ± {std:.1f}  {len(returns)} greedy episodes", flush=True)
    if args.capture_video:
        evaluate(agent, args, 1, video_folder=folder / "video")
        run.log({"eval/video": wandb.Video(str(next(folder.glob("video/*.mp4")))), "global_step": global_step})


def save_checkpoint(folder, args, global_step, run_id, **modules):
    """Write FOLDER/checkpoint.pt atomically, with types that torch.load(weights_only=True) accepts -> its path."""
    checkpoint = {name: module.state_dict() for name, module in modules.items()}
    checkpoint |= {"script": SCRIPT, "flags": vars(args), "global_step": global_step, "run_id": run_id}
    buffer = io.BytesIO()
    torch.save(checkpoint, buffer)
    (folder / "checkpoint.tmp").write_bytes(buffer.getvalue())  # on a full disk the previous checkpoint stays
    os.replace(folder / "checkpoint.tmp", folder / "checkpoint.pt")
    return folder / "checkpoint.pt"


def load_checkpoint(path, **modules):
    """Read what save_checkpoint wrote and restore the modules -> the checkpoint; RunError if it does not fit."""
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        if checkpoint["script"] != SCRIPT:
            raise ValueError(f"it belongs to {checkpoint['script']}.py")
        for name, module in modules.items():
            module.load_state_dict(checkpoint[name])
    except Exception as error:  # an arbitrary file can fail in any way
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise RunError(f"--resume {path}: not a checkpoint of {SCRIPT}.py with these flags: {reason}") from None
    return checkpoint


class RunError(ValueError):
    """An error that the user can fix; the __main__ block prints it without a traceback."""


def number(kind, low, high=sys.maxsize):
    """Return an argparse type: an int or float from low to high."""

    def parse(text):
        if not low <= kind(text) <= high:
            bounds = f"at least {low}" if high == sys.maxsize else f"between {low} and {high}"
            raise argparse.ArgumentTypeError(f"{text} is not {bounds}")
        return kind(text)

    parse.__name__ = kind.__name__  # for argparse's own "invalid int value"
    return parse


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    sys.stdout.reconfigure(errors="replace")  # print ? where the terminal lacks γ
    try:
        train(parse_args())
    except KeyboardInterrupt:
        sys.exit(130)
    except (RunError, gym.error.Error, wandb.Error) as error:
        sys.exit(f"{SCRIPT}.py: error: {error}")
