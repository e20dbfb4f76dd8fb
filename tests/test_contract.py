"""Test what all scripts share; every script in PATHS is held to it."""

import ast
import contextlib
import io
import json
import multiprocessing
import re
import runpy
import shutil
import signal
import subprocess
import sys
import threading
import time
import tomllib
from functools import cache
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
import torch
import wandb
from wandb.util import get_core_path

ROOT = Path(__file__).parents[1]
PATHS = {name: ROOT / f"{name}.py" for name in "tabular_q reinforce dqn a2c a3c paac_gpu".split()}
PATHS |= {name: ROOT / "related" / f"{name}.py" for name in "ga3c gorila impala pgql".split()}
NO_DEVICE = {"tabular_q", "a3c"}
SHARED = {  # the flags at the end of every script with their defaults; None where each script has its own
    "seed": 1, "device": "cpu", "log_interval": None, "eval_episodes": 20, "capture_video": False,
    "resume": None, "run_dir": "runs", "wandb_mode": "offline", "wandb_project": "reference-rl",
}  # fmt: skip
# Flags for a run of one second.
QUICK = {"default": "--total-timesteps 1024 --log-interval 256 --eval-episodes 2 --wandb-mode disabled"}
QUICK["tabular_q"] = QUICK["default"] + " --env-id FrozenLake-v1"
QUICK["reinforce"] = QUICK["default"] + " --num-envs 4 --value-warmup 0"
QUICK["dqn"] = (
    QUICK["default"] + " --num-envs 8 --train-interval 16 --gradient-steps 1 --learning-starts 256 --batch-size 32"
)
QUICK["a3c"] = QUICK["default"] + " --num-workers 1"
QUICK["gorila"] = (
    QUICK["default"] + " --num-bundles 1 --num-envs 8 --train-interval 16 --learning-starts 256 --batch-size 32"
)
QUICK["ga3c"] = QUICK["default"] + " --num-agents 1"
QUICK["impala"] = QUICK["default"] + " --num-workers 1 --batch-size 2"
QUICK["paac_gpu"] = QUICK["default"] + " --num-envs 8 --num-steps 8 --env-id CartPole-v1"
# Scripts that update at the end of an episode and therefore log a little after each interval.
WHOLE_EPISODES = {"reinforce", "a3c", "ga3c"}
# The names of processes that step environments.
PROCESSES = {"a3c": "worker", "ga3c": "agent", "gorila": "bundle", "impala": "worker"}
# Scripts whose processes run freely: a seed does not reproduce a run.
FREE = {"ga3c", "gorila", "impala"}
# An environment whose rewards are NaN from the 300th step on.
NAN_ENV = {"default": "probes:NotANumber-v0", "tabular_q": "probes:NotANumberTable-v0"}
# Names whose text may differ between scripts: everywhere ("default"), or in the script named.
MAY_DIFFER = {
    "default": {"parse_args", "train", "update", "make_envs", "make_env", "ActorCritic.__init__"},
    "tabular_q": {"evaluate", "td_target"},  # a table, not a network
    "dqn": {"evaluate", "td_target", "mlp"},  # Q values, not a policy; hidden layers of any size
    "reinforce": {"ActorCritic.forward"},  # two networks
    "a3c": {"ActorCritic.forward", "evaluate", "finishing"},  # LSTM, frames, processes
    "paac_gpu": {"ActorCritic.forward"},  # frames
    "ga3c": {"ActorCritic.forward", "evaluate", "finishing", "start_worker", "run_worker"},  # two pipes per process
    # As in dqn.py, but without a mean image, and with processes.
    "gorila": {"QNetwork.__init__", "QNetwork.forward", "evaluate", "td_target", "mlp", "finishing"},
    "impala": {"ActorCritic.forward", "ActorCritic.sample", "evaluate", "finishing", "worker"},
    "pgql": {"ActorCritic.forward", "ActorCritic.sample", "evaluate"},  # discrete actions only
}

pytestmark = [pytest.mark.parametrize("name", PATHS), pytest.mark.usefixtures("forkserver")]


def source(name):
    return PATHS[name].read_text()


def quick(name, *flags):
    """Return the script's module and the arguments of a short run; later flags override earlier ones."""
    module = import_module(name)
    return module, module.parse_args([*QUICK.get(name, QUICK["default"]).split(), *flags])


@pytest.fixture(scope="session")
def short_run(tmp_path_factory):
    """A function: name -> the results of one quick run of a script, shared by many tests."""

    @cache
    def run(name):
        module, args = quick(name, "--run-dir", str(tmp_path_factory.mktemp(name)))
        with contextlib.redirect_stdout(io.StringIO()) as out:
            agent, history = module.train(args)
        (path,) = Path(args.run_dir).glob("*/checkpoint.pt")
        return SimpleNamespace(args=args, agent=agent, history=history, out=out.getvalue(), path=path)

    return run


def weights(agent):
    """Return all numbers of an agent as one array."""
    if isinstance(agent, torch.nn.Module):
        agent = np.concatenate([p.detach().cpu().numpy().ravel() for p in agent.state_dict().values()])
    return np.asarray(agent).ravel()


