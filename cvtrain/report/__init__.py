"""What a run leaves for people: pictures, tables, summary.json and environment.json."""
