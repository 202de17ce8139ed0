"""`python -m cvtrain` and the console script `cvtrain`."""

import sys


def main(arguments: list[str] | None = None) -> None:
    """Run the command line of this process, or one that a search has checked, and exit with its status."""
    from cvtrain.runtime.signals import PromptExit, is_signal_exit

    prompt_exit = PromptExit()
    from cvtrain.cli.main import run

    try:
        status = run(sys.argv[1:]) if arguments is None else run(arguments, checked=True)
    except SystemExit as request:
        status = request.code if isinstance(request.code, int) else int(request.code is not None)
    except Exception:
        sys.excepthook(*sys.exc_info())
        status = 1
    if is_signal_exit(status):
        from cvtrain.config.wandb_trial import is_trial
        from cvtrain.distributed.env import rank_from_env

        # An agent of W&B shuts down after three failures, and a trial that it stopped itself is none. What starts
        # several processes looks at their exit codes.
        prompt_exit.begin(status, by_signal=is_trial() and rank_from_env() is None)
    else:
        prompt_exit.end(status)
    sys.exit(status)


if __name__ == "__main__":
    main()
