# /// script
# requires-python = ">=3.11"
# dependencies = ["ale-py>=0.12", "gymnasium[classic-control,other]>=1.2.1", "numpy>=1.26", "torch>=2.6", "wandb>=0.28"]
# ///
"""PAAC: parallel advantage actor-critic, one policy that plays many environments at once, on CPUs or GPUs.

Papers   Clemente et al. 2017 (arXiv:1705.04862), Alg. 1, and its program, github.com/Alfredvc/paac;
         Schulman et al. 2016 (arXiv:1506.02438), eq. 16
Update   L = -E[log π(a|s) A] + vf_coef E[(R - V(s))²] - ent_coef E[H(π(·|s))]    one step on Δθ per rollout
         δ_t = r_t + γ V(s_t+1) - V(s_t)    A_t = δ_t + γλ A_t+1    R_t = A_t + V(s_t)    λ = 1: R_t = r_t + γ R_t+1
         V(s_t+1) = 0 after a terminal state; A_t+1 = 0 after the end of an episode or rollout; A and R are constants
         g = αg + (1 - α)Δθ²    θ = θ - η Δθ / √(g + ε)    Δθ = ∇(loss_scale L), clipped; g is 1 at first
Ranks    torchrun --nproc-per-node K paac_gpu.py: K processes, each with a device and num_envs environments of its own,
         share their gradients, and so learn as one with K num_envs environments would; the first one logs
Departs  an episode that a time limit cuts bootstraps from its last observation; greedy evaluation; frames less their
         mean; longer rollouts, GAE and a far larger effective step (η / √ε), which learned Pong in 3 to 4.3M steps.
         The authors' constants are in settings/paac_gpu_authors.txt
Run      python paac_gpu.py    python paac_gpu.py @settings/paac_gpu_CartPole-v1.txt
Result   CartPole-v1: greedy return 500.0 ± 0.0 (10 seeds), 5.9 s of training (one core of an AMD EPYC)
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

if __name__ == "__main__":  # before torch, whose threads would else spin for long where the emulators could run
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")

import gymnasium as gym
import numpy as np
import torch
import wandb
from gymnasium.spaces import Box, Discrete
from torch import distributed, nn


def parse_args(argv=None):
    """Flags -> argparse.Namespace; a value out of range ends the program with one line and exit code 2."""
    parser = argparse.ArgumentParser(fromfile_prefix_chars="@", formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.description = __doc__.splitlines()[0]
    add = parser.add_argument
    gpus = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    devices = ["cpu", *["cuda"] * bool(gpus), *gpus, *["mps"] * torch.backends.mps.is_available()]
    add("--env-id", default="ALE/Pong-v5", help="id: discrete or continuous actions; flat observations or ALE/GAME-v5")
    add("--total-timesteps", type=number(int, 1), default=10_000_000, help="environment steps, over all environments")
    add("--num-envs", type=number(int, 1), default=16, help="environments stepped together, the paper's n_e")
    add("--num-steps", type=number(int, 1), default=16, help="steps per environment and update, the paper's t_max")
    add("--network", default="nips", choices=["nips", "nature"], help="the smaller or the larger one, for Atari")
    add("--learning-rate", type=number(float, 0), default=1e-3, help="RMSProp's step size, falling linearly to 0, η")
    add("--rmsprop-decay", type=number(float, 0, 1), default=0.99, help="decay of RMSProp's mean square g, α")
    add("--rmsprop-eps", type=number(float, 1e-12), default=1e-8, help="added to g under the root, ε")
    add("--gamma", type=number(float, 0, 1), default=0.99, help="discount γ")
    add("--gae-lambda", type=number(float, 0, 1), default=0.95, help="λ: 1 is the n-step advantage, 0 the TD error")
    add("--loss-scale", type=number(float, 0), default=1.0, help="factor of L: t_max makes means over time sums")
    add("--vf-coef", type=number(float, 0), default=0.5, help="weight of the value loss")
    add("--ent-coef", type=number(float, 0), default=0.01, help="weight of the entropy bonus, the paper's β")
    add("--max-grad-norm", type=number(float, 0), default=0.5, help="clip the global norm of the gradient to this")
    add("--repeat-action-probability", type=number(float, 0, 1), default=0.0, help="Atari's sticky actions")
    add("--bf16", action="store_true", help="run the network's body in bfloat16: faster, less exact")
    add("--seed", type=number(int, 0), default=1, help="seeds networks, environments and actions")
    add("--device", default="cuda" if gpus else "cpu", choices=devices, help="what torch finds of cpu, cuda and mps")
    add("--log-interval", type=number(int, 1), default=250_000, help="environment steps between logs and checkpoints")
    add("--eval-episodes", type=number(int, 0), default=20, help="greedy episodes after training; 0 for none")
    add("--capture-video", action="store_true", help="record a greedy episode as MP4")
    add("--resume", help="checkpoint.pt to go on from, with fresh episodes; one that is complete is only evaluated")
    add("--run-dir", default="runs", help="parent of the run folder, which holds the checkpoint and the video")
    add("--wandb-mode", default=os.environ.get("WANDB_MODE", "offline"), choices=["disabled", "offline", "online"])
    add("--wandb-project", default=os.environ.get("WANDB_PROJECT", "reference-rl"), help="W&B project")
    args = parser.parse_args(argv)
    if args.device == "cuda" and "LOCAL_RANK" in os.environ:  # by torchrun: each process has a GPU of its own
        args.device = f"cuda:{os.environ['LOCAL_RANK']}"
        if args.device not in devices:
            parser.error(f"argument --device: there are {len(gpus)} GPUs for more processes")
    return args


class ActorCritic(nn.Module):
    """π(a|s) and V(s) on one body; π is categorical for discrete actions, normal for continuous ones.

    Weights and biases start uniformly in ±1 / √(number of inputs): the authors' choice, and torch's own.
    """

    def __init__(self, obs_space, action_space, network, bf16=False):
        super().__init__()
        self.discrete = isinstance(action_space, Discrete)
        num_outputs = int(action_space.n) if self.discrete else action_space.shape[0]
        self.image, self.bf16 = len(obs_space.shape) == 3, bf16
        if not self.image:
            layers = [nn.Linear(obs_space.shape[0], 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh()]
        elif network == "nips":
            layers = [nn.Conv2d(4, 16, 8, stride=4), nn.ReLU(), nn.Conv2d(16, 32, 4, stride=2), nn.ReLU()]
            layers += [nn.Flatten(), nn.Linear(32 * 9 * 9, 256), nn.ReLU()]
        else:
            layers = [nn.Conv2d(4, 32, 8, stride=4), nn.ReLU(), nn.Conv2d(32, 64, 4, stride=2), nn.ReLU()]
            layers += [nn.Conv2d(64, 64, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64 * 7 * 7, 512), nn.ReLU()]
        self.body = nn.Sequential(*layers)
        num_features = layers[-2].out_features
        self.actor, self.critic = nn.Linear(num_features, num_outputs), nn.Linear(num_features, 1)
        self.log_std = None if self.discrete else nn.Parameter(torch.zeros(num_outputs))  # the same in all states

    def forward(self, obs):
        """(num_envs, *obs_shape), frames from 0 to 255 -> logits or means (num_envs, ...), and V(s), (num_envs,)."""
        obs = obs.to(torch.bfloat16 if self.bf16 else torch.float32, copy=True)  # a copy, to change in place
        if self.image:
            obs = obs.div_(255).sub_(obs.mean((-2, -1), keepdim=True))  # less the background, the same in all states
            obs = obs.contiguous(memory_format=torch.channels_last)  # in which convolutions learn faster
        with torch.autocast(obs.device.type, torch.bfloat16, enabled=self.bf16):
            features = self.body(obs)
        features = features.float()  # π and V are too fine for bfloat16, and take little time
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


class RMSProp(torch.optim.Optimizer):
    """g = αg + (1 - α)Δθ²; θ = θ - η Δθ / √(g + ε), from g = 1: TensorFlow's form. torch's has g = 0 and √g + ε."""

    def __init__(self, parameters, lr, decay, eps):
        super().__init__(parameters, {"lr": lr})
        self.decay, self.eps = decay, eps
        for p in self.param_groups[0]["params"]:
            self.state[p]["mean_square"] = torch.ones_like(p)

    @torch.no_grad()
    def step(self):
        """Update the parameters by their gradients."""
        for p in self.param_groups[0]["params"]:
            g = self.state[p]["mean_square"]
            g.mul_(self.decay).addcmul_(p.grad, p.grad, value=1 - self.decay)
            p.addcdiv_(p.grad, (g + self.eps).sqrt_(), value=-self.param_groups[0]["lr"])


def average_gradient(agent, count):
    """Replace this rank's gradient, a mean over `count` transitions, by the mean over those of all ranks."""
    gradients = [p.grad for p in agent.parameters()]
    total = torch.cat([g.flatten() for g in gradients] + [gradients[0].new_ones(1)])
    total = total * count if count else torch.zeros_like(total)  # a mean over none is NaN
    distributed.all_reduce(total)  # the sum over ranks, the same bits on each of them
    mean = total[:-1] / total[-1].clamp(min=1)
    for gradient, part in zip(gradients, mean.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


def update(agent, optimizer, output, values, actions, rewards, terminateds, dones, valids, args):
    """One gradient step on a rollout -> metrics, by what acting has left for autograd on output and values.

    output is (num_steps, num_envs, ...), values (num_steps + 1, num_envs); the arrays are (num_steps, num_envs, ...).
    """
    baseline = values.detach().cpu().numpy()  # advantages and returns carry no gradient
    advantages = compute_advantages(rewards, baseline, terminateds, dones, args.gamma, args.gae_lambda)
    returns = advantages + baseline[:-1]
    columns = (x[valids] for x in (actions, advantages, returns))  # (batch, ...): resets left out
    actions, advantages, returns = (torch.as_tensor(x, device=args.device) for x in columns)
    valids = torch.as_tensor(valids)  # stays with the CPU, which has to know how many there are
    log_prob, entropy = agent.log_prob_and_entropy(output[valids], actions)  # (batch,)
    loss, metrics = a2c_loss(log_prob, entropy, values[:-1][valids], advantages, returns, args.vf_coef, args.ent_coef)
    optimizer.zero_grad()
    (args.loss_scale * loss).backward()
    if distributed.is_initialized():
        average_gradient(agent, int(valids.sum()))
    grad_norm = nn.utils.clip_grad_norm_(agent.parameters(), args.max_grad_norm)
    if not grad_norm.isfinite():
        raise RunError(f"the gradient is not finite: lower --learning-rate, or look for NaN in {args.env_id}")
    optimizer.step()
    return metrics | {"losses/grad_norm": grad_norm}


def train(args):
    """Train, log, save and evaluate -> (agent, history), history a list of (global_step, episode_return)."""
    torch.manual_seed(args.seed)  # on every rank: the weights are the same
    envs = gym.wrappers.vector.RecordEpisodeStatistics(make_envs(args, args.num_envs))
    obs_space, action_space = envs.single_observation_space, envs.single_action_space
    if len(obs_space.shape) == 1:
        torch.set_num_threads(1)  # the network is tiny: one thread beats many
    rank, num_ranks = start_ranks()
    agent = ActorCritic(obs_space, action_space, args.network, args.bf16)
    agent.to(args.device, memory_format=torch.channels_last)  # as the frames will be
    optimizer = RMSProp(agent.parameters(), args.learning_rate, args.rmsprop_decay, args.rmsprop_eps)
    start_step, run_id = load_checkpoint(args, agent=agent, optimizer=optimizer) if args.resume else (0, None)
    torch.manual_seed(env_seed(args.seed, 2, start_step, rank))  # neither ranks nor resumed runs repeat a noise

    shape = args.num_steps, args.num_envs
    actions = np.zeros((*shape, *action_space.shape), np.int64 if agent.discrete else np.float32)
    rewards = np.zeros(shape, np.float32)
    terminateds, dones, valids = np.zeros((3, *shape), bool)
    done = np.zeros(args.num_envs, bool)
    history = []
    batch_size = args.num_steps * args.num_envs * num_ranks
    global_step = start_step  # counts the resets, too, and the steps of all ranks; history has the episodes of this one
    obs, _ = envs.reset(seed=env_seed(args.seed, 0, start_step, rank))
    run, folder = start_run(args, run_id, args.device) if rank == 0 else (None, None)
    start_time = time.perf_counter()
    try:
        while global_step < args.total_timesteps:
            optimizer.param_groups[0]["lr"] = args.learning_rate * (1 - global_step / args.total_timesteps)

            # 1. Play num_steps in every environment with the current policy. What autograd needs of acting is kept, so
            # learning takes no second forward pass.
            outputs, values = [], []
            for t in range(args.num_steps):
                output, value = agent(torch.as_tensor(obs, device=args.device))  # (num_envs, ...), (num_envs,)
                outputs.append(output)
                values.append(value)
                actions[t] = agent.sample(output).detach().cpu()  # the CPU waits for the GPU, here and in update
                valids[t] = ~done  # the step after a done only resets: its action is ignored, it is no transition
                # With a done comes the episode's true last observation: a time limit bootstraps from its value.
                obs, reward, terminateds[t], truncated, infos = envs.step(actions[t])
                rewards[t] = np.sign(reward) if "ALE/" in args.env_id else reward  # Atari's clipped to ±1
                done = dones[t] = terminateds[t] | truncated
                global_step += args.num_envs * num_ranks
                history += [(global_step, float(infos["episode"]["r"][i])) for i in np.flatnonzero(done)]

            # 2. Learn from the whole rollout, in one gradient step.
            if valids.any() or num_ranks > 1:  # else resets alone
                with torch.no_grad():
                    values.append(agent(torch.as_tensor(obs, device=args.device))[1])
                acted = torch.stack(outputs), torch.stack(values)
                metrics = update(agent, optimizer, *acted, actions, rewards, terminateds, dones, valids, args)

            # 3. Log and save.
            if rank == 0 and (global_step % args.log_interval < batch_size or global_step >= args.total_timesteps):
                speed = (global_step - start_step) / (time.perf_counter() - start_time)
                metrics["charts/PPS"] = speed * (1 + 1 / args.num_steps)  # states through the network, as in GA3C
                metrics["charts/TPS"] = speed / batch_size  # updates
                log_progress(run, args, global_step, speed, history, envs.length_queue, metrics)
                save_checkpoint(folder, args, global_step, run.id, agent=agent, optimizer=optimizer)

        if rank == 0:
            log_evaluation(run, folder, agent, args, global_step)
    finally:
        try:  # after Ctrl-C, SIGTERM or an environment's error, too: what has been learned is kept
            if rank == 0 and global_step > start_step:
                save_checkpoint(folder, args, global_step, run.id, agent=agent, optimizer=optimizer)
                print(f"checkpoint  {folder / 'checkpoint.pt'}  step {global_step:,}", flush=True)
        finally:
            envs.close()
            if rank == 0:
                run.finish(exit_code=int(sys.exc_info()[0] is not None))
            if distributed.is_initialized():
                distributed.destroy_process_group()
    return agent, history


def start_ranks():
    """Join the processes that torchrun has started, if it has -> rank, their number."""
    if "WORLD_SIZE" not in os.environ:
        return 0, 1
    distributed.init_process_group()  # which takes NCCL for tensors on a GPU and gloo for those on a CPU
    return distributed.get_rank(), distributed.get_world_size()


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
    if "ALE/" in args.env_id:
        envs = make_games(args, num_envs, **render)
    else:
        envs = gym.make_vec(args.env_id, num_envs=num_envs, **render)
    obs_space, action_space = envs.single_observation_space, envs.single_action_space
    autoreset = envs.metadata.get("autoreset_mode")
    discrete = isinstance(action_space, Discrete) and action_space.start == 0
    continuous = isinstance(action_space, Box) and len(action_space.shape) == 1 and action_space.dtype.kind == "f"
    fits = "ALE/" in args.env_id or (isinstance(obs_space, Box) and len(obs_space.shape) == 1)
    if not (fits and (discrete or continuous) and autoreset == gym.vector.AutoresetMode.NEXT_STEP):
        raise RunError(
            f"--env-id {args.env_id}: takes flat observations or Atari, Discrete (from 0) or flat float actions and "
            f"AutoresetMode.NEXT_STEP, not {obs_space}, {action_space} and {autoreset}"
        )
    return envs if discrete else gym.wrappers.vector.ClipAction(envs)


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
