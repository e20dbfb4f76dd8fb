# /// script
# requires-python = ">=3.11"
# dependencies = ["ale-py>=0.12", "gymnasium[classic-control,other]>=1.2.1", "numpy>=1.26", "torch>=2.6", "wandb>=0.28"]
# ///
"""DQN: deep Q-learning with experience replay and a target network.

Papers   Mnih et al. 2015 (doi:10.1038/nature14236), Alg. 1; --double: van Hasselt et al. 2016 (arXiv:1509.06461);
         --dueling: Wang et al. 2016 (arXiv:1511.06581), eq. 9; --network nips: Mnih et al. 2013 (arXiv:1312.5602)
Update   L = E[(y - Q(s,a))²] / 2 over a batch drawn uniformly from the replay buffer    an Adam step each, ∇L clipped
         y = r + γ max_a' Q⁻(s',a')    --double: y = r + γ Q⁻(s', argmax_a' Q(s',a'))    y = r if s' is terminal
         y is a constant; Q⁻ is Q as it was at the last multiple of target_update_interval
Departs  Adam, annealed, for RMSProp; environments stepped together; an episode that a time limit cuts bootstraps from
         its last observation; the target is copied every so many environment steps, not updates; the TD error is not
         clipped (--loss huber for the paper's, made for Atari's clipped rewards); numbers bounded by less than 1 are
         stretched to ±1; evaluation with ε = 0. Frames less their mean; Atari: no terminal at a lost life, sticky
         actions; --pixels stacks 4 pictures, where a difference of two would hold the same motion
Resume   goes on with an empty replay buffer: learning waits for learning_starts further steps
Run      python dqn.py    python dqn.py --double --dueling --exponential-epsilon
Result   greedy return 500.0 ± 0.0 (10 seeds), 11.7 s of training (one core of an AMD EPYC)
"""

import argparse
import copy
import io
import itertools
import math
import os
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
from gymnasium.spaces import Box, Discrete
from torch import nn
from torch.nn import functional as F


