# /// script
# requires-python = ">=3.11"
# dependencies = ["ale-py>=0.12", "gymnasium[classic-control,other]>=1.2.1", "numpy>=1.26", "torch>=2.6", "wandb>=0.28"]
# ///
"""A3C: asynchronous advantage actor-critic, in processes that share weights without locking them (Hogwild).

Paper    Mnih et al. 2016 (arXiv:1602.01783), Alg. S3, with RMSProp's statistics shared
Update   L = Σ_t [-log π(a_t|s_t) (R_t - V(s_t)) + vf_coef (R_t - V(s_t))² - ent_coef H(π(·|s_t))]
         R_t = r_t + γ R_t+1 over up to num_steps steps of one episode, from V(s) after the last, 0 if it is terminal
         g = αg + (1 - α)Δθ²    θ = θ - η Δθ / √(g + ε)    Δθ = ∇L, clipped; g is 1 at first; R, R - V are constants
Workers  each copies θ, plays, and hands Δθ over, by when others have made charts/policy_lag updates; with one worker a
         seed gives the same run again bit for bit, with more it does not. A checkpoint may hold weights of different
         moments of an update
Departs  an episode that a time limit cuts bootstraps from its last observation; greedy evaluation; orthogonal weights;
         tanh units for flat observations; Atari: frames less their mean, no terminal at a lost life, sticky actions
Run      python a3c.py
Result   greedy return 500.0 ± 0.0 (10 seeds), 16.0 s of training with 2 workers (2 cores of an AMD EPYC)
"""

import argparse
import io
import os
import re
import secrets
import signal
import sys
import threading
import time
from collections import deque
from multiprocessing.connection import wait
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch
import wandb
from gymnasium.spaces import Box, Discrete
from torch import multiprocessing, nn


