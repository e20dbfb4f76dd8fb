"""What all scripts share; a new script is held to it by being there."""

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
import time
import tomllib
from functools import cache
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import wandb

ROOT = Path(__file__).parents[1]
PATHS = {name: ROOT / f"{name}.py" for name in "tabular_q reinforce dqn a2c a3c paac_gpu".split()}
PATHS["ga3c"] = ROOT / "related" / "ga3c.py"
NO_DEVICE = {"tabular_q", "a3c"}
SHARED = {  # flag: default; None where each script has its own
    "seed": 1, "device": "cpu", "log_interval": None, "eval_episodes": 20, "capture_video": False,
    "resume": None, "run_dir": "runs", "wandb_mode": "offline", "wandb_project": "reference-rl",
}  # fmt: skip
# Flags with which a run lasts a second; add a line for a script that needs others.
QUICK = {"default": "--total-timesteps 2048 --log-interval 512 --eval-episodes 2 --wandb-mode disabled"}
QUICK["reinforce"] = QUICK["default"] + " --num-envs 8"
QUICK["dqn"] = QUICK["default"] + " --num-envs 8 --train-interval 16 --learning-starts 256 --batch-size 32"
QUICK["a3c"] = QUICK["default"] + " --num-workers 1"
QUICK["ga3c"] = QUICK["default"] + " --num-agents 1"
QUICK["paac_gpu"] = QUICK["default"] + " --num-envs 8 --num-steps 8 --env-id CartPole-v1"
# Scripts whose updates end with an episode, and which log at the end of the one in which an interval has passed.
WHOLE_EPISODES = {"reinforce", "a3c", "ga3c"}
# What processes that play are called.
PROCESSES = {"a3c": "worker", "ga3c": "agent"}
# An environment other than the default one, and one whose rewards are NaN from the 300th step on.
OTHER_ENV = {"default": "Acrobot-v1", "tabular_q": "FrozenLake-v1"}
NAN_ENV = {"default": "probes:NotANumber-v0", "tabular_q": "probes:NotANumberTable-v0"}
# Functions, classes and methods of one name whose text may differ, as the algorithms do, in all scripts or in one.
MAY_DIFFER = {
    "default": {"parse_args", "train", "update", "make_envs", "make_env", "ActorCritic.__init__"},
    "tabular_q": {"evaluate", "td_target", "save_checkpoint", "load_checkpoint"},  # of a table, not of a network
    "dqn": {"evaluate", "td_target"},  # of Q values, not of a policy
    "reinforce": {"ActorCritic.forward"},  # two networks
    "a3c": {"ActorCritic.forward", "evaluate"},  # with a memory
    "paac_gpu": {"ActorCritic.forward"},  # with convolutions
    "ga3c": {"ActorCritic.forward", "evaluate", "start_worker", "run_worker"},  # of agents with two pipes
}

pytestmark = [pytest.mark.parametrize("name", PATHS), pytest.mark.usefixtures("forkserver")]


def source(name):
    return PATHS[name].read_text()


def quick(name, *flags):
    """The script's module and the arguments of a short run; later flags win."""
    module = import_module(name)
    return module, module.parse_args([*QUICK.get(name, QUICK["default"]).split(), *flags])


@pytest.fixture(scope="session")
def short_run(tmp_path_factory):
    """name -> what the quick run of a script gave and left: one run for many questions."""

    @cache
    def run(name):
        module, args = quick(name, "--run-dir", str(tmp_path_factory.mktemp(name)))
        with contextlib.redirect_stdout(io.StringIO()) as out:
            agent, history = module.train(args)
        (path,) = Path(args.run_dir).glob("*/checkpoint.pt")
        return SimpleNamespace(args=args, agent=agent, history=history, out=out.getvalue(), path=path)

    return run


def weights(agent):
    """All numbers of an agent in one array."""
    if isinstance(agent, torch.nn.Module):
        agent = np.concatenate([p.detach().cpu().numpy().ravel() for p in agent.state_dict().values()])
    return np.asarray(agent).ravel()


