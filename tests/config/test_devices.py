"""`trainer.devices`: how many processes, and what they can share."""

import pytest

from cvtrain.config.errors import ConfigError


@pytest.mark.parametrize("value", ["0", "-2", "some"])
def test_devices_is_a_count_or_auto(compose_config, value):
    with pytest.raises(ConfigError, match=r"trainer\.devices=.*must be a whole number at least 1, or auto"):
        compose_config(f"trainer.devices={value}")


@pytest.mark.parametrize("value", ["1", "2", "auto"])
def test_devices_that_can_be(compose_config, value):
    assert str(compose_config(f"trainer.devices={value}").trainer.devices) == value


def test_each_process_needs_a_device_of_its_own(compose_config):
    with pytest.raises(ConfigError, match=r"trainer\.device=cuda:1: is one device, and trainer\.devices=2"):
        compose_config("trainer.devices=2", "trainer.device=cuda:1")


def test_a_batch_has_an_image_for_each_process(compose_config):
    with pytest.raises(ConfigError, match=r"data\.batch_size=3: has to be at least trainer\.devices=4"):
        compose_config("trainer.devices=4", "data.batch_size=3")
