"""The configuration: every field once, with its default, and the checks across fields.

The defaults are the paper's recipe for COCO 2014 (MLC-PAT); files in configs/ change what differs.
"""

import difflib
import json
import math
import re
from typing import Any

from ml_collections import ConfigDict

from cfmlc_jax import files
from cfmlc_jax.config import schema
from cfmlc_jax.errors import InputError

METHODS = ("pat_t", "pat_i", "asl")
SOURCES = (
    *("coco", "voc2007", "vg256", "table", "tfds", "scenes"),
    *("cifar10_lt", "cifar100_lt", "imagenet_lt", "places_lt", "long_tailed_digits"),  # one label an image
)
DTYPES = ("float32", "bfloat16")
# Of the latter, the heads with a mean feature, whose direct effect needs no null image.
MEAN_HEADS = ("causal_norm", "cosine", "capsule")
HEADS = ("", "linear", "ml_decoder", "query2label", "dot_product", "lws", *MEAN_HEADS)
# Of one label an image.
SOFTMAX_LOSSES = ("cross_entropy", "focal", "weighted_cross_entropy")
OPTIMIZERS = ("adamw_one_cycle", "sgd")
SCHEDULES = ("warmup_multistep", "cosine")
CROPS = ("", "padded", "area")
ON_ERROR = ("stop", "skip")
STATISTICS = ("", "cifar", "imagenet", "inaturalist")


