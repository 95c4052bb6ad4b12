"""The command: flags, start of the processes, dispatch.

    python -m cfmlc_jax.main --config=configs/scenes.py [--workdir=…] [--mode=train|evaluate]

Exit codes: 0 done; 1 an error, told in one line; 130 interrupted;
143 ended by SIGTERM, the state saved.
"""

import ast
import contextlib
import itertools
import json
import logging
import re
import shutil
import sys
import tempfile
import traceback
from pathlib import Path

from cfmlc_jax import cli

if __name__ == "__main__":  # before the imports that take seconds
    cli.end_at_interrupt("interrupted; the same command starts again, a training from its last checkpoint")

import jax
from absl import flags
from ml_collections import config_flags

from cfmlc_jax import checkpoint as checkpoints
from cfmlc_jax import config as configs
from cfmlc_jax import files, lock, processes
from cfmlc_jax.classify import build, finetune
from cfmlc_jax.classify.evaluate import evaluate_checkpoint
from cfmlc_jax.classify.train import train
from cfmlc_jax.config import older, schema
from cfmlc_jax.engine.hooks import Preempted
from cfmlc_jax.errors import InputError, RunError
from cfmlc_jax.report import page

_LONG = 300  # characters of an error of absl's, which repeats the value
ENDED_BY_SIGTERM = 128 + 15


def define_flags() -> flags.FlagValues:
    """The command's flags, unparsed."""
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", None, "Configuration file, configs/coco.py say.", values)
    flags.DEFINE_string("workdir", None, "Folder of the run; default runs/<name of the config>.", values)
    flags.DEFINE_enum("mode", "train", ["train", "evaluate"], "Train and evaluate, or evaluate only.", values)
    flags.DEFINE_string(
        "checkpoint", None, "With --mode=evaluate: a step's folder, or a run for its best.", values
    )
    flags.DEFINE_string(
        "coordinator", None, "host:port of process 0, where nothing detects a cluster.", values
    )
    flags.DEFINE_integer("num_processes", None, "How many processes, with --coordinator.", flag_values=values)
    flags.DEFINE_integer("process_id", None, "Which of them this is, with --coordinator.", flag_values=values)
    return values


def main() -> int:
    """Run the command line (sys.argv); the exit code."""
    cli.tolerate_every_name()
    values = define_flags()
    if "--help" in sys.argv:
        print(
            f"{__doc__}{values.get_help()}\n\ncfmlc_jax/config/fields.py and classifier.py list the fields for --config.<field>=…"
        )
        print("JAX's own flags are taken too, as --jax_platforms=cpu.")
        return 0
    members: processes.Alone | processes.Together = processes.Alone()
    try:
        config, mistake = _parsed(values)
        members = processes.join(
            *(values[name].value for name in ("coordinator", "num_processes", "process_id")),
            mistake=mistake,
            handled=(Preempted,),
        )
        if mistake is not None:
            raise mistake
        with members:
            processes.require_devices()
            {"train": _train, "evaluate": _evaluate}[values.mode](values, config)
        members.leave()
    except Preempted as event:
        members.leave()
        print(f"{event}; the same command resumes", file=sys.stderr)
        return ENDED_BY_SIGTERM
    except KeyboardInterrupt:
        print("interrupted; the same command resumes from the last checkpoint", file=sys.stderr)
        return cli.INTERRUPTED
    except (InputError, RunError) as error:
        members.fail(error)
        return 1
    return 0


def _parsed(values):
    """The configuration, or what is wrong with it: of several processes all are to hear of it."""
    try:
        config = parse(values, sys.argv)
    except InputError as error:
        return None, error
    # Orbax and Grain report every save and every worker.
    logging.getLogger("absl").setLevel(logging.ERROR)
    return config, None


def _train(values, config):
    if config is None:
        raise InputError(f"--config is missing; {_available()}")
    workdir = _workdir(values)
    files.require_savable(workdir, "workdir")
    build.require_model(config)
    if not _has_checkpoints(workdir):  # a run that has begun may end as it began
        configs.require_trainable(config)
        finetune.require_start(config)
    missing, with_events = _missing_folders(workdir), (workdir / "tensorboard").exists()
    with contextlib.ExitStack() as undo:
        undo.callback(_remove_empty, missing)
        _make(workdir / "report")
        with _held(workdir, "training"):
            _claim(workdir, configs.to_json(config))
            undo.callback(_remove_unless_begun, workdir, with_events)
            cli.at_interrupt(lambda: _forget(workdir, missing, with_events))
            _say(f"workdir {workdir}, {jax.device_count()} {jax.devices()[0].device_kind} device(s)")
            idle = configs.unused(config)
            if idle:
                _say(f"set, but of no use to this run: {', '.join(idle)}")
            train(config, workdir, _say)
            undo.pop_all()
            _report(workdir)


