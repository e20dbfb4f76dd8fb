# /// script
# requires-python = ">=3.11"
# dependencies = ["gymnasium[classic-control,other]>=1.2.1", "numpy>=1.26", "torch>=2.6", "wandb>=0.28"]
# ///
"""REINFORCE: Monte-Carlo policy gradient on batches of whole episodes, with a choice of weights Ψ_t.

Papers   Williams 1992 (doi:10.1007/BF00992696); Schulman et al. 2016 (arXiv:1506.02438); elite: Mannor et al. 2003
Update   L = -1/N Σ_episodes Σ_t [Ψ_t log π(a_t|s_t) + ent_coef H(π(·|s_t))]    one Adam step per batch
         G_t = r_t + γ G_t+1, and 0 after the end    N = num_envs    Ψ is a constant
         total_return: Ψ_t = G_0    reward_to_go: G_t    mean_baseline: G_t - mean G    value_baseline: G_t - V(s_t)
         elite: 1 in the best elite_fraction · N episodes, 0 in the others
         value_baseline then fits V to G: value_steps Adam steps on E[(G_t - V(s_t))²]
Bias     With ent_coef 0, -∇L is an unbiased estimate of ∇E[G_0] for total_return; for reward_to_go if γ = 1; and for
         value_baseline if, in addition, no episode is truncated. mean_baseline has a bias of O(1/N): the episode is
         part of the mean. elite optimizes another objective.
Departs  no γ^t before G_t (a bias if γ < 1); Adam. For the first value_warmup steps value_baseline trains V alone: with
         an untrained V, Ψ mostly has the sign of the rewards. Observations are normalized by their running mean and
         variance; V predicts G / (running root mean square of G). An episode that is truncated, by a time limit or
         the end of training, ends there; only value_baseline bootstraps, from V(last observation)
Run      python reinforce.py    python reinforce.py --psi elite
         python reinforce.py --psi total_return --gamma 1 --num-envs 32 --learning-rate 5e-4 --total-timesteps 400000
Result   CartPole-v1, first command: greedy return 500.0 ± 0.0 (10 seeds)
"""

import argparse
import contextlib
import io
import json
import os
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

SCRIPT = "reinforce"  # names run folders; stored in checkpoints


