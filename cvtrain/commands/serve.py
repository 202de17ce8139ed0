"""The verb `serve`: answers images over HTTP with the classes of a checkpoint."""

import logging
from pathlib import Path

import numpy as np

from cvtrain.commands.predict import load_classifier
from cvtrain.config.schema.predict import PredictConfig, PredictDataConfig
from cvtrain.config.schema.serve import ServeConfig
from cvtrain.config.text import display_list
from cvtrain.serve.app import build_app
from cvtrain.serve.body import Limits
from cvtrain.serve.server import LOCAL, open_socket, run_server, url_of

log = logging.getLogger(__name__)


def serve(config: ServeConfig) -> None:
    """Answer until Ctrl-C or SIGTERM.

    Raises:
        ConfigError: the checkpoint cannot be used, or the address cannot be listened at.
    """
    with open_socket(config.host, config.port) as opened:
        wanted = PredictConfig(
            checkpoint=config.checkpoint,
            source="-",
            batch_size=config.batch_size,
            tta=config.tta,
            device=config.device,
            precision=config.precision,
            model=config.model,
            data=PredictDataConfig(
                num_workers=0,
                reader=config.data.reader,
                max_image_pixels=config.data.max_image_pixels,
                image_size=config.data.image_size,
            ),
        )
        classifier = load_classifier(wanted, Path(config.checkpoint))
        # The first pass of a network is slow, and shows whether the device can do it.
        classifier.predict(np.zeros((classifier.image_size, classifier.image_size), np.uint8))
        limits = Limits(int(config.max_mb * 1e6), int(config.memory_mb * 1e6), config.body_seconds)
        app = build_app(
            classifier,
            limits,
            top_k=config.top_k,
            batch_size=config.batch_size,
            wait_seconds=config.wait_ms / 1000,
        )
        if config.host not in LOCAL:
            log.warning("anybody who reaches %s can use it: there is neither a password nor encryption", config.host)
        log.info("%d classes: %s", len(classifier.classes), display_list(classifier.classes))
        log.info("serving at %s until Ctrl-C", url_of(opened, config.host))
        run_server(app, opened, max_connections=config.max_connections, stop_seconds=config.stop_seconds)
    log.info("stopped")
