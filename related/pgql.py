# /// script
# requires-python = ">=3.11"
# dependencies = ["gymnasium[classic-control,other]>=1.2.1", "numpy>=1.26", "torch>=2.6", "wandb>=0.28"]
# ///
"""PGQL: A2C plus Q-learning, from a replay buffer, on the Q values that the policy implies.

Papers   O'Donoghue et al. 2017 (arXiv:1611.01626); GAE: Schulman et al. 2016 (arXiv:1506.02438), eq. 16
Update   one Adam step per rollout on (1 - η) L + η L_Q; η = 0 is a2c.py, η = 1 Q-learning alone
         L = -E[log π(a|s) A] + vf_coef E[(R - V(s))²] - α E[H(π(·|s))] over the rollout, A and R as in a2c.py
         ∇L_Q = -E[δ (∇log π(a|s) + 2 vf_coef ∇V(s))] over transitions drawn uniformly from the replay buffer
         δ = r + γ max_a' Q̃(s',a') - Q̃(s,a)    δ = r - Q̃(s,a) if s' is terminal
         Q̃(s,a) = α (log π(a|s) + H(π(·|s))) + V(s)    α = ent_coef; where A2C has converged, Q̃ is the Q of π
Departs  synchronous: one gradient step on both losses; a resumed run starts with an empty replay buffer; replayed
         observations and rewards are scaled by the current running statistics; otherwise as in a2c.py
Run      python related/pgql.py
Result   CartPole-v1: greedy return 500.0 ± 0.0 (10 seeds)
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

SCRIPT = "pgql"  # names run folders; stored in checkpoints


def parse_args(argv=None):
    """Parse the flags; a value out of range ends the program with exit code 2 and an error message."""
    parser = argparse.ArgumentParser(fromfile_prefix_chars="@", formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.description = __doc__.splitlines()[0]
    parser.convert_arg_line_to_args = lambda line: [line.strip()] if line.strip() else []  # @FILE may have blank lines
    parser.register("type", "JSON object", lambda text: dict(json.loads(text)))  # dict refuses other JSON values
    add = parser.add_argument
    add("--env-id", default="CartPole-v1", help="Gymnasium id, or MODULE:ID for your own environment")
    add("--env-kwargs", type="JSON object", default={}, help="environment options as JSON")
    add("--total-timesteps", type=number(int, 1), default=125_000, help="environment steps, summed over environments")
    add("--num-envs", type=number(int, 1), default=8, help="environments stepped in parallel")
    add("--num-steps", type=number(int, 1), default=32, help="steps per environment and update, the paper's t_max")
    add("--learning-rate", type=number(float, 0), default=5e-3, help="Adam's step size")
    add("--anneal-lr", action=argparse.BooleanOptionalAction, default=True, help="decay the step size linearly to 0")
    add("--gamma", type=number(float, 0, 1), default=0.999, help="discount γ")
    add("--gae-lambda", type=number(float, 0, 1), default=1.0, help="λ: 1 is the n-step advantage, 0 the TD error")
    add("--vf-coef", type=number(float, 0), default=0.5, help="weight of the value loss")
    add("--ent-coef", type=number(float, 0), default=0.01, help="weight of the entropy bonus, the temperature α of Q̃")
    add("--eta", type=number(float, 0, 1), default=0.5, help="η, the weight of Q-learning; the actor-critic's is 1 - η")
    add("--buffer-size", type=number(int, 1), default=100_000, help="transitions in the replay buffer")
    add("--batch-size", type=number(int, 1), default=256, help="replayed transitions per update")
    add("--max-grad-norm", type=number(float, 0), default=0.5, help="clip the gradient's global norm to this")
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
    """π(a|s) and V(s), separate networks; π is categorical."""

    def __init__(self, obs_space, num_actions):
        super().__init__()
        self.actor = mlp(obs_space.shape[0], num_actions, gain=0.01)  # the initial policy is close to uniform
        self.critic = mlp(obs_space.shape[0], 1, gain=1.0)
        self.obs_statistics = RunningStatistics(obs_space.shape)
        self.return_statistics = RunningStatistics(())  # of running returns, r_t + γ r_t-1 + γ² r_t-2 + ...

    def forward(self, obs):
        """(..., obs_dim) -> logits (..., num_actions) and V(s), (...)."""
        obs = self.normalize(obs)
        return self.actor(obs), self.critic(obs).squeeze(-1)

    def normalize(self, obs):
        """Give each component of the observations mean 0 and variance 1, limited to ±10."""
        return ((obs - self.obs_statistics.mean) / (self.obs_statistics.var + 1e-8).sqrt()).clamp(-10.0, 10.0)

    def sample(self, logits):
        """Logits (num_envs, num_actions) -> actions drawn from π(·|s), (num_envs,)."""
        # argmax(p / Exp(1)) is a sample from p. torch.multinomial raises on NaN, before `update` can report it plainly.
        probs = logits.softmax(-1)
        return (probs / torch.empty_like(probs).exponential_()).argmax(-1)


def mlp(num_inputs, num_outputs, gain):
    """Make two hidden layers of 64 units and an output layer; gain scales the output layer's initial weights."""
    hidden = init(nn.Linear(num_inputs, 64), 2**0.5), nn.Tanh(), init(nn.Linear(64, 64), 2**0.5), nn.Tanh()
    return nn.Sequential(*hidden, init(nn.Linear(64, num_outputs), gain))


