"""The cores that a process may use."""

import pytest

from cvtrain.config.machine import usable_cores


@pytest.mark.parametrize(("granted", "cores"), [("1", 1), ("100000", None), ("0", None), ("(null)", None)])
def test_slurm_limits_the_cores(monkeypatch, granted, cores):
    monkeypatch.delenv("SLURM_CPUS_PER_TASK", raising=False)
    of_process = usable_cores()
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", granted)
    assert usable_cores() == (cores or of_process)
