# /// script
# requires-python = ">=3.11"
# dependencies = ["gymnasium[classic-control,other]>=1.3", "numpy>=1.26", "torch>=2.6", "wandb>=0.28"]
# ///
"""Tabular control: Q-learning, SARSA and expected SARSA; policy iteration where the environment's model is known.

Book     Sutton & Barto 2018, Reinforcement Learning, 2nd edition: eq. 6.7 to 6.9, section 4.3, section 2.6
Update   Q(s, a) <- Q(s, a) + α (target - Q(s, a))    after every step, with an action a from the ε-greedy policy
         q_learning      target = r + γ max_a' Q(s', a')              the value of the best next action, eq. 6.8
         sarsa           target = r + γ Q(s', a')                     of the next action that is really taken, eq. 6.7
         expected_sarsa  target = r + γ Σ_a' π(a'|s') Q(s', a')       of the ε-greedy policy on average, eq. 6.9
         The target is r alone if s' is terminal; where only a time limit ends the episode, it is as above.
         policy_iteration: solve V = r_π + γ P_π V, make π greedy in V, and again until V no longer rises
Departs  ε and α fall linearly; all choose a' before the update, as SARSA must; a time limit of 1,000 steps if none
Run      python tabular_q.py    python tabular_q.py --env-id CliffWalking-v1 --algorithm sarsa --gamma 1
Result   the greedy policy is the optimum, from all 300 starts, in 10 of 10 seeds; 7.9 s of training (an AMD EPYC)
"""

import argparse
import io
import math
import os
import random
import re
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

ARROWS = {"FrozenLakeEnv": "←↓→↑", "CliffWalkingEnv": "↑→↓←"}  # what the actions of a grid world mean, by its class