def main(name, *flags):
    """Run the script in this process -> how it ends: an error message, an exit code or None."""
    argv, handler = sys.argv, signal.getsignal(signal.SIGTERM)
    sys.argv = [f"{name}.py", *QUICK.get(name, QUICK["default"]).split(), *flags]
    try:
        runpy.run_path(str(PATHS[name]), run_name="__main__")
    except SystemExit as stop:
        return stop.code
    finally:
        sys.argv = argv
        signal.signal(signal.SIGTERM, handler)


# The text of a script


def imported(tree):
    """Yield the top-level names of the modules that a script imports."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            yield node.module.split(".")[0]


def test_readme_agrees(name):
    """The README has the script's number of lines, and the links of docs/lectures.md point at the right lines."""
    readme, lines = (ROOT / "README.md").read_text(), source(name).splitlines()
    path = re.escape(str(PATHS[name].relative_to(ROOT)))
    link = rf"\[{path}\]\({path}\)"
    assert re.search(link if "related" in path else rf"^\| {link} \| .*? \| {len(lines)} \|", readme, re.M)
    lectures = (ROOT / "docs" / "lectures.md").read_text()
    for target, number in re.findall(rf"\[`(\w+)`\]\(\.\./{path}#L(\d+)\)", lectures):
        assert re.match(rf"(def|class) {target}\b", lines[int(number) - 1]), f"{target} is not on line {number}"
    assert len(readme.splitlines()) <= 170 and max(map(len, readme.splitlines())) <= 400
    for page in (ROOT / "README.md", ROOT / "benchmark" / "README.md", ROOT / "docs" / "lectures.md"):
        for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / link).exists(), f"{page}: {link}"


def test_imports_are_allowed(name):
    allowed = {"torch", "gymnasium", "numpy", "wandb", "ale_py"}
    assert {m for m in imported(ast.parse(source(name))) if m not in sys.stdlib_module_names} <= allowed


