# /// script
# requires-python = ">=3.11"
# dependencies = ["ale-py>=0.12.1", "gymnasium[classic-control,other]>=1.1", "numpy>=1.26", "torch>=2.6", "wandb>=0.23"]
# ///
"""PAAC: parallel advantage actor-critic, one policy that plays many environments at once, on CPUs or GPUs.

Papers   Clemente et al. 2017 (arXiv:1705.04862), Alg. 1, with the settings of its program, github.com/Alfredvc/paac;
         Schulman et al. 2016 (arXiv:1506.02438), eq. 16
Update   L = -E[log π(a|s) A] + vf_coef E[(R - V(s))²] - ent_coef E[H(π(·|s))]    one step on Δθ per rollout
         δ_t = r_t + γ V(s_t+1) - V(s_t)    A_t = δ_t + γλ A_t+1    R_t = A_t + V(s_t)    λ = 1: R_t = r_t + γ R_t+1
         V(s_t+1) = 0 after a terminal state; A_t+1 = 0 after the end of an episode or rollout; A and R are constants
         g = αg + (1 - α)Δθ²    θ = θ - η Δθ / √(g + ε)    Δθ = ∇(loss_scale L), clipped; g is 1 at first
Ranks    torchrun --nproc-per-node K paac_gpu.py: K processes, each with a device and num_envs environments of its own,
         learn what one process with K num_envs environments would, as they share their gradients; the first one logs
Departs  an episode that a time limit cuts bootstraps from its last observation; greedy evaluation; 10M steps for 80M
Run      python paac_gpu.py    python paac_gpu.py --env-id CartPole-v1 --total-timesteps 300000
Result   CartPole-v1: greedy return 500.0 ± 0.0 (10 seeds), 4.6 s of training (2 cores of an AMD EPYC)
         Pong: greedy return 20.4 (1 seed) with the README's flags, 110 minutes on 1 core
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

if __name__ == "__main__":  # before torch, whose threads would else spin for long where the emulators could run
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")

import gymnasium as gym
import numpy as np
import torch
import wandb
from gymnasium.spaces import Box, Discrete
from gymnasium.vector import AutoresetMode
from torch import distributed, nn


def parse_args(argv=None):
    """Flags -> argparse.Namespace; a value out of range ends the program with one line and exit code 2."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    add, switch = parser.add_argument, argparse.BooleanOptionalAction
    add("--env-id", default="ALE/Pong-v5", help="Gymnasium id: discrete actions; flat observations or ALE/GAME-v5")
    add(
        "--total-timesteps",
        type=number(int, 1, 10**15),
        default=10_000_000,
        help="environment steps, summed over environments",
    )
    add("--num-envs", type=number(int, 1), default=32, help="environments stepped together, the paper's n_e")
    add(
        "--env-threads",
        type=number(int, 1),
        default=torch.get_num_threads(),
        help="threads for the Atari games of a process",
    )
    add("--num-steps", type=number(int, 1), default=5, help="steps per environment and update, the paper's t_max")
    add("--network", default="nips", choices=["nips", "nature"], help="the smaller or the larger one, for Atari")
    add("--learning-rate", type=number(float, 0), default=0.0224, help="RMSProp's step size, the paper's η")
    add("--anneal-lr", action=switch, default=True, help="let the learning rate fall linearly to 0")
    add("--rmsprop-decay", type=number(float, 0, 1), default=0.99, help="decay of RMSProp's mean square g, α")
    add("--rmsprop-eps", type=number(float, 1e-12), default=0.1, help="added to g under the root, ε")
    add("--gamma", type=number(float, 0, 1), default=0.99, help="discount γ")
    add("--gae-lambda", type=number(float, 0, 1), default=1.0, help="λ: 1 is the n-step advantage, 0 the TD error")
    add("--loss-scale", type=number(float, 0), default=5.0, help="factor of L: 5 makes means over t_max = 5 sums")
    add("--vf-coef", type=number(float, 0), default=0.25, help="weight of the value loss")
    add("--ent-coef", type=number(float, 0), default=0.02, help="weight of the entropy bonus, the paper's β")
    add("--max-grad-norm", type=number(float, 0), default=3.0, help="clip the global norm of the gradient to this")
    add("--repeat-action-probability", type=number(float, 0, 1), default=0.0, help="Atari's sticky actions")
    add("--bf16", action=switch, default=False, help="run the network's body in bfloat16: faster, less exact")
    add("--cuda-graphs", action=switch, default=False, help="record acting and learning as CUDA graphs, on one GPU")
    add("--seed", type=number(int, 0, 2**31 - 1), default=1, help="seeds networks, environments and actions")
    add(
        "--device", type=device_name, default="auto", help="cpu, cuda, cuda:N or mps; auto is cuda for images, else cpu"
    )
    add("--log-interval", type=number(int, 1), default=250_000, help="environment steps between log lines")
    add("--eval-episodes", type=number(int, 0), default=20, help="greedy episodes after training; 0 for none")
    add("--capture-video", action="store_true", help="record the first evaluation episode as MP4")
    add("--checkpoint-interval", type=number(int, 0), default=10**6, help="steps between checkpoints; 0: at the end")
    add("--resume", help="checkpoint.pt to go on from, with fresh episodes; one that is complete is only evaluated")
    add("--run-dir", default="runs", help="parent of the run folder, which holds the checkpoint and the video")
    modes = ["disabled", "offline", "online"]
    add("--wandb-mode", default=os.environ.get("WANDB_MODE", "offline"), choices=modes, help="offline needs no account")
    add("--wandb-project", default=os.environ.get("WANDB_PROJECT", "reference-rl"), help="W&B project")
    args = parser.parse_args(argv)
    batch_size = args.num_envs * args.num_steps * int(os.environ.get("WORLD_SIZE", 1))
    if args.total_timesteps < batch_size:
        parser.error(f"argument --total-timesteps: one rollout is num_envs x num_steps x ranks = {batch_size}")
    if args.cuda_graphs and "WORLD_SIZE" in os.environ:
        parser.error("argument --cuda-graphs: takes a single process, without torchrun")
    if args.capture_video and args.eval_episodes == 0:
        parser.error("argument --capture-video: records an evaluation episode, so --eval-episodes must not be 0")
    return args


