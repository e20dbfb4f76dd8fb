"""Turn a recorded episode into a small GIF.

    python benchmark/gif.py VIDEO GIF [--start S] [--seconds S] [--width W]

VIDEO is what --capture-video leaves: runs/NAME/video/rl-video-episode-0.mp4.
"""

import argparse

from moviepy import VideoFileClip

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("video")
parser.add_argument("gif")
parser.add_argument("--start", type=float, default=0, help="seconds into the video (default: 0)")
parser.add_argument("--seconds", type=float, default=4, help="length at most (default: 4)")
parser.add_argument("--width", type=int, default=240, help="in pixels (default: 240)")
args = parser.parse_args()
with VideoFileClip(args.video) as clip:
    end = min(args.start + args.seconds, clip.duration)
    clip.subclipped(args.start, end).resized(width=args.width).write_gif(args.gif, fps=15, logger=None)
