# /// script
# requires-python = ">=3.11"
# dependencies = ["ale-py>=0.12.1", "gymnasium[classic-control,other]>=1.1", "numpy>=1.26", "torch>=2.6", "wandb>=0.23"]
# ///
"""A3C: asynchronous advantage actor-critic, in processes that share weights without locking them (Hogwild).

Paper    Mnih et al. 2016 (arXiv:1602.01783), Alg. S3, with RMSProp's statistics shared
Update   L = Σ_t [-log π(a_t|s_t) (R_t - V(s_t)) + vf_coef (R_t - V(s_t))² - ent_coef H(π(·|s_t))]
         R_t = r_t + γ R_t+1 over up to num_steps steps of one episode, from V(s) after the last, 0 if it is terminal
         g = αg + (1 - α)Δθ²    θ = θ - η Δθ / √(g + ε)    Δθ = ∇L, clipped; R and (R - V) before log π are constants
Workers  each copies θ, plays, and hands Δθ over while others do the same; with one worker a seed gives the same run
         again bit for bit, with more it does not. A checkpoint may hold weights of different moments of an update
Departs  an episode that a time limit cuts bootstraps from its last observation; greedy evaluation; tanh units and
         orthogonal weights for flat observations; no terminal at a lost life, sticky actions (Atari)
Run      python a3c.py
Result   greedy return 500.0 ± 0.0 (10 seeds), 11.5 s of training with 2 workers (2 cores of an AMD EPYC)
"""

import argparse
import collections
import datetime
import itertools
import math
import os
import re
import signal
import sys
import tempfile
import textwrap
import threading
import time
import traceback
from multiprocessing.connection import wait
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch
import wandb
from gymnasium.spaces import Box, Discrete
from torch import multiprocessing, nn
from torch.distributions import Normal


