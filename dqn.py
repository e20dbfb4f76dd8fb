# /// script
# requires-python = ">=3.11"
# dependencies = ["ale-py>=0.12.1", "gymnasium[classic-control,other]>=1.1", "numpy>=1.26", "torch>=2.6", "wandb>=0.23"]
# ///
"""DQN: deep Q-learning with experience replay and a target network.

Papers   Mnih et al. 2015 (doi:10.1038/nature14236), Alg. 1; --double: van Hasselt et al. 2016 (arXiv:1509.06461);
         --dueling: Wang et al. 2016 (arXiv:1511.06581), eq. 9
Update   L = E[huber(y - Q(s,a))] over a batch drawn uniformly from the replay buffer    an Adam step each, ∇L clipped
         y = r + γ max_a' Q⁻(s',a')    --double: y = r + γ Q⁻(s', argmax_a' Q(s',a'))    y = r if s' is terminal
         y is a constant; Q⁻ is Q as it was at the last multiple of target_update_interval
Departs  Adam, annealed, for RMSProp; environments stepped together; an episode that a time limit cuts bootstraps from
         its last observation; the target is copied every so many environment steps, not updates; the TD error is not
         clipped (--huber-delta 1 for the paper's, made for Atari's clipped rewards); numbers bounded by less than 1 are
         stretched to ±1; evaluation with ε = 0. Atari: no terminal at a lost life, sticky actions; --pixels stacks 4
         pictures, where a difference of two would hold the same motion
Resume   goes on with an empty replay buffer: learning waits for learning_starts further steps
Run      python dqn.py    python dqn.py --double --dueling --exponential-epsilon
Result   greedy return 500.0 ± 0.0 (10 seeds), 8.5 s of training (2 cores of an AMD EPYC)
"""

import argparse
import collections
import copy
import datetime
import itertools
import math
import os
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
from gymnasium.spaces import Box, Discrete
from gymnasium.vector import AutoresetMode
from torch import nn
from torch.nn import functional as F


