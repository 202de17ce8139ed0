"""The loop of PyTorch's transfer learning tutorial, from scratch instead of from weights.

https://docs.pytorch.org/tutorials/beginner/transfer_learning_tutorial.html: ImageFolder, RandomResizedCrop, DataLoader,
SGD with momentum, StepLR, a train and a val phase per epoch, the best weights kept in a file.
"""

from tempfile import TemporaryDirectory

import torch
from peer_arguments import parse_arguments
from torch import nn, optim
from torch.optim import lr_scheduler
from torchvision import datasets, models, transforms

arguments = parse_arguments()

torch.manual_seed(arguments.seed)
size = arguments.image_size
normalize = transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
data_transforms = {
    "train": transforms.Compose(
        [transforms.RandomResizedCrop(size), transforms.RandomHorizontalFlip(), transforms.ToTensor(), normalize]
    ),
    "val": transforms.Compose(
        [transforms.Resize(size * 256 // 224), transforms.CenterCrop(size), transforms.ToTensor(), normalize]
    ),
}


def has_image_extension(path: str) -> bool:
    return path.lower().endswith((".jpg", ".jpeg", ".png"))


def train_model(model, dataloaders, sizes, criterion, optimizer, scheduler, num_epochs):
    with TemporaryDirectory() as tempdir:
        best_path = f"{tempdir}/best_model_params.pt"
        torch.save(model.state_dict(), best_path)
        best_acc = 0.0
        for epoch in range(num_epochs):
            for phase in ("train", "val"):
                model.train(phase == "train")
                running_loss, running_corrects = 0.0, 0
                for inputs, labels in dataloaders[phase]:
                    optimizer.zero_grad()
                    with torch.set_grad_enabled(phase == "train"):
                        with torch.autocast("cpu", torch.bfloat16, enabled=arguments.precision == "bf16"):
                            outputs = model(inputs)
                        outputs = outputs.float()
                        _, preds = torch.max(outputs, 1)
                        loss = criterion(outputs, labels)
                        if phase == "train":
                            loss.backward()
                            optimizer.step()
                    running_loss += loss.item() * inputs.size(0)
                    running_corrects += torch.sum(preds == labels.data)
                if phase == "train":
                    scheduler.step()
                epoch_acc = running_corrects.double() / sizes[phase]
                print(f"epoch {epoch + 1} {phase} loss {running_loss / sizes[phase]:.4f} accuracy {epoch_acc:.4f}")
                if phase == "val" and epoch_acc > best_acc:
                    best_acc = epoch_acc
                    torch.save(model.state_dict(), best_path)
        print(f"best val accuracy {best_acc:.4f}")


def main() -> None:
    image_datasets = {
        split: datasets.ImageFolder(f"{arguments.root}/{split}", transform, is_valid_file=has_image_extension)
        for split, transform in data_transforms.items()
    }
    dataloaders = {
        split: torch.utils.data.DataLoader(
            dataset, batch_size=arguments.batch_size, shuffle=True, num_workers=arguments.workers
        )
        for split, dataset in image_datasets.items()
    }
    sizes = {split: len(dataset) for split, dataset in image_datasets.items()}
    model = models.resnet18(weights=None)
    model.fc = nn.Linear(model.fc.in_features, len(image_datasets["train"].classes))
    optimizer = optim.SGD(model.parameters(), lr=0.001, momentum=0.9)
    scheduler = lr_scheduler.StepLR(optimizer, step_size=7, gamma=0.1)
    train_model(model, dataloaders, sizes, nn.CrossEntropyLoss(), optimizer, scheduler, arguments.epochs)


if __name__ == "__main__":
    main()
