# /// script
# requires-python = ">=3.11"
# dependencies = ["ale-py>=0.12", "gymnasium[classic-control,other]>=1.2.1", "numpy>=1.26", "torch>=2.6", "wandb>=0.28"]
# ///
"""DQN: deep Q-learning with experience replay and a target network.

Papers   Mnih et al. 2015 (doi:10.1038/nature14236), Alg. 1; --double: van Hasselt et al. 2016 (arXiv:1509.06461);
         --dueling: Wang et al. 2016 (arXiv:1511.06581), eq. 9; --network nips: Mnih et al. 2013 (arXiv:1312.5602)
Update   L = E[(y - Q(s,a))²] / 2 over a batch drawn uniformly from the replay buffer    one Adam step per batch
         y = r + γ max_a' Q⁻(s',a')    --double: y = r + γ Q⁻(s', argmax_a' Q(s',a'))    y = r if s' is terminal
         y is a constant; Q⁻ is a copy of Q, refreshed every target_update_interval steps
         --loss huber: |δ| - 1/2 in place of δ²/2 where |δ| > 1, for δ = y - Q(s,a): the paper's clipping to ±1
Departs  TD errors are clipped only by --loss huber, and gradients only if their norm exceeds 1000: when Q
         reaches 100, as on CartPole, clipping gives terminal states too little weight. Adam instead of RMSProp, its
         step size annealed; several environments, stepped in parallel; truncated episodes bootstrap from their last
         observation; the target network is refreshed every N environment steps rather than every N updates; evaluation
         with ε = 0; --dueling does not rescale the gradient of the shared layers by 1/√2 and, except for frames, shares
         all hidden layers. Components of flat observations with bounds below 1 are scaled to ±1; the mean image of all
         frames before the first update is subtracted from frames. Atari: no sticky actions, no FIRE at reset, up to 30
         no-ops, 4 stacked 84x84 grey frames; for learning only, rewards are clipped to ±1 and a lost life is terminal
Resume   the replay buffer is not saved: learning pauses for learning_starts steps
Run      python dqn.py    python dqn.py --double --dueling --exponential-epsilon
Result   CartPole-v1, first command: greedy return 500.0 ± 0.0 (10 seeds)
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
import time
from functools import partial
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch
import wandb
from gymnasium.spaces import Box, Discrete
from torch import nn
from torch.nn import functional as F

SCRIPT = "dqn"  # names run folders; stored in checkpoints


def parse_args(argv=None):
    """Parse the flags; a value out of range ends the program with exit code 2 and an error message."""
    parser = argparse.ArgumentParser(fromfile_prefix_chars="@", formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.description = __doc__.splitlines()[0]
    parser.convert_arg_line_to_args = lambda line: [line.strip()] if line.strip() else []  # @FILE may have blank lines
    parser.register("type", "JSON object", lambda text: dict(json.loads(text)))  # dict refuses other JSON values
    add = parser.add_argument
    add("--env-id", default="CartPole-v1", help="Gymnasium id, ALE/GAME-v5, or MODULE:ID for your own environment")
    add("--env-kwargs", type="JSON object", default={}, help="environment options as JSON")
    add("--total-timesteps", type=number(int, 1), default=100_000, help="environment steps, summed over environments")
    add("--num-envs", type=number(int, 1), default=4, help="environments stepped in parallel")
    add("--learning-rate", type=number(float, 0), default=1e-3, help="Adam's step size η")
    add("--anneal-lr", action=argparse.BooleanOptionalAction, default=True, help="decay the step size linearly to 0")
    add("--gamma", type=number(float, 0, 1), default=0.99, help="discount γ")
    add("--buffer-size", type=number(int, 1), default=100_000, help="transitions kept; 7 KB each for Atari")
    add("--batch-size", type=number(int, 1), default=128, help="transitions per gradient step")
    add("--learning-starts", type=number(int, 0), default=1_000, help="environment steps before the first update")
    add("--train-interval", type=number(int, 1), default=4, help="environment steps between updates")
    add("--gradient-steps", type=number(int, 1), default=1, help="gradient steps per update")
    add("--target-update-interval", type=number(int, 1), default=250, help="environment steps between copies to Q⁻")
    add("--epsilon-start", type=number(float, 0, 1), default=1.0, help="initial ε, the probability of a random action")
    add("--epsilon-end", type=number(float, 0, 1), default=0.1, help="final ε")
    add("--epsilon-steps", type=number(int, 1), default=10_000, help="environment steps over which ε decays linearly")
    add("--exponential-epsilon", action="store_true", help="decay ε with time constant --epsilon-steps instead")
    add("--double", action="store_true", help="double DQN: select a' by Q, evaluate it by Q⁻")
    add("--dueling", action="store_true", help="dueling networks: Q = V + A - mean A")
    add("--network", default="nature", choices=["nips", "nature"], help="for frames: nips has 2 convolutions, nature 3")
    add("--hidden-sizes", type=number(int, 1), nargs="+", default=[256, 256], help="layers for flat observations")
    add("--loss", default="squared", choices=["squared", "huber"], help="huber: clip the TD error's gradient to ±1")
    add("--max-grad-norm", type=number(float, 0), default=1000.0, help="clip the gradient's global norm to this")
    add("--pixels", action="store_true", help="learn from rendered frames instead of states; not for Atari")
    add("--terminal-on-life-loss", action=argparse.BooleanOptionalAction, default=True, help="a lost life is terminal")
    add("--seed", type=number(int, 0), default=1, help="seed of all random numbers")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    add("--device", default=device, help="where the network runs: cpu, cuda, cuda:N, mps")
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
        if len(obs_space.shape) == 3:
            self.register_buffer("mean_image", torch.zeros(obs_space.shape[1:]))  # computed by train
        self.body = nn.Sequential(*layers)
        self.advantage = mlp(*head_sizes, num_actions)  # without dueling these are the Q values themselves
        self.value = mlp(*head_sizes, 1) if dueling else None

    def forward(self, obs):
        """(batch, *obs_shape), frames as uint8 -> Q values (batch, num_actions)."""
        obs = obs.float()
        if obs.ndim == 2:
            obs = obs / self.bound
        else:
            # Without the mean image, Pong's constant bright background soon kills many filters of the first layer.
            obs = (obs - self.mean_image) / 255
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


def exponential_schedule(start, end, duration, step):
    """Go from start at step 0 towards end; the remaining distance shrinks by a factor of e every `duration` steps."""
    return end + (start - end) * math.exp(-step / duration)


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


def update(q_network, target_network, optimizer, batch, args):
    """Take one gradient step on a batch of transitions -> metrics."""
    observations, actions, rewards, terminations, next_observations = batch
    with torch.no_grad():
        next_q_values = target_network(next_observations)
        next_online_q_values = q_network(next_observations) if args.double else None
        targets = td_target(rewards, next_q_values, next_online_q_values, terminations, args.gamma)
    loss, metrics = dqn_loss(q_network(observations), actions, targets, args.loss)
    optimizer.zero_grad()
    loss.backward()
    grad_norm = nn.utils.clip_grad_norm_(q_network.parameters(), args.max_grad_norm)
    if not grad_norm.isfinite():
        raise RunError(f"the gradient is not finite: lower --learning-rate, or look for NaN in {args.env_id}")
    optimizer.step()
    return metrics | {"losses/grad_norm": grad_norm}


def train(args):
    """Train, log, save and evaluate -> (q_network, history), history a list of (global_step, episode_return)."""
    torch.manual_seed(args.seed)
    envs = gym.wrappers.vector.RecordEpisodeStatistics(make_envs(args, args.num_envs), stats_key="statistics")
    obs_space, num_actions = envs.single_observation_space, int(envs.single_action_space.n)
    has_frames = len(obs_space.shape) == 3
    if not has_frames:
        torch.set_num_threads(1)  # one thread is faster than several for a network this small
    q_network = QNetwork(obs_space, num_actions, args.network, args.hidden_sizes, args.dueling)
    q_network.to(args.device)
    if "mps" not in args.device:  # on MPS, PyTorch 2.13 silently misreads this layout (its issue 192212)
        q_network.to(memory_format=torch.channels_last)  # convolutions are faster in this layout
    target_network = copy.deepcopy(q_network).requires_grad_(False)
    optimizer = torch.optim.Adam(q_network.parameters(), lr=args.learning_rate, fused=True)
    modules = {"agent": q_network, "target_network": target_network, "optimizer": optimizer}
    checkpoint = load_checkpoint(args.resume, **modules) if args.resume else {}
    for weights, state in optimizer.state.items():  # fused Adam needs the weights' layout; an MPS checkpoint lacks it
        state |= {name: torch.empty_like(weights).copy_(state[name]) for name in ("exp_avg", "exp_avg_sq")}
    start_step, run_id = checkpoint.get("global_step", 0), checkpoint.get("run_id")
    rng = np.random.default_rng(derive_seed(args.seed, 2, start_step))  # a resumed run draws new noise

    dtype = np.uint8 if obs_space.dtype == np.uint8 else np.float32
    buffer = ReplayBuffer(args.buffer_size, args.num_envs, obs_space.shape, dtype, rng)
    epsilon_schedule = exponential_schedule if args.exponential_epsilon else linear_schedule
    history, metrics = [], {}
    global_step = start_step  # includes reset steps
    next_update = start_step + args.learning_starts
    next_copy = start_step + args.target_update_interval
    next_log = start_step + args.log_interval
    obs, infos = envs.reset(seed=derive_seed(args.seed, 0, start_step))
    lives = infos.get("lives", 0)  # Atari's
    buffer.reset(obs)
    run, folder = start_run(args, run_id)
    start_time = time.perf_counter()

    def save():
        return save_checkpoint(folder, args, global_step, run.id, **modules)

    with finishing(run, envs, save):
        while global_step < args.total_timesteps:
            epsilon = epsilon_schedule(args.epsilon_start, args.epsilon_end, args.epsilon_steps, global_step)
            remaining = 1 - global_step / args.total_timesteps if args.anneal_lr else 1.0
            optimizer.param_groups[0]["lr"] = args.learning_rate * remaining

            # 1. Play one step in every environment, ε-greedily, and store it.
            action = rng.integers(num_actions, size=args.num_envs)
            greedy = rng.random(args.num_envs) >= epsilon
            if greedy.any():
                with torch.inference_mode():
                    q_values = q_network(torch.as_tensor(obs.astype(dtype), device=args.device))  # (num_envs, ...)
                action[greedy] = q_values.argmax(-1).cpu().numpy()[greedy]
            # When done, the observation is the episode's last one: a truncated episode bootstraps from its value.
            obs, reward, terminated, truncated, infos = envs.step(action)
            done = terminated | truncated
            global_step += args.num_envs
            history += [(global_step, float(infos["statistics"]["r"][i])) for i in np.flatnonzero(done)]
            if is_atari(args):
                reward = np.sign(reward)
            if is_atari(args) and args.terminal_on_life_loss:
                terminated = terminated | (infos.get("lives", 0) < lives)  # for the learner: the game continues
                lives = infos.get("lives", 0)
            buffer.add(action, reward, terminated, done, obs)

            # 2. Learn from the replay buffer, every train_interval steps.
            while global_step >= next_update:
                next_update += args.train_interval
                if has_frames and not optimizer.state:  # before the first update
                    mean_image = torch.as_tensor(buffer.frames[: buffer.num_rows].mean((0, 1)), dtype=torch.float32)
                    for network in (q_network, target_network):
                        network.mean_image.copy_(mean_image)
                for _ in range(args.gradient_steps):
                    batch = [torch.as_tensor(x, device=args.device) for x in buffer.sample(args.batch_size)]
                    metrics = update(q_network, target_network, optimizer, batch, args)
            if global_step >= next_copy:
                next_copy += args.target_update_interval
                target_network.load_state_dict(q_network.state_dict())

            # 3. Log and save.
            if global_step >= min(next_log, args.total_timesteps):
                next_log += args.log_interval
                metrics["charts/SPS"] = (global_step - start_step) / (time.perf_counter() - start_time)
                metrics["charts/learning_rate"] = optimizer.param_groups[0]["lr"]
                metrics["charts/epsilon"] = epsilon
                log_progress(run, args, global_step, history, envs.length_queue, metrics)
                save()

        envs.close()
        log_evaluation(run, folder, q_network, args, global_step)
    return q_network, history


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
        if args.pixels:
            options = {"render_mode": "rgb_array", "wrappers": [observe_rendering]}
        # SyncVectorEnv steps a single environment faster than the environment's own vector class does.
        mode = "sync" if args.pixels or num_envs == 1 else None
        envs = gym.make_vec(args.env_id, num_envs, mode, **args.env_kwargs | options)
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
    has_frames = is_atari(args) or args.pixels
    if not (has_frames or (isinstance(obs_space, Box) and len(obs_space.shape) == 1)):
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


def observe_rendering(env):
    """Observe the last four rendered frames instead of the state: (4, 84, 84) uint8, greyscale, inverted."""
    env = gym.wrappers.ResizeObservation(gym.wrappers.AddRenderObservation(env), (84, 84))
    env = gym.wrappers.GrayscaleObservation(env)
    # Inverted, so that the background is 0 like the padding before an episode.
    env = gym.wrappers.TransformObservation(env, lambda obs: 255 - obs, env.observation_space)
    return gym.wrappers.FrameStackObservation(env, 4, padding_type="zero")


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