def default() -> ConfigDict:
    """Every field with its default, unlocked: a config file changes some and returns the whole."""
    config = ConfigDict()
    config.seed = 0  # of weights, order, augmentation and dropout

    config.data = data = ConfigDict()
    data.source = "coco"  # one of SOURCES
    data.root = ""  # folder of the data set; empty: $CFMLC_DATA/<source>, else data/<source>
    data.vocabulary = ""  # vg256: JSON file, category -> object names
    data.exif = False  # turn images as their EXIF orientation says (the reference does not)
    # Of one label an image: an epoch has every class as often as the commonest, its images repeated.
    data.balanced = False
    data.reshuffle = True  # every epoch in another order; the reference's are all in the same
    data.val_split = "val"  # scored after every epoch; chooses the best checkpoint
    data.test_splits = ("val",)  # scored in full after training
    data.threads = 8  # that read and transform images, in each worker
    data.workers = 0  # processes that do so; 0: this one. Batches are the same for any number
    # An image that cannot be read: stop ends the run and names it. skip names it and goes on: training
    # takes the next image in its place, scores leave it out.
    data.on_error = "stop"
    data.tfds = tfds = ConfigDict()
    tfds.name = ""  # e.g. "voc/2007"
    tfds.train_split = "train"
    tfds.val_split = "validation"
    tfds.image_key = "image"
    tfds.labels_key = "labels"  # a path such as "objects/label" for nested features
    data.scenes = scenes = ConfigDict()
    scenes.bias = 0.9  # probability that a digit's partner joins, in train, val and test_iid
    scenes.num_train = 6000
    scenes.num_test = 1000  # in val and in each test split
    # cifar10_lt, cifar100_lt and long_tailed_digits: which training images are kept.
    data.longtail = longtail = ConfigDict()
    longtail.imbalance = "exponential"  # or step: the first half of the classes common, the others rare
    longtail.ratio = 0.01  # images of the rarest class by those of the commonest
    longtail.seed = 0  # of the images that are kept
    longtail.shuffle_classes = False  # the seed draws which classes are rare; else the last ones are
    longtail.digits = 1000  # long_tailed_digits: training images of the commonest
    longtail.num_test = 100  # long_tailed_digits: images of each digit in val and in test

    config.views = views = ConfigDict()
    views.image_size = 448  # side of every view, pixels
    views.grids = (2,)  # patches along one side; several numbers: patches of several scales
    views.overlap = 0.0  # share of a patch's side that neighbours have in common
    # Side of a patch as the model sees it, pixels. 0: image_size, patches are enlarged by the host and
    # augmented one by one, as in the reference. Else patches are cut on the device from the whole
    # view; image_size / grid is its resolution, which costs the model no more than one whole view.
    views.patch_size = 0
    # How a picture becomes the whole view. Empty: squeezed to it, as in the reference. For method "asl"
    # there is also what single-label classifiers are trained by: padded, a small picture as it is, in
    # training shifted between black margins; area, the middle of a photo, in training a random part.
    views.crop = ""
    views.flip = True  # with a crop: mirrored half the time in training (not for digits)
    views.jitter = 0.4  # with crop "area": strength of changes of colour in training
    views.augment = True  # training: cutout and RandAugment, each view by itself; with a crop, its own

    config.model = model = ConfigDict()
    model.name = "resnet101"  # see models/catalogue.py
    model.head = ""  # one of HEADS; empty: linear, or Query2Label where the name begins with "q2l_"
    model.groups = 100  # queries of an ML-Decoder head, at most one per class
    # Of the heads causal_norm, cosine and capsule: see models/heads/pooled.py.
    model.cosine = cosine = ConfigDict()
    cosine.num_heads = 2  # slices of the features that are normalised by themselves
    cosine.tau = 16.0  # factor of the mean cosine
    cosine.gamma = 1 / 32  # causal_norm: added to the norms of weights
    cosine.mu = 0.9  # share of the mean feature that each training step keeps
    # The share follows the learning rate of SGD, 1 − 0.1·min(50·rate, 1), as in the reference off CIFAR.
    cosine.mu_from_rate = False
    model.statistics = ""  # of colours, that pixels are standardised by: one of STATISTICS
    # Regular expressions of parameters, as "backbone/.*", that are not trained; norms' running
    # statistics still move.
    model.frozen = ()
    model.attention = "cross"  # none, self or cross: see models/heads/output.py
    # The patches are the cells of this map of the backbone ("layer1" of a ResNet, say), not views cut
    # from the image: their evidence costs next to nothing. Empty: they are views.
    model.cells = ""
    # How patches are pooled, a name of `causal.patches.POOLINGS`. pivot: each class by its own softmax over
    # patches, the paper's. exclusive: each patch is divided among the classes, so that one cannot vouch
    # for another.
    model.pooling = "pivot"
    # Groups of a batch's images with batch statistics of their own; 1: all together. The reference
    # has one group for each GPU.
    model.norm_groups = 1
    model.dtype = "float32"  # of the computation; parameters and loss are always float32

    # pat_t: trains with patches and predicts with them. pat_i: trains on whole images and predicts
    # with patches too. asl: whole images only, the baseline, with whichever loss. The latter two have
    # attention "none".
    config.method = "pat_t"

    # A checkpoint, a step of it or a run for its best: a new run begins with its averaged weights, and
    # with a fresh head if the classes are others. Empty: random weights. A resumed run ignores it.
    config.init_from = ""

    config.loss = loss = ConfigDict()
    # asymmetric: each class by itself, any number of labels an image. Of one label an image, by a
    # softmax: one of SOFTMAX_LOSSES; results are accuracies then.
    loss.name = "asymmetric"
    loss.gamma_neg = 4.0
    loss.gamma_pos = 0.0
    loss.clip = 0.05
    loss.focal_gamma = 2.0  # of "focal"

    config.optim = optim = ConfigDict()
    optim.name = "adamw_one_cycle"  # one of OPTIMIZERS
    optim.learning_rate = 1e-4  # the peak of the cycle or schedule
    optim.weight_decay = 1e-4  # on every parameter that is trained
    optim.pct_start = 0.2  # adamw_one_cycle: share of all steps until the peak
    optim.momentum = 0.9  # sgd
    optim.schedule = "warmup_multistep"  # sgd: one of SCHEDULES, a rate for each epoch
    optim.warmup_epochs = 5  # warmup_multistep: of the linear rise from a third of the peak
    optim.milestones = (120, 160)  # warmup_multistep: epochs, counted from 1, from which the rate drops
    optim.drop = 0.01  # warmup_multistep: factor of each drop
    optim.ema_decay = 0.9997  # of parameters and batch statistics

    config.train = train = ConfigDict()
    train.batch_size = 128  # images, over all devices
    # Share of the images that are trained on without one patch, drawn at random, their labels kept: so
    # that the images that TDE asks about are not foreign.
    train.null_rate = 0.0
    train.null = "mean"  # what the patch shows instead: zeros, mean or blur
    train.epochs = 80
    train.log_every = 50  # steps
    train.checkpoint_every = 0  # steps, besides after every epoch; 0: only then
    train.early_stop = True
    train.patience = 2  # epochs without a better mAP (one label: top-1), of weights and of their average

    config.effect = effect = ConfigDict()
    # Total direct effects that the full evaluation adds: whole and pivot take away what the null
    # stands in for, feature what the logits owe to the mean feature of a head of MEAN_HEADS.
    effect.kinds = ("whole", "pivot")
    effect.null = "mean"  # what stands in for what is removed: zeros, mean or blur
    effect.alphas = (0.5, 1.0)  # strengths; any can be read off the saved scores later

    config.evaluate = evaluate = ConfigDict()
    evaluate.batch_size = 128  # images, over all devices
    # After training the last checkpoint is evaluated, not the best: for data whose validation split is the
    # test split.
    evaluate.latest = False
    # Head dot_product: its weights are divided by this power of their lengths, w / ‖w‖^tau. 0: as trained.
    evaluate.tau_norm = 0.0

    config.mesh = mesh = ConfigDict()
    mesh.fsdp = 1  # devices that share one copy of the parameters; the rest of them split the batch

    config.report = report = ConfigDict()
    report.tensorboard = False  # event files in the workdir; needs the extra "tensorboard"
    return config


