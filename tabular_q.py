# /// script
# requires-python = ">=3.11"
# dependencies = ["gymnasium[classic-control,other]>=1.1", "numpy>=1.26", "torch>=2.6", "wandb>=0.23"]
# ///
"""Tabular control: Q-learning, SARSA and expected SARSA; policy iteration where the environment's model is known.

Book     Sutton & Barto 2018, Reinforcement Learning, 2nd edition: eq. 6.7 to 6.9, section 4.3, section 2.6
Update   Q(s, a) <- Q(s, a) + α (target - Q(s, a))    after every step, with an action a from the ε-greedy policy
         q_learning      target = r + γ max_a' Q(s', a')              the value of the best next action, eq. 6.8
         sarsa           target = r + γ Q(s', a')                     of the next action that is really taken, eq. 6.7
         expected_sarsa  target = r + γ Σ_a' π(a'|s') Q(s', a')       of the ε-greedy policy on average, eq. 6.9
         The target is r alone if s' is terminal; where only a time limit ends the episode, it is as above.
         policy_iteration: solve V = r_π + γ P_π V, make π greedy in V, and again until V no longer rises
Departs  ε and α fall linearly; an environment without a time limit gets one of MAX_EPISODE_STEPS
Run      python tabular_q.py    python tabular_q.py --env-id CliffWalking-v1 --algorithm sarsa --gamma 1
Result   the greedy policy is the optimum, from all 300 starts, in 10 of 10 seeds; 6.1 s of training (an AMD EPYC)
"""

import argparse
import collections
import datetime
import itertools
import math
import os
import random
import re
import signal
import sys
import tempfile
import textwrap
import time
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch
import wandb
from gymnasium.spaces import Discrete

MAX_EPISODE_STEPS = 1_000  # of CliffWalking, say, which knows no end: a greedy policy could walk in circles for ever
ARROWS = {"FrozenLakeEnv": "←↓→↑", "CliffWalkingEnv": "↑→↓←"}  # what the actions of a grid world mean, by its class


def parse_args(argv=None):
    """Flags -> argparse.Namespace; a value out of range ends the program with one line and exit code 2."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    add, switch = parser.add_argument, argparse.BooleanOptionalAction
    add("--env-id", default="Taxi-v4", help="Gymnasium id: discrete observations and actions, both counted from 0")
    add("--total-timesteps", type=number(int, 1, 10**15), default=600_000, help="environment steps")
    algorithms = ["q_learning", "sarsa", "expected_sarsa", "policy_iteration"]
    add("--algorithm", default="q_learning", choices=algorithms, help="policy_iteration takes no steps but the model")
    add("--learning-rate", type=number(float, 0, 1), default=0.8, help="step size α")
    add("--anneal-lr", action=switch, default=True, help="let the learning rate fall linearly to 0")
    add("--gamma", type=number(float, 0, 1), default=0.99, help="discount γ")
    add("--epsilon-start", type=number(float, 0, 1), default=1.0, help="ε, the share of random actions, at first")
    add("--epsilon-end", type=number(float, 0, 1), default=0.05, help="ε at last")
    add("--epsilon-steps", type=number(int, 1), default=550_000, help="environment steps in which ε falls linearly")
    add(
        "--initial-q",
        type=number(float, 0),
        default=0.0,
        help="Q at the start; above all returns it makes greed explore",
    )
    add("--seed", type=number(int, 0, 2**31 - 1), default=1, help="seeds networks, environments and actions")
    add("--log-interval", type=number(int, 1), default=30_000, help="environment steps between log lines")
    add("--eval-episodes", type=number(int, 0), default=20, help="greedy episodes after training; 0 for none")
    add("--capture-video", action="store_true", help="record the first evaluation episode as MP4")
    add("--checkpoint-interval", type=number(int, 0), default=100_000, help="steps between checkpoints; 0: at the end")
    add("--resume", help="checkpoint.pt to go on from, with fresh episodes; one that is complete is only evaluated")
    add("--run-dir", default="runs", help="parent of the run folder, which holds the checkpoint and the video")
    modes = ["disabled", "offline", "online"]
    add("--wandb-mode", default=os.environ.get("WANDB_MODE", "offline"), choices=modes, help="offline needs no account")
    add("--wandb-project", default=os.environ.get("WANDB_PROJECT", "reference-rl"), help="W&B project")
    args = parser.parse_args(argv)
    if args.capture_video and args.eval_episodes == 0:
        parser.error("argument --capture-video: records an evaluation episode, so --eval-episodes must not be 0")
    return args


def linear_schedule(start, end, duration, step):
    """From start at step 0 to end at step `duration`, and from there on."""
    return start + (end - start) * min(step / duration, 1)


def epsilon_greedy(q, epsilon, rng):
    """Q(s, ·), a list -> with probability ε any action, else a best one; which of several, chance decides."""
    if rng.random() < epsilon:
        return rng.randrange(len(q))
    best = max(q)
    if q.count(best) == 1:
        return q.index(best)
    return rng.choice([action for action, value in enumerate(q) if value == best])


def q_learning_target(reward, next_q, terminated, gamma):
    """r + γ max_a' Q(s', a'), eq. 6.8; next_q is Q(s', ·)."""
    return reward if terminated else reward + gamma * max(next_q)


def sarsa_target(reward, next_q, next_action, terminated, gamma):
    """r + γ Q(s', a'), eq. 6.7, of the action a' that is taken next."""
    return reward if terminated else reward + gamma * next_q[next_action]


