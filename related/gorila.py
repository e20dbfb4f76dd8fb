# /// script
# requires-python = ">=3.11"
# dependencies = ["ale-py>=0.12", "gymnasium[classic-control,other]>=1.2.1", "numpy>=1.26", "torch>=2.6", "wandb>=0.28"]
# ///
"""Gorila: distributed DQN, with a parameter server and bundles of an actor, a replay buffer and a learner.

Paper    Nair et al. 2015 (arXiv:1507.04296), Alg. 1, in its bundled mode
Update   L = E[(y - Q(s,a))²] / 2 over a batch drawn uniformly from the bundle's own replay buffer
         y = r + γ max_a' Q⁻(s',a')    --double: y = r + γ Q⁻(s', argmax_a' Q(s',a'))    y = r if s' is terminal
         --loss huber: |δ| - 1/2 in place of δ²/2 where |δ| > 1, for δ = y - Q(s,a); y is a constant
Bundle   fetches the weights from the server, acts, and sends the gradient of L at these weights. It discards gradients
         whose loss exceeds the mean of its recent losses by more than outlier_stds standard deviations; where rewards
         are rare, increase outlier_stds, because the losses of steps with a reward are outliers, too. Every
         target_update_interval updates of the server it copies the weights that it has just fetched to Q⁻.
Server   makes one Adam step per gradient, in order of arrival, and drops gradients computed from weights that are more
         than max_gradient_delay updates old.
Faults   A bundle that dies does not stop the others; a machine disconnected in the middle of a message does.
         If the server's process dies, all bundles end.
Departs  TD errors are not clipped by default; Adam instead of AdaGrad, its step size annealed; one server, not sharded
         over machines; a bundle fetches the weights before it acts rather than between acting and learning; each actor
         steps several environments in parallel; the gradient's norm is clipped; truncated episodes bootstrap from their
         last observation. Components of flat observations with bounds below 1 are scaled to ±1; each frame's mean is
         subtracted. Atari: no sticky actions, no FIRE at reset, up to 30 no-ops, 4 stacked 84x84 grey frames; for
         learning only, rewards are clipped to ±1 and a lost life is terminal
Resume   the replay buffers are not saved: each bundle plays learning_starts steps before it learns again, and Q⁻
         starts as a copy of Q. With torchrun, every machine needs the checkpoint
Run      python related/gorila.py    with several bundles a seed does not reproduce a run
         On several machines (each runs num_bundles bundles, and training starts when all have connected), run this
         on each, with R = 0, 1, ...:
         torchrun --nnodes 2 --node-rank R --master-addr HOST_OF_RANK_0 --master-port 29500 related/gorila.py
Result   CartPole-v1: greedy return 500.0 ± 0.0 (10 seeds; one of three more runs ended at 414.1)
"""

import argparse
import contextlib
import copy
import io
import itertools
import json
import math
import os
import re
import secrets
import signal
import sys
import threading
import time
from collections import deque
from functools import partial
from multiprocessing import AuthenticationError, resource_tracker
from multiprocessing.connection import Client, Listener, wait
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch
import wandb
from gymnasium.spaces import Box, Discrete
from torch import distributed as dist
from torch import multiprocessing, nn
from torch.nn import functional as F

SCRIPT = "gorila"  # names run folders; stored in checkpoints


