"""What every command does about its own process: names of every kind, JAX's flags, Ctrl-C, orphans."""

import contextlib
import io
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

import cfmlc_jax
from cfmlc_jax import cli as commands
from cfmlc_jax import main as main_command
from cfmlc_jax import processes
from cfmlc_jax.errors import InputError, RunError
from cfmlc_jax.predict import __main__ as predict
from cfmlc_jax.report import __main__ as report

TESTS = Path(__file__).parent
TINY = f"--config={TESTS / 'configs' / 'tiny.py'}"
ENVIRONMENT = os.environ | {
    "PYTHONPATH": str(TESTS.parent),
    "XLA_FLAGS": "--xla_backend_optimization_level=0",
}
UNDECODABLE = os.fsdecode(b"caf\xe9")  # as a path may be: Latin-1 in a world of UTF-8


def ascii_streams(monkeypatch):
    """Give stdout and stderr that take ASCII alone; a function of a stream's name: what was written to it."""
    streams = {name: io.TextIOWrapper(io.BytesIO(), encoding="ascii") for name in ("stdout", "stderr")}
    for name, stream in streams.items():
        monkeypatch.setattr(sys, name, stream)

    def written(name):
        streams[name].flush()
        return streams[name].buffer.getvalue().decode("ascii")

    return written


@pytest.fixture
def photos(tmp_path):
    root = tmp_path / "photos"
    root.mkdir()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(root / "a.jpg")
    for split in ("train", "val"):
        (root / f"{split}.csv").write_text("a.jpg,café;日本\n", encoding="utf-8")
    return root


@pytest.mark.parametrize("kind", [InputError, RunError])
def test_a_command_prints_an_error_on_one_line(capsys, kind):
    @commands.command
    def main(name):
        if name is not None:
            raise kind(f"{name} is missing")
        return 7

    assert main(None) == 7
    assert main("a\nb.jpg") == 1
    assert capsys.readouterr().err == "error: a\\nb.jpg is missing\n"


def test_a_defect_of_a_command_is_not_hidden():
    @commands.command
    def main():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        main()


@pytest.mark.parametrize(
    ("run", "arguments"),
    [(main_command.main, ["--help"]), (predict.main, ["--help"]), (report.main, ["--help"])],
)
def test_help_is_printed_on_an_ascii_stdout(monkeypatch, run, arguments):
    written = ascii_streams(monkeypatch)
    monkeypatch.setattr(sys, "argv", ["command", *arguments])
    with contextlib.suppress(SystemExit):  # argparse's
        assert run() == 0
    assert "\\u" in written("stdout")  # the … of an argument


@pytest.mark.parametrize("run", [main_command.main, predict.main, report.main])
def test_the_version_is_printed(monkeypatch, capsys, run):
    monkeypatch.setattr(sys, "argv", ["command", "--version"])
    with contextlib.suppress(SystemExit):  # argparse's
        assert run() == 0
    assert capsys.readouterr().out == f"cfmlc_jax {cfmlc_jax.__version__}\n"


def test_non_ascii_names_are_printed_on_ascii_streams(monkeypatch, tmp_path, photos):
    written = ascii_streams(monkeypatch)
    config = f"--config={TESTS.parent / 'configs' / 'own_images.py'}"
    arguments = [config, f"--config.data.root={photos}", f"--workdir={tmp_path / 'läufe'}"]
    monkeypatch.setattr(sys, "argv", ["main", *arguments])
    assert main_command.main() == 1  # the image is in both splits
    assert "l\\xe4ufe" in written("stdout")
    assert "(caf\\xe9)" in written("stdout")
    assert report.main([str(tmp_path / UNDECODABLE)]) == 1
    assert "\\udce9" in written("stderr")


def test_a_workdir_name_that_is_not_utf8(command):
    code, _, err = command(TINY, f"--workdir={UNDECODABLE}")
    assert code == 1
    assert len(err.splitlines()) == 1
    assert f"error: --workdir {UNDECODABLE!r} has the character" in err


def test_a_run_in_a_folder_whose_name_is_not_utf8(command, monkeypatch, tmp_path):
    (tmp_path / UNDECODABLE).mkdir()
    monkeypatch.chdir(tmp_path / UNDECODABLE)
    code, _, err = command(TINY)
    assert code == 1
    assert "checkpoints saved there could not be read" in err.splitlines()[-1]


