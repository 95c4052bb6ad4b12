"""The fields that all systems share: seed, data, views, optimisation, training, evaluation, mesh, report."""

import math
from typing import Any

from ml_collections import ConfigDict

from cfmlc_jax.causal.effects import NULL_KINDS
from cfmlc_jax.config.part import PIXELS, Bounds, Part, Use, require_choice, uses_of
from cfmlc_jax.data.build import SOURCES
from cfmlc_jax.data.sources.partial import UNMENTIONED
from cfmlc_jax.data.views.transforms import TRANSFORMS
from cfmlc_jax.engine import reporting
from cfmlc_jax.errors import InputError
from cfmlc_jax.metrics.fitted_thresholds import RULES as THRESHOLD_RULES
from cfmlc_jax.models.layers import normalise
from cfmlc_jax.optim.build import OPTIMIZERS, SCHEDULES


def _data() -> ConfigDict:
    data = ConfigDict()
    data.source = "coco"  # a name of `data.build.SOURCES`
    data.root = ""  # folder of the data set; empty: $CFMLC_DATA/<source>, else data/<source> (…_mnist: mnist)
    data.vocabulary = ""  # vg256: JSON file, category -> object names
    # Partial labels: what a class is that the annotations of an image do not mention. absent: it is assumed not to be
    # there. unknown: it is left out of the loss and of the metrics.
    data.unmentioned = "absent"
    # Task multi_label: share of the training labels that are hidden, to measure what partial labels cost. A hidden
    # label is one that is not mentioned.
    data.hide_labels = 0.0
    data.hide_seed = 0  # chooses the hidden labels
    data.exif = False  # rotate images by their EXIF orientation (the reference does not)
    # The model standardises pixels by this mean and deviation: a name of
    # `models.layers.normalise.NORMALISATIONS`, or six numbers, "0.5,0.5,0.5/0.2,0.2,0.2". Empty: it takes pixels
    # in [0, 1]. auto: as the weights of init_from expect; it is replaced when a run begins.
    data.normalise = ""
    # Task single_label: oversample, so that an epoch has each class as often as the most frequent one.
    data.balanced = False
    data.reshuffle = True  # shuffle again in each epoch; the reference uses one order for all epochs
    data.val_split = "val"  # scored after each epoch, to choose the best checkpoint
    data.test_splits = ("val",)  # scored in full after training
    data.threads = 8  # threads in each worker that read and transform images
    # Worker processes; 0: use the main process. Batches do not depend on the number. -1: half of the cores (at most
    # 32) for data of which an epoch takes one core more than a minute, if there are 4 cores or more and /dev/shm
    # has room; otherwise 0. Threads of the main process wait for each other wherever they run Python, and a GPU then
    # waits for images. The number is printed.
    data.workers = -1
    # What to do if an image cannot be read. stop: end the run with an error. skip: report it and continue;
    # training uses the next image instead, evaluation leaves it out.
    data.on_error = "stop"
    # Task multi_label: training images are drawn with weights that make labels independent of each other
    # (`causal.decorrelation`), as far as the effective sample size stays above a share of the images. 1: all weights are
    # equal.
    data.decorrelate = ConfigDict()
    data.decorrelate.effective_share = 1.0
    data.decorrelate.from_epoch = 1  # first epoch with these weights, counted from 1
    # Below 1: validation too weighs its images so, down to this share of them. The best checkpoint is by this mAP
    # (mAP_decorrelated), which does not reward the use of context.
    data.decorrelate.val_share = 1.0
    # Generated records (`data.sources.counterfactuals`) in the training batches, beside the real images.
    data.counterfactuals = counterfactuals = ConfigDict()
    counterfactuals.path = ""  # their folder; empty: none
    # Share of each training batch that is generated. 1: no real image is trained on, and an epoch is of the
    # generated records.
    counterfactuals.share = 0.5
    counterfactuals.from_epoch = 1  # first epoch with them, counted from 1; before it: real images alone
    # Digits with mechanisms: texture and background of the training images are independent of the digit, as in
    # the test split. False: they follow it.
    data.mechanisms = ConfigDict({"decorrelated": False})
    data.tfds = _tfds()
    data.instances = _instances()
    data.scenes = scenes()
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


