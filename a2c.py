# /// script
# requires-python = ">=3.11"
# dependencies = ["gymnasium[classic-control,other]>=1.1", "numpy>=1.26", "torch>=2.6", "wandb>=0.23"]
# ///
"""A2C: advantage actor-critic, the synchronous form of A3C.

Papers   Mnih et al. 2016 (arXiv:1602.01783), Alg. S3; Schulman et al. 2016 (arXiv:1506.02438), eq. 16
Update   L = -E[log π(a|s) Â] + vf_coef E[(R - V(s))²] - ent_coef E[H(π(·|s))]    an Adam step a rollout, ∇L clipped
         δ_t = r_t + γ V(s_t+1) - V(s_t)    A_t = δ_t + γλ A_t+1    R_t = A_t + V(s_t)    Â = (A - mean A) / std A
         V(s_t+1) = 0 after a terminal state; A_t+1 = 0 after the end of an episode or rollout; Â and R are constants
Departs  synchronous environments; λ < 1 (λ = 1 is the paper's n-step advantage); Â for A; Adam without momentum for
         RMSProp; separate actor and critic; an episode that a time limit cuts bootstraps from its last observation
Run      python a2c.py    python a2c.py --env-id Acrobot-v1 --normalize-env --total-timesteps 200000
Result   greedy return 500.0 ± 0.0 and -83.0 ± 2.7 (10 seeds), 2.6 s and 15.7 s of training (2 cores of an AMD EPYC)
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
import time
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch
import wandb
from gymnasium.spaces import Box, Discrete
from gymnasium.vector import AutoresetMode
from torch import nn
from torch.distributions import Normal


def parse_args(argv=None):
    """Flags -> argparse.Namespace; a value out of range ends the program with one line and exit code 2."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    add, switch = parser.add_argument, argparse.BooleanOptionalAction
    add("--env-id", default="CartPole-v1", help="Gymnasium id: flat observations, discrete or continuous actions")
    add(
        "--total-timesteps",
        type=number(int, 1, 10**15),
        default=125_000,
        help="environment steps, summed over environments",
    )
    add("--num-envs", type=number(int, 1), default=16, help="environments stepped together")
    add("--num-steps", type=number(int, 1), default=8, help="steps per environment and update, the paper's t_max")
    add("--learning-rate", type=number(float, 0), default=1e-2, help="Adam's step size, the paper's η")
    add("--anneal-lr", action=switch, default=True, help="let the learning rate fall linearly to 0")
    add("--gamma", type=number(float, 0, 1), default=0.99, help="discount γ")
    add("--gae-lambda", type=number(float, 0, 1), default=0.95, help="λ: 1 is the n-step advantage, 0 the TD error")
    add("--vf-coef", type=number(float, 0), default=0.3, help="weight of the value loss")
    add("--ent-coef", type=number(float, 0), default=0.1, help="weight of the entropy bonus, the paper's β")
    add("--max-grad-norm", type=number(float, 0), default=3.0, help="clip the global norm of the gradient to this")
    add("--normalize-advantage", action=switch, default=True, help="scale each rollout's A to mean 0, deviation 1")
    add("--normalize-env", action=switch, default=False, help="scale observations and rewards by running statistics")
    add("--seed", type=number(int, 0, 2**31 - 1), default=1, help="seeds networks, environments and actions")
    add("--device", type=device_name, default="auto", help="cpu, cuda, cuda:N or mps; auto is cpu: the network is tiny")
    add("--log-interval", type=number(int, 1), default=5_000, help="environment steps between log lines")
    add("--eval-episodes", type=number(int, 0), default=20, help="greedy episodes after training; 0 for none")
    add("--capture-video", action="store_true", help="record the first evaluation episode as MP4")
    add("--checkpoint-interval", type=number(int, 0), default=50_000, help="steps between checkpoints; 0: at the end")
    add("--resume", help="checkpoint.pt to go on from, with fresh episodes; one that is complete is only evaluated")
    add("--run-dir", default="runs", help="parent of the run folder, which holds the checkpoint and the video")
    modes = ["disabled", "offline", "online"]
    add("--wandb-mode", default=os.environ.get("WANDB_MODE", "offline"), choices=modes, help="offline needs no account")
    add("--wandb-project", default=os.environ.get("WANDB_PROJECT", "reference-rl"), help="W&B project")
    args = parser.parse_args(argv)
    if args.total_timesteps < args.num_envs * args.num_steps:
        parser.error(
            f"argument --total-timesteps: one rollout is num_envs x num_steps = {args.num_envs * args.num_steps}"
        )
    if args.normalize_advantage and args.num_envs * args.num_steps == 1:
        parser.error("argument --normalize-advantage: a rollout (num_envs x num_steps) of one step has no deviation")
    if args.capture_video and args.eval_episodes == 0:
        parser.error("argument --capture-video: records an evaluation episode, so --eval-episodes must not be 0")
    return args


