"""Runs a campaign of faults: each trial disturbs a training, resumes it, and compares it with one left alone.

    python -m scripts.faults moments --count=10              SIGKILL, SIGTERM and SIGINT in each phase of a run
    python -m scripts.faults changes                         SIGKILL before every change of a file
    python -m scripts.faults errors --count=20               a full, a broken, a read-only disk
    python -m scripts.faults damage --system=cgn             files flipped, cut, emptied, zeroed, removed, exchanged
    python -m scripts.faults disks                           a small disk, one without inodes, a read-only one
    python -m scripts.faults processes --count=5             one of two and of four processes killed, or asked to end
    python -m scripts.faults surroundings                    slow disk, clock, workers, devices, two runs
    python -m scripts.faults data                            pictures and tables that vanish, break or change
    python -m scripts.faults table                           what was tried and what was lost, so far

Systems: pat, deconfound, cgn; without --system all of them. `data` has a run of its own, photos. A trial takes the time
of two runs, 20 to 60 s. Results are lines of trials.jsonl in --workdir, and finished trials are not repeated: the same
command continues, if the code has not changed. The exit code is 1 if anything was lost. Needs Linux: it looks for
processes in /proc, and counts the blocks of shared memory that are left: give it its own beside other programs that use
some: `unshare --mount --map-root-user sh -c 'mount -t tmpfs none /dev/shm && exec "$@"' sh COMMAND`.
"""

import hashlib
import json
import os
import re
import shutil
import sys
import time
from collections import Counter, defaultdict
from dataclasses import asdict
from pathlib import Path

from cfmlc_jax import cli, files
from cfmlc_jax.errors import InputError, RunError
from cfmlc_jax.results.tables import markdown
from scripts.faults import ending as endings
from scripts.faults import trials
from scripts.faults.subjects import ROOT, SUBJECTS, Runner
from scripts.faults.victim import PHASES

TABLE = "table"
TRIALS = "trials.jsonl"


@cli.command
def main() -> int:
    """Run the command line and return the exit code."""
    try:
        flags = _parse(sys.argv[1:])
        if not Path("/proc/self/environ").exists():
            raise InputError(
                "the campaign looks for processes in /proc, which this system lacks; run it on Linux"
            )
        if flags.campaign != TABLE:
            files.create_folder(flags.workdir, "--workdir")
            _drop_torn_line(flags.workdir / TRIALS)
            of_files = [name for name, subject in SUBJECTS.items() if subject.write_data is not None]
            usual = [name for name in SUBJECTS if (name in of_files) == (flags.campaign == trials.DATA)]
            if flags.system not in (None, *of_files) and flags.campaign == trials.DATA:
                raise InputError(
                    f"--system={flags.system} reads no files; {trials.DATA} is for {', '.join(of_files)}"
                )
            for name in [flags.system] if flags.system else usual:
                _run(flags, name)
        elif not (flags.workdir / TRIALS).is_file():
            raise InputError(f"{flags.workdir} has no {TRIALS}; give the --workdir of a campaign")
        rows = _rows(flags.workdir)
        print(table(rows))
    except KeyboardInterrupt:
        print("interrupted; the same command continues", file=sys.stderr)
        return cli.INTERRUPTED
    return int(any(row["verdict"] == trials.LOST for row in rows))


def _parse(arguments):
    parser = cli.Parser(prog="python -m scripts.faults", description=__doc__)
    parser.add_argument("campaign", choices=[*trials.CAMPAIGNS, TABLE])
    parser.add_argument("--system", choices=list(SUBJECTS), help="default: all")
    parser.add_argument(
        "--count",
        type=cli.whole_number(0),
        default=0,
        help="random trials of each kind; default 0: all, or 10 of those that have no end",
    )
    parser.add_argument("--seed", type=cli.whole_number(0), default=0, help="of the random trials")
    parser.add_argument("--workdir", type=files.local_path, default=Path("runs/faults"), metavar="FOLDER")
    return parser.parse_args(arguments)