def expected_sarsa_target(reward, next_q, epsilon, terminated, gamma):
    """r + γ Σ_a' π(a'|s') Q(s', a'), eq. 6.9, of the ε-greedy policy π."""
    if terminated:
        return reward
    return reward + gamma * ((1 - epsilon) * max(next_q) + epsilon * sum(next_q) / len(next_q))


def greedy_policy(q):
    """Q (num_states, num_actions) -> π(a|s) of the same shape: the best actions of a state, equally likely."""
    best = np.isclose(q, q.max(axis=1, keepdims=True), rtol=1e-11, atol=1e-11)  # equal but for rounding
    return best / best.sum(axis=1, keepdims=True)


def flat_model(transitions):
    """Arrays of all possible transitions: state, action, probability, next state, reward, terminated."""
    rows = [
        (state, action, *outcome)
        for state in range(len(transitions))
        for action in range(len(transitions[state]))
        for outcome in transitions[state][action]
    ]
    s, a, probability, next_s, reward, terminated = np.array(rows, dtype=float).T
    return s.astype(int), a.astype(int), probability, next_s.astype(int), reward, terminated.astype(bool)


def policy_evaluation(transitions, policy, gamma):
    """V_π (num_states,), the exact solution of V = r_π + γ P_π V, eq. 4.4.

    transitions[s][a] is a list of (probability, next_state, reward, terminated); policy is (num_states, num_actions)
    probabilities or (num_states,) actions. RunError for γ = 1 if the policy may go on for ever: V has no value then.
    """
    num_states, num_actions = len(transitions), len(transitions[0])
    policy = np.eye(num_actions)[policy] if np.ndim(policy) == 1 else np.asarray(policy)
    s, a, probability, next_s, reward, terminated = flat_model(transitions)
    weight = policy[s, a] * probability  # of each transition in its state, under the policy
    r = np.bincount(s, weight * reward, num_states)
    p = np.zeros((num_states, num_states))  # of going on to the next state
    np.add.at(p, (s, next_s), weight * ~terminated)
    if gamma == 1:
        ends = np.bincount(s, weight * terminated, num_states) > 0  # after a step, then after two, three, ...
        while (sooner_or_later := ends | (p @ ends > 0)).sum() > ends.sum():
            ends = sooner_or_later
        if not ends.all():
            raise RunError(f"--gamma 1: takes policies that always end; from state {ends.argmin()} it may not")
    return np.linalg.solve(np.eye(num_states) - gamma * p, r)