def init(layer, gain):
    """Give a layer orthogonal weights and zero biases."""
    nn.init.orthogonal_(layer.weight, gain)
    nn.init.zeros_(layer.bias)
    return layer


def log_prob_and_entropy(logits, actions):
    """Logits (..., num_actions), actions (...) -> log π(a|s) and H(π(·|s)), both (...)."""
    log_probs = logits.log_softmax(-1)
    return log_probs.gather(-1, actions.unsqueeze(-1)).squeeze(-1), -(log_probs.exp() * log_probs).sum(-1)


def compute_advantages(rewards, values, terminations, dones, gamma, gae_lambda):
    """Compute GAE(γ, λ), eq. 16, (num_steps, num_envs); values has num_steps + 1 rows, the other arrays num_steps."""
    # Only a terminal state stops the bootstrap: a truncated episode would have continued.
    deltas = rewards + gamma * values[1:] * ~terminations - values[:-1]
    advantages = np.zeros_like(values)  # one extra row of zeros, after the last step
    for t in reversed(range(len(deltas))):
        advantages[t] = deltas[t] + gamma * gae_lambda * ~dones[t] * advantages[t + 1]
    return advantages[:-1]


def a2c_loss(log_prob, entropy, values, advantages, returns, vf_coef, ent_coef):
    """Compute the loss L of the module docstring -> (loss, metrics); every tensor is (batch,)."""
    policy_loss = -(log_prob * advantages).mean()
    value_loss = (returns - values).square().mean()
    entropy = entropy.mean()
    loss = policy_loss + vf_coef * value_loss - ent_coef * entropy
    metrics = {"policy_loss": policy_loss, "value_loss": value_loss, "entropy": entropy}
    metrics["explained_variance"] = 1 - (returns - values).detach().var(correction=0) / returns.var(correction=0)
    return loss, {f"losses/{name}": value for name, value in metrics.items()}


def sample_transitions(replay, batch_size, rng):
    """Draw transitions uniformly -> observations, actions, rewards, terminations, next observations."""
    observations, actions, rewards, terminations, _, is_transition = replay  # (num_rollouts, num_steps, num_envs, ...)
    transitions = rng.choice(np.flatnonzero(is_transition), batch_size)  # no reset steps and no unfilled rows
    i, t, n = np.unravel_index(transitions, is_transition.shape)
    return observations[i, t, n], actions[i, t, n], rewards[i, t, n], terminations[i, t, n], observations[i, t + 1, n]


def implied_q_values(logits, values, alpha):
    """Return Q̃(s,·) = α (log π(·|s) + H(π(·|s))) + V(s), (batch, num_actions), from logits and V(s), (batch,)."""
    log_probs = logits.log_softmax(-1)
    entropy = -(log_probs.exp() * log_probs).sum(-1, keepdim=True)
    return alpha * (log_probs + entropy) + values.unsqueeze(-1)