def validate(config: Any) -> ConfigDict:
    """The configuration of a command, as a copy, locked, if its fields suit each other.

    Raises:
        InputError: fields that are missing or unknown, a value of another type or out of range, or
            fields that contradict each other.
    """
    if not isinstance(config, ConfigDict):
        raise InputError(
            f"the configuration is of type {type(config).__name__}; begin with cfmlc_jax.config.default() and return it"
        )
    checked = _checked(config)
    schema.require_complete(checked, config)
    require_splits(checked.data)
    for name in ("views.grids", "data.test_splits", "effect.kinds", "model.frozen"):
        _check_repeated(name, field(checked, name))
    # Results of strengths are named by these.
    _check_repeated("effect.alphas", [f"{alpha:g}" for alpha in checked.effect.alphas])
    return checked


def require_trainable(config: ConfigDict) -> None:
    """Raise if training by a validated configuration would waste its time, or leave something untrained.

    A checkpoint that was trained so can still be evaluated and used.

    Raises:
        InputError: fields that contradict each other.
    """
    if config.model.cells and config.views.patch_size:
        raise InputError(
            f"config.views.patch_size {config.views.patch_size} cuts patches from the image that nothing looks at, "
            f"since model.cells {config.model.cells!r} are the patches; set one of them to its default"
        )
    if config.model.pooling == "exclusive" and config.model.attention == "cross":
        raise InputError(
            "config.model.pooling 'exclusive' takes scores alone, so that the attention branch of model.attention "
            "'cross' would never be trained; set model.attention to 'self'"
        )
    if config.optim.ema_decay == 1:
        raise InputError(
            "config.optim.ema_decay is 1: the average would stay at the initial weights; give less, 0.9997 say"
        )
    if config.loss.name == "asymmetric" and config.loss.clip == 1:
        raise InputError("config.loss.clip is 1: absent classes would have no loss; give less, 0.05 say")
    if (
        config.model.head in MEAN_HEADS
        and config.model.cosine.mu == 1
        and not config.model.cosine.mu_from_rate
    ):
        raise InputError("config.model.cosine.mu is 1: the mean feature would stay at 0; give less, 0.9 say")
    _check_milestones(config)
    _check_leaks(config.data)


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


def unused(config: ConfigDict) -> list[str]:
    """Names of the fields that differ from their defaults, though nothing in the run looks at them."""
    fields, defaults = flat(to_json(config)), flat(to_json(default()))
    idle = [name for names, used in _uses(config) if not used for name in names]
    sections = tuple(name for name in idle if name.endswith("."))
    return [
        name
        for name in fields
        if (name in idle or name.startswith(sections)) and fields[name] != defaults[name]
    ]


def _uses(config):
    """Fields, or sections with a point behind them, and whether the configuration has a use for them."""
    data, optim, head = config.data, config.optim, config.model.head
    patches = config.method != "asl" and not config.model.cells
    warmup = optim.name == "sgd" and optim.schedule == "warmup_multistep"
    return (
        (("data.vocabulary",), data.source == "vg256"),
        (("data.tfds.",), data.source == "tfds"),
        (("data.scenes.",), data.source == "scenes"),
        (("data.longtail.",), data.source in ("cifar10_lt", "cifar100_lt", "long_tailed_digits")),
        (("data.longtail.digits", "data.longtail.num_test"), data.source == "long_tailed_digits"),
        (("views.grids", "views.overlap"), patches or config.train.null_rate > 0),
        (("views.patch_size",), patches),
        (("views.flip",), bool(config.views.crop)),
        (("views.jitter",), config.views.crop == "area"),
        (("model.groups",), head == "ml_decoder"),
        (("model.cosine.",), head in MEAN_HEADS),
        (("model.cosine.mu",), not config.model.cosine.mu_from_rate),
        (("model.pooling",), config.method != "asl"),
        (("loss.gamma_neg", "loss.gamma_pos", "loss.clip"), config.loss.name == "asymmetric"),
        (("loss.focal_gamma",), config.loss.name == "focal"),
        (("optim.pct_start",), optim.name == "adamw_one_cycle"),
        (("optim.momentum", "optim.schedule"), optim.name == "sgd"),
        (("optim.warmup_epochs", "optim.milestones", "optim.drop"), warmup),
        (("train.null",), config.train.null_rate > 0),
        (("train.patience",), config.train.early_stop),
        (("effect.null",), bool({"whole", "pivot"} & set(config.effect.kinds))),
        (("effect.alphas",), bool(config.effect.kinds)),
    )