def action_values(transitions, values, gamma):
    """Q(s, a) = Σ p(s', r|s, a) (r + γ V(s')), eq. 4.6: (num_states,) -> (num_states, num_actions)."""
    s, a, probability, next_s, reward, terminated = flat_model(transitions)
    q = np.zeros((len(transitions), len(transitions[0])))
    np.add.at(q, (s, a), probability * (reward + gamma * values[next_s] * ~terminated))
    return q


def policy_iteration(transitions, gamma):
    """The optimal policy (num_states, num_actions) and its values (num_states,), section 4.3.

    Several best actions share the probability. So the policy stays one that ends if the uniform one does, and γ = 1 is
    fine; RunError where it is not: see policy_evaluation. It ends as V rises in every round, in steps above rounding.
    """
    policy = np.ones((len(transitions), len(transitions[0]))) / len(transitions[0])
    values = policy_evaluation(transitions, policy, gamma)
    while True:
        policy = greedy_policy(action_values(transitions, values, gamma))
        previous, values = values, policy_evaluation(transitions, policy, gamma)
        if (values - previous).max() <= 1e-12 * max(1.0, abs(values).max()):
            return policy, values


def train(args):
    """Learn or solve, log, save, evaluate -> (Q, history): (num_states, num_actions), [(global_step, return), ...]."""
    rng = random.Random(args.seed)
    env = make_env(args)
    q = [[args.initial_q] * int(env.action_space.n) for _ in range(env.observation_space.n)]  # lists beat small arrays
    visits = [0] * len(q)
    start_step, run_id = load_checkpoint(args, q, visits, rng) if args.resume is not None else (0, None)
    optimal_values = None  # unless there is a model: the learners do not use it, but the reports do
    if hasattr(env.unwrapped, "P") and hasattr(env.unwrapped, "initial_state_distrib"):
        _, optimal_values = policy_iteration(env.unwrapped.P, args.gamma)
    if args.algorithm == "policy_iteration":
        if optimal_values is None:
            raise RunError(f"--algorithm policy_iteration: needs a model, env.unwrapped.P, which {args.env_id} has not")
        q = action_values(env.unwrapped.P, optimal_values, args.gamma).tolist()

    history, recent = [], collections.deque(maxlen=100)  # of (global_step, return), of (return, length)
    global_step = logged_step = start_step
    episode_return, episode_length, td_errors = 0.0, 0, 0.0
    state, _ = env.reset(seed=env_seed(args.seed, 0, start_step))
    action = None  # not chosen yet
    folder, run = start_run(args, run_id, "cpu")
    start_time = time.perf_counter()
    try:
        while global_step < args.total_timesteps and args.algorithm != "policy_iteration":
            epsilon = linear_schedule(args.epsilon_start, args.epsilon_end, args.epsilon_steps, global_step)
            learning_rate = args.learning_rate * (1 - global_step / args.total_timesteps if args.anneal_lr else 1)

            # 1. Take one step.
            if action is None:
                action = epsilon_greedy(q[state], epsilon, rng)
            next_state, reward, terminated, truncated, _ = env.step(action)
            global_step += 1
            visits[state] += 1

            # 2. Learn from it.
            next_action = None
            if args.algorithm == "q_learning":
                target = q_learning_target(reward, q[next_state], terminated, args.gamma)
            elif args.algorithm == "expected_sarsa":
                target = expected_sarsa_target(reward, q[next_state], epsilon, terminated, args.gamma)
            else:  # SARSA learns from the next action, then takes it
                next_action = epsilon_greedy(q[next_state], epsilon, rng)
                target = sarsa_target(reward, q[next_state], next_action, terminated, args.gamma)
            td_error = target - q[state][action]
            if not math.isfinite(td_error):
                raise RunError(
                    f"step {global_step}: the TD error is not finite; try a lower --learning-rate, or look for NaN in "
                    f"what {args.env_id} returns"
                )
            q[state][action] += learning_rate * td_error

            # 3. Go on to the next state or episode.
            td_errors += abs(td_error)
            episode_return += reward
            episode_length += 1
            if terminated or truncated:
                history.append((global_step, float(episode_return)))
                recent.append((episode_return, episode_length))
                episode_return, episode_length = 0.0, 0
                state, _ = env.reset()
                action = None
            else:
                state, action = next_state, next_action

            # 4. Log and save.
            if global_step == args.total_timesteps or global_step % args.log_interval == 0:
                charts = {"charts/SPS": (global_step - start_step) / (time.perf_counter() - start_time)}
                charts |= {"charts/epsilon": epsilon, "charts/learning_rate": learning_rate}
                charts |= exact_gap(env, np.array(q), optimal_values, args.gamma)
                metrics = {"td_error": np.float64(td_errors / (global_step - logged_step))}  # mean |td_error|
                log_progress(run, args, global_step, recent, charts, metrics)
                td_errors, logged_step = 0.0, global_step
            if due(args.checkpoint_interval, global_step, 1):
                save_checkpoint(folder, args, q, visits, rng, global_step, run.id)

        save_checkpoint(folder, args, q, visits, rng, global_step, run.id)
        gap = exact_gap(env, np.array(q), optimal_values, args.gamma)
        run.log(gap | {"global_step": global_step})
        print_policy(env, np.array(q), visits, gap)
        if args.eval_episodes:
            log_evaluation(run, global_step, evaluate(np.array(q), args, folder), folder)
        print(f"checkpoint {folder / 'checkpoint.pt'}", flush=True)
    except (KeyboardInterrupt, SystemExit):
        save_checkpoint(folder, args, q, visits, rng, global_step, run.id)
        print(f"stopped at step {global_step:,}  checkpoint {folder / 'checkpoint.pt'}", flush=True)
        raise
    finally:
        env.close()
        run.finish(exit_code=int(sys.exc_info()[0] is not None))
    return np.array(q), history


