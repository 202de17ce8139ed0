"""The command line: from words to one checked, typed config, and to the verb."""
