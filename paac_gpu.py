# /// script
# requires-python = ">=3.11"
# dependencies = ["ale-py>=0.12", "gymnasium[classic-control,other]>=1.2.1", "numpy>=1.26", "torch>=2.6", "wandb>=0.28"]
# ///
"""PAAC: parallel advantage actor-critic, A2C in many environments at once, on CPUs or GPUs.

Papers   Clemente et al. 2017 (arXiv:1705.04862), Alg. 1; Schulman et al. 2016 (arXiv:1506.02438), eq. 16
Adds     environments that step in parallel, in ALE's threads or, with --vectorization-mode async, in processes; one
         network, usually on a GPU, that acts and learns in one batch for all of them; the equations are those of A2C
Update   L = -E[log π(a|s) A] + vf_coef E[(R - V(s))²] - ent_coef E[H(π(·|s))]    one Adam step per rollout
         δ_t = r_t + γ V(s_t+1) - V(s_t)    A_t = δ_t + γλ A_t+1    R_t = A_t + V(s_t)    λ = 1: R_t = r_t + γ R_t+1
         V(s_t+1) = 0 if s_t+1 is terminal; A_t+1 = 0 after the end of an episode or rollout; A and R are constants
Ranks    torchrun --nproc-per-node K paac_gpu.py starts K processes, each with its own device and num_envs environments,
         that average their gradients: equivalent to one process with K · num_envs environments, except that the
         running statistics are those of the first process
Departs  Adam instead of the authors' RMSProp (initial mean square 1, ε = 0.1 inside the root); GAE; orthogonal
         initialization; truncated episodes bootstrap from their last observation. The mean of all frames so far is
         subtracted. Atari: no sticky actions, no FIRE at reset, up to 30 no-ops, 4 stacked 84x84 grey frames; for
         learning only, rewards are clipped to ±1 and a lost life is terminal. Flat observations: as in a2c.py, with
         separate networks for π and V, normalized observations and scaled rewards
Run      python paac_gpu.py @settings/paac_gpu_Pong.txt    python paac_gpu.py @settings/paac_gpu_CartPole-v1.txt
Result   greedy return; CartPole-v1: 500.0 ± 0.0 (10 seeds); ALE/Pong-v5, 3M steps: 20.1 ± 0.4 (2 seeds)
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
import time
from functools import partial
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch
import wandb
from gymnasium.spaces import Box, Discrete
from torch import distributed, nn

SCRIPT = "paac_gpu"  # names run folders; stored in checkpoints


def parse_args(argv=None):
    """Parse the flags; a value out of range ends the program with exit code 2 and an error message."""
    parser = argparse.ArgumentParser(fromfile_prefix_chars="@", formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.description = __doc__.splitlines()[0]
    parser.convert_arg_line_to_args = lambda line: [line.strip()] if line.strip() else []  # @FILE may have blank lines
    parser.register("type", "JSON object", lambda text: dict(json.loads(text)))  # dict refuses other JSON values
    add = parser.add_argument
    add("--env-id", default="ALE/Pong-v5", help="Gymnasium id, ALE/GAME-v5, or MODULE:ID for your own environment")
    add("--env-kwargs", type="JSON object", default={}, help="environment options as JSON")
    add("--total-timesteps", type=number(int, 1), default=10_000_000, help="environment steps, over all environments")
    add("--vectorization-mode", choices=["sync", "async"], help="async: one process per environment; not Atari")
    add("--num-envs", type=number(int, 1), default=64, help="environments stepped in parallel, the paper's n_e")
    add("--num-steps", type=number(int, 1), default=8, help="steps per environment and update, the paper's t_max")
    add("--network", default="nature", choices=["nips", "nature"], help="for frames: nips has 2 convolutions, nature 3")
    add("--learning-rate", type=number(float, 0), default=1e-3, help="Adam's step size η")
    add("--adam-beta1", type=number(float, 0, 0.999), default=0.9, help="Adam's momentum β1")
    add("--anneal-lr", action=argparse.BooleanOptionalAction, default=True, help="decay the step size linearly to 0")
    add("--gamma", type=number(float, 0, 1), default=0.99, help="discount γ")
    add("--gae-lambda", type=number(float, 0, 1), default=0.95, help="λ: 1 is the n-step advantage, 0 the TD error")
    add("--vf-coef", type=number(float, 0), default=0.5, help="weight of the value loss")
    add("--ent-coef", type=number(float, 0), default=0.01, help="weight of the entropy bonus, the paper's β")
    add("--max-grad-norm", type=number(float, 0), default=40.0, help="clip the gradient's global norm to this")
    add("--terminal-on-life-loss", action=argparse.BooleanOptionalAction, default=True, help="a lost life is terminal")
    add("--seed", type=number(int, 0), default=1, help="seed of all random numbers")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    add("--device", default=device, help="where the network runs: cpu, cuda, cuda:N, mps")
    add("--log-interval", type=number(int, 1), default=250_000, help="environment steps between logs and checkpoints")
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
    """π(a|s) and V(s), for frames on a shared body; π is categorical or, for continuous actions, normal."""

    def __init__(self, obs_space, action_space, network):
        super().__init__()
        self.discrete = isinstance(action_space, Discrete)
        num_outputs = int(action_space.n) if self.discrete else action_space.shape[0]
        self.image = len(obs_space.shape) == 3
        if self.image:
            if network == "nips":
                layers = [init(nn.Conv2d(4, 16, 8, stride=4), 2**0.5), nn.ReLU()]
                layers += [init(nn.Conv2d(16, 32, 4, stride=2), 2**0.5), nn.ReLU()]
                layers += [nn.Flatten(), init(nn.Linear(32 * 9 * 9, 256), 2**0.5), nn.ReLU()]
            else:
                layers = [init(nn.Conv2d(4, 32, 8, stride=4), 2**0.5), nn.ReLU()]
                layers += [init(nn.Conv2d(32, 64, 4, stride=2), 2**0.5), nn.ReLU()]
                layers += [init(nn.Conv2d(64, 64, 3), 2**0.5), nn.ReLU()]
                layers += [nn.Flatten(), init(nn.Linear(64 * 7 * 7, 512), 2**0.5), nn.ReLU()]
            self.body, num_features = nn.Sequential(*layers), 256 if network == "nips" else 512
            self.actor = init(nn.Linear(num_features, num_outputs), 0.01)  # the initial policy is close to uniform
            self.critic = init(nn.Linear(num_features, 1), 1.0)
        else:
            self.actor = mlp(obs_space.shape[0], num_outputs, gain=0.01)  # the initial policy is close to uniform
            self.critic = mlp(obs_space.shape[0], 1, gain=1.0)
        self.log_std = None if self.discrete else nn.Parameter(torch.zeros(num_outputs))  # state-independent
        self.obs_statistics = RunningStatistics(obs_space.shape[-2:])  # of frames: a mean image, (84, 84)
        self.return_statistics = RunningStatistics(())  # of running returns, r_t + γ r_t-1 + γ² r_t-2 + ...

    def forward(self, obs):
        """(..., *obs_shape) -> logits (..., num_actions) or means (..., action_dim), and V(s), (...)."""
        obs = obs - self.obs_statistics.mean  # of frames: the mean image
        if self.image:
            # (..., 4, 84, 84) -> (batch, 4, 84, 84) -> (..., features); channels_last is a faster layout
            frames = (obs / 255).flatten(0, -4).contiguous(memory_format=torch.channels_last)
            features = self.body(frames).unflatten(0, obs.shape[:-3])
        else:  # components with mean 0 and variance 1, limited to ±10
            features = (obs / (self.obs_statistics.var + 1e-8).sqrt()).clamp(-10.0, 10.0)
        return self.actor(features), self.critic(features).squeeze(-1)

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


def average_gradient(agent, count):
    """Replace this rank's gradient, a mean over `count` transitions, by the mean over the transitions of all ranks."""
    total = torch.tensor(float(count), device=next(agent.parameters()).device)
    distributed.all_reduce(total)  # a sum over ranks
    for p in agent.parameters():
        p.grad = p.grad * count if count else torch.zeros_like(p)  # a mean over no transitions is NaN
        distributed.all_reduce(p.grad)
        p.grad /= total.clamp(min=1)