@pytest.fixture
def kept_flags():
    """JAX's settings as they were, afterwards."""
    names = ("jax_numpy_rank_promotion", "jax_debug_infs", "jax_platforms")
    values = {name: getattr(jax.config, name) for name in names}
    yield
    for name, value in values.items():
        jax.config.update(name, value)


@pytest.mark.usefixtures("kept_flags")
@pytest.mark.parametrize(
    ("arguments", "name", "value"),
    [
        (["--jax_numpy_rank_promotion=warn"], "jax_numpy_rank_promotion", "warn"),
        (["-jax_numpy_rank_promotion", "allow"], "jax_numpy_rank_promotion", "allow"),
        (["--jax_debug_infs"], "jax_debug_infs", True),
        (["--jax_debug_infs", "--nojax_debug_infs"], "jax_debug_infs", False),
        (["--jax_debug_infs=true"], "jax_debug_infs", True),
    ],
)
def test_flags_of_jax_take_effect(arguments, name, value):
    config = main_command.parse(main_command.define_flags(), ["main", *arguments, TINY])
    assert config.data.source == "scenes"
    assert getattr(jax.config, name) == value


@pytest.mark.usefixtures("kept_flags")
@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("--jax_platfoms=cpu", ["jax_platfoms", "jax_platforms"]),
        ("--nojax_nothing", ["nojax_nothing"]),
        ("--jax_num_cpu_devices=two", ["jax_num_cpu_devices=two"]),
        ("--jax_numpy_rank_promotion=never", ["allow|warn|raise"]),
        ("--jax_debug_infs=perhaps", ["jax_debug_infs=perhaps"]),
        ("--jax_platforms", ["Missing value for flag --jax_platforms"]),
        ("--workdirs=run", ["workdirs"]),
    ],
)
def test_flags_of_jax_are_checked(command, argument, words):
    code, _, err = command(TINY, argument)
    assert code == 1
    assert len(err.splitlines()) == 1
    for word in words:
        assert word in err


def test_a_missing_platform_is_an_error(monkeypatch):
    def unable():
        raise RuntimeError("Unable to initialize backend 'cuda':\n  none")

    monkeypatch.setattr(jax, "devices", unable)
    with pytest.raises(InputError, match=r"no device .*backend 'cuda': none.; check --jax_platforms"):
        processes.require_devices()


def start(module, *arguments):
    # Ctrl-C is ignored in what a shell runs in the background, and so in what the tests run then.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return subprocess.Popen(
            [sys.executable, "-m", f"cfmlc_jax.{module}", *arguments],
            env=ENVIRONMENT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            text=True,
        )
    finally:
        signal.signal(signal.SIGINT, before)


ENDING = {signal.SIGINT: "interrupted", signal.SIGTERM: "asked to end"}


def listens(process):
    """Whether the process takes signals as a command does: they are blocked there, and a thread waits for them."""
    blocked = next(
        line.split()[1]
        for line in Path(f"/proc/{process.pid}/status").read_text().splitlines()
        if line.startswith("SigBlk")
    )
    threads = len(os.listdir(f"/proc/{process.pid}/task"))
    return all(int(blocked, 16) >> (number - 1) & 1 for number in ENDING) and threads > 1


def members(group):
    """The living processes of a group."""
    processes_of_group = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state, _, process_group = (folder / "stat").read_text().rpartition(")")[2].split()[:3]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(process_group) == group and state != "Z":
            processes_of_group.append(int(folder.name))
    return processes_of_group


def wait_for(condition, seconds):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


needs_proc = pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="processes are looked at in /proc"
)


