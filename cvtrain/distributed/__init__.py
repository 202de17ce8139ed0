"""Several processes that train one run: ranks, collectives, and how they are started."""
