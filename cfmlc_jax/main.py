"""The main command: it parses the flags, starts the processes, and trains or evaluates.

    python -m cfmlc_jax.main --config=configs/scenes.py [--workdir=…] [--mode=train|evaluate|plan]

Several processes of it, started by srun, mpirun, on a TPU pod or as an Indexed Job of Kubernetes, do one run together.

Exit codes: 0 success; 1 an error, which is printed in one line; 130 interrupted; 143 ended by SIGTERM, in training
after the state was saved.
"""

import ast
import contextlib
import itertools
import logging
import re
import shutil
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from cfmlc_jax import cli

if __name__ == "__main__":  # before the imports, which take seconds
    cli.end_at_interrupt("the same command starts again, a training from its last checkpoint")
    cli.greet(sys.argv)

import jax
from absl import flags
from ml_collections import config_flags

from cfmlc_jax import checkpoint as checkpoints
from cfmlc_jax import commands, files, lock, processes
from cfmlc_jax import config as configs
from cfmlc_jax.buckets import Address
from cfmlc_jax.cgn import build as cgn_build
from cfmlc_jax.cgn.imagenet import build as imagenet_build
from cfmlc_jax.cgn.imagenet.train import train as train_imagenet
from cfmlc_jax.cgn.train import train as train_cgn
from cfmlc_jax.classify import build, finetune
from cfmlc_jax.classify.evaluate import evaluate_checkpoint
from cfmlc_jax.classify.train import train
from cfmlc_jax.clusters import detect
from cfmlc_jax.config import older, schema, shipped
from cfmlc_jax.config.reporting import reporting
from cfmlc_jax.config.workdir import claim, has_checkpoints
from cfmlc_jax.engine import compilation, parameters, profile
from cfmlc_jax.engine.hooks import Preempted
from cfmlc_jax.engine.instruments import Instruments
from cfmlc_jax.engine.reporting import require_place
from cfmlc_jax.engine.units import parsed_bytes
from cfmlc_jax.errors import BucketError, InputError, RunError
from cfmlc_jax.planning import command, topology
from cfmlc_jax.regions import build as region_build
from cfmlc_jax.regions.evaluate import evaluate_checkpoint as evaluate_regions
from cfmlc_jax.regions.train import train as train_regions
from cfmlc_jax.report import page
from cfmlc_jax.results.headline import headline

_LONG = 300  # the most characters of an error of absl: it repeats the value
ENDED_BY_SIGTERM = 128 + 15


def define_flags() -> flags.FlagValues:
    """The command's flags, unparsed."""
    values = flags.FlagValues()
    config_flags.DEFINE_config_file(
        "config",
        None,
        f"Configuration, with a variant behind a colon: a file, or one of {', '.join(shipped.names())}.",
        values,
    )
    flags.DEFINE_string(
        "workdir",
        None,
        "Folder of the run; default runs/<name of the config>, with _<variant> if it has one.",
        values,
    )
    flags.DEFINE_enum(
        "mode",
        "train",
        ["train", "evaluate", "plan"],
        "Train and evaluate; evaluate only; or plan: print what a training needs, without data.",
        values,
    )
    flags.DEFINE_string(
        "checkpoint", None, "With --mode=evaluate: a step's folder, or a run for its best.", values
    )
    flags.DEFINE_string(
        "plan_for", None, f"With --mode=plan: devices that need not be there, {topology.EXAMPLES}.", values
    )
    flags.DEFINE_string(
        "memory", None, "With --mode=plan: memory of a device; finds what fits, as in 24G.", values
    )
    flags.DEFINE_integer("classes", None, "With --mode=plan: classes of the data.", 1, flag_values=values)
    flags.DEFINE_integer("images", None, "With --mode=plan: training images.", 1, flag_values=values)
    flags.DEFINE_float("images_per_second", None, "With --mode=plan: rate of training.", flag_values=values)
    flags.DEFINE_string("out", None, "With --mode=plan: a JSON file for the plan.", values)
    flags.DEFINE_string(
        "profile",
        None,
        "Steps to trace into WORKDIR/profile: 100:110 for the ten after step 100.",
        values,
    )
    flags.DEFINE_string(
        "compilation_cache",
        None,
        "Folder for compiled programs, or none; default $JAX_COMPILATION_CACHE_DIR, else in the user's cache.",
        values,
    )
    flags.DEFINE_enum(
        "cluster",
        detect.AUTO,
        detect.CHOICES,
        "Who started several processes of this run: auto detects SLURM, Open MPI, Cloud TPU and Kubernetes; mpi4py asks "
        "that package; none: each process is a run of its own, or has --coordinator.",
        flag_values=values,
    )
    flags.DEFINE_string("coordinator", None, "host:port of process 0, where no cluster is detected.", values)
    flags.DEFINE_integer("num_processes", None, "How many processes, with --coordinator.", flag_values=values)
    flags.DEFINE_integer("process_id", None, "Which of them this is, with --coordinator.", flag_values=values)
    return values


