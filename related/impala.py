# /// script
# requires-python = ">=3.11"
# dependencies = ["ale-py>=0.12", "gymnasium[classic-control,other]>=1.2.1", "numpy>=1.26", "torch>=2.6", "wandb>=0.28"]
# ///
"""IMPALA: actors play with copies of the policy, and one learner corrects for their lag with V-trace.

Paper    Espeholt et al. 2018 (arXiv:1802.01561), sections 3 and 4
Update   L = -E[log π(a|s) A] + vf_coef E[(v - V(s))²] - ent_coef E[H(π(·|s))]    one Adam step per batch of unrolls
         v_t = V(s_t) + δ_t + γ c_t (v_t+1 - V(s_t+1))    δ_t = ρ_t (r_t + γ V(s_t+1) - V(s_t))
         A_t = ρ_t (r_t + γ v_t+1 - V(s_t))    ρ_t = min(ρ̄, π(a_t|s_t) / μ(a_t|s_t))    c_t the same with c̄ <= ρ̄
         V and v are 0 at a terminal state; v = V after the last step of an unroll or of a truncated episode; A and v
         are constants
Actors   Each worker process is an actor: it copies the newest weights, plays num_steps steps with them, and sends this
         unroll with the logits of μ, the policy that acted. An unroll may span several episodes. By the time the
         learner uses it, π is charts/policy_lag updates newer than μ. An actor sends its next unroll once the learner
         has received the one before; otherwise the processes run freely, so a seed does not reproduce a run.
Departs  Adam without momentum, which is RMSProp with a bias correction; losses are means over the batch; truncated
         episodes bootstrap from their last observation; orthogonal initialization; no LSTM. Flat observations:
         separate networks for π and V; observations are normalized by their running mean and variance, rewards divided
         by the root mean square of the running returns; both are limited to ±10. Atari: no sticky actions, no FIRE at
         reset, up to 30 no-ops; the mean image is subtracted; as in the paper a lost life is terminal and rewards are
         clipped to ±1, for learning only
Run      python related/impala.py
Result   CartPole-v1: greedy return 500.0 ± 0.0 (10 seeds)
"""

import argparse
import contextlib
import io
import json
import os
import re
import secrets
import signal
import sys
import threading
import time
from copy import deepcopy
from functools import partial
from multiprocessing.connection import wait
from pathlib import Path
from typing import NamedTuple

import gymnasium as gym
import numpy as np
import torch
import wandb
from gymnasium.spaces import Box, Discrete
from torch import multiprocessing, nn

SCRIPT = "impala"  # names run folders; stored in checkpoints


