"""A run of seconds: an invariant classifier of small digits, on generated records that a flag names."""

from cfmlc_jax import config as configs


def get_config():
    config = configs.default()
    config.task, config.method, config.loss.name = "single_label", "invariant", "cross_entropy"
    config.data.source, config.data.normalise = "long_tailed_digits", "half"
    config.data.longtail.largest, config.data.longtail.ratio, config.data.longtail.num_test = 8, 1.0, 4
    config.data.test_splits = ("test",)
    config.data.threads = 2
    config.views.image_size, config.views.transform = 32, "padded_crop"
    config.views.padded_crop.flip = False
    config.model.name = "cnn_mnist"
    config.optim.name, config.optim.learning_rate, config.optim.weight_decay = "adadelta", 1.0, 0.0
    config.optim.ema_decay = 0.9
    config.train.batch_size, config.train.epochs, config.train.log_every = 16, 2, 3
    config.train.early_stop = False
    config.evaluate.batch_size = 40
    config.effect.kinds = ()
    return config