def test_import_has_no_effect(name, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(sys, "argv", ["python", "--bad"])
    runpy.run_path(str(PATHS[name]), run_name=name)
    assert capfd.readouterr() == ("", "") and not list(tmp_path.iterdir()) and wandb.run is None


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


@cache
def texts(source):
    """Return {name: text} of all functions, methods, and classes without methods."""
    lines, found = source.splitlines(), {}
    for node in ast.parse(source).body:
        inner = [x for x in getattr(node, "body", []) if isinstance(x, ast.FunctionDef)]
        if isinstance(node, ast.FunctionDef) or (isinstance(node, ast.ClassDef) and not inner):
            found[node.name] = "\n".join(lines[node.lineno - 1 : node.end_lineno])
        elif isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{x.name}": "\n".join(lines[x.lineno - 1 : x.end_lineno]) for x in inner}
    return found


def twins(sources):
    """Return the names that occur in two sources with different texts."""
    first, second = map(texts, sources)
    return {name for name in first.keys() & second.keys() if first[name] != second[name]}


def test_twins_are_identical(name):
    assert twins(["def f(): return 1\ndef g(): pass", "def f(): return 2\ndef g(): pass"]) == {"f"}
    assert twins(["class C:\n def f(): 1\n def g(): 2", "class C:\n def f(): 1\n def g(): 3"]) == {"C.g"}
    for other in PATHS:
        may_differ = set.union(*(MAY_DIFFER.get(key, set()) for key in ("default", name, other)))
        assert twins([source(name), source(other)]) <= may_differ
        shared = "seed eval-episodes capture-video resume run-dir wandb-mode wandb-project".split()
        for flag in shared:
            lines = [re.search(rf'add\("--{flag}".*', source(script)).group() for script in (name, other)]
            assert lines[0] == lines[1]
        main_blocks = [source(script).rpartition('if __name__ == "__main__":')[2] for script in (name, other)]
        assert main_blocks[0] == main_blocks[1]


# Flags


def test_flags(name, capsys):
    module = import_module(name)
    args = vars(module.parse_args([]))
    flags, shared = list(args), [flag for flag in SHARED if flag != "device" or name not in NO_DEVICE]
    assert flags[:3] == ["env_id", "env_kwargs", "total_timesteps"] and flags[-len(shared) :] == shared
    defaults = {flag: value for flag, value in SHARED.items() if flag in shared and flag != "log_interval"}
    assert {flag: args[flag] for flag in defaults} == defaults
    assert args["env_kwargs"] == {} and args["anneal_lr"] is True
    assert 20 <= args["total_timesteps"] / args["log_interval"] <= 50  # lines of a default run
    read = {
        node.attr
        for function in ast.parse(source(name)).body
        if getattr(function, "name", "") != "parse_args"
        for node in ast.walk(function)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "args"
    }
    assert set(flags) <= read | {"device"}, "a flag that nothing reads"
    with pytest.raises(SystemExit) as stop:
        module.parse_args(["--help"])
    text = capsys.readouterr().out
    assert stop.value.code == 0 and module.__doc__.splitlines()[0] in " ".join(text.split())
    for flag in flags:
        assert re.search(rf"^  --{flag.replace('_', '-')}\b", text, re.M), flag
    assert text.count("(default:") >= len(flags) - 2


def test_flags_from_a_file_and_from_the_environment(name, tmp_path, monkeypatch):
    (tmp_path / "flags.txt").write_text('--seed\n7\n\n--eval-episodes=3\n  \n--run-dir=x \n--env-kwargs\n{"a": 1}\n')
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    args = import_module(name).parse_args(["@flags.txt", "--seed", "8"])
    assert (args.seed, args.eval_episodes, args.wandb_mode, args.wandb_project) == (8, 3, "disabled", "mine")
    assert args.run_dir == "x" and args.env_kwargs == {"a": 1}
    monkeypatch.setenv("WANDB_MODE", "")  # set but empty: as if it were not set
    monkeypatch.setenv("WANDB_PROJECT", "")
    args = import_module(name).parse_args([])
    assert (args.wandb_mode, args.wandb_project) == ("offline", "reference-rl")
    if name == "a2c":  # start_run is the same in all scripts
        assert main(name, "--wandb-mode", "disabled", "--total-timesteps", "512") is None
        assert import_module(name).parse_args([]).wandb_mode == "offline"  # it was meant for that run alone


def test_settings_belong_to_their_script(name, capsys):
    """A script reads its own settings files; argparse refuses those of another script and names the flags."""
    module, files = import_module(name), sorted((ROOT / "settings").glob(f"{name}_*.txt"))
    assert files or name == "reinforce" or PATHS[name].parent.name == "related"
    for path in files:
        assert module.parse_args([f"@{path}"]) != module.parse_args([])
    other = "a3c_Pong" if name == "dqn" else "dqn_MountainCar-v0"
    with pytest.raises(SystemExit, match="2"):
        module.parse_args([f"@{ROOT}/settings/{other}.txt"])
    assert "unrecognized arguments: --" in capsys.readouterr().err


def bad_values(args):
    """Yield (flag, value) pairs that every script must refuse."""
    for flag, value in vars(args).items():
        if isinstance(value, int | float) and not isinstance(value, bool) and flag != "initial_q":
            yield from ((flag, bad) for bad in ("-1", "nan", "inf", "many", ""))
            if isinstance(value, int):
                yield flag, "1.5"
    for flag in ("total_timesteps", "log_interval", "num_envs", "num_steps", "num_workers", "num_agents"):
        yield flag, "0"
    for flag in ("gamma", "gae_lambda"):
        yield flag, "1.01"
    yield from (("device", "abacus"), ("device", "cuda:99"), ("wandb_mode", "sometimes"))
    yield from (("env_kwargs", value) for value in ("{a: 1}", "5", "[1]", "null"))


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
    with pytest.raises(SystemExit, match="2"):
        module.parse_args(["@nothing.txt"])
    assert "nothing.txt" in capsys.readouterr().err.splitlines()[-1]
    assert not list(tmp_path.iterdir())


def test_errors_that_the_user_can_fix_end_with_one_line(name, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))  # without a W&B key
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    bad = {
        ("--env-id", "CartPol-v1"): "CartPol",
        ("--env-id", "CartPole-v99"): "CartPole",
        ("--env-id", "Nowhere/Env-v0"): "Nowhere",
        ("--env-id", "ALE/Pongg-v5"): "ALE",
        ("--env-id", "probes:MultiDiscreteAction-v0"): "--env-id probes:MultiDiscreteAction-v0: needs .*; it has ",
        ("--env-id", "probes:IntegerAction-v0"): "--env-id probes:IntegerAction-v0: needs .*; it has ",
        ("--env-id", "probes:Growing-v0"): "--env-id probes:Growing-v0: needs .*; it has .*Sequence",
        ("--resume", "nothing.pt"): "--resume nothing.pt: .*No such file",
        ("--resume", ""): "--resume : .*No such file",  # a shell command found no checkpoint
        ("--wandb-mode", "online"): "API key|api_key",
    }
    for (flag, value), message in bad.items():
        text = main(name, flag, value)
        assert isinstance(text, str) and text.startswith(f"{name}.py: error: "), (flag, value, text)
        assert re.search(message, text) and "\n" not in text, text
    assert not list(tmp_path.glob("*/*/checkpoint.pt")) and wandb.run is None