def parse_args(argv=None):
    """Flags -> argparse.Namespace; a value out of range ends the program with one line and exit code 2."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    add, switch = parser.add_argument, argparse.BooleanOptionalAction
    add("--env-id", default="CartPole-v1", help="Gymnasium id: discrete actions; flat observations or ALE/GAME-v5")
    add(
        "--total-timesteps",
        type=number(int, 1, 10**15),
        default=640_000,
        help="environment steps, summed over environments",
    )
    add("--num-envs", type=number(int, 1), default=128, help="environments stepped together")
    add("--learning-rate", type=number(float, 0), default=4e-3, help="Adam's step size")
    add("--anneal-lr", action=switch, default=True, help="let the learning rate fall linearly to 0")
    add("--gamma", type=number(float, 0, 1), default=0.995, help="discount γ")
    add("--buffer-size", type=number(int, 1), default=640_000, help="transitions in the replay buffer, the paper's N")
    add("--batch-size", type=number(int, 1), default=256, help="transitions per gradient step")
    add("--learning-starts", type=number(int, 0), default=1_000, help="environment steps before the first update")
    add("--train-interval", type=number(int, 1), default=128, help="environment steps between updates")
    add("--gradient-steps", type=number(int, 1), default=1, help="gradient steps per update")
    add("--target-update-interval", type=number(int, 1), default=1_920, help="environment steps between copies to Q⁻")
    add("--epsilon-start", type=number(float, 0, 1), default=1.0, help="ε, the share of random actions, at first")
    add("--epsilon-end", type=number(float, 0, 1), default=0.1, help="ε at last")
    add("--epsilon-steps", type=number(int, 1), default=128_000, help="environment steps in which ε falls linearly")
    add("--exponential-epsilon", action="store_true", help="let ε fall exponentially, with epsilon_steps as constant")
    add("--double", action=switch, default=False, help="choose a' by Q, value it by Q⁻")
    add("--dueling", action=switch, default=False, help="Q = V + A - mean A")
    add("--hidden-sizes", type=number(int, 1, 9999), nargs="+", default=[128, 128], help="layers for flat observations")
    add("--huber-delta", type=number(float, 1e-6), default=1_000.0, help="TD error beyond which the loss is linear, δ")
    add("--max-grad-norm", type=number(float, 0), default=10.0, help="clip the global norm of the gradient to this")
    add("--pixels", action="store_true", help="observe the environment's rendered picture in place of its state")
    add("--repeat-action-probability", type=number(float, 0, 1), default=0.25, help="Atari's sticky actions")
    add("--seed", type=number(int, 0, 2**31 - 1), default=1, help="seeds networks, environments and actions")
    add(
        "--device", type=device_name, default="auto", help="cpu, cuda, cuda:N or mps; auto is cuda for images, else cpu"
    )
    add("--log-interval", type=number(int, 1), default=32_000, help="environment steps between log lines")
    add("--eval-episodes", type=number(int, 0), default=20, help="greedy episodes after training; 0 for none")
    add("--capture-video", action="store_true", help="record the first evaluation episode as MP4")
    add("--checkpoint-interval", type=number(int, 0), default=500_000, help="steps between checkpoints; 0: at the end")
    add("--resume", help="checkpoint.pt to go on from, with fresh episodes; one that is complete is only evaluated")
    add("--run-dir", default="runs", help="parent of the run folder, which holds the checkpoint and the video")
    modes = ["disabled", "offline", "online"]
    add("--wandb-mode", default=os.environ.get("WANDB_MODE", "offline"), choices=modes, help="offline needs no account")
    add("--wandb-project", default=os.environ.get("WANDB_PROJECT", "reference-rl"), help="W&B project")
    args = parser.parse_args(argv)
    if args.total_timesteps < args.num_envs:
        parser.error(f"argument --total-timesteps: one step in every environment makes num_envs = {args.num_envs}")
    if args.learning_starts >= args.total_timesteps:
        parser.error(f"argument --learning-starts: must be below total_timesteps = {args.total_timesteps}")
    if args.buffer_size < max(args.batch_size, 2 * args.num_envs):
        parser.error("argument --buffer-size: takes at least batch_size, and two steps of every environment")
    if args.pixels and "ALE/" in args.env_id:
        parser.error("argument --pixels: Atari has them anyway")
    if args.capture_video and args.eval_episodes == 0:
        parser.error("argument --capture-video: records an evaluation episode, so --eval-episodes must not be 0")
    return args


class QNetwork(nn.Module):
    """Q(s,·): an MLP for flat observations, the paper's convolutions for (4, 84, 84) frames.

    Frames are divided by 255; an observation's numbers bounded by less than 1 are stretched to ±1, others left alone.
    """

    def __init__(self, obs_space, num_actions, hidden_sizes, dueling):
        super().__init__()

        def head(num_outputs):
            return nn.Sequential(nn.Linear(*sizes[-2:]), nn.ReLU(), nn.Linear(sizes[-1], num_outputs))

        if flat(obs_space):
            sizes = [*obs_space.shape, *hidden_sizes]
            layers = [layer for pair in itertools.pairwise(sizes[:-1]) for layer in (nn.Linear(*pair), nn.ReLU())]
            bound = np.maximum(abs(obs_space.low), abs(obs_space.high))
            bound[(bound == 0) | (bound > 1)] = 1
        else:
            layers = [nn.Conv2d(4, 32, 8, stride=4), nn.ReLU(), nn.Conv2d(32, 64, 4, stride=2), nn.ReLU()]
            layers += [nn.Conv2d(64, 64, 3), nn.ReLU(), nn.Flatten()]
            sizes, bound = [64 * 7 * 7, 512], 255
        self.register_buffer("bound", torch.as_tensor(bound, dtype=torch.float32), persistent=False)
        self.body = nn.Sequential(*layers)
        self.advantage = head(num_actions)  # without --dueling these are the Q values themselves
        self.value = head(1) if dueling else None

    def forward(self, obs):
        """(batch, *obs_shape), frames as uint8 -> Q values (batch, num_actions)."""
        features = self.body((obs / self.bound).float())
        advantage = self.advantage(features)
        if self.value is None:
            return advantage
        return self.value(features) + advantage - advantage.mean(-1, keepdim=True)


class ReplayBuffer:
    """The last `capacity` transitions of environments stepped together, each observation stored once.

    A ring of rows, one a step of all environments, kept flat: environment n at row t is cell t num_envs + n, its next
    observation lies num_envs cells on. Of stacked frames, obs_shape (num_stack, height, width), only the newest is
    kept: sample takes the older ones from the rows before and fills up with zeros at the start of an episode.
    """

    def __init__(self, capacity, num_envs, obs_shape, dtype, rng):
        self.num_envs, self.obs_shape, self.rng = num_envs, obs_shape, rng
        self.num_stack, frame_shape = (obs_shape[0], obs_shape[1:]) if len(obs_shape) == 3 else (1, obs_shape)
        # One row more for the newest observation, and num_stack - 1 for the oldest transition's older frames.
        self.num_cells = (-(-capacity // num_envs) + self.num_stack) * num_envs
        frame_bytes = math.prod(frame_shape) * np.dtype(dtype).itemsize
        self.num_bytes = self.num_cells * (frame_bytes + 8 + 4 + 1 + 1 + 1)
        if self.num_bytes > free_memory():
            raise RunError(
                f"--buffer-size {capacity}: takes {self.num_bytes / 1e9:.2f} GB of memory, "
                f"of which {free_memory() / 1e9:.2f} GB are free"
            )
        self.frames = np.zeros((self.num_cells, *frame_shape), dtype)
        self.actions = np.zeros(self.num_cells, np.int64)
        self.rewards = np.zeros(self.num_cells, np.float32)
        self.terminated, self.valid = np.zeros((2, self.num_cells), bool)
        self.older = np.zeros(self.num_cells, np.uint8)  # frames of the episode before this one, as far as stacked
        self.head = self.num_rows = 0  # the first cell of the newest row, and the number of transitions per environment

    def newest(self):
        """The cells of the newest row, which has an observation and no transition yet."""
        return slice(self.head, self.head + self.num_envs)

    def reset(self, obs):
        """Take the observations (num_envs, *obs_shape) with which the environments start."""
        self.frames[self.newest()] = obs[:, -1] if self.num_stack > 1 else obs
        self.valid[self.newest()] = True

    def add(self, action, reward, terminated, done, next_obs):
        """Take a step of all environments; every array is (num_envs, ...)."""
        row = self.newest()
        self.actions[row], self.rewards[row], self.terminated[row] = action, reward, terminated
        older = np.where(self.valid[row], np.minimum(self.older[row] + 1, self.num_stack - 1), 0)
        self.head = (self.head + self.num_envs) % self.num_cells
        self.num_rows = min(self.num_rows + 1, self.num_cells // self.num_envs - self.num_stack)
        row = self.newest()
        self.frames[row] = next_obs[:, -1] if self.num_stack > 1 else next_obs
        # The step after a done only resets: its action is ignored, it is no transition, and the next one starts anew.
        self.valid[row], self.older[row] = ~done, older

    def sample(self, batch_size):
        """Draw transitions uniformly -> obs, action, reward, terminated, next_obs, each (batch_size, ...)."""
        cells = self.draw(batch_size)
        while not self.valid[cells].all():
            resets = ~self.valid[cells]
            cells[resets] = self.draw(resets.sum())
        steps = np.arange(1 - self.num_stack, 2)  # of the frames of obs and next_obs together, 0 for the newest of obs
        frames = self.frames[(cells[:, None] + steps * self.num_envs) % self.num_cells]
        if self.num_stack > 1:
            frames[-steps > self.older[cells, None]] = 0  # of an earlier episode
        obs, next_obs = (x.reshape(-1, *self.obs_shape) for x in (frames[:, :-1], frames[:, 1:]))
        return obs, self.actions[cells], self.rewards[cells], self.terminated[cells], next_obs

    def draw(self, size):
        """Cells, uniformly over the last num_rows rows before the newest."""
        return (self.head - 1 - self.rng.integers(self.num_rows * self.num_envs, size=size)) % self.num_cells


def linear_schedule(start, end, duration, step):
    """From start at step 0 to end at step `duration`, and from there on."""
    return start + (end - start) * min(step / duration, 1)


def exponential_schedule(start, end, duration, step):
    """From start at step 0 towards end: what is left of the way shrinks to 1/e within `duration` steps."""
    return end + (start - end) * math.exp(-step / duration)


def td_target(reward, next_q_values, next_online_q_values, terminated, gamma):
    """y of the header, (batch,), from Q⁻(s',·) and, for double DQN, Q(s',·), both (batch, num_actions), else None."""
    if next_online_q_values is None:
        next_value = next_q_values.amax(-1)
    else:
        next_value = next_q_values.gather(-1, next_online_q_values.argmax(-1, keepdim=True)).squeeze(-1)
    return reward + gamma * next_value * terminated.logical_not()  # a truncated episode would have gone on


def dqn_loss(q_network, obs, action, target, huber_delta):
    """L of the header -> (loss, metrics); for huber_delta = 1 the gradient is the paper's TD error clipped to ±1."""
    q_value = q_network(obs).gather(-1, action.unsqueeze(-1)).squeeze(-1)  # (batch,)
    loss = F.huber_loss(q_value, target, delta=huber_delta)
    return loss, {"td_loss": loss.detach(), "q_value": q_value.detach().mean()}