def _instances() -> ConfigDict:
    """Annotation files of COCO's form; all paths are relative to data.root."""
    instances = ConfigDict()
    for split in ("train", "val"):
        instances[f"{split}_json"] = f"annotations/instances_{split}.json"
        instances[f"{split}_images"] = "images"  # folder to which file_name is relative; empty: the root
        # Text file with the images of the split, an id or file_name a line; empty: all images of the annotation file.
        instances[f"{split}_list"] = ""
    return instances


def scenes() -> ConfigDict:
    """Section `data.scenes`, of digit scenes and of their objects."""
    section = ConfigDict()
    section.bias = 0.9  # probability that the partner of a digit is added, in train, val and test_iid
    section.num_train = 6000
    section.num_test = 1000  # images in val, and in each test split
    return section


def _longtail() -> ConfigDict:
    """Which training images cifar10_lt, cifar100_lt and long_tailed_digits keep."""
    longtail = ConfigDict()
    longtail.imbalance = (
        "exponential"  # or step: the first half of the classes is frequent, the other half rare
    )
    longtail.ratio = 0.01  # number of images of the rarest class / of the most frequent class
    longtail.subset_seed = 0  # seed that chooses the images to keep
    longtail.shuffle_classes = False  # rare classes are chosen by the seed; False: the last classes are rare
    longtail.largest = 1000  # long_tailed_digits: training images of the most frequent class
    longtail.num_test = 100  # long_tailed_digits: images of each digit, in val and in test
    return longtail


def _views() -> ConfigDict:
    """How an image is transformed into views. The options of each transform are in its own section."""
    views = ConfigDict()
    views.image_size = 448  # side of every view, pixels
    # How the whole view is made. squeeze: the image is resized to a square, as in the reference; patches can
    # be cut. The others are for method "whole". padded_crop: small images at their own size; in training
    # padded with black and cropped at random. area_crop: the central crop of a photo; in training a
    # random crop.
    views.transform = "squeeze"
    views.squeeze = ConfigDict()
    views.squeeze.augment = True  # in training: cutout and RandAugment, for each view independently
    # In training, before patches are cut: the largest shift, a fraction of the side; and each channel's factor, 1 ±.
    views.squeeze.shift = 0.0
    views.squeeze.gain = 0.0
    views.padded_crop = ConfigDict()
    views.padded_crop.augment = True  # in training: shift at random
    views.padded_crop.flip = True  # in training: mirror with probability 0.5 (do not use for digits)
    views.area_crop = ConfigDict()
    views.area_crop.augment = True  # in training: crop at random
    views.area_crop.flip = True  # in training: mirror with probability 0.5
    views.area_crop.jitter = (
        0.4  # in training: strength of random changes of brightness, contrast and saturation
    )
    return views


def _optim() -> ConfigDict:
    optim = ConfigDict()
    optim.name = "adamw_one_cycle"  # a name of `optim.build.OPTIMIZERS`
    optim.learning_rate = 1e-4  # the maximum of the one-cycle or other schedule
    optim.weight_decay = 1e-4  # of all parameters that are trained
    optim.pct_start = 0.2  # adamw_one_cycle: fraction of all steps before the maximum
    optim.sgd = sgd = ConfigDict()
    sgd.momentum = 0.9
    sgd.schedule = "warmup_multistep"  # a name of `optim.build.SCHEDULES`; the rate is constant in an epoch
    sgd.warmup_epochs = 5  # warmup_multistep: epochs of linear warm-up from a third of the maximum
    sgd.milestones = (120, 160)  # warmup_multistep: epochs, counted from 1, at whose start the rate drops
    sgd.drop = 0.01  # warmup_multistep: factor of the rate at each milestone
    optim.adadelta = adadelta = ConfigDict()
    adadelta.rho = 0.9  # share of the mean squared gradients and steps that is kept
    adadelta.epsilon = 1e-6  # added to both means
    adadelta.drop = 0.7  # factor of the learning rate after each epoch; 1: it is constant
    # Gradients of a larger global norm are scaled down to this norm; 0: never. The logged grad_norm is that before.
    optim.clip_norm = 0.0
    optim.ema_decay = 0.9997  # of the averaged (EMA) parameters and batch statistics
    return optim