def parse_args(argv=None):
    """Flags -> argparse.Namespace; a value out of range ends the program with one line and exit code 2."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    add, switch = parser.add_argument, argparse.BooleanOptionalAction
    add("--env-id", default="CartPole-v1", help="id: discrete or continuous actions; flat observations or ALE/GAME-v5")
    add("--total-timesteps", type=number(int, 1, 10**15), default=200_000, help="environment steps, over all workers")
    add("--num-workers", type=number(int, 1, 1024), default=2, help="processes, each with an environment of its own")
    add("--num-steps", type=number(int, 1), default=20, help="most steps per update, the paper's t_max")
    add("--learning-rate", type=number(float, 0), default=1e-3, help="RMSProp's step size, the paper's η")
    add("--anneal-lr", action=switch, default=True, help="let the learning rate fall linearly to 0")
    add("--rmsprop-decay", type=number(float, 0, 1), default=0.99, help="decay of RMSProp's mean square g, α")
    add("--rmsprop-eps", type=number(float, 1e-12), default=1e-2, help="added to g under the root, ε")
    add("--shared-statistics", action=switch, default=True, help="one g for all workers, or each its own")
    add("--gamma", type=number(float, 0, 1), default=0.98, help="discount γ")
    add("--vf-coef", type=number(float, 0), default=0.1, help="weight of the value loss")
    add("--ent-coef", type=number(float, 0), default=0.01, help="weight of the entropy bonus, the paper's β")
    add("--max-grad-norm", type=number(float, 0), default=40.0, help="clip the global norm of the gradient to this")
    add("--lstm", action=switch, default=False, help="256 LSTM cells after the last hidden layer")
    add("--repeat-action-probability", type=number(float, 0, 1), default=0.25, help="Atari's sticky actions")
    add("--seed", type=number(int, 0, 2**31 - 1), default=1, help="seeds networks, environments and actions")
    add("--log-interval", type=number(int, 1), default=10_000, help="environment steps between log lines")
    add("--eval-episodes", type=number(int, 0), default=20, help="greedy episodes after training; 0 for none")
    add("--capture-video", action="store_true", help="record the first evaluation episode as MP4")
    add("--checkpoint-interval", type=number(int, 0), default=50_000, help="steps between checkpoints; 0: at the end")
    add("--resume", help="checkpoint.pt to go on from, with fresh episodes; one that is complete is only evaluated")
    add("--run-dir", default="runs", help="parent of the run folder, which holds the checkpoint and the video")
    modes = ["disabled", "offline", "online"]
    add("--wandb-mode", default=os.environ.get("WANDB_MODE", "offline"), choices=modes, help="offline needs no account")
    add("--wandb-project", default=os.environ.get("WANDB_PROJECT", "reference-rl"), help="W&B project")
    args = parser.parse_args(argv)
    if args.capture_video and args.eval_episodes == 0:
        parser.error("argument --capture-video: records an evaluation episode, so --eval-episodes must not be 0")
    return args


class ActorCritic(nn.Module):
    """π(a|s) and V(s) on one body; π is categorical for discrete actions, normal for continuous ones."""

    def __init__(self, obs_space, action_space, lstm):
        super().__init__()
        self.discrete = isinstance(action_space, Discrete)
        num_outputs = int(action_space.n) if self.discrete else action_space.shape[0]
        self.image = len(obs_space.shape) == 3
        if self.image:
            layers = [nn.Conv2d(4, 16, 8, stride=4), nn.ReLU(), nn.Conv2d(16, 32, 4, stride=2), nn.ReLU()]
            layers += [nn.Flatten(), nn.Linear(32 * 9 * 9, 256), nn.ReLU()]
        else:
            layers = [nn.Linear(obs_space.shape[0], 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh()]
        num_features = layers[-2].out_features
        self.body = nn.Sequential(*layers)
        self.lstm = nn.LSTM(num_features, 256) if lstm else None
        self.actor = nn.Linear(256 if lstm else num_features, num_outputs)
        self.critic = nn.Linear(256 if lstm else num_features, 1)
        linear = [layer for layer in layers if isinstance(layer, nn.Linear)]
        gains = [2**0.5] * len(linear) + [0.01, 1.0]  # 0.01: near-uniform at the start
        for layer, gain in zip([*linear, self.actor, self.critic], gains, strict=True):
            nn.init.orthogonal_(layer.weight, gain)
            nn.init.zeros_(layer.bias)
        if not self.discrete:
            self.log_std = nn.Parameter(torch.zeros(num_outputs))  # the same in all states

    def forward(self, observations, state=None):
        """(num_steps, *obs_shape), the LSTM's state before -> logits or means (num_steps, ...), values, state after."""
        features = self.body(observations / 255 if self.image else observations.float())  # (num_steps, num_features)
        if self.lstm is not None:
            features, state = self.lstm(features, state)  # None is the state of zeros with which an episode begins
        return self.actor(features), self.critic(features).squeeze(-1), state

    def sample(self, parameters):
        """Logits or means -> actions drawn from π(·|s): (...), int64, or (..., action_dim)."""
        if self.discrete:  # Gumbel-max: the largest logit after adding noise is a draw from softmax(logits)
            return (parameters - torch.empty_like(parameters).exponential_().log()).argmax(-1)
        return parameters + self.log_std.exp() * torch.randn_like(parameters)

    def greedy(self, parameters):
        """Logits or means -> the most probable actions."""
        return parameters.argmax(-1) if self.discrete else parameters

    def log_prob_and_entropy(self, parameters, actions):
        """Logits or means, actions -> log π(a|s) and H(π(·|s)), both (...)."""
        if self.discrete:
            log_probs = parameters.log_softmax(-1)
            log_prob = log_probs.gather(-1, actions.unsqueeze(-1)).squeeze(-1)
            return log_prob, -(log_probs.exp() * log_probs).sum(-1)
        normal = Normal(parameters, self.log_std.exp(), validate_args=False)
        return normal.log_prob(actions).sum(-1), normal.entropy().sum(-1)  # action dimensions are independent


def n_step_returns(rewards, last_value, gamma):
    """R_t = r_t + γ R_t+1, backwards from last_value, that of the state after the last step; lists of floats."""
    returns = []
    for reward in reversed(rewards):
        last_value = reward + gamma * last_value
        returns.append(last_value)
    return returns[::-1]