def parse_args(argv=None):
    """Flags -> argparse.Namespace; a value out of range ends the program with one line and exit code 2."""
    parser = argparse.ArgumentParser(fromfile_prefix_chars="@", formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.description = __doc__.splitlines()[0]
    add = parser.add_argument
    gpus = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    devices = ["cpu", *["cuda"] * bool(gpus), *gpus, *["mps"] * torch.backends.mps.is_available()]
    add("--env-id", default="CartPole-v1", help="Gymnasium id: discrete actions; flat observations or ALE/GAME-v5")
    add("--total-timesteps", type=number(int, 1), default=640_000, help="environment steps, over all environments")
    add("--num-envs", type=number(int, 1), default=128, help="environments stepped together")
    add("--learning-rate", type=number(float, 0), default=4e-3, help="Adam's step size, falling linearly to 0")
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
    add("--double", action="store_true", help="choose a' by Q, value it by Q⁻")
    add("--dueling", action="store_true", help="Q = V + A - mean A")
    add("--network", default="nature", choices=["nips", "nature"], help="the paper's of 2013 or 2015, for frames")
    add("--hidden-sizes", type=number(int, 1), nargs="+", default=[128, 128], help="layers for flat observations")
    add("--loss", default="squared", choices=["squared", "huber"], help="huber: the TD error clipped to ±1")
    add("--max-grad-norm", type=number(float, 0), default=10.0, help="clip the global norm of the gradient to this")
    add("--pixels", action="store_true", help="observe the environment's rendered picture in place of its state")
    add("--repeat-action-probability", type=number(float, 0, 1), default=0.25, help="Atari's sticky actions")
    add("--seed", type=number(int, 0), default=1, help="seeds networks, environments and actions")
    add("--device", default="cuda" if gpus else "cpu", choices=devices, help="what torch finds of cpu, cuda and mps")
    add("--log-interval", type=number(int, 1), default=32_000, help="environment steps between logs and checkpoints")
    add("--eval-episodes", type=number(int, 0), default=20, help="greedy episodes after training; 0 for none")
    add("--capture-video", action="store_true", help="record a greedy episode as MP4")
    add("--resume", help="checkpoint.pt to go on from, with fresh episodes; one that is complete is only evaluated")
    add("--run-dir", default="runs", help="parent of the run folder, which holds the checkpoint and the video")
    add("--wandb-mode", default=os.environ.get("WANDB_MODE", "offline"), choices=["disabled", "offline", "online"])
    add("--wandb-project", default=os.environ.get("WANDB_PROJECT", "reference-rl"), help="W&B project")
    args = parser.parse_args(argv)
    if args.buffer_size < 2 * args.num_envs:
        parser.error("argument --buffer-size: takes at least two steps of every environment")
    return args


class QNetwork(nn.Module):
    """Q(s,·): an MLP for flat observations, convolutions for (4, 84, 84) frames.

    Frames are divided by 255, less the mean of each; of flat observations numbers bounded by less than 1 are stretched
    to ±1, others left alone.
    """

    def __init__(self, obs_space, num_actions, network, hidden_sizes, dueling):
        super().__init__()
        if len(obs_space.shape) == 1:
            sizes = [*obs_space.shape, *hidden_sizes]
            layers = [layer for pair in itertools.pairwise(sizes[:-1]) for layer in (nn.Linear(*pair), nn.ReLU())]
            bound = np.maximum(abs(obs_space.low), abs(obs_space.high))
            bound[(bound == 0) | (bound > 1)] = 1
        elif network == "nips":
            layers = [nn.Conv2d(4, 16, 8, stride=4), nn.ReLU(), nn.Conv2d(16, 32, 4, stride=2), nn.ReLU(), nn.Flatten()]
            sizes, bound = [32 * 9 * 9, 256], 255
        else:
            layers = [nn.Conv2d(4, 32, 8, stride=4), nn.ReLU(), nn.Conv2d(32, 64, 4, stride=2), nn.ReLU()]
            layers += [nn.Conv2d(64, 64, 3), nn.ReLU(), nn.Flatten()]
            sizes, bound = [64 * 7 * 7, 512], 255

        def head(num_outputs):
            return nn.Sequential(nn.Linear(*sizes[-2:]), nn.ReLU(), nn.Linear(sizes[-1], num_outputs))

        self.register_buffer("bound", torch.as_tensor(bound, dtype=torch.float32), persistent=False)
        self.body = nn.Sequential(*layers)
        self.advantage = head(num_actions)  # without --dueling these are the Q values themselves
        self.value = head(1) if dueling else None

    def forward(self, obs):
        """(batch, *obs_shape), frames as uint8 -> Q values (batch, num_actions)."""
        obs = (obs / self.bound).float()
        if obs.ndim == 4:  # else Pong's background, the same in all states, soon leaves most first filters dead
            obs -= obs.mean((-2, -1), keepdim=True)
        features = self.body(obs)
        advantage = self.advantage(features)
        if self.value is None:
            return advantage
        return self.value(features) + advantage - advantage.mean(-1, keepdim=True)


class ReplayBuffer:
    """The last transitions of environments stepped together: a ring of rows, one a step of all of them.

    Each observation is stored once: the next one of row t is that of row t + 1. Of stacked frames, obs_shape
    (num_stack, height, width), only the newest is stored: sample takes the older ones from the rows before.
    """

    def __init__(self, capacity, num_envs, obs_shape, dtype, rng):
        self.obs_shape, self.rng = obs_shape, rng
        self.num_stack, frame_shape = (obs_shape[0], obs_shape[1:]) if len(obs_shape) == 3 else (1, obs_shape)
        # One row more for the newest observation, and num_stack - 1 for the oldest transition's older frames.
        shape = -(-capacity // num_envs) + self.num_stack, num_envs
        self.frames = np.zeros((*shape, *frame_shape), dtype)
        self.actions = np.zeros(shape, np.int64)
        self.rewards = np.zeros(shape, np.float32)
        self.terminateds, self.valids = np.zeros((2, *shape), bool)
        self.row = self.num_rows = 0  # the newest observation's, and the number of rows before it that can be drawn

    def reset(self, obs):
        """Take the observations (num_envs, *obs_shape) with which the environments start."""
        self.frames[self.row] = obs[:, -1] if self.num_stack > 1 else obs
        self.valids[self.row] = True

    def add(self, action, reward, terminated, done, next_obs):
        """Take a step of all environments; every array is (num_envs, ...)."""
        self.actions[self.row], self.rewards[self.row], self.terminateds[self.row] = action, reward, terminated
        self.row = (self.row + 1) % len(self.frames)
        self.num_rows = min(self.num_rows + 1, len(self.frames) - self.num_stack)
        self.frames[self.row] = next_obs[:, -1] if self.num_stack > 1 else next_obs
        self.valids[self.row] = ~done  # the step after a done only resets: its action is ignored, it is no transition

    def sample(self, batch_size):
        """Draw transitions uniformly -> obs, action, reward, terminated, next_obs, each (batch_size, ...)."""
        rows, envs = self.draw(batch_size)
        while (resets := ~self.valids[rows, envs]).any():
            rows[resets], envs[resets] = self.draw(resets.sum())
        window = rows[:, None] + np.arange(1 - self.num_stack, 2)  # of the frames of obs and next_obs together
        window, column = window % len(self.frames), envs[:, None]
        frames = self.frames[window, column]  # (batch_size, num_stack + 1, ...)
        # Back from obs, a reset is where its episode has begun: the frames before it are those of an empty screen.
        earlier = self.valids[window[:, : self.num_stack - 1], column][:, ::-1]
        frames[:, : self.num_stack - 1][~np.logical_and.accumulate(earlier, axis=1)[:, ::-1]] = 0
        obs, next_obs = (x.reshape(-1, *self.obs_shape) for x in (frames[:, :-1], frames[:, 1:]))
        return obs, self.actions[rows, envs], self.rewards[rows, envs], self.terminateds[rows, envs], next_obs

    def draw(self, size):
        """Rows and environments, uniformly over those before the newest row, resets included."""
        rows = (self.row - 1 - self.rng.integers(self.num_rows, size=size)) % len(self.frames)
        return rows, self.rng.integers(self.frames.shape[1], size=size)


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
    return reward + gamma * next_value * ~terminated  # a truncated episode would have gone on


def dqn_loss(q_values, action, target, loss):
    """L of the header, of Q(s,·), (batch, num_actions) -> (loss, metrics); huber: the gradient is clipped to ±1."""
    q_value = q_values.gather(-1, action.unsqueeze(-1)).squeeze(-1)  # (batch,)
    td_loss = F.huber_loss(q_value, target) if loss == "huber" else F.mse_loss(q_value, target) / 2
    return td_loss, {"losses/td_loss": td_loss, "losses/q_value": q_value.mean()}


def update(q_network, target_network, optimizer, obs, action, reward, terminated, next_obs, args):
    """One gradient step on a batch -> metrics."""
    with torch.no_grad():
        next_online_q_values = q_network(next_obs) if args.double else None
        target = td_target(reward, target_network(next_obs), next_online_q_values, terminated, args.gamma)
    loss, metrics = dqn_loss(q_network(obs), action, target, args.loss)
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
    envs = gym.wrappers.vector.RecordEpisodeStatistics(make_envs(args, args.num_envs))
    obs_space, num_actions = envs.single_observation_space, int(envs.single_action_space.n)
    image = len(obs_space.shape) == 3
    if not image:
        torch.set_num_threads(1)  # the network is tiny: one thread beats many
    q_network = QNetwork(obs_space, num_actions, args.network, args.hidden_sizes, args.dueling)
    q_network.to(args.device, memory_format=torch.channels_last)  # in which convolutions learn faster
    target_network = copy.deepcopy(q_network).requires_grad_(False)
    optimizer = torch.optim.Adam(q_network.parameters(), lr=args.learning_rate, fused=True)
    parts = {"agent": q_network, "target_network": target_network, "optimizer": optimizer}
    start_step, run_id = load_checkpoint(args, **parts) if args.resume else (0, None)
    rng = np.random.default_rng([args.seed, start_step])  # a resumed run does not repeat its noise

    dtype = np.uint8 if image else np.float32
    buffer = ReplayBuffer(args.buffer_size, args.num_envs, obs_space.shape, dtype, rng)
    print(f"replay buffer  {buffer.frames.nbytes / 1e9:.2f} GB of observations", flush=True)
    buffer.frames.fill(0)  # takes the memory: a machine that has too little fails now, not after hours
    schedule = exponential_schedule if args.exponential_epsilon else linear_schedule
    history, metrics = [], {}
    global_step = start_step  # counts the resets, too
    obs, _ = envs.reset(seed=env_seed(args.seed, 0, start_step))
    buffer.reset(obs)
    run, folder = start_run(args, run_id, args.device)
    start_time = time.perf_counter()
    try:
        while global_step < args.total_timesteps:
            epsilon = schedule(args.epsilon_start, args.epsilon_end, args.epsilon_steps, global_step)
            optimizer.param_groups[0]["lr"] = args.learning_rate * (1 - global_step / args.total_timesteps)

            # 1. Play one step in every environment, ε-greedily, and store it.
            action = rng.integers(num_actions, size=args.num_envs)
            greedy = rng.random(args.num_envs) >= epsilon
            if greedy.any():
                with torch.inference_mode():
                    q_values = q_network(torch.as_tensor(obs, device=args.device))  # (num_envs, num_actions)
                action[greedy] = q_values.argmax(-1).cpu().numpy()[greedy]
            obs, reward, terminated, truncated, infos = envs.step(action)
            reward = np.sign(reward) if "ALE/" in args.env_id else reward  # Atari's clipped to ±1
            done = terminated | truncated
            buffer.add(action, reward, terminated, done, obs)
            global_step += args.num_envs
            history += [(global_step, float(infos["episode"]["r"][i])) for i in np.flatnonzero(done)]

            # 2. Learn from the replay buffer: gradient_steps for each multiple of train_interval just reached.
            reached = global_step // args.train_interval - (global_step - args.num_envs) // args.train_interval
            learns = global_step - start_step >= args.learning_starts
            for _ in range(reached * args.gradient_steps if learns else 0):
                batch = (torch.as_tensor(x, device=args.device) for x in buffer.sample(args.batch_size))
                metrics = update(q_network, target_network, optimizer, *batch, args)
            if global_step % args.target_update_interval < args.num_envs:
                target_network.load_state_dict(q_network.state_dict())

            # 3. Log and save.
            if global_step % args.log_interval < args.num_envs or global_step >= args.total_timesteps:
                speed = (global_step - start_step) / (time.perf_counter() - start_time)
                metrics = metrics | {"charts/epsilon": epsilon}
                log_progress(run, args, global_step, speed, history, envs.length_queue, metrics)
                save_checkpoint(folder, args, global_step, run.id, **parts)

        log_evaluation(run, folder, q_network, args, global_step)
    finally:
        try:  # after Ctrl-C, SIGTERM or an environment's error, too: what has been learned is kept
            if global_step > start_step:
                save_checkpoint(folder, args, global_step, run.id, **parts)
                print(f"checkpoint  {folder / 'checkpoint.pt'}  step {global_step:,}", flush=True)
        finally:
            envs.close()
            run.finish(exit_code=int(sys.exc_info()[0] is not None))
    return q_network, history


def evaluate(agent, args, num_episodes, video_folder=None):
    """Play greedy episodes side by side, in environments seeded away from training's -> their returns, floats."""
    envs = make_envs(args, num_episodes, **({"render_mode": "rgb_array"} if video_folder else {}))
    if video_folder:
        envs = gym.wrappers.vector.RecordVideo(envs, str(video_folder), episode_trigger=lambda episode: episode == 0)
    obs, _ = envs.reset(seed=env_seed(args.seed, 1))
    returns = np.zeros(num_episodes)
    playing = np.ones(num_episodes, bool)  # each environment counts for its first episode: more would favour short ones
    for _ in range(100_000):  # a greedy policy may go in circles where no time limit stops it
        if not playing.any():
            break
        with torch.inference_mode():
            action = agent(torch.as_tensor(obs, device=args.device)).argmax(-1).cpu().numpy()
        obs, reward, terminated, truncated, _ = envs.step(action)
        returns[playing] += reward[playing]
        playing &= ~(terminated | truncated)
    envs.close()
    return returns.tolist()


def env_seed(*key):
    """A seed for environments, far from that of another key: Gymnasium counts up from it, one per environment."""
    return int(np.random.default_rng(key).integers(2**31))


def make_envs(args, num_envs, **render):
    """Environments stepped together, which reset themselves in the step after a done; RunError if they do not fit."""
    if "ALE/" in args.env_id:
        envs = make_games(args, num_envs, **render)
    elif args.pixels:
        shown = {"vectorization_mode": "sync", "wrappers": [observe_pictures], "render_mode": "rgb_array"}
        envs = gym.make_vec(args.env_id, num_envs=num_envs, **shown)
    else:
        envs = gym.make_vec(args.env_id, num_envs=num_envs, **render)
    obs_space, action_space = envs.single_observation_space, envs.single_action_space
    autoreset = envs.metadata.get("autoreset_mode")
    fits = "ALE/" in args.env_id or args.pixels or (isinstance(obs_space, Box) and len(obs_space.shape) == 1)
    discrete = isinstance(action_space, Discrete) and action_space.start == 0
    if not (fits and discrete and autoreset == gym.vector.AutoresetMode.NEXT_STEP):
        raise RunError(
            f"--env-id {args.env_id}: takes flat observations, Atari or --pixels, Discrete actions (from 0) and "
            f"AutoresetMode.NEXT_STEP, not {obs_space}, {action_space} and {autoreset}"
        )
    return envs


def make_games(args, num_envs, **render):
    """Atari, (4, 84, 84) uint8 frames as in the papers, stepped together by ALE or, where to be rendered, Gymnasium."""
    import ale_py  # here, as nothing else needs it

    gym.register_envs(ale_py)
    options = {"num_envs": num_envs, "repeat_action_probability": args.repeat_action_probability} | render
    if not render:
        threads = min(num_envs, torch.get_num_threads())
        return gym.make_vec(args.env_id, reward_clipping=False, num_threads=threads, **options)
    wrappers = [gym.wrappers.AtariPreprocessing, stack_frames]
    return gym.make_vec(args.env_id, vectorization_mode="sync", wrappers=wrappers, frameskip=1, **options)


def stack_frames(env):
    """The environment, its last four frames observed together; zeros before an episode, as ALE has them."""
    return gym.wrappers.FrameStackObservation(env, 4, padding_type="zero")


def observe_pictures(env):
    """The environment, its last four rendered pictures in place of its state: (4, 84, 84) uint8, grey, a negative."""
    env = gym.wrappers.ResizeObservation(gym.wrappers.AddRenderObservation(env), (84, 84))
    env = gym.wrappers.GrayscaleObservation(env)  # the negative has 0, as before an episode, where nothing is seen
    return stack_frames(gym.wrappers.TransformObservation(env, lambda obs: 255 - obs, env.observation_space))


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


def save_checkpoint(folder, args, global_step, run_id, **parts):
    """Write FOLDER/checkpoint.pt, whole or not at all: tensors, numbers and strings, which torch.load deems safe."""
    checkpoint = {name: part.state_dict() for name, part in parts.items()}
    checkpoint |= {"script": Path(__file__).stem, "flags": vars(args), "global_step": global_step, "run_id": run_id}
    buffer = io.BytesIO()
    torch.save(checkpoint, buffer)
    (folder / "checkpoint.tmp").write_bytes(buffer.getvalue())  # on a full disk an OSError, and the last one is kept
    os.replace(folder / "checkpoint.tmp", folder / "checkpoint.pt")


def load_checkpoint(args, **parts):
    """Restore what save_checkpoint wrote to args.resume -> (global_step, run_id)."""
    try:
        checkpoint = torch.load(args.resume, map_location="cpu", weights_only=True)
        if (checkpoint["script"], checkpoint["flags"]["env_id"]) != (Path(__file__).stem, args.env_id):
            raise ValueError("it is of another script or environment")
        for name, part in parts.items():
            part.load_state_dict(checkpoint[name])
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