def update(agent, optimizer, output, values, actions, rewards, terminations, dones, is_transition, args):
    """Take one gradient step on a rollout -> metrics; output and values have num_steps + 1 rows, others num_steps."""
    to_tensor = partial(torch.as_tensor, device=args.device)
    baseline = values.detach().cpu().numpy()  # advantages and returns carry no gradient
    advantages = compute_advantages(rewards, baseline, terminations, dones, args.gamma, args.gae_lambda)
    returns = advantages + baseline[:-1]

    # Reset steps are left out: what follows is (batch, ...).
    actions = to_tensor(actions[is_transition])
    advantages = to_tensor(advantages[is_transition])
    returns = to_tensor(returns[is_transition])
    log_prob, entropy = agent.log_prob_and_entropy(output[:-1][is_transition], actions)
    values = values[:-1][is_transition]
    loss, metrics = a2c_loss(log_prob, entropy, values, advantages, returns, args.vf_coef, args.ent_coef)
    optimizer.zero_grad()
    loss.backward()
    if distributed.is_initialized():
        average_gradient(agent, is_transition.sum())
    grad_norm = nn.utils.clip_grad_norm_(agent.parameters(), args.max_grad_norm)
    if not grad_norm.isfinite():
        raise RunError(f"the gradient is not finite: lower --learning-rate, or look for NaN in {args.env_id}")
    optimizer.step()
    return metrics | {"losses/grad_norm": grad_norm}