def test_errors_of_the_environment_keep_their_traceback(name, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(FileNotFoundError, match=r"level\.json"):
        main(name, "--env-id", "probes:NeedsFile-v0")
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        main(name, "--env-id", "no_such_module:Env-v0")
    with pytest.raises(NotADirectoryError, match="file/runs"):
        main(name, "--run-dir", "file/runs")


# A run


def test_same_seed_same_run_whatever_is_logged(name, short_run):
    run = short_run(name)
    history = run.history
    assert history and all(isinstance(step, int) and isinstance(value, float) for step, value in history)
    assert 0 < history[0][0] <= history[-1][0] < 2 * run.args.total_timesteps
    module, args = quick(name, "--log-interval", "100000", "--eval-episodes", "0")
    if name not in FREE:
        quiet, history_quiet = module.train(args)
        assert history == history_quiet and np.array_equal(weights(run.agent), weights(quiet))
        other, _ = module.train(quick(name, "--seed", "2", "--eval-episodes", "0")[1])
        assert not np.array_equal(weights(run.agent), weights(other))


def test_evaluate(name, short_run):
    """The same seeds give the same returns."""
    run, module = short_run(name), import_module(name)
    returns = module.evaluate(run.agent, run.args, 3)
    assert len(returns) == 3 and all(isinstance(value, float) for value in returns)
    assert returns == module.evaluate(run.agent, run.args, 3)


def test_an_endless_evaluation_is_cut_and_says_so(name, short_run, capsys, monkeypatch):
    """The limit of 100,000 steps, here 30; a video holds at most 1,000 frames."""
    run, module = short_run(name), import_module(name)
    env = gym.make(run.args.env_id)
    spaces = {"observation_space": env.observation_space, "action_space": env.action_space}

    class Forever(gym.Env):
        metadata = {"render_modes": ["rgb_array"], "render_fps": 30}  # noqa: RUF012
        reset = lambda self, seed=None, options=None: (spaces["observation_space"].sample(), {})  # noqa: E731
        step = lambda self, action: (spaces["observation_space"].sample(), 1.0, False, False, {})  # noqa: E731
        render = lambda self: np.zeros((16, 16, 3), np.uint8)  # noqa: E731

        def __init__(self, render_mode=None):
            self.render_mode = render_mode
            self.observation_space, self.action_space = spaces.values()

    gym.register(f"Forever{name}-v0", Forever, max_episode_steps=10**6)
    monkeypatch.setattr(module, "range", lambda limit: range(30 if limit == 100_000 else limit), raising=False)
    recorders, original = [], gym.wrappers.vector.RecordVideo
    record = lambda *args, **options: recorders.append(options) or original(*args, **options)  # noqa: E731
    monkeypatch.setattr(gym.wrappers.vector, "RecordVideo", record)
    args = SimpleNamespace(**vars(run.args) | {"env_id": f"Forever{name}-v0"})
    assert module.evaluate(run.agent, args, 2) == [30.0, 30.0]
    assert capsys.readouterr().out == "evaluation  2 of 2 episodes unfinished after 100,000 steps\n"
    assert module.evaluate(run.agent, args, 1, video_folder=Path("video")) == [30.0]
    assert recorders[0]["video_length"] == 1_000


def test_terminal_output(name, short_run):
    run = short_run(name)
    lines = run.out.splitlines()
    steps = [line for line in lines if line.startswith("step ")]
    head = next(line for line in lines if line.startswith(name))
    assert re.fullmatch(rf"{name}  {run.args.env_id}  cpu  {re.escape(str(run.path.parent))}", head)
    assert len(steps) == 4
    line = r"step +[\d,]+  return +(-?[\d.]+|nan)  +[\d,]+ steps/s +\d+ s left"
    assert all(re.fullmatch(line, text) for text in steps), steps
    assert re.fullmatch(r"evaluation  return -?[\d.]+ ± [\d.]+  2 greedy episodes", lines[-2])
    assert lines[-1] == f"checkpoint  {run.path}"


def test_a_terminal_without_unicode_prints_question_marks(name, monkeypatch):
    for flags in (["--help"], []):
        terminal = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", terminal)
            assert main(name, *flags) in (0, None)
        terminal.flush()
        assert b"?" in terminal.buffer.getvalue()  # for γ, or for ± in the evaluation


# Resuming


def copy_of(run, folder):
    """Copy a run's checkpoint into another folder -> its path."""
    folder.mkdir(exist_ok=True)
    return str(shutil.copy(run.path, folder / "checkpoint.pt"))


def test_checkpoint_and_resume(name, short_run, tmp_path, capsys):
    run, module = short_run(name), import_module(name)
    assert re.fullmatch(rf"{run.args.env_id}__{name}__1__[0-9a-f]+", run.path.parent.name)
    assert [path.name for path in run.path.parent.iterdir()] == ["checkpoint.pt"]
    checkpoint = torch.load(run.path, weights_only=True)
    assert checkpoint["script"] == name and checkpoint["flags"] == vars(run.args)
    assert 0 < checkpoint["global_step"] < 2 * 1024 and run.path.parent.name.endswith(f"__{checkpoint['run_id']}")

    here, there = copy_of(run, tmp_path / "here"), copy_of(run, tmp_path / "there")
    complete, history = module.train(module.parse_args(["--wandb-mode", "disabled", "--resume", here]))
    assert history == [] and np.array_equal(weights(run.agent), weights(complete))  # only evaluated
    flags = ["--wandb-mode", "disabled", "--total-timesteps", "2048", "--resume"]
    capsys.readouterr()
    further, history = module.train(module.parse_args([*flags, here]))
    assert checkpoint["global_step"] < history[0][0] and 2048 <= history[-1][0] + 500
    assert not np.array_equal(weights(run.agent), weights(further))
    logged = r"^step +1,[2-9]\d\d " if name in WHOLE_EPISODES else r"^step +1,280 "
    assert re.search(logged, capsys.readouterr().out, re.M)
    assert torch.load(here, weights_only=True)["run_id"] == checkpoint["run_id"]
    assert not list(tmp_path.glob("runs/*"))  # a resumed run stays in its folder
    if name not in FREE:
        again, history_again = module.train(module.parse_args([*flags, there, "--eval-episodes", "0"]))
        assert history == history_again and np.array_equal(weights(further), weights(again))


def test_a_resumed_run_has_the_flags_of_its_checkpoint(name, short_run, tmp_path, monkeypatch):
    """All but the machine-specific ones; flags on the command line override them; a second resume keeps both."""
    run, module = short_run(name), import_module(name)
    path = copy_of(run, tmp_path)
    flags = vars(module.parse_args(["--resume", path]))
    machine = {"device", "run_dir", "wandb_mode", "wandb_project", "resume"}
    assert {flag for flag in flags if flags[flag] != vars(run.args)[flag]} <= machine and flags["resume"] == path
    assert (flags["run_dir"], flags["wandb_mode"]) == ("runs", "offline")
    given = ["--seed", "3", "--gamma", "0.5", "--no-anneal-lr", "--total-timesteps", "1280", "--wandb-mode", "disabled"]
    module.train(module.parse_args(["--resume", path, *given]))
    again = module.parse_args(["--resume", path])
    assert (again.seed, again.gamma, again.anneal_lr, again.total_timesteps) == (3, 0.5, False, 1280)
    assert again.log_interval == 256 and again.eval_episodes == 2


def test_a_checkpoint_of_another_environment_is_named(name, short_run, capsys):
    other = "CliffWalking-v1" if name == "tabular_q" else "Acrobot-v1"
    with pytest.raises(SystemExit, match="2"):
        quick(name, "--resume", str(short_run(name).path), "--env-id", other)
    message = f"was trained on {short_run(name).args.env_id}, not on {other}"
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_checkpoints_that_do_not_fit_are_refused(name, short_run, tmp_path):
    path = short_run(name).path
    checkpoint = torch.load(path, weights_only=True)
    broken = {"text.pt": "no checkpoint", "cut.pt": path.read_bytes()[:1000], "missing.pt": None, "empty.pt": ""}
    broken["script.pt"] = checkpoint | {"script": "sarsa"}
    broken["list.pt"] = [1, 2]
    shape = {k: v[..., :-1] if isinstance(v, torch.Tensor) and v.ndim else v for k, v in checkpoint["agent"].items()}
    broken["shape.pt"] = checkpoint | {"agent": shape}
    for file, content in broken.items():
        if isinstance(content, str | bytes):
            Path(file).write_bytes(content if isinstance(content, bytes) else content.encode())
        elif content is not None:
            torch.save(content, file)
        with pytest.raises(ValueError, match=f"--resume {file}") as error:
            import_module(name).train(quick(name, "--resume", file)[1])
        assert "\n" not in str(error.value) and len(str(error.value)) < 350
        assert file != "script.pt" or "it belongs to sarsa.py" in str(error.value)
    assert not list(tmp_path.glob("runs/*"))


def test_a_full_disk_keeps_the_last_checkpoint(name, short_run, tmp_path):
    """It fills up partway through the checkpoint, here by a limit on the size of files; the error names the cause."""
    resource = pytest.importorskip("resource", reason="needs Unix")
    path = copy_of(short_run(name), tmp_path)
    before, limits = Path(path).read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    for share in (0.6, 0.75, 0.9):  # shared memory consists of files, too, and must fit
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(share * len(before)), limits[1]))
        try:
            with pytest.raises(OSError, match="File too large"):
                main(name, "--total-timesteps", "2048", "--resume", path)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert Path(path).read_bytes() == before and wandb.run is None