def evaluate(agent, args, folder=None):
    """Play args.eval_episodes greedy episodes of the Q-table in a fresh environment, away from training's seeds.

    -> their returns. Several best actions of a state share the probability. --capture-video records the first episode
    into `folder` (args.run_dir if None).
    """
    if args.capture_video:
        env = record_video(with_limit(gym.make(args.env_id, render_mode="rgb_array")), folder or args.run_dir)
    else:
        env = with_limit(gym.make(args.env_id))
    policy, rng, returns = greedy_policy(agent), np.random.default_rng(args.seed), []
    for episode in range(args.eval_episodes):
        state, _ = env.reset(seed=env_seed(args.seed, 1, episode))
        episode_return, done = 0.0, False
        while not done:
            action = int(rng.choice(len(policy[state]), p=policy[state]))
            state, reward, terminated, truncated, _ = env.step(action)
            done = terminated or truncated
            episode_return += float(reward)
        returns.append(episode_return)
    env.close()
    return returns


def exact_gap(env, q, optimal_values, gamma):
    """Exact mean values of the start of an episode, of the greedy policy and of the best one; empty without a model.

    The first is NaN where γ = 1 and the greedy policy may go on for ever.
    """
    if optimal_values is None:
        return {}
    try:
        values = policy_evaluation(env.unwrapped.P, greedy_policy(q), gamma)
    except RunError:
        values = np.full(len(q), math.nan)
    start = env.unwrapped.initial_state_distrib
    return {"charts/greedy_value": float(start @ values), "charts/optimal_value": float(start @ optimal_values)}


