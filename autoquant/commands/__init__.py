"""The commands: a file each, or a file for those that change together; `autoquant.cli` has the table."""
