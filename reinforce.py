# /// script
# requires-python = ">=3.11"
# dependencies = ["gymnasium[classic-control,other]>=1.1", "numpy>=1.26", "torch>=2.6", "wandb>=0.23"]
# ///
"""REINFORCE: Monte-Carlo policy gradient on batches of complete episodes, with a choice of weights for its ∇log π.

Papers   Williams 1992 (doi:10.1007/BF00992696); Schulman et al. 2016 (arXiv:1506.02438), eq. 1, for Ψ;
         Mannor, Rubinstein & Gat 2003 (The Cross Entropy method for Fast Policy Search, ICML) for elite
Update   L = -1/N Σ_episodes Σ_t [Ψ_t log π(a_t|s_t) + ent_coef H(π(·|s_t))] + E[(G_t - V(s_t))²]
         G_t = r_t + γ G_t+1, 0 after the end    N = num_envs    Ψ and G are constants    one Adam step on L per batch
         total_return: Ψ_t = G_0    reward_to_go: G_t    mean_baseline: G_t - mean G    value_baseline: G_t - V(s_t)
         elite: 1 in the best ceil(elite_fraction N) episodes, 0 in the others    V learns only for value_baseline
Bias     -∇L (ent_coef 0) is on average the gradient of E[G_0] for total_return and, at γ = 1 and with no episode cut,
         for reward_to_go and value_baseline; not for mean_baseline, as its mean holds the episode itself (an error of
         order 1/N), nor for elite, which follows another objective
Departs  batches of N episodes; no γ^t before Ψ_t (for γ < 1 a bias); Adam without momentum; the gradient is clipped. An
         episode that a time limit cuts ends there; only value_baseline goes on with γ V(last observation)
Run      python reinforce.py    python reinforce.py --psi elite
Result   greedy return 498.4 ± 2.5 (10 seeds), 3.3 s of training (2 cores of an AMD EPYC)
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

PSI = ["total_return", "reward_to_go", "mean_baseline", "value_baseline", "elite"]  # the weights Ψ of the header


def parse_args(argv=None):
    """Flags -> argparse.Namespace; a value out of range ends the program with one line and exit code 2."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    add, switch = parser.add_argument, argparse.BooleanOptionalAction
    add("--env-id", default="CartPole-v1", help="Gymnasium id: flat observations, discrete or continuous actions")
    add(
        "--total-timesteps",
        type=number(int, 1, 10**15),
        default=400_000,
        help="environment steps, summed over environments",
    )
    add("--num-envs", type=number(int, 1), default=64, help="environments stepped together: N episodes per update")
    add("--psi", default="value_baseline", choices=PSI, help="Ψ, the weight of ∇log π, see above")
    add("--elite-fraction", type=number(float, 0, 1), default=0.25, help="elite: share of the episodes learned from")
    add("--learning-rate", type=number(float, 0), default=3e-3, help="Adam's step size, the paper's α")
    add("--anneal-lr", action=switch, default=True, help="let the learning rate fall linearly to 0")
    add("--gamma", type=number(float, 0, 1), default=0.998, help="discount γ")
    add("--value-learning-rate", type=number(float, 0), default=2e-2, help="value_baseline: Adam's step size for V")
    add("--ent-coef", type=number(float, 0), default=0.0, help="weight of the entropy bonus")
    add("--max-grad-norm", type=number(float, 0), default=0.5, help="clip the global norm of the gradient to this")
    add("--seed", type=number(int, 0, 2**31 - 1), default=1, help="seeds networks, environments and actions")
    add("--device", type=device_name, default="auto", help="cpu, cuda, cuda:N or mps; auto is cpu: the network is tiny")
    add("--log-interval", type=number(int, 1), default=10_000, help="environment steps between log lines")
    add("--eval-episodes", type=number(int, 0), default=20, help="greedy episodes after training; 0 for none")
    add("--capture-video", action="store_true", help="record the first evaluation episode as MP4")
    add("--checkpoint-interval", type=number(int, 0), default=50_000, help="steps between checkpoints; 0: at the end")
    add("--resume", help="checkpoint.pt to go on from, with fresh episodes; one that is complete is only evaluated")
    add("--run-dir", default="runs", help="parent of the run folder, which holds the checkpoint and the video")
    modes = ["disabled", "offline", "online"]
    add("--wandb-mode", default=os.environ.get("WANDB_MODE", "offline"), choices=modes, help="offline needs no account")
    add("--wandb-project", default=os.environ.get("WANDB_PROJECT", "reference-rl"), help="W&B project")
    args = parser.parse_args(argv)
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