def compute_td_errors(q_values, actions, rewards, next_q_values, terminations, gamma):
    """Return δ of the module docstring from Q̃(s,·) and Q̃(s',·), (batch, num_actions); the others are (batch,)."""
    targets = rewards + gamma * next_q_values.amax(-1) * ~terminations  # a truncated episode would have continued
    return targets - q_values.gather(-1, actions.unsqueeze(-1)).squeeze(-1)


def update(agent, optimizer, rollout, batch, args):
    """Take one gradient step on a rollout and a batch of replayed transitions -> metrics."""
    to_tensor = partial(torch.as_tensor, device=args.device)
    scale = agent.return_statistics.rms()
    observations, actions, rewards, terminations, dones, is_transition = rollout  # observations has num_steps + 1 rows
    rewards = (rewards / scale).clip(-10, 10)
    logits, values = agent(to_tensor(observations))  # (num_steps + 1, num_envs, ...)
    baseline = values.detach().cpu().numpy()  # advantages and returns carry no gradient
    advantages = compute_advantages(rewards, baseline, terminations, dones, args.gamma, args.gae_lambda)
    returns = advantages + baseline[:-1]

    # Reset steps are left out: what follows is (batch, ...).
    actions = to_tensor(actions[is_transition])
    advantages = to_tensor(advantages[is_transition])
    returns = to_tensor(returns[is_transition])
    log_prob, entropy = log_prob_and_entropy(logits[:-1][is_transition], actions)
    values = values[:-1][is_transition]
    ac_loss, metrics = a2c_loss(log_prob, entropy, values, advantages, returns, args.vf_coef, args.ent_coef)

    # Q-learning has the same loss, with δ for the advantage and without the entropy bonus, which Q̃ contains.
    obs, actions, rewards, terminations, next_obs = [to_tensor(x) for x in batch]
    rewards = (rewards / scale).clip(-10, 10)
    logits, values = agent(obs)
    with torch.no_grad():
        q_values = implied_q_values(logits, values, args.ent_coef)
        next_q_values = implied_q_values(*agent(next_obs), args.ent_coef)
        td_errors = compute_td_errors(q_values, actions, rewards, next_q_values, terminations, args.gamma)
    log_prob, entropy = log_prob_and_entropy(logits, actions)
    q_loss, _ = a2c_loss(log_prob, entropy, values, td_errors, values.detach() + td_errors, args.vf_coef, 0.0)
    loss = (1 - args.eta) * ac_loss + args.eta * q_loss
    optimizer.zero_grad()
    loss.backward()
    grad_norm = nn.utils.clip_grad_norm_(agent.parameters(), args.max_grad_norm)
    if not grad_norm.isfinite():
        raise RunError(f"the gradient is not finite: lower --learning-rate, or look for NaN in {args.env_id}")
    optimizer.step()
    return metrics | {"losses/td_loss": td_errors.square().mean(), "losses/grad_norm": grad_norm}