def mlp(num_inputs, num_outputs, output_gain):
    """Two hidden layers of 64 tanh units, orthogonal weights: (..., num_inputs) -> (..., num_outputs)."""
    layers = [nn.Linear(num_inputs, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, num_outputs)]
    for layer, gain in zip(layers[::2], (2**0.5, 2**0.5, output_gain), strict=True):
        nn.init.orthogonal_(layer.weight, gain)
        nn.init.zeros_(layer.bias)
    return nn.Sequential(*layers)


class ActorCritic(nn.Module):
    """π(a|s) and V(s) of flat observations; π is categorical for discrete actions, normal for continuous ones."""

    def __init__(self, obs_space, action_space):
        super().__init__()
        self.discrete = isinstance(action_space, Discrete)
        num_outputs = int(action_space.n) if self.discrete else action_space.shape[0]
        self.actor = mlp(obs_space.shape[0], num_outputs, output_gain=0.01)  # near-uniform at the start
        self.critic = mlp(obs_space.shape[0], 1, output_gain=1.0)
        if not self.discrete:
            self.log_std = nn.Parameter(torch.zeros(num_outputs))  # the same in all states

    def forward(self, obs):
        """(..., obs_dim) -> logits (..., num_actions) or means (..., action_dim), and values (...)."""
        return self.actor(obs), self.critic(obs).squeeze(-1)

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


def compute_advantages(rewards, values, next_values, terminated, done, gamma, gae_lambda):
    """GAE(γ, λ), eq. 16, as a backward recursion; every tensor and the result are (num_steps, num_envs)."""
    # Only a terminal state stops the bootstrap: an episode that the clock cut would have gone on.
    delta = rewards + gamma * next_values * terminated.logical_not() - values
    decay = gamma * gae_lambda * done.logical_not().to(delta.dtype)
    advantages = [torch.zeros_like(delta[0])]  # after the rollout's last step
    for delta_t, decay_t in zip(delta.flip(0), decay.flip(0), strict=True):
        advantages.append(delta_t + decay_t * advantages[-1])
    return torch.stack(advantages[:0:-1])  # in the order of time, without the zeros


def normalize(advantages, valid):
    """Scale to mean 0 and standard deviation 1 over the entries with valid = 1; both (num_steps, num_envs)."""
    share = valid / valid.sum().clamp(min=1)
    centered = advantages - (advantages * share).sum()
    return centered / ((centered**2 * share).sum().sqrt() + 1e-8)


def a2c_loss(log_prob, entropy, values, advantages, returns, valid, vf_coef, ent_coef):
    """L of the header -> (loss, metrics); every tensor is (num_steps, num_envs), the means are over valid = 1."""
    share = valid / valid.sum().clamp(min=1)  # a step's weight in the means; min=1 for a rollout of resets alone
    policy_loss = -(share * advantages.detach() * log_prob).sum()
    value_loss = (share * (returns.detach() - values) ** 2).sum()
    entropy = (share * entropy).sum()
    loss = policy_loss + vf_coef * value_loss - ent_coef * entropy
    return loss, {"policy_loss": policy_loss, "value_loss": value_loss, "entropy": entropy}


def update(agent, optimizer, observations, actions, rewards, terminated, done, valid, args):
    """One gradient step on a rollout -> metrics; observations has num_steps + 1 rows, the other tensors num_steps."""
    parameters, values = agent(observations)  # (num_steps + 1, num_envs, num_outputs), (num_steps + 1, num_envs)
    baseline = values.detach()  # advantages and value targets carry no gradient
    advantages = compute_advantages(rewards, baseline[:-1], baseline[1:], terminated, done, args.gamma, args.gae_lambda)
    returns = advantages + baseline[:-1]
    if args.normalize_advantage:
        advantages = normalize(advantages, valid)
    log_prob, entropy = agent.log_prob_and_entropy(parameters[:-1], actions)
    loss, metrics = a2c_loss(log_prob, entropy, values[:-1], advantages, returns, valid, args.vf_coef, args.ent_coef)
    optimizer.zero_grad()
    loss.backward()
    metrics["grad_norm"] = nn.utils.clip_grad_norm_(agent.parameters(), args.max_grad_norm)
    if metrics["grad_norm"].isfinite():  # else train ends the run, and the weights have stayed good
        optimizer.step()
    return metrics


