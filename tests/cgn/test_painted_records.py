"""Generated records: their labels, their files, an interrupted call, and other arguments."""

import json
import shutil

import jax
import launchers
import numpy as np
import pytest

from cfmlc_jax.causal import mechanisms
from cfmlc_jax.cgn import counterfactuals
from cfmlc_jax.cgn.system import draw
from cfmlc_jax.data.sources.counterfactuals import Counterfactuals
from cfmlc_jax.engine import mesh as meshes
from cfmlc_jax.errors import InputError
from cfmlc_jax.models.generators import mnist

GENERATOR = mnist.MnistGenerator(latent=3, ngf=2)
NAMES = tuple(f"digit {digit}" for digit in range(10))


@pytest.fixture(scope="module")
def variables():
    return GENERATOR.init(jax.random.key(0), *GENERATOR.example(), train=False)


def write(folder, variables, *, poll=lambda: None, seed=3, **changes):
    arguments = {"num_records": 50, "per_shape": 5, "shard_size": 20} | changes
    counterfactuals.write(
        folder,
        GENERATOR,
        variables,
        class_names=NAMES,
        seed=seed,
        mesh=meshes.create(),
        origin={"checkpoint": "12"},
        print_line=lambda line: None,
        poll=poll,
        **arguments,
    )
    return Counterfactuals(folder)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, variables):
    """A complete folder, and its records."""
    folder = tmp_path_factory.mktemp("whole") / "records"
    return folder, write(folder, variables)


def test_labels_are_uniform_and_independent():
    labels, noise, offsets = counterfactuals.draw_inputs(jax.random.key(0), 20_000, 1, GENERATOR)
    table = np.stack([labels[name] for name in ("shape", "texture", "background")])
    for row in table:
        assert np.abs(np.bincount(row, minlength=10) / 2000 - 1).max() < 0.1
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert np.mean(table[i] == table[j]) == pytest.approx(0.1, abs=0.01)
        assert abs(np.corrcoef(table[i], table[j])[0, 1]) < 0.03
    assert not np.array_equal(noise["shape"], noise["texture"])
    assert not np.array_equal(offsets["texture"], offsets["background"])


def test_a_shape_is_drawn_once_and_painted_several_times():
    labels, noise, _ = counterfactuals.draw_inputs(jax.random.key(0), 12, 4, GENERATOR)
    groups = np.asarray(noise["shape"]).reshape(3, 4, -1)
    assert (groups == groups[:, :1]).all()
    assert not np.array_equal(groups[0, 0], groups[1, 0])
    by_shape = np.asarray(labels["shape"]).reshape(3, 4)
    assert (by_shape == by_shape[:, :1]).all()
    assert len(np.unique(np.asarray(noise["texture"])[:, 0])) == 12


def test_records_are_those_that_the_generator_draws(variables, whole):
    folder, records = whole
    assert len(records) == 50
    assert sorted(path.name for path in folder.glob("*.array_record")) == [
        f"records-0000{i}-of-00003.array_record" for i in range(3)
    ]
    painter = counterfactuals.Painter(GENERATOR, meshes.create(), 500, 5)
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(3), 1), 0)
    labels, _ = painter(variables, key)
    np.testing.assert_array_equal(records.mechanisms[20:40], labels[:20])
    index = json.loads((folder / "index.json").read_text())
    assert (index["seed"], index["checkpoint"], index["per_shape"]) == (3, "12", 5)


def test_an_interrupted_call_is_resumed(tmp_path, variables, whole):
    calls = []

    def interrupt_at_second_shard():
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "twice", variables, poll=interrupt_at_second_shard)
    with pytest.raises(InputError, match="index"):
        Counterfactuals(tmp_path / "twice")
    first = (tmp_path / "twice" / "records-00000-of-00003.array_record").stat().st_mtime_ns
    resumed = write(tmp_path / "twice", variables)
    assert (tmp_path / "twice" / "records-00000-of-00003.array_record").stat().st_mtime_ns == first
    assert resumed.ids == whole[1].ids
    assert [resumed[i]["image"] for i in range(50)] == [whole[1][i]["image"] for i in range(50)]