def _run(flags, name):
    """Do the trials of a campaign for one subject that have not been done."""
    folder = flags.workdir / name
    subject, programs = SUBJECTS[name], (flags.workdir / "programs").absolute()

    def runner(place):
        return Runner(subject, (folder / place).absolute(), programs)

    undisturbed = _undisturbed(runner("undisturbed"))
    with_workers = _undisturbed(runner("undisturbed_with_workers"), trials.WORKERS)
    different = with_workers.ending.differences(undisturbed.ending)
    if different:
        raise RunError(f"{name} ends otherwise with workers, undisturbed: {'; '.join(different)}")
    halves, others = {}, {}
    for place, step in trials.folders_of_halves(undisturbed.events).items():
        word = place.replace("/", "_")
        halves[place] = _half(runner(f"half_{word}"), place, step)
        if flags.campaign == trials.DAMAGE:
            others[place] = _half(runner(f"other_{word}"), place, step, "--config.seed=1")
    of_many = {}
    if flags.campaign == trials.OF_MANY:
        of_many = {
            count: _undisturbed(runner(f"undisturbed_{count}"), count=count) for count in trials.PROCESSES
        }
    setting = trials.Setting(
        undisturbed,
        with_workers,
        runner("undisturbed").workdir,
        halves,
        flags.count,
        flags.seed,
        others,
        of_many,
    )
    every = trials.CAMPAIGNS[flags.campaign](setting)
    done = {(row["system"], row["campaign"], row["trial"]) for row in _rows(flags.workdir)}
    for number, trial in enumerate(every, start=1):
        if (name, flags.campaign, trial.name) in done:
            continue
        of_trial = runner(f"trial_{flags.campaign}")
        _empty(of_trial.folder)
        since = time.monotonic()
        try:
            outcome = trial.run(of_trial)
        finally:
            of_trial.stop()
        outcome.seconds = round(time.monotonic() - since, 1)
        row = {"system": name, "campaign": flags.campaign, "trial": trial.name, **asdict(outcome)}
        files.append_text(flags.workdir / TRIALS, json.dumps(row) + "\n")
        print(f"{name} {flags.campaign} {number}/{len(every)} {trial.name}: {outcome.verdict}", flush=True)
        if outcome.verdict == trials.LOST:
            print("    " + "\n    ".join(outcome.problems), flush=True)
            kept = folder / f"lost_{flags.campaign}_{number}"
            shutil.rmtree(kept, ignore_errors=True)
            of_trial.folder.rename(kept)


def _undisturbed(runner, *flags, count=1):
    """The run left alone, by so many processes; of an earlier command if there is one."""
    stored = runner.folder / "undisturbed.json"
    if not stored.exists():
        # What the first one compiles the second one finds, so that its times are those of the trials.
        for _ in range(2):
            _empty(runner.folder)
            found = (
                trials.undisturbed(runner, *flags) if count == 1 else trials.undisturbed_many(runner, count)
            )
        content = {"conditions": _conditions(), "phases": found.phases, "events": found.events}
        files.write_text(stored, json.dumps(content))
    content = json.loads(stored.read_text())
    if content["conditions"] != _conditions():
        raise InputError(
            f"{stored}: this run was left alone by another version of cfmlc_jax or of the campaign, or on another processor "
            "or number of its cores; give the campaign another --workdir"
        )
    return trials.Undisturbed(endings.read(runner.workdir), content["phases"], content["events"])


def _half(runner, place, step, *flags):
    """The workdir of a run that was killed when it was training in `place`; of an earlier command if there is one."""
    if not (runner.folder / "done").exists():
        _empty(runner.folder)
        trials.half_way(runner, place, step, *flags)
        (runner.folder / "done").touch()
    return runner.workdir


def _conditions():
    """What two runs must share to be compared: the code, and processor and number of cores, which change XLA's sums."""
    digest = hashlib.sha256()
    for path in sorted([*(ROOT / "cfmlc_jax").rglob("*.py"), *Path(__file__).parent.glob("*.py")]):
        digest.update(f"{path.relative_to(ROOT)} ".encode() + path.read_bytes())
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    # The name of the model, and the instructions that it has, by any architecture's name.
    processor = sorted(
        {line for line in lines if re.match("model name|flags|Features|CPU (implementer|part)", line)}
    )
    return {
        "code": digest.hexdigest(),
        "cores": len(os.sched_getaffinity(0)),
        "processor": hashlib.sha256("\n".join(processor).encode()).hexdigest(),
    }


def _empty(folder):
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def _drop_torn_line(path):
    """Remove a last line without an end, which a campaign that was killed has left: its trial is repeated."""
    text = path.read_bytes() if path.exists() else b""
    whole = text[: text.rfind(b"\n") + 1]
    if whole != text:
        files.write_text(path, whole.decode())


def _rows(workdir):
    path = workdir / TRIALS
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def table(rows: list[dict]) -> str:
    """Counts of trials by campaign and system as Markdown; then what the runs did when they were hit, and what was lost."""
    counts: dict[tuple[str, str], Counter] = defaultdict(Counter)
    for row in rows:
        counts[row["campaign"], row["system"]][row["verdict"]] += 1
    verdicts = (
        trials.SURVIVED,
        trials.WARNED,
        trials.REFUSED,
        trials.UNREAD,
        trials.UNTOUCHED,
        trials.LOST,
    )
    lines = [
        [campaign, system, sum(count.values()), *(count[verdict] for verdict in verdicts)]
        for (campaign, system), count in sorted(counts.items())
    ]
    hits: dict[tuple[str, str], Counter] = defaultdict(Counter)
    for row in rows:
        phase, named, _ = row["place"].partition(": ")
        if named:
            hits[row["system"], row["campaign"]][phase] += 1
    phases = [
        f"hit in {campaign} of {system}: {', '.join(f'{phase} {count[phase]}' for phase in PHASES if count[phase])}"
        for (system, campaign), count in sorted(hits.items())
    ]
    lost = [row for row in rows if row["verdict"] == trials.LOST]
    reasons = [f"- {row['system']}, {row['trial']}: {'; '.join(row['problems'])}" for row in lost]
    return "\n".join([markdown(["faults", "system", "tried", *verdicts], lines), "", *phases, "", *reasons])


if __name__ == "__main__":
    sys.exit(main())
