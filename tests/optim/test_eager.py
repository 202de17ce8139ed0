"""Optimizers without torch's compiler: the same steps and hooks, and the compiler stays unloaded."""

import os
import subprocess
import sys

# In a process of its own, since other tests may have loaded the compiler.
PROGRAM = """
import sys
import torch
from cvtrain.models.summary import summarize_model
from cvtrain.optim.eager import build_eager

def train(make, optimizer_class, **settings):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 3))
    optimizer = make(optimizer_class, model.parameters(), lr=0.1, **settings)
    calls = []
    optimizer.register_step_pre_hook(lambda *_: calls.append("before"))
    optimizer.register_step_post_hook(lambda *_: calls.append("after"))
    for _ in range(3):
        optimizer.zero_grad(set_to_none=True)
        model(torch.randn(4, 3, 2, 2)).square().mean().backward()
        optimizer.step()
    optimizer.load_state_dict(optimizer.state_dict())
    optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(1))]})
    summarize_model(model, (3, 2, 2))
    return [p.detach().clone() for p in model.parameters()], calls

kinds = [(torch.optim.SGD, {"momentum": 0.9}), (torch.optim.AdamW, {"fused": True}), (torch.optim.RAdam, {})]
eager = [train(build_eager, kind, **settings) for kind, settings in kinds]
assert "torch._dynamo" not in sys.modules, "the compiler was loaded"
plain = [train(lambda kind, *a, **k: kind(*a, **k), kind, **settings) for kind, settings in kinds]
for (one, calls), (other, expected) in zip(eager, plain):
    assert calls == expected == ["before", "after"] * 3, calls
    assert all(torch.equal(a, b) for a, b in zip(one, other))
"""


def test_steps_and_hooks_are_the_same_and_the_compiler_is_not_loaded():
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONWARNINGS"}
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
