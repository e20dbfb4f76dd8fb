# /// script
# requires-python = ">=3.11"
# dependencies = ["ale-py>=0.12", "gymnasium[classic-control,other]>=1.2.1", "numpy>=1.26", "torch>=2.6", "wandb>=0.28"]
# ///
"""A3C: asynchronous advantage actor-critic, in processes that share weights without locking them (Hogwild).

Paper    Mnih et al. 2016 (arXiv:1602.01783), Alg. S3, with RMSProp's statistics shared
Update   L = Σ_t [-log π(a_t|s_t) (R_t - V(s_t)) + vf_coef (R_t - V(s_t))² - ent_coef H(π(·|s_t))]
         R_t = r_t + γ R_t+1 over up to num_steps steps of one episode; after the last step R is V of the state reached,
         or 0 if that state is terminal; R_t and the R_t - V(s_t) that weights log π are constants
         g = αg + (1 - α)Δθ²    θ = θ - η Δθ / √(g + ε)    Δθ = ∇L, clipped; initially g = 1
Workers  Each worker copies θ, plays with the copy, computes Δθ with the same copy, and applies Δθ to the shared θ. By
         then other workers have updated θ charts/gradient_delay times: it is the gradient that is late, not the policy.
         With one worker a seed reproduces a run bit for bit; with several it does not, and a checkpoint may mix weights
         from before and after an update.
Departs  truncated episodes bootstrap from their last observation; orthogonal initialization; the gradient's norm is
         clipped. Flat observations: tanh, separate networks for π and V unless --lstm, observations normalized by their
         running mean and variance, rewards divided by the root mean square of the running returns, both limited to
         ±10. All workers share the running statistics. Atari: no sticky actions, no FIRE at reset, up to 30 no-ops, the
         mean of all frames so far subtracted; for learning only, rewards are clipped to ±1 and a lost life is terminal
Run      python a3c.py
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
from multiprocessing.connection import wait
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import gymnasium as gym
import numpy as np
import torch
import wandb
from gymnasium.spaces import Box, Discrete
from torch import multiprocessing, nn

SCRIPT = "a3c"  # names run folders; stored in checkpoints


def parse_args(argv=None):
    """Parse the flags; a value out of range ends the program with exit code 2 and an error message."""
    parser = argparse.ArgumentParser(fromfile_prefix_chars="@", formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.description = __doc__.splitlines()[0]
    parser.convert_arg_line_to_args = lambda line: [line.strip()] if line.strip() else []  # @FILE may have blank lines
    parser.register("type", "JSON object", lambda text: dict(json.loads(text)))  # dict refuses other JSON values
    add = parser.add_argument
    add("--env-id", default="CartPole-v1", help="Gymnasium id, ALE/GAME-v5, or MODULE:ID for your own environment")
    add("--env-kwargs", type="JSON object", default={}, help="environment options as JSON")
    add("--total-timesteps", type=number(int, 1), default=200_000, help="environment steps, summed over workers")
    add("--num-workers", type=number(int, 1), default=2, help="processes, each with its own environment")
    add("--num-steps", type=number(int, 1), default=50, help="maximum number of steps per update, the paper's t_max")
    add("--learning-rate", type=number(float, 0), default=2e-3, help="RMSProp's step size η")
    add("--anneal-lr", action=argparse.BooleanOptionalAction, default=True, help="decay the step size linearly to 0")
    add("--rmsprop-decay", type=number(float, 0, 1), default=0.99, help="decay α of RMSProp's mean square g")
    add("--rmsprop-eps", type=number(float, 1e-12), default=1e-4, help="ε, added to g inside the square root")
    add("--gamma", type=number(float, 0, 1), default=0.999, help="discount γ")
    add("--vf-coef", type=number(float, 0), default=0.5, help="weight of the value loss")
    add("--ent-coef", type=number(float, 0), default=0.0, help="weight of the entropy bonus, the paper's β")
    add("--max-grad-norm", type=number(float, 0), default=0.5, help="clip the gradient's global norm to this")
    add("--lstm", action="store_true", help="256 LSTM units on a body shared by π and V")
    add("--terminal-on-life-loss", action=argparse.BooleanOptionalAction, default=True, help="a lost life is terminal")
    add("--seed", type=number(int, 0), default=1, help="seed of all random numbers")
    add("--log-interval", type=number(int, 1), default=10_000, help="environment steps between logs and checkpoints")
    add("--eval-episodes", type=number(int, 0), default=20, help="greedy episodes after training; 0 for none")
    add("--capture-video", action="store_true", help="record a greedy episode as MP4")
    add("--resume", help="checkpoint.pt to continue from, with its flags unless others are given")
    add("--run-dir", default="runs", help="folder for run folders, which hold checkpoint and video")
    modes = ["disabled", "offline", "online"]
    add("--wandb-mode", default=os.environ.get("WANDB_MODE") or "offline", choices=modes, help="online: upload runs")
    add("--wandb-project", default=os.environ.get("WANDB_PROJECT") or "reference-rl", help="W&B project")
    args = parser.parse_args(argv)
    if args.resume is not None:  # continue with the run's own flags, except machine-specific ones and those given now
        flags = load_checkpoint(args.resume)["flags"]
        kept = flags.keys() - {"resume", "device", "run_dir", "wandb_mode", "wandb_project"}
        parser.set_defaults(**{name: flags[name] for name in kept})
        args = parser.parse_args(argv)
        if args.env_id != flags["env_id"]:
            parser.error(f"argument --resume: {args.resume} was trained on {flags['env_id']}, not on {args.env_id}")
    if game := re.fullmatch(r"(\w+)NoFrameskip-v\d", args.env_id):
        parser.error(f"argument --env-id: {args.env_id} is now called ALE/{game[1]}-v5")
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
    """π(a|s) and V(s), on a shared body for frames or --lstm; π is categorical or, for continuous actions, normal."""

    def __init__(self, obs_space, action_space, lstm):
        super().__init__()
        self.discrete = isinstance(action_space, Discrete)
        num_outputs = int(action_space.n) if self.discrete else action_space.shape[0]
        self.image = len(obs_space.shape) == 3
        if self.image or lstm:
            if self.image:
                layers = [init(nn.Conv2d(4, 16, 8, stride=4), 2**0.5), nn.ReLU()]
                layers += [init(nn.Conv2d(16, 32, 4, stride=2), 2**0.5), nn.ReLU(), nn.Flatten()]
                layers += [init(nn.Linear(32 * 9 * 9, 256), 2**0.5), nn.ReLU()]
            else:
                layers = [init(nn.Linear(obs_space.shape[0], 256), 2**0.5), nn.Tanh()]
            self.body = nn.Sequential(*layers)
            self.lstm = nn.LSTM(256, 256) if lstm else None
            self.actor = init(nn.Linear(256, num_outputs), 0.01)  # a small gain: the initial policy is close to uniform
            self.critic = init(nn.Linear(256, 1), 1.0)
        else:
            self.body, self.lstm = nn.Identity(), None
            self.actor = mlp(obs_space.shape[0], num_outputs, gain=0.01)  # the initial policy is close to uniform
            self.critic = mlp(obs_space.shape[0], 1, gain=1.0)
        self.log_std = None if self.discrete else nn.Parameter(torch.zeros(num_outputs))  # state-independent
        self.obs_statistics = RunningStatistics(obs_space.shape[-2:])  # of frames: a mean image, (84, 84)
        self.return_statistics = RunningStatistics(())  # of running returns, r_t + γ r_t-1 + γ² r_t-2 + ...

    def forward(self, obs, lstm_state=None):
        """(num_steps, *obs_shape) -> logits or means (num_steps, ...), V(s) (num_steps,), the LSTM's final state.

        For environments in parallel every shape has num_envs after num_steps. lstm_state None stands for zeros.
        """
        obs = obs - self.obs_statistics.mean  # of frames: the mean image
        if self.image:  # (num_steps, [num_envs,] 4, 84, 84) -> (batch, 4, 84, 84) -> (num_steps, [num_envs,] 256)
            features = self.body(obs.flatten(0, -4) / 255).unflatten(0, obs.shape[:-3])
        else:  # components with mean 0 and variance 1, limited to ±10
            features = self.body((obs / (self.obs_statistics.var + 1e-8).sqrt()).clamp(-10.0, 10.0))
        if self.lstm is not None:
            features, lstm_state = self.lstm(features, lstm_state)
        return self.actor(features), self.critic(features).squeeze(-1), lstm_state

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


def mlp(num_inputs, num_outputs, gain):
    """Make two hidden layers of 64 units and an output layer; gain scales the output layer's initial weights."""
    hidden = init(nn.Linear(num_inputs, 64), 2**0.5), nn.Tanh(), init(nn.Linear(64, 64), 2**0.5), nn.Tanh()
    return nn.Sequential(*hidden, init(nn.Linear(64, num_outputs), gain))