def _train() -> ConfigDict:
    train = ConfigDict()
    train.batch_size = 128  # images, over all devices
    # Number of parts of a batch that are computed one after the other, in the memory of one of them; their gradients
    # are summed for one step. It divides model.norm_groups, or there are no batch statistics: then a step learns
    # what it learns from the whole batch.
    train.micro_batches = 1
    # Probability that one random patch of a training image is replaced (labels unchanged), so that the
    # model knows masked images when TDE uses them.
    train.mask_rate = 0.0
    train.mask_with = "mean"  # what replaces the patch: zeros, mean or blur
    # Cells of a map (patches.source): the region of one class is removed from a training image, with its label, where the
    # averaged weights find it (`causal.removal`). One more forward pass in each step.
    train.removal = ConfigDict()
    train.removal.rate = 0.0  # probability that an image with a label loses one
    train.removal.exchange = 0.0  # probability that a class of another image of the batch takes its place
    # First epoch with removals, counted from 1: the cells must know their classes by then.
    train.removal.from_epoch = 4
    train.epochs = 80
    train.log_every = 50  # steps between two logs
    train.checkpoint_every = 0  # steps between further checkpoints; 0: save only after each epoch
    train.early_stop = True
    # Epochs without improvement of the validation metric (mAP; single_label: top-1), neither of the raw nor
    # of the averaged weights, after which training stops.
    train.patience = 2
    return train


def _evaluate() -> ConfigDict:
    evaluate = ConfigDict()
    evaluate.batch_size = 128  # images, over all devices
    evaluate.every = 1  # epochs between two validations; the last epoch is always validated
    # Checkpoint to evaluate after training. best: by the validation metric. last: for data whose validation
    # split is the test split.
    evaluate.checkpoint = "best"
    # Task multi_label: above which probability a class counts as present. fixed: 0.5. The others are fitted for each
    # class on the validation split, at the end of training: f1: the best F1; precision: the most images at a precision
    # of at least `least_precision`; rate: as large a share of the images as the class has in training.
    evaluate.thresholds = "fixed"
    evaluate.least_precision = 0.9
    return evaluate


def _report() -> ConfigDict:
    """Where a run's metrics go, and how trackers name the run."""
    report = ConfigDict()
    # metrics.jsonl is always written, because the report reads it. Beside it: tensorboard (event files in the
    # workdir), wandb, mlflow (each an extra of the same name), or module:Class for a writer of your own.
    report.writers = ("jsonl",)
    report.project = ""  # of wandb, and experiment of mlflow; empty: $WANDB_PROJECT, $MLFLOW_EXPERIMENT_NAME, else cfmlc_jax
    report.name = ""  # of the run in the trackers; empty: $WANDB_NAME or, for mlflow, $MLFLOW_RUN_NAME, else the workdir's
    report.group = ""  # of runs that belong together in the trackers
    report.tags = ()  # of the run in the trackers
    return report


SECTIONS: dict[str, Any] = {
    "seed": lambda: 0,  # of initial weights, order of images, augmentation and dropout
    "data": _data,
    "views": _views,
    "optim": _optim,
    "train": _train,
    "evaluate": _evaluate,
    # A checkpoint, or the workdir of a run for its best checkpoint; a file of PyTorch or safetensors; or the name of
    # public weights, torchvision:resnet101.IMAGENET1K_V2 or hf:owner/name (python -m cfmlc_jax.weights list). A new
    # run is initialised from the averaged weights, with a new head if the classes differ. Empty: random weights. A
    # resumed run ignores it.
    "init_from": lambda: "",
    "mesh": lambda: ConfigDict({"fsdp": 1}),  # number of devices that together hold one copy of the parameters
    "report": _report,
}  # fmt: skip

