"""What all scripts share; a new script is held to it by being there."""

import ast
import json
import re
import signal
import subprocess
import sys
import time
import tomllib
from importlib import import_module
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch

ROOT = Path(__file__).parents[1]
SCRIPTS = [s for s in "tabular_q reinforce dqn a2c a3c paac_gpu".split() if (ROOT / f"{s}.py").exists()]
NO_DEVICE = {"tabular_q", "a3c"}
SHARED = {  # flag: default; None where each script has its own
    "seed": 1, "device": "auto", "log_interval": None, "eval_episodes": 20, "capture_video": False,
    "checkpoint_interval": None, "resume": None, "run_dir": "runs", "wandb_mode": "offline",
    "wandb_project": "reference-rl",
}  # fmt: skip
# Flags with which a run lasts a second; add a line for a script that needs others.
QUICK = {"default": "--total-timesteps 2048 --log-interval 512 --eval-episodes 2 --wandb-mode disabled"}
QUICK["reinforce"] = QUICK["default"] + " --num-envs 8"
QUICK["dqn"] = QUICK["default"] + " --num-envs 8 --train-interval 16 --learning-starts 256 --batch-size 32"
QUICK["a3c"] = QUICK["default"] + " --num-workers 1"
QUICK["paac_gpu"] = QUICK["default"] + " --num-envs 8 --num-steps 8 --env-id CartPole-v1"
# Scripts whose updates end with an episode, and which log at the end of the one in which an interval has passed.
WHOLE_EPISODES = {"reinforce", "a3c"}
# An environment other than the default one, and one whose rewards are NaN from the 300th step on.
OTHER_ENV = {"default": "Acrobot-v1", "tabular_q": "FrozenLake-v1"}
NAN_ENV = {"default": "NotANumber-v0", "tabular_q": "NotANumberTable-v0", "a3c": "probes:NotANumber-v0"}
# Functions and classes of one name whose text may differ, as the algorithms do, in all scripts or in one.
MAY_DIFFER = {
    "default": {"parse_args", "train", "update", "make_envs", "make_eval_env", "save_checkpoint", "load_checkpoint"},
    "tabular_q": {"evaluate", "make_env"},  # of a table, not of a network
    "dqn": {"evaluate"},  # of Q values, not of a policy
    "a3c": {"ActorCritic", "evaluate"},  # with a memory
    "paac_gpu": {"ActorCritic", "make_atari"},  # one body, convolutions; threads of its own
}

pytestmark = pytest.mark.parametrize("name", SCRIPTS)


def source(name):
    return (ROOT / f"{name}.py").read_text()


def quick(name, *flags):
    """The script's module and the arguments of a short run; later flags win."""
    module = import_module(name)
    return module, module.parse_args([*QUICK.get(name, QUICK["default"]).split(), *flags])


def weights(agent):
    """All numbers of an agent in one array."""
    if isinstance(agent, torch.nn.Module):
        agent = np.concatenate([p.detach().cpu().numpy().ravel() for p in agent.state_dict().values()])
    return np.asarray(agent).ravel()


def shell(name, *flags, **options):
    """Start the script as a user does, in the current folder."""
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | options
    return subprocess.Popen([sys.executable, ROOT / f"{name}.py", *flags], **options)


# The text of a script


