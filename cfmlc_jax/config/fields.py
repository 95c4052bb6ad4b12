"""The fields that every system has: seed, data, views, optimisation, training, evaluation, devices, report."""

from typing import Any

from ml_collections import ConfigDict

from cfmlc_jax.causal.effects import NULL_KINDS
from cfmlc_jax.config.part import PIXELS, Bounds, Part, Use, uses_of
from cfmlc_jax.data.build import SOURCES
from cfmlc_jax.data.views.transforms import TRANSFORMS
from cfmlc_jax.errors import InputError
from cfmlc_jax.models.layers.normalise import NORMALISATIONS
from cfmlc_jax.optim.build import OPTIMIZERS, SCHEDULES


def _data() -> ConfigDict:
    data = ConfigDict()
    data.source = "coco"  # a name of `data.build.SOURCES`
    data.root = ""  # folder of the data set; empty: $CFMLC_DATA/<source>, else data/<source>
    data.vocabulary = ""  # vg256: JSON file, category -> object names
    data.exif = False  # turn images as their EXIF orientation says (the reference does not)
    # Mean and deviation by which the model standardises pixels, a name of
    # `models.layers.normalise.NORMALISATIONS`; empty: pixels in [0, 1].
    data.normalise = ""
    # Single-label: an epoch has every class as often as the commonest, its images repeated.
    data.balanced = False
    data.reshuffle = True  # every epoch in another order; the reference's are all in the same
    data.val_split = "val"  # scored after every epoch; chooses the best checkpoint
    data.test_splits = ("val",)  # scored in full after training
    data.threads = 8  # that read and transform images, in each worker
    data.workers = 0  # processes that do so; 0: this one. Batches are the same for any number
    # An image that cannot be read: stop ends the run and names it. skip names it and goes on: training
    # takes the next image in its place, scores leave it out.
    data.on_error = "stop"
    data.tfds = _tfds()
    data.scenes = _scenes()
    data.longtail = _longtail()
    return data


def _tfds() -> ConfigDict:
    tfds = ConfigDict()
    tfds.name = ""  # e.g. "voc/2007"
    tfds.train_split = "train"
    tfds.val_split = "validation"
    tfds.image_key = "image"
    tfds.labels_key = "labels"  # a path such as "objects/label" for nested features
    return tfds


def _scenes() -> ConfigDict:
    scenes = ConfigDict()
    scenes.bias = 0.9  # probability that a digit's partner joins, in train, val and test_iid
    scenes.num_train = 6000
    scenes.num_test = 1000  # in val and in each test split
    return scenes


def _longtail() -> ConfigDict:
    """cifar10_lt, cifar100_lt and long_tailed_digits: which training images are kept."""
    longtail = ConfigDict()
    longtail.imbalance = "exponential"  # or step: the first half of the classes common, the others rare
    longtail.ratio = 0.01  # images of the rarest class by those of the commonest
    longtail.subset_seed = 0  # of the images that are kept
    longtail.shuffle_classes = False  # the seed draws which classes are rare; else the last ones are
    longtail.largest = 1000  # long_tailed_digits: training images of the commonest class
    longtail.num_test = 100  # long_tailed_digits: images of each digit in val and in test
    return longtail


def _views() -> ConfigDict:
    """What a picture becomes before the model sees it; what belongs to one transform is in its section."""
    views = ConfigDict()
    views.image_size = 448  # side of every view, pixels
    # How a picture becomes the whole view. squeeze: made square whatever its aspect, as in the
    # reference; it also cuts patches. Of single-label classifiers, for method "whole": padded_crop, a small
    # picture as it is, in training shifted between black margins; area_crop, the middle of a
    # photo, in training a random part.
    views.transform = "squeeze"
    views.squeeze = ConfigDict({"augment": True})  # in training cutout and RandAugment, each view by itself
    views.padded_crop = ConfigDict()
    views.padded_crop.augment = True  # in training shifted at random
    views.padded_crop.flip = True  # in training mirrored half the time (not for digits)
    views.area_crop = ConfigDict()
    views.area_crop.augment = True  # in training a random part
    views.area_crop.flip = True  # in training mirrored half the time
    views.area_crop.jitter = 0.4  # in training, strength of changes of brightness, contrast and saturation
    return views