def train(args):
    """Train, log, save and evaluate -> (agent, history), history a list of (global_step, episode_return)."""
    torch.manual_seed(args.seed)
    torch.set_num_threads(1)  # one thread is faster than several for a network this small
    envs = gym.wrappers.vector.RecordEpisodeStatistics(make_envs(args, args.num_envs), stats_key="statistics")
    obs_space = envs.single_observation_space
    agent = ActorCritic(obs_space, int(envs.single_action_space.n)).to(args.device)
    # No momentum (β1 = 0), as in the paper's RMSProp: the next rollout is sampled from a different policy.
    optimizer = torch.optim.Adam(agent.parameters(), lr=args.learning_rate, betas=(0.0, 0.999), eps=1e-5, fused=True)
    checkpoint = load_checkpoint(args.resume, agent=agent, optimizer=optimizer) if args.resume else {}
    start_step, run_id = checkpoint.get("global_step", 0), checkpoint.get("run_id")
    torch.manual_seed(derive_seed(args.seed, 2, start_step))  # a resumed run draws new noise

    # Rollouts are NumPy arrays, like the environments' output; assigning to a row copies.
    shape = args.num_steps, args.num_envs
    observations = np.zeros((args.num_steps + 1, args.num_envs, *obs_space.shape), np.float32)
    actions = np.zeros(shape, np.int64)
    rewards, running_returns = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    terminations, dones, is_transition = np.zeros(shape, bool), np.zeros(shape, bool), np.zeros(shape, bool)
    done, running_return = np.zeros(args.num_envs, bool), np.zeros(args.num_envs, np.float32)
    rollout = observations, actions, rewards, terminations, dones, is_transition
    # The last rollouts. np.full touches the memory, np.zeros does not: a machine with too little fails now, not later.
    replay = [np.full((args.buffer_size // rewards.size + 1, *x.shape), 0, x.dtype) for x in rollout]
    rng = np.random.default_rng(derive_seed(args.seed, 3, start_step))
    history = []
    global_step = start_step  # includes reset steps
    next_log = start_step + args.log_interval
    observations[0], _ = envs.reset(seed=derive_seed(args.seed, 0, start_step))
    run, folder = start_run(args, run_id)
    start_time = time.perf_counter()

    def save():
        return save_checkpoint(folder, args, global_step, run.id, agent=agent, optimizer=optimizer)

    with finishing(run, envs, save):
        while global_step < args.total_timesteps:
            remaining = 1 - global_step / args.total_timesteps if args.anneal_lr else 1.0
            optimizer.param_groups[0]["lr"] = args.learning_rate * remaining

            # 1. Play num_steps in every environment with the current policy.
            for t in range(args.num_steps):
                with torch.inference_mode():
                    logits = agent.actor(agent.normalize(torch.as_tensor(observations[t], device=args.device)))
                    actions[t] = agent.sample(logits).cpu()
                is_transition[t] = ~done  # the step after a done only resets: its action is ignored
                # When done, the observation is the episode's last one: a truncated episode bootstraps from its value.
                observations[t + 1], rewards[t], terminations[t], truncated, infos = envs.step(actions[t])
                running_return = rewards[t] + args.gamma * running_return * ~done  # done is still the previous step's
                running_returns[t] = running_return
                done = dones[t] = terminations[t] | truncated
                global_step += args.num_envs
                history += [(global_step, float(infos["statistics"]["r"][i])) for i in np.flatnonzero(done)]

            # 2. Learn from the whole rollout and a replayed batch, in one gradient step.
            oldest = global_step // rewards.size % len(replay[0])  # the row to overwrite; it advances by 1 per rollout
            for stored, array in zip(replay, rollout, strict=True):
                stored[oldest] = array
            if is_transition.any():
                metrics = update(agent, optimizer, rollout, sample_transitions(replay, args.batch_size, rng), args)
                # Only now, so that acting and learning use the same statistics.
                agent.obs_statistics.update(observations[:-1][is_transition])
                agent.return_statistics.update(running_returns[is_transition])
            observations[0] = observations[-1]

            # 3. Log and save.
            if global_step >= min(next_log, args.total_timesteps):
                next_log += args.log_interval
                metrics["charts/SPS"] = (global_step - start_step) / (time.perf_counter() - start_time)
                metrics["charts/learning_rate"] = optimizer.param_groups[0]["lr"]
                log_progress(run, args, global_step, history, envs.length_queue, metrics)
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
            logits, _ = agent(torch.as_tensor(obs, dtype=torch.float32, device=args.device))
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


def make_envs(args, num_envs, **options):
    """Make environments that step in parallel and reset one step after an episode ends; RunError if unsupported."""
    envs = gym.make_vec(args.env_id, num_envs=num_envs, **args.env_kwargs | options)
    envs.unwrapped._add_info = lambda infos, info, i: infos  # private hook; drop infos: some cannot be stacked
    if args.capture_video and "rgb_array" not in envs.metadata.get("render_modes", []):
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
    if not (isinstance(obs_space, Box) and len(obs_space.shape) == 1):
        envs = gym.wrappers.vector.FlattenObservation(envs)  # discrete observations become one-hot
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
