# /// script
# requires-python = ">=3.11"
# dependencies = ["gymnasium[classic-control,other]>=1.2.1", "numpy>=1.26", "torch>=2.6", "wandb>=0.28"]
# ///
"""REINFORCE: Monte-Carlo policy gradient on batches of whole episodes, with a choice of weights Ψ for its ∇log π.

Papers   Williams 1992 (doi:10.1007/BF00992696); Schulman et al. 2016 (arXiv:1506.02438); elite: Mannor et al. 2003
Update   L = -1/N Σ_episodes Σ_t [Ψ_t log π(a_t|s_t) + ent_coef H(π(·|s_t))] + E[(G_t - V(s_t))²]
         G_t = r_t + γ G_t+1, 0 after the end    N = num_envs    Ψ and G are constants    an Adam step a batch
         total_return: Ψ_t = G_0    reward_to_go: G_t    mean_baseline: G_t - mean G    value_baseline: G_t - V(s_t)
         elite: 1 in the best elite_fraction N episodes, 0 in the others    V learns only for value_baseline
Bias     -∇L (ent_coef 0) is on average the gradient of E[G_0] for total_return and, at γ = 1 with no episode cut, for
         reward_to_go and value_baseline; for mean_baseline but for O(1/N), as the mean holds the episode; not for elite
Departs  no γ^t before Ψ_t (for γ < 1 a bias); Adam without momentum; the gradient is clipped. An episode that is cut,
         by a time limit or the end of training, ends there; only value_baseline goes on with γ V(last observation)
Run      python reinforce.py    python reinforce.py --psi elite
Result   greedy return 499.5 ± 1.6 (10 seeds), 3.9 s of training (one core of an AMD EPYC)
"""

import argparse
import io
import os
import re
import secrets
import signal
import sys
import time
from collections import deque
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
    add("--total-timesteps", type=number(int, 1), default=400_000, help="environment steps, over all environments")
    add("--num-envs", type=number(int, 1), default=64, help="environments stepped together: N episodes per update")
    choices = ["total_return", "reward_to_go", "mean_baseline", "value_baseline", "elite"]
    add("--psi", default="value_baseline", choices=choices, help="Ψ, the weight of ∇log π: see the head of the file")
    add("--elite-fraction", type=number(float, 0, 1), default=0.25, help="elite: share of the episodes learned from")
    add("--learning-rate", type=number(float, 0), default=3e-3, help="Adam's step size, falling linearly to 0, α")
    add("--value-learning-rate", type=number(float, 0), default=2e-2, help="value_baseline: the same for V")
    add("--gamma", type=number(float, 0, 1), default=0.998, help="discount γ")
    add("--ent-coef", type=number(float, 0), default=0.0, help="weight of the entropy bonus")
    add("--max-grad-norm", type=number(float, 0), default=0.5, help="clip the global norm of the gradient to this")
    add("--seed", type=number(int, 0), default=1, help="seeds networks, environments and actions")
    add("--device", default="cpu", choices=devices, help="what torch finds of cpu, cuda, cuda:N and mps")
    add("--log-interval", type=number(int, 1), default=10_000, help="environment steps between logs and checkpoints")
    add("--eval-episodes", type=number(int, 0), default=20, help="greedy episodes after training; 0 for none")
    add("--capture-video", action="store_true", help="record a greedy episode as MP4")
    add("--resume", help="checkpoint.pt to go on from, with fresh episodes; one that is complete is only evaluated")
    add("--run-dir", default="runs", help="parent of the run folder, which holds the checkpoint and the video")
    add("--wandb-mode", default=os.environ.get("WANDB_MODE", "offline"), choices=["disabled", "offline", "online"])
    add("--wandb-project", default=os.environ.get("WANDB_PROJECT", "reference-rl"), help="W&B project")
    return parser.parse_args(argv)


class ActorCritic(nn.Module):
    """π(a|s) and V(s), a network each; π is categorical for discrete actions, normal for continuous ones."""

    def __init__(self, obs_space, action_space):
        super().__init__()
        self.discrete = isinstance(action_space, Discrete)
        num_outputs = int(action_space.n) if self.discrete else action_space.shape[0]
        self.actor, self.critic = (
            nn.Sequential(nn.Linear(*obs_space.shape, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, size))
            for size in (num_outputs, 1)
        )
        self.log_std = None if self.discrete else nn.Parameter(torch.zeros(num_outputs))  # the same in all states

    def forward(self, obs):
        """(..., obs_dim) -> logits (..., num_actions) or means (..., action_dim), and V(s), (...)."""
        return self.actor(obs), self.critic(obs).squeeze(-1)

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


def discounted_returns(rewards, gamma):
    """G_t = r_t + γ G_t+1 as a backward recursion from 0; rewards and the result are (num_steps, num_envs)."""
    returns = np.zeros((len(rewards) + 1, *rewards.shape[1:]), np.float32)  # a row more, of zeros, after the last step
    for t in reversed(range(len(rewards))):
        returns[t] = rewards[t] + gamma * returns[t + 1]
    return returns[:-1]


