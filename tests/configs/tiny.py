"""A run of seconds: two epochs of 20 steps on small digit scenes."""

from cfmlc_jax import config as configs


def get_config():
    config = configs.default()
    config.data.source = "scenes"
    config.data.scenes.num_train = 160
    config.data.scenes.num_test = 40
    config.data.test_splits = ("test_iid", "test_conflict")
    config.data.threads = 2
    config.views.image_size = 32
    config.model.name = "resnet_small"
    config.optim.learning_rate = 1e-3
    config.optim.ema_decay = 0.9
    config.train.batch_size = 8
    config.train.epochs = 2
    config.train.log_every = 3
    config.train.checkpoint_every = 7
    config.evaluate.batch_size = 16
    config.effect.alphas = (0.5,)
    return config