# Signals and faults


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signals_end_the_run_with_a_checkpoint(name, signum, code, tmp_path, monkeypatch, capfd, handlers):
    """A signal in the middle of a run, which is then resumed."""
    timer = threading.Timer(0.1, signal.pthread_kill, [threading.main_thread().ident, signum])
    original_print = print

    def print_and_strike(*args, **options):
        original_print(*args, **options)
        if str(args[0]).startswith("step") and timer.ident is None:  # not started
            timer.start()

    with monkeypatch.context() as patch:
        patch.setattr("builtins.print", print_and_strike)
        flags = ["--vectorization-mode", "async"] if name == "paac_gpu" else []
        assert main(name, *flags, "--total-timesteps", "100000000") == code
    torch.set_grad_enabled(True)  # if the signal has interrupted an optimizer's step, it may still be off
    (path,) = tmp_path.glob("runs/*/*")
    assert path.name == "checkpoint.pt" and f"checkpoint  {path.relative_to(tmp_path)}\n" in capfd.readouterr().out
    step = torch.load(path, weights_only=True)["global_step"]
    assert step >= 256 and wandb.run is None and not multiprocessing.active_children()
    module, args = quick(name, "--resume", str(path), "--total-timesteps", str(step + 512))
    _, history = module.train(args)
    assert all(later > step for later, _ in history)


def test_sigterm_in_the_shell(name, handlers):
    """With W&B, whose service is another process and keeps the code; Ctrl-C is in the tests of the other scripts."""
    if name != "a2c":
        pytest.skip("the twins of a2c.py end in the same way")
    flags = "--total-timesteps 100000000 --log-interval 1000 --wandb-mode offline"
    command = [sys.executable, shutil.copy(PATHS[name], "."), *QUICK["default"].split(), *flags.split()]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    next(line for line in process.stdout if line.startswith("step"))
    time.sleep(0.2)
    process.terminate()
    out, err = process.communicate(timeout=120)  # takes seconds, except on a busy machine
    assert process.returncode == 143 and "Traceback" not in err and "wandb sync" in err, err
    (path,) = Path("runs").glob("*/*")
    assert path.name == "checkpoint.pt" and f"checkpoint  {path}\n" in out
    assert torch.load(path, weights_only=True)["global_step"] > 1000
    (code,) = Path("wandb").glob("offline-run-*/files/code/a2c.py")
    assert code.read_text() == source(name)