def a3c_loss(log_prob, entropy, values, returns, vf_coef, ent_coef):
    """L of the header, a sum as in Alg. S3 -> (loss, metrics, which are means); every tensor is (num_steps,)."""
    advantages = returns - values
    policy_loss = -(advantages.detach() * log_prob)
    value_loss = advantages**2
    loss = (policy_loss + vf_coef * value_loss - ent_coef * entropy).sum()
    return loss, {"policy_loss": policy_loss.mean(), "value_loss": value_loss.mean(), "entropy": entropy.mean()}


def one_vector(agent):
    """Make the agent's parameters views of one vector -> it; to copy or update them all is one operation."""
    parameters = list(agent.parameters())
    vector = torch.cat([p.detach().flatten() for p in parameters])
    for p, part in zip(parameters, vector.split([p.numel() for p in parameters]), strict=True):
        p.data = part.view_as(p)
    return vector


class SharedRMSprop:
    """The shared weights θ and statistics g, in shared memory from before the workers start, and RMSProp's step."""

    def __init__(self, agent, num_statistics, decay, eps):
        self.weights = one_vector(agent).share_memory_()  # (num_weights,)
        self.mean_square = torch.zeros(num_statistics, len(self.weights)).share_memory_()  # one row, or one a worker
        self.decay, self.eps = decay, eps

    def step(self, gradient, learning_rate, rank):
        """g = αg + (1 - α)Δθ²; θ = θ - η Δθ / √(g + ε): in place and without a lock, Δθ = gradient (num_weights,)."""
        g = self.mean_square[rank % len(self.mean_square)]
        g.mul_(self.decay).addcmul_(gradient, gradient, value=1 - self.decay)
        self.weights.addcdiv_(gradient, (g + self.eps).sqrt_(), value=-learning_rate)


def update(agent, optimizer, observations, state, actions, rewards, terminated, learning_rate, rank, args):
    """One step of the shared weights by the gradient at the local agent's -> metrics.

    observations has num_steps + 1 rows, all of one episode; state is the LSTM's before the first of them.
    """
    parameters, values, _ = agent(observations, state)  # (num_steps + 1, num_outputs), (num_steps + 1,)
    # Only a terminal state stops the bootstrap: an episode that the clock cut would have gone on.
    returns = n_step_returns(rewards, 0.0 if terminated else values[-1].item(), args.gamma)
    log_prob, entropy = agent.log_prob_and_entropy(parameters[:-1], actions)
    loss, metrics = a3c_loss(log_prob, entropy, values[:-1], torch.tensor(returns), args.vf_coef, args.ent_coef)
    # The hand-over, by value. backward adds to the local gradients, so these are what must be cleared: with the shared
    # agent's cleared in their place, as older scripts do, each update since torch 2.0 repeats all that went before.
    agent.zero_grad()
    loss.backward()
    gradient = torch.cat([p.grad.flatten() for p in agent.parameters()])
    norm = metrics["grad_norm"] = gradient.norm()
    if norm.isfinite():  # else the worker ends the run, and the shared weights have stayed good
        gradient *= (args.max_grad_norm / norm).clamp(max=1)
        optimizer.step(gradient, learning_rate, rank)
    return metrics