@needs_proc
@pytest.mark.parametrize(
    ("number", "module", "arguments"),
    [
        (signal.SIGINT, "main", [TINY]),
        (signal.SIGTERM, "main", [TINY]),
        (signal.SIGINT, "main", ["--mode=evaluate", "--checkpoint=nowhere"]),
        (signal.SIGINT, "predict", ["--checkpoint=nowhere", "a.jpg"]),
        (signal.SIGTERM, "report", ["nowhere"]),
        (signal.SIGINT, "check", ["nowhere"]),
        (signal.SIGINT, "torch_weights", ["nowhere", "there"]),
    ],
)
def test_a_signal_while_modules_are_imported(number, module, arguments):
    process = start(module, *arguments)
    wait_for(lambda: listens(process), 60)
    os.killpg(process.pid, number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert len(err.splitlines()) == 1
    assert err.startswith(ENDING[number])


@needs_proc
@pytest.mark.parametrize(
    ("number", "moment"), [(signal.SIGINT, "compiling"), (signal.SIGINT, "step "), (signal.SIGKILL, "step ")]
)
def test_no_worker_outlives_its_run(tmp_path, number, moment):
    run = tmp_path / "sweep" / "run"
    process = start("main", TINY, f"--workdir={run}", "--config.data.workers=1", "--config.train.epochs=100")
    try:
        lines = [process.stderr.readline()]
        while lines[-1] and not lines[-1].startswith(moment):
            lines.append(process.stderr.readline())
        assert lines[-1], "".join(lines)
        assert len(members(process.pid)) > 2
        if number == signal.SIGINT:  # as a terminal does, and an impatient user
            os.killpg(process.pid, number)
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)
        process.wait(timeout=10)
        wait_for(lambda: not members(process.pid), 20)
        lines = [line for line in process.stderr.read().splitlines() if not line.startswith("step ")]
        if number == signal.SIGINT:
            assert process.returncode == 130
            assert lines == [
                "interrupted; the same command starts again, a training from its last checkpoint"
            ]
        # What was not begun leaves nothing.
        assert tmp_path.joinpath("sweep").exists() == (moment == "step ")
        assert (run / ".lock").exists() == (number == signal.SIGKILL)
    finally:
        for member in members(process.pid):
            os.kill(member, signal.SIGKILL)
        process.communicate()


@needs_proc
def test_sigterm_to_all_processes_of_a_run_is_left_to_the_first(tmp_path):
    """As `timeout` and schedulers send it. The worker has just started."""
    process = start("main", TINY, f"--workdir={tmp_path / 'run'}", "--config.data.workers=1")
    try:
        wait_for(lambda: len(members(process.pid)) > 2, 120)
        for _ in range(2):
            os.killpg(process.pid, signal.SIGTERM)
        _, err = process.communicate(timeout=120)
        assert process.returncode == 143, err
        assert err.splitlines()[-1] == "asked to end; saved step 1 of 40; the same command resumes"
        wait_for(lambda: not members(process.pid), 20)
    finally:
        for member in members(process.pid):
            os.kill(member, signal.SIGKILL)


IN_A_CONTAINER = ["unshare", "--map-root-user", "--pid", "--fork"]


