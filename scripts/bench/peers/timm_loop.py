"""timm's parts in the loop of its documentation: create_dataset, create_loader, create_model, create_optimizer_v2, ...

https://huggingface.co/docs/timm/training_script and /reference. Its train.py is not in the wheel, so its loop stands
here with its settings for the same work as the others: a random crop and a flip, SGD with momentum, a step schedule,
top-1 on the val split after each epoch, the best weights kept. The prefetcher is for GPUs, so it is off.
"""

import timm
import torch
from peer_arguments import parse_arguments
from timm.data import create_dataset, create_loader
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import AverageMeter, accuracy, random_seed
from torch import nn

arguments = parse_arguments()


def build_loader(split: str, is_training: bool):
    dataset = create_dataset("", root=f"{arguments.root}/{split}", split=split, is_training=is_training)
    loader = create_loader(
        dataset,
        input_size=(3, arguments.image_size, arguments.image_size),
        batch_size=arguments.batch_size,
        is_training=is_training,
        use_prefetcher=False,
        color_jitter=None,
        interpolation="bilinear",
        crop_pct=0.875,
        num_workers=arguments.workers,
        device=torch.device("cpu"),
    )
    return dataset, loader


def autocast() -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16, enabled=arguments.precision == "bf16")


def main() -> None:
    random_seed(arguments.seed, 0)
    train_set, train_loader = build_loader("train", is_training=True)
    _, val_loader = build_loader("val", is_training=False)
    model = timm.create_model("resnet18", pretrained=False, num_classes=len(train_set.reader.class_to_idx))
    optimizer = create_optimizer_v2(model, opt="sgd", lr=0.001, momentum=0.9, weight_decay=0.0)
    scheduler, num_epochs = create_scheduler_v2(optimizer, sched="step", num_epochs=arguments.epochs, decay_epochs=7)
    train_criterion, best = nn.CrossEntropyLoss(), 0.0
    for epoch in range(num_epochs):
        model.train()
        losses = AverageMeter()
        for images, labels in train_loader:
            with autocast():
                loss = train_criterion(model(images).float(), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.update(loss.item(), images.size(0))
        model.eval()
        top1 = AverageMeter()
        with torch.no_grad():
            for images, labels in val_loader:
                with autocast():
                    logits = model(images).float()
                top1.update(accuracy(logits, labels)[0].item(), images.size(0))
        scheduler.step(epoch + 1)
        print(f"epoch {epoch + 1} loss {losses.avg:.4f} val accuracy {top1.avg / 100:.4f}")
        if top1.avg / 100 > best:
            best = top1.avg / 100
            torch.save({"state_dict": model.state_dict(), "optimizer": optimizer.state_dict()}, "model_best.pth.tar")
    print(f"best val accuracy {best:.4f}")


if __name__ == "__main__":
    main()