def update(q_network, target_network, optimizer, obs, action, reward, terminated, next_obs, args):
    """One gradient step on a batch -> metrics."""
    with torch.no_grad():
        next_online_q_values = q_network(next_obs) if args.double else None
        target = td_target(reward, target_network(next_obs), next_online_q_values, terminated, args.gamma)
    loss, metrics = dqn_loss(q_network, obs, action, target, args.huber_delta)
    optimizer.zero_grad()
    loss.backward()
    metrics["grad_norm"] = nn.utils.clip_grad_norm_(q_network.parameters(), args.max_grad_norm)
    if metrics["grad_norm"].isfinite():  # else train ends the run, and the weights have stayed good
        optimizer.step()
    return metrics


def train(args):
    """Train, log, save and evaluate -> (q_network, history), history a list of (global_step, episode_return)."""
    torch.manual_seed(args.seed)
    rng = np.random.default_rng(args.seed)
    envs = make_envs(args)
    obs_space, action_space = envs.single_observation_space, envs.single_action_space
    image = not flat(obs_space)
    if not image:
        torch.set_num_threads(1)  # the network is tiny: one thread beats many
    auto = "cuda" if image and torch.cuda.is_available() else "cpu"
    device = torch.device(auto if args.device == "auto" else args.device)
    q_network = QNetwork(obs_space, int(action_space.n), args.hidden_sizes, args.dueling)
    q_network.to(device, memory_format=torch.channels_last)  # in which convolutions learn faster
    target_network = copy.deepcopy(q_network).requires_grad_(False)
    optimizer = torch.optim.Adam(q_network.parameters(), lr=args.learning_rate, fused=True)
    start_step, run_id = 0, None
    if args.resume is not None:
        start_step, run_id = load_checkpoint(args, q_network, target_network, optimizer, rng)
    buffer = ReplayBuffer(args.buffer_size, args.num_envs, obs_space.shape, np.uint8 if image else np.float32, rng)
    if image:
        print(f"replay buffer  {args.buffer_size:,} transitions  {buffer.num_bytes / 1e9:.2f} GB", flush=True)

    schedule = exponential_schedule if args.exponential_epsilon else linear_schedule
    done = np.zeros(args.num_envs, bool)
    episode_return, episode_length = np.zeros((2, args.num_envs))
    history, recent = [], collections.deque(maxlen=100)  # of (global_step, return), of (return, length)
    global_step, metrics = start_step, {}  # steps count the resets, too
    obs, _ = envs.reset(seed=env_seed(args.seed, 0, start_step))
    buffer.reset(obs)
    folder, run = start_run(args, run_id, device)
    start_time = time.perf_counter()
    try:
        while global_step + args.num_envs <= args.total_timesteps:
            epsilon = schedule(args.epsilon_start, args.epsilon_end, args.epsilon_steps, global_step)
            learning_rate = args.learning_rate * (1 - global_step / args.total_timesteps if args.anneal_lr else 1)
            optimizer.param_groups[0]["lr"] = learning_rate

            # 1. Play one step in every environment, ε-greedily, and store it.
            action = rng.integers(action_space.n, size=args.num_envs)
            greedy = rng.random(args.num_envs) >= epsilon
            if greedy.any():
                with torch.inference_mode():
                    q_values = q_network(torch.as_tensor(obs, device=device))  # (num_envs, num_actions)
                action[greedy] = q_values.argmax(-1).cpu().numpy()[greedy]
            episode_length += ~done  # the step after a done only resets
            obs, reward, terminated, truncated, _ = envs.step(env_action(action, action_space))
            done = terminated | truncated
            stored = np.sign(reward) if atari(args) else reward  # Atari's rewards are clipped to ±1
            buffer.add(action, stored, terminated, done, obs)
            global_step += args.num_envs
            episode_return += reward
            for i in np.flatnonzero(done):
                history.append((global_step, float(episode_return[i])))
                recent.append((episode_return[i], episode_length[i]))
                episode_return[i] = episode_length[i] = 0

            # 2. Learn from the replay buffer: gradient_steps for each multiple of train_interval just reached.
            reached = global_step // args.train_interval - (global_step - args.num_envs) // args.train_interval
            learns = global_step - start_step >= args.learning_starts
            for _ in range(reached * args.gradient_steps if learns else 0):
                batch = (torch.as_tensor(x, device=device) for x in buffer.sample(args.batch_size))
                metrics = update(q_network, target_network, optimizer, *batch, args)
                if not math.isfinite(metrics["grad_norm"]):
                    raise RunError(
                        f"step {global_step}: the loss is not finite; try a lower --learning-rate, or look for NaN in "
                        f"what {args.env_id} returns"
                    )
            if due(args.target_update_interval, global_step, args.num_envs):
                target_network.load_state_dict(q_network.state_dict())

            # 3. Log and save.
            last = global_step + args.num_envs > args.total_timesteps
            if last or due(args.log_interval, global_step, args.num_envs):
                speed = (global_step - start_step) / (time.perf_counter() - start_time)
                charts = {"charts/SPS": speed, "charts/learning_rate": learning_rate, "charts/epsilon": epsilon}
                log_progress(run, args, global_step, recent, charts, metrics)
            if due(args.checkpoint_interval, global_step, args.num_envs):
                save_checkpoint(folder, args, q_network, target_network, optimizer, rng, global_step, run.id)

        save_checkpoint(folder, args, q_network, target_network, optimizer, rng, global_step, run.id)
        if args.eval_episodes:
            log_evaluation(run, global_step, evaluate(q_network, args, folder), folder)
        print(f"checkpoint {folder / 'checkpoint.pt'}", flush=True)
    except (KeyboardInterrupt, SystemExit):
        save_checkpoint(folder, args, q_network, target_network, optimizer, rng, global_step, run.id)
        print(f"stopped at step {global_step:,}  checkpoint {folder / 'checkpoint.pt'}", flush=True)
        raise
    finally:
        envs.close()
        run.finish(exit_code=int(sys.exc_info()[0] is not None))
    return q_network, history