def parse_args(argv=None):
    """Flags -> argparse.Namespace; a value out of range ends the program with one line and exit code 2."""
    parser = argparse.ArgumentParser(fromfile_prefix_chars="@", formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.description = __doc__.splitlines()[0]
    add = parser.add_argument
    add("--env-id", default="Taxi-v4", help="Gymnasium id: discrete observations and actions, both counted from 0")
    add("--total-timesteps", type=number(int, 1), default=600_000, help="environment steps")
    add("--algorithm", default="q_learning", choices=["q_learning", "sarsa", "expected_sarsa", "policy_iteration"])
    add("--learning-rate", type=number(float, 0, 1), default=0.8, help="step size, falling linearly to 0, α")
    add("--gamma", type=number(float, 0, 1), default=0.99, help="discount γ")
    add("--epsilon-start", type=number(float, 0, 1), default=1.0, help="ε, the share of random actions, at first")
    add("--epsilon-end", type=number(float, 0, 1), default=0.05, help="ε at last")
    add("--epsilon-steps", type=number(int, 1), default=550_000, help="environment steps in which ε falls linearly")
    add("--initial-q", type=number(float, 0), default=0.0, help="Q at first; above all returns it makes greed explore")
    add("--seed", type=number(int, 0), default=1, help="seeds networks, environments and actions")
    add("--log-interval", type=number(int, 1), default=30_000, help="environment steps between logs and checkpoints")
    add("--eval-episodes", type=number(int, 0), default=20, help="greedy episodes after training; 0 for none")
    add("--capture-video", action="store_true", help="record a greedy episode as MP4")
    add("--resume", help="checkpoint.pt to go on from, with fresh episodes; one that is complete is only evaluated")
    add("--run-dir", default="runs", help="parent of the run folder, which holds the checkpoint and the video")
    add("--wandb-mode", default=os.environ.get("WANDB_MODE", "offline"), choices=["disabled", "offline", "online"])
    add("--wandb-project", default=os.environ.get("WANDB_PROJECT", "reference-rl"), help="W&B project")
    return parser.parse_args(argv)


def linear_schedule(start, end, duration, step):
    """From start at step 0 to end at step `duration`, and from there on."""
    return start + (end - start) * min(step / duration, 1)


def epsilon_greedy(q, epsilon, rng):
    """Q(s, ·), a list -> with probability ε any action, else a best one; which of several, chance decides."""
    if rng.random() < epsilon:
        return rng.randrange(len(q))
    best = max(q)
    return q.index(best) if q.count(best) == 1 else rng.choice([a for a, value in enumerate(q) if value == best])


def td_target(algorithm, reward, next_q, next_action, epsilon, terminated, gamma):
    """The target of the header; next_q is Q(s', ·), a list, next_action is a', epsilon that of the policy π."""
    if terminated:
        return reward
    if algorithm == "q_learning":
        return reward + gamma * max(next_q)
    if algorithm == "sarsa":
        return reward + gamma * next_q[next_action]
    return reward + gamma * ((1 - epsilon) * max(next_q) + epsilon * sum(next_q) / len(next_q))


def greedy_policy(q):
    """Q (num_states, num_actions) -> π(a|s) of the same shape: the best actions of a state, equally likely."""
    best = np.isclose(q, q.max(axis=1, keepdims=True), rtol=1e-11, atol=1e-11)  # equal but for rounding
    return best / best.sum(axis=1, keepdims=True)


def flat_model(transitions):
    """transitions[s][a], lists of (p, s', r, terminated) -> arrays s, a, p, s', r, terminated of all of them."""
    rows = [(s, a, *row) for s in range(len(transitions)) for a in transitions[s] for row in transitions[s][a]]
    s, a, p, next_s, r, terminated = np.array(rows, dtype=float).T
    return s.astype(int), a.astype(int), p, next_s.astype(int), r, terminated.astype(bool)


def policy_evaluation(transitions, policy, gamma):
    """V_π (num_states,), the exact solution of V = r_π + γ P_π V, eq. 4.4; NaN for γ = 1 if π may go on for ever."""
    num_states = len(transitions)
    s, a, p, next_s, r, terminated = flat_model(transitions)
    weight = policy[s, a] * p  # of each transition in its state, under the policy
    r_pi = np.bincount(s, weight * r, num_states)
    p_pi = np.zeros((num_states, num_states))  # of going on to the next state
    np.add.at(p_pi, (s, next_s), weight * ~terminated)
    ends = np.bincount(s, weight * terminated, num_states) > 0  # after a step, then after two, three, ...
    for _ in range(num_states if gamma == 1 else 0):
        ends |= p_pi @ ends > 0
    if gamma == 1 and not ends.all():
        return np.full(num_states, np.nan)
    return np.linalg.solve(np.eye(num_states) - gamma * p_pi, r_pi)


def action_values(transitions, values, gamma):
    """Q(s, a) = Σ p(s', r|s, a) (r + γ V(s')), eq. 4.6: (num_states,) -> (num_states, num_actions)."""
    s, a, p, next_s, r, terminated = flat_model(transitions)
    q = np.zeros((len(transitions), len(transitions[0])))
    np.add.at(q, (s, a), p * (r + gamma * values[next_s] * ~terminated))
    return q


def policy_iteration(transitions, gamma):
    """The optimal policy (num_states, num_actions) and its values (num_states,), section 4.3."""
    # Best actions share the probability: so, for γ = 1, a policy ends if the uniform one does and going on costs.
    policy, previous = np.full((len(transitions), len(transitions[0])), 1 / len(transitions[0])), -np.inf
    while True:
        values = policy_evaluation(transitions, policy, gamma)
        if not np.max(values - previous) > 1e-12 * max(1.0, abs(values).max()):  # but for rounding, or all NaN
            return policy, values
        policy, previous = greedy_policy(action_values(transitions, values, gamma)), values


def train(args):
    """Learn or solve, log, save, evaluate -> (Q, history): (num_states, num_actions), [(global_step, return), ...]."""
    env = make_env(args)
    q = [[args.initial_q] * int(env.action_space.n) for _ in range(env.observation_space.n)]  # lists beat small arrays
    start_step, run_id = load_checkpoint(args, q) if args.resume else (0, None)
    rng = random.Random(args.seed + start_step)  # a resumed run does not repeat its noise
    world = env.unwrapped  # the learners use no model, but the reports do
    has_model = hasattr(world, "P") and hasattr(world, "initial_state_distrib")
    optimal_values = policy_iteration(world.P, args.gamma)[1] if has_model else None
    if args.algorithm == "policy_iteration":
        if optimal_values is None or np.isnan(optimal_values).any():
            raise RunError("--algorithm policy_iteration: needs env.unwrapped.P and, for --gamma 1, episodes that end")
        q = action_values(world.P, optimal_values, args.gamma).tolist()

    history = []
    global_step = start_step
    state, _ = env.reset(seed=env_seed(args.seed, 0, start_step))
    action = rng.randrange(len(q[state]))
    run, folder = start_run(args, run_id, "cpu")
    start_time = time.perf_counter()
    try:
        while global_step < args.total_timesteps and args.algorithm != "policy_iteration":
            epsilon = linear_schedule(args.epsilon_start, args.epsilon_end, args.epsilon_steps, global_step)
            learning_rate = args.learning_rate * (1 - global_step / args.total_timesteps)

            # 1. Take one step, and choose the next one.
            next_state, reward, terminated, truncated, info = env.step(action)
            next_action = epsilon_greedy(q[next_state], epsilon, rng)
            global_step += 1

            # 2. Learn from it. Only a terminal state ends the sum of rewards: what the clock cuts would have gone on.
            target = td_target(args.algorithm, reward, q[next_state], next_action, epsilon, terminated, args.gamma)
            td_error = target - q[state][action]
            if not math.isfinite(td_error):
                raise RunError(f"the TD error is not finite: lower --learning-rate, or look for NaN in {args.env_id}")
            q[state][action] += learning_rate * td_error

            # 3. Go on to the next state or episode.
            state, action = next_state, next_action
            if terminated or truncated:
                history.append((global_step, float(info["episode"]["r"])))
                state, _ = env.reset()
                action = epsilon_greedy(q[state], epsilon, rng)

            # 4. Log and save.
            if global_step % args.log_interval == 0 or global_step == args.total_timesteps:
                speed = (global_step - start_step) / (time.perf_counter() - start_time)
                metrics = {"charts/epsilon": epsilon, "losses/td_error": td_error}
                metrics |= exact_values(env, q, optimal_values, args.gamma)
                log_progress(run, args, global_step, speed, history, env.length_queue, metrics)
                save_checkpoint(folder, args, global_step, run.id, q)

        print_policy(env, q, exact_values(env, q, optimal_values, args.gamma))
        log_evaluation(run, folder, np.array(q), args, global_step)
    finally:
        try:  # after Ctrl-C, SIGTERM or an environment's error, too: what has been learned is kept
            if global_step > start_step or args.algorithm == "policy_iteration":
                save_checkpoint(folder, args, global_step, run.id, q)
                print(f"checkpoint  {folder / 'checkpoint.pt'}  step {global_step:,}", flush=True)
        finally:
            env.close()
            run.finish(exit_code=int(sys.exc_info()[0] is not None))
    return np.array(q), history


def exact_values(env, q, optimal_values, gamma):
    """Exact mean value of an episode's start, of the greedy policy and of the best one; empty without a model."""
    if optimal_values is None:
        return {}
    values = policy_evaluation(env.unwrapped.P, greedy_policy(np.array(q)), gamma)
    start = env.unwrapped.initial_state_distrib
    return {"charts/greedy_value": float(start @ values), "charts/optimal_value": float(start @ optimal_values)}


def print_policy(env, q, exact):
    """Show the greedy policy of a grid world as arrows over its map, and what exact_values says."""
    world = env.unwrapped
    if type(world).__name__ in ARROWS:
        _, _, _, next_s, _, terminated = flat_model(world.P)
        cells = world.desc.astype(str) if hasattr(world, "desc") else np.full(world.shape, "·")  # the lake, the cliff
        for s in set(next_s[~terminated]):  # wherever one acts
            cells.flat[s] = ARROWS[type(world).__name__][np.argmax(q[s])]
        print(*(" ".join(row) for row in cells), sep="\n")
    if exact:
        print("greedy policy  exact value {:.4f}  optimum {:.4f}".format(*exact.values()), flush=True)


def evaluate(agent, args, num_episodes, video_folder=None):
    """Play greedy episodes of the Q-table side by side, away from training's seeds -> their returns, floats."""
    render = {"render_mode": "rgb_array"} if video_folder else {}
    envs = gym.vector.SyncVectorEnv([lambda: make_env(args, **render)] * num_episodes)
    if video_folder:
        envs = gym.wrappers.vector.RecordVideo(envs, str(video_folder), episode_trigger=lambda episode: episode == 0)
    state, _ = envs.reset(seed=env_seed(args.seed, 1))
    policy, rng = greedy_policy(agent), np.random.default_rng(args.seed)
    returns = np.zeros(num_episodes)
    playing = np.ones(num_episodes, bool)  # each environment counts for its first episode: more would favour short ones
    while playing.any():
        action = (policy[state] * rng.random(policy[state].shape)).argmax(-1)  # any of the best ones
        state, reward, terminated, truncated, _ = envs.step(action)
        returns[playing] += reward[playing]
        playing &= ~(terminated | truncated)
    envs.close()
    return returns.tolist()


def env_seed(*key):
    """A seed for environments, far from that of another key: Gymnasium counts up from it, one per environment."""
    return int(np.random.default_rng(key).integers(2**31))


def make_env(args, **render):
    """One environment, which is reset by hand; RunError if it does not fit."""
    env = gym.make(args.env_id, **render)
    if not env.spec.max_episode_steps:  # a greedy policy may go in circles
        env = gym.wrappers.TimeLimit(env, 1_000)
    spaces = env.observation_space, env.action_space
    if not all(isinstance(space, Discrete) and space.start == 0 for space in spaces):
        raise RunError(f"--env-id {args.env_id}: takes Discrete observations and actions, from 0, not {spaces}")
    return gym.wrappers.RecordEpisodeStatistics(env)


def start_run(args, run_id, device):
    """Make the run's folder and start W&B; with run_id both go on with those of --resume -> (run, folder)."""
    new_id = secrets.token_hex(4)
    name = f"{re.sub('[/:]', '-', args.env_id)}__{Path(__file__).stem}__{args.seed}__{new_id}"
    folder = Path(args.run_dir, name) if run_id is None else Path(args.resume).resolve().parent
    folder.mkdir(parents=True, exist_ok=True)
    where = {"project": args.wandb_project, "mode": args.wandb_mode, "name": folder.name}
    run = wandb.init(**where, id=run_id or new_id, resume="allow", config=vars(args) | {"torch": torch.__version__})
    run.define_metric("*", step_metric="global_step")
    print(f"{Path(__file__).name}  {args.env_id}  {device}  {folder}", flush=True)
    return run, folder


def log_progress(run, args, global_step, speed, history, lengths, metrics):
    """A row in W&B and a line in the terminal: means over the last 100 episodes, steps/s and the metrics."""
    returns = [episode_return for _, episode_return in history[-100:]]
    mean_return, mean_length = (np.mean(x or [np.nan]) for x in (returns, lengths))
    row = {"charts/episodic_return": mean_return, "charts/episodic_length": mean_length, "charts/SPS": speed}
    row |= {name: torch.as_tensor(value).item() for name, value in metrics.items()}
    run.log(row | {"global_step": global_step})
    left = max(0, args.total_timesteps - global_step) / speed
    print(f"step {global_step:11,}  return {mean_return:8.1f}  {speed:9,.0f} steps/s  {left:6.0f} s left", flush=True)


def log_evaluation(run, folder, agent, args, global_step):
    """The greedy policy's mean return and, if wanted, its video, to W&B and the terminal."""
    if args.eval_episodes:
        returns = evaluate(agent, args, args.eval_episodes)
        mean, std = np.mean(returns), np.std(returns)
        run.log({"eval/episodic_return": mean, "eval/episodic_return_std": std, "global_step": global_step})
        print(f"evaluation  return {mean:.1f} ± {std:.1f}  {len(returns)} greedy episodes", flush=True)
    if args.capture_video:
        evaluate(agent, args, 1, video_folder=folder / "video")
        run.log({"eval/video": wandb.Video(str(next(folder.glob("video/*.mp4")))), "global_step": global_step})


def save_checkpoint(folder, args, global_step, run_id, q):
    """Write FOLDER/checkpoint.pt, whole or not at all: tensors, numbers and strings, which torch.load deems safe."""
    checkpoint = {"agent": {"q": torch.tensor(q, dtype=torch.float64)}}
    checkpoint |= {"script": Path(__file__).stem, "flags": vars(args), "global_step": global_step, "run_id": run_id}
    buffer = io.BytesIO()
    torch.save(checkpoint, buffer)
    (folder / "checkpoint.tmp").write_bytes(buffer.getvalue())  # on a full disk an OSError, and the last one is kept
    os.replace(folder / "checkpoint.tmp", folder / "checkpoint.pt")


def load_checkpoint(args, q):
    """Restore what save_checkpoint wrote to args.resume -> (global_step, run_id)."""
    try:
        checkpoint = torch.load(args.resume, map_location="cpu", weights_only=True)
        if (checkpoint["script"], checkpoint["flags"]["env_id"]) != (Path(__file__).stem, args.env_id):
            raise ValueError("it is of another script or environment")
        q[:] = checkpoint["agent"]["q"].reshape(np.shape(q)).tolist()
        return checkpoint["global_step"], checkpoint["run_id"]
    except Exception as error:  # a file from anywhere can fail in any way
        raise RunError(f"--resume {args.resume}: no checkpoint of this script and network: {error!r:.200}") from None


class RunError(ValueError):
    """What the user can mend; the program ends with its text as one line."""


def number(kind, low, high=sys.maxsize):
    """An argparse type: an int or float from low to high."""

    def parse(text):
        if not low <= kind(text) <= high:
            raise argparse.ArgumentTypeError(f"{text} is not from {low} to {high}")
        return kind(text)

    parse.__name__ = kind.__name__  # for argparse's own "invalid int value"
    return parse


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        train(parse_args())
    except KeyboardInterrupt:
        sys.exit(130)
    except (RunError, ImportError, MemoryError, OSError, gym.error.Error, wandb.Error) as error:
        sys.exit(f"{Path(__file__).name}: error: {error}")
