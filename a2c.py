# /// script
# requires-python = ">=3.11"
# dependencies = ["gymnasium[classic-control,other]>=1.2.1", "numpy>=1.26", "torch>=2.6", "wandb>=0.28"]
# ///
"""A2C: advantage actor-critic, the synchronous form of A3C.

Papers   Mnih et al. 2016 (arXiv:1602.01783), Alg. S3; Schulman et al. 2016 (arXiv:1506.02438), eq. 16
Update   L = -E[log π(a|s) A] + vf_coef E[(R - V(s))²] - ent_coef E[H(π(·|s))]    an Adam step a rollout, ∇L clipped
         δ_t = r_t + γ V(s_t+1) - V(s_t)    A_t = δ_t + γλ A_t+1    R_t = A_t + V(s_t)    λ = 1: R_t = r_t + γ R_t+1
         V(s_t+1) = 0 after a terminal state; A_t+1 = 0 after the end of an episode or rollout; A and R are constants
Departs  Adam without momentum for RMSProp; an episode that a time limit cuts bootstraps from its last observation
Run      python a2c.py
Result   greedy return 497.0 ± 18.6 (40 seeds, 39 of them 500.0), 3.4 s of training (one core of an AMD EPYC)
"""

import argparse
import io
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


def parse_args(argv=None):
    """Flags -> argparse.Namespace; a value out of range ends the program with one line and exit code 2."""
    parser = argparse.ArgumentParser(fromfile_prefix_chars="@", formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.description = __doc__.splitlines()[0]
    add = parser.add_argument
    gpus = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    devices = ["cpu", *["cuda"] * bool(gpus), *gpus, *["mps"] * torch.backends.mps.is_available()]
    add("--env-id", default="CartPole-v1", help="Gymnasium id: flat observations, discrete or continuous actions")
    add("--total-timesteps", type=number(int, 1), default=125_000, help="environment steps, over all environments")
    add("--num-envs", type=number(int, 1), default=16, help="environments stepped together")
    add("--num-steps", type=number(int, 1), default=8, help="steps per environment and update, the paper's t_max")
    add("--learning-rate", type=number(float, 0), default=1e-2, help="Adam's step size, falling linearly to 0, η")
    add("--gamma", type=number(float, 0, 1), default=0.98, help="discount γ")
    add("--gae-lambda", type=number(float, 0, 1), default=1.0, help="λ: 1 is the n-step advantage, 0 the TD error")
    add("--vf-coef", type=number(float, 0), default=0.1, help="weight of the value loss")
    add("--ent-coef", type=number(float, 0), default=0.02, help="weight of the entropy bonus, the paper's β")
    add("--max-grad-norm", type=number(float, 0), default=0.5, help="clip the global norm of the gradient to this")
    add("--reward-scale", type=number(float, 0), default=1.0, help="factor of the rewards that are learned from")
    add("--seed", type=number(int, 0), default=1, help="seeds networks, environments and actions")
    add("--device", default="cpu", choices=devices, help="what torch finds of cpu, cuda, cuda:N and mps")
    add("--log-interval", type=number(int, 1), default=5_000, help="environment steps between logs and checkpoints")
    add("--eval-episodes", type=number(int, 0), default=20, help="greedy episodes after training; 0 for none")
    add("--capture-video", action="store_true", help="record a greedy episode as MP4")
    add("--resume", help="checkpoint.pt to go on from, with fresh episodes; one that is complete is only evaluated")
    add("--run-dir", default="runs", help="parent of the run folder, which holds the checkpoint and the video")
    add("--wandb-mode", default=os.environ.get("WANDB_MODE", "offline"), choices=["disabled", "offline", "online"])
    add("--wandb-project", default=os.environ.get("WANDB_PROJECT", "reference-rl"), help="W&B project")
    return parser.parse_args(argv)


class ActorCritic(nn.Module):
    """π(a|s) and V(s) on one body of two layers; π is categorical for discrete actions, normal for continuous ones."""

    def __init__(self, obs_space, action_space):
        super().__init__()
        self.discrete = isinstance(action_space, Discrete)
        num_outputs = int(action_space.n) if self.discrete else action_space.shape[0]
        self.body = nn.Sequential(nn.Linear(obs_space.shape[0], 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh())
        self.actor, self.critic = nn.Linear(64, num_outputs), nn.Linear(64, 1)
        self.log_std = None if self.discrete else nn.Parameter(torch.zeros(num_outputs))  # the same in all states
        layers = self.body[0], self.body[2], self.actor, self.critic
        for layer, gain in zip(layers, (2**0.5, 2**0.5, 0.01, 1.0), strict=True):  # 0.01: near-uniform at the start
            nn.init.orthogonal_(layer.weight, gain)
            nn.init.zeros_(layer.bias)

    def forward(self, obs):
        """(..., obs_dim) -> logits (..., num_actions) or means (..., action_dim), and V(s), (...)."""
        features = self.body(obs)
        return self.actor(features), self.critic(features).squeeze(-1)

    def sample(self, output):
        """Logits or means -> actions drawn from π(·|s), (..., *action_shape)."""
        if self.discrete:  # Gumbel-max: the largest logit after adding noise is a draw from softmax(logits)
            return (output - torch.empty_like(output).exponential_().log()).argmax(-1)
        return output + self.log_std.exp() * torch.randn_like(output)

    def greedy(self, output):
        """Logits or means -> the most probable actions, (..., *action_shape)."""
        return output.argmax(-1) if self.discrete else output

    def log_prob_and_entropy(self, output, actions):
        """Logits or means, actions -> log π(a|s) and H(π(·|s)), both (...)."""
        if self.discrete:
            log_probs = output.log_softmax(-1)
            return log_probs.gather(-1, actions.unsqueeze(-1)).squeeze(-1), -(log_probs.exp() * log_probs).sum(-1)
        normal = torch.distributions.Normal(output, self.log_std.exp(), validate_args=False)
        return normal.log_prob(actions).sum(-1), normal.entropy().sum(-1)  # action dimensions are independent


def compute_advantages(rewards, values, terminateds, dones, gamma, gae_lambda):
    """GAE(γ, λ), eq. 16; values has num_steps + 1 rows, the other arrays and the result are (num_steps, num_envs)."""
    # Only a terminal state stops the bootstrap: an episode that the clock cut would have gone on.
    deltas = rewards + gamma * values[1:] * ~terminateds - values[:-1]
    advantages = np.zeros_like(values)  # one row more, of zeros, after the last step
    for t in reversed(range(len(deltas))):
        advantages[t] = deltas[t] + gamma * gae_lambda * ~dones[t] * advantages[t + 1]
    return advantages[:-1]


def a2c_loss(log_prob, entropy, values, advantages, returns, vf_coef, ent_coef):
    """L of the header -> (loss, metrics); every tensor is (batch,)."""
    policy_loss = -(log_prob * advantages).mean()
    value_loss = (returns - values).square().mean()
    entropy = entropy.mean()
    loss = policy_loss + vf_coef * value_loss - ent_coef * entropy
    return loss, {"losses/policy_loss": policy_loss, "losses/value_loss": value_loss, "losses/entropy": entropy}


def update(agent, optimizer, observations, actions, rewards, terminateds, dones, valids, args):
    """One gradient step on a rollout -> metrics; observations has num_steps + 1 rows, the other arrays num_steps."""
    output, values = agent(torch.as_tensor(observations, device=args.device))  # (num_steps + 1, num_envs, ...)
    baseline = values.detach().cpu().numpy()  # advantages and returns carry no gradient
    advantages = compute_advantages(rewards, baseline, terminateds, dones, args.gamma, args.gae_lambda)
    returns = advantages + baseline[:-1]
    batch = actions[valids], advantages[valids], returns[valids], valids  # resets left out
    actions, advantages, returns, valids = (torch.as_tensor(x, device=args.device) for x in batch)
    log_prob, entropy = agent.log_prob_and_entropy(output[:-1][valids], actions)  # (batch,)
    loss, metrics = a2c_loss(log_prob, entropy, values[:-1][valids], advantages, returns, args.vf_coef, args.ent_coef)
    optimizer.zero_grad()
    loss.backward()
    grad_norm = nn.utils.clip_grad_norm_(agent.parameters(), args.max_grad_norm)
    if not grad_norm.isfinite():
        raise RunError(f"the gradient is not finite: lower --learning-rate, or look for NaN in {args.env_id}")
    optimizer.step()
    return metrics | {"losses/grad_norm": grad_norm}


def train(args):
    """Train, log, save and evaluate -> (agent, history), history a list of (global_step, episode_return)."""
    torch.manual_seed(args.seed)
    torch.set_num_threads(1)  # the network is tiny: one thread beats many
    envs = gym.wrappers.vector.RecordEpisodeStatistics(make_envs(args, args.num_envs))
    obs_space, action_space = envs.single_observation_space, envs.single_action_space
    agent = ActorCritic(obs_space, action_space).to(args.device)
    # Without momentum (β1 = 0), like the paper's RMSProp: the next rollout comes from another policy.
    optimizer = torch.optim.Adam(agent.parameters(), lr=args.learning_rate, betas=(0.0, 0.999), eps=1e-5, fused=True)
    start_step, run_id = load_checkpoint(args, agent=agent, optimizer=optimizer) if args.resume else (0, None)
    torch.manual_seed(args.seed + start_step)  # a resumed run does not repeat its noise

    # A rollout is written in NumPy, like the environments; to assign to a row copies.
    shape = args.num_steps, args.num_envs
    observations = np.zeros((args.num_steps + 1, args.num_envs, *obs_space.shape), np.float32)
    actions = np.zeros((*shape, *action_space.shape), np.int64 if agent.discrete else np.float32)
    rewards = np.zeros(shape, np.float32)
    terminateds, dones, valids = np.zeros((3, *shape), bool)
    done = np.zeros(args.num_envs, bool)
    history = []
    global_step = start_step  # counts the resets, too
    observations[0], _ = envs.reset(seed=env_seed(args.seed, 0, start_step))
    run, folder = start_run(args, run_id, args.device)
    start_time = time.perf_counter()
    try:
        while global_step < args.total_timesteps:
            optimizer.param_groups[0]["lr"] = args.learning_rate * (1 - global_step / args.total_timesteps)

            # 1. Play num_steps in every environment with the current policy.
            for t in range(args.num_steps):
                with torch.inference_mode():
                    output, _ = agent(torch.as_tensor(observations[t], device=args.device))
                    actions[t] = agent.sample(output).cpu()
                valids[t] = ~done  # the step after a done only resets: its action is ignored, it is no transition
                # With a done comes the episode's true last observation: a time limit bootstraps from its value.
                observations[t + 1], rewards[t], terminateds[t], truncated, infos = envs.step(actions[t])
                rewards[t] *= args.reward_scale
                done = dones[t] = terminateds[t] | truncated
                global_step += args.num_envs
                history += [(global_step, float(infos["episode"]["r"][i])) for i in np.flatnonzero(done)]

            # 2. Learn from the whole rollout, in one gradient step.
            if valids.any():  # else resets alone
                metrics = update(agent, optimizer, observations, actions, rewards, terminateds, dones, valids, args)
            observations[0] = observations[-1]

            # 3. Log and save.
            if global_step % args.log_interval < args.num_envs * args.num_steps or global_step >= args.total_timesteps:
                speed = (global_step - start_step) / (time.perf_counter() - start_time)
                log_progress(run, args, global_step, speed, history, envs.length_queue, metrics)
                save_checkpoint(folder, args, global_step, run.id, agent=agent, optimizer=optimizer)

        log_evaluation(run, folder, agent, args, global_step)
    finally:
        try:  # after Ctrl-C, SIGTERM or an environment's error, too: what has been learned is kept
            if global_step > start_step:
                save_checkpoint(folder, args, global_step, run.id, agent=agent, optimizer=optimizer)
                print(f"checkpoint  {folder / 'checkpoint.pt'}  step {global_step:,}", flush=True)
        finally:
            envs.close()
            run.finish(exit_code=int(sys.exc_info()[0] is not None))
    return agent, history


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
            output, _ = agent(torch.as_tensor(obs, dtype=torch.float32, device=args.device))
            action = agent.greedy(output).cpu().numpy()
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
    envs = gym.make_vec(args.env_id, num_envs=num_envs, **render)
    obs_space, action_space = envs.single_observation_space, envs.single_action_space
    autoreset = envs.metadata.get("autoreset_mode")
    discrete = isinstance(action_space, Discrete) and action_space.start == 0
    continuous = isinstance(action_space, Box) and len(action_space.shape) == 1 and action_space.dtype.kind == "f"
    flat = isinstance(obs_space, Box) and len(obs_space.shape) == 1
    if not (flat and (discrete or continuous) and autoreset == gym.vector.AutoresetMode.NEXT_STEP):
        raise RunError(
            f"--env-id {args.env_id}: takes flat observations, Discrete (from 0) or flat float actions and "
            f"AutoresetMode.NEXT_STEP, not {obs_space}, {action_space} and {autoreset}"
        )
    return envs if discrete else gym.wrappers.vector.ClipAction(envs)


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