def parse_args(argv=None):
    """Flags -> argparse.Namespace; a value out of range ends the program with one line and exit code 2."""
    parser = argparse.ArgumentParser(fromfile_prefix_chars="@", formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.description = __doc__.splitlines()[0]
    add = parser.add_argument
    add("--env-id", default="CartPole-v1", help="id: discrete or continuous actions; flat observations or ALE/GAME-v5")
    add("--total-timesteps", type=number(int, 1), default=200_000, help="environment steps, over all workers")
    add("--num-workers", type=number(int, 1), default=2, help="processes, each with an environment of its own")
    add("--num-steps", type=number(int, 1), default=20, help="most steps per update, the paper's t_max")
    add("--learning-rate", type=number(float, 0), default=1e-3, help="RMSProp's step size, falling linearly to 0, η")
    add("--rmsprop-decay", type=number(float, 0, 1), default=0.99, help="decay of RMSProp's mean square g, α")
    add("--rmsprop-eps", type=number(float, 1e-12), default=1e-2, help="added to g under the root, ε")
    add("--gamma", type=number(float, 0, 1), default=0.98, help="discount γ")
    add("--vf-coef", type=number(float, 0), default=0.1, help="weight of the value loss")
    add("--ent-coef", type=number(float, 0), default=0.01, help="weight of the entropy bonus, the paper's β")
    add("--max-grad-norm", type=number(float, 0), default=40.0, help="clip the global norm of the gradient to this")
    add("--lstm", action="store_true", help="256 LSTM cells after the last hidden layer")
    add("--repeat-action-probability", type=number(float, 0, 1), default=0.25, help="Atari's sticky actions")
    add("--seed", type=number(int, 0), default=1, help="seeds networks, environments and actions")
    add("--log-interval", type=number(int, 1), default=10_000, help="environment steps between logs and checkpoints")
    add("--eval-episodes", type=number(int, 0), default=20, help="greedy episodes after training; 0 for none")
    add("--capture-video", action="store_true", help="record a greedy episode as MP4")
    add("--resume", help="checkpoint.pt to go on from, with fresh episodes; one that is complete is only evaluated")
    add("--run-dir", default="runs", help="parent of the run folder, which holds the checkpoint and the video")
    add("--wandb-mode", default=os.environ.get("WANDB_MODE", "offline"), choices=["disabled", "offline", "online"])
    add("--wandb-project", default=os.environ.get("WANDB_PROJECT", "reference-rl"), help="W&B project")
    return parser.parse_args(argv)


class ActorCritic(nn.Module):
    """π(a|s) and V(s) on one body; π is categorical for discrete actions, normal for continuous ones."""

    def __init__(self, obs_space, action_space, lstm):
        super().__init__()
        self.discrete = isinstance(action_space, Discrete)
        num_outputs = int(action_space.n) if self.discrete else action_space.shape[0]
        self.image = len(obs_space.shape) == 3
        if self.image:
            layers = [nn.Conv2d(4, 16, 8, stride=4), nn.ReLU(), nn.Conv2d(16, 32, 4, stride=2), nn.ReLU()]
            layers += [nn.Flatten(), nn.Linear(32 * 9 * 9, 256), nn.ReLU()]
        else:
            layers = [nn.Linear(obs_space.shape[0], 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh()]
        num_features = 256 if lstm or self.image else 64
        self.body = nn.Sequential(*layers)
        self.lstm = nn.LSTM(layers[-2].out_features, 256) if lstm else None
        self.actor, self.critic = nn.Linear(num_features, num_outputs), nn.Linear(num_features, 1)
        self.log_std = None if self.discrete else nn.Parameter(torch.zeros(num_outputs))  # the same in all states
        weighted = [layer for layer in layers if isinstance(layer, nn.Conv2d | nn.Linear)]
        gains = [2**0.5] * len(weighted) + [0.01, 1.0]  # 0.01: near-uniform at the start
        for layer, gain in zip([*weighted, self.actor, self.critic], gains, strict=True):
            nn.init.orthogonal_(layer.weight, gain)
            nn.init.zeros_(layer.bias)

    def forward(self, obs, state=None):
        """(num_steps, *obs_shape), the LSTM's state before -> logits or means (num_steps, ...), V(s), state after.

        With one more dimension, (num_steps, num_envs, ...), for environments side by side.
        """
        if self.image:
            frames = obs.flatten(0, -4) / 255
            frames -= frames.mean((-2, -1), keepdim=True)  # less the background, the same in all states
            features = self.body(frames).unflatten(0, obs.shape[:-3])
        else:
            features = self.body(obs.float())
        if self.lstm is not None:
            features, state = self.lstm(features, state)  # None is the state of zeros with which an episode begins
        return self.actor(features), self.critic(features).squeeze(-1), state

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


def n_step_returns(rewards, last_value, gamma):
    """R_t = r_t + γ R_t+1, backwards from last_value, that of the state after the last step; lists of floats."""
    returns = []
    for reward in reversed(rewards):
        last_value = reward + gamma * last_value
        returns.append(last_value)
    return returns[::-1]


def a3c_loss(log_prob, entropy, values, returns, vf_coef, ent_coef):
    """L of the header, a sum as in Alg. S3 -> (loss, metrics, which are means); every tensor is (num_steps,)."""
    advantages = returns - values
    policy_loss = -(log_prob * advantages.detach())
    value_loss = advantages.square()
    loss = (policy_loss + vf_coef * value_loss - ent_coef * entropy).sum()
    metrics = {"policy_loss": policy_loss, "value_loss": value_loss, "entropy": entropy}
    return loss, {f"losses/{name}": value.mean() for name, value in metrics.items()}


def one_vector(agent):
    """Make the agent's parameters views of one vector -> it; to copy or update them all is one operation."""
    vector = nn.utils.parameters_to_vector(agent.parameters()).detach()
    nn.utils.vector_to_parameters(vector, agent.parameters())
    return vector


class SharedRMSprop(nn.Module):
    """The shared weights θ and statistics g, in shared memory from before the workers start, and RMSProp's step."""

    def __init__(self, agent, decay, eps):
        super().__init__()
        self.weights = one_vector(agent).share_memory_()  # (num_weights,)
        self.register_buffer("mean_square", torch.ones_like(self.weights).share_memory_())  # from 0, 10 η at first
        self.decay, self.eps = decay, eps

    def step(self, gradient, learning_rate):
        """g = αg + (1 - α)Δθ²; θ = θ - η Δθ / √(g + ε): in place and without a lock, Δθ = gradient (num_weights,)."""
        self.mean_square.mul_(self.decay).addcmul_(gradient, gradient, value=1 - self.decay)
        self.weights.addcdiv_(gradient, (self.mean_square + self.eps).sqrt_(), value=-learning_rate)


def update(agent, optimizer, observations, state, actions, rewards, terminated, learning_rate, args):
    """One step of the shared weights by the gradient at the local agent's -> metrics.

    observations has num_steps + 1 rows, all of one episode; state is the LSTM's before the first of them.
    """
    output, values, _ = agent(observations, state)  # (num_steps + 1, ...)
    # Only a terminal state stops the bootstrap: an episode that the clock cut would have gone on.
    returns = torch.tensor(n_step_returns(rewards, 0.0 if terminated else values[-1].item(), args.gamma))
    log_prob, entropy = agent.log_prob_and_entropy(output[:-1], actions)
    loss, metrics = a3c_loss(log_prob, entropy, values[:-1], returns, args.vf_coef, args.ent_coef)
    # The hand-over, by value. backward adds to the local gradients, so these are what must be cleared: with the shared
    # agent's cleared in their place, as older scripts do, each update since torch 2.0 repeats all that went before.
    agent.zero_grad()
    loss.backward()
    gradient = torch.cat([p.grad.flatten() for p in agent.parameters()])
    grad_norm = gradient.norm()
    if not grad_norm.isfinite():
        raise RunError(f"the gradient is not finite: lower --learning-rate, or look for NaN in {args.env_id}")
    optimizer.step(gradient * (args.max_grad_norm / grad_norm).clamp(max=1), learning_rate)
    return metrics | {"losses/grad_norm": grad_norm}


def worker(send, rank, args, optimizer, steps, updates, start_step):
    """Alg. S3 in one process: play and learn until all workers together have played args.total_timesteps.

    steps counts what all have played, the paper's T, from start_step on, updates what all have learned. send reports to
    the parent: global_step, whether it is time to log, (return, length) of an episode that has ended or None, metrics.
    """
    env = make_env(args)
    agent = ActorCritic(env.observation_space, env.action_space, args.lstm)
    weights = one_vector(agent)
    seed = env_seed(args.seed, 0, start_step, rank)
    torch.manual_seed(seed)
    obs, _ = env.reset(seed=seed)
    state, lags = None, []  # lags: the updates of others between a copy of the weights and the update made of it
    send((start_step, False, None, {}))  # ready
    try:
        while (global_step := steps.value) < args.total_timesteps:
            # 1. Copy the shared weights, as they are: others go on writing.
            copied = updates.value
            weights.copy_(optimizer.weights)
            learning_rate = args.learning_rate * (1 - global_step / args.total_timesteps)

            # 2. Play up to num_steps steps, or to the end of the episode.
            num_steps, done = min(args.num_steps, args.total_timesteps - global_step), False
            first_state, observations, actions, rewards = state, [obs], [], []
            while len(rewards) < num_steps and not done:
                with torch.no_grad():  # which also detaches the LSTM's state, at the border of rollouts
                    output, _, state = agent(torch.as_tensor(obs).unsqueeze(0), state)  # (1, num_outputs)
                    action = agent.sample(output)[0].numpy()
                obs, reward, terminated, truncated, info = env.step(action)
                done = terminated or truncated
                observations.append(obs)
                actions.append(action)
                rewards.append(float(np.sign(reward) if "ALE/" in args.env_id else reward))  # Atari's clipped to ±1

            # 3. Learn from them.
            rollout = torch.as_tensor(np.stack(observations)), first_state, torch.as_tensor(np.stack(actions)), rewards
            metrics = update(agent, optimizer, *rollout, terminated, learning_rate, args)

            # 4. Count the steps, and report what there is.
            with steps.get_lock():
                steps.value += len(rewards)
                global_step = steps.value
                lags.append(updates.value - copied)
                updates.value += 1
            due = any(global_step % interval < len(rewards) for interval in (args.log_interval, args.total_timesteps))
            if due:
                metrics["charts/policy_lag"] = np.mean(lags)  # over this worker's updates since it last logged
                lags.clear()
            if done or due:
                episode = (float(info["episode"]["r"]), info["episode"]["l"]) if done else None
                send((global_step, due, episode, {name: value.item() for name, value in metrics.items()}))
            if done:
                obs, _ = env.reset()
                state = None
    finally:
        env.close()


def train(args):
    """Train, log, save and evaluate -> (agent, history), history a list of (global_step, episode_return).

    The workers do the playing and learning; here their results are collected.
    """
    torch.manual_seed(args.seed)
    torch.set_num_threads(1)  # as in each worker
    env = make_env(args)
    agent = ActorCritic(env.observation_space, env.action_space, args.lstm)
    env.close()
    optimizer = SharedRMSprop(agent, args.rmsprop_decay, args.rmsprop_eps)
    start_step, run_id = load_checkpoint(args, agent=agent, optimizer=optimizer) if args.resume else (0, None)
    context = multiprocessing.get_context("spawn")  # as fork can deadlock once torch has started threads
    steps, updates = context.Value("q", start_step), context.Value("q", 0, lock=False)
    counter = steps.get_obj()  # to read without the lock, which a worker that is killed may hold for ever
    history, lengths = [], deque(maxlen=100)  # lengths of the last episodes
    start_time, workers = None, {}
    run, folder = start_run(args, run_id, "cpu")
    try:
        for rank in range(args.num_workers if start_step < args.total_timesteps else 0):
            start_worker(workers, context, rank, args, optimizer, steps, updates, start_step)
        for global_step, due, episode, metrics in messages(workers):
            start_time = start_time or time.perf_counter()
            if episode:
                history.append((global_step, episode[0]))
                lengths.append(episode[1])
            if due:
                seconds = time.perf_counter() - start_time
                speed = (global_step - start_step) / seconds
                metrics["charts/TPS"] = updates.value / seconds  # updates
                log_progress(run, args, global_step, speed, history, lengths, metrics)
                save_checkpoint(folder, args, counter.value, run.id, agent=agent, optimizer=optimizer)

        log_evaluation(run, folder, agent, args, counter.value)
    finally:
        end_workers(workers)
        try:  # after Ctrl-C, SIGTERM or a worker's error, too: what has been learned is kept
            if counter.value > start_step:
                save_checkpoint(folder, args, counter.value, run.id, agent=agent, optimizer=optimizer)
                print(f"checkpoint  {folder / 'checkpoint.pt'}  step {counter.value:,}", flush=True)
        finally:
            run.finish(exit_code=int(sys.exc_info()[0] is not None))
    return agent, history


def start_worker(workers, context, rank, *rest):
    """Start the process of a worker and add it to workers, a dict {pipe on which it reports: process}."""
    receiver, sender = context.Pipe(duplex=False)  # one a worker: no lock that others wait for if it is killed
    process = context.Process(target=run_worker, args=(sender, rank, *rest), name=f"worker {rank}", daemon=True)
    masks = hasattr(signal, "pthread_sigmask")  # all but Windows
    if masks:  # inherited: Ctrl-C is for the parent alone
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    process.start()
    workers[receiver] = process
    sender.close()  # the worker's is the only one: when the worker ends, however it ends, so does what it sends
    if masks:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def run_worker(sender, *rest):
    """What the process of a worker does: to work; a RunError goes to the parent, another error prints its traceback."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # unwinds, which closes the environment
    threading.Thread(target=end_with_parent, daemon=True).start()
    torch.set_num_threads(1)  # else the workers' threads fight for the cores
    try:
        worker(sender.send, *rest)
    except RunError as error:
        sender.send(str(error))


def end_with_parent():
    """Wait for the parent's end, even by SIGKILL, and end this process, whatever it is doing."""
    multiprocessing.parent_process().join()
    os._exit(1)


def messages(workers):
    """What the workers send, as it comes, until all have ended; RunError if one fails or is killed."""
    running = dict(workers)
    while running:
        for receiver in wait(running):
            try:
                message = receiver.recv()
            except EOFError:
                process = running.pop(receiver)
                process.join()
                if process.exitcode:  # 1 after a traceback, -9 often for want of memory
                    raise RunError(f"{process.name} died, exit code {process.exitcode}") from None
                continue
            if isinstance(message, str):
                raise RunError(message)
            yield message


def end_workers(workers):
    """End the processes that still run: SIGTERM, which lets them close their environments, then SIGKILL."""
    for process in workers.values():
        process.terminate()
    for process in workers.values():
        process.join(3)
        process.kill()
        process.join()


def evaluate(agent, args, num_episodes, video_folder=None):
    """Play greedy episodes side by side, in environments seeded away from training's -> their returns, floats."""
    render = {"render_mode": "rgb_array"} if video_folder else {}
    envs = gym.vector.SyncVectorEnv([lambda: make_env(args, **render)] * num_episodes)
    if video_folder:
        envs = gym.wrappers.vector.RecordVideo(envs, str(video_folder), episode_trigger=lambda episode: episode == 0)
    obs, _ = envs.reset(seed=env_seed(args.seed, 1))
    returns, state = np.zeros(num_episodes), None
    playing = np.ones(num_episodes, bool)  # each environment counts for its first episode: more would favour short ones
    for _ in range(100_000):  # a greedy policy may go in circles where no time limit stops it
        if not playing.any():
            break
        with torch.inference_mode():
            output, _, state = agent(torch.as_tensor(obs).unsqueeze(0), state)  # (1, num_episodes, num_outputs)
            action = agent.greedy(output)[0].numpy()
        obs, reward, terminated, truncated, _ = envs.step(action)
        returns[playing] += reward[playing]
        playing &= ~(terminated | truncated)
    envs.close()
    return returns.tolist()


def env_seed(*key):
    """A seed for environments, far from that of another key: Gymnasium counts up from it, one per environment."""
    return int(np.random.default_rng(key).integers(2**31))


def make_env(args, **render):
    """One environment, which is reset by hand; RunError if it does not fit."""
    if "ALE/" in args.env_id:
        import ale_py  # here, as nothing else needs it

        gym.register_envs(ale_py)
        options = {"frameskip": 1, "repeat_action_probability": args.repeat_action_probability}
        env = gym.wrappers.AtariPreprocessing(gym.make(args.env_id, **options, **render))
        env = gym.wrappers.FrameStackObservation(env, 4, padding_type="zero")  # (4, 84, 84) uint8
    else:
        env = gym.make(args.env_id, **render)
    obs_space, action_space = env.observation_space, env.action_space
    fits = "ALE/" in args.env_id or (isinstance(obs_space, Box) and len(obs_space.shape) == 1)
    discrete = isinstance(action_space, Discrete) and action_space.start == 0
    continuous = isinstance(action_space, Box) and len(action_space.shape) == 1 and action_space.dtype.kind == "f"
    if not (fits and (discrete or continuous)):
        raise RunError(
            f"--env-id {args.env_id}: takes flat observations or Atari and Discrete (from 0) or flat float actions, "
            f"not {obs_space} and {action_space}"
        )
    env = gym.wrappers.RecordEpisodeStatistics(env)
    return env if discrete else gym.wrappers.ClipAction(env)


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
