"""The command: flags, start of the processes, dispatch.

    python -m cfmlc_jax.main --config=configs/scenes.py [--workdir=…] [--mode=train|evaluate]

Exit codes: 0 done; 1 an error, told in one line; 130 interrupted;
143 ended by SIGTERM, the state saved.
"""

import difflib
import itertools
import json
import logging
import re
import sys
import tempfile
from pathlib import Path

from cfmlc_jax import command

if __name__ == "__main__":  # before the imports that take seconds
    command.end_at_interrupt(
        "interrupted; the same command starts again, a training from its last checkpoint"
    )

import jax
from absl import flags
from ml_collections import config_flags

from cfmlc_jax import config as configs
from cfmlc_jax import files, processes
from cfmlc_jax.checkpoint import manager
from cfmlc_jax.errors import InputError, RunError
from cfmlc_jax.loop.evaluate import evaluate_checkpoint
from cfmlc_jax.loop.train import Preempted, train
from cfmlc_jax.report.html import page
from cfmlc_jax.report.names import printable

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
    command.tolerate_every_name()
    values = define_flags()
    if "--help" in sys.argv:
        print(f"{__doc__}{values.get_help()}\n\ncfmlc_jax/config.py lists the fields for --config.<field>=…")
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
        print(f"{event}; the same command goes on", file=sys.stderr)
        return ENDED_BY_SIGTERM
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        return command.INTERRUPTED
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
    _claim(workdir, configs.to_json(config))
    _say(f"workdir {workdir}, {jax.device_count()} {jax.devices()[0].device_kind} device(s)")
    train(config, workdir, _say)
    _report(workdir)


def _evaluate(values, config):
    if values.checkpoint is None and values.workdir is None and config is None:
        raise InputError("--mode=evaluate needs --checkpoint, --workdir or --config")
    path = manager.find(Path(values.checkpoint) if values.checkpoint else _workdir(values))
    workdir = Path(values.workdir) if values.workdir else _run_of(path)
    _make(workdir / "report")
    _say(f"evaluating {path}")
    evaluate_checkpoint(path, config, workdir / "report", _say)
    _report(workdir)


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
        # A file that is not there is told only now, on access.
        config = None if values.config is None else configs.validate(values.config)
    except flags.Error as error:
        # An exception inside a configuration file arrives as a traceback in the message.
        raise InputError(str(error).strip().splitlines()[-1].strip()) from error
    except (AttributeError, KeyError) as error:
        raise InputError(_unknown_field(error, arguments)) from error
    except (OSError, SyntaxError) as error:
        # ml_collections tells of all the places it tried; the last, after the error's number, counts.
        reason = " ".join(str(error).split()).rpartition("] ")[2]
        raise InputError(f"--config cannot be read: {reason}; {_available()}") from error
    flags.FLAGS.mark_as_parsed()  # Grain reads its own flags' defaults there
    if len(positional) > 1:
        raise InputError(f"unexpected argument {positional[1]!r}; flags are written --name=value")
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


def _unknown_field(error, arguments):
    known = list(configs.flat(configs.to_json(configs.default())))
    for argument in arguments:
        name = argument.lstrip("-").split("=")[0].removeprefix("config.")
        if argument.lstrip("-").startswith("config.") and name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {near[0]}?" if near else "cfmlc_jax/config.py lists the fields"
            return f"config has no field {name}; {hint}"
    return f"--config cannot be used: {' '.join(str(error).split())}"


def _available():
    found = sorted(str(path) for path in Path("configs").glob("*.py"))
    return f"give one of {', '.join(found)}" if found else "give --config=FILE.py with a get_config()"


def _workdir(values):
    if values.workdir:
        return Path(values.workdir).expanduser().absolute()
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
        InputError: it cannot be written, or is another configuration's.
    """
    if any("\ud800" <= character <= "\udfff" for character in str(workdir)):
        raise InputError(
            f"workdir {printable(str(workdir))} has bytes that are no text, under which checkpoints cannot be "
            "written; take another --workdir"
        )
    _make(workdir / "report")
    path = workdir / "config.json"
    if path.exists() and any((workdir / "checkpoints").glob("[0-9]*")):
        try:
            stored = configs.completed(json.loads(path.read_text(encoding="utf-8")))
            differences = configs.differences(stored, fields)
        except json.JSONDecodeError as error:
            raise InputError(f"{path} is damaged ({error}); restore it, or take another --workdir") from error
        if differences:
            raise InputError(
                f"workdir {workdir} is a run of another configuration ({'; '.join(differences)}); "
                "take another --workdir, or remove that one"
            )
    if jax.process_index() == 0:
        files.write_text(path, json.dumps(fields, indent=2) + "\n")


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
    command.end(main())