def main() -> int:
    """The exit code of the command line (sys.argv)."""
    cli.tolerate_every_name()
    values = define_flags()
    if "--version" in sys.argv:
        print(cli.version())
        return 0
    if "--help" in sys.argv:
        print(
            f"{commands.as_started(__doc__)}{values.get_help()}\n\nfields.py, classifier.py, cgn.py, cgn_imagenet.py and regions.py in {Path(configs.__file__).parent} list the fields for --config.<field>=…"
        )
        print(f"JAX's own flags are taken too, as --jax_platforms=cpu.\n\n{cli.documents()}")
        return 0
    members: processes.Alone | processes.Together = processes.Alone()
    try:
        config, mistake = _parsed(values)
        members = processes.join(
            *(values[name].value for name in ("coordinator", "num_processes", "process_id")),
            cluster=values["cluster"].value or detect.AUTO,
            mistake=mistake,
            handled=(Preempted,),
        )
        with members:
            compilation.keep(values.compilation_cache)
            _refuse_unread(values)
            if values.mode == "plan":
                _plan(values, config)
            else:
                processes.require_devices()
                if isinstance(members, processes.Alone):
                    _say_left_out(values)
                if config is not None:
                    config = configs.on_platform(config, jax.default_backend())
                {"train": _train, "evaluate": _evaluate}[values.mode](values, config)
        members.leave()
    except Preempted as event:
        members.tell(f"{event}; the same command resumes")
        members.leave()
        return ENDED_BY_SIGTERM
    except KeyboardInterrupt:
        print("interrupted; the same command resumes from the last checkpoint", file=sys.stderr)
        return cli.INTERRUPTED
    except (InputError, RunError) as error:
        cli.leave_to_signal()
        members.fail(error)
        return 1
    return 0


def _parsed(values):
    """(configuration, None), or (None, the error): all processes must learn of the error."""
    try:
        config = parse(values, sys.argv)
    except InputError as error:
        return None, error
    # Otherwise Orbax and Grain log every save and every worker.
    logging.getLogger("absl").setLevel(logging.ERROR)
    return config, None


def _say_left_out(values):
    line = detect.tasks_left_out(values["cluster"].value or detect.AUTO)
    if line:
        _say(line)


def _train(values, config):
    if config is None:
        raise InputError(f"--config is missing; {shipped.choices()}")
    workdir = _workdir(values)
    files.require_savable(workdir, "workdir")
    if isinstance(workdir, Address) and configs.system(config) != configs.CLASSIFIER:
        raise InputError(
            f"--workdir {workdir} cannot be in a bucket for {_NEEDS_FILES[configs.system(config)]}, whose records need a "
            "file system; take a local or mounted folder"
        )
    traced = None if values.profile is None else profile.parsed(values.profile)
    if traced is not None and isinstance(workdir, Address):
        raise InputError(
            f"--profile={values.profile} writes a trace into the workdir, which cannot be in a bucket ({workdir}); take a "
            "local --workdir for this run"
        )
    require_place(config.report.writers, workdir)
    system = _SYSTEMS[configs.system(config)]
    config = system.require(config, workdir)
    missing = _missing_folders(workdir)
    foreign = {name for name in _OF_WRITERS if (workdir / name).exists()}
    with _if_failed(lambda: _remove_empty(missing)):
        _make(workdir / "report")
        with _held(workdir, "training"):
            claim(workdir, configs.to_json(config))
            with _if_failed(lambda: _remove_unless_begun(workdir, foreign)):
                devices = jax.device_count()
                _say(
                    f"workdir {workdir}, {devices} {jax.devices()[0].device_kind} device{'s' * (devices > 1)}"
                )
                idle = configs.unused(config)
                if idle:
                    _say(f"set, but of no use to this run: {', '.join(idle)}")
                with reporting(config, _say) as writers:
                    system.train(config, workdir, _say, Instruments(writers, traced))
                    path = _write_page(workdir)
                    if jax.process_index() == 0:
                        writers.write_results(headline(workdir / "report"), workdir / "report")
            _say_results(workdir, path)


