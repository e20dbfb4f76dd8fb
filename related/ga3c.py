# /// script
# requires-python = ">=3.11"
# dependencies = ["ale-py>=0.12", "gymnasium[classic-control,other]>=1.2.1", "numpy>=1.26", "torch>=2.6", "wandb>=0.28"]
# ///
"""GA3C: A3C with one network, which predicts and learns in batches, for a GPU; its agents are processes without one.

Paper    Babaeizadeh et al. 2017 (arXiv:1611.06256), and its program, github.com/NVlabs/GA3C
Update   L = Σ_t [-log(π(a_t|s_t) + ε_log) (R_t - V(s_t)) + vf_coef (R_t - V(s_t))² - ent_coef H(π(·|s_t))]
         R_t = r_t + γ R_t+1 over up to num_steps steps of one episode, from V(s) after the last, 0 if it is terminal
         an RMSProp step on ∇L, clipped; R and the (R - V) before the logarithm are constants
Queues   an agent sends an observation, and a predictor answers all that wait as one batch; it sends a piece of up to
         num_steps steps, and a trainer learns from all that wait, at least min_batch_size pieces, as one batch
Lag      the weights that learn from an action have seen charts/policy_lag updates more than those that chose it. It may
         be improbable by now, log π far below 0 and its gradient, 1 / π, far above: ε_log keeps them within bounds
Departs  a trainer values a piece's last observation itself, by the newest weights, also where a time limit has cut the
         episode; RMSProp in torch's form, η falls to 0; the numbers of agents, predictors and trainers stay as given;
         greedy evaluation; tanh units for flat observations; Atari: frames less their mean, sticky actions
Run      python related/ga3c.py    a seed does not give the same run again, as nobody waits for anybody
Result   greedy return 500.0 ± 0.0 (5 seeds), 105 s of training with 8 agents (2 cores of an AMD EPYC)
"""

import argparse
import io
import os
import queue
import re
import secrets
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import wait
from pathlib import Path
from types import SimpleNamespace

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
    gpus = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    devices = ["cpu", *["cuda"] * bool(gpus), *gpus, *["mps"] * torch.backends.mps.is_available()]
    add("--env-id", default="CartPole-v1", help="id: discrete actions; flat observations or ALE/GAME-v5")
    add("--total-timesteps", type=number(int, 1), default=300_000, help="environment steps learned from, of all agents")
    add("--num-agents", type=number(int, 1), default=8, help="processes, each with an environment of its own")
    add("--num-predictors", type=number(int, 1), default=2, help="threads that answer observations with actions")
    add("--num-trainers", type=number(int, 1), default=2, help="threads that learn")
    add("--num-steps", type=number(int, 1), default=20, help="most steps per piece of experience, the paper's t_max")
    add("--min-batch-size", type=number(int, 1), default=1, help="least pieces per update")
    add("--learning-rate", type=number(float, 0), default=1e-3, help="RMSProp's step size, falling linearly to 0, η")
    add("--rmsprop-decay", type=number(float, 0, 1), default=0.99, help="decay of RMSProp's mean square, α")
    add("--rmsprop-eps", type=number(float, 1e-12), default=0.1, help="added to RMSProp's root, ε")
    add("--gamma", type=number(float, 0, 1), default=0.98, help="discount γ")
    add("--vf-coef", type=number(float, 0), default=0.1, help="weight of the value loss")
    add("--ent-coef", type=number(float, 0), default=0.01, help="weight of the entropy bonus, the paper's β")
    add("--log-epsilon", type=number(float, 0, 1), default=1e-6, help="added to π before its logarithm, ε_log")
    add("--max-grad-norm", type=number(float, 0), default=40.0, help="clip the global norm of the gradient to this")
    add("--repeat-action-probability", type=number(float, 0, 1), default=0.25, help="Atari's sticky actions")
    add("--seed", type=number(int, 0), default=1, help="seeds networks, environments and actions")
    add("--device", default="cuda" if gpus else "cpu", choices=devices, help="what torch finds of cpu, cuda and mps")
    add("--log-interval", type=number(int, 1), default=10_000, help="environment steps between logs and checkpoints")
    add("--eval-episodes", type=number(int, 0), default=20, help="greedy episodes after training; 0 for none")
    add("--capture-video", action="store_true", help="record a greedy episode as MP4")
    add("--resume", help="checkpoint.pt to go on from, with fresh episodes; one that is complete is only evaluated")
    add("--run-dir", default="runs", help="parent of the run folder, which holds the checkpoint and the video")
    add("--wandb-mode", default=os.environ.get("WANDB_MODE", "offline"), choices=["disabled", "offline", "online"])
    add("--wandb-project", default=os.environ.get("WANDB_PROJECT", "reference-rl"), help="W&B project")
    return parser.parse_args(argv)