def parse_args(argv=None):
    """Parse the flags; a value out of range ends the program with exit code 2 and an error message."""
    parser = argparse.ArgumentParser(fromfile_prefix_chars="@", formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.description = __doc__.splitlines()[0]
    parser.convert_arg_line_to_args = lambda line: [line.strip()] if line.strip() else []  # @FILE may have blank lines
    parser.register("type", "JSON object", lambda text: dict(json.loads(text)))  # dict refuses other JSON values
    add = parser.add_argument
    add("--env-id", default="CartPole-v1", help="Gymnasium id, ALE/GAME-v5, or MODULE:ID for your own environment")
    add("--env-kwargs", type="JSON object", default={}, help="environment options as JSON")
    add("--total-timesteps", type=number(int, 1), default=100_000, help="environment steps, summed over bundles")
    add("--num-bundles", type=number(int, 1), default=2, help="processes that act and learn, on each machine")
    add("--num-envs", type=number(int, 1), default=4, help="environments per bundle, stepped together")
    add("--learning-rate", type=number(float, 0), default=1e-3, help="Adam's step size η")
    add("--anneal-lr", action=argparse.BooleanOptionalAction, default=True, help="decay the step size linearly to 0")
    add("--max-gradient-delay", type=number(int, 0), default=20, help="drop gradients more than this many updates late")
    add("--outlier-stds", type=number(float, 0), default=6.0, help="drop gradients of losses this many σ above average")
    add("--gamma", type=number(float, 0, 1), default=0.99, help="discount γ")
    add("--buffer-size", type=number(int, 1), default=100_000, help="transitions per bundle; 7 KB each for Atari")
    add("--batch-size", type=number(int, 1), default=128, help="transitions per gradient")
    add("--learning-starts", type=number(int, 0), default=1_000, help="a bundle's steps before its first gradient")
    add("--train-interval", type=number(int, 1), default=4, help="a bundle's steps between gradients")
    add("--target-update-interval", type=number(int, 1), default=60, help="updates of the server between copies to Q⁻")
    add("--epsilon-start", type=number(float, 0, 1), default=1.0, help="initial ε, the probability of a random action")
    add("--epsilon-end", type=number(float, 0, 1), default=0.05, help="final ε")
    add("--epsilon-steps", type=number(int, 1), default=10_000, help="environment steps over which ε decays linearly")
    add("--double", action="store_true", help="double DQN: select a' by Q, evaluate it by Q⁻")
    add("--dueling", action="store_true", help="dueling networks: Q = V + A - mean A")
    add("--network", default="nature", choices=["nips", "nature"], help="for frames: nips has 2 convolutions, nature 3")
    add("--hidden-sizes", type=number(int, 1), nargs="+", default=[256, 256], help="layers for flat observations")
    add("--loss", default="squared", choices=["squared", "huber"], help="huber: clip the TD error's gradient to ±1")
    add("--max-grad-norm", type=number(float, 0), default=10.0, help="clip the gradient's global norm to this")
    add("--terminal-on-life-loss", action=argparse.BooleanOptionalAction, default=True, help="a lost life is terminal")
    add("--seed", type=number(int, 0), default=1, help="seed of all random numbers")
    add("--device", default="cpu", help="where the networks run: cpu, cuda, cuda:N, mps")
    add("--log-interval", type=number(int, 1), default=2_000, help="environment steps between logs and checkpoints")
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
    if args.buffer_size < 2 * args.num_envs:
        parser.error("argument --buffer-size: must hold at least two steps of every environment")
    return args


class QNetwork(nn.Module):
    """Q(s,·): an MLP for flat observations, convolutions for (4, 84, 84) frames; Q = V + A - mean A with dueling."""

    def __init__(self, obs_space, num_actions, network, hidden_sizes, dueling):
        super().__init__()
        if len(obs_space.shape) == 1:
            # Components with bounds below 1 are scaled to ±1: MountainCar's velocities are within ±0.07.
            bound = np.maximum(abs(obs_space.low), abs(obs_space.high))
            bound[(bound == 0) | (bound > 1)] = 1
            self.register_buffer("bound", torch.as_tensor(bound, dtype=torch.float32), persistent=False)
            layers = [*mlp(obs_space.shape[0], *hidden_sizes), nn.ReLU()]
            head_sizes = [hidden_sizes[-1]]
        elif network == "nips":
            layers = [nn.Conv2d(4, 16, 8, stride=4), nn.ReLU(), nn.Conv2d(16, 32, 4, stride=2), nn.ReLU(), nn.Flatten()]
            head_sizes = [32 * 9 * 9, 256]
        else:
            layers = [nn.Conv2d(4, 32, 8, stride=4), nn.ReLU(), nn.Conv2d(32, 64, 4, stride=2), nn.ReLU()]
            layers += [nn.Conv2d(64, 64, 3), nn.ReLU(), nn.Flatten()]
            head_sizes = [64 * 7 * 7, 512]
        self.body = nn.Sequential(*layers)
        self.advantage = mlp(*head_sizes, num_actions)  # without dueling these are the Q values themselves
        self.value = mlp(*head_sizes, 1) if dueling else None

    def forward(self, obs):
        """(batch, *obs_shape), frames as uint8 -> Q values (batch, num_actions)."""
        obs = obs.float()
        if obs.ndim == 2:
            obs = obs / self.bound
        else:
            obs = obs / 255
            # Otherwise Pong's constant bright background soon kills many filters of the first layer.
            obs = obs - obs.mean((-2, -1), keepdim=True)
        features = self.body(obs)
        advantage = self.advantage(features)
        if self.value is None:
            return advantage
        return self.value(features) + advantage - advantage.mean(-1, keepdim=True)


def mlp(*sizes):
    """Make linear layers of these sizes, with ReLUs between them."""
    layers = []
    for size_in, size_out in itertools.pairwise(sizes):
        layers += [nn.Linear(size_in, size_out), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class ReplayBuffer:
    """The last transitions of environments stepped in parallel: a ring buffer with one row per vector step.

    Each observation is stored once: row t + 1 holds the next observation of row t. Of stacked frames, obs_shape
    (num_stack, height, width), only the newest is stored; sample takes the older ones from earlier rows.
    """

    def __init__(self, capacity, num_envs, obs_shape, dtype, rng):
        self.obs_shape, self.rng = obs_shape, rng
        self.num_stack, frame_shape = (obs_shape[0], obs_shape[1:]) if len(obs_shape) == 3 else (1, obs_shape)
        # One extra row for the newest observation, and num_stack - 1 for the older frames of the oldest transition.
        shape = math.ceil(capacity / num_envs) + self.num_stack, num_envs
        # np.full touches the memory, np.zeros does not: a machine with too little fails now, not after hours.
        self.frames = np.full((*shape, *frame_shape), 0, dtype)
        self.actions = np.zeros(shape, np.int64)
        self.rewards = np.zeros(shape, np.float32)
        self.terminations, self.is_transition = np.zeros(shape, bool), np.zeros(shape, bool)
        self.row = 0  # of the newest observation
        self.num_rows = 0  # earlier rows that can be sampled

    def reset(self, obs):
        """Store the environments' first observations, (num_envs, *obs_shape)."""
        self.frames[self.row] = obs[:, -1] if self.num_stack > 1 else obs
        self.is_transition[self.row] = True

    def add(self, action, reward, terminated, done, next_obs):
        """Store a step of all environments; every array is (num_envs, ...)."""
        self.actions[self.row] = action
        self.rewards[self.row] = reward
        self.terminations[self.row] = terminated
        self.row = (self.row + 1) % len(self.frames)
        self.num_rows = min(self.num_rows + 1, len(self.frames) - self.num_stack)
        self.frames[self.row] = next_obs[:, -1] if self.num_stack > 1 else next_obs
        self.is_transition[self.row] = ~done  # the step after done only resets: its action is ignored

    def sample(self, batch_size):
        """Draw transitions uniformly -> observations, actions, rewards, terminations, next observations."""
        rows, envs = self.sample_indices(batch_size)
        while (is_reset := ~self.is_transition[rows, envs]).any():  # draw again
            rows[is_reset], envs[is_reset] = self.sample_indices(is_reset.sum())
        ages = np.arange(self.num_stack - 1, -2, -1)  # in rows, oldest frame first; -1 is next_obs's newest frame
        frames = self.frames[(rows[:, None] - ages) % len(self.frames), envs[:, None]]  # (batch, num_stack + 1, ...)
        same_episode = np.ones(batch_size, bool)
        for age in range(1, self.num_stack):  # zeros for frames from before the episode's first observation
            same_episode &= self.is_transition[(rows - age) % len(self.frames), envs]
            frames[~same_episode, self.num_stack - 1 - age] = 0
        observations = frames[:, :-1].reshape(-1, *self.obs_shape)
        next_observations = frames[:, 1:].reshape(-1, *self.obs_shape)
        actions, rewards, terminations = (x[rows, envs] for x in (self.actions, self.rewards, self.terminations))
        return observations, actions, rewards, terminations, next_observations

    def sample_indices(self, size):
        """Draw rows and environments uniformly from all rows before the newest; some may be resets."""
        rows = (self.row - 1 - self.rng.integers(self.num_rows, size=size)) % len(self.frames)
        return rows, self.rng.integers(self.frames.shape[1], size=size)


def linear_schedule(start, end, duration, step):
    """Interpolate from start at step 0 to end at step `duration`; constant afterwards."""
    return start + (end - start) * min(step / duration, 1)


def td_target(rewards, next_q_values, next_online_q_values, terminations, gamma):
    """Return the target y; next_q_values is Q⁻(s',·), next_online_q_values Q(s',·) or, without --double, None."""
    if next_online_q_values is None:
        next_values = next_q_values.amax(-1)
    else:
        next_actions = next_online_q_values.argmax(-1, keepdim=True)
        next_values = next_q_values.gather(-1, next_actions).squeeze(-1)
    return rewards + gamma * next_values * ~terminations  # a truncated episode would have continued


def dqn_loss(q_values, actions, targets, loss):
    """Compute the loss L of the module docstring from Q(s,·), (batch, num_actions) -> (loss, metrics)."""
    q_value = q_values.gather(-1, actions.unsqueeze(-1)).squeeze(-1)  # Q(s,a), (batch,)
    td_loss = F.huber_loss(q_value, targets) if loss == "huber" else F.mse_loss(q_value, targets) / 2
    return td_loss, {"losses/td_loss": td_loss, "losses/q_value": q_value.mean()}


def compute_gradient(q_network, target_network, batch, args):
    """Compute the gradient of the loss on a batch of transitions, as one vector -> (gradient, metrics)."""
    observations, actions, rewards, terminations, next_observations = batch
    with torch.no_grad():
        next_q_values = target_network(next_observations)
        next_online_q_values = q_network(next_observations) if args.double else None
        targets = td_target(rewards, next_q_values, next_online_q_values, terminations, args.gamma)
    loss, metrics = dqn_loss(q_network(observations), actions, targets, args.loss)
    q_network.zero_grad()
    loss.backward()
    gradient = torch.cat([p.grad.flatten() for p in q_network.parameters()])
    return gradient.cpu().numpy(), {name: value.item() for name, value in metrics.items()}


def is_outlier(loss, recent_losses, num_stds):
    """Return whether loss exceeds the mean of recent_losses, once full, by more than num_stds standard deviations."""
    if len(recent_losses) < recent_losses.maxlen:
        return False
    limit = np.mean(recent_losses) + num_stds * np.std(recent_losses)
    return bool(loss > limit)  # False for NaN, which the server reports


def apply_gradient(weights, optimizer, gradient, args):
    """Apply a bundle's gradient to the server's weights, both vectors -> the gradient's norm before clipping."""
    weights.grad = torch.as_tensor(gradient, device=weights.device)
    grad_norm = nn.utils.clip_grad_norm_([weights], args.max_grad_norm)
    if not grad_norm.isfinite():
        raise RunError(f"the gradient is not finite: lower --learning-rate, or look for NaN in {args.env_id}")
    optimizer.step()
    return grad_norm


def flatten_parameters(agent):
    """Make all parameters views of one vector, so that copying or updating them is one operation -> the vector."""
    vector = nn.utils.parameters_to_vector(agent.parameters()).detach()
    nn.utils.vector_to_parameters(vector, agent.parameters())
    return vector


def act_and_learn(exchange, bundle, start_step, args):
    """Run Alg. 1 in one bundle until its process is ended.

    exchange sends a gradient and a report to the server -> its weights and counters.
    """
    envs = gym.wrappers.vector.RecordEpisodeStatistics(make_envs(args, args.num_envs), stats_key="statistics")
    obs_space, num_actions = envs.single_observation_space, int(envs.single_action_space.n)
    q_network = QNetwork(obs_space, num_actions, args.network, args.hidden_sizes, args.dueling).to(args.device)
    target_network = copy.deepcopy(q_network).requires_grad_(False)
    weights, target_weights = flatten_parameters(q_network), flatten_parameters(target_network)
    recent_losses = deque(maxlen=100)
    local_step = next_gradient = 0  # environment steps of this bundle
    num_copies = 0  # to Q⁻
    with contextlib.closing(envs):
        no_gradient = np.zeros(0, np.float32)
        server_weights, counts = exchange(no_gradient, steps=0, episodes=[], metrics={}, outlier=False)
        rng = np.random.default_rng(derive_seed(args.seed, 2, start_step, bundle))  # a resumed run draws new noise
        dtype = np.uint8 if obs_space.dtype == np.uint8 else np.float32
        buffer = ReplayBuffer(args.buffer_size, args.num_envs, obs_space.shape, dtype, rng)
        obs, infos = envs.reset(seed=derive_seed(args.seed, 0, start_step, bundle))
        lives = infos.get("lives", 0)  # Atari's
        buffer.reset(obs)
        while True:
            # 1. Copy the server's weights and, every target_update_interval updates, refresh the target network.
            weights.copy_(torch.as_tensor(server_weights))
            if counts["num_updates"] >= num_copies * args.target_update_interval:  # all bundles at about the same time
                num_copies = counts["num_updates"] // args.target_update_interval + 1
                target_weights.copy_(weights)

            # 2. Act ε-greedily for train_interval steps, and store the transitions.
            epsilon = linear_schedule(args.epsilon_start, args.epsilon_end, args.epsilon_steps, counts["global_step"])
            first_step, episodes = local_step, []
            next_gradient += args.train_interval
            while local_step < next_gradient:
                action = rng.integers(num_actions, size=args.num_envs)
                greedy = rng.random(args.num_envs) >= epsilon
                if greedy.any():
                    with torch.inference_mode():
                        q_values = q_network(torch.as_tensor(obs.astype(dtype), device=args.device))  # (num_envs, ...)
                    action[greedy] = q_values.argmax(-1).cpu().numpy()[greedy]
                # When done, the observation is the episode's last one: a truncated episode bootstraps from its value.
                obs, reward, terminated, truncated, infos = envs.step(action)
                done = terminated | truncated
                local_step += args.num_envs
                for i in np.flatnonzero(done):
                    episodes.append([float(infos["statistics"]["r"][i]), int(infos["statistics"]["l"][i])])
                if is_atari(args):
                    reward = np.sign(reward)
                if is_atari(args) and args.terminal_on_life_loss:
                    terminated = terminated | (infos.get("lives", 0) < lives)  # for the learner: the game continues
                    lives = infos.get("lives", 0)
                buffer.add(action, reward, terminated, done, obs)

            # 3. Send the gradient at these weights, unless its loss is an outlier.
            gradient, metrics, outlier = no_gradient, {}, False
            if local_step >= args.learning_starts:
                batch = [torch.as_tensor(x, device=args.device) for x in buffer.sample(args.batch_size)]
                gradient, metrics = compute_gradient(q_network, target_network, batch, args)
                loss = metrics["losses/td_loss"]
                outlier = is_outlier(loss, recent_losses, args.outlier_stds)
                recent_losses.append(loss)
            server_weights, counts = exchange(
                no_gradient if outlier else gradient,
                version=counts["num_updates"],
                steps=local_step - first_step,
                episodes=episodes,
                metrics=metrics | {"charts/epsilon": epsilon},
                outlier=outlier,
            )


def train(args):
    """Train, log, save and evaluate -> (agent, history), history a list of (global_step, episode_return).

    This process is the parameter server; the bundles are processes of their own. On several machines torchrun starts
    one such process on each: the first is the server, the others only start their machine's bundles -> (None, []).
    """
    torch.manual_seed(args.seed)
    torch.set_num_threads(1)  # the other cores are for the bundles
    envs = make_envs(args, 1)
    envs.close()
    obs_space, num_actions = envs.single_observation_space, int(envs.single_action_space.n)
    q_network = QNetwork(obs_space, num_actions, args.network, args.hidden_sizes, args.dueling).to(args.device)
    weights = flatten_parameters(q_network)
    optimizer = torch.optim.Adam([weights], lr=args.learning_rate, fused=True)
    checkpoint = load_checkpoint(args.resume, agent=q_network, optimizer=optimizer) if args.resume else {}
    start_step, run_id = checkpoint.get("global_step", 0), checkpoint.get("run_id")
    workers = {}
    store, machine, num_machines = None, 0, 1
    if dist.is_torchelastic_launched():  # by torchrun
        store, machine, num_machines = next(dist.rendezvous("env://"))
    if machine > 0:
        help_server(workers, store, machine, start_step, args)
        return None, []
    global_step, start_time = start_step, None
    next_log = start_step + args.log_interval
    num_updates = 0
    history, lengths, metrics = [], [], {}
    delays, num_outliers = [], 0  # of the gradients since the last log
    connections = {}  # {connection: bundle}, of all machines
    run, folder = start_run(args, run_id)

    def save():
        return save_checkpoint(folder, args, global_step, run.id, agent=q_network, optimizer=optimizer)

    with finishing(run, workers, save):
        for bundle in range(args.num_bundles):
            connection, bundle_connection = multiprocessing.Pipe()
            connections[connection] = bundle
            start_bundle(workers, bundle_connection, bundle, start_step, args)
        if num_machines > 1:
            connections |= accept(store, (num_machines - 1) * args.num_bundles)
        messages = receive_messages(connections)
        while global_step < args.total_timesteps:
            connection, gradient, report = next(messages)
            start_time = start_time or time.perf_counter()  # starting the processes does not count

            # 1. Apply the gradient, unless it is from weights that are too old.
            remaining = 1 - global_step / args.total_timesteps if args.anneal_lr else 1.0
            optimizer.param_groups[0]["lr"] = args.learning_rate * remaining
            if len(gradient):
                delays.append(num_updates - report["version"])
                if delays[-1] <= args.max_gradient_delay:
                    metrics["losses/grad_norm"] = apply_gradient(weights, optimizer, gradient, args)
                    num_updates += 1
            metrics |= report["metrics"]
            num_outliers += report["outlier"]
            global_step += report["steps"]
            history += [(global_step, episode_return) for episode_return, _ in report["episodes"]]
            lengths += [length for _, length in report["episodes"]]

            # 2. Answer with the new weights.
            with contextlib.suppress(OSError):  # the bundle has died, which receive_messages notices
                connection.send((weights.cpu().numpy(), {"num_updates": num_updates, "global_step": global_step}))

            # 3. Log and save.
            if global_step >= min(next_log, args.total_timesteps):
                next_log += args.log_interval
                seconds = time.perf_counter() - start_time
                metrics["charts/gradient_delay"] = np.mean(delays or [np.nan])
                metrics["charts/stale_gradients"] = sum(delay > args.max_gradient_delay for delay in delays)
                metrics["charts/outlier_gradients"] = num_outliers
                metrics["charts/SPS"] = (global_step - start_step) / seconds
                metrics["charts/TPS"] = num_updates / seconds  # updates per second
                metrics["charts/learning_rate"] = optimizer.param_groups[0]["lr"]
                delays, num_outliers = [], 0
                log_progress(run, args, global_step, history, lengths[-100:], metrics)
                save()

        end_workers(workers)
        for connection in connections:  # the bundles of other machines end now, not after the evaluation
            connection.close()
        log_evaluation(run, folder, q_network, args, global_step)
    return q_network, history


def start_bundle(workers, connection, bundle, start_step, args):
    """Start a bundle's process, hand it its connection to the server, and add it to workers, a dict {bundle: process}.

    torchrun must not start bundles itself: when one of its processes dies, it kills the others.
    """
    context = multiprocessing.get_context("spawn")  # fork can deadlock once torch has started threads
    process = context.Process(target=run_bundle, args=(connection, bundle, start_step, args), daemon=True)
    can_mask_signals = hasattr(signal, "pthread_sigmask")  # not on Windows
    if can_mask_signals:  # the bundle inherits the mask: Ctrl-C is for the parent alone
        resource_tracker.ensure_running()  # started later, with the first bundle, it would undo the mask
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    process.start()
    workers[bundle] = process
    connection.close()  # now only the bundle keeps this end open, so its death closes the connection
    if can_mask_signals:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def run_bundle(connection, bundle, start_step, args):
    """Run a bundle's process: act and learn until this process is ended, or the server has ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # unwinds the stack, which closes the environments
    threading.Thread(target=end_after_parent, daemon=True).start()
    torch.set_num_threads(1)  # otherwise the bundles' threads compete for cores

    def exchange(gradient, **report):
        try:
            connection.send((gradient, report))
            return connection.recv()
        except (EOFError, OSError):
            sys.exit(f"bundle {bundle}: the connection to the parameter server has ended")

    act_and_learn(exchange, bundle, start_step, args)


def end_after_parent():
    """Wait until the parent process has ended, even by SIGKILL, then end this process, even if it hangs."""
    multiprocessing.parent_process().join()
    time.sleep(3)  # long enough for a bundle that responds to notice, and to close its environments
    os._exit(1)


def accept(store, number):
    """Wait until all bundles of the other machines have connected -> {connection: bundle}."""
    key, connections = secrets.token_bytes(16), {}
    with Listener(("", 0), backlog=number, authkey=key) as listener:  # all addresses of this machine, any free port
        port = listener.address[1]
        store.set("key", key)
        store.set("port", str(port))
        print(f"waiting for {number} bundles of other machines on port {port}", flush=True)
        while len(connections) < number:
            with contextlib.suppress(AuthenticationError, EOFError, OSError):  # not a bundle
                connection = listener.accept()
                connections[connection] = connection.recv()
    return connections


def help_server(workers, store, machine, start_step, args):
    """Run this machine's bundles, connected to the server on the first machine, until all have ended."""
    key = store.get("key")  # waits for the server
    address = os.environ["MASTER_ADDR"], int(store.get("port"))
    try:
        for bundle in range(machine * args.num_bundles, (machine + 1) * args.num_bundles):
            connection = Client(address, authkey=key)
            connection.send(bundle)
            start_bundle(workers, connection, bundle, start_step, args)
        for worker in workers.values():
            worker.join()
    finally:
        end_workers(workers)


def receive_messages(connections):
    """Yield (connection, gradient, report) as the bundles send them; RunError once no bundle is left."""
    running = dict(connections)
    while True:
        for connection in wait(running):
            try:
                gradient, report = connection.recv()
            except (EOFError, OSError):  # the bundle has ended
                bundle = running.pop(connection)
                if not running:
                    raise RunError(f"bundle {bundle} died, and no other is left") from None
                print(f"bundle {bundle} died, {len(running)} left", flush=True)
                continue
            yield connection, gradient, report


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
    envs = make_envs(args, num_episodes, **render)
    if video_folder:
        # At most 1,000 frames, which are kept in memory.
        envs = gym.wrappers.vector.RecordVideo(envs, video_folder, episode_trigger=lambda n: n == 0, video_length=1_000)
    obs, _ = envs.reset(seed=derive_seed(args.seed, 1))
    returns = np.zeros(num_episodes)
    playing = np.ones(num_episodes, bool)  # only each environment's first episode: more would favour short ones
    for _ in range(100_000):  # without a time limit a greedy policy may loop forever
        with torch.inference_mode():
            q_values = agent(torch.as_tensor(obs, dtype=torch.float32, device=args.device))
            action = q_values.argmax(-1).cpu().numpy()
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


def make_envs(args, num_envs, **options):
    """Make environments that step in parallel and reset one step after an episode ends; RunError if unsupported."""
    if is_atari(args):
        envs = make_atari(args, num_envs, **options)
    else:
        envs = gym.make_vec(args.env_id, num_envs=num_envs, **args.env_kwargs | options)
        envs.unwrapped._add_info = lambda infos, info, i: infos  # private hook; drop infos: some cannot be stacked
    if args.capture_video and not is_atari(args) and "rgb_array" not in envs.metadata.get("render_modes", []):
        raise RunError(f"--capture-video: {args.env_id} has no render mode rgb_array")
    obs_space, action_space = envs.single_observation_space, envs.single_action_space
    autoreset = envs.metadata.get("autoreset_mode")
    discrete = isinstance(action_space, Discrete) and action_space.start == 0
    flattenable = obs_space.is_np_flattenable  # no Sequence or Graph
    if not discrete or not flattenable or autoreset != gym.vector.AutoresetMode.NEXT_STEP:
        raise RunError(
            f"--env-id {args.env_id}: needs Discrete actions counted from 0, observations other than Sequence or "
            f"Graph, and AutoresetMode.NEXT_STEP; it has {action_space}, {type(obs_space).__name__} and {autoreset}"
        )
    if not (is_atari(args) or (isinstance(obs_space, Box) and len(obs_space.shape) == 1)):
        envs = gym.wrappers.vector.FlattenObservation(envs)  # discrete observations become one-hot
    return envs


def is_atari(args):
    """Return whether the environment is one of ALE's games."""
    return args.env_id.split(":")[-1].startswith("ALE/")


def make_atari(args, num_envs, **options):
    """Make Atari games with (4, 84, 84) uint8 observations; ALE steps them or, when rendered, Gymnasium does."""
    import ale_py  # only Atari needs it

    gym.register_envs(ale_py)
    options = {"repeat_action_probability": 0.0} | args.env_kwargs | options
    if "render_mode" not in options:
        threads = min(num_envs, torch.get_num_threads())
        return gym.make_vec(
            args.env_id, num_envs, reward_clipping=False, use_fire_reset=False, num_threads=threads, **options
        )
    stack_frames = partial(gym.wrappers.FrameStackObservation, stack_size=4, padding_type="zero")
    wrappers = [gym.wrappers.AtariPreprocessing, stack_frames]
    return gym.make_vec(args.env_id, num_envs, "sync", wrappers=wrappers, frameskip=1, **options)


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