def worker(send, rank, args, optimizer, steps, start_step):
    """Alg. S3 in one process: play and learn until all workers together have played args.total_timesteps.

    steps counts what all have played, the paper's T, from start_step on. send reports to the parent: global_step, how
    many of its steps are new, the learning rate, (return, length) of an episode that has ended or None, the metrics.
    """
    env = make_env(args)
    agent = ActorCritic(env.observation_space, env.action_space, args.lstm)
    weights = one_vector(agent)
    seed = env_seed(args.seed, 0, start_step, rank)
    torch.manual_seed(seed)
    obs, _ = env.reset(seed=seed)
    state, episode_return, episode_length = None, 0.0, 0
    send((start_step, 0, 0.0, None, {}))  # ready
    try:
        while (global_step := steps.value) < args.total_timesteps:
            # 1. Copy the shared weights, as they are: others go on writing.
            weights.copy_(optimizer.weights)
            learning_rate = args.learning_rate * (1 - global_step / args.total_timesteps if args.anneal_lr else 1)

            # 2. Play up to num_steps steps, or to the end of the episode.
            num_steps, done = min(args.num_steps, args.total_timesteps - global_step), False
            first_state, observations, actions, rewards = state, [obs], [], []
            while len(rewards) < num_steps and not done:
                with torch.no_grad():  # which also detaches the LSTM's state, at the border of rollouts
                    parameters, _, state = agent(torch.as_tensor(obs).unsqueeze(0), state)  # (1, num_outputs)
                    action = agent.sample(parameters)[0].numpy()
                obs, reward, terminated, truncated, _ = env.step(env_action(action, env.action_space))
                done = terminated or truncated
                observations.append(obs)
                actions.append(action)
                rewards.append(float(np.sign(reward) if atari(args) else reward))  # Atari's clipped to ±1
                episode_return += float(reward)
                episode_length += 1

            # 3. Learn from them.
            rollout = torch.as_tensor(np.stack(observations)), first_state, torch.as_tensor(np.stack(actions)), rewards
            metrics = update(agent, optimizer, *rollout, terminated, learning_rate, rank, args)
            if not math.isfinite(metrics["grad_norm"]):
                raise RunError(
                    f"step {global_step + len(rewards)}: the loss is not finite; try a lower --learning-rate, or look "
                    f"for NaN in what {args.env_id} returns"
                )

            # 4. Count the steps, and report what there is.
            with steps.get_lock():
                steps.value += len(rewards)
                global_step = steps.value
            intervals = args.log_interval, args.checkpoint_interval, args.total_timesteps
            if done or any(due(interval, global_step, len(rewards)) for interval in intervals):
                episode = (episode_return, episode_length) if done else None
                metrics = {name: value.item() for name, value in metrics.items()}
                send((global_step, len(rewards), learning_rate, episode, metrics))
            if done:
                obs, _ = env.reset()
                state, episode_return, episode_length = None, 0.0, 0
    finally:
        env.close()


def train(args):
    """Train, log, save and evaluate -> (agent, history), history a list of (global_step, episode_return).

    The workers do the playing and learning; here their results are collected.
    """
    torch.manual_seed(args.seed)
    torch.set_num_threads(1)  # as in each worker
    agent = ActorCritic(*spaces(args), args.lstm)
    num_statistics = 1 if args.shared_statistics else args.num_workers
    optimizer = SharedRMSprop(agent, num_statistics, args.rmsprop_decay, args.rmsprop_eps)
    start_step, run_id = load_checkpoint(args, agent, optimizer) if args.resume is not None else (0, None)
    context = multiprocessing.get_context("spawn")  # as fork can deadlock once torch has started threads
    steps = context.Value("q", start_step)
    counter = steps.get_obj()  # to read without the lock, which a worker that is killed may hold for ever
    history, recent = [], collections.deque(maxlen=100)  # of (global_step, return), of (return, length)
    start_time, workers = None, {}
    folder, run = start_run(args, run_id, "cpu")
    try:
        for rank in range(args.num_workers if start_step < args.total_timesteps else 0):
            start_worker(workers, context, rank, args, optimizer, steps, start_step)
        for global_step, num_steps, learning_rate, episode, metrics in messages(workers):
            start_time = start_time or time.perf_counter()
            if episode:
                history.append((global_step, episode[0]))
                recent.append(episode)
            if due(args.total_timesteps, global_step, num_steps) or due(args.log_interval, global_step, num_steps):
                speed = (global_step - start_step) / (time.perf_counter() - start_time)
                charts = {"charts/SPS": speed, "charts/learning_rate": learning_rate}
                metrics = {name: np.float64(value) for name, value in metrics.items()}
                log_progress(run, args, global_step, recent, charts, metrics)
            if due(args.checkpoint_interval, global_step, num_steps):
                save_checkpoint(folder, args, agent, optimizer, counter.value, run.id)

        save_checkpoint(folder, args, agent, optimizer, counter.value, run.id)
        if args.eval_episodes:
            log_evaluation(run, counter.value, evaluate(agent, args, folder), folder)
        print(f"checkpoint {folder / 'checkpoint.pt'}", flush=True)
    except (KeyboardInterrupt, SystemExit):
        save_checkpoint(folder, args, agent, optimizer, counter.value, run.id)
        print(f"stopped at step {counter.value:,}  checkpoint {folder / 'checkpoint.pt'}", flush=True)
        raise
    finally:
        end_workers(workers)
        run.finish(exit_code=int(sys.exc_info()[0] is not None))
    return agent, history


