"""`python -m cvtrain` and the console script `cvtrain`."""

import sys


def main(arguments: list[str] | None = None) -> None:
    """Run the command line of this process, or one that a search has checked, and exit with its status."""
    from cvtrain.cli import run
    from cvtrain.interruption import PromptExit, is_interruption

    prompt_exit = PromptExit()
    try:
        status = run(sys.argv[1:]) if arguments is None else run(arguments, checked=True)
    except SystemExit as request:
        status = request.code if isinstance(request.code, int) else 1
        if not is_interruption(status):
            raise
    if is_interruption(status):
        from cvtrain.config.trial import is_trial
        from cvtrain.distributed.ranks import rank_of_process

        # An agent of W&B shuts down after three failures, and a trial that it stopped itself is none. What starts
        # several processes looks at their exit codes.
        prompt_exit.begin(status, by_signal=is_trial() and rank_of_process() is None)
    elif is_one_of_several():
        prompt_exit.end(status)
    sys.exit(status)


def is_one_of_several() -> bool:
    """True in a process that talks to others: gloo's threads abort an interpreter that is torn down around them."""
    talk = sys.modules.get("torch.distributed")
    return talk is not None and talk.is_available() and talk.is_initialized()


if __name__ == "__main__":
    main()
