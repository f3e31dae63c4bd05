"""The checks before the first row: servers, rights, rules, tables. They read, and nothing else."""