def psi_weights(psi, returns, values, valids, elite_fraction):
    """Ψ of the header by its name, (batch,), from G_t and valids, (num_steps, num_envs), and V(s_t), (batch,)."""
    episodes = valids.nonzero()[1]  # of each step
    best = returns[0].argsort()[-max(1, round(elite_fraction * len(returns[0]))) :]  # the first row is G_0
    return {
        "total_return": returns[0][episodes],
        "reward_to_go": returns[valids],
        "mean_baseline": returns[valids] - returns[valids].mean(),
        "value_baseline": returns[valids] - values,
        "elite": np.isin(episodes, best).astype(np.float32),
    }[psi]


def reinforce_loss(log_prob, entropy, weights, num_episodes, ent_coef):
    """L of the header but for the value loss -> (loss, metrics); every tensor is (batch,), of all episodes."""
    # Sums over episodes, not means over steps: those would count a step of a long episode for less than it is.
    policy_loss = -(weights * log_prob).sum() / num_episodes
    loss = policy_loss - ent_coef * entropy.sum() / num_episodes
    return loss, {"losses/policy_loss": policy_loss, "losses/entropy": entropy.mean()}


def update(agent, optimizer, observations, actions, rewards, cuts, valids, args):
    """One gradient step on a batch -> metrics; observations has num_steps + 1 rows, the other arrays num_steps."""
    output, values = agent(torch.as_tensor(observations[:-1][valids], device=args.device))  # (batch, ...)
    if args.psi == "value_baseline":  # an episode that the clock cut would have gone on
        last_values = agent.critic(torch.as_tensor(observations[1:][cuts], device=args.device)).squeeze(-1)
        rewards[cuts] += args.gamma * last_values.detach().cpu().numpy()
    returns = discounted_returns(rewards, args.gamma)  # like Ψ without gradient
    weights = psi_weights(args.psi, returns, values.detach().cpu().numpy(), valids, args.elite_fraction)
    batch = actions[valids], returns[valids], weights
    actions, returns, weights = (torch.as_tensor(x, device=args.device) for x in batch)
    log_prob, entropy = agent.log_prob_and_entropy(output, actions)
    loss, metrics = reinforce_loss(log_prob, entropy, weights, args.num_envs, args.ent_coef)
    if args.psi == "value_baseline":
        metrics["losses/value_loss"] = (returns - values).square().mean()
        loss = loss + metrics["losses/value_loss"]
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
    envs = make_envs(args, args.num_envs)
    agent = ActorCritic(envs.single_observation_space, envs.single_action_space).to(args.device)
    # V takes larger steps than π: it has few batches in which to rise from 0 to returns of hundreds.
    policy = [p for name, p in agent.named_parameters() if not name.startswith("critic")]
    groups = [{"params": policy}, {"params": agent.critic.parameters()}]
    # Without momentum (β1 = 0): the next batch comes from another policy.
    optimizer = torch.optim.Adam(groups, betas=(0.0, 0.999), eps=1e-5, fused=True)
    start_step, run_id = load_checkpoint(args, agent=agent, optimizer=optimizer) if args.resume else (0, None)
    torch.manual_seed(args.seed + start_step)  # a resumed run does not repeat its noise

    history, lengths = [], deque(maxlen=100)  # lengths of the last episodes
    global_step = start_step  # counts what is learned from, not what an environment plays after its episode
    run, folder = start_run(args, run_id, args.device)
    start_time = time.perf_counter()
    try:
        while global_step < args.total_timesteps:
            for group, rate in zip(optimizer.param_groups, (args.learning_rate, args.value_learning_rate), strict=True):
                group["lr"] = rate * (1 - global_step / args.total_timesteps)

            # 1. Play one episode in every environment. Taking the first N that end would favour short episodes, so
            # whoever has ended plays on, unseen, until the last one has.
            step = global_step
            obs, _ = envs.reset(seed=env_seed(args.seed, 0, step))
            observations, steps = [obs], []
            running, episode_return = np.ones(args.num_envs, bool), np.zeros(args.num_envs)
            while running.any():
                with torch.inference_mode():
                    output = agent.actor(torch.as_tensor(obs, dtype=torch.float32, device=args.device))
                    action = agent.sample(output).cpu().numpy()
                obs, reward, terminated, truncated, _ = envs.step(action)
                step += int(running.sum())
                done = running & (terminated | truncated)
                # With a done comes the episode's true last observation; the environment resets only in its next step.
                cut = running & ~terminated & (truncated | (step >= args.total_timesteps))
                observations.append(obs)
                steps.append((action, (reward * running).astype(np.float32), cut, running))
                episode_return += reward
                history += [(step, float(x)) for x in episode_return[done]]
                lengths += [len(steps)] * int(done.sum())
                running = running & ~(done | cut)

            # 2. Learn from the whole batch, in one gradient step.
            batch = (np.stack(x) for x in zip(*steps, strict=True))  # each (num_steps, num_envs, ...)
            metrics = update(agent, optimizer, np.stack(observations).astype(np.float32), *batch, args)
            first_step, global_step = global_step, step

            # 3. Log and save.
            if global_step % args.log_interval < global_step - first_step or global_step >= args.total_timesteps:
                speed = (global_step - start_step) / (time.perf_counter() - start_time)
                log_progress(run, args, global_step, speed, history, lengths, metrics)
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