@needs_proc
@pytest.mark.skipif(
    shutil.which("unshare") is None
    or subprocess.run([*IN_A_CONTAINER, "true"], check=False, capture_output=True).returncode != 0,
    reason="this system lets nobody have a first process",
)
def test_sigterm_ends_the_first_process_of_a_container():
    program = (
        "import time; from cfmlc_jax import cli; cli.end_at_interrupt();"
        "cli.at_interrupt(lambda: print('swept', flush=True)); print('ready', flush=True); time.sleep(20)"
    )
    container = subprocess.Popen(
        [*IN_A_CONTAINER, sys.executable, "-c", program],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert container.stdout.readline() == "ready\n"
    (first,) = Path(f"/proc/{container.pid}/task/{container.pid}/children").read_text().split()
    os.kill(int(first), signal.SIGTERM)
    assert container.communicate(timeout=60) == ("swept\n", "asked to end\n")
    assert container.returncode == 143


def test_sigterm_is_left_to_a_handler_of_python_while_there_is_one():
    program = (
        "import os, signal, time; from cfmlc_jax import cli; cli.end_at_interrupt('nothing is done'); asked = [];"
        "before = signal.signal(signal.SIGTERM, lambda *_: asked.append(1)); os.kill(os.getpid(), signal.SIGTERM)\n"
        "while not asked: time.sleep(0.01)\n"
        "signal.signal(signal.SIGTERM, before); os.kill(os.getpid(), signal.SIGTERM); time.sleep(20)"
    )
    done = subprocess.run([sys.executable, "-c", program], env=ENVIRONMENT, check=False, capture_output=True)
    assert (done.returncode, done.stderr) == (143, b"asked to end; nothing is done\n")


def test_invalid_flags_are_one_line_errors():
    parser = commands.Parser(prog="command")
    parser.add_argument("--steps", type=commands.whole_number(0))
    assert parser.parse_args(["--steps=0"]).steps == 0
    for argument, message in (
        ("--steps=-1", "argument --steps: '-1' is not a whole number of 0 or more"),
        ("--steps=1.0", "'1.0' is not a whole number"),
        ("--ste=1", "unrecognized arguments: --ste=1"),
        ("a\nb", r"unrecognized arguments: a\\nb; --help lists the arguments"),
    ):
        with pytest.raises(InputError, match=message) as error:
            parser.parse_args([argument])
        assert "\n" not in str(error.value)


@needs_proc
def test_ctrl_c_stays_ignored_if_the_parent_ignores_it():
    program = (
        "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_IGN);"
        "from cfmlc_jax import cli; cli.end_at_interrupt();"
        "from multiprocessing import shared_memory;"
        "os.kill(os.getpid(), signal.SIGINT); shared_memory.SharedMemory(create=True, size=9); cli.end(7)"
    )
    done = subprocess.run([sys.executable, "-c", program], env=ENVIRONMENT, check=False, capture_output=True)
    # Nor does Python warn of the memory shared with workers, which it removes.
    assert (done.returncode, done.stderr) == (7, b"")


@pytest.mark.parametrize("action", ["lambda: 1 / 0", "lambda: time.sleep(60)"])
def test_an_action_that_fails_or_hangs_does_not_keep_the_process(action):
    program = (
        "import os, signal, time; signal.signal(signal.SIGINT, signal.default_int_handler);"
        "from cfmlc_jax import cli; cli._SECONDS_FOR_ACTIONS = 2.0; cli.end_at_interrupt();"
        f"cli.at_interrupt(lambda: print('swept', flush=True)); cli.at_interrupt({action});"
        "cli.at_interrupt(lambda: print('closed', flush=True));"
        "os.kill(os.getpid(), signal.SIGINT); time.sleep(20)"
    )
    done = subprocess.run([sys.executable, "-c", program], env=ENVIRONMENT, check=False, capture_output=True)
    assert (done.returncode, done.stderr) == (130, b"interrupted\n")
    assert done.stdout == (b"swept\n" if "sleep" in action else b"swept\nclosed\n")


@pytest.mark.parametrize("failure", ["RunError('x cannot be written')", "FileNotFoundError('x')"])
def test_what_fails_because_of_a_signal_is_not_reported(failure):
    """Its actions take from the main thread the files that it writes."""
    program = (
        "import os, signal, threading, time\n"
        "from cfmlc_jax import cli\n"
        "from cfmlc_jax.errors import RunError\n"
        "cli.end_at_interrupt('nothing is done')\n"
        "gone = threading.Event()\n"
        "def remove(): gone.set(); time.sleep(0.5)\n"
        "@cli.command\n"
        "def main():\n"
        "    with cli.if_interrupted(remove):\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "        gone.wait()\n"
        f"        raise {failure}\n"
        "cli.end(main())"
    )
    done = subprocess.run([sys.executable, "-c", program], env=ENVIRONMENT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (130, "interrupted; nothing is done\n")


def test_registered_actions_run_before_the_process_ends():
    """Those of contexts from the innermost on: a lock is released when what it guards is done."""
    program = (
        "import functools, os, signal, time; signal.signal(signal.SIGINT, signal.default_int_handler);"
        "from cfmlc_jax import cli; cli.end_at_interrupt('no more é');"
        "say = lambda word: functools.partial(print, word, flush=True)\n"
        "with cli.if_interrupted(say('released')):\n"
        "    with cli.if_interrupted(say('never')): pass\n"
        "    with cli.if_interrupted(say('swept')):\n"
        "        cli.at_interrupt(say('reported')); os.kill(os.getpid(), signal.SIGINT); time.sleep(20)"
    )
    done = subprocess.run([sys.executable, "-c", program], env=ENVIRONMENT, check=False, capture_output=True)
    assert (done.returncode, done.stderr) == (130, b"interrupted; no more \\xe9\n")
    assert done.stdout.split() == [b"reported", b"swept", b"released"]


ESCAPE = "\x1b]0;title\x07\x1b[2J"  # changes the title of a terminal, and clears it


@pytest.mark.parametrize("name", [ESCAPE, "a\nerror: b", "\u202egpj.exe"])
def test_names_do_not_command_the_terminal(name, tmp_path, capsys):
    folder = tmp_path / name
    for command, arguments in (
        (report.main, [str(folder)]),
        (predict.main, [f"--checkpoint={folder}", str(folder)]),
    ):
        assert command(arguments) == 1
        out, err = capsys.readouterr()
        assert len(err.splitlines()) == 1
        assert (out + err).replace("\n", "").isprintable()
