"""Lightning as its documentation tells: a LightningModule, torchvision's ImageFolder, a Trainer with its defaults.

https://lightning.ai/docs/pytorch/stable/starter/introduction.html. Same data, network, optimizer and schedule as the
tutorial's loop; workers persist, as Lightning's warnings advise.
"""

import logging
import warnings

import lightning
import torch
from peer_arguments import parse_arguments
from torch import nn
from torchvision import datasets, models, transforms


class Classifier(lightning.LightningModule):
    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.model = models.resnet18(weights=None)
        self.model.fc = nn.Linear(self.model.fc.in_features, num_classes)

    def training_step(self, batch, batch_idx):
        images, labels = batch
        loss = nn.functional.cross_entropy(self.model(images), labels)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        images, labels = batch
        logits = self.model(images)
        self.log("val_loss", nn.functional.cross_entropy(logits, labels))
        self.log("val_accuracy", (logits.argmax(1) == labels).float().mean())

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.001, momentum=0.9)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, step_size=7, gamma=0.1)]


def has_image_extension(path: str) -> bool:
    return path.lower().endswith((".jpg", ".jpeg", ".png"))


def main() -> None:
    arguments = parse_arguments()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    lightning.seed_everything(arguments.seed)
    size = arguments.image_size
    end = [transforms.ToTensor(), transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])]
    training = transforms.Compose([transforms.RandomResizedCrop(size), transforms.RandomHorizontalFlip(), *end])
    evaluation = transforms.Compose([transforms.Resize(size * 256 // 224), transforms.CenterCrop(size), *end])
    loaders = []
    for split, transform, shuffle in (("train", training, True), ("val", evaluation, False)):
        dataset = datasets.ImageFolder(f"{arguments.root}/{split}", transform, is_valid_file=has_image_extension)
        loaders.append(
            torch.utils.data.DataLoader(
                dataset,
                batch_size=arguments.batch_size,
                shuffle=shuffle,
                num_workers=arguments.workers,
                persistent_workers=arguments.workers > 0,
            )
        )
    trainer = lightning.Trainer(
        max_epochs=arguments.epochs,
        accelerator="cpu",
        precision="bf16-mixed" if arguments.precision == "bf16" else "32-true",
        enable_progress_bar=False,
        log_every_n_steps=5,
    )
    trainer.fit(Classifier(len(loaders[0].dataset.classes)), *loaders)
    print(f"best val accuracy {float(trainer.callback_metrics['val_accuracy']):.4f}")


if __name__ == "__main__":
    main()