_SEED = Bounds(most=2**32 - 1, why=": keys have 32 bits")
_BATCH = Bounds(1, 100_000, " images in a batch")
_COUNT = Bounds(1, 10_000_000)
_SHARE = Bounds(0, 1)
BOUNDS = {
    "seed": _SEED,
    "data.threads": Bounds(1, 1024, ": more threads than cores are not faster"),
    "data.hide_labels": Bounds(0, 0.99),
    "data.hide_seed": _SEED,
    "data.workers": Bounds(-1, 1024, ": each is a process of some hundred megabytes"),
    "data.decorrelate.effective_share": Bounds(0, 1, open=True),
    "data.decorrelate.from_epoch": Bounds(1),
    "data.decorrelate.val_share": Bounds(0, 1, open=True),
    "data.counterfactuals.share": _SHARE,
    "data.counterfactuals.from_epoch": Bounds(1),
    "data.scenes.bias": _SHARE,
    "data.scenes.num_train": _COUNT,
    "data.scenes.num_test": _COUNT,
    "data.longtail.ratio": Bounds(0, 1, open=True),
    "data.longtail.subset_seed": _SEED,
    "data.longtail.largest": _COUNT,
    "data.longtail.num_test": Bounds(1, 1_000_000),
    "views.image_size": PIXELS,
    "views.squeeze.shift": Bounds(0, 0.5),
    "views.squeeze.gain": _SHARE,
    "views.area_crop.jitter": _SHARE,
    "optim.learning_rate": Bounds(open=True),
    "optim.pct_start": _SHARE,
    "optim.ema_decay": _SHARE,
    "optim.sgd.momentum": _SHARE,
    "optim.sgd.drop": _SHARE,
    "optim.sgd.milestones": Bounds(1),
    "optim.adadelta.rho": _SHARE,
    "optim.adadelta.epsilon": Bounds(open=True),
    "optim.adadelta.drop": Bounds(0, 1, open=True),
    "train.batch_size": _BATCH,
    "train.micro_batches": Bounds(1),
    "train.mask_rate": _SHARE,
    "train.removal.rate": _SHARE,
    "train.removal.exchange": _SHARE,
    "train.removal.from_epoch": Bounds(1),
    "train.epochs": Bounds(1, 1_000_000),
    "train.log_every": Bounds(1),
    "train.patience": Bounds(1),
    "evaluate.batch_size": _BATCH,
    "evaluate.every": Bounds(1),
    "evaluate.least_precision": Bounds(0, 1, open=True),
    "mesh.fsdp": Bounds(1),
}


def _choices():
    return {
        "data.source": SOURCES,
        "data.unmentioned": UNMENTIONED,
        "data.longtail.imbalance": ("exponential", "step"),
        "data.on_error": ("stop", "skip"),
        "views.transform": TRANSFORMS,
        "optim.name": OPTIMIZERS,
        "optim.sgd.schedule": SCHEDULES,
        "train.mask_with": NULL_KINDS,
        "evaluate.checkpoint": ("best", "last"),
        "evaluate.thresholds": THRESHOLD_RULES,
    }


def check_report(config: ConfigDict) -> None:
    """Raise unless every writer is one of `reporting.WRITERS` or a class of the user's, module:Class.

    Raises:
        InputError: names the writer.
    """
    for name in config.report.writers:
        if not reporting.is_custom(name):
            require_choice("report.writers", name, reporting.WRITERS)


def report_uses(config: ConfigDict) -> list[Use]:
    """The fields of section `report` that a run reads."""
    names = tuple(f"report.{field}" for field in ("project", "name", "group", "tags"))
    return [Use(names, any(name in reporting.TRACKERS for name in config.report.writers))]


def _check(config: ConfigDict) -> None:
    check_report(config)
    try:
        normalise.parse(config.data.normalise)
    except InputError as error:
        raise InputError(f"config.data.normalise {error}") from error
    milestones = config.optim.sgd.milestones
    if list(milestones) != sorted(milestones):
        raise InputError(f"config.optim.sgd.milestones {tuple(milestones)} must ascend")


def _check_training(config: ConfigDict) -> None:
    if config.optim.ema_decay == 1:
        raise InputError(
            "config.optim.ema_decay is 1: the averaged weights would stay at their initial values; use a smaller value, such as 0.9997"
        )
    _check_milestones(config)
    _check_decorrelation(config)
    _check_removal(config)
    _check_counterfactuals(config)
    _check_leaks(config.data)


def _check_milestones(config):
    sgd, epochs = config.optim.sgd, config.train.epochs
    if config.optim.name != "sgd" or sgd.schedule != "warmup_multistep":
        return
    beyond = [epoch for epoch in sgd.milestones if epoch > epochs]
    if beyond:
        raise InputError(
            f"config.optim.sgd.milestones {tuple(sgd.milestones)} has {beyond[0]}, but train.epochs is {epochs}: "
            "the learning rate would never drop there; use milestones within the epochs, or () for none"
        )


def _check_decorrelation(config):
    decorrelate, epochs = config.data.decorrelate, config.train.epochs
    if decorrelate.effective_share < 1 and decorrelate.from_epoch > epochs:
        raise InputError(
            f"config.data.decorrelate.from_epoch is {decorrelate.from_epoch}, but train.epochs is {epochs}: no image "
            "would be drawn with these weights; make it smaller, or set effective_share to 1"
        )