def discounted_returns(rewards, gamma):
    """G_t = r_t + γ G_t+1 as a backward recursion from 0; rewards and the result are (num_steps, num_envs)."""
    returns = [torch.zeros_like(rewards[0])]  # after the last step
    for reward in rewards.flip(0):
        returns.append(reward + gamma * returns[-1])
    return torch.stack(returns[:0:-1])  # in the order of time, without the zeros


def psi_weights(psi, returns, values, valid, elite_fraction):
    """Ψ of the header from G_t and V(s_t), by its name; every tensor and the result are (num_steps, num_envs)."""
    if psi == "total_return":
        return returns[0].expand_as(returns)  # the first row is G_0
    if psi == "reward_to_go":
        return returns
    if psi == "mean_baseline":
        return returns - (returns * valid).sum() / valid.sum()
    if psi == "value_baseline":
        return returns - values
    num_elite = math.ceil(elite_fraction * returns.shape[1] - 1e-9)  # 0.07 * 100 is a little more than 7
    elite = returns[0].topk(max(num_elite, 1)).indices
    return torch.zeros_like(returns).index_fill(1, elite, 1.0)


def reinforce_loss(log_prob, entropy, weights, valid, ent_coef):
    """L of the header but for the value loss -> (loss, metrics); every tensor is (num_steps, num_envs)."""
    # Summed over the steps of an episode: a mean would count the steps of long episodes, which are the good or the
    # bad ones, for less than those of short ones.
    num_episodes = valid.shape[1]
    policy_loss = -(valid * weights.detach() * log_prob).sum() / num_episodes
    entropy = (valid * entropy).sum()
    loss = policy_loss - ent_coef * entropy / num_episodes
    return loss, {"policy_loss": policy_loss, "entropy": entropy / valid.sum()}  # the mean entropy of a step


def update(agent, optimizer, observations, actions, rewards, cut, valid, args):
    """One gradient step on a batch of episodes -> metrics; observations has num_steps + 1 rows, the others num_steps.

    Rewards are 0 where valid is; cut marks the last step of an episode that only the clock has ended.
    """
    parameters, values = agent(observations)  # (num_steps + 1, num_envs, num_outputs), (num_steps + 1, num_envs)
    baseline = values.detach()  # Ψ and value targets carry no gradient
    if args.psi == "value_baseline":  # an episode that the clock cut would have gone on
        rewards = rewards + args.gamma * baseline[1:] * cut
    returns = discounted_returns(rewards, args.gamma)
    weights = psi_weights(args.psi, returns, baseline[:-1], valid, args.elite_fraction)
    log_prob, entropy = agent.log_prob_and_entropy(parameters[:-1], actions)
    loss, metrics = reinforce_loss(log_prob, entropy, weights, valid, args.ent_coef)
    if args.psi == "value_baseline":
        metrics["value_loss"] = (valid * (returns - values[:-1]) ** 2).sum() / valid.sum()
        loss = loss + metrics["value_loss"]
    optimizer.zero_grad()
    loss.backward()
    metrics["grad_norm"] = nn.utils.clip_grad_norm_(agent.parameters(), args.max_grad_norm)
    if metrics["grad_norm"].isfinite():  # else train ends the run, and the weights have stayed good
        optimizer.step()
    return metrics


def make_optimizer(agent, args):
    """Adam with two groups of parameters, π's and V's; train sets their learning rates."""
    # V takes larger steps than π: it has few batches in which to rise from 0 to returns of hundreds.
    policy = [p for name, p in agent.named_parameters() if not name.startswith("critic")]
    critic = {"params": agent.critic.parameters(), "lr": args.value_learning_rate}
    # Without momentum (β1 = 0): the next batch comes from another policy.
    return torch.optim.Adam(
        [{"params": policy}, critic], lr=args.learning_rate, betas=(0.0, 0.999), eps=1e-5, fused=True
    )