def _evaluate(values, config):
    if values.checkpoint is None and values.workdir is None and config is None:
        raise InputError("--mode=evaluate needs --checkpoint, --workdir or --config")
    given = values.checkpoint is not None
    path = checkpoints.find(files.place(values.checkpoint, "--checkpoint") if given else _workdir(values))
    workdir = _run_of(path) if values.workdir is None else files.place(values.workdir, "--workdir")
    with contextlib.ExitStack() as undo:
        undo.callback(_remove_empty, _missing_folders(workdir))
        _make(workdir / "report")
        _say(f"evaluating {path}")
        # A training in the workdir may go on: reading does it no harm. Only reports must not mix.
        with _held(workdir / "report", "evaluating"):
            evaluate_checkpoint(path, config, workdir / "report", _say)
            undo.pop_all()
            _report(workdir)


def _held(folder, doing):
    """The folder's lock, which the first of the run's processes holds for all."""
    return lock.held(folder, doing) if jax.process_index() == 0 else contextlib.nullcontext()


def _report(workdir):
    """Write the page and say where it is, the last line of all."""
    if jax.process_index() == 0:
        path = page.write(workdir)
        _say(f"\nresults in {workdir / 'report'}\nreport {path}")


def parse(values: flags.FlagValues, arguments: list[str]):
    """Parse the flags, in `arguments` behind the command's name; the configuration, checked, or None.

    Raises:
        InputError: instead of the several kinds and several lines of absl and ml_collections.
    """
    try:
        positional = values(_without_jax_flags(arguments))
    except Exception as error:  # the configuration file's code may raise anything
        known = _flag_error(error, arguments)
        if known is None:
            raise
        raise known from error
    flags.FLAGS.mark_as_parsed()  # Grain reads its own flags' defaults there
    if len(positional) > 1:
        raise InputError(f"unexpected argument {positional[1]!r}; flags are written --name=value")
    if not values["config"].present:
        return None
    config = configs.validate(_loaded(values))
    for name in configs.PATHS:
        path = configs.field(config, name)
        if path:
            files.place(path, f"config.{name}")
    return config


def _without_jax_flags(arguments):
    """The arguments but JAX's own flags, --jax_platforms=cpu say, which take effect here.

    Raises:
        flags.Error: a value of the wrong kind, or a flag that JAX does not have.
    """
    if "jax_platforms" not in flags.FLAGS:  # a second call of JAX's would define them twice
        jax.config.config_with_absl()
    own, rest, names = [], [], []
    remaining = iter(arguments)
    for argument in remaining:
        if not re.match("--?(no)?jax_", argument):
            rest.append(argument)
            continue
        name, separator, _ = argument.lstrip("-").partition("=")
        own.append(argument)
        name = name if name in flags.FLAGS else name.removeprefix("no")
        if name in flags.FLAGS:
            names.append(name)
            if not separator and not flags.FLAGS[name].boolean:
                own += itertools.islice(remaining, 1)
    flags.FLAGS(["", *own])
    for name in names:
        jax.config.update(name, flags.FLAGS[name].value)
    return rest


def _loaded(values):
    """What get_config() returned; a file that is not there is told only on access."""
    try:
        getattr(values.config, "seed", None)
    except (OSError, SyntaxError) as error:
        raise _unreadable(error) from error
    return values.config


def _unreadable(error):
    # ml_collections tells of all the places it tried; the last, after the error's number, counts.
    reason = " ".join(str(error).split()).rpartition("] ")[2]
    return InputError(f"--config cannot be read: {reason}; {_available()}")


def _flag_error(error, arguments):
    """What to raise for an exception from the parsing of flags, which runs the configuration file; None: as it is."""
    inside = _in_config_file(error, arguments)
    if inside is not None:
        return inside
    if isinstance(error, flags.Error | RecursionError):
        text = str(error)
        if "Error whilst parsing config file" in text:  # by the call of get_config() itself
            text = f"--config cannot be used: {text.strip().splitlines()[-1]}"
        text = " ".join(text.split())
        return InputError(text if len(text) < _LONG else f"{text[:_LONG]}…")
    if isinstance(error, AttributeError | KeyError):
        return InputError(_unknown_field(error, arguments))
    if isinstance(error, OSError | SyntaxError):
        return _unreadable(error)
    return None


def _in_config_file(error, arguments):
    """An `InputError` with the file's line for what its code raised; None for an exception of another place."""
    pairs = [each.lstrip("-").partition("=") for each in arguments]
    named = [
        value or following
        for (flag, _, value), (following, *_) in zip(pairs, [*pairs[1:], ("",)])
        if flag == "config"
    ]
    file = Path(named[-1].partition(":")[0]).name if named else ""
    while error is not None:
        frames = [f for f in traceback.extract_tb(error.__traceback__) if Path(f.filename).name == file]
        if frames:
            return InputError(
                f"{frames[-1].filename}, line {frames[-1].lineno} ({frames[-1].line}): {_reason(error)}"
            )
        error = error.__context__  # ml_collections and absl raise theirs in its place
    return None


