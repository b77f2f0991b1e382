"""The command line: `pyrobnn.cli.main.main` runs one command and ends the process with its exit code."""
