"""torchvision comes without torch's compiler, and finds it when it asks for it."""

import subprocess
import sys

SCRIPT = """
import sys
from cvtrain.runtime.torchvision_start import _is_compile_supported, import_torchvision, import_transforms
import torch

torchvision = import_torchvision()
assert "torch._dynamo" not in sys.modules and "torch._dynamo.utils" not in sys.modules
assert import_torchvision() is torchvision is sys.modules["torchvision"]
v2 = import_transforms()
assert "torch._dynamo" not in sys.modules and "torch._dynamo.utils" not in sys.modules
assert import_transforms() is v2 is torchvision.transforms.v2
image = torchvision.tv_tensors.Image(torch.arange(12).reshape(3, 2, 2))
assert torch.equal(v2.functional.horizontal_flip(image), image.flip(-1))
assert type(v2.functional.horizontal_flip(image)) is torchvision.tv_tensors.Image
assert torchvision.models.get_model("resnet18", num_classes=2)(torch.zeros(2, 3, 32, 32)).shape == (2, 2)
boxes = torch.tensor([[0.0, 0.0, 0.0, 2.0, 2.0]])
assert float(torchvision.ops.roi_align(torch.ones(1, 1, 4, 4), boxes, 1)) == 1.0
assert _is_compile_supported("cpu") == sys.modules["torch._dynamo.utils"].is_compile_supported("cpu")
assert sys.modules["torch._dynamo"].__file__
"""


def test_the_compiler_is_imported_when_it_is_asked_for_and_no_sooner():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