def train(args):
    """Train, log, save and evaluate -> (agent, history), history a list of (global_step, episode_return)."""
    torch.manual_seed(args.seed)
    torch.set_num_threads(1)  # the network is tiny: one thread beats many
    device = torch.device("cpu" if args.device == "auto" else args.device)
    envs = make_envs(args)
    agent = ActorCritic(envs.single_observation_space, envs.single_action_space).to(device)
    # With --normalize-env the running mean and variance of observations and of returns belong to the agent.
    agent.statistics = (envs.env.obs_rms, envs.return_rms) if args.normalize_env else ()
    # Without momentum (β1 = 0), like the paper's RMSProp: the next rollout comes from another policy.
    optimizer = torch.optim.Adam(agent.parameters(), lr=args.learning_rate, betas=(0.0, 0.999), eps=1e-5, fused=True)
    start_step, run_id = load_checkpoint(args, agent, optimizer) if args.resume is not None else (0, None)

    # A rollout is written in NumPy, like the environments, and goes to the device in one piece.
    shape = args.num_steps, args.num_envs
    observations = np.zeros((args.num_steps + 1, args.num_envs, *envs.single_observation_space.shape), np.float32)
    actions = np.zeros((*shape, *envs.single_action_space.shape), np.int64 if agent.discrete else np.float32)
    rewards = np.zeros(shape, np.float32)
    terminateds, dones, valids = np.zeros((3, *shape), bool)
    done = np.zeros(args.num_envs, bool)
    episode_return, episode_length = np.zeros((2, args.num_envs))
    history, recent = [], collections.deque(maxlen=100)  # of (global_step, return), of (return, length)
    batch_size, global_step = args.num_steps * args.num_envs, start_step  # steps count the resets, too
    if global_step + batch_size <= args.total_timesteps:  # else a reset would only shift the running statistics
        observations[0], _ = envs.reset(seed=env_seed(args.seed, 0, start_step))
    folder, run = start_run(args, run_id, device)
    start_time = time.perf_counter()
    try:
        while global_step + batch_size <= args.total_timesteps:
            learning_rate = args.learning_rate * (1 - global_step / args.total_timesteps if args.anneal_lr else 1)
            optimizer.param_groups[0]["lr"] = learning_rate

            # 1. Play num_steps in every environment with the current policy.
            for t in range(args.num_steps):
                with torch.inference_mode():
                    parameters = agent.actor(torch.as_tensor(observations[t], device=device))  # (num_envs, num_outputs)
                    actions[t] = agent.sample(parameters).cpu().numpy()
                valids[t] = ~done  # the step after a done only resets: its action is ignored, it is no transition
                obs, reward, terminated, truncated, _ = envs.step(env_action(actions[t], envs.single_action_space))
                done = terminated | truncated
                # With a done comes the episode's true last observation: a time limit bootstraps from its value.
                observations[t + 1], rewards[t], terminateds[t], dones[t] = obs, reward, terminated, done
                global_step += args.num_envs

                # Episodes are reported in raw rewards: undo NormalizeReward's scaling.
                episode_return += reward * np.sqrt(envs.return_rms.var + envs.epsilon) if args.normalize_env else reward
                episode_length += valids[t]
                for i in np.flatnonzero(done):
                    history.append((global_step, float(episode_return[i])))
                    recent.append((episode_return[i], episode_length[i]))
                    episode_return[i] = episode_length[i] = 0

            # 2. Learn from the whole rollout, in one gradient step.
            rollout = observations, actions, rewards, terminateds, dones, valids
            metrics = update(agent, optimizer, *(torch.as_tensor(x, device=device) for x in rollout), args)
            if not math.isfinite(metrics["grad_norm"]):
                raise RunError(
                    f"step {global_step}: the loss is not finite; try a lower --learning-rate, or look for NaN in "
                    f"what {args.env_id} returns"
                )
            observations[0] = observations[-1]

            # 3. Log and save.
            last = global_step + batch_size > args.total_timesteps
            if last or due(args.log_interval, global_step, batch_size):
                speed = (global_step - start_step) / (time.perf_counter() - start_time)
                charts = {"charts/SPS": speed, "charts/learning_rate": learning_rate}
                log_progress(run, args, global_step, recent, charts, metrics)
            if due(args.checkpoint_interval, global_step, batch_size):
                save_checkpoint(folder, args, agent, optimizer, global_step, run.id)

        save_checkpoint(folder, args, agent, optimizer, global_step, run.id)
        if args.eval_episodes:
            log_evaluation(run, global_step, evaluate(agent, args, folder), folder)
        print(f"checkpoint {folder / 'checkpoint.pt'}", flush=True)
    except (KeyboardInterrupt, SystemExit):
        save_checkpoint(folder, args, agent, optimizer, global_step, run.id)
        print(f"stopped at step {global_step:,}  checkpoint {folder / 'checkpoint.pt'}", flush=True)
        raise
    finally:
        envs.close()
        run.finish(exit_code=int(sys.exc_info()[0] is not None))
    return agent, history