_NEEDS_FILES = {
    configs.CGN: "a generator",
    configs.CGN_IMAGENET: "a generator",
    configs.REGIONS: "a classifier of regions",
}


def _require_classifier(config, workdir: Path):
    build.require_model(config)
    if _has_begun(workdir):  # it may finish as it is
        return finetune.resumed(config, workdir)
    configs.require_trainable(config)
    return finetune.require_start(config, _say)


def _require_cgn(config, workdir: Path):
    cgn_build.create(config, num_classes=2)
    return config


def _require_imagenet(config, workdir: Path):
    imagenet_build.create(config)
    if not _has_begun(workdir):
        imagenet_build.require_weights(config.weights)
    return config


def _require_regions(config, workdir: Path):
    region_build.create(config, num_classes=2)
    return config


def _has_begun(workdir) -> bool:
    """Whether a run has checkpoints, in the eyes of the first process: in a network folder others may see an old list."""
    return processes.of_first(lambda: has_checkpoints(workdir))


class _System(NamedTuple):
    """How a system is run.

    require: (config, workdir) -> the config, with values that the workdir or other files decide; raises an
        InputError if the run cannot work.
    train: (config, workdir, print_line) -> its results.
    """

    require: Callable[..., Any]
    train: Callable[..., Any]


_SYSTEMS = {
    configs.CLASSIFIER: _System(_require_classifier, train),
    configs.CGN: _System(_require_cgn, train_cgn),
    configs.CGN_IMAGENET: _System(_require_imagenet, train_imagenet),
    configs.REGIONS: _System(_require_regions, train_regions),
}


def _evaluate(values, config):
    if values.checkpoint is None and values.workdir is None and config is None:
        raise InputError("--mode=evaluate needs --checkpoint, --workdir or --config")
    has_checkpoint = values.checkpoint is not None
    place = (
        files.place(values.checkpoint, "--checkpoint", bucket=True) if has_checkpoint else _workdir(values)
    )
    path = checkpoints.find_together(place)
    workdir = (
        _run_of(path) if values.workdir is None else files.place(values.workdir, "--workdir", bucket=True)
    )
    missing = _missing_folders(workdir)
    with _if_failed(lambda: _remove_empty(missing)):
        _make(workdir / "report")
        _say(f"evaluating {path}")
        # Reading does not disturb a training in the same workdir. Only two reports must not mix.
        with _held(workdir / "report", "evaluating"):
            evaluate = evaluate_regions if _is_of_regions(path) else evaluate_checkpoint
            evaluate(path, config, workdir / "report", _say)
            _say_results(workdir, _write_page(workdir))


def _is_of_regions(path):
    """Whether a checkpoint is of a classifier of regions."""
    meta = checkpoints.read_meta(path)
    with checkpoints.understanding(path, meta):
        return configs.system(meta["config"]) == configs.REGIONS


def _plan(values, config):
    if config is None:
        raise InputError(f"--config is missing; {shipped.choices()}")
    rate = values.images_per_second
    if rate is not None and not 0 < rate < 1e9:
        raise InputError(f"--images_per_second={rate} must be above 0 and below 1e9")
    question = command.Question(
        plan_for=values.plan_for,
        memory=None if values.memory is None else parsed_bytes(values.memory, "--memory"),
        classes=values.classes,
        images=values.images,
        images_per_second=rate,
        out=None if values.out is None else files.place(values.out, "--out", bucket=True),
    )
    command.plan(config, question, _say)


_OF_PLANS = ("plan_for", "memory", "classes", "images", "images_per_second", "out")


def _refuse_unread(values):
    """Raise if a flag is given that the mode does not read."""
    for name in _OF_PLANS:
        if values.mode != "plan" and values[name].present:
            raise InputError(f"--{name} is for --mode=plan; add that, or remove the flag")
    if values.mode != "train" and values["profile"].present:
        raise InputError("--profile is for --mode=train; add that, or remove the flag")