def _optim() -> ConfigDict:
    optim = ConfigDict()
    optim.name = "adamw_one_cycle"  # a name of `optim.build.OPTIMIZERS`
    optim.learning_rate = 1e-4  # the peak of the cycle or schedule
    optim.weight_decay = 1e-4  # on every parameter that is trained
    optim.pct_start = 0.2  # adamw_one_cycle: share of all steps until the peak
    optim.sgd = sgd = ConfigDict()
    sgd.momentum = 0.9
    sgd.schedule = "warmup_multistep"  # a name of `optim.build.SCHEDULES`, a rate for each epoch
    sgd.warmup_epochs = 5  # warmup_multistep: of the linear rise from a third of the peak
    sgd.milestones = (120, 160)  # warmup_multistep: epochs, counted from 1, from which the rate drops
    sgd.drop = 0.01  # warmup_multistep: factor of each drop
    optim.ema_decay = 0.9997  # of parameters and batch statistics
    return optim


def _train() -> ConfigDict:
    train = ConfigDict()
    train.batch_size = 128  # images, over all devices
    # Probability that a training image has one random patch replaced (labels unchanged), so that
    # masked images are familiar when TDE uses them.
    train.mask_rate = 0.0
    train.mask_with = "mean"  # what replaces the patch: zeros, mean or blur
    train.epochs = 80
    train.log_every = 50  # steps
    train.checkpoint_every = 0  # steps, besides after every epoch; 0: only then
    train.early_stop = True
    train.patience = (
        2  # epochs without a better metric (mAP; single-label: top-1), of raw and averaged weights
    )
    return train


def _evaluate() -> ConfigDict:
    evaluate = ConfigDict()
    evaluate.batch_size = 128  # images, over all devices
    # Of a run, after training: best, by the validation metric, or last, for data whose validation split is
    # the test split.
    evaluate.checkpoint = "best"
    return evaluate


SECTIONS: dict[str, Any] = {
    "seed": lambda: 0,  # of weights, order, augmentation and dropout
    "data": _data,
    "views": _views,
    "optim": _optim,
    "train": _train,
    "evaluate": _evaluate,
    # A checkpoint, a step of it or a run for its best: a new run is initialised from its averaged
    # weights, with a new head if the classes are others. Empty: random weights. A resumed run ignores it.
    "init_from": lambda: "",
    "mesh": lambda: ConfigDict({"fsdp": 1}),  # devices that share one copy of the parameters; the rest split the batch
    "report": lambda: ConfigDict({"tensorboard": False}),  # event files in the workdir; needs the extra "tensorboard"
}  # fmt: skip

_SEED = Bounds(most=2**32 - 1, why=": keys have 32 bits")
_BATCH = Bounds(1, 100_000, " images at once")
_COUNT = Bounds(1, 10_000_000)
_SHARE = Bounds(0, 1)
BOUNDS = {
    "seed": _SEED,
    "data.threads": Bounds(1, 1024, ": more threads than a machine has cores read no faster"),
    "data.workers": Bounds(0, 1024, ": each is a process with some hundred megabytes of its own"),
    "data.scenes.bias": _SHARE,
    "data.scenes.num_train": _COUNT,
    "data.scenes.num_test": _COUNT,
    "data.longtail.ratio": Bounds(0, 1, open=True),
    "data.longtail.subset_seed": _SEED,
    "data.longtail.largest": _COUNT,
    "data.longtail.num_test": Bounds(1, 1_000_000),
    "views.image_size": PIXELS,
    "views.area_crop.jitter": _SHARE,
    "optim.learning_rate": Bounds(open=True),
    "optim.pct_start": _SHARE,
    "optim.ema_decay": _SHARE,
    "optim.sgd.momentum": _SHARE,
    "optim.sgd.drop": _SHARE,
    "optim.sgd.milestones": Bounds(1),
    "train.batch_size": _BATCH,
    "train.mask_rate": _SHARE,
    "train.epochs": Bounds(1, 1_000_000),
    "train.log_every": Bounds(1),
    "train.patience": Bounds(1),
    "evaluate.batch_size": _BATCH,
    "mesh.fsdp": Bounds(1),
}


