"""The fixed feature extractor of PyTorch's transfer-learning tutorial, with random weights: ROOT EPOCHS."""

import sys
import tempfile
import time
from pathlib import Path

import torch
from torch import nn, optim
from torch.optim import lr_scheduler
from torchvision import datasets, models, transforms

BATCH_SIZE, WORKERS = 4, 2


def build_loaders(root: Path) -> dict[str, torch.utils.data.DataLoader]:
    normalize = transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    pipelines = {
        "train": transforms.Compose(
            [
                transforms.RandomResizedCrop(224),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                normalize,
            ]
        ),
        "val": transforms.Compose(
            [transforms.Resize(256), transforms.CenterCrop(224), transforms.ToTensor(), normalize]
        ),
    }
    return {
        split: torch.utils.data.DataLoader(
            datasets.ImageFolder(str(root / split), pipeline), batch_size=BATCH_SIZE, shuffle=True, num_workers=WORKERS
        )
        for split, pipeline in pipelines.items()
    }


def train(root: Path, epochs: int, best_path: Path) -> float:
    loaders = build_loaders(root)
    model = models.resnet18(weights=None)
    for parameter in model.parameters():
        parameter.requires_grad = False
    model.fc = nn.Linear(model.fc.in_features, 2)
    criterion = nn.CrossEntropyLoss()
    optimizer = optim.SGD(model.fc.parameters(), lr=0.001, momentum=0.9)
    scheduler = lr_scheduler.StepLR(optimizer, step_size=7, gamma=0.1)
    torch.save(model.state_dict(), best_path)
    best = 0.0
    for epoch in range(epochs):
        began = time.time()
        for split, loader in loaders.items():
            is_training = split == "train"
            model.train(is_training)
            total_loss, num_correct = 0.0, 0
            for images, labels in loader:
                optimizer.zero_grad()
                with torch.set_grad_enabled(is_training):
                    outputs = model(images)
                    _, preds = torch.max(outputs, 1)
                    loss = criterion(outputs, labels)
                    if is_training:
                        loss.backward()
                        optimizer.step()
                total_loss += loss.item() * images.size(0)
                num_correct += torch.sum(preds == labels).item()
            if is_training:
                scheduler.step()
            accuracy = num_correct / len(loader.dataset)
            print(f"epoch {epoch} {split} loss {total_loss / len(loader.dataset):.4f} accuracy {accuracy:.4f}")
            if not is_training and accuracy > best:
                best = accuracy
                torch.save(model.state_dict(), best_path)
        print(f"{time.time() - began:.1f} s", flush=True)
    model.load_state_dict(torch.load(best_path, weights_only=True))
    return best


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        print(f"best accuracy {train(Path(sys.argv[1]), int(sys.argv[2]), Path(folder) / 'best.pt'):.4f}")