def train(args):
    """Train, log, save and evaluate -> (agent, history), history a list of (global_step, episode_return)."""
    rank, num_ranks = start_ranks(args)
    torch.manual_seed(args.seed)  # all ranks start with the same weights
    envs = gym.wrappers.vector.RecordEpisodeStatistics(make_envs(args, args.num_envs), stats_key="statistics")
    obs_space, action_space = envs.single_observation_space, envs.single_action_space
    agent = ActorCritic(obs_space, action_space, args.network)
    agent.to(args.device)
    if "mps" not in args.device:  # on MPS, PyTorch 2.13 silently misreads this layout (its issue 192212)
        agent.to(memory_format=torch.channels_last)  # the layout of the frames
    if not agent.image:
        torch.set_num_threads(1)  # one thread is faster than several for a network this small
    betas = args.adam_beta1, 0.999
    optimizer = torch.optim.Adam(agent.parameters(), lr=args.learning_rate, betas=betas, eps=1e-5, fused=True)
    checkpoint = load_checkpoint(args.resume, agent=agent, optimizer=optimizer) if args.resume else {}
    optimizer.param_groups[0]["betas"] = betas  # not those of the checkpoint
    for weights, state in optimizer.state.items():  # fused Adam needs the weights' layout; an MPS checkpoint lacks it
        state |= {name: torch.empty_like(weights).copy_(state[name]) for name in ("exp_avg", "exp_avg_sq")}
    start_step, run_id = checkpoint.get("global_step", 0), checkpoint.get("run_id")
    torch.manual_seed(derive_seed(args.seed, 2, start_step, rank))  # every rank and every resumed run draws new noise

    # Rollouts are NumPy arrays, like the environments' output, except for the observations: these are copied to the
    # device once, frames as uint8, for acting and for learning.
    shape = args.num_steps, args.num_envs
    dtype = torch.uint8 if agent.image else torch.float32
    observations = torch.zeros((args.num_steps + 1, args.num_envs, *obs_space.shape), dtype=dtype, device=args.device)
    actions = np.zeros((*shape, *action_space.shape), np.int64 if agent.discrete else np.float32)
    rewards, running_returns = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    terminations, dones, is_transition = np.zeros(shape, bool), np.zeros(shape, bool), np.zeros(shape, bool)
    done, running_return = np.zeros(args.num_envs, bool), np.zeros(args.num_envs, np.float32)
    history = []
    global_step = start_step  # includes reset steps and the steps of all ranks; history has this rank's episodes
    next_log = start_step + args.log_interval
    obs, infos = envs.reset(seed=derive_seed(args.seed, 0, start_step, rank))
    observations[0] = torch.as_tensor(obs)
    lives = infos.get("lives", 0)  # Atari's
    run, folder = start_run(args, run_id) if rank == 0 else (None, None)
    # For frames, a CPU keeps the autograd graphs of acting: a second forward pass, over the whole rollout, does not fit
    # into its caches and would take a third of the run time. A GPU prefers one large batch to num_steps small ones.
    keep_graph = agent.image and args.device == "cpu"
    start_time = time.perf_counter()

    def save():
        return save_checkpoint(folder, args, global_step, run.id, agent=agent, optimizer=optimizer)

    with finishing(run, envs, save) if rank == 0 else contextlib.closing(envs):
        while global_step < args.total_timesteps:
            remaining = 1 - global_step / args.total_timesteps if args.anneal_lr else 1.0
            optimizer.param_groups[0]["lr"] = args.learning_rate * remaining

            # 1. Play num_steps in every environment with the current policy.
            output_rows, value_rows = [], []
            for t in range(args.num_steps):
                with torch.set_grad_enabled(keep_graph):
                    output, value = agent(observations[t])
                    actions[t] = agent.sample(output).detach().cpu()  # waits for the GPU
                output_rows.append(output)
                value_rows.append(value)
                is_transition[t] = ~done  # the step after a done only resets: its action is ignored
                # When done, the observation is the episode's last one: a truncated episode bootstraps from its value.
                obs, rewards[t], terminations[t], truncated, infos = envs.step(actions[t])
                observations[t + 1] = torch.as_tensor(obs)  # copies to the GPU
                if is_atari(args):
                    rewards[t] = np.sign(rewards[t])
                running_return = rewards[t] + args.gamma * running_return * ~done  # done is still the previous step's
                running_returns[t] = running_return
                done = terminations[t] | truncated
                if is_atari(args) and args.terminal_on_life_loss:
                    terminations[t] |= infos.get("lives", 0) < lives  # for the learner: the game continues
                    lives = infos.get("lives", 0)
                dones[t] = terminations[t] | truncated
                global_step += args.num_envs * num_ranks
                history += [(global_step, float(infos["statistics"]["r"][i])) for i in np.flatnonzero(done)]

            # 2. Learn from the whole rollout, in one gradient step.
            if is_transition.any() or num_ranks > 1:  # every rank takes part in averaging the gradients
                if keep_graph:
                    with torch.no_grad():
                        output, value = agent(observations[-1])
                    output, values = torch.stack([*output_rows, output]), torch.stack([*value_rows, value])
                else:
                    output, values = agent(observations)  # (num_steps + 1, num_envs, ...)
                scale = 1.0 if is_atari(args) else agent.return_statistics.rms()  # Atari's rewards have been clipped
                scaled_rewards = (rewards / scale).clip(-10, 10)
                metrics = update(
                    agent, optimizer, output, values, actions, scaled_rewards, terminations, dones, is_transition, args
                )
                if is_transition.any():  # only now, so that acting and learning use the same statistics
                    samples = observations[:-1][is_transition]
                    agent.obs_statistics.update(samples[:, -1] if agent.image else samples)  # only the newest frames
                    agent.return_statistics.update(running_returns[is_transition])
                if distributed.is_initialized():
                    for buffer in agent.buffers():  # all ranks use the statistics of rank 0, as in PyTorch's DDP
                        distributed.broadcast(buffer, src=0)
            observations[0] = observations[-1]

            # 3. Log and save.
            if rank == 0 and global_step >= min(next_log, args.total_timesteps):
                next_log += args.log_interval
                metrics["charts/SPS"] = (global_step - start_step) / (time.perf_counter() - start_time)
                metrics["charts/learning_rate"] = optimizer.param_groups[0]["lr"]
                log_progress(run, args, global_step, history, envs.length_queue, metrics)
                save()

        envs.close()
        if distributed.is_initialized():
            distributed.destroy_process_group()  # before the evaluation, for which the other ranks do not wait
        if rank == 0:
            log_evaluation(run, folder, agent, args, global_step)
    return agent, history