def init(layer, gain):
    """Give a layer orthogonal weights and zero biases."""
    nn.init.orthogonal_(layer.weight, gain)
    nn.init.zeros_(layer.bias)
    return layer


def n_step_returns(rewards, last_value, gamma):
    """Return R_t = r_t + γ R_t+1, backwards from the value of the state after the last step, as a list like rewards."""
    returns = []
    for reward in reversed(rewards):
        last_value = reward + gamma * last_value
        returns.append(last_value)
    return returns[::-1]


def a3c_loss(log_prob, entropy, values, returns, vf_coef, ent_coef):
    """Compute the loss L of the module docstring, a sum, and metrics, which are means; every tensor is (num_steps,)."""
    advantages = returns - values
    policy_loss = -log_prob * advantages.detach()
    value_loss = advantages.square()
    loss = (policy_loss + vf_coef * value_loss - ent_coef * entropy).sum()
    metrics = {"policy_loss": policy_loss.mean(), "value_loss": value_loss.mean(), "entropy": entropy.mean()}
    metrics["explained_variance"] = 1 - advantages.detach().var(correction=0) / returns.var(correction=0)
    return loss, {f"losses/{name}": value for name, value in metrics.items()}


def flatten_parameters(agent):
    """Make all parameters views of one vector, so that copying or updating them is one operation -> the vector."""
    vector = nn.utils.parameters_to_vector(agent.parameters()).detach()
    nn.utils.vector_to_parameters(vector, agent.parameters())
    return vector