def evaluate(agent, args, folder=None):
    """Play args.eval_episodes greedy episodes in fresh environments, away from training's seeds -> their returns.

    --capture-video records the first episode into `folder` (args.run_dir if None).
    """
    env = make_eval_env(args, folder or args.run_dir)
    device, returns = next(agent.parameters()).device, []
    for episode in range(args.eval_episodes):
        obs, _ = env.reset(seed=env_seed(args.seed, 1, episode))
        episode_return, done = 0.0, False
        while not done:
            with torch.inference_mode():
                q_values = agent(torch.as_tensor(obs, device=device).unsqueeze(0))
                action = q_values.argmax(-1)[0].cpu().numpy()
            obs, reward, terminated, truncated, _ = env.step(env_action(action, env.action_space))
            done = terminated or truncated
            episode_return += float(reward)
        returns.append(episode_return)
    env.close()
    return returns


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


def make_pixels(args):
    """One environment that shows its last four pictures, made small and grey, in place of its state."""
    env = gym.wrappers.AddRenderObservation(gym.make(args.env_id, render_mode="rgb_array"))
    env = gym.wrappers.TransformObservation(env, shrink, Box(0, 255, (84, 84), np.uint8))
    return gym.wrappers.FrameStackObservation(env, 4, padding_type="zero")  # as Atari's and the replay buffer's


