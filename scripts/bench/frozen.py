"""A head on a frozen ResNet-18, 25 epochs on ants and bees, whole process, against PyTorch's tutorial.

    python scripts/bench/frozen.py hymenoptera_data --pairs 3
    python scripts/bench/frozen.py hymenoptera_data --pairs 1 --peer-epochs 25

The peer is the transfer-learning tutorial's "ConvNet as fixed feature extractor" as the page has it: ImageFolder, two
DataLoaders with two workers, batches of 4, fp32, SGD with momentum on the last layer, StepLR, 25 epochs with
evaluation, best weights kept in a file. Both have random weights, since none can be downloaded here, which changes no
time. cvtrain resizes and crops the middle (augment=none), and so looks at each image once; with --views 4 at four
augmented versions of each.

A round of the peer takes minutes. By default it runs for 3 and for 1 epochs, and the difference gives the seconds of
the other 22; --peer-epochs 25 runs all of them.
"""

import argparse
import statistics
import tempfile
from pathlib import Path

from processes import describe_machine, run, spread

EPOCHS = 25
BAR = 20.0
PEER = Path(__file__).resolve().parent / "peers" / "tutorial_frozen.py"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, help="folder with train/ and val/ of ants and bees")
    parser.add_argument("--pairs", type=int, default=3, help="rounds of both")
    parser.add_argument("--peer-epochs", type=int, default=3, help="epochs of the peer; the rest is extrapolated")
    parser.add_argument("--views", type=int, help="augmented versions of each image; without: none")
    arguments = parser.parse_args()
    root = arguments.root.resolve()
    print(describe_machine())
    ours, peers = [], []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        train_ours(root, folder, arguments.views)  # brings files into memory, and byte code into its folder
        for pair in range(arguments.pairs):
            ours.append(train_ours(root, folder, arguments.views))
            peers.append(train_peer(root, folder, arguments.peer_epochs))
            print(f"pair {pair + 1}: cvtrain {ours[-1]:.2f} s, tutorial {peers[-1]:.1f} s", flush=True)
    how = "" if arguments.peer_epochs >= EPOCHS else f", from runs of {arguments.peer_epochs} and 1 epochs"
    print(f"cvtrain, {EPOCHS} epochs   {spread(ours)}")
    print(f"tutorial, {EPOCHS} epochs  {spread(peers)}{how}")
    ratio = statistics.median(peer / own for own, peer in zip(ours, peers, strict=True))
    print(f"bar: {BAR:g}")
    print(f"ratio: {ratio:.2f}")


def train_ours(root: Path, folder: Path, views: int | None) -> float:
    """Seconds of the whole process."""
    augment = ["augment=none"] if views is None else ["augment=standard", f"augment.views={views}"]
    settings = [
        *("data=custom", f"data.root={root}", "data.batch_size=4", "model=resnet18", "model.pretrained=false"),
        *("model.freeze=backbone", "model.cache_features=true", "optimizer=sgd", "optimizer.lr=0.001"),
        *("scheduler=step", "scheduler.step_epochs=7", f"trainer.epochs={EPOCHS}", *augment),
    ]
    return run(["-m", "cvtrain", *settings], folder=folder).seconds


def train_peer(root: Path, folder: Path, epochs: int) -> float:
    """Seconds of 25 epochs: measured, or those of `epochs` and what the epochs after the first take for each other."""
    if epochs >= EPOCHS:
        return run([str(PEER), str(root), str(EPOCHS)], folder=folder).seconds
    long, short = (run([str(PEER), str(root), str(count)], folder=folder).seconds for count in (epochs, 1))
    per_epoch = (long - short) / (epochs - 1)
    return long + per_epoch * (EPOCHS - epochs)


if __name__ == "__main__":
    main()