@pytest.mark.parametrize("changes", [{"seed": 4}, {"per_shape": 10}, {"num_records": 60}])
@pytest.mark.parametrize("complete", [True, False])
def test_a_folder_of_other_arguments_is_refused(tmp_path, variables, whole, changes, complete):
    folder = tmp_path / "records"
    if complete:
        shutil.copytree(whole[0], folder)
    else:
        with pytest.raises(KeyboardInterrupt):
            write(folder, variables, poll=lambda: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(InputError, match="generated otherwise"):
        write(folder, variables, **changes)


def test_a_folder_with_other_files_is_refused(tmp_path, variables):
    (tmp_path / "photo.png").touch()
    with pytest.raises(InputError, match="is not empty"):
        write(tmp_path, variables)


def test_a_folder_of_other_classes_is_refused(tmp_path, variables, whole):
    folder = shutil.copytree(whole[0], tmp_path / "records")
    index = json.loads((folder / "index.json").read_text())
    index["class_names"][3] = "three"
    (folder / "index.json").write_text(json.dumps(index))
    with pytest.raises(
        InputError, match=r"generated otherwise \(class_names \['digit 0'.*… -> \['digit 0'.*…\)"
    ):
        write(folder, variables)


@pytest.mark.parametrize("name", ["index.json", "begun.json"])
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "Expecting value: line 1"),
        (b'{"seed": 3, "sha', "Unterminated string"),
        (b"[1, 2]", "it holds a list, not an object"),
        (b"null", "it holds a NoneType, not an object"),
        (b"\xff\xfe\x00", "utf"),
        (b"[" * 100_000, "recursion"),
    ],
)
def test_a_damaged_description_is_reported_in_a_line(tmp_path, variables, name, content, reason):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(
        InputError, match=rf"{name} is damaged \(.*remove the folder .*, or give a new one"
    ) as raised:
        write(tmp_path, variables)
    assert reason in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_description_that_is_a_folder_is_reported(tmp_path, variables):
    (tmp_path / "index.json").mkdir()
    with pytest.raises(InputError, match=r"index.json is damaged \(.*Is a directory"):
        write(tmp_path, variables)


def _remove(path):
    path.unlink()


def _cut_off(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _empty(path):
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [_remove, _cut_off, _empty])
@pytest.mark.parametrize("suffix", [".array_record", ".npy"])
def test_a_damaged_shard_is_reported_in_a_line(tmp_path, whole, damage, suffix):
    folder = shutil.copytree(whole[0], tmp_path / "records")
    damage(folder / f"records-00001-of-00003{suffix}")
    with pytest.raises(
        InputError, match=r"records-00001-of-00003\S+ (is|cannot be read).*; generate .* again"
    ) as raised:
        Counterfactuals(folder)
    assert "\n" not in str(raised.value)


def test_damaged_shards_are_drawn_again(tmp_path, variables, whole):
    folder = shutil.copytree(whole[0], tmp_path / "records")
    _remove(folder / "records-00000-of-00003.npy")
    _cut_off(folder / "records-00001-of-00003.array_record")
    _remove(folder / "records-00002-of-00003.array_record")
    restored = write(folder, variables)
    assert restored.ids == whole[1].ids
    assert [restored[i]["image"] for i in range(50)] == [whole[1][i]["image"] for i in range(50)]
    assert not (folder / "begun.json").exists()


# Two processes fill a folder, the first one slowly, and open it; then they find it complete.
TOGETHER = """
import sys, time
from pathlib import Path
import numpy as np
from cfmlc_jax import cli, processes
from cfmlc_jax.cgn import counterfactuals
from cfmlc_jax.cgn.counterfactuals import Shard, records
from cfmlc_jax.errors import InputError

write_shard = records.write_shard
def slowly(*arguments, **options):
    time.sleep(0.5)
    write_shard(*arguments, **options)

records.write_shard = slowly
names = [f"digit {digit}" for digit in range(10)]
members = processes.join(None, None, None)
try:
    with members:
        for _ in range(2):
            counterfactuals.write_shards(
                Path(sys.argv[1]),
                lambda number, size: Shard(np.zeros((size, 3), int), np.zeros((size, 32, 32, 3), np.uint8)),
                class_names=names,
                num_records=4,
                shard_size=2,
                image_size=32,
                task=records.SINGLE_LABEL,
                origin={},
                print_line=print,
            )
            print(len(records.Counterfactuals(Path(sys.argv[1]))))
    members.leave()
except InputError as error:
    members.fail(error)
    cli.end(1)
cli.end(0)
"""


def test_other_processes_open_the_records_when_the_first_has_written_them(tmp_path):
    folder = tmp_path / "records"
    for code, out, err in launchers.ends(launchers.start("slurm", TOGETHER, str(folder))):
        assert code == 0, err
        line = f"counterfactuals: 4 records in {folder}"
        assert out.splitlines()[-4:] == [line, "4", f"{line}, complete", "4"]


def test_standing_statistics_are_means_over_batches(variables):
    standing = counterfactuals.drawing_weights(variables, GENERATOR, 0.9)
    assert counterfactuals.drawing_weights(variables, GENERATOR, 0.0) is variables
    draws = draw(jax.random.key(7), 2000, GENERATOR)
    inputs = (mechanisms.same_for_all(x) for x in (draws.labels, draws.noise))
    _, updated = GENERATOR.apply(standing, *inputs, draws.offsets, train=True, mutable=["batch_stats"])
    before, after = standing["batch_stats"], updated["batch_stats"]
    # A step of the running statistics towards another batch hardly moves them: they are of such batches.
    for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        np.testing.assert_allclose(new, old, rtol=0.05, atol=0.05)
    assert not np.allclose(before["texture"]["bn_rgb"]["mean"], 0, atol=1e-4)