def _check_removal(config):
    removal, epochs = config.train.removal, config.train.epochs
    if removal.rate and removal.from_epoch > epochs:
        raise InputError(
            f"config.train.removal.from_epoch is {removal.from_epoch}, but train.epochs is {epochs}: no class would be "
            "removed; make it smaller, or set rate to 0"
        )


def _check_counterfactuals(config):
    share, batch_size = config.data.counterfactuals.share, config.train.batch_size
    from_epoch = config.data.counterfactuals.from_epoch
    if config.data.counterfactuals.path and share and from_epoch > config.train.epochs:
        raise InputError(
            f"config.data.counterfactuals.from_epoch is {from_epoch}, but train.epochs is {config.train.epochs}: no "
            "batch would have generated records; make it smaller"
        )
    if config.data.counterfactuals.path and not math.isclose(share * batch_size, round(share * batch_size)):
        raise InputError(
            f"config.data.counterfactuals.share {share:g} of train.batch_size {batch_size} is {share * batch_size:g} "
            f"images; make it a whole number, such as {round(share * batch_size)}/{batch_size}"
        )


def _check_leaks(data):
    for name, splits in (("val_split", (data.val_split,)), ("test_splits", data.test_splits)):
        if "train" in splits:
            raise InputError(
                f"config.data.{name} has 'train', which is the training split; name a split with other images"
            )
    if data.source == "tfds" and data.tfds.train_split == data.tfds.val_split:
        raise InputError(
            f"config.data.tfds.val_split {data.tfds.val_split!r} is also the train_split; name a split with other images"
        )


def require_splits(data: ConfigDict) -> None:
    """Raise unless there is a split to validate on and one to test on.

    Raises:
        InputError: there is no test split, or a split's name is empty.
    """
    if not data.test_splits:
        raise InputError("config.data.test_splits is empty; give at least one split, such as ('val',)")
    for name, splits in (("val_split", (data.val_split,)), ("test_splits", data.test_splits)):
        if "" in splits:
            raise InputError(f"config.data.{name} names a split ''; give a name, such as 'val'")


def _uses(config: ConfigDict) -> list[Use]:
    optim, counterfactuals = config.optim, config.data.counterfactuals
    return [
        *uses_of("data", {name: each.fields for name, each in SOURCES.items()}, config.data.source),
        *uses_of("views", {name: (f"{name}.",) for name in TRANSFORMS}, config.views.transform),
        *uses_of("optim", {name: each.fields for name, each in OPTIMIZERS.items()}, optim.name),
        *uses_of("optim.sgd", {name: each.fields for name, each in SCHEDULES.items()}, optim.sgd.schedule),
        Use(("data.unmentioned",), SOURCES[config.data.source].partial or config.data.hide_labels > 0),
        Use(("data.hide_seed",), config.data.hide_labels > 0),
        Use(("data.decorrelate.from_epoch",), config.data.decorrelate.effective_share < 1),
        Use(("data.counterfactuals.path",), counterfactuals.share > 0),
        Use(("data.counterfactuals.share",), bool(counterfactuals.path)),
        Use(("data.counterfactuals.from_epoch",), bool(counterfactuals.path) and counterfactuals.share > 0),
        Use(("train.mask_with",), config.train.mask_rate > 0),
        Use(("train.removal.from_epoch", "train.removal.exchange"), config.train.removal.rate > 0),
        Use(("train.patience",), config.train.early_stop),
        Use(("evaluate.least_precision",), config.evaluate.thresholds == "precision"),
        *report_uses(config),
    ]


PART = Part(
    sections=SECTIONS,
    bounds=BOUNDS,
    choices=_choices,
    paths=("data.root", "data.vocabulary", "data.counterfactuals.path", "init_from"),
    neutral=(
        "data.root",
        "data.counterfactuals.path",  # a checkpoint knows its records by their content
        "data.threads",
        "data.workers",
        # May change when a run is resumed: a run that stopped at an unreadable image can skip it.
        "data.on_error",
        "data.test_splits",
        "evaluate.",
        "mesh.",
        "train.micro_batches",  # the gradients of the whole batch, in other memory
        "report.",
    ),
    unique=("data.test_splits", "report.writers"),
    expand=lambda config: None,
    check=_check,
    check_training=_check_training,
    uses=_uses,
)
