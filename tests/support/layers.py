"""The seven layers of the package, which tests and the architecture page share."""

# From the bottom up. A folder (or file at the top) imports from layers below its own; within a layer, see SIBLINGS.
LAYERS = (
    {"config"},
    {"runtime"},
    {"models", "optim", "losses", "metrics", "loggers", "distributed"},
    {"data", "checkpoint"},
    {"training", "check", "explain"},
    {"report", "export"},
    {"cli", "commands", "sweep", "auto", "serve", "classifier", "__init__", "__main__"},
)