def _held(folder, doing):
    """The lock of a folder; the first process holds it for all."""
    return lock.held(folder, doing) if jax.process_index() == 0 else contextlib.nullcontext()


@contextlib.contextmanager
def _if_failed(action):
    """A context that runs an action if an exception or a signal ends it."""
    with cli.if_interrupted(action):
        try:
            yield
        except BaseException:
            action()
            raise


def _write_page(workdir):
    """The path of the report page, written on the first process."""
    return page.write(workdir) if jax.process_index() == 0 else None


def _say_results(workdir, path):
    """Print the path of the report page as the last line."""
    _say(f"\nresults in {workdir / 'report'}\nreport {path}")


def parse(values: flags.FlagValues, arguments: list[str]):
    """The checked configuration, or None without --config, from `arguments`: the command's name and its flags.

    An evaluation without --config may have --config.<field>=…: they change the configuration of its checkpoint.

    Raises:
        InputError: instead of the several kinds and several lines of absl and ml_collections.
    """
    arguments = _located(arguments)
    try:
        changes_stored = _take_stored(values, arguments)
        positional = values(_without_jax_flags(arguments))
    except Exception as error:  # the code of a configuration file may raise anything
        known = _flag_error(error, arguments)
        if known is None:
            raise
        raise known from error
    flags.FLAGS.mark_as_parsed()  # Grain reads the defaults of its own flags there
    if len(positional) > 1:
        raise InputError(f"unexpected argument {positional[1]!r}; flags are written --name=value")
    if not values["config"].present and not changes_stored:
        return None
    config = configs.validate(_loaded(values))
    for name in configs.paths(config):
        path = configs.field(config, name)
        if path:
            files.place(path, f"config.{name}", bucket=name in configs.IN_BUCKETS)
    return config


def _take_stored(values, arguments) -> bool:
    """Whether --config.<field>=… is for the configuration of the checkpoint to evaluate; then it is the flag's value."""
    given = {"config": "", "mode": "", "checkpoint": "", "workdir": ""} | _pairs(arguments)
    fields = [argument for argument in arguments if argument.lstrip("-").startswith("config.")]
    place = given["checkpoint"] or given["workdir"]
    if not fields or given["config"] or given["mode"] != "evaluate" or not place:
        return False
    config = stored_config(files.place(place, "--checkpoint or --workdir", bucket=True))
    delattr(values, "config")
    config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=arguments)
    return True


def stored_config(place: Path):
    """The validated configuration of a checkpoint, or of a run's best.

    Raises:
        InputError: there is none, or it cannot be read.
    """
    path = checkpoints.find(place)
    meta = checkpoints.read_meta(path)
    with checkpoints.understanding(path, meta):
        return configs.from_json(meta["config"])


def _pairs(arguments) -> dict[str, str]:
    """The values of flags, written --name=value or --name value, by name."""
    pairs = [each.lstrip("-").partition("=") for each in arguments]
    following = [*arguments[1:], ""]
    return {name: value if equals else after for (name, equals, value), after in zip(pairs, following)}


def _located(arguments):
    """The arguments with the file of a configuration in place of its name."""
    located = list(arguments)
    for index, argument in enumerate(arguments):
        flag, separator, text = argument.partition("=")
        if flag in ("--config", "-config") and separator:
            located[index] = f"{flag}={shipped.located(text)}"
        elif flag in ("--config", "-config") and index + 1 < len(located):
            located[index + 1] = shipped.located(located[index + 1])
    return located


def _without_jax_flags(arguments):
    """The arguments without the flags of JAX, such as --jax_platforms=cpu, which take effect here.

    Raises:
        flags.Error: a value of the wrong kind, or a flag that JAX does not have.
    """
    if "jax_platforms" not in flags.FLAGS:  # a second call would define them twice
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
    """The value of get_config(). A missing file raises only when the value is accessed."""
    try:
        getattr(values.config, "seed", None)
    except (OSError, SyntaxError) as error:
        raise _unreadable(error) from error
    return values.config


def _unreadable(error):
    # ml_collections lists all places that it tried. The last one, after the error number, matters.
    reason = " ".join(str(error).split()).rpartition("] ")[2]
    return InputError(f"--config cannot be read: {reason}; {shipped.choices()}")