def start_ranks(args):
    """Join the other processes that torchrun has started -> rank, number of ranks; without torchrun 0, 1."""
    if "WORLD_SIZE" not in os.environ:
        return 0, 1
    if args.device == "cuda":  # from here on it means the GPU of this process
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    distributed.init_process_group("nccl" if args.device.startswith("cuda") else "gloo")
    return distributed.get_rank(), distributed.get_world_size()


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
    if is_atari(args):
        envs = make_atari(args, num_envs, **options)
    else:
        # With shared memory, Gymnasium 1.4 never updates Text observations.
        vector_kwargs = {"shared_memory": False} if args.vectorization_mode == "async" else None
        envs = gym.make_vec(args.env_id, num_envs, args.vectorization_mode, vector_kwargs, **args.env_kwargs | options)
        if args.vectorization_mode == "async":  # by force after 1 s: a step that SIGTERM interrupted never ends
            processes, close = envs.processes, envs.close
            envs.close = lambda: close(timeout=1, terminate=not all(process.is_alive() for process in processes))
        envs.unwrapped._add_info = lambda infos, info, i: infos  # private hook; drop infos: some cannot be stacked
    if args.capture_video and not is_atari(args) and "rgb_array" not in envs.metadata.get("render_modes", []):
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
    if not (is_atari(args) or (isinstance(obs_space, Box) and len(obs_space.shape) == 1)):
        envs = gym.wrappers.vector.FlattenObservation(envs)  # discrete observations become one-hot
    if continuous:  # the policy acts in [-1, 1]; where a bound is infinite, in [-1, ∞), (-∞, 1] or (-∞, ∞)
        # Not by RescaleAction: its rounding may exceed the bounds, and it returns NaN where they are equal.
        low, high = action_space.low, action_space.high
        half = np.where(np.isfinite(low) & np.isfinite(high), high / 2 - low / 2, 1)
        mid = np.where(np.isfinite(low), low + half, np.where(np.isfinite(high), high - half, 0))
        envs = gym.wrappers.vector.TransformAction(envs, lambda a: (mid + half * a).clip(low, high).astype(low.dtype))
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
