def write_report(search, trials, folder):
    pass
