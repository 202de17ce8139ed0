"""The settings that bench scripts give to all peers, so that they do the same work."""

import argparse


def parse_arguments() -> argparse.Namespace:
    """`root` has train/ and val/ with a folder per class; what is left out is as the benches have it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("root")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    return parser.parse_args()