def print_policy(env, q, visits, gap):
    """Show the greedy policy of a grid world as arrows over its map, else the most visited states; then exact_gap."""
    world = env.unwrapped
    if type(world).__name__ in ARROWS:
        _, _, _, next_s, _, terminated = flat_model(world.P)
        if hasattr(world, "desc"):  # a lake: its map has letters
            cells = world.desc.astype(str)
        else:
            cells = np.full(world.shape, "C")  # the cliff, where nobody stays
            cells.flat[next_s[terminated]] = "G"
        for s in {*next_s[~terminated], *np.flatnonzero(world.initial_state_distrib)}:  # wherever one acts
            cells.flat[s] = ARROWS[type(world).__name__][q[s].argmax()]
        print(*(" ".join(row) for row in cells), sep="\n")
    else:
        for s in sorted(np.flatnonzero(visits), key=lambda s: -visits[s])[:10]:
            print(f"state {s:4}  visits {visits[s]:8,}  Q" + "".join(f" {value:8.2f}" for value in q[s]))
    if gap:
        print(f"greedy policy  exact value {gap['charts/greedy_value']:.4f}  optimum {gap['charts/optimal_value']:.4f}")


def env_seed(*key):
    """A seed for environments, far from that of another key: Gymnasium counts up from it, one per environment."""
    return int(np.random.default_rng(key).integers(2**31))


def make_env(args):
    """The environment to train in; RunError if there is none of that name or it is not for this script."""
    try:
        env = with_limit(gym.make(args.env_id))
        if args.capture_video:  # a rehearsal: whatever is missing for a video shows now, not after training
            with tempfile.TemporaryDirectory() as folder:
                video_env = record_video(gym.make(args.env_id, render_mode="rgb_array"), folder)
                video_env.reset()
                video_env.close()
    except Exception as error:  # an environment can fail in any way
        raise RunError(f"--env-id {args.env_id}: {textwrap.shorten(str(error) or repr(error), 300)}") from None
    spaces = env.observation_space, env.action_space
    if not all(isinstance(space, Discrete) and space.start == 0 for space in spaces):
        spaces = textwrap.shorten(f"{spaces[0]} and {spaces[1]}", 300)
        raise RunError(f"--env-id {args.env_id}: takes Discrete observations and actions from 0 on, not {spaces}")
    return env


def with_limit(env):
    """The environment, whose episodes a time limit cuts: one of MAX_EPISODE_STEPS if it has none of its own."""
    return env if env.spec.max_episode_steps else gym.wrappers.TimeLimit(env, MAX_EPISODE_STEPS)


def record_video(env, folder):
    """The environment, which must render arrays, its first episode recorded as FOLDER/videos/eval-episode-0.mp4."""
    return gym.wrappers.RecordVideo(env, f"{folder}/videos", lambda episode: episode == 0, name_prefix="eval")


def start_run(args, run_id, device):
    """Make the run folder, start W&B (going on with run_id if given), print the header -> (folder, run)."""
    name = f"{re.sub('[/:]', '-', args.env_id)}__{Path(__file__).stem}__{args.seed}__{int(time.time())}"
    config = vars(args) | {"torch": torch.__version__, "gymnasium": gym.__version__}
    for folder in (Path(args.run_dir, name + "-again" * tries) for tries in itertools.count()):
        try:
            folder.mkdir(parents=True)
            break
        except FileExistsError:
            continue
        except OSError as error:
            raise RunError(f"--run-dir {args.run_dir}: {error.strerror}") from None
    try:
        same = {"id": run_id, "resume": "allow"} if run_id else {}
        run = wandb.init(project=args.wandb_project, name=folder.name, mode=args.wandb_mode, config=config, **same)
    except (wandb.Error, ValueError) as error:  # no API key, no network, a name that W&B refuses
        folder.rmdir()
        raise RunError(f"--wandb-mode {args.wandb_mode}: {textwrap.shorten(str(error), 300)}") from None
    run.define_metric("*", step_metric="global_step")
    threads = torch.get_num_threads()
    print(f"{Path(__file__).name}  {args.env_id}  device {device}  threads {threads}  {folder}", flush=True)
    return folder, run


def due(interval, global_step, batch_size):
    """Whether the last batch_size steps reached a multiple of interval; never for interval 0."""
    return interval > 0 and global_step % interval < batch_size