class SharedRMSprop(nn.Module):
    """RMSProp on the shared weights θ, with shared statistics g; both are in shared memory before any worker starts."""

    def __init__(self, agent, decay, eps):
        super().__init__()
        self.weights = flatten_parameters(agent).share_memory_()  # (num_weights,)
        mean_square = torch.ones_like(self.weights)  # starting from 0 would make the first step 10 η
        self.register_buffer("mean_square", mean_square.share_memory_())
        self.decay = decay
        self.eps = eps

    def step(self, gradient, learning_rate):
        """Set g = αg + (1 - α)Δθ², θ = θ - η Δθ / √(g + ε), in place, without a lock; gradient Δθ is (num_weights,)."""
        self.mean_square.mul_(self.decay).addcmul_(gradient, gradient, value=1 - self.decay)
        self.weights.addcdiv_(gradient, (self.mean_square + self.eps).sqrt(), value=-learning_rate)


def update(agent, optimizer, observations, lstm_state, actions, rewards, terminated, learning_rate, args):
    """Compute the gradient at the local agent's weights and apply it to the shared weights -> metrics.

    observations has num_steps + 1 rows, all from one episode; lstm_state is the LSTM's before the first of them.
    """
    output, values, _ = agent(observations, lstm_state)  # (num_steps + 1, ...)
    # Only a terminal state stops the bootstrap: a truncated episode would have continued.
    last_value = 0.0 if terminated else values[-1].item()
    returns = torch.tensor(n_step_returns(rewards, last_value, args.gamma))
    log_prob, entropy = agent.log_prob_and_entropy(output[:-1], actions)
    loss, metrics = a3c_loss(log_prob, entropy, values[:-1], returns, args.vf_coef, args.ent_coef)
    # The hand-over. backward adds to the local agent's gradients, so clear these. Older scripts clear the shared
    # agent's gradients instead; since PyTorch 2.0 that accumulates all previous gradients.
    agent.zero_grad()
    loss.backward()
    gradient = torch.cat([p.grad.flatten() for p in agent.parameters()])
    grad_norm = gradient.norm()
    if not grad_norm.isfinite():
        raise RunError(f"the gradient is not finite: lower --learning-rate, or look for NaN in {args.env_id}")
    optimizer.step(gradient * (args.max_grad_norm / grad_norm).clamp(max=1), learning_rate)
    return metrics | {"losses/grad_norm": grad_norm}


class Report(NamedTuple):
    """What a worker sends to the parent process at the end of an episode and when it is time to log."""

    global_step: int
    metrics: dict  # of the last update
    gradient_delays: list  # of the updates since the last report
    statistics: dict | None  # return r and length l of the episode, if it has ended