def _choices():
    return {
        "data.source": SOURCES,
        "data.normalise": ("", *NORMALISATIONS),
        "data.longtail.imbalance": ("exponential", "step"),
        "data.on_error": ("stop", "skip"),
        "views.transform": TRANSFORMS,
        "optim.name": OPTIMIZERS,
        "optim.sgd.schedule": SCHEDULES,
        "train.mask_with": NULL_KINDS,
        "evaluate.checkpoint": ("best", "last"),
    }


def _check(config: ConfigDict) -> None:
    milestones = config.optim.sgd.milestones
    if list(milestones) != sorted(milestones):
        raise InputError(f"config.optim.sgd.milestones {tuple(milestones)} must ascend")


def _check_training(config: ConfigDict) -> None:
    if config.optim.ema_decay == 1:
        raise InputError(
            "config.optim.ema_decay is 1: the average would stay at the initial weights; give less, 0.9997 say"
        )
    _check_milestones(config)
    _check_leaks(config.data)


def _check_milestones(config):
    sgd, epochs = config.optim.sgd, config.train.epochs
    if config.optim.name != "sgd" or sgd.schedule != "warmup_multistep":
        return
    beyond = [epoch for epoch in sgd.milestones if epoch > epochs]
    if beyond:
        raise InputError(
            f"config.optim.sgd.milestones {tuple(sgd.milestones)} has {beyond[0]}, but train.epochs is {epochs}: "
            "the learning rate would not drop there; give milestones within the epochs, or () for none"
        )


def _check_leaks(data):
    for name, splits in (("val_split", (data.val_split,)), ("test_splits", data.test_splits)):
        if "train" in splits:
            raise InputError(
                f"config.data.{name} has 'train', which is trained on; name a split of other images"
            )
    if data.source == "tfds" and data.tfds.train_split == data.tfds.val_split:
        raise InputError(
            f"config.data.tfds.val_split {data.tfds.val_split!r} is the train_split too; name a split of other images"
        )


def require_splits(data: ConfigDict) -> None:
    """Raise unless there is a split to validate on and one to test on.

    Raises:
        InputError: no test split, or one without a name.
    """
    if not data.test_splits:
        raise InputError("config.data.test_splits is empty; give at least one split, ('val',) say")
    for name, splits in (("val_split", (data.val_split,)), ("test_splits", data.test_splits)):
        if "" in splits:
            raise InputError(f"config.data.{name} names a split ''; give its name, 'val' say")


def _uses(config: ConfigDict) -> list[Use]:
    optim = config.optim
    return [
        *uses_of("data", {name: each.fields for name, each in SOURCES.items()}, config.data.source),
        *uses_of("views", {name: (f"{name}.",) for name in TRANSFORMS}, config.views.transform),
        *uses_of("optim", {name: each.fields for name, each in OPTIMIZERS.items()}, optim.name),
        *uses_of("optim.sgd", {name: each.fields for name, each in SCHEDULES.items()}, optim.sgd.schedule),
        Use(("train.mask_with",), config.train.mask_rate > 0),
        Use(("train.patience",), config.train.early_stop),
    ]


PART = Part(
    sections=SECTIONS,
    bounds=BOUNDS,
    choices=_choices,
    paths=("data.root", "data.vocabulary", "init_from"),
    neutral=(
        "data.root",
        "data.threads",
        "data.workers",
        # A run that an unreadable image has stopped may resume without it: the batches before are the same.
        "data.on_error",
        "data.test_splits",
        "evaluate.",
        "mesh.",
        "report.",
    ),
    unique=("data.test_splits",),
    expand=lambda config: None,
    check=_check,
    check_training=_check_training,
    uses=_uses,
)
