import math
import warnings

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from cvtrain.config.schema.optim import (
    SCHEDULER_CONFIGS,
    ConstantConfig,
    CosineConfig,
    ExponentialConfig,
    LinearConfig,
    MultiStepConfig,
    OneCycleConfig,
    PlateauConfig,
    PolynomialConfig,
    SchedulerConfig,
    StepConfig,
)
from cvtrain.optim.schedule import PlateauSchedule, apply_schedule, build_schedule

STEPS_PER_EPOCH = 10
TOTAL = 60


def factors(config: SchedulerConfig, total_steps: int = TOTAL, steps_per_epoch: int = STEPS_PER_EPOCH) -> list[float]:
    schedule = build_schedule(config, steps_per_epoch=steps_per_epoch, total_steps=total_steps)
    return [schedule.factor(step) for step in range(total_steps)]


def torch_factors(make_scheduler, total_steps: int = TOTAL, lr: float = 1.0) -> list[float]:
    """The rate that each update runs at, with torch's scheduler stepped after each update."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=lr)
    scheduler = make_scheduler(optimizer)
    rates = []
    for _ in range(total_steps):
        rates.append(optimizer.param_groups[0]["lr"] / lr)
        optimizer.step()
        with warnings.catch_warnings():
            # SequentialLR passes an epoch to its parts, which torch itself has deprecated.
            warnings.filterwarnings("ignore", message="The epoch parameter in `scheduler.step")
            scheduler.step()
    return rates


def test_every_config_has_a_schedule_without_state():
    for name, config_class in SCHEDULER_CONFIGS.items():
        schedule = build_schedule(config_class(), steps_per_epoch=10, total_steps=100)
        assert bool(schedule.state_dict()) == (name == "plateau")
        if name != "plateau":
            before = schedule.factor(7)
            schedule.observe(0.5)
            schedule.load_state_dict(schedule.state_dict())
            assert schedule.factor(7) == before


CLOSED_FORMS = [
    (ConstantConfig(), lambda s: 1.0),
    (StepConfig(step_epochs=1.5, gamma=0.5), lambda s: 0.5 ** (s // 15)),
    (
        MultiStepConfig(milestones_epochs=[1.0, 2.5, 4.0], gamma=0.1),
        lambda s: 0.1 ** sum(s >= milestone for milestone in (10, 25, 40)),
    ),
    (ExponentialConfig(gamma=0.9), lambda s: 0.9 ** (s / 10)),
    (LinearConfig(end_factor=0.2), lambda s: 1 - 0.8 * s / 59),
    (PolynomialConfig(power=3.0, end_factor=0.1), lambda s: 0.1 + 0.9 * (1 - s / 59) ** 3),
    (CosineConfig(end_factor=0.1), lambda s: 0.1 + 0.45 * (1 + math.cos(math.pi * s / 59))),
]


@pytest.mark.parametrize(("config", "closed_form"), CLOSED_FORMS, ids=lambda value: getattr(value, "name", ""))
def test_factor_by_factor_against_closed_forms(config, closed_form):
    assert factors(config) == pytest.approx([closed_form(step) for step in range(TOTAL)], rel=1e-12, abs=1e-15)


TORCH_FORMS = [
    (StepConfig(step_epochs=1.5, gamma=0.5), lambda o: lr_scheduler.StepLR(o, step_size=15, gamma=0.5)),
    (
        MultiStepConfig(milestones_epochs=[1.0, 2.5, 4.0]),
        lambda o: lr_scheduler.MultiStepLR(o, milestones=[10, 25, 40], gamma=0.1),
    ),
    (ExponentialConfig(gamma=0.9), lambda o: lr_scheduler.ExponentialLR(o, gamma=0.9**0.1)),
    (
        LinearConfig(end_factor=0.2),
        lambda o: lr_scheduler.LinearLR(o, start_factor=1.0, end_factor=0.2, total_iters=TOTAL - 1),
    ),
    (PolynomialConfig(power=3.0), lambda o: lr_scheduler.PolynomialLR(o, total_iters=TOTAL - 1, power=3.0)),
    (CosineConfig(end_factor=0.1), lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=TOTAL - 1, eta_min=0.1)),
    (OneCycleConfig(), lambda o: lr_scheduler.OneCycleLR(o, max_lr=1.0, total_steps=TOTAL, cycle_momentum=False)),
    (
        OneCycleConfig(pct_start=0.42, div_factor=7.0, final_div_factor=50.0),
        lambda o: lr_scheduler.OneCycleLR(
            o,
            max_lr=1.0,
            total_steps=TOTAL,
            pct_start=0.42,
            div_factor=7.0,
            final_div_factor=50.0,
            cycle_momentum=False,
        ),
    ),
]


@pytest.mark.parametrize(("config", "make_scheduler"), TORCH_FORMS, ids=lambda value: getattr(value, "name", ""))
def test_factor_by_factor_against_torch(config, make_scheduler):
    assert factors(config) == pytest.approx(torch_factors(make_scheduler), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize(
    ("config", "make_main"),
    [
        (CosineConfig(end_factor=0.1), lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=44, eta_min=0.1)),
        (LinearConfig(), lambda o: lr_scheduler.LinearLR(o, start_factor=1.0, end_factor=0.0, total_iters=44)),
        (ExponentialConfig(gamma=0.9), lambda o: lr_scheduler.ExponentialLR(o, gamma=0.9**0.1)),
        (ConstantConfig(), lambda o: lr_scheduler.ConstantLR(o, factor=1.0)),
        # Drops count from the start of the run: 15 steps of warm-up make the main schedule's 25 the run's 40.
        (MultiStepConfig(milestones_epochs=[4.0]), lambda o: lr_scheduler.MultiStepLR(o, milestones=[25])),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_warmup_against_torchs_sequence(config, make_main):
    config.warmup_epochs, config.warmup_start_factor = 1.5, 0.2

    def make_scheduler(optimizer):
        warmup = lr_scheduler.LinearLR(optimizer, start_factor=0.2, total_iters=15)
        return lr_scheduler.SequentialLR(optimizer, [warmup, make_main(optimizer)], milestones=[15])

    ours = factors(config)
    assert ours == pytest.approx(torch_factors(make_scheduler), rel=1e-9, abs=1e-12)
    assert ours[:16] == pytest.approx([0.2 + 0.8 * step / 15 for step in range(15)] + [1.0])


def test_step_drops_count_from_the_start_of_the_run():
    warm = factors(StepConfig(step_epochs=2.0, gamma=0.1, warmup_epochs=1.0))
    cold = factors(StepConfig(step_epochs=2.0, gamma=0.1))
    assert warm[10:] == cold[10:]
    assert warm[20] == pytest.approx(0.1) and warm[19] == 1.0


def test_warmup_ends_where_the_schedule_is_when_a_drop_lies_inside_it():
    ours = factors(StepConfig(step_epochs=0.5, gamma=0.1, warmup_epochs=1.0, warmup_start_factor=0.0), total_steps=12)
    assert ours[:11] == pytest.approx([0.01 * step / 10 for step in range(11)])


def test_warmup_steps_take_the_place_of_epochs():
    assert factors(ConstantConfig(warmup_steps=4, warmup_epochs=3.0, warmup_start_factor=0.0))[:6] == [
        0.0,
        0.25,
        0.5,
        0.75,
        1.0,
        1.0,
    ]


@pytest.mark.parametrize("config", [LinearConfig(0), PolynomialConfig(), CosineConfig()])
def test_end_factor_is_reached_at_the_last_update(config):
    config.name, config.end_factor, config.warmup_steps = type(config).name, 0.25, 7
    ours = factors(config)
    assert ours[-1] == 0.25
    assert ours[-2] > 0.25
    schedule = build_schedule(config, steps_per_epoch=10, total_steps=TOTAL)
    assert schedule.factor(TOTAL) == schedule.factor(10 * TOTAL) == 0.25


def test_onecycle_peaks_where_torchs_does_and_ends_at_its_floor():
    ours = factors(OneCycleConfig(pct_start=0.35, div_factor=10.0, final_div_factor=100.0))
    assert ours[0] == pytest.approx(0.1)
    assert ours[20] == 1.0 and max(ours) == 1.0  # 0.35 * 60 - 1
    assert ours[-1] == pytest.approx(0.001)


@pytest.mark.parametrize("name", SCHEDULER_CONFIGS)
@pytest.mark.parametrize("total_steps", [1, 2, 3])
def test_shortest_runs_have_finite_factors(name, total_steps):
    ours = factors(SCHEDULER_CONFIGS[name](), total_steps=total_steps, steps_per_epoch=1)
    assert all(0.0 <= factor <= 1.0 for factor in ours)
    assert ours[0] > 0


def test_a_longer_run_is_a_new_schedule_of_the_same_arguments():
    short = build_schedule(CosineConfig(), steps_per_epoch=10, total_steps=60)
    long = build_schedule(CosineConfig(), steps_per_epoch=10, total_steps=120)
    assert short.factor(59) == 0.0
    assert long.factor(59) == pytest.approx((1 + math.cos(math.pi * 59 / 119)) / 2)


def test_onecycle_takes_no_warmup():
    warmed = build_schedule(OneCycleConfig(warmup_steps=3), steps_per_epoch=10, total_steps=60)
    plain = build_schedule(OneCycleConfig(), steps_per_epoch=10, total_steps=60)
    assert [warmed.factor(step) for step in range(60)] == [plain.factor(step) for step in range(60)]


def test_a_warmup_that_fills_the_run_is_said_aloud(caplog):
    schedule = build_schedule(CosineConfig(warmup_steps=100), steps_per_epoch=10, total_steps=50)
    assert "warm-up of 100 steps is as long as the run of 50" in caplog.text
    assert schedule.factor(49) == pytest.approx(0.01 + 0.99 * 0.49)


@pytest.mark.parametrize("mode", ["max", "min"])
@pytest.mark.parametrize("threshold", [1e-4, 0.05])
def test_plateau_against_torch(mode, threshold):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = lr_scheduler.ReduceLROnPlateau(
        optimizer, mode=mode, factor=0.5, patience=2, threshold=threshold, min_lr=0.05, eps=0.0
    )
    ours = PlateauSchedule(mode=mode, drop=0.5, patience=2, threshold=threshold, min_factor=0.05)
    values = torch.rand(200, generator=torch.Generator().manual_seed(3)) * 0.5 + 0.5
    values += torch.linspace(0.0, 0.5 if mode == "max" else -0.4, 200)
    values[60] = math.nan
    drops = 0
    for value in values.tolist():
        theirs.step(value)
        before = ours.factor(0)
        ours.observe(value)
        drops += ours.factor(0) != before
        assert ours.factor(0) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-12)
    assert drops == 5  # 0.5, 0.25, 0.125, 0.0625, 0.05


def test_plateau_counts_evaluations_in_a_row():
    schedule = PlateauSchedule(mode="max", drop=0.1, patience=1)
    seen = []
    for value in (0.5, 0.4, 0.6, 0.6, 0.6, 0.5, 0.5):
        schedule.observe(value)
        seen.append(schedule.factor(0))
    assert seen == pytest.approx([1, 1, 1, 1, 0.1, 0.1, 0.01])


def test_plateau_threshold_hinders_below_zero_too():
    schedule = PlateauSchedule(mode="max", drop=0.1, patience=0, threshold=0.1)
    schedule.observe(-1.0)
    schedule.observe(-0.95)  # 5 % better: not enough
    assert schedule.factor(0) == pytest.approx(0.1)
    schedule.observe(-0.8)
    assert schedule.factor(0) == pytest.approx(0.1)


def test_plateau_state_goes_on():
    values = [0.5, 0.6, 0.6, 0.55, 0.7, 0.7, 0.7, 0.7, 0.1, 0.1, 0.1]
    config = PlateauConfig(factor=0.5, patience=1, warmup_steps=4)
    straight = build_schedule(config, steps_per_epoch=10, total_steps=60, monitor_mode="max")
    expected = []
    for value in values:
        straight.observe(value)
        expected.append(straight.factor(9))
    for cut in range(len(values)):
        first = build_schedule(config, steps_per_epoch=10, total_steps=60, monitor_mode="max")
        for value in values[:cut]:
            first.observe(value)
        second = build_schedule(config, steps_per_epoch=10, total_steps=60, monitor_mode="max")
        second.load_state_dict(first.state_dict())
        rest = []
        for value in values[cut:]:
            second.observe(value)
            rest.append(second.factor(9))
        assert rest == expected[cut:]


def test_plateau_warms_up_to_its_factor():
    schedule = PlateauSchedule(mode="min", drop=0.5, patience=0, warmup_steps=4, warmup_start_factor=0.0)
    assert [schedule.factor(step) for step in range(6)] == [0.0, 0.25, 0.5, 0.75, 1.0, 1.0]
    schedule.observe(1.0)
    schedule.observe(1.0)
    assert [schedule.factor(step) for step in (2, 4)] == [0.25, 0.5]


def test_plateau_mode_is_max_or_min():
    with pytest.raises(ValueError, match="mode is 'auto'"):
        PlateauSchedule(mode="auto")


def test_apply_schedule_scales_each_groups_own_peak():
    parameters = [nn.Parameter(torch.zeros(1)) for _ in range(2)]
    groups = [{"params": [p], "lr": lr, "initial_lr": lr} for p, lr in zip(parameters, (0.4, 0.1), strict=True)]
    optimizer = torch.optim.SGD(groups, lr=1.0)
    schedule = build_schedule(LinearConfig(), steps_per_epoch=5, total_steps=11)
    for step in (0, 5, 2):
        apply_schedule(optimizer, schedule, step)
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx(
            [0.4 * (1 - step / 10), 0.1 * (1 - step / 10)]
        )
        assert [group["initial_lr"] for group in optimizer.param_groups] == [0.4, 0.1]
