# /// script
# requires-python = ">=3.11"
# dependencies = ["ale-py>=0.12", "gymnasium[classic-control,other]>=1.2.1", "numpy>=1.26", "torch>=2.6", "wandb>=0.28"]
# ///
"""GA3C: A3C with one network, usually on a GPU, that predicts for all agents and learns from them in batches.

Paper    Babaeizadeh et al. 2017 (arXiv:1611.06256), and its code, github.com/NVlabs/GA3C
Update   L = Σ_t [-log(π(a_t|s_t) + ε_log) (R_t - V(s_t)) + vf_coef (R_t - V(s_t))² - ent_coef H(π(·|s_t))]
         R_t = r_t + γ R_t+1 over up to num_steps steps of one episode; after the last step R is V of the state reached,
         or 0 if that state is terminal; R_t and the R_t - V(s_t) that weights the logarithm are constants
         one RMSProp step per batch
Queues   Agents send observations; a predictor answers all pending ones as one batch. Agents also send segments of up to
         num_steps steps; a trainer learns from all pending ones, at least min_batch_size segments, as one batch.
Lag      The weights being updated are charts/policy_lag updates newer than those that chose the action. By then its
         π may be tiny: ε_log keeps log π finite where π underflows to 0 (also in H), and removes the gradient of
         actions whose π is far below ε_log. It is added to π as in the paper; its code has max(π, ε_log).
Departs  one lock keeps prediction and training from overlapping (in the paper they run concurrently); a trainer takes
         all pending segments (its code's default is one) and computes V of a segment's last state itself, with the
         newest weights; an episode's last step counts (its code drops it); truncated episodes bootstrap, too;
         num_steps is 20 rather than 5; the step size is annealed; the gradient's norm is clipped; RMSProp is
         PyTorch's, with ε = 0.1 outside the square root and a mean square that starts at 0; the numbers of agents,
         predictors and trainers are fixed; tanh units for flat observations; Atari: no sticky actions, no FIRE at
         reset, up to 30 no-ops, each frame's mean subtracted, rewards clipped to ±1 for learning only
Run      python related/ga3c.py
         Threads and processes run freely, so a seed does not reproduce a run.
Result   CartPole-v1: greedy return 500.0 ± 0.0 (10 seeds)
"""

import argparse
import contextlib
import io
import json
import os
import queue
import re
import secrets
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import resource_tracker
from multiprocessing.connection import wait
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import gymnasium as gym
import numpy as np
import torch
import wandb
from gymnasium.spaces import Box, Discrete
from torch import multiprocessing, nn

SCRIPT = "ga3c"  # names run folders; stored in checkpoints