def _reason(error):
    text = " ".join(str(error).split())
    if isinstance(error, InputError):
        return text
    types = re.search(r"field '(.*)' \(ref.*type <class '(.*)'> and cannot .* <class '(.*)'>", text)
    if types is None:
        return f"{type(error).__name__}: {text}"
    wanted = types[3].rpartition(".")[2]
    return f"{types[1]} must be {wanted}, not {types[2]}"


def _unknown_field(error, arguments):
    known = list(schema.names(configs.default()))
    for argument in arguments:
        name, _, text = argument.lstrip("-").partition("=")
        name = name.removeprefix("config.")
        if argument.lstrip("-").startswith("config.") and name not in known:
            return (
                older.moved(name, _literal(text))
                or f"config has no field {name}; {schema.nearest(name, known)}"
            )
    return f"--config cannot be used: {' '.join(str(error).split())}"


def _literal(text):
    """The value that a flag's text stands for; what is no literal is a string."""
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return text


def _available():
    found = sorted(str(path) for path in Path("configs").glob("*.py"))
    return f"give one of {', '.join(found)}" if found else "give --config=FILE.py with a get_config()"


def _workdir(values):
    if values.workdir is not None:
        return files.place(values.workdir, "--workdir").absolute()
    if values.config is None:
        raise InputError("--workdir or --config is missing")
    name = config_flags.get_config_filename(values["config"])
    _, _, variant = values["config"].serialize().partition(":")
    stem = Path(name).stem
    return Path("runs", f"{stem}_{variant}" if variant else stem).absolute()


def _run_of(checkpoint):
    """The run that a checkpoint belongs to, or a place of its own for one that was moved."""
    if checkpoint.parent.name == "checkpoints":
        return checkpoint.parent.parent
    return Path("runs", checkpoint.name).absolute()


def _claim(workdir, fields):
    """Make the workdir this configuration's. A run that never got to a checkpoint has no claim to it.

    Raises:
        InputError: it is another configuration's.
    """
    path = workdir / "config.json"
    if path.exists() and _has_checkpoints(workdir):
        differences = configs.differences(configs.completed(_fields(path)), fields)
        if differences:
            raise InputError(
                f"workdir {workdir} is a run of another configuration ({'; '.join(differences)}); "
                "take another --workdir, or remove that one"
            )
    if jax.process_index() == 0:
        files.write_text(path, json.dumps(fields, indent=2) + "\n")


def _fields(path):
    """The fields that a run's config.json holds."""
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} is damaged ({error}); restore it, or take another --workdir") from error
    if not isinstance(fields, dict):
        raise InputError(f"{path} is damaged (no fields in it); restore it, or take another --workdir")
    return fields


def _has_checkpoints(workdir):
    """Whether there are checkpoints, or some that could not be read and were set aside."""
    return any(any((workdir / place).glob("[0-9]*")) for place in ("checkpoints", "damaged"))


def _missing_folders(workdir):
    """Folders that a run makes and that are not there yet, the innermost first."""
    folders = (workdir / "report", workdir / "checkpoints", workdir, *workdir.parents)
    return [folder for folder in folders if not folder.exists()]


def _remove_empty(folders):
    if jax.process_index() == 0:
        for folder in folders:
            with contextlib.suppress(OSError):  # something is in it, or it was never made
                folder.rmdir()


def _remove_unless_begun(workdir, with_events):
    """Take away a failed run's files if it has no checkpoint and no logged value: it only looks like one.

    `with_events`: there were event files before it.
    """
    log = workdir / "metrics.jsonl"
    logged = log.exists() and log.stat().st_size > 0
    if logged or _has_checkpoints(workdir) or jax.process_index() != 0:
        return
    log.unlink(missing_ok=True)
    (workdir / "config.json").unlink(missing_ok=True)
    if not with_events:
        shutil.rmtree(workdir / "tensorboard", ignore_errors=True)


def _forget(workdir, missing, with_events):
    """What is left to do where this process, which holds the lock, is interrupted."""
    _remove_unless_begun(workdir, with_events)
    if jax.process_index() == 0:
        (workdir / lock.FILE).unlink(missing_ok=True)
    _remove_empty(missing)


def _make(folder):
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # A file without a name, where the system has such: several processes try at once.
        with tempfile.TemporaryFile(dir=folder, prefix=".writable"):
            pass
    except OSError as error:
        raise InputError(f"{folder} cannot be written ({error.strerror}); take another --workdir") from error


def _say(text):
    if jax.process_index() == 0:
        print(text, flush=True)


if __name__ == "__main__":
    cli.end(main())