def evaluate(agent, args, folder=None):
    """Play args.eval_episodes greedy episodes in fresh environments, away from training's seeds -> their returns.

    --capture-video records the first episode into `folder` (args.run_dir if None).
    """
    env = make_eval_env(args, folder or args.run_dir)
    returns = []
    for episode in range(args.eval_episodes):
        obs, _ = env.reset(seed=env_seed(args.seed, 1, episode))
        episode_return, done, state = 0.0, False, None
        while not done:
            with torch.inference_mode():
                parameters, _, state = agent(torch.as_tensor(obs).unsqueeze(0), state)
                action = agent.greedy(parameters)[0].numpy()
            obs, reward, terminated, truncated, _ = env.step(env_action(action, env.action_space))
            done = terminated or truncated
            episode_return += float(reward)
        returns.append(episode_return)
    env.close()
    return returns


def start_worker(workers, context, rank, *rest):
    """Start the process of a worker and add it to workers, a dict {pipe on which it reports: process}."""
    receiver, sender = context.Pipe(duplex=False)  # one a worker: no lock that others wait for if it is killed
    process = context.Process(target=run_worker, args=(sender, rank, *rest), name=f"worker {rank}", daemon=True)
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)  # inherited: Ctrl-C is for the parent alone
    process.start()
    signal.signal(signal.SIGINT, handler)
    workers[receiver] = process
    sender.close()  # the worker's is the only one: when the worker ends, however it ends, so does what it sends


def run_worker(sender, rank, *rest):
    """What the process of a worker does: to work, and to tell the parent of what went wrong."""
    signal.signal(signal.SIGTERM, stop)
    threading.Thread(target=end_with_parent, daemon=True).start()
    torch.set_num_threads(1)  # else the workers' threads fight for the cores
    message = None
    try:
        worker(sender.send, rank, *rest)
    except RunError as error:
        message = str(error)
    except Exception as error:  # an environment can fail in any way
        place = traceback.extract_tb(error.__traceback__)[-1]
        reason = textwrap.shorten(f"{type(error).__name__}: {error}", 300)
        message = f"worker {rank}: {reason} ({place.filename}, line {place.lineno})"
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # which the parent may send now, in the middle of Python's clean-up
    if message:
        sender.send(message)


def end_with_parent():
    """Wait for the parent's end, even by SIGKILL, and end this process, whatever it is doing."""
    multiprocessing.parent_process().join()
    os._exit(1)


def messages(workers):
    """What the workers send, as it comes, until all have ended; RunError if one fails or is killed."""
    running = dict(workers)
    while running:
        for receiver in wait(running):
            try:
                message = receiver.recv()
            except EOFError:
                process = running.pop(receiver)
                process.join()
                if process.exitcode:
                    raise RunError(
                        f"{process.name} died, exit code {process.exitcode}; -9 is often for want of memory"
                    ) from None
                continue
            if isinstance(message, str):
                raise RunError(message)
            yield message


def end_workers(workers):
    """End the processes that still run: SIGTERM, which lets them close their environments, then SIGKILL."""
    for process in workers.values():
        process.terminate()
    for process in workers.values():
        process.join(3)
        process.kill()
        process.join()


def env_seed(*key):
    """A seed for environments, far from that of another key: Gymnasium counts up from it, one per environment."""
    return int(np.random.default_rng(key).integers(2**31))


def env_action(action, space):
    """What the environment takes of the policy's action(s): clipped to a Box, counted from a Discrete's start."""
    return np.clip(action, space.low, space.high) if isinstance(space, Box) else action + space.start


def atari(args):
    """Whether --env-id names an Atari game."""
    return "ALE/" in args.env_id


