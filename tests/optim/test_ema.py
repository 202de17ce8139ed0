"""averaging: the moving average against its recursion written out."""

import copy

import torch
from torch import nn

from cvtrain.optim.ema import ModelEma, NoEma, build_ema


def make_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))


def test_average_follows_the_recursion():
    model = make_model()
    average = ModelEma(model, decay=0.5)
    expected = model[0].weight.detach().double().clone()
    for update in range(1, 9):
        with torch.no_grad():
            model[0].weight += torch.randn(4, 3)
            model[1].running_mean += 1
        average.update(model)
        decay = min(0.5, (1 + update) / (10 + update))
        expected = decay * expected + (1 - decay) * model[0].weight.detach().double()
    torch.testing.assert_close(average.model[0].weight.double(), expected, rtol=1e-6, atol=1e-6)
    assert torch.equal(average.model[1].running_mean, model[1].running_mean)
    assert not average.model.training


def test_round_trip():
    model = make_model()
    average = ModelEma(model, decay=0.9)
    with torch.no_grad():
        model[0].weight += 1
    average.update(model)
    other = ModelEma(make_model(), decay=0.9)
    other.load_state_dict(copy.deepcopy(average.state_dict()))
    assert other.num_updates == 1
    for mine, theirs in zip(average.model.parameters(), other.model.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_off_is_the_model_itself():
    model = make_model()
    average = build_ema(model, None)
    assert isinstance(average, NoEma)
    assert average.model is model
    assert average.state_dict() is None