def log_progress(run, args, global_step, recent, charts, metrics):
    """A line in the terminal and a row in W&B; recent holds (return, length) of the last episodes."""
    mean_return, mean_length = np.mean(recent or [(math.nan, math.nan)], axis=0)
    row = {"charts/episodic_return": mean_return, "charts/episodic_length": mean_length, "global_step": global_step}
    run.log(row | charts | {f"losses/{name}": value.item() for name, value in metrics.items()})
    total, speed = args.total_timesteps, charts["charts/SPS"]
    print(
        f"step {global_step:{len(f'{total:,}')},} / {total:,} {global_step / total:5.0%}  return {mean_return:8.1f}  "
        f"{speed:9,.0f} steps/s  ETA {datetime.timedelta(seconds=round((total - global_step) / speed))}",
        flush=True,
    )


def log_evaluation(run, global_step, returns, folder):
    """Mean and deviation of the evaluation, and its video where there is one, to the terminal and W&B."""
    mean, std, video = np.mean(returns), np.std(returns), folder / "videos/eval-episode-0.mp4"
    print(f"evaluation  return {mean:.1f} ± {std:.1f}  {len(returns)} greedy episodes", flush=True)
    media = {"eval/video": wandb.Video(str(video), format="mp4")} if video.exists() else {}
    run.log(media | {"eval/episodic_return": mean, "eval/episodic_return_std": std, "global_step": global_step})


def save_checkpoint(folder, args, q, visits, rng, global_step, run_id):
    """Write FOLDER/checkpoint.pt, whole or not at all: tensors, numbers and strings, which torch.load deems safe."""
    checkpoint = {
        "script": Path(__file__).stem,
        "flags": vars(args),
        "global_step": global_step,
        "agent": {"q": torch.tensor(q, dtype=torch.float64), "visits": torch.tensor(visits)},
        "rng": rng.getstate(),
        "wandb_id": run_id,
    }
    torch.save(checkpoint, folder / "checkpoint.tmp")
    os.replace(folder / "checkpoint.tmp", folder / "checkpoint.pt")


def load_checkpoint(args, q, visits, rng):
    """Restore what save_checkpoint wrote to args.resume -> (global_step, W&B run id); RunError if it does not fit."""
    try:
        checkpoint = torch.load(args.resume, map_location="cpu", weights_only=True)
        script, flags, agent = checkpoint["script"], checkpoint["flags"], checkpoint["agent"]
        if script != Path(__file__).stem or flags["env_id"] != args.env_id:
            raise ValueError(f"of {script}.py, env_id {flags['env_id']}")
        if agent["q"].shape != (len(q), len(q[0])) or agent["visits"].shape != (len(q),):
            raise ValueError(f"Q of shape {tuple(agent['q'].shape)}, not {(len(q), len(q[0]))}")
        q[:], visits[:] = agent["q"].tolist(), agent["visits"].tolist()
        rng.setstate(checkpoint["rng"])
        return checkpoint["global_step"], checkpoint["wandb_id"]
    except Exception as error:  # a file from anywhere can fail in any way
        reason = textwrap.shorten(f"{type(error).__name__}: {error}", 150)
        raise RunError(f"--resume {args.resume}: no checkpoint of this script and environment ({reason})") from None


class RunError(ValueError):
    """What the user can mend; the program ends with its text as one line."""


class HelpFormatter(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """Keeps the docstring's lines and shows the defaults."""


def number(kind, low, high=math.inf):
    """An argparse type: a finite int or float from low to high."""

    def parse(text):
        try:
            if low <= kind(text) <= high and abs(kind(text)) < math.inf:
                return kind(text)
        except ValueError:
            pass
        raise argparse.ArgumentTypeError(f"takes {kind.__name__} from {low} to {high}, not {text}")

    return parse


def stop(signum, frame):
    """Unwind train, which saves and closes; a second signal does not cut that short."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(128 + signum)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
    try:
        train(parse_args())
    except (RunError, MemoryError) as error:
        print(f"{Path(__file__).name}: error: {error}", file=sys.stderr)
        sys.exit(2)
