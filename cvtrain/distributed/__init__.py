"""Several processes that train one run: which of them this is, how they talk, and how they are started."""
