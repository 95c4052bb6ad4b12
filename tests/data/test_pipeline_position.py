"""The position in the data is the step: any sequence of reading, stopping and resuming, in any topology, reads the same."""

import numpy as np
from absl import flags
from fuzzing import FACTOR, cases
from hypothesis import Phase
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from cfmlc_jax.data.mixing import Generated
from cfmlc_jax.data.pipeline import steps_per_epoch, train_batches
from cfmlc_jax.data.weighting import Weighting
from cfmlc_jax.data.workers import Reading
from cfmlc_jax.errors import InputError

flags.FLAGS.mark_as_parsed()  # Grain's workers read its flags

REAL, GENERATED = 0, 1
# Starting worker processes takes seconds.
WORKERS = (0, 1, 2) if FACTOR else (0,)


class Numbered:
    """A source whose records are their own positions; some cannot be read."""

    class_names = ("a",)

    def __init__(self, length, kind, damaged=()):
        self.labels = np.zeros((length, 1), np.uint8)
        self.ids = [str(position) for position in range(length)]
        self._kind, self._damaged = kind, damaged

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, position):
        if position in self._damaged:
            raise InputError(f"{position} is damaged")
        return {"image": b"", "labels": self.labels[position], "id": f"{self._kind} {position}", "where": ""}


class Written:
    """A transform that writes the record's kind, its position and a random number in a pixel."""

    size, grid, num_views = 1, None, 1

    def __call__(self, record, generator=None):
        kind, position = map(int, record["id"].split())
        pixel = np.array([kind, position, generator.integers(256)], np.uint8)
        return {
            "views": pixel.reshape(1, 1, 1, 3),
            "labels": np.float32(record["labels"]),
            "id": record["id"],
        }


class Reader(RuleBasedStateMachine):
    """A training's reading, which is ended and continued; the model is one reading of all batches."""

    @initialize(
        length=st.integers(6, 13),
        batch_size=st.sampled_from([2, 4, 6]),
        epochs=st.integers(1, 3),
        seed=st.integers(0, 3),
        reshuffle=st.booleans(),
        weights_from=st.sampled_from([None, 1, 2]),
        generated=st.sampled_from([None, (1, 1), (1, 2), (2, 1)]),
        damaged=st.sampled_from([(), (1,), (2, 3)]),
    )
    def begin(self, length, batch_size, epochs, seed, reshuffle, weights_from, generated, damaged):
        self.source = Numbered(length, REAL, damaged)
        weighting = None if weights_from is None else Weighting(np.arange(length) % 3 * 1.0, weights_from)
        if generated is not None:
            generated = generated[0], min(generated[1], epochs)
        self.generated = generated and Generated(Numbered(5, GENERATED), *generated)
        self.arguments = {
            **{"batch_size": batch_size, "epochs": epochs, "seed": seed, "reshuffle": reshuffle},
            **{"weighting": weighting, "generated": self.generated},
        }
        self.epochs, self.skip = epochs, bool(damaged)
        self.steps = steps_per_epoch(self.source, batch_size, self.generated)
        self.every = list(self.batches(0, Reading(threads=1, skip=self.skip)))
        assert len(self.every) == self.steps * epochs
        # Where generated records begin later, epochs of real images alone end within a pass through them.
        if weighting is None and not damaged and (generated is None or generated[1] == 1):
            self.require_each_once(batch_size)
        self.step, self.open = 0, []

    def batches(self, start, reading):
        return train_batches(self.source, Written(), reading=reading, start_step=start, **self.arguments)

    def require_each_once(self, batch_size):
        """No image is read twice in an epoch, and no more are left out than the last batch lacks."""
        for epoch in range(self.epochs):
            batches = self.every[epoch * self.steps : (epoch + 1) * self.steps]
            pixels = np.concatenate([batch["views"][:, 0, 0, 0] for batch in batches])
            real = pixels[pixels[:, 0] == REAL, 1]
            per_batch = batch_size if self.generated is None else batch_size - self.generated.per_batch
            if self.generated is not None and per_batch == 0:
                real, length = pixels[:, 1], len(self.generated.source)
                per_batch = batch_size
            else:
                length = len(self.source)
            assert len(set(real)) == len(real) == length - length % per_batch

    @rule(
        step=st.none() | st.integers(0, 40),
        shared=st.booleans(),
        threads=st.integers(1, 3),
        workers=st.sampled_from(WORKERS),
        devices=st.sampled_from([1, 2]),
    )
    def resume(self, step, shared, threads, workers, devices):
        """Stop, and continue at the step that was reached, or at that of another checkpoint, with another topology."""
        self.stop()
        if step is not None:
            self.step = step % len(self.every)
        if self.step == len(self.every):
            return
        processes = 2 if shared else 1
        for process in range(processes):
            options = {"threads": threads, "workers": workers, "devices": devices, "skip": self.skip}
            reading = Reading(process=process, processes=processes, **options)
            self.open.append(iter(self.batches(self.step, reading)))

    @precondition(lambda self: self.open)
    @rule(count=st.integers(1, 5))
    def read(self, count):
        for _ in range(count):
            shares = [next(each, None) for each in self.open]
            if self.step == len(self.every):
                assert shares == [None] * len(shares)
                return
            whole = self.every[self.step]
            assert all(share.keys() == whole.keys() for share in shares)
            for name, array in whole.items():
                np.testing.assert_array_equal(np.concatenate([share[name] for share in shares]), array)
            self.step += 1

    @invariant()
    def the_position_is_a_step(self):
        assert 0 <= getattr(self, "step", 0) <= len(getattr(self, "every", ()))

    def stop(self):
        for each in getattr(self, "open", ()):
            each.close()
        self.open = []

    def teardown(self):
        self.stop()


TestReader = Reader.TestCase
# Sequences are short enough to be read as they are.
TestReader.settings = cases(10, stateful_step_count=8, phases=[Phase.generate])