def not_finite(name, env_id):
    """Return the message for rewards or observations that are NaN."""
    quantity = "TD error" if name == "tabular_q" else "gradient"
    return f"the {quantity} is not finite: lower --learning-rate, or look for NaN in {env_id}"


def test_rewards_that_are_not_finite_end_the_run(name, tmp_path):
    """From the 300th step on rewards are NaN: one line with advice, and the weights from before."""
    module, args = quick(name, "--env-id", NAN_ENV.get(name, NAN_ENV["default"]), "--total-timesteps", "20000")
    with pytest.raises(module.RunError, match=f"^{not_finite(name, args.env_id)}$"):
        module.train(args)
    assert wandb.run is None
    (path,) = tmp_path.glob("runs/*/checkpoint.pt")
    checkpoint = torch.load(path, weights_only=True)
    assert 250 <= checkpoint["global_step"] < 300 * getattr(args, "num_envs", 1) + 1_000
    assert all(p.isfinite().all() for p in checkpoint["agent"].values())


def test_observations_that_are_not_finite_end_the_run(name):
    if name == "tabular_q":
        pytest.skip("states are integers")
    text = main(name, "--env-id", "probes:NotANumberObservation-v0", "--total-timesteps", "20000")
    assert text == f"{name}.py: error: {not_finite(name, 'probes:NotANumberObservation-v0')}"


def test_an_environment_that_raises_ends_the_run_with_its_own_error(name, tmp_path, forkserver_errors):
    env_id = "probes:CrashTable-v0" if name == "tabular_q" else "probes:Crash-v0"
    module, args = quick(name, "--env-id", env_id, "--total-timesteps", "20000")
    expected = module.RunError if name in PROCESSES else ZeroDivisionError  # a process prints its own traceback
    with pytest.raises(expected, match=f"{PROCESSES[name]} 0" if name in PROCESSES else "by its\nstep"):
        module.train(args)
    assert name not in PROCESSES or "ZeroDivisionError: by its" in forkserver_errors.read_text()
    (path,) = tmp_path.glob("runs/*/checkpoint.pt")
    least = 128 if name == "ga3c" else 256  # of 300 steps; on a busy machine GA3C's trainer may lag behind the agent
    assert torch.load(path, weights_only=True)["global_step"] >= least and wandb.run is None


# Environments that users bring


def test_an_environment_that_differs_only_in_form_gives_the_same_run(name):
    """Actions used as dictionary keys, observations overwritten in place, one info whose arrays cannot be stacked."""
    if name == "tabular_q":
        module, args = quick(name, "--env-id", "probes:OneInfoTable-v0")
        assert [step for step, _ in module.train(args)[1]] == list(range(20, 1025, 20))
        return
    module, args = quick(name, "--env-id", "probes:Awkward-v0")
    agent, history = module.train(args)
    assert 45 < len(history) <= 64  # each episode once
    if name not in FREE:
        expected_agent, expected_history = module.train(quick(name, "--env-id", "probes:Cue-v0")[1])
        assert history == expected_history and np.array_equal(weights(agent), weights(expected_agent))


def test_an_environment_that_counts_its_own_episodes(name):
    if name == "tabular_q":
        env_id = "probes:RecordedLake-v0"
    else:
        env_id = "probes:Recorded-v0"
    module, args = quick(name, "--env-id", env_id)
    assert len(module.train(args)[1]) > 10


def test_an_environment_that_reports_statistics_of_its_own(name):
    if name == "tabular_q":
        pytest.skip("states are integers")
    module, args = quick(name, "--env-id", "probes:OwnStatistics-v0", "--log-interval", "7")
    history = module.train(args)[1]
    assert 45 < len(history) <= 64 and all(0 <= value <= 20 for _, value in history)


def test_lives_are_known_where_atari_is_rendered(name):
    if name not in {"dqn", "paac_gpu", "gorila"}:
        pytest.skip("steps no games in a vector environment")
    module, args = quick(name, "--env-id", "ALE/Breakout-v5", "--env-kwargs", '{"render_mode": "rgb_array"}')
    envs = module.make_envs(args, 2)
    assert envs.reset(seed=1)[1]["lives"].tolist() == [5, 5]
    envs.close()


def test_lives_count_only_in_atari(name):
    """A lost life changes nothing in another environment."""
    if name not in {"dqn", "paac_gpu"}:
        pytest.skip("without lives, or in the script's own tests")
    module, args = quick(name, "--env-id", "probes:CountsLives-v0")
    _, without = quick(name, "--env-id", "probes:CountsLives-v0", "--env-kwargs", '{"counted": false}')
    agents = [module.train(some)[0] for some in (args, without)]
    assert np.array_equal(*map(weights, agents))