def evaluate(agent, args, folder=None):
    """Play args.eval_episodes greedy episodes in fresh environments, away from training's seeds -> their returns.

    --capture-video records the first episode into `folder` (args.run_dir if None).
    """
    env = make_eval_env(agent, args, folder or args.run_dir)
    device, returns = next(agent.parameters()).device, []
    for episode in range(args.eval_episodes):
        obs, _ = env.reset(seed=env_seed(args.seed, 1, episode))
        episode_return, done = 0.0, False
        while not done:
            with torch.inference_mode():
                parameters, _ = agent(torch.as_tensor(obs, dtype=torch.float32, device=device))
                action = agent.greedy(parameters).cpu().numpy()
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


def make_envs(args):
    """args.num_envs environments stepped together; RunError if there are none of that name or not for this script."""
    try:
        envs = gym.make_vec(args.env_id, num_envs=args.num_envs)
        if args.capture_video:  # a rehearsal: whatever is missing for a video shows now, not after training
            with tempfile.TemporaryDirectory() as folder:
                env = record_video(gym.make(args.env_id, render_mode="rgb_array"), folder)
                env.reset()
                env.close()
    except Exception as error:  # an environment can fail in any way
        raise RunError(f"--env-id {args.env_id}: {textwrap.shorten(str(error) or repr(error), 300)}") from None
    obs_space, action_space = envs.single_observation_space, envs.single_action_space
    continuous = flat(action_space) and np.issubdtype(action_space.dtype, np.floating)
    if not (flat(obs_space) and (continuous or isinstance(action_space, Discrete))):
        spaces = textwrap.shorten(f"{obs_space} and {action_space}", 300)
        raise RunError(
            f"--env-id {args.env_id}: takes flat Box observations, Discrete or flat float Box actions, not {spaces}"
        )
    if envs.metadata.get("autoreset_mode") != AutoresetMode.NEXT_STEP:
        raise RunError(f"--env-id {args.env_id}: takes vector environments with AutoresetMode.NEXT_STEP")
    if args.normalize_env:
        envs = gym.wrappers.vector.NormalizeReward(gym.wrappers.vector.NormalizeObservation(envs), gamma=args.gamma)
    return envs


def make_eval_env(agent, args, folder):
    """One environment to evaluate in; observations are scaled as in training, by frozen statistics."""
    if args.capture_video:
        env = record_video(gym.make(args.env_id, render_mode="rgb_array"), folder)
    else:
        env = gym.make(args.env_id)
    if args.normalize_env:
        env = gym.wrappers.NormalizeObservation(env)
        env.obs_rms, env.update_running_mean = agent.statistics[0], False
    return env


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
        "optimizer": optimizer.state_dict(),
        "statistics": [(torch.as_tensor(rms.mean), torch.as_tensor(rms.var), rms.count) for rms in agent.statistics],
        "torch_rng": torch.get_rng_state(),
        "wandb_id": run_id,
    }
    torch.save(checkpoint, folder / "checkpoint.tmp")
    os.replace(folder / "checkpoint.tmp", folder / "checkpoint.pt")


def load_checkpoint(args, agent, optimizer):
    """Restore what save_checkpoint wrote to args.resume -> (global_step, W&B run id); RunError if it does not fit."""
    try:
        checkpoint = torch.load(args.resume, map_location="cpu", weights_only=True)
        script, flags = checkpoint["script"], checkpoint["flags"]
        if script != Path(__file__).stem or any(
            flags[name] != vars(args)[name] for name in ("env_id", "normalize_env")
        ):
            raise ValueError(f"of {script}.py, env_id {flags['env_id']}, normalize_env {flags.get('normalize_env')}")
        agent.load_state_dict(checkpoint["agent"])
        optimizer.load_state_dict(checkpoint["optimizer"])
        for rms, (mean, var, count) in zip(agent.statistics, checkpoint["statistics"], strict=True):
            rms.mean, rms.var, rms.count = mean.numpy(), var.numpy(), count
        torch.set_rng_state(checkpoint["torch_rng"])
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