def main(name, *flags):
    """What the program ends with, run as a script but in this process: a line of text, an exit code, or None."""
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
    """Top-level names of the modules that a script imports."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            yield node.module.split(".")[0]


def test_readme_agrees(name):
    """The script's number of lines in the README, and the lines to which docs/lectures.md's links point."""
    readme, lines = (ROOT / "README.md").read_text(), source(name).splitlines()
    path = re.escape(str(PATHS[name].relative_to(ROOT)))
    link = rf"\[{path}\]\({path}\)"
    assert re.search(link if name == "ga3c" else rf"^\| {link} \| .*? \| {len(lines)} \|", readme, re.M)
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


def texts(source):
    """Name -> text of each function, each class without methods and each method, with the comment on its last line."""
    lines, found = source.splitlines(), {}
    for node in ast.parse(source).body:
        inner = [x for x in getattr(node, "body", []) if isinstance(x, ast.FunctionDef)]
        if isinstance(node, ast.FunctionDef) or (isinstance(node, ast.ClassDef) and not inner):
            found[node.name] = "\n".join(lines[node.lineno - 1 : node.end_lineno])
        elif isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{x.name}": "\n".join(lines[x.lineno - 1 : x.end_lineno]) for x in inner}
    return found


def twins(sources):
    """Names of what stands in two sources with different text."""
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
    assert flags[:2] == ["env_id", "total_timesteps"] and flags[-len(shared) :] == shared
    defaults = {flag: value for flag, value in SHARED.items() if flag in shared and flag != "log_interval"}
    assert {flag: args[flag] for flag in defaults} == defaults
    assert 20 <= args["total_timesteps"] / args["log_interval"] <= 50  # lines of a default run
    read = {
        node.attr
        for function in ast.parse(source(name)).body
        if getattr(function, "name", "") != "parse_args"
        for node in ast.walk(function)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "args"
    }
    assert set(flags) <= read, "a flag that nothing reads"
    with pytest.raises(SystemExit) as stop:
        module.parse_args(["--help"])
    text = capsys.readouterr().out
    assert stop.value.code == 0 and module.__doc__.splitlines()[0] in " ".join(text.split())
    for flag in flags:
        assert re.search(rf"^  --{flag.replace('_', '-')}\b", text, re.M), flag
    assert text.count("(default:") >= len(flags) - 2


def test_flags_from_a_file_and_from_the_environment(name, tmp_path, monkeypatch):
    (tmp_path / "flags.txt").write_text("--seed\n7\n--eval-episodes=3\n")
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    args = import_module(name).parse_args(["@flags.txt", "--seed", "8"])
    assert (args.seed, args.eval_episodes, args.wandb_mode, args.wandb_project) == (8, 3, "disabled", "mine")


def test_settings_are_flags_of_their_script(name, capsys):
    """And of no other, which argparse says, naming the flags."""
    module, files = import_module(name), sorted((ROOT / "settings").glob(f"{name}_*.txt"))
    assert files or name == "ga3c"
    for path in files:
        assert module.parse_args([f"@{path}"]) != module.parse_args([])
    other = "a2c_Pendulum-v1" if name == "dqn" else "dqn_MountainCar-v0"
    with pytest.raises(SystemExit, match="2"):
        module.parse_args([f"@{ROOT}/settings/{other}.txt"])
    assert "unrecognized arguments: --" in capsys.readouterr().err


def bad_values(args):
    """(flag, value) pairs that every script must refuse."""
    for flag, value in vars(args).items():
        if isinstance(value, int | float) and not isinstance(value, bool):
            yield from ((flag, bad) for bad in ("-1", "nan", "inf", "many", ""))
            if isinstance(value, int):
                yield flag, "1.5"
    for flag in ("total_timesteps", "log_interval", "num_envs", "num_steps", "num_workers", "num_agents"):
        yield flag, "0"
    for flag in ("gamma", "gae_lambda"):
        yield flag, "1.01"
    yield from (("device", "abacus"), ("device", "cuda:99"), ("wandb_mode", "sometimes"))


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


def test_what_a_user_can_mend_ends_with_one_line(name, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("HOME", str(tmp_path))  # where no key for W&B is
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    bad = {
        ("--env-id", "CartPol-v1"): "CartPol",
        ("--env-id", "CartPole-v99"): "CartPole",
        ("--env-id", "Nowhere/Env-v0"): "Nowhere",
        ("--env-id", "no_such_module:Env-v0"): "no_such_module",
        ("--env-id", "ALE/Pongg-v5"): "ALE",
        ("--env-id", "probes:DictObservation-v0"): "--env-id probes:DictObservation-v0: takes .*, not .*Dict",
        ("--env-id", "probes:ImageObservation-v0"): "--env-id probes:ImageObservation-v0: takes",
        ("--env-id", "probes:MultiDiscreteAction-v0"): "--env-id probes:MultiDiscreteAction-v0: takes",
        ("--env-id", "probes:IntegerAction-v0"): "--env-id probes:IntegerAction-v0: takes",
        ("--resume", "nothing.pt"): "--resume nothing.pt",
        ("--run-dir", "file/runs"): "file/runs",
        ("--wandb-mode", "online"): "API key|api_key",
    }
    for (flag, value), message in bad.items():
        text = main(name, flag, value)
        assert isinstance(text, str) and text.startswith(f"{name}.py: error: "), (flag, value, text)
        assert re.search(message, text) and "\n" not in text, text
    assert not list(tmp_path.glob("*/*/checkpoint.pt")) and wandb.run is None


# A run


def test_same_seed_same_run_whatever_is_logged(name, short_run):
    run = short_run(name)
    history = run.history
    assert history and all(isinstance(step, int) and isinstance(value, float) for step, value in history)
    assert 0 < history[0][0] <= history[-1][0] < 2 * run.args.total_timesteps
    module, args = quick(name, "--log-interval", "100000", "--eval-episodes", "0")
    quiet, history_quiet = module.train(args)
    same = history == history_quiet and np.array_equal(weights(run.agent), weights(quiet))
    assert same or name == "ga3c"  # where nobody waits for anybody
    other, _ = module.train(quick(name, "--seed", "2", "--eval-episodes", "0")[1])
    assert not np.array_equal(weights(run.agent), weights(other))


def test_evaluate(name, short_run):
    """Episodes side by side: the first of each environment, the same again, cut where none ends."""
    run, module = short_run(name), import_module(name)
    returns = module.evaluate(run.agent, run.args, 3)
    assert len(returns) == 3 and all(isinstance(value, float) for value in returns)
    assert returns == module.evaluate(run.agent, run.args, 3)


def test_terminal_output(name, short_run):
    run = short_run(name)
    lines = run.out.splitlines()
    steps = [line for line in lines if line.startswith("step ")]
    head = next(line for line in lines if line.startswith(name))
    assert re.fullmatch(rf"{name}.py  {run.args.env_id}  cpu  {re.escape(str(run.path.parent))}", head)
    assert len(steps) == 4
    line = r"step +[\d,]+  return +(-?[\d.]+|nan)  +[\d,]+ steps/s +\d+ s left"
    assert all(re.fullmatch(line, text) for text in steps), steps
    assert re.fullmatch(r"evaluation  return -?[\d.]+ ± [\d.]+  2 greedy episodes", lines[-2])
    assert re.fullmatch(rf"checkpoint  {re.escape(str(run.path))}  step [\d,]+", lines[-1])


def test_checkpoint_and_resume(name, short_run, tmp_path, capsys):
    run, module = short_run(name), import_module(name)
    assert re.fullmatch(rf"{run.args.env_id}__{name}__1__[0-9a-f]+", run.path.parent.name)
    assert [path.name for path in run.path.parent.iterdir()] == ["checkpoint.pt"]
    checkpoint = torch.load(run.path, weights_only=True)
    assert checkpoint["script"] == name and checkpoint["flags"] == vars(run.args)
    assert 0 < checkpoint["global_step"] < 2 * 2048 and run.path.parent.name.endswith(f"__{checkpoint['run_id']}")

    path, copy = (tmp_path / folder / "checkpoint.pt" for folder in ("here", "there"))
    for copied in (path, copy):  # a resumed run goes on in its checkpoint's folder
        copied.parent.mkdir()
        shutil.copy(run.path, copied)
    complete, history = module.train(quick(name, "--resume", str(path))[1])  # only evaluates
    assert history == [] and np.array_equal(weights(run.agent), weights(complete))
    flags = ["--total-timesteps", "4096", "--resume"]
    capsys.readouterr()
    further, history = module.train(quick(name, *flags, str(path))[1])
    assert checkpoint["global_step"] < history[0][0] and 4096 <= history[-1][0] + 1000
    assert not np.array_equal(weights(run.agent), weights(further))
    logged = r"^step +2,[5-9]\d\d " if name in WHOLE_EPISODES else r"^step +2,560 "
    assert re.search(logged, capsys.readouterr().out, re.M)
    assert torch.load(path, weights_only=True)["run_id"] == checkpoint["run_id"]
    assert not list(tmp_path.glob("runs/*"))
    again, history_again = module.train(quick(name, *flags, str(copy), "--eval-episodes", "0")[1])
    assert (history == history_again and np.array_equal(weights(further), weights(again))) or name == "ga3c"


def test_checkpoints_that_do_not_fit_are_refused(name, short_run, tmp_path):
    path = short_run(name).path
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
            import_module(name).train(quick(name, "--resume", file)[1])
        assert "\n" not in str(error.value) and len(str(error.value)) < 350
    assert not list(tmp_path.glob("runs/*"))


def test_a_full_disk_keeps_the_last_checkpoint(name, short_run, tmp_path):
    if not Path("/dev/full").exists():
        pytest.skip("takes Linux's /dev/full")
    before = shutil.copy(short_run(name).path, tmp_path / "checkpoint.pt").read_bytes()
    (tmp_path / "checkpoint.tmp").symlink_to("/dev/full")
    text = main(name, "--total-timesteps", "4096", "--resume", str(tmp_path / "checkpoint.pt"))
    assert text.startswith(f"{name}.py: error: ") and "No space left on device" in text and "\n" not in text
    assert (tmp_path / "checkpoint.pt").read_bytes() == before and wandb.run is None


def test_signals_end_the_run_with_a_checkpoint(name, tmp_path):
    """SIGTERM, logged by W&B, and Ctrl-C, not logged, a run each, side by side, in the shell."""
    flags = "--total-timesteps 100000000 --log-interval 1000"
    command = [sys.executable, PATHS[name], *QUICK.get(name, QUICK["default"]).split(), *flags.split()]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    codes, runs = {signal.SIGTERM: 143, signal.SIGINT: 130}, {}
    for signum, mode in zip(codes, ("offline", "disabled"), strict=True):
        own = ["--wandb-mode", mode, "--run-dir", str(signum.value)]
        runs[signum] = subprocess.Popen([*command, *own], **options)
    for signum, process in runs.items():
        for line in process.stdout:
            if line.startswith("step"):
                break
        time.sleep(0.2)
        process.send_signal(signum)
    for signum, process in runs.items():
        out, err = process.communicate(timeout=120)  # seconds, but on a busy machine
        assert process.returncode == codes[signum], err
        assert "checkpoint  " in out and "Traceback" not in err
        assert ("wandb sync" in err) == (signum == signal.SIGTERM)
        (path,) = Path(str(signum.value)).glob("*/*")
        step = torch.load(path, weights_only=True)["global_step"]
        assert path.name == "checkpoint.pt" and f"step {step:,}" in out and step > 1000
    more = 600 * getattr(quick(name)[1], "num_envs", 1)  # an episode ends, also one of 500 steps
    module, args = quick(name, "--resume", str(path), "--total-timesteps", str(step + max(more, 5_000)))
    _, history = module.train(args)
    assert history and history[0][0] > step


def test_rewards_that_are_not_finite_end_the_run(name, tmp_path):
    """NaN from the 300th step on: a line with advice, and weights as they were before."""
    module, args = quick(name, "--env-id", NAN_ENV.get(name, NAN_ENV["default"]), "--total-timesteps", "20000")
    with pytest.raises(ValueError, match=r"not finite: lower --learning-rate, or look for NaN in probes:") as error:
        module.train(args)
    assert "\n" not in str(error.value) and wandb.run is None
    (path,) = tmp_path.glob("runs/*/checkpoint.pt")
    checkpoint = torch.load(path, weights_only=True)
    assert 250 <= checkpoint["global_step"] < 300 * getattr(args, "num_envs", 1) + 1_000
    assert all(p.isfinite().all() for p in checkpoint["agent"].values())


def test_an_environment_that_raises_ends_the_run_with_its_own_error(name, tmp_path, capfd, monkeypatch):
    # Spawned: what is forked from a server prints where the server does, which another test has started.
    monkeypatch.setattr(torch.multiprocessing, "get_context", multiprocessing.get_context)
    env_id = "probes:CrashTable-v0" if name == "tabular_q" else "probes:Crash-v0"
    module, args = quick(name, "--env-id", env_id, "--total-timesteps", "20000")
    expected = module.RunError if name in PROCESSES else ZeroDivisionError  # a process shows it, the parent says so
    with pytest.raises(expected, match=f"{PROCESSES[name]} 0" if name in PROCESSES else "by its\nstep"):
        module.train(args)
    assert name not in PROCESSES or "ZeroDivisionError: by its" in capfd.readouterr().err
    (path,) = tmp_path.glob("runs/*/checkpoint.pt")
    assert torch.load(path, weights_only=True)["global_step"] >= 900 and wandb.run is None


def test_wandb_offline_run_read_back(name, tmp_path, capfd):
    """What W&B holds after a run, its video included."""
    wandb.teardown()  # which makes it forget the folder of an earlier test
    module, args = quick(name, "--wandb-mode", "offline", "--seed", "7", "--capture-video")
    module.train(args)
    out, err = capfd.readouterr()
    assert "wandb leet" in err and "wandb sync" in err
    (folder,) = tmp_path.glob("wandb/offline-run-*")
    leet = [Path(sys.executable).parent / "wandb", "leet", "inspect", "--json"]
    summary = json.loads(subprocess.check_output([*leet, "--summary", folder]))
    (run_folder,) = tmp_path.glob("runs/*")
    (video,) = run_folder.glob("video/*.mp4")
    checkpoint = torch.load(run_folder / "checkpoint.pt", weights_only=True)
    assert (summary["name"], summary["state"], summary["exit_code"]) == (run_folder.name, "finished", 0)
    assert summary["run_id"] == checkpoint["run_id"] and summary["project"] == "reference-rl"
    assert summary["config"] == checkpoint["flags"] | {"torch": torch.__version__}
    assert summary["summary"]["global_step"] == checkpoint["global_step"]
    assert video.stat().st_size > 1000 and summary["summary"]["eval/video"]["size"] == video.stat().st_size
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


def test_a_video_that_cannot_be_made_costs_no_training(name, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "moviepy", None)
    text = main(name, "--capture-video", "--total-timesteps", "512")
    assert re.fullmatch(rf"{name}.py: error: MoviePy is not installed.*", text)
    assert list(tmp_path.glob("runs/*/checkpoint.pt"))