def test_bounded_actions_cover_their_range(name):
    """Actions from 50 to 100, best at 75. Rescaled, the initial N(0, 1) earns 7 per episode; only clipped, 0."""
    if name in {"tabular_q", "dqn", "ga3c", "gorila", "impala", "pgql"}:
        pytest.skip("discrete actions only")
    module, args = quick(name, "--env-id", "probes:Percent-v0", "--learning-rate", "0")
    assert np.mean([value for _, value in module.train(args)[1]]) > 5
    for env_id, lowest in (("probes:Bounds-v0", 12), ("probes:Fixed-v0", 5)):  # of 20 and 10
        module, args = quick(name, "--env-id", env_id, "--learning-rate", "0")
        assert np.mean([value for _, value in module.train(args)[1]]) > lowest


@pytest.mark.parametrize("env_id", ["FrozenLake-v1", "probes:Square-v0", "probes:Mixed-v0"])
def test_observations_are_flattened(name, env_id, monkeypatch):
    if name == "tabular_q":
        pytest.skip("states are integers")
    if name in PROCESSES and env_id != "probes:Mixed-v0":
        pytest.skip("slow, and made by the same function")
    as_tensor = torch.as_tensor

    def never_float64_to_a_device(data, **options):  # on a Mac's GPU it is a TypeError
        assert "device" not in options or as_tensor(data, **options).dtype != torch.float64
        return as_tensor(data, **options)

    monkeypatch.setattr(torch, "as_tensor", never_float64_to_a_device)
    module, args = quick(name, "--env-id", env_id)
    agent, history = module.train(args)
    first_layer = next(p for p in agent.parameters() if p.ndim == 2)
    assert first_layer.shape[1] == {"F": 16, "S": 25, "M": 3 + 4 + 2 + 4}[env_id.removeprefix("probes:")[0]]
    assert len(history) > 10


def test_env_kwargs_reach_training_and_evaluation(name, short_run, tmp_path):
    if name == "tabular_q":
        flags = ["--env-id", "FrozenLake-v1", "--env-kwargs", '{"is_slippery": false, "desc": ["SG"]}']
        shortest, longest = 1.0, 1.0
    else:
        flags = ["--env-id", "probes:Kwargs-v0", "--env-kwargs", '{"bonus": 100}']
        shortest, longest = 2000.0, 2020.0
    module, args = quick(name, *flags)
    agent, history = module.train(args)
    assert all(value in (0.0, 1.0) or shortest <= value <= longest for _, value in history)
    assert max(value for _, value in history) >= shortest
    assert all(shortest <= value <= longest for value in module.evaluate(agent, args, 2))
    (path,) = tmp_path.glob("runs/*/checkpoint.pt")
    assert module.parse_args(["--resume", str(path)]).env_kwargs == args.env_kwargs


def test_a_video_has_its_own_render_mode(name):
    """Whatever render mode --env-kwargs asks for."""
    _, args = quick(name, "--env-kwargs", '{"render_mode": "human"}')
    module = import_module(name)
    if hasattr(module, "make_envs"):
        env = module.make_envs(args, 1, render_mode="rgb_array")
    else:
        env = module.make_env(args, render_mode="rgb_array")
    assert env.render_mode == "rgb_array"
    env.close()


@pytest.mark.parametrize("device", ["cpu", "mps"])
def test_convolutions_on_mps_keep_their_layout(name, device, monkeypatch):
    """PyTorch 2.13 misreads channels_last weights there (its issue 192212). The test needs no such device."""
    if name not in {"dqn", "paac_gpu", "impala"}:
        pytest.skip("keeps PyTorch's layout everywhere")

    def stop(*args, **kwargs):
        raise StopIteration

    module, args = quick(name, "--env-id", "ALE/Pong-v5")
    args.device, args.num_envs = device, 1
    formats = []
    monkeypatch.setattr(
        torch.nn.Module, "to", lambda self, device=None, memory_format=None: formats.append(memory_format)
    )
    monkeypatch.setattr(torch.optim, "Adam", stop)
    with pytest.raises(StopIteration):
        module.train(args)
    assert (torch.channels_last in formats) == (device == "cpu")


def test_a_checkpoint_from_mps_has_its_optimizer_laid_out_anew(name, tmp_path, monkeypatch):
    """The fused Adam reads weights and statistics in the order of memory: their layouts must be equal."""
    if name not in {"dqn", "paac_gpu", "impala"}:
        pytest.skip("keeps PyTorch's layout everywhere")
    flags = {"dqn": "--num-envs 1 --learning-starts 8", "paac_gpu": "--num-envs 1", "impala": ""}[name]
    module, args = quick(name, *f"--env-id ALE/Pong-v5 {flags} --total-timesteps 100 --eval-episodes 0".split())
    module.train(args)
    (path,) = tmp_path.glob("runs/*/checkpoint.pt")
    checkpoint = torch.load(path, weights_only=True)
    states = [state for _, state in sorted(checkpoint["optimizer"]["state"].items())]
    for state in states:  # as on MPS
        state |= {key: value.contiguous() for key, value in state.items()}
    torch.save(checkpoint, path)
    optimizers = []

    class Adam(torch.optim.Adam):
        def load_state_dict(self, state_dict):
            super().load_state_dict(state_dict)
            optimizers.append(self)

    monkeypatch.setattr(torch.optim, "Adam", Adam)
    module.train(module.parse_args(["--resume", str(path)]))  # it has made all its steps: no update follows
    ((group,), state_of) = optimizers[0].param_groups, optimizers[0].state
    assert any(not weights.is_contiguous() for weights in group["params"])
    for weights, saved in zip(group["params"], states, strict=True):
        for key in ("exp_avg", "exp_avg_sq"):
            assert torch.equal(state_of[weights][key], saved[key]) and saved["exp_avg_sq"].any()
            assert state_of[weights][key].stride() == weights.stride()