def worker(send, rank, args, optimizer, shared, start_step):
    """Run Alg. S3 in one process: play and learn until all workers together have played args.total_timesteps steps.

    optimizer and shared are common to all workers; shared.global_step is the paper's T. send delivers a Report.
    """
    env = gym.wrappers.RecordEpisodeStatistics(make_env(args), stats_key="recorded_episode")
    agent = ActorCritic(env.observation_space, env.action_space, args.lstm)
    weights = flatten_parameters(agent)
    agent.obs_statistics, agent.return_statistics = shared.obs_statistics, shared.return_statistics
    seed = derive_seed(args.seed, 0, start_step, rank)
    torch.manual_seed(seed)
    obs, info = env.reset(seed=seed)
    lstm_state = None  # zeros
    running_return = 0.0
    gradient_delays = []
    send(Report(start_step, {}, [], None))  # ready to start
    with env:
        while (global_step := shared.global_step.value) < args.total_timesteps:
            # 1. Copy the shared weights, without a lock: other workers keep writing.
            weights.copy_(optimizer.weights)
            updates_at_copy = shared.updates.value
            remaining = 1 - global_step / args.total_timesteps if args.anneal_lr else 1.0
            learning_rate = args.learning_rate * remaining

            # 2. Play num_steps steps, or fewer if the episode ends.
            num_steps = min(args.num_steps, args.total_timesteps - global_step)
            observations, actions, rewards, running_returns = [obs], [], [], []
            first_lstm_state = lstm_state
            for _ in range(num_steps):
                with torch.no_grad():  # this also detaches the LSTM's state between rollouts
                    output, _, lstm_state = agent(torch.as_tensor(obs).unsqueeze(0), lstm_state)  # (1, num_outputs)
                    action = agent.sample(output)[0].numpy()
                lives = info.get("lives", 0)
                obs, reward, terminated, truncated, info = env.step(action.item() if agent.discrete else action)
                done = terminated or truncated
                if is_atari(args) and args.terminal_on_life_loss and info["lives"] < lives:
                    terminated = True  # for the learner: the game and the LSTM's state continue
                observations.append(obs)
                actions.append(action)
                rewards.append(float(np.sign(reward) if is_atari(args) else reward))
                running_return = rewards[-1] + args.gamma * running_return
                running_returns.append(running_return)
                if terminated or done:
                    break

            # 3. Learn from them.
            observations, actions = torch.as_tensor(np.stack(observations)), torch.as_tensor(np.stack(actions))
            scale = 1.0 if is_atari(args) else agent.return_statistics.rms()  # Atari's rewards have been clipped
            rewards = (np.array(rewards) / scale).clip(-10, 10).tolist()
            metrics = update(
                agent, optimizer, observations, first_lstm_state, actions, rewards, terminated, learning_rate, args
            )

            # 4. Update the statistics, count the steps and report.
            with shared.lock:
                # Only now, so that acting and learning use the same statistics (except for other workers' updates).
                agent.obs_statistics.update(observations[:-1, -1] if agent.image else observations[:-1])
                agent.return_statistics.update(running_returns)
                shared.global_step.value += len(rewards)
                global_step = shared.global_step.value
                gradient_delays.append(shared.updates.value - updates_at_copy)
                shared.updates.value += 1
            if done or global_step >= shared.next_log.value:
                metrics = {name: value.item() for name, value in metrics.items()}
                metrics["charts/learning_rate"] = learning_rate
                statistics = info.pop("recorded_episode") if done else None
                send(Report(global_step, metrics, gradient_delays, statistics))
                gradient_delays = []
            if done:
                obs, info = env.reset()
                lstm_state = None
                running_return = 0.0