def make_atari(args, num_envs):
    """Games stepped together by ALE, which makes the paper's (4, 84, 84) frames; rewards as the game gives them."""
    import ale_py  # here, as nothing else needs it

    gym.register_envs(ale_py)
    sticky = {"repeat_action_probability": args.repeat_action_probability}
    threads = min(num_envs, torch.get_num_threads())
    return gym.make_vec(args.env_id, num_envs=num_envs, reward_clipping=False, num_threads=threads, **sticky)


class Single(gym.Env):
    """The only one of a vector of environments, with the newest frame that it shows as its picture."""

    metadata, render_mode = {"render_modes": ["rgb_array"], "render_fps": 15}, "rgb_array"

    def __init__(self, envs):
        self.envs = envs
        self.observation_space, self.action_space = envs.single_observation_space, envs.single_action_space

    def reset(self, *, seed=None, options=None):
        self.obs, _ = self.envs.reset(seed=seed)
        return self.obs[0], {}

    def step(self, action):
        self.obs, *rest = self.envs.step(np.array([action]))
        return self.obs[0], *(x[0] for x in rest[:3]), {}

    def render(self):
        return np.repeat(self.obs[0, -1, :, :, None], 3, axis=-1)

    def close(self):
        self.envs.close()


def make_env(args, **render_mode):
    """One environment, which is reset by hand."""
    return Single(make_atari(args, 1)) if atari(args) else gym.make(args.env_id, **render_mode)


def make_eval_env(args, folder):
    """One environment to evaluate in."""
    return record_video(make_env(args, render_mode="rgb_array"), folder) if args.capture_video else make_env(args)


def spaces(args):
    """Observation and action space; RunError if there is no environment of that name or it is not for this script."""
    try:
        env = make_env(args)
        env.close()
        if args.capture_video:  # a rehearsal: whatever is missing for a video shows now, not after training
            with tempfile.TemporaryDirectory() as folder:
                video_env = make_eval_env(args, folder)
                video_env.reset()
                video_env.close()
    except Exception as error:  # an environment can fail in any way
        raise RunError(f"--env-id {args.env_id}: {textwrap.shorten(str(error) or repr(error), 300)}") from None
    obs_space, action_space = env.observation_space, env.action_space
    continuous = flat(action_space) and np.issubdtype(action_space.dtype, np.floating)
    if not ((flat(obs_space) or atari(args)) and (continuous or isinstance(action_space, Discrete))):
        given = textwrap.shorten(f"{obs_space} and {action_space}", 300)
        raise RunError(
            f"--env-id {args.env_id}: takes flat Box observations or Atari, Discrete or flat float Box actions, "
            f"not {given}"
        )
    return obs_space, action_space


def flat(space):
    """Whether a space is a Box of vectors."""
    return isinstance(space, Box) and len(space.shape) == 1


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


def save_checkpoint(folder, args, agent, optimizer, global_step, run_id):
    """Write FOLDER/checkpoint.pt, whole or not at all: tensors, numbers and strings, which torch.load deems safe."""
    checkpoint = {
        "script": Path(__file__).stem,
        "flags": vars(args),
        "global_step": global_step,
        "agent": agent.state_dict(),
        "optimizer": optimizer.mean_square,
        "wandb_id": run_id,
    }
    torch.save(checkpoint, folder / "checkpoint.tmp")
    os.replace(folder / "checkpoint.tmp", folder / "checkpoint.pt")


def load_checkpoint(args, agent, optimizer):
    """Restore what save_checkpoint wrote to args.resume -> (global_step, W&B run id); RunError if it does not fit."""
    try:
        checkpoint = torch.load(args.resume, map_location="cpu", weights_only=True)
        script, flags = checkpoint["script"], checkpoint["flags"]
        if script != Path(__file__).stem or flags["env_id"] != args.env_id:
            raise ValueError(f"of {script}.py, env_id {flags['env_id']}")
        agent.load_state_dict(checkpoint["agent"])
        optimizer.mean_square.copy_(checkpoint["optimizer"])
        return checkpoint["global_step"], checkpoint["wandb_id"]
    except Exception as error:  # a file from anywhere can fail in any way
        reason = textwrap.shorten(f"{type(error).__name__}: {error}", 150)
        raise RunError(
            f"--resume {args.resume}: no checkpoint of this script, environment and network ({reason})"
        ) from None


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