def parse_args(argv=None):
    """Parse the flags; a value out of range ends the program with exit code 2 and an error message."""
    parser = argparse.ArgumentParser(fromfile_prefix_chars="@", formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.description = __doc__.splitlines()[0]
    parser.convert_arg_line_to_args = lambda line: [line.strip()] if line.strip() else []  # @FILE may have blank lines
    parser.register("type", "JSON object", lambda text: dict(json.loads(text)))  # dict refuses other JSON values
    add = parser.add_argument
    device = "cuda" if torch.cuda.is_available() else "cpu"
    add("--env-id", default="CartPole-v1", help="Gymnasium id, ALE/GAME-v5, or MODULE:ID for your own environment")
    add("--env-kwargs", type="JSON object", default={}, help="environment options as JSON")
    add("--total-timesteps", type=number(int, 1), default=300_000, help="environment steps learned from, in total")
    add("--num-agents", type=number(int, 1), default=8, help="processes, each with its own environment")
    add("--num-predictors", type=number(int, 1), default=2, help="threads that answer observations with actions")
    add("--num-trainers", type=number(int, 1), default=2, help="threads that learn")
    add("--num-steps", type=number(int, 1), default=20, help="maximum number of steps per segment, the paper's t_max")
    add("--min-batch-size", type=number(int, 1), default=1, help="minimum number of segments per update")
    add("--learning-rate", type=number(float, 0), default=1e-3, help="RMSProp's step size η")
    add("--anneal-lr", action=argparse.BooleanOptionalAction, default=True, help="decay the step size linearly to 0")
    add("--rmsprop-decay", type=number(float, 0, 1), default=0.99, help="decay α of RMSProp's mean square")
    add("--rmsprop-eps", type=number(float, 1e-12), default=0.1, help="ε, added to RMSProp's square root")
    add("--gamma", type=number(float, 0, 1), default=0.98, help="discount γ")
    add("--vf-coef", type=number(float, 0), default=0.1, help="weight of the value loss")
    add("--ent-coef", type=number(float, 0), default=0.01, help="weight of the entropy bonus, the paper's β")
    add("--log-epsilon", type=number(float, 0, 1), default=1e-6, help="ε_log, added to π before its logarithm")
    add("--max-grad-norm", type=number(float, 0), default=40.0, help="clip the gradient's global norm to this")
    add("--seed", type=number(int, 0), default=1, help="seed of all random numbers")
    add("--device", default=device, help="where the network runs: cpu, cuda, cuda:N, mps")
    add("--log-interval", type=number(int, 1), default=10_000, help="environment steps between logs and checkpoints")
    add("--eval-episodes", type=number(int, 0), default=20, help="greedy episodes after training; 0 for none")
    add("--capture-video", action="store_true", help="record a greedy episode as MP4")
    add("--resume", help="checkpoint.pt to continue from, with its flags unless others are given")
    add("--run-dir", default="runs", help="folder for run folders, which hold checkpoint and video")
    modes = ["disabled", "offline", "online"]
    add("--wandb-mode", default=os.environ.get("WANDB_MODE") or "offline", choices=modes, help="online: upload runs")
    add("--wandb-project", default=os.environ.get("WANDB_PROJECT") or "reference-rl", help="W&B project")
    args = parser.parse_args(argv)
    try:
        torch.empty(0, device=args.device)  # fails if PyTorch lacks the device
    except (AssertionError, RuntimeError) as error:
        parser.error(f"argument --device: {str(error).splitlines()[0][:200]}")
    if args.resume is not None:  # continue with the run's own flags, except machine-specific ones and those given now
        flags = load_checkpoint(args.resume)["flags"]
        kept = flags.keys() - {"resume", "device", "run_dir", "wandb_mode", "wandb_project"}
        parser.set_defaults(**{name: flags[name] for name in kept})
        args = parser.parse_args(argv)
        if args.env_id != flags["env_id"]:
            parser.error(f"argument --resume: {args.resume} was trained on {flags['env_id']}, not on {args.env_id}")
    if game := re.fullmatch(r"(\w+)NoFrameskip-v\d", args.env_id):
        parser.error(f"argument --env-id: {args.env_id} is now called ALE/{game[1]}-v5")
    return args


class ActorCritic(nn.Module):
    """π(a|s) and V(s) on a shared body; initial weights are uniform in ±1 / √(number of inputs), like the authors'."""

    def __init__(self, obs_space, num_actions):
        super().__init__()
        self.image = len(obs_space.shape) == 3
        if self.image:
            layers = [nn.Conv2d(4, 16, 8, stride=4), nn.ReLU(), nn.Conv2d(16, 32, 4, stride=2), nn.ReLU()]
            layers += [nn.Flatten(), nn.Linear(32 * 9 * 9, 256), nn.ReLU()]
        else:
            layers = [nn.Linear(obs_space.shape[0], 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh()]
        num_features = 256 if self.image else 64
        self.body = nn.Sequential(*layers)
        self.actor = nn.Linear(num_features, num_actions)
        self.critic = nn.Linear(num_features, 1)

    def forward(self, obs):
        """(batch, *obs_shape), frames from 0 to 255 -> logits (batch, num_actions) and V(s), (batch,)."""
        if self.image:
            frames = obs / 255
            # Otherwise Pong's constant bright background soon kills many filters of the first layer.
            obs = frames - frames.mean((-2, -1), keepdim=True)
        features = self.body(obs)
        return self.actor(features), self.critic(features).squeeze(-1)


def n_step_returns(rewards, last_value, gamma):
    """Return R_t = r_t + γ R_t+1, backwards from the value of the state after the last step, as a list like rewards."""
    returns = []
    for reward in reversed(rewards):
        last_value = reward + gamma * last_value
        returns.append(last_value)
    return returns[::-1]


def ga3c_loss(logits, actions, values, returns, vf_coef, ent_coef, log_epsilon):
    """Compute the loss L of the module docstring, a sum, and metrics, which are means.

    logits are (batch, num_actions), the other tensors (batch,).
    """
    probs = logits.softmax(-1)
    log_probs = (probs + log_epsilon).log()
    log_prob = log_probs.gather(-1, actions.unsqueeze(-1)).squeeze(-1)
    entropy = -(probs * log_probs).sum(-1)
    advantages = returns - values
    policy_loss = -log_prob * advantages.detach()
    value_loss = advantages.square()
    loss = (policy_loss + vf_coef * value_loss - ent_coef * entropy).sum()
    metrics = {"policy_loss": policy_loss.mean(), "value_loss": value_loss.mean(), "entropy": entropy.mean()}
    metrics["explained_variance"] = 1 - advantages.detach().var(correction=0) / returns.var(correction=0)
    return loss, {f"losses/{name}": value for name, value in metrics.items()}


class Segment(NamedTuple):
    """Up to num_steps steps of one episode, which an agent sends to a trainer."""

    observations: np.ndarray  # one more than steps
    actions: np.ndarray
    rewards: list
    terminated: bool
    versions: list  # for each action, the number of updates before it was chosen
    statistics: dict | None  # return r and length l of the episode, if it has ended


def update(agent, optimizer, segments, args):
    """Take one gradient step on segments -> metrics."""
    # The last observations, of which only the value is needed, are the last rows of the batch.
    observations = [segment.observations[:-1] for segment in segments]
    observations += [segment.observations[-1:] for segment in segments]
    logits, values = agent(torch.as_tensor(np.concatenate(observations), device=args.device))
    last_values = values[-len(segments) :].tolist()
    returns = []
    for segment, last_value in zip(segments, last_values, strict=True):
        # Only a terminal state stops the bootstrap: a truncated episode would have continued.
        returns += n_step_returns(segment.rewards, 0.0 if segment.terminated else last_value, args.gamma)
    returns = torch.tensor(returns, device=args.device)
    actions = torch.as_tensor(np.concatenate([segment.actions for segment in segments]), device=args.device)
    logits, values = logits[: -len(segments)], values[: -len(segments)]
    loss, metrics = ga3c_loss(logits, actions, values, returns, args.vf_coef, args.ent_coef, args.log_epsilon)
    optimizer.zero_grad()
    loss.backward()
    grad_norm = nn.utils.clip_grad_norm_(agent.parameters(), args.max_grad_norm)
    if not grad_norm.isfinite():
        raise RunError(f"the gradient is not finite: lower --learning-rate, or look for NaN in {args.env_id}")
    optimizer.step()
    return metrics | {"losses/grad_norm": grad_norm}


def play(request_pipe, segment_pipe, rank, args, start_step):
    """An agent: step the environment forever with the actions that answer its requests, and send segments."""
    env = gym.wrappers.RecordEpisodeStatistics(make_env(args), stats_key="recorded_episode")
    obs, _ = env.reset(seed=derive_seed(args.seed, 0, start_step, rank))
    with env:
        while True:
            observations, actions, rewards, versions = [obs], [], [], []
            done = False
            while len(rewards) < args.num_steps and not done:
                request_pipe.send(obs)
                action, version = request_pipe.recv()
                obs, reward, terminated, truncated, info = env.step(action)
                done = terminated or truncated
                observations.append(obs)
                actions.append(action)
                rewards.append(float(np.sign(reward) if is_atari(args) else reward))
                versions.append(version)
            segment = Segment(
                observations=np.stack(observations),
                actions=np.array(actions, np.int64),
                rewards=rewards,
                terminated=terminated,
                versions=versions,
                statistics=info.pop("recorded_episode") if done else None,
            )
            segment_pipe.send(tuple(segment))  # in some debuggers this file's classes cannot be unpickled
            if done:
                obs, _ = env.reset()


def predict(request_pipes, agent, shared, args):
    """A predictor: answer all pending observations as one batch, until an agent ends."""
    while True:
        with shared.predictor_lock:  # one predictor at a time collects observations, while others compute
            ready = wait(request_pipes)
            observations = np.stack([pipe.recv() for pipe in ready])
        with shared.lock, torch.inference_mode():
            logits, _ = agent(torch.as_tensor(observations, device=args.device))  # (batch, num_actions)
            probs = logits.softmax(-1)  # actions are drawn like torch.multinomial, but NaN passes: update reports it
            actions = (probs / torch.empty_like(probs).exponential_()).argmax(-1).tolist()
            version = shared.num_updates
            shared.num_predictions += len(actions)
        for pipe, action in zip(ready, actions, strict=True):
            pipe.send((action, version))


class TrainerReport(NamedTuple):
    """What a trainer tells the main thread after each update."""

    global_step: int
    segments: list
    policy_lags: np.ndarray  # of all actions in the segments
    metrics: dict


def learn(segment_pipes, agent, optimizer, shared, reports, args):
    """A trainer: learn from all pending segments as one batch, and report, until training or an agent ends."""
    while True:
        segments = []
        with shared.trainer_lock:
            while len(segments) < args.min_batch_size:
                segments += [Segment(*pipe.recv()) for pipe in wait(segment_pipes)]
        with shared.lock:  # while the weights change, predictors wait, and so do other trainers
            if shared.global_step >= args.total_timesteps:
                return
            remaining = 1 - shared.global_step / args.total_timesteps if args.anneal_lr else 1.0
            optimizer.param_groups[0]["lr"] = args.learning_rate * remaining
            metrics = update(agent, optimizer, segments, args)
            metrics["charts/learning_rate"] = optimizer.param_groups[0]["lr"]
            policy_lags = shared.num_updates - np.concatenate([segment.versions for segment in segments])
            shared.num_updates += 1
            shared.global_step += len(policy_lags)
            reports.put(TrainerReport(shared.global_step, segments, policy_lags, metrics))


def train(args):
    """Train, log, save and evaluate -> (agent, history), history a list of (global_step, episode_return)."""
    torch.manual_seed(args.seed)
    env = make_env(args)
    env.reset()  # an observation of the wrong shape is reported here
    env.close()
    if not is_atari(args):
        torch.set_num_threads(1)  # one thread is faster than several for a network this small
    agent = ActorCritic(env.observation_space, int(env.action_space.n)).to(args.device)
    optimizer = torch.optim.RMSprop(agent.parameters(), args.learning_rate, args.rmsprop_decay, args.rmsprop_eps)
    checkpoint = load_checkpoint(args.resume, agent=agent, optimizer=optimizer) if args.resume else {}
    optimizer.param_groups[0] |= {"alpha": args.rmsprop_decay, "eps": args.rmsprop_eps}  # flags given now win
    start_step, run_id = checkpoint.get("global_step", 0), checkpoint.get("run_id")
    torch.manual_seed(derive_seed(args.seed, 2, start_step))  # a resumed run draws new noise
    shared = SimpleNamespace(  # by all threads
        global_step=start_step,
        num_updates=0,
        num_predictions=0,
        lock=threading.Lock(),  # for the network and the counts
        predictor_lock=threading.Lock(),  # for the pipes of requests
        trainer_lock=threading.Lock(),  # for the pipes of segments
    )
    history, lengths, policy_lags = [], [], []
    global_step = start_step
    next_log = start_step + args.log_interval
    workers = {}
    reports = queue.SimpleQueue()
    run, folder = start_run(args, run_id)

    def save():
        with shared.lock:
            return save_checkpoint(folder, args, shared.global_step, run.id, agent=agent, optimizer=optimizer)

    with ThreadPoolExecutor(args.num_predictors + args.num_trainers) as pool, finishing(run, workers, save):
        if start_step < args.total_timesteps:
            context = multiprocessing.get_context("spawn")  # fork can deadlock once torch has started threads
            for rank in range(args.num_agents):
                start_worker(workers, context, rank, args, start_step)
            request_pipes, segment_pipes = zip(*workers, strict=True)
            for pipe in request_pipes:
                pipe.poll(None)  # wait until each agent has asked for its first action
            futures = [pool.submit(predict, request_pipes, agent, shared, args) for _ in range(args.num_predictors)]
            for _ in range(args.num_trainers):
                futures.append(pool.submit(learn, segment_pipes, agent, optimizer, shared, reports, args))
            for future in futures:
                future.add_done_callback(lambda future: reports.put(future.exception()))  # None: it has finished
        start_time = time.perf_counter()
        while global_step < args.total_timesteps:
            report = next_report(reports, workers)
            global_step = report.global_step
            policy_lags.extend(report.policy_lags)
            for segment in report.segments:
                if segment.statistics:
                    history.append((global_step, float(segment.statistics["r"])))
                    lengths.append(segment.statistics["l"])
            if global_step >= min(next_log, args.total_timesteps):
                next_log += args.log_interval
                seconds = time.perf_counter() - start_time
                metrics = report.metrics | {"charts/policy_lag": np.mean(policy_lags)}  # since the last log
                policy_lags.clear()
                metrics["charts/SPS"] = (global_step - start_step) / seconds
                metrics["charts/PPS"] = shared.num_predictions / seconds  # predictions per second
                metrics["charts/TPS"] = shared.num_updates / seconds  # updates per second
                log_progress(run, args, global_step, history, lengths[-100:], metrics)
                save()

        end_workers(workers)
        log_evaluation(run, folder, agent, args, global_step)
    return agent, history


def next_report(reports, workers):
    """Wait for a trainer's next report; raise what a thread has raised, or RunError if an agent has ended."""
    report = reports.get()
    if isinstance(report, EOFError | OSError):  # a closed pipe: an agent has ended
        ended = wait([process.sentinel for process in workers.values()])
        for process in workers.values():
            if process.sentinel in ended:
                process.join()  # its exit code is not known before
                raise RunError(f"{process.name} died, exit code {process.exitcode}")  # -9 often means out of memory
    if isinstance(report, Exception):
        raise report
    return report


def start_worker(workers, context, rank, *worker_args):
    """Start an agent's process and add it to workers, a dict {(pipe of requests, pipe of segments): process}."""
    request_pipe, agent_request_pipe = context.Pipe()  # own pipes: a killed agent holds no lock that others need
    segment_pipe, agent_segment_pipe = context.Pipe(duplex=False)
    pipes = agent_request_pipe, agent_segment_pipe
    process = context.Process(target=run_worker, args=(*pipes, rank, *worker_args), name=f"agent {rank}", daemon=True)
    can_mask_signals = hasattr(signal, "pthread_sigmask")  # not on Windows
    if can_mask_signals:  # the agent inherits the mask: Ctrl-C is for the parent alone
        resource_tracker.ensure_running()  # started later, with the first agent, it would undo the mask
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    process.start()
    workers[request_pipe, segment_pipe] = process
    agent_request_pipe.close()  # now only the agent keeps these ends open, so its death closes the pipes
    agent_segment_pipe.close()
    if can_mask_signals:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def run_worker(*worker_args):
    """Run an agent's process; an error prints its traceback."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # unwinds the stack, which closes the environment
    threading.Thread(target=end_with_parent, daemon=True).start()
    try:
        play(*worker_args)
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # this process is about to end anyway


def end_with_parent():
    """Wait until the parent process has ended, even by SIGKILL, then end this process, whatever it is doing."""
    multiprocessing.parent_process().join()
    os._exit(1)


def end_workers(workers):
    """End all running processes: by SIGTERM, which lets them close their environments, then by SIGKILL."""
    for process in workers.values():
        process.terminate()
    for process in workers.values():
        process.join(3)
        process.kill()
        process.join()


def evaluate(agent, args, num_episodes, video_folder=None):
    """Play greedy episodes in parallel, with seeds that training does not use -> their returns, floats."""
    render = {"render_mode": "rgb_array"} if video_folder else {}
    envs = gym.vector.SyncVectorEnv([lambda: make_env(args, **render)] * num_episodes)
    envs.unwrapped._add_info = lambda infos, info, i: infos  # private hook; drop infos: some cannot be stacked
    if video_folder:
        # At most 1,000 frames, which are kept in memory.
        envs = gym.wrappers.vector.RecordVideo(envs, video_folder, episode_trigger=lambda n: n == 0, video_length=1_000)
    obs, _ = envs.reset(seed=derive_seed(args.seed, 1))
    returns = np.zeros(num_episodes)
    playing = np.ones(num_episodes, bool)  # only each environment's first episode: more would favour short ones
    for _ in range(100_000):  # without a time limit a greedy policy may loop forever
        with torch.inference_mode():
            logits, _ = agent(torch.as_tensor(obs, device=args.device))
            action = logits.argmax(-1).cpu().numpy()
        obs, reward, terminated, truncated, _ = envs.step(action)
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


def is_atari(args):
    """Return whether the environment is one of ALE's games."""
    return args.env_id.split(":")[-1].startswith("ALE/")


def make_env(args, **options):
    """Make one environment without autoreset; raise RunError if its spaces are not supported."""
    defaults = {}
    if is_atari(args):
        import ale_py  # only Atari needs it

        gym.register_envs(ale_py)
        defaults = {"frameskip": 1, "repeat_action_probability": 0.0}
    env = gym.make(args.env_id, **defaults | args.env_kwargs | options)
    if args.capture_video and "rgb_array" not in env.metadata.get("render_modes", []):
        raise RunError(f"--capture-video: {args.env_id} has no render mode rgb_array")
    discrete = isinstance(env.action_space, Discrete) and env.action_space.start == 0
    if not discrete or not env.observation_space.is_np_flattenable:  # no Sequence or Graph
        raise RunError(
            f"--env-id {args.env_id}: needs Discrete actions counted from 0, and observations other than Sequence or "
            f"Graph; it has {env.action_space} and {type(env.observation_space).__name__}"
        )
    if is_atari(args):
        env = gym.wrappers.AtariPreprocessing(env)  # 84x84 grey frames, frame skip 4, up to 30 no-ops
        env = gym.wrappers.FrameStackObservation(env, 4, padding_type="zero")
    else:
        if not (isinstance(env.observation_space, Box) and len(env.observation_space.shape) == 1):
            env = gym.wrappers.FlattenObservation(env)  # discrete observations become one-hot
        shape = env.observation_space.shape

        def copy(obs):  # some environments return the same array every time and overwrite it
            obs = np.array(obs, np.float32)
            if obs.shape != shape:
                raise RunError(f"--env-id {args.env_id}: observation of shape {obs.shape}, declared {shape}")
            return obs

        env = gym.wrappers.TransformObservation(env, copy, Box(-np.inf, np.inf, shape, np.float32))
    return env


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


def finishing(run, workers, save):
    """However the block ends, even by Ctrl-C, SIGTERM or an error: end the workers, save, finish the W&B run."""
    stack = contextlib.ExitStack()  # the last entry runs first, and each runs even if another one fails
    stack.push(lambda error, *_: run.finish(exit_code=int(error is not None)))
    stack.callback(lambda: print(f"checkpoint  {save()}", flush=True))
    stack.callback(end_workers, workers)
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