def train(args):
    """Train, log, save and evaluate -> (agent, history), history a list of (global_step, episode_return).

    The workers act and learn; this process collects their reports.
    """
    torch.manual_seed(args.seed)
    env = make_env(args)
    env.close()
    agent = ActorCritic(env.observation_space, env.action_space, args.lstm)
    if not agent.image:
        torch.set_num_threads(1)  # one thread is faster than several for a network this small
    optimizer = SharedRMSprop(agent, args.rmsprop_decay, args.rmsprop_eps)
    checkpoint = load_checkpoint(args.resume, agent=agent, optimizer=optimizer) if args.resume else {}
    start_step, run_id = checkpoint.get("global_step", 0), checkpoint.get("run_id")
    context = multiprocessing.get_context("spawn")  # fork can deadlock once torch has started threads
    shared = SimpleNamespace(
        global_step=context.Value("q", start_step, lock=False),
        updates=context.Value("q", 0, lock=False),
        next_log=context.Value("q", min(start_step + args.log_interval, args.total_timesteps), lock=False),
        obs_statistics=agent.obs_statistics.share_memory(),
        return_statistics=agent.return_statistics.share_memory(),
        lock=context.Lock(),  # for writes to all but next_log; reads do not take it: a killed worker may hold it
    )
    history, lengths = [], []
    gradient_delays = []  # since the last log
    workers = {}
    run, folder = start_run(args, run_id)
    start_time = None

    def save():
        return save_checkpoint(folder, args, shared.global_step.value, run.id, agent=agent, optimizer=optimizer)

    with finishing(run, workers, save):
        if start_step < args.total_timesteps:
            for rank in range(args.num_workers):
                start_worker(workers, context, rank, args, optimizer, shared, start_step)
        for report in receive_reports(workers, args, shared):
            start_time = start_time or time.perf_counter()  # starting the processes does not count
            gradient_delays += report.gradient_delays
            if report.statistics:
                history.append((report.global_step, float(report.statistics["r"])))
                lengths.append(report.statistics["l"])
            if report.global_step >= shared.next_log.value:
                shared.next_log.value = min(shared.next_log.value + args.log_interval, args.total_timesteps)
                if report.global_step >= args.total_timesteps:
                    shared.next_log.value = sys.maxsize  # the other workers may still finish an update
                seconds = time.perf_counter() - start_time
                metrics = report.metrics | {"charts/gradient_delay": np.mean(gradient_delays)}
                metrics["charts/SPS"] = (report.global_step - start_step) / seconds
                metrics["charts/TPS"] = shared.updates.value / seconds  # updates per second
                log_progress(run, args, report.global_step, history, lengths[-100:], metrics)
                gradient_delays = []
                save()

        log_evaluation(run, folder, agent, args, shared.global_step.value)
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


def receive_reports(workers, args, shared):
    """Yield the workers' reports until all workers have ended; raise RunError if one of them ends early."""
    running = dict(workers)
    while running:
        for receiver in wait(running):
            try:
                message = receiver.recv()
            except (EOFError, OSError):  # the worker has ended
                process = running.pop(receiver)
                process.join()
                if process.exitcode or shared.global_step.value < args.total_timesteps:
                    # 0 if the environment ended the process, 1 after a traceback; -9 often means out of memory
                    raise RunError(f"{process.name} died, exit code {process.exitcode}") from None
                continue
            if isinstance(message, str):
                raise RunError(message)
            yield Report(*message)


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
    lstm_state = None  # zeros
    for _ in range(100_000):  # without a time limit a greedy policy may loop forever
        with torch.inference_mode():
            output, _, lstm_state = agent(torch.as_tensor(obs).unsqueeze(0), lstm_state)  # (1, num_episodes, ...)
            action = agent.greedy(output)[0].numpy()
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
    action_space = env.action_space
    discrete = isinstance(action_space, Discrete) and action_space.start == 0
    continuous = isinstance(action_space, Box) and len(action_space.shape) == 1 and action_space.dtype.kind == "f"
    if not (discrete or continuous) or not env.observation_space.is_np_flattenable:  # no Sequence or Graph
        raise RunError(
            f"--env-id {args.env_id}: needs Discrete actions counted from 0 or a flat Box of floats, and observations "
            f"other than Sequence or Graph; it has {action_space} and {type(env.observation_space).__name__}"
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
    if continuous:  # the policy acts in [-1, 1]; where a bound is infinite, in [-1, ∞), (-∞, 1] or (-∞, ∞)
        # Not by RescaleAction: its rounding may exceed the bounds, and it returns NaN where they are equal.
        low, high = action_space.low, action_space.high
        half = np.where(np.isfinite(low) & np.isfinite(high), high / 2 - low / 2, 1)
        mid = np.where(np.isfinite(low), low + half, np.where(np.isfinite(high), high - half, 0))
        env = gym.wrappers.TransformAction(env, lambda a: (mid + half * a).clip(low, high).astype(low.dtype), None)
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