def train(args):
    """Train, log, save and evaluate -> (agent, history), history a list of (global_step, episode_return).

    A step is a transition that is learned from: what an environment plays after its episode does not count.
    """
    torch.manual_seed(args.seed)
    torch.set_num_threads(1)  # the network is tiny: one thread beats many
    device = torch.device("cpu" if args.device == "auto" else args.device)
    envs = make_envs(args)
    agent = ActorCritic(envs.single_observation_space, envs.single_action_space).to(device)
    optimizer = make_optimizer(agent, args)
    start_step, run_id = load_checkpoint(args, agent, optimizer) if args.resume is not None else (0, None)
    history, recent = [], collections.deque(maxlen=100)  # of (global_step, return), of (return, length)
    global_step, metrics = start_step, {}
    folder, run = start_run(args, run_id, device)
    start_time = time.perf_counter()
    try:
        while global_step < args.total_timesteps:
            anneal = 1 - global_step / args.total_timesteps if args.anneal_lr else 1
            policy, critic = optimizer.param_groups
            policy["lr"], critic["lr"] = anneal * args.learning_rate, anneal * args.value_learning_rate

            # 1. Play one episode in every environment. Taking the first N that end would favour short episodes, so
            # whoever has ended plays on, unseen, until the last one has.
            first_step, running = global_step, np.ones(args.num_envs, bool)
            obs, _ = envs.reset(seed=env_seed(args.seed, 0, first_step))
            steps, observations = [], [obs]
            while running.any() and global_step + running.sum() <= args.total_timesteps:
                with torch.inference_mode():
                    # (num_envs, num_outputs)
                    parameters = agent.actor(torch.as_tensor(obs, dtype=torch.float32, device=device))
                    action = agent.sample(parameters).cpu().numpy()
                obs, reward, terminated, truncated, _ = envs.step(env_action(action, envs.single_action_space))
                # With a done comes the episode's true last observation; the environment resets only in its next step.
                observations.append(obs)
                steps.append((action, np.where(running, reward, 0.0), running & truncated & ~terminated, running))
                global_step += int(running.sum())
                running = running & ~(terminated | truncated)

            # 2. Learn from the whole batch, in one gradient step.
            if running.any():  # the steps are used up, and those that have ended are the short ones: learn from none
                global_step = args.total_timesteps
                if not metrics and args.resume is None:
                    raise RunError(
                        f"--total-timesteps {args.total_timesteps}: not enough for one batch of {args.num_envs} "
                        f"episodes; try a lower --num-envs, or a time limit if {args.env_id} has none"
                    )
            else:
                actions, rewards, cut, valid = map(np.stack, zip(*steps, strict=True))  # (num_steps, num_envs)
                batch = np.stack(observations).astype(np.float32), actions, rewards.astype(np.float32), cut, valid
                metrics = update(agent, optimizer, *(torch.as_tensor(x, device=device) for x in batch), args)
                if not math.isfinite(metrics["grad_norm"]):
                    raise RunError(
                        f"step {global_step}: the loss is not finite; try a lower --learning-rate, or look for NaN in "
                        f"what {args.env_id} returns"
                    )
                returns, lengths, played = rewards.sum(0), valid.sum(0), first_step + valid.sum(1).cumsum()
                for i in lengths.argsort(kind="stable"):  # in the order in which they ended
                    history.append((int(played[lengths[i] - 1]), float(returns[i])))
                    recent.append((returns[i], lengths[i]))

            # 3. Log and save.
            batch_size = global_step - first_step
            if global_step == args.total_timesteps or due(args.log_interval, global_step, batch_size):
                speed = (global_step - start_step) / (time.perf_counter() - start_time)
                charts = {"charts/SPS": speed, "charts/learning_rate": policy["lr"]}
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
    return envs


def make_eval_env(agent, args, folder):
    """One environment to evaluate in."""
    if args.capture_video:
        return record_video(gym.make(args.env_id, render_mode="rgb_array"), folder)
    return gym.make(args.env_id)


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
        optimizer.load_state_dict(checkpoint["optimizer"])
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