def test_observations_of_another_shape_are_an_error(name, forkserver_errors):
    if name == "tabular_q":
        pytest.skip("states are integers")
    module, args = quick(name, "--env-id", "probes:WrongShape-v0")
    with pytest.raises(Exception, match="bundle 0" if name == "gorila" else "shape|dimensionality"):
        module.train(args)
    assert name != "gorila" or "wrong dimensionality" in forkserver_errors.read_text()


def test_one_environment_at_a_time(name):
    """A simulator of which only one can be open: training's is closed before the evaluation opens its own."""
    env_id = "probes:OnlyOneTable-v0" if name == "tabular_q" else "probes:OnlyOne-v0"
    flags = ["--num-envs", "1"] if hasattr(quick(name)[1], "num_envs") else []
    module, args = quick(name, "--env-id", env_id, *flags, "--eval-episodes", "1", "--total-timesteps", "600")
    assert len(module.train(args)[1]) >= 20


def test_a_video_of_an_environment_that_cannot_render_is_refused_before_training(name, tmp_path, monkeypatch):
    env_id = "probes:OnlyOneTable-v0" if name == "tabular_q" else "probes:Cue-v0"
    monkeypatch.setattr("probes.Cue.metadata", {"render_fps": 30})
    text = main(name, "--env-id", env_id, "--capture-video")
    assert text == f"{name}.py: error: --capture-video: {env_id} has no render mode rgb_array"
    assert not list(tmp_path.glob("runs/*"))


# W&B


def test_wandb_offline_run_read_back(name, tmp_path, capfd):
    """The data that W&B holds after a run, its video included."""
    wandb.teardown()  # makes it forget the folder of an earlier test
    short = ["--env-kwargs", '{"max_episode_steps": 20}']  # a long video takes seconds
    module, args = quick(name, "--wandb-mode", "offline", "--seed", "7", "--capture-video", *short)
    module.train(args)
    out, err = capfd.readouterr()
    assert "wandb leet" in err and "wandb sync" in err
    (folder,) = tmp_path.glob("wandb/offline-run-*")
    (data,) = folder.glob("run-*.wandb")
    leet = [get_core_path(), "leet", "inspect", "--no-observability"]  # what the slower `wandb leet inspect` calls
    options = ["--json", "--run-file", data, folder.parent]
    summary = json.loads(subprocess.check_output([*leet, "--summary", *options]))
    (run_folder,) = tmp_path.glob("runs/*")
    (video,) = run_folder.glob("video/*.mp4")
    checkpoint = torch.load(run_folder / "checkpoint.pt", weights_only=True)
    assert (summary["name"], summary["state"], summary["exit_code"]) == (run_folder.name, "finished", 0)
    assert summary["run_id"] == checkpoint["run_id"] and summary["project"] == "reference-rl"
    assert summary["config"] == {flag: value for flag, value in checkpoint["flags"].items() if value != {}}
    assert summary["summary"]["global_step"] == checkpoint["global_step"]
    assert video.stat().st_size > 1000 and summary["summary"]["eval/video"]["size"] == video.stat().st_size
    evaluation = re.search(r"evaluation  return (\S+) ± (\S+)", out).groups()
    for key, printed in zip(("eval/episodic_return", "eval/episodic_return_std"), evaluation, strict=True):
        assert f"{summary['summary'][key]:.1f}" == printed
    records = [json.loads(line) for line in subprocess.check_output([*leet, *options]).splitlines()]
    rows = [record["history"]["item"] for record in records if record["type"] == "history"]
    rows = [row for row in rows if "charts/SPS" in row]
    steps = [row["global_step"] for row in rows]
    assert steps == [256, 512, 768, 1024] or (name in WHOLE_EPISODES and [s // 256 for s in steps] == [1, 2, 3, 4])
    charts = {"charts/episodic_return", "charts/episodic_length", "charts/learning_rate"}
    losses = set() if name in {"tabular_q", "dqn", "gorila"} else {"losses/explained_variance"}
    for row in rows:
        assert charts | losses <= set(row) and any("losses/" in key for key in row)
    assert {record["metric"]["step_metric"] for record in records if record["type"] == "metric"} == {"global_step"}


def test_a_video_that_cannot_be_made_costs_no_training(name, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "moviepy", None)
    text = main(name, "--capture-video", "--total-timesteps", "512")
    assert re.fullmatch(rf"{name}.py: error: MoviePy is not installed.*", text)
    assert list(tmp_path.glob("runs/*/checkpoint.pt"))