def parse_args(argv=None):
    """Parse the flags; a value out of range ends the program with exit code 2 and an error message."""
    parser = argparse.ArgumentParser(fromfile_prefix_chars="@", formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.description = __doc__.splitlines()[0]
    parser.convert_arg_line_to_args = lambda line: [line.strip()] if line.strip() else []  # @FILE may have blank lines
    parser.register("type", "JSON object", lambda text: dict(json.loads(text)))  # dict refuses other JSON values
    add = parser.add_argument
    add("--env-id", default="CartPole-v1", help="Gymnasium id, ALE/GAME-v5, or MODULE:ID for your own environment")
    add("--env-kwargs", type="JSON object", default={}, help="environment options as JSON")
    add("--total-timesteps", type=number(int, 1), default=200_000, help="environment steps, summed over actors")
    add("--num-workers", type=number(int, 1), default=2, help="actors: processes, each with its own environment")
    add("--num-steps", type=number(int, 1), default=32, help="steps per unroll, the paper's n")
    add("--batch-size", type=number(int, 1), default=8, help="unrolls per update")
    add("--vtrace", action=argparse.BooleanOptionalAction, default=True, help="correct for policy lag; off: π/μ = 1")
    add("--rho-bar", type=number(float, 0), default=1.0, help="ρ̄, which decides the policy whose value is learned")
    add("--c-bar", type=number(float, 0), default=1.0, help="c̄, which decides how far back TD errors reach")
    add("--sync-interval", type=number(int, 1), default=1, help="updates between refreshes of the actors' weights")
    add("--learning-rate", type=number(float, 0), default=5e-3, help="Adam's step size η")
    add("--anneal-lr", action=argparse.BooleanOptionalAction, default=True, help="decay the step size linearly to 0")
    add("--gamma", type=number(float, 0, 1), default=0.999, help="discount γ")
    add("--vf-coef", type=number(float, 0), default=0.5, help="weight of the value loss")
    add("--ent-coef", type=number(float, 0), default=0.0, help="weight of the entropy bonus")
    add("--max-grad-norm", type=number(float, 0), default=0.5, help="clip the gradient's global norm to this")
    add("--seed", type=number(int, 0), default=1, help="seed of all random numbers")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    add("--device", default=device, help="where the learner's network runs: cpu, cuda, cuda:N, mps")
    add("--log-interval", type=number(int, 1), default=10_000, help="environment steps between logs and checkpoints")
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
    if args.c_bar > args.rho_bar:
        parser.error(f"argument --c-bar: {args.c_bar} exceeds --rho-bar {args.rho_bar}; V-trace assumes c̄ <= ρ̄")
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
    """π(a|s), categorical, and V(s): separate networks for flat observations, a shared body for frames."""

    def __init__(self, obs_space, num_actions):
        super().__init__()
        self.image = len(obs_space.shape) == 3
        if self.image:
            layers = [init(nn.Conv2d(4, 16, 8, stride=4), 2**0.5), nn.ReLU()]
            layers += [init(nn.Conv2d(16, 32, 4, stride=2), 2**0.5), nn.ReLU(), nn.Flatten()]
            layers += [init(nn.Linear(32 * 9 * 9, 256), 2**0.5), nn.ReLU()]
            self.body = nn.Sequential(*layers)
            self.actor = init(nn.Linear(256, num_actions), 0.01)  # a small gain: the initial policy is close to uniform
            self.critic = init(nn.Linear(256, 1), 1.0)
        else:
            self.actor = mlp(obs_space.shape[0], num_actions, gain=0.01)  # the initial policy is close to uniform
            self.critic = mlp(obs_space.shape[0], 1, gain=1.0)
        self.obs_statistics = RunningStatistics(obs_space.shape[-2:])  # of frames: a mean image, (84, 84)
        self.return_statistics = RunningStatistics(())  # of running returns, r_t + γ r_t-1 + γ² r_t-2 + ...

    def forward(self, obs):
        """(..., *obs_shape) -> logits (..., num_actions) and V(s), (...)."""
        features = self.features(obs)
        return self.actor(features), self.critic(features).squeeze(-1)

    def features(self, obs):
        """Apply the shared body to frames minus the mean image; give flat components mean 0 and variance 1."""
        obs = obs - self.obs_statistics.mean  # of frames: the mean image
        if self.image:  # (..., 4, 84, 84) -> (batch, 4, 84, 84) -> (..., 256)
            return self.body(obs.flatten(0, -4) / 255).unflatten(0, obs.shape[:-3])
        return (obs / (self.obs_statistics.var + 1e-8).sqrt()).clamp(-10.0, 10.0)

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


def vtrace(ratios, rewards, values, next_values, terminations, dones, gamma, rho_bar, c_bar):
    """Return V-trace targets v (eq. 1, as in Remark 1) and advantages A (section 4.2); all are (num_steps, batch_size).

    ratios are π(a|s) / μ(a|s); next_values are V of the states that the steps reached.
    """
    rhos, cs = np.minimum(ratios, rho_bar), np.minimum(ratios, c_bar)
    next_values = next_values * ~terminations  # only a terminal state: a truncated episode would have continued
    deltas = rhos * (rewards + gamma * next_values - values)
    corrections = np.zeros((len(deltas) + 1, *deltas.shape[1:]), deltas.dtype)  # v - V; 0 after the last step
    for t in reversed(range(len(deltas))):
        corrections[t] = deltas[t] + gamma * cs[t] * ~dones[t] * corrections[t + 1]
    next_targets = next_values + ~dones * corrections[1:]
    advantages = rhos * (rewards + gamma * next_targets - values)
    return values + corrections[:-1], advantages


def impala_loss(log_prob, entropy, values, advantages, targets, vf_coef, ent_coef):
    """Compute the loss L of the module docstring -> (loss, metrics); every tensor is (num_steps, batch_size)."""
    policy_loss = -(log_prob * advantages).mean()
    value_loss = (targets - values).square().mean()
    entropy = entropy.mean()
    loss = policy_loss + vf_coef * value_loss - ent_coef * entropy
    metrics = {"policy_loss": policy_loss, "value_loss": value_loss, "entropy": entropy}
    metrics["explained_variance"] = 1 - (targets - values).detach().var(correction=0) / targets.var(correction=0)
    return loss, {f"losses/{name}": value for name, value in metrics.items()}


class Unroll(NamedTuple):
    """Steps that an actor sends to the learner; they may belong to several episodes."""

    rank: int  # of the actor
    version: int  # number of updates that its weights have had
    observations: np.ndarray  # (num_steps + 1, *obs_shape); after the end of an episode comes the next one's first
    actions: np.ndarray  # (num_steps,), as are the four arrays after logits
    logits: np.ndarray  # of μ, (num_steps, num_actions)
    rewards: np.ndarray
    running_returns: np.ndarray  # r_t + γ r_t-1 + γ² r_t-2 + ... of each episode
    terminations: np.ndarray
    dones: np.ndarray
    last_observations: dict  # of truncated episodes, by the step that truncated them
    statistics: list  # one dict per episode that ended, with its return r and its length l


def update(agent, optimizer, unrolls, args):
    """Take one gradient step on a batch of unrolls -> metrics."""
    to_tensor = partial(torch.as_tensor, device=args.device)

    def stack(name):
        return np.stack([getattr(unroll, name) for unroll in unrolls], axis=1)  # (num_steps, batch_size, ...)

    actions = to_tensor(stack("actions"))
    logits, values = agent(to_tensor(stack("observations")))  # (num_steps + 1, batch_size, ...)
    log_prob, entropy = log_prob_and_entropy(logits[:-1], actions)
    behaviour_log_prob, _ = log_prob_and_entropy(to_tensor(stack("logits")), actions)
    ratios = (log_prob - behaviour_log_prob).detach().exp().cpu().numpy()  # π(a|s) / μ(a|s)
    clipped_share = (ratios > args.rho_bar).mean()
    if not args.vtrace:
        ratios = np.ones_like(ratios)

    baseline = values.detach().cpu().numpy()  # targets and advantages carry no gradient
    next_values = baseline[1:].copy()
    for i, unroll in enumerate(unrolls):  # the row after a truncated episode belongs to the next one
        for t, obs in unroll.last_observations.items():
            with torch.no_grad():
                next_values[t, i] = agent(to_tensor(obs).unsqueeze(0))[1].item()
    rewards, terminations, dones = stack("rewards"), stack("terminations"), stack("dones")
    if not is_atari(args):  # Atari's rewards have been clipped
        rewards = (rewards / agent.return_statistics.rms()).clip(-10, 10)
    targets, advantages = vtrace(
        ratios, rewards, baseline[:-1], next_values, terminations, dones, args.gamma, args.rho_bar, args.c_bar
    )
    targets, advantages = to_tensor(targets), to_tensor(advantages)
    loss, metrics = impala_loss(log_prob, entropy, values[:-1], advantages, targets, args.vf_coef, args.ent_coef)
    optimizer.zero_grad()
    loss.backward()
    grad_norm = nn.utils.clip_grad_norm_(agent.parameters(), args.max_grad_norm)
    if not grad_norm.isfinite():
        raise RunError(f"the gradient is not finite: lower --learning-rate, or look for NaN in {args.env_id}")
    optimizer.step()
    return metrics | {"losses/grad_norm": grad_norm, "charts/clipped_rho": clipped_share}


def worker(send, rank, args, shared_agent, version, slot, start_step):
    """An actor: play unrolls with the newest weights and send them, until the learner ends this process.

    shared_agent and version, the number of its updates, are in shared memory. The learner releases slot, a semaphore,
    when it has received the actor's previous unroll.
    """
    env = gym.wrappers.RecordEpisodeStatistics(make_env(args), stats_key="recorded_episode")
    num_actions = int(env.action_space.n)
    agent = ActorCritic(env.observation_space, num_actions)
    seed = derive_seed(args.seed, 0, start_step, rank)
    torch.manual_seed(seed)
    obs, info = env.reset(seed=seed)
    running_return = 0.0
    with env:
        while True:
            unroll = Unroll(
                rank=rank,
                version=version.value,
                observations=np.zeros((args.num_steps + 1, *obs.shape), obs.dtype),
                actions=np.zeros(args.num_steps, np.int64),
                logits=np.zeros((args.num_steps, num_actions), np.float32),
                rewards=np.zeros(args.num_steps, np.float32),
                running_returns=np.zeros(args.num_steps, np.float32),
                terminations=np.zeros(args.num_steps, bool),
                dones=np.zeros(args.num_steps, bool),
                last_observations={},
                statistics=[],
            )
            # Without a lock: if the learner is writing, old and new weights mix; μ is then the policy of this mixture.
            agent.load_state_dict(shared_agent.state_dict())
            for t in range(args.num_steps):
                unroll.observations[t] = obs
                with torch.inference_mode():
                    obs_row = torch.as_tensor(unroll.observations[t : t + 1])  # (1, *obs_shape)
                    logits = agent.actor(agent.features(obs_row))  # (1, num_actions)
                    action = agent.sample(logits).item()
                lives = info.get("lives", 0)
                obs, reward, terminated, truncated, info = env.step(action)
                lost_life = is_atari(args) and info["lives"] < lives  # terminal for the learner; the game continues
                unroll.actions[t] = action
                unroll.logits[t] = logits[0]
                unroll.rewards[t] = np.sign(reward) if is_atari(args) else reward
                unroll.running_returns[t] = running_return = unroll.rewards[t] + args.gamma * running_return
                unroll.terminations[t] = terminated or lost_life
                unroll.dones[t] = terminated or truncated or lost_life
                if truncated:
                    unroll.last_observations[t] = obs
                if terminated or truncated:
                    unroll.statistics.append(info.pop("recorded_episode"))
                    obs, info = env.reset()
                    running_return = 0.0
            unroll.observations[-1] = obs
            slot.acquire()
            send(unroll)


def train(args):
    """Train, log, save and evaluate -> (agent, history), history a list of (global_step, episode_return)."""
    torch.manual_seed(args.seed)
    env = make_env(args)
    env.close()
    if len(env.observation_space.shape) == 1:
        torch.set_num_threads(1)  # one thread is faster than several for a network this small
    agent = ActorCritic(env.observation_space, int(env.action_space.n))
    agent.to(args.device)
    if "mps" not in args.device:  # on MPS, PyTorch 2.13 silently misreads this layout (its issue 192212)
        agent.to(memory_format=torch.channels_last)  # convolutions are faster in this layout
    # No momentum (β1 = 0), as in the paper; without Adam's bias correction the first steps would be too large.
    optimizer = torch.optim.Adam(agent.parameters(), lr=args.learning_rate, betas=(0.0, 0.999), eps=1e-5, fused=True)
    checkpoint = load_checkpoint(args.resume, agent=agent, optimizer=optimizer) if args.resume else {}
    for weights, state in optimizer.state.items():  # fused Adam needs the weights' layout; an MPS checkpoint lacks it
        state |= {name: torch.empty_like(weights).copy_(state[name]) for name in ("exp_avg", "exp_avg_sq")}
    start_step, run_id = checkpoint.get("global_step", 0), checkpoint.get("run_id")
    context = multiprocessing.get_context("spawn")  # fork can deadlock once torch has started threads
    shared_agent = deepcopy(agent).cpu().share_memory()  # the weights that actors copy
    version = context.Value("q", 0, lock=False)  # number of updates that shared_agent has had
    slots = [context.Semaphore(1) for _ in range(args.num_workers)]  # one per actor: a killed one blocks no other
    history, lengths = [], []
    lags = []  # since the last log
    num_updates = 0
    global_step = start_step  # steps learned from
    next_log = start_step + args.log_interval
    workers = {}
    run, folder = start_run(args, run_id)
    start_time = None

    def save():
        return save_checkpoint(folder, args, global_step, run.id, agent=agent, optimizer=optimizer)

    with finishing(run, workers, save):
        if start_step < args.total_timesteps:
            for rank in range(args.num_workers):
                start_worker(workers, context, rank, args, shared_agent, version, slots[rank], start_step)
        incoming = receive_unrolls(workers)
        while global_step < args.total_timesteps:
            remaining = 1 - global_step / args.total_timesteps if args.anneal_lr else 1.0
            optimizer.param_groups[0]["lr"] = args.learning_rate * remaining

            # 1. Receive a batch of unrolls, from whichever actors have finished one.
            unrolls = []
            while len(unrolls) < args.batch_size:
                unroll = next(incoming)
                slots[unroll.rank].release()  # the actor may send its next one
                unrolls.append(unroll)
                start_time = start_time or time.perf_counter()  # after the processes have started, which takes seconds

            # 2. Learn from them, and let the actors copy the new weights.
            metrics = update(agent, optimizer, unrolls, args)
            observations = np.concatenate([unroll.observations[:-1] for unroll in unrolls])
            agent.obs_statistics.update(observations[:, -1] if agent.image else observations)  # only the newest frames
            agent.return_statistics.update(np.concatenate([unroll.running_returns for unroll in unrolls]))
            lags += [num_updates - unroll.version for unroll in unrolls]
            num_updates += 1
            global_step += args.batch_size * args.num_steps
            if num_updates % args.sync_interval == 0:
                shared_agent.load_state_dict(agent.state_dict())
                version.value = num_updates

            # 3. Log and save.
            for statistics in [episode for unroll in unrolls for episode in unroll.statistics]:
                history.append((global_step, float(statistics["r"])))
                lengths.append(statistics["l"])
            if global_step >= min(next_log, args.total_timesteps):
                next_log += args.log_interval
                seconds = time.perf_counter() - start_time
                metrics["charts/policy_lag"] = np.mean(lags)
                metrics["charts/SPS"] = (global_step - start_step) / seconds
                metrics["charts/TPS"] = num_updates / seconds  # updates per second
                metrics["charts/learning_rate"] = optimizer.param_groups[0]["lr"]
                lags.clear()
                log_progress(run, args, global_step, history, lengths[-100:], metrics)
                save()

        end_workers(workers)
        log_evaluation(run, folder, agent, args, global_step)
    return agent, history


def start_worker(workers, context, rank, *worker_args):
    """Start a worker process and add it to workers, a dict {pipe that receives its output: process}."""
    receiver, sender = context.Pipe(duplex=False)  # one pipe per worker: a killed worker holds no lock that others need
    process = context.Process(target=run_worker, args=(sender, rank, *worker_args), name=f"worker {rank}", daemon=True)
    can_mask_signals = hasattr(signal, "pthread_sigmask")  # not on Windows
    if can_mask_signals:  # the worker inherits the mask: Ctrl-C is for the parent alone
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    process.start()
    workers[receiver] = process
    sender.close()  # now only the worker keeps this end open, so its death closes the pipe
    if can_mask_signals:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def run_worker(sender, *worker_args):
    """Run a worker process: send a RunError to the parent; any other error prints its traceback."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # unwinds the stack, which closes the environment
    threading.Thread(target=end_with_parent, daemon=True).start()
    torch.set_num_threads(1)  # otherwise the workers' threads compete for cores
    try:
        # Sent as a tuple: in some debuggers this file's classes cannot be unpickled.
        worker(lambda report: sender.send(tuple(report)), *worker_args)
    except RunError as error:
        sender.send(str(error))
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # this process is about to end anyway


def end_with_parent():
    """Wait until the parent process has ended, even by SIGKILL, then end this process, whatever it is doing."""
    multiprocessing.parent_process().join()
    os._exit(1)


def receive_unrolls(workers):
    """Yield the actors' unrolls as they come; raise RunError if an actor fails or is killed."""
    while True:
        for receiver in wait(workers):
            try:
                message = receiver.recv()
            except (EOFError, OSError):  # the actor has ended
                process = workers[receiver]
                process.join()  # exit code 1 after a traceback; -9 often means out of memory
                raise RunError(f"{process.name} died, exit code {process.exitcode}") from None
            if isinstance(message, str):
                raise RunError(message)
            yield Unroll(*message)


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
    envs = gym.vector.SyncVectorEnv([lambda: make_env(args, **render)] * num_episodes)
    envs.unwrapped._add_info = lambda infos, info, i: infos  # private hook; drop infos: some cannot be stacked
    if video_folder:
        # At most 1,000 frames, which are kept in memory.
        envs = gym.wrappers.vector.RecordVideo(envs, video_folder, episode_trigger=lambda n: n == 0, video_length=1_000)
    obs, _ = envs.reset(seed=derive_seed(args.seed, 1))
    returns = np.zeros(num_episodes)
    playing = np.ones(num_episodes, bool)  # only each environment's first episode: more would favour short ones
    for _ in range(100_000):  # without a time limit a greedy policy may loop forever
        with torch.inference_mode():
            logits, _ = agent(torch.as_tensor(obs, device=args.device))
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


def is_atari(args):
    """Return whether the environment is one of ALE's games."""
    return args.env_id.split(":")[-1].startswith("ALE/")


def make_env(args, **options):
    """Make one environment without autoreset; raise RunError if its spaces are not supported."""
    defaults = {}
    if is_atari(args):
        import ale_py  # only Atari needs it

        gym.register_envs(ale_py)
        defaults = {"frameskip": 1, "repeat_action_probability": 0.0}
    env = gym.make(args.env_id, **defaults | args.env_kwargs | options)
    if args.capture_video and "rgb_array" not in env.metadata.get("render_modes", []):
        raise RunError(f"--capture-video: {args.env_id} has no render mode rgb_array")
    discrete = isinstance(env.action_space, Discrete) and env.action_space.start == 0
    if not discrete or not env.observation_space.is_np_flattenable:  # no Sequence or Graph
        raise RunError(
            f"--env-id {args.env_id}: needs Discrete actions counted from 0, and observations other than Sequence or "
            f"Graph; it has {env.action_space} and {type(env.observation_space).__name__}"
        )
    if is_atari(args):
        env = gym.wrappers.AtariPreprocessing(env)  # 84x84 grey frames, frame skip 4, up to 30 no-ops
        env = gym.wrappers.FrameStackObservation(env, 4, padding_type="zero")
    else:
        if not (isinstance(env.observation_space, Box) and len(env.observation_space.shape) == 1):
            env = gym.wrappers.FlattenObservation(env)  # discrete observations become one-hot
        shape = env.observation_space.shape

        def copy(obs):  # some environments return the same array every time and overwrite it
            obs = np.array(obs, np.float32)
            if obs.shape != shape:
                raise RunError(f"--env-id {args.env_id}: observation of shape {obs.shape}, declared {shape}")
            return obs

        env = gym.wrappers.TransformObservation(env, copy, Box(-np.inf, np.inf, shape, np.float32))
    return env


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