def parse_args(argv=None):
    """Parse the flags; a value out of range ends the program with exit code 2 and an error message."""
    parser = argparse.ArgumentParser(fromfile_prefix_chars="@", formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.description = __doc__.splitlines()[0]
    parser.convert_arg_line_to_args = lambda line: [line.strip()] if line.strip() else []  # @FILE may have blank lines
    parser.register("type", "JSON object", lambda text: dict(json.loads(text)))  # dict refuses other JSON values
    add = parser.add_argument
    choices = ["total_return", "reward_to_go", "mean_baseline", "value_baseline", "elite"]
    add("--env-id", default="CartPole-v1", help="Gymnasium id, or MODULE:ID for your own environment")
    add("--env-kwargs", type="JSON object", default={}, help="environment options as JSON")
    add("--total-timesteps", type=number(int, 1), default=200_000, help="environment steps, summed over environments")
    add("--num-envs", type=number(int, 1), default=8, help="environments stepped in parallel: N episodes per update")
    add("--psi", default="value_baseline", choices=choices, help="Ψ_t, what multiplies ∇log π(a_t|s_t)")
    add("--elite-fraction", type=number(float, 0, 1), default=0.25, help="for --psi elite: fraction of episodes kept")
    add("--value-steps", type=number(int, 1), default=10, help="for --psi value_baseline: Adam steps on V per batch")
    add("--value-warmup", type=number(int, 0), default=10_000, help="for value_baseline: steps before π learns")
    add("--learning-rate", type=number(float, 0), default=1e-2, help="Adam's step size")
    add("--anneal-lr", action=argparse.BooleanOptionalAction, default=True, help="decay the step size linearly to 0")
    add("--gamma", type=number(float, 0, 1), default=0.99, help="discount γ")
    add("--ent-coef", type=number(float, 0), default=0.0, help="weight of the entropy bonus")
    add("--seed", type=number(int, 0), default=1, help="seed of all random numbers")
    add("--device", default="cpu", help="where the network runs: cpu, cuda, cuda:N, mps")
    add("--log-interval", type=number(int, 1), default=5_000, help="environment steps between logs and checkpoints")
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
    if args.psi == "value_baseline" and args.value_warmup >= args.total_timesteps:
        parser.error(f"argument --value-warmup: {args.value_warmup} is not below --total-timesteps: π cannot learn")
    return args


class RunningStatistics(nn.Module):
    """The mean and variance of all samples so far, as buffers, so that checkpoints and evaluation include them."""

    def __init__(self, shape):
        super().__init__()
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("mean", torch.zeros(shape))
        self.register_buffer("var", torch.ones(shape))

    def update(self, samples):
        """Include samples, (batch, *shape), an array or a tensor."""
        samples = torch.as_tensor(samples, dtype=self.mean.dtype, device=self.mean.device)
        delta = samples.mean(0) - self.mean
        if not delta.isfinite().all():
            raise RunError("an observation or a reward of the environment is not finite")
        self.count += len(samples)
        weight = len(samples) / self.count
        self.mean += weight * delta
        self.var += weight * (samples.var(0, correction=0) + (1 - weight) * delta.square() - self.var)

    def rms(self):
        """Return the root mean square of all samples, a float above 0."""
        return (self.mean.square() + self.var + 1e-8).sqrt().item()


class ActorCritic(nn.Module):
    """π(a|s) and V(s), separate networks; π is categorical for discrete actions, normal for continuous ones."""

    def __init__(self, obs_space, action_space):
        super().__init__()
        self.discrete = isinstance(action_space, Discrete)
        num_outputs = int(action_space.n) if self.discrete else action_space.shape[0]

        def mlp(size):
            obs_dim = obs_space.shape[0]
            return nn.Sequential(nn.Linear(obs_dim, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, size))

        self.actor = mlp(num_outputs)
        self.critic = mlp(1)
        self.log_std = None if self.discrete else nn.Parameter(torch.zeros(num_outputs))  # state-independent
        self.obs_statistics = RunningStatistics(obs_space.shape)
        self.return_statistics = RunningStatistics(())  # of G: its root mean square is the unit of V

    def forward(self, obs):
        """(..., obs_dim) -> logits (..., num_actions) or means (..., action_dim), and V(s), (...)."""
        obs = self.normalize(obs)
        return self.actor(obs), self.critic(obs).squeeze(-1)

    def normalize(self, obs):
        """Give each component of the observations mean 0 and variance 1, limited to ±10."""
        return ((obs - self.obs_statistics.mean) / (self.obs_statistics.var + 1e-8).sqrt()).clamp(-10.0, 10.0)

    def sample(self, output):
        """Logits or means (num_envs, ...) -> actions drawn from π(·|s), (num_envs, *action_shape)."""
        # argmax(p / Exp(1)) is a sample from p. torch.multinomial raises on NaN, before `update` can report it plainly.
        if self.discrete:
            probs = output.softmax(-1)
            return (probs / torch.empty_like(probs).exponential_()).argmax(-1)
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
    """Return G_t = r_t + γ G_t+1, computed backwards from 0; rewards and the result are (num_steps, num_envs)."""
    returns = np.zeros((len(rewards) + 1, *rewards.shape[1:]), np.float32)  # one extra row of zeros
    for t in reversed(range(len(rewards))):
        returns[t] = rewards[t] + gamma * returns[t + 1]
    return returns[:-1]


def psi_weights(psi, returns, values, is_transition, elite_fraction):
    """Return the weights Ψ_t, (batch,) like values; returns (G_t) and is_transition are (num_steps, num_envs)."""
    if psi == "total_return":
        episode_of_step = is_transition.nonzero()[1]
        return returns[0][episode_of_step]  # the first row is G_0
    if psi == "reward_to_go":
        return returns[is_transition]
    if psi == "mean_baseline":
        return returns[is_transition] - returns[is_transition].mean()
    if psi == "value_baseline":
        return returns[is_transition] - values
    num_elite = max(1, round(elite_fraction * returns.shape[1]))
    elite_episodes = returns[0].argsort()[-num_elite:]
    return np.isin(is_transition.nonzero()[1], elite_episodes).astype(np.float32)


def reinforce_loss(log_prob, entropy, weights, num_episodes, ent_coef):
    """Compute L of the module docstring -> (loss, metrics); tensors are (batch,): the steps of all episodes."""
    # A sum over each episode's steps: a mean over all steps would give a step less weight in a batch of long episodes.
    policy_loss = -(weights * log_prob).sum() / num_episodes
    loss = policy_loss - ent_coef * entropy.sum() / num_episodes
    return loss, {"losses/policy_loss": policy_loss, "losses/entropy": entropy.mean()}


def update(agent, optimizer, observations, actions, rewards, truncations, is_transition, args):
    """Take one gradient step on a batch, and several on V -> metrics; observations has one row more than the others."""
    to_tensor = partial(torch.as_tensor, device=args.device)
    batch = to_tensor(observations[:-1][is_transition])  # (batch, obs_dim)
    output, values = agent(batch)
    scale = agent.return_statistics.rms()
    if args.psi == "value_baseline":  # a truncated episode would have continued
        _, last_values = agent(to_tensor(observations[1:][truncations]))
        rewards[truncations] += args.gamma * scale * last_values.detach().cpu().numpy()
    returns = discounted_returns(rewards, args.gamma)
    baseline = scale * values.detach().cpu().numpy()
    weights = psi_weights(args.psi, returns, baseline, is_transition, args.elite_fraction)
    actions, returns, weights = to_tensor(actions[is_transition]), to_tensor(returns[is_transition]), to_tensor(weights)
    log_prob, entropy = agent.log_prob_and_entropy(output, actions)
    loss, metrics = reinforce_loss(log_prob, entropy, weights, args.num_envs, args.ent_coef)
    optimizer.zero_grad()
    loss.backward()
    grad_norm = nn.utils.get_total_norm([p.grad for p in agent.parameters() if p.grad is not None])
    if not (grad_norm.isfinite() and returns.isfinite().all()):  # elite's gradient does not contain the returns
        raise RunError(f"the gradient is not finite: lower --learning-rate, or look for NaN in {args.env_id}")
    if args.psi != "value_baseline" or agent.return_statistics.count >= args.value_warmup:
        optimizer.step()
    if args.psi == "value_baseline":
        errors = returns - scale * values.detach()
        explained_variance = 1 - errors.var(correction=0) / returns.var(correction=0)
        agent.return_statistics.update(returns)
        targets, batch = returns / agent.return_statistics.rms(), agent.normalize(batch)
        for _ in range(args.value_steps):
            value_loss = (targets - agent.critic(batch).squeeze(-1)).square().mean()
            optimizer.zero_grad()  # π's gradients are None from here on, so that Adam skips π
            value_loss.backward()
            optimizer.step()
        metrics |= {"losses/value_loss": value_loss, "losses/explained_variance": explained_variance}
    return metrics | {"losses/grad_norm": grad_norm}


def train(args):
    """Train, log, save and evaluate -> (agent, history), history a list of (global_step, episode_return)."""
    torch.manual_seed(args.seed)
    torch.set_num_threads(1)  # one thread is faster than several for a network this small
    envs = make_envs(args, args.num_envs)
    agent = ActorCritic(envs.single_observation_space, envs.single_action_space).to(args.device)
    optimizer = torch.optim.Adam(agent.parameters(), lr=args.learning_rate, fused=True)
    checkpoint = load_checkpoint(args.resume, agent=agent, optimizer=optimizer) if args.resume else {}
    start_step, run_id = checkpoint.get("global_step", 0), checkpoint.get("run_id")
    torch.manual_seed(derive_seed(args.seed, 2, start_step))  # a resumed run draws new noise

    history, lengths = [], []
    global_step = start_step  # counts only steps that are learned from
    next_log = start_step + args.log_interval
    run, folder = start_run(args, run_id)
    start_time = time.perf_counter()

    def save():
        return save_checkpoint(folder, args, global_step, run.id, agent=agent, optimizer=optimizer)

    with finishing(run, envs, save):
        while global_step < args.total_timesteps:
            remaining = 1 - global_step / args.total_timesteps if args.anneal_lr else 1.0
            optimizer.param_groups[0]["lr"] = args.learning_rate * remaining

            # 1. Play one episode in every environment. Taking the first N episodes that end would favour short ones,
            # so finished environments keep stepping, ignored, until the last one finishes.
            obs, _ = envs.reset(seed=derive_seed(args.seed, 0, global_step))
            observations, actions, rewards, truncations, is_transition = [np.array(obs, np.float32)], [], [], [], []
            playing = np.ones(args.num_envs, bool)
            episode_return = np.zeros(args.num_envs)
            while playing.any() and global_step < args.total_timesteps:
                with torch.inference_mode():
                    output = agent.actor(agent.normalize(torch.as_tensor(observations[-1], device=args.device)))
                    action = agent.sample(output).cpu().numpy()
                obs, reward, terminated, truncated, _ = envs.step(action)
                done = playing & (terminated | truncated)
                # When done, the observation is the episode's last one: a truncated episode bootstraps from its value.
                observations.append(np.array(obs, np.float32))
                actions.append(action)
                rewards.append(np.where(playing, reward, 0).astype(np.float32))
                truncations.append(done & ~terminated)
                is_transition.append(playing)
                global_step += int(playing.sum())
                episode_return += reward
                history += [(global_step, float(x)) for x in episode_return[done]]
                lengths += [len(actions)] * int(done.sum())
                playing = playing & ~done
            truncations[-1] |= playing  # the end of training truncates the episodes that are still running

            # 2. Learn from all episodes.
            observations, actions, rewards = np.stack(observations), np.stack(actions), np.stack(rewards)
            truncations, is_transition = np.stack(truncations), np.stack(is_transition)
            metrics = update(agent, optimizer, observations, actions, rewards, truncations, is_transition, args)
            agent.obs_statistics.update(observations[:-1][is_transition])

            # 3. Log and save.
            if global_step >= min(next_log, args.total_timesteps):
                next_log += args.log_interval
                metrics["charts/SPS"] = (global_step - start_step) / (time.perf_counter() - start_time)
                metrics["charts/learning_rate"] = optimizer.param_groups[0]["lr"]
                log_progress(run, args, global_step, history, lengths[-100:], metrics)
                save()

        envs.close()
        log_evaluation(run, folder, agent, args, global_step)
    return agent, history


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
            output, _ = agent(torch.as_tensor(obs, dtype=torch.float32, device=args.device))
            action = agent.greedy(output).cpu().numpy()
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
    envs = gym.make_vec(args.env_id, num_envs=num_envs, **args.env_kwargs | options)
    envs.unwrapped._add_info = lambda infos, info, i: infos  # private hook; drop infos: some cannot be stacked
    if args.capture_video and "rgb_array" not in envs.metadata.get("render_modes", []):
        raise RunError(f"--capture-video: {args.env_id} has no render mode rgb_array")
    obs_space, action_space = envs.single_observation_space, envs.single_action_space
    autoreset = envs.metadata.get("autoreset_mode")
    discrete = isinstance(action_space, Discrete) and action_space.start == 0
    continuous = isinstance(action_space, Box) and len(action_space.shape) == 1 and action_space.dtype.kind == "f"
    flattenable = obs_space.is_np_flattenable  # no Sequence or Graph
    if not (discrete or continuous) or not flattenable or autoreset != gym.vector.AutoresetMode.NEXT_STEP:
        raise RunError(
            f"--env-id {args.env_id}: needs Discrete actions counted from 0 or a flat Box of floats, observations "
            f"other than Sequence or Graph, and AutoresetMode.NEXT_STEP; "
            f"it has {action_space}, {type(obs_space).__name__} and {autoreset}"
        )
    if not (isinstance(obs_space, Box) and len(obs_space.shape) == 1):
        envs = gym.wrappers.vector.FlattenObservation(envs)  # discrete observations become one-hot
    if continuous:  # the policy acts in [-1, 1]; where a bound is infinite, in [-1, ∞), (-∞, 1] or (-∞, ∞)
        # Not by RescaleAction: its rounding may exceed the bounds, and it returns NaN where they are equal.
        low, high = action_space.low, action_space.high
        half = np.where(np.isfinite(low) & np.isfinite(high), high / 2 - low / 2, 1)
        mid = np.where(np.isfinite(low), low + half, np.where(np.isfinite(high), high - half, 0))
        envs = gym.wrappers.vector.TransformAction(envs, lambda a: (mid + half * a).clip(low, high).astype(low.dtype))
    return envs


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