class ActorCritic(nn.Module):
    """π(a|s) and V(s) on one body: convolutions for Atari's (4, 84, 84) frames, an MLP for flat observations.

    Weights and biases start uniformly in ±1 / √(number of inputs): the authors' choice, and torch's own.
    """

    def __init__(self, obs_space, num_actions, network, bf16=False):
        super().__init__()
        self.image, self.bf16 = len(obs_space.shape) == 3, bf16
        if not self.image:
            layers = [nn.Linear(obs_space.shape[0], 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh()]
        elif network == "nips":
            layers = [nn.Conv2d(4, 16, 8, stride=4), nn.ReLU(), nn.Conv2d(16, 32, 4, stride=2), nn.ReLU()]
            layers += [nn.Flatten(-3), nn.Linear(32 * 9 * 9, 256), nn.ReLU()]
        else:
            layers = [nn.Conv2d(4, 32, 8, stride=4), nn.ReLU(), nn.Conv2d(32, 64, 4, stride=2), nn.ReLU()]
            layers += [nn.Conv2d(64, 64, 3), nn.ReLU(), nn.Flatten(-3), nn.Linear(64 * 7 * 7, 512), nn.ReLU()]
        self.body = nn.Sequential(*layers)
        self.actor = nn.Linear(layers[-2].out_features, num_actions)
        self.critic = nn.Linear(layers[-2].out_features, 1)

    def forward(self, obs):
        """(..., *obs_shape), frames from 0 to 255 -> logits (..., num_actions), values (...)."""
        dtype = self.actor.weight.dtype
        obs = obs.to(torch.bfloat16 if self.bf16 else dtype, copy=True)  # a copy, to divide in place
        with torch.autocast(obs.device.type, torch.bfloat16, enabled=self.bf16):
            features = self.body(obs.div_(255) if self.image else obs)
        features = features.to(dtype)  # π and V are too fine for bfloat16, and take little time
        return self.actor(features), self.critic(features).squeeze(-1)

    def sample(self, logits, noise):
        """Actions drawn from π(·|s), (...) int64, by noise from Exp(1), (..., num_actions) like the logits."""
        return (logits - noise.log()).argmax(-1)  # Gumbel-max

    def greedy(self, logits):
        """The most probable actions."""
        return logits.argmax(-1)

    def log_prob_and_entropy(self, logits, actions):
        """log π(a|s) and H(π(·|s)), both (...)."""
        log_probs = logits.log_softmax(-1)
        log_prob = log_probs.gather(-1, actions.unsqueeze(-1)).squeeze(-1)
        return log_prob, -(log_probs.exp() * log_probs).sum(-1)


def compute_advantages(rewards, values, next_values, terminated, done, gamma, gae_lambda):
    """GAE(γ, λ), eq. 16, as a backward recursion; every tensor and the result are (num_steps, num_envs)."""
    # Only a terminal state stops the bootstrap: an episode that the clock cut would have gone on.
    delta = rewards + gamma * next_values * terminated.logical_not() - values
    decay = gamma * gae_lambda * done.logical_not().to(delta.dtype)
    advantages = [torch.zeros_like(delta[0])]  # after the rollout's last step
    for delta_t, decay_t in zip(delta.flip(0), decay.flip(0), strict=True):
        advantages.append(delta_t + decay_t * advantages[-1])
    return torch.stack(advantages[:0:-1])  # in the order of time, without the zeros


def a2c_loss(log_prob, entropy, values, advantages, returns, valid, vf_coef, ent_coef):
    """L of the header -> (loss, metrics); every tensor is (num_steps, num_envs), the means are over valid = 1."""
    share = valid / valid.sum().clamp(min=1)  # a step's weight in the means; min=1 for a rollout of resets alone
    policy_loss = -(share * advantages.detach() * log_prob).sum()
    value_loss = (share * (returns.detach() - values) ** 2).sum()
    entropy = (share * entropy).sum()
    loss = policy_loss + vf_coef * value_loss - ent_coef * entropy
    return loss, {"policy_loss": policy_loss, "value_loss": value_loss, "entropy": entropy}


class RMSProp(torch.optim.Optimizer):
    """g = αg + (1 - α)Δθ²; θ = θ - η Δθ / √(g + ε), from g = 1: TensorFlow's form. torch's has g = 0 and √g + ε."""

    def __init__(self, parameters, lr, decay, eps):
        super().__init__(parameters, {"lr": lr, "decay": decay, "eps": eps})
        for p in self.param_groups[0]["params"]:
            self.state[p]["mean_square"] = torch.ones_like(p)

    @torch.no_grad()
    def step(self):
        """Update the parameters by their gradients."""
        group = self.param_groups[0]
        for p in group["params"]:
            g = self.state[p]["mean_square"]
            g.mul_(group["decay"]).addcmul_(p.grad, p.grad, value=1 - group["decay"])
            p.addcdiv_(group["lr"] * p.grad, (g + group["eps"]).sqrt_(), value=-1)


def average_gradient(agent, count):
    """Replace this rank's gradient, a mean over `count` transitions, by the mean over those of all ranks."""
    gradients = [p.grad for p in agent.parameters()]
    total = torch.cat([*(g.flatten() * count for g in gradients), count.view(1)])
    try:
        distributed.all_reduce(total)  # the sum over ranks, the same bits on each of them
    except RuntimeError as error:  # a rank has died; torchrun will end this one by SIGTERM, if it has not already
        print(f"lost a rank: {textwrap.shorten(str(error), 150)}", file=sys.stderr, flush=True)
        stop(signal.SIGTERM, None)
    mean = total[:-1] / total[-1].clamp(min=1)
    for gradient, part in zip(gradients, mean.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


def update(agent, optimizer, logits, values, actions, rewards, terminated, done, valid, args):
    """One step on a rollout, by what acting has left for autograd on logits and values -> metrics.

    logits are (num_steps, num_envs, num_actions), values (num_steps + 1, num_envs), all others (num_steps, num_envs).
    """
    baseline = values.detach()  # advantages and value targets carry no gradient
    advantages = compute_advantages(rewards, baseline[:-1], baseline[1:], terminated, done, args.gamma, args.gae_lambda)
    returns = advantages + baseline[:-1]
    log_prob, entropy = agent.log_prob_and_entropy(logits, actions)
    loss, metrics = a2c_loss(log_prob, entropy, values[:-1], advantages, returns, valid, args.vf_coef, args.ent_coef)
    optimizer.zero_grad()
    (args.loss_scale * loss).backward()
    if distributed.is_initialized():
        average_gradient(agent, valid.sum().float())
    metrics["grad_norm"] = nn.utils.clip_grad_norm_(agent.parameters(), args.max_grad_norm)
    for p in agent.parameters():  # a norm that is not finite has made them 0 or NaN: the weights stay good, train ends
        p.grad.nan_to_num_(nan=0)
    optimizer.step()
    return metrics


class Graphed:
    """A function of tensors whose kernels are recorded as a CUDA graph, and from then on launched all at once.

    The first calls run as they are, so that libraries can set themselves up, on a stream that is not the default one.
    A later call copies its arguments to where the graph reads them and overwrites what the call before has returned.
    """

    def __init__(self, function):
        self.function, self.warmup = function, 3

    def __call__(self, *inputs):
        if self.warmup:
            self.warmup -= 1
            return self.function(*inputs)
        if not hasattr(self, "graph"):
            self.inputs, self.graph = [x.clone() for x in inputs], torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph, stream=torch.cuda.current_stream()):  # runs nothing yet
                self.outputs = self.function(*self.inputs)
        for kept, x in zip(self.inputs, inputs, strict=True):
            kept.copy_(x)
        self.graph.replay()
        return self.outputs


def train(args):
    """Train, log, save and evaluate -> (agent, history), history a list of (global_step, episode_return)."""
    torch.manual_seed(args.seed)  # on every rank: the weights and all random numbers are the same
    envs = make_envs(args)
    obs_space, num_actions = envs.single_observation_space, int(envs.single_action_space.n)
    image = not flat(obs_space)
    if not image:
        torch.set_num_threads(1)  # the network is tiny: one thread beats many
    rank, num_ranks, local_rank = start_ranks()
    device = choose_device(args, image, local_rank)
    if args.cuda_graphs:
        torch.cuda.set_stream(torch.cuda.Stream(device))  # as the default one cannot be recorded
    agent = ActorCritic(obs_space, num_actions, args.network, args.bf16)
    agent.to(device, memory_format=torch.channels_last)  # in which convolutions learn faster
    learning_rate = torch.tensor(args.learning_rate, device=device)  # in memory, where a CUDA graph can read it
    optimizer = RMSProp(agent.parameters(), learning_rate, args.rmsprop_decay, args.rmsprop_eps)
    start_step, run_id = load_checkpoint(args, agent, optimizer) if args.resume is not None else (0, None)

    def act(obs, noise):
        """One step of all environments -> logits, values, actions."""
        logits, values = agent(obs)
        return logits, values, agent.sample(logits.detach(), noise)

    def learn(last_obs, *rollout):
        """One gradient step, by what the num_steps calls of act have left for autograd -> metrics."""
        logits, values, actions = (list(x) for x in zip(*acted, strict=True))
        with torch.no_grad():
            values.append(agent(last_obs)[1])
        return update(agent, optimizer, *map(torch.stack, (logits, values, actions)), *rollout, args)

    acts = [act] * args.num_steps
    if args.cuda_graphs:  # a graph for each step, as learning needs what each of them has left in memory
        acts, learn = [Graphed(act) for _ in acts], Graphed(learn)

    shape = args.num_steps, args.num_envs
    rewards = np.zeros(shape, np.float32)
    terminateds, dones, valids = np.zeros((3, *shape), bool)
    done = np.zeros(args.num_envs, bool)
    episode_return, episode_length = np.zeros((2, args.num_envs))
    history, recent = [], collections.deque(maxlen=100)  # of (global_step, return), of (return, length)
    metrics = {"grad_norm": 0.0}
    all_envs = num_ranks * args.num_envs  # steps are counted over all ranks, episodes over those of this one
    batch_size, global_step = args.num_steps * all_envs, start_step  # steps count the resets, too
    # Where Gymnasium seeds environment i by seed + i, the next rank goes on from here.
    obs, _ = envs.reset(seed=env_seed(args.seed, 0, start_step) + rank * args.num_envs)
    folder, run = start_run(args, run_id, device) if rank == 0 else (None, None)
    start_time, clock = time.perf_counter(), Clock()
    try:
        while global_step + batch_size <= args.total_timesteps:
            lr = args.learning_rate * (1 - global_step / args.total_timesteps if args.anneal_lr else 1)
            learning_rate.fill_(lr)

            # 1. Play num_steps in every environment with the current policy. What autograd needs of acting is kept, so
            # learning takes no second forward pass. Each rank draws the noise of all and takes its own: K act as one.
            acted = []  # logits (num_envs, num_actions), values and actions (num_envs,) of each step
            noise = torch.empty(args.num_steps, num_ranks, args.num_envs, num_actions).exponential_()
            noise = to_device(noise[:, rank].numpy(), device)  # one small copy for a rollout
            for t in range(args.num_steps):
                acted.append(acts[t](to_device(obs, device), noise[t]))
                action = acted[t][-1].cpu().numpy()  # the environments need it: only here the CPU waits for the GPU
                clock.lap("acting")
                valids[t] = ~done  # the step after a done only resets: its action is ignored, it is no transition
                # With a done comes the episode's true last observation: a time limit bootstraps from its value.
                obs, reward, terminated, truncated, _ = envs.step(env_action(action, envs.single_action_space))
                clock.lap("environments")
                done = terminated | truncated
                rewards[t] = np.sign(reward) if atari(args) else reward  # Atari's clipped to ±1
                terminateds[t], dones[t] = terminated, done
                global_step += all_envs
                episode_return += reward
                episode_length += valids[t]
                for i in np.flatnonzero(done):
                    history.append((global_step, float(episode_return[i])))
                    recent.append((episode_return[i], episode_length[i]))
                    episode_return[i] = episode_length[i] = 0

            # 2. Learn from the whole rollout, in one gradient step.
            check_finite(metrics, args, global_step)  # the last update is done, as actions have come after it
            metrics = learn(*(to_device(x, device) for x in (obs, rewards, terminateds, dones, valids)))
            clock.lap("learning")

            # 3. Log and save.
            if rank > 0:
                continue
            last = global_step + batch_size > args.total_timesteps
            if last or due(args.log_interval, global_step, batch_size):
                speed = (global_step - start_step) / (time.perf_counter() - start_time)
                charts = {"charts/SPS": speed, "charts/learning_rate": lr} | clock.shares()
                charts["charts/PPS"] = speed * (1 + 1 / args.num_steps)  # states through the network, as in GA3C
                charts["charts/TPS"] = speed / batch_size  # updates
                log_progress(run, args, global_step, recent, charts, metrics)
            if due(args.checkpoint_interval, global_step, batch_size):
                save_checkpoint(folder, args, agent, optimizer, global_step, run.id)
            clock.lap("logging")

        check_finite(metrics, args, global_step)
        if rank == 0:
            save_checkpoint(folder, args, agent, optimizer, global_step, run.id)
            if args.eval_episodes:
                log_evaluation(run, global_step, evaluate(agent, args, folder), folder)
            print(f"checkpoint {folder / 'checkpoint.pt'}", flush=True)
    except (KeyboardInterrupt, SystemExit):
        if rank == 0:
            save_checkpoint(folder, args, agent, optimizer, global_step, run.id)
            print(f"stopped at step {global_step:,}  checkpoint {folder / 'checkpoint.pt'}", flush=True)
        raise
    finally:
        envs.close()
        if rank == 0:
            run.finish(exit_code=int(sys.exc_info()[0] is not None))
        if distributed.is_initialized():
            distributed.destroy_process_group()
    return agent, history


def start_ranks():
    """Join the processes that torchrun has started, if it has -> rank, their number, rank on this machine."""
    if "WORLD_SIZE" not in os.environ:
        return 0, 1, 0
    distributed.init_process_group()  # which takes NCCL for tensors on a GPU and gloo for those on a CPU
    return distributed.get_rank(), distributed.get_world_size(), int(os.environ["LOCAL_RANK"])


def choose_device(args, image, local_rank):
    """--device as a torch.device; auto is cuda for images, and cuda the GPU with the number of the rank."""
    auto = "cuda" if image and torch.cuda.is_available() else "cpu"
    device = torch.device(auto if args.device == "auto" else args.device)
    if args.cuda_graphs and device.type != "cuda":
        raise RunError(f"--cuda-graphs: takes a GPU; the device is {device}")
    if device != torch.device("cuda"):
        return device
    if local_rank >= torch.cuda.device_count():
        raise RunError(f"--device cuda: takes a GPU for each process, and there are {torch.cuda.device_count()}")
    return torch.device("cuda", local_rank)


def to_device(array, device):
    """A copy of a NumPy array on the device, from pinned memory to a GPU, which lets the CPU go on meanwhile."""
    x = torch.tensor(array, pin_memory=device.type == "cuda").to(device, non_blocking=True)
    return x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x  # frames, as convolutions like them


def check_finite(metrics, args, global_step):
    """RunError if an update's gradient was not finite."""
    if not math.isfinite(metrics["grad_norm"]):
        raise RunError(
            f"step {global_step}: the loss is not finite; try a lower --learning-rate, or look for NaN in "
            f"what {args.env_id} returns"
        )


class Clock:
    """Where the time goes: lap(name) adds the seconds since the last lap to `name`.

    While a GPU learns the CPU goes on, so that acting, which then waits for it, has most of these seconds.
    """

    def __init__(self):
        self.seconds, self.last = collections.Counter(), time.perf_counter()

    def lap(self, name):
        """End a lap."""
        now = time.perf_counter()
        self.seconds[name] += now - self.last
        self.last = now

    def shares(self):
        """Each name's share of all the time, as charts."""
        return {f"time/{name}": seconds / self.seconds.total() for name, seconds in self.seconds.items()}


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


def atari(args):
    """Whether --env-id names an Atari game."""
    return "ALE/" in args.env_id


def make_atari(args, num_envs):
    """Games stepped together by ALE, which makes the paper's (4, 84, 84) frames; rewards as the game gives them."""
    import ale_py  # here, as nothing else needs it

    gym.register_envs(ale_py)
    sticky = {"repeat_action_probability": args.repeat_action_probability}
    threads = min(num_envs, args.env_threads)
    return gym.make_vec(args.env_id, num_envs=num_envs, reward_clipping=False, num_threads=threads, **sticky)


class Single(gym.Env):
    """The only one of a vector of environments, with the newest frame that it shows as its picture."""

    metadata, render_mode = {"render_modes": ["rgb_array"], "render_fps": 15}, "rgb_array"

    def __init__(self, envs):
        self.envs = envs
        self.observation_space, self.action_space = envs.single_observation_space, envs.single_action_space

    def reset(self, *, seed=None, options=None):
        self.obs, _ = self.envs.reset(seed=seed)
        return self.obs[0], {}

    def step(self, action):
        self.obs, *rest = self.envs.step(np.array([action]))
        return self.obs[0], *(x[0] for x in rest[:3]), {}

    def render(self):
        return np.repeat(self.obs[0, -1, :, :, None], 3, axis=-1)

    def close(self):
        self.envs.close()


def make_envs(args):
    """args.num_envs environments stepped together; RunError if there are none of that name or not for this script."""
    try:
        if atari(args):
            envs = make_atari(args, args.num_envs)
        else:
            envs = gym.make_vec(args.env_id, num_envs=args.num_envs)
        if args.capture_video:  # a rehearsal: whatever is missing for a video shows now, not after training
            with tempfile.TemporaryDirectory() as folder:
                env = make_eval_env(None, args, folder)
                env.reset()
                env.close()
    except Exception as error:  # an environment can fail in any way
        raise RunError(f"--env-id {args.env_id}: {textwrap.shorten(str(error) or repr(error), 300)}") from None
    obs_space, action_space = envs.single_observation_space, envs.single_action_space
    if not ((flat(obs_space) or atari(args)) and isinstance(action_space, Discrete)):
        spaces = textwrap.shorten(f"{obs_space} and {action_space}", 300)
        raise RunError(f"--env-id {args.env_id}: takes flat Box observations or Atari, Discrete actions, not {spaces}")
    if envs.metadata.get("autoreset_mode") != AutoresetMode.NEXT_STEP:
        raise RunError(f"--env-id {args.env_id}: takes vector environments with AutoresetMode.NEXT_STEP")
    return envs


def make_eval_env(agent, args, folder):
    """One environment to evaluate in."""
    render = {"render_mode": "rgb_array"} if args.capture_video else {}
    env = Single(make_atari(args, 1)) if atari(args) else gym.make(args.env_id, **render)
    return record_video(env, folder) if args.capture_video else env


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
        if script != Path(__file__).stem or flags["env_id"] != args.env_id:
            raise ValueError(f"of {script}.py, env_id {flags['env_id']}")
        agent.load_state_dict(checkpoint["agent"])
        settings = {name: value for name, value in optimizer.param_groups[0].items() if name != "params"}
        optimizer.load_state_dict(checkpoint["optimizer"])
        optimizer.param_groups[0].update(settings)  # flags of this run hold
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