def make_eval_env(args, folder):
    """One environment to evaluate in."""
    if atari(args):
        env = Single(make_atari(args, 1))
    elif args.pixels:
        env = make_pixels(args)
    else:
        env = gym.make(args.env_id, **({"render_mode": "rgb_array"} if args.capture_video else {}))
    return record_video(env, folder) if args.capture_video else env


def shrink(picture):
    """(height, width, 3) -> (84, 84), grey: of 84 rows, evenly spread, the means over 84 stretches of equal width.

    As a negative, for the background is white: 0, like the frames before an episode, is where nothing is to be seen.
    """
    height, width, _ = picture.shape
    rows, stretches = np.arange(84) * height // 84, np.arange(84) * width // 84
    sums = np.add.reduceat(picture[rows].sum(-1, dtype=np.int64), stretches, axis=1)
    return (255 - sums // (3 * np.diff(stretches, append=width))).astype(np.uint8)


def make_envs(args):
    """args.num_envs environments stepped together; RunError if there are none of that name or not for this script."""
    try:
        if atari(args):
            envs = make_atari(args, args.num_envs)
        elif args.pixels:
            envs = gym.vector.SyncVectorEnv([lambda: make_pixels(args)] * args.num_envs)
        else:
            mode = "sync" if args.num_envs == 1 else None  # one environment is slower in a vector class of its own
            envs = gym.make_vec(args.env_id, num_envs=args.num_envs, vectorization_mode=mode)
        if args.capture_video:  # a rehearsal: whatever is missing for a video shows now, not after training
            with tempfile.TemporaryDirectory() as folder:
                env = make_eval_env(args, folder)
                env.reset()
                env.close()
    except Exception as error:  # an environment can fail in any way
        raise RunError(f"--env-id {args.env_id}: {textwrap.shorten(str(error) or repr(error), 300)}") from None
    obs_space, action_space = envs.single_observation_space, envs.single_action_space
    if not ((flat(obs_space) or atari(args) or args.pixels) and isinstance(action_space, Discrete)):
        spaces = textwrap.shorten(f"{obs_space} and {action_space}", 300)
        raise RunError(
            f"--env-id {args.env_id}: takes flat Box observations, Atari or --pixels, Discrete actions, not {spaces}"
        )
    if envs.metadata.get("autoreset_mode") != AutoresetMode.NEXT_STEP:
        raise RunError(f"--env-id {args.env_id}: takes vector environments with AutoresetMode.NEXT_STEP")
    return envs


def flat(space):
    """Whether a space is a Box of vectors."""
    return isinstance(space, Box) and len(space.shape) == 1


def record_video(env, folder):
    """The environment, which must render arrays, its first episode recorded as FOLDER/videos/eval-episode-0.mp4."""
    return gym.wrappers.RecordVideo(env, f"{folder}/videos", lambda episode: episode == 0, name_prefix="eval")


def free_memory():
    """Bytes of memory that are left on Linux, at most what its container may have; elsewhere all that there is."""
    try:
        free = 1024 * int(re.search(r"MemAvailable: *(\d+)", Path("/proc/meminfo").read_text()).group(1))
    except OSError:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else math.inf
    for limit in ("memory.max", "memory/memory.limit_in_bytes"):  # control groups, version 2 and 1
        path = Path("/sys/fs/cgroup", limit)
        if path.exists() and path.read_text().strip() != "max":
            free = min(free, int(path.read_text()))
    return free


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


def save_checkpoint(folder, args, agent, target_network, optimizer, rng, global_step, run_id):
    """Write FOLDER/checkpoint.pt, whole or not at all: tensors, numbers and strings, which torch.load deems safe."""
    checkpoint = {
        "script": Path(__file__).stem,
        "flags": vars(args),
        "global_step": global_step,
        "agent": agent.state_dict(),
        "target_network": target_network.state_dict(),
        "optimizer": optimizer.state_dict(),
        "numpy_rng": rng.bit_generator.state,
        "wandb_id": run_id,
    }
    torch.save(checkpoint, folder / "checkpoint.tmp")
    os.replace(folder / "checkpoint.tmp", folder / "checkpoint.pt")


def load_checkpoint(args, agent, target_network, optimizer, rng):
    """Restore what save_checkpoint wrote to args.resume -> (global_step, W&B run id); RunError if it does not fit."""
    try:
        checkpoint = torch.load(args.resume, map_location="cpu", weights_only=True)
        script, flags = checkpoint["script"], checkpoint["flags"]
        if script != Path(__file__).stem or any(flags[name] != vars(args)[name] for name in ("env_id", "pixels")):
            raise ValueError(f"of {script}.py, env_id {flags['env_id']}, pixels {flags.get('pixels')}")
        agent.load_state_dict(checkpoint["agent"])
        target_network.load_state_dict(checkpoint["target_network"])
        optimizer.load_state_dict(checkpoint["optimizer"])
        rng.bit_generator.state = checkpoint["numpy_rng"]
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


def device_name(text):
    """An argparse type: auto, or a torch device that is there."""
    try:
        if text == "auto" or torch.empty(0, device=text).device.type in ("cpu", "cuda", "mps"):
            return text
    except (RuntimeError, AssertionError):
        pass
    raise argparse.ArgumentTypeError(f"takes auto, cpu, cuda, cuda:N or mps, if it is there, not {text}")


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