def _checked(fields):
    """Fields on top of the defaults, locked, each by itself, and what cannot be built by others of them."""
    config = default()
    schema.fill(config, fields)
    _check_numbers(config)
    _check_choices(config)
    for name in PATHS:
        files.require_path(field(config, name), f"config.{name}")
    _check_method(config)
    _check_views(config.views)
    _check_cells(config)
    _check_norm_groups(config)
    _check_one_label(config)
    _check_head(config)
    _check_optimizer(config.optim)
    return config.lock()


def _check_choices(config):
    _one_of("data.source", config.data.source, SOURCES)
    _one_of("data.longtail.imbalance", config.data.longtail.imbalance, ("exponential", "step"))
    _one_of("data.on_error", config.data.on_error, ON_ERROR)
    _one_of("method", config.method, METHODS)
    _one_of("model.pooling", config.model.pooling, _poolings())
    _one_of("model.dtype", config.model.dtype, DTYPES)
    _one_of("model.head", config.model.head, HEADS)
    _one_of("model.attention", config.model.attention, ("none", "self", "cross"))
    _one_of("model.statistics", config.model.statistics, STATISTICS)
    _one_of("views.crop", config.views.crop, CROPS)
    _one_of("loss.name", config.loss.name, ("asymmetric", *SOFTMAX_LOSSES))
    _one_of("optim.name", config.optim.name, OPTIMIZERS)
    _one_of("optim.schedule", config.optim.schedule, SCHEDULES)
    for name in ("effect.null", "train.null"):
        _one_of(name, field(config, name), ("zeros", "mean", "blur"))
    for kind in config.effect.kinds:
        _one_of("effect.kinds", kind, ("whole", "pivot", "feature"))


def _check_numbers(config):
    """Every number is one that the run's arithmetic has, and in its field's range."""
    for name in schema.names(config):
        value = field(config, name)
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, int | float) and not isinstance(number, bool):
                _check_number(name, number, "has" if isinstance(value, tuple) else "is")
    for name in ("optim.learning_rate", "model.cosine.tau"):
        if field(config, name) == 0:
            raise InputError(f"config.{name} is 0.0; it must be above 0")
    ratio = config.data.longtail.ratio
    if not 0 < ratio <= 1:
        raise InputError(f"config.data.longtail.ratio is {ratio}; it must be above 0 and at most 1")


def _check_number(name, number, verb):
    least = _MINIMA.get(name, 0)
    low, high = _RANGES.get(name, (-math.inf, math.inf))
    most, reason = _MAXIMA.get(name, (_LARGEST[type(number)], ""))
    begin = f"config.{name} {verb} {schema.shown(number)}; it must be"
    if isinstance(number, float) and not math.isfinite(number):
        raise InputError(f"{begin} a finite number")
    if not low <= number <= high:
        raise InputError(f"{begin} in [{low}, {high}]")
    if number < least:
        raise InputError(f"{begin} at least {least}")
    if number > most:
        raise InputError(f"{begin} at most {most}{reason}")


def to_json(config: ConfigDict) -> dict[str, Any]:
    """The configuration as plain JSON types (tuples become lists)."""
    return json.loads(config.to_json_best_effort())


def from_json(fields: Any) -> ConfigDict:
    """The configuration that `to_json` wrote, on top of today's defaults, checked and locked.

    Raises:
        InputError: a field that this version does not have, or a value that it does not take.
    """
    if not isinstance(fields, dict):
        raise InputError(f"the stored configuration is of type {type(fields).__name__}, not one of fields")
    return _checked(fields)