def imported(tree):
    """Top-level names of the modules that a script imports."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            yield node.module.split(".")[0]


def test_readme_agrees(name):
    """The script's number of lines, and the lines to which the README's links point."""
    readme, lines = (ROOT / "README.md").read_text(), source(name).splitlines()
    assert re.search(rf"^\| \[{name}\.py\]\(.*? \| .*? \| {len(lines)} \|", readme, re.M)
    links = re.findall(rf"\[`(\w+)`\]\({name}\.py#L(\d+)\)", readme)
    assert links
    for target, number in links:
        assert re.match(rf"(def|class) {target}\b", lines[int(number) - 1]), f"{target} is not on line {number}"


def test_imports_are_allowed(name):
    allowed = {"torch", "gymnasium", "numpy", "wandb", "ale_py"}
    assert {m for m in imported(ast.parse(source(name))) if m not in sys.stdlib_module_names} <= allowed


def test_import_has_no_effect(name, tmp_path):
    code = f"import sys; sys.path[0] = {str(ROOT)!r}; sys.argv += ['--bad']; import {name}; assert not {name}.wandb.run"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not list(tmp_path.iterdir())


def test_pep_723_block_agrees_with_imports_and_requirements(name):
    block = re.match(r"# /// script\n((?:#.*\n)+?)# ///\n", source(name)).group(1)
    block = tomllib.loads("\n".join(line[2:] for line in block.splitlines()))
    assert block["requires-python"] == ">=3.11"
    bounds = dict(re.fullmatch(r"([\w-]+)(?:\[.*\])?>=([\d.]+)", d).groups() for d in block["dependencies"])
    third_party = {m for m in imported(ast.parse(source(name))) if m not in sys.stdlib_module_names}
    assert {package.replace("-", "_") for package in bounds} == third_party
    pins = dict(re.findall(r"^([\w-]+)(?:\[.*\])?==([\d.]+)", (ROOT / "requirements.txt").read_text(), re.M))
    for package, bound in bounds.items():
        assert [int(x) for x in bound.split(".")] <= [int(x) for x in pins[package].split(".")], package


def twins(sources):
    """Names of functions and classes that stand in two sources with different text."""
    texts = {}
    for text in sources:
        for node in ast.parse(text).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                lines = text.splitlines()[node.lineno - 1 : node.end_lineno]  # with the comment on the last one
                texts.setdefault(node.name, set()).add("\n".join(lines))
    return {function for function, variants in texts.items() if len(variants) > 1}


def test_twins_are_identical(name):
    assert twins(["def f(): return 1\ndef g(): pass", "def f(): return 2\ndef g(): pass"]) == {"f"}
    for other in SCRIPTS:
        may_differ = set.union(*(MAY_DIFFER.get(key, set()) for key in ("default", name, other)))
        assert twins([source(name), source(other)]) <= may_differ
        shared = ("--seed", "--eval-episodes", "--capture-video", "--resume", "--run-dir", "--wandb-project")
        for flag in shared:
            lines = [re.search(rf'add\("{flag}".*', source(script)).group() for script in (name, other)]
            assert lines[0] == lines[1]


# Flags


def test_flags(name, capsys):
    module = import_module(name)
    args = vars(module.parse_args([]))
    flags, shared = list(args), [flag for flag in SHARED if flag != "device" or name not in NO_DEVICE]
    assert flags[:2] == ["env_id", "total_timesteps"] and flags[-len(shared) :] == shared
    assert {flag: args[flag] for flag in shared if SHARED[flag] is not None or flag == "resume"} == {
        flag: SHARED[flag] for flag in shared if SHARED[flag] is not None or flag == "resume"
    }
    assert 20 <= args["total_timesteps"] / args["log_interval"] <= 50  # lines of a default run
    tree = ast.parse(source(name))
    read = {
        node.attr
        for function in tree.body
        if getattr(function, "name", "") != "parse_args"
        for node in ast.walk(function)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "args"
    }
    assert set(flags) <= read, "a flag that nothing reads"
    with pytest.raises(SystemExit) as stop:
        module.parse_args(["--help"])
    text = capsys.readouterr().out
    assert stop.value.code == 0 and module.__doc__.splitlines()[0] in text
    for flag in flags:
        assert re.search(rf"^  --{flag.replace('_', '-')}\b", text, re.M), flag
    assert text.count("(default:") >= len(flags) - 1


def test_environment_variables_give_wandb_s_defaults(name, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    args = import_module(name).parse_args([])
    assert (args.wandb_mode, args.wandb_project) == ("disabled", "mine")


def bad_values(args):
    """(flag, value) pairs that every script must refuse."""
    for flag, value in vars(args).items():
        if isinstance(value, int | float) and not isinstance(value, bool):
            yield from ((flag, bad) for bad in ("-1", "nan", "inf", "many", ""))
            if isinstance(value, int):
                yield flag, "1.5"
    for flag in ("total_timesteps", "log_interval", "num_envs", "num_steps", "num_workers"):
        yield flag, "0"
    for flag in ("gamma", "gae_lambda"):
        yield flag, "1.01"
    yield from (("device", "abacus"), ("device", "cuda:99"), ("device", "meta"), ("wandb_mode", "sometimes"))


def test_bad_values_are_refused(name, capsys, tmp_path):
    module = import_module(name)
    args = module.parse_args([])
    for flag, bad in bad_values(args):
        if not hasattr(args, flag):
            continue
        flag = f"--{flag.replace('_', '-')}"
        with pytest.raises(SystemExit) as stop:
            module.parse_args([f"{flag}={bad}"])
        last = capsys.readouterr().err.splitlines()[-1]
        assert stop.value.code == 2 and f"argument {flag}" in last, (flag, bad, last)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("env_id", ["CartPol-v1", "CartPole-v99", "no_such_module:Env-v0", "Nowhere/Env-v0"])
def test_unknown_environments_are_refused(name, env_id, tmp_path):
    module, args = quick(name, "--env-id", env_id)
    with pytest.raises(ValueError, match=re.escape(f"--env-id {env_id}")) as error:
        module.train(args)
    assert "\n" not in str(error.value) and not list(tmp_path.iterdir())


def test_bad_input_in_the_shell(name, tmp_path):
    """One line and exit code 2, no traceback, nothing written."""
    for flags in (["--env-id", "CartPol-v1"], ["--resume", "nothing.pt"], ["--seed", "-1"]):
        process = shell(name, *flags)
        out, err = process.communicate(timeout=60)
        assert process.returncode == 2 and out == "" and "Traceback" not in err
        assert err.splitlines()[-1].startswith(f"{name}.py: error: ") and flags[0] in err.splitlines()[-1]
    assert not list(tmp_path.iterdir())


def test_unwritable_run_folder(name, tmp_path):
    (tmp_path / "file").touch()
    module, args = quick(name, "--run-dir", "file/runs")
    with pytest.raises(ValueError, match="--run-dir file/runs: Not a directory"):
        module.train(args)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_what_wandb_refuses(name, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "nonsense")
    module = import_module(name)
    flags = QUICK.get(name, QUICK["default"]).replace("--wandb-mode disabled", "").split()
    with pytest.raises(ValueError, match="--wandb-mode nonsense: "):
        module.train(module.parse_args(flags))
    assert not list(tmp_path.glob("runs/*"))


# A run


def test_same_seed_same_run_whatever_is_logged(name, tmp_path):
    module, args = quick(name)
    agent, history = module.train(args)
    assert history and all(isinstance(step, int) and isinstance(value, float) for step, value in history)
    assert 0 < history[0][0] <= history[-1][0] <= args.total_timesteps
    again, history_again = module.train(quick(name)[1])
    assert history == history_again and np.array_equal(weights(agent), weights(again))
    flags = "--log-interval 100000 --eval-episodes 0 --checkpoint-interval 300".split()
    quiet, history_quiet = module.train(quick(name, *flags)[1])
    assert history == history_quiet and np.array_equal(weights(agent), weights(quiet))
    other, _ = module.train(quick(name, "--seed", "2")[1])
    assert not np.array_equal(weights(agent), weights(other))
    assert len(list(tmp_path.glob("runs/*"))) == 4  # runs of the same second do not share a folder


def test_evaluate(name):
    module, args = quick(name, "--eval-episodes", "3")
    agent, _ = module.train(args)
    returns = module.evaluate(agent, args)
    assert len(returns) == 3 and all(isinstance(value, float) for value in returns)
    assert returns == module.evaluate(agent, args)


def test_terminal_output(name, capsys):
    module, args = quick(name)
    module.train(args)
    head, *lines, evaluation, checkpoint = capsys.readouterr().out.splitlines()
    lines = [line for line in lines if line.startswith("step ")]
    assert head.startswith(f"{name}.py  {args.env_id}") and re.search(r"device \w+  threads \d+", head)
    assert len(lines) == 4
    line = r"step +[\d,]+ / 2,048 +\d+%  return +-?[\d.]+  +[\d,]+ steps/s  ETA \d+:\d\d:\d\d"
    assert all(re.fullmatch(line, text) for text in lines), lines
    assert re.fullmatch(r"evaluation  return -?[\d.]+ ± [\d.]+  2 greedy episodes", evaluation)
    assert Path(checkpoint.removeprefix("checkpoint ")).is_file()


def test_checkpoint_and_resume(name, tmp_path, capsys):
    module, args = quick(name)
    agent, _ = module.train(args)
    (path,) = tmp_path.glob("runs/*/checkpoint.pt")
    folder = rf"{args.env_id}__{name}__1__\d+"
    assert re.fullmatch(folder, path.parent.name) and [p.name for p in path.parent.iterdir()] == ["checkpoint.pt"]
    checkpoint = torch.load(path, weights_only=True)
    assert checkpoint["script"] == name and checkpoint["flags"] == vars(args)
    assert 0 < checkpoint["global_step"] <= 2048 and "wandb_id" in checkpoint

    returns = module.evaluate(agent, args)
    complete, history = module.train(quick(name, "--resume", str(path))[1])  # only evaluates
    assert history == [] and np.array_equal(weights(agent), weights(complete))
    assert module.evaluate(complete, args) == returns

    flags = ["--total-timesteps", "4096", "--resume", str(path)]
    further, history = module.train(quick(name, *flags)[1])
    assert 2048 < history[0][0] and history[-1][0] <= 4096
    assert not np.array_equal(weights(agent), weights(further))
    again, history_again = module.train(quick(name, *flags)[1])
    assert history == history_again and np.array_equal(weights(further), weights(again))
    logged = r"step 2,[5-9]\d\d / 4,096" if name in WHOLE_EPISODES else "step 2,560 / 4,096"
    assert re.search(logged, capsys.readouterr().out)


def test_checkpoints_that_do_not_fit_are_refused(name, tmp_path):
    module, args = quick(name)
    module.train(args)
    (path,) = tmp_path.glob("runs/*/checkpoint.pt")
    checkpoint = torch.load(path, weights_only=True)
    other_env = OTHER_ENV.get(name, OTHER_ENV["default"])
    broken = {"text.pt": "no checkpoint", "cut.pt": path.read_bytes()[:1000], "missing.pt": None, "empty.pt": ""}
    broken["script.pt"] = checkpoint | {"script": "sarsa"}
    broken["list.pt"] = [1, 2]
    shape = {k: v[..., :-1] if isinstance(v, torch.Tensor) and v.ndim else v for k, v in checkpoint["agent"].items()}
    broken["shape.pt"] = checkpoint | {"agent": shape}
    broken["environment.pt"] = checkpoint | {"flags": checkpoint["flags"] | {"env_id": other_env}}
    for file, content in broken.items():
        if isinstance(content, str | bytes):
            Path(file).write_bytes(content if isinstance(content, bytes) else content.encode())
        elif content is not None:
            torch.save(content, file)
        with pytest.raises(ValueError, match=f"--resume {file}") as error:
            module.train(quick(name, "--resume", file)[1])
        assert "\n" not in str(error.value) and len(str(error.value)) < 300
    assert len(list(tmp_path.glob("runs/*"))) == 1


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_signals_end_the_run_with_a_checkpoint(name, signum, tmp_path):
    flags = "--total-timesteps 100000000 --checkpoint-interval 0 --log-interval 1000 --wandb-mode offline"
    process = shell(name, *QUICK.get(name, QUICK["default"]).split(), *flags.split())
    for line in process.stdout:
        if line.startswith("step"):
            break
    time.sleep(0.2)
    start = time.time()
    process.send_signal(signum)
    time.sleep(0.002)
    process.send_signal(signum)  # an impatient second one must not cost the checkpoint
    out, err = process.communicate(timeout=30)
    assert process.returncode == 128 + signum and time.time() - start < 15
    assert not list(tmp_path.glob("runs/*/*.tmp"))
    assert "stopped at step" in out and "Traceback" not in err and "wandb sync" in err
    (path,) = tmp_path.glob("runs/*/checkpoint.pt")
    step = torch.load(path, weights_only=True)["global_step"]
    assert step > 1000
    module, args = quick(name, "--resume", str(path), "--total-timesteps", str(step + 20_000))
    _, history = module.train(args)
    assert history and history[0][0] > step


def test_a_loss_that_is_not_finite_ends_the_run(name, tmp_path):
    """NaN rewards from the 300th step on: a line with the step and advice, the last good checkpoint as it was."""
    flags = "--checkpoint-interval 256 --total-timesteps 20000".split()
    module, args = quick(name, "--env-id", NAN_ENV.get(name, NAN_ENV["default"]), *flags)
    with pytest.raises(ValueError, match=r"step \d+: .*not finite.*try") as error:
        module.train(args)
    assert "\n" not in str(error.value)
    (path,) = tmp_path.glob("runs/*/checkpoint.pt")
    checkpoint = torch.load(path, weights_only=True)
    assert checkpoint["global_step"] < int(re.search(r"step (\d+)", str(error.value)).group(1))
    assert all(p.isfinite().all() for p in checkpoint["agent"].values())


def test_exploding_weights_end_the_run(name):
    module = import_module(name)
    if not hasattr(module.parse_args([]), "max_grad_norm"):
        pytest.skip("no gradient")
    with pytest.raises(ValueError, match="not finite"):
        module.train(quick(name, "--learning-rate", "1e38", "--total-timesteps", "20000")[1])


def test_wandb_offline_run_read_back(name, tmp_path):
    process = shell(name, *QUICK.get(name, QUICK["default"]).split(), "--wandb-mode", "offline", "--seed", "7")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0 and "wandb leet" in err and "wandb sync" in err
    (folder,) = tmp_path.glob("wandb/offline-run-*")
    leet = [Path(sys.executable).parent / "wandb", "leet", "inspect", "--json"]
    summary = json.loads(subprocess.check_output([*leet, "--summary", folder]))
    (run_folder,) = tmp_path.glob("runs/*")
    checkpoint = torch.load(run_folder / "checkpoint.pt", weights_only=True)
    assert (summary["name"], summary["state"], summary["exit_code"]) == (run_folder.name, "finished", 0)
    assert summary["run_id"] == checkpoint["wandb_id"] and summary["project"] == "reference-rl"
    assert summary["config"] == checkpoint["flags"] | {"torch": torch.__version__, "gymnasium": gym.__version__}
    assert summary["summary"]["global_step"] == checkpoint["global_step"]
    evaluation = re.search(r"evaluation  return (\S+) ± (\S+)", out).groups()
    for key, printed in zip(("eval/episodic_return", "eval/episodic_return_std"), evaluation, strict=True):
        assert f"{summary['summary'][key]:.1f}" == printed
    records = [json.loads(line) for line in subprocess.check_output([*leet, folder]).splitlines()]
    rows = [record["history"]["item"] for record in records if record["type"] == "history"]
    rows = [row for row in rows if "charts/SPS" in row]
    steps = [row["global_step"] for row in rows]
    assert steps == [512, 1024, 1536, 2048] or (name in WHOLE_EPISODES and [s // 512 for s in steps] == [1, 2, 3, 4])
    for row in rows:
        assert {"charts/episodic_return", "charts/episodic_length"} <= set(row) and any("losses/" in key for key in row)
    assert {record["metric"]["step_metric"] for record in records if record["type"] == "metric"} == {"global_step"}


def test_video(name, tmp_path):
    module, args = quick(name, "--capture-video")
    module.train(args)
    (video,) = tmp_path.glob("runs/*/videos/*.mp4")
    assert video.stat().st_size > 1000


def test_a_video_that_cannot_be_made_is_refused_before_training(name, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "moviepy", None)
    module, args = quick(name, "--capture-video")
    with pytest.raises(ValueError, match=f"--env-id {args.env_id}.*MoviePy"):
        module.train(args)
    assert not list(tmp_path.iterdir())