class ActorCritic(nn.Module):
    """π(a|s) and V(s) on one body; its weights start uniformly in ±1 / √(number of inputs), as the authors' do."""

    def __init__(self, obs_space, num_actions):
        super().__init__()
        self.image = len(obs_space.shape) == 3
        if self.image:
            layers = [nn.Conv2d(4, 16, 8, stride=4), nn.ReLU(), nn.Conv2d(16, 32, 4, stride=2), nn.ReLU()]
            layers += [nn.Flatten(), nn.Linear(32 * 9 * 9, 256), nn.ReLU()]
        else:
            layers = [nn.Linear(obs_space.shape[0], 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh()]
        self.body = nn.Sequential(*layers)
        num_features = layers[-2].out_features
        self.actor, self.critic = nn.Linear(num_features, num_actions), nn.Linear(num_features, 1)

    def forward(self, obs):
        """(batch, *obs_shape), frames from 0 to 255 -> logits (batch, num_actions) and V(s), (batch,)."""
        if self.image:  # less the background, the same in all states
            obs = (obs - obs.mean((-2, -1), keepdim=True, dtype=torch.float32)) / 255
        features = self.body(obs.float())
        return self.actor(features), self.critic(features).squeeze(-1)


def n_step_returns(rewards, last_value, gamma):
    """R_t = r_t + γ R_t+1, backwards from last_value, that of the state after the last step; lists of floats."""
    returns = []
    for reward in reversed(rewards):
        last_value = reward + gamma * last_value
        returns.append(last_value)
    return returns[::-1]


def ga3c_loss(logits, actions, values, returns, vf_coef, ent_coef, log_epsilon):
    """L of the header, a sum -> (loss, metrics, which are means); logits (batch, num_actions), the others (batch,)."""
    probs = logits.softmax(-1)
    log_probs = (probs + log_epsilon).log()
    entropy = -(probs * log_probs).sum(-1)
    advantages = returns - values
    policy_loss = -log_probs.gather(-1, actions.unsqueeze(-1)).squeeze(-1) * advantages.detach()
    value_loss = advantages.square()
    loss = (policy_loss + vf_coef * value_loss - ent_coef * entropy).sum()
    metrics = {"policy_loss": policy_loss, "value_loss": value_loss, "entropy": entropy}
    return loss, {f"losses/{name}": value.mean() for name, value in metrics.items()}


def update(agent, optimizer, pieces, args):
    """One gradient step on pieces (observations, actions, rewards, terminated, ...), each of one episode -> metrics."""
    # Each has num_steps + 1 observations; the last ones, of which only V(s) is needed, go to the end of the batch.
    observations, actions, rewards, terminateds, *_ = zip(*pieces, strict=True)
    rows = np.concatenate([x[:-1] for x in observations] + [x[-1:] for x in observations])
    logits, values = agent(torch.as_tensor(rows, device=args.device))  # (batch + num_pieces, ...)
    values, last_values = values[: -len(pieces)], values[-len(pieces) :].tolist()
    # Only a terminal state stops the bootstrap: an episode that the clock cut would have gone on.
    ends = zip(rewards, last_values, terminateds, strict=True)
    returns = [n_step_returns(x, 0.0 if terminated else value, args.gamma) for x, value, terminated in ends]
    returns = torch.tensor(np.concatenate(returns), dtype=torch.float32, device=args.device)
    actions = torch.as_tensor(np.concatenate(actions), device=args.device)
    acted = logits[: -len(pieces)], actions, values, returns
    loss, metrics = ga3c_loss(*acted, args.vf_coef, args.ent_coef, args.log_epsilon)
    optimizer.zero_grad()
    loss.backward()
    grad_norm = nn.utils.clip_grad_norm_(agent.parameters(), args.max_grad_norm)
    if not grad_norm.isfinite():
        raise RunError(f"the gradient is not finite: lower --learning-rate, or look for NaN in {args.env_id}")
    optimizer.step()
    return metrics | {"losses/grad_norm": grad_norm}


def play(requests, pieces, rank, args, start_step):
    """An agent: play for ever by the actions that answer its requests, and send pieces of what happened.

    Each action comes with the number of updates before it; the last piece of an episode has its return and length.
    """
    env = make_env(args)
    obs, _ = env.reset(seed=env_seed(args.seed, 0, start_step, rank))
    try:
        while True:
            done, observations, actions, rewards, versions = False, [obs], [], [], []
            while len(rewards) < args.num_steps and not done:
                requests.send(obs)
                action, version = requests.recv()
                obs, reward, terminated, truncated, info = env.step(action)
                done = terminated or truncated
                observations.append(obs)
                actions.append(action)
                rewards.append(float(np.sign(reward) if "ALE/" in args.env_id else reward))  # Atari's clipped to ±1
                versions.append(version)
            episode = (float(info["episode"]["r"]), info["episode"]["l"]) if done else None
            pieces.send((np.stack(observations), np.array(actions), rewards, terminated, versions, episode))
            if done:
                obs, _ = env.reset()
    finally:
        env.close()


def predict(requests, agent, counts, args):
    """A predictor: answer all observations that wait, as one batch, until an agent ends."""
    while True:
        with counts.asking:  # one predictor at a time gathers, while others compute
            ready = wait(requests)
            observations = np.stack([pipe.recv() for pipe in ready])
        with counts.lock, torch.inference_mode():
            logits, _ = agent(torch.as_tensor(observations, device=args.device))  # (batch, num_actions)
            noise = torch.empty_like(logits).exponential_().log()  # Gumbel-max: the largest logit is a draw from π(·|s)
            actions = (logits - noise).argmax(-1).cpu().numpy()
            version = counts.updates
            counts.predictions += len(actions)
        for pipe, action in zip(ready, actions, strict=True):
            pipe.send((action, version))


def learn(pieces, agent, optimizer, counts, reports, args):
    """A trainer: learn from all pieces that wait, as one batch, and report it, until training or an agent ends."""
    while True:
        batch = []
        with counts.collecting:
            while len(batch) < args.min_batch_size:
                batch += [pipe.recv() for pipe in wait(pieces)]
        with counts.lock:  # while the weights change, nobody predicts, and no other backward needs the old ones
            if counts.global_step >= args.total_timesteps:
                return
            optimizer.param_groups[0]["lr"] = args.learning_rate * (1 - counts.global_step / args.total_timesteps)
            metrics = update(agent, optimizer, batch, args)
            lags = [counts.updates - version for *_, versions, _ in batch for version in versions]
            counts.updates += 1
            counts.global_step += len(lags)
            reports.put((counts.global_step, [episode for *_, episode in batch if episode], lags, metrics))


def train(args):
    """Train, log, save and evaluate -> (agent, history), history a list of (global_step, episode_return)."""
    torch.manual_seed(args.seed)
    env = make_env(args)
    obs_space, num_actions = env.observation_space, int(env.action_space.n)
    env.close()
    if len(obs_space.shape) == 1:
        torch.set_num_threads(1)  # the network is tiny: one thread beats many
    agent = ActorCritic(obs_space, num_actions).to(args.device)
    optimizer = torch.optim.RMSprop(agent.parameters(), args.learning_rate, args.rmsprop_decay, args.rmsprop_eps)
    start_step, run_id = load_checkpoint(args, agent=agent, optimizer=optimizer) if args.resume else (0, None)
    torch.manual_seed(env_seed(args.seed, 2, start_step))  # a resumed run does not repeat its noise
    counts = SimpleNamespace(global_step=start_step, updates=0, predictions=0)
    counts.lock, counts.asking, counts.collecting = (threading.Lock() for _ in range(3))
    history, lengths, lags, workers, reports = [], [], [], {}, queue.SimpleQueue()
    pool = ThreadPoolExecutor(args.num_predictors + args.num_trainers)
    global_step = start_step
    run, folder = start_run(args, run_id, args.device)
    try:
        if start_step < args.total_timesteps:
            context = multiprocessing.get_context("spawn")  # as fork can deadlock once torch has started threads
            for rank in range(args.num_agents):
                start_worker(workers, context, rank, args, start_step)
            requests, pieces = zip(*workers, strict=True)
            tasks = [(predict, requests, agent, counts, args)] * args.num_predictors
            tasks += [(learn, pieces, agent, optimizer, counts, reports, args)] * args.num_trainers
            for pipe in requests:
                pipe.poll(None)  # until each agent has asked for its first action
            for task in tasks:
                pool.submit(*task).add_done_callback(lambda future: reports.put(future.exception()))
        start_time = time.perf_counter()
        while global_step < args.total_timesteps:
            global_step, episodes, new_lags, metrics = next_report(reports, workers)
            history += [(global_step, episode_return) for episode_return, _ in episodes]
            lengths += [length for _, length in episodes]
            lags += new_lags
            if global_step % args.log_interval < len(new_lags) or global_step >= args.total_timesteps:
                seconds = time.perf_counter() - start_time
                metrics |= {"charts/PPS": counts.predictions / seconds, "charts/TPS": counts.updates / seconds}
                metrics["charts/policy_lag"], lags = np.mean(lags), []
                speed = (global_step - start_step) / seconds
                log_progress(run, args, global_step, speed, history, lengths[-100:], metrics)
                with counts.lock:
                    save_checkpoint(folder, args, counts.global_step, run.id, agent=agent, optimizer=optimizer)

        end_workers(workers)
        log_evaluation(run, folder, agent, args, global_step)
    finally:
        end_workers(workers)
        pool.shutdown()  # predictors and trainers end with the agents
        try:  # after Ctrl-C, SIGTERM or an agent's error, too: what has been learned is kept
            if counts.global_step > start_step:
                save_checkpoint(folder, args, counts.global_step, run.id, agent=agent, optimizer=optimizer)
                print(f"checkpoint  {folder / 'checkpoint.pt'}  step {counts.global_step:,}", flush=True)
        finally:
            run.finish(exit_code=int(sys.exc_info()[0] is not None))
    return agent, history


def next_report(reports, workers):
    """What a trainer has put last; RunError if an agent has ended, or what a thread has raised."""
    report = reports.get()
    if isinstance(report, EOFError | OSError):  # the end of a pipe: an agent has ended
        ended = wait([process.sentinel for process in workers.values()])
        process = next(process for process in workers.values() if process.sentinel in ended)
        raise RunError(f"{process.name} died, exit code {process.exitcode}")  # 1 after a traceback, -9 often for memory
    if isinstance(report, Exception):
        raise report
    return report


def start_worker(workers, context, rank, *rest):
    """Start the process of an agent and add it to workers, a dict {(pipe of requests, pipe of pieces): process}."""
    (requests, asker), (pieces, sender) = context.Pipe(), context.Pipe(duplex=False)  # no lock that others wait for
    process = context.Process(target=run_worker, args=(asker, sender, rank, *rest), name=f"agent {rank}", daemon=True)
    masks = hasattr(signal, "pthread_sigmask")  # all but Windows
    if masks:  # inherited: Ctrl-C is for the parent alone
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    process.start()
    workers[requests, pieces] = process
    asker.close()  # the agent's are the only ones: when it ends, however it ends, so do its pipes
    sender.close()
    if masks:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def run_worker(*args):
    """What the process of an agent does: to play; an error prints its traceback."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # unwinds, which closes the environment
    threading.Thread(target=end_with_parent, daemon=True).start()
    play(*args)


def end_with_parent():
    """Wait for the parent's end, even by SIGKILL, and end this process, whatever it is doing."""
    multiprocessing.parent_process().join()
    os._exit(1)


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
    returns = np.zeros(num_episodes)
    playing = np.ones(num_episodes, bool)  # each environment counts for its first episode: more would favour short ones
    for _ in range(100_000):  # a greedy policy may go in circles where no time limit stops it
        if not playing.any():
            break
        with torch.inference_mode():
            logits, _ = agent(torch.as_tensor(obs, device=args.device))  # (num_episodes, num_actions)
            action = logits.argmax(-1).cpu().numpy()
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
    if not (fits and discrete):
        raise RunError(
            f"--env-id {args.env_id}: takes flat observations or Atari and Discrete actions (from 0), "
            f"not {obs_space} and {action_space}"
        )
    return gym.wrappers.RecordEpisodeStatistics(env)


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