def _flag_error(error, arguments):
    """The error to raise for an exception while flags were parsed, which runs the configuration file; None: the same."""
    inside = _in_config_file(error, arguments)
    if inside is not None:
        return inside
    if isinstance(error, flags.Error | RecursionError):
        text = str(error)
        if "Error whilst parsing config file" in text:  # get_config() itself raised
            text = f"--config cannot be used: {text.strip().splitlines()[-1]}"
        text = " ".join(text.split())
        return InputError(text if len(text) < _LONG else f"{text[:_LONG]}…")
    if isinstance(error, AttributeError | KeyError):
        return InputError(_unknown_field(error, arguments))
    if isinstance(error, OSError | SyntaxError):
        return _unreadable(error)
    return None


def _in_config_file(error, arguments):
    """An `InputError` with the line of the configuration file that raised; None if the file did not raise."""
    file = Path(_pairs(arguments).get("config", "").partition(":")[0]).name
    while error is not None:
        frames = [f for f in traceback.extract_tb(error.__traceback__) if Path(f.filename).name == file]
        if frames:
            return InputError(
                f"{frames[-1].filename}, line {frames[-1].lineno} ({frames[-1].line}): {_reason(error)}"
            )
        error = error.__context__  # ml_collections and absl raise their own instead
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
    """The value of a flag's text: a Python literal, or else a string."""
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return text


def _workdir(values):
    if values.workdir is not None:
        return files.place(values.workdir, "--workdir", bucket=True).absolute()
    if values.config is None:
        raise InputError("--workdir or --config is missing")
    name = config_flags.get_config_filename(values["config"])
    _, _, variant = values["config"].serialize().partition(":")
    stem = Path(name).stem
    return Path("runs", f"{stem}_{variant}" if variant else stem).absolute()


def _run_of(checkpoint):
    """The workdir of a checkpoint; for one that was moved or exported, a workdir of evaluations alone."""
    if checkpoint.parent.name == "checkpoints":
        return checkpoint.parent.parent
    workdir = Path("runs", checkpoint.name).absolute()
    if has_checkpoints(workdir):
        raise InputError(
            f"{checkpoint} is in no run, and its report would replace that of the run {workdir}; add --workdir=DIR for it"
        )
    return workdir


def _missing_folders(workdir):
    """The folders that the run will create, the innermost first; none in a bucket, which has no folders."""
    if isinstance(workdir, Address):
        return []
    folders = (workdir / "report", workdir / "checkpoints", workdir, *workdir.parents)
    return [folder for folder in folders if not folder.exists()]


def _remove_empty(folders):
    if jax.process_index() == 0:
        for folder in folders:
            with contextlib.suppress(OSError):  # the folder is not empty, or was never created
                folder.rmdir()


# Folders of metric writers in a workdir.
_OF_WRITERS = ("tensorboard", "trackers", "wandb")


def _remove_unless_begun(workdir, foreign):
    """Remove the files of a failed run that has neither a checkpoint nor a logged value.

    `foreign`: which of `_OF_WRITERS` were there before it.
    """
    with contextlib.suppress(BucketError):  # the bucket is why the run failed
        _remove_files_unless_begun(workdir, foreign)


def _remove_files_unless_begun(workdir, foreign):
    log = workdir / "metrics.jsonl"
    logged = log.exists() and log.stat().st_size > 0
    if logged or has_checkpoints(workdir) or jax.process_index() != 0:
        return
    log.unlink(missing_ok=True)
    for name in ("config.json", parameters.FILE):
        (workdir / name).unlink(missing_ok=True)
    for name in _OF_WRITERS:
        if name not in foreign:
            _remove_folder(workdir / name)


def _remove_folder(folder):
    if isinstance(folder, Address):
        folder.rmtree(missing_ok=True)
    else:
        shutil.rmtree(folder, ignore_errors=True)


def _make(folder):
    if isinstance(folder, Address):
        return  # whether it can be written shows at the lock
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # An unnamed file where the system has them, because several processes try at once.
        with tempfile.TemporaryFile(dir=folder, prefix=".writable"):
            pass
    except OSError as error:
        raise InputError(f"{folder} cannot be written ({error.strerror}); take another --workdir") from error


def _say(text):
    if jax.process_index() == 0:
        print(text, flush=True)


if __name__ == "__main__":
    cli.end(main())