def is_one_label(config: Any) -> bool:
    """Whether images have one label each, by the loss: of a configuration, or of its JSON fields."""
    return config["loss"].get("name", "asymmetric") in SOFTMAX_LOSSES


def completed(fields: dict[str, Any]) -> dict[str, Any]:
    """Flat fields of an older version's configuration, with today's defaults for fields that it lacks."""
    return flat(to_json(default())) | flat(fields)


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """ "name: old -> new" of every field that may not change between a run and its continuation."""
    old, new = flat(old), flat(new)
    return [
        f"{name}: {old.get(name)!r} -> {new.get(name)!r}"
        for name in sorted(old.keys() | new.keys())
        if not name.startswith(_NEUTRAL) and not _agree(name, old.get(name), new.get(name))
    ]


def _agree(name, old, new):
    if name in PATHS and isinstance(old, str) and isinstance(new, str):
        return files.same_path(old, new)
    return old == new


def field(config: Any, name: str) -> Any:
    """The value of a dotted name."""
    for part in name.split("."):
        config = config[part]
    return config


def flat(fields: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested fields by dotted name."""
    named = {}
    for key, value in fields.items():
        if isinstance(value, dict):
            named.update(flat(value, f"{prefix}{key}."))
        else:
            named[prefix + key] = value
    return named


# Fields that are a file or folder.
PATHS = ("data.root", "data.vocabulary", "init_from")

# Fields that decide where and how fast a run goes, or what is evaluated, but not what it learns.
_NEUTRAL = (
    "data.root",
    "data.threads",
    "data.workers",
    # A run that an unreadable image has stopped may go on without it: the batches before are the same.
    "data.on_error",
    "data.test_splits",
    "effect.",
    "evaluate.",
    "mesh.",
    "report.",
)

# Steps and places are counted in int32; the largest float32 is 3.4e38.
_LARGEST = {int: 2**31 - 1, float: 1e38}
# Of the other numbers 0.
_MINIMA = {
    "data.threads": 1,
    "data.scenes.num_train": 1,
    "data.scenes.num_test": 1,
    "data.longtail.digits": 1,
    "data.longtail.num_test": 1,
    "views.image_size": 1,
    "views.grids": 2,
    "model.groups": 1,
    "model.norm_groups": 1,
    "model.cosine.num_heads": 1,
    "optim.milestones": 1,
    "train.batch_size": 1,
    "train.epochs": 1,
    "train.log_every": 1,
    "train.patience": 1,
    "evaluate.batch_size": 1,
    "mesh.fsdp": 1,
}
_SEED = (2**32 - 1, ": keys have 32 bits")
_IMAGES = (100_000, " images at once")
_PIXELS = (8192, " pixels: a view of more takes a gigabyte in float32")
# The most of a number, and why.
_MAXIMA = {
    "seed": _SEED,
    "data.longtail.seed": _SEED,
    "data.threads": (1024, ": more threads than a machine has cores read no faster"),
    "data.workers": (1024, ": each is a process with some hundred megabytes of its own"),
    "data.scenes.num_train": (10_000_000, ""),
    "data.scenes.num_test": (10_000_000, ""),
    "data.longtail.digits": (10_000_000, ""),
    "data.longtail.num_test": (1_000_000, ""),
    "views.image_size": _PIXELS,
    "views.patch_size": _PIXELS,
    "views.grids": (64, ": each of the grid × grid patches is a forward pass"),
    "train.batch_size": _IMAGES,
    "train.epochs": (1_000_000, ""),
    "evaluate.batch_size": _IMAGES,
}
_RANGES = {
    "data.scenes.bias": (0, 1),
    "views.overlap": (0, 0.95),
    "views.jitter": (0, 1),
    "model.cosine.mu": (0, 1),
    "loss.clip": (0, 1),
    "train.null_rate": (0, 1),
    "optim.pct_start": (0, 1),
    "optim.momentum": (0, 1),
    "optim.drop": (0, 1),
    "optim.ema_decay": (0, 1),
}


def _poolings() -> tuple[str, ...]:
    # Imported here: JAX comes with it, and programs set where it caches after they have read their flags.
    from cfmlc_jax.causal.patches import POOLINGS

    return tuple(POOLINGS)


def _check_repeated(name, values):
    twice = next((value for i, value in enumerate(values) if value in values[:i]), None)
    if twice is not None:
        raise InputError(f"config.{name} has {twice} twice; leave one of them out")


def _check_milestones(config):
    optim, epochs = config.optim, config.train.epochs
    if optim.name != "sgd" or optim.schedule != "warmup_multistep":
        return
    beyond = [epoch for epoch in optim.milestones if epoch > epochs]
    if beyond:
        raise InputError(
            f"config.optim.milestones {tuple(optim.milestones)} has {beyond[0]}, but train.epochs is {epochs}: the "
            "learning rate would not drop there; give milestones within the epochs, or () for none"
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


def _check_method(config):
    patches_trained = config.method == "pat_t"
    if patches_trained and config.model.attention == "none":
        raise InputError("method 'pat_t' needs model.attention 'self' or 'cross', not 'none'")
    if not patches_trained and config.model.attention != "none":
        raise InputError(
            f"method {config.method!r} has one head: set model.attention to 'none', not {config.model.attention!r}"
        )
    if config.method == "asl" and "pivot" in config.effect.kinds:
        raise InputError(
            "method 'asl' has no patches: take 'pivot' out of effect.kinds, or use method 'pat_i'"
        )


def _check_views(views):
    if not views.grids:
        raise InputError("config.views.grids is empty; give at least one number, (2,) say")
    for grid in views.grids:
        if views.overlap == 0 and len(views.grids) == 1 and views.image_size % grid:
            below = views.image_size // grid * grid
            tries = " or ".join(str(size) for size in (below, below + grid) if size)
            raise InputError(
                f"views.image_size {views.image_size} is not divisible by views.grids {grid}; try {tries}"
            )
    if max(views.grids) > views.image_size:
        raise InputError(
            f"views.grids {max(views.grids)} cuts views of {views.image_size} pixels into patches of none; "
            "make views.image_size larger"
        )


def _check_cells(config):
    if not config.model.cells:
        return
    if config.method != "pat_t":
        raise InputError(f"config.model.cells is for method 'pat_t'; leave it empty for {config.method!r}")
    if "pivot" in config.effect.kinds:
        raise InputError(
            "config.model.cells: cells of a map cannot be taken out of the image; take 'pivot' out of effect.kinds"
        )


def _check_norm_groups(config):
    batch_size, groups = config.train.batch_size, config.model.norm_groups
    if batch_size % groups:
        below = batch_size // groups * groups
        tries = " or ".join(str(size) for size in (below, below + groups) if size)
        raise InputError(
            f"config.train.batch_size {batch_size} is not divisible by config.model.norm_groups {groups}; try {tries}"
        )


def _check_one_label(config):
    """Crops and softmax losses are of whole images, and balanced classes of one label."""
    if config.data.balanced and not is_one_label(config):
        raise InputError(
            f"config.data.balanced is for one label an image: set it to False, or loss.name to one of {', '.join(SOFTMAX_LOSSES)}"
        )
    for name, value in (("loss.name", config.loss.name), ("views.crop", config.views.crop)):
        if value not in ("", "asymmetric") and config.method != "asl":
            raise InputError(
                f"config.{name} {value!r} is for whole images: set method to 'asl', not {config.method!r}, "
                "and model.attention to 'none'"
            )


def _check_head(config):
    head = config.model.head
    if "feature" in config.effect.kinds and head not in MEAN_HEADS:
        raise InputError(
            f"effect.kinds has 'feature', but model.head {head!r} has no mean feature; take it out, or set the head "
            f"to one of {', '.join(MEAN_HEADS)}"
        )
    if config.model.cosine.mu_from_rate and config.optim.name != "sgd":
        raise InputError(
            "config.model.cosine.mu_from_rate follows the rates of optim.name 'sgd'; set it to False, and give mu"
        )
    if config.evaluate.tau_norm and head != "dot_product":
        raise InputError(
            f"config.evaluate.tau_norm is for model.head 'dot_product', not {head!r}; set it to 0"
        )
    for pattern in config.model.frozen:
        try:
            re.compile(pattern)
        except (re.error, OverflowError, RecursionError) as error:
            raise InputError(
                f"config.model.frozen has {pattern!r}, which is no regular expression ({error})"
            ) from error


def _check_optimizer(optim):
    if list(optim.milestones) != sorted(optim.milestones):
        raise InputError(f"config.optim.milestones {tuple(optim.milestones)} must ascend")


def _one_of(name, value, choices):
    if value not in choices:
        near = difflib.get_close_matches(str(value), choices, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise InputError(f"config.{name} {value!r} is not one of {', '.join(choices)}{hint}")
