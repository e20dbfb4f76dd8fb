"""What dqn.py does with images on this machine: steps per second, memory, and what the network sees.

    python benchmark/dqn_images.py speed     20k steps of Pong beside the environment alone; some minutes on a CPU
    python benchmark/dqn_images.py memory    1M transitions, every byte written, a batch sampled; 8 GB, half a minute
    python benchmark/dqn_images.py frames    an observation of CartPole-v1 with --pixels, as a picture

They write benchmark/results/dqn_atari_speed.csv, dqn_atari_memory.csv and dqn_pixels_frames.png.
"""

import argparse
import resource
import sys
import time
from datetime import date
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))
from run import RESULTS, command_line, fingerprint, setting, timed_train, write_csv

FLAGS = (
    "--env-id ALE/Pong-v5 --num-envs 8 --total-timesteps 20000 --buffer-size 20000 --learning-starts 4000 "
    "--batch-size 32 --train-interval 4 --learning-rate 0.0001 --gamma 0.99 --loss huber "
    "--target-update-interval 1000 --epsilon-steps 100000 --epsilon-end 0.01 --eval-episodes 0"
).split()


def speed(dqn):
    """Random play of the same environments, then the run -> a row."""
    args = dqn.parse_args(FLAGS)
    envs, rng = dqn.make_envs(args, args.num_envs), np.random.default_rng(0)
    envs.reset(seed=0)
    start = time.perf_counter()
    for _ in range(5_000 // args.num_envs):
        envs.step(rng.integers(envs.single_action_space.n, size=args.num_envs))
    alone = 5_000 // args.num_envs * args.num_envs / (time.perf_counter() - start)
    envs.close()
    run = timed_train(dqn, FLAGS)
    updates = (args.total_timesteps - args.learning_starts) // args.train_interval
    row = {"command": command_line("dqn", FLAGS), "steps": run.steps, "updates": updates}
    row |= {"seconds": round(run.seconds, 1), "steps_per_second": round(run.steps / run.seconds)}
    return row | {"environment_alone_steps_per_second": round(alone), "episodes": len(run.history)}


def memory(dqn):
    """Fill a buffer of a million transitions -> a row with what its arrays take, and the process's peak."""

    def peak():  # kilobytes on Linux, bytes on macOS
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

    before, rng = peak(), np.random.default_rng(0)
    buffer = dqn.ReplayBuffer(1_000_000, 8, (4, 84, 84), np.uint8, rng)
    obs = rng.integers(1, 256, size=(8, 4, 84, 84), dtype=np.uint8)
    buffer.reset(obs)
    no, zero = np.zeros(8, bool), np.zeros(8, np.int64)
    for _ in range(len(buffer.frames) + 100):
        buffer.add(zero, zero, no, no, obs)
    assert buffer.frames.min() > 0 and buffer.sample(32)[0].shape == (32, 4, 84, 84)
    start = time.perf_counter()
    for _ in range(100):
        buffer.sample(32)
    num_bytes = sum(x.nbytes for x in vars(buffer).values() if isinstance(x, np.ndarray))
    row = {"transitions": 1_000_000, "arrays_gb": round(num_bytes / 1e9, 3)}
    row |= {"peak_growth_gb": round((peak() - before) / 1e9, 3), "peak_process_gb": round(peak() / 1e9, 3)}
    return row | {"sample_of_32_ms": round(10 * (time.perf_counter() - start), 3)}


def frames(dqn):
    """Draw the four frames of an observation, after eight pushes to the right, beside the last one's picture."""
    import gymnasium as gym  # here, as nothing else needs them
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    env = dqn.observe_pictures(gym.make("CartPole-v1", render_mode="rgb_array"))
    env.reset(seed=1)
    for _ in range(8):
        obs, *_ = env.step(1)
    fig, axes = plt.subplots(1, 5, figsize=(13, 3), dpi=160, layout="constrained", width_ratios=[1.5, 1, 1, 1, 1])
    axes[0].imshow(env.render())
    axes[0].set_title("rendered, 400 x 600")
    for i, frame in enumerate(obs):
        axes[i + 1].imshow(frame, cmap="gray", vmin=0, vmax=255)
        axes[i + 1].set_title(f"frame {i + 1} of 4, 84 x 84")
    for ax in axes:
        ax.set_axis_off()
    fig.savefig(RESULTS / "dqn_pixels_frames.png")


def main():
    """Parse, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["speed", "memory", "frames"])
    what = parser.parse_args().what
    import dqn

    if what == "frames":
        return frames(dqn)
    row = {"speed": speed, "memory": memory}[what](dqn)
    print(row)
    write_csv(RESULTS / f"dqn_atari_{what}.csv", [row | {"code": fingerprint("dqn"), "date": date.today()} | setting()])


if __name__ == "__main__":
    main()
